//! The demonstration: a StatefulSet of three on the disks of three nodes, in a screen that says what just happened.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use quarry_e2e::bed::Bed;
use quarry_e2e::objects::{self, Claim, Class, PodSpec};
use quarry_e2e::test::{PATIENCE, Test};

#[tokio::main]
async fn main() -> Result<()> {
    let bed = Bed::up().await?;
    let test = Test::new(bed, "demo");
    test.begin().await?;
    let result = show(&test).await;
    let cleaned = test.end().await;
    if let Err(error) = &result {
        eprintln!("demo: it did not go as it should: {error:?}\n{}", test.tell().await);
    }
    result.and(cleaned)?;
    say(
        "Everything is gone again; the cluster stays up: `make cluster` says how to use it, `make cluster-down` removes it.",
    );
    Ok(())
}

fn say(text: &str) {
    println!("\n\x1b[1m▌ {text}\x1b[0m");
}

/// Runs kubectl and shows what it says.
async fn kubectl(test: &Test, arguments: &[&str]) -> Result<String> {
    let text = test.bed.kubectl(arguments).await?;
    println!("$ kubectl {}\n{}", arguments.join(" "), text.trim_end());
    Ok(text)
}

async fn show(test: &Test) -> Result<()> {
    say("Three nodes, each with a kernel and disks of its own. Two blank disks of each are to hold volumes.");
    for node in test.bed.cluster.nodes() {
        let disks = node
            .disks()
            .iter()
            .map(|disk| format!("{} {} GiB", disk.serial, disk.size >> 30))
            .collect::<Vec<_>>();
        println!("  {}: {}", node.name(), disks.join(", "));
    }
    let mut nodes = Vec::new();
    for (at, node) in ["node1", "node2", "node3"].into_iter().enumerate() {
        nodes.push((node, vec![test.bed.disk(at + 1, 0)?, test.bed.disk(at + 1, 1)?]));
    }
    let class = test
        .class(Class::new(&test.class_name("fast"), &nodes).parameter("fsType", "xfs"))
        .await?;
    test.ready(&class, 3).await?;
    say("A StorageClass named them. The manager on each node checked the disks and made a volume group of them:");
    kubectl(test, &["get", "nodelocalstorage"]).await?;
    stateful_set(test, &class).await?;
    healed(test, &class).await?;
    returned(test, &class).await
}

async fn stateful_set(test: &Test, class: &str) -> Result<()> {
    let set = objects::stateful_set("db", 3, class, "6500Mi")?;
    let sets: Api<StatefulSet> = Api::namespaced(test.client(), &test.name);
    sets.create(&PostParams::default(), &set).await?;
    for ordinal in 0..3 {
        let pod = format!("db-{ordinal}");
        test.wait("the pod is there", PATIENCE, || async {
            Ok(test.pods().get_opt(&pod).await?.map(|_| ()))
        })
        .await?;
        test.running(&pod).await?;
    }
    say("A StatefulSet of three, all at once, each claim more than half of any node. The extender kept them apart:");
    kubectl(test, &["-n", &test.name, "get", "pods", "-o", "wide"]).await?;
    kubectl(test, &["get", "pv"]).await?;
    say("Each wrote to its volume, which has exactly its size, and not the node's:");
    for ordinal in 0..3 {
        let pod = format!("db-{ordinal}");
        let name = test.exec(&pod, &["cat", "/data/name"]).await?;
        let size = test.exec(&pod, &["df", "-h", "--output=size,fstype", "/data"]).await?;
        println!(
            "  {pod}: written by {} ({})",
            name.trim(),
            size.lines().nth(1).unwrap_or_default().trim()
        );
    }
    Ok(())
}

/// One placement that fails and is healed.
async fn healed(test: &Test, class: &str) -> Result<()> {
    // The emptiest node is chosen next; what fills it there is not published when the scheduler decides.
    let mut emptiest = ("node1", 0);
    for node in ["node1", "node2", "node3"] {
        let free = test.free_on(node, class).await?;
        if free > emptiest.1 {
            emptiest = (node, free);
        }
    }
    let (node, _) = emptiest;
    let on = test.bed.node(node)?;
    let manager = on.run_ok(["pgrep", "-x", "quarry-manager"]).await?;
    let manager = manager.split_whitespace().next().context("no manager runs")?.to_owned();
    on.run_ok(["kill", "-STOP", &manager]).await?;
    let filled = on
        .run_ok(["lvcreate", "-y", "-n", "by-hand", "-l", "99%FREE", class])
        .await;
    test.claim(Claim::new("late", class, "1Gi")).await?;
    test.pod(PodSpec::new("late").claim("late", false)).await?;
    let selected = test
        .wait("the scheduler chose a node", PATIENCE, || async {
            Ok(quarry_crds::claim::selected_node(&test.claims().get("late").await?).map(str::to_owned))
        })
        .await;
    on.run_ok(["kill", "-CONT", &manager]).await?;
    filled?;
    let told = test
        .said("PersistentVolumeClaim", "late", &["ProvisioningFailed"])
        .await?;
    let runs = test.running("late").await?;
    say(&format!(
        "{node} was filled by hand in the very moment of a placement. The manager gave the claim back, and it runs on {runs}:"
    ));
    println!("  chosen first: {}; then: {told}", selected?);
    kubectl(test, &["-n", &test.name, "get", "pods", "late", "-o", "wide"]).await?;
    ensure!(runs != node, "it must run elsewhere");
    on.run_ok(["lvremove", "-f", &format!("{class}/by-hand")]).await?;
    Ok(())
}

async fn returned(test: &Test, class: &str) -> Result<()> {
    let sets: Api<StatefulSet> = Api::namespaced(test.client(), &test.name);
    sets.delete("db", &DeleteParams::default()).await?;
    test.delete_pod("late").await?;
    for claim in test.claims().list(&ListParams::default()).await?.items {
        test.delete_claim(&claim.name_any()).await?;
    }
    test.wait("all space is back", PATIENCE, || async {
        let storages = test.storages_of(class).await?;
        let whole = storages.iter().all(|storage| {
            let group = storage.status.as_ref().and_then(|status| status.volume_group.as_ref());
            group.is_some_and(|group| group.free == group.size)
        });
        Ok((whole && storages.len() == 3).then_some(()))
    })
    .await?;
    say("Pods and claims were deleted: the volumes are wiped and removed, and all space is back:");
    kubectl(test, &["get", "nodelocalstorage"]).await?;
    Ok(())
}
