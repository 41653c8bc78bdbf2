//! The first MiB of a physical volume, as whoever owns a raw volume can write it: LVM's label, and metadata of a volume group with
//! whatever names, tags and UUIDs it likes (lvm2 `format_text/layout.h`, `label/label.c`).

/// Bytes of an image.
pub const SIZE: usize = 1 << 20;
const SECTOR: usize = 512;
/// Where the metadata area begins.
const AREA: usize = 4096;
/// LVM's first value of a checksum.
const SEED: u32 = 0xf597_a6cf;

/// What is pretended.
#[derive(Debug, Clone)]
pub struct Pretended<'a> {
    /// Name of the volume group.
    pub group: &'a str,
    /// LVM's UUID of it, with hyphens.
    pub group_uuid: &'a str,
    /// LVM's UUID of the physical volume, with hyphens.
    pub physical_volume: &'a str,
    /// Number of the metadata: the greater is the newer.
    pub sequence: u64,
    /// Tags of the group.
    pub tags: &'a [&'a str],
    /// Name and tags of the one volume in it, which takes the first extent.
    pub volume: Option<(&'a str, Vec<String>)>,
    /// Bytes of the device.
    pub size: u64,
}

fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(SEED, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = image.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn list(tags: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let quoted: Vec<String> = tags.into_iter().map(|tag| format!("\"{}\"", tag.as_ref())).collect();
    quoted.join(", ")
}

/// The image.
#[must_use]
pub fn image(pretended: &Pretended<'_>) -> Vec<u8> {
    let mut image = vec![0; SIZE];
    let text = metadata(pretended);
    // The metadata, with the zero at its end, behind the head of its area.
    put(&mut image, AREA + SECTOR, text.as_bytes());
    let length = text.len() + 1;
    let of_text = checksum(&image[AREA + SECTOR..AREA + SECTOR + length]);
    let mut head = vec![0; SECTOR];
    put(&mut head, 4, b" LVM2 x[5A%r0N*>");
    put(&mut head, 20, &1_u32.to_le_bytes());
    put(&mut head, 24, &(AREA as u64).to_le_bytes());
    put(&mut head, 32, &((SIZE - AREA) as u64).to_le_bytes());
    put(&mut head, 40, &(SECTOR as u64).to_le_bytes());
    put(&mut head, 48, &(length as u64).to_le_bytes());
    put(&mut head, 56, &of_text.to_le_bytes());
    let of_head = checksum(&head[4..]);
    put(&mut head, 0, &of_head.to_le_bytes());
    put(&mut image, AREA, &head);
    // The label, in the second sector.
    let mut label = vec![0; SECTOR];
    put(&mut label, 0, b"LABELONE");
    put(&mut label, 8, &1_u64.to_le_bytes());
    put(&mut label, 20, &32_u32.to_le_bytes());
    put(&mut label, 24, b"LVM2 001");
    put(&mut label, 32, pretended.physical_volume.replace('-', "").as_bytes());
    put(&mut label, 64, &pretended.size.to_le_bytes());
    // Data: from the end of the image on. The metadata area. Then a header of version 2, in use.
    put(&mut label, 72, &(SIZE as u64).to_le_bytes());
    put(&mut label, 104, &(AREA as u64).to_le_bytes());
    put(&mut label, 112, &((SIZE - AREA) as u64).to_le_bytes());
    put(&mut label, 136, &2_u32.to_le_bytes());
    put(&mut label, 140, &1_u32.to_le_bytes());
    let of_label = checksum(&label[20..]);
    put(&mut label, 16, &of_label.to_le_bytes());
    put(&mut image, SECTOR, &label);
    image
}

fn metadata(pretended: &Pretended<'_>) -> String {
    let Pretended {
        group,
        group_uuid,
        physical_volume,
        sequence,
        tags,
        volume,
        size,
    } = pretended;
    // Extents of 4 MiB.
    let extents = (size - SIZE as u64) / (4 << 20);
    let tags = match tags.is_empty() {
        true => String::new(),
        false => format!("tags = [{}]\n", list(*tags)),
    };
    let volumes = volume.as_ref().map_or_else(String::new, |(name, tags)| {
        format!(
            "logical_volumes {{\n{name} {{\nid = \"hosti1-0000-0000-0000-0000-0000-hosti1\"\n\
             status = [\"READ\", \"WRITE\", \"VISIBLE\"]\nflags = []\ntags = [{}]\ncreation_time = 1700000000\n\
             creation_host = \"hostile\"\nsegment_count = 1\nsegment1 {{\nstart_extent = 0\nextent_count = 1\ntype = \"striped\"\n\
             stripe_count = 1\nstripes = [\n\"pv0\", 0\n]\n}}\n}}\n}}\n",
            list(tags)
        )
    });
    format!(
        "{group} {{\nid = \"{group_uuid}\"\nseqno = {sequence}\nformat = \"lvm2\"\n\
         status = [\"RESIZEABLE\", \"READ\", \"WRITE\"]\nflags = []\n{tags}extent_size = 8192\nmax_lv = 0\nmax_pv = 0\n\
         metadata_copies = 0\nphysical_volumes {{\npv0 {{\nid = \"{physical_volume}\"\ndevice = \"/dev/loop0\"\n\
         status = [\"ALLOCATABLE\"]\nflags = []\ndev_size = {}\npe_start = 2048\npe_count = {extents}\n}}\n}}\n{volumes}}}\n\
         contents = \"Text Format Volume Group\"\nversion = 1\ndescription = \"\"\ncreation_host = \"hostile\"\n\
         creation_time = 1700000000\n",
        size / 512
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn pretended() -> Pretended<'static> {
        Pretended {
            group: "hostile",
            group_uuid: "hostil-vg00-0000-0000-0000-0000-hostil",
            physical_volume: "hostil-pv00-0000-0000-0000-0000-hostil",
            sequence: 9,
            tags: &["quarry.version=1", "quarry.policy=delete"],
            volume: Some(("pvc-0", vec!["quarry.version=1".to_owned()])),
            size: 64 << 20,
        }
    }

    #[test]
    fn the_checksum_is_lvms() {
        // That of zlib, from another first value and without the last inversion.
        assert_eq!(checksum(&[]), SEED);
        assert_eq!(checksum(b"123456789"), 0x4991_cf02);
    }

    #[test]
    fn the_text_is_where_its_head_says() {
        let image = image(&pretended());
        let number = |at: usize| {
            let bytes = image[at..at + 8].try_into().expect("8 bytes");
            usize::try_from(u64::from_le_bytes(bytes)).expect("it is small")
        };
        let (offset, length) = (number(AREA + 40), number(AREA + 48));
        let text = &image[AREA + offset..AREA + offset + length];
        assert_eq!(text.last(), Some(&0));
        assert!(text.starts_with(b"hostile {") && length < SIZE - AREA - SECTOR);
        assert_eq!(&image[SECTOR..SECTOR + 8], b"LABELONE");
    }

    /// With LVM's own reader, where there is one and this may use a loop device.
    #[test]
    fn lvm_takes_it_for_a_physical_volume() {
        let file = std::env::temp_dir().join(format!("quarry-hostile-{}", std::process::id()));
        let mut bytes = image(&pretended());
        bytes.resize(64 << 20, 0);
        std::fs::write(&file, bytes).expect("written");
        let attached = Command::new("losetup").arg("--find").arg("--show").arg(&file).output();
        let Some(device) = attached.ok().filter(|output| output.status.success()) else {
            eprintln!("not tried: no loop device can be made here");
            std::fs::remove_file(&file).expect("removed");
            return;
        };
        let device = String::from_utf8_lossy(&device.stdout).trim().to_owned();
        let filter =
            format!("devices {{ filter = [ \"a|^{device}$|\", \"r|.*|\" ] use_devicesfile = 0 scan_lvs = 0 }}");
        let columns = ["-o", "vg_name,lv_name,vg_tags,lv_tags,vg_seqno"];
        let seen = Command::new("lvs")
            .args(["--config", &filter, "--noheadings"])
            .args(columns)
            .output();
        let detached = Command::new("losetup").args(["--detach", &device]).status();
        std::fs::remove_file(&file).expect("removed");
        let Ok(seen) = seen else {
            eprintln!("not tried: there is no LVM here");
            return;
        };
        let text = String::from_utf8_lossy(&seen.stdout);
        for part in ["hostile", "pvc-0", "quarry.policy=delete,quarry.version=1", "9"] {
            assert!(text.contains(part), "{part:?} is not in {seen:?}");
        }
        assert!(detached.expect("losetup").success());
    }
}
