//! One suite for every implementation of [`Lvm`]: what the fake promises, LVM keeps.
//!
//! It works in a volume group of its own on the devices that it is given, which must be blank and at least two, and
//! takes everything away again where all goes well.

use quarry_crds::claim::VolumeMode;
use quarry_crds::tags::{VERSION_TAG, VolumeState, VolumeTags, Wipe};
use quarry_crds::{Bytes, Extents};
use thiserror::Error;

use super::*;

/// The volume group that the suite makes.
pub const GROUP: &str = "quarry-conformance";

/// What an implementation does otherwise.
#[derive(Debug, Error)]
#[error("{step}: {problem}")]
pub struct Deviation {
    /// What was tried.
    pub step: &'static str,
    /// What came of it.
    pub problem: String,
}

fn ensure(step: &'static str, holds: bool, seen: impl fmt::Debug) -> Result<(), Deviation> {
    if holds {
        Ok(())
    } else {
        Err(Deviation {
            step,
            problem: format!("{seen:?}"),
        })
    }
}

fn expect<T, E: fmt::Display>(step: &'static str, result: Result<T, E>) -> Result<T, Deviation> {
    result.map_err(|error| Deviation {
        step,
        problem: error.to_string(),
    })
}

macro_rules! refused {
    ($step:literal, $result:expr, $pattern:pat $(if $guard:expr)?) => {
        match $result {
            Err($pattern) $(if $guard)? => {}
            other => return Err(Deviation { step: $step, problem: format!("{:?}", other.map(|done| done.value)) }),
        }
    };
}

// After the macro, which it uses.
mod snapshots;

pub use snapshots::Hand;

fn request(group: &VolumeGroup, name: &str, extents: u64) -> CreateVolume {
    let tags = VolumeTags {
        claim_uid: name.trim_start_matches("pvc-").to_owned(),
        class: "conformance".to_owned(),
        state: VolumeState::Creating,
        wipe: Wipe::Signatures,
        mode: VolumeMode::Filesystem,
    };
    CreateVolume {
        group: group.reference(),
        name: name.to_owned(),
        extents: Extents(extents),
        tags: tags.to_vec(),
        devices: Vec::new(),
        physical_volume: None,
    }
}

/// Runs the suite.
///
/// # Errors
/// The first thing that an implementation does otherwise.
pub async fn conformance(lvm: &dyn Lvm, hand: &dyn Hand, devices: &[String]) -> Result<(), Deviation> {
    ensure("two devices or more are given", devices.len() >= 2, devices)?;
    let group = groups(lvm, devices).await?;
    allowed_devices(lvm, devices, &group).await?;
    volumes(lvm, &group).await?;
    snapshots::snapshots(lvm, hand, &group).await?;
    changes(lvm, &group).await?;
    limits(lvm, &group).await?;
    taking_apart(lvm, &group).await
}

async fn groups(lvm: &dyn Lvm, devices: &[String]) -> Result<VolumeGroup, Deviation> {
    let tags = vec![VERSION_TAG.to_owned()];
    let make = |name: &str, devices: &[String], tags: &[String]| {
        lvm.create_group(CreateGroup {
            name: name.to_owned(),
            devices: devices.to_vec(),
            tags: tags.to_vec(),
        })
    };
    refused!(
        "no devices",
        make(GROUP, &[], &tags).await,
        CreateGroupError::Invalid(InvalidRequest::NoDevices)
    );
    refused!(
        "no tag",
        make(GROUP, &devices[..1], &[]).await,
        CreateGroupError::Invalid(InvalidRequest::NotTagged)
    );
    let evil = ["-f".to_owned()];
    refused!(
        "an option as device",
        make(GROUP, &evil, &tags).await,
        CreateGroupError::Invalid(InvalidRequest::Device(_))
    );
    refused!(
        "an option as name",
        make("--force", devices, &tags).await,
        CreateGroupError::Invalid(_)
    );
    let absent = ["/dev/quarry-no-such-device".to_owned()];
    refused!(
        "no such device",
        make(GROUP, &absent, &tags).await,
        CreateGroupError::DeviceRefused(_)
    );

    let made = expect("create a group", make(GROUP, &devices[..1], &tags).await)?;
    ensure("the group has its tags", made.value.tags == tags, &made.value)?;
    ensure(
        "all of it is free",
        made.value.free == made.value.size && made.value.size.0 > 0,
        &made.value,
    )?;
    ensure(
        "extents have LVM's size",
        made.value.extent_size == ExtentSize::DEFAULT,
        &made.value,
    )?;
    ensure(
        "much metadata fits in it",
        made.value.metadata_free >= Bytes::mib(8),
        &made.value,
    )?;
    ensure(
        "it is in the state returned",
        made.state.group(&made.value.uuid) == Some(&made.value),
        &made.state,
    )?;
    refused!(
        "the name is taken",
        make(GROUP, &devices[1..2], &tags).await,
        CreateGroupError::Exists(_)
    );
    refused!(
        "the device is taken",
        make("quarry-other", &devices[..1], &tags).await,
        CreateGroupError::DeviceRefused(_)
    );

    let group = made.value.reference();
    let extended = expect(
        "extend the group",
        lvm.extend_group(group.clone(), devices.to_vec()).await,
    )?
    .value;
    ensure(
        "it has all devices",
        extended.physical_volumes.len() == devices.len(),
        &extended,
    )?;
    let sum: Extents = extended.physical_volumes.iter().map(|pv| pv.free).sum();
    ensure(
        "it is as large as its devices",
        sum == extended.free && extended.size == sum,
        &extended,
    )?;
    let again = expect(
        "extend it by nothing",
        lvm.extend_group(group.clone(), devices.to_vec()).await,
    )?
    .value;
    ensure("nothing changed", again == extended, &again)?;
    let stranger = GroupRef {
        uuid: "AAAAAA-0000-0000-0000-0000-0000-000000".to_owned(),
        ..group.clone()
    };
    let result = lvm.extend_group(stranger, devices.to_vec()).await;
    refused!("extend a group of another UUID", result, ExtendGroupError::Missing(_));
    let tagged = expect("tag it", lvm.tag_group(group, vec!["quarry.test=1".to_owned()]).await)?.value;
    ensure("it has both tags", tagged.tags.len() == 2, &tagged)?;
    Ok(tagged)
}

