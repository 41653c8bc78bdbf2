//! A node whose LVM refuses volumes for another reason than room.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use quarry_crds::NodeLocalStorage;
use quarry_crds::claim::selected_node;
use quarry_crds::names::REFUSED_BY_ANNOTATION;

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(refused_for_another_reason_than_room)];

/// The emptiest node refuses each volume; the other one, half full, serves all of them. Then the first is not ready, in
/// LVM's words, and it is ready again when it works.
async fn refused_for_another_reason_than_room(test: &Test) -> Result<()> {
    let nodes: Vec<_> = test
        .each_node(2)?
        .into_iter()
        .filter(|(node, _)| *node != "node2")
        .collect();
    let name = test.class_name("a");
    let class = test.class(Class::new(&name, &nodes)).await?;
    let at_once = Class::new(&test.class_name("b"), &nodes).parameter("volumeGroup", &name);
    let at_once = test.class(at_once.with("volumeBindingMode", "Immediate")).await?;
    test.ready(&class, 2).await?;
    test.ready(&at_once, 2).await?;
    // 8 GiB and 12 GiB: half of node1 stays free, and nearly all of node3, on which no further volume can be made.
    test.leave_free("node1", &name, 4 << 30).await?;
    let node3 = test.bed.node("node3")?;
    node3
        .run_ok(["lvcreate", "-y", "-n", "filler", "-L", "4m", &name])
        .await?;
    node3.run_ok(["vgchange", "-l", "1", &name]).await?;
    test.published_free(&format!("{class}.node1"), 4 << 30).await?;
    let refusing = async || -> Result<Option<NodeLocalStorage>> {
        let storage = test.storages().get(&format!("{class}.node3")).await?;
        Ok((!storage.is_ready()).then_some(storage))
    };
    ensure!(refusing().await?.is_none(), "one does not see it from outside");

    test.claim(Claim::new("first", &class, "200Mi")).await?;
    test.pod(PodSpec::new("first").claim("first", false)).await?;
    ensure!(test.running("first").await? == "node1");
    let first = test.claims().get("first").await?;
    let by = first
        .annotations()
        .get(REFUSED_BY_ANNOTATION)
        .context("node3 was asked first")?;
    println!("   {REFUSED_BY_ANNOTATION}: {by}");
    ensure!(by == "node3=1", "asked once, and left alone then");

    test.claim(Claim::new("second", &at_once, "200Mi")).await?;
    test.bound("second").await?;
    let second = test.claims().get("second").await?;
    ensure!(selected_node(&second) == Some("node1"), "{second:#?}");

    test.claim(Claim::new("third", &class, "200Mi")).await?;
    test.pod(PodSpec::new("third").claim("third", false)).await?;
    ensure!(test.running("third").await? == "node1");
    let storage = test.wait("node3 is not ready", PATIENCE, refusing).await?;
    let conditions = storage.status.unwrap_or_default().conditions;
    let ready = conditions
        .iter()
        .find(|one| one.type_ == "Ready")
        .context("no condition")?;
    println!("   Ready: {}: {}", ready.reason, ready.message);
    for part in [&name, "refused", "Maximum number of logical volumes"] {
        ensure!(ready.message.contains(part), "{} lacks {part}", ready.message);
    }

    node3.run_ok(["vgchange", "-l", "0", &name]).await?;
    test.ready(&class, 2).await?;
    test.claim(Claim::new("fourth", &class, "200Mi")).await?;
    test.pod(PodSpec::new("fourth").claim("fourth", false)).await?;
    ensure!(test.running("fourth").await? == "node3", "it is the emptier one");
    tokio::time::sleep(Duration::from_secs(5)).await;
    test.ready(&class, 2).await?;
    Ok(())
}
