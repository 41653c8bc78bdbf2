//! The wipe of a volume that is to be removed waits for its turn, perhaps for hours. When it has come, whoever wants the volume
//! gone is asked once more, and whoever may hold it; and before the first block is written, the volume itself says what is done.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt as _;
use kube::api::Api;
use quarry_crds::names::volume_name;
use quarry_crds::persistent_volume::{Disposal, disposal};
use quarry_crds::tags::{VolumeState, VolumeTags, Wipe};
use tokio::time::Instant;

use super::{Wanted, change_state, mark_deleting};
use crate::context::Context;
use crate::lvm::{LogicalVolume, VolumeGroup};
use crate::wipe::{News, Order, Progress, Purpose, Stop};

/// A wipe that is done within this time is waited for.
const SHORT: Duration = Duration::from_secs(2);

/// What is told of a wipe that goes on.
pub(super) fn told_of_wipe(news: News, name: &str, wipe: Wipe) -> String {
    let how = wipe.text();
    match news {
        News::Waits => format!("{name} waits to be wiped ({how}), as others are on its disks"),
        News::Quarters(0) => format!("{name} is being wiped ({how})"),
        News::Quarters(quarters) => format!(
            "{name} is being wiped ({how}), {} % of it are done",
            25 * u32::from(quarters)
        ),
    }
}

/// For so long an answer of the API server will do.
const FRESH: Duration = Duration::from_secs(1);

/// Begins the wipe of a volume that is to be removed, or looks how far it has come.
pub(super) async fn step_of_wipe(
    group: &VolumeGroup,
    logical: &LogicalVolume,
    tags: &VolumeTags,
    wanted: Wanted<'_>,
    context: &Arc<Context>,
) -> Progress {
    let order = || {
        let (group, volume, tags) = (group.clone(), logical.clone(), tags.clone());
        let asker = Asker {
            group: group.clone(),
            volume: volume.clone(),
            tags: tags.clone(),
            name: volume_name(&tags.claim_uid),
            uid: match wanted {
                Wanted::Volume(volume) => volume.uid(),
                Wanted::Nobody => None,
            },
            context: Arc::clone(context),
        };
        Order {
            purpose: Purpose::Old,
            group,
            volume,
            tags,
            // Whoever begins it has asked just now.
            check: Box::pin(asker.begin(Instant::now())),
            wanted: Box::new(|| true),
        }
    };
    context.wipes.step(&context.wiper, SHORT, order).await
}

/// Asks whether a volume is still to be wiped.
struct Asker {
    group: VolumeGroup,
    volume: LogicalVolume,
    tags: VolumeTags,
    /// Of its PersistentVolume.
    name: String,
    /// The same; none where there is to be no such object.
    uid: Option<String>,
    context: Arc<Context>,
}

impl Asker {
    /// Its turn has come: asks once more where the last answer is old, and marks the volume before its first block is written.
    async fn begin(self, mut asked: Instant) -> Result<(), Stop> {
        self.ask_unless_fresh(&mut asked).await?;
        if self.tags.wipe == Wipe::Signatures {
            return Ok(());
        }
        let reference = self.group.reference_to(&self.volume);
        let marked = mark_deleting(&reference, &self.tags, &self.context).await;
        marked.map_err(|error| Stop::Failed(error.to_string()))?;
        crash_point!("delete-after-tag");
        // Others may have had the group for long.
        let still = self.ask_unless_fresh(&mut asked).await;
        if still.is_err()
            && self.tags.state != VolumeState::Deleting
            && let Err(error) = change_state(reference, self.tags.state, &self.context).await
        {
            tracing::warn!(volume = self.volume.name, %error, "nothing of it was wiped, though its tag says that it is being removed");
        }
        still
    }

    async fn ask_unless_fresh(&self, asked: &mut Instant) -> Result<(), Stop> {
        if asked.elapsed() <= FRESH {
            return Ok(());
        }
        let now = Instant::now();
        self.ask().await?;
        *asked = now;
        Ok(())
    }

    async fn ask(&self) -> Result<(), Stop> {
        let volumes: Api<PersistentVolume> = Api::all(self.context.client.clone());
        let live = volumes.get_opt(&self.name).await;
        let live =
            live.map_err(|error| Stop::Failed(format!("nobody says whether it is still to be wiped: {error}")))?;
        let wanted = match (&self.uid, live) {
            (Some(uid), Some(live)) => live.uid().as_ref() == Some(uid) && disposal(&live) == Disposal::Remove,
            (Some(_), None) => false,
            (None, live) => live.is_none(),
        };
        if !wanted {
            return Err(Stop::CalledOff("its PersistentVolume is not what it was".to_owned()));
        }
        let state = self.context.inventory.get();
        let known = state.group(&self.group.uuid);
        let mut holders = known.map(|group| group.stacked_on(&self.volume)).unwrap_or_default();
        let asked = LogicalVolume {
            open: None,
            ..self.volume.clone()
        };
        holders.extend(self.context.wiper.holders(self.group.clone(), asked).await);
        if holders.is_empty() {
            Ok(())
        } else {
            Err(Stop::Held(holders.join(", ")))
        }
    }
}
