//! PersistentVolumes that stay, or go in another way than usual: nothing is let go of before it is marked or known to be gone, and
//! nothing is left in silence.

use std::time::Duration;

use kube::ResourceExt as _;
use quarry_crds::claim::VolumeMode;
use quarry_crds::names::NODE_LABEL;
use quarry_crds::orphans::Policy;
use quarry_crds::tags::{VolumeState, VolumeTags, Wipe};
use serde_json::{Value, json};

use super::bench::*;
use super::last_word::{state, state_of, wipes};
use super::provisioning::selected;
use crate::kept;
use crate::orphans::{Counts, sweep};

fn class_with(field: &str, value: Value) -> Value {
    let mut class = class("WaitForFirstConsumer");
    class[field] = value;
    class
}

/// The claim of a class that retains is served and bound.
async fn retaining() -> Bench {
    let mut bench = Bench::of(class_with("reclaimPolicy", json!("Retain"))).await;
    bench.put(CLAIMS, claim(Some("w1"), "101Mi"));
    bench.claim().await.expect("served");
    bench.mark().await;
    bench
        .api
        .objects(|objects| objects.change(VOLUMES, VOLUME, &json!({"status": {"phase": "Bound"}})));
    bench.sync();
    bench
}

#[tokio::test]
async fn what_is_to_be_retained_is_marked_while_it_lives() {
    let mut bench = retaining().await;
    assert_eq!(state(&bench, VOLUME), VolumeState::Retained);
    for (policy, state) in [("Delete", VolumeState::Ready), ("Retain", VolumeState::Retained)] {
        let changed = json!({"spec": {"persistentVolumeReclaimPolicy": policy}});
        bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &changed));
        bench.sync();
        bench.volume().await.expect("kept");
        bench.mark().await;
        assert_eq!(state_of(&bench.volumes()[0]), state);
        bench.volume().await.expect("kept");
        assert_eq!(bench.marked(), [""; 0], "once");
    }
}

#[tokio::test]
async fn it_is_not_let_go_of_while_its_group_is_away() {
    let mut bench = retaining().await;
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"}, "status": {"phase": "Released"}});
    bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &going));
    let groups = bench.lvm.by_hand(|state| std::mem::take(&mut state.groups));
    bench.refresh().await;
    bench.sync();
    let error = bench.volume().await.expect_err("held").to_string();
    assert!(
        error.contains("nobody can mark its logical volume as retained") && error.contains("lost-volume-group"),
        "{error}"
    );
    assert!(bench.object(VOLUMES, VOLUME).is_some());
    bench.lvm.by_hand(|state| state.groups = groups);
    bench.refresh().await;
    bench.volume().await.expect("let go of");
    assert_eq!(
        (bench.object(VOLUMES, VOLUME), state(&bench, VOLUME)),
        (None, VolumeState::Retained)
    );
}

/// The manager dies between lvremove and the finalizer, and its class is gone.
#[tokio::test]
async fn a_group_is_not_taken_down_before_the_objects_of_its_volumes_are_gone() {
    let mut class = class("WaitForFirstConsumer");
    class["parameters"]["volumeGroupPolicy"] = json!("Delete");
    let mut bench = Bench::of(class).await;
    bench.put(CLAIMS, claim(Some("w1"), "101Mi"));
    bench.claim().await.expect("served");
    bench.api.objects(|objects| {
        objects.change(VOLUMES, VOLUME, &json!({"status": {"phase": "Released"}}));
        objects.remove(STORAGES, "fast.w1");
    });
    bench.sync();
    bench.set_classes(vec![]);
    bench.lvm.by_hand(|state| state.groups[0].logical_volumes.clear());
    bench.refresh().await;
    assert_eq!(bench.pass().await, crate::volume_group::Pass::Unfinished);
    assert_eq!(bench.lvm.by_hand(|state| state.groups.len()), 1);
    bench.volume().await.expect("gone");
    assert_eq!(bench.object(VOLUMES, VOLUME), None);
    bench
        .api
        .objects(|objects| objects.put("nodes", json!({"metadata": {"name": "w1"}})));
    bench.sync();
    bench.pass().await;
    assert_eq!(bench.lvm.by_hand(|state| state.groups.len()), 0);
}

#[tokio::test]
async fn a_released_volume_without_its_finalizer_is_removed() {
    let mut bench = selected().await;
    bench.claim().await.expect("served");
    let bare = json!({"metadata": {"finalizers": []}, "status": {"phase": "Released"}});
    bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &bare));
    bench.sync();
    bench.volume().await.expect("removed");
    assert_eq!((bench.volumes(), bench.object(VOLUMES, VOLUME)), (vec![], None));
}

/// The watch of the node goes by the label.
#[tokio::test]
async fn one_without_its_label_is_told_of_and_served() {
    let mut bench = selected().await;
    bench.claim().await.expect("served");
    bench.mark().await;
    bench.api.objects(|objects| {
        let mut volume = objects.get(VOLUMES, VOLUME).expect("there");
        volume["metadata"]["labels"] = json!({});
        volume["status"] = json!({"phase": "Released"});
        objects.remove(VOLUMES, VOLUME);
        objects.remove(CLAIMS, "data");
        objects.put(VOLUMES, volume);
    });
    // The bench's watch knows no labels.
    bench.sync_without(VOLUMES);
    sweep(
        &bench.context,
        Policy::Report,
        Duration::from_secs(60),
        &mut Counts::default(),
    )
    .await
    .expect("swept");
    let events = bench.events();
    let told = events.iter().any(|(reason, note)| {
        reason == "LabelMissing" && note.contains(&format!("kubectl label pv {VOLUME} --overwrite {NODE_LABEL}=w1"))
    });
    assert!(told, "{events:?}");
    assert_eq!((bench.volumes(), bench.object(VOLUMES, VOLUME)), (vec![], None));
}

