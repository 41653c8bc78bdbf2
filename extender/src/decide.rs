//! The decision: which of the candidates can hold a pod's claims. No I/O and no clock of its own.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use quarry_crds::extents::Bytes;
use quarry_crds::placement::{self, Ask, Fit, Refusal, Standing};
use quarry_crds::provisioning::large_enough;
use quarry_crds::storage_class::Scoring;

use crate::answered::{Answered, Crowd, Nodes, Pending};
use crate::api::{Pod, PodClaim};
use crate::board::{Board, Cell};
use crate::existing::{Existing, Left, Open};
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
    /// How long it is held against a pod that it was offered nodes in vain.
    pub forgiven: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            unseen: Duration::from_secs(1),
            settle: Duration::from_millis(50),
            crowd: Duration::from_secs(1),
            remembered: Duration::from_secs(10),
            forgiven: Duration::from_secs(600),
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
    /// It refused one of the claims before, for another reason than room, and is left alone for a while.
    Refused,
    /// The pod was offered nodes again and again, and none was selected for its claims: others come first.
    Repeated,
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
struct Needs<'a> {
    pending: Vec<Pending>,
    asks: Vec<Ask>,
    scorings: Vec<Scoring>,
    pinned: Option<Box<str>>,
    /// Its claims without a volume and a node, where any volume is there that may serve one.
    open: Vec<Open<'a>>,
    /// Nodes that refused one of its claims, and until when they are left alone.
    left_alone: Vec<(&'a str, Instant)>,
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
        Err(Unclear::Refuse(cause, text)) => refuse_all(candidates.len(), cause, text),
        Ok(needs) if needs.asks.is_empty() && needs.pinned.is_none() && needs.open.is_empty() => Answer::All,
        Ok(mut needs) => {
            answered.prune(index, now, patience.remembered);
            needs.left_alone.retain(|(_, until)| *until > now);
            let allowance = answered.allowance(&needs.pending, now, patience.forgiven);
            if needs.pinned.is_none() && allowance.not_before.is_some_and(|until| now < until) {
                // Its last attempt counts until it is forgotten: a part of its claims may have a node, which is not seen yet.
                let mut view = View::default();
                view.keep(0, index, candidates, (0..candidates.len()).collect());
                return Verdict::Answer(view.answer());
            }
            let existing = if needs.open.is_empty() {
                None
            } else {
                Existing::of(index, &needs.open, &answered.promised(&name))
            };
            if existing.is_none()
                && let Some(text) = needs.open.iter().find_map(|open| open.ask.clone().err())
            {
                // The volume that could serve it is promised to another pod.
                answered.forget(&name);
                return Verdict::Answer(refuse_all(candidates.len(), Cause::InvalidClaim, text));
            }
            let crowd = answered.crowd(index, &name, &needs.pending, patience.remembered);
            let mut view = view(index, &needs, candidates, &crowd, existing.as_ref());
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
                if view.passed.len() > allowance.nodes {
                    let passed = std::mem::take(&mut view.passed);
                    view.keep(allowance.nodes, index, candidates, passed);
                }
                answered.tried(index, &needs.pending, now, patience.forgiven);
                answered.remember(&name, needs.pending, std::mem::take(&mut view.nodes), now);
                if !view.volumes.is_empty() {
                    answered.promise(&name, std::mem::take(&mut view.volumes));
                }
            }
            return Verdict::Answer(view.answer());
        }
    };
    answered.forget(&name);
    Verdict::Answer(verdict)
}

fn refuse_all(candidates: usize, cause: Cause, text: String) -> Answer {
    Answer::Some {
        passed: Vec::new(),
        refused: (0..candidates).map(|at| (at, 0)).collect(),
        reasons: vec![Reason {
            cause,
            subject: (0, 0),
            text: text.into(),
        }],
    }
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
    let nobody = HashSet::new();
    let existing = Existing::of(index, &needs.open, &nobody);
    // Where volumes that are there already serve all of them, nothing is taken of any group.
    let served = |node: &str| match existing.as_ref().map(|existing| existing.left(node)) {
        Some(Left::Some(left, _)) => left.is_empty(),
        _ => false,
    };
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
            if existing.is_some() && served(name.as_ref()) {
                return placement::MAX_SCORE;
            }
            let slot = index.slot(name.as_ref());
            fits(&needs.asks, &boards, slot, |cell| cell.standing(&none)).map_or(0, score)
        })
        .collect()
}

const CROWDED: &str = "node(s) had local storage that pods scheduled just before may take";

