//! A volume that a person has made a snapshot of: neither it nor the snapshot is ever removed.

use super::*;

/// What a person does with LVM's own commands.
pub trait Hand: Sync {
    /// Makes a snapshot of one extent.
    fn snapshot<'a>(&'a self, group: &'a str, volume: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), String>>;
    /// Removes a volume.
    fn remove<'a>(&'a self, group: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), String>>;
}

pub(super) async fn snapshots(lvm: &dyn Lvm, hand: &dyn Hand, group: &VolumeGroup) -> Result<(), Deviation> {
    let make = |name| lvm.create_volume(request(group, name, 3));
    let volume = expect("create a volume", make("pvc-s").await)?.value;
    let other = expect("create another beside it", make("pvc-t").await)?.value;
    ensure(
        "it stands alone",
        volume.roles == ["public"] && volume.is_alone(),
        &volume,
    )?;
    expect("make a snapshot by hand", hand.snapshot(GROUP, "pvc-s", "backup").await)?;

    let state = expect("read", lvm.report().await)?;
    let (read, snapshot) = both(&state, group)?;
    ensure(
        "the snapshot names its origin",
        snapshot.origin.as_deref() == Some("pvc-s"),
        snapshot,
    )?;
    ensure(
        "it says what it is",
        snapshot.roles == ["public", "snapshot", "thicksnapshot"],
        snapshot,
    )?;
    ensure(
        "so does the origin",
        read.roles == ["public", "origin", "thickorigin"],
        read,
    )?;
    ensure(
        "which is linear all the same",
        read.layout == "linear" && !read.is_alone(),
        read,
    )?;
    let names = |by: &[String]| by.len() == 1 && by[0].contains("quarry-conformance/backup is a snapshot of it");
    let by = state
        .group(&group.uuid)
        .map(|group| group.stacked_on(read))
        .unwrap_or_default();
    ensure("the snapshot is named", names(&by), &by)?;

    refused!(
        "remove the origin",
        lvm.remove_volume(group.reference_to(&volume)).await,
        RemoveVolumeError::Stacked { by, .. } if names(&by)
    );
    let at_once = [&other, &volume].map(|volume| lvm.remove_volume(group.reference_to(volume)));
    let [beside, origin] =
        <[_; 2]>::try_from(futures::future::join_all(at_once).await).unwrap_or_else(|_| unreachable!());
    expect("remove the one beside it at once", beside)?;
    refused!("and not the origin", origin, RemoveVolumeError::Stacked { .. });
    let state = expect("read", lvm.report().await)?;
    both(&state, group)?;

    expect("remove the snapshot by hand", hand.remove(GROUP, "backup").await)?;
    let state = expect("read", lvm.report().await)?;
    let alone = state.group(&group.uuid).and_then(|group| group.volume(&volume.uuid));
    ensure(
        "it stands alone again",
        alone.is_some_and(LogicalVolume::is_alone),
        alone,
    )?;
    let removed = expect("remove it", lvm.remove_volume(group.reference_to(&volume)).await)?;
    let gone = removed
        .state
        .group(&group.uuid)
        .is_some_and(|group| group.volume(&volume.uuid).is_none());
    ensure("it is gone", gone, &removed.state)
}

/// Origin and snapshot, which are both there.
fn both<'a>(state: &'a State, group: &VolumeGroup) -> Result<(&'a LogicalVolume, &'a LogicalVolume), Deviation> {
    let group = state.group(&group.uuid);
    let named = |name| group.and_then(|group| group.volume_named(name));
    match (named("pvc-s"), named("backup")) {
        (Some(volume), Some(snapshot)) => Ok((volume, snapshot)),
        _ => Err(Deviation {
            step: "origin and snapshot are there",
            problem: format!("{state:?}"),
        }),
    }
}
