use proptest::prelude::*;

use super::*;
use crate::node_local_storage::phase;

fn disk(path: &str, standing: DiskStanding) -> ListedDisk {
    ListedDisk {
        path: path.into(),
        device: Some(format!("/dev/{path}")),
        standing,
    }
}

fn member(id: &str) -> DiskStanding {
    DiskStanding::Member {
        physical_volume: id.into(),
    }
}

fn one(uuid: &str) -> Found {
    Found::One {
        uuid: uuid.into(),
        ours: true,
        missing: vec![],
        problem: None,
    }
}

fn known(uuid: &str, machine: &str) -> Known {
    Known {
        uuid: uuid.into(),
        machine: Some(machine.into()),
    }
}

fn situation(found: Found, disks: Vec<ListedDisk>) -> Situation<'static> {
    Situation {
        name: "fast",
        recorded: None,
        held: vec![],
        machine: Some("m-1"),
        recorded_disks: vec![],
        found,
        incomplete: None,
        disks,
    }
}

#[test]
fn blank_disks_become_a_group_and_then_extend_it() {
    let disks = vec![
        disk("a", DiskStanding::Blank),
        disk("b", DiskStanding::Rejected { reason: "ext4".into() }),
    ];
    assert_eq!(
        plan(situation(Found::None, disks)).action,
        Action::Create(vec!["/dev/a".into()])
    );
    let disks = vec![disk("a", member("pv-a")), disk("c", DiskStanding::Blank)];
    assert_eq!(
        plan(situation(one("vg"), disks)).action,
        Action::Extend(vec!["/dev/c".into()])
    );
    assert_eq!(
        plan(situation(one("vg"), vec![disk("a", member("pv-a"))])).action,
        Action::None
    );
}

#[test]
fn a_disk_under_two_names_is_used_once() {
    let mut twin = disk("b", DiskStanding::Blank);
    twin.device = Some("/dev/a".into());
    let disks = vec![disk("a", DiskStanding::Blank), twin];
    assert_eq!(
        plan(situation(Found::None, disks)).action,
        Action::Create(vec!["/dev/a".into()])
    );
}

#[test]
fn nothing_is_changed_in_doubt() {
    let blank = || vec![disk("a", DiskStanding::Blank)];
    let foreign = Found::One {
        uuid: "vg".into(),
        ours: false,
        missing: vec![],
        problem: None,
    };
    let partial = Found::One {
        uuid: "vg".into(),
        ours: true,
        missing: vec!["pv".into()],
        problem: None,
    };
    let exported = Found::One {
        uuid: "vg".into(),
        ours: true,
        missing: vec![],
        problem: Some("it was exported".into()),
    };
    for (mut situation, reason) in [
        (situation(foreign, blank()), "ForeignVolumeGroup"),
        (situation(Found::Several(2), blank()), "DuplicateVolumeGroupName"),
        (
            situation(Found::OtherVersion("quarry.version=2".into()), blank()),
            "OtherVersion",
        ),
        (situation(partial, blank()), "DiskMissing"),
        (situation(exported, blank()), "VolumeGroupUnusable"),
        (situation(Found::None, vec![]), "NoDisk"),
    ] {
        let blocked = plan(situation.clone());
        assert_eq!(blocked.action, Action::None, "{reason}");
        assert_eq!(blocked.blocked.map(|(reason, _)| reason), Some(reason));
        situation.incomplete = Some("warning");
        assert_eq!(plan(situation).blocked.map(|(reason, _)| reason), Some("LvmIncomplete"));
    }
}

#[test]
fn a_group_that_was_there_is_never_made_anew() {
    let mut gone = situation(Found::None, vec![disk("a", DiskStanding::Blank)]);
    gone.recorded = Some(known("vg-1", "m-1"));
    let held = plan(gone);
    assert_eq!(held.action, Action::None);
    assert_eq!(held.degraded.map(|(reason, _)| reason), Some("VolumeGroupMissing"));
    let mut other = situation(one("vg-2"), vec![disk("a", DiskStanding::Blank)]);
    other.recorded = Some(known("vg-1", "m-1"));
    assert_eq!(plan(other).action, Action::None);
}

