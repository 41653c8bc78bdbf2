//! TLS between kube-scheduler and the extender: its certificate is exchanged again and again while pods are placed, and no
//! call fails.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::bed::{NAMESPACE, cluster_name, folder, repository};
use crate::burst::is_placed;
use crate::case;
use crate::objects::{Claim, PodSpec};
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(certificates_change_under_load)];

/// How long a certificate lasts: it is made anew when a third of that is left.
const LIFETIME: &str = "12s";
/// How many certificates each extender is to have shown.
const CERTIFICATES: usize = 4;
/// How many claims are made before the pod of the first of them.
const AHEAD: usize = 4;
/// Within this time every extender has heard of a claim.
const HEARD: Duration = Duration::from_secs(3);
/// The ConfigMap with the authority of clients.
const CLIENTS: &str = "quarry-test-clients";
const NODES: [&str; 3] = ["node1", "node2", "node3"];
const PORT: u16 = 9899;

async fn certificates_change_under_load(test: &Test) -> Result<()> {
    let result = with_tls(test).await;
    let restored = restore(test).await;
    result.and(restored)
}

/// Takes TLS off again.
async fn restore(test: &Test) -> Result<()> {
    let bed = &test.bed;
    // First: while kube-scheduler insists on TLS, it places no extender that has none.
    bed.cluster.configure_scheduler(None).await?;
    // What the component has added goes with it: the same field manager applies what it has without it.
    bed.install().await?;
    for file in ["rbac.yaml", "admission.yaml"] {
        let path = repository().join("deploy/tls").join(file).display().to_string();
        bed.kubectl(&["delete", "--ignore-not-found", "-f", &path]).await?;
    }
    let made = [
        "configmap/quarry-extender-ca",
        "configmap/quarry-test-clients",
        "secret/quarry-extender-authority",
    ];
    bed.kubectl(&[&["-n", NAMESPACE, "delete", "--ignore-not-found"], &made[..]].concat())
        .await
        .map(drop)
}

async fn with_tls(test: &Test) -> Result<()> {
    let folder = folder()?.join("tls");
    std::fs::create_dir_all(&folder)?;
    let client = Identity::make(&folder)?;
    deploy(test, &folder).await?;
    let authority = test.wait("the authority is published", Duration::from_secs(30), || async {
        let path = [
            "-n",
            NAMESPACE,
            "get",
            "configmap",
            "quarry-extender-ca",
            "-o",
            "jsonpath={.data.ca\\.crt}",
        ];
        Ok(test.bed.kubectl(&path).await.ok().filter(|text| !text.is_empty()))
    });
    let authority = authority.await?;
    std::fs::write(folder.join("ca.crt"), &authority)?;
    test.bed
        .cluster
        .configure_scheduler(Some(&scheduler_config(&folder)?))
        .await?;
    let class = test.simple_class("a", 0).await?;
    let before = processes(test).await?;
    let caller = Caller::new(&authority, Some(&client))?;
    let done = AtomicBool::new(false);
    let (asked, placed) = tokio::join!(
        async {
            let asked = ask_until_exchanged(test, &caller).await;
            done.store(true, Ordering::Relaxed);
            asked
        },
        place_until(test, &class, &done)
    );
    let (calls, took) = asked?;
    let placed = placed?;
    println!(
        "   {calls} calls and {placed} pods in {:.0} s, while every extender showed {CERTIFICATES} certificates: no call \
         failed, no pod waited",
        took.as_secs_f64()
    );
    ensure!(processes(test).await? == before, "an extender was restarted");
    // kube-scheduler still hears from the extender, by the connection that it has or a new one.
    test.claim(Claim::new("large", &class, "50Gi")).await?;
    test.pod(PodSpec::new("large").claim("large", false)).await?;
    let told = [
        "FailedScheduling",
        "3 node(s) had not enough free local storage in volume group",
    ];
    println!("   {}", test.said("Pod", "large", &told).await?);
    // Nobody else is served.
    let refused = Caller::new(&authority, None)?.call(test, "node1").await;
    let refused = refused.err().context("served without a certificate")?;
    println!("   without a certificate: {refused:#}");
    Ok(())
}

/// What was deployed last, with the component for TLS, short-lived certificates, and only for clients of the test's authority.
async fn deploy(test: &Test, folder: &Path) -> Result<()> {
    let file = format!("--from-file=ca.crt={}", folder.join("clients.crt").display());
    test.bed
        .kubectl(&["-n", NAMESPACE, "create", "configmap", CLIENTS, &file])
        .await?;
    let env = |name: &str, value: &str| {
        let value = json!({"name": name, "value": value});
        json!({"op": "add", "path": "/spec/template/spec/containers/0/env/-", "value": value})
    };
    let patch = json!([
        env("QUARRY_TLS_LIFETIME", LIFETIME),
        env("QUARRY_TLS_CLIENT_CA_FILE", "/etc/clients/ca.crt"),
        {"op": "add", "path": "/spec/template/spec/volumes", "value": [{"name": "clients", "configMap": {"name": CLIENTS}}]},
        {"op": "add", "path": "/spec/template/spec/containers/0/volumeMounts",
         "value": [{"name": "clients", "mountPath": "/etc/clients"}]},
    ]);
    let kustomization = json!({
        "resources": [format!("../../../deploy/{}", cluster_name())],
        "components": ["../../../../deploy/tls"],
        "patches": [{"target": {"kind": "DaemonSet", "name": "quarry-extender"}, "patch": patch.to_string()}],
    });
    std::fs::write(folder.join("kustomization.yaml"), kustomization.to_string())?;
    let overlay = folder.display().to_string();
    test.bed
        .kubectl(&["apply", "--server-side", "--force-conflicts", "-k", &overlay])
        .await?;
    test.bed.rolled_out("quarry-extender").await
}

