//! Disks that are somebody's though they carry nothing that is known, disks that a selector chooses, and a disk that has lost its
//! beginning.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use quarry_bed::{Guest, Node};
use quarry_crds::node_local_storage::phase;
use serde_json::json;

use crate::case;
use crate::fixtures;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};
use crate::untouched::forget_events;

/// The cases.
pub const CASES: &[Case] = &[
    case!(a_disk_that_somebody_has_open_is_refused),
    case!(a_disk_that_a_selector_chooses_is_left_alone_for_a_while),
    case!(volumes_come_back_after_their_disk_has_lost_its_beginning),
];

/// The file by which udev names a model, and the model.
const RULE: &str = "/etc/udev/rules.d/99-selected.rules";
const MODEL: &str = "Selected Disk";

/// The reason that is published for a disk of a class on node1.
async fn reason(test: &Test, class: &str, path: &str) -> Result<Option<(String, String)>> {
    let Some(storage) = test.storages().get_opt(&format!("{class}.node1")).await? else {
        return Ok(None);
    };
    let disks = storage.status.map(|status| status.disks).unwrap_or_default();
    let disk = disks.into_iter().find(|disk| disk.path == path);
    Ok(disk.map(|disk| (disk.phase, disk.reason.unwrap_or_default())))
}

/// Waits until a disk is refused for that.
async fn refused(test: &Test, class: &str, path: &str, part: &str) -> Result<()> {
    test.wait(&format!("refused: {part}"), PATIENCE, || async {
        let told = reason(test, class, path).await?;
        Ok(told
            .filter(|(phase, reason)| phase == phase::REJECTED && reason.contains(part))
            .map(drop))
    })
    .await
}

async fn a_disk_that_somebody_has_open_is_refused(test: &Test) -> Result<()> {
    let node = test.bed.node("node1")?;
    let disk = test.bed.disk(1, 0)?;
    let over = format!("losetup -f {disk}");
    let open = format!("exec setsid sleep 100000 3<>{disk} </dev/null >/dev/null 2>&1 &");
    let users = [
        (
            "loop",
            over,
            "loop device /dev/loop",
            format!("for L in $(losetup -n -O NAME -j {disk}); do losetup -d $L; done"),
        ),
        ("program", open, "(sleep)", "pkill -f 'sleep 10000[0]'; true".to_owned()),
    ];
    for (what, begin, told, end) in users {
        node.run_ok(["sh", "-c", &begin]).await?;
        let class = test
            .class(Class::new(&test.class_name(what), &[("node1", vec![disk.clone()])]))
            .await?;
        let result = refused(test, &class, &disk, told).await;
        let groups = test.lvm("node1", "vgs", "vg_name").await;
        node.run_ok(["sh", "-c", &end]).await?;
        result?;
        ensure!(groups?.is_empty(), "{what}: it was taken");
        // It is free, and looked at again soon, at the latest at the regular check.
        test.wait("it is taken", PATIENCE, || async {
            let storages = test.storages_of(&class).await?;
            Ok(storages
                .iter()
                .any(quarry_crds::NodeLocalStorage::is_ready)
                .then_some(()))
        })
        .await?;
        test.clean().await?;
    }
    Ok(())
}

async fn a_disk_that_a_selector_chooses_is_left_alone_for_a_while(test: &Test) -> Result<()> {
    let node = test.bed.node("node1")?;
    forget_events(test).await?;
    node.unplug_guests().await?;
    let result = selected(test, &node).await;
    let cleaned = test.clean().await;
    node.run(["rm", "-f", RULE]).await?;
    node.run(["udevadm", "control", "--reload"]).await?;
    let restored = node.unplug_guests().await;
    result.and(cleaned).and(restored.map_err(Into::into))
}

