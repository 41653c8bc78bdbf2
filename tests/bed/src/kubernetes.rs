//! The Kubernetes programs, and the etcd that goes with them, built from the Go module `k8s.io/kubernetes` of one of several versions.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{
    error::{BedError, Result},
    go_module::GoModule,
};

/// The version of a cluster for which none is asked.
const DEFAULT: &str = "1.37.2";

/// The variable of the environment that asks for another one.
pub const VARIABLE: &str = "QUARRY_KUBERNETES";

/// A version, with the go.mod and go.sum that pin it.
struct Release {
    version: &'static str,
    pinned: (&'static str, &'static str),
}

macro_rules! release {
    ($version:literal) => {
        Release {
            version: $version,
            pinned: (
                include_str!(concat!("../kubernetes/", $version, "/go.mod")),
                include_str!(concat!("../kubernetes/", $version, "/go.sum")),
            ),
        }
    };
}

/// Every version that the bed can build.
const RELEASES: [Release; 3] = [release!("1.37.2"), release!("1.36.3"), release!("1.35.4")];

/// Kept beside go.mod of each version.
const FILES: [(&str, &str); 2] = [
    ("tools.go", include_str!("../kubernetes/tools.go")),
    ("etcd/main.go", include_str!("../kubernetes/etcd/main.go")),
];

/// A version of Kubernetes that the bed can build, such as `1.37.2`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Version(&'static str);

impl Version {
    /// All of them, the newest first.
    pub fn all() -> impl Iterator<Item = Version> {
        RELEASES.iter().map(|release| Version(release.version))
    }

    /// The one that `$QUARRY_KUBERNETES` asks for, else the usual one.
    pub fn asked() -> Result<Version> {
        match std::env::var(VARIABLE) {
            Ok(text) if !text.is_empty() => text.parse(),
            _ => Ok(Version::default()),
        }
    }

    fn module(self) -> GoModule {
        let pinned = RELEASES
            .iter()
            .find(|release| release.version == self.0)
            .map_or(("", ""), |release| release.pinned);
        GoModule {
            name: format!("kubernetes-v{self}"),
            files: &FILES,
            pinned,
            packages: &[
                "k8s.io/kubernetes/cmd/kube-apiserver",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-scheduler",
                "k8s.io/kubernetes/cmd/kubelet",
                "k8s.io/kubernetes/cmd/kubectl",
                "./etcd",
            ],
            tags: "",
            linker_flags: format!("-s -w -X k8s.io/component-base/version.gitVersion=v{self}"),
        }
    }

    /// Where the programs of this version are kept.
    pub(crate) fn folder(self) -> Result<PathBuf> {
        self.module().folder()
    }

    /// Builds the programs that are not in the cache, and returns their folder.
    pub async fn ensure(self) -> Result<PathBuf> {
        self.module().ensure().await
    }
}

impl Default for Version {
    fn default() -> Self {
        Version(DEFAULT)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl FromStr for Version {
    type Err = BedError;

    fn from_str(text: &str) -> Result<Self> {
        let bare = text.strip_prefix('v').unwrap_or(text);
        Version::all()
            .find(|version| version.0 == bare)
            .ok_or_else(|| BedError::Unknown {
                kind: "version of Kubernetes for the bed",
                name: text.to_owned(),
                known: Version::all().map(|version| version.0).collect::<Vec<_>>().join(", "),
            })
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go_module::GO;

    #[test]
    fn a_version_is_named_with_or_without_v() {
        let parsed = |text: &str| text.parse::<Version>().map_err(|error| error.to_string());
        assert_eq!(parsed("1.36.3"), Ok(Version("1.36.3")));
        assert_eq!(parsed("v1.36.3"), Ok(Version("1.36.3")));
        let refused = "there is no version of Kubernetes for the bed \"1.2.3\"; there are: 1.37.2, 1.36.3, 1.35.4";
        assert_eq!(parsed("1.2.3"), Err(refused.to_owned()));
    }

    #[test]
    fn the_usual_version_can_be_built() {
        assert!(Version::all().any(|version| version == Version::default()));
    }

    #[test]
    fn each_go_mod_pins_the_version_of_its_folder_and_all_that_belongs_to_it() {
        for release in &RELEASES {
            let module = release.pinned.0;
            let kubernetes = format!("k8s.io/kubernetes v{}", release.version);
            assert!(module.contains(&kubernetes), "{}", release.version);
            let minor = release.version.strip_prefix("1.").unwrap_or_default();
            for line in module.lines().filter(|line| line.starts_with("replace ")) {
                assert!(line.ends_with(&format!(" v0.{minor}")), "{}: {line}", release.version);
            }
        }
    }

    /// The Go that users are told to install builds all of it.
    #[test]
    fn no_go_mod_asks_for_a_newer_go_than_the_readme() {
        let number = |text: &str| -> Vec<u32> { text.split('.').filter_map(|part| part.parse().ok()).collect() };
        let modules = RELEASES.iter().map(|release| release.pinned.0);
        for module in modules.chain([include_str!("../containerd/go.mod")]) {
            let asked = module
                .lines()
                .find_map(|line| line.strip_prefix("go "))
                .unwrap_or_default();
            assert!(!number(asked).is_empty() && number(asked) <= number(GO), "{asked}");
        }
        let readme = include_str!("../../../README.md");
        assert!(readme.contains(&format!("Go {GO} or newer")));
    }
}
