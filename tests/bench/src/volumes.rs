//! Volumes on the true cluster: how long they take beside LVM alone in the same run, how many LVM commands and requests to
//! the API server they cost, and what the manager needs for them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use quarry_e2e::bed::Bed;
use quarry_e2e::objects::{Claim, PodSpec};
use quarry_e2e::test::Test;
use serde::Deserialize;

use crate::counts::{PROVISION, difference, is_reading, list, merge, metrics, sum};
use crate::figure::{Figure, Goal};
use crate::index::resident_of;
use crate::processor::Used;
use crate::samples::Samples;

/// How many volumes are made, one after another.
const ROUNDS: usize = 20;
/// How many claims are given to a node at once.
const AT_ONCE: usize = 100;
/// How many raw volumes are made in one go while the manager stands still.
const RAW_BATCH: usize = 25;
/// For how long the manager works after it stood still: kubelet, which asks it every 10 s, must not take it for dead.
const AWAKE: Duration = Duration::from_secs(25);
/// The node that they are made on.
pub(crate) const NODE: &str = "node2";
/// For how long it is counted what is written while nothing happens.
const REST: Duration = Duration::from_secs(90);
/// How long changes take to be written, at most, after the last of them.
const SETTLED: Duration = Duration::from_secs(8);

/// After this time the last volumes are marked as handed out: what that costs is counted too.
const MARKED: Duration = Duration::from_secs(70);

/// When something was first seen, by what it is.
type Seen = Arc<Mutex<HashMap<String, Instant>>>;

/// The figures.
///
/// # Errors
/// The cluster did not come up, or a volume was not made.
pub async fn figures(figures: &mut Vec<Figure>) -> Result<()> {
    let bed = Bed::up().await?;
    let audit = Audit(bed.cluster.audit(true).await?);
    let test = Test::new(bed.clone(), "bench");
    let result = async {
        test.begin().await?;
        measure(&test, &audit, figures).await
    }
    .await;
    let cleaned = test.end().await;
    bed.cluster.audit(false).await?;
    result.and(cleaned)
}

async fn measure(test: &Test, audit: &Audit, figures: &mut Vec<Figure>) -> Result<()> {
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
        ready.then(|| format!("ready {}", pod.name_any()))
    });
    tokio::time::sleep(SETTLED).await;
    figures.extend(one_by_one(test, &class, &seen, audit).await?);
    figures.extend(at_once(test, &class, &seen).await?);
    Ok(())
}

