//! LVM that misbehaves on a true node: a program stands in front of it and does what it is told for the next command of
//! a kind. Whatever it is, a claim has one volume in the end and nothing is left of what failed.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use quarry_crds::claim::{is_bound, selected_node};
use quarry_crds::names::SELECTED_NODE;
use serde_json::json;

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(lvm_misbehaves)];

/// Where it stands on the nodes; the manager's container has the folder too.
const PROGRAM: &str = "/run/lvm/bad/lvm";

/// What goes wrong while a volume is made, and while one is removed: command, runs that go well before, how often, what.
const MAKING: &[&str] = &[
    "lvcreate 0 1 fail",
    "lvcreate 0 1 fail-after",
    "lvcreate 0 1 nothing",
    "lvcreate 0 1 kill-after",
    "lvcreate 0 1 hang-stubborn",
    "lvcreate 0 1 hang-after",
    "fullreport 0 3 garbage",
    "fullreport 1 2 not-utf8",
    "fullreport 0 2 nothing",
    "lvchange 0 1 nothing",
];
const REMOVING: &[&str] = &[
    "lvremove 0 1 fail",
    "lvremove 0 1 fail-after",
    "lvremove 0 1 nothing",
    "lvremove 0 1 hang-after",
    "lvchange 0 1 kill",
    "fullreport 0 3 cut",
];

async fn lvm_misbehaves(test: &Test) -> Result<()> {
    let result = misbehaves(test).await;
    test.bed
        .manager_settings(&[("QUARRY_LVM", None), ("QUARRY_LVM_DEADLINE", None)])
        .await?;
    result
}

/// The program, which was built with the tests.
fn program() -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let folder = here.ancestors().nth(2).context("no folder of programs")?;
    Ok(folder.join("bad-lvm-in-front"))
}

async fn rules(test: &Test, node: &str, rules: &str) -> Result<()> {
    let put = ["tee".to_owned(), format!("{PROGRAM}.rules")];
    let node = test.bed.node(node)?;
    let output = node.run_with(put, Some(format!("{rules}\n"))).await?;
    ensure!(output.success(), "{}", output.stderr);
    Ok(())
}

async fn misbehaves(test: &Test) -> Result<()> {
    let program = program()?.display().to_string();
    for node in ["node1", "node2", "node3"] {
        let on = test.bed.node(node)?;
        on.run_ok(["mkdir", "-p", "/run/lvm/bad"]).await?;
        on.run_ok(["install", "-m", "755", &program, PROGRAM]).await?;
        rules(test, node, "").await?;
    }
    test.bed
        .manager_settings(&[("QUARRY_LVM", Some(PROGRAM)), ("QUARRY_LVM_DEADLINE", Some("4s"))])
        .await?;
    let nodes = [("node1", vec![test.bed.disk(1, 0)?])];
    let class = test.class(Class::new(&test.class_name("a"), &nodes)).await?;
    test.ready(&class, 1).await?;
    let free = test.free_on("node1", &class).await?;
    let ways = MAKING.len().max(REMOVING.len());
    for round in 0..ways {
        let name = format!("claim-{round}");
        let making = MAKING.get(round).copied().unwrap_or_default();
        rules(test, "node1", making).await?;
        test.claim(Claim::new(&name, &class, "100Mi")).await?;
        served(test, &name).await.with_context(|| format!("with {making}"))?;
        let volume = test.volume_of(&name).await?.name_any();
        let volumes = test.lvm("node1", "lvs", "lv_name").await?;
        ensure!(
            volumes.len() == 1 && volumes[0]["lv_name"] == volume.as_str(),
            "{making}: {volumes:?}"
        );
        let removing = REMOVING.get(round).copied().unwrap_or_default();
        rules(test, "node1", removing).await?;
        remove(test, &name).await.with_context(|| format!("with {removing}"))?;
        println!("   {making}: served, one volume; {removing}: removed");
    }
    rules(test, "node1", "").await?;
    ensure!(test.free_on("node1", &class).await? == free, "every byte is free again");
    unreadable(test, &class).await
}

/// A claim is bound in the end; as often as it is given back it is given to the node again, as kube-scheduler would.
async fn served(test: &Test, name: &str) -> Result<()> {
    test.wait(&format!("claim {name} is bound"), PATIENCE, || async {
        let claim = test.claims().get(name).await?;
        if selected_node(&claim).is_none() {
            let patch = json!({"metadata": {"annotations": {SELECTED_NODE: "node1"}}});
            let params = PatchParams::default();
            test.claims().patch(name, &params, &Patch::Merge(patch)).await?;
        }
        Ok(is_bound(&claim).then_some(()))
    })
    .await
}

/// The claim and the volume are gone in the end, and not the object before the volume.
async fn remove(test: &Test, name: &str) -> Result<()> {
    let volume = test.volume_of(name).await?.name_any();
    test.delete_claim(name).await?;
    test.wait(&format!("volume {volume} gone"), PATIENCE, || async {
        Ok(test.volumes().get_opt(&volume).await?.is_none().then_some(()))
    })
    .await?;
    ensure!(
        test.logical_volume("node1", &volume).await?.is_none(),
        "the object went before its volume"
    );
    Ok(())
}

/// While nothing can be read, the node says so and takes nothing; then it goes on by itself.
async fn unreadable(test: &Test, class: &str) -> Result<()> {
    rules(test, "node1", "fullreport 0 100000 garbage").await?;
    // Something changes, so that LVM is read.
    let node = test.bed.node("node1")?;
    node.run_ok(["lvcreate", "-y", "-n", "by-hand", "-l", "1", class])
        .await?;
    let name = format!("{class}.node1");
    let reason = || async {
        let storage = test.storages().get(&name).await?;
        let conditions = storage.status.map(|status| status.conditions).unwrap_or_default();
        Ok::<_, anyhow::Error>(
            conditions
                .into_iter()
                .find(|c| c.type_ == "Ready")
                .map(|c| c.reason)
                .unwrap_or_default(),
        )
    };
    test.wait(
        "the node says that LVM cannot be read",
        Duration::from_secs(90),
        || async { Ok((reason().await? == "LvmUnreadable").then_some(())) },
    )
    .await?;
    let told = test
        .said("NodeLocalStorage", &name, &["NotReady", "not its JSON"])
        .await?;
    println!("   {told}");
    test.claim(Claim::new("waits", class, "100Mi")).await?;
    test.pod(PodSpec::new("waits").claim("waits", false)).await?;
    test.said("Pod", "waits", &["FailedScheduling", "not ready"]).await?;
    rules(test, "node1", "").await?;
    test.running("waits").await?;
    node.run_ok(["lvremove", "-y", &format!("{class}/by-hand")]).await?;
    Ok(())
}
