//! What LVM needs around it, in a container: without it, commands hang or leave no devices.

use std::fs;
use std::path::Path;

/// What is missing, each with the remedy; nothing where LVM can work. In `proc`, process 1 is the host's.
#[must_use]
pub fn problems_of_surroundings(proc: &Path) -> Vec<String> {
    problems(proc, Path::new("/proc/self"), Path::new("/"))
}

fn problems(proc: &Path, own: &Path, root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    // LVM makes the node itself, as where /dev is a container's; not the device.
    let is_there = || fs::read_to_string(proc.join("misc")).is_ok_and(|text| text.contains("device-mapper"));
    if !root.join("dev/mapper/control").exists() && !is_there() {
        found.push(
            "/dev/mapper/control is missing: mount the host's /dev, and load the kernel module dm_mod on the host"
                .to_owned(),
        );
    }
    if !root.join("run/lock/lvm").is_dir() && root.join("run/lock/lvm").symlink_metadata().is_err() {
        found.push(
            "/run/lock/lvm is missing: mount the host's, so that LVM on the host and here wait for each other"
                .to_owned(),
        );
    }
    let namespace = |process: &Path, kind: &str| fs::read_link(process.join("ns").join(kind));
    let udev = root.join("run/udev/control").exists();
    match (namespace(&proc.join("1"), "ipc"), namespace(own, "ipc")) {
        (Err(error), _) => found.push(format!(
            "process 1 in {} cannot be seen ({error}): set hostPID, or mount the host's /proc and name it",
            proc.display()
        )),
        // LVM waits for udev with a semaphore that the host's udev must see.
        (Ok(host), Ok(own)) if udev && host != own => {
            found.push(
                "udev runs on the host, but its IPC namespace is another: LVM would wait forever; set hostIPC"
                    .to_owned(),
            );
        }
        _ => {}
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn each_lack_is_named_with_its_remedy() {
        let directory = tempfile::tempdir().expect("made");
        let (proc, own, root) = (
            directory.path().join("proc"),
            directory.path().join("own"),
            directory.path().join("root"),
        );
        let found = problems(&proc, &own, &root);
        for (problem, remedy) in found.iter().zip(["dm_mod", "/run/lock/lvm", "hostPID"]) {
            assert!(problem.contains(remedy), "{problem}");
        }
        assert_eq!(found.len(), 3);

        for directory in ["dev/mapper/control", "run/lock/lvm", "run/udev/control"] {
            fs::create_dir_all(root.join(directory)).expect("made");
        }
        for (process, namespace) in [(proc.join("1"), "ipc:[1]"), (own.clone(), "ipc:[2]")] {
            fs::create_dir_all(process.join("ns")).expect("made");
            symlink(namespace, process.join("ns/ipc")).expect("linked");
        }
        let found = problems(&proc, &own, &root);
        assert!(found.len() == 1 && found[0].contains("hostIPC"), "{found:?}");
        fs::remove_dir(root.join("run/udev/control")).expect("removed");
        fs::remove_dir(root.join("dev/mapper/control")).expect("removed");
        fs::write(proc.join("misc"), "236 device-mapper\n").expect("written");
        assert_eq!(problems(&proc, &own, &root), Vec::<String>::new());
    }
}
