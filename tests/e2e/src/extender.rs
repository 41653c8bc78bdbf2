//! The extenders, asked as kube-scheduler asks them.

use anyhow::{Context, Result};
use quarry_bed::Node;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::test::{PATIENCE, Test};

/// The port of the extender for kube-scheduler.
const PORT: u16 = 9899;
/// What is written at a time.
const CHUNK: usize = 1 << 20;

/// An answer: status and body.
pub type Answer = (u16, Value);

/// Sends a request to the extender of a node.
///
/// # Errors
/// There was no answer, or none in JSON.
pub async fn ask(node: &Node, line: &str, body: &[u8]) -> Result<Answer> {
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

impl Test {
    /// Waits until every extender has heard of these claims of the test, and of their classes.
    ///
    /// One that has not says so, and kube-scheduler, which is told that it may, then places a pod without it: a case that
    /// expects the extender's choice makes its claims, waits for this, and makes the pod.
    ///
    /// # Errors
    /// One has not after two minutes.
    pub async fn heard(&self, claims: &[&str]) -> Result<()> {
        let volume = |claim: &&str| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}});
        let volumes: Vec<_> = claims.iter().map(volume).collect();
        let metadata = json!({"name": "asks", "namespace": self.name, "uid": "asks"});
        // What is asked before pods are evicted leaves no trace. A status of 200 says that every claim is known.
        let asked = json!({
            "Pod": {"metadata": metadata, "spec": {"volumes": volumes}},
            "NodeNameToMetaVictims": {"node1": {"Pods": []}},
        });
        let asked = asked.to_string();
        for name in ["node1", "node2", "node3"] {
            let node = self.bed.node(name)?;
            let what = format!("the extender of {name} has heard of {claims:?}");
            self.wait(&what, PATIENCE, || async {
                let (status, _) = ask(&node, "POST /preempt", asked.as_bytes()).await?;
                Ok((status == 200).then_some(()))
            })
            .await?;
        }
        Ok(())
    }
}
