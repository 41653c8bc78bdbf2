//! What becomes of the objects of a node whose Node object is gone.
//!
//! A node is known by its name only: the object may be deleted while the machine runs, and a machine may come back. So
//! nothing here gives anything up that a person has not: a claim without a volume may go elsewhere, a volume whose claim
//! is gone is let go, and a claim with a volume is deleted only where its owner asked for that.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::claim;
use crate::names::{DELETE_CLAIM, LOST_NODE_ANNOTATION, VOLUME_FINALIZER};
use crate::persistent_volume::{Disposal, OurVolume, disposal, ours};

/// How long a node must have been gone before a claim that has no volume yet is given to another one: longer than a
/// Node object takes to be made anew by a kubelet that restarts.
pub const CONFIRM: Duration = Duration::from_secs(10);
/// How long a node must have been gone before its objects are let go, where nothing else is said.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(600);

/// Since when nodes are gone, in the monotonic time of this process. No time of another machine is ever compared: who
/// starts anew counts anew, and so waits longer, never shorter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Absences(BTreeMap<String, Duration>);

impl Absences {
    /// Takes in what the API server itself said of a node at `now`.
    pub fn saw(&mut self, node: &str, exists: bool, now: Duration) {
        if exists {
            self.0.remove(node);
        } else {
            self.0.entry(node.to_owned()).or_insert(now);
        }
    }

    /// Forgets the nodes that are not asked about any more.
    pub fn retain(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.0.retain(|node, _| keep(node));
    }

    /// Forgets all: who takes over counts anew.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// How long a node has been gone at `now`; `None` if it is there, as far as is known.
    #[must_use]
    pub fn gone_for(&self, node: &str, now: Duration) -> Option<Duration> {
        self.0.get(node).map(|since| now.saturating_sub(*since))
    }

    /// The nodes that are gone.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// Whether a claim of ours waits for that node and nothing has been made for it that Kubernetes knows of.
#[must_use]
pub fn waits_for(claim: &PersistentVolumeClaim, node: &str) -> bool {
    claim::asks_us(claim)
        && !claim::is_bound(claim)
        && claim.metadata.deletion_timestamp.is_none()
        && claim::selected_node(claim) == Some(node)
}

/// Whether a claim waits for the scheduler to choose a node.
#[must_use]
pub fn is_waiting(claim: &PersistentVolumeClaim) -> bool {
    !claim::is_bound(claim) && claim.metadata.deletion_timestamp.is_none() && claim::selected_node(claim).is_none()
}

/// What becomes of a PersistentVolume of a node that has been gone for longer than the grace period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Nothing: it is not of that node, or Kubernetes is about to change it.
    Wait,
    /// It is kept, for its claim or its owner wants it; they are told.
    Keep,
    /// Its claim is to be deleted, as the claim's owner asked; the PersistentVolume follows when the claim is gone.
    DeleteClaim,
    /// Nobody wants it any more: our finalizer is taken off, and it is deleted where that is its policy.
    LetGo,
}

/// Decides what becomes of a PersistentVolume. `claim` is the claim that its `claimRef` names, if there is one.
#[must_use]
pub fn fate(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>, node: &str) -> Fate {
    if ours(volume).is_none_or(|our| our.node != node) || !has_our_finalizer(volume) {
        return Fate::Wait;
    }
    // A claim of the same name that was made anew has nothing to do with it.
    let claim = claim.filter(|claim| claim.metadata.uid.as_deref() == claim_ref_uid(volume));
    match (disposal(volume), claim) {
        (Disposal::Remove | Disposal::Release, None) => Fate::LetGo,
        // Deleted before the claim was bound to it: the claim waits for the node, and is given back on its own.
        (Disposal::Remove | Disposal::Release, Some(claim)) if !claim::is_bound(claim) => Fate::LetGo,
        (Disposal::Remove | Disposal::Release, Some(_)) => Fate::Wait,
        (Disposal::Keep, Some(claim)) if claim.metadata.deletion_timestamp.is_some() => Fate::Wait,
        (Disposal::Keep, Some(claim)) if may_be_deleted(claim) => Fate::DeleteClaim,
        (Disposal::Keep, Some(_)) => Fate::Keep,
        (Disposal::Keep, None) if is_retained(volume) => Fate::Keep,
        (Disposal::Keep, None) => Fate::Wait,
    }
}

/// Whether the owner of a claim wants it to be deleted when the node of its volume is gone.
#[must_use]
pub fn may_be_deleted(claim: &PersistentVolumeClaim) -> bool {
    asked(claim) == Some(DELETE_CLAIM)
}

fn asked(claim: &PersistentVolumeClaim) -> Option<&str> {
    let annotations = claim.metadata.annotations.as_ref()?;
    annotations.get(LOST_NODE_ANNOTATION).map(String::as_str)
}

fn claim_ref_uid(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.claim_ref.as_ref()?.uid.as_deref()
}

fn has_our_finalizer(volume: &PersistentVolume) -> bool {
    let finalizers = volume.metadata.finalizers.iter().flatten();
    finalizers.into_iter().any(|finalizer| finalizer == VOLUME_FINALIZER)
}

fn is_retained(volume: &PersistentVolume) -> bool {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Released") && volume.metadata.deletion_timestamp.is_none()
}

/// What is said of a volume that is kept, for people: of the PersistentVolume, and of its claim where there is one.
#[must_use]
pub fn kept(our: &OurVolume, name: &str, claim: Option<&PersistentVolumeClaim>, grace: &str) -> String {
    let OurVolume {
        node,
        volume_group,
        size,
        ..
    } = our;
    let what = format!(
        "node {node} has been gone for more than {grace}, and with it logical volume {volume_group}/{name} ({size}); \
         nothing of it is deleted. If the machine comes back under this name, the volume is served again"
    );
    let Some(claim) = claim else {
        return format!("{what}. If its data is not needed any more, delete this PersistentVolume");
    };
    let key = format!(
        "{}/{}",
        claim.metadata.namespace.as_deref().unwrap_or_default(),
        claim.metadata.name.as_deref().unwrap_or_default()
    );
    let unknown = match asked(claim) {
        Some(value) if value != DELETE_CLAIM => {
            format!(" (annotation {LOST_NODE_ANNOTATION}: {value:?} is unknown, only {DELETE_CLAIM} is known)")
        }
        _ => String::new(),
    };
    format!(
        "{what}. If it is lost for good, delete claim {key} and make it anew, or restore a backup; with the annotation \
         {LOST_NODE_ANNOTATION}: {DELETE_CLAIM} on a claim Quarry deletes it{unknown}"
    )
}

/// What is said of a volume that is let go.
#[must_use]
pub fn let_go(our: &OurVolume, name: &str, grace: &str) -> String {
    let OurVolume {
        node,
        volume_group,
        size,
        ..
    } = our;
    format!(
        "node {node} has been gone for more than {grace}, so logical volume {volume_group}/{name} ({size}) was neither \
         wiped nor removed; if the machine comes back, it counts as reserved there until it is removed by hand"
    )
}

#[cfg(test)]
#[path = "lost_nodes_tests.rs"]
mod tests;
