use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::points;

fn steps(seed: u64, count: usize) -> Vec<Step> {
    Schedule::new(seed, points::all().expect("points"))
        .take(count)
        .collect()
}

#[test]
fn a_seed_always_gives_the_same_schedule() {
    assert_eq!(steps(7, 1000), steps(7, 1000));
    assert_ne!(steps(7, 25), steps(8, 25));
    // What a longer run does first is what a shorter one does.
    assert_eq!(steps(7, 25), steps(7, 1000)[..25]);
}

#[test]
fn a_short_run_kills_every_part_of_the_cluster() {
    for seed in 0..20 {
        let mut killed = BTreeMap::<&str, usize>::new();
        for step in steps(seed, BLOCK) {
            let what = match step.kill {
                Kill::Point(..) | Kill::Start(..) => "point",
                Kill::Manager(..) => "manager",
                Kill::Extender => "extender",
                Kill::ApiServer(_) => "API server",
                Kill::Etcd(_) => "etcd",
                Kill::Scheduler(_) => "scheduler",
                Kill::ControllerManager(_) => "controller manager",
                Kill::Power(..) => "node",
            };
            *killed.entry(what).or_default() += 1;
        }
        assert_eq!(killed.len(), 8, "{killed:?}");
        assert!(killed["point"] + killed["node"] >= 14);
    }
}

#[test]
fn only_the_end_of_a_block_is_judged() {
    for step in steps(3, 200) {
        assert_eq!(step.check, (step.number + 1) % BLOCK == 0, "step {}", step.number);
    }
}

#[test]
fn every_point_is_tried_before_one_is_tried_again() {
    let all = points::all().expect("points").len();
    let mut tried = Vec::new();
    for step in steps(11, 400) {
        match step.kill {
            Kill::Point(name, _) | Kill::Start(name, _) | Kill::Power(_, Some(name)) => tried.push(name),
            _ => {}
        }
    }
    for round in tried.chunks_exact(all) {
        assert_eq!(round.iter().collect::<BTreeSet<_>>().len(), all);
    }
}

#[test]
fn what_is_asked_can_be_done() {
    for seed in 0..20 {
        let mut live = BTreeMap::new();
        let mut made = BTreeSet::new();
        let mut groups = [false; NODES];
        let mut filled = None;
        for step in steps(seed, 500) {
            for op in step.ops {
                match op {
                    Op::Create(workload) => {
                        assert!(made.insert(workload.number));
                        live.insert(workload.number, workload.kind);
                    }
                    Op::Fleeting(workload, _) | Op::Unwanted(workload) | Op::Leftover(workload) => {
                        assert!(made.insert(workload.number));
                    }
                    Op::Settle(number) | Op::Rebirth(number) => assert!(live.contains_key(&number)),
                    Op::Restart(number) => assert!(live.get(&number).is_some_and(|kind| kind.has_pod())),
                    Op::End(number) | Op::EndVolumeFirst(number) => {
                        let kind = live.remove(&number).expect("live");
                        assert!(!matches!(kind, Kind::Retain | Kind::Kept));
                    }
                    Op::Forget(number) => {
                        let kind = live.remove(&number).expect("live");
                        assert!(matches!(kind, Kind::Retain | Kind::Kept));
                    }
                    Op::Fill(node) => assert_eq!(filled.replace(node), None),
                    Op::Unfill(node) => assert_eq!(filled.take(), Some(node)),
                    Op::GroupUp(node) => assert!(!std::mem::replace(&mut groups[node], true)),
                    Op::GroupGrow(node) => assert!(groups[node]),
                    Op::GroupDown(node) => assert!(std::mem::replace(&mut groups[node], false)),
                }
            }
            // The nodes are small: 4, 5 and 3 GiB.
            assert!(live.len() < 40, "step {}: {} at a time", step.number, live.len());
        }
    }
}

#[test]
fn the_load_has_every_kind() {
    let mut kinds = Vec::new();
    for step in steps(5, 300) {
        for op in step.ops {
            if let Op::Create(workload) = op
                && !kinds.contains(&workload.kind)
            {
                kinds.push(workload.kind);
            }
        }
    }
    assert_eq!(kinds.len(), 13, "{kinds:?}");
}
