//! NodeLocalStorage → volume group: disks are looked at, the group is made or extended, and the status tells the truth.
//!
//! One pass looks at everything on the node: classes, disks, LVM. It runs when any of them changed, one at a time, and
//! decides with [`quarry_crds::volume_group::plan`]; between passes nothing is polled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use kube::ResourceExt;
use quarry_crds::disk_faults::DiskFault;
use quarry_crds::node_local_storage::DiskStatus;
use quarry_crds::storage_class::{ClassParameters, VolumeGroupPolicy};
use quarry_crds::tags::{self, Owner, Ownership, VERSION_TAG};
use quarry_crds::volume_group::{Action, DiskStanding, Found, Known, ListedDisk, Plan, Situation, plan};
use quarry_crds::{Extents, NodeLocalStorage};
use quarry_process::events::Saying;
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::attempts::Attempts;
use crate::context::{Context, Listing, Probed};
use crate::lvm::{CreateGroup, LogicalVolume, PhysicalVolume, ReportError, State, VolumeGroup};
use crate::lvm_refusals::RefusedHere;
use crate::refusals::is_answer;
use crate::{capacity, disk_faults, lost_group, lvm_devices, node_local_storage, returned, selected, take_down};

/// Below this, in bytes, the metadata area may not hold another volume: about 32 volumes' worth.
const METADATA_LOW: u64 = 16 * 1024;

/// For so long what was seen of a disk will do, while LVM is at work.
const LOOKED: Duration = Duration::from_secs(10);

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
    /// None before the first pass.
    views: RwLock<Option<BTreeMap<String, Arc<View>>>>,
    /// UUIDs of the volumes of ours that were active at some pass, or were activated: what a person deactivates later
    /// stays as it is.
    seen: RwLock<BTreeSet<String>>,
    /// Devices of volumes that were made anew, or are about to be.
    pub renewed: disk_faults::Renewed,
    /// Blank disks that a selector has chosen, and that are not taken yet.
    pub settling: selected::Settling,
    /// What LVM refused to make.
    pub refusals: RefusedHere,
    /// Which volumes were said to be hit by a fault of a disk.
    pub told: disk_faults::Told,
    /// Which volumes were said to be lost with their group, and which groups have figures.
    pub lost: lost_group::Told,
    /// What LVM refused to do.
    attempts: Attempts,
    /// The disks as they were looked at last, and when; one pass at a time.
    one: Mutex<Option<Looked>>,
}

/// Disks that were looked at.
struct Looked {
    at: Instant,
    listings: Vec<Listing>,
    probed: Vec<Probed>,
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
    /// The disks of the group that are at fault.
    pub faults: Vec<DiskFault>,
}

impl Groups {
    /// How a group stood at the last pass.
    #[must_use]
    pub fn view(&self, name: &str) -> Option<Arc<View>> {
        self.views
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .as_ref()?
            .get(name)
            .cloned()
    }

    /// Whether a pass has looked at them since the start: before, nothing can be said of any.
    #[must_use]
    pub fn are_known(&self) -> bool {
        self.views
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .is_some()
    }

    /// Whether a volume was not seen yet, and can be activated.
    pub(crate) fn is_new(&self, volume: &LogicalVolume) -> bool {
        let seen = self.seen.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        volume.active == Some(false) && !volume.partial && !seen.contains(&volume.uuid)
    }

    /// Notes what there is now.
    pub(crate) fn saw(&self, state: &State) {
        let mut seen = self.seen.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let volumes = state.groups.iter().flat_map(|group| &group.logical_volumes);
        let known = |volume: &&LogicalVolume| match volume.active {
            // With its disk it comes back as it was, and is to be activated then.
            Some(false) => !volume.partial && seen.contains(&volume.uuid),
            _ => true,
        };
        let now = volumes.filter(known).map(|volume| volume.uuid.clone()).collect();
        *seen = now;
    }

    fn set(&self, views: BTreeMap<String, Arc<View>>) {
        *self.views.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(views);
    }
}

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Everything that was to be done is done.
    Complete,
    /// LVM did not do all of it: another pass is due, though nothing changes.
    Unfinished,
}

