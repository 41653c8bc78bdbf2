//! A node: a kernel with a machine's life. It can be killed, booted, paused, cut off, and asked to run programs.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::Api;
use nix::sys::signal::Signal;
use tokio::{io::BufReader, net::TcpStream};

use crate::{
    agent::{self, Answer, Request},
    command::{self, Output},
    containerd,
    control_plane::last_lines,
    daemon::{Daemon, Running},
    disks::{self, Boot, Disk},
    error::{BedError, Result},
    folders,
    network::{self, Namespace},
    node_init::{Config, VARIABLE},
    pki::Pki,
    state::{NodeState, State},
};

/// Where the kubelet says that it is well.
const KUBELET_HEALTH: u16 = 10248;
/// How long a node may take from power to Ready.
const BOOT: Duration = Duration::from_secs(180);

/// A handle on one node of a cluster.
#[derive(Clone)]
pub struct Node {
    pub(crate) cluster: Arc<State>,
    pub(crate) state: NodeState,
    pub(crate) client: kube::Client,
}

impl Node {
    /// Its name, the same in Kubernetes.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Its data disks, whether attached at the moment or not.
    pub fn disks(&self) -> Vec<Disk> {
        // Boots may have added some since this handle was made.
        State::read(&self.cluster.name)
            .ok()
            .and_then(|state| state.nodes.into_iter().find(|node| node.name == self.state.name))
            .map_or_else(|| self.state.disks.clone(), |node| node.disks)
    }

