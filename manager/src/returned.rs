//! Disks and volumes that come late, or come back: taken up and activated.

use std::collections::BTreeSet;

use quarry_crds::tags::{self, Ownership};

use crate::context::Context;
use crate::lvm::{GroupProblem, State, VolumeGroup};

/// Whether LVM changes anything in a group, be it that a disk of it is missing.
fn is_workable(state: &State, group: &VolumeGroup) -> bool {
    matches!(state.problem_of(group), None | Some(GroupProblem::Partial))
}

/// Tags groups that a NodeLocalStorage names and that say nothing of an owner, so that no other node takes them for its own: an
/// earlier version made them, or a person has handed them to Quarry. Whether all are tagged.
pub async fn claim(context: &Context, named: &BTreeSet<String>) -> bool {
    let mut all = true;
    let state = context.inventory.get();
    for group in state.groups.iter().filter(|group| named.contains(&group.name)) {
        let unclaimed = tags::is_ours(&group.tags) && context.owner.ownership(&group.tags) == Ownership::Unclaimed;
        if !unclaimed || state.problem_of(group).is_some() {
            continue;
        }
        match context
            .lvm
            .tag_group(group.reference(), context.owner.tags().to_vec())
            .await
        {
            Ok(done) => context.inventory.set(done.state),
            Err(error) => {
                all = false;
                tracing::warn!(volume_group = group.name, %error, "it was not tagged as this node's");
            }
        }
    }
    all
}

/// Disks that were missing while their group was changed and are back: LVM goes on taking them for missing until told.
/// Whether all were taken up.
pub async fn restore(context: &Context) -> bool {
    let mut all = true;
    let state = context.inventory.get();
    let ours = state.groups.iter().filter(|group| context.owner.acts_on(&group.tags));
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
    let ours = state.groups.iter().filter(|group| context.owner.acts_on(&group.tags));
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
