//! A handle on a whole cluster, and what can be done to it.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::sys::signal::Signal;

use crate::{
    containerd,
    control_plane::{ControlPlane, END_OF_LOG, Process, last_lines, stock_config},
    daemon::Running,
    error::{BedError, During, Result},
    folders,
    images::ImageRef,
    kubernetes::Version,
    lifecycle, link,
    network::Namespace,
    node::Node,
    packages,
    pki::Pki,
    quarry::NAMESPACE,
    state::{self, NodeState, State},
    step::Step,
    udev::Udev,
};

/// What cluster to bring up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name: lower-case letters, digits and dashes, 20 at most.
    pub name: String,
    /// How many nodes, from 1 to 9.
    pub nodes: usize,
    /// Memory of a node in MiB.
    pub memory: u32,
    /// Which Kubernetes; the one that `$QUARRY_KUBERNETES` names, else the usual one, where none is.
    pub kubernetes: Option<Version>,
    /// Take down what runs under this name, and begin anew.
    pub fresh: bool,
    /// What of udev the nodes have: all of it, or what the variable `QUARRY_UDEV` says.
    pub udev: Udev,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            name: "default".to_owned(),
            nodes: 3,
            memory: 1200,
            kubernetes: None,
            fresh: false,
            udev: Udev::of_environment(),
        }
    }
}

/// A handle on a running cluster.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) state: Arc<State>,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    pub(crate) client: kube::Client,
}

impl Cluster {
    /// Brings a cluster up, or heals the one that runs under this name, and waits until all of its nodes are Ready.
    pub async fn up(options: Options) -> Result<Cluster> {
        let kubernetes = options.kubernetes.map_or_else(Version::asked, Ok)?;
        let whole = Step::quiet(format!("cluster {:?} of Kubernetes {kubernetes} is up", options.name));
        lifecycle::check(&options)?;
        packages::ensure().await?;
        kubernetes.ensure().await?;
        containerd::ensure().await?;
        let cluster = {
            let _lock = state::lock(&options.name).await?;
            match State::read(&options.name) {
                Ok(state) if !options.fresh && state.kubernetes != kubernetes => {
                    eprintln!(
                        "bed: the cluster that was there is of Kubernetes {}, so a new one is made",
                        state.kubernetes
                    );
                    lifecycle::create(&options, kubernetes).await?
                }
                Ok(state) if !options.fresh && state.udev == options.udev => match lifecycle::heal(state).await {
                    Ok(cluster) => cluster,
                    Err(error) => {
                        eprintln!("bed: the cluster that was there cannot be used, so a new one is made: {error}");
                        lifecycle::create(&options, kubernetes).await?
                    }
                },
                _ => lifecycle::create(&options, kubernetes).await?,
            }
        };
        whole.done();
        Ok(cluster)
    }

    /// A handle on a cluster that is up already.
    pub async fn attach(name: &str) -> Result<Cluster> {
        let state = State::read(name)?;
        let running = Running::of(&state.folder(), link::NAME).pid().is_some();
        if running {
            Cluster::of(state).await
        } else {
            Err(BedError::NotUp { name: name.to_owned() })
        }
    }

    /// Takes a cluster down, whatever state it is in: no process, namespace, mount or tap is left, and its disks are gone.
    pub async fn down(name: &str) -> Result<()> {
        let _lock = state::lock(name).await?;
        lifecycle::remove(name).await
    }

