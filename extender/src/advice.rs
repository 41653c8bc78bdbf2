//! Tells the owners of classes and claims what is wrong with them, in events.
//!
//! The extender says this because it sees the whole cluster: no manager would speak for a class that names no node that
//! there is, nor for a claim that no node is ever selected for. What is said is a function of the objects; events are
//! named by what they say, so several replicas, and the managers, add to the same event. Nothing here is in the way of
//! an answer to kube-scheduler.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, future};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::Api;
use kube::runtime::reflector::{Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use quarry_crds::extents::Bytes;
use quarry_crds::labels;
use quarry_crds::provisioning::{check_class, large_enough};
use quarry_crds::storage_class::{ClassParameters, NodeGroup, is_ours};
use quarry_process::WatchBackoff;
use quarry_process::events::{Events, Saying};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::handlers::Extender;
use crate::index::{Index, claim_name};
use crate::node::Node;
use crate::nodes::{NodeMeta, Nodes};
use crate::objects::{Binding, Claim};

/// Component that events of the extender come from.
const COMPONENT: &str = "quarry-extender";
/// Label that kubelet sets on its node.
const OS_LABEL: &str = "kubernetes.io/os";
/// A class and its nodes are often made together, in any order: this long, a node may be missing.
const GRACE: Duration = Duration::from_secs(10);
/// Changes within this time are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(500);
/// Kubernetes forgets an event after an hour; what still holds is said again before.
const AGAIN: Duration = Duration::from_secs(50 * 60);
/// How many nodes of a list are named.
const NAMED: usize = 4;

/// Something to be said of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Advice {
    /// The object.
    pub regarding: ObjectReference,
    /// What is said.
    pub saying: Saying,
    /// How long it must hold before it is said.
    pub grace: Duration,
}

/// Everything that is wrong: with the classes of ours, with the nodes that they name, and with the claims of them.
#[must_use]
pub fn advice(classes: &[Arc<StorageClass>], nodes: &[Arc<NodeMeta>], index: &Index) -> Vec<Advice> {
    let nodes: BTreeMap<&str, &BTreeMap<String, String>> = nodes
        .iter()
        .filter_map(|node| Some((node.metadata.name.as_deref()?, node.labels())))
        .collect();
    let mut said = Vec::new();
    let mut ours = HashMap::new();
    for class in classes.iter().filter(|class| is_ours(class)) {
        let checked = check_class(class);
        match &checked {
            Err((reason, text)) => said.push(Advice {
                regarding: class.object_ref(&()),
                saying: Saying::warning(reason, text.clone()),
                grace: Duration::ZERO,
            }),
            Ok(parameters) => said.extend(unfit_nodes(parameters, &nodes).map(|saying| Advice {
                regarding: class.object_ref(&()),
                saying,
                grace: GRACE,
            })),
        }
        ours.insert(class.metadata.name.as_deref().unwrap_or_default(), checked);
    }
    let largest = largest(index);
    for (key, claim) in index.claims() {
        let Some(name) = claim.class.as_deref() else {
            continue;
        };
        let (Some(class), Binding::Unbound, false) = (ours.get(name), claim.binding, claim.deleting) else {
            continue;
        };
        let wrong = match servable(claim, class) {
            Err((reason, text)) => Some((Saying::warning(reason, text), Duration::ZERO)),
            Ok(()) => largest
                .get(name)
                .and_then(|largest| too_large(claim, name, *largest))
                .map(|saying| (saying, GRACE)),
        };
        // What cannot be made may be there already.
        let wrong = wrong.filter(|_| !index.is_served_by_existing(key, claim));
        said.extend(wrong.map(|(saying, grace)| Advice {
            regarding: reference(key, claim),
            saying,
            grace,
        }));
    }
    said
}

