//! Looking at disks: everything that [`quarry_crds::disk`] needs to decide, read from the host. Nothing is written.
//!
//! What it needs of a container: the host's `/dev`, `/sys` and `/run/udev` (names and serial numbers), and a directory
//! in which process 1 is the host's (`hostPID`, or the host's `/proc` mounted), for the host's mounts.
//!
//! Two programs of util-linux are asked for signatures, because each sees something that the other does not, and both
//! ends of the disk are read here as well: a disk that cannot be read is not blank.

mod for_lvm;
mod health;
mod listed;
mod lvm_label;
pub(crate) mod mounts;
pub(crate) mod signatures;
pub(crate) mod sysfs;
pub(crate) mod users;

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quarry_crds::disk::{DeviceKind, DiskFacts, Membership, Verdict, Wanted, judge_all};
use quarry_crds::storage_class::check_disk_path;
use thiserror::Error;

pub use sysfs::device_number;

use crate::lvm::command::{NotInstalled, Observer, Program};
use crate::lvm::{State, VolumeGroup};
use health::Health;
use signatures::Signatures;
use sysfs::Sysfs;

/// `O_EXCL`: of a block device, a claim that fails where a mount, an array or another claim holds it.
pub(crate) const O_EXCL: i32 = 0o200;

/// udev and others look at a new disk for a moment: only who still has it open after that long uses it.
const OPENED_FOR: Duration = Duration::from_millis(300);
const OPENED_LOOKS: u32 = 4;

/// A disk that is to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The path by which it is listed.
    pub path: String,
    /// Name of the volume group that it is listed for.
    pub volume_group: String,
    /// Whether a kernel name such as /dev/sdb will do.
    pub allow_unstable_names: bool,
}

/// A disk that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What is known about it.
    pub facts: DiskFacts,
    /// Whether it may be taken.
    pub verdict: Verdict,
}

/// There is no disk to look at.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Absent {
    /// Nothing has that name.
    #[error("there is no such device on this node; attach the disk, or see \"ls -l /dev/disk/by-id\" for the names")]
    Missing,
    /// What has that name is no block device.
    #[error("is not a block device; list a disk, see \"lsblk\"")]
    NotBlock,
    /// It is no name of a device, whatever is there.
    #[error("{0}")]
    NoPath(&'static str),
    /// It could not be looked up.
    #[error("could not be looked up ({0}); see the kernel's log")]
    Unreadable(String),
}

/// Looks at the disks of this host.
#[derive(Debug, Clone)]
pub struct Prober {
    host: Arc<Host>,
}

#[derive(Debug)]
struct Host {
    proc: PathBuf,
    sysfs: Sysfs,
    signatures: Signatures,
    health: Health,
}

impl Prober {
    /// Finds the programs that it needs. In `proc`, process 1 is the host's.
    ///
    /// # Errors
    /// One of them is not installed.
    pub fn new(proc: PathBuf, observer: Option<Observer>) -> Result<Self, NotInstalled> {
        let signatures = Signatures::new(
            Program::find("blkid")?.with_observer(observer.clone()),
            Program::find("wipefs")?.with_observer(observer),
        );
        Ok(Self {
            host: Arc::new(Host {
                proc,
                sysfs: Sysfs::of_host(),
                signatures,
                health: Health::default(),
            }),
        })
    }

    /// Looks at disks, and decides about them, in the order given: of those that are one disk, the first is judged on
    /// its merits and the others are refused. `lvm` is what LVM has now.
    pub async fn look(&self, asked: Vec<Asked>, lvm: Arc<State>) -> Vec<Result<Found, Absent>> {
        let host = Arc::clone(&self.host);
        let paths: Vec<_> = asked.iter().map(|asked| asked.path.clone()).collect();
        let outlines = tokio::task::spawn_blocking(move || host.outlines(&paths)).await;
        let outlines = outlines.unwrap_or_else(|error| vec![Err(Absent::Unreadable(error.to_string())); asked.len()]);
        let mut looked = Vec::with_capacity(asked.len());
        for (asked, outline) in asked.iter().zip(outlines) {
            looked.push(match outline {
                Ok(facts) => Ok(self.examine(facts, &asked.volume_group, &lvm).await),
                Err(absent) => Err(absent),
            });
        }
        let host = Arc::clone(&self.host);
        let sectors = tokio::task::spawn_blocking(move || host.sectors(&lvm)).await;
        let sectors = sectors.unwrap_or_default();
        let present: Vec<_> = looked
            .iter()
            .zip(&asked)
            .filter_map(|(facts, asked)| {
                let wanted = Wanted {
                    volume_group: &asked.volume_group,
                    allow_unstable_names: asked.allow_unstable_names,
                    group_sector: sectors.get(&asked.volume_group).copied(),
                };
                facts.as_ref().ok().map(|facts| (facts.clone(), wanted))
            })
            .collect();
        let mut verdicts = judge_all(&present).into_iter();
        let judged = looked.into_iter().map(|facts| {
            let facts = facts?;
            let verdict = verdicts
                .next()
                .ok_or_else(|| Absent::Unreadable("it was not judged".to_owned()))?;
            Ok(Found { facts, verdict })
        });
        judged.collect()
    }

