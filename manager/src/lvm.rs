//! LVM: what is on this node, and the few things that Quarry does to it.
//!
//! [`Lvm`] has two implementations that behave alike, which one suite ([`conformance`]) shows: [`HostLvm`] runs the
//! `lvm` binary, [`FakeLvm`] keeps everything in memory and can be told to fail. Both share `operations.rs`: an
//! operation checks its request, takes the lock of its volume group, runs one command, **reads the state again
//! whatever the command said**, and decides from what it reads. Only a new volume on one disk is not read for where the
//! command ended well and the kernel shows its device under the UUID of the group (`seen.rs`). LVM's exit code is 5 for everything from "no room" to
//! "busy", and a command that was killed may have done all of its work, so only what is read counts. A mutation runs to
//! its end even where its caller is dropped.
//!
//! Everything is identified by UUID; names are for the command line and for people.

pub mod command;
pub mod conformance;
mod error;
pub mod fake;
mod groups;
pub mod host;
mod links;
pub mod nodes;
mod operations;
mod removal;
mod report;
mod requests;
mod seen;
mod stacked;
mod surroundings;
mod volumes;

use std::fmt;

use futures::future::BoxFuture;
use quarry_crds::{Bytes, ExtentSize, Extents};

pub use error::{
    CreateGroupError, CreateVolumeError, ExtendGroupError, ExtendVolumeError, GroupError, GroupProblem, InvalidRequest,
    RemoveGroupError, RemoveVolumeError, ReportError, Unknown, VolumeError,
};
pub use fake::FakeLvm;
pub use host::{HostLvm, HostOptions};
pub use report::parse as parse_report;
pub use surroundings::problems_of_surroundings;
use volumes::metadata_needed;

/// The volume groups of a node and what can be done with them.
pub trait Lvm: Send + Sync {
    /// From now on LVM opens these devices and no others; whether they are others than before. Each is a path under /dev, which
    /// may be a link. A volume group with a disk that is left out is partial, and one without any is not listed.
    fn allow_devices(&self, devices: Vec<String>) -> bool;

    /// Reads everything, in one command.
    fn report(&self) -> BoxFuture<'_, Result<State, ReportError>>;

    /// Makes a logical volume, active, with its tags, and its first blocks and every known signature wiped.
    fn create_volume(&self, request: CreateVolume) -> BoxFuture<'_, Result<Made, CreateVolumeError>>;

    /// Removes a logical volume of ours that nobody has open and that lies on no missing disk, together with others of its
    /// group that are asked for meanwhile. One that is gone already is a success where its volume group is there. Any
    /// change to a group with a missing disk makes LVM treat the disk as missing until
    /// [`Lvm::restore_physical_volume`], also when it is back.
    fn remove_volume(&self, volume: VolumeRef) -> BoxFuture<'_, Result<Done<()>, RemoveVolumeError>>;

    /// Makes a logical volume of ours at least that large. Never shrinks it.
    fn extend_volume(&self, request: ExtendVolume) -> BoxFuture<'_, Result<Done<LogicalVolume>, ExtendVolumeError>>;

    /// Adds tags to and deletes tags from a logical volume of ours, both in one command.
    fn change_tags(&self, request: ChangeTags) -> BoxFuture<'_, Result<Done<LogicalVolume>, VolumeError>>;

    /// Gives a logical volume of ours another name.
    fn rename_volume(&self, volume: VolumeRef, name: String)
    -> BoxFuture<'_, Result<Done<LogicalVolume>, VolumeError>>;

    /// Makes the device of a logical volume of ours, and the link to it in /dev, appear or disappear.
    fn set_active(&self, volume: VolumeRef, active: bool) -> BoxFuture<'_, Result<Done<LogicalVolume>, VolumeError>>;

    /// Activates every logical volume of a volume group, as after a reboot, and makes links again that are missing in
    /// /dev. A partial group is activated as far as it goes: see `active` of its volumes.
    fn activate_group(&self, group: GroupRef) -> BoxFuture<'_, Result<Done<VolumeGroup>, GroupError>>;

    /// Makes a volume group of devices, which must be blank: LVM is never told to overwrite anything.
    fn create_group(&self, request: CreateGroup) -> BoxFuture<'_, Result<Done<VolumeGroup>, CreateGroupError>>;

    /// Adds devices, which must be blank, to a volume group. Devices that are in it already are left alone.
    fn extend_group(
        &self,
        group: GroupRef,
        devices: Vec<String>,
    ) -> BoxFuture<'_, Result<Done<VolumeGroup>, ExtendGroupError>>;

