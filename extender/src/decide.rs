//! The decision: which of the candidates can hold a pod's claims. No I/O and no clock of its own.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use quarry_crds::extents::Bytes;
use quarry_crds::placement::{self, Ask, Fit, Refusal, Standing};
use quarry_crds::provisioning::large_enough;
use quarry_crds::storage_class::Scoring;

use crate::answered::{Answered, Nodes, Pending};
use crate::api::Pod;
use crate::index::{Index, claim_key};
use crate::node::Besides;
use crate::objects::{Binding, Claim, Class};

/// How long a pod's answer may wait for the watches, and for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a claim or a class that the scheduler has seen, and we have not.
    pub unseen: Duration,
    /// For the nodes of pods that were answered just before, where some nodes are free of doubt.
    pub settle: Duration,
    /// The same, where no node is: the alternative is to send the pod back, which costs it a second or more.
    pub crowd: Duration,
    /// How long a pod is remembered whose node never shows. In a burst the scheduler's own limit of requests to the API
    /// server can delay its choice by seconds.
    pub remembered: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            unseen: Duration::from_millis(200),
            settle: Duration::from_millis(50),
            crowd: Duration::from_secs(1),
            remembered: Duration::from_secs(10),
        }
    }
}

/// Why an answer waits, or cannot be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Doubt {
    /// The index is not complete yet.
    NotReady,
    /// A claim, or its class, is not known (in the state that the scheduler knows) yet.
    Unseen,
    /// Pods that were answered just before may be on any of the nodes.
    Crowded,
}

/// Why a node is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A claim asks for what cannot be served.
    InvalidClaim,
    /// The parameters of its class are wrong.
    InvalidClass,
    /// Another node was selected for one of the claims already.
    OtherNode,
    /// The class does not name the node.
    NotInClass,
    /// The volume group is not fit for volumes.
    NotReady,
    /// Too little is left.
    NoRoom,
    /// Too little may be left: pods answered just before may be there. (No error, because then a scheduler for which the
    /// extender is ignorable would place the pod without us; a refused pod is looked at again as soon as a claim or
    /// volume of the others changes.)
    Crowded,
}

/// What is said of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It asks nothing of us: every candidate.
    All,
    /// These candidates, by position; of the others the first reason against each.
    Some {
        /// Positions of those that can hold it.
        passed: Vec<usize>,
        /// Positions of those that cannot, with what to tell.
        refused: Vec<(usize, Cause, Cow<'static, str>)>,
    },
    /// Nothing can be said, and the scheduler is to try again.
    Error(Doubt, String),
}

/// A decision, or how long to wait for the watches before the next try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Decided.
    Answer(Answer),
    /// Wait until the index changes, but no longer than this.
    Wait(Doubt, Duration),
}

/// What a pod asks of a node.
#[derive(Debug, Default)]
struct Needs {
    pending: Vec<Pending>,
    asks: Vec<Ask>,
    scorings: Vec<Scoring>,
    pinned: Option<Box<str>>,
}

/// Why what a pod asks is not known.
#[derive(Debug)]
enum Unclear {
    Doubt(Doubt, String),
    Refuse(Cause, String),
}

