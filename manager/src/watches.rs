//! What is kept of the objects that this node watches.
//!
//! The API server can select claims neither by an annotation nor by their class, so that every manager hears of all claims of
//! the cluster (docs/design/0013). It keeps only those that it may have to do with: the others of a large cluster would take
//! hundreds of MiB on each node.

use std::collections::HashMap;
use std::future::ready;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use quarry_crds::claim::{selected_node, waits_for_node};
use quarry_process::{Shutdown, WatchBackoff};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

/// Objects to be looked at: each that is new or has changed.
pub type Touched<K> = BoxStream<'static, watcher::Result<ObjectRef<K>>>;

/// Watches the claims that concern this node: what is known of them, and which to look at.
#[must_use]
pub fn claims(
    api: Api<PersistentVolumeClaim>,
    node: &str,
) -> (Store<PersistentVolumeClaim>, Touched<PersistentVolumeClaim>) {
    let events = watcher(api, watcher::Config::default()).backoff(WatchBackoff::default());
    touched(concerning(events, node.to_owned()))
}

/// What these events tell of: what is known, and which to look at.
#[must_use]
pub fn touched<K>(events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static) -> (Store<K>, Touched<K>)
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let touched = events.modify(make_lean).reflect(writer).applied_objects();
    let touched = touched.map(|result| result.map(|object| ObjectRef::from_obj(&object)));
    (store, touched.boxed())
}

/// Watches objects into a store, and notifies where what matters of one changed.
pub fn reflect<K>(
    api: Api<K>,
    config: watcher::Config,
    changed: Arc<Notify>,
    shutdown: &Shutdown,
    matters: impl Fn(&K) -> String + Send + 'static,
) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher(api, config)
        .backoff(WatchBackoff::default())
        .modify(make_lean)
        .reflect(writer);
    let shutdown = Box::pin(asked(shutdown));
    tokio::spawn(async move {
        let mut seen = HashMap::new();
        let mut stream = Box::pin(stream.take_until(shutdown));
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                    let now = matters(&object);
                    if seen.insert(ObjectRef::from_obj(&object), now.clone()) != Some(now) {
                        changed.notify_one();
                    }
                }
                Ok(watcher::Event::Delete(object)) => {
                    seen.remove(&ObjectRef::from_obj(&object));
                    changed.notify_one();
                }
                Ok(watcher::Event::InitDone) => changed.notify_one(),
                Ok(watcher::Event::Init) => {}
                Err(error) => tracing::warn!(%error, "a watch was interrupted"),
            }
        }
    });
    store
}

/// Ends once the end was asked for.
pub fn asked(shutdown: &Shutdown) -> impl Future<Output = ()> + Send + Sync + 'static {
    let shutdown = shutdown.clone();
    async move { shutdown.wait().await }
}

/// Leaves out what does not concern this node; a claim that does no longer is gone for it.
fn concerning(
    events: impl Stream<Item = watcher::Result<Event<PersistentVolumeClaim>>> + Send + 'static,
    node: String,
) -> impl Stream<Item = watcher::Result<Event<PersistentVolumeClaim>>> + Send + 'static {
    events.filter_map(move |event| {
        ready(match event {
            Ok(Event::Apply(claim)) if !concerns(&claim, &node) => Some(Ok(Event::Delete(claim))),
            Ok(Event::InitApply(claim)) if !concerns(&claim, &node) => None,
            other => Some(other),
        })
    })
}

/// Whether a claim goes or went to this node, or may still come to it.
fn concerns(claim: &PersistentVolumeClaim, node: &str) -> bool {
    selected_node(claim).map_or_else(|| waits_for_node(claim), |selected| selected == node)
}

/// Forgets who manages which fields of an object: that is half of it, and read by nobody here.
fn make_lean<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

#[cfg(test)]
mod tests {
    use futures::{TryStreamExt, stream};
    use kube::ResourceExt;
    use quarry_crds::names::SELECTED_NODE;
    use serde_json::json;

    use super::*;

    fn claim(name: &str, selected: Option<&str>, volume: Option<&str>) -> PersistentVolumeClaim {
        let annotations = selected.map(|node| json!({SELECTED_NODE: node}));
        let fields = json!([{"manager": "m", "operation": "Update"}]);
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "n", "annotations": annotations, "managedFields": fields},
            "spec": {"volumeName": volume},
        }))
        .expect("a claim")
    }

    /// What is kept after these events, by name.
    async fn kept(events: Vec<Event<PersistentVolumeClaim>>) -> Vec<String> {
        let events = stream::iter(events.into_iter().map(Ok));
        let (store, touched) = touched(concerning(events, "w1".to_owned()));
        touched.try_collect::<Vec<_>>().await.expect("events");
        let mut kept: Vec<_> = store.state().iter().map(|claim| claim.name_any()).collect();
        kept.sort();
        assert!(
            store
                .state()
                .iter()
                .all(|claim| claim.metadata.managed_fields.is_none())
        );
        kept
    }

    #[tokio::test]
    async fn only_what_concerns_the_node_is_kept() {
        let all = || {
            [
                claim("here", Some("w1"), None),
                claim("bound-here", Some("w1"), Some("pvc-1")),
                claim("waits", None, None),
                claim("elsewhere", Some("w2"), None),
                claim("bound-elsewhere", Some("w2"), Some("pvc-2")),
                claim("foreign", None, Some("pv")),
            ]
        };
        let expected = ["bound-here", "here", "waits"];
        let mut listed = vec![Event::Init];
        listed.extend(all().map(Event::InitApply));
        listed.push(Event::InitDone);
        assert_eq!(kept(listed.clone()).await, expected);
        assert_eq!(kept(all().map(Event::Apply).into()).await, expected);
        // Listed anew: what went elsewhere meanwhile is gone.
        listed.extend([
            Event::Init,
            Event::InitApply(claim("here", Some("w2"), None)),
            Event::InitDone,
        ]);
        assert!(kept(listed).await.is_empty());
    }

    #[tokio::test]
    async fn a_claim_comes_and_goes_with_its_node() {
        let apply = |selected, volume| Event::Apply(claim("c", selected, volume));
        let (waits, here, there) = (apply(None, None), apply(Some("w1"), None), apply(Some("w2"), None));
        assert_eq!(kept(vec![waits.clone(), here.clone()]).await, ["c"]);
        assert!(kept(vec![waits.clone(), there.clone()]).await.is_empty());
        assert!(kept(vec![here.clone(), there.clone()]).await.is_empty());
        assert_eq!(kept(vec![there, waits, here]).await, ["c"]);
        assert!(
            kept(vec![
                apply(Some("w1"), None),
                Event::Delete(claim("c", Some("w1"), None))
            ])
            .await
            .is_empty()
        );
    }
}
