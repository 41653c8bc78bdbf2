//! Classes that come, change and go, and what the NodeLocalStorages of the node become by that.

use quarry_crds::names::{CLASS_LABEL, NODE_LABEL};
use serde_json::{Value, json};

use super::bench::*;
use crate::node_local_storage::follow_classes;

/// A NodeLocalStorage as an administrator makes one: nobody's.
fn by_hand(name: &str) -> Value {
    json!({
        "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage", "metadata": {"name": name},
        "spec": {"storageClassName": "other", "nodeName": "w1", "volumeGroup": "other", "layout": "linear", "disks": []}
    })
}

/// A class under a name of its own.
fn named(name: &str) -> Value {
    let mut class = class("WaitForFirstConsumer");
    class["metadata"] = json!({"name": name, "uid": format!("class-{name}")});
    class
}

/// Follows the classes, and says what was asked of the API server.
async fn follow(bench: &mut Bench) -> Vec<String> {
    bench.forget();
    follow_classes(&bench.context).await.expect("followed");
    bench.sync();
    bench.log()
}

#[tokio::test]
async fn a_class_that_names_the_node_has_a_storage_of_its_own() {
    let mut bench = Bench::new().await;
    let made = bench.object(STORAGES, "fast.w1").expect("made");
    assert_eq!(
        made["spec"],
        json!({"storageClassName": "fast", "nodeName": "w1", "volumeGroup": "fast", "layout": "linear",
               "allowUnstableNames": false, "disks": [{"path": "/dev/disk/by-id/a"}]})
    );
    let labels = &made["metadata"]["labels"];
    assert_eq!(
        (&labels[NODE_LABEL], &labels[CLASS_LABEL]),
        (&json!("w1"), &json!("fast"))
    );
    let owner = &made["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["uid"]),
        (&json!("StorageClass"), &json!("class-1"))
    );
    assert_eq!(follow(&mut bench).await, Vec::<String>::new());
}

#[tokio::test]
async fn classes_that_are_not_for_this_node_have_none() {
    let mut foreign = named("foreign");
    foreign["provisioner"] = json!("elsewhere.example");
    let mut away = named("away");
    away["parameters"]["nodes"] = json!(json!([{"names": ["w2"], "disks": ["/dev/disk/by-id/b"]}]).to_string());
    let mut going = named("going");
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut wrong = named("wrong");
    wrong["parameters"]["layuot"] = json!("linear");
    for class in [foreign, away, going, wrong] {
        let mut bench = Bench::new().await;
        bench.set_classes(vec![named("fast"), class.clone()]);
        bench.api.objects(|objects| objects.clear(STORAGES));
        bench.sync();
        assert_eq!(follow(&mut bench).await, ["apply nodelocalstorages/fast.w1"], "{class}");
    }
}

