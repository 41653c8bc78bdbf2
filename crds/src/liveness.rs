//! Whether the manager of a node is at work: it renews a Lease (coordination.k8s.io/v1) of its own, and where that is
//! not seen for long, no new volume is placed on the node. Volumes that are there go on without it.
//!
//! Times of other machines are never compared: a Lease is as old as the reader's own clock says since it changed last.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::names::node_local_storage_name;

/// How often a manager renews its Lease where nothing else is said.
pub const RENEWED_EVERY: Duration = Duration::from_secs(60);
/// For how long it is missed before it counts as silent where nothing else is said: three renewals.
pub const SILENT_AFTER: Duration = Duration::from_secs(180);

/// Whoever heard of no Lease at all for this long is deaf, and says nothing of anybody: the extender that leads renews
/// one every few seconds.
const DEAF_AFTER: Duration = Duration::from_secs(30);
/// What the names of all Leases of managers begin with.
const PREFIX: &str = "manager";

/// The name of the Lease of a node's manager, in the namespace that the manager runs in.
#[must_use]
pub fn lease_name(node: &str) -> String {
    node_local_storage_name(PREFIX, node)
}

/// Whether a Lease of that name is one of a manager.
#[must_use]
pub fn is_manager_lease(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| rest.starts_with('.'))
}

/// A Lease as it was seen last.
#[derive(Debug)]
struct Beat {
    node: String,
    version: String,
    since: Instant,
}

/// What was heard of managers.
#[derive(Debug, Default)]
pub struct Heard {
    beats: HashMap<String, Beat>,
    last: Option<Instant>,
}

impl Heard {
    /// All Leases are about to be listed anew: nobody knows what was said meanwhile, so every manager's time begins again.
    pub fn listing(&mut self) {
        self.beats.clear();
    }

    /// A Lease was seen. `holder` is the node of a manager's Lease, and `None` for a Lease of anybody else.
    pub fn lease(&mut self, name: &str, holder: Option<&str>, version: &str, now: Instant) {
        self.last = Some(now);
        let Some(node) = holder else {
            return;
        };
        match self.beats.get_mut(name) {
            Some(beat) if beat.version == version && beat.node == node => {}
            _ => {
                let beat = Beat {
                    node: node.to_owned(),
                    version: version.to_owned(),
                    since: now,
                };
                self.beats.insert(name.to_owned(), beat);
            }
        }
    }

    /// A Lease is gone: nothing is known of its manager any more.
    pub fn gone(&mut self, name: &str, now: Instant) {
        self.last = Some(now);
        self.beats.remove(name);
    }

    /// The nodes whose manager was not heard of for this long. A node without a Lease is none of them: its manager may be
    /// of a version that has none.
    #[must_use]
    pub fn silent(&self, after: Duration, now: Instant) -> BTreeSet<String> {
        let deaf = self.last.is_none_or(|last| now.duration_since(last) > DEAF_AFTER);
        if deaf {
            return BTreeSet::new();
        }
        let old = self
            .beats
            .values()
            .filter(|beat| now.duration_since(beat.since) > after);
        old.map(|beat| beat.node.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        // One moment that all times of a test are counted from.
        static BEGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *BEGIN.get_or_init(Instant::now) + Duration::from_secs(seconds)
    }

    fn silent(heard: &Heard, seconds: u64) -> Vec<String> {
        heard.silent(SILENT_AFTER, at(seconds)).into_iter().collect()
    }

    #[test]
    fn a_manager_that_is_not_heard_of_is_silent_until_it_is() {
        let mut heard = Heard::default();
        for (name, node) in [("manager.w1", "w1"), ("manager.w2", "w2")] {
            heard.lease(name, Some(node), "1", at(0));
        }
        for (step, seconds) in (60..=240).step_by(60).enumerate() {
            heard.lease("manager.w1", Some("w1"), &format!("{step}"), at(seconds));
            // The same state again says nothing new.
            heard.lease("manager.w2", Some("w2"), "1", at(seconds));
        }
        assert_eq!(silent(&heard, 180), Vec::<String>::new());
        assert_eq!(silent(&heard, 241), ["w2"]);
        heard.lease("manager.w2", Some("w2"), "2", at(242));
        assert_eq!(silent(&heard, 243), Vec::<String>::new());
    }

    #[test]
    fn who_hears_nothing_at_all_accuses_nobody() {
        let mut heard = Heard::default();
        assert_eq!(silent(&heard, 1000), Vec::<String>::new());
        heard.lease("manager.w1", Some("w1"), "1", at(0));
        assert_eq!(silent(&heard, 1000), Vec::<String>::new(), "the watch is broken");
        heard.lease("cleanup", None, "7", at(1000));
        assert_eq!(silent(&heard, 1001), ["w1"]);
        // The watch was broken and begins anew: what was said meanwhile was not heard.
        heard.listing();
        heard.lease("manager.w1", Some("w1"), "1", at(1002));
        assert_eq!(silent(&heard, 1003), Vec::<String>::new());
    }

    #[test]
    fn a_lease_that_is_gone_says_nothing_of_its_manager() {
        let mut heard = Heard::default();
        heard.lease("manager.w1", Some("w1"), "1", at(0));
        heard.gone("manager.w1", at(300));
        assert_eq!(silent(&heard, 301), Vec::<String>::new());
    }

    #[test]
    fn names_of_leases() {
        assert_eq!(lease_name("w1.example"), "manager.w1.example");
        assert!(lease_name(&"n".repeat(253)).len() <= 253);
        assert!(is_manager_lease(&lease_name(&"n".repeat(253))));
        assert!(!is_manager_lease("quarry-cleanup") && !is_manager_lease("managers"));
    }
}
