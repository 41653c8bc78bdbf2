//! What was asked and what there is → what is leaked, lost, overcommitted, stuck or corrupted. Pure, and its own code:
//! nothing of it is shared with the manager.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use quarry_crds::NodeLocalStorage;

use crate::book::{Book, Claim, Entry, Wanted, pod_name};
use crate::data::{self, LINES};
use crate::load::{BY_HAND, GROUP, own_group};
use crate::observe::{NodeView, Snapshot, mapped_name};
use crate::pods;
use crate::schedule::Kind;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Something is left that nobody wants.
    Leaked,
    /// A volume or its data is gone.
    Lost,
    /// More is promised than there is, or what is published is not true.
    Overcommitted,
    /// Something is not in its final state.
    Stuck,
    /// A volume holds what it may not.
    Corrupted,
    /// Something of others was changed.
    Foreign,
}

/// A fault that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Its kind.
    pub fault: Fault,
    /// The object, and what was seen of it.
    pub seen: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = format!("{:?}", self.fault).to_lowercase();
        write!(f, "{fault}: {}", self.seen)
    }
}

fn finding(fault: Fault, seen: impl Into<String>) -> Finding {
    Finding {
        fault,
        seen: seen.into(),
    }
}

/// Judges a cluster that had time to come to rest.
#[must_use]
pub fn judge(book: &Book, seen: &Snapshot) -> Vec<Finding> {
    let mut found = at_any_time(book, seen);
    let claims = seen.claims_by_name();
    for entry in book.entries.values() {
        match entry.wanted {
            Wanted::Served => served(entry, book, seen, &claims, &mut found),
            Wanted::Waiting => waiting(entry, seen, &claims, &mut found),
            Wanted::Gone => gone(entry, seen, &claims, &mut found),
        }
    }
    leaked(book, seen, &mut found);
    for node in &seen.nodes {
        capacity(node, seen, &mut found);
        own_groups(book, node, &mut found);
    }
    found.sort();
    found.dedup();
    found
}

/// What may not be at any time, however much is down.
#[must_use]
pub fn at_any_time(book: &Book, seen: &Snapshot) -> Vec<Finding> {
    let mut found = Vec::new();
    let corrupt = book.corrupt.iter().map(|one| (Fault::Corrupted, one));
    let lost = book.lost.iter().map(|one| (Fault::Lost, one));
    for (fault, (volume, what)) in corrupt.chain(lost) {
        found.push(finding(fault, format!("{volume}: {what}")));
    }
    for pod in &seen.pods {
        if let Some((lost, what)) = pods::complaint(pod) {
            let fault = if lost { Fault::Lost } else { Fault::Corrupted };
            found.push(finding(fault, format!("pod {}: {what}", name(&pod.metadata))));
        }
    }
    for node in &seen.nodes {
        for mounted in &node.mounted {
            if let Some(what) = wrong_pattern(book, &mounted.volume, &mounted.pattern) {
                found.push(finding(
                    Fault::Corrupted,
                    format!("{} on {}: {what}", mounted.volume, node.name),
                ));
            }
        }
        for group in &node.groups {
            let promised = promised(seen, &node.name, &group.uuid);
            if promised > group.size {
                let what = format!(
                    "volume group {} on {}: PersistentVolumes for {promised} bytes, and it has {}",
                    group.name, node.name, group.size
                );
                found.push(finding(Fault::Overcommitted, what));
            }
        }
    }
    found
}

/// Bytes of the PersistentVolumes in a group.
fn promised(seen: &Snapshot, node: &str, uuid: &str) -> u64 {
    let here = |volume: &&PersistentVolume| {
        quarry_crds::persistent_volume::ours(volume)
            .is_some_and(|ours| ours.node == node && ours.volume_group_uuid == uuid)
    };
    seen.volumes.iter().filter(here).map(size_of).sum()
}

fn size_of(volume: &PersistentVolume) -> u64 {
    let capacity = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.capacity.as_ref()?.get("storage"));
    capacity.map_or(0, |text| bytes(&text.0))
}

fn bytes(text: &str) -> u64 {
    quarry_crds::quantity::parse(text).map_or(0, |bytes| bytes.0)
}

/// What is wrong with the pattern of a mounted volume, where the book knows its claim.
fn wrong_pattern(book: &Book, volume: &str, pattern: &str) -> Option<String> {
    let uid = volume.strip_prefix("pvc-")?;
    let claim = book
        .entries
        .values()
        .flat_map(|entry| &entry.claims)
        .find(|claim| claim.uid.as_deref() == Some(uid))?;
    let line = data::line(book.seed, &claim.name, claim.generation);
    (pattern != format!("{LINES} {line}")).then(|| format!("holds {pattern:?} in place of {LINES} lines {line:?}"))
}

