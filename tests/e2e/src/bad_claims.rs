//! Claims that cannot be served, and odd ones that can.

use anyhow::{Context, Result, bail, ensure};
use quarry_crds::Bytes;
use quarry_crds::claim::{is_bound, selected_node};
use quarry_crds::quantity;
use serde_json::json;

use crate::case;
use crate::objects::{Claim, Class, PodSpec};
use crate::test::{Case, Test};
use crate::untouched::Held;

/// The cases.
pub const CASES: &[Case] = &[
    case!(bad_claims_are_told),
    case!(bad_looking_sizes_work),
    case!(bad_sizes_beyond_every_node),
];

/// A claim, and what must be said of it.
type Told = (&'static str, Claim, &'static [&'static str]);

/// Claims that Kubernetes accepts and no node can serve.
fn unservable(ext4: &str, xfs: &str) -> Vec<Told> {
    let claim = |name: &str| Claim::new(name, ext4, "1Gi");
    let modes = |name: &str, modes: &[&str]| claim(name).with("accessModes", modes.to_vec());
    vec![
        (
            "rwx",
            modes("rwx", &["ReadWriteMany"]),
            &[
                "spec.accessModes",
                "ReadWriteMany",
                "use ReadWriteOnce or ReadWriteOncePod",
            ],
        ),
        (
            "rox",
            modes("rox", &["ReadOnlyMany"]),
            &[
                "spec.accessModes",
                "ReadOnlyMany",
                "use ReadWriteOnce or ReadWriteOncePod",
            ],
        ),
        (
            "rwo-rwx",
            modes("rwo-rwx", &["ReadWriteOnce", "ReadWriteMany"]),
            &[
                "spec.accessModes",
                "ReadWriteMany",
                "use ReadWriteOnce or ReadWriteOncePod",
            ],
        ),
        (
            "selector",
            claim("selector").with("selector", json!({"matchLabels": {"tier": "gold"}})),
            &["spec.selector", "cannot select by label", "remove the selector"],
        ),
        (
            "snapshot",
            claim("snapshot").with(
                "dataSourceRef",
                json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "monday"}),
            ),
            &[
                "spec.dataSourceRef",
                "VolumeSnapshot \"monday\"",
                "remove the data source",
            ],
        ),
        (
            "clone",
            claim("clone").with("dataSource", json!({"kind": "PersistentVolumeClaim", "name": "rwx"})),
            &[
                "spec.dataSource",
                "PersistentVolumeClaim \"rwx\"",
                "remove the data source",
            ],
        ),
        (
            "one-byte-xfs",
            Claim::new("one-byte-xfs", xfs, "1"),
            &[
                "spec.resources.requests.storage",
                "1 is too small for xfs",
                "at least 300Mi",
            ],
        ),
        (
            "small-xfs",
            Claim::new("small-xfs", xfs, "299Mi"),
            &[
                "spec.resources.requests.storage",
                "299Mi is too small for xfs",
                "at least 300Mi",
            ],
        ),
    ]
}

/// Claims that the API server itself refuses: nobody else has to say anything.
fn refused_by_kubernetes(class: &str) -> Vec<Told> {
    let sized = |name: &str, size: &str| Claim::new(name, class, size);
    vec![
        (
            "rwo-rwop",
            sized("rwo-rwop", "1Gi").with("accessModes", json!(["ReadWriteOnce", "ReadWriteOncePod"])),
            &[
                "spec.accessModes",
                "may not use ReadWriteOncePod with other access modes",
            ],
        ),
        (
            "no-mode",
            sized("no-mode", "1Gi").with("accessModes", json!([])),
            &["spec.accessModes", "at least 1 access mode"],
        ),
        (
            "unknown-mode",
            sized("unknown-mode", "1Gi").with("accessModes", json!(["Once"])),
            &["spec.accessModes", "\"Once\"", "supported values"],
        ),
        (
            "zero",
            sized("zero", "0"),
            &["spec.resources[storage]", "\"0\"", "must be greater than zero"],
        ),
        (
            "negative",
            sized("negative", "-1Gi"),
            &["spec.resources[storage]", "\"-1Gi\"", "must be greater than"],
        ),
        (
            "no-number",
            sized("no-number", "ten"),
            &["quantities must match the regular expression"],
        ),
        (
            "no-size",
            sized("no-size", "1Gi").with("resources", json!({})),
            &["spec.resources[storage]", "Required value"],
        ),
        (
            "tape",
            sized("tape", "1Gi").with("volumeMode", "Tape"),
            &["spec.volumeMode", "\"Tape\"", "supported values"],
        ),
    ]
}

async fn bad_claims_are_told(test: &Test) -> Result<()> {
    let ext4 = test.simple_class("a", 0).await?;
    let xfs = Class::new(&test.class_name("x"), &test.each_node(0)?).parameter("fsType", "xfs");
    let xfs = test.class(xfs.parameter("volumeGroup", &ext4)).await?;
    test.ready(&xfs, 3).await?;
    let before = Held::by_nodes(test).await?;
    let claims = unservable(&ext4, &xfs);
    for (name, claim, _) in &claims {
        test.claim(claim.clone()).await?;
        test.pod(PodSpec::new(name).claim(name, false)).await?;
    }
    for (name, claim, told) in refused_by_kubernetes(&ext4) {
        let Err(error) = test.claim(claim).await else {
            bail!("{name} was accepted");
        };
        let text = format!("{error:#}");
        println!("   {name}: {text}");
        ensure!(
            told.iter().all(|part| text.contains(part)),
            "{text:?} lacks one of {told:?}"
        );
    }
    for (name, _, told) in &claims {
        let of_claim = [&["InvalidClaim"], *told].concat();
        println!(
            "   {name}: {}",
            test.said("PersistentVolumeClaim", name, &of_claim).await?
        );
        let of_pod = [&["FailedScheduling", *name], *told].concat();
        println!("   its pod: {}", test.said("Pod", name, &of_pod).await?);
    }
    nothing_was_made(test, &claims.iter().map(|(name, ..)| *name).collect::<Vec<_>>()).await?;
    Held::is_still(test, &before).await
}