#[tokio::test]
async fn with_the_class_its_storage_goes_and_no_other() {
    let mut bench = Bench::new().await;
    // Without owner, without label, and with an owner of another kind: not made by the manager.
    bench.put(STORAGES, by_hand("by-hand"));
    let mut labelled = by_hand("labelled");
    labelled["metadata"]["labels"] = json!({CLASS_LABEL: "other"});
    bench.put(STORAGES, labelled);
    let mut owned = by_hand("owned");
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x"});
    owned["metadata"]["labels"] = json!({CLASS_LABEL: "other"});
    owned["metadata"]["ownerReferences"] = json!([owner]);
    bench.put(STORAGES, owned);
    let mut unlabelled = by_hand("unlabelled");
    let owner = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "name": "other", "uid": "x"});
    unlabelled["metadata"]["ownerReferences"] = json!([owner]);
    bench.put(STORAGES, unlabelled);
    let uid = bench.object(STORAGES, "fast.w1").expect("there")["metadata"]["uid"].clone();
    bench.set_classes(vec![]);
    assert_eq!(follow(&mut bench).await, ["delete nodelocalstorages/fast.w1"]);
    assert_eq!(bench.api.requests()[0].body["preconditions"]["uid"], uid);
    assert_eq!(bench.object(STORAGES, "fast.w1"), None);
    assert_eq!(follow(&mut bench).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_storage_that_was_made_anew_meanwhile_is_not_deleted_for_the_old_one() {
    let mut bench = Bench::new().await;
    bench.set_classes(vec![]);
    bench.api.before_next("delete", STORAGES, |objects| {
        objects.change(STORAGES, "fast.w1", &json!({"metadata": {"uid": "another"}}));
    });
    assert_eq!(follow(&mut bench).await, ["delete nodelocalstorages/fast.w1"]);
    assert!(bench.object(STORAGES, "fast.w1").is_some());
}

#[tokio::test]
async fn one_that_is_being_deleted_is_not_deleted_twice() {
    let mut bench = Bench::new().await;
    bench.api.objects(|objects| {
        let change = json!({"metadata": {"finalizers": ["x/y"], "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        objects.change(STORAGES, "fast.w1", &change);
    });
    bench.sync();
    bench.set_classes(vec![]);
    assert_eq!(follow(&mut bench).await, Vec::<String>::new());
}

#[tokio::test]
async fn what_an_administrator_adds_stays_and_what_the_class_says_comes_back() {
    let mut bench = Bench::new().await;
    let disks = |paths: &[&str]| {
        let disks: Vec<Value> = paths.iter().map(|path| json!({"path": path})).collect();
        json!({"spec": {"disks": disks}})
    };
    let both = disks(&["/dev/disk/by-id/a", "/dev/disk/by-id/added"]);
    bench.api.objects(|objects| objects.change(STORAGES, "fast.w1", &both));
    bench.sync();
    assert_eq!(follow(&mut bench).await, Vec::<String>::new());
    for change in [
        disks(&["/dev/disk/by-id/added"]),
        json!({"spec": {"layout": "striped"}}),
        json!({"spec": {"allowUnstableNames": true}}),
        json!({"metadata": {"ownerReferences": null}}),
        json!({"metadata": {"labels": {NODE_LABEL: null}}}),
    ] {
        bench
            .api
            .objects(|objects| objects.change(STORAGES, "fast.w1", &change));
        bench.sync();
        assert_eq!(
            follow(&mut bench).await,
            ["apply nodelocalstorages/fast.w1"],
            "{change}"
        );
        assert_eq!(follow(&mut bench).await, Vec::<String>::new(), "{change}");
    }
}

#[tokio::test]
async fn a_class_made_anew_with_another_group_gets_its_storage_anew() {
    let mut bench = Bench::new().await;
    let mut anew = named("fast");
    anew["parameters"]["volumeGroup"] = json!("faster");
    bench.set_classes(vec![anew]);
    assert_eq!(follow(&mut bench).await, ["delete nodelocalstorages/fast.w1"]);
    assert_eq!(follow(&mut bench).await, ["apply nodelocalstorages/fast.w1"]);
    let made = bench.object(STORAGES, "fast.w1").expect("made");
    assert_eq!(made["spec"]["volumeGroup"], "faster");
}

#[tokio::test]
async fn a_class_made_anew_owns_its_storage_again() {
    let mut bench = Bench::new().await;
    bench.set_classes(vec![named("fast")]);
    assert_eq!(follow(&mut bench).await, ["apply nodelocalstorages/fast.w1"]);
    let made = bench.object(STORAGES, "fast.w1").expect("made");
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "class-fast");
}

#[tokio::test]
async fn labels_of_the_node_decide_where_the_class_says_so() {
    let mut bench = Bench::new().await;
    let mut by_label = named("fast");
    let selector = json!({"matchLabels": {"pool": "nvme"}});
    by_label["parameters"]["nodes"] =
        json!(json!([{"selector": selector, "disks": ["/dev/disk/by-id/a"]}]).to_string());
    bench.set_classes(vec![by_label]);
    assert_eq!(follow(&mut bench).await, ["delete nodelocalstorages/fast.w1"]);
    bench.set_labels(json!({"pool": "nvme"}));
    assert_eq!(follow(&mut bench).await, ["apply nodelocalstorages/fast.w1"]);
    bench.set_labels(json!({"pool": "hdd"}));
    assert_eq!(follow(&mut bench).await, ["delete nodelocalstorages/fast.w1"]);
}

#[tokio::test]
async fn one_that_fails_holds_up_no_other_and_is_told() {
    let mut bench = Bench::new().await;
    bench.set_classes(vec![named("a"), named("b")]);
    bench.forget();
    bench.api.fail_next("apply", STORAGES, 500);
    assert!(!follow_classes(&bench.context).await.expect("answered"), "one failed");
    assert_eq!(
        bench.log(),
        [
            "apply nodelocalstorages/a.w1",
            "apply nodelocalstorages/b.w1",
            "delete nodelocalstorages/fast.w1"
        ]
    );
    bench.sync();
    assert_eq!(follow(&mut bench).await, ["apply nodelocalstorages/a.w1"]);
}
