//! One line on stderr for every step: what it does, and how long it took.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

/// A step under way.
#[derive(Debug)]
pub struct Step {
    what: String,
    begun: Instant,
}

impl Step {
    /// Begins a step and says nothing until it is over.
    pub fn quiet(what: impl Into<String>) -> Self {
        Step {
            what: what.into(),
            begun: Instant::now(),
        }
    }

    /// Begins a step that may take long, and says so.
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        eprintln!("bed: {what} ...");
        Step {
            what,
            begun: Instant::now(),
        }
    }

    /// The step is over.
    pub fn done(self) -> Duration {
        let took = self.begun.elapsed();
        eprintln!("bed: {} ({:.1} s)", self.what, took.as_secs_f64());
        took
    }

    /// The step is over, and this came of it.
    pub fn done_with(self, result: impl Display) -> Duration {
        let took = self.begun.elapsed();
        eprintln!("bed: {}: {result} ({:.1} s)", self.what, took.as_secs_f64());
        took
    }
}
