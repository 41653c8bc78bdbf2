//! Cleans up after nodes whose Node object is gone: no manager does, for a manager speaks for its own node only.
//!
//! index → which nodes are gone, and for how long ([`quarry_crds::lost_nodes`]) → what of theirs is due → [`steps`], each
//! of which asks the API server itself and writes under the UID or the version that it saw. So it does no harm where two
//! do it at once; one of all extenders does, chosen by a Lease. Nothing here is in the way of an answer to
//! kube-scheduler.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::Api;
use quarry_crds::lost_nodes::{Absences, CONFIRM};
use quarry_process::events::Events;
use quarry_process::leader::Leadership;
use tokio::time::Instant;

use crate::handlers::Extender;
use crate::index::Index;
use crate::nodes::Nodes;
use crate::objects::Binding;

pub mod steps;

/// The Lease of whoever cleans up.
pub const LEASE: &str = "quarry-cleanup";
/// Component that its events come from.
const COMPONENT: &str = "quarry-extender";
/// Changes within this time are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// So long after a claim was given back, kube-scheduler has noted that it was.
const NOTED: Duration = Duration::from_secs(1);
/// After this, a step that failed is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// Kubernetes forgets an event after an hour; what still holds is said again before.
const AGAIN: Duration = Duration::from_secs(50 * 60);

/// An object of a node that is gone, about which something may be due.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Subject {
    /// A claim that waits for the node, by key.
    Claim(Box<str>),
    /// A PersistentVolume, by name.
    Volume(Box<str>),
    /// A NodeLocalStorage, by name.
    Storage(Box<str>),
}

/// Cleans up after nodes.
pub struct Cleanup {
    client: Client,
    extender: Arc<Extender>,
    nodes: Arc<Nodes>,
    leads: Leadership,
    events: Events,
    grace: Duration,
    begun: Instant,
    absences: Absences,
    /// What was done, on which state of the objects, and when to look at that state again.
    done: HashMap<Subject, (u64, Instant)>,
    states: RandomState,
}

impl Cleanup {
    /// A clean-up that lets go of the objects of a node after it has been gone for `grace`.
    #[must_use]
    pub fn new(client: Client, extender: Arc<Extender>, nodes: Arc<Nodes>, leads: Leadership, grace: Duration) -> Self {
        let place = std::env::var("HOSTNAME").unwrap_or_else(|_| COMPONENT.to_owned());
        Self {
            events: Events::new(client.clone(), COMPONENT, place),
            client,
            extender,
            nodes,
            leads,
            grace,
            begun: Instant::now(),
            absences: Absences::default(),
            done: HashMap::new(),
            states: RandomState::new(),
        }
    }

    /// Cleans up whenever this process leads, for ever.
    pub async fn run(mut self) {
        // Without the list of nodes, every node would be gone.
        if !self.nodes.listed().await {
            return;
        }
        let (mut index, mut nodes) = (self.extender.changes(), self.nodes.changes());
        loop {
            if !self.leads.holds() {
                // Who leads anew saw nothing meanwhile, and counts anew.
                self.absences.clear();
                self.done.clear();
                self.leads.gained().await;
            }
            index.mark_unchanged();
            nodes.mark_unchanged();
            let next = self.round().await;
            tokio::select! {
                _ = index.changed() => {}
                _ = nodes.changed() => {}
                () = tokio::time::sleep_until(next) => {}
            }
            tokio::time::sleep(DEBOUNCE).await;
        }
    }

    /// Does what is due; when to look again at the latest.
    async fn round(&mut self) -> Instant {
        let mut next = Instant::now() + AGAIN;
        let filled = self.extender.read(Index::is_filled);
        if !filled {
            return Instant::now() + RETRY;
        }
        if !self.look().await {
            next = Instant::now() + RETRY;
        }
        let gone: Vec<String> = self.absences.nodes().map(str::to_owned).collect();
        let mut known = Vec::new();
        for node in gone {
            let (claims, rest) = self.extender.read(|index| subjects(index, &node, &self.states));
            for (wait, subjects) in [(CONFIRM, claims), (self.grace, rest)] {
                known.extend(subjects.keys().cloned());
                next = next.min(self.after(&node, wait, subjects).await);
            }
        }
        self.done.retain(|subject, _| known.contains(subject));
        next
    }

    /// Finds out which of the nodes that our objects name are gone. Says whether the API server answered.
    async fn look(&mut self) -> bool {
        let named: Vec<String> = self
            .extender
            .read(|index| index.nodes().map(|node| node.name.to_string()).collect());
        let now = |begun: Instant| begun.elapsed();
        for node in self.nodes.take_seen() {
            self.absences.saw(&node, true, now(self.begun));
        }
        let mut answered = true;
        for node in &named {
            if self.nodes.has(node) {
                self.absences.saw(node, true, now(self.begun));
            } else if self.absences.gone_for(node, now(self.begun)).is_none() {
                answered &= self.is_gone(node).await.is_some();
            }
        }
        self.absences.retain(|node| named.iter().any(|name| name == node));
        answered
    }

