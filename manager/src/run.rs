//! Starts everything, in the order that matters: volumes are active before anything else, then objects are watched.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use prometheus_client::registry::Registry;
use quarry_crds::names::{EVENT_COMPONENT, NODE_LABEL};
use quarry_crds::orphans::Policy;
use quarry_crds::tags::Owner;
use quarry_crds::{NodeLocalStorage, eligibility, labels};
use quarry_process::events::Events;
use quarry_process::{Alive, Ready, Shutdown, WatchBackoff};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::args::Args;
use crate::context::{Context, Disks as _, Objects};
use crate::disk_record::DiskRecords;
use crate::disks::Prober;
use crate::inventory::Inventory;
use crate::liveness::{self, Pulse};
use crate::lvm::command::{Limits, Observer};
use crate::lvm::nodes::Nodes;
use crate::lvm::{HostLvm, HostOptions, Lvm};
use crate::metrics::Metrics;
use crate::orphans::Orphans;
use crate::ready_tags::{self, ReadyTags};
use crate::refusals::is_unanswered;
use crate::retry::{Outcome, Retry};
use crate::storage_capacity::StorageCapacity;
use crate::uevent::BlockEvents;
use crate::volume_group::Groups;
use crate::wake::{self, Wake};
use crate::watches::{self, Touched, asked, reflect};
use crate::wipe::Eraser;
use crate::wipe::Wipes;
use crate::{capacity, cluster, delete, leftovers, machine, node_lock, orphans, provision, surroundings};

/// From when the end was asked for: by then nothing new is begun, the last volumes that were handed out are marked, and LVM
/// has ended what it was doing. All of it is over before kubelet kills what is left, after 150 s
/// (`terminationGracePeriodSeconds`).
const SERVED_BY: Duration = Duration::from_secs(100);
const MARKED_BY: Duration = Duration::from_secs(120);
const SETTLED_BY: Duration = Duration::from_secs(145);

/// Runs the manager until it is told to stop, and then until LVM has ended what it was doing.
///
/// # Errors
/// Something without which nothing can be done is missing; the text says what.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let (ready, alive) = (Ready::default(), Alive::default());
    quarry_process::build_info(&mut registry, "manager", env!("CARGO_PKG_VERSION"));
    let shutdown = Shutdown::on_signals().context("signals cannot be received")?;
    let parts = (ready.clone(), alive.clone());
    let admin = quarry_process::serve_admin(args.admin_listen, Arc::new(registry), parts, shutdown.clone());
    let admin = tokio::spawn(admin);

    if !surroundings::wait(args.proc.clone(), &args.node_name, &metrics, &ready, &shutdown).await {
        return Ok(());
    }
    let lock = ready.part("the end of the other manager on this node");
    let Some(_lock) = node_lock::hold(&args.lock, &args.holder, &shutdown).await? else {
        return Ok(());
    };
    lock.set();
    let counted = metrics.clone();
    let observer: Observer = Arc::new(move |stat| counted.command(stat.command, stat.result, stat.duration));
    let disks = Prober::new(args.proc.clone(), Some(observer.clone())).context("disks cannot be looked at")?;
    let wiper = Eraser::new(args.proc.clone(), Some(observer.clone())).context("volumes cannot be wiped")?;
    let counted = metrics.clone();
    let told = Arc::new(move |by| counted.device_nodes(by));
    let nodes = Nodes::find(&args.proc, Some(observer.clone()), told).await;
    tokio::spawn(nodes.clone().keep());
    let options = HostOptions {
        nodes: Some(nodes),
        program: args.lvm.clone(),
        limits: Limits {
            deadline: args.lvm_deadline.into(),
            ..Limits::default()
        },
        observer: Some(observer),
        devices: Some(Vec::new()),
        ..HostOptions::default()
    };
    let lvm: Arc<dyn Lvm> = Arc::new(HostLvm::new(options).context("LVM cannot be used")?);
    let lvm_part = ready.part("LVM");
    // Until the API server tells which disks are listed, only what is recorded is opened.
    let disk_records = DiskRecords::open(&args.state).await;
    let recorded = disk_records.get();
    lvm.allow_devices(disks.for_lvm(Vec::new(), recorded.disks(), BTreeSet::new()).await);
    let Some(inventory) = open(&lvm, &shutdown).await else {
        return Ok(());
    };
    let mut owner = Owner {
        node: args.node_name.clone(),
        cluster: recorded.cluster,
    };
    activate(&*lvm, &inventory, &owner).await;
    crash_point!("start-after-activation");
    lvm_part.set();

    let client = quarry_process::client::lasting(&alive)
        .await
        .context("the API server cannot be reached")?;
    let cluster_part = ready.part("the cluster's UID");
    let Some(cluster) = cluster::uid(&client, &shutdown).await else {
        return Ok(());
    };
    owner.cluster = cluster;
    cluster_part.set();
    let (objects, controllers, changed) = watch(&client, &args, &ready, &shutdown);
    let ready_tags = ReadyTags::default();
    // It ends after whatever hands volumes out.
    let handed_out = Shutdown::new();
    let marking = tokio::spawn(ready_tags::run(
        ready_tags.clone(),
        lvm.clone(),
        inventory.clone(),
        args.ready_within.into(),
        handed_out.clone(),
    ));
    tokio::spawn(
        inventory
            .clone()
            .keep(BlockEvents::listen(), changed.clone(), shutdown.clone()),
    );
    let context = Arc::new(Context {
        events: Events::new(client.clone(), EVENT_COMPONENT, args.node_name.clone()),
        client,
        node: args.node_name.clone(),
        machine: machine::id(&args.proc).await,
        owner,
        disk_records,
        disks: Arc::new(disks),
        wiper: Arc::new(wiper),
        lvm: lvm.clone(),
        inventory,
        metrics,
        ready_tags,
        groups: Groups::default(),
        changed,
        wake: Wake::default(),
        selected_after: args.selected_after.into(),
        storage_capacity: if args.storage_capacity {
            StorageCapacity::into_namespace(args.namespace.clone())
        } else {
            StorageCapacity::default()
        },
        wipes: Wipes::default(),
        orphans: Orphans::default(),
        objects,
    });
    let pulse = Pulse {
        namespace: args.namespace,
        every: args.lease_every.into(),
    };
    tracing::info!(node = args.node_name, "running");
    let sweeping = (args.orphans.into(), args.orphan_grace.into());
    let asked = shutdown.clone();
    tokio::select! {
        () = controllers.run(context, args.concurrency, args.startup_taint, pulse, sweeping, shutdown) => {}
        served = admin => served.context("the admin server ended")?.context("the admin port cannot be served")?,
    }
    handed_out.ask();
    let begun = asked.asked_at().unwrap_or_else(Instant::now);
    let _ = timeout_at(begun + MARKED_BY, marking).await;
    // What LVM is doing is done to its end; nothing new begins.
    if timeout_at(begun + SETTLED_BY, lvm.settle()).await.is_err() {
        tracing::warn!("LVM has not ended what it was doing; what it did is read at the next start");
    }
    Ok(())
}

