//! What the API server or LVM refuses for long: it is told on the object that it is about, once, and stops nothing else.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use quarry_crds::orphans::Policy;
use quarry_crds::tags::VolumeState;
use quarry_process::Shutdown;
use serde_json::{Value, json};

use super::bench::*;
use super::provisioning::{selected, tags};
use crate::liveness::{Pulse, run};
use crate::lvm::fake::Fault;
use crate::node_local_storage::follow_classes;
use crate::orphans::{Counts, sweep};
use crate::volume_group::Pass;
use crate::{delete, provision};

const WORDS: &str = "exceeded quota: none";

/// A class of its own group on the second disk.
fn second() -> Value {
    let mut second = class("WaitForFirstConsumer");
    second["metadata"] = json!({"name": "second", "uid": "class-2"});
    second["parameters"]["nodes"] = json!(json!([{"names": ["w1"], "disks": [SECOND_DISK]}]).to_string());
    second
}

/// Both classes are there from the start.
async fn two() -> Bench {
    let mut bench = Bench::bare(class("WaitForFirstConsumer")).await;
    bench.set_classes(vec![class("WaitForFirstConsumer"), second()]);
    bench
}

async fn passes(bench: &mut Bench, times: usize) -> Pass {
    let mut pass = Pass::Complete;
    for _ in 0..times {
        bench.sync();
        pass = bench.pass().await;
    }
    bench.sync();
    pass
}

fn ready(bench: &Bench, storage: &str) -> bool {
    let storage = bench.object(STORAGES, storage).unwrap_or_default();
    let conditions = storage["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions
        .iter()
        .any(|one| one["type"] == "Ready" && one["status"] == "True")
}

/// What was said of objects of a kind for a reason.
fn said(bench: &Bench, kind: &str, reason: &str) -> Vec<String> {
    let events = bench.api.objects(|objects| objects.all(EVENTS));
    let of = |event: &&Value| event["regarding"]["kind"] == kind && event["reason"] == reason;
    let notes = events
        .iter()
        .filter(of)
        .map(|event| event["note"].as_str().unwrap_or_default().to_owned());
    notes.collect()
}

/// Lets what was spawned run.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_storage_that_is_refused_is_told_and_the_others_are_served() {
    let mut bench = two().await;
    bench.api.refuse("apply nodelocalstorages/fast.w1", 403, WORDS);
    assert_eq!(passes(&mut bench, 3).await, Pass::Unfinished, "it is tried again");
    assert!(ready(&bench, "second.w1"));
    assert_eq!(bench.object(STORAGES, "fast.w1"), None);
    let [note] = said(&bench, "StorageClass", "NodeLocalStorageRefused")
        .try_into()
        .expect("once");
    assert_eq!(
        note,
        "node w1: the API server refuses NodeLocalStorage fast.w1 as class fast wants it, so that the class is not served on \
         this node: exceeded quota: none"
    );
    bench.api.agree();
    passes(&mut bench, 3).await;
    assert!(ready(&bench, "fast.w1"));
}

#[tokio::test]
async fn a_change_of_a_storage_that_is_refused_is_told_on_it_and_it_stays_as_it_was() {
    let mut bench = Bench::new().await;
    let mut more = class("WaitForFirstConsumer");
    let disks: Vec<String> = (0..65).map(|number| format!("/dev/disk/by-id/{number}")).collect();
    more["parameters"]["nodes"] = json!(json!([{"names": ["w1"], "disks": disks}]).to_string());
    bench.set_classes(vec![more]);
    bench.api.refuse(
        "apply nodelocalstorages/fast.w1",
        422,
        "spec.disks: Too many: 65: must have at most 64 items",
    );
    assert_eq!(passes(&mut bench, 2).await, Pass::Unfinished);
    assert!(ready(&bench, "fast.w1"));
    for kind in ["StorageClass", "NodeLocalStorage"] {
        let [note] = said(&bench, kind, "NodeLocalStorageRefused").try_into().expect("once");
        assert!(note.contains("it stays as it was: spec.disks: Too many: 65"), "{note}");
    }
}

