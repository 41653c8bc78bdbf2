//! Readiness: the process is ready once each of its named parts is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Whether the parts of a process are ready. Clones share the same parts.
#[derive(Debug, Clone, Default)]
pub struct Ready {
    parts: Arc<Mutex<BTreeMap<String, bool>>>,
}

/// One part that has to become ready.
#[derive(Debug, Clone)]
pub struct Part {
    name: String,
    ready: Ready,
}

impl Ready {
    /// Nothing to wait for yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Names a part that has to become ready; until then the process is not.
    #[must_use]
    pub fn part(&self, name: impl Into<String>) -> Part {
        let part = Part {
            name: name.into(),
            ready: self.clone(),
        };
        part.unset();
        part
    }

    /// The parts that are not ready.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts
            .iter()
            .filter(|(_, ready)| !**ready)
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn put(&self, name: &str, ready: bool) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.insert(name.to_owned(), ready);
    }
}

impl Part {
    /// It is ready.
    pub fn set(&self) {
        self.ready.put(&self.name, true);
    }

    /// It is not, or no longer, ready.
    pub fn unset(&self) {
        self.ready.put(&self.name, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_every_part_is() {
        let ready = Ready::new();
        assert!(ready.missing().is_empty());
        let (pods, nodes) = (ready.part("watch: pods"), ready.clone().part("watch: nodes"));
        pods.set();
        assert_eq!(ready.missing(), ["watch: nodes"]);
        nodes.set();
        assert!(ready.missing().is_empty());
        pods.unset();
        assert_eq!(ready.missing(), ["watch: pods"]);
    }
}
