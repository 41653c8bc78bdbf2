//! Marks volumes as handed out: their tag `quarry.state=creating` becomes `ready` once their PersistentVolume exists.
//!
//! A volume that is still `creating` after a crash was perhaps never wiped, and is wiped again unless its
//! PersistentVolume exists; one whose claim is gone too was never handed out and can be removed. No pod waits for the
//! mark, so it is set off the path to the pod; and again where it was not set.

use quarry_process::Shutdown;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use quarry_crds::tags::{VolumeState, VolumeTags};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::inventory::Inventory;
use crate::lvm::{ChangeTags, GroupRef, Lvm, State, VolumeError, VolumeRef};

/// A mark that was not set is tried again after this time.
const AGAIN: Duration = Duration::from_secs(30);
/// Volumes that are handed out within this time are marked by one command: nothing waits for it.
const GATHER: Duration = Duration::from_secs(2);
/// How many are marked by one command at most.
const AT_ONCE: usize = 64;

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
        let first = tokio::select! {
            () = shutdown.wait() => return,
            volume = waiting.recv() => volume,
            () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                again.pop_front().map(|(_, volume)| volume)
            }
        };
        let Some(first) = first else { return };
        tokio::select! {
            () = shutdown.wait() => return,
            () = tokio::time::sleep(GATHER) => {}
        }
        let mut batch = vec![first];
        while batch.len() < AT_ONCE
            && let Ok(more) = waiting.try_recv()
        {
            batch.push(more);
        }
        crash_point!("ready-before-tag");
        together(&*lvm, &inventory, &batch).await;
        for volume in batch {
            match mark(&*lvm, &inventory, volume.clone()).await {
                Ok(()) => {}
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
        crash_point!("ready-after-tag");
    }
}

/// Marks the volumes of each group by one command, where there are several. What is not marked then is looked at alone.
async fn together(lvm: &dyn Lvm, inventory: &Inventory, volumes: &[VolumeRef]) {
    let mut groups: BTreeMap<&GroupRef, Vec<&VolumeRef>> = BTreeMap::new();
    let state = inventory.get();
    for volume in volumes.iter().filter(|volume| is_creating(&state, volume)) {
        groups.entry(&volume.group).or_default().push(volume);
    }
    for volumes in groups.into_values() {
        let [first, others @ ..] = &volumes[..] else { continue };
        if others.is_empty() {
            continue;
        }
        let others = others.iter().map(|volume| volume.uuid.clone()).collect();
        match lvm.change_tags(ready((*first).clone(), others)).await {
            Ok(done) => inventory.set(done.state),
            Err(error) => tracing::info!(volume_group = first.group.name, %error, "volumes are marked one by one"),
        }
    }
}

/// Whether a volume is known to be `creating`.
fn is_creating(state: &State, volume: &VolumeRef) -> bool {
    state_of(state, volume) == Some(VolumeState::Creating)
}

fn state_of(state: &State, volume: &VolumeRef) -> Option<VolumeState> {
    let known = state.group(&volume.group.uuid)?.volume(&volume.uuid)?;
    Some(VolumeTags::parse(&known.tags)?.state)
}

fn ready(volume: VolumeRef, others: Vec<String>) -> ChangeTags {
    ChangeTags {
        volume,
        others,
        add: vec![VolumeState::Ready.tag()],
        delete: vec![VolumeState::Creating.tag()],
        // It may be on its way out by now.
        having: Some(VolumeState::Creating.tag()),
    }
}

/// Marks a volume as handed out, unless it has gone further already.
///
/// # Errors
/// It is not known to be marked.
pub async fn mark(lvm: &dyn Lvm, inventory: &Inventory, volume: VolumeRef) -> Result<(), VolumeError> {
    if state_of(&inventory.get(), &volume).is_some_and(|state| state != VolumeState::Creating) {
        return Ok(());
    }
    let done = lvm.change_tags(ready(volume, Vec::new())).await?;
    inventory.set(done.state);
    Ok(())
}
