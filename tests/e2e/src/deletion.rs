//! Deletion: logical volumes and capacity are exactly as expected afterwards; and nothing old is ever handed out.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use quarry_crds::Bytes;

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(delete_gives_space_back),
    case!(retain_keeps),
    case!(volume_deleted_before_claim),
    case!(claim_deleted_while_pending),
    case!(busy_is_named_and_retried),
    case!(many_go_at_once),
    case!(old_data_never_shows),
];

/// A pod with a claim of 1 GiB of a class, running: its node and the name of its volume.
async fn with_volume(test: &Test, class: &str) -> Result<(String, String)> {
    test.claim(Claim::new("data", class, "1Gi")).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    let node = test.running("user").await?;
    Ok((node, test.volume_of("data").await?.name_any()))
}

/// The published free space of a class on a node comes to be this.
async fn published(test: &Test, class: &str, node: &str, free: u64) -> Result<()> {
    test.wait(
        &format!("{} published as free on {node}", Bytes(free)),
        PATIENCE,
        || async {
            let storage = test.storages().get(&format!("{class}.{node}")).await?;
            let group = storage
                .status
                .and_then(|status| status.volume_group)
                .context("no figures")?;
            Ok((quarry_crds::quantity::parse(&group.free)? == Bytes(free)).then_some(()))
        },
    )
    .await
}

async fn delete_gives_space_back(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let (node, volume) = with_volume(test, &class).await?;
    let taken = test.free_on(&node, &class).await?;
    published(test, &class, &node, taken).await?;
    test.delete_pod("user").await?;
    test.delete_claim("data").await?;
    test.volume_gone(&volume).await?;
    ensure!(test.logical_volume(&node, &volume).await?.is_none());
    let back = test.free_on(&node, &class).await?;
    ensure!(back == taken + Bytes::gib(1).0, "free was {taken}, is {back}");
    published(test, &class, &node, back).await
}

async fn retain_keeps(test: &Test) -> Result<()> {
    let class = Class::new(&test.class_name("a"), &test.each_node(0)?).with("reclaimPolicy", "Retain");
    let class = test.class(class).await?;
    test.ready(&class, 3).await?;
    let (node, volume) = with_volume(test, &class).await?;
    let taken = test.free_on(&node, &class).await?;
    test.exec("user", &["sh", "-c", "echo precious > /data/file && sync"])
        .await?;
    test.delete_pod("user").await?;
    test.delete_claim("data").await?;
    test.wait("the volume is Released", PATIENCE, || async {
        let phase = test
            .volumes()
            .get(&volume)
            .await?
            .status
            .and_then(|status| status.phase);
        Ok((phase.as_deref() == Some("Released")).then_some(()))
    })
    .await?;
    // Deleting the object does not delete what is retained.
    test.volumes().delete(&volume, &DeleteParams::default()).await?;
    test.volume_gone(&volume).await?;
    ensure!(
        test.logical_volume(&node, &volume).await?.is_some(),
        "Retain keeps the logical volume"
    );
    ensure!(test.free_on(&node, &class).await? == taken);
    // What it holds is not promised to anybody else: it is `reserved`.
    test.wait("its space is reserved", PATIENCE, || async {
        let storage = test.storages().get(&format!("{class}.{node}")).await?;
        let group = storage
            .status
            .and_then(|status| status.volume_group)
            .context("no figures")?;
        Ok((quarry_crds::quantity::parse(&group.reserved)? == Bytes::gib(1)).then_some(()))
    })
    .await
}

async fn volume_deleted_before_claim(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let (node, volume) = with_volume(test, &class).await?;
    let taken = test.free_on(&node, &class).await?;
    test.volumes().delete(&volume, &DeleteParams::default()).await?;
    let there = test.volumes().get(&volume).await?;
    ensure!(there.metadata.deletion_timestamp.is_some(), "it waits for its claim");
    ensure!(
        test.exec("user", &["sh", "-c", "echo still > /data/file && cat /data/file"])
            .await?
            .trim()
            == "still"
    );
    ensure!(test.logical_volume(&node, &volume).await?.is_some());
    test.delete_pod("user").await?;
    test.delete_claim("data").await?;
    test.volume_gone(&volume).await?;
    ensure!(
        test.logical_volume(&node, &volume).await?.is_none(),
        "no volume may leak"
    );
    ensure!(test.free_on(&node, &class).await? == taken + Bytes::gib(1).0);
    Ok(())
}

/// A claim and its pod are deleted as soon as the scheduler chose a node.
async fn claim_deleted_while_pending(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let before: Vec<u64> =
        futures::future::try_join_all(["node1", "node2", "node3"].map(|n| test.free_on(n, &class))).await?;
    for round in 0..5 {
        let name = format!("data{round}");
        test.claim(Claim::new(&name, &class, "1Gi").block()).await?;
        test.pod(PodSpec::new(&name).claim(&name, true)).await?;
        test.wait("the scheduler chose a node", PATIENCE, || async {
            Ok(quarry_crds::claim::selected_node(&test.claims().get(&name).await?).map(str::to_owned))
        })
        .await?;
        let force = DeleteParams::default().grace_period(0);
        test.pods().delete(&name, &force).await?;
        test.claims().delete(&name, &DeleteParams::default()).await?;
    }
    test.claims_gone().await?;
    // What a manager had begun for the last of them is done before this is.
    for node in ["node1", "node2", "node3"] {
        test.claim(Claim::new(node, &class, "1Gi").block().selected(node))
            .await?;
        let volume = test.bound(node).await?;
        test.delete_claim(node).await?;
        test.volume_gone(&volume).await?;
    }
    test.wait("every byte is free again", PATIENCE, || async {
        let now = futures::future::try_join_all(["node1", "node2", "node3"].map(|n| test.free_on(n, &class))).await?;
        Ok((now == before).then_some(()))
    })
    .await
}

