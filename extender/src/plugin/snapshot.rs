//! What `kubectl quarry` reads: the objects of the extender's index, nodes, and what was said of the object in question.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use futures::{TryFutureExt, try_join};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, ListParams};
use kube::core::DeserializeGuard;
use kube::{Client, Resource, ResourceExt};
use quarry_crds::NodeLocalStorage;
use quarry_crds::liveness::is_manager_lease;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::calls;
use crate::index::{Entry, Index};
use crate::objects::{AnyVolume, Claim, Class, Storage, Volume};
use crate::watch;

/// How many objects are asked for at a time.
const PAGE: u32 = 500;

/// Something cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The user has no right to.
    #[error(
        "you may not read {what}{place}; ask an administrator for the ClusterRole quarry-view, see \
         docs/kubectl-quarry.md ({message})"
    )]
    Forbidden {
        /// What was to be read, in the plural of the API.
        what: String,
        /// Where.
        place: String,
        /// What the API server says.
        message: String,
    },
    /// The kind NodeLocalStorage is not known.
    #[error("Quarry is not installed on this cluster: it does not know the kind NodeLocalStorage")]
    NotInstalled,
    /// Neither a pod nor a claim of that name.
    #[error(
        "there is no {what} {name} in namespace {namespace}; see \"kubectl -n {namespace} get pods,pvc\", or use -n"
    )]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// Its name.
        name: String,
        /// Its namespace.
        namespace: String,
    },
    /// Anything else.
    #[error("{what} cannot be read: {source}")]
    Other {
        /// What was to be read.
        what: String,
        /// Why not.
        source: Box<kube::Error>,
    },
}

/// What was said last of an object, in a Warning event.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Said {
    /// Kind and name of the object, such as `claim data`.
    pub of: String,
    /// Reason of the event.
    pub reason: String,
    /// Its text.
    pub message: String,
}

/// When kube-scheduler called an extender last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// When, to a minute.
    pub at: Timestamp,
    /// Which extender.
    pub whom: String,
}

/// The objects that a decision rests on, as they were when they were read.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// As the extender keeps it.
    pub index: Index,
    /// All classes.
    pub classes: Vec<Arc<StorageClass>>,
    /// All NodeLocalStorages.
    pub storages: Vec<NodeLocalStorage>,
    /// All nodes.
    pub nodes: Vec<Node>,
    /// When kube-scheduler called an extender last.
    pub last_call: Option<Call>,
    /// The newest PersistentVolume for which a scheduler chose the node: when it was made, and its name.
    pub newest_volume: Option<(Timestamp, String)>,
    /// Why something that matters could not be read, for the reader to know.
    pub notes: Vec<String>,
}

impl Snapshot {
    /// Reads everything; Quarry itself is in the namespace `quarry`. Where the user may not list claims of all namespaces,
    /// those of `namespace` only.
    ///
    /// # Errors
    /// Something that there is no doing without cannot be read.
    pub async fn read(client: &Client, namespace: &str, quarry: &str) -> Result<Self, ReadError> {
        let claims = async {
            match list::<PersistentVolumeClaim>(Api::all(client.clone()), "").await {
                Err(ReadError::Forbidden { .. }) => {
                    let place = format!(" in namespace {namespace}");
                    let own = list(Api::namespaced(client.clone(), namespace), &place).await?;
                    let note = format!(
                        "you may list claims of namespace {namespace} only: those of others that are in flight are not \
                         counted here, and FREE may be too large"
                    );
                    Ok((own, Some(note)))
                }
                other => other.map(|claims| (claims, None)),
            }
        };
        let leases = async {
            match list::<Lease>(
                Api::namespaced(client.clone(), quarry),
                &format!(" in namespace {quarry}"),
            )
            .await
            {
                Err(ReadError::Forbidden { .. }) => Ok(None),
                other => other.map(Some),
            }
        };
        let (classes, storages, volumes, nodes, (claims, note), leases) = try_join!(
            list::<StorageClass>(Api::all(client.clone()), ""),
            list::<NodeLocalStorage>(Api::all(client.clone()), "").map_err(not_installed),
            list::<PersistentVolume>(Api::all(client.clone()), ""),
            list::<Node>(Api::all(client.clone()), ""),
            claims,
            leases,
        )?;
        let mut snapshot = Self::of(classes, storages, &volumes, &claims, nodes);
        snapshot.notes.extend(note);
        match leases {
            Some(leases) => {
                snapshot.index.silence(&silent(&leases, Timestamp::now()));
                snapshot.last_call = leases.iter().find_map(call);
            }
            None => snapshot.notes.push(format!(
                "you may not list leases in namespace {quarry}: whether the managers are at work cannot be seen"
            )),
        }
        Ok(snapshot)
    }

