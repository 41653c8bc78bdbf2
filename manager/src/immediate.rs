//! Claims that no scheduler chooses a node for (binding mode Immediate): the node with the most room takes one first.
//!
//! As in kubernetes-csi/external-provisioner's node deployment: a node waits, then writes `selected-node` itself, under
//! the resourceVersion that it saw, so that only one node wins. Here the wait is short and the emptier node waits less.

use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action;
use quarry_crds::names::SELECTED_NODE;
use quarry_crds::provisioning::Provision;
use serde_json::json;

use crate::context::Context;
use crate::provision::{ProvisionError, namespace};
use crate::volume_group;

/// The fullest node waits this long before it takes a claim.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// A node without room looks again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Takes a claim for this node, where it has room and no other node was quicker.
///
/// # Errors
/// The API server did not answer as it should.
pub async fn take(
    claim: &PersistentVolumeClaim,
    provision: &Provision,
    context: &Context,
) -> Result<Action, ProvisionError> {
    let class = quarry_crds::claim::class_name(claim).unwrap_or_default();
    let here = context
        .objects
        .storages
        .find(|storage| storage.spec.storage_class_name == class);
    if here.is_none() {
        return Ok(Action::await_change());
    }
    let Ok(group) = volume_group::usable(context, &provision.parameters.volume_group) else {
        return Ok(Action::requeue(LOOK_AGAIN));
    };
    let free = group.allocatable(&[]);
    if group.extent_size.holding(provision.request.size) > free {
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    let used = group.size.minus(free).0.saturating_mul(1000) / group.size.0.max(1);
    tokio::time::sleep(LONGEST_WAIT * u32::try_from(used).unwrap_or(1000) / 1000).await;
    crash_point!("immediate-before-taking");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace(claim));
    let patch = json!({"metadata": {
        "resourceVersion": claim.resource_version(),
        "annotations": {SELECTED_NODE: context.node},
    }});
    match claims
        .patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        // The change comes back through the watch, and is served then.
        Ok(_) => {
            crash_point!("immediate-after-taking");
            Ok(Action::await_change())
        }
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => Ok(Action::await_change()),
        Err(error) => Err(error.into()),
    }
}
