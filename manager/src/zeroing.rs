//! New raw volumes, which are written with zeros before they are handed out: beside everything else, as it can take hours.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt as _;
use kube::api::Api;
use kube::runtime::controller::Action;
use quarry_crds::claim;
use quarry_crds::names::volume_name;
use quarry_crds::tags::{VolumeTags, Wipe};
use quarry_process::events::Saying;
use tokio::time::Instant;

use crate::context::Context;
use crate::lvm::{LogicalVolume, VolumeGroup};
use crate::provision::{ProvisionError, is_still_ours, namespace};
use crate::wipe::{News, Order, Progress, Purpose, Stop};

/// How long a claim holds one of the few places of claims that are served, while its volume is written.
const SHORT: Duration = Duration::from_millis(500);
/// How often a wipe that goes on is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// For so long an answer of the API server will do.
const FRESH: Duration = Duration::from_secs(1);

/// What came of the wipe of a new volume so far.
#[derive(Debug, PartialEq)]
pub enum Wiped {
    /// Nothing is on it.
    Clean,
    /// It goes on: the claim is to be looked at again.
    NotYet(Action),
    /// The claim does not want it any more.
    Unwanted,
}

/// What is to be done about a claim whose volume is being written: nothing is asked of anybody for that.
#[must_use]
pub fn goes_on(volume: &LogicalVolume, context: &Context) -> Option<Action> {
    context.wipes.is_at_work(&volume.uuid).then(|| Action::requeue(LOOK))
}

/// Wipes a new volume as its tags say.
///
/// # Errors
/// It is not clean: it must not be handed out.
pub async fn wipe(
    claim: &PersistentVolumeClaim,
    (group, volume): (&VolumeGroup, &LogicalVolume),
    tags: VolumeTags,
    context: &Arc<Context>,
) -> Result<Wiped, ProvisionError> {
    if tags.wipe.of_new(tags.mode) == Wipe::Signatures {
        let wiped = context
            .wiper
            .wipe_new(group.clone(), volume.clone(), tags, crate::wipe::Control::default());
        return wiped.await.map(|()| Wiped::Clean).map_err(ProvisionError::Wipe);
    }
    let order = || Order {
        purpose: Purpose::New,
        group: group.clone(),
        volume: volume.clone(),
        tags: tags.clone(),
        check: Box::pin(still_wanted(claim.clone(), Arc::clone(context), Instant::now())),
        wanted: {
            let (objects, node, uid) = (context.objects.clone(), context.node.clone(), tags.claim_uid.clone());
            Box::new(move || {
                let claim = objects.claim_with_uid(&uid);
                claim.is_some_and(|claim| {
                    claim.metadata.deletion_timestamp.is_none() && claim::selected_node(&claim) == Some(node.as_str())
                })
            })
        },
    };
    let progress = context.wipes.step(&context.wiper, SHORT, order).await;
    context.metrics.wipes(&context.wipes.figures());
    match progress {
        Progress::Done => Ok(Wiped::Clean),
        Progress::Running(news) => {
            if let Some(news) = news {
                let what = format!("{}/{} ({})", group.name, volume.name, volume.size);
                let note = format!("node {}: {}", context.node, told(news, &what));
                context.events.say(claim, Saying::normal("Wiping", note)).await;
            }
            Ok(Wiped::NotYet(Action::requeue(LOOK)))
        }
        Progress::Stopped {
            why: Stop::CalledOff(why),
            ..
        } => {
            tracing::info!(claim = claim.name_any(), why, "its volume is not wiped");
            Ok(Wiped::Unwanted)
        }
        Progress::Stopped {
            why: Stop::Held(why) | Stop::Failed(why),
            ..
        } => Err(ProvisionError::Wipe(why)),
    }
}

fn told(news: News, what: &str) -> String {
    let why = "before it is handed out, as it is a raw block volume";
    match news {
        News::Waits => format!("{what} waits to be made zeros {why}: others are on its disks"),
        News::Quarters(0) => format!("{what} is being made zeros {why}"),
        News::Quarters(quarters) => format!(
            "{what} is being made zeros {why}; {} % of it are done",
            25 * u32::from(quarters)
        ),
    }
}

/// Its turn has come: the API server is asked once more where the last answer is old.
async fn still_wanted(claim: PersistentVolumeClaim, context: Arc<Context>, asked: Instant) -> Result<(), Stop> {
    if asked.elapsed() <= FRESH {
        return Ok(());
    }
    let nobody_says = |error: kube::Error| Stop::Failed(format!("nobody says whether it is still wanted: {error}"));
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &namespace(&claim));
    let live = claims.get_opt(&claim.name_any()).await.map_err(nobody_says)?;
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    let name = volume_name(claim.metadata.uid.as_deref().unwrap_or_default());
    let handed_out = volumes.get_opt(&name).await.map_err(nobody_says)?.is_some();
    if !handed_out && live.is_some_and(|live| is_still_ours(&live, &claim, &context.node)) {
        return Ok(());
    }
    Err(Stop::CalledOff(
        "its claim does not wait for it here any more".to_owned(),
    ))
}
