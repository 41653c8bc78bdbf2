//! The API server refuses one object of Quarry: that is told on it, and everything else is served.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use quarry_crds::NodeLocalStorage;
use serde_json::{Value, json};

use crate::case;
use crate::objects::{Claim, Class};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(refused_volume),
    case!(refused_storage),
    case!(too_many_disks),
    case!(refused_events),
];

/// What the policy answers.
const WORDS: &str = "the storage board has not agreed to this";
/// A lasting refusal is asked about again ever more rarely, up to once in two minutes, or five for a claim.
const TRIED_AGAIN: Duration = Duration::from_secs(150);

/// Has the API server refuse the creation and change of objects for which `refused` holds.
async fn refuse(test: &Test, rules: Value, refused: &str) -> Result<()> {
    let name = test.name.as_str();
    let policy = json!({
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rules]},
            "validations": [{"expression": format!("!({refused})"), "message": WORDS, "reason": "Forbidden"}],
        },
    });
    let binding = json!({
        "metadata": {"name": name}, "spec": {"policyName": name, "validationActions": ["Deny"]},
    });
    agree(test).await?;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(test.client());
    policies
        .create(&PostParams::default(), &serde_json::from_value(policy)?)
        .await?;
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(test.client());
    bindings
        .create(&PostParams::default(), &serde_json::from_value(binding)?)
        .await?;
    // The API server compiles it now and then.
    tokio::time::sleep(Duration::from_secs(5)).await;
    Ok(())
}

/// Nothing is refused any more.
async fn agree(test: &Test) -> Result<()> {
    let bindings: Api<ValidatingAdmissionPolicyBinding> = Api::all(test.client());
    let _ = bindings.delete(&test.name, &DeleteParams::default()).await;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(test.client());
    let _ = policies.delete(&test.name, &DeleteParams::default()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(())
}

async fn bound(test: &Test, claim: &str, patience: Duration) -> Result<()> {
    test.wait(&format!("claim {claim} is bound"), patience, || async {
        let claim = test.claims().get(claim).await?;
        Ok(claim.spec.and_then(|spec| spec.volume_name).map(drop))
    })
    .await
}

/// A PersistentVolume is refused: its claim is told, and others are served.
async fn refused_volume(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let rules = json!({"apiGroups": [""], "apiVersions": ["v1"], "resources": ["persistentvolumes"],
                       "operations": ["CREATE"]});
    let of_claim = format!(
        "object.spec.?claimRef.?namespace.orValue('') == '{}' && object.spec.?claimRef.?name.orValue('') == 'refused'",
        test.name
    );
    refuse(test, rules, &of_claim).await?;
    let result = async {
        test.claim(Claim::new("refused", &class, "100Mi").selected("node1"))
            .await?;
        let told = test
            .said(
                "PersistentVolumeClaim",
                "refused",
                &["ProvisioningFailed", "node1", WORDS],
            )
            .await?;
        println!("   {told}");
        test.claim(Claim::new("other", &class, "100Mi").selected("node1"))
            .await?;
        bound(test, "other", PATIENCE).await?;
        // It says the same at each attempt: one event.
        tokio::time::sleep(Duration::from_secs(20)).await;
        let said = test.said_of("PersistentVolumeClaim", "refused").await?;
        let said: Vec<_> = said
            .iter()
            .filter(|(reason, _)| reason == "ProvisioningFailed")
            .collect();
        ensure!(said.len() == 1, "{said:#?}");
        Ok(())
    }
    .await;
    agree(test).await?;
    result?;
    bound(test, "refused", TRIED_AGAIN).await
}

/// The NodeLocalStorage of one class on one node is refused, and the status of another: they are told, and a third class is
/// served there, also by a manager that starts meanwhile.
async fn refused_storage(test: &Test) -> Result<()> {
    let rules = json!({"apiGroups": ["quarry.dev"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"],
                       "resources": ["nodelocalstorages", "nodelocalstorages/status"]});
    let [good, whole, status] = ["good", "whole", "status"].map(|suffix| test.class_name(suffix));
    let refused = format!(
        "object.metadata.name == '{whole}.node1' || (object.metadata.name == '{status}.node1' && \
         request.?subResource.orValue('') == 'status')"
    );
    refuse(test, rules, &refused).await?;
    let result = with_refused_storages(test, [&good, &whole, &status]).await;
    agree(test).await?;
    result?;
    for class in [&whole, &status] {
        test.wait(&format!("class {class} is ready everywhere"), TRIED_AGAIN, || async {
            let storages = test.storages_of(class).await?;
            Ok((storages.len() == 3 && storages.iter().all(NodeLocalStorage::is_ready)).then_some(()))
        })
        .await?;
    }
    Ok(())
}

async fn with_refused_storages(test: &Test, [good, whole, status]: [&String; 3]) -> Result<()> {
    // The refused ones come first by age and name.
    test.class(Class::new(whole, &test.each_node(1)?)).await?;
    test.class(Class::new(status, &test.each_node(2)?)).await?;
    let told = test
        .said("StorageClass", whole, &["NodeLocalStorageRefused", "node1", WORDS])
        .await?;
    println!("   {told}");
    let storage = format!("{status}.node1");
    let told = test
        .said("NodeLocalStorage", &storage, &["StatusRefused", WORDS])
        .await?;
    println!("   {told}");
    test.class(Class::new(good, &test.each_node(0)?)).await?;
    test.ready(good, 3).await?;
    test.claim(Claim::new("before", good, "100Mi").selected("node1"))
        .await?;
    bound(test, "before", PATIENCE).await?;
    let node = test.bed.node("node1")?;
    node.run_ok(["pkill", "-KILL", "-x", "quarry-manager"]).await?;
    test.claim(Claim::new("after", good, "100Mi").selected("node1")).await?;
    bound(test, "after", PATIENCE).await?;
    test.delete_claim("before").await
}

/// A class has more disks on a node than a NodeLocalStorage holds: it is told, and a class beside it is served.
async fn too_many_disks(test: &Test) -> Result<()> {
    let many = (0..65).map(|number| format!("/dev/disk/by-id/no-such-disk-{number}"));
    let class = Class::new(&test.class_name("many"), &[("node1", many.collect())]);
    let class = test.class(class).await?;
    let told = test
        .said("StorageClass", &class, &["NodeLocalStorageRefused", "node1", "65"])
        .await?;
    println!("   {told}");
    let good = test.simple_class("a", 0).await?;
    test.claim(Claim::new("data", &good, "100Mi").selected("node1")).await?;
    bound(test, "data", PATIENCE).await?;
    test.delete_claim("data").await
}

/// A quota leaves no room for events: claims are served all the same.
async fn refused_events(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let quotas: Api<ResourceQuota> = Api::namespaced(test.client(), &test.name);
    let quota = json!({"metadata": {"name": "none"}, "spec": {"hard": {"count/events": "0", "count/events.events.k8s.io": "0"}}});
    quotas
        .create(&PostParams::default(), &serde_json::from_value(quota)?)
        .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    test.claim(Claim::new("data", &class, "100Mi").selected("node1"))
        .await?;
    bound(test, "data", PATIENCE).await?;
    test.delete_claim("data").await
}
