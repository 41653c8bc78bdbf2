//! Who has a device open: mounts, devices made of it, loop devices over it, processes.

use std::collections::BTreeSet;
use std::path::Path;

use crate::disks::mounts::Uses;
use crate::disks::sysfs::{self, names_in, read};
use crate::disks::users;

/// Finds who has a device open, for people. Processes are looked for only where it is `open`.
pub(super) fn find(proc: &Path, sys: &Path, path: &Path, number: (u32, u32), volume: &str, open: bool) -> Vec<String> {
    let uses = Uses::read(proc);
    let this = BTreeSet::from([number]);
    let mut found: Vec<String> = uses
        .mounts(&this)
        .into_iter()
        .map(|place| format!("mounted at {place}"))
        .collect();
    found.extend(
        uses.swaps(&this)
            .into_iter()
            .map(|device| format!("swap space on {device}")),
    );
    let made_of_it = sysfs::holders(&sysfs::directory(sys, number));
    found.extend(
        made_of_it
            .iter()
            .map(|name| format!("device {}", sysfs::shown(sys, name))),
    );
    found.extend(
        beside(sys, number)
            .iter()
            .map(|name| format!("device {}, which shares its blocks", sysfs::shown(sys, name))),
    );
    found.extend(loops(proc, sys, path, number, volume));
    if found.is_empty() && open {
        found.extend(users::processes(proc, number));
    }
    found
}

/// What stands on the blocks of a logical volume beside it: its snapshots. LVM then has a device of its own between the volume
/// and its disks, which carries the UUID of the volume with `-real` after it.
fn beside(sys: &Path, number: (u32, u32)) -> Vec<String> {
    let directory = sysfs::directory(sys, number);
    let Some(uuid) = read(&directory, "dm/uuid") else {
        return Vec::new();
    };
    let real = format!("{uuid}-real");
    let below = names_in(&directory.join("slaves"));
    let between = below.iter().map(|name| sys.join("block").join(name));
    between
        .filter(|directory| read(directory, "dm/uuid").as_ref() == Some(&real))
        .flat_map(|directory| sysfs::holders(&directory))
        .filter(|name| read(&sys.join("block").join(name), "dm/uuid").as_ref() != Some(&uuid))
        .collect()
}

/// Loop devices over it. Kubelet makes one over a path of its own for a raw block volume, with the volume's name in it.
fn loops(proc: &Path, sys: &Path, path: &Path, number: (u32, u32), volume: &str) -> Vec<String> {
    let named = |file: &str| file.split('/').any(|part| part == volume) || Path::new(file) == path;
    users::loops(proc, sys, number, named)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_snapshot_shares_the_blocks_of_its_origin() {
        let directory = tempfile::tempdir().expect("made");
        let (proc, sys) = (directory.path().join("proc"), directory.path().join("sys"));
        let devices = [
            ("dm-0", "LVM-gv", "vg-pvc--a"),
            ("dm-1", "LVM-gv-real", "vg-pvc--a-real"),
            ("dm-3", "LVM-gs", "vg-backup"),
        ];
        for (kernel, uuid, name) in devices {
            let folder = sys.join("block").join(kernel).join("dm");
            fs::create_dir_all(&folder).expect("made");
            fs::write(folder.join("uuid"), format!("{uuid}\n")).expect("written");
            fs::write(folder.join("name"), format!("{name}\n")).expect("written");
        }
        fs::create_dir_all(sys.join("dev/block")).expect("made");
        std::os::unix::fs::symlink("../../block/dm-0", sys.join("dev/block/254:0")).expect("made");
        let find = || find(&proc, &sys, Path::new("/dev/vg/pvc-a"), (254, 0), "pvc-a", false);
        assert_eq!(find(), Vec::<String>::new());
        fs::create_dir_all(sys.join("block/dm-0/slaves/dm-1")).expect("made");
        for holder in ["dm-0", "dm-3"] {
            fs::create_dir_all(sys.join("block/dm-1/holders").join(holder)).expect("made");
        }
        assert_eq!(find(), ["device /dev/mapper/vg-backup, which shares its blocks"]);
    }

    #[test]
    fn kubelets_loop_device_is_found_by_the_name_of_the_volume() {
        let directory = tempfile::tempdir().expect("made");
        let (proc, sys) = (directory.path().join("proc"), directory.path().join("sys"));
        for (name, file) in [
            (
                "loop0",
                "/var/lib/kubelet/plugins/kubernetes.io/local-volume/volumeDevices/pvc-a/0c2f",
            ),
            (
                "loop1",
                "/var/lib/kubelet/plugins/kubernetes.io/local-volume/volumeDevices/pvc-ab/0c2f",
            ),
            ("sda", "pvc-a"),
        ] {
            let directory = sys.join("block").join(name).join("loop");
            fs::create_dir_all(&directory).expect("made");
            fs::write(directory.join("backing_file"), format!("{file}\n")).expect("written");
        }
        let holders = sys.join("dev/block/252:7/holders");
        fs::create_dir_all(holders.join("dm-9")).expect("made");
        fs::create_dir_all(proc.join("1")).expect("made");
        fs::write(
            proc.join("1/mountinfo"),
            "9 1 252:7 / /mnt/a rw - ext4 /dev/nothing rw\n",
        )
        .expect("written");
        let found = find(&proc, &sys, Path::new("/dev/vg/pvc-a"), (252, 7), "pvc-a", true);
        assert_eq!(found[..2], ["mounted at /mnt/a", "device /dev/dm-9"]);
        assert!(
            found.len() == 3 && found[2].starts_with("loop device /dev/loop0 over"),
            "{found:?}"
        );
    }
}
