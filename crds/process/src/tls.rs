//! TLS of a server, whose certificate is exchanged while it serves: connections that are open go on, and each new one is
//! given the newest.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{Accept, TlsAcceptor};

/// What a server shows and asks for, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// The certificate of the server, and those between it and its authority.
    pub certificates: Vec<u8>,
    /// The private key of the first of them.
    pub key: Vec<u8>,
    /// The authorities of clients. With some, only clients that show a certificate of one of these are served.
    pub client_authorities: Option<Vec<u8>>,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A key is never written anywhere.
        f.debug_struct("Material").finish_non_exhaustive()
    }
}

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// Not PEM.
    #[error("the {what} cannot be read ({reason}); it must be PEM")]
    Unreadable {
        /// Certificate, key, or authorities of clients.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// None in it.
    #[error("there is no certificate in the {0}")]
    Empty(&'static str),
    /// They do not go together.
    #[error("the certificate and the key cannot be used together: {0}")]
    Unfit(#[from] rustls::Error),
    /// The authorities cannot be used.
    #[error("the authorities of clients cannot be used: {0}")]
    Clients(String),
}

/// What new connections are served with.
#[derive(Debug, Clone)]
pub struct Tls(Arc<RwLock<Arc<ServerConfig>>>);

impl Tls {
    /// Begins with this.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn new(material: &Material) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(config(material)?))))
    }

    /// From now on, new connections are served with this.
    ///
    /// # Errors
    /// It cannot be used; what was before stays.
    pub fn exchange(&self, material: &Material) -> Result<(), TlsError> {
        let config = config(material)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Accepts a connection with what is newest now.
    pub(crate) fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Accept<S> {
        let config = self.0.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(Arc::clone(&config)).accept(stream)
    }
}

fn config(material: &Material) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&material.certificates, "certificate")?;
    let key = PrivateKeyDer::from_pem_slice(&material.key).map_err(|error| TlsError::Unreadable {
        what: "key",
        reason: error.to_string(),
    })?;
    // kube-scheduler is a Go program, which has TLS 1.3 since 2019.
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match &material.client_authorities {
        None => builder.with_no_client_auth(),
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(authorities, "authorities of clients")? {
                roots.add(authority)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| TlsError::Clients(error.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let read = read.map_err(|error| TlsError::Unreadable {
        what,
        reason: error.to_string(),
    })?;
    if read.is_empty() {
        return Err(TlsError::Empty(what));
    }
    Ok(read)
}
