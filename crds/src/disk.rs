//! Whether a disk may be taken: what is known about it, and the decision.
//!
//! A disk is taken only if it is blank: no signature of anything known, no partitions, nobody using it. **Data that
//! nothing recognises does not refuse a disk**: a disk that was wiped with `wipefs`, `pvremove` or `vgremove` keeps its
//! old blocks, and to refuse those would make administrators overwrite whole disks, or look for a switch that turns the
//! checks off. What is refused instead is everything that libblkid knows (file systems, partition tables, LVM, MD, LUKS,
//! ZFS, bcache, DRBD, Ceph BlueStore, VDO, swap and more), the second copy of a GPT, which libblkid leaves aside, and
//! everything that the kernel says is in use. LVM's own check, which asks before it overwrites and is never answered, is
//! the last guard.

mod facts;
mod places;
mod reason;

use std::collections::{BTreeMap, BTreeSet};

pub use facts::{DeviceKind, DiskFacts, Membership, Signature};
pub use places::signature_places;
pub use reason::Reason;

use crate::Bytes;

/// What LVM takes for itself at the beginning of a disk, with the metadata area that Quarry asks for.
pub const METADATA_AREA: Bytes = Bytes::mib(17);
/// The smallest disk that is of use: LVM's own area, and two extents.
pub const LEAST_SIZE: Bytes = Bytes::mib(25);

/// What a disk is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Name of the volume group that it is to be part of.
    pub volume_group: &'a str,
    /// Whether a kernel name such as /dev/sdb will do.
    pub allow_unstable_names: bool,
    /// Size in bytes of a logical sector of that volume group's disks, where there is such a group: LVM refuses a group of
    /// several sizes (`devices/allow_mixed_block_sizes` of lvm.conf(5)), for a file system would not survive `pvmove`.
    pub group_sector: Option<u32>,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It carries nothing and may be taken.
    Blank,
    /// It is a physical volume of that very volume group.
    Member {
        /// LVM's UUID of the physical volume.
        physical_volume: String,
        /// LVM's UUID of the volume group.
        volume_group: String,
    },
    /// It is refused, for every one of these reasons.
    Rejected(Vec<Reason>),
}

impl Verdict {
    /// The reasons as one text for people; `None` unless it is refused.
    #[must_use]
    pub fn rejection(&self) -> Option<String> {
        match self {
            Self::Rejected(reasons) => Some(reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
            _ => None,
        }
    }
}

/// Decides about one disk. For a list of disks, see [`judge_all`].
#[must_use]
pub fn judge(facts: &DiskFacts, wanted: Wanted<'_>) -> Verdict {
    let mut reasons = Vec::new();
    if facts.is_unstable_name() && !wanted.allow_unstable_names {
        reasons.push(Reason::UnstableName {
            lasting: facts.lasting_name().map(str::to_owned),
        });
    }
    if let Some(membership) = &facts.membership {
        match membership {
            Membership::Group {
                physical_volume,
                volume_group,
                name,
            } if name == wanted.volume_group => {
                // In use by its own volumes, as it should be. A disk that is in the group stays there whatever it is
                // called; only the name can be found fault with.
                return if reasons.is_empty() {
                    Verdict::Member {
                        physical_volume: physical_volume.clone(),
                        volume_group: volume_group.clone(),
                    }
                } else {
                    Verdict::Rejected(reasons)
                };
            }
            Membership::Group { name, volume_group, .. } => {
                reasons.push(Reason::OtherGroup {
                    name: name.clone(),
                    uuid: volume_group.clone(),
                });
            }
            Membership::Orphan { physical_volume } => {
                reasons.push(Reason::OrphanPhysicalVolume {
                    uuid: physical_volume.clone(),
                    device: facts.asked.clone(),
                });
            }
            Membership::Twin {
                physical_volume,
                device,
            } => {
                reasons.push(Reason::CopyOfPhysicalVolume {
                    uuid: physical_volume.clone(),
                    device: device.clone(),
                });
            }
        }
    }
    reasons.extend(unfit(facts));
    let mut uses = in_use(facts);
    // Of a disk that is in use by something known, what it carries is no news, and how to wipe it the wrong advice.
    let known = uses.iter().any(|reason| !matches!(reason, Reason::NotExclusive(_)));
    if matches!(facts.membership, Some(Membership::Group { .. })) {
        // Those are the volumes of the other group, which cannot be listed instead.
        uses.retain(|reason| !matches!(reason, Reason::Holders(_)));
    }
    reasons.extend(uses);
    if known {
        reasons.extend(facts.unread.iter().map(|problem| Reason::NotProbed(problem.clone())));
    } else {
        reasons.extend(carried(facts));
    }
    let told = |signature: &&Signature| known || is_of_lvm(signature, facts);
    let plainly: Vec<Signature> = each_kind_once(&facts.signatures).filter(told).cloned().collect();
    if !plainly.is_empty() {
        reasons.push(Reason::Carries(plainly));
    }
    if reasons.is_empty() {
        Verdict::Blank
    } else {
        Verdict::Rejected(reasons)
    }
}

/// What the device is.
fn unfit(facts: &DiskFacts) -> Vec<Reason> {
    let mut reasons = Vec::new();
    match &facts.kind {
        DeviceKind::Disk | DeviceKind::Raid => {}
        DeviceKind::Partition { label: Some(label), .. } if is_reserved_label(label) => {
            reasons.push(Reason::ReservedPartition(label.clone()));
        }
        DeviceKind::Partition { .. } => {}
        DeviceKind::Loop { backing_file } => {
            if facts.kind.is_volume() {
                reasons.push(Reason::LoopOfKubelet(backing_file.clone()));
            }
        }
        DeviceKind::DeviceMapper { .. } if facts.kind.is_volume() => reasons.push(Reason::LogicalVolume),
        DeviceKind::DeviceMapper { suspended: true, .. } => reasons.push(Reason::Suspended),
        DeviceKind::DeviceMapper { .. } => {}
        DeviceKind::Rom => reasons.push(Reason::Kind("an optical drive".to_owned())),
        DeviceKind::Memory => reasons.push(Reason::Kind("in memory".to_owned())),
        DeviceKind::Other(what) => reasons.push(Reason::Kind(what.clone())),
    }
    if facts.is_on_a_volume() && reasons.is_empty() {
        reasons.push(Reason::OnAVolume);
    }
    if facts.read_only {
        reasons.push(Reason::ReadOnly);
    }
    if facts.size < LEAST_SIZE {
        reasons.push(Reason::TooSmall(facts.size));
    }
    if !facts.twins.is_empty() {
        reasons.push(Reason::SameDiskUnderOtherDevices {
            devices: facts.twins.clone(),
            identity: facts.identity(),
        });
    }
    reasons
}

/// Names of partitions that boot loaders and operating systems keep for themselves.
fn is_reserved_label(label: &str) -> bool {
    let label = label.to_ascii_lowercase();
    ["bios", "boot", "reserved", "efi"]
        .iter()
        .any(|word| label.contains(word))
}

/// Who uses it.
fn in_use(facts: &DiskFacts) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if !facts.partitions.is_empty() {
        reasons.push(Reason::Partitions(facts.partitions.clone()));
    }
    if !facts.mounts.is_empty() {
        reasons.push(Reason::Mounted(facts.mounts.clone()));
    }
    if !facts.swaps.is_empty() {
        reasons.push(Reason::Swap(facts.swaps.clone()));
    }
    if !facts.holders.is_empty() {
        reasons.push(Reason::Holders(facts.holders.clone()));
    }
    if !facts.users.is_empty() {
        reasons.push(Reason::Users(facts.users.clone()));
    }
    let explained = !reasons.is_empty();
    match &facts.exclusive {
        Err(_) if explained => {}
        Err(error) => reasons.push(Reason::NotExclusive(error.clone())),
        Ok(()) => {}
    }
    reasons
}