/// A volume that somebody holds open on the node is not removed by force; the event says who holds it.
async fn busy_is_named_and_retried(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let (node, volume) = with_volume(test, &class).await?;
    test.delete_pod("user").await?;
    let on = test.bed.node(&node)?;
    on.run_ok(["mkdir", "-p", "/run/held"]).await?;
    on.run_ok(["mount", &format!("/dev/{class}/{volume}"), "/run/held"])
        .await?;
    let told = async {
        test.delete_claim("data").await?;
        let parts = ["VolumeFailedDelete", &node, "/run/held"];
        test.said("PersistentVolume", &volume, &parts).await
    }
    .await;
    let kept = test.logical_volume(&node, &volume).await?;
    on.run_ok(["umount", "/run/held"]).await?;
    told?;
    ensure!(kept.is_some(), "never removed while it is in use");
    test.volume_gone(&volume).await?;
    ensure!(test.logical_volume(&node, &volume).await?.is_none());
    Ok(())
}

/// Volumes that are to go at once go by fewer commands than they are, and one that is held keeps none of them.
async fn many_go_at_once(test: &Test) -> Result<()> {
    const MANY: usize = 16;
    let class = test.simple_class("a", 0).await?;
    let free = test.free_on("node1", &class).await?;
    for at in 0..MANY {
        let claim = Claim::new(&format!("data{at}"), &class, "64Mi").selected("node1");
        test.claim(claim).await?;
    }
    let mut volumes = Vec::new();
    for at in 0..MANY {
        volumes.push(test.bound(&format!("data{at}")).await?);
    }
    let on = test.bed.node("node1")?;
    let held = format!("/dev/{class}/{}", volumes[0]);
    on.run_ok(["mkfs.ext4", "-q", &held]).await?;
    on.run_ok(["mkdir", "-p", "/run/held"]).await?;
    on.run_ok(["mount", &held, "/run/held"]).await?;
    let removed = async {
        let before = removals(test).await?;
        let every = ListParams::default();
        test.claims()
            .delete_collection(&DeleteParams::default(), &every)
            .await?;
        for volume in &volumes[1..] {
            test.volume_gone(volume).await?;
        }
        let kept = test.logical_volume("node1", &volumes[0]).await?;
        ensure!(kept.is_some(), "never removed while it is in use");
        Ok(removals(test).await? - before)
    }
    .await;
    on.run_ok(["umount", "/run/held"]).await?;
    let commands = removed?;
    let others = u32::try_from(MANY)? - 1;
    ensure!(
        (1..others).contains(&commands),
        "{commands} commands for {others} volumes"
    );
    test.volume_gone(&volumes[0]).await?;
    ensure!(test.free_on("node1", &class).await? == free);
    Ok(())
}

/// How often the manager of node1 has run lvremove.
async fn removals(test: &Test) -> Result<u32> {
    let metrics = test.manager_metrics("node1").await?;
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("quarry_lvm_command_seconds_count{"));
    let counts = lines
        .filter(|line| line.contains("\"lvremove\""))
        .filter_map(|line| line.rsplit_once(' '));
    let counts: Result<Vec<u32>, _> = counts.map(|(_, count)| count.parse()).collect();
    Ok(counts?.iter().sum())
}

/// A new raw volume on the very extents of an old one shows none of it; a new file system volume is really new.
async fn old_data_never_shows(test: &Test) -> Result<()> {
    let nodes = [("node1", vec![test.bed.disk(1, 0)?])];
    let class = test.class(Class::new(&test.class_name("a"), &nodes)).await?;
    test.ready(&class, 1).await?;
    // The whole group, so that whatever comes next has the same extents.
    test.claim(Claim::new("old", &class, "3900Mi").block()).await?;
    test.pod(PodSpec::new("old").claim("old", true)).await?;
    test.running("old").await?;
    let fill = "for i in 0 1000 2000 3000 3890; do yes quarry-secret | dd of=/dev/old bs=1M count=8 seek=$i iflag=fullblock conv=notrunc; done; sync";
    test.exec("old", &["sh", "-c", fill]).await?;
    let volume = test.volume_of("old").await?.name_any();
    test.delete_pod("old").await?;
    test.delete_claim("old").await?;
    test.volume_gone(&volume).await?;
    // Also where signatures are looked for something else was until now.
    test.claim(Claim::new("files", &class, "3900Mi")).await?;
    test.pod(PodSpec::new("files").claim("files", false)).await?;
    test.running("files").await?;
    let files = test.exec("files", &["ls", "-A", "/files"]).await?;
    ensure!(files.trim() == "lost+found", "a new file system has {files:?} in it");
    let volume = test.volume_of("files").await?.name_any();
    test.delete_pod("files").await?;
    test.delete_claim("files").await?;
    test.volume_gone(&volume).await?;
    test.claim(Claim::new("new", &class, "3900Mi").block()).await?;
    test.pod(PodSpec::new("new").claim("new", true)).await?;
    test.running("new").await?;
    let left = test
        .exec("new", &["sh", "-c", "tr -d '\\0' < /dev/new | wc -c"])
        .await?;
    ensure!(
        left.trim() == "0",
        "a new raw volume is all zeros, but {left} bytes of it are not"
    );
    Ok(())
}
