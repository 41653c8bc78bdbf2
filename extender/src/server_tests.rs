//! The Router as kube-scheduler calls it, without a socket.

use axum::body::Bytes;
use axum::http::Method;
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;

use super::*;
use crate::decide::Patience;
use crate::index::claim_key;
use crate::objects::{Claim, Class, Storage, Volume};
use crate::testing::{mk_claim, mk_class, mk_storage, selected};

const BY_NAME: &str = include_str!("../tests/samples/filter-names.json");
const BY_OBJECT: &str = include_str!("../tests/samples/filter-nodes.json");

/// n0 and n1 have a group of 100 extents for class `fast`, n1 is half full; data-web-0 asks for this many.
fn extender(extents: u64) -> Arc<Extender> {
    extender_with(extents, Patience::default())
}

fn extender_with(extents: u64, patience: Patience) -> Arc<Extender> {
    let extender = Arc::new(Extender::new(patience));
    let storages = ["n0", "n1"].map(|node| {
        let storage = mk_storage("fast", node, "vg", 100, if node == "n1" { 50 } else { 0 });
        (format!("fast.{node}").into(), Storage::read(&storage).expect("present"))
    });
    extender.replace(vec![("fast".into(), Class::read(&mk_class("fast")))]);
    extender.replace::<Storage>(storages.into());
    extender.replace::<Volume>(Vec::new());
    let claim = mk_claim("data-web-0", "fast", extents);
    extender.replace(vec![(claim_key("db", "data-web-0").into(), Claim::read(&claim))]);
    extender
}

/// Requests of kube-scheduler v1.34.4, without managed fields and annotations of the pod.
#[tokio::test]
async fn recorded_requests_are_understood() {
    let extender = extender(60);
    let storages = ["f1", "f2", "f3"].map(|node| {
        let storage = mk_storage("fast", node, "vg", 100, if node == "f2" { 50 } else { 0 });
        (format!("fast.{node}").into(), Storage::read(&storage).expect("present"))
    });
    extender.replace::<Storage>(storages.into());
    let claim = mk_claim("data-web-0", "fast", 60);
    extender.apply(&claim_key("default", "data-web-0"), Some(Claim::read(&claim)));
    for body in [
        include_str!("../tests/samples/recorded-filter.json"),
        include_str!("../tests/samples/recorded-filter-nodes.json"),
    ] {
        let sent: Value = serde_json::from_str(body).expect("JSON");
        let (status, answer) = post(&extender, "/filter", body).await;
        assert_eq!((status, &answer["Error"]), (StatusCode::OK, &json!("")));
        let mut passed: Vec<_> = answer["NodeNames"].as_array().expect("names").clone();
        passed.sort_by_key(Value::to_string);
        assert_eq!(passed, ["f1", "f3"]);
        let refused = json!({"f2": "node(s) had not enough free local storage in volume group vg"});
        assert_eq!(answer["FailedAndUnresolvableNodes"], refused);
        if let Some(items) = sent["Nodes"]["items"].as_array() {
            let kept: Vec<_> = items.iter().filter(|node| node["metadata"]["name"] != "f2").collect();
            assert_eq!(answer["Nodes"]["items"], json!(kept));
        }
    }
    let body = include_str!("../tests/samples/recorded-prioritize.json");
    let (status, answer) = post(&extender, "/prioritize", body).await;
    assert_eq!(status, StatusCode::OK);
    let scores = json!([{"Host": "f1", "Score": 4}, {"Host": "f2", "Score": 0}, {"Host": "f3", "Score": 4}]);
    assert_eq!(answer, scores);
}

async fn call(router: Router, method: Method, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(body.into())
        .expect("a request");
    let answer = router.oneshot(request).await.expect("an answer");
    let status = answer.status();
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    (
        status,
        serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {text}")),
    )
}

async fn post(extender: &Arc<Extender>, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
    let limits = RequestLimits {
        body: 1 << 20,
        ..Default::default()
    };
    call(router(Arc::clone(extender), limits, true), Method::POST, path, body).await
}

