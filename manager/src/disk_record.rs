//! The disks of Quarry's volume groups on this node, kept in a file of the host: by it LVM's devices are known before the API
//! server is reached, and for groups that no StorageClass names any more.
//!
//! Nothing is decided by it but which devices LVM may open, and each must carry the label that is recorded. Where the file is
//! lost, the groups of listed disks are as before, and those of others are found again once a class lists their disks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use quarry_crds::tags::Owner;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::lvm::{State, VolumeGroup};

/// The name of the file in the manager's folder on the host.
const FILE: &str = "volume-groups.json";

/// What is recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskRecord {
    /// UID of the namespace kube-system of the cluster.
    #[serde(default)]
    pub cluster: String,
    /// The volume groups.
    #[serde(default)]
    pub volume_groups: Vec<RecordedGroup>,
}

/// A volume group that is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedGroup {
    /// Its name.
    pub name: String,
    /// LVM's UUID of it.
    pub uuid: String,
    /// Its disks.
    pub disks: Vec<RecordedDisk>,
}

/// A disk that is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedDisk {
    /// LVM's UUID of the physical volume.
    pub physical_volume: String,
    /// Its names under /dev, best first.
    pub paths: Vec<String>,
}

impl DiskRecord {
    /// Every disk.
    #[must_use]
    pub fn disks(&self) -> Vec<RecordedDisk> {
        self.volume_groups
            .iter()
            .flat_map(|group| group.disks.clone())
            .collect()
    }

    /// The record once this is seen. `names` are those of the devices by their numbers. A group that is not seen stays recorded
    /// as long as a disk of it may come back; of a disk that is missing, the names that it had stay.
    #[must_use]
    pub fn after(&self, state: &State, owner: &Owner, names: &BTreeMap<(u32, u32), Vec<String>>) -> Self {
        let mut groups: BTreeMap<&str, RecordedGroup> = self
            .volume_groups
            .iter()
            .map(|group| (group.uuid.as_str(), group.clone()))
            .collect();
        for group in state.groups.iter().filter(|group| owner.acts_on(&group.tags)) {
            let before = groups.get(group.uuid.as_str()).cloned();
            groups.insert(&group.uuid, recorded(group, before.as_ref(), names));
        }
        // One that became another owner's is not ours to open.
        groups.retain(|uuid, _| state.group(uuid).is_none_or(|group| owner.acts_on(&group.tags)));
        Self {
            cluster: owner.cluster.clone(),
            volume_groups: groups.into_values().collect(),
        }
    }

    /// The record without the groups that are gone.
    #[must_use]
    pub fn without(&self, gone: impl Fn(&RecordedGroup) -> bool) -> Self {
        Self {
            cluster: self.cluster.clone(),
            volume_groups: self
                .volume_groups
                .iter()
                .filter(|group| !gone(group))
                .cloned()
                .collect(),
        }
    }
}

fn recorded(
    group: &VolumeGroup,
    before: Option<&RecordedGroup>,
    names: &BTreeMap<(u32, u32), Vec<String>>,
) -> RecordedGroup {
    let disks = group.physical_volumes.iter().filter_map(|pv| {
        let now = pv.number.and_then(|number| names.get(&number).cloned());
        let then = || {
            let mut disks = before?.disks.iter();
            Some(disks.find(|disk| disk.physical_volume == pv.uuid)?.paths.clone())
        };
        Some(RecordedDisk {
            physical_volume: pv.uuid.clone(),
            paths: now.or_else(then)?,
        })
    });
    RecordedGroup {
        name: group.name.clone(),
        uuid: group.uuid.clone(),
        disks: disks.collect(),
    }
}

/// The record could not be written.
#[derive(Debug, Error)]
#[error("{} cannot be written: {source}; after a restart volume groups that no class names are not served", path.display())]
pub struct RecordError {
    path: PathBuf,
    source: std::io::Error,
}

/// The record of this node, and its file.
#[derive(Debug, Default)]
pub struct DiskRecords {
    /// None where nothing is kept.
    file: Option<PathBuf>,
    known: Mutex<DiskRecord>,
}

impl DiskRecords {
    /// Reads what is recorded in a folder. A file that is missing or damaged is an empty record.
    pub async fn open(folder: &Path) -> Self {
        let file = folder.join(FILE);
        let known = match tokio::fs::read(&file).await {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), %error, "the record of volume groups is damaged; it is made anew");
                DiskRecord::default()
            }),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(file = %file.display(), %error, "the record of volume groups cannot be read");
                }
                DiskRecord::default()
            }
        };
        Self {
            file: Some(file),
            known: Mutex::new(known),
        }
    }

    /// What is recorded.
    #[must_use]
    pub fn get(&self) -> DiskRecord {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// UUIDs of the physical volumes that a volume group had, by its UUID; none where it is not recorded.
    #[must_use]
    pub fn physical_volumes(&self, volume_group: &str) -> BTreeSet<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let groups = known.volume_groups.iter().filter(|group| group.uuid == volume_group);
        groups
            .flat_map(|group| group.disks.iter().map(|disk| disk.physical_volume.clone()))
            .collect()
    }

    /// Records something else, and writes it where it is.
    ///
    /// # Errors
    /// The file could not be written. It is tried again at the next change.
    pub async fn set(&self, record: DiskRecord) -> Result<(), RecordError> {
        if *self.known.lock().unwrap_or_else(PoisonError::into_inner) == record {
            return Ok(());
        }
        if let Some(file) = &self.file {
            write(file, &record).await.map_err(|source| RecordError {
                path: file.clone(),
                source,
            })?;
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = record;
        Ok(())
    }
}

