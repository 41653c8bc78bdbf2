//! Requests to the extender: each is answered in JSON, and the answer is about the nodes that were asked of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use quarry_crds::extents::{Bytes, ExtentSize, Extents};
use quarry_crds::names::PROVISIONER;
use quarry_crds::node_local_storage::GroupFigures;
use quarry_extender::decide::Patience;
use quarry_extender::handlers::Extender;
use quarry_extender::index::claim_key;
use quarry_extender::objects::{Claim, Class, Storage, Volume};
use quarry_extender::server::{RequestLimits, router};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tower::ServiceExt;

thread_local! {
    static SERVER: (Runtime, Router) = server();
}

/// Class `fast` on n0 and n1, of which n1 is half full; pod web has the claim data-web-0 and one that is made for it.
fn server() -> (Runtime, Router) {
    let now = Patience {
        unseen: Duration::ZERO,
        settle: Duration::ZERO,
        crowd: Duration::ZERO,
        remembered: Duration::ZERO,
        forgiven: Duration::ZERO,
    };
    let extender = Arc::new(Extender::new(now));
    let class = object(json!({
        "metadata": {"name": "fast"}, "provisioner": PROVISIONER,
        "parameters": {"nodes": r#"[{"names": ["n0", "n1"], "disks": ["/dev/disk/by-id/a"]}]"#},
    }));
    extender.replace(vec![("fast".into(), Class::read(&class))]);
    let storages = [("n0", 0), ("n1", 50)].map(|(node, reserved)| {
        let storage = Storage::read(&object(storage(node, reserved)));
        storage.map(|storage| (format!("fast.{node}").into(), storage))
    });
    extender.replace::<Storage>(storages.into_iter().flatten().collect());
    extender.replace::<Volume>(Vec::new());
    let claims = [("data-web-0", "240Mi"), ("web-scratch", "8Mi"), ("huge", "7Ei")].map(|(name, size)| {
        let claim = object(json!({
            "metadata": {"name": name, "namespace": "db", "uid": format!("uid-{name}")},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                     "resources": {"requests": {"storage": size}}},
            "status": {"phase": "Pending"},
        }));
        (claim_key("db", name).into(), Claim::read(&claim))
    });
    extender.replace(claims.into());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    (runtime, router(extender, RequestLimits::default(), false))
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of Kubernetes")
}

