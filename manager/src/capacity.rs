//! What a volume group has and what is left of it → NodeLocalStorage.status; written on change only.

use quarry_process::Shutdown;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use quarry_crds::capacity::reserved;
use quarry_crds::names::{FIELD_MANAGER, claim_uid_of_volume};
use quarry_crds::node_local_storage::{
    DiskStatus, GroupFigures, NodeLocalStorageStatus, VolumeGroupStatus, condition, phase,
};
use quarry_crds::tags::VolumeTags;
use quarry_crds::volume_group::{DiskStanding, findings};
use quarry_crds::{Extents, NodeLocalStorage, conditions};
use quarry_process::events::Saying;
use serde_json::json;

use crate::context::{Context, Objects, Probed};
use crate::lvm::{State, VolumeGroup};
use crate::volume_group::{self, View, is_metadata_low};

/// Changes within this time are one write.
const DEBOUNCE: Duration = Duration::from_millis(250);
/// There is at most one write in this time, of each object.
const INTERVAL: Duration = Duration::from_secs(1);

/// The extender has seen new figures by then.
const WAKE_AFTER: Duration = Duration::from_millis(500);
/// On a node: when its free local storage grew last.
const SPACE_ANNOTATION: &str = "quarry.dev/space-returned";

/// Runs a pass whenever something changed: an object, a disk, LVM. At most one a second.
pub async fn keep_true(context: Arc<Context>, shutdown: Shutdown) {
    let mut lvm = context.inventory.changes();
    let mut failures = 0_u32;
    loop {
        match volume_group::pass(&context).await {
            Ok(()) => failures = 0,
            Err(error) => {
                failures = failures.saturating_add(1);
                tracing::warn!(%error, "a pass over the volume groups failed; it is tried again");
            }
        }
        let again = async {
            if failures == 0 {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_secs(1 << failures.min(6))).await;
        };
        tokio::time::sleep(INTERVAL.saturating_sub(DEBOUNCE)).await;
        tokio::select! {
            () = shutdown.wait() => return,
            () = context.changed.notified() => {}
            _ = lvm.changed() => {}
            () = again => {}
        }
        tokio::time::sleep(DEBOUNCE).await;
        lvm.mark_unchanged();
    }
}

