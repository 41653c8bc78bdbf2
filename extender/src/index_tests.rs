//! Tests of the index: objects in, figures out; no client.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use proptest::prelude::*;
use quarry_crds::NodeLocalStorage;
use serde_json::json;

use super::*;
use crate::testing::{Put, bound, filled, free, mk_claim, mk_class, mk_foreign_class, mk_storage, mk_volume, selected};

#[test]
fn ready_once_every_kind_was_listed() {
    let mut index = Index::default();
    mk_class("fast").put(&mut index);
    assert_eq!(index.missing(), Kind::ALL);
    index.replace::<Class>(Vec::new());
    index.replace::<Storage>(Vec::new());
    index.replace::<Claim>(Vec::new());
    assert!(!index.is_filled());
    index.replace::<Volume>(Vec::new());
    assert!(index.is_filled());
    assert!(index.class("fast").is_none(), "a list replaces what was known");
}

#[test]
fn volumes_and_claims_on_their_way_take_space_once() {
    let mut index = filled();
    mk_storage("fast", "n0", "vg", 100, 10).put(&mut index);
    assert_eq!(free(&index, "fast", "n0"), Some(90));
    let claim = mk_claim("a", "fast", 20);
    claim.put(&mut index);
    assert_eq!(free(&index, "fast", "n0"), Some(90), "on no node yet");
    selected(claim.clone(), "n0").put(&mut index);
    assert_eq!(free(&index, "fast", "n0"), Some(70));
    mk_volume("a", "n0", "vg", 21).put(&mut index);
    assert_eq!(free(&index, "fast", "n0"), Some(69), "counted once, as the volume");
    bound(selected(claim.clone(), "n0")).put(&mut index);
    assert_eq!(free(&index, "fast", "n0"), Some(69));
    claim.take(&mut index);
    assert_eq!(free(&index, "fast", "n0"), Some(69), "held until the volume is gone");
    mk_volume("a", "n0", "vg", 21).take(&mut index);
    assert_eq!(free(&index, "fast", "n0"), Some(90));
}

#[test]
fn a_bound_claim_holds_its_space_until_its_volume_is_seen() {
    let mut index = filled();
    mk_storage("fast", "n0", "vg", 100, 0).put(&mut index);
    let claim = bound(selected(mk_claim("a", "fast", 20), "n0"));
    claim.put(&mut index);
    assert_eq!(free(&index, "fast", "n0"), Some(80));
    let mut lost = claim.clone();
    lost.status.get_or_insert_default().phase = Some("Lost".into());
    lost.put(&mut index);
    assert_eq!(free(&index, "fast", "n0"), Some(100), "its volume is gone for good");
    let mut other = claim;
    other.spec.get_or_insert_default().volume_name = Some("by-hand".into());
    other.put(&mut index);
    assert_eq!(free(&index, "fast", "n0"), Some(100));
}

#[test]
fn classes_that_share_a_group_share_its_space() {
    let mut index = filled();
    mk_storage("a", "n0", "vg", 100, 0).put(&mut index);
    mk_storage("b", "n0", "vg", 100, 0).put(&mut index);
    mk_storage("c", "n0", "other", 100, 0).put(&mut index);
    selected(mk_claim("x", "a", 30), "n0").put(&mut index);
    mk_volume("y", "n0", "vg", 5).put(&mut index);
    assert_eq!(free(&index, "a", "n0"), Some(65));
    assert_eq!(free(&index, "b", "n0"), Some(65));
    assert_eq!(free(&index, "c", "n0"), Some(100));
    mk_storage("b", "n0", "vg", 100, 40).put(&mut index);
    assert_eq!(free(&index, "a", "n0"), Some(25), "of two figures the more careful one");
}

