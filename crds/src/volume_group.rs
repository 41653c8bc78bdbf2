//! What is to be done so that a volume group on a node becomes what its NodeLocalStorages say, and how it stands.

use std::collections::BTreeSet;

use crate::conditions::Finding;
use crate::node_local_storage::{DiskStatus, condition, phase};

/// How a disk that is listed for a volume group stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskStanding {
    /// It carries nothing and may be taken.
    Blank,
    /// It is a physical volume of this very volume group.
    Member {
        /// LVM's UUID of the physical volume.
        physical_volume: String,
    },
    /// It is refused.
    Rejected {
        /// What was found, where, and the remedy.
        reason: String,
    },
    /// There is no such device.
    Missing {
        /// What to do about it.
        reason: String,
    },
}

/// A disk that is listed for a volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedDisk {
    /// The path by which it is listed.
    pub path: String,
    /// The kernel's device, where there is one: what LVM is given.
    pub device: Option<String>,
    /// How it stands.
    pub standing: DiskStanding,
}

/// What LVM has under the name of the volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No group of that name.
    None,
    /// One.
    One {
        /// LVM's UUID of it.
        uuid: String,
        /// Whether its tags say that Quarry made it.
        ours: bool,
        /// UUIDs of its physical volumes that are missing.
        missing: Vec<String>,
        /// Why LVM would change nothing in it, for people.
        problem: Option<String>,
    },
    /// Several: LVM will change none of them.
    Several(usize),
}

/// What is known about a volume group and its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation<'a> {
    /// Name of the volume group.
    pub name: &'a str,
    /// UUID of the volume group that this was before, as the status recorded it.
    pub recorded: Option<String>,
    /// Disks as the status recorded them.
    pub recorded_disks: Vec<DiskStatus>,
    /// What LVM has.
    pub found: Found,
    /// Whether LVM could not read everything: what it does not list may still exist.
    pub incomplete: Option<&'a str>,
    /// The listed disks of all NodeLocalStorages of this volume group, each once.
    pub disks: Vec<ListedDisk>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// Make the volume group of these devices.
    Create(Vec<String>),
    /// Add these devices to it.
    Extend(Vec<String>),
}

