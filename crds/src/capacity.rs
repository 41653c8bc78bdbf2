//! The capacity of one volume group, as manager and extender both reckon it.
//!
//! Capacity is accounted per (node, volume group UUID). What the API knows to be used is keyed by claim UID and counted
//! once, whether it is a PersistentVolume or still a claim on its way (`selected-node` set, no volume yet); nothing is
//! stored, everything is reckoned anew from the objects. A NodeLocalStorage that lags behind a new PersistentVolume does
//! not matter: it gives the size and what is used by others, not what is left.

use std::collections::BTreeMap;

use crate::extents::{ExtentSize, Extents};
use crate::node_local_storage::GroupFigures;

/// One volume group with everything in the API that uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Size of one extent.
    pub extent_size: ExtentSize,
    /// All its extents.
    pub size: Extents,
    /// Extents used by what the API does not know.
    pub reserved: Extents,
    /// Extents used by volumes and by claims on their way, by claim UID.
    used: BTreeMap<String, Extents>,
}

impl Account {
    /// An account with nothing used yet.
    #[must_use]
    pub fn new(figures: &GroupFigures) -> Self {
        Self {
            extent_size: figures.extent_size,
            size: figures.size,
            reserved: figures.reserved,
            used: BTreeMap::new(),
        }
    }

    /// Counts a volume, or a claim on its way. A UID that is counted already is counted once, at the larger size.
    pub fn count(&mut self, claim_uid: &str, extents: Extents) {
        let used = self.used.entry(claim_uid.to_owned()).or_default();
        *used = (*used).max(extents);
    }

    /// What is left for further claims; zero where more is used than there is.
    #[must_use]
    pub fn free(&self) -> Extents {
        self.size.minus(self.reserved).minus(self.used.values().copied().sum())
    }

    /// Whether a claim is counted.
    #[must_use]
    pub fn counts(&self, claim_uid: &str) -> bool {
        self.used.contains_key(claim_uid)
    }
}

/// Extents that anything outside the API uses: everything allocated or unusable, less the volumes that the API knows.
/// Zero where the sum does not come out, which can only be a moment's lag.
#[must_use]
pub fn reserved(size: Extents, free: Extents, known_volumes: impl IntoIterator<Item = Extents>) -> Extents {
    size.minus(free).minus(known_volumes.into_iter().sum())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn account(size: u64, reserved: u64) -> Account {
        Account::new(&GroupFigures {
            uuid: "u".into(),
            extent_size: ExtentSize::DEFAULT,
            size: Extents(size),
            free: Extents(0),
            reserved: Extents(reserved),
            largest: Extents(0),
        })
    }

    #[test]
    fn a_claim_is_counted_once() {
        let mut group = account(100, 10);
        group.count("a", Extents(20));
        group.count("a", Extents(20));
        group.count("b", Extents(5));
        assert_eq!(group.free(), Extents(65));
        assert!(group.counts("a") && !group.counts("c"));
    }

    #[test]
    fn more_used_than_there_is_leaves_nothing() {
        let mut group = account(10, 4);
        group.count("a", Extents(u64::MAX));
        group.count("b", Extents(u64::MAX));
        assert_eq!(group.free(), Extents::ZERO);
    }

    #[test]
    fn what_others_use_is_what_is_neither_free_nor_known() {
        assert_eq!(reserved(Extents(100), Extents(60), [Extents(30)]), Extents(10));
        assert_eq!(reserved(Extents(100), Extents(60), [Extents(70)]), Extents::ZERO);
    }

    proptest! {
        /// Whatever is counted in whatever order, what is left never exceeds what there is, and never grows by counting.
        #[test]
        fn counting_only_takes(size in 0_u64..1 << 40, reserved in 0_u64..1 << 40, claims in prop::collection::vec(("[a-f]", 0_u64..1 << 40), 0..20)) {
            let mut group = account(size, reserved);
            let mut before = group.free();
            prop_assert!(before.0 <= size);
            for (uid, extents) in claims {
                group.count(&uid, Extents(extents));
                prop_assert!(group.free() <= before);
                before = group.free();
            }
        }
    }
}
