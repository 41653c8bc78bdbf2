//! What kube-scheduler sends and expects (k8s.io/kube-scheduler `extender/v1`).
//!
//! The Go types carry no JSON tags: fields are PascalCase, and nil is `null`. Only what is needed is read of a pod or a
//! node, so that large bodies are cheap.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// `ExtenderArgs`: a pod, and the nodes that it may go to so far.
#[derive(Debug)]
pub struct ExtenderArgs<'a> {
    /// The pod.
    pub pod: Pod<'a>,
    /// The nodes as objects, where the scheduler is configured with `nodeCacheCapable: false`.
    pub nodes: Option<NodeList<'a>>,
    /// The nodes by name, where it is configured with `nodeCacheCapable: true`.
    pub node_names: Option<Names<'a>>,
}

/// The same, where nothing is to be said of nodes for a pod without claims: their names are looked at then, and not kept.
/// (They are where they come before the pod, which Go does not do.)
#[derive(Debug)]
pub struct ArgsWithClaims<'a>(pub ExtenderArgs<'a>);

/// Names of nodes.
#[derive(Debug, Default)]
pub struct Names<'a>(Vec<Name<'a>>);

/// Nodes as objects, each as it was sent.
#[derive(Debug, Deserialize)]
pub struct NodeList<'a> {
    /// The nodes.
    #[serde(borrow, default)]
    pub items: Option<Vec<&'a RawValue>>,
}

/// A name, copied only where JSON has written it with escapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name<'a>(Cow<'a, str>);

impl Name<'_> {
    /// Writes it as JSON. What came without escapes needs none, so that not every byte is looked at once more.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        match &self.0 {
            Cow::Borrowed(name) => {
                out.push(b'"');
                out.extend_from_slice(name.as_bytes());
                out.push(b'"');
                Ok(())
            }
            Cow::Owned(name) => serde_json::to_writer(out, name),
        }
    }
}

impl AsRef<str> for Name<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// What is needed of a pod. Its texts are those of the request, where JSON has written them without escapes.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Pod<'a> {
    /// Who it is.
    #[serde(borrow, default)]
    pub metadata: Metadata<'a>,
    /// What it wants.
    #[serde(borrow, default)]
    pub spec: PodSpec<'a>,
}

/// Name, namespace and UID.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Metadata<'a> {
    /// Name.
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    /// Namespace.
    #[serde(borrow)]
    pub namespace: Cow<'a, str>,
    /// UID.
    #[serde(borrow)]
    pub uid: Cow<'a, str>,
}

/// The volumes of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct PodSpec<'a> {
    /// Its volumes.
    #[serde(borrow, default)]
    pub volumes: Option<Vec<Volume<'a>>>,
}

/// One volume of a pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume<'a> {
    /// Its name in the pod.
    #[serde(borrow)]
    pub name: Cow<'a, str>,
    /// The claim that it uses.
    #[serde(borrow)]
    pub persistent_volume_claim: Option<ClaimSource<'a>>,
    /// A claim that is made for the pod.
    pub ephemeral: Option<IgnoredAny>,
}

/// A claim by name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimSource<'a> {
    /// Name of the claim, in the pod's namespace.
    #[serde(borrow)]
    pub claim_name: Cow<'a, str>,
}

/// A claim that a pod uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodClaim {
    /// Its name, in the pod's namespace.
    pub name: String,
    /// Whether it is made for the pod, and has to be owned by it.
    pub ephemeral: bool,
}

impl Volume<'_> {
    /// Whether it is a claim, or one is made for it.
    const fn is_claim(&self) -> bool {
        self.persistent_volume_claim.is_some() || self.ephemeral.is_some()
    }
}

impl Pod<'_> {
    /// Whether the pod uses any claim.
    #[must_use]
    pub fn has_claims(&self) -> bool {
        self.spec.volumes.iter().flatten().any(Volume::is_claim)
    }

    /// The claims that the pod uses, each once.
    #[must_use]
    pub fn claims(&self) -> Vec<PodClaim> {
        let mut claims: Vec<PodClaim> = Vec::new();
        for volume in self.spec.volumes.iter().flatten() {
            let claim = if let Some(source) = &volume.persistent_volume_claim {
                PodClaim {
                    name: source.claim_name.clone().into_owned(),
                    ephemeral: false,
                }
            } else if volume.ephemeral.is_some() {
                PodClaim {
                    name: format!("{}-{}", self.metadata.name, volume.name),
                    ephemeral: true,
                }
            } else {
                continue;
            };
            if !claims.iter().any(|other| other.name == claim.name) {
                claims.push(claim);
            }
        }
        claims
    }

    /// What tells this pod from every other.
    #[must_use]
    pub fn identity(&self) -> String {
        if self.metadata.uid.is_empty() {
            format!("{}/{}", self.metadata.namespace, self.metadata.name)
        } else {
            self.metadata.uid.clone().into_owned()
        }
    }

    /// The same with texts of its own.
    #[must_use]
    pub fn into_owned(self) -> Pod<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        let volume = |volume: Volume<'_>| Volume {
            name: owned(volume.name),
            persistent_volume_claim: volume.persistent_volume_claim.map(|source| ClaimSource {
                claim_name: owned(source.claim_name),
            }),
            ephemeral: volume.ephemeral,
        };
        Pod {
            metadata: Metadata {
                name: owned(self.metadata.name),
                namespace: owned(self.metadata.namespace),
                uid: owned(self.metadata.uid),
            },
            spec: PodSpec {
                volumes: self
                    .spec
                    .volumes
                    .map(|volumes| volumes.into_iter().map(volume).collect()),
            },
        }
    }
}

