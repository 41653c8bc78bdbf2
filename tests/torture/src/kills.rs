//! What is killed, how, and how often.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use quarry_bed::{Boot, Process};

use crate::hostile::guard;
use crate::load::{Load, insist, node_name};
use crate::schedule::{Kill, NODES, Workload};

/// Where the manager of the test build looks for armed points.
const ARMED: &str = "/run/lvm";
const PREFIX: &str = "quarry-crash-";
/// How long the next step on the same node waits for a point; it stays armed afterwards.
const REACHED_WITHIN: Duration = Duration::from_secs(8);
/// The same where the manager has to start first.
const STARTED_WITHIN: Duration = Duration::from_secs(20);

/// A point that a step is to lead to, while the next ones are at work on other nodes.
struct Awaited {
    point: String,
    /// Where it is armed.
    at: Vec<usize>,
    /// The node that the next step leaves alone until then.
    node: usize,
    until: Instant,
}

/// The kills of a run.
pub struct Kills {
    load: Load,
    /// Points that are armed, each on a node.
    armed: Vec<(String, usize)>,
    awaited: Vec<Awaited>,
    /// How often each point was the last thing that a manager reached.
    pub reached: BTreeMap<String, usize>,
    /// How often what was killed.
    pub counted: BTreeMap<&'static str, usize>,
}

fn file(point: &str) -> String {
    format!("{ARMED}/{PREFIX}{point}")
}

