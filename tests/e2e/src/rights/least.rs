//! What the ServiceAccounts and the processes of Quarry may do: exactly what they need.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authorization::v1::{SelfSubjectRulesReview, SubjectAccessReview};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use super::thief::Thief;
use crate::bed::NAMESPACE;
use crate::case;
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[
    case!(service_accounts_may_do_no_more_than_they_need),
    case!(processes_have_no_more_than_they_need),
];

/// Group and resource, with `:name` where a rule is for one object → verbs.
type Rules = BTreeMap<String, BTreeSet<String>>;

const READ: &[&str] = &["get", "list", "watch"];

/// What every ServiceAccount may do in each version of Kubernetes; newer ones allow a little more.
const EVERYONE: &[(&str, &[&str])] = &[
    ("authentication.k8s.io/selfsubjectreviews", &["create"]),
    ("authorization.k8s.io/selfsubjectaccessreviews", &["create"]),
    ("authorization.k8s.io/selfsubjectrulesreviews", &["create"]),
];

const MANAGER: &[(&str, &[&str])] = &[
    ("/namespaces:kube-system", &["get"]),
    ("/nodes", &["get", "list", "watch", "patch"]),
    ("/persistentvolumeclaims", &["get", "list", "watch", "patch"]),
    (
        "/persistentvolumes",
        &["get", "list", "watch", "create", "patch", "delete"],
    ),
    ("events.k8s.io/events", &["create", "patch"]),
    (
        "quarry.dev/nodelocalstorages",
        &["list", "watch", "create", "patch", "delete"],
    ),
    ("quarry.dev/nodelocalstorages/status", &["patch"]),
    ("storage.k8s.io/storageclasses", &["list", "watch"]),
];

const EXTENDER: &[(&str, &[&str])] = &[
    ("/nodes", READ),
    ("/persistentvolumeclaims", &["get", "list", "watch", "patch", "delete"]),
    ("/persistentvolumes", &["get", "list", "watch", "patch", "delete"]),
    ("events.k8s.io/events", &["create", "patch"]),
    ("quarry.dev/nodelocalstorages", &["get", "list", "watch", "delete"]),
    ("storage.k8s.io/storageclasses", &["list", "watch"]),
];

/// The manager's in its own namespace, besides.
const MANAGER_HERE: &[(&str, &[&str])] = &[("coordination.k8s.io/leases", &["create", "patch"])];

/// The extender's in its own namespace, besides.
const EXTENDER_HERE: &[(&str, &[&str])] = &[
    ("coordination.k8s.io/leases", &["create", "list", "watch"]),
    ("coordination.k8s.io/leases:quarry-cleanup", &["get", "patch"]),
    ("coordination.k8s.io/leases:quarry-scheduler-calls", &["patch"]),
];

/// Verb, group and resource that neither may have.
const NEVER: &[(&str, &str, &str)] = &[
    ("get", "", "secrets"),
    ("list", "", "secrets"),
    ("get", "", "configmaps"),
    ("create", "", "pods"),
    ("list", "", "pods"),
    ("create", "", "pods/exec"),
    ("create", "", "pods/eviction"),
    ("create", "", "persistentvolumeclaims"),
    ("update", "", "persistentvolumeclaims"),
    ("patch", "", "persistentvolumeclaims/status"),
    ("update", "", "persistentvolumes"),
    ("deletecollection", "", "persistentvolumes"),
    ("patch", "", "persistentvolumes/status"),
    ("delete", "", "nodes"),
    ("create", "", "nodes"),
    ("patch", "", "nodes/status"),
    ("get", "", "nodes/proxy"),
    ("create", "", "serviceaccounts/token"),
    ("impersonate", "", "users"),
    ("create", "storage.k8s.io", "storageclasses"),
    ("patch", "storage.k8s.io", "csistoragecapacities"),
    ("patch", "apps", "daemonsets"),
    ("escalate", "rbac.authorization.k8s.io", "clusterroles"),
    ("bind", "rbac.authorization.k8s.io", "clusterroles"),
    ("patch", "admissionregistration.k8s.io", "validatingadmissionpolicies"),
    (
        "delete",
        "admissionregistration.k8s.io",
        "validatingadmissionpolicybindings",
    ),
    ("patch", "apiextensions.k8s.io", "customresourcedefinitions"),
];

