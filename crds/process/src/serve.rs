//! An HTTP/1 server with limits, that drains when the process is to end.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::patient::Patient;
use crate::shutdown::Shutdown;
use crate::tls::Tls;

/// What a client may do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more have to wait.
    pub connections: usize,
    /// Connections at a time from one address; more are closed, so that one client cannot keep all others out.
    pub connections_of_one: usize,
    /// A connection that takes longer to send the head of a request, or sends none for so long, is closed.
    pub header_read: Duration,
    /// Largest buffer for the head of a request, in bytes; more is answered with 431.
    pub header_buffer: usize,
    /// Most header fields of a request; more are answered with 431.
    pub headers: usize,
    /// A client that takes longer to agree on TLS is dropped.
    pub handshake: Duration,
    /// A connection that takes nothing of an answer for so long is closed.
    pub write: Duration,
    /// How long requests under way may take to end when the process is to end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            connections_of_one: 256,
            header_read: Duration::from_secs(120),
            header_buffer: 64 << 10,
            headers: 64,
            handshake: Duration::from_secs(10),
            write: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// For health, readiness and metrics.
    #[must_use]
    pub fn small() -> Self {
        Self {
            connections: 64,
            connections_of_one: 16,
            header_read: Duration::from_secs(5),
            header_buffer: 16 << 10,
            headers: 64,
            handshake: Duration::from_secs(5),
            write: Duration::from_secs(5),
            drain: Duration::from_secs(1),
        }
    }
}

/// A server could not start.
#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}; choose another address or stop what listens there")]
pub struct ServeError {
    /// Where.
    address: SocketAddr,
    /// Why not.
    source: std::io::Error,
}

/// How many connections the kernel keeps until they are accepted.
const BACKLOG: i32 = 1024;

/// Opens the port of a server. `[::]` is every address of both families, and every one of IPv4 where the kernel has no IPv6.
///
/// # Errors
/// The address is taken or not ours.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let error = |source| ServeError { address, source };
    let listener = either_family(address, listen).map_err(error)?;
    TcpListener::from_std(listener.into()).map_err(error)
}

/// Opens an address, or that of IPv4 in place of `[::]` where there is no IPv6.
fn either_family<T>(address: SocketAddr, open: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match open(address) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && is_without_ipv6(&error) => {
            tracing::info!(%error, "there is no IPv6 here");
            open((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        opened => opened,
    }
}

/// Whether an error says that the kernel has no IPv6, or that it is switched off.
fn is_without_ipv6(error: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, Unsupported};
    // "Address family not supported by protocol" has no kind of its own.
    const EAFNOSUPPORT: i32 = 97;
    error.raw_os_error() == Some(EAFNOSUPPORT) || matches!(error.kind(), AddrNotAvailable | Unsupported)
}

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Whatever the host's default is (net.ipv6.bindv6only).
        socket.set_only_v6(false)?;
    }
    // The port can be opened again while connections of a process before are ending.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Serves until the process is to end, and then until no request is under way, or [`Limits::drain`] has passed.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, shutdown: Shutdown) {
    serve_with(listener, router, limits, shutdown, None).await;
}

/// The same with TLS, where that is set up.
pub async fn serve_with(listener: TcpListener, router: Router, limits: Limits, shutdown: Shutdown, tls: Option<Tls>) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(limits.connections));
    let peers = Peers::default();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_read)
        .max_headers(limits.headers)
        .max_buf_size(limits.header_buffer.max(8192));
    loop {
        let accept = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, stream) = tokio::select! {
            (place, stream) = accept => (place, stream),
            () = shutdown.wait() => break,
        };
        let (stream, peer) = match stream {
            // One of IPv4 is one client, whichever socket it came to.
            Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
            Err(error) => {
                // Too many open files, or a client that went away: neither ends the server.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(turn) = peers.admit(peer, limits.connections_of_one) else {
            tracing::debug!(%peer, "too many connections of one client; this one is closed");
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let stream = Patient::new(stream, limits.write);
        let service = TowerToHyperService::new(router.clone());
        let Some(tls) = &tls else {
            let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection ended early");
                }
                drop((place, turn));
            });
            continue;
        };
        let (accept, http, watcher) = (tls.accept(stream), http.clone(), graceful.watcher());
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let accepted = tokio::select! {
                accepted = tokio::time::timeout(limits.handshake, accept) => accepted,
                // Nothing is under way yet.
                () = shutdown.wait() => return,
            };
            match accepted {
                Ok(Ok(stream)) => {
                    let connection = watcher.watch(http.serve_connection(TokioIo::new(stream), service));
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection ended early");
                    }
                }
                // Such as a client that does not trust us: it says so in its own log too.
                Ok(Err(error)) => tracing::warn!(%peer, %error, "a connection was not accepted by TLS"),
                Err(_) => tracing::debug!(%peer, "a client took too long for TLS"),
            }
            drop((place, turn));
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way when the process ended");
    }
}

/// Connections by address.
#[derive(Default)]
struct Peers {
    connections: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// One connection of an address, until it is dropped.
struct Turn {
    peer: IpAddr,
    connections: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Peers {
    fn admit(&self, peer: IpAddr, most: usize) -> Option<Turn> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(peer).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Turn {
            peer,
            connections: Arc::clone(&self.connections),
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.peer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                connections.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
