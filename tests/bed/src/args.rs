//! The command line of `bed`.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cluster::{Cluster, Options},
    command::Output,
    containerd,
    control_plane::Process,
    disks::Boot,
    folders,
    images::{Images, build_images},
    kubernetes::Version,
    lifecycle, link, packages, quarry,
    udev::Udev,
};

/// Like `println!`, but whoever reads may stop reading.
macro_rules! say {
    ($($words:tt)*) => {
        drop(writeln!(std::io::stdout(), $($words)*))
    };
}

/// A true Kubernetes cluster on one machine, to build and judge Quarry on.
#[derive(Debug, Parser)]
#[command(name = "bed", version, about)]
struct Args {
    /// The cluster's name; clusters of different names do not know of each other.
    #[arg(long, global = true, default_value = "default", env = "QUARRY_CLUSTER")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring the cluster up, or heal the one that is there, and say how to use it.
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = Options::default().nodes)]
        nodes: usize,
        /// Memory of a node in MiB.
        #[arg(long, default_value_t = Options::default().memory)]
        memory: u32,
        /// Which Kubernetes, such as 1.36.3; where none is named, that of $QUARRY_KUBERNETES, else the usual one.
        #[arg(long)]
        kubernetes: Option<Version>,
        /// Begin anew, even if a cluster of this name is up.
        #[arg(long)]
        fresh: bool,
        /// What of udev the nodes have: full, no-lvm-rules, no-dm-rules, no-dmsetup or none.
        #[arg(long, env = "QUARRY_UDEV", default_value = "full")]
        udev: Udev,
        /// Build Quarry from this tree and deploy it.
        #[arg(long)]
        quarry: bool,
    },
    /// Take the cluster down; nothing of it is left.
    Down {
        /// Every cluster there is.
        #[arg(long)]
        all: bool,
    },
    /// Say what is up.
    Status,
    /// Say how to use the cluster.
    Env {
        /// Print the path of the kubeconfig, and nothing else.
        #[arg(long)]
        kubeconfig: bool,
    },
    /// Run a program in a node, outside any container.
    Run {
        /// The node.
        node: String,
        /// The program and its arguments.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// kubectl, with all rights on the cluster.
    Kubectl {
        /// Its arguments.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Reboot a node in an orderly way.
    Reboot {
        /// The node.
        node: String,
    },
    /// Cut a node's power.
    Kill {
        /// The node.
        node: String,
    },
    /// Switch a node on.
    Boot {
        /// The node.
        node: String,
        /// These disks first, by stable path or serial number.
        #[arg(long)]
        order: Vec<String>,
        /// Without these disks.
        #[arg(long)]
        without: Vec<String>,
        /// With these disks read-only.
        #[arg(long)]
        read_only: Vec<String>,
        /// With blank disks of these sizes in GiB.
        #[arg(long)]
        extra: Vec<u64>,
        /// Another machine takes the name of the node, with blank disks of its own; its mark, up to 10 letters and digits.
        #[arg(long)]
        machine: Option<String>,
        /// With that of udev, until the next boot.
        #[arg(long)]
        udev: Option<Udev>,
    },
    /// Take a disk from a running node.
    Take {
        /// The node.
        node: String,
        /// The disk, by stable path or serial number.
        disk: String,
    },
    /// Give it back.
    Return {
        /// The node.
        node: String,
        /// The disk, by stable path or serial number.
        disk: String,
    },
    /// Stop a process of the control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.
    Stop {
        /// The process.
        #[arg(value_parser = process)]
        process: Process,
    },
    /// Start it again.
    Start {
        /// The process.
        #[arg(value_parser = process)]
        process: Process,
    },
    /// Load image archives into every node.
    Load {
        /// The archives.
        archives: Vec<PathBuf>,
    },
    /// Build the images of the manager and the extender and print their names and archives.
    Image {
        /// Load them into the cluster too.
        #[arg(long)]
        load: bool,
    },
    /// Install the packages that are missing and build the programs of Kubernetes and containerd.
    Prepare,
    /// The relay between the namespaces; `up` starts it.
    #[command(hide = true)]
    Link {
        /// The port for the API server.
        port: u16,
        /// How many nodes there are.
        nodes: u8,
    },
}

fn process(name: &str) -> Result<Process, String> {
    let names = || Process::ALL.map(Process::program).join(", ");
    Process::ALL
        .into_iter()
        .find(|process| process.program() == name)
        .ok_or_else(|| format!("no such process; there are: {}", names()))
}

/// Runs the command line.
pub fn run() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        // Enters another namespace, and must do so before there are threads.
        Command::Link { port, nodes } => link::serve(&args.name, port, nodes)
            .map(|()| ExitCode::SUCCESS)
            .map_err(Into::into),
        command => tokio::runtime::Runtime::new()
            .context("cannot start the runtime")
            .and_then(|runtime| {
                let result = runtime.block_on(perform(&args.name, command));
                runtime.shutdown_background();
                result
            }),
    };
    result.unwrap_or_else(|error| {
        eprintln!("bed: {error:#}");
        ExitCode::FAILURE
    })
}

