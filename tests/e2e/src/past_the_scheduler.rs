//! Pods whose nodes kube-scheduler does not choose, or not freely: `spec.nodeName`, DaemonSets, classes with
//! `allowedTopologies`.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, PostParams};
use quarry_crds::claim::{is_bound, selected_node};
use serde_json::{Value, json};

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(pods_that_no_scheduler_places)];

async fn pods_that_no_scheduler_places(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    by_node_name(test, &class).await?;
    daemon_set_with_an_ephemeral_volume(test, &class).await?;
    daemon_set_with_one_claim(test, &class).await?;
    allowed_topologies(test).await
}

fn put_on(mut pod: PodSpec, node: &str) -> PodSpec {
    pod.0["spec"]["nodeName"] = json!(node);
    pod
}

/// Nobody selects a node for the claim: nothing is made until kube-scheduler places a pod with it. A claim that has its
/// volume is mounted as ever.
async fn by_node_name(test: &Test, class: &str) -> Result<()> {
    test.claim(Claim::new("data", class, "100Mi")).await?;
    test.pod(put_on(PodSpec::new("past").claim("data", false), "node1"))
        .await?;
    let told = [
        "WaitForFirstConsumer",
        "waiting for first consumer to be created before binding",
    ];
    println!("   claim: {}", test.said("PersistentVolumeClaim", "data", &told).await?);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let claim = test.claims().get("data").await?;
    ensure!(
        selected_node(&claim).is_none() && !is_bound(&claim),
        "nobody was to select a node"
    );
    let why = test.bed.kubectl(&["quarry", "why", "past", "-n", &test.name]).await?;
    let help = why
        .lines()
        .find(|line| line.contains("waits for ever"))
        .with_context(|| why.clone())?;
    println!("   kubectl quarry why: {}", help.trim());
    for part in ["node1", "spec.nodeName", "nodeSelector"] {
        ensure!(why.contains(part), "{part} is not in\n{why}");
    }
    test.delete_pod("past").await?;
    // What is advised works, and so does spec.nodeName from then on.
    test.pod(PodSpec::new("through").claim("data", false).on("node1"))
        .await?;
    ensure!(test.running("through").await? == "node1");
    test.delete_pod("through").await?;
    test.pod(put_on(PodSpec::new("past").claim("data", false), "node1"))
        .await?;
    ensure!(test.running("past").await? == "node1");
    test.delete_pod("past").await?;
    test.delete_claim("data").await
}

fn daemon_set(name: &str, volume: &Value) -> Result<DaemonSet> {
    let mut pod = PodSpec::new(name).0;
    pod["spec"]["volumes"] = json!([volume]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": volume["name"], "mountPath": "/data"}]);
    let template = json!({"metadata": {"labels": {"app": name}}, "spec": pod["spec"]});
    Ok(serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template},
    }))?)
}

fn sets(test: &Test) -> Api<DaemonSet> {
    Api::namespaced(test.client(), &test.name)
}

async fn pods_of(test: &Test, set: &str) -> Result<Vec<Pod>> {
    Ok(test
        .pods()
        .list(&ListParams::default().labels(&format!("app={set}")))
        .await?
        .items)
}

async fn remove(test: &Test, set: &str) -> Result<()> {
    sets(test).delete(set, &DeleteParams::background()).await?;
    test.wait(&format!("the pods of {set} are gone"), PATIENCE, || async {
        Ok(pods_of(test, set).await?.is_empty().then_some(()))
    })
    .await
}

/// Its pods go through kube-scheduler, each to its own node, and get a volume there; where there is no room, that is told.
async fn daemon_set_with_an_ephemeral_volume(test: &Test, class: &str) -> Result<()> {
    // 4, 5 and 3 GiB.
    let template = Claim::new("scratch", class, "3500Mi").0["spec"].clone();
    let volume = json!({"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": template}}});
    sets(test)
        .create(&PostParams::default(), &daemon_set("each", &volume)?)
        .await?;
    let on = test
        .wait("two of its pods run", PATIENCE, || async {
            let set = sets(test).get("each").await?.status.unwrap_or_default();
            ensure!(set.number_ready < 3, "node3 has no room for 3500 MiB");
            let pods = pods_of(test, "each").await?;
            let placed = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone());
            Ok((set.number_ready == 2).then(|| placed.collect::<BTreeSet<_>>()))
        })
        .await?;
    ensure!(on == ["node1", "node2"].map(str::to_owned).into(), "placed on {on:?}");
    let pods = pods_of(test, "each").await?;
    let waits = pods
        .iter()
        .find(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()));
    let waits = waits.context("the third was to wait")?.name_any();
    let told = [
        "FailedScheduling",
        "1 node(s) had not enough free local storage in volume group",
        class,
    ];
    println!("   DaemonSet: {}", test.said("Pod", &waits, &told).await?);
    remove(test, "each").await?;
    test.claims_gone().await
}

/// One claim for all of its pods: the volume is on one node, and only the pod of that node runs.
async fn daemon_set_with_one_claim(test: &Test, class: &str) -> Result<()> {
    test.claim(Claim::new("one", class, "100Mi")).await?;
    let volume = json!({"name": "one", "persistentVolumeClaim": {"claimName": "one"}});
    sets(test)
        .create(&PostParams::default(), &daemon_set("all", &volume)?)
        .await?;
    test.wait("one of its pods runs", PATIENCE, || async {
        let set = sets(test).get("all").await?.status.unwrap_or_default();
        Ok((set.number_ready == 1).then_some(()))
    })
    .await?;
    let pods = pods_of(test, "all").await?;
    let waiting = pods
        .iter()
        .filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none()));
    let waiting: Vec<_> = waiting.map(ResourceExt::name_any).collect();
    ensure!(waiting.len() == 2, "the others were to wait: {waiting:?}");
    for pod in &waiting {
        let told = test.said(
            "Pod",
            pod,
            &[
                "FailedScheduling",
                "1 node(s) didn't match PersistentVolume's node affinity",
            ],
        );
        println!("   DaemonSet, one claim: {}", told.await?);
    }
    remove(test, "all").await?;
    test.delete_claim("one").await
}

/// kube-scheduler itself keeps claims of the class to these nodes; beyond their room a pod waits, and both reasons are told.
async fn allowed_topologies(test: &Test) -> Result<()> {
    // 6, 7 and 6 GiB.
    let allowed = json!([{"matchLabelExpressions": [{"key": "kubernetes.io/hostname", "values": ["node1"]}]}]);
    let class = Class::new(&test.class_name("t"), &test.each_node(1)?).with("allowedTopologies", allowed);
    let class = test.class(class).await?;
    test.ready(&class, 3).await?;
    test.claim(Claim::new("fits", &class, "100Mi")).await?;
    test.pod(PodSpec::new("fits").claim("fits", false)).await?;
    ensure!(
        test.running("fits").await? == "node1",
        "node2 is emptier, and not allowed"
    );
    test.claim(Claim::new("large", &class, "6500Mi")).await?;
    test.pod(PodSpec::new("large").claim("large", false)).await?;
    let told = [
        "FailedScheduling",
        "1 node(s) had not enough free local storage in volume group",
        "2 node(s) didn't find available persistent volumes to bind",
    ];
    println!("   allowedTopologies: {}", test.said("Pod", "large", &told).await?);
    let claim = test.claims().get("large").await?;
    ensure!(selected_node(&claim).is_none(), "given to a node that is not allowed");
    Ok(())
}
