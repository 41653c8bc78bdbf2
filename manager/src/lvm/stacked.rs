//! What stands on a volume of ours, or is being done to it, by the hand of a person with LVM's own commands: a snapshot, a
//! thin volume of which it is the external origin, extents that are on their way to another disk, a cache.
//!
//! Such a volume is neither wiped, which fills a snapshot until it is lost, nor removed: `lvremove -y` takes every snapshot of
//! a volume along, and a cache. LVM is told so too: it selects only what [`ALONE`] says, under its own lock.

use super::{LogicalVolume, VolumeGroup};

/// Selects volumes that nothing stands on and that are no part of anything, so that `-y` answers for what was named and for
/// nothing else: an origin has the role `origin` beside `public`, and a part of something is not `public`.
pub(super) const ALONE: &str = " && lv_role=[public] && lv_layout!=cache && lv_layout!=writecache";

/// What LVM calls the only role of a volume that stands alone.
const PUBLIC: &str = "public";

/// Layouts of which every part goes with the volume; also those that start with `raid`.
const OF_ITSELF: [&str; 3] = ["linear", "striped", "mirror"];

impl LogicalVolume {
    /// Whether LVM, told to remove the volume, would remove it alone: see [`ALONE`].
    #[must_use]
    pub fn is_alone(&self) -> bool {
        let cached = |word: &str| ["cache", "writecache"].contains(&word);
        self.roles == [PUBLIC] && !self.layout.split(',').any(cached)
    }

    fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|has| has == role)
    }
}

impl VolumeGroup {
    /// What stands on a volume of the group or is being done to it, and how to end that, for people; nothing where it is as
    /// Quarry made it.
    #[must_use]
    pub fn stacked_on(&self, volume: &LogicalVolume) -> Vec<String> {
        let group = &self.name;
        let made_of_it = |other: &&LogicalVolume| other.origin.as_ref() == Some(&volume.name);
        let mut found: Vec<String> = self
            .logical_volumes
            .iter()
            .filter(made_of_it)
            .map(|other| {
                let name = &other.name;
                if other.has_role("snapshot") && !other.has_role("thinsnapshot") {
                    format!("logical volume {group}/{name} is a snapshot of it (\"lvremove {group}/{name}\" on the node ends that)")
                } else {
                    format!("logical volume {group}/{name} is made of it (\"lvremove {group}/{name}\" on the node ends that)")
                }
            })
            .collect();
        if let Some(origin) = &volume.origin {
            found.push(format!("it is a snapshot of {group}/{origin} itself"));
        }
        if volume.allocation_locked {
            found.push("its extents are being moved to another disk (pvmove)".to_owned());
        }
        if !["", "idle"].contains(&volume.sync_action.as_str()) {
            found.push(format!("its mirrors are being synchronised ({})", volume.sync_action));
        }
        let other_layout = |word: &&str| !OF_ITSELF.contains(word) && !word.starts_with("raid");
        if volume.layout.split(',').any(|word| other_layout(&word)) {
            found.push(format!(
                "it was converted to {} (\"lvconvert\" on the node makes it linear again)",
                volume.layout
            ));
        }
        // Whatever LVM will call the next kind.
        if found.is_empty() && !volume.is_alone() {
            found.push(format!("LVM says that it is {}", volume.roles.join(", ")));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::report;
    use super::*;

    /// As LVM 2.03.16 reported them: `made-by-hand.json` has one volume for each thing that a person can do to one.
    fn group() -> VolumeGroup {
        let state = report::parse(include_bytes!("samples/made-by-hand.json")).expect("a report");
        state.groups.into_iter().next().expect("a group")
    }

    #[test]
    fn what_stands_on_a_volume_is_named() {
        let group = group();
        let on = |name: &str| group.stacked_on(group.volume_named(name).expect(name));
        for (volume, part) in [
            ("pvc-origin", "t/backup is a snapshot of it"),
            ("pvc-external", "t/ext is made of it"),
            ("pvc-moved", "pvmove"),
            ("cow", "it is a snapshot of t/pvc-ours itself"),
            ("pvc-ours", "t/cow is a snapshot of it"),
        ] {
            let found = on(volume);
            assert!(found.len() == 1 && found[0].contains(part), "{volume}: {found:?}");
        }
        for volume in ["pvc-plain", "pvc-raid"] {
            assert_eq!(on(volume), Vec::<String>::new(), "{volume}");
        }
    }

    #[test]
    fn what_is_alone_for_lvm_is_alone_here() {
        let alone = |volume: &&LogicalVolume| volume.is_alone() && volume.name.starts_with("pvc-");
        let group = group();
        let names: Vec<&str> = group
            .logical_volumes
            .iter()
            .filter(alone)
            .map(|volume| volume.name.as_str())
            .collect();
        assert_eq!(
            names,
            ["pvc-moved", "pvc-plain", "pvc-raid"],
            "LVM itself does not remove what is moved"
        );
    }

    #[test]
    fn a_cache_is_told_of() {
        let mut group = group();
        let mut volume = group.volume_named("pvc-plain").expect("there").clone();
        volume.layout = "cache".to_owned();
        group.logical_volumes.push(volume.clone());
        assert!(!volume.is_alone());
        assert!(group.stacked_on(&volume)[0].contains("converted to cache"));
        volume.layout = "raid,raid1".to_owned();
        volume.sync_action = "recover".to_owned();
        assert!(group.stacked_on(&volume)[0].contains("synchronised (recover)"));
    }
}
