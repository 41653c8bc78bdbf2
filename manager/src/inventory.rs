//! What LVM has on this node, as it was last read: one command fills it, every mutation brings it up to date, and
//! whoever needs to know of changes made by hand watches it.

use futures::FutureExt as _;
use quarry_process::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify, watch};
use tokio::time::Instant;

use crate::lvm::{LogicalVolume, Lvm, Made, ReportError, State};

/// Changes made by hand that no kernel event told of are seen after this time at the latest.
const RECHECK: Duration = Duration::from_secs(60);
/// After a reading that failed, the next is this far away at first, twice as far each time, and so far at most.
const AGAIN: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(20);
/// A burst of kernel events is one change.
const SETTLE: Duration = Duration::from_millis(300);

/// While commands of ours follow one another, others are told so often of what these made, and there is a reading so often.
const TELL: Duration = Duration::from_secs(5);
const BUSY: Duration = Duration::from_secs(30);

/// What is known of LVM on this node.
#[derive(Clone)]
pub struct Known {
    /// The state as it was last read.
    state: Arc<State>,
    /// Volumes that were made since it began, which it may not show; `state` has them.
    made: Vec<NewVolume>,
    /// Why it was not read since then, where that was tried.
    trouble: Option<String>,
}

/// A volume that nobody has read yet.
#[derive(Clone)]
struct NewVolume {
    /// Readings with a greater number show it.
    reading: u64,
    /// LVM's UUID of its group.
    group: String,
    volume: LogicalVolume,
}

impl NewVolume {
    fn add_to(&self, state: &mut State) {
        let mut groups = state.groups.iter_mut();
        if let Some(group) = groups.find(|group| group.uuid == self.group) {
            group.add(&self.volume);
        }
    }
}

/// The last known state of LVM on this node.
#[derive(Clone)]
pub struct Inventory {
    lvm: Arc<dyn Lvm>,
    known: watch::Sender<Known>,
    reading: Arc<Mutex<()>>,
    /// Something was made and not read.
    due: Arc<Notify>,
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
                made: Vec::new(),
                trouble: None,
            }),
            reading: Arc::default(),
            due: Arc::default(),
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
    pub fn set(&self, mut state: State) {
        self.known.send_if_modified(|known| {
            if state.reading < known.state.reading {
                return false;
            }
            known.made.retain(|made| made.reading > state.reading);
            for made in &known.made {
                made.add_to(&mut state);
            }
            let changed = *known.state != state || known.trouble.is_some();
            known.state = Arc::new(state);
            known.trouble = None;
            changed
        });
    }

    /// Takes over a volume that a mutation of ours has made. Where it was not read, others are told once it is, which is
    /// soon.
    pub fn made(&self, made: Made) {
        let Made {
            value: volume,
            group,
            state,
            reading,
        } = made;
        if let Some(state) = state {
            return self.set(state);
        }
        let new = NewVolume { reading, group, volume };
        self.known.send_if_modified(|known| {
            if new.reading > known.state.reading {
                new.add_to(Arc::make_mut(&mut known.state));
                known.made.push(new);
            }
            false
        });
        self.due.notify_one();
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
                () = self.told(&events), if failures == 0 => {
                    self.settled().await;
                    // Of what came meanwhile the reading tells too.
                    let _ = self.told(&events).now_or_never();
                }
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

impl Inventory {
    /// Waits until no command of ours is at work any more, or for some time: what is read meanwhile waits for LVM's lock, and
    /// does not show what that command makes.
    async fn settled(&self) {
        let begun = Instant::now();
        let mut told = begun;
        loop {
            tokio::time::sleep(SETTLE).await;
            if !self.lvm.is_busy() || begun.elapsed() >= BUSY {
                return;
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                self.known.send_if_modified(|known| !known.made.is_empty());
            }
        }
    }

    /// Waits until a reading is due.
    async fn told(&self, events: &crate::uevent::BlockEvents) {
        tokio::select! {
            () = events.next() => {}
            () = self.due.notified() => {}
        }
    }
}

#[cfg(test)]
#[path = "inventory_tests.rs"]
mod tests;
