//! Our own authority, in a Secret that all extenders share, and a certificate of it for this one, in memory only.
//!
//! Each step starts from what is there: of several extenders that begin together one makes the Secret and the others take
//! it. The certificates of the authorities are in a ConfigMap too, for kube-scheduler's configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use thiserror::Error;

use super::authority::{Authority, Leaf, bundle, leaf, renewed, signing};

/// The Secret with the authorities and their keys.
pub const SECRET: &str = "quarry-extender-authority";
/// The ConfigMap with their certificates, under `ca.crt`.
pub const CONFIG_MAP: &str = "quarry-extender-ca";
/// Key of the Secret: the authorities as JSON.
const AUTHORITIES: &str = "authorities";
/// Key of the ConfigMap.
const BUNDLE: &str = "ca.crt";
const FIELD_MANAGER: &str = "quarry-extender";
/// How often somebody else may be quicker before it is given up until later.
const ATTEMPTS: usize = 5;
/// How often the authorities are looked at, at most and at least.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// Our own certificate cannot be made.
#[derive(Debug, Error)]
pub enum OwnError {
    /// The API server did not answer as it should.
    #[error("the {what} of the extender's authority cannot be {done}: {source}")]
    Api {
        /// Secret or ConfigMap, by name.
        what: &'static str,
        /// Read, or written.
        done: &'static str,
        /// Why not.
        source: Box<kube::Error>,
    },
    /// Somebody changed the Secret by hand.
    #[error(
        "Secret {SECRET} has no authorities that can be read ({0}); delete it, and another is made: kube-scheduler \
             must be told of that one (docs/scheduler.md)"
    )]
    Unreadable(serde_json::Error),
    /// No certificate could be made.
    #[error("no certificate could be made: {0}; see --tls-names")]
    Certificate(#[from] rcgen::Error),
    /// Other extenders write all the time.
    #[error("others were quicker to write Secret {SECRET} {ATTEMPTS} times")]
    Crowded,
}

/// The certificate that is made here.
pub struct Own {
    secrets: Api<Secret>,
    config_maps: Api<ConfigMap>,
    names: Vec<String>,
    lasts: Duration,
    leaf: Option<Leaf>,
}

impl Own {
    /// One for a server that is reached by these names.
    #[must_use]
    pub fn new(client: Client, namespace: &str, names: Vec<String>, lasts: Duration) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            config_maps: Api::namespaced(client, namespace),
            names,
            lasts,
            leaf: None,
        }
    }

    /// How often to look: some times in the last third of a certificate.
    #[must_use]
    pub fn look_every(&self) -> Duration {
        (self.lasts / 12).clamp(LOOK.0, LOOK.1)
    }

    /// The certificate and its key to be shown now, in PEM.
    ///
    /// # Errors
    /// See [`OwnError`].
    pub async fn certificate(&mut self) -> Result<(Vec<u8>, Vec<u8>), OwnError> {
        let now = Timestamp::now();
        let authorities = self.authorities(now).await?;
        // In the ConfigMap before anything is signed by a new one.
        self.publish(&bundle(&authorities)).await?;
        let Some(signs) = signing(&authorities, now) else {
            return Err(OwnError::Crowded);
        };
        let leaf = match self.leaf.take() {
            Some(leaf) if !leaf.is_due(signs, now) => leaf,
            _ => leaf(signs, &self.names, self.lasts, now)?,
        };
        let pem = (leaf.certificate.clone().into_bytes(), leaf.key.clone().into_bytes());
        self.leaf = Some(leaf);
        Ok(pem)
    }

    /// The authorities, made or renewed where that is due.
    async fn authorities(&self, now: Timestamp) -> Result<Vec<Authority>, OwnError> {
        let secret_error = |done| {
            move |source| OwnError::Api {
                what: "Secret quarry-extender-authority",
                done,
                source: Box::new(source),
            }
        };
        for _ in 0..ATTEMPTS {
            let found = self.secrets.get_opt(SECRET).await.map_err(secret_error("read"))?;
            let known = match found.as_ref().and_then(|secret| secret.data.as_ref()?.get(AUTHORITIES)) {
                Some(text) => serde_json::from_slice(&text.0).map_err(OwnError::Unreadable)?,
                None => Vec::new(),
            };
            let Some(authorities) = renewed(&known, now)? else {
                return Ok(known);
            };
            let text = serde_json::to_vec(&authorities).map_err(OwnError::Unreadable)?;
            let data = BTreeMap::from([(AUTHORITIES.to_owned(), ByteString(text))]);
            let written = match found {
                None => {
                    let secret = Secret {
                        metadata: ObjectMeta {
                            name: Some(SECRET.to_owned()),
                            ..ObjectMeta::default()
                        },
                        data: Some(data),
                        ..Secret::default()
                    };
                    self.secrets.create(&PostParams::default(), &secret).await
                }
                Some(found) => {
                    // Under the version that was seen, so that of two authorities that are made at once one is kept.
                    let version = found.metadata.resource_version;
                    let patch = json!({"metadata": {"resourceVersion": version}, "data": data});
                    let params = PatchParams::default();
                    self.secrets.patch(SECRET, &params, &Patch::Merge(patch)).await
                }
            };
            match written {
                Ok(_) => {
                    tracing::info!(
                        count = authorities.len(),
                        "the authority of the extender was made or renewed"
                    );
                    return Ok(authorities);
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(secret_error("written")(error)),
            }
        }
        Err(OwnError::Crowded)
    }

    /// Publishes the certificates of the authorities.
    async fn publish(&self, bundle: &str) -> Result<(), OwnError> {
        let error = |done| {
            move |source| OwnError::Api {
                what: "ConfigMap quarry-extender-ca",
                done,
                source: Box::new(source),
            }
        };
        let found = self.config_maps.get_opt(CONFIG_MAP).await.map_err(error("read"))?;
        let known = found.as_ref().and_then(|found| found.data.as_ref()?.get(BUNDLE));
        if known.is_some_and(|known| known == bundle) {
            return Ok(());
        }
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(CONFIG_MAP.to_owned()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(BUNDLE.to_owned(), bundle.to_owned())])),
            ..ConfigMap::default()
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = self.config_maps.patch(CONFIG_MAP, &params, &Patch::Apply(&map)).await;
        written.map(drop).map_err(error("written"))
    }
}
