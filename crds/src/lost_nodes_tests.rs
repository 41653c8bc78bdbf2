use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::names::{PROVISIONER, SELECTED_NODE, STORAGE_PROVISIONER};

const THEIRS: &str = "kubernetes.io/pv-protection";

fn volume(phase: &str, policy: &str, going: bool, finalizers: &[&str]) -> PersistentVolume {
    let mut object = json!({
        "metadata": {"name": "pvc-u-1", "uid": "pv-1", "finalizers": finalizers, "annotations": {
            "pv.kubernetes.io/provisioned-by": PROVISIONER, "quarry.dev/node": "w1",
            "quarry.dev/volume-group": "fast", "quarry.dev/volume-group-uuid": "vg-1"}},
        "spec": {"capacity": {"storage": "1Gi"}, "persistentVolumeReclaimPolicy": policy,
                 "claimRef": {"namespace": "db", "name": "data", "uid": "u-1"}},
        "status": {"phase": phase},
    });
    if going {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    serde_json::from_value(object).expect("a volume")
}

fn claim(uid: &str, bound: bool, going: bool, asked: Option<&str>) -> PersistentVolumeClaim {
    let mut object = json!({
        "metadata": {"name": "data", "namespace": "db", "uid": uid,
                     "annotations": {STORAGE_PROVISIONER: PROVISIONER, SELECTED_NODE: "w1"}},
        "spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}},
    });
    if bound {
        object["spec"]["volumeName"] = json!("pvc-u-1");
    }
    if going {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    if let Some(asked) = asked {
        object["metadata"]["annotations"][LOST_NODE_ANNOTATION] = json!(asked);
    }
    serde_json::from_value(object).expect("a claim")
}

#[test]
fn fates() {
    let ours = [VOLUME_FINALIZER, THEIRS];
    let bound = |going, asked| Some(claim("u-1", true, going, asked));
    let anew = Some(claim("u-2", true, false, Some(DELETE_CLAIM)));
    for (volume, claim, expected) in [
        // A living claim keeps its volume, whatever the policy.
        (volume("Bound", "Delete", false, &ours), bound(false, None), Fate::Keep),
        (volume("Bound", "Retain", false, &ours), bound(false, None), Fate::Keep),
        (volume("Bound", "Delete", true, &ours), bound(false, None), Fate::Keep),
        (
            volume("Bound", "Delete", false, &ours),
            bound(false, Some("yes")),
            Fate::Keep,
        ),
        // Unless its owner asked.
        (
            volume("Bound", "Delete", false, &ours),
            bound(false, Some(DELETE_CLAIM)),
            Fate::DeleteClaim,
        ),
        (
            volume("Bound", "Retain", false, &ours),
            bound(false, Some(DELETE_CLAIM)),
            Fate::DeleteClaim,
        ),
        (
            volume("Bound", "Delete", false, &ours),
            bound(true, Some(DELETE_CLAIM)),
            Fate::Wait,
        ),
        (volume("Bound", "Delete", false, &ours), bound(true, None), Fate::Wait),
        // Its claim is gone: Kubernetes says Released first.
        (volume("Bound", "Delete", false, &ours), None, Fate::Wait),
        (volume("Bound", "Delete", false, &ours), anew.clone(), Fate::Wait),
        (volume("Released", "Delete", false, &ours), None, Fate::LetGo),
        (volume("Released", "Delete", true, &ours[..1]), None, Fate::LetGo),
        (volume("Released", "Delete", false, &ours), anew, Fate::LetGo),
        // Released, says the volume, and the claim that it was made for is there: one of them is late.
        (
            volume("Released", "Delete", false, &ours),
            bound(false, None),
            Fate::Wait,
        ),
        (volume("Released", "Retain", false, &ours), None, Fate::Keep),
        (volume("Released", "Retain", true, &ours[..1]), None, Fate::LetGo),
        // Deleted before its claim was bound to it.
        (
            volume("Pending", "Delete", true, &ours[..1]),
            Some(claim("u-1", false, false, None)),
            Fate::LetGo,
        ),
        (volume("Pending", "Delete", false, &ours[..1]), None, Fate::Wait),
        // Nothing of ours is left on it.
        (volume("Released", "Delete", true, &[THEIRS]), None, Fate::Wait),
    ] {
        let told = format!("{:?} {:?} {:?}", volume.status, volume.metadata.finalizers, claim);
        assert_eq!(fate(&volume, claim.as_ref(), "w1"), expected, "{told}");
        assert_eq!(
            fate(&volume, claim.as_ref(), "w2"),
            Fate::Wait,
            "of another node: {told}"
        );
    }
    assert_eq!(fate(&PersistentVolume::default(), None, "w1"), Fate::Wait);
}

#[test]
fn claims_that_wait_for_a_node() {
    assert!(waits_for(&claim("u-1", false, false, None), "w1"));
    assert!(!waits_for(&claim("u-1", false, false, None), "w2"));
    assert!(!waits_for(&claim("u-1", true, false, None), "w1"));
    assert!(!waits_for(&claim("u-1", false, true, None), "w1"));
    let mut foreign = claim("u-1", false, false, None);
    if let Some(annotations) = foreign.metadata.annotations.as_mut() {
        annotations.insert(STORAGE_PROVISIONER.to_owned(), "else".to_owned());
    }
    assert!(!waits_for(&foreign, "w1"));
}

#[test]
fn what_is_said_names_everything_and_the_next_step() {
    let our = ours(&volume("Bound", "Delete", false, &[])).expect("ours");
    let text = kept(&our, "pvc-u-1", Some(&claim("u-1", true, false, Some("yes"))), "10m");
    for part in [
        "node w1",
        "10m",
        "fast/pvc-u-1 (1Gi)",
        "comes back",
        "delete claim db/data",
        "\"yes\" is unknown",
    ] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    assert!(kept(&our, "pvc-u-1", None, "10m").contains("delete this PersistentVolume"));
    assert!(let_go(&our, "pvc-u-1", "10m").contains("neither wiped nor removed"));
}

#[test]
fn a_node_that_was_back_for_a_moment_is_counted_anew() {
    let seconds = Duration::from_secs;
    let mut absences = Absences::default();
    absences.saw("w1", false, seconds(5));
    absences.saw("w1", false, seconds(9));
    assert_eq!(absences.gone_for("w1", seconds(15)), Some(seconds(10)));
    absences.saw("w1", true, seconds(16));
    assert_eq!(absences.gone_for("w1", seconds(17)), None);
    absences.saw("w1", false, seconds(20));
    assert_eq!(absences.gone_for("w1", seconds(21)), Some(seconds(1)));
    // A clock that would go backwards makes it younger, never older.
    assert_eq!(absences.gone_for("w1", seconds(3)), Some(seconds(0)));
}

fn any_volume() -> impl Strategy<Value = PersistentVolume> {
    let phases = prop::sample::select(vec!["", "Pending", "Available", "Bound", "Released", "Failed"]);
    let policies = prop::sample::select(vec!["Delete", "Retain", "Recycle"]);
    let finalizers = prop::sample::subsequence(vec![VOLUME_FINALIZER, THEIRS, "else"], 0..=3);
    (phases, policies, any::<bool>(), finalizers)
        .prop_map(|(phase, policy, going, finalizers)| volume(phase, policy, going, &finalizers))
}

fn any_claim() -> impl Strategy<Value = Option<PersistentVolumeClaim>> {
    let asked = prop::sample::select(vec![None, Some(DELETE_CLAIM), Some("Delete-Claim"), Some("")]);
    let uids = prop::sample::select(vec!["u-1", "u-2"]);
    let one = (uids, any::<bool>(), any::<bool>(), asked)
        .prop_map(|(uid, bound, going, asked)| claim(uid, bound, going, asked));
    prop::option::of(one)
}

proptest! {
    /// A claim is deleted only where its owner asked in exactly these words, and only the one the volume was made for.
    #[test]
    fn no_claim_is_deleted_unasked(volume in any_volume(), claim in any_claim()) {
        if fate(&volume, claim.as_ref(), "w1") == Fate::DeleteClaim {
            let claim = claim.expect("there is one");
            prop_assert!(may_be_deleted(&claim));
            prop_assert_eq!(claim.metadata.uid.as_deref(), Some("u-1"));
            prop_assert!(claim.metadata.deletion_timestamp.is_none());
        }
    }

    /// A volume is let go only where no living claim is bound to it, and where the manager would have let it go too.
    #[test]
    fn nothing_that_a_claim_holds_is_let_go(volume in any_volume(), claim in any_claim()) {
        if fate(&volume, claim.as_ref(), "w1") == Fate::LetGo {
            prop_assert!(disposal(&volume) != Disposal::Keep);
            let same = claim.filter(|claim| claim.metadata.uid.as_deref() == Some("u-1"));
            prop_assert!(!same.is_some_and(|claim| claim::is_bound(&claim)));
        }
    }

    /// However a node comes and goes, it is never taken to be gone for longer than since it was last seen.
    #[test]
    fn grace_never_ends_early(seen in prop::collection::vec((any::<bool>(), 0_u64..100), 1..40)) {
        let mut absences = Absences::default();
        let (mut now, mut last) = (0, None);
        for (exists, later) in seen {
            now += later;
            absences.saw("w1", exists, Duration::from_secs(now));
            if exists {
                last = Some(now);
                prop_assert_eq!(absences.gone_for("w1", Duration::from_secs(now)), None);
            } else {
                let gone = absences.gone_for("w1", Duration::from_secs(now)).expect("gone");
                prop_assert!(gone <= Duration::from_secs(now - last.unwrap_or(0)));
            }
        }
    }
}
