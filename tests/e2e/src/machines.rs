//! The machines of the cluster: one whose kernel has ended is told of with what it said last, and is switched on again.

use anyhow::{Context, Result};
use quarry_bed::{Boot, Cluster, Node};

fn off(cluster: &Cluster) -> Vec<Node> {
    cluster.nodes().into_iter().filter(|node| !node.is_on()).collect()
}

/// What the kernels of the nodes that are off said last; empty where all are on.
#[must_use]
pub fn told_of_those_off(cluster: &Cluster) -> String {
    let told = |node: &Node| {
        format!(
            "\n--- {} is off; its console said last:\n{}",
            node.name(),
            node.said_last()
        )
    };
    off(cluster).iter().map(told).collect()
}

/// Switches on what is off, so that one kernel that ended does not fail every case after it.
///
/// # Errors
/// A node did not become ready.
pub async fn all_on(cluster: &Cluster) -> Result<()> {
    for node in off(cluster) {
        let again = || format!("switching on {} again", node.name());
        node.boot(Boot::default()).await.with_context(again)?;
    }
    Ok(())
}
