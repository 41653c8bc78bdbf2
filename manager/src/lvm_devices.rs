//! Which devices LVM may open on this node: the disks that NodeLocalStorages list, and those of Quarry's volume groups.
//!
//! Everything else is somebody's: the raw volume of a pod, over which kubelet keeps a loop device, can hold metadata of LVM that
//! its user wrote, with any name, UUID and tag. What LVM does not open can neither be taken for Quarry's nor stand in its way.

use std::collections::BTreeSet;

use crate::context::Context;
use crate::disk_record::{RecordedDisk, RecordedGroup};
use crate::lvm::State;

/// Brings the list of devices in line with what is listed and recorded, and reads LVM anew where it has changed.
pub async fn renew(context: &Context, listed: BTreeSet<String>) {
    let listed: Vec<String> = listed.into_iter().collect();
    let state = context.inventory.get();
    let recorded = context.disk_records.get().disks();
    let mut devices = allowed(context, &state, listed.clone(), recorded.clone()).await;
    let mut changed = context.lvm.allow_devices(devices.clone());
    if changed {
        read(context).await;
    }
    // A disk that an administrator added to a group, or whose name has changed: LVM names it by its UUID.
    let lacking = lacking(context, &context.inventory.get());
    if !lacking.is_empty() {
        let found = context.disks.having_labels(lacking).await;
        let found = found
            .into_iter()
            .map(|(physical_volume, paths)| RecordedDisk { physical_volume, paths });
        let recorded = recorded.into_iter().chain(found).collect();
        devices = allowed(context, &state, listed, recorded).await;
        changed = context.lvm.allow_devices(devices);
        if changed {
            read(context).await;
        }
    }
}

async fn allowed(context: &Context, state: &State, listed: Vec<String>, recorded: Vec<RecordedDisk>) -> Vec<String> {
    let ours = state.groups.iter().filter(|group| context.owner.acts_on(&group.tags));
    let members = ours
        .flat_map(|group| &group.physical_volumes)
        .filter_map(|pv| pv.number);
    context.disks.for_lvm(listed, recorded, members.collect()).await
}

async fn read(context: &Context) {
    if let Err(error) = context.inventory.refresh().await {
        tracing::warn!(%error, "LVM could not be read after its devices had changed");
    }
}

/// UUIDs of physical volumes of our groups that LVM does not see.
fn lacking(context: &Context, state: &State) -> BTreeSet<String> {
    let ours = state.groups.iter().filter(|group| context.owner.acts_on(&group.tags));
    let disks = ours.flat_map(|group| &group.physical_volumes);
    disks
        .filter(|pv| pv.device.is_none())
        .map(|pv| pv.uuid.clone())
        .collect()
}

/// Records the disks of our groups as they are now, for the next start.
pub async fn record(context: &Context) {
    let state = context.inventory.get();
    if state.incomplete.is_some() || context.inventory.trouble().is_some() {
        return;
    }
    let ours = state.groups.iter().filter(|group| context.owner.acts_on(&group.tags));
    let numbers = ours
        .flat_map(|group| &group.physical_volumes)
        .filter_map(|pv| pv.number);
    let names = context.disks.names_of(numbers.collect()).await;
    let record = context.disk_records.get().after(&state, &context.owner, &names);
    let unseen = |group: &&RecordedGroup| state.group(&group.uuid).is_none();
    let disks = record
        .volume_groups
        .iter()
        .filter(unseen)
        .flat_map(|group| group.disks.clone());
    let overwritten = context.disks.overwritten(disks.collect()).await;
    let record = record.without(|group| {
        // An administrator says that it will not come back, or no disk of it can: each was used for something else.
        let is_used = |disk: &RecordedDisk| overwritten.contains(&disk.physical_volume);
        let lost = context.objects.lost_groups(&group.name).contains(&group.uuid);
        lost || (unseen(&group) && group.disks.iter().all(is_used))
    });
    if let Err(error) = context.disk_records.set(record).await {
        tracing::warn!(%error, "the disks of the volume groups are not recorded");
    }
}

/// Forgets volume groups that were taken down, by the UUIDs of their physical volumes: their disks carry nothing of ours any more.
pub async fn forget(context: &Context, physical_volumes: &BTreeSet<String>) {
    let of = |group: &RecordedGroup| {
        group
            .disks
            .iter()
            .any(|disk| physical_volumes.contains(&disk.physical_volume))
    };
    let record = context.disk_records.get().without(of);
    if let Err(error) = context.disk_records.set(record).await {
        tracing::warn!(%error, "a volume group that was taken down is still recorded");
    }
}
