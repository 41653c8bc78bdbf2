//! The storage suite of Kubernetes itself (`External Storage`) on a cluster with Quarry. Its programs are built from the Go module of the
//! cluster's version, and so are the images of its pods: no registry can be reached.

use std::{path::PathBuf, process::Stdio};

use serde_json::json;

use crate::{
    cluster::{Cluster, Options},
    command,
    control_plane::flag,
    error::{BedError, During, Result},
    folders,
    images::{self, ImageRef, SuiteImage},
    node::Node,
    step::Step,
    suite_report::Report,
};

const DRIVER: &str = include_str!("../storage-suite/driver.yaml");
const AGNHOST: &str = include_str!("../storage-suite/agnhost.Dockerfile");
const BUSYBOX: &str = include_str!("../storage-suite/busybox.Dockerfile");

/// The class that the suite copies for each of its cases.
const CLASS: &str = "storage-suite";

/// How many cases run at a time: they wait for most of their time.
const AT_A_TIME: &str = "--procs=4";

/// Cases that no cluster of the bed can serve: the first stop kubelets by ssh, the second want Windows.
const NOT_HERE: &str = r"\[Disruptive\]|\[Feature:Windows\]";

/// Brings the cluster up with Quarry and runs the suite, or the cases that `focus` (a regular expression) fits; says what became of
/// them. Whether all passed.
pub async fn run(options: Options, binding: &str, focus: Option<&str>) -> Result<bool> {
    let cluster = Cluster::up_with_quarry(options, &[]).await?;
    let programs = cluster.kubernetes().ensure_suite().await?;
    let suite = Suite {
        program: programs.join("suite.test"),
        folder: folders::repository().join("target/storage-suite").join(cluster.name()),
        programs,
        cluster,
    };
    folders::make(&suite.folder)?;
    suite.load_images().await?;
    suite.class(binding).await?;
    let report = suite.cases(focus).await?;
    println!("{report}");
    Ok(report.passed())
}

struct Suite {
    cluster: Cluster,
    /// The folder of ginkgo and agnhost.
    programs: PathBuf,
    /// The suite itself.
    program: PathBuf,
    /// Where its report and its log are written.
    folder: PathBuf,
}

impl Suite {
    /// Builds the images that the suite's pods run, under the names that it has for them, and loads them into every node.
    async fn load_images(&self) -> Result<()> {
        let listed = command::run(&[self.program.as_os_str(), "--list-images".as_ref()]).await?;
        for reference in listed.lines().map(str::trim) {
            let image = match reference.rsplit('/').next().and_then(|name| name.split(':').next()) {
                Some("agnhost") if reference.starts_with("registry.k8s.io/") => SuiteImage {
                    reference,
                    text: AGNHOST,
                    program: self.programs.join("agnhost"),
                },
                Some("busybox") => SuiteImage {
                    reference,
                    text: BUSYBOX,
                    program: images::busybox(),
                },
                _ => continue,
            };
            let image: ImageRef = images::of_suite(&image).await?;
            self.cluster.load(&image).await?;
        }
        Ok(())
    }

    /// The class on all disks of the nodes, which keeps the volume group for the copies of it.
    async fn class(&self, binding: &str) -> Result<()> {
        let nodes = self.cluster.nodes();
        let of_node = |node: &Node| {
            let disks: Vec<_> = node.disks().iter().map(|disk| disk.id.clone()).collect();
            json!({"names": [node.name()], "disks": disks})
        };
        let nodes: Vec<_> = nodes.iter().map(of_node).collect();
        let class = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": CLASS},
            "provisioner": "lvm.quarry.dev",
            "volumeBindingMode": binding,
            "reclaimPolicy": "Delete",
            "parameters": {"nodes": json!(nodes).to_string(), "volumeGroup": CLASS},
        });
        let file = self.folder.join("class.json");
        folders::write(&file, class.to_string())?;
        let file = file.display().to_string();
        // Nothing of a class can be changed: one of an earlier run, of other disks or another binding, has to go.
        self.cluster
            .kubectl_ok(&["delete", "storageclass", CLASS, "--ignore-not-found"])
            .await?;
        self.cluster.kubectl_ok(&["create", "-f", &file]).await.map(drop)
    }

    /// Runs the cases and reads what became of them.
    async fn cases(&self, focus: Option<&str>) -> Result<Report> {
        let driver = self.folder.join("driver.yaml");
        folders::write(&driver, DRIVER)?;
        let log = self.folder.join("log");
        let file = std::fs::File::create(&log).during(|| format!("cannot make {}", log.display()))?;
        let again = file.try_clone().during(|| format!("cannot share {}", log.display()))?;
        let report = self.folder.join("report.json");
        let _ = std::fs::remove_file(&report);
        let step = Step::begin(format!(
            "the storage suite of Kubernetes; what it says is in {}",
            log.display()
        ));
        let mut ginkgo = tokio::process::Command::new(self.programs.join("ginkgo"));
        ginkgo
            .args([
                "run",
                AT_A_TIME,
                "--timeout=3h",
                "--no-color",
                "--json-report=report.json",
            ])
            .arg(flag("--output-dir=", &self.folder))
            .arg(format!("--focus=External.Storage.*{}", focus.unwrap_or_default()))
            .arg(format!("--skip={NOT_HERE}"))
            .arg(&self.program)
            .arg("--")
            .args([
                "--provider=skeleton",
                "--num-nodes=3",
                "--delete-namespace-on-failure=true",
            ])
            .arg(flag("--kubeconfig=", self.cluster.kubeconfig()))
            .arg(flag("--storage.testdriver=", &driver))
            .current_dir(&self.folder)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(again)
            .kill_on_drop(true);
        // It ends badly where a case fails: what the report says counts.
        let ended = ginkgo.status().await.during(|| "cannot run ginkgo".to_owned())?;
        step.done_with(ended);
        let text = folders::read(&report)?;
        Report::read(&text).map_err(|source| BedError::Json {
            what: format!("{}; see {}", report.display(), log.display()),
            source,
        })
    }
}
