//! What would help a pod that is not placed: what is wrong with its claims and classes, which node comes nearest, and
//! what keeps the others out. No I/O.

use std::collections::BTreeSet;

use kube::core::PartialObjectMetaExt;
use quarry_crds::extents::Bytes;
use quarry_crds::node_local_storage::condition;
use quarry_crds::persistent_volume::Disposal;

use super::snapshot::Snapshot;
use super::why::{NodeRow, Outcome, Why};
use crate::advice::advice;
use crate::api;
use crate::decide::Cause;

/// How many of a kind are named.
const NAMED: usize = 4;

/// What would help.
#[must_use]
pub fn help(snapshot: &Snapshot, sent: &api::Pod<'_>, why: &Why) -> Vec<String> {
    let mut help = Vec::new();
    if why.outcome == Outcome::NothingAsked {
        return help;
    }
    help.extend(advised(snapshot, why));
    help.extend(bypassed(why));
    help.extend(given(snapshot, why));
    if why.placed_on.is_some() {
        return help;
    }
    help.extend(absent(why));
    match why.outcome {
        Outcome::Fits => help.extend(fits(why)),
        Outcome::FitsNowhere => {
            help.extend(nearest(snapshot, why));
            help.extend(together(snapshot, sent, why));
            help.extend(not_ready(snapshot, why));
            help.extend(silent(why));
            help.extend(not_named(why));
        }
        Outcome::NothingAsked | Outcome::Placed | Outcome::Unclear => {}
    }
    help
}

/// What the extender says in events of the claims and their classes.
fn advised(snapshot: &Snapshot, why: &Why) -> Vec<String> {
    let nodes: Vec<_> = snapshot
        .nodes
        .iter()
        .map(|node| std::sync::Arc::new(node.metadata.clone().into_response_partial()))
        .collect();
    let classes: BTreeSet<&str> = why.claims.iter().filter_map(|claim| claim.class.as_deref()).collect();
    let concerns = |kind: &str, namespace: Option<&str>, name: &str| match kind {
        "StorageClass" => classes.contains(name),
        "PersistentVolumeClaim" => {
            namespace == Some(&*why.namespace) && why.claims.iter().any(|claim| claim.name == name)
        }
        _ => false,
    };
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    advice(&snapshot.classes, &nodes, &snapshot.index)
        .into_iter()
        // What is wrong with the parameters of a class is said of each of its claims too.
        .filter(|advice| {
            advice.regarding.kind.as_deref() != Some("StorageClass") || advice.saying.reason != "InvalidStorageClass"
        })
        .filter_map(|advice| {
            let regarding = &advice.regarding;
            let (kind, name) = (part(&regarding.kind), part(&regarding.name));
            concerns(&kind, regarding.namespace.as_deref(), &name).then(|| {
                let kind = if kind == "StorageClass" {
                    "StorageClass"
                } else {
                    "claim"
                };
                format!("{kind} {name}: {}", advice.saying.note)
            })
        })
        .collect()
}

/// A pod that names its node is never seen by a scheduler, so that nobody chooses a node for its claims.
fn bypassed(why: &Why) -> Option<String> {
    let node = why.placed_on.as_deref()?;
    let waits = why.claims.iter().find(|claim| claim.state == "waits for a node")?;
    Some(format!(
        "claim {} waits for ever: the pod was put on node {node} by spec.nodeName, past the scheduler, which alone \
         chooses nodes for claims. Use a nodeSelector or an affinity instead",
        waits.name
    ))
}

/// A claim that was given to a node, whose volume is not there.
fn given(snapshot: &Snapshot, why: &Why) -> Vec<String> {
    let about = |claim: &super::why::ClaimRow| {
        let (node, class) = (claim.node.as_deref()?, claim.class.as_deref()?);
        let name = &claim.name;
        if snapshot.node(node).is_none() {
            return Some(format!(
                "claim {name} belongs to node {node}, which is not in the cluster: see docs/failures/lost-nodes.md"
            ));
        }
        if !claim.state.starts_with("given") {
            return None;
        }
        match snapshot.storage(class, node) {
            None => Some(format!(
                "claim {name} was given to node {node}, which StorageClass {class} does not name, so that nobody makes \
                 its volume there: let the scheduler know the extender (docs/scheduler.md), and take the choice back \
                 with \"kubectl -n {} annotate pvc {name} volume.kubernetes.io/selected-node-\"",
                why.namespace
            )),
            Some(_) => Some(format!(
                "claim {name}: the manager on node {node} makes its volume within seconds; if it does not, see its log: \
                 \"kubectl -n quarry-system logs -l app.kubernetes.io/name=quarry-manager --prefix\""
            )),
        }
    };
    why.claims.iter().filter_map(about).collect()
}

