//! LVM on the nodes, by its own word and not by ours.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quarry_bed::Node;
use serde_json::Value;

use crate::test::Test;

/// LVM's own report of a node: rows of `vgs`, `lvs` or `pvs` with these columns, sizes in bytes.
///
/// # Errors
/// The command failed.
pub async fn rows(node: &Node, command: &str, columns: &str) -> Result<Vec<Value>> {
    let argv = [
        command,
        "--reportformat",
        "json",
        "--units",
        "b",
        "--nosuffix",
        "-o",
        columns,
    ];
    let report: Value = serde_json::from_str(&node.run_ok(argv).await?)?;
    let kind = command.trim_end_matches('s');
    Ok(report["report"][0][kind].as_array().cloned().unwrap_or_default())
}

impl Test {
    /// LVM's own report of a node: rows of `vgs`, `lvs` or `pvs` with these columns.
    ///
    /// # Errors
    /// The command failed.
    pub async fn lvm(&self, node: &str, command: &str, columns: &str) -> Result<Vec<Value>> {
        rows(&self.bed.node(node)?, command, columns).await
    }

    /// The logical volume of that name on a node: its row.
    ///
    /// # Errors
    /// The command failed.
    pub async fn logical_volume(&self, node: &str, name: &str) -> Result<Option<Value>> {
        let rows = self.lvm(node, "lvs", "lv_name,vg_name,lv_size,lv_uuid,lv_tags").await?;
        Ok(rows.into_iter().find(|row| row["lv_name"] == name))
    }

    /// Free bytes of a volume group on a node, by LVM's own word.
    ///
    /// # Errors
    /// There is none.
    pub async fn free_on(&self, node: &str, group: &str) -> Result<u64> {
        let rows = self.lvm(node, "vgs", "vg_name,vg_free").await?;
        let row = rows
            .iter()
            .find(|row| row["vg_name"] == group)
            .context("no such volume group")?;
        Ok(row["vg_free"].as_str().unwrap_or_default().parse()?)
    }

    /// Fills the volume group of a class on a node by hand, until only so many bytes are left.
    ///
    /// # Errors
    /// There are fewer.
    pub async fn leave_free(&self, node: &str, group: &str, bytes: u64) -> Result<()> {
        let free = self.free_on(node, group).await?;
        let filler = free.checked_sub(bytes).context("there is less")?;
        let fill = ["lvcreate", "-y", "-n", "filler", "-L", &format!("{filler}b"), group];
        self.bed.node(node)?.run_ok(fill).await.map(drop).context("filling it")
    }

    /// Waits until so many bytes are published as free in a NodeLocalStorage.
    ///
    /// # Errors
    /// They are not after half a minute.
    pub async fn published_free(&self, storage: &str, bytes: u64) -> Result<()> {
        let what = format!("{bytes} bytes free in {storage}");
        self.wait(&what, Duration::from_secs(30), || async {
            let status = self.storages().get(storage).await?.status;
            let group = status.and_then(|status| status.volume_group).context("no figures")?;
            Ok((quarry_crds::quantity::parse(&group.free)?.0 == bytes).then_some(()))
        })
        .await
    }
}

/// Makes every data disk of a node blank.
///
/// # Errors
/// A disk is in use.
pub async fn blank(node: &Node) -> Result<()> {
    // kubelet lets go of a volume some seconds after its pod is gone; wiping the disk under it would leave its device behind.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut refused = String::new();
        for uuid in node
            .run_ok(["vgs", "--noheadings", "-o", "vg_uuid"])
            .await?
            .split_whitespace()
        {
            let removed = node
                .run(["vgremove", "-f", "-y", "--select", &format!("vg_uuid={uuid}")])
                .await?;
            refused.push_str(&removed.stderr);
        }
        if node
            .run_ok(["vgs", "--noheadings", "-o", "vg_uuid"])
            .await?
            .trim()
            .is_empty()
        {
            break;
        }
        ensure!(Instant::now() < deadline, "a volume group cannot be removed: {refused}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    for disk in node.disks() {
        let there = node.run(["test", "-b", &disk.id]).await?;
        if there.status == 0 {
            let wiped = node.run(["wipefs", "-q", "-a", "-f", &disk.id]).await?;
            ensure!(wiped.status == 0, "{}: {}", disk.id, wiped.stderr);
        }
    }
    Ok(())
}