/// Writes the status of one NodeLocalStorage, where it is not what is published already.
///
/// # Errors
/// The API server did not take it.
pub async fn publish(context: &Context, storage: &NodeLocalStorage) -> Result<(), kube::Error> {
    let Some(view) = context.groups.view(&storage.spec.volume_group) else {
        return Ok(());
    };
    let state = context.inventory.get();
    let status = status(storage, &view, &state, &context.objects);
    if storage.status.as_ref() == Some(&status) {
        return Ok(());
    }
    tell_changes(context, storage, &status).await;
    let object = json!({
        "apiVersion": NodeLocalStorage::api_version(&()),
        "kind": NodeLocalStorage::kind(&()),
        "metadata": {"name": storage.name_any()},
        "status": status,
    });
    let api: Api<NodeLocalStorage> = Api::all(context.client.clone());
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let grew = has_grown(storage, &status);
    match api
        .patch_status(&storage.name_any(), &params, &Patch::Apply(&object))
        .await
    {
        Ok(_) => {
            if grew {
                tokio::spawn(wake_waiting_pods(context.client.clone(), context.node.clone()));
            }
            Ok(())
        }
        // Deleted with its class in the meantime.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether more is free than was published before.
fn has_grown(storage: &NodeLocalStorage, new: &NodeLocalStorageStatus) -> bool {
    let figures = |status: &NodeLocalStorageStatus| status.volume_group.as_ref().and_then(VolumeGroupStatus::figures);
    match (storage.status.as_ref().and_then(figures), figures(new)) {
        (Some(old), Some(new)) => new.free > old.free || new.reserved < old.reserved,
        (None, new) => new.is_some(),
        (Some(_), None) => false,
    }
}

/// Touches this node, which makes kube-scheduler look again at pods that an extender refused. It knows nothing of a
/// NodeLocalStorage, and where it was woken by the deletion of a volume it may have asked before the extender saw that.
async fn wake_waiting_pods(client: Client, node: String) {
    tokio::time::sleep(WAKE_AFTER).await;
    let patch = json!({"metadata": {"annotations": {SPACE_ANNOTATION: Timestamp::now().to_string()}}});
    let nodes: Api<Node> = Api::all(client);
    if let Err(error) = nodes
        .patch_metadata(&node, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        tracing::warn!(%error, "waiting pods were not woken");
    }
}

/// The status of a NodeLocalStorage: a function of what was seen.
#[must_use]
pub fn status(storage: &NodeLocalStorage, view: &View, state: &State, objects: &Objects) -> NodeLocalStorageStatus {
    let name = &storage.spec.volume_group;
    let old = storage.status.clone().unwrap_or_default();
    let recorded = old.volume_group.as_ref().map(|group| group.uuid.as_str());
    let group = state
        .groups_named(name)
        .find(|group| quarry_crds::tags::is_ours(&group.tags) && recorded.is_none_or(|uuid| uuid == group.uuid));
    let low = group.filter(|group| is_metadata_low(group)).map(|group| {
        format!(
            "{} bytes are left in the metadata area of volume group {name}: no more volumes",
            group.metadata_free.0
        )
    });
    let failed = view.failed.clone().or(low);
    let mut findings = findings(&view.plan, name, group.is_some(), failed.as_deref());
    if group.is_none() && findings.iter().any(|f| f.kind == condition::READY && f.holds) {
        findings.retain(|f| f.kind != condition::READY);
    }
    let ready = findings.iter().any(|f| f.kind == condition::READY && f.holds);
    let figures = group.map(|group| (figures(group, objects, ready), group.metadata_free));
    let now = Time(Timestamp::now());
    NodeLocalStorageStatus {
        volume_group: figures
            .map(|(figures, metadata_free)| figures.to_status(name, metadata_free))
            // What was there is remembered, so that nothing else is ever taken for it.
            .or_else(|| old.volume_group.clone()),
        disks: disks(storage, view, group, &old.disks),
        volumes: group.map_or(0, |group| {
            let ours = group
                .logical_volumes
                .iter()
                .filter(|volume| VolumeTags::parse(&volume.tags).is_some());
            i64::try_from(ours.count()).unwrap_or(i64::MAX)
        }),
        conditions: conditions::update(&old.conditions, &findings, storage.metadata.generation, &now),
        observed_generation: storage.metadata.generation,
    }
}

/// The figures of a group: `reserved` is what no PersistentVolume and no claim stands for.
fn figures(group: &VolumeGroup, objects: &Objects, ready: bool) -> GroupFigures {
    let free = group.allocatable(&[]);
    let known = group.logical_volumes.iter().filter(|volume| {
        VolumeTags::parse(&volume.tags).is_some()
            && claim_uid_of_volume(&volume.name)
                .is_some_and(|uid| objects.volume(&volume.name).is_some() || objects.claim_with_uid(uid).is_some())
    });
    GroupFigures {
        uuid: group.uuid.clone(),
        extent_size: group.extent_size,
        size: group.size,
        free,
        reserved: reserved(group.size, free, known.map(|volume| volume.extents)),
        largest: if ready { free } else { Extents::ZERO },
    }
}

fn disks(storage: &NodeLocalStorage, view: &View, group: Option<&VolumeGroup>, old: &[DiskStatus]) -> Vec<DiskStatus> {
    let listed: BTreeMap<&str, &Probed> = view
        .probed
        .iter()
        .map(|probed| (probed.disk.path.as_str(), probed))
        .collect();
    let mut statuses: Vec<DiskStatus> = Vec::new();
    for disk in &storage.spec.disks {
        let Some(probed) = listed.get(disk.path.as_str()) else {
            continue;
        };
        let before = old.iter().find(|before| before.path == disk.path);
        statuses.push(disk_status(probed, group, before));
    }
    let shown = |statuses: &[DiskStatus], id: &str| statuses.iter().any(|status| status.id.as_deref() == Some(id));
    // Disks of the group that this object does not list: of another class, or added with vgextend.
    for pv in group.iter().flat_map(|group| &group.physical_volumes) {
        if shown(&statuses, &pv.uuid) {
            continue;
        }
        let size = group.and_then(|group| group.extent_size.size_of(pv.free));
        statuses.push(DiskStatus {
            path: pv
                .device
                .clone()
                .unwrap_or_else(|| format!("physical volume {}", pv.uuid)),
            device: pv.device.clone(),
            id: Some(pv.uuid.clone()),
            size: Some(pv.device_size.to_string()),
            free: size.map(|size| size.to_string()),
            phase: if pv.missing { phase::MISSING } else { phase::CLAIMED }.to_owned(),
            reason: pv
                .missing
                .then(|| "the disk does not answer; volumes on other disks go on".to_owned()),
            ..DiskStatus::default()
        });
    }
    statuses
}

fn disk_status(probed: &Probed, group: Option<&VolumeGroup>, before: Option<&DiskStatus>) -> DiskStatus {
    let mut status = DiskStatus {
        path: probed.disk.path.clone(),
        device: probed.disk.device.clone(),
        id: None,
        serial: probed.serial.clone(),
        model: probed.model.clone(),
        media: probed
            .rotational
            .map(|rotational| if rotational { "hdd" } else { "ssd" }.to_owned()),
        size: probed.size.map(|size| size.to_string()),
        free: None,
        phase: String::new(),
        reason: None,
    };
    match &probed.disk.standing {
        DiskStanding::Blank => phase::BLANK.clone_into(&mut status.phase),
        DiskStanding::Member { physical_volume } => {
            let pv = group.and_then(|g| g.physical_volumes.iter().find(|pv| pv.uuid == *physical_volume));
            status.id = Some(physical_volume.clone());
            status.free = group
                .zip(pv)
                .and_then(|(group, pv)| group.extent_size.size_of(pv.free))
                .map(|free| free.to_string());
            phase::CLAIMED.clone_into(&mut status.phase);
        }
        DiskStanding::Rejected { reason } | DiskStanding::Missing { reason } => {
            let missing = matches!(probed.disk.standing, DiskStanding::Missing { .. });
            if missing { phase::MISSING } else { phase::REJECTED }.clone_into(&mut status.phase);
            status.reason = Some(conditions::shorten(reason, 512));
            // What was here is remembered: the disk may come back.
            status.id = before.and_then(|before| before.id.clone());
            if missing {
                status.serial = before.and_then(|before| before.serial.clone());
                status.model = before.and_then(|before| before.model.clone());
            }
        }
    }
    status
}

/// Says in events what a person should look at.
async fn tell_changes(context: &Context, storage: &NodeLocalStorage, new: &NodeLocalStorageStatus) {
    let old = storage.status.as_ref();
    for disk in new
        .disks
        .iter()
        .filter(|disk| disk.phase == phase::REJECTED || disk.phase == phase::MISSING)
    {
        let known = old.is_some_and(|old| old.disks.contains(disk));
        if let (false, Some(reason)) = (known, &disk.reason) {
            let what = if disk.phase == phase::MISSING {
                "DiskMissing"
            } else {
                "DiskRejected"
            };
            let note = format!("node {}: disk {}: {reason}", context.node, disk.path);
            context.events.say(storage, Saying::warning(what, note.clone())).await;
            if let Some(class) = context.objects.class(&storage.spec.storage_class_name) {
                context.events.say(&*class, Saying::warning(what, note)).await;
            }
        }
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
