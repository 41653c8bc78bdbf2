//! Which devices LVM may open: listed disks, and the recorded disks of Quarry's volume groups.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use quarry_crds::disk::{DeviceKind, DiskFacts};

use super::{Host, Prober, lvm_label, number_of};
use crate::disk_record::RecordedDisk;

/// A path, and what it leads to.
struct Candidate {
    path: String,
    facts: DiskFacts,
}

impl Prober {
    /// Paths of the devices that LVM may open, each device once. A listed disk need not be a physical volume yet; a recorded one
    /// must still carry the label that it had. What does not answer is left out, unless it is one of `members`: LVM has opened
    /// those before, and their group is not to look as if it had lost them.
    pub(super) async fn for_lvm(
        &self,
        listed: Vec<String>,
        recorded: Vec<RecordedDisk>,
        members: BTreeSet<(u32, u32)>,
    ) -> Vec<String> {
        let mut found: BTreeMap<(u32, u32), String> = BTreeMap::new();
        let host = Arc::clone(&self.host);
        let candidates = tokio::task::spawn_blocking(move || host.candidates(listed)).await;
        for candidate in candidates.unwrap_or_default() {
            let number = candidate.facts.number;
            if members.contains(&number) || !self.host.health.hangs(candidate.facts.device.clone()).await {
                found.entry(number).or_insert(candidate.path);
            }
        }
        for disk in recorded {
            let host = Arc::clone(&self.host);
            let candidates = tokio::task::spawn_blocking(move || (host.candidates(disk.paths), disk.physical_volume));
            let Ok((candidates, physical_volume)) = candidates.await else {
                continue;
            };
            for candidate in candidates {
                let number = candidate.facts.number;
                let known = found.contains_key(&number);
                if known || self.label(&candidate.facts).await.as_ref() == Some(&physical_volume) {
                    found.entry(number).or_insert(candidate.path);
                    break;
                }
            }
        }
        found.into_values().collect()
    }

    /// Of recorded disks, the physical volumes of those whose best name leads to a device that has another label, or none. What does
    /// not answer says nothing.
    pub(super) async fn overwritten(&self, recorded: Vec<RecordedDisk>) -> BTreeSet<String> {
        let mut overwritten = BTreeSet::new();
        for RecordedDisk { physical_volume, paths } in recorded {
            let host = Arc::clone(&self.host);
            let best = paths.into_iter().take(1).collect();
            let candidates = tokio::task::spawn_blocking(move || host.candidates(best)).await;
            for Candidate { facts, .. } in candidates.unwrap_or_default() {
                let device = facts.device.clone();
                if self.host.health.hangs(device.clone()).await {
                    continue;
                }
                let read = tokio::task::spawn_blocking(move || lvm_label::physical_volume(Path::new(&device)));
                if let Ok(Ok(label)) = read.await
                    && label.as_ref() != Some(&physical_volume)
                {
                    overwritten.insert(physical_volume.clone());
                }
            }
        }
        overwritten
    }

    /// The device of each physical volume, where just one disk or partition of this node has its label, by its best name.
    pub(super) async fn having_labels(&self, physical_volumes: BTreeSet<String>) -> BTreeMap<String, Vec<String>> {
        let host = Arc::clone(&self.host);
        let disks = tokio::task::spawn_blocking(move || host.disks_and_partitions()).await;
        let mut found: BTreeMap<String, Vec<DiskFacts>> = BTreeMap::new();
        for facts in disks.unwrap_or_default() {
            if let Some(label) = self
                .label(&facts)
                .await
                .filter(|label| physical_volumes.contains(label))
            {
                found.entry(label).or_default().push(facts);
            }
        }
        // Of two, one is a copy, and nobody can say which.
        let single = |(label, mut facts): (String, Vec<DiskFacts>)| {
            let only = facts.pop().filter(|_| facts.is_empty())?;
            Some((label, names(only)))
        };
        found.into_iter().filter_map(single).collect()
    }

    /// Whether a disk or partition of this node carries a volume group of that name.
    pub(super) async fn has_group(&self, name: String) -> bool {
        let host = Arc::clone(&self.host);
        let disks = tokio::task::spawn_blocking(move || host.disks_and_partitions()).await;
        for facts in disks.unwrap_or_default() {
            if self.host.health.hangs(facts.device.clone()).await {
                continue;
            }
            let read = tokio::task::spawn_blocking(move || lvm_label::volume_group(Path::new(&facts.device)));
            if matches!(read.await, Ok(Ok(Some(found))) if found == name) {
                return true;
            }
        }
        false
    }

    /// The names of devices by which they are found again, best first, the kernel's own last.
    pub(super) async fn names_of(&self, numbers: BTreeSet<(u32, u32)>) -> BTreeMap<(u32, u32), Vec<String>> {
        let host = Arc::clone(&self.host);
        let named = tokio::task::spawn_blocking(move || {
            let mut aliases = host.sysfs.aliases();
            let named = numbers.into_iter().filter_map(|number| {
                let mut facts = host.sysfs.outline(number).ok()?;
                facts.aliases = aliases.remove(&number).unwrap_or_default();
                Some((number, names(facts)))
            });
            named.collect()
        });
        named.await.unwrap_or_default()
    }

    /// UUID of the physical volume that a device is; `None` also where it does not answer.
    async fn label(&self, facts: &DiskFacts) -> Option<String> {
        let device = facts.device.clone();
        if !facts.may_be_opened_by_lvm() || self.host.health.hangs(device.clone()).await {
            return None;
        }
        let read = tokio::task::spawn_blocking(move || lvm_label::physical_volume(Path::new(&device)));
        read.await.ok()?.ok()?
    }
}

fn names(facts: DiskFacts) -> Vec<String> {
    let mut names = facts.aliases;
    names.push(facts.device);
    names
}

impl Host {
    /// What the paths lead to, where LVM may open it. Only sysfs is read.
    fn candidates(&self, paths: Vec<String>) -> Vec<Candidate> {
        let look = |path: String| {
            let facts = self.sysfs.outline(number_of(Path::new(&path)).ok()?).ok()?;
            facts.may_be_opened_by_lvm().then_some(Candidate { path, facts })
        };
        paths.into_iter().filter_map(look).collect()
    }

    /// Every disk, array and multipath device, and every partition, with its names; no loop device.
    fn disks_and_partitions(&self) -> Vec<DiskFacts> {
        let mut aliases = self.sysfs.aliases();
        let disks = self.sysfs.whole_disks();
        let partitions = disks.iter().flat_map(|disk| disk.partitions.clone());
        let partitions: Vec<DiskFacts> = partitions
            .filter_map(|device| self.sysfs.outline(number_of(Path::new(&device)).ok()?).ok())
            .collect();
        let mut all: Vec<DiskFacts> = disks.into_iter().chain(partitions).collect();
        all.retain(|facts| !matches!(facts.kind, DeviceKind::Loop { .. }) && facts.may_be_opened_by_lvm());
        for facts in &mut all {
            facts.aliases = aliases.remove(&facts.number).unwrap_or_default();
        }
        all
    }
}
