//! Where a device shows what it is.

use crate::Bytes;

/// From the beginning: superblocks, labels and tables of nearly everything, the last of them VMFS at 1 MiB.
const FIRST: u64 = 1088 << 10;
/// What libblkid looks at further inside: VMFS and the second header of LUKS at 2 MiB, and that at 4 MiB.
const INSIDE: [(u64, u64); 2] = [(2 << 20, 64 << 10), (4 << 20, 64 << 10)];
/// Up to the end: what is kept behind the data, and second copies; farthest from it is Promise's RAID, at sector 3,087 from the
/// end.
const LAST: u64 = 1600 << 10;

/// Everywhere that libblkid looks to recognise something on a device of that size, as offsets and lengths in bytes: where all
/// of this is zeros it recognises nothing, for it goes elsewhere only by what it found here.
///
/// Source: `libblkid/src/superblocks`, `libblkid/src/topology` and `libblkid/src/partitions` of util-linux 2.38. A test of the
/// manager compares this with what libblkid says that it reads.
#[must_use]
pub fn signature_places(size: Bytes) -> Vec<(u64, u64)> {
    let size = size.0;
    let last = LAST.min(size);
    let all = [(0, FIRST)].into_iter().chain(INSIDE).chain([(size - last, last)]);
    all.filter(|(offset, _)| *offset < size)
        .map(|(offset, length)| (offset, length.min(size - offset)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_within_the_device() {
        let places = |size| signature_places(Bytes(size));
        assert_eq!(places(0), []);
        assert_eq!(places(512), [(0, 512), (0, 512)]);
        assert_eq!(
            places(4 << 20),
            [(0, 1_114_112), (2_097_152, 65_536), (2_555_904, 1_638_400)]
        );
        assert_eq!(
            places(10 << 30),
            [
                (0, 1_114_112),
                (2_097_152, 65_536),
                (4_194_304, 65_536),
                (10_735_779_840, 1_638_400)
            ]
        );
        for size in (0..12 << 20).step_by(512) {
            assert!(
                places(size).iter().all(|(offset, length)| offset + length <= size),
                "{size}"
            );
        }
    }
}
