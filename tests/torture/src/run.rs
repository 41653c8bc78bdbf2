//! A run: load and kills, step by step; at the end of each block the cluster is left alone, and judged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use quarry_e2e::bed::Bed;
use quarry_e2e::test::Test;

use crate::checker::{self, Finding};
use crate::hostile::{self, Act, Hostile};
use crate::kills::Kills;
use crate::load::Load;
use crate::report::Report;
use crate::schedule::{NODES, Op, Schedule, Step};
use crate::{observe, points, prove};

/// The feature of the manager that has the points.
const FEATURE: &str = "quarry-manager/crash-points";

/// Where it is said for how long volumes are gathered to be marked: a kill waits for that.
const READY_WITHIN: &str = "QUARRY_READY_WITHIN";
/// After this without rest, what the cluster says of it is printed.
const LONG: Duration = Duration::from_secs(25);
/// So many of its last events are.
const TOLD: usize = 12;

/// Kills everything at every moment, under load, and shows that nothing is lost.
#[derive(Debug, Clone, Parser)]
pub struct Args {
    /// How many kills.
    #[arg(long, env = "KILLS", default_value_t = 25)]
    pub kills: usize,
    /// Which schedule; another one each time where none is given.
    #[arg(long, env = "SEED")]
    pub seed: Option<u64>,
    /// Seconds within which the cluster has to come to rest once it is left alone.
    #[arg(long, env = "REST", default_value_t = 240)]
    pub rest: u64,
    /// What a hostile tenant does beside: none, or some of lvm, snapshots, drops, hangs, with commas between.
    #[arg(long, env = "HOSTILE", default_value = "lvm,snapshots,drops,hangs")]
    pub hostile: String,
}

/// Runs; the closing report.
///
/// # Errors
/// The cluster could not be brought up, or could not be reached any more.
pub async fn run(args: &Args) -> Result<Report> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = args.seed.unwrap_or(now.as_secs());
    println!(
        "torture: make torture SEED={seed} KILLS={} HOSTILE={}",
        args.kills, args.hostile
    );
    let acts = hostile::acts(&args.hostile)?;
    let bed = Bed::up_with(&[FEATURE]).await?;
    bed.manager_settings(&[(READY_WITHIN, Some("2s"))]).await?;
    let test = Arc::new(Test::new(bed, "torture"));
    test.begin().await?;
    let mut run = Run::begin(test.clone(), seed, args, acts).await?;
    let result = run.go(args).await;
    let mut report = run.report(seed, args);
    match result {
        Ok(findings) => report.findings = findings,
        Err(error) => {
            println!("{}", report.text());
            return Err(error);
        }
    }
    if !report.findings.is_empty() {
        println!("{}", test.tell().await);
        if std::env::var_os("QUARRY_KEEP").is_some() {
            return Ok(report);
        }
    }
    hostile::unguard(&run.load).await?;
    test.bed.manager_settings(&[(READY_WITHIN, None)]).await?;
    test.end().await.context("cleaning up")?;
    Ok(report)
}

struct Run {
    load: Load,
    kills: Kills,
    hostile: Hostile,
    begun: Instant,
    rest: Duration,
}

impl Run {
    async fn begin(test: Arc<Test>, seed: u64, args: &Args, acts: Vec<Act>) -> Result<Self> {
        let load = Load::new(test, seed);
        load.classes().await?;
        Ok(Self {
            kills: Kills::new(load.clone()),
            hostile: Hostile::begin(load.clone(), acts).await?,
            load,
            begun: Instant::now(),
            rest: Duration::from_secs(args.rest),
        })
    }

    async fn go(&mut self, args: &Args) -> Result<Vec<Finding>> {
        let writer = tokio::spawn(prove::keep_writing(self.load.clone()));
        let schedule = Schedule::new(self.load.book().seed, points::all()?);
        // Whoever interrupts a long run is told what was found so far.
        let interrupted = Arc::new(AtomicBool::new(false));
        let told = interrupted.clone();
        let listener = tokio::spawn(async move {
            let heard = tokio::signal::ctrl_c().await.is_ok();
            told.store(heard, Ordering::Relaxed);
        });
        for step in schedule {
            self.step(&step)
                .await
                .with_context(|| format!("step {}", step.number))?;
            let enough = self.kills.total() >= args.kills || interrupted.load(Ordering::Relaxed);
            if step.check || enough {
                for node in 0..NODES {
                    self.kills.turn(node).await?;
                }
                let findings = self.come_to_rest().await?;
                if !findings.is_empty() {
                    writer.abort();
                    return Ok(findings);
                }
            }
            if enough {
                break;
            }
        }
        listener.abort();
        println!("torture: everything is deleted");
        self.hostile.end().await?;
        self.load.end_all().await?;
        let findings = self.come_to_rest().await?;
        writer.abort();
        Ok(findings)
    }

