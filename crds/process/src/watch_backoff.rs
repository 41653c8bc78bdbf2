//! How long a watch that failed waits before it is tried again.

use std::time::Duration;

use kube::runtime::utils::Backoff;
use tokio::time::Instant;

/// After the first failure, and at most: an API server that is back is heard of well within a minute, whatever came before.
const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(12);
/// A failure so long after the last one is a first one.
const CALM: Duration = Duration::from_secs(120);

/// Waits twice as long at each failure in a row, and up to half as long again, so that not all who lost the same API server
/// come back at once.
#[derive(Debug, Default)]
pub struct WatchBackoff {
    last: Option<(Instant, Duration)>,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let pause = match self.last {
            Some((at, pause)) if now.duration_since(at) < CALM => (pause * 2).min(LONGEST),
            _ => FIRST,
        };
        self.last = Some((now, pause));
        Some(pause.mul_f64(1.0 + fastrand::f64() / 2.0))
    }
}

impl Backoff for WatchBackoff {
    /// A watch that works for a moment between two failures does not work: only time tells.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn longer_at_each_failure_and_never_long() {
        let mut backoff = WatchBackoff::default();
        let mut expected = FIRST;
        for _ in 0..20 {
            let pause = backoff.next().expect("always");
            assert!(
                pause >= expected && pause <= expected.mul_f64(1.5),
                "{pause:?}, not about {expected:?}"
            );
            expected = (expected * 2).min(LONGEST);
            backoff.reset();
            tokio::time::advance(pause).await;
        }
        tokio::time::advance(CALM).await;
        assert!(backoff.next().expect("always") < FIRST * 2);
    }
}
