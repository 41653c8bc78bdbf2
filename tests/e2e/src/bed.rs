//! The cluster, with the images built from this tree and the manifests of `deploy/` on it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use quarry_bed::{Cluster, Node, Options, build_images};
use serde_json::json;

/// The namespace that `deploy/` puts Quarry in.
pub const NAMESPACE: &str = "quarry-system";

/// A cluster with Quarry on it.
#[derive(Clone)]
pub struct Bed {
    /// The cluster.
    pub cluster: Cluster,
    /// A client with all rights.
    pub client: Client,
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
        let name = std::env::var("QUARRY_CLUSTER").unwrap_or_else(|_| Options::default().name);
        let (cluster, images) = tokio::try_join!(
            async {
                Cluster::up(Options {
                    name,
                    // What a former run left must not decide how this one ends.
                    fresh: std::env::var_os("CI").is_some(),
                    ..Options::default()
                })
                .await
                .context("the cluster did not come up")
            },
            async { build_images(&repository()).await.context("the images were not built") },
        )?;
        let begun = Instant::now();
        cluster.load(&images.manager).await?;
        cluster.load(&images.extender).await?;
        let client = cluster.client().await?;
        let bed = Self { cluster, client };
        bed.deploy(&images.manager.reference, &images.extender.reference)
            .await?;
        println!(
            "quarry: deployed and ready after {:.1} s",
            begun.elapsed().as_secs_f64()
        );
        Ok(Arc::new(bed))
    }

    /// Applies `deploy/base` with these images, and waits until everything runs.
    async fn deploy(&self, manager: &str, extender: &str) -> Result<()> {
        let overlay = repository().join("target/e2e/overlay");
        std::fs::create_dir_all(&overlay)?;
        let image = |name: &str, reference: &str| {
            let (path, tag) = reference.rsplit_once(':').unwrap_or((reference, "latest"));
            json!({"name": name, "newName": path, "newTag": tag})
        };
        let kustomization = json!({
            "resources": ["../../../deploy/base"],
            "images": [image("quarry-manager", manager), image("quarry-extender", extender)],
        });
        std::fs::write(overlay.join("kustomization.yaml"), kustomization.to_string())?;
        let target = overlay.to_string_lossy().into_owned();
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-k", &target])
            .await?;
        for name in ["quarry-manager", "quarry-extender"] {
            self.rolled_out(name).await?;
        }
        Ok(())
    }

    /// Waits until every pod of a DaemonSet of ours is of its newest template and ready.
    ///
    /// # Errors
    /// It took more than three minutes.
    pub async fn rolled_out(&self, name: &str) -> Result<()> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), NAMESPACE);
        let deadline = Instant::now() + Duration::from_secs(180);
        loop {
            let set = sets.get(name).await?;
            let status = set.status.unwrap_or_default();
            let wanted = status.desired_number_scheduled;
            if wanted > 0
                && status.observed_generation == set.metadata.generation
                && status.updated_number_scheduled == Some(wanted)
                && status.number_ready == wanted
                && status.number_unavailable.unwrap_or(0) == 0
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                let pods = self
                    .kubectl(&["-n", NAMESPACE, "describe", "pods"])
                    .await
                    .unwrap_or_default();
                bail!("{name} is not ready after three minutes: {status:?}\n{pods}");
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Runs kubectl with all rights; its standard output.
    ///
    /// # Errors
    /// It failed; the text has what it wrote.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_any(arguments).await?;
        if !output.status.success() {
            bail!("kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs kubectl with all rights, however it ends.
    ///
    /// # Errors
    /// It could not be run.
    pub async fn kubectl_any(&self, arguments: &[&str]) -> Result<std::process::Output> {
        let command = duct::cmd(self.cluster.kubectl(), arguments)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .stdin_null()
            .stdout_capture()
            .stderr_capture()
            .unchecked();
        Ok(tokio::task::spawn_blocking(move || command.run()).await??)
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
