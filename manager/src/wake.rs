//! Has kube-scheduler look again at pods that wait for local storage, once there is more of it. It knows nothing of a
//! NodeLocalStorage; a change of a Node it knows (kube-scheduler's event `UpdateNodeAnnotation`).

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use quarry_crds::claim::waits_for_node;
use quarry_process::Shutdown;
use serde_json::json;
use tokio::sync::Notify;

use crate::context::Context;
use crate::waiting::Waiting;

/// The extender has seen new figures by then. Where kube-scheduler was woken by the deletion of a volume, it may have
/// asked before.
const AFTER: Duration = Duration::from_millis(500);
/// At most this long between attempts.
const LONGEST: Duration = Duration::from_secs(16);
/// On a node: when its free local storage grew last.
const SPACE_ANNOTATION: &str = "quarry.dev/space-returned";

/// The watch of claims is at most so far behind kube-scheduler, which may have asked for a claim before.
const BEHIND: Duration = Duration::from_secs(10);

/// Space that came back, of which kube-scheduler was not told yet.
#[derive(Debug, Clone, Default)]
pub struct Wake {
    owed: Arc<Notify>,
    waits: Arc<Notify>,
    /// The claims that no scheduler asks for.
    pub waiting: Waiting,
}

impl Wake {
    /// More is free than before, or may be: kube-scheduler will be told once, however often this was called, if any claim
    /// waits for it.
    pub fn owe(&self) {
        self.owed.notify_one();
    }

    /// A claim was seen for which no node is chosen.
    pub fn claim_waits(&self) {
        self.waits.notify_one();
    }
}

/// Whether a claim may be waiting for room on this node.
#[must_use]
pub fn is_for_us(context: &Context, claim: &PersistentVolumeClaim) -> bool {
    waits_for_node(claim) && context.objects.has_class_of(claim)
}

/// Tells kube-scheduler whenever that is owed, and again until the API server has taken it.
pub async fn run(context: Arc<Context>, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = context.wake.owed.notified() => {}
            () = shutdown.wait() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(AFTER) => {}
            () = shutdown.wait() => return,
        }
        // Nobody is told of room that nobody waits for: that saves a write for each volume that is removed.
        let _ = context.wake.waits.notified().now_or_never();
        if context
            .objects
            .claims
            .find(|claim| is_for_us(&context, claim))
            .is_none()
        {
            tokio::select! {
                () = context.wake.waits.notified() => {}
                () = context.wake.owed.notified() => {
                    context.wake.owe();
                    continue;
                }
                () = tokio::time::sleep(BEHIND) => continue,
                () = shutdown.wait() => return,
            }
        }
        let mut delay = AFTER;
        loop {
            crash_point!("wake-before-annotation");
            match touch(&context).await {
                Ok(()) => break,
                // The node is gone, and nothing is placed on it.
                Err(kube::Error::Api(status)) if status.is_not_found() => break,
                Err(error) => {
                    tracing::warn!(%error, "waiting pods were not woken; it is tried again");
                    delay = (delay * 2).min(LONGEST);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = shutdown.wait() => return,
            }
        }
    }
}

/// Touches this node.
async fn touch(context: &Context) -> Result<(), kube::Error> {
    let patch = json!({"metadata": {"annotations": {SPACE_ANNOTATION: Timestamp::now().to_string()}}});
    let nodes: Api<Node> = Api::all(context.client.clone());
    nodes
        .patch_metadata(&context.node, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}
