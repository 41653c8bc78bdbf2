//! Seed → what is asked of the cluster and what is killed, step by step. Pure: the same seed gives the same schedule.

use crate::points::{Leads, Point};

/// Kills in one block; after each the cluster is left alone and judged.
pub const BLOCK: usize = 25;
/// Nodes, counted from 0.
pub const NODES: usize = 3;
/// Pods that run at a time, at most.
const PODS: usize = 5;
/// Volumes without a pod on each node, at most.
const LIGHT: usize = 4;

/// What a claim is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A pod with a file system of this class.
    Ext4,
    /// The same.
    Xfs,
    /// The same.
    Btrfs,
    /// A pod with a raw block device.
    Block,
    /// A pod with two claims.
    Two,
    /// A pod with a generic ephemeral volume.
    Ephemeral,
    /// A pod with a volume that outlives its claim.
    Retain,
    /// A raw volume without a pod, its node chosen by the driver as the scheduler would; written with zeros at its end.
    Raw,
    /// The same with a file system.
    Plain,
    /// A raw volume of a class with binding mode Immediate, without a pod.
    Immediate,
    /// A volume without a pod that outlives its claim.
    Kept,
    /// A pod whose claim fits nowhere.
    TooLarge,
    /// A claim that its node has to refuse.
    Reject,
}

impl Kind {
    /// Whether a pod uses it.
    pub const fn has_pod(self) -> bool {
        matches!(
            self,
            Self::Ext4
                | Self::Xfs
                | Self::Btrfs
                | Self::Block
                | Self::Two
                | Self::Ephemeral
                | Self::Retain
                | Self::TooLarge
        )
    }
}

/// A claim, with its pod where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Its number; names are made of it.
    pub number: u32,
    /// What it is for.
    pub kind: Kind,
    /// Its size in MiB.
    pub size: u32,
    /// The node that the driver chooses, where no scheduler does.
    pub node: usize,
}

/// Something that is asked of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Made.
    Create(Workload),
    /// Waited for until it has its volume, for a while.
    Settle(u32),
    /// Its pod is deleted and made again: the data must be there.
    Restart(u32),
    /// Its pod and claim are deleted.
    End(u32),
    /// Its PersistentVolume is deleted first, then the pod and claim.
    EndVolumeFirst(u32),
    /// The claim, then the retained PersistentVolume is deleted; the logical volume stays for a person.
    Forget(u32),
    /// Its claim is deleted and made again under the same name.
    Rebirth(u32),
    /// Made, and deleted this many milliseconds later.
    Fleeting(Workload, u64),
    /// Made, and deleted as soon as its logical volume is there.
    Unwanted(Workload),
    /// Made; the manager dies once the logical volume is there; deleted before it is back.
    Leftover(Workload),
    /// All that is free on a node is taken by hand.
    Fill(usize),
    /// And given back.
    Unfill(usize),
    /// A class with a volume group of its own on a node, which goes with it.
    GroupUp(usize),
    /// An administrator adds a disk to it.
    GroupGrow(usize),
    /// The class is deleted.
    GroupDown(usize),
}

/// What is killed in a step, after its operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kill {
    /// A manager, by itself, at a point between two side effects; on the node, or on whichever node comes there.
    Point(String, Option<usize>),
    /// A manager, and again at this point of its next start.
    Start(String, usize),
    /// A manager, that many milliseconds after the operations.
    Manager(usize, u64),
    /// Every extender.
    Extender,
    /// A process of the control plane, which stays down that many milliseconds.
    ApiServer(u64),
    /// The same.
    Etcd(u64),
    /// The same.
    Scheduler(u64),
    /// The same.
    ControllerManager(u64),
    /// A node's power; the manager dies at this point of its next start, where one is given.
    Power(usize, Option<String>),
}

/// Operations, and a kill in the middle of what they cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its number.
    pub number: usize,
    /// The node that it is about. The next step is about another, and does not wait for this one's kill.
    pub node: usize,
    /// What is asked.
    pub ops: Vec<Op>,
    /// What is killed.
    pub kill: Kill,
    /// Whether the cluster is left alone and judged afterwards.
    pub check: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Down,
    Up,
    Grown,
}

