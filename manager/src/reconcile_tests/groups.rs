//! Volume groups: disks that come back are taken up again, and groups that nobody needs are taken down if they may be.

use std::time::Duration;

use quarry_crds::tags::VERSION_TAG;
use serde_json::{Value, json};

use super::bench::*;
use super::provisioning::tags;
use crate::lvm::fake::Fault;
use crate::lvm::{Lvm as _, State, VolumeRef};
use crate::volume_group::Pass;

const DEVICE: &str = "/dev/sda";
const NODES: &str = "nodes";

/// Mutations of LVM in a further pass, after LVM was read.
async fn mutations(bench: &mut Bench) -> Vec<String> {
    bench.refresh().await;
    bench.forget();
    bench.sync();
    if let Some(node) = bench.object(NODES, "w1") {
        bench.set_node(Some(node));
    }
    bench.pass().await;
    let lines = bench.log().into_iter();
    lines
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .collect()
}

/// The disk of the group was taken away, noticed, and given back.
async fn returned() -> Bench {
    let mut bench = Bench::new().await;
    bench.lvm.lose_disk(DEVICE);
    assert_eq!(mutations(&mut bench).await, Vec::<String>::new());
    bench.lvm.return_disk(DEVICE);
    bench
}

fn is_whole(bench: &Bench) -> bool {
    bench.context.inventory.get().groups.iter().all(|group| !group.partial)
}

/// For the figures there are many passes in a burst of claims.
#[tokio::test(start_paused = true)]
async fn while_lvm_is_at_work_disks_of_a_group_are_looked_at_now_and_then() {
    let bench = Bench::new().await;
    let looks = async || {
        let before = bench.disks.lock().looks;
        bench.pass().await;
        bench.disks.lock().looks - before
    };
    assert_eq!((looks().await, looks().await), (1, 1), "nothing else is to be done");
    bench.lvm.fail_next(Fault::Hang);
    let (lvm, group) = (bench.lvm.clone(), bench.context.inventory.get().groups[0].reference());
    let removing = tokio::spawn(async move {
        let (name, uuid) = ("pvc-a".to_owned(), group.uuid.clone());
        lvm.remove_volume(VolumeRef { group, name, uuid }).await
    });
    while !bench.lvm.is_busy() {
        tokio::task::yield_now().await;
    }
    assert_eq!((looks().await, looks().await), (0, 0));
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!((looks().await, looks().await), (1, 0));
    // What could be taken is looked at each time.
    bench.lvm.by_hand(|state| state.groups.clear());
    tokio::time::advance(Duration::from_secs(11)).await;
    bench.refresh().await;
    assert_eq!((looks().await, looks().await), (1, 1));
    removing.abort();
}

/// The kernel tells of a disk before udev has named it. While udev is at work a disk that is not there is looked for again
/// soon; then it is as the regular check finds it.
#[tokio::test]
async fn a_disk_that_is_being_named_is_looked_for_again() {
    let bench = Bench::new().await;
    bench.lvm.by_hand(|state| state.groups.clear());
    bench.refresh().await;
    let says = |nameless, coming| {
        let mut disks = bench.disks.lock();
        (disks.nameless, disks.coming) = (nameless, coming);
    };
    says(true, true);
    assert_eq!(bench.pass().await, Pass::Unfinished);
    says(true, false);
    assert_eq!(bench.pass().await, Pass::Complete, "nobody is about to name it");
    says(false, true);
    assert_eq!(bench.pass().await, Pass::Complete, "nothing is missing");
}

/// Two rows of one path are refused by the API server.
#[tokio::test]
async fn a_disk_has_one_row_from_the_first() {
    for path in [DISK, DEVICE] {
        let mut of_disk = class("WaitForFirstConsumer");
        let nodes = json!([{"names": ["w1"], "disks": [path]}]);
        of_disk["parameters"]["nodes"] = json!(nodes.to_string());
        of_disk["parameters"]["allowUnstableNames"] = json!("true");
        let mut bench = Bench::bare(of_disk).await;
        // The first makes the NodeLocalStorage, the second the group.
        for _ in 0..2 {
            bench.sync();
            bench.pass().await;
        }
        let storage = bench.object(STORAGES, "fast.w1").expect("there");
        let disks = storage["status"]["disks"].as_array().expect("a list");
        assert_eq!(disks.len(), 1, "{disks:?}");
        assert_eq!(
            (&disks[0]["path"], &disks[0]["phase"]),
            (&json!(path), &json!("Claimed"))
        );
        assert!(disks[0]["id"].is_string() && disks[0]["free"].is_string(), "{disks:?}");
    }
}

