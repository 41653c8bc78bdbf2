//! Claims of binding mode Immediate that this node does not take now: each is looked at again when anything changes on the
//! node that could matter to it, since nobody else would tell of that.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use tokio::sync::Notify;
use tokio::time::Instant;

/// When the turn of a claim has passed for so long, it is another node's.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// The claims that wait.
#[derive(Debug, Clone, Default)]
pub struct Waiting(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    claims: Mutex<HashSet<ObjectRef<PersistentVolumeClaim>>>,
    /// From when on this node may take a claim, by its UID.
    turns: Mutex<HashMap<String, Instant>>,
    changed: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiting {
    /// The claim is looked at again after the next change.
    pub fn add(&self, claim: &PersistentVolumeClaim) {
        lock(&self.0.claims).insert(ObjectRef::from_obj(claim));
    }

    /// Something changed on this node.
    pub fn look_again(&self) {
        self.0.changed.notify_one();
    }

    /// The claims to be looked at again, whenever something changed; it never ends.
    pub fn again(&self) -> impl Stream<Item = watcher::Result<ObjectRef<PersistentVolumeClaim>>> + Send + 'static {
        let next = |waiting: Self| async move {
            waiting.0.changed.notified().await;
            let claims = std::mem::take(&mut *lock(&waiting.0.claims));
            Some((stream::iter(claims.into_iter().map(Ok)), waiting))
        };
        stream::unfold(self.clone(), next).flatten()
    }

    /// How much longer this node lets others take a claim first, of so long in all; `None` once it is this node's turn.
    #[must_use]
    pub fn turn(&self, claim_uid: &str, wait: Duration) -> Option<Duration> {
        let now = Instant::now();
        let mut turns = lock(&self.0.turns);
        let due = *turns.entry(claim_uid.to_owned()).or_insert(now + wait);
        if due > now {
            return Some(due - now);
        }
        turns.remove(claim_uid);
        turns.retain(|_, due| *due + FORGOTTEN > now);
        None
    }
}
