//! Marks volumes as handed out: their tag `quarry.state=creating` becomes `ready` once their PersistentVolume exists, or
//! `retained` where that is to be kept ([`crate::kept`]).
//!
//! A volume that is still `creating` after a crash was perhaps never wiped, and is wiped again unless its
//! PersistentVolume exists; one whose claim is gone too was never handed out and can be removed. No pod waits for the
//! mark, so it is set off the path to the pod; and again where it was not set.

use std::collections::{BTreeMap, HashMap};
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

/// A volume, and what it is to be marked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Which.
    pub volume: VolumeRef,
    /// The state that its tag is to say.
    pub to: VolumeState,
}

#[derive(Default)]
struct Waiting {
    volumes: Vec<VolumeRef>,
    /// Their UUIDs, and of those that are being marked, with what they are to be marked with.
    known: BTreeMap<String, VolumeState>,
    /// Whether somebody is not to wait for others to come.
    urgent: bool,
}

impl ReadyTags {
    /// Has a volume marked, together with others that are handed out soon.
    pub fn mark(&self, volume: VolumeRef, to: VolumeState) {
        let mut waiting = self.lock();
        if waiting.known.insert(volume.uuid.clone(), to).is_none() {
            waiting.volumes.push(volume);
            self.more.notify_one();
        }
    }

    /// Whether a volume was handed out, and its tag may not say so yet.
    #[must_use]
    pub fn is_awaited(&self, uuid: &str) -> bool {
        self.lock().known.contains_key(uuid)
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

    pub(crate) fn take(&self) -> Vec<Mark> {
        let waiting = &mut *self.lock();
        waiting.urgent = false;
        let count = waiting.volumes.len().min(AT_ONCE);
        let known = &waiting.known;
        let mark = |volume: VolumeRef| known.get(&volume.uuid).map(|to| Mark { to: *to, volume });
        waiting.volumes.drain(..count).filter_map(mark).collect()
    }

    pub(crate) fn done(&self, mark: &Mark) {
        let mut waiting = self.lock();
        if waiting.known.get(&mark.volume.uuid) == Some(&mark.to) {
            waiting.known.remove(&mark.volume.uuid);
        } else if waiting.known.contains_key(&mark.volume.uuid) {
            // Something else was asked for meanwhile.
            waiting.volumes.push(mark.volume.clone());
            self.more.notify_one();
        }
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
        for asked in batch {
            let volume = &asked.volume;
            match mark(&*lvm, &inventory, asked.clone()).await {
                Ok(()) => waiting.done(&asked),
                // Removed in the meantime.
                Err(error @ (VolumeError::Missing(_) | VolumeError::NotOurs(_))) => {
                    tracing::info!(%volume, %error, "a volume was not marked as ready");
                    waiting.done(&asked);
                }
                Err(error) if ends => {
                    tracing::warn!(%volume, %error, "a volume is not marked as ready before the next start")
                }
                Err(error) => {
                    tracing::warn!(%volume, %error, "a volume was not marked as ready; it is tried again");
                    waiting.again(asked.volume.clone());
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
async fn together(lvm: &dyn Lvm, inventory: &Inventory, marks: &[Mark]) {
    let mut groups: HashMap<(&GroupRef, VolumeState, VolumeState), Vec<&VolumeRef>> = HashMap::new();
    let state = inventory.get();
    for Mark { volume, to } in marks {
        if let Some(from) = state_of(&state, volume).filter(|from| is_to_change(*from, *to)) {
            groups.entry((&volume.group, from, *to)).or_default().push(volume);
        }
    }
    for ((_, from, to), volumes) in groups {
        let [first, others @ ..] = &volumes[..] else { continue };
        if others.is_empty() {
            continue;
        }
        let others = others.iter().map(|volume| volume.uuid.clone()).collect();
        match lvm.change_tags(change((*first).clone(), others, from, to)).await {
            Ok(done) => inventory.set(done.state),
            Err(error) => tracing::info!(volume_group = first.group.name, %error, "volumes are marked one by one"),
        }
    }
}

/// Whether a volume of one state is to be marked with another: nothing takes a removal back.
fn is_to_change(from: VolumeState, to: VolumeState) -> bool {
    from != to && from != VolumeState::Deleting
}

fn state_of(state: &State, volume: &VolumeRef) -> Option<VolumeState> {
    let known = state.group(&volume.group.uuid)?.volume(&volume.uuid)?;
    Some(VolumeTags::parse(&known.tags)?.state)
}

fn change(volume: VolumeRef, others: Vec<String>, from: VolumeState, to: VolumeState) -> ChangeTags {
    ChangeTags {
        volume,
        others,
        add: vec![to.tag()],
        delete: vec![from.tag()],
        // It may be on its way out by now.
        having: Some(from.tag()),
    }
}

/// Marks a volume as asked for, unless it is on its way out already, or is gone.
///
/// # Errors
/// It is not known to be marked.
pub async fn mark(lvm: &dyn Lvm, inventory: &Inventory, asked: Mark) -> Result<(), VolumeError> {
    let Mark { volume, to } = asked;
    let state = inventory.get();
    let from = match state_of(&state, &volume) {
        Some(from) if is_to_change(from, to) => from,
        Some(_) => return Ok(()),
        None if state.incomplete.is_none() => return Err(VolumeError::Missing(volume)),
        None => VolumeState::Creating,
    };
    let done = lvm.change_tags(change(volume, Vec::new(), from, to)).await?;
    inventory.set(done.state);
    Ok(())
}
