//! Volume groups: made, extended, shared, handed on; and what an administrator does to them by hand.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use quarry_crds::NodeLocalStorage;
use serde_json::{Value, json};

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(several_disks_one_group),
    case!(disk_added_to_the_object),
    case!(two_classes_one_group),
    case!(class_deleted_and_created_again),
    case!(node_in_several_classes),
    case!(group_taken_down_on_request),
    case!(nodes_by_label),
    case!(columns_and_rules),
];

async fn disk_count(test: &Test, node: &str, group: &str) -> Result<String> {
    let rows = test.lvm(node, "vgs", "vg_name,pv_count").await?;
    let row = rows
        .iter()
        .find(|row| row["vg_name"] == group)
        .context("no such volume group")?;
    Ok(row["pv_count"].as_str().unwrap_or_default().to_owned())
}

async fn several_disks_one_group(test: &Test) -> Result<()> {
    let disks = vec![test.bed.disk(1, 0)?, test.bed.disk(1, 1)?];
    let class = test
        .class(Class::new(&test.class_name("a"), &[("node1", disks)]))
        .await?;
    let storage = test.ready(&class, 1).await?.remove(0);
    ensure!(disk_count(test, "node1", &class).await? == "2");
    let status = storage.status.context("no status")?;
    ensure!(
        status.disks.iter().all(|disk| disk.phase == "Claimed"),
        "{:?}",
        status.disks
    );
    ensure!(
        status
            .disks
            .iter()
            .all(|disk| disk.serial.is_some() && disk.size.is_some()),
        "{:?}",
        status.disks
    );
    // Larger than either disk: it lies on both.
    test.claim(Claim::new("large", &class, "9Gi")).await?;
    test.pod(PodSpec::new("user").claim("large", false)).await?;
    test.running("user").await?;
    Ok(())
}

/// An administrator adds a disk under a field manager of their own; the manager's own disks stay.
async fn disk_added_to_the_object(test: &Test) -> Result<()> {
    let class = test
        .class(Class::new(
            &test.class_name("a"),
            &[("node1", vec![test.bed.disk(1, 0)?])],
        ))
        .await?;
    test.ready(&class, 1).await?;
    let name = format!("{class}.node1");
    let added = test.bed.disk(1, 1)?;
    let patch = json!({
        "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage", "metadata": {"name": name},
        "spec": {"disks": [{"path": added}]},
    });
    let apply = PatchParams::apply("administrator");
    test.storages().patch(&name, &apply, &Patch::Apply(patch)).await?;
    test.wait("the disk is in the group", PATIENCE, || async {
        Ok((disk_count(test, "node1", &class).await? == "2").then_some(()))
    })
    .await?;
    let storage = test.storages().get(&name).await?;
    ensure!(storage.spec.disks.len() == 2, "{:?}", storage.spec.disks);
    Ok(())
}

async fn two_classes_one_group(test: &Test) -> Result<()> {
    let group = test.class_name("shared");
    let nodes = [("node1", vec![test.bed.disk(1, 0)?])];
    let ext4 = Class::new(&test.class_name("e"), &nodes).parameter("volumeGroup", &group);
    let ext4 = test.class(ext4).await?;
    let more = [("node1", vec![test.bed.disk(1, 0)?, test.bed.disk(1, 1)?])];
    let xfs = Class::new(&test.class_name("x"), &more)
        .parameter("volumeGroup", &group)
        .parameter("fsType", "xfs");
    let xfs = test.class(xfs).await?;
    test.wait("one group of both disks", PATIENCE, || async {
        Ok((disk_count(test, "node1", &group).await.unwrap_or_default() == "2").then_some(()))
    })
    .await?;
    let uuid = |storage: &NodeLocalStorage| {
        storage
            .status
            .as_ref()
            .and_then(|s| Some(s.volume_group.as_ref()?.uuid.clone()))
    };
    test.wait("both objects tell of it", PATIENCE, || async {
        let (a, b) = (
            test.ready(&ext4, 1).await?.remove(0),
            test.ready(&xfs, 1).await?.remove(0),
        );
        let free = |s: &NodeLocalStorage| {
            s.status
                .as_ref()
                .and_then(|s| Some(s.volume_group.as_ref()?.free.clone()))
        };
        Ok((uuid(&a) == uuid(&b) && free(&a) == free(&b)).then_some(()))
    })
    .await?;
    for class in [&ext4, &xfs] {
        let claim = if *class == ext4 { "ext4" } else { "xfs" };
        test.claim(Claim::new(claim, class, "500Mi")).await?;
        test.pod(PodSpec::new(claim).claim(claim, false)).await?;
        test.running(claim).await?;
    }
    ensure!(
        test.lvm("node1", "lvs", "lv_name,vg_name")
            .await?
            .iter()
            .all(|row| row["vg_name"] == group.as_str())
    );
    Ok(())
}