    /// Runs a program in the node, outside any container, and returns what came of it.
    pub async fn run<I, S>(&self, argv: I) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.run_with(argv, None).await
    }

    /// The same with a standard input.
    pub async fn run_with<I, S>(&self, argv: I, stdin: Option<String>) -> Result<Output>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let argv = argv.into_iter().map(Into::into).collect();
        match self.ask(&Request::Run { argv, stdin }).await? {
            Answer::Output(output) => Ok(output),
            Answer::Done => Err(self.error("an answer that does not fit".to_owned())),
            Answer::Failed(message) => Err(self.error(message)),
        }
    }

    /// Runs a program in the node and returns its standard output; fails when it fails.
    pub async fn run_ok<I, S>(&self, argv: I) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let argv: Vec<String> = argv.into_iter().map(Into::into).collect();
        let output = self.run(argv.clone()).await?;
        if output.success() {
            Ok(output.stdout)
        } else {
            Err(command::failed(
                &format!("{}: {}", self.name(), command::words(&argv)),
                &output,
            ))
        }
    }

    /// A connection to a port of the node's loopback.
    pub async fn connect(&self, port: u16) -> Result<BufReader<TcpStream>> {
        let address = SocketAddr::from((network::node_address(self.state.index), agent::PORT));
        let (stream, answer) =
            agent::converse(&self.namespace(), self.name(), address, &Request::Connect(port)).await?;
        match answer {
            Answer::Failed(message) => Err(self.error(format!("127.0.0.1:{port}: {message}"))),
            Answer::Done | Answer::Output(_) => Ok(stream),
        }
    }

    /// Cuts the power: the kernel and all in it are gone at once. The disks stay as they are.
    pub async fn kill(&self) -> Result<()> {
        self.machine().kill().await
    }

    /// Switches the node off in an orderly way: everything is flushed first.
    pub async fn power_off(&self) -> Result<()> {
        self.done(&Request::PowerOff).await?;
        let begun = Instant::now();
        while self.machine().pid().is_some() && begun.elapsed() < Duration::from_secs(30) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.kill().await
    }

    /// Switches the node on and waits until it is Ready. Its system disk is kept as on a real machine: images, containers, the kubelet's state.
    pub async fn boot(&self, boot: Boot) -> Result<()> {
        self.power_on(&boot)?;
        self.ready(BOOT).await
    }

    /// An orderly reboot; returns when the node is Ready again.
    pub async fn reboot(&self) -> Result<()> {
        self.power_off().await?;
        self.boot(Boot::default()).await
    }

    /// Pulls the node's network cable.
    pub async fn cut_network(&self) -> Result<()> {
        self.namespace().cable(self.state.index, false).await
    }

    /// Plugs it in again.
    pub async fn restore_network(&self) -> Result<()> {
        self.namespace().cable(self.state.index, true).await
    }

    /// Freezes the node as a whole.
    pub async fn pause(&self) -> Result<()> {
        self.machine().signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub async fn resume(&self) -> Result<()> {
        self.machine().signal(Signal::SIGCONT)
    }

    /// Whether the node has power.
    pub fn is_on(&self) -> bool {
        self.machine().pid().is_some()
    }

    /// Stops the kubelet; containers go on.
    pub async fn stop_kubelet(&self) -> Result<()> {
        self.done(&Request::Service {
            name: "kubelet".to_owned(),
            run: false,
        })
        .await?;
        let begun = Instant::now();
        while self.run(["pidof", "kubelet"]).await?.success() {
            if begun.elapsed() > Duration::from_secs(15) {
                return Err(self.error("the kubelet does not end".to_owned()));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Starts it again.
    pub async fn start_kubelet(&self) -> Result<()> {
        self.done(&Request::Service {
            name: "kubelet".to_owned(),
            run: true,
        })
        .await
    }

    /// Starts the services that someone has stopped, as far as the node can be reached.
    pub(crate) async fn start_services(&self) {
        for name in ["containerd", "kubelet"] {
            if let Err(error) = self
                .done(&Request::Service {
                    name: name.to_owned(),
                    run: true,
                })
                .await
            {
                eprintln!("bed: {error}");
            }
        }
    }

    /// Waits until the kubelet of the present boot says Ready.
    pub async fn ready(&self, patience: Duration) -> Result<()> {
        let begun = Instant::now();
        let mut boot_id = None;
        loop {
            if !self.is_on() {
                return Err(self.error(format!("it went off: {}", self.said_last())));
            }
            if boot_id.is_none() {
                boot_id = self
                    .run(["cat", "/proc/sys/kernel/random/boot_id"])
                    .await
                    .ok()
                    .map(|output| output.stdout.trim().to_owned());
            }
            // The API server remembers the last word of a kubelet that has been stopped, so ask the kubelet as well.
            let kubelet = boot_id.is_some() && self.connect(KUBELET_HEALTH).await.is_ok();
            if kubelet && self.ready_since(boot_id.as_deref()).await {
                return Ok(());
            }
            if begun.elapsed() > patience {
                return Err(BedError::Timeout {
                    what: format!("{} being Ready", self.name()),
                    waited: patience,
                    hint: format!(
                        "see {} and `bed run {} -- tail /var/lib/quarry-bed/log/kubelet.log`",
                        self.console().display(),
                        self.name()
                    ),
                });
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn ready_since(&self, boot_id: Option<&str>) -> bool {
        let nodes: Api<KubeNode> = Api::all(self.client.clone());
        let Ok(node) = nodes.get(self.name()).await else {
            return false;
        };
        let status = node.status.unwrap_or_default();
        status.node_info.map(|info| info.boot_id).as_deref() == boot_id
            && status
                .conditions
                .unwrap_or_default()
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    /// Switches the node on and returns at once.
    pub(crate) fn power_on(&self, boot: &Boot) -> Result<()> {
        if self.is_on() {
            return Err(self.error("it is on already; kill or power_off it first".to_owned()));
        }
        let folder = self.cluster.folder();
        let disk_folder = folder.join("disks");
        folders::make(&disk_folder)?;
        let mut known = self.disks();
        for size in &boot.extra {
            known.push(disks::another(&disk_folder, self.name(), &known, *size));
        }
        if !boot.extra.is_empty() {
            let mut state = State::read(&self.cluster.name)?;
            state
                .nodes
                .iter_mut()
                .filter(|node| node.name == self.state.name)
                .for_each(|node| node.disks.clone_from(&known));
            state.write()?;
        }
        let mut attached = vec![format!(
            "ubd0={},,{}-system",
            disks::system(&disk_folder, self.name())?.display(),
            self.name()
        )];
        for ((disk, read_only), letter) in boot.arrange(&known)?.iter().zip('b'..) {
            let disk = disk.of_machine(boot.machine.as_deref());
            disk.create()?;
            let flags = if *read_only { "r" } else { "" };
            attached.push(format!("ubd{letter}{flags}={},,{}", disk.file.display(), disk.serial));
        }
        let config = folder.join("nodes").join(format!("{}.json", self.name()));
        self.write_config(&config, boot)?;
        self.machine_daemon(&folder, &config, attached)?
            .start(&folder)
            .map(drop)
    }

    fn write_config(&self, path: &Path, boot: &Boot) -> Result<()> {
        path.parent().map_or(Ok(()), folders::make)?;
        let config = Config {
            node: self.state.name.clone(),
            index: self.state.index,
            nodes: u8::try_from(self.cluster.nodes.len()).unwrap_or(u8::MAX),
            cluster: self.cluster.name.clone(),
            bed: self.cluster.bed.clone(),
            modules: self.cluster.kernel.modules.clone(),
            kubelet: self.cluster.kubernetes.folder()?.join("kubelet"),
            containerd: containerd::folder()?,
            kubeconfig: Pki::of(&self.cluster.folder()).kubeconfig(self.name()),
            images: self.cluster.images.clone(),
            machine: boot.machine.clone().unwrap_or_default(),
            udev: boot.udev.unwrap_or(self.cluster.udev),
        };
        let text = serde_json::to_string(&config).map_err(|source| BedError::Json {
            what: "a node's configuration".to_owned(),
            source,
        })?;
        folders::write(path, text)
    }

    fn machine_daemon(&self, folder: &Path, config: &Path, attached: Vec<String>) -> Result<Daemon> {
        let kernel = &self.cluster.kernel;
        let uml = folder.join("uml");
        let _ = std::fs::remove_dir_all(self.kernel_folder());
        folders::make(&uml)?;
        let mut argv = vec![
            kernel.program.display().to_string(),
            format!("mem={}M", self.cluster.memory),
            "rootfstype=hostfs".to_owned(),
            "rootflags=/".to_owned(),
            "root=/dev/root".to_owned(),
            "ro".to_owned(),
            format!("init={}", self.cluster.bed.display()),
            format!("{VARIABLE}={}", config.display()),
            format!("umid={}", self.name()),
            format!("uml_dir={}/", uml.display()),
            format!(
                "vec0:transport=tap,ifname={},depth=128,gro=1",
                network::tap(self.state.index)
            ),
            "con=null".to_owned(),
            "con0=null,fd:1".to_owned(),
            "ssl=null".to_owned(),
            "quiet".to_owned(),
        ];
        argv.extend(kernel.arguments.iter().cloned());
        argv.extend(attached);
        // The node's memory is a file in TMPDIR.
        let memory = if Path::new("/dev/shm").is_dir() {
            "/dev/shm"
        } else {
            "/tmp"
        };
        Ok(Daemon {
            name: self.state.name.clone(),
            argv: argv.into_iter().map(Into::into).collect(),
            env: vec![("TMPDIR", memory.into())],
            namespace: Some(self.namespace()),
            etc: Vec::new(),
        })
    }

    /// The file with what the node's kernel and first process say.
    pub fn console(&self) -> PathBuf {
        self.cluster
            .folder()
            .join("log")
            .join(format!("{}.log", self.state.name))
    }

    /// The end of that, long enough for a kernel that panics to say where.
    pub fn said_last(&self) -> String {
        last_lines(&self.console(), 60)
    }

    /// The folder with the kernel's own files.
    pub(crate) fn kernel_folder(&self) -> PathBuf {
        self.cluster.folder().join("uml").join(&self.state.name)
    }

    fn machine(&self) -> Running {
        Running::of(&self.cluster.folder(), &self.state.name)
    }

    pub(crate) fn namespace(&self) -> Namespace {
        Namespace::of(&self.cluster.name)
    }

    async fn ask(&self, request: &Request) -> Result<Answer> {
        let address = SocketAddr::from((network::node_address(self.state.index), agent::PORT));
        Ok(agent::converse(&self.namespace(), self.name(), address, request)
            .await?
            .1)
    }

    async fn done(&self, request: &Request) -> Result<()> {
        match self.ask(request).await? {
            Answer::Failed(message) => Err(self.error(message)),
            Answer::Done | Answer::Output(_) => Ok(()),
        }
    }

    fn error(&self, message: String) -> BedError {
        BedError::Agent {
            node: self.state.name.clone(),
            message,
        }
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("cluster", &self.cluster.name)
            .field("name", &self.state.name)
            .finish_non_exhaustive()
    }
}
