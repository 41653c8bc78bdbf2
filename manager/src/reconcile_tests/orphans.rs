//! Volumes without objects: reported after two sweeps, removed only where that was asked for and everything proves that
//! nobody wants them.

use std::time::Duration;

use quarry_crds::orphans::{Policy, sweeps_of};
use quarry_crds::tags::VolumeState;
use serde_json::{Value, json};

use super::bench::*;
use super::provisioning::tags;
use crate::orphans::{Counts, sweep};

const GRACE: Duration = Duration::from_secs(3600);

/// Tags of a volume that was handed out.
fn ready(claim_uid: &str) -> Vec<String> {
    let (add, delete) = VolumeState::Ready.change();
    let kept = tags(claim_uid).into_iter().filter(|tag| !delete.contains(tag));
    kept.chain(add).collect()
}

/// A node with a volume that was handed out, and of which no object is left.
async fn orphan() -> Bench {
    let bench = Bench::new().await;
    bench.make(VOLUME, 26, ready("u-1")).await;
    bench.refresh().await;
    bench.forget();
    bench
}

async fn sweeps(bench: &Bench, policy: Policy, counts: &mut Counts, times: u32) {
    for _ in 0..times {
        sweep(&bench.context, policy, GRACE, counts).await.expect("swept");
    }
}

fn told(bench: &Bench) -> Vec<String> {
    let orphans = bench
        .events()
        .into_iter()
        .filter(|(reason, _)| reason == "OrphanVolume");
    orphans.map(|(_, note)| note).collect()
}

/// Status and message of the condition.
async fn condition(bench: &mut Bench) -> (String, String) {
    bench.pass().await;
    bench.sync();
    let storage = bench.object(STORAGES, "fast.w1").expect("there");
    let conditions = storage["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions
        .into_iter()
        .find(|condition| condition["type"] == "OrphanVolumes")
        .expect("said");
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("message"))
}

#[tokio::test]
async fn an_orphan_is_reported_after_two_sweeps_and_stays() {
    let mut bench = orphan().await;
    assert_eq!(condition(&mut bench).await.0, "False");
    let mut counts = Counts::default();
    sweeps(&bench, Policy::Report, &mut counts, 1).await;
    assert_eq!(
        (told(&bench), condition(&mut bench).await.0),
        (vec![], "False".to_owned())
    );
    sweeps(&bench, Policy::Report, &mut counts, 100).await;
    let [note] = told(&bench).try_into().expect("said once");
    assert!(
        note.contains("logical volume fast/pvc-u-1 of 104Mi (class fast) has neither"),
        "{note}"
    );
    let (status, message) = condition(&mut bench).await;
    assert!(
        status == "True" && message.contains("pvc-u-1") && message.contains("lvremove"),
        "{message}"
    );
    assert_eq!(bench.volumes().len(), 1);
    // Its space is promised to nobody.
    let storage = bench.object(STORAGES, "fast.w1").expect("there");
    assert_eq!(storage["status"]["volumeGroup"]["reserved"], "104Mi");
    // Removed by hand, it is forgotten.
    bench.lvm.by_hand(|state| state.groups[0].logical_volumes.clear());
    sweeps(&bench, Policy::Report, &mut counts, 1).await;
    assert_eq!(condition(&mut bench).await.0, "False");
}

#[tokio::test]
async fn it_is_removed_where_that_was_asked_for_after_the_grace_period_and_not_before() {
    let bench = orphan().await;
    let mut counts = Counts::default();
    sweeps(&bench, Policy::Delete, &mut counts, sweeps_of(GRACE) - 1).await;
    assert_eq!(bench.volumes().len(), 1);
    bench.forget();
    sweeps(&bench, Policy::Delete, &mut counts, 1).await;
    assert_eq!(
        bench.log(),
        [
            "list persistentvolumeclaims",
            "get persistentvolumes/pvc-u-1",
            "wipe old pvc-u-1",
            "RemoveVolumes pvc-u-1"
        ]
    );
    assert!(bench.volumes().is_empty());
}

