//! What every implementation of [`Lvm`] does alike: check the request, lock the group, run, read again, decide.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::BoxFuture;
use quarry_crds::tags::{VERSION_TAG, is_ours};
use quarry_crds::{Bytes, Extents};
use tokio::sync::{Mutex as AsyncMutex, OwnedRwLockWriteGuard, RwLock};

use super::command::{CommandError, Exit};
use super::requests::{check_devices, check_group, check_group_name, check_tags, check_volume, check_volume_name};
use super::*;

/// The part that differs: running commands and reading reports.
pub trait Backend: Send + Sync + 'static {
    /// Reads everything.
    fn read(&self) -> BoxFuture<'_, Result<State, ReportError>>;
    /// Runs one mutation, as LVM would.
    fn execute(&self, mutation: Mutation) -> BoxFuture<'_, Result<(), CommandError>>;
}

/// One command that changes something. Names in it are current, and the identities have been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is one operation of the trait Lvm, which is documented")]
pub enum Mutation {
    CreateVolume(CreateVolume),
    RemoveVolume(VolumeRef),
    ExtendVolume(ExtendVolume),
    ChangeTags(ChangeTags),
    RenameVolume { volume: VolumeRef, name: String },
    SetActive { volume: VolumeRef, active: bool },
    ActivateGroup(GroupRef),
    CreateGroup(CreateGroup),
    ExtendGroup { group: GroupRef, devices: Vec<String> },
    TagGroup { group: GroupRef, tags: Vec<String> },
    RemoveGroup(GroupRef),
    RemoveLabels { devices: Vec<String> },
    ResizePhysicalVolume { device: String },
}

/// An implementation of [`Lvm`] over a backend.
pub struct Engine<B> {
    shared: Arc<Shared<B>>,
}

struct Shared<B> {
    backend: B,
    /// One writer per volume group.
    locks: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
    /// Held for reading by each mutation under way.
    running: Arc<RwLock<()>>,
}

/// A command that could not be judged by what was read after it.
enum Failed {
    /// It was not even started.
    Refused(CommandError),
    Unknown(Unknown),
}

/// What was read after a command, and what the command complained of.
struct Ran {
    state: State,
    error: Option<CommandError>,
}

impl<B: Backend> Shared<B> {
    async fn lock(&self, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(locks.entry(key.to_owned()).or_default())
        };
        lock.lock_owned().await
    }

    async fn before(&self) -> Result<State, Unknown> {
        self.backend.read().await.map_err(|cause| Unknown::NotRead {
            what: "nothing was run".into(),
            cause: cause.into(),
        })
    }

    async fn run(&self, mutation: Mutation) -> Result<Ran, Failed> {
        let error = match self.backend.execute(mutation).await {
            Ok(()) => None,
            Err(error) if matches!(error.exit, Exit::NotStarted(_)) => return Err(Failed::Refused(error)),
            Err(error) if matches!(error.exit, Exit::StillRunning) => {
                return Err(Failed::Unknown(Unknown::StillRunning(error)));
            }
            Err(error) => Some(error),
        };
        match self.backend.read().await {
            Ok(state) => Ok(Ran { state, error }),
            Err(cause) => Err(Failed::Unknown(Unknown::NotRead {
                what: said(error.as_ref()),
                cause: Box::new(cause),
            })),
        }
    }
}

fn said(error: Option<&CommandError>) -> String {
    error.map_or_else(|| "the command ended well".to_owned(), ToString::to_string)
}

fn unexpected(error: Option<&CommandError>, seen: impl Into<String>) -> Unknown {
    Unknown::Unexpected {
        what: said(error),
        seen: seen.into(),
    }
}

