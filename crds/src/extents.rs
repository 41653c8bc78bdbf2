//! Sizes: bytes, and the extents in which a volume group hands them out. All arithmetic is checked.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A number of physical extents of one volume group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Extents(pub u64);

/// The size of one physical extent of a volume group, in bytes; never zero, never assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentSize(u64);

impl Bytes {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Gibibytes, for constants and tests; saturates.
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 30))
    }

    /// Mebibytes, for constants and tests; saturates.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 20))
    }
}

/// Writes an exact size in the largest binary unit that needs no fraction, which is also a Kubernetes quantity: `62Gi`,
/// `15996Mi`, `513`.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let mut value = self.0;
        let mut unit = 0;
        while value != 0 && value.is_multiple_of(1024) && unit + 1 < UNITS.len() {
            value /= 1024;
            unit += 1;
        }
        write!(f, "{value}{}", UNITS[unit])
    }
}

impl fmt::Display for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Extents {
    /// None.
    pub const ZERO: Self = Self(0);

    /// The sum; saturates, so that an impossible sum is never seen as small.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left after taking `other`; zero where there is less.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl std::iter::Sum for Extents {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::plus)
    }
}

impl ExtentSize {
    /// LVM's own default, 4 MiB: what a volume group that Quarry makes has.
    pub const DEFAULT: Self = Self(4 << 20);

    /// An extent size as read from a volume group; `None` for zero.
    #[must_use]
    pub const fn new(size: Bytes) -> Option<Self> {
        if size.0 == 0 { None } else { Some(Self(size.0)) }
    }

    /// Its size in bytes.
    #[must_use]
    pub const fn bytes(self) -> Bytes {
        Bytes(self.0)
    }

    /// How many extents hold that many bytes: rounded up.
    #[must_use]
    pub const fn holding(self, size: Bytes) -> Extents {
        Extents(size.0.div_ceil(self.0))
    }

    /// How many whole extents that many bytes are: rounded down.
    #[must_use]
    pub const fn within(self, size: Bytes) -> Extents {
        Extents(size.0 / self.0)
    }

    /// The size of that many extents; `None` beyond 64 bits.
    #[must_use]
    pub const fn size_of(self, extents: Extents) -> Option<Bytes> {
        match extents.0.checked_mul(self.0) {
            Some(bytes) => Some(Bytes(bytes)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn display_is_exact() {
        for (bytes, text) in [
            (0, "0"),
            (513, "513"),
            (1024, "1Ki"),
            (4 << 20, "4Mi"),
            (62 << 30, "62Gi"),
            (15996 << 20, "15996Mi"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn display_reads_back(bytes in 0..=i64::MAX as u64) {
            prop_assert_eq!(crate::quantity::parse(&Bytes(bytes).to_string()), Ok(Bytes(bytes)));
        }

        #[test]
        fn rounding_up_holds_and_wastes_less_than_one(bytes in any::<u64>(), size in 1_u64..=1 << 32) {
            let size = ExtentSize::new(Bytes(size)).expect("not zero");
            let extents = size.holding(Bytes(bytes));
            let held = u128::from(extents.0) * u128::from(size.0);
            prop_assert!(held >= u128::from(bytes));
            prop_assert!(held - u128::from(bytes) < u128::from(size.0));
            prop_assert!(size.within(Bytes(bytes)) <= extents);
        }
    }
}
