//! The worst loss: a volume group whose only disk is gone. Figures and events say so.

use anyhow::{Result, ensure};
use quarry_crds::node_local_storage::condition;

use crate::case;
use crate::device_faults::{is_told, metric, said_of_both, serve, status, with_guests};
use crate::objects::{Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(a_group_loses_its_only_disk)];

/// The figures of a group, as they are while its one disk is gone; the size is as it was.
const GONE: [(&str, &str, &str); 4] = [
    ("quarry_disks_at_fault", ",fault=\"DiskMissing\"", "1"),
    ("quarry_volumes_hit", "", "1"),
    ("quarry_vg_free_bytes", "", "0"),
    ("quarry_vg_ready", "", "0"),
];

async fn a_group_loses_its_only_disk(test: &Test) -> Result<()> {
    with_guests(test, lose).await
}

async fn figure(test: &Test, class: &str, name: &str, labels: &str) -> Result<Option<String>> {
    metric(test, &format!("{name}{{vg=\"{class}\"{labels}}}")).await
}

async fn lose(test: &Test) -> Result<()> {
    let node = test.bed.node("node1")?;
    let disk = test.bed.disk(1, 0)?;
    let class = test
        .class(Class::new(&test.class_name("a"), &[("node1", vec![disk.clone()])]))
        .await?;
    test.ready(&class, 1).await?;
    let volume = serve(test, &class, "hit", "1Gi").await?;
    let size = figure(test, &class, "quarry_vg_size_bytes", "").await?;
    ensure!(figure(test, &class, "quarry_vg_ready", "").await?.as_deref() == Some("1"));
    node.take_disk(&disk).await?;
    let gone = while_gone(test, &class, &volume, size.as_deref()).await;
    node.return_disk(&disk).await?;
    gone?;
    status(test, &class, "whole again", |status| {
        is_told(status, condition::DEGRADED, "False", &[]) && is_told(status, condition::READY, "True", &[])
    })
    .await?;
    said_of_both(test, &volume, "hit", &["VolumeGroupBack", "delete the pod"]).await?;
    for (name, labels, value) in [
        ("quarry_disks_at_fault", ",fault=\"DiskMissing\"", "0"),
        ("quarry_volumes_hit", "", "0"),
        ("quarry_vg_ready", "", "1"),
    ] {
        let found = figure(test, &class, name, labels).await?;
        ensure!(found.as_deref() == Some(value), "{name}: {found:?}");
    }
    test.delete_pod("hit").await?;
    test.pod(PodSpec::new("again").claim("hit", false).on("node1")).await?;
    test.running("again").await?;
    ensure!(test.exec("again", &["cat", "/hit/file"]).await? == "hit\n");
    Ok(())
}

async fn while_gone(test: &Test, class: &str, volume: &str, size: Option<&str>) -> Result<()> {
    status(test, class, "the group is missed", |status| {
        is_told(status, condition::DEGRADED, "True", &["VolumeGroupMissing"])
    })
    .await?;
    let told = test.wait("the figures say so", PATIENCE, || async {
        for (name, labels, value) in GONE {
            if figure(test, class, name, labels).await?.as_deref() != Some(value) {
                return Ok(None);
            }
        }
        Ok(Some(figure(test, class, "quarry_vg_size_bytes", "").await?))
    });
    let told = told.await?;
    println!("   gone: {GONE:?}, size {told:?}");
    ensure!(told.as_deref() == size && size.is_some(), "the size was {size:?}");
    said_of_both(test, volume, "hit", &["VolumeLost", "VolumeGroupMissing", volume]).await
}
