//! The life of a cluster: made, healed, removed.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use nix::sys::{
    signal::{Signal, kill},
    statvfs::statvfs,
};
use serde_json::json;

use crate::{
    cluster::{Cluster, Options, api_ready},
    control_plane::Process,
    daemon::Running,
    disks::{self, Boot},
    error::{BedError, During, Result},
    folders, images, kernel,
    kubernetes::Version,
    link,
    network::Namespace,
    node::Node,
    pki::Pki,
    state::{NodeState, State},
    step::Step,
};

/// Whether this process has begun to make a cluster, and so has to take it down when it is interrupted.
static BEGUN: AtomicBool = AtomicBool::new(false);

/// Whether this process has begun to make a cluster.
pub(crate) fn has_begun() -> bool {
    BEGUN.load(Ordering::SeqCst)
}

/// Refuses what cannot work, before anything is done.
pub(crate) fn check(options: &Options) -> Result<()> {
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

/// What the root file system and the disks of a node take at most while tests fill them, bytes.
const ROOM_OF_A_NODE: u64 = 3 << 30;

/// Refuses to begin where the nodes would fill the file system: etcd ends where it cannot write, and all hang.
fn check_room(nodes: usize) -> Result<()> {
    let folder = folders::clusters();
    folders::make(&folder)?;
    let found = statvfs(&folder).during(|| format!("cannot see the room of {}", folder.display()))?;
    let free = found.blocks_available() * found.fragment_size();
    let needed = ROOM_OF_A_NODE * nodes as u64;
    if free >= needed {
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    Err(BedError::Missing {
        what: format!(
            "a cluster of {nodes} nodes needs up to {:.0} GiB, and the file system of {} has {:.1} GiB free",
            gib(needed),
            folder.display(),
            gib(free)
        ),
        remedy: "remove what is not needed there: other clusters (`make cluster-down`), what was built (`make clean`)"
            .to_owned(),
    })
}

/// Makes a cluster from nothing; one of the same name is removed.
pub(crate) async fn create(options: &Options, kubernetes: Version) -> Result<Cluster> {
    let name = &options.name;
    let images = images::of_the_bed().await?;
    let kernel = kernel::find().await?;
    let step = Step::quiet("network namespace, certificates and disks");
    remove(name).await?;
    check_room(options.nodes)?;
    BEGUN.store(true, Ordering::SeqCst);
    let folder = folders::cluster(name);
    folders::make(&folder)?;
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
        udev: options.udev,
        kubernetes,
        kernel,
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
pub(crate) async fn heal(state: State) -> Result<Cluster> {
    if !Namespace::of(&state.name).exists() {
        return Err(BedError::NotUp { name: state.name });
    }
    let cluster = Cluster::of(state).await?;
    cluster.start_link().await?;
    for process in Process::ALL {
        cluster.resume(process).await?;
    }
    cluster.kill(Process::SecondScheduler).await?;
    let own = cluster.control_plane().own_config();
    if own.exists() {
        std::fs::remove_file(&own).during(|| format!("cannot remove {}", own.display()))?;
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

/// Removes all of a cluster, however little of it is left.
pub(crate) async fn remove(name: &str) -> Result<()> {
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

impl Cluster {
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