/// What is to be done, and how things stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What is to be done.
    pub action: Action,
    /// The disks, with what the recorded status adds to their standing.
    pub disks: Vec<ListedDisk>,
    /// Why no volume can be made, where that is so: reason and message.
    pub blocked: Option<(&'static str, String)>,
    /// What is lost or impaired that was there before: reason and message.
    pub degraded: Option<(&'static str, String)>,
}

/// Decides what is to be done about a volume group. Nothing is ever done that could lose data: in doubt the group is
/// held as it is, and the plan says what a person has to decide.
#[must_use]
pub fn plan(situation: Situation<'_>) -> Plan {
    let Situation {
        name,
        recorded,
        recorded_disks,
        found,
        incomplete,
        mut disks,
    } = situation;
    let mut degraded = None;
    let recorded = recorded.as_deref();
    let lost = hold_replaced(&mut disks, &recorded_disks);
    if !lost.is_empty() {
        degraded = Some((
            "DiskMissing",
            format!("volume group {name} has lost {}", lost.join(", ")),
        ));
    }
    let blank: Vec<String> = disks
        .iter()
        .filter(|disk| disk.standing == DiskStanding::Blank)
        .filter_map(|disk| disk.device.clone())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let held = |reason, message: String, degraded| Plan {
        action: Action::None,
        disks: disks.clone(),
        blocked: Some((reason, message)),
        degraded,
    };
    if let Some(incomplete) = incomplete {
        let message = format!("LVM could not read everything, so nothing is changed: {incomplete}");
        return held("LvmIncomplete", message, degraded);
    }
    match found {
        Found::Several(count) => held(
            "DuplicateVolumeGroupName",
            format!(
                "{count} volume groups are named {name}; rename the foreign one with \"vgrename <uuid> <new name>\""
            ),
            degraded,
        ),
        Found::One { ours: false, .. } => held(
            "ForeignVolumeGroup",
            format!(
                "volume group {name} exists and was not made by Quarry; choose another name with the parameter \
                 volumeGroup, or hand it over with \"vgchange --addtag {} {name}\"",
                crate::tags::VERSION_TAG
            ),
            degraded,
        ),
        Found::One { uuid, .. } if recorded.is_some_and(|recorded| recorded != uuid) => held(
            "VolumeGroupReplaced",
            format!(
                "volume group {name} has UUID {uuid}, but was {} before; delete this NodeLocalStorage to accept it",
                recorded.unwrap_or_default()
            ),
            Some((
                "VolumeGroupReplaced",
                format!(
                    "the volume group that was here, {}, is gone",
                    recorded.unwrap_or_default()
                ),
            )),
        ),
        Found::One {
            problem: Some(problem),
            missing,
            ..
        } if missing.is_empty() => held(
            "VolumeGroupUnusable",
            format!("volume group {name} cannot be changed: {problem}"),
            degraded,
        ),
        Found::One { missing, .. } if !missing.is_empty() => {
            let message = format!(
                "{} disk(s) of volume group {name} are missing (physical volumes {}); volumes on the others go on, new \
                 ones are made when they are back",
                missing.len(),
                missing.join(", ")
            );
            held("DiskMissing", message.clone(), Some(("DiskMissing", message)))
        }
        Found::One { .. } => Plan {
            action: if blank.is_empty() {
                Action::None
            } else {
                Action::Extend(blank)
            },
            disks,
            blocked: None,
            degraded,
        },
        Found::None => {
            if let Some(recorded) = recorded {
                let message = format!(
                    "volume group {name} ({recorded}) is gone with its disks; if they will not come back, delete this \
                     NodeLocalStorage and a new volume group is made of the blank disks"
                );
                return held(
                    "VolumeGroupMissing",
                    message.clone(),
                    Some(("VolumeGroupMissing", message)),
                );
            }
            if blank.is_empty() {
                let message = format!("no listed disk is fit, so there is no volume group {name}; see status.disks");
                return held("NoDisk", message, degraded);
            }
            Plan {
                action: Action::Create(blank),
                disks,
                blocked: None,
                degraded,
            }
        }
    }
}

/// A blank disk at a path where the status recorded another physical volume is not taken: the one that was there is
/// missing, or has another path now. Returns what is missing.
fn hold_replaced(disks: &mut [ListedDisk], recorded: &[DiskStatus]) -> Vec<String> {
    let present: BTreeSet<String> = disks
        .iter()
        .filter_map(|disk| match &disk.standing {
            DiskStanding::Member { physical_volume } => Some(physical_volume.clone()),
            _ => None,
        })
        .collect();
    let mut lost = Vec::new();
    for disk in disks {
        let before = recorded
            .iter()
            .find(|before| before.path == disk.path && before.phase != phase::REJECTED);
        let Some(id) = before.and_then(|before| before.id.as_ref()) else {
            continue;
        };
        if present.contains(id) {
            if disk.standing == DiskStanding::Blank {
                disk.standing = DiskStanding::Rejected {
                    reason: format!(
                        "the disk that was at this path (physical volume {id}) is at another one now; a blank disk is \
                         here, which is not taken: list disks by a path in /dev/disk/by-id"
                    ),
                };
            }
            continue;
        }
        let serial = before.and_then(|before| before.serial.as_deref()).unwrap_or("unknown");
        lost.push(format!("{} (physical volume {id}, serial {serial})", disk.path));
        if disk.standing == DiskStanding::Blank {
            disk.standing = DiskStanding::Rejected {
                reason: format!(
                    "a blank disk is where physical volume {id} (serial {serial}) was; it is not taken, for its data may \
                     come back: to take it, wipe nothing and delete this NodeLocalStorage"
                ),
            };
        }
    }
    lost
}

/// The conditions that state a plan, once its action was done; `failed` is why it was not.
#[must_use]
pub fn findings(plan: &Plan, name: &str, exists: bool, failed: Option<&str>) -> Vec<Finding> {
    let refused: Vec<String> = plan
        .disks
        .iter()
        .filter_map(|disk| match &disk.standing {
            DiskStanding::Rejected { reason } | DiskStanding::Missing { reason } => {
                Some(format!("{}: {reason}", disk.path))
            }
            _ => None,
        })
        .collect();
    let accepted = if refused.is_empty() {
        Finding::new(
            condition::DISKS_ACCEPTED,
            true,
            "AllAccepted",
            "every listed disk is in the volume group",
        )
    } else {
        Finding::new(condition::DISKS_ACCEPTED, false, "DiskRejected", refused.join("; "))
    };
    let blocked = failed
        .map(|failed| ("LvmFailed", failed.to_owned()))
        .or_else(|| plan.blocked.clone());
    let (ready, group) = match blocked {
        Some((reason, message)) => (
            Finding::new(condition::READY, false, reason, message.clone()),
            Finding::new(condition::VOLUME_GROUP_READY, false, reason, message),
        ),
        None if exists => (
            Finding::new(
                condition::READY,
                true,
                "Ready",
                format!("volumes can be made in volume group {name}"),
            ),
            Finding::new(
                condition::VOLUME_GROUP_READY,
                true,
                "Ready",
                format!("volume group {name} is whole"),
            ),
        ),
        None => {
            let message = format!("volume group {name} is being made");
            (
                Finding::new(condition::READY, false, "Making", message.clone()),
                Finding::new(condition::VOLUME_GROUP_READY, false, "Making", message),
            )
        }
    };
    let degraded = match &plan.degraded {
        Some((reason, message)) => Finding::new(condition::DEGRADED, true, reason, message.clone()),
        None => Finding::new(condition::DEGRADED, false, "Whole", "nothing is lost"),
    };
    vec![ready, accepted, group, degraded]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn disk(path: &str, standing: DiskStanding) -> ListedDisk {
        ListedDisk {
            path: path.into(),
            device: Some(format!("/dev/{path}")),
            standing,
        }
    }

    fn member(id: &str) -> DiskStanding {
        DiskStanding::Member {
            physical_volume: id.into(),
        }
    }

    fn one(uuid: &str) -> Found {
        Found::One {
            uuid: uuid.into(),
            ours: true,
            missing: vec![],
            problem: None,
        }
    }

    fn situation(found: Found, disks: Vec<ListedDisk>) -> Situation<'static> {
        Situation {
            name: "fast",
            recorded: None,
            recorded_disks: vec![],
            found,
            incomplete: None,
            disks,
        }
    }

    #[test]
    fn blank_disks_become_a_group_and_then_extend_it() {
        let disks = vec![
            disk("a", DiskStanding::Blank),
            disk("b", DiskStanding::Rejected { reason: "ext4".into() }),
        ];
        assert_eq!(
            plan(situation(Found::None, disks)).action,
            Action::Create(vec!["/dev/a".into()])
        );
        let disks = vec![disk("a", member("pv-a")), disk("c", DiskStanding::Blank)];
        assert_eq!(
            plan(situation(one("vg"), disks)).action,
            Action::Extend(vec!["/dev/c".into()])
        );
        assert_eq!(
            plan(situation(one("vg"), vec![disk("a", member("pv-a"))])).action,
            Action::None
        );
    }

    #[test]
    fn a_disk_under_two_names_is_used_once() {
        let mut twin = disk("b", DiskStanding::Blank);
        twin.device = Some("/dev/a".into());
        let disks = vec![disk("a", DiskStanding::Blank), twin];
        assert_eq!(
            plan(situation(Found::None, disks)).action,
            Action::Create(vec!["/dev/a".into()])
        );
    }

    #[test]
    fn nothing_is_changed_in_doubt() {
        let blank = || vec![disk("a", DiskStanding::Blank)];
        let foreign = Found::One {
            uuid: "vg".into(),
            ours: false,
            missing: vec![],
            problem: None,
        };
        let partial = Found::One {
            uuid: "vg".into(),
            ours: true,
            missing: vec!["pv".into()],
            problem: None,
        };
        let exported = Found::One {
            uuid: "vg".into(),
            ours: true,
            missing: vec![],
            problem: Some("it was exported".into()),
        };
        for (mut situation, reason) in [
            (situation(foreign, blank()), "ForeignVolumeGroup"),
            (situation(Found::Several(2), blank()), "DuplicateVolumeGroupName"),
            (situation(partial, blank()), "DiskMissing"),
            (situation(exported, blank()), "VolumeGroupUnusable"),
            (situation(Found::None, vec![]), "NoDisk"),
        ] {
            let blocked = plan(situation.clone());
            assert_eq!(blocked.action, Action::None, "{reason}");
            assert_eq!(blocked.blocked.map(|(reason, _)| reason), Some(reason));
            situation.incomplete = Some("warning");
            assert_eq!(plan(situation).blocked.map(|(reason, _)| reason), Some("LvmIncomplete"));
        }
    }

    #[test]
    fn a_group_that_was_there_is_never_made_anew() {
        let mut gone = situation(Found::None, vec![disk("a", DiskStanding::Blank)]);
        gone.recorded = Some("vg-1".into());
        let held = plan(gone);
        assert_eq!(held.action, Action::None);
        assert_eq!(held.degraded.map(|(reason, _)| reason), Some("VolumeGroupMissing"));
        let mut other = situation(one("vg-2"), vec![disk("a", DiskStanding::Blank)]);
        other.recorded = Some("vg-1".into());
        assert_eq!(plan(other).action, Action::None);
    }

    #[test]
    fn a_blank_disk_where_data_was_is_not_taken() {
        let recorded = vec![DiskStatus {
            path: "a".into(),
            id: Some("pv-a".into()),
            phase: phase::CLAIMED.into(),
            ..Default::default()
        }];
        let mut swapped = situation(
            one("vg"),
            vec![disk("a", DiskStanding::Blank), disk("b", member("pv-b"))],
        );
        swapped.recorded_disks = recorded.clone();
        let held = plan(swapped);
        assert_eq!(held.action, Action::None);
        assert!(matches!(&held.disks[0].standing, DiskStanding::Rejected { reason } if reason.contains("pv-a")));
        assert!(held.degraded.is_some());
        // The same disk at another path: nothing is lost, but the newcomer is not taken either.
        let mut moved = situation(
            one("vg"),
            vec![disk("a", DiskStanding::Blank), disk("b", member("pv-a"))],
        );
        moved.recorded_disks = recorded;
        let held = plan(moved);
        assert_eq!((held.action, held.degraded), (Action::None, None));
    }

    #[test]
    fn findings_tell_what_stands_in_the_way() {
        let refused = plan(situation(
            Found::None,
            vec![disk(
                "a",
                DiskStanding::Rejected {
                    reason: "carries ext4 at offset 1080".into(),
                },
            )],
        ));
        let told = findings(&refused, "fast", false, None);
        let of = |kind: &str| told.iter().find(|finding| finding.kind == kind).expect("stated");
        assert!(!of("Ready").holds && !of("Degraded").holds);
        assert!(of("DisksAccepted").message.contains("a: carries ext4 at offset 1080"));
        let good = plan(situation(one("vg"), vec![disk("a", member("pv"))]));
        assert!(findings(&good, "fast", true, None)[0].holds);
        assert_eq!(findings(&good, "fast", true, Some("hung"))[0].reason, "LvmFailed");
    }

    fn standing() -> impl Strategy<Value = DiskStanding> {
        prop_oneof![
            Just(DiskStanding::Blank),
            "[a-c]".prop_map(|id| member(&id)),
            Just(DiskStanding::Rejected { reason: "r".into() }),
            Just(DiskStanding::Missing { reason: "m".into() }),
        ]
    }

    proptest! {
        /// Whatever the situation, LVM is only ever given devices that were found blank.
        #[test]
        fn only_blank_devices_are_given_to_lvm(
            disks in prop::collection::vec(("[a-d]", standing()), 0..6),
            recorded in prop::option::of("[v-w]"),
            found in prop_oneof![Just(Found::None), "[v-w]".prop_map(|uuid| one(&uuid)), Just(Found::Several(2))],
        ) {
            let disks: Vec<_> = disks.into_iter().map(|(path, standing)| disk(&path, standing)).collect();
            let mut given = situation(found, disks.clone());
            given.recorded = recorded;
            let (Action::Create(devices) | Action::Extend(devices)) = plan(given).action else { return Ok(()) };
            for device in devices {
                prop_assert!(disks.iter().any(|d| d.device.as_deref() == Some(&device) && d.standing == DiskStanding::Blank));
            }
        }
    }
}
