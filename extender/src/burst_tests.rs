//! Bursts: the model of a scheduler that picks any node we pass and writes its choice later, while our watches lag.
//!
//! The model knows the truth that the API server holds; the index sees it late, each kind of object in its own time.
//! Whatever happens, no volume group is ever promised beyond its size, and once all is seen every pod with room is placed.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use proptest::prelude::*;

use crate::answered::Answered;
use crate::api::Pod;
use crate::decide::{Answer, Doubt, Patience, Verdict, filter};
use crate::index::Index;
use crate::testing::{Put, bound, filled, mk_claim, mk_class, mk_pod, mk_storage, mk_volume, names, selected};

/// The class of a claim, and its size in extents.
type Wish = (usize, u64);

/// Classes 0 and 1 share a volume group, class 2 has one of its own.
const GROUPS: [&str; 3] = ["shared", "shared", "own"];

#[derive(Debug, Clone)]
struct Setup {
    /// Size in extents of the two groups of each node.
    nodes: Vec<(u64, u64)>,
    /// The claims of each pod.
    pods: Vec<Vec<Wish>>,
}

/// Something that happens; the number chooses among what can happen.
#[derive(Debug, Clone)]
enum Step {
    /// The scheduler takes the next pod from its queue.
    Schedule(usize),
    /// It writes its choice on one more claim of a pod on its way.
    Write(usize),
    /// It gives up on a pod on its way, whatever it has written.
    GiveUp(usize),
    /// The manager of a node makes a volume.
    Provision(usize),
    /// The manager of a node could not, and withdraws the selection.
    Withdraw(usize),
    /// A pod and its claims are deleted, and its volumes in due time.
    Delete(usize),
    /// A watch shows one more event.
    Deliver(usize),
}

#[derive(Debug, Clone)]
enum Event {
    /// The flag says that it is gone.
    Claim(Box<PersistentVolumeClaim>, bool),
    Volume(Box<PersistentVolume>, bool),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Where {
    Queued,
    /// Answered and chosen; its claims are being written.
    OnItsWay(usize),
    Placed,
    Deleted,
}

#[derive(Debug, Clone)]
struct Wanted {
    name: String,
    wish: Wish,
    node: Option<usize>,
    volume: bool,
}

struct Model {
    setup: Setup,
    index: Index,
    answered: Answered,
    now: Instant,
    patience: Patience,
    pods: Vec<(Pod<'static>, Vec<Wanted>, Where)>,
    /// What the watches have yet to show: claims, volumes.
    late: [VecDeque<Event>; 2],
}

impl Model {
    fn new(setup: Setup) -> Self {
        let mut index = filled();
        for class in 0..GROUPS.len() {
            mk_class(&format!("c{class}")).put(&mut index);
        }
        for (at, (shared, own)) in setup.nodes.iter().enumerate() {
            for (class, group) in GROUPS.iter().enumerate() {
                let size = if *group == "own" { *own } else { *shared };
                mk_storage(&format!("c{class}"), &format!("n{at}"), group, size, 0).put(&mut index);
            }
        }
        let mut late = [VecDeque::new(), VecDeque::new()];
        let mut pods = Vec::new();
        for (at, wishes) in setup.pods.iter().enumerate() {
            let wanted: Vec<_> = wishes
                .iter()
                .enumerate()
                .map(|(number, wish)| Wanted {
                    name: format!("p{at}-{number}"),
                    wish: *wish,
                    node: None,
                    volume: false,
                })
                .collect();
            let claims: Vec<_> = wanted.iter().map(|wanted| wanted.name.as_str()).collect();
            pods.push((mk_pod(&format!("p{at}"), &claims), wanted.clone(), Where::Queued));
            late[0].extend(
                wanted
                    .iter()
                    .map(|wanted| Event::Claim(Box::new(wanted.claim()), false)),
            );
        }
        Self {
            setup,
            index,
            answered: Answered::default(),
            now: Instant::now(),
            patience: Patience {
                remembered: Duration::from_secs(60),
                forgiven: Duration::from_secs(60),
                ..Default::default()
            },
            pods,
            late,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Schedule(pick) => self.schedule(pick),
            Step::Write(pick) => self.write(pick),
            Step::GiveUp(pick) => {
                let on_their_way = self.pods_that(|_, state| matches!(state, Where::OnItsWay(_)));
                if let Some(pod) = choose(&on_their_way, pick) {
                    self.pods[pod].2 = Where::Queued;
                }
            }
            Step::Provision(pick) => {
                let open = self.claims_that(|claim| claim.node.is_some() && !claim.volume);
                if let Some((pod, claim)) = choose(&open, pick) {
                    let wanted = &mut self.pods[pod].1[claim];
                    wanted.volume = true;
                    let (volume, claim) = (wanted.pv(), bound(wanted.claim()));
                    self.late[1].push_back(Event::Volume(Box::new(volume), false));
                    self.late[0].push_back(Event::Claim(Box::new(claim), false));
                }
            }
            Step::Withdraw(pick) => {
                let open = self.claims_that(|claim| claim.node.is_some() && !claim.volume);
                if let Some((pod, claim)) = choose(&open, pick) {
                    // It took the manager a command and an API call, and the scheduler takes a second before the next
                    // attempt: by then our watch has seen the selection, if not its withdrawal.
                    while !self.late[0].is_empty() {
                        self.deliver(0);
                    }
                    self.pods[pod].1[claim].node = None;
                    self.pods[pod].2 = Where::Queued;
                    let claim = self.pods[pod].1[claim].claim();
                    self.late[0].push_back(Event::Claim(Box::new(claim), false));
                }
            }
            Step::Delete(pick) => {
                let placed =
                    self.pods_that(|claims, state| *state == Where::Placed && claims.iter().all(|claim| claim.volume));
                if let Some(pod) = choose(&placed, pick) {
                    for wanted in std::mem::take(&mut self.pods[pod].1) {
                        self.late[0].push_back(Event::Claim(Box::new(wanted.claim()), true));
                        self.late[1].push_back(Event::Volume(Box::new(wanted.pv()), true));
                    }
                    self.pods[pod].2 = Where::Deleted;
                }
            }
            Step::Deliver(pick) => self.deliver(pick),
        }
    }

