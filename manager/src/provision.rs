//! Claim → logical volume → PersistentVolume; and the way back to the scheduler where that fails.
//!
//! Every step starts from what is there and is idempotent by claim UID. The order that may not be broken: a volume is
//! wiped before its PersistentVolume exists; and on the way back, the logical volume is gone before the true capacity is
//! published, and that before `selected-node` is cleared (with the resourceVersion that was seen), and then the event.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use quarry_crds::claim::{self, VolumeMode};
use quarry_crds::conditions;
use quarry_crds::for_owners::shortened;
use quarry_crds::names::{HOSTNAME_LABEL, REFUSED_BY_ANNOTATION, SELECTED_NODE, volume_name};
use quarry_crds::persistent_volume::{self, Placed};
use quarry_crds::provisioning::{Provision, Step, step};
use quarry_crds::tags::{Owner, VolumeState, VolumeTags, mark_of_kept};
use quarry_process::events::Saying;
use serde_json::json;
use thiserror::Error;

use crate::context::Context;
use crate::lvm::command::CommandError;
use crate::lvm::{
    CreateVolume, CreateVolumeError, LogicalVolume, RemoveVolumeError, ReportError, State, VolumeError, VolumeGroup,
    VolumeRef,
};
use crate::lvm_refusals::Refused;
use crate::zeroing::{self, Wiped};
use crate::{immediate, refusals, volume_group, wake};

/// How long a claim waits at a time for the first pass over the volume groups.
pub(crate) const FIRST_PASS: Duration = Duration::from_millis(500);

/// At most so much of what LVM said goes into a condition.
const WORDS_MAX: usize = 512;

