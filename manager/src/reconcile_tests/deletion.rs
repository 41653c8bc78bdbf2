//! PersistentVolumes that are released, deleted, or kept.

use std::time::Duration;

use kube::runtime::controller::Action;
use quarry_crds::names::VOLUME_FINALIZER;
use quarry_crds::tags::{VolumeState, VolumeTags};
use serde_json::{Value, json};

use super::bench::*;
use super::provisioning::{selected, tags};
use crate::lvm::fake::Fault;

const PROTECTION: &str = "kubernetes.io/pv-protection";

/// The claim was served and bound; then this became of its PersistentVolume.
async fn volume_that(changed: Value) -> Bench {
    let mut bench = selected().await;
    bench.claim().await.expect("served");
    bench.api.objects(|objects| {
        let bound = json!({"status": {"phase": "Bound"}});
        objects.change(VOLUMES, VOLUME, &bound);
        objects.change(VOLUMES, VOLUME, &changed);
        objects.clear(EVENTS);
    });
    bench.sync();
    bench.forget();
    bench
}

fn released() -> Value {
    json!({"status": {"phase": "Released"}})
}

fn retained() -> Value {
    json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})
}

fn deleted() -> Value {
    json!({"metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"}})
}

fn is_kept(bench: &Bench) {
    let volume = bench.object(VOLUMES, VOLUME).expect("the PersistentVolume is kept");
    let finalizers = volume["metadata"]["finalizers"].as_array().expect("finalizers");
    assert!(finalizers.contains(&json!(VOLUME_FINALIZER)), "{finalizers:?}");
}

#[tokio::test]
async fn a_released_volume_is_wiped_and_removed_and_then_forgotten() {
    let bench = volume_that(released()).await;
    let before = bench.object(VOLUMES, VOLUME).expect("there");
    bench.volume().await.expect("removed");
    assert_eq!(
        bench.log(),
        [
            "get persistentvolumes/pvc-u-1",
            "wipe old pvc-u-1",
            "RemoveVolumes pvc-u-1",
            "delete persistentvolumes/pvc-u-1",
            "get persistentvolumes/pvc-u-1",
            "patch persistentvolumes/pvc-u-1",
        ]
    );
    assert_eq!(
        bench.api.requests()[1].body["preconditions"]["uid"],
        before["metadata"]["uid"]
    );
    assert_eq!((bench.object(VOLUMES, VOLUME), bench.volumes()), (None, vec![]));
    bench.volume().await.expect("nothing to do");
}

#[tokio::test]
async fn what_others_hold_stays_theirs() {
    let bench = volume_that(released()).await;
    let both = json!({"metadata": {"finalizers": [VOLUME_FINALIZER, PROTECTION]}});
    bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &both));
    bench.volume().await.expect("removed");
    let left = bench.object(VOLUMES, VOLUME).expect("held by Kubernetes");
    assert_eq!(left["metadata"]["finalizers"], json!([PROTECTION]));
    assert!(left["metadata"]["deletionTimestamp"].is_string());
}

#[tokio::test]
async fn each_step_can_fail_and_is_done_at_the_next_attempt() {
    for n in 1..=4 {
        let mut bench = volume_that(released()).await;
        bench.api.fail_nth(n, 500);
        bench.volume().await.expect_err("failed on purpose");
        assert!(bench.object(VOLUMES, VOLUME).is_some(), "request {n}");
        bench.sync();
        bench.volume().await.expect("removed");
        assert_eq!(
            (bench.object(VOLUMES, VOLUME), bench.volumes()),
            (None, vec![]),
            "request {n}"
        );
    }
}

#[tokio::test]
async fn a_volume_in_use_stays() {
    let bench = volume_that(released()).await;
    bench.wiper.set_holders(&["mounted at /mnt/data"]);
    let error = bench.volume().await.expect_err("held").to_string();
    assert!(
        error.contains("fast/pvc-u-1 is in use: mounted at /mnt/data"),
        "{error}"
    );
    bench.wiper.set_holders(&[]);
    // Opened after the holders were looked for.
    let uuid = bench.volumes()[0].uuid.clone();
    bench.lvm.set_open(&uuid, true);
    let error = bench.volume().await.expect_err("held").to_string();
    assert!(error.contains("fast/pvc-u-1 is in use"), "{error}");
    is_kept(&bench);
    assert_eq!(bench.volumes().len(), 1);
    assert!(bench.api.requests().iter().all(|request| request.verb == "get"));
    bench.lvm.set_open(&uuid, false);
    bench.volume().await.expect("removed");
    assert_eq!(bench.object(VOLUMES, VOLUME), None);
}

