//! A node with one class, one disk and one volume group, none of it real.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Resource;
use kube::runtime::controller::Action;
use kube::runtime::reflector::store::Writer;
use kube::runtime::{reflector, watcher};
use prometheus_client::registry::Registry;
use quarry_crds::names::{EVENT_COMPONENT, PROVISIONER, SELECTED_NODE, STORAGE_PROVISIONER};
use quarry_crds::tags::Owner;
use quarry_crds::{Bytes, NodeLocalStorage};
use quarry_process::events::Events;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::fakes::{FakeWiper, Log, Probe};
use crate::context::{Context, Objects};
use crate::delete::{self, DeleteError};
use crate::disk_record::DiskRecords;
use crate::fake_api::FakeApi;
use crate::inventory::Inventory;
use crate::lvm::fake::Fault;
use crate::lvm::{CreateVolume, FakeLvm, GroupRef, LogicalVolume, Lvm as _};
use crate::metrics::Metrics;
use crate::orphans::Orphans;
use crate::provision::{self, ProvisionError};
use crate::ready_tags::ReadyTags;
use crate::storage_capacity::StorageCapacity;
use crate::volume_group::{self, Groups, Pass};
use crate::wake::Wake;
use crate::wipe::Wipes;

pub const CLAIMS: &str = "persistentvolumeclaims";
pub const VOLUMES: &str = "persistentvolumes";
pub const STORAGES: &str = "nodelocalstorages";
pub const EVENTS: &str = "events";
/// The logical volume and the PersistentVolume of the claim `data`.
pub const VOLUME: &str = "pvc-u-1";
pub const DISK: &str = "/dev/disk/by-id/a";
pub const DEVICE: &str = "/dev/sda";
/// A second disk, which no class names at first.
pub const SECOND_DISK: &str = "/dev/disk/by-id/b";
pub const SECOND_DEVICE: &str = "/dev/sdb";

struct Writers {
    node: Writer<Node>,
    classes: Writer<StorageClass>,
    storages: Writer<NodeLocalStorage>,
    claims: Writer<PersistentVolumeClaim>,
    volumes: Writer<PersistentVolume>,
}