async fn allowed_devices(lvm: &dyn Lvm, devices: &[String], group: &VolumeGroup) -> Result<(), Deviation> {
    let one = devices[..1].to_vec();
    ensure("some devices are left out", lvm.allow_devices(one.clone()), &one)?;
    ensure("the same again is no change", !lvm.allow_devices(one.clone()), &one)?;
    let state = expect("read with fewer devices", lvm.report().await)?;
    let seen = state.group(&group.uuid);
    let lacks = |seen: &VolumeGroup| seen.physical_volumes.iter().filter(|pv| pv.missing).count() == devices.len() - 1;
    ensure(
        "what is left out is missing",
        seen.is_some_and(|seen| seen.partial && lacks(seen)),
        seen,
    )?;
    refused!(
        "make a volume meanwhile",
        lvm.create_volume(request(group, "pvc-a", 1)).await.map(|made| Done {
            value: made.value,
            state: State::default()
        }),
        CreateVolumeError::GroupUnusable { .. }
    );
    lvm.allow_devices(Vec::new());
    let state = expect("read without any device", lvm.report().await)?;
    ensure("nothing is seen", state == State::default(), &state)?;
    lvm.allow_devices(devices.to_vec());
    let state = expect("read with all of them", lvm.report().await)?;
    ensure("all is as before", state.group(&group.uuid) == Some(group), &state)
}

