//! Where a pod's claims fit, and which of those nodes is best. The manager takes the same decision on real extents.

use std::collections::BTreeMap;
use std::fmt;

use crate::extents::{Bytes, ExtentSize, Extents};
use crate::storage_class::Scoring;

/// Scores go from 0 to this (k8s.io/kube-scheduler extender/v1 `MaxExtenderPriority`).
pub const MAX_SCORE: i64 = 10;

/// What one unbound claim of a pod asks of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// UID of the claim.
    pub claim_uid: String,
    /// Its class.
    pub class: String,
    /// At least this many bytes.
    pub size: Bytes,
}

/// One class on one node: its volume group, and what is left of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Name of the volume group, for messages.
    pub volume_group: String,
    /// LVM's UUID of it: offers of the same UUID share one space.
    pub volume_group_uuid: String,
    /// Size of one extent.
    pub extent_size: ExtentSize,
    /// All its extents.
    pub size: Extents,
    /// What is left after everything that is counted already.
    pub free: Extents,
}

/// Why a node cannot take a pod. The texts name no node, so that the scheduler can count equal ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The class does not name this node.
    NotInClass {
        /// The class.
        class: String,
    },
    /// It does, but its volume group is not (or no longer) fit for volumes.
    NotReady {
        /// The class.
        class: String,
    },
    /// Too little is left for all claims of the pod together.
    NoRoom {
        /// The volume group.
        volume_group: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInClass { class } => write!(f, "node(s) had no local storage of StorageClass {class}"),
            Self::NotReady { class } => write!(f, "node(s) had local storage of StorageClass {class} not ready"),
            Self::NoRoom { volume_group } => {
                write!(
                    f,
                    "node(s) had not enough free local storage in volume group {volume_group}"
                )
            }
        }
    }
}

/// What would be left on a node if it took the pod: the input of [`score`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// Extents left in the fullest volume group concerned.
    left: u64,
    /// All extents of that volume group.
    of: u64,
}

/// What the classes of a pod have on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The class has no NodeLocalStorage here.
    Absent,
    /// It has one that is not ready.
    NotReady,
    /// It is ready.
    Ready(Offer),
}

/// Whether all of a pod's unbound claims fit on a node together: summed per volume group, each rounded up to extents.
///
/// # Errors
/// The first reason against the node.
pub fn fits(asks: &[Ask], standing: impl Fn(&str) -> Standing) -> Result<Fit, Refusal> {
    let mut groups: BTreeMap<String, (Offer, Extents)> = BTreeMap::new();
    for ask in asks {
        let offer = match standing(&ask.class) {
            Standing::Absent => {
                return Err(Refusal::NotInClass {
                    class: ask.class.clone(),
                });
            }
            Standing::NotReady => {
                return Err(Refusal::NotReady {
                    class: ask.class.clone(),
                });
            }
            Standing::Ready(offer) => offer,
        };
        let extents = offer.extent_size.holding(ask.size);
        let sum = &mut groups
            .entry(offer.volume_group_uuid.clone())
            .or_insert_with(|| (offer, Extents::ZERO))
            .1;
        *sum = sum.plus(extents);
    }
    let mut fit = Fit { left: 1, of: 1 };
    for (offer, asked) in groups.into_values() {
        if asked > offer.free {
            return Err(Refusal::NoRoom {
                volume_group: offer.volume_group,
            });
        }
        let here = Fit {
            left: offer.free.minus(asked).0,
            of: offer.size.0.max(1),
        };
        if u128::from(here.left) * u128::from(fit.of) < u128::from(fit.left) * u128::from(here.of) {
            fit = here;
        }
    }
    Ok(fit)
}

