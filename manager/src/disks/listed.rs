//! The disks of NodeLocalStorages, looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use quarry_crds::disk::{Reason, Verdict};
use quarry_crds::volume_group::{DiskStanding, ListedDisk};

use super::{Absent, Asked, Found, Prober};
use crate::context::{Disks, Listing, Probed};
use crate::disk_record::RecordedDisk;
use crate::lvm::State;

impl Disks for Prober {
    fn probe(&self, listings: Vec<Listing>, lvm: Arc<State>) -> BoxFuture<'_, Vec<Probed>> {
        async move {
            let asked = |listing: &Listing| Asked {
                path: listing.path.clone(),
                volume_group: listing.volume_group.clone(),
                allow_unstable_names: listing.allow_unstable_names,
            };
            let looked = self.look(listings.iter().map(asked).collect(), lvm).await;
            listings
                .into_iter()
                .zip(looked)
                .map(|(listing, looked)| probed(listing.path, looked))
                .collect()
        }
        .boxed()
    }

    fn names_are_coming(&self) -> BoxFuture<'_, bool> {
        let queue = self.host.sysfs.udev_queue();
        async move { tokio::fs::try_exists(queue).await.unwrap_or_default() }.boxed()
    }

    fn of_model(&self, model: String) -> BoxFuture<'_, Vec<String>> {
        Self::of_model(self, model).boxed()
    }

    fn fault(&self, device: String) -> BoxFuture<'_, Option<String>> {
        self.host.health.fault(device).boxed()
    }

    fn for_lvm(
        &self,
        listed: Vec<String>,
        recorded: Vec<RecordedDisk>,
        members: BTreeSet<(u32, u32)>,
    ) -> BoxFuture<'_, Vec<String>> {
        Self::for_lvm(self, listed, recorded, members).boxed()
    }

    fn overwritten(&self, recorded: Vec<RecordedDisk>) -> BoxFuture<'_, BTreeSet<String>> {
        Self::overwritten(self, recorded).boxed()
    }

    fn has_group(&self, name: String) -> BoxFuture<'_, bool> {
        Self::has_group(self, name).boxed()
    }

    fn having_labels(&self, physical_volumes: BTreeSet<String>) -> BoxFuture<'_, BTreeMap<String, Vec<String>>> {
        Self::having_labels(self, physical_volumes).boxed()
    }

    fn names_of(&self, numbers: BTreeSet<(u32, u32)>) -> BoxFuture<'_, BTreeMap<(u32, u32), Vec<String>>> {
        Self::names_of(self, numbers).boxed()
    }

    fn stands_on(&self, device: (u32, u32), others: &[(u32, u32)]) -> Option<bool> {
        let below = self.host.sysfs.below(device)?;
        Some(others.iter().all(|other| below.contains(other)))
    }
}

fn probed(path: String, looked: Result<Found, Absent>) -> Probed {
    match looked {
        Ok(Found { facts, verdict }) => {
            let reason = verdict.rejection();
            let standing = match verdict {
                Verdict::Blank => DiskStanding::Blank,
                Verdict::Member { physical_volume, .. } => DiskStanding::Member { physical_volume },
                Verdict::Rejected(reasons) => {
                    let reason = reason.unwrap_or_default();
                    if reasons.iter().any(|reason| matches!(reason, Reason::NotProbed(_))) {
                        DiskStanding::Unreadable { reason }
                    } else {
                        DiskStanding::Rejected { reason }
                    }
                }
            };
            Probed {
                disk: ListedDisk {
                    path,
                    device: Some(facts.device),
                    standing,
                },
                serial: facts.serial,
                model: facts.model,
                rotational: facts.rotational,
                size: Some(facts.size),
                print: Some(facts.print),
            }
        }
        Err(absent) => {
            let reason = absent.to_string();
            let standing = match absent {
                Absent::Missing => DiskStanding::Missing { reason },
                Absent::NotBlock | Absent::NoPath(_) | Absent::Unreadable(_) => DiskStanding::Rejected { reason },
            };
            let disk = ListedDisk {
                path,
                device: None,
                standing,
            };
            Probed {
                disk,
                serial: None,
                model: None,
                rotational: None,
                size: None,
                print: None,
            }
        }
    }
}
