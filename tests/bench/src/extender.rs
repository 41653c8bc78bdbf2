//! How long the extender takes from the bytes of a request to the bytes of the answer, beside what `serde_json` alone
//! needs to read that request and write that answer.
//!
//! The extender is the one that is shipped, without its sockets: its index, filled with what its watches would read, and
//! its router, in a process of its own that logs what it decides. Both times are taken in turn, so that whatever else the
//! machine does hits both.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use quarry_extender::decide::Patience;
use quarry_extender::handlers::Extender;
use quarry_extender::index::claim_key;
use quarry_extender::objects::{Claim, Class, Storage, Volume};
use quarry_extender::server::{RequestLimits, router};
use quarry_process::{LogFormat, init_logs};
use serde::{Deserialize, Serialize, Serializer};
use tower::ServiceExt;

use crate::figure::{Figure, Goal};
use crate::samples::Samples;
use crate::world::{self, World};

/// So often each request is timed, in so many blocks that take turns with those of what it is compared with, as the machine's
/// clock changes; and answered before each block, so that it finds warm caches.
const TIMES: usize = 100;
const BLOCKS: usize = 20;
const WARM: usize = 10;
/// A time that is "the same": the machine itself is not steadier.
const SAME: f64 = 1.25;
/// What the extender logs where nothing else is said.
const LOG: &str = "info,kube_client=warn";
/// How many pods were answered just before, where that is measured.
const CROWD: usize = 50;

/// Which nodes have no room.
#[derive(Clone, Copy, PartialEq)]
enum Full {
    None,
    EverySecond,
}

/// The figures, from a process of its own.
///
/// # Errors
/// That process failed.
pub async fn figures(found: &mut Vec<Figure>) -> Result<()> {
    let log = crate::run::folder()?.join("extender.log");
    let figures = crate::run::child::<Vec<Figure>>(&["--extender"], std::fs::File::create(&log)?).await;
    found.extend(figures.with_context(|| format!("read {}", log.display()))?);
    Ok(())
}

/// The process with the extender: prints the figures.
///
/// # Errors
/// An answer was not the one that is to be timed.
pub async fn measure() -> Result<()> {
    init_logs(LogFormat::Text, LOG)?;
    println!("{}", serde_json::to_string(&times().await?)?);
    Ok(())
}

async fn times() -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let large = router_of(fill(&World::FULL, Full::None)?);
    let small = router_of(fill(
        &World {
            volumes: 1_000,
            ..World::FULL
        },
        Full::None,
    )?);
    for verb in ["filter", "prioritize"] {
        let sizes = [100, 500, 5_000];
        let mut subjects = Vec::new();
        for candidates in sizes {
            subjects.push(Subject::new(&large, verb, world::request(Some(0), candidates)).await?);
        }
        subjects.push(Subject::new(&small, verb, world::request(Some(0), 5_000)).await?);
        time(&mut subjects).await?;
        for (subject, candidates) in subjects.iter_mut().zip(sizes) {
            figures.extend(subject.figures(&format!("{verb}, {candidates} candidates"), 2.0));
        }
        let [_, middle, most, fewer] = &mut subjects[..] else {
            continue;
        };
        let (middle, most, fewer) = (middle.median(), most.median(), fewer.median());
        let what = format!("{verb}: time per candidate at 5,000, beside that at 500");
        figures.push(Figure::new(what, most / middle / 10.0, "×").goal(Goal::AtMost(SAME)));
        let what = format!("{verb}: time with 100,000 volumes, beside that with 1,000");
        figures.push(Figure::new(what, most / fewer, "×").goal(Goal::AtMost(SAME)));
    }
    let half = router_of(fill(&World::FULL, Full::EverySecond)?);
    let what = "filter, 5,000 candidates, half of them without room";
    figures.extend(alone(&half, "filter", Some(0), 5_000).await?.figures(what, 2.0));
    let crowded = router_of(fill(&World::FULL, Full::None)?);
    for pod in 1..=CROWD {
        answer(&crowded, "filter", world::request(Some(pod), 5_000)).await?;
    }
    let what = format!("filter, 5,000 candidates, {CROWD} pods answered just before that may be on any of them");
    let mut subject = alone(&crowded, "filter", Some(0), 5_000).await?;
    figures.extend(subject.figures(&what, 2.0).into_iter().take(2));
    for verb in ["filter", "prioritize"] {
        for candidates in [100, 500, 5_000] {
            let what = format!("{verb} of a pod without claims, {candidates} candidates");
            let mut subject = alone(&large, verb, None, candidates).await?;
            figures.extend(subject.figures(&what, 1.2).into_iter().take(2));
        }
    }
    Ok(figures)
}

