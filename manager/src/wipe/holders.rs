//! Who has a device open: mounts, devices made of it, loop devices over it, processes.

use std::collections::BTreeSet;
use std::path::Path;

use crate::disks::mounts::Uses;
use crate::disks::{sysfs, users};

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
    found.extend(loops(proc, sys, path, number, volume));
    if found.is_empty() && open {
        found.extend(users::processes(proc, number));
    }
    found
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
