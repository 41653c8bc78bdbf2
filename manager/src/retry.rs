//! How long to wait before an attempt is repeated: longer at each failure in a row, per object.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// After the first failure, and at most.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// Failures in a row, by object.
#[derive(Debug, Clone, Default)]
pub struct Retry {
    failures: Arc<Mutex<HashMap<String, u32>>>,
}

impl Retry {
    /// Notes how an attempt ended.
    pub fn note(&self, key: &str, succeeded: bool) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if succeeded {
            failures.remove(key);
        } else {
            let count = failures.entry(key.to_owned()).or_default();
            *count = count.saturating_add(1);
        }
    }

    /// How long to wait before the next attempt.
    #[must_use]
    pub fn delay(&self, key: &str) -> Duration {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.get(key).copied().unwrap_or(1).clamp(1, 16);
        FIRST.saturating_mul(1 << (count - 1)).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_at_each_failure_and_forgotten_at_success() {
        let retry = Retry::default();
        let seconds = |retry: &Retry| retry.delay("a").as_secs();
        retry.note("a", false);
        assert_eq!(seconds(&retry), 1);
        retry.note("a", false);
        retry.note("a", false);
        assert_eq!(seconds(&retry), 4);
        for _ in 0..40 {
            retry.note("a", false);
        }
        assert_eq!(seconds(&retry), 300);
        retry.note("a", true);
        assert_eq!(seconds(&retry), 1);
    }
}
