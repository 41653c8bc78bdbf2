//! The disks and devices of this host (first form; `disks` and `wipe` take its place).

use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use quarry_crds::tags::{VolumeTags, Wipe};
use quarry_crds::volume_group::{DiskStanding, ListedDisk};

use crate::context::{Disks, Listing, Probed, Wiper};
use crate::lvm::command::Program;
use crate::lvm::{LogicalVolume, State, VolumeGroup};

/// Disks.
pub struct HostDisks {}
impl HostDisks {
    /// New.
    #[must_use]
    pub fn new(_proc: PathBuf) -> Self {
        Self {}
    }
}

async fn standing(device: &str, listing: &Listing, lvm: &State) -> DiskStanding {
    for group in &lvm.groups {
        for pv in &group.physical_volumes {
            if pv.device.as_deref() == Some(device) {
                if group.name == listing.volume_group {
                    return DiskStanding::Member {
                        physical_volume: pv.uuid.clone(),
                    };
                }
                return DiskStanding::Rejected {
                    reason: format!("belongs to volume group {}", group.name),
                };
            }
        }
    }
    match Program::find("blkid") {
        Ok(blkid) => match blkid.run("blkid", vec!["-p".into(), device.to_owned()]).await {
            Err(error) if matches!(error.exit, crate::lvm::command::Exit::Code(2)) => DiskStanding::Blank,
            Ok(output) => DiskStanding::Rejected {
                reason: String::from_utf8_lossy(&output.stdout).into_owned(),
            },
            Err(error) => DiskStanding::Rejected {
                reason: error.to_string(),
            },
        },
        Err(error) => DiskStanding::Rejected {
            reason: error.to_string(),
        },
    }
}

impl Disks for HostDisks {
    fn probe(&self, listings: Vec<Listing>, lvm: Arc<State>) -> BoxFuture<'_, Vec<Probed>> {
        async move {
            let mut probed = vec![];
            for listing in listings {
                let device = tokio::fs::canonicalize(&listing.path)
                    .await
                    .ok()
                    .map(|p| p.to_string_lossy().into_owned());
                let standing = match &device {
                    Some(device) => standing(device, &listing, &lvm).await,
                    None => DiskStanding::Missing {
                        reason: "there is no such device".into(),
                    },
                };
                let disk = ListedDisk {
                    path: listing.path,
                    device,
                    standing,
                };
                probed.push(Probed {
                    disk,
                    serial: None,
                    model: None,
                    rotational: None,
                    size: None,
                });
            }
            probed
        }
        .boxed()
    }
    fn of_model(&self, _model: String) -> BoxFuture<'_, Vec<String>> {
        async { vec![] }.boxed()
    }
}
/// Wiper.
pub struct HostWiper {}
impl HostWiper {
    /// New.
    #[must_use]
    pub fn new(_proc: PathBuf) -> Self {
        Self {}
    }
}
impl Wiper for HostWiper {
    fn wipe_new(&self, _g: VolumeGroup, v: LogicalVolume, tags: VolumeTags) -> BoxFuture<'_, Result<(), String>> {
        async move {
            if tags.wipe == Wipe::Zero {
                let program = Program::find("blkdiscard").map_err(|e| e.to_string())?;
                program
                    .run("blkdiscard", vec!["-z".into(), v.path])
                    .await
                    .map_err(|e| e.to_string())?;
            }
            Ok(())
        }
        .boxed()
    }
    fn wipe_old(&self, _g: VolumeGroup, _v: LogicalVolume, _t: VolumeTags) -> BoxFuture<'_, Result<(), String>> {
        async { Ok(()) }.boxed()
    }
    fn holders(&self, _g: VolumeGroup, _v: LogicalVolume) -> BoxFuture<'_, Vec<String>> {
        async { vec![] }.boxed()
    }
}
