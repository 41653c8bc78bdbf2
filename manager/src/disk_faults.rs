//! Disks of volume groups that are missing or answer with errors: which volumes they hit, said of these volumes and their
//! claims; and what is left to do once such a disk is back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use kube::ResourceExt as _;
use quarry_crds::disk_faults::{DiskFault, FaultKind, Hit, VolumeOn, hits};
use quarry_crds::for_owners::shortened;
use quarry_crds::node_local_storage::DiskStatus;
use quarry_crds::tags::VolumeTags;
use quarry_process::events::Saying;

use crate::context::Context;
use crate::lvm::{LogicalVolume, State, VolumeGroup};

/// Which volumes were hit at the last pass, by volume group.
#[derive(Debug, Default)]
pub struct Told(Mutex<BTreeMap<String, BTreeSet<Hit>>>);

impl Told {
    /// What is new and what is over since this was last called for a group.
    fn change(&self, group: &str, now: BTreeSet<Hit>) -> (Vec<Hit>, Vec<Hit>) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = told.insert(group.to_owned(), now.clone()).unwrap_or_default();
        let new = now.difference(&before).cloned().collect();
        let over = before.difference(&now).cloned().collect();
        (new, over)
    }
}

/// What reading the disks of our groups gave: what is wrong, by LVM's UUID of the physical volume. Disks that LVM misses
/// are not read.
pub async fn failing(context: &Context, state: &State) -> BTreeMap<String, String> {
    let ours = state.groups.iter().filter(|group| context.owner.acts_on(&group.tags));
    let disks = ours.flat_map(|group| &group.physical_volumes).filter(|pv| !pv.missing);
    let asked = disks.filter_map(|pv| {
        let device = pv.device.clone()?;
        Some(async move { Some((pv.uuid.clone(), context.disks.fault(device).await?)) })
    });
    futures::future::join_all(asked).await.into_iter().flatten().collect()
}

/// The disks of a volume group that are at fault. How they were listed is what the status remembers.
#[must_use]
pub fn of_group(group: &VolumeGroup, failing: &BTreeMap<String, String>, recorded: &[DiskStatus]) -> Vec<DiskFault> {
    let mut faults: Vec<DiskFault> = group
        .physical_volumes
        .iter()
        .filter_map(|pv| {
            let kind = if pv.missing {
                FaultKind::Missing
            } else {
                FaultKind::Failing(failing.get(&pv.uuid)?.clone())
            };
            let before = recorded.iter().find(|disk| disk.id.as_deref() == Some(&pv.uuid));
            Some(DiskFault {
                physical_volume: pv.uuid.clone(),
                path: before.map(|disk| disk.path.clone()).or_else(|| pv.device.clone()),
                serial: before.and_then(|disk| disk.serial.clone()),
                kind,
            })
        })
        .collect();
    faults.sort();
    faults
}

/// Our volumes in a group, and where they lie.
#[must_use]
pub fn volumes_on(group: &VolumeGroup) -> Vec<VolumeOn> {
    let ours = group.logical_volumes.iter().filter(|volume| is_ours(volume));
    ours.map(|volume| VolumeOn {
        name: volume.name.clone(),
        physical_volumes: volume.parts.iter().map(|part| part.physical_volume.clone()).collect(),
    })
    .collect()
}

fn is_ours(volume: &LogicalVolume) -> bool {
    VolumeTags::parse(&volume.tags).is_some()
}

/// The group as new volumes may use it: no room on disks that answer with errors.
#[must_use]
pub fn without_failing(mut group: VolumeGroup, faults: &[DiskFault]) -> VolumeGroup {
    for pv in &mut group.physical_volumes {
        pv.allocatable &= !faults.iter().any(|fault| fault.physical_volume == pv.uuid);
    }
    group
}

/// Why no volume can be made, where that is because every disk of the group is at fault; for people.
#[must_use]
pub fn all_failing(group: &VolumeGroup, faults: &[DiskFault]) -> Option<String> {
    let usable = |group: &VolumeGroup| group.physical_volumes.iter().any(|pv| pv.is_usable(&[]));
    let failing = usable(group) && !usable(&without_failing(group.clone(), faults));
    failing.then(|| {
        format!(
            "every disk of volume group {} on which volumes may be made answers with errors; see status.disks",
            group.name
        )
    })
}

/// Says of each volume that is newly hit, and of its claim, that it is, and of those that no longer are, what to do. How many are
/// hit.
pub async fn tell(context: &Context, name: &str, group: Option<&VolumeGroup>, faults: &[DiskFault]) -> usize {
    let volumes = group.map(volumes_on).unwrap_or_default();
    let now: BTreeSet<Hit> = hits(faults, &volumes).into_iter().collect();
    let hit: BTreeSet<&str> = now.iter().map(|hit| hit.volume.as_str()).collect();
    let (new, over) = context.groups.told.change(name, now.clone());
    for Hit { volume, fault } in new {
        let note = format!(
            "node {}: {}; the logical volume {name}/{volume} lies on it, wholly or in part, and cannot be relied on. {}",
            context.node,
            fault.told(),
            fault.remedy()
        );
        say(context, &volume, Saying::warning(fault.kind.reason(), note)).await;
    }
    for Hit { volume, fault } in over {
        // Deleted meanwhile, or still hit by another disk.
        if hit.contains(volume.as_str()) || !volumes.iter().any(|known| known.name == volume) {
            continue;
        }
        let note = format!(
            "node {}: disk {} answers again; the logical volume {name}/{volume} is whole. If its pod ran meanwhile, \
             delete the pod, so that the volume is mounted anew",
            context.node,
            fault.disk()
        );
        say(context, &volume, Saying::normal("DiskBack", note)).await;
    }
    hit.len()
}

