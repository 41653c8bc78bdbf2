//! NodeLocalStorage → volume group: disks are looked at, the group is made or extended, and the status tells the truth.
//!
//! One pass looks at everything on the node: classes, disks, LVM. It runs when any of them changed, one at a time, and
//! decides with [`quarry_crds::volume_group::plan`]; between passes nothing is polled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};

use quarry_crds::node_local_storage::DiskStatus;
use quarry_crds::storage_class::{ClassParameters, VolumeGroupPolicy};
use quarry_crds::tags::{self, VERSION_TAG};
use quarry_crds::volume_group::{Action, Found, ListedDisk, Plan, Situation, plan};
use quarry_crds::{Extents, NodeLocalStorage};
use quarry_process::events::Saying;
use thiserror::Error;
use tokio::sync::Mutex;

use crate::context::{Context, Listing, Probed};
use crate::lvm::{CreateGroup, GroupProblem, ReportError, State, VolumeGroup};
use crate::{capacity, node_local_storage};

/// Tag of a volume group that is to be taken down once no class names it and no volume is left.
const DELETE_TAG: &str = "quarry.policy=delete";
/// Below this, in bytes, the metadata area may not hold another volume: about 32 volumes' worth.
const METADATA_LOW: u64 = 16 * 1024;

/// A pass could not be finished; it is tried again.
#[derive(Debug, Error)]
pub enum GroupError {
    /// The API server.
    #[error("the API server did not answer as it should: {0}")]
    Api(#[from] kube::Error),
    /// LVM could not be read.
    #[error("LVM could not be read: {0}")]
    Report(#[from] ReportError),
}

/// How the volume groups stood at the last pass, by name.
#[derive(Default)]
pub struct Groups {
    views: RwLock<BTreeMap<String, Arc<View>>>,
    one: Mutex<()>,
}

/// A volume group as the last pass saw it.
#[derive(Debug, Clone)]
pub struct View {
    /// The plan that was made and carried out.
    pub plan: Plan,
    /// The disks that were looked at.
    pub probed: Vec<Probed>,
    /// Why the plan was not carried out.
    pub failed: Option<String>,
}

impl Groups {
    /// How a group stood at the last pass.
    #[must_use]
    pub fn view(&self, name: &str) -> Option<Arc<View>> {
        self.views
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    fn set(&self, views: BTreeMap<String, Arc<View>>) {
        *self.views.write().unwrap_or_else(std::sync::PoisonError::into_inner) = views;
    }
}

/// Looks at everything on this node once, and brings it in line.
///
/// # Errors
/// Something could not be read or written; the next pass starts anew.
pub async fn pass(context: &Context) -> Result<(), GroupError> {
    let _one = context.groups.one.lock().await;
    node_local_storage::follow_classes(context).await?;
    restore_returned(context).await;
    let state = context.inventory.get();
    let names: BTreeSet<String> = context
        .objects
        .storages
        .state()
        .iter()
        .map(|storage| storage.spec.volume_group.clone())
        .collect();
    let mut listings = Vec::new();
    for storage in by_age(context, &names) {
        listings.extend(storage.spec.disks.iter().map(|disk| Listing {
            path: disk.path.clone(),
            volume_group: storage.spec.volume_group.clone(),
            allow_unstable_names: storage.spec.allow_unstable_names,
        }));
    }
    let mut seen = BTreeSet::new();
    listings.retain(|listing| seen.insert((listing.path.clone(), listing.volume_group.clone())));
    let probed = context.disks.probe(listings.clone(), state.clone()).await;
    let mut views = BTreeMap::new();
    for name in &names {
        let of_group = |(listing, probed): (&Listing, &Probed)| (listing.volume_group == *name).then(|| probed.clone());
        let mut probed: Vec<Probed> = listings.iter().zip(&probed).filter_map(of_group).collect();
        let made = plan(situation(
            context,
            name,
            &state,
            probed.iter().map(|p| p.disk.clone()).collect(),
        ));
        let failed = carry_out(context, name, &made.action).await;
        let after = context.inventory.get();
        for one in &mut probed {
            settle(one, &made, name, &after);
        }
        views.insert(
            name.clone(),
            Arc::new(View {
                plan: settled(made, &probed),
                probed,
                failed,
            }),
        );
    }
    context.groups.set(views);
    for name in &names {
        publish(context, name).await?;
    }
    take_down_unused(context, &names).await;
    Ok(())
}

fn by_age(context: &Context, names: &BTreeSet<String>) -> Vec<Arc<NodeLocalStorage>> {
    names
        .iter()
        .flat_map(|name| context.objects.storages_of(name))
        .collect()
}

/// Disks that were missing while their group was changed and are back: LVM goes on taking them for missing until told.
async fn restore_returned(context: &Context) {
    for group in context
        .inventory
        .get()
        .groups
        .iter()
        .filter(|group| tags::is_ours(&group.tags))
    {
        for pv in group
            .physical_volumes
            .iter()
            .filter(|pv| pv.missing && pv.device.is_some())
        {
            tracing::info!(volume_group = group.name, physical_volume = pv.uuid, "a disk is back");
            match context
                .lvm
                .restore_physical_volume(group.reference(), pv.uuid.clone())
                .await
            {
                Ok(done) => context.inventory.set(done.state),
                Err(error) => tracing::warn!(volume_group = group.name, %error, "it was not taken up again"),
            }
        }
    }
}

/// What is known about a group.
fn situation<'a>(context: &Context, name: &'a str, state: &'a State, disks: Vec<ListedDisk>) -> Situation<'a> {
    let statuses: Vec<_> = context
        .objects
        .storages_of(name)
        .into_iter()
        .filter_map(|s| s.status.clone())
        .collect();
    let recorded = statuses
        .iter()
        .find_map(|status| status.volume_group.as_ref().map(|group| group.uuid.clone()));
    let recorded_disks: Vec<DiskStatus> = statuses.into_iter().flat_map(|status| status.disks).collect();
    Situation {
        name,
        recorded,
        recorded_disks,
        found: found(state, name),
        incomplete: state.incomplete.as_deref(),
        disks,
    }
}

fn found(state: &State, name: &str) -> Found {
    let mut named = state.groups_named(name);
    match (named.next(), named.count()) {
        (None, _) => Found::None,
        (Some(_), others @ 1..) => Found::Several(others + 1),
        (Some(group), 0) => Found::One {
            uuid: group.uuid.clone(),
            ours: tags::is_ours(&group.tags),
            missing: group
                .physical_volumes
                .iter()
                .filter(|pv| pv.missing)
                .map(|pv| pv.uuid.clone())
                .collect(),
            problem: state.problem_of(group).map(|problem| problem.to_string()),
        },
    }
}

/// Carries out a plan; why it could not, for people.
async fn carry_out(context: &Context, name: &str, action: &Action) -> Option<String> {
    let result = match action {
        Action::None => return None,
        Action::Create(devices) => {
            tracing::info!(volume_group = name, ?devices, "making the volume group");
            let mut tags = vec![VERSION_TAG.to_owned()];
            tags.extend(policy(context, name).then(|| DELETE_TAG.to_owned()));
            let request = CreateGroup {
                name: name.to_owned(),
                devices: devices.clone(),
                tags,
            };
            context
                .lvm
                .create_group(request)
                .await
                .map_err(|error| error.to_string())
        }
        Action::Extend(devices) => {
            tracing::info!(volume_group = name, ?devices, "extending the volume group");
            let state = context.inventory.get();
            let group = state.groups_named(name).next()?.reference();
            context
                .lvm
                .extend_group(group, devices.clone())
                .await
                .map_err(|error| error.to_string())
        }
    };
    match result {
        Ok(done) => {
            let note = format!(
                "node {}: volume group {name} has {} disk(s) now",
                context.node,
                done.value.physical_volumes.len()
            );
            context.inventory.set(done.state);
            for storage in context.objects.storages_of(name) {
                context
                    .events
                    .say(&*storage, Saying::normal("VolumeGroupChanged", note.clone()))
                    .await;
            }
            None
        }
        Err(error) => {
            tracing::warn!(volume_group = name, error, "LVM did not do it");
            let _ = context.inventory.refresh().await;
            Some(format!("volume group {name}: {error}"))
        }
    }
}

/// Whether a class wants the group to be taken down with it.
fn policy(context: &Context, name: &str) -> bool {
    context.objects.storages_of(name).iter().any(|storage| {
        let class = context.objects.class(&storage.spec.storage_class_name);
        let parameters = class.and_then(|class| ClassParameters::of(&class).ok());
        parameters.is_some_and(|parameters| parameters.volume_group_policy == VolumeGroupPolicy::Delete)
    })
}

/// After an action, a device that was blank and is now in the group is a member of it.
fn settle(probed: &mut Probed, plan: &Plan, name: &str, state: &State) {
    let planned = plan.disks.iter().find(|disk| disk.path == probed.disk.path);
    if let Some(planned) = planned {
        probed.disk.standing = planned.standing.clone();
    }
    if probed.disk.standing == quarry_crds::volume_group::DiskStanding::Blank
        && let Some(pv) = state
            .groups_named(name)
            .flat_map(|group| &group.physical_volumes)
            .find(|pv| pv.device.is_some() && pv.device == probed.disk.device)
    {
        probed.disk.standing = quarry_crds::volume_group::DiskStanding::Member {
            physical_volume: pv.uuid.clone(),
        };
    }
}

fn settled(plan: Plan, probed: &[Probed]) -> Plan {
    Plan {
        disks: probed.iter().map(|probed| probed.disk.clone()).collect(),
        ..plan
    }
}

/// Publishes the true figures of a volume group in every NodeLocalStorage that names it.
///
/// # Errors
/// The API server did not take a status.
pub async fn publish(context: &Context, name: &str) -> Result<(), GroupError> {
    for storage in context.objects.storages_of(name) {
        capacity::publish(context, &storage).await?;
    }
    Ok(())
}

/// The volume group of that name, where volumes can be made in it; else why not.
///
/// # Errors
/// What stands in the way, for people.
pub fn usable(context: &Context, name: &str) -> Result<VolumeGroup, String> {
    let view = context
        .groups
        .view(name)
        .ok_or_else(|| format!("volume group {name} is not known on this node"))?;
    if let Some((_, message)) = &view.plan.blocked {
        return Err(message.clone());
    }
    let state = context.inventory.get();
    let group = state
        .groups_named(name)
        .next()
        .ok_or_else(|| format!("volume group {name} is missing"))?;
    if !tags::is_ours(&group.tags) {
        return Err(format!("volume group {name} was not made by Quarry"));
    }
    match state.problem_of(group) {
        Some(problem) => Err(format!("volume group {name}: {problem}")),
        None if is_metadata_low(group) => Err(format!("the metadata area of volume group {name} is nearly full")),
        None => Ok(group.clone()),
    }
}

/// Whether the metadata area of a group may not hold another volume.
#[must_use]
pub fn is_metadata_low(group: &VolumeGroup) -> bool {
    group.metadata_free.0 < METADATA_LOW
}

/// The one disk on which a volume fits best, so that it depends on as few disks as possible; none (any) where it fits on
/// no single one.
#[must_use]
pub fn best_devices(group: &VolumeGroup, extents: Extents) -> Vec<String> {
    group
        .physical_volumes
        .iter()
        .filter(|pv| pv.is_usable(&[]) && pv.free >= extents)
        .min_by_key(|pv| pv.free)
        .and_then(|pv| pv.device.clone())
        .into_iter()
        .collect()
}

/// Takes down groups that Quarry made, whose class asked for it, that no class names and in which nothing is left.
async fn take_down_unused(context: &Context, named: &BTreeSet<String>) {
    let state = context.inventory.get();
    if state.incomplete.is_some() {
        return;
    }
    for group in &state.groups {
        let wanted = named.contains(&group.name) || is_named_by_a_class(context, &group.name);
        let asked = tags::is_ours(&group.tags) && group.tags.iter().any(|tag| tag == DELETE_TAG);
        let healthy = !matches!(
            state.problem_of(group),
            Some(GroupProblem::DuplicateName | GroupProblem::Partial)
        );
        if wanted || !asked || !healthy || !group.logical_volumes.is_empty() {
            continue;
        }
        tracing::info!(
            volume_group = group.name,
            "no class names it and it is empty: taking it down"
        );
        match context.lvm.remove_group(group.reference()).await {
            Ok(done) => context.inventory.set(done.state),
            Err(error) => tracing::warn!(volume_group = group.name, %error, "it could not be taken down"),
        }
    }
}

fn is_named_by_a_class(context: &Context, name: &str) -> bool {
    context.objects.classes.state().iter().any(|class| {
        quarry_crds::storage_class::is_ours(class)
            && ClassParameters::of(class).map_or(true, |parameters| parameters.volume_group == name)
    })
}
