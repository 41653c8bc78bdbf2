//! Objects for tests: short to write, complete to Kubernetes.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use quarry_crds::names::{BETA_STORAGE_PROVISIONER, PROVISIONER, SELECTED_NODE, STORAGE_PROVISIONER};
use serde_json::{Value, json};

/// The image that pods of tests run: a shell, coreutils and util-linux.
pub use quarry_bed::TOOLS;

/// A StorageClass in the making.
#[derive(Debug, Clone)]
pub struct Class(pub Value);

impl Class {
    /// A class of ours: WaitForFirstConsumer, Delete, expandable; each node with its disks.
    #[must_use]
    pub fn new(name: &str, nodes: &[(&str, Vec<String>)]) -> Self {
        let nodes: Vec<Value> = nodes
            .iter()
            .map(|(node, disks)| json!({"names": [node], "disks": disks}))
            .collect();
        Self(json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": name}, "provisioner": PROVISIONER,
            "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete", "allowVolumeExpansion": true,
            "parameters": {"nodes": Value::from(nodes).to_string()},
        }))
    }

    /// With a parameter.
    #[must_use]
    pub fn parameter(mut self, key: &str, value: &str) -> Self {
        self.0["parameters"][key] = json!(value);
        self
    }

    /// With any other field, such as `reclaimPolicy`.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0[field] = value.into();
        self
    }

    /// As an object.
    ///
    /// # Errors
    /// It is no StorageClass.
    pub fn object(self) -> anyhow::Result<StorageClass> {
        Ok(serde_json::from_value(self.0)?)
    }
}

/// A claim in the making.
#[derive(Debug, Clone)]
pub struct Claim(pub Value);

impl Claim {
    /// A claim of mode Filesystem, ReadWriteOnce.
    #[must_use]
    pub fn new(name: &str, class: &str, size: &str) -> Self {
        Self(json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
                     "resources": {"requests": {"storage": size}}},
        }))
    }

    /// Given to a node, by the annotations of kube-scheduler and kube-controller-manager: the manager alone is waited for.
    #[must_use]
    pub fn selected(mut self, node: &str) -> Self {
        self.0["metadata"]["annotations"] = json!({
            SELECTED_NODE: node, STORAGE_PROVISIONER: PROVISIONER, BETA_STORAGE_PROVISIONER: PROVISIONER,
        });
        self
    }

    /// As a raw block device.
    #[must_use]
    pub fn block(self) -> Self {
        self.with("volumeMode", "Block")
    }

    /// With any other field of the specification.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0["spec"][field] = value.into();
        self
    }

    /// As an object.
    ///
    /// # Errors
    /// It is no claim.
    pub fn object(self) -> anyhow::Result<PersistentVolumeClaim> {
        Ok(serde_json::from_value(self.0)?)
    }
}

/// A pod in the making: it runs a command of the shell and then sleeps, or just sleeps.
#[derive(Debug, Clone)]
pub struct PodSpec(pub Value);

impl PodSpec {
    /// A pod without volumes that sleeps.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
                "tolerations": [{"operator": "Exists"}],
                "containers": [{"name": "main", "image": TOOLS, "imagePullPolicy": "Never",
                    "command": ["sleep", "infinity"]}],
                "volumes": [],
            },
        }))
    }

    /// With a claim mounted at `/<claim>`, or as the device `/dev/<claim>`.
    #[must_use]
    pub fn claim(mut self, claim: &str, block: bool) -> Self {
        let volume = json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
        self.push("/spec/volumes", volume);
        if block {
            self.push(
                "/spec/containers/0/volumeDevices",
                json!({"name": claim, "devicePath": format!("/dev/{claim}")}),
            );
        } else {
            self.push(
                "/spec/containers/0/volumeMounts",
                json!({"name": claim, "mountPath": format!("/{claim}")}),
            );
        }
        self
    }

    /// With a generic ephemeral volume mounted at `/<name>`.
    #[must_use]
    pub fn ephemeral(mut self, name: &str, class: &str, size: &str) -> Self {
        let spec = Claim::new(name, class, size).0["spec"].clone();
        self.push(
            "/spec/volumes",
            json!({"name": name, "ephemeral": {"volumeClaimTemplate": {"spec": spec}}}),
        );
        self.push(
            "/spec/containers/0/volumeMounts",
            json!({"name": name, "mountPath": format!("/{name}")}),
        );
        self
    }

    /// With a Secret mounted at `/<name>`.
    #[must_use]
    pub fn secret(mut self, name: &str) -> Self {
        self.push("/spec/volumes", json!({"name": name, "secret": {"secretName": name}}));
        self.push(
            "/spec/containers/0/volumeMounts",
            json!({"name": name, "mountPath": format!("/{name}")}),
        );
        self
    }

    /// On that node only, through the scheduler.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.0["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        self
    }

    fn push(&mut self, at: &str, value: Value) {
        let (parent, key) = at.rsplit_once('/').unwrap_or(("", at));
        if let Some(list) = self.0.pointer_mut(parent).and_then(Value::as_object_mut)
            && let Some(list) = list.entry(key).or_insert_with(|| json!([])).as_array_mut()
        {
            list.push(value);
        }
    }

    /// As an object.
    ///
    /// # Errors
    /// It is no pod.
    pub fn object(self) -> anyhow::Result<Pod> {
        Ok(serde_json::from_value(self.0)?)
    }
}

/// A StatefulSet whose pods start all at once, each with a claim of its own mounted at `/data`; each writes its name
/// to `/data/name` and sleeps.
///
/// # Errors
/// It is no StatefulSet.
pub fn stateful_set(name: &str, replicas: u32, class: &str, size: &str) -> anyhow::Result<StatefulSet> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "podManagementPolicy": "Parallel", "serviceName": name,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
                "containers": [{"name": "main", "image": TOOLS, "imagePullPolicy": "Never",
                    "command": ["sh", "-c", "hostname > /data/name && sync && sleep infinity"],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            }},
            "volumeClaimTemplates": [Claim::new("data", class, size).0],
        },
    }))?)
}
