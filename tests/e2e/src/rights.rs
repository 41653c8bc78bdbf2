//! A manager's rights end at its own node: what whoever stole a token can do, and what not.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use quarry_crds::names::{SELECTED_NODE, STARTUP_TAINT};
use serde_json::{Value, json};

use crate::case;
use crate::test::{Case, Test};
use scene::{NOBODY, Scene, all};
use thief::{Attempt, Thief};

pub mod exposed;
pub mod foreign;
pub mod least;
pub mod scene;
pub mod secrets;
pub mod thief;
pub mod viewers;

/// The cases.
pub const CASES: &[Case] = &[
    case!(a_stolen_token_ends_at_its_own_node),
    case!(a_token_without_a_node_writes_nothing),
    case!(the_extender_changes_only_what_it_cleans_up),
    case!(odd_disks_of_a_node_local_storage_are_refused),
    least::CASES[0],
    least::CASES[1],
    foreign::CASES[0],
    secrets::CASES[0],
    exposed::CASES[0],
    viewers::CASES[0],
];

const VOLUMES: &str = "/api/v1/persistentvolumes";
const STORAGES: &str = "/apis/quarry.dev/v1alpha1/nodelocalstorages";
const NODES: &str = "/api/v1/nodes";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/quarry-system/leases";
/// A taint of somebody else.
const OTHER_TAINT: &str = "quarry.dev/of-a-test";

/// With the token out of the manager's container on node1, nothing of another node can be written.
async fn a_stolen_token_ends_at_its_own_node(test: &Test) -> Result<()> {
    let scene = Scene::set(test).await?;
    taint(test, &[STARTUP_TAINT, OTHER_TAINT]).await?;
    let result = steal(test, &scene).await;
    let untainted = taint(test, &[]).await;
    result.and(untainted)
}

async fn steal(test: &Test, scene: &Scene) -> Result<()> {
    let thief = Thief::of_process(test, "node1", "quarry-manager").await?;
    let before = all(test).await?;
    for attempt in forbidden(scene) {
        thief.is_refused(&attempt, &["denied request", "node1"]).await?;
    }
    for attempt in beyond_rbac(scene) {
        thief.is_refused(&attempt, &["quarry-manager\" cannot"]).await?;
    }
    ensure!(all(test).await? == before, "something was changed");
    for attempt in allowed(scene) {
        thief.may(&attempt).await?;
    }
    // The manager itself goes on, and makes what was deleted anew.
    test.ready(&scene.class, 3).await?;
    let volume = test.volumes().get(&scene.theirs).await?;
    ensure!(volume.metadata.deletion_timestamp.is_none());
    Ok(())
}

/// Puts these taints of ours on node1, and no others of ours.
async fn taint(test: &Test, keys: &[&str]) -> Result<()> {
    let nodes: Api<Node> = Api::all(test.client());
    let node = nodes.get("node1").await?;
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default().into_iter();
    let others = taints.filter(|taint| ![STARTUP_TAINT, OTHER_TAINT].contains(&taint.key.as_str()));
    let mut taints: Vec<Value> = others.map(serde_json::to_value).collect::<Result<_, _>>()?;
    taints.extend(keys.iter().map(|key| json!({"key": key, "effect": "PreferNoSchedule"})));
    let patch = Patch::Merge(json!({"spec": {"taints": taints}}));
    nodes.patch("node1", &PatchParams::default(), &patch).await?;
    Ok(())
}

fn event(instance: &str, controller: &str) -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"generateName": "rights-", "namespace": "default"},
        "action": "Tested", "reason": "Tested", "type": "Normal", "note": "written by a test",
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": controller, "reportingInstance": instance,
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": instance},
    })
}

fn lease(name: &str, holder: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
        "spec": {"holderIdentity": holder},
    })
}

fn storage(class: &str, node: &str) -> Value {
    json!({
        "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage", "metadata": {"name": format!("{class}.{node}")},
        "spec": {"storageClassName": class, "nodeName": node, "volumeGroup": class, "layout": "linear"},
    })
}

