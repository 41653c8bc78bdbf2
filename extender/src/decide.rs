//! The decision: which of the candidates can hold a pod's claims. No I/O and no clock of its own.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use quarry_crds::extents::Bytes;
use quarry_crds::placement::{self, Ask, Fit, Refusal, Standing};
use quarry_crds::provisioning::large_enough;
use quarry_crds::storage_class::Scoring;

use crate::answered::{Answered, Crowd, Nodes, Pending};
use crate::api::{Pod, PodClaim};
use crate::board::{Board, Cell};
use crate::index::{Index, Slot, claim_key};
use crate::node::Besides;
use crate::objects::{Binding, Claim, Class};

/// How long a pod's answer may wait for the watches, and for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a claim or a class that the scheduler has seen, and we have not. The alternative is an error, with which a
    /// scheduler for which the extender is ignorable places the pod without us.
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
            unseen: Duration::from_secs(1),
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
    /// Nobody would make a volume there.
    Silent,
    /// LVM's metadata area has no room for one more volume.
    MetadataFull,
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
        /// Positions of those that cannot, each with the position of its reason.
        refused: Vec<(usize, usize)>,
        /// The reasons.
        reasons: Vec<Reason>,
    },
    /// Nothing can be said, and the scheduler is to try again.
    Error(Doubt, String),
}

/// A reason against nodes: one for all of which the same is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What kind of reason.
    pub cause: Cause,
    /// The class or volume group that it speaks of: positions of an ask, and of a name on the board of its class.
    subject: (usize, u32),
    /// What to tell.
    pub text: Cow<'static, str>,
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
    pod: &Pod<'_>,
    candidates: &[impl AsRef<str>],
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
            refused: (0..candidates.len()).map(|at| (at, 0)).collect(),
            reasons: vec![Reason {
                cause,
                subject: (0, 0),
                text: text.into(),
            }],
        },
        Ok(needs) if needs.asks.is_empty() && needs.pinned.is_none() => Answer::All,
        Ok(needs) => {
            answered.prune(index, now, patience.remembered);
            let crowd = answered.crowd(index, &name, &needs.pending, patience.remembered);
            let view = view(index, &needs, candidates, &crowd);
            let limit = if view.passed.is_empty() {
                patience.crowd
            } else {
                patience.settle
            };
            if view.crowded && waited < limit {
                let until = crowd.until.map_or(limit, |until| until.saturating_duration_since(now));
                let least = Duration::from_millis(1);
                return Verdict::Wait(Doubt::Crowded, (limit - waited).min(until.max(least)));
            }
            answered.forget(&name);
            if !view.passed.is_empty() && !needs.pending.is_empty() {
                answered.remember(&name, needs.pending, view.nodes, now);
            }
            return Verdict::Answer(Answer::Some {
                passed: view.passed,
                refused: view.refused,
                reasons: view.reasons,
            });
        }
    };
    answered.forget(&name);
    Verdict::Answer(verdict)
}

/// What a pod's claims without a volume ask of a node; none where it cannot be said, or nothing is asked.
#[must_use]
pub fn asks(index: &Index, pod: &Pod<'_>, candidates: &[impl AsRef<str>]) -> Vec<Ask> {
    needs(index, pod, candidates)
        .map(|needs| needs.asks)
        .unwrap_or_default()
}

/// Scores the candidates for a pod: 0 to 10, and none where nothing can be said, or all are alike.
#[must_use]
pub fn prioritize(index: &Index, pod: &Pod<'_>, candidates: &[impl AsRef<str>]) -> Vec<i64> {
    let Ok(needs) = needs(index, pod, candidates) else {
        return Vec::new();
    };
    if needs.asks.is_empty() {
        return Vec::new();
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
    let boards = boards(index, &needs.asks);
    candidates
        .iter()
        .map(|name| {
            let slot = index.slot(name.as_ref());
            fits(&needs.asks, &boards, slot, |cell| cell.standing(&none)).map_or(0, score)
        })
        .collect()
}

/// What the candidates are for a pod.
#[derive(Default)]
struct View {
    passed: Vec<usize>,
    nodes: Nodes,
    refused: Vec<(usize, usize)>,
    reasons: Vec<Reason>,
    /// Whether any has room unless pods answered just before are on it.
    crowded: bool,
}

impl View {
    /// Refuses a candidate. The text of a reason is made once, however many nodes it is for.
    fn refuse(&mut self, at: usize, cause: Cause, subject: (usize, u32), text: impl FnOnce() -> Cow<'static, str>) {
        let known = |reason: &Reason| reason.cause == cause && reason.subject == subject;
        let reason = self.reasons.iter().position(known).unwrap_or_else(|| {
            self.reasons.push(Reason {
                cause,
                subject,
                text: text(),
            });
            self.reasons.len() - 1
        });
        self.refused.push((at, reason));
    }
}

/// What the class of each ask has on the nodes.
fn boards<'a>(index: &'a Index, asks: &[Ask]) -> Vec<&'a Board> {
    asks.iter().map(|ask| index.board(&ask.class)).collect()
}

