//! What of udev is on the host: its daemon and its rules, as process 1 of the host sees them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use quarry_crds::device_nodes::Rules;

/// Where udev reads rules.
const FOLDERS: [&str; 4] = [
    "etc/udev/rules.d",
    "run/udev/rules.d",
    "usr/lib/udev/rules.d",
    "lib/udev/rules.d",
];

/// What of udev is on the host. Two are equal where nothing of it has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct HostUdev {
    /// The process of its daemon.
    daemon: Option<u32>,
    /// Whether its socket is there, by which LVM knows that udev runs.
    socket: bool,
    /// The folders of rules that are there: device, inode and time of the last change.
    folders: Vec<(u64, u64, i64)>,
}

impl HostUdev {
    /// Looks for all of it. In `proc`, process 1 is the host's; `run` is the host's `/run/udev`.
    pub(super) fn look(proc: &Path, run: &Path) -> Self {
        let metadata = |folder: PathBuf| fs::metadata(folder).ok();
        Self {
            daemon: daemon(proc),
            socket: run.join("control").exists(),
            folders: folders(proc)
                .filter_map(metadata)
                .map(|meta| (meta.dev(), meta.ino(), meta.mtime()))
                .collect(),
        }
    }

    /// Whether it runs.
    pub(super) fn runs(&self) -> bool {
        self.socket
    }

    /// Whether the daemon that was seen has ended: by one read of a file.
    pub(super) fn has_ended(&self, proc: &Path) -> bool {
        self.daemon.is_some_and(|id| !is_daemon(&proc.join(id.to_string())))
    }
}

fn folders(proc: &Path) -> impl Iterator<Item = PathBuf> {
    let root = proc.join("1/root");
    FOLDERS.into_iter().map(move |folder| root.join(folder))
}

fn is_daemon(process: &Path) -> bool {
    fs::read_to_string(process.join("comm")).is_ok_and(|name| ["systemd-udevd", "udevd"].contains(&name.trim()))
}

fn daemon(proc: &Path) -> Option<u32> {
    let processes = fs::read_dir(proc).ok()?.flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    // Its workers have its name too, and ids that are greater.
    ids.filter(|id| is_daemon(&proc.join(id.to_string()))).min()
}

/// Which rules are on the host, by what is written in them: distributions give them different names.
pub(super) fn rules(proc: &Path) -> Rules {
    let mut found = Rules::default();
    for folder in folders(proc) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let rules = |path: &PathBuf| path.extension() == Some(&OsString::from("rules"));
        for path in entries.map(|entry| entry.path()).filter(rules) {
            let text = fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines = || text.lines().filter(|line| !line.trim_start().starts_with('#'));
            let has = |words: [&str; 2]| lines().any(|line| words.iter().all(|word| line.contains(word)));
            found.device_mapper |= has(["SYMLINK+=", "mapper/"]);
            found.notify |= has(["dmsetup", "udevcomplete"]);
            found.lvm |= has(["SYMLINK+=", "DM_LV_NAME"]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    #[test]
    fn rules_are_known_by_what_they_do() {
        let proc = tempfile::tempdir().expect("a folder");
        assert_eq!(rules(proc.path()), Rules::default(), "nothing can be seen");
        let root = proc.path().join("1/root");
        let dm = "ENV{DM_NAME}==\"?*\", SYMLINK+=\"mapper/$env{DM_NAME}\"\n";
        write(root.join("usr/lib/udev/rules.d/10-dm.rules"), dm);
        write(
            root.join("etc/udev/rules.d/x.rules"),
            "# SYMLINK+=\"$env{DM_LV_NAME}\"\n",
        );
        write(root.join("etc/udev/rules.d/off.rules.bak"), "dmsetup udevcomplete\n");
        let expected = Rules {
            device_mapper: true,
            ..Rules::default()
        };
        assert_eq!(rules(proc.path()), expected);
        let notify = "ENV{DM_COOKIE}==\"?*\", RUN+=\"/sbin/dmsetup udevcomplete $env{DM_COOKIE}\"\n";
        write(root.join("run/udev/rules.d/95.rules"), notify);
        let lvm = "ENV{DM_LV_NAME}==\"?*\", SYMLINK+=\"$env{DM_VG_NAME}/$env{DM_LV_NAME}\"\n";
        write(root.join("lib/udev/rules.d/11-dm-lvm.rules"), lvm);
        assert!(rules(proc.path()).notify && rules(proc.path()).lvm);
    }

    #[test]
    fn its_end_and_its_return_are_seen() {
        let proc = tempfile::tempdir().expect("a folder");
        let run = tempfile::tempdir().expect("a folder");
        let look = || HostUdev::look(proc.path(), run.path());
        let none = look();
        assert!(!none.runs() && !none.has_ended(proc.path()));
        for (id, name) in [(7, "kubelet"), (11, "systemd-udevd"), (30, "systemd-udevd")] {
            write(proc.path().join(id.to_string()).join("comm"), &format!("{name}\n"));
        }
        write(run.path().join("control"), "");
        let runs = look();
        assert!(runs.runs() && runs != none && runs.daemon == Some(11));
        assert!(!runs.has_ended(proc.path()));
        write(proc.path().join("11/comm"), "somebody-else\n");
        assert!(runs.has_ended(proc.path()));
        assert_ne!(look(), runs, "another process of it");
    }
}
