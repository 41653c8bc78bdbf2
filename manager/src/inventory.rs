//! What LVM has on this node, as it was last read: one command fills it, every mutation brings it up to date, and
//! whoever needs to know of changes made by hand watches it.

use quarry_process::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, watch};

use crate::lvm::{Lvm, ReportError, State};

/// Changes made by hand that no kernel event told of are seen after this time at the latest.
const RECHECK: Duration = Duration::from_secs(60);
/// After a reading that failed, the next is this far away at first, twice as far each time, and so far at most.
const AGAIN: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(20);
/// A burst of kernel events is one change.
const SETTLE: Duration = Duration::from_millis(300);

/// What is known of LVM on this node.
#[derive(Clone)]
pub struct Known {
    /// The state as it was last read.
    state: Arc<State>,
    /// Why it was not read since then, where that was tried.
    trouble: Option<String>,
}

/// The last known state of LVM on this node.
#[derive(Clone)]
pub struct Inventory {
    lvm: Arc<dyn Lvm>,
    known: watch::Sender<Known>,
    reading: Arc<Mutex<()>>,
}

impl Inventory {
    /// Reads the state for the first time.
    ///
    /// # Errors
    /// LVM could not be read.
    pub async fn open(lvm: Arc<dyn Lvm>) -> Result<Self, ReportError> {
        let state = lvm.report().await?;
        Ok(Self {
            lvm,
            known: watch::Sender::new(Known {
                state: Arc::new(state),
                trouble: None,
            }),
            reading: Arc::default(),
        })
    }

    /// The state as it was last read.
    #[must_use]
    pub fn get(&self) -> Arc<State> {
        self.known.borrow().state.clone()
    }

    /// Why LVM could not be read the last time that it was tried, for people; `None` where it could.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.known.borrow().trouble.clone()
    }

    /// Takes over the state that a mutation of ours read after it was done, unless a later reading is known: readings of
    /// several groups' mutations and our own overlap, and do not end in the order in which they began.
    pub fn set(&self, state: State) {
        self.known.send_if_modified(|known| {
            if state.reading < known.state.reading {
                return false;
            }
            let changed = *known.state != state || known.trouble.is_some();
            *known = Known {
                state: Arc::new(state),
                trouble: None,
            };
            changed
        });
    }

    /// Reads the state anew, one reading at a time; the result shows everything that was there at the call.
    ///
    /// # Errors
    /// LVM could not be read; the last known state stays.
    pub async fn refresh(&self) -> Result<Arc<State>, ReportError> {
        let _one = self.reading.lock().await;
        let read = self.lvm.report().await.inspect_err(|error| {
            let trouble = Some(error.to_string());
            self.known.send_if_modified(|known| {
                let changed = known.trouble != trouble;
                known.trouble.clone_from(&trouble);
                changed
            });
        })?;
        self.set(read);
        Ok(self.get())
    }

    /// Yields at each change of what is known.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Known> {
        let mut changes = self.known.subscribe();
        changes.mark_unchanged();
        changes
    }

    /// Keeps the state true after changes that are not ours: at kernel events of block devices, and now and then. Then the
    /// disks may have changed too, also where LVM's state did not: `looked` is notified.
    pub async fn keep(self, events: crate::uevent::BlockEvents, looked: Arc<Notify>, shutdown: Shutdown) {
        let mut failures = 0_u32;
        loop {
            let pause = match failures {
                0 => RECHECK,
                _ => AGAIN.saturating_mul(1 << failures.min(8)).min(LONGEST),
            };
            tokio::select! {
                () = shutdown.wait() => return,
                () = events.next(), if failures == 0 => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(pause) => {}
            }
            match self.refresh().await {
                Ok(_) => failures = 0,
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, "LVM could not be read");
                }
            }
            looked.notify_one();
        }
    }
}

#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