/// Decides on a pod whose answer has waited this long, and remembers it if it may go somewhere.
pub fn filter(
    index: &Index,
    answered: &mut Answered,
    pod: &Pod,
    candidates: &[Cow<'_, str>],
    patience: &Patience,
    now: Instant,
    waited: Duration,
) -> Verdict {
    let name = pod.identity();
    let verdict = match needs(index, pod, candidates) {
        Err(Unclear::Doubt(Doubt::Unseen, _)) if waited < patience.unseen => {
            return Verdict::Wait(Doubt::Unseen, patience.unseen - waited);
        }
        Err(Unclear::Doubt(doubt, text)) => Answer::Error(doubt, text),
        Err(Unclear::Refuse(cause, text)) => Answer::Some {
            passed: Vec::new(),
            refused: (0..candidates.len())
                .map(|at| (at, cause, Cow::Owned(text.clone())))
                .collect(),
        },
        Ok(needs) if needs.asks.is_empty() && needs.pinned.is_none() => Answer::All,
        Ok(needs) => {
            answered.prune(index, now, patience.remembered);
            let crowd = answered.crowd(index, &name, patience.remembered);
            let view = view(index, &needs, candidates, |slot, node| {
                crowd.on(slot, node, &needs.pending)
            });
            let limit = if view.passed.is_empty() {
                patience.crowd
            } else {
                patience.settle
            };
            if !view.crowded.is_empty() && waited < limit {
                let until = crowd.until.map_or(limit, |until| until.saturating_duration_since(now));
                let least = Duration::from_millis(1);
                return Verdict::Wait(Doubt::Crowded, (limit - waited).min(until.max(least)));
            }
            answered.forget(&name);
            if !view.passed.is_empty() && !needs.pending.is_empty() {
                answered.remember(&name, needs.pending, view.nodes, now);
            }
            let mut refused = view.refused;
            refused.extend(view.crowded);
            refused.sort_unstable_by_key(|(at, _, _)| *at);
            return Verdict::Answer(Answer::Some {
                passed: view.passed,
                refused,
            });
        }
    };
    answered.forget(&name);
    Verdict::Answer(verdict)
}

/// Scores the candidates for a pod: 0 to 10, and 0 for all where nothing can be said.
#[must_use]
pub fn prioritize(index: &Index, pod: &Pod, candidates: &[Cow<'_, str>]) -> Vec<i64> {
    let Ok(needs) = needs(index, pod, candidates) else {
        return vec![0; candidates.len()];
    };
    if needs.asks.is_empty() {
        return vec![0; candidates.len()];
    }
    let none = Besides::default();
    let count = i64::try_from(needs.scorings.len()).unwrap_or(1).max(1);
    let score = |fit: Fit| -> i64 {
        // Several classes of one pod may prefer differently: each has an equal say.
        needs
            .scorings
            .iter()
            .map(|scoring| placement::score(fit, *scoring))
            .sum::<i64>()
            / count
    };
    candidates
        .iter()
        .map(|name| {
            let node = index.node(name).map(|(_, node)| node);
            let standing = |class: &str| node.map_or(Standing::Absent, |node| node.standing(class, &none));
            placement::fits(&needs.asks, standing).map_or(0, score)
        })
        .collect()
}

/// What the candidates are for a pod.
#[derive(Default)]
struct View {
    passed: Vec<usize>,
    nodes: Nodes,
    refused: Vec<(usize, Cause, Cow<'static, str>)>,
    /// Those that have room, unless pods answered just before are on them.
    crowded: Vec<(usize, Cause, Cow<'static, str>)>,
}

fn view(
    index: &Index,
    needs: &Needs,
    candidates: &[Cow<'_, str>],
    crowd: impl Fn(crate::index::Slot, &crate::node::Node) -> Besides,
) -> View {
    let mut view = View::default();
    let none = Besides::default();
    for (at, name) in candidates.iter().enumerate() {
        if needs.pinned.as_deref().is_some_and(|pinned| pinned != name) {
            let text = "node(s) were not the one selected for a volume of the pod";
            view.refused.push((at, Cause::OtherNode, text.into()));
            continue;
        }
        let found = index.node(name);
        let fits = |besides: &Besides| {
            let standing = |class: &str| found.map_or(Standing::Absent, |(_, node)| node.standing(class, besides));
            placement::fits(&needs.asks, standing)
        };
        if let Err(refusal) = fits(&none) {
            view.refused.push((at, cause(&refusal), refusal.to_string().into()));
            continue;
        }
        let Some((slot, node)) = found else {
            // Nothing is asked of it.
            view.passed.push(at);
            continue;
        };
        let besides = crowd(slot, node);
        if !besides.is_empty()
            && let Err(refusal) = fits(&besides)
        {
            let text = match refusal {
                Refusal::NoRoom { .. } => "node(s) had local storage that pods scheduled just before may take".into(),
                other => other.to_string().into(),
            };
            view.crowded.push((at, Cause::Crowded, text));
            continue;
        }
        view.passed.push(at);
        view.nodes.insert(slot);
    }
    view
}

const fn cause(refusal: &Refusal) -> Cause {
    match refusal {
        Refusal::NotInClass { .. } => Cause::NotInClass,
        Refusal::NotReady { .. } => Cause::NotReady,
        Refusal::NoRoom { .. } => Cause::NoRoom,
    }
}

/// What a pod's claims ask for. A claim of another provisioner never matters; of ours only those without a volume do.
fn needs(index: &Index, pod: &Pod, candidates: &[Cow<'_, str>]) -> Result<Needs, Unclear> {
    if !index.is_filled() {
        let missing: Vec<_> = index.missing().into_iter().map(|kind| kind.as_str()).collect();
        let text = format!("not ready, caches are being filled: {}", missing.join(", "));
        return Err(Unclear::Doubt(Doubt::NotReady, text));
    }
    let mut needs = Needs::default();
    for wanted in pod.claims() {
        let key = claim_key(&pod.metadata.namespace, &wanted.name);
        let unseen = |what: &str| {
            let text = format!("PersistentVolumeClaim {key} {what}; trying again");
            Unclear::Doubt(Doubt::Unseen, text)
        };
        let claim = index.claim(&key).ok_or_else(|| unseen("has not been seen yet"))?;
        let Some(class_name) = claim.class.as_deref() else {
            continue;
        };
        let (fs_type, scoring) = match (index.class(class_name), claim.binding) {
            (Some(Class::Foreign), _) | (None, Binding::Ours | Binding::Other) => continue,
            (None, Binding::Unbound) => return Err(unseen("has a StorageClass that has not been seen yet")),
            // The scheduler refuses such pods itself: what it knows is newer, or is about to be.
            (Some(_), _) if claim.deleting => return Err(unseen("is being deleted")),
            (Some(_), _) if wanted.ephemeral && claim.owner.as_deref() != Some(pod.metadata.uid.as_str()) => {
                return Err(unseen("belongs to another pod"));
            }
            (Some(_), Binding::Ours | Binding::Other) => continue,
            (Some(Class::Invalid(problem)), _) => {
                let text = format!("StorageClass {class_name} is invalid: {problem}");
                return Err(Unclear::Refuse(Cause::InvalidClass, text));
            }
            (Some(Class::Ours { fs_type, scoring }), _) => (*fs_type, *scoring),
        };
        if let Some(node) = selected(index, claim) {
            if candidates.iter().any(|candidate| *candidate != node) {
                // The scheduler offers other nodes only if it knows the selection to be withdrawn.
                return Err(unseen("was selected to another node when last seen"));
            }
            needs.pinned = Some(node.into());
            if let Ok(request) = &claim.request {
                // Counted already, unless the selection turns out to be withdrawn.
                needs.pending.push(pending(key, claim, class_name, request.size));
            }
            continue;
        }
        let refuse = |problem: &str| {
            let text = format!("PersistentVolumeClaim {}: {problem}", wanted.name);
            Unclear::Refuse(Cause::InvalidClaim, text)
        };
        let request = claim.request.as_ref().map_err(|problem| refuse(problem))?;
        large_enough(request.size, request.mode, fs_type).map_err(|problem| refuse(&problem.to_string()))?;
        if !needs.scorings.contains(&scoring) {
            needs.scorings.push(scoring);
        }
        needs.asks.push(Ask {
            claim_uid: claim.uid.to_string(),
            class: class_name.to_owned(),
            size: request.size,
        });
        needs.pending.push(pending(key, claim, class_name, request.size));
    }
    Ok(needs)
}

fn pending(key: String, claim: &Claim, class: &str, size: Bytes) -> Pending {
    Pending {
        key,
        uid: claim.uid.to_string(),
        class: class.to_owned(),
        size,
    }
}

/// The node that a claim without a bound volume goes to, if that is known.
fn selected<'a>(index: &'a Index, claim: &'a Claim) -> Option<&'a str> {
    claim.selected.as_deref().or_else(|| index.volume_of(&claim.uid))
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