fn fill<K>(writer: &mut Writer<K>, objects: Vec<Value>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + 'static,
{
    writer.apply_watcher_event(&watcher::Event::Init);
    for object in objects {
        let object = serde_json::from_value(object).expect("an object");
        writer.apply_watcher_event(&watcher::Event::InitApply(object));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
}

pub struct Bench {
    pub api: FakeApi,
    pub lvm: Arc<FakeLvm>,
    pub wiper: Arc<FakeWiper>,
    pub disks: Arc<Probe>,
    registry: Registry,
    pub context: Arc<Context>,
    log: Log,
    writers: Writers,
}

pub fn class(mode: &str) -> Value {
    json!({
        "metadata": {"name": "fast", "uid": "class-1"}, "provisioner": PROVISIONER, "volumeBindingMode": mode,
        "reclaimPolicy": "Delete",
        "parameters": {"nodes": json!([{"names": ["w1"], "disks": [DISK]}]).to_string(), "fsType": "ext4"}
    })
}

/// Whose volume groups the manager of the bench acts upon.
pub fn owner() -> Owner {
    Owner {
        node: "w1".to_owned(),
        cluster: "cluster-1".to_owned(),
    }
}

/// A claim of the UID `u-1`.
pub fn claim(selected: Option<&str>, size: &str) -> Value {
    let mut claim = json!({
        "metadata": {"name": "data", "namespace": "db", "uid": "u-1",
                     "annotations": {STORAGE_PROVISIONER: PROVISIONER}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                 "resources": {"requests": {"storage": size}}}
    });
    if let Some(node) = selected {
        claim["metadata"]["annotations"][SELECTED_NODE] = json!(node);
    }
    claim
}

impl Bench {
    /// A node whose volume group `fast` was made and published: nearly 1 GiB, and nothing is in it.
    pub async fn new() -> Self {
        Self::of(class("WaitForFirstConsumer")).await
    }

    pub async fn of(class: Value) -> Self {
        let mut bench = Self::bare(class).await;
        // The first makes the NodeLocalStorage, the second the group, the third finds all as it should be.
        for _ in 0..3 {
            bench.sync();
            bench.pass().await;
        }
        bench.sync();
        bench.forget();
        bench.api.objects(|objects| objects.clear(EVENTS));
        bench
    }

    /// A node with a class on which nothing was made yet.
    pub async fn bare(class: Value) -> Self {
        let lvm = Arc::new(FakeLvm::new(&[(DEVICE, Bytes::gib(1)), (SECOND_DEVICE, Bytes::gib(1))]));
        for (link, device) in [(DISK, DEVICE), (SECOND_DISK, SECOND_DEVICE)] {
            lvm.link(link, device);
        }
        let log = Log::default();
        let (to, journal) = (log.clone(), Arc::clone(&lvm));
        let api = FakeApi::new(move |line| to.add(&journal, line));
        let wiper = Arc::new(FakeWiper::new(log.clone(), Arc::clone(&lvm)));
        let (node, mut node_writer) = reflector::store();
        let (classes, mut class_writer) = reflector::store();
        let ((storages, storage_writer), (claims, claim_writer), (volumes, volume_writer)) =
            (reflector::store(), reflector::store(), reflector::store());
        let labels = json!({"kubernetes.io/hostname": "w1.example"});
        fill(
            &mut node_writer,
            vec![json!({"metadata": {"name": "w1", "labels": labels}})],
        );
        fill(&mut class_writer, vec![class]);
        let disks = Arc::new(Probe::default());
        let mut registry = Registry::default();
        let context = Context {
            client: api.client(),
            node: "w1".to_owned(),
            machine: Some("m-1".to_owned()),
            owner: owner(),
            disk_records: DiskRecords::default(),
            lvm: lvm.clone(),
            inventory: Inventory::open(lvm.clone()).await.expect("read"),
            disks: disks.clone(),
            wiper: wiper.clone(),
            events: Events::new(api.client(), EVENT_COMPONENT, "w1"),
            metrics: Metrics::new(&mut registry),
            ready_tags: ReadyTags::default(),
            changed: Arc::default(),
            wake: Wake::default(),
            selected_after: Duration::from_secs(60),
            storage_capacity: StorageCapacity::default(),
            groups: Groups::default(),
            wipes: Wipes::default(),
            orphans: Orphans::default(),
            objects: Objects {
                node,
                classes,
                storages,
                claims,
                volumes,
            },
        };
        let writers = Writers {
            node: node_writer,
            classes: class_writer,
            storages: storage_writer,
            claims: claim_writer,
            volumes: volume_writer,
        };
        let context = Arc::new(context);
        Self {
            api,
            lvm,
            wiper,
            disks,
            registry,
            context,
            log,
            writers,
        }
    }

    /// Brings the watched objects up to date.
    pub fn sync(&mut self) {
        let all = |kind| self.api.objects(|objects| objects.all(kind));
        fill(&mut self.writers.storages, all(STORAGES));
        fill(&mut self.writers.claims, all(CLAIMS));
        fill(&mut self.writers.volumes, all(VOLUMES));
    }

    /// Brings the watched objects up to date; the watch of one kind shows none.
    pub fn sync_without(&mut self, kind: &str) {
        self.sync();
        assert_eq!(kind, VOLUMES, "of the others there is no such watch");
        fill(&mut self.writers.volumes, Vec::new());
    }

    /// From now on there are these classes.
    pub fn set_classes(&mut self, classes: Vec<Value>) {
        fill(&mut self.writers.classes, classes);
    }

    /// From now on the disks of volume groups are recorded there.
    pub fn keep_records(&mut self, records: DiskRecords) {
        let context = Arc::get_mut(&mut self.context).expect("nobody else has it");
        context.disk_records = records;
    }

    /// The manager has just started again, and no pass was made yet.
    pub fn start_anew(&mut self) {
        let context = Arc::get_mut(&mut self.context).expect("nobody else has it");
        context.groups = Groups::default();
    }

    /// From now on there is this Node object, or none.
    pub fn set_node(&mut self, node: Option<Value>) {
        fill(&mut self.writers.node, node.into_iter().collect());
    }

    /// From now on the node has these labels.
    pub fn set_labels(&mut self, labels: Value) {
        let node = json!({"metadata": {"name": "w1", "labels": labels}});
        fill(&mut self.writers.node, vec![node]);
    }

    pub async fn pass(&self) -> Pass {
        volume_group::pass(&self.context).await.expect("a pass")
    }

    /// What happened since the last call of [`Bench::forget`].
    pub fn log(&self) -> Vec<String> {
        self.log.take_over(&self.lvm);
        self.log.lock().0.clone()
    }

    pub fn forget(&self) {
        self.log.take_over(&self.lvm);
        self.log.lock().0.clear();
        self.api.forget();
    }

    pub fn put(&mut self, kind: &str, object: Value) {
        self.api.objects(|objects| objects.put(kind, object));
        self.sync();
    }

    /// As the API server has it.
    pub fn object(&self, kind: &str, name: &str) -> Option<Value> {
        self.api.objects(|objects| objects.get(kind, name))
    }

    pub fn selected(&self) -> Option<String> {
        let claim = self.object(CLAIMS, "data").expect("the claim is there");
        claim["metadata"]["annotations"][SELECTED_NODE]
            .as_str()
            .map(str::to_owned)
    }

    /// Reason and note of every event.
    pub fn events(&self) -> Vec<(String, String)> {
        let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
        let events = self.api.objects(|objects| objects.all(EVENTS));
        events
            .iter()
            .map(|event| (text(event, "reason"), text(event, "note")))
            .collect()
    }

    /// The lines of these metrics, sorted.
    pub fn metrics(&self, names: &[&str]) -> Vec<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("encoded");
        let of = |line: &&str| names.iter().any(|name| line.starts_with(&format!("{name}{{")));
        let mut lines: Vec<String> = text.lines().filter(of).map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Every logical volume, as LVM has it.
    pub fn volumes(&self) -> Vec<LogicalVolume> {
        self.lvm.by_hand(|state| {
            let groups = state.groups.iter();
            groups.flat_map(|group| group.logical_volumes.clone()).collect()
        })
    }

    /// Makes a volume as if somebody else or a former process did; nobody has read of it yet.
    pub async fn make(&self, name: &str, extents: u64, tags: Vec<String>) -> LogicalVolume {
        let group = self.lvm.by_hand(|state| state.groups[0].reference());
        self.make_in(group, name, extents, tags).await
    }

    /// The same in a group of choice.
    pub async fn make_in(&self, group: GroupRef, name: &str, extents: u64, tags: Vec<String>) -> LogicalVolume {
        let create = CreateVolume {
            group,
            name: name.to_owned(),
            extents: quarry_crds::Extents(extents),
            tags,
            devices: Vec::new(),
            physical_volume: None,
        };
        let made = self.lvm.create_volume(create).await.expect("made").value;
        self.log.take_over(&self.lvm);
        self.log.lock().0.pop();
        made
    }

    pub async fn refresh(&self) {
        self.context.inventory.refresh().await.expect("read");
    }

    /// As if the process had ended and begun anew: what it was doing is forgotten.
    pub fn restart(&mut self) {
        let context = Arc::get_mut(&mut self.context).expect("nobody else holds it");
        context.wipes = Wipes::default();
        context.orphans = Orphans::default();
    }

    pub fn fault(&self, fault: Fault) {
        self.lvm.fail_next(fault);
    }

    /// Reconciles the claim `data` as it was last seen.
    pub async fn claim(&self) -> Result<Action, ProvisionError> {
        let seen = self.context.objects.claim_with_uid("u-1").expect("seen");
        provision::reconcile(seen, Arc::clone(&self.context)).await
    }

    /// Reconciles the PersistentVolume as it was last seen.
    pub async fn volume(&self) -> Result<Action, DeleteError> {
        let seen = self.context.objects.volume(VOLUME).expect("seen");
        delete::reconcile(seen, Arc::clone(&self.context)).await
    }

    /// Marks what is to be marked as ready, each once.
    pub async fn mark(&mut self) {
        for mark in self.context.ready_tags.take() {
            let _ = crate::ready_tags::mark(&*self.lvm, &self.context.inventory, mark.clone()).await;
            self.context.ready_tags.done(&mark);
        }
    }

    /// Which volumes are to be marked as ready.
    pub fn marked(&mut self) -> Vec<String> {
        let marks = self.context.ready_tags.take();
        marks.iter().for_each(|mark| self.context.ready_tags.done(mark));
        marks.into_iter().map(|mark| mark.volume.name).collect()
    }
}