/// Makes sure that no node was chosen for these claims, and no volume made.
async fn nothing_was_made(test: &Test, claims: &[&str]) -> Result<()> {
    for name in claims {
        let claim = test.claims().get(name).await?;
        ensure!(selected_node(&claim).is_none() && !is_bound(&claim), "{claim:#?}");
        let volume = quarry_crds::names::volume_name(claim.metadata.uid.as_deref().unwrap_or_default());
        ensure!(
            test.volumes().get_opt(&volume).await?.is_none(),
            "{volume} was made for {name}"
        );
    }
    Ok(())
}

/// One byte, and fractions of several kinds: the volume has what was asked for, rounded up to whole extents of 4 MiB.
async fn bad_looking_sizes_work(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let mut pod = PodSpec::new("user");
    let sizes = [
        ("one-byte", "1", 4),
        ("half-a-byte", "500m", 4),
        ("tenth", "0.1", 4),
        ("one-and-a-half", "1.5Gi", 1536),
        ("three-tenths", "0.3Gi", 308),
        ("decimal", "100M", 96),
        ("exponent", "1e8", 96),
    ];
    for (name, size, _) in sizes {
        // One byte is enough for a file system too, as kubelet makes it: the extent is what it is made in.
        let claim = Claim::new(name, &class, size);
        let raw = name != "one-byte";
        test.claim(if raw { claim.block() } else { claim }).await?;
        pod = pod.claim(name, raw);
    }
    test.pod(pod).await?;
    let node = test.running("user").await?;
    for (name, size, mebibytes) in sizes {
        let volume = test.volume_of(name).await?;
        let capacity = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.capacity.as_ref()?.get("storage"))
            .context("no size")?;
        let row = test
            .logical_volume(&node, volume.metadata.name.as_deref().unwrap_or_default())
            .await?;
        let row = row.context("no logical volume")?;
        println!(
            "   {size}: PersistentVolume {}, logical volume {} bytes",
            capacity.0, row["lv_size"]
        );
        let wanted = Bytes::mib(mebibytes);
        ensure!(quantity::parse(&capacity.0)? == wanted, "{name}: {capacity:?}");
        ensure!(row["lv_size"].as_str() == Some(&*wanted.0.to_string()), "{name}: {row}");
        if name != "one-byte" {
            let seen = test
                .exec("user", &["blockdev", "--getsize64", &format!("/dev/{name}")])
                .await?;
            ensure!(seen.trim() == wanted.0.to_string(), "{name}: the pod sees {seen}");
        }
    }
    test.exec(
        "user",
        &["sh", "-c", "echo tiny > /one-byte/file && sync && cat /one-byte/file"],
    )
    .await?;
    Ok(())
}

/// Far more than there is: the pod waits, with the reason; nothing overflows and nothing is made.
async fn bad_sizes_beyond_every_node(test: &Test) -> Result<()> {
    let class = test.simple_class("a", 0).await?;
    let before = Held::by_nodes(test).await?;
    let no_room = ["3 node(s) had not enough free local storage in volume group", &class];
    // Kubernetes itself makes 2^63-1 of some sizes that are larger, and leaves others as they are.
    let too_large = [
        "spec.resources.requests.storage",
        "\"1e30\" is more than 8Ei-1",
        "ask for less",
    ];
    let sizes: [(&str, &str, &[&str]); 5] = [
        ("large", "100Gi", &no_room),
        ("huge", "1Ei", &no_room),
        ("largest", "9223372036854775807", &no_room),
        ("beyond", "16Ei", &no_room),
        ("far", "1e30", &too_large),
    ];
    for (name, size, _) in sizes {
        test.claim(Claim::new(name, &class, size)).await?;
        test.pod(PodSpec::new(name).claim(name, false)).await?;
    }
    for (name, _, told) in sizes {
        let parts = [&["FailedScheduling"], told].concat();
        println!("   {name}: {}", test.said("Pod", name, &parts).await?);
    }
    for (name, asked) in [("large", "100Gi"), ("huge", "1Ei"), ("largest", "9223372036854775807")] {
        let field = format!("spec.resources.requests.storage: {asked} is more than any volume group of StorageClass");
        let parts = [
            "TooLarge",
            &field,
            "on node node2, has 5100Mi",
            "ask for less, or add disks",
        ];
        println!("   {name}: {}", test.said("PersistentVolumeClaim", name, &parts).await?);
    }
    test.said(
        "PersistentVolumeClaim",
        "far",
        &[&["InvalidClaim"], &too_large[..]].concat(),
    )
    .await?;
    let stored = test
        .claims()
        .get("beyond")
        .await?
        .spec
        .and_then(|spec| spec.resources?.requests?.remove("storage"));
    println!("   16Ei is stored as {stored:?}");
    nothing_was_made(test, &sizes.map(|(name, ..)| name)).await?;
    Held::is_still(test, &before).await
}
