//! Every command of LVM, and every reading of its state, misbehaves in every way, one at a time: whatever it is, the end
//! is the same as without, there is never a second volume or group, and nothing is removed on a guess.

use std::collections::BTreeSet;

use quarry_crds::names::SELECTED_NODE;
use quarry_crds::tags::{VERSION_TAG, VolumeState, VolumeTags};
use serde_json::{Value, json};

use super::bench::*;
use super::provisioning::{selected, tags};
use crate::lvm::State;
use crate::lvm::fake::Fault;
use crate::volume_group::Pass;

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// A command.
    Command(Fault),
    /// A reading gives garbage, so many times in a row.
    Reading(usize),
}

const TROUBLES: [Trouble; 11] = [
    Trouble::Command(Fault::Refuse),
    Trouble::Command(Fault::FailAfter),
    Trouble::Command(Fault::Nothing),
    Trouble::Command(Fault::KilledBefore),
    Trouble::Command(Fault::KilledAfter),
    Trouble::Command(Fault::DeadlineBefore),
    Trouble::Command(Fault::DeadlineAfter),
    Trouble::Command(Fault::NeverEnds),
    Trouble::Command(Fault::NotStarted),
    Trouble::Reading(1),
    Trouble::Reading(3),
];

/// How many commands and readings go well first.
const LATER: usize = 8;
/// An operation that is not done after so many attempts never is.
const ATTEMPTS: usize = 12;

fn begin(bench: &Bench, trouble: Trouble, after: usize) {
    match trouble {
        Trouble::Command(fault) => bench.lvm.fail_after(after, fault),
        Trouble::Reading(times) => {
            bench.lvm.garble_read_after(after);
            for _ in 1..times {
                bench.lvm.garble_read_after(0);
            }
        }
    }
}

/// Every trouble at every place, for messages.
fn cases() -> impl Iterator<Item = (Trouble, usize, String)> {
    TROUBLES
        .into_iter()
        .flat_map(|trouble| (0..LATER).map(move |after| (trouble, after, format!("{trouble:?} after {after}"))))
}

fn state(bench: &Bench) -> State {
    bench.lvm.by_hand(|state| state.clone())
}

/// A claim that waits, seen over and over as the scheduler and the watches would have it.
async fn serve(bench: &mut Bench, told: &str) {
    let mut seen = BTreeSet::new();
    for _ in 0..ATTEMPTS {
        let _ = bench.claim().await;
        assert!(bench.volumes().len() <= 1, "{told}: {:?}", bench.volumes());
        let handed_out = bench.object(VOLUMES, VOLUME).is_some();
        if handed_out {
            seen.extend(bench.volumes().into_iter().map(|volume| volume.uuid));
            assert_eq!(seen.len(), 1, "{told}: what was handed out is gone");
        } else if bench.selected().is_none() {
            assert!(
                bench.volumes().is_empty(),
                "{told}: the claim went back with its volume left here"
            );
            let again = json!({"metadata": {"annotations": {SELECTED_NODE: "w1"}}});
            bench.api.objects(|objects| objects.change(CLAIMS, "data", &again));
        }
        bench.sync();
        if handed_out {
            bench.mark().await;
            let _ = bench.volume().await;
            let marked = |volume: &crate::lvm::LogicalVolume| {
                VolumeTags::parse(&volume.tags).is_some_and(|tags| tags.state == VolumeState::Ready)
            };
            if bench.volumes().iter().all(marked) {
                return;
            }
        }
        let _ = bench.context.inventory.refresh().await;
    }
    panic!("{told}: not served: {:#?}", bench.log());
}

#[tokio::test]
async fn a_claim_is_served_once_whatever_goes_wrong() {
    let mut expected = selected().await;
    serve(&mut expected, "nothing").await;
    let without = |volumes: Vec<crate::lvm::LogicalVolume>| {
        let figures = volumes
            .into_iter()
            .map(|volume| (volume.name, volume.extents, volume.tags));
        figures.collect::<Vec<_>>()
    };
    for (trouble, after, told) in cases() {
        let mut bench = selected().await;
        begin(&bench, trouble, after);
        serve(&mut bench, &told).await;
        assert_eq!(without(bench.volumes()), without(expected.volumes()), "{told}");
        let log = bench.log();
        let last = |line: &str| log.iter().rposition(|seen| seen == line);
        let made = last("create persistentvolumes/pvc-u-1");
        assert!(
            last("CreateVolume pvc-u-1") < last("wipe new pvc-u-1"),
            "{told}: {log:?}"
        );
        assert!(
            last("wipe new pvc-u-1") < made,
            "{told}: wiped before it is handed out: {log:?}"
        );
        assert!(last("RemoveVolumes pvc-u-1") < made, "{told}: {log:?}");
        // Each removal is of a volume that was seen and not handed out, which was asked of the API server.
        let asked = log
            .iter()
            .filter(|line| *line == "get persistentvolumes/pvc-u-1")
            .count();
        let removed = log.iter().filter(|line| *line == "RemoveVolumes pvc-u-1").count();
        assert!(removed <= asked, "{told}: {log:?}");
    }
}

