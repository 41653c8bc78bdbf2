//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// Quarry's LVM manager: makes volume groups of this node's disks and carves volumes where pods are placed.
#[derive(Debug, Clone, Parser)]
#[command(name = "quarry-manager", version)]
pub struct Args {
    /// Name of this node in Kubernetes.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Where health, readiness and metrics are served.
    #[arg(long, env = "QUARRY_ADMIN_LISTEN", default_value = "0.0.0.0:9897")]
    pub admin_listen: SocketAddr,
    /// Where the host's processes are seen: process 1 there must be the host's, for its mounts.
    #[arg(long, env = "QUARRY_PROC", default_value = "/proc")]
    pub proc: PathBuf,
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
