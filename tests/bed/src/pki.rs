//! Certificates, tokens and kubeconfigs of a cluster, made anew for each.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

use crate::{
    error::Result,
    folders,
    network::{GATEWAY, SERVICE},
};

/// Who may call the API server: name in the token file, user and groups.
struct User {
    token: String,
    name: String,
    group: &'static str,
}

fn user(token: &str, name: &str, group: &'static str) -> User {
    User {
        token: format!("{token}-token"),
        name: name.to_owned(),
        group,
    }
}

/// The files of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// Those of the cluster with this state folder.
    pub(crate) fn of(state: &Path) -> Self {
        Pki {
            folder: state.join("pki"),
        }
    }

    /// The path of one file.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The kubeconfig of a user.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.file(&format!("{user}.kubeconfig"))
    }

    /// Makes all of them. `outside` is the port of the machine's loopback on which the API server can be reached from outside the namespace.
    pub(crate) fn create(&self, nodes: &[String], outside: u16) -> Result<()> {
        folders::make(&self.folder)?;
        self.certificates()?;
        let mut users = vec![
            user("admin", "admin", "system:masters"),
            user("scheduler", "system:kube-scheduler", ""),
            user("controller-manager", "system:kube-controller-manager", ""),
        ];
        users.extend(
            nodes
                .iter()
                .map(|node| user(node, &format!("system:node:{node}"), "system:nodes")),
        );
        let tokens: String = users
            .iter()
            .map(|u| format!("{},{},{},\"{}\"\n", u.token, u.name, u.name, u.group))
            .collect();
        folders::write(&self.file("tokens.csv"), tokens)?;
        let inside = format!("https://{GATEWAY}:443");
        for user in &users {
            let name = user.token.trim_end_matches("-token");
            self.write_kubeconfig(name, &user.token, &inside)?;
        }
        self.write_kubeconfig("outside", "admin-token", &format!("https://127.0.0.1:{outside}"))
    }

    fn write_kubeconfig(&self, name: &str, token: &str, server: &str) -> Result<()> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "quarry", "cluster": {"server": server, "certificate-authority": self.file("ca.crt")}}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "quarry", "context": {"cluster": "quarry", "user": name}}],
            "current-context": "quarry",
        });
        folders::write(&self.kubeconfig(name), format!("{config:#}\n"))
    }

    fn certificates(&self) -> Result<()> {
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "quarry-bed");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

        let names = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
        ]
        .map(str::to_owned);
        let mut server = CertificateParams::new(names)?;
        server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        server
            .subject_alt_names
            .extend([[127, 0, 0, 1].into(), GATEWAY, SERVICE].map(|ip| SanType::IpAddress(ip.into())));
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &authority)?;

        let accounts = KeyPair::generate()?;
        folders::write(&self.file("ca.crt"), authority.pem())?;
        folders::write(&self.file("api.crt"), certificate.pem())?;
        folders::write(&self.file("api.key"), key.serialize_pem())?;
        folders::write(&self.file("accounts.key"), accounts.serialize_pem())?;
        folders::write(&self.file("accounts.pub"), accounts.public_key_pem())
    }
}
