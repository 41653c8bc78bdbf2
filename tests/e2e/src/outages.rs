//! What a user's pods notice when nodes reboot and parts of Quarry are down: nothing that a reboot does not explain.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use quarry_bed::Boot;
use serde_json::json;

use crate::bed::NAMESPACE;
use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(node_killed_and_rebooted),
    case!(quarry_stopped),
    case!(manager_restarted),
    case!(disk_names_move),
];

/// A node's kernel is killed with pods on it and booted again: the pods run again with their data.
async fn node_killed_and_rebooted(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let xfs = Class::new(&test.class_name("x"), &test.each_node(1)?).parameter("fsType", "xfs");
    let xfs = test.class(xfs).await?;
    test.ready(&xfs, 3).await?;
    let claims = [
        ("ext4", Claim::new("ext4", &class, "500Mi")),
        ("xfs", Claim::new("xfs", &xfs, "500Mi")),
    ];
    for (name, claim) in claims {
        test.claim(claim).await?;
        test.pod(PodSpec::new(name).claim(name, false).on("node2")).await?;
        test.running(name).await?;
        let write = format!(
            "dd if=/dev/urandom of=/{name}/file bs=64k count=32 && sync && sha256sum /{name}/file > /{name}/sum && sync"
        );
        test.exec(name, &["sh", "-c", &write]).await?;
    }
    let groups = test.lvm("node2", "vgs", "vg_name,vg_uuid").await?;
    let volumes = test.lvm("node2", "lvs", "lv_name,lv_uuid,lv_size").await?;
    let node = test.bed.node("node2")?;
    node.kill().await?;
    node.boot(Boot::default()).await?;
    let booted = Instant::now();
    for name in ["ext4", "xfs"] {
        test.wait(
            &format!("pod {name} has its data again"),
            Duration::from_secs(240),
            || async {
                let argv = ["sha256sum", "-c", &format!("/{name}/sum")];
                Ok(test
                    .exec(name, &argv)
                    .await
                    .ok()
                    .filter(|told| told.contains("OK"))
                    .map(|_| ()))
            },
        )
        .await?;
    }
    println!(
        "   node Ready → all pods with their data: {:.1} s",
        booted.elapsed().as_secs_f64()
    );
    ensure!(
        test.lvm("node2", "vgs", "vg_name,vg_uuid").await? == groups,
        "no volume group may be made anew"
    );
    ensure!(
        test.lvm("node2", "lvs", "lv_name,lv_uuid,lv_size").await? == volumes,
        "no volume may be made anew"
    );
    test.bed.rolled_out("quarry-manager").await
}

/// Sends the pods of a DaemonSet of ours away, or lets them come back.
async fn away(test: &Test, name: &str, away: bool) -> Result<()> {
    let sets: Api<DaemonSet> = Api::namespaced(test.client(), NAMESPACE);
    let selector = if away {
        json!({"quarry.dev/nowhere": "true"})
    } else {
        json!({"quarry.dev/nowhere": null})
    };
    let patch = json!({"spec": {"template": {"spec": {"nodeSelector": selector}}}});
    sets.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    if !away {
        return test.bed.rolled_out(name).await;
    }
    test.wait(&format!("{name} is gone"), Duration::from_secs(200), || async {
        let status = sets.get(name).await?.status.unwrap_or_default();
        Ok((status.current_number_scheduled == 0 && status.number_ready == 0).then_some(()))
    })
    .await
}

/// With every part of Quarry stopped running pods go on, and a restarted pod mounts its volume again.
async fn quarry_stopped(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    test.claim(Claim::new("data", &class, "500Mi")).await?;
    test.pod(PodSpec::new("before").claim("data", false)).await?;
    let node = test.running("before").await?;
    test.exec("before", &["sh", "-c", "echo kept > /data/file && sync"])
        .await?;
    away(test, "quarry-manager", true).await?;
    away(test, "quarry-extender", true).await?;
    let result = while_stopped(test, &class, &node).await;
    away(test, "quarry-extender", false).await?;
    away(test, "quarry-manager", false).await?;
    result?;
    // What was asked for meanwhile is served now.
    test.running("new").await?;
    Ok(())
}

