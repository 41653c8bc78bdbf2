//! Claims of other provisioners, with the pods that use them and these pods' Secrets: no stolen token draws them to a node.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use quarry_crds::claim::is_bound;
use quarry_crds::names::{BETA_STORAGE_PROVISIONER, PROVISIONER, SELECTED_NODE, STORAGE_PROVISIONER};
use serde_json::{Value, json};

use super::scene::all;
use super::thief::{Attempt, Thief};
use super::{EVENTS, LEASES, VOLUMES, event, lease};
use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(no_stolen_token_reaches_claims_of_other_provisioners)];

/// A provisioner that is none of ours.
const OTHER: &str = "other.example";

/// Neither the manager's token nor the extender's writes a claim that asks for another provisioner, and no PersistentVolume is made
/// for one.
async fn no_stolen_token_reaches_claims_of_other_provisioners(test: &Test) -> Result<()> {
    let ours = test.simple_class("a", 0).await?;
    let now = other_class(test, "now", "Immediate").await?;
    let later = other_class(test, "later", "WaitForFirstConsumer").await?;
    test.claim(Claim::new("unbound", &now, "1Mi")).await?;
    let pod = PodSpec::new("theirs").claim("unbound", false).on("node1");
    test.pod(pod).await?;
    let claim = |name: &str, class: &str, annotations: Value| {
        let mut claim = Claim::new(name, class, "1Mi");
        claim.0["metadata"]["annotations"] = annotations;
        claim
    };
    let asks = |node: Option<&str>, whom: &str| match node {
        Some(node) => json!({SELECTED_NODE: node, STORAGE_PROVISIONER: whom}),
        None => json!({STORAGE_PROVISIONER: whom}),
    };
    test.claim(claim("given", &later, asks(Some("node1"), OTHER))).await?;
    // As kube-scheduler has written it, before kube-controller-manager says whom it asks; nobody will for a class that is not there.
    test.claim(claim("unasked", "no-such-class", json!({SELECTED_NODE: "node1"})))
        .await?;
    test.claim(claim("new", "no-such-class", json!({}))).await?;
    // What its owner wrote into it does not count against its class.
    test.claim(claim("lying", &later, asks(None, PROVISIONER))).await?;
    test.claim(claim("scheduled", &ours, asks(None, PROVISIONER))).await?;
    let old = json!({SELECTED_NODE: "node1", BETA_STORAGE_PROVISIONER: PROVISIONER});
    test.claim(claim("old", "no-such-class", old)).await?;
    let unbound = asked(test, "unbound", OTHER).await?;
    asked(test, "given", OTHER).await?;

    let path = |name: &str| format!("/api/v1/namespaces/{}/persistentvolumeclaims/{name}", test.name);
    let select = |node: Value| json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
    let before = all(test).await?;
    let manager = Thief::of_process(test, "node1", "quarry-manager").await?;
    let take = |what, name: &str| Attempt::patch(what, path(name), select(json!("node1")));
    let give = |what, name: &str| Attempt::patch(what, path(name), select(Value::Null));
    for (attempt, part) in [
        (take("take another provisioner's claim", "unbound"), OTHER),
        (give("give another provisioner's claim back", "given"), OTHER),
        (
            give("give a claim back that asks for nobody", "unasked"),
            "asks for \"\"",
        ),
        (take("take a claim that asks for nobody", "new"), "asks for \"\""),
        (take("take a claim of another provisioner's class", "lying"), OTHER),
        (
            take("take a claim from kube-scheduler", "scheduled"),
            "leaves the node to kube-scheduler",
        ),
    ] {
        manager.is_refused(&attempt, &["denied request", "node1", part]).await?;
    }
    let volume = |class: Value| volume(&unbound, class);
    let mut annotated = volume(json!(ours));
    annotated["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"] = json!(now);
    for (attempt, part) in [
        (
            Attempt::create("a volume for another's claim", VOLUMES, volume(json!(now))),
            OTHER,
        ),
        (
            Attempt::create("the same by the old annotation", VOLUMES, annotated),
            OTHER,
        ),
        (
            Attempt::create("a volume without a class", VOLUMES, volume(json!(""))),
            "not none",
        ),
        (
            Attempt::create("the same, unsaid", VOLUMES, volume(Value::Null)),
            "not none",
        ),
    ] {
        manager.is_refused(&attempt, &["denied request", "node1", part]).await?;
    }
    let extender = Thief::of_process(test, "node1", "quarry-extender").await?;
    for attempt in [
        give("give another provisioner's claim back", "given"),
        give("give a claim back that asks for nobody", "unasked"),
        Attempt::create("a Lease of a manager", LEASES, lease("manager.node9", "node9")),
        Attempt::create("an event of another component", EVENTS, event("node1", "kubelet")),
        Attempt::create("an event of a manager", EVENTS, event("node1", "quarry-manager")),
    ] {
        extender.is_refused(&attempt, &["denied request", "extender"]).await?;
    }
    ensure!(all(test).await? == before, "something was changed");
    let claim = test.claims().get("unbound").await?;
    let pod = test.pods().get("theirs").await?;
    let node = pod.spec.and_then(|spec| spec.node_name);
    ensure!(!is_bound(&claim) && node.is_none(), "the pod is drawn to {node:?}");
    // What asks for Quarry, in the old way too, is served.
    manager.may(&give("give its claim back", "old")).await?;
    Ok(())
}

/// A class of another provisioner.
async fn other_class(test: &Test, suffix: &str, mode: &str) -> Result<String> {
    let class = Class::new(&test.class_name(suffix), &[])
        .with("provisioner", OTHER)
        .with("parameters", json!({}))
        .with("volumeBindingMode", mode);
    test.class(class).await
}

/// Waits until kube-controller-manager has written whom a claim asks.
async fn asked(test: &Test, name: &str, whom: &str) -> Result<PersistentVolumeClaim> {
    test.wait(
        "the claim asks for its provisioner",
        Duration::from_secs(60),
        || async {
            let claim = test.claims().get(name).await?;
            let asks = claim.annotations().get(STORAGE_PROVISIONER).map(String::as_str) == Some(whom);
            Ok(asks.then_some(claim))
        },
    )
    .await
}

/// A PersistentVolume on node1 for that claim, as whoever has the manager's token would write it.
fn volume(claim: &PersistentVolumeClaim, class: Value) -> Value {
    let (uid, name) = (claim.uid().unwrap_or_default(), claim.name_any());
    let volume = format!("pvc-{uid}");
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": volume, "labels": {"quarry.dev/node": "node1"}, "finalizers": ["quarry.dev/logical-volume"],
            "annotations": {"pv.kubernetes.io/provisioned-by": "lvm.quarry.dev/local", "quarry.dev/node": "node1",
                "quarry.dev/volume-group": "none", "quarry.dev/volume-group-uuid": "none"},
        },
        "spec": {
            "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": name,
                "namespace": claim.namespace(), "uid": uid},
            "local": {"path": format!("/dev/none/{volume}"), "fsType": "ext4"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node1"]}]}]}},
        },
    })
}
