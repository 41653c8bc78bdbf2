//! The closing words of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::checker::{Fault, Finding};

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Kills asked for.
    pub asked: usize,
    /// Kills by what was killed.
    pub kills: BTreeMap<&'static str, usize>,
    /// How often a hostile tenant did what.
    pub hostile: BTreeMap<&'static str, usize>,
    /// How often each point was reached.
    pub points: BTreeMap<String, usize>,
    /// Claims that were made.
    pub claims: usize,
    /// What was found.
    pub findings: Vec<Finding>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// Whether it passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.findings.is_empty() && self.total() >= self.asked
    }

    fn total(&self) -> usize {
        self.kills.values().sum()
    }

    /// The line that it all comes down to.
    #[must_use]
    pub fn line(&self) -> String {
        let count = |fault| self.findings.iter().filter(|finding| finding.fault == fault).count();
        format!(
            "kills={} claims={} leaked={} lost={} overcommitted={} stuck={} corrupted={} foreign={} seconds={} \
             seed={}",
            self.total(),
            self.claims,
            count(Fault::Leaked),
            count(Fault::Lost),
            count(Fault::Overcommitted),
            count(Fault::Stuck),
            count(Fault::Corrupted),
            count(Fault::Foreign),
            self.took.as_secs(),
            self.seed
        )
    }

    /// All of it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let counts = |of: &BTreeMap<&str, usize>| {
            let counts: Vec<String> = of.iter().map(|(what, count)| format!("{what} {count}")).collect();
            counts.join(", ")
        };
        text.push_str(&format!("killed: {}\n", counts(&self.kills)));
        if !self.hostile.is_empty() {
            text.push_str(&format!("hostile: {}\n", counts(&self.hostile)));
        }
        let reached = self.points.values().filter(|count| **count > 0).count();
        text.push_str(&format!("points reached: {reached} of {}", self.points.len()));
        let never: Vec<&str> = self
            .points
            .iter()
            .filter(|(_, count)| **count == 0)
            .map(|(point, _)| point.as_str())
            .collect();
        if !never.is_empty() {
            text.push_str(&format!("; never: {}", never.join(", ")));
        }
        text.push('\n');
        for finding in &self.findings {
            text.push_str(&format!("{finding}\n"));
        }
        if !self.passed() {
            text.push_str(&format!(
                "again: make torture SEED={} KILLS={}\n",
                self.seed, self.asked
            ));
        }
        text.push_str(&self.line());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            seed: 7,
            asked: 3,
            kills: [("manager", 2), ("etcd", 1)].into(),
            hostile: [("drops", 1)].into(),
            points: [("a".to_owned(), 2), ("b".to_owned(), 0)].into(),
            claims: 9,
            findings: Vec::new(),
            took: Duration::from_millis(61_900),
        }
    }

    #[test]
    fn zeros_pass_and_anything_else_fails() {
        let mut report = report();
        let line = "kills=3 claims=9 leaked=0 lost=0 overcommitted=0 stuck=0 corrupted=0 foreign=0 seconds=61 seed=7";
        assert_eq!(report.line(), line);
        assert!(report.passed());
        assert!(report.text().contains("points reached: 1 of 2; never: b"));
        assert!(report.text().contains("hostile: drops 1\n"));
        for (fault, part) in [
            (Fault::Leaked, "leaked=1"),
            (Fault::Lost, "lost=1"),
            (Fault::Overcommitted, "overcommitted=1"),
            (Fault::Stuck, "stuck=1"),
            (Fault::Corrupted, "corrupted=1"),
            (Fault::Foreign, "foreign=1"),
        ] {
            let seen = "what was seen".to_owned();
            report.findings = vec![Finding { fault, seen }];
            assert!(!report.passed());
            assert!(report.line().contains(part), "{}", report.line());
            assert!(report.text().contains(": what was seen\n"));
            assert!(report.text().contains("again: make torture SEED=7 KILLS=3"));
        }
    }

    #[test]
    fn a_run_that_did_not_kill_what_was_asked_fails() {
        let mut report = report();
        report.asked = 4;
        assert!(!report.passed());
    }
}