/// Deleting a class takes its NodeLocalStorage and nothing else; made again, it takes its group up again.
async fn class_deleted_and_created_again(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    test.claim(Claim::new("data", &class, "500Mi")).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    let node = test.running("user").await?;
    test.exec("user", &["sh", "-c", "echo kept > /data/file && sync"])
        .await?;
    let groups = test.lvm(&node, "vgs", "vg_name,vg_uuid").await?;
    let classes: Api<StorageClass> = Api::all(test.client());
    classes.delete(&class, &DeleteParams::default()).await?;
    test.wait("its objects are gone", PATIENCE, || async {
        Ok(test.storages_of(&class).await?.is_empty().then_some(()))
    })
    .await?;
    test.delete_pod("user").await?;
    test.pod(PodSpec::new("again").claim("data", false)).await?;
    test.running("again").await?;
    ensure!(test.exec("again", &["cat", "/data/file"]).await? == "kept\n");
    // A volume of a deleted class is deleted like any other.
    let volume = test.volume_of("data").await?.name_any();
    test.delete_pod("again").await?;
    test.delete_claim("data").await?;
    test.volume_gone(&volume).await?;
    ensure!(test.logical_volume(&node, &volume).await?.is_none());
    let again = Class::new(&class, &test.each_node(0)?).object()?;
    classes.create(&PostParams::default(), &again).await?;
    test.ready(&class, 3).await?;
    ensure!(
        test.lvm(&node, "vgs", "vg_name,vg_uuid").await? == groups,
        "the same group, not a new one"
    );
    Ok(())
}

/// A node that several classes name has a NodeLocalStorage and a group of each; a disk goes to the older.
async fn node_in_several_classes(test: &Test) -> Result<()> {
    let first = test
        .class(Class::new(
            &test.class_name("a"),
            &[("node1", vec![test.bed.disk(1, 0)?])],
        ))
        .await?;
    test.ready(&first, 1).await?;
    let both = vec![test.bed.disk(1, 0)?, test.bed.disk(1, 1)?];
    let second = test
        .class(Class::new(&test.class_name("b"), &[("node1", both)]))
        .await?;
    let storage = test.ready(&second, 1).await?.remove(0);
    ensure!(disk_count(test, "node1", &first).await? == "1" && disk_count(test, "node1", &second).await? == "1");
    let disks = storage.status.context("no status")?.disks;
    let refused = disks
        .iter()
        .find(|disk| disk.phase == "Rejected")
        .context("one disk is the other's")?;
    let reason = refused.reason.clone().unwrap_or_default();
    ensure!(
        reason.contains(&first),
        "the reason names the group that has it: {reason}"
    );
    Ok(())
}

