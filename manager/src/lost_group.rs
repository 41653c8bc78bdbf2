//! What is said and counted of the volume groups of this node: also of those that are not there any more, of which LVM says
//! nothing, and of those that no NodeLocalStorage names any more, whose volumes are in use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use kube::ResourceExt as _;
use quarry_crds::disk_faults::DiskFault;
use quarry_crds::lost_group::{LostGroup, Remembered, lost_group};
use quarry_crds::persistent_volume::ours;
use quarry_crds::storage_class::ClassParameters;
use quarry_process::events::Saying;

use crate::context::Context;
use crate::disk_faults;
use crate::lvm::State;
use crate::volume_group::own_group;

/// What was said and counted at the last pass.
#[derive(Debug, Default)]
pub struct Told {
    /// The volumes that were said to be lost with their group, by its name.
    lost: Mutex<BTreeMap<String, BTreeSet<String>>>,
    /// The groups that have figures.
    counted: Mutex<BTreeSet<String>>,
}

impl Told {
    /// Which volumes are newly lost and which are no more, since this was last called for a group.
    fn change(&self, group: &str, now: &BTreeSet<String>) -> (Vec<String>, Vec<String>) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let before = lost.insert(group.to_owned(), now.clone()).unwrap_or_default();
        let new = now.difference(&before).cloned().collect();
        (new, before.difference(now).cloned().collect())
    }

    /// The groups that have figures and are none of these; they are forgotten.
    fn retain(&self, names: &BTreeSet<String>) -> Vec<String> {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *counted, names.clone());
        before.difference(names).cloned().collect()
    }
}

/// What is lost with the volume groups of a name; nothing where all that is remembered of it is here.
#[must_use]
pub fn find(context: &Context, name: &str, state: &State) -> Option<LostGroup> {
    let storages = context.objects.storages_of(name);
    let volumes = context.objects.volumes_of(name);
    let here = volumes.iter().filter(|(our, _)| our.node == context.node);
    let names: Vec<(String, &str)> = here
        .map(|(our, volume)| (volume.name_any(), our.volume_group_uuid.as_str()))
        .collect();
    let remembered = Remembered {
        statuses: storages.iter().filter_map(|storage| storage.status.as_ref()).collect(),
        volumes: names.iter().map(|(name, uuid)| (name.as_str(), *uuid)).collect(),
        given_up: context.objects.lost_groups(name),
    };
    let groups = state.groups.iter().map(|group| group.uuid.as_str()).collect();
    let in_groups = state.groups.iter().flat_map(|group| &group.physical_volumes);
    let found = in_groups.chain(&state.orphans).filter(|pv| !pv.missing);
    let disks = found.map(|pv| pv.uuid.as_str()).collect();
    lost_group(&remembered, &groups, &disks)
}

/// The figures of a volume group, for Prometheus. One that is gone is as large as it was, and nothing in it is free: figures
/// that vanish would look as if all were well. `ready` is whether volumes can be made in it, where anybody wants to.
pub fn measure(context: &Context, name: &str, state: &State, ready: Option<bool>) {
    let metrics = &context.metrics;
    let mut named = state
        .groups_named(name)
        .filter(|group| context.owner.acts_on(&group.tags));
    match named.next() {
        Some(group) => {
            let bytes = |extents| group.extent_size.size_of(extents).unwrap_or_default();
            metrics.group(
                name,
                bytes(group.size),
                bytes(group.allocatable(&[])),
                group.metadata_free,
            );
        }
        None => match find(context, name, state) {
            Some(lost) => metrics.lost_group(name, lost.size),
            None => metrics.no_group(name),
        },
    }
    if let Some(ready) = ready {
        metrics.ready(name, ready);
    }
}

/// Says and counts what is wrong with the volume groups of these names, and of those that volumes of this node are in; takes the
/// figures of the others away.
pub async fn tell(context: &Context, named: &BTreeSet<String>, failing: &BTreeMap<String, String>) {
    let state = context.inventory.get();
    let volumes = context.objects.volumes.state();
    let here = volumes.iter().filter_map(|volume| ours(volume));
    let used: BTreeSet<String> = here
        .filter(|our| our.node == context.node)
        .map(|our| our.volume_group)
        .collect();
    for name in used.difference(named) {
        measure(context, name, &state, None);
    }
    let all: BTreeSet<String> = named.union(&used).cloned().collect();
    for name in &all {
        let group = own_group(context, name, &state);
        let faults: Vec<DiskFault> = match context.groups.view(name).filter(|_| named.contains(name)) {
            Some(view) => view.faults.clone(),
            None => group.map_or_else(Vec::new, |group| disk_faults::of_group(group, failing, &[])),
        };
        let lost = find(context, name, &state);
        let hit = disk_faults::tell(context, name, group, &faults).await;
        let (disks, volumes) = lost.as_ref().map_or((0, 0), |lost| (lost.disks, lost.volumes.len()));
        context.metrics.volumes_hit(name, hit + volumes);
        context.metrics.disks_at_fault(name, &faults, disks);
        // Where a NodeLocalStorage names it, or is about to, that is told with its conditions.
        let unnamed = !named.contains(name) && !has_class(context, name);
        tell_lost(context, name, &state, lost.as_ref(), unnamed).await;
    }
    for name in context.groups.lost.retain(&all) {
        context.metrics.forget(&name);
    }
}

/// Whether a class names a volume group, so that there is a NodeLocalStorage soon, if it is not there yet.
fn has_class(context: &Context, group: &str) -> bool {
    let classes = context.objects.classes.state();
    let mut parameters = classes.iter().filter_map(|class| ClassParameters::of(class).ok());
    parameters.any(|parameters| parameters.volume_group == group)
}

/// Says of each volume that is newly lost with its group, and of its claim, that it is, where nobody else does; and of those that are
/// here again, what to do.
async fn tell_lost(context: &Context, name: &str, state: &State, lost: Option<&LostGroup>, unnamed: bool) {
    let now = lost.map(|lost| lost.volumes.clone()).unwrap_or_default();
    let (new, over) = context.groups.lost.change(name, &now);
    if let Some(lost) = lost.filter(|_| unnamed) {
        for volume in new {
            let note = lost.told(&context.node, name, &volume);
            disk_faults::say(context, &volume, Saying::warning("VolumeLost", note)).await;
        }
    }
    for volume in over {
        // Deleted meanwhile, or given up.
        if !state
            .groups_named(name)
            .any(|group| group.volume_named(&volume).is_some())
        {
            continue;
        }
        let note = format!(
            "node {}: volume group {name} is there again, and the logical volume {name}/{volume} with it. If its pod ran \
             meanwhile, delete the pod, so that the volume is mounted anew",
            context.node
        );
        disk_faults::say(context, &volume, Saying::normal("VolumeGroupBack", note)).await;
    }
}