impl Kills {
    /// None yet.
    #[must_use]
    pub fn new(load: Load) -> Self {
        Self {
            load,
            armed: Vec::new(),
            awaited: Vec::new(),
            reached: BTreeMap::new(),
            counted: BTreeMap::new(),
        }
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> usize {
        self.counted.values().sum()
    }

    fn count(&mut self, what: &'static str) {
        *self.counted.entry(what).or_default() += 1;
    }

    /// Does what has to be done before the operations of a step.
    ///
    /// # Errors
    /// A node does not answer.
    pub async fn prepare(&mut self, kill: &Kill, step_node: usize) -> Result<()> {
        if let Kill::Point(point, node) = kill {
            let at: Vec<usize> = (0..NODES).filter(|at| node.is_none_or(|node| node == *at)).collect();
            for node in &at {
                self.arm(point, *node).await?;
            }
            self.await_later(point, at, step_node, REACHED_WITHIN);
        }
        Ok(())
    }

    /// Waits until what earlier steps are to lead to on a node was reached, for as long as each waits.
    ///
    /// # Errors
    /// A node does not answer.
    pub async fn turn(&mut self, node: usize) -> Result<()> {
        loop {
            self.poll().await?;
            let now = Instant::now();
            self.awaited.retain(|awaited| awaited.until > now);
            if !self.awaited.iter().any(|awaited| awaited.node == node) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn await_later(&mut self, point: &str, at: Vec<usize>, node: usize, patience: Duration) {
        self.awaited.push(Awaited {
            point: point.to_owned(),
            at,
            node,
            until: Instant::now() + patience,
        });
    }

    /// Kills.
    ///
    /// # Errors
    /// What was killed could not be started again.
    pub async fn perform(&mut self, kill: &Kill) -> Result<String> {
        Ok(match kill {
            Kill::Point(point, _) => format!("the manager that comes to {point}"),
            Kill::Start(point, node) => {
                self.arm(point, *node).await?;
                self.manager(*node).await?;
                self.await_later(point, vec![*node], *node, STARTED_WITHIN);
                format!("manager of {}, and again at {point}", node_name(*node))
            }
            Kill::Manager(node, after) => {
                tokio::time::sleep(Duration::from_millis(*after)).await;
                self.manager(*node).await?;
                format!("manager of {}", node_name(*node))
            }
            Kill::Extender => {
                for node in 0..NODES {
                    self.signal(node, "quarry-extender").await?;
                }
                self.count("extender");
                "every extender".to_owned()
            }
            Kill::ApiServer(down) => self.process(Process::ApiServer, "apiserver", *down).await?,
            Kill::Etcd(down) => self.process(Process::Etcd, "etcd", *down).await?,
            Kill::Scheduler(down) => self.process(Process::Scheduler, "scheduler", *down).await?,
            Kill::ControllerManager(down) => {
                self.process(Process::ControllerManager, "controller-manager", *down)
                    .await?
            }
            Kill::Power(node, point) => self.power(*node, point.as_deref()).await?,
        })
    }

    /// Makes a claim, lets its manager die once the logical volume is there, and deletes the claim before it is back.
    ///
    /// # Errors
    /// The cluster refuses it for good.
    pub async fn leftover(&mut self, workload: Workload) -> Result<()> {
        let point = "claim-after-lvcreate";
        self.arm(point, workload.node).await?;
        self.load.perform(crate::schedule::Op::Leftover(workload)).await?;
        let deadline = Instant::now() + REACHED_WITHIN;
        let is_armed = |kills: &Self| {
            kills
                .armed
                .iter()
                .any(|(armed, at)| armed == point && *at == workload.node)
        };
        while is_armed(self) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.poll().await?;
        }
        self.load.perform(crate::schedule::Op::End(workload.number)).await
    }

    async fn arm(&mut self, point: &str, node: usize) -> Result<()> {
        let bed = &self.load.test.bed;
        let at = bed.node(&node_name(node))?;
        insist("arming", || async { Ok(at.run_ok(["touch", &file(point)]).await?) }).await?;
        if !self.armed.iter().any(|(armed, at)| armed == point && *at == node) {
            self.armed.push((point.to_owned(), node));
        }
        Ok(())
    }

    /// Counts the points that were reached since; where one of several was to be, the others are disarmed.
    ///
    /// # Errors
    /// A node does not answer.
    pub async fn poll(&mut self) -> Result<()> {
        let mut others = Vec::new();
        for (point, node) in self.fired().await? {
            println!("torture: manager of {} died at {point}", node_name(node));
            let of = |awaited: &Awaited| awaited.point == point && awaited.at.contains(&node);
            if let Some(at) = self.awaited.iter().position(of) {
                let awaited = self.awaited.remove(at);
                others.extend(
                    awaited
                        .at
                        .into_iter()
                        .filter(|at| *at != node)
                        .map(|at| (point.clone(), at)),
                );
            }
        }
        self.disarm(others).await
    }

    /// The points that were reached since the last look, counted.
    async fn fired(&mut self) -> Result<Vec<(String, usize)>> {
        let mut fired = Vec::new();
        for node in 0..NODES {
            if !self.armed.iter().any(|(_, at)| *at == node) {
                continue;
            }
            let at = self.load.test.bed.node(&node_name(node))?;
            let there = insist("what is armed", || async { Ok(at.run_ok(["ls", ARMED]).await?) }).await?;
            let gone = |point: &str| !there.lines().any(|line| line == format!("{PREFIX}{point}"));
            fired.extend(
                self.armed
                    .iter()
                    .filter(|(point, at)| *at == node && gone(point))
                    .cloned(),
            );
        }
        self.armed.retain(|armed| !fired.contains(armed));
        for (point, _) in &fired {
            *self.reached.entry(point.clone()).or_default() += 1;
            self.count("manager at a point");
        }
        Ok(fired)
    }

    /// Disarms every point on every node.
    ///
    /// # Errors
    /// A node does not answer.
    pub async fn disarm_all(&mut self) -> Result<()> {
        self.serve().await?;
        self.awaited.clear();
        self.disarm(self.armed.clone()).await?;
        self.fired().await.map(drop)
    }

    async fn disarm(&mut self, points: Vec<(String, usize)>) -> Result<()> {
        for (point, node) in points {
            let at = self.load.test.bed.node(&node_name(node))?;
            let removed = insist("disarming", || async { Ok(at.run(["rm", &file(&point)]).await?) }).await?;
            // Whoever removes the file has it: this, or the manager that died.
            if removed.success() {
                self.armed.retain(|armed| *armed != (point.clone(), node));
            }
        }
        Ok(())
    }

    /// Kills a manager, waiting for one that is only just being started.
    async fn manager(&mut self, node: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline {
            if self.signal(node, "quarry-manager").await? {
                self.count("manager");
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Kills every process of a name in a node; whether there was one.
    async fn signal(&self, node: usize, name: &str) -> Result<bool> {
        let at = self.load.test.bed.node(&node_name(node))?;
        let killed = insist(name, || async { Ok(at.run(["pkill", "-KILL", "-x", name]).await?) }).await?;
        Ok(killed.success())
    }

    async fn process(&mut self, process: Process, name: &'static str, down: u64) -> Result<String> {
        let cluster = &self.load.test.bed.cluster;
        cluster.kill(process).await?;
        tokio::time::sleep(Duration::from_millis(down)).await;
        self.serve().await?;
        self.count(name);
        Ok(format!("{name}, down for {down} ms"))
    }

    /// Starts whatever of the control plane does not run: kube-controller-manager and kube-scheduler end by themselves where
    /// kube-apiserver is away when they start, and elsewhere kubelet starts them again.
    async fn serve(&self) -> Result<()> {
        let cluster = &self.load.test.bed.cluster;
        for process in Process::ALL {
            insist(process.program(), || async { Ok(cluster.start(process).await?) }).await?;
        }
        Ok(())
    }

    async fn power(&mut self, node: usize, point: Option<&str>) -> Result<String> {
        self.poll().await?;
        let machine = self.load.test.bed.node(&node_name(node))?;
        machine.kill().await?;
        self.count("node");
        // What was armed there went with its memory.
        self.armed.retain(|(_, at)| *at != node);
        self.awaited.retain(|awaited| awaited.at != [node]);
        let arming = async {
            let Some(point) = point else { return };
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(60) {
                let made = machine
                    .run(["mkdir", "-p", ARMED])
                    .await
                    .is_ok_and(|made| made.success());
                let path = file(point);
                if made && machine.run(["touch", &path]).await.is_ok_and(|made| made.success()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let (booted, ()) = tokio::join!(machine.boot(Boot::default()), arming);
        booted?;
        guard(&self.load, node).await?;
        let Some(point) = point else {
            return Ok(format!("power of {}", node_name(node)));
        };
        self.armed.push((point.to_owned(), node));
        self.await_later(point, vec![node], node, STARTED_WITHIN);
        Ok(format!("power of {}, then its manager at {point}", node_name(node)))
    }
}
