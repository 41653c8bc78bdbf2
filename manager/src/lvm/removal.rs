//! Removing logical volumes. Those of one group that are asked for while another command of the group is at work are removed
//! by one command together: `lvremove` takes longer to start than to remove, and so does the reading after it.
//!
//! Nothing is read before, unless the last reading failed: nothing is removed while nobody can see what becomes of it. LVM
//! itself compares, under its own lock, and takes no volume that has another UUID, lacks our tag, has a part on a missing
//! disk or has anything standing on it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use quarry_crds::tags::is_ours;
use tokio::sync::oneshot;

use super::operations::{Backend, Failed, Mutation, Ran, Shared, missing_or, unexpected};
use super::{Done, GroupProblem, RemoveVolumeError, VolumeRef};

/// How many are removed by one command at most: whatever else is to be done in the group waits for it.
const AT_ONCE: usize = 16;

type Answer = Result<Done<()>, RemoveVolumeError>;

/// A volume that is to be removed, and who is told.
struct Asked {
    volume: VolumeRef,
    told: oneshot::Sender<Answer>,
}

/// Volumes that are to be removed, by UUID of their group.
#[derive(Default)]
pub(super) struct Waiting(Mutex<HashMap<String, Vec<Asked>>>);

impl Waiting {
    /// Has a volume removed by the next [`run`] of its group.
    pub(super) fn ask(&self, volume: VolumeRef) -> oneshot::Receiver<Answer> {
        let (told, answer) = oneshot::channel();
        let group = volume.group.uuid.clone();
        self.lock().entry(group).or_default().push(Asked { volume, told });
        answer
    }

    fn take(&self, group: &str) -> Vec<Asked> {
        let mut waiting = self.lock();
        let Some(asked) = waiting.get_mut(group) else {
            return Vec::new();
        };
        let taken = asked.drain(..asked.len().min(AT_ONCE)).collect();
        if asked.is_empty() {
            waiting.remove(group);
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Asked>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes those of a group that wait, under its lock, and tells each who asked. As it is called once for each volume that is
/// asked for, none is left.
pub(super) async fn run<B: Backend>(shared: &Shared<B>, group: &str) {
    let mut asked = shared.removals.take(group).into_iter();
    // Some may know the group by another name than others do.
    while let Some(first) = asked.next() {
        let name = first.volume.group.name.clone();
        let (others, later): (Vec<_>, Vec<_>) = asked.partition(|asked| asked.volume.group.name == name);
        asked = later.into_iter();
        remove(shared, first, others).await;
    }
}

async fn remove<B: Backend>(shared: &Shared<B>, first: Asked, others: Vec<Asked>) {
    let mutation = |volume| Mutation::RemoveVolumes {
        volume,
        others: others.iter().map(|asked| asked.volume.uuid.clone()).collect(),
    };
    let mut ran = match shared.before_if_unreadable().await {
        Ok(()) => shared.run(mutation(first.volume.clone())).await,
        Err(unknown) => Err(Failed::Unknown(unknown)),
    };
    if let Ok(Ran { state, .. }) = &ran
        && let Some(group) = state.group(&first.volume.group.uuid)
        && group.name != first.volume.group.name
    {
        let group = group.reference();
        ran = shared
            .run(mutation(VolumeRef {
                group,
                ..first.volume.clone()
            }))
            .await;
    }
    for Asked { volume, told } in std::iter::once(first).chain(others) {
        let answer = match ran.clone() {
            Ok(ran) => judged(&volume, ran),
            Err(failed) => Err(failed.into()),
        };
        // Whoever asked may be gone.
        let _ = told.send(answer);
    }
}

/// Judges the removal of a volume by what is there after it.
fn judged(volume: &VolumeRef, Ran { state, error }: Ran) -> Answer {
    let Some(group) = state.group(&volume.group.uuid) else {
        return Err(missing_or(
            &state,
            RemoveVolumeError::GroupMissing(volume.group.clone()),
        ));
    };
    let unusable = |problem| RemoveVolumeError::GroupUnusable {
        group: group.reference(),
        problem,
    };
    let Some(found) = group.volume(&volume.uuid) else {
        return match state.problem_of(group) {
            // Its metadata is there, and names every volume.
            None | Some(GroupProblem::Partial) => Ok(Done { value: (), state }),
            Some(problem) => Err(unusable(problem)),
        };
    };
    let current = group.reference_to(found);
    Err(if !is_ours(&found.tags) {
        RemoveVolumeError::NotOurs(current)
    } else if found.partial {
        RemoveVolumeError::OnMissingDisk(current)
    } else if !group.stacked_on(found).is_empty() {
        RemoveVolumeError::Stacked {
            by: group.stacked_on(found),
            volume: current,
        }
    } else if found.open == Some(true) {
        RemoveVolumeError::Busy(current)
    } else {
        match (state.problem_of(group), error) {
            (Some(problem), _) => unusable(problem),
            (None, Some(error)) => RemoveVolumeError::Refused(error),
            (None, None) => unexpected(None, "the volume is still there").into(),
        }
    })
}
