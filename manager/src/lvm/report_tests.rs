//! Against reports that lvm2 2.03.16 wrote: on a kernel with device-mapper (`active`), and without it (the others).

use proptest::prelude::*;
use quarry_crds::tags::{VolumeState, VolumeTags};

use super::super::GroupProblem;
use super::*;

fn read(text: &str) -> State {
    parse(text.as_bytes()).expect("is understood")
}

const ACTIVE: &str = include_str!("samples/active.json");
const ORPHAN: &str = include_str!("samples/orphan-exported.json");

#[test]
fn a_group_with_volumes_of_every_kind() {
    let state = read(ACTIVE);
    let group = &state.groups[0];
    assert_eq!((group.name.as_str(), group.extent_size), ("fast", ExtentSize::DEFAULT));
    assert_eq!(
        (group.size, group.free, group.allocatable(&[])),
        (Extents(1270), Extents(635), Extents(635))
    );
    assert_eq!(
        (group.metadata_size, group.metadata_free),
        (Bytes(17_821_696), Bytes(8_904_704))
    );
    assert_eq!(
        (group.tags.as_slice(), state.problem_of(group)),
        (&["quarry.version=1".to_owned()][..], None)
    );

    let ours = group
        .volume_named("pvc-6f1c8f1e-6bd5-4a44-a7a4-2f6a5f1f6a10")
        .expect("listed");
    assert_eq!((ours.size, ours.extents), (Bytes(2_516_582_400), Extents(600)));
    assert_eq!(
        (ours.active, ours.open, ours.suspended),
        (Some(true), Some(false), Some(false))
    );
    assert_eq!(
        VolumeTags::parse(&ours.tags).map(|tags| tags.state),
        Some(VolumeState::Ready)
    );
    assert_eq!(
        ours.parts.iter().map(|part| part.extents).sum::<Extents>(),
        Extents(600)
    );

    let by_hand = group.volume_named("by-hand").expect("listed");
    assert_eq!((by_hand.open, by_hand.number), (Some(true), Some((254, 1))));
    let inactive = group.volume_named("inactive").expect("listed");
    assert_eq!(
        (inactive.active, inactive.open, inactive.number),
        (Some(false), None, None)
    );
    assert_eq!(
        group.volume_named("suspended").and_then(|volume| volume.suspended),
        Some(true)
    );
    assert_eq!(
        group.volume_named("pool").map(|volume| volume.layout.as_str()),
        Some("thin,pool")
    );
    // Hidden parts have the extents; what they are parts of has none of its own.
    assert!(group.volume_named("raid").is_some_and(|volume| volume.parts.is_empty()));
    assert!(
        group
            .volume_named("[raid_rimage_0]")
            .is_some_and(|volume| volume.path.is_empty())
    );
    let used: Extents = group
        .logical_volumes
        .iter()
        .flat_map(|volume| &volume.parts)
        .map(|part| part.extents)
        .sum();
    assert_eq!(used.plus(group.free), group.size);
    for pv in &group.physical_volumes {
        assert_eq!(pv.free_areas.iter().copied().sum::<Extents>(), pv.free);
        assert_eq!(pv.number.map(|(major, _)| major), Some(7));
    }
}

#[test]
fn a_missing_disk() {
    let state = read(include_str!("samples/missing-pv.json"));
    let group = state.groups_named("qtest").next().expect("listed");
    assert_eq!(state.problem_of(group), Some(GroupProblem::Partial));
    let missing: Vec<_> = group.physical_volumes.iter().filter(|pv| pv.missing).collect();
    assert!(
        missing.len() == 1 && missing[0].device.is_none() && missing[0].number.is_none(),
        "{missing:?}"
    );
    let partial: Vec<_> = group
        .logical_volumes
        .iter()
        .map(|v| (v.name.as_str(), v.partial, v.active))
        .collect();
    assert_eq!(partial, [("pvc-a", false, None), ("pvc-b", true, None)]);
}

#[test]
fn a_disk_that_came_back_is_missing_until_it_is_restored() {
    let state = read(include_str!("samples/returned-used-pv.json"));
    let group = &state.groups[0];
    let missing: Vec<_> = group.physical_volumes.iter().filter(|pv| pv.missing).collect();
    assert!(
        missing.len() == 1 && missing[0].device.as_deref() == Some("/dev/loop1"),
        "{missing:?}"
    );
    assert_eq!(group.allocatable(&[]), Extents(118));
    assert!(group.partial && group.free == Extents(175));
}

#[test]
fn two_groups_of_one_name_and_one_of_another_host() {
    let state = read(include_str!("samples/duplicate-names.json"));
    let twins: Vec<_> = state.groups_named("qtest").collect();
    assert_eq!(twins.len(), 2);
    assert_ne!(twins[0].uuid, twins[1].uuid);
    assert_eq!(state.problem_of(twins[0]), Some(GroupProblem::DuplicateName));
    assert!(state.group(&twins[1].uuid).is_some_and(|group| group == twins[1]));
    let foreign = state.groups_named("qexp").next().expect("listed");
    assert_eq!(
        state.problem_of(foreign),
        Some(GroupProblem::ForeignHost("otherhost".into()))
    );
}

#[test]
fn orphans_and_exported_groups() {
    let state = read(ORPHAN);
    assert_eq!(state.orphans.len(), 1);
    assert_eq!(
        (state.orphans[0].device.as_deref(), state.orphans[0].size),
        (Some("/dev/loop0"), Extents::ZERO)
    );
    assert_eq!(state.problem_of(&state.groups[0]), Some(GroupProblem::Exported));
    let (group, _) = state.physical_volume(&state.orphans[0].uuid).expect("found");
    assert_eq!(group, None);
}

#[test]
fn nothing_and_garbage() {
    assert_eq!(read(r#"{"report": []}"#), State::default());
    assert_eq!(read(r#"{"report": [{}]}"#), State::default());
    for bad in [
        "",
        "  WARNING: something",
        "{}",
        "{\"report\": [{\"vg\": [{}]}]}",
        &ACTIVE[..ACTIVE.len() / 2],
        &ACTIVE.replace("\"4194304\"", "\"4.00m\""),
        &ACTIVE.replace("\"vg_extent_size\":\"4194304\"", "\"vg_extent_size\":\"0\""),
        &ACTIVE.replace("\"vg_partial\":\"\"", "\"vg_partial\":\"0\""),
        &ACTIVE.replace("\"lv_active\":\"active\"", "\"lv_active\":\"1\""),
        &ACTIVE.replace("\"vg_uuid\":\"", "\"vg_uuid\":\"!"),
        &ACTIVE.replace("\"pv_pe_count\":\"763\"", "\"pv_pe_count\":\"1\""),
        &ACTIVE.replace("\"lv_tags\"", "\"lv_tag\""),
    ] {
        assert!(parse(bad.as_bytes()).is_err(), "{}", &bad[..bad.len().min(60)]);
    }
    assert!(parse(b"{\"report\": [\xff]}").is_err());
}

proptest! {
    #[test]
    fn a_damaged_report_is_an_error_or_a_state_and_never_a_panic(
        at in 0..ACTIVE.len(),
        length in 0_usize..40,
        with in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut bytes = ACTIVE.as_bytes().to_vec();
        let end = (at + length).min(bytes.len());
        bytes.splice(at..end, with);
        let _ = parse(&bytes);
    }

    #[test]
    fn anything_is_an_error_or_a_state(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }
}
