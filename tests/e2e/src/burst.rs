//! Pods that arrive together, over nodes with room for exactly that many: none is placed wrong, and every volume group is
//! full to its last extent in the end.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};
use quarry_bed::{Process, SECOND_SCHEDULER};
use quarry_crds::claim::is_bound;

use crate::bed::repository;
use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, Test};
use watched::Watched;

mod watched;

/// The cases.
pub const CASES: &[Case] = &[
    case!(a_burst_fills_every_node_exactly),
    case!(two_schedulers_share_one_extender),
    case!(a_scheduler_killed_in_a_burst),
];

/// The scheduler that pods ask for by default.
pub const DEFAULT_SCHEDULER: &str = "default-scheduler";
/// Kinds of pods: a claim of a class; one of a class that shares its group; a generic ephemeral volume; three claims in two
/// groups.
const KINDS: u64 = 4;
/// Pods and claims that are sent to the API server at a time.
const AT_ONCE: usize = 8;
/// How long so many pods may take, to come and to go.
fn patience(pods: usize) -> Duration {
    Duration::from_secs(240) + Duration::from_secs(4) * u32::try_from(pods.saturating_sub(40)).unwrap_or(0)
}

/// What arrives, and what happens meanwhile.
#[derive(Debug, Clone)]
pub struct Burst {
    /// For how many pods of each of the four kinds node1, node2 … have room.
    pub room: Vec<u64>,
    /// How many of the first pods are deleted with their claims while others arrive, and made again.
    pub again: usize,
    /// The schedulers that the pods ask for in turn.
    pub schedulers: Vec<&'static str>,
    /// What happens when a third of them is made.
    pub meanwhile: Meanwhile,
    /// Whether they run. Else they wait on their nodes for a Secret that there is not: so they take room of volume groups,
    /// and nothing else of a node.
    pub run: bool,
}

/// What happens during a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// Nothing.
    Nothing,
    /// The extender is killed on every node, and kubelet starts it again.
    ExtenderRestarts,
    /// kube-scheduler is killed and started again.
    SchedulerIsKilled,
}

/// What a burst came to.
#[derive(Debug, Clone, Copy)]
pub struct Filled {
    /// Pods that were placed in the end.
    pub pods: usize,
    /// Claims of theirs, all bound.
    pub claims: usize,
    /// From the first request until the last pod was placed and the last claim bound.
    pub took: Duration,
    /// How many of the pods ran by then.
    pub running: usize,
    /// How often a claim was given to a node.
    pub selections: usize,
}

async fn a_burst_fills_every_node_exactly(test: &Test) -> Result<()> {
    let burst = Burst {
        room: vec![3, 3, 4],
        again: 6,
        schedulers: vec![DEFAULT_SCHEDULER],
        meanwhile: Meanwhile::ExtenderRestarts,
        run: true,
    };
    strictly(test, &burst).await.map(drop)
}

/// [`fill_exactly`] with a kube-scheduler that places nothing without asking.
///
/// # Errors
/// The same.
pub async fn strictly(test: &Test, burst: &Burst) -> Result<Filled> {
    // Else kube-scheduler places pods without asking while the extender is away, which no extender can make right.
    let shipped = std::fs::read_to_string(repository().join("deploy/scheduler/kube-scheduler-config.yaml"))?;
    let strict = shipped.replace("ignorable: true", "ignorable: false");
    ensure!(strict != shipped, "the configuration does not say ignorable: true");
    test.bed.cluster.configure_scheduler(Some(&strict)).await?;
    let result = fill_exactly(test, burst).await;
    test.bed.cluster.configure_scheduler(None).await?;
    test.bed.rolled_out("quarry-extender").await?;
    result
}

async fn two_schedulers_share_one_extender(test: &Test) -> Result<()> {
    let burst = Burst {
        room: vec![1, 1, 2],
        again: 0,
        schedulers: vec![DEFAULT_SCHEDULER, SECOND_SCHEDULER],
        meanwhile: Meanwhile::Nothing,
        run: true,
    };
    test.bed.cluster.start(Process::SecondScheduler).await?;
    let result = fill_exactly(test, &burst).await;
    test.bed.cluster.stop(Process::SecondScheduler).await?;
    result.map(drop)
}

