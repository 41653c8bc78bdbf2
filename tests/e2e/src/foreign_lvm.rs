//! What is none of Quarry's: metadata of LVM that a pod wrote into its raw volume, copies of disks, devices that hang, and groups
//! of other nodes. Nothing of it is read for a decision, and nothing of Quarry's stops for it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use quarry_bed::Node;
use serde_json::Value;

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(metadata_that_a_pod_wrote_changes_nothing),
    case!(copies_and_devices_that_hang_stop_nothing),
    case!(lvm_reads_no_device_but_the_disks_of_its_groups),
    case!(a_group_of_another_node_is_held_until_it_is_handed_over),
];

/// Longer than Quarry waits before it removes what an interrupted attempt left.
const SWEEPS: Duration = Duration::from_secs(50);
/// The tags of a group that Quarry would take down, and of a volume in it that an interrupted attempt left.
const GROUP_TAGS: &str = "--addtag quarry.version=1 --addtag quarry.policy=delete";
const VOLUME_TAGS: &str = "--addtag quarry.version=1 --addtag quarry.class=x --addtag quarry.state=creating \
                           --addtag quarry.wipe=signatures --addtag quarry.mode=block";

async fn shell(node: &Node, script: &str) -> Result<String> {
    Ok(node.run_ok(["sh", "-e", "-c", script]).await?)
}

/// A mebibyte that a tenant writes.
struct Image {
    /// The claim of the tenant.
    claim: &'static str,
    /// Name of the volume group in it.
    group: String,
    /// UUIDs that it pretends to have, of the group and of its physical volume.
    group_uuid: Option<String>,
    physical_volume: Option<String>,
}

impl Image {
    /// Makes it in a file of the node, and returns the path.
    async fn make(&self, node: &Node, claim_uid: &str) -> Result<String> {
        let (claim, group) = (self.claim, &self.group);
        let file = format!("/run/{claim}.img");
        let label = self
            .physical_volume
            .as_ref()
            .map(|uuid| format!("--norestorefile --uuid {uuid}"))
            .unwrap_or_default();
        // Made under a name of its own, as LVM makes no group whose name is in /dev; what is pretended is written into its metadata.
        let uuid = self
            .group_uuid
            .as_ref()
            .map(|uuid| format!("; s/$old/{uuid}/; s/seqno = .*/seqno = 999/"));
        let script = format!(
            "rm -f {file}; truncate -s 64M {file}; L=$(losetup -f --show {file})
             pvcreate -q --devices $L {label} $L >/dev/null
             vgcreate -q --devices $L {GROUP_TAGS} image-{claim} $L >/dev/null
             lvcreate -q --devices $L -an -Wn -Zn -l 3 -n pvc-{claim_uid} {VOLUME_TAGS} \
                --addtag quarry.pvc-uid={claim_uid} image-{claim} >/dev/null 2>&1
             old=$(vgs --devices $L --noheadings -o vg_uuid image-{claim} | tr -d ' ')
             vgcfgbackup -q --devices $L -f /run/{claim}.vg image-{claim} >/dev/null
             sed -i \"s/^image-{claim} {{/{group} {{/{}\" /run/{claim}.vg
             vgcfgrestore -q -y --devices $L -f /run/{claim}.vg {group} >/dev/null
             sync; losetup -d $L",
            uuid.unwrap_or_default()
        );
        shell(node, &script).await.with_context(|| format!("making {file}"))?;
        Ok(file)
    }
}

/// UUIDs of the group of a class on a node, and of its physical volume.
async fn uuids(test: &Test, node: &str, group: &str) -> Result<(String, String)> {
    let rows = test.lvm(node, "pvs", "vg_name,vg_uuid,pv_uuid").await?;
    let row = rows
        .iter()
        .find(|row| row["vg_name"] == group)
        .context("no such group")?;
    let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
    Ok((text("vg_uuid"), text("pv_uuid")))
}

