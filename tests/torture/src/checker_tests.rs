//! Each kind of fault is seen, and a cluster without any is not accused.

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::*;
use crate::observe::{Group, Logical, Mounted};
use crate::schedule::Workload;

const UUID: &str = "vg-uuid";
const EXTENT: u64 = 4 << 20;

fn workload(number: u32, kind: Kind) -> Workload {
    Workload {
        number,
        kind,
        size: 16,
        node: 0,
    }
}

fn claim(name: &str, uid: &str) -> PersistentVolumeClaim {
    serde_json::from_value(json!({
        "metadata": {"name": name, "uid": uid},
        "spec": {"volumeName": format!("pvc-{uid}"), "resources": {"requests": {"storage": "16Mi"}}},
        "status": {"phase": "Bound"},
    }))
    .expect("a claim")
}

fn volume(uid: &str) -> PersistentVolume {
    serde_json::from_value(json!({
        "metadata": {"name": format!("pvc-{uid}"), "annotations": {
            "pv.kubernetes.io/provisioned-by": "lvm.quarry.dev", "quarry.dev/node": "node1",
            "quarry.dev/volume-group": GROUP, "quarry.dev/volume-group-uuid": UUID}},
        "spec": {"capacity": {"storage": "16Mi"}, "claimRef": {"uid": uid}},
        "status": {"phase": "Bound"},
    }))
    .expect("a volume")
}

