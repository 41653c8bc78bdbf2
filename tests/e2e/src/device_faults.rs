//! Disks of a volume group that vanish, return, are exchanged, or answer with errors: which volumes are hit is said, nothing
//! is made anew, and the volumes on other disks go on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use quarry_bed::{Guest, Node};
use quarry_crds::node_local_storage::{NodeLocalStorageStatus, condition, phase};
use serde_json::json;

use crate::case;
use crate::fixtures;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};
use crate::untouched::{checksum_of, forget_events};

/// The cases.
pub const CASES: &[Case] = &[
    case!(a_disk_vanishes_and_returns),
    case!(a_disk_answers_with_errors),
    case!(a_disk_is_exchanged),
    case!(two_groups_of_one_name),
];

const MIB: u64 = 1 << 20;
/// A name that leads to whatever is in a slot, as those in by-path do.
const SLOT: &str = "/dev/disk/by-path/device-fault-slot";
/// A device over a disk, whose table decides how it answers.
const FAULTY: &str = "device-fault";

/// Runs a case with everything that it attached taken away at the end.
pub(crate) async fn with_guests(test: &Test, body: impl AsyncFnOnce(&Test) -> Result<()>) -> Result<()> {
    forget_events(test).await?;
    restore(test).await?;
    let result = body(test).await;
    if result.is_err() && std::env::var_os("QUARRY_KEEP").is_some() {
        return result;
    }
    let told = match &result {
        Ok(()) => String::new(),
        Err(_) => test.tell().await,
    };
    let cleaned = test.clean().await;
    let restored = restore(test).await.context("taking the disks away again");
    result.context(told).and(cleaned).and(restored)
}

async fn restore(test: &Test) -> Result<()> {
    for name in ["node1", "node2"] {
        let node = test.bed.node(name)?;
        node.run(["dmsetup", "remove", FAULTY]).await?;
        node.run_ok(["rm", "-f", SLOT]).await?;
        node.unplug_guests().await?;
    }
    Ok(())
}

/// Waits until the status of a class on node1 is as wanted.
pub(crate) async fn status(
    test: &Test,
    class: &str,
    what: &str,
    wanted: impl Fn(&NodeLocalStorageStatus) -> bool,
) -> Result<NodeLocalStorageStatus> {
    let name = format!("{class}.node1");
    let found = test.wait(what, PATIENCE, || async {
        let status = test.storages().get(&name).await?.status.unwrap_or_default();
        Ok(wanted(&status).then_some(status))
    });
    match found.await {
        Ok(status) => Ok(status),
        Err(error) => Err(error.context(format!("{:#?}", test.storages().get(&name).await?.status))),
    }
}

/// Reason and message of a condition, where it is as asked.
fn told(status: &NodeLocalStorageStatus, kind: &str, is: &str) -> Option<String> {
    let found = status.conditions.iter().find(|c| c.type_ == kind && c.status == is)?;
    Some(format!("{}: {}", found.reason, found.message))
}

pub(crate) fn is_told(status: &NodeLocalStorageStatus, kind: &str, is: &str, parts: &[&str]) -> bool {
    told(status, kind, is).is_some_and(|text| parts.iter().all(|part| text.contains(part)))
}

fn phases(status: &NodeLocalStorageStatus) -> Vec<&str> {
    status.disks.iter().map(|disk| disk.phase.as_str()).collect()
}

/// A claim and a pod on node1 that wrote something; the name of the volume.
pub(crate) async fn serve(test: &Test, class: &str, name: &str, size: &str) -> Result<String> {
    test.claim(Claim::new(name, class, size)).await?;
    test.pod(PodSpec::new(name).claim(name, false).on("node1")).await?;
    test.running(name).await?;
    let write = format!("echo {name} > /{name}/file && sync");
    test.exec(name, &["sh", "-c", &write]).await?;
    Ok(test.volume_of(name).await?.name_any())
}

async fn reads(test: &Test, name: &str) -> Result<()> {
    let read = test.exec(name, &["cat", &format!("/{name}/file")]).await?;
    ensure!(read == format!("{name}\n"), "{name}: {read:?}");
    Ok(())
}

/// Said of the volume and of its claim.
pub(crate) async fn said_of_both(test: &Test, volume: &str, claim: &str, parts: &[&str]) -> Result<()> {
    println!("   {volume}: {}", test.said("PersistentVolume", volume, parts).await?);
    test.said("PersistentVolumeClaim", claim, parts).await.map(drop)
}

