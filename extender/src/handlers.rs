//! filter, prioritize and preempt: asks the index, and waits for the watches where that would change the answer.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use crate::answered::Answered;
use crate::api::Pod;
use crate::decide::{self, Answer, Patience, Verdict};
use crate::index::{Entry, Index, Kind};
use crate::metrics::Metrics;

/// The extender: what is known, and who was answered.
#[derive(Debug)]
pub struct Extender {
    index: RwLock<Index>,
    answered: Mutex<Answered>,
    changed: watch::Sender<()>,
    patience: Patience,
    called: Notify,
    /// Its metrics.
    pub metrics: Metrics,
}

impl Extender {
    /// An extender that knows nothing yet.
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        Self {
            index: RwLock::default(),
            answered: Mutex::default(),
            changed: watch::Sender::new(()),
            patience,
            called: Notify::new(),
            metrics: Metrics::default(),
        }
    }

    /// Takes in one object; `None` if it is gone or does not concern us.
    pub fn apply<E: Entry>(&self, key: &str, entry: Option<E>) {
        let changed = self
            .index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .apply(key, entry);
        if changed {
            self.changed.send_replace(());
        }
    }

    /// Takes in a complete list of objects of one kind.
    pub fn replace<E: Entry>(&self, entries: Vec<(Box<str>, E)>) {
        self.index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(entries);
        self.changed.send_replace(());
    }

    /// From now on the managers of these nodes, and of no others, are silent.
    pub fn silent(&self, nodes: &BTreeSet<String>) {
        self.index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .silence(nodes);
        self.changed.send_replace(());
    }

    /// Tells of every change of what is known.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Reads what is known.
    pub fn read<T>(&self, read: impl FnOnce(&Index) -> T) -> T {
        read(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many pods were answered whose node is not known yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let remembered = self.patience.remembered;
        self.read(|index| {
            answered.prune(index, Instant::now(), remembered);
            answered.crowd(index, "", &[], remembered).len()
        })
    }

    /// How many objects of a kind are known.
    #[must_use]
    pub fn count(&self, kind: Kind) -> usize {
        self.read(|index| index.count(kind))
    }

    /// Waits until kube-scheduler has called since this was last waited for.
    pub async fn called(&self) {
        self.called.notified().await;
    }

    /// Which of the candidates can hold the pod's claims.
    pub async fn filter(&self, pod: &Pod<'_>, candidates: &[impl AsRef<str>]) -> Answer {
        self.called.notify_one();
        if !pod.has_claims() {
            return Answer::All;
        }
        let answer = self.settled(|begun| self.decide(pod, candidates, begun)).await;
        self.metrics.answered(&answer);
        answer
    }

    /// On which of the candidates the pod's claims would have room if pods there were evicted. That frees no volume, so it is
    /// the room that there is now; pods that were answered just before may leave it yet. Nothing is remembered: the pod is
    /// filtered before it is placed.
    pub async fn preempt(&self, pod: &Pod<'_>, candidates: &[impl AsRef<str>]) -> Answer {
        self.called.notify_one();
        if !pod.has_claims() {
            return Answer::All;
        }
        self.settled(|begun| {
            let now = Instant::now();
            let (mut nobody, waited) = (Answered::default(), now.duration_since(begun));
            self.read(|index| decide::filter(index, &mut nobody, pod, candidates, &self.patience, now, waited))
        })
        .await
    }

    /// Asks for a decision until there is one.
    async fn settled(&self, decide: impl Fn(Instant) -> Verdict) -> Answer {
        let begun = Instant::now();
        loop {
            // Subscribed before looking, so that no change in between is missed.
            let mut changes = self.changed.subscribe();
            match decide(begun) {
                Verdict::Answer(answer) => return answer,
                Verdict::Wait(doubt, time) => {
                    self.metrics.waited(doubt);
                    // Whether it was a change or the time is seen by looking again.
                    let _ = tokio::time::timeout(time, changes.changed()).await;
                }
            }
        }
    }

    /// Scores the candidates for a pod; an empty list where all are alike to us, as kube-scheduler takes it.
    #[must_use]
    pub fn prioritize(&self, pod: &Pod<'_>, candidates: &[impl AsRef<str>]) -> Vec<i64> {
        if !pod.has_claims() {
            return Vec::new();
        }
        self.read(|index| decide::prioritize(index, pod, candidates))
    }

    fn decide(&self, pod: &Pod<'_>, candidates: &[impl AsRef<str>], begun: Instant) -> Verdict {
        // One decision at a time: two schedulers must not be promised the same space.
        let mut answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        self.read(|index| {
            let waited = now.duration_since(begun);
            decide::filter(index, &mut answered, pod, candidates, &self.patience, now, waited)
        })
    }
}
