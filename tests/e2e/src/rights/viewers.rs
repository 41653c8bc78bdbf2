//! What people see of Quarry who may read a namespace, and who was given ClusterRole quarry-view.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::ResourceExt;
use kube::api::{Api, ListParams, PostParams};
use serde_json::json;

use crate::case;
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(who_may_read_a_namespace_sees_no_disks)];

const ROLE: &str = "quarry-view";
/// What `kubectl quarry` reads: group and resource.
const READ: [(&str, &str); 5] = [
    ("quarry.dev", "nodelocalstorages"),
    ("", "persistentvolumes"),
    ("", "nodes"),
    ("", "persistentvolumeclaims"),
    ("coordination.k8s.io", "leases"),
];

/// NodeLocalStorages name disks, their serial numbers and LVM's UUIDs, and PersistentVolumes those of every tenant: the roles of a
/// namespace, which Kubernetes lets others add to, show neither. Whoever is given quarry-view reads, and nothing more.
async fn who_may_read_a_namespace_sees_no_disks(test: &Test) -> Result<()> {
    let result = reads(test).await;
    let bindings: Api<ClusterRoleBinding> = Api::all(test.client());
    let restored = match bindings.delete(&test.name, &Default::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => other.map(drop),
    };
    result.and(restored.map_err(Into::into))
}

async fn reads(test: &Test) -> Result<()> {
    for role in ["view", "edit", "admin"] {
        let user = format!("{role}-of-a-namespace");
        let (binding, of) = (format!("--user={user}"), format!("--clusterrole={role}"));
        let namespace = ["-n", &test.name];
        test.bed
            .kubectl(&[&namespace[..], &["create", "rolebinding", role, &of, &binding]].concat())
            .await?;
        ensure!(
            may(test, &user, "list", "", "persistentvolumeclaims", &test.name).await?,
            "{role}"
        );
        for (group, resource) in READ {
            for verb in ["get", "list", "watch"] {
                ensure!(
                    !may(test, &user, verb, group, resource, "").await?,
                    "{role} may {verb} {resource}"
                );
            }
        }
    }
    // Nobody is given it with another role.
    let roles: Api<ClusterRole> = Api::all(test.client());
    for role in roles.list(&ListParams::default()).await?.items {
        let ours = role.name_any().starts_with("quarry-");
        let added = role.labels().keys().find(|label| label.contains("aggregate-to"));
        ensure!(!ours || added.is_none(), "{}: {added:?}", role.name_any());
    }
    let bindings: Api<ClusterRoleBinding> = Api::all(test.client());
    let bound = bindings.list(&ListParams::default()).await?.items;
    ensure!(
        !bound.iter().any(|binding| binding.role_ref.name == ROLE),
        "it is bound to somebody"
    );

    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": test.name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ROLE},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "an-operator"}],
    }))?;
    bindings.create(&PostParams::default(), &binding).await?;
    test.wait("the right counts", std::time::Duration::from_secs(30), || async {
        Ok(may(test, "an-operator", "list", "quarry.dev", "nodelocalstorages", "")
            .await?
            .then_some(()))
    })
    .await?;
    for (group, resource) in READ {
        for verb in ["get", "list", "watch"] {
            ensure!(
                may(test, "an-operator", verb, group, resource, "").await?,
                "{verb} {resource}"
            );
        }
        for verb in ["create", "update", "patch", "delete", "deletecollection"] {
            ensure!(
                !may(test, "an-operator", verb, group, resource, "").await?,
                "{verb} {resource}"
            );
        }
    }
    println!("   {ROLE}: {} kinds, read only", READ.len());
    Ok(())
}

async fn may(test: &Test, user: &str, verb: &str, group: &str, resource: &str, namespace: &str) -> Result<bool> {
    let reviews: Api<SubjectAccessReview> = Api::all(test.client());
    let asked = serde_json::from_value(json!({"metadata": {}, "spec": {
        "user": user, "groups": ["system:authenticated"],
        "resourceAttributes": {"verb": verb, "group": group, "resource": resource, "namespace": namespace},
    }}))?;
    let answer = reviews.create(&PostParams::default(), &asked).await?;
    Ok(answer.status.context("no answer")?.allowed)
}
