//! Where the logical volume of a PersistentVolume is: where its object says, or where a person has put it with LVM's own
//! commands. Only a whole group in which it is not, with nothing of it in any other, proves that it is gone.

use quarry_crds::persistent_volume::OurVolume;
use quarry_crds::tags::{Ownership, VolumeTags};

use crate::context::Context;
use crate::lvm::{LogicalVolume, State, VolumeGroup};

/// Where a logical volume is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Whereabouts<'a> {
    /// Where its object says, under its name.
    Here(&'a VolumeGroup, &'a LogicalVolume),
    /// Under another name, or in another group (vgsplit, vgmerge).
    Elsewhere(&'a VolumeGroup, &'a LogicalVolume),
    /// Nowhere: its group is there and whole, and everything was read.
    Gone,
    /// Nobody can say.
    Unknown,
}

/// Looks for the logical volume of a PersistentVolume of that name.
#[must_use]
pub fn of<'a>(context: &Context, state: &'a State, our: &OurVolume, name: &str) -> Whereabouts<'a> {
    // What another node owns is not ours to judge.
    let another = |group: &VolumeGroup| matches!(context.owner.ownership(&group.tags), Ownership::Another { .. });
    let group = state.group(&our.volume_group_uuid).filter(|group| !another(group));
    if let Some(group) = group
        && let Some(volume) = group.volume_named(name)
    {
        return Whereabouts::Here(group, volume);
    }
    let of_claim =
        |volume: &&LogicalVolume| VolumeTags::parse(&volume.tags).is_some_and(|tags| tags.claim_uid == our.claim_uid);
    // Two groups of one name are another matter: one of them may be a copy. A group that vgsplit has made has no tags.
    let candidate = |group: &&VolumeGroup| {
        !another(group) && (group.uuid == our.volume_group_uuid || group.name != our.volume_group)
    };
    let elsewhere = state
        .groups
        .iter()
        .filter(candidate)
        .find_map(|group| Some((group, group.logical_volumes.iter().find(of_claim)?)));
    match (elsewhere, group) {
        (Some((group, volume)), _) => Whereabouts::Elsewhere(group, volume),
        (None, Some(group)) if state.incomplete.is_none() && is_whole(context, group) => Whereabouts::Gone,
        (None, _) => Whereabouts::Unknown,
    }
}

/// Whether a group is all that it was: no disk of it is missing by its own metadata, nor by what was recorded of it, in case
/// something else has its UUID.
fn is_whole(context: &Context, group: &VolumeGroup) -> bool {
    let recorded = context.disk_records.physical_volumes(&group.uuid);
    let there = |uuid: &String| group.physical_volumes.iter().any(|pv| pv.uuid == *uuid && !pv.missing);
    !group.partial && context.owner.acts_on(&group.tags) && recorded.iter().all(there)
}

/// What to do about a volume that is elsewhere, for people.
#[must_use]
pub fn told(our: &OurVolume, name: &str, group: &VolumeGroup, volume: &LogicalVolume) -> String {
    if group.uuid == our.volume_group_uuid {
        return format!(
            "{}/{name} was renamed to {}, and is left alone; rename it back with \"lvrename {} {} {name}\"",
            group.name, volume.name, group.name, volume.name
        );
    }
    format!(
        "{}/{name} is in volume group {} (UUID {}) now, as {}/{}, where vgsplit or vgmerge has put it, and is left alone; bring \
         its disks back into {} (UUID {}) with \"vgmerge {} {}\", or remove it with \"lvremove {}/{}\" on the node if its data \
         is not needed",
        our.volume_group,
        group.name,
        group.uuid,
        group.name,
        volume.name,
        our.volume_group,
        our.volume_group_uuid,
        our.volume_group,
        group.name,
        group.name,
        volume.name
    )
}
