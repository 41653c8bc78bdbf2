//! On the loopback interface, with clients that check what they are shown.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::routing::get;
use k8s_openapi::jiff::Timestamp;
use quarry_fake_api::FakeApi;
use quarry_process::{Limits, Shutdown, bind, serve_with};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::authority::{Authority, Leaf, authority, bundle, leaf};
use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn made(signs: &Authority) -> Leaf {
    leaf(signs, &["localhost".to_owned()], DAY, Timestamp::now()).expect("a certificate")
}

fn material(leaf: &Leaf) -> Material {
    Material {
        certificates: leaf.certificate.clone().into_bytes(),
        key: leaf.key.clone().into_bytes(),
        client_authorities: None,
    }
}

async fn server(tls: Tls) -> (SocketAddr, Shutdown) {
    let listener = bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    let router = Router::new().route("/", get(|| async { "served" }));
    let shutdown = Shutdown::new();
    tokio::spawn(serve_with(
        listener,
        router,
        Limits::default(),
        shutdown.clone(),
        Some(tls),
    ));
    (address, shutdown)
}

/// A client that trusts these authorities, and shows a certificate of its own where it has one.
fn client(trusts: &str, own: Option<&Leaf>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(trusts.as_bytes()) {
        roots.add(authority.expect("PEM")).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let chain = vec![CertificateDer::from_pem_slice(own.certificate.as_bytes()).expect("PEM")];
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    TlsConnector::from(Arc::new(config))
}

async fn connect(connector: &TlsConnector, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").expect("a name");
    connector.connect(name, TcpStream::connect(address).await?).await
}

/// One call on a connection that stays open.
async fn call(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"served") {
        let mut part = [0; 512];
        match stream.read(&mut part).await? {
            0 => return Err(std::io::Error::other("closed without an answer")),
            count => answer.extend_from_slice(&part[..count]),
        }
    }
    Ok(())
}

fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    let certificates = stream.get_ref().1.peer_certificates().expect("shown");
    certificates[0].to_vec()
}

