//! Whether the process still gets anywhere: `/healthz` fails where it does not, so that kubelet starts it anew.
//!
//! Only work that ends by itself within a known time is counted. What fails has ended too: an API server that does not
//! answer is no fault of this process, and to start anew would help nobody.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Work under way, of several kinds. Clones share the same kinds.
#[derive(Debug, Clone, Default)]
pub struct Alive {
    kinds: Arc<Mutex<Vec<Arc<Kind>>>>,
}

#[derive(Debug)]
struct Kind {
    name: &'static str,
    within: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    under_way: usize,
    /// When one ended last, or the first of those under way began after none was.
    moved: Option<Instant>,
}

/// One kind of work. Clones are the same kind.
#[derive(Debug, Clone)]
pub struct Work {
    kind: Arc<Kind>,
}

/// Work that ends when this is dropped.
#[derive(Debug)]
pub struct UnderWay {
    kind: Arc<Kind>,
}

impl Alive {
    /// Nothing is done yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A kind of work: while any of it is under way, some of it ends within that time.
    #[must_use]
    pub fn work(&self, name: &'static str, within: Duration) -> Work {
        let kind = Arc::new(Kind {
            name,
            within,
            state: Mutex::default(),
        });
        let mut kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.push(Arc::clone(&kind));
        Work { kind }
    }

    /// The kinds of work that are under way and of which nothing has ended for too long, for people.
    #[must_use]
    pub fn stuck(&self) -> Vec<String> {
        let now = Instant::now();
        let kinds = self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        kinds.iter().filter_map(|kind| kind.stuck(now)).collect()
    }
}

impl Kind {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn stuck(&self, now: Instant) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = now.duration_since(state.moved.filter(|_| state.under_way > 0)?);
        (since > self.within).then(|| {
            format!(
                "{}: {} under way, and none has ended for {} s",
                self.name,
                state.under_way,
                since.as_secs()
            )
        })
    }
}

impl Work {
    /// Some of it begins.
    #[must_use]
    pub fn begin(&self) -> UnderWay {
        self.kind.change(|state| {
            if state.under_way == 0 {
                state.moved = Some(Instant::now());
            }
            state.under_way += 1;
        });
        UnderWay {
            kind: Arc::clone(&self.kind),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.kind.change(|state| {
            state.under_way = state.under_way.saturating_sub(1);
            state.moved = Some(Instant::now());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stuck_while_nothing_ends() {
        let alive = Alive::new();
        let work = alive.clone().work("requests", Duration::from_secs(180));
        let wait = async |seconds| tokio::time::advance(Duration::from_secs(seconds)).await;
        wait(1000).await;
        assert_eq!(alive.stuck(), Vec::<String>::new(), "nothing is under way");
        let (first, second) = (work.begin(), work.begin());
        wait(180).await;
        assert_eq!(alive.stuck(), Vec::<String>::new());
        wait(1).await;
        assert_eq!(alive.stuck(), ["requests: 2 under way, and none has ended for 181 s"]);
        drop(first);
        assert_eq!(alive.stuck(), Vec::<String>::new(), "something has ended");
        wait(181).await;
        assert_eq!(alive.stuck().len(), 1);
        drop(second);
        wait(1000).await;
        assert_eq!(alive.stuck(), Vec::<String>::new());
    }
}
