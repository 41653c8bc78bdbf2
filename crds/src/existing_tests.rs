//! Which volume that is there already serves which claim.

use serde_json::{Value, json};

use super::*;

fn volume(name: &str, size: &str, change: impl Fn(&mut Value)) -> Option<Available> {
    let mut volume = json!({
        "metadata": {"name": name, "labels": {"tier": "gold"}},
        "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
                 "storageClassName": "fast", "nodeAffinity": on("kubernetes.io/hostname", &["w1"])},
        "status": {"phase": "Available"},
    });
    change(&mut volume);
    Available::read(&serde_json::from_value(volume).expect("a volume"))
}

fn on(key: &str, values: &[&str]) -> Value {
    let one = json!({"key": key, "operator": "In", "values": values});
    json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [one]}]}})
}

fn wish(size: &str, change: impl Fn(&mut Value)) -> Wish {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}});
    change(&mut spec);
    let claim = json!({"metadata": {"name": "data"}, "spec": spec});
    Wish::of(&serde_json::from_value(claim).expect("a claim")).expect("a wish")
}

fn seeker<'a>(name: &'a str, wish: &'a Wish) -> Seeker<'a> {
    Seeker {
        namespace: "db",
        name,
        uid: "u-1",
        class: "fast",
        wish,
    }
}

#[test]
fn what_kubernetes_would_bind_serves_and_nothing_else() {
    let plain = wish("1Gi", |_| ());
    let gold = wish("1Gi", |spec| {
        spec["selector"] = json!({"matchLabels": {"tier": "gold"}})
    });
    let iron = wish("1Gi", |spec| {
        spec["selector"] = json!({"matchLabels": {"tier": "iron"}})
    });
    let raw = wish("1Gi", |spec| spec["volumeMode"] = json!("Block"));
    let many = wish("1Gi", |spec| spec["accessModes"] = json!(["ReadWriteMany"]));
    let attributes = wish("1Gi", |spec| spec["volumeAttributesClassName"] = json!("gold"));
    let same = |_: &mut Value| ();
    for (what, wish, size, change, expected) in [
        ("plain", &plain, "1Gi", Box::new(same) as Box<dyn Fn(&mut Value)>, true),
        ("larger", &plain, "2Gi", Box::new(same), true),
        ("smaller", &plain, "1023Mi", Box::new(same), false),
        ("selected", &gold, "1Gi", Box::new(same), true),
        ("not selected", &iron, "1Gi", Box::new(same), false),
        ("raw", &raw, "1Gi", Box::new(same), false),
        ("for many", &many, "1Gi", Box::new(same), false),
        ("with attributes", &attributes, "1Gi", Box::new(same), false),
        (
            "class",
            &plain,
            "1Gi",
            Box::new(|v: &mut Value| v["spec"]["storageClassName"] = json!("slow")),
            false,
        ),
        (
            "node",
            &plain,
            "1Gi",
            Box::new(|v: &mut Value| v["spec"]["nodeAffinity"] = on("kubernetes.io/hostname", &["w2"])),
            false,
        ),
        (
            "any node",
            &plain,
            "1Gi",
            Box::new(|v: &mut Value| v["spec"]["nodeAffinity"] = Value::Null),
            true,
        ),
        (
            "kept for it",
            &iron,
            "1Gi",
            Box::new(|v: &mut Value| v["spec"]["claimRef"] = json!({"namespace": "db", "name": "data"})),
            true,
        ),
        (
            "kept for another",
            &plain,
            "1Gi",
            Box::new(|v: &mut Value| v["spec"]["claimRef"] = json!({"namespace": "db", "name": "else"})),
            false,
        ),
        (
            "kept for one that is gone",
            &plain,
            "1Gi",
            Box::new(|v: &mut Value| v["spec"]["claimRef"] = json!({"namespace": "db", "name": "data", "uid": "u-0"})),
            false,
        ),
    ] {
        let volume = volume("pv", size, change).expect("available");
        assert_eq!(volume.serves(&seeker("data", wish), "w1"), expected, "{what}");
    }
}

#[test]
fn what_is_not_available_or_whose_nodes_cannot_be_told_serves_nobody() {
    let none = |change: &dyn Fn(&mut Value)| volume("pv", "1Gi", change).is_none();
    assert!(none(&|v| v["status"]["phase"] = json!("Released")));
    assert!(none(&|v| v["status"]["phase"] = json!("Bound")));
    assert!(none(
        &|v| v["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")
    ));
    assert!(none(&|v| v["spec"]["storageClassName"] = json!("")));
    assert!(none(&|v| v["spec"]["nodeAffinity"] = on("zone", &["a"])));
}

#[test]
fn a_volume_of_ours_is_on_the_node_that_it_names() {
    let ours = volume("pvc-u-0", "1Gi", |volume| {
        volume["metadata"]["annotations"] = json!({
            "pv.kubernetes.io/provisioned-by": "lvm.quarry.dev", "quarry.dev/node": "w2",
            "quarry.dev/volume-group": "fast", "quarry.dev/volume-group-uuid": "g"});
    });
    let (ours, plain) = (ours.expect("available"), wish("1Gi", |_| ()));
    assert!(ours.serves(&seeker("data", &plain), "w2") && !ours.serves(&seeker("data", &plain), "w1"));
}

#[test]
fn each_volume_serves_one_claim_and_the_smallest_that_does() {
    let make = |name, size| volume(name, size, |_| ()).expect("available");
    let (one, two, five) = (make("one", "1Gi"), make("two", "2Gi"), make("five", "5Gi"));
    let volumes = [("five", &five), ("two", &two), ("one", &one)];
    let (small, large) = (wish("1Gi", |_| ()), wish("3Gi", |_| ()));
    let seekers = [
        seeker("a", &large),
        seeker("b", &small),
        seeker("c", &small),
        seeker("d", &small),
    ];
    assert_eq!(
        assign(&seekers, &volumes, "w1"),
        [None, Some("one"), Some("two"), Some("five")],
        "the smallest claims first, as the scheduler does it"
    );
    assert_eq!(assign(&seekers, &volumes, "w2"), [None; 4]);
}
