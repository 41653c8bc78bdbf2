//! Takes away what a run that was killed has left: its classes hold the disks that the next one needs.

use std::sync::Arc;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::bed::Bed;
use crate::test::Test;

/// Label of the namespaces of tests.
pub const LABEL: &str = "quarry.dev/test";

/// Removes everything of tests that did not come to their end.
///
/// # Errors
/// Something could not be removed.
pub async fn sweep(bed: &Arc<Bed>) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(bed.client.clone());
    for namespace in namespaces.list(&ListParams::default().labels(LABEL)).await?.items {
        let name = namespace.name_any();
        println!("   {name} was left by a run before, and goes");
        Test::new(Arc::clone(bed), &name)
            .clean()
            .await
            .with_context(|| format!("what is left of {name}"))?;
    }
    Ok(())
}
