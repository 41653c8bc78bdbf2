//! What LVM may open, and whose volume groups are acted upon.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use quarry_crds::Bytes;
use quarry_crds::tags::VERSION_TAG;
use quarry_process::Shutdown;
use serde_json::{Value, json};

use super::bench::*;
use super::provisioning::{selected, tags};
use crate::disk_record::DiskRecords;
use crate::leftovers;
use crate::lvm::{CreateGroup, Lvm as _};
use crate::lvm_devices;

/// The disks that LVM may open.
fn opened(bench: &Bench) -> Vec<String> {
    bench.lvm.allowed().unwrap_or_default()
}

/// A group with our tags on a disk that no class lists: what a pod can write into its raw volume.
async fn written_by_a_pod(bench: &Bench, name: &str) {
    bench.lvm.allow_devices(vec![SECOND_DEVICE.to_owned()]);
    let request = CreateGroup {
        name: name.to_owned(),
        devices: vec![SECOND_DEVICE.to_owned()],
        tags: vec![VERSION_TAG.to_owned(), "quarry.policy=delete".to_owned()],
    };
    let group = bench.lvm.create_group(request).await.expect("made").value.reference();
    bench.make_in(group, "pvc-evil", 3, tags("evil")).await;
    bench.lvm.allow_devices(vec![DISK.to_owned()]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_listed_is_not_opened_whatever_is_on_it() {
    for name in ["other", "fast"] {
        let mut bench = Bench::new().await;
        assert_eq!(opened(&bench), [DISK]);
        written_by_a_pod(&bench, name).await;
        bench.refresh().await;
        bench.sync();
        bench.forget();
        for _ in 0..3 {
            bench.pass().await;
        }
        let sweeping = leftovers::keep_away(Arc::clone(&bench.context), Shutdown::new());
        let _ = tokio::time::timeout(Duration::from_secs(300), sweeping).await;
        assert_eq!(bench.log(), Vec::<String>::new(), "{name}");
        assert_eq!(opened(&bench), [DISK]);
        let ready = bench.object(STORAGES, "fast.w1").expect("there")["status"]["conditions"].clone();
        let ready = ready
            .as_array()
            .and_then(|all| all.iter().find(|c| c["type"] == "Ready").cloned());
        assert_eq!(ready.unwrap_or_default()["status"], "True", "{name}");
    }
}

#[tokio::test]
async fn a_volume_is_looked_for_in_the_group_of_its_class_only() {
    let mut bench = selected().await;
    bench.set_classes(vec![class("WaitForFirstConsumer")]);
    bench
        .lvm
        .allow_devices(vec![DEVICE.to_owned(), SECOND_DEVICE.to_owned()]);
    let request = CreateGroup {
        name: "other".to_owned(),
        devices: vec![SECOND_DEVICE.to_owned()],
        tags: vec![VERSION_TAG.to_owned()],
    };
    let group = bench.lvm.create_group(request).await.expect("made").value.reference();
    bench.make_in(group.clone(), VOLUME, 26, tags("u-1")).await;
    bench.refresh().await;
    bench.claim().await.expect("served");
    let volume = bench.object(VOLUMES, VOLUME).expect("handed out");
    let path = volume["spec"]["local"]["path"].as_str().map(str::to_owned);
    assert_eq!(path.as_deref(), Some("/dev/fast/pvc-u-1"));
    let count = bench.volumes().iter().filter(|volume| volume.name == VOLUME).count();
    assert_eq!(count, 2, "the one in the other group is left as it is");
}

#[tokio::test]
async fn a_group_that_no_class_names_stays_known_also_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bench = Bench::bare(class("WaitForFirstConsumer")).await;
    bench.keep_records(DiskRecords::open(folder.path()).await);
    for _ in 0..3 {
        bench.sync();
        bench.pass().await;
    }
    let record = bench.context.disk_records.get();
    assert_eq!((record.cluster.as_str(), record.volume_groups.len()), ("cluster-1", 1));
    assert_eq!(record.disks()[0].paths, [DISK]);

    bench.set_classes(vec![]);
    bench.api.objects(|objects| objects.clear(STORAGES));
    bench.sync();
    bench.pass().await;
    assert_eq!(opened(&bench), [DISK], "its volumes are still served");

    bench.keep_records(DiskRecords::open(folder.path()).await);
    bench.lvm.allow_devices(vec![]);
    bench.refresh().await;
    lvm_devices::renew(&bench.context, BTreeSet::new()).await;
    assert_eq!(opened(&bench), [DISK]);
    assert_eq!(bench.context.inventory.get().groups.len(), 1);

    // Somebody uses the disk for something else.
    bench.lvm.by_hand(|state| state.groups.clear());
    bench.refresh().await;
    bench.pass().await;
    assert_eq!(
        bench.context.disk_records.get().volume_groups.len(),
        1,
        "it may come back"
    );
    bench.disks.lock().overwritten = true;
    bench.pass().await;
    assert_eq!(bench.context.disk_records.get().volume_groups, vec![]);
}

#[tokio::test]
async fn a_disk_that_an_administrator_added_is_found_by_its_label() {
    let mut bench = Bench::new().await;
    bench
        .lvm
        .allow_devices(vec![DEVICE.to_owned(), SECOND_DEVICE.to_owned()]);
    let group = bench.context.inventory.get().groups[0].reference();
    let extended = bench
        .lvm
        .extend_group(group, vec![SECOND_DEVICE.to_owned()])
        .await
        .expect("extended")
        .value;
    let label = extended.physical_volumes[1].uuid.clone();
    bench.lvm.allow_devices(vec![DISK.to_owned()]);
    bench.refresh().await;
    bench.pass().await;
    assert!(
        bench.context.inventory.get().groups[0].partial,
        "nothing has that label"
    );
    bench.disks.lock().labels.insert(label, SECOND_DISK.to_owned());
    bench.sync();
    bench.pass().await;
    assert_eq!(opened(&bench), [DISK, SECOND_DISK]);
    assert!(!bench.context.inventory.get().groups[0].partial);
    bench.disks.lock().labels.clear();
    bench.pass().await;
    assert_eq!(opened(&bench), [DISK, SECOND_DISK], "it is recorded");
}

#[tokio::test]
async fn no_group_is_made_where_another_has_its_name() {
    let mut bench = Bench::bare(class("WaitForFirstConsumer")).await;
    bench.disks.lock().elsewhere = Some("fast".to_owned());
    for _ in 0..3 {
        bench.sync();
        bench.pass().await;
    }
    assert_eq!(condition(&bench, "Ready").0, "ForeignVolumeGroup");
    assert!(bench.lvm.by_hand(|state| state.groups.is_empty()));
    bench.disks.lock().elsewhere = Some("other".to_owned());
    bench.pass().await;
    assert_eq!(bench.lvm.by_hand(|state| state.groups.len()), 1);
}

/// The group of the bench with these tags of an owner instead of its own.
async fn owned_by(bench: &Bench, owner: &[&str]) {
    bench.lvm.by_hand(|state| {
        let tags = &mut state.groups[0].tags;
        tags.retain(|tag| tag == VERSION_TAG);
        tags.extend(owner.iter().map(|tag| (*tag).to_owned()));
    });
    bench.refresh().await;
}

fn condition(bench: &Bench, kind: &str) -> (String, String) {
    let status = bench.object(STORAGES, "fast.w1").expect("there")["status"].clone();
    let conditions: Vec<Value> = status["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions
        .into_iter()
        .find(|condition| condition["type"] == kind)
        .unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

#[tokio::test(start_paused = true)]
async fn a_group_of_another_node_is_held_and_its_volumes_are_left_alone() {
    for tag in ["quarry.node=w2", "quarry.cluster=cluster-2"] {
        let mut bench = Bench::new().await;
        bench.make(VOLUME, 26, tags("u-1")).await;
        owned_by(&bench, &[tag]).await;
        bench.sync();
        bench.forget();
        bench.pass().await;
        let sweeping = leftovers::keep_away(Arc::clone(&bench.context), Shutdown::new());
        let _ = tokio::time::timeout(Duration::from_secs(300), sweeping).await;
        let mutations = bench
            .log()
            .into_iter()
            .filter(|line| line.starts_with(char::is_uppercase));
        assert_eq!(mutations.collect::<Vec<_>>(), Vec::<String>::new(), "{tag}");
        assert_eq!(bench.volumes().len(), 1);
        let (reason, message) = condition(&bench, "Ready");
        assert_eq!(reason, "OwnedByAnotherNode", "{message}");
        let command = format!("vgchange --deltag {tag} --addtag quarry.node=w1 --addtag quarry.cluster=cluster-1 fast");
        assert!(message.contains(tag) && message.contains(&command), "{message}");
        // A person runs it.
        let own = owner().tags();
        owned_by(&bench, &[&own[0], &own[1]]).await;
        bench.sync();
        bench.pass().await;
        assert_eq!(condition(&bench, "Ready").0, "Ready", "{tag}");
    }
}

#[tokio::test]
async fn a_group_without_an_owner_becomes_this_nodes() {
    let mut bench = Bench::new().await;
    owned_by(&bench, &[]).await;
    bench.sync();
    bench.pass().await;
    let group = bench.context.inventory.get().groups[0].clone();
    assert!(owner().tags().iter().all(|tag| group.tags.contains(tag)), "{group:?}");
    assert_eq!(condition(&bench, "Ready").0, "Ready");
}

/// The disk was on another node a moment ago: the volume is still `creating`, and its PersistentVolume names that node and this
/// very group.
#[tokio::test(start_paused = true)]
async fn a_volume_whose_object_names_its_group_is_no_leftover_wherever_the_disk_is() {
    for (group, left) in [("this", 1), ("another", 0)] {
        let bench = Bench::new().await;
        bench.make(VOLUME, 26, tags("u-1")).await;
        bench.refresh().await;
        let uuid = bench.context.inventory.get().groups[0].uuid.clone();
        let uuid = if group == "this" { uuid } else { "another".to_owned() };
        let volume = json!({
            "metadata": {"name": VOLUME, "uid": "pv-1", "annotations": {
                "pv.kubernetes.io/provisioned-by": quarry_crds::names::PROVISIONER, "quarry.dev/node": "w2",
                "quarry.dev/volume-group": "fast", "quarry.dev/volume-group-uuid": uuid,
            }},
            "spec": {"capacity": {"storage": Bytes::mib(104).to_string()}, "claimRef": {"uid": "u-1"}},
        });
        // The manager watches the objects of its own node only.
        bench.api.objects(|objects| objects.put(VOLUMES, volume));
        let sweeping = leftovers::keep_away(Arc::clone(&bench.context), Shutdown::new());
        let _ = tokio::time::timeout(Duration::from_secs(300), sweeping).await;
        assert_eq!(bench.volumes().len(), left, "{group} group");
    }
}

fn by_model() -> Value {
    let mut class = class("WaitForFirstConsumer");
    class["parameters"]["nodes"] = json!(json!([{"names": ["w1"], "disks": [{"model": "NVMe"}]}]).to_string());
    class
}

fn listed(bench: &Bench) -> Vec<String> {
    let storage = bench.object(STORAGES, "fast.w1").expect("there");
    let disks = storage["spec"]["disks"].as_array().cloned().unwrap_or_default();
    disks
        .iter()
        .filter_map(|disk| disk["path"].as_str().map(str::to_owned))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_selector_chooses_is_taken_once_nobody_has_used_it_for_a_minute() {
    let mut bench = Bench::bare(by_model()).await;
    bench.disks.lock().of_model = vec![DISK.to_owned()];
    let passes = async |bench: &mut Bench| {
        for _ in 0..2 {
            bench.sync();
            bench.pass().await;
        }
        bench.sync();
        bench.lvm.by_hand(|state| state.groups.len())
    };
    assert_eq!(passes(&mut bench).await, 0);
    assert_eq!(listed(&bench), [DISK]);
    let (reason, message) = condition(&bench, "DisksAccepted");
    assert_eq!(reason, "DiskWaiting", "{message}");
    tokio::time::advance(Duration::from_secs(50)).await;
    bench.disks.lock().print = "somebody has written to it".to_owned();
    assert_eq!(passes(&mut bench).await, 0);
    tokio::time::advance(Duration::from_secs(50)).await;
    assert_eq!(passes(&mut bench).await, 0);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(passes(&mut bench).await, 1);
    assert_eq!(condition(&bench, "DisksAccepted").0, "AllAccepted");
    // It stays listed also while it is away.
    bench.disks.lock().of_model.clear();
    assert_eq!((passes(&mut bench).await, listed(&bench)), (1, vec![DISK.to_owned()]));
}

#[tokio::test]
async fn what_is_listed_by_path_too_does_not_wait() {
    let mut by_path = class("WaitForFirstConsumer");
    by_path["metadata"] = json!({"name": "copy", "uid": "class-2"});
    by_path["parameters"]["volumeGroup"] = json!("fast");
    let mut bench = Bench::bare(by_model()).await;
    bench.set_classes(vec![by_model(), by_path]);
    bench.disks.lock().of_model = vec![DISK.to_owned()];
    for _ in 0..3 {
        bench.sync();
        bench.pass().await;
    }
    assert_eq!(bench.lvm.by_hand(|state| state.groups.len()), 1);
}
