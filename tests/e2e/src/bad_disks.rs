//! Disks that may not be taken: each is refused with the reason and the remedy, and nothing on any of them changes.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use quarry_bed::Node;
use quarry_crds::node_local_storage::{condition, phase};

use crate::bed::folder;
use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};
use crate::untouched::{Held, forget_events};

/// The cases.
pub const CASES: &[Case] = &[case!(bad_disks_are_left_alone), case!(bad_lists_take_a_disk_once)];

/// Where the mounted disk is mounted in its node.
const MOUNTED_AT: &str = "/run/bad-disk";
/// The file of a loop device that is too small, and a lasting name of that device.
const SMALL_FILE: &str = "/run/bad-disk-small";
const SMALL: &str = "/dev/disk/by-id/bad-disk-small";
/// A second name of a disk.
const SECOND_NAME: &str = "/dev/disk/by-id/bad-disk-second-name";
/// A disk that is not there.
const ABSENT: &str = "/dev/disk/by-id/bad-disk-absent";
/// A volume group that an administrator made, with a volume, and one whose name a class takes.
const BY_HAND: &str = "bad-disk-by-hand";
const NAME_TAKEN: &str = "bad-disk-name-taken";

/// A disk that may not be taken, and what must be said of it.
struct Unfit {
    what: &'static str,
    node: &'static str,
    path: String,
    phase: &'static str,
    told: Vec<String>,
}

impl Unfit {
    fn new(what: &'static str, node: &'static str, path: impl Into<String>, told: &[&str]) -> Self {
        let told = told.iter().map(|part| (*part).to_owned()).collect();
        Self {
            what,
            node,
            path: path.into(),
            phase: phase::REJECTED,
            told,
        }
    }

    fn missing(self) -> Self {
        Self {
            phase: phase::MISSING,
            ..self
        }
    }

    /// Makes sure that the disk is refused in the status of its NodeLocalStorage and in an event of its class.
    async fn is_refused(&self, test: &Test, class: &str) -> Result<()> {
        let name = format!("{class}.{}", self.node);
        let disk_of = |storage: quarry_crds::NodeLocalStorage| {
            let disks = storage.status.unwrap_or_default().disks;
            disks.into_iter().find(|disk| disk.path == self.path)
        };
        let wanted = format!("{name} refuses {}", self.path);
        let refused = test.wait(&wanted, Duration::from_secs(60), || async {
            let disk = test.storages().get_opt(&name).await?.and_then(disk_of);
            Ok(disk.filter(|disk| {
                let reason = disk.reason.as_deref().unwrap_or_default();
                disk.phase == self.phase && self.told.iter().all(|part| reason.contains(part))
            }))
        });
        let refused = match refused.await {
            Ok(disk) => disk,
            Err(error) => {
                let status = test.storages().get_opt(&name).await?.and_then(|storage| storage.status);
                let disks = status.unwrap_or_default().disks;
                return Err(anyhow!(
                    "{error}; wanted was {} with {:?}, and there is {disks:?}",
                    self.phase,
                    self.told
                ));
            }
        };
        println!("   {}: {}", self.what, refused.reason.unwrap_or_default());
        let event = if self.phase == phase::MISSING {
            "DiskMissing"
        } else {
            "DiskRejected"
        };
        let place = format!("node {}: disk {}", self.node, self.path);
        let mut parts = vec![event, place.as_str()];
        parts.extend(self.told.iter().map(String::as_str));
        test.said("StorageClass", class, &parts).await?;
        Ok(())
    }
}

/// One class for each unfit disk: none gets a volume group, and every disk is as it was.
async fn bad_disks_are_left_alone(test: &Test) -> Result<()> {
    forget_events(test).await?;
    restore(test).await?;
    let result = leave_alone(test).await;
    let restored = restore(test).await.context("making the disks usable again");
    result.and(restored)
}