/// Reads LVM for the first time, and again until it can be read: to end would only make the same commands hang again.
/// `None` where the end is asked for first.
pub(crate) async fn open(lvm: &Arc<dyn Lvm>, shutdown: &Shutdown) -> Option<Inventory> {
    let mut pause = Duration::from_secs(2);
    loop {
        match Inventory::open(lvm.clone()).await {
            Ok(inventory) => return Some(inventory),
            Err(error) => tracing::error!(%error, "LVM cannot be read; it is tried again"),
        }
        tokio::select! {
            () = shutdown.wait() => return None,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(Duration::from_secs(60)),
        }
    }
}

/// Activates every volume of every group of ours, as is needed after a reboot before a pod can mount it.
async fn activate(lvm: &dyn Lvm, inventory: &Inventory, owner: &Owner) {
    let state = inventory.get();
    for group in state.groups.iter().filter(|group| owner.acts_on(&group.tags)) {
        if group.logical_volumes.iter().all(|volume| volume.active == Some(true)) {
            continue;
        }
        crash_point!("start-before-activation");
        match lvm.activate_group(group.reference()).await {
            Ok(done) => inventory.set(done.state),
            Err(error) => tracing::error!(volume_group = group.name, %error, "its volumes were not all activated"),
        }
    }
}

struct Controllers {
    claims: Touched<PersistentVolumeClaim>,
    volumes: Touched<PersistentVolume>,
    objects: Objects,
    ready: Ready,
}

fn watch(client: &Client, args: &Args, ready: &Ready, shutdown: &Shutdown) -> (Objects, Controllers, Arc<Notify>) {
    let changed = Arc::new(Notify::new());
    let of_node = watcher::Config::default().fields(&format!("metadata.name={}", args.node_name));
    let here = watcher::Config::default().fields(&format!("spec.nodeName={}", args.node_name));
    let held = watcher::Config::default().labels(&format!("{NODE_LABEL}={}", labels::value(&args.node_name)));
    let (kept, claims) = watches::claims(Api::all(client.clone()), &args.node_name);
    let (held, volumes) = watches::touched(watcher(Api::all(client.clone()), held).backoff(WatchBackoff::default()));
    let objects = Objects {
        // kubelet writes the node's status every few seconds; little of it matters here.
        node: reflect(
            Api::<Node>::all(client.clone()),
            of_node,
            changed.clone(),
            shutdown,
            eligibility::fingerprint,
        ),
        classes: reflect(
            Api::<StorageClass>::all(client.clone()),
            watcher::Config::default(),
            changed.clone(),
            shutdown,
            version,
        ),
        storages: reflect(
            Api::<NodeLocalStorage>::all(client.clone()),
            here,
            changed.clone(),
            shutdown,
            version,
        ),
        claims: kept,
        volumes: held,
    };
    (
        objects.clone(),
        Controllers {
            claims,
            volumes,
            objects,
            ready: ready.clone(),
        },
        changed,
    )
}

