//! Logical volumes without objects: reported, and removed only where that was asked for.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::outages::while_away;
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(orphans_reported_then_removed)];

/// Sweeps are 5 s apart then, and five of them prove.
const GRACE: &str = "20s";

async fn orphans_reported_then_removed(test: &Test) -> Result<()> {
    let result = orphans(test).await;
    test.bed
        .manager_settings(&[("QUARRY_ORPHANS", None), ("QUARRY_ORPHAN_GRACE", None)])
        .await?;
    result
}

/// A volume whose claim is gone, and its object without a word to its manager.
async fn orphan(test: &Test, class: &str, claim: &str) -> Result<String> {
    test.claim(Claim::new(claim, class, "100Mi")).await?;
    test.pod(PodSpec::new(claim).claim(claim, false)).await?;
    test.running(claim).await?;
    let volume = test.volume_of(claim).await?.name_any();
    let change = async |patch: Value| {
        let params = PatchParams::default();
        test.volumes().patch(&volume, &params, &Patch::Merge(patch)).await
    };
    // So that nobody deletes its logical volume with the claim. A manager that sees this policy marks the volume as one that is to
    // be kept, and never removes it.
    let gone = async {
        change(json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}})).await?;
        test.delete_pod(claim).await?;
        test.delete_claim(claim).await?;
        change(json!({"metadata": {"finalizers": null}})).await?;
        test.volumes().delete(&volume, &DeleteParams::default()).await?;
        test.volume_gone(&volume).await
    };
    while_away(test, &["quarry-manager"], gone).await?;
    Ok(volume)
}

async fn orphans(test: &Test) -> Result<()> {
    test.bed
        .manager_settings(&[("QUARRY_ORPHAN_GRACE", Some(GRACE))])
        .await?;
    let class = Class::new(&test.class_name("a"), &[("node1", vec![test.bed.disk(1, 0)?])]);
    let class = test.class(class).await?;
    test.ready(&class, 1).await?;
    let storage = format!("{class}.node1");
    let node = test.bed.node("node1")?;
    node.run_ok(["lvcreate", "-y", "-n", "by-hand", "-l", "5", &class])
        .await?;
    let lost = orphan(test, &class, "lost").await?;
    let told = test
        .said(
            "NodeLocalStorage",
            &storage,
            &["OrphanVolume", "node1", &lost, "lvremove"],
        )
        .await?;
    println!("   {told}");
    let message = told_of(test, &storage, &lost).await?;
    ensure!(!message.contains("by-hand"), "{message}");
    let metrics = test.manager_metrics("node1").await?;
    let line = format!("quarry_orphan_volumes{{vg=\"{class}\"}} 1");
    ensure!(metrics.contains(&line), "{line} is not in {metrics}");
    // Longer than the grace period: it is reported, and stays.
    tokio::time::sleep(Duration::from_secs(30)).await;
    ensure!(
        test.logical_volume("node1", &lost).await?.is_some(),
        "removed without being asked to"
    );

    test.bed.manager_settings(&[("QUARRY_ORPHANS", Some("delete"))]).await?;
    // One that is in use is wanted by somebody, whatever the API server knows.
    let held = orphan(test, &class, "held").await?;
    node.run_ok(["mkdir", "-p", "/run/held"]).await?;
    node.run_ok(["mount", &format!("/dev/{class}/{held}"), "/run/held"])
        .await?;
    let removed = test
        .wait("the orphan is removed", PATIENCE, || async {
            Ok(test.logical_volume("node1", &lost).await?.is_none().then_some(()))
        })
        .await;
    // Longer than the grace period, from when it is seen to be one.
    let seen = told_of(test, &storage, &held).await;
    tokio::time::sleep(Duration::from_secs(35)).await;
    let kept = test.logical_volume("node1", &held).await?.is_some();
    node.run_ok(["umount", "/run/held"]).await?;
    removed?;
    seen?;
    ensure!(kept, "removed while it was mounted");
    test.wait("the other one too, once nobody has it open", PATIENCE, || async {
        Ok(test.logical_volume("node1", &held).await?.is_none().then_some(()))
    })
    .await?;
    ensure!(
        test.logical_volume("node1", "by-hand").await?.is_some(),
        "what Quarry did not make is no orphan"
    );
    node.run_ok(["lvremove", "-y", &format!("{class}/by-hand")]).await?;
    Ok(())
}

/// Waits until the condition of a NodeLocalStorage tells of an orphan; its message.
async fn told_of(test: &Test, storage: &str, volume: &str) -> Result<String> {
    test.wait(&format!("the condition tells of {volume}"), PATIENCE, || async {
        let status = test.storages().get(storage).await?.status;
        let conditions = status.map(|status| status.conditions).unwrap_or_default();
        let orphans = conditions
            .into_iter()
            .find(|c| c.type_ == "OrphanVolumes" && c.status == "True");
        Ok(orphans.map(|c| c.message).filter(|message| message.contains(volume)))
    })
    .await
}
