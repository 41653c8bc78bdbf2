//! Wipes that go on beside everything else: to write zeros over a large volume takes hours, and neither a claim nor another
//! volume waits for that.
//!
//! Each waits for its turn on the disks that it writes to, apart from those of another kind: a claim does not wait for volumes
//! that are to be removed, nor what is done in a moment for what takes hours. When its turn has come it is asked once more
//! whether it is still wanted; until then it can be called off, and nothing was written.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use quarry_crds::Bytes;
use quarry_crds::tags::{VolumeTags, Wipe};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Control;
use crate::context::Wiper;
use crate::lvm::{LogicalVolume, VolumeGroup};

/// So many volumes are wiped at a time on the same disks, of each kind: more would only make the disks slower.
const LARGE_AT_ONCE: usize = 2;
const SMALL_AT_ONCE: usize = 4;
/// A volume up to this size, in bytes, is written in some seconds.
const SMALL: u64 = 1 << 30;
/// How often it is looked whether a wipe is still wanted.
const LOOK: Duration = Duration::from_secs(2);

/// What a wipe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// The volume is about to be handed out.
    New,
    /// It is about to be removed.
    Old,
}

/// What is to be wiped.
pub struct Order {
    /// What for.
    pub purpose: Purpose,
    /// The group of the volume.
    pub group: VolumeGroup,
    /// The volume, which is active.
    pub volume: LogicalVolume,
    /// Its tags.
    pub tags: VolumeTags,
    /// Asked at the moment that it begins.
    pub check: BoxFuture<'static, Result<(), Stop>>,
    /// Asked now and then until it is done, by what is known: where it is not wanted any more, it is stopped.
    pub wanted: Box<dyn Fn() -> bool + Send + Sync>,
}

/// Why a wipe did not begin, or was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It is not wanted any more.
    CalledOff(String),
    /// Somebody holds the volume.
    Held(String),
    /// It did not work.
    Failed(String),
}

/// How far a wipe has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It waits for its turn or goes on; what is new of it since this was last asked.
    Running(Option<News>),
    /// Nothing is left.
    Done,
    /// It did not begin, or was stopped.
    Stopped {
        /// Why.
        why: Stop,
        /// Whether a block may have been written.
        written: bool,
    },
}

/// What is new of a wipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// It waits for others on its disks.
    Waits,
    /// So many quarters of it are written.
    Quarters(u8),
}

impl News {
    fn number(self) -> u8 {
        match self {
            Self::Waits => 1,
            Self::Quarters(quarters) => quarters.saturating_add(2),
        }
    }
}

/// How many wipes wait and write, and how much is left to be written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// That wait for their turn.
    pub waiting: usize,
    /// That have begun.
    pub writing: usize,
    /// What these all have left, in bytes.
    pub left: u64,
}

/// The wipes of this process, by UUID of the volume. One that was interrupted with the process begins anew.
#[derive(Default)]
pub struct Wipes {
    begun: Mutex<HashMap<String, Job>>,
    turns: Mutex<HashMap<Lane, Arc<Semaphore>>>,
}

/// Whose wipes wait for one another: those of one purpose and size on the same disks.
type Lane = (Vec<String>, Purpose, bool);

struct Job {
    task: JoinHandle<Result<(), Stop>>,
    control: Control,
    writing: Arc<AtomicBool>,
    /// What was told of it.
    told: AtomicU8,
    size: Bytes,
    group: String,
    purpose: Purpose,
}

impl Job {
    fn news(&self) -> Option<News> {
        let now = if self.writing.load(Ordering::Relaxed) {
            let quarters = self.control.done().saturating_mul(4) / self.size.0.max(1);
            News::Quarters(u8::try_from(quarters).unwrap_or(4).min(3))
        } else {
            News::Waits
        };
        (self.told.swap(now.number(), Ordering::Relaxed) != now.number()).then_some(now)
    }
}

impl Wipes {
    /// Begins to wipe a volume, or looks how far that has come, and waits so long for its end. What is done or has failed is
    /// told once, and forgotten.
    pub async fn step(&self, wiper: &Arc<dyn Wiper>, patience: Duration, order: impl FnOnce() -> Order) -> Progress {
        let uuid_and_job = {
            let order = order();
            let uuid = order.volume.uuid.clone();
            let mut begun = self.lock();
            // Nobody asked what came of it, and by now it is wanted again.
            let known = begun
                .remove(&uuid)
                .filter(|job| !(job.task.is_finished() && job.control.cancel.is_cancelled()));
            drop(begun);
            let job = known.unwrap_or_else(|| self.begin(Arc::clone(wiper), order));
            (uuid, job)
        };
        let (uuid, mut job) = uuid_and_job;
        match timeout(patience, &mut job.task).await {
            Ok(Ok(Ok(()))) => Progress::Done,
            Ok(Ok(Err(why))) => Progress::Stopped {
                why,
                written: job.writing.load(Ordering::Relaxed),
            },
            Ok(Err(error)) => Progress::Stopped {
                why: Stop::Failed(error.to_string()),
                written: job.writing.load(Ordering::Relaxed),
            },
            Err(_) => {
                let news = job.news();
                self.lock().insert(uuid, job);
                Progress::Running(news)
            }
        }
    }

