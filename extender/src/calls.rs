//! Whether kube-scheduler calls at all: a Lease that is renewed when it does, at most once a minute.
//!
//! Nothing else tells a scheduler that does not know the extender from one that has nothing to schedule. Of several
//! extenders only the one beside the scheduler that leads is called, so all of them write the same Lease. It is read by
//! people, and by `kubectl quarry status`.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};

use crate::handlers::Extender;

/// The Lease.
pub const LEASE: &str = "quarry-scheduler-calls";
/// Field manager that writes it.
const FIELD_MANAGER: &str = "quarry-extender";
/// It is written at most once in this time.
const AT_MOST_EVERY: Duration = Duration::from_secs(60);
/// After a failure, it is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// The Lease that says that the scheduler called just now, and whom.
#[must_use]
pub fn lease(holder: &str, now: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(LEASE.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

/// Writes the Lease when the scheduler calls, for ever.
pub async fn publish(client: Client, namespace: String, holder: String, extender: Arc<Extender>) {
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let mut first = true;
    loop {
        extender.called().await;
        if std::mem::take(&mut first) {
            tracing::info!("kube-scheduler calls");
        }
        loop {
            let lease = lease(&holder, Timestamp::now());
            match leases.patch(LEASE, &params, &Patch::Apply(&lease)).await {
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(lease = LEASE, %error, "the Lease was not renewed; it is tried again");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
        tokio::time::sleep(AT_MOST_EVERY).await;
    }
}
