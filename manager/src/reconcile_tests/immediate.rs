//! Claims that no scheduler chooses a node for.

use std::time::Duration;

use kube::runtime::controller::Action;
use quarry_crds::names::SELECTED_NODE;
use serde_json::json;

use super::bench::*;

async fn unselected(size: &str) -> Bench {
    let mut bench = Bench::of(class("Immediate")).await;
    bench.put(CLAIMS, claim(None, size));
    bench
}

#[tokio::test]
async fn a_node_with_room_takes_the_claim_it_saw() {
    let mut bench = unselected("101Mi").await;
    let before = bench.object(CLAIMS, "data").expect("there");
    bench.claim().await.expect("taken");
    assert_eq!(bench.log(), ["patch persistentvolumeclaims/data"]);
    assert_eq!(
        bench.api.requests()[0].body,
        json!({"metadata": {"resourceVersion": before["metadata"]["resourceVersion"],
                            "annotations": {SELECTED_NODE: "w1"}}})
    );
    assert_eq!((bench.selected().as_deref(), bench.volumes()), (Some("w1"), vec![]));
    bench.sync();
    bench.claim().await.expect("served");
    assert!(bench.object(VOLUMES, VOLUME).is_some());
}

#[tokio::test]
async fn the_slower_node_does_nothing() {
    let mut bench = unselected("101Mi").await;
    bench.api.before_next("patch", CLAIMS, |objects| {
        objects.change(
            CLAIMS,
            "data",
            &json!({"metadata": {"annotations": {SELECTED_NODE: "w2"}}}),
        );
    });
    assert_eq!(bench.claim().await.expect("lost"), Action::await_change());
    assert_eq!(bench.selected().as_deref(), Some("w2"));
    bench.sync();
    bench.claim().await.expect("nothing to do");
    assert_eq!(bench.log(), ["patch persistentvolumeclaims/data"]);
    assert_eq!((bench.volumes(), bench.events()), (vec![], vec![]));
}

#[tokio::test]
async fn a_node_without_room_takes_nothing() {
    let bench = unselected("2Gi").await;
    let action = bench.claim().await.expect("left");
    assert_eq!(action, Action::requeue(Duration::from_secs(30)));
    assert_eq!((bench.log(), bench.selected()), (vec![], None));
}

#[tokio::test]
async fn what_is_taken_and_finds_no_room_goes_back() {
    let mut bench = unselected("101Mi").await;
    bench.claim().await.expect("taken");
    bench.sync();
    bench.make("else", 250, vec!["quarry.version=1".to_owned()]).await;
    bench.claim().await.expect("given back");
    assert_eq!(bench.selected(), None);
    bench.sync();
    let action = bench.claim().await.expect("left");
    assert_eq!(action, Action::requeue(Duration::from_secs(30)));
    assert_eq!(bench.selected(), None);
}