fn absent(why: &Why) -> Vec<String> {
    let about = |claim: &super::why::ClaimRow| match claim.state.as_str() {
        "does not exist" => Some(format!("create claim {}", claim.name)),
        "its StorageClass does not exist" => Some(format!(
            "create StorageClass {}, or name another in claim {}: see \"kubectl get storageclasses\"",
            claim.class.as_deref().unwrap_or_default(),
            claim.name
        )),
        _ => None,
    };
    why.claims.iter().filter_map(about).collect()
}

fn fits(why: &Why) -> Vec<String> {
    let fit: Vec<&NodeRow> = why.nodes.iter().filter(|node| node.fits).collect();
    let mut help: Vec<String> = Vec::new();
    if fit.iter().all(|node| !node.remarks.is_empty()) {
        for node in fit.iter().take(NAMED) {
            help.push(format!(
                "node {} has room, but {}",
                node.node,
                node.remarks.join(" and ")
            ));
        }
    } else if why.pod.is_some() {
        let names = listed(
            fit.iter()
                .filter(|node| node.remarks.is_empty())
                .map(|node| &*node.node),
        );
        help.push(match &why.scheduler {
            Some(_) => format!(
                "Quarry has nothing against {names}: what keeps the pod away from there is in what the scheduler says \
                 above. It looks again when something changes, and after 5 minutes at the latest"
            ),
            None => format!("Quarry has nothing against {names}, and no scheduler has said anything of the pod yet"),
        });
    }
    help
}

/// The node that comes nearest, and how what is missing could come back.
fn nearest(snapshot: &Snapshot, why: &Why) -> Vec<String> {
    let no_room = Cause::NoRoom.as_str();
    let short = |node: &&NodeRow| {
        let missing = node.groups.iter().map(|group| group.missing_bytes);
        missing.fold(0, u64::saturating_add)
    };
    let Some(node) = why
        .nodes
        .iter()
        .filter(|node| node.cause == Some(no_room))
        .min_by_key(short)
    else {
        return Vec::new();
    };
    let mut help = Vec::new();
    for group in node.groups.iter().filter(|group| group.missing_bytes > 0) {
        let (name, missing) = (&group.volume_group, Bytes(group.missing_bytes));
        if group.asked_bytes > group.size_bytes {
            help.push(format!(
                "node {} comes nearest, and volume group {name} would be too small even if it were empty: it has {} and is \
                 asked for {}. Ask for {} or less, or add disks to it (docs/node-local-storage.md)",
                node.node,
                Bytes(group.size_bytes),
                Bytes(group.asked_bytes),
                Bytes(group.free_bytes)
            ));
            continue;
        }
        help.push(format!(
            "node {} comes nearest: volume group {name} lacks {missing}. Ask for {} or less, delete claims there that \
             nobody needs, or add a disk to it (docs/node-local-storage.md)",
            node.node,
            Bytes(group.free_bytes)
        ));
        if group.in_flight_bytes > 0 {
            let claims = listed(group.in_flight.iter().map(|claim| &*claim.claim));
            help.push(format!(
                "{} of it are in flight to {claims}: the space comes back if these are deleted or go elsewhere",
                Bytes(group.in_flight_bytes)
            ));
        }
        help.extend(held(snapshot, &node.node, name));
    }
    help
}

/// Space of a volume group that nobody uses and that could come back.
fn held(snapshot: &Snapshot, node: &str, group: &str) -> Vec<String> {
    let mut help = Vec::new();
    let Some((_, known)) = snapshot.index.node(node) else {
        return help;
    };
    let Some(uuid) = known
        .groups()
        .iter()
        .find(|known| known.name == group)
        .map(|known| &known.uuid)
    else {
        return help;
    };
    let going: Vec<_> = known
        .volumes()
        .filter(|(_, volume)| *volume.group == **uuid && volume.disposal != Disposal::Keep)
        .map(|(name, _)| name)
        .collect();
    if !going.is_empty() {
        help.push(format!(
            "{} on node {node} is being removed; its space comes back then",
            listed(going.into_iter())
        ));
    }
    let of_group = |storage: &&quarry_crds::NodeLocalStorage| {
        let found = storage.status.as_ref().and_then(|status| status.volume_group.as_ref());
        storage.spec.node_name == node && found.is_some_and(|found| found.uuid == *uuid)
    };
    let reserved = snapshot
        .storages
        .iter()
        .find(of_group)
        .and_then(|storage| storage.status.as_ref()?.volume_group.as_ref()?.figures())
        .map(|figures| super::why::bytes(figures.extent_size, figures.reserved))
        .filter(|reserved| *reserved > 0);
    if let Some(reserved) = reserved {
        help.push(format!(
            "{} of volume group {group} on node {node} are used by what Quarry did not make: see \"lvs {group}\" there",
            Bytes(reserved)
        ));
    }
    help
}

