//! What is counted and timed, for Prometheus.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

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
            commands: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.0, 14))),
        };
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
        metrics
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
