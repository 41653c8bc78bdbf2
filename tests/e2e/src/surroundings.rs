//! Nodes that lack a part of what LVM is used to find: volumes are made, found by kubelet, and found again after a reboot.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quarry_bed::{Boot, Node, Udev};

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(node_without_lvm_rules),
    case!(node_without_dm_rules),
    case!(node_without_dmsetup),
    case!(node_without_udev),
    case!(udev_freezes),
    case!(udev_ends_and_comes_back),
];

/// The node that is booted so.
const NODE: &str = "node3";
/// From claim and pod to the pod running.
const PATIENCE: Duration = Duration::from_secs(60);

async fn node_without_lvm_rules(test: &Test) -> Result<()> {
    with_udev(test, Udev::NoLvmRules, "lvm_in_step").await
}

async fn node_without_dm_rules(test: &Test) -> Result<()> {
    with_udev(test, Udev::NoDmRules, "lvm").await
}

async fn node_without_dmsetup(test: &Test) -> Result<()> {
    with_udev(test, Udev::NoDmsetup, "lvm").await
}

async fn node_without_udev(test: &Test) -> Result<()> {
    with_udev(test, Udev::None, "lvm").await
}

/// Boots the node with that of udev, does all of it, and boots it as it was.
async fn with_udev(test: &Test, udev: Udev, by: &str) -> Result<()> {
    let node = test.bed.node(NODE)?;
    let result = on_such_a_node(test, &node, udev, by).await;
    reboot(&node, None).await?;
    result?;
    test.bed.rolled_out("quarry-manager").await
}

async fn reboot(node: &Node, udev: Option<Udev>) -> Result<()> {
    node.power_off().await?;
    node.boot(Boot {
        udev,
        ..Boot::default()
    })
    .await
    .with_context(|| format!("with udev {udev:?}"))
}

async fn on_such_a_node(test: &Test, node: &Node, udev: Udev, by: &str) -> Result<()> {
    reboot(node, Some(udev)).await?;
    test.bed.rolled_out("quarry-manager").await?;
    let class = class_here(test).await?;
    for (claim, block) in [("files", false), ("raw", true)] {
        in_time(test, &class, claim, block).await?;
    }
    let metrics = test.manager_metrics(NODE).await?;
    let line = format!("quarry_device_nodes{{by=\"{by}\"}} 1");
    ensure!(metrics.contains(&line), "not {line}: {metrics}");
    test.exec("files", &["sh", "-c", "echo kept > /files/file && sync"])
        .await?;
    test.exec("raw", &["sh", "-c", "echo kept | dd of=/dev/raw conv=fsync"])
        .await?;

    reboot(node, Some(udev)).await?;
    for (pod, argv) in [
        ("files", vec!["cat", "/files/file"]),
        ("raw", vec!["head", "-c", "5", "/dev/raw"]),
    ] {
        test.wait("the pod runs again with its data", Duration::from_secs(120), || async {
            let read = test.exec(pod, &argv).await.ok();
            Ok(read.filter(|read| read == "kept\n").map(|_| ()))
        })
        .await?;
    }
    let volume = test.bound("files").await?;
    test.delete_pod("files").await?;
    test.delete_claim("files").await?;
    test.volume_gone(&volume).await?;
    let left = node.run(["ls", "/dev/mapper", &format!("/dev/{class}")]).await?.stdout;
    ensure!(
        !left.replace("--", "-").contains(&volume),
        "nodes or links of a volume that is gone are left: {left}"
    );
    Ok(())
}

async fn class_here(test: &Test) -> Result<String> {
    let disks = vec![test.bed.disk(3, 0)?];
    let class = test.class(Class::new(&test.class_name("a"), &[(NODE, disks)])).await?;
    test.ready(&class, 1).await?;
    Ok(class)
}

/// A claim and a pod of its name, which runs in time.
async fn in_time(test: &Test, class: &str, name: &str, block: bool) -> Result<()> {
    let begun = Instant::now();
    let claim = Claim::new(name, class, "100Mi");
    test.claim(if block { claim.block() } else { claim }).await?;
    test.pod(PodSpec::new(name).claim(name, block)).await?;
    test.running(name).await?;
    let took = begun.elapsed();
    ensure!(took < PATIENCE, "{name} runs after {} s", took.as_secs());
    Ok(())
}

/// udev does not answer any more while the manager runs: a command that waits for it is not waited for until its deadline.
async fn udev_freezes(test: &Test) -> Result<()> {
    let node = test.bed.node(NODE)?;
    let class = class_here(test).await?;
    in_time(test, &class, "before", false).await?;
    node.run_ok(["pkill", "-STOP", "-x", "systemd-udevd"]).await?;
    let result = in_time(test, &class, "frozen", false).await;
    node.run_ok(["pkill", "-CONT", "-x", "systemd-udevd"]).await?;
    result
}

/// udev ends, such as for an update that fails; volumes are made and removed all the same, and again once it is back.
async fn udev_ends_and_comes_back(test: &Test) -> Result<()> {
    let node = test.bed.node(NODE)?;
    let class = class_here(test).await?;
    in_time(test, &class, "before", false).await?;
    node.run_ok(["pkill", "-KILL", "-x", "systemd-udevd"]).await?;
    let result = while_it_is_gone(test, &class).await;
    node.run_ok(["/usr/lib/systemd/systemd-udevd", "--daemon"]).await?;
    result?;
    test.wait("udev is used again", Duration::from_secs(60), || async {
        let metrics = test.manager_metrics(NODE).await?;
        Ok(metrics.contains("quarry_device_nodes{by=\"udev\"} 1").then_some(()))
    })
    .await?;
    in_time(test, &class, "after", false).await?;
    // A node of LVM's own goes too where udev is used again.
    let volume = test.bound("gone").await?;
    test.delete_pod("gone").await?;
    test.delete_claim("gone").await?;
    test.volume_gone(&volume).await?;
    let left = node.run(["ls", "/dev/mapper", &format!("/dev/{class}")]).await?.stdout;
    ensure!(!left.replace("--", "-").contains(&volume), "left: {left}");
    Ok(())
}

async fn while_it_is_gone(test: &Test, class: &str) -> Result<()> {
    in_time(test, class, "gone", false).await?;
    let volume = test.bound("before").await?;
    test.delete_pod("before").await?;
    test.delete_claim("before").await?;
    test.volume_gone(&volume).await
}
