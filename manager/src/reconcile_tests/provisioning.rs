//! Claims that are served, and those that go back to the scheduler.

use std::time::Duration;

use kube::runtime::controller::Action;
use quarry_crds::claim::VolumeMode;
use quarry_crds::names::SELECTED_NODE;
use quarry_crds::tags::{VolumeState, VolumeTags, Wipe};
use serde_json::json;

use super::bench::*;
use crate::provision::FIRST_PASS;

/// Tags of the volume of the claim of that UID, as it is made.
pub fn tags(claim_uid: &str) -> Vec<String> {
    let tags = VolumeTags {
        claim_uid: claim_uid.to_owned(),
        class: "fast".to_owned(),
        state: VolumeState::Creating,
        wipe: Wipe::Signatures,
        mode: VolumeMode::Filesystem,
    };
    tags.to_vec()
}

fn sorted(mut tags: Vec<String>) -> Vec<String> {
    tags.sort();
    tags
}

pub async fn selected() -> Bench {
    let mut bench = Bench::new().await;
    bench.put(CLAIMS, claim(Some("w1"), "101Mi"));
    bench
}

#[tokio::test]
async fn a_claim_gets_a_wiped_volume_once() {
    let mut bench = selected().await;
    assert_eq!(bench.claim().await.expect("served"), Action::await_change());
    assert_eq!(
        bench.log(),
        [
            "CreateVolume pvc-u-1",
            "wipe new pvc-u-1",
            "get persistentvolumeclaims/data",
            "create persistentvolumes/pvc-u-1",
            "create events/ProvisioningSucceeded",
        ]
    );
    let volumes = bench.volumes();
    assert_eq!(volumes.len(), 1);
    assert_eq!((volumes[0].name.as_str(), volumes[0].extents.0), (VOLUME, 26));
    assert_eq!(volumes[0].tags, sorted(tags("u-1")));
    let made = bench.object(VOLUMES, VOLUME).expect("made");
    let group = bench.context.inventory.get().groups[0].clone();
    let claim = bench.object(CLAIMS, "data").expect("there");
    assert_eq!(
        made["spec"],
        json!({
            "capacity": {"storage": "104Mi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "fast",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "db", "name": "data",
                         "uid": "u-1", "resourceVersion": claim["metadata"]["resourceVersion"]},
            "local": {"path": "/dev/fast/pvc-u-1", "fsType": "ext4"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["w1.example"]}]}]}},
        })
    );
    assert_eq!(
        made["metadata"]["annotations"]["quarry.dev/volume-group-uuid"],
        group.uuid
    );
    assert_eq!(made["metadata"]["annotations"]["quarry.dev/node"], "w1");
    assert_eq!(made["metadata"]["finalizers"], json!(["quarry.dev/logical-volume"]));
    assert_eq!(bench.marked(), [VOLUME]);

    bench.sync();
    bench.forget();
    bench.claim().await.expect("nothing to do");
    assert_eq!(bench.log(), [""; 0]);
    assert_eq!(bench.volumes(), volumes);
}

/// The watch of PersistentVolumes can lag behind that of claims; the volume may be in use by then.
#[tokio::test]
async fn what_was_handed_out_is_not_wiped_again() {
    let mut bench = selected().await;
    bench.claim().await.expect("served");
    bench.forget();
    bench.claim().await.expect("nothing to do");
    assert_eq!(bench.log(), ["get persistentvolumes/pvc-u-1"]);
    assert_eq!(bench.marked(), [VOLUME], "once, however often that is asked for");
}

/// Else it could never be wiped, and the claim would be stuck for good.
#[tokio::test]
async fn what_a_crash_left_without_its_device_is_activated_first() {
    let bench = selected().await;
    bench.make(VOLUME, 26, tags("u-1")).await;
    bench
        .lvm
        .by_hand(|state| state.groups[0].logical_volumes[0].active = Some(false));
    bench.refresh().await;
    bench.forget();
    bench.claim().await.expect("served");
    let log = bench.log();
    let wiped = log.iter().position(|line| line == "wipe new pvc-u-1").expect("wiped");
    let activated = log
        .iter()
        .position(|line| line.starts_with("SetActive"))
        .expect("activated");
    assert!(activated < wiped, "{log:?}");
    assert_eq!(bench.volumes()[0].active, Some(true));
}

#[tokio::test]
async fn what_a_crash_left_is_taken_up_and_wiped_again() {
    let mut bench = selected().await;
    let left = bench.make(VOLUME, 26, tags("u-1")).await;
    bench.refresh().await;
    bench.claim().await.expect("served");
    assert_eq!(
        bench.log(),
        [
            "get persistentvolumes/pvc-u-1",
            "wipe new pvc-u-1",
            "get persistentvolumeclaims/data",
            "create persistentvolumes/pvc-u-1",
            "create events/ProvisioningSucceeded",
        ]
    );
    assert_eq!(bench.volumes(), [left]);
    assert_eq!(bench.marked(), [VOLUME]);
}

/// Somebody took the room after it was published.
async fn without_room() -> Bench {
    let bench = selected().await;
    bench.make("else", 230, vec!["quarry.version=1".to_owned()]).await;
    bench
}

