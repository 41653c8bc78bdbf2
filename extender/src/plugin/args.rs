//! The command line of `kubectl quarry`, and what it does.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use k8s_openapi::jiff::Timestamp;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use quarry_process::Alive;
use quarry_process::client::{Patience, client};
use serde::Serialize;
use thiserror::Error;

use super::snapshot::{ReadError, Snapshot, Subject, Wanted, find, warnings};
use super::why::Why;
use super::{status, text, why};

/// Explains what Quarry does: why a pod is not placed, and how nodes, disks and volumes stand. It reads and never writes.
#[derive(Debug, Clone, Parser)]
#[command(name = "kubectl quarry", bin_name = "kubectl quarry", version)]
pub struct Args {
    /// Namespace; that of the kubeconfig's context where none is given.
    #[arg(short, long, global = true)]
    pub namespace: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// A kubeconfig to use instead of $KUBECONFIG and ~/.kube/config.
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace that Quarry itself is in.
    #[arg(long, global = true, default_value = "quarry-system")]
    pub quarry_namespace: String,
    /// How to write the answer.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs; sizes are bytes.
    Json,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Why a pod is not placed: for each node and volume group, what is asked, free and in flight; and what would help.
    Why {
        /// A pod or claim: NAME, pod/NAME, pvc/NAME, or the kind and the name as two words.
        #[arg(required = true, num_args = 1..=2, value_name = "POD|CLAIM")]
        subject: Vec<String>,
        /// Every node, not the first 20 only.
        #[arg(long)]
        all: bool,
    },
    /// How nodes, disks, volume groups and volumes stand, what is wrong with them, and whether kube-scheduler asks Quarry.
    Status {
        /// Every row, not the first 20 of each table only.
        #[arg(long)]
        all: bool,
    },
}

/// What went wrong.
#[derive(Debug, Error)]
pub enum PluginError {
    /// No cluster to ask.
    #[error("{0}; give --kubeconfig, set KUBECONFIG, or see \"kubectl config get-contexts\"")]
    Config(String),
    /// The client could not be made.
    #[error("the client of the API server cannot be made: {0}")]
    Client(#[from] Box<kube::Error>),
    /// Something cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Not a pod or claim.
    #[error("{0:?} is neither a pod nor a claim; write NAME, pod/NAME or pvc/NAME")]
    Subject(String),
    /// Something of the process failed.
    #[error("{0}")]
    Process(#[from] std::io::Error),
    /// The answer cannot be written.
    #[error("the answer cannot be written: {0}")]
    Unwritable(#[from] serde_json::Error),
}

impl Args {
    /// Does what was asked and writes the answer to standard output.
    ///
    /// # Errors
    /// See [`PluginError`].
    pub fn run(self) -> Result<(), PluginError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answer = runtime.block_on(self.answer())?;
        match std::io::Write::write_all(&mut std::io::stdout(), answer.as_bytes()) {
            // Whoever reads has seen enough, such as `head`.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => Ok(other?),
        }
    }

    async fn answer(&self) -> Result<String, PluginError> {
        let config = self.config().await?;
        let namespace = match &self.namespace {
            Some(namespace) => namespace.clone(),
            None => config.default_namespace.clone(),
        };
        let requests = Alive::new().work("requests", Duration::MAX);
        let client = client(config, Patience::default(), requests).map_err(Box::new)?;
        match &self.command {
            Command::Why { subject, all } => {
                let (wanted, name) = subject_of(subject)?;
                let why = explain(&client, &namespace, &self.quarry_namespace, name, wanted).await?;
                self.write(&why, || text::why(&why, *all))
            }
            Command::Status { all } => {
                let snapshot = Snapshot::read(&client, &namespace, &self.quarry_namespace).await?;
                let status = status::status(&snapshot, Timestamp::now());
                self.write(&status, || text::status(&status, *all))
            }
        }
    }

    fn write(&self, answer: &impl Serialize, text: impl Fn() -> String) -> Result<String, PluginError> {
        match self.output {
            Format::Table => Ok(text()),
            Format::Json => Ok(serde_json::to_string_pretty(answer)? + "\n"),
        }
    }

    async fn config(&self) -> Result<Config, PluginError> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..Default::default()
        };
        let config = match &self.kubeconfig {
            Some(path) => match Kubeconfig::read_from(path) {
                Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
                Err(error) => Err(error),
            },
            None => Config::from_kubeconfig(&options).await,
        };
        let config = match config {
            Ok(config) => config,
            // In a pod, its own rights.
            Err(error) if self.kubeconfig.is_none() && self.context.is_none() => {
                Config::incluster().map_err(|_| PluginError::Config(with_sources(&error)))?
            }
            Err(error) => return Err(PluginError::Config(with_sources(&error))),
        };
        Ok(config)
    }
}