    /// Adds tags to a volume group, such as when an administrator hands it over.
    fn tag_group(&self, group: GroupRef, tags: Vec<String>) -> BoxFuture<'_, Result<Done<VolumeGroup>, GroupError>>;

    /// Takes a volume group of ours apart in which no logical volume is left, and its disks' LVM labels with it. One
    /// that is gone already is a success.
    fn remove_group(&self, group: GroupRef) -> BoxFuture<'_, Result<Done<Removal>, RemoveGroupError>>;

    /// Takes LVM's labels off disks that are in no volume group, by the UUIDs of their physical volumes: what an
    /// interrupted [`Lvm::remove_group`] left. Nothing else is touched, whatever is named.
    fn remove_labels(&self, physical_volumes: Vec<String>) -> BoxFuture<'_, Result<Done<Removal>, RemoveGroupError>>;

    /// Lets a physical volume grow to the size that its device has now.
    fn resize_physical_volume(
        &self,
        group: GroupRef,
        physical_volume: String,
    ) -> BoxFuture<'_, Result<Done<VolumeGroup>, GroupError>>;

    /// Takes a physical volume back that was missing while its group was changed, and is there again: until then LVM
    /// treats it as missing. One that is not missing is left alone.
    fn restore_physical_volume(
        &self,
        group: GroupRef,
        physical_volume: String,
    ) -> BoxFuture<'_, Result<Done<VolumeGroup>, GroupError>>;

    /// Whether a mutation is under way, or waits for its turn.
    fn is_busy(&self) -> bool;

    /// Waits until no mutation is under way, and lets none begin while the result is held: for an orderly end.
    fn settle(&self) -> BoxFuture<'_, tokio::sync::OwnedRwLockWriteGuard<()>>;
}

/// The result of a mutation, and the whole state as it was read after it.
#[derive(Debug, Clone)]
pub struct Done<T> {
    /// What the mutation was about, as it is now.
    pub value: T,
    /// Everything, read after the mutation.
    pub state: State,
}

/// A volume that was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// The volume.
    pub value: LogicalVolume,
    /// LVM's UUID of its group.
    pub group: String,
    /// Everything, read after it was made; `None` where the kernel itself has shown the volume and nothing was read.
    pub state: Option<State>,
    /// Readings with a greater number, see [`State::reading`], show the volume; others perhaps.
    pub reading: u64,
}

/// Whether something was there to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It was there, and is gone.
    Removed,
    /// It was not there.
    AlreadyGone,
}

/// A volume group, by UUID; the name is what it is expected to have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupRef {
    /// Its name.
    pub name: String,
    /// LVM's UUID of it.
    pub uuid: String,
}

/// A logical volume, by UUID; the names are what it is expected to have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeRef {
    /// Its volume group.
    pub group: GroupRef,
    /// Its name.
    pub name: String,
    /// LVM's UUID of it.
    pub uuid: String,
}

/// What volume to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateVolume {
    /// Where.
    pub group: GroupRef,
    /// Its name.
    pub name: String,
    /// Its size.
    pub extents: Extents,
    /// Its tags; they must say that it is ours.
    pub tags: Vec<String>,
    /// The devices to take extents from, as [`PhysicalVolume::device`] names them; empty for any.
    pub devices: Vec<String>,
    /// LVM's UUID of the physical volume, where `devices` names just one: then where the extents are is known without
    /// reading.
    pub physical_volume: Option<String>,
}

/// How a volume shall grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtendVolume {
    /// Which.
    pub volume: VolumeRef,
    /// The size that it shall have at least.
    pub extents: Extents,
    /// The devices to take extents from, as [`PhysicalVolume::device`] names them; empty for any.
    pub devices: Vec<String>,
}

/// How the tags of a volume shall change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeTags {
    /// Which.
    pub volume: VolumeRef,
    /// Others of the same group, by LVM's UUIDs. Nothing is said of them: what became of them is in the state read after.
    pub others: Vec<String>,
    /// Tags that it shall have.
    pub add: Vec<String>,
    /// Tags that it shall not have.
    pub delete: Vec<String>,
    /// A tag that it must have at that moment, or else nothing is changed.
    pub having: Option<String>,
}

/// What volume group to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateGroup {
    /// Its name.
    pub name: String,
    /// The devices that it shall consist of.
    pub devices: Vec<String>,
    /// Its tags.
    pub tags: Vec<String>,
}

