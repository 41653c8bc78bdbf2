//! Checks of requests, so that nothing odd ever reaches a command line.

use quarry_crds::names::{VolumeGroupNameError, check_volume_group_name};
use quarry_crds::tags::check_tag;

use super::report::is_uuid;
use super::{GroupRef, InvalidRequest, VolumeRef};

/// The name of a volume group to be made.
pub(super) fn check_group_name(name: &str) -> Result<(), InvalidRequest> {
    check_volume_group_name(name).map_err(|cause| InvalidRequest::GroupName {
        name: name.to_owned(),
        cause,
    })
}

pub(super) fn check_group(group: &GroupRef) -> Result<(), InvalidRequest> {
    check_uuid(&group.uuid)?;
    // A group that was there before us may have a longer name than we would give.
    let plain = group
        .name
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "+_.-".contains(c));
    if plain && !group.name.is_empty() && !group.name.starts_with('-') && group.name.len() <= 127 {
        return Ok(());
    }
    let cause = check_volume_group_name(&group.name)
        .err()
        .unwrap_or(VolumeGroupNameError::Reserved);
    Err(InvalidRequest::GroupName {
        name: group.name.clone(),
        cause,
    })
}

pub(super) fn check_volume(volume: &VolumeRef) -> Result<(), InvalidRequest> {
    check_group(&volume.group)?;
    check_uuid(&volume.uuid)?;
    check_volume_name(&volume.name)
}

pub(super) fn check_uuid(uuid: &str) -> Result<(), InvalidRequest> {
    if is_uuid(uuid) {
        Ok(())
    } else {
        Err(InvalidRequest::Uuid(uuid.to_owned()))
    }
}

/// LVM's own rules for names (lvm(8)), and the words that it keeps for its own parts of volumes.
pub(super) fn check_volume_name(name: &str) -> Result<(), InvalidRequest> {
    const KEPT: [&str; 14] = [
        "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_mimage", "_mlog", "_pmspare", "_rimage", "_rmeta", "_tdata",
        "_tmeta", "_vdata", "_vorigin",
    ];
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "+_.-".contains(c));
    let refused = name.is_empty()
        || name.len() > 127
        || name.starts_with('-')
        || [".", ".."].contains(&name)
        || ["snapshot", "pvmove"].iter().any(|word| name.starts_with(word))
        || KEPT.iter().any(|word| name.contains(word));
    if plain && !refused {
        Ok(())
    } else {
        Err(InvalidRequest::VolumeName(name.to_owned()))
    }
}

pub(super) fn check_tags(tags: &[String]) -> Result<(), InvalidRequest> {
    tags.iter()
        .try_for_each(|tag| check_tag(tag))
        .map_err(InvalidRequest::Tag)
}

pub(super) fn check_devices(devices: &[String]) -> Result<(), InvalidRequest> {
    // A colon would be read by LVM as the beginning of a list of extents.
    let is_device = |device: &&String| device.starts_with("/dev/") && device.len() > 5;
    match devices.iter().find(|device| !is_device(device)) {
        Some(device) => Err(InvalidRequest::Device(device.clone())),
        None => Ok(()),
    }
}
