//! Volumes that were being made or removed when the manager stopped, and whose objects have gone since.
//!
//! Of the one the tag still says `creating`, which changes soon after its PersistentVolume exists. It is removed when the
//! API server itself says that there is neither its PersistentVolume nor its claim, and nothing is found on it: a volume with a
//! file system was handed out, whatever its tag says, and its node lost its power before that was changed. Of the other the
//! tag says `deleting`: its removal was decided, and it is perhaps wiped in part; it is wiped from the start and removed
//! once the API server says that its PersistentVolume is gone. Nothing else that lacks an object is ever touched here:
//! see [`crate::orphans`].

use quarry_process::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, ListParams};
use quarry_crds::claim::{self, VolumeMode};
use quarry_crds::names::volume_name;
use quarry_crds::persistent_volume::ours;
use quarry_crds::tags::{VolumeState, VolumeTags};

use crate::context::Context;
use crate::delete::{self, Removed, Wanted};
use crate::kept;
use crate::lvm::{LogicalVolume, VolumeGroup};
use crate::provision;

/// How long a volume must have been seen without an object before the API server is asked.
const GRACE: Duration = Duration::from_secs(10);
/// A sweep follows each change of LVM's state or of a claim within this time.
const SWEEP: Duration = Duration::from_secs(20);

/// Looks for leftovers at the start and then now and then; it costs nothing where there are none.
pub async fn keep_away(context: Arc<Context>, shutdown: Shutdown) {
    let mut pause = GRACE;
    let mut told = kept::Told::default();
    loop {
        tokio::select! {
            () = shutdown.wait() => return,
            () = tokio::time::sleep(pause) => {}
        }
        if std::mem::replace(&mut pause, SWEEP) == GRACE {
            // What a former process has handed out is known by now, and waits for no others.
            context.ready_tags.hurry();
        }
        kept::look(&context, &mut told).await;
        let suspects = suspects(&context);
        if suspects.is_empty() {
            continue;
        }
        tokio::time::sleep(GRACE).await;
        for (group, volume, tags) in suspects {
            crash_point!("leftover-before-lvremove");
            let owner = owner(&context, &group, &tags).await;
            if matches!(owner, Ok(Owner::Nobody)) && may_be_handed_out(&tags) {
                match carries(&group, &volume, &context).await {
                    Ok(found) if found.is_empty() => {}
                    Ok(found) => {
                        tracing::warn!(
                            volume = volume.name,
                            ?found,
                            "nobody knows it, and it is not empty: it stays"
                        );
                        context.ready_tags.mark(group.reference_to(&volume), VolumeState::Ready);
                        context.ready_tags.hurry();
                        continue;
                    }
                    Err(error) => {
                        tracing::warn!(volume = volume.name, error, "what is on it cannot be told");
                        continue;
                    }
                }
            }
            match owner {
                Ok(Owner::Somebody) => {}
                Ok(Owner::Nobody | Owner::OtherNode) => match remove(&group, &volume, &tags, &context).await {
                    Ok(Removed::NotYet | Removed::CalledOff) => {}
                    Ok(Removed::Gone) => {
                        crash_point!("leftover-after-lvremove");
                        tracing::info!(volume = volume.name, "left over from a claim that has gone; removed");
                    }
                    Err(error) => tracing::warn!(volume = volume.name, error, "a leftover was not removed"),
                },
                Err(error) => tracing::warn!(volume = volume.name, %error, "nobody says whether it is wanted"),
            }
        }
    }
}

async fn remove(
    group: &VolumeGroup,
    volume: &LogicalVolume,
    tags: &VolumeTags,
    context: &Arc<Context>,
) -> Result<Removed, String> {
    if tags.state == VolumeState::Deleting {
        let removed = delete::wipe_and_remove(group, volume, tags, Wanted::Nobody, context).await;
        return removed.map_err(|error| error.to_string());
    }
    let removed = provision::remove(group, volume, context).await;
    removed.map(|()| Removed::Gone).map_err(|error| error.to_string())
}