    /// The names of the clusters that have a state, running or not.
    pub fn names() -> Vec<String> {
        let entries = std::fs::read_dir(folders::clusters()).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries
            .filter(|entry| entry.path().join("state.json").exists())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Its version of Kubernetes.
    pub fn kubernetes(&self) -> Version {
        self.state.kubernetes
    }

    /// A kubeconfig with all rights, for use from the machine.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The kubectl of the cluster's version.
    pub fn kubectl(&self) -> &Path {
        &self.kubectl
    }

    /// The folder with the logs of the control plane and the consoles of the nodes.
    pub fn logs(&self) -> PathBuf {
        self.state.folder().join("log")
    }

    /// A client with all rights.
    pub async fn client(&self) -> Result<kube::Client> {
        client(&self.kubeconfig).await
    }

    /// One node, by name.
    pub fn node(&self, name: &str) -> Result<Node> {
        self.nodes()
            .into_iter()
            .find(|node| node.name() == name)
            .ok_or_else(|| BedError::Unknown {
                kind: "node",
                name: name.to_owned(),
                known: self
                    .state
                    .nodes
                    .iter()
                    .map(|node| node.name.as_str())
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<Node> {
        let node = |state: &NodeState| Node {
            cluster: self.state.clone(),
            state: state.clone(),
            client: self.client.clone(),
        };
        self.state.nodes.iter().map(node).collect()
    }

    /// Loads an image archive into every node.
    pub async fn load_image(&self, archive: &Path) -> Result<()> {
        // A node may have read an earlier file of this path, and would read that again: so give it a path of its own.
        let folder = self.state.folder().join("images");
        folders::make(&folder)?;
        let metadata = std::fs::metadata(archive).during(|| format!("cannot read the image {}", archive.display()))?;
        let changed = metadata
            .modified()
            .ok()
            .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
            .unwrap_or_default();
        let copy = folder.join(format!("{}-{}.tar", changed.as_nanos(), metadata.len()));
        std::fs::copy(archive, &copy).during(|| format!("cannot copy the image {}", archive.display()))?;
        let path = copy.display().to_string();
        let nodes = self.nodes();
        let load = async |node: &Node| {
            node.run_ok(["ctr", "-n", "k8s.io", "images", "import", &path]).await?;
            // An image must outlive a power cut.
            node.run_ok(["sync", "-f", "/var/lib/containerd"]).await
        };
        let loaded = try_join_all(nodes.iter().map(load)).await;
        let _ = std::fs::remove_file(&copy);
        loaded.map(drop)
    }

    /// Loads an image into every node that does not have it.
    pub async fn load(&self, image: &ImageRef) -> Result<()> {
        let nodes = self.nodes();
        let load = async |node: &Node| {
            let named = node
                .run_ok([
                    "ctr",
                    "-n",
                    "k8s.io",
                    "images",
                    "ls",
                    "-q",
                    &format!("name=={}", image.reference),
                ])
                .await?;
            if named.trim() != image.reference {
                node.run_ok([
                    "ctr",
                    "-n",
                    "k8s.io",
                    "images",
                    "import",
                    &image.archive.display().to_string(),
                ])
                .await?;
                node.run_ok(["sync", "-f", "/var/lib/containerd"]).await?;
            }
            Ok::<_, BedError>(())
        };
        try_join_all(nodes.iter().map(load)).await.map(drop)
    }

    /// A connection to an address within the cluster's network: of a pod, a node, or a process of the control plane.
    pub async fn connect(&self, address: SocketAddr) -> Result<tokio::net::TcpStream> {
        let namespace = Namespace::of(&self.state.name);
        let broken = |error: std::io::Error| BedError::Io {
            action: format!("cannot connect to {address}"),
            source: error,
        };
        let connect = move || namespace.connect(address, Duration::from_secs(5));
        let stream = tokio::task::spawn_blocking(connect)
            .await
            .map_err(|error| broken(error.into()))??;
        stream.set_nonblocking(true).map_err(broken)?;
        tokio::net::TcpStream::from_std(stream).map_err(broken)
    }

    /// Stops a process of the control plane in an orderly way.
    pub async fn stop(&self, process: Process) -> Result<()> {
        self.control_plane()
            .running(process)
            .stop(Duration::from_secs(10))
            .await
    }

    /// Kills a process of the control plane.
    pub async fn kill(&self, process: Process) -> Result<()> {
        self.control_plane().running(process).kill().await
    }

    /// Starts a process of the control plane and waits until it serves.
    pub async fn start(&self, process: Process) -> Result<()> {
        let control_plane = self.control_plane();
        control_plane.start(process)?;
        control_plane.listening(process).await?;
        if process == Process::ApiServer {
            api_ready(&self.client).await
        } else {
            Ok(())
        }
    }

    /// Restarts kube-scheduler without an extender, as on a control plane that nobody may configure; or with it again.
    pub async fn stock_scheduler(&self, stock: bool) -> Result<()> {
        let stock = stock.then(stock_config);
        self.configure_scheduler(stock.as_deref()).await
    }

    /// Restarts kube-scheduler with this configuration (a second one that starts later has it too); or with the one of
    /// the repository again.
    pub async fn configure_scheduler(&self, config: Option<&str>) -> Result<()> {
        let own = self.control_plane().own_config();
        match config {
            Some(config) => folders::write(&own, config)?,
            None if own.exists() => std::fs::remove_file(&own).during(|| format!("cannot remove {}", own.display()))?,
            None => {}
        }
        self.stop(Process::Scheduler).await?;
        self.start(Process::Scheduler).await
    }

    /// Restarts kube-apiserver so that it writes down each writing request of Quarry's parts as a line of JSON (audit.k8s.io/v1,
    /// Event), in the file that is returned; or so that it does not.
    pub async fn audit(&self, on: bool) -> Result<PathBuf> {
        let control_plane = self.control_plane();
        let (policy, log) = (control_plane.audit_policy(), control_plane.audit_log());
        if on {
            let ours = ["manager", "extender"].map(|part| format!("system:serviceaccount:{NAMESPACE}:quarry-{part}"));
            let writes = ["create", "update", "patch", "delete", "deletecollection"];
            let text = serde_json::json!({
                "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
                "rules": [{"level": "Metadata", "users": ours, "verbs": writes}, {"level": "None"}],
            });
            folders::write(&policy, text.to_string())?;
        } else if policy.exists() {
            std::fs::remove_file(&policy).during(|| format!("cannot remove {}", policy.display()))?;
        }
        self.stop(Process::ApiServer).await?;
        self.start(Process::ApiServer).await?;
        Ok(log)
    }

    /// The process id of a process of the control plane, while it runs.
    pub fn pid(&self, process: Process) -> Option<i32> {
        self.control_plane().running(process).pid().map(|pid| pid.as_raw())
    }

    /// Freezes a process of the control plane.
    pub async fn pause(&self, process: Process) -> Result<()> {
        self.control_plane().running(process).signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub async fn resume(&self, process: Process) -> Result<()> {
        self.control_plane().running(process).signal(Signal::SIGCONT)
    }

    /// Whether a process of the control plane runs.
    pub fn is_running(&self, process: Process) -> bool {
        self.control_plane().running(process).pid().is_some()
    }

    /// What of the control plane has ended that nobody stopped on purpose, with the end of its log; none while all of it runs.
    pub fn lost(&self) -> Option<String> {
        let lost = Process::ALL.into_iter().find(|process| !self.is_running(*process))?;
        let log = self.logs().join(format!("{lost}.log"));
        Some(format!("{lost} has ended:\n{}", last_lines(&log, END_OF_LOG)))
    }

    pub(crate) fn control_plane(&self) -> ControlPlane {
        control_plane(&self.state)
    }

    pub(crate) async fn of(state: State) -> Result<Cluster> {
        let kubeconfig = Pki::of(&state.folder()).kubeconfig("outside");
        let client = client(&kubeconfig).await?;
        Ok(Cluster {
            kubeconfig,
            kubectl: state.kubernetes.folder()?.join("kubectl"),
            client,
            state: Arc::new(state),
        })
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.state.name)
            .finish_non_exhaustive()
    }
}

fn control_plane(state: &State) -> ControlPlane {
    ControlPlane {
        state: state.folder(),
        kubernetes: state.kubernetes,
        namespace: Namespace::of(&state.name),
        pki: Pki::of(&state.folder()),
    }
}

async fn client(kubeconfig: &Path) -> Result<kube::Client> {
    let wrong = |message: String| BedError::Kubeconfig {
        path: kubeconfig.to_owned(),
        message,
    };
    let read = Kubeconfig::read_from(kubeconfig).map_err(|error| wrong(error.to_string()))?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .map_err(|error| wrong(error.to_string()))?;
    Ok(kube::Client::try_from(config)?)
}
pub(crate) async fn api_ready(client: &kube::Client) -> Result<()> {
    let begun = Instant::now();
    let patience = Duration::from_secs(60);
    loop {
        // Ready is more than answering: the rights of the other processes are among what it makes at its start.
        let request = http::Request::get("/readyz")
            .body(Vec::new())
            .map_err(|error| wrong_request(&error))?;
        match client.request_text(request).await {
            Ok(_) => return Ok(()),
            Err(error) if begun.elapsed() > patience => {
                return Err(BedError::Timeout {
                    what: format!("kube-apiserver being ready ({error})"),
                    waited: patience,
                    hint: "read kube-apiserver.log and etcd.log".to_owned(),
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn wrong_request(error: &http::Error) -> BedError {
    BedError::Missing {
        what: format!("a request cannot be made: {error}"),
        remedy: "report it".to_owned(),
    }
}
