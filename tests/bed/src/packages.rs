//! The Debian packages that the bed needs: found, and installed where that is possible.

use std::{ffi::OsStr, path::Path};

use crate::{
    command,
    error::{BedError, Result},
    folders,
    step::Step,
};

/// Every package, and the program or file by which it is known to be there.
const PACKAGES: &[(&str, &str)] = &[
    ("user-mode-linux", "/usr/bin/linux.uml"),
    ("lvm2", "/usr/sbin/lvm"),
    ("thin-provisioning-tools", "/usr/sbin/thin_check"),
    ("kmod", "/usr/sbin/modprobe"),
    ("udev", "/usr/lib/systemd/systemd-udevd"),
    ("e2fsprogs", "/usr/sbin/mkfs.ext4"),
    ("xfsprogs", "/usr/sbin/mkfs.xfs"),
    ("btrfs-progs", "/usr/bin/btrfs"),
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("iproute2", "/usr/sbin/ip"),
    ("iptables", "/usr/sbin/iptables"),
    ("etcd-server", "/usr/bin/etcd"),
    ("buildah", "/usr/bin/buildah"),
    ("debootstrap", "/usr/sbin/debootstrap"),
    ("busybox-static", "/usr/bin/busybox"),
    ("patchelf", "/usr/bin/patchelf"),
    ("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
];

/// The packages that are not there.
pub fn missing() -> Vec<&'static str> {
    let there = |file: &str| {
        // Before and after the merge of /bin into /usr/bin.
        Path::new(file).exists() || file.strip_prefix("/usr").is_some_and(|short| Path::new(short).exists())
    };
    PACKAGES
        .iter()
        .filter(|(_, file)| !there(file))
        .map(|(name, _)| *name)
        .collect()
}

/// Installs what is missing; an error that lists it where that cannot be done here.
pub async fn ensure() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let debian = folders::read(Path::new("/etc/os-release")).is_ok_and(|text| {
        text.lines()
            .any(|line| line == "ID=debian" || line.starts_with("ID_LIKE") && line.contains("debian"))
    });
    if !debian || !nix::unistd::geteuid().is_root() {
        return Err(BedError::Missing {
            what: format!("packages of Debian 12 are missing: {}", missing.join(" ")),
            remedy: format!(
                "as root: apt-get update && apt-get install --no-install-recommends {}",
                missing.join(" ")
            ),
        });
    }
    let step = Step::begin(format!("apt-get installs {}", missing.join(" ")));
    let env = [("DEBIAN_FRONTEND", OsStr::new("noninteractive"))];
    let root = Path::new("/");
    // A package list that is out of order elsewhere must not stop us: the installation itself decides.
    if let Err(error) = command::run_in(root, &env, &["apt-get", "update", "-q"]).await {
        eprintln!("bed: apt-get update: {error}");
    }
    let install = ["apt-get", "install", "-q", "-y", "--no-install-recommends"];
    command::run_in(root, &env, &[&install[..], &missing[..]].concat()).await?;
    step.done();
    Ok(())
}