/// Volumes that are `creating` or `deleting` and have no object that this node knows of.
fn suspects(context: &Context) -> Vec<(VolumeGroup, LogicalVolume, VolumeTags)> {
    let state = context.inventory.get();
    let mut found = Vec::new();
    for group in state.groups.iter().filter(|group| context.owner.acts_on(&group.tags)) {
        for volume in &group.logical_volumes {
            let Some(tags) = VolumeTags::parse(&volume.tags) else {
                continue;
            };
            let gone = match context.objects.claim_with_uid(&tags.claim_uid) {
                // Bound, and the volume not known here: perhaps bound to one on another node.
                Some(claim) => {
                    claim::is_bound(&claim) || claim::selected_node(&claim).is_some_and(|node| node != context.node)
                }
                None => true,
            };
            let interrupted = match tags.state {
                VolumeState::Creating => gone,
                VolumeState::Deleting => true,
                VolumeState::Ready | VolumeState::Retained => false,
            };
            let unknown = context.objects.volume(&volume.name).is_none();
            if !interrupted || !unknown || volume.name != volume_name(&tags.claim_uid) {
                continue;
            }
            if tags.state == VolumeState::Creating && context.wipes.is_at_work(&volume.uuid) {
                // It is stopped soon, as its claim is gone.
                continue;
            }
            if context.ready_tags.is_awaited(&volume.uuid) {
                // It was handed out, and somebody has taken its objects away by force: it is an orphan, and says so soon.
                context.ready_tags.hurry();
                continue;
            }
            found.push((group.clone(), volume.clone(), tags));
        }
    }
    found
}

/// Whose a volume is, as the API server itself says, not a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// A claim that is to be served here, or was.
    Somebody,
    /// A claim that another node serves: what is here was never handed out.
    OtherNode,
    /// There is neither a claim nor a PersistentVolume.
    Nobody,
}

async fn owner(context: &Context, group: &VolumeGroup, tags: &VolumeTags) -> Result<Owner, kube::Error> {
    let claim_uid = tags.claim_uid.as_str();
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    if let Some(volume) = volumes.get_opt(&volume_name(claim_uid)).await? {
        // While this node was gone its claim was served by another one.
        // A disk can be moved from node to node too: then its PersistentVolume names this very group.
        let is_here = ours(&volume).is_none_or(|our| our.node == context.node || our.volume_group_uuid == group.uuid);
        return Ok(if is_here { Owner::Somebody } else { Owner::OtherNode });
    }
    // Nobody can want what is wiped in part.
    if tags.state == VolumeState::Deleting {
        return Ok(Owner::Nobody);
    }
    let claims: Api<PersistentVolumeClaim> = Api::all(context.client.clone());
    let list = claims.list(&ListParams::default()).await?;
    let claim = list
        .items
        .iter()
        .find(|claim| claim.metadata.uid.as_deref() == Some(claim_uid));
    Ok(match claim {
        None => Owner::Nobody,
        Some(claim) if claim::selected_node(claim).is_none_or(|node| node == context.node) => Owner::Somebody,
        Some(_) => Owner::OtherNode,
    })
}

/// Whether a volume that is `creating` may have been used all the same. kubelet makes a file system before a pod sees a volume; on
/// a raw one nothing tells, so that it is marked at once when it is handed out.
fn may_be_handed_out(tags: &VolumeTags) -> bool {
    tags.state == VolumeState::Creating && tags.mode == VolumeMode::Filesystem
}

/// What is recognised on a volume, which is activated for that.
async fn carries(group: &VolumeGroup, volume: &LogicalVolume, context: &Context) -> Result<Vec<String>, String> {
    if volume.active == Some(false) {
        let done = context.lvm.set_active(group.reference_to(volume), true).await;
        context.inventory.set(done.map_err(|error| error.to_string())?.state);
    }
    context.wiper.carries(group.clone(), volume.clone()).await
}
