//! What changed in a NodeLocalStorage, as events: on it, its class, and the volumes and claims that are hit.

use kube::{Resource, ResourceExt};
use quarry_crds::NodeLocalStorage;
use quarry_crds::node_local_storage::{NodeLocalStorageStatus, condition, phase};
use quarry_crds::volume_group::is_loss;
use quarry_process::events::Saying;

use crate::capacity::VOLUME_MISSING;
use crate::context::Context;
use crate::refusals::refusal;

/// The API server does not take a NodeLocalStorage.
const STORAGE_REFUSED: &str = "NodeLocalStorageRefused";

/// Says in events what a person should look at.
pub async fn changes(context: &Context, storage: &NodeLocalStorage, new: &NodeLocalStorageStatus) {
    let old = storage.status.as_ref();
    for disk in new
        .disks
        .iter()
        .filter(|disk| [phase::REJECTED, phase::MISSING, phase::FAILING].contains(&disk.phase.as_str()))
    {
        let known = old.is_some_and(|old| old.disks.contains(disk));
        if let (false, Some(reason)) = (known, &disk.reason) {
            let what = match disk.phase.as_str() {
                phase::MISSING => "DiskMissing",
                phase::FAILING => "DiskFailing",
                _ => "DiskRejected",
            };
            let note = format!("node {}: disk {}: {reason}", context.node, disk.path);
            context.events.say(storage, Saying::warning(what, note.clone())).await;
            if let Some(class) = context.objects.class(&storage.spec.storage_class_name) {
                context.events.say(&*class, Saying::warning(what, note)).await;
            }
        }
    }
    losses(context, storage, new).await;
    let missing = |status: &NodeLocalStorageStatus| {
        let mut conditions = status.conditions.iter();
        let found = conditions.find(|c| c.type_ == condition::DEGRADED && c.reason == VOLUME_MISSING);
        found.map(|c| c.message.clone())
    };
    if let Some(message) = missing(new).filter(|now| old.and_then(missing).as_ref() != Some(now)) {
        let note = format!("node {}: {message}", context.node);
        context.events.say(storage, Saying::warning(VOLUME_MISSING, note)).await;
    }
    let now = new
        .conditions
        .iter()
        .find(|c| c.type_ == condition::READY && c.status == "False");
    let before = old.and_then(|old| old.conditions.iter().find(|c| c.type_ == condition::READY));
    if let Some(now) = now.filter(|now| before.is_none_or(|before| before.message != now.message)) {
        let note = format!("node {}: {}", context.node, now.message);
        context.events.say(storage, Saying::warning("NotReady", note)).await;
    }
}

/// Says on an object what the API server refuses about it; nothing where that passes by itself.
pub async fn refused<K>(context: &Context, object: &K, reason: &'static str, what: &str, error: &kube::Error)
where
    K: Resource<DynamicType = ()>,
{
    let Some(refusal) = refusal(error) else { return };
    let note = format!("node {}: the API server refuses {what}: {refusal}", context.node);
    context.events.say(object, Saying::warning(reason, note)).await;
}

/// Says on a class, and on the NodeLocalStorage where there is one, that the API server refuses what the class wants there.
pub async fn storage_refused(
    context: &Context,
    name: &str,
    class: &str,
    storage: Option<&NodeLocalStorage>,
    error: &kube::Error,
) {
    let follows = match storage {
        Some(_) => "it stays as it was",
        None => "the class is not served on this node",
    };
    let what = format!("NodeLocalStorage {name} as class {class} wants it, so that {follows}");
    if let Some(class) = context.objects.class(class) {
        refused(context, &*class, STORAGE_REFUSED, &what, error).await;
    }
    if let Some(storage) = storage {
        refused(context, storage, STORAGE_REFUSED, &what, error).await;
    }
}

/// Says of each volume in a group that is lost, and of its claim, that it is.
async fn losses(context: &Context, storage: &NodeLocalStorage, new: &NodeLocalStorageStatus) {
    let loss = |status: &NodeLocalStorageStatus| {
        let mut conditions = status.conditions.iter();
        let degraded = conditions.find(|c| c.type_ == condition::DEGRADED && c.status == "True");
        degraded.filter(|c| is_loss(&c.reason)).map(|c| c.reason.clone())
    };
    let Some(reason) = loss(new).filter(|now| storage.status.as_ref().and_then(loss).as_ref() != Some(now)) else {
        return;
    };
    let name = &storage.spec.volume_group;
    let state = context.inventory.get();
    for (our, volume) in context.objects.volumes_of(name) {
        if our.node != context.node || state.group(&our.volume_group_uuid).is_some() {
            continue;
        }
        let note = format!(
            "node {}: logical volume {name}/{} is not here: {reason}, volume group {} is gone. Nothing is served in its \
             place. If it will not come back, delete its claim and make it anew, or restore a backup; see \
             NodeLocalStorage {}",
            context.node,
            volume.name_any(),
            our.volume_group_uuid,
            storage.name_any()
        );
        let saying = Saying::warning("VolumeLost", note);
        if let Some(claim) = context.objects.claim_with_uid(&our.claim_uid) {
            context.events.say(&*claim, saying.clone()).await;
        }
        context.events.say(&*volume, saying).await;
    }
}
