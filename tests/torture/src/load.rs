//! Operations → the cluster, insisting while the API server or a node is down; and the book of what was asked.

mod groups;
mod workloads;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kube::Resource;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use quarry_crds::names::SELECTED_NODE;
use quarry_e2e::objects::Class;
use quarry_e2e::test::Test;
use serde_json::json;

use crate::book::{Book, Wanted};
use crate::schedule::{Kind, Op, Workload};

/// The volume group that all classes but those of single groups share.
pub const GROUP: &str = "torture";
/// What a person makes in it by hand.
pub const BY_HAND: &str = "byhand";
/// How long something may be insisted on: a node's boot is within.
const PATIENCE: Duration = Duration::from_secs(120);

/// The cluster under load.
#[derive(Clone)]
pub struct Load {
    /// The cluster, the namespace, the classes.
    pub test: Arc<Test>,
    book: Arc<Mutex<Book>>,
    /// Held by whoever writes or proves raw volumes: one that is written while another proves it would seem to be old.
    pub proving: Arc<tokio::sync::Mutex<()>>,
}

/// The name of a node, counted from 0.
#[must_use]
pub fn node_name(node: usize) -> String {
    format!("node{}", node + 1)
}

/// The class, and volume group, that a node has for itself.
#[must_use]
pub fn own_group(node: usize) -> String {
    format!("torture-g{}", node + 1)
}

/// Does something again and again until it works: what it needs may be down.
///
/// # Errors
/// It does not work for two minutes.
pub async fn insist<T, F>(what: &str, mut work: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        let last = Instant::now() > deadline;
        match work().await {
            Ok(done) => return Ok(done),
            Err(error) if last => return Err(error).with_context(|| what.to_owned()),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

impl Load {
    /// A load on a cluster without any.
    #[must_use]
    pub fn new(test: Arc<Test>, seed: u64) -> Self {
        let book = Book {
            seed,
            ..Book::default()
        };
        Self {
            test,
            book: Arc::new(Mutex::new(book)),
            proving: Arc::default(),
        }
    }

    /// The book.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the classes and waits until they can be used.
    ///
    /// # Errors
    /// They cannot.
    pub async fn classes(&self) -> Result<()> {
        let nodes = self.test.each_node(0)?;
        let class = |suffix: &str| Class::new(&self.test.class_name(suffix), &nodes).parameter("volumeGroup", GROUP);
        for class in [
            class("ext4"),
            class("xfs").parameter("fsType", "xfs"),
            class("btrfs").parameter("fsType", "btrfs"),
            class("retain").with("reclaimPolicy", "Retain"),
            class("now").with("volumeBindingMode", "Immediate"),
            // Marked before they are wiped; of others only signatures are, at once.
            class("zero").parameter("wipe", "zero"),
        ] {
            let name = self.test.class(class).await?;
            self.test.ready(&name, 3).await?;
        }
        Ok(())
    }

    /// Does one operation; [`Op::Leftover`] is [`Kills`](crate::kills::Kills)'s.
    ///
    /// # Errors
    /// The cluster refuses it for good.
    pub async fn perform(&self, op: Op) -> Result<()> {
        match op {
            Op::Create(workload) => self.create(workload).await,
            Op::Settle(number) => {
                let _ = self.settled(number, Duration::from_secs(15)).await;
                Ok(())
            }
            Op::Restart(number) => self.restart(number).await,
            Op::End(number) => self.end(number).await,
            Op::EndVolumeFirst(number) => {
                for volume in self.volumes_of(number) {
                    self.delete(&self.test.volumes(), &volume).await?;
                }
                self.end(number).await
            }
            Op::Forget(number) => self.forget(number).await,
            Op::Rebirth(number) => self.rebirth(number).await,
            Op::Fleeting(workload, after) => {
                self.create(workload).await?;
                tokio::time::sleep(Duration::from_millis(after)).await;
                self.end(workload.number).await
            }
            Op::Unwanted(workload) => {
                self.create(workload).await?;
                self.made(workload, Duration::from_secs(5)).await;
                self.end(workload.number).await
            }
            Op::Leftover(workload) => self.create(workload).await,
            Op::Fill(node) => self.fill(node).await,
            Op::Unfill(node) => self.unfill(node).await,
            Op::GroupUp(node) => self.group_up(node).await,
            Op::GroupGrow(node) => self.group_grow(node).await,
            Op::GroupDown(node) => self.group_down(node).await,
        }
    }

    /// Ends everything.
    ///
    /// # Errors
    /// The cluster refuses it for good.
    pub async fn end_all(&self) -> Result<()> {
        let entries: Vec<_> = self.book().entries.values().cloned().collect();
        for entry in entries.iter().filter(|entry| entry.wanted != Wanted::Gone) {
            match entry.workload.kind {
                Kind::Retain | Kind::Kept => self.forget(entry.workload.number).await?,
                _ => self.end(entry.workload.number).await?,
            }
        }
        for node in 0..crate::schedule::NODES {
            if self.book().groups[node] > 0 {
                self.group_down(node).await?;
            }
        }
        Ok(())
    }

    /// What a scheduler does with a claim that was given back to it: it chooses again. Here the same node, once it has room.
    ///
    /// # Errors
    /// The API server did not answer.
    pub async fn choose_again(&self) -> Result<()> {
        let claims = self.test.claims();
        let light: Vec<Workload> = {
            let book = self.book();
            let waits = |workload: &Workload| {
                matches!(workload.kind, Kind::Raw | Kind::Plain | Kind::Kept) && book.filled != Some(workload.node)
            };
            book.served().map(|entry| entry.workload).filter(waits).collect()
        };
        for workload in light {
            let name = format!("c{}", workload.number);
            let Some(claim) = claims.get_opt(&name).await? else {
                continue;
            };
            let waits = !quarry_crds::claim::is_bound(&claim) && quarry_crds::claim::selected_node(&claim).is_none();
            if waits && claim.metadata.deletion_timestamp.is_none() {
                let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node_name(workload.node)}}});
                claims
                    .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                    .await?;
            }
        }
        Ok(())
    }

    /// Deletes an object; one that is gone is deleted.
    pub async fn delete<K>(&self, api: &Api<K>, name: &str) -> Result<()>
    where
        K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        insist(&format!("{name} deleted"), || async {
            match api.delete(name, &DeleteParams::default()).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Runs a program in a node, insisting while the node is down; its exit code.
    ///
    /// # Errors
    /// It is down for good.
    pub async fn in_node(&self, node: usize, argv: &[&str]) -> Result<i32> {
        let node = self.test.bed.node(&node_name(node))?;
        insist(argv[0], || async { Ok(node.run(argv.iter().copied()).await?.status) }).await
    }
}
