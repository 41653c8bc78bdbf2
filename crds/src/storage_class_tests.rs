use proptest::prelude::*;

use super::*;

fn class(parameters: &[(&str, &str)]) -> StorageClass {
    StorageClass {
        provisioner: PROVISIONER.to_owned(),
        metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
            name: Some("fast".to_owned()),
            ..Default::default()
        },
        parameters: Some(
            parameters
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        ),
        ..Default::default()
    }
}

const NODES: &str = r#"[{"names": ["w1", "w2"], "disks": ["/dev/disk/by-id/a", {"path": "/dev/disk/by-id/b"}]},
    {"selector": {"matchLabels": {"pool": "nvme"}}, "disks": [{"model": "Amazon EC2 NVMe Instance Storage"}]}]"#;

fn errors(parameters: &[(&str, &str)]) -> String {
    ClassParameters::of(&class(parameters))
        .expect_err("must be refused")
        .to_string()
}

#[test]
fn the_class_of_the_design() {
    let read = ClassParameters::of(&class(&[("nodes", NODES), ("fsType", "xfs")])).expect("valid");
    assert_eq!(read.volume_group, "fast");
    assert_eq!(read.fs_type, FsType::Xfs);
    assert_eq!(read.scoring, Scoring::Spread);
    assert_eq!(read.volume_group_policy, VolumeGroupPolicy::Retain);
    let none = BTreeMap::new();
    let nvme = BTreeMap::from([("pool".to_owned(), "nvme".to_owned())]);
    assert_eq!(read.disks_of("w1", &none).map(|d| d.len()), Some(2));
    assert_eq!(read.disks_of("w1", &nvme).map(|d| d.len()), Some(3));
    assert_eq!(read.disks_of("w9", &none), None);
    assert_eq!(
        read.disks_of("w9", &nvme),
        Some(vec![&DiskSelector::Model(
            "Amazon EC2 NVMe Instance Storage".to_owned()
        )])
    );
}

#[test]
fn alias_of_the_file_system() {
    let read = ClassParameters::of(&class(&[("nodes", NODES), ("csi.storage.k8s.io/fstype", "btrfs")]));
    assert_eq!(read.expect("valid").fs_type, FsType::Btrfs);
    let both = errors(&[
        ("nodes", NODES),
        ("csi.storage.k8s.io/fstype", "btrfs"),
        ("fsType", "xfs"),
    ]);
    assert!(both.contains("contradicts"), "{both}");
}

