//! How many pods a second the true kube-scheduler places on 1,000 simulated nodes: without claims, with claims for static
//! local volumes, and with claims of Quarry, all in one run.
//!
//! kube-scheduler is started once all pods and claims are there, so that nothing but placing is timed: from the first pod
//! that is bound to the last.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::Config;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use quarry_bed::Process;
use quarry_e2e::bed::Bed;
use quarry_e2e::objects::{Claim, PodSpec};
use quarry_e2e::test::Test;
use serde_json::{Value, json};

use crate::figure::{Figure, Goal};
use crate::fleet::{self, LABEL};

/// How many nodes.
const NODES: usize = 1_000;
/// How many pods each time.
const PODS: usize = 300;
/// How often each kind is placed; the median counts.
const ROUNDS: usize = 3;
/// The class of static volumes.
const STATIC: &str = "bench-static";
/// How many requests are made at a time.
const AT_ONCE: usize = 20;
/// How often the nodes' Leases are renewed: kube-controller-manager waits for 50 s.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// What pods have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nothing,
    Static,
    Quarry,
}

/// The figures.
///
/// # Errors
/// The cluster did not come up, or a pod was not placed.
pub async fn figures(figures: &mut Vec<Figure>) -> Result<()> {
    let bed = Bed::up().await?;
    let test = Test::new(bed.clone(), "scheduling");
    let client = test.client();
    fleet::clean(&client).await?;
    test.begin().await?;
    let class = fleet::class(&client, NODES).await?;
    let result = tokio::select! {
        result = measure(&test, figures) => result,
        ended = beat(client.clone()) => ended,
        ended = fleet::serve(client.clone(), class) => ended,
    };
    bed.cluster.start(Process::Scheduler).await?;
    fleet::clean(&client).await?;
    test.end().await?;
    result
}

async fn measure(test: &Test, figures: &mut Vec<Figure>) -> Result<()> {
    nodes(test).await?;
    let mut median = Vec::new();
    for (kind, what) in [
        (Kind::Nothing, "without claims"),
        (Kind::Static, "with a claim each for a static local volume"),
        (Kind::Quarry, "with a claim each of Quarry"),
    ] {
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            rates.push(rate(test, kind).await?);
        }
        rates.sort_by(f64::total_cmp);
        median.push(rates[ROUNDS / 2]);
        let (least, most) = (rates[0], rates[ROUNDS - 1]);
        let text = format!("{PODS} pods {what}, {NODES} nodes ({least:.1} to {most:.1})");
        figures.push(Figure::new(text, rates[ROUNDS / 2], "pods/s"));
    }
    let [nothing, fixed, quarry] = median[..] else {
        return Ok(());
    };
    let goal = Goal::AtLeast(0.9);
    figures.push(Figure::new("rate with Quarry, beside static local volumes", quarry / fixed, "×").goal(goal));
    figures.push(Figure::new("rate with Quarry, beside no claims", quarry / nothing, "×"));
    Ok(())
}

/// Pods that are placed in a second.
async fn rate(test: &Test, kind: Kind) -> Result<f64> {
    let cluster = &test.bed.cluster;
    cluster.stop(Process::Scheduler).await?;
    if kind == Kind::Static {
        let class = json!({"metadata": {"name": STATIC, "labels": {LABEL: ""}},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer"});
        let classes: Api<StorageClass> = Api::all(test.client());
        classes
            .patch(
                STATIC,
                &PatchParams::apply("bench"),
                &Patch::Apply(with_kind(class, "storage.k8s.io/v1", "StorageClass")),
            )
            .await?;
        all(PODS, |at| async move {
            test.volumes().create(&PostParams::default(), &fixed(at)?).await?;
            Ok(())
        })
        .await?;
        let available = ListParams::default().labels(LABEL);
        test.wait("the volumes are available", Duration::from_secs(120), || async {
            let volumes = test.volumes().list(&available).await?.items;
            let ready = volumes
                .iter()
                .filter(|volume| phase(volume) == Some("Available"))
                .count();
            Ok((ready == PODS).then_some(()))
        })
        .await?;
    }
    all(PODS, |at| async move {
        let name = format!("p{at}");
        let mut pod = PodSpec::new(&name);
        pod.0["spec"]["nodeSelector"] = json!({LABEL: ""});
        if kind != Kind::Nothing {
            let class = if kind == Kind::Static { STATIC } else { fleet::CLASS };
            test.claim(Claim::new(&name, class, "1Gi")).await?;
            pod = pod.claim(&name, false);
        }
        test.pod(pod).await.map(drop)
    })
    .await?;
    // kube-controller-manager has looked at all of it.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut events = pin!(
        watcher(test.pods(), Config::default())
            .default_backoff()
            .applied_objects()
    );
    cluster.start(Process::Scheduler).await?;
    let (mut placed, mut first) = (BTreeSet::new(), None);
    let took = tokio::time::timeout(Duration::from_secs(400), async {
        while placed.len() < PODS {
            let pod: Pod = events.try_next().await?.context("the watch ended")?;
            if pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()) && placed.insert(pod.name_any()) {
                first.get_or_insert_with(Instant::now);
            }
        }
        anyhow::Ok(first.context("no pod")?.elapsed())
    });
    let took = took.await.context("not every pod was placed in time")??;
    remove(test).await?;
    Ok((PODS - 1) as f64 / took.as_secs_f64())
}