async fn volumes(lvm: &dyn Lvm, group: &VolumeGroup) -> Result<(), Deviation> {
    let create = |request: CreateVolume| lvm.create_volume(request);
    let made = expect("create a volume", create(request(group, "pvc-a", 3)).await)?;
    let volume = made.value;
    ensure(
        "it has the size asked for",
        volume.extents == Extents(3) && volume.size == Bytes::mib(12),
        &volume,
    )?;
    ensure("it has the name asked for", volume.name == "pvc-a", &volume)?;
    ensure(
        "its device is named",
        volume.path == format!("/dev/{GROUP}/pvc-a"),
        &volume,
    )?;
    let tags = VolumeTags::parse(&volume.tags).map(|tags| (tags.claim_uid, tags.state));
    ensure(
        "it has its tags",
        tags == Some(("a".to_owned(), VolumeState::Creating)),
        &volume,
    )?;
    ensure("it is linear", volume.layout == "linear" && !volume.partial, &volume)?;
    let on: Extents = volume.parts.iter().map(|part| part.extents).sum();
    ensure("its extents are somewhere", on == volume.extents, &volume)?;
    let state = made.state.unwrap_or_default();
    let free = state.group(&group.uuid).map(|group| group.free);
    ensure(
        "they are no longer free",
        free == Some(group.free.minus(Extents(3))),
        &state,
    )?;

    let as_asked = create(request(group, "pvc-a", 3)).await;
    refused!(
        "the same again, which may not be wiped",
        as_asked,
        CreateVolumeError::Incomplete { .. }
    );
    let other_size = create(request(group, "pvc-a", 4)).await;
    refused!("the name is taken", other_size, CreateVolumeError::Exists { volume, .. } if volume.extents == Extents(3));
    let mut stranger = request(group, "pvc-b", 1);
    stranger.group.uuid = "AAAAAA-0000-0000-0000-0000-0000-000000".to_owned();
    stranger.group.name = "quarry-nowhere".to_owned();
    refused!(
        "no such group",
        create(stranger).await,
        CreateVolumeError::GroupMissing(_)
    );
    refused!(
        "no extents",
        create(request(group, "pvc-b", 0)).await,
        CreateVolumeError::Invalid(InvalidRequest::Empty)
    );
    for name in ["", "-f", "a b", "snapshot1", "x_tmeta", "../x", "a/b", "é"] {
        refused!(
            "an odd name",
            create(request(group, name, 1)).await,
            CreateVolumeError::Invalid(_)
        );
    }
    let mut untagged = request(group, "pvc-b", 1);
    untagged.tags.clear();
    refused!(
        "no tags",
        create(untagged).await,
        CreateVolumeError::Invalid(InvalidRequest::NotTagged)
    );

    for pv in &group.physical_volumes {
        let device = pv.device.clone().unwrap_or_default();
        let on_one = CreateVolume {
            devices: vec![device],
            physical_volume: Some(pv.uuid.clone()),
            ..request(group, "pvc-one", 2)
        };
        let before = expect("read", lvm.report().await)?;
        let done = expect("create on one device", create(on_one).await)?;
        let parts = vec![Part {
            physical_volume: pv.uuid.clone(),
            extents: Extents(2),
        }];
        ensure("it is on that device only", done.value.parts == parts, &done.value)?;
        shown_as_read(lvm, before.group(&group.uuid).cloned(), &done.value).await?;
        for step in ["remove it", "remove it again"] {
            let removed = expect(step, lvm.remove_volume(group.reference_to(&done.value)).await)?;
            let group = removed.state.group(&group.uuid);
            let gone = group.is_some_and(|group| group.volume(&done.value.uuid).is_none());
            ensure("it is gone", gone, &removed.state)?;
        }
    }
    Ok(())
}

/// What the making of a volume said of it is what LVM says too, and its group, had it been read before, is with the volume as
/// LVM has it then.
async fn shown_as_read(lvm: &dyn Lvm, before: Option<VolumeGroup>, made: &LogicalVolume) -> Result<(), Deviation> {
    let sorted = |volume: &LogicalVolume| {
        let mut volume = volume.clone();
        volume.tags.sort();
        volume
    };
    let Some(mut with) = before else {
        return ensure("the group was there", false, made);
    };
    with.add(made);
    let state = expect("read", lvm.report().await)?;
    let group = state.group(&with.uuid);
    let read = group.and_then(|group| group.volume(&made.uuid)).map(sorted);
    ensure("it is read as it was shown", read == Some(sorted(made)), (&read, made))?;
    let figures = |group: &VolumeGroup| {
        let on: Vec<_> = group.physical_volumes.iter().map(|pv| pv.free).collect();
        (group.free, on, group.allocatable(&[]), group.logical_volumes.len())
    };
    let read = group.map(figures);
    ensure(
        "its extents are taken",
        read == Some(figures(&with)),
        (&read, figures(&with)),
    )
}

async fn changes(lvm: &dyn Lvm, group: &VolumeGroup) -> Result<(), Deviation> {
    let state = expect("read", lvm.report().await)?;
    let Some(volume) = state.group(&group.uuid).and_then(|group| group.volume_named("pvc-a")) else {
        return Err(Deviation {
            step: "the volume is still there",
            problem: format!("{state:?}"),
        });
    };
    let reference = group.reference_to(volume);
    let (add, delete) = VolumeState::Ready.change();
    let change = ChangeTags {
        volume: reference.clone(),
        others: Vec::new(),
        add,
        delete,
        having: None,
    };
    let changed = expect("change its tags", lvm.change_tags(change.clone()).await)?.value;
    let state = VolumeTags::parse(&changed.tags).map(|tags| tags.state);
    ensure("its state is ready", state == Some(VolumeState::Ready), &changed)?;
    let again = expect("change them again", lvm.change_tags(change).await)?.value;
    ensure("nothing changed", again == changed, &again)?;

    let extend = |extents| {
        lvm.extend_volume(ExtendVolume {
            volume: reference.clone(),
            extents: Extents(extents),
            devices: Vec::new(),
        })
    };
    let extended = expect("extend", extend(5).await)?.value;
    ensure(
        "it is larger",
        extended.extents == Extents(5) && extended.size == Bytes::mib(20),
        &extended,
    )?;
    let smaller = expect("extend to less", extend(2).await)?.value;
    ensure("it never shrinks", smaller.extents == Extents(5), &smaller)?;
    refused!(
        "extend beyond the group",
        extend(group.size.0 + 1).await,
        ExtendVolumeError::NoRoom { .. }
    );

    let renamed = expect(
        "rename",
        lvm.rename_volume(reference.clone(), "deleting-a".to_owned()).await,
    )?
    .value;
    ensure(
        "it has the new name",
        renamed.name == "deleting-a" && renamed.uuid == volume.uuid,
        &renamed,
    )?;
    let other = expect("create another", lvm.create_volume(request(group, "pvc-c", 1)).await)?.value;
    let taken = lvm
        .rename_volume(group.reference_to(&other), "deleting-a".to_owned())
        .await;
    refused!("rename to a name that is taken", taken, VolumeError::Exists { .. });
    // By UUID: the old name in the reference does not matter.
    let (add, delete) = VolumeState::Deleting.change();
    let change = ChangeTags {
        volume: reference.clone(),
        others: Vec::new(),
        add,
        delete,
        having: None,
    };
    expect("change by UUID", lvm.change_tags(change).await)?;

    let disown = ChangeTags {
        volume: group.reference_to(&other),
        others: Vec::new(),
        add: Vec::new(),
        delete: other.tags,
        having: None,
    };
    refused!(
        "take our tags off",
        lvm.change_tags(disown).await,
        VolumeError::Invalid(InvalidRequest::NotTagged)
    );
    Ok(())
}

