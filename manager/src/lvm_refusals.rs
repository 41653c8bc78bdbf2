//! What LVM refused on this node for another reason than room, in this process: which claims are left alone here, and which
//! volume groups are not fit for volumes, for how long. The decisions are in [`quarry_crds::refusals`].

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use quarry_crds::refusals::{GroupRefusals, Refusals, pause};
use tokio::time::Instant;

/// What LVM refused here.
#[derive(Debug, Default)]
pub struct RefusedHere(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    groups: HashMap<String, GroupRefusals>,
    /// Until when a claim is left alone, by its UID.
    claims: HashMap<String, Instant>,
}

/// What follows from a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What the claim says of its refusals now.
    pub refusals: Refusals,
    /// How long this node leaves the claim alone.
    pub claim: Duration,
    /// How long the volume group is left alone, where it has become unfit by this.
    pub group: Option<Duration>,
}

impl RefusedHere {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// LVM refused a claim on this node, in these words.
    pub fn refused(&self, claim: &PersistentVolumeClaim, node: &str, volume_group: &str, said: &str) -> Refused {
        let (uid, now) = (claim.metadata.uid.as_deref().unwrap_or_default(), Instant::now());
        let refusals = Refusals::of(claim).with(node);
        let left_alone = pause(refusals.by(node));
        let mut inner = self.lock();
        inner.claims.retain(|_, until| *until > now);
        inner.claims.insert(uid.to_owned(), now + left_alone);
        let group = inner.groups.entry(volume_group.to_owned()).or_default();
        Refused {
            refusals,
            claim: left_alone,
            group: group.refused(uid, said, now.into_std()),
        }
    }

    /// LVM made a volume: whatever was in the way is not any more.
    pub fn made(&self, volume_group: &str) {
        self.lock().groups.remove(volume_group);
    }

    /// How much longer a claim is left alone here.
    #[must_use]
    pub fn left_alone(&self, claim_uid: &str) -> Option<Duration> {
        let now = Instant::now();
        let until = *self.lock().claims.get(claim_uid)?;
        (until > now).then(|| until - now)
    }

    /// Why a volume group is not fit for volumes now, for people.
    #[must_use]
    pub fn unfit(&self, volume_group: &str) -> Option<String> {
        let inner = self.lock();
        let said = inner.groups.get(volume_group)?.unfit(Instant::now().into_std())?;
        Some(format!(
            "volume group {volume_group}: LVM refused to make the volumes of several claims one after another, the last time \
             with: {said}; mend that on this node. One more is tried from time to time"
        ))
    }
}
