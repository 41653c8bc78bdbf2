//! Nodes that refused to make a volume for another reason than room.
//!
//! Room is published, so that nobody sends a claim where there is none. What else LVM refuses is not: the node with the
//! most room would be chosen again and again. So the claim carries who refused it, and how often, and each of these nodes
//! is left alone for a time that grows. Where a volume group refuses one claim after another, it is not fit for volumes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use crate::names::REFUSED_BY_ANNOTATION;

/// How long a node is left alone after its first refusal: longer than kube-scheduler waits between attempts.
const FIRST: Duration = Duration::from_secs(15);
/// And at most.
const LONGEST: Duration = Duration::from_secs(300);
/// At most so many nodes are remembered on a claim, the last ones.
const NODES_MAX: usize = 64;
/// So many claims in turn have to be refused before their volume group counts as unfit.
const CLAIMS: usize = 3;
/// How long an unfit volume group is left alone at first.
const FIRST_TRIAL: Duration = Duration::from_secs(30);

/// Which nodes refused a claim, and how often: oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals(Vec<(Box<str>, u32)>);

impl Refusals {
    /// What a claim says. What is not understood counts as nothing.
    #[must_use]
    pub fn of(claim: &PersistentVolumeClaim) -> Self {
        let annotations = claim.metadata.annotations.as_ref();
        let text = annotations.and_then(|all| all.get(REFUSED_BY_ANNOTATION));
        let parts = text.map(String::as_str).unwrap_or_default().split(',');
        let read = |part: &str| {
            let (node, count) = part.split_once('=')?;
            let count = count.parse().ok().filter(|count| *count > 0)?;
            (!node.is_empty()).then(|| (Box::<str>::from(node), count))
        };
        let mut all: Vec<_> = parts.filter_map(read).collect();
        all.drain(..all.len().saturating_sub(NODES_MAX));
        Self(all)
    }

    /// Whether no node refused the claim.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each node, and how often it refused.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.0.iter().map(|(node, count)| (&**node, *count))
    }

    /// How often a node refused.
    #[must_use]
    pub fn by(&self, node: &str) -> u32 {
        self.iter()
            .find(|(name, _)| *name == node)
            .map_or(0, |(_, count)| count)
    }

    /// With one more refusal by a node, which is the last one then.
    #[must_use]
    pub fn with(mut self, node: &str) -> Self {
        let count = self.by(node).saturating_add(1);
        self.0.retain(|(name, _)| **name != *node);
        self.0.push((node.into(), count));
        let over = self.0.len().saturating_sub(NODES_MAX);
        self.0.drain(..over);
        self
    }

    /// As it is written on a claim.
    #[must_use]
    pub fn to_text(&self) -> String {
        let parts: Vec<String> = self.iter().map(|(node, count)| format!("{node}={count}")).collect();
        parts.join(",")
    }
}

/// How long a node is left alone that has refused a claim so often.
#[must_use]
pub fn pause(count: u32) -> Duration {
    doubled(FIRST, count)
}

fn doubled(first: Duration, count: u32) -> Duration {
    let steps = count.saturating_sub(1).min(16);
    first.saturating_mul(1 << steps).min(LONGEST)
}

/// What LVM refused in one volume group since it last made a volume there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupRefusals {
    claims: BTreeSet<String>,
    /// How often the group was found unfit in turn, and until when it is left alone.
    trials: u32,
    until: Option<Instant>,
    said: String,
}

impl GroupRefusals {
    /// LVM refused a claim. Where the group has become unfit by that: how long it is left alone.
    pub fn refused(&mut self, claim_uid: &str, said: &str, now: Instant) -> Option<Duration> {
        if self.claims.len() < CLAIMS {
            self.claims.insert(claim_uid.to_owned());
        }
        said.clone_into(&mut self.said);
        // Those that were under way already say nothing new.
        if self.claims.len() < CLAIMS || self.until.is_some_and(|until| now < until) {
            return None;
        }
        self.trials = self.trials.saturating_add(1);
        let pause = doubled(FIRST_TRIAL, self.trials);
        self.until = Some(now + pause);
        Some(pause)
    }

    /// LVM's words, while the group is left alone. After that one more claim shows whether it is fit again.
    #[must_use]
    pub fn unfit(&self, now: Instant) -> Option<&str> {
        self.until
            .is_some_and(|until| now < until)
            .then_some(self.said.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Refusals {
        let claim = json!({"metadata": {"name": "c", "annotations": {REFUSED_BY_ANNOTATION: text}}});
        Refusals::of(&serde_json::from_value(claim).expect("a claim"))
    }

    #[test]
    fn what_is_written_is_read_again() {
        let refusals = Refusals::default().with("w1").with("w2").with("w1");
        assert_eq!(refusals.to_text(), "w2=1,w1=2");
        assert_eq!(read(&refusals.to_text()), refusals);
        assert_eq!((refusals.by("w1"), refusals.by("w2"), refusals.by("w3")), (2, 1, 0));
    }

    #[test]
    fn what_anybody_may_have_written_does_no_harm() {
        for text in [
            "",
            ",",
            "w1",
            "w1=",
            "=1",
            "w1=0",
            "w1=-1",
            "w1=99999999999999999999",
            "ü=ü",
        ] {
            assert!(read(text).is_empty(), "{text}");
        }
        assert_eq!(read("w1=4294967295").with("w1").by("w1"), u32::MAX);
        let many: Vec<String> = (0..1000).map(|node| format!("w{node}=1")).collect();
        let many = read(&many.join(",")).with("w0");
        assert_eq!((many.iter().count(), many.by("w999"), many.by("w0")), (NODES_MAX, 1, 1));
    }

    #[test]
    fn a_node_is_left_alone_longer_each_time_and_never_for_good() {
        let pauses: Vec<u64> = (1..8).map(|count| pause(count).as_secs()).collect();
        assert_eq!(pauses, [15, 30, 60, 120, 240, 300, 300]);
        assert_eq!(pause(u32::MAX), LONGEST);
    }

    #[test]
    fn a_group_is_unfit_after_several_claims_and_is_tried_again() {
        let (mut group, begun) = (GroupRefusals::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        for _ in 0..10 {
            assert_eq!(group.refused("a", "no", at(0)), None, "one claim alone may be odd");
        }
        assert_eq!(group.refused("b", "no", at(0)), None);
        assert_eq!(group.unfit(at(0)), None);
        assert_eq!(group.refused("c", "no more", at(0)), Some(Duration::from_secs(30)));
        assert_eq!(group.unfit(at(29)), Some("no more"));
        assert_eq!(group.refused("d", "no", at(29)), None, "it was under way");
        assert_eq!(group.unfit(at(30)), None, "one may try");
        assert_eq!(group.refused("d", "still no", at(31)), Some(Duration::from_secs(60)));
        assert_eq!(group.unfit(at(90)), Some("still no"));
    }
}
