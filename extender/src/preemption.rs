//! What kube-scheduler sends before it evicts pods, and expects (k8s.io/kube-scheduler `extender/v1`): on which nodes that
//! would help.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::api::{Metadata, Pod};

/// `ExtenderPreemptionArgs`: a pod, and by node the pods that would have to go for it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PreemptionArgs<'a> {
    /// The pod.
    #[serde(borrow)]
    pub pod: Pod<'a>,
    /// With pods as objects, where the scheduler is configured with `nodeCacheCapable: false`.
    #[serde(borrow, default)]
    pub node_name_to_victims: Option<BTreeMap<String, Victims<'a>>>,
    /// With pods by UID, where it is configured with `nodeCacheCapable: true`.
    #[serde(borrow, default)]
    pub node_name_to_meta_victims: Option<BTreeMap<String, MetaVictims<'a>>>,
}

/// `Victims`: the pods of a node that would have to go.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Victims<'a> {
    /// These.
    #[serde(borrow, default)]
    pub pods: Option<Vec<Victim<'a>>>,
    /// How many PodDisruptionBudgets that would violate.
    #[serde(rename = "NumPDBViolations", default)]
    pub violations: i64,
}

/// What is needed of a pod that would have to go.
#[derive(Debug, Deserialize)]
pub struct Victim<'a> {
    /// Who it is.
    #[serde(borrow)]
    pub metadata: Metadata<'a>,
}

/// `MetaVictims`: the same by UID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MetaVictims<'a> {
    /// These.
    #[serde(borrow, default)]
    pub pods: Option<Vec<MetaPod<'a>>>,
    /// How many PodDisruptionBudgets that would violate.
    #[serde(rename = "NumPDBViolations", default)]
    pub violations: i64,
}

/// `MetaPod`: a pod by UID.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaPod<'a> {
    /// Its UID.
    #[serde(borrow, rename = "UID")]
    pub uid: Cow<'a, str>,
}

impl PreemptionArgs<'_> {
    /// The pods that would have to go, by node, however they were sent.
    #[must_use]
    pub fn candidates(&self) -> BTreeMap<&String, MetaVictims<'_>> {
        if let Some(candidates) = &self.node_name_to_meta_victims {
            return candidates
                .iter()
                .map(|(name, victims)| (name, victims.clone()))
                .collect();
        }
        let candidates = self.node_name_to_victims.iter().flatten();
        let meta = candidates.map(|(name, victims)| {
            let pods = victims.pods.iter().flatten().map(|victim| MetaPod {
                uid: Cow::Borrowed(&*victim.metadata.uid),
            });
            let victims = MetaVictims {
                pods: Some(pods.collect()),
                violations: victims.violations,
            };
            (name, victims)
        });
        meta.collect()
    }
}

/// `ExtenderPreemptionResult`: the nodes where evicting these pods helps.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PreemptionResult<'a> {
    node_name_to_meta_victims: BTreeMap<&'a str, &'a MetaVictims<'a>>,
}

impl<'a> PreemptionResult<'a> {
    /// Those of the candidates whose names are to be kept.
    #[must_use]
    pub fn of(candidates: &'a BTreeMap<&'a String, MetaVictims<'a>>, keep: impl Fn(&str) -> bool) -> Self {
        let kept = candidates.iter().filter(|(name, _)| keep(name));
        Self {
            node_name_to_meta_victims: kept.map(|(name, victims)| (name.as_str(), victims)).collect(),
        }
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.node_name_to_meta_victims.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.node_name_to_meta_victims.is_empty()
    }
}