#[test]
fn another_machine_of_the_same_name_makes_nothing_in_the_place_of_what_was_there() {
    let blank = || vec![disk("a", DiskStanding::Blank)];
    let reason = |plan: &Plan| plan.blocked.as_ref().map(|(reason, _)| *reason);
    // By the status, and where that went with the node, by the PersistentVolumes that are left.
    for (machine, expected) in [("m-0", NODE_REPLACED), ("m-1", "VolumeGroupMissing")] {
        let mut by_status = situation(Found::None, blank());
        by_status.recorded = Some(known("vg-1", machine));
        let mut by_volumes = situation(Found::None, blank());
        by_volumes.held = vec![known("vg-1", machine)];
        for situation in [by_status, by_volumes] {
            let held = plan(situation);
            assert_eq!((&held.action, reason(&held)), (&Action::None, Some(expected)));
            let (told, message) = held.degraded.expect("told");
            assert!(told == expected && is_loss(told));
            for part in ["volume group fast (vg-1)", "quarry.dev/lost-volume-group=vg-1"] {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
        }
        // A group of the same name that came with the new machine.
        let mut other = situation(one("vg-2"), blank());
        other.recorded = Some(known("vg-1", machine));
        assert_eq!(plan(other).action, Action::None);
    }
    // The disks were put into another machine: nothing is lost.
    let mut moved = situation(one("vg-1"), vec![disk("a", member("pv-a"))]);
    moved.recorded = Some(known("vg-1", "m-0"));
    moved.held = vec![known("vg-1", "m-0")];
    let fine = plan(moved);
    assert_eq!((fine.blocked, fine.degraded), (None, None));
    // Which machine it was is not known, as with volumes of an older version: it is no other one then.
    let mut unknown = situation(Found::None, blank());
    unknown.held = vec![Known {
        uuid: "vg-1".into(),
        machine: None,
    }];
    assert_eq!(reason(&plan(unknown)), Some("VolumeGroupMissing"));
    // A group that serves while volumes of a former one are still known: it goes on, and it is told.
    let mut both = situation(one("vg-2"), vec![disk("a", member("pv-a"))]);
    both.held = vec![known("vg-1", "m-0"), known("vg-2", "m-1")];
    let goes_on = plan(both);
    assert_eq!(goes_on.blocked, None);
    assert_eq!(goes_on.degraded.map(|(reason, _)| reason), Some(NODE_REPLACED));
}

#[test]
fn a_blank_disk_where_data_was_is_not_taken() {
    let recorded = vec![DiskStatus {
        path: "a".into(),
        id: Some("pv-a".into()),
        phase: phase::CLAIMED.into(),
        ..Default::default()
    }];
    let mut swapped = situation(
        one("vg"),
        vec![disk("a", DiskStanding::Blank), disk("b", member("pv-b"))],
    );
    swapped.recorded_disks = recorded.clone();
    let held = plan(swapped.clone());
    // And not at the next pass either, when the status says that it was refused.
    swapped.recorded_disks[0].phase = phase::REJECTED.into();
    assert_eq!(plan(swapped), held);
    assert_eq!(held.action, Action::None);
    assert!(matches!(&held.disks[0].standing, DiskStanding::Rejected { reason } if reason.contains("pv-a")));
    assert!(held.degraded.is_some());
    // The same disk at another path: nothing is lost, but the newcomer is not taken either.
    let mut moved = situation(
        one("vg"),
        vec![disk("a", DiskStanding::Blank), disk("b", member("pv-a"))],
    );
    moved.recorded_disks = recorded;
    let held = plan(moved);
    assert_eq!((held.action, held.degraded), (Action::None, None));
}

#[test]
fn a_disk_that_cannot_be_read_is_missing_where_data_was_and_refused_elsewhere() {
    let unreadable = || {
        let reason = "reading /dev/a: Input/output error".to_owned();
        vec![disk("a", DiskStanding::Unreadable { reason })]
    };
    let refused = plan(situation(Found::None, unreadable()));
    assert!(matches!(&refused.disks[0].standing, DiskStanding::Rejected { reason } if reason.contains("Input/output")));
    let mut broken = situation(one("vg"), unreadable());
    broken.recorded_disks = vec![DiskStatus {
        path: "a".into(),
        id: Some("pv-a".into()),
        phase: phase::CLAIMED.into(),
        ..Default::default()
    }];
    let held = plan(broken);
    assert!(matches!(&held.disks[0].standing, DiskStanding::Missing { reason } if reason.contains("Input/output")));
    assert!(held.degraded.is_some_and(|(_, message)| message.contains("pv-a")));
}

#[test]
fn findings_tell_what_stands_in_the_way() {
    let refused = plan(situation(
        Found::None,
        vec![disk(
            "a",
            DiskStanding::Rejected {
                reason: "carries ext4 at offset 1080".into(),
            },
        )],
    ));
    let told = findings(&refused, "fast", false, None);
    let of = |kind: &str| told.iter().find(|finding| finding.kind == kind).expect("stated");
    assert!(!of("Ready").holds && !of("Degraded").holds);
    assert!(of("DisksAccepted").message.contains("a: carries ext4 at offset 1080"));
    let good = plan(situation(one("vg"), vec![disk("a", member("pv"))]));
    assert!(findings(&good, "fast", true, None)[0].holds);
    assert_eq!(
        findings(&good, "fast", true, Some(("LvmFailed", "hung".to_owned())))[0].reason,
        "LvmFailed"
    );
}

fn standing() -> impl Strategy<Value = DiskStanding> {
    prop_oneof![
        Just(DiskStanding::Blank),
        "[a-c]".prop_map(|id| member(&id)),
        Just(DiskStanding::Rejected { reason: "r".into() }),
        Just(DiskStanding::Missing { reason: "m".into() }),
    ]
}

proptest! {
    /// Whatever the situation, LVM is only ever given devices that were found blank.
    #[test]
    fn only_blank_devices_are_given_to_lvm(
        disks in prop::collection::vec(("[a-d]", standing()), 0..6),
        recorded in prop::option::of("[v-w]"),
        held in prop::collection::vec(("[v-w]", "[m-n]"), 0..3),
        found in prop_oneof![Just(Found::None), "[v-w]".prop_map(|uuid| one(&uuid)), Just(Found::Several(2))],
    ) {
        let disks: Vec<_> = disks.into_iter().map(|(path, standing)| disk(&path, standing)).collect();
        let mut given = situation(found, disks.clone());
        given.recorded = recorded.map(|uuid| known(&uuid, "m-1"));
        given.held = held.iter().map(|(uuid, machine)| known(uuid, machine)).collect();
        let was_there = given.recorded.is_some() || !given.held.is_empty();
        let action = plan(given).action;
        prop_assert!(!(was_there && matches!(action, Action::Create(_))), "nothing is made in the place of another");
        let (Action::Create(devices) | Action::Extend(devices)) = action else { return Ok(()) };
        for device in devices {
            prop_assert!(disks.iter().any(|d| d.device.as_deref() == Some(&device) && d.standing == DiskStanding::Blank));
        }
    }
}

#[test]
fn what_a_selector_has_chosen_waits_until_nobody_uses_it() {
    let of = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<BTreeSet<_>>();
    let mut disks = [
        disk("a", DiskStanding::Blank),
        disk("b", DiskStanding::Blank),
        disk("c", DiskStanding::Blank),
    ];
    let (a, b) = (disks[0].path.clone(), disks[1].path.clone());
    hold_selected(&mut disks, &of(&[&a, &b]), &of(&[&b]));
    assert!(matches!(disks[0].standing, DiskStanding::Waiting { .. }));
    assert_eq!(
        (&disks[1].standing, &disks[2].standing),
        (&DiskStanding::Blank, &DiskStanding::Blank)
    );
    let only = plan(situation(Found::None, vec![disks[0].clone()]));
    assert_eq!(
        (&only.action, only.blocked.as_ref().map(|blocked| blocked.0)),
        (&Action::None, Some("NoDisk"))
    );
    let accepted = |plan: &Plan| {
        let findings = findings(plan, "fast", false, None);
        let found = findings
            .into_iter()
            .find(|finding| finding.kind == condition::DISKS_ACCEPTED);
        found.map(|finding| (finding.holds, finding.reason))
    };
    assert_eq!(accepted(&only), Some((false, "DiskWaiting")));
    let refused = disk(
        "d",
        DiskStanding::Rejected {
            reason: "is in use".into(),
        },
    );
    assert_eq!(
        accepted(&plan(situation(Found::None, vec![disks[0].clone(), refused]))),
        Some((false, "DiskRejected"))
    );
}

#[test]
fn a_group_of_another_node_is_held() {
    let found = Found::OfAnotherNode {
        tags: vec!["quarry.node=w2".into()],
        hand_over: "vgchange --addtag quarry.node=w1 fast".into(),
    };
    let plan = plan(situation(found, vec![disk("a", DiskStanding::Blank)]));
    let (reason, message) = plan.blocked.expect("held");
    assert_eq!((plan.action, reason), (Action::None, "OwnedByAnotherNode"));
    assert!(
        message.contains("quarry.node=w2") && message.contains("\"vgchange --addtag"),
        "{message}"
    );
}
