//! Container images: those of the bed's own, and those of Quarry from the repository's Dockerfile. Built without a daemon.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::Flock,
    mount::{MntFlags, umount2},
};

use crate::{
    command,
    error::{During, Result},
    folders, packages, state,
    step::Step,
};

/// An image by the name that pods use, and the archive that holds it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageRef {
    /// The name that pods use; another content has another name.
    pub reference: String,
    /// A docker archive.
    pub archive: PathBuf,
}

/// The images of Quarry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    /// The manager's.
    pub manager: ImageRef,
    /// The extender's.
    pub extender: ImageRef,
}

/// The image that the sandbox of each pod runs; containerd's configuration in the node names it.
const PAUSE: &str = "localhost/pause:1";
/// The image for the pods of tests: `sh`, coreutils and util-linux.
pub const TOOLS: &str = "localhost/tools:1";
/// What our images are made from. The name is the public one, so that the same Dockerfile builds elsewhere.
const BASE: &str = "docker.io/library/debian:bookworm-slim";
const SUITE: &str = "bookworm";

/// The profile that the programs are compiled with for the bed: optimised, but a change is compiled in seconds.
const PROFILE: &str = "bed";
const PROFILE_SETTINGS: [&str; 5] = [
    "profile.bed.inherits=\"release\"",
    "profile.bed.opt-level=1",
    "profile.bed.lto=\"off\"",
    "profile.bed.codegen-units=16",
    "profile.bed.incremental=true",
];

const PAUSE_FILE: &str = include_str!("../images/pause/Dockerfile");
const TOOLS_FILE: &str = include_str!("../images/tools/Dockerfile");
const BASE_FILE: &str = include_str!("../images/base.Dockerfile");

/// The images that each node has from its first boot, built if the cache does not have them.
pub(crate) async fn of_the_bed() -> Result<Vec<ImageRef>> {
    let storage = Storage::open().await?;
    let images = async { Ok(vec![pause().await?, tools().await?]) }.await;
    storage.close().await?;
    images
}

async fn pause() -> Result<ImageRef> {
    let context = folders::cache()?.join("images/pause");
    let archive = folders::cache()?.join("images/pause-1.tar");
    if !archive.exists() {
        let step = Step::quiet("the pause image");
        folders::make(&context)?;
        let busybox = ["/usr/bin/busybox", "/bin/busybox"]
            .into_iter()
            .map(Path::new)
            .find(|path| path.exists());
        std::fs::copy(busybox.unwrap_or(Path::new("/bin/busybox")), context.join("busybox"))
            .during(|| "cannot copy busybox".to_owned())?;
        build_text(&context, PAUSE_FILE, PAUSE).await?;
        save(PAUSE, &archive).await?;
        step.done();
    }
    Ok(ImageRef {
        reference: PAUSE.to_owned(),
        archive,
    })
}

async fn tools() -> Result<ImageRef> {
    let archive = folders::cache()?.join("images/tools-1.tar");
    if !archive.exists() {
        base().await?;
        let step = Step::quiet("the image of tools for test pods");
        build_text(&folders::cache()?.join("images/tools"), TOOLS_FILE, TOOLS).await?;
        save(TOOLS, &archive).await?;
        step.done();
    }
    Ok(ImageRef {
        reference: TOOLS.to_owned(),
        archive,
    })
}

/// Makes the base image with debootstrap if the storage does not have it.
async fn base() -> Result<()> {
    if storage_has(BASE).await? {
        return Ok(());
    }
    let step = Step::begin("debootstrap makes debian:bookworm-slim (about a minute, once)");
    let context = folders::cache()?.join("images/base");
    let root = context.join("root");
    let _ = std::fs::remove_dir_all(&context);
    folders::make(&context)?;
    command::run(&[
        OsStr::new("debootstrap"),
        "--variant=minbase".as_ref(),
        SUITE.as_ref(),
        root.as_os_str(),
    ])
    .await?;
    for waste in [
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "usr/share/info",
        "var/cache/apt",
        "var/lib/apt/lists",
        "var/log",
    ] {
        let folder = root.join(waste);
        let _ = std::fs::remove_dir_all(&folder);
        folders::make(&folder)?;
    }
    let tar = context.join("root.tar");
    let argv: [&OsStr; 6] = [
        "tar".as_ref(),
        "-C".as_ref(),
        root.as_ref(),
        "-cf".as_ref(),
        tar.as_ref(),
        ".".as_ref(),
    ];
    command::run(&argv).await?;
    std::fs::remove_dir_all(&root).during(|| format!("cannot remove {}", root.display()))?;
    build_text(&context, BASE_FILE, BASE).await?;
    std::fs::remove_file(&tar).during(|| format!("cannot remove {}", tar.display()))?;
    step.done();
    Ok(())
}

