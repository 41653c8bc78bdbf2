//! Where a pod's claims fit, and which of those nodes is best. The manager takes the same decision on real extents.

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Which of the node's volume groups: offers of the same one share one space.
    pub group: usize,
    /// Size of one extent.
    pub extent_size: ExtentSize,
    /// All its extents.
    pub size: Extents,
    /// What is left after everything that is counted already.
    pub free: Extents,
}

/// Why a node cannot take a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The class of the ask at this position does not name this node.
    NotInClass(usize),
    /// It does, but its volume group is not (or no longer) fit for volumes.
    NotReady(usize),
    /// The manager of the node was not heard of for long, and a volume that is placed there may wait for ever.
    Silent,
    /// LVM's metadata area has no room for one more volume of this ask's class, however small.
    MetadataFull(usize),
    /// Too little is left in this volume group of the node for all claims of the pod together.
    NoRoom(usize),
}

impl Refusal {
    /// The text, with the name of the class or volume group that it speaks of. It names no node, so that the scheduler can count equal ones.
    #[must_use]
    pub fn text(self, subject: &str) -> String {
        match self {
            Self::NotInClass(_) => format!("node(s) had no local storage of StorageClass {subject}"),
            Self::NotReady(_) => format!("node(s) had local storage of StorageClass {subject} not ready"),
            Self::Silent => "node(s) had no Quarry manager at work".to_owned(),
            Self::MetadataFull(_) => {
                format!("node(s) had no room for another volume in the LVM metadata of StorageClass {subject}")
            }
            Self::NoRoom(_) => format!("node(s) had not enough free local storage in volume group {subject}"),
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

/// What a class of a pod has on one node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Standing {
    /// The class has no NodeLocalStorage here.
    #[default]
    Absent,
    /// It has one that is not ready.
    NotReady,
    /// It has one, and the manager that would make the volume is silent.
    Silent,
    /// It has one whose volume group holds as many volumes as its metadata area can.
    MetadataFull,
    /// It is ready.
    Ready(Offer),
}

/// What a pod's unbound claims ask of one volume group of a node together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The volume group, and what is left of it.
    pub offer: Offer,
    /// The sum of the claims, each rounded up to extents.
    pub asked: Extents,
}

impl Demand {
    /// What is missing in it; zero where there is room.
    #[must_use]
    pub const fn missing(&self) -> Extents {
        self.asked.minus(self.offer.free)
    }

    fn of(at: usize, ask: &Ask, standing: Standing) -> Result<Self, Refusal> {
        match standing {
            Standing::Absent => Err(Refusal::NotInClass(at)),
            Standing::NotReady => Err(Refusal::NotReady(at)),
            Standing::Silent => Err(Refusal::Silent),
            Standing::MetadataFull => Err(Refusal::MetadataFull(at)),
            Standing::Ready(offer) => Ok(Self {
                offer,
                asked: offer.extent_size.holding(ask.size),
            }),
        }
    }

    fn fit(&self) -> Result<Fit, Refusal> {
        if self.asked > self.offer.free {
            return Err(Refusal::NoRoom(self.offer.group));
        }
        Ok(Fit {
            left: self.offer.free.minus(self.asked).0,
            of: self.offer.size.0.max(1),
        })
    }
}

impl Fit {
    /// Nothing is asked.
    const WHOLE: Self = Self { left: 1, of: 1 };

