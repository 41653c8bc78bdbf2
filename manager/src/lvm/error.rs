//! What can go wrong, one enum an operation. `Refused` means that nothing was changed, which was read and not guessed.
//!
//! Every message is complete in itself, as events and conditions need it; what caused an error is kept in its fields.

use quarry_crds::names::VolumeGroupNameError;
use quarry_crds::tags::TagError;
use quarry_crds::{Bytes, Extents};
use thiserror::Error;

use super::command::CommandError;
use super::{GroupRef, LogicalVolume, VolumeRef};

/// The state could not be read.
#[derive(Debug, Clone, Error)]
pub enum ReportError {
    /// The command did not give a report.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The command gave something that is no report.
    #[error("the report of LVM is not understood: {0}")]
    Output(String),
}

/// Nobody knows whether the command did its work: read again, assume nothing.
#[derive(Debug, Clone, Error)]
pub enum Unknown {
    /// The command was to be killed at its deadline and does not end.
    #[error("outcome unknown: {0}")]
    StillRunning(CommandError),
    /// The command ended, but the state could not be read after it.
    #[error("outcome unknown, {what}: the state could not be read after it: {cause}")]
    NotRead {
        /// What the command said.
        what: String,
        /// Why there is no state.
        cause: Box<ReportError>,
    },
    /// The command ended, and what is read after it is neither the old state nor the new.
    #[error("outcome unknown, {what}: {seen}")]
    Unexpected {
        /// What the command said.
        what: String,
        /// What is there instead.
        seen: String,
    },
}

/// A request that LVM must not even see.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InvalidRequest {
    /// The name of a volume group.
    #[error("volume group name {name:?} {cause}")]
    GroupName {
        /// The name.
        name: String,
        /// What is wrong with it.
        cause: VolumeGroupNameError,
    },
    /// The name of a logical volume.
    #[error("{0:?} cannot name a logical volume")]
    VolumeName(String),
    /// A UUID.
    #[error("{0:?} is no UUID of LVM")]
    Uuid(String),
    /// A tag.
    #[error(transparent)]
    Tag(#[from] TagError),
    /// Tags that would make something, or leave something, that is not ours.
    #[error("the tag quarry.version is lacking, or would be taken off")]
    NotTagged,
    /// A device.
    #[error("{0:?} is not the path of a device")]
    Device(String),
    /// No extents.
    #[error("a size of no extents")]
    Empty,
    /// No devices.
    #[error("a volume group of no devices")]
    NoDevices,
}

/// Why LVM changes nothing in a volume group.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GroupProblem {
    /// Another group has its name.
    #[error("another volume group has the same name; rename one with \"vgrename <uuid> <new name>\"")]
    DuplicateName,
    /// It was exported.
    #[error("it was exported for another host; \"vgimport\" would take it back")]
    Exported,
    /// It is shared through a lock manager.
    #[error("it is shared by a cluster's lock manager, which Quarry does not use")]
    Shared,
    /// It belongs to another host.
    #[error("it belongs to the host with system ID {0:?}")]
    ForeignHost(String),
    /// A device is missing.
    #[error("a disk of it is missing")]
    Partial,
}