/// Certificates are exchanged, and the authority too, while clients call as fast as they can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_while_certificates_are_exchanged() {
    let now = Timestamp::now();
    let (old, new) = (authority(now).expect("made"), authority(now).expect("made"));
    let trusted = bundle(&[old.clone(), new.clone()]);
    let tls = Tls::new(&material(&made(&old))).expect("fit");
    let (address, shutdown) = server(tls.clone()).await;
    let (end, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for number in 0..8 {
        let (end, calls, connector) = (Arc::clone(&end), Arc::clone(&calls), client(&trusted, None));
        clients.push(tokio::spawn(async move {
            let mut certificates = HashSet::new();
            let mut kept = connect(&connector, address).await.expect("connected");
            while !end.load(Ordering::Relaxed) {
                // Half of them keep their connection, as kube-scheduler does; the others begin anew each time.
                if number % 2 == 0 {
                    kept = connect(&connector, address)
                        .await
                        .expect("connected during the exchange");
                }
                call(&mut kept).await.expect("answered during the exchange");
                certificates.insert(shown(&kept));
                calls.fetch_add(1, Ordering::Relaxed);
            }
            (number, certificates.len())
        }));
    }
    for round in 0..40 {
        tls.exchange(&material(&made(if round < 20 { &old } else { &new })))
            .expect("fit");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    end.store(true, Ordering::Relaxed);
    for task in clients {
        let (number, seen) = task.await.expect("no call failed");
        assert!(
            if number % 2 == 0 { seen >= 3 } else { seen == 1 },
            "client {number} saw {seen}"
        );
    }
    let calls = calls.load(Ordering::Relaxed);
    println!("{calls} calls during 40 exchanges, none failed");
    assert!(calls > 100, "{calls}");
    shutdown.ask();
}

#[tokio::test]
async fn a_client_that_does_not_know_the_authority_is_not_fooled() {
    let now = Timestamp::now();
    let (ours, theirs) = (authority(now).expect("made"), authority(now).expect("made"));
    let (address, _shutdown) = server(Tls::new(&material(&made(&ours))).expect("fit")).await;
    assert!(connect(&client(&theirs.certificate, None), address).await.is_err());
    // And the server goes on.
    let mut stream = connect(&client(&ours.certificate, None), address)
        .await
        .expect("connected");
    call(&mut stream).await.expect("answered");
}

#[tokio::test]
async fn without_a_certificate_of_its_own_a_client_is_not_served_where_one_is_asked_for() {
    let now = Timestamp::now();
    let (ours, clients, others) = (
        authority(now).expect("made"),
        authority(now).expect("made"),
        authority(now).expect("made"),
    );
    let material = Material {
        client_authorities: Some(clients.certificate.clone().into_bytes()),
        ..material(&made(&ours))
    };
    let (address, _shutdown) = server(Tls::new(&material).expect("fit")).await;
    let attempt = async |own: Option<&Leaf>| {
        // With TLS 1.3 a client learns of its refusal with the first answer.
        let mut stream = connect(&client(&ours.certificate, own), address).await?;
        call(&mut stream).await
    };
    assert!(attempt(None).await.is_err(), "none");
    assert!(attempt(Some(&made(&others))).await.is_err(), "of another authority");
    let mut fit = rcgen::CertificateParams::default();
    fit.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut issuer = rcgen::CertificateParams::default();
    issuer
        .distinguished_name
        .push(rcgen::DnType::CommonName, &*clients.name);
    let issuer = rcgen::Issuer::new(issuer, rcgen::KeyPair::from_pem(&clients.key).expect("its key"));
    let own = Leaf {
        certificate: fit.signed_by(&key, &issuer).expect("signed").pem(),
        key: key.serialize_pem(),
        ..made(&clients)
    };
    attempt(Some(&own)).await.expect("served");
}

/// The files of a Secret, as kubelet exchanges them, and half-written ones.
#[tokio::test]
async fn files_are_read_again_and_a_pair_that_does_not_fit_is_not_taken() {
    let ours = authority(Timestamp::now()).expect("made");
    let folder = tempfile::tempdir().expect("a folder");
    let (certificate, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
    let write = |leaf: &Leaf, with_key: bool| {
        std::fs::write(&certificate, &leaf.certificate).expect("written");
        if with_key {
            std::fs::write(&key, &leaf.key).expect("written");
        }
    };
    write(&made(&ours), true);
    let args = TlsArgs {
        tls_cert_file: Some(certificate.clone()),
        tls_key_file: Some(key.clone()),
        ..mk_args()
    };
    let api = FakeApi::new(|_| ());
    let mut kept = args
        .set_up(&api.client(), "quarry-system")
        .await
        .expect("set up")
        .expect("TLS");
    let (address, _shutdown) = server(kept.tls.clone()).await;
    let connector = client(&ours.certificate, None);
    let shown_now = async || shown(&connect(&connector, address).await.expect("connected"));
    let first = shown_now().await;
    assert!(!kept.renew().await, "nothing has changed");
    let next = made(&ours);
    write(&next, false);
    assert!(!kept.renew().await, "the certificate is there, and its key is not");
    assert_eq!(shown_now().await, first);
    write(&next, true);
    assert!(kept.renew().await);
    assert_ne!(shown_now().await, first);
    std::fs::remove_file(&key).expect("removed");
    assert!(!kept.renew().await, "gone for a moment");
    call(&mut connect(&connector, address).await.expect("connected"))
        .await
        .expect("answered");
}

fn mk_args() -> TlsArgs {
    TlsArgs {
        tls_cert_file: None,
        tls_key_file: None,
        tls_client_ca_file: None,
        tls_own: false,
        tls_names: vec!["localhost".to_owned()],
        tls_lifetime: DAY.into(),
    }
}

/// Extenders that begin at the same time share one authority, which is published, and which they find again.
#[tokio::test]
async fn all_extenders_have_one_authority() {
    let api = FakeApi::new(|_| ());
    let args = TlsArgs {
        tls_own: true,
        ..mk_args()
    };
    // Somebody else is quicker between our looking and our writing.
    let other = authority(Timestamp::now()).expect("made");
    let text = serde_json::to_vec(&[&other]).expect("JSON");
    let secret = serde_json::to_value(k8s_openapi::api::core::v1::Secret {
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            name: Some(own::SECRET.to_owned()),
            namespace: Some("quarry-system".to_owned()),
            ..Default::default()
        },
        data: Some([("authorities".to_owned(), k8s_openapi::ByteString(text))].into()),
        ..Default::default()
    });
    let secret = secret.expect("JSON");
    api.before_next("create", "secrets", move |objects| objects.put("secrets", secret));
    let first = args
        .set_up(&api.client(), "quarry-system")
        .await
        .expect("set up")
        .expect("TLS");
    let second = args
        .set_up(&api.client(), "quarry-system")
        .await
        .expect("set up")
        .expect("TLS");
    let published = api
        .objects(|objects| objects.get("configmaps", own::CONFIG_MAP))
        .expect("published");
    let bundle = published["data"]["ca.crt"].as_str().expect("authorities").to_owned();
    assert_eq!(bundle, authority::bundle(&[other]));
    for kept in [first, second] {
        let (address, _shutdown) = server(kept.tls.clone()).await;
        connect(&client(&bundle, None), address).await.expect("trusted");
    }
}
