//! What the tests of the clean-up work with: a cluster of two nodes on a fake API server.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use quarry_crds::NodeLocalStorage;
use quarry_crds::lost_nodes::DEFAULT_GRACE;
use quarry_crds::names::{NODE_GONE_ANNOTATION, PROVISIONER, SELECTED_NODE, STORAGE_PROVISIONER};
use quarry_fake_api::FakeApi;
use serde_json::{Value, json};

use super::*;
use crate::decide::Patience;
use crate::index::claim_key;
use crate::nodes::NodeMeta;
use crate::objects::{Claim, Class, Storage, Volume};

pub(super) const CLAIMS: &str = "persistentvolumeclaims";
pub(super) const VOLUMES: &str = "persistentvolumes";
pub(super) const STORAGES: &str = "nodelocalstorages";
pub(super) const NODES: &str = "nodes";
pub(super) const EVENTS: &str = "events";

/// A cluster of two nodes, of which w1 goes.
pub(super) struct Bench {
    pub(super) api: FakeApi,
    pub(super) extender: Arc<Extender>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) writer: Writer<NodeMeta>,
    pub(super) cleanup: Cleanup,
}

pub(super) fn read<K: serde::de::DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).expect("an object")
}

pub(super) fn name(object: &Value) -> Box<str> {
    object["metadata"]["name"].as_str().expect("a name").into()
}

impl Bench {
    pub(super) fn new() -> Self {
        let api = FakeApi::new(|_| {});
        let extender = Arc::new(Extender::new(Patience::default()));
        let (nodes, writer) = Nodes::new();
        let cleanup = cleaner(&api, &extender, &nodes);
        let mut bench = Self {
            api,
            extender,
            nodes,
            writer,
            cleanup,
        };
        for node in ["w1", "w2"] {
            bench.put(NODES, json!({"metadata": {"name": node}}));
        }
        bench
    }

    /// Claim `one` waits for w1, which is gone.
    pub(super) async fn with_claim_of_lost_node() -> Self {
        let mut bench = Self::new();
        bench.put(CLAIMS, claim("one", "w1", false));
        bench.lose_node().await;
        bench
    }

    /// kube-scheduler chooses w2 for claim `one` just before this is asked.
    pub(super) fn choose_before_next(&self, verb: &'static str, kind: &'static str) {
        let chosen = json!({"metadata": {"annotations": {SELECTED_NODE: "w2"}}});
        self.api
            .before_next(verb, kind, move |objects| objects.change(CLAIMS, "one", &chosen));
    }

    /// Brings the watches up to date.
    pub(super) fn sync(&mut self) {
        let all = |kind| self.api.objects(|objects| objects.all(kind));
        let class = json!({"metadata": {"name": "fast"}, "provisioner": PROVISIONER});
        self.extender.replace(vec![("fast".into(), Class::read(&read(class)))]);
        let storages = all(STORAGES).into_iter().filter_map(|storage| {
            let storage: NodeLocalStorage = read(storage);
            Some((storage.metadata.name.clone()?.into(), Storage::read(&storage)?))
        });
        self.extender.replace(storages.collect());
        let volumes = all(VOLUMES).into_iter().filter_map(|volume| {
            let volume: PersistentVolume = read(volume);
            Some((volume.metadata.name.clone()?.into(), Volume::read(&volume)?))
        });
        self.extender.replace(volumes.collect());
        let claims = all(CLAIMS).into_iter().map(|object| {
            let claim: PersistentVolumeClaim = read(object.clone());
            (claim_key("db", &name(&object)).into(), Claim::read(&claim))
        });
        self.extender.replace(claims.collect());
        let nodes = all(NODES).into_iter().map(|node| Event::InitApply(read(node)));
        for event in [Event::Init].into_iter().chain(nodes).chain([Event::InitDone]) {
            self.writer.apply_watcher_event(&event);
            self.nodes.note(&event);
        }
    }

