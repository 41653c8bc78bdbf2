//! Kubernetes events with names made of what they say.
//!
//! kube's own recorder names an event by the time and merges by reason, so that a changed message is never seen, and
//! equal findings of two processes appear twice. Here the name is a hash of object, reason and message: whoever says the
//! same thing again, on whichever node and after whichever restart, adds to the count of the same event.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

/// An event that was said within this time is not said again.
const QUIET: Duration = Duration::from_secs(60);
/// Names kept to tell repetitions; older ones go first.
const REMEMBERED: usize = 4096;
/// The longest name of a place that Kubernetes accepts, in bytes.
const INSTANCE_MAX: usize = 128;
/// The longest note that Kubernetes accepts, in bytes.
const NOTE_MAX: usize = 1024;

/// How serious an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

/// What to say of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saying {
    /// How serious it is.
    pub severity: Severity,
    /// Reason in CamelCase, such as `ProvisioningFailed`.
    pub reason: &'static str,
    /// For people: what, where, how much, and what to do.
    pub note: String,
}

impl Saying {
    /// Something that went as it should.
    #[must_use]
    pub fn normal(reason: &'static str, note: impl Into<String>) -> Self {
        Self {
            severity: Severity::Normal,
            reason,
            note: note.into(),
        }
    }

    /// Something that somebody should look at.
    #[must_use]
    pub fn warning(reason: &'static str, note: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            reason,
            note: note.into(),
        }
    }
}

/// Says things of objects. Failure to say one is logged and never stops any work.
pub struct Events {
    client: Client,
    component: &'static str,
    instance: String,
    said: Mutex<HashMap<String, Said>>,
}

struct Said {
    at: tokio::time::Instant,
    count: i32,
}

impl Events {
    /// Events of a component, such as `quarry-manager`, at a place, such as a node.
    #[must_use]
    pub fn new(client: Client, component: &'static str, instance: impl Into<String>) -> Self {
        Self {
            client,
            component,
            instance: instance_name(&instance.into()),
            said: Mutex::default(),
        }
    }

    /// Says something of an object.
    pub async fn say<K>(&self, object: &K, saying: Saying)
    where
        K: Resource<DynamicType = ()>,
    {
        self.say_of(object.object_ref(&()), saying).await;
    }

    /// Says something of an object by its reference, which must carry its UID.
    pub async fn say_of(&self, regarding: ObjectReference, saying: Saying) {
        let name = event_name(&regarding, &saying);
        let count = {
            let mut said = self.said.lock().await;
            let now = tokio::time::Instant::now();
            if said.len() >= REMEMBERED {
                let oldest = said
                    .iter()
                    .min_by_key(|(_, said)| said.at)
                    .map(|(name, _)| name.clone());
                oldest.map(|oldest| said.remove(&oldest));
            }
            match said.get_mut(&name) {
                Some(before) if now.duration_since(before.at) < QUIET => return,
                Some(before) => {
                    before.at = now;
                    before.count = before.count.saturating_add(1);
                    before.count
                }
                None => {
                    said.insert(name.clone(), Said { at: now, count: 1 });
                    1
                }
            }
        };
        tracing::info!(
            object = regarding.name.as_deref(),
            kind = regarding.kind.as_deref(),
            reason = saying.reason,
            "{}",
            saying.note
        );
        if let Err(error) = self.write(name, regarding, saying, count).await {
            tracing::warn!(%error, "an event could not be written");
        }
    }

    async fn write(
        &self,
        name: String,
        regarding: ObjectReference,
        saying: Saying,
        count: i32,
    ) -> Result<(), kube::Error> {
        // Events of cluster-scoped objects live in the namespace default.
        let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let now = MicroTime(Timestamp::now());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace),
                ..Default::default()
            },
            action: Some(saying.reason.to_owned()),
            event_time: Some(now.clone()),
            note: Some(shorten(&saying.note)),
            reason: Some(saying.reason.to_owned()),
            regarding: Some(regarding),
            reporting_controller: Some(self.component.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            series: None,
            type_: Some(
                match saying.severity {
                    Severity::Normal => "Normal",
                    Severity::Warning => "Warning",
                }
                .to_owned(),
            ),
            ..Default::default()
        };
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let series = EventSeries {
                    count: count.saturating_add(1),
                    last_observed_time: now,
                };
                let patch = Patch::Merge(serde_json::json!({ "series": series }));
                api.patch(&event.name_any(), &PatchParams::default(), &patch)
                    .await
                    .map(|_| ())
            }
            // An object in a namespace that is being deleted gets no more events.
            Err(kube::Error::Api(status)) if status.is_forbidden() && status.message.contains("being terminated") => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// A place as events name it: one of up to 128 bytes as it is, a longer one cut, with a hash of all of it. A node's name
/// has up to 253.
fn instance_name(place: &str) -> String {
    if place.len() <= INSTANCE_MAX {
        return place.to_owned();
    }
    let hash = short_hash(&[place]);
    let kept: String = place.chars().take(INSTANCE_MAX - 1 - hash.len()).collect();
    format!("{kept}-{hash}")
}

/// Sixteen hexadecimal digits that tell texts apart.
fn short_hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let bytes = hash.finalize();
    bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn event_name(regarding: &ObjectReference, saying: &Saying) -> String {
    let short = short_hash(&[
        regarding.uid.as_deref().unwrap_or_default(),
        saying.reason,
        &saying.note,
    ]);
    let object: String = regarding
        .name
        .as_deref()
        .unwrap_or("object")
        .chars()
        .take(253 - 17)
        .collect();
    format!("{}.{short}", object.trim_end_matches(['.', '-']))
}

fn shorten(note: &str) -> String {
    if note.len() <= NOTE_MAX {
        return note.to_owned();
    }
    let end = (0..=NOTE_MAX - '…'.len_utf8())
        .rev()
        .find(|index| note.is_char_boundary(*index))
        .unwrap_or(0);
    format!("{}…", &note[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_what_is_said() {
        let object = ObjectReference {
            name: Some("data".into()),
            uid: Some("u".into()),
            ..Default::default()
        };
        let name = event_name(&object, &Saying::warning("ProvisioningFailed", "no room"));
        assert_eq!(
            name,
            event_name(&object, &Saying::warning("ProvisioningFailed", "no room"))
        );
        assert_ne!(
            name,
            event_name(&object, &Saying::warning("ProvisioningFailed", "no disk"))
        );
        assert!(name.starts_with("data.") && name.len() == "data.".len() + 16);
    }

    #[test]
    fn the_name_of_a_place_is_one_that_kubernetes_accepts() {
        let longest = "n".repeat(128);
        assert_eq!(instance_name(&longest), longest);
        let (one, other) = (format!("{longest}.a"), format!("{longest}.b"));
        assert_eq!(instance_name(&one).len(), 128);
        assert_ne!(instance_name(&one), instance_name(&other));
        // What the policy quarry-manager-events allows.
        assert!(instance_name(&one).starts_with(&one[..100]));
    }

    #[test]
    fn long_notes_are_cut_at_a_character() {
        assert!(shorten(&"é".repeat(2000)).len() <= NOTE_MAX);
    }
}
