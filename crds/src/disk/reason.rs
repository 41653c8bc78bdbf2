//! Why a disk is refused, in words that say what to do.

use std::fmt;

use super::{LEAST_SIZE, Signature};
use crate::Bytes;

/// Why a disk is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It was listed by the kernel's name.
    UnstableName {
        /// A name that lasts.
        lasting: Option<String>,
    },
    /// It belongs to another volume group.
    OtherGroup {
        /// Name of that group.
        name: String,
        /// LVM's UUID of that group.
        uuid: String,
    },
    /// It has LVM's label, but belongs to no volume group.
    OrphanPhysicalVolume {
        /// LVM's UUID of the physical volume.
        uuid: String,
        /// The path by which it is listed.
        device: String,
    },
    /// It is a copy of a physical volume that LVM sees elsewhere.
    CopyOfPhysicalVolume {
        /// LVM's UUID of the physical volume.
        uuid: String,
        /// The device that LVM uses.
        device: String,
    },
    /// It is no kind of device that keeps data.
    Kind(String),
    /// It is a partition that a boot loader or an operating system keeps for itself.
    ReservedPartition(String),
    /// It is a loop device over a file of kubelet or a device.
    LoopOfKubelet(String),
    /// It is a logical volume itself.
    LogicalVolume,
    /// It is made of a logical volume, or of a loop device over one or over a file of kubelet.
    OnAVolume,
    /// It is suspended.
    Suspended,
    /// It refuses to be written.
    ReadOnly,
    /// It is too small to be of use.
    TooSmall(Bytes),
    /// Other devices report the same identity.
    SameDiskUnderOtherDevices {
        /// The other devices.
        devices: Vec<String>,
        /// The identity.
        identity: String,
    },
    /// It has partitions.
    Partitions(Vec<String>),
    /// It, or something made of it, is mounted there.
    Mounted(Vec<String>),
    /// It, or something made of it, is swapped to.
    Swap(Vec<String>),
    /// Other devices are made of it.
    Holders(Vec<String>),
    /// Programs have it open, or something uses it without telling the kernel.
    Users(Vec<String>),
    /// Somebody has it open exclusively.
    NotExclusive(String),
    /// It carries something known.
    Signature {
        /// What.
        signature: Signature,
        /// The path by which the disk is listed.
        device: String,
    },
    /// What it carries, of a disk that is refused for another reason: to wipe it would be the wrong advice.
    Carries(Vec<Signature>),
    /// It could not be examined.
    NotProbed(String),
    /// It is listed before, for the same volume group.
    ListedTwice {
        /// By that path.
        path: String,
    },
    /// It is listed before, for another volume group.
    ListedForOther {
        /// By that path.
        path: String,
        /// For that group.
        volume_group: String,
    },
    /// Its sectors are of another size than those of the other disks of the volume group.
    OtherSectorSize {
        /// Size of its logical sectors, in bytes.
        sector: u32,
        /// Name of the group.
        volume_group: String,
        /// Size of the logical sectors of the group's disks, in bytes.
        group_sector: u32,
    },
}

