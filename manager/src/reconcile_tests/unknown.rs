//! LVM's commands that fail, are killed, or of which nobody knows what they did.

use std::time::Duration;

use kube::runtime::controller::Action;

use super::bench::*;
use super::provisioning::selected;
use crate::lvm::State;
use crate::lvm::fake::Fault;
use crate::provision::ProvisionError;

fn creations(bench: &Bench) -> usize {
    bench
        .log()
        .iter()
        .filter(|line| line.starts_with("CreateVolume"))
        .count()
}

#[tokio::test]
async fn what_was_made_by_a_failed_command_is_removed_before_the_claim_goes_back() {
    for fault in [Fault::FailAfter, Fault::DeadlineAfter] {
        let bench = selected().await;
        bench.fault(fault);
        bench.claim().await.expect("given back");
        assert_eq!(
            bench.log(),
            [
                "CreateVolume pvc-u-1",
                "get persistentvolumes/pvc-u-1",
                "RemoveVolumes pvc-u-1",
                "patch persistentvolumeclaims/data",
                "create events/ProvisioningFailed"
            ],
            "{fault:?}"
        );
        assert_eq!((bench.volumes(), bench.selected()), (vec![], None), "{fault:?}");
    }
}

/// What LVM refused, and what certainly did nothing as was read after it, may be tried on another node.
#[tokio::test]
async fn where_nothing_was_made_the_claim_goes_back() {
    for fault in [Fault::Refuse, Fault::DeadlineBefore, Fault::NotStarted] {
        let bench = selected().await;
        bench.fault(fault);
        bench.claim().await.expect("given back");
        assert_eq!((bench.volumes(), bench.selected()), (vec![], None), "{fault:?}");
        assert_eq!(bench.object(VOLUMES, VOLUME), None);
        assert_eq!(creations(&bench), 1);
    }
}

#[tokio::test]
async fn a_volume_that_cannot_be_removed_again_keeps_its_claim_here() {
    let bench = selected().await;
    bench.fault(Fault::FailAfter);
    bench.fault(Fault::Refuse);
    let error = bench.claim().await.expect_err("not removed");
    assert!(matches!(error, ProvisionError::Remove(_)), "{error}");
    assert_eq!((bench.volumes().len(), bench.selected().as_deref()), (1, Some("w1")));
    bench.refresh().await;
    bench.claim().await.expect("served");
    assert_eq!((bench.volumes().len(), creations(&bench)), (1, 1));
}

#[tokio::test]
async fn an_unknown_outcome_keeps_the_claim_and_makes_one_volume() {
    for (what, garbled) in [("does not end", false), ("not read after it", true)] {
        let bench = selected().await;
        if garbled {
            bench.lvm.garble_read_after(0);
        } else {
            bench.fault(Fault::NeverEnds);
        }
        let error = bench.claim().await.expect_err(what).to_string();
        assert!(error.contains("outcome unknown"), "{error}");
        assert_eq!(
            bench.log(),
            ["CreateVolume pvc-u-1"],
            "{what}: nothing is asked of anybody"
        );
        assert_eq!(bench.selected().as_deref(), Some("w1"), "{what}");
        let made = bench.volumes();
        bench.claim().await.expect("served");
        assert_eq!((bench.volumes(), creations(&bench)), (made, 1), "{what}");
        assert!(bench.object(VOLUMES, VOLUME).is_some(), "{what}");
    }
}

#[tokio::test]
async fn where_nothing_can_be_read_the_claim_stays() {
    let bench = selected().await;
    bench.lvm.garble_read_after(0);
    bench.lvm.garble_read_after(0);
    bench.claim().await.expect_err("LVM cannot be read");
    assert_eq!((bench.volumes().len(), bench.selected().as_deref()), (1, Some("w1")));
    // Not known of yet: at the next attempt the same name is refused by LVM, so that there are never two.
    bench.claim().await.expect("decided on what is there");
    assert!(bench.volumes().len() <= 1);
    assert_eq!(bench.volumes().is_empty(), bench.selected().is_none());
}

#[tokio::test]
async fn what_lvm_does_not_see_is_not_taken_for_gone() {
    for known in [true, false] {
        let bench = selected().await;
        let groups = bench.lvm.by_hand(|state| {
            state.incomplete = Some("a disk does not answer".to_owned());
            std::mem::take(&mut state.groups)
        });
        if known {
            bench.refresh().await;
            let action = bench.claim().await.expect("kept");
            assert_eq!(action, Action::requeue(Duration::from_secs(5)));
        } else {
            bench.claim().await.expect_err("nobody knows what was done");
        }
        assert_eq!(bench.selected().as_deref(), Some("w1"));
        assert_eq!((bench.api.requests(), bench.events()), (vec![], vec![]));
        bench.lvm.by_hand(|state| {
            state.incomplete = None;
            state.groups = groups;
        });
        bench.refresh().await;
        bench.claim().await.expect("served");
        assert_eq!(bench.volumes().len(), 1);
    }
}

/// Whatever it was that hid the volume for a moment.
#[tokio::test]
async fn what_was_handed_out_is_not_removed_though_it_is_not_known() {
    let bench = selected().await;
    let before = bench.context.inventory.get();
    bench.claim().await.expect("served");
    let made = bench.volumes();
    // As if it had been read after that, and not shown.
    bench.context.inventory.set(State {
        reading: bench.context.inventory.get().reading + 1,
        ..before.as_ref().clone()
    });
    bench.forget();
    bench.claim().await.expect_err("there already");
    assert_eq!(bench.log(), ["CreateVolume pvc-u-1", "get persistentvolumes/pvc-u-1"]);
    bench.claim().await.expect("nothing to do");
    assert_eq!((bench.volumes(), bench.selected().as_deref()), (made, Some("w1")));
}
