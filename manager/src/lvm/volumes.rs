//! Making, removing and changing logical volumes.

use std::sync::Arc;

use quarry_crds::tags::{VERSION_TAG, is_ours};
use quarry_crds::{Bytes, Extents};

use super::operations::{Backend, Mutation, Ran, Shared, has_all, missing_or, not_all_read, unexpected};
use super::requests::{check_devices, check_group, check_tags, check_uuid, check_volume, check_volume_name};
use super::*;

pub(super) async fn create_volume<B: Backend>(
    shared: Arc<Shared<B>>,
    request: CreateVolume,
) -> Result<Made, CreateVolumeError> {
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
    let error = shared.execute(Mutation::CreateVolume(request.clone())).await?;
    if error.is_none()
        && let Some((volume, reading)) = shared.seen(&request).await
    {
        return Ok(Made {
            value: volume,
            group: request.group.uuid,
            state: None,
            reading,
        });
    }
    let ran = shared.read_after(error).await?;
    let Done { value, state } = created(&request, ran)?;
    Ok(Made {
        value,
        group: request.group.uuid,
        reading: state.reading,
        state: Some(state),
    })
}

pub(super) async fn extend_volume<B: Backend>(
    shared: Arc<Shared<B>>,
    request: ExtendVolume,
) -> Result<Done<LogicalVolume>, ExtendVolumeError> {
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
}

pub(super) async fn change_tags<B: Backend>(
    shared: Arc<Shared<B>>,
    request: ChangeTags,
) -> Result<Done<LogicalVolume>, VolumeError> {
    check_tags(&request.add)?;
    check_tags(&request.delete)?;
    check_tags(request.having.as_slice())?;
    if request.delete.iter().any(|tag| tag == VERSION_TAG) {
        return Err(InvalidRequest::NotTagged.into());
    }
    let (add, delete) = (request.add.clone(), request.delete.clone());
    let done = move |volume: &LogicalVolume| {
        add.iter().all(|tag| volume.tags.contains(tag)) && !delete.iter().any(|tag| volume.tags.contains(tag))
    };
    check_volume(&request.volume)?;
    request.others.iter().try_for_each(|uuid| check_uuid(uuid))?;
    // Not read before: the command itself selects by UUID and by our tag.
    let volume = request.volume.clone();
    let ran = shared.run(Mutation::ChangeTags(request)).await?;
    changed(volume, done, ran)
}

pub(super) async fn rename_volume<B: Backend>(
    shared: Arc<Shared<B>>,
    volume: VolumeRef,
    name: String,
) -> Result<Done<LogicalVolume>, VolumeError> {
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
}

pub(super) async fn set_active<B: Backend>(
    shared: Arc<Shared<B>>,
    volume: VolumeRef,
    active: bool,
) -> Result<Done<LogicalVolume>, VolumeError> {
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
        return Err(match (elsewhere, error) {
            (Some(group), error) => {
                unexpected(error.as_ref(), format!("it is in the group with UUID {}", group.uuid)).into()
            }
            // It cannot have been made in a group that is not there.
            (None, None) => unexpected(None, "its group is not listed").into(),
            (None, Some(_)) => CreateVolumeError::GroupMissing(request.group.clone()),
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
    let ran = shared.run(mutation(current.clone())).await?;
    changed(current, done, ran)
}

/// Judges a change of a volume by what is there after it.
fn changed(
    volume: VolumeRef,
    done: impl Fn(&LogicalVolume) -> bool,
    ran: Ran,
) -> Result<Done<LogicalVolume>, VolumeError> {
    let Ran { state, error } = ran;
    let (group, found) = match (state.group(&volume.group.uuid), find(&state, &volume)) {
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
            group: volume.group,
            problem,
        },
        (None, Some(error)) => VolumeError::Refused(error),
        (None, None) => unexpected(None, "the volume is as it was").into(),
    })
}
