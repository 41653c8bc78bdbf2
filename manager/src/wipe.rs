//! Making logical volumes free of old data, and finding who holds one.
//!
//! Extents that are handed out held other volumes before. What a pod must not see is decided by how it sees the volume:
//! through a file system, which shows nothing that it did not write, or as a raw device, which shows everything. A
//! volume for a file system needs its **signatures** gone, so that kubelet makes a new file system instead of mounting
//! an old one; a raw volume needs **zeros**. LVM has wiped signatures when it made the volume; what is done here stands
//! also where that was interrupted, and is proved by looking before a PersistentVolume is made.
//!
//! What becomes of the data of a volume that is deleted is the choice of its class. A discard (BLKDISCARD) is a hint: a
//! disk may keep what it is told to forget, and what is read afterwards is its own affair. Only two things promise zeros:
//! the kernel's word that it deallocated blocks so that they read as zeros (fallocate(2) with FALLOC_FL_PUNCH_HOLE on a
//! block device, which a disk without such a command refuses), and zeros that were written (BLKZEROOUT).
//!
//! Everything here starts from the beginning when it is started again. Before the first byte is written, the device is
//! shown to be the very volume that is meant: its device-mapper UUID is made of the UUIDs of volume group and volume.

mod background;
mod control;
mod devices;
mod holders;
mod volumes;
mod zero;

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use background::{Figures, News, Order, Progress, Purpose, Stop, Wipes};
pub use control::Control;
use quarry_crds::Bytes;
use quarry_crds::disk::Signature;
use quarry_crds::tags::Wipe;
use thiserror::Error;

use crate::disks::device_number;
use crate::disks::signatures::Signatures;
use crate::disks::sysfs::{self, read};
use crate::lvm::command::{CommandError, Limits, NotInstalled, Observer, Program};
use crate::lvm::{LogicalVolume, VolumeGroup};

/// How long the device of a new volume may take to appear.
const APPEARS_WITHIN: Duration = Duration::from_secs(10);

/// Wipes logical volumes.
#[derive(Debug, Clone)]
pub struct Eraser {
    proc: PathBuf,
    sys: PathBuf,
    blkdiscard: Program,
    wipefs: Program,
    signatures: std::sync::Arc<Signatures>,
    devices: devices::Devices,
}

/// A logical volume, and its device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where its device is: `/dev/<group>/<volume>`.
    pub path: PathBuf,
    /// LVM's UUID of its group.
    pub group_uuid: String,
    /// LVM's UUID of it.
    pub volume_uuid: String,
    /// Its size, in bytes.
    pub size: Bytes,
}

/// A volume was not wiped, or is not clean.
#[derive(Debug, Error)]
pub enum WipeError {
    /// It has no device.
    #[error("there is no device {0}; is the logical volume active?")]
    NotThere(PathBuf),
    /// The device is something else.
    #[error("{path} is not the logical volume that is meant: its device-mapper UUID is {found:?}, not {expected:?}")]
    NotTheVolume {
        /// Where the device is.
        path: PathBuf,
        /// Its device-mapper UUID.
        found: String,
        /// What that would have to be.
        expected: String,
    },
    /// A command failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// It could not be opened or written.
    #[error("{}: {cause}", .path.display())]
    Io {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        cause: io::Error,
    },
    /// Its device does not answer now.
    #[error(
        "the device {0} is suspended; \"dmsetup resume {0}\" on the node ends that, if no command of LVM is at work"
    )]
    Suspended(PathBuf),
    /// A thread is at work on it that has not ended.
    #[error("an earlier read or write of {0} has not ended: its disk does not answer")]
    Stuck(PathBuf),
    /// It carries something after it was wiped.
    #[error("{} still carries {}", .path.display(), found.join(", "))]
    NotClean {
        /// The device.
        path: PathBuf,
        /// What.
        found: Vec<String>,
    },
    /// It was told to stop.
    #[error("stopped before it was done; it starts again from the beginning")]
    Cancelled,
}

