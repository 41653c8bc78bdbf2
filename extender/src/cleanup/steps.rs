//! What is done about one object of a node that is gone. Each step looks at the object as the API server has it, and
//! writes under the UID or the version that it saw: done twice, or by two at once, it is done once.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, Resource, ResourceExt};
use quarry_crds::NodeLocalStorage;
use quarry_crds::lost_nodes::{self, Fate, fate, waits_for};
use quarry_crds::names::{LOST_NODE_ANNOTATION, NODE_GONE_ANNOTATION, SELECTED_NODE, VOLUME_FINALIZER, volume_name};
use quarry_crds::persistent_volume::{Disposal, disposal, ours};
use quarry_process::events::{Events, Saying};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::index::claim_name;
use crate::metrics::Metrics;

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Nothing is to be done before the objects change.
    ForNow,
    /// Somebody else is about to change something.
    LookAgain,
    /// A claim was given back; kube-scheduler is to be woken once more.
    GivenBack,
}

/// What the steps work with.
pub struct Steps<'a> {
    /// The API server.
    pub client: &'a Client,
    /// What is said of objects.
    pub events: &'a Events,
    /// What is counted.
    pub metrics: &'a Metrics,
    /// The node that is gone.
    pub node: &'a str,
    /// For how long, for people.
    pub grace: String,
}

