//! A volume's whole way: class, volume group, placement, logical volume, PersistentVolume, pod with data; and again.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use quarry_crds::{Bytes, quantity};
use serde_json::json;

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(ext4_keeps_data),
    case!(xfs_keeps_data),
    case!(btrfs_keeps_data),
    case!(block_keeps_data),
    case!(read_write_once_pod),
    case!(immediate_binding),
    case!(ephemeral_volume),
    case!(mount_options),
];

/// The size of a claim's volume, as PersistentVolume and LVM have it.
async fn sizes_agree(test: &Test, volume: &PersistentVolume, node: &str) -> Result<u64> {
    let name = volume.name_any();
    let capacity = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.capacity.as_ref()?.get("storage").cloned());
    let capacity = quantity::parse(&capacity.context("no capacity")?.0)?;
    let row = test
        .logical_volume(node, &name)
        .await?
        .with_context(|| format!("no logical volume {name} on {node}"))?;
    let size: u64 = row["lv_size"].as_str().unwrap_or_default().parse()?;
    ensure!(
        capacity == Bytes(size),
        "PersistentVolume has {capacity}, LVM has {size}"
    );
    Ok(size)
}

async fn file_system_keeps_data(test: &Test, fs_type: &str, size: &str, least: u64) -> Result<()> {
    let class = Class::new(&test.class_name("a"), &test.each_node(0)?).parameter("fsType", fs_type);
    let class = test.class(class).await?;
    test.ready(&class, 3).await?;
    test.claim(Claim::new("data", &class, size)).await?;
    let pod = PodSpec::new("writer").claim("data", false);
    test.pod(pod).await?;
    let node = test.running("writer").await?;
    let mounted = test.exec("writer", &["stat", "-f", "-c", "%T", "/data"]).await?;
    let shown = if fs_type == "ext4" { "ext2/ext3" } else { fs_type };
    ensure!(mounted.trim() == shown, "asked for {fs_type}, mounted is {mounted}");
    test.exec(
        "writer",
        &["sh", "-c", "dd if=/dev/urandom of=/data/file bs=64k count=64 && sync"],
    )
    .await?;
    let sum = test.exec("writer", &["sha256sum", "/data/file"]).await?;
    let volume = test.volume_of("data").await?;
    let size = sizes_agree(test, &volume, &node).await?;
    let row = test
        .logical_volume(&node, &volume.name_any())
        .await?
        .context("no logical volume")?;
    let tags = row["lv_tags"].as_str().unwrap_or_default();
    ensure!(
        tags.contains("quarry.pvc-uid=") && tags.contains(&format!("quarry.class={class}")),
        "tags: {tags}"
    );
    let total: u64 = test
        .exec("writer", &["df", "-B1", "--output=size", "/data"])
        .await?
        .lines()
        .nth(1)
        .unwrap_or_default()
        .trim()
        .parse()?;
    ensure!(
        total <= size && total * 100 >= size * least,
        "the file system has {total} of {size} bytes"
    );
    test.delete_pod("writer").await?;
    test.pod(PodSpec::new("reader").claim("data", false)).await?;
    ensure!(
        test.running("reader").await? == node,
        "the second pod must be where the data is"
    );
    let again = test.exec("reader", &["sha256sum", "/data/file"]).await?;
    ensure!(sum == again, "written {sum}, read {again}");
    Ok(())
}

async fn ext4_keeps_data(test: &Test) -> Result<()> {
    file_system_keeps_data(test, "ext4", "500Mi", 85).await
}

async fn xfs_keeps_data(test: &Test) -> Result<()> {
    file_system_keeps_data(test, "xfs", "501Mi", 75).await
}

async fn btrfs_keeps_data(test: &Test) -> Result<()> {
    file_system_keeps_data(test, "btrfs", "502Mi", 99).await
}

