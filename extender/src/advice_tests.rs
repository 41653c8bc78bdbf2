use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use quarry_crds::extents::{ExtentSize, Extents};
use quarry_crds::node_local_storage::GroupFigures;
use serde_json::{Value, json};

use super::*;
use crate::objects::Storage;

fn class(name: &str, nodes: &Value, more: &[(&str, &str)]) -> Arc<StorageClass> {
    let mut parameters = json!({"nodes": nodes.to_string()});
    for (key, value) in more {
        parameters[key] = json!(value);
    }
    let class = json!({
        "metadata": {"name": name, "uid": format!("uid-{name}")}, "provisioner": quarry_crds::names::PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer", "parameters": parameters,
    });
    Arc::new(serde_json::from_value(class).expect("a class"))
}

fn on(names: &[&str]) -> Value {
    json!([{"names": names, "disks": ["/dev/disk/by-id/a"]}])
}

fn node(name: &str, os: &str) -> Arc<NodeMeta> {
    let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": os, "pool": name}}});
    Arc::new(serde_json::from_value(node).expect("a node"))
}

fn claim(class: &str, size: &str) -> Claim {
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "data", "namespace": "shop", "uid": "u"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
                 "resources": {"requests": {"storage": size}}},
    }))
    .expect("a claim");
    Claim::read(&claim)
}

/// A volume group of a class, of so many extents of 4 MiB.
fn storage(class: &str, node: &str, extents: u64) -> Storage {
    let figures = GroupFigures {
        uuid: format!("vg-{node}"),
        extent_size: ExtentSize::new(Bytes::mib(4)).expect("an extent size"),
        size: Extents(extents),
        free: Extents::ZERO,
        reserved: Extents::ZERO,
        largest: Extents::ZERO,
    };
    Storage {
        class: class.into(),
        node: node.into(),
        group: "fast".into(),
        ready: false,
        metadata_full: false,
        figures: Some(figures),
    }
}

fn index(claims: &[Claim]) -> Index {
    let mut index = Index::default();
    for (number, claim) in claims.iter().enumerate() {
        index.apply(&format!("shop/data-{number}"), Some(claim.clone()));
    }
    index
}

fn said(classes: &[Arc<StorageClass>], nodes: &[Arc<NodeMeta>], claims: &[Claim]) -> Vec<(String, String)> {
    said_with(classes, nodes, &index(claims))
}

fn said_with(classes: &[Arc<StorageClass>], nodes: &[Arc<NodeMeta>], index: &Index) -> Vec<(String, String)> {
    let text = |advice: Advice| {
        let kind = advice.regarding.kind.unwrap_or_default();
        let name = advice.regarding.name.unwrap_or_default();
        assert!(advice.regarding.uid.is_some() && advice.regarding.api_version.is_some());
        (
            format!("{kind} {name}"),
            format!("{}: {}", advice.saying.reason, advice.saying.note),
        )
    };
    let mut said: Vec<_> = advice(classes, nodes, index).into_iter().map(text).collect();
    said.sort();
    said
}

#[test]
fn nothing_is_said_of_what_is_right_or_not_ours() {
    let good = class("fast", &on(&["w1"]), &[]);
    let mut foreign = StorageClass::clone(&class("other", &json!("nonsense"), &[]));
    foreign.provisioner = "else".to_owned();
    let nodes = [node("w1", "linux")];
    let claims = [claim("fast", "1Gi"), claim("other", "0"), claim("none", "0")];
    assert_eq!(said(&[good, Arc::new(foreign)], &nodes, &claims), []);
}