async fn a_scheduler_killed_in_a_burst(test: &Test) -> Result<()> {
    let burst = Burst {
        room: vec![1, 1, 2],
        again: 0,
        schedulers: vec![DEFAULT_SCHEDULER],
        meanwhile: Meanwhile::SchedulerIsKilled,
        run: true,
    };
    fill_exactly(test, &burst).await.map(drop)
}

/// Makes room for exactly the pods of a burst, lets them arrive, and expects every one to be placed at the first attempt and
/// every volume group to be full.
///
/// # Errors
/// A pod was not placed, a claim was given back, or a node was promised more than it has.
pub async fn fill_exactly(test: &Test, burst: &Burst) -> Result<Filled> {
    let classes = Classes::make(test, burst).await?;
    let watched = Watched::begin(test, burst.room.clone()).await?;
    let extenders = extenders(test, burst).await?;
    let begun = Instant::now();
    let pods: Vec<_> = (0..KINDS * burst.room.iter().sum::<u64>()).collect();
    let (first, rest) = pods.split_at(pods.len() / 3);
    let (second, third) = rest.split_at(rest.len() / 2);
    let make = |number: u64, suffix: &'static str| {
        let at = usize::try_from(number / KINDS).unwrap_or(0) % burst.schedulers.len();
        classes.pod(test, number, suffix, burst.schedulers[at], burst.run)
    };
    arrive(first.iter().map(|number| make(*number, ""))).await?;
    let (arrived, happened) = tokio::join!(
        arrive(second.iter().map(|number| make(*number, ""))),
        happen(test, burst)
    );
    arrived.and(happened)?;
    let again = &pods[..burst.again];
    for number in again {
        classes.delete(test, *number).await?;
    }
    arrive(third.iter().map(|number| make(*number, ""))).await?;
    arrive(again.iter().map(|number| make(*number, "-again"))).await?;
    let mut filled = all_placed(test, pods.len()).await?;
    filled.took = begun.elapsed();
    let seen = watched.end().await?;
    filled.selections = seen.selections;
    println!(
        "   {} pods with {} claims placed and bound in {:.1} s, {} of them ran by then; {} selections, {} given back, \
         {} times over the room of a node",
        filled.pods,
        filled.claims,
        filled.took.as_secs_f64(),
        filled.running,
        seen.selections,
        seen.given_back.len(),
        seen.over.len()
    );
    let failed = test.given_back().await?;
    ensure!(
        seen.given_back.is_empty() && failed.is_empty(),
        "given back: {:?}; {failed:?}",
        seen.given_back
    );
    ensure!(seen.over.is_empty(), "promised more than there is: {:?}", seen.over);
    classes.full(test, burst).await?;
    each_scheduler_placed_its_own(test, burst, filled.pods).await?;
    if burst.meanwhile == Meanwhile::ExtenderRestarts {
        let now = self::extenders(test, burst).await?;
        ensure!(
            extenders.iter().zip(&now).all(|(before, now)| before != now),
            "the extender was to be another: {extenders:?}, {now:?}"
        );
    }
    leave(test, pods.len()).await?;
    Ok(filled)
}

/// Expects the pods to be shared out evenly among the schedulers of the burst, all of them placed.
async fn each_scheduler_placed_its_own(test: &Test, burst: &Burst, pods: usize) -> Result<()> {
    for scheduler in &burst.schedulers {
        let params = ListParams::default().fields(&format!("spec.schedulerName={scheduler}"));
        let own = test.pods().list(&params).await?.items;
        let placed = own.iter().filter(|pod| is_placed(pod)).count();
        ensure!(
            placed == own.len() && placed * burst.schedulers.len() == pods,
            "{scheduler} placed {placed} of its {} pods, of {pods} in all",
            own.len()
        );
    }
    Ok(())
}

/// Deletes the pods and claims, and waits until their volumes are gone: dozens on each node, where each is wiped and removed
/// on its own.
async fn leave(test: &Test, pods: usize) -> Result<()> {
    let (at_once, all) = (DeleteParams::default().grace_period(0), ListParams::default());
    test.pods().delete_collection(&at_once, &all).await?;
    test.claims().delete_collection(&DeleteParams::default(), &all).await?;
    test.wait("the volumes of the burst are gone", patience(pods), || async {
        let volumes = test.volumes().list(&ListParams::default()).await?.items;
        let namespace = |volume: &PersistentVolume| volume.spec.as_ref()?.claim_ref.as_ref()?.namespace.clone();
        let left = volumes
            .iter()
            .any(|volume| namespace(volume).as_deref() == Some(&*test.name));
        Ok((!left).then_some(()))
    })
    .await
}

