//! The command line, and the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use kube::Client;
use prometheus_client::registry::Registry;
use quarry_process::{Limits, LogFormat, Ready, Shutdown, bind, build_info, init_logs, serve, serve_admin};

use crate::decide::Patience;
use crate::handlers::Extender;
use crate::server::{RequestLimits, router};
use crate::{advice, metrics, watch};

/// Quarry's scheduler extender: tells kube-scheduler on which nodes a pod's claims have room.
#[derive(Debug, Clone, Parser)]
#[command(name = "quarry-extender", version)]
pub struct Args {
    /// Address that kube-scheduler calls: POST /filter and POST /prioritize.
    #[arg(long, env = "QUARRY_LISTEN", default_value = "127.0.0.1:9899")]
    pub listen: SocketAddr,
    /// Address of GET /healthz, /readyz and /metrics.
    #[arg(long, env = "QUARRY_ADMIN_LISTEN", default_value = "0.0.0.0:9898")]
    pub admin_listen: SocketAddr,
    /// Largest request accepted, in bytes. With nodeCacheCapable: false every node comes as a whole object.
    #[arg(long, env = "QUARRY_MAX_BODY_BYTES", default_value_t = RequestLimits::default().body)]
    pub max_body_bytes: usize,
    /// How long an answer waits, in milliseconds, for a claim or class that kube-scheduler has seen and the watches here
    /// have not.
    #[arg(long, env = "QUARRY_UNSEEN_WAIT_MS", default_value = "200")]
    pub unseen_wait_ms: u64,
    /// How long an answer waits, in milliseconds, to learn the nodes of pods answered just before, where some nodes
    /// have room whatever these are.
    #[arg(long, env = "QUARRY_SETTLE_WAIT_MS", default_value = "50")]
    pub settle_wait_ms: u64,
    /// The same where no node has room for certain. Keep it well below the extender's httpTimeout in kube-scheduler.
    #[arg(long, env = "QUARRY_CROWD_WAIT_MS", default_value = "1000")]
    pub crowd_wait_ms: u64,
    /// How long, in milliseconds, a pod is counted on every node that it was answered while its node is not known.
    #[arg(long, env = "QUARRY_REMEMBER_MS", default_value = "10000")]
    pub remember_ms: u64,
    /// Log each request and answer, whole, at level debug.
    #[arg(long, env = "QUARRY_LOG_REQUESTS")]
    pub log_requests: bool,
    /// text or json.
    #[arg(long, env = "QUARRY_LOG_FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What to log, for example info, or info,quarry_extender=debug.
    #[arg(long, env = "QUARRY_LOG", default_value = "info,kube_client=warn")]
    pub log: String,
}

impl Args {
    /// Runs until SIGTERM or SIGINT.
    ///
    /// # Errors
    /// A port is taken, or there is no way to reach the API server.
    pub fn run(self) -> anyhow::Result<()> {
        init_logs(self.log_format, &self.log)?;
        tokio::runtime::Builder::new_multi_thread()
            // One for requests while the other keeps the index; neither ever blocks.
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(self.serve())
    }

    async fn serve(self) -> anyhow::Result<()> {
        let shutdown = Shutdown::on_signals()?;
        let ready = Ready::new();
        let extender = Arc::new(Extender::new(self.patience()));
        let mut registry = Registry::default();
        build_info(&mut registry, "extender", env!("CARGO_PKG_VERSION"));
        metrics::register(&mut registry, &extender);
        let client = Client::try_default()
            .await
            .context("no configuration for the API server: run in a pod, or set KUBECONFIG")?;
        let listener = bind(self.listen).await?;
        tracing::info!(address = %self.listen, "serving kube-scheduler");
        let limits = RequestLimits {
            body: self.max_body_bytes,
            ..Default::default()
        };
        let scheduler = router(Arc::clone(&extender), limits, self.log_requests);
        let watches = watch::run(client.clone(), Arc::clone(&extender), &ready);
        let advice = advice::run(client, Arc::clone(&extender));
        let admin = serve_admin(self.admin_listen, Arc::new(registry), ready.clone(), shutdown.clone());
        tokio::select! {
            () = serve(listener, scheduler, Limits::default(), shutdown) => {
                tracing::info!("ended");
                Ok(())
            }
            result = admin => result.context("health, readiness and metrics are not served"),
            () = watches => anyhow::bail!("the watches ended"),
            () = advice => anyhow::bail!("the watches of classes and nodes ended"),
        }
    }

    fn patience(&self) -> Patience {
        Patience {
            unseen: Duration::from_millis(self.unseen_wait_ms),
            settle: Duration::from_millis(self.settle_wait_ms),
            crowd: Duration::from_millis(self.crowd_wait_ms),
            remembered: Duration::from_millis(self.remember_ms),
        }
    }
}
