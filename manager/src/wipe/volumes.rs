//! The volumes of claims, wiped as their tags say.

use futures::FutureExt as _;
use futures::future::BoxFuture;
use quarry_crds::tags::VolumeTags;

use super::{Control, Eraser, Target};
use crate::context::Wiper;
use crate::lvm::{LogicalVolume, VolumeGroup};

impl Wiper for Eraser {
    fn wipe_new(
        &self,
        group: VolumeGroup,
        volume: LogicalVolume,
        tags: VolumeTags,
        control: Control,
    ) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let target = Target::of(&group, &volume);
            Self::wipe_new(self, &target, tags.wipe.of_new(tags.mode), &control)
                .await
                .map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn wipe_old(
        &self,
        group: VolumeGroup,
        volume: LogicalVolume,
        tags: VolumeTags,
        control: Control,
    ) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let target = Target::of(&group, &volume);
            Self::wipe_old(self, &target, tags.wipe, &control)
                .await
                .map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn carries(&self, group: VolumeGroup, volume: LogicalVolume) -> BoxFuture<'_, Result<Vec<String>, String>> {
        async move {
            let found = Self::carries(self, &Target::of(&group, &volume)).await;
            found.map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn holders(&self, group: VolumeGroup, volume: LogicalVolume) -> BoxFuture<'_, Vec<String>> {
        async move { Self::holders(self, &Target::of(&group, &volume), &volume).await }.boxed()
    }
}
