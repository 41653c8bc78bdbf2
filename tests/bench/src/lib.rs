//! Measures Quarry against its goals: one table, and `target/bench/results.json`. See `docs/performance.md`.
//!
//! Each group of figures has a file of its own. What needs no cluster comes first.

pub mod burst;
mod counts;
pub mod extender;
pub mod figure;
pub mod fleet;
pub mod index;
pub mod memory;
mod processor;
pub mod run;
pub mod samples;
pub mod scheduling;
pub mod volumes;
pub mod watches;
pub mod world;

pub use run::run;
