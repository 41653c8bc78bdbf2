//! What there is, by the word of the API server, of LVM and of the kernel of each node: never by that of the manager.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use quarry_bed::Node;
use quarry_crds::NodeLocalStorage;
use quarry_crds::names::{PROVISIONED_BY, is_volume_provisioner};
use quarry_e2e::lvm::rows;
use quarry_e2e::test::Test;
use serde_json::Value;

use crate::data::MOUNTED;

/// A volume group, by `vgs`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// LVM's UUID of it.
    pub uuid: String,
    /// All of it, in bytes.
    pub size: u64,
    /// What is free, in bytes.
    pub free: u64,
    /// Its disks.
    pub disks: usize,
}

/// A logical volume, by `lvs`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logical {
    /// Its name.
    pub name: String,
    /// The name of its group.
    pub group: String,
    /// LVM's UUID of it.
    pub uuid: String,
    /// In bytes.
    pub size: u64,
    /// Its tags.
    pub tags: String,
}

/// A volume that is mounted for a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounted {
    /// The name of the PersistentVolume.
    pub volume: String,
    /// The random word on it.
    pub word: String,
    /// Its pattern: the different lines with their numbers.
    pub pattern: String,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Its volume groups.
    pub groups: Vec<Group>,
    /// Their logical volumes.
    pub volumes: Vec<Logical>,
    /// Disks with LVM's label that are in no group.
    pub labelled: Vec<String>,
    /// Names of device-mapper's devices of volume groups.
    pub mapped: BTreeSet<String>,
    /// Volumes mounted for pods.
    pub mounted: Vec<Mounted>,
}

/// All of it, at about the same time.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The claims of the run.
    pub claims: Vec<PersistentVolumeClaim>,
    /// The volumes of Quarry.
    pub volumes: Vec<PersistentVolume>,
    /// The pods of the run.
    pub pods: Vec<Pod>,
    /// The NodeLocalStorages.
    pub storages: Vec<NodeLocalStorage>,
    /// The nodes.
    pub nodes: Vec<NodeView>,
}

/// The name that device-mapper gives a logical volume.
#[must_use]
pub fn mapped_name(group: &str, volume: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--"))
}

/// Looks at everything.
///
/// # Errors
/// Something does not answer.
pub async fn look(test: &Test) -> Result<Snapshot> {
    let all = ListParams::default();
    let volumes = test.volumes().list(&all).await?.items;
    let ours = |volume: &PersistentVolume| {
        let annotations = volume.metadata.annotations.as_ref();
        annotations
            .and_then(|annotations| annotations.get(PROVISIONED_BY))
            .is_some_and(|value| is_volume_provisioner(value))
    };
    Ok(Snapshot {
        claims: test.claims().list(&all).await?.items,
        volumes: volumes.into_iter().filter(ours).collect(),
        pods: test.pods().list(&all).await?.items,
        storages: test.storages().list(&all).await?.items,
        nodes: try_join_all(test.bed.cluster.nodes().iter().map(node)).await?,
    })
}

async fn node(node: &Node) -> Result<NodeView> {
    let groups = rows(node, "vgs", "vg_name,vg_uuid,vg_size,vg_free,pv_count").await?;
    let volumes = rows(node, "lvs", "lv_name,vg_name,lv_uuid,lv_size,lv_tags").await?;
    let labelled = rows(node, "pvs", "pv_name,vg_name").await?;
    let mapped = node.run_ok(["dmsetup", "ls"]).await?;
    let mounted = node.run_ok(["sh", "-c", MOUNTED]).await?;
    Ok(NodeView {
        name: node.name().to_owned(),
        groups: groups
            .iter()
            .map(|row| {
                Ok(Group {
                    name: text(row, "vg_name"),
                    uuid: text(row, "vg_uuid"),
                    size: number(row, "vg_size")?,
                    free: number(row, "vg_free")?,
                    disks: usize::try_from(number(row, "pv_count")?)?,
                })
            })
            .collect::<Result<_>>()?,
        volumes: volumes
            .iter()
            .map(|row| {
                Ok(Logical {
                    name: text(row, "lv_name"),
                    group: text(row, "vg_name"),
                    uuid: text(row, "lv_uuid"),
                    size: number(row, "lv_size")?,
                    tags: text(row, "lv_tags"),
                })
            })
            .collect::<Result<_>>()?,
        labelled: labelled
            .iter()
            .filter(|row| text(row, "vg_name").is_empty())
            .map(|row| text(row, "pv_name"))
            .collect(),
        mapped: mapped
            .lines()
            .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
            .filter(|name| name.starts_with("torture"))
            .collect(),
        mounted: mounted.lines().filter_map(mounted_line).collect(),
    })
}

fn mounted_line(line: &str) -> Option<Mounted> {
    let mut words = line.splitn(3, ' ');
    Some(Mounted {
        volume: words.next()?.to_owned(),
        word: words.next()?.to_owned(),
        pattern: words.next().unwrap_or_default().trim().to_owned(),
    })
}

fn text(row: &Value, column: &str) -> String {
    row[column].as_str().unwrap_or_default().to_owned()
}

fn number(row: &Value, column: &str) -> Result<u64> {
    let value = &row[column];
    match value.as_u64() {
        Some(number) => Ok(number),
        None => text(row, column)
            .parse()
            .with_context(|| format!("{column} is {value}")),
    }
}

impl Snapshot {
    /// Each logical volume of that name, with its node.
    pub fn logical<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a NodeView, &'a Logical)> {
        let of = move |node: &'a NodeView| node.volumes.iter().map(move |volume| (node, volume));
        self.nodes
            .iter()
            .flat_map(of)
            .filter(move |(_, volume)| volume.name == name)
    }

    /// Claims by name.
    #[must_use]
    pub fn claims_by_name(&self) -> BTreeMap<String, &PersistentVolumeClaim> {
        let named = |claim: &PersistentVolumeClaim| claim.metadata.name.clone().unwrap_or_default();
        self.claims.iter().map(|claim| (named(claim), claim)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_mapper_doubles_dashes() {
        assert_eq!(mapped_name("torture-g1", "pvc-1-2"), "torture--g1-pvc--1--2");
    }

    #[test]
    fn a_mounted_volume_is_read() {
        let read = mounted_line("pvc-1 1234 16384 torture-00-c1-0-....").expect("read");
        assert_eq!((read.volume.as_str(), read.word.as_str()), ("pvc-1", "1234"));
        assert_eq!(read.pattern, "16384 torture-00-c1-0-....");
    }
}
