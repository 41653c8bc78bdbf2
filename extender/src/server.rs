//! The port that kube-scheduler calls: POST filter, POST prioritize, POST preempt.
//!
//! kube-scheduler reads an answer only if its status is 200: what cannot be said of a pod is a 200 with `Error`, and only
//! what is no request of a scheduler gets another status, with `Error` in JSON too.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, BodyDataStream, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::StreamExt;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::answer;
use crate::api::{ArgsWithClaims, ExtenderArgs};
use crate::decide::Answer;
use crate::handlers::Extender;
use crate::metrics::Verb;
use crate::preemption::{PreemptionArgs, PreemptionResult};

/// What a request may cost.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Largest body, in bytes.
    pub body: usize,
    /// How long a body may take to arrive.
    pub body_read: Duration,
    /// How many bytes of bodies are held at a time, whoever sends them; more have to wait. At least one body fits.
    pub held: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            // 5,000 nodes as objects with many images and labels are tens of MiB.
            body: 128 << 20,
            body_read: Duration::from_secs(10),
            held: 256 << 20,
        }
    }
}

/// What is set aside for a body before it arrives, or for an answer before it is written, at most, in bytes.
const PREALLOCATED: usize = 1 << 20;

/// A request that is none.
#[derive(Debug, Error)]
enum RequestError {
    #[error("the body is empty; send ExtenderArgs as JSON")]
    Empty,
    #[error("the body is larger than {0} bytes; use nodeCacheCapable: true, or raise --max-body-bytes")]
    TooLarge(usize),
    #[error("the body did not arrive within {0:?}")]
    TooSlow(Duration),
    #[error("the body could not be read: {0}")]
    Unreadable(String),
    #[error("the body is not ExtenderArgs: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("the answer could not be written: {0}")]
    Unwritable(serde_json::Error),
    #[error("{0} is not served here; use POST /filter, POST /prioritize or POST /preempt")]
    NotFound(String),
    #[error("use POST")]
    Method,
    #[error("{0}")]
    Unknown(String),
}

