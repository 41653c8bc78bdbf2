//! The rules of LVM, as far as Quarry depends on them: each mutation does its work or says why not.

use quarry_crds::tags::is_ours;
use quarry_crds::{Bytes, ExtentSize, Extents};

use super::super::operations::Mutation;
use super::super::volumes::metadata_needed;
use super::super::{LogicalVolume, Part, PhysicalVolume, State, VolumeGroup};
use super::Inner;

/// What LVM takes for itself at the beginning of a disk of ours, in bytes.
const METADATA_AREA: u64 = 17 << 20;
/// What one copy of the metadata can hold, in bytes: a little less than half of the area.
const METADATA_SIZE: u64 = 8_910_848;

impl Inner {
    /// Whether LVM may open a device.
    fn may_open(&self, device: &str) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| {
            let target = |path: &String| self.links.get(path).unwrap_or(path) == device;
            allowed.iter().any(target)
        })
    }

    /// What LVM sees with the devices that it may open.
    pub(super) fn visible(&self) -> State {
        let mut state = self.state.clone();
        let hidden = |pv: &PhysicalVolume| pv.device.as_ref().is_some_and(|device| !self.may_open(device));
        state.orphans.retain(|pv| !hidden(pv));
        state.groups.retain(|group| {
            let mut there = group
                .physical_volumes
                .iter()
                .filter(|pv| pv.device.is_some())
                .peekable();
            there.peek().is_none() || !there.all(hidden)
        });
        for group in &mut state.groups {
            let gone: Vec<String> = group
                .physical_volumes
                .iter_mut()
                .filter(|pv| hidden(pv))
                .map(|pv| {
                    (pv.device, pv.number, pv.missing) = (None, None, true);
                    pv.uuid.clone()
                })
                .collect();
            group.partial |= !gone.is_empty();
            for volume in &mut group.logical_volumes {
                volume.partial |= volume.parts.iter().any(|part| gone.contains(&part.physical_volume));
            }
        }
        state
    }

    pub(super) fn apply(&mut self, mutation: Mutation) -> Result<(), String> {
        match mutation {
            Mutation::CreateVolume(request) => {
                let uuid = self.uuid();
                let minor = u32::try_from(self.next).unwrap_or(0);
                let group = self.whole(&request.group.name)?;
                if group.volume_named(&request.name).is_some() {
                    return Err(format!("Logical Volume {:?} already exists", request.name));
                }
                let needed = metadata_needed(&request.tags).0 / 2;
                let metadata_free = group
                    .metadata_free
                    .0
                    .checked_sub(needed)
                    .ok_or("exceeds maximum metadata size")?;
                let parts = allocate(group, request.extents, &request.devices)?;
                group.metadata_free = Bytes(metadata_free);
                group.logical_volumes.push(LogicalVolume {
                    path: format!("/dev/{}/{}", group.name, request.name),
                    name: request.name,
                    uuid,
                    size: group.extent_size.size_of(request.extents).ok_or("too large")?,
                    extents: request.extents,
                    tags: sorted(request.tags),
                    active: Some(true),
                    open: Some(false),
                    suspended: Some(false),
                    number: Some((253, minor)),
                    layout: "linear".to_owned(),
                    roles: vec!["public".to_owned()],
                    origin: None,
                    allocation_locked: false,
                    sync_action: String::new(),
                    partial: false,
                    parts,
                });
                Ok(())
            }
            Mutation::RemoveVolumes { volume, others } => {
                let group = self.writable(&volume.group.name)?;
                if group.uuid != volume.group.uuid {
                    return Ok(());
                }
                let meant = |uuid: &String| *uuid == volume.uuid || others.contains(uuid);
                let selected = |found: &LogicalVolume| {
                    meant(&found.uuid) && is_ours(&found.tags) && !found.partial && found.is_alone()
                };
                let (selected, mut left): (Vec<_>, Vec<_>) = std::mem::take(&mut group.logical_volumes)
                    .into_iter()
                    .partition(selected);
                let (open, closed): (Vec<_>, Vec<_>) =
                    selected.into_iter().partition(|volume| volume.open == Some(true));
                let in_use = !open.is_empty();
                left.extend(open);
                group.logical_volumes = left;
                for removed in closed {
                    group.metadata_free.0 += metadata_needed(&removed.tags).0 / 2;
                    release(group, &removed.parts);
                }
                if in_use { Err("in use".to_owned()) } else { Ok(()) }
            }
            Mutation::ExtendVolume(request) => {
                let group = self.whole(&request.volume.group.name)?;
                let index = position(group, &request.volume.name)?;
                let more = request.extents.minus(group.logical_volumes[index].extents);
                let parts = allocate(group, more, &request.devices)?;
                let size = group.extent_size.size_of(request.extents).ok_or("too large")?;
                let volume = &mut group.logical_volumes[index];
                (volume.extents, volume.size) = (request.extents, size);
                for part in parts {
                    match volume
                        .parts
                        .iter_mut()
                        .find(|old| old.physical_volume == part.physical_volume)
                    {
                        Some(old) => old.extents = old.extents.plus(part.extents),
                        None => volume.parts.push(part),
                    }
                }
                Ok(())
            }
            Mutation::ChangeTags(request) => {
                let group = self.writable(&request.volume.group.name)?;
                let meant = |uuid: &String| *uuid == request.volume.uuid || request.others.contains(uuid);
                let having =
                    |volume: &LogicalVolume| request.having.as_ref().is_none_or(|tag| volume.tags.contains(tag));
                let selected =
                    |volume: &&mut LogicalVolume| meant(&volume.uuid) && is_ours(&volume.tags) && having(volume);
                for volume in group.logical_volumes.iter_mut().filter(selected) {
                    let touched = |tag: &String| request.delete.contains(tag) || request.add.contains(tag);
                    volume.tags.retain(|tag| !touched(tag));
                    volume.tags.extend(request.add.iter().cloned());
                    volume.tags.sort();
                }
                Ok(())
            }
            Mutation::RenameVolume { volume, name } => {
                let group = self.whole(&volume.group.name)?;
                if group.volume_named(&name).is_some() {
                    return Err("already exists".to_owned());
                }
                let index = position(group, &volume.name)?;
                group.logical_volumes[index].path = format!("/dev/{}/{name}", group.name);
                group.logical_volumes[index].name = name;
                Ok(())
            }
            Mutation::SetActive { volume, active } => {
                let group = self.named(&volume.group.name)?;
                let index = position(group, &volume.name)?;
                let volume = &mut group.logical_volumes[index];
                if !active && volume.open == Some(true) {
                    return Err("in use".to_owned());
                }
                volume.active = Some(active);
                Ok(())
            }
            Mutation::ActivateGroup(group) => {
                let group = self.named(&group.name)?;
                group
                    .logical_volumes
                    .iter_mut()
                    .filter(|v| !v.partial)
                    .for_each(|volume| volume.active = Some(true));
                Ok(())
            }
            Mutation::CreateGroup(request) => {
                if self.visible().groups_named(&request.name).next().is_some() {
                    return Err(format!("A volume group called {} already exists.", request.name));
                }
                let physical_volumes = self.label(&request.devices)?;
                let uuid = self.uuid();
                let size = physical_volumes.iter().map(|pv| pv.size).sum();
                self.state.groups.push(VolumeGroup {
                    name: request.name,
                    uuid,
                    extent_size: ExtentSize::DEFAULT,
                    size,
                    free: size,
                    tags: sorted(request.tags),
                    partial: false,
                    exported: false,
                    shared: false,
                    system_id: None,
                    metadata_size: Bytes(METADATA_AREA),
                    metadata_free: Bytes(METADATA_SIZE),
                    physical_volumes,
                    logical_volumes: Vec::new(),
                });
                Ok(())
            }
            Mutation::ExtendGroup { group, devices } => {
                self.writable(&group.name)?;
                let new = self.label(&devices)?;
                let group = self.writable(&group.name)?;
                let more: Extents = new.iter().map(|pv| pv.size).sum();
                (group.size, group.free) = (group.size.plus(more), group.free.plus(more));
                group.physical_volumes.extend(new);
                Ok(())
            }
            Mutation::TagGroup { group, tags } => {
                let group = self.writable(&group.name)?;
                group.tags.retain(|tag| !tags.contains(tag));
                group.tags.extend(tags);
                group.tags.sort();
                Ok(())
            }
            Mutation::RemoveGroup(group) => {
                if !self.writable(&group.name)?.logical_volumes.is_empty() {
                    return Err("contains logical volumes".to_owned());
                }
                let index = self
                    .state
                    .groups
                    .iter()
                    .position(|found| found.uuid == group.uuid)
                    .ok_or("not found")?;
                let removed = self.state.groups.remove(index);
                self.state
                    .orphans
                    .extend(removed.physical_volumes.into_iter().map(|pv| PhysicalVolume {
                        size: Extents::ZERO,
                        free: Extents::ZERO,
                        free_areas: Vec::new(),
                        allocatable: false,
                        ..pv
                    }));
                Ok(())
            }
            Mutation::RemoveLabels { devices } => {
                let named = |pv: &PhysicalVolume| pv.device.as_ref().is_some_and(|device| devices.contains(device));
                self.state.orphans.retain(|pv| !named(pv));
                for device in &devices {
                    self.disks.get_mut(device).ok_or("no such device")?.blank = true;
                }
                Ok(())
            }
            Mutation::RestorePhysicalVolume { group, device } => {
                let group = self.writable(&group.name)?;
                for pv in group
                    .physical_volumes
                    .iter_mut()
                    .filter(|pv| pv.device.as_ref() == Some(&device))
                {
                    pv.missing = false;
                    let back = &pv.uuid;
                    for volume in &mut group.logical_volumes {
                        volume.partial &= !volume.parts.iter().any(|part| part.physical_volume == *back);
                    }
                }
                group.partial = group.physical_volumes.iter().any(|pv| pv.missing);
                Ok(())
            }
            Mutation::ResizePhysicalVolume { device } => {
                let size = self.disks.get(&device).ok_or("no such device")?.size;
                let groups = self.state.groups.iter_mut();
                for group in groups.filter(|g| g.physical_volumes.iter().any(|pv| pv.device.as_ref() == Some(&device)))
                {
                    let total = group.extent_size.within(Bytes(size.0.saturating_sub(METADATA_AREA)));
                    for pv in group
                        .physical_volumes
                        .iter_mut()
                        .filter(|pv| pv.device.as_ref() == Some(&device))
                    {
                        let more = total.minus(pv.size);
                        (pv.size, pv.free, pv.device_size) = (pv.size.plus(more), pv.free.plus(more), size);
                        pv.free_areas = areas(pv.free);
                        (group.size, group.free) = (group.size.plus(more), group.free.plus(more));
                    }
                }
                Ok(())
            }
        }
    }

    pub(super) fn uuid(&mut self) -> String {
        self.next += 1;
        format!("Fake00-0000-0000-0000-0000-0000-{:06}", self.next)
    }

    fn named(&mut self, name: &str) -> Result<&mut VolumeGroup, String> {
        let visible: Vec<String> = self
            .visible()
            .groups_named(name)
            .map(|group| group.uuid.clone())
            .collect();
        let mut found = self
            .state
            .groups
            .iter_mut()
            .filter(|group| visible.contains(&group.uuid));
        match (found.next(), found.next()) {
            (Some(group), None) => Ok(group),
            (Some(_), Some(_)) => Err("Multiple VGs found with the same name: skipping".to_owned()),
            (None, _) => Err(format!("Volume group {name:?} not found")),
        }
    }

    /// A group in which volumes can be made.
    pub(super) fn whole(&mut self, name: &str) -> Result<&mut VolumeGroup, String> {
        let lacks_disks = self.visible().groups_named(name).any(|group| group.partial);
        let group = self.writable(name)?;
        if lacks_disks {
            Err(format!("Cannot change VG {name} while PVs are missing."))
        } else {
            Ok(group)
        }
    }

    /// A group that can be changed in other ways: LVM does so while disks are missing.
    fn writable(&mut self, name: &str) -> Result<&mut VolumeGroup, String> {
        let group = self.named(name)?;
        if group.exported || group.shared || group.system_id.is_some() {
            return Err(format!("Cannot change VG {name}"));
        }
        Ok(group)
    }

    /// Makes physical volumes of disks, all or none.
    fn label(&mut self, devices: &[String]) -> Result<Vec<PhysicalVolume>, String> {
        for device in devices {
            let disk = self
                .disks
                .get(device)
                .filter(|_| self.may_open(device))
                .ok_or_else(|| format!("No device found for {device}."))?;
            if !disk.blank {
                return Err(format!("WARNING: signature detected on {device}. Wipe it? [y/n]: [n]"));
            }
            if disk.size.0 < METADATA_AREA + ExtentSize::DEFAULT.bytes().0 {
                return Err(format!("{device}: Device is too small."));
            }
        }
        let mut made = Vec::new();
        for device in devices {
            let uuid = self.uuid();
            let Some(disk) = self.disks.get_mut(device) else {
                continue;
            };
            disk.blank = false;
            let size = ExtentSize::DEFAULT.within(Bytes(disk.size.0 - METADATA_AREA));
            made.push(PhysicalVolume {
                uuid,
                device: Some(device.clone()),
                number: Some(disk.number),
                device_size: disk.size,
                size,
                free: size,
                free_areas: areas(size),
                missing: false,
                allocatable: true,
                duplicate: false,
                metadata_size: Bytes(METADATA_AREA),
            });
        }
        Ok(made)
    }
}

