//! One of several equal processes leads, by a Lease (coordination.k8s.io/v1).
//!
//! As client-go's `leaderelection`: times of other machines are never compared. A Lease counts as given up when this
//! process has watched it unchanged for as long as the Lease says, by its own monotonic clock; a leader stops well
//! before, counted from when it *asked* for its last renewal. So two lead at once only where a clock runs half as fast
//! again as another, and what a leader does must be harmless even then.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Shutdown;

/// The times of an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How long the Lease must be unchanged before another may take it.
    pub lease: Duration,
    /// How long a leader leads after it asked for a renewal that succeeded; well below `lease`.
    pub lead: Duration,
    /// How often the Lease is looked at, and renewed.
    pub pace: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            lead: Duration::from_secs(10),
            pace: Duration::from_secs(3),
        }
    }
}

/// Whether this process leads. Clones tell the same.
#[derive(Debug, Clone)]
pub struct Leadership {
    until: watch::Receiver<Option<Instant>>,
}

impl Leadership {
    /// Of a process that is alone and leads without an election.
    #[must_use]
    pub fn alone() -> Self {
        let far = Duration::from_secs(60 * 60 * 24 * 365);
        Self {
            until: watch::channel(Some(Instant::now() + far)).1,
        }
    }

    /// Whether this process leads at this moment; to be asked before each thing that only a leader does.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until this process leads, or until nobody takes part any more.
    pub async fn gained(&mut self) {
        let leads = |until: &Option<Instant>| until.is_some_and(|until| Instant::now() < until);
        if self.until.wait_for(leads).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What is to be done about the Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Move {
    /// Somebody else leads.
    Wait,
    /// There is none.
    Create,
    /// It is given up, free, or ours: to be written under this version, with this count of changes of the leader.
    Write { version: String, transitions: i32 },
}

/// The election as this process sees it.
#[derive(Debug)]
struct Election {
    identity: String,
    times: Times,
    /// Version of the Lease that was seen last, and when it was first seen.
    seen: Option<(String, Instant)>,
}

impl Election {
    fn decide(&mut self, lease: Option<&Lease>, now: Instant) -> Move {
        let Some(lease) = lease else {
            self.seen = None;
            return Move::Create;
        };
        let version = lease.resource_version().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                self.seen = Some((version.clone(), now));
                now
            }
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
        let said = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        // A Lease that says less than we do is not believed: whoever wrote it may be of another version.
        let lasts = said.map_or(self.times.lease, Duration::from_secs).max(self.times.lease);
        let before = spec.lease_transitions.unwrap_or(0);
        match holder {
            Some(holder) if holder == self.identity => Move::Write {
                version,
                transitions: before,
            },
            Some(_) if now.duration_since(since) < lasts => Move::Wait,
            _ => Move::Write {
                version,
                transitions: before.saturating_add(1),
            },
        }
    }
}

/// Takes part in an election.
#[derive(Debug)]
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    election: Election,
    until: watch::Sender<Option<Instant>>,
}

impl Candidate {
    /// A candidate for the Lease of that name; `place` is for people, such as the name of the pod.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, place: &str, times: Times) -> (Self, Leadership) {
        // Two processes at one place, one after the other, are two candidates.
        let mark = RandomState::new().build_hasher().finish();
        let (until, leadership) = watch::channel(None);
        let candidate = Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            election: Election {
                identity: format!("{place}_{mark:016x}"),
                times,
                seen: None,
            },
            until,
        };
        (candidate, Leadership { until: leadership })
    }

    /// Takes part until the end is asked for, and then lets go, so that another need not wait.
    pub async fn run(mut self, shutdown: Shutdown) {
        let times = self.election.times;
        let mut failing = false;
        loop {
            // One that is not answered leaves time for another before the lead is over.
            match tokio::time::timeout(times.lead / 2, self.round()).await {
                Ok(Ok(())) => failing = false,
                Ok(Err(error)) if !failing => {
                    failing = true;
                    tracing::warn!(lease = self.name, %error, "the Lease cannot be had; tried again");
                }
                Ok(Err(_)) | Err(_) => {}
            }
            tokio::select! {
                () = shutdown.wait() => break,
                () = tokio::time::sleep(times.pace) => {}
            }
        }
        if self
            .until
            .send_replace(None)
            .is_some_and(|until| Instant::now() < until)
        {
            let _ = tokio::time::timeout(times.pace, self.let_go()).await;
        }
    }

    /// Looks at the Lease once, and takes or renews it where that may be.
    async fn round(&mut self) -> Result<(), kube::Error> {
        let lease = self.api.get_opt(&self.name).await?;
        // Counted from before the request: whoever sees the renewal sees it later than this.
        let asked = Instant::now();
        let written = match self.election.decide(lease.as_ref(), asked) {
            Move::Wait => return Ok(()),
            Move::Create => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(self.spec(0, true)),
                };
                self.api.create(&PostParams::default(), &lease).await
            }
            Move::Write { version, transitions } => {
                let before = lease.and_then(|lease| lease.spec?.lease_transitions).unwrap_or(0);
                let patch = json!({
                    "metadata": {"resourceVersion": version},
                    "spec": self.spec(transitions, transitions != before),
                });
                self.api
                    .patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))
                    .await
            }
        };
        match written {
            Ok(_) => {
                let before = self.until.send_replace(Some(asked + self.election.times.lead));
                if before.is_none_or(|until| until < asked) {
                    tracing::info!(lease = self.name, identity = self.election.identity, "leading");
                }
                Ok(())
            }
            // Another was quicker.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn spec(&self, transitions: i32, new: bool) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.election.identity.clone()),
            lease_duration_seconds: i32::try_from(self.election.times.lease.as_secs()).ok(),
            acquire_time: new.then(|| now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    async fn let_go(&self) -> Result<(), kube::Error> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            return Ok(());
        };
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        if holder != Some(self.election.identity.as_str()) {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"resourceVersion": lease.resource_version()},
            "spec": {"holderIdentity": null},
        });
        let params = PatchParams::default();
        self.api
            .patch(&self.name, &params, &Patch::Merge(patch))
            .await
            .map(drop)
    }
}

#[cfg(test)]
#[path = "leader_tests.rs"]
mod tests;
