//! A node that is gone, back, or another machine: what its manager makes of it, and what of the start-up taint.

use std::sync::Arc;
use std::time::Duration;

use quarry_process::Shutdown;
use serde_json::{Value, json};

use super::bench::*;
use super::provisioning::tags;
use crate::{leftovers, startup_taint};

const DEVICE: &str = "/dev/sda";
const NODES: &str = "nodes";

/// A node with a volume that a claim has, made on the machine `m-0`; this is `m-1`, and its disk is blank.
async fn another_machine() -> (Bench, String) {
    let mut bench = Bench::new().await;
    let uuid = bench.context.inventory.get().groups[0].uuid.clone();
    bench.put(VOLUMES, volume("w1", &uuid));
    bench.put(CLAIMS, claim(Some("w1"), "101Mi"));
    bench.api.objects(|objects| {
        assert_eq!(
            objects.get(STORAGES, "fast.w1").expect("there")["status"]["machineId"],
            "m-1"
        );
        objects.change(STORAGES, "fast.w1", &json!({"status": {"machineId": "m-0"}}));
    });
    bench.lvm.by_hand(|state| state.groups.clear());
    bench.lvm.set_blank(DEVICE, true);
    bench.refresh().await;
    bench.forget();
    bench.sync();
    (bench, uuid)
}

/// The PersistentVolume of the claim `data`, in a group of a node, made on the machine `m-0`.
fn volume(node: &str, group: &str) -> Value {
    json!({
        "metadata": {"name": VOLUME, "uid": "pv-1", "annotations": {
            "pv.kubernetes.io/provisioned-by": "lvm.quarry.dev", "quarry.dev/node": node,
            "quarry.dev/volume-group": "fast", "quarry.dev/volume-group-uuid": group,
            "quarry.dev/machine-id": "m-0"}, "finalizers": ["quarry.dev/logical-volume"]},
        "spec": {"capacity": {"storage": "104Mi"}, "persistentVolumeReclaimPolicy": "Delete",
                 "claimRef": {"namespace": "db", "name": "data", "uid": "u-1"}},
        "status": {"phase": "Bound"},
    })
}

