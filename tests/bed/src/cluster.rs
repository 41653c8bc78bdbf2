//! A whole cluster: brought up, found again, healed, taken down.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::{
    Api, Config,
    api::{Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::{
    control_plane::{ControlPlane, Process},
    daemon::Running,
    disks::{self, Boot},
    error::{BedError, During, Result},
    folders,
    images::{self, ImageRef},
    kernel, kubernetes, link,
    network::Namespace,
    node::Node,
    packages,
    pki::Pki,
    state::{self, NodeState, State},
    step::Step,
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
    /// Take down what runs under this name, and begin anew.
    pub fresh: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            name: "default".to_owned(),
            nodes: 3,
            memory: 1200,
            fresh: false,
        }
    }
}

/// A handle on a running cluster.
#[derive(Clone)]
pub struct Cluster {
    state: Arc<State>,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    client: kube::Client,
}

impl Cluster {
    /// Brings a cluster up, or heals the one that runs under this name, and waits until all of its nodes are Ready.
    pub async fn up(options: Options) -> Result<Cluster> {
        let whole = Step::quiet(format!("cluster {:?} is up", options.name));
        check(&options)?;
        packages::ensure().await?;
        kubernetes::ensure().await?;
        let cluster = {
            let _lock = state::lock(&options.name).await?;
            match State::read(&options.name) {
                Ok(state) if !options.fresh => match heal(state).await {
                    Ok(cluster) => cluster,
                    Err(error) => {
                        eprintln!("bed: the cluster that was there cannot be used, so a new one is made: {error}");
                        create(&options).await?
                    }
                },
                _ => create(&options).await?,
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
        remove(name).await
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

    fn control_plane(&self) -> ControlPlane {
        control_plane(&self.state)
    }

    async fn of(state: State) -> Result<Cluster> {
        let kubeconfig = Pki::of(&state.folder()).kubeconfig("outside");
        let client = client(&kubeconfig).await?;
        Ok(Cluster {
            kubeconfig,
            kubectl: kubernetes::folder()?.join("kubectl"),
            client,
            state: Arc::new(state),
        })
    }

    async fn start_link(&self) -> Result<()> {
        link::start(
            &self.state.bed,
            &self.state.folder(),
            &self.state.name,
            self.state.port,
            self.state.nodes.len(),
        )
    }

    /// Starts every process of the control plane that does not run, each when what it needs is there.
    async fn start_control_plane(&self) -> Result<()> {
        let control_plane = self.control_plane();
        let step = Step::quiet("etcd and kube-apiserver are ready");
        control_plane.start(Process::Etcd)?;
        control_plane.start(Process::ApiServer)?;
        control_plane.listening(Process::ApiServer).await?;
        api_ready(&self.client).await?;
        step.done();
        control_plane.start(Process::ControllerManager)?;
        if control_plane.scheduler_is_outdated() {
            control_plane
                .running(Process::Scheduler)
                .stop(Duration::from_secs(5))
                .await?;
        }
        control_plane.start(Process::Scheduler)?;
        let step = Step::quiet("kube-controller-manager and kube-scheduler listen");
        control_plane.listening(Process::ControllerManager).await?;
        control_plane.listening(Process::Scheduler).await?;
        step.done();
        Ok(())
    }

    async fn nodes_ready(&self) -> Result<()> {
        let nodes = self.nodes();
        let labels = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}});
        let api: Api<KubeNode> = Api::all(self.client.clone());
        let wait = async |node: &Node| {
            let step = Step::quiet(format!("{} is Ready", node.name()));
            node.ready(Duration::from_secs(240)).await?;
            // The kubelet may not give itself this label.
            api.patch(node.name(), &PatchParams::default(), &Patch::Merge(&labels))
                .await?;
            step.done();
            Ok::<_, BedError>(())
        };
        try_join_all(nodes.iter().map(wait)).await.map(drop)
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
        namespace: Namespace::of(&state.name),
        pki: Pki::of(&state.folder()),
    }
}