    fn schedule(&mut self, pick: usize) {
        let queued = self.pods_that(|_, state| *state == Where::Queued);
        let Some(pod) = choose(&queued, pick) else {
            return;
        };
        // kube-scheduler sees the truth: a claim with a selection leaves only its node.
        let pinned = self.pods[pod].1.iter().find_map(|claim| claim.node);
        let candidates: Vec<_> = (0..self.setup.nodes.len())
            .filter(|node| pinned.is_none_or(|pinned| pinned == *node))
            .collect();
        let mut waited = Duration::ZERO;
        // What comes while an answer waits is as much chance as everything else.
        for turn in 0.. {
            match self.ask(pod, &candidates, waited) {
                Verdict::Answer(Answer::Some { passed, .. }) if !passed.is_empty() => {
                    let chosen = candidates[passed[pick % passed.len()]];
                    self.pods[pod].2 = Where::OnItsWay(chosen);
                    return;
                }
                Verdict::Answer(_) => return,
                Verdict::Wait(..) if pick.is_multiple_of(3) || turn > 5 => waited += self.patience.crowd,
                Verdict::Wait(_, time) => {
                    waited += time.min(Duration::from_millis(20));
                    self.deliver(pick + turn);
                    self.write(pick + turn);
                }
            }
        }
    }

    fn ask(&mut self, pod: usize, candidates: &[usize], waited: Duration) -> Verdict {
        let nodes: Vec<_> = candidates.iter().map(|node| format!("n{node}")).collect();
        let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
        filter(
            &self.index,
            &mut self.answered,
            &self.pods[pod].0,
            &names(&nodes),
            &self.patience,
            self.now,
            waited,
        )
    }

