//! Classes with mistakes in them: their owners, and those of their claims, are told, and nothing is made.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::SignedDuration;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, Test};
use crate::untouched::{Held, forget_events};

/// The cases.
pub const CASES: &[Case] = &[case!(bad_classes_make_nothing), case!(bad_nodes_are_named)];

/// A node that is only an object.
const WINDOWS: &str = "bad-parameters-windows";
/// A class and its nodes are often made together: so long nothing is said of a node that is missing.
const ADVISED_AFTER: SignedDuration = SignedDuration::from_secs(10);

/// A parameter that is wrong, and what must be said of it.
struct Mistake {
    what: &'static str,
    key: &'static str,
    value: String,
    told: &'static [&'static str],
}

impl Mistake {
    fn new(what: &'static str, key: &'static str, value: impl Into<String>, told: &'static [&'static str]) -> Self {
        Self {
            what,
            key,
            value: value.into(),
            told,
        }
    }

    fn in_nodes(what: &'static str, nodes: &Value, told: &'static [&'static str]) -> Self {
        Self::new(what, "nodes", nodes.to_string(), told)
    }
}

/// Every kind of mistake in a class, each on a disk that could be taken.
fn mistakes(disk: &str) -> Vec<Mistake> {
    vec![
        Mistake::new(
            "unknown-key",
            "volumeGroops",
            "fast",
            &[
                "parameters.volumeGroops",
                "is not a parameter of lvm.quarry.dev",
                "known are nodes, volumeGroup",
            ],
        ),
        Mistake::new(
            "bad-json",
            "nodes",
            format!(r#"[{{"names": ["node1"], "disks": ["{disk}"]"#),
            &[
                "parameters.nodes",
                "is not the JSON expected",
                "EOF",
                "write for example [{",
            ],
        ),
        Mistake::in_nodes(
            "no-node",
            &json!([]),
            &["parameters.nodes: [] names no node", "write for example [{"],
        ),
        Mistake::in_nodes(
            "no-name",
            &json!([{"names": [], "disks": [disk]}]),
            &["parameters.nodes[0]: names no node", "give \"names\" or \"selector\""],
        ),
        Mistake::in_nodes(
            "every-node",
            &json!([{"selector": {}, "disks": [disk]}]),
            &["parameters.nodes[0].selector: {}", "every node", "name a label"],
        ),
        Mistake::in_nodes(
            "no-disk",
            &json!([{"names": ["node1"], "disks": []}]),
            &["parameters.nodes[0].disks: [] names no disk", "give paths such as"],
        ),
        Mistake::in_nodes(
            "unknown-field",
            &json!([{"names": ["node1"], "disk": [disk]}]),
            &["parameters.nodes", "unknown field `disk`", "write for example [{"],
        ),
        Mistake::in_nodes(
            "disk-twice",
            &json!([{"names": ["node1"], "disks": [disk, disk]}]),
            &[
                "parameters.nodes[0].disks[1]",
                "bed-node1-disk1 is listed twice",
                "keep one of them",
            ],
        ),
        Mistake::in_nodes(
            "no-path",
            &json!([{"names": ["node1"], "disks": ["sdb"]}]),
            &[
                "parameters.nodes[0].disks[0]",
                "\"sdb\" is not under /dev",
                "give a device such as",
            ],
        ),
        Mistake::in_nodes(
            "detour",
            &json!([{"names": ["node1"], "disks": ["/dev/disk/../ubdb"]}]),
            &["parameters.nodes[0].disks[0]", "/dev/disk/../ubdb", "write it without"],
        ),
        Mistake::in_nodes(
            "option",
            &json!([{"names": ["node1"], "disks": ["--config=devices{dir=\"/\"}"]}]),
            &["parameters.nodes[0].disks[0]", "is not under /dev"],
        ),
        Mistake::in_nodes(
            "far-detour",
            &json!([{"names": ["node1"], "disks": ["/dev/disk/by-id/../../../etc/passwd"]}]),
            &["parameters.nodes[0].disks[0]", "write it without"],
        ),
        Mistake::in_nodes(
            "two-words",
            &json!([{"names": ["node1"], "disks": [format!("{disk} --force")]}]),
            &["parameters.nodes[0].disks[0]", "has characters that no device name has"],
        ),
        Mistake::new(
            "group-option",
            "volumeGroup",
            "--force",
            &["parameters.volumeGroup", "\"--force\"", "nor start with \"-\""],
        ),
        Mistake::new(
            "group-detour",
            "volumeGroup",
            "../etc",
            &[
                "parameters.volumeGroup",
                "\"../etc\" contains '/'",
                "use letters, digits",
            ],
        ),
        Mistake::new(
            "fs-option",
            "fsType",
            "ext4 -F",
            &["parameters.fsType", "\"ext4 -F\" is not supported"],
        ),
        Mistake::new(
            "group-characters",
            "volumeGroup",
            "my group",
            &[
                "parameters.volumeGroup",
                "\"my group\" contains ' '",
                "use letters, digits",
            ],
        ),
        Mistake::new(
            "group-device",
            "volumeGroup",
            "mapper",
            &[
                "parameters.volumeGroup",
                "\"mapper\" would collide with /dev/mapper",
                "choose another name",
            ],
        ),
        Mistake::new(
            "group-long",
            "volumeGroup",
            "g".repeat(61),
            &["parameters.volumeGroup", "has 61 characters", "use at most 60"],
        ),
        Mistake::new(
            "ntfs",
            "fsType",
            "ntfs",
            &["parameters.fsType", "\"ntfs\" is not supported", "use ext4, xfs, btrfs"],
        ),
        Mistake::new(
            "ntfs-alias",
            "csi.storage.k8s.io/fstype",
            "ntfs",
            &[
                "parameters.csi.storage.k8s.io/fstype",
                "\"ntfs\" is not supported",
                "use ext4, xfs, btrfs",
            ],
        ),
        Mistake::new(
            "layout",
            "layout",
            "raid6",
            &["parameters.layout", "\"raid6\" is not supported", "use linear"],
        ),
        Mistake::new(
            "scoring",
            "scoring",
            "best",
            &["parameters.scoring", "\"best\" is not supported", "use spread, binpack"],
        ),
        Mistake::new(
            "policy",
            "volumeGroupPolicy",
            "delete",
            &[
                "parameters.volumeGroupPolicy",
                "\"delete\" is not supported",
                "use Retain, Delete",
            ],
        ),
        Mistake::new(
            "unstable",
            "allowUnstableNames",
            "yes",
            &[
                "parameters.allowUnstableNames",
                "\"yes\" is not supported",
                "use true, false",
            ],
        ),
    ]
}

/// One class for each mistake, each with a claim.
async fn bad_classes_make_nothing(test: &Test) -> Result<()> {
    forget_events(test).await?;
    let disk = test.bed.disk(1, 0)?;
    let before = Held::by_nodes(test).await?;
    let mistakes = mistakes(&disk);
    let right = |name: &str| Class::new(name, &[("node1", vec![disk.clone()])]);
    for mistake in &mistakes {
        let name = test.class_name(mistake.what);
        test.class(right(&name).parameter(mistake.key, &mistake.value)).await?;
        test.claim(Claim::new(mistake.what, &name, "1Gi")).await?;
    }
    // The name of a class is that of its volume group where no other is given.
    let long = test.class(right(&test.class_name(&"x".repeat(50)))).await?;
    test.pod(PodSpec::new("user").claim("ntfs", false)).await?;
    for mistake in &mistakes {
        let name = test.class_name(mistake.what);
        let parts = [
            &["InvalidStorageClass", "delete the class and create it again"],
            mistake.told,
        ]
        .concat();
        let said = test.said("StorageClass", &name, &parts).await?;
        println!("   {}: {said}", mistake.what);
        let of_claim = test.said("PersistentVolumeClaim", mistake.what, &parts).await?;
        ensure!(said == of_claim, "the claim is told {of_claim}");
    }
    test.said(
        "StorageClass",
        &long,
        &[
            "InvalidStorageClass",
            "parameters.volumeGroup",
            "(the name of the class; the parameter volumeGroup gives it another)",
        ],
    )
    .await?;
    let parts = [
        "FailedScheduling",
        "StorageClass",
        &test.class_name("ntfs"),
        "is invalid",
        "parameters.fsType",
        "ntfs",
    ];
    println!("   the pod: {}", test.said("Pod", "user", &parts).await?);
    for class in mistakes
        .iter()
        .map(|mistake| test.class_name(mistake.what))
        .chain([long])
    {
        let made = test.storages_of(&class).await?;
        ensure!(made.is_empty(), "made for {class}: {made:#?}");
    }
    ensure!(quarry_crds::claim::selected_node(&test.claims().get("ntfs").await?).is_none());
    Held::is_still(test, &before).await
}

/// How long after a class was made something was first said of it, in whole seconds.
async fn said_after(test: &Test, class: &str, reason: &str) -> Result<SignedDuration> {
    let classes: Api<StorageClass> = Api::all(test.client());
    let made = classes.get(class).await?.metadata.creation_timestamp;
    let events: Api<Event> = Api::namespaced(test.client(), "default");
    let of_it = ListParams::default().fields(&format!("regarding.name={class},reason={reason}"));
    let said = events.list(&of_it).await?.items.into_iter();
    let first = said
        .filter_map(|event| event.metadata.creation_timestamp)
        .map(|time| time.0)
        .min();
    Ok(first
        .context("nothing was said")?
        .duration_since(made.context("no time")?.0))
}

/// Nodes that are not there, or run another operating system; nodes of the same class that can serve do.
async fn bad_nodes_are_named(test: &Test) -> Result<()> {
    forget_events(test).await?;
    let nodes: Api<Node> = Api::all(test.client());
    remove(&nodes).await?;
    let windows =
        json!({"metadata": {"name": WINDOWS, "labels": {"kubernetes.io/os": "windows", "bad-parameters": "yes"}}});
    nodes
        .create(&PostParams::default(), &serde_json::from_value(windows)?)
        .await?;
    let result = name_nodes(test).await;
    let removed = remove(&nodes).await.context("removing the node");
    result.and(removed)
}

async fn remove(nodes: &Api<Node>) -> Result<()> {
    match nodes.delete(WINDOWS, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn name_nodes(test: &Test) -> Result<()> {
    let disk = test.bed.disk(1, 0)?;
    let before = Held::by_nodes(test).await?;
    let class =
        |what: &str, nodes: &Value| Class::new(&test.class_name(what), &[]).parameter("nodes", &nodes.to_string());
    let by_label = |value: &str| json!([{"selector": {"matchLabels": {"bad-parameters": value}}, "disks": [disk]}]);
    let cases: [(&str, Value, &[&str]); 4] = [
        (
            "absent",
            json!([{"names": ["node9"], "disks": [disk]}]),
            &[
                "NodeNotFound",
                "parameters.nodes[0].names",
                "no node \"node9\"",
                "add it to the cluster, or name another",
            ],
        ),
        (
            "unmatched",
            by_label("no"),
            &[
                "NodeNotFound",
                "parameters.nodes[0].selector",
                "{\"bad-parameters\":\"no\"}",
                "kubectl label node",
            ],
        ),
        (
            "windows",
            json!([{"names": [WINDOWS], "disks": [disk]}]),
            &[
                "UnsupportedNode",
                "parameters.nodes[0]",
                WINDOWS,
                "kubernetes.io/os=windows",
                "take it off the names",
            ],
        ),
        (
            "windows-label",
            by_label("yes"),
            &[
                "UnsupportedNode",
                "parameters.nodes[0]",
                WINDOWS,
                "select by kubernetes.io/os=linux",
            ],
        ),
    ];
    for (what, nodes, _) in &cases {
        let name = test.class(class(what, nodes)).await?;
        test.claim(Claim::new(what, &name, "1Gi")).await?;
        test.pod(PodSpec::new(what).claim(what, false)).await?;
    }
    for (what, _, told) in &cases {
        println!(
            "   {what}: {}",
            test.said("StorageClass", &test.class_name(what), told).await?
        );
        println!("   {what}: {}", test.said("Pod", what, &["FailedScheduling"]).await?);
        ensure!(
            test.storages_of(&test.class_name(what)).await?.is_empty(),
            "something was made for {what}"
        );
    }
    Held::is_still(test, &before).await?;
    // A class is not lost for the nodes that are there, and nothing is said of a node that comes with a delay.
    let mixed = test
        .class(class("mixed", &json!([{"names": ["node1", "node9"], "disks": [disk]}])))
        .await?;
    test.ready(&mixed, 1).await?;
    test.said("StorageClass", &mixed, &["NodeNotFound", "node9"]).await?;
    let after = said_after(test, &mixed, "NodeNotFound").await?;
    println!(
        "   a node that is missing is told {} s after its class was made",
        after.as_secs()
    );
    ensure!(after >= ADVISED_AFTER, "told after {after:#}");
    test.claim(Claim::new("served", &mixed, "500Mi")).await?;
    test.pod(PodSpec::new("served").claim("served", false)).await?;
    let runs = tokio::time::timeout(Duration::from_secs(120), test.running("served")).await??;
    ensure!(
        runs == "node1"
            && test
                .storages_of(&mixed)
                .await?
                .iter()
                .all(|s| s.name_any() == format!("{mixed}.node1"))
    );
    Ok(())
}