/// A claim was not served; it is tried again.
#[derive(Debug, Error)]
pub enum ProvisionError {
    /// The API server.
    #[error("the API server did not answer as it should: {0}")]
    Api(#[from] kube::Error),
    /// LVM could not be read.
    #[error("LVM could not be read: {0}")]
    Report(#[from] ReportError),
    /// The volume was not made, and nobody knows whether part of it is there, or it is there and not ours.
    #[error("{0}")]
    Create(CreateVolumeError),
    /// A volume that is not to stay was not removed.
    #[error("the volume made for the claim could not be removed: {0}")]
    Remove(#[from] RemoveVolumeError),
    /// The volume is there, and has no device.
    #[error("the new volume could not be activated: {0}")]
    Activate(#[from] VolumeError),
    /// The volume is there, but holds old data.
    #[error("the new volume could not be wiped: {0}")]
    Wipe(String),
    /// The node cannot be named in a PersistentVolume.
    #[error("node {0} has no label {HOSTNAME_LABEL}; kubelet sets it: is the node registered?")]
    NoHostname(String),
    /// Something else has the name of the volume.
    #[error("{0}")]
    NameTaken(String),
    /// The status could not be published, so the scheduler must not be asked yet.
    #[error("the capacity could not be published: {0}")]
    Publish(#[from] volume_group::GroupError),
}

/// Why a claim goes back to the scheduler.
struct NoVolume {
    volume_group: String,
    why: String,
    /// LVM's words, where it refused for another reason than room: nothing that is published says so.
    refused: Option<String>,
}

/// Brings a claim one step on.
///
/// # Errors
/// See [`ProvisionError`]; the claim is to be tried again later.
pub async fn reconcile(claim: Arc<PersistentVolumeClaim>, context: Arc<Context>) -> Result<Action, ProvisionError> {
    let class = claim::class_name(&claim).and_then(|name| context.objects.class(name));
    match step(&claim, class.as_deref(), &context.node) {
        Step::Nothing => {
            if wake::is_for_us(&context, &claim) {
                context.wake.claim_waits();
            }
            Ok(Action::await_change())
        }
        Step::AwaitClass if claim::selected_node(&claim).is_some() => Ok(Action::requeue(Duration::from_secs(5))),
        Step::AwaitClass => {
            context.wake.waiting.add(&claim);
            Ok(Action::await_change())
        }
        Step::Leave { message } => {
            if context.objects.has_class_of(&claim) {
                context
                    .events
                    .say(&*claim, Saying::normal("Provisioning", message))
                    .await;
            }
            Ok(Action::await_change())
        }
        Step::Refuse { reason, message } => {
            if context.objects.has_class_of(&claim) || claim::selected_node(&claim).is_some() {
                context.events.say(&*claim, Saying::warning(reason, message)).await;
            }
            Ok(Action::await_change())
        }
        // Just started: a claim is neither given back nor left for long only because nothing was looked at yet.
        Step::Take(_) | Step::Provision(_) if !context.groups.are_known() => Ok(Action::requeue(FIRST_PASS)),
        Step::Take(provision) => {
            let Some(class) = class else {
                return Ok(Action::await_change());
            };
            immediate::take(&claim, &class, &provision, &context).await
        }
        Step::Provision(provision) => {
            let Some(class) = class else {
                return Ok(Action::await_change());
            };
            serve(&claim, &class, &provision, &context).await
        }
    }
}

async fn serve(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    provision: &Provision,
    context: &Arc<Context>,
) -> Result<Action, ProvisionError> {
    let name = volume_name(&provision.request.uid);
    if context.objects.volume(&name).is_some() {
        return Ok(Action::await_change());
    }
    let begun = Instant::now();
    // The watch can lag behind: what is there was perhaps handed out already, and must not be wiped again then.
    let wanted = &provision.parameters.volume_group;
    if let Some((group, volume)) = find(&context.inventory.get(), wanted, &name) {
        if let Some(action) = zeroing::goes_on(volume, context) {
            return Ok(action);
        }
        if let Some(there) = handed_out(&provision.request.uid, context).await? {
            mark_handed_out(&there, group.reference_to(volume), context);
            return Ok(Action::await_change());
        }
    }
    let (group, volume) = match find_or_create(provision, class, context).await? {
        Ok(found) => found,
        Err(no_volume) => return give_back(claim, provision, no_volume, context).await,
    };
    let Some(tags) = VolumeTags::parse(&volume.tags) else {
        return Err(ProvisionError::NameTaken(format!(
            "{}/{} has lost its tags",
            group.name, volume.name
        )));
    };
    crash_point!("claim-before-wipe");
    // What is still `creating` was perhaps interrupted before it was wiped.
    let live = match zeroing::wipe(claim, (&group, &volume), tags, context).await? {
        Wiped::NotYet(action) => return Ok(action),
        Wiped::Unwanted => None,
        Wiped::Clean => {
            crash_point!("claim-after-wipe");
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace(claim));
            claims.get_opt(&claim.name_any()).await?
        }
    };
    let Some(live) = live.filter(|live| is_still_ours(live, claim, &context.node)) else {
        tracing::info!(claim = claim.name_any(), "no longer wanted here; its volume is removed");
        remove(&group, &volume, context).await?;
        crash_point!("unwanted-after-lvremove");
        return Ok(Action::await_change());
    };
    let hostname = context.objects.hostname();
    let hostname = hostname.ok_or_else(|| ProvisionError::NoHostname(context.node.clone()))?;
    let placed = Placed {
        node: &context.node,
        hostname: &hostname,
        volume_group: &group.name,
        volume_group_uuid: &group.uuid,
        machine: context.machine.as_deref(),
        size: volume.size,
    };
    let persistent = persistent_volume::build(&live, &provision.request, class, provision.parameters.fs_type, &placed);
    crash_point!("claim-before-volume-object");
    create_persistent_volume(&persistent, &provision.request.uid, context).await?;
    crash_point!("claim-after-volume-object");
    mark_handed_out(&persistent, group.reference_to(&volume), context);
    if provision.request.volume_mode == VolumeMode::Block {
        // Nothing on it would tell that it was handed out.
        context.ready_tags.hurry();
    }
    context.metrics.provisioned(begun.elapsed());
    let note = format!(
        "Successfully provisioned volume {name} of {} on node {}",
        volume.size, context.node
    );
    context
        .events
        .say(&live, Saying::normal("ProvisioningSucceeded", note))
        .await;
    crash_point!("claim-after-event");
    Ok(Action::await_change())
}

/// The volume of a claim, made where it is not there yet; or why this node has none for it.
async fn find_or_create(
    provision: &Provision,
    class: &StorageClass,
    context: &Context,
) -> Result<Result<(VolumeGroup, LogicalVolume), NoVolume>, ProvisionError> {
    let request = &provision.request;
    let wanted = &provision.parameters.volume_group;
    let name = volume_name(&request.uid);
    let state = context.inventory.get();
    if let Some((group, volume)) = find(&state, wanted, &name) {
        return reuse(group, volume, wanted, provision, context).await;
    }
    if let Some((group, volume)) = renamed(&state, &context.owner, &request.uid) {
        return Err(ProvisionError::NameTaken(format!(
            "node {}: the logical volume of this claim was renamed to {}/{}; rename it back with \"lvrename {} {} {name}\"",
            context.node, group.name, volume.name, group.name, volume.name
        )));
    }
    let without = |why: String, refused: Option<String>| {
        Ok(Err(NoVolume {
            volume_group: wanted.clone(),
            why,
            refused,
        }))
    };
    let no_volume = |why: String| without(why, None);
    let group = match volume_group::usable(context, wanted) {
        Ok(group) => group,
        Err(why) => return no_volume(why),
    };
    let extents = group.extent_size.holding(request.size);
    let class_name = class.metadata.name.clone().unwrap_or_default();
    let tags = VolumeTags {
        claim_uid: request.uid.clone(),
        class: class_name,
        state: VolumeState::Creating,
        wipe: provision.parameters.wipe,
        mode: request.volume_mode,
    };
    let devices = volume_group::best_devices(&group, extents);
    let create = CreateVolume {
        group: group.reference(),
        name: name.clone(),
        extents,
        tags: tags.to_vec(),
        physical_volume: volume_group::physical_volume(&group, &devices),
        devices,
    };
    let asked = request.size;
    crash_point!("claim-before-lvcreate");
    match context.lvm.create_volume(create).await {
        Ok(made) => {
            crash_point!("claim-after-lvcreate");
            context.groups.refusals.made(wanted);
            let volume = made.value.clone();
            context.inventory.made(made);
            Ok(Ok((group, volume)))
        }
        Err(CreateVolumeError::NoRoom { free, .. }) => {
            let free = group.extent_size.size_of(free).unwrap_or_default();
            no_volume(format!("{asked} ({extents} extents) asked, {free} free"))
        }
        Err(error @ (CreateVolumeError::GroupMissing(_) | CreateVolumeError::MetadataFull { .. })) => {
            no_volume(format!("{asked} asked; {error}"))
        }
        Err(error @ CreateVolumeError::GroupUnusable { .. }) => no_volume(format!("{asked} asked; {error}")),
        // LVM refused and nothing was made: a disk that does not answer, for example. Another node may do better.
        Err(CreateVolumeError::Refused(cause)) => without(format!("{asked} asked; {cause}"), Some(words(&cause))),
        Err(CreateVolumeError::Incomplete { volume, cause }) => {
            // It may also have been there before, unknown to the inventory.
            if handed_out(&request.uid, context).await?.is_some() {
                context.inventory.refresh().await?;
                return Err(ProvisionError::Create(CreateVolumeError::Incomplete { volume, cause }));
            }
            tracing::warn!(%cause, volume = volume.name, "made, but not as it should be; removed again");
            remove(&group, &volume, context).await?;
            without(format!("{asked} asked; {cause}"), Some(words(&cause)))
        }
        // There is something of that name: read, and decide on what is there.
        Err(error) => {
            context.inventory.refresh().await?;
            Err(ProvisionError::Create(error))
        }
    }
}

/// What a command said, without what differs from one attempt to the next.
fn words(cause: &CommandError) -> String {
    match cause.stderr.trim() {
        "" => cause.exit.to_string(),
        said => conditions::shorten(said, WORDS_MAX),
    }
}

/// Takes up a volume that a former attempt made for the claim.
async fn reuse(
    group: &VolumeGroup,
    volume: &LogicalVolume,
    wanted: &str,
    provision: &Provision,
    context: &Context,
) -> Result<Result<(VolumeGroup, LogicalVolume), NoVolume>, ProvisionError> {
    let tags = VolumeTags::parse(&volume.tags).filter(|tags| tags.claim_uid == provision.request.uid);
    let Some(tags) = tags else {
        return Err(ProvisionError::NameTaken(format!(
            "node {}: logical volume {}/{} exists but was not made by Quarry for this claim; rename it with \"lvrename\"",
            context.node, group.name, volume.name
        )));
    };
    if tags.state == VolumeState::Deleting {
        return Err(ProvisionError::NameTaken(format!(
            "{}/{} is being wiped and removed",
            group.name, volume.name
        )));
    }
    let by = group.stacked_on(volume);
    if !by.is_empty() {
        return Err(ProvisionError::NameTaken(format!(
            "node {}: {}/{} is in use: {}",
            context.node,
            group.name,
            volume.name,
            by.join(", ")
        )));
    }
    // Only what was never handed out is wiped or removed for a claim: etcd may have been restored to a moment before that.
    if let Some(note) = tags.state.to_be_kept(&group.name, &volume.name) {
        return Err(ProvisionError::NameTaken(format!("node {}: {note}", context.node)));
    }
    if group.name == wanted && volume.size >= provision.request.size && !volume.partial {
        return Ok(Ok((group.clone(), with_device(group, volume, context).await?)));
    }
    // Never handed out (there is no PersistentVolume), and not what is asked for.
    remove(group, volume, context).await?;
    Err(ProvisionError::NameTaken(format!(
        "{}/{} did not fit the claim and was removed",
        group.name, volume.name
    )))
}

/// A volume that can be wiped: whoever made it may have died before its device, or the link to it, was there.
async fn with_device(
    group: &VolumeGroup,
    volume: &LogicalVolume,
    context: &Context,
) -> Result<LogicalVolume, ProvisionError> {
    if volume.active != Some(false) {
        return Ok(volume.clone());
    }
    let done = context.lvm.set_active(group.reference_to(volume), true).await?;
    let volume = done.value.clone();
    context.inventory.set(done.state);
    Ok(volume)
}

/// Gives a claim back to the scheduler: nothing of it is left here, the capacity is published, then it is let go.
async fn give_back(
    claim: &PersistentVolumeClaim,
    provision: &Provision,
    no_volume: NoVolume,
    context: &Context,
) -> Result<Action, ProvisionError> {
    crash_point!("give-back-begins");
    let state = context.inventory.refresh().await?;
    if let Some(incomplete) = &state.incomplete {
        // What is not listed may still exist, so nobody may look for room elsewhere yet.
        tracing::warn!(%incomplete, "LVM sees only a part; the claim is kept");
        return Ok(Action::requeue(Duration::from_secs(5)));
    }
    let name = volume_name(&provision.request.uid);
    if find(&state, &no_volume.volume_group, &name).is_some() {
        // Seen only now: whose it is, and whether it was handed out, is to be looked at first.
        return Ok(Action::requeue(Duration::from_millis(200)));
    }
    let refused = no_volume.refused.as_deref();
    let refused = refused.map(|said| {
        let refusals = &context.groups.refusals;
        refusals.refused(claim, &context.node, &no_volume.volume_group, said)
    });
    let unpublished = volume_group::publish(context, &no_volume.volume_group).await?;
    // The scheduler goes by the figures of the class: of another that shares the group it may be as it is.
    let of_class = |(class, _): &volume_group::Unpublished| Some(class.as_str()) == claim::class_name(claim);
    if let Some((_, error)) = unpublished.into_iter().find(of_class) {
        return Err(ProvisionError::Publish(error.into()));
    }
    crash_point!("give-back-after-publish");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace(claim));
    let mut patch = json!({"metadata": {
        "resourceVersion": claim.resource_version(),
        "annotations": {SELECTED_NODE: null},
    }});
    if let Some(refused) = &refused {
        patch["metadata"]["annotations"][REFUSED_BY_ANNOTATION] = json!(refused.refusals.to_text());
        look_again(context, refused);
    }
    match claims
        .patch(&claim.name_any(), &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(_) => {}
        // Somebody changed it meanwhile: what it says now is to be looked at first.
        Err(kube::Error::Api(status)) if status.is_conflict() => {
            return Ok(Action::requeue(Duration::from_millis(200)));
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(Action::await_change()),
        Err(error) => return Err(error.into()),
    }
    crash_point!("give-back-after-clearing");
    context.metrics.given_back();
    let note = format!(
        "node {}, volume group {}: {}; asked the scheduler to choose again",
        context.node,
        no_volume.volume_group,
        shortened(&no_volume.why)
    );
    context
        .events
        .say(claim, Saying::warning("ProvisioningFailed", note))
        .await;
    crash_point!("give-back-after-event");
    Ok(Action::await_change())
}

/// When this node is no longer left alone, for the claim or for all, whoever waits is told.
fn look_again(context: &Context, refused: &Refused) {
    let (wake, changed, claim) = (context.wake.clone(), Arc::clone(&context.changed), refused.claim);
    tokio::spawn(async move {
        tokio::time::sleep(claim).await;
        wake.owe();
    });
    if let Some(time) = refused.group {
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            changed.notify_one();
        });
    }
}

/// Creates the PersistentVolume, or finds that a former attempt did.
async fn create_persistent_volume(
    volume: &PersistentVolume,
    claim_uid: &str,
    context: &Context,
) -> Result<(), ProvisionError> {
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    match volumes.create(&PostParams::default(), volume).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            check_same(&volumes.get(&volume.name_any()).await?, claim_uid, context)
        }
        Err(error) => Err(error.into()),
    }
}

