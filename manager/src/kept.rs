//! PersistentVolumes that stay: the tag of their logical volume says so while they live, so that their group may be away when
//! they are deleted; and what is wrong with one is told, where nothing else would tell it.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;
use kube::ResourceExt as _;
use quarry_crds::names::VOLUME_FINALIZER;
use quarry_crds::persistent_volume::{Disposal, OurVolume, disposal, lacking, ours};
use quarry_crds::tags::{VolumeState, VolumeTags, mark_of_kept};
use quarry_process::events::Saying;

use crate::context::Context;
use crate::lvm::{LogicalVolume, State, VolumeGroup};
use crate::whereabouts::{self, Whereabouts};

/// What was told, so that it is told once: by UID of the PersistentVolume.
#[derive(Debug, Default)]
pub struct Told(BTreeSet<String>);

/// Looks at every PersistentVolume of this node that stays.
pub async fn look(context: &Context, told: &mut Told) {
    let mut wrong = BTreeSet::new();
    for volume in context.objects.volumes.state() {
        let Some((group_and_name, note)) = one(&volume, context) else {
            continue;
        };
        let uid = volume.uid().unwrap_or_default();
        if !told.0.contains(&uid) {
            tracing::warn!(volume = group_and_name, "{note}");
            tell(&volume, &note, context).await;
        }
        wrong.insert(uid);
    }
    told.0 = wrong;
}

/// Has the logical volume of one marked; what is wrong with it, and its name for the log.
fn one(volume: &Arc<PersistentVolume>, context: &Context) -> Option<(String, String)> {
    let name = volume.name_any();
    let Some(our) = ours(volume) else {
        let lacks = lacking(volume);
        let held = volume
            .finalizers()
            .iter()
            .any(|finalizer| finalizer == VOLUME_FINALIZER);
        return (held && !lacks.is_empty()).then(|| {
            let note = format!(
                "node {}: this PersistentVolume carries Quarry's finalizer {VOLUME_FINALIZER} and lacks {}, so that nobody serves \
                 it; put that back as it was, or take the finalizer off",
                context.node,
                lacks.join(", ")
            );
            (name, note)
        });
    };
    if our.node != context.node || disposal(volume) != Disposal::Keep {
        return None;
    }
    let state = context.inventory.get();
    let (group, logical) = mark(volume, &our, &state, context)?;
    let deleting = VolumeTags::parse(&logical.tags).is_some_and(|tags| tags.state == VolumeState::Deleting);
    deleting.then(|| {
        let place = format!("{}/{}", group.name, logical.name);
        let note = format!(
            "node {}: the logical volume {place} has the tag {}: its removal had begun before this PersistentVolume was to be \
             kept, and it was wiped, wholly or in part, so that what is on it cannot be relied on. Restore a backup into a new \
             claim; or, where you have looked at it and it is whole, \"lvchange --deltag {} --addtag {} {place}\" on the node",
            context.node,
            VolumeState::Deleting.tag(),
            VolumeState::Deleting.tag(),
            VolumeState::Ready.tag()
        );
        (place, note)
    })
}

/// Has the logical volume of a PersistentVolume that stays marked as one that was handed out, or that is to be retained, and
/// calls off what was to be done to it; where it is.
pub fn mark<'a>(
    volume: &PersistentVolume,
    our: &OurVolume,
    state: &'a State,
    context: &Context,
) -> Option<(&'a VolumeGroup, &'a LogicalVolume)> {
    let (group, logical) = match whereabouts::of(context, state, our, &volume.name_any()) {
        Whereabouts::Here(group, logical) | Whereabouts::Elsewhere(group, logical) => (group, logical),
        Whereabouts::Gone | Whereabouts::Unknown => return None,
    };
    let tags = VolumeTags::parse(&logical.tags).filter(|tags| tags.claim_uid == our.claim_uid)?;
    context.wipes.call_off(&logical.uuid);
    if let Some(to) = mark_of_kept(tags.state, our.retain) {
        context.ready_tags.mark(group.reference_to(logical), to);
    }
    Some((group, logical))
}

/// Of the PersistentVolume, and of its claim.
async fn tell(volume: &Arc<PersistentVolume>, note: &str, context: &Context) {
    let saying = Saying::warning("VolumeNotServed", note);
    let claim = ours(volume).and_then(|our| context.objects.claim_with_uid(&our.claim_uid));
    if let Some(claim) = claim {
        context.events.say(&*claim, saying.clone()).await;
    }
    context.events.say(&**volume, saying).await;
}
