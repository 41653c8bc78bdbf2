//! The cluster, with the images built from this tree and the manifests of `deploy/` on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use kube::Client;
pub use quarry_bed::NAMESPACE;
use quarry_bed::{Cluster, Node, Options};

/// A cluster with Quarry on it.
#[derive(Clone)]
pub struct Bed {
    /// The cluster.
    pub cluster: Cluster,
    /// A client with all rights.
    pub client: Client,
}

/// The cluster that is used.
#[must_use]
pub fn cluster_name() -> String {
    std::env::var("QUARRY_CLUSTER").unwrap_or_else(|_| Options::default().name)
}

/// A folder for files of the tests on this cluster.
///
/// # Errors
/// It could not be made.
pub fn folder() -> Result<PathBuf> {
    let folder = repository().join("target/e2e").join(cluster_name());
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The root of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

impl Bed {
    /// Brings the cluster up (or takes the one that is up), builds the images of this tree, and deploys them.
    ///
    /// # Errors
    /// Any of that failed.
    pub async fn up() -> Result<Arc<Self>> {
        Self::up_with(&[]).await
    }

    /// The same with features of cargo, for builds that are tested and never shipped.
    ///
    /// # Errors
    /// Any of that failed.
    pub async fn up_with(features: &[&str]) -> Result<Arc<Self>> {
        let options = Options {
            name: cluster_name(),
            // What a former run left must not decide how this one ends.
            fresh: std::env::var_os("CI").is_some(),
            ..Options::default()
        };
        let cluster = Cluster::up_with_quarry(options, features)
            .await
            .context("the cluster did not come up with Quarry")?;
        let client = cluster.client().await?;
        Ok(Arc::new(Self { cluster, client }))
    }

    /// Applies what was deployed last, and waits until everything runs.
    ///
    /// # Errors
    /// It did not within three minutes.
    pub async fn install(&self) -> Result<()> {
        Ok(self.cluster.install().await?)
    }

    /// Deletes everything that was deployed, as a user does, and waits until it is gone.
    ///
    /// # Errors
    /// It was not deleted.
    pub async fn uninstall(&self) -> Result<()> {
        Ok(self.cluster.uninstall().await?)
    }

    /// Waits until every pod of a DaemonSet of ours is of its newest template and ready.
    ///
    /// # Errors
    /// It took more than three minutes.
    pub async fn rolled_out(&self, name: &str) -> Result<()> {
        Ok(self.cluster.rolled_out(name).await?)
    }

    /// Sets variables of the manager (none: takes it away), and waits until every manager runs with them.
    ///
    /// # Errors
    /// They do not run.
    pub async fn manager_settings(&self, settings: &[(&str, Option<&str>)]) -> Result<()> {
        let words = settings.iter().map(|(name, value)| match value {
            Some(value) => format!("{name}={value}"),
            None => format!("{name}-"),
        });
        let words: Vec<String> = words.collect();
        let mut arguments = vec!["-n", NAMESPACE, "set", "env", "ds/quarry-manager"];
        arguments.extend(words.iter().map(String::as_str));
        self.kubectl(&arguments).await?;
        self.rolled_out("quarry-manager").await
    }

    /// Runs kubectl with all rights; its standard output.
    ///
    /// # Errors
    /// It failed; the text has what it wrote.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.cluster.kubectl_ok(arguments).await?)
    }

    /// The same, however it ends: whether it succeeded, and what it wrote to standard output and standard error.
    ///
    /// # Errors
    /// It could not be run.
    pub async fn kubectl_any(&self, arguments: &[&str]) -> Result<(bool, String, String)> {
        let output = self.cluster.kubectl_any(arguments).await?;
        Ok((output.success(), output.stdout, output.stderr))
    }

    /// The node of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<Node> {
        Ok(self.cluster.node(name)?)
    }

    /// The stable path of a data disk (from 0) of a node (from 1).
    ///
    /// # Errors
    /// There is no such node or disk.
    pub fn disk(&self, node: usize, disk: usize) -> Result<String> {
        let node = self.node(&format!("node{node}"))?;
        Ok(node.disks().get(disk).context("no such disk")?.id.clone())
    }
}
