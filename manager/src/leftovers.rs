//! Volumes that were being made when the manager stopped, and whose claim has gone since.
//!
//! Such a volume was never handed out: its tag still says `creating`, which changes only once its PersistentVolume
//! exists. It is removed when the API server itself says that there is neither its PersistentVolume nor its claim.
//! Nothing else that lacks an object is ever touched here.

use quarry_process::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, ListParams};
use quarry_crds::claim;
use quarry_crds::names::volume_name;
use quarry_crds::tags::{VolumeState, VolumeTags};

use crate::context::Context;
use crate::lvm::{LogicalVolume, VolumeGroup};
use crate::provision;

/// How long a volume must have been seen without an object before the API server is asked.
const GRACE: Duration = Duration::from_secs(10);
/// A sweep follows each change of LVM's state or of a claim within this time.
const SWEEP: Duration = Duration::from_secs(20);

/// Looks for leftovers at the start and then now and then; it costs nothing where there are none.
pub async fn keep_away(context: Arc<Context>, shutdown: Shutdown) {
    let mut pause = GRACE;
    loop {
        tokio::select! {
            () = shutdown.wait() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = SWEEP;
        let suspects = suspects(&context);
        if suspects.is_empty() {
            continue;
        }
        tokio::time::sleep(GRACE).await;
        for (group, volume, uid) in suspects {
            match is_wanted(&context, &uid).await {
                Ok(true) => {}
                Ok(false) => match provision::remove(&group, &volume, &context).await {
                    Ok(()) => tracing::info!(volume = volume.name, "left over from a claim that has gone; removed"),
                    Err(error) => tracing::warn!(volume = volume.name, %error, "a leftover was not removed"),
                },
                Err(error) => tracing::warn!(volume = volume.name, %error, "nobody says whether it is wanted"),
            }
        }
    }
}

/// Volumes that are still `creating` and have no object that this node knows of.
fn suspects(context: &Context) -> Vec<(VolumeGroup, LogicalVolume, String)> {
    let state = context.inventory.get();
    let mut found = Vec::new();
    for group in &state.groups {
        for volume in &group.logical_volumes {
            let Some(tags) = VolumeTags::parse(&volume.tags) else {
                continue;
            };
            let gone = match context.objects.claim_with_uid(&tags.claim_uid) {
                Some(claim) => claim::selected_node(&claim).is_some_and(|node| node != context.node),
                None => true,
            };
            let unknown = gone && context.objects.volume(&volume.name).is_none();
            if tags.state == VolumeState::Creating && volume.name == volume_name(&tags.claim_uid) && unknown {
                found.push((group.clone(), volume.clone(), tags.claim_uid));
            }
        }
    }
    found
}

/// Whether the API server itself, not a cache, knows the volume or the claim.
async fn is_wanted(context: &Context, claim_uid: &str) -> Result<bool, kube::Error> {
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    if volumes.get_opt(&volume_name(claim_uid)).await?.is_some() {
        return Ok(true);
    }
    let claims: Api<PersistentVolumeClaim> = Api::all(context.client.clone());
    let list = claims.list(&ListParams::default()).await?;
    let here = list.items.iter().any(|claim| {
        claim.metadata.uid.as_deref() == Some(claim_uid)
            && claim::selected_node(claim).is_none_or(|node| node == context.node)
    });
    Ok(here)
}
