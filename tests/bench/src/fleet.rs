//! Simulated nodes, whose managers watch as real ones do, and serve claims without LVM: for figures of large clusters on
//! the true kube-apiserver.

use std::collections::BTreeSet;
use std::io::Read;
use std::pin::pin;
use std::process::Stdio;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, ResourceExt};
use quarry_bed::Cluster;
use quarry_crds::claim::{is_bound, request, selected_node};
use quarry_crds::extents::{Bytes, ExtentSize, Extents};
use quarry_crds::names::{NODE_LABEL, PROVISIONER};
use quarry_crds::node_local_storage::GroupFigures;
use quarry_crds::persistent_volume::{Placed, build};
use quarry_crds::storage_class::FsType;
use quarry_crds::{NodeLocalStorage, labels};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// The class of all claims on simulated nodes.
pub const CLASS: &str = "bench-fleet";
/// The label of everything that is simulated.
pub const LABEL: &str = "quarry.dev/bench";

/// Name of a simulated node.
#[must_use]
pub fn node(at: usize) -> String {
    format!("sim-{at:04}")
}

/// Managers that watch, in a process of its own inside the cluster's network; it ends when this is dropped.
pub struct Watchers(#[expect(dead_code, reason = "kept: it is killed when dropped")] Child);

/// What the managers watch of claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claims {
    /// All of them, as they do.
    All,
    /// Those that are labelled for their node.
    Labelled,
}

impl Watchers {
    /// Starts that many, and waits until every one has listed what it watches.
    ///
    /// # Errors
    /// They ended.
    pub async fn start(cluster: &Cluster, count: usize, claims: Claims) -> Result<Self> {
        let network = format!("quarry-{}", cluster.name());
        let kubeconfig = cluster.kubeconfig().with_file_name("admin.kubeconfig");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &network]).arg(std::env::current_exe()?);
        command
            .args(["--watchers", &count.to_string(), "--kubeconfig"])
            .arg(kubeconfig);
        if claims == Claims::Labelled {
            command.arg("--labelled");
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().context("no output")?;
        let mut lines = BufReader::new(output).lines();
        lines
            .next_line()
            .await?
            .context("the watchers ended before they watched")?;
        Ok(Self(child))
    }
}

/// The process of the watchers.
///
/// # Errors
/// The API server cannot be reached.
pub async fn watch(count: usize, kubeconfig: &str, claims: Claims) -> Result<()> {
    let (listed, mut heard) = mpsc::unbounded_channel();
    for at in 0..count {
        // As each manager has connections of its own.
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &options).await?;
        let client = Client::try_from(config)?;
        let name = node(at);
        let label = format!("{NODE_LABEL}={}", labels::value(&name));
        let of_claims = match claims {
            Claims::All => Config::default(),
            Claims::Labelled => Config::default().labels(&label),
        };
        let here = format!("spec.nodeName={name}");
        follow::<Node>(
            &client,
            Config::default().fields(&format!("metadata.name={name}")),
            &listed,
        );
        follow::<StorageClass>(&client, Config::default(), &listed);
        follow::<NodeLocalStorage>(&client, Config::default().fields(&here), &listed);
        follow::<PersistentVolumeClaim>(&client, of_claims, &listed);
        follow::<PersistentVolume>(&client, Config::default().labels(&label), &listed);
        for _ in 0..5 {
            heard.recv().await.context("a watch ended")?;
        }
    }
    println!("watching");
    // Until whoever started this is gone.
    let gone = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
    gone.await?.map(drop).map_err(Into::into)
}

