//! What is wiped or removed is wanted to be at that moment, and what was handed out is neither wiped nor removed for a claim; long
//! wipes hold up nobody.

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::controller::Action;
use quarry_crds::names::SELECTED_NODE;
use quarry_crds::tags::{VolumeState, VolumeTags};
use quarry_process::Shutdown;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::bench::*;
use super::provisioning::tags;
use crate::lvm::LogicalVolume;
use crate::{leftovers, provision};

const WIPE_AGAIN: Action = Action::requeue(Duration::from_secs(5));

/// Its volumes are wiped with zeros when they are removed.
fn zeroing() -> Value {
    let mut class = class("WaitForFirstConsumer");
    class["parameters"]["wipe"] = json!("zero");
    class
}

/// A claim of that UID, and of the name `data-<UID>`.
fn another(uid: &str, mode: &str, size: &str) -> Value {
    let mut claim = claim(Some("w1"), size);
    claim["metadata"]["uid"] = json!(uid);
    claim["metadata"]["name"] = json!(format!("data-{uid}"));
    claim["spec"]["volumeMode"] = json!(mode);
    claim
}

async fn serve(bench: &Bench, uid: &str) -> Result<Action, provision::ProvisionError> {
    let seen = bench.context.objects.claim_with_uid(uid).expect("seen");
    provision::reconcile(seen, Arc::clone(&bench.context)).await
}

async fn reconcile(bench: &Bench, volume: &str) -> Result<Action, crate::delete::DeleteError> {
    let seen = bench.context.objects.volume(volume).expect("seen");
    crate::delete::reconcile(seen, Arc::clone(&bench.context)).await
}

pub fn state_of(volume: &LogicalVolume) -> VolumeState {
    VolumeTags::parse(&volume.tags).expect("ours").state
}

pub fn state(bench: &Bench, name: &str) -> VolumeState {
    let all = bench.volumes();
    state_of(all.iter().find(|volume| volume.name == name).expect("there"))
}

pub fn wipes(bench: &Bench) -> Vec<String> {
    bench
        .log()
        .into_iter()
        .filter(|line| line.starts_with("wipe"))
        .collect()
}

async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Five volumes that are to be written with zeros, of which four are at it, as long as the senders live; the last one waits.
async fn one_waits() -> (Bench, Vec<oneshot::Sender<()>>) {
    let mut bench = Bench::of(zeroing()).await;
    let mut held = Vec::new();
    for at in 1..=5 {
        let uid = format!("u-{at}");
        bench.put(CLAIMS, another(&uid, "Filesystem", "20Mi"));
        serve(&bench, &uid).await.expect("served");
        bench.sync();
    }
    bench.mark().await;
    for at in 1..=5 {
        let name = format!("pvc-u-{at}");
        let released = json!({"status": {"phase": "Released"}});
        bench.api.objects(|objects| objects.change(VOLUMES, &name, &released));
    }
    bench.sync();
    bench.forget();
    for at in 1..=4 {
        held.push(bench.wiper.hold_next());
        assert_eq!(
            reconcile(&bench, &format!("pvc-u-{at}")).await.expect("goes on"),
            WIPE_AGAIN
        );
    }
    assert_eq!(reconcile(&bench, "pvc-u-5").await.expect("waits"), WIPE_AGAIN);
    assert_eq!(wipes(&bench).len(), 4);
    (bench, held)
}

type Change = fn(&mut crate::fake_api::Objects);

/// Ways in which the fifth volume is not to be removed any more.
const KEPT: [(&str, Change); 3] = [
    ("retained", |objects| {
        objects.change(
            VOLUMES,
            "pvc-u-5",
            &json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}),
        );
    }),
    ("bound again", |objects| {
        objects.change(VOLUMES, "pvc-u-5", &json!({"status": {"phase": "Bound"}}))
    }),
    ("made anew", |objects| {
        objects.change(VOLUMES, "pvc-u-5", &json!({"metadata": {"uid": "another"}}))
    }),
];