/// Puts a file in its place whole: after a power cut there is the one or the other.
async fn write(file: &Path, record: &DiskRecord) -> std::io::Result<()> {
    use tokio::io::AsyncWriteExt as _;
    let unfinished = file.with_extension("unfinished");
    let mut out = tokio::fs::File::create(&unfinished).await?;
    out.write_all(&serde_json::to_vec_pretty(record)?).await?;
    out.sync_all().await?;
    tokio::fs::rename(&unfinished, file).await
}

#[cfg(test)]
mod tests {
    use quarry_crds::Bytes;
    use quarry_crds::tags::VERSION_TAG;

    use super::*;
    use crate::lvm::{CreateGroup, FakeLvm, Lvm as _};

    fn owner() -> Owner {
        Owner {
            node: "w1".into(),
            cluster: "c".into(),
        }
    }

    async fn group(lvm: &FakeLvm, name: &str, devices: &[&str]) -> VolumeGroup {
        let request = CreateGroup {
            name: name.to_owned(),
            devices: devices.iter().map(|device| (*device).to_owned()).collect(),
            tags: vec![VERSION_TAG.to_owned()],
        };
        lvm.create_group(request).await.expect("made").value
    }

    #[tokio::test]
    async fn groups_and_disks_that_are_away_stay_recorded() {
        let lvm = FakeLvm::new(&[
            ("/dev/sda", Bytes::gib(1)),
            ("/dev/sdb", Bytes::gib(1)),
            ("/dev/sdc", Bytes::gib(1)),
        ]);
        let made = group(&lvm, "fast", &["/dev/sda", "/dev/sdb"]).await;
        let numbers: Vec<(u32, u32)> = made.physical_volumes.iter().filter_map(|pv| pv.number).collect();
        let names: BTreeMap<_, _> = numbers
            .iter()
            .zip(["/dev/disk/by-id/a", "/dev/disk/by-id/b"])
            .map(|(number, name)| (*number, vec![name.to_owned()]))
            .collect();
        let seen = async || lvm.report().await.expect("read");
        let record = DiskRecord::default().after(&seen().await, &owner(), &names);
        assert_eq!(record.cluster, "c");
        let paths: Vec<_> = record.disks().into_iter().flat_map(|disk| disk.paths).collect();
        assert_eq!(paths, ["/dev/disk/by-id/a", "/dev/disk/by-id/b"]);

        lvm.lose_disk("/dev/sdb");
        assert_eq!(record.after(&seen().await, &owner(), &names), record, "a disk is away");
        assert_eq!(
            record.after(&State::default(), &owner(), &names),
            record,
            "the group is away"
        );
        lvm.by_hand(|state| state.groups[0].physical_volumes.truncate(1));
        assert_eq!(
            record.after(&seen().await, &owner(), &names).disks().len(),
            1,
            "vgreduce"
        );
        lvm.by_hand(|state| state.groups[0].tags.push("quarry.node=w2".to_owned()));
        assert_eq!(
            record.after(&seen().await, &owner(), &names).volume_groups,
            vec![],
            "handed over"
        );
        lvm.by_hand(|state| state.groups[0].tags.clear());
        let empty = DiskRecord::default().after(&seen().await, &owner(), &names);
        assert_eq!(empty.volume_groups, vec![], "not made by Quarry");
        assert_eq!(record.without(|group| group.name == "fast").volume_groups, vec![]);
    }

    #[tokio::test]
    async fn what_was_written_is_read_back_and_damage_is_no_end() {
        let folder = tempfile::tempdir().expect("a folder");
        let records = DiskRecords::open(folder.path()).await;
        assert_eq!(records.get(), DiskRecord::default());
        let record = DiskRecord {
            cluster: "c".into(),
            volume_groups: vec![RecordedGroup {
                name: "fast".into(),
                uuid: "g".into(),
                disks: vec![RecordedDisk {
                    physical_volume: "a".into(),
                    paths: vec!["/dev/disk/by-id/a".into()],
                }],
            }],
        };
        records.set(record.clone()).await.expect("written");
        assert_eq!(records.physical_volumes("g"), BTreeSet::from(["a".to_owned()]));
        assert_eq!(DiskRecords::open(folder.path()).await.get(), record);
        tokio::fs::write(folder.path().join(FILE), b"{\"volumeGroups\": 7")
            .await
            .expect("damaged");
        assert_eq!(DiskRecords::open(folder.path()).await.get(), DiskRecord::default());
        drop(folder);
        let error = records
            .set(DiskRecord::default())
            .await
            .expect_err("no folder")
            .to_string();
        assert!(error.contains(FILE) && error.contains("cannot be written"), "{error}");
    }
}
