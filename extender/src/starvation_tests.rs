//! A pod whose attempts fail again and again before a node is selected: how much it takes from others by that.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::answered::Answered;
use crate::decide::{Answer, Patience, Verdict, filter};
use crate::index::Index;
use crate::testing::{Put, filled, mk_claim, mk_class, mk_pod, mk_storage, names, selected};

/// Each pod fills a node.
const SIZE: u64 = 100;

struct World {
    index: Index,
    answered: Answered,
    now: Instant,
    nodes: Vec<String>,
}

fn world(nodes: usize) -> World {
    let mut index = filled();
    mk_class("fast").put(&mut index);
    let nodes: Vec<String> = (0..nodes).map(|node| format!("n{node}")).collect();
    for node in &nodes {
        mk_storage("fast", node, "vg", SIZE, 0).put(&mut index);
    }
    World {
        index,
        answered: Answered::default(),
        now: Instant::now(),
        nodes,
    }
}

impl World {
    /// The nodes that a pod is offered, or none where it would have to wait; and whether it would.
    fn offered(&mut self, pod: &str, claim: &str) -> (Vec<usize>, bool) {
        let nodes: Vec<&str> = self.nodes.iter().map(String::as_str).collect();
        let patience = Patience::default();
        let (pod, nodes) = (mk_pod(pod, &[claim]), names(&nodes));
        let (index, answered) = (&self.index, &mut self.answered);
        match filter(index, answered, &pod, &nodes, &patience, self.now, Duration::ZERO) {
            Verdict::Answer(Answer::Some { passed, .. }) => (passed, false),
            Verdict::Wait(..) => {
                let settled = filter(index, answered, &pod, &nodes, &patience, self.now, Duration::MAX);
                let Verdict::Answer(Answer::Some { passed, .. }) = settled else {
                    panic!("{settled:?}")
                };
                (passed, true)
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The attacker's pod is tried again every second, under whatever name; each second another pod comes and looks at what it
/// is offered, and goes again.
fn starve(nodes: usize, seconds: u64, names: u64) -> (u64, u64) {
    let mut world = world(nodes);
    mk_claim("evil", "fast", SIZE).put(&mut world.index);
    mk_claim("good", "fast", SIZE).put(&mut world.index);
    let (mut refused, mut node_seconds) = (0, 0);
    for second in 0..seconds {
        world.now += Duration::from_secs(1);
        world.offered(&format!("evil-{}", second % names), "evil");
        let (offered, _) = world.offered("good", "good");
        world.answered.forget("db/good/uid-good");
        world.answered.forget(&mk_pod("good", &["good"]).identity());
        refused += u64::from(offered.is_empty());
        node_seconds += u64::try_from(nodes - offered.len()).unwrap_or(u64::MAX);
        // It goes again, and is a new one next time.
        let fresh = format!("uid-good-{second}");
        let mut good = mk_claim("good", "fast", SIZE);
        good.metadata.uid = Some(fresh);
        good.put(&mut world.index);
    }
    (refused, node_seconds)
}

#[test]
fn a_pod_that_always_fails_starves_nobody() {
    for names in [1, 3] {
        let (refused, node_seconds) = starve(20, 600, names);
        assert!(refused <= 13, "{refused} of 600 pods were refused everywhere");
        // Of 12,000 in all, which it would hold each of.
        assert!(node_seconds <= 500, "{node_seconds} node seconds");
    }
}

#[test]
fn one_that_gets_its_node_is_offered_all_again() {
    let mut world = world(20);
    mk_claim("a", "fast", SIZE).put(&mut world.index);
    for _ in 0..10 {
        world.now += Duration::from_secs(1);
        assert_eq!(world.offered("p", "a").0.len(), 20);
        // A node is selected, and could not serve it.
        selected(mk_claim("a", "fast", SIZE), "n1").put(&mut world.index);
        mk_claim("b", "fast", SIZE).put(&mut world.index);
        world.offered("q", "b");
        mk_claim("b", "fast", SIZE).take(&mut world.index);
        mk_claim("a", "fast", SIZE).put(&mut world.index);
    }
}

#[test]
fn what_was_in_vain_long_ago_is_forgiven() {
    let mut world = world(20);
    mk_claim("a", "fast", SIZE).put(&mut world.index);
    let mut offers = Vec::new();
    for _ in 0..6 {
        world.now += Duration::from_secs(1);
        offers.push(world.offered("p", "a").0.len());
    }
    assert_eq!(offers, [20, 20, 20, 8, 2, 0]);
    world.now += Duration::from_secs(20);
    assert_eq!(world.offered("p", "a").0.len(), 1);
    world.now += Duration::from_secs(600);
    assert_eq!(world.offered("p", "a").0.len(), 20);
}

proptest! {
    /// However many pods fail however often, a pod counts on every node that it was offered last, until it is forgotten.
    #[test]
    fn what_is_offered_is_counted(turns in prop::collection::vec((0..4_usize, 0..4_u64), 1..60)) {
        let mut world = world(6);
        for pod in 0..4 {
            mk_claim(&format!("c{pod}"), "fast", SIZE).put(&mut world.index);
        }
        let mut last: Vec<(Vec<usize>, Instant)> = vec![(Vec::new(), world.now); 4];
        let remembered = Patience::default().remembered;
        for (pod, seconds) in turns {
            world.now += Duration::from_secs(seconds);
            let (offered, _) = world.offered(&format!("p{pod}"), &format!("c{pod}"));
            for (other, (held, at)) in last.iter().enumerate() {
                let holds = other != pod && world.now.duration_since(*at) < remembered;
                prop_assert!(!holds || held.iter().all(|node| !offered.contains(node)), "{other} and {pod}");
            }
            last[pod] = (offered, world.now);
        }
    }
}
