use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use quarry_crds::NodeLocalStorage;
use serde_json::{Value, json};

use super::*;
use crate::plugin::text;
use crate::testing::{NAMESPACE, bound, mk_claim, mk_class_with, mk_storage, mk_volume, selected};

/// The cluster of a test: nodes n0, n1 and n2, of which class `fast` names the first two.
#[derive(Default)]
struct Cluster {
    claims: Vec<PersistentVolumeClaim>,
    volumes: Vec<PersistentVolume>,
    more_storages: Vec<NodeLocalStorage>,
    not_ready: bool,
    nodes: Option<Vec<Node>>,
}

fn node(name: &str, taints: Value) -> Node {
    let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"});
    let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}});
    serde_json::from_value(node).expect("a node")
}

fn class() -> StorageClass {
    let mut class = mk_class_with(
        "fast",
        json!({"nodes": r#"[{"names": ["n0", "n1"], "disks": ["/dev/disk/by-id/a"]}]"#}),
    );
    class.volume_binding_mode = Some("WaitForFirstConsumer".to_owned());
    class
}

impl Cluster {
    fn of(claims: Vec<PersistentVolumeClaim>) -> Self {
        Self {
            claims,
            ..Self::default()
        }
    }

    fn snapshot(self) -> Snapshot {
        // 100 extents of 4 MiB on n0, and 50 on n1 of which others use 10.
        let mut storages = vec![
            mk_storage("fast", "n0", "fast", 100, 0),
            mk_storage("fast", "n1", "fast", 50, 10),
        ];
        if self.not_ready {
            for storage in &mut storages {
                let status = storage.status.as_mut().expect("a status");
                status.conditions[0].status = "False".to_owned();
                status.conditions[0].reason = "DiskRejected".to_owned();
                status.conditions[0].message = "/dev/disk/by-id/a holds ext4".to_owned();
            }
        }
        storages.extend(self.more_storages);
        let nodes = self
            .nodes
            .unwrap_or_else(|| ["n0", "n1", "n2"].map(|name| node(name, json!([]))).into());
        Snapshot::of(vec![class()], storages, &self.volumes, &self.claims, nodes)
    }
}

fn mk_pod(claims: &[&str], more: &[(&str, Value)]) -> Pod {
    let volumes: Vec<Value> = claims
        .iter()
        .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}}))
        .collect();
    let mut pod = json!({
        "metadata": {"name": "web", "namespace": NAMESPACE, "uid": "uid-web"}, "spec": {"volumes": volumes},
    });
    for (path, value) in more {
        let (parent, field) = path.rsplit_once('/').expect("a path");
        let parent = parent.trim_start_matches('/');
        pod[parent][field] = value.clone();
    }
    serde_json::from_value(pod).expect("a pod")
}

fn helped(why: &Why, parts: &[&str]) {
    let found = why.help.iter().any(|help| parts.iter().all(|part| help.contains(part)));
    assert!(found, "none of {:#?} has all of {parts:?}", why.help);
}

#[test]
fn a_pod_that_fits_nowhere_is_told_the_figures_of_every_node() {
    let cluster = Cluster {
        volumes: vec![mk_volume("old", "n0", "fast", 20)],
        ..Cluster::of(vec![
            mk_claim("data", "fast", 60),
            selected(mk_claim("first", "fast", 30), "n0"),
            bound(mk_claim("old", "fast", 20)),
        ])
    };
    let pod = mk_pod(&["data"], &[("/status/conditions", json!([]))]);
    let why = super::pod(&cluster.snapshot(), &pod);
    assert_eq!(why.outcome, Outcome::FitsNowhere);
    let row = |name: &str| why.nodes.iter().find(|node| node.node == name).expect("a row");
    let mib = |count: u64| count << 20;
    assert_eq!(
        row("n0").groups,
        [GroupRow {
            volume_group: "fast".into(),
            asked_bytes: mib(240),
            free_bytes: mib(200),
            missing_bytes: mib(40),
            in_flight_bytes: mib(120),
            size_bytes: mib(400),
            in_flight: vec![InFlight {
                claim: format!("{NAMESPACE}/first"),
                bytes: mib(120),
            }],
        }]
    );
    assert_eq!(row("n1").groups[0].free_bytes, mib(160));
    assert_eq!(row("n0").cause, Some("no_room"));
    assert_eq!(
        row("n0").reason.as_deref(),
        Some("node(s) had not enough free local storage in volume group fast"),
        "the words that kube-scheduler is told"
    );
    assert_eq!(row("n2").cause, Some("not_in_class"));
    helped(&why, &["n0 comes nearest", "lacks 40Mi", "200Mi or less"]);
    helped(&why, &["120Mi", "in flight to db/first"]);
    let text = text::why(&why, false);
    for line in [
        "NODE   VG     ASKED   FREE    IN FLIGHT   SIZE    VERDICT",
        "n0     fast   240Mi   200Mi   120Mi       400Mi   lacks 40Mi",
        "n1     fast   240Mi   160Mi   0           200Mi   lacks 80Mi",
        "n2     -      -       -       -           -       no local storage of StorageClass fast",
        "n0     fast   120Mi       db/first",
    ] {
        assert!(text.lines().any(|known| known == line), "{line:?} is not in\n{text}");
    }
}