const NEVER: &str = "Quarry never overwrites data";

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnstableName { lasting: Some(lasting) } => write!(
                f,
                "is a name that can belong to another disk after a reboot; list the disk as {lasting}, or set \
                 allowUnstableNames"
            ),
            Self::UnstableName { lasting: None } => write!(
                f,
                "is a name that can belong to another disk after a reboot, and this disk has no name in \
                 /dev/disk/by-id or by-path; give it a serial number, or set allowUnstableNames"
            ),
            Self::OtherGroup { name, uuid } => {
                write!(
                    f,
                    "belongs to volume group {name} (UUID {uuid}); list it for that group, or list another disk"
                )
            }
            Self::OrphanPhysicalVolume { uuid, device } => write!(
                f,
                "has the LVM label of a physical volume in no volume group (UUID {uuid}); {NEVER}: take the label off \
                 with \"pvremove {device}\" if it is not needed"
            ),
            Self::CopyOfPhysicalVolume { uuid, device } => write!(
                f,
                "has the LVM label of the physical volume {uuid}, which is on {device}: a path to the same disk, or a \
                 copy of it; list that one, or detach the copy"
            ),
            Self::Kind(what) => write!(
                f,
                "is {what}, which keeps no data for Quarry; list a disk or a partition"
            ),
            Self::ReservedPartition(label) => write!(
                f,
                "is the partition {label:?}, which a boot loader or an operating system keeps for itself; list another"
            ),
            Self::LoopOfKubelet(file) => {
                write!(
                    f,
                    "is a loop device over {file}, which another program manages; list another disk"
                )
            }
            Self::LogicalVolume => write!(f, "is a logical volume of LVM; list the disk or partition itself"),
            Self::OnAVolume => write!(
                f,
                "is made of a logical volume or of a raw volume of a pod; list a disk or partition of its own"
            ),
            Self::Suspended => write!(
                f,
                "is suspended; see \"dmsetup info\", and resume it with \"dmsetup resume\""
            ),
            Self::ReadOnly => write!(
                f,
                "is read-only; see \"blockdev --getro\" and the disk's write protection"
            ),
            Self::TooSmall(size) => {
                write!(
                    f,
                    "is too small: it has {} bytes, at least {LEAST_SIZE} are needed; list a larger disk",
                    size.0
                )
            }
            Self::SameDiskUnderOtherDevices { devices, identity } => write!(
                f,
                "is one of several paths to the same disk, or a copy: {} also {} {identity}; list the multipath device \
                 in /dev/mapper instead, or give each disk a serial number of its own",
                devices.join(", "),
                if devices.len() == 1 { "reports" } else { "report" },
            ),
            Self::Partitions(partitions) => write!(
                f,
                "has the partition{} {}; {NEVER}: list an empty partition by /dev/disk/by-partuuid, or delete the \
                 partitions yourself if they are not needed",
                if partitions.len() == 1 { "" } else { "s" },
                some(partitions)
            ),
            Self::Mounted(places) => {
                write!(
                    f,
                    "is in use: it is mounted at {}; list another disk, or unmount it",
                    some(places)
                )
            }
            Self::Swap(devices) => {
                write!(
                    f,
                    "is in use: {} is swap space; list another disk, or see \"swapoff\"",
                    some(devices)
                )
            }
            Self::Holders(holders) => write!(
                f,
                "is in use: {} {} made of it (see \"lsblk\"); list {} instead, or another disk",
                some(holders),
                if holders.len() == 1 { "is" } else { "are" },
                if holders.len() == 1 { "that" } else { "those" },
            ),
            Self::Users(users) => write!(f, "is in use: {}; list another disk, or end what uses it", some(users)),
            Self::NotExclusive(error) => write!(
                f,
                "is in use by a program that cannot be named here ({error}); see \"fuser -v\" and \"lsblk\", or list \
                 another disk"
            ),
            Self::Signature { signature, device } => write!(
                f,
                "carries {signature}; {NEVER}: wipe it yourself with \"{}\" if it is not needed",
                remedy(signature, device)
            ),
            Self::Carries(signatures) => {
                let shown: Vec<_> = signatures.iter().map(ToString::to_string).collect();
                write!(f, "carries {}", shown.join(" and "))
            }
            Self::NotProbed(problem) => {
                write!(
                    f,
                    "could not be examined, and so is not touched: {problem}; see the disk's health"
                )
            }
            Self::ListedTwice { path } => {
                write!(f, "is the same disk as {path}, which is listed too; keep one of them")
            }
            Self::ListedForOther { path, volume_group } => write!(
                f,
                "is the same disk as {path}, which is listed for volume group {volume_group}; a disk belongs to one \
                 group: take it off one list"
            ),
            Self::OtherSectorSize {
                sector,
                volume_group,
                group_sector,
            } => write!(
                f,
                "has logical sectors of {sector} bytes, and the disks of volume group {volume_group} have sectors of \
                 {group_sector}: LVM makes no group of both; list it in a class of its own"
            ),
        }
    }
}

/// A list, cut where it would fill a screen.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        format!("{shown} and {} more", names.len() - SHOWN)
    } else {
        shown
    }
}

fn remedy(signature: &Signature, device: &str) -> String {
    match signature.kind.as_str() {
        // wipefs does not see the second copy of a GPT without the first.
        Signature::BACKUP_GPT => format!("sgdisk --zap-all {device}"),
        "zfs_member" => format!("zpool labelclear {device}"),
        "linux_raid_member" => format!("mdadm --zero-superblock {device}"),
        _ => format!("wipefs -a {device}"),
    }
}

impl Signature {
    /// The second copy of a GUID partition table, at the end of a disk, without the first.
    pub const BACKUP_GPT: &'static str = "gpt (second copy)";
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.as_str() {
            "gpt" | "dos" | "PMBR" | "atari" | "mac" | "bsd" | "sun" | "sgi" | Self::BACKUP_GPT => {
                write!(f, "a partition table, {}", self.kind)?;
            }
            "LVM2_member" => f.write_str("the LVM label of a physical volume")?,
            "swap" => f.write_str("swap space")?,
            "linux_raid_member" => f.write_str("a member of an MD array, linux_raid_member")?,
            "zfs_member" => f.write_str("a member of a ZFS pool, zfs_member")?,
            "crypto_LUKS" => f.write_str("an encrypted volume, crypto_LUKS")?,
            "ceph_bluestore" => f.write_str("an OSD of Ceph, ceph_bluestore")?,
            "bcache" => f.write_str("a bcache device, bcache")?,
            "drbd" => f.write_str("metadata of DRBD, drbd")?,
            kind if kind.ends_with("_member") || kind.contains('_') => write!(f, "a member of something: {kind}")?,
            kind if kind.starts_with("ext") => write!(f, "an {kind} file system")?,
            kind => write!(f, "a {kind} file system or header")?,
        }
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        let named = |name: &'static str, value: &Option<String>| value.as_ref().map(|value| format!("{name} {value}"));
        let details: Vec<_> = [named("uuid", &self.uuid), named("label", &self.label)]
            .into_iter()
            .flatten()
            .collect();
        if details.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", details.join(", "))
        }
    }
}
