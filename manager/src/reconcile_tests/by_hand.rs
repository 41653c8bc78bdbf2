//! What a person does to volume groups and volumes with LVM's own commands: it is seen and said, and nothing is done to
//! what is not as Quarry made it.

use serde_json::json;

use super::bench::*;
use super::provisioning::selected;
use crate::lvm::{LogicalVolume, State};

/// Reason and message of the condition of that type.
fn condition(bench: &Bench, kind: &str) -> (String, String) {
    let storage = bench.object(STORAGES, "fast.w1").expect("there");
    let conditions = storage["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions
        .into_iter()
        .find(|condition| condition["type"] == kind)
        .expect("said");
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

fn is_told(bench: &Bench, reason: &str, part: &str) -> bool {
    bench
        .events()
        .iter()
        .any(|(said, note)| said == reason && note.contains(part))
}

async fn look(bench: &mut Bench) {
    bench.refresh().await;
    bench.sync();
    bench.pass().await;
    bench.sync();
}

type Change = fn(&mut State);

/// Changes after which LVM, or Quarry, changes nothing in a group; and what is said.
const GROUPS: [(&str, &str, Change); 7] = [
    ("VolumeGroupUnusable", "exported", |state| {
        state.groups[0].exported = true
    }),
    ("VolumeGroupUnusable", "lock manager", |state| {
        state.groups[0].shared = true
    }),
    ("VolumeGroupUnusable", "system ID \"other-host\"", |state| {
        state.groups[0].system_id = Some("other-host".to_owned());
    }),
    ("ForeignVolumeGroup", "was not made by Quarry", |state| {
        state.groups[0].tags.clear()
    }),
    ("OtherVersion", "quarry.version=2", |state| {
        state.groups[0].tags = vec!["quarry.version=2".to_owned()]
    }),
    ("VolumeGroupMissing", "is gone", |state| {
        "elsewhere".clone_into(&mut state.groups[0].name)
    }),
    ("DuplicateVolumeGroupName", "2 volume groups are named fast", |state| {
        let mut twin = state.groups[0].clone();
        "another".clone_into(&mut twin.uuid);
        state.groups.push(twin);
    }),
];

#[tokio::test]
async fn nothing_is_done_in_a_group_that_is_not_as_it_was_and_it_is_said() {
    for (reason, part, change) in GROUPS {
        let mut bench = selected().await;
        let before = bench.lvm.by_hand(|state| {
            change(state);
            state.clone()
        });
        look(&mut bench).await;
        let (seen, message) = condition(&bench, "Ready");
        assert!(seen == reason && message.contains(part), "{reason}: {seen}: {message}");
        assert!(is_told(&bench, "NotReady", part), "{reason}: {:?}", bench.events());
        bench.claim().await.expect("given back");
        assert_eq!(bench.selected(), None, "{reason}: there is no capacity here");
        let mutated = bench
            .log()
            .into_iter()
            .any(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
        assert!(!mutated, "{reason}: {:?}", bench.log());
        assert_eq!(bench.lvm.by_hand(|state| state.clone()), before, "{reason}");
    }
}

/// Neither wiped nor removed; and when the group is as it was, what was asked for is done.
#[tokio::test]
async fn a_volume_in_such_a_group_is_not_removed_until_it_is_as_it_was() {
    for (reason, _, change) in GROUPS {
        let mut bench = selected().await;
        bench.claim().await.expect("served");
        let released = json!({"status": {"phase": "Released"}});
        bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &released));
        let before = bench.lvm.by_hand(|state| {
            let before = state.clone();
            change(state);
            before
        });
        look(&mut bench).await;
        bench.forget();
        // Of a group that was renamed only the name is another, and without its own tag the volumes are still ours.
        if ["VolumeGroupUnusable", "DuplicateVolumeGroupName"].contains(&reason) {
            bench.volume().await.expect_err(reason);
            assert!(
                !bench.log().iter().any(|line| line.contains("wipe")),
                "{reason}: {:?}",
                bench.log()
            );
            assert!(
                !bench.volumes().is_empty() && bench.object(VOLUMES, VOLUME).is_some(),
                "{reason}"
            );
        }
        bench.lvm.by_hand(|state| *state = before);
        look(&mut bench).await;
        assert_eq!(condition(&bench, "Ready").0, "Ready", "{reason}");
        bench.volume().await.expect("removed");
        assert_eq!(
            (bench.volumes(), bench.object(VOLUMES, VOLUME)),
            (vec![], None),
            "{reason}"
        );
    }
}

fn change_volume(bench: &Bench, change: impl FnOnce(&mut LogicalVolume)) {
    bench
        .lvm
        .by_hand(|state| change(&mut state.groups[0].logical_volumes[0]));
}

#[tokio::test]
async fn a_renamed_volume_is_neither_made_again_nor_taken_for_removed() {
    let mut bench = selected().await;
    bench.claim().await.expect("served");
    let bound = json!({"status": {"phase": "Bound"}});
    bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &bound));
    change_volume(&bench, |volume| "mine".clone_into(&mut volume.name));
    look(&mut bench).await;
    let (reason, message) = condition(&bench, "Degraded");
    assert!(
        reason == "VolumeMissing" && message.contains("pvc-u-1 (renamed to mine)"),
        "{reason}: {message}"
    );
    assert!(
        is_told(&bench, "VolumeMissing", "renamed to mine"),
        "{:?}",
        bench.events()
    );

    bench
        .api
        .objects(|objects| objects.change(VOLUMES, VOLUME, &json!({"status": {"phase": "Released"}})));
    bench.sync();
    let error = bench.volume().await.expect_err("left alone").to_string();
    assert!(
        error.contains("was renamed to mine") && error.contains("lvrename fast mine pvc-u-1"),
        "{error}"
    );
    assert_eq!(bench.volumes().len(), 1);

    // Its object went by force: the claim is not given a second volume.
    bench.api.objects(|objects| objects.remove(VOLUMES, VOLUME));
    bench.sync();
    let error = bench.claim().await.expect_err("not made again").to_string();
    assert!(error.contains("was renamed to fast/mine"), "{error}");
    assert_eq!(bench.volumes().len(), 1);
    change_volume(&bench, |volume| VOLUME.clone_into(&mut volume.name));
    bench.refresh().await;
    bench.claim().await.expect("served");
    assert_eq!(bench.volumes().len(), 1);
}

