//! What the index keeps of each watched object: as little as the decisions need.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use quarry_crds::claim::{self, VolumeMode};
use quarry_crds::conditions::shorten;
use quarry_crds::data_source::is_filled_elsewhere;
use quarry_crds::existing::{Available, Wish};
use quarry_crds::extents::Bytes;
use quarry_crds::lost_nodes;
use quarry_crds::names::volume_name;
use quarry_crds::node_local_storage::{GroupFigures, NodeLocalStorage};
use quarry_crds::persistent_volume::{self, Disposal};
use quarry_crds::refusals::Refusals;
use quarry_crds::storage_class::{ClassParameters, FsType, Scoring, is_ours};

use crate::index::claim_key;

/// Reasons end up in pod events, each once a pod: enough of them to act on, and no more.
const REASON_MAX: usize = 256;

/// A StorageClass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Class {
    /// Another provisioner's.
    Foreign,
    /// Ours.
    Ours {
        /// File system of its volumes.
        fs_type: FsType,
        /// Which nodes with room it prefers.
        scoring: Scoring,
    },
    /// Ours, but its parameters are wrong.
    Invalid(Box<str>),
}

/// A PersistentVolumeClaim.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// Its UID.
    pub uid: Box<str>,
    /// Its class.
    pub class: Option<Box<str>>,
    /// How far it is.
    pub binding: Binding,
    /// The node that the scheduler chose for it.
    pub selected: Option<Box<str>>,
    /// What it asks for, or what is wrong with it.
    pub request: Result<Wanted, Box<str>>,
    /// What it asks of a volume that is there already, while it has none.
    pub wish: Option<Box<Wish>>,
    /// The nodes that refused it, while it has no volume.
    pub refusals: Option<Box<Refusals>>,
    /// Whether another controller fills it, and binds a volume to it.
    pub filled_elsewhere: bool,
    /// UID of the object that controls it: the pod, for a generic ephemeral volume.
    pub owner: Option<Box<str>>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether its owner wants it to be deleted when the node of its volume is gone for good.
    pub given_up_with_node: bool,
}

/// How far a claim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// It has no volume.
    Unbound,
    /// It is bound to the volume that we made for it, which may not have been seen yet.
    Ours,
    /// It is bound to another volume, or its volume is lost.
    Other,
}

/// What a claim asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// At least this many bytes.
    pub size: Bytes,
    /// File system or raw block.
    pub mode: VolumeMode,
}

/// A PersistentVolume of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// UID of the claim that it was made for.
    pub claim_uid: Box<str>,
    /// The node that holds it.
    pub node: Box<str>,
    /// UUID of its volume group.
    pub group: Box<str>,
    /// Its size.
    pub size: Bytes,
    /// Key of the claim that it is bound to, or is to be.
    pub claim: Box<str>,
    /// What is to be done with it.
    pub disposal: Disposal,
}

/// A NodeLocalStorage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Its class.
    pub class: Box<str>,
    /// Its node.
    pub node: Box<str>,
    /// Name of its volume group.
    pub group: Box<str>,
    /// Whether volumes can be made.
    pub ready: bool,
    /// Whether it is LVM's metadata area that has no room for one more.
    pub metadata_full: bool,
    /// The figures of its volume group, once they are known.
    pub figures: Option<GroupFigures>,
}

impl Class {
    /// Reads a class.
    #[must_use]
    pub fn read(class: &StorageClass) -> Self {
        if !is_ours(class) {
            return Self::Foreign;
        }
        match ClassParameters::of(class) {
            Ok(parameters) => Self::Ours {
                fs_type: parameters.fs_type,
                scoring: parameters.scoring,
            },
            Err(errors) => Self::Invalid(shorten(&errors.to_string(), REASON_MAX).into()),
        }
    }
}

impl Claim {
    /// Reads a claim.
    #[must_use]
    pub fn read(claim: &PersistentVolumeClaim) -> Self {
        let uid = claim.metadata.uid.as_deref().unwrap_or_default();
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
        let binding = if !claim::is_bound(claim) {
            Binding::Unbound
        } else if phase != Some("Lost") && volume == Some(volume_name(uid).as_str()) {
            Binding::Ours
        } else {
            Binding::Other
        };
        let request = claim::request(claim);
        let owners = claim.metadata.owner_references.iter().flatten();
        let unbound = binding == Binding::Unbound;
        let refusals = unbound.then(|| Refusals::of(claim));
        Self {
            uid: uid.into(),
            class: claim::class_name(claim).map(Into::into),
            binding,
            selected: claim::selected_node(claim).map(Into::into),
            request: request
                .map(|request| Wanted {
                    size: request.size,
                    mode: request.volume_mode,
                })
                .map_err(|error| shorten(&error.to_string(), REASON_MAX).into()),
            wish: unbound.then(|| Wish::of(claim)).flatten().map(Box::new),
            refusals: refusals.filter(|refusals| !refusals.is_empty()).map(Box::new),
            filled_elsewhere: is_filled_elsewhere(claim),
            owner: owners
                .filter(|owner| owner.controller == Some(true))
                .map(|owner| owner.uid.as_str().into())
                .next(),
            deleting: claim.metadata.deletion_timestamp.is_some(),
            given_up_with_node: lost_nodes::may_be_deleted(claim),
        }
    }

    /// The node where the claim takes space, as long as its volume has not been seen there.
    #[must_use]
    pub fn on_its_way_to(&self) -> Option<&str> {
        match self.binding {
            // No volume is made for one that is being deleted, however long a finalizer holds it.
            Binding::Unbound if self.deleting => None,
            Binding::Unbound | Binding::Ours => self.selected.as_deref(),
            Binding::Other => None,
        }
    }
}

impl Volume {
    /// Reads a volume; `None` for one that is not ours.
    #[must_use]
    pub fn read(volume: &PersistentVolume) -> Option<Self> {
        let ours = persistent_volume::ours(volume)?;
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let part = |part: Option<&String>| part.cloned().unwrap_or_default();
        Some(Self {
            claim_uid: ours.claim_uid.into(),
            node: ours.node.into(),
            group: ours.volume_group_uuid.into(),
            size: ours.size,
            claim: claim
                .map(|claim| claim_key(&part(claim.namespace.as_ref()), &part(claim.name.as_ref())))
                .unwrap_or_default()
                .into(),
            disposal: persistent_volume::disposal(volume),
        })
    }
}

/// A PersistentVolume, as far as it concerns us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnyVolume {
    /// What it is as a volume of ours.
    pub ours: Option<Volume>,
    /// What it is as a volume, whoever made it, that may be bound to a claim.
    pub available: Option<Available>,
}

impl AnyVolume {
    /// Reads a volume; `None` for one that does not concern us.
    #[must_use]
    pub fn read(volume: &PersistentVolume) -> Option<Self> {
        let (ours, available) = (Volume::read(volume), Available::read(volume));
        (ours.is_some() || available.is_some()).then_some(Self { ours, available })
    }
}

impl Storage {
    /// Reads a NodeLocalStorage; `None` for one that is being deleted, which counts as absent.
    #[must_use]
    pub fn read(storage: &NodeLocalStorage) -> Option<Self> {
        if storage.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let group = storage.status.as_ref().and_then(|status| status.volume_group.as_ref());
        Some(Self {
            class: storage.spec.storage_class_name.as_str().into(),
            node: storage.spec.node_name.as_str().into(),
            group: storage.spec.volume_group.as_str().into(),
            ready: storage.is_ready(),
            metadata_full: storage.is_metadata_full(),
            figures: group.and_then(|group| group.figures()),
        })
    }
}