    /// A snapshot of these objects.
    #[must_use]
    pub fn of(
        classes: Vec<StorageClass>,
        storages: Vec<NodeLocalStorage>,
        volumes: &[PersistentVolume],
        claims: &[PersistentVolumeClaim],
        nodes: Vec<Node>,
    ) -> Self {
        let mut index = Index::default();
        index.replace(entries(&classes, |class| Some(Class::read(class))));
        index.replace(entries(&storages, Storage::read));
        index.replace(entries(volumes, AnyVolume::read));
        index.replace(entries(claims, |claim| Some(Claim::read(claim))));
        let newest_volume = newest_volume(volumes, &classes);
        Self {
            index,
            classes: classes.into_iter().map(Arc::new).collect(),
            storages,
            nodes,
            last_call: None,
            newest_volume,
            notes: Vec::new(),
        }
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes
            .iter()
            .find(|node| node.metadata.name.as_deref() == Some(name))
    }

    /// The NodeLocalStorage of a class on a node.
    #[must_use]
    pub fn storage(&self, class: &str, node: &str) -> Option<&NodeLocalStorage> {
        self.storages
            .iter()
            .find(|storage| storage.spec.storage_class_name == class && storage.spec.node_name == node)
    }
}

/// The nodes whose manager has not renewed its Lease for as long as the Lease says itself. The extender goes by when it saw
/// a Lease change; who looks once has to compare the clock of the node with its own.
fn silent(leases: &[Lease], now: Timestamp) -> BTreeSet<String> {
    let silent = |lease: &Lease| {
        let spec = lease.spec.as_ref()?;
        let lasts = SignedDuration::from_secs(spec.lease_duration_seconds?.into());
        let old = now.duration_since(spec.renew_time.as_ref()?.0) > lasts;
        (is_manager_lease(&lease.name_any()) && old).then(|| spec.holder_identity.clone())?
    };
    leases.iter().filter_map(silent).collect()
}

fn call(lease: &Lease) -> Option<Call> {
    let spec = lease.spec.as_ref().filter(|_| lease.name_any() == calls::LEASE)?;
    Some(Call {
        at: spec.renew_time.as_ref()?.0,
        whom: spec.holder_identity.clone().unwrap_or_default(),
    })
}

/// The newest volume of ours for which a scheduler chose the node.
fn newest_volume(volumes: &[PersistentVolume], classes: &[StorageClass]) -> Option<(Timestamp, String)> {
    let chosen = |volume: &&PersistentVolume| {
        let class = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
        let found = classes.iter().find(|found| found.metadata.name.as_deref() == class);
        let waits = found.and_then(|class| class.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer");
        waits && Volume::read(volume).is_some()
    };
    let made = |volume: &PersistentVolume| Some((volume.creation_timestamp()?.0, volume.name_any()));
    volumes.iter().filter(chosen).filter_map(made).max()
}

fn not_installed(error: ReadError) -> ReadError {
    match error {
        ReadError::Other { source, .. } if matches!(&*source, kube::Error::Api(status) if status.code == 404) => {
            ReadError::NotInstalled
        }
        other => other,
    }
}

fn entries<K: Resource, E: Entry>(objects: &[K], read: fn(&K) -> Option<E>) -> Vec<(Box<str>, E)> {
    let entry = |object: &K| Some((watch::key(object.meta()).into(), read(object)?));
    objects.iter().filter_map(entry).collect()
}

/// All objects of a kind that can be read: one that cannot counts as absent, as it does for the extender.
async fn list<K>(api: Api<DeserializeGuard<K>>, place: &str) -> Result<Vec<K>, ReadError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut params = ListParams::default().limit(PAGE);
    let mut objects = Vec::new();
    loop {
        let page = api
            .list(&params)
            .await
            .map_err(|error| read_error(&K::plural(&()), place, error))?;
        objects.extend(page.items.into_iter().filter_map(|object| object.0.ok()));
        match page.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => params = params.continue_token(&next),
            None => return Ok(objects),
        }
    }
}

fn read_error(what: &str, place: &str, error: kube::Error) -> ReadError {
    match error {
        kube::Error::Api(status) if status.code == 403 => ReadError::Forbidden {
            what: what.to_owned(),
            place: place.to_owned(),
            message: status.message,
        },
        error => ReadError::Other {
            what: format!("{what}{place}"),
            source: Box::new(error),
        },
    }
}

