//! All cases in half the time: two processes, each with a cluster of its own, of which most of the time one waits.

use std::fs::File;
use std::io::Write as _;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, ensure};
use quarry_bed::Cluster;

use crate::bed::{cluster_name, folder};
use crate::test::Case;

/// Which half a process runs: 1 or 2.
const HALF: &str = "QUARRY_HALF";

/// The cases of this process; the others are those of the other half, where there is one.
#[must_use]
pub fn own(cases: Vec<Case>) -> Vec<Case> {
    let Ok(half) = std::env::var(HALF) else {
        return cases;
    };
    let remainder = usize::from(half == "2");
    let own = cases.into_iter().enumerate().filter(|(at, _)| at % 2 == remainder);
    own.map(|(_, case)| case).collect()
}

/// Whether all cases are to be run in halves, and nobody does so yet.
#[must_use]
pub fn wanted() -> bool {
    let all = std::env::var("CASES").unwrap_or_default().trim().is_empty() && std::env::args().len() == 1;
    all && std::env::var_os(HALF).is_none()
}

/// Runs both; what the second says comes when the first has ended, and its cluster goes.
///
/// # Errors
/// A case failed, or a half could not be run.
pub async fn run() -> Result<()> {
    let second = format!("{}-half", cluster_name());
    let path = folder()?.join("second-half.log");
    let log = File::create(&path).with_context(|| path.display().to_string())?;
    let program = std::env::current_exe()?;
    let mut other = Command::new(&program)
        .env(HALF, "2")
        .env("QUARRY_CLUSTER", &second)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    println!(
        "   the second half runs on cluster {second} and says what it has to say in {}",
        path.display()
    );
    let ended = tokio::task::spawn_blocking(move || -> Result<[ExitStatus; 2]> {
        let one = Command::new(program).env(HALF, "1").status()?;
        Ok([one, other.wait()?])
    });
    let ended = ended.await?;
    std::io::stdout().write_all(&std::fs::read(&path)?)?;
    if std::env::var_os("QUARRY_KEEP").is_none() {
        Cluster::down(&second).await?;
    }
    let ended = ended?;
    ensure!(ended.iter().all(ExitStatus::success), "{ended:?}");
    Ok(())
}
