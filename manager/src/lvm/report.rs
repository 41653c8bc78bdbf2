//! Reading LVM's JSON report. Numbers and yes/no are texts in it; what is not understood is an error, never a guess.

use std::collections::HashMap;

use quarry_crds::{Bytes, ExtentSize, Extents};
use serde::Deserialize;

use super::{LogicalVolume, Part, PhysicalVolume, ReportError, State, VolumeGroup};

/// The fields asked for, by part of the report. All of a group comes in one object, so that two groups of one name
/// stay apart.
pub(super) const FIELDS: [(&str, &str); 5] = [
    (
        "vg",
        "vg_uuid,vg_name,vg_extent_size,vg_extent_count,vg_free_count,vg_tags,vg_partial,vg_exported,vg_clustered,\
         vg_shared,vg_systemid,vg_mda_size,vg_mda_free",
    ),
    (
        "pv",
        "pv_uuid,pv_name,dev_size,pv_pe_count,pv_pe_alloc_count,pv_missing,pv_allocatable,pv_duplicate,pv_mda_size,\
         pv_major,pv_minor",
    ),
    (
        "lv",
        "lv_uuid,lv_name,lv_size,lv_tags,lv_active,lv_device_open,lv_suspended,lv_path,lv_layout,lv_role,origin,\
         lv_allocation_locked,raid_sync_action,lv_health_status,lv_kernel_major,lv_kernel_minor",
    ),
    ("pvseg", "pv_uuid,lv_uuid,pvseg_start,pvseg_size"),
    ("seg", "lv_uuid"),
];

#[derive(Deserialize)]
struct Document {
    report: Vec<Section>,
}

/// A volume group with its parts; or, without `vg`, physical volumes of no group.
#[derive(Deserialize)]
struct Section {
    #[serde(default)]
    vg: Vec<GroupRow>,
    #[serde(default)]
    pv: Vec<DeviceRow>,
    #[serde(default)]
    lv: Vec<VolumeRow>,
    #[serde(default)]
    pvseg: Vec<AreaRow>,
}

#[derive(Deserialize)]
struct GroupRow {
    vg_uuid: String,
    vg_name: String,
    vg_extent_size: String,
    vg_extent_count: String,
    vg_free_count: String,
    vg_tags: String,
    vg_partial: String,
    vg_exported: String,
    vg_clustered: String,
    vg_shared: String,
    vg_systemid: String,
    vg_mda_size: String,
    vg_mda_free: String,
}

#[derive(Deserialize)]
struct DeviceRow {
    pv_uuid: String,
    pv_name: String,
    dev_size: String,
    pv_pe_count: String,
    pv_pe_alloc_count: String,
    pv_missing: String,
    pv_allocatable: String,
    pv_duplicate: String,
    pv_mda_size: String,
    pv_major: String,
    pv_minor: String,
}

#[derive(Deserialize)]
struct VolumeRow {
    lv_uuid: String,
    lv_name: String,
    lv_size: String,
    lv_tags: String,
    lv_active: String,
    lv_device_open: String,
    lv_suspended: String,
    lv_path: String,
    lv_layout: String,
    lv_role: String,
    origin: String,
    lv_allocation_locked: String,
    raid_sync_action: String,
    lv_health_status: String,
    lv_kernel_major: String,
    lv_kernel_minor: String,
}

#[derive(Deserialize)]
struct AreaRow {
    pv_uuid: String,
    lv_uuid: String,
    pvseg_size: String,
}

/// Reads a whole report.
///
/// # Errors
/// What is not understood.
pub fn parse(stdout: &[u8]) -> Result<State, ReportError> {
    let document: Document =
        serde_json::from_slice(stdout).map_err(|error| ReportError::Output(format!("not its JSON: {error}")))?;
    let mut state = State::default();
    for section in document.report {
        let areas = Areas::of(&section.pvseg)?;
        let physical_volumes = section
            .pv
            .iter()
            .map(|row| row.read(&areas))
            .collect::<Result<Vec<_>, _>>()?;
        match section.vg.as_slice() {
            [] if section.lv.is_empty() => state.orphans.extend(physical_volumes),
            [row] => state.groups.push(row.read(physical_volumes, &section.lv, &areas)?),
            rows => {
                return Err(ReportError::Output(format!(
                    "{} volume groups in one section",
                    rows.len()
                )));
            }
        }
    }
    Ok(state)
}

