//! A node whose manager does nothing any more gets no new volumes, and what is there goes on.

use std::time::{Duration, Instant};

use crate::bed::NAMESPACE;
use anyhow::{Result, ensure};

use crate::case;
use crate::objects::{Claim, PodSpec};
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(silent_manager)];

/// The settings, and the DaemonSets that they are for.
const SETTINGS: [(&str, &str, &str); 2] = [
    ("quarry-manager", "QUARRY_LEASE_EVERY", "2s"),
    ("quarry-extender", "QUARRY_MANAGER_SILENT_AFTER", "8s"),
];
/// By then every extender knows.
const KNOWN: Duration = Duration::from_secs(14);
/// What it publishes then.
const ONE_IS_SILENT: &str = "quarry_extender_silent_managers 1";
/// Where it does so, as its node sees it.
const METRICS: &str = "http://127.0.0.1:9898/metrics";

async fn silent_manager(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let result = match set(test, true).await {
        Ok(()) => while_silent(test, &class).await,
        Err(error) => Err(error),
    };
    let node = test.bed.node("node2")?;
    // Whoever failed above may have left it stopped.
    let resumed = node.run(["pkill", "-CONT", "-x", "quarry-manager"]).await;
    set(test, false).await?;
    resumed?;
    result
}

async fn set(test: &Test, on: bool) -> Result<()> {
    for (daemon_set, name, value) in SETTINGS {
        let setting = if on {
            format!("{name}={value}")
        } else {
            format!("{name}-")
        };
        let daemon_set = format!("ds/{daemon_set}");
        test.bed
            .kubectl(&["-n", NAMESPACE, "set", "env", &daemon_set, &setting])
            .await?;
    }
    for (daemon_set, ..) in SETTINGS {
        test.bed.rolled_out(daemon_set).await?;
    }
    Ok(())
}

async fn while_silent(test: &Test, class: &str) -> Result<()> {
    // A pod that runs there, and that must not notice.
    test.claim(Claim::new("there", class, "100Mi")).await?;
    test.pod(PodSpec::new("there").claim("there", false).on("node2"))
        .await?;
    test.running("there").await?;
    let node = test.bed.node("node2")?;
    node.run_ok(["pkill", "-STOP", "-x", "quarry-manager"]).await?;
    let stopped = Instant::now();
    for name in ["node1", "node2", "node3"] {
        let node = test.bed.node(name)?;
        let left = KNOWN.saturating_sub(stopped.elapsed());
        test.wait("every extender knows that one is silent", left, || async {
            let metrics = node.run_ok(["busybox", "wget", "-q", "-O", "-", METRICS]).await?;
            Ok(metrics.lines().any(|line| line == ONE_IS_SILENT).then_some(()))
        })
        .await?;
    }
    test.claim(Claim::new("small", class, "100Mi")).await?;
    test.pod(PodSpec::new("small").claim("small", false)).await?;
    test.claim(Claim::new("large", class, "4800Mi")).await?;
    test.pod(PodSpec::new("large").claim("large", false)).await?;
    let on = test.running("small").await?;
    ensure!(on != "node2", "nobody would make the volume there");
    let told = ["FailedScheduling", "1 node(s) had no Quarry manager at work"];
    let text = test.said("Pod", "large", &told).await?;
    println!("   {text}");
    test.exec("there", &["sh", "-c", "echo on > /there/file && sync"])
        .await?;
    test.delete_pod("there").await?;
    test.pod(PodSpec::new("again").claim("there", false)).await?;
    ensure!(test.running("again").await? == "node2", "its volume is there");
    node.run_ok(["pkill", "-CONT", "-x", "quarry-manager"]).await?;
    let back = Instant::now();
    ensure!(test.running("large").await? == "node2");
    println!("   heard of again → pod Running: {:.1} s", back.elapsed().as_secs_f64());
    Ok(())
}
