//! What was asked of the cluster, and what the driver has seen of it: the other side of every comparison.

use std::collections::{BTreeMap, BTreeSet};

use crate::schedule::{Kind, NODES, Workload};

/// What is to become of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It is served.
    Served,
    /// It waits for ever, and holds nothing.
    Waiting,
    /// Nothing is left of it.
    Gone,
}

/// A claim that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// How often its name was used before.
    pub generation: u32,
    /// Its UID, as soon as it is known.
    pub uid: Option<String>,
    /// Whether it is a raw volume.
    pub raw: bool,
    /// The random word on its volume, once data was written.
    pub word: Option<String>,
    /// LVM's UUID of its logical volume, once seen.
    pub logical: Option<String>,
}

/// A workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What was asked.
    pub workload: Workload,
    /// What is to become of it.
    pub wanted: Wanted,
    /// Its claims.
    pub claims: Vec<Claim>,
    /// Whether its pod was ever seen to run, so that its data is there.
    pub ran: bool,
}

/// Everything that was asked.
#[derive(Debug, Clone, Default)]
pub struct Book {
    /// The seed, which is a part of every pattern.
    pub seed: u64,
    /// By number.
    pub entries: BTreeMap<u32, Entry>,
    /// Claims made in all.
    pub claims: usize,
    /// Logical volumes that a person has to remove, by name.
    pub forgotten: BTreeSet<String>,
    /// The disks that the volume group of each node of its own is to have; 0 where there is to be none.
    pub groups: [usize; NODES],
    /// The node whose group is filled by hand.
    pub filled: Option<usize>,
    /// Volumes that hold what they may not, by what was seen.
    pub corrupt: BTreeMap<String, String>,
    /// Volumes that were there and are not, or are others.
    pub lost: BTreeMap<String, String>,
}

/// The name of the pod of a workload.
#[must_use]
pub fn pod_name(number: u32) -> String {
    format!("p{number}")
}

/// The names of the claims of a workload, and whether each is raw.
#[must_use]
pub fn claim_names(workload: &Workload) -> Vec<(String, bool)> {
    let number = workload.number;
    match workload.kind {
        Kind::Two => vec![(format!("c{number}"), false), (format!("d{number}"), false)],
        // Named by Kubernetes after the pod and its volume.
        Kind::Ephemeral => vec![(format!("p{number}-data"), false)],
        Kind::Block | Kind::Raw | Kind::Immediate | Kind::Reject => vec![(format!("c{number}"), true)],
        Kind::Kept => vec![(format!("c{number}"), true)],
        Kind::Ext4 | Kind::Xfs | Kind::Btrfs | Kind::Retain | Kind::Plain | Kind::TooLarge => {
            vec![(format!("c{number}"), false)]
        }
    }
}

impl Book {
    /// Begins a workload.
    pub fn begin(&mut self, workload: Workload) {
        let wanted = match workload.kind {
            Kind::TooLarge | Kind::Reject => Wanted::Waiting,
            _ => Wanted::Served,
        };
        let claim = |(name, raw)| Claim {
            name,
            generation: 0,
            uid: None,
            raw,
            word: None,
            logical: None,
        };
        let claims: Vec<_> = claim_names(&workload).into_iter().map(claim).collect();
        self.claims += claims.len();
        self.entries.insert(
            workload.number,
            Entry {
                workload,
                wanted,
                claims,
                ran: false,
            },
        );
    }

    /// Nothing is to be left of a workload.
    pub fn end(&mut self, number: u32) {
        if let Some(entry) = self.entries.get_mut(&number) {
            entry.wanted = Wanted::Gone;
        }
    }

    /// A claim made anew under its name.
    pub fn rebirth(&mut self, number: u32) {
        if let Some(entry) = self.entries.get_mut(&number) {
            for claim in &mut entry.claims {
                self.claims += 1;
                claim.generation += 1;
                (claim.uid, claim.word, claim.logical) = (None, None, None);
            }
        }
    }

    /// The claim of that name.
    pub fn claim_mut(&mut self, name: &str) -> Option<&mut Claim> {
        self.entries
            .values_mut()
            .flat_map(|entry| &mut entry.claims)
            .find(|claim| claim.name == name)
    }

    /// What is still wanted.
    pub fn served(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| entry.wanted == Wanted::Served)
    }
}
