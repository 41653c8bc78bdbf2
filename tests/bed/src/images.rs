//! Container images: those of the bed's own, and those of Quarry from the repository's Dockerfile. Built without a daemon.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use crate::{
    command,
    error::{During, Result},
    folders,
    step::Step,
};

/// The image that the sandbox of each pod runs; containerd's configuration in the node names it.
pub(crate) const PAUSE: &str = "localhost/pause:1";
const PAUSE_FILE: &str = include_str!("../images/pause/Dockerfile");

/// Builds the pause image if the cache does not have it, and returns its archive.
pub(crate) async fn pause() -> Result<PathBuf> {
    let folder = folders::cache()?.join("images");
    folders::make(&folder)?;
    let archive = folder.join("pause-1.tar");
    if archive.exists() {
        return Ok(archive);
    }
    let step = Step::quiet("the pause image");
    let context = folder.join("pause");
    folders::make(&context)?;
    folders::write(&context.join("Dockerfile"), PAUSE_FILE)?;
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().map(Path::new).find(|path| path.exists());
    std::fs::copy(busybox.unwrap_or(Path::new("/bin/busybox")), context.join("busybox")).during(|| "cannot copy busybox".to_owned())?;
    build(&context, &context.join("Dockerfile"), &[], PAUSE).await?;
    save(PAUSE, &archive).await?;
    step.done();
    Ok(archive)
}

/// The arguments that keep buildah's storage in the cache.
fn buildah() -> Result<Vec<OsString>> {
    let storage = folders::cache()?.join("containers");
    Ok(vec!["buildah".into(), "--root".into(), storage.into(), "--runroot".into(), "/run/quarry-buildah".into()])
}

/// Builds a Dockerfile into the storage under a name.
async fn build(context: &Path, file: &Path, options: &[&str], name: &str) -> Result<()> {
    let mut argv = buildah()?;
    argv.extend(["bud", "-q", "--isolation", "chroot", "--network", "host", "--layers"].map(OsString::from));
    argv.extend(options.iter().map(OsString::from));
    argv.extend(["-t".into(), name.into(), "-f".into(), file.into(), context.into()]);
    command::run(&argv).await.map(drop)
}

/// Writes an image of the storage into an archive that containerd can load.
async fn save(name: &str, archive: &Path) -> Result<()> {
    let unfinished = archive.with_extension("unfinished");
    let _ = std::fs::remove_file(&unfinished);
    let mut target = OsString::from("docker-archive:");
    target.push(&unfinished);
    target.push(":");
    target.push(name);
    let mut argv = buildah()?;
    argv.extend(["push".into(), "-q".into(), name.into(), target]);
    command::run(&argv).await?;
    std::fs::rename(&unfinished, archive).during(|| format!("cannot put {} in its place", archive.display()))
}