/// Looks at everything on this node once, and brings it in line.
///
/// # Errors
/// Something could not be read or written; the next pass starts anew.
pub async fn pass(context: &Context) -> Result<Pass, GroupError> {
    let mut looked = context.groups.one.lock().await;
    let mut complete = node_local_storage::follow_classes(context).await?;
    // What is listed now is what LVM may open in this pass, and what is looked at.
    let names = names_of(context);
    let listings = listings(context, &names);
    lvm_devices::renew(context, listings.iter().map(|listing| listing.path.clone()).collect()).await;
    complete &= take_down::finish(context).await;
    complete &= returned::claim(context, &names).await;
    complete &= returned::restore(context).await;
    complete &= returned::activate(context).await;
    complete &= disk_faults::renew_stale(context).await;
    let state = context.inventory.get();
    let mut probed = look(context, &mut looked, &listings, &state).await;
    selected::hold(context, &mut probed).await;
    // The kernel told of a disk before udev has named it: it is looked for again soon, not at the regular check.
    let is_missing = |one: &Probed| matches!(one.disk.standing, DiskStanding::Missing { .. });
    complete &= !(probed.iter().any(is_missing) && context.disks.names_are_coming().await);
    let failing = disk_faults::failing(context, &state).await;
    let mut views = BTreeMap::new();
    for name in &names {
        let of_group = |(listing, probed): (&Listing, &Probed)| (listing.volume_group == *name).then(|| probed.clone());
        let mut probed: Vec<Probed> = listings.iter().zip(&probed).filter_map(of_group).collect();
        let disks: Vec<ListedDisk> = probed.iter().map(|p| p.disk.clone()).collect();
        let mut made = plan(situation(context, name, &state, disks.clone()));
        if matches!(made.action, Action::Create(_)) && context.disks.has_group(name.clone()).await {
            // On a disk that is not listed, which LVM does not open: two groups of one name would block each other.
            let mut situation = situation(context, name, &state, disks);
            situation.found = Found::elsewhere();
            made = plan(situation);
        }
        let attempts = &context.groups.attempts;
        let failed = match attempts.too_early(name, &made.action) {
            Some(why) => Some(why),
            None => {
                let failed = carry_out(context, name, &made.action).await;
                attempts.note(name, &made.action, failed.as_ref());
                failed
            }
        };
        complete &= failed.is_none();
        let after = context.inventory.get();
        for one in &mut probed {
            settle(one, &made, name, &after);
        }
        let group = own_group(context, name, &after);
        let faults = group.map_or_else(Vec::new, |group| {
            disk_faults::of_group(group, &failing, &recorded_disks(context, name))
        });
        views.insert(
            name.clone(),
            Arc::new(View {
                faults,
                plan: settled(made, &probed),
                probed,
                failed,
            }),
        );
    }
    crash_point!("pass-before-publish");
    context.groups.set(views);
    for name in &names {
        complete &= publish(context, name).await?.is_empty();
    }
    lost_group::tell(context, &names, &failing).await;
    complete &= take_down::unused(context, &names).await;
    lvm_devices::record(context).await;
    if !complete {
        *looked = None;
    }
    Ok(if complete { Pass::Complete } else { Pass::Unfinished })
}

/// Looks at disks. While commands of ours follow one another there is a pass every other second, for the figures: where each disk
/// is in its group, they are as they were a moment ago. A disk that could be taken is always looked at.
async fn look(context: &Context, looked: &mut Option<Looked>, listings: &[Listing], state: &Arc<State>) -> Vec<Probed> {
    if let Some(last) = looked.as_ref()
        && context.lvm.is_busy()
        && last.at.elapsed() < LOOKED
        && last.listings == listings
        && last
            .probed
            .iter()
            .all(|probed| matches!(probed.disk.standing, DiskStanding::Member { .. }))
    {
        return last.probed.clone();
    }
    let probed = context.disks.probe(listings.to_vec(), state.clone()).await;
    *looked = Some(Looked {
        at: Instant::now(),
        listings: listings.to_vec(),
        probed: probed.clone(),
    });
    probed
}

