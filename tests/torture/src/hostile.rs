//! A hostile tenant beside the kills: raw volumes with LVM's metadata in them, snapshots made by hand, connections that are dropped,
//! devices that hang. Nothing of that may hold Quarry up for longer than it lasts, and nothing of others may change.

mod image;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::ByteString;
use kube::ResourceExt;
use quarry_e2e::lvm::rows;
use quarry_e2e::objects::{Claim, PodSpec};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::checker::{Fault, Finding};
use crate::load::{GROUP, Load, insist, node_name};
use crate::schedule::NODES;
use image::{Pretended, image};

/// Something that a hostile tenant, or a person, does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Metadata of LVM in raw volumes, with Quarry's tags, the name of its group, the UUID of its group.
    Lvm,
    /// Snapshots of volumes of Quarry, made by hand.
    Snapshots,
    /// Packets of a node are dropped for a while.
    Drops,
    /// A device of nobody's business does not answer for a while.
    Hangs,
}

/// All of them, with their names.
const ACTS: [(&str, Act); 4] = [
    ("lvm", Act::Lvm),
    ("snapshots", Act::Snapshots),
    ("drops", Act::Drops),
    ("hangs", Act::Hangs),
];

/// LVM of the nodes themselves looks at their disks only: what the host's LVM does with a tenant's volume is not Quarry's.
const HOST_LVM: &str = r#"devices { global_filter = [ "a|^/dev/ubd|", "r|.*|" ] }"#;
/// A snapshot of this size.
const SNAPSHOT: &str = "16M";
/// The device that hangs.
const HANGING: &str = "hostile-hanging";
/// So many bytes of an image are not zeros.
const WRITTEN: usize = 16 << 10;
/// A tenant's volume, in MiB.
const SIZE: u64 = 64;

/// The acts that are asked for: `none`, or some with commas between.
///
/// # Errors
/// There is no such act.
pub fn acts(text: &str) -> Result<Vec<Act>> {
    let words: Vec<&str> = text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    if words == ["none"] {
        return Ok(Vec::new());
    }
    let act = |word: &&str| {
        let found = ACTS.iter().find(|(name, _)| name == word).map(|(_, act)| *act);
        found.with_context(|| format!("HOSTILE={text}: {word:?} is none of none, lvm, snapshots, drops, hangs"))
    };
    words.iter().map(act).collect()
}

/// A tenant's volume, whose bytes nobody else may change.
#[derive(Debug, Clone)]
struct Tenant {
    node: usize,
    name: String,
    volume: String,
    sum: String,
}

/// What goes on.
pub struct Hostile {
    load: Load,
    acts: Vec<Act>,
    random: fastrand::Rng,
    tenants: Vec<Tenant>,
    /// Snapshots that were made, by node.
    snapshots: Vec<(usize, String)>,
    /// What ends by itself.
    passing: Vec<JoinHandle<Result<()>>>,
    /// Bytes of others that were changed, by what was seen.
    changed: BTreeMap<String, String>,
    /// How often what was done.
    pub counted: BTreeMap<&'static str, usize>,
}

impl Hostile {
    /// Makes the tenants' volumes.
    ///
    /// # Errors
    /// They cannot be made.
    pub async fn begin(load: Load, acts: Vec<Act>) -> Result<Self> {
        let random = fastrand::Rng::with_seed(load.book().seed ^ 0x6873_7469_6c65);
        let mut hostile = Self {
            load,
            acts,
            random,
            tenants: Vec::new(),
            snapshots: Vec::new(),
            passing: Vec::new(),
            changed: BTreeMap::new(),
            counted: BTreeMap::new(),
        };
        for node in 0..NODES {
            guard(&hostile.load, node).await?;
            let tenant = hostile.tenant(node).await?;
            hostile.tenants.push(tenant);
        }
        Ok(hostile)
    }

    fn does(&self, act: Act) -> bool {
        self.acts.contains(&act)
    }