    /// The scheduler writes the claims of a pod one after the other.
    fn write(&mut self, pick: usize) {
        let on_their_way = self.pods_that(|_, state| matches!(state, Where::OnItsWay(_)));
        let Some(pod) = choose(&on_their_way, pick) else {
            return;
        };
        let (_, claims, state) = &mut self.pods[pod];
        let Where::OnItsWay(node) = *state else {
            return;
        };
        if let Some(claim) = claims.iter_mut().find(|claim| claim.node.is_none()) {
            claim.node = Some(node);
            self.late[0].push_back(Event::Claim(Box::new(claim.claim()), false));
        }
        if claims.iter().all(|claim| claim.node.is_some()) {
            *state = Where::Placed;
        }
    }

    fn deliver(&mut self, pick: usize) {
        match self.late[pick % 2].pop_front() {
            Some(Event::Claim(claim, false)) => claim.put(&mut self.index),
            Some(Event::Claim(claim, true)) => claim.take(&mut self.index),
            Some(Event::Volume(volume, false)) => volume.put(&mut self.index),
            Some(Event::Volume(volume, true)) => volume.take(&mut self.index),
            None => false,
        };
    }

    fn pods_that(&self, holds: impl Fn(&[Wanted], &Where) -> bool) -> Vec<usize> {
        let pods = self.pods.iter().enumerate();
        pods.filter(|(_, (_, claims, state))| holds(claims, state))
            .map(|(at, _)| at)
            .collect()
    }

    fn claims_that(&self, holds: impl Fn(&Wanted) -> bool) -> Vec<(usize, usize)> {
        let pods = self.pods.iter().enumerate();
        pods.flat_map(|(pod, (_, claims, _))| (0..claims.len()).map(move |claim| (pod, claim)))
            .filter(|(pod, claim)| holds(&self.pods[*pod].1[*claim]))
            .collect()
    }

    /// What is truly taken, by node and group.
    fn taken(&self) -> BTreeMap<(usize, &'static str), u64> {
        let mut taken = BTreeMap::new();
        for claim in self.pods.iter().flat_map(|(_, claims, _)| claims) {
            if let Some(node) = claim.node {
                *taken.entry((node, GROUPS[claim.wish.0])).or_default() += claim.wish.1;
            }
        }
        taken
    }

    fn size(&self, node: usize, group: &str) -> u64 {
        let (shared, own) = self.setup.nodes[node];
        if group == "own" { own } else { shared }
    }

    fn overcommitted(&self) -> Option<String> {
        let taken = self.taken();
        let over = taken
            .iter()
            .find(|((node, group), taken)| **taken > self.size(*node, group));
        over.map(|((node, group), taken)| format!("{taken} of {} on n{node} in {group}", self.size(*node, group)))
    }

    /// Lets everything under way come to its end, and says which nodes truly have room for a pod.
    fn settle(&mut self) {
        while !self
            .pods_that(|_, state| matches!(state, Where::OnItsWay(_)))
            .is_empty()
        {
            self.write(0);
        }
        while self.late.iter().any(|queue| !queue.is_empty()) {
            self.deliver(0);
            self.deliver(1);
        }
        // Attempts that were given up are forgotten in time.
        self.now += self.patience.remembered;
    }

    fn room_for(&self, pod: usize) -> Vec<usize> {
        let claims = &self.pods[pod].1;
        let taken = self.taken();
        let pinned = claims.iter().find_map(|claim| claim.node);
        (0..self.setup.nodes.len())
            .filter(|node| pinned.is_none_or(|pinned| pinned == *node))
            .filter(|node| {
                GROUPS.iter().all(|group| {
                    let asked = claims
                        .iter()
                        .filter(|claim| claim.node.is_none() && GROUPS[claim.wish.0] == *group);
                    let asked: u64 = asked.map(|claim| claim.wish.1).sum();
                    asked == 0 || asked + taken.get(&(*node, *group)).unwrap_or(&0) <= self.size(*node, group)
                })
            })
            .collect()
    }
}

impl Wanted {
    fn claim(&self) -> PersistentVolumeClaim {
        let claim = mk_claim(&self.name, &format!("c{}", self.wish.0), self.wish.1);
        match self.node {
            Some(node) => selected(claim, &format!("n{node}")),
            None => claim,
        }
    }

