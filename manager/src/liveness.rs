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
use tokio::time::Instant;

use crate::context::Context;

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
    // After a failure sooner, but never without a pause.
    let sooner = (pulse.every / 6).max(Duration::from_secs(1));
    let mut renewed = Instant::now();
    loop {
        let pause = match renew(&context, &pulse).await {
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
                sooner
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shutdown.wait() => return,
        }
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
