//! The first process of a node: gives it a root of its own, starts the services and collects the dead.

use std::{
    convert::Infallible,
    env,
    ffi::CString,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        reboot::{RebootMode, reboot},
        wait::wait,
    },
    unistd::{chdir, chroot, getpid, pivot_root, sync},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{BedError, During, Result},
    folders,
    images::ImageRef,
    node_services,
    udev::Udev,
};

/// The variable of the kernel's command line that names the node's [`Config`].
pub(crate) const VARIABLE: &str = "QUARRY_NODE";
/// The argument with which the first process starts the services.
const SERVICES: &str = "node-services";

/// What a node has to know to come up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Config {
    /// Its name.
    pub(crate) node: String,
    /// Its number, from 1.
    pub(crate) index: u8,
    /// How many nodes there are.
    pub(crate) nodes: u8,
    /// The name of the cluster.
    pub(crate) cluster: String,
    /// The `bed` program itself.
    pub(crate) bed: PathBuf,
    /// The folder of its kernel's modules.
    pub(crate) modules: PathBuf,
    /// The kubelet.
    pub(crate) kubelet: PathBuf,
    /// The folder of containerd's programs.
    pub(crate) containerd: PathBuf,
    /// The kubelet's kubeconfig.
    pub(crate) kubeconfig: PathBuf,
    /// Images to have before the kubelet starts.
    pub(crate) images: Vec<ImageRef>,
    /// What tells this machine from others that have the name of the node; empty for the first.
    pub(crate) machine: String,
    /// What of udev it has.
    pub(crate) udev: Udev,
}

/// Whether this process is to be the first of a node, or its services; if so, it does not come back before the node is off.
pub fn run_if_node() -> Option<ExitCode> {
    let path = PathBuf::from(env::var_os(VARIABLE)?);
    let services = env::args_os().nth(1).is_some_and(|argument| argument == SERVICES);
    if !services && getpid().as_raw() != 1 {
        return None;
    }
    let result = read(&path).and_then(|config| {
        if services {
            node_services::run(&config)
        } else {
            first_process(&path, &config)
        }
    });
    let Err(error) = result;
    eprintln!("node: {error}");
    if services {
        return Some(ExitCode::FAILURE);
    }
    power_off();
    Some(ExitCode::FAILURE)
}

fn read(path: &Path) -> Result<Config> {
    let text = folders::read(path)?;
    serde_json::from_str(&text).map_err(|source| BedError::Json {
        what: path.display().to_string(),
        source,
    })
}

/// Flushes everything and switches the node off.
pub(crate) fn power_off() {
    sync();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("node: cannot switch off: {error}");
}

fn first_process(path: &Path, config: &Config) -> Result<Infallible> {
    own_root(config)?;
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/dev/shm"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        mount_new(kind, target)?;
    }
    umount2("/old", MntFlags::MNT_DETACH).during(|| "cannot leave the old root".to_owned())?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)
        .during(|| "cannot share mounts with pods".to_owned())?;
    let mut services = Command::new(&config.bed)
        .arg(SERVICES)
        .env(VARIABLE, path)
        .env(
            "PATH",
            format!(
                "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                config.containerd.display()
            ),
        )
        .env("HOME", "/root")
        .spawn()
        .during(|| format!("cannot start {}", config.bed.display()))?;
    let id = services.id().cast_signed();
    loop {
        match wait() {
            Ok(status) if status.pid().is_some_and(|pid| pid.as_raw() == id) => {
                return Err(BedError::Missing {
                    what: format!("the node's services ended: {status:?}"),
                    remedy: "see above".to_owned(),
                });
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                let _ = services.kill();
                return Err(error).during(|| "cannot wait for processes".to_owned());
            }
        }
    }
}

fn mount_new(kind: &str, target: &str) -> Result<()> {
    folders::make(Path::new(target))?;
    match mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>) {
        Err(Errno::EBUSY) => Ok(()),
        other => other.during(|| format!("cannot mount {kind} on {target}")),
    }
}

/// The machine's root, read-only, under an overlay in the node's memory.
fn own_root(config: &Config) -> Result<()> {
    let scratch = Path::new("/mnt");
    let none = None::<&str>;
    mount(
        Some("tmpfs"),
        scratch,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=600M"),
    )
    .during(|| "tmpfs on /mnt".to_owned())?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| scratch.join(name));
    for folder in [&upper, &work, &root] {
        folders::make(folder)?;
    }
    let module = config.modules.join("kernel/fs/overlayfs/overlay.ko");
    if let Ok(file) = File::open(&module) {
        match finit_module(&file, &CString::default(), ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).during(|| format!("cannot load {}", module.display())),
        }
    }
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    mount(
        Some("overlay"),
        &root,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .during(|| "cannot lay an overlay over the machine's root".to_owned())?;
    chdir(&root).during(|| "cannot enter the new root".to_owned())?;
    folders::make(Path::new("old"))?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .during(|| "cannot make mounts private".to_owned())?;
    pivot_root(".", "old").during(|| "cannot change the root".to_owned())?;
    chroot(".").during(|| "cannot change the root".to_owned())?;
    chdir("/").during(|| "cannot enter the new root".to_owned())
}
