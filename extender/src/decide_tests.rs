//! Tests of single decisions; bursts are in `burst_tests.rs`.

use quarry_crds::names::BETA_STORAGE_CLASS;
use serde_json::json;

use super::*;
use crate::testing::{
    Put, bound, filled, mk_claim, mk_class, mk_class_with, mk_foreign_class, mk_pod, mk_storage, names, selected,
};

const AT_ONCE: Duration = Duration::ZERO;
const AT_LAST: Duration = Duration::from_secs(3600);

/// Three nodes with a group of 100 extents for class `fast`, and one without.
fn cluster() -> Index {
    let mut index = filled();
    mk_class("fast").put(&mut index);
    mk_foreign_class("other").put(&mut index);
    for node in ["n0", "n1", "n2"] {
        mk_storage("fast", node, "vg", 100, 0).put(&mut index);
    }
    index
}

const NODES: [&str; 4] = ["n0", "n1", "n2", "bare"];

struct Bench {
    index: Index,
    answered: Answered,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self {
            index: cluster(),
            answered: Answered::default(),
            now: Instant::now(),
        }
    }

    fn ask(&mut self, pod: &Pod<'_>, nodes: &[&str], waited: Duration) -> Verdict {
        let (index, patience) = (&self.index, Patience::default());
        filter(
            index,
            &mut self.answered,
            pod,
            &names(nodes),
            &patience,
            self.now,
            waited,
        )
    }

    fn passed(&mut self, pod: &Pod<'_>, nodes: &[&str], waited: Duration) -> Vec<String> {
        match self.ask(pod, nodes, waited) {
            Verdict::Answer(Answer::Some { passed, .. }) => passed.iter().map(|at| nodes[*at].to_owned()).collect(),
            other => panic!("no answer: {other:?}"),
        }
    }

    fn reason(&mut self, pod: &Pod<'_>, node: &str) -> String {
        match self.ask(pod, &[node], AT_LAST) {
            Verdict::Answer(Answer::Some {
                passed,
                refused,
                reasons,
            }) if passed.is_empty() => reasons[refused[0].1].text.to_string(),
            other => panic!("not refused: {other:?}"),
        }
    }
}

#[test]
fn nodes_with_room_pass() {
    let mut bench = Bench::new();
    mk_claim("a", "fast", 100).put(&mut bench.index);
    mk_claim("b", "fast", 101).put(&mut bench.index);
    assert_eq!(bench.passed(&mk_pod("p", &["a"]), &NODES, AT_ONCE), ["n0", "n1", "n2"]);
    assert_eq!(
        bench.reason(&mk_pod("q", &["b"]), "n0"),
        "node(s) had not enough free local storage in volume group vg"
    );
    assert_eq!(
        bench.reason(&mk_pod("q", &["b"]), "bare"),
        "node(s) had no local storage of StorageClass fast"
    );
    assert_eq!(
        bench.reason(&mk_pod("q", &["b"]), "unheard-of"),
        "node(s) had no local storage of StorageClass fast"
    );
}

#[test]
fn claims_of_one_pod_are_summed() {
    let mut bench = Bench::new();
    mk_claim("a", "fast", 60).put(&mut bench.index);
    mk_claim("b", "fast", 60).put(&mut bench.index);
    assert_eq!(bench.passed(&mk_pod("p", &["a"]), &["n0"], AT_ONCE), ["n0"]);
    bench.answered = Answered::default();
    assert!(bench.reason(&mk_pod("p", &["a", "b"]), "n0").contains("not enough"));
}

#[test]
fn before_the_caches_are_filled_nothing_is_said() {
    let mut bench = Bench::new();
    bench.index = Index::default();
    let verdict = bench.ask(&mk_pod("p", &["a"]), &NODES, AT_ONCE);
    let Verdict::Answer(Answer::Error(Doubt::NotReady, text)) = verdict else {
        panic!("answered: {verdict:?}");
    };
    assert!(
        text.starts_with("not ready, caches are being filled: storageclasses"),
        "{text}"
    );
}