/// How good a node is for a pod that fits: 0 to [`MAX_SCORE`].
#[must_use]
pub fn score(fit: Fit, scoring: Scoring) -> i64 {
    let share = u128::from(fit.left.min(fit.of)) * u128::from(MAX_SCORE.unsigned_abs()) / u128::from(fit.of.max(1));
    let share = i64::try_from(share).unwrap_or(MAX_SCORE);
    match scoring {
        Scoring::Spread => share,
        Scoring::Binpack => MAX_SCORE - share,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offer(group: &str, size: u64, free: u64) -> Standing {
        Standing::Ready(Offer {
            volume_group: group.into(),
            volume_group_uuid: format!("uuid-{group}"),
            extent_size: ExtentSize::DEFAULT,
            size: Extents(size),
            free: Extents(free),
        })
    }

    fn ask(class: &str, mib: u64) -> Ask {
        Ask {
            claim_uid: format!("{class}-{mib}"),
            class: class.into(),
            size: Bytes::mib(mib),
        }
    }

    #[test]
    fn claims_of_one_group_are_summed_each_rounded_up() {
        // Two claims of 5 MiB take two extents of 4 MiB each.
        let asks = [ask("a", 5), ask("b", 5)];
        assert!(fits(&asks, |_| offer("vg", 10, 4)).is_ok());
        assert_eq!(
            fits(&asks, |_| offer("vg", 10, 3)),
            Err(Refusal::NoRoom {
                volume_group: "vg".into()
            }),
            "each class alone would fit"
        );
        assert!(
            fits(&asks, |class| offer(class, 10, 2)).is_ok(),
            "groups of their own are reckoned apart"
        );
    }

    #[test]
    fn reasons_name_no_node() {
        assert_eq!(
            fits(&[ask("a", 1)], |_| Standing::Absent),
            Err(Refusal::NotInClass { class: "a".into() })
        );
        assert_eq!(
            fits(&[ask("a", 1)], |_| Standing::NotReady),
            Err(Refusal::NotReady { class: "a".into() })
        );
        let text = Refusal::NoRoom {
            volume_group: "fast".into(),
        }
        .to_string();
        assert_eq!(text, "node(s) had not enough free local storage in volume group fast");
    }

    #[test]
    fn spread_prefers_the_emptier_and_binpack_the_fuller() {
        let empty = fits(&[ask("a", 4)], |_| offer("vg", 100, 100)).expect("fits");
        let full = fits(&[ask("a", 4)], |_| offer("vg", 100, 10)).expect("fits");
        assert!(score(empty, Scoring::Spread) > score(full, Scoring::Spread));
        assert!(score(empty, Scoring::Binpack) < score(full, Scoring::Binpack));
    }

    #[test]
    fn the_fullest_group_decides() {
        let asks = [ask("roomy", 4), ask("tight", 4)];
        let fit = fits(&asks, |class| {
            if class == "roomy" {
                offer("r", 100, 100)
            } else {
                offer("t", 100, 1)
            }
        });
        assert_eq!(score(fit.expect("fits"), Scoring::Spread), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_there_is(free in 0_u64..1000, size in 0_u64..2000, asks in prop::collection::vec(0_u64..4000, 0..6)) {
            let asks: Vec<_> = asks.into_iter().map(|mib| ask("a", mib)).collect();
            let sum: u64 = asks.iter().map(|a| ExtentSize::DEFAULT.holding(a.size).0).sum();
            let result = fits(&asks, |_| offer("vg", size, free));
            prop_assert_eq!(result.is_ok(), sum <= free);
            if let Ok(fit) = result {
                for scoring in [Scoring::Spread, Scoring::Binpack] {
                    prop_assert!((0..=MAX_SCORE).contains(&score(fit, scoring)));
                }
            }
        }

        #[test]
        fn huge_sizes_do_not_overflow(sizes in prop::collection::vec(any::<u64>(), 1..5)) {
            let asks: Vec<_> = sizes.into_iter().map(|s| Ask { claim_uid: "u".into(), class: "a".into(), size: Bytes(s) }).collect();
            let _ = fits(&asks, |_| offer("vg", u64::MAX, u64::MAX));
        }
    }
}