#[test]
fn a_wrong_class_is_told_with_its_claims() {
    let wrong = class("fast", &on(&["w1"]), &[("fsType", "ntfs"), ("tier", "gold")]);
    let said = said(&[wrong], &[node("w1", "linux")], &[claim("fast", "0")]);
    let objects: Vec<_> = said.iter().map(|(object, _)| object.as_str()).collect();
    assert_eq!(objects, ["PersistentVolumeClaim data-0", "StorageClass fast"]);
    for (_, text) in &said {
        for part in ["InvalidStorageClass", "fsType", "ntfs", "tier", "delete the class"] {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    }
}

#[test]
fn claims_that_no_node_can_serve() {
    let classes = [class("fast", &on(&["w1"]), &[("fsType", "xfs")])];
    let nodes = [node("w1", "linux")];
    let mut bound = claim("fast", "0");
    bound.binding = Binding::Ours;
    let mut going = claim("fast", "0");
    going.deleting = true;
    let said = said(
        &classes,
        &nodes,
        &[claim("fast", "0"), claim("fast", "1Mi"), bound, going],
    );
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0]
            .1
            .starts_with("InvalidClaim: spec.resources.requests.storage: \"0\""),
        "{said:?}"
    );
    assert!(
        said[1].1.contains("1Mi is too small for xfs; ask for at least 300Mi"),
        "{said:?}"
    );
}

#[test]
fn nodes_that_are_not_there_or_of_another_system() {
    let nodes = [node("w1", "linux"), node("win", "windows")];
    let selector = |pool: &str| json!([{"selector": {"matchLabels": {"pool": pool}}, "disks": ["/dev/disk/by-id/a"]}]);
    for (listed, reason, parts) in [
        (
            on(&["w1", "w9"]),
            "NodeNotFound",
            vec!["parameters.nodes[0].names", "\"w9\"", "kubectl get nodes"],
        ),
        (
            on(&["a", "b", "c", "d", "e"]),
            "NodeNotFound",
            vec!["\"a\", \"b\", \"c\", \"d\" and 1 more"],
        ),
        (
            on(&["w1", "win"]),
            "UnsupportedNode",
            vec!["nodes[0]", "\"win\"", "kubernetes.io/os=windows", "Linux"],
        ),
        (
            selector("win"),
            "UnsupportedNode",
            vec!["\"win\"", "kubernetes.io/os=linux"],
        ),
        (
            selector("none"),
            "NodeNotFound",
            vec!["nodes[0].selector", "{\"pool\":\"none\"}", "kubectl label node"],
        ),
    ] {
        let said = said(&[class("fast", &listed, &[])], &nodes, &[]);
        assert_eq!(said.len(), 1, "{said:?}");
        let (object, text) = &said[0];
        assert!(object == "StorageClass fast" && text.starts_with(reason), "{said:?}");
        for part in parts {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    }
}

#[test]
fn a_missing_node_is_told_after_a_while_and_again_before_it_is_forgotten() {
    let wrong = || advice(&[class("fast", &on(&["w9"]), &[])], &[], &Index::default());
    let mut standing = Standing::default();
    let begin = Instant::now();
    let (due, next) = standing.due(wrong(), begin);
    assert!(due.is_empty() && next == begin + GRACE);
    let (due, _) = standing.due(wrong(), next);
    assert_eq!(due, wrong());
    assert_eq!(standing.due(wrong(), next + GRACE), (Vec::new(), next + AGAIN));
    assert_eq!(standing.due(wrong(), next + AGAIN).0.len(), 1);
    // It joined, and left again: it has its time anew.
    assert_eq!(standing.due(Vec::new(), next + AGAIN).0.len(), 0);
    assert_eq!(standing.due(wrong(), next + AGAIN).0.len(), 0);
}

#[test]
fn a_claim_larger_than_every_volume_group() {
    let classes = [class("fast", &on(&["w1"]), &[])];
    let nodes = [node("w1", "linux")];
    let large = claim("fast", "401Mi");
    let mut chosen = large.clone();
    chosen.selected = Some("w1".into());
    let mut index = index(&[claim("fast", "400Mi"), large, chosen]);
    assert_eq!(
        said_with(&classes, &nodes, &index),
        [],
        "nothing is known of any node yet"
    );
    index.apply("fast.w1", Some(storage("fast", "w1", 50)));
    index.apply("fast.w2", Some(storage("fast", "w2", 100)));
    index.apply("slow.w2", Some(storage("slow", "w2", 1000)));
    let said = said_with(&classes, &nodes, &index);
    assert_eq!(said.len(), 1, "{said:?}");
    let (object, text) = &said[0];
    assert_eq!(object, "PersistentVolumeClaim data-1");
    for part in [
        "TooLarge",
        "requests.storage: 401Mi",
        "StorageClass fast",
        "node w2, has 400Mi",
        "ask for less",
        "add disks",
    ] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}
