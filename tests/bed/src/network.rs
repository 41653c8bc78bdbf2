//! The network namespace of a cluster: everything of it is inside, and nothing of it is anywhere else.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    unistd::Pid,
};

use crate::{
    command,
    error::{BedError, During, Result},
};

/// The machine's address on the bridge, where the API server listens.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// The address of the `kubernetes` service; on the bridge too, so that no kube-proxy is needed.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The bridge that the nodes are on.
const BRIDGE: &str = "br0";

/// The address of node `index` (from 1).
pub(crate) fn node_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, 10 + index)
}

/// The pods of node `index`.
pub(crate) fn pod_range(index: u8) -> String {
    format!("10.244.{index}.0/24")
}

/// The name of the tap of node `index` on the machine's side.
pub(crate) fn tap(index: u8) -> String {
    format!("tap{index}")
}

/// A network namespace by name.
#[derive(Debug, Clone)]
pub(crate) struct Namespace(String);

impl Namespace {
    /// That of a cluster.
    pub(crate) fn of(cluster: &str) -> Self {
        Namespace(format!("quarry-{cluster}"))
    }

    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    pub(crate) fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Moves the calling thread, and what it starts from now on, into the namespace.
    pub(crate) fn enter(&self) -> Result<()> {
        let action = || format!("cannot enter the network namespace {}", self.0);
        let file = File::open(self.path()).during(action)?;
        setns(file, CloneFlags::CLONE_NEWNET).during(action)
    }

    /// A connection from within the namespace, usable from anywhere.
    pub(crate) fn connect(&self, address: SocketAddr, patience: Duration) -> Result<TcpStream> {
        self.within(|| {
            TcpStream::connect_timeout(&address, patience)
                .during(|| format!("cannot connect to {address} in the network namespace {}", self.0))
        })
    }

    async fn ip(&self, arguments: &[&str]) -> Result<()> {
        command::run(&[&["ip", "-n", &self.0], arguments].concat())
            .await
            .map(drop)
    }

    /// Makes the namespace with its bridge, and a tap and a route for each node.
    pub(crate) async fn create(&self, nodes: u8) -> Result<()> {
        command::run(&["ip", "netns", "add", &self.0]).await?;
        self.ip(&["link", "set", "lo", "up"]).await?;
        self.ip(&["link", "add", BRIDGE, "type", "bridge"]).await?;
        self.ip(&["addr", "add", &format!("{GATEWAY}/24"), "dev", BRIDGE])
            .await?;
        self.ip(&["addr", "add", &format!("{SERVICE}/32"), "dev", BRIDGE])
            .await?;
        self.ip(&["link", "set", BRIDGE, "up"]).await?;
        for index in 1..=nodes {
            let tap = tap(index);
            self.ip(&["tuntap", "add", "dev", &tap, "mode", "tap"]).await?;
            self.ip(&["link", "set", &tap, "master", BRIDGE, "up"]).await?;
            self.ip(&[
                "route",
                "add",
                &pod_range(index),
                "via",
                &node_address(index).to_string(),
            ])
            .await?;
        }
        self.within(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").during(|| "cannot forward packets".to_owned())
        })
    }

    /// Does something in a thread of its own that is in the namespace.
    fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let enter_and_work = || self.enter().and_then(|()| work());
        std::thread::scope(|scope| scope.spawn(enter_and_work).join()).unwrap_or_else(|_| {
            Err(BedError::Missing {
                what: "a thread died".to_owned(),
                remedy: "try again".to_owned(),
            })
        })
    }

    /// Cuts or restores the cable of node `index`.
    pub(crate) async fn cable(&self, index: u8, plugged: bool) -> Result<()> {
        // Off the bridge, not down: a node's driver gives up for good when its tap goes down.
        let change: &[&str] = if plugged { &["master", BRIDGE] } else { &["nomaster"] };
        self.ip(&[&["link", "set", &tap(index)], change].concat()).await
    }

    /// Every process in the namespace, whoever started it.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let Ok(namespace) = std::fs::metadata(self.path()) else {
            return Vec::new();
        };
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| {
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                let of_process = std::fs::metadata(entry.path().join("ns/net")).ok()?;
                (of_process.ino() == namespace.ino() && of_process.dev() == namespace.dev()).then(|| Pid::from_raw(pid))
            })
            .collect()
    }

    /// Removes the namespace, and with it its bridge and taps.
    pub(crate) async fn delete(&self) -> Result<()> {
        if self.exists() {
            command::run(&["ip", "netns", "delete", &self.0]).await?;
        }
        Ok(())
    }
}
