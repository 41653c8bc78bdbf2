//! What is known of the cluster, kept by watches.
//!
//! Everything that is derived is a function of the objects alone, never of the order in which they were seen: what a
//! node has is reckoned anew from its own objects whenever one of them changes. A class may come after its claims, a
//! NodeLocalStorage after both, a volume before or after its claim is bound.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Instant;

use foldhash::fast::RandomState;
use quarry_crds::data_source::claim_uid_of_prime;
use quarry_crds::existing::Available;
use quarry_crds::names::volume_name;
use quarry_crds::refusals::pause;

use crate::board::{Board, NOWHERE};
use crate::existing::seeking;
use crate::node::{Node, OnTheWay};
use crate::objects::{AnyVolume, Binding, Claim, Class, Storage, Volume};

/// A node in the index. A slot is used again once nothing is left of the node that had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub(crate) usize);

/// The kinds of objects that the index is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `storageclasses`
    Classes,
    /// `nodelocalstorages`
    Storages,
    /// `persistentvolumeclaims`
    Claims,
    /// `persistentvolumes`
    Volumes,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Classes, Self::Storages, Self::Claims, Self::Volumes];

    /// As the API calls them.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Classes => "storageclasses",
            Self::Storages => "nodelocalstorages",
            Self::Claims => "persistentvolumeclaims",
            Self::Volumes => "persistentvolumes",
        }
    }
}

/// What the index keeps of one kind of objects.
pub trait Entry: Sized {
    /// The kind.
    const KIND: Kind;

    /// Puts an entry in the place of what is known under its key; `None` takes it away. Says whether that changed
    /// anything.
    fn put(index: &mut Index, key: &str, entry: Option<Self>) -> bool;

    /// The keys of all entries.
    fn keys(index: &Index) -> Vec<Box<str>>;
}

/// A node that refused a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LeftAlone {
    node: Box<str>,
    count: u32,
    until: Instant,
}

/// What is known of the cluster.
#[derive(Debug, Default)]
pub struct Index {
    classes: HashMap<Box<str>, Class>,
    claims: HashMap<Box<str>, Claim, RandomState>,
    /// Where each volume of ours is, by its name.
    volumes: HashMap<Box<str>, Slot, RandomState>,
    /// Where each NodeLocalStorage is, by its name.
    storages: HashMap<Box<str>, Slot>,
    /// Looked into for each candidate: by a hash that is fast for short names.
    slots: HashMap<Box<str>, Slot, RandomState>,
    nodes: Vec<Node>,
    /// What each class has on the nodes, by name of the class.
    boards: HashMap<Box<str>, Board>,
    spare: Vec<Slot>,
    /// Nodes whose manager is silent.
    silent: BTreeSet<String>,
    /// Volumes that are bound to no claim and may be, whoever made them: by class and name.
    available: BTreeMap<Box<str>, BTreeMap<Box<str>, Available>>,
    /// The class of each of them.
    available_of: HashMap<Box<str>, Box<str>>,
    /// Keys of the claims that another controller fills, by UID.
    filled_elsewhere: HashMap<Box<str>, Box<str>>,
    /// Of such claims, by UID: for which a claim of that controller takes the space.
    stood_for: HashSet<Box<str>>,
    /// The nodes that refused a claim, by its key: how often, and until when they are left alone.
    left_alone: HashMap<Box<str>, Vec<LeftAlone>>,
    /// Nodes to be reckoned anew.
    touched: HashSet<Slot>,
    filled: HashSet<Kind>,
}

impl Index {
    /// Takes in one object: `None` if it is gone or does not concern us. Says whether that changed anything.
    pub fn apply<E: Entry>(&mut self, key: &str, entry: Option<E>) -> bool {
        let changed = E::put(self, key, entry);
        self.reckon();
        changed
    }

    /// Takes in a complete list of the objects of one kind; what is not in it is gone.
    pub fn replace<E: Entry>(&mut self, entries: Vec<(Box<str>, E)>) {
        let listed: HashSet<&str> = entries.iter().map(|(key, _)| &**key).collect();
        let gone: Vec<_> = E::keys(self)
            .into_iter()
            .filter(|key| !listed.contains(&**key))
            .collect();
        drop(listed);
        for key in gone {
            E::put(self, &key, None);
        }
        for (key, entry) in entries {
            E::put(self, &key, Some(entry));
        }
        self.filled.insert(E::KIND);
        self.reckon();
    }

