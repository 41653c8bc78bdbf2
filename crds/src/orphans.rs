//! Logical volumes of ours that no object stands for, and when one of them may be removed.
//!
//! Over-eager removal of such volumes has destroyed live data elsewhere, so it is off unless asked for, and then needs
//! proof: in several sweeps in a row, over a time that an administrator chose, the API server itself knew neither the
//! PersistentVolume nor the claim; nobody has the volume open; and its class, which is still there, does not retain.

use std::time::Duration;

use crate::tags::VolumeState;

/// What is done about orphans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// They are reported.
    #[default]
    Report,
    /// They are reported, and removed where all of the proof is there.
    Delete,
}

/// What is known of an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence<'a> {
    /// In how many sweeps in a row, this one included, the API server knew nothing of it.
    pub sweeps: u32,
    /// What its tags say.
    pub state: VolumeState,
    /// Whether somebody has it open; `None` where LVM cannot tell.
    pub open: Option<bool>,
    /// Whether a part of it is on a missing disk.
    pub partial: bool,
    /// Whether it has the name that Quarry gave it.
    pub named: bool,
    /// The reclaim policy of the class that it was made by; `None` where there is no such class.
    pub reclaim: Option<&'a str>,
    /// How many volumes of the node the API server knows nothing of, this one included.
    pub at_once: usize,
}

/// So many volumes of a node lose their objects one by one; more have lost them together, as where etcd was restored to an
/// earlier moment: their pods may run.
const ONE_BY_ONE: usize = 3;

/// Whether so many orphans of a node have lost their objects together.
#[must_use]
pub const fn is_mass(at_once: usize) -> bool {
    at_once > ONE_BY_ONE
}

/// What is to be done about an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet: its objects may appear.
    Wait,
    /// It is reported, and stays, for this reason.
    Report(&'static str),
    /// It is removed.
    Remove,
}

/// How far sweeps are apart: a twelfth of the grace period, within bounds.
#[must_use]
pub fn interval(grace: Duration) -> Duration {
    (grace / 12).clamp(Duration::from_secs(5), Duration::from_secs(300))
}

/// How many sweeps in a row last as long as the grace period, at least two. Sweeps are counted and no clock is read: one
/// that jumps, or a node that slept, must not make a volume older than it was seen to be.
#[must_use]
pub fn sweeps_of(grace: Duration) -> u32 {
    let sweeps = grace.as_secs().div_ceil(interval(grace).as_secs().max(1));
    u32::try_from(sweeps).unwrap_or(u32::MAX).saturating_add(1).max(2)
}

/// Decides about one orphan.
#[must_use]
pub fn verdict(policy: Policy, grace: Duration, evidence: &Evidence<'_>) -> Verdict {
    if evidence.sweeps < 2 {
        return Verdict::Wait;
    }
    if policy == Policy::Report {
        return Verdict::Report("orphans are reported only");
    }
    let Evidence {
        sweeps,
        state,
        open,
        partial,
        named,
        reclaim,
        at_once,
    } = *evidence;
    if state == VolumeState::Retained {
        return Verdict::Report("it was retained");
    }
    if state != VolumeState::Ready {
        return Verdict::Report("it is being made or removed");
    }
    if is_mass(at_once) {
        return Verdict::Report("many volumes of the node lost their objects at once, as when etcd was restored");
    }
    match reclaim {
        None => return Verdict::Report("its class is gone, so that nobody says whether it is to be retained"),
        Some("Delete") => {}
        Some(_) => return Verdict::Report("its class retains"),
    }
    if !named {
        return Verdict::Report("it was renamed");
    }
    if open != Some(false) {
        return Verdict::Report("it is open, or that is not known");
    }
    if partial {
        return Verdict::Report("a disk of it is missing");
    }
    if sweeps < sweeps_of(grace) {
        return Verdict::Report("the grace period is not over");
    }
    Verdict::Remove
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn proven() -> Evidence<'static> {
        Evidence {
            sweeps: 13,
            state: VolumeState::Ready,
            open: Some(false),
            partial: false,
            named: true,
            reclaim: Some("Delete"),
            at_once: 3,
        }
    }

    #[test]
    fn removal_needs_every_part_of_the_proof_and_to_be_asked_for() {
        assert_eq!(verdict(Policy::Delete, HOUR, &proven()), Verdict::Remove);
        let lacking = [
            Evidence { sweeps: 12, ..proven() },
            Evidence {
                state: VolumeState::Retained,
                ..proven()
            },
            Evidence {
                state: VolumeState::Creating,
                ..proven()
            },
            Evidence {
                state: VolumeState::Deleting,
                ..proven()
            },
            Evidence {
                open: Some(true),
                ..proven()
            },
            Evidence { open: None, ..proven() },
            Evidence {
                partial: true,
                ..proven()
            },
            Evidence {
                named: false,
                ..proven()
            },
            Evidence {
                reclaim: Some("Retain"),
                ..proven()
            },
            Evidence {
                reclaim: None,
                ..proven()
            },
            Evidence { at_once: 4, ..proven() },
        ];
        for evidence in lacking {
            let verdict = verdict(Policy::Delete, HOUR, &evidence);
            assert!(matches!(verdict, Verdict::Report(_)), "{evidence:?}: {verdict:?}");
        }
        assert!(matches!(verdict(Policy::Report, HOUR, &proven()), Verdict::Report(_)));
    }

    #[test]
    fn one_sweep_is_no_proof_of_anything() {
        for policy in [Policy::Report, Policy::Delete] {
            let evidence = Evidence { sweeps: 1, ..proven() };
            assert_eq!(verdict(policy, Duration::ZERO, &evidence), Verdict::Wait);
        }
        assert_eq!(
            verdict(Policy::Delete, Duration::ZERO, &Evidence { sweeps: 2, ..proven() }),
            Verdict::Remove
        );
    }

    #[test]
    fn so_many_sweeps_last_at_least_as_long_as_the_grace_period() {
        for seconds in [0, 1, 5, 59, 60, 61, 3600, 86_400] {
            let grace = Duration::from_secs(seconds);
            let lasts = interval(grace) * (sweeps_of(grace) - 1);
            assert!(lasts >= grace, "{seconds} s: {lasts:?}");
        }
        assert_eq!((sweeps_of(HOUR), interval(HOUR)), (13, Duration::from_secs(300)));
    }
}
