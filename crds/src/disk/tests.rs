use proptest::prelude::*;

use super::*;

const WANTED: Wanted<'_> = Wanted {
    volume_group: "fast",
    allow_unstable_names: false,
    group_sector: None,
};

fn blank() -> DiskFacts {
    DiskFacts {
        asked: "/dev/disk/by-id/nvme-A".into(),
        device: "/dev/nvme1n1".into(),
        number: (259, 1),
        kind: DeviceKind::Disk,
        size: Bytes::gib(100),
        logical_sector: 512,
        physical_sector: 4096,
        read_only: false,
        serial: Some("A".into()),
        model: Some("Model".into()),
        wwn: None,
        rotational: Some(false),
        aliases: vec![
            "/dev/disk/by-id/nvme-A".into(),
            "/dev/disk/by-path/pci-0000:00:04.0-nvme-1".into(),
        ],
        partitions: vec![],
        made_of: vec![],
        users: vec![],
        holders: vec![],
        mounts: vec![],
        swaps: vec![],
        twins: vec![],
        signatures: vec![],
        membership: None,
        exclusive: Ok(()),
        print: String::new(),
        unread: vec![],
    }
}

fn signature(kind: &str, offset: u64) -> Signature {
    Signature {
        kind: kind.into(),
        offset: Some(offset),
        uuid: Some("u-1".into()),
        label: None,
    }
}

fn text(facts: &DiskFacts) -> String {
    judge(facts, WANTED)
        .rejection()
        .unwrap_or_else(|| panic!("{facts:?} must be refused"))
}

#[test]
fn what_programs_have_open_is_in_use() {
    let used = DiskFacts {
        users: vec!["open by process 7 (mysqld)".into()],
        ..blank()
    };
    assert_eq!(
        text(&used),
        "is in use: open by process 7 (mysqld); list another disk, or end what uses it"
    );
}

#[test]
fn lvm_opens_nothing_that_is_on_a_volume() {
    let file = |backing_file: &str| DeviceKind::Loop {
        backing_file: backing_file.into(),
    };
    let mapped = |uuid: &str, suspended| DeviceKind::DeviceMapper {
        name: "x".into(),
        uuid: uuid.into(),
        suspended,
    };
    let kubelet = "/var/lib/kubelet/plugins/kubernetes.io/local-volume/volumeDevices/pvc-a/0c2f";
    let elsewhere = "/data/kubelet/plugins/kubernetes.io/local-volume/volumeDevices/pvc-a/0c2f";
    let part = DeviceKind::Partition {
        disk: "/dev/loop0".into(),
        label: None,
    };
    let of = |kind: &DeviceKind, made_of: &[DeviceKind]| DiskFacts {
        kind: kind.clone(),
        made_of: made_of.to_vec(),
        ..blank()
    };
    let volume = mapped("LVM-abc", false);
    for (kind, made_of) in [
        (volume.clone(), vec![]),
        (file(kubelet), vec![]),
        (file(elsewhere), vec![]),
        (file("/dev/fast/pvc-a"), vec![]),
        (part.clone(), vec![file(kubelet)]),
        (mapped("CRYPT-LUKS2-1", false), vec![volume.clone()]),
        (DeviceKind::Raid, vec![DeviceKind::Disk, volume]),
    ] {
        let facts = of(&kind, &made_of);
        assert!(!facts.may_be_opened_by_lvm(), "{facts:?}");
        assert!(matches!(judge(&facts, WANTED), Verdict::Rejected(_)), "{facts:?}");
    }
    for kind in [mapped("mpath-1", true), DeviceKind::Rom, DeviceKind::Memory] {
        assert!(!of(&kind, &[]).may_be_opened_by_lvm(), "{kind:?}");
    }
    for (kind, made_of) in [
        (DeviceKind::Disk, vec![]),
        (part, vec![DeviceKind::Disk]),
        (mapped("mpath-1", false), vec![DeviceKind::Disk]),
        (file("/srv/disk.img"), vec![]),
    ] {
        assert!(of(&kind, &made_of).may_be_opened_by_lvm(), "{kind:?}");
    }
}