/// What it carries that has to be wiped by a person first.
fn carried(facts: &DiskFacts) -> Vec<Reason> {
    let wiped = each_kind_once(&facts.signatures).filter(|signature| !is_of_lvm(signature, facts));
    let mut reasons: Vec<Reason> = wiped
        .map(|signature| Reason::Signature {
            signature: signature.clone(),
            device: facts.asked.clone(),
        })
        .collect();
    reasons.extend(facts.unread.iter().map(|problem| Reason::NotProbed(problem.clone())));
    reasons
}

/// LVM's own label, where LVM knows the disk: what to do about it is said with what LVM says.
fn is_of_lvm(signature: &Signature, facts: &DiskFacts) -> bool {
    signature.kind == "LVM2_member" && facts.membership.is_some()
}

/// Some kinds, such as ZFS, are written many times.
fn each_kind_once(signatures: &[Signature]) -> impl Iterator<Item = &Signature> {
    let mut kinds = BTreeSet::new();
    signatures.iter().filter(move |signature| kinds.insert(&signature.kind))
}

/// Decides about a list of disks: each alone, and then all but the first of those that are one disk.
#[must_use]
pub fn judge_all(disks: &[(DiskFacts, Wanted<'_>)]) -> Vec<Verdict> {
    let mut first: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    let mut verdicts = Vec::new();
    for (index, (facts, wanted)) in disks.iter().enumerate() {
        let mut verdict = judge(facts, *wanted);
        let before = *first.entry(facts.number).or_insert(index);
        if before != index {
            let (other, theirs) = &disks[before];
            let reason = if theirs.volume_group == wanted.volume_group {
                Reason::ListedTwice {
                    path: other.asked.clone(),
                }
            } else {
                Reason::ListedForOther {
                    path: other.asked.clone(),
                    volume_group: theirs.volume_group.to_owned(),
                }
            };
            match &mut verdict {
                Verdict::Rejected(reasons) => reasons.push(reason),
                _ => verdict = Verdict::Rejected(vec![reason]),
            }
        }
        verdicts.push(verdict);
    }
    one_sector_size(disks, &mut verdicts);
    verdicts
}

/// Of the blank disks for a volume group, those whose sectors are of another size than the group's are refused; where there
/// is no group yet, it gets that of the first.
fn one_sector_size(disks: &[(DiskFacts, Wanted<'_>)], verdicts: &mut [Verdict]) {
    let mut sizes: BTreeMap<&str, u32> = BTreeMap::new();
    for ((facts, wanted), verdict) in disks.iter().zip(verdicts) {
        if *verdict != Verdict::Blank {
            continue;
        }
        let size = *sizes
            .entry(wanted.volume_group)
            .or_insert(wanted.group_sector.unwrap_or(facts.logical_sector));
        if size != facts.logical_sector {
            *verdict = Verdict::Rejected(vec![Reason::OtherSectorSize {
                sector: facts.logical_sector,
                volume_group: wanted.volume_group.to_owned(),
                group_sector: size,
            }]);
        }
    }
}

#[cfg(test)]
mod tests;