fn follow<K>(client: &Client, config: Config, listed: &mpsc::UnboundedSender<()>)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let (api, listed) = (Api::<K>::all(client.clone()), listed.clone());
    tokio::spawn(async move {
        let mut events = pin!(watcher(api, config));
        loop {
            match events.try_next().await {
                Ok(Some(Event::InitDone)) => {
                    let _ = listed.send(());
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => {
                    eprintln!("bench: a watch was interrupted: {error}");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    });
}

/// The class of the simulated nodes; nobody but [`serve`] makes volumes of it.
///
/// # Errors
/// The API server refused it.
pub async fn class(client: &Client, nodes: usize) -> Result<StorageClass> {
    let names: Vec<_> = (0..nodes).map(node).collect();
    let class = serde_json::from_value(json!({
        "metadata": {"name": CLASS, "labels": {LABEL: ""}}, "provisioner": PROVISIONER,
        "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete",
        "parameters": {"nodes": json!([{"names": names, "disks": ["/dev/disk/by-id/none"]}]).to_string()},
    }))?;
    let classes: Api<StorageClass> = Api::all(client.clone());
    Ok(classes.create(&PostParams::default(), &class).await?)
}

/// The volume of a claim on a simulated node.
///
/// # Errors
/// The claim asks for what cannot be.
pub fn volume(claim: &PersistentVolumeClaim, class: &StorageClass, node: &str) -> Result<PersistentVolume> {
    let wanted = request(claim)?;
    let placed = Placed {
        node,
        hostname: node,
        volume_group: CLASS,
        volume_group_uuid: &group_uuid(node),
        machine: None,
        size: ExtentSize::DEFAULT
            .size_of(ExtentSize::DEFAULT.holding(wanted.size))
            .unwrap_or(Bytes::ZERO),
    };
    let mut volume = build(claim, &wanted, class, FsType::Ext4, &placed);
    // No manager would take it off.
    volume.metadata.finalizers = None;
    volume
        .metadata
        .labels
        .get_or_insert_default()
        .insert(LABEL.to_owned(), String::new());
    Ok(volume)
}

fn group_uuid(node: &str) -> String {
    format!("{node}-bench")
}

/// Does for the simulated nodes what their managers would: each claim that is given to one gets its volume. Until it is
/// dropped.
pub async fn serve(client: Client, class: StorageClass) -> Result<()> {
    let claims: Api<PersistentVolumeClaim> = Api::all(client.clone());
    let volumes: Api<PersistentVolume> = Api::all(client);
    let mut events = pin!(watcher(claims, Config::default()));
    let mut served = BTreeSet::new();
    loop {
        let claim = match events.try_next().await {
            Ok(Some(Event::Apply(claim) | Event::InitApply(claim))) => claim,
            Ok(Some(_)) => continue,
            Ok(None) => return Ok(()),
            Err(error) => {
                eprintln!("bench: the watch of claims was interrupted: {error}");
                continue;
            }
        };
        let Some(node) = selected_node(&claim).filter(|node| node.starts_with("sim-") && !is_bound(&claim)) else {
            continue;
        };
        // As managers do, only once kube-controller-manager has asked for it.
        let asked = claim
            .annotations()
            .contains_key(quarry_crds::names::STORAGE_PROVISIONER);
        if !asked || !served.insert(claim.metadata.uid.clone()) {
            continue;
        }
        let volume = volume(&claim, &class, node)?;
        let volumes = volumes.clone();
        tokio::spawn(async move {
            if let Err(error) = volumes.create(&PostParams::default(), &volume).await {
                eprintln!("bench: a volume was not made: {error}");
            }
        });
    }
}

/// The NodeLocalStorage of a simulated node, with room for everything.
///
/// # Errors
/// The API server refused it.
pub async fn storage(client: &Client, node: &str) -> Result<()> {
    let storages: Api<NodeLocalStorage> = Api::all(client.clone());
    let name = format!("{CLASS}.{node}");
    let storage = serde_json::from_value(json!({
        "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage", "metadata": {"name": name, "labels": {LABEL: ""}},
        "spec": {"storageClassName": CLASS, "nodeName": node, "volumeGroup": CLASS, "layout": "linear", "disks": []},
    }))?;
    storages.create(&PostParams::default(), &storage).await?;
    let all = Extents(1 << 18);
    let figures = GroupFigures {
        uuid: group_uuid(node),
        extent_size: ExtentSize::DEFAULT,
        size: all,
        free: all,
        reserved: Extents::ZERO,
        largest: all,
    };
    let status = json!({"status": {
        "volumeGroup": figures.to_status(CLASS, Bytes::mib(1)), "volumes": 0,
        "conditions": [{"type": "Ready", "status": "True", "reason": "Ready", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    storages
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

/// Deletes everything that was simulated, of whichever run.
///
/// # Errors
/// The API server did not answer.
pub async fn clean(client: &Client) -> Result<()> {
    let (delete, labelled) = (DeleteParams::default(), ListParams::default().labels(LABEL));
    Api::<PersistentVolume>::all(client.clone())
        .delete_collection(&delete, &labelled)
        .await?;
    Api::<NodeLocalStorage>::all(client.clone())
        .delete_collection(&delete, &labelled)
        .await?;
    Api::<StorageClass>::all(client.clone())
        .delete_collection(&delete, &labelled)
        .await?;
    Api::<Node>::all(client.clone())
        .delete_collection(&delete, &labelled)
        .await?;
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    leases.delete_collection(&delete, &labelled).await?;
    Ok(())
}
