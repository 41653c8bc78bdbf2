//! Pods that wait for space are looked at again when it is there.

use std::sync::Arc;
use std::time::Duration;

use quarry_process::Shutdown;
use serde_json::json;

use super::bench::{Bench, CLAIMS, VOLUME, claim};
use super::provisioning::tags;
use crate::lvm::Lvm as _;
use crate::{capacity, wake};

const NODES: &str = "nodes";
const WOKEN: &str = "patch nodes/w1";
/// Longer than anything here waits.
const LONG: Duration = Duration::from_secs(120);

/// A node that is known to the API server, at rest, of which nobody was woken yet.
async fn at_rest() -> Bench {
    let mut bench = Bench::new().await;
    bench.put(NODES, json!({"metadata": {"name": "w1"}}));
    bench.forget();
    bench
}

/// The same where a claim waits for room.
async fn bench() -> Bench {
    let mut bench = at_rest().await;
    bench.put(CLAIMS, claim(None, "2Gi"));
    bench.sync();
    bench
}

/// What was asked while this ran.
async fn run(bench: &Bench) -> Vec<String> {
    bench.forget();
    let running = wake::run(Arc::clone(&bench.context), Shutdown::new());
    tokio::time::timeout(LONG, running).await.expect_err("it goes on");
    bench.log()
}

#[tokio::test(start_paused = true)]
async fn a_new_group_and_space_that_returns_wake_waiting_pods() {
    let mut bench = bench().await;
    assert_eq!(run(&bench).await, [WOKEN], "a new group");
    let made = bench.make(VOLUME, 26, tags("u-1")).await;
    bench.refresh().await;
    bench.pass().await;
    bench.sync();
    assert_eq!(run(&bench).await, Vec::<String>::new(), "less is free, not more");
    let volume = bench.lvm.by_hand(|state| state.groups[0].reference_to(&made));
    bench.lvm.remove_volume(volume).await.expect("removed");
    bench.refresh().await;
    bench.pass().await;
    assert_eq!(run(&bench).await, [WOKEN], "space returned");
    assert_eq!(run(&bench).await, Vec::<String>::new(), "once");
}

#[tokio::test(start_paused = true)]
async fn a_group_that_can_be_used_again_wakes_waiting_pods() {
    let mut bench = bench().await;
    assert_eq!(run(&bench).await, [WOKEN], "a new group");
    bench.sync();
    bench.lvm.garble_read_after(0);
    bench.context.inventory.refresh().await.expect_err("garbage");
    bench.pass().await;
    bench.sync();
    assert_eq!(run(&bench).await, Vec::<String>::new(), "nothing can be made");
    bench.refresh().await;
    bench.pass().await;
    assert_eq!(
        run(&bench).await,
        [WOKEN],
        "as much is free as before, and it can be used"
    );
}

#[tokio::test(start_paused = true)]
async fn where_nobody_waits_nobody_is_woken() {
    let mut bench = at_rest().await;
    assert_eq!(run(&bench).await, Vec::<String>::new(), "no claim");
    bench.context.wake.owe();
    bench.put(CLAIMS, claim(Some("w1"), "2Gi"));
    bench.sync();
    assert_eq!(run(&bench).await, Vec::<String>::new(), "its node is chosen");
    bench.context.wake.owe();
    let mut other = claim(None, "2Gi");
    other["spec"]["storageClassName"] = json!("slow");
    bench.put(CLAIMS, other);
    bench.sync();
    assert_eq!(
        run(&bench).await,
        Vec::<String>::new(),
        "of a class that is not on this node"
    );
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_seen_late_is_woken_for_too() {
    let mut bench = at_rest().await;
    let seen_after = async |bench: &mut Bench, seconds| {
        bench.api.objects(|objects| objects.clear(CLAIMS));
        bench.sync();
        bench.forget();
        bench.context.wake.owe();
        let running = tokio::spawn(wake::run(Arc::clone(&bench.context), Shutdown::new()));
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        bench.put(CLAIMS, claim(None, "2Gi"));
        bench.sync();
        bench.claim().await.expect("nothing is to be done about it");
        tokio::time::sleep(LONG).await;
        running.abort();
        bench
            .log()
            .into_iter()
            .filter(|line| line.ends_with("nodes/w1"))
            .count()
    };
    assert_eq!(seen_after(&mut bench, 5).await, 1);
    assert_eq!(
        seen_after(&mut bench, 20).await,
        0,
        "kube-scheduler has asked after the space was there"
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_did_not_take_is_repeated() {
    let bench = bench().await;
    bench.api.fail_next("patch", NODES, 503);
    assert_eq!(run(&bench).await, [WOKEN, WOKEN]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_gone_is_let_alone() {
    let bench = bench().await;
    bench.api.objects(|objects| objects.clear(NODES));
    assert_eq!(run(&bench).await, [WOKEN]);
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_starts_tells_what_its_predecessor_may_not_have_told() {
    let bench = bench().await;
    assert_eq!(run(&bench).await, [WOKEN], "of the new group");
    let kept = capacity::keep_true(Arc::clone(&bench.context), Shutdown::new(), false);
    tokio::time::timeout(LONG, kept).await.expect_err("it goes on");
    assert_eq!(run(&bench).await, [WOKEN]);
}
