//! Programs that are built from Go modules. What they are built from is pinned by the go.mod and go.sum of this repository; what was built
//! once is kept in the cache, in a folder for each version.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

use crate::{
    command,
    error::{BedError, During, Result},
    folders, state,
    step::Step,
};

/// The Go that builds everything here: the newest that one of the go.mod files asks for.
pub(crate) const GO: &str = "1.26.6";

/// A module of this repository, and the programs that are built in it.
pub(crate) struct GoModule {
    /// The name of its folder in the cache.
    pub(crate) name: String,
    /// Its files: path within the module, and content.
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// go.mod and go.sum.
    pub(crate) pinned: (&'static str, &'static str),
    /// The packages of the programs; a program has the last part of the name.
    pub(crate) packages: &'static [&'static str],
    /// Tags of the build, separated by commas.
    pub(crate) tags: &'static str,
    /// Flags for the linker.
    pub(crate) linker_flags: String,
}

impl GoModule {
    /// Where its programs are kept.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        Ok(folders::cache()?.join(&self.name))
    }

    /// Builds the programs that are not in the cache, and returns their folder.
    pub(crate) async fn ensure(&self) -> Result<PathBuf> {
        let folder = self.folder()?;
        if self.missing(&folder).is_empty() {
            return Ok(folder);
        }
        // Two clusters may come up at once. Who had to wait finds that nothing is missing any more.
        folders::make(&folder)?;
        let _lock = state::lock_at(folder.join("building.lock")).await?;
        let missing = self.missing(&folder);
        if missing.is_empty() {
            return Ok(folder);
        }
        let module = self.lay_out(&folder)?;
        let names: Vec<_> = missing.iter().map(|package| program(package)).collect();
        let step = Step::begin(format!(
            "building {} of {} (minutes, once for every version)",
            names.join(", "),
            self.name
        ));
        let unfinished = folder.join("unfinished");
        folders::make(&unfinished)?;
        self.build(&unfinished, &module, &missing).await?;
        for name in names {
            let finished = folder.join(name);
            std::fs::rename(unfinished.join(name), &finished)
                .during(|| format!("cannot put {} in its place", finished.display()))?;
        }
        // Only what was built was in it.
        let _ = std::fs::remove_dir(&unfinished);
        step.done();
        Ok(folder)
    }

    /// Writes the module into its folder in the cache.
    fn lay_out(&self, folder: &Path) -> Result<PathBuf> {
        let module = folder.join("module");
        let pinned = [("go.mod", self.pinned.0), ("go.sum", self.pinned.1)];
        for (path, content) in pinned.iter().chain(self.files) {
            let path = module.join(path);
            path.parent().map_or(Ok(()), folders::make)?;
            folders::write(&path, content)?;
        }
        Ok(module)
    }

    fn missing(&self, folder: &Path) -> Vec<&'static str> {
        let there = |package: &&str| folder.join(program(package)).exists();
        let packages = self.packages.iter().copied();
        packages.filter(|package| !there(package)).collect()
    }

    /// All in one run of go, which compiles what they share once and links them side by side.
    async fn build(&self, unfinished: &Path, module: &Path, packages: &[&str]) -> Result<()> {
        let flags = [
            "-buildvcs=false",
            "-trimpath",
            "-tags",
            self.tags,
            "-ldflags",
            &self.linker_flags,
        ];
        // With a slash at its end it is a folder to go, even for one program.
        let output = unfinished.join("");
        let mut argv: Vec<&OsStr> = ["go", "build"].iter().chain(&flags).map(OsStr::new).collect();
        argv.extend([OsStr::new("-o"), output.as_ref()]);
        argv.extend(packages.iter().map(OsStr::new));
        run_go(module, &argv).await.map(drop)
    }
}

/// The program that go makes of a package.
fn program(package: &str) -> &str {
    package.rsplit('/').next().unwrap_or(package)
}

/// Runs go in a module; its error names the remedy where there is no Go.
async fn run_go<S: AsRef<OsStr>>(module: &Path, argv: &[S]) -> Result<String> {
    let environment = [
        ("CGO_ENABLED", OsString::from("0")),
        ("GOFLAGS", OsString::from("-mod=readonly")),
    ];
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_os_str()));
    command::run_in(module, &environment, argv)
        .await
        .map_err(|error| match error {
            BedError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => BedError::Missing {
                what: "the Go toolchain is missing".to_owned(),
                remedy: format!("install Go {GO} or newer from https://go.dev/dl and put its bin folder on the PATH"),
            },
            other => other,
        })
}
