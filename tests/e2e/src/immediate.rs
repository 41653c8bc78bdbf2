//! Binding mode Immediate: no scheduler chooses the node, and the node that takes a claim asks what a scheduler would ask.

use std::time::Duration;

use anyhow::{Result, ensure};
use quarry_crds::claim::selected_node;
use serde_json::json;

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(immediate_class_and_claim_in_one_file),
    case!(immediate_allowed_topologies),
    case!(immediate_nodes_that_take_no_pods),
];

fn class(test: &Test, suffix: &str, disk: usize) -> Result<Class> {
    let class = Class::new(&test.class_name(suffix), &test.each_node(disk)?);
    Ok(class.with("volumeBindingMode", "Immediate"))
}

/// The node that a claim was given to; it must have its volume.
async fn node_of(test: &Test, claim: &str) -> Result<String> {
    test.bound(claim).await?;
    let claim = test.claims().get(claim).await?;
    Ok(selected_node(&claim).unwrap_or_default().to_owned())
}

/// There is no NodeLocalStorage yet when the claim is seen.
async fn immediate_class_and_claim_in_one_file(test: &Test) -> Result<()> {
    let name = test.class_name("a");
    test.claim(Claim::new("early", &name, "300Mi")).await?;
    test.class(class(test, "a", 0)?).await?;
    test.claim(Claim::new("data", &name, "300Mi")).await?;
    for claim in ["data", "early"] {
        let node = node_of(test, claim).await?;
        test.pod(PodSpec::new(claim).claim(claim, false)).await?;
        ensure!(test.running(claim).await? == node);
    }
    Ok(())
}

/// Every volume is where the class allows it, though others are as empty; and none where that has no room.
async fn immediate_allowed_topologies(test: &Test) -> Result<()> {
    let only = json!([{"matchLabelExpressions": [{"key": "kubernetes.io/hostname", "values": ["node2"]}]}]);
    let name = test.class(class(test, "a", 0)?.with("allowedTopologies", only)).await?;
    test.ready(&name, 3).await?;
    let claims: Vec<String> = (0..6).map(|number| format!("data-{number}")).collect();
    for claim in &claims {
        test.claim(Claim::new(claim, &name, "200Mi")).await?;
    }
    for claim in &claims {
        let node = node_of(test, claim).await?;
        ensure!(node == "node2", "{claim} is on {node}");
    }
    test.claim(Claim::new("large", &name, "4500Mi")).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let large = test.claims().get("large").await?;
    ensure!(selected_node(&large).is_none(), "no node that is allowed has room");
    // Room comes back, and the node looks again.
    for claim in &claims {
        test.delete_claim(claim).await?;
    }
    ensure!(node_of(test, "large").await? == "node2");
    Ok(())
}

/// A node that is cordoned or tainted takes nothing, and looks again when that ends.
async fn immediate_nodes_that_take_no_pods(test: &Test) -> Result<()> {
    let name = test.class(class(test, "a", 2)?).await?;
    test.ready(&name, 3).await?;
    let result = without_pods(test, &name).await;
    for node in ["node1", "node2", "node3"] {
        test.bed.kubectl(&["uncordon", node]).await?;
        // Where there is none, kubectl says so.
        let _ = test.bed.kubectl_any(&["taint", "node", node, "quarry-test-"]).await?;
    }
    result
}

async fn without_pods(test: &Test, class: &str) -> Result<()> {
    test.bed.kubectl(&["cordon", "node3"]).await?;
    test.bed
        .kubectl(&["taint", "node", "node2", "quarry-test=busy:NoSchedule"])
        .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for number in 0..4 {
        let claim = format!("data-{number}");
        test.claim(Claim::new(&claim, class, "200Mi")).await?;
        let node = node_of(test, &claim).await?;
        ensure!(node == "node1", "{claim} is on {node}");
    }
    test.bed.kubectl(&["cordon", "node1"]).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    test.claim(Claim::new("waits", class, "200Mi")).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let waits = test.claims().get("waits").await?;
    ensure!(selected_node(&waits).is_none(), "no node takes pods");
    test.bed.kubectl(&["taint", "node", "node2", "quarry-test-"]).await?;
    test.wait("the node takes it soon", Duration::from_secs(20), || async {
        let waits = test.claims().get("waits").await?;
        Ok(selected_node(&waits).map(str::to_owned))
    })
    .await?;
    ensure!(node_of(test, "waits").await? == "node2");
    Ok(())
}