#[tokio::test]
async fn a_volume_goes_with_its_object_whatever_goes_wrong() {
    for (trouble, after, told) in cases() {
        let mut bench = selected().await;
        serve(&mut bench, "nothing").await;
        let released = json!({"status": {"phase": "Released"}});
        bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &released));
        // Of somebody else, to be left as it is.
        let other = bench.make("pvc-u-2", 5, tags("u-2")).await;
        bench.refresh().await;
        bench.forget();
        begin(&bench, trouble, after);
        for _ in 0..ATTEMPTS {
            bench.sync();
            if bench.context.objects.volume(VOLUME).is_none() {
                break;
            }
            let _ = bench.volume().await;
            let there = bench.volumes().iter().any(|volume| volume.name == VOLUME);
            assert!(
                !there || bench.object(VOLUMES, VOLUME).is_some(),
                "{told}: the object went first, and nobody knows of the volume any more"
            );
            let _ = bench.context.inventory.refresh().await;
        }
        assert_eq!(bench.object(VOLUMES, VOLUME), None, "{told}");
        assert_eq!(bench.volumes(), [other], "{told}");
    }
}

/// Passes until one is complete.
async fn passes(bench: &mut Bench, told: &str) {
    let mut complete = 0;
    for _ in 0..ATTEMPTS {
        bench.sync();
        if let Some(node) = bench.object("nodes", "w1") {
            bench.set_node(Some(node));
        }
        let readable = bench.context.inventory.trouble().is_none();
        complete = match bench.pass().await {
            Pass::Complete if readable => complete + 1,
            _ => 0,
        };
        // The first makes the NodeLocalStorage, the second the group; and one more finds nothing to do.
        if complete == 3 && bench.lvm.is_calm() {
            return;
        }
        let _ = bench.context.inventory.refresh().await;
        assert!(state(bench).groups.len() <= 1, "{told}");
    }
    assert!(complete >= 3, "{told}: not done: {:#?}", bench.log());
}

/// The tags of a group that the manager of the bench has made, sorted.
fn owner_tags() -> Vec<String> {
    let mut tags = owner().tags().to_vec();
    tags.push(VERSION_TAG.to_owned());
    tags.sort();
    tags
}

fn two_disks(mut class: Value) -> Value {
    class["parameters"]["nodes"] = json!(json!([{"names": ["w1"], "disks": [DISK, SECOND_DISK]}]).to_string());
    class
}

#[tokio::test]
async fn a_group_is_made_and_extended_once_whatever_goes_wrong() {
    for (trouble, after, told) in cases() {
        let mut bench = Bench::bare(class("WaitForFirstConsumer")).await;
        begin(&bench, trouble, after);
        passes(&mut bench, &told).await;
        let [group] = state(&bench).groups.try_into().expect("one group");
        assert_eq!((group.tags, group.physical_volumes.len()), (owner_tags(), 1), "{told}");
        assert_eq!(ready(&bench), "True", "{told}");

        begin(&bench, trouble, after);
        bench.set_classes(vec![two_disks(class("WaitForFirstConsumer"))]);
        passes(&mut bench, &told).await;
        let [extended] = state(&bench).groups.try_into().expect("one group");
        assert_eq!(
            (extended.uuid, extended.physical_volumes.len()),
            (group.uuid, 2),
            "{told}"
        );
        assert_eq!(ready(&bench), "True", "{told}");
        assert!(state(&bench).orphans.is_empty(), "{told}");
    }
}