fn rules<'a>(rules: impl IntoIterator<Item = &'a (&'a str, &'a [&'a str])>) -> Rules {
    let text = |verbs: &[&str]| verbs.iter().map(|verb| (*verb).to_owned()).collect();
    rules
        .into_iter()
        .map(|(what, verbs)| ((*what).to_owned(), text(verbs)))
        .collect()
}

/// What a ServiceAccount may do in a namespace, by the API server's own word.
async fn may(thief: &Thief, namespace: &str) -> Result<Rules> {
    let reviews: Api<SelfSubjectRulesReview> = Api::all(thief.client());
    let asked = serde_json::from_value(json!({"metadata": {}, "spec": {"namespace": namespace}}))?;
    let answer = reviews.create(&PostParams::default(), &asked).await?;
    let status = answer.status.context("no answer")?;
    let mut found = Rules::new();
    for rule in status.resource_rules {
        let names = rule.resource_names.unwrap_or_default();
        let ends: Vec<String> = if names.is_empty() {
            vec![String::new()]
        } else {
            names.iter().map(|name| format!(":{name}")).collect()
        };
        for group in rule.api_groups.unwrap_or_default() {
            for resource in rule.resources.iter().flatten() {
                for end in &ends {
                    let verbs = found.entry(format!("{group}/{resource}{end}")).or_default();
                    verbs.extend(rule.verbs.iter().cloned());
                }
            }
        }
    }
    Ok(found)
}

/// Both ServiceAccounts have the rights that the code uses, to the verb, in every namespace, and no others.
async fn service_accounts_may_do_no_more_than_they_need(test: &Test) -> Result<()> {
    let manager = Thief::of_process(test, "node1", "quarry-manager").await?;
    let extender = Thief::of_process(test, "node1", "quarry-extender").await?;
    // What this version allows to whoever has a ServiceAccount.
    let token = test
        .bed
        .kubectl(&["-n", &test.name, "create", "token", "default"])
        .await?;
    let anybody = may(&Thief::with(test, token.trim()).await?, &test.name).await?;
    let expected = rules(EVERYONE.iter());
    ensure!(
        expected.keys().all(|of| anybody.contains_key(of)),
        "anybody: {anybody:#?}"
    );
    let with_anybody = |mut own: Rules| {
        own.extend(anybody.clone());
        own
    };
    for namespace in ["default", "kube-system", NAMESPACE] {
        let here = if namespace == NAMESPACE { MANAGER_HERE } else { &[] };
        let wanted = with_anybody(rules(MANAGER.iter().chain(here)));
        let found = may(&manager, namespace).await?;
        ensure!(found == wanted, "manager in {namespace}: {found:#?}");
        let here = if namespace == NAMESPACE { EXTENDER_HERE } else { &[] };
        let wanted = with_anybody(rules(EXTENDER.iter().chain(here)));
        let found = may(&extender, namespace).await?;
        ensure!(found == wanted, "extender in {namespace}: {found:#?}");
    }
    let reviews: Api<SubjectAccessReview> = Api::all(test.client());
    for account in ["quarry-manager", "quarry-extender"] {
        for (verb, group, resource) in NEVER {
            let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
            let asked = serde_json::from_value(json!({"metadata": {}, "spec": {
                "user": format!("system:serviceaccount:{NAMESPACE}:{account}"),
                "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{NAMESPACE}"),
                    "system:authenticated"],
                "resourceAttributes": {"verb": verb, "group": group, "resource": resource, "subresource": sub,
                    "namespace": NAMESPACE},
            }}))?;
            let answer = reviews.create(&PostParams::default(), &asked).await?;
            let allowed = answer.status.context("no answer")?.allowed;
            ensure!(!allowed, "{account} may {verb} {group}/{resource}/{sub}");
        }
    }
    println!("   {} rights that neither has", NEVER.len());
    Ok(())
}

/// Lines of `/proc/<pid>/status`.
async fn status(test: &Test, node: &str, program: &str) -> Result<(String, BTreeMap<String, String>)> {
    let node = test.bed.node(node)?;
    let process = node.run_ok(["pgrep", "-x", program]).await?.trim().to_owned();
    let text = node.run_ok(["cat", &format!("/proc/{process}/status")]).await?;
    let line = |line: &str| {
        let (key, value) = line.split_once(':')?;
        let words: Vec<&str> = value.split_whitespace().collect();
        Some((key.to_owned(), words.join(" ")))
    };
    Ok((process, text.lines().filter_map(line).collect()))
}

/// The extender is nobody, has no capability, gains none, has its calls filtered, and writes no file; the manager, which
/// needs root, writes no file of its image either.
async fn processes_have_no_more_than_they_need(test: &Test) -> Result<()> {
    let (extender, has) = status(test, "node1", "quarry-extender").await?;
    for (key, wanted) in [
        ("Uid", "65532 65532 65532 65532"),
        ("Gid", "65532 65532 65532 65532"),
        ("Groups", "65532"),
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        let found = has.get(key).map(String::as_str);
        println!("   extender: {key} {}", found.unwrap_or("-"));
        ensure!(found == Some(wanted), "{key} is {found:?}, not {wanted}");
    }
    let (manager, _) = status(test, "node1", "quarry-manager").await?;
    let node = test.bed.node("node1")?;
    for (program, process) in [("extender", extender), ("manager", manager)] {
        // By root of the node, whom no mode of a file keeps off.
        let path = format!("/proc/{process}/root/written");
        let output = node.run(["touch", &path]).await?;
        println!("   {program}: {}", output.stderr.trim());
        ensure!(
            !output.success() && output.stderr.contains("Read-only file system"),
            "{program}: {output:?}"
        );
    }
    let (extender, _) = status(test, "node1", "quarry-extender").await?;
    let path = format!("/proc/{extender}/mountinfo");
    let writable = node.run_ok(["cat", &path]).await?;
    // Kernel interfaces of the container, its termination log, /etc/hosts and the like: nothing of the host.
    for line in writable.lines() {
        let (mount, rest) = line.split_once(" - ").context("not a mount")?;
        let fields: Vec<&str> = mount.split_whitespace().collect();
        let (point, options) = (fields[4], fields[5]);
        if options.split(',').any(|option| option == "rw") {
            println!(
                "   extender may write {point} ({})",
                rest.split_whitespace().next().unwrap_or_default()
            );
            let known = [
                "/proc",
                "/dev",
                "/etc/hosts",
                "/etc/hostname",
                "/etc/resolv.conf",
                "/run/secrets",
                "/var/run/secrets",
            ];
            ensure!(
                known.iter().any(|known| point.starts_with(known)),
                "extender may write {line}"
            );
        }
    }
    Ok(())
}
