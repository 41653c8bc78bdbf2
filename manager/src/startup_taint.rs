//! The start-up taint: pods keep away from a new node until its volumes can be used.
//!
//! kubelet registers the node with it, see `docs/scheduler.md`; it is taken off here and never put on.

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use quarry_crds::names::STARTUP_TAINT;
use serde_json::json;

use crate::context::Context;

/// Takes the taint off this node, where it has it and every volume that can be is active.
///
/// # Errors
/// The API server did not take it; the next pass tries again.
pub async fn lift(context: &Context) -> Result<(), kube::Error> {
    let seen = context.objects.node.state();
    if !seen.iter().any(|node| taints(node).iter().any(is_ours)) || !is_active(context) {
        return Ok(());
    }
    let nodes: Api<Node> = Api::all(context.client.clone());
    let Some(node) = nodes.get_opt(&context.node).await? else {
        return Ok(());
    };
    let left: Vec<&Taint> = taints(&node).iter().filter(|taint| !is_ours(taint)).collect();
    if left.len() == taints(&node).len() {
        return Ok(());
    }
    // Under the version that was seen: others put taints on nodes too.
    let patch = json!({"metadata": {"resourceVersion": node.resource_version()}, "spec": {"taints": left}});
    let params = PatchParams::default();
    nodes
        .patch_metadata(&context.node, &params, &Patch::Merge(patch))
        .await?;
    tracing::info!(
        taint = STARTUP_TAINT,
        "volumes are active and published; the taint is taken off"
    );
    Ok(())
}

fn taints(node: &Node) -> &[Taint] {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    taints.unwrap_or_default()
}

fn is_ours(taint: &Taint) -> bool {
    taint.key == STARTUP_TAINT
}

/// Whether no volume of a whole group waits to be activated. One that is not whole must not keep all pods away.
fn is_active(context: &Context) -> bool {
    let state = context.inventory.get();
    let groups = state.groups.iter().filter(|group| context.owner.acts_on(&group.tags));
    let mut whole = groups.filter(|group| state.problem_of(group).is_none());
    whole.all(|group| group.logical_volumes.iter().all(|volume| volume.active != Some(false)))
}