/// The volume groups that NodeLocalStorages of this node name.
fn names_of(context: &Context) -> BTreeSet<String> {
    let storages = context.objects.storages.state();
    storages
        .iter()
        .map(|storage| storage.spec.volume_group.clone())
        .collect()
}

/// The disks that NodeLocalStorages of this node list, those of older ones first, each once for a volume group.
fn listings(context: &Context, names: &BTreeSet<String>) -> Vec<Listing> {
    let mut listings = Vec::new();
    for storage in by_age(context, names) {
        listings.extend(storage.spec.disks.iter().map(|disk| Listing {
            path: disk.path.clone(),
            volume_group: storage.spec.volume_group.clone(),
            allow_unstable_names: storage.spec.allow_unstable_names,
        }));
    }
    let mut seen = BTreeSet::new();
    listings.retain(|listing| seen.insert((listing.path.clone(), listing.volume_group.clone())));
    listings
}

fn by_age(context: &Context, names: &BTreeSet<String>) -> Vec<Arc<NodeLocalStorage>> {
    names
        .iter()
        .flat_map(|name| context.objects.storages_of(name))
        .collect()
}

/// What is known about a group.
fn situation<'a>(context: &'a Context, name: &'a str, state: &'a State, disks: Vec<ListedDisk>) -> Situation<'a> {
    let lost = context.objects.lost_groups(name);
    let statuses: Vec<_> = context
        .objects
        .storages_of(name)
        .into_iter()
        .filter_map(|s| s.status.clone())
        .filter(|status| {
            status
                .volume_group
                .as_ref()
                .is_none_or(|group| !lost.contains(&group.uuid))
        })
        .collect();
    let recorded = statuses.iter().find_map(|status| {
        Some(Known {
            uuid: status.volume_group.as_ref()?.uuid.clone(),
            machine: status.machine_id.clone(),
        })
    });
    let held: BTreeSet<Known> = context
        .objects
        .volumes_of(name)
        .into_iter()
        .filter(|(our, _)| our.node == context.node && !lost.contains(&our.volume_group_uuid))
        .map(|(our, _)| Known {
            uuid: our.volume_group_uuid,
            machine: our.machine,
        })
        .collect();
    let recorded_disks: Vec<DiskStatus> = statuses.into_iter().flat_map(|status| status.disks).collect();
    Situation {
        name,
        recorded,
        held: held.into_iter().collect(),
        machine: context.machine.as_deref(),
        recorded_disks,
        found: found(state, name, &context.owner),
        incomplete: state.incomplete.as_deref(),
        disks,
    }
}

/// The group of that name that Quarry made and recorded: not another one that has the name too.
pub(crate) fn own_group<'a>(context: &Context, name: &'a str, state: &'a State) -> Option<&'a VolumeGroup> {
    let lost = context.objects.lost_groups(name);
    let recorded = |uuid: &String| {
        let storages = context.objects.storages_of(name);
        let known = storages.iter().filter_map(|storage| {
            let uuid = storage.status.as_ref()?.volume_group.as_ref()?.uuid.clone();
            (!lost.contains(&uuid)).then_some(uuid)
        });
        let known: Vec<String> = known.collect();
        known.is_empty() || known.contains(uuid)
    };
    state
        .groups_named(name)
        .find(|group| context.owner.acts_on(&group.tags) && recorded(&group.uuid))
}

fn recorded_disks(context: &Context, name: &str) -> Vec<DiskStatus> {
    let storages = context.objects.storages_of(name);
    let statuses = storages.iter().filter_map(|storage| storage.status.as_ref());
    statuses.flat_map(|status| status.disks.clone()).collect()
}

fn found(state: &State, name: &str, owner: &Owner) -> Found {
    let mut named = state.groups_named(name);
    match (named.next(), named.count()) {
        (None, _) => Found::None,
        (Some(_), others @ 1..) => Found::Several(others + 1),
        (Some(group), 0) => match tags::unknown_version(&group.tags) {
            Some(tag) => Found::OtherVersion(tag.to_owned()),
            None => match owner.ownership(&group.tags) {
                Ownership::Another { tags } if tags::is_ours(&group.tags) => Found::OfAnotherNode {
                    hand_over: owner.hand_over(name, &tags),
                    tags,
                },
                _ => one(state, group),
            },
        },
    }
}