async fn group_taken_down_on_request(test: &Test) -> Result<()> {
    let class = Class::new(&test.class_name("a"), &[("node1", vec![test.bed.disk(1, 0)?])]);
    let class = test.class(class.parameter("volumeGroupPolicy", "Delete")).await?;
    test.ready(&class, 1).await?;
    test.claim(Claim::new("data", &class, "500Mi")).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    test.running("user").await?;
    let classes: Api<StorageClass> = Api::all(test.client());
    classes.delete(&class, &DeleteParams::default()).await?;
    test.wait("its object is gone", PATIENCE, || async {
        Ok(test.storages_of(&class).await?.is_empty().then_some(()))
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(
        disk_count(test, "node1", &class).await? == "1",
        "a volume is left in it"
    );
    test.delete_pod("user").await?;
    test.delete_claim("data").await?;
    test.wait("the group is taken down", PATIENCE, || async {
        Ok(test.lvm("node1", "vgs", "vg_name").await?.is_empty().then_some(()))
    })
    .await?;
    let disk = test.bed.disk(1, 0)?;
    test.wait("the disk is blank again", PATIENCE, || async {
        let left = test.bed.node("node1")?.run(["blkid", "-p", &disk]).await?;
        Ok((left.status == 2).then_some(()))
    })
    .await?;
    Ok(())
}

/// Nodes by label: a node that gets the label joins, one that loses it offers no more room and keeps its volumes.
async fn nodes_by_label(test: &Test) -> Result<()> {
    let nodes = json!([{"selector": {"matchLabels": {"quarry-test": "yes"}}, "disks": [test.bed.disk(2, 0)?]}]);
    let class = Class::new(&test.class_name("a"), &[]).parameter("nodes", &nodes.to_string());
    let class = test.class(class).await?;
    test.bed
        .kubectl(&["label", "node", "node2", "quarry-test=yes", "--overwrite"])
        .await?;
    let joined = test.ready(&class, 1).await;
    test.bed.kubectl(&["label", "node", "node2", "quarry-test-"]).await?;
    ensure!(joined?.remove(0).spec.node_name == "node2");
    test.wait("its object is gone", PATIENCE, || async {
        Ok(test.storages_of(&class).await?.is_empty().then_some(()))
    })
    .await?;
    ensure!(disk_count(test, "node2", &class).await? == "1", "the group stays");
    Ok(())
}

/// `kubectl get nls` shows what is wanted, and the API server holds the object's rules.
async fn columns_and_rules(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let table = test.bed.kubectl(&["get", "nls", &format!("{class}.node1")]).await?;
    let head: Vec<&str> = table.lines().next().unwrap_or_default().split_whitespace().collect();
    ensure!(
        head == [
            "NAME", "NODE", "CLASS", "VG", "READY", "SIZE", "FREE", "LARGEST", "VOLUMES", "AGE"
        ],
        "{head:?}"
    );
    let row: Vec<&str> = table.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    ensure!(
        row[1..5] == ["node1", &class, &class, "True"] && row[8] == "0",
        "{row:?}"
    );
    let name = format!("{class}.node1");
    let size = serde_json::to_string(&test.storages().get(&name).await?)?.len();
    ensure!(
        size < 4096 + 2048,
        "the object has {size} bytes with its managed fields"
    );
    for (patch, told) in [
        (json!({"spec": {"nodeName": "node2"}}), "nodeName is immutable"),
        (json!({"spec": {"volumeGroup": "other"}}), "volumeGroup is immutable"),
        (json!({"spec": {"disks": [{"path": "/etc/passwd"}]}}), "/dev"),
        (json!({"spec": {"layout": "zigzag"}}), "layout"),
    ] {
        let result = test
            .storages()
            .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        let error = result
            .err()
            .with_context(|| format!("{patch} must be refused"))?
            .to_string();
        ensure!(error.contains(told), "{patch}: {error}");
    }
    let wrong: NodeLocalStorage = serde_json::from_value::<Value>(json!({
        "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage", "metadata": {"name": "wrong"},
        "spec": {"storageClassName": "a", "nodeName": "b", "volumeGroup": "c", "layout": "linear"},
    }))
    .and_then(serde_json::from_value)?;
    let error = test
        .storages()
        .create(&PostParams::default(), &wrong)
        .await
        .err()
        .context("the name must be refused")?;
    ensure!(
        error.to_string().contains("<spec.storageClassName>.<spec.nodeName>"),
        "{error} {}",
        wrong.name_any()
    );
    Ok(())
}