#[test]
fn what_is_said_is_what_the_extender_answers() {
    for extents in [1, 40, 41, 50, 51, 100, 101] {
        let snapshot = Cluster::of(vec![mk_claim("data", "fast", extents)]).snapshot();
        let why = super::pod(&snapshot, &mk_pod(&["data"], &[]));
        let sent = as_sent(&mk_pod(&["data"], &[]));
        let names = crate::testing::names(&["n0", "n1", "n2"]);
        let Answer::Some { passed, .. } = decided(&snapshot, &sent, &names) else {
            panic!("an answer");
        };
        let fits: Vec<usize> = (0..3).filter(|at| why.nodes[*at].fits).collect();
        assert_eq!(fits, passed, "{extents}");
        for node in &why.nodes {
            let missing = node.groups.iter().any(|group| group.missing_bytes > 0);
            assert_eq!(missing, node.cause == Some("no_room"), "{node:?}");
        }
    }
}

#[test]
fn a_node_that_has_room_but_is_cordoned_is_named() {
    let cordoned = json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]);
    let cluster = Cluster {
        nodes: Some(vec![node("n0", cordoned), node("n1", json!([]))]),
        ..Cluster::of(vec![mk_claim("data", "fast", 60)])
    };
    let snapshot = cluster.snapshot();
    let why = super::pod(&snapshot, &mk_pod(&["data"], &[]));
    assert_eq!(why.outcome, Outcome::Fits);
    helped(&why, &["n0 has room, but is cordoned"]);
    assert!(text::why(&why, false).contains("has room, but is cordoned"));
    let tolerant = mk_pod(&["data"], &[("/spec/tolerations", json!([{"operator": "Exists"}]))]);
    assert!(super::pod(&snapshot, &tolerant).nodes[0].remarks.is_empty());
}

#[test]
fn a_pod_follows_the_volume_that_it_has() {
    let cluster = Cluster {
        volumes: vec![mk_volume("old", "n1", "fast", 20)],
        ..Cluster::of(vec![bound(mk_claim("old", "fast", 20)), mk_claim("new", "fast", 30)])
    };
    let why = super::pod(&cluster.snapshot(), &mk_pod(&["old", "new"], &[]));
    assert_eq!(why.outcome, Outcome::FitsNowhere, "20 extents are left on n1");
    assert_eq!(why.nodes[0].reason.as_deref(), Some("claim old belongs to node n1"));
    assert_eq!(why.nodes[1].cause, Some("no_room"));
    helped(&why, &["n1 comes nearest"]);
    helped(&why, &["40Mi of volume group fast on node n1", "did not make"]);
}

#[test]
fn claims_and_classes_that_are_missing_are_named() {
    let why = super::pod(&Cluster::default().snapshot(), &mk_pod(&["data"], &[]));
    assert_eq!(why.outcome, Outcome::Unclear);
    assert!(why.summary.contains("claim data: does not exist"), "{}", why.summary);
    helped(&why, &["create claim data"]);
    let snapshot = Cluster::of(vec![mk_claim("data", "slow", 1)]).snapshot();
    let why = super::pod(&snapshot, &mk_pod(&["data"], &[]));
    helped(&why, &["create StorageClass slow"]);
    let pod = mk_pod(&[], &[]);
    assert_eq!(super::pod(&snapshot, &pod).outcome, Outcome::NothingAsked);
}

