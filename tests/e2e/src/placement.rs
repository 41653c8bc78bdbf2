//! Where pods go, and that no node is ever promised more than it has.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::Api;
use kube::api::PostParams;

use crate::case;
use crate::objects::{self, Claim, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(three_claims_one_a_node),
    case!(jointly_too_large),
    case!(two_groups_in_one_pod),
];

/// A StatefulSet of three whose claims take most of any node's volume group, all pods at once.
async fn three_claims_one_a_node(test: &Test) -> Result<()> {
    // 4, 5 and 3 GiB: one claim of 2600 MiB fits on each, and two on none.
    let class = test.simple_class("a", 0).await?;
    let set = objects::stateful_set("db", 3, &class, "2600Mi")?;
    let sets: Api<StatefulSet> = Api::namespaced(test.client(), &test.name);
    sets.create(&PostParams::default(), &set).await?;
    let mut nodes = BTreeSet::new();
    for ordinal in 0..3 {
        nodes.insert(
            test.wait(&format!("pod db-{ordinal} is there"), PATIENCE, || async {
                let pod = format!("db-{ordinal}");
                Ok(test.pods().get_opt(&pod).await?.map(|_| pod))
            })
            .await?,
        );
    }
    let mut on = BTreeSet::new();
    for pod in &nodes {
        on.insert(test.running(pod).await?);
        // It is Ready once its container has started.
        test.wait(&format!("{pod} has written its name"), PATIENCE, || async {
            let written = test.exec(pod, &["cat", "/data/name"]).await.unwrap_or_default();
            Ok((written.trim() == pod).then_some(()))
        })
        .await?;
    }
    ensure!(on.len() == 3, "one a node, but they are on {on:?}");
    let failed = test.given_back().await?;
    ensure!(failed.is_empty(), "no placement may have failed: {failed:?}");
    Ok(())
}

/// Two claims that fit each alone on every node, and together on none but one.
async fn jointly_too_large(test: &Test) -> Result<()> {
    // Disks of 8, 10 and 12 GiB: 5.5 + 5.5 GiB fit on the last only.
    let class = test.simple_class("a", 2).await?;
    test.claim(Claim::new("one", &class, "5500Mi")).await?;
    test.claim(Claim::new("two", &class, "5500Mi")).await?;
    test.pod(PodSpec::new("both").claim("one", false).claim("two", false))
        .await?;
    ensure!(test.running("both").await? == "node3", "only node3 has room for both");
    let failed = test.given_back().await?;
    ensure!(failed.is_empty(), "never placed elsewhere: {failed:?}");
    // And a pod for which no node has room for both stays Pending with the reason.
    test.claim(Claim::new("three", &class, "6Gi")).await?;
    test.claim(Claim::new("four", &class, "6Gi")).await?;
    test.pod(PodSpec::new("none").claim("three", false).claim("four", false))
        .await?;
    test.said(
        "Pod",
        "none",
        &[
            "FailedScheduling",
            "not enough free local storage in volume group",
            &class,
        ],
    )
    .await?;
    for claim in ["three", "four"] {
        let claim = test.claims().get(claim).await?;
        ensure!(
            quarry_crds::claim::selected_node(&claim).is_none(),
            "never selected to any node"
        );
    }
    Ok(())
}

/// Claims of two classes in one pod are served from two volume groups of one node.
async fn two_groups_in_one_pod(test: &Test) -> Result<()> {
    let first = test.simple_class("a", 0).await?;
    let second = test.simple_class("b", 1).await?;
    test.claim(Claim::new("one", &first, "300Mi")).await?;
    test.claim(Claim::new("two", &second, "300Mi")).await?;
    test.pod(PodSpec::new("both").claim("one", false).claim("two", false))
        .await?;
    let node = test.running("both").await?;
    for (claim, group) in [("one", &first), ("two", &second)] {
        let volume = test.volume_of(claim).await?;
        let name = volume.metadata.name.unwrap_or_default();
        let row = test.logical_volume(&node, &name).await?.unwrap_or_default();
        ensure!(row["vg_name"] == group.as_str(), "{claim}: {row}");
    }
    Ok(())
}
