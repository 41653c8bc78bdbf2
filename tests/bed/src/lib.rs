//! A true Kubernetes cluster on one machine: the real control plane and kubelets, nodes with kernels, disks and LVM of their own, all of it
//! in one network namespace. Tests bring it up or find it again, and break it.
//!
//! ```no_run
//! # async fn example() -> Result<(), quarry_bed::BedError> {
//! use quarry_bed::{Boot, Cluster, Options};
//! let cluster = Cluster::up(Options::default()).await?;
//! let node = cluster.node("node1")?;
//! println!("{}", node.run_ok(["lsblk"]).await?);
//! node.kill().await?;
//! node.boot(Boot::default()).await?;
//! # Ok(())
//! # }
//! ```

mod agent;
pub mod args;
mod cluster;
mod command;
mod containerd;
mod control_plane;
mod daemon;
mod disks;
mod error;
mod flows;
mod folders;
mod go_module;
mod hotplug;
mod images;
mod kernel;
pub mod kubernetes;
mod lifecycle;
mod link;
mod mconsole;
mod network;
mod node;
mod node_init;
mod node_services;
pub mod packages;
mod pki;
mod quarry;
mod state;
mod step;
mod udev;

use std::{env, path::PathBuf};

pub use cluster::{Cluster, Options};
pub use command::Output;
pub use control_plane::{Process, SECOND_SCHEDULER};
pub use disks::{Boot, Disk};
pub use error::BedError;
pub use folders::{cache, repository};
pub use hotplug::Guest;
pub use images::{ImageRef, Images, TOOLS, build_images, build_images_with};
pub use node::Node;
pub use node_init::run_if_node;
pub use quarry::NAMESPACE;
pub use step::Step;
pub use udev::Udev;

/// The program `bed`, which the nodes run as their first process: this one, or the one built beside it, or `$QUARRY_BED`.
pub fn program() -> Result<PathBuf, BedError> {
    let own = env::current_exe().unwrap_or_default();
    if own.file_name().is_some_and(|name| name == "bed") {
        return Ok(own);
    }
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join("bed"));
    env::var_os("QUARRY_BED")
        .map(PathBuf::from)
        .into_iter()
        .chain(beside)
        .find(|path| path.is_file())
        .ok_or_else(|| BedError::Missing {
            what: format!("the program `bed` is not beside {}", own.display()),
            remedy: "build it with `cargo build -p quarry-bed`, or name it in QUARRY_BED".to_owned(),
        })
}
