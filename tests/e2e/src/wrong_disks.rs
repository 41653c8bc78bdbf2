//! Every kind of disk that is occupied or unfit, offered at once: each is refused with its kind and the place of what is on
//! it, and not one byte changes. What is made fit later is taken without being asked again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quarry_bed::{Disk, Guest, Node};
use quarry_crds::node_local_storage::{DiskStatus, condition, phase};

use crate::case;
use crate::fixtures::{self, KINDS, Kind};
use crate::objects::Class;
use crate::test::{Case, PATIENCE, Test};
use crate::untouched::{Held, checksum_of, forget_events};

/// The cases.
pub const CASES: &[Case] = &[
    case!(wrong_disks_are_refused_and_not_one_byte_changes),
    case!(a_disk_made_fit_or_attached_later_is_taken),
];

/// Where the mounted disk is mounted in its node.
const MOUNTED_AT: &str = "/run/wrong-disk";
/// What device-mapper makes of a disk.
const HOLDER: &str = "wrong-disk-holder";
/// A second name of a disk.
const SECOND_NAME: &str = "/dev/disk/by-id/wrong-disk-second-name";
/// The group of an administrator.
const BY_HAND: &str = "wrong-disk-by-hand";
/// What a manager publishes of itself once it has looked into a disk since it started.
const LOOKED: &str = "quarry_lvm_command_seconds_count{command=\"blkid\"";
const MIB: u64 = 1 << 20;

/// A disk that is offered, and what must be said of it.
struct Offered {
    what: &'static str,
    path: String,
    told: Vec<String>,
}

impl Offered {
    fn new(what: &'static str, path: impl Into<String>, told: &[&str]) -> Self {
        let told = told.iter().map(|part| (*part).to_owned()).collect();
        let path = path.into();
        Self { what, path, told }
    }

    fn of_kind(kind: &Kind, disk: &Disk) -> Self {
        Self::new(kind.what, &disk.id, &[kind.told, &at(kind.offset)])
    }
}

fn at(offset: u64) -> String {
    format!("at offset {offset}")
}

/// What is offered on a node, and the files of the disks that are there for it.
#[derive(Default)]
struct Place {
    guests: Vec<Guest>,
    offered: Vec<Offered>,
}

impl Place {
    fn guest(&mut self, guest: Guest) -> Disk {
        let disk = guest.disk.clone();
        self.guests.push(guest);
        disk
    }

    fn blank(&mut self, what: &str, size: u64) -> Result<Disk> {
        let file = fixtures::blank(&fixtures::folder()?, what, size)?;
        Ok(self.guest(Guest::new(&file, what)))
    }

    fn kind(&mut self, kind: &Kind) -> Result<Disk> {
        let file = kind.create(&fixtures::folder()?)?;
        let disk = self.guest(Guest::new(&file, kind.what));
        self.offered.push(Offered::of_kind(kind, &disk));
        Ok(disk)
    }

    /// A checksum of the file of each guest.
    async fn sums(&self) -> Result<Vec<(String, String)>> {
        let mut sums = Vec::new();
        for guest in &self.guests {
            let file = guest.disk.file.clone();
            let sum = tokio::task::spawn_blocking(move || checksum_of(&file)).await??;
            sums.push((guest.disk.serial.clone(), sum));
        }
        Ok(sums)
    }
}

async fn nodes(test: &Test) -> Result<[Node; 3]> {
    Ok([
        test.bed.node("node1")?,
        test.bed.node("node2")?,
        test.bed.node("node3")?,
    ])
}

async fn wrong_disks_are_refused_and_not_one_byte_changes(test: &Test) -> Result<()> {
    forget_events(test).await?;
    restore(test).await?;
    let result = refuse(test).await;
    let restored = restore(test).await.context("taking the disks away again");
    result.and(restored)
}

