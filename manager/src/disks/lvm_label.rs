//! LVM's label at the beginning of a physical volume, read without LVM: by it a disk is known again before LVM may open it.
//!
//! The layout is that of lvm2, `lib/format_text/layout.h` and `lib/label/label.h`: in one of the first four sectors of 512
//! bytes there is `LABELONE`, at offset 20 of it where its contents begin, at 24 `LVM2 001`; the contents begin with the UUID
//! of the physical volume, 32 characters without hyphens, its size, and two lists of areas, each an offset and a size of 64 bits and
//! ended by zeros: of data, and of metadata. A metadata area begins with a header of 512 bytes, in which the place of the current
//! text is at 40: its offset in the area and its size. The text begins with the name of the volume group.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const SECTOR: usize = 512;
const SECTORS: usize = 4;
const UUID: usize = 32;

/// UUID of the physical volume that a device is, in LVM's form; `None` where it has no label.
pub(super) fn physical_volume(device: &Path) -> io::Result<Option<String>> {
    let file = File::open(device)?;
    let mut head = [0; SECTOR * SECTORS];
    file.read_exact_at(&mut head, 0)?;
    Ok(parse(&head))
}

/// Name of the volume group that a device is part of; `None` where it has no label, or is in no group.
pub(super) fn volume_group(device: &Path) -> io::Result<Option<String>> {
    let file = File::open(device)?;
    let mut head = [0; SECTOR * SECTORS];
    file.read_exact_at(&mut head, 0)?;
    let Some(area) = metadata_area(&head) else {
        return Ok(None);
    };
    let mut header = [0; SECTOR];
    file.read_exact_at(&mut header, area)?;
    let Some(text) = current_text(&header).and_then(|offset| area.checked_add(offset)) else {
        return Ok(None);
    };
    let mut beginning = [0; SECTOR];
    file.read_exact_at(&mut beginning, text)?;
    Ok(name(&beginning))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Where the first metadata area is, in bytes from the beginning.
fn metadata_area(head: &[u8; SECTOR * SECTORS]) -> Option<u64> {
    let (label, from) = contents(head)?;
    let mut at = from + UUID + 8;
    while u64_at(label, at)? != 0 {
        at += 16;
    }
    u64_at(label, at + 16).filter(|offset| *offset != 0)
}

/// Where the current text of a metadata area begins, in bytes from the beginning of the area.
fn current_text(header: &[u8; SECTOR]) -> Option<u64> {
    const MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
    (header.get(4..4 + MAGIC.len()) == Some(MAGIC))
        .then(|| u64_at(header, 40))
        .flatten()
        .filter(|offset| *offset != 0)
}

/// The name with which a text begins: `name {`.
fn name(text: &[u8]) -> Option<String> {
    let end = text.iter().position(|byte| *byte == b' ')?;
    (text.get(end..end + 2) == Some(b" {"))
        .then(|| String::from_utf8(text[..end].to_vec()).ok())
        .flatten()
}

/// The sector with the label, and where its contents begin in it.
fn contents(head: &[u8; SECTOR * SECTORS]) -> Option<(&[u8], usize)> {
    let label = head.chunks(SECTOR).find(|sector| sector.starts_with(b"LABELONE"))?;
    if label.get(24..32) != Some(b"LVM2 001") {
        return None;
    }
    let offset = u32::from_le_bytes(label.get(20..24)?.try_into().ok()?);
    Some((label, usize::try_from(offset).ok().filter(|offset| *offset < SECTOR)?))
}

fn parse(head: &[u8; SECTOR * SECTORS]) -> Option<String> {
    let (label, from) = contents(head)?;
    let uuid = std::str::from_utf8(label.get(from..from.checked_add(UUID)?)?).ok()?;
    if !uuid.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let ends = [6, 10, 14, 18, 22, 26, 32];
    let starts = std::iter::once(0).chain(ends);
    let parts: Vec<&str> = starts.zip(ends).map(|(start, end)| &uuid[start..end]).collect();
    Some(parts.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(sector: usize, offset: u32, kind: &[u8; 8], uuid: &[u8]) -> [u8; SECTOR * SECTORS] {
        let mut head = [0; SECTOR * SECTORS];
        let label = &mut head[sector * SECTOR..(sector + 1) * SECTOR];
        label[..8].copy_from_slice(b"LABELONE");
        label[20..24].copy_from_slice(&offset.to_le_bytes());
        label[24..32].copy_from_slice(kind);
        let from = (offset as usize).min(SECTOR - uuid.len());
        label[from..from + uuid.len()].copy_from_slice(uuid);
        head
    }

    /// By LVM itself, where it is there: physical volumes can be files.
    #[test]
    fn the_name_of_a_group_is_read_as_lvm_wrote_it() {
        let run = |arguments: &[&str]| {
            let ran = std::process::Command::new("lvm").args(arguments).output();
            ran.is_ok_and(|output| output.status.success())
        };
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("disk");
        File::create(&file).expect("made").set_len(64 << 20).expect("sized");
        let path = file.display().to_string();
        let attached = std::process::Command::new("losetup")
            .args(["-f", "--show", &path])
            .output();
        let Some(device) = attached
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        else {
            eprintln!("skipped: no loop device");
            return;
        };
        assert_eq!(volume_group(&file).expect("read"), None);
        let quiet = [
            "--config",
            "backup { backup=0 archive=0 }",
            "--devices",
            &device,
            "--driverloaded",
            "n",
        ];
        let made = run(&[&["vgcreate"][..], &quiet, &["some-group_1", &device]].concat());
        let tagged = run(&[&["vgchange", "--addtag", "a=b"][..], &quiet, &["some-group_1"]].concat());
        let read = (volume_group(&file), physical_volume(&file));
        let _ = std::process::Command::new("losetup").args(["-d", &device]).status();
        if made && tagged {
            let (name, label) = (read.0.expect("read"), read.1.expect("read"));
            assert_eq!(name.as_deref(), Some("some-group_1"));
            assert!(label.is_some_and(|label| label.len() == 38));
        } else {
            eprintln!("skipped: no LVM");
        }
    }

    #[test]
    fn labels_as_lvm_writes_them() {
        let uuid = b"p58v1gNdXTL1fpEwKnlnKC3U2Z4pcKS9";
        let written = "p58v1g-NdXT-L1fp-EwKn-lnKC-3U2Z-4pcKS9";
        for sector in 0..SECTORS {
            assert_eq!(parse(&head(sector, 32, b"LVM2 001", uuid)).as_deref(), Some(written));
        }
        assert_eq!(parse(&[0; SECTOR * SECTORS]), None);
        assert_eq!(parse(&head(1, 32, b"LVM1 001", uuid)), None);
        assert_eq!(parse(&head(1, 500, b"LVM2 001", uuid)), None, "it would end outside");
        assert_eq!(parse(&head(1, u32::MAX, b"LVM2 001", uuid)), None);
        assert_eq!(parse(&head(1, 32, b"LVM2 001", &[0xff; UUID])), None);
    }
}
