//! CSIStorageCapacity instead of the extender, as on a control plane whose scheduler nobody may configure; and both together.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use quarry_crds::claim::{is_bound, selected_node};
use serde_json::json;

use crate::bed::{NAMESPACE, folder, repository};
use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::rights::thief::{Attempt, Thief};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(without_the_extender)];

/// What the component adds, in the order in which it is applied.
const FILES: [&str; 3] = ["rbac.yaml", "admission.yaml", "csi-driver.yaml"];
const SETTING: &str = "QUARRY_STORAGE_CAPACITY";

async fn without_the_extender(test: &Test) -> Result<()> {
    let result = with_capacity(test).await;
    // Each step is taken, whatever comes of the others. The CSIDriver goes first: while it is there, a node without such an
    // object counts as full.
    let mut restored = Ok(());
    for file in FILES.into_iter().rev() {
        let delete = ["delete", "--ignore-not-found", "-f", &path(file)];
        restored = restored.and(test.bed.kubectl(&delete).await.map(drop));
    }
    restored = restored.and(test.bed.manager_settings(&[(SETTING, None)]).await);
    restored = restored.and(test.bed.cluster.stock_scheduler(false).await.map_err(Into::into));
    let (delete, all) = (DeleteParams::default(), ListParams::default());
    let deleted = capacities(test).delete_collection(&delete, &all).await;
    result.and(restored).and(deleted.map(drop).map_err(Into::into))
}

fn path(file: &str) -> String {
    let path = repository().join("deploy/storage-capacity").join(file);
    path.display().to_string()
}

fn capacities(test: &Test) -> Api<CSIStorageCapacity> {
    Api::namespaced(test.client(), NAMESPACE)
}

async fn with_capacity(test: &Test) -> Result<()> {
    component(test).await?;
    for file in FILES {
        test.bed
            .kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &path(file)])
            .await?;
    }
    test.bed.manager_settings(&[(SETTING, Some("true"))]).await?;
    let class = test.simple_class("a", 0).await?;
    let published = published(test, &class).await?;
    println!("   published, largest volumes: {published:?}");
    of_its_own_node_alone(test, &class).await?;
    test.claim(Claim::new("both", &class, "100Mi")).await?;
    test.pod(PodSpec::new("both").claim("both", false)).await?;
    test.running("both").await?;
    println!("   kube-scheduler goes by both: Running");
    test.delete_pod("both").await?;
    test.delete_claim("both").await?;
    crate::backups::find_the_files(test, &class).await?;
    test.bed.cluster.stock_scheduler(true).await?;
    alone(test, &class).await
}

/// With the token of the manager on node1, nothing is published for another node.
async fn of_its_own_node_alone(test: &Test, class: &str) -> Result<()> {
    let thief = Thief::of_process(test, "node1", "quarry-manager").await?;
    let path = format!("/apis/storage.k8s.io/v1/namespaces/{NAMESPACE}/csistoragecapacities");
    let object = |name: &str, hostname: &str| {
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "CSIStorageCapacity", "metadata": {"name": name},
            "storageClassName": class, "capacity": "1Pi", "maximumVolumeSize": "1Pi",
            "nodeTopology": {"matchLabels": {"kubernetes.io/hostname": hostname}},
        })
    };
    let (own, other) = (format!("{class}.node1"), format!("{class}.node2"));
    let of_other = format!("{path}/{other}");
    for attempt in [
        Attempt::create("make one for node2", &path, object("more", "node2")),
        Attempt::create("make a second one for its own node", &path, object("more", "node1")),
        Attempt::create("make one for every node", &path, {
            let mut object = object("more", "node1");
            object["nodeTopology"] = json!({});
            object
        }),
        Attempt::patch(
            "say that node2 is full",
            &of_other,
            json!({"capacity": "0", "maximumVolumeSize": "0"}),
        ),
    ] {
        let told = thief.is_refused(&attempt, &["denied request", "node1"]).await?;
        println!("   {told}");
    }
    // kube-scheduler would send pods with claims of that class here.
    let other = test.class_name("other");
    let of_other_driver = Class::new(&other, &[]).with("provisioner", "other.example");
    test.class(of_other_driver.with("parameters", json!({}))).await?;
    let mut capacity = object(&format!("{other}.node1"), "node1");
    capacity["storageClassName"] = json!(other);
    let attempt = Attempt::create("make one for a class of another driver", &path, capacity);
    thief
        .is_refused(&attempt, &["denied request", "node1", "other.example"])
        .await?;
    let attempt = Attempt::delete("take node2's away", &of_other);
    thief.is_refused(&attempt, &["quarry-manager\" cannot"]).await?;
    let own = format!("{path}/{own}");
    thief
        .may(&Attempt::patch(
            "touch its own",
            own,
            json!({"metadata": {"labels": {"touched": ""}}}),
        ))
        .await?;
    Ok(())
}

/// What the component of kustomize makes has the setting.
async fn component(test: &Test) -> Result<()> {
    let overlay = folder()?.join("storage-capacity");
    std::fs::create_dir_all(&overlay)?;
    let text = "resources: [../../../../deploy/base]\ncomponents: [../../../../deploy/storage-capacity]\n";
    std::fs::write(overlay.join("kustomization.yaml"), text)?;
    let made = test.bed.kubectl(&["kustomize", &overlay.display().to_string()]).await?;
    for part in [SETTING, "kind: CSIDriver", "quarry-manager-storage-capacity"] {
        ensure!(made.contains(part), "{part} is not in what kustomize makes");
    }
    Ok(())
}

/// The largest volume of each node, by object, once all are there.
async fn published(test: &Test, class: &str) -> Result<Vec<(String, String)>> {
    test.wait("a CSIStorageCapacity of each node", PATIENCE, || async {
        let all = capacities(test).list(&ListParams::default()).await?.items;
        let mut of_class: Vec<_> = all
            .into_iter()
            .filter(|one| one.storage_class_name == class)
            .filter_map(|one| Some((one.metadata.name?, one.maximum_volume_size?.0)))
            .filter(|(_, largest)| largest != "0")
            .collect();
        of_class.sort();
        Ok((of_class.len() == 3).then_some(of_class))
    })
    .await
}

/// kube-scheduler without an extender knows where room is, and that it came back.
async fn alone(test: &Test, class: &str) -> Result<()> {
    test.claim(Claim::new("first", class, "4900Mi")).await?;
    test.pod(PodSpec::new("first").claim("first", false)).await?;
    ensure!(test.running("first").await? == "node2", "only node2 has so much");
    test.claim(Claim::new("second", class, "4800Mi")).await?;
    test.pod(PodSpec::new("second").claim("second", false)).await?;
    let told = ["FailedScheduling", "3 node(s) did not have enough free storage"];
    println!("   {}", test.said("Pod", "second", &told).await?);
    let claim = test.claims().get("second").await?;
    ensure!(selected_node(&claim).is_none() && !is_bound(&claim));
    let volume = test.volume_of("first").await?.name_any();
    test.delete_pod("first").await?;
    test.delete_claim("first").await?;
    test.volume_gone(&volume).await?;
    let returned = Instant::now();
    test.wait("the second is given to node2", PATIENCE, || async {
        let claim = test.claims().get("second").await?;
        Ok((selected_node(&claim) == Some("node2")).then_some(()))
    })
    .await?;
    let took = returned.elapsed();
    println!("   space returned → placed: {:.1} s", took.as_secs_f64());
    ensure!(took < Duration::from_secs(30), "not woken: {took:?}");
    ensure!(test.running("second").await? == "node2");
    Ok(())
}