/// Volumes one after another, each beside a raw one; then rest; then all of them removed.
async fn one_by_one(test: &Test, class: &str, seen: &Seen, audit: &Audit) -> Result<Vec<Figure>> {
    let (mut made, mut ran, mut raw, mut agent) = (
        Samples::default(),
        Samples::default(),
        Samples::default(),
        Samples::default(),
    );
    let (commands, written) = (metrics(test).await?, audit.count()?);
    for round in 0..ROUNDS {
        let name = format!("round{round}");
        test.claim(Claim::new(&name, class, "64Mi")).await?;
        let created = Instant::now();
        test.pod(PodSpec::new(&name).claim(&name, false).on(NODE)).await?;
        test.running(&name).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let ready = at(seen, &format!("ready {name}")).context("the pod was not seen ready")?;
        let selected = at(seen, &format!("selected {name}")).context("the claim was not seen selected")?;
        let volume = at(seen, &format!("volume {name}")).context("the volume was not seen")?;
        made.add(volume.saturating_duration_since(selected));
        ran.add(ready.duration_since(created));
    }
    tokio::time::sleep(MARKED).await;
    let (commands_made, written_made) = (metrics(test).await?, audit.count()?);
    // While no volume of Quarry is being made, so that neither waits for the other's lock.
    without_manager(test, async {
        for round in 0..ROUNDS {
            raw.add(raw_lvcreate(test, class, round).await?);
            agent.add(nothing(test).await?);
        }
        Ok(())
    })
    .await?;
    let with_few = resident(test, "quarry-manager").await?;
    let extender = resident(test, "quarry-extender").await?;
    tokio::time::sleep(SETTLED).await;
    let resting = audit.count()?;
    tokio::time::sleep(REST).await;
    let rested = difference(&audit.count()?, &resting);
    let (commands_before, written_before) = (metrics(test).await?, audit.count()?);
    remove_all(test).await?;
    tokio::time::sleep(SETTLED).await;
    let (commands_removed, written_removed) = (metrics(test).await?, audit.count()?);

    let ratio = made.percentile(50) / raw.percentile(50);
    let ms = |samples: &mut Samples| samples.percentile(50) / 1000.0;
    let mut figures = vec![
        Figure::new(
            "claim selected to its node → PersistentVolume: median of 20",
            ms(&mut made),
            "ms",
        ),
        Figure::new(
            "raw lvcreate with the same options on that node: median of 20",
            ms(&mut raw),
            "ms",
        ),
        Figure::new(
            "a command that does nothing on that node, in both of these",
            ms(&mut agent),
            "ms",
        ),
        Figure::new("claim selected → PersistentVolume, beside raw lvcreate", ratio, "×").goal(Goal::AtMost(1.5)),
        Figure::new(
            "pod created → Ready, with a new ext4 volume: median of 20",
            ms(&mut ran),
            "ms",
        ),
        Figure::new("manager, resident with 20 volumes", with_few, "MiB"),
        Figure::new("extender, resident with 20 volumes", extender, "MiB"),
    ];
    let count = ROUNDS as f64;
    let made = difference(&commands_made.counts, &commands.counts);
    let removed = difference(&commands_removed.counts, &commands_before.counts);
    let mut took = difference(&commands_made.seconds, &commands.seconds);
    took.values_mut().for_each(|seconds| *seconds *= 1000.0);
    let whole = took.get(PROVISION).copied().unwrap_or_default() / count;
    figures.push(Figure::new(
        "of that the manager, from seeing the claim to its PersistentVolume: mean",
        whole,
        "ms",
    ));
    let in_commands = sum(&took, |what| what != PROVISION) / count;
    let text = format!(
        "commands, per volume made, those of passes after it included ({} ms)",
        list(&took, count)
    );
    figures.push(Figure::new(text, in_commands, "ms"));
    let mut in_life = 0.0;
    for (what, difference) in [("made", &made), ("removed", &removed)] {
        let changing = sum(difference, |command| command != PROVISION && !is_reading(command)) / count;
        let text = format!(
            "LVM commands that change something, per volume {what} ({})",
            list(difference, count)
        );
        // One that makes it and one that removes it; what wipes it is counted apart.
        figures.push(Figure::new(text, changing, "").goal(Goal::AtMost(1.0)));
        in_life += changing;
        let all = sum(difference, |command| command != PROVISION) / count;
        figures.push(Figure::new(format!("all commands, per volume {what}"), all, ""));
    }
    let text = "LVM commands that change something, in the life of a volume";
    figures.push(Figure::new(text, in_life, "").goal(Goal::AtMost(2.0)));
    let life = merge(
        &difference(&written_made, &written),
        &difference(&written_removed, &written_before),
    );
    let per_volume = sum(&life, |what| !what.ends_with(" leases")) / count;
    let text = format!("API writes of ours in the life of a volume ({})", list(&life, count));
    figures.push(Figure::new(text, per_volume, "").goal(Goal::AtMost(6.0)));
    let nodes = test.bed.cluster.nodes().len() as f64;
    let per_minute = sum(&rested, |what| !what.ends_with(" leases")) / nodes / (REST.as_secs_f64() / 60.0);
    let text = format!(
        "API writes at rest, a minute and node, beside the Leases ({})",
        list(&rested, 1.0)
    );
    figures.push(Figure::new(text, per_minute, "").goal(Goal::AtMost(0.0)));
    Ok(figures)
}

