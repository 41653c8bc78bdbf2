//! What LVM needs around it and lacks on this node: said in the log, in a metric, on the NodeLocalStorages of this node and in
//! readiness, for as long as it is missing. A process that ended for it would be started again, and say it in its log only.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use quarry_crds::NodeLocalStorage;
use quarry_crds::conditions::{self, Finding};
use quarry_crds::names::FIELD_MANAGER;
use quarry_crds::node_local_storage::{NodeLocalStorageStatus, condition};
use quarry_process::{Ready, Shutdown};
use serde_json::json;

use crate::lvm::problems_of_surroundings;
use crate::metrics::Metrics;

/// Why nothing can be made on a node.
pub const REASON: &str = "SurroundingsMissing";
/// How often it is looked again.
const LOOK: Duration = Duration::from_secs(10);

/// Waits until nothing is missing, and says meanwhile what is. `false` where the end is asked for first.
pub async fn wait(proc: PathBuf, node: &str, metrics: &Metrics, ready: &Ready, shutdown: &Shutdown) -> bool {
    let part = ready.part("what LVM needs around it");
    let mut told = Vec::new();
    loop {
        let proc = proc.clone();
        let looked = tokio::task::spawn_blocking(move || problems_of_surroundings(&proc)).await;
        let problems = looked.unwrap_or_default();
        metrics.surroundings(problems.len());
        if problems.is_empty() {
            part.set();
            return true;
        }
        if problems != told {
            let text = format!("LVM cannot work here: {}", problems.join("; "));
            tracing::error!("{text}");
            match Client::try_default().await {
                Ok(client) => match tell(&client, node, &text).await {
                    Ok(()) => told = problems,
                    Err(error) => tracing::warn!(%error, "the NodeLocalStorages do not say so yet; it is tried again"),
                },
                Err(error) => tracing::warn!(%error, "the API server cannot be reached"),
            }
        }
        tokio::select! {
            () = shutdown.wait() => return false,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Says it on each NodeLocalStorage of this node.
async fn tell(client: &Client, node: &str, text: &str) -> Result<(), kube::Error> {
    let api: Api<NodeLocalStorage> = Api::all(client.clone());
    let of_node = format!("spec.nodeName={node}");
    for storage in api.list(&ListParams::default().fields(&of_node)).await? {
        if storage.spec.node_name != node {
            continue;
        }
        let now = Time(Timestamp::now());
        let status = not_ready(
            storage.status.clone().unwrap_or_default(),
            text,
            storage.metadata.generation,
            &now,
        );
        let object = json!({
            "apiVersion": NodeLocalStorage::api_version(&()),
            "kind": NodeLocalStorage::kind(&()),
            "metadata": {"name": storage.name_any()},
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match api
            .patch_status(&storage.name_any(), &params, &Patch::Apply(&object))
            .await
        {
            Ok(_) => {}
            // Deleted with its class in the meantime.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The status with its group not ready, and everything else as it was: nothing is known that is newer.
fn not_ready(
    mut status: NodeLocalStorageStatus,
    text: &str,
    generation: Option<i64>,
    now: &Time,
) -> NodeLocalStorageStatus {
    let finding = Finding::new(condition::READY, false, REASON, text);
    let ready = conditions::update(&status.conditions, &[finding], generation, now);
    status.conditions.retain(|one| one.type_ != condition::READY);
    status.conditions.splice(0..0, ready);
    status
}

#[cfg(test)]
mod tests {
    use quarry_fake_api::FakeApi;
    use serde_json::Value;

    use super::*;

    fn storage(name: &str, node: &str) -> Value {
        json!({
            "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage",
            "metadata": {"name": name, "generation": 3, "labels": {"quarry.dev/node": node}},
            "spec": {"storageClassName": "fast", "nodeName": node, "volumeGroup": "fast", "layout": "linear", "disks": []},
            "status": {
                "volumes": 2,
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                    {"type": "Degraded", "status": "False", "reason": "Whole", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                ],
            },
        })
    }

    #[tokio::test]
    async fn it_is_said_on_the_objects_of_this_node_and_nothing_else_of_them_changes() {
        let api = FakeApi::new(|_| {});
        api.objects(|objects| {
            objects.put("nodelocalstorages", storage("fast.w1", "w1"));
            objects.put("nodelocalstorages", storage("fast.w2", "w2"));
        });
        tell(&api.client(), "w1", "LVM cannot work here: set hostIPC")
            .await
            .expect("told");
        let of = |name: &str| {
            let object = api.objects(|objects| objects.get("nodelocalstorages", name));
            object.expect("it is there")["status"].clone()
        };
        let (here, there) = (of("fast.w1"), of("fast.w2"));
        let ready = &here["conditions"][0];
        assert_eq!((&ready["type"], &ready["status"]), (&json!("Ready"), &json!("False")));
        assert_eq!(ready["reason"], REASON);
        assert!(
            ready["message"]
                .as_str()
                .is_some_and(|text| text.contains("set hostIPC"))
        );
        assert_eq!(
            (&here["volumes"], &here["conditions"][1]["type"]),
            (&json!(2), &json!("Degraded"))
        );
        assert_eq!(there["conditions"][0]["status"], "True", "another node's");
    }
}
