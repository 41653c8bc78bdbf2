//! Figures of the main path on the true cluster: how long a volume takes from placement to PersistentVolume and a pod
//! from creation to Running, beside a raw `lvcreate` on the same node in the same run; and what the programs need.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use quarry_e2e::bed::Bed;
use quarry_e2e::objects::{Claim, PodSpec};
use quarry_e2e::test::Test;

/// How many volumes are made, one after another.
const ROUNDS: usize = 20;
/// The node that they are made on.
const NODE: &str = "node2";

/// When something was first seen, by what it is.
type Seen = Arc<Mutex<HashMap<String, Instant>>>;

#[tokio::main]
async fn main() -> Result<()> {
    let bed = Bed::up().await?;
    let test = Test::new(bed, "bench");
    test.begin().await?;
    let result = measure(&test).await;
    let cleaned = test.end().await;
    result.and(cleaned)
}

fn note(seen: &Seen, what: String) {
    seen.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(what)
        .or_insert_with(Instant::now);
}

fn at(seen: &Seen, what: &str) -> Option<Instant> {
    seen.lock().unwrap_or_else(PoisonError::into_inner).get(what).copied()
}

/// Watches a kind and notes what `describe` says of each object as soon as it says so.
fn watch<K>(api: Api<K>, seen: Seen, describe: fn(&K) -> Option<String>)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
{
    tokio::spawn(async move {
        let mut stream = pin!(
            watcher(api, watcher::Config::default())
                .default_backoff()
                .applied_objects()
        );
        loop {
            match stream.try_next().await {
                Ok(Some(object)) => {
                    describe(&object).into_iter().for_each(|what| note(&seen, what));
                }
                Ok(None) => return,
                Err(error) => eprintln!("bench: a watch was interrupted: {error}"),
            }
        }
    });
}

async fn measure(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 1).await?;
    let seen = Seen::default();
    watch::<PersistentVolumeClaim>(test.claims(), seen.clone(), |claim| {
        quarry_crds::claim::selected_node(claim).map(|_| format!("selected {}", claim.name_any()))
    });
    watch::<PersistentVolume>(test.volumes(), seen.clone(), |volume| {
        let claim = volume.spec.as_ref()?.claim_ref.as_ref()?.name.clone()?;
        Some(format!("volume {claim}"))
    });
    watch::<Pod>(test.pods(), seen.clone(), |pod| {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        let ready = conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
        ready.then(|| format!("running {}", pod.name_any()))
    });
    let (mut made, mut ran, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let name = format!("round{round}");
        test.claim(Claim::new(&name, &class, "64Mi")).await?;
        let created = Instant::now();
        test.pod(PodSpec::new(&name).claim(&name, false).on(NODE)).await?;
        test.running(&name).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let running = at(&seen, &format!("running {name}")).context("the pod was not seen running")?;
        let selected = at(&seen, &format!("selected {name}")).context("the claim was not seen selected")?;
        let volume = at(&seen, &format!("volume {name}")).context("the volume was not seen")?;
        made.push(volume.saturating_duration_since(selected));
        ran.push(running.duration_since(created));
        raw.push(raw_lvcreate(test, &class, round).await?);
    }
    println!("\n| figure (median of {ROUNDS}, least and most) | ms |\n|---|---|");
    for (what, times) in [
        ("selected-node → PersistentVolume", &mut made),
        (
            "raw lvcreate with the same options on the same node, through the node's agent",
            &mut raw,
        ),
        ("pod created → Ready, with a new ext4 volume", &mut ran),
    ] {
        times.sort();
        let ms = |time: &Duration| time.as_millis();
        println!(
            "| {what} | {} ({} – {}) |",
            ms(&times[ROUNDS / 2]),
            ms(&times[0]),
            ms(&times[ROUNDS - 1])
        );
    }
    println!("\n| resident memory with {ROUNDS} volumes | KiB |\n|---|---|");
    for program in ["quarry-manager", "quarry-extender"] {
        println!("| {program} on {NODE} | {} |", resident(test, program).await?);
    }
    Ok(())
}

/// How long LVM itself takes for the same volume.
async fn raw_lvcreate(test: &Test, group: &str, round: usize) -> Result<Duration> {
    let node = test.bed.node(NODE)?;
    let name = format!("raw{round}");
    let argv = [
        "lvcreate", "-q", "-l", "16", "-n", &name, "-Wy", "-Zy", "-y", "--addtag", "raw", group,
    ];
    let begun = Instant::now();
    node.run_ok(argv).await?;
    let took = begun.elapsed();
    node.run_ok(["lvremove", "-q", "-f", &format!("{group}/{name}")])
        .await?;
    Ok(took)
}

async fn resident(test: &Test, program: &str) -> Result<String> {
    let node = test.bed.node(NODE)?;
    let pids = node.run_ok(["pgrep", "-x", program]).await?;
    let pid = pids.split_whitespace().next().context("it does not run")?.to_owned();
    let status = node.run_ok(["cat", &format!("/proc/{pid}/status")]).await?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).unwrap_or_default().to_owned())
}
