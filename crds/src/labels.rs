//! Label values and label selectors, as Kubernetes defines them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use sha2::{Digest, Sha256};

/// A text as a label value: itself where it is at most 63 characters, else its head and a hash.
/// Names of nodes and classes have a label value's characters, but may be longer.
#[must_use]
pub fn value(text: &str) -> String {
    if text.len() <= 63 {
        return text.to_owned();
    }
    let digest = Sha256::digest(text.as_bytes());
    let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let head: String = text.chars().take(63 - 17).collect();
    format!("{}-{short}", head.trim_end_matches(['.', '-', '_']))
}

/// Whether a label selector matches a set of labels. An empty selector matches everything; an unknown operator
/// matches nothing.
#[must_use]
pub fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let found = labels.get(&requirement.key);
            let values = requirement.values.as_deref().unwrap_or_default();
            match requirement.operator.as_str() {
                "In" => found.is_some_and(|value| values.contains(value)),
                "NotIn" => found.is_none_or(|value| !values.contains(value)),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;

    fn expression(key: &str, operator: &str, values: &[&str]) -> LabelSelector {
        LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
            }]),
            match_labels: None,
        }
    }

    #[test]
    fn selectors() {
        let labels = BTreeMap::from([("pool".to_owned(), "nvme".to_owned())]);
        assert!(matches(&LabelSelector::default(), &labels));
        for (key, operator, values, expected) in [
            ("pool", "In", vec!["nvme", "ssd"], true),
            ("pool", "In", vec!["ssd"], false),
            ("zone", "In", vec!["nvme"], false),
            ("pool", "NotIn", vec!["nvme"], false),
            ("zone", "NotIn", vec!["nvme"], true),
            ("pool", "Exists", vec![], true),
            ("zone", "DoesNotExist", vec![], true),
            ("pool", "Matches", vec!["nvme"], false),
        ] {
            assert_eq!(
                matches(&expression(key, operator, &values), &labels),
                expected,
                "{key} {operator} {values:?}"
            );
        }
    }

    #[test]
    fn long_values_are_legal() {
        let long = value(&"n.".repeat(100));
        assert!(long.len() <= 63);
        assert_eq!(value("node-1"), "node-1");
    }
}
