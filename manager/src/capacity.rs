//! What a volume group has and what is left of it → NodeLocalStorage.status; written on change only.

use quarry_process::Shutdown;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use quarry_crds::capacity::reserved;
use quarry_crds::conditions::Finding;
use quarry_crds::disk_faults::{DiskFault, FaultKind, degraded};
use quarry_crds::names::{FIELD_MANAGER, claim_uid_of_volume};
use quarry_crds::node_local_storage::{
    DiskStatus, GroupFigures, METADATA_FULL, NodeLocalStorageStatus, VolumeGroupStatus, condition, phase,
};
use quarry_crds::tags::{Owner, VolumeTags};
use quarry_crds::volume_group::{DiskStanding, findings, is_loss};
use quarry_crds::{Extents, NodeLocalStorage, conditions};
use serde_json::json;

use crate::context::{Context, Objects, Probed};
use crate::disk_faults::{all_failing, volumes_on, without_failing};
use crate::lost_group;
use crate::lvm::{PhysicalVolume, State, VolumeGroup};
use crate::orphans::Orphans;
use crate::provision;
use crate::refusals::is_unanswered;
use crate::startup_taint;
use crate::telling;
use crate::volume_group::{self, Pass, View, is_metadata_low};

/// Why a group is degraded that lacks volumes of claims.
pub(crate) const VOLUME_MISSING: &str = "VolumeMissing";
/// Changes within this time are one write.
const DEBOUNCE: Duration = Duration::from_millis(250);
/// There is at most one write in this time, of each object.
const INTERVAL: Duration = Duration::from_secs(2);
/// After so many passes that the API server did not answer, the pause becomes no longer: 8 s.
const UNANSWERED: u32 = 3;
/// A volume that is to be closed is looked at again after this time.
const CLOSED: Duration = Duration::from_secs(3);

/// Runs a pass whenever something changed: an object, a disk, LVM. At most one in two seconds. With `startup_taint`, takes that
/// off the node after a pass.
pub async fn keep_true(context: Arc<Context>, shutdown: Shutdown, startup_taint: bool) {
    let mut lvm = context.inventory.changes();
    let mut failures = 0_u32;
    // Whoever ran before may have died between new figures and telling of them.
    let mut start = true;
    loop {
        let passed = volume_group::pass(&context).await;
        context.wake.waiting.look_again();
        match passed {
            Ok(pass) => {
                failures = if pass == Pass::Complete {
                    0
                } else {
                    failures.saturating_add(1)
                };
                if std::mem::take(&mut start) {
                    context.wake.owe();
                }
                if startup_taint && let Err(error) = startup_taint::lift(&context).await {
                    failures = failures.max(1);
                    tracing::warn!(%error, "the start-up taint was not taken off; it is tried again");
                }
            }
            Err(error) => {
                // Nothing is wrong here, and the API server may be back at any moment.
                let most = if is_unanswered(&error) { UNANSWERED } else { u32::MAX };
                failures = failures.saturating_add(1).min(most);
                tracing::warn!(%error, "a pass over the volume groups failed; it is tried again");
            }
        }
        let again = async {
            match failures {
                0 if context.groups.renewed.is_waiting() => tokio::time::sleep(CLOSED).await,
                0 => match context.groups.settling.due(context.selected_after) {
                    Some(due) => tokio::time::sleep(due).await,
                    None => std::future::pending().await,
                },
                failures => tokio::time::sleep(Duration::from_secs(1 << failures.min(6))).await,
            }
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
    let trouble = context.inventory.trouble();
    let view = with_refusals(context, &storage.spec.volume_group, view);
    let here = (&context.owner, context.machine.as_deref());
    let (objects, orphans) = (&context.objects, &context.orphans);
    let status = status(storage, &view, &state, trouble.as_deref(), objects, here, orphans);
    lost_group::measure(context, &storage.spec.volume_group, &state, Some(status.is_ready()));
    if storage.status.as_ref() == Some(&status) {
        // Whoever published the status may have died before this.
        return publish_for_scheduler(context, storage, &status).await;
    }
    telling::changes(context, storage, &status).await;
    crash_point!("status-before-patch");
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
            crash_point!("status-after-patch");
            publish_for_scheduler(context, storage, &status).await?;
            if grew {
                context.wake.owe();
            }
            Ok(())
        }
        // Deleted with its class in the meantime.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => {
            let what = "its status, so that the figures are not those of now";
            telling::refused(context, storage, "StatusRefused", what, &error).await;
            Err(error)
        }
    }
}