/// The largest volume group of each class, and its node: of the first by name among equals.
fn largest(index: &Index) -> HashMap<&str, (Bytes, &str)> {
    let mut largest: HashMap<&str, (Bytes, &str)> = HashMap::new();
    for (class, node, size) in index.nodes().flat_map(Node::sizes) {
        let known = largest.entry(class).or_insert((size, node));
        if size > known.0 || (size == known.0 && node < known.1) {
            *known = (size, node);
        }
    }
    largest
}

/// A claim that no volume group of its class could hold if it were empty.
fn too_large(claim: &Claim, class: &str, (size, node): (Bytes, &str)) -> Option<Saying> {
    let wanted = claim.request.as_ref().ok()?.size;
    (wanted > size && claim.selected.is_none()).then(|| {
        let note = format!(
            "spec.resources.requests.storage: {wanted} is more than any volume group of StorageClass {class} has, even \
             empty; the largest, on node {node}, has {size}: ask for less, or add disks to its NodeLocalStorage"
        );
        Saying::warning("TooLarge", note)
    })
}

/// Whether any node could ever serve a claim: as `quarry_crds::provisioning::check` decides, and in its words.
fn servable(
    claim: &Claim,
    class: &Result<ClassParameters, (&'static str, String)>,
) -> Result<(), (&'static str, String)> {
    let invalid = |text: String| ("InvalidClaim", text);
    let parameters = class.as_ref().map_err(Clone::clone)?;
    let wanted = claim.request.as_ref().map_err(|text| invalid(text.to_string()))?;
    large_enough(wanted.size, wanted.mode, parameters.fs_type).map_err(|error| invalid(error.to_string()))
}

fn reference(key: &str, claim: &Claim) -> ObjectReference {
    let (namespace, name) = claim_name(key);
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("PersistentVolumeClaim".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(claim.uid.to_string()),
        ..ObjectReference::default()
    }
}

/// What is wrong with the nodes that a class names.
fn unfit_nodes<'a>(
    parameters: &'a ClassParameters,
    nodes: &'a BTreeMap<&str, &BTreeMap<String, String>>,
) -> impl Iterator<Item = Saying> + 'a {
    let of_group = |(index, group): (usize, &'a NodeGroup)| {
        let at = format!("parameters.nodes[{index}]");
        [
            missing(&at, group, nodes),
            unmatched(&at, group, nodes),
            unsupported(&at, group, nodes),
        ]
    };
    parameters.nodes.iter().enumerate().flat_map(of_group).flatten()
}

const AGAIN_MADE: &str = "parameters cannot be changed, so delete the class and create it again";

fn missing(at: &str, group: &NodeGroup, nodes: &BTreeMap<&str, &BTreeMap<String, String>>) -> Option<Saying> {
    let missing: Vec<&str> = group
        .names
        .iter()
        .map(String::as_str)
        .filter(|name| !nodes.contains_key(name))
        .collect();
    (!missing.is_empty()).then(|| {
        let note = format!(
            "{at}.names: there is no node {}; add it to the cluster, or name another (see \"kubectl get nodes\"): \
             {AGAIN_MADE}",
            listed(&missing)
        );
        Saying::warning("NodeNotFound", note)
    })
}

fn unmatched(at: &str, group: &NodeGroup, nodes: &BTreeMap<&str, &BTreeMap<String, String>>) -> Option<Saying> {
    let selector = group.selector.as_ref()?;
    if nodes.values().any(|labels| labels::matches(selector, labels)) {
        return None;
    }
    let selector = serde_json::to_string(selector).unwrap_or_default();
    let note = format!(
        "{at}.selector: {selector} matches no node; label the nodes that are meant with \"kubectl label node\", or \
         select by another label: {AGAIN_MADE}"
    );
    Some(Saying::warning("NodeNotFound", note))
}