/// Status and reason of a condition of the NodeLocalStorage.
fn condition(bench: &Bench, kind: &str) -> (String, String) {
    let storage = bench.object(STORAGES, "fast.w1").expect("there");
    let conditions = storage["status"]["conditions"].as_array().expect("conditions").clone();
    let found = conditions.into_iter().find(|c| c["type"] == kind).expect("stated");
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

fn mutations(bench: &Bench) -> Vec<String> {
    let lines = bench.log().into_iter();
    lines
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .collect()
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[tokio::test]
async fn another_machine_is_told_from_the_one_that_was_there() {
    // With the status, and without: it goes with the NodeLocalStorage of a node that was gone for long.
    for status_is_kept in [true, false] {
        let (mut bench, uuid) = another_machine().await;
        if !status_is_kept {
            bench.api.objects(|objects| objects.clear(STORAGES));
            bench.sync();
        }
        for _ in 0..3 {
            bench.pass().await;
            bench.sync();
        }
        assert_eq!(mutations(&bench), Vec::<String>::new(), "nothing is made in its place");
        assert_eq!(condition(&bench, "Ready"), is("False", "NodeReplaced"));
        assert_eq!(condition(&bench, "Degraded"), is("True", "NodeReplaced"));
        let events = bench.events();
        let lost: Vec<_> = events.iter().filter(|(reason, _)| reason == "VolumeLost").collect();
        assert_eq!(lost.len(), 2, "of the volume and its claim: {events:?}");
        assert!(
            lost[0].1.contains("fast/pvc-u-1") && lost[0].1.contains("NodeReplaced"),
            "{lost:?}"
        );
        // What was there is remembered.
        let status = &bench.object(STORAGES, "fast.w1").expect("there")["status"];
        if status_is_kept {
            let remembered = (&status["volumeGroup"]["uuid"], &status["machineId"]);
            assert_eq!(remembered, (&json!(uuid), &json!("m-0")));
        }
    }
}

#[tokio::test]
async fn a_loss_that_is_accepted_makes_room_for_a_new_group_and_lets_old_volumes_go() {
    let (mut bench, uuid) = another_machine().await;
    bench.pass().await;
    bench.sync();
    let accepted = json!({"metadata": {"annotations": {"quarry.dev/lost-volume-group": uuid}}});
    bench
        .api
        .objects(|objects| objects.change(STORAGES, "fast.w1", &accepted));
    for _ in 0..3 {
        bench.sync();
        bench.pass().await;
    }
    assert_eq!(mutations(&bench), ["CreateGroup"]);
    assert_eq!(condition(&bench, "Ready"), is("True", "Ready"));
    let status = &bench.object(STORAGES, "fast.w1").expect("there")["status"];
    assert_eq!(status["machineId"], "m-1");
    assert_ne!(status["volumeGroup"]["uuid"], json!(uuid));
    // Its volume stays as long as its claim, and goes after it without a word from LVM.
    bench.sync();
    bench.volume().await.expect("kept");
    assert!(bench.object(VOLUMES, VOLUME).is_some());
    bench.api.objects(|objects| {
        objects.remove(CLAIMS, "data");
        objects.change(VOLUMES, VOLUME, &json!({"status": {"phase": "Released"}}));
    });
    bench.sync();
    bench.volume().await.expect("let go");
    assert_eq!(bench.object(VOLUMES, VOLUME), None);
    assert_eq!(mutations(&bench), ["CreateGroup"]);
}

#[tokio::test]
async fn what_is_lost_is_not_let_go_unless_somebody_says_so() {
    let (mut bench, uuid) = another_machine().await;
    bench.api.objects(|objects| {
        objects.remove(CLAIMS, "data");
        objects.change(VOLUMES, VOLUME, &json!({"status": {"phase": "Released"}}));
    });
    for said in [None, Some("another-uuid")] {
        let annotations = json!({"metadata": {"annotations": {"quarry.dev/lost-volume-group": said}}});
        bench
            .api
            .objects(|objects| objects.change(STORAGES, "fast.w1", &annotations));
        bench.sync();
        let error = bench.volume().await.expect_err("held").to_string();
        assert!(
            error.contains(&format!("quarry.dev/lost-volume-group={uuid}")),
            "{error}"
        );
        assert!(bench.object(VOLUMES, VOLUME).is_some());
    }
}

#[tokio::test]
async fn nothing_is_made_for_a_node_that_is_not_there() {
    let mut bench = Bench::new().await;
    bench.set_node(None);
    bench.api.objects(|objects| objects.clear(STORAGES));
    bench.sync();
    bench.pass().await;
    assert_eq!(bench.object(STORAGES, "fast.w1"), None);
    // It is registered again: all is made again, and the group is the same.
    let groups = bench.context.inventory.get().groups.clone();
    bench.set_labels(json!({"kubernetes.io/hostname": "w1.example"}));
    for _ in 0..2 {
        bench.pass().await;
        bench.sync();
    }
    assert_eq!(condition(&bench, "Ready"), is("True", "Ready"));
    assert_eq!(bench.context.inventory.get().groups, groups);
    assert_eq!(mutations(&bench), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_another_node_served_meanwhile_is_a_leftover_here() {
    for (node, left) in [("w1", 1), ("w2", 0)] {
        for bound in [true, false] {
            let mut bench = Bench::new().await;
            bench.make(VOLUME, 26, tags("u-1")).await;
            bench.refresh().await;
            let mut claim = claim(Some(node), "101Mi");
            if bound {
                claim["spec"]["volumeName"] = json!(VOLUME);
            }
            bench.put(CLAIMS, claim);
            // This node does not watch the volumes of others, and may lag behind with its own.
            bench
                .api
                .objects(|objects| objects.put(VOLUMES, volume(node, "vg-of-another")));
            let sweeping = leftovers::keep_away(Arc::clone(&bench.context), Shutdown::new());
            let _ = tokio::time::timeout(Duration::from_secs(300), sweeping).await;
            assert_eq!(bench.volumes().len(), left, "served by {node}, bound: {bound}");
        }
    }
}

#[tokio::test]
async fn volumes_of_a_group_that_appears_late_are_activated_once() {
    let mut bench = Bench::new().await;
    bench.make(VOLUME, 26, tags("u-1")).await;
    let hide = |bench: &Bench| bench.lvm.by_hand(|state| std::mem::take(&mut state.groups));
    let groups = hide(&bench);
    bench.refresh().await;
    bench.pass().await;
    bench.lvm.by_hand(|state| {
        state.groups = groups;
        state.groups[0].logical_volumes[0].active = Some(false);
    });
    bench.refresh().await;
    bench.sync();
    bench.forget();
    bench.pass().await;
    assert_eq!(mutations(&bench), ["ActivateGroup"]);
    assert_eq!(bench.volumes()[0].active, Some(true));
    // By hand, for maintenance: it is left so.
    bench
        .lvm
        .by_hand(|state| state.groups[0].logical_volumes[0].active = Some(false));
    bench.refresh().await;
    bench.forget();
    bench.pass().await;
    assert_eq!(mutations(&bench), Vec::<String>::new());
}

fn tainted() -> Value {
    json!({"metadata": {"name": "w1", "labels": {"kubernetes.io/hostname": "w1.example"}}, "spec": {"taints": [
        {"key": "quarry.dev/agent-not-ready", "effect": "NoSchedule"},
        {"key": "quarry.dev/agent-not-ready", "effect": "NoExecute"},
        {"key": "dedicated", "value": "db", "effect": "NoSchedule"}]}})
}

fn taints(bench: &Bench) -> Vec<String> {
    let node = bench.object(NODES, "w1").expect("there");
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let key = |taint: &Value| taint["key"].as_str().unwrap_or_default().to_owned();
    taints.iter().map(key).collect()
}

#[tokio::test]
async fn the_start_up_taint_goes_once_volumes_are_active_and_no_other_does() {
    let mut bench = Bench::new().await;
    bench.make(VOLUME, 26, tags("u-1")).await;
    bench
        .lvm
        .by_hand(|state| state.groups[0].logical_volumes[0].active = Some(false));
    bench.refresh().await;
    bench.put(NODES, tainted());
    bench.set_node(Some(tainted()));
    bench.forget();
    startup_taint::lift(&bench.context).await.expect("waits");
    assert_eq!(bench.log(), Vec::<String>::new(), "a volume is not active yet");
    bench
        .lvm
        .by_hand(|state| state.groups[0].logical_volumes[0].active = Some(true));
    bench.refresh().await;
    // Somebody else puts a taint on the node at the same moment.
    let mut more = tainted();
    more["spec"]["taints"]
        .as_array_mut()
        .expect("taints")
        .push(json!({"key": "late", "effect": "NoSchedule"}));
    bench
        .api
        .before_next("patch", NODES, move |objects| objects.change(NODES, "w1", &more));
    startup_taint::lift(&bench.context).await.expect_err("a conflict");
    assert_eq!(taints(&bench).len(), 4);
    startup_taint::lift(&bench.context).await.expect("taken off");
    assert_eq!(taints(&bench), ["dedicated", "late"]);
    bench.set_node(bench.object(NODES, "w1"));
    bench.forget();
    startup_taint::lift(&bench.context).await.expect("nothing to do");
    assert_eq!(bench.log(), Vec::<String>::new());
}
