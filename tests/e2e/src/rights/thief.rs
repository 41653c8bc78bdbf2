//! Whoever got hold of a token of a ServiceAccount of ours, and what it tries with it.

use anyhow::{Context, Result, bail, ensure};
use http::{Method, Request};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::{Value, json};

use crate::bed::NAMESPACE;
use crate::test::Test;

/// One request to the API server.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What it would do, for people.
    pub what: &'static str,
    method: Method,
    path: String,
    content: &'static str,
    body: Option<Value>,
}

impl Attempt {
    fn new(what: &'static str, method: Method, path: impl Into<String>, content: &'static str, body: Value) -> Self {
        Self {
            what,
            method,
            path: path.into(),
            content,
            body: (!body.is_null()).then_some(body),
        }
    }

    /// A merge patch.
    #[must_use]
    pub fn patch(what: &'static str, path: impl Into<String>, body: Value) -> Self {
        Self::new(what, Method::PATCH, path, "application/merge-patch+json", body)
    }

    /// A server-side apply, as the manager does it.
    #[must_use]
    pub fn apply(what: &'static str, path: &str, body: Value) -> Self {
        let path = format!("{path}?fieldManager=quarry-manager&force=true");
        Self::new(what, Method::PATCH, path, "application/apply-patch+yaml", body)
    }

    /// A creation.
    #[must_use]
    pub fn create(what: &'static str, path: impl Into<String>, body: Value) -> Self {
        Self::new(what, Method::POST, path, "application/json", body)
    }

    /// A deletion.
    #[must_use]
    pub fn delete(what: &'static str, path: impl Into<String>) -> Self {
        Self::new(what, Method::DELETE, path, "application/json", Value::Null)
    }
}

/// A client with a token.
pub struct Thief {
    client: Client,
}

impl Thief {
    /// With this token and nothing else, from outside of the cluster.
    ///
    /// # Errors
    /// There is no such cluster.
    pub async fn with(test: &Test, token: &str) -> Result<Self> {
        let read = Kubeconfig::read_from(test.bed.cluster.kubeconfig())?;
        let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        config.auth_info = serde_json::from_value(json!({"token": token}))?;
        let client = Client::try_from(config)?;
        Ok(Self { client })
    }

    /// With the token that lies in the container of a program on a node.
    ///
    /// # Errors
    /// The program does not run there, or its token is refused.
    pub async fn of_process(test: &Test, node: &str, program: &str) -> Result<Self> {
        let node = test.bed.node(node)?;
        let processes = node.run_ok(["pgrep", "-x", program]).await?;
        // While a pod is replaced, the one that goes may still be there, with its token gone.
        for process in processes.lines() {
            // /var/run is a link to /run in some images, which would lead out of the container. The link `token` may be owned by the
            // user of the container, and the kernel follows it for nobody else (fs.protected_symlinks).
            for folder in ["var/run", "run"] {
                let path = format!("/proc/{process}/root/{folder}/secrets/kubernetes.io/serviceaccount/..data/token");
                let output = node.run(["cat", &path]).await?;
                if output.success() {
                    return Self::with(test, output.stdout.trim()).await;
                }
            }
        }
        bail!("{program} has no token")
    }

    /// With a token of a ServiceAccount of ours that is bound to no pod.
    ///
    /// # Errors
    /// The API server gives none.
    pub async fn unbound(test: &Test, account: &str) -> Result<Self> {
        let accounts: Api<ServiceAccount> = Api::namespaced(test.client(), NAMESPACE);
        let asked: TokenRequest = serde_json::from_value(json!({"metadata": {}, "spec": {"audiences": []}}))?;
        let given = accounts
            .create_token_request(account, &PostParams::default(), &asked)
            .await?;
        let token = given.status.context("no token was given")?.token;
        Self::with(test, &token).await
    }

    /// Its client.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Tries it.
    ///
    /// # Errors
    /// The API server refused it, or did not answer.
    pub async fn does(&self, attempt: &Attempt) -> kube::Result<Value> {
        let body = attempt.body.as_ref().map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(attempt.method.clone())
            .uri(&attempt.path)
            .header("Content-Type", attempt.content)
            .body(body.into_bytes())
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }

    /// Makes sure that it is refused, with a text that has all of these parts; the text.
    ///
    /// # Errors
    /// It was not.
    pub async fn is_refused(&self, attempt: &Attempt, parts: &[&str]) -> Result<String> {
        match self.does(attempt).await {
            Ok(_) => bail!("{}: was done", attempt.what),
            Err(kube::Error::Api(status)) => {
                let told = status.message.clone();
                ensure!(status.code == 403, "{}: {} {told}", attempt.what, status.code);
                for part in parts {
                    ensure!(told.contains(part), "{}: {part:?} is not in {told:?}", attempt.what);
                }
                println!("   {}: {told}", attempt.what);
                Ok(told)
            }
            Err(error) => Err(error).context(attempt.what),
        }
    }

    /// Makes sure that it is done.
    ///
    /// # Errors
    /// It was refused.
    pub async fn may(&self, attempt: &Attempt) -> Result<Value> {
        self.does(attempt)
            .await
            .with_context(|| format!("{} is to be allowed", attempt.what))
    }
}
