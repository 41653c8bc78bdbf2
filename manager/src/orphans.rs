//! Logical volumes of ours that no object stands for: found by their tags, reported by condition, event and metric.
//!
//! Their space is `reserved`, so that nothing is promised that is not there. They are removed only where that was asked
//! for (`--orphans=delete`) and by the proof that [`quarry_crds::orphans`] demands. What Quarry did not make is never
//! looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use quarry_crds::names::{NODE_LABEL, volume_name};
use quarry_crds::orphans::{Evidence, Policy, Verdict, interval, is_mass, verdict};
use quarry_crds::tags::{VolumeState, VolumeTags};
use quarry_crds::{labels, persistent_volume};
use quarry_process::Shutdown;
use quarry_process::events::Saying;
use thiserror::Error;

use crate::context::Context;
use crate::delete::{self, Wanted};
use crate::lvm::{LogicalVolume, ReportError, VolumeGroup};

/// So many claims are listed at a time.
const PAGE: u32 = 500;

/// A sweep told nothing: what was counted before is forgotten.
#[derive(Debug, Error)]
pub enum SweepError {
    /// LVM could not be read.
    #[error("LVM could not be read: {0}")]
    Report(#[from] ReportError),
    /// LVM sees only a part.
    #[error("LVM could not read everything: {0}")]
    Incomplete(String),
    /// The API server.
    #[error("the API server did not answer as it should: {0}")]
    Api(#[from] kube::Error),
}

/// The orphans that are reported, by UUID of the volume group.
#[derive(Default)]
pub struct Orphans {
    reported: RwLock<BTreeMap<String, BTreeSet<String>>>,
}

impl Orphans {
    /// Names of the orphans in a volume group.
    #[must_use]
    pub fn of(&self, group_uuid: &str) -> BTreeSet<String> {
        let reported = self.reported.read().unwrap_or_else(PoisonError::into_inner);
        reported.get(group_uuid).cloned().unwrap_or_default()
    }

    /// Takes over what is to be reported; whether that is something else than before.
    fn set(&self, now: BTreeMap<String, BTreeSet<String>>) -> bool {
        let mut reported = self.reported.write().unwrap_or_else(PoisonError::into_inner);
        let changed = *reported != now;
        *reported = now;
        changed
    }
}

/// What is counted from sweep to sweep: by UUID of the logical volume, in how many in a row it was an orphan.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<String, u32>);

/// Sweeps now and then until the end is asked for.
pub async fn sweep_on(context: Arc<Context>, policy: Policy, grace: Duration, shutdown: Shutdown) {
    let mut counts = Counts::default();
    loop {
        tokio::select! {
            () = shutdown.wait() => return,
            () = tokio::time::sleep(interval(grace)) => {}
        }
        if let Err(error) = sweep(&context, policy, grace, &mut counts).await {
            counts = Counts::default();
            tracing::warn!(%error, "orphans were not looked for");
        }
    }
}

/// One sweep.
///
/// # Errors
/// Nothing can be told from it.
pub async fn sweep(
    context: &Arc<Context>,
    policy: Policy,
    grace: Duration,
    counts: &mut Counts,
) -> Result<(), SweepError> {
    let state = context.inventory.refresh().await?;
    if let Some(incomplete) = &state.incomplete {
        return Err(SweepError::Incomplete(incomplete.clone()));
    }
    let mut orphans = Vec::new();
    for group in state.groups.iter().filter(|group| context.owner.acts_on(&group.tags)) {
        for volume in &group.logical_volumes {
            if let Some(tags) = suspect(volume, context) {
                orphans.push((group, volume, tags));
            }
        }
    }
    let before = &counts.0;
    // Whose claims were looked for already, and that stay whatever comes, need not be looked for again.
    let settled =
        |volume: &LogicalVolume| policy == Policy::Report && before.get(&volume.uuid).is_some_and(|n| *n >= 2);
    if !orphans.is_empty() {
        let all_settled = orphans.iter().all(|(_, volume, _)| settled(volume));
        let known = known(context, &orphans, !all_settled).await?;
        orphans.retain(|(_, _, tags)| !known.contains(&tags.claim_uid));
    }
    let at_once = orphans.len();
    let before = std::mem::take(&mut counts.0);
    let mut reported: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut removable = Vec::new();
    for (group, volume, tags) in orphans {
        let sweeps = before.get(&volume.uuid).map_or(1, |sweeps| sweeps.saturating_add(1));
        counts.0.insert(volume.uuid.clone(), sweeps);
        let class = context.objects.class(&tags.class);
        let evidence = Evidence {
            sweeps,
            state: tags.state,
            open: volume.open,
            partial: volume.partial,
            named: volume.name == volume_name(&tags.claim_uid),
            reclaim: class
                .as_ref()
                .map(|class| class.reclaim_policy.as_deref().unwrap_or("Delete")),
            at_once,
        };
        let verdict = verdict(policy, grace, &evidence);
        if verdict == Verdict::Wait {
            continue;
        }
        reported
            .entry(group.uuid.clone())
            .or_default()
            .insert(volume.name.clone());
        if !context.orphans.of(&group.uuid).contains(&volume.name) {
            tell(context, group, volume, &tags, verdict).await;
        }
        // Removing some of them by hand does not make the others fair game, nor does a new start.
        if policy == Policy::Delete && is_mass(at_once) && tags.state == VolumeState::Ready {
            context
                .ready_tags
                .mark(group.reference_to(volume), VolumeState::Retained);
        }
        if verdict == Verdict::Remove {
            removable.push((group, volume, tags));
        }
    }
    for group in &state.groups {
        let count = reported.get(&group.uuid).map_or(0, BTreeSet::len);
        context.metrics.orphans(&group.name, count);
    }
    if context.orphans.set(reported) {
        context.changed.notify_one();
    }
    for (group, volume, tags) in removable {
        tracing::warn!(
            volume = volume.name,
            volume_group = group.name,
            "an orphan is removed, as was asked for"
        );
        if let Err(error) = delete::wipe_and_remove(group, volume, &tags, Wanted::Nobody, context).await {
            tracing::warn!(volume = volume.name, %error, "an orphan was not removed");
        }
    }
    Ok(())
}

/// The tags of a volume of ours that was handed out and has no object that this node knows of.
fn suspect(volume: &LogicalVolume, context: &Context) -> Option<VolumeTags> {
    let tags = VolumeTags::parse(&volume.tags)?;
    let handed_out = matches!(tags.state, VolumeState::Ready | VolumeState::Retained);
    let known = context.objects.volume(&volume_name(&tags.claim_uid)).is_some()
        || context.objects.claim_with_uid(&tags.claim_uid).is_some();
    (handed_out && !known).then_some(tags)
}

/// The claim UIDs of these for which the API server itself, not a cache, knows a PersistentVolume or, where claims are
/// asked for too, the claim. A claim can be asked for by its name only, which nobody knows any more: all of the cluster are
/// listed, by pages and without what is in them.
async fn known(
    context: &Arc<Context>,
    suspects: &[(&VolumeGroup, &LogicalVolume, VolumeTags)],
    claims_too: bool,
) -> Result<BTreeSet<String>, kube::Error> {
    let mut known = BTreeSet::new();
    if claims_too {
        let wanted: BTreeSet<&str> = suspects.iter().map(|(_, _, tags)| tags.claim_uid.as_str()).collect();
        let claims: Api<PersistentVolumeClaim> = Api::all(context.client.clone());
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = claims.list_metadata(&page).await?;
            let uids = list.items.iter().filter_map(ResourceExt::uid);
            known.extend(uids.filter(|uid| wanted.contains(uid.as_str())));
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => break,
            }
        }
    }
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    for (_, _, tags) in suspects {
        if let Some(volume) = volumes.get_opt(&volume_name(&tags.claim_uid)).await? {
            known.insert(tags.claim_uid.clone());
            serve_unseen(&volume, context).await;
        }
    }
    Ok(known)
}

