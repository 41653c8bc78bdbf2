//! Claims of a pod that volumes which are there already would serve: they ask no room of the nodes of these volumes.

use std::collections::HashSet;

use quarry_crds::existing::{Available, Seeker, assign};

use crate::index::{Index, claim_name};
use crate::objects::Claim;

/// A claim of a pod that has no volume and no node.
#[derive(Debug, Clone)]
pub struct Open<'a> {
    /// Its key.
    pub key: String,
    /// The claim.
    pub claim: &'a Claim,
    /// Its class.
    pub class: &'a str,
    /// Its position among what the pod asks; or why no new volume can be made for it.
    pub ask: Result<usize, String>,
}

/// Volumes that are there already, for the open claims of a pod.
#[derive(Debug)]
pub struct Existing<'a> {
    open: &'a [Open<'a>],
    seekers: Vec<Seeker<'a>>,
    volumes: Vec<(&'a str, &'a Available)>,
    /// Where they can be reached; `None` for everywhere.
    nodes: Option<HashSet<&'a str>>,
}

/// What is left of the open claims on one node.
#[derive(Debug, PartialEq, Eq)]
pub enum Left<'a> {
    /// As if there were no such volumes.
    All,
    /// These asks, by position, beside these volumes.
    Some(Vec<usize>, Vec<&'a str>),
    /// A claim that only a volume which is there already could serve, and why.
    Unserved(&'a str),
}

/// The open claim as one that looks for a volume; `None` where none could serve it.
fn seeker<'a>(open: &'a Open<'a>) -> Option<Seeker<'a>> {
    seeking(&open.key, open.claim, open.class)
}

/// A claim as one that looks for a volume.
#[must_use]
pub fn seeking<'a>(key: &'a str, claim: &'a Claim, class: &'a str) -> Option<Seeker<'a>> {
    let (namespace, name) = claim_name(key);
    Some(Seeker {
        namespace,
        name,
        uid: &claim.uid,
        class,
        wish: claim.wish.as_deref()?,
    })
}

impl<'a> Existing<'a> {
    /// The volumes that could serve any of these claims, apart from those that are `promised`; `None` where there is none,
    /// which is nearly always so.
    #[must_use]
    pub fn of(index: &'a Index, open: &'a [Open<'a>], promised: &HashSet<&str>) -> Option<Self> {
        if !index.has_available() {
            return None;
        }
        let seekers: Vec<Seeker<'a>> = open.iter().filter_map(seeker).collect();
        if seekers.len() < open.len() {
            return None;
        }
        let classes: HashSet<&str> = open.iter().map(|open| open.class).collect();
        let volumes: Vec<_> = classes
            .into_iter()
            .flat_map(|class| index.available(class))
            .filter(|(name, volume)| !promised.contains(name) && seekers.iter().any(|seeker| volume.suits(seeker)))
            .collect();
        if volumes.is_empty() {
            return None;
        }
        let nodes: Option<Vec<&[Box<str>]>> = volumes.iter().map(|(_, volume)| volume.nodes()).collect();
        let nodes = nodes.map(|nodes| nodes.into_iter().flatten().map(|name| &**name).collect());
        Some(Self {
            open,
            seekers,
            volumes,
            nodes,
        })
    }

    /// What is left to be asked of a node.
    #[must_use]
    pub fn left(&self, node: &str) -> Left<'a> {
        let reached = self.nodes.as_ref().is_none_or(|nodes| nodes.contains(node));
        let assigned = if reached {
            assign(&self.seekers, &self.volumes, node)
        } else {
            vec![None; self.open.len()]
        };
        let mut left = Vec::new();
        for (open, volume) in self.open.iter().zip(&assigned) {
            match (&open.ask, volume) {
                (_, Some(_)) => {}
                (Ok(ask), None) => left.push(*ask),
                (Err(problem), None) => return Left::Unserved(problem),
            }
        }
        let volumes: Vec<&str> = assigned.into_iter().flatten().collect();
        if volumes.is_empty() {
            return Left::All;
        }
        Left::Some(left, volumes)
    }
}