#[test]
fn each_mistake_names_field_value_and_remedy() {
    for (parameters, field, value, remedy) in [
        (
            vec![("nodes", NODES), ("fstype", "xfs")],
            "parameters.fstype",
            "is not a parameter",
            "fsType",
        ),
        (
            vec![("nodes", NODES), ("fsType", "ntfs")],
            "parameters.fsType",
            "\"ntfs\"",
            "ext4, xfs, btrfs",
        ),
        (
            vec![("nodes", NODES), ("scoring", "best")],
            "parameters.scoring",
            "\"best\"",
            "spread, binpack",
        ),
        (
            vec![("nodes", NODES), ("volumeGroup", "a b")],
            "parameters.volumeGroup",
            "\"a b\"",
            "letters",
        ),
        (
            vec![("nodes", NODES), ("volumeGroup", "")],
            "parameters.volumeGroup",
            "empty",
            "give a name",
        ),
        (
            vec![("nodes", NODES), ("allowUnstableNames", "yes")],
            "parameters.allowUnstableNames",
            "\"yes\"",
            "true",
        ),
        (vec![], "parameters.nodes", "missing", "for example"),
        (vec![("nodes", "[{]")], "parameters.nodes", "JSON", "for example"),
        (vec![("nodes", "[]")], "parameters.nodes", "[]", "for example"),
        (
            vec![("nodes", r#"[{"disks": ["/dev/a"]}]"#)],
            "nodes[0]",
            "names no node",
            "selector",
        ),
        (
            vec![("nodes", r#"[{"names": ["a"], "disks": []}]"#)],
            "nodes[0].disks",
            "[]",
            "paths",
        ),
        (
            vec![("nodes", r#"[{"names": ["a"]}]"#)],
            "parameters.nodes",
            "disks",
            "for example",
        ),
        (
            vec![("nodes", r#"[{"names": [""], "disks": ["/dev/a"]}]"#)],
            "nodes[0].names[0]",
            "\"\"",
            "name",
        ),
        (
            vec![("nodes", r#"[{"names": ["a"], "disks": ["/etc/passwd"]}]"#)],
            "disks[0]",
            "/etc/passwd",
            "/dev",
        ),
        (
            vec![("nodes", r#"[{"names": ["a"], "disks": ["/dev/../etc"]}]"#)],
            "disks[0]",
            "/dev/../etc",
            "without",
        ),
        (
            vec![("nodes", r#"[{"names": ["a"], "disks": ["/dev/a", "/dev/a"]}]"#)],
            "disks[1]",
            "/dev/a",
            "twice",
        ),
        (
            vec![("nodes", r#"[{"names": ["a"], "disks": [{"model": ""}]}]"#)],
            "disks[0]",
            "model",
            "lsblk",
        ),
        (
            vec![("nodes", r#"[{"names": ["a"], "disks": [{"size": "1Gi"}]}]"#)],
            "nodes",
            "path",
            "model",
        ),
        (
            vec![("nodes", r#"[{"selector": {}, "disks": ["/dev/a"]}]"#)],
            "selector",
            "every node",
            "matchLabels",
        ),
        (
            vec![(
                "nodes",
                r#"[{"selector": {"matchLabel": {"a": "b"}}, "disks": ["/dev/a"]}]"#,
            )],
            "nodes",
            "matchLabel",
            "matchLabels",
        ),
    ] {
        let text = errors(&parameters);
        for part in [field, value, remedy] {
            assert!(text.contains(part), "{parameters:?}: {text:?} lacks {part:?}");
        }
    }
}

#[test]
fn all_mistakes_at_once() {
    let text = errors(&[("fsType", "ntfs"), ("volumeGroup", "-x"), ("colour", "red")]);
    for part in ["ntfs", "volumeGroup", "colour", "nodes"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_class_name_that_cannot_name_a_group_asks_for_the_parameter() {
    let mut long = class(&[("nodes", NODES)]);
    long.metadata.name = Some("a".repeat(100));
    let text = ClassParameters::of(&long).expect_err("too long").to_string();
    assert!(text.contains("the name of the class"), "{text}");
}

/// What could be read as an option by a command, or leads out of /dev.
const HOSTILE_DISKS: [&str; 22] = [
    "",
    "-",
    "--config=devices{dir=\"/\"}",
    "-f /dev/sda",
    "sda",
    "/",
    "/dev",
    "/dev/",
    "/etc/passwd",
    "/dev/..",
    "/dev/../etc/passwd",
    "/dev/disk/by-id/../../sda",
    "/dev/./sda",
    "/dev//sda",
    "/dev/sda/",
    "/devices/sda",
    "//dev/sda",
    " /dev/sda",
    "/dev/sda --force",
    "/dev/sda\n/dev/sdb",
    "/dev/$(reboot)",
    "/dev/sd\u{0}a",
];

#[test]
fn no_disk_is_an_option_or_leads_out_of_dev() {
    for path in HOSTILE_DISKS {
        assert!(check_disk_path(path).is_err(), "{path:?}");
        let nodes = serde_json::json!([{"names": ["a"], "disks": [path]}]).to_string();
        let text = errors(&[("nodes", &nodes)]);
        assert!(text.contains("parameters.nodes[0].disks[0]"), "{path:?}: {text}");
        let nodes = serde_json::json!([{"names": ["a"], "disks": [{"path": path}]}]).to_string();
        assert!(!errors(&[("nodes", &nodes)]).is_empty(), "{path:?}");
    }
}

#[test]
fn no_other_parameter_is_an_option_or_a_path() {
    for text in [
        "-f", "--force", "..", ".", "../etc", "a/b", "a b", "a,b", "a\n", "", "mapper",
    ] {
        assert!(
            errors(&[("nodes", NODES), ("volumeGroup", text)]).contains("volumeGroup"),
            "{text:?}"
        );
    }
    for key in [
        "fsType",
        "csi.storage.k8s.io/fstype",
        "layout",
        "scoring",
        "volumeGroupPolicy",
        "allowUnstableNames",
    ] {
        for text in ["-F", "ext4 -F", "ext4,rw", "--config=x", "../ext4", "", "\n", "EXT4"] {
            assert!(errors(&[("nodes", NODES), (key, text)]).contains(key), "{key} {text:?}");
        }
    }
}

proptest! {
    /// Whatever passes is below /dev as it stands, and one plain word.
    #[test]
    fn a_path_that_passes_is_below_dev(path in r#"(/dev)?(/|\.\.|\.|-|sda|by-id|[\PC]){0,8}"#) {
        if check_disk_path(&path).is_ok() {
            let parts: Vec<&str> = path.split('/').collect();
            prop_assert_eq!(&parts[..2], &["", "dev"]);
            prop_assert!(parts.len() > 2);
            prop_assert!(parts[2..].iter().all(|part| !["", ".", ".."].contains(part)));
            let plain = path.chars().all(|c| c.is_ascii_graphic() && !"'\"`$;|&<>(){}[]*?!".contains(c));
            prop_assert!(plain, "{:?}", path);
        }
    }

    #[test]
    fn a_group_that_passes_is_one_name(name in "[-./ a-z0-9+_\\PC]{0,8}") {
        if crate::names::check_volume_group_name(&name).is_ok() {
            let one = !name.starts_with('-') && !name.contains(['/', ' ']) && name != "." && name != "..";
            prop_assert!(one, "{:?}", name);
        }
    }

    #[test]
    fn never_panics(nodes in "\\PC*", key in "\\PC*", value in "\\PC*") {
        let _ = ClassParameters::of(&class(&[("nodes", &nodes), (&key, &value)]));
    }

    #[test]
    fn json_near_misses_never_panic(nodes in r#"\[(\{("names"|"selector"|"disks"): ?(\[("a"|1|\{\})?\]|\{\}|null),? ?){0,3}\}?\]"#) {
        let _ = ClassParameters::of(&class(&[("nodes", &nodes)]));
    }
}

#[test]
fn the_example_classes_are_valid() {
    let mut read = 0;
    for file in [
        include_str!("../../deploy/examples/storage-class.yaml"),
        include_str!("../../deploy/examples/storage-class-xfs.yaml"),
        include_str!("../../deploy/examples/storage-class-by-label.yaml"),
        include_str!("../../deploy/examples/storage-classes-sharing.yaml"),
        include_str!("../../deploy/examples/block-retain.yaml"),
    ] {
        for document in file
            .split("\n---")
            .filter(|document| document.contains("kind: StorageClass"))
        {
            let class: StorageClass = serde_saphyr::from_str(document).expect("a class");
            ClassParameters::of(&class).expect("valid");
            read += 1;
        }
    }
    assert!(read >= 6, "{read} classes");
}
