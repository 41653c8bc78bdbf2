//! What every implementation of [`Lvm`] does alike: lock the group, run, read again. What is decided from what was read
//! is in `volumes.rs` and `groups.rs`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use tokio::sync::{Mutex as AsyncMutex, OwnedRwLockWriteGuard, RwLock};

use super::command::{CommandError, Exit};
use super::requests::check_volume;
use super::*;

/// The part that differs: running commands and reading reports.
pub trait Backend: Send + Sync + 'static {
    /// Reads everything.
    fn read(&self) -> BoxFuture<'_, Result<State, ReportError>>;
    /// Runs one mutation, as LVM would.
    fn execute(&self, mutation: Mutation) -> BoxFuture<'_, Result<(), CommandError>>;
    /// The volume that was just made as asked, by the kernel's word; `None` where that does not show all of it.
    fn seen(&self, request: &CreateVolume) -> BoxFuture<'_, Option<LogicalVolume>>;
    /// From now on LVM opens these devices only; whether that is a change.
    fn allow(&self, devices: Vec<String>) -> bool;
}

/// One command that changes something. Names in it are current, and the identities have been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is one operation of the trait Lvm, which is documented")]
pub enum Mutation {
    CreateVolume(CreateVolume),
    /// The others are of the same group, by LVM's UUIDs.
    RemoveVolumes {
        volume: VolumeRef,
        others: Vec<String>,
    },
    ExtendVolume(ExtendVolume),
    ChangeTags(ChangeTags),
    RenameVolume {
        volume: VolumeRef,
        name: String,
    },
    SetActive {
        volume: VolumeRef,
        active: bool,
    },
    ActivateGroup(GroupRef),
    CreateGroup(CreateGroup),
    ExtendGroup {
        group: GroupRef,
        devices: Vec<String>,
    },
    TagGroup {
        group: GroupRef,
        tags: Vec<String>,
    },
    RemoveGroup(GroupRef),
    RemoveLabels {
        devices: Vec<String>,
    },
    ResizePhysicalVolume {
        device: String,
    },
    RestorePhysicalVolume {
        group: GroupRef,
        device: String,
    },
}

/// An implementation of [`Lvm`] over a backend.
pub struct Engine<B> {
    shared: Arc<Shared<B>>,
}

pub(super) struct Shared<B> {
    backend: B,
    /// How many readings have begun.
    readings: AtomicU64,
    /// Whether the last reading that has ended went well.
    readable: AtomicBool,
    /// One writer per volume group.
    locks: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    /// Held for reading by each mutation under way.
    running: Arc<RwLock<()>>,
    pub(super) removals: removal::Waiting,
}

/// A command that could not be judged by what was read after it.
#[derive(Clone)]
pub(super) enum Failed {
    /// It was not even started.
    Refused(CommandError),
    Unknown(Unknown),
}

/// What was read after a command, and what the command complained of.
#[derive(Clone)]
pub(super) struct Ran {
    pub(super) state: State,
    pub(super) error: Option<CommandError>,
}

