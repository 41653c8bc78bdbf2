//! The watches that keep the index.

use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::Api;
use kube::core::{DeserializeGuard, ObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource};
use quarry_crds::NodeLocalStorage;
use quarry_process::{Part, Ready, WatchBackoff};
use serde::de::DeserializeOwned;

use crate::handlers::Extender;
use crate::index::{Entry, claim_key};
use crate::objects::{AnyVolume, Claim, Class, Storage};

/// Watches everything that the index is made of, for ever. A watch that fails is tried again. What has to become ready
/// is named at once, before the first poll.
pub fn run(client: Client, extender: Arc<Extender>, ready: &Ready) -> impl Future<Output = ()> {
    let part = |name: &str| ready.part(format!("watch: {name}"));
    let classes = follow::<StorageClass, Class>(
        Api::all(client.clone()),
        Arc::clone(&extender),
        part("storageclasses"),
        |class| Some(Class::read(class)),
    );
    let storages = follow::<NodeLocalStorage, Storage>(
        Api::all(client.clone()),
        Arc::clone(&extender),
        part("nodelocalstorages"),
        Storage::read,
    );
    let volumes = follow::<PersistentVolume, AnyVolume>(
        Api::all(client.clone()),
        Arc::clone(&extender),
        part("persistentvolumes"),
        AnyVolume::read,
    );
    let claims =
        follow::<PersistentVolumeClaim, Claim>(Api::all(client), extender, part("persistentvolumeclaims"), |claim| {
            Some(Claim::read(claim))
        });
    async move {
        futures::join!(classes, storages, volumes, claims);
    }
}

/// Follows one kind of objects. An object that cannot be read counts as absent, and never stops the watch.
async fn follow<K, E>(api: Api<DeserializeGuard<K>>, extender: Arc<Extender>, part: Part, read: fn(&K) -> Option<E>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    E: Entry,
{
    let kind = E::KIND;
    let entry = |object: &DeserializeGuard<K>| -> (String, Option<E>) {
        match &object.0 {
            Ok(object) => (key(object.meta()), read(object)),
            Err(invalid) => {
                let key = key(&invalid.metadata);
                tracing::warn!(kind = kind.as_str(), object = key, %invalid.error, "an object cannot be read");
                (key, None)
            }
        }
    };
    let mut listed: Vec<(Box<str>, E)> = Vec::new();
    let mut events = watcher::watcher(api, watcher::Config::default())
        .backoff(WatchBackoff::default())
        .boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                if let (key, Some(entry)) = entry(&object) {
                    listed.push((key.into(), entry));
                }
            }
            Ok(Event::InitDone) => {
                let count = listed.len();
                extender.replace(std::mem::take(&mut listed));
                part.set();
                tracing::info!(kind = kind.as_str(), count, "listed");
            }
            Ok(Event::Apply(object)) => {
                let (key, entry) = entry(&object);
                extender.apply(&key, entry);
            }
            Ok(Event::Delete(object)) => {
                let (key, _) = entry(&object);
                extender.apply::<E>(&key, None);
            }
            Err(error) => {
                extender.metrics.watch_failed(kind);
                tracing::warn!(kind = kind.as_str(), %error, "a watch failed; trying again");
            }
        }
    }
}

/// The key of an object in the index.
pub(crate) fn key(metadata: &ObjectMeta) -> String {
    let name = metadata.name.as_deref().unwrap_or_default();
    match metadata.namespace.as_deref() {
        Some(namespace) => claim_key(namespace, name),
        None => name.to_owned(),
    }
}
