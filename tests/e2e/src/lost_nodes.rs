//! Nodes that go away, come back, or give their name to another machine: no claim waits for good, nothing is deleted that
//! nobody asked for, and nothing empty is served in the place of data.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use quarry_bed::Boot;
use quarry_crds::NodeLocalStorage;
use quarry_crds::claim::selected_node;
use quarry_crds::names::{DELETE_CLAIM, LOST_NODE_ANNOTATION, SELECTED_NODE, STARTUP_TAINT};
use serde_json::{Value, json};

use crate::bed::NAMESPACE;
use crate::case;
use crate::machines;
use crate::objects::{Claim, Class, PodSpec, stateful_set};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(claim_selected_to_a_lost_node),
    case!(claims_selected_to_a_node_that_is_not_there),
    case!(node_lost_and_back),
    case!(another_machine_of_the_same_name),
    case!(new_node_with_the_start_up_taint),
];

const ALL_NODES: [&str; 3] = ["node1", "node2", "node3"];
/// Kubernetes' own clean-up takes pods of a node that is gone away after 40 to 60 s.
const RESCHEDULED: Duration = Duration::from_secs(240);
const GRACE: &str = "QUARRY_NODE_GONE_GRACE";

async fn label(test: &Test, node: &str, key: &str, value: Value) -> Result<()> {
    let nodes: Api<Node> = Api::all(test.client());
    let patch = json!({"metadata": {"labels": {key: value}}});
    nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Pods may be placed on these nodes only, from now on. The others are cordoned: unlike a label that has just been set,
/// kubelet does not ask for that, so it cannot be late in knowing it.
async fn allow(test: &Test, allowed: &[&str]) -> Result<()> {
    let nodes: Api<Node> = Api::all(test.client());
    for node in ALL_NODES {
        if nodes.get_opt(node).await?.is_some() {
            let cordoned = if allowed.contains(&node) {
                Value::Null
            } else {
                json!(true)
            };
            let patch = json!({"spec": {"unschedulable": cordoned}});
            nodes.patch(node, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
    }
    // kube-scheduler learns of it by a watch, and nothing tells when.
    tokio::time::sleep(Duration::from_secs(3)).await;
    Ok(())
}

/// A pod that heeds a cordon: those of other cases tolerate everything.
fn heeding(mut pod: PodSpec) -> PodSpec {
    pod.0["spec"]["tolerations"] = json!([]);
    pod
}

/// Power cut, and the Node object is deleted, as a cloud's controller or an administrator does.
async fn lose(test: &Test, node: &str) -> Result<Instant> {
    test.bed.node(node)?.kill().await?;
    let nodes: Api<Node> = Api::all(test.client());
    nodes.delete(node, &DeleteParams::default()).await?;
    Ok(Instant::now())
}

/// All nodes run as at the beginning, with everything of Quarry on them.
async fn all_back(test: &Test) -> Result<()> {
    machines::all_on(&test.bed.cluster).await?;
    for node in test.bed.cluster.nodes() {
        // kubelet may not give itself this label, and a node that registers anew has lost it.
        label(test, node.name(), "node-role.kubernetes.io/control-plane", json!("")).await?;
    }
    allow(test, &ALL_NODES).await?;
    for name in ["quarry-manager", "quarry-extender"] {
        test.bed.rolled_out(name).await?;
    }
    Ok(())
}

/// A claim was given to a node that dies before it made the volume: the claim is served elsewhere.
async fn claim_selected_to_a_lost_node(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let result = while_selected(test, &class).await;
    // Where it failed early, its manager is stopped.
    let node = test.bed.node("node1")?;
    if node.is_on() {
        node.run(["pkill", "-CONT", "-x", "quarry-manager"]).await?;
    }
    all_back(test).await?;
    result?;
    ensure!(
        test.lvm("node1", "lvs", "lv_name").await?.is_empty(),
        "nothing was made on the node that was lost"
    );
    Ok(())
}

async fn while_selected(test: &Test, class: &str) -> Result<()> {
    allow(test, &["node1"]).await?;
    let node = test.bed.node("node1")?;
    node.run_ok(["pkill", "-STOP", "-x", "quarry-manager"]).await?;
    test.claim(Claim::new("data", class, "500Mi")).await?;
    test.pod(heeding(PodSpec::new("user").claim("data", false))).await?;
    test.wait("the claim is given to node1", PATIENCE, || async {
        let claim = test.claims().get("data").await?;
        Ok((selected_node(&claim) == Some("node1")).then_some(()))
    })
    .await?;
    let lost = lose(test, "node1").await?;
    allow(test, &["node2", "node3"]).await?;
    let told = test
        .said("PersistentVolumeClaim", "data", &["NodeGone", "node1"])
        .await?;
    println!("   {told}: after {:.1} s", lost.elapsed().as_secs_f64());
    let now = test.running("user").await?;
    println!(
        "   Node object deleted → pod Running on {now}: {:.1} s",
        lost.elapsed().as_secs_f64()
    );
    ensure!(now != "node1");
    Ok(())
}

/// kube-scheduler queues a pod and notes its claim in two threads: about every second of these pods is tried too early, and
/// is woken once more.
async fn claims_selected_to_a_node_that_is_not_there(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let names: Vec<String> = (0..8).map(|number| format!("user-{number}")).collect();
    for name in &names {
        let mut claim = Claim::new(name, &class, "16Mi").block();
        claim.0["metadata"]["annotations"] = json!({SELECTED_NODE: "nowhere"});
        test.claim(claim).await?;
        test.pod(PodSpec::new(name).claim(name, true)).await?;
    }
    let told = test
        .said("PersistentVolumeClaim", "user-0", &["NodeGone", "nowhere"])
        .await?;
    println!("   {told}");
    let begun = Instant::now();
    for name in &names {
        test.running(name).await?;
    }
    println!(
        "   {} pods Running after {:.1} s",
        names.len(),
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// A node is gone for longer than the grace period: what nobody asked to delete is kept and told of, what its owner gave
/// up is made anew elsewhere; and when the node is back, the data that was kept is there.
async fn node_lost_and_back(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    allow(test, &["node2"]).await?;
    test.claim(Claim::new("kept", &class, "500Mi")).await?;
    test.pod(heeding(PodSpec::new("before").claim("kept", false))).await?;
    let sets: Api<StatefulSet> = Api::namespaced(test.client(), &test.name);
    sets.create(&PostParams::default(), &given_up(&class)?).await?;
    test.running("before").await?;
    test.running("asked-0").await?;
    test.exec("before", &["sh", "-c", "echo survived > /kept/file && sync"])
        .await?;
    let extender = ["-n", NAMESPACE, "set", "env", "ds/quarry-extender"];
    let set = format!("{GRACE}=20s");
    let result = async {
        test.bed.kubectl(&[&extender[..], &[&set]].concat()).await?;
        test.bed.rolled_out("quarry-extender").await?;
        while_lost(test).await
    }
    .await;
    let back = all_back(test).await;
    let unset = format!("{GRACE}-");
    test.bed.kubectl(&[&extender[..], &[&unset]].concat()).await?;
    let lost = result?;
    back?;
    test.bed.rolled_out("quarry-extender").await?;
    let result = after_return(test, &class, &lost).await;
    allow(test, &ALL_NODES).await?;
    result
}

/// A StatefulSet whose claims its owner gives up with the node.
fn given_up(class: &str) -> Result<StatefulSet> {
    let mut set = serde_json::to_value(stateful_set("asked", 1, class, "300Mi")?)?;
    set["spec"]["template"]["spec"]["tolerations"] = json!([]);
    set["spec"]["volumeClaimTemplates"][0]["metadata"]["annotations"] = json!({LOST_NODE_ANNOTATION: DELETE_CLAIM});
    Ok(serde_json::from_value(set)?)
}

/// The name of the volume that was let go.
async fn while_lost(test: &Test) -> Result<String> {
    let claims = test.claims();
    let kept = test.volume_of("kept").await?.name_any();
    let claim_of_set = "data-asked-0";
    let given_up = test.volume_of(claim_of_set).await?.name_any();
    let old = claims.get(claim_of_set).await?.uid();
    let lost = lose(test, "node2").await?;
    allow(test, &["node1", "node3"]).await?;
    let say = |what: &str| println!("   Node object deleted → {what}: {:.1} s", lost.elapsed().as_secs_f64());
    test.wait("the claim that was given up is made anew", RESCHEDULED, || async {
        let claim = claims.get_opt(claim_of_set).await?;
        Ok(claim.filter(|claim| claim.uid() != old).map(|_| ()))
    })
    .await?;
    say("claim made anew");
    let on = test
        .wait("asked-0 runs elsewhere", RESCHEDULED, || async {
            let pod = test.pods().get_opt("asked-0").await?;
            let node = pod.and_then(|pod| pod.spec?.node_name);
            Ok(node.filter(|node| node != "node2"))
        })
        .await?;
    test.running("asked-0").await?;
    say(&format!("pod of the StatefulSet Running on {on}"));
    test.volume_gone(&given_up).await?;
    for (kind, name) in [("PersistentVolume", kept.as_str()), ("PersistentVolumeClaim", "kept")] {
        let told = test.said(kind, name, &["NodeGone", "node2", "served again"]).await?;
        println!("   {kind}: {told}");
    }
    test.said(
        "PersistentVolume",
        &given_up,
        &["VolumeLetGo", "neither wiped nor removed"],
    )
    .await?;
    let storages = test.storages().list(&Default::default()).await?;
    ensure!(
        !storages.items.iter().any(|storage| storage.spec.node_name == "node2"),
        "the NodeLocalStorage of the lost node is let go"
    );
    let volume = test.volumes().get(&kept).await?;
    let claim = claims.get("kept").await?;
    ensure!(volume.metadata.deletion_timestamp.is_none() && claim.metadata.deletion_timestamp.is_none());
    Ok(given_up)
}

async fn after_return(test: &Test, class: &str, given_up: &str) -> Result<()> {
    let storages = test.ready(class, 3).await?;
    allow(test, &["node2"]).await?;
    test.pod(heeding(PodSpec::new("after").claim("kept", false))).await?;
    ensure!(test.running("after").await? == "node2");
    let read = test.exec("after", &["cat", "/kept/file"]).await?;
    ensure!(read == "survived\n", "{read}");
    // What was let go meanwhile is not touched on a guess, and its space is not promised to anybody.
    let left = test.logical_volume("node2", given_up).await?;
    ensure!(left.is_some(), "logical volume {given_up} is still there");
    let reserved = |storage: &NodeLocalStorage| {
        let group = storage.status.as_ref()?.volume_group.as_ref()?;
        (storage.spec.node_name == "node2").then(|| group.reserved.clone())
    };
    let found: Vec<_> = storages.iter().filter_map(reserved).collect();
    ensure!(found == ["300Mi"], "reserved on node2: {found:?}");
    Ok(())
}

/// Another machine comes with the name of a node: it is told from the one that was there, nothing is made in the place
/// of what is lost and no pod gets an empty volume; and when the first machine is back, so is its data.
async fn another_machine_of_the_same_name(test: &Test) -> Result<()> {
    let disk = test.bed.disk(3, 0)?;
    let class = test
        .class(Class::new(&test.class_name("a"), &[("node3", vec![disk.clone()])]))
        .await?;
    let before = test.ready(&class, 1).await?.remove(0);
    test.claim(Claim::new("data", &class, "500Mi")).await?;
    test.pod(heeding(PodSpec::new("user").claim("data", false))).await?;
    test.running("user").await?;
    test.exec("user", &["sh", "-c", "echo first > /data/file && sync"])
        .await?;
    let node = test.bed.node("node3")?;
    node.kill().await?;
    // So that its disks are blank in each run.
    let run = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs();
    let booted = node
        .boot(Boot {
            machine: Some(format!("m{}", run % 100_000_000)),
            ..Boot::default()
        })
        .await;
    let result = match booted {
        Ok(()) => on_the_other(test, &class, &disk, &before).await,
        Err(error) => Err(error.into()),
    };
    node.kill().await?;
    all_back(test).await?;
    result?;
    test.ready(&class, 1).await?;
    test.wait("the data of the first machine is there", RESCHEDULED, || async {
        let read = test.exec("user", &["cat", "/data/file"]).await.ok();
        Ok(read.filter(|read| read == "first\n").map(|_| ()))
    })
    .await
}

async fn on_the_other(test: &Test, class: &str, disk: &str, before: &NodeLocalStorage) -> Result<()> {
    let recorded = |storage: &NodeLocalStorage| {
        let status = storage.status.clone().unwrap_or_default();
        (status.machine_id, status.volume_group.map(|group| group.uuid))
    };
    let told = test
        .wait("the other machine is told from the first", PATIENCE, || async {
            let storage = test.storages_of(class).await?.remove(0);
            let status = storage.status.clone().unwrap_or_default();
            let ready = status.conditions.into_iter().find(|c| c.type_ == "Ready");
            let replaced = ready.filter(|c| c.status == "False" && c.reason == "NodeReplaced");
            Ok(replaced.map(|condition| (storage, condition.message)))
        })
        .await?;
    println!("   NodeReplaced: {}", told.1);
    ensure!(recorded(&told.0) == recorded(before), "what was there is remembered");
    let volume = test.volume_of("data").await?.name_any();
    for (kind, name) in [("PersistentVolume", volume.as_str()), ("PersistentVolumeClaim", "data")] {
        test.said(kind, name, &["VolumeLost", "node3", "NodeReplaced"]).await?;
    }
    let told = test.said("Pod", "user", &["FailedMount", &volume]).await?;
    println!("   Pod: {told}");
    // kubelet has tried, and the manager has looked: nothing was made.
    let node = test.bed.node("node3")?;
    let found = node.run_ok(["pvs", "--noheadings", "-o", "pv_name"]).await?;
    ensure!(found.trim().is_empty(), "nothing is made of the blank disk: {found}");
    let carried = node.run(["blkid", "-p", disk]).await?;
    ensure!(
        carried.stdout.trim().is_empty(),
        "the disk is still blank: {}",
        carried.stdout
    );
    ensure!(test.claims().get("data").await?.metadata.deletion_timestamp.is_none());
    Ok(())
}

/// A node joins with the start-up taint, as kubelet registers it where it is told to: pods keep away until the volumes there
/// can be used, and then none fails to mount.
async fn new_node_with_the_start_up_taint(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    test.claim(Claim::new("data", &class, "500Mi")).await?;
    test.pod(PodSpec::new("before").claim("data", false).on("node2"))
        .await?;
    test.running("before").await?;
    test.exec("before", &["sh", "-c", "echo kept > /data/file && sync"])
        .await?;
    test.delete_pod("before").await?;
    let manager = ["-n", NAMESPACE, "set", "env", "ds/quarry-manager"];
    let result = async {
        test.bed
            .kubectl(&[&manager[..], &["QUARRY_STARTUP_TAINT=true"]].concat())
            .await?;
        test.bed.rolled_out("quarry-manager").await?;
        joins_with_taint(test).await
    }
    .await;
    test.bed
        .kubectl(&[&manager[..], &["QUARRY_STARTUP_TAINT-"]].concat())
        .await?;
    all_back(test).await?;
    result
}

async fn joins_with_taint(test: &Test) -> Result<()> {
    lose(test, "node2").await?;
    let nodes: Api<Node> = Api::all(test.client());
    let joining = serde_json::from_value(json!({
        "metadata": {"name": "node2", "labels": {"kubernetes.io/hostname": "node2"}},
        "spec": {"taints": [{"key": STARTUP_TAINT, "effect": "NoSchedule"}]},
    }))?;
    nodes.create(&PostParams::default(), &joining).await?;
    let mut pod = PodSpec::new("after").claim("data", false).on("node2");
    pod.0["spec"]["tolerations"] = json!([]);
    test.pod(pod).await?;
    test.said(
        "Pod",
        "after",
        &["FailedScheduling", "1 node(s) had untolerated taint(s)"],
    )
    .await?;
    let node = test.bed.node("node2")?;
    let (booted, lifted) = tokio::join!(node.boot(Boot::default()), taint_lifted(test));
    booted?;
    println!("   power on → taint taken off: {:.1} s", lifted?.as_secs_f64());
    test.running("after").await?;
    let read = test.exec("after", &["cat", "/data/file"]).await?;
    ensure!(read == "kept\n", "{read}");
    let said = test.said_of("Pod", "after").await?;
    ensure!(
        !said.iter().any(|(reason, _)| reason == "FailedMount"),
        "a pod came before its volume could be used: {said:?}"
    );
    Ok(())
}

/// Waits until the taint is off, and looks at once whether volumes are active and published; how long it took.
async fn taint_lifted(test: &Test) -> Result<Duration> {
    let begun = Instant::now();
    let nodes: Api<Node> = Api::all(test.client());
    let is_ours = |taint: &Taint| taint.key == STARTUP_TAINT;
    test.wait("the start-up taint is taken off", PATIENCE, || async {
        let taints = nodes.get("node2").await?.spec.and_then(|spec| spec.taints);
        Ok((!taints.unwrap_or_default().iter().any(is_ours)).then_some(()))
    })
    .await?;
    let volumes = test.lvm("node2", "lvs", "lv_name,lv_active").await?;
    ensure!(volumes.len() == 1 && volumes[0]["lv_active"] == "active", "{volumes:?}");
    let storages = test.storages().list(&Default::default()).await?;
    let mut here = storages.iter().filter(|storage| storage.spec.node_name == "node2");
    ensure!(here.all(NodeLocalStorage::is_ready), "not every one on node2 is Ready");
    Ok(begun.elapsed())
}
