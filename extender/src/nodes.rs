//! Which nodes there are: their names and labels, and nothing else of them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use quarry_process::WatchBackoff;
use tokio::sync::watch;

/// A node, as far as it is watched.
pub type NodeMeta = PartialObjectMeta<v1::Node>;

/// The nodes, kept by a watch.
#[derive(Debug)]
pub struct Nodes {
    store: Store<NodeMeta>,
    changed: watch::Sender<()>,
    /// Nodes that were seen since this was last asked for: one that went and came in between is seen by this only.
    seen: Mutex<HashSet<String>>,
}

impl Nodes {
    /// No nodes, and what fills them.
    #[must_use]
    pub fn new() -> (Arc<Self>, Writer<NodeMeta>) {
        let (store, writer) = store();
        let nodes = Self {
            store,
            changed: watch::Sender::new(()),
            seen: Mutex::default(),
        };
        (Arc::new(nodes), writer)
    }

    /// Watches them, for ever.
    pub async fn watch(self: Arc<Self>, client: Client, writer: Writer<NodeMeta>) {
        let events = watcher(Api::<NodeMeta>::all(client), watcher::Config::default())
            .backoff(WatchBackoff::default())
            .modify(|node: &mut NodeMeta| {
                node.metadata.managed_fields = None;
                node.metadata.annotations = None;
            })
            .reflect(writer);
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.note(&event),
                Err(error) => tracing::warn!(kind = "nodes", %error, "a watch failed; trying again"),
            }
        }
    }

    /// Takes note of an event that the store has taken in.
    pub fn note(&self, event: &Event<NodeMeta>) {
        if let Event::Apply(node) | Event::InitApply(node) = event {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.insert(node.name_any());
        }
        self.changed.send_replace(());
    }

    /// Waits until they have been listed; says whether they ever will be.
    pub async fn listed(&self) -> bool {
        self.store.wait_until_ready().await.is_ok()
    }

    /// Tells of every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<NodeMeta>> {
        self.store.state()
    }

    /// Whether there is one of that name, as far as is known.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.store.get(&ObjectRef::new(name)).is_some()
    }

    /// The names that were seen since the last call.
    #[must_use]
    pub fn take_seen(&self) -> HashSet<String> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