#[tokio::test]
async fn a_status_that_is_refused_is_told_and_the_others_are_written() {
    let mut bench = two().await;
    bench.api.refuse("apply nodelocalstorages/fast.w1/status", 403, WORDS);
    assert_eq!(passes(&mut bench, 4).await, Pass::Unfinished);
    assert!(ready(&bench, "second.w1") && !ready(&bench, "fast.w1"));
    let [note] = said(&bench, "NodeLocalStorage", "StatusRefused")
        .try_into()
        .expect("once");
    assert!(
        note.starts_with("node w1: the API server refuses its status") && note.ends_with(WORDS),
        "{note}"
    );
}

#[tokio::test]
async fn where_no_answer_comes_at_all_a_pass_ends() {
    let mut bench = two().await;
    // What is no answer of an API server.
    bench.api.garble("apply nodelocalstorages/fast.w1");
    bench.sync();
    follow_classes(&bench.context).await.expect_err("nothing is known");
    assert_eq!(bench.object(STORAGES, "second.w1"), None);
}

#[tokio::test]
async fn a_volume_that_is_refused_is_told_on_its_claim_and_served_later() {
    let bench = selected().await;
    bench.api.refuse("create persistentvolumes/pvc-u-1", 403, WORDS);
    for _ in 0..3 {
        let error = bench.claim().await.expect_err("refused");
        let claim: Arc<PersistentVolumeClaim> = bench.context.objects.claim_with_uid("u-1").expect("seen");
        provision::failed(claim, &error, Arc::clone(&bench.context));
        settle().await;
    }
    let [note] = said(&bench, "PersistentVolumeClaim", "ProvisioningFailed")
        .try_into()
        .expect("once");
    assert_eq!(
        note,
        "node w1: the API server refuses what is needed for this claim: exceeded quota: none (the node's label \
         kubernetes.io/hostname is \"w1.example\" and not its name; see docs/security.md on nodes whose label was changed); it \
         is tried again here"
    );
    assert_eq!(bench.volumes().len(), 1);
    bench.api.agree();
    bench.claim().await.expect("served");
    assert_eq!(bench.volumes().len(), 1);
}

/// The scheduler goes by the figures of the claim's own class.
#[tokio::test]
async fn a_claim_goes_back_though_the_status_of_another_class_of_the_group_is_refused() {
    let mut bench = selected().await;
    let mut shares = class("WaitForFirstConsumer");
    shares["metadata"] = json!({"name": "a-shares", "uid": "class-3"});
    shares["parameters"]["volumeGroup"] = json!("fast");
    bench.set_classes(vec![class("WaitForFirstConsumer"), shares]);
    passes(&mut bench, 2).await;
    bench
        .api
        .refuse("apply nodelocalstorages/a-shares.w1/status", 403, WORDS);
    bench.make("else", 230, vec!["quarry.version=1".to_owned()]).await;
    bench.claim().await.expect("given back");
    assert_eq!(bench.selected(), None);
}

