//! A large cluster, as the API server would list it.

use quarry_crds::extents::{Bytes, ExtentSize, Extents};
use quarry_crds::names::{
    NODE_ANNOTATION, NODE_LABEL, PROVISIONED_BY, PROVISIONER, SELECTED_NODE, STORAGE_PROVISIONER, VOLUME_FINALIZER,
    VOLUME_GROUP_ANNOTATION, VOLUME_GROUP_UUID_ANNOTATION, VOLUME_PROVISIONER,
};
use quarry_crds::node_local_storage::GroupFigures;
use serde_json::{Value, json};

/// The class that all claims are of.
pub const CLASS: &str = "fast";
/// The namespace of all claims.
pub const NAMESPACE: &str = "databases";
/// Extents of 4 MiB that each node has: 1 TiB.
const NODE_EXTENTS: u64 = 1 << 18;

/// How large a cluster is. Its objects are numbered from 0.
#[derive(Debug, Clone, Copy)]
pub struct World {
    /// Nodes, each with a NodeLocalStorage.
    pub nodes: usize,
    /// Volumes with their claims, dealt out to the nodes in turn.
    pub volumes: usize,
    /// Claims that were given to a node and have no volume yet, dealt out in the same way.
    pub in_flight: usize,
}

impl World {
    /// The cluster that the goals speak of.
    pub const FULL: Self = Self {
        nodes: 5_000,
        volumes: 100_000,
        in_flight: 10_000,
    };

    /// Its claims: those with volumes, then those in flight.
    #[must_use]
    pub const fn claims(&self) -> usize {
        self.volumes + self.in_flight
    }
}

/// Name of a node.
#[must_use]
pub fn node(at: usize) -> String {
    format!("worker-{at:04}")
}

/// A UID as long as real ones.
#[must_use]
pub fn uid(at: usize) -> String {
    format!("{at:08x}-5f0c-4c1e-9d54-3b8a2e6f7c11")
}

/// UUID of a node's volume group, as long as real ones.
fn group_uuid(node: usize) -> String {
    format!("{node:06}-Zc8m-q1Vd-7wKp-X2eR-uT4y-LhS9bN")
}

/// The class.
#[must_use]
pub fn class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": CLASS, "uid": uid(0), "resourceVersion": "1"},
        "provisioner": PROVISIONER, "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete",
        "parameters": {"nodes": r#"[{"selector": {"matchLabels": {"pool": "nvme"}}, "disks": [{"model": "NVMe"}]}]"#},
    })
}

/// The NodeLocalStorage of a node. Of a `full` one others use all extents.
#[must_use]
pub fn storage(at: usize, full: bool) -> Value {
    let node = node(at);
    let figures = GroupFigures {
        uuid: group_uuid(at),
        extent_size: ExtentSize::DEFAULT,
        size: Extents(NODE_EXTENTS),
        free: Extents(NODE_EXTENTS / 2),
        reserved: Extents(if full { NODE_EXTENTS } else { 0 }),
        largest: Extents(NODE_EXTENTS / 2),
    };
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": "", "observedGeneration": 1,
               "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let disk = |n: usize| format!("/dev/disk/by-id/nvme-Local_SSD_{at:06}{n:02}");
    json!({
        "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage",
        "metadata": {"name": format!("{CLASS}.{node}"), "uid": uid(at), "resourceVersion": "1", "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"quarry.dev/node": node, "quarry.dev/storage-class": CLASS},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid(at)}],
            "managedFields": managed("quarry-manager")},
        "spec": {"storageClassName": CLASS, "nodeName": node, "volumeGroup": CLASS, "layout": "linear",
                 "disks": [{"path": disk(0)}, {"path": disk(1)}]},
        "status": {
            "volumeGroup": figures.to_status(CLASS, Bytes::mib(1)), "volumes": 20, "observedGeneration": 1,
            "machineId": format!("{at:032x}"),
            "disks": [disk_status(&disk(0)), disk_status(&disk(1))],
            "conditions": [condition("Ready", "True", "Ready"), condition("DisksAccepted", "True", "AllAccepted"),
                condition("VolumeGroupReady", "True", "Ready"), condition("Degraded", "False", "Whole")]},
    })
}

