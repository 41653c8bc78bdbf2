//! Why a pod is where it is, or nowhere: the extender's decision on the objects as they are, with the figures behind it.
//! No I/O.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use quarry_crds::extents::{Bytes, ExtentSize, Extents};
use quarry_crds::placement::{self, Ask, Demand};
use serde::Serialize;

use super::snapshot::{Said, Snapshot, as_sent};
use crate::answered::Answered;
use crate::api;
use crate::decide::{self, Answer, Cause, Patience, Stand, Verdict};
use crate::objects::Binding;

/// Why a pod is where it is. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// Namespace of the pod and its claims.
    pub namespace: String,
    /// The pod; none where a claim was asked about that no pod uses.
    pub pod: Option<String>,
    /// What it comes to.
    pub outcome: Outcome,
    /// The node that the pod is on.
    pub placed_on: Option<String>,
    /// The same in a sentence.
    pub summary: String,
    /// What kube-scheduler said last of the pod.
    pub scheduler: Option<String>,
    /// The claims of the pod.
    pub claims: Vec<ClaimRow>,
    /// Every node.
    pub nodes: Vec<NodeRow>,
    /// What would help.
    pub help: Vec<String>,
    /// The last warning that was said of each claim.
    pub said: Vec<Said>,
    /// What the reader has to know of this answer itself.
    pub notes: Vec<String>,
}

/// What it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The pod asks nothing of Quarry.
    NothingAsked,
    /// The pod has its node.
    Placed,
    /// At least one node can hold its claims.
    Fits,
    /// No node can.
    FitsNowhere,
    /// A claim or its class is missing, or going.
    Unclear,
}

/// One claim of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRow {
    /// Its name.
    pub name: String,
    /// Its class.
    pub class: Option<String>,
    /// What it asks for.
    pub asked_bytes: Option<u64>,
    /// Where it stands, for people.
    pub state: String,
    /// The node that it is on or goes to.
    pub node: Option<String>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    /// Its name.
    pub node: String,
    /// Whether it can hold the claims, as far as Quarry is concerned.
    pub fits: bool,
    /// Why not, as metrics name it.
    pub cause: Option<&'static str>,
    /// Why not, as kube-scheduler is told.
    pub reason: Option<String>,
    /// What kube-scheduler will have against the node, where that is plain.
    pub remarks: Vec<String>,
    /// The volume groups concerned.
    pub groups: Vec<GroupRow>,
}

/// One volume group of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupRow {
    /// Its name.
    pub volume_group: String,
    /// What the pod's claims ask of it, each rounded up to extents.
    pub asked_bytes: u64,
    /// What is left for them.
    pub free_bytes: u64,
    /// What is missing.
    pub missing_bytes: u64,
    /// What claims on their way take.
    pub in_flight_bytes: u64,
    /// Everything.
    pub size_bytes: u64,
    /// The claims on their way.
    pub in_flight: Vec<InFlight>,
}

/// A claim that takes space and has no volume yet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InFlight {
    /// Namespace and name.
    pub claim: String,
    /// What it takes, rounded up to extents.
    pub bytes: u64,
}

/// Why a pod is where it is.
#[must_use]
pub fn pod(snapshot: &Snapshot, pod: &Pod) -> Why {
    let sent = as_sent(pod);
    let spec = pod.spec.clone().unwrap_or_default();
    let mut why = replay(snapshot, &sent, |node| remarks(node, pod));
    why.pod = Some(sent.metadata.name.clone().into_owned());
    why.scheduler = unscheduled(pod);
    why.placed_on = spec.node_name.filter(|node| !node.is_empty());
    let name = format!("pod {}/{}", sent.metadata.namespace, sent.metadata.name);
    if why.outcome == Outcome::NothingAsked {
        why.summary = format!("{name} uses no claim of Quarry: Quarry has no say in where it goes");
    } else if let Some(node) = &why.placed_on {
        why.outcome = Outcome::Placed;
        why.summary = format!("{name} is placed on node {node}");
    } else {
        why.summary = summary(&name, &why);
    }
    why.help = super::help::help(snapshot, &sent, &why);
    why
}

