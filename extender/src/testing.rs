//! Objects for tests, as the API server would give them.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use quarry_crds::NodeLocalStorage;
use quarry_crds::extents::{Bytes, ExtentSize, Extents};
use quarry_crds::names::{PROVISIONER, volume_name};
use quarry_crds::node_local_storage::GroupFigures;
use serde_json::{Value, json};

use crate::api::Pod;
use crate::index::{Index, claim_key};
use crate::objects::{AnyVolume, Claim, Class, Storage};

pub const NAMESPACE: &str = "db";

/// A valid class of ours.
pub fn mk_class(name: &str) -> StorageClass {
    mk_class_with(
        name,
        json!({"nodes": r#"[{"names": ["n0"], "disks": ["/dev/disk/by-id/a"]}]"#}),
    )
}

pub fn mk_class_with(name: &str, parameters: Value) -> StorageClass {
    let class = json!({"metadata": {"name": name}, "provisioner": PROVISIONER, "parameters": parameters});
    serde_json::from_value(class).expect("a class")
}

pub fn mk_foreign_class(name: &str) -> StorageClass {
    serde_json::from_value(json!({"metadata": {"name": name}, "provisioner": "other.example"})).expect("a class")
}

/// A ready NodeLocalStorage whose volume group has this name, and `size` extents of 4 MiB of which others use `reserved`.
pub fn mk_storage(class: &str, node: &str, group: &str, size: u64, reserved: u64) -> NodeLocalStorage {
    let figures = GroupFigures {
        uuid: format!("{group}@{node}"),
        extent_size: ExtentSize::DEFAULT,
        size: Extents(size),
        free: Extents(size),
        reserved: Extents(reserved),
        largest: Extents(size),
    };
    let status = figures.to_status(group, Bytes::mib(1));
    let storage = json!({
        "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage",
        "metadata": {"name": format!("{class}.{node}")},
        "spec": {"storageClassName": class, "nodeName": node, "volumeGroup": group, "layout": "linear"},
        "status": {"volumeGroup": status, "conditions": [{"type": "Ready", "status": "True", "reason": "Ready",
            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    });
    serde_json::from_value(storage).expect("a NodeLocalStorage")
}

/// An unbound claim of this many extents of 4 MiB; its UID is `uid-` and its name.
pub fn mk_claim(name: &str, class: &str, extents: u64) -> PersistentVolumeClaim {
    let claim = json!({
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}")},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
                 "resources": {"requests": {"storage": format!("{}Mi", extents * 4)}}},
        "status": {"phase": "Pending"},
    });
    serde_json::from_value(claim).expect("a claim")
}

pub fn selected(mut claim: PersistentVolumeClaim, node: &str) -> PersistentVolumeClaim {
    let key = quarry_crds::names::SELECTED_NODE.to_owned();
    claim
        .metadata
        .annotations
        .get_or_insert_default()
        .insert(key, node.to_owned());
    claim
}

pub fn bound(mut claim: PersistentVolumeClaim) -> PersistentVolumeClaim {
    let volume = volume_name(claim.metadata.uid.as_deref().unwrap_or_default());
    claim.spec.get_or_insert_default().volume_name = Some(volume);
    claim.status.get_or_insert_default().phase = Some("Bound".to_owned());
    claim
}

/// The volume of a claim, in a group that [`mk_storage`] made.
pub fn mk_volume(claim: &str, node: &str, group: &str, extents: u64) -> PersistentVolume {
    let volume = json!({
        "metadata": {"name": format!("pvc-uid-{claim}"), "annotations": {
            "pv.kubernetes.io/provisioned-by": PROVISIONER, "quarry.dev/node": node,
            "quarry.dev/volume-group": group, "quarry.dev/volume-group-uuid": format!("{group}@{node}")}},
        "spec": {"capacity": {"storage": format!("{}Mi", extents * 4)}},
    });
    serde_json::from_value(volume).expect("a volume")
}

/// A pod that uses these claims; its UID is `uid-` and its name.
pub fn mk_pod(name: &str, claims: &[&str]) -> Pod<'static> {
    let volumes: Vec<_> = claims
        .iter()
        .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
        .collect();
    let pod = json!({
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}")},
        "spec": {"volumes": volumes},
    });
    let text = pod.to_string();
    let pod: Pod<'_> = serde_json::from_str(&text).expect("a pod");
    pod.into_owned()
}

pub fn names<'a>(nodes: &[&'a str]) -> Vec<Cow<'a, str>> {
    nodes.iter().map(|name| Cow::Borrowed(*name)).collect()
}

/// Puts objects into an index as the watches do.
pub trait Put {
    fn put(&self, index: &mut Index) -> bool;
    fn take(&self, index: &mut Index) -> bool;
}

impl Put for StorageClass {
    fn put(&self, index: &mut Index) -> bool {
        index.apply(
            self.metadata.name.as_deref().unwrap_or_default(),
            Some(Class::read(self)),
        )
    }

    fn take(&self, index: &mut Index) -> bool {
        index.apply::<Class>(self.metadata.name.as_deref().unwrap_or_default(), None)
    }
}

impl Put for NodeLocalStorage {
    fn put(&self, index: &mut Index) -> bool {
        index.apply(self.metadata.name.as_deref().unwrap_or_default(), Storage::read(self))
    }

    fn take(&self, index: &mut Index) -> bool {
        index.apply::<Storage>(self.metadata.name.as_deref().unwrap_or_default(), None)
    }
}

impl Put for PersistentVolume {
    fn put(&self, index: &mut Index) -> bool {
        index.apply(self.metadata.name.as_deref().unwrap_or_default(), AnyVolume::read(self))
    }

    fn take(&self, index: &mut Index) -> bool {
        index.apply::<AnyVolume>(self.metadata.name.as_deref().unwrap_or_default(), None)
    }
}

impl Put for PersistentVolumeClaim {
    fn put(&self, index: &mut Index) -> bool {
        index.apply(&key(self), Some(Claim::read(self)))
    }

    fn take(&self, index: &mut Index) -> bool {
        index.apply::<Claim>(&key(self), None)
    }
}

fn key(claim: &PersistentVolumeClaim) -> String {
    claim_key(NAMESPACE, claim.metadata.name.as_deref().unwrap_or_default())
}

/// An index in which every kind has been listed, and nothing found.
pub fn filled() -> Index {
    let mut index = Index::default();
    index.replace::<Class>(Vec::new());
    index.replace::<Storage>(Vec::new());
    index.replace::<Claim>(Vec::new());
    index.replace::<AnyVolume>(Vec::new());
    index
}

/// What is left for a class on a node, in extents.
pub fn free(index: &Index, class: &str, node: &str) -> Option<u64> {
    Some(index.node(node)?.1.group_of(class)?.free.0)
}
