//! What is counted: the commands of a manager, as its metrics have them, and the requests of ours.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use quarry_e2e::test::Test;

use crate::volumes::NODE;

/// What the manager of the node says of itself: how many commands it has run, and for how many seconds, by command; and
/// how many volumes it has made, and for how many seconds.
pub(crate) struct Metrics {
    /// How many, by command.
    pub(crate) counts: BTreeMap<String, f64>,
    /// For how many seconds, by command.
    pub(crate) seconds: BTreeMap<String, f64>,
}

impl Metrics {
    fn read(text: &str) -> Result<Self> {
        let (mut counts, mut seconds) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            let of = |kind: &str| line.strip_prefix(&format!("quarry_lvm_command_seconds_{kind}{{"));
            let (rest, sums) = match (of("count"), of("sum")) {
                (Some(rest), _) => (rest, &mut counts),
                (_, Some(rest)) => (rest, &mut seconds),
                _ => continue,
            };
            let (labels, value) = rest.rsplit_once(' ').context("a metric without a value")?;
            let command = labels
                .split("command=\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            let command = command.context("a metric without its command")?.to_owned();
            *sums.entry(command).or_default() += value.parse::<f64>()?;
        }
        for (kind, sums) in [("count", &mut counts), ("sum", &mut seconds)] {
            let name = format!("quarry_provision_seconds_{kind} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&name));
            sums.insert(PROVISION.to_owned(), value.unwrap_or("0").parse()?);
        }
        Ok(Self { counts, seconds })
    }
}

/// Under this name, what a volume takes as a whole is kept beside the commands.
pub(crate) const PROVISION: &str = "provision";

/// As the manager of the node says now.
///
/// # Errors
/// It does not answer as it should.
pub(crate) async fn metrics(test: &Test) -> Result<Metrics> {
    Metrics::read(&test.manager_metrics(NODE).await?)
}

/// Whether a command reads only.
pub(crate) fn is_reading(command: &str) -> bool {
    ![
        "lvcreate", "lvremove", "lvchange", "lvextend", "vgchange", "vgcreate", "vgextend", "vgremove", "pvcreate",
    ]
    .iter()
    .any(|changing| command.contains(changing))
}

/// What has grown, and by how much.
pub(crate) fn difference(after: &BTreeMap<String, f64>, before: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    after
        .iter()
        .map(|(what, count)| (what.clone(), count - before.get(what).copied().unwrap_or_default()))
        .filter(|(_, count)| *count > 0.0)
        .collect()
}

/// Both together.
pub(crate) fn merge(one: &BTreeMap<String, f64>, other: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let mut sum = one.clone();
    for (what, count) in other {
        *sum.entry(what.clone()).or_default() += count;
    }
    sum
}

/// The sum of some.
pub(crate) fn sum(counts: &BTreeMap<String, f64>, of: impl Fn(&str) -> bool) -> f64 {
    // None at all is 0 here, and -0 where it is summed.
    counts
        .iter()
        .filter(|(what, _)| of(what))
        .fold(0.0, |sum, (_, count)| sum + count)
}

/// For people, each divided by a number.
pub(crate) fn list(counts: &BTreeMap<String, f64>, of: f64) -> String {
    let each: Vec<_> = counts
        .iter()
        .map(|(what, count)| format!("{what} {:.2}", count / of))
        .collect();
    each.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_by_command() {
        let text = "quarry_lvm_command_seconds_sum{command=\"lvcreate\",outcome=\"ok\"} 0.5\n\
            quarry_lvm_command_seconds_count{command=\"lvcreate\",outcome=\"ok\"} 2\n\
            quarry_lvm_command_seconds_count{command=\"lvcreate\",outcome=\"failed\"} 1\n\
            quarry_provision_seconds_sum 0.75\nquarry_provision_seconds_count 2\n";
        let metrics = Metrics::read(text).expect("metrics");
        assert_eq!(list(&metrics.counts, 1.0), "lvcreate 3.00, provision 2.00");
        assert_eq!(list(&metrics.seconds, 1.0), "lvcreate 0.50, provision 0.75");
    }
}
