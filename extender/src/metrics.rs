//! Metrics of the extender. No name of a claim or pod is ever a label.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::decide::{Answer, Cause, Doubt};
use crate::handlers::Extender;
use crate::index::Kind;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerbLabel {
    verb: &'static str,
}

/// What kube-scheduler asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Which nodes have room.
    Filter,
    /// How good each is.
    Prioritize,
    /// Where pods may be evicted.
    Preempt,
}

impl Verb {
    const ALL: [Self; 3] = [Self::Filter, Self::Prioritize, Self::Preempt];

    /// As in the path of a request.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Prioritize => "prioritize",
            Self::Preempt => "preempt",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Watched {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Action {
    action: &'static str,
}

/// What the extender counts.
#[derive(Debug, Clone)]
pub struct Metrics {
    durations: Family<VerbLabel, Histogram, fn() -> Histogram>,
    /// The same by verb, so that no request has to look for its own.
    by_verb: [Histogram; Verb::ALL.len()],
    rejections: Family<Reason, Counter>,
    waits: Family<Reason, Counter>,
    watch_failures: Family<Watched, Counter>,
    clean_ups: Family<Action, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let durations: Family<VerbLabel, Histogram, fn() -> Histogram> = Family::new_with_constructor(|| {
            Histogram::new([
                0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
            ])
        });
        let of = |verb: Verb| durations.get_or_create(&VerbLabel { verb: verb.as_str() }).clone();
        Self {
            by_verb: Verb::ALL.map(of),
            durations,
            rejections: Family::default(),
            waits: Family::default(),
            watch_failures: Family::default(),
            clean_ups: Family::default(),
        }
    }
}

impl Metrics {
    /// A request was served.
    pub fn served(&self, verb: Verb, time: Duration) {
        self.by_verb[verb as usize].observe(time.as_secs_f64());
    }

    /// A pod was answered: each reason in the answer counts once.
    pub fn answered(&self, answer: &Answer) {
        let reasons: BTreeSet<&'static str> = match answer {
            Answer::All => return,
            Answer::Some { reasons, .. } => reasons.iter().map(|reason| reason.cause.as_str()).collect(),
            Answer::Error(doubt, _) => [doubt.as_str()].into(),
        };
        for reason in reasons {
            self.rejections.get_or_create(&Reason { reason }).inc();
        }
    }

    /// An answer waits for the watches.
    pub fn waited(&self, doubt: Doubt) {
        let reason = doubt.as_str();
        self.waits.get_or_create(&Reason { reason }).inc();
    }

    /// A watch failed, and will be tried again.
    pub fn watch_failed(&self, kind: Kind) {
        let kind = kind.as_str();
        self.watch_failures.get_or_create(&Watched { kind }).inc();
    }

    /// Something was done about an object of a node that is gone.
    pub fn cleaned_up(&self, action: &'static str) {
        self.clean_ups.get_or_create(&Action { action }).inc();
    }
}

impl Cause {
    /// As metrics name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidClaim => "invalid_claim",
            Self::InvalidClass => "invalid_class",
            Self::OtherNode => "other_node",
            Self::NotInClass => "not_in_class",
            Self::NotReady => "storage_not_ready",
            Self::Silent => "manager_silent",
            Self::MetadataFull => "metadata_full",
            Self::NoRoom => "no_room",
            Self::Crowded => "crowded",
            Self::Refused => "refused",
            Self::Repeated => "repeated",
        }
    }
}

impl Doubt {
    const fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "caches_not_filled",
            Self::Unseen => "unseen",
            Self::Crowded => "crowded",
        }
    }
}

/// Adds the metrics of an extender.
pub fn register(registry: &mut Registry, extender: &Arc<Extender>) {
    let metrics = &extender.metrics;
    let registry = registry.sub_registry_with_prefix("quarry_extender");
    registry.register_with_unit(
        "request_duration",
        "Time to answer kube-scheduler, waits for the watches included",
        Unit::Seconds,
        metrics.durations.clone(),
    );
    registry.register(
        "rejections",
        "Pods for which at least one node was refused for this reason, or no answer was given",
        metrics.rejections.clone(),
    );
    registry.register(
        "waits",
        "Times that an answer waited for the watches",
        metrics.waits.clone(),
    );
    registry.register(
        "watch_failures",
        "Failures of watches, each tried again",
        metrics.watch_failures.clone(),
    );
    registry.register(
        "lost_node_actions",
        "What was done about objects of nodes that are gone",
        metrics.clean_ups.clone(),
    );
    registry.register_collector(Box::new(Live(Arc::clone(extender))));
}

/// What is read from the index at each scrape.
struct Live(Arc<Extender>);

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Live")
    }
}

struct InFlight {
    labels: [(&'static str, String); 2],
    extents: u64,
    bytes: u64,
    claims: u64,
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, series: &[(Vec<(&'static str, String)>, u64)]| {
            let kind = ConstGauge::new(0_u64).metric_type();
            let mut encoder = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, value) in series {
                let value = ConstGauge::new(*value);
                if labels.is_empty() {
                    value.encode(encoder)?;
                    break;
                }
                value.encode(encoder.encode_family(labels)?)?;
            }
            Ok(())
        };
        let objects: Vec<_> = Kind::ALL
            .map(|kind| {
                let count = u64::try_from(self.0.count(kind)).unwrap_or(u64::MAX);
                (vec![("kind", kind.as_str().to_owned())], count)
            })
            .into();
        gauge("index_objects", "Objects in the index", &objects)?;
        let outstanding = u64::try_from(self.0.outstanding()).unwrap_or(u64::MAX);
        gauge(
            "outstanding_pods",
            "Pods answered whose node is not known yet",
            &[(vec![], outstanding)],
        )?;
        let silent = u64::try_from(self.0.read(crate::index::Index::silent)).unwrap_or(u64::MAX);
        gauge(
            "silent_managers",
            "Nodes whose manager was not heard of for long: no new volumes are placed there",
            &[(vec![], silent)],
        )?;
        let in_flight = self.0.read(in_flight);
        for (name, help, value) in [
            (
                "in_flight_extents",
                "Extents of a volume group promised to claims on their way",
                (|of: &InFlight| of.extents) as fn(&InFlight) -> u64,
            ),
            ("in_flight_bytes", "The same in bytes", |of| of.bytes),
            ("in_flight_claims", "Claims on their way to a volume group", |of| {
                of.claims
            }),
        ] {
            let series: Vec<_> = in_flight.iter().map(|of| (of.labels.to_vec(), value(of))).collect();
            gauge(name, help, &series)?;
        }
        Ok(())
    }
}

/// Volume groups that claims are on their way to; those without any are left out, so that the series stay few.
fn in_flight(index: &crate::index::Index) -> Vec<InFlight> {
    let groups = index
        .nodes()
        .flat_map(|node| node.groups().iter().map(move |group| (node, group)));
    groups
        .filter(|(_, group)| group.claims > 0)
        .map(|(node, group)| InFlight {
            labels: [("node", node.name.to_string()), ("vg", group.name.clone())],
            extents: group.in_flight.0,
            bytes: group
                .extent_size
                .size_of(group.in_flight)
                .map_or(u64::MAX, |bytes| bytes.0),
            claims: u64::try_from(group.claims).unwrap_or(u64::MAX),
        })
        .collect()
}