    /// From now on the managers of these nodes, and of no others, are silent.
    pub fn silence(&mut self, nodes: &BTreeSet<String>) {
        self.silent.clone_from(nodes);
        for (at, node) in self.nodes.iter_mut().enumerate() {
            let silent = nodes.contains(&*node.name);
            if std::mem::replace(&mut node.silent, silent) != silent {
                self.touched.insert(Slot(at));
            }
        }
        self.reckon();
    }

    /// How many of the nodes that hold anything of ours have a manager that is silent.
    #[must_use]
    pub fn silent(&self) -> usize {
        self.nodes().filter(|node| node.silent).count()
    }

    /// The kinds that have not been listed yet.
    #[must_use]
    pub fn missing(&self) -> Vec<Kind> {
        Kind::ALL
            .into_iter()
            .filter(|kind| !self.filled.contains(kind))
            .collect()
    }

    /// Whether every kind has been listed.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        self.filled.len() == Kind::ALL.len()
    }

    /// A class by name.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<&Class> {
        self.classes.get(name)
    }

    /// A claim by its key, see [`claim_key`].
    #[must_use]
    pub fn claim(&self, key: &str) -> Option<&Claim> {
        self.claims.get(key)
    }

    /// All claims, with their keys.
    pub fn claims(&self) -> impl Iterator<Item = (&str, &Claim)> {
        self.claims.iter().map(|(key, claim)| (&**key, claim))
    }

    /// The node where the volume of a claim has been seen.
    #[must_use]
    pub fn volume_of(&self, claim_uid: &str) -> Option<&str> {
        let slot = *self.volumes.get(volume_name(claim_uid).as_str())?;
        Some(&self.nodes[slot.0].name)
    }

    /// What is known of a node; `None` if nothing of ours is there.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<(Slot, &Node)> {
        let slot = *self.slots.get(name)?;
        Some((slot, &self.nodes[slot.0]))
    }

    /// Where a node is on the boards.
    #[must_use]
    pub fn slot(&self, name: &str) -> Option<Slot> {
        self.slots.get(name).copied()
    }

    /// What a class has on each node.
    #[must_use]
    pub fn board(&self, class: &str) -> &Board {
        self.boards.get(class).unwrap_or(&NOWHERE)
    }

    /// Everything that is known of nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| !node.is_empty())
    }

    /// How many objects of a kind are kept.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Classes => self.classes.len(),
            Kind::Storages => self.storages.len(),
            Kind::Claims => self.claims.len(),
            Kind::Volumes => self.volumes.len(),
        }
    }

    /// Whether any volume may be bound to a claim that looks for one.
    #[must_use]
    pub fn has_available(&self) -> bool {
        !self.available.is_empty()
    }

    /// The volumes of a class that may be bound to a claim, with their names.
    pub fn available(&self, class: &str) -> impl Iterator<Item = (&str, &Available)> {
        let of_class = self.available.get(class).into_iter().flatten();
        of_class.map(|(name, volume)| (&**name, volume))
    }

    /// Puts a volume among those that may be bound to a claim, or takes it away. Says whether that changed anything.
    fn put_available(&mut self, name: &str, volume: Option<Available>) -> bool {
        let class = self.available_of.get(name).cloned();
        let before = class.as_ref().and_then(|class| self.available.get(class)?.get(name));
        if before == volume.as_ref() {
            return false;
        }
        if let Some(class) = class {
            self.available_of.remove(name);
            if let Some(of_class) = self.available.get_mut(&class) {
                of_class.remove(name);
            }
            self.available.retain(|_, of_class| !of_class.is_empty());
        }
        if let Some(volume) = volume {
            self.available_of.insert(name.into(), volume.class.clone());
            let of_class = self.available.entry(volume.class.clone()).or_default();
            of_class.insert(name.into(), volume);
        }
        true
    }

    /// Whether a volume that is there already would serve a claim on some node.
    #[must_use]
    pub fn is_served_by_existing(&self, key: &str, claim: &Claim) -> bool {
        let class = claim.class.as_deref().unwrap_or_default();
        seeking(key, claim, class).is_some_and(|seeker| self.available(class).any(|(_, volume)| volume.suits(&seeker)))
    }

    /// The nodes that are left alone by a claim, and until when, because they refused it.
    pub fn left_alone(&self, key: &str) -> impl Iterator<Item = (&str, Instant)> {
        let of_claim = self.left_alone.get(key).into_iter().flatten();
        of_claim.map(|one| (&*one.node, one.until))
    }

    /// Takes in the refusals of a claim. Clocks of nodes are not compared: the time runs from when a refusal was seen.
    fn refused(&mut self, key: &str, claim: Option<&Claim>) {
        let Some(refusals) = claim.and_then(|claim| claim.refusals.as_deref()) else {
            self.left_alone.remove(key);
            return;
        };
        let before = self.left_alone.remove(key).unwrap_or_default();
        let now = Instant::now();
        let of_node = |(node, count): (&str, u32)| {
            let seen = before.iter().find(|seen| *seen.node == *node && seen.count == count);
            LeftAlone {
                node: node.into(),
                count,
                until: seen.map_or_else(|| now + pause(count), |seen| seen.until),
            }
        };
        self.left_alone
            .insert(key.into(), refusals.iter().map(of_node).collect());
    }

    /// Counts a claim where it is on its way to, or no longer where it was.
    fn count_on_its_way(&mut self, key: &str) {
        let Some(claim) = self.claims.get(key) else {
            return;
        };
        let (Some(node), Some(class), Ok(wanted)) = (claim.on_its_way_to(), &claim.class, &claim.request) else {
            return;
        };
        let node: Box<str> = node.into();
        // The claim by which another controller fills it takes the space, once that has a node.
        let counts = !(claim.filled_elsewhere && self.stood_for.contains(&claim.uid));
        let on_the_way = OnTheWay {
            claim_uid: claim.uid.clone(),
            class: class.clone(),
            size: wanted.size,
        };
        let node = self.touch(&node).1;
        if counts {
            node.on_the_way.insert(key.into(), on_the_way);
        } else {
            node.on_the_way.remove(key);
        }
    }

    /// Whether a claim takes the space of one that it helps to fill, from now on.
    fn stands_for(&mut self, key: &str, claim: Option<&Claim>) {
        let Some(filled) = claim_uid_of_prime(claim_name(key).1) else {
            return;
        };
        let takes = claim.is_some_and(|claim| claim.binding == Binding::Ours || claim.on_its_way_to().is_some());
        let changed = if takes {
            self.stood_for.insert(filled.into())
        } else {
            self.stood_for.remove(filled)
        };
        if changed && let Some(key) = self.filled_elsewhere.get(filled).cloned() {
            self.count_on_its_way(&key);
        }
    }

    /// A node to be changed.
    fn touch(&mut self, name: &str) -> (Slot, &mut Node) {
        let slot = match self.slots.get(name) {
            Some(slot) => *slot,
            None => {
                let slot = self.spare.pop().unwrap_or_else(|| {
                    self.nodes.push(Node::default());
                    Slot(self.nodes.len() - 1)
                });
                self.nodes[slot.0].name = name.into();
                self.nodes[slot.0].silent = self.silent.contains(name);
                self.slots.insert(name.into(), slot);
                slot
            }
        };
        self.touched.insert(slot);
        (slot, &mut self.nodes[slot.0])
    }

    fn touch_slot(&mut self, slot: Slot) -> &mut Node {
        self.touched.insert(slot);
        &mut self.nodes[slot.0]
    }

    /// Reckons anew what has changed.
    fn reckon(&mut self) {
        if self.touched.is_empty() {
            return;
        }
        for slot in std::mem::take(&mut self.touched) {
            let node = &mut self.nodes[slot.0];
            if node.is_empty() {
                self.slots.remove(&node.name);
                *node = Node::default();
                self.spare.push(slot);
            } else {
                node.reckon();
            }
            let node = &self.nodes[slot.0];
            for class in node.storages.values().map(|storage| &storage.class) {
                if !self.boards.contains_key(class) {
                    self.boards.insert(class.clone(), Board::default());
                }
            }
            for (class, board) in &mut self.boards {
                board.put(slot, node, class);
            }
        }
        self.boards.retain(|_, board| !board.is_empty());
    }
}