#[tokio::test]
async fn filter_by_name() {
    let (status, answer) = post(&extender(60), "/filter", BY_NAME).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        answer,
        json!({
            "Nodes": null,
            "NodeNames": ["n0"],
            "FailedNodes": {},
            "FailedAndUnresolvableNodes": {
                "n1": "node(s) had not enough free local storage in volume group vg",
                "n2": "node(s) had no local storage of StorageClass fast",
            },
            "Error": "",
        })
    );
    let (_, answer) = post(&extender(101), "/filter", BY_NAME).await;
    assert_eq!(answer["NodeNames"], json!([]), "none, but never null");
}

#[tokio::test]
async fn filter_by_object_gives_each_node_back_as_it_came() {
    let (status, answer) = post(&extender(60), "/filter", BY_OBJECT).await;
    assert_eq!(status, StatusCode::OK);
    let sent: Value = serde_json::from_str(BY_OBJECT).expect("JSON");
    assert_eq!(
        answer["Nodes"],
        json!({"metadata": {}, "items": [sent["Nodes"]["items"][0]]})
    );
    assert_eq!(answer["NodeNames"], json!(["n0"]));
}

#[tokio::test]
async fn prioritize_is_a_bare_list() {
    let (status, answer) = post(&extender(10), "/prioritize", BY_NAME).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        answer,
        json!([{"Host": "n0", "Score": 9}, {"Host": "n1", "Score": 4}, {"Host": "n2", "Score": 0}])
    );
}

#[tokio::test]
async fn a_pod_without_claims_is_answered_before_anything_is_known() {
    let nothing = Arc::new(Extender::new(Patience::default()));
    let body =
        r#"{"Pod": {"metadata": {"name": "p"}, "spec": {"volumes": []}}, "Nodes": null, "NodeNames": ["a", "b"]}"#;
    let (_, answer) = post(&nothing, "/filter", body).await;
    assert_eq!(
        (&answer["NodeNames"], &answer["Error"]),
        (&json!(["a", "b"]), &json!(""))
    );
    let (status, answer) = post(&nothing, "/filter", BY_NAME).await;
    assert_eq!(status, StatusCode::OK, "the scheduler reads no other");
    assert_eq!(answer["NodeNames"], json!([]));
    let error = answer["Error"].as_str().expect("a text");
    assert!(error.starts_with("not ready, caches are being filled"), "{error}");
}

