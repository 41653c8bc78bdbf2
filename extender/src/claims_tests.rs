//! Claims that are not simply new: refused by nodes, served by volumes that are there, filled by other controllers, being
//! deleted.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use quarry_crds::names::REFUSED_BY_ANNOTATION;
use serde_json::{Value, json};

use crate::answered::Answered;
use crate::decide::{Answer, Cause, Patience, Verdict, filter, prioritize};
use crate::index::Index;
use crate::testing::{Put, bound, filled, free, mk_claim, mk_class, mk_pod, mk_storage, mk_volume, names, selected};

const NODES: [&str; 3] = ["n0", "n1", "n2"];

struct Bench {
    index: Index,
    answered: Answered,
    now: Instant,
}

/// Three nodes with a group of 100 extents for class `fast`.
fn bench() -> Bench {
    let mut index = filled();
    mk_class("fast").put(&mut index);
    for node in NODES {
        mk_storage("fast", node, "vg", 100, 0).put(&mut index);
    }
    Bench {
        index,
        answered: Answered::default(),
        now: Instant::now(),
    }
}

impl Bench {
    /// The nodes that pass for a pod with these claims, and why the others do not.
    fn ask(&mut self, pod: &str, claims: &[&str]) -> (Vec<&'static str>, Vec<(Cause, String)>) {
        let (pod, patience) = (mk_pod(pod, claims), Patience::default());
        let waited = Duration::from_secs(3600);
        let verdict = filter(
            &self.index,
            &mut self.answered,
            &pod,
            &names(&NODES),
            &patience,
            self.now,
            waited,
        );
        let Verdict::Answer(Answer::Some { passed, reasons, .. }) = verdict else {
            panic!("no answer: {verdict:?}");
        };
        let reasons = reasons
            .into_iter()
            .map(|reason| (reason.cause, reason.text.into_owned()));
        (passed.into_iter().map(|at| NODES[at]).collect(), reasons.collect())
    }

    fn passed(&mut self, pod: &str, claims: &[&str]) -> Vec<&'static str> {
        self.ask(pod, claims).0
    }
}

fn changed(claim: PersistentVolumeClaim, pointer: &str, value: Value) -> PersistentVolumeClaim {
    let mut object = serde_json::to_value(claim).expect("an object");
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object.pointer_mut(parent).expect("it is there");
    parent[key] = value;
    serde_json::from_value(object).expect("a claim")
}

fn refused(by: &str) -> PersistentVolumeClaim {
    let annotations = json!({REFUSED_BY_ANNOTATION: by});
    changed(mk_claim("a", "fast", 10), "/metadata/annotations", annotations)
}

#[test]
fn a_node_that_refused_a_claim_is_left_alone_by_it_for_a_time_that_grows() {
    let mut bench = bench();
    mk_claim("b", "fast", 10).put(&mut bench.index);
    refused("n1=1").put(&mut bench.index);
    let (passed, reasons) = bench.ask("p", &["a"]);
    assert_eq!(passed, ["n0", "n2"]);
    assert_eq!(reasons[0].0, Cause::Refused);
    assert_eq!(bench.passed("q", &["b"]), NODES, "other claims go there");
    bench.now += Duration::from_secs(16);
    assert_eq!(bench.passed("p", &["a"]), NODES);
    refused("n1=3").put(&mut bench.index);
    bench.now += Duration::from_secs(40);
    assert_eq!(bench.passed("p", &["a"]), ["n0", "n2"], "longer than after the first");
    // Whatever else changes on the claim does not begin the time anew.
    let labelled = changed(refused("n1=3"), "/metadata/labels", json!({"new": "yes"}));
    labelled.put(&mut bench.index);
    bench.now += Duration::from_secs(60);
    bench.answered = Answered::default();
    assert_eq!(bench.passed("p", &["a"]), NODES);
}

