//! What runs in a node: its settings, udevd, the agent, containerd and the kubelet.

use std::{
    convert::Infallible,
    fs::OpenOptions,
    io::Write,
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::{net::TcpListener, process::Command, sync::watch};

use crate::{
    agent::{self, Answer, Request},
    command, disks,
    error::{BedError, During, Result},
    folders,
    images::ImageRef,
    network::{GATEWAY, node_address, pod_range},
    node_init::{Config, power_off},
    udev,
};

const MODULES: [&str; 18] = [
    "dm-mod",
    "dm-thin-pool",
    "dm-snapshot",
    "dm-raid",
    "dm-crypt",
    "dm-flakey",
    "bridge",
    "veth",
    "overlay",
    "br_netfilter",
    "xfs",
    "btrfs",
    "ip_tables",
    "iptable_nat",
    "nf_tables",
    "nft_compat",
    "xt_conntrack",
    "loop",
];

const SYSTEM_DISK: &str = "/dev/ubda";
/// Where the system disk is mounted, and what is kept on it from boot to boot.
const SYSTEM: &str = "/var/lib/quarry-bed";
const KEPT: [(&str, &str); 3] = [
    ("containerd", "/var/lib/containerd"),
    ("kubelet", "/var/lib/kubelet"),
    ("pods", "/var/log/pods"),
];

const CONTAINERD_CONFIG: &str = r#"version = 4
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "localhost/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "/etc/cni/net.d"
"#;

/// Brings the node up and serves; ends only when something essential fails.
pub(crate) fn run(config: &Config) -> Result<Infallible> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .during(|| "cannot start the runtime".to_owned())?;
    runtime.block_on(serve(config))
}

async fn serve(config: &Config) -> Result<Infallible> {
    let begun = Instant::now();
    let said = |what: &str| eprintln!("node: {what} ({:.1} s)", begun.elapsed().as_secs_f64());
    settings(config)?;
    network(config).await?;
    let (kubelet, containerd) = (watch::channel(true).0, watch::channel(true).0);
    let address = node_address(config.index);
    let listener = TcpListener::bind((address, agent::PORT))
        .await
        .during(|| "the agent cannot listen".to_owned())?;
    let control = {
        let (kubelet, containerd) = (kubelet.clone(), containerd.clone());
        move |request| {
            let (kubelet, containerd) = (kubelet.clone(), containerd.clone());
            async move { control(request, &kubelet, &containerd).await }
        }
    };
    tokio::spawn(agent::serve(listener, control));
    said("agent listens");
    modules(config).await?;
    udev::start(config.udev).await?;
    said("modules and udev");
    system_disk().await?;
    files(config)?;
    said("system disk");
    tokio::spawn(keep_running(
        vec!["containerd".to_owned()],
        "containerd",
        containerd.subscribe(),
    ));
    containerd_answers().await?;
    said("containerd");
    for image in &config.images {
        import(image).await?;
    }
    said("images");
    // What was made for the first time must outlive a power cut in the next second.
    tokio::spawn(async { command::run(&["sync", "-f", SYSTEM]).await });
    let argv = vec![
        config.kubelet.display().to_string(),
        "--config=/run/kubelet.json".to_owned(),
        format!("--kubeconfig={}", config.kubeconfig.display()),
        format!("--hostname-override={}", config.node),
        // Made anew at each start; in the usual place, a power cut may leave it empty, and the kubelet would not start with that.
        "--cert-dir=/run/kubelet-pki".to_owned(),
        format!("--node-ip={address}"),
        "--v=2".to_owned(),
    ];
    keep_running(argv, "kubelet", kubelet.subscribe()).await
}