fn version<K: Resource>(object: &K) -> String {
    format!(
        "{:?}{:?}",
        object.meta().resource_version,
        object.meta().deletion_timestamp
    )
}

impl Controllers {
    async fn run(
        self,
        context: Arc<Context>,
        concurrency: u16,
        startup_taint: bool,
        pulse: Pulse,
        sweeping: (Policy, Duration),
        shutdown: Shutdown,
    ) {
        let config = controller::Config::default().concurrency(concurrency);
        let claims = reconciling(
            "claim",
            stream::select(self.claims, context.wake.waiting.again()).take_until(asked(&shutdown)),
            self.objects.claims.clone(),
            (context.clone(), config.clone()),
            provision::reconcile,
            |claim, error, context, _| provision::failed(claim, error, context),
        );
        let volumes = reconciling(
            "volume",
            self.volumes.take_until(asked(&shutdown)),
            self.objects.volumes.clone(),
            (context.clone(), config),
            delete::reconcile,
            delete::failed,
        );
        let passes = async {
            if filled(&self.objects, &self.ready).await {
                let leftovers = leftovers::keep_away(context.clone(), shutdown.clone());
                let kept = capacity::keep_true(context.clone(), shutdown.clone(), startup_taint);
                let wake = wake::run(context.clone(), shutdown.clone());
                let alive = liveness::run(context.clone(), pulse, shutdown.clone());
                let (policy, grace) = sweeping;
                let orphans = orphans::sweep_on(context.clone(), policy, grace, shutdown.clone());
                tokio::join!(kept, leftovers, wake, alive, orphans);
            }
        };
        tokio::select! {
            ((), (), ()) = async { tokio::join!(drain(claims), drain(volumes), passes) } => {}
            () = async { shutdown.wait().await; tokio::time::sleep(SERVED_BY).await; } => {}
        }
    }
}

/// Reconciles what is touched, until no more is and what is under way is done; and again later where that failed.
fn reconciling<K, E, F>(
    kind: &'static str,
    touched: impl Stream<Item = watcher::Result<ObjectRef<K>>>,
    store: Store<K>,
    (context, config): (Arc<Context>, controller::Config),
    reconcile: fn(Arc<K>, Arc<Context>) -> F,
    failed: fn(Arc<K>, &E, Arc<Context>, Duration),
) -> impl Stream<Item = Result<(ObjectRef<K>, Action), impl std::fmt::Display>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
    E: std::error::Error + 'static,
    F: Future<Output = Result<Action, E>> + 'static,
{
    let retry = Retry::default();
    let noted = retry.clone();
    controller::applier(
        move |object: Arc<K>, context| {
            let retry = noted.clone();
            Box::pin(async move {
                let key = key(&*object);
                let result = reconcile(object, context).await;
                let outcome = match &result {
                    Ok(_) => Outcome::Done,
                    Err(error) if is_unanswered(error) => Outcome::Unanswered,
                    Err(_) => Outcome::Failed,
                };
                retry.note(&key, outcome);
                result
            })
        },
        move |object, error, context: Arc<Context>| {
            context.metrics.failed(kind);
            let delay = retry.delay(&key(&*object));
            failed(object, error, context, delay);
            Action::requeue(delay)
        },
        context,
        store,
        touched,
        config,
    )
}

/// An object, and no other of its name.
fn key<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{}/{:?}", ObjectRef::from_obj(object), object.meta().uid)
}

/// Waits until every watch has listed what there is.
async fn filled(objects: &Objects, ready: &Ready) -> bool {
    let parts = [
        "Node",
        "StorageClasses",
        "NodeLocalStorages",
        "PersistentVolumeClaims",
        "PersistentVolumes",
    ]
    .map(|kind| ready.part(kind));
    let waits = async {
        objects.node.wait_until_ready().await?;
        parts[0].set();
        objects.classes.wait_until_ready().await?;
        parts[1].set();
        objects.storages.wait_until_ready().await?;
        parts[2].set();
        objects.claims.wait_until_ready().await?;
        parts[3].set();
        objects.volumes.wait_until_ready().await?;
        parts[4].set();
        Ok::<_, reflector::store::WriterDropped>(())
    };
    waits.await.is_ok()
}

/// Polls a controller to its end; its own errors were dealt with by its error policy.
async fn drain<T, E: std::fmt::Display>(stream: impl Stream<Item = Result<T, E>>) {
    let mut stream = Box::pin(stream);
    while let Some(result) = stream.next().await {
        if let Err(error) = result {
            tracing::debug!(%error, "reconciliation");
        }
    }
}
