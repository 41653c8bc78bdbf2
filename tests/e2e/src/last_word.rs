//! Volumes that are to be kept after all, that were handed out before, that others hide: nothing is wiped or removed by a decision
//! of yesterday, and nothing stays in silence.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use quarry_bed::Node;
use serde_json::{Value, json};

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(a_wipe_is_called_off_while_it_waits),
    case!(long_wipes_hold_up_nobody),
    case!(a_volume_handed_out_before_is_not_wiped),
    case!(released_without_finalizer_or_label),
    case!(a_volume_in_another_group_is_told_of),
];

/// How fast the managers may write to a disk that is to be slow, in bytes in a second.
const SLOW: u64 = 8 << 20;

async fn change(test: &Test, volume: &str, patch: Value) -> Result<()> {
    let params = PatchParams::default();
    test.volumes().patch(volume, &params, &Patch::Merge(patch)).await?;
    Ok(())
}

/// Makes a disk slow, or as it was, for what the manager of a node writes itself: not for pods.
async fn throttle(node: &Node, disk: &str, limit: Option<u64>) -> Result<()> {
    // The controller is to be on all the way down to the manager.
    let script = r#"
        number=$(lsblk -dno MAJ:MIN "$(readlink -f "$0")" | tr -d ' ')
        for process in $(pidof quarry-manager); do
            path=$(sed -n 's/^0:://p' "/proc/$process/cgroup")
            at=/sys/fs/cgroup
            for part in $(echo "$path" | tr / ' '); do
                echo +io > "$at/cgroup.subtree_control"
                at=$at/$part
            done
            echo "$number wbps=$1" > "$at/io.max"
        done"#;
    let limit = limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
    node.run_ok(["sh", "-ec", script, disk, &limit]).await?;
    Ok(())
}

/// With one disk of node1 slow, and as it was afterwards.
async fn with_slow_disk(test: &Test, body: impl AsyncFnOnce(&Test, &Node, &str) -> Result<()>) -> Result<()> {
    let (node, disk) = (test.bed.node("node1")?, test.bed.disk(1, 0)?);
    throttle(&node, &disk, Some(SLOW)).await?;
    let result = body(test, &node, &disk).await;
    throttle(&node, &disk, None).await?;
    result
}

async fn a_wipe_is_called_off_while_it_waits(test: &Test) -> Result<()> {
    with_slow_disk(test, called_off).await
}

/// Four volumes are being written with zeros; the fifth waits for its turn when it is set to Retain.
async fn called_off(test: &Test, node: &Node, disk: &str) -> Result<()> {
    let class = Class::new(&test.class_name("a"), &[("node1", vec![disk.to_owned()])]).parameter("wipe", "zero");
    let class = test.class(class).await?;
    test.ready(&class, 1).await?;
    let mut volumes = Vec::new();
    for at in 1..=5 {
        let name = format!("data{at}");
        test.claim(Claim::new(&name, &class, "300Mi")).await?;
        test.pod(PodSpec::new(&name).claim(&name, false)).await?;
        test.running(&name).await?;
        test.exec(&name, &["sh", "-c", &format!("echo {name} > /{name}/file && sync")])
            .await?;
        volumes.push(test.volume_of(&name).await?.name_any());
    }
    for at in 1..=5 {
        test.delete_pod(&format!("data{at}")).await?;
    }
    for at in 1..=4 {
        test.delete_claim(&format!("data{at}")).await?;
        let parts = ["Wiping", "node1", "is being wiped (zero)"];
        test.said("PersistentVolume", &volumes[at - 1], &parts).await?;
    }
    test.delete_claim("data5").await?;
    let kept = &volumes[4];
    println!(
        "   {}",
        test.said("PersistentVolume", kept, &["Wiping", "waits to be wiped (zero)"])
            .await?
    );
    change(test, kept, json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})).await?;
    throttle(node, disk, None).await?;
    for volume in &volumes[..4] {
        test.volume_gone(volume).await?;
    }
    // Longer than it would have taken.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let read = "mkdir -p /run/kept && mount -o ro $0 /run/kept && cat /run/kept/file; umount /run/kept";
    let found = node.run(["sh", "-c", read, &format!("/dev/{class}/{kept}")]).await?;
    ensure!(found.stdout.trim() == "data5", "it was wiped after all: {found:?}");
    let row = test.logical_volume("node1", kept).await?.context("it was removed")?;
    let tags = row["lv_tags"].as_str().unwrap_or_default().to_owned();
    ensure!(!tags.contains("quarry.state=deleting"), "{tags}");
    // What is to be retained says so while its object is there.
    test.wait("it is marked as retained", Duration::from_secs(120), || async {
        let row = test.logical_volume("node1", kept).await?.context("it was removed")?;
        Ok(row["lv_tags"]
            .as_str()
            .unwrap_or_default()
            .contains("quarry.state=retained")
            .then_some(()))
    })
    .await?;
    change(test, kept, json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}})).await?;
    test.volume_gone(kept).await?;
    ensure!(test.logical_volume("node1", kept).await?.is_none());
    Ok(())
}