/// Compiles the manager and the extender and builds their images from the repository's Dockerfile. What has not changed is not built again:
/// a change of code costs its compilation and some seconds. `$QUARRY_PROFILE` names a profile of cargo, such as `release`, to use instead
/// of one that compiles fast.
pub async fn build_images(repository: &Path) -> Result<Images> {
    build_images_with(repository, &[]).await
}

/// The same with features of cargo, for builds that are tested and never shipped.
pub async fn build_images_with(repository: &Path, features: &[&str]) -> Result<Images> {
    packages::ensure().await?;
    // Whoever else builds puts its programs at the same place, and takes them from there.
    let place = programs(repository);
    folders::make(&place)?;
    let _lock = state::lock_at(place.with_extension("lock")).await?;
    compile(repository, features).await?;
    let storage = Storage::open().await?;
    let images = build_both(repository).await;
    storage.close().await?;
    images
}

async fn build_both(repository: &Path) -> Result<Images> {
    base().await?;
    let step = Step::quiet("the images of the manager and the extender");
    let manager = build_target(repository, "manager").await?;
    let extender = build_target(repository, "extender").await?;
    step.done_with(format!("{}, {}", manager.reference, extender.reference));
    Ok(Images { manager, extender })
}

/// Where the Dockerfile looks for the programs of this machine's architecture, and kubectl for its plugin.
pub(crate) fn programs(repository: &Path) -> PathBuf {
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    repository.join("target/dist").join(architecture)
}

/// Builds the programs as static ones, and puts them where the Dockerfile looks for them.
async fn compile(repository: &Path, features: &[&str]) -> Result<()> {
    let triple = match std::env::consts::ARCH {
        "aarch64" => "aarch64-unknown-linux-gnu",
        _ => "x86_64-unknown-linux-gnu",
    };
    let profile = std::env::var("QUARRY_PROFILE").unwrap_or_else(|_| PROFILE.to_owned());
    let step = Step::begin(format!("cargo builds the manager and the extender (profile {profile})"));
    let flags = [("RUSTFLAGS", OsStr::new("-C target-feature=+crt-static"))];
    let mut argv = vec![
        "cargo",
        "build",
        "-q",
        "--profile",
        &profile,
        "--target",
        triple,
        "-p",
        "quarry-manager",
        "-p",
        "quarry-extender",
    ];
    argv.extend(features.iter().flat_map(|feature| ["--features", feature]));
    if profile == PROFILE {
        argv.extend(PROFILE_SETTINGS.iter().flat_map(|setting| ["--config", setting]));
    }
    command::run_in(repository, &flags, &argv).await?;
    let folder = if profile == "dev" { "debug" } else { &profile };
    let built = repository.join("target").join(triple).join(folder);
    let place = programs(repository);
    for program in ["quarry-manager", "quarry-extender", "kubectl-quarry"] {
        let (from, to) = (built.join(program), place.join(program));
        // Only a change of the file makes a new layer.
        if !same(&from, &to) {
            let argv: [&OsStr; 5] = [
                "install".as_ref(),
                "-p".as_ref(),
                "-T".as_ref(),
                from.as_ref(),
                to.as_ref(),
            ];
            command::run(&argv).await?;
        }
    }
    step.done();
    Ok(())
}

fn same(one: &Path, other: &Path) -> bool {
    let read = |path: &Path| std::fs::read(path).ok();
    read(one).is_some_and(|content| Some(content) == read(other))
}