/// Claims that fit alone, and not on one node.
fn together(snapshot: &Snapshot, sent: &api::Pod<'_>, why: &Why) -> Option<String> {
    let asking: Vec<&str> = why
        .claims
        .iter()
        .filter(|claim| claim.state == "waits for a node")
        .map(|claim| claim.name.as_str())
        .collect();
    if asking.len() < 2 {
        return None;
    }
    let alone: Vec<String> = asking
        .iter()
        .map(|name| {
            let wanted = api::PodClaim {
                name: (*name).to_owned(),
                ephemeral: false,
            };
            let asks = match crate::decide::stand(&snapshot.index, sent, &wanted) {
                crate::decide::Stand::Asks { claim, class, size, .. } => vec![quarry_crds::placement::Ask {
                    claim_uid: claim.uid.to_string(),
                    class: class.to_owned(),
                    size,
                }],
                _ => return None,
            };
            let fits = |node: &&NodeRow| {
                let found = snapshot.index.node(&node.node);
                found.is_some_and(|(_, node)| {
                    quarry_crds::placement::fits(&asks, |at| node.standing(&asks[at].class)).is_ok()
                })
            };
            let node = why.nodes.iter().find(fits)?;
            Some(format!("{name} on {}", node.node))
        })
        .collect::<Option<_>>()?;
    Some(format!(
        "each claim alone has room ({}), but no node has it for all: use pods of their own, or ask for less",
        alone.join(", ")
    ))
}

/// NodeLocalStorages that are not ready, and why.
fn not_ready(snapshot: &Snapshot, why: &Why) -> Vec<String> {
    let not_ready = Cause::NotReady.as_str();
    let of = |node: &&NodeRow| node.cause == Some(not_ready);
    let nodes = why.nodes.iter().filter(of);
    let about = nodes.flat_map(|node| {
        let storages = why.claims.iter().filter_map(|claim| {
            let storage = snapshot.storage(claim.class.as_deref()?, &node.node)?;
            (!storage.is_ready()).then_some(storage)
        });
        storages.map(|storage| {
            let conditions = storage.status.iter().flat_map(|status| &status.conditions);
            let ready = conditions.into_iter().find(|found| found.type_ == condition::READY);
            let said = ready.map_or_else(
                || "the manager of the node has not said anything of it yet: is it running?".to_owned(),
                |ready| format!("{}: {}", ready.reason, ready.message),
            );
            let name = storage.metadata.name.as_deref().unwrap_or_default();
            format!("NodeLocalStorage {name} is not ready: {said}")
        })
    });
    let about: BTreeSet<String> = about.collect();
    let more = about.len().saturating_sub(NAMED);
    let mut about: Vec<String> = about.into_iter().take(NAMED).collect();
    if more > 0 {
        about.push(format!("{more} more are not ready: see \"kubectl get nls -o wide\""));
    }
    about
}

/// Nodes whose manager is silent.
fn silent(why: &Why) -> Option<String> {
    let silent = Cause::Silent.as_str();
    let nodes: Vec<&str> = why
        .nodes
        .iter()
        .filter(|node| node.cause == Some(silent))
        .map(|node| &*node.node)
        .collect();
    (!nodes.is_empty()).then(|| {
        format!(
            "nobody makes volumes on {} now: see what keeps the manager there, with \"kubectl -n quarry-system get pods -l \
             app.kubernetes.io/name=quarry-manager -o wide\"",
            listed(nodes.into_iter())
        )
    })
}

/// Where only nodes are left that the class does not name.
fn not_named(why: &Why) -> Option<String> {
    let not_named = Cause::NotInClass.as_str();
    let count = why.nodes.iter().filter(|node| node.cause == Some(not_named)).count();
    (count == why.nodes.len() && count > 0).then(|| {
        let classes: BTreeSet<&str> = why.claims.iter().filter_map(|claim| claim.class.as_deref()).collect();
        format!(
            "no node has storage of {}: see \"kubectl get nls\". Where there is none, the class names no node of this \
             cluster, or no manager runs on those it names",
            listed(classes.into_iter())
        )
    })
}

/// The first few, and how many more there are.
pub(super) fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