fn not_all_read(state: &State) -> Unknown {
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
                locks: Mutex::default(),
                running: Arc::new(RwLock::new(())),
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

impl<B: Backend> Lvm for Engine<B> {
    fn report(&self) -> BoxFuture<'_, Result<State, ReportError>> {
        self.shared.backend.read()
    }

    fn create_volume(&self, request: CreateVolume) -> BoxFuture<'_, Result<Done<LogicalVolume>, CreateVolumeError>> {
        self.mutate(request.group.uuid.clone(), move |shared| async move {
            check_group(&request.group)?;
            check_volume_name(&request.name)?;
            check_tags(&request.tags)?;
            check_devices(&request.devices)?;
            if !is_ours(&request.tags) {
                return Err(InvalidRequest::NotTagged.into());
            }
            if request.extents == Extents::ZERO {
                return Err(InvalidRequest::Empty.into());
            }
            let ran = shared.run(Mutation::CreateVolume(request.clone())).await?;
            created(&request, ran)
        })
    }

    fn remove_volume(&self, volume: VolumeRef) -> BoxFuture<'_, Result<Done<Removal>, RemoveVolumeError>> {
        self.mutate(volume.group.uuid.clone(), move |shared| async move {
            check_volume(&volume)?;
            let state = shared.before().await?;
            let Some(group) = state.group(&volume.group.uuid) else {
                return Err(missing_or(&state, RemoveVolumeError::GroupMissing(volume.group)));
            };
            let Some(found) = group.volume(&volume.uuid) else {
                return match state.problem_of(group) {
                    Some(problem) => Err(RemoveVolumeError::GroupUnusable {
                        group: volume.group,
                        problem,
                    }),
                    None => Ok(Done {
                        value: Removal::AlreadyGone,
                        state,
                    }),
                };
            };
            let current = group.reference_to(found);
            if !is_ours(&found.tags) {
                return Err(RemoveVolumeError::NotOurs(current));
            }
            if found.open == Some(true) {
                return Err(RemoveVolumeError::Busy(current));
            }
            let Ran { state, error } = shared.run(Mutation::RemoveVolume(current.clone())).await?;
            let Some(group) = state.group(&current.group.uuid) else {
                return Err(missing_or(&state, RemoveVolumeError::GroupMissing(current.group)));
            };
            let Some(found) = group.volume(&current.uuid) else {
                return Ok(Done {
                    value: Removal::Removed,
                    state,
                });
            };
            if !is_ours(&found.tags) {
                return Err(RemoveVolumeError::NotOurs(current));
            }
            if found.open == Some(true) {
                return Err(RemoveVolumeError::Busy(current));
            }
            Err(match (state.problem_of(group), error) {
                (Some(problem), _) => RemoveVolumeError::GroupUnusable {
                    group: current.group,
                    problem,
                },
                (None, Some(error)) => RemoveVolumeError::Refused(error),
                (None, None) => unexpected(None, "the volume is still there").into(),
            })
        })
    }

    fn extend_volume(&self, request: ExtendVolume) -> BoxFuture<'_, Result<Done<LogicalVolume>, ExtendVolumeError>> {
        self.mutate(request.volume.group.uuid.clone(), move |shared| async move {
            check_volume(&request.volume)?;
            check_devices(&request.devices)?;
            let state = shared.before().await?;
            let ExtendVolume {
                volume,
                extents,
                devices,
            } = request;
            let (current, before) = match find(&state, &volume) {
                Ok((current, found)) => (current, found.clone()),
                Err(NotFound::Missing) => return Err(missing_or(&state, ExtendVolumeError::Missing(volume))),
                Err(NotFound::NotOurs) => return Err(ExtendVolumeError::NotOurs(volume)),
            };
            if before.extents >= extents {
                return Ok(Done { value: before, state });
            }
            let request = ExtendVolume {
                volume: current.clone(),
                extents,
                devices: devices.clone(),
            };
            let Ran { state, error } = shared.run(Mutation::ExtendVolume(request)).await?;
            let (Ok((_, found)), Some(group)) = (find(&state, &current), state.group(&current.group.uuid)) else {
                return Err(missing_or(&state, ExtendVolumeError::Missing(volume)));
            };
            if found.extents >= extents {
                return Ok(Done {
                    value: found.clone(),
                    state,
                });
            }
            let (asked, free) = (extents.minus(found.extents), group.allocatable(&devices));
            Err(match (state.problem_of(group), error) {
                (Some(problem), _) => ExtendVolumeError::GroupUnusable {
                    group: current.group,
                    problem,
                },
                (None, _) if free < asked => ExtendVolumeError::NoRoom {
                    group: current.group,
                    asked,
                    free,
                },
                (None, Some(error)) => ExtendVolumeError::Refused(error),
                (None, None) => unexpected(None, format!("the volume has {} extents", found.extents)).into(),
            })
        })
    }

    fn change_tags(&self, request: ChangeTags) -> BoxFuture<'_, Result<Done<LogicalVolume>, VolumeError>> {
        self.mutate(request.volume.group.uuid.clone(), move |shared| async move {
            check_tags(&request.add)?;
            check_tags(&request.delete)?;
            if request.delete.iter().any(|tag| tag == VERSION_TAG) {
                return Err(InvalidRequest::NotTagged.into());
            }
            let (add, delete) = (request.add.clone(), request.delete.clone());
            let done = move |volume: &LogicalVolume| {
                add.iter().all(|tag| volume.tags.contains(tag)) && !delete.iter().any(|tag| volume.tags.contains(tag))
            };
            change_volume(&shared, request.volume, done, |volume| {
                Mutation::ChangeTags(ChangeTags {
                    volume,
                    add: request.add,
                    delete: request.delete,
                })
            })
            .await
        })
    }

    fn rename_volume(
        &self,
        volume: VolumeRef,
        name: String,
    ) -> BoxFuture<'_, Result<Done<LogicalVolume>, VolumeError>> {
        self.mutate(volume.group.uuid.clone(), move |shared| async move {
            check_volume_name(&name)?;
            let new = name.clone();
            let (group, uuid) = (volume.group.clone(), volume.uuid.clone());
            let result = change_volume(
                &shared,
                volume,
                |volume| volume.name == name,
                |volume| Mutation::RenameVolume { volume, name: new },
            )
            .await;
            if let Err(VolumeError::Refused(_)) = &result {
                let state = shared.before().await?;
                let taken = state.group(&group.uuid).and_then(|group| group.volume_named(&name));
                if taken.is_some_and(|volume| volume.uuid != uuid) {
                    return Err(VolumeError::Exists { group, name });
                }
            }
            result
        })
    }

    fn set_active(&self, volume: VolumeRef, active: bool) -> BoxFuture<'_, Result<Done<LogicalVolume>, VolumeError>> {
        self.mutate(volume.group.uuid.clone(), move |shared| async move {
            let current = volume.clone();
            let result = change_volume(
                &shared,
                volume,
                |volume| volume.active == Some(active),
                |volume| Mutation::SetActive { volume, active },
            )
            .await;
            if let (false, Err(VolumeError::Refused(_))) = (active, &result)
                && let Ok((current, found)) = find(&shared.before().await?, &current)
                && found.open == Some(true)
            {
                return Err(VolumeError::Busy(current));
            }
            result
        })
    }

    fn activate_group(&self, group: GroupRef) -> BoxFuture<'_, Result<Done<VolumeGroup>, GroupError>> {
        self.mutate(group.uuid.clone(), move |shared| async move {
            let active =
                |volume: &LogicalVolume| volume.active == Some(true) || volume.path.is_empty() || volume.partial;
            let done = move |group: &VolumeGroup| group.logical_volumes.iter().all(active);
            change_group(&shared, group, true, done, |group, _| {
                Ok(Mutation::ActivateGroup(group))
            })
            .await
        })
    }

    fn create_group(&self, request: CreateGroup) -> BoxFuture<'_, Result<Done<VolumeGroup>, CreateGroupError>> {
        self.mutate(format!("name:{}", request.name), move |shared| async move {
            check_group_name(&request.name)?;
            check_tags(&request.tags)?;
            check_devices(&request.devices)?;
            if !is_ours(&request.tags) {
                return Err(InvalidRequest::NotTagged.into());
            }
            if request.devices.is_empty() {
                return Err(InvalidRequest::NoDevices.into());
            }
            let before = shared.before().await?;
            if let Some(group) = before.groups_named(&request.name).next() {
                return Err(CreateGroupError::Exists(group.reference()));
            }
            let Ran { state, error } = shared.run(Mutation::CreateGroup(request.clone())).await?;
            let found = state
                .groups_named(&request.name)
                .find(|group| before.group(&group.uuid).is_none());
            match (found.cloned(), error) {
                (Some(group), _) if has_all(&group.tags, &request.tags) => Ok(Done { value: group, state }),
                (Some(group), error) => Err(unexpected(
                    error.as_ref(),
                    format!("a group {} with other tags is there", group.name),
                )
                .into()),
                (None, error) if state.incomplete.is_some() => {
                    Err(unexpected(error.as_ref(), "not all was read").into())
                }
                (None, Some(error)) => Err(CreateGroupError::DeviceRefused(error)),
                (None, None) => Err(unexpected(None, "there is no such group").into()),
            }
        })
    }

    fn extend_group(
        &self,
        group: GroupRef,
        devices: Vec<String>,
    ) -> BoxFuture<'_, Result<Done<VolumeGroup>, ExtendGroupError>> {
        self.mutate(group.uuid.clone(), move |shared| async move {
            check_group(&group)?;
            check_devices(&devices)?;
            let state = shared.before().await?;
            let Some(found) = state.group(&group.uuid) else {
                return Err(missing_or(&state, ExtendGroupError::Missing(group)));
            };
            let lacking = |found: &VolumeGroup| -> Vec<String> {
                let has = |device: &String| {
                    found
                        .physical_volumes
                        .iter()
                        .any(|pv| pv.device.as_ref() == Some(device))
                };
                devices.iter().filter(|device| !has(device)).cloned().collect()
            };
            let new = lacking(found);
            if new.is_empty() {
                return Ok(Done {
                    value: found.clone(),
                    state,
                });
            }
            if let Some(problem) = state.problem_of(found) {
                return Err(ExtendGroupError::Unusable { group, problem });
            }
            let mutation = Mutation::ExtendGroup {
                group: found.reference(),
                devices: new,
            };
            let Ran { state, error } = shared.run(mutation).await?;
            let Some(found) = state.group(&group.uuid) else {
                return Err(missing_or(&state, ExtendGroupError::Missing(group)));
            };
            match (lacking(found).is_empty(), error) {
                (true, _) => Ok(Done {
                    value: found.clone(),
                    state,
                }),
                (false, Some(error)) => Err(ExtendGroupError::DeviceRefused(error)),
                (false, None) => Err(unexpected(None, "a device is not in the group").into()),
            }
        })
    }

    fn tag_group(&self, group: GroupRef, tags: Vec<String>) -> BoxFuture<'_, Result<Done<VolumeGroup>, GroupError>> {
        self.mutate(group.uuid.clone(), move |shared| async move {
            check_tags(&tags)?;
            let wanted = tags.clone();
            let done = move |group: &VolumeGroup| has_all(&group.tags, &wanted);
            change_group(&shared, group, false, done, |group, _| {
                Ok(Mutation::TagGroup { group, tags })
            })
            .await
        })
    }

    fn remove_group(&self, group: GroupRef) -> BoxFuture<'_, Result<Done<Removal>, RemoveGroupError>> {
        self.mutate(group.uuid.clone(), move |shared| async move {
            check_group(&group)?;
            let state = shared.before().await?;
            let Some(found) = state.group(&group.uuid) else {
                if state.incomplete.is_some() {
                    return Err(not_all_read(&state).into());
                }
                return Ok(Done {
                    value: Removal::AlreadyGone,
                    state,
                });
            };
            if !is_ours(&found.tags) {
                return Err(RemoveGroupError::NotOurs(group));
            }
            if !found.logical_volumes.is_empty() {
                let volumes = found.logical_volumes.iter().map(|volume| volume.name.clone()).collect();
                return Err(RemoveGroupError::NotEmpty { group, volumes });
            }
            if let Some(problem) = state.problem_of(found) {
                return Err(RemoveGroupError::Unusable { group, problem });
            }
            let devices: Vec<_> = found
                .physical_volumes
                .iter()
                .filter_map(|pv| pv.device.clone())
                .collect();
            let Ran { state, error } = shared.run(Mutation::RemoveGroup(found.reference())).await?;
            match (state.group(&group.uuid), error) {
                (Some(_), Some(error)) => return Err(RemoveGroupError::Refused(error)),
                (Some(_), None) => return Err(unexpected(None, "the group is still there").into()),
                (None, error) if state.incomplete.is_some() => {
                    return Err(unexpected(error.as_ref(), "not all was read").into());
                }
                (None, _) => {}
            }
            match shared.run(Mutation::RemoveLabels { devices }).await? {
                Ran { state, error: None } => Ok(Done {
                    value: Removal::Removed,
                    state,
                }),
                Ran { error: Some(error), .. } => Err(unexpected(
                    Some(&error),
                    "the group is gone, but LVM's labels are left on its disks; \"pvremove\" takes them off",
                )
                .into()),
            }
        })
    }

    fn resize_physical_volume(
        &self,
        group: GroupRef,
        physical_volume: String,
    ) -> BoxFuture<'_, Result<Done<VolumeGroup>, GroupError>> {
        self.mutate(group.uuid.clone(), move |shared| async move {
            let reference = group.clone();
            let mutation = |_, found: &VolumeGroup| {
                let pv = found.physical_volumes.iter().find(|pv| pv.uuid == physical_volume);
                match pv.and_then(|pv| pv.device.clone()) {
                    Some(device) => Ok(Mutation::ResizePhysicalVolume { device }),
                    None => Err(GroupError::NoPhysicalVolume {
                        group: reference,
                        uuid: physical_volume,
                    }),
                }
            };
            change_group(&shared, group, false, |_| false, mutation).await
        })
    }

    fn settle(&self) -> BoxFuture<'_, OwnedRwLockWriteGuard<()>> {
        Box::pin(Arc::clone(&self.shared.running).write_owned())
    }
}

