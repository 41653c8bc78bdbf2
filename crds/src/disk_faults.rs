//! Faults of disks that are in a volume group, and which volumes they hit.
//!
//! LVM knows on which physical volumes every logical volume lies, also while a disk is missing. So it can always be said
//! which volumes are hit and which go on, before any pod finds out.

use std::collections::BTreeSet;

/// What is wrong with a disk of a volume group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// LVM does not find it: it is gone, or its beginning cannot be read.
    Missing,
    /// It is there, and reading it fails or takes too long; the text says where and how.
    Failing(String),
}

/// A disk of a volume group that is at fault.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskFault {
    /// LVM's UUID of the physical volume.
    pub physical_volume: String,
    /// The path by which it is listed, or was; the device where it was never listed.
    pub path: Option<String>,
    /// Its serial number, where it is known.
    pub serial: Option<String>,
    /// What is wrong.
    pub kind: FaultKind,
}

/// A volume, and the physical volumes on which it lies, by LVM's UUID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeOn {
    /// Its name.
    pub name: String,
    /// Where.
    pub physical_volumes: Vec<String>,
}

/// A volume that a fault hits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    /// Its name.
    pub volume: String,
    /// The disk.
    pub fault: DiskFault,
}

impl FaultKind {
    /// The reason of conditions and events.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "DiskMissing",
            Self::Failing(_) => "DiskFailing",
        }
    }
}

impl DiskFault {
    /// The disk, for people: `/dev/disk/by-id/a (physical volume U, serial S)`.
    #[must_use]
    pub fn disk(&self) -> String {
        let serial = self.serial.as_deref().map(|serial| format!(", serial {serial}"));
        let uuid = format!("physical volume {}{}", self.physical_volume, serial.unwrap_or_default());
        match &self.path {
            Some(path) => format!("{path} ({uuid})"),
            None => uuid,
        }
    }

    /// The disk and what is wrong with it.
    #[must_use]
    pub fn told(&self) -> String {
        match &self.kind {
            FaultKind::Missing => format!("disk {} is missing", self.disk()),
            FaultKind::Failing(how) => format!("disk {} answers with errors ({how})", self.disk()),
        }
    }

    /// What a person can do about it.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self.kind {
            FaultKind::Missing => "Bring the disk back; nothing is made in its place",
            FaultKind::Failing(_) => {
                "See the kernel's log and the disk's health; copy what is needed while it can be read"
            }
        }
    }
}

/// The volumes that lie on a disk at fault, each once for each such disk, sorted.
#[must_use]
pub fn hits(faults: &[DiskFault], volumes: &[VolumeOn]) -> Vec<Hit> {
    let mut hits: Vec<Hit> = faults
        .iter()
        .flat_map(|fault| {
            let lies_on = |volume: &&VolumeOn| volume.physical_volumes.contains(&fault.physical_volume);
            volumes.iter().filter(lies_on).map(|volume| Hit {
                volume: volume.name.clone(),
                fault: fault.clone(),
            })
        })
        .collect();
    hits.sort();
    hits
}

/// Reason and message of the condition Degraded of a volume group; `None` where no disk is at fault.
#[must_use]
pub fn degraded(group: &str, faults: &[DiskFault], volumes: &[VolumeOn]) -> Option<(&'static str, String)> {
    const SHOWN: usize = 8;
    let worst = faults.iter().min()?;
    let disks: Vec<String> = faults.iter().map(DiskFault::told).collect();
    let hit: BTreeSet<String> = hits(faults, volumes).into_iter().map(|hit| hit.volume).collect();
    let mut names: Vec<&str> = hit.iter().map(String::as_str).take(SHOWN).collect();
    if hit.len() > SHOWN {
        names.push("…");
    }
    let whom = match hit.len() {
        0 => "no volume is hit".to_owned(),
        count => format!("{count} of {} volumes hit: {}", volumes.len(), names.join(", ")),
    };
    let message = format!(
        "volume group {group}: {}; {whom}; volumes on other disks go on, and no room on this disk is offered. {}",
        disks.join("; "),
        worst.remedy()
    );
    Some((worst.kind.reason(), message))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fault(uuid: &str, kind: FaultKind) -> DiskFault {
        DiskFault {
            physical_volume: uuid.to_owned(),
            path: Some(format!("/dev/disk/by-id/{uuid}")),
            serial: Some("S1".to_owned()),
            kind,
        }
    }

    fn volume(name: &str, on: &[&str]) -> VolumeOn {
        VolumeOn {
            name: name.to_owned(),
            physical_volumes: on.iter().map(|uuid| (*uuid).to_owned()).collect(),
        }
    }

    #[test]
    fn what_is_said_names_the_disk_and_the_volumes_that_are_hit() {
        let volumes = [
            volume("pvc-1", &["a"]),
            volume("pvc-2", &["b"]),
            volume("pvc-3", &["b", "a"]),
        ];
        let missing = fault("a", FaultKind::Missing);
        let (reason, message) = degraded("fast", std::slice::from_ref(&missing), &volumes).expect("a fault");
        assert_eq!(reason, "DiskMissing");
        for part in [
            "/dev/disk/by-id/a (physical volume a, serial S1) is missing",
            "2 of 3 volumes hit: pvc-1, pvc-3;",
            "go on",
        ] {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
        let failing = fault("c", FaultKind::Failing("offset 0: Input/output error".into()));
        let (reason, message) = degraded("fast", std::slice::from_ref(&failing), &volumes).expect("a fault");
        assert_eq!(reason, "DiskFailing");
        assert!(
            message.contains("Input/output error") && message.contains("no volume is hit"),
            "{message}"
        );
        let both = degraded("fast", &[failing, missing], &volumes).expect("faults");
        assert_eq!(both.0, "DiskMissing", "a disk that is missing is worse: {both:?}");
        assert_eq!(degraded("fast", &[], &volumes), None);
        let many: Vec<VolumeOn> = (0..1000)
            .map(|number| volume(&format!("pvc-{number:036}"), &["a"]))
            .collect();
        let (_, message) = degraded("fast", &[fault("a", FaultKind::Missing)], &many).expect("a fault");
        assert!(
            message.contains("1000 of 1000") && message.len() < 1024,
            "{}",
            message.len()
        );
    }

    proptest! {
        /// A volume is hit exactly where it lies on a disk at fault.
        #[test]
        fn hit_is_what_lies_on_a_disk_at_fault(
            faulty in prop::collection::btree_set("[a-d]", 0..4),
            on in prop::collection::vec(prop::collection::btree_set("[a-d]", 1..3), 0..6),
        ) {
            let faults: Vec<_> = faulty.iter().map(|uuid| fault(uuid, FaultKind::Missing)).collect();
            let volumes: Vec<_> = on.iter().enumerate().map(|(at, on)| VolumeOn {
                name: format!("pvc-{at}"),
                physical_volumes: on.iter().cloned().collect(),
            }).collect();
            let hit: BTreeSet<String> = hits(&faults, &volumes).into_iter().map(|hit| hit.volume).collect();
            for (volume, on) in volumes.iter().zip(&on) {
                prop_assert_eq!(hit.contains(&volume.name), !on.is_disjoint(&faulty));
            }
        }
    }
}
