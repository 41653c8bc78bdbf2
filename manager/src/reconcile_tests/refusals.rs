//! What LVM refuses for another reason than room.

use std::time::Duration;

use quarry_crds::names::REFUSED_BY_ANNOTATION;
use serde_json::{Value, json};

use super::bench::*;
use crate::lvm::fake::Fault;

fn refused_by(bench: &Bench) -> Option<String> {
    let claim = bench.object(CLAIMS, "data").expect("there");
    claim["metadata"]["annotations"][REFUSED_BY_ANNOTATION]
        .as_str()
        .map(str::to_owned)
}

fn ready(bench: &Bench) -> (String, String) {
    let storage = bench.object(STORAGES, "fast.w1").expect("there");
    let conditions = storage["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready: Vec<&Value> = conditions.iter().filter(|one| one["type"] == "Ready").collect();
    let text = |field: &str| ready[0][field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("message"))
}

/// A claim of that UID is given to this node, and LVM refuses it.
async fn refuse(bench: &mut Bench, uid: &str) {
    let mut claim = claim(Some("w1"), "101Mi");
    claim["metadata"]["uid"] = json!(uid);
    bench.put(CLAIMS, claim);
    bench.fault(Fault::Refuse);
    let seen = bench.context.objects.claim_with_uid(uid).expect("seen");
    let done = crate::provision::reconcile(seen, std::sync::Arc::clone(&bench.context)).await;
    done.expect("given back");
    bench.sync();
}

#[tokio::test(start_paused = true)]
async fn the_claim_says_who_refused_it_and_how_often() {
    let mut bench = Bench::new().await;
    refuse(&mut bench, "u-1").await;
    assert_eq!((bench.selected(), refused_by(&bench).as_deref()), (None, Some("w1=1")));
    // The scheduler has no better node.
    let mut again = bench.object(CLAIMS, "data").expect("there");
    again["metadata"]["annotations"][quarry_crds::names::SELECTED_NODE] = json!("w1");
    bench.put(CLAIMS, again);
    bench.fault(Fault::Refuse);
    bench.claim().await.expect("given back");
    assert_eq!(refused_by(&bench).as_deref(), Some("w1=2"));
    assert_eq!(ready(&bench).0, "True", "one claim may be odd");
}

#[tokio::test]
async fn without_room_nobody_is_said_to_have_refused() {
    let mut bench = Bench::new().await;
    bench.put(CLAIMS, claim(Some("w1"), "2Gi"));
    bench.claim().await.expect("given back");
    assert_eq!((bench.selected(), refused_by(&bench)), (None, None));
}

#[tokio::test(start_paused = true)]
async fn after_several_claims_the_group_is_not_ready_and_is_again_when_it_works() {
    let mut bench = Bench::new().await;
    for uid in ["u-1", "u-2", "u-3"] {
        assert_eq!(ready(&bench).0, "True");
        refuse(&mut bench, uid).await;
    }
    let (status, message) = ready(&bench);
    assert_eq!(status, "False");
    for part in [
        "volume group fast",
        "refused",
        "last time with: ",
        "mend that on this node",
    ] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    // A claim that was under way is given back, and LVM is not even asked.
    bench.put(CLAIMS, claim(Some("w1"), "101Mi"));
    bench.forget();
    bench.claim().await.expect("given back");
    assert!(
        !bench.log().iter().any(|line| line.starts_with("CreateVolume")),
        "{:?}",
        bench.log()
    );
    // One more is tried after a while, and works.
    tokio::time::advance(Duration::from_secs(31)).await;
    bench.pass().await;
    bench.sync();
    assert_eq!(ready(&bench).0, "True");
    bench.put(CLAIMS, claim(Some("w1"), "101Mi"));
    bench.claim().await.expect("served");
    assert_eq!(bench.volumes().len(), 1);
    bench.pass().await;
    assert_eq!(ready(&bench).0, "True");
}

#[tokio::test(start_paused = true)]
async fn without_a_scheduler_the_node_itself_leaves_the_claim_alone() {
    let mut bench = Bench::of(class("Immediate")).await;
    refuse(&mut bench, "u-1").await;
    bench.forget();
    let action = bench.claim().await.expect("left");
    assert_eq!((bench.log(), bench.selected()), (vec![], None), "{action:?}");
    tokio::time::advance(Duration::from_secs(16)).await;
    bench.claim().await.expect("taken");
    assert_eq!(bench.selected().as_deref(), Some("w1"));
}