async fn remove(test: &Test) -> Result<()> {
    let (every, delete) = (ListParams::default(), DeleteParams::default());
    test.pods()
        .delete_collection(&DeleteParams::default().grace_period(0), &every)
        .await?;
    test.claims().delete_collection(&delete, &every).await?;
    test.wait("pods and claims are gone", Duration::from_secs(180), || async {
        let pods = test.pods().list(&every).await?.items.len();
        let claims = test.claims().list(&every).await?.items.len();
        Ok((pods + claims == 0).then_some(()))
    })
    .await?;
    let simulated = ListParams::default().labels(LABEL);
    test.volumes().delete_collection(&delete, &simulated).await?;
    test.wait("the volumes are gone", Duration::from_secs(180), || async {
        Ok(test.volumes().list(&simulated).await?.items.is_empty().then_some(()))
    })
    .await
}

/// Makes the nodes, each with room for everything, and waits until kube-controller-manager is done with them.
async fn nodes(test: &Test) -> Result<()> {
    let nodes: Api<Node> = Api::all(test.client());
    let made = nodes.clone();
    all(NODES, |at| {
        let (made, client) = (made.clone(), test.client());
        async move {
            let name = fleet::node(at);
            made.create(&PostParams::default(), &serde_json::from_value(a_node(&name))?)
                .await?;
            fleet::storage(&client, &name).await
        }
    })
    .await?;
    let simulated = ListParams::default().labels(LABEL);
    test.wait("the nodes are without taints", Duration::from_secs(300), || async {
        let nodes = nodes.list(&simulated).await?.items;
        let tainted = |node: &Node| node.spec.as_ref().is_some_and(|spec| spec.taints.is_some());
        Ok(nodes.iter().all(|node| !tainted(node)).then_some(()))
    })
    .await?;
    // It annotates each of them, slowly.
    test.wait("the nodes are left alone", Duration::from_secs(300), || async {
        let version = |nodes: Vec<Node>| {
            nodes
                .into_iter()
                .filter_map(|node| node.metadata.resource_version)
                .max()
        };
        let before = version(nodes.list(&simulated).await?.items);
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok((before == version(nodes.list(&simulated).await?.items)).then_some(()))
    })
    .await
}

/// A node without the label of an operating system: no DaemonSet puts a pod there.
fn a_node(name: &str) -> Value {
    let now = jiff::Timestamp::now().to_string();
    let room = json!({"cpu": "64", "memory": "256Gi", "pods": "250", "ephemeral-storage": "1Ti"});
    json!({
        "metadata": {"name": name, "labels": {LABEL: "", "kubernetes.io/hostname": name}},
        "status": {"capacity": room, "allocatable": room, "conditions": [{"type": "Ready", "status": "True",
            "reason": "KubeletReady", "message": "", "lastHeartbeatTime": now, "lastTransitionTime": now}]},
    })
}

/// A static local volume.
fn fixed(at: usize) -> Result<PersistentVolume> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": format!("bench-static-{at}"), "labels": {LABEL: ""}},
        "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": STATIC,
            "persistentVolumeReclaimPolicy": "Retain", "local": {"path": "/mnt/none"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [fleet::node(at)]}]}]}}},
    }))?)
}

/// Renews the Leases of all simulated nodes, as their kubelets would, for ever.
async fn beat(client: Client) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let mut beats = tokio::time::interval(HEARTBEAT);
    loop {
        beats.tick().await;
        let leases = &leases;
        all(NODES, |at| async move {
            let name = fleet::node(at);
            let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
            let lease = json!({"metadata": {"name": name, "labels": {LABEL: ""}}, "spec": {
                "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now}});
            let lease = with_kind(lease, "coordination.k8s.io/v1", "Lease");
            let params = PatchParams::apply("bench").force();
            leases.patch(&name, &params, &Patch::Apply(lease)).await?;
            Ok(())
        })
        .await?;
    }
}

fn with_kind(mut object: Value, version: &str, kind: &str) -> Value {
    object["apiVersion"] = json!(version);
    object["kind"] = json!(kind);
    object
}

fn phase(volume: &PersistentVolume) -> Option<&str> {
    volume.status.as_ref()?.phase.as_deref()
}

/// Does something for each of so many, some at a time.
async fn all<F: Future<Output = Result<()>>>(count: usize, each: impl Fn(usize) -> F) -> Result<()> {
    stream::iter(0..count)
        .map(each)
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await
        .map(drop)
}