/// What the token of node1 must not do.
fn forbidden(scene: &Scene) -> Vec<Attempt> {
    let (patch, create) = (Attempt::patch, Attempt::create);
    let select = |node: Value| json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
    let volume = |name: &str| format!("{VOLUMES}/{name}");
    let node = |name: &str| format!("{NODES}/{name}");
    let values = "/spec/nodeAffinity/required/nodeSelectorTerms/0/matchExpressions/0/values";
    let terms = "/spec/nodeAffinity/required/nodeSelectorTerms";
    let any = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "Exists"}]}]);
    let mut host_path = scene.volume();
    host_path["spec"]["local"] = Value::Null;
    host_path["spec"]["hostPath"] = json!({"path": "/"});
    let status = json!({
        "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage",
        "metadata": {"name": format!("{}.node2", scene.class)}, "status": {"volumes": 7},
    });
    let freed = json!({"metadata": {"finalizers": null}});
    vec![
        patch("give back node2's claim", scene.claim("there"), select(Value::Null)),
        patch("take node2's claim", scene.claim("there"), select(json!("node1"))),
        patch(
            "give a free claim to node2",
            scene.claim("free"),
            select(json!("node2")),
        ),
        patch("hand its claim to node2", scene.claim("here"), select(json!("node2"))),
        patch(
            "take a claim that is bound",
            scene.claim("theirs"),
            select(json!("node1")),
        ),
        patch(
            "label a claim",
            scene.claim("here"),
            json!({"metadata": {"labels": {"a": "b"}}}),
        ),
        patch(
            "annotate a claim while giving it back",
            scene.claim("here"),
            json!({"metadata": {"annotations": {SELECTED_NODE: null, "quarry.dev/lost-node": "delete-claim"}}}),
        ),
        patch("unprotect a claim", scene.claim("theirs"), freed.clone()),
        patch(
            "grow a claim",
            scene.claim("mine"),
            json!({"spec": {"resources": {"requests": {"storage": "200Mi"}}}}),
        ),
        patch("let go of node2's volume", volume(&scene.theirs), freed.clone()),
        patch("let go of its volume for Kubernetes", volume(&scene.mine), freed),
        patch(
            "make node2's volume its own",
            volume(&scene.theirs),
            json!({"metadata": {"annotations": {"quarry.dev/node": "node1"}}}),
        ),
        patch(
            "keep its volume",
            volume(&scene.mine),
            json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}),
        ),
        Attempt::delete("delete node2's volume", volume(&scene.theirs)),
        create(
            "a volume whose pods run on node2",
            VOLUMES,
            scene.volume_with(values, json!(["node2"])),
        ),
        create(
            "a volume whose pods run on two nodes",
            VOLUMES,
            scene.volume_with(values, json!(["node1", "node2"])),
        ),
        create(
            "a volume whose pods run anywhere",
            VOLUMES,
            scene.volume_with(terms, any),
        ),
        create(
            "a volume in node2's name",
            VOLUMES,
            scene.volume_with("/metadata/annotations/quarry.dev~1node", json!("node2")),
        ),
        create(
            "a volume that node2's manager looks at",
            VOLUMES,
            scene.volume_with("/metadata/labels/quarry.dev~1node", json!("node2")),
        ),
        create(
            "a volume of another provisioner",
            VOLUMES,
            scene.volume_with("/metadata/annotations/pv.kubernetes.io~1provisioned-by", json!("other")),
        ),
        create(
            "the host's files as a volume",
            VOLUMES,
            scene.volume_with("/spec/local/path", json!("/etc")),
        ),
        create("a path of the host", VOLUMES, host_path),
        create(
            "a whole disk as a volume",
            VOLUMES,
            scene.volume_with("/metadata/annotations/quarry.dev~1volume-group", json!("../dev")),
        ),
        create(
            "a volume for another claim",
            VOLUMES,
            scene.volume_with("/spec/claimRef/uid", json!("00000000-0000-4000-8000-000000000000")),
        ),
        create("a NodeLocalStorage of node2", STORAGES, storage(NOBODY, "node2")),
        patch(
            "disks of node2",
            scene.storage("node2"),
            json!({"spec": {"disks": [{"path": "/dev/sdz"}]}}),
        ),
        Attempt::apply(
            "capacity of node2",
            &format!("{}/status", scene.storage("node2")),
            status,
        ),
        Attempt::delete("delete node2's NodeLocalStorage", scene.storage("node2")),
        patch(
            "wake the pods of node2",
            node("node2"),
            json!({"metadata": {"annotations": {"quarry.dev/space-returned": "now"}}}),
        ),
        patch(
            "label node1",
            node("node1"),
            json!({"metadata": {"labels": {"a": "b"}}}),
        ),
        patch(
            "annotate node1",
            node("node1"),
            json!({"metadata": {"annotations": {"mine": "b"}}}),
        ),
        patch("cordon node1", node("node1"), json!({"spec": {"unschedulable": true}})),
        patch("untaint node1", node("node1"), json!({"spec": {"taints": null}})),
        patch(
            "taint node1",
            node("node1"),
            json!({"spec": {"taints": [{"key": OTHER_TAINT, "effect": "PreferNoSchedule"},
                {"key": "mine", "effect": "NoSchedule"}]}}),
        ),
        Attempt::apply(
            "the Lease of node2",
            &format!("{LEASES}/manager.node2"),
            lease("manager.node2", "node2"),
        ),
        Attempt::apply(
            "node2's Lease as its own",
            &format!("{LEASES}/manager.node2"),
            lease("manager.node2", "node1"),
        ),
        Attempt::apply(
            "its Lease for node2",
            &format!("{LEASES}/manager.node1"),
            lease("manager.node1", "node2"),
        ),
        patch(
            "lead the clean-up",
            format!("{LEASES}/quarry-cleanup"),
            json!({"spec": {"holderIdentity": "node1"}}),
        ),
        create("an event of node2", EVENTS, event("node2", "quarry-manager")),
        create("an event of another component", EVENTS, event("node1", "kubelet")),
    ]
}

