//! `kubectl quarry`: a pod that is not placed is explained, through kubectl, with the rights of a plain user.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;
use kube::config::Kubeconfig;
use quarry_crds::claim::selected_node;
use serde_json::{Value, json};

use crate::case;
use crate::objects::{Claim, PodSpec};
use crate::outages::while_away;
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(why_a_pod_fits_nowhere),
    case!(why_claims_wait_for_other_reasons),
    case!(why_with_the_rights_of_a_user),
    case!(status_shows_what_there_is),
];

/// What `kubectl quarry why` says, as JSON and in words.
async fn why(test: &Test, subject: &str) -> Result<(Value, String)> {
    let text = test.bed.kubectl(&["quarry", "why", subject, "-n", &test.name]).await?;
    let json = ["quarry", "why", subject, "-n", &test.name, "-o", "json"];
    let json = test.bed.kubectl(&json).await?;
    let json = serde_json::from_str(&json).with_context(|| format!("no JSON: {json}"))?;
    println!("   $ kubectl quarry why {subject}\n{text}");
    Ok((json, text))
}

fn has(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in\n{text}");
    }
    Ok(())
}

fn node<'a>(why: &'a Value, name: &str) -> Result<&'a Value> {
    let nodes = why["nodes"].as_array().context("no nodes")?;
    let found = nodes.iter().find(|node| node["node"] == name);
    found.with_context(|| format!("{name} is not in {why:#}"))
}

/// A pod for which no node has room while a claim is in flight; what is advised helps.
async fn why_a_pod_fits_nowhere(test: &Test) -> Result<()> {
    // 4076, 5100 and 3052 MiB. Without a manager, what is given to a node stays in flight.
    let class = test.simple_class("a", 0).await?;
    let most = while_away(test, &["quarry-manager"], in_flight(test, &class)).await?;
    // Doing what is advised helps.
    test.claim(Claim::new("third", &class, &most)).await?;
    test.pod(PodSpec::new("third").claim("third", false)).await?;
    ensure!(test.running("third").await? == "node1", "node1 was advised");
    ensure!(test.running("first").await? == "node2", "it was given to node2");
    let (json, text) = why(test, "first").await?;
    ensure!(json["outcome"] == "placed" && json["placedOn"] == "node2", "{json:#}");
    has(&text, &["is placed on node node2", "has its volume"])
}

/// With a claim in flight to node2; the size that is advised for node1.
async fn in_flight(test: &Test, class: &str) -> Result<String> {
    test.claim(Claim::new("first", class, "4500Mi")).await?;
    test.pod(PodSpec::new("first").claim("first", false)).await?;
    test.wait("the first claim is given to node2", PATIENCE, || async {
        let claim = test.claims().get("first").await?;
        Ok((selected_node(&claim) == Some("node2")).then_some(()))
    })
    .await?;
    test.claim(Claim::new("second", class, "4500Mi")).await?;
    test.pod(PodSpec::new("second").claim("second", false)).await?;
    let reason = format!("node(s) had not enough free local storage in volume group {class}");
    let counted = format!("0/3 nodes are available: 3 {reason}.");
    println!(
        "   {}",
        test.said("Pod", "second", &["FailedScheduling", &counted]).await?
    );
    let (json, text) = why(test, "second").await?;
    let mib = |count: u64| json!(count << 20);
    ensure!(json["outcome"] == "fitsNowhere", "{json:#}");
    for (name, size, free, missing) in [
        ("node1", 4076, 4076, 424),
        ("node2", 5100, 600, 3900),
        ("node3", 3052, 3052, 1448),
    ] {
        let row = node(&json, name)?;
        ensure!(row["reason"] == reason.as_str() && row["fits"] == false, "{row:#}");
        let group = &row["groups"][0];
        for (field, value) in [
            ("volumeGroup", json!(class)),
            ("askedBytes", mib(4500)),
            ("freeBytes", mib(free)),
            ("missingBytes", mib(missing)),
            ("sizeBytes", mib(size)),
        ] {
            ensure!(group[field] == value, "{name}: {field} is not {value}: {group:#}");
        }
    }
    let claim = format!("{}/first", test.name);
    let flying = &node(&json, "node2")?["groups"][0];
    ensure!(flying["inFlightBytes"] == mib(4500), "{flying:#}");
    ensure!(
        flying["inFlight"] == json!([{"claim": claim, "bytes": 4500_u64 << 20}]),
        "{flying:#}"
    );
    has(
        &text,
        &[
            "fits on none of 3 nodes",
            &counted,
            "lacks 424Mi",
            "IN FLIGHT",
            &claim,
            "node node1 comes nearest",
            "Ask for 4076Mi or less",
        ],
    )?;
    // Asked about the claim, the answer is the same.
    let (of_claim, _) = why(test, "pvc/second").await?;
    ensure!(of_claim["nodes"] == json["nodes"], "{of_claim:#}");
    let (_, given) = why(test, "first").await?;
    has(&given, &["given to this node", "the manager on node node2"])?;
    Ok("4076Mi".to_owned())
}

