//! What LVM has on this node, as it was last read: one command fills it, every mutation brings it up to date, and
//! whoever needs to know of changes made by hand watches it.

use quarry_process::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};

use crate::lvm::{Lvm, ReportError, State};

/// Changes made by hand that no kernel event told of are seen after this time at the latest.
const RECHECK: Duration = Duration::from_secs(60);
/// A burst of kernel events is one change.
const SETTLE: Duration = Duration::from_millis(300);

/// The last known state of LVM on this node.
#[derive(Clone)]
pub struct Inventory {
    lvm: Arc<dyn Lvm>,
    state: watch::Sender<Arc<State>>,
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
            state: watch::Sender::new(Arc::new(state)),
            reading: Arc::default(),
        })
    }

    /// The state as it was last read.
    #[must_use]
    pub fn get(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    /// Takes over the state that a mutation of ours read after it was done.
    pub fn set(&self, state: State) {
        self.state.send_if_modified(|known| {
            let changed = **known != state;
            *known = Arc::new(state);
            changed
        });
    }

    /// Reads the state anew. Callers at one time share a reading.
    ///
    /// # Errors
    /// LVM could not be read; the last known state stays.
    pub async fn refresh(&self) -> Result<Arc<State>, ReportError> {
        let _one = self.reading.lock().await;
        self.set(self.lvm.report().await?);
        Ok(self.get())
    }

    /// Yields at each change of the state.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<State>> {
        let mut changes = self.state.subscribe();
        changes.mark_unchanged();
        changes
    }

    /// Keeps the state true after changes that are not ours: at kernel events of block devices, and now and then.
    pub async fn keep(self, events: crate::uevent::BlockEvents, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.wait() => return,
                () = events.next() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(RECHECK) => {}
            }
            if let Err(error) = self.refresh().await {
                tracing::warn!(%error, "LVM could not be read");
            }
        }
    }
}