async fn arrive(pods: impl Iterator<Item = impl Future<Output = Result<()>>>) -> Result<()> {
    futures::stream::iter(pods)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

async fn happen(test: &Test, burst: &Burst) -> Result<()> {
    let cluster = &test.bed.cluster;
    match burst.meanwhile {
        Meanwhile::Nothing => {}
        Meanwhile::ExtenderRestarts => {
            let kill = |at: usize| async move {
                let node = test.bed.node(&format!("node{at}"))?;
                Ok::<_, anyhow::Error>(node.run_ok(["pkill", "-KILL", "-x", "quarry-extender"]).await?)
            };
            try_join_all((1..=burst.room.len()).map(kill)).await?;
        }
        Meanwhile::SchedulerIsKilled => {
            cluster.kill(Process::Scheduler).await?;
            cluster.start(Process::Scheduler).await?;
        }
    }
    Ok(())
}

/// The processes of the extender, by node.
async fn extenders(test: &Test, burst: &Burst) -> Result<Vec<String>> {
    let of = |at: usize| async move {
        let node = test.bed.node(&format!("node{at}"))?;
        Ok(node.run(["pgrep", "-x", "quarry-extender"]).await?.stdout)
    };
    try_join_all((1..=burst.room.len()).map(of)).await
}

/// Waits until every pod of the test is placed and every claim bound; those that are being deleted do not count.
///
/// # Errors
/// Not so many pods are after some minutes.
pub async fn all_placed(test: &Test, pods: usize) -> Result<Filled> {
    let begun = Instant::now();
    loop {
        let all = test.pods().list(&ListParams::default()).await?.items;
        let live = all.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let (placed, waiting): (Vec<_>, Vec<_>) = live.partition(|pod| is_placed(pod));
        let claims = test.claims().list(&ListParams::default()).await?.items;
        let live = claims
            .iter()
            .filter(|claim| claim.metadata.deletion_timestamp.is_none());
        let (bound, open): (Vec<_>, Vec<_>) = live.partition(|claim| is_bound(claim));
        if placed.len() == pods && waiting.is_empty() && open.is_empty() {
            let phase = |pod: &&&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
            return Ok(Filled {
                pods,
                claims: bound.len(),
                took: begun.elapsed(),
                running: placed.iter().filter(phase).count(),
                selections: 0,
            });
        }
        let waiting: Vec<_> = waiting.into_iter().map(ResourceExt::name_any).collect();
        let open: Vec<_> = open.into_iter().map(ResourceExt::name_any).collect();
        ensure!(
            begun.elapsed() < patience(pods),
            "{} of {pods} pods are placed; these wait: {waiting:?}; claims: {open:?}",
            placed.len()
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Whether kube-scheduler has placed a pod.
pub fn is_placed(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "PodScheduled" && c.status == "True"))
}

/// Four classes in three volume groups. Two share the first group.
struct Classes {
    own: String,
    sharing: String,
    twice: String,
    third: String,
}

impl Classes {
    /// Makes them, and fills their groups up to the room for the pods.
    ///
    /// Whatever the order in which pods come, and wherever each goes, all fit: each kind asks the same of a group as the
    /// others that use it, and only one kind uses two groups. So a pod that stays was kept out by a mistake.
    async fn make(test: &Test, burst: &Burst) -> Result<Self> {
        let on = |disk: usize| -> Result<Vec<(String, Vec<String>)>> {
            let nodes = 1..=burst.room.len();
            let node = |at| Ok((format!("node{at}"), vec![test.bed.disk(at, disk)?]));
            nodes.map(node).collect()
        };
        let class = async |suffix: &str, disk: usize, group: Option<&str>| -> Result<String> {
            let disks = on(disk)?;
            let disks: Vec<_> = disks
                .iter()
                .map(|(node, disks)| (node.as_str(), disks.clone()))
                .collect();
            let class = Class::new(&test.class_name(suffix), &disks);
            let class = group
                .into_iter()
                .fold(class, |class, group| class.parameter("volumeGroup", group));
            test.class(class).await
        };
        let own = class("own", 0, None).await?;
        let classes = Self {
            sharing: class("sharing", 0, Some(&own)).await?,
            twice: class("twice", 1, None).await?,
            third: class("third", 2, None).await?,
            own,
        };
        for class in [&classes.own, &classes.sharing, &classes.twice, &classes.third] {
            test.ready(class, burst.room.len()).await?;
        }
        classes.fill_up(test, burst).await?;
        Ok(classes)
    }

    /// The groups, and how many extents the pods take of each on a node with room for one of each kind.
    fn groups(&self) -> [(&str, u64); 3] {
        [
            (&self.own, watched::SHARED),
            (&self.twice, watched::TWICE),
            (&self.third, watched::THIRD),
        ]
    }

    /// Leaves only so much of each group as the pods are to take.
    async fn fill_up(&self, test: &Test, burst: &Burst) -> Result<()> {
        for (at, room) in burst.room.iter().enumerate() {
            let node = format!("node{}", at + 1);
            for (group, extents) in self.groups() {
                test.leave_free(&node, group, room * extents * watched::EXTENT).await?;
            }
        }
        let wanted = |class: &str, at: usize| {
            let extents = self.groups().into_iter().find(|(group, _)| *group == class);
            burst.room[at] * extents.map_or(watched::SHARED, |(_, extents)| extents) * watched::EXTENT
        };
        self.published(test, burst, wanted).await
    }

    /// Expects every group to be full, by LVM's own word, and that to be published.
    async fn full(&self, test: &Test, burst: &Burst) -> Result<()> {
        for at in 1..=burst.room.len() {
            let node = format!("node{at}");
            for (group, _) in self.groups() {
                let free = test.free_on(&node, group).await?;
                ensure!(free == 0, "{free} bytes of {group} are left on {node}");
            }
        }
        self.published(test, burst, |_, _| 0).await
    }

    /// Waits until so many bytes are published as free, by class and node (from 0).
    async fn published(&self, test: &Test, burst: &Burst, wanted: impl Fn(&str, usize) -> u64) -> Result<()> {
        for class in [&self.own, &self.sharing, &self.twice, &self.third] {
            for at in 0..burst.room.len() {
                let name = format!("{class}.node{}", at + 1);
                test.published_free(&name, wanted(class, at)).await?;
            }
        }
        Ok(())
    }

    /// The claims of a pod, beside the one in its template: class and size.
    fn claims(&self, number: u64) -> Vec<(&str, &'static str)> {
        match number % KINDS {
            0 => vec![(&self.own, "8Mi")],
            1 => vec![(&self.sharing, "5Mi")],
            2 => Vec::new(),
            _ => vec![(&self.twice, "1Mi"), (&self.twice, "12Mi"), (&self.third, "13Mi")],
        }
    }

    /// Makes a pod with its claims.
    async fn pod(&self, test: &Test, number: u64, suffix: &str, scheduler: &str, run: bool) -> Result<()> {
        let name = format!("pod{number}{suffix}");
        let mut pod = PodSpec::new(&name);
        pod.0["spec"]["schedulerName"] = scheduler.into();
        for (at, (class, size)) in self.claims(number).into_iter().enumerate() {
            let claim = format!("{name}-{at}");
            test.claim(Claim::new(&claim, class, size).block()).await?;
            pod = pod.claim(&claim, true);
        }
        if number % KINDS == 2 {
            pod = pod.ephemeral("scratch", &self.own, "7Mi");
        }
        if !run {
            pod = pod.secret("never");
        }
        test.pod(pod).await.map(drop)
    }

    /// Deletes a pod with its claims, wherever it has come to.
    async fn delete(&self, test: &Test, number: u64) -> Result<()> {
        let name = format!("pod{number}");
        let at_once = DeleteParams::default().grace_period(0);
        test.pods().delete(&name, &at_once).await?;
        for at in 0..self.claims(number).len() {
            test.claims()
                .delete(&format!("{name}-{at}"), &DeleteParams::default())
                .await?;
        }
        Ok(())
    }
}