fn sorted(mut tags: Vec<String>) -> Vec<String> {
    tags.sort();
    tags.dedup();
    tags
}

pub(super) fn position(group: &VolumeGroup, name: &str) -> Result<usize, String> {
    group
        .logical_volumes
        .iter()
        .position(|volume| volume.name == name)
        .ok_or_else(|| format!("no volume {name}"))
}

/// As one area: where extents lie on a device is not modelled.
fn areas(free: Extents) -> Vec<Extents> {
    if free == Extents::ZERO { Vec::new() } else { vec![free] }
}

/// Takes extents, from the first devices that have some.
pub(super) fn allocate(group: &mut VolumeGroup, extents: Extents, devices: &[String]) -> Result<Vec<Part>, String> {
    let free = group.allocatable(devices);
    if free < extents {
        return Err(format!("insufficient free space ({free} extents): {extents} required."));
    }
    let (mut left, mut parts) = (extents, Vec::new());
    for pv in group.physical_volumes.iter_mut().filter(|pv| pv.is_usable(devices)) {
        let taken = Extents(left.0.min(pv.free.0));
        if taken > Extents::ZERO {
            pv.free = pv.free.minus(taken);
            pv.free_areas = areas(pv.free);
            left = left.minus(taken);
            parts.push(Part {
                physical_volume: pv.uuid.clone(),
                extents: taken,
            });
        }
    }
    group.free = group.free.minus(extents);
    Ok(parts)
}

pub(super) fn release(group: &mut VolumeGroup, parts: &[Part]) {
    for part in parts {
        for pv in group
            .physical_volumes
            .iter_mut()
            .filter(|pv| pv.uuid == part.physical_volume)
        {
            pv.free = pv.free.plus(part.extents);
            pv.free_areas = areas(pv.free);
        }
        group.free = group.free.plus(part.extents);
    }
}
