//! How a wipe is told to stop, and how it tells how far it has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

/// Between whoever wipes and whoever waits for that.
#[derive(Debug, Clone, Default)]
pub struct Control {
    /// Cancelled where no further piece is to be written.
    pub cancel: CancellationToken,
    done: Arc<AtomicU64>,
}

impl Control {
    /// How much is written, in bytes.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// So much is written, in bytes.
    pub fn set_done(&self, bytes: u64) {
        self.done.store(bytes, Ordering::Relaxed);
    }

    /// Whether no further piece is to be written.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}
