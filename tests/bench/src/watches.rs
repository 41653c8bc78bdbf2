//! What it costs kube-apiserver that every manager watches: with 10, 100 and 1,000 of them, for every claim that is made,
//! served and deleted. Beside it what it would cost if claims were labelled for their node, and only those watched.
//!
//! See `docs/design/0013-watch-cost.md`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Client;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use quarry_bed::{Cluster, Process};
use quarry_crds::claim::is_bound;
use quarry_crds::labels;
use quarry_crds::names::{NODE_LABEL, PROVISIONER, SELECTED_NODE, STORAGE_PROVISIONER};
use quarry_e2e::bed::Bed;
use quarry_e2e::objects::Claim;
use quarry_e2e::test::Test;
use serde_json::json;

use crate::figure::Figure;
use crate::fleet::{self, Claims, Watchers};

/// How many claims are made each time.
const CLAIMS: usize = 100;
/// How many managers.
const MANAGERS: [usize; 4] = [0, 10, 100, 1_000];
/// For how long it is looked what kube-apiserver needs while nothing happens.
const REST: Duration = Duration::from_secs(10);
/// Ticks of /proc/<pid>/stat in a second (proc_pid_stat(5); 100 on every Linux of today).
const TICKS: f64 = 100.0;

/// The figures.
///
/// # Errors
/// The cluster did not come up, or a claim was not served.
pub async fn figures(figures: &mut Vec<Figure>) -> Result<()> {
    let bed = Bed::up().await?;
    let test = Test::new(bed.clone(), "watches");
    fleet::clean(&test.client()).await?;
    test.begin().await?;
    let result = measure(&test, &bed.cluster, figures).await;
    fleet::clean(&test.client()).await?;
    test.end().await?;
    result
}

async fn measure(test: &Test, cluster: &Cluster, figures: &mut Vec<Figure>) -> Result<()> {
    let class = fleet::class(&test.client(), 10).await?;
    for claims in [Claims::All, Claims::Labelled] {
        for managers in MANAGERS {
            let _watchers = Watchers::start(cluster, managers, claims).await?;
            let cost = cost(test, cluster, &class, claims).await?;
            let what = match claims {
                Claims::All => format!("{managers} managers, all claims watched"),
                Claims::Labelled => format!("{managers} managers, claims labelled for their node"),
            };
            figures.push(Figure::new(
                format!("{what}: kube-apiserver's CPU per claim"),
                cost.cpu * 1e3,
                "ms",
            ));
            figures.push(Figure::new(
                format!("{what}: sent to watches per claim"),
                cost.bytes / 1024.0,
                "KiB",
            ));
            figures.push(Figure::new(
                format!("{what}: kube-apiserver's CPU at rest"),
                cost.rest * 1e3,
                "ms/s",
            ));
        }
    }
    Ok(())
}

/// What a claim costs kube-apiserver, from its creation to the end of its volume.
struct Cost {
    /// Seconds of a processor.
    cpu: f64,
    /// Bytes of watch events.
    bytes: f64,
    /// Seconds of a processor in a second in which nothing happens.
    rest: f64,
}

async fn cost(test: &Test, cluster: &Cluster, class: &StorageClass, claims: Claims) -> Result<Cost> {
    let client = test.client();
    // What the watchers' start has left to do is done.
    tokio::time::sleep(REST / 2).await;
    let begun = cpu(cluster)?;
    tokio::time::sleep(REST).await;
    let rest = (cpu(cluster)? - begun) / REST.as_secs_f64();
    let (at, cpu_before, bytes_before) = (Instant::now(), cpu(cluster)?, sent(&client).await?);
    stream::iter(0..CLAIMS)
        .map(|at| one(test, class, at, claims))
        .buffer_unordered(10)
        .try_collect::<Vec<()>>()
        .await?;
    remove(test).await?;
    // What is on its way to the watches arrives.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let took = at.elapsed().as_secs_f64();
    let count = CLAIMS as f64;
    Ok(Cost {
        cpu: (cpu(cluster)? - cpu_before - rest * took) / count,
        bytes: (sent(&client).await? - bytes_before) / count,
        rest,
    })
}

/// A claim and its volume, by the requests that kube-scheduler and a manager make, until kube-controller-manager has bound
/// them.
async fn one(test: &Test, class: &StorageClass, at: usize, claims: Claims) -> Result<()> {
    let (name, node) = (format!("claim{at}"), fleet::node(at % 10));
    let mut claim = test.claim(Claim::new(&name, fleet::CLASS, "1Gi")).await?;
    let all = test.claims();
    let mut metadata = json!({"annotations": {SELECTED_NODE: node, STORAGE_PROVISIONER: PROVISIONER}});
    all.patch(
        &name,
        &PatchParams::default(),
        &Patch::Merge(json!({"metadata": metadata})),
    )
    .await?;
    if claims == Claims::Labelled {
        // Nobody labels claims today: it would be one more write.
        metadata = json!({"labels": {NODE_LABEL: labels::value(&node)}});
        claim = all
            .patch(
                &name,
                &PatchParams::default(),
                &Patch::Merge(json!({"metadata": metadata})),
            )
            .await?;
    }
    let volume = fleet::volume(&claim, class, &node)?;
    test.volumes().create(&PostParams::default(), &volume).await?;
    test.wait("the claim is bound", Duration::from_secs(120), || async {
        Ok(is_bound(&all.get(&name).await?).then_some(()))
    })
    .await
}

async fn remove(test: &Test) -> Result<()> {
    let (all, delete) = (ListParams::default(), DeleteParams::default());
    test.claims().delete_collection(&delete, &all).await?;
    let simulated = ListParams::default().labels(fleet::LABEL);
    test.wait("the claims are gone", Duration::from_secs(120), || async {
        Ok(test.claims().list(&all).await?.items.is_empty().then_some(()))
    })
    .await?;
    test.volumes().delete_collection(&delete, &simulated).await?;
    test.wait("the volumes are gone", Duration::from_secs(120), || async {
        let left: Vec<PersistentVolume> = test.volumes().list(&simulated).await?.items;
        Ok(left.is_empty().then_some(()))
    })
    .await
}

/// Seconds of a processor that kube-apiserver has needed so far.
fn cpu(cluster: &Cluster) -> Result<f64> {
    let pid = cluster.pid(Process::ApiServer).context("kube-apiserver does not run")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program, in parentheses, may have blanks.
    let (_, rest) = stat.rsplit_once(')').context("no stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| -> Result<f64> { Ok(fields.get(at).context("no time")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// Bytes of watch events that kube-apiserver has sent so far, by its metrics.
async fn sent(client: &Client) -> Result<f64> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = client.request_text(request).await?;
    let lines = text
        .lines()
        .filter(|line| line.starts_with("apiserver_watch_events_sizes_sum"));
    lines
        .map(|line| {
            Ok(line
                .rsplit_once(' ')
                .context("a metric without a value")?
                .1
                .parse::<f64>()?)
        })
        .sum()
}
