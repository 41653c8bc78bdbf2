//! The PersistentVolume of a logical volume: built here, and read back here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::claim::{ClaimRequest, VolumeMode};
use crate::extents::Bytes;
use crate::names::{
    HOSTNAME_LABEL, MACHINE_ID_ANNOTATION, NODE_ANNOTATION, NODE_LABEL, PROVISIONED_BY, VOLUME_FINALIZER,
    VOLUME_GROUP_ANNOTATION, VOLUME_GROUP_UUID_ANNOTATION, VOLUME_PROVISIONER, claim_uid_of_volume, device_path,
    is_volume_provisioner, volume_name,
};
use crate::storage_class::FsType;
use crate::{labels, quantity};

/// Where a logical volume is, and how large it really is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed<'a> {
    /// Name of the node.
    pub node: &'a str,
    /// Value of the node's label `kubernetes.io/hostname`, which can differ from its name.
    pub hostname: &'a str,
    /// Name of the volume group.
    pub volume_group: &'a str,
    /// LVM's UUID of the volume group.
    pub volume_group_uuid: &'a str,
    /// machine-id of the machine, where it is known.
    pub machine: Option<&'a str>,
    /// Real size of the logical volume: whole extents, at least what was asked.
    pub size: Bytes,
}

/// The PersistentVolume for a claim (kubernetes-sigs/sig-storage-lib-external-provisioner, `provisionClaimOperation`).
#[must_use]
pub fn build(
    claim: &PersistentVolumeClaim,
    request: &ClaimRequest,
    class: &StorageClass,
    fs_type: FsType,
    placed: &Placed<'_>,
) -> PersistentVolume {
    let name = volume_name(&request.uid);
    let path = device_path(placed.volume_group, &name);
    let annotations = [
        Some((PROVISIONED_BY, VOLUME_PROVISIONER)),
        Some((NODE_ANNOTATION, placed.node)),
        Some((VOLUME_GROUP_ANNOTATION, placed.volume_group)),
        Some((VOLUME_GROUP_UUID_ANNOTATION, placed.volume_group_uuid)),
        placed.machine.map(|machine| (MACHINE_ID_ANNOTATION, machine)),
    ];
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name),
            annotations: Some(
                annotations
                    .into_iter()
                    .flatten()
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect(),
            ),
            labels: Some(BTreeMap::from([(NODE_LABEL.to_owned(), labels::value(placed.node))])),
            finalizers: Some(vec![VOLUME_FINALIZER.to_owned()]),
            ..Default::default()
        },
        spec: Some(PersistentVolumeSpec {
            capacity: Some(BTreeMap::from([(
                "storage".to_owned(),
                Quantity(placed.size.to_string()),
            )])),
            access_modes: Some(request.access_modes.clone()),
            volume_mode: Some(request.volume_mode.as_str().to_owned()),
            persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned())),
            storage_class_name: class.metadata.name.clone(),
            mount_options: match request.volume_mode {
                VolumeMode::Filesystem => class.mount_options.clone(),
                VolumeMode::Block => None,
            },
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: claim.metadata.namespace.clone(),
                name: claim.metadata.name.clone(),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                field_path: None,
            }),
            local: Some(LocalVolumeSource {
                path,
                // kubelet takes ext4 where this is not set, whatever the class says.
                fs_type: (request.volume_mode == VolumeMode::Filesystem).then(|| fs_type.as_str().to_owned()),
            }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector {
                    node_selector_terms: vec![NodeSelectorTerm {
                        match_expressions: Some(vec![NodeSelectorRequirement {
                            key: HOSTNAME_LABEL.to_owned(),
                            operator: "In".to_owned(),
                            values: Some(vec![placed.hostname.to_owned()]),
                        }]),
                        match_fields: None,
                    }],
                }),
            }),
            ..Default::default()
        }),
        status: None,
    }
}

/// What we need to know of a PersistentVolume of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurVolume {
    /// UID of the claim that it was made for.
    pub claim_uid: String,
    /// Name of the node that holds it.
    pub node: String,
    /// Name of its volume group.
    pub volume_group: String,
    /// LVM's UUID of its volume group.
    pub volume_group_uuid: String,
    /// machine-id of the machine that it was made on, where that is known.
    pub machine: Option<String>,
    /// Its size.
    pub size: Bytes,
    /// Whether its data is to be kept when its claim goes.
    pub retain: bool,
}

