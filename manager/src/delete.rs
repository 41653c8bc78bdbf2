//! PersistentVolume released → wiped → logical volume removed → finalizer and PersistentVolume gone → capacity back.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::controller::Action;
use quarry_crds::names::{LOST_GROUP_ANNOTATION, VOLUME_FINALIZER};
use quarry_crds::persistent_volume::{Disposal, OurVolume, disposal, ours};
use quarry_crds::tags::{VolumeState, VolumeTags, unknown_version};
use quarry_process::events::Saying;
use serde_json::json;
use thiserror::Error;

use crate::context::Context;
use crate::kept;
use crate::lvm::{
    ChangeTags, Done, LogicalVolume, RemoveVolumeError, ReportError, State, VolumeError, VolumeGroup, VolumeRef,
};
use crate::refusals::refusal;
use crate::whereabouts::{self, Whereabouts};
use crate::wipe::{Progress, Stop};

/// How often a wipe that goes on is looked at.
const WIPE_CHECK: Duration = Duration::from_secs(5);

/// How long udev may have a volume open that was just wiped, and how often it is looked at again after that.
const OPEN_FOR: Duration = Duration::from_millis(300);
const OPEN_LOOKS: u32 = 3;

/// A volume was not removed; it is tried again.
#[derive(Debug, Error)]
pub enum DeleteError {
    /// The API server.
    #[error("the API server did not answer as it should: {0}")]
    Api(#[from] kube::Error),
    /// LVM could not be read.
    #[error("LVM could not be read: {0}")]
    Report(#[from] ReportError),
    /// Something stands in the way that only time or a person can change.
    #[error("{0}")]
    Held(String),
    /// LVM did not remove it.
    #[error("{0}")]
    Remove(#[from] RemoveVolumeError),
    /// It could not be wiped.
    #[error("{0} could not be wiped: {1}")]
    Wipe(String, String),
}

mod last_word;

use last_word::{step_of_wipe, told_of_wipe};

/// Brings a PersistentVolume of this node one step on.
///
/// # Errors
/// See [`DeleteError`]; it is to be tried again later.
pub async fn reconcile(volume: Arc<PersistentVolume>, context: Arc<Context>) -> Result<Action, DeleteError> {
    step(&volume, &context).await
}

/// The same, for one that no watch of this node tells of.
///
/// # Errors
/// See [`DeleteError`].
pub async fn step(volume: &PersistentVolume, context: &Arc<Context>) -> Result<Action, DeleteError> {
    let Some(our) = ours(volume).filter(|our| our.node == context.node) else {
        return Ok(Action::await_change());
    };
    match disposal(volume) {
        // A volume that was handed out says so; after a crash the mark may be missing.
        Disposal::Keep => {
            kept::mark(volume, &our, &context.inventory.get(), context);
        }
        Disposal::Release => {
            mark_retained(&our, volume, context).await?;
            release(volume, context).await?;
            crash_point!("release-after-finalizer");
            // What it holds is known to nobody else now, and is to be published as reserved.
            context.changed.notify_one();
        }
        Disposal::Remove => {
            // The watch can lag behind somebody who wants to keep it after all.
            let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
            let live = volumes.get_opt(&volume.name_any()).await?;
            let Some(live) = live.filter(|live| live.uid() == volume.uid() && disposal(live) == Disposal::Remove)
            else {
                return Ok(Action::await_change());
            };
            match remove(&our, &live, context).await? {
                Removed::Gone => {}
                Removed::NotYet => return Ok(Action::requeue(WIPE_CHECK)),
                Removed::CalledOff => return Ok(Action::await_change()),
            }
            delete_object(&live, context).await?;
            // Its group may be waiting to be taken down until no object names it.
            context.changed.notify_one();
            crash_point!("delete-after-finalizer");
        }
    }
    Ok(Action::await_change())
}

/// A volume whose object goes while its data is to be kept is never taken for the leftover of an interrupted attempt,
/// nor for an orphan that may be removed. It is not let go of before it is marked or known to be gone.
async fn mark_retained(our: &OurVolume, volume: &PersistentVolume, context: &Context) -> Result<(), DeleteError> {
    let name = volume.name_any();
    let mut state = context.inventory.get();
    if !matches!(whereabouts::of(context, &state, our, &name), Whereabouts::Here(..)) {
        if is_lost(our, &state, context) {
            return Ok(());
        }
        state = context.inventory.refresh().await?;
    }
    let (group, logical) = match whereabouts::of(context, &state, our, &name) {
        Whereabouts::Here(group, logical) | Whereabouts::Elsewhere(group, logical) => (group, logical),
        Whereabouts::Gone => return Ok(()),
        Whereabouts::Unknown => return Err(unknown(our, "nobody can mark its logical volume as retained", context)),
    };
    context.wipes.call_off(&logical.uuid);
    if let Some(tags) = VolumeTags::parse(&logical.tags)
        && tags.claim_uid == our.claim_uid
        && !matches!(tags.state, VolumeState::Retained | VolumeState::Deleting)
    {
        change_state(group.reference_to(logical), VolumeState::Retained, context)
            .await
            .map_err(|error| DeleteError::Held(format!("it cannot be let go of yet: {error}")))?;
    }
    Ok(())
}

/// Tags a volume as one that is, or was in part, wiped and is to be removed, unless it says so already.
async fn mark_deleting(volume: &VolumeRef, tags: &VolumeTags, context: &Context) -> Result<(), VolumeError> {
    if tags.state == VolumeState::Deleting {
        return Ok(());
    }
    change_state(volume.clone(), VolumeState::Deleting, context).await
}

/// Marks a volume that is wiped, perhaps in part, and still there. Where that fails too, the next attempt does it.
async fn not_gone(volume: &VolumeRef, tags: &VolumeTags, context: &Context) {
    if let Err(error) = mark_deleting(volume, tags, context).await {
        tracing::warn!(%volume, %error, "not marked as being removed");
    }
}

/// Tags a volume of ours with a state, whatever it was in.
async fn change_state(volume: VolumeRef, state: VolumeState, context: &Context) -> Result<(), VolumeError> {
    let (add, delete) = state.change();
    let change = ChangeTags {
        volume,
        others: Vec::new(),
        add,
        delete,
        having: None,
    };
    let done = context.lvm.change_tags(change).await?;
    context.inventory.set(done.state);
    Ok(())
}

/// Whether an administrator says that the group of a volume is lost, and it is not there.
fn is_lost(our: &OurVolume, state: &State, context: &Context) -> bool {
    let lost = context.objects.lost_groups(&our.volume_group);
    lost.contains(&our.volume_group_uuid) && state.group(&our.volume_group_uuid).is_none()
}

/// Nobody can say whether the logical volume of a PersistentVolume exists.
fn unknown(our: &OurVolume, so: &str, context: &Context) -> DeleteError {
    DeleteError::Held(format!(
        "volume group {} (UUID {}) is missing or not whole on node {}, so {so}; bring its disks back, or, if they are lost for \
         good, annotate its NodeLocalStorage with {LOST_GROUP_ANNOTATION}={}, or remove the finalizer {VOLUME_FINALIZER} from \
         this PersistentVolume",
        our.volume_group, our.volume_group_uuid, context.node, our.volume_group_uuid
    ))
}

/// Whether a logical volume is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It is.
    Gone,
    /// It is being wiped, or waits for that.
    NotYet,
    /// It is to be kept after all.
    CalledOff,
}

/// Wipes and removes the logical volume of a PersistentVolume; done where it is certainly gone already.
async fn remove(our: &OurVolume, volume: &PersistentVolume, context: &Arc<Context>) -> Result<Removed, DeleteError> {
    let name = volume.name_any();
    let state = context.inventory.get();
    if let Whereabouts::Here(group, logical) = whereabouts::of(context, &state, our, &name) {
        let tags = VolumeTags::parse(&logical.tags).filter(|tags| tags.claim_uid == our.claim_uid);
        let Some(tags) = tags else {
            if let Some(version) = unknown_version(&logical.tags) {
                return Err(DeleteError::Held(format!(
                    "{}/{name} was made by another version of Quarry (tag {version}) and is left alone; run that version \
                     on this node to remove it",
                    group.name
                )));
            }
            return Err(DeleteError::Held(format!(
                "{}/{name} does not have Quarry's tags for this volume and is left alone; remove it by hand if it is \
                 not needed",
                group.name
            )));
        };
        return wipe_and_remove(group, logical, &tags, Wanted::Volume(volume), context).await;
    }
    if is_lost(our, &state, context) {
        tracing::info!(volume = name, "an administrator says that its volume group is lost");
        return Ok(Removed::Gone);
    }
    // Not there as far as we know: only a fresh and full reading of a whole group is proof.
    let state = context.inventory.refresh().await?;
    match whereabouts::of(context, &state, our, &name) {
        Whereabouts::Gone => Ok(Removed::Gone),
        Whereabouts::Here(group, _) => Err(DeleteError::Held(format!("{}/{name} was seen only now", group.name))),
        Whereabouts::Elsewhere(group, logical) => Err(DeleteError::Held(whereabouts::told(our, &name, group, logical))),
        Whereabouts::Unknown => {
            let so = "nobody can say whether the logical volume still exists";
            Err(unknown(our, so, context))
        }
    }
}

/// Who wants a volume to be removed: asked once more at the moment that its wipe begins.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// This PersistentVolume, which is released.
    Volume(&'a PersistentVolume),
    /// Nobody knows it: there is no PersistentVolume.
    Nobody,
}

/// Wipes a logical volume of ours as its tags say and removes it, where nobody holds it. Its tag says `deleting` before the
/// first block of it is wiped, or, where only its signatures are, as soon as it is not gone after that: so that it is never
/// kept as if it were whole (docs/design/0008).
///
/// # Errors
/// Something stands in the way; nothing that was not wiped is removed.
pub async fn wipe_and_remove(
    group: &VolumeGroup,
    logical: &LogicalVolume,
    tags: &VolumeTags,
    wanted: Wanted<'_>,
    context: &Arc<Context>,
) -> Result<Removed, DeleteError> {
    let name = format!("{}/{}", group.name, logical.name);
    // Whether it is open may have changed since it was read, so holders are looked for in any case.
    let asked = LogicalVolume {
        open: None,
        ..logical.clone()
    };
    let mut holders = group.stacked_on(logical);
    holders.extend(context.wiper.holders(group.clone(), asked).await);
    if !holders.is_empty() {
        return Err(DeleteError::Held(format!("{name} is in use: {}", holders.join(", "))));
    }
    let reference = group.reference_to(logical);
    let changed = |error: VolumeError| DeleteError::Held(format!("{name} cannot be removed yet: {error}"));
    // Nothing is wiped or removed while nobody can see what becomes of it.
    if let Some(trouble) = context.inventory.trouble() {
        return Err(DeleteError::Held(format!(
            "{name} cannot be removed yet: LVM cannot be read: {trouble}"
        )));
    }
    // Nothing is wiped that cannot be removed.
    if let Some(problem) = context.inventory.get().problem_of(group) {
        let group = group.reference();
        return Err(changed(VolumeError::GroupUnusable { group, problem }));
    }
    // What was deactivated by hand has no device that could be wiped.
    if logical.active == Some(false) {
        let done = context.lvm.set_active(reference.clone(), true).await.map_err(changed)?;
        context.inventory.set(done.state);
    }
    crash_point!("delete-before-wipe");
    let progress = step_of_wipe(group, logical, tags, wanted, context).await;
    context.metrics.wipes(&context.wipes.figures());
    match progress {
        Progress::Done => {}
        Progress::Running(news) => {
            if context.wipes.has_begun(&logical.uuid) {
                not_gone(&reference, tags, context).await;
            }
            if let (Some(news), Wanted::Volume(volume)) = (news, wanted) {
                let note = told_of_wipe(news, &format!("{name} ({})", logical.size), tags.wipe);
                let note = format!("node {}: {note}; its space is free after that", context.node);
                context.events.say(volume, Saying::normal("Wiping", note)).await;
            }
            return Ok(Removed::NotYet);
        }
        Progress::Stopped { why, written } => {
            if written {
                not_gone(&reference, tags, context).await;
            }
            return match why {
                Stop::CalledOff(why) => {
                    tracing::info!(volume = name, why, "its wipe is called off");
                    Ok(Removed::CalledOff)
                }
                Stop::Held(why) => Err(DeleteError::Held(format!("{name} is in use: {why}"))),
                Stop::Failed(error) if written => Err(DeleteError::Wipe(name, error)),
                Stop::Failed(error) => Err(DeleteError::Held(format!("{name} cannot be removed yet: {error}"))),
            };
        }
    }
    crash_point!("delete-after-wipe");
    let done = match remove_closed(&reference, context).await {
        Ok(done) => done,
        Err(error) => {
            not_gone(&reference, tags, context).await;
            return Err(error.into());
        }
    };
    crash_point!("delete-after-lvremove");
    context.inventory.set(done.state);
    context.wipes.forget(&logical.uuid);
    context.metrics.removed();
    Ok(Removed::Gone)
}

/// Removes a volume that nobody holds. udev looks at one that was just written to, and has it open for a moment.
async fn remove_closed(volume: &VolumeRef, context: &Context) -> Result<Done<()>, RemoveVolumeError> {
    for _ in 0..OPEN_LOOKS {
        match context.lvm.remove_volume(volume.clone()).await {
            Err(RemoveVolumeError::Busy(_)) => tokio::time::sleep(OPEN_FOR).await,
            other => return other,
        }
    }
    context.lvm.remove_volume(volume.clone()).await
}

/// Deletes the PersistentVolume, whose logical volume is gone.
async fn delete_object(volume: &PersistentVolume, context: &Context) -> Result<(), DeleteError> {
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    if volume.metadata.deletion_timestamp.is_none() {
        let preconditions = Preconditions {
            uid: volume.uid(),
            resource_version: None,
        };
        let params = DeleteParams {
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        match volumes.delete(&volume.name_any(), &params).await {
            Ok(_) => crash_point!("delete-after-object"),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    release(volume, context).await
}

/// How often the finalizer is tried to be taken off where others change the object at the same time.
const RELEASES: usize = 5;

/// Takes our finalizer off, under the UID that was seen. One that the node does not hear of would be left for good if it were given up
/// for a change by somebody else: its logical volume, by which it was found, is gone.
async fn release(volume: &PersistentVolume, context: &Context) -> Result<(), DeleteError> {
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    for attempt in 1..=RELEASES {
        let Some(live) = volumes.get_opt(&volume.name_any()).await? else {
            return Ok(());
        };
        if live.uid() != volume.uid() {
            return Ok(());
        }
        let left: Vec<&String> = live
            .finalizers()
            .iter()
            .filter(|finalizer| *finalizer != VOLUME_FINALIZER)
            .collect();
        let patch = json!({"metadata": {"resourceVersion": live.resource_version(), "finalizers": left}});
        match volumes
            .patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.is_conflict() && attempt < RELEASES => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            other => return other.map(drop).map_err(Into::into),
        }
    }
    Ok(())
}

/// Failures that are said only when they last: kubelet lets go of a volume some seconds after its claim is gone.
const SAID_AFTER: Duration = Duration::from_secs(16);

/// Says on the volume why it is still there.
pub fn failed(volume: Arc<PersistentVolume>, error: &DeleteError, context: Arc<Context>, delay: Duration) {
    let refusal = match error {
        DeleteError::Api(error) => refusal(error),
        _ => None,
    };
    let passing = matches!(error, DeleteError::Held(_) | DeleteError::Remove(_)) && delay < SAID_AFTER;
    if passing || (matches!(error, DeleteError::Api(_)) && refusal.is_none()) {
        tracing::info!(volume = volume.name_any(), %error, "not removed yet");
        return;
    }
    let why = refusal.map_or_else(
        || error.to_string(),
        |refusal| format!("the API server refuses: {refusal}"),
    );
    let note = format!("node {}: {why}; it is tried again", context.node);
    tokio::spawn(async move {
        context
            .events
            .say(&*volume, Saying::warning("VolumeFailedDelete", note))
            .await;
    });
}
