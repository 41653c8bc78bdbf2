//! A node with one class, one disk and one volume group, none of it real.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Resource;
use kube::runtime::controller::Action;
use kube::runtime::reflector::store::Writer;
use kube::runtime::{reflector, watcher};
use quarry_crds::names::{EVENT_COMPONENT, PROVISIONER, SELECTED_NODE, STORAGE_PROVISIONER};
use quarry_crds::tags::VolumeTags;
use quarry_crds::volume_group::{DiskStanding, ListedDisk};
use quarry_crds::{Bytes, NodeLocalStorage};
use quarry_process::events::Events;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::context::{Context, Disks, Listing, Objects, Probed, Wiper};
use crate::delete::{self, DeleteError};
use crate::fake_api::FakeApi;
use crate::inventory::Inventory;
use crate::lvm::fake::Fault;
use crate::lvm::{CreateVolume, FakeLvm, LogicalVolume, Lvm as _, State, VolumeGroup, VolumeRef};
use crate::metrics::Metrics;
use crate::provision::{self, ProvisionError};
use crate::ready_tags::ReadyTags;
use crate::volume_group::{self, Groups};

pub const CLAIMS: &str = "persistentvolumeclaims";
pub const VOLUMES: &str = "persistentvolumes";
pub const STORAGES: &str = "nodelocalstorages";
pub const EVENTS: &str = "events";
/// The logical volume and the PersistentVolume of the claim `data`.
pub const VOLUME: &str = "pvc-u-1";
const DISK: &str = "/dev/disk/by-id/a";
const DEVICE: &str = "/dev/sda";

/// What happened, in order: requests, LVM's mutations, wipes.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<(Vec<String>, usize)>>);

impl Log {
    fn lock(&self) -> MutexGuard<'_, (Vec<String>, usize)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// LVM keeps a journal of its own, which is taken over whenever anything else happens.
    fn take_over(&self, lvm: &FakeLvm) {
        let (lines, seen) = &mut *self.lock();
        let journal = lvm.journal();
        lines.extend(
            journal
                .iter()
                .skip(*seen)
                .map(|mutation| line(&format!("{mutation:?}"))),
        );
        *seen = journal.len();
    }

    fn add(&self, lvm: &FakeLvm, line: String) {
        self.take_over(lvm);
        self.lock().0.push(line);
    }
}

/// Such as `CreateVolume pvc-u-1`, of the debug form of a mutation.
fn line(mutation: &str) -> String {
    let operation = mutation.split(['(', ' ']).next().unwrap_or_default();
    // The first name is that of the group.
    let name = mutation
        .split("name: \"")
        .nth(2)
        .and_then(|rest| rest.split('"').next());
    format!("{operation} {}", name.unwrap_or_default())
}

struct Probe;

impl Disks for Probe {
    fn probe(&self, listings: Vec<Listing>, lvm: Arc<State>) -> BoxFuture<'_, Vec<Probed>> {
        let of = |listing: Listing| {
            let mut pvs = lvm.groups.iter().flat_map(|group| &group.physical_volumes);
            let member = pvs.find(|pv| pv.device.as_deref() == Some(DEVICE));
            Probed {
                disk: ListedDisk {
                    path: listing.path,
                    device: Some(DEVICE.to_owned()),
                    standing: member.map_or(DiskStanding::Blank, |pv| DiskStanding::Member {
                        physical_volume: pv.uuid.clone(),
                    }),
                },
                serial: None,
                model: None,
                rotational: None,
                size: None,
            }
        };
        futures::future::ready(listings.into_iter().map(of).collect()).boxed()
    }

    fn of_model(&self, _: String) -> BoxFuture<'_, Vec<String>> {
        futures::future::ready(Vec::new()).boxed()
    }
}

/// Wipes nothing, and says who holds a volume as it was told.
pub struct FakeWiper {
    log: Log,
    lvm: Arc<FakeLvm>,
    fail: Mutex<Option<String>>,
    held_by: Mutex<Vec<String>>,
}

impl FakeWiper {
    /// The next wipe fails so.
    pub fn fail_next(&self, why: &str) {
        *self.fail.lock().expect("not poisoned") = Some(why.to_owned());
    }

