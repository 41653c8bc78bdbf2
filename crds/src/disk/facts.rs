//! What is known about a disk.

use crate::Bytes;

/// Everything about a disk that the decision needs. Read anew each time; nothing in it is a guess.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFacts {
    /// The path by which it was listed.
    pub asked: String,
    /// The kernel's device, such as `/dev/sdb`: another disk may have it after a reboot.
    pub device: String,
    /// Major and minor number.
    pub number: (u32, u32),
    /// What kind of device it is.
    pub kind: DeviceKind,
    /// Its size, in bytes.
    pub size: Bytes,
    /// Size of a logical sector, in bytes. LVM wants it the same in all of a volume group.
    pub logical_sector: u32,
    /// Size of a physical sector, in bytes.
    pub physical_sector: u32,
    /// Whether it refuses to be written.
    pub read_only: bool,
    /// Serial number that it reports.
    pub serial: Option<String>,
    /// Model that it reports.
    pub model: Option<String>,
    /// World-wide name that it reports.
    pub wwn: Option<String>,
    /// Whether it rotates, where that is known.
    pub rotational: Option<bool>,
    /// Other names of it under /dev/disk and /dev/mapper, best first.
    pub aliases: Vec<String>,
    /// Devices of its partitions.
    pub partitions: Vec<String>,
    /// What it is made of itself, however deep: the disk of a partition, the members of an array, what a device of device-mapper
    /// lies on.
    pub made_of: Vec<DeviceKind>,
    /// Devices that are made of it or of its partitions: logical volumes, arrays, multipath and encrypted devices.
    pub holders: Vec<String>,
    /// Where it, a partition or a holder of it is mounted.
    pub mounts: Vec<String>,
    /// Which of it, its partitions and holders are swapped to.
    pub swaps: Vec<String>,
    /// Other whole disks that report the same identity: paths to the same disk, or a copy of it.
    pub twins: Vec<String>,
    /// Every signature on it.
    pub signatures: Vec<Signature>,
    /// What LVM says of it.
    pub membership: Option<Membership>,
    /// Programs that have it open, and what else uses it without a claim that the kernel would enforce.
    pub users: Vec<String>,
    /// Whether it could be opened exclusively; the error where it could not.
    pub exclusive: Result<(), String>,
    /// What changes where somebody writes to it, or another disk has its name: for comparison only.
    pub print: String,
    /// What could not be found out. Anything here refuses the disk.
    pub unread: Vec<String>,
}

/// What kind of device it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceKind {
    /// A whole disk.
    Disk,
    /// A partition.
    Partition {
        /// Device of the disk that it is on.
        disk: String,
        /// Its name in the partition table.
        label: Option<String>,
    },
    /// A loop device.
    Loop {
        /// The file behind it.
        backing_file: String,
    },
    /// A device of device-mapper.
    DeviceMapper {
        /// Its name.
        name: String,
        /// Its UUID, which begins with the kind of thing it is: `mpath-`, `CRYPT-`, `LVM-`.
        uuid: String,
        /// Whether it is suspended.
        suspended: bool,
    },
    /// An array of Linux' software RAID.
    Raid,
    /// An optical drive.
    Rom,
    /// A disk in memory.
    Memory,
    /// Something else.
    Other(String),
}

impl DeviceKind {
    /// Whether it is a volume that somebody made for somebody else's data: a logical volume, or a loop device over one or over a
    /// file of kubelet, which makes such a device for each raw volume of a pod. Whoever uses the volume decides what is on it.
    #[must_use]
    pub fn is_volume(&self) -> bool {
        match self {
            Self::DeviceMapper { uuid, .. } => uuid.starts_with("LVM-"),
            Self::Loop { backing_file } => {
                ["/var/lib/kubelet/", "/dev/"]
                    .iter()
                    .any(|start| backing_file.starts_with(start))
                    || ["/volumeDevices/", "/kubernetes.io~"]
                        .iter()
                        .any(|part| backing_file.contains(part))
            }
            _ => false,
        }
    }

    /// Whether it can keep data at all.
    const fn keeps_data(&self) -> bool {
        !matches!(self, Self::Rom | Self::Memory | Self::Other(_))
    }
}

