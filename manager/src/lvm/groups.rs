//! Making, extending, activating and taking apart volume groups.

use std::sync::Arc;

use quarry_crds::tags::is_ours;

use super::operations::{Backend, Failed, Mutation, Ran, Shared, has_all, missing_or, not_all_read, unexpected};
use super::requests::{check_devices, check_group, check_group_name, check_tags};
use super::*;

/// How often labels are tried to be taken off.
const LABEL_ATTEMPTS: usize = 3;

pub(super) async fn activate_group<B: Backend>(
    shared: Arc<Shared<B>>,
    group: GroupRef,
) -> Result<Done<VolumeGroup>, GroupError> {
    // Of what others made, some is not meant to be activated with its group.
    let lacking = |volume: &LogicalVolume| is_ours(&volume.tags) && volume.active == Some(false) && !volume.partial;
    let done = move |group: &VolumeGroup| !group.logical_volumes.iter().any(lacking);
    check_group(&group)?;
    let state = shared.before().await?;
    let found = changeable(&state, &group, true)?.reference();
    // Also where every volume is active: links that are missing in /dev are made again.
    let ran = shared.run(Mutation::ActivateGroup(found)).await?;
    changed(group, done, ran)
}

pub(super) async fn create_group<B: Backend>(
    shared: Arc<Shared<B>>,
    request: CreateGroup,
) -> Result<Done<VolumeGroup>, CreateGroupError> {
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
        (None, error) if state.incomplete.is_some() => Err(unexpected(error.as_ref(), "not all was read").into()),
        (None, Some(error)) => Err(CreateGroupError::DeviceRefused(error)),
        (None, None) => Err(unexpected(None, "there is no such group").into()),
    }
}

pub(super) async fn extend_group<B: Backend>(
    shared: Arc<Shared<B>>,
    group: GroupRef,
    devices: Vec<String>,
) -> Result<Done<VolumeGroup>, ExtendGroupError> {
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
}

pub(super) async fn tag_group<B: Backend>(
    shared: Arc<Shared<B>>,
    group: GroupRef,
    tags: Vec<String>,
) -> Result<Done<VolumeGroup>, GroupError> {
    check_tags(&tags)?;
    let wanted = tags.clone();
    let done = move |group: &VolumeGroup| has_all(&group.tags, &wanted);
    change_group(&shared, group, false, done, |group, _| {
        Ok(Mutation::TagGroup { group, tags })
    })
    .await
}

pub(super) async fn remove_group<B: Backend>(
    shared: Arc<Shared<B>>,
    group: GroupRef,
) -> Result<Done<Removal>, RemoveGroupError> {
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
    let disks: Vec<String> = found.physical_volumes.iter().map(|pv| pv.uuid.clone()).collect();
    let removal = Mutation::RemoveGroup(found.reference());
    let Ran { state, error } = shared.run_to_a_reading(removal).await?;
    match (state.group(&group.uuid), error) {
        (Some(_), Some(error)) => return Err(RemoveGroupError::Refused(error)),
        (Some(_), None) => return Err(unexpected(None, "the group is still there").into()),
        (None, error) if state.incomplete.is_some() => {
            return Err(unexpected(error.as_ref(), "not all was read").into());
        }
        (None, _) => {}
    }
    labels_off(&shared, &disks, state).await
}

/// Takes LVM's labels off the disks of a group that is gone. They are in nobody's group any more, so it is tried several
/// times.
async fn labels_off<B: Backend>(
    shared: &Shared<B>,
    disks: &[String],
    mut state: State,
) -> Result<Done<Removal>, RemoveGroupError> {
    let mut last = None;
    for attempt in 0..=LABEL_ATTEMPTS {
        let left = state.orphans.iter().filter(|pv| disks.contains(&pv.uuid));
        let devices: Vec<String> = left.filter_map(|pv| pv.device.clone()).collect();
        if devices.is_empty() && state.incomplete.is_none() {
            return Ok(Done {
                value: Removal::Removed,
                state,
            });
        }
        if devices.is_empty() || attempt == LABEL_ATTEMPTS {
            break;
        }
        match shared.run_to_a_reading(Mutation::RemoveLabels { devices }).await {
            Ok(ran) => (state, last) = (ran.state, ran.error),
            Err(Failed::Refused(error)) => last = Some(error),
            Err(Failed::Unknown(unknown)) => return Err(unknown.into()),
        }
    }
    Err(unexpected(
        last.as_ref(),
        "the group is gone, but LVM's labels are left on its disks; \"pvremove\" takes them off",
    )
    .into())
}