fn storage(free: u64, volumes: i64) -> NodeLocalStorage {
    serde_json::from_value(json!({
        "metadata": {"name": "torture-ext4.node1"},
        "spec": {"storageClassName": "torture-ext4", "nodeName": "node1", "volumeGroup": GROUP, "layout": "linear"},
        "status": {
            "volumeGroup": {"name": GROUP, "uuid": UUID, "extentSize": "4Mi", "size": (100 * EXTENT).to_string(),
                "free": free.to_string(), "largest": free.to_string(), "reserved": "0", "metadataFree": "0"},
            "volumes": volumes,
            "conditions": [{"type": "Ready", "status": "True", "reason": "x", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        },
    }))
    .expect("a NodeLocalStorage")
}

/// A claim without a pod, served, with data.
fn healthy() -> (Book, Snapshot) {
    let mut book = Book::default();
    book.begin(workload(1, Kind::Raw));
    let known = book.claim_mut("c1").expect("a claim");
    known.uid = Some("u1".into());
    known.logical = Some("lv-uuid".into());
    known.word = Some("word-1".into());
    let node = NodeView {
        name: "node1".into(),
        groups: vec![Group {
            name: GROUP.into(),
            uuid: UUID.into(),
            size: 100 * EXTENT,
            free: 96 * EXTENT,
            disks: 1,
        }],
        volumes: vec![Logical {
            name: "pvc-u1".into(),
            group: GROUP.into(),
            uuid: "lv-uuid".into(),
            size: 4 * EXTENT,
            tags: "quarry.version=1,quarry.state=ready".into(),
        }],
        mapped: [mapped_name(GROUP, "pvc-u1")].into(),
        ..NodeView::default()
    };
    let seen = Snapshot {
        claims: vec![claim("c1", "u1")],
        volumes: vec![volume("u1")],
        storages: vec![storage(96 * EXTENT, 1)],
        nodes: vec![node],
        ..Snapshot::default()
    };
    (book, seen)
}

#[track_caller]
fn accused(book: &Book, seen: &Snapshot, fault: Fault, part: &str) {
    let found = judge(book, seen);
    let hit = found
        .iter()
        .any(|finding| finding.fault == fault && finding.seen.contains(part));
    assert!(hit, "{fault:?} {part:?} is not among {found:#?}");
}

#[test]
fn a_cluster_in_order_is_not_accused() {
    let (book, seen) = healthy();
    assert_eq!(judge(&book, &seen), []);
}

#[test]
fn what_nobody_wants_is_leaked() {
    let (mut book, mut seen) = healthy();
    book.end(1);
    seen.claims.clear();
    accused(&book, &seen, Fault::Leaked, "PersistentVolume pvc-u1 has no claim");
    seen.volumes.clear();
    accused(
        &book,
        &seen,
        Fault::Leaked,
        "logical volume torture/pvc-u1 on node1 has no PersistentVolume",
    );
    seen.nodes[0].volumes.clear();
    accused(&book, &seen, Fault::Leaked, "has no logical volume");
    accused(&book, &seen, Fault::Leaked, "counts 1 volumes, and there are 0");
    seen.nodes[0].mapped.clear();
    seen.storages = vec![storage(96 * EXTENT, 0)];
    assert_eq!(judge(&book, &seen), []);
    seen.nodes[0].labelled.push("/dev/ubdc".into());
    accused(&book, &seen, Fault::Leaked, "/dev/ubdc on node1 has LVM's label");
}

#[test]
fn what_is_gone_is_lost() {
    let (book, seen) = healthy();
    let mut gone = seen.clone();
    gone.nodes[0].volumes.clear();
    accused(&book, &gone, Fault::Lost, "has no logical volume");
    let mut other = seen.clone();
    other.nodes[0].volumes[0].uuid = "another".into();
    accused(&book, &other, Fault::Lost, "its logical volume is another");
    let mut small = seen.clone();
    small.nodes[0].volumes[0].size = EXTENT;
    accused(&book, &small, Fault::Lost, "has 4194304 bytes");
    let mut inactive = seen.clone();
    inactive.nodes[0].mapped.clear();
    accused(&book, &inactive, Fault::Lost, "has no device on node1");
    let mut unbound = seen.clone();
    unbound.volumes.clear();
    accused(&book, &unbound, Fault::Lost, "claim c1 has no PersistentVolume");
    let mut group = seen;
    group.nodes[0].groups.clear();
    accused(&book, &group, Fault::Lost, "volume group torture on node1");
}

#[test]
fn more_than_there_is_and_untrue_figures_are_overcommitted() {
    let (book, seen) = healthy();
    let mut more = seen.clone();
    more.volumes
        .extend((2..=27).map(|number| volume(&format!("u{number}"))));
    accused(
        &book,
        &more,
        Fault::Overcommitted,
        "PersistentVolumes for 452984832 bytes",
    );
    let mut untrue = seen.clone();
    untrue.storages = vec![storage(100 * EXTENT, 1)];
    accused(&book, &untrue, Fault::Overcommitted, "publishes");
    let (mut book, seen) = (book, seen);
    book.begin(Workload {
        size: 20 << 10,
        ..workload(2, Kind::Reject)
    });
    let mut large = seen;
    large.claims.push(claim("c2", "u2"));
    accused(
        &book,
        &large,
        Fault::Overcommitted,
        "claim c2 cannot fit, and has a volume",
    );
}

#[test]
fn what_is_not_in_its_final_state_is_stuck() {
    let (mut book, seen) = healthy();
    let mut pending = seen.clone();
    pending.claims[0].status = None;
    accused(&book, &pending, Fault::Stuck, "claim c1 is None, not Bound");
    let mut creating = seen.clone();
    creating.nodes[0].volumes[0].tags = "quarry.version=1,quarry.state=creating".into();
    accused(&book, &creating, Fault::Stuck, "its tags say");
    let mut blind = seen.clone();
    blind.storages[0].status = None;
    accused(&book, &blind, Fault::Stuck, "torture-ext4.node1 is not Ready");
    book.begin(workload(2, Kind::Ext4));
    accused(&book, &seen, Fault::Stuck, "claim c2 does not exist");
    accused(&book, &seen, Fault::Stuck, "pod p2 does not run");
    book.end(2);
    assert_eq!(judge(&book, &seen), []);
    book.groups[0] = 1;
    accused(&book, &seen, Fault::Stuck, "volume group torture-g1 has 0 disks, not 1");
    book.groups[0] = 0;
    book.end(1);
    accused(&book, &seen, Fault::Stuck, "claim c1 is not gone");
}

#[test]
fn a_claim_that_was_refused_is_given_back() {
    let (mut book, mut seen) = healthy();
    book.begin(workload(2, Kind::Reject));
    let mut refused = claim("c2", "u2");
    refused.spec.as_mut().expect("a spec").volume_name = None;
    seen.claims.push(refused);
    assert_eq!(judge(&book, &seen), []);
    let annotations = [("volume.kubernetes.io/selected-node".to_owned(), "node1".to_owned())];
    seen.claims[1].metadata.annotations = Some(annotations.into());
    accused(
        &book,
        &seen,
        Fault::Stuck,
        "claim c2 was not given back: selected node node1",
    );
}

#[test]
fn wrong_data_is_corrupted() {
    let (mut book, mut seen) = healthy();
    let mounted = |pattern: String| Mounted {
        volume: "pvc-u1".into(),
        word: "word-1".into(),
        pattern,
    };
    seen.nodes[0].mounted = vec![mounted(format!("{LINES} {}", data::line(0, "c1", 0)))];
    assert_eq!(judge(&book, &seen), []);
    seen.nodes[0].mounted[0].word = "word-2".into();
    accused(&book, &seen, Fault::Lost, "was made anew");
    seen.nodes[0].mounted = vec![mounted(format!("{LINES} {}", data::line(0, "c9", 0)))];
    accused(&book, &seen, Fault::Corrupted, "in place of");
    seen.nodes[0].mounted.clear();
    book.corrupt.insert("pvc-u1".into(), "old data".into());
    accused(&book, &seen, Fault::Corrupted, "pvc-u1: old data");
}

#[test]
fn what_a_pod_says_of_its_data_counts_at_any_time() {
    let (book, mut seen) = healthy();
    for (code, fault) in [(42, Fault::Corrupted), (43, Fault::Lost)] {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p1"},
            "status": {"initContainerStatuses": [{"name": "data-v0", "image": "", "imageID": "", "ready": false,
                "restartCount": 1, "state": {"waiting": {}},
                "lastState": {"terminated": {"exitCode": code, "message": "/data is new and holds: old"}}}]},
        }))
        .expect("a pod");
        seen.pods = vec![pod];
        let found = at_any_time(&book, &seen);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].fault, fault);
        assert!(found[0].seen.contains("/data is new and holds: old"));
    }
}