/// Each of these alone keeps it, however often it is looked at.
#[tokio::test]
async fn anything_that_speaks_for_it_keeps_it() {
    type Change = fn(&mut Bench);
    fn volume(bench: &Bench, change: impl FnOnce(&mut crate::lvm::LogicalVolume)) {
        bench
            .lvm
            .by_hand(|state| change(&mut state.groups[0].logical_volumes[0]));
    }
    fn with_class(bench: &mut Bench, field: &str, value: Value) {
        let mut class = class("WaitForFirstConsumer");
        class[field] = value;
        bench.set_classes(vec![class]);
    }
    let cases: [(&str, Change); 11] = [
        ("its PersistentVolume is known to the API server only", |bench| {
            let volume = json!({"metadata": {"name": VOLUME}, "spec": {}});
            bench.api.objects(|objects| objects.put(VOLUMES, volume));
        }),
        ("its claim is known to the API server only", |bench| {
            bench.api.objects(|objects| objects.put(CLAIMS, claim(None, "101Mi")));
        }),
        ("its claim is known", |bench| bench.put(CLAIMS, claim(None, "101Mi"))),
        ("it is open", |bench| volume(bench, |volume| volume.open = Some(true))),
        ("nobody knows whether it is open", |bench| {
            volume(bench, |volume| volume.open = None)
        }),
        ("a disk of it is missing", |bench| {
            volume(bench, |volume| volume.partial = true)
        }),
        ("it was renamed", |bench| {
            volume(bench, |volume| "kept".clone_into(&mut volume.name))
        }),
        ("it was retained", |bench| {
            volume(bench, |volume| {
                volume.tags = volume
                    .tags
                    .iter()
                    .map(|tag| tag.replace("state=ready", "state=retained"))
                    .collect();
            });
        }),
        ("its class retains", |bench| {
            with_class(bench, "reclaimPolicy", json!("Retain"))
        }),
        ("its class is gone", |bench| bench.set_classes(vec![])),
        ("it is held", |bench| bench.wiper.set_holders(&["mounted at /mnt"])),
    ];
    for (what, change) in cases {
        let mut bench = orphan().await;
        change(&mut bench);
        sweeps(&bench, Policy::Delete, &mut Counts::default(), 40).await;
        assert_eq!(bench.volumes().len(), 1, "{what}");
        let touched = bench
            .log()
            .into_iter()
            .any(|line| line.contains("wipe") || line.contains("RemoveVolume"));
        assert!(!touched, "{what}");
    }
}

/// What Quarry did not make, and what is of another version, is not even reported.
#[tokio::test]
async fn what_is_not_ours_is_no_orphan() {
    let foreign: [Vec<String>; 4] = [
        vec![],
        vec!["backup=no".to_owned()],
        ready("u-1")
            .iter()
            .map(|tag| tag.replace("version=1", "version=2"))
            .collect(),
        ready("u-1")
            .into_iter()
            .filter(|tag| !tag.starts_with("quarry.version"))
            .collect(),
    ];
    for tags in foreign {
        let mut bench = orphan().await;
        bench
            .lvm
            .by_hand(|state| state.groups[0].logical_volumes[0].tags = tags.clone());
        sweeps(&bench, Policy::Delete, &mut Counts::default(), 40).await;
        assert_eq!(
            (bench.volumes().len(), told(&bench), bench.api.requests().len()),
            (1, vec![], 0),
            "{tags:?}"
        );
        assert_eq!(condition(&mut bench).await.0, "False", "{tags:?}");
    }
}

/// A sweep that tells nothing begins the count anew; and an object that appears between two does so too.
#[tokio::test]
async fn only_sweeps_in_a_row_count() {
    let bench = orphan().await;
    let mut counts = Counts::default();
    for _ in 0..6 {
        sweeps(&bench, Policy::Delete, &mut counts, sweeps_of(GRACE) - 1).await;
        bench.api.objects(|objects| objects.put(CLAIMS, claim(None, "101Mi")));
        sweeps(&bench, Policy::Delete, &mut counts, 1).await;
        bench.api.objects(|objects| objects.remove(CLAIMS, "data"));
    }
    assert_eq!(bench.volumes().len(), 1);
    bench.api.fail_next("list", CLAIMS, 503);
    sweep(&bench.context, Policy::Delete, GRACE, &mut counts)
        .await
        .expect_err("the API server does not answer");
    bench.api.fail_next("get", VOLUMES, 500);
    sweep(&bench.context, Policy::Delete, GRACE, &mut counts)
        .await
        .expect_err("the API server does not answer");
    bench.lvm.garble_read_after(0);
    sweep(&bench.context, Policy::Delete, GRACE, &mut counts)
        .await
        .expect_err("LVM cannot be read");
    bench
        .lvm
        .by_hand(|state| state.incomplete = Some("a disk does not answer".to_owned()));
    sweep(&bench.context, Policy::Delete, GRACE, &mut counts)
        .await
        .expect_err("not all was read");
    assert_eq!(bench.volumes().len(), 1);
}

#[tokio::test]
async fn what_was_not_removed_at_first_is_finished() {
    let bench = orphan().await;
    let mut counts = Counts::default();
    sweeps(&bench, Policy::Delete, &mut counts, sweeps_of(GRACE) - 1).await;
    bench.wiper.fail_next("I/O error");
    sweeps(&bench, Policy::Delete, &mut counts, 1).await;
    assert_eq!(bench.volumes().len(), 1, "what is not wiped is not removed");
    // From now on it is a volume that is being removed, as any other.
    sweeps(&bench, Policy::Report, &mut counts, 5).await;
    let tags = quarry_crds::tags::VolumeTags::parse(&bench.volumes()[0].tags).expect("ours");
    assert_eq!(tags.state, VolumeState::Deleting);
}