    pub fn set_holders(&self, holders: &[&str]) {
        *self.held_by.lock().expect("not poisoned") = holders.iter().map(|holder| (*holder).to_owned()).collect();
    }

    fn wipe(&self, what: &str, volume: &LogicalVolume) -> BoxFuture<'_, Result<(), String>> {
        self.log.add(&self.lvm, format!("{what} {}", volume.name));
        let fail = self.fail.lock().expect("not poisoned").take();
        futures::future::ready(fail.map_or(Ok(()), Err)).boxed()
    }
}

impl Wiper for FakeWiper {
    fn wipe_new(&self, _: VolumeGroup, volume: LogicalVolume, _: VolumeTags) -> BoxFuture<'_, Result<(), String>> {
        self.wipe("wipe new", &volume)
    }

    fn wipe_old(&self, _: VolumeGroup, volume: LogicalVolume, _: VolumeTags) -> BoxFuture<'_, Result<(), String>> {
        self.wipe("wipe old", &volume)
    }

    fn holders(&self, _: VolumeGroup, _: LogicalVolume) -> BoxFuture<'_, Vec<String>> {
        futures::future::ready(self.held_by.lock().expect("not poisoned").clone()).boxed()
    }
}

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
    pub context: Arc<Context>,
    log: Log,
    writers: Writers,
    ready: UnboundedReceiver<VolumeRef>,
}

pub fn class(mode: &str) -> Value {
    json!({
        "metadata": {"name": "fast", "uid": "class-1"}, "provisioner": PROVISIONER, "volumeBindingMode": mode,
        "reclaimPolicy": "Delete",
        "parameters": {"nodes": json!([{"names": ["w1"], "disks": [DISK]}]).to_string(), "fsType": "ext4"}
    })
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
        let lvm = Arc::new(FakeLvm::new(&[(DEVICE, Bytes::gib(1))]));
        let log = Log::default();
        let (to, journal) = (log.clone(), Arc::clone(&lvm));
        let api = FakeApi::new(move |line| to.add(&journal, line));
        let wiper = Arc::new(FakeWiper {
            log: log.clone(),
            lvm: Arc::clone(&lvm),
            fail: Mutex::default(),
            held_by: Mutex::default(),
        });
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
        let (ready_tags, ready) = ReadyTags::new();
        let context = Context {
            client: api.client(),
            node: "w1".to_owned(),
            lvm: lvm.clone(),
            inventory: Inventory::open(lvm.clone()).await.expect("read"),
            disks: Arc::new(Probe),
            wiper: wiper.clone(),
            events: Events::new(api.client(), EVENT_COMPONENT, "w1"),
            metrics: Metrics::new(&mut prometheus_client::registry::Registry::default()),
            ready_tags,
            changed: Arc::default(),
            groups: Groups::default(),
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
        let mut bench = Self {
            api,
            lvm,
            wiper,
            context,
            log,
            writers,
            ready,
        };
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

    /// Brings the watched objects up to date.
    pub fn sync(&mut self) {
        let all = |kind| self.api.objects(|objects| objects.all(kind));
        fill(&mut self.writers.storages, all(STORAGES));
        fill(&mut self.writers.claims, all(CLAIMS));
        fill(&mut self.writers.volumes, all(VOLUMES));
        // Kept, so that their stores stay as they were filled.
        let _ = (&self.writers.node, &self.writers.classes);
    }

    pub async fn pass(&self) {
        volume_group::pass(&self.context).await.expect("a pass");
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
        let create = CreateVolume {
            group,
            name: name.to_owned(),
            extents: quarry_crds::Extents(extents),
            tags,
            devices: Vec::new(),
        };
        let made = self.lvm.create_volume(create).await.expect("made").value;
        self.log.take_over(&self.lvm);
        self.log.lock().0.pop();
        made
    }

    pub async fn refresh(&self) {
        self.context.inventory.refresh().await.expect("read");
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

    /// Which volumes are to be marked as ready.
    pub fn marked(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.ready.try_recv().ok())
            .map(|volume| volume.name)
            .collect()
    }
}
