//! What the host has mounted and swaps to.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use super::device_number;

/// A mount: the device, where that can be told, and the place.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    number: (u32, u32),
    source: String,
    place: String,
}

/// What is mounted and swapped to.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    mounts: Vec<Mount>,
    swaps: Vec<String>,
    /// What could not be read.
    pub(crate) problem: Option<String>,
}

impl Uses {
    /// Reads the mount table of process 1 and the list of swap space.
    pub(crate) fn read(proc: &Path) -> Self {
        let text = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let table = proc.join("1/mountinfo");
        match text(&table) {
            Ok(mounts) => Self {
                mounts: mounts.lines().filter_map(mount).collect(),
                swaps: text(&proc.join("swaps"))
                    .map(|swaps| swap_devices(&swaps))
                    .unwrap_or_default(),
                problem: None,
            },
            Err(error) => Self {
                problem: Some(format!("the host's mounts in {}: {error}", table.display())),
                ..Self::default()
            },
        }
    }

    /// Where any of these devices is mounted, shortest first, each once.
    pub(crate) fn mounts(&self, family: &BTreeSet<(u32, u32)>) -> Vec<String> {
        // Some file systems have a number of their own, so the source counts too.
        let is_of = |mount: &&Mount| {
            family.contains(&mount.number) || block_number(&mount.source).is_some_and(|number| family.contains(&number))
        };
        let mut places: Vec<_> = self
            .mounts
            .iter()
            .filter(is_of)
            .map(|mount| mount.place.clone())
            .collect();
        places.sort_by_key(|place| (place.len(), place.clone()));
        places.dedup();
        places
    }

    /// Which of these devices are swapped to.
    pub(crate) fn swaps(&self, family: &BTreeSet<(u32, u32)>) -> Vec<String> {
        let is_of = |device: &&String| block_number(device).is_some_and(|number| family.contains(&number));
        self.swaps.iter().filter(is_of).cloned().collect()
    }
}

fn block_number(path: &str) -> Option<(u32, u32)> {
    if !path.starts_with('/') {
        return None;
    }
    let meta = fs::metadata(path).ok()?;
    meta.file_type().is_block_device().then(|| device_number(meta.rdev()))
}

/// A line of mountinfo: `36 35 98:0 /root /place options [optional]… - type source options` (proc(5)).
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(2);
    let (major, minor) = before.next()?.split_once(':')?;
    let place = before.nth(1)?;
    Some(Mount {
        number: (major.parse().ok()?, minor.parse().ok()?),
        source: unescape(after.split(' ').nth(1)?),
        place: unescape(place),
    })
}

/// The devices in /proc/swaps.
fn swap_devices(text: &str) -> Vec<String> {
    text.lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .map(unescape)
        .collect()
}

/// Blanks and backslashes are written as octal numbers.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text.as_bytes();
    while let [first, rest @ ..] = left {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) = (first, rest) {
            bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            left = after;
        } else {
            bytes.push(*first);
            left = rest;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let plain = mount("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue");
        assert_eq!(
            plain,
            Some(Mount {
                number: (98, 0),
                source: "/dev/root".into(),
                place: "/mnt2".into()
            })
        );
        let bare = mount("22 1 254:0 / / rw - ext4 /dev/vda rw");
        assert_eq!(bare.map(|mount| mount.place), Some("/".into()));
        let odd = mount("40 35 0:45 / /a\\040b\\134 rw - btrfs /dev/sd\\303\\251 rw");
        assert_eq!(
            odd,
            Some(Mount {
                number: (0, 45),
                source: "/dev/sdé".into(),
                place: "/a b\\".into()
            })
        );
        for broken in ["", "36 35", "36 35 98 / / rw - a b c", "x y z - "] {
            assert_eq!(mount(broken), None, "{broken}");
        }
    }

    #[test]
    fn swap_space() {
        let text =
            "Filename\t\tType\t\tSize\tUsed\tPriority\n/dev/dm-1  partition\t8\t0\t-2\n/swap\\040file file 1 0 -3\n";
        assert_eq!(swap_devices(text), ["/dev/dm-1", "/swap file"]);
        assert_eq!(swap_devices(""), Vec::<String>::new());
    }

    #[test]
    fn without_a_mount_table_nothing_is_unused() {
        let none = Uses::read(Path::new("/nowhere"));
        assert!(
            none.problem
                .is_some_and(|problem| problem.contains("/nowhere/1/mountinfo"))
        );
    }
}