fn unsupported(at: &str, group: &NodeGroup, nodes: &BTreeMap<&str, &BTreeMap<String, String>>) -> Option<Saying> {
    let named = |name: &str, labels: &BTreeMap<String, String>| {
        group.names.iter().any(|named| named == name)
            || group
                .selector
                .as_ref()
                .is_some_and(|selector| labels::matches(selector, labels))
    };
    let foreign: Vec<(&str, &str)> = nodes
        .iter()
        .filter_map(|(name, labels)| {
            let os = labels.get(OS_LABEL)?;
            (os != "linux" && named(name, labels)).then_some((*name, os.as_str()))
        })
        .collect();
    let (_, os) = foreign.first()?;
    let names: Vec<&str> = foreign.iter().map(|(name, _)| *name).collect();
    let note = format!(
        "{at}: {} {OS_LABEL}={os}, and Quarry works on Linux; take it off the names, or select by {OS_LABEL}=linux \
         too: {AGAIN_MADE}",
        match names.as_slice() {
            [one] => format!("node {one:?} has the label"),
            several => format!("nodes {} have labels such as", listed(several)),
        }
    );
    Some(Saying::warning("UnsupportedNode", note))
}

fn listed(names: &[&str]) -> String {
    let shown = names
        .iter()
        .take(NAMED)
        .map(|name| format!("{name:?}"))
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// UID of an object, and what is wrong with it: reason and note.
type Wrong = (Option<String>, &'static str, String);

/// What is wrong now, since when, and when it was said last.
#[derive(Debug, Default)]
struct Standing(HashMap<Wrong, (Instant, Option<Instant>)>);

impl Standing {
    /// Of what is wrong now, that which is to be said now; and when to look again at the latest.
    fn due(&mut self, wrong: Vec<Advice>, now: Instant) -> (Vec<Advice>, Instant) {
        let mut due = Vec::new();
        let mut next = now + AGAIN;
        let mut standing = HashMap::new();
        for advice in wrong {
            let key = (
                advice.regarding.uid.clone(),
                advice.saying.reason,
                advice.saying.note.clone(),
            );
            let (since, said) = self.0.get(&key).copied().unwrap_or((now, None));
            let when = said.map_or(since + advice.grace, |said| said + AGAIN);
            let said = if when <= now {
                due.push(advice);
                Some(now)
            } else {
                next = next.min(when);
                said
            };
            standing.insert(key, (since, said));
        }
        self.0 = standing;
        (due, next)
    }
}

/// Watches classes, and says what is wrong with them, with the nodes that they name and with the claims of the index,
/// for ever.
pub async fn run(client: Client, extender: Arc<Extender>, nodes: Arc<Nodes>) {
    let changed = Notify::new();
    let (classes, writer) = store();
    let watch_classes = watcher(Api::<StorageClass>::all(client.clone()), watcher::Config::default())
        .backoff(WatchBackoff::default())
        .reflect(writer)
        .for_each(|event| {
            if let Err(error) = event {
                tracing::warn!(kind = "storageclasses", %error, "a watch failed; trying again");
            }
            changed.notify_one();
            future::ready(())
        });
    futures::join!(watch_classes, speak(client, extender, classes, nodes, &changed));
}

async fn speak(
    client: Client,
    extender: Arc<Extender>,
    classes: Store<StorageClass>,
    nodes: Arc<Nodes>,
    changed: &Notify,
) {
    // Without the list of nodes, every node would be missing.
    if classes.wait_until_ready().await.is_err() || !nodes.listed().await {
        return;
    }
    let instance = std::env::var("HOSTNAME").unwrap_or_else(|_| COMPONENT.to_owned());
    let events = Events::new(client, COMPONENT, instance);
    let (mut index, mut joined) = (extender.changes(), nodes.changes());
    let mut standing = Standing::default();
    loop {
        index.mark_unchanged();
        joined.mark_unchanged();
        let wrong = extender.read(|index| advice(&classes.state(), &nodes.all(), index));
        let (due, next) = standing.due(wrong, Instant::now());
        for Advice { regarding, saying, .. } in due {
            events.say_of(regarding, saying).await;
        }
        tokio::select! {
            () = changed.notified() => {}
            _ = index.changed() => {}
            _ = joined.changed() => {}
            () = tokio::time::sleep_until(next) => {}
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}

#[cfg(test)]
#[path = "advice_tests.rs"]
mod tests;
