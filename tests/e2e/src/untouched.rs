//! What the nodes hold, in LVM's words and byte for byte: to show that something was left alone.
//! And events that are none of this run.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};
use quarry_bed::{Disk, Node};
use serde_json::Value;

use crate::test::Test;

/// What is compared at a time: a page. Pages of zeros count as holes.
const PAGE: usize = 4096;
/// What is read at a time.
const CHUNK: i64 = 1 << 20;

/// What LVM and the data disks of a node hold.
#[derive(Debug, PartialEq)]
pub struct Held {
    node: String,
    groups: Vec<Value>,
    volumes: Vec<Value>,
    physical: Vec<Value>,
    /// Serial number and checksum of each disk.
    pub disks: Vec<(String, String)>,
}

impl Held {
    /// Reads all nodes.
    ///
    /// # Errors
    /// A node does not answer, or a disk cannot be read.
    pub async fn by_nodes(test: &Test) -> Result<Vec<Self>> {
        let mut held = Vec::new();
        for node in test.bed.cluster.nodes() {
            let name = node.name();
            // The sequence number of a group counts every change of its metadata.
            let groups = test
                .lvm(name, "vgs", "vg_name,vg_uuid,vg_seqno,vg_tags,vg_size,vg_free")
                .await?;
            let volumes = test.lvm(name, "lvs", "lv_name,vg_name,lv_uuid,lv_size,lv_tags").await?;
            let physical = test
                .lvm(name, "pvs", "pv_name,pv_uuid,vg_name,pv_size,pv_free,dev_size")
                .await?;
            let mut disks = Vec::new();
            for disk in node.disks() {
                disks.push((disk.serial.clone(), checksum(&node, &disk).await?));
            }
            held.push(Self {
                node: name.to_owned(),
                groups,
                volumes,
                physical,
                disks,
            });
        }
        Ok(held)
    }

    /// Makes sure that nothing has changed since on any node.
    ///
    /// # Errors
    /// Something has, or cannot be read.
    pub async fn is_still(test: &Test, before: &[Self]) -> Result<()> {
        let after = Self::by_nodes(test).await?;
        ensure!(before.len() == after.len(), "there are other nodes now");
        for (before, after) in before.iter().zip(after) {
            ensure!(*before == after, "changed:\nbefore {before:#?}\nafter {after:#?}");
        }
        Ok(())
    }
}

/// Deletes what was said of classes of this test in former runs: Kubernetes keeps events of objects that are gone.
///
/// # Errors
/// The API server did not answer.
pub async fn forget_events(test: &Test) -> Result<()> {
    let events: Api<Event> = Api::namespaced(test.client(), "default");
    for event in events.list(&ListParams::default()).await?.items {
        let of = event
            .regarding
            .as_ref()
            .and_then(|object| object.name.as_deref())
            .unwrap_or_default();
        if of.starts_with(&test.class_name("")) {
            events.delete(&event.name_any(), &DeleteParams::default()).await?;
        }
    }
    Ok(())
}

/// A checksum of everything on a disk.
async fn checksum(node: &Node, disk: &Disk) -> Result<String> {
    node.run_ok(["sync"]).await?;
    node.run_ok(["blockdev", "--flushbufs", &disk.id]).await?;
    let file = disk.file.clone();
    let sum = tokio::task::spawn_blocking(move || checksum_of(&file)).await?;
    sum.with_context(|| format!("reading {}", disk.file.display()))
}

/// A checksum of all pages of a file that are not zero, with their places. Whether zeros are stored or are a hole is the
/// business of the machine's file system, which changes its mind.
///
/// # Errors
/// It cannot be read.
pub fn checksum_of(path: &Path) -> Result<String> {
    let file = File::open(path)?;
    let mut sum = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut to = sum.stdin.take().context("no input")?;
    let mut chunk = vec![0; usize::try_from(CHUNK)?];
    let zeros = [0; PAGE];
    let mut at = 0;
    loop {
        at = match lseek64(&file, at, Whence::SeekData) {
            Ok(data) => data / CHUNK * CHUNK,
            // No more data.
            Err(Errno::ENXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let place = u64::try_from(at)?;
        let wanted = chunk.len().min(usize::try_from(file.metadata()?.len() - place)?);
        file.read_exact_at(&mut chunk[..wanted], place)?;
        for (index, page) in (0_u64..).zip(chunk[..wanted].chunks(PAGE)) {
            if page != &zeros[..page.len()] {
                to.write_all(&(place + index * PAGE as u64).to_le_bytes())?;
                to.write_all(page)?;
            }
        }
        at += CHUNK;
    }
    drop(to);
    let mut text = String::new();
    sum.stdout.take().context("no output")?.read_to_string(&mut text)?;
    ensure!(sum.wait()?.success(), "sha256sum failed");
    Ok(text.trim_end_matches(['-', ' ', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_counts_and_how_zeros_are_stored_does_not() -> Result<()> {
        let path = std::env::temp_dir().join(format!("quarry-e2e-untouched-{}", std::process::id()));
        let sum_of = |writes: &[(u64, &[u8])]| -> Result<String> {
            let file = File::create(&path)?;
            file.set_len(5 << 20)?;
            for (place, bytes) in writes {
                file.write_all_at(bytes, *place)?;
            }
            checksum_of(&path)
        };
        let blank = sum_of(&[])?;
        assert_eq!(blank, sum_of(&[(4096, &[0; 8192]), ((5 << 20) - 1, &[0])])?);
        let one = sum_of(&[(3 << 20, &[1])])?;
        let last = sum_of(&[((5 << 20) - 1, &[1])])?;
        let moved = sum_of(&[(2 << 20, &[1])])?;
        std::fs::remove_file(&path)?;
        assert!(one.len() == 64 && one != blank && last != blank && one != moved && one != last);
        Ok(())
    }
}