/// The PersistentVolume of a claim, where it exists; the API server itself is asked.
async fn handed_out(claim_uid: &str, context: &Context) -> Result<Option<PersistentVolume>, ProvisionError> {
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    let Some(there) = volumes.get_opt(&volume_name(claim_uid)).await? else {
        return Ok(None);
    };
    check_same(&there, claim_uid, context).map(|()| Some(there))
}

/// Has a volume marked whose PersistentVolume exists.
fn mark_handed_out(persistent: &PersistentVolume, volume: VolumeRef, context: &Context) {
    let retain = persistent_volume::ours(persistent).is_some_and(|our| our.retain);
    if let Some(to) = mark_of_kept(VolumeState::Creating, retain) {
        context.ready_tags.mark(volume, to);
    }
}

/// Whether a PersistentVolume that has the name of ours is ours: made for that claim, on this node.
fn check_same(there: &PersistentVolume, claim_uid: &str, context: &Context) -> Result<(), ProvisionError> {
    let of = there
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref()?.uid.as_deref());
    if of == Some(claim_uid) && persistent_volume::ours(there).is_some_and(|ours| ours.node == context.node) {
        return Ok(());
    }
    let name = there.name_any();
    Err(ProvisionError::NameTaken(format!(
        "PersistentVolume {name} exists and is of something else; delete it"
    )))
}