impl<'a> ExtenderArgs<'a> {
    /// The names of the nodes, however they were sent. They are taken out, where they came as names.
    ///
    /// # Errors
    /// A node without a name.
    pub fn names(&mut self) -> Result<Vec<Name<'a>>, serde_json::Error> {
        #[derive(Deserialize)]
        struct Node<'a> {
            #[serde(borrow)]
            metadata: NodeMetadata<'a>,
        }
        #[derive(Deserialize)]
        struct NodeMetadata<'a> {
            #[serde(borrow)]
            name: Name<'a>,
        }
        match &self.nodes {
            Some(NodeList { items: Some(items), .. }) => items
                .iter()
                .map(|item| serde_json::from_str::<Node<'a>>(item.get()).map(|node| node.metadata.name))
                .collect(),
            _ => Ok(self.node_names.take().unwrap_or_default().0),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ExtenderArgs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ArgsVisitor::<true>)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for ArgsWithClaims<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ArgsVisitor::<false>).map(ArgsWithClaims)
    }
}

/// Reads `ExtenderArgs` for every verb, so that what one verb refuses no other takes. `KEEP_ALL`: whether names are kept
/// for a pod without claims too.
struct ArgsVisitor<const KEEP_ALL: bool>;

impl<'de, const KEEP_ALL: bool> Visitor<'de> for ArgsVisitor<KEEP_ALL> {
    type Value = ExtenderArgs<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("struct ExtenderArgs")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "PascalCase")]
        enum Field {
            Pod,
            Nodes,
            NodeNames,
            #[serde(other)]
            Other,
        }
        let mut pod: Option<Pod<'de>> = None;
        let mut nodes: Option<Option<NodeList<'de>>> = None;
        let mut node_names: Option<Option<Names<'de>>> = None;
        while let Some(field) = map.next_key()? {
            match field {
                Field::Pod => once("Pod", &mut pod, || map.next_value())?,
                Field::Nodes => once("Nodes", &mut nodes, || map.next_value())?,
                Field::NodeNames => {
                    let keep = KEEP_ALL || pod.as_ref().is_none_or(Pod::has_claims);
                    once("NodeNames", &mut node_names, || {
                        if keep {
                            map.next_value()
                        } else {
                            map.next_value::<Option<Looked>>().map(|_| None)
                        }
                    })?;
                }
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(ExtenderArgs {
            pod: pod.ok_or_else(|| A::Error::missing_field("Pod"))?,
            nodes: nodes.flatten(),
            node_names: node_names.flatten(),
        })
    }
}

/// Reads a field that may come once: which of two is meant, nobody can tell.
fn once<T, E: serde::de::Error>(
    name: &'static str,
    field: &mut Option<T>,
    read: impl FnOnce() -> Result<T, E>,
) -> Result<(), E> {
    if field.is_some() {
        return Err(E::duplicate_field(name));
    }
    *field = Some(read()?);
    Ok(())
}

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

/// Goes through a list of names, and hands on each.
struct NamesVisitor<F>(F);

impl<'de, F: FnMut(Name<'de>)> Visitor<'de> for NamesVisitor<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of names")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut names: A) -> Result<(), A::Error> {
        while let Some(name) = names.next_element()? {
            self.0(name);
        }
        Ok(())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Names<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// kube-scheduler asks of 100 nodes at once, or of all that there are.
        const USUAL: usize = 128;
        let mut found = Vec::with_capacity(USUAL);
        deserializer.deserialize_seq(NamesVisitor(|name| found.push(name)))?;
        Ok(Names(found))
    }
}

/// Names that are none of anybody's business, as long as they are names.
struct Looked;