fn disk_status(path: &str) -> Value {
    json!({"path": path, "device": "/dev/nvme0n1", "id": "8bq2Yk-H1dP-wQ3r-7tZc-V5mX-9sLe-NfG6uJ", "serial": "S5H2NS0R",
           "model": "NVMe", "media": "ssd", "size": "512Gi", "free": "256Gi", "phase": "Claimed"})
}

/// A claim; those from `world.volumes` on are in flight.
#[must_use]
pub fn claim(world: &World, at: usize) -> Value {
    let bound = at < world.volumes;
    let mut claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": format!("data-postgres-{at}"), "namespace": NAMESPACE, "uid": uid(at), "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "postgres", "team": "payments"},
            "annotations": {SELECTED_NODE: node(at % world.nodes), STORAGE_PROVISIONER: PROVISIONER,
                "volume.beta.kubernetes.io/storage-provisioner": PROVISIONER},
            "finalizers": ["kubernetes.io/pvc-protection"], "managedFields": managed("kube-controller-manager")},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": CLASS, "volumeMode": "Filesystem",
                 "resources": {"requests": {"storage": "10Gi"}}},
        "status": {"phase": "Pending"},
    });
    if bound {
        claim["spec"]["volumeName"] = json!(format!("pvc-{}", uid(at)));
        claim["status"] = json!({"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}});
        claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
    }
    claim
}

/// The volume of a claim.
#[must_use]
pub fn volume(world: &World, at: usize) -> Value {
    let node_at = at % world.nodes;
    let (node, name) = (node(node_at), format!("pvc-{}", uid(at)));
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "uid": uid(at), "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {NODE_LABEL: node}, "finalizers": [VOLUME_FINALIZER, "kubernetes.io/pv-protection"],
            "annotations": {PROVISIONED_BY: VOLUME_PROVISIONER, NODE_ANNOTATION: node, VOLUME_GROUP_ANNOTATION: CLASS,
                VOLUME_GROUP_UUID_ANNOTATION: group_uuid(node_at), "quarry.dev/machine-id": format!("{node_at:032x}")},
            "managedFields": managed("quarry-manager")},
        "spec": {"capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Delete", "storageClassName": CLASS,
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": NAMESPACE,
                "name": format!("data-postgres-{at}"), "uid": uid(at), "resourceVersion": "1"},
            "local": {"path": format!("/dev/{CLASS}/{name}"), "fsType": "ext4"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}},
        "status": {"phase": "Bound", "lastPhaseTransitionTime": "2026-01-01T00:00:00Z"},
    })
}

/// As much as the API server says of who wrote what.
fn managed(manager: &str) -> Value {
    json!([{"manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:annotations": {".": {}, "f:pv.kubernetes.io/provisioned-by": {}, "f:quarry.dev/node": {}},
                "f:labels": {".": {}, "f:quarry.dev/node": {}}, "f:finalizers": {".": {}}},
            "f:spec": {"f:accessModes": {}, "f:capacity": {".": {}, "f:storage": {}}, "f:nodeAffinity": {}, "f:volumeMode": {},
                "f:storageClassName": {}}}}])
}

/// A claim that waits for a node.
#[must_use]
pub fn waiting(at: usize) -> Value {
    let world = World {
        nodes: 1,
        volumes: 0,
        in_flight: 0,
    };
    let mut claim = claim(&world, at);
    claim["metadata"]["annotations"] = json!({});
    claim["metadata"]["name"] = json!(format!("waiting-{at}"));
    claim["metadata"]["uid"] = json!(uid(1 << 20 | at));
    claim
}

/// A pod with one claim that waits, or with none, as kube-scheduler sends it, and the nodes that it may go to.
#[must_use]
pub fn request(waiting: Option<usize>, candidates: usize) -> Vec<u8> {
    let recorded = include_str!("../../../extender/tests/samples/recorded-filter.json");
    let mut pod = serde_json::from_str::<Value>(recorded).unwrap_or_default()["Pod"].take();
    pod["metadata"]["namespace"] = json!(NAMESPACE);
    match waiting {
        Some(at) => {
            pod["metadata"]["uid"] = json!(uid(1 << 21 | at));
            pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = json!(format!("waiting-{at}"));
        }
        None => pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]),
    }
    let names: Vec<_> = (0..candidates).map(node).collect();
    // In the order of Go's fields.
    format!(r#"{{"Pod":{pod},"Nodes":null,"NodeNames":{}}}"#, json!(names)).into_bytes()
}
