//! Volume groups: filled by hand and emptied, made with a class of their own, extended, taken down.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Resource;
use kube::api::{Api, Patch, PatchParams, PostParams};
use quarry_crds::NodeLocalStorage;
use quarry_e2e::objects::Class;
use serde_json::json;

use super::{BY_HAND, GROUP, Load, insist, node_name, own_group};

impl Load {
    pub(super) async fn fill(&self, node: usize) -> Result<()> {
        self.book().filled = Some(node);
        let argv = ["lvcreate", "-y", "-Wn", "-Zn", "-l", "100%FREE", "-n", BY_HAND, GROUP];
        // Where nothing is free it is full already.
        self.in_node(node, &argv).await.map(drop)
    }

    /// Takes away what was made by hand.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn unfill(&self, node: usize) -> Result<()> {
        let path = format!("{GROUP}/{BY_HAND}");
        insist("what was made by hand removed", || async {
            self.in_node(node, &["lvremove", "-y", &path]).await?;
            let left = self.in_node(node, &["test", "-e", &format!("/dev/{path}")]).await?;
            ensure!(left != 0, "it is still there");
            Ok(())
        })
        .await?;
        self.book().filled = None;
        Ok(())
    }

    pub(super) async fn group_up(&self, node: usize) -> Result<()> {
        let name = own_group(node);
        let (storages, device) = (self.test.storages(), format!("/dev/{name}"));
        let storage = format!("{name}.{}", node_name(node));
        // What is made anew is first gone.
        insist(&format!("{name} gone"), || async {
            ensure!(
                storages.get_opt(&storage).await?.is_none(),
                "NodeLocalStorage {storage} is left"
            );
            let found = self.in_node(node, &["vgs", &name]).await?;
            ensure!(found != 0, "volume group {name} ({device}) is left");
            Ok(())
        })
        .await?;
        let disk = self.test.bed.disk(node + 1, 1)?;
        let class = Class::new(&name, &[(&node_name(node), vec![disk])]).parameter("volumeGroupPolicy", "Delete");
        let class = class.object()?;
        let classes: Api<StorageClass> = Api::all(self.test.client());
        self.book().groups[node] = 1;
        insist(&format!("class {name}"), || async {
            match classes.create(&PostParams::default(), &class).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    pub(super) async fn group_grow(&self, node: usize) -> Result<()> {
        let name = own_group(node);
        self.group_is_there(node).await;
        let disk = self.test.bed.disk(node + 1, 2)?;
        let storages: Api<NodeLocalStorage> = self.test.storages();
        let object = json!({
            "apiVersion": NodeLocalStorage::api_version(&()), "kind": NodeLocalStorage::kind(&()),
            "metadata": {"name": format!("{name}.{}", node_name(node))},
            "spec": {"disks": [{"path": disk}]},
        });
        let params = PatchParams::apply("an-administrator").force();
        insist(&format!("a disk for {name}"), || async {
            let patched = storages
                .patch(&format!("{name}.{}", node_name(node)), &params, &Patch::Apply(&object))
                .await;
            Ok(patched.map(drop)?)
        })
        .await?;
        self.book().groups[node] = 2;
        Ok(())
    }

    pub(super) async fn group_down(&self, node: usize) -> Result<()> {
        self.group_is_there(node).await;
        let classes: Api<StorageClass> = Api::all(self.test.client());
        self.delete(&classes, &own_group(node)).await?;
        self.book().groups[node] = 0;
        Ok(())
    }

    /// Waits until a node's own group is there, for a while only.
    async fn group_is_there(&self, node: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            if self
                .in_node(node, &["vgs", &own_group(node)])
                .await
                .is_ok_and(|code| code == 0)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