/// Judges the making of a volume by what is there after it.
fn created(request: &CreateVolume, ran: Ran) -> Result<Done<LogicalVolume>, CreateVolumeError> {
    let Ran { state, error } = ran;
    let Some(group) = state.group(&request.group.uuid) else {
        if state.incomplete.is_some() {
            return Err(not_all_read(&state).into());
        }
        let elsewhere = state
            .groups_named(&request.group.name)
            .find(|group| group.volume_named(&request.name).is_some());
        return Err(match elsewhere {
            Some(group) => unexpected(error.as_ref(), format!("it is in the group with UUID {}", group.uuid)).into(),
            None => CreateVolumeError::GroupMissing(request.group.clone()),
        });
    };
    if let Some(volume) = group.volume_named(&request.name) {
        let as_asked = volume.extents == request.extents && has_all(&volume.tags, &request.tags);
        let volume = volume.clone();
        return match error {
            None if as_asked => Ok(Done { value: volume, state }),
            Some(cause) if as_asked => Err(CreateVolumeError::Incomplete {
                volume: Box::new(volume),
                cause,
            }),
            Some(_) => Err(CreateVolumeError::Exists {
                group: request.group.clone(),
                volume: Box::new(volume),
            }),
            None => Err(unexpected(None, format!("{} has {} extents", volume.name, volume.extents)).into()),
        };
    }
    let Some(error) = error else {
        return Err(unexpected(None, "the volume is not there").into());
    };
    let reference = request.group.clone();
    if let Some(problem) = state.problem_of(group) {
        return Err(CreateVolumeError::GroupUnusable {
            group: reference,
            problem,
        });
    }
    let free = group.allocatable(&request.devices);
    if free < request.extents {
        return Err(CreateVolumeError::NoRoom {
            group: reference,
            asked: request.extents,
            free,
        });
    }
    if group.metadata_free < metadata_needed(&request.tags) {
        return Err(CreateVolumeError::MetadataFull {
            group: reference,
            free: group.metadata_free,
        });
    }
    Err(CreateVolumeError::Refused(error))
}