macro_rules! operation {
    ($(#[$outer:meta])* $name:ident { $($body:tt)* }) => {
        $(#[$outer])*
        #[derive(Debug, Error)]
        pub enum $name {
            $($body)*
            /// The request makes no sense; nothing was run.
            #[error(transparent)]
            Invalid(#[from] InvalidRequest),
            /// LVM refused, and nothing was changed.
            #[error(transparent)]
            Refused(CommandError),
            /// Nobody knows what happened.
            #[error(transparent)]
            Unknown(#[from] Unknown),
        }
    };
}

operation! {
    /// A logical volume was not made.
    CreateVolumeError {
        /// There is no such volume group.
        #[error("there is no volume group {0:#}")]
        GroupMissing(GroupRef),
        /// The volume group is in no state to be changed.
        #[error("volume group {group} cannot be changed: {problem}")]
        GroupUnusable {
            /// Which.
            group: GroupRef,
            /// Why.
            problem: GroupProblem,
        },
        /// Not enough free extents.
        #[error("volume group {group} has {free} free extents on the chosen disks, {asked} were asked for")]
        NoRoom {
            /// Where.
            group: GroupRef,
            /// Extents asked for.
            asked: Extents,
            /// Extents free on the devices that were named.
            free: Extents,
        },
        /// The metadata area of the group has no room for another volume.
        #[error("the metadata area of volume group {group} is full ({free} bytes are left)", free = .free.0)]
        MetadataFull {
            /// Where.
            group: GroupRef,
            /// What is left of the area.
            free: Bytes,
        },
        /// A volume of that name was there before; its tags say whose it is.
        #[error("volume group {group} already has a volume {}", .volume.name)]
        Exists {
            /// Where.
            group: GroupRef,
            /// The volume.
            volume: Box<LogicalVolume>,
        },
        /// The command did not end well, but the volume is there, with the tags and size asked for: it may hold old
        /// data. Remove it, or wipe and verify it.
        #[error("the volume was made, but perhaps not wiped: {cause}")]
        Incomplete {
            /// The volume.
            volume: Box<LogicalVolume>,
            /// What went wrong.
            cause: CommandError,
        },
    }
}

operation! {
    /// A logical volume was not removed.
    RemoveVolumeError {
        /// Its volume group is not there, so nobody can say whether the volume still exists.
        #[error("there is no volume group {0:#}")]
        GroupMissing(GroupRef),
        /// The volume group is in no state to be changed.
        #[error("volume group {group} cannot be changed: {problem}")]
        GroupUnusable {
            /// Which.
            group: GroupRef,
            /// Why.
            problem: GroupProblem,
        },
        /// It lacks our tags.
        #[error("{0} is not a volume of Quarry: its tags do not say so")]
        NotOurs(VolumeRef),
        /// A part of it is on a disk that is missing, so that it can neither be wiped nor be forgotten safely.
        #[error("a part of {0} is on a missing disk")]
        OnMissingDisk(VolumeRef),
        /// Somebody has it open. See [`crate::wipe::holders`] for who.
        #[error("{0} is in use")]
        Busy(VolumeRef),
        /// Something stands on it, or is being done to it: see [`VolumeGroup::stacked_on`](super::VolumeGroup::stacked_on).
        #[error("{volume} is in use: {}", .by.join(", "))]
        Stacked {
            /// Which.
            volume: VolumeRef,
            /// What, for people.
            by: Vec<String>,
        },
    }
}

operation! {
    /// A logical volume did not grow.
    ExtendVolumeError {
        /// There is no such volume.
        #[error("there is no logical volume {0}")]
        Missing(VolumeRef),
        /// The volume group is in no state to be changed.
        #[error("volume group {group} cannot be changed: {problem}")]
        GroupUnusable {
            /// Which.
            group: GroupRef,
            /// Why.
            problem: GroupProblem,
        },
        /// It lacks our tags.
        #[error("{0} is not a volume of Quarry: its tags do not say so")]
        NotOurs(VolumeRef),
        /// Not enough free extents.
        #[error("volume group {group} has {free} free extents on the chosen disks, {asked} more were asked for")]
        NoRoom {
            /// Where.
            group: GroupRef,
            /// Extents asked for beyond those that the volume has.
            asked: Extents,
            /// Extents free on the devices that were named.
            free: Extents,
        },
    }
}

operation! {
    /// A logical volume was not changed.
    VolumeError {
        /// There is no such volume.
        #[error("there is no logical volume {0}")]
        Missing(VolumeRef),
        /// The volume group is in no state to be changed.
        #[error("volume group {group} cannot be changed: {problem}")]
        GroupUnusable {
            /// Which.
            group: GroupRef,
            /// Why.
            problem: GroupProblem,
        },
        /// It lacks our tags.
        #[error("{0} is not a volume of Quarry: its tags do not say so")]
        NotOurs(VolumeRef),
        /// Another volume has that name.
        #[error("volume group {group} already has a volume {name}")]
        Exists {
            /// Where.
            group: GroupRef,
            /// The name.
            name: String,
        },
        /// Somebody has it open.
        #[error("{0} is in use")]
        Busy(VolumeRef),
    }
}

operation! {
    /// A volume group was not changed.
    GroupError {
        /// There is no such volume group.
        #[error("there is no volume group {0:#}")]
        Missing(GroupRef),
        /// It is in no state to be changed.
        #[error("volume group {group} cannot be changed: {problem}")]
        Unusable {
            /// Which.
            group: GroupRef,
            /// Why.
            problem: GroupProblem,
        },
        /// It has no such physical volume.
        #[error("volume group {group} has no physical volume with UUID {uuid}, or its device is missing")]
        NoPhysicalVolume {
            /// Which.
            group: GroupRef,
            /// UUID of the physical volume.
            uuid: String,
        },
    }
}

operation! {
    /// A volume group was not made.
    CreateGroupError {
        /// A group of that name is there already.
        #[error("there is a volume group {0} already")]
        Exists(GroupRef),
        /// A device carries something, or is in use: LVM would have to overwrite it.
        #[error("LVM does not take these devices: {0}")]
        DeviceRefused(CommandError),
    }
}

operation! {
    /// A volume group was not extended.
    ExtendGroupError {
        /// There is no such volume group.
        #[error("there is no volume group {0:#}")]
        Missing(GroupRef),
        /// It is in no state to be changed.
        #[error("volume group {group} cannot be changed: {problem}")]
        Unusable {
            /// Which.
            group: GroupRef,
            /// Why.
            problem: GroupProblem,
        },
        /// A device carries something, or is in use: LVM would have to overwrite it.
        #[error("LVM does not take these devices: {0}")]
        DeviceRefused(CommandError),
    }
}

operation! {
    /// A volume group was not removed.
    RemoveGroupError {
        /// It is in no state to be changed.
        #[error("volume group {group} cannot be changed: {problem}")]
        Unusable {
            /// Which.
            group: GroupRef,
            /// Why.
            problem: GroupProblem,
        },
        /// It lacks our tag.
        #[error("volume group {0} is not of Quarry: its tags do not say so")]
        NotOurs(GroupRef),
        /// There are volumes in it.
        #[error("volume group {group} still has {} logical volumes: {}", .volumes.len(), .volumes.join(", "))]
        NotEmpty {
            /// Which.
            group: GroupRef,
            /// Their names.
            volumes: Vec<String>,
        },
    }
}
