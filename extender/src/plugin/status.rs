//! How nodes, disks, volume groups and volumes stand, and what is wrong with them. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::core::PartialObjectMetaExt;
use quarry_crds::NodeLocalStorage;
use quarry_crds::node_local_storage::{condition, phase};
use quarry_crds::persistent_volume::Disposal;
use quarry_crds::quantity;
use serde::Serialize;

use super::snapshot::Snapshot;
use super::why::bytes;
use crate::advice::advice;
use crate::node::Node;
use crate::objects::{Binding, Class};

/// A volume that was made this long after the scheduler called last was placed without asking: the Lease is renewed every
/// minute at most, and a volume takes a while.
const UNASKED_AFTER_SECONDS: i64 = 180;

/// How Quarry stands. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Whether kube-scheduler asks the extender.
    pub scheduler: Scheduler,
    /// The nodes that hold anything of Quarry, or should.
    pub nodes: Vec<NodeStatus>,
    /// Their volume groups.
    pub groups: Vec<GroupStatus>,
    /// Their disks.
    pub disks: Vec<DiskStatus>,
    /// The volumes and claims of all of them.
    pub volumes: Volumes,
    /// What is not good, with what to do.
    pub wrong: Vec<String>,
    /// What the reader has to know of this answer itself.
    pub notes: Vec<String>,
}

/// Whether kube-scheduler asks the extender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Scheduler {
    /// When it called last, to a minute.
    pub last_call: Option<Timestamp>,
    /// The extender that it called.
    pub called: Option<String>,
    /// In a sentence.
    pub summary: String,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Its name.
    pub node: String,
    /// `at work`, `silent`, or `gone` with the node.
    pub manager: &'static str,
    /// How many volume groups it has, and how many of them are ready.
    pub groups: usize,
    /// See `groups`.
    pub groups_ready: usize,
    /// How many disks it has in them, and how many are not good.
    pub disks: usize,
    /// See `disks`.
    pub disks_not_good: usize,
    /// How many volumes it holds.
    pub volumes: usize,
    /// The size of its volume groups.
    pub size_bytes: u64,
    /// What is left of them for further claims.
    pub free_bytes: u64,
}

/// One volume group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// Its node.
    pub node: String,
    /// Its name.
    pub volume_group: String,
    /// The classes that share it.
    pub classes: Vec<String>,
    /// Whether volumes can be made.
    pub ready: bool,
    /// Everything.
    pub size_bytes: u64,
    /// What is left for further claims.
    pub free_bytes: u64,
    /// What claims on their way take.
    pub in_flight_bytes: u64,
    /// The largest volume that could be made.
    pub largest_bytes: u64,
    /// Volumes in it.
    pub volumes: usize,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatus {
    /// Its node.
    pub node: String,
    /// The volume group that it is in, or is to be.
    pub volume_group: String,
    /// The path that is listed.
    pub path: String,
    /// The kernel's name for it.
    pub device: Option<String>,
    /// `ssd` or `hdd`.
    pub media: Option<String>,
    /// Its size.
    pub size_bytes: Option<u64>,
    /// What is free on it.
    pub free_bytes: Option<u64>,
    /// Claimed, Blank, Rejected or Missing.
    pub phase: String,
    /// Why, where it is not good.
    pub reason: Option<String>,
}

/// The volumes and claims of Quarry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Volumes {
    /// PersistentVolumes.
    pub count: usize,
    /// Their sizes together.
    pub bytes: u64,
    /// Those that are being removed.
    pub going: usize,
    /// Claims that have their volume.
    pub claims_bound: usize,
    /// Claims that were given to a node and have no volume yet.
    pub claims_in_flight: usize,
    /// Claims without a node.
    pub claims_waiting: usize,
}

/// How Quarry stands.
#[must_use]
pub fn status(snapshot: &Snapshot, now: Timestamp) -> Status {
    let groups = groups(snapshot);
    let disks = disks(snapshot);
    let volumes = volumes(snapshot);
    let scheduler = scheduler(snapshot, now);
    let nodes = nodes(snapshot, &groups, &disks);
    let mut wrong = wrong(snapshot, &nodes);
    if !scheduler.1 {
        wrong.insert(0, scheduler.0.summary.clone());
    }
    Status {
        scheduler: scheduler.0,
        nodes,
        groups,
        disks,
        volumes,
        wrong,
        notes: snapshot.notes.clone(),
    }
}