#[tokio::test]
async fn an_answer_waits_for_the_watch_and_no_longer() {
    // Longer than any machine is busy.
    let long = Duration::from_secs(60);
    let patience = Patience {
        unseen: long,
        crowd: long,
        ..Patience::default()
    };
    let extender = extender_with(60, patience);
    let other = BY_NAME.replace("web-0", "web-1");
    let asked = tokio::spawn({
        let (extender, other) = (Arc::clone(&extender), other.clone());
        async move { post(&extender, "/filter", other).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!asked.is_finished(), "the claim has not been seen");
    let claim = mk_claim("data-web-1", "fast", 60);
    extender.apply(&claim_key("db", "data-web-1"), Some(Claim::read(&claim)));
    let begun = Instant::now();
    let (_, answer) = asked.await.expect("answered");
    assert!(begun.elapsed() < long / 2);
    assert_eq!(answer["NodeNames"], json!(["n0"]));

    // The first pod waits for the second one's node, which shows in time.
    let asked = tokio::spawn({
        let extender = Arc::clone(&extender);
        async move { post(&extender, "/filter", BY_NAME).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!asked.is_finished(), "n0 has room only if the other pod is not there");
    let claim = selected(claim, "n0");
    extender.apply(&claim_key("db", "data-web-1"), Some(Claim::read(&claim)));
    let (_, answer) = asked.await.expect("answered");
    assert_eq!((&answer["NodeNames"], &answer["Error"]), (&json!([]), &json!("")));
}

#[tokio::test]
async fn what_is_no_request_gets_an_error_in_json() {
    let extender = extender(1);
    let deep = format!("{{\"Pod\": {}", "[".repeat(200_000));
    let deep_pod = format!(
        r#"{{"Pod": {{"spec": {{"volumes": [{{"name": "v", "ephemeral": {}1{}}}]}}}}, "NodeNames": []}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    for (body, part) in [
        ("", "empty"),
        ("{", "not ExtenderArgs"),
        ("null", "not ExtenderArgs"),
        ("[]", "not ExtenderArgs"),
        ("{}", "missing field `Pod`"),
        (&BY_NAME[..BY_NAME.len() / 2], "not ExtenderArgs"),
        (r#"{"Pod": {}, "NodeNames": "a"}"#, "not ExtenderArgs"),
        (r#"{"Pod": {}, "NodeNames": [1]}"#, "a name"),
        (r#"{"Pod": {}, "Nodes": {"items": [{}]}}"#, "missing field `metadata`"),
        (&deep, "not ExtenderArgs"),
    ] {
        for path in ["/filter", "/prioritize"] {
            let (status, answer) = post(&extender, path, body.to_owned()).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{part}");
            let error = answer["Error"].as_str().expect("a text");
            assert!(error.contains(part), "{error:?} lacks {part:?}");
        }
    }
    let (status, _) = post(&extender, "/filter", deep_pod).await;
    assert!(
        [StatusCode::OK, StatusCode::BAD_REQUEST].contains(&status),
        "however deep, never a crash"
    );
    let (status, answer) = post(&extender, "/filter", vec![b' '; (1 << 20) + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(answer["Error"].as_str().is_some_and(|text| text.contains("1048576")));
    let router = router(extender, RequestLimits::default(), false);
    let (status, _) = call(router.clone(), Method::GET, "/filter", "").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    let (status, answer) = call(router, Method::POST, "/bind", "{}").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert!(answer["Error"].as_str().is_some_and(|text| text.contains("/bind")));
}

/// A client that sends all it has before it reads sees why it was refused, on a real connection.
#[tokio::test]
async fn the_client_of_a_body_that_is_too_large_hears_of_it() {
    let limits = RequestLimits {
        body: 1 << 20,
        ..Default::default()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(quarry_process::serve(
        listener,
        router(extender(1), limits, false),
        quarry_process::Limits::default(),
        quarry_process::Shutdown::default(),
    ));
    let body = vec![b' '; 2 << 20];
    for _ in 0..20 {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let head = format!(
            "POST /filter HTTP/1.1\r\nHost: quarry\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.expect("the head is taken");
        stream.write_all(&body).await.expect("the body is taken");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer:?}");
        assert!(answer.contains("1048576"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_given_up() {
    let never = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
    let limits = RequestLimits {
        body_read: Duration::from_millis(20),
        ..Default::default()
    };
    let (status, _) = call(router(extender(1), limits, false), Method::POST, "/filter", never).await;
    assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_told_so_however_slow_the_rest_of_it() {
    let limits = RequestLimits {
        body: 4,
        body_read: Duration::from_millis(20),
        ..Default::default()
    };
    let begun = futures::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"12345"))]);
    let slow = Body::from_stream(begun.chain(futures::stream::pending()));
    let router = router(extender(1), limits, false);
    let (status, answer) = call(router, Method::POST, "/filter", slow).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{answer}");
}

/// What is held of bodies is bounded, whoever sends them, and whatever they announce.
#[tokio::test]
async fn bodies_wait_until_there_is_room_for_them() {
    let limits = RequestLimits {
        body: 8 << 10,
        body_read: Duration::from_secs(5),
        held: 8 << 10,
    };
    let router = router(extender(60), limits, false);
    // Of unknown length, it takes the room of the largest, and does not end.
    let (sender, receiver) = futures::channel::mpsc::unbounded::<Result<Bytes, std::io::Error>>();
    let slow = tokio::spawn(call(
        router.clone(),
        Method::POST,
        "/filter",
        Body::from_stream(receiver),
    ));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut next = tokio::spawn(call(router.clone(), Method::POST, "/filter", BY_NAME));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut next).await;
    assert!(early.is_err(), "read although there is no room: {early:?}");
    let (status, _) = call(router, Method::POST, "/filter", vec![b' '; (8 << 10) + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "needs no room to be refused");
    sender
        .unbounded_send(Ok(Bytes::from_static(b"nonsense")))
        .expect("taken");
    drop(sender);
    assert_eq!(slow.await.expect("no panic").0, StatusCode::BAD_REQUEST);
    assert_eq!(next.await.expect("no panic").0, StatusCode::OK);
}

proptest! {
    #[test]
    fn whatever_is_sent_is_answered_in_json(
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            // A real request with bytes changed, and cut.
            (prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), any::<prop::sample::Index>()).prop_map(|(changes, end)| {
                let mut body = BY_OBJECT.as_bytes().to_vec();
                for (at, byte) in changes {
                    let at = at.index(body.len());
                    body[at] = byte;
                }
                body.truncate(end.index(body.len() * 2));
                body
            }),
        ],
        path in prop::sample::select(vec!["/filter", "/prioritize", "/preempt"]),
    ) {
        let patience = Patience { unseen: Duration::ZERO, settle: Duration::ZERO, crowd: Duration::ZERO, remembered: Duration::ZERO, forgiven: Duration::ZERO };
        let extender = Arc::new(Extender::new(patience));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (status, answer) = runtime.block_on(post(&extender, path, body));
        let expected = [StatusCode::OK, StatusCode::BAD_REQUEST, StatusCode::SERVICE_UNAVAILABLE].contains(&status);
        prop_assert!(expected && (answer.is_object() || answer.is_array()), "{} {}", status, answer);
    }
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let extender = extender(60);
    let mut registry = prometheus_client::registry::Registry::default();
    crate::metrics::register(&mut registry, &extender);
    extender.apply(
        &claim_key("db", "other"),
        Some(Claim::read(&selected(mk_claim("other", "fast", 20), "n0"))),
    );
    post(&extender, "/filter", BY_NAME).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("metrics");
    for line in [
        "quarry_extender_request_duration_seconds_count{verb=\"filter\"} 1",
        "quarry_extender_rejections_total{reason=\"no_room\"} 1",
        "quarry_extender_rejections_total{reason=\"not_in_class\"} 1",
        "quarry_extender_index_objects{kind=\"nodelocalstorages\"} 2",
        "quarry_extender_outstanding_pods 1",
        "quarry_extender_in_flight_extents{node=\"n0\",vg=\"vg\"} 20",
        "quarry_extender_in_flight_bytes{node=\"n0\",vg=\"vg\"} 83886080",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

/// kube-scheduler asks before it evicts pods: only a node that has room for the claims as it is may lose some.
#[tokio::test]
async fn no_pod_is_evicted_where_the_claims_have_no_room() {
    let pod: Value = serde_json::from_str::<Value>(BY_NAME).expect("JSON")["Pod"].clone();
    let meta = |uid: &str| json!({"Pods": [{"UID": uid}], "NumPDBViolations": 1});
    let whole = |uid: &str| json!({"Pods": [{"metadata": {"name": "v", "uid": uid}}], "NumPDBViolations": 1});
    let by_uid = json!({"n0": meta("a"), "n1": meta("b"), "n2": meta("c")});
    let by_object = json!({"n0": whole("a"), "n1": whole("b"), "n2": whole("c")});
    for (uids, objects) in [(by_uid.clone(), Value::Null), (Value::Null, by_object)] {
        let asked = json!({"Pod": pod, "NodeNameToVictims": objects, "NodeNameToMetaVictims": uids});
        let extender = extender(60);
        let (status, answer) = post(&extender, "/preempt", asked.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        assert_eq!(answer, json!({"NodeNameToMetaVictims": {"n0": meta("a")}}));
        // The pod is not remembered, and so is in nobody's way.
        assert_eq!(extender.outstanding(), 0);
    }
    // Without claims of ours every node may.
    let asked = json!({"Pod": {"metadata": {"name": "p"}}, "NodeNameToMetaVictims": by_uid});
    let (status, answer) = post(&extender(60), "/preempt", asked.to_string()).await;
    assert_eq!((status, &answer["NodeNameToMetaVictims"]), (StatusCode::OK, &by_uid));
    // Nothing is known yet: kube-scheduler reads no answer but 200.
    let nothing = Arc::new(Extender::new(Patience::default()));
    let asked = json!({"Pod": pod, "NodeNameToMetaVictims": by_uid});
    let (status, answer) = post(&nothing, "/preempt", asked.to_string()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        answer["Error"].as_str().is_some_and(|text| text.contains("not ready")),
        "{answer}"
    );
}
