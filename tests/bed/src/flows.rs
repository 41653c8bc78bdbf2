//! Connections that are forgotten on their way, as by a NAT or a load balancer that started anew: what goes over those that
//! are there is dropped and never answered, and new ones work.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::{
    command,
    error::Result,
    network::{Namespace, node_address},
    node::Node,
};

/// Where the rules are: nothing else is in it.
const CHAIN: &str = "forgotten";
/// Of the API server, as the other side of a connection sees it.
const PORT: u16 = 443;

impl Node {
    /// From now on nothing goes over the connections that this node and its pods have to the API server; how many these are.
    pub async fn forget_connections(&self) -> Result<usize> {
        let namespace = self.namespace();
        let address = node_address(self.state.index);
        let pods = Ipv4Addr::new(10, 244, self.state.index, 0);
        let of_node = |peer: &SocketAddr| match peer.ip() {
            IpAddr::V4(ip) => ip == address || ip.octets()[..3] == pods.octets()[..3],
            IpAddr::V6(_) => false,
        };
        let peers = connected(&namespace).await?;
        let peers: Vec<SocketAddr> = peers.into_iter().filter(of_node).collect();
        prepare(&namespace).await?;
        for peer in &peers {
            let (ip, port, own) = (peer.ip().to_string(), peer.port().to_string(), PORT.to_string());
            let tcp = ["-A", CHAIN, "-p", "tcp"];
            iptables(
                &namespace,
                &[&tcp[..], &["-s", &ip, "--sport", &port, "-j", "DROP"]].concat(),
            )
            .await?;
            let back = ["-d", &ip, "--sport", &own, "--dport", &port, "-j", "DROP"];
            iptables(&namespace, &[&tcp[..], &back].concat()).await?;
        }
        Ok(peers.len())
    }

    /// Everything goes over every connection again, of every node.
    pub async fn remember_connections(&self) -> Result<()> {
        let namespace = self.namespace();
        prepare(&namespace).await
    }
}

/// Makes the chain, with nothing in it.
async fn prepare(namespace: &Namespace) -> Result<()> {
    if iptables(namespace, &["-F", CHAIN]).await.is_ok() {
        return Ok(());
    }
    iptables(namespace, &["-N", CHAIN]).await?;
    for built_in in ["INPUT", "OUTPUT"] {
        iptables(namespace, &["-I", built_in, "-j", CHAIN]).await?;
    }
    Ok(())
}

/// Who has a connection to the API server.
async fn connected(namespace: &Namespace) -> Result<Vec<SocketAddr>> {
    let port = format!("sport = :{PORT}");
    let listed = within(namespace, &["ss", "-Htn", "state", "established", &port]).await?;
    let peer = |line: &str| {
        line.split_whitespace()
            .last()?
            .replace("[::ffff:", "")
            .replace(']', "")
            .parse()
            .ok()
    };
    Ok(listed.lines().filter_map(peer).collect())
}

async fn iptables(namespace: &Namespace, arguments: &[&str]) -> Result<()> {
    within(namespace, &[&["iptables", "-w"], arguments].concat())
        .await
        .map(drop)
}

async fn within(namespace: &Namespace, argv: &[&str]) -> Result<String> {
    command::run(&[&["ip", "netns", "exec", namespace.name()], argv].concat()).await
}