/// Whether kube-scheduler asks the extender, and whether that is as it should be.
fn scheduler(snapshot: &Snapshot, now: Timestamp) -> (Scheduler, bool) {
    let Some(call) = &snapshot.last_call else {
        let fine = snapshot.newest_volume.is_none();
        let summary = "no kube-scheduler has ever called the extender: docs/scheduler.md says how it is told to. Without, \
                       pods go to nodes with no regard to room";
        return (
            Scheduler {
                last_call: None,
                called: None,
                summary: summary.to_owned(),
            },
            fine,
        );
    };
    let ago = now.duration_since(call.at).as_secs().max(0);
    let ago = match ago {
        0..120 => format!("{ago} s"),
        120..7200 => format!("{} min", ago / 60),
        _ => format!("{} h", ago / 3600),
    };
    let unasked = snapshot
        .newest_volume
        .as_ref()
        .filter(|(made, _)| made.duration_since(call.at).as_secs() > UNASKED_AFTER_SECONDS);
    let summary = match unasked {
        None => format!("kube-scheduler called the extender {} {ago} ago", call.whom),
        Some((_, volume)) => format!(
            "kube-scheduler called the extender {ago} ago for the last time, and volume {volume} was placed after that \
             without asking: see docs/scheduler.md"
        ),
    };
    let scheduler = Scheduler {
        last_call: Some(call.at),
        called: Some(call.whom.clone()),
        summary,
    };
    (scheduler, unasked.is_none())
}

fn groups(snapshot: &Snapshot) -> Vec<GroupStatus> {
    let mut groups: BTreeMap<(&str, &str), Vec<&NodeLocalStorage>> = BTreeMap::new();
    for storage in &snapshot.storages {
        let key = (&*storage.spec.node_name, &*storage.spec.volume_group);
        groups.entry(key).or_default().push(storage);
    }
    groups
        .into_iter()
        .map(|((node, name), storages)| {
            let found = storages
                .iter()
                .find_map(|storage| storage.status.as_ref()?.volume_group.as_ref());
            let figures = found.and_then(|found| found.figures());
            let known = snapshot.index.node(node).map(|(_, node)| node);
            let group = known.zip(figures.as_ref()).and_then(|(node, figures)| {
                let same = |group: &&crate::node::Group| group.uuid == figures.uuid;
                Some((node, node.groups().iter().find(same)?))
            });
            let of = |what: fn(&crate::node::Group) -> quarry_crds::Extents| {
                group.map_or(0, |(_, group)| bytes(group.extent_size, what(group)))
            };
            let in_group = |(node, group): (&Node, &crate::node::Group)| {
                node.volumes()
                    .filter(|(_, volume)| *volume.group == *group.uuid)
                    .count()
            };
            GroupStatus {
                node: node.to_owned(),
                volume_group: name.to_owned(),
                classes: storages
                    .iter()
                    .map(|storage| storage.spec.storage_class_name.clone())
                    .collect(),
                ready: storages.iter().all(|storage| storage.is_ready()),
                size_bytes: of(|group| group.size),
                free_bytes: of(|group| group.free),
                in_flight_bytes: of(|group| group.in_flight),
                largest_bytes: figures
                    .as_ref()
                    .map_or(0, |figures| bytes(figures.extent_size, figures.largest)),
                volumes: group.map_or(0, in_group),
            }
        })
        .collect()
}

/// Every disk once: classes that share a volume group show the same ones.
fn disks(snapshot: &Snapshot) -> Vec<DiskStatus> {
    let size = |text: &Option<String>| quantity::parse(text.as_ref()?).ok().map(|size| size.0);
    let of_storage = |storage: &NodeLocalStorage| -> Vec<DiskStatus> {
        let disks = storage.status.iter().flat_map(|status| &status.disks);
        disks
            .map(|disk| DiskStatus {
                node: storage.spec.node_name.clone(),
                volume_group: storage.spec.volume_group.clone(),
                path: disk.path.clone(),
                device: disk.device.clone(),
                media: disk.media.clone(),
                size_bytes: size(&disk.size),
                free_bytes: size(&disk.free),
                phase: disk.phase.clone(),
                reason: disk.reason.clone(),
            })
            .collect()
    };
    let disks: BTreeSet<DiskStatus> = snapshot.storages.iter().flat_map(of_storage).collect();
    disks.into_iter().collect()
}

