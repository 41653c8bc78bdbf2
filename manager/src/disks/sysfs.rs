//! What the kernel and udev say of block devices, by files.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use quarry_crds::Bytes;
use quarry_crds::disk::{DeviceKind, DiskFacts};

/// Size in bytes of the sectors in which sysfs counts, whatever the disk's are.
const SECTOR: u64 = 512;

/// Where things are; other places in tests.
#[derive(Debug)]
pub(crate) struct Sysfs {
    sys: PathBuf,
    dev: PathBuf,
    udev: PathBuf,
}

/// Major and minor number of a device, as `stat` gives both in one.
#[must_use]
pub fn device_number(rdev: u64) -> (u32, u32) {
    let major = ((rdev >> 8) & 0xfff) | ((rdev >> 32) & 0xffff_f000);
    let minor = (rdev & 0xff) | ((rdev >> 12) & 0xffff_ff00);
    (
        u32::try_from(major).unwrap_or(u32::MAX),
        u32::try_from(minor).unwrap_or(u32::MAX),
    )
}

/// A number as `8:16`.
fn read_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Where sysfs, which is at `sys`, has a device.
pub(crate) fn directory(sys: &Path, number: (u32, u32)) -> PathBuf {
    sys.join("dev/block").join(format!("{}:{}", number.0, number.1))
}

/// The kernel's names of what is made of the device in a directory of sysfs, sorted.
pub(crate) fn holders(directory: &Path) -> Vec<String> {
    names_in(&directory.join("holders"))
}

/// A device as people know it: device-mapper's by name.
pub(crate) fn shown(sys: &Path, name: &str) -> String {
    match read(&sys.join("block").join(name), "dm/name") {
        Some(dm) => format!("/dev/mapper/{dm}"),
        None => device(name),
    }
}

/// Whether a directory of sysfs, under the kernel's own name, is of a device of device-mapper.
fn is_device_mapper(directory: &Path) -> bool {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("dm-")
}

/// Whether a device of device-mapper is LVM's.
fn is_logical_volume(directory: &Path) -> bool {
    read(directory, "dm/uuid").is_some_and(|uuid| uuid.starts_with("LVM-"))
}

/// The number of the device in a directory of sysfs.
fn number_of(directory: &Path) -> Option<(u32, u32)> {
    read_number(&read(directory, "dev")?)
}

fn device(name: &str) -> String {
    format!("/dev/{}", name.replace('!', "/"))
}

