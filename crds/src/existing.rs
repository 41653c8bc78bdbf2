//! PersistentVolumes that are there already and that kube-scheduler would bind to a claim instead of a new one
//! (k8s.io/component-helpers `storage/volume/pv_helpers.go`, `FindMatchingVolume`).
//!
//! A claim that such a volume serves on a node asks no room of that node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::claim::{self, VolumeMode};
use crate::extents::Bytes;
use crate::names::HOSTNAME_LABEL;
use crate::{labels, persistent_volume, quantity};

/// A set of access modes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AccessModes(u8);

impl AccessModes {
    fn of(modes: Option<&Vec<String>>) -> Self {
        let bit = |mode: &String| match mode.as_str() {
            "ReadWriteOnce" => 1,
            "ReadOnlyMany" => 2,
            "ReadWriteMany" => 4,
            "ReadWriteOncePod" => 8,
            _ => 16,
        };
        Self(modes.into_iter().flatten().map(bit).fold(0, |all, mode| all | mode))
    }

    const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

/// What a claim asks of a volume that is there already.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    size: Bytes,
    modes: AccessModes,
    mode: VolumeMode,
    selector: Option<Box<LabelSelector>>,
    attributes_class: Option<Box<str>>,
}

impl Wish {
    /// What a claim asks; `None` where no volume could serve it.
    #[must_use]
    pub fn of(claim: &PersistentVolumeClaim) -> Option<Self> {
        let spec = claim.spec.as_ref()?;
        Some(Self {
            size: claim::requested_size(claim).ok()?,
            modes: AccessModes::of(spec.access_modes.as_ref()),
            mode: claim::volume_mode(claim).ok()?,
            selector: spec.selector.clone().map(Box::new),
            attributes_class: claim::attributes_class(claim).map(Into::into),
        })
    }
}

/// Where a volume can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reach {
    Anywhere,
    Nodes(Vec<Box<str>>),
}

/// A PersistentVolume that is bound to no claim, and may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Available {
    /// Its class.
    pub class: Box<str>,
    size: Bytes,
    modes: AccessModes,
    mode: VolumeMode,
    labels: BTreeMap<String, String>,
    attributes_class: Option<Box<str>>,
    reach: Reach,
    /// Namespace, name and UID of the one claim that it is kept for. The UID is empty until that claim has it.
    kept_for: Option<(Box<str>, Box<str>, Box<str>)>,
}

/// A claim that looks for a volume.
#[derive(Debug, Clone, Copy)]
pub struct Seeker<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// Its class.
    pub class: &'a str,
    /// What it asks.
    pub wish: &'a Wish,
}

impl Available {
    /// Reads a volume; `None` for one that is bound, has no class, or whose nodes cannot be told.
    #[must_use]
    pub fn read(volume: &PersistentVolume) -> Option<Self> {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        if phase != Some("Available") || volume.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let spec = volume.spec.as_ref()?;
        let class = spec.storage_class_name.as_deref().filter(|class| !class.is_empty())?;
        let text = |text: Option<&String>| Box::<str>::from(text.map_or("", String::as_str));
        Some(Self {
            class: class.into(),
            size: quantity::parse(&spec.capacity.as_ref()?.get("storage")?.0).ok()?,
            modes: AccessModes::of(spec.access_modes.as_ref()),
            mode: match spec.volume_mode.as_deref() {
                Some("Block") => VolumeMode::Block,
                _ => VolumeMode::Filesystem,
            },
            labels: volume.metadata.labels.clone().unwrap_or_default(),
            attributes_class: spec
                .volume_attributes_class_name
                .as_deref()
                .filter(|name| !name.is_empty())
                .map(Into::into),
            reach: reach(volume)?,
            kept_for: spec.claim_ref.as_ref().map(|claim| {
                let (namespace, name) = (claim.namespace.as_ref(), claim.name.as_ref());
                (text(namespace), text(name), text(claim.uid.as_ref()))
            }),
        })
    }

    fn is_kept_for(&self, seeker: &Seeker<'_>) -> bool {
        self.kept_for.as_ref().is_some_and(|(namespace, name, uid)| {
            **namespace == *seeker.namespace && **name == *seeker.name && (uid.is_empty() || **uid == *seeker.uid)
        })
    }

    /// The nodes where it can be reached; `None` where that is every one.
    #[must_use]
    pub fn nodes(&self) -> Option<&[Box<str>]> {
        match &self.reach {
            Reach::Anywhere => None,
            Reach::Nodes(nodes) => Some(nodes),
        }
    }

    /// Whether it would be bound to a claim whose pod goes to that node.
    #[must_use]
    pub fn serves(&self, seeker: &Seeker<'_>, node: &str) -> bool {
        let reached = |nodes: &[Box<str>]| nodes.iter().any(|name| **name == *node);
        self.nodes().is_none_or(reached) && self.suits(seeker)
    }

    /// Whether it would be bound to a claim whose pod goes to a node where it can be reached.
    #[must_use]
    pub fn suits(&self, seeker: &Seeker<'_>) -> bool {
        let wish = seeker.wish;
        *self.class == *seeker.class
            && self.size >= wish.size
            && self.mode == wish.mode
            && self.modes.contains(wish.modes)
            && self.attributes_class == wish.attributes_class
            && match &self.kept_for {
                Some(_) => self.is_kept_for(seeker),
                None => wish
                    .selector
                    .as_deref()
                    .is_none_or(|selector| labels::matches(selector, &self.labels)),
            }
    }
}

/// The nodes of a volume: as we wrote it, or by a node affinity for names of hosts alone. Labels of nodes are not looked at:
/// where they decide, the volume counts for nothing, and its claim asks for room as it would without it.
fn reach(volume: &PersistentVolume) -> Option<Reach> {
    if let Some(ours) = persistent_volume::ours(volume) {
        return Some(Reach::Nodes(vec![ours.node.into()]));
    }
    let required = volume.spec.as_ref()?.node_affinity.as_ref();
    let Some(required) = required.and_then(|affinity| affinity.required.as_ref()) else {
        return Some(Reach::Anywhere);
    };
    let mut nodes = Vec::new();
    for term in &required.node_selector_terms {
        let said = term.match_expressions.as_deref().unwrap_or_default();
        let [one] = said else { return None };
        if one.key != HOSTNAME_LABEL || one.operator != "In" || term.match_fields.is_some() {
            return None;
        }
        nodes.extend(one.values.iter().flatten().map(|name| Box::<str>::from(name.as_str())));
    }
    Some(Reach::Nodes(nodes))
}

/// Which of the volumes each claim of a pod would get on a node, by position of the claim: as kube-scheduler does it, the
/// smallest claim first, each the smallest volume that serves it and that no other has.
#[must_use]
pub fn assign<'a>(seekers: &[Seeker<'_>], volumes: &[(&'a str, &'a Available)], node: &str) -> Vec<Option<&'a str>> {
    let mut order: Vec<usize> = (0..seekers.len()).collect();
    order.sort_by_key(|at| seekers[*at].wish.size);
    let mut assigned: Vec<Option<&'a str>> = vec![None; seekers.len()];
    for at in order {
        let seeker = &seekers[at];
        let fits = volumes
            .iter()
            .filter(|(name, volume)| !assigned.contains(&Some(*name)) && volume.serves(seeker, node));
        assigned[at] = fits
            .min_by_key(|(name, volume)| (!volume.is_kept_for(seeker), volume.size, *name))
            .map(|(name, _)| *name);
    }
    assigned
}

#[cfg(test)]
#[path = "existing_tests.rs"]
mod tests;