fn settings(config: &Config) -> Result<()> {
    let text = |path: &str, content: &str| folders::write(Path::new(path), content);
    nix::unistd::sethostname(&config.node).during(|| "cannot set the host name".to_owned())?;
    text("/etc/hostname", &format!("{}\n", config.node))?;
    // The same at every boot, as on a real machine, and different on each node.
    let name: String = config
        .machine
        .bytes()
        .chain(config.node.bytes())
        .chain(config.cluster.bytes())
        .map(|byte| format!("{byte:02x}"))
        .collect();
    text("/etc/machine-id", &format!("{name:0<32.32}\n"))?;
    text("/proc/sys/net/ipv4/ip_forward", "1")?;
    // cAdvisor refuses a processor without a clock speed.
    let processors = folders::read(Path::new("/proc/cpuinfo"))?.replace("bogomips", "cpu MHz\t\t: 2000.000\nbogomips");
    text("/run/cpuinfo", &processors)?;
    bind("/run/cpuinfo", "/proc/cpuinfo")?;
    for folder in [
        "/run/udev",
        "/run/lvm",
        "/run/lock/lvm",
        "/etc/cni/net.d",
        "/etc/containerd",
        "/etc/udev/rules.d",
        "/lib/modules",
    ] {
        folders::make(Path::new(folder))?;
    }
    text("/etc/udev/rules.d/62-quarry-bed.rules", disks::UDEV_RULE)
}

fn bind(from: &str, to: &str) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>).during(|| format!("cannot bind {from} on {to}"))
}

async fn network(config: &Config) -> Result<()> {
    let address = node_address(config.index);
    let gateway: Ipv4Addr = GATEWAY;
    command::run(&["ip", "link", "set", "lo", "up"]).await?;
    command::run(&["ip", "addr", "add", &format!("{address}/24"), "dev", "vec0"]).await?;
    command::run(&["ip", "link", "set", "vec0", "up"]).await?;
    command::run(&["ip", "route", "add", "default", "via", &gateway.to_string()]).await?;
    for other in (1..=config.nodes).filter(|other| *other != config.index) {
        command::run(&[
            "ip",
            "route",
            "add",
            &pod_range(other),
            "via",
            &node_address(other).to_string(),
        ])
        .await?;
    }
    Ok(())
}

async fn modules(config: &Config) -> Result<()> {
    let release = config.modules.file_name().unwrap_or_default();
    let expected = Path::new("/lib/modules").join(release);
    if !expected.exists() {
        symlink(&config.modules, &expected).during(|| format!("cannot link {}", expected.display()))?;
    }
    // Not every kernel has every module: those built in, or not needed here, are not missed.
    let argv: Vec<_> = ["modprobe", "-a", "-q"].into_iter().chain(MODULES).collect();
    command::try_run(Path::new("/"), &[], &argv).await.map(drop)
}

/// Mounts the system disk, made at the first boot, and binds what is kept on it to its places.
async fn system_disk() -> Result<()> {
    let none = None::<&str>;
    folders::make(Path::new(SYSTEM))?;
    // So what is written is on the disk a second later, flushed or not: neither containerd nor the kubelet flushes all that it cannot do without.
    let mounting = || {
        mount(
            Some(SYSTEM_DISK),
            SYSTEM,
            Some("ext4"),
            MsFlags::empty(),
            Some("commit=1,nodelalloc"),
        )
    };
    if mounting().is_err() {
        command::run(&[
            "mkfs.ext4",
            "-q",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1",
            SYSTEM_DISK,
        ])
        .await?;
        mounting().during(|| format!("cannot mount {SYSTEM_DISK}"))?;
    }
    folders::make(&Path::new(SYSTEM).join("log"))?;
    // containerd does not flush this file, and does not start when a power cut has left it empty.
    let identity = Path::new(SYSTEM).join("containerd/io.containerd.grpc.v1.introspection/uuid");
    if std::fs::metadata(&identity).is_ok_and(|file| file.len() == 0) {
        let _ = std::fs::remove_file(&identity);
    }
    for (name, place) in KEPT {
        let kept = format!("{SYSTEM}/{name}");
        folders::make(Path::new(&kept))?;
        folders::make(Path::new(place))?;
        bind(&kept, place)?;
        mount(none, place, none, MsFlags::MS_SHARED, none).during(|| format!("cannot share {place}"))?;
    }
    Ok(())
}