fn ready(bench: &Bench) -> String {
    let storage = bench.object(STORAGES, "fast.w1").expect("there");
    let conditions = storage["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready");
    ready.unwrap_or_default()["status"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn a_group_is_taken_down_in_full_whatever_goes_wrong() {
    for (trouble, after, told) in cases() {
        let mut class = two_disks(class("WaitForFirstConsumer"));
        class["parameters"]["volumeGroupPolicy"] = json!("Delete");
        let mut bench = Bench::of(class).await;
        bench.put(
            "nodes",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w1"}}),
        );
        bench.set_classes(vec![]);
        bench.api.objects(|objects| objects.clear(STORAGES));
        begin(&bench, trouble, after);
        passes(&mut bench, &told).await;
        let left = state(&bench);
        assert!(left.groups.is_empty(), "{told}: {left:?}");
        assert!(left.orphans.is_empty(), "{told}: {left:?}");
    }
}

#[tokio::test]
async fn volumes_are_activated_and_disks_taken_up_again_whatever_goes_wrong() {
    for (trouble, after, told) in cases() {
        let mut bench = Bench::bare(class("WaitForFirstConsumer")).await;
        for _ in 0..3 {
            bench.sync();
            bench.pass().await;
        }
        bench.make(VOLUME, 5, tags("u-1")).await;
        bench.lvm.lose_disk(DEVICE);
        bench.refresh().await;
        bench.pass().await;
        // The group is away for a moment, and comes back with a disk that LVM takes for missing.
        let groups = bench.lvm.by_hand(|state| std::mem::take(&mut state.groups));
        bench.refresh().await;
        bench.pass().await;
        bench.lvm.by_hand(|state| {
            state.groups = groups;
            state.groups[0].logical_volumes[0].active = Some(false);
        });
        bench.lvm.return_disk(DEVICE);
        bench.refresh().await;
        begin(&bench, trouble, after);
        passes(&mut bench, &told).await;
        let group = state(&bench).groups.remove(0);
        assert!(
            !group.partial && group.logical_volumes[0].active == Some(true),
            "{told}: {group:?}"
        );
    }
}

/// What the operator sees meanwhile: the node takes no more claims, and says why; until LVM answers again.
#[tokio::test]
async fn a_node_whose_lvm_cannot_be_read_says_so() {
    let mut bench = Bench::new().await;
    for _ in 0..2 {
        bench.lvm.garble_read_after(0);
    }
    bench.context.inventory.refresh().await.expect_err("garbage");
    bench.sync();
    bench.pass().await;
    let storage = bench.object(STORAGES, "fast.w1").expect("there");
    let condition = &storage["status"]["conditions"][0];
    assert_eq!(
        (condition["type"].as_str(), condition["reason"].as_str()),
        (Some("Ready"), Some("LvmUnreadable"))
    );
    assert!(
        condition["message"]
            .as_str()
            .expect("a message")
            .contains("garbage on purpose"),
        "{condition}"
    );
    assert_eq!(storage["status"]["volumeGroup"]["largest"], "0");
    let events = bench.events();
    assert!(
        events
            .iter()
            .any(|(reason, note)| reason == "NotReady" && note.contains("garbage on purpose")),
        "{events:?}"
    );
    bench.context.inventory.refresh().await.expect_err("garbage");
    bench.refresh().await;
    bench.sync();
    bench.pass().await;
    assert_eq!(ready(&bench), "True");
}

/// While its tag still says `creating`, a volume that lost its object would be taken for the leftover of an attempt.
#[tokio::test]
async fn a_retained_volume_is_let_go_of_only_once_it_is_marked() {
    let mut bench = selected().await;
    bench.claim().await.expect("served");
    bench.api.objects(|objects| {
        objects.change(
            VOLUMES,
            VOLUME,
            &json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}),
        );
        objects.change(VOLUMES, VOLUME, &json!({"status": {"phase": "Released"}}));
        objects.change(
            VOLUMES,
            VOLUME,
            &json!({"metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"}}),
        );
    });
    bench.sync();
    for fault in [Fault::Refuse, Fault::Nothing, Fault::DeadlineBefore] {
        bench.fault(fault);
        let error = bench.volume().await.expect_err("not marked").to_string();
        assert!(error.contains("cannot be let go of yet"), "{error}");
        assert!(bench.object(VOLUMES, VOLUME).is_some(), "{fault:?}");
    }
    bench.volume().await.expect("let go");
    assert_eq!(bench.object(VOLUMES, VOLUME), None);
    let tags = VolumeTags::parse(&bench.volumes()[0].tags).expect("ours");
    assert_eq!(tags.state, VolumeState::Retained);
}
