//! What a manager needs in a cluster with many claims that are none of its business.

use std::time::Duration;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, PostParams};
use quarry_crds::names::SELECTED_NODE;
use quarry_e2e::bed::{Bed, NAMESPACE};
use quarry_e2e::objects::Claim;
use quarry_e2e::test::Test;
use serde_json::json;

use crate::figure::Figure;
use crate::volumes::{NODE, resident};

/// How many claims there are elsewhere.
const CLAIMS: usize = 5_000;
/// How many requests are made at a time.
const AT_ONCE: usize = 20;
/// How long a manager is left alone before its memory is looked at.
const SETTLED: Duration = Duration::from_secs(20);

/// The figures.
///
/// # Errors
/// The cluster did not come up, or a claim was not made.
pub async fn figures(figures: &mut Vec<Figure>) -> Result<()> {
    let test = Test::new(Bed::up().await?, "memory");
    let result = async {
        test.begin().await?;
        measure(&test, figures).await
    }
    .await;
    let cleaned = test.end().await;
    result.and(cleaned)
}

async fn measure(test: &Test, figures: &mut Vec<Figure>) -> Result<()> {
    let before = restarted(test).await?;
    stream::iter(0..CLAIMS)
        .map(|at| async move {
            // Bound by name, so that kube-controller-manager leaves them alone.
            let mut claim = Claim::new(&format!("elsewhere{at}"), "", "1Gi");
            claim.0["metadata"]["annotations"] = json!({SELECTED_NODE: format!("elsewhere-{}", at % 1_000)});
            claim.0["spec"]["volumeName"] = json!(format!("elsewhere-{at}"));
            test.claims().create(&PostParams::default(), &claim.object()?).await?;
            anyhow::Ok(())
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    tokio::time::sleep(SETTLED).await;
    let watched = resident(test, "quarry-manager").await?;
    let listed = restarted(test).await?;
    let extender = resident(test, "quarry-extender").await?;
    let every = ListParams::default();
    test.claims()
        .delete_collection(&DeleteParams::default(), &every)
        .await?;
    test.wait("the claims are gone", Duration::from_secs(900), || async {
        Ok(test.claims().list(&every).await?.items.is_empty().then_some(()))
    })
    .await?;
    figures.extend([
        Figure::new("manager, resident just after its start", before, "MiB"),
        Figure::new(
            format!("after {CLAIMS} claims of other nodes were made"),
            watched,
            "MiB",
        ),
        Figure::new("just after its start with these", listed, "MiB"),
        Figure::new("extender with these", extender, "MiB"),
    ]);
    Ok(())
}

/// What the manager of the node needs once it has started anew.
async fn restarted(test: &Test) -> Result<f64> {
    let old = test.pod_of_ours("quarry-manager", NODE).await?.name_any();
    test.bed
        .kubectl(&["-n", NAMESPACE, "delete", "pod", &old, "--wait"])
        .await?;
    test.bed.rolled_out("quarry-manager").await?;
    tokio::time::sleep(SETTLED).await;
    resident(test, "quarry-manager").await
}