#[tokio::test(start_paused = true)]
async fn a_wipe_that_waits_is_asked_for_once_more_when_its_turn_comes() {
    for (what, change) in KEPT {
        let (mut bench, held) = one_waits().await;
        let notes: Vec<String> = bench.events().into_iter().map(|(_, note)| note).collect();
        assert!(
            notes
                .iter()
                .any(|note| note.contains("pvc-u-5 (20Mi) waits to be wiped (zero)")),
            "{notes:?}"
        );
        bench.api.objects(change);
        drop(held);
        settle().await;
        bench.sync();
        assert_eq!(wipes(&bench).len(), 4, "{what}");
        assert_eq!(state(&bench, "pvc-u-5"), VolumeState::Ready, "{what}");
        assert!(
            bench.log().iter().any(|line| line == "get persistentvolumes/pvc-u-5"),
            "{what}: {:?}",
            bench.log()
        );
        // It is still there when somebody asks for its removal after all.
        let again = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}, "status": {"phase": "Released"}});
        bench.api.objects(|objects| objects.change(VOLUMES, "pvc-u-5", &again));
        bench.sync();
        reconcile(&bench, "pvc-u-5").await.expect("removed");
        assert!(bench.object(VOLUMES, "pvc-u-5").is_none(), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wipe_that_waits_is_called_off_as_soon_as_the_node_hears_of_it() {
    let (mut bench, held) = one_waits().await;
    bench.api.objects(KEPT[0].1);
    bench.sync();
    reconcile(&bench, "pvc-u-5").await.expect("kept");
    drop(held);
    settle().await;
    assert_eq!((wipes(&bench).len(), state(&bench, "pvc-u-5")), (4, VolumeState::Ready));
    bench.mark().await;
    assert_eq!(state(&bench, "pvc-u-5"), VolumeState::Retained);
}

#[tokio::test(start_paused = true)]
async fn nor_does_it_begin_while_somebody_holds_the_volume() {
    let (bench, held) = one_waits().await;
    bench.wiper.set_holders(&["mounted at /mnt"]);
    drop(held);
    settle().await;
    assert_eq!((wipes(&bench).len(), state(&bench, "pvc-u-5")), (4, VolumeState::Ready));
    bench.wiper.set_holders(&[]);
    bench
        .lvm
        .snapshot("fast", "pvc-u-5", "backup", quarry_crds::Extents(1))
        .expect("made");
    bench.refresh().await;
    let error = reconcile(&bench, "pvc-u-5").await.expect_err("held").to_string();
    assert!(error.contains("fast/backup is a snapshot of it"), "{error}");
    assert_eq!(wipes(&bench).len(), 4);
}

#[tokio::test(start_paused = true)]
async fn short_wipes_do_not_wait_for_large_ones() {
    let (mut bench, held) = one_waits().await;
    bench.put(CLAIMS, another("u-6", "Block", "20Mi"));
    serve(&bench, "u-6").await.expect("served");
    assert!(
        bench.object(VOLUMES, "pvc-u-6").is_some(),
        "a new volume does not wait for old ones"
    );
    drop(held);
}

/// The slots of claims are held for a moment only; the claim is told, and what is left is counted.
#[tokio::test(start_paused = true)]
async fn a_new_raw_volume_is_written_beside_everything_else() {
    let mut bench = Bench::new().await;
    bench.put(CLAIMS, another("u-1", "Block", "101Mi"));
    let release = bench.wiper.hold_next();
    let again = Action::requeue(Duration::from_secs(1));
    let begun = tokio::time::Instant::now();
    assert_eq!(serve(&bench, "u-1").await.expect("goes on"), again);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    bench.forget();
    let begun = tokio::time::Instant::now();
    for _ in 0..5 {
        assert_eq!(serve(&bench, "u-1").await.expect("goes on"), again);
    }
    assert_eq!(
        (bench.log(), begun.elapsed()),
        (vec![], Duration::ZERO),
        "nothing is asked and nothing waits"
    );
    let events = bench.events();
    assert!(
        events
            .iter()
            .any(|(reason, note)| reason == "Wiping" && note.contains("fast/pvc-u-1 (104Mi) is being made zeros")),
        "{events:?}"
    );
    assert_eq!(
        bench.metrics(&["quarry_wipes", "quarry_wipe_left_bytes"]),
        [
            "quarry_wipe_left_bytes{vg=\"fast\",of=\"new\"} 109051904",
            "quarry_wipes{vg=\"fast\",of=\"new\",phase=\"waiting\"} 0",
            "quarry_wipes{vg=\"fast\",of=\"new\",phase=\"writing\"} 1",
        ]
    );
    drop(release);
    settle().await;
    serve(&bench, "u-1").await.expect("served");
    assert!(bench.object(VOLUMES, VOLUME).is_some());
    assert_eq!(wipes(&bench), [""; 0], "once");
    assert_eq!(bench.metrics(&["quarry_wipes"]), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn it_is_stopped_when_the_claim_is_deleted_and_removed() {
    let mut bench = Bench::new().await;
    bench.put(CLAIMS, another("u-1", "Block", "101Mi"));
    let _held = bench.wiper.hold_next();
    serve(&bench, "u-1").await.expect("goes on");
    let volume = bench.volumes()[0].uuid.clone();
    assert!(bench.context.wipes.is_at_work(&volume));
    bench.api.objects(|objects| objects.remove(CLAIMS, "data-u-1"));
    bench.sync();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!bench.context.wipes.is_at_work(&volume), "stopped");
    let sweeping = leftovers::keep_away(Arc::clone(&bench.context), Shutdown::new());
    let _ = tokio::time::timeout(Duration::from_secs(60), sweeping).await;
    assert_eq!((bench.volumes(), bench.object(VOLUMES, VOLUME)), (vec![], None));
}

#[tokio::test(start_paused = true)]
async fn it_goes_to_another_node_and_what_waited_here_is_not_written() {
    let mut bench = Bench::new().await;
    let mut held = Vec::new();
    for at in 1..=5 {
        bench.put(CLAIMS, another(&format!("u-{at}"), "Block", "20Mi"));
        if at < 5 {
            held.push(bench.wiper.hold_next());
        }
        serve(&bench, &format!("u-{at}")).await.expect("goes on");
    }
    assert_eq!(wipes(&bench).len(), 4);
    // The watch has not seen it yet.
    let elsewhere = json!({"metadata": {"annotations": {SELECTED_NODE: "w2"}}});
    bench
        .api
        .objects(|objects| objects.change(CLAIMS, "data-u-5", &elsewhere));
    tokio::time::sleep(Duration::from_secs(2)).await;
    drop(held);
    settle().await;
    assert_eq!(wipes(&bench).len(), 4, "called off");
}

/// etcd was restored to a moment before the claim was bound.
#[tokio::test]
async fn what_was_handed_out_is_neither_wiped_nor_removed_for_a_claim() {
    for state in [VolumeState::Ready, VolumeState::Retained] {
        for (size, mode) in [("101Mi", "Filesystem"), ("500Mi", "Filesystem"), ("101Mi", "Block")] {
            let mut bench = Bench::new().await;
            bench.put(CLAIMS, another("u-1", mode, size));
            let marked = tags("u-1")
                .iter()
                .map(|tag| tag.replace("state=creating", &format!("state={}", state.text())))
                .collect();
            let before = bench.make(VOLUME, 26, marked).await;
            bench.refresh().await;
            bench.forget();
            let error = serve(&bench, "u-1").await.expect_err("kept").to_string();
            for part in ["node w1", "fast/pvc-u-1", "handed out before", "lvremove fast/pvc-u-1"] {
                assert!(error.contains(part), "{error}");
            }
            assert_eq!(bench.log(), ["get persistentvolumes/pvc-u-1"], "{state:?} {size}");
            assert_eq!(bench.volumes(), [before], "{state:?} {size}");
        }
    }
}
