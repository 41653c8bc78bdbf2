//! Two managers on a node, a volume of another version, and Quarry taken off a cluster with volumes left on it: no volume
//! is touched twice, none is lost, and what is said tells what to do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::bed::NAMESPACE;
use crate::case;
use crate::objects::{Claim, PodSpec};
use crate::outages::away;
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(two_managers_on_a_node),
    case!(another_version_is_left_alone),
    case!(uninstalled_with_volumes_left),
];

/// A second manager beside the first, as a careless update starts it.
const SECOND: &str = "quarry-manager-second";

/// A second manager waits, does nothing, and says so; when the first is gone it takes over.
async fn two_managers_on_a_node(test: &Test) -> Result<()> {
    let result = second_waits(test).await;
    let gone = second_goes(test).await;
    away(test, "quarry-manager", false).await?;
    result.and(gone)
}

async fn second_goes(test: &Test) -> Result<()> {
    let sets: Api<DaemonSet> = Api::namespaced(test.client(), NAMESPACE);
    if sets.get_opt(SECOND).await?.is_some() {
        sets.delete(SECOND, &DeleteParams::foreground()).await?;
    }
    test.wait("the second manager is gone", Duration::from_secs(200), || async {
        Ok(sets.get_opt(SECOND).await?.is_none().then_some(()))
    })
    .await
}

async fn second_waits(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let sets: Api<DaemonSet> = Api::namespaced(test.client(), NAMESPACE);
    let mut second = sets.get("quarry-manager").await?;
    second.metadata = serde_json::from_value(json!({"name": SECOND}))?;
    second.status = None;
    let labels = json!({"app.kubernetes.io/name": SECOND});
    if let Some(spec) = second.spec.as_mut() {
        spec.selector = serde_json::from_value(json!({"matchLabels": labels}))?;
        spec.template.metadata = serde_json::from_value(json!({"labels": labels}))?;
    }
    sets.create(&PostParams::default(), &second).await?;
    for node in ["node1", "node2", "node3"] {
        let told = test
            .wait(
                &format!("the second manager of {node} says that it waits"),
                PATIENCE,
                || async {
                    let Ok(pod) = test.pod_of_ours(SECOND, node).await else {
                        return Ok(None);
                    };
                    let log = test.bed.kubectl(&["-n", NAMESPACE, "logs", &pod.name_any()]).await;
                    let log = log.unwrap_or_default();
                    Ok(log
                        .lines()
                        .find(|line| line.contains("another manager runs on this node"))
                        .map(str::to_owned))
                },
            )
            .await?;
        println!("   {told}");
    }
    test.claim(Claim::new("first", &class, "500Mi")).await?;
    test.pod(PodSpec::new("first").claim("first", false)).await?;
    let node = test.running("first").await?;
    test.exec("first", &["sh", "-c", "echo kept > /first/file && sync"])
        .await?;
    let ready = sets.get(SECOND).await?.status.unwrap_or_default().number_ready;
    ensure!(ready == 0, "{ready} of the second managers are ready beside the first");
    let made = test.lvm(&node, "lvs", "lv_name,lv_uuid").await?;
    ensure!(made.len() == 1, "one volume was asked for: {made:?}");

    away(test, "quarry-manager", true).await?;
    test.bed.rolled_out(SECOND).await?;
    test.claim(Claim::new("second", &class, "500Mi")).await?;
    test.pod(PodSpec::new("second").claim("second", false).on(&node))
        .await?;
    test.running("second").await?;
    ensure!(
        test.lvm(&node, "lvs", "lv_name").await?.len() == 2,
        "one volume for each claim"
    );
    ensure!(test.exec("first", &["cat", "/first/file"]).await? == "kept\n");
    let volume = test.volume_of("second").await?.name_any();
    test.delete_pod("second").await?;
    test.delete_claim("second").await?;
    test.volume_gone(&volume).await
}

