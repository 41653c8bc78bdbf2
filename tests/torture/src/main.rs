//! `make torture KILLS=1000 SEED=…`: docs/torture.md.

mod book;
mod checker;
mod data;
mod hostile;
mod kills;
mod load;
mod observe;
mod pods;
mod points;
mod prove;
mod report;
mod run;
mod schedule;

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<std::process::ExitCode> {
    let report = run::run(&run::Args::parse()).await?;
    println!("{}", report.text());
    Ok(if report.passed() { 0 } else { 1 }.into())
}