impl<'de> Deserialize<'de> for Looked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(NamesVisitor(drop)).map(|()| Looked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: &str) -> Pod<'static> {
        let text = format!(r#"{{"metadata": {{"name": "web-0", "namespace": "n", "uid": "u"}}, "spec": {spec}}}"#);
        let pod: Pod<'_> = serde_json::from_str(&text).expect("a pod");
        pod.into_owned()
    }

    #[test]
    fn claims_of_a_pod() {
        let claims = pod(r#"{"volumes": [
                {"name": "config", "configMap": {"name": "c"}},
                {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-0"}},
                {"name": "again", "persistentVolumeClaim": {"claimName": "data-web-0", "readOnly": true}},
                {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}},
                {"name": "empty", "emptyDir": {}, "ephemeral": null, "persistentVolumeClaim": null}]}"#)
        .claims();
        let names: Vec<_> = claims.iter().map(|c| (c.name.as_str(), c.ephemeral)).collect();
        assert_eq!(names, [("data-web-0", false), ("web-0-scratch", true)]);
        for none in [
            "{}",
            r#"{"volumes": null}"#,
            r#"{"volumes": [{"name": "c", "configMap": {}}]}"#,
        ] {
            assert!(pod(none).claims().is_empty() && !pod(none).has_claims(), "{none}");
        }
    }

    fn names(args: &mut ExtenderArgs<'_>) -> Vec<String> {
        let names = args.names().expect("names");
        names.iter().map(|name| name.as_ref().to_owned()).collect()
    }

    #[test]
    fn names_for_a_pod_without_claims_are_looked_at_and_not_kept() {
        fn read(text: &str) -> serde_json::Result<ExtenderArgs<'_>> {
            serde_json::from_str(text).map(|ArgsWithClaims(args)| args)
        }
        let claim = r#"{"spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}"#;
        for (pod, after, before) in [("{}", 0, 2), (claim, 2, 2)] {
            let text = format!(r#"{{"Pod": {pod}, "Nodes": null, "NodeNames": ["a", "b"], "More": 1}}"#);
            let mut args = read(&text).expect("arguments");
            assert_eq!((args.pod.has_claims(), names(&mut args).len()), (after > 0, after));
            let text = format!(r#"{{"NodeNames": ["a", "b"], "Pod": {pod}}}"#);
            assert_eq!(names(&mut read(&text).expect("arguments")).len(), before);
            let text = format!(
                r#"{{"Pod": {pod}, "Nodes": {{"items": [{{"metadata": {{"name": "a"}}}}]}}, "NodeNames": null}}"#
            );
            assert_eq!(names(&mut read(&text).expect("arguments")), ["a"]);
        }
    }

    #[test]
    fn what_one_verb_refuses_the_other_does() {
        for (wrong, said) in [
            (r#"{"NodeNames": []}"#, "missing field `Pod`"),
            ("[]", "expected struct ExtenderArgs"),
            (r#"[{}, null, ["a"]]"#, "expected struct ExtenderArgs"),
            (r#"{"Pod": {}, "NodeNames": ["a"}"#, "expected"),
            (r#"{"Pod": {}, "NodeNames": ["a", 1]}"#, "a name"),
            (r#"{"Pod": {}, "NodeNames": "a"}"#, "a list of names"),
            (r#"{"Pod": {}, "Nodes": null, "Pod": {}}"#, "duplicate field `Pod`"),
            (r#"{"Pod": {}, "Nodes": {}, "Nodes": {}}"#, "duplicate field `Nodes`"),
            (
                r#"{"Pod": {}, "Nodes": null, "Nodes": null}"#,
                "duplicate field `Nodes`",
            ),
            (
                r#"{"Pod": {}, "NodeNames": ["a"], "NodeNames": ["b"]}"#,
                "duplicate field `NodeNames`",
            ),
            (
                r#"{"Pod": {}, "NodeNames": null, "NodeNames": ["b"]}"#,
                "duplicate field `NodeNames`",
            ),
        ] {
            let filter = serde_json::from_str::<ExtenderArgs<'_>>(wrong).map(drop);
            let prioritize = serde_json::from_str::<ArgsWithClaims<'_>>(wrong).map(drop);
            for error in [filter, prioritize].map(|read| read.expect_err(wrong).to_string()) {
                assert!(error.contains(said), "{wrong}: {error}");
            }
        }
    }

    #[test]
    fn names_with_escapes_and_as_objects() {
        let by_name = r#"{"Pod": {}, "Nodes": null, "NodeNames": ["a", "\u0062"]}"#;
        let mut args: ExtenderArgs<'_> = serde_json::from_str(by_name).expect("arguments");
        assert_eq!(names(&mut args), ["a", "b"]);
        let by_object = r#"{"Pod": {}, "Nodes": {"metadata": {}, "items": [{"metadata": {"name": "a"}, "x": [1]}]}, "NodeNames": null}"#;
        let mut args: ExtenderArgs<'_> = serde_json::from_str(by_object).expect("arguments");
        assert_eq!(names(&mut args), ["a"]);
        let nameless = r#"{"Pod": {}, "Nodes": {"items": [{"metadata": {}}]}}"#;
        let mut args: ExtenderArgs<'_> = serde_json::from_str(nameless).expect("arguments");
        assert!(args.names().is_err());
    }
}
