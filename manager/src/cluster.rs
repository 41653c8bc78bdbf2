//! Which cluster this is.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt as _};
use quarry_process::Shutdown;

/// The namespace whose UID tells a cluster from every other one.
const NAMESPACE: &str = "kube-system";
/// The first and the longest pause between two attempts.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// UID of the namespace kube-system, asked until it is told; `None` where the end is asked for first.
pub async fn uid(client: &Client, shutdown: &Shutdown) -> Option<String> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut pause = FIRST;
    loop {
        let asked = tokio::select! {
            () = shutdown.wait() => return None,
            asked = namespaces.get_metadata(NAMESPACE) => asked,
        };
        match asked.map(|namespace| namespace.uid()) {
            Ok(Some(uid)) => return Some(uid),
            Ok(None) => tracing::warn!(namespace = NAMESPACE, "it has no UID; it is asked for again"),
            Err(error) => {
                tracing::warn!(%error, "the cluster is not known yet: namespace {NAMESPACE} could not be read")
            }
        }
        tokio::select! {
            () = shutdown.wait() => return None,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST),
        }
    }
}
