//! Quarry on the cluster: the images of this tree, and `deploy/base` with their names.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use serde_json::json;

use crate::{
    cluster::{Cluster, Options},
    command::{self, Output},
    error::{BedError, Result},
    folders,
    images::{Images, TOOLS, build_images_with, programs},
    node::Node,
    step::Step,
};

/// The namespace that `deploy/` puts Quarry in.
pub const NAMESPACE: &str = "quarry-system";

/// The DaemonSets in it.
const DAEMON_SETS: [&str; 2] = ["quarry-manager", "quarry-extender"];
/// How long the pods of a DaemonSet may take to be ready.
const PATIENCE: Duration = Duration::from_secs(180);
const EXAMPLE: &str = include_str!("../example.yaml");

impl Cluster {
    /// Brings a cluster up as [`Cluster::up`] does, and builds and deploys Quarry as this tree has it; `features` of cargo
    /// are for builds that are tested and never shipped.
    pub async fn up_with_quarry(options: Options, features: &[&str]) -> Result<Cluster> {
        let repository = folders::repository();
        let (cluster, images) = tokio::try_join!(Cluster::up(options), build_images_with(&repository, features))?;
        cluster.deploy(&images).await?;
        Ok(cluster)
    }

    /// Puts these images and `deploy/base` with their names on the cluster, and waits until everything runs.
    pub async fn deploy(&self, images: &Images) -> Result<()> {
        let step = Step::quiet("Quarry is deployed and ready");
        self.load(&images.manager).await?;
        self.load(&images.extender).await?;
        let image = |name: &str, reference: &str| {
            let (path, tag) = reference.rsplit_once(':').unwrap_or((reference, "latest"));
            json!({"name": name, "newName": path, "newTag": tag})
        };
        let kustomization = json!({
            "resources": ["../../../deploy/base"],
            "images": [
                image("quarry-manager", &images.manager.reference),
                image("quarry-extender", &images.extender.reference),
            ],
        });
        folders::make(&self.overlay())?;
        folders::write(&self.overlay().join("kustomization.yaml"), kustomization.to_string())?;
        self.install().await?;
        step.done();
        Ok(())
    }

    /// Applies what was deployed last, and waits until everything runs.
    pub async fn install(&self) -> Result<()> {
        let overlay = self.overlay().display().to_string();
        self.kubectl_ok(&["apply", "--server-side", "--force-conflicts", "-k", &overlay])
            .await?;
        for name in DAEMON_SETS {
            self.rolled_out(name).await?;
        }
        Ok(())
    }

    /// Deletes everything that was deployed, as a user does, and waits until it is gone.
    pub async fn uninstall(&self) -> Result<()> {
        let overlay = self.overlay().display().to_string();
        self.kubectl_ok(&["delete", "--wait", "--timeout=200s", "-k", &overlay])
            .await
            .map(drop)
    }

    /// Waits until every pod of a DaemonSet of ours is of its newest template and ready.
    pub async fn rolled_out(&self, name: &str) -> Result<()> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), NAMESPACE);
        let begun = Instant::now();
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
            if begun.elapsed() > PATIENCE {
                let pods = self.kubectl_any(&["-n", NAMESPACE, "describe", "pods"]).await?;
                return Err(BedError::Timeout {
                    what: format!("{name} being ready ({status:?})"),
                    waited: begun.elapsed(),
                    hint: format!("its pods:\n{}", pods.stdout),
                });
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Runs kubectl with all rights; its standard output.
    pub async fn kubectl_ok(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_any(arguments).await?;
        if output.success() {
            Ok(output.stdout)
        } else {
            Err(command::failed(&format!("kubectl {}", arguments.join(" ")), &output))
        }
    }

    /// Runs kubectl with all rights, however it ends; `kubectl quarry` is that of this tree.
    pub async fn kubectl_any(&self, arguments: &[&str]) -> Result<Output> {
        let mut argv = vec![self.kubectl().as_os_str()];
        argv.extend(arguments.iter().map(OsStr::new));
        let mut path = programs(&folders::repository()).into_os_string();
        if let Some(others) = std::env::var_os("PATH") {
            path.push(":");
            path.push(others);
        }
        let env = [("KUBECONFIG", self.kubeconfig().as_os_str()), ("PATH", &path)];
        command::try_run(Path::new("/"), &env, &argv).await
    }

    /// Writes an example that works on this cluster: a class on the first disk of each node, a claim and a pod.
    pub(crate) fn example(&self) -> Result<PathBuf> {
        let path = self.state.folder().join("example.yaml");
        let nodes = self.nodes();
        let first = |node: &Node| Some((node.name().to_owned(), node.disks().first()?.id.clone()));
        folders::write(&path, example(nodes.iter().filter_map(first)))?;
        Ok(path)
    }

    /// Where the images are named for `deploy/base`; a kustomization must be near what it is about.
    fn overlay(&self) -> PathBuf {
        folders::repository().join("target/deploy").join(self.name())
    }
}

/// The example with these nodes and their disks.
fn example(nodes: impl Iterator<Item = (String, String)>) -> String {
    let nodes: Vec<_> = nodes
        .map(|(node, disk)| json!({"names": [node], "disks": [disk]}).to_string())
        .collect();
    EXAMPLE
        .replace("NODES", &nodes.join(",\n     "))
        .replace("TOOLS", TOOLS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_names_every_node_with_its_disk_in_json_of_its_own() {
        let text = example(
            [("node1", "/dev/disk/by-id/a"), ("node2", "/dev/disk/by-id/b")]
                .map(|(node, disk)| (node.to_owned(), disk.to_owned()))
                .into_iter(),
        );
        let (_, rest) = text.split_once("nodes: |").expect("the parameter");
        let (nodes, _) = rest.split_once("---").expect("its end");
        let nodes: serde_json::Value = serde_json::from_str(nodes).expect("JSON");
        assert_eq!(
            nodes,
            json!([
                {"names": ["node1"], "disks": ["/dev/disk/by-id/a"]},
                {"names": ["node2"], "disks": ["/dev/disk/by-id/b"]},
            ])
        );
        assert!(text.contains(&format!("image: {TOOLS}")) && !text.contains("NODES"));
    }
}
