//! The client of the API server: nothing that it is asked waits for ever.
//!
//! A connection can die without a word: a load balancer or NAT forgets it, or the machine at its other end loses power.
//! What is sent then is never answered, and a watch is silent as if nothing happened. Three things tell:
//!
//! * the kernel asks the other end of an idle connection now and then ([`Patience::idle`]), and gives a connection up on
//!   which nothing was acknowledged for [`Patience::unacknowledged`]: that ends watches too;
//! * every request but a watch has to be answered, to the last byte, within [`Patience::request`];
//! * a watch on which nothing came for [`Patience::watch`] is given up, whoever keeps its connection open: the API server
//!   sends a bookmark about once a minute where nothing else happens.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::{Client, Config};
use thiserror::Error;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tower::retry::RetryLayer;
use tower::{BoxError, Layer, Service, ServiceBuilder};

use crate::alive::{Alive, UnderWay, Work};

/// How long what is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long a connection may take to be made.
    pub connect: Duration,
    /// How long a connection is idle before its other end is asked whether it is there.
    pub idle: Duration,
    /// How long data or such a question may stay unacknowledged.
    pub unacknowledged: Duration,
    /// How long a request may take, its retries and the last byte of its answer included.
    pub request: Duration,
    /// How long a watch may be silent.
    pub watch: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(10),
            unacknowledged: Duration::from_secs(20),
            request: Duration::from_secs(30),
            watch: Duration::from_secs(100),
        }
    }
}

/// How often the other end is asked again.
const ASKED_EVERY: Duration = Duration::from_secs(5);
/// A connection that is not used for so long is closed; a new one costs a few milliseconds.
const POOLED: Duration = Duration::from_secs(60);

/// What did not come in time.
#[derive(Debug, Error)]
pub enum Late {
    /// An answer.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    Answer(Duration),
    /// Anything on a watch.
    #[error("nothing came from the API server for {} s, not even a bookmark; it is watched anew", .0.as_secs())]
    Watch(Duration),
}

/// While requests are under way, one of them ends within this time: well beyond [`Patience::request`].
const STUCK_AFTER: Duration = Duration::from_secs(180);

/// A client for as long as the process runs, of the API server that its surroundings name; what it asks counts as work.
///
/// # Errors
/// They name none, or as [`client`].
pub async fn lasting(alive: &Alive) -> Result<Client, kube::Error> {
    let config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    let requests = alive.work("requests to the API server", STUCK_AFTER);
    client(config, Patience::default(), requests)
}

/// A client of the API server that a configuration names.
///
/// # Errors
/// The configuration has certificates or tokens that cannot be used, or names a proxy that is not supported.
pub fn client(config: Config, patience: Patience, requests: Work) -> Result<Client, kube::Error> {
    let limits = Limits { patience, requests };
    if config.proxy_url.is_some() {
        // How the proxy is reached is up to kube; what is asked through it does not wait for ever either.
        return Ok(ClientBuilder::try_from(config)?.with_layer(&limits).build());
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(patience.connect));
    connector.set_keepalive(Some(patience.idle));
    connector.set_keepalive_interval(Some(ASKED_EVERY));
    connector.set_tcp_user_timeout(Some(patience.unacknowledged));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http = hyper_util::client::legacy::Builder::new(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOLED)
        .build(connector);
    let retries = config.default_retry.then(RetryPolicy::server_retry);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retries.map(RetryLayer::new))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace)
        .with_layer(&limits)
        .build())
}

/// Puts an end to what waits too long.
#[derive(Debug, Clone)]
struct Limits {
    patience: Patience,
    requests: Work,
}

impl<S> Layer<S> for Limits {
    type Service = Limited<S>;

    fn layer(&self, service: S) -> Limited<S> {
        Limited {
            service,
            limits: self.clone(),
        }
    }
}

/// A service all of whose answers come in time, or fail.
#[derive(Debug, Clone)]
struct Limited<S> {
    service: S,
    limits: Limits,
}

impl<S, B> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Send + 'static,
{
    type Response = Response<InTime<B>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.service.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let patience = self.limits.patience;
        let watches = is_watch(request.uri().query().unwrap_or_default());
        let under_way = self.limits.requests.begin();
        let until = Instant::now() + patience.request;
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = timeout_at(until, answer).await;
            let answer = answer
                .map_err(|_| Late::Answer(patience.request))?
                .map_err(Into::into)?;
            Ok(answer.map(|body| {
                let (silence, until) = if watches {
                    (Some(patience.watch), Instant::now() + patience.watch)
                } else {
                    (None, until)
                };
                InTime {
                    body: Box::pin(body),
                    silence,
                    request: patience.request,
                    until: Box::pin(sleep_until(until)),
                    // A watch that is answered is under way no more: it never ends by itself.
                    _under_way: (!watches).then_some(under_way),
                }
            }))
        })
    }
}

fn is_watch(query: &str) -> bool {
    query.split('&').any(|part| matches!(part, "watch=true" | "watch=1"))
}

/// The body of an answer, which ends in time or fails; of a watch, which is never silent for too long.
struct InTime<B> {
    body: Pin<Box<B>>,
    /// How long it may be silent, where it is that of a watch.
    silence: Option<Duration>,
    request: Duration,
    until: Pin<Box<Sleep>>,
    _under_way: Option<UnderWay>,
}

impl<B> HttpBody for InTime<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = this.body.as_mut().poll_frame(context) {
            if let Some(silence) = this.silence {
                this.until.as_mut().reset(Instant::now() + silence);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        ready!(this.until.as_mut().poll(context));
        let late = this.silence.map_or(Late::Answer(this.request), Late::Watch);
        Poll::Ready(Some(Err(late.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