/// A group in which LVM refuses one claim after another is as unfit as one that it does not change.
fn with_refusals(context: &Context, name: &str, view: Arc<View>) -> Arc<View> {
    match context.groups.refusals.unfit(name) {
        Some(unfit) if view.failed.is_none() => Arc::new(View {
            failed: Some(unfit),
            ..View::clone(&view)
        }),
        _ => view,
    }
}

async fn publish_for_scheduler(
    context: &Context,
    storage: &NodeLocalStorage,
    status: &NodeLocalStorageStatus,
) -> Result<(), kube::Error> {
    let hostname = context.objects.hostname();
    let capacity = &context.storage_capacity;
    let published = capacity.publish(&context.client, storage, status, hostname.as_deref());
    let published = published.await;
    if let Err(error) = &published {
        let what = "its CSIStorageCapacity, by which a kube-scheduler without the extender goes";
        telling::refused(context, storage, "StorageCapacityRefused", what, error).await;
    }
    published
}

/// Whether volumes may fit that did not before: more is free than was published, or the group can be used again.
fn has_grown(storage: &NodeLocalStorage, new: &NodeLocalStorageStatus) -> bool {
    let figures = |status: &NodeLocalStorageStatus| status.volume_group.as_ref().and_then(VolumeGroupStatus::figures);
    // While it was not ready nothing was placed there, whatever the figures said.
    if new.is_ready() && !storage.is_ready() {
        return true;
    }
    match (storage.status.as_ref().and_then(figures), figures(new)) {
        (Some(old), Some(new)) => new.free > old.free || new.reserved < old.reserved,
        (None, new) => new.is_some(),
        (Some(_), None) => false,
    }
}