#[tokio::test]
async fn a_volume_that_was_removed_by_hand_is_said_to_be_missing() {
    let mut bench = selected().await;
    bench.claim().await.expect("served");
    let bound = json!({"status": {"phase": "Bound"}});
    bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &bound));
    look(&mut bench).await;
    assert_eq!(condition(&bench, "Degraded").0, "Whole");
    bench.lvm.by_hand(|state| state.groups[0].logical_volumes.clear());
    look(&mut bench).await;
    assert_eq!(condition(&bench, "Degraded").0, "VolumeMissing");
    assert!(is_told(&bench, "VolumeMissing", "pvc-u-1"), "{:?}", bench.events());
    assert_eq!(bench.volumes(), [], "nothing is made in its place");
    // Its claim is deleted: nothing is in the way.
    bench
        .api
        .objects(|objects| objects.change(VOLUMES, VOLUME, &json!({"status": {"phase": "Released"}})));
    bench.sync();
    bench.volume().await.expect("nothing to remove");
    assert_eq!(bench.object(VOLUMES, VOLUME), None);
}

/// Extents of another size, a volume that was resized, a disk more: figures follow, and claims are reckoned with them.
#[tokio::test]
async fn extents_of_another_size_are_reckoned_with() {
    let mut bench = selected().await;
    bench.lvm.by_hand(|state| {
        let group = &mut state.groups[0];
        group.extent_size = quarry_crds::ExtentSize::new(quarry_crds::Bytes::mib(8)).expect("not zero");
        (group.size.0, group.free.0) = (group.size.0 / 2, group.free.0 / 2);
        for pv in &mut group.physical_volumes {
            (pv.size.0, pv.free.0) = (pv.size.0 / 2, pv.free.0 / 2);
        }
    });
    look(&mut bench).await;
    let storage = bench.object(STORAGES, "fast.w1").expect("there");
    assert_eq!(storage["status"]["volumeGroup"]["extentSize"], "8Mi");
    assert_eq!(storage["status"]["volumeGroup"]["size"], "1000Mi");
    bench.claim().await.expect("served");
    assert_eq!(bench.volumes()[0].extents.0, 13, "101 MiB in extents of 8 MiB");
    let made = bench.object(VOLUMES, VOLUME).expect("made");
    assert_eq!(made["spec"]["capacity"]["storage"], "104Mi");
}