async fn said_nothing(test: &Test, volume: &str, reason: &str) -> Result<()> {
    let said = test.said_of("PersistentVolume", volume).await?;
    ensure!(!said.iter().any(|(of, _)| of == reason), "{said:?}");
    Ok(())
}

/// A figure of the manager of node1.
pub(crate) async fn metric(test: &Test, line: &str) -> Result<Option<String>> {
    let pod = test.pod_of_ours("quarry-manager", "node1").await?;
    let address = pod
        .status
        .and_then(|status| status.pod_ip)
        .context("the manager has no address")?;
    let url = format!("http://{address}:9897/metrics");
    let node = test.bed.node("node1")?;
    let text = node.run_ok(["busybox", "wget", "-q", "-O", "-", &url]).await?;
    let value = text.lines().find_map(|found| found.strip_prefix(line));
    Ok(value.map(|value| value.trim().to_owned()))
}

/// A group of two disks, and a volume on each: one disk is taken away while pods run, and given back.
async fn a_disk_vanishes_and_returns(test: &Test) -> Result<()> {
    with_guests(test, vanish).await
}

async fn vanish(test: &Test) -> Result<()> {
    let node = test.bed.node("node1")?;
    let disks = vec![test.bed.disk(1, 0)?, test.bed.disk(1, 1)?];
    let class = test
        .class(Class::new(&test.class_name("a"), &[("node1", disks.clone())]))
        .await?;
    test.ready(&class, 1).await?;
    // The best disk for a volume is the smallest on which it fits: 4 and 6 GiB.
    let kept = serve(test, &class, "kept", "5Gi").await?;
    let hit = serve(test, &class, "hit", "2Gi").await?;
    let groups = test.lvm("node1", "vgs", "vg_name,vg_uuid").await?;
    let taken = Instant::now();
    node.take_disk(&disks[0]).await?;
    let result = while_gone(test, &class, [&kept, &hit], &disks[0], taken).await;
    let returned = Instant::now();
    node.return_disk(&disks[0]).await?;
    result?;
    status(test, &class, "whole again", |status| {
        phases(status) == [phase::CLAIMED; 2]
            && is_told(status, condition::DEGRADED, "False", &[])
            && is_told(status, condition::READY, "True", &[])
    })
    .await?;
    println!("   given back → Ready: {:.1} s", returned.elapsed().as_secs_f64());
    said_of_both(test, &hit, "hit", &["DiskBack", "delete the pod"]).await?;
    ensure!(
        test.lvm("node1", "vgs", "vg_name,vg_uuid").await? == groups,
        "nothing was made anew"
    );
    // The pod that saw errors is made anew, and has its data.
    test.delete_pod("hit").await?;
    test.pod(PodSpec::new("again").claim("hit", false).on("node1")).await?;
    test.running("again").await?;
    ensure!(test.exec("again", &["cat", "/hit/file"]).await? == "hit\n");
    reads(test, "kept").await
}

async fn while_gone(test: &Test, class: &str, [kept, hit]: [&str; 2], disk: &str, taken: Instant) -> Result<()> {
    let parts = ["DiskMissing", disk, "serial node1-disk1", "1 of 2 volumes hit", hit];
    let gone = status(test, class, "the disk is missed", |status| {
        is_told(status, condition::DEGRADED, "True", &parts)
    })
    .await?;
    println!("   taken → told: {:.1} s", taken.elapsed().as_secs_f64());
    println!("   {}", told(&gone, condition::DEGRADED, "True").unwrap_or_default());
    ensure!(phases(&gone) == [phase::MISSING, phase::CLAIMED], "{gone:#?}");
    let largest = gone.volume_group.as_ref().map(|group| group.largest.as_str());
    ensure!(
        largest == Some("0"),
        "no room is offered in a group that LVM does not change: {gone:#?}"
    );
    said_of_both(test, hit, "hit", &["DiskMissing", disk, hit]).await?;
    said_nothing(test, kept, "DiskMissing").await?;
    let figure = metric(test, &format!("quarry_volumes_hit{{vg=\"{class}\"}}")).await?;
    ensure!(figure.as_deref() == Some("1"), "{figure:?}");
    test.exec("kept", &["sh", "-c", "echo kept > /kept/file && sync"])
        .await?;
    reads(test, "kept").await
}

