//! Where the claims of a burst are given to, from one change to the next, as the API server tells them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use kube::runtime::watcher::{self, Event, watcher};
use quarry_crds::claim::selected_node;
use quarry_crds::quantity;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::test::{PATIENCE, Test};

/// Bytes of an extent.
pub const EXTENT: u64 = 4 << 20;
/// Extents that one pod of each kind takes together of the first group, of the second, of the third.
pub const SHARED: u64 = 3 * 2;
/// 1 + 3 of the pod with three claims.
pub const TWICE: u64 = 4;
/// Its third claim.
pub const THIRD: u64 = 4;

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// How often a claim was given to a node.
    pub selections: usize,
    /// Claims that were taken from a node again.
    pub given_back: Vec<String>,
    /// Each time when more was given to a group of a node than it has.
    pub over: Vec<String>,
    /// By UID: the node and group that a claim takes extents of.
    given: HashMap<String, Option<(String, u64, u64)>>,
}

/// A watch at work.
pub struct Watched {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Watched {
    /// Begins; when it returns, what follows is seen.
    pub async fn begin(test: &Test, room: Vec<u64>) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (ready, begun) = oneshot::channel();
        let (kept, claims) = (Arc::clone(&seen), test.claims());
        let task = tokio::spawn(async move {
            let mut ready = Some(ready);
            let mut events = watcher(claims, watcher::Config::default()).boxed();
            while let Some(event) = events.next().await {
                let mut seen = kept.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Ok(Event::Apply(claim) | Event::InitApply(claim)) => seen.see(&claim, &room),
                    Ok(Event::Delete(claim)) => drop(seen.given.remove(&claim.uid().unwrap_or_default())),
                    Ok(Event::InitDone) => drop(ready.take().map(|ready| ready.send(()))),
                    // It begins anew by itself.
                    Ok(Event::Init) | Err(_) => {}
                }
            }
        });
        tokio::time::timeout(PATIENCE, begun)
            .await?
            .context("the watch ended")?;
        Ok(Self { seen, task })
    }

    /// Ends it; what was seen.
    pub async fn end(self) -> Result<Seen> {
        self.task.abort();
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(seen)
    }
}

impl Seen {
    fn see(&mut self, claim: &PersistentVolumeClaim, room: &[u64]) {
        let now = selected_node(claim).map(|node| {
            let (group, extents) = takes(claim);
            (node.to_owned(), group, extents)
        });
        let before = self
            .given
            .insert(claim.uid().unwrap_or_default(), now.clone())
            .flatten();
        if before == now {
            return;
        }
        if let Some((node, ..)) = before {
            self.given_back.push(format!("{} from {node}", claim.name_any()));
        }
        if now.is_some() {
            self.selections += 1;
        }
        let mut taken: BTreeMap<(&str, u64), u64> = BTreeMap::new();
        for (node, group, extents) in self.given.values().flatten() {
            *taken.entry((node, *group)).or_default() += extents;
        }
        let over = taken
            .into_iter()
            .filter(|((node, group), taken)| *taken > size(node, *group, room));
        let over: Vec<_> = over
            .map(|((node, group), taken)| format!("{taken} extents of group {group} on {node}"))
            .collect();
        self.over.extend(over);
    }
}

/// The group of a claim's class, and its extents.
fn takes(claim: &PersistentVolumeClaim) -> (u64, u64) {
    let spec = claim.spec.as_ref();
    let class = spec
        .and_then(|spec| spec.storage_class_name.as_deref())
        .unwrap_or_default();
    let requests = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let bytes = requests
        .and_then(|asked| quantity::parse(&asked.0).ok())
        .unwrap_or_default();
    let group = [("-twice", 1), ("-third", 2)]
        .into_iter()
        .find(|(suffix, _)| class.ends_with(suffix));
    (group.map_or(0, |(_, group)| group), bytes.0.div_ceil(EXTENT))
}

/// Extents of a group on a node.
fn size(node: &str, group: u64, room: &[u64]) -> u64 {
    let at: usize = node.trim_start_matches("node").parse().unwrap_or_default();
    let each = [SHARED, TWICE, THIRD]
        .get(usize::try_from(group).unwrap_or_default())
        .copied();
    room.get(at.wrapping_sub(1)).copied().unwrap_or_default() * each.unwrap_or_default()
}
