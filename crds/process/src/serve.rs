//! An HTTP/1 server with limits, that drains when the process is to end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::shutdown::Shutdown;

/// What a client may do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more have to wait.
    pub connections: usize,
    /// A connection that takes longer to send the head of a request, or sends none for so long, is closed.
    pub header_read: Duration,
    /// Largest buffer for the head of a request, in bytes.
    pub header_buffer: usize,
    /// How long requests under way may take to end when the process is to end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            header_read: Duration::from_secs(120),
            header_buffer: 64 << 10,
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
            header_read: Duration::from_secs(5),
            header_buffer: 16 << 10,
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

/// Opens the port of a server.
///
/// # Errors
/// The address is taken or not ours.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError { address, source })
}

/// Serves until the process is to end, and then until no request is under way, or [`Limits::drain`] has passed.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, shutdown: Shutdown) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_read)
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
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, or a client that went away: neither ends the server.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way when the process ended");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn start(router: Router, limits: Limits) -> (SocketAddr, Shutdown, tokio::task::JoinHandle<()>) {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shutdown = Shutdown::new();
        let server = tokio::spawn(serve(listener, router, limits, shutdown.clone()));
        (address, shutdown, server)
    }

    #[tokio::test]
    async fn a_request_under_way_is_answered_before_the_end() {
        let slow = || async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            "done"
        };
        let (address, shutdown, server) = start(Router::new().route("/", get(slow)), Limits::default()).await;
        let mut client = TcpStream::connect(address).await.expect("connected");
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("sent");
        tokio::time::sleep(Duration::from_millis(50)).await;
        shutdown.ask();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("answered, then closed");
        assert!(answer.ends_with("done"), "{answer}");
        server.await.expect("ended");
        assert!(TcpStream::connect(address).await.is_err(), "nothing listens any more");
    }

    #[tokio::test]
    async fn a_client_that_never_finishes_its_head_is_dropped() {
        let limits = Limits {
            header_read: Duration::from_millis(100),
            ..Limits::small()
        };
        let (address, _shutdown, _server) = start(Router::new(), limits).await;
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(b"GET / HTTP/1.1\r\nHo").await.expect("sent");
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "still connected");
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let first = bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
        let address = first.local_addr().expect("its address");
        let error = bind(address).await.expect_err("taken").to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
