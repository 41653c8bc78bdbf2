//! The command line: which figures, the table, the file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use jiff::Timestamp;
use quarry_e2e::bed::repository;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::figure::{Figure, table};
use crate::fleet::{self, Claims};
use crate::{burst, extender, index, memory, scheduling, volumes, watches};

/// Measures a group of figures. What was found before it failed counts too.
type Measure = for<'a> fn(&'a mut Vec<Figure>) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// All groups, in the order in which they are measured.
const GROUPS: &[(&str, Measure)] = &[
    ("extender", |found| Box::pin(extender::figures(found))),
    ("index", |found| Box::pin(index::figures(found))),
    ("volumes", |found| Box::pin(volumes::figures(found))),
    ("memory", |found| Box::pin(memory::figures(found))),
    ("watches", |found| Box::pin(watches::figures(found))),
    ("burst", |found| Box::pin(burst::figures(found))),
    ("scheduling", |found| Box::pin(scheduling::figures(found))),
];

/// Measures Quarry against its goals.
#[derive(Debug, Parser)]
struct Args {
    /// Groups of figures; all of them where none is named.
    figures: Vec<String>,
    /// The process that is measured itself: fills the extender's index from this server.
    #[arg(long, hide = true)]
    index_of: Option<String>,
    /// The process that is measured itself: times the extender.
    #[arg(long, hide = true)]
    extender: bool,
    /// The process that watches as this many managers do.
    #[arg(long, hide = true, requires = "kubeconfig")]
    watchers: Option<usize>,
    /// Who they are for the API server.
    #[arg(long, hide = true, default_value = "")]
    kubeconfig: String,
    /// Whether they watch only claims that are labelled for their node.
    #[arg(long, hide = true)]
    labelled: bool,
}

/// A group of figures as it was measured last.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    /// When.
    at: Timestamp,
    /// How busy the machine was before and after: processes that run, on average of a minute.
    load: [f64; 2],
    /// Whether nothing failed on the way.
    complete: bool,
    /// What was measured.
    figures: Vec<Figure>,
}

/// Measures, prints the table, and writes the file.
///
/// # Errors
/// A group could not be measured.
pub fn run() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // As the extender.
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match args.index_of {
            Some(url) => index::measure(&url).await,
            None if args.extender => extender::measure().await,
            None if args.watchers.is_some() => {
                let claims = if args.labelled { Claims::Labelled } else { Claims::All };
                fleet::watch(args.watchers.unwrap_or(0), &args.kubeconfig, claims).await
            }
            None => measure(&args.figures).await,
        }
    })
}

async fn measure(names: &[String]) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| !GROUPS.iter().any(|(known, _)| known == name)) {
        let known: Vec<_> = GROUPS.iter().map(|(known, _)| *known).collect();
        bail!("there are no figures {unknown:?}; there are: {}", known.join(", "));
    }
    let file = folder()?.join("results.json");
    // Groups that are not measured now stay as they were.
    let mut results: BTreeMap<String, Group> = std::fs::read(&file)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    for (name, figures) in GROUPS {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        let before = load()?;
        eprintln!("bench: {name} (load {before})");
        let mut found = Vec::new();
        let result = figures(&mut found).await.with_context(|| format!("figures {name}"));
        let load = [before, load()?];
        println!(
            "\n{name} (load of the machine {} before, {} after)\n\n{}",
            load[0],
            load[1],
            table(&found)
        );
        let at = Timestamp::now();
        results.insert(
            (*name).to_owned(),
            Group {
                at,
                load,
                complete: result.is_ok(),
                figures: found,
            },
        );
        std::fs::write(&file, serde_json::to_string_pretty(&results)?)?;
        result?;
    }
    println!("written to {}", file.display());
    Ok(())
}

/// Where results and logs go.
///
/// # Errors
/// It could not be made.
pub fn folder() -> Result<PathBuf> {
    let folder = repository().join("target/bench");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Runs this program once more, and reads what it prints.
///
/// # Errors
/// It failed, or printed something else.
pub async fn child<T: DeserializeOwned>(arguments: &[&str], stderr: impl Into<Stdio>) -> Result<T> {
    let output = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(stderr)
        .kill_on_drop(true)
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        arguments.join(" "),
        output.status
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The load average of the last minute.
fn load() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().context("no load")?.parse()?)
}