#[tokio::test]
async fn a_disk_that_is_back_is_taken_up_again() {
    let mut bench = returned().await;
    assert_eq!(mutations(&mut bench).await, ["RestorePhysicalVolume"]);
    assert!(is_whole(&bench));
    assert_eq!(mutations(&mut bench).await, Vec::<String>::new());
}

#[tokio::test]
async fn one_that_is_not_taken_up_is_tried_again_at_the_next_pass() {
    let mut bench = returned().await;
    bench.fault(Fault::Refuse);
    assert_eq!(mutations(&mut bench).await, ["RestorePhysicalVolume"]);
    assert!(!is_whole(&bench));
    assert_eq!(mutations(&mut bench).await, ["RestorePhysicalVolume"]);
    assert!(is_whole(&bench));
}

#[tokio::test]
async fn a_disk_of_somebody_elses_group_is_left_alone() {
    let mut bench = returned().await;
    bench
        .lvm
        .by_hand(|state| state.groups[0].tags = vec!["backup=no".to_owned()]);
    assert_eq!(mutations(&mut bench).await, Vec::<String>::new());
    assert!(!is_whole(&bench));
}

/// A class that wants its group to be taken down with it.
fn going() -> Value {
    let mut class = class("WaitForFirstConsumer");
    class["parameters"]["volumeGroupPolicy"] = json!("Delete");
    class
}

/// A node whose class has gone, and whose group nobody needs any more.
async fn unused(class: Value) -> Bench {
    let mut bench = Bench::of(class).await;
    bench.put(
        NODES,
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w1"}}),
    );
    bench.set_classes(vec![]);
    bench.api.objects(|objects| objects.clear(STORAGES));
    bench
}

#[tokio::test]
async fn a_group_that_nobody_names_is_taken_down_where_its_class_asked_for_it() {
    let mut bench = unused(going()).await;
    assert_eq!(mutations(&mut bench).await, ["RemoveGroup", "RemoveLabels"]);
    assert!(bench.context.inventory.get().groups.is_empty());
    assert_eq!(mutations(&mut bench).await, Vec::<String>::new());
}

#[tokio::test]
async fn it_stays_where_the_class_did_not_ask() {
    let mut bench = unused(class("WaitForFirstConsumer")).await;
    assert_eq!(mutations(&mut bench).await, Vec::<String>::new());
    assert_eq!(bench.context.inventory.get().groups.len(), 1);
}

#[tokio::test]
async fn it_stays_with_anybodys_volume_in_it() {
    for tags in [tags("u-1"), vec!["backup=no".to_owned()], vec![]] {
        let mut bench = unused(going()).await;
        bench.make(VOLUME, 1, self::tags("u-1")).await;
        bench
            .lvm
            .by_hand(|state| state.groups[0].logical_volumes[0].tags = tags.clone());
        assert_eq!(mutations(&mut bench).await, Vec::<String>::new(), "{tags:?}");
    }
}

