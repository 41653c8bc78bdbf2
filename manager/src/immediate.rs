//! Claims that no scheduler chooses a node for (binding mode Immediate): the node with the most room takes one first.
//!
//! As in kubernetes-csi/external-provisioner's node deployment: a node waits, then writes `selected-node` itself, under
//! the resourceVersion that it saw, so that only one node wins. Here the wait is short and the emptier node waits less.
//! Before that the node asks of itself what kube-scheduler would ask of it. What it does not take it looks at again
//! whenever something changes here.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action;
use quarry_crds::eligibility;
use quarry_crds::names::SELECTED_NODE;
use quarry_crds::provisioning::Provision;
use serde_json::json;

use crate::context::Context;
use crate::provision::{ProvisionError, namespace};
use crate::volume_group;

/// The fullest node waits this long before it takes a claim.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// A node that cannot take a claim looks again after this time, where nothing tells it to before.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Whether this node takes a claim.
enum Turn {
    /// It does.
    Now,
    /// It does after that time, if no other has.
    In(Duration),
    /// It does not, and why.
    Not(String),
    /// The class has nothing here.
    NoClass,
}

/// Takes a claim for this node, where all that a scheduler would ask speaks for it and no other node was quicker.
///
/// # Errors
/// The API server did not answer as it should.
pub async fn take(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    provision: &Provision,
    context: &Context,
) -> Result<Action, ProvisionError> {
    match turn(class, provision, context) {
        Turn::Now => select(claim, context).await,
        Turn::In(time) => {
            context.wake.waiting.add(claim);
            Ok(Action::requeue(time))
        }
        Turn::Not(why) => {
            tracing::debug!(claim = claim.name_any(), why, "not taken here");
            context.wake.waiting.add(claim);
            Ok(Action::requeue(LOOK_AGAIN))
        }
        Turn::NoClass => {
            context.wake.waiting.add(claim);
            Ok(Action::await_change())
        }
    }
}

fn turn(class: &StorageClass, provision: &Provision, context: &Context) -> Turn {
    let name = class.metadata.name.as_deref().unwrap_or_default();
    let of_class = |storage: &quarry_crds::NodeLocalStorage| storage.spec.storage_class_name == name;
    if context.objects.storages.find(of_class).is_none() {
        return Turn::NoClass;
    }
    let nodes = context.objects.node.state();
    let Some(node) = nodes.first().map(Arc::clone) else {
        return Turn::Not(format!("node {} is not known", context.node));
    };
    if let Some(why) = eligibility::against(&node, class) {
        return Turn::Not(why);
    }
    let request = &provision.request;
    if let Some(time) = context.groups.refusals.left_alone(&request.uid) {
        return Turn::In(time);
    }
    let group = match volume_group::usable(context, &provision.parameters.volume_group) {
        Ok(group) => group,
        Err(why) => return Turn::Not(why),
    };
    let free = group.allocatable(&[]);
    if group.extent_size.holding(request.size) > free {
        return Turn::Not(format!("volume group {} has no room", group.name));
    }
    let used = group.size.minus(free).0.saturating_mul(1000) / group.size.0.max(1);
    let wait = LONGEST_WAIT * u32::try_from(used).unwrap_or(1000) / 1000;
    context
        .wake
        .waiting
        .turn(&request.uid, wait)
        .map_or(Turn::Now, Turn::In)
}

async fn select(claim: &PersistentVolumeClaim, context: &Context) -> Result<Action, ProvisionError> {
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
