//! Volume groups that objects tell of and that are not on their node any more, wholly: the worst that can happen to volumes,
//! and LVM has nothing to say of it.

use std::collections::BTreeSet;

use crate::extents::Bytes;
use crate::node_local_storage::NodeLocalStorageStatus;
use crate::quantity;

/// What is lost with the volume groups of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LostGroup {
    /// LVM's UUIDs of them: more than one where one was lost after the other.
    pub uuids: BTreeSet<String>,
    /// How many disks, at least: one where no status recorded them.
    pub disks: usize,
    /// How large they were, as far as a status recorded it.
    pub size: Bytes,
    /// The PersistentVolumes in them.
    pub volumes: BTreeSet<String>,
}

/// What objects of one node tell of the volume groups of a name.
#[derive(Debug, Clone, Default)]
pub struct Remembered<'a> {
    /// The statuses of the NodeLocalStorages that name it.
    pub statuses: Vec<&'a NodeLocalStorageStatus>,
    /// Its PersistentVolumes: each name, and the UUID of its volume group.
    pub volumes: Vec<(&'a str, &'a str)>,
    /// UUIDs of groups of which an administrator has said that they will not come back.
    pub given_up: BTreeSet<String>,
}

/// What of that is not here: `groups` and `disks` are LVM's UUIDs of the volume groups and of the physical volumes that it found.
/// Where LVM could not read everything, what it did not find cannot be used either.
#[must_use]
pub fn lost_group(remembered: &Remembered<'_>, groups: &BTreeSet<&str>, disks: &BTreeSet<&str>) -> Option<LostGroup> {
    let is_lost = |uuid: &str| !groups.contains(uuid) && !remembered.given_up.contains(uuid);
    let recorded = || {
        let statuses = remembered.statuses.iter();
        statuses.filter_map(|status| Some((status.volume_group.as_ref()?, &status.disks)))
    };
    let mut lost = LostGroup::default();
    let mut lost_disks = BTreeSet::new();
    for (group, of_group) in recorded().filter(|(group, _)| is_lost(&group.uuid)) {
        lost.uuids.insert(group.uuid.clone());
        lost.size = lost.size.max(quantity::parse(&group.size).unwrap_or_default());
        let known = of_group.iter().filter_map(|disk| disk.id.as_deref());
        lost_disks.extend(known.filter(|id| !disks.contains(id)));
    }
    for (volume, group) in remembered.volumes.iter().filter(|(_, group)| is_lost(group)) {
        lost.uuids.insert((*group).to_owned());
        lost.volumes.insert((*volume).to_owned());
    }
    lost.disks = lost_disks.len().max(1);
    (!lost.uuids.is_empty()).then_some(lost)
}

impl LostGroup {
    /// What is said of each of its volumes, for people.
    #[must_use]
    pub fn told(&self, node: &str, group: &str, volume: &str) -> String {
        let uuids: Vec<&str> = self.uuids.iter().map(String::as_str).collect();
        format!(
            "node {node}: volume group {group} ({}) is not there any more, and with it the logical volume {group}/{volume}. \
             Bring its disks back; nothing is made in their place",
            uuids.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(uuid: &str, disks: &[&str]) -> NodeLocalStorageStatus {
        let disks = disks.iter().map(|id| json!({"path": id, "id": id, "phase": "Claimed"}));
        serde_json::from_value(json!({
            "volumeGroup": {"name": "fast", "uuid": uuid, "extentSize": "4Mi", "size": "1020Mi", "free": "0", "largest": "0",
                "reserved": "0", "metadataFree": "0"},
            "disks": disks.collect::<Vec<_>>(), "volumes": 1, "conditions": [],
        }))
        .expect("a status")
    }

    fn lost(remembered: &Remembered<'_>, groups: &[&str], disks: &[&str]) -> Option<LostGroup> {
        let (groups, disks) = (groups.iter().copied().collect(), disks.iter().copied().collect());
        lost_group(remembered, &groups, &disks)
    }

    #[test]
    fn what_is_recorded_and_not_here_is_lost() {
        let (first, second) = (status("vg-1", &["a", "b"]), status("vg-1", &["b"]));
        let remembered = Remembered {
            statuses: vec![&first, &second],
            volumes: vec![("pvc-1", "vg-1"), ("pvc-2", "vg-1")],
            given_up: BTreeSet::new(),
        };
        assert_eq!(
            lost(&remembered, &["vg-1"], &["a"]),
            None,
            "it is here, and lacks a disk"
        );
        let found = lost(&remembered, &["other"], &[]).expect("lost");
        assert_eq!((found.disks, found.size, found.volumes.len()), (2, Bytes::mib(1020), 2));
        assert_eq!(
            lost(&remembered, &[], &["a"]).expect("lost").disks,
            1,
            "one has a label still"
        );
        let told = found.told("w1", "fast", "pvc-1");
        for part in ["node w1", "fast (vg-1)", "fast/pvc-1", "Bring its disks back"] {
            assert!(told.contains(part), "{told:?} lacks {part:?}");
        }
    }

    #[test]
    fn volumes_tell_of_a_group_that_no_status_recorded() {
        let here = status("vg-2", &["c"]);
        let remembered = Remembered {
            statuses: vec![&here],
            volumes: vec![("pvc-1", "vg-1"), ("pvc-2", "vg-2")],
            given_up: BTreeSet::new(),
        };
        let found = lost(&remembered, &["vg-2"], &["c"]).expect("lost");
        assert_eq!((found.disks, found.size), (1, Bytes(0)));
        assert_eq!(found.volumes, BTreeSet::from(["pvc-1".to_owned()]));
    }

    #[test]
    fn what_was_given_up_or_never_was_is_not_lost() {
        let before = status("vg-1", &["a"]);
        let remembered = Remembered {
            statuses: vec![&before],
            volumes: vec![("pvc-1", "vg-1")],
            given_up: BTreeSet::from(["vg-1".to_owned()]),
        };
        assert_eq!(lost(&remembered, &[], &[]), None);
        let new = NodeLocalStorageStatus::default();
        let remembered = Remembered {
            statuses: vec![&new],
            ..Remembered::default()
        };
        assert_eq!(lost(&remembered, &[], &[]), None);
    }
}
