//! Volume groups that nobody needs any more are taken down, where their class asked for it.
//!
//! LVM removes a group first and its labels from the disks afterwards. A manager that dies in between has to know at its next
//! start that these labels are left from a group of its own, which nothing on the disks says. So the UUIDs of the physical
//! volumes are noted on the Node before.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use quarry_crds::storage_class::ClassParameters;
use serde_json::{Value, json};

use crate::context::Context;
use crate::lvm::VolumeGroup;
use crate::lvm_devices;

/// Tag of a volume group that is to be taken down once no class names it and no volume is left.
pub const DELETE_TAG: &str = "quarry.policy=delete";
/// On a node: UUIDs of the physical volumes of groups that are being taken down.
const ANNOTATION: &str = "quarry.dev/taking-down";

/// Finishes what a manager that died left: takes the labels off disks of groups that it had taken down. Whether nothing of it
/// is left.
pub async fn finish(context: &Context) -> bool {
    let noted = noted(context);
    let state = context.inventory.get();
    if noted.is_empty() || state.incomplete.is_some() {
        return true;
    }
    if state.orphans.iter().any(|pv| noted.contains(&pv.uuid)) {
        match context.lvm.remove_labels(noted.iter().cloned().collect()).await {
            Ok(done) => {
                tracing::info!("labels left on disks of a volume group that was taken down are removed");
                context.inventory.set(done.state);
                lvm_devices::forget(context, &noted).await;
            }
            Err(error) => {
                tracing::warn!(%error, "labels of a volume group that was taken down are left on its disks");
                let _ = context.inventory.refresh().await;
                return false;
            }
        }
    }
    // Under the version that was seen: something else may be noted by now.
    let version = context
        .objects
        .node
        .state()
        .first()
        .and_then(|node| node.resource_version());
    let cleared = annotate(context, version, Value::Null).await;
    if let Err(error) = &cleared {
        tracing::info!(%error, annotation = ANNOTATION, "it was not taken off the Node; it is tried again");
    }
    cleared.is_ok()
}

/// The physical volumes that are noted on the Node, as this node knows it.
fn noted(context: &Context) -> BTreeSet<String> {
    let node = context.objects.node.state();
    node.iter().flat_map(|node| uuids(&**node)).collect()
}

fn uuids<K: ResourceExt>(node: &K) -> Vec<String> {
    let text = node.annotations().get(ANNOTATION);
    text.into_iter()
        .flat_map(|text| text.split(',').map(str::to_owned))
        .collect()
}

/// Notes that groups are being taken down, beside what is noted already.
async fn note(context: &Context, groups: &[&VolumeGroup]) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let node = nodes.get_metadata(&context.node).await?;
    let mut all: BTreeSet<String> = uuids(&node).into_iter().collect();
    let physical = groups.iter().flat_map(|group| &group.physical_volumes);
    all.extend(physical.map(|pv| pv.uuid.clone()));
    let all: Vec<String> = all.into_iter().collect();
    annotate(context, None, json!(all.join(","))).await
}

async fn annotate(context: &Context, version: Option<String>, value: Value) -> Result<(), kube::Error> {
    let mut patch = json!({"metadata": {"annotations": {ANNOTATION: value}}});
    if let Some(version) = version {
        patch["metadata"]["resourceVersion"] = json!(version);
    }
    let nodes: Api<Node> = Api::all(context.client.clone());
    nodes
        .patch_metadata(&context.node, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// Takes down groups that Quarry made, whose class asked for it, that no class names and in which nothing is left.
/// Whether all of them are gone.
pub async fn unused(context: &Context, named: &BTreeSet<String>) -> bool {
    let state = context.inventory.get();
    if state.incomplete.is_some() {
        return true;
    }
    let is_unused = |group: &&VolumeGroup| {
        let wanted = named.contains(&group.name) || is_named_by_a_class(context, &group.name);
        let asked = context.owner.acts_on(&group.tags) && group.tags.iter().any(|tag| tag == DELETE_TAG);
        !wanted && asked && state.problem_of(group).is_none() && group.logical_volumes.is_empty()
    };
    let unused: Vec<&VolumeGroup> = state.groups.iter().filter(is_unused).collect();
    // A volume was removed and its object not yet: without the group nobody could say so.
    let (awaited, unused): (Vec<_>, Vec<_>) = unused
        .into_iter()
        .partition(|group| is_named_by_a_volume(context, group));
    if unused.is_empty() {
        return awaited.is_empty();
    }
    if let Err(error) = note(context, &unused).await {
        tracing::warn!(%error, "volume groups are taken down once that can be noted on the Node");
        return false;
    }
    let mut all = awaited.is_empty();
    for group in unused {
        tracing::info!(
            volume_group = group.name,
            "no class names it and it is empty: taking it down"
        );
        crash_point!("group-before-vgremove");
        match context.lvm.remove_group(group.reference()).await {
            Ok(done) => {
                crash_point!("group-after-vgremove");
                context.inventory.set(done.state);
                let disks = group.physical_volumes.iter().map(|pv| pv.uuid.clone());
                lvm_devices::forget(context, &disks.collect()).await;
            }
            Err(error) => {
                all = false;
                let _ = context.inventory.refresh().await;
                tracing::warn!(volume_group = group.name, %error, "it could not be taken down");
            }
        }
    }
    all
}

fn is_named_by_a_volume(context: &Context, group: &VolumeGroup) -> bool {
    let volumes = context.objects.volumes_of(&group.name);
    volumes.iter().any(|(our, _)| our.volume_group_uuid == group.uuid)
}

fn is_named_by_a_class(context: &Context, name: &str) -> bool {
    context.objects.classes.state().iter().any(|class| {
        quarry_crds::storage_class::is_ours(class)
            && ClassParameters::of(class).map_or(true, |parameters| parameters.volume_group == name)
    })
}