#[tokio::test]
async fn it_stays_while_anything_names_it() {
    // A copy of the class, a class of which nobody knows which group it means, a NodeLocalStorage.
    let mut copy = going();
    copy["metadata"]["name"] = json!("copy");
    copy["parameters"]["volumeGroup"] = json!("fast");
    copy["parameters"]["nodes"] = json!(json!([{"names": ["w2"], "disks": ["/dev/disk/by-id/b"]}]).to_string());
    let mut wrong = going();
    wrong["metadata"]["name"] = json!("wrong");
    wrong["parameters"]["nodes"] = json!("[");
    for class in [copy, wrong] {
        let mut bench = unused(going()).await;
        bench.set_classes(vec![class.clone()]);
        assert_eq!(mutations(&mut bench).await, Vec::<String>::new(), "{class}");
    }
    let mut bench = unused(going()).await;
    bench.put(
        STORAGES,
        json!({"apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage", "metadata": {"name": "by-hand"},
               "spec": {"storageClassName": "x", "nodeName": "w1", "volumeGroup": "fast", "layout": "linear", "disks": []}}),
    );
    assert_eq!(mutations(&mut bench).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_class_that_names_another_group_does_not_keep_it() {
    let mut bench = unused(going()).await;
    let mut other = going();
    other["metadata"]["name"] = json!("other");
    other["parameters"]["nodes"] = json!(json!([{"names": ["w2"], "disks": ["/dev/disk/by-id/b"]}]).to_string());
    bench.set_classes(vec![other]);
    assert_eq!(mutations(&mut bench).await, ["RemoveGroup", "RemoveLabels"]);
}

#[tokio::test]
async fn it_stays_in_any_doubt() {
    type Doubt = fn(&mut State);
    let doubts: [(&str, Doubt); 5] = [
        ("not all could be read", |state| {
            state.incomplete = Some("I/O error".to_owned())
        }),
        ("two of the name", |state| {
            let mut twin = state.groups[0].clone();
            twin.uuid = "another".to_owned();
            state.groups.push(twin);
        }),
        ("a disk is missing", |state| {
            state.groups[0].partial = true;
            state.groups[0].physical_volumes[0].missing = true;
            state.groups[0].physical_volumes[0].device = None;
        }),
        ("not ours", |state| {
            state.groups[0].tags.retain(|tag| tag != VERSION_TAG)
        }),
        ("another version's", |state| {
            state.groups[0].tags.retain(|tag| tag != VERSION_TAG);
            state.groups[0].tags.push("quarry.version=2".to_owned());
        }),
    ];
    for (doubt, happens) in doubts {
        let mut bench = unused(going()).await;
        bench.lvm.by_hand(happens);
        assert_eq!(mutations(&mut bench).await, Vec::<String>::new(), "{doubt}");
    }
}

#[tokio::test]
async fn what_could_not_be_taken_down_is_tried_again() {
    let mut bench = unused(going()).await;
    bench.fault(Fault::Refuse);
    assert_eq!(mutations(&mut bench).await, ["RemoveGroup"]);
    assert_eq!(mutations(&mut bench).await, ["RemoveGroup", "RemoveLabels"]);
}

/// A manager dies after LVM removed the group and before it removed the labels.
fn dies_in_between(bench: &Bench) {
    bench.lvm.by_hand(|state| {
        let group = state.groups.remove(0);
        state.orphans.extend(group.physical_volumes);
    });
}

#[tokio::test]
async fn labels_that_a_death_left_on_the_disks_are_removed_at_the_next_start() {
    let mut bench = unused(going()).await;
    bench.fault(Fault::Refuse);
    assert_eq!(mutations(&mut bench).await, ["RemoveGroup"]);
    dies_in_between(&bench);
    assert_eq!(mutations(&mut bench).await, ["RemoveLabels"]);
    assert!(bench.context.inventory.get().orphans.is_empty());
    let node = bench.object(NODES, "w1").expect("there");
    assert_eq!(node["metadata"]["annotations"], json!({}), "nothing is noted any more");
    assert_eq!(mutations(&mut bench).await, Vec::<String>::new());
}

#[tokio::test]
async fn labels_of_nobody_knows_whom_stay() {
    let mut bench = unused(going()).await;
    dies_in_between(&bench);
    assert_eq!(mutations(&mut bench).await, Vec::<String>::new());
    bench.put(
        NODES,
        json!({"apiVersion": "v1", "kind": "Node",
               "metadata": {"name": "w1", "annotations": {"quarry.dev/taking-down": "another,and-another"}}}),
    );
    assert_eq!(mutations(&mut bench).await, Vec::<String>::new());
    assert_eq!(bench.context.inventory.get().orphans.len(), 1);
}

#[tokio::test]
async fn no_label_is_removed_where_not_all_could_be_read() {
    let mut bench = unused(going()).await;
    bench.fault(Fault::Refuse);
    mutations(&mut bench).await;
    dies_in_between(&bench);
    bench
        .lvm
        .by_hand(|state| state.incomplete = Some("I/O error".to_owned()));
    assert_eq!(mutations(&mut bench).await, Vec::<String>::new());
    bench.lvm.by_hand(|state| state.incomplete = None);
    assert_eq!(mutations(&mut bench).await, ["RemoveLabels"]);
}

#[tokio::test]
async fn a_group_is_not_taken_down_where_that_cannot_be_noted() {
    let mut bench = unused(going()).await;
    bench.api.fail_next("patch", NODES, 503);
    assert_eq!(mutations(&mut bench).await, Vec::<String>::new());
    assert_eq!(mutations(&mut bench).await, ["RemoveGroup", "RemoveLabels"]);
}