/// What one more volume with these tags takes in a metadata area at most, in bytes, if it lies on few devices.
#[must_use]
pub fn metadata_needed(tags: &[String]) -> Bytes {
    let tags: usize = tags.iter().map(|tag| tag.len() + 4).sum();
    Bytes(1024 + u64::try_from(tags).unwrap_or(u64::MAX / 2))
}

enum NotFound {
    Missing,
    NotOurs,
}

fn find<'a>(state: &'a State, volume: &VolumeRef) -> Result<(VolumeRef, &'a LogicalVolume), NotFound> {
    let group = state.group(&volume.group.uuid).ok_or(NotFound::Missing)?;
    let found = group.volume(&volume.uuid).ok_or(NotFound::Missing)?;
    if is_ours(&found.tags) {
        Ok((group.reference_to(found), found))
    } else {
        Err(NotFound::NotOurs)
    }
}

/// What is not listed is missing only where everything was read.
fn missing_or<E: From<Unknown>>(state: &State, missing: E) -> E {
    if state.incomplete.is_some() {
        not_all_read(state).into()
    } else {
        missing
    }
}

/// Changes a volume of ours, unless it is as wanted already.
async fn change_volume<B: Backend>(
    shared: &Shared<B>,
    volume: VolumeRef,
    done: impl Fn(&LogicalVolume) -> bool,
    mutation: impl FnOnce(VolumeRef) -> Mutation,
) -> Result<Done<LogicalVolume>, VolumeError> {
    check_volume(&volume)?;
    let state = shared.before().await?;
    let current = match find(&state, &volume) {
        Ok((_, found)) if done(found) => {
            let value = found.clone();
            return Ok(Done { value, state });
        }
        Ok((current, _)) => current,
        Err(NotFound::Missing) => return Err(missing_or(&state, VolumeError::Missing(volume))),
        Err(NotFound::NotOurs) => return Err(VolumeError::NotOurs(volume)),
    };
    let Ran { state, error } = shared.run(mutation(current.clone())).await?;
    let (group, found) = match (state.group(&current.group.uuid), find(&state, &current)) {
        (Some(group), Ok((_, found))) => (group, found),
        (_, Err(NotFound::NotOurs)) => return Err(VolumeError::NotOurs(volume)),
        _ => return Err(missing_or(&state, VolumeError::Missing(volume))),
    };
    if done(found) {
        let value = found.clone();
        return Ok(Done { value, state });
    }
    Err(match (state.problem_of(group), error) {
        (Some(problem), _) => VolumeError::GroupUnusable {
            group: current.group,
            problem,
        },
        (None, Some(error)) => VolumeError::Refused(error),
        (None, None) => unexpected(None, "the volume is as it was").into(),
    })
}