/// A hundred claims given to one node at once, beside a hundred raw volumes one after another.
async fn at_once(test: &Test, class: &str, seen: &Seen) -> Result<Vec<Figure>> {
    // kubelet and containerd clear up after pods for a minute, which took a tenth of the node.
    tokio::time::sleep(REST).await;
    let (commands, processor) = (metrics(test).await?, Used::on(test, NODE).await?);
    let begun = Instant::now();
    let claims: Vec<_> = (0..AT_ONCE)
        .map(|at| selected_claim(&format!("many{at}"), class))
        .collect();
    let all = test.claims();
    stream::iter(claims)
        .map(|claim| {
            let all = all.clone();
            async move { all.create(&PostParams::default(), &claim?).await.context("a claim") }
        })
        .buffer_unordered(20)
        .try_collect::<Vec<_>>()
        .await?;
    let created = begun.elapsed().as_secs_f64();
    test.wait("every claim has its volume", Duration::from_secs(300), || async {
        let last = (0..AT_ONCE).map(|at| self::at(seen, &format!("volume many{at}")));
        Ok(last.collect::<Option<Vec<_>>>())
    })
    .await?;
    let last = (0..AT_ONCE)
        .filter_map(|at| self::at(seen, &format!("volume many{at}")))
        .max();
    let ours = last.context("no volume")?.duration_since(begun).as_secs_f64();
    let spent = Used::on(test, NODE).await?.since(&processor);
    let ran = metrics(test).await?;
    let (ran, seconds) = (
        difference(&ran.counts, &commands.counts),
        difference(&ran.seconds, &commands.seconds),
    );
    tokio::time::sleep(SETTLED).await;
    let with_many = resident(test, "quarry-manager").await?;
    let storages = test.storages_of(class).await?;
    let storage = storages.into_iter().find(|storage| storage.spec.node_name == NODE);
    let mut storage = storage.context("no NodeLocalStorage")?;
    let mut size = serde_json::to_vec(&storage)?.len() as f64;
    let shown = format!("NodeLocalStorage as stored, with {AT_ONCE} volumes");
    let with_all = Figure::new(shown, size, "bytes");
    if let Some(status) = &mut storage.status {
        status.volumes = 1_000;
        size = serde_json::to_vec(&storage)?.len() as f64;
    }
    let begun = Instant::now();
    remove_all(test).await?;
    let removed = begun.elapsed().as_secs_f64();
    let (mut raw, mut spent_raw) = (0.0, Used::none());
    for batch in 0..AT_ONCE / RAW_BATCH {
        let (took, spent) = without_manager(test, async {
            let (processor, begun) = (Used::on(test, NODE).await?, Instant::now());
            for round in 0..RAW_BATCH {
                make_raw(test, class, batch * RAW_BATCH + round).await?;
            }
            let took = begun.elapsed().as_secs_f64();
            Ok((took, Used::on(test, NODE).await?.since(&processor)))
        })
        .await?;
        raw += took;
        spent_raw = spent_raw.and(&spent);
    }
    for round in 0..AT_ONCE {
        remove_raw(test, class, round).await?;
    }
    let count = AT_ONCE as f64;
    Ok(vec![
        Figure::new("100 claims at once: until the last was created", created, "s"),
        Figure::new("100 claims at once: until the last had its PersistentVolume", ours, "s"),
        Figure::new(format!("processor time of the node in that ({spent})"), ours, "s"),
        Figure::new(
            format!("commands in that ({}; {} s)", list(&ran, 1.0), list(&seconds, 1.0)),
            sum(&ran, |command| command != PROVISION),
            "",
        ),
        Figure::new("100 volumes removed, until their objects are gone", removed, "s"),
        Figure::new("100 raw lvcreate one after another", raw, "s"),
        Figure::new(format!("processor time of the node in that ({spent_raw})"), raw, "s"),
        Figure::new(
            "volumes a second, beside raw lvcreate",
            (count / ours) / (count / raw),
            "×",
        )
        .goal(Goal::AtLeast(0.9)),
        Figure::new("manager, resident with 100 volumes", with_many, "MiB").goal(Goal::AtMost(15.0)),
        with_all,
        Figure::new("the same, its count of volumes set to 1,000", size, "bytes").goal(Goal::AtMost(4096.0)),
    ])
}

/// A claim that kube-scheduler and kube-controller-manager are done with: the manager alone is waited for.
fn selected_claim(name: &str, class: &str) -> Result<PersistentVolumeClaim> {
    Claim::new(name, class, "64Mi").selected(NODE).object()
}