    /// A pod with a raw volume that is full of what others may take for theirs; it is made anew once that is written, so that its
    /// device appears anew.
    async fn tenant(&mut self, node: usize) -> Result<Tenant> {
        let test = &self.load.test;
        let name = format!("tenant{}", node + 1);
        let class = test.class_name("ext4");
        test.claim(Claim::new(&name, &class, &format!("{SIZE}Mi")).block())
            .await?;
        let pod = || PodSpec::new(&name).claim(&name, true).on(&node_name(node));
        test.pod(pod()).await?;
        test.running(&name).await?;
        let volume = test.volume_of(&name).await?.name_any();
        let device = format!("/dev/{GROUP}/{volume}");
        let machine = test.bed.node(&node_name(node))?;
        if self.does(Act::Lvm) {
            let bytes = self.image(node).await?;
            let text = serde_json::to_value(ByteString(bytes))?;
            let text = text.as_str().unwrap_or_default().to_owned();
            let write = "base64 -d | dd of=\"$1\" bs=4k conv=fsync,notrunc status=none";
            let written = machine.run_with(["sh", "-c", write, "sh", &device], Some(text)).await?;
            ensure!(written.success(), "{name}: {written:?}");
            *self.counted.entry("lvm").or_default() += 1;
        }
        let fill =
            "yes \"$1\" | head -c 1048576 | dd of=\"$2\" bs=1M seek=2 iflag=fullblock conv=fsync,notrunc status=none";
        machine.run_ok(["sh", "-c", fill, "sh", &name, &device]).await?;
        let test = &self.load.test;
        test.delete_pod(&name).await?;
        test.pod(pod()).await?;
        test.running(&name).await?;
        let sum = sum(&self.load, node, &volume).await?;
        println!("torture: {name} has {volume}, {sum}");
        Ok(Tenant {
            node,
            name,
            volume,
            sum,
        })
    }

    /// What is written: a group with Quarry's tags and a volume that would be wiped; one of the name of Quarry's group; one with the
    /// UUID of Quarry's group, and newer.
    async fn image(&self, node: usize) -> Result<Vec<u8>> {
        let machine = self.load.test.bed.node(&node_name(node))?;
        let groups = rows(&machine, "vgs", "vg_name,vg_uuid").await?;
        let own = groups.iter().find(|row| row["vg_name"] == GROUP);
        let own = own
            .and_then(|row| row["vg_uuid"].as_str())
            .context("no group")?
            .to_owned();
        let stolen = |key: &str| format!("quarry.{key}");
        let tags = [
            "version=1",
            "pvc-uid=0",
            "class=torture",
            "state=creating",
            "wipe=signatures",
            "mode=block",
        ];
        let group_uuid = "hostil-vg00-0000-0000-0000-0000-hostil";
        let pretended = Pretended {
            group: "hostile",
            group_uuid,
            physical_volume: "hostil-pv00-0000-0000-0000-0000-hostil",
            sequence: 3,
            tags: &["quarry.version=1", "quarry.policy=delete"],
            volume: Some(("pvc-0", tags.map(stolen).to_vec())),
            size: SIZE << 20,
        };
        let pretended = match node {
            0 => pretended,
            1 => Pretended {
                group: GROUP,
                tags: &[],
                volume: None,
                ..pretended
            },
            _ => Pretended {
                group: GROUP,
                group_uuid: &own,
                sequence: 1_000_000,
                tags: &["quarry.version=1"],
                volume: None,
                ..pretended
            },
        };
        let mut bytes = image(&pretended);
        ensure!(bytes.iter().skip(WRITTEN).all(|byte| *byte == 0), "more is written");
        bytes.truncate(WRITTEN);
        Ok(bytes)
    }