#[tokio::test]
async fn one_that_is_not_known_as_ours_any_more_is_told_of() {
    let mut bench = selected().await;
    bench.claim().await.expect("served");
    let changed = json!({"metadata": {"annotations": {"quarry.dev/volume-group-uuid": null}}});
    bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &changed));
    bench.sync();
    kept::look(&bench.context, &mut kept::Told::default()).await;
    let events = bench.events();
    let told = events
        .iter()
        .any(|(reason, note)| reason == "VolumeNotServed" && note.contains("lacks quarry.dev/volume-group-uuid"));
    assert!(told, "{events:?}");
}

/// Its removal had begun when somebody set it to Retain.
#[tokio::test]
async fn a_bound_volume_that_was_being_removed_is_told_of() {
    let mut bench = retaining().await;
    bench.lvm.by_hand(|state| {
        let volume = &mut state.groups[0].logical_volumes[0];
        volume.tags = volume
            .tags
            .iter()
            .map(|tag| tag.replace("state=retained", "state=deleting"))
            .collect();
    });
    bench.refresh().await;
    bench.api.objects(|objects| objects.clear(EVENTS));
    let mut told = kept::Told::default();
    for _ in 0..3 {
        kept::look(&bench.context, &mut told).await;
    }
    let events = bench.events();
    assert_eq!(events.len(), 2, "of the volume and of its claim, once: {events:?}");
    assert!(
        events
            .iter()
            .all(|(reason, note)| reason == "VolumeNotServed" && note.contains("quarry.state=deleting"))
    );
    bench.mark().await;
    assert_eq!(
        state(&bench, VOLUME),
        VolumeState::Deleting,
        "nothing takes that back by itself"
    );
}

/// `vgsplit`: the volume is in another group, and its own is whole without it.
#[tokio::test]
async fn a_volume_in_another_group_is_not_taken_for_removed() {
    for policy in ["Delete", "Retain"] {
        let mut bench = selected().await;
        bench.claim().await.expect("served");
        bench.mark().await;
        let going = json!({
            "metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"},
            "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": "Released"},
        });
        bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &going));
        bench.lvm.by_hand(|state| {
            let mut other = state.groups[0].clone();
            "split".clone_into(&mut other.name);
            "Split0-0000-0000-0000-0000-0000-000000".clone_into(&mut other.uuid);
            other.physical_volumes.clear();
            state.groups[0].logical_volumes.clear();
            state.groups.push(other);
        });
        bench.refresh().await;
        bench.sync();
        if policy == "Delete" {
            let error = bench.volume().await.expect_err("left alone").to_string();
            assert!(
                error.contains("is in volume group split") && error.contains("vgmerge fast split"),
                "{error}"
            );
            assert!(bench.object(VOLUMES, VOLUME).is_some() && wipes(&bench) == ["wipe new pvc-u-1"]);
        } else {
            bench.volume().await.expect("let go of");
            assert_eq!(bench.object(VOLUMES, VOLUME), None);
            assert_eq!(state(&bench, VOLUME), VolumeState::Retained);
        }
        assert_eq!(bench.volumes().len(), 1);
    }
}

/// etcd was restored to a moment before these volumes were made: whatever is set, and whoever removes some of them by hand.
#[tokio::test]
async fn volumes_that_lost_their_objects_together_are_never_removed() {
    let mut bench = Bench::new().await;
    for at in 1..=4 {
        let tags = VolumeTags {
            claim_uid: format!("u-{at}"),
            class: "fast".to_owned(),
            state: VolumeState::Ready,
            wipe: Wipe::Signatures,
            mode: VolumeMode::Filesystem,
        };
        bench.make(&format!("pvc-u-{at}"), 5, tags.to_vec()).await;
    }
    bench.refresh().await;
    let grace = Duration::from_secs(60);
    let mut counts = Counts::default();
    for _ in 0..30 {
        sweep(&bench.context, Policy::Delete, grace, &mut counts)
            .await
            .expect("swept");
    }
    assert_eq!((bench.volumes().len(), wipes(&bench)), (4, vec![]));
    let notes = bench.events();
    assert!(
        notes
            .iter()
            .any(|(_, note)| note.contains("lost their objects at once, as when etcd was restored")),
        "{notes:?}"
    );
    bench.mark().await;
    assert!(
        bench
            .volumes()
            .iter()
            .all(|volume| state_of(volume) == VolumeState::Retained)
    );
    bench.lvm.by_hand(|state| state.groups[0].logical_volumes.truncate(1));
    bench.restart();
    for _ in 0..30 {
        sweep(&bench.context, Policy::Delete, grace, &mut counts)
            .await
            .expect("swept");
    }
    assert_eq!((bench.volumes().len(), wipes(&bench)), (1, vec![]));
    assert!(
        !bench
            .context
            .objects
            .volumes
            .state()
            .iter()
            .any(|volume| volume.name_any() == VOLUME)
    );
}