fn storage(node: &str, reserved: u64) -> Value {
    let figures = GroupFigures {
        uuid: format!("vg@{node}"),
        extent_size: ExtentSize::DEFAULT,
        size: Extents(100),
        free: Extents(100),
        reserved: Extents(reserved),
        largest: Extents(100),
    };
    json!({
        "apiVersion": "quarry.dev/v1alpha1", "kind": "NodeLocalStorage", "metadata": {"name": format!("fast.{node}")},
        "spec": {"storageClassName": "fast", "nodeName": node, "volumeGroup": "vg", "layout": "linear"},
        "status": {"volumeGroup": figures.to_status("vg", Bytes::mib(1)), "conditions": [
            {"type": "Ready", "status": "True", "reason": "Ready", "message": "",
             "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    })
}

/// Nodes as objects, each as it was sent.
#[derive(Deserialize)]
struct Nodes<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
}

impl<'a> Nodes<'a> {
    fn texts(&self) -> Vec<&'a str> {
        self.items.iter().map(|node| node.get()).collect()
    }
}

/// Reads an answer. Nodes go back as they came, each is the text of one here: there is JSON that [`Value`] has no place for,
/// such as 1e999.
fn read(answer: &[u8]) -> Value {
    let Ok(fields) = serde_json::from_slice::<BTreeMap<String, &RawValue>>(answer) else {
        return serde_json::from_slice(answer).expect("JSON");
    };
    let value = |(name, text): (String, &RawValue)| {
        let value = if name == "Nodes" {
            let nodes: Option<Nodes<'_>> = serde_json::from_str(text.get()).expect("nodes");
            json!(nodes.map(|nodes| nodes.texts()))
        } else {
            serde_json::from_str(text.get()).expect("JSON")
        };
        (name, value)
    };
    fields.into_iter().map(value).collect()
}

/// Sends a body; the answer, or the status of a refusal that says why.
fn send(path: &str, body: &[u8]) -> Result<Value, StatusCode> {
    SERVER.with(|(runtime, router)| {
        let request = Request::post(path).body(Body::from(body.to_vec())).expect("a request");
        let (status, answer) = runtime.block_on(async {
            let answer = router.clone().oneshot(request).await.expect("an answer");
            let status = answer.status();
            (status, answer.into_body().collect().await.expect("a body").to_bytes())
        });
        let answer = read(&answer);
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let why = answer["Error"].as_str();
        assert!(why.is_some_and(|error| !error.is_empty()), "{status} {answer}");
        Err(status)
    })
}

/// Sends a body; the answer, where it was understood.
fn ask(path: &str, body: &[u8]) -> Option<Value> {
    send(path, body)
        .map_err(|status| assert_eq!(status, StatusCode::BAD_REQUEST))
        .ok()
}

/// Sends a body to both verbs; the answers of filter and prioritize. What one refuses, the other does.
fn ask_both(body: &[u8]) -> Option<(Value, Value)> {
    let answers = ["/filter", "/prioritize"].map(|path| ask(path, body));
    match answers {
        [Some(filtered), Some(scores)] => Some((filtered, scores)),
        [None, None] => None,
        [filtered, scores] => panic!("one refuses what the other takes: filter {filtered:?}, prioritize {scores:?}"),
    }
}

/// The nodes that were asked of; `None` where the body is JSON in another form than kube-scheduler writes, such as a list
/// for an object, or no JSON in what nobody reads.
fn asked(body: &[u8]) -> Option<Vec<String>> {
    let body: Value = serde_json::from_str(&String::from_utf8_lossy(body)).ok()?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match (&body.as_object()?.get("Nodes"), body.get("NodeNames")) {
        (Some(Value::Array(_)), _) => None,
        (Some(Value::Object(nodes)), _) if nodes.get("items").is_some_and(|items| !items.is_null()) => nodes
            .get("items")?
            .as_array()?
            .iter()
            .map(|item| text(&item["metadata"]["name"]))
            .collect(),
        (_, Some(Value::Array(names))) => names.iter().map(text).collect(),
        _ => Some(Vec::new()),
    }
}

/// POST /filter: every node that was asked of passes or is refused, and no other is named. Nodes that came as objects go
/// back as they were sent.
pub fn filter(data: &[u8]) {
    #[derive(Deserialize)]
    struct Args<'a> {
        #[serde(borrow, rename = "Nodes")]
        nodes: Nodes<'a>,
    }
    let Some((answer, _)) = ask_both(data) else { return };
    let passed = answer["NodeNames"].as_array().expect("names");
    if let Some(objects) = answer["Nodes"].as_array() {
        assert_eq!(objects.len(), passed.len(), "{answer}");
        let sent: Args<'_> = serde_json::from_slice(data).expect("what was understood");
        let mut sent = sent.nodes.texts().into_iter();
        let in_order = objects.iter().all(|object| sent.any(|node| object == node));
        assert!(in_order, "{answer}");
    }
    let passed: BTreeSet<&str> = passed.iter().filter_map(Value::as_str).collect();
    let refused = answer["FailedAndUnresolvableNodes"].as_object().expect("an object");
    let refused: BTreeSet<&str> = refused.keys().map(String::as_str).collect();
    let error = answer["Error"].as_str().expect("a text");
    if !error.is_empty() {
        assert!(passed.is_empty() && refused.is_empty(), "{answer}");
        return;
    }
    let Some(asked) = asked(data) else { return };
    let asked: BTreeSet<&str> = asked.iter().map(String::as_str).collect();
    assert_eq!(&passed | &refused, asked, "{answer}");
}

/// POST /prioritize: every node that was asked of has one score from 0 to 10, in that order; or none has any, where all
/// nodes are alike: all pass, or none does.
pub fn prioritize(data: &[u8]) {
    let Some((filtered, answer)) = ask_both(data) else {
        return;
    };
    let scores = answer.as_array().expect("scores");
    let hosts: Vec<&str> = scores.iter().filter_map(|score| score["Host"].as_str()).collect();
    if scores.is_empty() {
        let passed = filtered["NodeNames"].as_array().expect("names");
        let refused = filtered["FailedAndUnresolvableNodes"].as_object().expect("an object");
        assert!(passed.is_empty() || refused.is_empty(), "{filtered}");
    } else if let Some(asked) = asked(data) {
        assert_eq!(hosts, asked, "{answer}");
    }
    for score in scores {
        let value = score["Score"].as_i64().expect("a number");
        assert!((0..=10).contains(&value), "{answer}");
    }
}

/// POST /preempt: what may be evicted is what was asked of, node by node. Its answer has no field for an error: what cannot
/// be said is a status.
pub fn preempt(data: &[u8]) {
    let answer = match send("/preempt", data) {
        Ok(answer) => answer,
        Err(status) => {
            assert!([StatusCode::BAD_REQUEST, StatusCode::SERVICE_UNAVAILABLE].contains(&status));
            return;
        }
    };
    let kept = answer["NodeNameToMetaVictims"].as_object().expect("nodes");
    let Ok(asked) = serde_json::from_str::<Value>(&String::from_utf8_lossy(data)) else {
        return;
    };
    // Arguments as a list have no names; kube-scheduler sends none.
    let Some(asked) = asked.as_object() else { return };
    // Where both are sent, the UIDs are what is meant.
    let candidates = [
        ("NodeNameToMetaVictims", "/UID"),
        ("NodeNameToVictims", "/metadata/uid"),
    ]
    .into_iter()
    .find_map(|(field, uid)| Some((asked.get(field)?.as_object()?, uid)));
    let Some((candidates, uid)) = candidates else {
        assert!(kept.is_empty(), "{answer}");
        return;
    };
    for (node, victims) in kept {
        let sent = candidates.get(node).expect("a node that was asked of");
        if let Some(sent) = uids(sent, uid) {
            assert_eq!(uids(victims, "/UID"), Some(sent), "{node}: {answer}");
        }
    }
}

/// The UIDs of victims; `None` where one has none, or is written in another form than kube-scheduler does.
fn uids<'a>(victims: &'a Value, uid: &str) -> Option<Vec<&'a str>> {
    let pods = victims.as_object()?.get("Pods").and_then(Value::as_array);
    pods.into_iter()
        .flatten()
        .map(|pod| pod.pointer(uid)?.as_str())
        .collect()
}
