//! Disks of a volume group that go away, come back or answer with errors: which volumes are hit is said, and what goes on
//! goes on.

use serde_json::Value;

use super::bench::*;
use super::provisioning::selected;
use crate::lvm::fake::Fault;

const DEVICE: &str = "/dev/sda";
const HIT: &[&str] = &["quarry_volumes_hit", "quarry_disks_at_fault"];

/// The volume of the claim `data` is made.
async fn served() -> Bench {
    let mut bench = selected().await;
    bench.claim().await.expect("served");
    pass(&mut bench).await;
    bench.api.objects(|objects| objects.clear(EVENTS));
    bench
}

async fn pass(bench: &mut Bench) -> Vec<String> {
    bench.refresh().await;
    bench.forget();
    bench.sync();
    bench.pass().await;
    let mutations = bench.log().into_iter();
    mutations
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .collect()
}

fn condition(bench: &Bench, kind: &str) -> Value {
    let status = bench.object(STORAGES, "fast.w1").expect("there")["status"].clone();
    let conditions = status["conditions"].as_array().expect("told").clone();
    conditions.into_iter().find(|c| c["type"] == kind).expect("told")
}

/// How often something was said of the volume and of its claim.
fn said(bench: &Bench, reason: &str) -> Vec<String> {
    let notes = bench.events().into_iter().filter(|(said, _)| said == reason);
    let notes = notes.map(|(_, note)| note).filter(|note| note.contains("fast/pvc-u-1"));
    notes.collect()
}

#[tokio::test]
async fn the_volumes_of_a_disk_that_is_gone_are_named_and_again_when_it_is_back() {
    let mut bench = served().await;
    assert_eq!(condition(&bench, "Degraded")["status"], "False");
    bench.lvm.lose_disk(DEVICE);
    assert_eq!(pass(&mut bench).await, Vec::<String>::new());
    let degraded = condition(&bench, "Degraded");
    assert_eq!(
        (&degraded["status"], &degraded["reason"]),
        (&"True".into(), &"DiskMissing".into())
    );
    let message = degraded["message"].as_str().expect("a text");
    for part in ["/dev/disk/by-id/a", "1 of 1 volumes hit: pvc-u-1"] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    let told = said(&bench, "DiskMissing");
    assert_eq!(told.len(), 2, "of the PersistentVolume and of the claim: {told:?}");
    assert_eq!(
        bench.metrics(HIT),
        [
            r#"quarry_disks_at_fault{vg="fast",fault="DiskFailing"} 0"#,
            r#"quarry_disks_at_fault{vg="fast",fault="DiskMissing"} 1"#,
            r#"quarry_volumes_hit{vg="fast"} 1"#,
        ]
    );
    pass(&mut bench).await;
    assert_eq!(said(&bench, "DiskMissing").len(), 2, "once");
    bench.lvm.return_disk(DEVICE);
    pass(&mut bench).await;
    pass(&mut bench).await;
    assert_eq!(said(&bench, "DiskBack").len(), 2);
    assert_eq!(condition(&bench, "Degraded")["status"], "False");
    assert!(
        bench.metrics(HIT).iter().all(|line| line.ends_with(" 0")),
        "{:?}",
        bench.metrics(HIT)
    );
}

#[tokio::test]
async fn a_disk_that_answers_with_errors_is_told_of_and_offers_no_room() {
    let mut bench = served().await;
    bench.disks.lock().fault = Some("reading at offset 0: Input/output error".to_owned());
    pass(&mut bench).await;
    let status = bench.object(STORAGES, "fast.w1").expect("there")["status"].clone();
    assert_eq!(
        (&status["disks"][0]["phase"], &status["volumeGroup"]["largest"]),
        (&"Failing".into(), &"0".into())
    );
    assert_eq!(condition(&bench, "Degraded")["reason"], "DiskFailing");
    // It is the only one.
    let ready = condition(&bench, "Ready");
    assert_eq!(
        (&ready["status"], &ready["reason"]),
        (&"False".into(), &"DiskFailing".into()),
        "{ready}"
    );
    let told = said(&bench, "DiskFailing");
    assert!(
        told.len() == 2 && told[0].contains("offset 0: Input/output error"),
        "{told:?}"
    );
    // No second volume on it: the claim goes back.
    let mut second = claim(Some("w1"), "101Mi");
    second["metadata"]["uid"] = "u-2".into();
    second["metadata"]["name"] = "second".into();
    bench.put(CLAIMS, second);
    let seen = bench.context.objects.claim_with_uid("u-2").expect("seen");
    let _ = crate::provision::reconcile(seen, std::sync::Arc::clone(&bench.context))
        .await
        .expect("given back");
    assert_eq!(bench.volumes().len(), 1);
    let refused = bench
        .events()
        .into_iter()
        .any(|(reason, _)| reason == "ProvisioningFailed");
    assert!(refused, "{:?}", bench.events());
    bench.disks.lock().fault = None;
    pass(&mut bench).await;
    assert_eq!(said(&bench, "DiskBack").len(), 2);
    assert_eq!(condition(&bench, "Ready")["status"], "True");
}

#[tokio::test]
async fn the_device_of_a_volume_whose_disk_is_back_is_made_anew_once_nobody_has_it_open() {
    let mut bench = served().await;
    let volume = bench.volumes()[0].uuid.clone();
    bench.lvm.set_open(&volume, true);
    bench.disks.lock().stale = true;
    assert_eq!(pass(&mut bench).await, Vec::<String>::new());
    bench.lvm.set_open(&volume, false);
    assert_eq!(pass(&mut bench).await, ["SetActive pvc-u-1", "SetActive pvc-u-1"]);
    assert_eq!(bench.volumes()[0].active, Some(true));
    // Whatever is the matter with it now, it is not done again and again.
    assert_eq!(pass(&mut bench).await, Vec::<String>::new());
    // The disk comes back for a second time.
    bench.disks.lock().stale = false;
    assert_eq!(pass(&mut bench).await, Vec::<String>::new());
    bench.disks.lock().stale = true;
    assert_eq!(pass(&mut bench).await, ["SetActive pvc-u-1", "SetActive pvc-u-1"]);
}

#[tokio::test]
async fn a_device_that_was_made_anew_by_half_is_finished_at_the_next_pass() {
    let mut bench = served().await;
    bench.disks.lock().stale = true;
    bench.fault(Fault::FailAfter);
    bench.fault(Fault::Refuse);
    pass(&mut bench).await;
    bench.disks.lock().stale = false;
    pass(&mut bench).await;
    pass(&mut bench).await;
    assert_eq!(bench.volumes()[0].active, Some(true));
}
