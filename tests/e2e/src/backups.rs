//! What programs that back volumes up go by: a PersistentVolume of Quarry is of no CSI driver, also where there is a CSIDriver
//! object of the name of Quarry's provisioner.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::storage::v1::CSIDriver;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use quarry_crds::names::{PROVISIONED_BY, PROVISIONER};
use serde_json::json;

use crate::objects::{Claim, PodSpec};
use crate::test::Test;

/// Velero's file-system backup looks for the files of a volume in `…/<volume>/mount` where the volume's provisioner is the name of a
/// CSIDriver (its `isProvisionedByCSI`), and kubelet mounts a local volume at `…/<volume>`. Volumes that say it in the old way go on.
///
/// # Errors
/// It would not find them; or such a volume is not removed.
pub async fn find_the_files(test: &Test, class: &str) -> Result<()> {
    let drivers: Api<CSIDriver> = Api::all(test.client());
    let drivers = drivers.list(&ListParams::default()).await?.items;
    let drivers: Vec<String> = drivers.iter().map(ResourceExt::name_any).collect();
    ensure!(drivers.iter().any(|driver| driver == PROVISIONER), "{drivers:?}");
    test.claim(Claim::new("saved", class, "100Mi")).await?;
    test.pod(PodSpec::new("saved").claim("saved", false).on("node1"))
        .await?;
    test.running("saved").await?;
    test.exec("saved", &["sh", "-c", "echo saved > /saved/file && sync"])
        .await?;
    let volume = test.volume_of("saved").await?;
    let by = volume.annotations().get(PROVISIONED_BY).context("made by nobody")?;
    ensure!(volume.spec.as_ref().is_some_and(|spec| spec.csi.is_none()));
    let suffix = if drivers.contains(by) { "/mount" } else { "" };
    let pod = test.pods().get("saved").await?.meta().uid.clone().context("no UID")?;
    let folder = format!(
        "/var/lib/kubelet/pods/{pod}/volumes/kubernetes.io~local-volume/{}{suffix}",
        volume.name_any()
    );
    let found = test
        .bed
        .node("node1")?
        .run_ok(["cat", &format!("{folder}/file")])
        .await?;
    println!("   provisioned by {by}: files are in {folder}");
    ensure!(found == "saved\n", "{folder}: {found:?}");
    let old = Patch::Merge(json!({"metadata": {"annotations": {PROVISIONED_BY: PROVISIONER}}}));
    test.volumes()
        .patch(&volume.name_any(), &PatchParams::default(), &old)
        .await?;
    test.delete_pod("saved").await?;
    test.delete_claim("saved").await?;
    test.volume_gone(&volume.name_any()).await?;
    println!("   a volume provisioned by {PROVISIONER} is removed");
    Ok(())
}