/// Which extents of which device belong to which volume.
struct Areas {
    /// By physical volume: free areas.
    free: HashMap<String, Vec<Extents>>,
    /// By logical volume: parts, in the order of the devices.
    used: HashMap<String, Vec<Part>>,
}

impl Areas {
    fn of(rows: &[AreaRow]) -> Result<Self, ReportError> {
        let mut areas = Self {
            free: HashMap::new(),
            used: HashMap::new(),
        };
        for row in rows {
            let extents = Extents(number("pvseg_size", &row.pvseg_size)?);
            if extents == Extents::ZERO {
                continue;
            }
            if row.lv_uuid.is_empty() {
                areas.free.entry(row.pv_uuid.clone()).or_default().push(extents);
                continue;
            }
            let parts = areas.used.entry(row.lv_uuid.clone()).or_default();
            match parts.iter_mut().find(|part| part.physical_volume == row.pv_uuid) {
                Some(part) => part.extents = part.extents.plus(extents),
                None => parts.push(Part {
                    physical_volume: row.pv_uuid.clone(),
                    extents,
                }),
            }
        }
        Ok(areas)
    }
}

impl GroupRow {
    fn read(
        &self,
        physical_volumes: Vec<PhysicalVolume>,
        volumes: &[VolumeRow],
        areas: &Areas,
    ) -> Result<VolumeGroup, ReportError> {
        let extent_size = ExtentSize::new(Bytes(number("vg_extent_size", &self.vg_extent_size)?))
            .ok_or_else(|| ReportError::Output(format!("volume group {} has extents of 0 bytes", self.vg_name)))?;
        Ok(VolumeGroup {
            name: self.vg_name.clone(),
            uuid: uuid("vg_uuid", &self.vg_uuid)?,
            extent_size,
            size: Extents(number("vg_extent_count", &self.vg_extent_count)?),
            free: Extents(number("vg_free_count", &self.vg_free_count)?),
            tags: words(&self.vg_tags),
            partial: flag("vg_partial", &self.vg_partial, "partial")?,
            exported: flag("vg_exported", &self.vg_exported, "exported")?,
            shared: flag("vg_shared", &self.vg_shared, "shared")?
                || flag("vg_clustered", &self.vg_clustered, "clustered")?,
            system_id: (!self.vg_systemid.is_empty()).then(|| self.vg_systemid.clone()),
            metadata_size: Bytes(number("vg_mda_size", &self.vg_mda_size)?),
            metadata_free: Bytes(number("vg_mda_free", &self.vg_mda_free)?),
            physical_volumes,
            logical_volumes: volumes
                .iter()
                .map(|row| row.read(extent_size, areas))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl DeviceRow {
    fn read(&self, areas: &Areas) -> Result<PhysicalVolume, ReportError> {
        let size = number("pv_pe_count", &self.pv_pe_count)?;
        let used = number("pv_pe_alloc_count", &self.pv_pe_alloc_count)?;
        let missing = flag("pv_missing", &self.pv_missing, "missing")?;
        let there = self.pv_name.starts_with('/');
        Ok(PhysicalVolume {
            uuid: uuid("pv_uuid", &self.pv_uuid)?,
            device: there.then(|| self.pv_name.clone()),
            number: if there {
                device_number(&self.pv_major, &self.pv_minor)?
            } else {
                None
            },
            device_size: Bytes(number("dev_size", &self.dev_size)?),
            size: Extents(size),
            free: Extents(size.checked_sub(used).ok_or_else(|| {
                ReportError::Output(format!("{} has {used} of {size} extents allocated", self.pv_name))
            })?),
            free_areas: areas.free.get(&self.pv_uuid).cloned().unwrap_or_default(),
            missing: missing || !there,
            allocatable: flag("pv_allocatable", &self.pv_allocatable, "allocatable")?,
            duplicate: flag("pv_duplicate", &self.pv_duplicate, "duplicate")?,
            metadata_size: Bytes(number("pv_mda_size", &self.pv_mda_size)?),
        })
    }
}

impl VolumeRow {
    fn read(&self, extent_size: ExtentSize, areas: &Areas) -> Result<LogicalVolume, ReportError> {
        let size = Bytes(number("lv_size", &self.lv_size)?);
        Ok(LogicalVolume {
            name: self.lv_name.clone(),
            uuid: uuid("lv_uuid", &self.lv_uuid)?,
            size,
            extents: extent_size.holding(size),
            tags: words(&self.lv_tags),
            active: known("lv_active", &self.lv_active)?,
            open: known("lv_device_open", &self.lv_device_open)?,
            suspended: known("lv_suspended", &self.lv_suspended)?,
            path: self.lv_path.clone(),
            number: device_number(&self.lv_kernel_major, &self.lv_kernel_minor)?,
            layout: self.lv_layout.clone(),
            roles: words(&self.lv_role),
            origin: (!self.origin.is_empty()).then(|| shown(&self.origin).to_owned()),
            allocation_locked: known("lv_allocation_locked", &self.lv_allocation_locked)? == Some(true),
            sync_action: self.raid_sync_action.clone(),
            partial: self.lv_health_status.split(',').any(|word| word == "partial"),
            parts: areas.used.get(&self.lv_uuid).cloned().unwrap_or_default(),
        })
    }
}

fn number(field: &str, text: &str) -> Result<u64, ReportError> {
    text.parse()
        .map_err(|_| ReportError::Output(format!("{field} is {text:?}, not a number")))
}

/// `-1` stands for none.
fn device_number(major: &str, minor: &str) -> Result<Option<(u32, u32)>, ReportError> {
    if major.starts_with('-') || minor.starts_with('-') {
        return Ok(None);
    }
    let read = |text: &str| {
        text.parse::<u32>()
            .map_err(|_| ReportError::Output(format!("{text:?} is not the number of a device")))
    };
    Ok(Some((read(major)?, read(minor)?)))
}

fn uuid(field: &str, text: &str) -> Result<String, ReportError> {
    if is_uuid(text) {
        Ok(text.to_owned())
    } else {
        Err(ReportError::Output(format!("{field} is {text:?}, not a UUID")))
    }
}

/// Whether a text has the form of LVM's UUIDs: 32 letters and digits in groups of 6-4-4-4-4-4-6.
pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == 38
        && text.bytes().enumerate().all(|(at, byte)| match at {
            6 | 11 | 16 | 21 | 26 | 31 => byte == b'-',
            _ => byte.is_ascii_alphanumeric(),
        })
}

/// A name without the brackets of what LVM hides.
fn shown(name: &str) -> &str {
    name.trim_start_matches('[').trim_end_matches(']')
}

/// A list of tags, or of words of LVM's.
fn words(text: &str) -> Vec<String> {
    text.split(',')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A yes or no that LVM always knows.
fn flag(field: &str, text: &str, yes: &str) -> Result<bool, ReportError> {
    match text {
        "" => Ok(false),
        text if text == yes => Ok(true),
        _ => Err(ReportError::Output(format!(
            "{field} is {text:?}, not {yes:?} or nothing"
        ))),
    }
}

/// A yes or no that LVM asks the kernel for, and so may not know. Some have several words for yes.
fn known(field: &str, text: &str) -> Result<Option<bool>, ReportError> {
    match text {
        "" => Ok(Some(false)),
        "unknown" => Ok(None),
        text if text.starts_with(|c: char| c.is_ascii_alphabetic()) => Ok(Some(true)),
        _ => Err(ReportError::Output(format!("{field} is {text:?}, not a word"))),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
