//! Runs every case on the true cluster, one after another: `make test` calls it, and takes the names of cases.

use libtest_mimic::{Arguments, Trial};
use quarry_e2e::bed::Bed;
use quarry_e2e::test::{Case, trial};
use quarry_e2e::{
    bad_claims, bad_disks, bad_parameters, bad_requests, capacity, deletion, groups, main_path, outages, placement,
};

fn main() -> anyhow::Result<()> {
    let mut arguments = Arguments::from_args();
    // The cases share the nodes and their disks.
    arguments.test_threads = Some(1);
    let cases: Vec<Case> = [
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
    ]
    .concat();
    let runtime = tokio::runtime::Runtime::new()?;
    let bed = if arguments.list {
        None
    } else {
        Some(runtime.block_on(Bed::up())?)
    };
    let trials: Vec<Trial> = cases
        .into_iter()
        .map(|case| trial(case, bed.clone(), runtime.handle().clone()))
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}
