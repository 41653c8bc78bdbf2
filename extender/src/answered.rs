//! The pods that were answered and whose node is not known yet.
//!
//! Between our answer and the annotation that the scheduler writes on the pod's claims, the pod may be on its way to any
//! of the nodes that it was answered. While the index shows a claim of it on no node, the claim counts on each of these.
//! The pod is remembered until its claims have volumes or are gone, it is asked for again, or a deadline has passed
//! because its attempt failed elsewhere. An annotation alone does not settle it: a watch that lags may show one that was
//! withdrawn before we answered. (A watch that lags by more than a failed provisioning and the second that the scheduler
//! lets pass after it would mislead us; the manager's own check is there for that.)

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use quarry_crds::extents::{Bytes, ExtentSize, Extents};

use crate::attempts::{Allowance, Attempts};
use crate::board::Board;
use crate::index::{Index, Slot};
use crate::node::Besides;
use crate::objects::{Binding, Claim};

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
    /// Volumes that are there already and that it may be bound to.
    volumes: Vec<Box<str>>,
    at: Instant,
}

/// How often what is known of attempts is looked through.
const SWEPT_EVERY: Duration = Duration::from_secs(10);

/// The pods that were answered and whose node is not known yet.
#[derive(Debug, Default)]
pub struct Answered {
    pods: HashMap<String, Record>,
    attempts: Attempts,
    swept: Option<Instant>,
}

/// The claims of one such pod that the index shows on no node, and where they may be.
#[derive(Debug)]
struct Outstanding<'a> {
    claims: Vec<(&'a Pending, &'a Board)>,
    nodes: &'a Nodes,
}

/// All claims that are not counted in the index though they may be on their way.
#[derive(Debug, Default)]
pub struct Crowd<'a> {
    pods: Vec<Outstanding<'a>>,
    len: usize,
    /// What all their claims ask for, in bytes, and how many they are.
    size: Bytes,
    claims: u64,
    /// Whether any claim is one of several pods.
    shared: bool,
    /// When the first of these pods will be given up.
    pub until: Option<Instant>,
}

impl Pending {
    /// Whether the index shows the claim on no node.
    fn is_open(&self, index: &Index) -> bool {
        self.awaited(index).is_some_and(|claim| claim.selected.is_none())
    }

    /// The claim, while it is still to get its volume.
    fn awaited<'a>(&self, index: &'a Index) -> Option<&'a Claim> {
        let claim = index.claim(&self.key)?;
        let same = *claim.uid == *self.uid && claim.binding == Binding::Unbound && !claim.deleting;
        (same && index.volume_of(&self.uid).is_none()).then_some(claim)
    }
}

impl Answered {
    /// Remembers that a pod was answered these nodes.
    pub fn remember(&mut self, pod: &str, claims: Vec<Pending>, nodes: Nodes, now: Instant) {
        let record = Record {
            claims,
            nodes,
            volumes: Vec::new(),
            at: now,
        };
        self.pods.insert(pod.to_owned(), record);
    }

    /// Remembers that a pod may be bound to these volumes.
    pub fn promise(&mut self, pod: &str, volumes: Vec<Box<str>>) {
        if let Some(record) = self.pods.get_mut(pod) {
            record.volumes = volumes;
        }
    }

    /// The volumes that other pods may be bound to.
    #[must_use]
    pub fn promised(&self, pod: &str) -> HashSet<&str> {
        let others = self.pods.iter().filter(|(name, _)| *name != pod);
        others
            .flat_map(|(_, record)| &record.volumes)
            .map(|name| &**name)
            .collect()
    }

    /// What a pod with these claims may be offered, by how often it was offered nodes in vain.
    #[must_use]
    pub fn allowance(&self, claims: &[Pending], now: Instant, forgiven: Duration) -> Allowance {
        self.attempts.allowance(claims, now, forgiven)
    }

    /// A pod is offered nodes for these claims, once more.
    pub fn tried(&mut self, index: &Index, claims: &[Pending], now: Instant, forgiven: Duration) {
        if self.swept.is_none_or(|swept| now.duration_since(swept) >= SWEPT_EVERY) {
            self.swept = Some(now);
            let waits = |claim: &Claim| claim.binding == Binding::Unbound && claim.selected.is_none();
            let known = |key: &str, uid: &str| index.claim(key).filter(|claim| *claim.uid == *uid).is_some_and(waits);
            self.attempts.retain(now, forgiven, known);
        }
        for claim in claims.iter().filter(|claim| claim.is_open(index)) {
            self.attempts.note(claim, now, forgiven);
        }
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

    /// Forgets the pods whose claims all have volumes or are gone, or that were answered too long ago.
    pub fn prune(&mut self, index: &Index, now: Instant, remembered: Duration) {
        let attempts = &mut self.attempts;
        self.pods.retain(|_, record| {
            let mut awaited = false;
            for claim in &record.claims {
                match claim.awaited(index) {
                    Some(seen) if seen.selected.is_some() => {
                        attempts.forget(&claim.uid);
                        awaited = true;
                    }
                    Some(_) => awaited = true,
                    None => {}
                }
            }
            awaited && now.duration_since(record.at) < remembered
        });
    }

    /// The claims of other pods that may be on their way, apart from claims that are `own`.
    #[must_use]
    pub fn crowd<'a>(&'a self, index: &'a Index, pod: &str, own: &[Pending], remembered: Duration) -> Crowd<'a> {
        let mut crowd = Crowd::default();
        for (_, record) in self.pods.iter().filter(|(name, _)| *name != pod) {
            let open: Vec<_> = record.claims.iter().filter(|claim| claim.is_open(index)).collect();
            if open.is_empty() {
                continue;
            }
            crowd.len += 1;
            let until = record.at + remembered;
            crowd.until = Some(crowd.until.map_or(until, |other| other.min(until)));
            let others = open
                .into_iter()
                .filter(|claim| own.iter().all(|own| own.uid != claim.uid));
            let claims: Vec<_> = others.map(|claim| (claim, index.board(&claim.class))).collect();
            for (claim, _) in &claims {
                crowd.size = Bytes(crowd.size.0.saturating_add(claim.size.0));
                crowd.claims += 1;
            }
            let nodes = &record.nodes;
            crowd.pods.push(Outstanding { claims, nodes });
        }
        let claims = || crowd.pods.iter().flat_map(|pod| &pod.claims);
        let mut uids: Vec<&str> = claims().map(|(claim, _)| claim.uid.as_str()).collect();
        uids.sort_unstable();
        crowd.shared = uids.windows(2).any(|pair| pair[0] == pair[1]);
        crowd
    }
}

impl Crowd<'_> {
    /// How many other pods there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nobody else.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What the others take of a volume group with extents of this size at most, if all of them are there: each claim is
    /// rounded up to extents, so that one more for each is enough.
    #[must_use]
    pub fn at_most(&self, extent_size: ExtentSize) -> Extents {
        extent_size.holding(self.size).plus(Extents(self.claims))
    }

    /// What the others may take on a node.
    #[must_use]
    pub fn on(&self, slot: Slot) -> Besides {
        let mut besides = Besides::default();
        let mut seen: Vec<&str> = Vec::new();
        for pod in self.pods.iter().filter(|pod| pod.nodes.contains(slot)) {
            for (claim, board) in &pod.claims {
                if self.shared {
                    // Two pods use one claim: it takes space once.
                    if seen.contains(&claim.uid.as_str()) {
                        continue;
                    }
                    seen.push(&claim.uid);
                }
                besides.add_claim(board.cell(slot), claim.size);
            }
        }
        besides
    }
}
