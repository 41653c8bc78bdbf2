//! What was said of objects, in events.

use std::time::Duration;

use anyhow::{Result, anyhow};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::SignedDuration;
use kube::Api;
use kube::api::ListParams;
use quarry_crds::names::EVENT_COMPONENT;

use crate::test::Test;

impl Test {
    /// What was said of an object: reason and note of each event.
    ///
    /// # Errors
    /// The API server did not answer.
    pub async fn said_of(&self, kind: &str, name: &str) -> Result<Vec<(String, String)>> {
        let namespace = if matches!(kind, "Pod" | "PersistentVolumeClaim") {
            &self.name
        } else {
            "default"
        };
        let events: Api<Event> = Api::namespaced(self.client(), namespace);
        let list = events.list(&ListParams::default()).await?;
        let of = |event: &Event| {
            let regarding = event.regarding.clone().unwrap_or_default();
            // Events outlive their objects: those of a former run are not meant.
            let made = event.metadata.creation_timestamp.as_ref().map(|time| time.0);
            let now = made.is_none_or(|made| made + SignedDuration::from_secs(2) > self.begun);
            now && regarding.kind.as_deref() == Some(kind) && regarding.name.as_deref() == Some(name)
        };
        Ok(list
            .items
            .into_iter()
            .filter(of)
            .map(|event| (event.reason.unwrap_or_default(), event.note.unwrap_or_default()))
            .collect())
    }

    /// Waits until an event of an object has all of these parts in its reason and note together.
    ///
    /// # Errors
    /// It took more than a minute; the text has what was said instead.
    pub async fn said(&self, kind: &str, name: &str, parts: &[&str]) -> Result<String> {
        let found = self
            .wait(
                &format!("{kind} {name} told {parts:?}"),
                Duration::from_secs(60),
                || async {
                    let events = self.said_of(kind, name).await?;
                    let text = |(reason, note): (String, String)| format!("{reason}: {note}");
                    Ok(events
                        .into_iter()
                        .map(text)
                        .find(|text| parts.iter().all(|part| text.contains(part))))
                },
            )
            .await;
        match found {
            Ok(text) => Ok(text),
            Err(error) => Err(anyhow!("{error}; said was {:#?}", self.said_of(kind, name).await?)),
        }
    }

    /// What the managers said of claims of the test for which they made no volume. kube-controller-manager has the same
    /// reason for requests of its own that fail, such as for a claim that is gone.
    ///
    /// # Errors
    /// The API server did not answer.
    pub async fn given_back(&self) -> Result<Vec<String>> {
        let events: Api<Event> = Api::namespaced(self.client(), &self.name);
        let failed = ListParams::default().fields("reason=ProvisioningFailed");
        let events = events.list(&failed).await?.items.into_iter();
        let ours = events.filter(|event| event.reporting_controller.as_deref() == Some(EVENT_COMPONENT));
        Ok(ours.filter_map(|event| event.note).collect())
    }
}
