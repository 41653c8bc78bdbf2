//! (being written)

/// The cases.
pub const CASES: &[crate::test::Case] = &[];
