//! Publishes CSIStorageCapacity objects beside the NodeLocalStorages, for a kube-scheduler that does not ask the extender.
//!
//! status of a NodeLocalStorage → [`quarry_crds::storage_capacity`] → server-side apply, where it is not what was applied
//! last. They go with their NodeLocalStorage, which owns them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use quarry_crds::names::FIELD_MANAGER;
use quarry_crds::node_local_storage::NodeLocalStorageStatus;
use quarry_crds::{NodeLocalStorage, storage_capacity};

/// The objects as they were applied last, by name; nothing at all where they are not asked for.
#[derive(Default)]
pub struct StorageCapacity {
    namespace: Option<String>,
    applied: Mutex<HashMap<String, CSIStorageCapacity>>,
}

impl StorageCapacity {
    /// Publishes into a namespace.
    #[must_use]
    pub fn into_namespace(namespace: String) -> Self {
        Self {
            namespace: Some(namespace),
            applied: Mutex::default(),
        }
    }

    /// Publishes what a NodeLocalStorage says, unless that was done.
    ///
    /// # Errors
    /// The API server did not take it.
    pub async fn publish(
        &self,
        client: &Client,
        storage: &NodeLocalStorage,
        status: &NodeLocalStorageStatus,
        hostname: Option<&str>,
    ) -> Result<(), kube::Error> {
        // A node without the label is not registered yet.
        let (Some(namespace), Some(hostname)) = (&self.namespace, hostname) else {
            return Ok(());
        };
        let object = storage_capacity::build(storage, status, hostname, namespace);
        let name = object.name_any();
        if self.applied().get(&name) == Some(&object) {
            return Ok(());
        }
        let api: Api<CSIStorageCapacity> = Api::namespaced(client.clone(), namespace);
        api.patch(
            &name,
            &PatchParams::apply(FIELD_MANAGER).force(),
            &Patch::Apply(&object),
        )
        .await?;
        self.applied().insert(name, object);
        Ok(())
    }

    fn applied(&self) -> std::sync::MutexGuard<'_, HashMap<String, CSIStorageCapacity>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use quarry_fake_api::FakeApi;
    use serde_json::json;

    use super::*;

    const KIND: &str = "csistoragecapacities";

    fn storage(free: &str) -> NodeLocalStorage {
        serde_json::from_value(json!({
            "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage",
            "metadata": {"name": "fast.w1", "uid": "u-1"},
            "spec": {"storageClassName": "fast", "nodeName": "w1", "volumeGroup": "fast", "layout": "linear"},
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "reason": "Any", "message": "",
                                "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "volumeGroup": {"name": "fast", "uuid": "vg", "size": "10Gi", "free": free, "largest": free,
                                "reserved": "0", "extentSize": "4Mi", "metadataFree": "1Mi"},
            },
        }))
        .expect("a NodeLocalStorage")
    }

    async fn publish(capacity: &StorageCapacity, api: &FakeApi, free: &str) -> Result<(), kube::Error> {
        let storage = storage(free);
        let status = storage.status.clone().expect("there");
        capacity
            .publish(&api.client(), &storage, &status, Some("w1.example"))
            .await
    }

    #[tokio::test]
    async fn it_is_written_at_each_change_and_until_it_is_taken() {
        let api = FakeApi::new(|_| {});
        let capacity = StorageCapacity::into_namespace("quarry-system".to_owned());
        api.fail_next("apply", KIND, 503);
        publish(&capacity, &api, "3Gi").await.expect_err("refused");
        for _ in 0..2 {
            publish(&capacity, &api, "3Gi").await.expect("taken");
        }
        publish(&capacity, &api, "2Gi").await.expect("taken");
        assert_eq!(api.requests().len(), 3, "once in vain, and once for each figure");
        let object = api.objects(|objects| objects.get(KIND, "fast.w1")).expect("there");
        assert_eq!(object["capacity"], "2147483648");
        assert_eq!(
            object["nodeTopology"]["matchLabels"]["kubernetes.io/hostname"],
            "w1.example"
        );
    }

    #[tokio::test]
    async fn nothing_is_written_where_nobody_asked() {
        let api = FakeApi::new(|_| {});
        publish(&StorageCapacity::default(), &api, "3Gi")
            .await
            .expect("nothing to do");
        assert_eq!(api.requests(), []);
    }
}
