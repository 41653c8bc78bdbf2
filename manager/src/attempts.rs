//! What LVM refuses to do to a volume group is tried again ever more rarely, whatever else calls for a pass meanwhile:
//! the attempt itself makes the kernel tell of the disks that it opened.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quarry_crds::volume_group::Action;
use tokio::time::Instant;

/// So many attempts follow one another at once: what is in the way may be gone in a moment.
const AT_ONCE: u32 = 3;
/// The pause after them, twice as long each time, and at most.
const FIRST: Duration = Duration::from_secs(4);
const LONGEST: Duration = Duration::from_secs(120);

/// Failures in a row, by name of the volume group.
#[derive(Debug, Default)]
pub struct Attempts {
    failed: Mutex<HashMap<String, Failed>>,
}

#[derive(Debug)]
struct Failed {
    action: Action,
    times: u32,
    again: Instant,
    why: String,
}

impl Attempts {
    /// Why this was not done the last time, where it is too early to try it again.
    #[must_use]
    pub fn too_early(&self, group: &str, action: &Action) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let last = failed.get(group).filter(|last| last.action == *action)?;
        (Instant::now() < last.again).then(|| last.why.clone())
    }

    /// Notes how an attempt ended: why it was not done.
    pub fn note(&self, group: &str, action: &Action, why: Option<&String>) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = failed.remove(group).filter(|last| last.action == *action);
        let Some(why) = why else { return };
        let times = before.map_or(0, |last| last.times).saturating_add(1);
        let pause = match times.checked_sub(AT_ONCE) {
            None | Some(0) => Duration::ZERO,
            Some(more) => FIRST.saturating_mul(1 << (more - 1).min(16)).min(LONGEST),
        };
        let last = Failed {
            action: action.clone(),
            times,
            again: Instant::now() + pause,
            why: why.clone(),
        };
        failed.insert(group.to_owned(), last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ever_more_rarely_and_at_once_where_something_else_is_to_be_done() {
        let attempts = Attempts::default();
        let (disk, other) = (
            Action::Create(vec!["/dev/a".into()]),
            Action::Create(vec!["/dev/b".into()]),
        );
        let why = "refused".to_owned();
        let mut tried = 0;
        for _ in 0..3600 {
            if attempts.too_early("fast", &disk).is_none() {
                tried += 1;
                attempts.note("fast", &disk, Some(&why));
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((30..=40).contains(&tried), "{tried} attempts in an hour");
        assert_eq!(attempts.too_early("fast", &disk), Some(why.clone()));
        assert_eq!(attempts.too_early("fast", &other), None, "other disks");
        assert_eq!(attempts.too_early("slow", &disk), None, "another group");
        attempts.note("fast", &disk, None);
        assert_eq!(attempts.too_early("fast", &disk), None, "done, so that it begins anew");
    }
}
