use std::process::Command;

use quarry_crds::Extents;
use quarry_crds::tags::VERSION_TAG;

use super::super::conformance::{Hand, conformance};
use super::super::*;
use super::*;

/// Loop devices over sparse files, or nothing where the machine has none or the tests may not make them.
struct Loops {
    devices: Vec<String>,
    _directory: tempfile::TempDir,
}

impl Loops {
    fn new(sizes: &[u64]) -> Option<Self> {
        let directory = tempfile::tempdir().ok()?;
        let mut loops = Self {
            devices: Vec::new(),
            _directory: directory,
        };
        for (index, size) in sizes.iter().enumerate() {
            let path = loops._directory.path().join(index.to_string());
            std::fs::File::create(&path).ok()?.set_len(*size).ok()?;
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
            loops
                .devices
                .push(String::from_utf8(output.stdout).ok()?.trim().to_owned());
        }
        Some(loops)
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.devices {
            let _ = Command::new("losetup").arg("-d").arg(device).status();
        }
    }
}

fn metadata_only(devices: &[String]) -> Option<HostLvm> {
    HostLvm::new(HostOptions {
        devices: Some(devices.to_vec()),
        metadata_only: true,
        ..HostOptions::default()
    })
    .inspect_err(|error| eprintln!("skipped: {error}"))
    .ok()
}

/// LVM's own commands, on these devices only, and only metadata.
struct ByHand<'a>(&'a [String]);

impl ByHand<'_> {
    fn run(&self, words: &[&str]) -> Result<(), String> {
        let output = Command::new("lvm")
            .args(words)
            .args([
                "--driverloaded",
                "n",
                "--config",
                "backup { backup=0 archive=0 }",
                "--devices",
            ])
            .arg(self.0.join(","))
            .output()
            .map_err(|error| error.to_string())?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        output.status.success().then_some(()).ok_or(told)
    }
}

impl Hand for ByHand<'_> {
    /// In two steps, as `lvcreate -s` zeroes the device of the new volume, and there is none here.
    fn snapshot<'a>(&'a self, group: &'a str, volume: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), String>> {
        let volume = format!("{group}/{volume}");
        let made = self
            .run(&[
                "lvcreate", "-an", "-Wn", "-Zn", "--type", "linear", "-n", name, "-l", "1", group,
            ])
            .and_then(|()| {
                self.run(&[
                    "lvconvert",
                    "-y",
                    "--type",
                    "snapshot",
                    "-Zn",
                    &volume,
                    &format!("{group}/{name}"),
                ])
            });
        futures::future::ready(made).boxed()
    }

    fn remove<'a>(&'a self, group: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), String>> {
        futures::future::ready(self.run(&["lvremove", "-y", &format!("{group}/{name}")])).boxed()
    }
}

#[tokio::test]
async fn conforms() {
    let Some(loops) = Loops::new(&[128 << 20, 200 << 20, 128 << 20]) else {
        return;
    };
    let Some(lvm) = metadata_only(&loops.devices) else {
        return;
    };
    conformance(&lvm, &ByHand(&loops.devices), &loops.devices)
        .await
        .expect("conforms");
}

#[tokio::test]
async fn never_overwrites_and_leaves_no_half() {
    let Some(loops) = Loops::new(&[128 << 20, 128 << 20]) else {
        return;
    };
    let Some(lvm) = metadata_only(&loops.devices) else {
        return;
    };
    let made = Command::new("mkfs.ext4")
        .arg("-q")
        .arg(&loops.devices[1])
        .status()
        .expect("mkfs runs");
    assert!(made.success());
    let before = std::fs::read(loops._directory.path().join("1")).expect("reads");
    let request = CreateGroup {
        name: "quarry-test-overwrite".into(),
        devices: loops.devices.clone(),
        tags: vec![VERSION_TAG.into()],
    };
    let error = lvm.create_group(request).await.expect_err("must be refused");
    assert!(matches!(&error, CreateGroupError::DeviceRefused(_)), "{error}");
    assert!(error.to_string().contains("ext4 signature detected"), "{error}");
    let after = std::fs::read(loops._directory.path().join("1")).expect("reads");
    assert!(before == after, "the disk was changed");
    assert_eq!(
        lvm.report().await.expect("reads"),
        State::default(),
        "the blank disk was left alone too"
    );
}