impl Target {
    /// A volume of a group.
    #[must_use]
    pub fn of(group: &VolumeGroup, volume: &LogicalVolume) -> Self {
        Self {
            path: PathBuf::from(&volume.path),
            group_uuid: group.uuid.clone(),
            volume_uuid: volume.uuid.clone(),
            size: volume.size,
        }
    }

    /// What device-mapper calls it.
    fn device_mapper_uuid(&self) -> String {
        format!(
            "LVM-{}{}",
            self.group_uuid.replace('-', ""),
            self.volume_uuid.replace('-', "")
        )
    }

    /// The number of its device, once that is shown to be the volume.
    fn resolve(&self, sys: &Path) -> Result<(u32, u32), WipeError> {
        let number = match fs::metadata(&self.path) {
            Ok(meta) if meta.file_type().is_block_device() => device_number(meta.rdev()),
            Ok(_) => return Err(WipeError::NotThere(self.path.clone())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(WipeError::NotThere(self.path.clone()));
            }
            Err(cause) => {
                return Err(WipeError::Io {
                    path: self.path.clone(),
                    cause,
                });
            }
        };
        let directory = sysfs::directory(sys, number);
        let (found, expected) = (
            read(&directory, "dm/uuid").unwrap_or_default(),
            self.device_mapper_uuid(),
        );
        if found == expected {
            return match read(&directory, "dm/suspended").as_deref() {
                Some("1") => Err(WipeError::Suspended(self.path.clone())),
                _ => Ok(number),
            };
        }
        Err(WipeError::NotTheVolume {
            path: self.path.clone(),
            found,
            expected,
        })
    }
}

impl Eraser {
    /// Finds the programs that it needs. In `proc`, processes are the host's.
    ///
    /// # Errors
    /// One of them is not installed.
    pub fn new(proc: PathBuf, observer: Option<Observer>) -> Result<Self, NotInstalled> {
        let find = |name: &str| Program::find(name).map(|program| program.with_observer(observer.clone()));
        // A piece of a slow disk is written with zeros by one command.
        let patient = Limits {
            warn_after: Duration::from_secs(60),
            deadline: Duration::from_secs(900),
            ..Limits::default()
        };
        let wipefs = find("wipefs")?;
        Ok(Self {
            proc,
            sys: "/sys".into(),
            blkdiscard: find("blkdiscard")?.with_limits(patient),
            signatures: std::sync::Arc::new(Signatures::new(find("blkid")?, wipefs.clone())),
            wipefs,
            devices: devices::Devices::default(),
        })
    }

    /// Wipes a volume that is about to be handed out, waiting for its device, and proves that nothing is left.
    ///
    /// # Errors
    /// It is not clean, or not known to be: it must not be handed out.
    pub async fn wipe_new(&self, target: &Target, how: Wipe, control: &Control) -> Result<(), WipeError> {
        self.wait_for(target, control).await?;
        match how {
            // LVM has erased what it knew when it made the volume, and what was read just now is where libblkid, and so
            // kubelet, looks for a signature: there is none. It would tell the same, for a seventh of what a volume costs.
            Wipe::Signatures if self.erase_places(target).await? => return Ok(()),
            Wipe::Signatures => {}
            Wipe::Discard => {
                if !zero::deallocated(self, target, control).await? {
                    self.discard(target).await?;
                    zero::whole(self, target, control).await?;
                }
            }
            Wipe::Zero => zero::whole(self, target, control).await?,
        }
        crash_point!("wipe-before-proof");
        match self.prove_clean(target).await {
            // Hardly ever is anything left elsewhere.
            Err(WipeError::NotClean { .. }) if how == Wipe::Signatures => {}
            proved => return proved,
        }
        self.erase_known(target).await?;
        self.prove_clean(target).await
    }

    /// Wipes a volume that is about to be removed, so that nothing on it is recognised any more, and its other blocks as
    /// was asked for. It must be active.
    ///
    /// # Errors
    /// It could not be written, has no device, or is held by somebody.
    pub async fn wipe_old(&self, target: &Target, how: Wipe, control: &Control) -> Result<(), WipeError> {
        self.wait_for(target, control).await?;
        match how {
            Wipe::Signatures => {}
            Wipe::Discard if zero::deallocated(self, target, control).await? => {}
            Wipe::Discard if self.discard(target).await? => {}
            Wipe::Discard | Wipe::Zero => zero::whole(self, target, control).await?,
        }
        self.erase_signatures(target).await
    }