async fn long_wipes_hold_up_nobody(test: &Test) -> Result<()> {
    with_slow_disk(test, long_wipes).await
}

/// Eight raw volumes are written with zeros on a slow disk, as many as claims are served at a time; claims on another disk do not
/// wait for them, and when they are deleted the writing stops.
async fn long_wipes(test: &Test, node: &Node, disk: &str) -> Result<()> {
    const MANY: usize = 8;
    let slow = test
        .class(Class::new(
            &test.class_name("slow"),
            &[("node1", vec![disk.to_owned()])],
        ))
        .await?;
    let fast = Class::new(&test.class_name("fast"), &[("node1", vec![test.bed.disk(1, 1)?])]);
    let fast = test.class(fast).await?;
    test.ready(&slow, 1).await?;
    test.ready(&fast, 1).await?;
    let free = test.free_on("node1", &slow).await?;
    for at in 0..MANY {
        let claim = Claim::new(&format!("slow{at}"), &slow, "450Mi")
            .block()
            .selected("node1");
        test.claim(claim).await?;
    }
    println!(
        "   {}",
        test.said("PersistentVolumeClaim", "slow0", &["Wiping", "is being made zeros"])
            .await?
    );
    // The others are being made meanwhile; on so slow a disk LVM itself waits behind what is written.
    let writing = format!("quarry_wipes{{vg=\"{slow}\",of=\"new\",phase=\"writing\"}} ");
    let metrics = test.manager_metrics("node1").await?;
    let at_once = metrics
        .lines()
        .find_map(|line| line.strip_prefix(&writing)?.parse::<u32>().ok());
    ensure!(
        at_once.is_some_and(|count| (1..=4).contains(&count)),
        "{at_once:?} are written at a time"
    );
    let figures: Vec<&str> = metrics.lines().filter(|line| line.starts_with("quarry_wipe")).collect();
    println!("   {}", figures.join("\n   "));
    for block in [false, true] {
        let name = format!("fast-{}", if block { "raw" } else { "files" });
        let claim = Claim::new(&name, &fast, "64Mi").selected("node1");
        let begun = Instant::now();
        test.claim(if block { claim.block() } else { claim }).await?;
        test.bound(&name).await?;
        let took = begun.elapsed();
        println!("   {name} was bound after {:.1} s", took.as_secs_f64());
        ensure!(took < Duration::from_secs(15), "{name} waited {took:?}");
    }
    let mut bound = 0;
    for at in 0..MANY {
        let claim = test.claims().get(&format!("slow{at}")).await?;
        bound += usize::from(claim.spec.is_some_and(|spec| spec.volume_name.is_some()));
    }
    ensure!(bound < MANY, "the disk was not slow");
    for at in 0..MANY {
        test.claims()
            .delete(&format!("slow{at}"), &DeleteParams::default())
            .await?;
    }
    // With the disk as slow as before: what is written would take minutes.
    test.wait("nothing of the claims is left", PATIENCE, || async {
        Ok((test.free_on("node1", &slow).await? == free).then_some(()))
    })
    .await?;
    throttle(node, disk, None).await
}

