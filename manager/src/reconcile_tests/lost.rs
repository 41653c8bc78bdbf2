//! Answers that are lost, names that are taken, wipes that fail.

use quarry_crds::names::SELECTED_NODE;
use serde_json::json;

use super::bench::*;
use super::provisioning::{selected, tags};

#[tokio::test]
async fn the_same_volume_serves_after_a_failed_create() {
    let bench = selected().await;
    bench.api.fail_next("create", VOLUMES, 500);
    bench.claim().await.expect_err("no PersistentVolume");
    let made = bench.volumes();
    assert_eq!((made.len(), bench.events()), (1, vec![]));
    assert_eq!(bench.selected().as_deref(), Some("w1"));
    assert_eq!(bench.object(VOLUMES, VOLUME), None);
    bench.claim().await.expect("served");
    assert_eq!(bench.volumes(), made);
    assert!(bench.object(VOLUMES, VOLUME).is_some());
    assert_eq!(
        bench
            .log()
            .iter()
            .filter(|line| line.starts_with("CreateVolume"))
            .count(),
        1
    );
}

#[tokio::test]
async fn a_lost_answer_is_a_success_and_the_volume_is_not_wiped_again() {
    let mut bench = selected().await;
    bench.api.lose_next("create", VOLUMES);
    bench.claim().await.expect_err("lost");
    assert!(bench.object(VOLUMES, VOLUME).is_some());
    bench.forget();
    bench.claim().await.expect("done");
    assert_eq!(bench.log(), ["get persistentvolumes/pvc-u-1"]);
    assert_eq!((bench.volumes().len(), bench.marked()), (1, vec![VOLUME.to_owned()]));
}

/// A PersistentVolume of the name of ours, of that claim and node.
fn taken(claim_uid: &str, node: &str) -> serde_json::Value {
    json!({
        "metadata": {"name": VOLUME, "annotations": {"pv.kubernetes.io/provisioned-by": "lvm.quarry.dev",
            "quarry.dev/node": node, "quarry.dev/volume-group": "fast", "quarry.dev/volume-group-uuid": "vg"}},
        "spec": {"capacity": {"storage": "104Mi"}, "claimRef": {"uid": claim_uid}}
    })
}

#[tokio::test]
async fn one_that_exists_already_must_be_of_the_same_claim_and_node() {
    for (uid, node, same) in [("u-1", "w1", true), ("u-2", "w1", false), ("u-1", "w2", false)] {
        let mut bench = selected().await;
        let there = taken(uid, node);
        bench
            .api
            .before_next("create", VOLUMES, move |objects| objects.put(VOLUMES, there));
        let result = bench.claim().await;
        assert_eq!(bench.api.requests()[1].text(), "create persistentvolumes/pvc-u-1");
        assert_eq!(bench.api.requests()[2].text(), "get persistentvolumes/pvc-u-1");
        if same {
            result.expect("served");
            assert_eq!(bench.marked(), [VOLUME]);
            continue;
        }
        let error = result.expect_err("taken").to_string();
        assert!(error.contains("PersistentVolume pvc-u-1 exists"), "{error}");
        assert_eq!((bench.marked().len(), bench.events()), (0, vec![]), "{uid} {node}");
        // The same is said at the next attempt, before anything is wiped.
        bench.forget();
        let error = bench.claim().await.expect_err("taken").to_string();
        assert!(error.contains("PersistentVolume pvc-u-1 exists"), "{error}");
        assert_eq!(bench.log(), ["get persistentvolumes/pvc-u-1"]);
    }
}

/// Foreign tags, and tags of a volume that was made for another claim and renamed.
fn foreign() -> [Vec<String>; 2] {
    [vec!["backup=no".to_owned()], tags("u-2")]
}

#[tokio::test]
async fn a_foreign_volume_of_the_right_name_is_never_touched() {
    for foreign in foreign() {
        let bench = selected().await;
        bench.make(VOLUME, 26, tags("u-1")).await;
        bench
            .lvm
            .by_hand(|state| state.groups[0].logical_volumes[0].tags = foreign.clone());
        bench.refresh().await;
        let there = bench.volumes();
        let error = bench.claim().await.expect_err("taken").to_string();
        assert!(error.contains("fast/pvc-u-1") && error.contains("lvrename"), "{error}");
        assert_eq!(bench.log(), ["get persistentvolumes/pvc-u-1"]);
        assert_eq!((bench.volumes(), bench.object(VOLUMES, VOLUME)), (there, None));
        assert_eq!(bench.selected().as_deref(), Some("w1"));
    }
}

#[tokio::test]
async fn a_foreign_volume_that_is_seen_late_is_not_touched_either() {
    for foreign in foreign() {
        let bench = selected().await;
        // The group becomes unusable, as far as is known, and then the volume appears.
        bench.lvm.by_hand(|state| state.groups[0].exported = true);
        bench.refresh().await;
        bench.lvm.by_hand(|state| state.groups[0].exported = false);
        bench.make(VOLUME, 26, tags("u-1")).await;
        bench
            .lvm
            .by_hand(|state| state.groups[0].logical_volumes[0].tags = foreign.clone());
        let there = bench.volumes();
        bench.claim().await.expect("looked at again");
        assert_eq!((bench.volumes(), bench.log()), (there.clone(), vec![]));
        assert_eq!(bench.selected().as_deref(), Some("w1"));
        let error = bench.claim().await.expect_err("taken").to_string();
        assert!(error.contains("fast/pvc-u-1"), "{error}");
        assert_eq!(bench.volumes(), there);
    }
}

#[tokio::test]
async fn what_is_not_wiped_is_not_handed_out() {
    let bench = selected().await;
    bench.wiper.fail_next("I/O error");
    let error = bench.claim().await.expect_err("not wiped").to_string();
    assert!(error.contains("could not be wiped: I/O error"), "{error}");
    assert_eq!(bench.log(), ["CreateVolume pvc-u-1", "wipe new pvc-u-1"]);
    assert_eq!(bench.object(VOLUMES, VOLUME), None);
    let claim = bench.object(CLAIMS, "data").expect("there");
    assert_eq!(claim["metadata"]["annotations"][SELECTED_NODE], "w1");
    bench.claim().await.expect("served");
    assert_eq!(bench.volumes().len(), 1);
}
