//! Disks whose sectors are of two sizes: no volume group of both is made, and LVM would not make one.

use anyhow::{Context as _, Result, ensure};
use quarry_bed::Node;
use quarry_crds::node_local_storage::DiskStatus;

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(sectors_of_two_sizes)];

/// A file that a loop device shows as a disk with sectors of 4096 bytes, and a lasting name of that.
const FILE: &str = "/var/lib/large-sectors.img";
const LARGE: &str = "/dev/disk/by-path/large-sectors";

async fn sectors_of_two_sizes(test: &Test) -> Result<()> {
    restore(test).await?;
    let result = refused_by_either(test).await;
    let told = match &result {
        Ok(()) => String::new(),
        Err(_) => test.tell().await,
    };
    let cleaned = test.clean().await;
    let restored = restore(test).await;
    result.context(told).and(cleaned).and(restored)
}

/// The disk that is listed first decides, whichever it is.
async fn refused_by_either(test: &Test) -> Result<()> {
    for node in ["node1", "node2"] {
        attach(&test.bed.node(node)?).await?;
    }
    let disk = |node| test.bed.disk(node, 0);
    let small = Class::new(
        &test.class_name("small"),
        &[("node1", vec![disk(1)?, LARGE.to_owned()])],
    );
    let small = test.class(small).await?;
    let refused = refused(test, &small, "node1", LARGE).await?;
    println!("   {LARGE} {refused}");
    ensure!(
        refused.contains("sectors of 4096 bytes") && refused.contains("of 512"),
        "{refused}"
    );
    let vgextend = test.bed.node("node1")?.run(["vgextend", &small, LARGE]).await?;
    println!("   vgextend: {}", vgextend.stderr.trim());
    ensure!(
        !vgextend.success() && vgextend.stderr.contains("block size"),
        "LVM makes such a group after all: {vgextend:?}"
    );

    let large = Class::new(
        &test.class_name("large"),
        &[("node2", vec![LARGE.to_owned(), disk(2)?])],
    );
    let large = test.class(large.parameter("fsType", "xfs")).await?;
    let refused = self::refused(test, &large, "node2", &disk(2)?).await?;
    ensure!(
        refused.contains("sectors of 512 bytes") && refused.contains("of 4096"),
        "{refused}"
    );
    // A volume with large sectors serves like any other.
    test.claim(Claim::new("served", &large, "400Mi")).await?;
    test.pod(PodSpec::new("user").claim("served", false)).await?;
    let node = test.running("user").await?;
    ensure!(node == "node2", "on {node}");
    let sector = "blockdev --getss $(findmnt -no SOURCE /served)";
    println!(
        "   {}",
        test.exec(
            "user",
            &["sh", "-c", &format!("findmnt -no FSTYPE /served; {sector} || true")]
        )
        .await?
    );
    Ok(())
}

/// Why a disk is refused; the other disk of the class is in the group.
async fn refused(test: &Test, class: &str, node: &str, path: &str) -> Result<String> {
    let name = format!("{class}.{node}");
    let of_path = |disk: &&DiskStatus| disk.path == path;
    test.wait("one disk is taken, the other refused", PATIENCE, || async {
        let storage = test.storages().get_opt(&name).await?;
        let status = storage.and_then(|storage| storage.status).unwrap_or_default();
        let taken = status.disks.iter().filter(|disk| disk.phase == "Claimed").count();
        let refused = status
            .disks
            .iter()
            .find(of_path)
            .filter(|disk| disk.phase == "Rejected");
        Ok(refused
            .filter(|_| taken == 1)
            .map(|disk| disk.reason.clone().unwrap_or_default()))
    })
    .await
}

async fn attach(node: &Node) -> Result<()> {
    node.run_ok(["truncate", "-s", "640M", FILE]).await?;
    let device = node
        .run_ok(["losetup", "--find", "--show", "--sector-size", "4096", FILE])
        .await?;
    let sector = node.run_ok(["blockdev", "--getss", device.trim()]).await?;
    ensure!(sector.trim() == "4096", "sectors of {sector}");
    node.run_ok(["ln", "-s", device.trim(), LARGE]).await?;
    Ok(())
}

async fn restore(test: &Test) -> Result<()> {
    for name in ["node1", "node2"] {
        let node = test.bed.node(name)?;
        let associated = ["losetup", "--noheadings", "--output", "NAME", "--associated", FILE];
        for device in node.run(associated).await?.stdout.split_whitespace() {
            node.run_ok(["losetup", "--detach", device])
                .await
                .context("the loop device is held")?;
        }
        node.run_ok(["rm", "-f", LARGE, FILE]).await?;
    }
    Ok(())
}