/// Where a claim could go that no pod uses.
#[must_use]
pub fn claim(snapshot: &Snapshot, namespace: &str, claim: &str) -> Why {
    let sent = api::Pod {
        metadata: api::Metadata {
            namespace: namespace.into(),
            ..Default::default()
        },
        spec: api::PodSpec {
            volumes: Some(vec![api::Volume {
                persistent_volume_claim: Some(api::ClaimSource {
                    claim_name: claim.into(),
                }),
                ..Default::default()
            }]),
        },
    };
    let mut why = replay(snapshot, &sent, |_| Vec::new());
    let name = format!("a pod with claim {namespace}/{claim}, which no pod uses now,");
    why.summary = match why.outcome {
        Outcome::NothingAsked => format!("claim {namespace}/{claim} asks nothing of Quarry"),
        _ => summary(&name, &why),
    };
    why.help = super::help::help(snapshot, &sent, &why);
    why
}

/// The extender's answer for a pod, with all nodes as candidates that its volumes leave.
fn replay(snapshot: &Snapshot, sent: &api::Pod<'_>, remarks: impl Fn(&Node) -> Vec<String>) -> Why {
    let index = &snapshot.index;
    let wanted = sent.claims();
    let stands: Vec<(String, Stand<'_>)> = wanted
        .iter()
        .map(|wanted| (wanted.name.clone(), decide::stand(index, sent, wanted)))
        .collect();
    let claims: Vec<ClaimRow> = wanted
        .iter()
        .zip(&stands)
        .map(|(wanted, (_, stand))| claim_row(snapshot, sent, &wanted.name, stand))
        .collect();
    // kube-scheduler itself keeps a pod on the node of its volumes, and of the claims that were given to one.
    let bound_to: Vec<(&ClaimRow, &str)> = claims
        .iter()
        .filter_map(|row| Some((row, row.node.as_deref()?)))
        .collect();
    let mut names: Vec<&str> = snapshot
        .nodes
        .iter()
        .filter_map(|node| node.metadata.name.as_deref())
        .collect();
    names.sort_unstable();
    let candidates: Vec<Cow<'_, str>> = names
        .iter()
        .filter(|name| bound_to.iter().all(|(_, node)| node == *name))
        .map(|name| Cow::Borrowed(*name))
        .collect();
    let answer = decided(snapshot, sent, &candidates);
    let asks = decide::asks(index, sent, &candidates);
    let mut refused: BTreeMap<&str, (Cause, &str)> = BTreeMap::new();
    let mut unclear = false;
    match &answer {
        Answer::All => {}
        Answer::Some {
            refused: some, reasons, ..
        } => {
            let told = |reason: usize| (reasons[reason].cause, &*reasons[reason].text);
            refused.extend(some.iter().map(|(at, reason)| (&*candidates[*at], told(*reason))));
        }
        Answer::Error(..) => unclear = true,
    }
    let nodes = names
        .iter()
        .map(|name| {
            let elsewhere = bound_to.iter().find(|(_, node)| node != name).map(|(row, node)| {
                let text = format!("claim {} belongs to node {node}", row.name);
                (Cause::OtherNode, Cow::Owned(text))
            });
            let against = elsewhere.or_else(|| {
                let (cause, reason) = refused.get(name)?;
                Some((*cause, Cow::Borrowed(*reason)))
            });
            NodeRow {
                node: (*name).to_owned(),
                fits: against.is_none() && !unclear,
                cause: against.as_ref().map(|(cause, _)| cause.as_str()),
                reason: against.map(|(_, reason)| reason.into_owned()),
                remarks: snapshot.node(name).map(&remarks).unwrap_or_default(),
                groups: groups(snapshot, name, &asks),
            }
        })
        .collect();
    let mut why = Why {
        namespace: sent.metadata.namespace.clone().into_owned(),
        pod: None,
        outcome: Outcome::FitsNowhere,
        placed_on: None,
        summary: String::new(),
        scheduler: None,
        claims,
        nodes,
        help: Vec::new(),
        said: Vec::new(),
        notes: snapshot.notes.clone(),
    };
    why.outcome = if stands.iter().all(|(_, stand)| matches!(stand, Stand::Foreign)) {
        Outcome::NothingAsked
    } else if unclear {
        Outcome::Unclear
    } else if why.nodes.iter().any(|node| node.fits) {
        Outcome::Fits
    } else {
        Outcome::FitsNowhere
    };
    why
}

/// What the extender answers once it waits for nothing any more.
fn decided(snapshot: &Snapshot, sent: &api::Pod<'_>, candidates: &[Cow<'_, str>]) -> Answer {
    let verdict = decide::filter(
        &snapshot.index,
        &mut Answered::default(),
        sent,
        candidates,
        &Patience::default(),
        Instant::now(),
        Duration::MAX,
    );
    match verdict {
        Verdict::Answer(answer) => answer,
        // Nothing is waited for after so long.
        Verdict::Wait(doubt, _) => Answer::Error(doubt, String::new()),
    }
}