fn available(mut volume: PersistentVolume, size: u64) -> PersistentVolume {
    let spec = json!({"capacity": {"storage": format!("{}Mi", size * 4)}, "accessModes": ["ReadWriteOnce"],
                      "volumeMode": "Filesystem", "storageClassName": "fast"});
    volume.spec = serde_json::from_value(spec).expect("a specification");
    volume.status = serde_json::from_value(json!({"phase": "Available"})).expect("a status");
    volume.metadata.labels = Some([("tier".to_owned(), "gold".to_owned())].into());
    volume
}

/// A volume of 90 extents on n1 that was kept and is free for a claim; every node is too full for another such.
fn kept() -> Bench {
    let mut bench = bench();
    for node in ["n0", "n2"] {
        mk_volume(&format!("other-{node}"), node, "vg", 90).put(&mut bench.index);
    }
    available(mk_volume("old", "n1", "vg", 90), 90).put(&mut bench.index);
    mk_claim("a", "fast", 90).put(&mut bench.index);
    bench
}

#[test]
fn a_claim_that_a_volume_would_serve_needs_no_room_on_its_node() {
    let mut bench = kept();
    assert_eq!(bench.passed("p", &["a"]), ["n1"]);
    // What the volume does not serve is asked of the node beside it.
    let raw = |name, size| changed(mk_claim(name, "fast", size), "/spec/volumeMode", json!("Block"));
    raw("b", 10).put(&mut bench.index);
    raw("c", 11).put(&mut bench.index);
    assert_eq!(bench.passed("p", &["a", "b"]), ["n1"]);
    let (passed, reasons) = bench.ask("p", &["a", "c"]);
    assert_eq!(passed, [""; 0]);
    assert!(reasons.iter().all(|(cause, _)| *cause == Cause::NoRoom), "{reasons:?}");
    for field in ["/spec/storageClassName", "/spec/volumeMode"] {
        let value = if field.ends_with("Mode") { "Block" } else { "slow" };
        mk_class("slow").put(&mut bench.index);
        changed(mk_claim("a", "fast", 90), field, json!(value)).put(&mut bench.index);
        assert_eq!(bench.passed("p", &["a"]), [""; 0], "{field}");
    }
}

#[test]
fn the_volume_is_promised_to_one_pod_at_a_time_and_preferred() {
    let mut bench = kept();
    mk_claim("b", "fast", 90).put(&mut bench.index);
    assert_eq!(bench.passed("p", &["a"]), ["n1"]);
    assert_eq!(bench.passed("q", &["b"]), [""; 0], "the other may be bound to it");
    let mut taken = available(mk_volume("old", "n1", "vg", 90), 90);
    taken.status = serde_json::from_value(json!({"phase": "Bound"})).ok();
    taken.put(&mut bench.index);
    assert_eq!(bench.passed("q", &["b"]), [""; 0], "no more volume there");

    let mut bench = kept();
    mk_claim("a", "fast", 5).put(&mut bench.index);
    let scores = prioritize(&bench.index, &mk_pod("p", &["a"]), &names(&NODES));
    assert_eq!(scores, [0, 10, 0]);
}

#[test]
fn a_selector_is_no_mistake_where_a_volume_fits_it() {
    let mut bench = kept();
    let gold = |tier: &str| {
        changed(
            mk_claim("a", "fast", 5),
            "/spec/selector",
            json!({"matchLabels": {"tier": tier}}),
        )
    };
    gold("gold").put(&mut bench.index);
    let (passed, reasons) = bench.ask("p", &["a"]);
    assert_eq!(passed, ["n1"]);
    assert!(reasons[0].1.contains("spec.selector"), "{reasons:?}");
    gold("iron").put(&mut bench.index);
    let (passed, reasons) = bench.ask("p", &["a"]);
    assert_eq!((passed, reasons[0].0), (vec![], Cause::InvalidClaim));
    // Another pod has the volume: nothing is made in its place.
    gold("gold").put(&mut bench.index);
    assert_eq!(bench.passed("p", &["a"]), ["n1"]);
    let selector = json!({"matchLabels": {"tier": "gold"}});
    changed(mk_claim("b", "fast", 5), "/spec/selector", selector).put(&mut bench.index);
    let (passed, reasons) = bench.ask("q", &["b"]);
    assert_eq!((passed, reasons[0].0), (vec![], Cause::InvalidClaim));
}