#[test]
fn foreign_claims_never_matter() {
    let mut bench = Bench::new();
    let index = &mut bench.index;
    mk_claim("theirs", "other", 1 << 40).put(index);
    mk_claim("bound", "gone", 1).put(index);
    let mut classless = mk_claim("static", "fast", 1);
    classless.spec.get_or_insert_default().storage_class_name = Some(String::new());
    classless.put(index);
    let mut legacy = mk_claim("legacy", "fast", 1 << 40);
    legacy.metadata.annotations = Some([(BETA_STORAGE_CLASS.to_owned(), "other".to_owned())].into());
    legacy.put(index);
    bound(mk_claim("bound", "gone", 1)).put(index);
    bound(selected(mk_claim("ours", "fast", 1 << 40), "n0")).put(index);
    let pod = mk_pod("p", &["theirs", "static", "legacy", "bound", "ours"]);
    assert_eq!(bench.ask(&pod, &NODES, AT_ONCE), Verdict::Answer(Answer::All));
    assert!(
        prioritize(&bench.index, &pod, &names(&NODES)).is_empty(),
        "all nodes are alike"
    );
}

#[test]
fn what_was_not_seen_yet_is_waited_for() {
    let mut bench = Bench::new();
    let pod = mk_pod("p", &["a"]);
    assert!(matches!(
        bench.ask(&pod, &NODES, AT_ONCE),
        Verdict::Wait(Doubt::Unseen, _)
    ));
    assert!(matches!(
        bench.ask(&pod, &NODES, AT_LAST),
        Verdict::Answer(Answer::Error(Doubt::Unseen, _))
    ));
    mk_claim("a", "new", 1).put(&mut bench.index);
    assert!(matches!(
        bench.ask(&pod, &NODES, AT_ONCE),
        Verdict::Wait(Doubt::Unseen, _)
    ));
    mk_class("new").put(&mut bench.index);
    assert_eq!(
        bench.reason(&pod, "n0"),
        "node(s) had no local storage of StorageClass new"
    );
}

#[test]
fn an_ephemeral_volume_belongs_to_its_pod() {
    let mut bench = Bench::new();
    let sent = r#"{"metadata": {"name": "web", "namespace": "db", "uid": "uid-new"},
        "spec": {"volumes": [{"name": "tmp", "ephemeral": {"volumeClaimTemplate": {}}}]}}"#;
    let pod: Pod<'_> = serde_json::from_str(sent).expect("a pod");
    let owned = |uid: &str| {
        let mut claim = mk_claim("web-tmp", "fast", 10);
        let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": uid, "controller": true}]);
        claim.metadata.owner_references = serde_json::from_value(owner).ok();
        claim
    };
    owned("uid-old").put(&mut bench.index);
    assert!(matches!(
        bench.ask(&pod, &NODES, AT_ONCE),
        Verdict::Wait(Doubt::Unseen, _)
    ));
    owned("uid-new").put(&mut bench.index);
    assert_eq!(bench.passed(&pod, &NODES, AT_ONCE), ["n0", "n1", "n2"]);
}

#[test]
fn a_selected_claim_pins_the_pod_and_is_not_counted_again() {
    let mut bench = Bench::new();
    selected(mk_claim("a", "fast", 80), "n1").put(&mut bench.index);
    let pod = mk_pod("p", &["a"]);
    assert_eq!(bench.passed(&pod, &["n1"], AT_ONCE), ["n1"]);
    assert!(
        matches!(bench.ask(&pod, &NODES, AT_ONCE), Verdict::Wait(Doubt::Unseen, _)),
        "the scheduler offers others only once it knows the selection to be withdrawn"
    );
    mk_claim("b", "fast", 30).put(&mut bench.index);
    assert!(bench.reason(&mk_pod("p", &["a", "b"]), "n1").contains("not enough"));
    mk_claim("b", "fast", 20).put(&mut bench.index);
    assert_eq!(bench.passed(&mk_pod("p", &["a", "b"]), &["n1"], AT_ONCE), ["n1"]);
}

