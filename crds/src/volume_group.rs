//! What is to be done so that a volume group on a node becomes what its NodeLocalStorages say, and how it stands.

use std::collections::BTreeSet;

use crate::conditions::Finding;
use crate::names::LOST_GROUP_ANNOTATION;
use crate::node_local_storage::{DiskStatus, condition};

/// How a disk that is listed for a volume group stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskStanding {
    /// It carries nothing and may be taken.
    Blank,
    /// It carries nothing, and may be taken once nobody has used it for a while: a selector has chosen it, and whoever attached
    /// it may be about to use it.
    Waiting {
        /// What it waits for.
        reason: String,
    },
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
    /// It could not be read, so what it is is not known; a plan says whether it is missing or refused.
    Unreadable {
        /// What went wrong.
        reason: String,
    },
    /// There is no such device, or one that was in the volume group cannot be read.
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
    /// One that another version of Quarry made, with the tag that says so.
    OtherVersion(String),
    /// One of Quarry that another node owns, by its tags.
    OfAnotherNode {
        /// The tags that say so.
        tags: Vec<String>,
        /// The command that hands it over to this node.
        hand_over: String,
    },
}

impl Found {
    /// One that is on a disk which is not listed, so that nothing is known of it but its name.
    #[must_use]
    pub const fn elsewhere() -> Self {
        Self::One {
            uuid: String::new(),
            ours: false,
            missing: Vec::new(),
            problem: None,
        }
    }
}

/// A volume group that was on this node, by what objects say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Known {
    /// LVM's UUID of it.
    pub uuid: String,
    /// machine-id of the machine that it was on, where it is known.
    pub machine: Option<String>,
}

impl Known {
    /// Whether it was certainly on another machine than this.
    fn is_of_another(&self, machine: Option<&str>) -> bool {
        matches!((&self.machine, machine), (Some(then), Some(now)) if then != now)
    }
}

