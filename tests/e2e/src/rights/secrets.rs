//! With `deploy/tls` the extender makes a Secret and a ConfigMap: these and no others.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use super::scene::compiled;
use super::thief::{Attempt, Thief};
use crate::bed::{NAMESPACE, repository};
use crate::case;
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(the_extender_makes_no_secret_but_its_own)];

/// What the component adds.
const FILES: [&str; 2] = ["admission.yaml", "rbac.yaml"];
const SECRET: &str = "quarry-extender-authority";
const CONFIG_MAP: &str = "quarry-extender-ca";

/// A Secret of the type kubernetes.io/service-account-token would be filled with a token of whichever ServiceAccount it names.
async fn the_extender_makes_no_secret_but_its_own(test: &Test) -> Result<()> {
    let path = |file: &str| repository().join("deploy/tls").join(file).display().to_string();
    for file in FILES {
        let apply = ["apply", "--server-side", "--force-conflicts", "-f", &path(file)];
        test.bed.kubectl(&apply).await?;
    }
    let result = attempts(test).await;
    let mut restored = Ok(());
    for file in FILES {
        let delete = ["delete", "--ignore-not-found", "-f", &path(file)];
        restored = restored.and(test.bed.kubectl(&delete).await.map(drop));
    }
    let (secrets, maps) = apis(test);
    let _ = secrets.delete(SECRET, &DeleteParams::default()).await;
    let _ = maps.delete(CONFIG_MAP, &DeleteParams::default()).await;
    result.and(restored)
}

fn apis(test: &Test) -> (Api<Secret>, Api<ConfigMap>) {
    (
        Api::namespaced(test.client(), NAMESPACE),
        Api::namespaced(test.client(), NAMESPACE),
    )
}

async fn attempts(test: &Test) -> Result<()> {
    compiled(test, super::scene::POLICIES + 2).await?;
    let thief = Thief::of_process(test, "node1", "quarry-extender").await?;
    let core = format!("/api/v1/namespaces/{NAMESPACE}");
    let (secrets, maps) = (format!("{core}/secrets"), format!("{core}/configmaps"));
    let object = |name: &str, kind: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "data": {"a": "YQ=="}});
    let typed = |name: &str, of: &str| {
        let mut secret = object(name, "Secret");
        secret["type"] = json!(of);
        secret["metadata"]["annotations"] = json!({"kubernetes.io/service-account.name": "quarry-manager"});
        if of == TOKEN {
            secret["data"] = Value::Null;
        }
        secret
    };
    let labelled = |name: &str, kind: &str| {
        let mut object = object(name, kind);
        object["metadata"]["labels"] = json!({"taken-by": "another-controller"});
        object
    };
    // Policies count a moment after they were seen.
    let probe = Attempt::create("a Secret of another name", &secrets, object("mine", "Secret"));
    test.wait("the policies count", Duration::from_secs(30), || async {
        match thief.does(&probe).await {
            Ok(_) => apis(test)
                .0
                .delete("mine", &DeleteParams::default())
                .await
                .map(|_| None),
            Err(_) => Ok(Some(())),
        }
        .map_err(Into::into)
    })
    .await?;
    for (attempt, part) in [
        (probe, "no other"),
        (
            Attempt::create("a token of the manager", &secrets, typed(SECRET, TOKEN)),
            TOKEN,
        ),
        (
            Attempt::create("the same by another name", &secrets, typed("mine", TOKEN)),
            "no other",
        ),
        (
            Attempt::create("a password for a registry", &secrets, {
                let mut secret = typed(SECRET, "kubernetes.io/basic-auth");
                secret["data"] = json!({"username": "YQ=="});
                secret
            }),
            "basic-auth",
        ),
        (
            Attempt::create(
                "one that another controller takes",
                &secrets,
                labelled(SECRET, "Secret"),
            ),
            "labels",
        ),
        (
            Attempt::create("a ConfigMap of another name", &maps, object("mine", "ConfigMap")),
            "no other",
        ),
        (
            Attempt::create(
                "one that another controller takes",
                &maps,
                labelled(CONFIG_MAP, "ConfigMap"),
            ),
            "labels",
        ),
    ] {
        thief.is_refused(&attempt, &["denied request", part]).await?;
    }
    let (secret, map) = (format!("{secrets}/{SECRET}"), format!("{maps}/{CONFIG_MAP}"));
    thief
        .may(&Attempt::create("its own Secret", &secrets, object(SECRET, "Secret")))
        .await?;
    thief
        .may(&Attempt::create(
            "its own ConfigMap",
            &maps,
            object(CONFIG_MAP, "ConfigMap"),
        ))
        .await?;
    for path in [&secret, &map] {
        thief
            .may(&Attempt::patch("what is in it", path, json!({"data": {"b": "Yg=="}})))
            .await?;
        let label = json!({"metadata": {"labels": {"taken-by": "another-controller"}}});
        thief
            .is_refused(
                &Attempt::patch("a label on it", path, label),
                &["denied request", "labels"],
            )
            .await?;
        thief
            .is_refused(&Attempt::delete("delete it", path), &["quarry-extender\" cannot"])
            .await?;
    }
    let found = apis(test).0.get(SECRET).await?;
    ensure!(found.type_.as_deref() == Some("Opaque"), "{:?}", found.type_);
    ensure!(apis(test).0.get_opt("mine").await?.is_none() && apis(test).1.get_opt("mine").await?.is_none());
    Ok(())
}

const TOKEN: &str = "kubernetes.io/service-account-token";