    pub(super) fn put(&mut self, kind: &str, object: Value) {
        self.api.objects(|objects| objects.put(kind, object));
        self.sync();
    }

    pub(super) fn remove(&mut self, kind: &str, name: &str) {
        self.api.objects(|objects| objects.remove(kind, name));
        self.sync();
    }

    pub(super) fn get(&self, kind: &str, name: &str) -> Option<Value> {
        self.api.objects(|objects| objects.get(kind, name))
    }

    pub(super) fn selected(&self, name: &str) -> Option<String> {
        self.annotation(name, SELECTED_NODE)
    }

    pub(super) fn node_gone(&self, name: &str) -> Option<String> {
        self.annotation(name, NODE_GONE_ANNOTATION)
    }

    pub(super) fn annotation(&self, claim: &str, key: &str) -> Option<String> {
        let claim = self.get(CLAIMS, claim).expect("the claim is there");
        let value = claim["metadata"]["annotations"][key].as_str();
        value.map(str::to_owned)
    }

    /// w1 goes, and the clean-up sees it.
    pub(super) async fn lose_node(&mut self) {
        self.remove(NODES, "w1");
        self.cleanup.round().await;
    }

    /// The watches are brought up to date, and it looks.
    pub(super) async fn after(&mut self, time: Duration) {
        tokio::time::advance(time).await;
        self.sync();
        self.cleanup.round().await;
    }

    /// Everything that is asked of the API server but looks and events.
    pub(super) fn writes(&self) -> Vec<String> {
        let requests = self.api.requests();
        let writes = requests
            .iter()
            .filter(|request| request.verb != "get" && request.kind != EVENTS);
        writes.map(quarry_fake_api::Request::text).collect()
    }

    /// Kind and name of what was spoken of, and the reason.
    pub(super) fn said(&self) -> Vec<String> {
        let text = |event: &Value| {
            let of = &event["regarding"];
            let part = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            format!(
                "{} {}: {}",
                part(&of["kind"]),
                part(&of["name"]),
                part(&event["reason"])
            )
        };
        let mut said: Vec<_> = self
            .api
            .objects(|objects| objects.all(EVENTS).iter().map(text).collect());
        said.sort();
        said
    }
}

pub(super) fn cleaner(api: &FakeApi, extender: &Arc<Extender>, nodes: &Arc<Nodes>) -> Cleanup {
    let (extender, nodes) = (Arc::clone(extender), Arc::clone(nodes));
    Cleanup::new(api.client(), extender, nodes, Leadership::alone(), DEFAULT_GRACE)
}

pub(super) fn claim(name: &str, node: &str, bound: bool) -> Value {
    let mut claim = json!({
        "metadata": {"name": name, "namespace": "db", "uid": name,
                     "annotations": {STORAGE_PROVISIONER: PROVISIONER, SELECTED_NODE: node}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                 "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": if bound { "Bound" } else { "Pending" }},
    });
    if bound {
        claim["spec"]["volumeName"] = json!(format!("pvc-{name}"));
    }
    claim
}

pub(super) fn volume(of: &str, node: &str, phase: &str, policy: &str) -> Value {
    json!({
        "metadata": {"name": format!("pvc-{of}"), "finalizers": ["quarry.dev/logical-volume"], "annotations": {
            "pv.kubernetes.io/provisioned-by": PROVISIONER, "quarry.dev/node": node,
            "quarry.dev/volume-group": "fast", "quarry.dev/volume-group-uuid": "vg-1"}},
        "spec": {"capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": policy,
                 "claimRef": {"namespace": "db", "name": of, "uid": of}},
        "status": {"phase": phase},
    })
}

pub(super) fn storage(node: &str) -> Value {
    json!({
        "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage", "metadata": {"name": format!("fast.{node}")},
        "spec": {"storageClassName": "fast", "nodeName": node, "volumeGroup": "fast", "layout": "linear"},
    })
}
