//! Listens to the managers' Leases, and keeps new volumes away from nodes whose manager is silent:
//! [`quarry_crds::liveness`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use quarry_crds::liveness::{Heard, is_manager_lease};
use quarry_process::WatchBackoff;

use crate::handlers::Extender;

/// How often it is looked whether somebody has become silent.
const PACE: Duration = Duration::from_secs(2);

/// Listens for ever. A manager that is not heard of for `after` is silent.
pub async fn run(client: Client, namespace: String, extender: Arc<Extender>, after: Duration) {
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let events = watcher(leases, watcher::Config::default()).backoff(WatchBackoff::default());
    let mut events = std::pin::pin!(events);
    let mut heard = Heard::default();
    let mut silent = BTreeSet::new();
    let mut look = tokio::time::interval(PACE);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => note(&mut heard, &event, Instant::now()),
                Some(Err(error)) => tracing::warn!(kind = "leases", %error, "a watch failed; trying again"),
                None => return,
            },
            _ = look.tick() => {}
        }
        let now = heard.silent(after, Instant::now());
        if now != silent {
            for node in now.difference(&silent) {
                tracing::warn!(node, "its manager is silent: no new volumes are placed there");
            }
            for node in silent.difference(&now) {
                tracing::info!(node, "its manager is heard of again");
            }
            extender.silent(&now);
            silent = now;
        }
    }
}

fn note(heard: &mut Heard, event: &Event<Lease>, now: Instant) {
    match event {
        Event::Init => heard.listing(),
        Event::InitApply(lease) | Event::Apply(lease) => {
            let name = lease.name_any();
            let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
            let holder = holder.filter(|_| is_manager_lease(&name));
            let version = lease.metadata.resource_version.as_deref().unwrap_or_default();
            heard.lease(&name, holder, version, now);
        }
        Event::Delete(lease) => heard.gone(&lease.name_any(), now),
        Event::InitDone => {}
    }
}
