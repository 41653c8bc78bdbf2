//! The port for kubelet and Prometheus: `/healthz`, `/readyz`, `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::alive::Alive;
use crate::ready::Ready;
use crate::serve::{Limits, ServeError, bind, serve};
use crate::shutdown::Shutdown;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Adds `quarry_build_info` to the metrics.
pub fn build_info(registry: &mut Registry, component: &'static str, version: &'static str) {
    let info = Info::new([("component", component), ("version", version)]);
    registry.register("quarry_build", "Program and version", info);
}

/// Serves health, readiness and metrics until it is dropped. Once a shutdown is asked for the process is alive, but no
/// longer ready. It is alive no more where something that ends by itself does not end.
///
/// # Errors
/// The port cannot be opened.
pub async fn serve_admin(
    address: SocketAddr,
    registry: Arc<Registry>,
    (ready, alive): (Ready, Alive),
    shutdown: Shutdown,
) -> Result<(), ServeError> {
    let listener = bind(address).await?;
    tracing::info!(%address, "serving health, readiness and metrics");
    serve(
        listener,
        router(registry, ready, alive, shutdown),
        Limits::small(),
        Shutdown::new(),
    )
    .await;
    Ok(())
}

/// What [`serve_admin`] serves.
pub fn router(registry: Arc<Registry>, ready: Ready, alive: Alive, shutdown: Shutdown) -> Router {
    Router::new()
        .route("/healthz", get(move || async move { healthz(&alive) }))
        .route("/readyz", get(move || async move { readyz(&ready, &shutdown) }))
        .route("/metrics", get(move || async move { metrics(&registry) }))
}

fn healthz(alive: &Alive) -> (StatusCode, String) {
    answer(&alive.stuck(), "stuck")
}

fn readyz(ready: &Ready, shutdown: &Shutdown) -> (StatusCode, String) {
    let mut missing = ready.missing();
    if shutdown.is_asked() {
        missing.push("shutting down".to_owned());
    }
    answer(&missing, "not ready")
}

/// Yes where nothing is wrong; else a line for each thing that is.
fn answer(wrong: &[String], how: &str) -> (StatusCode, String) {
    if wrong.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let lines: String = wrong.iter().map(|part| format!("{how}: {part}\n")).collect();
    (StatusCode::SERVICE_UNAVAILABLE, lines)
}

fn metrics(registry: &Registry) -> axum::response::Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let answer = router.clone().oneshot(request).await.expect("an answer");
        let status = answer.status();
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn readiness_names_what_is_missing() {
        let (ready, shutdown) = (Ready::new(), Shutdown::new());
        let part = ready.part("watch: pods");
        let router = router(Arc::default(), ready, Alive::new(), shutdown.clone());
        assert_eq!(ask(&router, "/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
        let (status, body) = ask(&router, "/readyz").await;
        assert_eq!(
            (status, body.as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: watch: pods\n")
        );
        part.set();
        assert_eq!(ask(&router, "/readyz").await.0, StatusCode::OK);
        shutdown.ask();
        assert_eq!(ask(&router, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask(&router, "/healthz").await.0, StatusCode::OK);
        assert_eq!(ask(&router, "/other").await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test(start_paused = true)]
    async fn health_fails_while_nothing_ends() {
        let alive = Alive::new();
        let work = alive.work("requests", Duration::from_secs(180));
        let router = router(Arc::default(), Ready::new(), alive, Shutdown::new());
        let under_way = work.begin();
        tokio::time::advance(Duration::from_secs(200)).await;
        let (status, body) = ask(&router, "/healthz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body, "stuck: requests: 1 under way, and none has ended for 200 s\n");
        drop(under_way);
        assert_eq!(ask(&router, "/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
    }

    #[tokio::test]
    async fn metrics_are_open_metrics() {
        let mut registry = Registry::default();
        build_info(&mut registry, "extender", "1.2.3");
        let router = router(Arc::new(registry), Ready::new(), Alive::new(), Shutdown::new());
        let (status, body) = ask(&router, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(
            body.contains("quarry_build_info{component=\"extender\",version=\"1.2.3\"} 1"),
            "{body}"
        );
        assert!(body.ends_with("# EOF\n"));
    }
}