/// Removes a volume that was never handed out.
///
/// # Errors
/// LVM did not remove it.
pub async fn remove(group: &VolumeGroup, volume: &LogicalVolume, context: &Context) -> Result<(), RemoveVolumeError> {
    let done = context.lvm.remove_volume(group.reference_to(volume)).await?;
    context.inventory.set(done.state);
    context.wipes.forget(&volume.uuid);
    Ok(())
}

/// The volume of that name in the groups of that name: what is in others was not made for a claim of this class.
#[must_use]
pub fn find<'a>(state: &'a State, volume_group: &'a str, name: &str) -> Option<(&'a VolumeGroup, &'a LogicalVolume)> {
    state
        .groups_named(volume_group)
        .find_map(|group| Some((group, group.volume_named(name)?)))
}

/// The volume of ours of a claim that has another name than it was given.
#[must_use]
pub fn renamed<'a>(state: &'a State, owner: &Owner, claim_uid: &str) -> Option<(&'a VolumeGroup, &'a LogicalVolume)> {
    let name = volume_name(claim_uid);
    let of_claim = |volume: &&LogicalVolume| {
        volume.name != name && VolumeTags::parse(&volume.tags).is_some_and(|tags| tags.claim_uid == claim_uid)
    };
    state
        .groups
        .iter()
        .filter(|group| owner.acts_on(&group.tags))
        .find_map(|group| Some((group, group.logical_volumes.iter().find(of_claim)?)))
}