    /// Does one thing to a node, which the step is about.
    ///
    /// # Errors
    /// The node does not answer.
    pub async fn act(&mut self, node: usize) -> Result<Option<String>> {
        self.unsnap(Some(node)).await?;
        let acts: Vec<Act> = self.acts.iter().copied().filter(|act| *act != Act::Lvm).collect();
        let Some(act) = self.random.choice(acts) else {
            return Ok(None);
        };
        let millis = self.random.u64(5_000..20_000);
        let at = node_name(node);
        let done = match act {
            Act::Lvm => return Ok(None),
            Act::Snapshots => match self.snapshot(node).await? {
                Some(what) => format!("{what} on {at}"),
                None => return Ok(None),
            },
            Act::Drops => {
                let machine = self.load.test.bed.node(&at)?;
                machine.cut_network().await?;
                self.passing.push(tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                    insist("the network", || async { Ok(machine.restore_network().await?) }).await
                }));
                format!("packets of {at} dropped for {millis} ms")
            }
            Act::Hangs => {
                if !hang(&self.load, node).await? {
                    return Ok(None);
                }
                let load = self.load.clone();
                self.passing.push(tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                    release(&load, node).await
                }));
                format!("a device hangs on {at} for {millis} ms")
            }
        };
        let name = ACTS.iter().find(|(_, of)| *of == act).map_or("", |(name, _)| *name);
        *self.counted.entry(name).or_default() += 1;
        Ok(Some(done))
    }

    /// A snapshot of some volume of a node, as a person makes one for a backup.
    async fn snapshot(&mut self, node: usize) -> Result<Option<String>> {
        let machine = self.load.test.bed.node(&node_name(node))?;
        // A node that is down is left alone.
        let Ok(volumes) = rows(&machine, "lvs", "lv_name,vg_name,lv_tags").await else {
            return Ok(None);
        };
        let text = |row: &Value, column: &str| row[column].as_str().unwrap_or_default().to_owned();
        let mut origins: Vec<String> = volumes
            .iter()
            .filter(|row| row["vg_name"] == GROUP && text(row, "lv_tags").contains("quarry.state="))
            .map(|row| text(row, "lv_name"))
            .collect();
        origins.sort();
        let Some(origin) = self.random.choice(origins) else {
            return Ok(None);
        };
        let name = format!("hostile-{}", self.counted.get("snapshots").copied().unwrap_or_default());
        let of = format!("{GROUP}/{origin}");
        let made = machine
            .run(["lvcreate", "-y", "-s", "-n", &name, "-L", SNAPSHOT, &of])
            .await?;
        if !made.success() {
            return Ok(None);
        }
        self.snapshots.push((node, name.clone()));
        Ok(Some(format!("snapshot {name} of {origin}")))
    }

    /// Removes the snapshots of a node, or all. One that is not there any more was removed by somebody else.
    async fn unsnap(&mut self, of: Option<usize>) -> Result<()> {
        let (due, left) = std::mem::take(&mut self.snapshots)
            .into_iter()
            .partition(|(node, _)| of.is_none_or(|of| of == *node));
        self.snapshots = left;
        let due: Vec<(usize, String)> = due;
        for (node, name) in due {
            guard(&self.load, node).await?;
            let path = format!("{GROUP}/{name}");
            if self.load.in_node(node, &["lvs", &path]).await? != 0 {
                let what = "a snapshot that was made by hand is gone".to_owned();
                self.changed.insert(format!("{path} on {}", node_name(node)), what);
                continue;
            }
            insist("the snapshot removed", || async {
                match self.load.in_node(node, &["lvremove", "-y", &path]).await? {
                    0 => Ok(()),
                    code => bail!("lvremove {path}: {code}"),
                }
            })
            .await?;
        }
        Ok(())
    }

    /// Ends all that goes on, so that the cluster can come to rest.
    ///
    /// # Errors
    /// It cannot be ended.
    pub async fn rest(&mut self) -> Result<()> {
        for passing in std::mem::take(&mut self.passing) {
            passing.await??;
        }
        for node in 0..NODES {
            guard(&self.load, node).await?;
        }
        self.unsnap(None).await
    }

    /// What of others was changed until now.
    ///
    /// # Errors
    /// A node does not answer.
    pub async fn findings(&mut self) -> Result<Vec<Finding>> {
        for tenant in &self.tenants {
            let now = sum(&self.load, tenant.node, &tenant.volume).await?;
            if now != tenant.sum {
                let what = format!("its bytes were {}, and are {now}", tenant.sum);
                self.changed.insert(format!("volume of {}", tenant.name), what);
            }
        }
        let finding = |(what, seen): (&String, &String)| Finding {
            fault: Fault::Foreign,
            seen: format!("{what}: {seen}"),
        };
        Ok(self.changed.iter().map(finding).collect())
    }

    /// Ends the tenants.
    ///
    /// # Errors
    /// The cluster refuses it for good.
    pub async fn end(&mut self) -> Result<()> {
        self.rest().await?;
        for tenant in std::mem::take(&mut self.tenants) {
            self.load.delete(&self.load.test.pods(), &tenant.name).await?;
            self.load.delete(&self.load.test.claims(), &tenant.name).await?;
        }
        Ok(())
    }
}

