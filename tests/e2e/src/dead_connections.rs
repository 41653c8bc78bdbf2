//! Connections to the API server that die without a word: what is asked for meanwhile is served within a minute.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use quarry_crds::liveness::lease_name;

use crate::bed::NAMESPACE;
use crate::case;
use crate::objects::{Claim, PodSpec};
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(connections_are_forgotten), case!(cut_off_and_back)];

/// The node whose connections die.
const NODE: &str = "node2";
/// Within this time everything is got over.
const GOT_OVER: Duration = Duration::from_secs(60);
/// The Lease is renewed once a minute, and sooner after a failure.
const RENEWED: Duration = Duration::from_secs(85);

/// When the Lease of the node's manager was renewed last.
async fn renewed(test: &Test) -> Result<Timestamp> {
    let leases: Api<Lease> = Api::namespaced(test.client(), NAMESPACE);
    let lease = leases.get(&lease_name(NODE)).await?;
    let time = lease.spec.and_then(|spec| spec.renew_time).context("never renewed")?;
    Ok(time.0)
}

/// Waits until it was renewed after that. The clock of the node is its own: only what it wrote is compared.
async fn renewed_after(test: &Test, before: Timestamp, since: Instant, within: Duration) -> Result<()> {
    let left = within.saturating_sub(since.elapsed());
    test.wait("the Lease is renewed", left, || async {
        Ok((renewed(test).await? != before).then_some(()))
    })
    .await?;
    println!("   Lease renewed within {:.1} s", since.elapsed().as_secs_f64());
    Ok(())
}

/// Makes a claim for the node, which only its manager can serve; and waits until that is done.
async fn served(test: &Test, class: &str, name: &str, since: Instant, within: Duration) -> Result<()> {
    let left = within.saturating_sub(since.elapsed());
    test.wait(&format!("claim {name} of class {class} is bound"), left, || async {
        let claim = test.claims().get(name).await?;
        Ok(claim.spec.and_then(|spec| spec.volume_name))
    })
    .await?;
    println!("   claim {name}: bound after {:.1} s", since.elapsed().as_secs_f64());
    Ok(())
}

/// A NAT or a load balancer forgets all connections of a node: no packet of them arrives any more, and new ones work.
async fn connections_are_forgotten(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let node = test.bed.node(NODE)?;
    // All is calm, and nobody sends anything.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let forgotten = node.forget_connections().await?;
    let (begun, before) = (Instant::now(), renewed(test).await?);
    println!("   {forgotten} connections of {NODE} to the API server are forgotten");
    let result = async {
        ensure!(forgotten >= 6, "the manager's watches alone are five");
        test.claim(Claim::new("early", &class, "100Mi").selected(NODE)).await?;
        served(test, &class, "early", begun, GOT_OVER).await?;
        renewed_after(test, before, begun, RENEWED).await?;
        // By now every watch is a new one: what comes is seen at once.
        tokio::time::sleep(GOT_OVER.saturating_sub(begun.elapsed())).await;
        let later = Instant::now();
        test.claim(Claim::new("later", &class, "100Mi").selected(NODE)).await?;
        served(test, &class, "later", later, Duration::from_secs(10)).await
    }
    .await;
    let log = test
        .bed
        .kubectl(&[
            "-n",
            NAMESPACE,
            "logs",
            "-l",
            "app.kubernetes.io/name=quarry-manager",
            "--tail=40",
            "--prefix",
        ])
        .await
        .unwrap_or_default();
    println!(
        "{}",
        log.lines()
            .filter(|line| line.contains("WARN"))
            .collect::<Vec<_>>()
            .join("\n")
    );
    node.remember_connections().await?;
    result
}

/// The cable of a node is pulled for two minutes, and plugged in again.
async fn cut_off_and_back(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let node = test.bed.node(NODE)?;
    node.cut_network().await?;
    let made = test
        .claim(Claim::new("meanwhile", &class, "100Mi").selected(NODE))
        .await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let before = renewed(test).await;
    node.restore_network().await?;
    let back = Instant::now();
    made?;
    served(test, &class, "meanwhile", back, GOT_OVER).await?;
    renewed_after(test, before?, back, GOT_OVER).await?;
    // And a pod is placed there, for which the extender has to know of the node.
    test.claim(Claim::new("data", &class, "100Mi")).await?;
    test.pod(PodSpec::new("user").claim("data", false).on(NODE)).await?;
    ensure!(test.running("user").await? == NODE);
    Ok(())
}