/// An error with what is behind it, each once.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}

/// What is meant by the words of the command line.
fn subject_of(words: &[String]) -> Result<(Wanted, &str), PluginError> {
    let (kind, name) = match words {
        [one] => match one.split_once('/') {
            Some((kind, name)) => (Some(kind), name),
            None => (None, one.as_str()),
        },
        [kind, name] => (Some(kind.as_str()), name.as_str()),
        _ => (Some(""), ""),
    };
    let wanted = match kind.map(str::to_lowercase).as_deref() {
        None => Wanted::Either,
        Some("pod" | "pods" | "po") => Wanted::Pod,
        Some("pvc" | "claim" | "claims" | "persistentvolumeclaim" | "persistentvolumeclaims") => Wanted::Claim,
        Some(_) => return Err(PluginError::Subject(words.join(" "))),
    };
    if name.is_empty() || name.contains('/') {
        return Err(PluginError::Subject(words.join(" ")));
    }
    Ok((wanted, name))
}

/// Reads what there is, and explains it.
async fn explain(
    client: &Client,
    namespace: &str,
    quarry: &str,
    name: &str,
    wanted: Wanted,
) -> Result<Why, PluginError> {
    // First, so that a name that is not there costs nothing more.
    let subject = find(client, namespace, name, wanted).await?;
    let snapshot = Snapshot::read(client, namespace, quarry).await?;
    let mut why = match &subject {
        Subject::Pod(pod) => why::pod(&snapshot, pod),
        Subject::Claim(claim, pods) => {
            let waits = |pod: &&k8s_openapi::api::core::v1::Pod| {
                pod.spec
                    .as_ref()
                    .is_some_and(|spec| spec.node_name.as_deref().unwrap_or_default().is_empty())
            };
            match pods.iter().find(waits).or(pods.first()) {
                Some(pod) => why::pod(&snapshot, pod),
                None => why::claim(&snapshot, namespace, claim.metadata.name.as_deref().unwrap_or_default()),
            }
        }
    };
    let claims: Vec<String> = why.claims.iter().map(|claim| claim.name.clone()).collect();
    why.said = warnings(client, namespace, &claims).await;
    Ok(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_and_claims_are_named_as_kubectl_users_do() {
        let of = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            subject_of(&words).map(|(wanted, name)| (wanted, name.to_owned())).ok()
        };
        assert_eq!(of(&["web-0"]), Some((Wanted::Either, "web-0".into())));
        assert_eq!(of(&["pod/web-0"]), Some((Wanted::Pod, "web-0".into())));
        assert_eq!(of(&["po", "web-0"]), Some((Wanted::Pod, "web-0".into())));
        assert_eq!(of(&["PVC/data"]), Some((Wanted::Claim, "data".into())));
        assert_eq!(of(&["claim", "data"]), Some((Wanted::Claim, "data".into())));
        for wrong in [&["node/a"][..], &["pod/"], &["pod", "a/b"], &[""]] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn options_may_stand_before_and_after_the_command() {
        for words in [["-n", "db", "why", "a"], ["why", "a", "-n", "db"]] {
            let args = Args::try_parse_from(["kubectl-quarry"].iter().chain(&words)).expect("understood");
            assert_eq!(args.namespace.as_deref(), Some("db"));
        }
    }
}