#[test]
fn claims_that_cannot_be_served_are_told_in_the_words_of_their_events() {
    let mut shared = mk_claim("data", "fast", 1);
    shared.spec.get_or_insert_default().access_modes = Some(vec!["ReadWriteMany".to_owned()]);
    let snapshot = Cluster::of(vec![shared, mk_claim("huge", "fast", 1000)]).snapshot();
    let why = super::pod(&snapshot, &mk_pod(&["data"], &[]));
    assert!(why.nodes.iter().all(|node| node.cause == Some("invalid_claim")));
    helped(
        &why,
        &["claim data: spec.accessModes: ReadWriteMany", "use ReadWriteOnce"],
    );
    let why = super::pod(&snapshot, &mk_pod(&["huge"], &[]));
    helped(
        &why,
        &[
            "claim huge",
            "more than any volume group of StorageClass fast has, even empty",
        ],
    );
    helped(&why, &["too small even if it were empty", "400Mi", "4000Mi"]);
}

#[test]
fn claims_that_fit_alone_and_not_together_are_named_as_such() {
    let claims = vec![mk_claim("a", "fast", 60), mk_claim("b", "fast", 60)];
    let why = super::pod(&Cluster::of(claims).snapshot(), &mk_pod(&["a", "b"], &[]));
    assert_eq!(why.outcome, Outcome::FitsNowhere);
    helped(&why, &["each claim alone has room (a on n0, b on n0)"]);
}

#[test]
fn storage_that_is_not_ready_says_why() {
    let cluster = Cluster {
        not_ready: true,
        ..Cluster::of(vec![mk_claim("data", "fast", 1)])
    };
    let why = super::pod(&cluster.snapshot(), &mk_pod(&["data"], &[]));
    helped(
        &why,
        &["NodeLocalStorage fast.n0 is not ready: DiskRejected: /dev/disk/by-id/a holds ext4"],
    );
}

#[test]
fn a_claim_that_no_pod_uses_is_asked_about_by_itself() {
    let snapshot = Cluster::of(vec![mk_claim("data", "fast", 1)]).snapshot();
    let why = super::claim(&snapshot, NAMESPACE, "data");
    assert_eq!(why.outcome, Outcome::Fits);
    assert!(why.summary.contains("no pod uses"), "{}", why.summary);
    assert!(why.summary.contains("fits on 2 of 3 nodes"), "{}", why.summary);
}

#[test]
fn a_pod_past_the_scheduler_is_told_that_its_claim_waits_for_ever() {
    let snapshot = Cluster::of(vec![mk_claim("data", "fast", 1)]).snapshot();
    let why = super::pod(&snapshot, &mk_pod(&["data"], &[("/spec/nodeName", json!("n0"))]));
    assert_eq!(why.outcome, Outcome::Placed);
    helped(&why, &["claim data waits for ever", "spec.nodeName", "nodeSelector"]);
}

#[test]
fn a_claim_given_to_a_node_that_cannot_serve_it_is_told() {
    for (node, parts) in [
        ("n2", ["does not name", "selected-node-"]),
        ("gone", ["not in the cluster", "lost-nodes"]),
        ("n0", ["within seconds", "logs"]),
    ] {
        let snapshot = Cluster::of(vec![selected(mk_claim("data", "fast", 1), node)]).snapshot();
        let why = super::pod(&snapshot, &mk_pod(&["data"], &[]));
        assert_eq!(why.claims[0].node.as_deref(), Some(node));
        helped(&why, &parts);
    }
}

#[test]
fn json_has_sizes_in_bytes() {
    let snapshot = Cluster::of(vec![mk_claim("data", "fast", 60)]).snapshot();
    let why = super::pod(&snapshot, &mk_pod(&["data"], &[]));
    let json = serde_json::to_value(&why).expect("JSON");
    assert_eq!(json["outcome"], "fits");
    assert_eq!(json["nodes"][0]["groups"][0]["freeBytes"], 400 << 20);
    assert_eq!(json["claims"][0]["askedBytes"], 240 << 20);
}

#[test]
fn a_node_whose_manager_is_silent_is_named() {
    let mut snapshot = Cluster::of(vec![mk_claim("data", "fast", 60)]).snapshot();
    snapshot.index.silence(&["n0".to_owned()].into());
    let why = super::pod(&snapshot, &mk_pod(&["data"], &[]));
    assert_eq!(why.nodes[0].cause, Some("manager_silent"));
    helped(&why, &["nobody makes volumes on n0 now", "get pods"]);
    helped(&why, &["node n1 comes nearest", "or less, or add disks to it"]);
}
