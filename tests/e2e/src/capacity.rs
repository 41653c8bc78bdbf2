//! What happens when there is no room: the pod waits with a reason, or runs elsewhere; and is placed when there is.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use quarry_bed::Process;
use quarry_crds::Bytes;

use crate::case;
use crate::objects::{Claim, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(waits_for_room),
    case!(group_filled_by_hand),
    case!(group_broken),
    case!(figures_follow_changes_by_hand),
];

/// A claim larger than any node's free space waits with reasons, and is placed seconds after space returned.
async fn waits_for_room(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    // 5 GiB on node2 is the largest; take most of it.
    test.claim(Claim::new("first", &class, "4900Mi")).await?;
    test.pod(PodSpec::new("first").claim("first", false)).await?;
    ensure!(test.running("first").await? == "node2");
    test.claim(Claim::new("second", &class, "4800Mi")).await?;
    test.pod(PodSpec::new("second").claim("second", false)).await?;
    test.said(
        "Pod",
        "second",
        &[
            "FailedScheduling",
            "3 node(s) had not enough free local storage in volume group",
        ],
    )
    .await?;
    let claim = test.claims().get("second").await?;
    ensure!(quarry_crds::claim::selected_node(&claim).is_none() && !quarry_crds::claim::is_bound(&claim));
    let volume = test.volume_of("first").await?.name_any();
    test.delete_pod("first").await?;
    test.delete_claim("first").await?;
    test.volume_gone(&volume).await?;
    let returned = Instant::now();
    ensure!(test.running("second").await? == "node2");
    let took = returned.elapsed();
    println!("   space returned → pod Running: {:.1} s", took.as_secs_f64());
    ensure!(
        took < Duration::from_secs(30),
        "placed {took:?} after the space returned, not in seconds"
    );
    Ok(())
}

/// Fills a node's group while its manager does not see it, lets the scheduler choose that node, and expects the pod to
/// run on another one seconds after the manager refused.
async fn refused_then_elsewhere(test: &Test, node: &str, class: &str, fill: &[&str], told: &[&str]) -> Result<()> {
    let bed = &test.bed;
    // The scheduler decides on what is published, so what is published must be outdated when it decides: the manager's
    // processes are stopped for that moment.
    let manager = manager_process(test, node).await?;
    bed.node(node)?.run_ok(["kill", "-STOP", &manager]).await?;
    let filled = bed.node(node)?.run_ok(fill.iter().copied()).await;
    test.claim(Claim::new("data", class, "3Gi")).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    let selected = test
        .wait("the scheduler chose a node", PATIENCE, || async {
            Ok(quarry_crds::claim::selected_node(&test.claims().get("data").await?).map(str::to_owned))
        })
        .await;
    bed.node(node)?.run_ok(["kill", "-CONT", &manager]).await?;
    filled?;
    let selected = selected?;
    ensure!(
        selected == node,
        "the scheduler was to choose {node}, and chose {selected}"
    );
    let text = test.said("PersistentVolumeClaim", "data", told).await?;
    ensure!(!test.given_back().await?.is_empty(), "it counts as given back");
    let refused = Instant::now();
    let runs = test.running("user").await?;
    println!(
        "   refused → pod Running elsewhere: {:.1} s ({text})",
        refused.elapsed().as_secs_f64()
    );
    ensure!(runs != node, "it runs on the node that has no room");
    ensure!(
        refused.elapsed() < Duration::from_secs(60),
        "within seconds, not {:?}",
        refused.elapsed()
    );
    let volume = test.volume_of("data").await?.name_any();
    ensure!(
        test.logical_volume(node, &volume).await?.is_none(),
        "nothing of it may be left on {node}"
    );
    ensure!(test.logical_volume(&runs, &volume).await?.is_some());
    Ok(())
}

/// The process of the manager on a node, as the node itself numbers it.
async fn manager_process(test: &Test, node: &str) -> Result<String> {
    let found = test.bed.node(node)?.run_ok(["pgrep", "-x", "quarry-manager"]).await?;
    Ok(found.split_whitespace().next().context("no manager runs")?.to_owned())
}

async fn group_filled_by_hand(test: &Test) -> Result<()> {
    // 6, 7 and 6 GiB: node2 is the emptiest and is chosen first.
    let class = test.simple_class("a", 1).await?;
    let fill = ["lvcreate", "-y", "-n", "by-hand", "-l", "95%FREE", &class];
    refused_then_elsewhere(
        test,
        "node2",
        &class,
        &fill,
        &[
            "ProvisioningFailed",
            "node node2",
            &format!("volume group {class}"),
            "3Gi (768 extents) asked",
            "free",
        ],
    )
    .await?;
    test.bed
        .node("node2")?
        .run_ok(["lvremove", "-f", &format!("{class}/by-hand")])
        .await?;
    Ok(())
}

/// The volume group vanishes under the manager.
async fn group_broken(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 1).await?;
    let remove = ["vgrename", &class, "elsewhere"];
    refused_then_elsewhere(
        test,
        "node2",
        &class,
        &remove,
        &["ProvisioningFailed", "node node2", &class],
    )
    .await?;
    test.bed
        .node("node2")?
        .run_ok(["vgrename", "elsewhere", &class])
        .await?;
    test.ready(&class, 3).await?;
    Ok(())
}

/// What is made and removed by hand is in the published figures soon after.
async fn figures_follow_changes_by_hand(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let published = |node: &'static str| {
        let name = format!("{class}.{node}");
        async move {
            let storage = test.storages().get(&name).await?;
            let group = storage
                .status
                .and_then(|status| status.volume_group)
                .context("no figures")?;
            Ok::<_, anyhow::Error>(quarry_crds::quantity::parse(&group.free)?)
        }
    };
    let before = published("node1").await?;
    ensure!(before == Bytes(test.free_on("node1", &class).await?));
    let node = test.bed.node("node1")?;
    node.run_ok(["lvcreate", "-y", "-n", "by-hand", "-l", "256", &class])
        .await?;
    test.wait("1 GiB less is published", Duration::from_secs(15), || async {
        Ok((published("node1").await?.0 + Bytes::gib(1).0 == before.0).then_some(()))
    })
    .await?;
    node.run_ok(["lvremove", "-f", &format!("{class}/by-hand")]).await?;
    test.wait("all of it is published", Duration::from_secs(15), || async {
        Ok((published("node1").await? == before).then_some(()))
    })
    .await?;
    let disk = test.bed.disk(1, 1)?;
    node.run_ok(["vgextend", &class, &disk]).await?;
    test.wait(
        "the disk added by hand is published",
        Duration::from_secs(15),
        || async { Ok((published("node1").await? > before).then_some(())) },
    )
    .await?;
    ensure!(test.bed.cluster.is_running(Process::Scheduler));
    Ok(())
}
