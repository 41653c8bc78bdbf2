//! What of udev the nodes have: all of it, or what minimal, immutable and container-like nodes lack.

use std::{fs, path::Path, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    command,
    error::{During, Result},
};

/// The variable that says it for a whole cluster.
pub const VARIABLE: &str = "QUARRY_UDEV";

/// What of udev a node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Udev {
    /// All of it.
    #[default]
    Full,
    /// Everything but the rules of lvm2.
    NoLvmRules,
    /// Neither those nor those of device-mapper.
    NoDmRules,
    /// All rules, and not the program that those of device-mapper call.
    NoDmsetup,
    /// It does not run. The links to the node's disks are made by its first process.
    None,
}

/// The folders in which udev finds rules of packages; one may be a link to the other.
const FOLDERS: [&str; 2] = ["/usr/lib/udev/rules.d", "/lib/udev/rules.d"];
const OF_LVM: [&str; 2] = ["56-lvm.rules", "69-lvm.rules"];
const OF_DM: [&str; 3] = ["55-dm.rules", "60-persistent-storage-dm.rules", "95-dm-notify.rules"];
const DMSETUP: [&str; 2] = ["/usr/sbin/dmsetup", "/sbin/dmsetup"];

impl Udev {
    /// All of them.
    pub const ALL: [Udev; 5] = [
        Udev::Full,
        Udev::NoLvmRules,
        Udev::NoDmRules,
        Udev::NoDmsetup,
        Udev::None,
    ];

    /// How it is written.
    pub fn word(self) -> &'static str {
        match self {
            Udev::Full => "full",
            Udev::NoLvmRules => "no-lvm-rules",
            Udev::NoDmRules => "no-dm-rules",
            Udev::NoDmsetup => "no-dmsetup",
            Udev::None => "none",
        }
    }

    /// What the environment says.
    pub fn of_environment() -> Self {
        match std::env::var(VARIABLE).map(|word| word.parse()) {
            Ok(Ok(udev)) => udev,
            Ok(Err(error)) => {
                eprintln!("bed: {error}");
                Udev::Full
            }
            Err(_) => Udev::Full,
        }
    }
}

impl FromStr for Udev {
    type Err = String;

    fn from_str(word: &str) -> std::result::Result<Self, String> {
        let known = || Udev::ALL.map(Udev::word).join(", ");
        let mut all = Udev::ALL.into_iter();
        all.find(|udev| udev.word() == word)
            .ok_or_else(|| format!("{VARIABLE}: {word:?} is none of {}", known()))
    }
}

/// Starts udev in a node, without what it is not to have; its root is its own, in memory.
pub(crate) async fn start(udev: Udev) -> Result<()> {
    let hidden: &[&[&str]] = match udev {
        Udev::NoLvmRules => &[&OF_LVM],
        Udev::NoDmRules => &[&OF_LVM, &OF_DM],
        Udev::Full | Udev::NoDmsetup | Udev::None => &[],
    };
    let rules = hidden.iter().copied().flatten();
    let rules = rules.flat_map(|rule| FOLDERS.map(|folder| Path::new(folder).join(rule)));
    let programs = DMSETUP.iter().filter(|_| udev == Udev::NoDmsetup);
    for file in rules.chain(programs.map(Into::into)) {
        if file.exists() {
            fs::remove_file(&file).during(|| format!("cannot hide {}", file.display()))?;
        }
    }
    if udev == Udev::None {
        // libdevmapper knows by its socket that udev runs.
        let _ = fs::remove_dir_all("/run/udev");
        link_disks();
        tokio::spawn(async {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                link_disks();
            }
        });
        return Ok(());
    }
    let daemon = ["/lib/systemd/systemd-udevd", "/usr/lib/systemd/systemd-udevd"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    command::run(&[daemon.unwrap_or("systemd-udevd"), "--daemon"]).await?;
    command::run(&["udevadm", "trigger"]).await?;
    command::run(&["udevadm", "settle"]).await.map(drop)
}

/// Makes the links that the bed's rule makes where udev runs, and removes those of disks that are gone.
fn link_disks() {
    if let Err(error) = try_link_disks() {
        eprintln!("node: the links to the disks: {error}");
    }
}

fn try_link_disks() -> Result<()> {
    let folder = Path::new("/dev/disk/by-id");
    let during = || "cannot link the disks".to_owned();
    fs::create_dir_all(folder).during(during)?;
    let mut wanted = Vec::new();
    for device in fs::read_dir("/sys/block").during(during)?.flatten() {
        let name = device.file_name().to_string_lossy().into_owned();
        let serial = fs::read_to_string(device.path().join("serial")).unwrap_or_default();
        let serial = serial.trim();
        if !name.starts_with("ubd") || serial.is_empty() {
            continue;
        }
        wanted.push((format!("bed-{serial}"), name));
        for part in fs::read_dir(device.path()).during(during)?.flatten() {
            if let Ok(number) = fs::read_to_string(part.path().join("partition")) {
                let name = part.file_name().to_string_lossy().into_owned();
                wanted.push((format!("bed-{serial}-part{}", number.trim()), name));
            }
        }
    }
    for (link, name) in &wanted {
        let (link, to) = (folder.join(link), Path::new("../..").join(name));
        if fs::read_link(&link).ok().as_ref() != Some(&to) {
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&to, &link).during(during)?;
        }
    }
    for entry in fs::read_dir(folder).during(during)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("bed-") && !wanted.iter().any(|(link, _)| *link == name) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_read_as_it_is_written() {
        for udev in Udev::ALL {
            assert_eq!(udev.word().parse(), Ok(udev));
        }
        let error = "some".parse::<Udev>().expect_err("unknown");
        assert!(error.contains("no-dm-rules"), "{error}");
    }
}