/// Claims that wait for something else than room.
async fn why_claims_wait_for_other_reasons(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    test.claim(Claim::new("alone", &class, "1Gi")).await?;
    let (_, text) = why(test, "alone").await?;
    has(&text, &["which no pod uses now", "fits on 3 of 3 nodes"])?;
    let shared = Claim::new("shared", &class, "1Gi").with("accessModes", vec!["ReadWriteMany"]);
    test.claim(shared).await?;
    test.pod(PodSpec::new("shared").claim("shared", false)).await?;
    test.said("Pod", "shared", &["FailedScheduling"]).await?;
    let (json, text) = why(test, "shared").await?;
    ensure!(node(&json, "node1")?["cause"] == "invalid_claim", "{json:#}");
    has(&text, &["spec.accessModes", "use ReadWriteOnce or ReadWriteOncePod"])?;
    test.claim(Claim::new("huge", &class, "100Gi")).await?;
    let (_, text) = why(test, "pvc/huge").await?;
    has(&text, &["more than any volume group of StorageClass", "comes nearest"])?;
    test.claim(Claim::new("classless", "no-such-class", "1Gi")).await?;
    test.pod(PodSpec::new("lost").claim("classless", false)).await?;
    let (_, text) = why(test, "pod/lost").await?;
    has(
        &text,
        &["its StorageClass does not exist", "create StorageClass no-such-class"],
    )?;
    let nobody = ["quarry", "why", "nobody", "-n", &test.name];
    let (succeeded, _, error) = test.bed.kubectl_any(&nobody).await?;
    ensure!(!succeeded, "a name that is not there");
    has(
        &error,
        &["error: there is no pod or claim nobody in namespace", &test.name],
    )
}

/// A kubeconfig of a ServiceAccount of the test, which has no rights yet.
async fn user(test: &Test) -> Result<PathBuf> {
    let accounts: Api<ServiceAccount> = Api::namespaced(test.client(), &test.name);
    let account = serde_json::from_value(json!({"metadata": {"name": "user"}}))?;
    accounts.create(&PostParams::default(), &account).await?;
    let token = test.bed.kubectl(&["create", "token", "user", "-n", &test.name]).await?;
    let mut kubeconfig = Kubeconfig::read_from(test.bed.cluster.kubeconfig())?;
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(serde_json::from_value(json!({"token": token.trim()}))?);
    }
    // JSON is YAML.
    let path = std::env::temp_dir().join(format!("quarry-{}-{}.kubeconfig", test.name, std::process::id()));
    std::fs::write(&path, serde_json::to_string(&kubeconfig)?)?;
    Ok(path)
}

/// The right that is missing is named; with the ClusterRoles view and quarry-view, the answer is the administrator's.
async fn why_with_the_rights_of_a_user(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    test.claim(Claim::new("data", &class, "100Gi")).await?;
    test.pod(PodSpec::new("web").claim("data", false)).await?;
    test.said("Pod", "web", &["FailedScheduling"]).await?;
    let path = user(test).await?;
    let result = with_rights(test, &path.display().to_string()).await;
    let _ = std::fs::remove_file(&path);
    let binding = format!("{}-view", test.name);
    let _ = test.bed.kubectl(&["delete", "clusterrolebinding", &binding]).await;
    result
}

