//! Claims and pods: made, restarted, ended, given up, made again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::PostParams;
use quarry_crds::names::{SELECTED_NODE, volume_name};
use quarry_e2e::objects::Claim;
use serde_json::json;

use super::{GROUP, Load, insist, node_name};
use crate::book::{claim_names, pod_name};
use crate::pods;
use crate::schedule::{Kind, Workload};

impl Load {
    pub(super) async fn create(&self, workload: Workload) -> Result<()> {
        self.book().begin(workload);
        if workload.kind != Kind::Ephemeral {
            for (name, _) in claim_names(&workload) {
                self.create_claim(workload, &name, None).await?;
            }
        }
        if workload.kind.has_pod() {
            self.create_pod(workload.number).await?;
        }
        Ok(())
    }

    async fn create_claim(&self, workload: Workload, name: &str, not: Option<&str>) -> Result<()> {
        let class = match workload.kind {
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
            Kind::Retain | Kind::Kept => "retain",
            Kind::Immediate => "now",
            Kind::Raw => "zero",
            _ if name.starts_with('d') => "xfs",
            _ => "ext4",
        };
        let size = if name.starts_with('d') { 304 } else { workload.size };
        let mut claim = Claim::new(name, &self.test.class_name(class), &format!("{size}Mi"));
        let raw = claim_names(&workload).iter().any(|(known, raw)| known == name && *raw);
        if raw {
            claim = claim.block();
        }
        if !workload.kind.has_pod() && workload.kind != Kind::Immediate {
            claim.0["metadata"]["annotations"] = json!({SELECTED_NODE: node_name(workload.node)});
        }
        let object = claim.object()?;
        let claims = self.test.claims();
        let made = insist(&format!("claim {name}"), || async {
            let made: PersistentVolumeClaim = match claims.create(&PostParams::default(), &object).await {
                Ok(made) => made,
                // An answer that was lost, or one that is not gone yet.
                Err(kube::Error::Api(status)) if status.is_already_exists() => claims.get(name).await?,
                Err(error) => return Err(error.into()),
            };
            ensure!(made.uid().as_deref() != not, "the former one is still there");
            Ok(made)
        })
        .await?;
        if let Some(claim) = self.book().claim_mut(name) {
            claim.uid = made.uid();
        }
        Ok(())
    }