impl<B: Backend> Shared<B> {
    async fn lock(&self, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(key.to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    /// Reads everything, and numbers the reading.
    async fn read(&self) -> Result<State, ReportError> {
        let reading = self.readings.fetch_add(1, Ordering::Relaxed) + 1;
        let state = self.backend.read().await;
        self.readable.store(state.is_ok(), Ordering::Relaxed);
        Ok(State { reading, ..state? })
    }

    pub(super) async fn before(&self) -> Result<State, Unknown> {
        self.read().await.map_err(|cause| Unknown::NotRead {
            what: "nothing was run".into(),
            cause: cause.into(),
        })
    }

    /// Reads, unless the last reading went well: for what needs nothing of the state beyond its being readable.
    pub(super) async fn before_if_unreadable(&self) -> Result<(), Unknown> {
        if !self.readable.load(Ordering::Relaxed) {
            self.before().await?;
        }
        Ok(())
    }

    pub(super) async fn run(&self, mutation: Mutation) -> Result<Ran, Failed> {
        let error = self.execute(mutation).await?;
        self.read_after(error).await
    }

    /// Runs a command, and nothing after it; what it complained of.
    pub(super) async fn execute(&self, mutation: Mutation) -> Result<Option<CommandError>, Failed> {
        let ended = point_after(&mutation);
        let error = match self.backend.execute(mutation).await {
            Ok(()) => None,
            Err(error) if matches!(error.exit, Exit::NotStarted(_)) => return Err(Failed::Refused(error)),
            Err(error) if matches!(error.exit, Exit::StillRunning) => {
                return Err(Failed::Unknown(Unknown::StillRunning(error)));
            }
            Err(error) => Some(error),
        };
        ended();
        Ok(error)
    }

    /// The volume that a command has made, where the kernel shows it, and a number that is greater than those of all
    /// readings that have begun.
    pub(super) async fn seen(&self, request: &CreateVolume) -> Option<(LogicalVolume, u64)> {
        let volume = self.backend.seen(request).await?;
        Some((volume, self.readings.fetch_add(1, Ordering::Relaxed) + 1))
    }

    /// Reads everything after a command.
    pub(super) async fn read_after(&self, error: Option<CommandError>) -> Result<Ran, Failed> {
        match self.read().await {
            Ok(state) => Ok(Ran { state, error }),
            Err(cause) => Err(Failed::Unknown(Unknown::NotRead {
                what: said(error.as_ref()),
                cause: Box::new(cause),
            })),
        }
    }

    /// The same for what only this process knows how to finish: what was not read is read again, a few times.
    pub(super) async fn run_to_a_reading(&self, mutation: Mutation) -> Result<Ran, Failed> {
        let mut result = self.run(mutation).await;
        for _ in 0..5 {
            if !matches!(result, Err(Failed::Unknown(Unknown::NotRead { .. }))) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            if let Ok(state) = self.read().await {
                result = Ok(Ran { state, error: None });
            }
        }
        result
    }
}

/// Where a test build dies: the command has changed something, and nobody has looked at it yet.
fn point_after(mutation: &Mutation) -> fn() {
    match mutation {
        Mutation::CreateVolume(_) => || crash_point!("lvm-after-lvcreate"),
        Mutation::RemoveVolumes { .. } => || crash_point!("lvm-after-lvremove"),
        Mutation::ChangeTags(_) => || crash_point!("lvm-after-lvchange"),
        Mutation::ActivateGroup(_) => || crash_point!("lvm-after-activation"),
        Mutation::CreateGroup(_) => || crash_point!("lvm-after-vgcreate"),
        Mutation::ExtendGroup { .. } => || crash_point!("lvm-after-vgextend"),
        Mutation::RemoveGroup(_) => || crash_point!("lvm-after-vgremove"),
        Mutation::RemoveLabels { .. } => || crash_point!("lvm-after-pvremove"),
        _ => || (),
    }
}

pub(super) fn said(error: Option<&CommandError>) -> String {
    error.map_or_else(|| "the command ended well".to_owned(), ToString::to_string)
}

pub(super) fn unexpected(error: Option<&CommandError>, seen: impl Into<String>) -> Unknown {
    Unknown::Unexpected {
        what: said(error),
        seen: seen.into(),
    }
}

pub(super) fn not_all_read(state: &State) -> Unknown {
    let text = state.incomplete.clone().unwrap_or_default();
    unexpected(
        None,
        format!("the group is not listed, but LVM could not read everything: {text}"),
    )
}

macro_rules! from_failed {
    ($($error:ident),+) => { $(
        impl From<Failed> for $error {
            fn from(failed: Failed) -> Self {
                match failed {
                    Failed::Refused(error) => Self::Refused(error),
                    Failed::Unknown(unknown) => Self::Unknown(unknown),
                }
            }
        }
    )+ };
}

from_failed!(
    CreateVolumeError,
    RemoveVolumeError,
    ExtendVolumeError,
    VolumeError,
    GroupError
);
from_failed!(CreateGroupError, ExtendGroupError, RemoveGroupError);

impl<B: Backend> Engine<B> {
    /// An implementation over that backend.
    pub(super) fn over(backend: B) -> Self {
        Self {
            shared: Arc::new(Shared {
                backend,
                readings: AtomicU64::new(0),
                readable: AtomicBool::new(false),
                locks: Mutex::default(),
                running: Arc::new(RwLock::new(())),
                removals: removal::Waiting::default(),
            }),
        }
    }

    pub(super) fn backend(&self) -> &B {
        &self.shared.backend
    }

    /// Runs a mutation to its end under the lock of a group, even where the caller goes away.
    fn mutate<T, E, F, W>(&self, key: String, work: W) -> BoxFuture<'_, Result<T, E>>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
        W: FnOnce(Arc<Shared<B>>) -> F + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let task = tokio::spawn(async move {
                let _running = Arc::clone(&shared.running).read_owned().await;
                let _lock = shared.lock(&key).await;
                work(Arc::clone(&shared)).await
            });
            match task.await {
                Ok(result) => result,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => std::future::pending().await,
            }
        })
    }
}

/// What is not listed is missing only where everything was read.
pub(super) fn missing_or<E: From<Unknown>>(state: &State, missing: E) -> E {
    if state.incomplete.is_some() {
        not_all_read(state).into()
    } else {
        missing
    }
}

/// Whether every tag wanted is there.
pub(super) fn has_all(tags: &[String], wanted: &[String]) -> bool {
    wanted.iter().all(|tag| tags.contains(tag))
}