async fn limits(lvm: &dyn Lvm, group: &VolumeGroup) -> Result<(), Deviation> {
    let state = expect("read", lvm.report().await)?;
    let free = state.group(&group.uuid).map(|group| group.free).unwrap_or_default();
    let more = lvm.create_volume(request(group, "pvc-z", free.0 + 1)).await;
    let figures = |asked: Extents, left: Extents| asked == free.plus(Extents(1)) && left == free;
    refused!("one extent too many", more, CreateVolumeError::NoRoom { asked, free: left, .. } if figures(asked, left));
    let all = expect("every extent", lvm.create_volume(request(group, "pvc-z", free.0)).await)?;
    let state = all.state.unwrap_or_default();
    let left = state.group(&group.uuid).map(|group| group.free);
    ensure("none is left", left == Some(Extents::ZERO), &state)?;
    ensure(
        "it is on every device with room",
        all.value.parts.len() == group.physical_volumes.len(),
        &all.value,
    )?;
    let more = lvm.create_volume(request(group, "pvc-y", 1)).await;
    refused!(
        "one more",
        more,
        CreateVolumeError::NoRoom {
            free: Extents::ZERO,
            ..
        }
    );
    let device = group
        .physical_volumes
        .iter()
        .filter_map(|pv| pv.device.clone())
        .take(1)
        .collect();
    let more = lvm
        .create_volume(CreateVolume {
            devices: device,
            ..request(group, "pvc-y", 1)
        })
        .await;
    refused!(
        "one more on a full device",
        more,
        CreateVolumeError::NoRoom {
            free: Extents::ZERO,
            ..
        }
    );
    let removed = expect(
        "remove the large one",
        lvm.remove_volume(group.reference_to(&all.value)).await,
    )?;
    let back = removed.state.group(&group.uuid).map(|group| group.free);
    ensure("its extents are free again", back == Some(free), &removed.state)
}

async fn taking_apart(lvm: &dyn Lvm, group: &VolumeGroup) -> Result<(), Deviation> {
    let reference = group.reference();
    let Err(RemoveGroupError::NotEmpty { volumes, .. }) = lvm.remove_group(reference.clone()).await else {
        return Err(Deviation {
            step: "remove a group with volumes",
            problem: "it was not refused".to_owned(),
        });
    };
    ensure(
        "they are named",
        volumes.len() == 2 && volumes.contains(&"pvc-c".to_owned()),
        &volumes,
    )?;
    let state = expect("read", lvm.report().await)?;
    let left = state.group(&group.uuid).map(|group| group.logical_volumes.as_slice());
    let removals = left
        .unwrap_or_default()
        .iter()
        .map(|volume| lvm.remove_volume(group.reference_to(volume)));
    for removed in futures::future::join_all(removals).await {
        let removed = expect("remove what is left, at once", removed)?;
        let empty = removed
            .state
            .group(&group.uuid)
            .is_some_and(|group| group.logical_volumes.is_empty());
        ensure("all are gone", empty, &removed.state)?;
    }
    let removed = expect("remove the group", lvm.remove_group(reference.clone()).await)?;
    ensure("it was removed", removed.value == Removal::Removed, removed.value)?;
    let orphans: Vec<_> = removed
        .state
        .orphans
        .iter()
        .filter(|pv| group.physical_volumes.iter().any(|old| old.uuid == pv.uuid))
        .collect();
    ensure("no label is left on its disks", orphans.is_empty(), orphans)?;
    let again = expect("remove it again", lvm.remove_group(reference).await)?;
    ensure("it was gone", again.value == Removal::AlreadyGone, again.value)
}