impl Sysfs {
    pub(crate) fn of_host() -> Self {
        Self {
            sys: "/sys".into(),
            dev: "/dev".into(),
            udev: "/run/udev/data".into(),
        }
    }

    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self {
            sys: root.join("sys"),
            dev: root.join("dev"),
            udev: root.join("udev"),
        }
    }

    /// Where sysfs is.
    pub(crate) fn sys(&self) -> &Path {
        &self.sys
    }

    /// What is there for as long as udev has events to handle (libudev, `udev_queue_get_queue_is_empty`).
    pub(crate) fn udev_queue(&self) -> PathBuf {
        self.udev.with_file_name("queue")
    }

    fn directory(&self, number: (u32, u32)) -> PathBuf {
        directory(&self.sys, number)
    }

    /// What sysfs and udev say of a device.
    pub(crate) fn outline(&self, number: (u32, u32)) -> io::Result<DiskFacts> {
        let directory = fs::canonicalize(self.directory(number))?;
        let name = self.name(&directory);
        let is_partition = directory.join("partition").exists();
        // A partition has its disk's queue and identity.
        let disk = if is_partition {
            directory.parent().unwrap_or(&directory).to_owned()
        } else {
            directory.clone()
        };
        let udev = self.udev(number);
        let sectors: u64 = read(&directory, "size").and_then(|text| text.parse().ok()).unwrap_or(0);
        let known = |files: &[&str], keys: &[&str]| {
            let from_sysfs = files.iter().find_map(|file| read(&disk, file));
            from_sysfs.or_else(|| keys.iter().find_map(|key| udev.get(*key).cloned()))
        };
        let mut holders: BTreeSet<String> = holders(&directory).into_iter().collect();
        let parts = self.partitions(&directory);
        for part in &parts {
            holders.extend(self::holders(&directory.join(part)));
        }
        Ok(DiskFacts {
            asked: String::new(),
            device: device(&name),
            number,
            kind: self.kind(&name, &directory, is_partition, &udev),
            size: Bytes(sectors.saturating_mul(SECTOR)),
            logical_sector: number_in(&disk, "queue/logical_block_size").unwrap_or(512),
            physical_sector: number_in(&disk, "queue/physical_block_size").unwrap_or(512),
            read_only: read(&directory, "ro").as_deref() == Some("1"),
            serial: known(&["serial", "device/serial"], &["ID_SERIAL_SHORT", "ID_SERIAL"]),
            // udev's is longer: SCSI cuts it at 16 characters.
            model: udev
                .get("ID_MODEL_ENC")
                .map(|text| decode(text))
                .or_else(|| known(&["device/model"], &["ID_MODEL"])),
            // A T10 identifier without a serial number in it is the same on every such disk.
            wwn: known(&["wwid", "device/wwid"], &["ID_WWN_WITH_EXTENSION", "ID_WWN"])
                .filter(|wwn| !wwn.starts_with("t10.")),
            rotational: read(&disk, "queue/rotational").map(|text| text == "1"),
            aliases: Vec::new(),
            made_of: self.made_of(&directory),
            users: Vec::new(),
            partitions: parts.iter().map(|part| device(part)).collect(),
            holders: holders.into_iter().map(|holder| shown(&self.sys, &holder)).collect(),
            mounts: Vec::new(),
            swaps: Vec::new(),
            twins: Vec::new(),
            signatures: Vec::new(),
            membership: None,
            exclusive: Ok(()),
            print: print(&directory, number, sectors),
            unread: Vec::new(),
        })
    }

    fn kind(&self, name: &str, directory: &Path, is_partition: bool, udev: &HashMap<String, String>) -> DeviceKind {
        if is_partition {
            let disk = directory.parent().map(|disk| self.name(disk)).unwrap_or_default();
            let uevent = uevent(directory);
            let label = uevent
                .get("PARTNAME")
                .or_else(|| udev.get("ID_PART_ENTRY_NAME"))
                .cloned();
            return DeviceKind::Partition {
                disk: device(&disk),
                label,
            };
        }
        if directory.join("dm").is_dir() {
            return DeviceKind::DeviceMapper {
                name: read(directory, "dm/name").unwrap_or_default(),
                uuid: read(directory, "dm/uuid").unwrap_or_default(),
                suspended: read(directory, "dm/suspended").as_deref() == Some("1"),
            };
        }
        let is_called = |start: &str| {
            name.strip_prefix(start)
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        match () {
            () if directory.join("md").is_dir() => DeviceKind::Raid,
            () if is_called("loop") => DeviceKind::Loop {
                backing_file: read(directory, "loop/backing_file").unwrap_or_default(),
            },
            () if is_called("sr") || is_called("scd") => DeviceKind::Rom,
            () if is_called("ram") || is_called("zram") => DeviceKind::Memory,
            () if is_called("fd") => DeviceKind::Other("a floppy drive".to_owned()),
            () if is_called("mtdblock") => DeviceKind::Other("raw flash memory".to_owned()),
            () => DeviceKind::Disk,
        }
    }

    /// Every whole disk, by what sysfs says of it. Logical volumes are left out: there are hundreds of them on a node, and none is
    /// a disk by another name.
    pub(crate) fn whole_disks(&self) -> Vec<DiskFacts> {
        let entries = names_in(&self.sys.join("block")).into_iter();
        let directories = entries.map(|name| self.sys.join("block").join(name));
        directories
            .filter(|directory| !is_device_mapper(directory) || !is_logical_volume(directory))
            .filter_map(|directory| self.outline(number_of(&directory)?).ok())
            .filter(|facts| facts.size > Bytes::ZERO)
            .collect()
    }

    /// Every lasting name under /dev, best first, by the number of what it leads to.
    pub(crate) fn aliases(&self) -> HashMap<(u32, u32), Vec<String>> {
        let mut found: HashMap<(u32, u32), Vec<(u8, String)>> = HashMap::new();
        for directory in ["disk/by-id", "disk/by-path", "disk/by-partuuid", "mapper"] {
            for name in names_in(&self.dev.join(directory)) {
                let alias = format!("/dev/{directory}/{name}");
                let Some(rank) = DiskFacts::rank_alias(&alias) else {
                    continue;
                };
                if let Ok(meta) = fs::metadata(self.dev.join(directory).join(&name))
                    && meta.rdev() != 0
                {
                    found.entry(device_number(meta.rdev())).or_default().push((rank, alias));
                }
            }
        }
        let sorted = |mut names: Vec<(u8, String)>| {
            names.sort();
            names.into_iter().map(|(_, name)| name).collect()
        };
        found
            .into_iter()
            .map(|(number, names)| (number, sorted(names)))
            .collect()
    }

    /// The device, its partitions, and everything that is made of them, however deep.
    pub(crate) fn family(&self, number: (u32, u32)) -> BTreeSet<(u32, u32)> {
        let mut family = BTreeSet::from([number]);
        let mut left: Vec<_> = fs::canonicalize(self.directory(number)).into_iter().collect();
        while let Some(directory) = left.pop() {
            let parts = self.partitions(&directory).into_iter().map(|part| directory.join(part));
            let holders = holders(&directory)
                .into_iter()
                .map(|name| self.sys.join("block").join(name));
            for member in parts.chain(holders) {
                if number_of(&member).is_some_and(|number| family.insert(number)) {
                    left.push(member);
                }
            }
        }
        family
    }

    /// What the device in a directory of sysfs is made of, however deep.
    fn made_of(&self, directory: &Path) -> Vec<DeviceKind> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        let mut left = vec![directory.to_owned()];
        while let Some(directory) = left.pop() {
            let is_partition = directory.join("partition").exists();
            let disk = directory.parent().filter(|_| is_partition).map(Path::to_owned);
            let slaves = names_in(&directory.join("slaves")).into_iter().filter_map(|name| {
                // A slave may be a partition, which is not in /sys/block: its link leads to it.
                fs::canonicalize(directory.join("slaves").join(name)).ok()
            });
            for below in disk.into_iter().chain(slaves) {
                if !seen.insert(below.clone()) {
                    continue;
                }
                let number = number_of(&below).unwrap_or_default();
                let is_partition = below.join("partition").exists();
                found.push(self.kind(&self.name(&below), &below, is_partition, &self.udev(number)));
                left.push(below);
            }
        }
        found
    }

    /// What a device of device-mapper is made of; `None` for any other, and for one that is gone.
    pub(crate) fn below(&self, number: (u32, u32)) -> Option<BTreeSet<(u32, u32)>> {
        let directory = fs::canonicalize(self.directory(number)).ok()?;
        let slaves = directory.join("slaves");
        if !directory.join("dm").is_dir() || !slaves.is_dir() {
            return None;
        }
        let numbers = names_in(&slaves);
        Some(
            numbers
                .iter()
                .filter_map(|name| number_of(&slaves.join(name)))
                .collect(),
        )
    }

    /// The kernel calls them after their disk; device-mapper's devices have none (`GENHD_FL_NO_PART`).
    fn partitions(&self, directory: &Path) -> Vec<String> {
        let disk = directory.file_name().unwrap_or_default().to_string_lossy();
        if is_device_mapper(directory) {
            return Vec::new();
        }
        names_in(directory)
            .into_iter()
            .filter(|name| name.starts_with(&*disk) && directory.join(name).join("partition").exists())
            .collect()
    }

    /// The kernel's name, as it is under /dev.
    fn name(&self, directory: &Path) -> String {
        let base = directory
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        uevent(directory)
            .remove("DEVNAME")
            .unwrap_or_else(|| base.replace('!', "/"))
    }

    /// udev's properties of a device; none where udev is not reachable.
    fn udev(&self, number: (u32, u32)) -> HashMap<String, String> {
        let text = fs::read(self.udev.join(format!("b{}:{}", number.0, number.1))).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let pairs = text.lines().filter_map(|line| line.strip_prefix("E:")?.split_once('='));
        pairs
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }
}