    async fn step(&mut self, step: &Step) -> Result<()> {
        let begun = Instant::now();
        self.kills.turn(step.node).await?;
        let waited = begun.elapsed();
        if let Some(done) = self.hostile.act(step.node).await? {
            println!("torture: hostile: {done}");
        }
        self.kills.prepare(&step.kill, step.node).await?;
        for op in &step.ops {
            match op {
                Op::Leftover(workload) => self.kills.leftover(*workload).await?,
                op => self.load.perform(*op).await.with_context(|| format!("{op:?}"))?,
            }
        }
        let asked = begun.elapsed() - waited;
        let killed = self.kills.perform(&step.kill).await?;
        println!(
            "torture: {:>6.1} s, step {}, {} kills: {killed} (waited {:.1} s, {} operations {:.1} s, kill {:.1} s)",
            self.begun.elapsed().as_secs_f64(),
            step.number,
            self.kills.total(),
            waited.as_secs_f64(),
            step.ops.len(),
            asked.as_secs_f64(),
            (begun.elapsed() - waited - asked).as_secs_f64()
        );
        Ok(())
    }

    /// Leaves the cluster alone until everything is in its final state; what is not is a finding.
    async fn come_to_rest(&mut self) -> Result<Vec<Finding>> {
        let begun = Instant::now();
        self.kills.disarm_all().await?;
        self.hostile.rest().await?;
        let filled = self.load.book().filled;
        if let Some(node) = filled {
            self.load.unfill(node).await?;
        }
        let mut last = None;
        let mut told = false;
        let findings = loop {
            let findings = self.look().await;
            if let Ok(findings) = &findings {
                last = findings.first().map(ToString::to_string).or(last);
            }
            let late = begun.elapsed() > self.rest;
            if begun.elapsed() > LONG && !told {
                told = true;
                self.tell(last.as_deref()).await;
            }
            match findings {
                Ok(findings) if findings.is_empty() || late => break findings,
                Err(error) if late => return Err(error),
                _ => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        };
        let foreign = self.hostile.findings().await?;
        if !findings.is_empty() || !foreign.is_empty() {
            return Ok([findings, foreign].concat());
        }
        // Each raw volume is proved once more, now that all is quiet.
        prove::raw_volumes(&self.load, false).await?;
        prove::raw_volumes(&self.load, true).await?;
        let seen = observe::look(&self.load.test).await?;
        let findings = checker::at_any_time(&self.load.book(), &seen);
        let book = self.load.book();
        let served: Vec<_> = book.served().flat_map(|entry| &entry.claims).collect();
        println!(
            "torture: at rest after {:.1} s: {} claims served, data of {} proved",
            begun.elapsed().as_secs_f64(),
            served.len(),
            served.iter().filter(|claim| claim.word.is_some()).count()
        );
        if let Some(last) = last {
            println!("torture: what took longest was {last}");
        }
        Ok(findings)
    }

    /// Says what the cluster waits for, in its own words.
    async fn tell(&self, last: Option<&str>) {
        println!("torture: not at rest yet: {}", last.unwrap_or("nobody answers"));
        let events: Api<Event> = Api::namespaced(self.load.test.client(), &self.load.test.name);
        let Ok(events) = events.list(&ListParams::default()).await else {
            return;
        };
        let mut events = events.items;
        events.retain(|event| event.type_.as_deref() == Some("Warning"));
        events.sort_by_key(|event| {
            event
                .metadata
                .resource_version
                .as_deref()
                .and_then(|at| at.parse::<u64>().ok())
        });
        for event in events.iter().rev().take(TOLD) {
            println!(
                "torture:   {} {}: {}: {}",
                event.involved_object.kind.as_deref().unwrap_or_default(),
                event.involved_object.name.as_deref().unwrap_or_default(),
                event.reason.as_deref().unwrap_or_default(),
                event.message.as_deref().unwrap_or_default()
            );
        }
    }

    async fn look(&self) -> Result<Vec<Finding>> {
        self.load.choose_again().await?;
        let seen = observe::look(&self.load.test).await?;
        prove::learn(&self.load, &seen);
        prove::remove_forgotten(&self.load, &seen).await?;
        Ok(checker::judge(&self.load.book(), &seen))
    }

    fn report(&self, seed: u64, args: &Args) -> Report {
        let points = points::all().unwrap_or_default();
        let count = |name: String| (name.clone(), self.kills.reached.get(&name).copied().unwrap_or(0));
        Report {
            seed,
            asked: args.kills,
            kills: self.kills.counted.clone(),
            hostile: self.hostile.counted.clone(),
            points: points.into_iter().map(|point| count(point.name)).collect(),
            claims: self.load.book().claims,
            findings: Vec::new(),
            took: self.begun.elapsed(),
        }
    }
}