async fn leave_alone(test: &Test) -> Result<()> {
    let unfit = spoil(test).await?;
    let before = Held::by_nodes(test).await?;
    let mut classes = Vec::new();
    for one in &unfit {
        let name = test.class_name(one.what);
        classes.push(
            test.class(Class::new(&name, &[(one.node, vec![one.path.clone()])]))
                .await?,
        );
    }
    // A blank disk, for a group whose name an administrator has given to another.
    let taken = Class::new(&test.class_name("taken"), &[("node3", vec![test.bed.disk(3, 1)?])]);
    let taken = test.class(taken.parameter("volumeGroup", NAME_TAKEN)).await?;
    let mut wrong = Vec::new();
    for (one, class) in unfit.iter().zip(&classes) {
        if let Err(error) = one.is_refused(test, class).await {
            wrong.push(format!("{}: {error:#}", one.what));
        } else {
            let told = ["NoDisk", "no listed disk is fit", "status.disks"];
            not_ready(test, class, one.node, &told).await?;
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    not_ready(
        test,
        &taken,
        "node3",
        &[
            "ForeignVolumeGroup",
            NAME_TAKEN,
            "parameter volumeGroup",
            "vgchange --addtag",
        ],
    )
    .await?;
    test.claim(Claim::new("data", &classes[0], "1Gi")).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    println!(
        "   the pod: {}",
        test.said("Pod", "user", &["FailedScheduling", &classes[0]]).await?
    );
    // Looks once more at everything, as after any change of a disk.
    for node in test.bed.cluster.nodes() {
        node.run_ok(["udevadm", "trigger", "--subsystem-match=block", "--settle"])
            .await?;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    Held::is_still(test, &before).await?;
    let keep = test
        .bed
        .node("node1")?
        .run_ok(["cat", &format!("{MOUNTED_AT}/file")])
        .await?;
    ensure!(keep == "kept", "{keep:?}");
    Ok(())
}

/// Makes disks of all nodes unfit, each in its own way.
async fn spoil(test: &Test) -> Result<Vec<Unfit>> {
    let (node1, node2, node3) = (
        test.bed.node("node1")?,
        test.bed.node("node2")?,
        test.bed.node("node3")?,
    );
    let disk = |node, disk| test.bed.disk(node, disk);
    for at in [0, 1] {
        // All of it is written at once, so that nothing is written later.
        let whole = "lazy_itable_init=0,lazy_journal_init=0";
        node1
            .run_ok([
                "mkfs.ext4",
                "-q",
                "-F",
                "-E",
                whole,
                "-b",
                "4096",
                &disk(1, at)?,
                "25600",
            ])
            .await?;
    }
    node1.run_ok(["mkdir", "-p", MOUNTED_AT]).await?;
    node1
        .run_ok(["mount", "-o", "noatime", &disk(1, 1)?, MOUNTED_AT])
        .await?;
    node1
        .run_with(["tee", &format!("{MOUNTED_AT}/file")], Some("kept".to_owned()))
        .await?;
    partition(&node1, &disk(1, 2)?).await?;
    node1.run_ok(["truncate", "-s", "1M", SMALL_FILE]).await?;
    let small = node1.run_ok(["losetup", "--find", "--show", SMALL_FILE]).await?;
    node1.run_ok(["ln", "-s", small.trim(), SMALL]).await?;
    node2.run_ok(["pvcreate", &disk(2, 0)?]).await?;
    node2.run_ok(["vgcreate", BY_HAND, &disk(2, 1)?]).await?;
    node2
        .run_ok(["lvcreate", "-y", "-n", "keep", "-L", "64M", BY_HAND])
        .await?;
    node2.run_ok(["blockdev", "--setro", &disk(2, 2)?]).await?;
    node3.run_ok(["mkswap", &disk(3, 0)?]).await?;
    node3.run_ok(["vgcreate", NAME_TAKEN, &disk(3, 2)?]).await?;
    Ok(vec![
        Unfit::new(
            "file-system",
            "node1",
            disk(1, 0)?,
            &["ext4", "never overwrites", "wipefs -a"],
        ),
        Unfit::new(
            "mounted",
            "node1",
            disk(1, 1)?,
            &[&format!("mounted at {MOUNTED_AT}"), "unmount it"],
        ),
        Unfit::new(
            "partitioned",
            "node1",
            disk(1, 2)?,
            &["has the partition /dev/", "by-partuuid", "delete the partitions"],
        ),
        Unfit::new(
            "too-small",
            "node1",
            SMALL,
            &["too small", "1048576 bytes", "25Mi", "larger disk"],
        ),
        Unfit::new(
            "absent",
            "node3",
            ABSENT,
            &["no such device", "attach the disk", "/dev/disk/by-id"],
        )
        .missing(),
        Unfit::new("no-disk", "node3", "/dev/null", &["not a block device", "lsblk"]),
        Unfit::new(
            "foreign-pv",
            "node2",
            disk(2, 0)?,
            &["LVM label", "no volume group", "pvremove"],
        ),
        Unfit::new(
            "other-group",
            "node2",
            disk(2, 1)?,
            &["belongs to volume group", BY_HAND, "list another disk"],
        ),
        Unfit::new(
            "volume",
            "node2",
            format!("/dev/{BY_HAND}/keep"),
            &["is a logical volume", "the disk or partition itself"],
        ),
        Unfit::new("read-only", "node2", disk(2, 2)?, &["read-only", "blockdev --getro"]),
        Unfit::new("swap", "node3", disk(3, 0)?, &["swap", "wipefs -a"]),
    ])
}

/// Writes a partition table with one partition.
async fn partition(node: &Node, disk: &str) -> Result<()> {
    let mut table = [0_u8; 512];
    // The first of four entries: type Linux, from sector 2048, 262,144 sectors; and the mark at the end.
    table[450] = 0x83;
    table[454..458].copy_from_slice(&2048_u32.to_le_bytes());
    table[458..462].copy_from_slice(&262_144_u32.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    // The nodes see the file system of the machine.
    let file = folder()?.join("partition-table");
    std::fs::write(&file, table)?;
    let (from, to) = (format!("if={}", file.display()), format!("of={disk}"));
    node.run_ok([
        "dd",
        &from,
        &to,
        "bs=512",
        "count=1",
        "conv=fsync,notrunc",
        "status=none",
    ])
    .await?;
    node.run_ok(["blockdev", "--rereadpt", disk]).await?;
    node.run_ok(["udevadm", "settle"]).await?;
    Ok(())
}

/// Takes back what [`spoil`] did beside what is on the data disks, whatever of it was done.
async fn restore(test: &Test) -> Result<()> {
    let (node1, node2) = (test.bed.node("node1")?, test.bed.node("node2")?);
    if node1.run(["mountpoint", "-q", MOUNTED_AT]).await?.success() {
        node1.run_ok(["umount", MOUNTED_AT]).await?;
    }
    let loops = node1
        .run([
            "losetup",
            "--noheadings",
            "--output",
            "NAME",
            "--associated",
            SMALL_FILE,
        ])
        .await?;
    for device in loops.stdout.split_whitespace() {
        node1.run_ok(["losetup", "--detach", device]).await?;
    }
    node1.run_ok(["rm", "-f", SMALL, SMALL_FILE, SECOND_NAME]).await?;
    node1
        .run_ok(["wipefs", "-q", "-a", "-f", &test.bed.disk(1, 2)?])
        .await?;
    let whole = test.bed.disk(1, 2)?;
    test.wait("nobody looks at the partition any more", PATIENCE, || async {
        let again = node1.run(["blockdev", "--rereadpt", &whole]).await?;
        Ok(again.success().then_some(()))
    })
    .await?;
    node2.run_ok(["blockdev", "--setrw", &test.bed.disk(2, 2)?]).await?;
    Ok(())
}

/// Makes sure that a class is not ready on a node, for that reason, and has no volume group.
async fn not_ready(test: &Test, class: &str, node: &str, told: &[&str]) -> Result<()> {
    let name = format!("{class}.{node}");
    let said = test.wait("a condition Ready", PATIENCE, || async {
        let status = test.storages().get(&name).await?.status.unwrap_or_default();
        let ready = status.conditions.iter().find(|c| c.type_ == condition::READY).cloned();
        Ok(ready.map(|ready| (status, ready)))
    });
    let (status, ready) = said.await?;
    let text = format!("{}: {}", ready.reason, ready.message);
    println!("   {class} Ready={}: {text}", ready.status);
    ensure!(ready.status == "False" && status.volume_group.is_none(), "{status:#?}");
    ensure!(
        told.iter().all(|part| text.contains(part)),
        "{text:?} lacks one of {told:?}"
    );
    Ok(())
}

/// A disk is taken once, by whatever names it is listed; for one group only; and not by a name that does not last. The
/// fit disks of a class are taken beside those that are not.
async fn bad_lists_take_a_disk_once(test: &Test) -> Result<()> {
    forget_events(test).await?;
    restore(test).await?;
    let result = take_once(test).await;
    let restored = restore(test).await.context("removing the second name");
    result.and(restored)
}

async fn take_once(test: &Test) -> Result<()> {
    let node = test.bed.node("node1")?;
    let disk = test.bed.disk(1, 0)?;
    let device = node.run_ok(["readlink", "-e", &disk]).await?;
    node.run_ok(["ln", "-s", device.trim(), SECOND_NAME]).await?;
    let unstable = node
        .run_ok(["readlink", "-e", &test.bed.disk(1, 1)?])
        .await?
        .trim()
        .to_owned();
    let before = Held::by_nodes(test).await?;
    let class = |what: &str, disks: &[&str]| {
        let disks = disks.iter().map(|disk| (*disk).to_owned()).collect();
        Class::new(&test.class_name(what), &[("node1", disks)])
    };
    let twice = test.class(class("twice", &[&disk, SECOND_NAME])).await?;
    test.ready(&twice, 1).await?;
    let told = [format!("same disk as {disk}"), "keep one of them".to_owned()];
    let told: Vec<&str> = told.iter().map(String::as_str).collect();
    Unfit::new("second name", "node1", SECOND_NAME, &told)
        .is_refused(test, &twice)
        .await?;
    // For the disk to be in two groups, it does not matter by which name it is listed.
    let other = test.class(class("other", &[SECOND_NAME])).await?;
    let told = ["belongs to volume group", twice.as_str(), "list another disk"];
    Unfit::new("group of another class", "node1", SECOND_NAME, &told)
        .is_refused(test, &other)
        .await?;
    let unlasting = test.class(class("unlasting", &[&unstable])).await?;
    let told = [
        "can belong to another disk after a reboot",
        &format!("list the disk as {}", test.bed.disk(1, 1)?),
        "allowUnstableNames",
    ];
    Unfit::new("unlasting name", "node1", &unstable, &told)
        .is_refused(test, &unlasting)
        .await?;
    let partly = test.class(class("partly", &[&test.bed.disk(1, 2)?, ABSENT])).await?;
    let storage = test.ready(&partly, 1).await?.remove(0);
    Unfit::new("absent", "node1", ABSENT, &["no such device"])
        .missing()
        .is_refused(test, &partly)
        .await?;
    let conditions = storage.status.unwrap_or_default().conditions;
    let accepted = conditions
        .iter()
        .find(|c| c.type_ == condition::DISKS_ACCEPTED)
        .context("nothing is said of disks")?;
    ensure!(
        accepted.status == "False" && accepted.message.contains(ABSENT),
        "{accepted:?}"
    );
    let groups = test.lvm("node1", "vgs", "vg_name,pv_count").await?;
    let mut found: Vec<_> = groups
        .iter()
        .map(|row| (row["vg_name"].as_str(), row["pv_count"].as_str()))
        .collect();
    found.sort_unstable();
    ensure!(
        found == [(Some(partly.as_str()), Some("1")), (Some(twice.as_str()), Some("1"))],
        "{found:?}"
    );
    let after = Held::by_nodes(test).await?;
    ensure!(
        before[0].disks[1] == after[0].disks[1],
        "the disk with the name that does not last was changed"
    );
    ensure!(
        before[1..] == after[1..],
        "another node was changed: before {before:#?}, after {after:#?}"
    );
    Ok(())
}
