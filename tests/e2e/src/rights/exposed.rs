//! The port that kube-scheduler calls, where it is reached from other hosts.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use crate::bed::NAMESPACE;
use crate::case;
use crate::test::{Case, PATIENCE, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(the_port_for_the_scheduler_is_not_open_to_all)];

const LISTEN: &str = "QUARRY_LISTEN";
const ALLOW: &str = "QUARRY_ALLOW_ANY_CLIENT";

/// An extender that would serve whoever reaches its host does not start, and says what to do; with the flag it does, and says so.
async fn the_port_for_the_scheduler_is_not_open_to_all(test: &Test) -> Result<()> {
    let result = exposed(test).await;
    let restored = settings(test, &[(LISTEN, None), (ALLOW, None)]).await;
    let rolled = test.bed.rolled_out("quarry-extender").await;
    result.and(restored).and(rolled)
}

async fn exposed(test: &Test) -> Result<()> {
    settings(test, &[(LISTEN, Some("0.0.0.0:9899"))]).await?;
    let told = test.wait("an extender refuses to start", PATIENCE, || async {
        Ok(extenders(test).await?.iter().find_map(ended))
    });
    let told = told.await?;
    println!("   {told}");
    for part in [
        "0.0.0.0:9899",
        "QUARRY_TLS_CLIENT_CA_FILE",
        "QUARRY_ALLOW_ANY_CLIENT=true",
    ] {
        ensure!(told.contains(part), "{part:?} is not in {told:?}");
    }
    settings(test, &[(ALLOW, Some("true"))]).await?;
    test.bed.rolled_out("quarry-extender").await?;
    let pods = extenders(test).await?;
    let pod = pods.first().context("no extender")?.name_any();
    let log = test.bed.kubectl(&["-n", NAMESPACE, "logs", &pod]).await?;
    ensure!(
        log.contains("QUARRY_ALLOW_ANY_CLIENT is set") && log.contains("0.0.0.0:9899"),
        "it is served without a word: {log}"
    );
    Ok(())
}

async fn extenders(test: &Test) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(test.client(), NAMESPACE);
    let ours = ListParams::default().labels("app.kubernetes.io/name=quarry-extender");
    Ok(pods.list(&ours).await?.items)
}

/// What the container of a pod said last before it ended with an error.
fn ended(pod: &Pod) -> Option<String> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let ends = statuses
        .iter()
        .flat_map(|status| [status.state.clone(), status.last_state.clone()]);
    ends.flatten()
        .filter_map(|state| state.terminated)
        .filter(|end| end.exit_code != 0)
        .find_map(|end| end.message)
        .filter(|message| message.contains(LISTEN))
}

/// Sets variables of the extender; none takes one away.
async fn settings(test: &Test, settings: &[(&str, Option<&str>)]) -> Result<()> {
    let words = settings.iter().map(|(name, value)| match value {
        Some(value) => format!("{name}={value}"),
        None => format!("{name}-"),
    });
    let words: Vec<String> = words.collect();
    let mut arguments = vec!["-n", NAMESPACE, "set", "env", "ds/quarry-extender"];
    arguments.extend(words.iter().map(String::as_str));
    test.bed.kubectl(&arguments).await.map(drop)
}
