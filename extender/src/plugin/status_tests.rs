use quarry_crds::node_local_storage::DiskStatus as Disk;
use serde_json::json;

use super::*;
use crate::plugin::snapshot::Call;
use crate::plugin::text;
use crate::testing::{bound, mk_claim, mk_class, mk_storage, mk_volume, selected};

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// Two nodes of one class: one in order, one whose disk is refused.
fn snapshot() -> Snapshot {
    let node = |name: &str| serde_json::from_value(json!({"metadata": {"name": name}})).expect("a node");
    let mut bad = mk_storage("fast", "n1", "fast", 50, 0);
    let status = bad.status.as_mut().expect("a status");
    status.conditions[0].status = "False".to_owned();
    status.conditions[0].reason = "DiskRejected".to_owned();
    status.conditions[0].message = "/dev/disk/by-id/a holds ext4".to_owned();
    status.disks = vec![Disk {
        path: "/dev/disk/by-id/a".to_owned(),
        size: Some("10Gi".to_owned()),
        phase: phase::REJECTED.to_owned(),
        ..Disk::default()
    }];
    Snapshot::of(
        vec![mk_class("fast")],
        vec![mk_storage("fast", "n0", "fast", 100, 0), bad],
        &[mk_volume("old", "n0", "fast", 20)],
        &[
            bound(mk_claim("old", "fast", 20)),
            selected(mk_claim("coming", "fast", 30), "n0"),
            mk_claim("waiting", "fast", 1),
        ],
        vec![node("n0"), node("n1")],
    )
}

#[test]
fn everything_is_counted_once() {
    let status = status(&snapshot(), at("2026-01-01T00:00:00Z"));
    let mib = |count: u64| count << 20;
    let group = &status.groups[0];
    assert_eq!(
        (group.size_bytes, group.free_bytes, group.in_flight_bytes, group.volumes),
        (mib(400), mib(200), mib(120), 1)
    );
    assert_eq!(
        status.volumes,
        Volumes {
            count: 1,
            bytes: mib(80),
            going: 0,
            claims_bound: 1,
            claims_in_flight: 1,
            claims_waiting: 1,
        }
    );
    let bad = &status.nodes[1];
    assert_eq!((bad.groups, bad.groups_ready, bad.disks_not_good), (1, 0, 1));
    let text = text::status(&status, false);
    for part in [
        "n0     at work   1/1 ready   0               1         400Mi   200Mi",
        "n1     at work   0/1 ready   1, 1 not good   0         200Mi   200Mi",
        "n1     fast   /dev/disk/by-id/a   -        -       10Gi   -      Rejected",
        "Volumes: 1 of 80Mi together, 0 being removed. Claims: 1 bound, 1 in flight, 1 without a node.",
        "  * NodeLocalStorage fast.n1: Ready is False: DiskRejected: /dev/disk/by-id/a holds ext4.",
    ] {
        assert!(text.lines().any(|line| line == part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn a_scheduler_that_does_not_ask_is_told_of() {
    let now = at("2026-01-01T12:00:00Z");
    let mut snapshot = snapshot();
    let never = status(&snapshot, now);
    assert!(never.scheduler.summary.contains("no kube-scheduler has ever called"));
    assert!(
        !never.wrong.iter().any(|wrong| wrong.contains("kube-scheduler")),
        "nothing was placed yet"
    );
    snapshot.newest_volume = Some((at("2026-01-01T11:59:00Z"), "pvc-1".to_owned()));
    assert!(status(&snapshot, now).wrong[0].contains("no kube-scheduler has ever called"));
    let call = |time: &str| {
        Some(Call {
            at: at(time),
            whom: "node1".to_owned(),
        })
    };
    snapshot.last_call = call("2026-01-01T11:58:30Z");
    let asked = status(&snapshot, now);
    assert_eq!(
        asked.scheduler.summary,
        "kube-scheduler called the extender node1 90 s ago"
    );
    assert!(!asked.wrong.iter().any(|wrong| wrong.contains("kube-scheduler")));
    snapshot.last_call = call("2026-01-01T09:00:00Z");
    let unasked = status(&snapshot, now);
    assert!(
        unasked.wrong[0].contains("3 h ago for the last time, and volume pvc-1"),
        "{unasked:#?}"
    );
}

#[test]
fn nodes_that_are_gone_or_silent_are_named() {
    let mut snapshot = snapshot();
    snapshot.nodes.remove(1);
    snapshot.index.silence(&["n0".to_owned()].into());
    let status = status(&snapshot, at("2026-01-01T00:00:00Z"));
    let managers: Vec<&str> = status.nodes.iter().map(|node| node.manager).collect();
    assert_eq!(managers, ["silent", "gone"]);
    assert!(
        status
            .wrong
            .iter()
            .any(|wrong| wrong.contains("manager on node n0 is silent"))
    );
    assert!(
        status
            .wrong
            .iter()
            .any(|wrong| wrong.contains("node n1 is not in the cluster"))
    );
}