/// Reads a PersistentVolume that we made; `None` for any other.
#[must_use]
pub fn ours(volume: &PersistentVolume) -> Option<OurVolume> {
    let annotation = |key: &str| volume.metadata.annotations.as_ref()?.get(key);
    annotation(PROVISIONED_BY).filter(|value| is_volume_provisioner(value))?;
    Some(OurVolume {
        claim_uid: claim_uid_of_volume(volume.metadata.name.as_deref()?)?.to_owned(),
        node: annotation(NODE_ANNOTATION)?.clone(),
        volume_group: annotation(VOLUME_GROUP_ANNOTATION)?.clone(),
        volume_group_uuid: annotation(VOLUME_GROUP_UUID_ANNOTATION)?.clone(),
        machine: annotation(MACHINE_ID_ANNOTATION).cloned(),
        size: quantity::parse(&volume.spec.as_ref()?.capacity.as_ref()?.get("storage")?.0).ok()?,
        retain: volume.spec.as_ref()?.persistent_volume_reclaim_policy.as_deref() == Some("Retain"),
    })
}

/// The annotations that a PersistentVolume lacks, or that are not what Quarry writes, without which it is not known as ours.
#[must_use]
pub fn lacking(volume: &PersistentVolume) -> Vec<&'static str> {
    let annotation = |key: &str| volume.metadata.annotations.as_ref()?.get(key);
    let needed = [
        PROVISIONED_BY,
        NODE_ANNOTATION,
        VOLUME_GROUP_ANNOTATION,
        VOLUME_GROUP_UUID_ANNOTATION,
    ];
    let lacks = |key: &&'static str| match annotation(key) {
        None => true,
        Some(value) => *key == PROVISIONED_BY && !is_volume_provisioner(value),
    };
    needed.into_iter().filter(lacks).collect()
}

/// What is to be done with a PersistentVolume of ours on the node that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposal {
    /// It is in use, or is to be kept.
    Keep,
    /// Its logical volume is to be wiped and removed, then it.
    Remove,
    /// It is to be kept, but its object is being deleted: only our finalizer is to go, the logical volume stays.
    Release,
}