/// Deletes all pods and claims, and waits until their volumes are gone.
async fn remove_all(test: &Test) -> Result<()> {
    let none = ListParams::default();
    test.pods()
        .delete_collection(&DeleteParams::default().grace_period(0), &none)
        .await?;
    test.claims().delete_collection(&DeleteParams::default(), &none).await?;
    test.wait("the volumes are gone", Duration::from_secs(900), || async {
        Ok(test
            .volumes()
            .list(&ListParams::default())
            .await?
            .items
            .is_empty()
            .then_some(()))
    })
    .await
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

/// Does what is compared with the manager while the manager of the node stands still: else it would read LVM after each change,
/// as it does after any that is not its own, and take its share of the processor.
async fn without_manager<T>(test: &Test, work: impl Future<Output = Result<T>>) -> Result<T> {
    let node = test.bed.node(NODE)?;
    node.run_ok(["pkill", "-STOP", "-x", "quarry-manager"]).await?;
    let done = work.await;
    node.run_ok(["pkill", "-CONT", "-x", "quarry-manager"]).await?;
    tokio::time::sleep(AWAKE).await;
    done
}

/// How long LVM itself takes for the same volume, through the node's agent.
async fn raw_lvcreate(test: &Test, group: &str, round: usize) -> Result<Duration> {
    let begun = Instant::now();
    make_raw(test, group, round).await?;
    let took = begun.elapsed();
    remove_raw(test, group, round).await?;
    Ok(took)
}

async fn make_raw(test: &Test, group: &str, round: usize) -> Result<()> {
    let name = format!("raw{round}");
    let argv = [
        "lvcreate", "-q", "-l", "16", "-n", &name, "-Wy", "-Zy", "-y", "--addtag", "raw", group,
    ];
    test.bed.node(NODE)?.run_ok(argv).await?;
    Ok(())
}

async fn remove_raw(test: &Test, group: &str, round: usize) -> Result<()> {
    let volume = format!("{group}/raw{round}");
    test.bed.node(NODE)?.run_ok(["lvremove", "-q", "-f", &volume]).await?;
    Ok(())
}

/// What the node's agent itself takes.
async fn nothing(test: &Test) -> Result<Duration> {
    let begun = Instant::now();
    test.bed.node(NODE)?.run_ok(["true"]).await?;
    Ok(begun.elapsed())
}

/// Resident memory of a program on the node, in MiB.
pub(crate) async fn resident(test: &Test, program: &str) -> Result<f64> {
    let node = test.bed.node(NODE)?;
    let pids = node.run_ok(["pgrep", "-x", program]).await?;
    let pid = pids.split_whitespace().next().context("it does not run")?.to_owned();
    let status = node.run_ok(["cat", &format!("/proc/{pid}/status")]).await?;
    resident_of(&status)
}

/// What kube-apiserver wrote down of our requests.
struct Audit(PathBuf);

impl Audit {
    /// How many objects Quarry has written since the log began, by verb and resource.
    fn count(&self) -> Result<BTreeMap<String, f64>> {
        count(&self.0)
    }
}

fn count(log: &Path) -> Result<BTreeMap<String, f64>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Line {
        verb: String,
        object_ref: Option<Object>,
    }
    #[derive(Deserialize)]
    struct Object {
        resource: Option<String>,
        subresource: Option<String>,
    }
    let mut counts = BTreeMap::new();
    for line in std::fs::read_to_string(log)?.lines() {
        let line: Line = serde_json::from_str(line)?;
        let object = line.object_ref.context("a request without an object")?;
        let resource = object.resource.unwrap_or_default();
        let resource = object
            .subresource
            .map_or(resource.clone(), |sub| format!("{resource}/{sub}"));
        *counts.entry(format!("{} {resource}", line.verb)).or_default() += 1.0;
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_audit_are_counted_by_what_was_written() {
        let folder = std::env::temp_dir().join(format!("quarry-bench-{}", std::process::id()));
        let lines = [
            r#"{"verb":"patch","objectRef":{"resource":"nodelocalstorages","subresource":"status"}}"#,
            r#"{"verb":"create","objectRef":{"resource":"persistentvolumes"}}"#,
            r#"{"verb":"create","objectRef":{"resource":"persistentvolumes"}}"#,
        ];
        std::fs::write(&folder, lines.join("\n")).expect("a file");
        let counts = count(&folder).expect("counts");
        std::fs::remove_file(&folder).expect("removed");
        assert_eq!(
            list(&counts, 2.0),
            "create persistentvolumes 1.00, patch nodelocalstorages/status 0.50"
        );
        assert!((sum(&counts, |what| what.ends_with("persistentvolumes")) - 2.0).abs() < 0.01);
        assert!(difference(&counts, &counts).is_empty());
    }
}