#[test]
fn a_blank_disk_is_taken() {
    assert_eq!(judge(&blank(), WANTED), Verdict::Blank);
    let partition = DeviceKind::Partition {
        disk: "/dev/nvme1n1".into(),
        label: Some("data".into()),
    };
    assert_eq!(
        judge(
            &DiskFacts {
                kind: partition,
                ..blank()
            },
            WANTED
        ),
        Verdict::Blank
    );
    for uuid in ["mpath-360", "CRYPT-LUKS2-a-b", "part1-mpath-360"] {
        let kind = DeviceKind::DeviceMapper {
            name: "m".into(),
            uuid: uuid.into(),
            suspended: false,
        };
        assert_eq!(judge(&DiskFacts { kind, ..blank() }, WANTED), Verdict::Blank, "{uuid}");
    }
}

#[test]
fn every_refusal_names_what_was_found_and_the_remedy() {
    let kind = |kind| DiskFacts { kind, ..blank() };
    let member = |membership| DiskFacts {
        membership: Some(membership),
        signatures: vec![signature("LVM2_member", 536)],
        ..blank()
    };
    let carries = |kind: &str, offset| DiskFacts {
        signatures: vec![signature(kind, offset)],
        ..blank()
    };
    let dm = |uuid: &str, suspended| DeviceKind::DeviceMapper {
        name: "d".into(),
        uuid: uuid.into(),
        suspended,
    };
    let busy = "Device or resource busy".to_owned();
    for (facts, parts) in [
        (
            DiskFacts {
                asked: "/dev/nvme1n1".into(),
                ..blank()
            },
            vec!["/dev/disk/by-id/nvme-A", "allowUnstableNames"],
        ),
        (
            DiskFacts {
                asked: "/dev/nvme1n1".into(),
                aliases: vec![],
                ..blank()
            },
            vec!["no name", "serial number"],
        ),
        (
            carries("ext4", 1080),
            vec![
                "an ext4 file system at offset 1080 (uuid u-1)",
                "wipefs -a /dev/disk/by-id/nvme-A",
            ],
        ),
        (carries("gpt", 512), vec!["a partition table, gpt", "512", "wipefs"]),
        (carries("dos", 510), vec!["a partition table, dos", "510", "wipefs"]),
        (
            carries(Signature::BACKUP_GPT, 99),
            vec!["second copy", "99", "sgdisk --zap-all /dev/disk/by-id/nvme-A"],
        ),
        (carries("zfs_member", 1), vec!["zfs_member", "zpool labelclear"]),
        (
            carries("linux_raid_member", 4096),
            vec!["linux_raid_member", "mdadm --zero-superblock"],
        ),
        (carries("crypto_LUKS", 0), vec!["crypto_LUKS", "at offset 0", "wipefs"]),
        (carries("swap", 4086), vec!["swap space", "4086"]),
        (carries("ceph_bluestore", 0), vec!["ceph_bluestore", "wipefs"]),
        (carries("LVM2_member", 536), vec!["LVM label", "536"]),
        (
            member(Membership::Group {
                physical_volume: "p".into(),
                volume_group: "g".into(),
                name: "other".into(),
            }),
            vec!["volume group other (UUID g)"],
        ),
        (
            member(Membership::Orphan {
                physical_volume: "p-1".into(),
            }),
            vec!["p-1", "pvremove /dev/disk/by-id/nvme-A"],
        ),
        (
            member(Membership::Twin {
                physical_volume: "p-1".into(),
                device: "/dev/sdq".into(),
            }),
            vec!["p-1", "/dev/sdq", "detach"],
        ),
        (
            DiskFacts {
                read_only: true,
                ..blank()
            },
            vec!["read-only", "blockdev"],
        ),
        (
            DiskFacts {
                size: Bytes::ZERO,
                ..blank()
            },
            vec!["0 bytes", "25Mi"],
        ),
        (
            DiskFacts {
                size: Bytes(LEAST_SIZE.0 - 1),
                ..blank()
            },
            vec!["too small", "larger"],
        ),
        (
            DiskFacts {
                partitions: vec!["/dev/nvme1n1p1".into()],
                ..blank()
            },
            vec!["/dev/nvme1n1p1", "by-partuuid"],
        ),
        (
            DiskFacts {
                mounts: vec!["/".into(), "/boot".into()],
                ..blank()
            },
            vec!["mounted at /, /boot"],
        ),
        (
            DiskFacts {
                swaps: vec!["/dev/nvme1n1".into()],
                ..blank()
            },
            vec!["swapoff"],
        ),
        (
            DiskFacts {
                holders: vec!["/dev/mapper/mpatha".into()],
                ..blank()
            },
            vec!["/dev/mapper/mpatha is made of it"],
        ),
        (
            DiskFacts {
                exclusive: Err(busy.clone()),
                ..blank()
            },
            vec!["busy", "fuser"],
        ),
        (
            DiskFacts {
                twins: vec!["/dev/sdc".into()],
                ..blank()
            },
            vec!["/dev/sdc", "serial A", "/dev/mapper"],
        ),
        (
            DiskFacts {
                unread: vec!["blkid: I/O error".into()],
                ..blank()
            },
            vec!["not touched", "I/O error"],
        ),
        (kind(dm("LVM-ab", false)), vec!["logical volume"]),
        (kind(dm("mpath-1", true)), vec!["suspended", "dmsetup resume"]),
        (kind(DeviceKind::Rom), vec!["optical"]),
        (kind(DeviceKind::Memory), vec!["memory"]),
        (
            kind(DeviceKind::Loop {
                backing_file: "/var/lib/kubelet/plugins/x".into(),
            }),
            vec!["/var/lib/kubelet"],
        ),
        (
            kind(DeviceKind::Partition {
                disk: "/dev/sda".into(),
                label: Some("EFI System Partition".into()),
            }),
            vec!["EFI System Partition", "boot loader"],
        ),
    ] {
        let text = text(&facts);
        for part in parts {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    }
}

#[test]
fn all_reasons_at_once_but_none_twice_and_none_that_misleads() {
    let facts = DiskFacts {
        read_only: true,
        mounts: vec!["/data".into()],
        exclusive: Err("busy".into()),
        signatures: vec![signature("xfs", 0), signature("gpt", 512)],
        ..blank()
    };
    let Verdict::Rejected(reasons) = judge(&facts, WANTED) else {
        panic!("must be refused")
    };
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    // What it carries and where is said, but not how to wipe a disk that is in use.
    let told = text(&facts);
    assert!(
        told.contains("xfs file system or header at offset 0") && told.contains("gpt at offset 512"),
        "{told}"
    );
    assert!(!told.contains("wipefs"), "{told}");
    let idle = DiskFacts {
        mounts: vec![],
        ..facts
    };
    let Verdict::Rejected(reasons) = judge(&idle, WANTED) else {
        panic!("must be refused")
    };
    assert_eq!(reasons.len(), 4, "{reasons:?}");
    let twice = vec![signature("zfs_member", 1), signature("zfs_member", 2)];
    assert_eq!(
        text(&DiskFacts {
            signatures: twice,
            ..blank()
        })
        .matches("zfs_member")
        .count(),
        1
    );
}

#[test]
fn a_member_of_the_group_is_one_whatever_uses_it() {
    let facts = DiskFacts {
        membership: Some(Membership::Group {
            physical_volume: "p".into(),
            volume_group: "g".into(),
            name: "fast".into(),
        }),
        signatures: vec![signature("LVM2_member", 536)],
        holders: vec!["/dev/dm-0".into()],
        mounts: vec!["/var/lib/kubelet/pods/x".into()],
        exclusive: Err("busy".into()),
        ..blank()
    };
    assert!(matches!(judge(&facts, WANTED), Verdict::Member { .. }));
    let unstable = DiskFacts {
        asked: facts.device.clone(),
        ..facts
    };
    assert!(matches!(judge(&unstable, WANTED), Verdict::Rejected(reasons) if reasons.len() == 1));
    let allowed = Wanted {
        allow_unstable_names: true,
        ..WANTED
    };
    assert!(matches!(judge(&unstable, allowed), Verdict::Member { .. }));
}

#[test]
fn one_disk_under_two_names() {
    let other_name = DiskFacts {
        asked: "/dev/disk/by-path/pci-1".into(),
        ..blank()
    };
    let slow = Wanted {
        volume_group: "slow",
        ..WANTED
    };
    let verdicts = judge_all(&[(blank(), WANTED), (other_name.clone(), WANTED), (other_name, slow)]);
    assert_eq!(verdicts[0], Verdict::Blank);
    let texts: Vec<_> = verdicts[1..].iter().filter_map(Verdict::rejection).collect();
    assert!(
        texts[0].contains("same disk as /dev/disk/by-id/nvme-A") && texts[0].contains("keep one"),
        "{texts:?}"
    );
    assert!(texts[1].contains("volume group fast"), "{texts:?}");
}

#[test]
fn sectors_of_two_sizes_make_no_group() {
    let of = |number, logical_sector| DiskFacts {
        number: (259, number),
        logical_sector,
        ..blank()
    };
    let slow = Wanted {
        volume_group: "slow",
        ..WANTED
    };
    // There is no group yet: the first blank disk decides, each group for itself.
    let verdicts = judge_all(&[
        (of(1, 512), WANTED),
        (of(2, 4096), WANTED),
        (of(3, 4096), slow),
        (of(4, 512), WANTED),
    ]);
    let refused: Vec<_> = verdicts.iter().map(Verdict::rejection).collect();
    assert!(matches!(refused.as_slice(), [None, Some(_), None, None]), "{refused:?}");
    let text = refused[1].clone().unwrap_or_default();
    for part in [
        "sectors of 4096 bytes",
        "volume group fast",
        "of 512",
        "a class of its own",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // There is one, whose disks may not be listed any more.
    let there = Wanted {
        group_sector: Some(4096),
        ..WANTED
    };
    let verdicts = judge_all(&[(of(1, 512), there), (of(2, 4096), there)]);
    assert!(
        verdicts[0].rejection().is_some() && verdicts[1] == Verdict::Blank,
        "{verdicts:?}"
    );
    // What is in the group stays in it, whatever its sectors are.
    let member = DiskFacts {
        membership: Some(Membership::Group {
            physical_volume: "pv".into(),
            volume_group: "vg".into(),
            name: "fast".into(),
        }),
        ..of(1, 512)
    };
    assert!(matches!(judge_all(&[(member, there)])[0], Verdict::Member { .. }));
}

#[test]
fn paths_to_the_same_disk() {
    let leg = DiskFacts {
        number: (8, 16),
        ..blank()
    };
    assert!(blank().is_same_disk(&leg));
    assert!(!blank().is_same_disk(&blank()), "itself is no twin");
    let wwn = |wwn: &str, number| DiskFacts {
        wwn: Some(wwn.into()),
        number,
        ..blank()
    };
    assert!(wwn("w1", (8, 0)).is_same_disk(&wwn("w1", (8, 16))));
    assert!(
        !wwn("w1", (8, 0)).is_same_disk(&wwn("w2", (8, 16))),
        "namespaces share the serial"
    );
    let nameless = DiskFacts {
        serial: None,
        number: (8, 32),
        ..blank()
    };
    assert!(!nameless.is_same_disk(&DiskFacts {
        number: (8, 48),
        ..nameless.clone()
    }));
    let partition = DeviceKind::Partition {
        disk: "/dev/nvme1n1".into(),
        label: None,
    };
    assert!(!blank().is_same_disk(&DiskFacts { kind: partition, ..leg }));
}

#[test]
fn names_that_last() {
    let rank = DiskFacts::rank_alias;
    assert!(rank("/dev/disk/by-id/nvme-Model_A") < rank("/dev/disk/by-id/nvme-eui.0025"));
    assert!(rank("/dev/disk/by-id/wwn-0x5") < rank("/dev/disk/by-path/pci-1"));
    for none in [
        "/dev/sdb",
        "/dev/disk/by-uuid/x",
        "/dev/disk/by-diskseq/1",
        "/dev/disk/by-id/lvm-pv-uuid-x",
    ] {
        assert_eq!(rank(none), None, "{none}");
    }
}

proptest! {
    #[test]
    fn anything_found_refuses(
        signatures in proptest::collection::vec("[a-zA-Z0-9_]{1,12}", 0..3),
        partitions in proptest::collection::vec("[a-z0-9]{1,5}", 0..2),
        holders in proptest::collection::vec("[a-z0-9]{1,5}", 0..2),
        mounts in proptest::collection::vec("/[a-z0-9]{1,5}", 0..7),
        unread in proptest::collection::vec("\\PC{0,8}", 0..2),
        exclusive in any::<bool>(),
        read_only in any::<bool>(),
    ) {
        let clean = signatures.is_empty() && partitions.is_empty() && holders.is_empty() && mounts.is_empty()
            && unread.is_empty() && exclusive && !read_only;
        let facts = DiskFacts {
            signatures: signatures.iter().map(|kind| signature(kind, 0)).collect(),
            exclusive: if exclusive { Ok(()) } else { Err("busy".into()) },
            partitions, holders, mounts, unread, read_only,
            ..blank()
        };
        let verdict = judge(&facts, WANTED);
        prop_assert_eq!(verdict == Verdict::Blank, clean);
        prop_assert_eq!(verdict.rejection().is_some(), !clean);
    }
}