async fn selected(test: &Test, node: &Node) -> Result<()> {
    let rule = concat!(
        "SUBSYSTEM==\"block\", ENV{ID_SERIAL_SHORT}==\"selected-*\", ",
        "ENV{ID_MODEL}=\"Selected_Disk\", ENV{ID_MODEL_ENC}=\"Selected\\x20Disk\"\n"
    );
    node.run_with(["tee", RULE], Some(rule.to_owned())).await?;
    node.run_ok(["udevadm", "control", "--reload"]).await?;
    let name = test.class_name("a");
    let mut class = Class::new(&name, &[]);
    class.0["parameters"]["nodes"] = json!(json!([{"names": ["node1"], "disks": [{"model": MODEL}]}]).to_string());
    let class = test.class(class).await?;
    let folder = fixtures::folder()?;
    let guests = ["selected-idle", "selected-used"].map(|serial| (serial, fixtures::blank(&folder, serial, 256 << 20)));
    let mut plugged = Vec::new();
    for (serial, file) in guests {
        plugged.push(Guest::new(&file?, serial));
    }
    node.plug_disks(&plugged).await?;
    let begun = Instant::now();
    let [idle, used] = [&plugged[0].disk.id, &plugged[1].disk.id];
    for disk in [idle, used] {
        test.wait("it waits", PATIENCE, || async {
            let told = reason(test, &class, disk).await?;
            Ok(told
                .filter(|(phase, reason)| phase == phase::BLANK && reason.contains("chosen by a selector"))
                .map(drop))
        })
        .await?;
    }
    // Whoever attached it comes to use it.
    node.run_ok(["mkfs.ext4", "-q", "-F", used]).await?;
    refused(test, &class, used, "ext4").await?;
    test.wait("the idle one is taken", PATIENCE, || async {
        let told = reason(test, &class, idle).await?;
        Ok(told.filter(|(phase, _)| phase == phase::CLAIMED).map(drop))
    })
    .await?;
    println!("   attached → taken: {:.0} s", begun.elapsed().as_secs_f64());
    ensure!(begun.elapsed() >= Duration::from_secs(60), "it was taken too soon");
    Ok(())
}

/// The commands are those of docs/restore.md.
async fn volumes_come_back_after_their_disk_has_lost_its_beginning(test: &Test) -> Result<()> {
    let disk = test.bed.disk(1, 0)?;
    let class = test
        .class(Class::new(&test.class_name("a"), &[("node1", vec![disk.clone()])]))
        .await?;
    test.ready(&class, 1).await?;
    test.claim(Claim::new("data", &class, "200Mi")).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    test.running("user").await?;
    test.exec("user", &["sh", "-c", "yes kept | head -c 50000000 > /data/file; sync"])
        .await?;
    let sum = ["sh", "-c", "sha256sum < /data/file"];
    let before = test.exec("user", &sum).await?;
    test.delete_pod("user").await?;
    let volume = test.volume_of("data").await?.name_any();
    let node = test.bed.node("node1")?;
    test.wait("it is closed", PATIENCE, || async {
        let device = format!("/dev/{class}/{volume}");
        let open = node
            .run_ok(["dmsetup", "info", "-c", "--noheadings", "-o", "open", &device])
            .await?;
        Ok((open.trim() == "0").then_some(()))
    })
    .await?;
    let zero = [
        "dd",
        "if=/dev/zero",
        &format!("of={disk}"),
        "bs=1M",
        "count=17",
        "oflag=direct",
        "conv=notrunc",
    ];
    node.run_ok(zero).await?;
    let lost = |storage: quarry_crds::NodeLocalStorage| {
        let conditions = storage.status.map(|status| status.conditions).unwrap_or_default();
        let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
        ready.is_some_and(|ready| ready.reason == "VolumeGroupMissing")
    };
    let storage = format!("{class}.node1");
    test.wait("it is told", PATIENCE, || async {
        Ok(lost(test.storages().get(&storage).await?).then_some(()))
    })
    .await?;
    // Nothing is made in its place, and the volume's own object stays.
    ensure!(test.volumes().get_opt(&volume).await?.is_some());
    let backup = format!("/var/lib/quarry/backup/{class}");
    let uuid = node
        .run_ok([
            "sed",
            "-n",
            "/physical_volumes {/,/device = /s/.*id = \"\\(.*\\)\"/\\1/p",
            &backup,
        ])
        .await?;
    let uuid = uuid.trim();
    let devices = format!(
        "for volume in $(dmsetup info -c --noheadings -o name -S 'vg_name=\"{class}\"'); do dmsetup remove \"$volume\"; done"
    );
    node.run_ok(["sh", "-e", "-c", &devices])
        .await
        .context("dmsetup remove")?;
    node.run_ok(["pvcreate", "--uuid", uuid, "--restorefile", &backup, &disk])
        .await
        .context("pvcreate")?;
    node.run_ok(["vgcfgrestore", "-f", &backup, &class])
        .await
        .context("vgcfgrestore")?;
    test.ready(&class, 1).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    test.running("user").await?;
    ensure!(test.exec("user", &sum).await? == before, "not what was written");
    // And it is served as before.
    test.claim(Claim::new("more", &class, "100Mi").selected("node1"))
        .await?;
    test.bound("more").await?;
    Ok(())
}