/// What the candidates are for a pod.
#[derive(Default)]
struct View {
    passed: Vec<usize>,
    nodes: Nodes,
    refused: Vec<(usize, usize)>,
    reasons: Vec<Reason>,
    /// Whether any has room unless pods answered just before are on it.
    crowded: bool,
    /// Volumes that are there already and that the pod may be bound to on those that can hold it.
    volumes: Vec<Box<str>>,
}

impl View {
    /// Of the candidates that passed keeps so many, and leaves the others to other pods.
    fn keep(&mut self, most: usize, index: &Index, candidates: &[impl AsRef<str>], mut passed: Vec<usize>) {
        const TEXT: &str = "node(s) were left to other pods: this one was offered nodes several times, and none was \
                            selected for its claims";
        for at in passed.drain(most.min(passed.len())..) {
            self.refuse(at, Cause::Repeated, (0, 0), || TEXT.into());
        }
        self.nodes = Nodes::default();
        let kept = passed.iter().filter_map(|at| index.slot(candidates[*at].as_ref()));
        kept.for_each(|slot| self.nodes.insert(slot));
        self.passed = passed;
    }

    /// Decides on a candidate where volumes that are there already serve a part of the claims.
    fn beside_existing(
        &mut self,
        at: usize,
        needs: &Needs<'_>,
        left: &[usize],
        boards: &[&Board],
        slot: Option<Slot>,
        crowd: &Crowd<'_>,
    ) {
        let asks: Vec<Ask> = left.iter().map(|ask| needs.asks[*ask].clone()).collect();
        let boards: Vec<&Board> = left.iter().map(|ask| boards[*ask]).collect();
        let besides = slot.map(|slot| crowd.on(slot)).unwrap_or_default();
        if let Err(refusal) = fits(&asks, &boards, slot, |cell| cell.standing(&Besides::default())) {
            let ((of, number), name) = subject(refusal, slot, &asks, &boards);
            self.refuse(at, cause(refusal), (left[of], number), || refusal.text(name).into());
        } else if fits(&asks, &boards, slot, |cell| cell.standing(&besides)).is_err() {
            self.crowded = true;
            self.refuse(at, Cause::Crowded, (0, 0), || CROWDED.into());
        } else {
            self.passed.push(at);
            slot.into_iter().for_each(|slot| self.nodes.insert(slot));
        }
    }

    fn answer(self) -> Answer {
        Answer::Some {
            passed: self.passed,
            refused: self.refused,
            reasons: self.reasons,
        }
    }

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

fn view(
    index: &Index,
    needs: &Needs<'_>,
    candidates: &[impl AsRef<str>],
    crowd: &Crowd<'_>,
    existing: Option<&Existing<'_>>,
) -> View {
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
        if needs.left_alone.iter().any(|(node, _)| *node == name.as_ref()) {
            let text =
                || "node(s) had refused a volume for the pod before, see the events of its claims; tried again later";
            view.refuse(at, Cause::Refused, (0, 0), || text().into());
            continue;
        }
        let slot = index.slot(name.as_ref());
        if let Some(existing) = existing {
            match existing.left(name.as_ref()) {
                Left::All => {}
                Left::Unserved(problem) => {
                    view.refuse(at, Cause::InvalidClaim, (0, 0), || problem.to_owned().into());
                    continue;
                }
                Left::Some(left, volumes) => {
                    view.beside_existing(at, needs, &left, &boards, slot, crowd);
                    if view.passed.last() == Some(&at) {
                        view.volumes.extend(volumes.into_iter().map(Box::from));
                    }
                    continue;
                }
            }
        }
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
                view.crowded = true;
                view.refuse(at, Cause::Crowded, (0, 0), || CROWDED.into());
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
fn needs<'a>(index: &'a Index, pod: &Pod<'_>, candidates: &[impl AsRef<str>]) -> Result<Needs<'a>, Unclear> {
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
            Stand::InvalidClaim { claim, problem } => {
                let text = format!("PersistentVolumeClaim {}: {problem}", wanted.name);
                if !index.is_served_by_existing(&key, claim) {
                    return Err(Unclear::Refuse(Cause::InvalidClaim, text));
                }
                // No new volume is made for it: it takes nothing, but the volume that it may be bound to.
                let class = claim.class.as_deref().unwrap_or_default();
                needs.pending.push(pending(key.clone(), claim, class, Bytes::ZERO));
                let ask = Err(text);
                needs.open.push(Open { key, claim, class, ask });
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
                needs.left_alone.extend(index.left_alone(&key));
                if index.has_available() {
                    let (key, ask) = (key.clone(), Ok(needs.asks.len()));
                    needs.open.push(Open { key, claim, class, ask });
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
#[derive(Debug, Clone, PartialEq)]
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