/// What RBAC refuses before any policy is asked.
fn beyond_rbac(scene: &Scene) -> Vec<Attempt> {
    vec![
        Attempt::create("create a claim", &scene.claims, json!({})),
        Attempt::delete("delete a claim", scene.claim("mine")),
        Attempt::delete("delete a node", format!("{NODES}/node2")),
        Attempt::patch("the status of a node", format!("{NODES}/node1/status"), json!({})),
        Attempt::patch(
            "the status of a volume",
            format!("{VOLUMES}/{}/status", scene.mine),
            json!({}),
        ),
    ]
}

/// What the manager of node1 does, so its token can.
fn allowed(scene: &Scene) -> Vec<Attempt> {
    let patch = Attempt::patch;
    let select = |node: Value| json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
    let made = scene.volume();
    let path = format!("{VOLUMES}/{}", made["metadata"]["name"].as_str().unwrap_or_default());
    let status = json!({
        "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage",
        "metadata": {"name": format!("{}.node1", scene.class)}, "status": {"volumes": 7},
    });
    vec![
        patch("give its claim back", scene.claim("here"), select(Value::Null)),
        patch("take a claim", scene.claim("here"), select(json!("node1"))),
        Attempt::create("make a volume", VOLUMES, made),
        patch(
            "let go of it",
            path.clone(),
            json!({"metadata": {"finalizers": ["kubernetes.io/pv-protection"]}}),
        ),
        Attempt::delete("delete it", path),
        patch(
            "its NodeLocalStorage",
            scene.storage("node1"),
            json!({"metadata": {"labels": {"tested": "yes"}}}),
        ),
        Attempt::apply("its capacity", &format!("{}/status", scene.storage("node1")), status),
        Attempt::delete("delete its NodeLocalStorage", scene.storage("node1")),
        patch(
            "wake pods",
            format!("{NODES}/node1"),
            json!({"metadata": {"annotations": {"quarry.dev/space-returned": "2026-01-01T00:00:00Z"}}}),
        ),
        patch(
            "note that a group is being taken down",
            format!("{NODES}/node1"),
            json!({"metadata": {"annotations": {"quarry.dev/taking-down": "AAAAAA-BBBB"}}}),
        ),
        patch(
            "take it off",
            format!("{NODES}/node1"),
            json!({"metadata": {"annotations": {"quarry.dev/taking-down": null}}}),
        ),
        patch(
            "take the start-up taint off",
            format!("{NODES}/node1"),
            json!({"spec": {"taints": [{"key": OTHER_TAINT, "effect": "PreferNoSchedule"}]}}),
        ),
        Attempt::apply(
            "its Lease",
            &format!("{LEASES}/manager.node1"),
            lease("manager.node1", "node1"),
        ),
        Attempt::create("an event", EVENTS, event("node1", "quarry-manager")),
    ]
}