    fn begin(&self, wiper: Arc<dyn Wiper>, order: Order) -> Job {
        let (control, writing) = (Control::default(), Arc::new(AtomicBool::new(false)));
        let (size, group, purpose) = (order.volume.size, order.group.name.clone(), order.purpose);
        let turns = self.turns(&order);
        let work = work(wiper, turns, order, control.clone(), Arc::clone(&writing));
        Job {
            task: tokio::spawn(work),
            control,
            writing,
            told: AtomicU8::new(0),
            size,
            group,
            purpose,
        }
    }

    fn turns(&self, order: &Order) -> Arc<Semaphore> {
        let how = match order.purpose {
            Purpose::New => order.tags.wipe.of_new(order.tags.mode),
            Purpose::Old => order.tags.wipe,
        };
        let large = how != Wipe::Signatures && order.volume.size.0 > SMALL;
        let parts = order.volume.parts.iter();
        let mut disks: Vec<String> = parts.map(|part| part.physical_volume.clone()).collect();
        disks.sort();
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits at these any more.
        turns.retain(|_, turns| Arc::strong_count(turns) > 1);
        let count = if large { LARGE_AT_ONCE } else { SMALL_AT_ONCE };
        let lane = turns.entry((disks, order.purpose, large));
        Arc::clone(lane.or_insert_with(|| Arc::new(Semaphore::new(count))))
    }

    /// Whether a volume waits to be wiped, or is being wiped.
    #[must_use]
    pub fn is_at_work(&self, uuid: &str) -> bool {
        self.lock().get(uuid).is_some_and(|job| !job.task.is_finished())
    }

    /// Whether a block of a volume may have been written.
    #[must_use]
    pub fn has_begun(&self, uuid: &str) -> bool {
        self.lock()
            .get(uuid)
            .is_some_and(|job| job.writing.load(Ordering::Relaxed))
    }

    /// Calls the wipe of a volume off: nothing is written where it has not begun, and else no further piece.
    pub fn call_off(&self, uuid: &str) {
        if let Some(job) = self.lock().get(uuid) {
            job.control.cancel.cancel();
        }
    }

    /// Forgets a volume that is gone.
    pub fn forget(&self, uuid: &str) {
        if let Some(job) = self.lock().remove(uuid) {
            job.control.cancel.cancel();
        }
    }

    /// What is waited for and written, by volume group.
    #[must_use]
    pub fn figures(&self) -> BTreeMap<(String, Purpose), Figures> {
        let mut all: BTreeMap<_, Figures> = BTreeMap::new();
        for job in self.lock().values().filter(|job| !job.task.is_finished()) {
            let figures = all.entry((job.group.clone(), job.purpose)).or_default();
            if job.writing.load(Ordering::Relaxed) {
                figures.writing += 1;
            } else {
                figures.waiting += 1;
            }
            figures.left = figures
                .left
                .saturating_add(job.size.0.saturating_sub(job.control.done()));
        }
        all
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Job>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a turn, asks whether it is still wanted, and wipes.
async fn work(
    wiper: Arc<dyn Wiper>,
    turns: Arc<Semaphore>,
    order: Order,
    control: Control,
    writing: Arc<AtomicBool>,
) -> Result<(), Stop> {
    let Order {
        purpose,
        group,
        volume,
        tags,
        check,
        wanted,
    } = order;
    let called_off = || Stop::CalledOff("nobody wants it any more".to_owned());
    let unwanted = async {
        loop {
            tokio::select! {
                () = control.cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            if !wanted() {
                return control.cancel.cancel();
            }
        }
    };
    tokio::pin!(unwanted);
    let _turn = tokio::select! {
        turn = turns.acquire_owned() => turn.map_err(|error| Stop::Failed(error.to_string()))?,
        () = &mut unwanted => return Err(called_off()),
    };
    // What was not begun is asked for anew by whoever wants it again.
    check.await.inspect_err(|_| control.cancel.cancel())?;
    if control.cancel.is_cancelled() || !wanted() {
        return Err(called_off());
    }
    writing.store(true, Ordering::Relaxed);
    let wipe = match purpose {
        Purpose::New => wiper.wipe_new(group, volume, tags, control.clone()),
        Purpose::Old => wiper.wipe_old(group, volume, tags, control.clone()),
    };
    tokio::pin!(wipe);
    let ended = tokio::select! {
        ended = &mut wipe => ended,
        // It ends at its next piece.
        () = &mut unwanted => wipe.await,
    };
    match ended {
        Err(_) if control.cancel.is_cancelled() => Err(called_off()),
        ended => ended.map_err(Stop::Failed),
    }
}
