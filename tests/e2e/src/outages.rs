//! What a user's pods notice when nodes reboot and parts of Quarry are down: nothing that a reboot does not explain.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use quarry_bed::Boot;
use serde_json::json;

use crate::bed::NAMESPACE;
use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};

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
    let begun = Instant::now();
    let (booted, active) = tokio::join!(node.boot(Boot::default()), volumes_active(test, "node2", volumes.len()));
    booted?;
    let active = active?;
    println!(
        "   power on → volumes active: {:.1} s",
        active.duration_since(begun).as_secs_f64()
    );
    let active_at = Timestamp::now() - SignedDuration::try_from(active.elapsed())?;
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
    for pod in ["ext4", "xfs"] {
        let late = failed_mounts_after(test, pod, active_at).await?;
        ensure!(late.is_empty(), "mounts failed though the volume was active: {late:?}");
    }
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

/// Waits until that many logical volumes of a node that boots have their devices; when that was.
async fn volumes_active(test: &Test, node: &str, count: usize) -> Result<Instant> {
    let node = test.bed.node(node)?;
    test.wait("the volumes are active", PATIENCE, || async {
        // Nobody answers before the kernel is up.
        let listed = node.run(["dmsetup", "ls"]).await.ok();
        let devices = listed.map_or(0, |output| {
            output.stdout.lines().filter(|line| line.contains("pvc")).count()
        });
        Ok((devices >= count).then(Instant::now))
    })
    .await
}

/// What kubelet said of mounts of a pod that failed later than that: before, it tries until the volume is there.
async fn failed_mounts_after(test: &Test, pod: &str, active: Timestamp) -> Result<Vec<String>> {
    let events: Api<Event> = Api::namespaced(test.client(), &test.name);
    let params = ListParams::default().fields(&format!("regarding.name={pod},reason=FailedMount"));
    let failed = events.list(&params).await?.items;
    let attempts: i32 = failed.iter().filter_map(|event| event.deprecated_count).sum();
    println!("   pod {pod}: {attempts} mounts failed before its volume was active");
    // Kubernetes counts whole seconds.
    let late = |event: &Event| {
        let last = event.deprecated_last_timestamp.as_ref();
        last.is_some_and(|time| time.0 > active + SignedDuration::from_secs(2))
    };
    Ok(failed.into_iter().filter(late).filter_map(|event| event.note).collect())
}

/// Sends the pods of a DaemonSet of ours away, or lets them come back.
///
/// # Errors
/// They are not gone, or not ready, after three minutes.
pub async fn away(test: &Test, name: &str, away: bool) -> Result<()> {
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
    // The counts of its status are of the nodes where it should run: they are 0 while every pod still ends.
    let pods: Api<Pod> = Api::namespaced(test.client(), NAMESPACE);
    let its = ListParams::default().labels(&format!("app.kubernetes.io/name={name}"));
    test.wait(&format!("{name} is gone"), Duration::from_secs(200), || async {
        Ok(pods.list(&its).await?.items.is_empty().then_some(()))
    })
    .await
}

/// Does something while the pods of DaemonSets of ours are away, and lets them come back however it ends.
///
/// # Errors
/// Those of what is done, or else of the DaemonSets.
pub async fn while_away<T>(test: &Test, names: &[&str], done: impl Future<Output = Result<T>>) -> Result<T> {
    let result = async {
        for name in names {
            away(test, name, true).await?;
        }
        done.await
    }
    .await;
    let mut back = Ok(());
    for name in names.iter().rev() {
        back = back.and(away(test, name, false).await);
    }
    let value = result?;
    back.map(|()| value)
}

/// With every part of Quarry stopped running pods go on, and a restarted pod mounts its volume again.
async fn quarry_stopped(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    test.claim(Claim::new("data", &class, "500Mi")).await?;
    test.pod(PodSpec::new("before").claim("data", false)).await?;
    let node = test.running("before").await?;
    test.exec("before", &["sh", "-c", "echo kept > /data/file && sync"])
        .await?;
    let names = ["quarry-manager", "quarry-extender"];
    while_away(test, &names, while_stopped(test, &class, &node)).await?;
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
    test.bed.rolled_out("quarry-manager").await?;
    links_are_made_again(test, &class).await
}

/// LVM says that a volume is active, and udev or a command that was killed has left no link to it: kubelet could not use it.
async fn links_are_made_again(test: &Test, class: &str) -> Result<()> {
    let volume = test.volume_of("data0").await?;
    let ours = quarry_crds::persistent_volume::ours(&volume).context("not of Quarry")?;
    test.delete_pod("data0").await?;
    let node = test.bed.node(&ours.node)?;
    let link = format!("/dev/{class}/{}", volume.name_any());
    node.run_ok(["rm", &link]).await?;
    node.run(["pkill", "-KILL", "-x", "quarry-manager"]).await?;
    test.pod(PodSpec::new("again").claim("data0", true)).await?;
    test.running("again").await?;
    ensure!(node.run(["test", "-b", &link]).await?.success());
    Ok(())
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