impl Steps<'_> {
    /// Gives a claim that waits for the node back to the scheduler, if Kubernetes knows of no volume for it.
    ///
    /// # Errors
    /// The API server did not answer as it should.
    pub async fn give_back(&self, key: &str) -> Result<Done, kube::Error> {
        let (namespace, name) = claim_name(key);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let Some(claim) = claims.get_opt(name).await?.filter(|claim| waits_for(claim, self.node)) else {
            return Ok(Done::LookAgain);
        };
        // Made in the last moment: the claim is about to be bound to it, and must not be served elsewhere too.
        let volume = volume_name(&claim.uid().unwrap_or_default());
        if self.volumes().get_opt(&volume).await?.is_some() {
            return Ok(Done::LookAgain);
        }
        let patch = json!({"metadata": {
            "resourceVersion": claim.resource_version(),
            "annotations": {SELECTED_NODE: null},
        }});
        let params = PatchParams::default();
        match claims.patch_metadata(name, &params, &Patch::Merge(patch)).await {
            Ok(_) => {}
            Err(error) if is_outdated(&error) => return Ok(Done::LookAgain),
            Err(error) => return Err(error),
        }
        self.metrics.cleaned_up("claim_given_back");
        let note = format!(
            "node {}, for which this claim was waiting, is gone; asked the scheduler to choose another",
            self.node
        );
        self.events.say(&claim, Saying::warning("NodeGone", note)).await;
        Ok(Done::GivenBack)
    }

    /// Has kube-scheduler look once more at the pod of a claim that was given back, if nobody has chosen a node since.
    /// It queues the pod and notes the claim in two threads of its own: the pod may have been tried with the claim as
    /// it was before, and then nothing else would wake it for five minutes.
    ///
    /// # Errors
    /// The API server did not answer as it should.
    pub async fn wake(&self, key: &str) -> Result<(), kube::Error> {
        let (namespace, name) = claim_name(key);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let Some(claim) = claims.get_opt(name).await?.filter(lost_nodes::is_waiting) else {
            return Ok(());
        };
        let patch = json!({"metadata": {
            "resourceVersion": claim.resource_version(),
            "annotations": {NODE_GONE_ANNOTATION: self.node},
        }});
        match claims
            .patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            // Somebody has changed it: that wakes as well.
            Err(error) if !is_outdated(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps a PersistentVolume and tells its owner, deletes its claim where that was asked for, or lets it go.
    ///
    /// # Errors
    /// The API server did not answer as it should.
    pub async fn volume(&self, name: &str) -> Result<Done, kube::Error> {
        let Some(volume) = self.volumes().get_opt(name).await? else {
            return Ok(Done::LookAgain);
        };
        let claim = self.claim_of(&volume).await?;
        match (fate(&volume, claim.as_ref(), self.node), claim) {
            (Fate::Wait, _) => Ok(Done::LookAgain),
            (Fate::Keep, claim) => {
                self.tell(&volume, claim.as_ref()).await;
                Ok(Done::ForNow)
            }
            (Fate::DeleteClaim, Some(claim)) => self.delete_claim(&volume, &claim).await,
            (Fate::DeleteClaim, None) => Ok(Done::LookAgain),
            (Fate::LetGo, _) => self.let_go(&volume).await,
        }
    }

    /// Deletes a NodeLocalStorage of the node; the manager makes it anew if the node comes back.
    ///
    /// # Errors
    /// The API server did not answer as it should.
    pub async fn storage(&self, name: &str) -> Result<Done, kube::Error> {
        let storages: Api<NodeLocalStorage> = Api::all(self.client.clone());
        let of_node = |storage: &NodeLocalStorage| storage.spec.node_name == self.node;
        let Some(storage) = storages.get_opt(name).await?.filter(of_node) else {
            return Ok(Done::LookAgain);
        };
        if !delete(&storages, &storage).await? {
            return Ok(Done::LookAgain);
        }
        self.metrics.cleaned_up("node_local_storage_deleted");
        let note = format!(
            "node {} has been gone for more than {}; this NodeLocalStorage is made anew if it comes back",
            self.node, self.grace
        );
        self.events.say(&storage, Saying::normal("NodeGone", note)).await;
        Ok(Done::LookAgain)
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    async fn claim_of(&self, volume: &PersistentVolume) -> Result<Option<PersistentVolumeClaim>, kube::Error> {
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let name = claim.and_then(|claim| Some((claim.namespace.as_deref()?, claim.name.as_deref()?)));
        let Some((namespace, name)) = name else {
            return Ok(None);
        };
        Api::namespaced(self.client.clone(), namespace).get_opt(name).await
    }

    /// Says of a volume, and of its claim, that it is kept, and what to do.
    async fn tell(&self, volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) {
        let Some(our) = ours(volume) else { return };
        let claim = claim.filter(|claim| is_claim_of(claim, volume));
        let note = lost_nodes::kept(&our, &volume.name_any(), claim, &self.grace);
        let saying = Saying::warning("NodeGone", note);
        if let Some(claim) = claim {
            self.events.say(claim, saying.clone()).await;
        }
        self.events.say(volume, saying).await;
    }

    async fn delete_claim(
        &self,
        volume: &PersistentVolume,
        claim: &PersistentVolumeClaim,
    ) -> Result<Done, kube::Error> {
        let claims = Api::namespaced(self.client.clone(), &claim.namespace().unwrap_or_default());
        if !delete(&claims, claim).await? {
            return Ok(Done::LookAgain);
        }
        self.metrics.cleaned_up("claim_deleted");
        let note = format!(
            "node {} of its volume {} has been gone for more than {}: deleted, as its annotation {LOST_NODE_ANNOTATION} \
             asks",
            self.node,
            volume.name_any(),
            self.grace
        );
        self.events.say(claim, Saying::warning("ClaimDeleted", note)).await;
        // Kubernetes takes it away once no pod uses it, and then says that the volume is released.
        Ok(Done::LookAgain)
    }

    /// Takes our finalizer off, and deletes the object where that is its policy. Its logical volume is not touched.
    async fn let_go(&self, volume: &PersistentVolume) -> Result<Done, kube::Error> {
        let name = volume.name_any();
        let remove = disposal(volume) == Disposal::Remove;
        if remove && volume.metadata.deletion_timestamp.is_none() && !delete(&self.volumes(), volume).await? {
            return Ok(Done::LookAgain);
        }
        // As it is now: the deletion has changed its version.
        let Some(live) = self.volumes().get_opt(&name).await? else {
            return Ok(Done::LookAgain);
        };
        if live.uid() != volume.uid() || disposal(&live) == Disposal::Keep {
            return Ok(Done::LookAgain);
        }
        let left: Vec<&String> = live.finalizers().iter().filter(|f| *f != VOLUME_FINALIZER).collect();
        let patch = json!({"metadata": {"resourceVersion": live.resource_version(), "finalizers": left}});
        let params = PatchParams::default();
        match self
            .volumes()
            .patch_metadata(&name, &params, &Patch::Merge(patch))
            .await
        {
            Ok(_) => {}
            Err(error) if is_outdated(&error) => return Ok(Done::LookAgain),
            Err(error) => return Err(error),
        }
        self.metrics.cleaned_up("volume_let_go");
        if let Some(our) = ours(volume) {
            let note = lost_nodes::let_go(&our, &name, &self.grace);
            self.events.say(volume, Saying::warning("VolumeLetGo", note)).await;
        }
        Ok(Done::LookAgain)
    }
}

/// Whether a claim is the one that a volume is bound to, and not one of the same name that was made later.
fn is_claim_of(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let bound = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    claim.uid().is_some() && bound.and_then(|bound| bound.uid.clone()) == claim.uid()
}

/// Deletes an object if it is still the one and as it was seen; says whether that was so.
async fn delete<K>(api: &Api<K>, object: &K) -> Result<bool, kube::Error>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: object.uid(),
            resource_version: object.resource_version(),
        }),
        ..DeleteParams::default()
    };
    match api.delete(&object.name_any(), &params).await {
        Ok(_) => Ok(true),
        Err(error) if is_outdated(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the object is another, or gone, since it was read.
fn is_outdated(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_not_found())
}
