//! The Debian packages that the bed needs: found, and installed where that is possible.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use crate::{
    command,
    error::{BedError, Result},
    folders, state,
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
    ("f2fs-tools", "/usr/sbin/mkfs.f2fs"),
    ("exfatprogs", "/usr/sbin/mkfs.exfat"),
    ("ntfs-3g", "/usr/sbin/mkfs.ntfs"),
    ("dosfstools", "/usr/sbin/mkfs.vfat"),
    ("genisoimage", "/usr/bin/genisoimage"),
    ("squashfs-tools", "/usr/bin/mksquashfs"),
    ("cryptsetup-bin", "/usr/sbin/cryptsetup"),
    ("mdadm", "/usr/sbin/mdadm"),
    ("bcache-tools", "/usr/sbin/make-bcache"),
    ("drbd-utils", "/usr/sbin/drbdmeta"),
    ("fdisk", "/usr/sbin/sfdisk"),
    ("runc", "/usr/sbin/runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("iproute2", "/usr/sbin/ip"),
    ("iptables", "/usr/sbin/iptables"),
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
    once(folders::cache()?.join("packages.lock"), missing, install).await
}

/// Installs what is missing, one at a time on this machine: the cluster and the images are made side by side, and apt-get does not wait for
/// another one. Who had to wait mostly finds that nothing is missing any more.
async fn once(
    lock: PathBuf,
    missing: impl Fn() -> Vec<&'static str>,
    install: impl AsyncFn(Vec<&'static str>) -> Result<()>,
) -> Result<()> {
    if missing().is_empty() {
        return Ok(());
    }
    let _lock = state::lock_at(lock).await?;
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    install(missing).await
}

async fn install(missing: Vec<&'static str>) -> Result<()> {
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
    // The machine's own upgrades may hold the lock of dpkg: seconds to wait for them.
    let patience = ["-o", "DPkg::Lock::Timeout=600"];
    let install = ["install", "-q", "-y", "--no-install-recommends"];
    command::run_in(root, &env, &[&["apt-get"][..], &patience, &install, &missing].concat()).await?;
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    #[tokio::test]
    async fn two_who_need_packages_install_them_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let (installed, running) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let missing = || match installed.load(Ordering::SeqCst) {
            0 => vec!["lvm2"],
            _ => Vec::new(),
        };
        let install = async |_: Vec<&'static str>| {
            assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
            tokio::time::sleep(Duration::from_millis(20)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            installed.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        let lock = folder.path().join("lock");
        let both = tokio::join!(
            once(lock.clone(), missing, install),
            once(lock.clone(), missing, install)
        );
        assert!(both.0.is_ok() && both.1.is_ok());
        assert_eq!(installed.load(Ordering::SeqCst), 1);
    }
}
