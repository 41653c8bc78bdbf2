//! Where things are: the cache that outlives the clone, the state of one cluster, the repository.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use crate::error::{BedError, During, Result};

/// The cache: `$QUARRY_CACHE`, else `$XDG_CACHE_HOME/quarry`, else `~/.cache/quarry`.
pub fn cache() -> Result<PathBuf> {
    let set = |name: &str| {
        env::var_os(name)
            .filter(|value: &OsString| !value.is_empty())
            .map(PathBuf::from)
    };
    let folder = set("QUARRY_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("quarry")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/quarry")))
        .ok_or_else(|| BedError::Missing {
            what: "no folder for the cache".to_owned(),
            remedy: "set QUARRY_CACHE (or HOME)".to_owned(),
        })?;
    make(&folder)?;
    Ok(folder)
}

/// The root of the repository that this crate was built from, or `$QUARRY_REPOSITORY`.
pub fn repository() -> PathBuf {
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = env::var_os("QUARRY_REPOSITORY").map_or(built_from, PathBuf::from);
    folder.canonicalize().unwrap_or(folder)
}

/// The folder above the state of all clusters.
pub(crate) fn clusters() -> PathBuf {
    PathBuf::from("/var/tmp/quarry-bed")
}

/// The state of one cluster.
pub(crate) fn cluster(name: &str) -> PathBuf {
    clusters().join(name)
}

/// Makes a folder and those above it.
pub(crate) fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).during(|| format!("cannot make the folder {}", folder.display()))
}

/// Writes a file whole.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    std::fs::write(path, content).during(|| format!("cannot write {}", path.display()))
}

/// Reads a file whole.
pub(crate) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).during(|| format!("cannot read {}", path.display()))
}