#[tokio::test]
async fn the_end_of_a_volume_that_is_refused_is_told_on_it() {
    let mut bench = selected().await;
    bench.claim().await.expect("served");
    let released = json!({"status": {"phase": "Released"}});
    bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &released));
    bench.sync();
    bench.api.refuse("delete persistentvolumes/pvc-u-1", 403, WORDS);
    let error = bench.volume().await.expect_err("refused");
    let volume = bench.context.objects.volume(VOLUME).expect("seen");
    delete::failed(volume, &error, Arc::clone(&bench.context), Duration::from_secs(1));
    settle().await;
    let [note] = said(&bench, "PersistentVolume", "VolumeFailedDelete")
        .try_into()
        .expect("once");
    assert!(note.contains("the API server refuses: exceeded quota: none"), "{note}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_refused_is_told_on_the_node() {
    let mut bench = Bench::new().await;
    bench.set_node(Some(json!({"metadata": {"name": "w1", "uid": "n-1"}})));
    bench.api.refuse("apply leases/manager.w1", 403, WORDS);
    let pulse = Pulse {
        namespace: "quarry-system".to_owned(),
        every: Duration::from_secs(60),
    };
    let running = run(Arc::clone(&bench.context), pulse, Shutdown::new());
    tokio::time::timeout(Duration::from_secs(300), running)
        .await
        .expect_err("it goes on");
    let [note] = said(&bench, "Node", "LeaseRefused").try_into().expect("once");
    assert!(
        note.contains("Lease quarry-system/manager.w1") && note.ends_with(WORDS),
        "{note}"
    );
}

/// How long a command took is in none of its texts, so that a refusal which lasts is written once; and it is not tried
/// again at each pass.
#[tokio::test]
async fn what_lvm_refuses_for_long_is_written_once_and_tried_ever_more_rarely() {
    let mut bench = two().await;
    for _ in 0..40 {
        bench.lvm.fail_next(Fault::Refuse);
    }
    passes(&mut bench, 3).await;
    bench.forget();
    assert_eq!(passes(&mut bench, 20).await, Pass::Unfinished);
    let log = bench.log();
    let tried = log.iter().filter(|line| line.starts_with("CreateGroup")).count();
    assert!(
        tried <= 4,
        "{tried} attempts on two groups at once, after three on each: {log:?}"
    );
    let written = log
        .iter()
        .filter(|line| line.contains("nodelocalstorages") || line.contains("events"));
    assert_eq!(written.collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(
        said(&bench, "NodeLocalStorage", "NotReady").len(),
        2,
        "one of each group"
    );
    let storage = bench.object(STORAGES, "fast.w1").expect("there");
    assert!(storage.to_string().contains("refused on purpose"), "{storage:#}");
}

#[tokio::test]
async fn nothing_can_be_made_in_a_group_that_is_gone() {
    let mut bench = Bench::new().await;
    let largest = |bench: &Bench| {
        let storage = bench.object(STORAGES, "fast.w1").expect("there");
        storage["status"]["volumeGroup"]["largest"].as_str().map(str::to_owned)
    };
    assert_ne!(largest(&bench).as_deref(), Some("0"));
    bench.lvm.by_hand(|state| state.groups.clear());
    bench.refresh().await;
    passes(&mut bench, 1).await;
    assert!(!ready(&bench, "fast.w1"));
    assert_eq!(largest(&bench).as_deref(), Some("0"));
}

/// All claims of the cluster are many, and each node would list them every five minutes.
#[tokio::test]
async fn an_orphan_that_only_is_reported_costs_no_list_of_all_claims() {
    let bench = Bench::new().await;
    let (add, delete) = VolumeState::Ready.change();
    let kept = tags("u-1").into_iter().filter(|tag| !delete.contains(tag));
    bench.make(VOLUME, 26, kept.chain(add).collect()).await;
    bench.refresh().await;
    bench.forget();
    let mut counts = Counts::default();
    for _ in 0..20 {
        let swept = sweep(&bench.context, Policy::Report, Duration::from_secs(3600), &mut counts);
        swept.await.expect("swept");
    }
    let lists = bench.log().iter().filter(|line| line.starts_with("list")).count();
    assert_eq!(lists, 2, "until it is reported");
    let asked = bench
        .log()
        .iter()
        .filter(|line| *line == "get persistentvolumes/pvc-u-1")
        .count();
    assert_eq!(asked, 20, "its object may come back");
    assert_eq!(
        bench
            .context
            .orphans
            .of(&bench.context.inventory.get().groups[0].uuid)
            .len(),
        1
    );
}