async fn build_target(repository: &Path, target: &str) -> Result<ImageRef> {
    let name = format!("quarry-{target}");
    let options = ["--target", target, "--build-arg", "BINARIES=prebuilt"];
    let id = build(
        repository,
        &repository.join("Dockerfile"),
        &options,
        &format!("localhost/{name}:latest"),
    )
    .await?;
    let short: String = id.chars().take(12).collect();
    let folder = repository.join("target/images");
    folders::make(&folder)?;
    let image = ImageRef {
        reference: format!("localhost/{name}:{short}"),
        archive: folder.join(format!("{name}-{short}.tar")),
    };
    if !image.archive.exists() {
        let mut argv = buildah()?;
        argv.extend(["tag".into(), id.into(), OsString::from(&image.reference)]);
        command::run(&argv).await?;
        save(&image.reference, &image.archive).await?;
        remove_older(&folder, &name, &image.archive).await?;
    }
    Ok(image)
}

/// Keeps the archives of a target from filling the disk: the newest three stay.
async fn remove_older(folder: &Path, name: &str, newest: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut archives: Vec<_> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{name}-")) && entry.path() != newest)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    archives.sort();
    archives.reverse();
    for (_, path) in archives.into_iter().skip(2) {
        let tag = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .replace(&format!("{name}-"), "");
        let mut argv = buildah()?;
        argv.extend(["rmi".into(), format!("localhost/{name}:{tag}").into()]);
        // It may be gone already, or be a part of a newer one.
        command::try_run(Path::new("/"), &[], &argv).await?;
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// The storage of images in the cache, for one run at a time.
struct Storage {
    _lock: Flock<File>,
}

impl Storage {
    async fn open() -> Result<Self> {
        let lock = state::lock_at(folders::cache()?.join("containers.lock")).await?;
        Ok(Storage { _lock: lock })
    }

    /// Removes what buildah leaves behind: a container for each stage that only names another, and a mount of the storage on itself.
    async fn close(self) -> Result<()> {
        let mut argv = buildah()?;
        argv.extend(["rm", "--all"].map(OsString::from));
        command::try_run(Path::new("/"), &[], &argv).await?;
        let mount = folders::cache()?.join("containers/overlay");
        match umount2(&mount, MntFlags::MNT_DETACH) {
            // Not mounted, or not there.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            Err(error) => Err(error).during(|| format!("cannot unmount {}", mount.display())),
        }
    }
}

/// The arguments that keep buildah's storage in the cache.
fn buildah() -> Result<Vec<OsString>> {
    let storage = folders::cache()?.join("containers");
    Ok(vec![
        "buildah".into(),
        "--root".into(),
        storage.into(),
        "--runroot".into(),
        "/run/quarry-buildah".into(),
    ])
}

async fn storage_has(name: &str) -> Result<bool> {
    let mut argv = buildah()?;
    argv.extend(["images", "-q", name].map(OsString::from));
    Ok(command::try_run(Path::new("/"), &[], &argv).await?.success())
}

/// Builds from the text of a Dockerfile, which is put into its context.
async fn build_text(context: &Path, text: &str, name: &str) -> Result<String> {
    folders::make(context)?;
    let file = context.join("Dockerfile");
    folders::write(&file, text)?;
    build(context, &file, &[], name).await
}

/// Builds a Dockerfile into the storage under a name, and returns the identity of the image.
async fn build(context: &Path, file: &Path, options: &[&str], name: &str) -> Result<String> {
    let mut argv = buildah()?;
    argv.extend(
        [
            "bud",
            "-q",
            "--isolation",
            "chroot",
            "--network",
            "host",
            "--layers",
            "--pull-never",
        ]
        .map(OsString::from),
    );
    argv.extend(options.iter().map(OsString::from));
    argv.extend(["-t".into(), name.into(), "-f".into(), file.into(), context.into()]);
    let output = command::run(&argv).await?;
    Ok(output.lines().last().unwrap_or_default().trim().to_owned())
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
