//! An API server in memory, for tests of the reconcilers: objects, versions, finalizers, and failures on demand.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};

/// One request, as it came in.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// get, list, create, patch (merge), apply or delete.
    pub verb: &'static str,
    /// The plural of the kind.
    pub kind: String,
    /// Empty for objects of the cluster.
    pub namespace: String,
    /// Empty for lists; that of the body where something is created.
    pub name: String,
    /// Whether it is about the subresource status.
    pub status: bool,
    /// The object or patch; null where there is none.
    pub body: Value,
}

impl Request {
    /// Such as `patch nodelocalstorages/fast.w1/status`; an event by its reason, as its name is a hash.
    pub fn text(&self) -> String {
        let Self { verb, kind, name, .. } = self;
        match (kind.as_str(), self.body["reason"].as_str()) {
            ("events", Some(reason)) => format!("{verb} events/{reason}"),
            _ if name.is_empty() => format!("{verb} {kind}"),
            _ if self.status => format!("{verb} {kind}/{name}/status"),
            _ => format!("{verb} {kind}/{name}"),
        }
    }
}

impl Request {
    /// The object to be made, in the namespace of the path.
    fn object(&self) -> Value {
        let mut object = self.body.clone();
        if !self.namespace.is_empty() {
            object["metadata"]["namespace"] = json!(self.namespace);
        }
        object
    }
}

/// Kind, namespace, name.
type Key = (String, String, String);

/// What the server has.
#[derive(Default)]
pub struct Objects {
    map: BTreeMap<Key, Value>,
    version: u64,
}

type Answer = (u16, Value);
type Change = Box<dyn FnOnce(&mut Objects) + Send>;

enum Reaction {
    /// Nothing is done.
    Fail(u16),
    /// It is done, and the answer is lost.
    Lose,
    /// Somebody else changes something just before.
    Before(Change),
}

struct Hook {
    number: Option<usize>,
    verb: &'static str,
    kind: &'static str,
    reaction: Reaction,
}

#[derive(Default)]
struct Inner {
    objects: Objects,
    requests: Vec<Request>,
    hooks: Vec<Hook>,
    /// What is refused until it is agreed to again: a text such as that of [`Request::text`], and the answer.
    refused: BTreeMap<String, Answer>,
}

/// The server. Clones are the same server.
#[derive(Clone)]
pub struct FakeApi {
    inner: Arc<Mutex<Inner>>,
    observer: Arc<dyn Fn(String) + Send + Sync>,
}

impl FakeApi {
    /// An empty server; the observer is told of each request before it is served.
    pub fn new(observer: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self {
            inner: Arc::default(),
            observer: Arc::new(observer),
        }
    }