fn volumes(snapshot: &Snapshot) -> Volumes {
    let mut volumes = Volumes::default();
    for (_, volume) in snapshot.index.nodes().flat_map(Node::volumes) {
        volumes.count += 1;
        volumes.bytes = volumes.bytes.saturating_add(volume.size.0);
        volumes.going += usize::from(volume.disposal != Disposal::Keep);
    }
    for (_, claim) in snapshot.index.claims() {
        let class = claim.class.as_deref().and_then(|class| snapshot.index.class(class));
        if !matches!(class, Some(Class::Ours { .. } | Class::Invalid(_))) {
            continue;
        }
        match claim.binding {
            Binding::Ours => volumes.claims_bound += 1,
            Binding::Unbound if claim.selected.is_some() => volumes.claims_in_flight += 1,
            Binding::Unbound => volumes.claims_waiting += 1,
            Binding::Other => {}
        }
    }
    volumes
}

fn nodes(snapshot: &Snapshot, groups: &[GroupStatus], disks: &[DiskStatus]) -> Vec<NodeStatus> {
    let names: BTreeSet<&str> = snapshot
        .index
        .nodes()
        .map(|node| &*node.name)
        .chain(groups.iter().map(|group| &*group.node))
        .collect();
    names
        .into_iter()
        .map(|name| {
            let known = snapshot.index.node(name).map(|(_, node)| node);
            let groups: Vec<_> = groups.iter().filter(|group| group.node == name).collect();
            let disks: Vec<_> = disks.iter().filter(|disk| disk.node == name).collect();
            let sum =
                |of: fn(&GroupStatus) -> u64| groups.iter().fold(0_u64, |sum, group| sum.saturating_add(of(group)));
            NodeStatus {
                node: name.to_owned(),
                manager: if snapshot.node(name).is_none() {
                    "gone"
                } else if known.is_some_and(|node| node.silent) {
                    "silent"
                } else {
                    "at work"
                },
                groups: groups.len(),
                groups_ready: groups.iter().filter(|group| group.ready).count(),
                disks: disks.len(),
                disks_not_good: disks.iter().filter(|disk| !good(disk)).count(),
                volumes: known.map_or(0, |node| node.volumes().count()),
                size_bytes: sum(|group| group.size_bytes),
                free_bytes: sum(|group| group.free_bytes),
            }
        })
        .collect()
}

fn good(disk: &DiskStatus) -> bool {
    [phase::CLAIMED, phase::BLANK].contains(&&*disk.phase)
}

fn wrong(snapshot: &Snapshot, nodes: &[NodeStatus]) -> Vec<String> {
    let mut wrong = Vec::new();
    for node in nodes {
        match node.manager {
            "gone" => wrong.push(format!(
                "node {} is not in the cluster, and Quarry still knows {} of it: see docs/failures/lost-nodes.md",
                node.node,
                match node.volumes {
                    1 => "1 volume".to_owned(),
                    many => format!("{many} volumes"),
                }
            )),
            "silent" => wrong.push(format!(
                "the manager on node {} is silent, and nothing new is placed there: see \"kubectl -n quarry-system get pods \
                 -o wide\"",
                node.node
            )),
            _ => {}
        }
    }
    for storage in &snapshot.storages {
        let name = storage.metadata.name.as_deref().unwrap_or_default();
        let conditions = storage.status.iter().flat_map(|status| &status.conditions);
        let mut said = BTreeSet::new();
        for found in conditions {
            // Several conditions often have one cause.
            if found.status != condition::good(&found.type_) && said.insert(&found.message) {
                wrong.push(format!(
                    "NodeLocalStorage {name}: {} is {}: {}: {}",
                    found.type_, found.status, found.reason, found.message
                ));
            }
        }
        if storage.status.is_none() {
            wrong.push(format!(
                "NodeLocalStorage {name} has no status: the manager of its node has not looked at it yet"
            ));
        }
    }
    let metadata: Vec<_> = snapshot
        .nodes
        .iter()
        .map(|node| Arc::new(node.metadata.clone().into_response_partial()))
        .collect();
    for advice in advice(&snapshot.classes, &metadata, &snapshot.index) {
        let regarding = advice.regarding;
        let name = regarding.name.unwrap_or_default();
        wrong.push(match (regarding.kind.as_deref(), regarding.namespace) {
            (Some("PersistentVolumeClaim"), Some(namespace)) => {
                format!("claim {namespace}/{name}: {}", advice.saying.note)
            }
            _ if advice.saying.reason == "InvalidStorageClass" => advice.saying.note,
            _ => format!("StorageClass {name}: {}", advice.saying.note),
        });
    }
    wrong
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
