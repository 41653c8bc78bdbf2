//! What is counted and timed, for Prometheus.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use quarry_crds::Bytes;
use quarry_crds::device_nodes::DeviceNodes;
use quarry_crds::disk_faults::{DiskFault, FaultKind};

use crate::wipe::{Figures, Purpose};

/// Which LVM command, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Command {
    command: &'static str,
    outcome: &'static str,
}

/// The manager's metrics.
#[derive(Clone)]
pub struct Metrics {
    provision: Histogram,
    given_back: Counter,
    removed: Counter,
    failures: Family<Kind, Counter>,
    commands: Family<Command, Histogram>,
    orphans: Family<InGroup, Gauge>,
    size: Family<InGroup, Gauge>,
    free: Family<InGroup, Gauge>,
    metadata_free: Family<InGroup, Gauge>,
    ready: Family<InGroup, Gauge>,
    volumes_hit: Family<InGroup, Gauge>,
    disks_at_fault: Family<DisksAtFault, Gauge>,
    wipes: Family<WipesOf, Gauge>,
    wipe_left: Family<WipeOf, Gauge>,
    device_nodes: Family<By, Gauge>,
    surroundings: Gauge,
}

/// Wipes in a volume group: of volumes that are `new` or `old`, and whether they wait or write.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WipesOf {
    vg: String,
    of: &'static str,
    phase: &'static str,
}

/// Wipes in a volume group, of volumes that are `new` or `old`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WipeOf {
    vg: String,
    of: &'static str,
}

/// Which volume group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InGroup {
    vg: String,
}

/// Which volume group, and what is wrong: `DiskMissing` or `DiskFailing`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DisksAtFault {
    vg: String,
    fault: &'static str,
}

/// Who makes the devices of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct By {
    by: &'static str,
}

/// What failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

