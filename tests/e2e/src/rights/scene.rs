//! What thieves try on: claims and volumes of two nodes, and how all of it stands.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use quarry_crds::names::{PROVISIONER, SELECTED_NODE, STORAGE_PROVISIONER};
use serde_json::{Value, json};

use super::STORAGES;
use crate::objects::{Claim, PodSpec};
use crate::test::Test;

/// How many policies `deploy/base` has.
pub const POLICIES: usize = 11;

/// A class that does not exist, so that nobody serves its claims.
pub const NOBODY: &str = "nobody-serves-this";

/// Claims and volumes to try on: `mine` and `theirs` have a volume on node1 and node2, `here` and `there` wait for these
/// nodes, `free` for none.
pub struct Scene {
    /// The class of the volumes.
    pub class: String,
    /// Path of all claims.
    pub claims: String,
    /// Name of the volume of `mine`.
    pub mine: String,
    /// Name of the volume of `theirs`.
    pub theirs: String,
    free: PersistentVolumeClaim,
}

impl Scene {
    /// Makes all of it.
    ///
    /// # Errors
    /// It could not be made.
    pub async fn set(test: &Test) -> Result<Self> {
        compiled(test, POLICIES).await?;
        let class = test.simple_class("a", 0).await?;
        for (name, node) in [("mine", "node1"), ("theirs", "node2")] {
            test.claim(Claim::new(name, &class, "100Mi")).await?;
            test.pod(PodSpec::new(name).claim(name, false).on(node)).await?;
            test.running(name).await?;
        }
        for (name, node) in [("here", Some("node1")), ("there", Some("node2"))] {
            test.claim(waiting(name, node)).await?;
        }
        Ok(Self {
            class,
            claims: format!("/api/v1/namespaces/{}/persistentvolumeclaims", test.name),
            mine: test.volume_of("mine").await?.name_any(),
            theirs: test.volume_of("theirs").await?.name_any(),
            free: test.claim(waiting("free", None)).await?,
        })
    }

    /// Path of a claim.
    #[must_use]
    pub fn claim(&self, name: &str) -> String {
        format!("{}/{name}", self.claims)
    }

    /// Path of the NodeLocalStorage of a node.
    #[must_use]
    pub fn storage(&self, node: &str) -> String {
        format!("{STORAGES}/{}.{node}", self.class)
    }

    /// A PersistentVolume for the claim `free` as the manager of node1 would write it.
    #[must_use]
    pub fn volume(&self) -> Value {
        let uid = self.free.uid().unwrap_or_default();
        let name = format!("pvc-{uid}");
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {
                "name": name, "labels": {"quarry.dev/node": "node1"}, "finalizers": ["quarry.dev/logical-volume"],
                "annotations": {"pv.kubernetes.io/provisioned-by": "lvm.quarry.dev/local", "quarry.dev/node": "node1",
                    "quarry.dev/volume-group": "none", "quarry.dev/volume-group-uuid": "none"},
            },
            "spec": {
                "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": NOBODY,
                "persistentVolumeReclaimPolicy": "Delete",
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": "free",
                    "namespace": self.free.namespace(), "uid": uid},
                "local": {"path": format!("/dev/none/{name}"), "fsType": "ext4"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node1"]}]}]}},
            },
        })
    }

    /// The same with something else at one place.
    #[must_use]
    pub fn volume_with(&self, at: &str, value: Value) -> Value {
        let mut volume = self.volume();
        if let Some(place) = volume.pointer_mut(at) {
            *place = value;
        }
        volume
    }
}

/// A claim that asks for Quarry and that nobody serves, given to a node.
fn waiting(name: &str, node: Option<&str>) -> Claim {
    let mut claim = Claim::new(name, NOBODY, "1Mi");
    claim.0["metadata"]["annotations"] = json!({STORAGE_PROVISIONER: PROVISIONER});
    if let Some(node) = node {
        claim.0["metadata"]["annotations"][SELECTED_NODE] = json!(node);
    }
    claim
}

/// Makes sure that the API server understood every expression of the policies, of which there are so many.
///
/// # Errors
/// It did not, or there are others.
pub async fn compiled(test: &Test, count: usize) -> Result<()> {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(test.client());
    let found = test
        .wait("the policies are looked at", Duration::from_secs(60), || async {
            let list = policies.list(&ListParams::default()).await?.items;
            let ours: Vec<_> = list
                .into_iter()
                .filter(|policy| policy.name_any().starts_with("quarry-"))
                .collect();
            let seen = |policy: &ValidatingAdmissionPolicy| {
                let seen = policy.status.as_ref().and_then(|status| status.observed_generation);
                seen.is_some() && seen == policy.metadata.generation
            };
            Ok((ours.len() >= count && ours.iter().all(seen)).then_some(ours))
        })
        .await?;
    ensure!(found.len() == count, "{} policies", found.len());
    for policy in found {
        let checked = policy.status.and_then(|status| status.type_checking);
        let warnings = checked
            .and_then(|checked| checked.expression_warnings)
            .unwrap_or_default();
        ensure!(warnings.is_empty(), "{:?}: {warnings:?}", policy.metadata.name);
    }
    Ok(())
}

/// What must not change of an object, whoever writes its status meanwhile.
fn fixed(object: &Value) -> Value {
    let meta = &object["metadata"];
    json!([
        object["spec"],
        meta["uid"],
        meta["labels"],
        meta["finalizers"],
        meta["ownerReferences"],
        meta["annotations"][SELECTED_NODE],
        meta["annotations"]["quarry.dev/node"],
        meta["annotations"]["mine"],
        meta["deletionTimestamp"],
    ])
}

/// How everything of the scene stands.
///
/// # Errors
/// The API server did not answer.
pub async fn all(test: &Test) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    let any = ListParams::default();
    let volumes = test.volumes().list(&any).await?.items.into_iter();
    found.extend(volumes.map(|object| (object.name_any(), serde_json::to_value(object).map(|o| fixed(&o)))));
    let claims = test.claims().list(&any).await?.items.into_iter();
    found.extend(claims.map(|object| (object.name_any(), serde_json::to_value(object).map(|o| fixed(&o)))));
    let storages = test.storages().list(&any).await?.items.into_iter();
    found.extend(storages.map(|object| (object.name_any(), serde_json::to_value(object).map(|o| fixed(&o)))));
    let nodes = Api::<Node>::all(test.client()).list(&any).await?.items.into_iter();
    found.extend(nodes.map(|object| (object.name_any(), serde_json::to_value(object).map(|o| fixed(&o)))));
    found.into_iter().map(|(name, object)| Ok((name, object?))).collect()
}
