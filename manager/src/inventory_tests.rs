use quarry_crds::{Bytes, Extents};

use super::*;
use crate::lvm::{CreateGroup, CreateVolume, FakeLvm, GroupRef};

/// Two groups with nothing in them, read once.
async fn two_groups() -> (Arc<FakeLvm>, Inventory, [GroupRef; 2]) {
    let lvm = Arc::new(FakeLvm::new(&[
        ("/dev/sda", Bytes::gib(1)),
        ("/dev/sdb", Bytes::gib(1)),
    ]));
    let mut groups = Vec::new();
    for (name, device) in [("fast", "/dev/sda"), ("slow", "/dev/sdb")] {
        let create = CreateGroup {
            name: name.to_owned(),
            devices: vec![device.to_owned()],
            tags: vec![quarry_crds::tags::VERSION_TAG.to_owned()],
        };
        groups.push(lvm.create_group(create).await.expect("made").value.reference());
    }
    let inventory = Inventory::open(lvm.clone()).await.expect("read");
    let groups = groups.try_into().expect("two");
    (lvm, inventory, groups)
}

fn volume(group: &GroupRef, name: &str) -> CreateVolume {
    CreateVolume {
        group: group.clone(),
        name: name.to_owned(),
        extents: Extents(1),
        tags: vec![quarry_crds::tags::VERSION_TAG.to_owned()],
        devices: Vec::new(),
        physical_volume: None,
    }
}

/// Names of all volumes that are known.
fn known(inventory: &Inventory) -> Vec<String> {
    let state = inventory.get();
    let volumes = state.groups.iter().flat_map(|group| &group.logical_volumes);
    volumes.map(|volume| volume.name.clone()).collect()
}

#[tokio::test]
async fn a_reading_begun_before_a_mutation_does_not_hide_what_it_made() {
    let (lvm, inventory, [fast, _]) = two_groups().await;
    let release = lvm.hold_next_read();
    let begun = inventory.clone();
    let reading = tokio::spawn(async move { begun.refresh().await.expect("read") });
    // The reading takes the lock before it begins, and is held after that.
    while inventory.reading.try_lock().is_ok() {
        tokio::task::yield_now().await;
    }
    let done = lvm.create_volume(volume(&fast, "pvc-a")).await.expect("made");
    inventory.made(done);
    drop(release);
    let refreshed = reading.await.expect("ended");
    assert_eq!(known(&inventory), ["pvc-a"]);
    assert_eq!(*refreshed, *inventory.get());
}

#[tokio::test]
async fn of_two_mutations_the_later_reading_stays() {
    let (lvm, inventory, [fast, slow]) = two_groups().await;
    let release = lvm.hold_next_read();
    let creating = lvm.clone();
    let first = tokio::spawn(async move { creating.create_volume(volume(&fast, "pvc-a")).await });
    while lvm.by_hand(|state| state.groups[0].logical_volumes.is_empty()) {
        tokio::task::yield_now().await;
    }
    let second = lvm.create_volume(volume(&slow, "pvc-b")).await.expect("made");
    inventory.made(second);
    drop(release);
    inventory.made(first.await.expect("ended").expect("made"));
    assert_eq!(known(&inventory), ["pvc-a", "pvc-b"]);
}

#[tokio::test]
async fn a_later_reading_replaces_an_earlier_one_and_only_changes_are_told() {
    let (lvm, inventory, [fast, _]) = two_groups().await;
    let mut changes = inventory.changes();
    inventory.refresh().await.expect("read");
    assert!(!changes.has_changed().expect("open"));
    let done = lvm.create_volume(volume(&fast, "pvc-a")).await.expect("made");
    inventory.made(done);
    assert!(changes.has_changed().expect("open"));
    changes.mark_unchanged();
    lvm.by_hand(|state| state.groups[0].logical_volumes.clear());
    inventory.refresh().await.expect("read");
    assert!(changes.has_changed().expect("open") && known(&inventory).is_empty());
}

#[tokio::test(start_paused = true)]
async fn disks_are_looked_at_again_also_where_nothing_of_lvm_changed() {
    let (_, inventory, _) = two_groups().await;
    let (looked, shutdown) = (Arc::new(Notify::new()), Shutdown::new());
    let events = crate::uevent::BlockEvents::default();
    let kept = tokio::spawn(inventory.keep(events.clone(), looked.clone(), shutdown.clone()));
    for _ in 0..2 {
        let told = tokio::time::timeout(RECHECK + SETTLE, looked.notified()).await;
        told.expect("now and then, whatever happens");
    }
    events.tell();
    let told = tokio::time::timeout(SETTLE * 2, looked.notified()).await;
    told.expect("soon after an event of the kernel");
    shutdown.ask();
    kept.await.expect("ended");
}

/// A volume on the disk of the group alone, which the kernel shows.
fn seen(state: &State, group: &GroupRef, name: &str) -> CreateVolume {
    let on = &state.group(&group.uuid).expect("there").physical_volumes[0];
    CreateVolume {
        devices: on.device.iter().cloned().collect(),
        physical_volume: Some(on.uuid.clone()),
        ..volume(group, name)
    }
}