/// An extender that knows a cluster, and [`CROWD`] claims and one more that wait for a node.
fn fill(world: &World, full: Full) -> Result<Arc<Extender>> {
    let patience = Patience {
        // Nobody selects a node here: what was answered stays in mind for as long as times are taken.
        remembered: Duration::from_secs(3600),
        ..Patience::default()
    };
    let extender = Extender::new(patience);
    let class = serde_json::from_value(world::class())?;
    extender.replace::<Class>(vec![(world::CLASS.into(), Class::read(&class))]);
    let mut storages = Vec::new();
    for at in 0..world.nodes {
        let is_full = full == Full::EverySecond && at % 2 == 1;
        let storage = serde_json::from_value(world::storage(at, is_full))?;
        let entry = Storage::read(&storage).context("a NodeLocalStorage that is not read")?;
        storages.push((storage.metadata.name.unwrap_or_default().into(), entry));
    }
    extender.replace(storages);
    let mut volumes = Vec::new();
    for at in 0..world.volumes {
        let volume = serde_json::from_value(world::volume(world, at))?;
        let entry = Volume::read(&volume).context("a volume that is not read as ours")?;
        volumes.push((volume.metadata.name.unwrap_or_default().into(), entry));
    }
    extender.replace(volumes);
    let mut claims = Vec::new();
    let waiting = (0..=CROWD).map(world::waiting);
    for object in (0..world.claims()).map(|at| world::claim(world, at)).chain(waiting) {
        let claim = serde_json::from_value(object)?;
        let key = claim_key(world::NAMESPACE, claim_name(&claim));
        claims.push((key.into(), Claim::read(&claim)));
    }
    extender.replace(claims);
    Ok(Arc::new(extender))
}

fn claim_name(claim: &k8s_openapi::api::core::v1::PersistentVolumeClaim) -> &str {
    claim.metadata.name.as_deref().unwrap_or_default()
}

fn router_of(extender: Arc<Extender>) -> Router {
    router(extender, RequestLimits::default(), false)
}

/// A request, and its times.
struct Subject<'a> {
    router: &'a Router,
    verb: &'a str,
    request: Vec<u8>,
    answer: Vec<u8>,
    served: Samples,
    floor: Samples,
}

impl<'a> Subject<'a> {
    async fn new(router: &'a Router, verb: &'a str, request: Vec<u8>) -> Result<Self> {
        let answer = answer(router, verb, request.clone()).await?;
        Ok(Self {
            router,
            verb,
            request,
            answer,
            served: Samples::default(),
            floor: Samples::default(),
        })
    }

    fn median(&mut self) -> f64 {
        self.served.percentile(50)
    }

    fn figures(&mut self, what: &str, most: f64) -> Vec<Figure> {
        let (served, floor) = (self.served.percentile(50), self.floor.percentile(50));
        let spread = self.served.percentile(99) / served;
        let spread = Figure::new(format!("{what}: p99 beside p50"), spread, "×");
        vec![
            Figure::new(format!("{what}: p50"), served, "µs"),
            Figure::new(format!("{what}: p50 beside serde_json alone"), served / floor, "×").goal(Goal::AtMost(most)),
            // The goal is set for the largest request.
            if what.contains("5,000") || what.contains("5000") {
                spread.goal(Goal::AtMost(3.0))
            } else {
                spread
            },
        ]
    }

