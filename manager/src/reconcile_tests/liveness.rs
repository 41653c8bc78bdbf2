//! The Lease of the manager.

use std::sync::Arc;
use std::time::Duration;

use quarry_process::Shutdown;
use serde_json::{Value, json};

use super::bench::{Bench, CLAIMS, claim};
use crate::liveness::{Pulse, renew, run};
use crate::wake;

const LEASES: &str = "leases";
const NAME: &str = "manager.w1";

fn pulse() -> Pulse {
    Pulse {
        namespace: "quarry-system".to_owned(),
        every: Duration::from_secs(60),
    }
}

async fn bench() -> Bench {
    let mut bench = Bench::new().await;
    let node = json!({"metadata": {"name": "w1", "uid": "n-1"}});
    bench.put("nodes", node.clone());
    bench.set_node(Some(node));
    bench.forget();
    bench
}

/// What is asked in ten minutes.
async fn asked(bench: &Bench) -> Vec<String> {
    bench.forget();
    let context = Arc::clone(&bench.context);
    let both = async {
        tokio::join!(
            run(context.clone(), pulse(), Shutdown::new()),
            wake::run(context, Shutdown::new())
        )
    };
    let ten_minutes = Duration::from_secs(600);
    tokio::time::timeout(ten_minutes, both).await.expect_err("they go on");
    bench.log()
}

#[tokio::test]
async fn it_names_the_node_and_goes_with_it() {
    let bench = bench().await;
    renew(&bench.context, &pulse()).await.expect("renewed");
    let lease = bench.object(LEASES, NAME).expect("it is there");
    assert_eq!(lease["spec"]["holderIdentity"], "w1");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 180);
    let owner = &lease["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Node"), &json!("n-1")));
    assert_ne!(lease["spec"]["renewTime"], Value::Null);
}

#[tokio::test]
async fn there_is_none_without_a_node() {
    let mut bench = bench().await;
    bench.set_node(None);
    renew(&bench.context, &pulse()).await.expect("nothing to do");
    assert_eq!(bench.log(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn it_is_renewed_at_its_pace_and_sooner_after_a_failure() {
    let bench = bench().await;
    let first = asked(&bench).await;
    assert_eq!(first.iter().filter(|line| line.contains(NAME)).count(), 10, "{first:?}");
    for _ in 0..3 {
        bench.api.fail_next("apply", LEASES, 503);
    }
    let again = asked(&bench).await;
    // Three failures in the first half minute.
    assert_eq!(again.iter().filter(|line| line.contains(NAME)).count(), 13, "{again:?}");
    assert!(!again.iter().any(|line| line.contains("nodes/")), "nobody missed it");
}

#[tokio::test(start_paused = true)]
async fn who_was_missed_for_long_wakes_the_pods_that_were_kept_away() {
    let mut bench = bench().await;
    bench.put(CLAIMS, claim(None, "2Gi"));
    bench.sync();
    asked(&bench).await;
    for _ in 0..13 {
        bench.api.fail_next("apply", LEASES, 503);
    }
    let lines = asked(&bench).await;
    let at = |what: &str| lines.iter().rposition(|line| line.contains(what));
    assert_eq!(
        lines.iter().filter(|line| line.contains("nodes/w1")).count(),
        1,
        "{lines:?}"
    );
    assert!(at("nodes/w1") > Some(13), "after it was renewed: {lines:?}");
}