#[test]
fn what_cannot_be_served_is_refused_everywhere_with_the_reason() {
    let mut bench = Bench::new();
    let mut shared = mk_claim("shared", "fast", 1);
    shared.spec.get_or_insert_default().access_modes = Some(vec!["ReadWriteMany".into()]);
    shared.put(&mut bench.index);
    assert!(
        bench
            .reason(&mk_pod("p", &["shared"]), "bare")
            .starts_with("PersistentVolumeClaim shared: spec.accessModes: ReadWriteMany")
    );
    mk_class_with("wrong", json!({"nodes": "[]", "color": "red"})).put(&mut bench.index);
    mk_claim("a", "wrong", 1).put(&mut bench.index);
    let reason = bench.reason(&mk_pod("p", &["a"]), "n0");
    assert!(
        reason.starts_with("StorageClass wrong is invalid: ") && reason.contains("color"),
        "{reason}"
    );
    let xfs = json!({"nodes": r#"[{"names": ["n0"], "disks": ["/dev/disk/by-id/a"]}]"#, "fsType": "xfs"});
    mk_class_with("xfs", xfs).put(&mut bench.index);
    mk_claim("small", "xfs", 1).put(&mut bench.index);
    assert!(
        bench
            .reason(&mk_pod("p", &["small"]), "n0")
            .contains("too small for xfs")
    );
}

#[test]
fn a_storage_that_is_not_ready_takes_nothing() {
    let mut bench = Bench::new();
    let mut storage = mk_storage("fast", "n0", "vg", 100, 0);
    storage.status.get_or_insert_default().conditions.clear();
    storage.put(&mut bench.index);
    mk_claim("a", "fast", 1).put(&mut bench.index);
    assert_eq!(bench.passed(&mk_pod("p", &["a"]), &NODES, AT_ONCE), ["n1", "n2"]);
    assert_eq!(
        bench.reason(&mk_pod("p", &["a"]), "n0"),
        "node(s) had local storage of StorageClass fast not ready"
    );
}

#[test]
fn nothing_new_goes_where_nobody_would_make_it() {
    let mut bench = Bench::new();
    mk_claim("a", "fast", 1).put(&mut bench.index);
    selected(mk_claim("b", "fast", 1), "n0").put(&mut bench.index);
    bench.index.silence(&["n0".to_owned(), "bare".to_owned()].into());
    let pod = mk_pod("p", &["a"]);
    assert_eq!(bench.passed(&pod, &NODES, AT_ONCE), ["n1", "n2"]);
    assert_eq!(bench.reason(&pod, "n0"), "node(s) had no Quarry manager at work");
    assert_eq!(bench.index.silent(), 1);
    // What is there already, or on its way, is not held up.
    assert_eq!(bench.passed(&mk_pod("q", &["b"]), &["n0"], AT_LAST), ["n0"]);
    // A node that is known later, and one that is heard of again.
    mk_storage("fast", "bare", "vg", 100, 0).put(&mut bench.index);
    assert_eq!(bench.passed(&pod, &NODES, AT_ONCE), ["n1", "n2"]);
    bench.index.silence(&["bare".to_owned()].into());
    assert_eq!(bench.passed(&pod, &NODES, AT_ONCE), ["n0", "n1", "n2"]);
}

#[test]
fn the_emptier_node_scores_higher_unless_packed() {
    let mut bench = Bench::new();
    selected(mk_claim("x", "fast", 90), "n0").put(&mut bench.index);
    mk_claim("a", "fast", 10).put(&mut bench.index);
    let pod = mk_pod("p", &["a"]);
    assert_eq!(prioritize(&bench.index, &pod, &names(&NODES)), [0, 9, 9, 0]);
    let packed = json!({"nodes": r#"[{"names": ["n0"], "disks": ["/dev/disk/by-id/a"]}]"#, "scoring": "binpack"});
    mk_class_with("fast", packed).put(&mut bench.index);
    assert_eq!(prioritize(&bench.index, &pod, &names(&NODES)), [10, 1, 1, 0]);
}

#[test]
fn a_pod_answered_just_before_is_waited_for_only_where_it_matters() {
    let mut bench = Bench::new();
    for (claim, extents) in [("a", 60), ("b", 60), ("c", 40)] {
        mk_claim(claim, "fast", extents).put(&mut bench.index);
    }
    let (a, b, c) = (mk_pod("a", &["a"]), mk_pod("b", &["b"]), mk_pod("c", &["c"]));
    assert_eq!(bench.passed(&a, &NODES, AT_ONCE), ["n0", "n1", "n2"]);
    assert_eq!(
        bench.passed(&c, &NODES, AT_ONCE),
        ["n0", "n1", "n2"],
        "fits beside it wherever it is"
    );
    bench.answered.forget("uid-c");
    assert!(
        matches!(bench.ask(&b, &NODES, AT_ONCE), Verdict::Wait(Doubt::Crowded, _)),
        "any node may have been taken"
    );
    selected(mk_claim("a", "fast", 60), "n1").put(&mut bench.index);
    assert_eq!(bench.passed(&b, &NODES, AT_ONCE), ["n0", "n2"]);
    bound(selected(mk_claim("a", "fast", 60), "n1")).put(&mut bench.index);
    assert_eq!(bench.passed(&b, &NODES, AT_ONCE), ["n0", "n2"]);
    assert_eq!(bench.answered.len(), 1, "only the second one is still to be placed");
}

#[test]
fn where_the_node_never_shows_the_pod_is_counted_on_each_then_given_up() {
    let mut bench = Bench::new();
    for claim in ["a", "b"] {
        mk_claim(claim, "fast", 60).put(&mut bench.index);
    }
    let (a, b) = (mk_pod("a", &["a"]), mk_pod("b", &["b"]));
    bench.passed(&a, &["n0", "n1"], AT_ONCE);
    assert!(matches!(bench.ask(&b, &NODES, AT_ONCE), Verdict::Wait(..)));
    assert_eq!(bench.passed(&b, &NODES, Duration::from_millis(50)), ["n2"]);
    assert!(
        matches!(
            bench.ask(&b, &["n0", "n1"], Duration::from_millis(50)),
            Verdict::Wait(Doubt::Crowded, _)
        ),
        "no node is certain: a longer wait is cheaper than another attempt"
    );
    assert_eq!(
        bench.reason(&b, "n0"),
        "node(s) had local storage that pods scheduled just before may take"
    );
    bench.now += Patience::default().remembered;
    assert_eq!(bench.passed(&b, &["n0", "n1"], AT_ONCE), ["n0", "n1"]);
}

#[test]
fn a_pod_asked_for_again_is_in_no_one_s_way_twice() {
    let mut bench = Bench::new();
    mk_claim("a", "fast", 60).put(&mut bench.index);
    let a = mk_pod("a", &["a"]);
    for _ in 0..3 {
        assert_eq!(bench.passed(&a, &NODES, AT_ONCE), ["n0", "n1", "n2"]);
    }
    assert_eq!(bench.answered.len(), 1);
    mk_claim("a", "fast", 60).take(&mut bench.index);
    mk_claim("b", "fast", 60).put(&mut bench.index);
    assert_eq!(
        bench.passed(&mk_pod("b", &["b"]), &NODES, AT_ONCE),
        ["n0", "n1", "n2"],
        "its claim is gone"
    );
}

/// A reason as a decision gives it.
pub(crate) fn reason(text: Cow<'static, str>) -> Reason {
    Reason {
        cause: Cause::NoRoom,
        subject: (0, 0),
        text,
    }
}
