//! Volumes whose making was interrupted: removed where nobody wants them, and nothing else ever is.

use std::sync::Arc;
use std::time::Duration;

use quarry_crds::tags::VolumeState;
use quarry_process::Shutdown;
use serde_json::json;

use super::bench::*;
use super::provisioning::tags;
use crate::leftovers;
use crate::lvm::fake::Fault;

/// Long enough for several sweeps. Time is pretended: it passes wherever everybody sleeps.
const SWEEPS: Duration = Duration::from_secs(300);

async fn sweep(bench: &Bench) {
    let sweeping = leftovers::keep_away(Arc::clone(&bench.context), Shutdown::new());
    tokio::time::timeout(SWEEPS, sweeping)
        .await
        .expect_err("it goes on until it is told to stop");
}

/// A node with a volume whose making was interrupted, which is known.
async fn creating() -> Bench {
    let bench = Bench::new().await;
    bench.make(VOLUME, 26, tags("u-1")).await;
    bench.refresh().await;
    bench.forget();
    bench
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_is_removed_once_the_api_server_said_so() {
    let bench = creating().await;
    sweep(&bench).await;
    assert_eq!(
        bench.log(),
        [
            "get persistentvolumes/pvc-u-1",
            "list persistentvolumeclaims",
            "RemoveVolumes pvc-u-1"
        ]
    );
    assert!(bench.volumes().is_empty());
    assert!(bench.context.inventory.get().groups[0].logical_volumes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_what_is_creating_and_carries_our_tags_and_name_is_a_suspect() {
    let with = |from: &str, to: &str| tags("u-1").iter().map(|tag| tag.replace(from, to)).collect();
    let without = |start: &str| {
        let all = tags("u-1").into_iter();
        all.filter(|tag| !tag.starts_with(start)).collect()
    };
    let cases: [(&str, Vec<String>); 9] = [
        (VOLUME, with("state=creating", "state=ready")),
        (VOLUME, with("state=creating", "state=retained")),
        (VOLUME, with("state=creating", "state=unheard-of")),
        (VOLUME, with("version=1", "version=2")),
        (VOLUME, without("quarry.version")),
        (VOLUME, without("quarry.state")),
        (VOLUME, vec!["backup=no".to_owned()]),
        (VOLUME, with("uid=u-1", "uid=u-2")),
        ("renamed", tags("u-1")),
    ];
    for (name, tags) in cases {
        let bench = creating().await;
        bench.lvm.by_hand(|state| {
            let volume = &mut state.groups[0].logical_volumes[0];
            (volume.name, volume.tags) = (name.to_owned(), tags.clone());
        });
        bench.refresh().await;
        let before = bench.volumes();
        sweep(&bench).await;
        assert_eq!((bench.volumes(), bench.log()), (before, vec![]), "{name} {tags:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_known_to_be_wanted_is_not_even_asked_about() {
    let volume = json!({"metadata": {"name": VOLUME}, "spec": {}});
    for (kind, object) in [
        (CLAIMS, claim(Some("w1"), "101Mi")),
        (CLAIMS, claim(None, "101Mi")),
        (VOLUMES, volume),
    ] {
        let mut bench = creating().await;
        bench.put(kind, object.clone());
        sweep(&bench).await;
        assert_eq!((bench.volumes().len(), bench.log()), (1, vec![]), "{object}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_only_the_api_server_knows_of_stays() {
    let volume = json!({"metadata": {"name": VOLUME}, "spec": {}});
    for (kind, object) in [
        (CLAIMS, claim(Some("w1"), "101Mi")),
        (CLAIMS, claim(None, "101Mi")),
        (VOLUMES, volume),
    ] {
        let bench = creating().await;
        // The watch of this node has not seen it yet.
        bench.api.objects(|objects| objects.put(kind, object.clone()));
        sweep(&bench).await;
        assert_eq!(bench.volumes().len(), 1, "{object}");
        assert!(
            bench.log().contains(&"get persistentvolumes/pvc-u-1".to_owned()),
            "{object}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn one_whose_claim_went_to_another_node_is_removed() {
    for seen in [true, false] {
        let mut bench = creating().await;
        bench
            .api
            .objects(|objects| objects.put(CLAIMS, claim(Some("w2"), "101Mi")));
        if seen {
            bench.sync();
        }
        sweep(&bench).await;
        assert!(bench.volumes().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_removed_while_the_api_server_does_not_answer() {
    let bench = creating().await;
    for _ in 0..1000 {
        bench.api.fail_next("get", VOLUMES, 503);
    }
    sweep(&bench).await;
    assert_eq!(bench.volumes().len(), 1);
    assert!(bench.log().len() > 1, "it is asked again: {:?}", bench.log());

    let bench = creating().await;
    for _ in 0..1000 {
        bench.api.fail_next("list", CLAIMS, 500);
    }
    sweep(&bench).await;
    assert_eq!(bench.volumes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_removed_is_tried_again() {
    let bench = creating().await;
    bench.api.fail_next("get", VOLUMES, 503);
    bench.fault(Fault::Refuse);
    sweep(&bench).await;
    let log = bench.log();
    let removals = log.iter().filter(|line| *line == "RemoveVolumes pvc-u-1").count();
    assert_eq!((removals, bench.volumes().len()), (2, 0), "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_handed_out_while_it_is_a_suspect_stays() {
    let bench = creating().await;
    bench.api.before_next("list", CLAIMS, |objects| {
        objects.put(CLAIMS, claim(Some("w1"), "101Mi"));
    });
    sweep(&bench).await;
    assert_eq!(bench.volumes().len(), 1);
}

/// Its node lost its power before its tag said that it was handed out, and its objects went meanwhile.
#[tokio::test(start_paused = true)]
async fn what_is_not_empty_was_handed_out_and_stays() {
    let bench = creating().await;
    *bench.wiper.carries.lock().expect("not poisoned") = Ok(vec!["ext4".to_owned()]);
    sweep(&bench).await;
    assert_eq!(bench.volumes().len(), 1);
    let volume = &bench.volumes()[0];
    assert!(
        bench.context.ready_tags.is_awaited(&volume.uuid),
        "its tag is to say so"
    );
    assert!(!bench.log().iter().any(|line| line.contains("RemoveVolume")));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_looked_at_is_not_removed() {
    let bench = creating().await;
    *bench.wiper.carries.lock().expect("not poisoned") = Err("does not answer".to_owned());
    sweep(&bench).await;
    let volume = &bench.volumes()[0];
    assert!(!bench.context.ready_tags.is_awaited(&volume.uuid));
}

/// Nothing on a raw volume tells anything: its tag is set as soon as it is handed out.
#[tokio::test(start_paused = true)]
async fn a_raw_volume_is_told_by_its_tag_alone() {
    let bench = creating().await;
    bench.lvm.by_hand(|state| {
        let tags = &mut state.groups[0].logical_volumes[0].tags;
        tags.iter_mut()
            .for_each(|tag| *tag = tag.replace("quarry.mode=filesystem", "quarry.mode=block"));
    });
    bench.refresh().await;
    *bench.wiper.carries.lock().expect("not poisoned") = Ok(vec!["ext4".to_owned()]);
    sweep(&bench).await;
    assert!(bench.volumes().is_empty());
}

/// It was handed out, and its objects were taken away by force before its tag said so.
#[tokio::test(start_paused = true)]
async fn one_that_was_handed_out_a_moment_ago_stays() {
    let bench = creating().await;
    let state = bench.context.inventory.get();
    let volume = state.groups[0].reference_to(&state.groups[0].logical_volumes[0]);
    bench.context.ready_tags.mark(volume, VolumeState::Ready);
    sweep(&bench).await;
    assert_eq!((bench.volumes().len(), bench.log()), (1, vec![]));
}

/// Its PersistentVolume was let go of by force while it was being wiped.
#[tokio::test(start_paused = true)]
async fn what_was_being_removed_is_wiped_and_removed_without_its_object() {
    let bench = creating().await;
    bench.lvm.by_hand(|state| {
        let (add, delete) = VolumeState::Deleting.change();
        let tags = &mut state.groups[0].logical_volumes[0].tags;
        tags.retain(|tag| !delete.contains(tag));
        tags.extend(add);
    });
    bench.refresh().await;
    bench.api.fail_next("get", VOLUMES, 503);
    sweep(&bench).await;
    let log = bench.log();
    assert_eq!(
        log,
        [
            "get persistentvolumes/pvc-u-1",
            "get persistentvolumes/pvc-u-1",
            "wipe old pvc-u-1",
            "RemoveVolumes pvc-u-1"
        ]
    );
    assert!(bench.volumes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn it_ends_when_it_is_told_to() {
    let bench = creating().await;
    let shutdown = Shutdown::new();
    shutdown.ask();
    let sweeping = leftovers::keep_away(Arc::clone(&bench.context), shutdown);
    tokio::time::timeout(SWEEPS, sweeping).await.expect("ended");
    assert_eq!(bench.log(), Vec::<String>::new());
}