/// Sectors by which the device is shifted: LVM would find its label on the disk below as well, and change nothing.
const OFFSET: u64 = 2048;

/// The kernel's table of the device over a disk: all of it answers, or fails from an offset on.
fn table(disk: &str, sectors: u64, good: u64) -> String {
    let line = |start: u64, length: u64, target: String| format!("{start} {length} {target}\n");
    match sectors - good {
        0 => line(0, sectors, format!("linear {disk} {OFFSET}")),
        bad if good == 0 => line(0, bad, "error".to_owned()),
        bad => line(0, good, format!("linear {disk} {OFFSET}")) + &line(good, bad, "error".to_owned()),
    }
}

async fn set_table(node: &Node, table: String) -> Result<()> {
    let table = table.trim_end().to_owned() + "\n";
    let loaded = node.run_with(["dmsetup", "load", FAULTY], Some(table)).await?;
    ensure!(loaded.success(), "{}", loaded.stderr);
    node.run_ok(["dmsetup", "suspend", "--noflush", "--nolockfs", FAULTY])
        .await?;
    node.run_ok(["dmsetup", "resume", FAULTY]).await?;
    Ok(())
}

/// A disk whose end fails, and then all of it, and then nothing any more; and one that is slow, and one that fails now and
/// then.
async fn a_disk_answers_with_errors(test: &Test) -> Result<()> {
    with_guests(test, answer_with_errors).await
}

async fn answer_with_errors(test: &Test) -> Result<()> {
    let node = test.bed.node("node1")?;
    let folder = fixtures::folder()?;
    let under = Guest::new(&fixtures::blank(&folder, "faulty", 1024 * MIB)?, "faulty");
    node.plug_disks(std::slice::from_ref(&under)).await?;
    let disk = node.run_ok(["readlink", "-e", &under.disk.id]).await?.trim().to_owned();
    let sectors = 1024 * MIB / 512 - OFFSET;
    let good = table(&disk, sectors, sectors);
    node.run_ok(["dmsetup", "create", FAULTY, "--table", good.trim_end()])
        .await?;
    node.run_ok(["udevadm", "settle"]).await?;
    let path = format!("/dev/mapper/{FAULTY}");
    let listed = vec![path.clone(), test.bed.disk(1, 1)?];
    let class = test
        .class(Class::new(&test.class_name("a"), &[("node1", listed)]))
        .await?;
    test.ready(&class, 1).await?;
    let hit = serve(test, &class, "hit", "500Mi").await?;
    let kept = serve(test, &class, "kept", "2Gi").await?;

    // The last block fails, where no volume lies yet.
    let begun = Instant::now();
    set_table(&node, table(&disk, sectors, sectors - 64)).await?;
    let parts = [
        "DiskFailing",
        path.as_str(),
        "Input/output error",
        "1 of 2 volumes hit",
        hit.as_str(),
    ];
    let failing = status(test, &class, "the errors are seen", |status| {
        is_told(status, condition::DEGRADED, "True", &parts) && phases(status)[0] == phase::FAILING
    })
    .await?;
    println!("   end fails → told: {:.1} s", begun.elapsed().as_secs_f64());
    println!("   {}", told(&failing, condition::DEGRADED, "True").unwrap_or_default());
    said_of_both(test, &hit, "hit", &["DiskFailing", &path, "Input/output error"]).await?;
    said_nothing(test, &kept, "DiskFailing").await?;
    // New volumes are made on the other disk, also where this one would be the best.
    let new = serve(test, &class, "new", "100Mi").await?;
    let rows = test.lvm("node1", "lvs", "lv_name,devices").await?;
    let on = |name: &str| {
        rows.iter()
            .find(|row| row["lv_name"] == name)
            .map(|row| row["devices"].to_string())
    };
    ensure!(on(&hit).is_some_and(|devices| devices.contains(FAULTY)), "{rows:?}");
    ensure!(on(&new).is_some_and(|devices| !devices.contains(FAULTY)), "{rows:?}");

    // All of it fails: LVM misses it.
    set_table(&node, table(&disk, sectors, 0)).await?;
    let parts = ["DiskMissing", "1 of 3 volumes hit", hit.as_str()];
    let missing = status(test, &class, "the disk is missed", |status| {
        is_told(status, condition::DEGRADED, "True", &parts)
    })
    .await?;
    println!("   {}", told(&missing, condition::DEGRADED, "True").unwrap_or_default());
    println!("   {:?}", missing.disks[0]);
    said_of_both(test, &hit, "hit", &["DiskMissing", &hit]).await?;
    reads(test, "kept").await?;
    reads(test, "new").await?;

    // It is repaired: everything is as it was.
    set_table(&node, good.clone()).await?;
    let whole = |status: &NodeLocalStorageStatus| {
        is_told(status, condition::DEGRADED, "False", &[]) && is_told(status, condition::READY, "True", &[])
    };
    status(test, &class, "whole again", whole).await?;
    said_of_both(test, &hit, "hit", &["DiskBack"]).await?;

    // One that is slow is not at fault.
    if node.run(["modprobe", "-q", "dm-delay"]).await?.success() {
        set_table(&node, format!("0 {sectors} delay {disk} {OFFSET} 300")).await?;
        tokio::time::sleep(Duration::from_secs(30)).await;
        status(test, &class, "it goes on", whole).await?;
        test.exec("kept", &["sh", "-c", "echo kept > /kept/file && sync"])
            .await?;
    } else {
        println!("   the kernel has no dm-delay");
    }
    // One that fails for 35 s of each 40 s is told of.
    set_table(&node, format!("0 {sectors} flakey {disk} {OFFSET} 5 35")).await?;
    let faulty = ["DiskFailing", "DiskMissing"];
    status(test, &class, "the fault is told of", |status| {
        told(status, condition::DEGRADED, "True").is_some_and(|text| faulty.iter().any(|part| text.starts_with(part)))
    })
    .await?;
    set_table(&node, good).await?;
    status(test, &class, "whole in the end", whole).await?;
    reads(test, "kept").await?;
    ensure!(
        test.lvm("node1", "lvs", "lv_name").await?.len() == 3,
        "nothing was made anew or removed"
    );
    // The disks may be taken away only when nothing is on them.
    for name in ["hit", "kept", "new"] {
        test.delete_pod(name).await?;
    }
    Ok(())
}

