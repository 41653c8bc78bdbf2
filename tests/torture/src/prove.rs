//! Raw volumes without a pod: the driver itself writes their pattern in the node, and proves it. And what was seen of
//! every volume is written into the book, so that another one in its place is noticed.

use anyhow::Result;
use quarry_bed::Output;

use crate::book::{Claim, Wanted};
use crate::data::{self, CORRUPT, DEVICE, LOST};
use crate::load::{GROUP, Load};
use crate::observe::Snapshot;
use crate::schedule::Kind;

/// Remembers UIDs, LVM's UUIDs and words that are seen for the first time.
pub fn learn(load: &Load, seen: &Snapshot) {
    let mut book = load.book();
    let claims = seen.claims_by_name();
    for entry in book.entries.values_mut().filter(|entry| entry.wanted == Wanted::Served) {
        for claim in &mut entry.claims {
            let Some(there) = claims.get(&claim.name) else {
                continue;
            };
            if claim.uid.is_none() && entry.workload.kind == Kind::Ephemeral {
                claim.uid.clone_from(&there.metadata.uid);
            }
            if claim.uid != there.metadata.uid || !quarry_crds::claim::is_bound(there) {
                continue;
            }
            let volume = format!("pvc-{}", claim.uid.as_deref().unwrap_or_default());
            if claim.logical.is_none() {
                claim.logical = seen.logical(&volume).next().map(|(_, logical)| logical.uuid.clone());
            }
            let mut mounted = seen.nodes.iter().flat_map(|node| &node.mounted);
            if claim.word.is_none() && !claim.raw {
                let word = mounted.find(|mounted| mounted.volume == volume);
                claim.word = word.map(|mounted| mounted.word.clone());
            }
        }
    }
}

/// Writes the pattern into each raw volume that has none yet, or proves those that have one.
///
/// # Errors
/// The API server does not answer.
pub async fn raw_volumes(load: &Load, written: bool) -> Result<()> {
    let _alone = load.proving.lock().await;
    let volumes = load.test.volumes().list(&kube::api::ListParams::default()).await?.items;
    let todo: Vec<(u32, Claim)> = {
        let book = load.book();
        let light = |kind: Kind| matches!(kind, Kind::Raw | Kind::Immediate | Kind::Kept);
        let entries = book.served().filter(|entry| light(entry.workload.kind));
        let claims = entries.flat_map(|entry| {
            let number = entry.workload.number;
            entry.claims.iter().map(move |claim| (number, claim.clone()))
        });
        claims.filter(|(_, claim)| claim.word.is_some() == written).collect()
    };
    for (number, claim) in todo {
        let volume = format!("pvc-{}", claim.uid.as_deref().unwrap_or_default());
        let bound = volumes.iter().find(|there| {
            let phase = there.status.as_ref().and_then(|status| status.phase.as_deref());
            there.metadata.name.as_deref() == Some(&volume) && phase == Some("Bound")
        });
        let Some(node) = bound
            .and_then(quarry_crds::persistent_volume::ours)
            .map(|ours| ours.node)
        else {
            continue;
        };
        // A node that is down is asked again later.
        if let Ok(output) = on_device(load, &claim, &volume, &node).await {
            note(load, number, &claim, &volume, &output, &node).await;
        }
    }
    Ok(())
}

async fn on_device(load: &Load, claim: &Claim, volume: &str, node: &str) -> Result<Output> {
    let line = data::line(load.book().seed, &claim.name, claim.generation);
    let (device, new) = (
        format!("/dev/{GROUP}/{volume}"),
        if claim.word.is_some() { "0" } else { "1" },
    );
    let node = load.test.bed.node(node)?;
    Ok(node.run(["sh", "-c", DEVICE, "sh", &line, &device, new]).await?)
}

/// Writes into the book what was found on a volume, unless the volume was given up meanwhile.
async fn note(load: &Load, number: u32, claim: &Claim, volume: &str, output: &Output, node: &str) {
    let still_there = async {
        let node = load.test.bed.node(node).ok()?;
        let device = format!("/dev/{GROUP}/{volume}");
        let there = node.run(["test", "-b", &device]).await.ok()?;
        there.success().then_some(())
    };
    if still_there.await.is_none() {
        return;
    }
    let mut book = load.book();
    let served = book
        .entries
        .get_mut(&number)
        .filter(|entry| entry.wanted == Wanted::Served)
        .and_then(|entry| {
            entry
                .claims
                .iter_mut()
                .find(|there| there.name == claim.name && there.uid == claim.uid)
        });
    let Some(served) = served else { return };
    let said = output.stdout.trim().to_owned();
    let title = format!("{volume} (claim {}) on {node}", claim.name);
    match (i64::from(output.status), &served.word) {
        (0, None) if !said.is_empty() => served.word = Some(said),
        (0, Some(word)) if *word != said => {
            let what = format!("made anew: its word is {said} and was {word}");
            book.lost.insert(title, what);
        }
        (CORRUPT, _) => drop(book.corrupt.insert(title, said)),
        (LOST, _) => drop(book.lost.insert(title, said)),
        _ => {}
    }
}

/// Logical volumes whose retained PersistentVolume was deleted are a person's to remove; those that Quarry removed are lost.
///
/// # Errors
/// Something does not answer.
pub async fn remove_forgotten(load: &Load, seen: &Snapshot) -> Result<()> {
    let forgotten = load.book().forgotten.clone();
    for volume in forgotten {
        let object = seen
            .volumes
            .iter()
            .any(|there| there.metadata.name.as_deref() == Some(&volume));
        if object {
            continue;
        }
        let Some((node, logical)) = seen.logical(&volume).next() else {
            let mut book = load.book();
            book.forgotten.remove(&volume);
            book.lost
                .insert(volume, "retained, and its logical volume is gone".to_owned());
            continue;
        };
        let path = format!("{}/{}", logical.group, logical.name);
        let node = load.test.bed.node(&node.name)?;
        if node.run(["lvremove", "-y", &path]).await?.success() {
            load.book().forgotten.remove(&volume);
        }
    }
    Ok(())
}

/// Volumes that were not written yet are, as long as this runs; claims that were given back are sent out again.
pub async fn keep_writing(load: Load) {
    loop {
        // What is down is tried again.
        let _ = load.choose_again().await;
        let _ = raw_volumes(&load, false).await;
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    }
}
