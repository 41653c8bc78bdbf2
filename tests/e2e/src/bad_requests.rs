//! Requests that no scheduler sends: the extender answers each with an error in JSON, and goes on.

use anyhow::{Context, Result, ensure};
use quarry_bed::Node;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::case;
use crate::test::{Case, Test};

/// The cases.
pub const CASES: &[Case] = &[case!(bad_requests_are_answered_in_json)];

/// The port of the extender for kube-scheduler.
const PORT: u16 = 9899;
/// What is written at a time.
const CHUNK: usize = 1 << 20;

/// An answer: status and body.
type Answer = (u16, Value);

/// Sends a request to the extender of a node.
async fn ask(node: &Node, line: &str, body: &[u8]) -> Result<Answer> {
    let mut stream = node.connect(PORT).await?;
    let head = format!(
        "{line} HTTP/1.1\r\nHost: quarry\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    for part in body.chunks(CHUNK) {
        // The extender may have refused the rest.
        if stream.write_all(part).await.is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("no answer of HTTP: {answer:?}"))?;
    let status = head.split_whitespace().nth(1).context("no status")?.parse()?;
    Ok((
        status,
        serde_json::from_str(body).with_context(|| format!("not JSON: {answer}"))?,
    ))
}

/// Makes sure that the extender of a node still decides, in the process that it had before.
async fn decides(node: &Node) -> Result<String> {
    let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": {"containers": []}});
    let asked = json!({"Pod": pod, "NodeNames": ["node1", "node2"]}).to_string();
    let (status, answer) = ask(node, "POST /filter", asked.as_bytes()).await?;
    ensure!(
        status == 200 && answer["NodeNames"] == json!(["node1", "node2"]),
        "{status} {answer}"
    );
    Ok(node.run_ok(["pgrep", "-x", "quarry-extender"]).await?)
}

async fn bad_requests_are_answered_in_json(test: &Test) -> Result<()> {
    let node = test.bed.node("node1")?;
    let process = decides(&node).await?;
    let nested = format!(
        "{{\"Pod\": {{\"metadata\": {{\"name\": \"p\"}}, \"more\": {}",
        "[".repeat(1 << 20)
    );
    // More than is accepted; what it says does not matter.
    let huge = vec![b' '; (128 << 20) + 1];
    for line in ["POST /filter", "POST /prioritize"] {
        let requests: [(&str, &[u8], u16, &str); 8] = [
            ("empty", b"", 400, "the body is empty"),
            ("no JSON", b"{\"Pod\": nonsense", 400, "the body is not ExtenderArgs"),
            (
                "no UTF-8",
                b"{\"Pod\": \"\xff\xfe\"}",
                400,
                "the body is not ExtenderArgs",
            ),
            ("another type", b"[1, 2, 3]", 400, "the body is not ExtenderArgs"),
            (
                "no pod",
                b"{\"NodeNames\": [\"node1\"]}",
                400,
                "the body is not ExtenderArgs",
            ),
            (
                "names twice",
                b"{\"Pod\": {}, \"NodeNames\": [\"node1\"], \"NodeNames\": [\"node2\"]}",
                400,
                "duplicate field `NodeNames`",
            ),
            ("nested", nested.as_bytes(), 400, "the body is not ExtenderArgs"),
            ("huge", &huge, 413, "raise --max-body-bytes"),
        ];
        for (what, body, wanted, told) in requests {
            let (status, answer) = ask(&node, line, body)
                .await
                .with_context(|| format!("{line}, {what}"))?;
            println!("   {line}, {what}: {status} {answer}");
            let text = answer["Error"].as_str().unwrap_or_default();
            ensure!(
                status == wanted && text.contains(told),
                "{line}, {what}: {status} {answer}"
            );
        }
    }
    for (line, wanted, told) in [
        ("GET /filter", 405, "use POST"),
        ("POST /bind", 404, "/bind is not served here"),
    ] {
        let (status, answer) = ask(&node, line, b"{}").await?;
        println!("   {line}: {status} {answer}");
        ensure!(
            status == wanted && answer["Error"].as_str().is_some_and(|text| text.contains(told)),
            "{status} {answer}"
        );
    }
    // Far more nodes than there are is nothing bad.
    let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": {}});
    let names: Vec<String> = (0..100_000).map(|number| format!("node-{number}")).collect();
    let asked = json!({"Pod": pod, "NodeNames": names}).to_string();
    let (status, answer) = ask(&node, "POST /filter", asked.as_bytes()).await?;
    ensure!(
        status == 200 && answer["NodeNames"].as_array().map(Vec::len) == Some(names.len()),
        "{status}"
    );
    ensure!(decides(&node).await? == process, "the extender was started again");
    Ok(())
}