/// In the slot of a disk there is another one: first one with data of somebody else, then a blank one. Neither is touched,
/// and when the right one is back, so is the group.
async fn a_disk_is_exchanged(test: &Test) -> Result<()> {
    with_guests(test, exchange).await
}

/// Makes the slot lead to a disk.
async fn put(node: &Node, guest: &Guest) -> Result<()> {
    node.plug_disks(std::slice::from_ref(guest)).await?;
    let device = node.run_ok(["readlink", "-e", &guest.disk.id]).await?;
    node.run_ok(["mkdir", "-p", "/dev/disk/by-path"]).await?;
    node.run_ok(["ln", "-sfn", device.trim(), SLOT]).await?;
    node.run_ok(["udevadm", "trigger", "--settle", device.trim()]).await?;
    Ok(())
}

async fn exchange(test: &Test) -> Result<()> {
    let node = test.bed.node("node1")?;
    let folder = fixtures::folder()?;
    let right = Guest::new(&fixtures::blank(&folder, "right", 512 * MIB)?, "right");
    let foreign = Guest::new(&fixtures::named("ext4")?.create_as(&folder, "foreign")?, "foreign");
    let blank = Guest::new(&fixtures::blank(&folder, "blank", 512 * MIB)?, "blank");
    put(&node, &right).await?;
    let listed = vec![SLOT.to_owned()];
    let class = test
        .class(Class::new(&test.class_name("a"), &[("node1", listed)]))
        .await?;
    test.ready(&class, 1).await?;
    let volume = serve(test, &class, "data", "100Mi").await?;
    test.delete_pod("data").await?;
    let groups = test.lvm("node1", "vgs", "vg_name,vg_uuid").await?;
    let close = || async {
        test.wait("the volume is closed", PATIENCE, || async {
            let closed = node.run(["vgchange", "-an", &class]).await?;
            Ok(closed.success().then_some(()))
        })
        .await?;
        node.unplug_guests().await?;
        anyhow::Ok(())
    };
    close().await?;
    for (guest, words) in [(&foreign, "ext4"), (&blank, "a blank disk is where physical volume")] {
        let before = checksum_of(&guest.disk.file)?;
        put(&node, guest).await?;
        let held = status(test, &class, words, |status| {
            let disk = status.disks.first();
            disk.is_some_and(|disk| {
                disk.phase == phase::REJECTED && disk.reason.as_deref().is_some_and(|reason| reason.contains(words))
            }) && is_told(status, condition::READY, "False", &["VolumeGroupMissing"])
        })
        .await?;
        println!("   {}", held.disks[0].reason.clone().unwrap_or_default());
        // Further looks come to the same result.
        tokio::time::sleep(Duration::from_secs(3)).await;
        node.run_ok(["udevadm", "trigger", "--subsystem-match=block", "--settle"])
            .await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        node.run_ok(["sync"]).await?;
        ensure!(
            checksum_of(&guest.disk.file)? == before,
            "{} was changed",
            guest.disk.serial
        );
        ensure!(
            test.lvm("node1", "vgs", "vg_name").await?.is_empty(),
            "nothing is made anew"
        );
        node.unplug_guests().await?;
    }
    said_of_both(test, &volume, "data", &["VolumeLost", &volume, "VolumeGroupMissing"]).await?;
    put(&node, &right).await?;
    test.ready(&class, 1).await?;
    ensure!(
        test.lvm("node1", "vgs", "vg_name,vg_uuid").await? == groups,
        "the group is the one that was"
    );
    test.pod(PodSpec::new("again").claim("data", false).on("node1")).await?;
    test.running("again").await?;
    ensure!(test.exec("again", &["cat", "/data/file"]).await? == "data\n");
    test.delete_pod("again").await
}