fn files(config: &Config) -> Result<()> {
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "bed",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipMasq": false,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": pod_range(config.index)}]], "routes": [{"dst": "0.0.0.0/0"}]},
        }],
    });
    let kubelet = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "failSwapOn": false,
        "localStorageCapacityIsolation": false,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "20Mi"},
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "registerNode": true,
        "maxPods": 250,
        "volumeStatsAggPeriod": "0s",
        // A container that is killed again and again is started again at once: tests that kill would else take days.
        "featureGates": {"KubeletCrashLoopBackOffMax": true},
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
    });
    folders::write(Path::new("/etc/cni/net.d/10-bed.conflist"), network.to_string())?;
    folders::write(Path::new("/etc/containerd/config.toml"), CONTAINERD_CONFIG)?;
    folders::write(Path::new("/run/kubelet.json"), kubelet.to_string())
}

async fn containerd_answers() -> Result<()> {
    let begun = Instant::now();
    let patience = Duration::from_secs(60);
    loop {
        let output = command::try_run(Path::new("/"), &[], &["ctr", "version"]).await?;
        if output.success() {
            return Ok(());
        }
        if begun.elapsed() > patience {
            return Err(BedError::Timeout {
                what: format!("containerd answering ({})", output.stderr.trim()),
                waited: patience,
                hint: format!("see {SYSTEM}/log/containerd.log"),
            });
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn import(image: &ImageRef) -> Result<()> {
    let named = command::run(&[
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
        command::run(&[
            "ctr",
            "-n",
            "k8s.io",
            "images",
            "import",
            &image.archive.display().to_string(),
        ])
        .await?;
    }
    Ok(())
}

async fn control(request: Request, kubelet: &watch::Sender<bool>, containerd: &watch::Sender<bool>) -> Answer {
    match request {
        Request::Service { name, run } => {
            let service = match name.as_str() {
                "kubelet" => kubelet,
                "containerd" => containerd,
                _ => return Answer::Failed(format!("no service {name:?}; there are: kubelet, containerd")),
            };
            service.send_replace(run);
            Answer::Done
        }
        Request::PowerOff => {
            kubelet.send_replace(false);
            containerd.send_replace(false);
            tokio::task::spawn_blocking(power_off);
            Answer::Done
        }
        Request::Run { .. } | Request::Connect(_) => Answer::Failed("not for the node as a whole".to_owned()),
    }
}

/// Keeps a program running while it is wanted: starts it again when it ends, ends it when it is not wanted any more.
async fn keep_running(argv: Vec<String>, name: &str, mut wanted: watch::Receiver<bool>) -> Result<Infallible> {
    let path = format!("{SYSTEM}/log/{name}.log");
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .during(|| format!("cannot open {path}"))?;
    loop {
        until(&mut wanted, true).await;
        let again = || log.try_clone().during(|| format!("cannot share {path}"));
        let mut child = Command::new(&argv[0])
            .args(&argv[1..])
            .stdin(Stdio::null())
            .stdout(again()?)
            .stderr(again()?)
            .spawn()
            .during(|| format!("cannot start {name}"))?;
        tokio::select! {
            status = child.wait() => {
                eprintln!("node: {name} ended by itself: {status:?}");
                let _ = writeln!(log, "ended by itself: {status:?}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            () = until(&mut wanted, false) => {
                if let Some(id) = child.id() {
                    let _ = kill(Pid::from_raw(id.cast_signed()), Signal::SIGTERM);
                }
                if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
                    let _ = child.kill().await;
                }
            }
        }
    }
}

async fn until(wanted: &mut watch::Receiver<bool>, value: bool) {
    let _ = wanted.wait_for(|wanted| *wanted == value).await;
}