async fn with_rights(test: &Test, kubeconfig: &str) -> Result<()> {
    let ask = ["quarry", "why", "web", "-n", &test.name, "--kubeconfig", kubeconfig];
    let account = format!("--serviceaccount={}:user", test.name);
    // kube-apiserver hears of a right some time after it is given.
    let forbidden = async |whats: &[&str]| {
        let error = test
            .wait(&format!("one of {whats:?} may not be read"), PATIENCE, || async {
                let (succeeded, _, error) = test.bed.kubectl_any(&ask).await?;
                ensure!(!succeeded, "without the right to read {whats:?}");
                let told = |what: &&str| error.contains(&format!("may not read {what}"));
                Ok(whats.iter().any(told).then_some(error))
            })
            .await?;
        println!("   {}", error.trim());
        has(&error, &["error: you may not read", "quarry-view"])
    };
    forbidden(&["pods"]).await?;
    let binding = [
        "create",
        "rolebinding",
        "view",
        "--clusterrole=view",
        &account,
        "-n",
        &test.name,
    ];
    test.bed.kubectl(&binding).await?;
    // Several are read side by side: it is asked until one of these is refused first.
    forbidden(&["nodelocalstorages", "storageclasses"]).await?;
    let name = format!("{}-view", test.name);
    let binding = [
        "create",
        "clusterrolebinding",
        &name,
        "--clusterrole=quarry-view",
        &account,
    ];
    test.bed.kubectl(&binding).await?;
    let text = test
        .wait("all may be read", PATIENCE, || async {
            let (succeeded, text, _) = test.bed.kubectl_any(&ask).await?;
            Ok(succeeded.then_some(text))
        })
        .await?;
    has(&text, &["fits on none of 3 nodes", "comes nearest"])?;
    ensure!(!text.contains("you may list claims"), "{text}");
    Ok(())
}

/// Nodes, volume groups, disks and volumes as they are, and that the scheduler asks.
async fn status_shows_what_there_is(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    test.claim(Claim::new("data", &class, "1Gi")).await?;
    test.pod(PodSpec::new("web").claim("data", false)).await?;
    let on = test.running("web").await?;
    println!(
        "   $ kubectl quarry status\n{}",
        test.bed.kubectl(&["quarry", "status"]).await?
    );
    let json = test.bed.kubectl(&["quarry", "status", "-o", "json"]).await?;
    let status: Value = serde_json::from_str(&json).with_context(|| format!("no JSON: {json}"))?;
    let rows = |table: &str| status[table].as_array().cloned().unwrap_or_default();
    for (name, size) in [("node1", 4076_u64), ("node2", 5100), ("node3", 3052)] {
        let nodes = rows("nodes");
        let node = nodes
            .iter()
            .find(|node| node["node"] == name)
            .context("a node is missing")?;
        ensure!(node["manager"] == "at work", "{node:#}");
        let groups = rows("groups");
        let of = |group: &&Value| group["node"] == name && group["volumeGroup"] == class.as_str();
        let group = groups.iter().find(of).context("a volume group is missing")?;
        let used = if name == on { 1024 } else { 0 };
        ensure!(group["ready"] == true && group["sizeBytes"] == size << 20, "{group:#}");
        ensure!(group["freeBytes"] == (size - used) << 20, "{group:#}");
        ensure!(group["volumes"] == u64::from(name == on), "{group:#}");
        let disks = rows("disks");
        let of = |disk: &&Value| disk["node"] == name && disk["volumeGroup"] == class.as_str();
        let disk = disks.iter().find(of).context("a disk is missing")?;
        ensure!(disk["phase"] == "Claimed", "{disk:#}");
    }
    let summary = status["scheduler"]["summary"].as_str().unwrap_or_default();
    ensure!(
        summary.starts_with("kube-scheduler called the extender") && summary.ends_with("ago"),
        "the scheduler asks, but: {summary}"
    );
    Ok(())
}