async fn while_stopped(test: &Test, class: &str, node: &str) -> Result<()> {
    test.exec("before", &["sh", "-c", "echo more >> /data/file && sync"])
        .await?;
    test.delete_pod("before").await?;
    test.pod(PodSpec::new("after").claim("data", false)).await?;
    ensure!(test.running("after").await? == node);
    let read = test.exec("after", &["cat", "/data/file"]).await?;
    ensure!(read == "kept\nmore\n", "{read}");
    // A pod without any claim of ours is scheduled as if nothing were amiss.
    test.pod(PodSpec::new("plain")).await?;
    test.running("plain").await?;
    test.claim(Claim::new("new", class, "500Mi")).await?;
    test.pod(PodSpec::new("new").claim("new", false)).await?;
    Ok(())
}

/// The manager is killed while it makes volumes; each claim ends with exactly one volume.
async fn manager_restarted(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 2).await?;
    for number in 0..6 {
        let name = format!("data{number}");
        test.claim(Claim::new(&name, &class, "200Mi").block()).await?;
        test.pod(PodSpec::new(&name).claim(&name, true)).await?;
        for node in ["node1", "node2", "node3"] {
            test.bed
                .node(node)?
                .run(["pkill", "-KILL", "-x", "quarry-manager"])
                .await?;
        }
    }
    let mut expected = Vec::new();
    for number in 0..6 {
        let name = format!("data{number}");
        test.running(&name).await.with_context(|| name.clone())?;
        expected.push(test.volume_of(&name).await?.name_any());
    }
    expected.sort();
    let mut made = Vec::new();
    for node in ["node1", "node2", "node3"] {
        let rows = test.lvm(node, "lvs", "lv_name").await?;
        made.extend(rows.iter().filter_map(|row| row["lv_name"].as_str().map(str::to_owned)));
    }
    made.sort();
    ensure!(made == expected, "made {made:?}, claimed {expected:?}");
    test.bed.rolled_out("quarry-manager").await
}

/// After a reboot the disks have other kernel names; everything is found again, nothing is made anew.
async fn disk_names_move(test: &Test) -> Result<()> {
    let node = test.bed.node("node3")?;
    let disks = [test.bed.disk(3, 0)?, test.bed.disk(3, 1)?];
    let class = test
        .class(Class::new(&test.class_name("a"), &[("node3", disks.to_vec())]))
        .await?;
    test.ready(&class, 1).await?;
    test.claim(Claim::new("data", &class, "500Mi")).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    test.running("user").await?;
    test.exec("user", &["sh", "-c", "echo moved > /data/file && sync"])
        .await?;
    let before = node.run_ok(["realpath", &disks[0], &disks[1]]).await?;
    let groups = test.lvm("node3", "vgs", "vg_name,vg_uuid,pv_count").await?;
    node.power_off().await?;
    let order = vec![test.bed.disk(3, 2)?, disks[1].clone(), disks[0].clone()];
    let moved = node
        .boot(Boot {
            order,
            ..Boot::default()
        })
        .await;
    let result = after_move(test, &class, &disks, &before, &groups).await;
    node.power_off().await?;
    node.boot(Boot::default()).await?;
    moved?;
    result?;
    test.bed.rolled_out("quarry-manager").await
}

async fn after_move(
    test: &Test,
    class: &str,
    disks: &[String],
    before: &str,
    groups: &[serde_json::Value],
) -> Result<()> {
    let node = test.bed.node("node3")?;
    let after = node.run_ok(["realpath", &disks[0], &disks[1]]).await?;
    ensure!(after != before, "the names were to move: {before}");
    test.wait("the data is there", Duration::from_secs(240), || async {
        Ok(test
            .exec("user", &["cat", "/data/file"])
            .await
            .ok()
            .filter(|read| read == "moved\n")
            .map(|_| ()))
    })
    .await?;
    ensure!(test.lvm("node3", "vgs", "vg_name,vg_uuid,pv_count").await? == groups);
    let storage = test
        .wait("the status has the new names", Duration::from_secs(60), || async {
            let storage = test.ready(class, 1).await?.remove(0);
            let devices: Vec<_> = storage
                .status
                .iter()
                .flat_map(|s| &s.disks)
                .filter_map(|d| d.device.clone())
                .collect();
            let expected: Vec<_> = after.lines().map(str::to_owned).collect();
            Ok((devices == expected).then_some(storage))
        })
        .await?;
    ensure!(storage.is_ready());
    Ok(())
}