/// Whether what is asked fits on a node, by what is taken for granted of what its class has there.
fn fits(asks: &[Ask], boards: &[&Board], slot: Option<Slot>, taken: impl Fn(Cell) -> Standing) -> Result<Fit, Refusal> {
    let standing = |at: usize| slot.map_or(Standing::Absent, |slot| taken(boards[at].cell(slot)));
    placement::fits(asks, standing)
}

fn view(index: &Index, needs: &Needs, candidates: &[impl AsRef<str>], crowd: &Crowd<'_>) -> View {
    let mut view = View {
        passed: Vec::with_capacity(candidates.len()),
        ..View::default()
    };
    let (none, boards) = (Besides::default(), boards(index, &needs.asks));
    for (at, name) in candidates.iter().enumerate() {
        if needs.pinned.as_deref().is_some_and(|pinned| pinned != name.as_ref()) {
            let text = || "node(s) were not the one selected for a volume of the pod".into();
            view.refuse(at, Cause::OtherNode, (0, 0), text);
            continue;
        }
        let slot = index.slot(name.as_ref());
        // Where there is room beside all who may be anywhere, which is asked first, nobody has to be counted one by one.
        let beside_all = |cell: Cell| cell.standing_less(|extent_size| crowd.at_most(extent_size));
        if crowd.is_empty() || fits(&needs.asks, &boards, slot, beside_all).is_err() {
            if let Err(refusal) = fits(&needs.asks, &boards, slot, |cell| cell.standing(&none)) {
                let (subject, name) = subject(refusal, slot, &needs.asks, &boards);
                view.refuse(at, cause(refusal), subject, || refusal.text(name).into());
                continue;
            }
            let besides = slot.filter(|_| !crowd.is_empty()).map(|slot| crowd.on(slot));
            if besides.is_some_and(|besides| fits(&needs.asks, &boards, slot, |cell| cell.standing(&besides)).is_err())
            {
                let text = || "node(s) had local storage that pods scheduled just before may take".into();
                view.crowded = true;
                view.refuse(at, Cause::Crowded, (0, 0), text);
                continue;
            }
        }
        view.passed.push(at);
        if let Some(slot) = slot {
            view.nodes.insert(slot);
        }
    }
    view
}

/// What a refusal speaks of, by which equal ones are known, and its name: the class of an ask, or a volume group.
fn subject<'a>(refusal: Refusal, slot: Option<Slot>, asks: &'a [Ask], boards: &[&'a Board]) -> ((usize, u32), &'a str) {
    match refusal {
        Refusal::NotInClass(at) | Refusal::NotReady(at) | Refusal::MetadataFull(at) => ((at, 0), &asks[at].class),
        Refusal::Silent => ((0, 0), ""),
        Refusal::NoRoom(group) => {
            let on = |(at, board): (usize, &&'a Board)| {
                let cell = board.cell(slot?).group().filter(|cell| cell.at() == group)?;
                Some(((at, cell.name()), board.name(cell)))
            };
            boards.iter().enumerate().find_map(on).unwrap_or(((0, 0), ""))
        }
    }
}

const fn cause(refusal: Refusal) -> Cause {
    match refusal {
        Refusal::NotInClass(_) => Cause::NotInClass,
        Refusal::NotReady(_) => Cause::NotReady,
        Refusal::Silent => Cause::Silent,
        Refusal::MetadataFull(_) => Cause::MetadataFull,
        Refusal::NoRoom(_) => Cause::NoRoom,
    }
}

