//! `NodeLocalStorage`: what one StorageClass has on one node, and what is left of it.
//!
//! The class seeds `spec` by server-side apply under the manager's field manager; an administrator adds disks under
//! their own, and both merge because `spec.disks` is a map list keyed by path. `status` is written on change only and
//! stays small however many volumes there are. See `docs/node-local-storage.md`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::extents::{Bytes, ExtentSize, Extents};
use crate::quantity;

/// The disks of one node that belong to one StorageClass, and the volume group made of them.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "quarry.dev",
    version = "v1alpha1",
    kind = "NodeLocalStorage",
    plural = "nodelocalstorages",
    singular = "nodelocalstorage",
    shortname = "nls",
    category = "storage",
    status = "NodeLocalStorageStatus",
    selectable = ".spec.nodeName",
    selectable = ".spec.storageClassName",
    derive = "PartialEq",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Class", type_ = "string", json_path = ".spec.storageClassName"),
    printcolumn(name = "VG", type_ = "string", json_path = ".spec.volumeGroup"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.volumeGroup.size"),
    printcolumn(name = "Free", type_ = "string", json_path = ".status.volumeGroup.free"),
    printcolumn(name = "Largest", type_ = "string", json_path = ".status.volumeGroup.largest"),
    printcolumn(name = "Volumes", type_ = "integer", json_path = ".status.volumes"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1
    ),
    printcolumn(
        name = "MDA-Free",
        type_ = "string",
        json_path = ".status.volumeGroup.metadataFree",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.spec.storageClassName + '.' + self.spec.nodeName) > 253 || self.metadata.name == self.spec.storageClassName + '.' + self.spec.nodeName")
        .message("metadata.name must be <spec.storageClassName>.<spec.nodeName>"),
)]
#[serde(rename_all = "camelCase")]
pub struct NodeLocalStorageSpec {
    /// Name of the StorageClass that this belongs to.
    #[x_kube(validation = Rule::new("self == oldSelf").message("storageClassName is immutable"))]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: String,
    /// Name of the node whose disks these are.
    #[x_kube(validation = Rule::new("self == oldSelf").message("nodeName is immutable"))]
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
    /// Name of the LVM volume group on that node.
    #[x_kube(validation = Rule::new("self == oldSelf").message("volumeGroup is immutable"))]
    #[schemars(length(min = 1, max = 60), regex(pattern = r"^[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]*$"))]
    pub volume_group: String,
    /// How volumes lie on the disks: `linear` puts a volume on one disk where one has room, else over several.
    #[x_kube(validation = Rule::new("self in ['linear']").message("layout must be linear"))]
    pub layout: String,
    /// Whether kernel names such as /dev/sdb, which can belong to another disk after a reboot, are accepted.
    #[serde(default)]
    pub allow_unstable_names: bool,
    /// The disks of the volume group. Those of the class are kept by Quarry; add more under a field manager of your own.
    /// A disk taken off this list stays in the volume group: Quarry never removes one.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    #[schemars(length(max = 64))]
    pub disks: Vec<SpecDisk>,
}

/// A disk that is to belong to the volume group.
#[derive(KubeSchema, Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpecDisk {
    /// Path of a block device under /dev that follows the disk, such as one in /dev/disk/by-id.
    #[x_kube(validation = Rule::new(r"self.matches(r'^/dev(/[A-Za-z0-9+_.:=@#%,~\\-]+)+$') && !self.matches(r'/[.]{1,2}(/|$)')")
        .message("path must be a plain path under /dev, for example /dev/disk/by-id/nvme-A"))]
    #[schemars(length(min = 6, max = 255))]
    pub path: String,
}

/// What the manager of the node found and made.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeLocalStorageStatus {
    /// The volume group, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_group: Option<VolumeGroupStatus>,
    /// Each disk of the specification, and each further disk found in the volume group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    pub disks: Vec<DiskStatus>,
    /// The machine-id (machine-id(5)) of the machine on which the volume group was seen last: another machine may have
    /// the name of this node later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Number of logical volumes of Quarry in the volume group.
    #[serde(default)]
    pub volumes: i64,
    /// Ready, DisksAccepted, VolumeGroupReady, Degraded, OrphanVolumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The generation of the specification that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// A volume group and its capacity. Sizes are exact quantities: whole extents.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeGroupStatus {
    /// Name of the volume group.
    pub name: String,
    /// LVM's UUID of it: capacity is accounted under this, so that classes which share the group share its space.
    pub uuid: String,
    /// Size of one extent.
    pub extent_size: String,
    /// Size of all its extents.
    pub size: String,
    /// What is free now.
    pub free: String,
    /// The largest volume that could be made now.
    pub largest: String,
    /// Used by anything that no PersistentVolume or claim of Quarry stands for: volumes made by hand, orphans, extents
    /// on a missing disk. What the scheduler can count on is `size` less this, less the volumes and claims it knows.
    pub reserved: String,
    /// Free space in LVM's metadata area, which limits the number of volumes; in whole steps of 16Ki, so that a change of a few
    /// bytes is not written.
    pub metadata_free: String,
}

/// One disk.
#[derive(KubeSchema, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatus {
    /// The path in the specification, or the device where the disk is not listed there.
    pub path: String,
    /// The kernel's name for it at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// LVM's UUID of the physical volume on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Serial number that the disk reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Model that the disk reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `ssd` or `hdd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<String>,
    /// Size of the disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// What is free on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<String>,
    /// Claimed (in the volume group), Failing (in it, and reading it fails), Blank (about to be), Rejected or Missing.
    pub phase: String,
    /// Why, where it is Failing, Rejected or Missing, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Phases of a disk.
