//! Answers to kube-scheduler as it reads them (k8s.io/kube-scheduler `extender/v1`), written into a buffer.
//!
//! `serde_json` looks at each byte of a text for what is to be escaped, and there are thousands of names of nodes in an
//! answer: they go back as they came. What that saves is in docs/performance.md.

use serde_json::value::RawValue;

use crate::api::Name;
use crate::decide::Answer;

/// Writes an `ExtenderFilterResult`. Nodes that came as objects go back as objects, beside their names.
///
/// # Errors
/// A text could not be written.
pub fn filter(
    out: &mut Vec<u8>,
    names: &[Name<'_>],
    objects: Option<&[&RawValue]>,
    answer: &Answer,
) -> serde_json::Result<()> {
    out.extend_from_slice(b"{\"Nodes\":");
    match objects {
        None => out.extend_from_slice(b"null"),
        Some(objects) => {
            out.extend_from_slice(b"{\"metadata\":{},\"items\":[");
            let object = |out: &mut Vec<u8>, at: usize| {
                out.extend_from_slice(objects[at].get().as_bytes());
                Ok(())
            };
            passed(out, names.len(), answer, object)?;
            out.extend_from_slice(b"]}");
        }
    }
    // Never null, which the scheduler would read as a fault of ours.
    out.extend_from_slice(b",\"NodeNames\":[");
    passed(out, names.len(), answer, |out, at| names[at].write(out))?;
    // `FailedNodes` are those that may pass if pods are evicted: none, because evicting a pod frees no volume.
    out.extend_from_slice(b"],\"FailedNodes\":{},\"FailedAndUnresolvableNodes\":{");
    if let Answer::Some { refused, reasons, .. } = answer {
        let texts = reasons.iter().map(|reason| serde_json::to_vec(&reason.text));
        let texts: Vec<_> = texts.collect::<Result<_, _>>()?;
        for (at, reason) in refused {
            separate(out);
            names[*at].write(out)?;
            out.push(b':');
            out.extend_from_slice(&texts[*reason]);
        }
    }
    out.extend_from_slice(b"},\"Error\":");
    let error = if let Answer::Error(_, text) = answer { text } else { "" };
    serde_json::to_writer(&mut *out, error)?;
    out.push(b'}');
    Ok(())
}

/// Writes a `HostPriorityList`. None is one without points for any node.
///
/// # Errors
/// A text could not be written.
pub fn prioritize(out: &mut Vec<u8>, names: &[Name<'_>], scores: &[i64]) -> serde_json::Result<()> {
    out.push(b'[');
    for (name, score) in names.iter().zip(scores) {
        separate(out);
        out.extend_from_slice(b"{\"Host\":");
        name.write(out)?;
        out.extend_from_slice(b",\"Score\":");
        serde_json::to_writer(&mut *out, score)?;
        out.push(b'}');
    }
    out.push(b']');
    Ok(())
}

/// Writes each candidate that passed.
fn passed(
    out: &mut Vec<u8>,
    candidates: usize,
    answer: &Answer,
    write: impl Fn(&mut Vec<u8>, usize) -> serde_json::Result<()>,
) -> serde_json::Result<()> {
    let mut each = |at| {
        separate(out);
        write(out, at)
    };
    match answer {
        Answer::All => (0..candidates).try_for_each(&mut each),
        Answer::Some { passed, .. } => passed.iter().copied().try_for_each(&mut each),
        Answer::Error(..) => Ok(()),
    }
}

/// Separates an element from the one before it.
fn separate(out: &mut Vec<u8>) {
    if !matches!(out.last(), Some(b'[' | b'{')) {
        out.push(b',');
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde_json::{Value, json};

    use super::*;
    use crate::api::ExtenderArgs;
    use crate::decide::Doubt;

    /// Names with everything that JSON escapes, and more than is ASCII.
    const ODD: &str =
        r#"{"Pod": {}, "NodeNames": ["plain", "quo\"te", "back\\slash", "\u0001\n", "größe", "\u00fc", ""]}"#;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Value {
        let mut out = Vec::new();
        write(&mut out);
        serde_json::from_slice(&out).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&out)))
    }

    #[test]
    fn whatever_a_node_is_called_its_name_comes_back() {
        let mut args: ExtenderArgs<'_> = serde_json::from_str(ODD).expect("arguments");
        let names = args.names().expect("names");
        let sent: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        assert_eq!(sent, ["plain", "quo\"te", "back\\slash", "\u{1}\n", "größe", "ü", ""]);
        let all = written(|out| filter(out, &names, None, &Answer::All).expect("written"));
        assert_eq!((&all["NodeNames"], &all["Nodes"]), (&json!(sent), &Value::Null));
        let reason = crate::decide::tests::reason(Cow::Borrowed("no \"room\""));
        let some = Answer::Some {
            passed: vec![1, 4],
            refused: vec![(0, 0), (3, 0)],
            reasons: vec![reason],
        };
        let some = written(|out| filter(out, &names, None, &some).expect("written"));
        let refused = json!({"plain": "no \"room\"", "\u{1}\n": "no \"room\""});
        assert_eq!(
            some,
            json!({"Nodes": null, "NodeNames": ["quo\"te", "größe"], "FailedNodes": {},
                   "FailedAndUnresolvableNodes": refused, "Error": ""})
        );
        let error = Answer::Error(Doubt::NotReady, "\"not\" yet".to_owned());
        let error = written(|out| filter(out, &names, None, &error).expect("written"));
        assert_eq!(
            (&error["NodeNames"], &error["Error"]),
            (&json!([]), &json!("\"not\" yet"))
        );
        let scores: Vec<i64> = (0..7).collect();
        let list = written(|out| prioritize(out, &names, &scores).expect("written"));
        let expected: Vec<_> = sent
            .iter()
            .zip(&scores)
            .map(|(host, score)| json!({"Host": host, "Score": score}))
            .collect();
        assert_eq!(list, json!(expected));
        assert_eq!(written(|out| prioritize(out, &names, &[]).expect("written")), json!([]));
    }
}