#[tokio::test]
async fn a_disk_that_comes_back_is_restored() {
    let Some(loops) = Loops::new(&[128 << 20, 128 << 20]) else {
        return;
    };
    let Some(lvm) = metadata_only(&loops.devices) else {
        return;
    };
    let request = CreateGroup {
        name: "quarry-test-restore".into(),
        devices: loops.devices.clone(),
        tags: vec![VERSION_TAG.into()],
    };
    let group = lvm.create_group(request).await.expect("made").value;
    let volume = |name: &str, device: usize| CreateVolume {
        group: group.reference(),
        name: name.into(),
        extents: Extents(1),
        tags: vec![VERSION_TAG.into()],
        devices: vec![loops.devices[device].clone()],
        physical_volume: None,
    };
    let first = lvm.create_volume(volume("pvc-a", 0)).await.expect("made").value;
    let second = lvm.create_volume(volume("pvc-b", 1)).await.expect("made").value;

    let without = metadata_only(&loops.devices[..1]).expect("installed");
    let partial = without.report().await.expect("reads");
    assert!(partial.groups[0].partial && partial.groups[0].physical_volumes.iter().any(|pv| pv.device.is_none()));
    let refused = without
        .create_volume(volume("pvc-c", 0))
        .await
        .expect_err("LVM makes none");
    assert!(
        matches!(
            refused,
            CreateVolumeError::GroupUnusable {
                problem: GroupProblem::Partial,
                ..
            }
        ),
        "{refused}"
    );
    let refused = without
        .remove_volume(group.reference_to(&second))
        .await
        .expect_err("on the missing disk");
    assert!(matches!(refused, RemoveVolumeError::OnMissingDisk(_)), "{refused}");
    let removed = without.remove_volume(group.reference_to(&first)).await;
    let left = &removed.expect("on the other disk").state.groups[0].logical_volumes;
    assert!(left.len() == 1 && left[0].uuid == second.uuid, "{left:?}");

    let back = lvm.report().await.expect("reads");
    let missing: Vec<_> = back.groups[0].physical_volumes.iter().filter(|pv| pv.missing).collect();
    assert!(missing.len() == 1 && missing[0].device.is_some(), "{missing:?}");
    let restored = lvm
        .restore_physical_volume(group.reference(), missing[0].uuid.clone())
        .await
        .expect("restored");
    assert!(
        !restored.value.partial
            && restored
                .value
                .volume(&second.uuid)
                .is_some_and(|volume| !volume.partial)
    );
    lvm.create_volume(volume("pvc-c", 0)).await.expect("whole again");
}

#[tokio::test]
async fn twins_stay_apart_and_nothing_is_changed_in_them() {
    let Some(loops) = Loops::new(&[128 << 20, 128 << 20]) else {
        return;
    };
    let mut groups = Vec::new();
    for device in &loops.devices {
        let Some(lvm) = metadata_only(std::slice::from_ref(device)) else {
            return;
        };
        let request = CreateGroup {
            name: "quarry-test-twin".into(),
            devices: vec![device.clone()],
            tags: vec![VERSION_TAG.into()],
        };
        groups.push(lvm.create_group(request).await.expect("made").value);
    }
    let both = metadata_only(&loops.devices).expect("installed");
    let state = both.report().await.expect("reads");
    assert_eq!(state.groups_named("quarry-test-twin").count(), 2);
    let request = CreateVolume {
        group: groups[0].reference(),
        name: "pvc-a".into(),
        extents: Extents(1),
        tags: vec![VERSION_TAG.into()],
        devices: vec![],
        physical_volume: None,
    };
    let error = both
        .create_volume(request)
        .await
        .expect_err("LVM cannot tell them apart");
    assert!(
        matches!(
            error,
            CreateVolumeError::GroupUnusable {
                problem: GroupProblem::DuplicateName,
                ..
            }
        ),
        "{error}"
    );
}

fn words(mutation: Mutation) -> Vec<String> {
    let lvm = HostLvm::new(HostOptions::default());
    lvm.map(|lvm| lvm.backend().finish(lvm.backend().line(mutation)).arguments)
        .unwrap_or_default()
}

#[test]
fn nothing_is_ever_forced_on_a_disk() {
    let group = GroupRef {
        name: "vg".into(),
        uuid: "u".into(),
    };
    let devices = vec!["/dev/sdb".to_owned()];
    for mutation in [
        Mutation::CreateGroup(CreateGroup {
            name: "vg".into(),
            devices: devices.clone(),
            tags: vec![],
        }),
        Mutation::ExtendGroup {
            group: group.clone(),
            devices: devices.clone(),
        },
        Mutation::RemoveGroup(group.clone()),
        Mutation::RemoveLabels {
            devices: devices.clone(),
        },
        Mutation::RestorePhysicalVolume {
            group,
            device: "/dev/sdb".into(),
        },
    ] {
        let words = words(mutation);
        let forced = words
            .iter()
            .any(|word| word.starts_with("-f") || word.starts_with("-y") || word.contains("force"));
        assert!(!forced && !words.iter().any(|word| word == "--yes"), "{words:?}");
    }
}

#[test]
fn a_volume_is_removed_only_with_its_uuid_and_our_tag() {
    let group = GroupRef {
        name: "vg".into(),
        uuid: "vg-uuid".into(),
    };
    let volume = VolumeRef {
        group,
        name: "pvc-a".into(),
        uuid: "lv-uuid".into(),
    };
    let others = vec!["other-uuid".to_owned()];
    let words = words(Mutation::RemoveVolumes { volume, others });
    if let Some(at) = words.iter().position(|word| word == "-S") {
        assert_eq!(
            words[at + 1],
            "vg_uuid=vg-uuid && (lv_uuid=lv-uuid || lv_uuid=other-uuid) && lv_tags={quarry.version=1} \
             && lv_health_status!=partial && lv_role=[public] && lv_layout!=cache && lv_layout!=writecache"
        );
        assert!(
            !words
                .iter()
                .any(|word| word.starts_with("-f") || word.contains("force"))
        );
    } else {
        assert!(words.is_empty(), "{words:?}");
    }
}
