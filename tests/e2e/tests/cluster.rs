//! Runs every case on the true cluster, one after another: `make test` calls it, and takes the names of cases.

use libtest_mimic::{Arguments, Trial};
use quarry_e2e::bed::Bed;
use quarry_e2e::sweep::sweep;
use quarry_e2e::test::{Case, trial};
use quarry_e2e::{
    bad_claims, bad_disks, bad_lvm, bad_parameters, bad_requests, burst, capacity, certificates, dead_connections,
    deletion, device_faults, foreign_lvm, groups, halves, immediate, last_word, lost_group, lost_nodes, main_path,
    metadata, odd_claims, orphans, outages, past_the_scheduler, placement, preemption, refusals, refused, rights,
    sectors, silent_manager, snapshots, surroundings, two_at_once, used_disks, why, wipe, without_extender,
    wrong_disks,
};

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    if halves::wanted() {
        return runtime.block_on(halves::run());
    }
    let mut arguments = Arguments::from_args();
    // The cases share the nodes and their disks.
    arguments.test_threads = Some(1);
    let mut cases: Vec<Case> = [
        main_path::CASES,
        placement::CASES,
        capacity::CASES,
        deletion::CASES,
        groups::CASES,
        bad_parameters::CASES,
        bad_claims::CASES,
        bad_disks::CASES,
        bad_requests::CASES,
        outages::CASES,
        two_at_once::CASES,
        lost_nodes::CASES,
        silent_manager::CASES,
        rights::CASES,
        wipe::CASES,
        orphans::CASES,
        snapshots::CASES,
        last_word::CASES,
        metadata::CASES,
        bad_lvm::CASES,
        device_faults::CASES,
        lost_group::CASES,
        wrong_disks::CASES,
        sectors::CASES,
        foreign_lvm::CASES,
        used_disks::CASES,
        why::CASES,
        without_extender::CASES,
        burst::CASES,
        preemption::CASES,
        certificates::CASES,
        past_the_scheduler::CASES,
        dead_connections::CASES,
        refused::CASES,
        immediate::CASES,
        refusals::CASES,
        odd_claims::CASES,
        surroundings::CASES,
    ]
    .concat();
    // Those whose names contain one of these words.
    let wanted = std::env::var("CASES").unwrap_or_default();
    let wanted: Vec<&str> = wanted.split_whitespace().collect();
    cases.retain(|(name, _)| wanted.is_empty() || wanted.iter().any(|word| name.contains(word)));
    let cases = halves::own(cases);
    let bed = if arguments.list {
        None
    } else {
        let bed = runtime.block_on(Bed::up())?;
        runtime.block_on(sweep(&bed))?;
        Some(bed)
    };
    let trials: Vec<Trial> = cases
        .into_iter()
        .map(|case| trial(case, bed.clone(), runtime.handle().clone()))
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
