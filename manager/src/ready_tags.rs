//! Marks volumes as handed out: their tag `quarry.state=creating` becomes `ready` once their PersistentVolume exists.
//!
//! A volume that is still `creating` after a crash was perhaps never wiped, and is wiped again unless its
//! PersistentVolume exists; one whose claim is gone too was never handed out and can be removed. No pod waits for the
//! mark, so it is set off the path to the pod.

use quarry_process::Shutdown;
use std::sync::Arc;

use quarry_crds::tags::VolumeState;
use tokio::sync::mpsc;

use crate::inventory::Inventory;
use crate::lvm::{ChangeTags, Lvm, VolumeRef};

/// Takes volumes to be marked.
#[derive(Clone)]
pub struct ReadyTags {
    queue: mpsc::UnboundedSender<VolumeRef>,
}

impl ReadyTags {
    /// The queue, and what works it off.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<VolumeRef>) {
        let (queue, waiting) = mpsc::unbounded_channel();
        (Self { queue }, waiting)
    }

    /// Has a volume marked.
    pub fn mark(&self, volume: VolumeRef) {
        // The receiver ends only with the process; at the next start the mark is set then.
        let _ = self.queue.send(volume);
    }
}

/// Works off the queue.
pub async fn run(
    mut waiting: mpsc::UnboundedReceiver<VolumeRef>,
    lvm: Arc<dyn Lvm>,
    inventory: Inventory,
    shutdown: Shutdown,
) {
    loop {
        let volume = tokio::select! {
            () = shutdown.wait() => return,
            volume = waiting.recv() => match volume {
                Some(volume) => volume,
                None => return,
            },
        };
        let change = ChangeTags {
            volume: volume.clone(),
            add: vec![VolumeState::Ready.tag()],
            delete: vec![VolumeState::Creating.tag()],
        };
        match lvm.change_tags(change).await {
            Ok(done) => inventory.set(done.state),
            // Removed in the meantime, or tried again at the next start: nothing depends on it now.
            Err(error) => tracing::info!(%volume, %error, "a volume was not marked as ready"),
        }
    }
}
