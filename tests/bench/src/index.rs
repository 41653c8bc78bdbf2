//! What the extender's index takes: memory, time for one update, time to be filled after a start.
//!
//! The extender's own watches fill it, in a process of its own, over HTTP from a server that lists the large cluster in
//! pages as kube-apiserver does. (What a real one needs to read 215,000 objects is not in the time.)

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use futures::stream;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use quarry_extender::decide::Patience;
use quarry_extender::handlers::Extender;
use quarry_extender::index::{Index, claim_key};
use quarry_extender::objects::{Claim, Storage, Volume};
use quarry_process::Ready;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::figure::{Figure, Goal};
use crate::samples::Samples;
use crate::world::{self, World};

/// How many updates of each kind are timed.
const UPDATES: usize = 5_000;
/// How many extenders are filled, one after another.
const FILLS: usize = 3;

/// What the process with the index found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    /// Seconds from the start of the watches until everything was listed.
    fill: f64,
    /// Growth of resident memory, in MiB.
    memory: f64,
    /// Resident memory of the whole process, in MiB.
    whole: f64,
    /// µs for an update, by what is updated: half of them, and 99 of 100.
    updates: Vec<(String, f64, f64)>,
}

/// The figures.
///
/// # Errors
/// The process with the index failed.
pub async fn figures(figures: &mut Vec<Figure>) -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let lists: Arc<Lists> = Arc::new(Lists::of(&World::FULL));
    let server =
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(list).with_state(lists)).await });
    let mut found = Vec::new();
    for _ in 0..FILLS {
        let url = format!("http://{address}");
        found.push(crate::run::child::<Found>(&["--index-of", &url], std::io::stderr()).await?);
    }
    server.abort();
    let median = |of: fn(&Found) -> f64| {
        let mut values: Vec<f64> = found.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    figures.extend([
        Figure::new(
            "index of 5,000 nodes, 100,000 volumes, 110,000 claims: resident memory",
            median(|f| f.memory),
            "MiB",
        )
        .goal(Goal::AtMost(150.0)),
        Figure::new("the whole process of it: resident memory", median(|f| f.whole), "MiB"),
        // "In seconds": not in minutes.
        Figure::new("filled after a start, by its own watches", median(|f| f.fill), "s").goal(Goal::AtMost(60.0)),
    ]);
    for (what, half, most) in &found[found.len() / 2].updates {
        // "In microseconds": not in milliseconds.
        figures.push(Figure::new(format!("update of {what}: p50"), *half, "µs").goal(Goal::AtMost(1_000.0)));
        figures.push(Figure::new(format!("update of {what}: p99"), *most, "µs").goal(Goal::AtMost(1_000.0)));
    }
    Ok(())
}

/// The process with the index: fills it from that server, and prints what it found.
///
/// # Errors
/// The server cannot be reached.
pub async fn measure(url: &str) -> Result<()> {
    let client = kube::Client::try_from(kube::Config::new(url.parse()?))?;
    let before = resident()?;
    let extender = Arc::new(Extender::new(Patience::default()));
    let ready = Ready::new();
    let begun = Instant::now();
    let watches = quarry_extender::watch::run(client, Arc::clone(&extender), &ready);
    let filled = async {
        while !extender.read(Index::is_filled) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::pin!(watches);
    tokio::select! {
        () = &mut watches => bail!("the watches ended"),
        () = filled => {}
    }
    let fill = begun.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let whole = resident()?;
    let found = Found {
        fill,
        memory: whole - before,
        whole,
        updates: updates(&extender)?,
    };
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}

/// Resident memory of this process, in MiB.
fn resident() -> Result<f64> {
    resident_of(&std::fs::read_to_string("/proc/self/status")?)
}

/// Resident memory of a process, in MiB, by its file `status` in /proc (proc_pid_status(5)).
///
/// # Errors
/// The file does not say.
pub fn resident_of(status: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().next())
        .context("no VmRSS")?
        .parse()?;
    Ok(kib / 1024.0)
}