    async fn create_pod(&self, number: u32) -> Result<()> {
        let entry = self.book().entries.get(&number).cloned().context("never made")?;
        let pod: Pod = pods::pod(&entry, self.book().seed, &self.test.class_name("ext4"))?;
        let pods = self.test.pods();
        insist(&format!("pod {number}"), || async {
            match pods.create(&PostParams::default(), &pod).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.is_already_exists() => {
                    let there = pods.get(&pod.name_any()).await?;
                    ensure!(
                        there.metadata.deletion_timestamp.is_none(),
                        "the former one is still there"
                    );
                    Ok(())
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    pub(super) async fn restart(&self, number: u32) -> Result<()> {
        let pods = self.test.pods();
        let name = pod_name(number);
        let there = insist("the API server", || async { Ok(pods.get_opt(&name).await?) }).await?;
        let ran = there.as_ref().is_some_and(pods::is_ready);
        if let Some(entry) = self.book().entries.get_mut(&number) {
            // An ephemeral volume goes with its pod.
            entry.ran |= ran && entry.workload.kind != Kind::Ephemeral;
        }
        self.delete(&pods, &name).await?;
        insist(&format!("pod {name} gone"), || async {
            match pods.get_opt(&name).await? {
                Some(_) => bail!("it is still there"),
                None => Ok(()),
            }
        })
        .await?;
        let ephemeral = self
            .book()
            .entries
            .get(&number)
            .is_some_and(|entry| entry.workload.kind == Kind::Ephemeral);
        if ephemeral {
            // Its claim is the garbage collector's; a pod must not meet the one of its predecessor.
            let claim = format!("{name}-data");
            let claims = self.test.claims();
            insist(&format!("claim {claim} gone"), || async {
                match claims.get_opt(&claim).await? {
                    Some(_) => bail!("it is still there"),
                    None => Ok(()),
                }
            })
            .await?;
            self.book().rebirth(number);
        }
        self.create_pod(number).await
    }

    pub(super) async fn end(&self, number: u32) -> Result<()> {
        self.book().end(number);
        let entry = self.book().entries.get(&number).cloned().context("never made")?;
        if entry.workload.kind.has_pod() {
            self.delete(&self.test.pods(), &pod_name(number)).await?;
        }
        if entry.workload.kind != Kind::Ephemeral {
            for claim in &entry.claims {
                self.delete(&self.test.claims(), &claim.name).await?;
            }
        }
        Ok(())
    }

    /// Ends a workload whose volume is retained, and gives the volume up.
    pub(super) async fn forget(&self, number: u32) -> Result<()> {
        let volumes = self.volumes_of(number);
        let bound = self.settled(number, Duration::from_secs(20)).await.is_ok();
        self.end(number).await?;
        for volume in volumes {
            let api = self.test.volumes();
            let there = insist("the API server", || async { Ok(api.get_opt(&volume).await?) }).await?;
            if there.is_none() && !bound {
                continue;
            }
            // Kubernetes has to see first that the claim is gone.
            let _ = self
                .test
                .wait("released", Duration::from_secs(20), || async {
                    let there = api.get_opt(&volume).await.unwrap_or_default();
                    let phase = there.and_then(|volume| volume.status?.phase);
                    Ok((phase.as_deref() == Some("Released")).then_some(()))
                })
                .await;
            self.delete(&api, &volume).await?;
            self.book().forgotten.insert(volume);
        }
        Ok(())
    }

    pub(super) async fn rebirth(&self, number: u32) -> Result<()> {
        let entry = self.book().entries.get(&number).cloned().context("never made")?;
        for claim in &entry.claims {
            self.delete(&self.test.claims(), &claim.name).await?;
        }
        self.book().rebirth(number);
        for claim in &entry.claims {
            self.create_claim(entry.workload, &claim.name, claim.uid.as_deref())
                .await?;
        }
        Ok(())
    }

    /// The names of the volumes of a workload, as far as its claims' UIDs are known.
    pub(super) fn volumes_of(&self, number: u32) -> Vec<String> {
        let book = self.book();
        let claims = book.entries.get(&number).map(|entry| entry.claims.clone());
        let uids = claims.into_iter().flatten().filter_map(|claim| claim.uid);
        uids.map(|uid| volume_name(&uid)).collect()
    }

    /// Waits until every claim of a workload is bound.
    pub(super) async fn settled(&self, number: u32, patience: Duration) -> Result<()> {
        let entry = self.book().entries.get(&number).cloned().context("never made")?;
        let claims = self.test.claims();
        self.test
            .wait("bound", patience, || async {
                for claim in &entry.claims {
                    let there = claims.get_opt(&claim.name).await.unwrap_or_default();
                    if !there.is_some_and(|claim| quarry_crds::claim::is_bound(&claim)) {
                        return Ok(None);
                    }
                }
                Ok(Some(()))
            })
            .await
    }

    /// Waits until the logical volume of a workload is there; for a while only.
    pub async fn made(&self, workload: Workload, patience: Duration) {
        let Ok(node) = self.test.bed.node(&node_name(workload.node)) else {
            return;
        };
        let deadline = Instant::now() + patience;
        let volumes = self.volumes_of(workload.number);
        while Instant::now() < deadline {
            let there = async {
                for volume in &volumes {
                    let path = format!("/dev/{GROUP}/{volume}");
                    if node
                        .run(["test", "-b", &path])
                        .await
                        .is_ok_and(|output| output.success())
                    {
                        return true;
                    }
                }
                false
            };
            if there.await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
