use std::collections::BTreeSet;

use quarry_crds::Extents;
use quarry_crds::tags::{VERSION_TAG, VolumeState};

use super::super::conformance::{Hand, conformance};
use super::super::*;
use super::*;

fn host() -> (FakeLvm, Vec<String>) {
    let disks = [
        ("/dev/a", Bytes::gib(1)),
        ("/dev/b", Bytes::gib(2)),
        ("/dev/c", Bytes::mib(100)),
    ];
    (
        FakeLvm::new(&disks),
        disks.iter().map(|(path, _)| (*path).to_owned()).collect(),
    )
}

async fn with_group() -> (FakeLvm, VolumeGroup) {
    let (lvm, devices) = host();
    let request = CreateGroup {
        name: "vg".into(),
        devices,
        tags: vec![VERSION_TAG.into()],
    };
    let group = lvm.create_group(request).await.expect("made").value;
    (lvm, group)
}

fn request(group: &VolumeGroup, name: &str) -> CreateVolume {
    let tags = vec![VERSION_TAG.into(), VolumeState::Creating.tag()];
    CreateVolume {
        group: group.reference(),
        name: name.into(),
        extents: Extents(3),
        tags,
        devices: vec![],
        physical_volume: None,
    }
}

impl Hand for FakeLvm {
    fn snapshot<'a>(&'a self, group: &'a str, volume: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), String>> {
        futures::future::ready(Self::snapshot(self, group, volume, name, Extents(1))).boxed()
    }

    fn remove<'a>(&'a self, group: &'a str, name: &'a str) -> BoxFuture<'a, Result<(), String>> {
        futures::future::ready(self.remove_by_hand(group, name)).boxed()
    }
}

#[tokio::test]
async fn conforms() {
    let (lvm, devices) = host();
    conformance(&lvm, &lvm, &devices).await.expect("conforms");
}

#[tokio::test]
async fn what_was_refused_left_nothing_and_what_was_done_is_found() {
    for (fault, made) in [
        (Fault::Refuse, false),
        (Fault::DeadlineBefore, false),
        (Fault::NotStarted, false),
        (Fault::FailAfter, true),
        (Fault::DeadlineAfter, true),
    ] {
        let (lvm, group) = with_group().await;
        lvm.fail_next(fault);
        let error = lvm.create_volume(request(&group, "pvc-a")).await.expect_err("fails");
        let found = lvm.report().await.expect("reads").groups[0]
            .volume_named("pvc-a")
            .is_some();
        assert_eq!(found, made, "{fault:?}");
        match error {
            CreateVolumeError::Incomplete { volume, .. } => assert!(made && volume.name == "pvc-a", "{fault:?}"),
            CreateVolumeError::Refused(_) => assert!(!made, "{fault:?}"),
            other => panic!("{fault:?}: {other}"),
        }
    }
}

#[tokio::test]
async fn nobody_knows_what_a_command_did_that_does_not_end_or_is_not_read_after() {
    let (lvm, group) = with_group().await;
    lvm.fail_next(Fault::NeverEnds);
    let error = lvm.create_volume(request(&group, "pvc-a")).await.expect_err("unknown");
    assert!(
        matches!(error, CreateVolumeError::Unknown(Unknown::StillRunning(_))),
        "{error}"
    );
    lvm.garble_read_after(0);
    let error = lvm.create_volume(request(&group, "pvc-b")).await.expect_err("unknown");
    assert!(
        matches!(error, CreateVolumeError::Unknown(Unknown::NotRead { .. })),
        "{error}"
    );
    let volume = lvm.report().await.expect("reads").groups[0]
        .volume_named("pvc-b")
        .cloned()
        .expect("was made");
    lvm.garble_read_after(0);
    let commands = lvm.journal().len();
    let error = lvm
        .remove_volume(group.reference_to(&volume))
        .await
        .expect_err("cannot be read after");
    assert!(
        matches!(error, RemoveVolumeError::Unknown(Unknown::NotRead { .. })),
        "{error}"
    );
    assert_eq!(lvm.journal().len(), commands + 1);
    lvm.garble_read_after(0);
    let again = lvm.remove_volume(group.reference_to(&volume)).await;
    let error = again.expect_err("cannot be read before");
    assert!(
        matches!(error, RemoveVolumeError::Unknown(Unknown::NotRead { .. })),
        "{error}"
    );
    assert_eq!(lvm.journal().len(), commands + 1, "nothing is changed on a guess");
    lvm.remove_volume(group.reference_to(&volume)).await.expect("gone");
}

#[tokio::test]
async fn removal_counts_only_when_seen() {
    for (fault, gone) in [
        (Fault::Refuse, false),
        (Fault::FailAfter, true),
        (Fault::DeadlineAfter, true),
    ] {
        let (lvm, group) = with_group().await;
        let volume = lvm.create_volume(request(&group, "pvc-a")).await.expect("made").value;
        lvm.fail_next(fault);
        let result = lvm.remove_volume(group.reference_to(&volume)).await;
        assert_eq!(result.is_ok(), gone, "{fault:?}");
    }
}