/// Whether a claim as it is now is the one that a volume was made for, and still selected to this node.
#[must_use]
pub fn is_still_ours(live: &PersistentVolumeClaim, seen: &PersistentVolumeClaim, node: &str) -> bool {
    live.metadata.uid == seen.metadata.uid
        && live.metadata.deletion_timestamp.is_none()
        && !claim::is_bound(live)
        && claim::selected_node(live) == Some(node)
}

/// The namespace of a claim.
#[must_use]
pub fn namespace(claim: &PersistentVolumeClaim) -> String {
    claim.metadata.namespace.clone().unwrap_or_default()
}

/// What to look at where this node's label is not what the policy for managers' PersistentVolumes expects.
fn renamed_host(context: &Context) -> String {
    match context.objects.hostname() {
        Some(hostname) if hostname != context.node => format!(
            " (the node's label {HOSTNAME_LABEL} is {hostname:?} and not its name; see docs/security.md on nodes whose label \
             was changed)"
        ),
        _ => String::new(),
    }
}

/// Says on the claim why it is not served yet.
pub fn failed(claim: Arc<PersistentVolumeClaim>, error: &ProvisionError, context: Arc<Context>) {
    let why = match error {
        ProvisionError::Api(cause) | ProvisionError::Publish(volume_group::GroupError::Api(cause)) => {
            tracing::warn!(claim = claim.name_any(), %error, "not served yet");
            let Some(refusal) = refusals::refusal(cause) else {
                return;
            };
            format!(
                "the API server refuses what is needed for this claim: {refusal}{}",
                renamed_host(&context)
            )
        }
        other => other.to_string(),
    };
    let note = shortened(&format!("node {}: {why}; it is tried again here", context.node));
    tokio::spawn(async move {
        context
            .events
            .say(&*claim, Saying::warning("ProvisioningFailed", note))
            .await;
    });
}
