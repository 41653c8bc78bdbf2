//! The machines of the cluster: one whose kernel has ended is told of with what it said last, and is switched on again.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use quarry_bed::{Boot, Cluster, Node};

/// How much of a console is told: a kernel that panics says where it was.
const LINES: usize = 60;

/// What the kernels of the nodes that are off said last; empty where all are on.
pub async fn told_of_those_off(cluster: &Cluster) -> String {
    let mut told = String::new();
    for node in cluster.nodes().iter().filter(|node| !node.is_on()) {
        let console = tokio::fs::read(node.console()).await.unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let first = console.lines().count().saturating_sub(LINES);
        let _ = write!(told, "\n--- {} is off; its console said last:", node.name());
        for line in console.lines().skip(first) {
            let _ = write!(told, "\n{line}");
        }
    }
    told
}

/// Switches on what is off, so that one kernel that ended does not fail every case after it. What was told of those.
///
/// # Errors
/// A node did not become ready.
pub async fn all_on(cluster: &Cluster) -> Result<String> {
    let told = told_of_those_off(cluster).await;
    let off: Vec<Node> = cluster.nodes().into_iter().filter(|node| !node.is_on()).collect();
    for node in off {
        let again = || format!("switching on {} again", node.name());
        node.boot(Boot::default()).await.with_context(again)?;
    }
    Ok(told)
}
