//! What kube-scheduler would have against a node for a volume that no pod chooses the node of (binding mode Immediate).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::api::storage::v1::StorageClass;

/// Why a volume of a class should not be made on a node now, for people; `None` where nothing is against it. There is no
/// pod that could tolerate a taint.
#[must_use]
pub fn against(node: &Node, class: &StorageClass) -> Option<String> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if node.metadata.deletion_timestamp.is_some() {
        return Some(format!("node {name} is being deleted"));
    }
    let spec = node.spec.as_ref();
    if spec.and_then(|spec| spec.unschedulable) == Some(true) {
        return Some(format!("node {name} is cordoned"));
    }
    let mut taints = spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten();
    if let Some(taint) = taints.find(|taint| repels(taint)) {
        return Some(format!("node {name} has the taint {}:{}", taint.key, taint.effect));
    }
    if readiness(node).is_some_and(|status| status != "True") {
        return Some(format!("node {name} is not ready"));
    }
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    (!is_allowed(class, labels)).then(|| format!("allowedTopologies of the class leave node {name} out"))
}

/// What of a node [`against`] goes by: where it stays the same, nothing has to be decided anew.
#[must_use]
pub fn fingerprint(node: &Node) -> String {
    let spec = node.spec.as_ref();
    format!(
        "{:?}{:?}{:?}{:?}{:?}",
        node.metadata.labels,
        spec.and_then(|spec| spec.taints.as_ref()),
        spec.and_then(|spec| spec.unschedulable),
        node.metadata.deletion_timestamp.is_some(),
        readiness(node),
    )
}

fn repels(taint: &Taint) -> bool {
    matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
}

/// The status of the node's condition Ready. One that has none yet has a taint for that.
fn readiness(node: &Node) -> Option<&str> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    Some(&ready.status)
}

/// Whether a class allows a node of these labels (k8s.io/component-helpers `MatchTopologySelectorTerms`): terms are
/// or-ed, what a term says is and-ed.
fn is_allowed(class: &StorageClass, labels: &BTreeMap<String, String>) -> bool {
    let terms = class.allowed_topologies.as_deref().unwrap_or_default();
    let fits = |key: &str, values: &[String]| labels.get(key).is_some_and(|value| values.contains(value));
    terms.is_empty()
        || terms.iter().any(|term| {
            let said = term.match_label_expressions.as_deref().unwrap_or_default();
            // A term that says nothing matches nothing.
            !said.is_empty() && said.iter().all(|one| fits(&one.key, &one.values))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(spec: Value, ready: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "w1", "labels": {"zone": "a", "rack": "r1"}}, "spec": spec,
            "status": {"conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": ready}]},
        }))
        .expect("a node")
    }

    fn class(terms: Value) -> StorageClass {
        serde_json::from_value(json!({"metadata": {"name": "fast"}, "provisioner": "p", "allowedTopologies": terms}))
            .expect("a class")
    }

    fn term(pairs: &[(&str, &[&str])]) -> Value {
        let said: Vec<Value> = pairs
            .iter()
            .map(|(key, values)| json!({"key": key, "values": values}))
            .collect();
        json!({"matchLabelExpressions": said})
    }

    #[test]
    fn a_node_that_a_scheduler_would_leave_out_is_left_out() {
        let taint = |effect: &str| json!({"taints": [{"key": "k", "effect": effect}]});
        let any = class(json!(null));
        for (spec, ready, expected) in [
            (json!({}), "True", None),
            (json!({"unschedulable": false}), "True", None),
            (json!({"unschedulable": true}), "True", Some("cordoned")),
            (taint("NoSchedule"), "True", Some("taint k:NoSchedule")),
            (taint("NoExecute"), "True", Some("taint k:NoExecute")),
            (taint("PreferNoSchedule"), "True", None),
            (json!({}), "False", Some("not ready")),
            (json!({}), "Unknown", Some("not ready")),
        ] {
            let said = against(&node(spec.clone(), ready), &any);
            assert_eq!(said.is_some(), expected.is_some(), "{spec} {ready}: {said:?}");
            assert!(said.unwrap_or_default().contains(expected.unwrap_or_default()));
        }
    }

    #[test]
    fn topologies_are_asked_as_kubernetes_asks_them() {
        let w1 = node(json!({}), "True");
        for (terms, allowed) in [
            (json!([]), true),
            (json!([term(&[("zone", &["a", "b"])])]), true),
            (json!([term(&[("zone", &["b"])])]), false),
            (json!([term(&[("zone", &["b"])]), term(&[("rack", &["r1"])])]), true),
            (json!([term(&[("zone", &["a"]), ("rack", &["r2"])])]), false),
            (json!([term(&[("row", &["a"])])]), false),
            (json!([term(&[])]), false),
        ] {
            assert_eq!(against(&w1, &class(terms.clone())).is_none(), allowed, "{terms}");
        }
    }

    #[test]
    fn what_is_asked_of_a_node_is_seen_to_change() {
        let before = fingerprint(&node(json!({}), "True"));
        assert_eq!(before, fingerprint(&node(json!({"podCIDR": "10.0.0.0/24"}), "True")));
        for (spec, ready) in [
            (json!({"unschedulable": true}), "True"),
            (json!({"taints": [{"key": "k", "effect": "NoSchedule"}]}), "True"),
            (json!({}), "False"),
        ] {
            assert_ne!(before, fingerprint(&node(spec, ready)));
        }
    }
}