    /// A client of it.
    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let api = api.clone();
            async move {
                let (code, body) = api.answer(request).await;
                let response = http::Response::builder()
                    .status(code)
                    .header("content-type", "application/json")
                    .body(Body::from(body.to_string().into_bytes()))
                    .expect("a response");
                Ok::<_, Infallible>(response)
            }
        });
        kube::Client::new(service, "default")
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the objects, or changes them, as somebody else would.
    pub fn objects<T>(&self, work: impl FnOnce(&mut Objects) -> T) -> T {
        work(&mut self.lock().objects)
    }

    /// Every request since the last call of [`FakeApi::forget`].
    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// Forgets the requests that came in.
    pub fn forget(&self) {
        self.lock().requests.clear();
    }

    /// Every request with this text, see [`Request::text`], is refused from now on, as by a policy or a quota.
    pub fn refuse(&self, text: &str, code: u16, message: &str) {
        let answer = failure(code, "Forbidden", message.to_owned());
        self.lock().refused.insert(text.to_owned(), answer);
    }

    /// Every such request is answered by something that is no answer of an API server.
    pub fn garble(&self, text: &str) {
        self.lock().refused.insert(text.to_owned(), (200, json!("none")));
    }

    /// Nothing is refused any more.
    pub fn agree(&self) {
        self.lock().refused.clear();
    }

    /// The n-th request from now, counted from 1, fails and does nothing.
    pub fn fail_nth(&self, n: usize, code: u16) {
        let number = self.lock().requests.len() + n;
        self.hook(Some(number), "", "", Reaction::Fail(code));
    }

    /// The next such request fails and does nothing.
    pub fn fail_next(&self, verb: &'static str, kind: &'static str, code: u16) {
        self.hook(None, verb, kind, Reaction::Fail(code));
    }

    /// The next such request is served, but its answer is lost.
    pub fn lose_next(&self, verb: &'static str, kind: &'static str) {
        self.hook(None, verb, kind, Reaction::Lose);
    }

    /// Just before the next such request, somebody changes something.
    pub fn before_next(
        &self,
        verb: &'static str,
        kind: &'static str,
        change: impl FnOnce(&mut Objects) + Send + 'static,
    ) {
        self.hook(None, verb, kind, Reaction::Before(Box::new(change)));
    }

    fn hook(&self, number: Option<usize>, verb: &'static str, kind: &'static str, reaction: Reaction) {
        self.lock().hooks.push(Hook {
            number,
            verb,
            kind,
            reaction,
        });
    }

    async fn answer(&self, request: http::Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let Some(request) = read(&parts, body) else {
            return failure(404, "NotFound", format!("no such path: {} {}", parts.method, parts.uri));
        };
        (self.observer)(request.text());
        let inner = &mut *self.lock();
        inner.requests.push(request.clone());
        let number = inner.requests.len();
        let fits = |hook: &Hook| match hook.number {
            Some(wanted) => wanted == number,
            None => hook.verb == request.verb && hook.kind == request.kind,
        };
        let hook = inner.hooks.iter().position(fits).map(|at| inner.hooks.remove(at));
        match hook.map(|hook| hook.reaction) {
            Some(Reaction::Fail(code)) => return failure(code, "OnPurpose", "failed on purpose".into()),
            Some(Reaction::Lose) => {
                inner.objects.serve(&request);
                return failure(504, "Timeout", "lost on purpose".into());
            }
            Some(Reaction::Before(change)) => change(&mut inner.objects),
            None => {}
        }
        match inner.refused.get(&request.text()) {
            Some(refusal) => refusal.clone(),
            None => inner.objects.serve(&request),
        }
    }
}

fn read(parts: &http::request::Parts, body: Value) -> Option<Request> {
    let path: Vec<&str> = parts.uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let rest = match path.as_slice() {
        ["api", "v1", rest @ ..]
        | ["apis", "quarry.dev", "v1alpha1", rest @ ..]
        | [
            "apis",
            "events.k8s.io" | "storage.k8s.io" | "coordination.k8s.io",
            "v1",
            rest @ ..,
        ] => rest,
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] => (*namespace, rest),
        rest => ("", rest),
    };
    let (kind, name, status) = match rest {
        [kind] => (*kind, "", false),
        [kind, name] => (*kind, *name, false),
        [kind, name, "status"] => (*kind, *name, true),
        _ => return None,
    };
    let content = parts.headers.get("content-type").and_then(|value| value.to_str().ok());
    let verb = match (parts.method.as_str(), content) {
        ("GET", _) if name.is_empty() => "list",
        ("GET", _) => "get",
        ("POST", _) => "create",
        ("PATCH", Some("application/merge-patch+json")) => "patch",
        ("PATCH", Some("application/apply-patch+yaml")) => "apply",
        ("DELETE", _) => "delete",
        _ => return None,
    };
    let name = match verb {
        "create" => body["metadata"]["name"].as_str()?,
        _ => name,
    };
    Some(Request {
        verb,
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        status,
        body,
    })
}

fn failure(code: u16, reason: &str, message: String) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    (code, status)
}

fn not_found(name: &str) -> Answer {
    failure(404, "NotFound", format!("{name} not found"))
}

fn conflict(what: &str) -> Answer {
    failure(
        409,
        "Conflict",
        format!("the {what} is another: the object has been modified"),
    )
}

/// JSON merge patch (RFC 7396).
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().map(|object| object.remove(key));
        } else {
            merge(&mut into[key], value);
        }
    }
    if let Some(object) = into.as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
}

impl Objects {
    fn key(kind: &str, object: &Value) -> Key {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        (kind.to_owned(), text("namespace"), text("name"))
    }

    fn store(&mut self, kind: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", self.version));
        }
        if object["metadata"]["creationTimestamp"].is_null() {
            object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        self.map.insert(Self::key(kind, &object), object.clone());
        object
    }