/// Decides what becomes of a PersistentVolume of ours
/// (kubernetes-sigs/sig-storage-lib-external-provisioner, `shouldDelete`).
#[must_use]
pub fn disposal(volume: &PersistentVolume) -> Disposal {
    let spec = volume.spec.as_ref();
    let delete = spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
    let phase = volume
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default();
    let going = volume.metadata.deletion_timestamp.is_some();
    let held = volume
        .metadata
        .finalizers
        .iter()
        .flatten()
        .any(|finalizer| finalizer == VOLUME_FINALIZER);
    // While Kubernetes' own finalizer is there the volume is bound, and its claim may still be in use.
    let protected = volume
        .metadata
        .finalizers
        .iter()
        .flatten()
        .any(|f| f == "kubernetes.io/pv-protection");
    match (phase, delete) {
        // Whoever took our finalizer off did not delete it: it is served all the same. Where it is being deleted, whoever holds it
        // still is not us.
        ("Released", true) if held || !going => Disposal::Remove,
        // Its claim never saw it, or is gone, and somebody deletes it.
        ("Pending" | "Available" | "Failed" | "", true) if held && going && !protected => Disposal::Remove,
        (_, false) if held && going && !protected => Disposal::Release,
        _ => Disposal::Keep,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::names::PROVISIONER;

    fn built(mode: &str) -> PersistentVolume {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"name": "data", "namespace": "db", "uid": "u-1", "resourceVersion": "7"},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeMode": mode,
                     "resources": {"requests": {"storage": "1Gi"}}}
        }))
        .expect("a claim");
        let class: StorageClass = serde_json::from_value(json!({
            "metadata": {"name": "fast"}, "provisioner": PROVISIONER, "reclaimPolicy": "Retain",
            "mountOptions": ["noatime"]
        }))
        .expect("a class");
        let placed = Placed {
            node: "w1",
            hostname: "w1.example",
            volume_group: "fast",
            volume_group_uuid: "vg-1",
            machine: Some("0123"),
            size: Bytes::mib(1028),
        };
        build(
            &claim,
            &crate::claim::request(&claim).expect("valid"),
            &class,
            FsType::Xfs,
            &placed,
        )
    }

    #[test]
    fn every_field_that_kubernetes_needs() {
        let volume = serde_json::to_value(built("Filesystem")).expect("JSON");
        assert_eq!(
            volume,
            json!({
                "apiVersion": "v1", "kind": "PersistentVolume",
                "metadata": {
                    "name": "pvc-u-1",
                    "annotations": {"pv.kubernetes.io/provisioned-by": "lvm.quarry.dev/local", "quarry.dev/node": "w1",
                        "quarry.dev/volume-group": "fast", "quarry.dev/volume-group-uuid": "vg-1",
                        "quarry.dev/machine-id": "0123"},
                    "labels": {"quarry.dev/node": "w1"},
                    "finalizers": ["quarry.dev/logical-volume"],
                },
                "spec": {
                    "capacity": {"storage": "1028Mi"}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem",
                    "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "fast", "mountOptions": ["noatime"],
                    "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "db", "name": "data",
                        "uid": "u-1", "resourceVersion": "7"},
                    "local": {"path": "/dev/fast/pvc-u-1", "fsType": "xfs"},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["w1.example"]}]}]}},
                }
            })
        );
    }

    #[test]
    fn a_block_volume_has_no_file_system() {
        let spec = built("Block").spec.expect("a spec");
        assert_eq!(spec.local.and_then(|local| local.fs_type), None);
        assert_eq!(spec.mount_options, None);
    }

    #[test]
    fn what_was_built_is_read_back() {
        let read = ours(&built("Filesystem")).expect("ours");
        assert_eq!(
            (read.claim_uid.as_str(), read.node.as_str(), read.size),
            ("u-1", "w1", Bytes::mib(1028))
        );
        assert_eq!(ours(&PersistentVolume::default()), None);
        assert!(read.retain && lacking(&built("Filesystem")).is_empty());
        for key in [
            PROVISIONED_BY,
            NODE_ANNOTATION,
            VOLUME_GROUP_ANNOTATION,
            VOLUME_GROUP_UUID_ANNOTATION,
        ] {
            let mut volume = built("Filesystem");
            volume.metadata.annotations.as_mut().expect("annotations").remove(key);
            assert_eq!((ours(&volume), lacking(&volume)), (None, vec![key]));
        }
    }

    /// Velero looks for the files of a volume in another folder where this names a CSIDriver.
    #[test]
    fn a_volume_is_of_no_csi_driver() {
        let built = built("Filesystem");
        let by = &built.metadata.annotations.as_ref().expect("annotations")[PROVISIONED_BY];
        assert!(by.contains('/'), "{by} may be the name of a CSIDriver");
        // kube-controller-manager takes those for plugins of its own.
        assert!(!by.starts_with("kubernetes.io/"), "{by}");
    }

    #[test]
    fn volumes_of_before_are_ours_too() {
        let mut volume = built("Filesystem");
        let now = ours(&volume).expect("ours");
        for (by, is_ours) in [
            ("lvm.quarry.dev", true),
            ("lvm.quarry.dev/local", true),
            ("lvm.quarry.dev/other", false),
            ("other.example", false),
            ("", false),
        ] {
            let annotations = volume.metadata.annotations.as_mut().expect("annotations");
            annotations.insert(PROVISIONED_BY.to_owned(), by.to_owned());
            assert_eq!(ours(&volume), is_ours.then(|| now.clone()), "{by}");
        }
    }

    #[test]
    fn disposals() {
        let ours = "quarry.dev/logical-volume";
        let theirs = "kubernetes.io/pv-protection";
        for (phase, policy, going, finalizers, expected) in [
            ("Bound", "Delete", false, vec![ours], Disposal::Keep),
            ("Bound", "Delete", true, vec![ours, theirs], Disposal::Keep),
            ("Released", "Delete", false, vec![ours, theirs], Disposal::Remove),
            ("Released", "Delete", true, vec![ours], Disposal::Remove),
            ("Released", "Retain", false, vec![ours], Disposal::Keep),
            ("Released", "Retain", true, vec![ours], Disposal::Release),
            ("Bound", "Retain", true, vec![ours, theirs], Disposal::Keep),
            ("Pending", "Delete", true, vec![ours], Disposal::Remove),
            ("Pending", "Delete", false, vec![ours], Disposal::Keep),
            ("Released", "Delete", true, vec![theirs], Disposal::Keep),
            ("Released", "Delete", false, vec![theirs], Disposal::Remove),
            ("Released", "Delete", false, vec![], Disposal::Remove),
            ("Released", "Retain", false, vec![], Disposal::Keep),
        ] {
            let mut volume = built("Filesystem");
            volume.status = serde_json::from_value(json!({"phase": phase})).ok();
            volume.metadata.finalizers = Some(finalizers.iter().map(|f| (*f).to_owned()).collect());
            if let Some(spec) = volume.spec.as_mut() {
                spec.persistent_volume_reclaim_policy = Some(policy.to_owned());
            }
            if going {
                let metadata = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
                let metadata: ObjectMeta = serde_json::from_value(metadata).expect("metadata");
                volume.metadata.deletion_timestamp = metadata.deletion_timestamp;
            }
            assert_eq!(disposal(&volume), expected, "{phase} {policy} {going} {finalizers:?}");
        }
    }
}