    /// Asks the API server itself whether a node is gone, and takes note; `None` if it did not say.
    async fn is_gone(&mut self, node: &str) -> Option<bool> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        match nodes.get_metadata_opt(node).await {
            Ok(found) => {
                if found.is_none() && self.absences.gone_for(node, self.begun.elapsed()).is_none() {
                    tracing::info!(node, "a node that objects of Quarry name is gone");
                }
                self.absences.saw(node, found.is_some(), self.begun.elapsed());
                Some(found.is_none())
            }
            Err(error) => {
                tracing::warn!(node, %error, "nobody says whether the node is there");
                None
            }
        }
    }

    /// Does what is due about these objects of a node once it has been gone for so long; when to look again.
    async fn after(&mut self, node: &str, wait: Duration, subjects: BTreeMap<Subject, u64>) -> Instant {
        let far = Instant::now() + AGAIN;
        if subjects.is_empty() {
            return far;
        }
        let Some(gone_for) = self.absences.gone_for(node, self.begun.elapsed()) else {
            return far;
        };
        if gone_for < wait {
            return Instant::now() + (wait - gone_for);
        }
        let mut next = far;
        let mut due = Vec::new();
        for (subject, state) in subjects {
            match self.done.get(&subject) {
                Some((done, until)) if *done == state && Instant::now() < *until => next = next.min(*until),
                _ => due.push((subject, state)),
            }
        }
        // It was gone all the time as far as was seen; the API server itself has the last word.
        if due.is_empty() || self.is_gone(node).await != Some(true) {
            return if due.is_empty() { next } else { Instant::now() + RETRY };
        }
        let mut given_back = Vec::new();
        for (subject, state) in due {
            if !self.leads.holds() {
                return Instant::now();
            }
            let pause = match self.step(node, &subject).await {
                Ok(steps::Done::ForNow) => AGAIN,
                Ok(steps::Done::LookAgain) => RETRY,
                Ok(steps::Done::GivenBack) => {
                    given_back.push(subject.clone());
                    AGAIN
                }
                Err(error) => {
                    tracing::warn!(node, ?subject, %error, "not cleaned up; tried again");
                    RETRY
                }
            };
            let until = Instant::now() + pause;
            next = next.min(until);
            self.done.insert(subject, (state, until));
        }
        self.wake(node, &given_back).await;
        next
    }

    /// Wakes kube-scheduler once more for claims that were given back.
    async fn wake(&self, node: &str, given_back: &[Subject]) {
        if given_back.is_empty() {
            return;
        }
        tokio::time::sleep(NOTED).await;
        for subject in given_back {
            if let Subject::Claim(key) = subject
                && let Err(error) = self.steps(node).wake(key).await
            {
                tracing::warn!(node, claim = %key, %error, "kube-scheduler was not woken once more");
            }
        }
    }

    fn steps<'a>(&'a self, node: &'a str) -> steps::Steps<'a> {
        steps::Steps {
            client: &self.client,
            events: &self.events,
            metrics: &self.extender.metrics,
            node,
            grace: humantime::format_duration(self.grace).to_string(),
        }
    }

    async fn step(&self, node: &str, subject: &Subject) -> Result<steps::Done, kube::Error> {
        let steps = self.steps(node);
        match subject {
            Subject::Claim(key) => steps.give_back(key).await,
            Subject::Volume(name) => steps.volume(name).await,
            Subject::Storage(name) => steps.storage(name).await,
        }
    }
}

/// The claims that wait for a node, and the other objects of it; each with a mark of its state, so far as it matters.
fn subjects(index: &Index, node: &str, states: &RandomState) -> (BTreeMap<Subject, u64>, BTreeMap<Subject, u64>) {
    let Some((_, known)) = index.node(node) else {
        return Default::default();
    };
    let claims = known.on_the_way.keys().filter_map(|key| {
        let claim = index.claim(key)?;
        let waits = claim.binding == Binding::Unbound && !claim.deleting;
        waits.then(|| (Subject::Claim(key.clone()), states.hash_one(&claim.uid)))
    });
    let volumes = known.volumes.iter().map(|(name, volume)| {
        let claim = index.claim(&volume.claim);
        let claim = claim.map(|claim| (&claim.uid, claim.binding, claim.deleting, claim.given_up_with_node));
        let state = format!("{:?} {claim:?}", volume.disposal);
        (Subject::Volume(name.clone()), states.hash_one(state))
    });
    let storages = known.storages.keys();
    let storages = storages.map(|name| (Subject::Storage(name.clone()), 0));
    (claims.collect(), volumes.chain(storages).collect())
}

#[cfg(test)]
#[path = "cleanup_bench.rs"]
mod bench;
#[cfg(test)]
#[path = "cleanup_tests.rs"]
mod tests;
