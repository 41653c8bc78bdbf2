//! The Kubernetes programs, built from the Go module `k8s.io/kubernetes`. Its version stands in `kubernetes/go.mod`, and nowhere else.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use crate::{
    command,
    error::{BedError, During, Result},
    folders, state,
    step::Step,
};

const MODULE: &str = include_str!("../kubernetes/go.mod");
const SUMS: &str = include_str!("../kubernetes/go.sum");
const TOOLS: &str = include_str!("../kubernetes/tools.go");

/// Built in this order: the first compiles what the others share.
const PROGRAMS: [&str; 5] = [
    "kube-scheduler",
    "kube-apiserver",
    "kube-controller-manager",
    "kubelet",
    "kubectl",
];

/// The version of Kubernetes, such as `v1.34.4`.
pub fn version() -> &'static str {
    MODULE
        .lines()
        .find_map(|line| line.strip_prefix("require k8s.io/kubernetes "))
        .map_or("v0.0.0", str::trim)
}

/// Where the programs of this version are kept.
pub(crate) fn folder() -> Result<PathBuf> {
    Ok(folders::cache()?.join(format!("kubernetes-{}", version())))
}

/// Builds the programs that are not in the cache, and returns their folder.
pub async fn ensure() -> Result<PathBuf> {
    let folder = folder()?;
    let missing = || -> Vec<_> {
        let there = |program: &&str| folder.join(program).exists();
        PROGRAMS.into_iter().filter(|program| !there(program)).collect()
    };
    if missing().is_empty() {
        return Ok(folder);
    }
    // Two clusters may come up at once. Who had to wait finds that nothing is missing any more.
    folders::make(&folder)?;
    let _lock = state::lock_at(folder.join("building.lock")).await?;
    let missing = missing();
    let module = folder.join("module");
    folders::make(&module)?;
    folders::write(&module.join("go.mod"), MODULE)?;
    folders::write(&module.join("go.sum"), SUMS)?;
    folders::write(&module.join("tools.go"), TOOLS)?;
    for program in missing {
        build(&folder, &module, program).await?;
    }
    Ok(folder)
}

async fn build(folder: &Path, module: &Path, program: &str) -> Result<()> {
    let step = Step::begin(format!(
        "building {program} {} (minutes, once for every version)",
        version()
    ));
    let unfinished = folder.join(format!("{program}.building"));
    let flags = format!("-s -w -X k8s.io/component-base/version.gitVersion={}", version());
    let package = format!("k8s.io/kubernetes/cmd/{program}");
    let argv: [&OsStr; 9] = [
        "go".as_ref(),
        "build".as_ref(),
        "-buildvcs=false".as_ref(),
        "-trimpath".as_ref(),
        "-ldflags".as_ref(),
        flags.as_ref(),
        "-o".as_ref(),
        unfinished.as_ref(),
        package.as_ref(),
    ];
    command::run_in(module, &[("CGO_ENABLED", OsStr::new("0"))], &argv)
        .await
        .map_err(|error| match error {
            BedError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => BedError::Missing {
                what: "the Go toolchain is missing".to_owned(),
                remedy: "install Go 1.24 or newer from https://go.dev/dl and put its bin folder on the PATH".to_owned(),
            },
            other => other,
        })?;
    let finished = folder.join(program);
    std::fs::rename(&unfinished, &finished).during(|| format!("cannot put {} in its place", finished.display()))?;
    step.done();
    Ok(())
}