impl Metrics {
    /// Registers them all.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            provision: Histogram::new(exponential_buckets(0.01, 2.0, 12)),
            given_back: Counter::default(),
            removed: Counter::default(),
            failures: Family::default(),
            volumes_hit: Family::default(),
            disks_at_fault: Family::default(),
            device_nodes: Family::default(),
            surroundings: Gauge::default(),
            commands: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.0, 14))),
            orphans: Family::default(),
            size: Family::default(),
            free: Family::default(),
            metadata_free: Family::default(),
            ready: Family::default(),
            wipes: Family::default(),
            wipe_left: Family::default(),
        };
        let gauges = [
            (
                "quarry_orphan_volumes",
                "Logical volumes of Quarry without PersistentVolume and claim",
                &metrics.orphans,
            ),
            ("quarry_vg_size_bytes", "Size of a volume group", &metrics.size),
            ("quarry_vg_free_bytes", "Free space of a volume group", &metrics.free),
            (
                "quarry_vg_ready",
                "Whether volumes can be made in a volume group: 1, or 0",
                &metrics.ready,
            ),
            (
                "quarry_vg_metadata_free_bytes",
                "What is left of the metadata area of a volume group, which limits the number of its volumes",
                &metrics.metadata_free,
            ),
        ];
        registry.register(
            "quarry_device_nodes",
            "1 for who makes the devices of volumes in /dev: udev, lvm_in_step (LVM, waiting for udev), lvm",
            metrics.device_nodes.clone(),
        );
        registry.register(
            "quarry_surroundings_problems",
            "What LVM needs around it on this node and is missing; while it is not 0 nothing is served",
            metrics.surroundings.clone(),
        );
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        registry.register(
            "quarry_provision_seconds",
            "From seeing a claim selected to this node to its PersistentVolume",
            metrics.provision.clone(),
        );
        registry.register(
            "quarry_provision_rejects",
            "Claims given back to the scheduler",
            metrics.given_back.clone(),
        );
        registry.register(
            "quarry_volumes_removed",
            "Logical volumes removed",
            metrics.removed.clone(),
        );
        registry.register(
            "quarry_reconcile_failures",
            "Attempts that failed, by kind",
            metrics.failures.clone(),
        );
        registry.register(
            "quarry_lvm_command_seconds",
            "Times of LVM commands",
            metrics.commands.clone(),
        );
        registry.register(
            "quarry_volumes_hit",
            "Volumes that lie on a disk that is missing or answers with errors",
            metrics.volumes_hit.clone(),
        );
        registry.register(
            "quarry_disks_at_fault",
            "Disks of volume groups that are missing or answer with errors",
            metrics.disks_at_fault.clone(),
        );
        registry.register(
            "quarry_wipes",
            "Volumes that wait to be wiped, or are being wiped, before they are handed out (new) or removed (old)",
            metrics.wipes.clone(),
        );
        registry.register(
            "quarry_wipe_left_bytes",
            "What is left to be written of these volumes",
            metrics.wipe_left.clone(),
        );
        metrics
    }

    /// These wipes wait and go on.
    pub fn wipes(&self, figures: &BTreeMap<(String, Purpose), Figures>) {
        self.wipes.clear();
        self.wipe_left.clear();
        for ((vg, purpose), figures) in figures {
            let of = match purpose {
                Purpose::New => "new",
                Purpose::Old => "old",
            };
            for (phase, count) in [("waiting", figures.waiting), ("writing", figures.writing)] {
                let labels = WipesOf {
                    vg: vg.clone(),
                    of,
                    phase,
                };
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.wipes.get_or_create(&labels).set(count);
            }
            let left = i64::try_from(figures.left).unwrap_or(i64::MAX);
            self.wipe_left.get_or_create(&WipeOf { vg: vg.clone(), of }).set(left);
        }
    }

    /// So many volumes of a group are hit by faults of disks.
    pub fn volumes_hit(&self, group: &str, count: usize) {
        let labels = InGroup { vg: group.to_owned() };
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.volumes_hit.get_or_create(&labels).set(count);
    }

    /// These disks of a group are at fault, and so many are gone with the whole group.
    pub fn disks_at_fault(&self, group: &str, faults: &[DiskFault], gone: usize) {
        for kind in [FaultKind::Missing, FaultKind::Failing(String::new())] {
            let labels = DisksAtFault {
                vg: group.to_owned(),
                fault: kind.reason(),
            };
            let count = faults
                .iter()
                .filter(|fault| fault.kind.reason() == kind.reason())
                .count();
            let count = if kind == FaultKind::Missing {
                count + gone
            } else {
                count
            };
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.disks_at_fault.get_or_create(&labels).set(count);
        }
    }

    /// A volume was made, from claim to PersistentVolume.
    pub fn provisioned(&self, took: Duration) {
        self.provision.observe(took.as_secs_f64());
    }

    /// A claim was given back to the scheduler.
    pub fn given_back(&self) {
        self.given_back.inc();
    }

    /// A volume was removed.
    pub fn removed(&self) {
        self.removed.inc();
    }

    /// So many orphans are in a volume group.
    pub fn orphans(&self, group: &str, count: usize) {
        let labels = InGroup { vg: group.to_owned() };
        self.orphans
            .get_or_create(&labels)
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Size and free space of a volume group, and of its metadata area.
    pub fn group(&self, group: &str, size: Bytes, free: Bytes, metadata_free: Bytes) {
        let labels = InGroup { vg: group.to_owned() };
        for (gauge, bytes) in [
            (&self.size, size),
            (&self.free, free),
            (&self.metadata_free, metadata_free),
        ] {
            gauge
                .get_or_create(&labels)
                .set(i64::try_from(bytes.0).unwrap_or(i64::MAX));
        }
    }

    /// Volumes can be made in a volume group, or not.
    pub fn ready(&self, group: &str, ready: bool) {
        let labels = InGroup { vg: group.to_owned() };
        self.ready.get_or_create(&labels).set(i64::from(ready));
    }

    /// A volume group of that size is gone with its disks: nothing is free, and what else is in it is not known.
    pub fn lost_group(&self, group: &str, size: Bytes) {
        self.group(group, size, Bytes(0), Bytes(0));
        self.orphans.remove(&InGroup { vg: group.to_owned() });
    }

    /// Nobody names a volume group any more, and no volume is in it.
    pub fn forget(&self, group: &str) {
        self.no_group(group);
        let labels = InGroup { vg: group.to_owned() };
        self.ready.remove(&labels);
        self.volumes_hit.remove(&labels);
        for kind in [FaultKind::Missing, FaultKind::Failing(String::new())] {
            self.disks_at_fault.remove(&DisksAtFault {
                vg: group.to_owned(),
                fault: kind.reason(),
            });
        }
    }

    /// A volume group was not made yet.
    pub fn no_group(&self, group: &str) {
        let labels = InGroup { vg: group.to_owned() };
        for gauge in [&self.orphans, &self.size, &self.free, &self.metadata_free] {
            gauge.remove(&labels);
        }
    }

    /// Who makes the devices of volumes.
    pub fn device_nodes(&self, by: DeviceNodes) {
        for one in DeviceNodes::ALL {
            let labels = By { by: one.word() };
            self.device_nodes.get_or_create(&labels).set(i64::from(one == by));
        }
    }

    /// So much of what LVM needs around it is missing.
    pub fn surroundings(&self, problems: usize) {
        self.surroundings.set(i64::try_from(problems).unwrap_or(i64::MAX));
    }

    /// An attempt failed.
    pub fn failed(&self, kind: &'static str) {
        self.failures.get_or_create(&Kind { kind }).inc();
    }

    /// An LVM command ended.
    pub fn command(&self, command: &'static str, outcome: &'static str, took: Duration) {
        let labels = Command { command, outcome };
        self.commands.get_or_create(&labels).observe(took.as_secs_f64());
    }
}