    fn pv(&self) -> PersistentVolume {
        let node = self.node.map(|node| format!("n{node}")).unwrap_or_default();
        mk_volume(&self.name, &node, GROUPS[self.wish.0], self.wish.1)
    }
}

fn choose<T: Copy>(among: &[T], pick: usize) -> Option<T> {
    (!among.is_empty()).then(|| among[pick % among.len()])
}

fn setup() -> impl Strategy<Value = Setup> {
    let wish = (0..GROUPS.len(), 1..8_u64);
    (
        prop::collection::vec((4..20_u64, 4..20_u64), 1..5),
        prop::collection::vec(prop::collection::vec(wish, 1..4), 1..10),
    )
        .prop_map(|(nodes, pods)| Setup { nodes, pods })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<usize>().prop_map(|pick| Step::Schedule(pick >> 1)),
        4 => any::<usize>().prop_map(|pick| Step::Write(pick >> 1)),
        1 => any::<usize>().prop_map(|pick| Step::GiveUp(pick >> 1)),
        2 => any::<usize>().prop_map(|pick| Step::Provision(pick >> 1)),
        1 => any::<usize>().prop_map(|pick| Step::Withdraw(pick >> 1)),
        1 => any::<usize>().prop_map(|pick| Step::Delete(pick >> 1)),
        6 => any::<usize>().prop_map(|pick| Step::Deliver(pick >> 1)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_burst_never_overcommits_and_never_stalls(setup in setup(), steps in prop::collection::vec(step(), 1..150)) {
        let mut model = Model::new(setup);
        for step in &steps {
            model.step(step);
            prop_assert_eq!(model.overcommitted(), None, "after {:?}", step);
        }
        model.settle();
        prop_assert_eq!(model.overcommitted(), None);
        for pod in model.pods_that(|_, state| *state == Where::Queued) {
            let room = model.room_for(pod);
            let pinned = model.pods[pod].1.iter().find_map(|claim| claim.node);
            let candidates: Vec<_> = match pinned {
                Some(node) => vec![node],
                None => (0..model.setup.nodes.len()).collect(),
            };
            let verdict = model.ask(pod, &candidates, Duration::ZERO);
            let Verdict::Answer(Answer::Some { passed, .. }) = verdict else {
                // All claims of a pod that was given up may have volumes by now.
                prop_assert_eq!(verdict, Verdict::Answer(Answer::All));
                prop_assert!(model.pods[pod].1.iter().all(|claim| claim.volume));
                continue;
            };
            let passed: Vec<_> = passed.into_iter().map(|at| candidates[at]).collect();
            prop_assert_eq!(&passed, &room, "exactly the nodes with room pass at once");
            if let Some(node) = passed.first() {
                model.pods[pod].2 = Where::OnItsWay(*node);
                model.settle();
            }
        }
        prop_assert_eq!(model.overcommitted(), None);
    }
}

/// Three claims that fit one a node, whose pods come at once: one a node, and no pod is sent back.
#[test]
fn three_pods_for_three_nodes() {
    for order in [[0, 1, 2], [1, 2, 0], [2, 1, 0], [0, 0, 0]] {
        let setup = Setup {
            nodes: vec![(10, 0); 3],
            pods: vec![vec![(0, 6)]; 3],
        };
        let mut model = Model::new(setup);
        while !model.late[0].is_empty() {
            model.deliver(0);
        }
        for (pod, pick) in order.into_iter().enumerate() {
            loop {
                match model.ask(pod, &[0, 1, 2], Duration::ZERO) {
                    Verdict::Answer(Answer::Some { passed, .. }) => {
                        assert_eq!(passed.len(), 3 - pod, "every free node is offered");
                        model.pods[pod].2 = Where::OnItsWay(passed[pick % passed.len()]);
                        break;
                    }
                    Verdict::Wait(Doubt::Crowded, _) => {
                        // Meanwhile the scheduler writes what it chose for the one before.
                        model.write(0);
                        model.deliver(0);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        model.settle();
        let mut nodes: Vec<_> = model.taken().keys().map(|(node, _)| *node).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, [0, 1, 2]);
    }
}