fn check(options: &Options) -> Result<()> {
    let name = &options.name;
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 20 || name.starts_with('-') || !name.bytes().all(legal) {
        return Err(BedError::Missing {
            what: format!("{name:?} is no name for a cluster"),
            remedy: "use 1 to 20 of a-z, 0-9 and -, not beginning with -".to_owned(),
        });
    }
    if !(1..=9).contains(&options.nodes) {
        return Err(BedError::Missing {
            what: format!("a cluster cannot have {} nodes", options.nodes),
            remedy: "use 1 to 9".to_owned(),
        });
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(BedError::Missing {
            what: "the bed makes network namespaces, taps and mounts, which only root may".to_owned(),
            remedy: "run it as root".to_owned(),
        });
    }
    if !Path::new("/dev/net/tun").exists() {
        return Err(BedError::Missing {
            what: "/dev/net/tun is missing".to_owned(),
            remedy: "modprobe tun".to_owned(),
        });
    }
    Ok(())
}

async fn create(options: &Options) -> Result<Cluster> {
    let name = &options.name;
    let step = Step::quiet("network namespace, certificates and disks");
    remove(name).await?;
    let folder = folders::cluster(name);
    folders::make(&folder)?;
    let images = images::of_the_bed().await?;
    let nodes: Vec<_> = (1..=options.nodes)
        .map(|index| {
            let name = format!("node{index}");
            let disks = disks::of_node(&folder.join("disks"), &name, index);
            NodeState {
                name,
                index: u8::try_from(index).unwrap_or(u8::MAX),
                disks,
            }
        })
        .collect();
    let state = State {
        name: name.clone(),
        bed: own_copy(&folder)?,
        port: link::free_port()?,
        memory: options.memory,
        kernel: kernel::find().await?,
        images,
        nodes,
    };
    Namespace::of(name)
        .create(u8::try_from(options.nodes).unwrap_or(u8::MAX))
        .await?;
    let names: Vec<_> = state.nodes.iter().map(|node| node.name.clone()).collect();
    Pki::of(&folder).create(&names, state.port)?;
    state.write()?;
    step.done();

    let kernel = state.kernel.release.clone();
    let cluster = Cluster::of(state).await?;
    cluster.start_link().await?;
    for node in cluster.nodes() {
        node.power_on(&Boot::default())?;
    }
    eprintln!("bed: {} nodes boot with kernel {kernel}", options.nodes);
    cluster.start_control_plane().await?;
    cluster.nodes_ready().await?;
    Ok(cluster)
}

/// Brings back what a cluster that was up has lost.
async fn heal(state: State) -> Result<Cluster> {
    if !Namespace::of(&state.name).exists() {
        return Err(BedError::NotUp { name: state.name });
    }
    let cluster = Cluster::of(state).await?;
    cluster.start_link().await?;
    for process in Process::ALL {
        cluster.resume(process).await?;
    }
    for node in cluster.nodes() {
        node.restore_network().await?;
        node.resume().await?;
        if !node.is_on() {
            eprintln!("bed: {} was off and boots", node.name());
            node.power_on(&Boot::default())?;
        }
    }
    cluster.start_control_plane().await?;
    for node in cluster.nodes() {
        node.start_services().await;
    }
    cluster.nodes_ready().await?;
    Ok(cluster)
}

async fn remove(name: &str) -> Result<()> {
    let folder = folders::cluster(name);
    let namespace = Namespace::of(name);
    Running::of(&folder, link::NAME).kill().await?;
    let begun = Instant::now();
    loop {
        let processes = namespace.processes();
        for pid in &processes {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        if processes.is_empty() {
            break;
        }
        if begun.elapsed() > Duration::from_secs(20) {
            return Err(BedError::Timeout {
                what: format!(
                    "the end of processes {processes:?} in the namespace {}",
                    namespace.name()
                ),
                waited: begun.elapsed(),
                hint: "see what holds them in /proc/<pid>/wchan".to_owned(),
            });
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    namespace.delete().await?;
    if folder.exists() {
        std::fs::remove_dir_all(&folder).during(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

/// A copy of `bed` that no later build changes: the nodes' first process runs from it.
fn own_copy(folder: &Path) -> Result<PathBuf> {
    let copy = folder.join("bed");
    let program = crate::program()?;
    std::fs::copy(&program, &copy).during(|| format!("cannot copy {}", program.display()))?;
    Ok(copy)
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

async fn api_ready(client: &kube::Client) -> Result<()> {
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