#[test]
fn a_deleted_or_unreadable_storage_is_absent() {
    let mut index = filled();
    let storage = mk_storage("fast", "n0", "vg", 100, 0);
    storage.put(&mut index);
    let mut value = serde_json::to_value(&storage).expect("JSON");
    value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let deleted: NodeLocalStorage = serde_json::from_value(value).expect("a NodeLocalStorage");
    deleted.put(&mut index);
    assert_eq!(index.count(Kind::Storages), 0);
    assert!(
        index.node("n0").is_none(),
        "nothing is kept of a node without anything of ours"
    );
}

#[test]
fn foreign_objects_take_nothing() {
    let mut index = filled();
    mk_storage("fast", "n0", "vg", 100, 0).put(&mut index);
    mk_foreign_class("other").put(&mut index);
    selected(mk_claim("a", "other", 20), "n0").put(&mut index);
    let mut foreign = mk_volume("b", "n0", "vg", 50);
    foreign.metadata.annotations.get_or_insert_default().clear();
    assert!(!foreign.put(&mut index));
    assert_eq!(free(&index, "fast", "n0"), Some(100));
}

#[test]
fn what_changes_nothing_says_so() {
    let mut index = filled();
    let storage = mk_storage("fast", "n0", "vg", 100, 0);
    assert!(storage.put(&mut index));
    assert!(!storage.put(&mut index));
    let claim = mk_claim("a", "fast", 1);
    assert!(claim.put(&mut index));
    let mut again = claim.clone();
    again.metadata.resource_version = Some("2".into());
    assert!(!again.put(&mut index));
    assert!(claim.take(&mut index));
    assert!(!claim.take(&mut index));
}

#[test]
fn slots_are_used_again() {
    let mut index = filled();
    for round in 0..100 {
        let storage = mk_storage("fast", &format!("n{round}"), "vg", 100, 0);
        storage.put(&mut index);
        storage.take(&mut index);
    }
    assert_eq!(index.nodes.len(), 1);
}

/// Any object of the model, in one of its states.
#[derive(Debug, Clone)]
enum Object {
    Class(Box<StorageClass>),
    Storage(Box<NodeLocalStorage>),
    Claim(Box<PersistentVolumeClaim>),
    Volume(Box<PersistentVolume>),
}

/// An object's state, or that it is gone.
#[derive(Debug, Clone)]
struct Event {
    object: Object,
    gone: bool,
}

impl Event {
    fn apply(&self, index: &mut Index) {
        match (&self.object, self.gone) {
            (Object::Class(object), false) => object.put(index),
            (Object::Class(object), true) => object.take(index),
            (Object::Storage(object), false) => object.put(index),
            (Object::Storage(object), true) => object.take(index),
            (Object::Claim(object), false) => object.put(index),
            (Object::Claim(object), true) => object.take(index),
            (Object::Volume(object), false) => object.put(index),
            (Object::Volume(object), true) => object.take(index),
        };
    }