    /// A block of times: the extender and `serde_json` alone in turn.
    async fn block(&mut self) -> Result<()> {
        let floor = Floor::of(self.verb, &self.answer)?;
        ensure!(
            floor.write()? == self.answer,
            "serde_json alone does not write the same bytes"
        );
        for round in 0..WARM + TIMES {
            let begun = Instant::now();
            let args: Args<'_> = serde_json::from_slice(black_box(&self.request))?;
            let written = floor.write()?;
            let alone = begun.elapsed();
            black_box((&args.pod, &args.node_names, &written));
            let request = post(self.verb, self.request.clone())?;
            let router = self.router.clone();
            let begun = Instant::now();
            let response = router.oneshot(request).await?;
            let body = response.into_body().collect().await?.to_bytes();
            let served = begun.elapsed();
            black_box(body);
            if round >= WARM {
                self.floor.add(alone);
                self.served.add(served);
            }
        }
        Ok(())
    }
}

/// Times requests, in blocks that take turns.
async fn time(subjects: &mut [Subject<'_>]) -> Result<()> {
    for _ in 0..BLOCKS {
        for subject in &mut *subjects {
            subject.block().await?;
        }
    }
    Ok(())
}

/// Times one request.
async fn alone<'a>(router: &'a Router, verb: &'a str, pod: Option<usize>, candidates: usize) -> Result<Subject<'a>> {
    let mut subject = [Subject::new(router, verb, world::request(pod, candidates)).await?];
    time(&mut subject).await?;
    let [subject] = subject;
    Ok(subject)
}

fn post(verb: &str, body: Vec<u8>) -> Result<Request<Body>> {
    Ok(Request::post(format!("/{verb}")).body(Body::from(body))?)
}

async fn answer(router: &Router, verb: &str, body: Vec<u8>) -> Result<Vec<u8>> {
    let response = router.clone().oneshot(post(verb, body)?).await?;
    ensure!(
        response.status().is_success(),
        "{verb} was refused: {}",
        response.status()
    );
    let body = response.into_body().collect().await?.to_bytes().to_vec();
    Ok(body)
}

/// What any extender has to read of a request.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Args<'a> {
    #[serde(borrow)]
    pod: Pod<'a>,
    #[serde(borrow)]
    node_names: Vec<&'a str>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "read, and not used: that is what is timed")]
struct Pod<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow)]
    spec: Spec<'a>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "read, and not used: that is what is timed")]
struct Metadata<'a> {
    name: &'a str,
    namespace: &'a str,
    uid: &'a str,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "read, and not used: that is what is timed")]
struct Spec<'a> {
    #[serde(borrow, default)]
    volumes: Vec<PodVolume<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "read, and not used: that is what is timed")]
struct PodVolume<'a> {
    name: &'a str,
    #[serde(borrow)]
    persistent_volume_claim: Option<ClaimSource<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "read, and not used: that is what is timed")]
struct ClaimSource<'a> {
    claim_name: &'a str,
}

/// An answer of which nothing has to be found out any more.
enum Floor<'a> {
    Filter(FilterAnswer<'a>),
    Prioritize(Vec<Score<'a>>),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FilterAnswer<'a> {
    nodes: Option<()>,
    #[serde(borrow)]
    node_names: Vec<&'a str>,
    #[serde(borrow)]
    failed_nodes: Pairs<'a>,
    #[serde(borrow)]
    failed_and_unresolvable_nodes: Pairs<'a>,
    error: &'a str,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Score<'a> {
    host: &'a str,
    score: i64,
}

/// Nodes with reasons, in the order in which they are written.
#[derive(Deserialize)]
#[serde(from = "BTreeMap<&'a str, &'a str>")]
struct Pairs<'a>(#[serde(borrow)] Vec<(&'a str, &'a str)>);

impl<'a> From<BTreeMap<&'a str, &'a str>> for Pairs<'a> {
    fn from(pairs: BTreeMap<&'a str, &'a str>) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

impl<'a> Floor<'a> {
    fn of(verb: &str, answer: &'a [u8]) -> Result<Self> {
        Ok(match verb {
            "filter" => Self::Filter(serde_json::from_slice(answer)?),
            _ => Self::Prioritize(serde_json::from_slice(answer)?),
        })
    }

    fn write(&self) -> Result<Vec<u8>> {
        Ok(match self {
            Self::Filter(answer) => serde_json::to_vec(answer)?,
            Self::Prioritize(answer) => serde_json::to_vec(answer)?,
        })
    }
}
