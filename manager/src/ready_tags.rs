//! Marks volumes as handed out: their tag `quarry.state=creating` becomes `ready` once their PersistentVolume exists.
//!
//! A volume that is still `creating` after a crash was perhaps never wiped, and is wiped again unless its
//! PersistentVolume exists; one whose claim is gone too was never handed out and can be removed. No pod waits for the
//! mark, so it is set off the path to the pod; and again where it was not set.

use quarry_process::Shutdown;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use quarry_crds::tags::{VolumeState, VolumeTags};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::inventory::Inventory;
use crate::lvm::{ChangeTags, Lvm, VolumeError, VolumeRef};

/// A mark that was not set is tried again after this time.
const AGAIN: Duration = Duration::from_secs(30);

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
    let mut again: VecDeque<(Instant, VolumeRef)> = VecDeque::new();
    loop {
        let due = again.front().map(|(due, _)| *due);
        let volume = tokio::select! {
            () = shutdown.wait() => return,
            volume = waiting.recv() => volume,
            () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                again.pop_front().map(|(_, volume)| volume)
            }
        };
        let Some(volume) = volume else { return };
        crash_point!("ready-before-tag");
        match mark(&*lvm, &inventory, volume.clone()).await {
            Ok(()) => crash_point!("ready-after-tag"),
            // Removed in the meantime.
            Err(error @ (VolumeError::Missing(_) | VolumeError::NotOurs(_))) => {
                tracing::info!(%volume, %error, "a volume was not marked as ready");
            }
            Err(error) => {
                tracing::warn!(%volume, %error, "a volume was not marked as ready; it is tried again");
                again.push_back((Instant::now() + AGAIN, volume));
            }
        }
    }
}

/// Marks a volume as handed out, unless it has gone further already.
///
/// # Errors
/// It is not known to be marked.
pub async fn mark(lvm: &dyn Lvm, inventory: &Inventory, volume: VolumeRef) -> Result<(), VolumeError> {
    let state = inventory.get();
    let known = state
        .group(&volume.group.uuid)
        .and_then(|group| group.volume(&volume.uuid));
    let known = known.and_then(|known| VolumeTags::parse(&known.tags));
    if known.is_some_and(|tags| tags.state != VolumeState::Creating) {
        return Ok(());
    }
    let change = ChangeTags {
        volume,
        add: vec![VolumeState::Ready.tag()],
        delete: vec![VolumeState::Creating.tag()],
        // It may be on its way out by now.
        having: Some(VolumeState::Creating.tag()),
    };
    let done = lvm.change_tags(change).await?;
    inventory.set(done.state);
    Ok(())
}
