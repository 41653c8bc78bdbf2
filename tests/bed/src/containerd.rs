//! containerd, built from its Go module: kubelets from 1.35 on want containerd 2, which Debian 12 does not have.

use std::path::PathBuf;

use crate::{error::Result, go_module::GoModule};

const MODULE: &str = include_str!("../containerd/go.mod");
const SUMS: &str = include_str!("../containerd/go.sum");

/// The version, such as `v2.4.2`. It stands in `containerd/go.mod`, and nowhere else.
pub(crate) fn version() -> &'static str {
    MODULE
        .lines()
        .find_map(|line| line.strip_prefix("require github.com/containerd/containerd/v2 "))
        .map_or("v0.0.0", str::trim)
}

fn module() -> GoModule {
    GoModule {
        name: format!("containerd-{}", version()),
        files: &[("tools.go", include_str!("../containerd/tools.go"))],
        pinned: (MODULE, SUMS),
        packages: &[
            "github.com/containerd/containerd/v2/cmd/containerd",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/ctr",
        ],
        // The nodes keep layers in an overlay: what is not needed is not built.
        tags: "no_btrfs,no_devmapper,no_zfs",
        linker_flags: format!(
            "-s -w -X github.com/containerd/containerd/v2/version.Version={}",
            version()
        ),
    }
}

/// Where the programs are kept.
pub(crate) fn folder() -> Result<PathBuf> {
    module().folder()
}

/// Builds the programs that are not in the cache, and returns their folder.
pub(crate) async fn ensure() -> Result<PathBuf> {
    module().ensure().await
}
