//! How often claims were answered for in vain: a node was offered, and none was ever selected.
//!
//! Between an answer and the annotation a pod counts on each node that it was offered. Where its attempts fail again and
//! again before the annotation is written, for example because somebody changes its claim all the time, it would hold
//! room on every node for as long as it likes. So after the third time it is offered fewer nodes each time, and then none
//! for a while: it counts nowhere that it is not offered, and no burst is promised more for that than there is.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::answered::Pending;

/// How many nodes a pod is offered, by how often one of its claims was answered for in vain.
const NODES: [usize; 6] = [usize::MAX, usize::MAX, usize::MAX, 8, 2, 1];
/// From so many answers in vain on, the next one is given only after a rest.
const RESTS: u32 = 5;
/// The first rest: twice as long as a pod is remembered.
const FIRST_REST: Duration = Duration::from_secs(20);
/// The longest.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// How often claims were answered for in vain, by UID.
#[derive(Debug, Default)]
pub struct Attempts(HashMap<String, Tried>);

#[derive(Debug)]
struct Tried {
    /// Key of the claim.
    key: String,
    times: u32,
    last: Instant,
}

/// What a pod may be offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// At most so many nodes.
    pub nodes: usize,
    /// Nothing, before.
    pub not_before: Option<Instant>,
}

impl Attempts {
    /// What a pod with these claims may be offered. What was long ago is forgiven.
    #[must_use]
    pub fn allowance(&self, claims: &[Pending], now: Instant, forgiven: Duration) -> Allowance {
        let tried = claims.iter().filter_map(|claim| self.0.get(&claim.uid));
        let tried = tried.filter(|tried| now.duration_since(tried.last) < forgiven);
        let Some(most) = tried.max_by_key(|tried| tried.times) else {
            return Allowance {
                nodes: usize::MAX,
                not_before: None,
            };
        };
        let at = usize::try_from(most.times).unwrap_or(usize::MAX).min(NODES.len() - 1);
        let rest = most.times.checked_sub(RESTS).map(|more| {
            let rest = FIRST_REST.saturating_mul(1 << more.min(16));
            most.last + rest.min(LONGEST_REST)
        });
        Allowance {
            nodes: NODES[at],
            not_before: rest,
        }
    }

    /// A claim was answered for once more.
    pub fn note(&mut self, claim: &Pending, now: Instant, forgiven: Duration) {
        let Some(tried) = self.0.get_mut(&claim.uid) else {
            let tried = Tried {
                key: claim.key.clone(),
                times: 1,
                last: now,
            };
            self.0.insert(claim.uid.clone(), tried);
            return;
        };
        let counts = now.duration_since(tried.last) < forgiven;
        tried.times = if counts { tried.times.saturating_add(1) } else { 1 };
        tried.last = now;
    }

    /// A node was selected for the claim, so that nothing was in vain.
    pub fn forget(&mut self, claim_uid: &str) {
        self.0.remove(claim_uid);
    }

    /// Keeps only claims of which this holds, by key and UID, and what is not forgiven.
    pub fn retain(&mut self, now: Instant, forgiven: Duration, holds: impl Fn(&str, &str) -> bool) {
        self.0
            .retain(|uid, tried| now.duration_since(tried.last) < forgiven && holds(&tried.key, uid));
    }
}
