//! How long to wait before an attempt is repeated: longer at each failure in a row, per object.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// After the first failure, and at most.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
/// Where the API server did not answer: nothing is wrong with the object, and it is served soon after the API server is
/// back.
const UNANSWERED: Duration = Duration::from_secs(5);
/// Who was not tried for so long is not there any more: an object that fails is tried again before.
const FORGOTTEN: Duration = Duration::from_secs(2 * 300);

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All was done.
    Done,
    /// Something is wrong with the object, or with what it is about.
    Failed,
    /// The API server did not answer.
    Unanswered,
}

/// Failures in a row, by object.
#[derive(Debug, Clone, Default)]
pub struct Retry {
    failures: Arc<Mutex<HashMap<String, Failures>>>,
}

#[derive(Debug)]
struct Failures {
    count: u32,
    last: Outcome,
    at: Instant,
}

impl Retry {
    /// Notes how an attempt ended. Objects that are not tried any more are forgotten: they were deleted.
    pub fn note(&self, key: &str, outcome: Outcome) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if outcome == Outcome::Done {
            failures.remove(key);
            return;
        }
        let now = Instant::now();
        failures.retain(|_, known| now.duration_since(known.at) < FORGOTTEN);
        let known = failures.entry(key.to_owned()).or_insert(Failures {
            count: 0,
            last: outcome,
            at: now,
        });
        known.count = known.count.saturating_add(u32::from(outcome == Outcome::Failed));
        (known.last, known.at) = (outcome, now);
    }

    /// How long to wait before the next attempt.
    #[must_use]
    pub fn delay(&self, key: &str) -> Duration {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match failures.get(key) {
            Some(known) if known.last == Outcome::Unanswered => UNANSWERED,
            known => {
                let count = known.map_or(1, |known| known.count).clamp(1, 16);
                FIRST.saturating_mul(1 << (count - 1)).min(LONGEST)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn longer_at_each_failure_and_forgotten_at_success() {
        let retry = Retry::default();
        let seconds = |retry: &Retry| retry.delay("a").as_secs();
        retry.note("a", Outcome::Failed);
        assert_eq!(seconds(&retry), 1);
        retry.note("a", Outcome::Failed);
        retry.note("a", Outcome::Failed);
        assert_eq!(seconds(&retry), 4);
        for _ in 0..40 {
            retry.note("a", Outcome::Failed);
        }
        assert_eq!(seconds(&retry), 300);
        retry.note("a", Outcome::Done);
        assert_eq!(seconds(&retry), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_does_not_answer_makes_nothing_wait_longer() {
        let retry = Retry::default();
        retry.note("a", Outcome::Failed);
        retry.note("a", Outcome::Failed);
        for _ in 0..40 {
            retry.note("a", Outcome::Unanswered);
            assert_eq!(retry.delay("a"), UNANSWERED);
        }
        retry.note("a", Outcome::Failed);
        assert_eq!(retry.delay("a").as_secs(), 4, "what failed before is not forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_deleted_is_forgotten() {
        let retry = Retry::default();
        for number in 0..1000 {
            retry.note(&format!("gone-{number}"), Outcome::Failed);
        }
        retry.note("there", Outcome::Failed);
        for _ in 0..3 {
            tokio::time::advance(LONGEST).await;
            retry.note("there", Outcome::Failed);
        }
        let known = retry.failures.lock().expect("not poisoned").len();
        assert_eq!((known, retry.delay("there").as_secs()), (1, 8));
    }
}