/// What is known about a volume group and its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation<'a> {
    /// Name of the volume group.
    pub name: &'a str,
    /// The volume group that this was before, as the status recorded it.
    pub recorded: Option<Known>,
    /// The volume groups of this name that PersistentVolumes of this node are in. They outlive the status: it goes with
    /// a node that is gone, and with a class.
    pub held: Vec<Known>,
    /// machine-id of this machine, where it is known.
    pub machine: Option<&'a str>,
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
        held: in_use,
        machine,
        recorded_disks,
        found,
        incomplete,
        mut disks,
    } = situation;
    let mut degraded = None;
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
        Found::OtherVersion(tag) => held(
            "OtherVersion",
            format!(
                "volume group {name} was made by another version of Quarry (tag {tag}) and is left alone; run that \
                 version on this node"
            ),
            degraded,
        ),
        Found::OfAnotherNode { tags, hand_over } => held(
            "OwnedByAnotherNode",
            format!(
                "volume group {name} belongs to another node ({}) and is left alone; if nothing there uses it any more, hand \
                 it over with \"{hand_over}\" on this node",
                tags.join(", ")
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
        Found::One { uuid, .. } if let Some(lost) = recorded.as_ref().filter(|recorded| recorded.uuid != uuid) => {
            let reason = if lost.is_of_another(machine) {
                NODE_REPLACED
            } else {
                "VolumeGroupReplaced"
            };
            let message = format!("volume group {name} has UUID {uuid}, but was {} before", lost.uuid);
            let gone = format!("the volume group that was here, {}, is gone", lost.uuid);
            held(reason, format!("{message}; {}", to_accept(lost)), Some((reason, gone)))
        }
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
        Found::One { uuid, .. } => {
            // It serves new volumes, and those that are in another group of its name are told of.
            let lost = in_use.iter().find(|known| known.uuid != uuid);
            let degraded = degraded.or_else(|| {
                let lost = lost?;
                let reason = if lost.is_of_another(machine) {
                    NODE_REPLACED
                } else {
                    "VolumeGroupReplaced"
                };
                let message = format!(
                    "PersistentVolumes of this node are in the volume group {}, which is not here; {}",
                    lost.uuid,
                    to_accept(lost)
                );
                Some((reason, message))
            });
            Plan {
                action: if blank.is_empty() {
                    Action::None
                } else {
                    Action::Extend(blank)
                },
                disks,
                blocked: None,
                degraded,
            }
        }
        Found::None => {
            if let Some(lost) = recorded.as_ref().or(in_use.first()) {
                let (reason, what) = if lost.is_of_another(machine) {
                    let then = lost.machine.as_deref().unwrap_or_default();
                    let now = machine.unwrap_or_default();
                    let what = format!(
                        "volume group {name} ({}) was on the machine {then}, and this is another of the same name, {now}: \
                         its volumes are not here, and nothing is made in their place",
                        lost.uuid
                    );
                    (NODE_REPLACED, what)
                } else {
                    let what = format!("volume group {name} ({}) is gone with its disks", lost.uuid);
                    ("VolumeGroupMissing", what)
                };
                let message = format!("{what}; {}", to_accept(lost));
                return held(reason, message.clone(), Some((reason, message)));
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

/// Another machine has the name of this node.
pub const NODE_REPLACED: &str = "NodeReplaced";

/// Whether a finding says that a whole volume group is lost, and its volumes with it.
#[must_use]
pub fn is_loss(reason: &str) -> bool {
    [NODE_REPLACED, "VolumeGroupMissing", "VolumeGroupReplaced"].contains(&reason)
}

/// How a person says that a volume group will not come back.
fn to_accept(lost: &Known) -> String {
    format!(
        "if it is lost for good, say so: annotate this NodeLocalStorage with {LOST_GROUP_ANNOTATION}={}, and the disks \
         that are here are used",
        lost.uuid
    )
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
        let before = recorded.iter().find(|before| before.path == disk.path);
        if let DiskStanding::Unreadable { reason } = disk.standing.clone() {
            let there = before.and_then(|before| before.id.as_ref()).is_some();
            disk.standing = if there {
                DiskStanding::Missing { reason }
            } else {
                DiskStanding::Rejected { reason }
            };
        }
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

/// Blank disks that nothing but a selector has chosen wait, unless they are `settled`: there, unchanged and unused for long enough.
pub fn hold_selected<'a>(
    disks: impl IntoIterator<Item = &'a mut ListedDisk>,
    selected: &BTreeSet<String>,
    settled: &BTreeSet<String>,
) {
    for disk in disks {
        if disk.standing == DiskStanding::Blank && selected.contains(&disk.path) && !settled.contains(&disk.path) {
            disk.standing = DiskStanding::Waiting {
                reason: "is blank and was chosen by a selector; it is taken once nobody has used or changed it for a while; to \
                         take it at once, list it by its path"
                    .to_owned(),
            };
        }
    }
}

/// The conditions that state a plan, once its action was done; `failed` is what went wrong with LVM, reason and message.
#[must_use]
pub fn findings(plan: &Plan, name: &str, exists: bool, failed: Option<(&'static str, String)>) -> Vec<Finding> {
    let refused: Vec<String> = plan
        .disks
        .iter()
        .filter_map(|disk| match &disk.standing {
            DiskStanding::Rejected { reason }
            | DiskStanding::Missing { reason }
            | DiskStanding::Unreadable { reason }
            | DiskStanding::Waiting { reason } => Some(format!("{}: {reason}", disk.path)),
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
        // Of many, not all fit into a condition.
        let count = match refused.len() {
            1 => String::new(),
            many => format!("{many} of {} listed disks, see status.disks; ", plan.disks.len()),
        };
        let message = format!("{count}{}", refused.join("; "));
        let waits = |disk: &ListedDisk| matches!(disk.standing, DiskStanding::Waiting { .. });
        let only_waiting = plan.disks.iter().filter(|disk| waits(disk)).count() == refused.len();
        let reason = if only_waiting { "DiskWaiting" } else { "DiskRejected" };
        Finding::new(condition::DISKS_ACCEPTED, false, reason, message)
    };
    let blocked = failed.or_else(|| plan.blocked.clone());
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
#[path = "volume_group_tests.rs"]
mod tests;