#[tokio::test]
async fn what_is_not_wiped_is_not_removed() {
    let bench = volume_that(released()).await;
    bench.wiper.fail_next("I/O error");
    let error = bench.volume().await.expect_err("not wiped").to_string();
    assert!(error.contains("fast/pvc-u-1 could not be wiped: I/O error"), "{error}");
    is_kept(&bench);
    assert_eq!(bench.volumes().len(), 1);
}

/// Its space is not free before it is wiped, and others do not wait for that.
#[tokio::test(start_paused = true)]
async fn a_wipe_that_takes_long_goes_on_beside_everything_else() {
    let mut bench = volume_that(released()).await;
    let release = bench.wiper.hold_next();
    let action = bench.volume().await.expect("it goes on");
    assert_eq!(action, Action::requeue(Duration::from_secs(5)));
    is_kept(&bench);
    assert_eq!(state(&bench), VolumeState::Deleting);
    bench.pass().await;
    bench.sync();
    let storage = bench.object(STORAGES, "fast.w1").expect("there");
    assert_eq!(
        storage["status"]["volumeGroup"]["free"], "900Mi",
        "not before it is wiped"
    );
    assert_eq!(bench.volume().await.expect("it goes on"), action);
    let events = bench.events();
    let told: Vec<_> = events.iter().filter(|(reason, _)| reason == "Wiping").collect();
    assert!(
        told.len() == 1 && told[0].1.contains("fast/pvc-u-1 (104Mi) is being wiped (signatures)"),
        "{events:?}"
    );
    drop(release);
    bench.volume().await.expect("removed");
    assert_eq!((bench.object(VOLUMES, VOLUME), bench.volumes()), (None, vec![]));
    let wipes = bench.log().iter().filter(|line| *line == "wipe old pvc-u-1").count();
    assert_eq!(wipes, 1);
}

/// The manager ended in the middle of it.
#[tokio::test(start_paused = true)]
async fn a_wipe_that_was_interrupted_begins_anew() {
    let mut bench = volume_that(released()).await;
    let _held = bench.wiper.hold_next();
    bench.volume().await.expect("it goes on");
    bench.restart();
    bench.volume().await.expect("removed");
    let log = bench.log();
    let wipes = log.iter().filter(|line| *line == "wipe old pvc-u-1").count();
    assert_eq!((wipes, bench.volumes().len()), (2, 0), "{log:?}");
    assert_eq!(bench.object(VOLUMES, VOLUME), None);
}

#[tokio::test]
async fn what_was_deactivated_by_hand_is_activated_to_be_wiped() {
    let bench = volume_that(released()).await;
    bench
        .lvm
        .by_hand(|state| state.groups[0].logical_volumes[0].active = Some(false));
    bench.refresh().await;
    bench.fault(Fault::Refuse);
    let error = bench.volume().await.expect_err("not active").to_string();
    assert!(error.contains("fast/pvc-u-1 cannot be removed yet"), "{error}");
    assert!(!bench.log().contains(&"wipe old pvc-u-1".to_owned()) && bench.volumes().len() == 1);
    bench.volume().await.expect("removed");
    let log = bench.log();
    let at = |line: &str| log.iter().rposition(|seen| seen.starts_with(line));
    assert!(
        at("SetActive") < at("wipe old") && at("wipe old") < at("RemoveVolume"),
        "{log:?}"
    );
}

/// A released volume of a class that has volumes wiped like this.
async fn volume_wiped_by(wipe: &str) -> Bench {
    let mut class = class("WaitForFirstConsumer");
    class["parameters"]["wipe"] = json!(wipe);
    let mut bench = Bench::of(class).await;
    bench.put(CLAIMS, claim(Some("w1"), "101Mi"));
    bench.claim().await.expect("served");
    bench
        .api
        .objects(|objects| objects.change(VOLUMES, VOLUME, &released()));
    bench.sync();
    bench.forget();
    bench
}

