//! LVM's metadata area: how many volumes it holds, and what happens before it is full.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(metadata_area_full)];

/// A group with a small metadata area is filled: no more volumes are made before LVM would refuse, the pod waits with a
/// reason of its own, what is there can be removed, and then it goes on.
async fn metadata_area_full(test: &Test) -> Result<()> {
    let class = test.class_name("a");
    let disk = test.bed.disk(1, 0)?;
    let node = test.bed.node("node1")?;
    // As small as somebody may have made one that is handed over.
    let make = [
        "vgcreate",
        "--metadatasize",
        "100k",
        "--dataalignment",
        "64k",
        "--addtag",
        "quarry.version=1",
        &class,
        &disk,
    ];
    node.run_ok(make).await?;
    test.class(Class::new(&class, &[("node1", vec![disk.clone()])])).await?;
    test.ready(&class, 1).await?;
    test.claim(Claim::new("there", &class, "100Mi")).await?;
    test.pod(PodSpec::new("there").claim("there", false)).await?;
    test.running("there").await?;
    let left = || async {
        let rows = test.lvm("node1", "vgs", "vg_name,vg_mda_free").await?;
        let row = rows
            .iter()
            .find(|row| row["vg_name"] == class.as_str())
            .context("no group")?;
        Ok::<u64, anyhow::Error>(row["vg_mda_free"].as_str().unwrap_or_default().parse()?)
    };
    let before = left().await?;
    let mut made = 0;
    while left().await? >= 16 << 10 {
        let name = format!("by-hand-{made}");
        node.run_ok(["lvcreate", "-an", "-Zn", "-Wn", "-n", &name, "-l", "1", &class])
            .await?;
        made += 1;
        ensure!(
            made < 1000,
            "the area does not fill: {before} bytes before, {} now",
            left().await?
        );
    }
    println!(
        "   {before} bytes were left, {} after {made} more volumes",
        left().await?
    );
    let storage = format!("{class}.node1");
    let reason = || async {
        let status = test.storages().get(&storage).await?.status.context("no status")?;
        let ready = status
            .conditions
            .into_iter()
            .find(|c| c.type_ == "Ready")
            .context("no condition")?;
        Ok::<_, anyhow::Error>((
            ready.reason,
            ready.message,
            status.volume_group.map(|group| group.metadata_free),
        ))
    };
    test.wait("the node says so", Duration::from_secs(30), || async {
        Ok((reason().await?.0 == "MetadataFull").then_some(()))
    })
    .await?;
    let (_, message, published) = reason().await?;
    println!("   {message}; published: {published:?}");
    test.claim(Claim::new("more", &class, "100Mi")).await?;
    test.pod(PodSpec::new("more").claim("more", false)).await?;
    let told = [
        "FailedScheduling",
        "1 node(s) had no room for another volume in the LVM metadata of StorageClass",
    ];
    test.said("Pod", "more", &told).await?;
    ensure!(
        test.lvm("node1", "lvs", "lv_name").await?.len() == made + 1,
        "nothing was made"
    );
    let wide = test.bed.kubectl(&["get", "nls", &storage, "-o", "wide"]).await?;
    ensure!(wide.contains("MDA-FREE") && wide.contains("MetadataFull"), "{wide}");
    // What is there can still be removed, and changed.
    let volume = test.volume_of("there").await?.name_any();
    test.delete_pod("there").await?;
    test.delete_claim("there").await?;
    test.volume_gone(&volume).await?;
    for at in 0..made.min(20) {
        node.run_ok(["lvremove", "-y", &format!("{class}/by-hand-{at}")])
            .await?;
    }
    test.wait("the pod runs", PATIENCE, || async {
        let pod = test.pods().get("more").await?;
        let phase = pod.status.and_then(|status| status.phase);
        Ok((phase.as_deref() == Some("Running")).then_some(()))
    })
    .await
}