/// A PersistentVolume of this node that the watch of this node does not show: it goes by the label of the node, which somebody
/// has taken off or changed. It is served all the same, if late, and told of.
async fn serve_unseen(volume: &PersistentVolume, context: &Arc<Context>) {
    let here = persistent_volume::ours(volume).is_some_and(|our| our.node == context.node);
    let label = labels::value(&context.node);
    if !here || volume.labels().get(NODE_LABEL) == Some(&label) {
        return;
    }
    let name = volume.name_any();
    let note = format!(
        "node {}: this PersistentVolume lacks its label {NODE_LABEL}={label}, by which the node hears of it, so that it is looked at \
         every few minutes only; put it back with \"kubectl label pv {name} --overwrite {NODE_LABEL}={label}\"",
        context.node
    );
    tracing::warn!("{note}");
    context.events.say(volume, Saying::warning("LabelMissing", note)).await;
    if let Err(error) = delete::step(volume, context).await {
        tracing::warn!(volume = name, %error, "it was not served");
    }
}

async fn tell(context: &Context, group: &VolumeGroup, volume: &LogicalVolume, tags: &VolumeTags, verdict: Verdict) {
    let next = match verdict {
        Verdict::Remove => "it is removed now".to_owned(),
        Verdict::Report(why) => format!(
            "it stays ({why}); if it is not needed, remove it on the node with \"lvremove {}/{}\"",
            group.name, volume.name
        ),
        Verdict::Wait => return,
    };
    let note = format!(
        "node {}: logical volume {}/{} of {} (class {}) has neither PersistentVolume nor claim; its space is reserved; {next}",
        context.node, group.name, volume.name, volume.size, tags.class
    );
    tracing::warn!("{note}");
    for storage in context.objects.storages_of(&group.name) {
        context
            .events
            .say(&*storage, Saying::warning("OrphanVolume", note.clone()))
            .await;
    }
}