    /// Puts an object there, whatever was there before.
    pub fn put(&mut self, kind: &str, object: Value) {
        self.store(kind, object);
    }

    /// The only object of that name, in whichever namespace.
    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let found = self.map.iter().find(|((k, _, n), _)| k == kind && n == name);
        found.map(|(_, object)| object.clone())
    }

    /// Every object of a kind, by namespace and name.
    pub fn all(&self, kind: &str) -> Vec<Value> {
        let found = self.map.iter().filter(|((k, _, _), _)| k == kind);
        found.map(|(_, object)| object.clone()).collect()
    }

    /// Changes an object as somebody else would, by merge patch.
    pub fn change(&mut self, kind: &str, name: &str, patch: &Value) {
        let mut object = self.get(kind, name).expect("it is there");
        merge(&mut object, patch);
        self.store(kind, object);
    }

    /// Takes an object away, finalizers or not.
    pub fn remove(&mut self, kind: &str, name: &str) {
        self.map.retain(|(k, _, n), _| !(k == kind && n == name));
    }

    /// Takes every object of a kind away.
    pub fn clear(&mut self, kind: &str) {
        self.map.retain(|(k, _, _), _| k != kind);
    }

    fn serve(&mut self, request: &Request) -> Answer {
        let Request { kind, name, .. } = request;
        let key = (kind.clone(), request.namespace.clone(), name.clone());
        let there = self.map.get(&key).cloned();
        match (request.verb, there) {
            ("list", _) => {
                let here = |(k, n, _): &Key| k == kind && (request.namespace.is_empty() || *n == request.namespace);
                let items: Vec<&Value> = self.map.iter().filter(|(key, _)| here(key)).map(|(_, o)| o).collect();
                let version = json!({"resourceVersion": self.version.to_string()});
                (
                    200,
                    json!({"kind": "List", "apiVersion": "v1", "metadata": version, "items": items}),
                )
            }
            ("create", Some(_)) => failure(409, "AlreadyExists", format!("{kind} {name} already exists")),
            ("create", None) => (201, self.store(kind, request.object())),
            ("apply", None) if !request.status => (201, self.store(kind, request.object())),
            (_, None) => not_found(name),
            ("get", Some(object)) => (200, object),
            ("delete", Some(object)) => self.delete(request, object),
            (_, Some(object)) => self.patch(request, object),
        }
    }

    fn delete(&mut self, request: &Request, mut object: Value) -> Answer {
        for field in ["uid", "resourceVersion"] {
            let wanted = &request.body["preconditions"][field];
            if !wanted.is_null() && *wanted != object["metadata"][field] {
                return conflict(field);
            }
        }
        if !has_finalizers(&object) {
            self.map.remove(&Self::key(&request.kind, &object));
            return (200, object);
        }
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
            object = self.store(&request.kind, object);
        }
        (200, object)
    }

    fn patch(&mut self, request: &Request, old: Value) -> Answer {
        let wanted = &request.body["metadata"]["resourceVersion"];
        if !wanted.is_null() && *wanted != old["metadata"]["resourceVersion"] {
            return conflict("resourceVersion");
        }
        let mut new = old.clone();
        match (request.status, request.verb) {
            (true, "apply") => new["status"] = request.body["status"].clone(),
            (true, _) => merge(&mut new["status"], &request.body["status"]),
            (false, _) => {
                merge(&mut new, &request.body);
                new["status"] = old["status"].clone();
            }
        }
        for field in ["uid", "resourceVersion", "deletionTimestamp", "creationTimestamp"] {
            new["metadata"][field] = old["metadata"][field].clone();
        }
        merge(&mut new, &json!({}));
        merge(&mut new["metadata"], &json!({}));
        if new == old {
            return (200, old);
        }
        if !new["metadata"]["deletionTimestamp"].is_null() && !has_finalizers(&new) {
            self.map.remove(&Self::key(&request.kind, &old));
            return (200, new);
        }
        (200, self.store(&request.kind, new))
    }
}

fn has_finalizers(object: &Value) -> bool {
    let finalizers = object["metadata"]["finalizers"].as_array();
    finalizers.is_some_and(|finalizers| !finalizers.is_empty())
}