/// Before the first block is wiped the volume says so itself: if the tag cannot be set, nothing is wiped.
#[tokio::test]
async fn no_block_is_wiped_before_the_volume_is_marked() {
    for wipe in ["discard", "zero"] {
        for fault in [Fault::Refuse, Fault::Nothing, Fault::DeadlineBefore] {
            let bench = volume_wiped_by(wipe).await;
            bench.fault(fault);
            bench.volume().await.expect_err("not marked");
            assert!(!bench.log().contains(&"wipe old pvc-u-1".to_owned()), "{fault:?}");
            is_kept(&bench);
            bench.volume().await.expect("removed");
            let log = bench.log();
            let at = |line: &str| log.iter().position(|seen| seen.starts_with(line)).expect(line);
            assert!(
                at("ChangeTags") < at("wipe old") && at("wipe old") < at("RemoveVolume"),
                "{log:?}"
            );
        }
    }
}

/// Where only signatures are wiped one command removes the volume, and one that is still there after it says so.
#[tokio::test]
async fn what_is_wiped_and_not_gone_is_marked() {
    for fault in [Fault::Refuse, Fault::Nothing, Fault::DeadlineBefore] {
        let bench = volume_that(released()).await;
        bench.fault(fault);
        bench.volume().await.expect_err("not removed");
        assert_eq!(state(&bench), VolumeState::Deleting, "{fault:?}");
        is_kept(&bench);
        bench.volume().await.expect("removed");
        assert!(bench.volumes().is_empty());
    }
}

#[tokio::test]
async fn the_class_says_how_a_volume_is_wiped() {
    for wipe in ["signatures", "discard", "zero"] {
        let bench = volume_wiped_by(wipe).await;
        bench.volume().await.expect("removed");
        let told = bench.wiper.told.lock().expect("not poisoned");
        let wipes: Vec<&str> = told.iter().map(|tags| tags.wipe.text()).collect();
        assert_eq!(wipes, [wipe, wipe]);
    }
}

fn state(bench: &Bench) -> VolumeState {
    VolumeTags::parse(&bench.volumes()[0].tags).expect("ours").state
}

#[tokio::test]
async fn while_lvm_cannot_be_read_nothing_is_wiped_or_removed() {
    let bench = volume_that(released()).await;
    bench.lvm.garble_read_after(0);
    bench.context.inventory.refresh().await.expect_err("garbage");
    let error = bench.volume().await.expect_err("held").to_string();
    assert!(
        error.contains("LVM cannot be read") && error.contains(VOLUME),
        "{error}"
    );
    assert_eq!(bench.log(), ["get persistentvolumes/pvc-u-1"]);
    is_kept(&bench);
    bench.refresh().await;
    bench.volume().await.expect("removed");
    assert_eq!((bench.object(VOLUMES, VOLUME), bench.volumes()), (None, vec![]));
}

#[tokio::test]
async fn one_that_is_gone_from_a_whole_group_is_a_success() {
    let bench = volume_that(released()).await;
    bench.lvm.by_hand(|state| state.groups[0].logical_volumes.clear());
    bench.refresh().await;
    bench.volume().await.expect("removed");
    assert!(
        !bench
            .log()
            .iter()
            .any(|line| line.contains("wipe") || line.contains("RemoveVolume"))
    );
    assert_eq!(bench.object(VOLUMES, VOLUME), None);
}

#[tokio::test]
async fn where_nobody_can_say_that_it_is_gone_it_is_kept() {
    type Break = fn(&mut crate::lvm::State);
    let breaks: [(&str, Break); 4] = [
        ("missing", |state| state.groups.clear()),
        ("partial", |state| {
            state.groups[0].partial = true;
            state.groups[0].logical_volumes.clear();
        }),
        ("another", |state| state.groups[0].uuid = "another".to_owned()),
        ("not all read", |state| {
            state.incomplete = Some("a disk does not answer".to_owned());
            state.groups[0].logical_volumes.clear();
        }),
    ];
    for (what, broken) in breaks {
        let bench = volume_that(released()).await;
        bench.lvm.by_hand(broken);
        bench.refresh().await;
        let error = bench.volume().await.expect_err(what).to_string();
        assert!(
            error.contains("is missing or not whole") && error.contains(VOLUME_FINALIZER),
            "{error}"
        );
        is_kept(&bench);
        assert_eq!(bench.log(), ["get persistentvolumes/pvc-u-1"], "{what}");
    }
}