    /// The one with the smaller share left; this one where they are equal.
    fn fuller(self, other: Self) -> Self {
        if u128::from(other.left) * u128::from(self.of) < u128::from(self.left) * u128::from(other.of) {
            other
        } else {
            self
        }
    }
}

/// What a pod's unbound claims ask of each volume group of a node, summed per volume group. `standing` tells how the class
/// of the ask at a position stands there.
///
/// # Errors
/// A class has nothing on the node that could be asked for.
pub fn demands(asks: &[Ask], standing: impl Fn(usize) -> Standing) -> Result<Vec<Demand>, Refusal> {
    let mut groups: Vec<Demand> = Vec::with_capacity(asks.len());
    for (at, ask) in asks.iter().enumerate() {
        let demand = Demand::of(at, ask, standing(at))?;
        match groups.iter_mut().find(|other| other.offer.group == demand.offer.group) {
            Some(sum) => sum.asked = sum.asked.plus(demand.asked),
            None => groups.push(demand),
        }
    }
    Ok(groups)
}

/// Whether all of a pod's unbound claims fit on a node together: summed per volume group, each rounded up to extents.
///
/// # Errors
/// The first reason against the node.
pub fn fits(asks: &[Ask], standing: impl Fn(usize) -> Standing) -> Result<Fit, Refusal> {
    // Nearly every pod has one claim, and there are thousands of nodes: nothing is set aside for a sum.
    if let [ask] = asks {
        return Ok(Fit::WHOLE.fuller(Demand::of(0, ask, standing(0))?.fit()?));
    }
    let mut fit = Fit::WHOLE;
    for demand in demands(asks, standing)? {
        fit = fit.fuller(demand.fit()?);
    }
    Ok(fit)
}

/// How good a node is for a pod that fits: 0 to [`MAX_SCORE`].
#[must_use]
pub fn score(fit: Fit, scoring: Scoring) -> i64 {
    let (left, of, most) = (fit.left.min(fit.of), fit.of.max(1), MAX_SCORE.unsigned_abs());
    // A division of 128 bits is ten times as long as one of 64, and no volume group needs it.
    let share = match left.checked_mul(most) {
        Some(left) => left / of,
        None => u64::try_from(u128::from(left) * u128::from(most) / u128::from(of)).unwrap_or(most),
    };
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

    fn offer(group: usize, size: u64, free: u64) -> Standing {
        Standing::Ready(Offer {
            group,
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
        assert!(fits(&asks, |_| offer(0, 10, 4)).is_ok());
        assert_eq!(
            fits(&asks, |_| offer(0, 10, 3)),
            Err(Refusal::NoRoom(0)),
            "each class alone would fit"
        );
        assert!(
            fits(&asks, |at| offer(at, 10, 2)).is_ok(),
            "groups of their own are reckoned apart"
        );
    }

    #[test]
    fn reasons_name_no_node() {
        let asks = [ask("a", 1)];
        let text = |standing| {
            let refusal = fits(&asks, |_| standing).expect_err("refused");
            refusal.text(if refusal == Refusal::NoRoom(0) { "fast" } else { "a" })
        };
        assert_eq!(text(Standing::Absent), "node(s) had no local storage of StorageClass a");
        assert_eq!(
            text(Standing::NotReady),
            "node(s) had local storage of StorageClass a not ready"
        );
        assert_eq!(text(Standing::Silent), "node(s) had no Quarry manager at work");
        assert_eq!(
            text(Standing::MetadataFull),
            "node(s) had no room for another volume in the LVM metadata of StorageClass a"
        );
        assert_eq!(
            text(offer(0, 10, 0)),
            "node(s) had not enough free local storage in volume group fast"
        );
    }

    #[test]
    fn spread_prefers_the_emptier_and_binpack_the_fuller() {
        let empty = fits(&[ask("a", 4)], |_| offer(0, 100, 100)).expect("fits");
        let full = fits(&[ask("a", 4)], |_| offer(0, 100, 10)).expect("fits");
        assert!(score(empty, Scoring::Spread) > score(full, Scoring::Spread));
        assert!(score(empty, Scoring::Binpack) < score(full, Scoring::Binpack));
    }

    #[test]
    fn the_fullest_group_decides() {
        let asks = [ask("roomy", 4), ask("tight", 4)];
        let fit = fits(&asks, |at| {
            if asks[at].class == "roomy" {
                offer(0, 100, 100)
            } else {
                offer(1, 100, 1)
            }
        });
        assert_eq!(score(fit.expect("fits"), Scoring::Spread), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_there_is(free in 0_u64..1000, size in 0_u64..2000, asks in prop::collection::vec(0_u64..4000, 0..6)) {
            let asks: Vec<_> = asks.into_iter().map(|mib| ask("a", mib)).collect();
            let sum: u64 = asks.iter().map(|a| ExtentSize::DEFAULT.holding(a.size).0).sum();
            let result = fits(&asks, |_| offer(0, size, free));
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
            let _ = fits(&asks, |_| offer(0, u64::MAX, u64::MAX));
        }
    }
}