    fn name(&self) -> (u8, Option<String>) {
        match &self.object {
            Object::Class(object) => (0, object.metadata.name.clone()),
            Object::Storage(object) => (1, object.metadata.name.clone()),
            Object::Claim(object) => (2, object.metadata.name.clone()),
            Object::Volume(object) => (3, object.metadata.name.clone()),
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let class = (0..3_u8, any::<bool>()).prop_map(|(class, ours)| {
        let name = format!("c{class}");
        Object::Class(Box::new(if ours { mk_class(&name) } else { mk_foreign_class(&name) }))
    });
    let storage =
        (0..3_u8, 0..3_u8, 0..2_u8, 0..200_u64, 0..50_u64).prop_map(|(class, node, group, size, reserved)| {
            let (class, node, group) = (format!("c{class}"), format!("n{node}"), format!("g{group}"));
            Object::Storage(Box::new(mk_storage(&class, &node, &group, size, reserved)))
        });
    let claim = (0..4_u8, 0..3_u8, 1..60_u64, prop::option::of(0..3_u8), any::<bool>()).prop_map(
        |(claim, class, extents, node, is_bound)| {
            let claim = mk_claim(&format!("p{claim}"), &format!("c{class}"), extents);
            let claim = match node {
                Some(node) => selected(claim, &format!("n{node}")),
                None => claim,
            };
            Object::Claim(Box::new(if is_bound { bound(claim) } else { claim }))
        },
    );
    let volume = (0..4_u8, 0..3_u8, 0..2_u8, 1..60_u64).prop_map(|(claim, node, group, extents)| {
        let (claim, node, group) = (format!("p{claim}"), format!("n{node}"), format!("g{group}"));
        Object::Volume(Box::new(mk_volume(&claim, &node, &group, extents)))
    });
    let object = prop_oneof![class, storage, claim, volume];
    (object, prop::bool::weighted(0.2)).prop_map(|(object, gone)| Event { object, gone })
}

/// All that can be seen of an index, in an order of its own.
fn picture(index: &Index) -> Vec<String> {
    let mut lines: Vec<String> = index
        .nodes()
        .map(|node| {
            let classes: Vec<_> = (0..3)
                .map(|class| {
                    let class = format!("c{class}");
                    let slot = index.slot(&node.name).expect("a slot");
                    let board = index.board(&class);
                    let cell = board.cell(slot);
                    let standing = cell.standing(&crate::node::Besides::default());
                    assert_eq!(standing, node.standing(&class), "the board says what the node says");
                    let group = cell.group();
                    let named = group.map(|group| (group.at(), group.extent_size, board.name(group)));
                    let of_node = node.position_of(&class).map(|at| (at, &node.groups()[at]));
                    let of_node = of_node.map(|(at, group)| (at, group.extent_size, group.name.as_str()));
                    assert_eq!(named, of_node);
                    format!("{standing:?} {named:?}")
                })
                .collect();
            format!("{} {:?} {classes:?}", node.name, node.groups())
        })
        .collect();
    lines.extend((0..4).map(|claim| format!("{:?}", index.claim(&format!("db/p{claim}")))));
    lines.extend((0..4).map(|claim| format!("{:?}", index.volume_of(&format!("uid-p{claim}")))));
    lines.extend((0..3).map(|class| format!("{:?}", index.class(&format!("c{class}")))));
    lines.extend(Kind::ALL.map(|kind| index.count(kind).to_string()));
    lines.sort();
    lines
}

proptest! {
    /// However a history is interleaved, and whatever is repeated, the index is what the last state of each object makes.
    #[test]
    fn only_the_last_state_of_each_object_matters(
        history in prop::collection::vec(event(), 1..60),
        order in prop::collection::vec(any::<prop::sample::Index>(), 60),
        repeats in prop::collection::vec(any::<bool>(), 60),
    ) {
        // Events of one object stay in order, as a watch gives them; those of different objects are shuffled.
        let mut queues: Vec<Vec<&Event>> = Vec::new();
        for event in &history {
            match queues.iter_mut().find(|queue| queue[0].name() == event.name()) {
                Some(queue) => queue.push(event),
                None => queues.push(vec![event]),
            }
        }
        let mut fresh = filled();
        for event in queues.iter().filter_map(|queue| queue.last()).filter(|event| !event.gone) {
            event.apply(&mut fresh);
        }
        let mut shuffled = filled();
        for (pick, repeat) in order.iter().zip(repeats) {
            if queues.is_empty() {
                break;
            }
            let at = pick.index(queues.len());
            let event = queues[at].remove(0);
            event.apply(&mut shuffled);
            if repeat {
                event.apply(&mut shuffled);
            }
            if queues[at].is_empty() {
                queues.remove(at);
            }
        }
        prop_assert!(queues.is_empty());
        prop_assert_eq!(picture(&shuffled), picture(&fresh));
        // A list anew, after a broken watch, says the same.
        let claims: Vec<_> = shuffled.claims.iter().map(|(key, claim)| (key.clone(), claim.clone())).collect();
        shuffled.replace::<Claim>(Vec::new());
        shuffled.replace(claims);
        prop_assert_eq!(picture(&shuffled), picture(&fresh));
    }
}