async fn refuse(test: &Test) -> Result<()> {
    let begun = Instant::now();
    let nodes = nodes(test).await?;
    let mut places = [Place::default(), Place::default(), Place::default()];
    let (first, others) = KINDS.split_at(12);
    for kind in first {
        places[0].kind(kind)?;
    }
    for kind in others {
        places[1].kind(kind)?;
    }
    let held = hold(&nodes, &mut places).await?;
    println!("   made and attached: {:.1} s", begun.elapsed().as_secs_f64());
    flush(&nodes).await?;
    let mut sums = Vec::new();
    for place in &places {
        sums.push(place.sums().await?);
    }
    let before = Held::by_nodes(test).await?;
    let names = ["node1", "node2", "node3"];
    let paths = |place: &Place| place.offered.iter().map(|one| one.path.clone()).collect();
    let listed: Vec<_> = names.into_iter().zip(places.iter().map(paths)).collect();
    let offered = Instant::now();
    let class = test.class(Class::new(&test.class_name("a"), &listed)).await?;
    for (node, place) in names.iter().zip(&places) {
        all_refused(test, &class, node, &place.offered).await?;
    }
    println!("   offered → all refused: {:.1} s", offered.elapsed().as_secs_f64());
    told(test, &class, &places).await?;
    // Everything is looked at once more, as after any change of a disk, and by managers that start anew.
    let mut killed = Vec::new();
    for node in &nodes {
        node.run_ok(["udevadm", "trigger", "--subsystem-match=block", "--settle"])
            .await?;
        killed.push(manager(node).await?);
        node.run_ok(["pkill", "-KILL", "-x", "quarry-manager"]).await?;
    }
    for ((node, name), before) in nodes.iter().zip(names).zip(killed) {
        test.wait("another manager looks at the disks", PATIENCE, || async {
            let now = manager(node).await.unwrap_or(before.clone());
            let metrics = test.manager_metrics(name).await.unwrap_or_default();
            let looked = metrics.contains(LOOKED);
            Ok((now != before && looked).then_some(()))
        })
        .await?;
    }
    test.bed.rolled_out("quarry-manager").await?;
    // What it finds out beside that is written by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for (node, place) in names.iter().zip(&places) {
        all_refused(test, &class, node, &place.offered).await?;
    }
    Held::is_still(test, &before).await?;
    flush(&nodes).await?;
    for (place, before) in places.iter().zip(&sums) {
        let after = place.sums().await?;
        ensure!(*before == after, "changed:\nbefore {before:#?}\nafter {after:#?}");
    }
    held.abort();
    let kinds: usize = places.iter().map(|place| place.offered.len()).sum();
    let disks: usize = places.iter().map(|place| place.guests.len()).sum();
    println!(
        "   {kinds} kinds refused, {disks} disks with checksums unchanged, {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The process of the manager on a node.
async fn manager(node: &Node) -> Result<String> {
    Ok(node.run_ok(["pgrep", "-x", "quarry-manager"]).await?)
}

/// Attaches everything, and makes some of the disks unfit in ways that take a node. A program holds one of them for as long
/// as what is returned runs.
async fn hold(nodes: &[Node; 3], places: &mut [Place; 3]) -> Result<tokio::task::JoinHandle<()>> {
    let [one, two, three] = places;
    let (md090, md12) = (two.blank("md090", 64 * MIB)?, two.blank("md12", 64 * MIB)?);
    let foreign = two.blank("foreign-group", 64 * MIB)?;
    let orphan = three.blank("orphan", 64 * MIB)?;
    let mounted = fixtures::named("ext4")?.create_as(&fixtures::folder()?, "mounted")?;
    let mounted = three.guest(Guest::new(&mounted, "mounted"));
    let swapped = fixtures::named("swap")?.create_as(&fixtures::folder()?, "swapped-to")?;
    let swapped = three.guest(Guest::new(&swapped, "swapped-to"));
    let under = three.blank("held", 64 * MIB)?;
    let open = three.blank("open", 64 * MIB)?;
    let small = three.blank("small", 24 * MIB)?;
    let read_only = fixtures::blank(&fixtures::folder()?, "read-only", 64 * MIB)?;
    let read_only = three.guest(Guest::new(&read_only, "read-only").read_only());
    let legs = fixtures::blank(&fixtures::folder()?, "legs", 64 * MIB)?;
    let legs = Guest::new(&legs, "legs").shared();
    let leg = three.guest(legs.clone());
    three.guest(legs);
    for (node, place) in nodes.iter().zip([&*one, two, three]) {
        node.plug_disks(&place.guests).await?;
    }

    nodes[1].run(["modprobe", "-a", "-q", "md-mod", "raid1"]).await?;
    for (disk, name, version) in [(&md090, "md90", "0.90"), (&md12, "md12", "1.2")] {
        let (array, version) = (format!("/dev/{name}"), format!("--metadata={version}"));
        let create = ["mdadm", "--create", &array, "--run", "--level=1", "--raid-devices=2"];
        nodes[1]
            .run_ok([&create[..], &[&version, &disk.id, "missing"]].concat())
            .await?;
        nodes[1].run_ok(["mdadm", "--stop", &array]).await?;
    }
    nodes[2].run_ok(["blockdev", "--setro", &read_only.id]).await?;
    nodes[1].run_ok(["vgcreate", BY_HAND, &foreign.id]).await?;
    nodes[2].run_ok(["pvcreate", &orphan.id]).await?;
    nodes[2].run_ok(["mkdir", "-p", MOUNTED_AT]).await?;
    nodes[2]
        .run_ok(["mount", "-o", "noatime", &mounted.id, MOUNTED_AT])
        .await?;
    // Nothing is swapped out while there is any memory left.
    swappiness(&nodes[2], "0").await?;
    nodes[2].run_ok(["swapon", &swapped.id]).await?;
    let table = format!("0 8192 linear {} 0", under.id);
    nodes[2]
        .run_ok(["dmsetup", "create", HOLDER, "--table", &table])
        .await?;
    let device = nodes[0].run_ok(["readlink", "-e", "/dev/disk/by-id/bed-ext4"]).await?;
    nodes[0].run_ok(["ln", "-s", device.trim(), SECOND_NAME]).await?;
    let held = keep_open(&nodes[2], &open.id).await?;
    for node in nodes {
        node.run_ok(["udevadm", "settle"]).await?;
    }

    one.offered.extend([
        Offered::new(
            "twice",
            SECOND_NAME,
            &["same disk as /dev/disk/by-id/bed-ext4", "keep one", &at(1080)],
        ),
        Offered::new(
            "root",
            "/dev/disk/by-id/bed-node1-system",
            &["in use: it is mounted at /"],
        ),
    ]);
    two.offered.extend([
        Offered::new("md090", &md090.id, &["linux_raid_member", &at(64 * MIB - (64 << 10))]),
        Offered::new("md12", &md12.id, &["linux_raid_member", &at(4096)]),
        Offered::new(
            "foreign group",
            &foreign.id,
            &["belongs to volume group", BY_HAND, &at(536)],
        ),
    ]);
    three.offered.extend([
        Offered::new(
            "orphan",
            &orphan.id,
            &["physical volume in no volume group", "pvremove", &at(536)],
        ),
        Offered::new("mounted", &mounted.id, &["mounted at", MOUNTED_AT, "ext4", &at(1080)]),
        Offered::new("swapped to", &swapped.id, &["is swap space", "swapoff", &at(4086)]),
        Offered::new("held", &under.id, &[HOLDER, "made of it"]),
        Offered::new("open", &open.id, &["is in use: open by process", "(perl)"]),
        Offered::new("small", &small.id, &["too small", "25165824 bytes", "25Mi"]),
        Offered::new("read-only", &read_only.id, &["read-only", "blockdev --getro"]),
        Offered::new(
            "legs",
            &leg.id,
            &["several paths to the same disk", "serial legs", "/dev/mapper"],
        ),
    ]);
    Ok(held)
}

/// Has a program hold a disk open, so that nobody else can claim it.
async fn keep_open(node: &Node, disk: &str) -> Result<tokio::task::JoinHandle<()>> {
    let perl = |text: &str| ["perl", "-MFcntl", "-e", text, disk].map(str::to_owned);
    // The attempts below may be faster, and in its way.
    let hold = "select(undef, undef, undef, 0.1) until sysopen(D, $ARGV[0], O_RDONLY | O_EXCL); sleep 3600";
    let (program, at) = (perl(hold), node.clone());
    let held = tokio::spawn(async move { drop(at.run(program).await) });
    let another = perl("sysopen(D, $ARGV[0], O_RDONLY | O_EXCL) or die $!");
    for _ in 0..50 {
        if node.run(another.clone()).await?.stderr.contains("busy") {
            return Ok(held);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    held.abort();
    anyhow::bail!("{disk} is not held open")
}

async fn swappiness(node: &Node, value: &str) -> Result<()> {
    node.run_with(["tee", "/proc/sys/vm/swappiness"], Some(value.to_owned()))
        .await?;
    Ok(())
}

/// Everything that a node has in memory is on its disks.
async fn flush(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        node.run_ok(["sync"]).await?;
    }
    Ok(())
}

/// Waits until all of these disks are refused with what must be said, and no group is made.
async fn all_refused(test: &Test, class: &str, node: &str, offered: &[Offered]) -> Result<()> {
    let name = format!("{class}.{node}");
    let is_told = |disk: &DiskStatus, one: &Offered| {
        let reason = disk.reason.as_deref().unwrap_or_default();
        disk.path == one.path && disk.phase == phase::REJECTED && one.told.iter().all(|part| reason.contains(part))
    };
    let disks = || async {
        let status = test.storages().get_opt(&name).await?.and_then(|storage| storage.status);
        anyhow::Ok(status.unwrap_or_default().disks)
    };
    let wanted = format!("{name} refuses {} disks", offered.len());
    let refused = test.wait(&wanted, PATIENCE, || async {
        let disks = disks().await?;
        let all = offered.iter().all(|one| disks.iter().any(|disk| is_told(disk, one)));
        Ok(all.then_some(disks))
    });
    let disks = match refused.await {
        Ok(disks) => disks,
        Err(error) => {
            let disks = disks().await?;
            let wrong = offered
                .iter()
                .filter(|one| !disks.iter().any(|disk| is_told(disk, one)));
            let wrong: Vec<String> = wrong
                .map(|one| {
                    let disk = disks.iter().find(|disk| disk.path == one.path);
                    format!("{}: {:?} is not in {disk:?}", one.what, one.told)
                })
                .collect();
            return Err(error.context(wrong.join("\n")));
        }
    };
    for (one, disk) in offered
        .iter()
        .filter_map(|one| Some((one, disks.iter().find(|d| d.path == one.path)?)))
    {
        println!("   {node} {}: {}", one.what, disk.reason.as_deref().unwrap_or_default());
    }
    let status = test.storages().get(&name).await?.status.unwrap_or_default();
    let ready = status.conditions.iter().find(|c| c.type_ == condition::READY);
    let ready = ready.context("nothing is said of readiness")?;
    ensure!(
        ready.status == "False" && ready.reason == "NoDisk" && status.volume_group.is_none(),
        "{status:#?}"
    );
    let groups = test.lvm(node, "vgs", "vg_name").await?;
    ensure!(!groups.iter().any(|row| row["vg_name"] == class), "{groups:?}");
    Ok(())
}

/// Each refusal was told by an event of the class.
async fn told(test: &Test, class: &str, places: &[Place; 3]) -> Result<()> {
    let all = || places.iter().flat_map(|place| &place.offered);
    let silent = |events: &[(String, String)]| -> Vec<&str> {
        let is_told = |one: &Offered| {
            let place = format!("disk {}: ", one.path);
            events.iter().any(|(reason, note)| {
                reason == "DiskRejected" && note.contains(&place) && one.told.iter().all(|part| note.contains(part))
            })
        };
        all().filter(|one| !is_told(one)).map(|one| one.what).collect()
    };
    let told = test.wait("an event for each disk", PATIENCE, || async {
        let events = test.said_of("StorageClass", class).await?;
        Ok(silent(&events).is_empty().then_some(()))
    });
    if let Err(error) = told.await {
        let events = test.said_of("StorageClass", class).await?;
        return Err(error.context(format!("nothing is said of {:?}", silent(&events))));
    }
    Ok(())
}

/// Takes back what [`hold`] did, whatever of it was done.
async fn restore(test: &Test) -> Result<()> {
    let nodes = nodes(test).await?;
    for node in &nodes {
        node.run(["pkill", "-f", "perl -MFcntl"]).await?;
        // Where udev and the kernel know bcache, they have taken its disk up.
        let stop = "for stop in /sys/block/*/bcache/stop; do [ -e $stop ] && echo 1 > $stop; done";
        node.run(["sh", "-c", stop]).await?;
        if node.run(["mountpoint", "-q", MOUNTED_AT]).await?.success() {
            node.run_ok(["umount", MOUNTED_AT]).await?;
        }
        if node
            .run(["test", "-e", "/dev/disk/by-id/bed-swapped-to"])
            .await?
            .success()
        {
            node.run(["swapoff", "/dev/disk/by-id/bed-swapped-to"]).await?;
        }
        swappiness(node, "60").await?;
        node.run(["dmsetup", "remove", HOLDER]).await?;
        node.run(["mdadm", "--stop", "--scan"]).await?;
        node.run_ok(["rm", "-f", SECOND_NAME]).await?;
        node.unplug_guests().await?;
    }
    Ok(())
}

/// A disk that is refused is looked at again when it is wiped, and one that is not there when it is attached: nobody has to
/// say so.
async fn a_disk_made_fit_or_attached_later_is_taken(test: &Test) -> Result<()> {
    forget_events(test).await?;
    restore(test).await?;
    let result = take_later(test).await;
    // The group has to be gone before its disks are taken away.
    let cleaned = test.clean().await;
    let restored = restore(test).await.context("taking the disks away again");
    result.and(cleaned).and(restored)
}

async fn take_later(test: &Test) -> Result<()> {
    let node = test.bed.node("node1")?;
    let folder = fixtures::folder()?;
    let wiped = Guest::new(
        &fixtures::named("ext4")?.create_as(&folder, "wiped-later")?,
        "wiped-later",
    );
    let late = Guest::new(&fixtures::blank(&folder, "late", 64 * MIB)?, "late");
    node.plug_disks(std::slice::from_ref(&wiped)).await?;
    let disks = vec![wiped.disk.id.clone(), late.disk.id.clone()];
    let class = test
        .class(Class::new(&test.class_name("a"), &[("node1", disks)]))
        .await?;
    let name = format!("{class}.node1");
    let phases = |wanted: [&'static str; 2]| {
        let name = name.clone();
        async move {
            test.wait(&format!("disks are {wanted:?}"), Duration::from_secs(40), || async {
                let status = test.storages().get_opt(&name).await?.and_then(|storage| storage.status);
                let phases: Vec<_> = status
                    .unwrap_or_default()
                    .disks
                    .into_iter()
                    .map(|disk| disk.phase)
                    .collect();
                Ok((phases == wanted).then_some(()))
            })
            .await
        }
    };
    phases([phase::REJECTED, phase::MISSING]).await?;
    // Nothing else is going on by then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let attached = Instant::now();
    node.plug_disks(std::slice::from_ref(&late)).await?;
    phases([phase::REJECTED, phase::CLAIMED]).await?;
    println!("   attached → in the group: {:.1} s", attached.elapsed().as_secs_f64());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let begun = Instant::now();
    node.run_ok(["wipefs", "-a", &wiped.disk.id]).await?;
    phases([phase::CLAIMED, phase::CLAIMED]).await?;
    println!("   wiped → in the group: {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}