/// What a user asks about.
#[derive(Debug, Clone)]
pub enum Subject {
    /// A pod.
    Pod(Box<Pod>),
    /// A claim, and the pods that use it.
    Claim(Box<PersistentVolumeClaim>, Vec<Pod>),
}

/// What a user may have meant by a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A pod, or if there is none of that name, a claim.
    Either,
    /// A pod.
    Pod,
    /// A claim.
    Claim,
}

/// Finds the pod or claim of a name.
///
/// # Errors
/// There is none, or it cannot be read.
pub async fn find(client: &Client, namespace: &str, name: &str, wanted: Wanted) -> Result<Subject, ReadError> {
    let place = format!(" in namespace {namespace}");
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    if wanted != Wanted::Claim
        && let Some(pod) = pods
            .get_opt(name)
            .await
            .map_err(|error| read_error("pods", &place, error))?
    {
        return Ok(Subject::Pod(Box::new(pod)));
    }
    if wanted != Wanted::Pod
        && let Some(claim) = claims
            .get_opt(name)
            .await
            .map_err(|error| read_error("persistentvolumeclaims", &place, error))?
    {
        let pods = list::<Pod>(Api::namespaced(client.clone(), namespace), &place).await?;
        let users = pods.into_iter().filter(|pod| uses(pod, name)).collect();
        return Ok(Subject::Claim(Box::new(claim), users));
    }
    Err(ReadError::NotFound {
        what: match wanted {
            Wanted::Either => "pod or claim",
            Wanted::Pod => "pod",
            Wanted::Claim => "claim",
        },
        name: name.to_owned(),
        namespace: namespace.to_owned(),
    })
}

/// A pod as kube-scheduler sends it.
#[must_use]
pub fn as_sent(pod: &Pod) -> crate::api::Pod<'static> {
    let sent = serde_json::to_vec(pod).unwrap_or_default();
    // Every pod has a name, a namespace and a UID, and its volumes are optional.
    let read: crate::api::Pod<'_> = serde_json::from_slice(&sent).unwrap_or_default();
    read.into_owned()
}

/// Whether a pod uses a claim.
#[must_use]
pub fn uses(pod: &Pod, claim: &str) -> bool {
    as_sent(pod).claims().iter().any(|used| used.name == claim)
}

/// The last warning said of each of these claims; nothing where the user may not read events.
pub async fn warnings(client: &Client, namespace: &str, claims: &[String]) -> Vec<Said> {
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().fields("involvedObject.kind=PersistentVolumeClaim,type=Warning");
    let Ok(list) = events.list(&params).await else {
        return Vec::new();
    };
    let mut last: BTreeMap<&str, (Timestamp, &Event)> = BTreeMap::new();
    for event in &list.items {
        let Some(name) = event.involved_object.name.as_deref() else {
            continue;
        };
        let time = time(event);
        if claims.iter().any(|claim| claim == name) && last.get(name).is_none_or(|(known, _)| *known <= time) {
            last.insert(name, (time, event));
        }
    }
    let said = |(name, (_, event)): (&str, (Timestamp, &Event))| Said {
        of: format!("claim {name}"),
        reason: event.reason.clone().unwrap_or_default(),
        message: event.message.clone().unwrap_or_default(),
    };
    last.into_iter().map(said).collect()
}

fn time(event: &Event) -> Timestamp {
    let repeated = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref());
    let times = [
        repeated.map(|time| time.0),
        event.event_time.as_ref().map(|time| time.0),
        event.last_timestamp.as_ref().map(|time| time.0),
        event.creation_timestamp().map(|time| time.0),
    ];
    times.into_iter().flatten().max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_manager_whose_lease_ran_out_is_silent() {
        let lease = |name: &str, holder: &str, renewed: &str| -> Lease {
            let spec = json!({"holderIdentity": holder, "leaseDurationSeconds": 180, "renewTime": renewed});
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).expect("a lease")
        };
        let leases = [
            lease("manager.n0", "n0", "2026-01-01T00:01:59.000000Z"),
            lease("manager.n1", "n1", "2026-01-01T00:02:01.000000Z"),
            lease("quarry-cleanup", "n2", "2026-01-01T00:00:00.000000Z"),
        ];
        let now = "2026-01-01T00:05:00Z".parse().expect("a time");
        assert_eq!(silent(&leases, now), BTreeSet::from(["n0".to_owned()]));
    }
}