/// Everything that LVM sees on this node. Two are equal where they show the same, whenever they were read.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// Volume groups. Two of one name are two entries.
    pub groups: Vec<VolumeGroup>,
    /// Physical volumes that belong to no volume group.
    pub orphans: Vec<PhysicalVolume>,
    /// Set where LVM could not read everything: what is listed is true, but **what is not listed may still exist**. The
    /// text is LVM's own, for people.
    pub incomplete: Option<String>,
    /// Its number among the readings of this process, in the order in which they **began**: it shows everything that
    /// was changed before a reading of a lesser number began.
    pub reading: u64,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        (&self.groups, &self.orphans, &self.incomplete) == (&other.groups, &other.orphans, &other.incomplete)
    }
}

/// A volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeGroup {
    /// Its name, which another group can have too.
    pub name: String,
    /// LVM's UUID of it.
    pub uuid: String,
    /// The size of its extents.
    pub extent_size: ExtentSize,
    /// All extents, those of missing devices included.
    pub size: Extents,
    /// Extents that no volume has, those of missing and unallocatable devices included: see
    /// [`VolumeGroup::allocatable`].
    pub free: Extents,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether a device is missing. LVM makes and extends no volume in such a group, not even on the other devices.
    pub partial: bool,
    /// Whether it was exported for another host.
    pub exported: bool,
    /// Whether it is shared by lock manager or cluster.
    pub shared: bool,
    /// The host that it belongs to, where it says so. Quarry sets none and leaves a group that has one alone.
    pub system_id: Option<String>,
    /// The metadata area of the smallest copy, in bytes.
    pub metadata_size: Bytes,
    /// What is free in it, in bytes: it limits the number of volumes.
    pub metadata_free: Bytes,
    /// Its devices.
    pub physical_volumes: Vec<PhysicalVolume>,
    /// Its volumes, also hidden ones.
    pub logical_volumes: Vec<LogicalVolume>,
}

/// A device that LVM labelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhysicalVolume {
    /// LVM's UUID of it.
    pub uuid: String,
    /// The device, as commands take it; `None` where it is missing.
    pub device: Option<String>,
    /// Major and minor number of the device.
    pub number: Option<(u32, u32)>,
    /// The size of the device, in bytes; larger than its extents together where it grew.
    pub device_size: Bytes,
    /// All its extents; none in an orphan.
    pub size: Extents,
    /// Those that no volume has.
    pub free: Extents,
    /// The free areas, each of contiguous extents.
    pub free_areas: Vec<Extents>,
    /// Whether the device is missing, or is back but was missing when its group was changed: where `device` is set, see
    /// [`Lvm::restore_physical_volume`].
    pub missing: bool,
    /// Whether volumes may be made on it.
    pub allocatable: bool,
    /// Whether a second device claims to be the same physical volume.
    pub duplicate: bool,
    /// The metadata area, in bytes.
    pub metadata_size: Bytes,
}

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalVolume {
    /// Its name; in brackets where LVM hides it, as parts of mirrors and pools are.
    pub name: String,
    /// LVM's UUID of it.
    pub uuid: String,
    /// Its size in bytes.
    pub size: Bytes,
    /// Its size in extents of its group.
    pub extents: Extents,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether its device exists; `None` where LVM cannot tell.
    pub active: Option<bool>,
    /// Whether somebody has its device open; `None` where LVM cannot tell.
    pub open: Option<bool>,
    /// Whether its device is suspended; `None` where LVM cannot tell.
    pub suspended: Option<bool>,
    /// Where its device is, or will be: `/dev/<group>/<name>`; empty for hidden ones.
    pub path: String,
    /// Major and minor number of its device, where it is active.
    pub number: Option<(u32, u32)>,
    /// How it is made: `linear`, `thin`, …
    pub layout: String,
    /// What it is for: `public` alone, or with `origin`, `snapshot`, …
    pub roles: Vec<String>,
    /// The volume that it is a snapshot of, by name.
    pub origin: Option<String>,
    /// Whether its extents are on their way to another disk.
    pub allocation_locked: bool,
    /// What is being done to its mirrors; `idle`, or empty where it has none.
    pub sync_action: String,
    /// Whether a part of it is on a missing device.
    pub partial: bool,
    /// Extents on each physical volume that it lies on.
    pub parts: Vec<Part>,
}

/// The extents that a volume has on one physical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// LVM's UUID of the physical volume.
    pub physical_volume: String,
    /// How many.
    pub extents: Extents,
}