async fn perform(name: &str, command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up {
            nodes,
            memory,
            kubernetes,
            fresh,
            udev,
            quarry,
        } => {
            let options = Options {
                name: name.to_owned(),
                nodes,
                memory,
                kubernetes,
                fresh,
                udev,
            };
            return up(options, quarry).await;
        }
        Command::Down { all } => {
            for name in if all { Cluster::names() } else { vec![name.to_owned()] } {
                Cluster::down(&name).await?;
                say!("cluster {name:?} is down");
            }
        }
        Command::Status => status().await?,
        Command::Env { kubeconfig: true } => say!("{}", Cluster::attach(name).await?.kubeconfig().display()),
        Command::Env { kubeconfig: false } => usage(&Cluster::attach(name).await?)?,
        Command::Run { node, argv } => return Ok(show(&Cluster::attach(name).await?.node(&node)?.run(argv).await?)),
        Command::Kubectl { arguments } => {
            let cluster = Cluster::attach(name).await?;
            let mut kubectl = tokio::process::Command::new(cluster.kubectl());
            let status = kubectl
                .args(arguments)
                .env("KUBECONFIG", cluster.kubeconfig())
                .status()
                .await
                .context("cannot run kubectl")?;
            return Ok(code(status.code().unwrap_or(1)));
        }
        Command::Reboot { node } => Cluster::attach(name).await?.node(&node)?.reboot().await?,
        Command::Kill { node } => Cluster::attach(name).await?.node(&node)?.kill().await?,
        Command::Boot {
            node,
            order,
            without,
            read_only,
            extra,
            machine,
            udev,
        } => {
            let extra = extra.into_iter().map(|size| size << 30).collect();
            Cluster::attach(name)
                .await?
                .node(&node)?
                .boot(Boot {
                    order,
                    without,
                    read_only,
                    extra,
                    machine,
                    udev,
                })
                .await?;
        }
        Command::Take { node, disk } => Cluster::attach(name).await?.node(&node)?.take_disk(&disk).await?,
        Command::Return { node, disk } => Cluster::attach(name).await?.node(&node)?.return_disk(&disk).await?,
        Command::Stop { process } => Cluster::attach(name).await?.stop(process).await?,
        Command::Start { process } => Cluster::attach(name).await?.start(process).await?,
        Command::Load { archives } => {
            let cluster = Cluster::attach(name).await?;
            for archive in archives {
                cluster.load_image(&archive).await?;
            }
        }
        Command::Image { load } => {
            let Images { manager, extender } = build_images(&folders::repository()).await?;
            for image in [manager, extender] {
                say!("{} {}", image.reference, image.archive.display());
                if load {
                    Cluster::attach(name).await?.load(&image).await?;
                }
            }
        }
        Command::Prepare => {
            packages::ensure().await?;
            say!("{}", containerd::ensure().await?.display());
            say!("{}", Version::asked()?.ensure().await?.display());
        }
        Command::Link { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Brings the cluster up; a Ctrl-C before the end takes down what it made, but not a cluster that was there before.
async fn up(options: Options, quarry: bool) -> anyhow::Result<ExitCode> {
    let name = options.name.clone();
    let comes_up = async {
        if quarry {
            Cluster::up_with_quarry(options, &[]).await
        } else {
            Cluster::up(options).await
        }
    };
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let cluster = tokio::select! {
        cluster = comes_up => Some(cluster?),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    match cluster {
        Some(cluster) => {
            usage(&cluster)?;
            if quarry {
                usage_of_quarry(&cluster)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        None => {
            if lifecycle::has_begun() {
                eprintln!("bed: interrupted; taking the cluster down");
                Cluster::down(&name).await?;
            } else {
                eprintln!("bed: interrupted");
            }
            Ok(code(130))
        }
    }
}

fn usage(cluster: &Cluster) -> anyhow::Result<()> {
    let bed = crate::program()?;
    let bed = format!("{} --name {}", bed.display(), cluster.name());
    say!("# Kubernetes {}", cluster.kubernetes());
    say!("export KUBECONFIG={}", cluster.kubeconfig().display());
    say!("# kubectl:           {}", cluster.kubectl().display());
    say!("# run in a node:     {bed} run node1 -- lsblk");
    say!("# logs and consoles: {}", cluster.logs().display());
    say!("# take it down:      {bed} down");
    Ok(())
}

/// What to try on a cluster with Quarry; each line can be run as it stands.
fn usage_of_quarry(cluster: &Cluster) -> anyhow::Result<()> {
    let example = cluster.example()?;
    let kubectl = cluster.kubectl().display();
    say!(
        "# Quarry runs in the namespace {}. Something to try on it:",
        quarry::NAMESPACE
    );
    say!(
        "{kubectl} apply -f {}    # a class on disks of this cluster, a claim, a pod",
        example.display()
    );
    say!("{kubectl} wait --for=condition=Ready --timeout=120s pod/writer");
    say!("{kubectl} get nodelocalstorages,persistentvolumeclaims,pods -o wide");
    say!("{kubectl} delete -f {}", example.display());
    Ok(())
}

async fn status() -> anyhow::Result<()> {
    let names = Cluster::names();
    if names.is_empty() {
        say!("no cluster is up");
    }
    for name in names {
        let Ok(cluster) = Cluster::attach(&name).await else {
            say!("{name}: not running (`bed --name {name} down` removes what is left)");
            continue;
        };
        say!(
            "{name}: Kubernetes {}, KUBECONFIG={}",
            cluster.kubernetes(),
            cluster.kubeconfig().display()
        );
        for process in Process::ALL {
            say!(
                "  {process}: {}",
                if cluster.is_running(process) { "runs" } else { "stopped" }
            );
        }
        for node in cluster.nodes() {
            say!("  {}: {}", node.name(), if node.is_on() { "on" } else { "off" });
        }
    }
    Ok(())
}

fn show(output: &Output) -> ExitCode {
    let _ = std::io::stdout().write_all(output.stdout.as_bytes());
    eprint!("{}", output.stderr);
    code(output.status)
}

fn code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
