use kube::runtime::watcher::Event;
use quarry_crds::lost_nodes::DEFAULT_GRACE;
use quarry_crds::names::{DELETE_CLAIM, LOST_NODE_ANNOTATION, SELECTED_NODE, STORAGE_PROVISIONER};
use serde_json::json;

use super::bench::*;
use super::*;

const MOMENT: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_claim_that_waits_for_a_gone_node_goes_back_to_the_scheduler() {
    let mut bench = Bench::new();
    bench.put(CLAIMS, claim("one", "w1", false));
    bench.put(CLAIMS, claim("other", "w2", false));
    let mut foreign = claim("foreign", "w1", false);
    foreign["metadata"]["annotations"][STORAGE_PROVISIONER] = json!("else");
    bench.put(CLAIMS, foreign);
    bench.cleanup.round().await;
    assert_eq!(bench.api.requests(), [], "nothing is asked while all nodes are there");
    bench.lose_node().await;
    bench.after(CONFIRM - MOMENT).await;
    assert_eq!(bench.writes(), Vec::<String>::new());
    bench.after(MOMENT).await;
    // Once to give it back, and once more to wake kube-scheduler where it tried the pod too early.
    assert_eq!(bench.writes(), ["patch persistentvolumeclaims/one"; 2]);
    assert_eq!(bench.selected("one"), None);
    assert_eq!(bench.node_gone("one").as_deref(), Some("w1"));
    assert_eq!(bench.selected("other").as_deref(), Some("w2"));
    assert_eq!(bench.selected("foreign").as_deref(), Some("w1"));
    assert_eq!(bench.said(), ["PersistentVolumeClaim one: NodeGone"]);
    // Nothing is left to do, and nothing is asked again and again.
    bench.remove(CLAIMS, "foreign");
    bench.api.forget();
    bench.after(CONFIRM).await;
    assert_eq!(bench.api.requests(), []);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_back_or_was_never_gone_loses_nothing() {
    let mut bench = Bench::new();
    bench.put(CLAIMS, claim("one", "w1", false));
    bench.put(STORAGES, storage("w1"));
    // The watch says that it is gone, and the API server that it is not.
    let node = bench.get(NODES, "w1").expect("there");
    bench.writer.apply_watcher_event(&Event::Delete(read(node.clone())));
    for _ in 0..20 {
        tokio::time::advance(DEFAULT_GRACE).await;
        bench.cleanup.round().await;
    }
    assert_eq!(bench.writes(), Vec::<String>::new());
    // It is gone, and back at the last moment, which the watch has not seen yet.
    bench.lose_node().await;
    tokio::time::advance(DEFAULT_GRACE).await;
    bench.api.objects(|objects| objects.put(NODES, node.clone()));
    bench.cleanup.round().await;
    assert_eq!(bench.writes(), Vec::<String>::new());
    // It is gone, back, and gone again, all between two looks: counted anew.
    bench.lose_node().await;
    tokio::time::advance(DEFAULT_GRACE - MOMENT).await;
    bench.put(NODES, node);
    bench.remove(NODES, "w1");
    bench.after(MOMENT).await;
    assert_eq!(bench.writes(), Vec::<String>::new());
    bench.after(CONFIRM).await;
    assert_eq!(bench.writes(), ["patch persistentvolumeclaims/one"; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_chosen_for_at_once_is_not_written_again() {
    let mut bench = Bench::with_claim_of_lost_node().await;
    // The event is made between the two writes.
    bench.choose_before_next("create", EVENTS);
    bench.after(CONFIRM).await;
    assert_eq!(bench.writes(), ["patch persistentvolumeclaims/one"]);
    assert_eq!(bench.selected("one").as_deref(), Some("w2"));
    assert_eq!(bench.node_gone("one"), None);
}

#[tokio::test(start_paused = true)]
async fn who_leads_anew_counts_anew() {
    let mut bench = Bench::new();
    bench.put(STORAGES, storage("w1"));
    bench.lose_node().await;
    tokio::time::advance(DEFAULT_GRACE - MOMENT).await;
    bench.cleanup = cleaner(&bench.api, &bench.extender, &bench.nodes);
    bench.cleanup.round().await;
    bench.after(DEFAULT_GRACE - MOMENT).await;
    assert_eq!(bench.writes(), Vec::<String>::new());
    bench.after(MOMENT).await;
    assert_eq!(bench.writes(), ["delete nodelocalstorages/fast.w1"]);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_given_elsewhere_or_served_at_the_last_moment_is_left_alone() {
    let mut bench = Bench::with_claim_of_lost_node().await;
    bench.choose_before_next("patch", CLAIMS);
    bench.after(CONFIRM).await;
    assert_eq!(bench.selected("one").as_deref(), Some("w2"));
    assert_eq!(bench.said(), Vec::<String>::new());

    let mut bench = Bench::with_claim_of_lost_node().await;
    let served = volume("one", "w1", "Available", "Delete");
    bench
        .api
        .before_next("get", VOLUMES, move |objects| objects.put(VOLUMES, served));
    bench.after(CONFIRM).await;
    assert_eq!(bench.selected("one").as_deref(), Some("w1"));
}

#[tokio::test(start_paused = true)]
async fn a_claim_with_data_is_kept_and_its_owner_told() {
    for policy in ["Delete", "Retain"] {
        let mut bench = Bench::new();
        bench.put(CLAIMS, claim("one", "w1", true));
        bench.put(VOLUMES, volume("one", "w1", "Bound", policy));
        bench.put(STORAGES, storage("w1"));
        bench.put(STORAGES, storage("w2"));
        bench.lose_node().await;
        bench.after(DEFAULT_GRACE - MOMENT).await;
        assert_eq!((bench.writes(), bench.said()), (vec![], vec![]));
        bench.after(MOMENT).await;
        assert_eq!(bench.writes(), ["delete nodelocalstorages/fast.w1"]);
        let told = [
            "NodeLocalStorage fast.w1: NodeGone",
            "PersistentVolume pvc-one: NodeGone",
            "PersistentVolumeClaim one: NodeGone",
        ];
        assert_eq!(bench.said(), told);
        // It is told once, and again before Kubernetes forgets it.
        bench.api.forget();
        bench.after(AGAIN - MOMENT).await;
        assert_eq!(bench.api.requests(), []);
        bench.after(MOMENT).await;
        let requests: Vec<String> = bench
            .api
            .requests()
            .iter()
            .map(quarry_fake_api::Request::text)
            .collect();
        assert!(requests.contains(&"create events/NodeGone".to_owned()), "{requests:?}");
        assert_eq!(bench.writes(), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_deleted_where_its_owner_asks_and_its_volume_follows() {
    let mut bench = Bench::new();
    let mut asked = claim("one", "w1", true);
    asked["metadata"]["annotations"][LOST_NODE_ANNOTATION] = json!(DELETE_CLAIM);
    asked["metadata"]["finalizers"] = json!(["kubernetes.io/pvc-protection"]);
    bench.put(CLAIMS, asked);
    bench.put(VOLUMES, volume("one", "w1", "Bound", "Delete"));
    bench.lose_node().await;
    // The owner thinks again at the last moment.
    let no = json!({"metadata": {"annotations": {LOST_NODE_ANNOTATION: null}}});
    bench
        .api
        .before_next("delete", CLAIMS, move |objects| objects.change(CLAIMS, "one", &no));
    bench.after(DEFAULT_GRACE).await;
    assert!(bench.get(CLAIMS, "one").expect("kept")["metadata"]["deletionTimestamp"].is_null());
    // And once more.
    let yes = json!({"metadata": {"annotations": {LOST_NODE_ANNOTATION: DELETE_CLAIM}}});
    bench.api.objects(|objects| objects.change(CLAIMS, "one", &yes));
    bench.after(RETRY).await;
    assert!(!bench.get(CLAIMS, "one").expect("protected")["metadata"]["deletionTimestamp"].is_null());
    bench.after(RETRY).await;
    assert!(bench.get(VOLUMES, "pvc-one").is_some(), "the claim is still there");
    // Kubernetes takes the claim away and says that the volume is released.
    bench.remove(CLAIMS, "one");
    bench
        .api
        .objects(|objects| objects.change(VOLUMES, "pvc-one", &json!({"status": {"phase": "Released"}})));
    bench.after(MOMENT).await;
    assert_eq!(bench.get(VOLUMES, "pvc-one"), None);
    let told = [
        "PersistentVolume pvc-one: VolumeLetGo",
        "PersistentVolumeClaim one: ClaimDeleted",
    ];
    assert_eq!(bench.said()[..2], told, "{:?}", bench.said());
}

#[tokio::test(start_paused = true)]
async fn volumes_without_a_claim_go_as_their_policy_says() {
    let mut bench = Bench::new();
    bench.put(VOLUMES, volume("deleted", "w1", "Released", "Delete"));
    bench.put(VOLUMES, volume("retained", "w1", "Released", "Retain"));
    bench.put(VOLUMES, volume("elsewhere", "w2", "Released", "Delete"));
    let mut going = volume("going", "w1", "Released", "Retain");
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    bench.put(VOLUMES, going);
    bench.lose_node().await;
    bench.after(DEFAULT_GRACE).await;
    let left: Vec<_> = bench
        .api
        .objects(|objects| objects.all(VOLUMES).iter().map(name).collect());
    assert_eq!(left, ["pvc-elsewhere".into(), "pvc-retained".into()]);
    let retained = bench.get(VOLUMES, "pvc-retained").expect("kept");
    assert_eq!(retained["metadata"]["finalizers"], json!(["quarry.dev/logical-volume"]));
    assert!(
        bench
            .said()
            .contains(&"PersistentVolume pvc-retained: NodeGone".to_owned())
    );
}

/// A node that is gone with something of every kind on it.
fn full() -> Bench {
    let mut bench = Bench::new();
    bench.put(CLAIMS, claim("waits", "w1", false));
    bench.put(CLAIMS, claim("kept", "w1", true));
    let mut asked = claim("asked", "w1", true);
    asked["metadata"]["annotations"][LOST_NODE_ANNOTATION] = json!(DELETE_CLAIM);
    bench.put(CLAIMS, asked);
    bench.put(VOLUMES, volume("kept", "w1", "Bound", "Delete"));
    bench.put(VOLUMES, volume("asked", "w1", "Bound", "Delete"));
    bench.put(VOLUMES, volume("old", "w1", "Released", "Delete"));
    bench.put(STORAGES, storage("w1"));
    bench
}

/// What is left at the end, however it came about.
fn assert_cleaned_up(bench: &Bench) {
    let names = |kind| -> Vec<Box<str>> {
        bench
            .api
            .objects(|objects| objects.all(kind).iter().map(name).collect())
    };
    assert_eq!(names(CLAIMS), ["kept".into(), "waits".into()]);
    assert_eq!(
        names(VOLUMES),
        ["pvc-asked".into(), "pvc-kept".into()],
        "of asked, Kubernetes says Released first"
    );
    assert_eq!(names(STORAGES), Vec::<Box<str>>::new());
    assert_eq!(bench.selected("waits"), None);
    let kept = bench.get(VOLUMES, "pvc-kept").expect("kept");
    assert!(kept["metadata"]["deletionTimestamp"].is_null());
}

#[tokio::test(start_paused = true)]
async fn two_leaders_at_once_do_no_harm() {
    for concurrent in [true, false] {
        let mut bench = full();
        let mut other = cleaner(&bench.api, &bench.extender, &bench.nodes);
        bench.lose_node().await;
        other.round().await;
        tokio::time::advance(DEFAULT_GRACE).await;
        // Both act on the same watched objects: what one does, the other has not seen.
        if concurrent {
            futures::join!(bench.cleanup.round(), other.round());
        } else {
            bench.cleanup.round().await;
            other.round().await;
        }
        assert_cleaned_up(&bench);
        let told = bench.said();
        let once: std::collections::BTreeSet<_> = told.iter().collect();
        assert_eq!(told.len(), once.len(), "the same is said once: {told:?}");
        // One of them is late by a scheduler's decision: it is not undone.
        let elsewhere = json!({"metadata": {"annotations": {SELECTED_NODE: "w2"}}});
        bench.api.objects(|objects| objects.change(CLAIMS, "waits", &elsewhere));
        tokio::time::advance(AGAIN).await;
        other.round().await;
        assert_eq!(bench.selected("waits").as_deref(), Some("w2"));
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_request_fails_the_end_is_the_same() {
    let mut requests = 0;
    for failing in 1.. {
        let mut bench = full();
        bench.lose_node().await;
        tokio::time::advance(DEFAULT_GRACE).await;
        bench.api.forget();
        bench.api.fail_nth(failing, 500);
        bench.cleanup.round().await;
        let asked = bench.api.requests().len();
        bench.after(RETRY).await;
        bench.after(RETRY).await;
        assert_cleaned_up(&bench);
        if failing > asked {
            break;
        }
        requests = failing;
    }
    assert!(requests > 15, "{requests} requests were failed in turn");
}

#[tokio::test(start_paused = true)]
async fn who_does_not_lead_does_nothing() {
    let mut bench = full();
    let (_candidate, leads) = quarry_process::leader::Candidate::new(
        bench.api.client(),
        "quarry-system",
        LEASE,
        "other",
        quarry_process::leader::Times::default(),
    );
    bench.cleanup.leads = leads;
    bench.lose_node().await;
    bench.after(DEFAULT_GRACE).await;
    assert_eq!(bench.writes(), Vec::<String>::new());
}
