//! The command line, and the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use futures::FutureExt;
use prometheus_client::registry::Registry;
use quarry_crds::liveness::SILENT_AFTER;
use quarry_crds::lost_nodes::DEFAULT_GRACE;
use quarry_process::leader::{Candidate, Times};
use quarry_process::{Alive, Limits, LogFormat, Ready, Shutdown, bind, build_info, init_logs, serve_admin, serve_with};

use crate::cleanup::Cleanup;
use crate::decide::Patience;
use crate::handlers::Extender;
use crate::nodes::Nodes;
use crate::server::{RequestLimits, router};
use crate::tls::TlsArgs;
use crate::{advice, calls, cleanup, exposure, liveness, metrics, watch};

/// How long the end waits for the Lease to be let go of.
const LET_GO: Duration = Duration::from_secs(3);

/// Quarry's scheduler extender: tells kube-scheduler on which nodes a pod's claims have room.
#[derive(Debug, Clone, Parser)]
#[command(name = "quarry-extender", version)]
pub struct Args {
    /// Address that kube-scheduler calls: POST /filter and POST /prioritize. Other than the loopback interface it is served
    /// only to clients with a certificate (QUARRY_TLS_CLIENT_CA_FILE), or with QUARRY_ALLOW_ANY_CLIENT.
    #[arg(long, env = "QUARRY_LISTEN", default_value = "127.0.0.1:9899")]
    pub listen: SocketAddr,
    /// Serve whoever reaches that address, also from other hosts and without a certificate: where the network itself lets only
    /// kube-scheduler through.
    #[arg(long, env = "QUARRY_ALLOW_ANY_CLIENT")]
    pub allow_any_client: bool,
    /// Address of GET /healthz, /readyz and /metrics: [::] is every address of IPv6 and IPv4.
    #[arg(long, env = "QUARRY_ADMIN_LISTEN", default_value = "[::]:9898")]
    pub admin_listen: SocketAddr,
    /// Largest request accepted, in bytes. With nodeCacheCapable: false every node comes as a whole object.
    #[arg(long, env = "QUARRY_MAX_BODY_BYTES", default_value_t = RequestLimits::default().body)]
    pub max_body_bytes: usize,
    /// How long an answer waits, in milliseconds, for a claim or class that kube-scheduler has seen and the watches here
    /// have not. Keep it well below the extender's httpTimeout in kube-scheduler.
    #[arg(long, env = "QUARRY_UNSEEN_WAIT_MS", default_value = "1000")]
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
    /// How long a Node object must be gone before what Quarry keeps of its node is let go, such as 10m. Claims with data
    /// are never deleted unless they carry the annotation quarry.dev/lost-node: delete-claim.
    #[arg(long, env = "QUARRY_NODE_GONE_GRACE", default_value_t = DEFAULT_GRACE.into())]
    pub node_gone_grace: humantime::Duration,
    /// How long the Lease of a node's manager must be unchanged before no new volume is placed on that node, such as 3m:
    /// three times what the managers are told (QUARRY_LEASE_EVERY), or more.
    #[arg(long, env = "QUARRY_MANAGER_SILENT_AFTER", default_value_t = SILENT_AFTER.into())]
    pub manager_silent_after: humantime::Duration,
    /// Namespace of the Leases: those of the managers, and the one by which one of several extenders is chosen to clean up
    /// after nodes that are gone.
    #[arg(long, env = "QUARRY_NAMESPACE", default_value = "quarry-system")]
    pub namespace: String,
    /// TLS for kube-scheduler.
    #[command(flatten)]
    pub tls: TlsArgs,
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
        let clients_have_certificates = self.tls.tls_client_ca_file.is_some();
        exposure::check(self.listen, clients_have_certificates, self.allow_any_client)?;
        let ready = Ready::new();
        let extender = Arc::new(Extender::new(self.patience()));
        let mut registry = Registry::default();
        build_info(&mut registry, "extender", env!("CARGO_PKG_VERSION"));
        metrics::register(&mut registry, &extender);
        let alive = Alive::new();
        let client = quarry_process::client::lasting(&alive)
            .await
            .context("no configuration for the API server: run in a pod, or set KUBECONFIG")?;
        let listener = bind(self.listen).await?;
        let tls = self.tls.set_up(&client, &self.namespace).await?;
        tracing::info!(address = %self.listen, tls = tls.is_some(), "serving kube-scheduler");
        let (tls, renewed) = match tls {
            Some(kept) => (Some(kept.tls.clone()), kept.keep().left_future()),
            None => (None, std::future::pending().right_future()),
        };
        let limits = RequestLimits {
            body: self.max_body_bytes,
            ..Default::default()
        };
        let scheduler = router(Arc::clone(&extender), limits, self.log_requests);
        let watches = watch::run(client.clone(), Arc::clone(&extender), &ready);
        let (nodes, writer) = Nodes::new();
        let watch_nodes = Arc::clone(&nodes).watch(client.clone(), writer);
        let listen = liveness::run(
            client.clone(),
            self.namespace.clone(),
            Arc::clone(&extender),
            self.manager_silent_after.into(),
        );
        let advice = advice::run(client.clone(), Arc::clone(&extender), Arc::clone(&nodes));
        let place = std::env::var("HOSTNAME").unwrap_or_else(|_| "quarry-extender".to_owned());
        let publish = calls::publish(
            client.clone(),
            self.namespace.clone(),
            place.clone(),
            Arc::clone(&extender),
        );
        let (candidate, leads) = Candidate::new(
            client.clone(),
            &self.namespace,
            cleanup::LEASE,
            &place,
            Times::default(),
        );
        let candidate = tokio::spawn(candidate.run(shutdown.clone()));
        let grace = self.node_gone_grace.into();
        let cleanup = Cleanup::new(client, Arc::clone(&extender), nodes, leads, grace).run();
        let parts = (ready.clone(), alive);
        let admin = serve_admin(self.admin_listen, Arc::new(registry), parts, shutdown.clone());
        tokio::select! {
            () = serve_with(listener, scheduler, Limits::default(), shutdown, tls) => {
                // Lets go of the Lease, so that another extender need not wait.
                let _ = tokio::time::timeout(LET_GO, candidate).await;
                tracing::info!("ended");
                Ok(())
            }
            result = admin => result.context("health, readiness and metrics are not served"),
            () = renewed => anyhow::bail!("certificates are not renewed any more"),
            () = publish => anyhow::bail!("the Lease of calls is not renewed any more"),
            () = watches => anyhow::bail!("the watches ended"),
            () = listen => anyhow::bail!("the watch of leases ended"),
            () = watch_nodes => anyhow::bail!("the watch of nodes ended"),
            () = advice => anyhow::bail!("the watch of classes ended"),
            () = cleanup => anyhow::bail!("the clean-up after nodes ended"),
        }
    }

    fn patience(&self) -> Patience {
        Patience {
            unseen: Duration::from_millis(self.unseen_wait_ms),
            settle: Duration::from_millis(self.settle_wait_ms),
            crowd: Duration::from_millis(self.crowd_wait_ms),
            remembered: Duration::from_millis(self.remember_ms),
            ..Patience::default()
        }
    }
}
