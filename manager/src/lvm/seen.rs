//! A new volume as the kernel shows it: device-mapper names each device after the UUIDs of volume group and volume.
//!
//! Where LVM says that a volume was made and this is its device, nothing needs to be read again: a report takes as long as
//! making the volume did, and longer the more volumes there are.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use quarry_crds::Bytes;

use super::{CreateVolume, LogicalVolume, Part};
use crate::disks::device_number;
use crate::disks::sysfs::{self, read};

/// Bytes of what the kernel counts a device's size in.
const SECTOR: u64 = 512;
/// How LVM writes a UUID: groups of characters, with hyphens between them.
const GROUPS: [usize; 7] = [6, 4, 4, 4, 4, 4, 6];

/// A volume that was just made as asked on one physical volume; `None` where its device is not there, or is something else.
pub(super) fn volume(dev: &Path, sys: &Path, request: &CreateVolume) -> Option<LogicalVolume> {
    let path = dev.join(&request.group.name).join(&request.name);
    let meta = fs::metadata(path).ok()?;
    let number = meta.file_type().is_block_device().then(|| device_number(meta.rdev()))?;
    of_device(&sysfs::directory(sys, number), number, request)
}

/// The same of a device that the kernel describes in that folder.
fn of_device(folder: &Path, number: (u32, u32), request: &CreateVolume) -> Option<LogicalVolume> {
    let physical_volume = request.physical_volume.clone()?;
    let name = read(folder, "dm/uuid")?;
    let uuid = name
        .strip_prefix("LVM-")?
        .strip_prefix(&request.group.uuid.replace('-', ""))?;
    let size = read(folder, "size")?.parse::<u64>().ok()?.checked_mul(SECTOR)?;
    let suspended = read(folder, "dm/suspended")? != "0";
    let whole = size > 0 && size.is_multiple_of(request.extents.0);
    (whole && !suspended).then_some(())?;
    Some(LogicalVolume {
        name: request.name.clone(),
        uuid: with_hyphens(uuid)?,
        size: Bytes(size),
        extents: request.extents,
        tags: request.tags.clone(),
        active: Some(true),
        open: Some(false),
        suspended: Some(false),
        path: format!("/dev/{}/{}", request.group.name, request.name),
        number: Some(number),
        layout: "linear".to_owned(),
        roles: vec!["public".to_owned()],
        origin: None,
        allocation_locked: false,
        sync_action: String::new(),
        partial: false,
        parts: vec![Part {
            physical_volume,
            extents: request.extents,
        }],
    })
}

/// A UUID as LVM's reports have it.
fn with_hyphens(uuid: &str) -> Option<String> {
    let (mut groups, mut rest) = (Vec::new(), uuid);
    for length in GROUPS {
        let (group, after) = rest.split_at_checked(length)?;
        groups.push(group);
        rest = after;
    }
    rest.is_empty().then(|| groups.join("-"))
}

#[cfg(test)]
mod tests {
    use quarry_crds::Extents;

    use super::super::GroupRef;
    use super::*;

    const GROUP: &str = "2dfXLa-kqqA-OXxF-VQUw-p1Tf-mmkn-0ELydP";
    const VOLUME: &str = "CKnRf3-9vVZ-ZCTL-FRsT-iMqc-nF1R-tkBsYw";

    fn request() -> CreateVolume {
        CreateVolume {
            group: GroupRef {
                name: "fast".to_owned(),
                uuid: GROUP.to_owned(),
            },
            name: "pvc-a".to_owned(),
            extents: Extents(3),
            tags: vec!["quarry.dev=v1".to_owned()],
            devices: vec!["/dev/sda".to_owned()],
            physical_volume: Some("pv".to_owned()),
        }
    }

    fn seen(group: &str, sectors: &str, suspended: &str, request: &CreateVolume) -> Option<LogicalVolume> {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("dm")).expect("made");
        let name = format!("LVM-{}{}\n", group.replace('-', ""), VOLUME.replace('-', ""));
        for (file, text) in [
            ("dm/uuid", name.as_str()),
            ("size", sectors),
            ("dm/suspended", suspended),
        ] {
            fs::write(folder.path().join(file), text).expect("written");
        }
        of_device(folder.path(), (252, 7), request)
    }

    #[test]
    fn the_device_of_the_group_is_the_volume() {
        let volume = seen(GROUP, "24576\n", "0\n", &request()).expect("seen");
        assert_eq!((volume.uuid.as_str(), volume.size), (VOLUME, Bytes::mib(12)));
        assert_eq!(
            (volume.number, volume.path.as_str()),
            (Some((252, 7)), "/dev/fast/pvc-a")
        );
        assert_eq!(volume.parts[0].physical_volume, "pv");
    }

    #[test]
    fn whatever_is_not_as_it_should_be_is_read() {
        let other = GROUP.replace("2dfXLa", "AAAAAA");
        assert_eq!(seen(&other, "24576", "0", &request()), None, "of another group");
        assert_eq!(seen(GROUP, "24577", "0", &request()), None, "no whole extents");
        assert_eq!(seen(GROUP, "0", "0", &request()), None, "no size");
        assert_eq!(seen(GROUP, "24576", "1", &request()), None, "suspended");
        let anywhere = CreateVolume {
            physical_volume: None,
            ..request()
        };
        assert_eq!(
            seen(GROUP, "24576", "0", &anywhere),
            None,
            "nobody knows on which disks"
        );
        assert_eq!(volume(Path::new("/nonexistent"), Path::new("/sys"), &request()), None);
    }
}