/// The status of a NodeLocalStorage: a function of what was seen. `trouble` is why LVM cannot be read now.
#[must_use]
pub fn status(
    storage: &NodeLocalStorage,
    view: &View,
    state: &State,
    trouble: Option<&str>,
    objects: &Objects,
    (owner, machine): (&Owner, Option<&str>),
    orphans: &Orphans,
) -> NodeLocalStorageStatus {
    let name = &storage.spec.volume_group;
    let mut old = storage.status.clone().unwrap_or_default();
    if let Some(group) = &old.volume_group
        && objects.lost_groups(name).contains(&group.uuid)
    {
        // Nothing of it is remembered any more: it will not come back.
        old.volume_group = None;
        old.machine_id = None;
        old.disks.clear();
    }
    let recorded = old.volume_group.as_ref().map(|group| group.uuid.as_str());
    let group = state
        .groups_named(name)
        .find(|group| owner.acts_on(&group.tags) && recorded.is_none_or(|uuid| uuid == group.uuid));
    let low = group.filter(|group| is_metadata_low(group)).map(|group| {
        let left = group.metadata_free.0;
        let message = format!("{left} bytes are left in the metadata area of volume group {name}: no more volumes");
        (METADATA_FULL, message)
    });
    let trouble = trouble.map(|trouble| {
        let message = format!("LVM cannot be read, so that nothing can be made or removed here: {trouble}");
        ("LvmUnreadable", message)
    });
    let failed = view.failed.clone().map(|failed| ("LvmFailed", failed));
    let failing = group.and_then(|group| all_failing(group, &view.faults));
    let failing = failing.map(|message| ("DiskFailing", message));
    let unfit = trouble.or(failed).or(failing).or(low);
    let mut findings = findings(&view.plan, name, group.is_some(), unfit);
    if group.is_none() && findings.iter().any(|f| f.kind == condition::READY && f.holds) {
        findings.retain(|f| f.kind != condition::READY);
    }
    let ready = findings.iter().any(|f| f.kind == condition::READY && f.holds);
    if let Some(fault) = group.and_then(|group| degraded(name, &view.faults, &volumes_on(group)))
        && let Some(known) = findings
            .iter_mut()
            .find(|f| f.kind == condition::DEGRADED && !is_loss(f.reason))
    {
        *known = Finding::new(condition::DEGRADED, true, fault.0, fault.1);
    }
    if let Some(degraded) = findings.iter_mut().find(|f| f.kind == condition::DEGRADED && !f.holds)
        && let Some(missing) = missing(storage, state, objects, owner)
    {
        *degraded = missing;
    }
    let known = group.map(|group| orphans.of(&group.uuid)).unwrap_or_default();
    findings.push(orphaned(name, &known));
    let usable = group.map(|group| without_failing(group.clone(), &view.faults));
    let figures = usable.map(|group| (figures(&group, objects, ready), group.metadata_free));
    let now = Time(Timestamp::now());
    NodeLocalStorageStatus {
        volume_group: figures
            .map(|(figures, metadata_free)| figures.to_status(name, metadata_free))
            // What was there is remembered, so that nothing else is ever taken for it; nothing can be made in it.
            .or_else(|| old.volume_group.clone().map(VolumeGroupStatus::without_room)),
        disks: disks(storage, view, group, &old.disks),
        machine_id: match group {
            Some(_) => machine.map(str::to_owned),
            None => old.machine_id.clone(),
        },
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

/// Volumes that are in use by claims and not in their group any more, though it is whole: a person removed or renamed them.
fn missing(storage: &NodeLocalStorage, state: &State, objects: &Objects, owner: &Owner) -> Option<Finding> {
    let name = &storage.spec.volume_group;
    let mut missing = Vec::new();
    for (our, volume) in objects.volumes_of(name) {
        let bound = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let group = state
            .group(&our.volume_group_uuid)
            .filter(|group| !group.partial && state.incomplete.is_none());
        let gone = group.is_some_and(|group| group.volume_named(&volume.name_any()).is_none());
        if bound && gone && our.node == storage.spec.node_name && volume.metadata.deletion_timestamp.is_none() {
            missing.push(match provision::renamed(state, owner, &our.claim_uid) {
                Some((_, renamed)) => format!("{} (renamed to {})", volume.name_any(), renamed.name),
                None => volume.name_any(),
            });
        }
    }
    missing.sort();
    let message = format!(
        "logical volumes of claims are not in volume group {name}, though it is whole; somebody removed or renamed them: {}. \
         Rename them back, or restore a backup into claims made anew",
        missing.join(", ")
    );
    (!missing.is_empty()).then(|| Finding::new(condition::DEGRADED, true, VOLUME_MISSING, message))
}

/// Whether there are orphans in the volume group, and which.
fn orphaned(name: &str, orphans: &BTreeSet<String>) -> Finding {
    if orphans.is_empty() {
        let message = format!("every logical volume of Quarry in volume group {name} has an object");
        return Finding::new(condition::ORPHAN_VOLUMES, false, "None", message);
    }
    let names: Vec<&str> = orphans.iter().map(String::as_str).collect();
    let message = format!(
        "{} logical volume(s) in volume group {name} have neither PersistentVolume nor claim, and their space is reserved; \
         remove with \"lvremove {name}/<name>\" on the node what is not needed: {}",
        orphans.len(),
        names.join(", ")
    );
    Finding::new(condition::ORPHAN_VOLUMES, true, "Orphans", message)
}

/// The figures of a group: `reserved` is what no PersistentVolume and no claim stands for.
fn figures(group: &VolumeGroup, objects: &Objects, ready: bool) -> GroupFigures {
    let free = group.allocatable(&[]);
    // A claim that is being deleted is not counted by the extender, and its volume is about to be removed.
    let stands_for = |uid: &str| {
        let claim = objects.claim_with_uid(uid);
        claim.is_some_and(|claim| claim.metadata.deletion_timestamp.is_none())
    };
    let known = group.logical_volumes.iter().filter(|volume| {
        VolumeTags::parse(&volume.tags).is_some()
            && claim_uid_of_volume(&volume.name)
                .is_some_and(|uid| objects.volume(&volume.name).is_some() || stands_for(uid))
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
        statuses.push(disk_status(probed, group, before, &view.faults));
    }
    let shown = |statuses: &[DiskStatus], id: &str| statuses.iter().any(|status| status.id.as_deref() == Some(id));
    // Disks of the group that this object does not list: of another class, or added with vgextend.
    for pv in group.iter().flat_map(|group| &group.physical_volumes) {
        if shown(&statuses, &pv.uuid) {
            continue;
        }
        let device = pv.device.as_deref();
        let same = |status: &&mut DiskStatus| {
            device.is_some() && (Some(status.path.as_str()) == device || status.device.as_deref() == device)
        };
        if let Some(listed) = statuses.iter_mut().find(same) {
            // It was blank when it was looked at; the group was made since.
            if listed.phase == phase::BLANK {
                claimed(listed, pv, group);
            }
            continue;
        }
        let size = group.and_then(|group| group.extent_size.size_of(pv.free));
        let fault = failing(&view.faults, &pv.uuid);
        statuses.push(DiskStatus {
            path: pv
                .device
                .clone()
                .unwrap_or_else(|| format!("physical volume {}", pv.uuid)),
            device: pv.device.clone(),
            id: Some(pv.uuid.clone()),
            size: Some(pv.device_size.to_string()),
            free: size.map(|size| size.to_string()),
            phase: match (pv.missing, &fault) {
                (true, _) => phase::MISSING,
                (false, Some(_)) => phase::FAILING,
                (false, None) => phase::CLAIMED,
            }
            .to_owned(),
            reason: pv
                .missing
                .then(|| "the disk does not answer; volumes on other disks go on".to_owned())
                .or(fault),
            ..DiskStatus::default()
        });
    }
    statuses
}

/// What is wrong with a disk that is there, and what to do.
fn failing(faults: &[DiskFault], physical_volume: &str) -> Option<String> {
    let fault = faults.iter().find(|fault| fault.physical_volume == physical_volume)?;
    match &fault.kind {
        FaultKind::Missing => None,
        FaultKind::Failing(how) => Some(format!("answers with errors: {how}. {}", fault.remedy())),
    }
}

fn claimed(status: &mut DiskStatus, pv: &PhysicalVolume, group: Option<&VolumeGroup>) {
    let free = group.and_then(|group| group.extent_size.size_of(pv.free));
    status.id = Some(pv.uuid.clone());
    status.free = free.map(|free| free.to_string());
    phase::CLAIMED.clone_into(&mut status.phase);
}

fn disk_status(
    probed: &Probed,
    group: Option<&VolumeGroup>,
    before: Option<&DiskStatus>,
    faults: &[DiskFault],
) -> DiskStatus {
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
        DiskStanding::Waiting { reason } => {
            phase::BLANK.clone_into(&mut status.phase);
            status.reason = Some(reason.clone());
        }
        DiskStanding::Member { physical_volume } => {
            let pv = group.and_then(|g| g.physical_volumes.iter().find(|pv| pv.uuid == *physical_volume));
            status.id = Some(physical_volume.clone());
            if let Some(pv) = pv {
                claimed(&mut status, pv, group);
            }
            status.reason = failing(faults, physical_volume);
            if status.reason.is_some() {
                phase::FAILING
            } else {
                phase::CLAIMED
            }
            .clone_into(&mut status.phase);
        }
        DiskStanding::Rejected { reason } | DiskStanding::Missing { reason } | DiskStanding::Unreadable { reason } => {
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