/// The key of a claim.
#[must_use]
pub fn claim_key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// Namespace and name of a claim, from its key.
#[must_use]
pub fn claim_name(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

impl Entry for Class {
    const KIND: Kind = Kind::Classes;

    fn put(index: &mut Index, key: &str, entry: Option<Self>) -> bool {
        match entry {
            Some(class) if index.classes.get(key) == Some(&class) => false,
            Some(class) => {
                index.classes.insert(key.into(), class);
                true
            }
            None => index.classes.remove(key).is_some(),
        }
    }

    fn keys(index: &Index) -> Vec<Box<str>> {
        index.classes.keys().cloned().collect()
    }
}

impl Entry for Claim {
    const KIND: Kind = Kind::Claims;

    fn put(index: &mut Index, key: &str, entry: Option<Self>) -> bool {
        let before = index.claims.get(key);
        if before == entry.as_ref() {
            return false;
        }
        let filled = before
            .filter(|claim| claim.filled_elsewhere)
            .map(|claim| claim.uid.clone());
        if let Some(node) = before.and_then(Claim::on_its_way_to).map(Box::<str>::from) {
            index.touch(&node).1.on_the_way.remove(key);
        }
        if let Some(uid) = filled {
            index.filled_elsewhere.remove(&uid);
        }
        index.refused(key, entry.as_ref());
        index.stands_for(key, entry.as_ref());
        let Some(claim) = entry else {
            index.claims.remove(key);
            return true;
        };
        if claim.filled_elsewhere {
            index.filled_elsewhere.insert(claim.uid.clone(), key.into());
        }
        index.claims.insert(key.into(), claim);
        index.count_on_its_way(key);
        true
    }

    fn keys(index: &Index) -> Vec<Box<str>> {
        index.claims.keys().cloned().collect()
    }
}

impl Entry for Volume {
    const KIND: Kind = Kind::Volumes;

    fn put(index: &mut Index, key: &str, entry: Option<Self>) -> bool {
        let before = index.volumes.get(key).copied();
        if before.and_then(|slot| index.nodes[slot.0].volumes.get(key)) == entry.as_ref() {
            return false;
        }
        if let Some(slot) = before {
            index.touch_slot(slot).volumes.remove(key);
            index.volumes.remove(key);
        }
        if let Some(volume) = entry {
            let (slot, node) = index.touch(&volume.node);
            node.volumes.insert(key.into(), volume);
            index.volumes.insert(key.into(), slot);
        }
        true
    }

    fn keys(index: &Index) -> Vec<Box<str>> {
        index.volumes.keys().cloned().collect()
    }
}

impl Entry for AnyVolume {
    const KIND: Kind = Kind::Volumes;

    fn put(index: &mut Index, key: &str, entry: Option<Self>) -> bool {
        let (ours, available) = entry.map_or((None, None), |entry| (entry.ours, entry.available));
        let changed = Volume::put(index, key, ours);
        index.put_available(key, available) || changed
    }

    fn keys(index: &Index) -> Vec<Box<str>> {
        let known: BTreeSet<&Box<str>> = index.volumes.keys().chain(index.available_of.keys()).collect();
        known.into_iter().cloned().collect()
    }
}

impl Entry for Storage {
    const KIND: Kind = Kind::Storages;

    fn put(index: &mut Index, key: &str, entry: Option<Self>) -> bool {
        let before = index.storages.get(key).copied();
        if before.and_then(|slot| index.nodes[slot.0].storages.get(key)) == entry.as_ref() {
            return false;
        }
        if let Some(slot) = before {
            index.touch_slot(slot).storages.remove(key);
            index.storages.remove(key);
        }
        if let Some(storage) = entry {
            let (slot, node) = index.touch(&storage.node);
            node.storages.insert(key.into(), storage);
            index.storages.insert(key.into(), slot);
        }
        true
    }

    fn keys(index: &Index) -> Vec<Box<str>> {
        index.storages.keys().cloned().collect()
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