fn claim_row(snapshot: &Snapshot, sent: &api::Pod<'_>, name: &str, stand: &Stand<'_>) -> ClaimRow {
    let claim = snapshot
        .index
        .claim(&crate::index::claim_key(&sent.metadata.namespace, name));
    let class = claim.and_then(|claim| claim.class.as_deref());
    let mut node = None;
    let state = match stand {
        Stand::Unseen(_) if claim.is_none() => "does not exist".to_owned(),
        Stand::Unseen(_) if class.is_some_and(|class| snapshot.index.class(class).is_none()) => {
            "its StorageClass does not exist".to_owned()
        }
        Stand::Unseen(what) => (*what).to_owned(),
        Stand::Foreign => "not of Quarry".to_owned(),
        Stand::Served(claim) if claim.binding == Binding::Ours => {
            node = snapshot.index.volume_of(&claim.uid).map(str::to_owned);
            "has its volume".to_owned()
        }
        Stand::Served(_) => "bound to a volume that Quarry did not make, or that is lost".to_owned(),
        Stand::InvalidClass { problem, .. } => format!("its StorageClass is invalid: {problem}"),
        Stand::InvalidClaim { problem, .. } => problem.clone().into_owned(),
        Stand::Selected { node: selected, .. } => {
            node = Some((*selected).to_owned());
            "given to this node, which has yet to make its volume".to_owned()
        }
        Stand::Asks { class, .. } if is_immediate(snapshot, class) => {
            "waits until a node with room takes it (volumeBindingMode Immediate)".to_owned()
        }
        Stand::Asks { .. } => "waits for a node".to_owned(),
    };
    ClaimRow {
        name: name.to_owned(),
        class: class.map(str::to_owned),
        asked_bytes: claim.and_then(|claim| Some(claim.request.as_ref().ok()?.size.0)),
        state,
        node,
    }
}

fn is_immediate(snapshot: &Snapshot, class: &str) -> bool {
    let of_name = |other: &&std::sync::Arc<k8s_openapi::api::storage::v1::StorageClass>| {
        other.metadata.name.as_deref() == Some(class)
    };
    let class = snapshot.classes.iter().find(of_name);
    class.is_some_and(|class| class.volume_binding_mode.as_deref() != Some("WaitForFirstConsumer"))
}