/// Times of updates, each from an object as its watch gives it: read, and taken in.
fn updates(extender: &Extender) -> Result<Vec<(String, f64, f64)>> {
    let world = World::FULL;
    let mut all = Vec::new();
    let mut put = |what: &str, mut samples: Samples| {
        all.push((what.to_owned(), samples.percentile(50), samples.percentile(99)));
    };
    let mut samples = Samples::default();
    for at in 0..UPDATES {
        // A claim that waited was given to a node.
        let mut claim: PersistentVolumeClaim = serde_json::from_value(world::claim(&world, world.volumes + at))?;
        let key = claim_key(world::NAMESPACE, &format!("new-{at}"));
        claim.metadata.uid = Some(world::uid(1 << 22 | at));
        let begun = Instant::now();
        extender.apply(&key, Some(Claim::read(&claim)));
        samples.add(begun.elapsed());
    }
    put("a claim that was given to a node", samples);
    let mut samples = Samples::default();
    for at in 0..UPDATES {
        let volume = serde_json::from_value(world::volume(&world, world.volumes + at))?;
        let key = format!("pvc-{}", world::uid(world.volumes + at));
        let begun = Instant::now();
        extender.apply(&key, Volume::read(&volume));
        samples.add(begun.elapsed());
    }
    put("a new volume", samples);
    let mut samples = Samples::default();
    for at in 0..world.nodes {
        let storage = serde_json::from_value(world::storage(at, true))?;
        let key = format!("{}.{}", world::CLASS, world::node(at));
        let begun = Instant::now();
        extender.apply(&key, Storage::read(&storage));
        samples.add(begun.elapsed());
    }
    put("a NodeLocalStorage", samples);
    Ok(all)
}

/// Lists of everything, each object as its text.
struct Lists(HashMap<&'static str, (&'static str, Vec<String>)>);

impl Lists {
    fn of(world: &World) -> Self {
        let text = |object: Value| object.to_string();
        Self(HashMap::from([
            (
                "/apis/storage.k8s.io/v1/storageclasses",
                ("StorageClassList", vec![text(world::class())]),
            ),
            (
                "/apis/quarry.dev/v1alpha1/nodelocalstorages",
                (
                    "NodeLocalStorageList",
                    (0..world.nodes).map(|at| text(world::storage(at, false))).collect(),
                ),
            ),
            (
                "/api/v1/persistentvolumes",
                (
                    "PersistentVolumeList",
                    (0..world.volumes).map(|at| text(world::volume(world, at))).collect(),
                ),
            ),
            (
                "/api/v1/persistentvolumeclaims",
                (
                    "PersistentVolumeClaimList",
                    (0..world.claims()).map(|at| text(world::claim(world, at))).collect(),
                ),
            ),
        ]))
    }
}

/// Answers a list in pages; a watch in which nothing happens.
async fn list(State(lists): State<Arc<Lists>>, uri: Uri) -> Response {
    let pairs = uri.query().unwrap_or_default().split('&');
    let query: HashMap<&str, &str> = pairs.filter_map(|pair| pair.split_once('=')).collect();
    if query.get("watch").is_some_and(|watch| matches!(*watch, "true" | "1")) {
        return Body::from_stream(stream::pending::<Result<Vec<u8>, std::io::Error>>()).into_response();
    }
    let Some((kind, objects)) = lists.0.get(uri.path()) else {
        return axum::http::StatusCode::NOT_FOUND.into_response();
    };
    let number = |key: &str| query.get(key).and_then(|text| text.parse::<usize>().ok());
    let (first, most) = (number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX));
    let end = first.saturating_add(most).min(objects.len());
    let version = if kind.starts_with("NodeLocal") {
        "quarry.dev/v1alpha1"
    } else if kind.starts_with("StorageClass") {
        "storage.k8s.io/v1"
    } else {
        "v1"
    };
    let mut metadata = json!({"resourceVersion": "1"});
    if end < objects.len() {
        metadata["continue"] = json!(end.to_string());
    }
    let items = objects[first..end].join(",");
    let text = format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{metadata},"items":[{items}]}}"#);
    ([("content-type", "application/json")], text).into_response()
}
