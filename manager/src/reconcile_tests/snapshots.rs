//! Snapshots and the like that a person has made of a volume with LVM's own commands: held like any holder.

use quarry_crds::Extents;
use serde_json::json;

use super::bench::*;
use super::provisioning::{selected, tags};

/// The claim was served, its volume has a snapshot, and the claim is gone.
async fn with_snapshot() -> Bench {
    let mut bench = selected().await;
    bench.claim().await.expect("served");
    bench.lvm.snapshot("fast", VOLUME, "backup", Extents(2)).expect("made");
    bench.refresh().await;
    let released = json!({"status": {"phase": "Released"}});
    bench.api.objects(|objects| objects.change(VOLUMES, VOLUME, &released));
    bench.sync();
    bench.forget();
    bench
}

fn names(bench: &Bench) -> Vec<String> {
    bench.volumes().into_iter().map(|volume| volume.name).collect()
}

#[tokio::test]
async fn a_volume_with_a_snapshot_is_neither_wiped_nor_removed() {
    let bench = with_snapshot().await;
    let error = bench.volume().await.expect_err("held").to_string();
    assert!(
        error.contains(
            "fast/pvc-u-1 is in use: logical volume fast/backup is a snapshot of it (\"lvremove fast/backup\""
        ),
        "{error}"
    );
    assert_eq!(bench.log(), ["get persistentvolumes/pvc-u-1"]);
    assert_eq!(names(&bench), [VOLUME, "backup"]);
    bench.lvm.remove_by_hand("fast", "backup").expect("removed");
    bench.refresh().await;
    bench.volume().await.expect("removed");
    assert_eq!((names(&bench), bench.object(VOLUMES, VOLUME)), (vec![], None));
}

/// LVM itself does not take it along, however late it was made.
#[tokio::test]
async fn a_snapshot_that_nobody_has_read_of_yet_is_not_removed() {
    let bench = with_snapshot().await;
    bench.lvm.remove_by_hand("fast", "backup").expect("removed");
    bench.refresh().await;
    bench.lvm.snapshot("fast", VOLUME, "late", Extents(2)).expect("made");
    let error = bench.volume().await.expect_err("held").to_string();
    assert!(error.contains("fast/late is a snapshot of it"), "{error}");
    assert_eq!(names(&bench), [VOLUME, "late"]);
}

#[tokio::test]
async fn neither_is_one_that_was_never_handed_out() {
    let bench = selected().await;
    bench.make(VOLUME, 26, tags("u-1")).await;
    bench.lvm.snapshot("fast", VOLUME, "backup", Extents(2)).expect("made");
    bench.refresh().await;
    bench.forget();
    let error = bench.claim().await.expect_err("held").to_string();
    assert!(error.contains("fast/backup is a snapshot of it"), "{error}");
    assert_eq!(bench.log(), ["get persistentvolumes/pvc-u-1"]);
    assert_eq!(names(&bench), [VOLUME, "backup"]);
}

/// With a snapshot the device of its origin stands on one of LVM's own, which is no disk.
#[tokio::test]
async fn the_origin_of_a_snapshot_is_not_taken_for_stale() {
    let mut bench = with_snapshot().await;
    let volume = bench.volumes()[0].uuid.clone();
    bench.disks.lock().stale = true;
    for open in [true, false] {
        bench.lvm.set_open(&volume, open);
        bench.refresh().await;
        bench.forget();
        bench.sync();
        bench.pass().await;
        assert!(
            !bench.context.groups.renewed.is_waiting(),
            "LVM would be read every few seconds"
        );
        assert!(
            !bench.log().iter().any(|line| line.starts_with("SetActive")),
            "{:?}",
            bench.log()
        );
    }
}