#[tokio::test]
async fn without_room_the_truth_is_published_before_the_claim_goes_back() {
    let bench = without_room().await;
    let before = bench.object(CLAIMS, "data").expect("there");
    assert_eq!(bench.claim().await.expect("given back"), Action::await_change());
    assert_eq!(
        bench.log(),
        [
            "CreateVolume pvc-u-1",
            "apply nodelocalstorages/fast.w1/status",
            "patch persistentvolumeclaims/data",
            "create events/ProvisioningFailed",
        ]
    );
    let requests = bench.api.requests();
    assert_eq!(requests[0].body["status"]["volumeGroup"]["free"], "84Mi");
    assert_eq!(
        requests[1].body,
        json!({"metadata": {"resourceVersion": before["metadata"]["resourceVersion"],
                            "annotations": {SELECTED_NODE: null}}})
    );
    assert_eq!(bench.selected(), None);
    let names: Vec<String> = bench.volumes().into_iter().map(|volume| volume.name).collect();
    assert_eq!(names, ["else"]);
    let events = bench.events();
    assert!(
        events[0].1.contains("101Mi (26 extents) asked, 84Mi free"),
        "{events:?}"
    );
}

#[tokio::test]
async fn where_the_truth_cannot_be_published_the_claim_stays() {
    let bench = without_room().await;
    bench.api.fail_nth(1, 500);
    let error = bench.claim().await.expect_err("not published").to_string();
    assert!(error.contains("could not be published"), "{error}");
    assert_eq!(bench.selected().as_deref(), Some("w1"));
    assert_eq!(bench.api.requests().len(), 1);
    bench.claim().await.expect("given back");
    assert_eq!(bench.selected(), None);
}

#[tokio::test]
async fn a_claim_that_changed_meanwhile_is_not_given_back_blindly() {
    let mut bench = without_room().await;
    bench.api.before_next("patch", CLAIMS, |objects| {
        objects.change(CLAIMS, "data", &json!({"metadata": {"labels": {"new": "yes"}}}));
    });
    let action = bench.claim().await.expect("looked at again");
    assert_eq!(action, Action::requeue(Duration::from_millis(200)));
    assert_eq!(bench.selected().as_deref(), Some("w1"));
    assert_eq!(bench.events(), []);
    bench.sync();
    bench.claim().await.expect("given back");
    assert_eq!(bench.selected(), None);
}

#[tokio::test]
async fn a_volume_that_nobody_wants_any_more_is_removed() {
    type Change = fn(&mut crate::fake_api::Objects);
    let changes: [(&str, Change); 5] = [
        ("deleted", |objects| objects.remove(CLAIMS, "data")),
        ("being deleted", |objects| {
            objects.change(
                CLAIMS,
                "data",
                &json!({"metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"}}),
            );
        }),
        ("another node", |objects| {
            objects.change(
                CLAIMS,
                "data",
                &json!({"metadata": {"annotations": {SELECTED_NODE: "w2"}}}),
            );
        }),
        ("bound", |objects| {
            objects.change(CLAIMS, "data", &json!({"spec": {"volumeName": "other"}}))
        }),
        ("made anew", |objects| {
            objects.change(CLAIMS, "data", &json!({"metadata": {"uid": "u-2"}}))
        }),
    ];
    for (what, change) in changes {
        let bench = selected().await;
        bench.api.before_next("get", CLAIMS, change);
        bench.claim().await.expect(what);
        assert_eq!(
            bench.log(),
            [
                "CreateVolume pvc-u-1",
                "wipe new pvc-u-1",
                "get persistentvolumeclaims/data",
                "RemoveVolumes pvc-u-1"
            ],
            "{what}"
        );
        assert_eq!(bench.volumes(), [], "{what}");
        assert_eq!(bench.object(VOLUMES, VOLUME), None, "{what}");
    }
}

#[tokio::test]
async fn a_manager_that_has_just_started_gives_no_claim_back() {
    let mut bench = selected().await;
    bench.start_anew();
    bench.forget();
    let action = bench.claim().await.expect("it waits");
    assert_eq!(action, Action::requeue(FIRST_PASS));
    assert_eq!((bench.log(), bench.selected().as_deref()), (vec![], Some("w1")));
    bench.pass().await;
    bench.claim().await.expect("served");
    assert_eq!((bench.volumes().len(), bench.selected().as_deref()), (1, Some("w1")));
}

/// The extender counts no claim that is being deleted: what is left of its volume is nobody's until it is removed.
#[tokio::test]
async fn the_volume_of_a_claim_that_is_being_deleted_is_reserved() {
    let mut bench = selected().await;
    bench.make(VOLUME, 26, tags("u-1")).await;
    bench.refresh().await;
    let reserved = async |bench: &mut Bench| {
        bench.pass().await;
        bench.sync();
        let storage = bench.object(STORAGES, "fast.w1").expect("there");
        storage["status"]["volumeGroup"]["reserved"].as_str().map(str::to_owned)
    };
    assert_eq!(reserved(&mut bench).await.as_deref(), Some("0"));
    let mut going = claim(Some("w1"), "101Mi");
    going["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
    going["metadata"]["finalizers"] = json!(["kubernetes.io/pvc-protection"]);
    bench.put(CLAIMS, going);
    assert_eq!(reserved(&mut bench).await.as_deref(), Some("104Mi"));
}
