//! Marks volumes as handed out: their tag `quarry.state=creating` becomes `ready` once their PersistentVolume exists.
//!
//! A volume that is still `creating` after a crash was perhaps never wiped, and is wiped again unless its
//! PersistentVolume exists; one whose claim is gone too was never handed out and can be removed. No pod waits for the
//! mark, so it is set off the path to the pod; and again where it was not set.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quarry_crds::tags::{VolumeState, VolumeTags};
use quarry_process::Shutdown;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::inventory::Inventory;
use crate::lvm::{ChangeTags, GroupRef, Lvm, State, VolumeError, VolumeRef};

/// A mark that was not set is tried again after this time.
const AGAIN: Duration = Duration::from_secs(30);
/// How many are marked by one command at most.
const AT_ONCE: usize = 64;

/// Volumes that were handed out and are to be marked.
#[derive(Clone, Default)]
pub struct ReadyTags {
    waiting: Arc<Mutex<Waiting>>,
    more: Arc<Notify>,
}

#[derive(Default)]
struct Waiting {
    volumes: Vec<VolumeRef>,
    /// Their UUIDs, and of those that are being marked.
    known: BTreeSet<String>,
    /// Whether somebody is not to wait for others to come.
    urgent: bool,
}

impl ReadyTags {
    /// Has a volume marked, together with others that are handed out soon.
    pub fn mark(&self, volume: VolumeRef) {
        let mut waiting = self.lock();
        if waiting.known.insert(volume.uuid.clone()) {
            waiting.volumes.push(volume);
            self.more.notify_one();
        }
    }

    /// Whether a volume was handed out, and its tag may not say so yet.
    #[must_use]
    pub fn is_awaited(&self, uuid: &str) -> bool {
        self.lock().known.contains(uuid)
    }

    /// Has those that wait marked now.
    pub fn hurry(&self) {
        self.lock().urgent = true;
        self.more.notify_one();
    }

    /// Waits until there are some, and then until there are many, somebody is in a hurry or the first has waited for so long.
    async fn gathered(&self, within: Duration) {
        let mut first = None;
        loop {
            {
                let mut waiting = self.lock();
                if waiting.volumes.len() >= AT_ONCE || (waiting.urgent && !waiting.volumes.is_empty()) {
                    return;
                }
                waiting.urgent = false;
                if !waiting.volumes.is_empty() {
                    first.get_or_insert_with(Instant::now);
                }
            }
            match first {
                None => self.more.notified().await,
                Some(first) if first.elapsed() >= within => return,
                Some(first) => {
                    let _ = tokio::time::timeout_at(first + within, self.more.notified()).await;
                }
            }
        }
    }

    pub(crate) fn take(&self) -> Vec<VolumeRef> {
        let mut waiting = self.lock();
        waiting.urgent = false;
        let count = waiting.volumes.len().min(AT_ONCE);
        waiting.volumes.drain(..count).collect()
    }

    pub(crate) fn done(&self, volume: &VolumeRef) {
        self.lock().known.remove(&volume.uuid);
    }

    fn again(&self, volume: VolumeRef) {
        self.lock().volumes.push(volume);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Marks volumes until the end is asked for, and then those that still wait. They are gathered for so long: a volume that is
/// gone by then is never marked, and nothing waits for the mark.
pub async fn run(waiting: ReadyTags, lvm: Arc<dyn Lvm>, inventory: Inventory, within: Duration, shutdown: Shutdown) {
    loop {
        let ends = tokio::select! {
            () = shutdown.wait() => true,
            () = waiting.gathered(within) => false,
        };
        let batch = waiting.take();
        if batch.is_empty() && ends {
            return;
        }
        crash_point!("ready-before-tag");
        together(&*lvm, &inventory, &batch).await;
        let mut failed = false;
        for volume in batch {
            match mark(&*lvm, &inventory, volume.clone()).await {
                Ok(()) => waiting.done(&volume),
                // Removed in the meantime.
                Err(error @ (VolumeError::Missing(_) | VolumeError::NotOurs(_))) => {
                    tracing::info!(%volume, %error, "a volume was not marked as ready");
                    waiting.done(&volume);
                }
                Err(error) if ends => {
                    tracing::warn!(%volume, %error, "a volume is not marked as ready before the next start")
                }
                Err(error) => {
                    tracing::warn!(%volume, %error, "a volume was not marked as ready; it is tried again");
                    waiting.again(volume);
                    failed = true;
                }
            }
        }
        crash_point!("ready-after-tag");
        if failed {
            tokio::select! {
                () = shutdown.wait() => {}
                () = tokio::time::sleep(AGAIN) => {}
            }
        }
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

/// Marks a volume as handed out, unless it has gone further already, or is gone.
///
/// # Errors
/// It is not known to be marked.
pub async fn mark(lvm: &dyn Lvm, inventory: &Inventory, volume: VolumeRef) -> Result<(), VolumeError> {
    let state = inventory.get();
    match state_of(&state, &volume) {
        Some(VolumeState::Creating) => {}
        Some(_) => return Ok(()),
        None if state.incomplete.is_none() => return Err(VolumeError::Missing(volume)),
        None => {}
    }
    let done = lvm.change_tags(ready(volume, Vec::new())).await?;
    inventory.set(done.state);
    Ok(())
}
