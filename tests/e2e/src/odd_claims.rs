//! Claims that ask for no new volume, for more than a volume has, or of another controller.

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use quarry_crds::claim::{is_bound, selected_node};
use quarry_crds::names::{SELECTED_NODE, volume_name};
use serde_json::json;

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(existing_volume_needs_no_room),
    case!(attributes_class_is_refused),
    case!(names_that_device_mapper_has_no_room_for),
    case!(claims_that_a_populator_fills),
];

/// A volume that was kept serves a new claim, though there is no room for a second one.
async fn existing_volume_needs_no_room(test: &Test) -> Result<()> {
    let nodes = [("node2", vec![test.bed.disk(2, 0)?])];
    let class = Class::new(&test.class_name("a"), &nodes).with("reclaimPolicy", "Retain");
    let class = test.class(class).await?;
    test.ready(&class, 1).await?;
    test.claim(Claim::new("old", &class, "3Gi")).await?;
    test.pod(PodSpec::new("old").claim("old", false)).await?;
    test.running("old").await?;
    test.exec("old", &["sh", "-c", "echo kept > /old/file && sync"]).await?;
    let volume = test.bound("old").await?;
    test.delete_pod("old").await?;
    test.delete_claim("old").await?;
    let free = json!({"spec": {"claimRef": null}});
    test.volumes()
        .patch(&volume, &PatchParams::default(), &Patch::Merge(free))
        .await?;
    test.wait("the volume is Available", PATIENCE, || async {
        let status = test.volumes().get(&volume).await?.status;
        let phase = status.and_then(|status| status.phase);
        Ok((phase.as_deref() == Some("Available")).then_some(()))
    })
    .await?;
    test.claim(Claim::new("new", &class, "3Gi")).await?;
    test.pod(PodSpec::new("new").claim("new", false)).await?;
    ensure!(test.running("new").await? == "node2");
    ensure!(test.bound("new").await? == volume, "the volume that was kept");
    ensure!(test.exec("new", &["cat", "/new/file"]).await?.trim() == "kept");
    // One more finds neither room nor a volume.
    test.claim(Claim::new("more", &class, "3Gi")).await?;
    test.pod(PodSpec::new("more").claim("more", false)).await?;
    let told = [
        "FailedScheduling",
        "not enough free local storage in volume group",
        &class,
    ];
    test.said("Pod", "more", &told).await?;
    Ok(())
}

/// The API lets only volumes of CSI drivers have attributes: such a claim could never bind.
async fn attributes_class_is_refused(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let claim = Claim::new("data", &class, "300Mi").with("volumeAttributesClassName", "gold");
    test.claim(claim).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    let told = ["spec.volumeAttributesClassName: \"gold\"", "without it"];
    test.said(
        "PersistentVolumeClaim",
        "data",
        &[&["InvalidClaim"], &told[..]].concat(),
    )
    .await?;
    test.said("Pod", "user", &[&["FailedScheduling"], &told[..]].concat())
        .await?;
    // Given to a node past the extender, the manager says the same and makes nothing.
    let given = Claim::new("given", &class, "300Mi").selected("node1");
    test.claim(given.with("volumeAttributesClassName", "gold")).await?;
    test.said(
        "PersistentVolumeClaim",
        "given",
        &[&["InvalidClaim"], &told[..]].concat(),
    )
    .await?;
    for claim in ["data", "given"] {
        let claim = test.claims().get(claim).await?;
        let volume = volume_name(claim.metadata.uid.as_deref().unwrap_or_default());
        ensure!(!is_bound(&claim) && test.volumes().get_opt(&volume).await?.is_none());
    }
    Ok(())
}

/// device-mapper doubles hyphens and has 127 bytes: a name that leaves too few is refused, and the longest that fits works.
async fn names_that_device_mapper_has_no_room_for(test: &Test) -> Result<()> {
    let nodes = test.each_node(0)?;
    let long = "-a".repeat(30).replacen('-', "a", 1);
    ensure!(long.len() == 60);
    let bad = Class::new(&test.class_name("bad"), &nodes).parameter("volumeGroup", &long);
    let bad = test.class(bad).await?;
    let told = ["InvalidStorageClass", "parameters.volumeGroup", &long, "fewer hyphens"];
    println!("   {}", test.said("StorageClass", &bad, &told).await?);
    ensure!(test.storages_of(&bad).await?.is_empty(), "nothing is made of it");
    let fits = format!("{}{}", "b-".repeat(21), "b".repeat(18));
    ensure!(fits.len() == 60);
    let good = Class::new(&test.class_name("good"), &nodes).parameter("volumeGroup", &fits);
    let good = test.class(good).await?;
    test.ready(&good, 3).await?;
    test.claim(Claim::new("data", &good, "300Mi")).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    test.running("user").await?;
    Ok(())
}

/// As a volume populator does it (kubernetes-csi/lib-volume-populator): a claim of its own takes the node of the first one,
/// and its volume is bound to that.
async fn claims_that_a_populator_fills(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let source = json!({"apiGroup": "backup.io", "kind": "Backup", "name": "monday"});
    let first = test
        .claim(Claim::new("data", &class, "2600Mi").with("dataSourceRef", source))
        .await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    let node = test
        .wait("the claim is given to a node", PATIENCE, || async {
            Ok(selected_node(&test.claims().get("data").await?).map(str::to_owned))
        })
        .await?;
    test.said(
        "PersistentVolumeClaim",
        "data",
        &["external populator", "Backup \"monday\" of backup.io"],
    )
    .await?;
    let own = volume_name(first.metadata.uid.as_deref().unwrap_or_default());
    ensure!(
        test.volumes().get_opt(&own).await?.is_none(),
        "no empty volume in its place"
    );

    let uid = first.metadata.uid.context("no UID")?;
    let prime = format!("prime-{uid}");
    let mut other = Claim::new(&prime, &class, "2600Mi");
    other.0["metadata"]["annotations"] = json!({SELECTED_NODE: node});
    test.claim(other).await?;
    let volume = test.bound(&prime).await?;
    // There is room for one such volume on each node: it is counted once, so that two others fit, and no third.
    for other in ["one", "two", "three"] {
        test.claim(Claim::new(other, &class, "2600Mi")).await?;
        test.pod(PodSpec::new(other).claim(other, false)).await?;
        if other != "three" {
            test.running(other).await?;
        }
    }
    test.said("Pod", "three", &["FailedScheduling", "not enough free local storage"])
        .await?;

    let to = json!({"spec": {"claimRef": {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": test.name, "name": "data", "uid": uid,
        "resourceVersion": null,
    }}});
    test.volumes()
        .patch(&volume, &PatchParams::default(), &Patch::Merge(to))
        .await?;
    test.delete_claim(&prime).await?;
    ensure!(test.running("user").await? == node);
    ensure!(test.bound("data").await? == volume);
    // It goes like any other.
    test.delete_pod("user").await?;
    test.delete_claim("data").await?;
    test.volume_gone(&volume).await?;
    let left = test.lvm(&node, "lvs", "lv_name,vg_name").await?;
    ensure!(!left.iter().any(|row| row["lv_name"] == volume.as_str()), "{left:?}");
    let pod = test.pods().get("three").await?;
    println!("   and then {} has its room", pod.name_any());
    test.running("three").await?;
    Ok(())
}