/// What a pod's claims ask for. A claim of another provisioner never matters; of ours only those without a volume do.
fn needs(index: &Index, pod: &Pod<'_>, candidates: &[impl AsRef<str>]) -> Result<Needs, Unclear> {
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
        match stand(index, pod, &wanted) {
            Stand::Unseen(what) => return Err(unseen(what)),
            Stand::Foreign | Stand::Served(_) => {}
            Stand::InvalidClass { class, problem } => {
                let text = format!("StorageClass {class} is invalid: {problem}");
                return Err(Unclear::Refuse(Cause::InvalidClass, text));
            }
            Stand::InvalidClaim { problem, .. } => {
                let text = format!("PersistentVolumeClaim {}: {problem}", wanted.name);
                return Err(Unclear::Refuse(Cause::InvalidClaim, text));
            }
            Stand::Selected { node, .. } if candidates.iter().any(|candidate| candidate.as_ref() != node) => {
                // The scheduler offers other nodes only if it knows the selection to be withdrawn.
                return Err(unseen("was selected to another node when last seen"));
            }
            Stand::Selected { node, claim, class } => {
                needs.pinned = Some(node.into());
                if let Ok(request) = &claim.request {
                    // Counted already, unless the selection turns out to be withdrawn.
                    needs.pending.push(pending(key, claim, class, request.size));
                }
            }
            Stand::Asks {
                claim,
                class,
                size,
                scoring,
            } => {
                if !needs.scorings.contains(&scoring) {
                    needs.scorings.push(scoring);
                }
                needs.asks.push(Ask {
                    claim_uid: claim.uid.to_string(),
                    class: class.to_owned(),
                    size,
                });
                needs.pending.push(pending(key, claim, class, size));
            }
        }
    }
    Ok(needs)
}

/// Where one claim of a pod stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stand<'a> {
    /// It, or its class, is not known in the state that the scheduler knows: what it has or is.
    Unseen(&'static str),
    /// It is none of ours.
    Foreign,
    /// It has its volume.
    Served(&'a Claim),
    /// The parameters of its class are wrong.
    InvalidClass {
        /// The class.
        class: &'a str,
        /// What is wrong.
        problem: &'a str,
    },
    /// It asks for what cannot be served.
    InvalidClaim {
        /// The claim.
        claim: &'a Claim,
        /// What is wrong.
        problem: Cow<'a, str>,
    },
    /// It goes to a node already.
    Selected {
        /// The node.
        node: &'a str,
        /// The claim.
        claim: &'a Claim,
        /// Its class.
        class: &'a str,
    },
    /// It asks for a node.
    Asks {
        /// The claim.
        claim: &'a Claim,
        /// Its class.
        class: &'a str,
        /// At least this many bytes.
        size: Bytes,
        /// Which nodes with room its class prefers.
        scoring: Scoring,
    },
}

/// Where a claim of a pod stands.
#[must_use]
pub fn stand<'a>(index: &'a Index, pod: &Pod<'_>, wanted: &PodClaim) -> Stand<'a> {
    let Some(claim) = index.claim(&claim_key(&pod.metadata.namespace, &wanted.name)) else {
        return Stand::Unseen("has not been seen yet");
    };
    let Some(class) = claim.class.as_deref() else {
        return Stand::Foreign;
    };
    let (fs_type, scoring) = match (index.class(class), claim.binding) {
        (Some(Class::Foreign), _) => return Stand::Foreign,
        (None, Binding::Ours | Binding::Other) => return Stand::Served(claim),
        (None, Binding::Unbound) => return Stand::Unseen("has a StorageClass that has not been seen yet"),
        // The scheduler refuses such pods itself: what it knows is newer, or is about to be.
        (Some(_), _) if claim.deleting => return Stand::Unseen("is being deleted"),
        (Some(_), _) if wanted.ephemeral && claim.owner.as_deref() != Some(&*pod.metadata.uid) => {
            return Stand::Unseen("belongs to another pod");
        }
        (Some(_), Binding::Ours | Binding::Other) => return Stand::Served(claim),
        (Some(Class::Invalid(problem)), _) => return Stand::InvalidClass { class, problem },
        (Some(Class::Ours { fs_type, scoring }), _) => (*fs_type, *scoring),
    };
    if let Some(node) = selected(index, claim) {
        return Stand::Selected { node, claim, class };
    }
    let request = match &claim.request {
        Ok(request) => request,
        Err(problem) => {
            let problem = Cow::Borrowed(&**problem);
            return Stand::InvalidClaim { claim, problem };
        }
    };
    if let Err(problem) = large_enough(request.size, request.mode, fs_type) {
        let problem = Cow::Owned(problem.to_string());
        return Stand::InvalidClaim { claim, problem };
    }
    Stand::Asks {
        claim,
        class,
        size: request.size,
        scoring,
    }
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
pub(crate) mod tests;
