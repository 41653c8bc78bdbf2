//! Disks and volumes that come late, or come back: taken up and activated.

use quarry_crds::tags;

use crate::context::Context;
use crate::lvm::{GroupProblem, State, VolumeGroup};

/// Whether LVM changes anything in a group, be it that a disk of it is missing.
fn is_workable(state: &State, group: &VolumeGroup) -> bool {
    matches!(state.problem_of(group), None | Some(GroupProblem::Partial))
}

/// Disks that were missing while their group was changed and are back: LVM goes on taking them for missing until told.
/// Whether all were taken up.
pub async fn restore(context: &Context) -> bool {
    let mut all = true;
    let state = context.inventory.get();
    let ours = state.groups.iter().filter(|group| tags::is_ours(&group.tags));
    for group in ours.filter(|group| is_workable(&state, group)) {
        for pv in group
            .physical_volumes
            .iter()
            .filter(|pv| pv.missing && pv.device.is_some())
        {
            tracing::info!(volume_group = group.name, physical_volume = pv.uuid, "a disk is back");
            match context
                .lvm
                .restore_physical_volume(group.reference(), pv.uuid.clone())
                .await
            {
                Ok(done) => context.inventory.set(done.state),
                Err(error) => {
                    all = false;
                    tracing::warn!(volume_group = group.name, %error, "it was not taken up again");
                }
            }
        }
    }
    all
}

/// Activates volumes that appeared since the last pass, such as those of disks that came late after a boot: kubelet waits
/// for them. Whether all of them are active.
pub async fn activate(context: &Context) -> bool {
    let state = context.inventory.get();
    let mut all = true;
    let ours = state.groups.iter().filter(|group| tags::is_ours(&group.tags));
    for group in ours.filter(|group| is_workable(&state, group)) {
        let mut volumes = group.logical_volumes.iter();
        if !volumes.any(|volume| tags::is_ours(&volume.tags) && context.groups.is_new(volume)) {
            continue;
        }
        match context.lvm.activate_group(group.reference()).await {
            Ok(done) => context.inventory.set(done.state),
            Err(error) => {
                all = false;
                tracing::error!(volume_group = group.name, %error, "its volumes were not all activated");
            }
        }
    }
    context.groups.saw(&context.inventory.get());
    all
}