impl RequestError {
    const fn status(&self) -> StatusCode {
        match self {
            Self::Empty | Self::Unreadable(_) | Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Unwritable(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unknown(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for RequestError {
    fn into_response(self) -> Response {
        let text = self.to_string();
        tracing::warn!(status = self.status().as_u16(), "refused a request: {text}");
        let body = serde_json::json!({ "Error": text }).to_string();
        (self.status(), [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

/// A body that is not read: why, and what is left of it, up to how many bytes.
struct Unread(RequestError, Option<(BodyDataStream, usize)>);

impl From<RequestError> for Unread {
    fn from(error: RequestError) -> Self {
        Self(error, None)
    }
}

struct Server {
    extender: Arc<Extender>,
    limits: RequestLimits,
    /// KiB that bodies may still take.
    room: Arc<Semaphore>,
    dump: bool,
}

/// What kube-scheduler calls. With `dump`, each request and answer is logged at level debug.
pub fn router(extender: Arc<Extender>, limits: RequestLimits, dump: bool) -> Router {
    let server = Server {
        extender,
        limits,
        room: Arc::new(Semaphore::new(kib(limits.held.max(limits.body)))),
        dump,
    };
    Router::new()
        .route("/filter", post(filter))
        .route("/prioritize", post(prioritize))
        .route("/preempt", post(preempt))
        .method_not_allowed_fallback(|| async { RequestError::Method })
        .fallback(|request: Request| async move { RequestError::NotFound(request.uri().path().to_owned()) })
        .with_state(Arc::new(server))
}

async fn filter(State(server): State<Arc<Server>>, request: Request) -> Result<Response, RequestError> {
    let begun = Instant::now();
    let body = server.body(Verb::Filter, request).await?;
    let mut args: ExtenderArgs<'_> = serde_json::from_slice(&body.bytes)?;
    let names = args.names()?;
    let answer = server.extender.filter(&args.pod, &names).await;
    log(&args, names.len(), &answer);
    let objects = args.nodes.as_ref().and_then(|nodes| nodes.items.as_deref());
    let response = server.respond(Verb::Filter, body.bytes.len(), |out| {
        answer::filter(out, &names, objects, &answer)
    })?;
    server.extender.metrics.served(Verb::Filter, begun.elapsed());
    Ok(response)
}

async fn prioritize(State(server): State<Arc<Server>>, request: Request) -> Result<Response, RequestError> {
    let begun = Instant::now();
    let body = server.body(Verb::Prioritize, request).await?;
    let ArgsWithClaims(mut args) = serde_json::from_slice(&body.bytes)?;
    let names = args.names()?;
    let scores = server.extender.prioritize(&args.pod, &names);
    let about = body.bytes.len().saturating_mul(if scores.is_empty() { 0 } else { 2 });
    let response = server.respond(Verb::Prioritize, about, |out| answer::prioritize(out, &names, &scores))?;
    server.extender.metrics.served(Verb::Prioritize, begun.elapsed());
    Ok(response)
}

/// An answer has no field for an error: what cannot be said gets another status than 200.
async fn preempt(State(server): State<Arc<Server>>, request: Request) -> Result<Response, RequestError> {
    let begun = Instant::now();
    let body = server.body(Verb::Preempt, request).await?;
    let args: PreemptionArgs<'_> = serde_json::from_slice(&body.bytes)?;
    let candidates = args.candidates();
    let names: Vec<_> = candidates.keys().map(|name| Cow::Borrowed(name.as_str())).collect();
    let result = match server.extender.preempt(&args.pod, &names).await {
        Answer::All => PreemptionResult::of(&candidates, |_| true),
        Answer::Some { passed, .. } => {
            let kept: BTreeSet<&str> = passed.iter().map(|at| names[*at].as_ref()).collect();
            PreemptionResult::of(&candidates, |name| kept.contains(name))
        }
        Answer::Error(_, text) => return Err(RequestError::Unknown(text)),
    };
    let (pod, of, passed) = (&args.pod.metadata, candidates.len(), result.len());
    tracing::info!(
        pod.namespace = &*pod.namespace,
        pod.name = &*pod.name,
        of,
        passed,
        "asked where to evict pods"
    );
    let response = server.respond(Verb::Preempt, 0, |out| serde_json::to_writer(out, &result))?;
    server.extender.metrics.served(Verb::Preempt, begun.elapsed());
    Ok(response)
}

/// A body, and the room that it takes until it is dropped.
struct Held {
    bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Server {
    async fn body(&self, verb: Verb, request: Request) -> Result<Held, RequestError> {
        let mut reading = pin!(self.read(request.into_body()));
        // Most bodies are there by now, and need no clock.
        let body = match futures::poll!(reading.as_mut()) {
            Poll::Ready(body) => body,
            Poll::Pending => match tokio::time::timeout(self.limits.body_read, reading).await {
                Err(_) => return Err(RequestError::TooSlow(self.limits.body_read)),
                Ok(body) => body,
            },
        };
        let body = match body {
            Ok(body) => body,
            Err(Unread(error, rest)) => {
                // Why it was refused is known by now, however long the rest takes.
                if let Some((rest, most)) = rest {
                    let _ = tokio::time::timeout(self.limits.body_read, discard(rest, most)).await;
                }
                return Err(error);
            }
        };
        if body.bytes.is_empty() {
            return Err(RequestError::Empty);
        }
        if self.dump {
            tracing::debug!(
                verb = verb.as_str(),
                "request: {}",
                String::from_utf8_lossy(&body.bytes)
            );
        }
        Ok(body)
    }

    /// Reads a body once there is room for it. One that is announced as too large takes none.
    async fn read(&self, body: Body) -> Result<Held, Unread> {
        let limit = self.limits.body;
        let hint = body.size_hint();
        if hint.lower() > limit as u64 {
            let rest = (body.into_data_stream(), limit.saturating_mul(2));
            return Err(Unread(RequestError::TooLarge(limit), Some(rest)));
        }
        let most = hint
            .upper()
            .map_or(limit, |most| usize::try_from(most).unwrap_or(limit).min(limit));
        let room = Arc::clone(&self.room).acquire_many_owned(u32::try_from(kib(most)).unwrap_or(u32::MAX));
        // A semaphore that is never closed always gives room.
        let room = room.await.ok();
        let bytes = read_body(body, limit).await?;
        Ok(Held { bytes, _room: room })
    }

    /// An answer of about so many bytes: what is set aside at once is not copied as it grows.
    fn respond(
        &self,
        verb: Verb,
        about: usize,
        write: impl FnOnce(&mut Vec<u8>) -> serde_json::Result<()>,
    ) -> Result<Response, RequestError> {
        let mut body = Vec::with_capacity(about.min(PREALLOCATED));
        write(&mut body).map_err(RequestError::Unwritable)?;
        if self.dump {
            tracing::debug!(verb = verb.as_str(), "answer: {}", String::from_utf8_lossy(&body));
        }
        Ok(([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response())
    }
}

/// Whole KiB that hold so many bytes.
const fn kib(bytes: usize) -> usize {
    bytes.div_ceil(1024)
}

/// Reads a body of up to `limit` bytes.
async fn read_body(body: Body, limit: usize) -> Result<Bytes, Unread> {
    let exact = body.size_hint().exact();
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(limit);
    let mut parts = body.into_data_stream();
    let mut read = Vec::new();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|error| RequestError::Unreadable(error.to_string()))?;
        if read.len().saturating_add(part.len()) > limit {
            return Err(Unread(RequestError::TooLarge(limit), Some((parts, limit))));
        }
        if exact == Some(part.len() as u64) {
            // All of it has come in one piece: no need to copy it.
            return Ok(part);
        }
        read.reserve(announced.min(limit).min(PREALLOCATED).saturating_sub(read.len()));
        read.extend_from_slice(&part);
    }
    Ok(read.into())
}

/// Reads the rest of a body that is too large, up to as much again: a connection that is closed with bytes unread is
/// reset, and the client that still sends never sees the answer.
async fn discard(mut parts: BodyDataStream, most: usize) {
    let mut left = most;
    while let Some(Ok(part)) = parts.next().await {
        let Some(rest) = left.checked_sub(part.len()) else {
            return;
        };
        left = rest;
    }
}

fn log(args: &ExtenderArgs<'_>, of: usize, answer: &Answer) {
    let pod = &args.pod.metadata;
    match answer {
        Answer::All => {}
        Answer::Some {
            passed,
            refused,
            reasons,
        } => {
            let mut counts = vec![0_usize; reasons.len()];
            for (_, reason) in refused {
                counts[*reason] += 1;
            }
            let reasons: BTreeMap<&str, usize> = reasons.iter().map(|reason| &*reason.text).zip(counts).collect();
            let passed = passed.len();
            // A pod that may go anywhere is nothing that anybody looks for.
            if reasons.is_empty() {
                tracing::debug!(pod.namespace = &*pod.namespace, pod.name = &*pod.name, of, "filtered");
            } else {
                tracing::info!(
                    pod.namespace = &*pod.namespace,
                    pod.name = &*pod.name,
                    of,
                    passed,
                    ?reasons,
                    "filtered"
                );
            }
        }
        Answer::Error(_, text) => tracing::warn!(
            pod.namespace = &*pod.namespace,
            pod.name = &*pod.name,
            "no answer: {text}"
        ),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