/// What the claims ask of the volume groups of a node, and what is there.
fn groups(snapshot: &Snapshot, node: &str, asks: &[Ask]) -> Vec<GroupRow> {
    let Some((_, node)) = snapshot.index.node(node) else {
        return Vec::new();
    };
    let Ok(demands) = placement::demands(asks, |at| node.standing(&asks[at].class)) else {
        return Vec::new();
    };
    let row = |demand: Demand| {
        let (offer, missing) = (&demand.offer, demand.missing());
        let group = &node.groups()[offer.group];
        let bytes = |extents| bytes(offer.extent_size, extents);
        let mut in_flight: Vec<InFlight> = node
            .in_flight(&group.uuid)
            .map(|(key, claim)| InFlight {
                claim: key.to_owned(),
                bytes: bytes(offer.extent_size.holding(claim.size)),
            })
            .collect();
        in_flight.sort_unstable();
        GroupRow {
            volume_group: group.name.clone(),
            asked_bytes: bytes(demand.asked),
            free_bytes: bytes(offer.free),
            missing_bytes: bytes(missing),
            in_flight_bytes: in_flight.iter().fold(0, |sum, claim| sum.saturating_add(claim.bytes)),
            size_bytes: bytes(offer.size),
            in_flight,
        }
    };
    demands.into_iter().map(row).collect()
}

/// A number of extents in bytes; the largest number where it is larger.
pub(super) fn bytes(extent_size: ExtentSize, extents: Extents) -> u64 {
    extent_size.size_of(extents).unwrap_or(Bytes(u64::MAX)).0
}

fn summary(name: &str, why: &Why) -> String {
    let all = why.nodes.len();
    let fit = why.nodes.iter().filter(|node| node.fits).count();
    match why.outcome {
        Outcome::Fits => format!("{name} fits on {fit} of {all} nodes, as far as Quarry is concerned"),
        Outcome::Unclear => {
            let unclear = why.claims.iter().find(|claim| claim.node.is_none());
            let claim = unclear.map_or_else(String::new, |claim| format!(": claim {}: {}", claim.name, claim.state));
            format!("{name} cannot be placed yet{claim}")
        }
        _ => {
            let mut causes: BTreeMap<&str, usize> = BTreeMap::new();
            for node in &why.nodes {
                let reason = node.reason.as_deref().unwrap_or_default();
                *causes.entry(plain(reason)).or_default() += 1;
            }
            let mut causes: Vec<_> = causes.into_iter().collect();
            causes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let causes: Vec<_> = causes
                .iter()
                .map(|(cause, count)| format!("{count}: {cause}"))
                .collect();
            format!("{name} fits on none of {all} nodes ({})", causes.join("; "))
        }
    }
}

/// A reason without the words by which kube-scheduler counts nodes.
pub(super) fn plain(reason: &str) -> &str {
    let rest = reason.strip_prefix("node(s) ").unwrap_or(reason);
    rest.strip_prefix("had ").unwrap_or(rest)
}

/// What kube-scheduler says of a pod that it could not place.
fn unscheduled(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    let said = || condition.message.clone().or_else(|| condition.reason.clone());
    (condition.status == "False").then(said).flatten()
}

/// What kube-scheduler will have against a node: taints and the node selector. It looks at much more.
fn remarks(node: &Node, pod: &Pod) -> Vec<String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let tolerations = spec.tolerations.unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let mut remarks: Vec<String> = taints
        .into_iter()
        .flatten()
        .filter(|taint| taint.effect != "PreferNoSchedule")
        .filter(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
        .map(|taint| match taint.key.as_str() {
            "node.kubernetes.io/unschedulable" => "is cordoned".to_owned(),
            "node.kubernetes.io/not-ready" | "node.kubernetes.io/unreachable" => "is not ready".to_owned(),
            key => format!("has the taint {key}"),
        })
        .collect();
    let mut selector = spec.node_selector.iter().flatten();
    if selector.any(|(key, value)| labels.get(key) != Some(value)) {
        remarks.push("does not match the nodeSelector of the pod".to_owned());
    }
    remarks.dedup();
    remarks
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let empty = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    let effect = empty(&toleration.effect) || toleration.effect.as_deref() == Some(&taint.effect);
    let key = empty(&toleration.key) || toleration.key.as_deref() == Some(&taint.key);
    let value = toleration.operator.as_deref() == Some("Exists")
        || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default();
    effect && key && value
}

#[cfg(test)]
#[path = "why_tests.rs"]
mod tests;