impl<B: Backend> Lvm for Engine<B> {
    fn allow_devices(&self, devices: Vec<String>) -> bool {
        self.shared.backend.allow(devices)
    }

    fn report(&self) -> BoxFuture<'_, Result<State, ReportError>> {
        Box::pin(self.shared.read())
    }

    fn create_volume(&self, request: CreateVolume) -> BoxFuture<'_, Result<Made, CreateVolumeError>> {
        self.mutate(request.group.uuid.clone(), move |shared| {
            volumes::create_volume(shared, request)
        })
    }

    fn remove_volume(&self, volume: VolumeRef) -> BoxFuture<'_, Result<Done<()>, RemoveVolumeError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            check_volume(&volume)?;
            let key = volume.group.uuid.clone();
            let answer = shared.removals.ask(volume);
            tokio::spawn(async move {
                let _running = Arc::clone(&shared.running).read_owned().await;
                let _lock = shared.lock(&key).await;
                removal::run(&shared, &key).await;
            });
            let lost = || Err(unexpected(None, "the removal was broken off").into());
            answer.await.unwrap_or_else(|_| lost())
        })
    }

    fn extend_volume(&self, request: ExtendVolume) -> BoxFuture<'_, Result<Done<LogicalVolume>, ExtendVolumeError>> {
        self.mutate(request.volume.group.uuid.clone(), move |shared| {
            volumes::extend_volume(shared, request)
        })
    }

    fn change_tags(&self, request: ChangeTags) -> BoxFuture<'_, Result<Done<LogicalVolume>, VolumeError>> {
        self.mutate(request.volume.group.uuid.clone(), move |shared| {
            volumes::change_tags(shared, request)
        })
    }

    fn rename_volume(
        &self,
        volume: VolumeRef,
        name: String,
    ) -> BoxFuture<'_, Result<Done<LogicalVolume>, VolumeError>> {
        self.mutate(volume.group.uuid.clone(), move |shared| {
            volumes::rename_volume(shared, volume, name)
        })
    }

    fn set_active(&self, volume: VolumeRef, active: bool) -> BoxFuture<'_, Result<Done<LogicalVolume>, VolumeError>> {
        self.mutate(volume.group.uuid.clone(), move |shared| {
            volumes::set_active(shared, volume, active)
        })
    }

    fn activate_group(&self, group: GroupRef) -> BoxFuture<'_, Result<Done<VolumeGroup>, GroupError>> {
        self.mutate(group.uuid.clone(), move |shared| groups::activate_group(shared, group))
    }

    fn create_group(&self, request: CreateGroup) -> BoxFuture<'_, Result<Done<VolumeGroup>, CreateGroupError>> {
        self.mutate(format!("name:{}", request.name), move |shared| {
            groups::create_group(shared, request)
        })
    }

    fn extend_group(
        &self,
        group: GroupRef,
        devices: Vec<String>,
    ) -> BoxFuture<'_, Result<Done<VolumeGroup>, ExtendGroupError>> {
        self.mutate(group.uuid.clone(), move |shared| {
            groups::extend_group(shared, group, devices)
        })
    }

    fn tag_group(&self, group: GroupRef, tags: Vec<String>) -> BoxFuture<'_, Result<Done<VolumeGroup>, GroupError>> {
        self.mutate(group.uuid.clone(), move |shared| groups::tag_group(shared, group, tags))
    }

    fn remove_group(&self, group: GroupRef) -> BoxFuture<'_, Result<Done<Removal>, RemoveGroupError>> {
        self.mutate(group.uuid.clone(), move |shared| groups::remove_group(shared, group))
    }

    fn remove_labels(&self, physical_volumes: Vec<String>) -> BoxFuture<'_, Result<Done<Removal>, RemoveGroupError>> {
        self.mutate("labels".to_owned(), move |shared| {
            groups::remove_labels(shared, physical_volumes)
        })
    }

    fn resize_physical_volume(
        &self,
        group: GroupRef,
        physical_volume: String,
    ) -> BoxFuture<'_, Result<Done<VolumeGroup>, GroupError>> {
        self.mutate(group.uuid.clone(), move |shared| {
            groups::resize_physical_volume(shared, group, physical_volume)
        })
    }

    fn restore_physical_volume(
        &self,
        group: GroupRef,
        physical_volume: String,
    ) -> BoxFuture<'_, Result<Done<VolumeGroup>, GroupError>> {
        self.mutate(group.uuid.clone(), move |shared| {
            groups::restore_physical_volume(shared, group, physical_volume)
        })
    }

    fn is_busy(&self) -> bool {
        self.shared.running.try_write().is_err()
    }

    fn settle(&self) -> BoxFuture<'_, OwnedRwLockWriteGuard<()>> {
        Box::pin(Arc::clone(&self.shared.running).write_owned())
    }
}