/// What is shipped, with TLS as docs/scheduler.md says. A call that fails keeps a pod from being placed, and so shows.
fn scheduler_config(folder: &Path) -> Result<String> {
    let shipped = std::fs::read_to_string(repository().join("deploy/scheduler/kube-scheduler-config.yaml"))?;
    let file = |name: &str| folder.join(name).display().to_string();
    let tls = json!({
        "serverName": "quarry-extender", "caFile": file("ca.crt"),
        "certFile": file("client.crt"), "keyFile": file("client.key"),
    });
    let prefix = format!("urlPrefix: https://127.0.0.1:9899\n    enableHTTPS: true\n    tlsConfig: {tls}");
    let config = shipped.replace("urlPrefix: http://127.0.0.1:9899", &prefix);
    let strict = config.replace("ignorable: true", "ignorable: false");
    ensure!(
        strict != config && config != shipped,
        "the configuration is not as it was"
    );
    Ok(strict)
}

/// The processes of the extenders and how often kubelet has restarted them.
async fn processes(test: &Test) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for node in NODES {
        all.push(test.bed.node(node)?.run_ok(["pgrep", "-x", "quarry-extender"]).await?);
    }
    Ok(all)
}

/// Places a pod after the other until that is set; none may wait for a second attempt. Their claims are made ahead: an extender
/// that hears of a claim later than kube-scheduler says so, as it must, and that is no failed call.
async fn place_until(test: &Test, class: &str, done: &AtomicBool) -> Result<usize> {
    let claim = async |number| {
        test.claim(Claim::new(&format!("pod{number}"), class, "4Mi").block())
            .await
    };
    for number in 0..AHEAD {
        claim(number).await?;
    }
    tokio::time::sleep(HEARD).await;
    let mut count = 0;
    while !done.load(Ordering::Relaxed) {
        claim(count + AHEAD).await?;
        let name = format!("pod{count}");
        test.pod(PodSpec::new(&name).claim(&name, true)).await?;
        count += 1;
        test.wait(&format!("pod {name} placed"), Duration::from_secs(120), || async {
            Ok(is_placed(&test.pods().get(&name).await?).then_some(()))
        })
        .await?;
        let said = test.said_of("Pod", &name).await?;
        let failed = said.iter().find(|(reason, _)| reason == "FailedScheduling");
        ensure!(failed.is_none(), "{name}: {failed:?}");
    }
    Ok(count)
}

/// Asks the extenders of all nodes in turn until each has shown so many certificates; how often, and how long that took.
async fn ask_until_exchanged(test: &Test, caller: &Caller) -> Result<(usize, Duration)> {
    let (begun, mut calls) = (Instant::now(), 0);
    let mut shown: BTreeMap<&str, BTreeSet<Vec<u8>>> = BTreeMap::new();
    loop {
        for node in NODES {
            let certificate = caller.call(test, node).await;
            let certificate = certificate.with_context(|| format!("call {calls}, of {node}, {:?}", begun.elapsed()))?;
            shown.entry(node).or_default().insert(certificate);
            calls += 1;
        }
        if shown.values().all(|certificates| certificates.len() >= CERTIFICATES) {
            return Ok((calls, begun.elapsed()));
        }
        if begun.elapsed() > Duration::from_secs(120) {
            bail!(
                "the certificates are not exchanged: {:?}",
                shown.values().map(BTreeSet::len).collect::<Vec<_>>()
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Who calls as kube-scheduler does, by a new connection for each call.
struct Caller(TlsConnector);

impl Caller {
    fn new(authority: &str, identity: Option<&Identity>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13])?;
        let config = config.with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                let certificate = CertificateDer::from_pem_slice(identity.certificate.as_bytes())?;
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())?;
                config.with_client_auth_cert(vec![certificate], key)?
            }
        };
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Asks the extender of a node; the certificate that it showed.
    async fn call(&self, test: &Test, node: &str) -> Result<Vec<u8>> {
        let stream = test.bed.node(node)?.connect(PORT).await?;
        let name = ServerName::try_from("quarry-extender")?;
        let mut stream = self.0.connect(name, stream).await.context("no TLS")?;
        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let shown = shown.context("no certificate")?.to_vec();
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": {"containers": []}});
        let body = json!({"Pod": pod, "NodeNames": NODES}).to_string();
        let request = format!(
            "POST /filter HTTP/1.1\r\nHost: quarry\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .with_context(|| format!("no answer of HTTP: {answer:?}"))?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{answer}");
        let body: Value = serde_json::from_str(body)?;
        ensure!(body["NodeNames"] == json!(NODES), "{body}");
        Ok(shown)
    }
}

/// The certificate of a client and its key, in PEM.
struct Identity {
    certificate: String,
    key: String,
}

impl Identity {
    /// Makes one, and its authority, with files of them for kube-scheduler and the extender.
    fn make(folder: &Path) -> Result<Self> {
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, CLIENTS);
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let mut client = CertificateParams::default();
        client.distinguished_name.push(DnType::CommonName, "kube-scheduler");
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = client.signed_by(&key, &authority)?.pem();
        let key = key.serialize_pem();
        std::fs::write(folder.join("clients.crt"), authority.pem())?;
        std::fs::write(folder.join("client.crt"), &certificate)?;
        std::fs::write(folder.join("client.key"), &key)?;
        Ok(Self { certificate, key })
    }
}
