//! Pods that are in each other's way: one that takes another's processor still goes where its claims have room, and one that
//! is deleted while it is scheduled takes nothing with it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use quarry_crds::claim::selected_node;
use quarry_crds::persistent_volume::ours;
use serde_json::json;

use crate::burst::all_placed;
use crate::case;
use crate::objects::{Claim, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(preemption_evicts_where_the_claims_have_room),
    case!(deleted_while_scheduled),
];

/// Within this time a volume is removed and its room published.
const PUBLISHED: Duration = Duration::from_secs(30);
/// Bytes of an extent.
const EXTENT: u64 = 4 << 20;
/// The class of pods for which others go.
const URGENT: &str = "quarry-test-urgent";

async fn preemption_evicts_where_the_claims_have_room(test: &Test) -> Result<()> {
    let classes: Api<PriorityClass> = Api::all(test.client());
    if classes.get_opt(URGENT).await?.is_none() {
        let urgent = serde_json::from_value(json!({"metadata": {"name": URGENT}, "value": 1000}))?;
        classes.create(&PostParams::default(), &urgent).await?;
    }
    let result = preempt(test).await;
    classes.delete(URGENT, &DeleteParams::default()).await?;
    result
}

async fn preempt(test: &Test) -> Result<()> {
    // 4, 5 and 3 GiB. On each node a pod takes more than half of the processors; the last to start is on node1, and would go
    // first by kube-scheduler's own rules.
    let class = test.simple_class("a", 0).await?;
    for node in ["node2", "node3", "node1"] {
        test.claim(Claim::new(node, &class, "100Mi")).await?;
        let pod = PodSpec::new(node).claim(node, false).on(node);
        test.pod(most_of_the_processors(test, pod).await?).await?;
        test.running(node).await?;
        // kube-scheduler compares whole seconds.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    test.claim(Claim::new("large", &class, "4500Mi")).await?;
    let pod = most_of_the_processors(test, PodSpec::new("urgent").claim("large", false)).await?;
    test.pod(urgent(pod)).await?;
    let begun = Instant::now();
    ensure!(
        test.running("urgent").await? == "node2",
        "only node2 has room for its claim"
    );
    println!(
        "   a pod preempts another and runs: {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    ensure!(
        names(test).await? == ["node1", "node3", "urgent"],
        "evicted more than node2's: {:?}",
        names(test).await?
    );
    // One for which no node has room takes no processor from anybody, and says so.
    test.claim(Claim::new("huge", &class, "5Gi")).await?;
    let pod = most_of_the_processors(test, PodSpec::new("hopeless").claim("huge", false)).await?;
    test.pod(urgent(pod)).await?;
    let told = [
        "FailedScheduling",
        "Insufficient cpu",
        "no candidate node for preemption",
    ];
    println!("   {}", test.said("Pod", "hopeless", &told).await?);
    ensure!(
        names(test).await? == ["hopeless", "node1", "node3", "urgent"],
        "{:?}",
        names(test).await?
    );
    // Once a processor is free, the true reason is told.
    test.delete_pod("node1").await?;
    let told = [
        "FailedScheduling",
        "1 node(s) had not enough free local storage in volume group",
        &class,
    ];
    println!("   {}", test.said("Pod", "hopeless", &told).await?);
    let claim = test.claims().get("huge").await?;
    ensure!(selected_node(&claim).is_none(), "given to a node that has no room");
    ensure!(
        names(test).await? == ["hopeless", "node3", "urgent"],
        "{:?}",
        names(test).await?
    );
    Ok(())
}

/// The pod with a request of 60 percent of a node's processors.
async fn most_of_the_processors(test: &Test, mut pod: PodSpec) -> Result<PodSpec> {
    let nodes: Api<Node> = Api::all(test.client());
    let status = nodes.get("node1").await?.status.unwrap_or_default();
    let cpu = status
        .allocatable
        .unwrap_or_default()
        .remove("cpu")
        .context("no processors")?
        .0;
    let milli: u64 = match cpu.strip_suffix('m') {
        Some(milli) => milli.parse()?,
        None => cpu.parse::<u64>()? * 1000,
    };
    let requests = json!({"requests": {"cpu": format!("{}m", milli * 6 / 10)}});
    pod.0["spec"]["containers"][0]["resources"] = requests;
    Ok(pod)
}

fn urgent(mut pod: PodSpec) -> PodSpec {
    pod.0["spec"]["priorityClassName"] = json!(URGENT);
    pod
}

/// The pods that are there, and are to stay.
async fn names(test: &Test) -> Result<Vec<String>> {
    let pods = test.pods().list(&ListParams::default()).await?.items;
    let live = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    Ok(live.map(ResourceExt::name_any).collect())
}

/// Pods are deleted with their claims after so many milliseconds: before they are looked at, while they are answered and
/// selected, while their volumes are made. Each time the room is there for others soon after.
const DELETED_AFTER: [u64; 5] = [0, 30, 100, 300, 1500];

async fn deleted_while_scheduled(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    for node in ["node1", "node2", "node3"] {
        test.leave_free(node, &class, EXTENT).await?;
        test.published_free(&format!("{class}.{node}"), EXTENT).await?;
    }
    for (round, after) in DELETED_AFTER.into_iter().enumerate() {
        let gone: Vec<_> = (0..6).map(|at| format!("gone{round}-{at}")).collect();
        let stays: Vec<_> = (0..3).map(|at| format!("stays{round}-{at}")).collect();
        arrive(test, &class, &gone).await?;
        tokio::time::sleep(Duration::from_millis(after)).await;
        let claims = test.claims().list(&ListParams::default()).await?.items;
        let selected = claims.iter().filter(|claim| selected_node(claim).is_some()).count();
        delete(test, &gone).await?;
        arrive(test, &class, &stays).await?;
        let begun = Instant::now();
        // When kube-scheduler is offered the room; how long LVM and kubelet take after that is another matter.
        test.wait("all of the room is offered again", PATIENCE, || async {
            let claims = test.claims().list(&ListParams::default()).await?.items;
            let selected = claims.iter().filter(|claim| selected_node(claim).is_some());
            let stay = selected.filter(|claim| stays.contains(&claim.name_any()));
            Ok((stay.count() == stays.len()).then_some(()))
        })
        .await?;
        let took = begun.elapsed();
        all_placed(test, stays.len()).await?;
        println!(
            "   deleted after {after} ms ({selected} of 6 were given to a node): the room was offered again after {:.1} s, and \
             taken after {:.1} s",
            took.as_secs_f64(),
            begun.elapsed().as_secs_f64()
        );
        for node in ["node1", "node2", "node3"] {
            ensure!(test.free_on(node, &class).await? == 0, "{node} is not full");
        }
        let mut volumes = Vec::new();
        for name in &stays {
            let volume = test.volume_of(name).await?;
            let node = ours(&volume).context("a volume without a node")?.node;
            volumes.push((node, volume.name_any()));
        }
        delete(test, &stays).await?;
        for (node, volume) in volumes {
            // What was published before they came is the same: they are gone first.
            let again = async {
                test.volume_gone(&volume).await?;
                test.published_free(&format!("{class}.{node}"), EXTENT).await
            };
            let again = tokio::time::timeout(PUBLISHED, again).await;
            again.with_context(|| format!("{volume} on {node} was to go within {PUBLISHED:?}"))??;
        }
    }
    Ok(())
}

/// Makes pods, each with a claim of one extent.
async fn arrive(test: &Test, class: &str, names: &[String]) -> Result<()> {
    let make = |name: &String| {
        let (claim, pod) = (
            Claim::new(name, class, "4Mi").block(),
            PodSpec::new(name).claim(name, true),
        );
        async move {
            test.claim(claim).await?;
            test.pod(pod).await
        }
    };
    futures::future::try_join_all(names.iter().map(make)).await.map(drop)
}

async fn delete(test: &Test, names: &[String]) -> Result<()> {
    let delete = |name: &String| {
        let name = name.clone();
        async move {
            let at_once = DeleteParams::default().grace_period(0);
            test.pods().delete(&name, &at_once).await?;
            test.claims().delete(&name, &DeleteParams::default()).await
        }
    };
    futures::future::try_join_all(names.iter().map(delete)).await?;
    Ok(())
}