pub(super) async fn remove_labels<B: Backend>(
    shared: Arc<Shared<B>>,
    physical_volumes: Vec<String>,
) -> Result<Done<Removal>, RemoveGroupError> {
    let state = shared.before().await?;
    if state.incomplete.is_some() {
        // Its group may be one that could not be read.
        return Err(not_all_read(&state).into());
    }
    labels_off(&shared, &physical_volumes, state).await
}

pub(super) async fn restore_physical_volume<B: Backend>(
    shared: Arc<Shared<B>>,
    group: GroupRef,
    physical_volume: String,
) -> Result<Done<VolumeGroup>, GroupError> {
    let reference = group.clone();
    let uuid = physical_volume.clone();
    let done = move |found: &VolumeGroup| found.physical_volumes.iter().any(|pv| pv.uuid == uuid && !pv.missing);
    let mutation = |group, found: &VolumeGroup| {
        let pv = found.physical_volumes.iter().find(|pv| pv.uuid == physical_volume);
        match pv.and_then(|pv| pv.device.clone()) {
            Some(device) => Ok(Mutation::RestorePhysicalVolume { group, device }),
            None => Err(GroupError::NoPhysicalVolume {
                group: reference,
                uuid: physical_volume,
            }),
        }
    };
    change_group(&shared, group, true, done, mutation).await
}

pub(super) async fn resize_physical_volume<B: Backend>(
    shared: Arc<Shared<B>>,
    group: GroupRef,
    physical_volume: String,
) -> Result<Done<VolumeGroup>, GroupError> {
    let reference = group.clone();
    let mutation = |found: &VolumeGroup| {
        let pv = found.physical_volumes.iter().find(|pv| pv.uuid == physical_volume);
        match pv.and_then(|pv| pv.device.clone()) {
            Some(device) => Ok(Mutation::ResizePhysicalVolume { device }),
            None => Err(GroupError::NoPhysicalVolume {
                group: reference,
                uuid: physical_volume,
            }),
        }
    };
    // How large it becomes is LVM's decision.
    check_group(&group)?;
    let state = shared.before().await?;
    let found = changeable(&state, &group, false)?;
    let mutation = mutation(found)?;
    let ran = shared.run(mutation).await?;
    match ran.error {
        Some(error) => Err(GroupError::Refused(error)),
        None => changed(group, |_| true, ran),
    }
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
    if let Some(found) = state.group(&group.uuid)
        && done(found)
    {
        let value = found.clone();
        return Ok(Done { value, state });
    }
    let found = changeable(&state, &group, partial)?;
    let mutation = mutation(found.reference(), found)?;
    let ran = shared.run(mutation).await?;
    changed(group, done, ran)
}

/// The group, where LVM would change it. `partial` says whether a partial one will do.
fn changeable<'a>(state: &'a State, group: &GroupRef, partial: bool) -> Result<&'a VolumeGroup, GroupError> {
    let Some(found) = state.group(&group.uuid) else {
        return Err(missing_or(state, GroupError::Missing(group.clone())));
    };
    match state.problem_of(found) {
        Some(GroupProblem::Partial) if partial => Ok(found),
        Some(problem) => Err(GroupError::Unusable {
            group: group.clone(),
            problem,
        }),
        None => Ok(found),
    }
}

/// Judges a change of a group by what is there after it.
fn changed(group: GroupRef, done: impl Fn(&VolumeGroup) -> bool, ran: Ran) -> Result<Done<VolumeGroup>, GroupError> {
    let Ran { state, error } = ran;
    let Some(found) = state.group(&group.uuid) else {
        return Err(missing_or(&state, GroupError::Missing(group)));
    };
    let value = found.clone();
    match error {
        _ if done(&value) => Ok(Done { value, state }),
        Some(error) => Err(GroupError::Refused(error)),
        None => Err(unexpected(None, "the group is as it was").into()),
    }
}
