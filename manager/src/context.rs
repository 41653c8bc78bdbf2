//! What every step of the manager works with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource, ResourceExt};
use quarry_crds::claim::class_name;
use quarry_crds::names::{HOSTNAME_LABEL, LOST_GROUP_ANNOTATION};
use quarry_crds::persistent_volume::{OurVolume, ours};
use quarry_crds::tags::{Owner, VolumeTags};
use quarry_crds::volume_group::ListedDisk;
use quarry_crds::{Bytes, NodeLocalStorage};
use quarry_process::events::Events;
use tokio::sync::Notify;

use crate::disk_record::{DiskRecords, RecordedDisk};
use crate::inventory::Inventory;
use crate::lvm::{LogicalVolume, Lvm, State, VolumeGroup};
use crate::metrics::Metrics;
use crate::orphans::Orphans;
use crate::ready_tags::ReadyTags;
use crate::storage_capacity::StorageCapacity;
use crate::volume_group::Groups;
use crate::wake::Wake;
use crate::wipe::{Control, Wipes};

/// A disk to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The path by which it is listed.
    pub path: String,
    /// The volume group that it is listed for.
    pub volume_group: String,
    /// Whether a kernel name such as /dev/sdb will do.
    pub allow_unstable_names: bool,
}

/// A disk that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// The path, the device and how it stands.
    pub disk: ListedDisk,
    /// Serial number that the disk reports.
    pub serial: Option<String>,
    /// Model that the disk reports.
    pub model: Option<String>,
    /// Whether it rotates, where that is known.
    pub rotational: Option<bool>,
    /// Its size.
    pub size: Option<Bytes>,
    /// What changes where somebody writes to it, or another disk has its name: for comparison only.
    pub print: Option<String>,
}

/// Reads what the disks of this node are.
pub trait Disks: Send + Sync {
    /// Looks at each listed disk, in that order; what is not there is an answer too. Disks that are listed twice, or
    /// for two volume groups, are refused from the second time on.
    fn probe(&self, listings: Vec<Listing>, lvm: Arc<State>) -> BoxFuture<'_, Vec<Probed>>;
    /// Whether udev is at work, so that a device which is there may not have all of its names yet.
    fn names_are_coming(&self) -> BoxFuture<'_, bool>;
    /// A lasting path of every disk of a model.
    fn of_model(&self, model: String) -> BoxFuture<'_, Vec<String>>;
    /// What is wrong with a disk of a volume group, by reading a little of it; nothing where it answers as it should.
    fn fault(&self, device: String) -> BoxFuture<'_, Option<String>>;
    /// Paths of the devices that LVM may open, each device once: of these that are listed, and of the recorded ones that still
    /// carry the label of their physical volume. One that does not answer is left out, unless it is one of `members`, which are
    /// in a group already.
    fn for_lvm(
        &self,
        listed: Vec<String>,
        recorded: Vec<RecordedDisk>,
        members: BTreeSet<(u32, u32)>,
    ) -> BoxFuture<'_, Vec<String>>;
    /// Of recorded disks, the physical volumes of those that are there and carry something else, or nothing.
    fn overwritten(&self, recorded: Vec<RecordedDisk>) -> BoxFuture<'_, BTreeSet<String>>;
    /// Whether a disk or partition of this node carries a volume group of that name, listed or not.
    fn has_group(&self, name: String) -> BoxFuture<'_, bool>;
    /// The names of the one disk that has the label of each of these physical volumes; of those with two or none, nothing.
    fn having_labels(&self, physical_volumes: BTreeSet<String>) -> BoxFuture<'_, BTreeMap<String, Vec<String>>>;
    /// The names by which devices are found again, best first.
    fn names_of(&self, numbers: BTreeSet<(u32, u32)>) -> BoxFuture<'_, BTreeMap<(u32, u32), Vec<String>>>;
    /// Whether a device is made of all of these others, by major and minor numbers; `None` where the kernel does not say.
    fn stands_on(&self, device: (u32, u32), others: &[(u32, u32)]) -> Option<bool>;
}

/// Makes volumes free of old data.
pub trait Wiper: Send + Sync {
    /// Wipes a new volume as its tags say, and checks that nothing is found on it.
    fn wipe_new(
        &self,
        group: VolumeGroup,
        volume: LogicalVolume,
        tags: VolumeTags,
        control: Control,
    ) -> BoxFuture<'_, Result<(), String>>;
    /// Wipes a volume that is about to be removed as its tags say; it must be active.
    fn wipe_old(
        &self,
        group: VolumeGroup,
        volume: LogicalVolume,
        tags: VolumeTags,
        control: Control,
    ) -> BoxFuture<'_, Result<(), String>>;
    /// What is recognised on a volume: nothing on one that was wiped, and that nobody has made a file system on since.
    fn carries(&self, group: VolumeGroup, volume: LogicalVolume) -> BoxFuture<'_, Result<Vec<String>, String>>;
    /// Who has a volume open: mounts, loop devices, other devices.
    fn holders(&self, group: VolumeGroup, volume: LogicalVolume) -> BoxFuture<'_, Vec<String>>;
}

