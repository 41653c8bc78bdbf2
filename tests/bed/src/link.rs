//! The link between the cluster's namespace and the machine's: a process that listens on the machine's loopback for the API server, and on
//! the namespace's loopback for the scheduler extender, which runs on the nodes.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{io::BufReader, net::TcpStream};

use crate::{
    agent::{self, Answer, Request},
    daemon::{Daemon, Running},
    error::{BedError, During, Result},
    network::{GATEWAY, Namespace},
};

/// Where the shipped scheduler configuration calls the extender.
const EXTENDER: u16 = 9899;
/// The link's name among the files of the cluster's state.
pub(crate) const NAME: &str = "link";

/// A free port of the machine's loopback.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).during(|| "no port is free on 127.0.0.1".to_owned())?;
    Ok(listener.local_addr().during(|| "no local address".to_owned())?.port())
}

/// Starts the link as a process of its own, if it does not run.
pub(crate) fn start(bed: &Path, state: &Path, cluster: &str, port: u16, nodes: usize) -> Result<()> {
    if Running::of(state, NAME).pid().is_some() {
        return Ok(());
    }
    let argv = [
        bed.as_os_str().to_owned(),
        "--name".into(),
        cluster.into(),
        "link".into(),
        port.to_string().into(),
        nodes.to_string().into(),
    ];
    Daemon {
        name: NAME.to_owned(),
        argv: argv.into(),
        env: Vec::new(),
        namespace: None,
        etc: Vec::new(),
    }
    .start(state)
    .map(drop)
}

/// The process itself: serves until it is killed.
pub fn serve(cluster: &str, port: u16, nodes: u8) -> Result<()> {
    let bind = |port: u16| {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).during(|| format!("cannot listen on 127.0.0.1:{port}"))?;
        listener
            .set_nonblocking(true)
            .during(|| "cannot use the listener".to_owned())?;
        Ok::<_, BedError>(listener)
    };
    // A socket stays in the namespace that it was made in: this one in the machine's, all that follow in the cluster's.
    let outside = bind(port)?;
    Namespace::of(cluster).enter()?;
    let extender = bind(EXTENDER)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .during(|| "cannot start the runtime".to_owned())?;
    let nodes: Arc<[SocketAddr]> = (1..=nodes)
        .map(|index| (crate::network::node_address(index), agent::PORT).into())
        .collect();
    let last = Arc::new(AtomicUsize::new(0));
    runtime.block_on(async move {
        let api = accept(outside, |client| async {
            let server = TcpStream::connect((GATEWAY, 443)).await?;
            agent::relay(BufReader::new(client), server).await
        });
        let extender = accept(extender, move |client| {
            let (nodes, last) = (nodes.clone(), last.clone());
            async move {
                let node = extender_on(&nodes, &last).await?;
                agent::relay(node, client).await
            }
        });
        tokio::try_join!(api, extender).map(drop)
    })
}

async fn accept<H, F>(listener: TcpListener, handle: H) -> Result<()>
where
    H: Fn(TcpStream) -> F,
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener).during(|| "cannot use the listener".to_owned())?;
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let handling = handle(client);
                tokio::spawn(async move {
                    if let Err(error) = handling.await {
                        eprintln!("link: {error}");
                    }
                });
            }
            Err(error) => {
                eprintln!("link: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A connection to the extender of some live node: of the one that answered last, or else of the next that does.
async fn extender_on(nodes: &[SocketAddr], last: &AtomicUsize) -> std::io::Result<BufReader<TcpStream>> {
    let first = last.load(Ordering::Relaxed);
    for offset in 0..nodes.len() {
        let index = (first + offset) % nodes.len();
        if let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(700), extender_of(nodes[index])).await {
            last.store(index, Ordering::Relaxed);
            return Ok(stream);
        }
    }
    Err(std::io::Error::new(
        std::io::ErrorKind::ConnectionRefused,
        "the extender listens on no node",
    ))
}

async fn extender_of(node: SocketAddr) -> std::io::Result<BufReader<TcpStream>> {
    let mut stream = BufReader::new(TcpStream::connect(node).await?);
    agent::send(&mut stream, &Request::Connect(EXTENDER)).await?;
    match agent::receive(&mut stream).await? {
        Some(Answer::Done) => Ok(stream),
        _ => Err(std::io::ErrorKind::ConnectionRefused.into()),
    }
}
