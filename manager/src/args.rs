//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use quarry_crds::liveness::RENEWED_EVERY;
use quarry_crds::orphans::Policy;

/// As it is written on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OrphanPolicy {
    /// They are reported: condition, event, metric.
    Report,
    /// They are removed once all of the proof is there that nobody wants them.
    Delete,
}

impl From<OrphanPolicy> for Policy {
    fn from(policy: OrphanPolicy) -> Self {
        match policy {
            OrphanPolicy::Report => Self::Report,
            OrphanPolicy::Delete => Self::Delete,
        }
    }
}

/// Quarry's LVM manager: makes volume groups of this node's disks and carves volumes where pods are placed.
#[derive(Debug, Clone, Parser)]
#[command(name = "quarry-manager", version)]
pub struct Args {
    /// Name of this node in Kubernetes.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Where health, readiness and metrics are served: [::] is every address of IPv6 and IPv4.
    #[arg(long, env = "QUARRY_ADMIN_LISTEN", default_value = "[::]:9897")]
    pub admin_listen: SocketAddr,
    /// Where the host's processes are seen: process 1 there must be the host's, for its mounts.
    #[arg(long, env = "QUARRY_PROC", default_value = "/proc")]
    pub proc: PathBuf,
    /// The file that keeps two managers on a node apart, in a folder of the host that every manager sees.
    #[arg(long, env = "QUARRY_LOCK", default_value = "/run/lock/lvm/quarry-manager")]
    pub lock: PathBuf,
    /// A folder of the host that outlives this process: which disks belong to Quarry's volume groups, and LVM's backups of their
    /// metadata, are kept there.
    #[arg(long, env = "QUARRY_STATE", default_value = "/var/lib/quarry")]
    pub state: PathBuf,
    /// Name of this process for people, in the lock: in a container, the name of its pod.
    #[arg(long, env = "HOSTNAME", default_value = "quarry-manager")]
    pub holder: String,
    /// Take the taint quarry.dev/agent-not-ready off this node once its volumes are active and its capacity is published.
    /// For kubelets that register their node with it: --register-with-taints=quarry.dev/agent-not-ready=:NoSchedule
    #[arg(long, env = "QUARRY_STARTUP_TAINT")]
    pub startup_taint: bool,
    /// Publish CSIStorageCapacity objects too, for a kube-scheduler that does not ask the extender.
    #[arg(long, env = "QUARRY_STORAGE_CAPACITY")]
    pub storage_capacity: bool,
    /// The namespace of those objects, and of the Lease that tells the extender that this manager is at work.
    #[arg(long, env = "QUARRY_NAMESPACE", default_value = "quarry-system")]
    pub namespace: String,
    /// How often that Lease is renewed, such as 60s.
    #[arg(long, env = "QUARRY_LEASE_EVERY", default_value_t = RENEWED_EVERY.into())]
    pub lease_every: humantime::Duration,
    /// The lvm program. Where none is named, it is looked for in /sbin, /usr/sbin, /bin and /usr/bin.
    #[arg(long, env = "QUARRY_LVM")]
    pub lvm: Option<PathBuf>,
    /// How long a command of LVM may take before it is asked to end, and killed 10 s later. What it did is read then.
    #[arg(long, env = "QUARRY_LVM_DEADLINE", default_value = "120s")]
    pub lvm_deadline: humantime::Duration,
    /// What is done about logical volumes of Quarry that have neither PersistentVolume nor claim.
    #[arg(long, env = "QUARRY_ORPHANS", value_enum, default_value = "report")]
    pub orphans: OrphanPolicy,
    /// For how long the API server must have known nothing of a volume before it is removed, with --orphans=delete.
    #[arg(long, env = "QUARRY_ORPHAN_GRACE", default_value = "1h")]
    pub orphan_grace: humantime::Duration,
    /// For how long volumes that were handed out are gathered before their tags say so, by one command for all of them.
    #[arg(long, env = "QUARRY_READY_WITHIN", default_value = "60s")]
    pub ready_within: humantime::Duration,
    /// For how long a blank disk that a selector of a class has chosen must have been unchanged and unused before it is taken.
    #[arg(long, env = "QUARRY_SELECTED_AFTER", default_value = "60s")]
    pub selected_after: humantime::Duration,
    /// How many claims are served at a time; LVM itself does one thing at a time in a volume group.
    #[arg(long, env = "QUARRY_CONCURRENCY", default_value_t = 8)]
    pub concurrency: u16,
    /// What is logged, such as `info` or `quarry_manager=debug`.
    #[arg(long, env = "QUARRY_LOG", default_value = "info")]
    pub log: String,
    /// Format of the log: text or json.
    #[arg(long, env = "QUARRY_LOG_FORMAT", default_value = "text")]
    pub log_format: quarry_process::LogFormat,
}
