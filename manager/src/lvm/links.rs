//! The links `/dev/<volume group>/<logical volume>`, by which kubelet finds a volume. udev makes them; where it lost one,
//! or a command was killed before, LVM says that the volume is active, and nobody can use it.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::Path;

use quarry_crds::tags::is_ours;

use super::{State, VolumeGroup};

/// Takes volumes of ours without a link in `dev` for inactive: they are activated, and with that the link is made again.
pub fn check(state: &mut State, dev: &Path) {
    for group in &mut state.groups {
        if group.logical_volumes.iter().any(|volume| is_ours(&volume.tags)) {
            check_group(group, dev);
        }
    }
}

fn check_group(group: &mut VolumeGroup, dev: &Path) {
    let links = match names(&dev.join(&group.name), dev) {
        Ok(links) => links,
        Err(error) => {
            tracing::warn!(%error, volume_group = group.name, "nobody says which links are in /dev");
            return;
        }
    };
    for volume in &mut group.logical_volumes {
        if volume.active == Some(true) && is_ours(&volume.tags) && !links.contains(OsStr::new(&volume.name)) {
            tracing::warn!(
                volume_group = group.name,
                volume = volume.name,
                "active, but without its link in /dev"
            );
            volume.active = Some(false);
        }
    }
}

/// What is in a folder; nothing where there is no such folder. Links of LVM's own that lead to no node are left out: they and
/// the nodes in `mapper` are made together.
fn names(folder: &Path, dev: &Path) -> std::io::Result<HashSet<OsString>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(error) => return Err(error),
    };
    let mut found = HashSet::new();
    for entry in entries {
        let entry = entry?;
        let to = std::fs::read_link(entry.path()).unwrap_or_default();
        let node = to
            .strip_prefix("/dev/mapper")
            .ok()
            .map(|name| dev.join("mapper").join(name));
        if node.is_none_or(|node| node.symlink_metadata().is_ok()) {
            found.insert(entry.file_name());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::report;
    use super::*;

    const OURS: &str = "pvc-6f1c8f1e-6bd5-4a44-a7a4-2f6a5f1f6a10";

    fn active(dev: &Path) -> Vec<(String, Option<bool>)> {
        let mut state = report::parse(include_bytes!("samples/active.json")).expect("a report");
        check(&mut state, dev);
        let volumes = state.groups.remove(0).logical_volumes.into_iter();
        let mut volumes: Vec<_> = volumes
            .filter(|volume| [OURS, "by-hand", "inactive"].contains(&volume.name.as_str()))
            .map(|volume| (volume.name, volume.active))
            .collect();
        volumes.sort();
        volumes
    }

    #[test]
    fn a_volume_of_ours_without_its_link_counts_as_inactive() {
        let dev = tempfile::tempdir().expect("a folder");
        let expected = |ours| {
            [("by-hand", true), ("inactive", false), (OURS, ours)].map(|(name, active)| (name.to_owned(), Some(active)))
        };
        assert_eq!(active(dev.path()), expected(false), "there is no folder of the group");
        std::fs::create_dir(dev.path().join("fast")).expect("made");
        assert_eq!(active(dev.path()), expected(false));
        // Where it leads to nothing, LVM is not who can help.
        let link = dev.path().join("fast").join(OURS);
        std::os::unix::fs::symlink("../dm-0", &link).expect("made");
        assert_eq!(active(dev.path()), expected(true));
        // But for its own links and nodes it is.
        std::fs::remove_file(&link).expect("removed");
        std::os::unix::fs::symlink("/dev/mapper/fast-pvc", &link).expect("made");
        assert_eq!(active(dev.path()), expected(false), "its node is missing");
        std::fs::create_dir(dev.path().join("mapper")).expect("made");
        std::fs::write(dev.path().join("mapper/fast-pvc"), "").expect("made");
        assert_eq!(active(dev.path()), expected(true));
    }
}