/// What changes where somebody writes to a device or gives blocks of it back, or another one has its name: numbers and size, the
/// kernel's count of disks that it has seen, and the counters of `stat` (kernel documentation, "Block layer statistics in
/// /sys/block/<dev>/stat") for writes and discards.
fn print(directory: &Path, number: (u32, u32), sectors: u64) -> String {
    let disk = read(directory, "diskseq").unwrap_or_default();
    let stat = read(directory, "stat").unwrap_or_default();
    let counters: Vec<&str> = stat.split_whitespace().collect();
    let written: Vec<&str> = [4, 6, 11, 13]
        .iter()
        .filter_map(|at| counters.get(*at).copied())
        .collect();
    format!("{number:?} {sectors} {disk} {}", written.join(" "))
}

/// Undoes udev's `\x20`.
fn decode(text: &str) -> String {
    let mut parts = text.split("\\x");
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part
            .get(..2)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .filter(u8::is_ascii)
        {
            Some(byte) => {
                decoded.push(char::from(byte));
                decoded.push_str(&part[2..]);
            }
            None => decoded.push_str(part),
        }
    }
    decoded.trim().to_owned()
}

/// A file's text without blanks around it; `None` where it is missing or empty.
pub(crate) fn read(directory: &Path, file: &str) -> Option<String> {
    let bytes = fs::read(directory.join(file)).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

fn number_in(directory: &Path, file: &str) -> Option<u32> {
    read(directory, file)?.parse().ok()
}

fn uevent(directory: &Path) -> HashMap<String, String> {
    let text = read(directory, "uevent").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The names of what is in a directory, sorted; none where it cannot be read.
pub(crate) fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().expect("has one")).expect("made");
        fs::write(path, text).expect("written");
    }

    /// A disk with two partitions, on one of which is a logical volume, on which is an encrypted device.
    fn host() -> (tempfile::TempDir, Sysfs) {
        let directory = tempfile::tempdir().expect("made");
        let root = directory.path();
        let disk = "sys/devices/pci0/block/sdb";
        for (file, text) in [
            ("dev", "8:16\n"),
            ("uevent", "MAJOR=8\nMINOR=16\nDEVNAME=sdb\nDEVTYPE=disk\n"),
            ("size", "2097152\n"),
            ("ro", "0\n"),
            ("device/model", "Model cut at 16 \n"),
            ("device/wwid", "naa.5000c500\n"),
            ("queue/rotational", "1\n"),
            ("queue/logical_block_size", "4096\n"),
            ("sdb1/partition", "1\n"),
            ("sdb1/dev", "8:17\n"),
            ("sdb1/size", "2048\n"),
            ("sdb1/ro", "1\n"),
            ("sdb1/uevent", "DEVNAME=sdb1\nPARTNAME=EFI System Partition\n"),
            ("sdb2/partition", "2\n"),
            ("sdb2/dev", "8:18\n"),
            ("sdb2/uevent", "DEVNAME=sdb2\n"),
            ("sdb2/holders/dm-0", ""),
        ] {
            write(root, &format!("{disk}/{file}"), text);
        }
        for (name, number, dm) in [("dm-0", "252:0", "vg-a"), ("dm-1", "252:1", "crypt")] {
            let directory = format!("sys/devices/virtual/block/{name}");
            write(root, &format!("{directory}/dev"), number);
            write(root, &format!("{directory}/dm/name"), dm);
            write(root, &format!("{directory}/dm/uuid"), "LVM-abc");
            write(root, &format!("{directory}/dm/suspended"), "1");
        }
        write(root, "sys/devices/virtual/block/dm-0/holders/dm-1", "");
        write(root, "sys/devices/virtual/block/dm-0/slaves/sdb2/dev", "8:18\n");
        write(
            root,
            "udev/b8:16",
            "S:disk/by-id/x\nE:ID_SERIAL_SHORT=S1\nE:ID_MODEL_ENC=A\\x20whole\\x20model\\x20\\x20\n",
        );
        fs::create_dir_all(root.join("sys/dev/block")).expect("made");
        fs::create_dir_all(root.join("sys/block")).expect("made");
        for (link, target) in [
            ("dev/block/8:16", disk.to_owned()),
            ("dev/block/8:17", format!("{disk}/sdb1")),
            ("dev/block/8:18", format!("{disk}/sdb2")),
            ("dev/block/252:0", "sys/devices/virtual/block/dm-0".to_owned()),
            ("dev/block/252:1", "sys/devices/virtual/block/dm-1".to_owned()),
            ("block/sdb", disk.to_owned()),
            ("block/dm-0", "sys/devices/virtual/block/dm-0".to_owned()),
            ("block/dm-1", "sys/devices/virtual/block/dm-1".to_owned()),
        ] {
            symlink(root.join(target), root.join("sys").join(link)).expect("linked");
        }
        let sysfs = Sysfs::at(root);
        (directory, sysfs)
    }

    #[test]
    fn a_disk_and_what_is_made_of_it() {
        let (_directory, sysfs) = host();
        let disk = sysfs.outline((8, 16)).expect("there");
        assert_eq!(
            (disk.device.as_str(), disk.size, disk.logical_sector),
            ("/dev/sdb", Bytes::gib(1), 4096)
        );
        assert_eq!(disk.kind, DeviceKind::Disk);
        assert_eq!(
            (disk.serial.as_deref(), disk.model.as_deref()),
            (Some("S1"), Some("A whole model"))
        );
        assert_eq!(
            (disk.wwn.as_deref(), disk.rotational),
            (Some("naa.5000c500"), Some(true))
        );
        assert_eq!(disk.partitions, ["/dev/sdb1", "/dev/sdb2"]);
        assert_eq!(disk.holders, ["/dev/mapper/vg-a"]);
        let family = BTreeSet::from([(8, 16), (8, 17), (8, 18), (252, 0), (252, 1)]);
        assert_eq!(sysfs.family((8, 16)), family);
        assert_eq!(sysfs.family((8, 17)), BTreeSet::from([(8, 17)]));
        assert_eq!(sysfs.below((252, 0)), Some(BTreeSet::from([(8, 18)])));
        assert_eq!((sysfs.below((8, 16)), sysfs.below((9, 9))), (None, None));
    }

    #[test]
    fn other_kinds() {
        let (_directory, sysfs) = host();
        let part = sysfs.outline((8, 17)).expect("there");
        let label = Some("EFI System Partition".to_owned());
        assert_eq!(
            part.kind,
            DeviceKind::Partition {
                disk: "/dev/sdb".into(),
                label
            }
        );
        assert!(part.read_only && part.size == Bytes::mib(1) && part.logical_sector == 4096);
        let volume = sysfs.outline((252, 0)).expect("there");
        let kind = DeviceKind::DeviceMapper {
            name: "vg-a".into(),
            uuid: "LVM-abc".into(),
            suspended: true,
        };
        assert_eq!(volume.kind, kind);
        assert!(sysfs.outline((9, 9)).is_err());
        let disks: Vec<_> = sysfs.whole_disks().into_iter().map(|disk| disk.device).collect();
        assert_eq!(disks, ["/dev/sdb"]);
    }

    #[test]
    fn numbers_as_the_kernel_packs_them() {
        assert_eq!(device_number(0x0810), (8, 16));
        assert_eq!(device_number(0x10_3010), (0x30, 0x110));
        assert_eq!(read_number("259:3\n"), Some((259, 3)));
        assert_eq!(decode("a\\x20b\\x"), "a bx".replace("bx", "b"));
    }
}