/// A disk with a group of the same name is put into the node: neither group is changed, volumes go on, and when one of the
/// two is renamed, all is well.
async fn two_groups_of_one_name(test: &Test) -> Result<()> {
    with_guests(test, two_of_one_name).await
}

async fn two_of_one_name(test: &Test) -> Result<()> {
    let (node, other) = (test.bed.node("node1")?, test.bed.node("node2")?);
    let class = test.class_name("a");
    // Made on another machine, as a disk that was moved is.
    let moved = Guest::new(&fixtures::blank(&fixtures::folder()?, "moved", 256 * MIB)?, "moved");
    other.plug_disks(std::slice::from_ref(&moved)).await?;
    other.run_ok(["vgcreate", &class, &moved.disk.id]).await?;
    let foreign = other
        .run_ok(["vgs", "--noheadings", "-o", "vg_uuid", &class])
        .await?
        .trim()
        .to_owned();
    other.unplug_guests().await?;
    let listed = vec![test.bed.disk(1, 0)?];
    test.class(Class::new(&class, &[("node1", listed)])).await?;
    test.ready(&class, 1).await?;
    serve(test, &class, "data", "500Mi").await?;
    let before = checksum_of(&moved.disk.file)?;
    node.plug_disks(std::slice::from_ref(&moved)).await?;
    // It is not listed, and so not looked at: claims are served as before.
    serve(test, &class, "more", "500Mi").await?;
    reads(test, "data").await?;
    let patch = json!({
        "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage", "metadata": {"name": format!("{class}.node1")},
        "spec": {"disks": [{"path": moved.disk.id}]},
    });
    let storage = format!("{class}.node1");
    test.storages()
        .patch(&storage, &PatchParams::apply("administrator"), &Patch::Apply(patch))
        .await?;
    let held = status(test, &class, "both are seen", |status| {
        is_told(
            status,
            condition::READY,
            "False",
            &["DuplicateVolumeGroupName", "2 volume groups", "vgrename"],
        )
    })
    .await?;
    println!("   {}", told(&held, condition::READY, "False").unwrap_or_default());
    reads(test, "data").await?;
    test.exec("data", &["sh", "-c", "echo data > /data/file && sync"])
        .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    node.run_ok(["sync"]).await?;
    ensure!(
        checksum_of(&moved.disk.file)? == before,
        "the disk that was moved was changed"
    );
    node.run_ok(["vgrename", &foreign, "device-fault-renamed"]).await?;
    test.ready(&class, 1).await?;
    let rows = test.lvm("node1", "vgs", "vg_name").await?;
    ensure!(rows.len() == 2, "{rows:?}");
    Ok(())
}