/// A token of the manager's ServiceAccount that is bound to no pod names no node, and writes nothing, be it allowed to
/// every manager.
async fn a_token_without_a_node_writes_nothing(test: &Test) -> Result<()> {
    let scene = Scene::set(test).await?;
    let thief = Thief::unbound(test, "quarry-manager").await?;
    let before = all(test).await?;
    for attempt in allowed(&scene) {
        // What is made by one of them is not there for the next.
        if !attempt.what.ends_with(" it") {
            thief
                .is_refused(&attempt, &["denied request", "the token names no node"])
                .await?;
        }
    }
    ensure!(all(test).await? == before, "something was changed");
    let volumes: Api<PersistentVolume> = Api::all(thief.client());
    volumes.get(&scene.mine).await.context("it may read")?;
    Ok(())
}

/// With the extender's token, of claims and volumes only that can be written which the clean-up writes.
async fn the_extender_changes_only_what_it_cleans_up(test: &Test) -> Result<()> {
    let scene = Scene::set(test).await?;
    let thief = Thief::of_process(test, "node1", "quarry-extender").await?;
    let volumes: Api<PersistentVolume> = test.volumes();
    let foreign: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": "rights-foreign"},
        "spec": {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": scene.class,
            "persistentVolumeReclaimPolicy": "Delete", "hostPath": {"path": "/run/rights"}},
    }))?;
    volumes.create(&PostParams::default(), &foreign).await?;
    let before = all(test).await?;
    let patch = Attempt::patch;
    let select = |node: Value| json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
    let volume = |name: &str| format!("{VOLUMES}/{name}");
    for attempt in [
        Attempt::delete("delete a claim unasked", scene.claim("mine")),
        patch("give a claim to a node", scene.claim("free"), select(json!("node2"))),
        patch(
            "label a claim",
            scene.claim("here"),
            json!({"metadata": {"labels": {"a": "b"}}}),
        ),
        patch(
            "grow a claim",
            scene.claim("mine"),
            json!({"spec": {"resources": {"requests": {"storage": "200Mi"}}}}),
        ),
        patch(
            "keep a volume",
            volume(&scene.mine),
            json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}),
        ),
        patch(
            "let go of a volume for Kubernetes",
            volume(&scene.mine),
            json!({"metadata": {"finalizers": null}}),
        ),
        Attempt::delete("delete a volume that is bound", volume(&scene.mine)),
        Attempt::delete("delete a volume of others", volume("rights-foreign")),
        patch(
            "change a volume of others",
            volume("rights-foreign"),
            json!({"metadata": {"finalizers": null}}),
        ),
    ] {
        thief.is_refused(&attempt, &["denied request", "the extender"]).await?;
    }
    for attempt in [
        Attempt::create("create a volume", VOLUMES, scene.volume()),
        Attempt::create("create a NodeLocalStorage", STORAGES, storage(NOBODY, "node1")),
        patch("change a NodeLocalStorage", scene.storage("node1"), json!({})),
        patch("change a node", format!("{NODES}/node1"), json!({})),
    ] {
        thief.is_refused(&attempt, &["quarry-extender\" cannot"]).await?;
    }
    ensure!(all(test).await? == before, "something was changed");
    thief
        .may(&patch("give a claim back", scene.claim("there"), select(Value::Null)))
        .await?;
    let asked = json!({"metadata": {"annotations": {"quarry.dev/lost-node": "delete-claim"}}});
    test.claims()
        .patch("here", &PatchParams::default(), &Patch::Merge(asked))
        .await?;
    thief
        .may(&Attempt::delete(
            "delete a claim whose owner asks for it",
            scene.claim("here"),
        ))
        .await?;
    volumes.delete("rights-foreign", &Default::default()).await?;
    Ok(())
}

/// A NodeLocalStorage that is written by hand takes no path that a class could not name.
async fn odd_disks_of_a_node_local_storage_are_refused(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let name = format!("{class}.node1");
    let before = test.storages().get(&name).await?.spec;
    for path in [
        "/etc/passwd",
        "/dev/..",
        "/dev/../etc/passwd",
        "/dev/disk/by-id/../../../etc/passwd",
        "/dev/./sda",
        "/dev//sda",
        "/dev/sda/",
        "/dev/sda --force",
        "/dev/$(reboot)",
        "--config=devices{}",
    ] {
        let patch = Patch::Merge(json!({"spec": {"disks": [{"path": path}]}}));
        match test.storages().patch(&name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 422 => {
                ensure!(
                    status.message.contains("must be a plain path"),
                    "{path}: {}",
                    status.message
                );
                println!("   {path}: {}", status.message);
            }
            other => anyhow::bail!("{path}: {other:?}"),
        }
    }
    ensure!(test.storages().get(&name).await?.spec == before, "something was taken");
    Ok(())
}