/// Of the PersistentVolume of that name, and of its claim.
pub(crate) async fn say(context: &Context, volume: &str, saying: Saying) {
    let Some(volume) = context.objects.volume(volume) else {
        return;
    };
    let our = quarry_crds::persistent_volume::ours(&volume);
    tracing::warn!(volume = volume.name_any(), "{}", saying.reason);
    if let Some(claim) = our.and_then(|our| context.objects.claim_with_uid(&our.claim_uid)) {
        let mut of_claim = saying.clone();
        of_claim.note = shortened(&of_claim.note);
        context.events.say(&*claim, of_claim).await;
    }
    context.events.say(&*volume, saying).await;
}

/// Major and minor numbers.
type Numbers = Vec<(u32, u32)>;

/// Devices of volumes that were made anew: each once for the disks on which it lies, so that a device that looks stale for
/// another reason is not made anew for ever.
#[derive(Debug, Default)]
pub struct Renewed {
    volumes: Mutex<BTreeMap<String, (Numbers, Stage)>>,
    /// Whether one is due that somebody has open: nothing tells when it is closed.
    waiting: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It may be inactive, and is to be active.
    Begun,
    Done,
}

impl Renewed {
    /// Whether a volume is to be looked at again soon.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    fn stage(&self, volume: &str, disks: &Numbers) -> Option<Stage> {
        let renewed = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, stage) = renewed.get(volume)?;
        (of == disks || *stage == Stage::Begun).then_some(*stage)
    }

    fn forget(&self, volume: &str) {
        let mut renewed = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        renewed.remove(volume);
    }

    fn set(&self, volume: &str, disks: &Numbers, stage: Stage) {
        let mut renewed = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        renewed.insert(volume.to_owned(), (disks.clone(), stage));
    }
}

/// Volumes whose device still leads to a disk as it was before it went away: the kernel goes on giving errors for them,
/// though the disk is back. Those that nobody has open are made anew; the others when their pod is gone.
/// Whether all that was due was done.
pub async fn renew_stale(context: &Context) -> bool {
    let mut complete = true;
    let renewed = &context.groups.renewed;
    if renewed.waiting.swap(false, Ordering::Relaxed)
        && let Err(error) = context.inventory.refresh().await
    {
        tracing::warn!(%error, "LVM could not be read");
    }
    let state = context.inventory.get();
    for group in state.groups.iter().filter(|group| context.owner.acts_on(&group.tags)) {
        if state.problem_of(group).is_some() {
            continue;
        }
        for volume in group.logical_volumes.iter().filter(|volume| is_ours(volume)) {
            // device-mapper has devices of LVM's own between such a volume and its disks: nothing tells whether it is stale, and
            // it is not to be deactivated either.
            if !group.stacked_on(volume).is_empty() || volume.layout != "linear" {
                continue;
            }
            let Some(disks) = disks_of(group, volume) else { continue };
            let stale = stands_elsewhere(context, volume, &disks);
            let due = match renewed.stage(&volume.uuid, &disks) {
                None => stale,
                Some(Stage::Begun) => true,
                Some(Stage::Done) => {
                    // The disk may go away once more.
                    if !stale {
                        renewed.forget(&volume.uuid);
                    }
                    false
                }
            };
            match (due, volume.open) {
                (true, Some(false)) => complete &= renew(context, group, volume, &disks).await,
                (true, _) => renewed.waiting.store(true, Ordering::Relaxed),
                (false, _) => {}
            }
        }
    }
    complete
}

async fn renew(context: &Context, group: &VolumeGroup, volume: &LogicalVolume, disks: &Numbers) -> bool {
    tracing::info!(volume = volume.name, "its disk is back; its device is made anew");
    let reference = group.reference_to(volume);
    context.groups.renewed.set(&volume.uuid, disks, Stage::Begun);
    for active in [false, true] {
        match context.lvm.set_active(reference.clone(), active).await {
            Ok(done) => context.inventory.set(done.state),
            Err(error) => {
                tracing::warn!(volume = volume.name, %error, "its device was not made anew; it is tried again");
                return false;
            }
        }
    }
    context.groups.renewed.set(&volume.uuid, disks, Stage::Done);
    true
}

/// The disks on which a volume lies, by LVM's word; `None` where one is not there.
fn disks_of(group: &VolumeGroup, volume: &LogicalVolume) -> Option<Numbers> {
    let parts: BTreeSet<&str> = volume.parts.iter().map(|part| part.physical_volume.as_str()).collect();
    let disks = group
        .physical_volumes
        .iter()
        .filter(|pv| parts.contains(pv.uuid.as_str()));
    disks.map(|pv| pv.number).collect()
}

/// Whether the device of a volume does not stand on those disks.
fn stands_elsewhere(context: &Context, volume: &LogicalVolume, disks: &Numbers) -> bool {
    let stands = volume.number.and_then(|number| context.disks.stands_on(number, disks));
    stands == Some(false)
}