/// The endless schedule of a seed.
#[derive(Debug, Clone)]
pub struct Schedule {
    random: fastrand::Rng,
    points: Vec<Point>,
    /// Points not yet drawn in this round.
    round: Vec<usize>,
    /// Kills not yet drawn in this block.
    block: Vec<Draw>,
    live: Vec<Workload>,
    groups: [Group; NODES],
    filled: Option<usize>,
    next: u32,
    steps: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Draw {
    Point,
    Manager,
    Extender,
    ApiServer,
    Etcd,
    Scheduler,
    ControllerManager,
    Power,
}

impl Schedule {
    /// The schedule of a seed over these points.
    pub fn new(seed: u64, points: Vec<Point>) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            points,
            round: Vec::new(),
            block: Vec::new(),
            live: Vec::new(),
            groups: [Group::Down; NODES],
            filled: None,
            next: 0,
            steps: 0,
        }
    }

    fn draw(&mut self) -> Draw {
        if self.block.is_empty() {
            let mut block = vec![Draw::Extender, Draw::ApiServer, Draw::Etcd];
            block.extend([Draw::Scheduler, Draw::ControllerManager, Draw::Power]);
            block.extend([Draw::Manager; 5]);
            block.resize(BLOCK, Draw::Point);
            self.random.shuffle(&mut block);
            self.block = block;
        }
        self.block.pop().unwrap_or(Draw::Manager)
    }

    fn point(&mut self) -> Point {
        if self.round.is_empty() {
            self.round = (0..self.points.len()).collect();
            self.random.shuffle(&mut self.round);
        }
        let at = self.round.pop().unwrap_or_default();
        self.points[at].clone()
    }

    fn workload(&mut self, kind: Kind, node: usize) -> Workload {
        let size = match kind {
            Kind::Xfs => 304 + 16 * self.random.u32(0..4),
            Kind::Btrfs => 128 + 16 * self.random.u32(0..4),
            Kind::TooLarge | Kind::Reject => 20 << 10,
            _ => 16 + 8 * self.random.u32(0..5),
        };
        self.next += 1;
        Workload {
            number: self.next,
            kind,
            size,
            node,
        }
    }

    fn create(&mut self, kind: Kind, node: usize) -> Op {
        let workload = self.workload(kind, node);
        self.live.push(workload);
        Op::Create(workload)
    }

    /// One of the workloads that fulfil a condition, taken off the list.
    fn pick(&mut self, which: impl Fn(&Workload) -> bool) -> Option<Workload> {
        let at = self.live.iter().position(which)?;
        Some(self.live.remove(at))
    }

    fn alive(&self, which: impl Fn(&Workload) -> bool) -> usize {
        self.live.iter().filter(|workload| which(workload)).count()
    }

    /// The steady load, whatever is killed.
    fn load(&mut self) -> Vec<Op> {
        let node = self.random.usize(0..NODES);
        match self.random.u32(0..100) {
            0..50 => self.pods(),
            50..58 => match self.pick(|workload| workload.kind == Kind::TooLarge) {
                Some(workload) => vec![Op::End(workload.number)],
                None => vec![self.create(Kind::TooLarge, node)],
            },
            58..66 => match self.filled.take() {
                Some(node) => vec![Op::Unfill(node)],
                None => {
                    self.filled = Some(node);
                    vec![Op::Fill(node)]
                }
            },
            66..76 => {
                let after = self.random.u64(0..1500);
                vec![Op::Fleeting(self.workload(Kind::Raw, node), after)]
            }
            76..86 => {
                let light = self.live.iter().find(|workload| workload.kind == Kind::Raw);
                light.map(|workload| Op::Rebirth(workload.number)).into_iter().collect()
            }
            _ => match self.pick(|workload| workload.kind == Kind::Reject) {
                Some(workload) => vec![Op::End(workload.number)],
                None => Vec::new(),
            },
        }
    }

    fn pods(&mut self) -> Vec<Op> {
        let pods = |workload: &Workload| workload.kind.has_pod() && workload.kind != Kind::TooLarge;
        let running = self.alive(pods);
        if running < PODS && (running < 2 || self.random.bool()) {
            let kinds = [
                Kind::Ext4,
                Kind::Xfs,
                Kind::Btrfs,
                Kind::Block,
                Kind::Two,
                Kind::Ephemeral,
                Kind::Retain,
            ];
            let kind = kinds[self.random.usize(0..kinds.len())];
            return vec![self.create(kind, 0)];
        }
        if self.random.u32(0..3) > 0 {
            let all: Vec<u32> = self.live.iter().filter(|w| pods(w)).map(|w| w.number).collect();
            return vec![Op::Restart(all[self.random.usize(0..all.len())])];
        }
        let Some(workload) = self.pick(pods) else {
            return Vec::new();
        };
        vec![match workload.kind {
            Kind::Retain => Op::Forget(workload.number),
            Kind::Ephemeral => Op::End(workload.number),
            _ if self.random.bool() => Op::EndVolumeFirst(workload.number),
            _ => Op::End(workload.number),
        }]
    }

    /// What leads to a point on a node.
    fn provoke(&mut self, leads: Leads, node: usize) -> Vec<Op> {
        match leads {
            Leads::Any | Leads::Claim => vec![self.create(Kind::Raw, node)],
            Leads::Plain => vec![self.create(Kind::Plain, node)],
            Leads::Immediate => vec![self.create(Kind::Immediate, node)],
            Leads::Reject => {
                let mut ops = Vec::new();
                let mut workload = self.workload(Kind::Reject, node);
                if self.random.bool() {
                    // Fits on paper, until a person fills the group.
                    workload.size = 64;
                    if self.filled != Some(node) {
                        ops.extend(self.filled.take().map(Op::Unfill));
                        self.filled = Some(node);
                        ops.push(Op::Fill(node));
                    }
                }
                self.live.push(workload);
                ops.push(Op::Create(workload));
                ops
            }
            Leads::Delete => self.delete(node, |kind| matches!(kind, Kind::Raw | Kind::Plain)),
            Leads::Wiped => self.delete(node, |kind| kind == Kind::Raw),
            Leads::Forget => {
                let workload = self.workload(Kind::Kept, node);
                let number = workload.number;
                let mut ops = self.room(node);
                ops.extend([Op::Create(workload), Op::Settle(number), Op::Forget(number)]);
                ops
            }
            Leads::Leftover => {
                let mut ops = self.room(node);
                ops.push(Op::Leftover(self.workload(Kind::Raw, node)));
                ops
            }
            Leads::Unwanted => {
                let mut ops = self.room(node);
                let mut workload = self.workload(Kind::Raw, node);
                workload.size = 512;
                ops.push(Op::Unwanted(workload));
                ops
            }
            Leads::GroupUp | Leads::GroupGrow | Leads::GroupDown => self.group(leads, node),
            Leads::Power => Vec::new(),
        }
    }

    /// Nothing that was filled by hand is in the way.
    fn room(&mut self, node: usize) -> Vec<Op> {
        if self.filled == Some(node) {
            self.filled = None;
            return vec![Op::Unfill(node)];
        }
        Vec::new()
    }

    fn delete(&mut self, node: usize, of: fn(Kind) -> bool) -> Vec<Op> {
        let here = |workload: &Workload| workload.node == node && of(workload.kind);
        let mut ops = self.room(node);
        let number = match self.pick(here) {
            Some(workload) => workload.number,
            None => {
                let workload = self.workload(Kind::Raw, node);
                ops.push(Op::Create(workload));
                workload.number
            }
        };
        ops.push(Op::Settle(number));
        ops.push(if self.random.u32(0..3) == 0 {
            Op::EndVolumeFirst(number)
        } else {
            Op::End(number)
        });
        ops
    }

    fn group(&mut self, leads: Leads, node: usize) -> Vec<Op> {
        let mut ops = Vec::new();
        let state = self.groups[node];
        match (leads, state) {
            (Leads::GroupUp, Group::Up | Group::Grown) | (Leads::GroupGrow, Group::Grown) => {
                ops.push(Op::GroupDown(node));
            }
            _ => {}
        }
        if leads == Leads::GroupUp || state == Group::Down || !ops.is_empty() {
            ops.push(Op::GroupUp(node));
        }
        self.groups[node] = Group::Up;
        match leads {
            Leads::GroupGrow => {
                ops.push(Op::GroupGrow(node));
                self.groups[node] = Group::Grown;
            }
            Leads::GroupDown => {
                ops.push(Op::GroupDown(node));
                self.groups[node] = Group::Down;
            }
            _ => {}
        }
        ops
    }

    fn down(&mut self) -> u64 {
        self.random.u64(0..2500)
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let number = self.steps;
        self.steps += 1;
        // Another node each time: while one manager starts again, the next is at work.
        let node = number % NODES;
        let mut ops = self.load();
        let (kill, leads) = match self.draw() {
            Draw::Point => {
                let point = self.point();
                match point.leads {
                    Leads::Power => (Kill::Power(node, Some(point.name)), Leads::Power),
                    Leads::Any => (Kill::Start(point.name, node), Leads::Any),
                    // Whichever node is quickest takes it.
                    Leads::Immediate => (Kill::Point(point.name, None), Leads::Immediate),
                    leads => (Kill::Point(point.name, Some(node)), leads),
                }
            }
            Draw::Manager => {
                let all = [Leads::Claim, Leads::Plain, Leads::Delete, Leads::Reject, Leads::GroupUp];
                let leads = all[self.random.usize(0..all.len())];
                (Kill::Manager(node, self.random.u64(0..1500)), leads)
            }
            Draw::Extender => (Kill::Extender, Leads::Claim),
            Draw::ApiServer => (Kill::ApiServer(self.down()), Leads::Claim),
            Draw::Etcd => (Kill::Etcd(self.down()), Leads::Delete),
            Draw::Scheduler => (Kill::Scheduler(self.down()), Leads::Delete),
            Draw::ControllerManager => (Kill::ControllerManager(self.down()), Leads::Claim),
            Draw::Power => (Kill::Power(node, None), Leads::Delete),
        };
        if matches!(leads, Leads::Claim | Leads::Plain | Leads::Any) {
            ops.extend(self.room(node));
            let here = |workload: &Workload| workload.node == node && matches!(workload.kind, Kind::Raw | Kind::Plain);
            if self.alive(here) >= LIGHT
                && let Some(old) = self.pick(here)
            {
                ops.push(Op::End(old.number));
            }
        }
        for kind in [Kind::Immediate, Kind::Reject] {
            if self.alive(|workload| workload.kind == kind) > 3
                && let Some(old) = self.pick(|workload| workload.kind == kind)
            {
                ops.push(Op::End(old.number));
            }
        }
        ops.extend(self.provoke(leads, node));
        Some(Step {
            number,
            node,
            ops,
            kill,
            check: self.block.is_empty(),
        })
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