fn name(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

fn served(
    entry: &Entry,
    book: &Book,
    seen: &Snapshot,
    claims: &BTreeMap<String, &PersistentVolumeClaim>,
    found: &mut Vec<Finding>,
) {
    for claim in &entry.claims {
        match claims.get(&claim.name) {
            Some(there) => bound(claim, there, book, seen, found),
            None => found.push(finding(Fault::Stuck, format!("claim {} does not exist", claim.name))),
        }
    }
    if entry.workload.kind.has_pod() {
        let wanted = pod_name(entry.workload.number);
        let pod = seen.pods.iter().find(|pod| name(&pod.metadata) == wanted);
        if !pod.is_some_and(pods::is_ready) {
            let phase = pod.and_then(|pod| pod.status.as_ref()?.phase.clone());
            found.push(finding(Fault::Stuck, format!("pod {wanted} does not run: {phase:?}")));
        }
    }
}

/// A claim that is to be served: bound, its volume and its logical volume are there, and are what they were.
fn bound(claim: &Claim, there: &PersistentVolumeClaim, book: &Book, seen: &Snapshot, found: &mut Vec<Finding>) {
    let uid = there.metadata.uid.clone().unwrap_or_default();
    let volume = format!("pvc-{uid}");
    if claim.uid.as_ref().is_some_and(|known| *known != uid) {
        found.push(finding(
            Fault::Stuck,
            format!("claim {} is another than was made", claim.name),
        ));
        return;
    }
    let Some(object) = seen.volumes.iter().find(|object| name(&object.metadata) == volume) else {
        let fault = if claim.logical.is_some() {
            Fault::Lost
        } else {
            Fault::Stuck
        };
        let node = quarry_crds::claim::selected_node(there);
        let what = format!(
            "claim {} has no PersistentVolume {volume}; selected node {node:?}",
            claim.name
        );
        found.push(finding(fault, what));
        return;
    };
    let phase = there.status.as_ref().and_then(|status| status.phase.clone());
    if phase.as_deref() != Some("Bound") {
        found.push(finding(
            Fault::Stuck,
            format!("claim {} is {phase:?}, not Bound", claim.name),
        ));
    }
    let node = quarry_crds::persistent_volume::ours(object).map(|ours| ours.node);
    let on_node: Vec<_> = seen.logical(&volume).collect();
    let here = on_node.iter().find(|(view, _)| Some(&view.name) == node.as_ref());
    let Some((view, logical)) = here else {
        let what = format!(
            "claim {}: PersistentVolume {volume} on {node:?} has no logical volume",
            claim.name
        );
        found.push(finding(Fault::Lost, what));
        return;
    };
    if on_node.len() > 1 {
        found.push(finding(
            Fault::Leaked,
            format!("{volume} has {} logical volumes", on_node.len()),
        ));
    }
    if claim.logical.as_ref().is_some_and(|known| *known != logical.uuid) {
        let what = format!(
            "{volume}: its logical volume is another: {} was {:?}",
            logical.uuid, claim.logical
        );
        found.push(finding(Fault::Lost, what));
    }
    let asked = there
        .spec
        .as_ref()
        .and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
    if logical.size < asked.map_or(0, |text| bytes(&text.0)) || logical.size != size_of(object) {
        let what = format!(
            "{volume} has {} bytes, and the PersistentVolume says {}",
            logical.size,
            size_of(object)
        );
        found.push(finding(Fault::Lost, what));
    }
    if !logical.tags.contains("quarry.state=ready") {
        found.push(finding(
            Fault::Stuck,
            format!("{volume} is in use, and its tags say {}", logical.tags),
        ));
    }
    if !view.mapped.contains(&mapped_name(&logical.group, &logical.name)) {
        found.push(finding(Fault::Lost, format!("{volume} has no device on {}", view.name)));
    }
    let mounted = seen
        .nodes
        .iter()
        .flat_map(|node| &node.mounted)
        .find(|mounted| mounted.volume == volume);
    if let (Some(mounted), Some(word)) = (mounted, &claim.word)
        && mounted.word != *word
    {
        let what = format!("{volume} was made anew: its word is {} and was {word}", mounted.word);
        found.push(finding(Fault::Lost, what));
    }
    let _ = book;
}

/// A claim that fits nowhere, or that was refused, holds nothing and waits for nobody.
fn waiting(
    entry: &Entry,
    seen: &Snapshot,
    claims: &BTreeMap<String, &PersistentVolumeClaim>,
    found: &mut Vec<Finding>,
) {
    for claim in &entry.claims {
        let Some(there) = claims.get(&claim.name) else {
            found.push(finding(Fault::Stuck, format!("claim {} does not exist", claim.name)));
            continue;
        };
        let uid = there.metadata.uid.clone().unwrap_or_default();
        let is_bound = quarry_crds::claim::is_bound(there);
        // A small one is refused only while the group is full.
        if is_bound && entry.workload.kind == Kind::Reject && entry.workload.size < 1024 {
            continue;
        }
        let volume = format!("pvc-{uid}");
        if is_bound || seen.logical(&volume).next().is_some() {
            found.push(finding(
                Fault::Overcommitted,
                format!("claim {} cannot fit, and has a volume", claim.name),
            ));
        }
        if let Some(node) = quarry_crds::claim::selected_node(there) {
            let what = format!("claim {} was not given back: selected node {node}", claim.name);
            found.push(finding(Fault::Stuck, what));
        }
    }
}

fn gone(entry: &Entry, seen: &Snapshot, claims: &BTreeMap<String, &PersistentVolumeClaim>, found: &mut Vec<Finding>) {
    let pod = pod_name(entry.workload.number);
    if seen.pods.iter().any(|there| name(&there.metadata) == pod) {
        found.push(finding(Fault::Stuck, format!("pod {pod} is not gone")));
    }
    for claim in &entry.claims {
        if claims.contains_key(&claim.name) {
            found.push(finding(Fault::Stuck, format!("claim {} is not gone", claim.name)));
        }
    }
}

/// What is left that nobody asked for.
fn leaked(book: &Book, seen: &Snapshot, found: &mut Vec<Finding>) {
    let uids: Vec<&str> = seen
        .claims
        .iter()
        .filter_map(|claim| claim.metadata.uid.as_deref())
        .collect();
    for object in &seen.volumes {
        let volume = name(&object.metadata);
        if !uids.iter().any(|uid| volume == format!("pvc-{uid}")) {
            let phase = object.status.as_ref().and_then(|status| status.phase.clone());
            let being = if object.metadata.deletion_timestamp.is_some() {
                ", being deleted"
            } else {
                ""
            };
            let what = format!("PersistentVolume {volume} has no claim: {phase:?}{being}");
            found.push(finding(Fault::Leaked, what));
        }
    }
    for node in &seen.nodes {
        for logical in node.volumes.iter().filter(|logical| logical.name != BY_HAND) {
            let has_object = seen.volumes.iter().any(|object| name(&object.metadata) == logical.name);
            if !has_object && !book.forgotten.contains(&logical.name) {
                let what = format!(
                    "logical volume {}/{} on {} has no PersistentVolume; tags {}",
                    logical.group, logical.name, node.name, logical.tags
                );
                found.push(finding(Fault::Leaked, what));
            }
        }
        let known: Vec<_> = node
            .volumes
            .iter()
            .map(|volume| mapped_name(&volume.group, &volume.name))
            .collect();
        for device in node.mapped.iter().filter(|device| !known.contains(device)) {
            found.push(finding(
                Fault::Leaked,
                format!("device {device} on {} has no logical volume", node.name),
            ));
        }
        for disk in &node.labelled {
            found.push(finding(
                Fault::Leaked,
                format!("disk {disk} on {} has LVM's label and no group", node.name),
            ));
        }
    }
}

/// What is published is what there is.
fn capacity(node: &NodeView, seen: &Snapshot, found: &mut Vec<Finding>) {
    let here = |storage: &&NodeLocalStorage| {
        storage.spec.node_name == node.name && storage.spec.storage_class_name.starts_with("torture-")
    };
    for storage in seen.storages.iter().filter(here) {
        let title = format!("NodeLocalStorage {}", name(&storage.metadata));
        let Some(group) = node.groups.iter().find(|group| group.name == storage.spec.volume_group) else {
            found.push(finding(Fault::Stuck, format!("{title}: there is no such volume group")));
            continue;
        };
        if !storage.is_ready() {
            found.push(finding(Fault::Stuck, format!("{title} is not Ready")));
        }
        let status = storage.status.clone().unwrap_or_default();
        let Some(published) = status.volume_group else {
            found.push(finding(Fault::Stuck, format!("{title} has no figures")));
            continue;
        };
        let figures = (published.uuid.as_str(), bytes(&published.size), bytes(&published.free));
        if figures != (group.uuid.as_str(), group.size, group.free) {
            let what = format!("{title} publishes {figures:?}, and LVM has {group:?}");
            found.push(finding(Fault::Overcommitted, what));
        }
        let tagged =
            |volume: &&crate::observe::Logical| volume.group == group.name && volume.tags.contains("quarry.version=1");
        let count = node.volumes.iter().filter(tagged).count();
        if usize::try_from(status.volumes) != Ok(count) {
            found.push(finding(
                Fault::Leaked,
                format!("{title} counts {} volumes, and there are {count}", status.volumes),
            ));
        }
    }
}

/// The volume group that a node has for itself is there, whole, or gone without a trace.
fn own_groups(book: &Book, node: &NodeView, found: &mut Vec<Finding>) {
    for (at, wanted) in book.groups.iter().enumerate() {
        let name = own_group(at);
        if node.name != crate::load::node_name(at) {
            continue;
        }
        let disks = node
            .groups
            .iter()
            .find(|group| group.name == name)
            .map_or(0, |group| group.disks);
        if disks != *wanted {
            let fault = if *wanted == 0 { Fault::Leaked } else { Fault::Stuck };
            found.push(finding(
                fault,
                format!("volume group {name} has {disks} disks, not {wanted}"),
            ));
        }
    }
    if !node.groups.iter().any(|group| group.name == GROUP) {
        found.push(finding(Fault::Lost, format!("volume group {GROUP} on {}", node.name)));
    }
}

#[cfg(test)]
#[path = "checker_tests.rs"]
mod tests;
