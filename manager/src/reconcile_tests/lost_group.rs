//! A volume group that is not there any more, wholly: the worst loss, and figures and events say so.

use quarry_crds::names::LOST_GROUP_ANNOTATION;
use serde_json::json;

use super::bench::*;
use super::provisioning::selected;

const FIGURES: &[&str] = &[
    "quarry_disks_at_fault",
    "quarry_vg_free_bytes",
    "quarry_vg_ready",
    "quarry_vg_size_bytes",
    "quarry_volumes_hit",
];

/// The volume of the claim `data` is made in the group `fast`, whose one disk is all it has.
async fn served() -> Bench {
    let mut bench = selected().await;
    bench.claim().await.expect("served");
    pass(&mut bench).await;
    bench.api.objects(|objects| objects.clear(EVENTS));
    bench
}

async fn pass(bench: &mut Bench) {
    bench.refresh().await;
    bench.sync();
    bench.pass().await;
    bench.sync();
}

/// All disks of the group are gone: LVM knows nothing of it.
async fn lose(bench: &mut Bench) -> Vec<crate::lvm::VolumeGroup> {
    let groups = bench.lvm.by_hand(|state| std::mem::take(&mut state.groups));
    pass(bench).await;
    groups
}

/// The value of one figure of the group `fast`.
fn figure(bench: &Bench, name: &str) -> Option<i64> {
    let lines = bench.metrics(&[name]);
    let line = lines.iter().find(|line| !line.contains("DiskFailing"))?;
    line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok())
}

/// What was said of the volume and of its claim.
fn said(bench: &Bench, reason: &str) -> Vec<String> {
    let notes = bench.events().into_iter().filter(|(said, _)| said == reason);
    let notes = notes.map(|(_, note)| note).filter(|note| note.contains("fast/pvc-u-1"));
    notes.collect()
}

fn assert_lost(bench: &Bench, size: i64) {
    let figures: Vec<_> = FIGURES.iter().map(|name| figure(bench, name)).collect();
    assert_eq!(figures, [Some(1), Some(0), Some(0), Some(size), Some(1)], "{FIGURES:?}");
}

#[tokio::test]
async fn a_group_that_loses_its_only_disk_is_no_healthy_one() {
    let mut bench = served().await;
    let size = figure(&bench, "quarry_vg_size_bytes").expect("a size");
    assert!(size > 0);
    assert_eq!(figure(&bench, "quarry_vg_ready"), Some(1));
    let groups = lose(&mut bench).await;
    assert_lost(&bench, size);
    let told = said(&bench, "VolumeLost");
    assert_eq!(
        told.len(),
        2,
        "of the PersistentVolume and of the claim: {:?}",
        bench.events()
    );
    pass(&mut bench).await;
    assert_eq!(said(&bench, "VolumeLost").len(), 2, "once");
    // A manager that starts without the group says the same.
    bench.start_anew();
    pass(&mut bench).await;
    assert_lost(&bench, size);
    bench.lvm.by_hand(|state| state.groups = groups);
    pass(&mut bench).await;
    pass(&mut bench).await;
    assert_eq!(said(&bench, "VolumeGroupBack").len(), 2, "{:?}", bench.events());
    assert_eq!(figure(&bench, "quarry_disks_at_fault"), Some(0));
    assert_eq!(figure(&bench, "quarry_volumes_hit"), Some(0));
    assert_eq!(figure(&bench, "quarry_vg_ready"), Some(1));
    assert!(figure(&bench, "quarry_vg_free_bytes") > Some(0));
}

/// With a class that was made anew nothing is recorded any more; the PersistentVolumes know.
#[tokio::test]
async fn it_is_known_by_its_volumes_where_no_status_recorded_it() {
    let mut bench = served().await;
    lose(&mut bench).await;
    bench.api.objects(|objects| objects.clear(STORAGES));
    pass(&mut bench).await;
    pass(&mut bench).await;
    assert_lost(&bench, 0);
}

/// Its volumes are in use, though nothing is to be made in it any more.
#[tokio::test]
async fn it_is_told_of_where_its_class_is_gone() {
    let mut bench = served().await;
    bench.set_classes(vec![]);
    bench.api.objects(|objects| objects.clear(STORAGES));
    pass(&mut bench).await;
    assert_eq!(figure(&bench, "quarry_volumes_hit"), Some(0));
    assert!(
        figure(&bench, "quarry_vg_size_bytes") > Some(0),
        "its volumes are there"
    );
    lose(&mut bench).await;
    assert_eq!(figure(&bench, "quarry_disks_at_fault"), Some(1));
    assert_eq!(figure(&bench, "quarry_volumes_hit"), Some(1));
    assert_eq!(said(&bench, "VolumeLost").len(), 2, "{:?}", bench.events());
}

#[tokio::test]
async fn one_that_nobody_names_and_nobody_uses_has_no_figures() {
    let mut bench = Bench::new().await;
    pass(&mut bench).await;
    assert!(figure(&bench, "quarry_vg_size_bytes") > Some(0));
    bench.set_classes(vec![]);
    bench.api.objects(|objects| objects.clear(STORAGES));
    pass(&mut bench).await;
    assert_eq!(bench.metrics(FIGURES), Vec::<String>::new());
}

#[tokio::test]
async fn one_that_an_administrator_gave_up_is_forgotten() {
    let mut bench = served().await;
    let groups = lose(&mut bench).await;
    let mut storage = bench.object(STORAGES, "fast.w1").expect("there");
    storage["metadata"]["annotations"] = json!({LOST_GROUP_ANNOTATION: groups[0].uuid});
    bench.put(STORAGES, storage);
    pass(&mut bench).await;
    assert_eq!(figure(&bench, "quarry_disks_at_fault"), Some(0));
    assert_eq!(figure(&bench, "quarry_volumes_hit"), Some(0));
}

#[tokio::test]
async fn a_group_of_which_lvm_cannot_be_read_is_not_ready() {
    let mut bench = served().await;
    bench
        .lvm
        .by_hand(|state| state.incomplete = Some("a disk gives errors".to_owned()));
    pass(&mut bench).await;
    assert_eq!(figure(&bench, "quarry_vg_ready"), Some(0));
    bench.lvm.by_hand(|state| state.groups.clear());
    pass(&mut bench).await;
    // It may be there: but its volumes are on disks that cannot be read.
    assert_eq!(figure(&bench, "quarry_disks_at_fault"), Some(1));
    assert_eq!(figure(&bench, "quarry_volumes_hit"), Some(1));
}
