//! Renews the Lease that tells that this manager is at work: [`quarry_crds::liveness`].

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use quarry_crds::liveness::lease_name;
use quarry_crds::names::FIELD_MANAGER;
use quarry_process::Shutdown;
use quarry_process::events::Saying;
use thiserror::Error;
use tokio::time::{Instant, timeout};

use crate::context::Context;
use crate::refusals::refusal;

/// The Lease was not renewed.
#[derive(Debug, Error)]
enum RenewError {
    /// The API server.
    #[error("the API server did not answer as it should: {0}")]
    Api(#[from] kube::Error),
    /// No answer came in time.
    #[error("no answer came within {} s", .0.as_secs())]
    Late(Duration),
}

/// How long one renewal may take: several fit into the time in which one is due, so that a connection on which nothing is
/// answered any more, and another after it, do not make this manager look silent.
fn deadline(every: Duration) -> Duration {
    (every / 4).clamp(Duration::from_secs(1), Duration::from_secs(10))
}

/// Where and how often the Lease is renewed.
#[derive(Debug, Clone)]
pub struct Pulse {
    /// The namespace that the manager runs in.
    pub namespace: String,
    /// How often.
    pub every: Duration,
}

/// Renews it until the end is asked for. It is not given back then: a manager that is replaced is not missed for long.
pub async fn run(context: Arc<Context>, pulse: Pulse, shutdown: Shutdown) {
    let deadline = deadline(pulse.every);
    // After a failure sooner, but never without a pause.
    let sooner = (pulse.every / 6).max(Duration::from_secs(1));
    let mut renewed = Instant::now();
    loop {
        let result = match timeout(deadline, renew(&context, &pulse)).await {
            Ok(result) => result.map_err(RenewError::from),
            Err(_) => Err(RenewError::Late(deadline)),
        };
        let pause = match result {
            Ok(()) => {
                if renewed.elapsed() > pulse.every * 2 {
                    // It may have counted as silent, and pods may wait for this node.
                    context.wake.owe();
                }
                renewed = Instant::now();
                pulse.every
            }
            Err(error) => {
                tracing::warn!(%error, "the Lease of this manager was not renewed; it is tried again");
                if let RenewError::Api(error) = &error {
                    tell(&context, &pulse, error).await;
                }
                sooner
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.wait() => return,
        }
    }
}

/// Says on the node that its Lease is refused: without it no volumes are placed here.
async fn tell(context: &Context, pulse: &Pulse, error: &kube::Error) {
    if let (Some(refusal), Some(node)) = (refusal(error), context.objects.node.state().pop()) {
        let note = format!(
            "node {}: the API server refuses Lease {}/{}, by which the scheduler extender knows that this manager is at \
             work; without it no volumes are placed here: {refusal}",
            context.node,
            pulse.namespace,
            lease_name(&context.node)
        );
        context.events.say(&*node, Saying::warning("LeaseRefused", note)).await;
    }
}

/// Renews it once. Kubernetes removes it with the Node, and nothing is renewed while there is none.
///
/// # Errors
/// The API server did not take it.
pub async fn renew(context: &Context, pulse: &Pulse) -> Result<(), kube::Error> {
    let Some(node) = context.objects.node.state().pop() else {
        return Ok(());
    };
    let owner = node.metadata.uid.clone().map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.name_any(),
        uid,
        ..OwnerReference::default()
    });
    let seconds = i32::try_from(pulse.every.as_secs().saturating_mul(3)).unwrap_or(i32::MAX);
    let name = lease_name(&context.node);
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(context.node.clone()),
            lease_duration_seconds: Some(seconds.max(1)),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    let leases: Api<Lease> = Api::namespaced(context.client.clone(), &pulse.namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    leases.patch(&name, &params, &Patch::Apply(&lease)).await?;
    Ok(())
}