async fn metadata_that_a_pod_wrote_changes_nothing(test: &Test) -> Result<()> {
    let class = test
        .class(Class::new(
            &test.class_name("a"),
            &[("node1", vec![test.bed.disk(1, 0)?])],
        ))
        .await?;
    test.ready(&class, 1).await?;
    let node = test.bed.node("node1")?;
    test.claim(Claim::new("victim", &class, "100Mi")).await?;
    test.pod(PodSpec::new("victim").claim("victim", false)).await?;
    test.running("victim").await?;
    test.exec(
        "victim",
        &["sh", "-c", "yes of-the-victim | head -c 20000000 > /victim/file; sync"],
    )
    .await?;
    let sum = ["sh", "-c", "sha256sum < /victim/file"];
    let before = test.exec("victim", &sum).await?;
    let (group_uuid, physical_volume) = uuids(test, "node1", &class).await?;
    let images = [
        Image {
            claim: "with-our-tags",
            group: "evil".into(),
            group_uuid: None,
            physical_volume: None,
        },
        Image {
            claim: "with-our-name",
            group: class.clone(),
            group_uuid: None,
            physical_volume: None,
        },
        Image {
            claim: "with-our-uuid",
            group: class.clone(),
            group_uuid: Some(group_uuid.clone()),
            physical_volume: None,
        },
        Image {
            claim: "with-our-disk",
            group: class.clone(),
            group_uuid: Some(group_uuid),
            physical_volume: Some(physical_volume),
        },
    ];
    for image in &images {
        test.claim(Claim::new(image.claim, &class, "64Mi").block()).await?;
        test.pod(PodSpec::new(image.claim).claim(image.claim, true)).await?;
    }
    let mut written = Vec::new();
    for image in &images {
        test.running(image.claim).await?;
        test.delete_pod(image.claim).await?;
        let volume = test.volume_of(image.claim).await?.name_any();
        let uid = volume.trim_start_matches("pvc-").to_owned();
        let file = image.make(&node, &uid).await?;
        let device = format!("/dev/{class}/{volume}");
        let write = format!("dd if={file} of={device} bs=1M count=1 conv=notrunc oflag=direct 2>/dev/null; sync");
        shell(&node, &write).await?;
        // Made anew, so that kubelet makes its loop device over what is there now.
        test.pod(PodSpec::new(image.claim).claim(image.claim, true)).await?;
        test.running(image.claim).await?;
        written.push((image.claim, device, file));
    }
    // What somebody else wants meanwhile is served.
    let begun = Instant::now();
    test.claim(Claim::new("released", &class, "100Mi").selected("node1"))
        .await?;
    let released = test.bound("released").await?;
    test.delete_claim("released").await?;
    test.volume_gone(&released).await?;
    ensure!(
        test.logical_volume("node1", &released)
            .await
            .map_or(true, |row| row.is_none())
    );
    test.claim(Claim::new("tenant", &class, "100Mi")).await?;
    test.pod(PodSpec::new("tenant").claim("tenant", false)).await?;
    test.running("tenant").await?;
    tokio::time::sleep(SWEEPS.saturating_sub(begun.elapsed())).await;
    test.ready(&class, 1).await?;
    for (claim, device, file) in &written {
        let same = format!("cmp -n 1048576 {device} {file}");
        shell(&node, &same)
            .await
            .with_context(|| format!("{claim}: what its pod wrote was changed"))?;
    }
    ensure!(
        test.exec("victim", &sum).await? == before,
        "the victim's file was changed"
    );
    let devices = node.run_ok(["dmsetup", "ls"]).await?;
    ensure!(
        !devices.contains("evil"),
        "a group inside of a volume was activated: {devices}"
    );
    // The tenants can go, and their loop devices and volumes go with them.
    for image in &images {
        let volume = test.volume_of(image.claim).await?.name_any();
        test.delete_pod(image.claim).await?;
        test.delete_claim(image.claim).await?;
        test.volume_gone(&volume).await?;
    }
    Ok(())
}

/// Takes away what the case of copies has made.
async fn without_copies(node: &Node) -> Result<()> {
    let script = "dmsetup resume foreign-hang 2>/dev/null; dmsetup remove --retry foreign-hang 2>/dev/null
                  for L in $(losetup -n -O NAME -j /run/copy.img); do losetup -d $L; done
                  rm -f /run/copy.img; true";
    node.run_ok(["sh", "-c", script]).await?;
    Ok(())
}

async fn copies_and_devices_that_hang_stop_nothing(test: &Test) -> Result<()> {
    let node = test.bed.node("node1")?;
    without_copies(&node).await?;
    let result = beside_copies(test, &node).await;
    let restored = without_copies(&node).await;
    result.and(restored)
}

