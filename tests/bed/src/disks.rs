//! The disks of the nodes: sparse files, told apart inside by their serial numbers, whatever letters they get.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{BedError, During, Result},
    udev::Udev,
};

const GIB: u64 = 1 << 30;
/// The disk of a node's own: containerd, kubelet, logs.
const SYSTEM_DISK: u64 = 12 * GIB;
/// The data disks of the nodes in GiB; nodes beyond these begin again.
const SIZES: [[u64; 3]; 3] = [[4, 6, 8], [5, 7, 10], [3, 6, 12]];

/// A data disk of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its stable path in the node, which follows it from letter to letter: `/dev/disk/by-id/bed-<serial>`.
    pub id: String,
    /// Its serial number.
    pub serial: String,
    /// Its size in bytes.
    pub size: u64,
    /// The file on the machine that holds its content.
    pub file: PathBuf,
}

impl Disk {
    fn new(folder: &Path, node: &str, number: usize, size: u64) -> Self {
        let serial = format!("{node}-disk{number}");
        Disk {
            id: format!("/dev/disk/by-id/bed-{serial}"),
            file: folder.join(format!("{serial}.img")),
            serial,
            size,
        }
    }

    /// Whether `name` means this disk: its stable path or its serial number.
    pub fn is(&self, name: &str) -> bool {
        self.id == name || self.serial == name
    }

    /// The disk at the same place in another machine.
    pub(crate) fn of_machine(&self, machine: Option<&str>) -> Disk {
        let file = match machine {
            Some(machine) => self.file.with_extension(format!("{machine}.img")),
            None => self.file.clone(),
        };
        Disk { file, ..self.clone() }
    }

    /// Makes the file, blank, if it is not there.
    pub(crate) fn create(&self) -> Result<()> {
        create(&self.file, self.size)
    }
}

/// The disks that node `index` (from 1) has from the beginning.
pub(crate) fn of_node(folder: &Path, node: &str, index: usize) -> Vec<Disk> {
    let sizes = SIZES[(index + SIZES.len() - 1) % SIZES.len()];
    sizes
        .into_iter()
        .enumerate()
        .map(|(at, size)| Disk::new(folder, node, at + 1, size * GIB))
        .collect()
}

/// One more disk for a node that has these.
pub(crate) fn another(folder: &Path, node: &str, disks: &[Disk], size: u64) -> Disk {
    Disk::new(folder, node, disks.len() + 1, size)
}

/// The file of a node's system disk.
pub(crate) fn system(folder: &Path, node: &str) -> Result<PathBuf> {
    let file = folder.join(format!("{node}-system.img"));
    create(&file, SYSTEM_DISK)?;
    Ok(file)
}

fn create(file: &Path, size: u64) -> Result<()> {
    let action = || format!("cannot make the disk {}", file.display());
    let handle = OpenOptions::new().create(true).append(true).open(file).during(action)?;
    if handle.metadata().during(action)?.len() < size {
        handle.set_len(size).during(action)?;
    }
    Ok(())
}

/// How a node is booted, where that is not as usual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Boot {
    /// These disks come first, in this order, so that the names of all move; by stable path or serial number.
    pub order: Vec<String>,
    /// These disks are not there.
    pub without: Vec<String>,
    /// These disks are read-only.
    pub read_only: Vec<String>,
    /// Blank disks of these sizes in bytes join the node for good.
    pub extra: Vec<u64>,
    /// Another machine takes the name of the node: with another machine-id, and disks of its own at the same places, blank
    /// at first. This tells such machines apart; the one that the node has from the beginning has none.
    pub machine: Option<String>,
    /// What of udev it has, where that is not what all nodes of the cluster have.
    pub udev: Option<Udev>,
}

impl Boot {
    /// The disks in the order of their letters, each with whether it is read-only.
    pub(crate) fn arrange(&self, disks: &[Disk]) -> Result<Vec<(Disk, bool)>> {
        let known = |name: &String| {
            disks
                .iter()
                .find(|disk| disk.is(name))
                .ok_or_else(|| BedError::Unknown {
                    kind: "disk",
                    name: name.clone(),
                    known: disks.iter().map(|disk| disk.id.as_str()).collect::<Vec<_>>().join(", "),
                })
        };
        for name in self.without.iter().chain(&self.read_only) {
            known(name)?;
        }
        let mut arranged = self.order.iter().map(known).collect::<Result<Vec<_>>>()?;
        arranged.extend(disks.iter().filter(|disk| !self.order.iter().any(|name| disk.is(name))));
        let has = |names: &[String], disk: &Disk| names.iter().any(|name| disk.is(name));
        arranged.retain(|disk| !has(&self.without, disk));
        Ok(arranged
            .into_iter()
            .map(|disk| (disk.clone(), has(&self.read_only, disk)))
            .collect())
    }
}

/// The udev rule that gives the disks of a node their stable paths.
pub(crate) const UDEV_RULE: &str = concat!(
    r#"SUBSYSTEM=="block", KERNEL=="ubd*", ENV{DEVTYPE}=="disk", ATTR{serial}=="?*", ENV{ID_SERIAL}="$attr{serial}", "#,
    r#"ENV{ID_SERIAL_SHORT}="$attr{serial}", ENV{ID_MODEL}="Quarry_Bed_Disk", ENV{ID_MODEL_ENC}="Quarry\x20Bed\x20Disk", "#,
    r#"SYMLINK+="disk/by-id/bed-$attr{serial}""#,
    "\n",
    r#"SUBSYSTEM=="block", KERNEL=="ubd*", ENV{DEVTYPE}=="partition", ATTRS{serial}=="?*", "#,
    r#"SYMLINK+="disk/by-id/bed-$attr{serial}-part%n""#,
    "\n"
);

#[cfg(test)]
mod tests {
    use super::*;

    fn serials(boot: &Boot) -> Vec<String> {
        let disks = of_node(Path::new("/d"), "node1", 1);
        let arranged = boot.arrange(&disks).expect("known disks");
        arranged
            .into_iter()
            .map(|(disk, read_only)| disk.serial + if read_only { " ro" } else { "" })
            .collect()
    }

    #[test]
    fn disks_come_in_the_order_asked_for_and_the_rest_follow() {
        let boot = Boot {
            order: vec!["node1-disk3".into()],
            ..Boot::default()
        };
        assert_eq!(serials(&boot), ["node1-disk3", "node1-disk1", "node1-disk2"]);
    }

    #[test]
    fn a_disk_left_out_is_not_attached_and_a_read_only_one_is_marked() {
        let boot = Boot {
            without: vec!["/dev/disk/by-id/bed-node1-disk1".into()],
            read_only: vec!["node1-disk2".into()],
            ..Boot::default()
        };
        assert_eq!(serials(&boot), ["node1-disk2 ro", "node1-disk3"]);
    }

    #[test]
    fn another_machine_has_other_disks_of_the_same_names() {
        let disk = &of_node(Path::new("/d"), "node1", 1)[0];
        let other = disk.of_machine(Some("m2"));
        assert_eq!((&other.id, &other.serial), (&disk.id, &disk.serial));
        assert_ne!(other.file, disk.file);
        assert_eq!(disk.of_machine(None), *disk);
    }

    #[test]
    fn an_unknown_disk_is_refused_with_those_known() {
        let boot = Boot {
            without: vec!["sda".into()],
            ..Boot::default()
        };
        let error = boot
            .arrange(&of_node(Path::new("/d"), "node1", 1))
            .expect_err("no such disk");
        assert!(error.to_string().contains("bed-node1-disk2"), "{error}");
    }
}