pub mod phase {
    /// It is part of the volume group.
    pub const CLAIMED: &str = "Claimed";
    /// It is part of the volume group, and reading it fails or takes too long: no new volume is made on it.
    pub const FAILING: &str = "Failing";
    /// It is fit, and about to become part of the volume group.
    pub const BLANK: &str = "Blank";
    /// It is refused, and has not been touched.
    pub const REJECTED: &str = "Rejected";
    /// It is not there, or does not answer.
    pub const MISSING: &str = "Missing";
}

/// Types of conditions.
pub mod condition {
    /// Volumes can be made.
    pub const READY: &str = "Ready";
    /// Every listed disk is in the volume group or fit for it.
    pub const DISKS_ACCEPTED: &str = "DisksAccepted";
    /// The volume group exists and is whole.
    pub const VOLUME_GROUP_READY: &str = "VolumeGroupReady";
    /// Something is lost or impaired that was there before, such as a disk.
    pub const DEGRADED: &str = "Degraded";
    /// There are logical volumes of Quarry without PersistentVolume and claim.
    pub const ORPHAN_VOLUMES: &str = "OrphanVolumes";

    /// The status that a condition has where all is well.
    #[must_use]
    pub fn good(kind: &str) -> &'static str {
        match kind {
            DEGRADED | ORPHAN_VOLUMES => "False",
            _ => "True",
        }
    }
}

/// Reason of [`condition::READY`] being False: LVM's metadata area has no room for another volume.
pub const METADATA_FULL: &str = "MetadataFull";

/// The figures of a volume group, read back from a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupFigures {
    /// LVM's UUID of the group.
    pub uuid: String,
    /// Size of one extent.
    pub extent_size: ExtentSize,
    /// All extents.
    pub size: Extents,
    /// Free extents.
    pub free: Extents,
    /// Extents used by what the API does not know.
    pub reserved: Extents,
    /// The largest volume that could be made.
    pub largest: Extents,
}

impl VolumeGroupStatus {
    /// The same of a group in which no volume can be made.
    #[must_use]
    pub fn without_room(mut self) -> Self {
        "0".clone_into(&mut self.largest);
        self
    }

    /// The figures in extents; `None` where a figure is missing or unreadable, which must count as no capacity.
    #[must_use]
    pub fn figures(&self) -> Option<GroupFigures> {
        let extent_size = ExtentSize::new(quantity::parse(&self.extent_size).ok()?)?;
        let extents = |text: &str| Some(extent_size.within(quantity::parse(text).ok()?));
        Some(GroupFigures {
            uuid: self.uuid.clone(),
            extent_size,
            size: extents(&self.size)?,
            free: extents(&self.free)?,
            reserved: extent_size.holding(quantity::parse(&self.reserved).ok()?),
            largest: extents(&self.largest)?,
        })
    }
}

impl GroupFigures {
    /// The status that states these figures.
    #[must_use]
    pub fn to_status(&self, name: &str, metadata_free: Bytes) -> VolumeGroupStatus {
        let text = |extents| self.extent_size.size_of(extents).unwrap_or(Bytes(u64::MAX)).to_string();
        VolumeGroupStatus {
            name: name.to_owned(),
            uuid: self.uuid.clone(),
            extent_size: self.extent_size.bytes().to_string(),
            size: text(self.size),
            free: text(self.free),
            largest: text(self.largest),
            reserved: text(self.reserved),
            metadata_free: Bytes(metadata_free.0 / METADATA_STEP * METADATA_STEP).to_string(),
        }
    }
}

/// In such steps the free space of a metadata area is published, in bytes: some thirty volumes.
const METADATA_STEP: u64 = 16 << 10;

impl NodeLocalStorage {
    /// Whether volumes can be made here: the condition Ready is True.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(NodeLocalStorageStatus::is_ready)
    }

    /// Whether no volumes can be made here because LVM's metadata area has no room for one more.
    #[must_use]
    pub fn is_metadata_full(&self) -> bool {
        let ready = self.status.as_ref().and_then(NodeLocalStorageStatus::ready);
        ready.is_some_and(|ready| ready.status == "False" && ready.reason == METADATA_FULL)
    }
}

impl NodeLocalStorageStatus {
    /// Whether volumes can be made here: the condition Ready is True.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready().is_some_and(|ready| ready.status == "True")
    }

    fn ready(&self) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.type_ == condition::READY)
    }
}

/// The CustomResourceDefinition as YAML, as `deploy/` ships it.
///
/// # Panics
/// Never: the definition is made of plain strings and maps.
#[must_use]
pub fn manifest() -> String {
    use kube::CustomResourceExt;
    let text = serde_saphyr::to_string(&NodeLocalStorage::crd()).unwrap_or_default();
    format!("# Made by `make crds` from crds/src/node_local_storage.rs.\n{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_survive_the_status() {
        let figures = GroupFigures {
            uuid: "u".into(),
            extent_size: ExtentSize::DEFAULT,
            size: Extents(3839),
            free: Extents(1000),
            reserved: Extents(7),
            largest: Extents(1000),
        };
        assert_eq!(figures.to_status("fast", Bytes(1)).figures().as_ref(), Some(&figures));
        let shown = |bytes| figures.to_status("fast", Bytes(bytes)).metadata_free;
        assert_eq!(
            [shown(16_383), shown(16_384), shown(8_908_800)],
            ["0", "16Ki", "8688Ki"]
        );
        assert_eq!(VolumeGroupStatus::default().figures(), None);
    }

    #[test]
    fn the_definition_that_is_shipped_is_the_one_of_this_code() {
        let shipped = include_str!("../../deploy/base/crd.yaml");
        assert!(
            shipped == manifest(),
            "deploy/base/crd.yaml is out of date: run `make crds`"
        );
    }
}
