//! `kubectl quarry`: explains to people what the extender and the managers decide. It reads and never writes.
//!
//! [`snapshot`] reads the objects once, as the extender's watches do; [`why`] takes the extender's own decision on them
//! ([`crate::decide`]), with the figures behind it, and [`help`] says what would change it; [`status`] sums the cluster
//! up. [`text`] writes both for people.

pub mod args;
pub mod help;
pub mod snapshot;
pub mod status;
pub mod text;
pub mod why;