async fn block_keeps_data(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    test.claim(Claim::new("disk", &class, "101Mi").block()).await?;
    test.pod(PodSpec::new("writer").claim("disk", true)).await?;
    let node = test.running("writer").await?;
    let volume = test.volume_of("disk").await?;
    let size = sizes_agree(test, &volume, &node).await?;
    ensure!(size == Bytes::mib(104).0, "101Mi are 26 extents, 104Mi; it has {size}");
    let seen: u64 = test
        .exec("writer", &["blockdev", "--getsize64", "/dev/disk"])
        .await?
        .trim()
        .parse()?;
    ensure!(seen == size, "the pod sees {seen} bytes");
    test.exec(
        "writer",
        &["sh", "-c", "dd if=/dev/urandom of=/dev/disk bs=1M count=104 && sync"],
    )
    .await?;
    let sum = test.exec("writer", &["sha256sum", "/dev/disk"]).await?;
    test.delete_pod("writer").await?;
    test.pod(PodSpec::new("reader").claim("disk", true)).await?;
    ensure!(test.running("reader").await? == node);
    let again = test.exec("reader", &["sha256sum", "/dev/disk"]).await?;
    ensure!(sum == again, "written {sum}, read {again}");
    Ok(())
}

async fn read_write_once_pod(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    test.claim(Claim::new("data", &class, "100Mi").with("accessModes", json!(["ReadWriteOncePod"])))
        .await?;
    test.pod(PodSpec::new("only").claim("data", false)).await?;
    test.running("only").await?;
    let modes = test.volume_of("data").await?.spec.and_then(|spec| spec.access_modes);
    ensure!(modes == Some(vec!["ReadWriteOncePod".to_owned()]), "{modes:?}");
    Ok(())
}

async fn immediate_binding(test: &Test) -> Result<()> {
    let class = Class::new(&test.class_name("a"), &test.each_node(0)?).with("volumeBindingMode", "Immediate");
    let class = test.class(class).await?;
    test.ready(&class, 3).await?;
    test.claim(Claim::new("data", &class, "100Mi")).await?;
    let node = test
        .wait("the claim is bound without any pod", crate::test::PATIENCE, || async {
            let claim = test.claims().get("data").await?;
            let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
            Ok(bound
                .then(|| claim.annotations().get(quarry_crds::names::SELECTED_NODE).cloned())
                .flatten())
        })
        .await?;
    let mut made = 0;
    for one in ["node1", "node2", "node3"] {
        made += test.lvm(one, "lvs", "lv_name").await?.len();
    }
    ensure!(made == 1, "one volume on one node, not {made}");
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    ensure!(test.running("user").await? == node);
    Ok(())
}

async fn ephemeral_volume(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    test.pod(PodSpec::new("scratch").ephemeral("tmp", &class, "100Mi"))
        .await?;
    let node = test.running("scratch").await?;
    test.exec("scratch", &["sh", "-c", "echo hello > /tmp/file && sync"])
        .await?;
    let before = test.free_on(&node, &class).await?;
    test.delete_pod("scratch").await?;
    test.wait("its space is back", crate::test::PATIENCE, || async {
        Ok((test.free_on(&node, &class).await? == before + Bytes::mib(100).0).then_some(()))
    })
    .await
}

async fn mount_options(test: &Test) -> Result<()> {
    let class = Class::new(&test.class_name("a"), &test.each_node(0)?).with("mountOptions", json!(["noatime"]));
    let class = test.class(class).await?;
    test.ready(&class, 3).await?;
    test.claim(Claim::new("data", &class, "100Mi")).await?;
    test.pod(PodSpec::new("user").claim("data", false)).await?;
    test.running("user").await?;
    let mounts = test.exec("user", &["cat", "/proc/mounts"]).await?;
    let line = mounts.lines().find(|line| line.contains(" /data ")).unwrap_or_default();
    ensure!(line.contains("noatime"), "{line}");
    Ok(())
}
