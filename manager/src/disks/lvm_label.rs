//! LVM's label at the beginning of a physical volume, read without LVM: by it a disk is known again before LVM may open it.
//!
//! The layout is that of lvm2, `lib/format_text/layout.h` and `lib/label/label.h`: in one of the first four sectors of 512
//! bytes there is `LABELONE`, at offset 20 of it where its contents begin, at 24 `LVM2 001`; the contents begin with the UUID
//! of the physical volume, 32 characters without hyphens.

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

fn parse(head: &[u8; SECTOR * SECTORS]) -> Option<String> {
    let label = head.chunks(SECTOR).find(|sector| sector.starts_with(b"LABELONE"))?;
    if label.get(24..32) != Some(b"LVM2 001") {
        return None;
    }
    let offset = u32::from_le_bytes(label.get(20..24)?.try_into().ok()?);
    let from = usize::try_from(offset).ok()?;
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
