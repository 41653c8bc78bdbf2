use std::fs;
use std::os::unix::fs::FileExt as _;
use std::process::Command;

use quarry_crds::disk::{Reason, Signature};

use super::*;
use crate::lvm::PhysicalVolume;

/// A loop device over a file, or nothing where the machine has none or the tests may not make one.
struct Loop {
    device: String,
    file: fs::File,
    _directory: tempfile::TempDir,
}

impl Loop {
    fn new(size: u64) -> Option<Self> {
        let directory = tempfile::tempdir().ok()?;
        let path = directory.path().join("disk");
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .ok()?;
        file.set_len(size).ok()?;
        let output = Command::new("losetup")
            .args(["-f", "--show"])
            .arg(&path)
            .output()
            .ok()?;
        if !output.status.success() {
            eprintln!(
                "skipped: no loop device ({})",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            return None;
        }
        let device = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        Some(Self {
            device,
            file,
            _directory: directory,
        })
    }

    fn run(&self, program: &str, arguments: &[&str]) -> bool {
        let status = Command::new(program).args(arguments).arg(&self.device).output();
        status.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

fn asked(path: &str) -> Asked {
    Asked {
        path: path.to_owned(),
        volume_group: "fast".to_owned(),
        allow_unstable_names: true,
    }
}

async fn look(path: &str, lvm: State) -> Option<Result<Found, Absent>> {
    let prober = Prober::new("/proc".into(), None)
        .inspect_err(|error| eprintln!("skipped: {error}"))
        .ok()?;
    prober.look(vec![asked(path)], Arc::new(lvm)).await.pop()
}

async fn rejection(path: &str) -> Option<String> {
    match look(path, State::default()).await? {
        Ok(found) => Some(
            found
                .verdict
                .rejection()
                .unwrap_or_else(|| format!("{:?}", found.verdict)),
        ),
        Err(absent) => Some(absent.to_string()),
    }
}

#[tokio::test]
async fn nothing_and_no_device() {
    let Some(text) = rejection("/dev/quarry-no-such-device").await else {
        return;
    };
    assert!(text.contains("no such device"), "{text}");
    let text = rejection("/dev/null").await.expect("looked at");
    assert!(text.contains("not a block device"), "{text}");
}

/// Whoever writes a NodeLocalStorage by hand can write what no class may.
#[tokio::test]
async fn a_detour_to_a_device_is_not_followed() {
    let Some(text) = rejection("/dev/../dev/null").await else {
        return;
    };
    assert!(text.contains("not a plain path"), "{text}");
    for path in ["/etc/passwd", "--config=devices{}", "/proc/1/root/dev/null"] {
        let text = rejection(path).await.expect("looked at");
        assert!(text.contains("not under /dev"), "{path}: {text}");
    }
}

#[tokio::test]
async fn a_blank_disk_and_one_with_old_data_that_nothing_recognises() {
    let Some(disk) = Loop::new(64 << 20) else { return };
    let Some(found) = look(&disk.device, State::default()).await else {
        return;
    };
    let found = found.expect("there");
    assert_eq!(found.verdict, Verdict::Blank, "{:?}", found.facts);
    assert_eq!(found.facts.size.0, 64 << 20);
    let noise: Vec<u8> = (0..1 << 20).map(|i: u32| i.to_le_bytes()[0] ^ 0x5a).collect();
    disk.file.write_all_at(&noise, 0).expect("written");
    let found = look(&disk.device, State::default())
        .await
        .expect("looked at")
        .expect("there");
    assert_eq!(found.verdict, Verdict::Blank, "{:?}", found.facts);
}

#[tokio::test]
async fn what_is_carried_is_named_with_its_offset() {
    for (program, arguments, words) in [
        ("mkfs.ext4", &["-q"][..], ["ext4", "offset 1080"]),
        ("mkfs.xfs", &["-q", "-f"][..], ["xfs", "offset 0"]),
        ("mkfs.btrfs", &["-q", "-f"][..], ["btrfs", "offset 65600"]),
        ("mkswap", &["-q"][..], ["swap", "offset 4086"]),
    ] {
        let Some(disk) = Loop::new(320 << 20) else { return };
        if !disk.run(program, arguments) {
            eprintln!("skipped: {program}");
            continue;
        }
        let Some(text) = rejection(&disk.device).await else {
            return;
        };
        for word in words.iter().chain(&["wipefs -a /dev/loop", "never overwrites"]) {
            assert!(text.contains(word), "{text:?} lacks {word:?}");
        }
    }
}

#[tokio::test]
async fn headers_that_the_kernel_does_not_use_here() {
    for (kind, offset, bytes) in [
        ("crypto_LUKS", 0_u64, &b"LUKS\xba\xbe\x00\x02"[..]),
        (
            "bcache",
            4096 + 24,
            &b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"[..],
        ),
        ("ceph_bluestore", 0, &b"bluestore block device"[..]),
        ("LVM2_member", 512, &b"LABELONE\x01\x00\x00\x00\x00\x00\x00\x00"[..]),
        (Signature::BACKUP_GPT, (64 << 20) - 512, &b"EFI PART"[..]),
    ] {
        let Some(disk) = Loop::new(64 << 20) else { return };
        disk.file.write_all_at(bytes, offset).expect("written");
        let Some(found) = look(&disk.device, State::default()).await else {
            return;
        };
        let found = found.expect("there");
        let kinds: Vec<_> = found
            .facts
            .signatures
            .iter()
            .map(|signature| signature.kind.clone())
            .collect();
        // LUKS, bcache and LVM are recognised with a sound header only.
        if ["ceph_bluestore", Signature::BACKUP_GPT].contains(&kind) {
            assert!(kinds.contains(&kind.to_owned()), "{kind}: {:?}", found.facts);
            assert!(matches!(found.verdict, Verdict::Rejected(_)));
        }
    }
}

#[tokio::test]
async fn a_disk_in_use_or_read_only() {
    let Some(disk) = Loop::new(320 << 20) else { return };
    let held = fs::OpenOptions::new()
        .read(true)
        .custom_flags(O_EXCL)
        .open(&disk.device)
        .expect("claimed");
    let Some(text) = rejection(&disk.device).await else {
        return;
    };
    assert!(text.contains("in use by a program"), "{text}");
    drop(held);
    if disk.run("mkfs.ext4", &["-q"]) {
        let place = tempfile::tempdir().expect("made");
        let mounted = Command::new("mount")
            .arg(&disk.device)
            .arg(place.path())
            .status()
            .is_ok_and(|s| s.success());
        let text = rejection(&disk.device).await.expect("looked at");
        if mounted {
            let _ = Command::new("umount").arg(place.path()).status();
            assert!(
                text.contains(&format!("mounted at {}", place.path().display())),
                "{text}"
            );
            assert!(!text.contains("cannot be named"), "{text}");
        }
    }
    if disk.run("blockdev", &["--setro"]) {
        let text = rejection(&disk.device).await.expect("looked at");
        // The kernel would keep it for the next user of the loop device.
        assert!(disk.run("blockdev", &["--setrw"]));
        assert!(text.contains("read-only"), "{text}");
    }
}

#[tokio::test]
async fn listed_twice_and_in_lvm() {
    let Some(disk) = Loop::new(64 << 20) else { return };
    let Ok(prober) = Prober::new("/proc".into(), None) else {
        return;
    };
    let twice = prober
        .look(vec![asked(&disk.device), asked(&disk.device)], Arc::default())
        .await;
    assert!(matches!(&twice[0], Ok(found) if found.verdict == Verdict::Blank));
    let Ok(Found {
        verdict: Verdict::Rejected(reasons),
        ..
    }) = &twice[1]
    else {
        panic!("{twice:?}")
    };
    assert!(matches!(reasons.as_slice(), [Reason::ListedTwice { .. }]));

    let orphan = PhysicalVolume {
        uuid: "p".into(),
        device: Some(disk.device.clone()),
        number: number_of(Path::new(&disk.device)).ok(),
        device_size: quarry_crds::Bytes::ZERO,
        size: quarry_crds::Extents::ZERO,
        free: quarry_crds::Extents::ZERO,
        free_areas: vec![],
        missing: false,
        allocatable: false,
        duplicate: false,
        metadata_size: quarry_crds::Bytes::ZERO,
    };
    let lvm = State {
        orphans: vec![orphan],
        ..State::default()
    };
    let found = look(&disk.device, lvm).await.expect("looked at").expect("there");
    assert!(
        found.verdict.rejection().is_some_and(|text| text.contains("pvremove")),
        "{found:?}"
    );
}

#[tokio::test]
async fn the_disk_of_this_machine_is_never_blank() {
    let Ok(mounts) = fs::read_to_string("/proc/1/mountinfo") else {
        return;
    };
    let source = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/"));
    let Some(device) = source.and_then(|line| line.split(" - ").nth(1)?.split(' ').nth(1)) else {
        return;
    };
    if !device.starts_with("/dev/") {
        return;
    }
    let Some(text) = rejection(device).await else { return };
    assert!(
        text.contains("mounted at /") || text.contains("no such device"),
        "{text}"
    );
}
