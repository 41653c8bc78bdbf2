//! StorageClass → NodeLocalStorage: each class of ours that names this node has one here, and no other class has.
//!
//! The manager applies its part of the specification under its own field manager, so that disks which an administrator
//! adds under theirs stay. A NodeLocalStorage is owned by its class: Kubernetes removes it with the class, also while
//! no manager runs. No volume is ever touched by that.

use std::collections::BTreeMap;

use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Resource, ResourceExt};
use quarry_crds::names::{CLASS_LABEL, FIELD_MANAGER, NODE_LABEL, node_local_storage_name};
use quarry_crds::node_local_storage::{NodeLocalStorageSpec, SpecDisk};
use quarry_crds::storage_class::{ClassParameters, DiskSelector, is_ours};
use quarry_crds::{NodeLocalStorage, labels};
use serde_json::json;

use crate::context::Context;
use crate::refusals::is_answer;
use crate::telling;

/// Brings the NodeLocalStorages of this node in line with the classes.
///
/// Whether that is done: what the API server refuses is said on the class and stops nothing else.
///
/// # Errors
/// The API server did not answer.
pub async fn follow_classes(context: &Context) -> Result<bool, kube::Error> {
    let mut wanted = BTreeMap::new();
    // The Node object was deleted while the machine runs: nothing can be placed here, and what is lost with a node is
    // being cleaned up. All of it is made again once kubelet has registered the node again.
    let Some(labels) = context.objects.node.state().first().map(|node| node.labels().clone()) else {
        return Ok(true);
    };
    for class in context
        .objects
        .classes
        .state_filter(|class| is_ours(class) && class.meta().deletion_timestamp.is_none())
    {
        // What is wrong with a class is told to its owner elsewhere; nothing is made of it.
        let Ok(parameters) = ClassParameters::of(&class) else {
            continue;
        };
        let Some(disks) = parameters.disks_of(&context.node, &labels) else {
            continue;
        };
        let mut paths = Vec::new();
        for disk in &disks {
            match disk {
                DiskSelector::Path(path) => paths.push(path.clone()),
                DiskSelector::Model(model) => paths.extend(context.disks.of_model(model.clone()).await),
            }
        }
        let name = node_local_storage_name(&class.name_any(), &context.node);
        if disks.iter().any(|disk| matches!(disk, DiskSelector::Model(_))) {
            paths.extend(chosen_before(context, &name, class.uid()));
        }
        wanted.insert(name, spec(&class, &parameters, &context.node, paths));
    }
    let mut complete = true;
    for (name, (class_uid, spec)) in &wanted {
        let there = context.objects.storages.find(|storage| storage.name_any() == *name);
        if there.as_deref().is_some_and(|there| agrees(there, class_uid, spec)) {
            continue;
        }
        if let Err(error) = apply(context, name, class_uid, spec, there.as_deref()).await {
            tracing::warn!(%error, name, "a NodeLocalStorage could not be written");
            if !is_answer(&error) {
                return Err(error);
            }
            complete = false;
            telling::storage_refused(context, name, &spec.storage_class_name, there.as_deref(), &error).await;
        }
    }
    for storage in context.objects.storages.state_filter(is_made_by_us) {
        if !wanted.contains_key(&storage.name_any())
            && storage.metadata.deletion_timestamp.is_none()
            && let Err(error) = remove(context, &storage).await
        {
            tracing::warn!(%error, name = storage.name_any(), "a NodeLocalStorage could not be removed");
            if !is_answer(&error) {
                return Err(error);
            }
            complete = false;
            telling::refused(
                context,
                &*storage,
                "RemovalRefused",
                "its removal, though no class wants it here",
                &error,
            )
            .await;
        }
    }
    Ok(complete)
}

/// What is listed already, where a selector chooses disks: what it has chosen once stays, also while the disk is away.
fn chosen_before(context: &Context, name: &str, class_uid: Option<String>) -> Vec<String> {
    let of_class = |storage: &NodeLocalStorage| {
        let mut owners = storage.owner_references().iter();
        storage.name_any() == name && owners.any(|owner| Some(&owner.uid) == class_uid.as_ref())
    };
    let there = context.objects.storages.find(of_class);
    there.map_or_else(Vec::new, |there| {
        there.spec.disks.iter().map(|disk| disk.path.clone()).collect()
    })
}

/// UID of the class, and the part of the specification that comes from it.
type Wanted = (String, NodeLocalStorageSpec);

fn spec(class: &StorageClass, parameters: &ClassParameters, node: &str, mut paths: Vec<String>) -> Wanted {
    let mut seen = std::collections::BTreeSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    let spec = NodeLocalStorageSpec {
        storage_class_name: class.name_any(),
        node_name: node.to_owned(),
        volume_group: parameters.volume_group.clone(),
        layout: parameters.layout.as_str().to_owned(),
        allow_unstable_names: parameters.allow_unstable_names,
        disks: paths.into_iter().map(|path| SpecDisk { path }).collect(),
    };
    (class.uid().unwrap_or_default(), spec)
}

/// Whether an object already says what the class wants; what others added does not matter.
fn agrees(there: &NodeLocalStorage, class_uid: &str, wanted: &NodeLocalStorageSpec) -> bool {
    let spec = &there.spec;
    there.metadata.deletion_timestamp.is_none()
        && there.owner_references().iter().any(|owner| owner.uid == class_uid)
        && there.labels().contains_key(NODE_LABEL)
        && spec.volume_group == wanted.volume_group
        && spec.layout == wanted.layout
        && spec.allow_unstable_names == wanted.allow_unstable_names
        && wanted.disks.iter().all(|disk| spec.disks.contains(disk))
}

/// Whether the manager made an object, as opposed to an administrator.
fn is_made_by_us(storage: &NodeLocalStorage) -> bool {
    storage.labels().contains_key(CLASS_LABEL)
        && storage
            .owner_references()
            .iter()
            .any(|owner| owner.kind == "StorageClass")
}

async fn apply(
    context: &Context,
    name: &str,
    class_uid: &str,
    spec: &NodeLocalStorageSpec,
    there: Option<&NodeLocalStorage>,
) -> Result<(), kube::Error> {
    let api: Api<NodeLocalStorage> = Api::all(context.client.clone());
    // The group's name cannot change: this is a class made anew under an old name, so its object is made anew too.
    if let Some(there) = there.filter(|there| there.spec.volume_group != spec.volume_group) {
        return remove(context, there).await;
    }
    let object = json!({
        "apiVersion": NodeLocalStorage::api_version(&()),
        "kind": NodeLocalStorage::kind(&()),
        "metadata": {
            "name": name,
            "labels": {NODE_LABEL: labels::value(&spec.node_name), CLASS_LABEL: labels::value(&spec.storage_class_name)},
            "ownerReferences": [{
                "apiVersion": StorageClass::api_version(&()), "kind": StorageClass::kind(&()),
                "name": spec.storage_class_name, "uid": class_uid,
            }],
        },
        "spec": spec,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(name, &params, &Patch::Apply(&object)).await?;
    crash_point!("storage-after-apply");
    Ok(())
}

async fn remove(context: &Context, storage: &NodeLocalStorage) -> Result<(), kube::Error> {
    let api: Api<NodeLocalStorage> = Api::all(context.client.clone());
    let preconditions = Preconditions {
        uid: storage.uid(),
        resource_version: None,
    };
    let params = DeleteParams {
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    match api.delete(&storage.name_any(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}
