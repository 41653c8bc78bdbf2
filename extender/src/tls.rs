//! The certificate that kube-scheduler is shown: from files that somebody else renews, or made here by an authority of our
//! own ([`own`], [`authority`]). Either is exchanged while the extender serves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use kube::Client;
use quarry_process::{Material, Tls, TlsError};
use thiserror::Error;

pub mod authority;
pub mod own;

/// How often the files are read again. They are compared by content: kubelet exchanges those of a Secret by a symbolic
/// link, which no watch of the file itself would see.
const READ_EVERY: Duration = Duration::from_secs(10);

/// Where the certificate comes from. Without any of these, kube-scheduler is served without TLS.
#[derive(Debug, Clone, Args)]
pub struct TlsArgs {
    /// A file with the certificate of the server in PEM, such as of a Secret that cert-manager renews. It is read again
    /// when it changes.
    #[arg(
        long,
        env = "QUARRY_TLS_CERT_FILE",
        requires = "tls_key_file",
        conflicts_with = "tls_own"
    )]
    pub tls_cert_file: Option<PathBuf>,
    /// A file with its key.
    #[arg(long, env = "QUARRY_TLS_KEY_FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
    /// A file with the authorities of clients: only clients with a certificate of one of them are served.
    #[arg(long, env = "QUARRY_TLS_CLIENT_CA_FILE")]
    pub tls_client_ca_file: Option<PathBuf>,
    /// Make the certificate here, by an authority that all extenders share in the Secret quarry-extender-authority and
    /// whose certificate is in the ConfigMap quarry-extender-ca.
    #[arg(long, env = "QUARRY_TLS_OWN")]
    pub tls_own: bool,
    /// Names and addresses by which the extender is reached, for a certificate that is made here.
    #[arg(
        long,
        env = "QUARRY_TLS_NAMES",
        value_delimiter = ',',
        default_value = "quarry-extender.quarry-system.svc,quarry-extender,localhost,127.0.0.1,::1"
    )]
    pub tls_names: Vec<String>,
    /// How long a certificate that is made here lasts, such as 24h. It is made anew when a third of that is left.
    #[arg(long, env = "QUARRY_TLS_LIFETIME", default_value = "24h")]
    pub tls_lifetime: humantime::Duration,
}

/// TLS cannot be set up.
#[derive(Debug, Error)]
pub enum TlsSetupError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {source}")]
    File {
        /// The file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Its content cannot be used.
    #[error(transparent)]
    Unfit(#[from] TlsError),
    /// Our own certificate cannot be made.
    #[error(transparent)]
    Own(#[from] own::OwnError),
    /// An authority for clients alone makes no TLS.
    #[error("--tls-client-ca-file needs a certificate: give --tls-cert-file and --tls-key-file, or --tls-own")]
    ClientsAlone,
}

/// TLS that is set up, and what keeps it up to date.
pub struct Kept {
    /// What the server is given.
    pub tls: Tls,
    source: Source,
    clients: Option<PathBuf>,
    now: Material,
}

enum Source {
    Files { certificates: PathBuf, key: PathBuf },
    Own(Box<own::Own>),
}

impl TlsArgs {
    /// Sets TLS up; `None` where none is asked for.
    ///
    /// # Errors
    /// See [`TlsSetupError`].
    pub async fn set_up(&self, client: &Client, namespace: &str) -> Result<Option<Kept>, TlsSetupError> {
        let clients = self.tls_client_ca_file.clone();
        let mut source = match (&self.tls_cert_file, &self.tls_key_file) {
            (Some(certificates), Some(key)) => Source::Files {
                certificates: certificates.clone(),
                key: key.clone(),
            },
            _ if self.tls_own => {
                let own = own::Own::new(
                    client.clone(),
                    namespace,
                    self.tls_names.clone(),
                    self.tls_lifetime.into(),
                );
                Source::Own(Box::new(own))
            }
            _ if clients.is_some() => return Err(TlsSetupError::ClientsAlone),
            _ => return Ok(None),
        };
        let now = source.read(clients.as_deref()).await?;
        let tls = Tls::new(&now)?;
        Ok(Some(Kept {
            tls,
            source,
            clients,
            now,
        }))
    }
}

impl Source {
    /// What is to be shown now.
    async fn read(&mut self, clients: Option<&Path>) -> Result<Material, TlsSetupError> {
        let client_authorities = match clients {
            Some(path) => Some(read(path).await?),
            None => None,
        };
        let (certificates, key) = match self {
            Self::Files { certificates, key } => (read(certificates).await?, read(key).await?),
            Self::Own(own) => own.certificate().await?,
        };
        Ok(Material {
            certificates,
            key,
            client_authorities,
        })
    }
}

impl Kept {
    /// Keeps it up to date, for ever. What cannot be read or used leaves what there is, and is tried again.
    pub async fn keep(mut self) {
        let every = match &self.source {
            Source::Files { .. } => READ_EVERY,
            Source::Own(own) => own.look_every(),
        };
        loop {
            tokio::time::sleep(every).await;
            self.renew().await;
        }
    }

    /// Looks once; says whether what is shown was exchanged.
    pub async fn renew(&mut self) -> bool {
        let exchanged = match self.source.read(self.clients.as_deref()).await {
            Ok(material) if material == self.now => return false,
            Ok(material) => match self.tls.exchange(&material) {
                Ok(()) => {
                    self.now = material;
                    Ok(())
                }
                Err(error) => Err(TlsSetupError::from(error)),
            },
            Err(error) => Err(error),
        };
        match &exchanged {
            Ok(()) => tracing::info!("the certificate was exchanged"),
            Err(error) => tracing::warn!(%error, "the certificate stays as it is; it is tried again"),
        }
        exchanged.is_ok()
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, TlsSetupError> {
    let error = |source| TlsSetupError::File {
        path: path.display().to_string(),
        source,
    };
    let owned = path.to_owned();
    match tokio::task::spawn_blocking(move || std::fs::read(owned)).await {
        Ok(content) => content.map_err(error),
        Err(panicked) => Err(error(std::io::Error::other(panicked))),
    }
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
