//! The pods that were answered and whose node is not known yet.
//!
//! Between our answer and the annotation that the scheduler writes on the pod's claims, the pod may be on its way to any
//! of the nodes that it was answered. It is remembered until the watch shows where it went, it is asked for again, its
//! claims are gone, or a deadline has passed because its attempt failed elsewhere.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use quarry_crds::extents::Bytes;

use crate::index::{Index, Slot};
use crate::node::{Besides, Node};
use crate::objects::Binding;

/// A claim that a pod was answered for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Key of the claim.
    pub key: String,
    /// Its UID.
    pub uid: String,
    /// Its class.
    pub class: String,
    /// What it asks for.
    pub size: Bytes,
}

/// A set of nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes(Vec<u64>);

impl Nodes {
    /// Adds a node.
    pub fn insert(&mut self, slot: Slot) {
        let word = slot.0 / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (slot.0 % 64);
    }

    fn contains(&self, slot: Slot) -> bool {
        self.0
            .get(slot.0 / 64)
            .is_some_and(|word| word & (1 << (slot.0 % 64)) != 0)
    }
}

#[derive(Debug)]
struct Record {
    claims: Vec<Pending>,
    nodes: Nodes,
    at: Instant,
}

/// The pods that were answered and whose node is not known yet.
#[derive(Debug, Default)]
pub struct Answered {
    pods: HashMap<String, Record>,
}

/// The claims of one such pod that are not counted in the index, and where they may be.
#[derive(Debug)]
struct Outstanding<'a> {
    claims: Vec<&'a Pending>,
    place: Place<'a>,
}

#[derive(Debug)]
enum Place<'a> {
    /// On one of these nodes.
    Any(&'a Nodes),
    /// On this one: another claim of the pod shows it.
    Here(Box<str>),
}

/// All claims that are not counted in the index though they may be on their way.
#[derive(Debug, Default)]
pub struct Crowd<'a> {
    pods: Vec<Outstanding<'a>>,
    /// When the first of these pods will be given up.
    pub until: Option<Instant>,
}

impl Pending {
    /// Whether the index does not show yet where the claim goes.
    fn is_open(&self, index: &Index) -> bool {
        index.claim(&self.key).is_some_and(|claim| {
            *claim.uid == *self.uid
                && claim.binding == Binding::Unbound
                && claim.selected.is_none()
                && index.volume_of(&self.uid).is_none()
        })
    }

    /// The node that the index shows for the claim.
    fn seen_on(&self, index: &Index) -> Option<Box<str>> {
        let claim = index.claim(&self.key).filter(|claim| *claim.uid == *self.uid);
        claim
            .and_then(|claim| claim.selected.clone())
            .or_else(|| index.volume_of(&self.uid).map(Into::into))
    }
}

impl Answered {
    /// Remembers that a pod was answered these nodes.
    pub fn remember(&mut self, pod: &str, claims: Vec<Pending>, nodes: Nodes, now: Instant) {
        let record = Record { claims, nodes, at: now };
        self.pods.insert(pod.to_owned(), record);
    }

    /// Forgets a pod: its attempt is over, or another one begins.
    pub fn forget(&mut self, pod: &str) {
        self.pods.remove(pod);
    }

    /// How many pods are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether no pod is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Forgets the pods whose node is known, whose claims are gone, or that were answered too long ago.
    pub fn prune(&mut self, index: &Index, now: Instant, remembered: Duration) {
        self.pods.retain(|_, record| {
            now.duration_since(record.at) < remembered && record.claims.iter().any(|claim| claim.is_open(index))
        });
    }

    /// The claims of other pods that may be on their way.
    #[must_use]
    pub fn crowd(&self, index: &Index, pod: &str, remembered: Duration) -> Crowd<'_> {
        let mut crowd = Crowd::default();
        for (_, record) in self.pods.iter().filter(|(name, _)| *name != pod) {
            let (open, settled): (Vec<_>, Vec<_>) = record.claims.iter().partition(|claim| claim.is_open(index));
            let here = settled.iter().find_map(|claim| claim.seen_on(index));
            crowd.pods.push(Outstanding {
                claims: open,
                place: here.map_or(Place::Any(&record.nodes), Place::Here),
            });
            let until = record.at + remembered;
            crowd.until = Some(crowd.until.map_or(until, |other| other.min(until)));
        }
        crowd
    }
}

impl Crowd<'_> {
    /// Whether there is nobody else.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// What the others may take on a node, apart from claims that are `own`.
    #[must_use]
    pub fn on(&self, slot: Slot, node: &Node, own: &[Pending]) -> Besides {
        let mut besides = Besides::default();
        let mut seen: HashSet<&str> = HashSet::new();
        for pod in &self.pods {
            let here = match &pod.place {
                Place::Any(nodes) => nodes.contains(slot),
                Place::Here(name) => **name == *node.name,
            };
            if !here {
                continue;
            }
            for claim in &pod.claims {
                if own.iter().any(|own| own.uid == claim.uid) || !seen.insert(&claim.uid) {
                    continue;
                }
                if let Some(group) = node.group_of(&claim.class) {
                    besides.add(&group.uuid, group.extent_size.holding(claim.size));
                }
            }
        }
        besides
    }
}