#[tokio::test]
async fn a_volume_that_nobody_has_read_is_known_and_its_room_is_taken() {
    let (lvm, inventory, [fast, _]) = two_groups().await;
    let before = inventory.get();
    let changes = inventory.changes();
    // A reading that began before does not show it, nor hide it.
    let release = lvm.hold_next_read();
    let begun = inventory.clone();
    let reading = tokio::spawn(async move { begun.refresh().await.expect("read") });
    while inventory.reading.try_lock().is_ok() {
        tokio::task::yield_now().await;
    }
    let made = lvm.create_volume(seen(&before, &fast, "pvc-a")).await.expect("made");
    assert!(made.state.is_none(), "nothing was read");
    inventory.made(made);
    drop(release);
    let read = reading.await.expect("ended");
    let free = |state: &State| state.group(&fast.uuid).expect("there").free;
    assert_eq!(known(&inventory), ["pvc-a"]);
    assert_eq!(free(&read), free(&before).minus(Extents(1)));
    // The next does, and then it counts alone.
    lvm.by_hand(|state| state.groups[0].logical_volumes.clear());
    inventory.refresh().await.expect("read");
    assert!(known(&inventory).is_empty() && changes.has_changed().expect("open"));
}

#[tokio::test(start_paused = true)]
async fn what_was_made_and_not_read_is_read_soon() {
    let (lvm, inventory, [fast, slow]) = two_groups().await;
    let (looked, shutdown) = (Arc::new(Notify::new()), Shutdown::new());
    let events = crate::uevent::BlockEvents::default();
    let kept = tokio::spawn(inventory.clone().keep(events, looked.clone(), shutdown.clone()));
    let before = inventory.get();
    for (group, name) in [(&fast, "pvc-a"), (&slow, "pvc-b")] {
        let made = lvm.create_volume(seen(&before, group, name)).await.expect("made");
        inventory.made(made);
    }
    let told = tokio::time::timeout(SETTLE * 2, looked.notified()).await;
    told.expect("without an event of the kernel");
    let state = inventory.get();
    assert!(state.reading > before.reading + 2 && known(&inventory) == ["pvc-a", "pvc-b"]);
    shutdown.ask();
    kept.await.expect("ended");
}

/// Commands that follow one another are not held up by readings that wait for LVM's lock; and a command that hangs hides
/// nothing for long.
#[tokio::test(start_paused = true)]
async fn a_reading_waits_for_commands_of_ours_but_not_for_ever() {
    let (lvm, inventory, [fast, _]) = two_groups().await;
    let (looked, shutdown) = (Arc::new(Notify::new()), Shutdown::new());
    let events = crate::uevent::BlockEvents::default();
    let kept = tokio::spawn(inventory.clone().keep(events.clone(), looked.clone(), shutdown.clone()));
    for ends in [true, false] {
        // It is under way until it has read what it did.
        let release = lvm.hold_next_read();
        let (made, group, name) = (lvm.clone(), fast.clone(), format!("pvc-{ends}"));
        let making = tokio::spawn(async move { made.create_volume(volume(&group, &name)).await });
        while !lvm.is_busy() {
            tokio::task::yield_now().await;
        }
        events.tell();
        let early = tokio::time::timeout(BUSY / 2, looked.notified()).await;
        early.expect_err("a command of ours is at work");
        if ends {
            drop(release);
            making.await.expect("ended").expect("made");
            let told = tokio::time::timeout(SETTLE * 2, looked.notified()).await;
            told.expect("soon after its end");
        } else {
            let told = tokio::time::timeout(BUSY, looked.notified()).await;
            told.expect("although it has not ended");
            drop(release);
            making.await.expect("ended").expect("made");
        }
    }
    shutdown.ask();
    kept.await.expect("ended");
}

#[tokio::test(start_paused = true)]
async fn what_was_made_is_told_also_while_commands_follow_one_another() {
    let (lvm, inventory, [fast, slow]) = two_groups().await;
    let (looked, shutdown) = (Arc::new(Notify::new()), Shutdown::new());
    let kept = tokio::spawn(inventory.clone().keep(
        crate::uevent::BlockEvents::default(),
        looked.clone(),
        shutdown.clone(),
    ));
    let (before, mut changes) = (inventory.get(), inventory.changes());
    let release = lvm.hold_next_read();
    let (busy, group) = (lvm.clone(), slow.clone());
    let making = tokio::spawn(async move { busy.create_volume(volume(&group, "pvc-busy")).await });
    while !lvm.is_busy() {
        tokio::task::yield_now().await;
    }
    let made = lvm.create_volume(seen(&before, &fast, "pvc-a")).await.expect("made");
    inventory.made(made);
    let told = tokio::time::timeout(TELL + SETTLE * 2, changes.changed()).await;
    told.expect("soon").expect("open");
    assert_eq!(known(&inventory), ["pvc-a"]);
    assert_eq!(inventory.get().reading, before.reading, "nothing was read");
    drop(release);
    making.await.expect("ended").expect("made");
    shutdown.ask();
    kept.await.expect("ended");
}
