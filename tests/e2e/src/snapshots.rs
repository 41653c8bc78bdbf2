//! Snapshots that an administrator makes of a volume with LVM's own command.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;

use crate::case;
use crate::objects::{Claim, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(a_snapshot_made_by_hand_is_held)];

/// For so long it is looked at what the manager does about a snapshot.
const LOOKED_AT: Duration = Duration::from_secs(20);

/// How often the manager of a node has run a command of LVM.
async fn commands(test: &Test, node: &str, command: &str) -> Result<u64> {
    let metrics = test.manager_metrics(node).await?;
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("quarry_lvm_command_seconds_count{"));
    let counts = lines
        .filter(|line| line.contains(&format!("\"{command}\"")))
        .filter_map(|line| line.rsplit_once(' '));
    let counts: Result<Vec<u64>, _> = counts.map(|(_, count)| count.parse()).collect();
    Ok(counts?.iter().sum())
}

/// How full a snapshot is, in per cent.
async fn fullness(test: &Test, node: &str, name: &str) -> Result<f64> {
    let rows = test.lvm(node, "lvs", "lv_name,snap_percent").await?;
    let row = rows.iter().find(|row| row["lv_name"] == name);
    let text = row.context("the snapshot is gone")?["snap_percent"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    text.parse().with_context(|| text.clone())
}

/// The volume is neither wiped, which would fill the snapshot, nor removed, which would take it along; the event names it. Nor
/// does LVM get busy because of it.
async fn a_snapshot_made_by_hand_is_held(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    test.claim(Claim::new("data", &class, "200Mi")).await?;
    test.pod(PodSpec::new("user").claim("data", false).on("node1")).await?;
    test.running("user").await?;
    test.exec("user", &["sh", "-c", "echo precious > /data/file && sync"])
        .await?;
    let volume = test.volume_of("data").await?.name_any();
    let node = test.bed.node("node1")?;
    let origin = format!("{class}/{volume}");
    node.run_ok(["lvcreate", "-s", "-n", "backup", "-L", "64M", &origin])
        .await?;

    // The mark of what was handed out is a change and a reading of its own, up to a minute later.
    test.wait("it is marked as ready", PATIENCE, || async {
        let row = test.logical_volume("node1", &volume).await?.context("it is gone")?;
        let tags = row["lv_tags"].as_str().unwrap_or_default();
        Ok(tags.contains("quarry.state=ready").then_some(()))
    })
    .await?;
    for used in ["in use", "closed"] {
        if used == "closed" {
            test.delete_pod("user").await?;
        }
        // What the making of the snapshot, or kubelet, has changed is read by then.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (read, changed) = (
            commands(test, "node1", "fullreport").await?,
            commands(test, "node1", "lvchange").await?,
        );
        tokio::time::sleep(LOOKED_AT).await;
        let read = commands(test, "node1", "fullreport").await? - read;
        let changed = commands(test, "node1", "lvchange").await? - changed;
        println!("   {used}: LVM was read {read} times in {} s", LOOKED_AT.as_secs());
        // Once a minute, and once for what changed.
        ensure!(
            read <= 2 && changed <= 1,
            "{used}: LVM was read {read} times, and {changed} times changed"
        );
    }

    let before = fullness(test, "node1", "backup").await?;
    test.delete_claim("data").await?;
    let parts = [
        "VolumeFailedDelete",
        "node1",
        "logical volume",
        &format!("{class}/backup is a snapshot of it"),
    ];
    println!("   {}", test.said("PersistentVolume", &volume, &parts).await?);
    ensure!(
        test.logical_volume("node1", &volume).await?.is_some(),
        "the origin is gone"
    );
    let after = fullness(test, "node1", "backup").await?;
    ensure!(
        (after - before).abs() < 1.0,
        "the snapshot was filled: {before} % before, {after} % after"
    );
    let read =
        "mkdir -p /run/backup && mount -o ro /dev/$0/backup /run/backup && cat /run/backup/file; umount /run/backup";
    let kept = node.run(["sh", "-c", read, &class]).await?;
    ensure!(kept.stdout.trim() == "precious", "the snapshot has {kept:?}");

    node.run_ok(["lvremove", "-y", &format!("{class}/backup")]).await?;
    test.wait(
        "the volume is removed once its snapshot is gone",
        Duration::from_secs(320),
        || async { Ok(test.volumes().get_opt(&volume).await?.is_none().then_some(())) },
    )
    .await?;
    ensure!(test.logical_volume("node1", &volume).await?.is_none());
    Ok(())
}