    /// The lasting path of every disk of a model, sorted; the kernel's name where there is no lasting one.
    pub async fn of_model(&self, model: String) -> Vec<String> {
        let host = Arc::clone(&self.host);
        let found = tokio::task::spawn_blocking(move || {
            let aliases = host.sysfs.aliases();
            // Some tools write blanks in a model as underscores.
            let plain = |text: &str| text.replace('_', " ").split_whitespace().collect::<Vec<_>>().join(" ");
            let model = plain(&model);
            let of_model = |facts: &DiskFacts| {
                facts.kind == DeviceKind::Disk && facts.model.as_ref().is_some_and(|found| plain(found) == model)
            };
            let disks = host.sysfs.whole_disks().into_iter().filter(of_model);
            let mut paths: Vec<_> = disks
                .map(|facts| {
                    let lasting = aliases.get(&facts.number).and_then(|names| names.first());
                    lasting.cloned().unwrap_or(facts.device)
                })
                .collect();
            paths.sort();
            paths
        });
        found.await.unwrap_or_default()
    }

    /// Who uses a device, and not only for a moment.
    async fn users(&self, number: (u32, u32)) -> Vec<String> {
        let mut found = Vec::new();
        for look in 0..OPENED_LOOKS {
            if look > 0 {
                tokio::time::sleep(OPENED_FOR).await;
            }
            let host = Arc::clone(&self.host);
            let users = tokio::task::spawn_blocking(move || users::find(&host.proc, host.sysfs.sys(), number));
            found = users.await.unwrap_or_else(|error| vec![error.to_string()]);
            if found.is_empty() {
                break;
            }
        }
        found
    }

    /// Adds what takes programs and time, unless the disk is a member of the group already.
    async fn examine(&self, mut facts: DiskFacts, volume_group: &str, lvm: &State) -> DiskFacts {
        facts.membership = membership(facts.number, lvm);
        if matches!(&facts.membership, Some(Membership::Group { name, .. }) if name == volume_group) {
            return facts;
        }
        let device = facts.device.clone();
        let claim = tokio::task::spawn_blocking(move || claim(Path::new(&device))).await;
        facts.exclusive = claim.unwrap_or_else(|error| Err(error.to_string()));
        facts.users = self.users(facts.number).await;
        let (signatures, unread) = self
            .host
            .signatures
            .find(&facts.device, facts.size.0, facts.logical_sector)
            .await;
        facts.signatures = signatures;
        facts.unread.extend(unread);
        if facts.membership.is_none() {
            facts.membership = facts
                .signatures
                .iter()
                .find_map(|signature| twin(signature.uuid.as_deref()?, lvm));
        }
        facts
    }
}

impl Host {
    /// What sysfs and the mount tables say, for each path.
    fn outlines(&self, paths: &[String]) -> Vec<Result<DiskFacts, Absent>> {
        let aliases = self.sysfs.aliases();
        let all = self.sysfs.whole_disks();
        let uses = mounts::Uses::read(&self.proc);
        paths
            .iter()
            .map(|path| self.outline(path, &aliases, &all, &uses))
            .collect()
    }

    /// Size in bytes of the logical sectors of each volume group's disks, by the group's name.
    fn sectors(&self, lvm: &State) -> HashMap<String, u32> {
        let of_group = |group: &VolumeGroup| {
            let mut disks = group.physical_volumes.iter().filter_map(|pv| pv.number);
            let sector = disks.find_map(|number| self.sysfs.outline(number).ok())?.logical_sector;
            Some((group.name.clone(), sector))
        };
        lvm.groups.iter().filter_map(of_group).collect()
    }

    fn outline(
        &self,
        path: &str,
        aliases: &HashMap<(u32, u32), Vec<String>>,
        all: &[DiskFacts],
        uses: &mounts::Uses,
    ) -> Result<DiskFacts, Absent> {
        // A NodeLocalStorage can name what no class can.
        check_disk_path(path).map_err(Absent::NoPath)?;
        let number = number_of(Path::new(path))?;
        let mut facts = self
            .sysfs
            .outline(number)
            .map_err(|error| Absent::Unreadable(error.to_string()))?;
        facts.asked = path.to_owned();
        facts.aliases = aliases.get(&number).cloned().unwrap_or_default();
        facts.twins = all
            .iter()
            .filter(|other| facts.is_same_disk(other))
            .map(|other| other.device.clone())
            .collect();
        let family = self.sysfs.family(number);
        facts.mounts = uses.mounts(&family);
        facts.swaps = uses.swaps(&family);
        facts.unread.extend(uses.problem.clone());
        Ok(facts)
    }
}

/// Major and minor number of the block device that a path leads to.
fn number_of(path: &Path) -> Result<(u32, u32), Absent> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => Ok(device_number(meta.rdev())),
        Ok(_) => Err(Absent::NotBlock),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Absent::Missing),
        Err(error) => Err(Absent::Unreadable(error.to_string())),
    }
}

/// Claims the device for a moment, for reading only.
fn claim(device: &Path) -> Result<(), String> {
    let file = OpenOptions::new().read(true).custom_flags(O_EXCL).open(device);
    file.map(drop).map_err(|error| error.to_string())
}

fn membership(number: (u32, u32), lvm: &State) -> Option<Membership> {
    for group in &lvm.groups {
        if let Some(pv) = group.physical_volumes.iter().find(|pv| pv.number == Some(number)) {
            return Some(Membership::Group {
                physical_volume: pv.uuid.clone(),
                volume_group: group.uuid.clone(),
                name: group.name.clone(),
            });
        }
    }
    let orphan = lvm.orphans.iter().find(|pv| pv.number == Some(number))?;
    Some(Membership::Orphan {
        physical_volume: orphan.uuid.clone(),
    })
}

/// A physical volume of that UUID, which LVM sees on another device.
fn twin(uuid: &str, lvm: &State) -> Option<Membership> {
    let (_, pv) = lvm.physical_volume(uuid)?;
    Some(Membership::Twin {
        physical_volume: pv.uuid.clone(),
        device: pv.device.clone()?,
    })
}

#[cfg(test)]
mod tests;
