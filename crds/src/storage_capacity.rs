//! CSIStorageCapacity objects: what a kube-scheduler goes by that does not ask Quarry's extender.
//!
//! Its plugin VolumeBinding reads them for every provisioner that a CSIDriver object with `storageCapacity: true` is named
//! after; that there is a CSI driver is not needed. It looks at one claim at a time and counts nothing that is on its way:
//! what it places too much, the manager gives back.

use std::collections::BTreeMap;

use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::Resource as _;

use crate::extents::Bytes;
use crate::labels;
use crate::names::{HOSTNAME_LABEL, NODE_LABEL, PROVISIONER};
use crate::node_local_storage::{NodeLocalStorage, NodeLocalStorageStatus, VolumeGroupStatus};

/// Label by which Kubernetes finds the objects of a driver.
const DRIVER_LABEL: &str = "csi.storage.k8s.io/drivername";
/// Label that says who keeps them.
const MANAGED_LABEL: &str = "csi.storage.k8s.io/managed-by";

/// The object that stands for a NodeLocalStorage with that status: of its name, and owned by it, so that it goes with it.
/// `hostname` is the value of the node's label `kubernetes.io/hostname`.
///
/// Where no volume can be made it says 0. The largest volume is said besides what is free: a volume lies on one disk
/// where the class does not stripe.
#[must_use]
pub fn build(
    storage: &NodeLocalStorage,
    status: &NodeLocalStorageStatus,
    hostname: &str,
    namespace: &str,
) -> CSIStorageCapacity {
    let (free, largest) = figures(status);
    let text = |bytes: Bytes| Quantity(bytes.0.to_string());
    let labels = [
        (DRIVER_LABEL, PROVISIONER.to_owned()),
        (MANAGED_LABEL, "quarry-manager".to_owned()),
        (NODE_LABEL, labels::value(&storage.spec.node_name)),
    ];
    CSIStorageCapacity {
        metadata: ObjectMeta {
            name: storage.metadata.name.clone(),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
            owner_references: storage.owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        storage_class_name: storage.spec.storage_class_name.clone(),
        node_topology: Some(LabelSelector {
            match_labels: Some(BTreeMap::from([(HOSTNAME_LABEL.to_owned(), hostname.to_owned())])),
            ..LabelSelector::default()
        }),
        capacity: Some(text(free)),
        maximum_volume_size: Some(text(largest)),
    }
}

/// What is free, and the largest volume; 0 where none can be made.
fn figures(status: &NodeLocalStorageStatus) -> (Bytes, Bytes) {
    let group = status.volume_group.as_ref().filter(|_| status.is_ready());
    let Some(figures) = group.and_then(VolumeGroupStatus::figures) else {
        return (Bytes(0), Bytes(0));
    };
    let bytes = |extents| figures.extent_size.size_of(extents).unwrap_or_default();
    (bytes(figures.free), bytes(figures.largest))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn storage(ready: bool, free: &str, largest: &str) -> Value {
        let storage: NodeLocalStorage = serde_json::from_value(json!({
            "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage",
            "metadata": {"name": "fast.w1", "uid": "u-1"},
            "spec": {"storageClassName": "fast", "nodeName": "w1", "volumeGroup": "fast", "layout": "linear"},
            "status": {
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "reason": "Any",
                                "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "volumeGroup": {"name": "fast", "uuid": "vg", "size": "10Gi", "free": free, "largest": largest,
                                "reserved": "0", "extentSize": "4Mi", "metadataFree": "1Mi"},
            },
        }))
        .expect("a NodeLocalStorage");
        let status = storage.status.clone().expect("there");
        serde_json::to_value(build(&storage, &status, "w1.example", "quarry-system")).expect("JSON")
    }

    #[test]
    fn it_says_what_is_free_and_the_largest_volume() {
        let object = storage(true, "3Gi", "2Gi");
        assert_eq!(object["capacity"], "3221225472");
        assert_eq!(object["maximumVolumeSize"], "2147483648");
        assert_eq!(object["storageClassName"], "fast");
        assert_eq!(
            object["nodeTopology"],
            json!({"matchLabels": {"kubernetes.io/hostname": "w1.example"}})
        );
        let metadata = &object["metadata"];
        assert_eq!(
            (&metadata["name"], &metadata["namespace"]),
            (&json!("fast.w1"), &json!("quarry-system"))
        );
        assert_eq!(metadata["ownerReferences"][0]["uid"], "u-1");
        assert_eq!(metadata["labels"]["csi.storage.k8s.io/drivername"], "lvm.quarry.dev");
        assert_eq!(metadata["labels"]["quarry.dev/node"], "w1");
    }

    #[test]
    fn it_says_nothing_is_free_where_no_volume_can_be_made() {
        for object in [storage(false, "3Gi", "2Gi"), storage(true, "much", "2Gi")] {
            assert_eq!(
                (&object["capacity"], &object["maximumVolumeSize"]),
                (&json!("0"), &json!("0"))
            );
        }
    }
}
