//! Volumes that were handed out are marked so, one after another, whatever becomes of the one before.

use std::time::Duration;

use quarry_crds::tags::{VolumeState, VolumeTags};
use quarry_process::Shutdown;

use super::bench::*;
use super::provisioning::tags;
use crate::lvm::VolumeRef;
use crate::lvm::fake::Fault;
use crate::ready_tags::{self, ReadyTags};

/// For how long volumes are gathered.
const WITHIN: Duration = Duration::from_secs(60);

/// A volume that is `creating`.
async fn made(bench: &Bench, uid: &str) -> VolumeRef {
    let volume = bench.make(&format!("pvc-{uid}"), 10, tags(uid)).await;
    bench.context.inventory.refresh().await.expect("read");
    bench.lvm.by_hand(|state| state.groups[0].reference_to(&volume))
}

/// Marks these volumes, one after another.
async fn mark(bench: &Bench, volumes: &[&VolumeRef]) {
    let waiting = ReadyTags::default();
    for volume in volumes {
        waiting.mark((*volume).clone(), VolumeState::Ready);
    }
    run_for(bench, &waiting, WITHIN * 3 / 2).await;
}

/// Lets it run for so long.
async fn run_for(bench: &Bench, waiting: &ReadyTags, time: Duration) {
    let inventory = bench.context.inventory.clone();
    let running = ready_tags::run(waiting.clone(), bench.lvm.clone(), inventory, WITHIN, Shutdown::new());
    tokio::time::timeout(time, running)
        .await
        .expect_err("it goes on until it is told to stop");
}

/// The states of all volumes that are known.
fn states(bench: &Bench) -> Vec<VolumeState> {
    let state = bench.context.inventory.get();
    let volumes = state.groups.iter().flat_map(|group| &group.logical_volumes);
    volumes
        .map(|volume| VolumeTags::parse(&volume.tags).expect("ours").state)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn creating_becomes_ready_and_is_known_to_be() {
    let bench = Bench::new().await;
    let volume = made(&bench, "u-1").await;
    mark(&bench, &[&volume]).await;
    assert_eq!(bench.log(), ["ChangeTags pvc-u-1"]);
    assert_eq!(states(&bench), [VolumeState::Ready]);
    // The rest of the tags is as it was.
    let [volume] = bench.volumes().try_into().expect("one");
    let read = VolumeTags::parse(&volume.tags).expect("ours");
    let made = VolumeTags::parse(&tags("u-1")).expect("ours");
    assert_eq!(
        read,
        VolumeTags {
            state: VolumeState::Ready,
            ..made
        }
    );
}

#[tokio::test(start_paused = true)]
async fn several_are_marked_by_one_command() {
    let bench = Bench::new().await;
    let mut volumes = Vec::new();
    for uid in ["u-1", "u-2", "u-3"] {
        volumes.push(made(&bench, uid).await);
    }
    let commands = bench.lvm.journal().len();
    mark(&bench, &volumes.iter().collect::<Vec<_>>()).await;
    assert_eq!(states(&bench), [VolumeState::Ready; 3]);
    assert_eq!(bench.lvm.journal().len(), commands + 1);
}

#[tokio::test(start_paused = true)]
async fn twice_is_as_good_as_once() {
    let bench = Bench::new().await;
    let volume = made(&bench, "u-1").await;
    mark(&bench, &[&volume, &volume]).await;
    assert_eq!(states(&bench), [VolumeState::Ready]);
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_marked_holds_up_no_other() {
    let bench = Bench::new().await;
    let volumes = [made(&bench, "u-1").await, made(&bench, "u-2").await];
    // Together, and then the first alone.
    bench.fault(Fault::Refuse);
    bench.fault(Fault::Refuse);
    mark(&bench, &[&volumes[0], &volumes[1]]).await;
    assert_eq!(states(&bench), [VolumeState::Creating, VolumeState::Ready]);
    // Gone in the meantime.
    bench.lvm.by_hand(|state| {
        state.groups[0]
            .logical_volumes
            .retain(|volume| volume.name != "pvc-u-1")
    });
    let third = made(&bench, "u-3").await;
    mark(&bench, &[&volumes[0], &third]).await;
    assert_eq!(states(&bench), [VolumeState::Ready, VolumeState::Ready]);
}

#[tokio::test(start_paused = true)]
async fn a_volume_that_is_not_ours_is_not_changed() {
    let bench = Bench::new().await;
    let volume = made(&bench, "u-1").await;
    bench
        .lvm
        .by_hand(|state| state.groups[0].logical_volumes[0].tags = vec!["backup=no".to_owned()]);
    mark(&bench, &[&volume]).await;
    assert_eq!(bench.volumes()[0].tags, ["backup=no"]);
}

#[tokio::test(start_paused = true)]
async fn volumes_are_gathered_unless_somebody_is_in_a_hurry() {
    let bench = Bench::new().await;
    let waiting = ReadyTags::default();
    let first = made(&bench, "u-1").await;
    waiting.mark(first.clone(), VolumeState::Ready);
    run_for(&bench, &waiting, WITHIN / 2).await;
    assert_eq!(states(&bench), [VolumeState::Creating]);
    assert!(waiting.is_awaited(&first.uuid));
    let second = made(&bench, "u-2").await;
    waiting.mark(second, VolumeState::Ready);
    waiting.hurry();
    run_for(&bench, &waiting, Duration::from_secs(1)).await;
    assert_eq!(states(&bench), [VolumeState::Ready; 2]);
    assert!(!waiting.is_awaited(&first.uuid));
    // Many do not wait for more: these are gone, all but one.
    for number in 0..63 {
        let uuid = format!("{number}");
        waiting.mark(VolumeRef { uuid, ..first.clone() }, VolumeState::Ready);
    }
    let last = made(&bench, "u-3").await;
    waiting.mark(last.clone(), VolumeState::Ready);
    run_for(&bench, &waiting, Duration::from_secs(1)).await;
    assert_eq!(states(&bench), [VolumeState::Ready; 3]);
    assert!(!waiting.is_awaited(&last.uuid));
}

#[tokio::test(start_paused = true)]
async fn one_that_is_gone_by_then_costs_no_command() {
    let bench = Bench::new().await;
    let volume = made(&bench, "u-1").await;
    bench.lvm.by_hand(|state| state.groups[0].logical_volumes.clear());
    bench.refresh().await;
    let commands = bench.lvm.journal().len();
    mark(&bench, &[&volume]).await;
    assert_eq!(bench.lvm.journal().len(), commands);
}

#[tokio::test(start_paused = true)]
async fn at_the_end_whatever_waits_is_marked() {
    let bench = Bench::new().await;
    let waiting = ReadyTags::default();
    for uid in ["u-1", "u-2"] {
        waiting.mark(made(&bench, uid).await, VolumeState::Ready);
    }
    let shutdown = Shutdown::new();
    shutdown.ask();
    let inventory = bench.context.inventory.clone();
    let running = ready_tags::run(waiting, bench.lvm.clone(), inventory, WITHIN, shutdown);
    tokio::time::timeout(Duration::from_secs(1), running)
        .await
        .expect("ended");
    assert_eq!(states(&bench), [VolumeState::Ready; 2]);
}