/// Something that is recognised on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What, in libblkid's words: `ext4`, `gpt`, `LVM2_member`, …
    pub kind: String,
    /// Where, in bytes from the beginning, where that is known.
    pub offset: Option<u64>,
    /// Its UUID.
    pub uuid: Option<String>,
    /// Its label.
    pub label: Option<String>,
}

/// What LVM says of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    /// It is a physical volume of a volume group.
    Group {
        /// LVM's UUID of the physical volume.
        physical_volume: String,
        /// LVM's UUID of the volume group.
        volume_group: String,
        /// Name of the volume group.
        name: String,
    },
    /// It is a physical volume of no volume group.
    Orphan {
        /// LVM's UUID of the physical volume.
        physical_volume: String,
    },
    /// It has the label of a physical volume that LVM sees on another device.
    Twin {
        /// LVM's UUID of the physical volume.
        physical_volume: String,
        /// The device that LVM uses.
        device: String,
    },
}

impl DiskFacts {
    /// Whether it was listed by the kernel's own name, which can belong to another disk after a reboot.
    #[must_use]
    pub fn is_unstable_name(&self) -> bool {
        self.asked == self.device
    }

    /// The name under which it should be listed.
    #[must_use]
    pub fn lasting_name(&self) -> Option<&str> {
        self.aliases.first().map(String::as_str)
    }

    /// Whether it, or something that it is made of, is a volume: see [`DeviceKind::is_volume`].
    #[must_use]
    pub fn is_on_a_volume(&self) -> bool {
        std::iter::once(&self.kind)
            .chain(&self.made_of)
            .any(DeviceKind::is_volume)
    }

    /// Whether LVM may open it, where it is listed or recorded. What is on a volume is never read for a decision, and to open a
    /// suspended device could take for ever.
    #[must_use]
    pub fn may_be_opened_by_lvm(&self) -> bool {
        let suspended = matches!(self.kind, DeviceKind::DeviceMapper { suspended: true, .. });
        self.kind.keeps_data() && !suspended && !self.is_on_a_volume()
    }

    /// What identifies the disk itself, for people.
    #[must_use]
    pub fn identity(&self) -> String {
        match (&self.wwn, &self.serial) {
            (Some(wwn), _) => format!("WWN {wwn}"),
            (None, Some(serial)) => format!("serial {serial}"),
            (None, None) => "no identity".to_owned(),
        }
    }

    /// Whether two whole disks are the same one by what they report: by WWN where both have one, else by serial, model
    /// and size together. Namespaces of one NVMe controller share the serial, but have a WWN each.
    #[must_use]
    pub fn is_same_disk(&self, other: &Self) -> bool {
        if self.number == other.number || self.kind != DeviceKind::Disk || other.kind != DeviceKind::Disk {
            return false;
        }
        match (&self.wwn, &other.wwn) {
            (Some(a), Some(b)) => a == b,
            (None, None) => {
                self.serial.is_some()
                    && self.serial == other.serial
                    && self.model == other.model
                    && self.size == other.size
            }
            _ => false,
        }
    }

    /// Orders names of one disk by how well they last: by what the disk reports before where it is plugged in, and
    /// names that people recognise before numbers.
    #[must_use]
    pub fn rank_alias(alias: &str) -> Option<u8> {
        let by_id = alias.strip_prefix("/dev/disk/by-id/");
        match by_id {
            Some(name)
                if ["lvm-pv-uuid-", "dm-uuid-LVM-"]
                    .iter()
                    .any(|start| name.starts_with(start)) =>
            {
                None
            }
            Some(name)
                if ["wwn-", "nvme-eui.", "nvme-uuid.", "nvme-nvme."]
                    .iter()
                    .any(|s| name.starts_with(s)) =>
            {
                Some(1)
            }
            Some(_) => Some(0),
            None if alias.starts_with("/dev/disk/by-partuuid/") => Some(2),
            None if alias.starts_with("/dev/mapper/") => Some(3),
            None if alias.starts_with("/dev/disk/by-path/") => Some(4),
            None => None,
        }
    }
}
