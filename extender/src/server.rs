//! The port that kube-scheduler calls: POST filter, POST prioritize.
//!
//! kube-scheduler reads an answer only if its status is 200: what cannot be said of a pod is a 200 with `Error`, and only
//! what is no request of a scheduler gets another status, with `Error` in JSON too.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::Serialize;
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::api::{ExtenderArgs, FilterResult, HostPriority, NodeListResult};
use crate::decide::Answer;
use crate::handlers::Extender;

/// What a request may cost.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Largest body, in bytes.
    pub body: usize,
    /// How long a body may take to arrive.
    pub body_read: Duration,
    /// How many bodies are held at a time.
    pub requests: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            // 5,000 nodes as objects with many images and labels are tens of MiB.
            body: 128 << 20,
            body_read: Duration::from_secs(10),
            requests: 16,
        }
    }
}

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
    #[error("{0} is not served here; use POST /filter or POST /prioritize")]
    NotFound(String),
    #[error("use POST")]
    Method,
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

#[derive(Clone)]
struct Server {
    extender: Arc<Extender>,
    limits: RequestLimits,
    places: Arc<Semaphore>,
    dump: bool,
}

/// What kube-scheduler calls. With `dump`, each request and answer is logged at level debug.
pub fn router(extender: Arc<Extender>, limits: RequestLimits, dump: bool) -> Router {
    let server = Server {
        extender,
        limits,
        places: Arc::new(Semaphore::new(limits.requests)),
        dump,
    };
    Router::new()
        .route("/filter", post(filter))
        .route("/prioritize", post(prioritize))
        .method_not_allowed_fallback(|| async { RequestError::Method })
        .fallback(|request: Request| async move { RequestError::NotFound(request.uri().path().to_owned()) })
        .layer(DefaultBodyLimit::max(limits.body))
        .with_state(server)
}

async fn filter(State(server): State<Server>, request: Request) -> Result<Response, RequestError> {
    let begun = Instant::now();
    let body = server.body("filter", request).await?;
    let args: ExtenderArgs<'_> = serde_json::from_slice(&body)?;
    let names = args.names()?;
    let answer = server.extender.filter(&args.pod, &names).await;
    log(&args, &names, &answer);
    let response = server.respond("filter", &filter_result(&args, &names, &answer))?;
    server.extender.metrics.served("filter", begun.elapsed());
    Ok(response)
}

async fn prioritize(State(server): State<Server>, request: Request) -> Result<Response, RequestError> {
    let begun = Instant::now();
    let body = server.body("prioritize", request).await?;
    let args: ExtenderArgs<'_> = serde_json::from_slice(&body)?;
    let names = args.names()?;
    let scores = server.extender.prioritize(&args.pod, &names);
    let list: Vec<HostPriority<'_>> = names
        .iter()
        .zip(scores)
        .map(|(name, score)| HostPriority {
            host: Cow::Borrowed(name.as_ref()),
            score,
        })
        .collect();
    let response = server.respond("prioritize", &list)?;
    server.extender.metrics.served("prioritize", begun.elapsed());
    Ok(response)
}

impl Server {
    async fn body(&self, verb: &'static str, request: Request) -> Result<Bytes, RequestError> {
        let read = async {
            // A semaphore that is never closed always gives a place.
            let _place = self.places.acquire().await;
            Bytes::from_request(request, &()).await
        };
        let body = match tokio::time::timeout(self.limits.body_read, read).await {
            Err(_) => return Err(RequestError::TooSlow(self.limits.body_read)),
            Ok(Err(rejection)) => return Err(self.rejected(&rejection)),
            Ok(Ok(body)) if body.is_empty() => return Err(RequestError::Empty),
            Ok(Ok(body)) => body,
        };
        if self.dump {
            tracing::debug!(verb, "request: {}", String::from_utf8_lossy(&body));
        }
        Ok(body)
    }

    fn rejected(&self, rejection: &BytesRejection) -> RequestError {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            RequestError::TooLarge(self.limits.body)
        } else {
            RequestError::Unreadable(rejection.body_text())
        }
    }

    fn respond(&self, verb: &'static str, answer: &impl Serialize) -> Result<Response, RequestError> {
        let body = serde_json::to_vec(answer).map_err(RequestError::Unwritable)?;
        if self.dump {
            tracing::debug!(verb, "answer: {}", String::from_utf8_lossy(&body));
        }
        Ok(([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response())
    }
}

fn filter_result<'a>(args: &ExtenderArgs<'a>, names: &'a [Cow<'a, str>], answer: &'a Answer) -> FilterResult<'a> {
    let all: Vec<usize>;
    let (passed, failed, error): (&[usize], BTreeMap<&str, &str>, &str) = match answer {
        Answer::All => {
            all = (0..names.len()).collect();
            (&all, BTreeMap::new(), "")
        }
        Answer::Some { passed, refused } => {
            let failed = refused
                .iter()
                .map(|(at, _, reason)| (names[*at].as_ref(), reason.as_ref()));
            (passed, failed.collect(), "")
        }
        Answer::Error(_, text) => (&[], BTreeMap::new(), text),
    };
    let items = args.nodes.as_ref().and_then(|nodes| nodes.items.as_ref());
    FilterResult {
        nodes: items.map(|items| NodeListResult::of(passed.iter().map(|at| items[*at]).collect())),
        node_names: passed.iter().map(|at| names[*at].as_ref()).collect(),
        failed_nodes: BTreeMap::new(),
        failed_and_unresolvable_nodes: failed,
        error,
    }
}

fn log(args: &ExtenderArgs<'_>, names: &[Cow<'_, str>], answer: &Answer) {
    let pod = &args.pod.metadata;
    match answer {
        Answer::All => {}
        Answer::Some { passed, refused } => {
            let mut reasons: HashMap<&str, usize> = HashMap::new();
            for (_, _, reason) in refused {
                *reasons.entry(reason).or_default() += 1;
            }
            let (of, passed) = (names.len(), passed.len());
            tracing::info!(pod.namespace, pod.name, of, passed, ?reasons, "filtered");
        }
        Answer::Error(_, text) => tracing::warn!(pod.namespace, pod.name, "no answer: {text}"),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