#[tokio::test]
async fn what_is_not_listed_may_exist_where_not_all_was_read() {
    let (lvm, group) = with_group().await;
    let volume = lvm.create_volume(request(&group, "pvc-a")).await.expect("made").value;
    let hidden = lvm.by_hand(|state| {
        state.incomplete = Some("a disk gives errors".into());
        std::mem::take(&mut state.groups)
    });
    let error = lvm
        .remove_volume(group.reference_to(&volume))
        .await
        .expect_err("cannot know");
    assert!(matches!(error, RemoveVolumeError::Unknown(_)), "{error}");
    let error = lvm
        .create_volume(request(&group, "pvc-b"))
        .await
        .expect_err("cannot know");
    assert!(matches!(error, CreateVolumeError::Unknown(_)), "{error}");
    let error = lvm.remove_group(group.reference()).await.expect_err("cannot know");
    assert!(matches!(error, RemoveGroupError::Unknown(_)), "{error}");
    lvm.by_hand(|state| {
        *state = State {
            groups: hidden,
            ..State::default()
        }
    });
    lvm.remove_volume(group.reference_to(&volume))
        .await
        .expect("is removed");
}

#[tokio::test]
async fn what_is_not_ours_or_in_use_stays() {
    let (lvm, group) = with_group().await;
    let volume = lvm.create_volume(request(&group, "pvc-a")).await.expect("made").value;
    let reference = group.reference_to(&volume);
    lvm.set_open(&volume.uuid, true);
    let error = lvm.remove_volume(reference.clone()).await.expect_err("in use");
    assert!(matches!(error, RemoveVolumeError::Busy(_)), "{error}");
    lvm.set_open(&volume.uuid, false);
    for tags in [vec![], vec!["quarry.version=2".to_owned()], vec!["other".to_owned()]] {
        lvm.by_hand(|state| state.groups[0].logical_volumes[0].tags.clone_from(&tags));
        let commands = lvm.journal().len();
        let error = lvm.remove_volume(reference.clone()).await.expect_err("not ours");
        assert!(matches!(error, RemoveVolumeError::NotOurs(_)), "{error}");
        let (add, delete) = VolumeState::Ready.change();
        let change = ChangeTags {
            volume: reference.clone(),
            others: Vec::new(),
            add,
            delete,
            having: None,
        };
        let error = lvm.change_tags(change).await.expect_err("not ours");
        assert!(matches!(error, VolumeError::NotOurs(_)), "{error}");
        assert_eq!(lvm.journal().len(), commands + 2);
        assert_eq!(
            lvm.report().await.expect("reads").groups[0].logical_volumes[0].tags,
            tags
        );
    }
    let error = lvm.remove_group(group.reference()).await.expect_err("not empty");
    assert!(matches!(error, RemoveGroupError::NotEmpty { .. }), "{error}");
}

#[tokio::test]
async fn volumes_that_are_to_go_at_once_go_together() {
    let (lvm, group) = with_group().await;
    let mut volumes = Vec::new();
    for name in ["pvc-a", "pvc-b", "pvc-c", "pvc-d"] {
        volumes.push(lvm.create_volume(request(&group, name)).await.expect("made").value);
    }
    lvm.set_open(&volumes[1].uuid, true);
    lvm.by_hand(|state| state.groups[0].logical_volumes[2].tags.clear());
    let commands = lvm.journal().len();
    let removals = volumes
        .iter()
        .map(|volume| lvm.remove_volume(group.reference_to(volume)));
    let results = futures::future::join_all(removals).await;
    assert_eq!(lvm.journal().len(), commands + 1, "{:?}", lvm.journal());
    assert!(results[0].is_ok(), "{results:?}");
    assert!(matches!(&results[1], Err(RemoveVolumeError::Busy(busy)) if busy.name == "pvc-b"));
    assert!(matches!(&results[2], Err(RemoveVolumeError::NotOurs(not)) if not.name == "pvc-c"));
    assert!(results[3].is_ok(), "{results:?}");
    let left = lvm.report().await.expect("reads").groups.remove(0).logical_volumes;
    let left: BTreeSet<_> = left.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(left, BTreeSet::from(["pvc-b", "pvc-c"]));
}

#[tokio::test]
async fn however_many_are_to_go_each_is_answered() {
    let (lvm, group) = with_group().await;
    let mut volumes = Vec::new();
    for at in 0..40 {
        volumes.push(
            lvm.create_volume(request(&group, &format!("pvc-{at}")))
                .await
                .expect("made")
                .value,
        );
    }
    // The second command of these does not end well.
    lvm.fail_after(1, Fault::Refuse);
    // Some know the group by a name that it had.
    let named = |at: usize, volume| {
        let mut volume = group.reference_to(volume);
        if at.is_multiple_of(3) {
            volume.group.name = "former".into();
        }
        volume
    };
    let removals = volumes
        .iter()
        .enumerate()
        .map(|(at, volume)| lvm.remove_volume(named(at, volume)));
    let results = futures::future::join_all(removals).await;
    let refused = results.iter().filter(|result| result.is_err()).count();
    let left = lvm.report().await.expect("reads").groups[0].logical_volumes.len();
    assert!((1..20).contains(&refused) && left == refused, "{refused} {left}");
}