fn one(state: &State, group: &VolumeGroup) -> Found {
    Found::One {
        uuid: group.uuid.clone(),
        ours: tags::is_ours(&group.tags),
        missing: group
            .physical_volumes
            .iter()
            .filter(|pv| pv.missing)
            .map(|pv| pv.uuid.clone())
            .collect(),
        problem: state.problem_of(group).map(|problem| problem.to_string()),
    }
}

/// Carries out a plan; why it could not, for people.
async fn carry_out(context: &Context, name: &str, action: &Action) -> Option<String> {
    let result = match action {
        Action::None => return None,
        Action::Create(devices) => {
            tracing::info!(volume_group = name, ?devices, "making the volume group");
            let mut tags = vec![VERSION_TAG.to_owned()];
            tags.extend(context.owner.tags());
            tags.extend(policy(context, name).then(|| take_down::DELETE_TAG.to_owned()));
            let request = CreateGroup {
                name: name.to_owned(),
                devices: devices.clone(),
                tags,
            };
            crash_point!("group-before-vgcreate");
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
            crash_point!("group-before-vgextend");
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
            crash_point!("group-after-change");
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

/// A NodeLocalStorage of this class was not published: why.
pub type Unpublished = (String, kube::Error);

/// Publishes the true figures of a volume group in every NodeLocalStorage that names it; those of which the API server
/// refused them, which is said on them.
///
/// # Errors
/// The API server did not answer.
pub async fn publish(context: &Context, name: &str) -> Result<Vec<Unpublished>, GroupError> {
    let mut refused = Vec::new();
    for storage in context.objects.storages_of(name) {
        match capacity::publish(context, &storage).await {
            Ok(()) => {}
            Err(error) if is_answer(&error) => {
                tracing::warn!(%error, storage = storage.name_any(), "not published");
                refused.push((storage.spec.storage_class_name.clone(), error));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(refused)
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
    if let Some(unfit) = context.groups.refusals.unfit(name) {
        return Err(unfit);
    }
    let state = context.inventory.get();
    let group = state
        .groups_named(name)
        .next()
        .ok_or_else(|| format!("volume group {name} is missing"))?;
    if !context.owner.acts_on(&group.tags) {
        return Err(format!("volume group {name} was not made by Quarry on this node"));
    }
    match state.problem_of(group) {
        Some(problem) => Err(format!("volume group {name}: {problem}")),
        None if is_metadata_low(group) => Err(format!("the metadata area of volume group {name} is nearly full")),
        None => {
            if let Some(failing) = disk_faults::all_failing(group, &view.faults) {
                return Err(failing);
            }
            Ok(disk_faults::without_failing(group.clone(), &view.faults))
        }
    }
}

/// Whether the metadata area of a group may not hold another volume.
#[must_use]
pub fn is_metadata_low(group: &VolumeGroup) -> bool {
    group.metadata_free.0 < METADATA_LOW
}

/// The one disk on which a volume fits best, so that it depends on as few disks as possible; where it fits on no single one,
/// all on which volumes may be made, or none named (any) where that is every disk.
#[must_use]
pub fn best_devices(group: &VolumeGroup, extents: Extents) -> Vec<String> {
    let usable = || group.physical_volumes.iter().filter(|pv| pv.is_usable(&[]));
    let devices = |pv: &PhysicalVolume| pv.device.clone();
    match usable().filter(|pv| pv.free >= extents).min_by_key(|pv| pv.free) {
        Some(best) => devices(best).into_iter().collect(),
        None if usable().count() < group.physical_volumes.len() => usable().filter_map(devices).collect(),
        None => Vec::new(),
    }
}

/// LVM's UUID of the physical volume that a new volume will lie on, where just that device is named.
#[must_use]
pub fn physical_volume(group: &VolumeGroup, devices: &[String]) -> Option<String> {
    let [device] = devices else { return None };
    let mut all = group.physical_volumes.iter();
    let on = all.find(|pv| pv.device.as_ref() == Some(device))?;
    Some(on.uuid.clone())
}
