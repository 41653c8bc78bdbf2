//! Placeholder.

pub mod lvm;