#[tokio::test]
async fn a_lost_disk_and_its_return() {
    let (lvm, group) = with_group().await;
    let on = |device: &str, name: &str| CreateVolume {
        devices: vec![device.into()],
        ..request(&group, name)
    };
    let lost = lvm.create_volume(on("/dev/a", "pvc-a")).await.expect("made").value;
    let kept = lvm.create_volume(on("/dev/b", "pvc-b")).await.expect("made").value;
    lvm.lose_disk("/dev/a");
    let error = lvm
        .create_volume(on("/dev/b", "pvc-c"))
        .await
        .expect_err("LVM makes none");
    assert!(
        matches!(
            error,
            CreateVolumeError::GroupUnusable {
                problem: GroupProblem::Partial,
                ..
            }
        ),
        "{error}"
    );
    let error = lvm.remove_volume(group.reference_to(&lost)).await.expect_err("lost");
    assert!(matches!(error, RemoveVolumeError::OnMissingDisk(_)), "{error}");
    lvm.remove_volume(group.reference_to(&kept)).await.expect("removed");
    lvm.return_disk("/dev/a");
    let uuid = lost.parts[0].physical_volume.clone();
    let whole = lvm
        .restore_physical_volume(group.reference(), uuid)
        .await
        .expect("restored")
        .value;
    assert!(!whole.partial && whole.logical_volumes.iter().all(|volume| !volume.partial));
}

#[tokio::test]
async fn metadata_is_finite() {
    let (lvm, group) = with_group().await;
    lvm.by_hand(|state| state.groups[0].metadata_free = Bytes(300));
    let error = lvm.create_volume(request(&group, "pvc-a")).await.expect_err("full");
    assert!(
        matches!(error, CreateVolumeError::MetadataFull { free: Bytes(300), .. }),
        "{error}"
    );
}

#[tokio::test]
async fn one_writer_per_group_and_a_mutation_ends_without_its_caller() {
    let (lvm, group) = with_group().await;
    let lvm = std::sync::Arc::new(lvm);
    let many = (0..20).map(|i| lvm.create_volume(request(&group, &format!("pvc-{i}"))));
    let made = futures::future::join_all(many)
        .await
        .into_iter()
        .filter(Result::is_ok)
        .count();
    assert_eq!(made, 20);
    // Polled once, so that it begins, and dropped.
    let mut dropped = lvm.create_volume(request(&group, "pvc-dropped"));
    assert!(futures::poll!(&mut dropped).is_pending());
    drop(dropped);
    let settled = lvm.settle();
    tokio::task::yield_now().await;
    drop(settled.await);
    let state = lvm.report().await.expect("reads");
    assert!(state.groups[0].volume_named("pvc-dropped").is_some());
}

mod never_overcommits {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Create(u8, u64),
        Remove(u8),
        Extend(u8, u64),
        Fail(Fault),
    }

    fn step() -> impl Strategy<Value = Step> {
        let fault = prop_oneof![
            Just(Fault::Refuse),
            Just(Fault::FailAfter),
            Just(Fault::DeadlineBefore),
            Just(Fault::DeadlineAfter),
            Just(Fault::NeverEnds)
        ];
        prop_oneof![
            (0..6_u8, 0..400_u64).prop_map(|(name, extents)| Step::Create(name, extents)),
            (0..6_u8).prop_map(Step::Remove),
            (0..6_u8, 0..600_u64).prop_map(|(name, extents)| Step::Extend(name, extents)),
            fault.prop_map(Step::Fail),
        ]
    }

    async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
        let (lvm, group) = with_group().await;
        for step in steps {
            let state = lvm.report().await.expect("reads");
            let known = |name: u8| state.groups[0].volume_named(&format!("pvc-{name}")).cloned();
            match step {
                Step::Create(name, extents) => {
                    let request = request(&group, &format!("pvc-{name}"));
                    let _ = lvm
                        .create_volume(CreateVolume {
                            extents: Extents(extents),
                            ..request
                        })
                        .await;
                }
                Step::Remove(name) => {
                    if let Some(volume) = known(name) {
                        let _ = lvm.remove_volume(group.reference_to(&volume)).await;
                    }
                }
                Step::Extend(name, extents) => {
                    if let Some(volume) = known(name) {
                        let volume = group.reference_to(&volume);
                        let request = ExtendVolume {
                            volume,
                            extents: Extents(extents),
                            devices: vec![],
                        };
                        let _ = lvm.extend_volume(request).await;
                    }
                }
                Step::Fail(fault) => lvm.fail_next(fault),
            }
            let state = lvm.report().await.expect("reads");
            let after = &state.groups[0];
            let used: Extents = after.logical_volumes.iter().map(|volume| volume.extents).sum();
            prop_assert_eq!(used.plus(after.free), after.size);
            prop_assert_eq!(
                after.physical_volumes.iter().map(|pv| pv.free).sum::<Extents>(),
                after.free
            );
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn every_extent_is_free_or_of_one_volume(steps in proptest::collection::vec(step(), 0..40)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("starts");
            runtime.block_on(run(steps))?;
        }
    }
}
