//! What is known of a cluster from one run of `bed` to the next.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{
    disks::Disk,
    error::{BedError, During, Result},
    folders,
    images::ImageRef,
    kernel::Kernel,
    kubernetes::Version,
    udev::Udev,
};

/// A cluster that is up, or was.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) name: String,
    /// The copy of `bed` that this cluster runs.
    pub(crate) bed: PathBuf,
    /// The port of the machine's loopback that leads to the API server.
    pub(crate) port: u16,
    /// Memory of a node in MiB.
    pub(crate) memory: u32,
    pub(crate) kubernetes: Version,
    pub(crate) kernel: Kernel,
    pub(crate) images: Vec<ImageRef>,
    /// What of udev its nodes have.
    #[serde(default)]
    pub(crate) udev: Udev,
    pub(crate) nodes: Vec<NodeState>,
}

/// One of its nodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeState {
    pub(crate) name: String,
    pub(crate) index: u8,
    pub(crate) disks: Vec<Disk>,
}

impl State {
    fn file(name: &str) -> PathBuf {
        folders::cluster(name).join("state.json")
    }

    pub(crate) fn folder(&self) -> PathBuf {
        folders::cluster(&self.name)
    }

    /// Reads the state of a cluster.
    pub(crate) fn read(name: &str) -> Result<State> {
        let path = Self::file(name);
        if !path.exists() {
            return Err(BedError::NotUp { name: name.to_owned() });
        }
        serde_json::from_str(&folders::read(&path)?).map_err(|source| BedError::Json {
            what: format!("{} (remove it with `bed --name {name} down`)", path.display()),
            source,
        })
    }

    /// Writes it, whole or not at all.
    pub(crate) fn write(&self) -> Result<()> {
        let path = Self::file(&self.name);
        let new = path.with_extension("new");
        let text = serde_json::to_string_pretty(self).map_err(|source| BedError::Json {
            what: "the state".to_owned(),
            source,
        })?;
        folders::write(&new, text)?;
        std::fs::rename(&new, &path).during(|| format!("cannot write {}", path.display()))
    }
}

/// One run at a time may start or stop a cluster; the others wait.
pub(crate) async fn lock(name: &str) -> Result<Flock<File>> {
    folders::make(&folders::clusters())?;
    lock_at(folders::clusters().join(format!("{name}.lock"))).await
}

/// Waits until no other run holds this file, and holds it.
pub(crate) async fn lock_at(path: PathBuf) -> Result<Flock<File>> {
    tokio::task::spawn_blocking(move || lock_file(&path))
        .await
        .map_err(|error| BedError::Missing {
            what: format!("a lock: {error}"),
            remedy: "try again".to_owned(),
        })?
}

fn lock_file(path: &Path) -> Result<Flock<File>> {
    let file = File::create(path).during(|| format!("cannot make {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .during(|| format!("cannot lock {}", path.display()))
}