    /// What is recognised on a volume.
    ///
    /// # Errors
    /// It could not be looked at.
    pub async fn carries(&self, target: &Target) -> Result<Vec<String>, WipeError> {
        target.resolve(&self.sys)?;
        let path = target.path.to_string_lossy();
        let (signatures, problems) = self.signatures.find(&path, target.size.0, 512).await;
        if problems.is_empty() {
            return Ok(signatures.iter().map(Signature::to_string).collect());
        }
        Err(WipeError::NotClean {
            path: target.path.clone(),
            found: problems,
        })
    }

    /// Shows that nothing is recognised on a volume.
    ///
    /// # Errors
    /// Something is, or it could not be looked at.
    pub async fn prove_clean(&self, target: &Target) -> Result<(), WipeError> {
        target.resolve(&self.sys)?;
        let path = target.path.to_string_lossy();
        let (signatures, mut found) = self.signatures.any(&path, target.size.0, 512).await;
        found.extend(signatures.iter().map(Signature::to_string));
        if found.is_empty() {
            Ok(())
        } else {
            Err(WipeError::NotClean {
                path: target.path.clone(),
                found,
            })
        }
    }

    /// Waits until the device of a volume is there.
    ///
    /// # Errors
    /// It does not appear, or is something else.
    pub async fn wait_for(&self, target: &Target, control: &Control) -> Result<(), WipeError> {
        let begun = Instant::now();
        loop {
            match target.resolve(&self.sys) {
                Ok(_) => return Ok(()),
                Err(error) if begun.elapsed() > APPEARS_WITHIN => return Err(error),
                Err(WipeError::NotThere(_) | WipeError::NotTheVolume { .. } | WipeError::Suspended(_)) => {}
                Err(error) => return Err(error),
            }
            tokio::select! {
                () = control.cancel.cancelled() => return Err(WipeError::Cancelled),
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    }

    /// Who has the volume open, for people; nobody where it has no device.
    pub async fn holders(&self, target: &Target, volume: &LogicalVolume) -> Vec<String> {
        let number = match target.resolve(&self.sys) {
            Ok(number) => number,
            // Whoever suspended it is at work on it.
            Err(error @ WipeError::Suspended(_)) => return vec![error.to_string()],
            Err(_) => return Vec::new(),
        };
        let open = volume.open != Some(false);
        let (proc, sys, target, name) = (self.proc.clone(), self.sys.clone(), target.clone(), volume.name.clone());
        let found = tokio::task::spawn_blocking(move || holders::find(&proc, &sys, &target.path, number, &name, open));
        found.await.unwrap_or_default()
    }

    async fn erase_signatures(&self, target: &Target) -> Result<(), WipeError> {
        self.erase_places(target).await?;
        self.erase_known(target).await
    }

    /// Erases wherever a signature can be; whether there was nothing.
    async fn erase_places(&self, target: &Target) -> Result<bool, WipeError> {
        let were_zeros = zero::signature_places(self, target).await?;
        crash_point!("wipe-after-ends");
        Ok(were_zeros)
    }

    /// Whatever libblkid recognises, wherever it is.
    async fn erase_known(&self, target: &Target) -> Result<(), WipeError> {
        let arguments = vec![
            "--all".to_owned(),
            "--quiet".to_owned(),
            target.path.to_string_lossy().into_owned(),
        ];
        self.wipefs.run("wipefs", arguments).await?;
        Ok(())
    }

    /// Tells the disk to forget every block; false where the disk cannot do that.
    async fn discard(&self, target: &Target) -> Result<bool, WipeError> {
        target.resolve(&self.sys)?;
        let output = self
            .blkdiscard
            .run_any("blkdiscard", vec![target.path.to_string_lossy().into_owned()])
            .await?;
        if output.code != 0 {
            tracing::info!(path = %target.path.display(), error = output.stderr.trim(), "not discarded");
        }
        Ok(output.code == 0)
    }
}