/// LVM of the nodes looks at everything again.
///
/// # Errors
/// A node does not answer.
pub async fn unguard(load: &Load) -> Result<()> {
    for node in 0..NODES {
        load.in_node(node, &["rm", "-f", "/etc/lvm/lvmlocal.conf"]).await?;
    }
    Ok(())
}

/// Keeps LVM of a node itself off what is none of its business; its files are in memory and go with its power.
///
/// # Errors
/// The node does not answer.
pub async fn guard(load: &Load, node: usize) -> Result<()> {
    let write = "mkdir -p /etc/lvm && printf '%s\\n' \"$1\" > /etc/lvm/lvmlocal.conf";
    let code = load.in_node(node, &["sh", "-c", write, "sh", HOST_LVM]).await?;
    ensure!(code == 0, "lvmlocal.conf on {}: {code}", node_name(node));
    Ok(())
}

/// The bytes of a volume, in short.
async fn sum(load: &Load, node: usize, volume: &str) -> Result<String> {
    let machine = load.test.bed.node(&node_name(node))?;
    let device = format!("/dev/{GROUP}/{volume}");
    let text = insist(&device, || async { Ok(machine.run_ok(["sha256sum", &device]).await?) }).await?;
    Ok(text.chars().take(16).collect())
}

/// Makes a device that does not answer; whether it was made.
async fn hang(load: &Load, node: usize) -> Result<bool> {
    let machine = load.test.bed.node(&node_name(node))?;
    let (create, suspend) = (
        ["dmsetup", "create", HANGING, "--table", "0 20480 zero"],
        ["dmsetup", "suspend", HANGING],
    );
    // A node that is down is left alone.
    Ok(match machine.run(create).await {
        Ok(made) if made.success() => machine.run(suspend).await.is_ok_and(|output| output.success()),
        _ => false,
    })
}

/// It answers again, and goes.
async fn release(load: &Load, node: usize) -> Result<()> {
    insist("the device that hung", || async {
        load.in_node(node, &["dmsetup", "resume", HANGING]).await?;
        load.in_node(node, &["dmsetup", "remove", "--retry", HANGING]).await?;
        let path = format!("/dev/mapper/{HANGING}");
        ensure!(
            load.in_node(node, &["dmsetup", "info", HANGING]).await? != 0,
            "{path} is there"
        );
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_act_can_be_switched_off() {
        assert_eq!(acts("none").expect("known"), []);
        assert_eq!(acts("lvm, hangs").expect("known"), [Act::Lvm, Act::Hangs]);
        assert_eq!(acts("lvm,snapshots,drops,hangs").expect("known").len(), ACTS.len());
        let error = acts("lvm,fire").expect_err("unknown").to_string();
        assert!(
            error.contains("HOSTILE=lvm,fire") && error.contains("\"fire\""),
            "{error}"
        );
    }
}
