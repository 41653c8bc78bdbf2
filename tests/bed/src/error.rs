//! What can go wrong on the bed: every message names what is missing or failed and, where there is one, the remedy.

use std::{io, path::PathBuf, time::Duration};

/// An error of the bed.
#[derive(Debug, thiserror::Error)]
pub enum BedError {
    /// Something that the bed needs is not there.
    #[error("{what}; {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// A program ended badly.
    #[error("`{command}` ended with {status}\nstdout: {stdout}\nstderr: {stderr}")]
    Command {
        /// The argument vector, for reading only.
        command: String,
        /// Exit code or signal.
        status: String,
        /// What it wrote.
        stdout: String,
        /// What it complained about.
        stderr: String,
    },
    /// A file, socket or system call failed.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Something did not become true in time.
    #[error("{what} did not happen within {} s; {hint}", waited.as_secs())]
    Timeout {
        /// What was waited for.
        what: String,
        /// For how long.
        waited: Duration,
        /// Where to look.
        hint: String,
    },
    /// The agent of a node refused or could not be reached.
    #[error("node {node}: {message}")]
    Agent {
        /// The node.
        node: String,
        /// What happened.
        message: String,
    },
    /// No cluster of this name is up.
    #[error("no cluster {name:?} is up; start it with `bed --name {name} up`")]
    NotUp {
        /// Its name.
        name: String,
    },
    /// A name that nothing has.
    #[error("there is no {kind} {name:?}; there are: {known}")]
    Unknown {
        /// What kind of thing.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A disk cannot be taken or returned.
    #[error("disk {disk}: {message}")]
    Disk {
        /// Its stable path.
        disk: String,
        /// What happened.
        message: String,
    },
    /// The Kubernetes API answered with an error.
    #[error("the Kubernetes API: {0}")]
    Kube(#[from] Box<kube::Error>),
    /// The kubeconfig of the cluster cannot be used.
    #[error("{}: {message}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A certificate could not be made.
    #[error("certificates of the cluster: {0}")]
    Certificates(#[from] rcgen::Error),
    /// A file of the bed's own is not as it should be.
    #[error("{what}: {source}")]
    Json {
        /// The file or message.
        what: String,
        /// What the parser says.
        source: serde_json::Error,
    },
}

impl From<kube::Error> for BedError {
    fn from(error: kube::Error) -> Self {
        BedError::Kube(Box::new(error))
    }
}

/// The result of the bed's functions.
pub type Result<T, E = BedError> = std::result::Result<T, E>;

/// Adds to an I/O error what was being done.
pub(crate) trait During<T> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| BedError::Io {
            action: action(),
            source,
        })
    }
}

impl<T> During<T> for nix::Result<T> {
    fn during(self, action: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| BedError::Io {
            action: action(),
            source: errno.into(),
        })
    }
}
