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

/// What a scheduler would not do, nobody does.
#[tokio::test]
async fn a_node_that_a_scheduler_would_leave_out_takes_nothing_until_that_changes() {
    let labels = json!({"kubernetes.io/hostname": "w1.example", "zone": "a"});
    let node = |spec: serde_json::Value, ready: &str| {
        json!({"metadata": {"name": "w1", "labels": labels}, "spec": spec,
               "status": {"conditions": [{"type": "Ready", "status": ready}]}})
    };
    let mut bench = unselected("101Mi").await;
    for out in [
        node(json!({"unschedulable": true}), "True"),
        node(json!({"taints": [{"key": "k", "effect": "NoSchedule"}]}), "True"),
        node(json!({}), "False"),
    ] {
        bench.set_node(Some(out));
        bench.claim().await.expect("left");
        assert_eq!((bench.log(), bench.selected()), (vec![], None));
    }
    let mut elsewhere = class("Immediate");
    elsewhere["allowedTopologies"] = json!([{"matchLabelExpressions": [{"key": "zone", "values": ["b"]}]}]);
    bench.set_node(Some(node(json!({}), "True")));
    bench.set_classes(vec![elsewhere]);
    bench.claim().await.expect("left");
    assert_eq!((bench.log(), bench.selected()), (vec![], None));
    bench.set_classes(vec![class("Immediate")]);
    bench.claim().await.expect("taken");
    assert_eq!(bench.selected().as_deref(), Some("w1"));
}

/// Class and claim in one file: the claim is seen before anything is known of the class here.
#[tokio::test]
async fn a_claim_that_came_too_early_is_looked_at_again_when_something_changes() {
    use futures::StreamExt as _;

    let mut bench = Bench::bare(class("Immediate")).await;
    bench.put(CLAIMS, claim(None, "101Mi"));
    bench.pass().await;
    let waiting = bench.context.wake.waiting.clone();
    let mut again = Box::pin(waiting.again());
    assert_eq!(bench.claim().await.expect("left"), Action::await_change());
    for _ in 0..3 {
        bench.sync();
        bench.pass().await;
    }
    bench.sync();
    waiting.look_again();
    let next = again.next().await.expect("it never ends").expect("a claim");
    assert_eq!((next.name.as_str(), next.namespace.as_deref()), ("data", Some("db")));
    bench.claim().await.expect("taken");
    assert_eq!(bench.selected().as_deref(), Some("w1"));
}

/// Also where its class is seen only after it.
#[tokio::test]
async fn a_claim_whose_class_is_not_known_yet_waits_for_it() {
    use futures::StreamExt as _;

    let mut bench = unselected("101Mi").await;
    bench.set_classes(Vec::new());
    assert_eq!(bench.claim().await.expect("left"), Action::await_change());
    let waiting = bench.context.wake.waiting.clone();
    waiting.look_again();
    let mut again = Box::pin(waiting.again());
    assert!(again.next().await.is_some());
    bench.set_classes(vec![class("Immediate")]);
    bench.claim().await.expect("taken");
    assert_eq!(bench.selected().as_deref(), Some("w1"));
}

/// The fuller node lets others go first, and holds nobody up meanwhile.
#[tokio::test(start_paused = true)]
async fn a_fuller_node_waits_for_its_turn_without_holding_up_others() {
    let bench = unselected("101Mi").await;
    bench.make("else", 128, vec!["quarry.version=1".to_owned()]).await;
    bench.refresh().await;
    bench.forget();
    let begun = tokio::time::Instant::now();
    let action = bench.claim().await.expect("waits");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_ne!(action, Action::await_change());
    assert_eq!(bench.selected(), None);
    tokio::time::advance(Duration::from_millis(500)).await;
    bench.claim().await.expect("waits");
    assert_eq!(
        bench.selected(),
        None,
        "a change in between does not bring its turn nearer"
    );
    tokio::time::advance(Duration::from_millis(1600)).await;
    bench.claim().await.expect("taken");
    assert_eq!(bench.selected().as_deref(), Some("w1"));
}

/// A volume populator or an importer makes the volume, by a claim of its own.
#[tokio::test]
async fn what_another_controller_fills_is_left_to_it() {
    for selected in [None, Some("w1")] {
        let mut bench = Bench::of(class("Immediate")).await;
        let mut filled = claim(selected, "101Mi");
        filled["spec"]["dataSourceRef"] = json!({"apiGroup": "backup.io", "kind": "Backup", "name": "monday"});
        bench.put(CLAIMS, filled);
        assert_eq!(bench.claim().await.expect("left"), Action::await_change());
        assert_eq!(bench.volumes(), []);
        assert_eq!(bench.selected().as_deref(), selected);
        let events = bench.events();
        assert!(events[0].1.contains("external populator"), "{events:?}");
    }
}