impl State {
    /// The volume group of that UUID.
    #[must_use]
    pub fn group(&self, uuid: &str) -> Option<&VolumeGroup> {
        self.groups.iter().find(|group| group.uuid == uuid)
    }

    /// Every volume group of that name: more than one means that LVM will change none of them.
    pub fn groups_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a VolumeGroup> {
        self.groups.iter().filter(move |group| group.name == name)
    }

    /// The physical volume of that UUID, and the group that it is in.
    #[must_use]
    pub fn physical_volume(&self, uuid: &str) -> Option<(Option<&VolumeGroup>, &PhysicalVolume)> {
        let grouped = self
            .groups
            .iter()
            .flat_map(|group| group.physical_volumes.iter().map(move |pv| (Some(group), pv)));
        grouped
            .chain(self.orphans.iter().map(|pv| (None, pv)))
            .find(|(_, pv)| pv.uuid == uuid)
    }

    /// Why LVM would change nothing in that group; `None` where it is fit.
    #[must_use]
    pub fn problem_of(&self, group: &VolumeGroup) -> Option<GroupProblem> {
        if self.groups_named(&group.name).nth(1).is_some() {
            return Some(GroupProblem::DuplicateName);
        }
        if group.exported {
            return Some(GroupProblem::Exported);
        }
        if group.shared {
            return Some(GroupProblem::Shared);
        }
        if let Some(system_id) = &group.system_id {
            return Some(GroupProblem::ForeignHost(system_id.clone()));
        }
        if group.partial {
            return Some(GroupProblem::Partial);
        }
        None
    }
}

impl VolumeGroup {
    /// What names it.
    #[must_use]
    pub fn reference(&self) -> GroupRef {
        GroupRef {
            name: self.name.clone(),
            uuid: self.uuid.clone(),
        }
    }

    /// What names one of its volumes.
    #[must_use]
    pub fn reference_to(&self, volume: &LogicalVolume) -> VolumeRef {
        VolumeRef {
            group: self.reference(),
            name: volume.name.clone(),
            uuid: volume.uuid.clone(),
        }
    }

    /// The volume of that name.
    #[must_use]
    pub fn volume_named(&self, name: &str) -> Option<&LogicalVolume> {
        self.logical_volumes.iter().find(|volume| volume.name == name)
    }

    /// The volume of that UUID.
    #[must_use]
    pub fn volume(&self, uuid: &str) -> Option<&LogicalVolume> {
        self.logical_volumes.iter().find(|volume| volume.uuid == uuid)
    }

    /// Adds a volume that was made since the group was read, unless it is there already.
    pub fn add(&mut self, volume: &LogicalVolume) {
        if self.volume(&volume.uuid).is_some() {
            return;
        }
        self.free = self.free.minus(volume.extents);
        self.metadata_free = Bytes(self.metadata_free.0.saturating_sub(metadata_needed(&volume.tags).0));
        for part in &volume.parts {
            let mut on = self.physical_volumes.iter_mut();
            if let Some(pv) = on.find(|pv| pv.uuid == part.physical_volume) {
                pv.free = pv.free.minus(part.extents);
                // LVM takes the first that is large enough.
                let mut areas = pv.free_areas.iter_mut();
                if let Some(area) = areas.find(|area| **area >= part.extents) {
                    *area = area.minus(part.extents);
                }
                pv.free_areas.retain(|area| *area > Extents::ZERO);
            }
        }
        self.logical_volumes.push(volume.clone());
    }

    /// Free extents on devices that are there and allocatable, of those named (none named: of all).
    #[must_use]
    pub fn allocatable(&self, devices: &[String]) -> Extents {
        self.physical_volumes
            .iter()
            .filter(|pv| pv.is_usable(devices))
            .map(|pv| pv.free)
            .sum()
    }
}

impl PhysicalVolume {
    /// Whether volumes can be made on it, and it is one of the devices named (none named: any).
    #[must_use]
    pub fn is_usable(&self, devices: &[String]) -> bool {
        let named = devices.is_empty() || self.device.as_ref().is_some_and(|device| devices.contains(device));
        named && self.device.is_some() && !self.missing && self.allocatable
    }
}

/// Its name; the alternate form adds the UUID.
impl fmt::Display for GroupRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if f.alternate() {
            write!(f, " with UUID {}", self.uuid)
        } else {
            Ok(())
        }
    }
}

impl fmt::Display for VolumeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.group.name, self.name)
    }
}