async fn beside_copies(test: &Test, node: &Node) -> Result<()> {
    let disk = test.bed.disk(1, 0)?;
    let class = test
        .class(Class::new(&test.class_name("a"), &[("node1", vec![disk.clone()])]))
        .await?;
    test.ready(&class, 1).await?;
    // A backup of the disk, attached as somebody does who looks for a file in it; and a device that never answers.
    let script = format!(
        "dd if={disk} of=/run/copy.img bs=1M count=32 2>/dev/null; truncate -s 8G /run/copy.img
         losetup -f /run/copy.img
         echo '0 131072 zero' | dmsetup create foreign-hang; dmsetup suspend --noflush foreign-hang"
    );
    shell(node, &script).await?;
    let begun = Instant::now();
    test.claim(Claim::new("data", &class, "100Mi")).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    test.running("user").await?;
    println!(
        "   claim → running beside a copy and a device that hangs: {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    test.delete_pod("user").await?;
    let volume = test.volume_of("data").await?.name_any();
    test.delete_claim("data").await?;
    test.volume_gone(&volume).await?;
    test.ready(&class, 1).await?;
    Ok(())
}

const FOREIGN: usize = 40;

/// How often each foreign device was read, by the kernel's count.
async fn reads(node: &Node) -> Result<String> {
    shell(
        node,
        "for d in /sys/block/dm-*; do n=$(cat $d/dm/name); case $n in foreign-*) set -- $(cat $d/stat); echo $n $1;; esac; done | sort",
    )
    .await
}

async fn lvm_reads_no_device_but_the_disks_of_its_groups(test: &Test) -> Result<()> {
    let node = test.bed.node("node1")?;
    let gone = format!(
        "for i in $(seq {FOREIGN}); do dmsetup remove --retry foreign-$i 2>/dev/null; done
         for L in $(losetup -n -O NAME -j /run/foreign.img); do losetup -d $L; done; rm -f /run/foreign.img"
    );
    node.run_ok(["sh", "-c", &gone]).await?;
    let result = beside_many(test, &node).await;
    node.run_ok(["sh", "-c", &gone]).await?;
    result
}

async fn beside_many(test: &Test, node: &Node) -> Result<()> {
    let class = test
        .class(Class::new(
            &test.class_name("a"),
            &[("node1", vec![test.bed.disk(1, 0)?])],
        ))
        .await?;
    test.ready(&class, 1).await?;
    // Each is a disk as far as LVM can tell.
    let make = format!(
        "rm -f /run/foreign.img; truncate -s 64M /run/foreign.img; L=$(losetup -f --show /run/foreign.img)
         for i in $(seq {FOREIGN}); do echo \"0 131072 linear $L 0\" | dmsetup create foreign-$i; done; udevadm settle"
    );
    shell(node, &make).await?;
    // udev looks at each once.
    let before = test
        .wait("nobody reads the new devices", PATIENCE, || async {
            let now = reads(node).await?;
            tokio::time::sleep(Duration::from_secs(3)).await;
            Ok((reads(node).await? == now).then_some(now))
        })
        .await?;
    ensure!(before.lines().count() == FOREIGN, "{before}");
    test.claim(Claim::new("data", &class, "100Mi")).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    test.running("user").await?;
    let volume = test.volume_of("data").await?.name_any();
    test.delete_pod("user").await?;
    test.delete_claim("data").await?;
    test.volume_gone(&volume).await?;
    let after = reads(node).await?;
    ensure!(after == before, "foreign devices were read:\n{before}\n{after}");
    // The count would have shown it.
    node.run_ok(["pvs", "--config", "devices/use_devicesfile=0"]).await?;
    ensure!(reads(node).await? != before, "the kernel does not count what LVM reads");
    Ok(())
}

async fn a_group_of_another_node_is_held_until_it_is_handed_over(test: &Test) -> Result<()> {
    let node = test.bed.node("node2")?;
    let (disk, group) = (test.bed.disk(2, 0)?, test.class_name("a"));
    let make = format!(
        "vgcreate -q --addtag quarry.version=1 --addtag quarry.node=node1 --addtag quarry.cluster=another {group} {disk}
         lvcreate -q -n pvc-of-another -l 3 {VOLUME_TAGS} --addtag quarry.pvc-uid=of-another {group}"
    );
    shell(&node, &make).await?;
    let class = test.class(Class::new(&group, &[("node2", vec![disk])])).await?;
    let storage = format!("{class}.node2");
    let command = test
        .wait("it is held", PATIENCE, || async {
            let Some(storage) = test.storages().get_opt(&storage).await? else {
                return Ok(None);
            };
            let conditions = storage.status.map(|status| status.conditions).unwrap_or_default();
            let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
            let held = ready.filter(|ready| ready.reason == "OwnedByAnotherNode");
            Ok(held.and_then(|held| Some(held.message.split('"').nth(1)?.to_owned())))
        })
        .await?;
    tokio::time::sleep(SWEEPS).await;
    ensure!(
        test.logical_volume("node2", "pvc-of-another").await?.is_some(),
        "a volume of another node was removed"
    );
    ensure!(command.starts_with("vgchange --deltag"), "{command}");
    let words: Vec<&str> = command.split(' ').collect();
    node.run_ok(words).await?;
    test.ready(&class, 1).await?;
    let rows: Vec<Value> = test.lvm("node2", "vgs", "vg_name,vg_tags").await?;
    let row = rows
        .iter()
        .find(|row| row["vg_name"] == class.as_str())
        .context("gone")?;
    let tags = row["vg_tags"].as_str().unwrap_or_default();
    ensure!(
        tags.contains("quarry.node=node2") && !tags.contains("node1") && !tags.contains("another"),
        "{tags}"
    );
    Ok(())
}