/// What every step works with.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The name of this node.
    pub node: String,
    /// The machine-id of this machine, where it is known: another may have had the name of this node before.
    pub machine: Option<String>,
    /// Whose volume groups are acted upon.
    pub owner: Owner,
    /// The disks of Quarry's volume groups, as they are kept on the host.
    pub disk_records: DiskRecords,
    /// LVM on this node.
    pub lvm: Arc<dyn Lvm>,
    /// What LVM has.
    pub inventory: Inventory,
    /// The disks of this node.
    pub disks: Arc<dyn Disks>,
    /// Wiping.
    pub wiper: Arc<dyn Wiper>,
    /// Wipes that go on beside everything else.
    pub wipes: Wipes,
    /// Volumes of ours that no object stands for, as the last sweeps saw them.
    pub orphans: Orphans,
    /// What is said of objects.
    pub events: Events,
    /// Counters and times.
    pub metrics: Metrics,
    /// Volumes whose tag `creating` is to become `ready`.
    pub ready_tags: ReadyTags,
    /// How the volume groups stood at the last pass.
    pub groups: Groups,
    /// Notified where a pass over the node is due.
    pub changed: Arc<Notify>,
    /// For how long a blank disk that a selector has chosen must have been unchanged and unused before it is taken.
    pub selected_after: Duration,
    /// Whether kube-scheduler is to look again at pods that wait.
    pub wake: Wake,
    /// The capacity as kube-scheduler itself reads it, where that is asked for.
    pub storage_capacity: StorageCapacity,
    /// The objects that this node watches.
    pub objects: Objects,
}

/// The objects that this node watches, as last seen.
#[derive(Clone)]
pub struct Objects {
    /// This node itself.
    pub node: Store<Node>,
    /// Every StorageClass.
    pub classes: Store<StorageClass>,
    /// The NodeLocalStorages of this node.
    pub storages: Store<NodeLocalStorage>,
    /// The claims that concern this node.
    pub claims: Store<PersistentVolumeClaim>,
    /// The volumes of this node.
    pub volumes: Store<PersistentVolume>,
}

impl Objects {
    /// The value of this node's label `kubernetes.io/hostname`, which kubelet sets.
    #[must_use]
    pub fn hostname(&self) -> Option<String> {
        let nodes = self.node.state();
        nodes.first()?.meta().labels.as_ref()?.get(HOSTNAME_LABEL).cloned()
    }

    /// The class of that name.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.classes.get(&ObjectRef::new(name))
    }

    /// The volume of that name.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get(&ObjectRef::new(name))
    }

    /// The NodeLocalStorages that name a volume group, oldest first, and those being deleted left out.
    #[must_use]
    pub fn storages_of(&self, volume_group: &str) -> Vec<Arc<NodeLocalStorage>> {
        let mut found = self.storages.state_filter(|storage| {
            storage.spec.volume_group == volume_group && storage.metadata.deletion_timestamp.is_none()
        });
        found.sort_by_key(|storage| age(storage.as_ref()));
        found
    }

    /// The UUIDs of volume groups that an administrator says are lost for good.
    #[must_use]
    pub fn lost_groups(&self, volume_group: &str) -> BTreeSet<String> {
        let said = |storage: Arc<NodeLocalStorage>| storage.annotations().get(LOST_GROUP_ANNOTATION).cloned();
        let said = self.storages_of(volume_group).into_iter().filter_map(said);
        said.flat_map(|text| text.split([',', ' ']).map(str::to_owned).collect::<Vec<_>>())
            .filter(|uuid| !uuid.is_empty())
            .collect()
    }

    /// The volumes of this node in the volume groups of that name, in whichever of them.
    #[must_use]
    pub fn volumes_of(&self, volume_group: &str) -> Vec<(OurVolume, Arc<PersistentVolume>)> {
        let volumes = self.volumes.state().into_iter();
        let ours = volumes.filter_map(|volume| Some((ours(&volume)?, volume)));
        ours.filter(|(our, _)| our.volume_group == volume_group).collect()
    }

    /// Whether this node has a NodeLocalStorage of a claim's class.
    #[must_use]
    pub fn has_class_of(&self, claim: &PersistentVolumeClaim) -> bool {
        let name = class_name(claim);
        let of_class = |storage: &NodeLocalStorage| Some(storage.spec.storage_class_name.as_str()) == name;
        name.is_some() && self.storages.find(of_class).is_some()
    }

    /// The claim of that UID.
    #[must_use]
    pub fn claim_with_uid(&self, uid: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.find(|claim| claim.metadata.uid.as_deref() == Some(uid))
    }
}

/// Orders objects by age, then name, so that every reading gives the same order.
fn age<K: Resource>(object: &K) -> (Option<String>, String) {
    let meta = object.meta();
    (
        meta.creation_timestamp.as_ref().map(|time| time.0.to_string()),
        meta.name.clone().unwrap_or_default(),
    )
}