/// Changes a volume group, unless it is as wanted already. `partial` says whether a partial group will do.
async fn change_group<B: Backend>(
    shared: &Shared<B>,
    group: GroupRef,
    partial: bool,
    done: impl Fn(&VolumeGroup) -> bool,
    mutation: impl FnOnce(GroupRef, &VolumeGroup) -> Result<Mutation, GroupError>,
) -> Result<Done<VolumeGroup>, GroupError> {
    check_group(&group)?;
    let state = shared.before().await?;
    let Some(found) = state.group(&group.uuid) else {
        return Err(missing_or(&state, GroupError::Missing(group)));
    };
    if done(found) {
        let value = found.clone();
        return Ok(Done { value, state });
    }
    match state.problem_of(found) {
        Some(GroupProblem::Partial) if partial => {}
        Some(problem) => return Err(GroupError::Unusable { group, problem }),
        None => {}
    }
    let mutation = mutation(found.reference(), found)?;
    let Ran { state, error } = shared.run(mutation).await?;
    let Some(found) = state.group(&group.uuid) else {
        return Err(missing_or(&state, GroupError::Missing(group)));
    };
    let value = found.clone();
    match error {
        Some(error) if !done(&value) => Err(GroupError::Refused(error)),
        _ => Ok(Done { value, state }),
    }
}

fn has_all(tags: &[String], wanted: &[String]) -> bool {
    wanted.iter().all(|tag| tags.contains(tag))
}