/// A volume whose tags are of a version that this one does not know is neither removed nor wiped, and named.
async fn another_version_is_left_alone(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    test.claim(Claim::new("data", &class, "500Mi")).await?;
    test.pod(PodSpec::new("user").claim("data", false).on("node1")).await?;
    test.running("user").await?;
    test.exec("user", &["sh", "-c", "echo kept > /data/file && sync"])
        .await?;
    let volume = test.volume_of("data").await?.name_any();
    let node = test.bed.node("node1")?;
    let logical = format!("{class}/{volume}");
    let retag = async |from: &str, to: &str| {
        let argv = ["lvchange", "--deltag", from, "--addtag", to, &logical];
        node.run_ok(argv).await
    };
    retag("quarry.version=1", "quarry.version=2").await?;
    let before = test.lvm("node1", "lvs", "lv_name,lv_uuid,lv_size").await?;
    test.delete_pod("user").await?;
    test.delete_claim("data").await?;
    let told = test
        .said(
            "PersistentVolume",
            &volume,
            &["VolumeFailedDelete", "quarry.version=2", "run that version"],
        )
        .await?;
    println!("   {told}");
    ensure!(
        test.lvm("node1", "lvs", "lv_name,lv_uuid,lv_size").await? == before,
        "it is left as it was"
    );
    // kubelet may be about to unmount it still.
    let look =
        format!("mkdir -p /run/two && mount -o ro /dev/{logical} /run/two && cat /run/two/file; umount /run/two");
    let read = test
        .wait("the volume can be mounted by hand", PATIENCE, || async {
            let looked = node.run(["sh", "-c", &look]).await?;
            Ok(looked.success().then_some(looked.stdout))
        })
        .await?;
    ensure!(read == "kept\n", "{read:?}");
    retag("quarry.version=2", "quarry.version=1").await?;
    test.volume_gone(&volume).await?;
    ensure!(
        test.lvm("node1", "lvs", "lv_name").await?.is_empty(),
        "with its own tags it is removed"
    );
    Ok(())
}

/// With everything of Quarry deleted, its CustomResourceDefinition included, volumes and pods go on; installed again, it
/// finds them as they were, and does what was asked for in between.
async fn uninstalled_with_volumes_left(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    for name in ["kept", "freed"] {
        test.claim(Claim::new(name, &class, "500Mi")).await?;
        test.pod(PodSpec::new(name).claim(name, false).on("node1")).await?;
        test.running(name).await?;
        test.exec(name, &["sh", "-c", &format!("echo {name} > /{name}/file && sync")])
            .await?;
    }
    let freed = test.volume_of("freed").await?.name_any();
    // The last thing that the manager does about a new volume, at most a minute later.
    test.wait(
        "both volumes are marked as handed out",
        Duration::from_secs(90),
        || async {
            let volumes = test.lvm("node1", "lvs", "vg_name,lv_tags").await?;
            let marked = |row: &Value| {
                row["lv_tags"]
                    .as_str()
                    .is_some_and(|tags| tags.contains("quarry.state=ready"))
            };
            let ready = |row: &&Value| row["vg_name"] == *class && marked(row);
            Ok((volumes.iter().filter(ready).count() == 2).then_some(()))
        },
    )
    .await?;
    let groups = test.lvm("node1", "vgs", "vg_name,vg_uuid").await?;
    let volumes = test.lvm("node1", "lvs", "lv_name,lv_uuid,lv_tags").await?;
    let result = match test.bed.uninstall().await {
        Ok(()) => while_uninstalled(test, &freed).await,
        Err(error) => Err(error),
    };
    let same = async {
        ensure!(
            test.lvm("node1", "vgs", "vg_name,vg_uuid").await? == groups,
            "no group may change"
        );
        ensure!(
            test.lvm("node1", "lvs", "lv_name,lv_uuid,lv_tags").await? == volumes,
            "no volume may change"
        );
        Ok(())
    }
    .await;
    test.bed.install().await?;
    result?;
    same?;
    test.ready(&class, 3).await?;
    test.volume_gone(&freed).await?;
    ensure!(
        test.lvm("node1", "vgs", "vg_name,vg_uuid").await? == groups,
        "the group is found again"
    );
    let left = test.lvm("node1", "lvs", "lv_name").await?;
    ensure!(
        left.len() == 1,
        "the volume that was given up is removed, the other is not: {left:?}"
    );
    ensure!(test.exec("again", &["cat", "/kept/file"]).await? == "kept\n");
    Ok(())
}

async fn while_uninstalled(test: &Test, freed: &str) -> Result<()> {
    ensure!(test.exec("kept", &["cat", "/kept/file"]).await? == "kept\n");
    test.delete_pod("kept").await?;
    test.pod(PodSpec::new("again").claim("kept", false)).await?;
    ensure!(test.running("again").await? == "node1");
    ensure!(test.exec("again", &["cat", "/kept/file"]).await? == "kept\n");
    test.delete_pod("freed").await?;
    test.delete_claim("freed").await?;
    let waits = test.volumes().get(freed).await.context("it waits for a manager")?;
    let phase = waits.status.and_then(|status| status.phase);
    println!(
        "   PersistentVolume of a claim deleted meanwhile: {}",
        phase.unwrap_or_default()
    );
    Ok(())
}
