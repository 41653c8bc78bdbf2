//! Wipes of volumes that are to be removed go on beside everything else: to write zeros over a large one takes hours, and
//! a claim or another volume must not wait for that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quarry_crds::tags::VolumeTags;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::context::Wiper;
use crate::lvm::{LogicalVolume, VolumeGroup};

/// So many volumes of a node are wiped at a time: more would only make the disks slower.
const AT_ONCE: usize = 2;
/// A wipe that is done within this time is waited for.
const SHORT: Duration = Duration::from_secs(2);

/// The wipes of this process, by UUID of the volume. One that was interrupted with the process begins anew.
pub struct Wipes {
    begun: Mutex<HashMap<String, JoinHandle<Result<(), String>>>>,
    turns: Arc<Semaphore>,
}

/// How far a wipe has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It goes on, or waits for its turn.
    Running,
    /// Nothing is left.
    Done,
    /// It did not work, for people.
    Failed(String),
}

impl Default for Wipes {
    fn default() -> Self {
        Self {
            begun: Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Wipes {
    /// Begins to wipe a volume that is about to be removed, or looks how far that has come. What is done or has failed
    /// is told once, and forgotten.
    pub async fn step(
        &self,
        wiper: &Arc<dyn Wiper>,
        group: &VolumeGroup,
        volume: &LogicalVolume,
        tags: &VolumeTags,
    ) -> Progress {
        let known = self.lock().remove(&volume.uuid);
        let mut task = known.unwrap_or_else(|| {
            let (wiper, turns) = (Arc::clone(wiper), Arc::clone(&self.turns));
            let (group, volume, tags) = (group.clone(), volume.clone(), tags.clone());
            tokio::spawn(async move {
                let _turn = turns.acquire_owned().await.map_err(|error| error.to_string())?;
                wiper.wipe_old(group, volume, tags).await
            })
        });
        match timeout(SHORT, &mut task).await {
            Ok(Ok(Ok(()))) => Progress::Done,
            Ok(Ok(Err(error))) => Progress::Failed(error),
            Ok(Err(error)) => Progress::Failed(error.to_string()),
            Err(_) => {
                self.lock().insert(volume.uuid.clone(), task);
                Progress::Running
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, JoinHandle<Result<(), String>>>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
