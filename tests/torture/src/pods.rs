//! The pods: each writes a pattern of its own into its volumes before it runs, or proves that it is there.

use anyhow::Result;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use quarry_e2e::objects::{Claim, TOOLS};
use serde_json::{Value, json};

use crate::book::{Entry, pod_name};
use crate::data::{self, CORRUPT, DEVICE, DIRECTORY, LOST};
use crate::schedule::Kind;

/// The pod of a workload: a container that writes or proves for each claim, then one that sleeps.
///
/// # Errors
/// It is no pod.
pub fn pod(entry: &Entry, seed: u64, class: &str) -> Result<Pod> {
    let workload = entry.workload;
    let (mut volumes, mut writers) = (Vec::new(), Vec::new());
    let new = if entry.ran { "0" } else { "1" };
    for (at, claim) in entry.claims.iter().enumerate() {
        let volume = format!("v{at}");
        let line = data::line(seed, &claim.name, claim.generation);
        volumes.push(if workload.kind == Kind::Ephemeral {
            let spec = Claim::new("data", class, &format!("{}Mi", workload.size)).0["spec"].clone();
            json!({"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}})
        } else {
            json!({"name": volume, "persistentVolumeClaim": {"claimName": claim.name}})
        });
        let name = if workload.kind == Kind::Ephemeral {
            "data"
        } else {
            &volume
        };
        let (script, place, field) = if claim.raw {
            (DEVICE, "/dev/data", "volumeDevices")
        } else {
            (DIRECTORY, "/data", "volumeMounts")
        };
        let at = if claim.raw {
            json!([{"name": name, "devicePath": place}])
        } else {
            json!([{"name": name, "mountPath": place}])
        };
        let command = json!(["sh", "-c", script, "sh", line, place, new]);
        writers.push(container(&format!("data-{volume}"), &command, field, &at));
    }
    // Mounted here as well, so that they stay mounted.
    let mut main = container("main", &json!(["sleep", "infinity"]), "volumeMounts", &json!([]));
    for (at, claim) in entry.claims.iter().enumerate() {
        let name = if workload.kind == Kind::Ephemeral {
            "data".to_owned()
        } else {
            format!("v{at}")
        };
        if claim.raw {
            main["volumeDevices"] = json!([{"name": name, "devicePath": "/dev/data"}]);
        } else if let Some(mounts) = main["volumeMounts"].as_array_mut() {
            mounts.push(json!({"name": name, "mountPath": format!("/data{at}")}));
        }
    }
    Ok(serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod_name(workload.number)},
        "spec": {
            "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
            "tolerations": [{"operator": "Exists"}],
            "initContainers": writers, "containers": [main], "volumes": volumes,
        },
    }))?)
}

fn container(name: &str, command: &Value, field: &str, at: &Value) -> Value {
    let mut container = json!({"name": name, "image": TOOLS, "imagePullPolicy": "Never", "command": command});
    container[field] = at.clone();
    container
}

/// Whether a pod runs, its data proved.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|conditions| conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

/// What a pod says of data that is not as it should be: whether it is lost, and what was seen.
#[must_use]
pub fn complaint(pod: &Pod) -> Option<(bool, String)> {
    let statuses = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let ends = |status: &ContainerStatus| {
        let now = status.state.clone().and_then(|state| state.terminated);
        let last = status.last_state.clone().and_then(|state| state.terminated);
        [now, last]
    };
    statuses.iter().flat_map(ends).flatten().find_map(|end| {
        let code = i64::from(end.exit_code);
        let text = end.message.unwrap_or_else(|| format!("exit code {code}"));
        (code == CORRUPT || code == LOST).then_some((code == LOST, text))
    })
}