/// As after a restore of etcd to a moment when the claim was not bound: the volume is there, and its tag says that it was handed
/// out.
async fn a_volume_handed_out_before_is_not_wiped(test: &Test) -> Result<()> {
    let class = Class::new(&test.class_name("a"), &[("node1", vec![test.bed.disk(1, 0)?])]);
    let class = test.class(class).await?;
    test.ready(&class, 1).await?;
    let claim = test.claim(Claim::new("data", &class, "100Mi")).await?;
    let uid = claim.uid().context("no UID")?;
    let node = test.bed.node("node1")?;
    let volume = format!("pvc-{uid}");
    let tags = [
        "quarry.version=1".to_owned(),
        format!("quarry.pvc-uid={uid}"),
        format!("quarry.class={class}"),
        "quarry.state=ready".to_owned(),
        "quarry.wipe=signatures".to_owned(),
        "quarry.mode=filesystem".to_owned(),
    ];
    let mut words = ["lvcreate", "-y", "-n", &volume, "-L", "100M"]
        .map(str::to_owned)
        .to_vec();
    words.extend(tags.into_iter().flat_map(|tag| ["--addtag".to_owned(), tag]));
    words.push(class.clone());
    node.run_ok(words.iter().map(String::as_str).collect::<Vec<_>>())
        .await?;
    let device = format!("/dev/{class}/{volume}");
    let fill =
        "mkfs.ext4 -q $0 && mkdir -p /run/old && mount $0 /run/old && echo precious > /run/old/file && umount /run/old";
    node.run_ok(["sh", "-ec", fill, &device]).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    let parts = [
        "ProvisioningFailed",
        "node1",
        "was handed out before",
        &format!("lvremove {class}/{volume}"),
    ];
    println!("   {}", test.said("PersistentVolumeClaim", "data", &parts).await?);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let read = "mount -o ro $0 /run/old && cat /run/old/file; umount /run/old";
    let found = node.run(["sh", "-c", read, &device]).await?;
    ensure!(found.stdout.trim() == "precious", "{found:?}");
    node.run_ok(["lvremove", "-y", &format!("{class}/{volume}")]).await?;
    test.running("user").await?;
    let found = test.exec("user", &["ls", "-A", "/data"]).await?;
    ensure!(found.trim() == "lost+found", "{found}");
    Ok(())
}

async fn released_without_finalizer_or_label(test: &Test) -> Result<()> {
    let grace = |value| [("QUARRY_ORPHAN_GRACE", value)];
    // Sweeps are 5 s apart then.
    test.bed.manager_settings(&grace(Some("20s"))).await?;
    let result = unheld(test).await;
    test.bed.manager_settings(&grace(None)).await?;
    result
}

async fn unheld(test: &Test) -> Result<()> {
    let class = Class::new(&test.class_name("a"), &[("node1", vec![test.bed.disk(1, 0)?])]);
    let class = test.class(class).await?;
    test.ready(&class, 1).await?;
    for what in ["finalizer", "label"] {
        test.claim(Claim::new(what, &class, "100Mi").selected("node1")).await?;
        let volume = test.bound(what).await?;
        let patch = match what {
            "finalizer" => json!({"metadata": {"finalizers": ["kubernetes.io/pv-protection"]}}),
            _ => json!({"metadata": {"labels": {"quarry.dev/node": null}}}),
        };
        change(test, &volume, patch).await?;
        test.delete_claim(what).await?;
        if what == "label" {
            let parts = ["LabelMissing", "node1", &format!("kubectl label pv {volume}")];
            println!("   {}", test.said("PersistentVolume", &volume, &parts).await?);
        }
        test.volume_gone(&volume).await?;
        ensure!(
            test.logical_volume("node1", &volume).await?.is_none(),
            "without its {what} it is left"
        );
    }
    Ok(())
}

/// An administrator splits a group with a volume of ours: the object of the volume does not go as if it had been removed.
async fn a_volume_in_another_group_is_told_of(test: &Test) -> Result<()> {
    let disks = vec![test.bed.disk(1, 0)?, test.bed.disk(1, 1)?];
    let class = test
        .class(Class::new(&test.class_name("a"), &[("node1", disks)]))
        .await?;
    test.ready(&class, 1).await?;
    test.claim(Claim::new("data", &class, "100Mi").selected("node1"))
        .await?;
    let volume = test.bound("data").await?;
    let node = test.bed.node("node1")?;
    let (split, moved) = (format!("{class}-split"), format!("{class}/{volume}"));
    node.run_ok(["lvchange", "-an", &moved]).await?;
    node.run_ok(["vgsplit", "-n", &volume, &class, &split]).await?;
    test.delete_claim("data").await?;
    let parts = [
        "VolumeFailedDelete",
        "node1",
        &format!("is in volume group {split}"),
        &format!("vgmerge {class} {split}"),
    ];
    println!("   {}", test.said("PersistentVolume", &volume, &parts).await?);
    ensure!(test.volumes().get_opt(&volume).await?.is_some(), "its object is gone");
    ensure!(test.logical_volume("node1", &volume).await?.is_some(), "it is gone");
    node.run_ok(["vgchange", "-an", &split]).await?;
    node.run_ok(["vgmerge", &class, &split]).await?;
    test.wait("it is removed once it is back", Duration::from_secs(320), || async {
        Ok(test.volumes().get_opt(&volume).await?.is_none().then_some(()))
    })
    .await?;
    ensure!(test.logical_volume("node1", &volume).await?.is_none());
    Ok(())
}