#[test]
fn a_claim_with_attributes_is_refused_with_the_reason() {
    let mut bench = bench();
    let claim = changed(
        mk_claim("a", "fast", 5),
        "/spec/volumeAttributesClassName",
        json!("gold"),
    );
    claim.put(&mut bench.index);
    let (passed, reasons) = bench.ask("p", &["a"]);
    assert_eq!((passed, reasons[0].0), (vec![], Cause::InvalidClaim));
    assert!(
        reasons[0].1.contains("spec.volumeAttributesClassName: \"gold\""),
        "{reasons:?}"
    );
}

fn imported() -> PersistentVolumeClaim {
    let source = json!({"apiGroup": "backup.io", "kind": "Backup", "name": "monday"});
    changed(mk_claim("a", "fast", 60), "/spec/dataSourceRef", source)
}

#[test]
fn a_claim_that_another_controller_fills_gets_a_node_and_counts_once() {
    let mut bench = bench();
    let left = |bench: &Bench| free(&bench.index, "fast", "n1");
    imported().put(&mut bench.index);
    assert_eq!(bench.passed("p", &["a"]), NODES);
    selected(imported(), "n1").put(&mut bench.index);
    assert_eq!(left(&bench), Some(40));
    let prime = || {
        let mut prime = mk_claim("prime-uid-a", "fast", 60);
        prime.metadata.uid = Some("uid-prime".to_owned());
        prime
    };
    prime().put(&mut bench.index);
    assert_eq!(left(&bench), Some(40), "it has no node yet");
    selected(prime(), "n1").put(&mut bench.index);
    assert_eq!(left(&bench), Some(40));
    mk_volume("prime", "n1", "vg", 60).put(&mut bench.index);
    bound(selected(prime(), "n1")).put(&mut bench.index);
    assert_eq!(left(&bench), Some(40), "however long it is being filled");
    // The volume is bound to the claim that it was filled for, and the other is lost and deleted.
    let mut served = selected(imported(), "n1");
    served.spec.get_or_insert_default().volume_name = Some("pvc-uid-prime".to_owned());
    served.put(&mut bench.index);
    prime().take(&mut bench.index);
    assert_eq!(left(&bench), Some(40));
}

#[test]
fn where_the_other_controller_gives_up_its_claim_the_first_counts_again() {
    let mut bench = bench();
    selected(imported(), "n1").put(&mut bench.index);
    let prime = selected(mk_claim("prime-uid-a", "fast", 60), "n1");
    prime.put(&mut bench.index);
    prime.take(&mut bench.index);
    assert_eq!(free(&bench.index, "fast", "n1"), Some(40));
    selected(imported(), "n1").take(&mut bench.index);
    assert_eq!(free(&bench.index, "fast", "n1"), Some(100));
}

#[test]
fn a_claim_that_is_being_deleted_takes_no_room() {
    let mut bench = bench();
    let going = changed(
        selected(mk_claim("a", "fast", 60), "n1"),
        "/metadata/deletionTimestamp",
        json!("2026-01-01T00:00:00Z"),
    );
    going.put(&mut bench.index);
    assert_eq!(free(&bench.index, "fast", "n1"), Some(100));
    // Nor does it while nobody knows where its pod goes.
    mk_claim("b", "fast", 60).put(&mut bench.index);
    mk_claim("c", "fast", 60).put(&mut bench.index);
    assert_eq!(bench.passed("p", &["b"]), NODES);
    assert_eq!(bench.passed("q", &["c"]), [""; 0]);
    let going = changed(
        mk_claim("b", "fast", 60),
        "/metadata/deletionTimestamp",
        json!("2026-01-01T00:00:00Z"),
    );
    going.put(&mut bench.index);
    assert_eq!(bench.passed("q", &["c"]), NODES);
}