#[tokio::test]
async fn a_volume_without_our_tags_for_it_is_left_alone() {
    for foreign in [vec!["backup=no".to_owned()], tags("u-2")] {
        let bench = volume_that(released()).await;
        bench
            .lvm
            .by_hand(|state| state.groups[0].logical_volumes[0].tags = foreign.clone());
        bench.refresh().await;
        let error = bench.volume().await.expect_err("foreign").to_string();
        assert!(error.contains("fast/pvc-u-1 does not have Quarry's tags"), "{error}");
        is_kept(&bench);
        assert_eq!(bench.log(), ["get persistentvolumes/pvc-u-1"]);
        assert_eq!(bench.volumes().len(), 1);
    }
}

#[tokio::test]
async fn what_is_to_be_kept_is_kept() {
    let bench = volume_that(retained()).await;
    bench
        .api
        .objects(|objects| objects.change(VOLUMES, VOLUME, &released()));
    bench.volume().await.expect("kept");
    is_kept(&bench);
    assert_eq!((bench.log(), bench.volumes().len()), (vec![], 1));
}

/// The watch still says Delete, while the API server says otherwise already.
#[tokio::test]
async fn whoever_decides_to_keep_it_in_time_is_heard() {
    let bench = volume_that(released()).await;
    bench
        .api
        .objects(|objects| objects.change(VOLUMES, VOLUME, &retained()));
    bench.volume().await.expect("kept");
    is_kept(&bench);
    assert_eq!(
        (bench.log(), bench.volumes().len()),
        (vec!["get persistentvolumes/pvc-u-1".to_owned()], 1)
    );
}

#[tokio::test]
async fn a_retained_volume_is_let_go_of_and_its_data_stays() {
    let mut bench = volume_that(retained()).await;
    bench.api.objects(|objects| {
        objects.change(VOLUMES, VOLUME, &released());
        objects.change(VOLUMES, VOLUME, &deleted());
    });
    bench.sync();
    bench.volume().await.expect("let go");
    assert_eq!((bench.object(VOLUMES, VOLUME), bench.volumes().len()), (None, 1));
    assert!(!bench.log().iter().any(|line| line.contains("wipe")));
}

#[tokio::test]
async fn a_bound_volume_that_is_deleted_before_its_claim_goes_with_the_claim() {
    let mut bench = volume_that(deleted()).await;
    let both = json!({"metadata": {"finalizers": [VOLUME_FINALIZER, PROTECTION]}});
    bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &both));
    bench.sync();
    bench.volume().await.expect("kept");
    is_kept(&bench);
    assert_eq!((bench.log(), bench.volumes().len()), (vec![], 1));
    // The claim goes, and Kubernetes takes its finalizer off.
    bench.api.objects(|objects| {
        objects.remove(CLAIMS, "data");
        objects.change(VOLUMES, VOLUME, &released());
        objects.change(
            VOLUMES,
            VOLUME,
            &json!({"metadata": {"finalizers": [VOLUME_FINALIZER]}}),
        );
    });
    bench.sync();
    bench.volume().await.expect("removed");
    assert_eq!((bench.object(VOLUMES, VOLUME), bench.volumes()), (None, vec![]));
    // It was being deleted already.
    assert!(!bench.log().iter().any(|line| line.starts_with("delete ")));
}

#[tokio::test]
async fn another_volume_under_the_same_name_is_not_touched() {
    let bench = volume_that(released()).await;
    bench
        .api
        .objects(|objects| objects.change(VOLUMES, VOLUME, &json!({"metadata": {"uid": "another"}})));
    bench.volume().await.expect("not ours");
    is_kept(&bench);
    assert_eq!(bench.volumes().len(), 1);
}
