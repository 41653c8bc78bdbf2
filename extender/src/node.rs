//! One node: its volume groups, and what is left of them.

use std::collections::{BTreeMap, HashMap};

use quarry_crds::capacity::Account;
use quarry_crds::extents::{Bytes, ExtentSize, Extents};
use quarry_crds::names::volume_name;
use quarry_crds::placement::{Offer, Standing};

use crate::objects::{Storage, Volume};

/// A claim that is on its way to a node and takes space there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnTheWay {
    /// Its UID.
    pub claim_uid: Box<str>,
    /// Its class.
    pub class: Box<str>,
    /// What it asks for.
    pub size: Bytes,
}

/// What is known of one node.
#[derive(Debug, Default)]
pub struct Node {
    /// Its name.
    pub name: Box<str>,
    /// Whether its manager is silent: nobody would make a volume there.
    pub(crate) silent: bool,
    /// Its NodeLocalStorages, by name.
    pub(crate) storages: BTreeMap<Box<str>, Storage>,
    /// The volumes of ours that it holds, by name.
    pub(crate) volumes: HashMap<Box<str>, Volume>,
    /// The claims that are on their way to it, by key.
    pub(crate) on_the_way: HashMap<Box<str>, OnTheWay>,
    /// Reckoned from the above.
    groups: Vec<Group>,
}

/// One volume group of a node, reckoned from the objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// LVM's UUID of it.
    pub uuid: String,
    /// Its name, for people.
    pub name: String,
    /// Size of one extent.
    pub extent_size: ExtentSize,
    /// All its extents.
    pub size: Extents,
    /// What is left for further claims.
    pub free: Extents,
    /// What claims on their way take of it.
    pub in_flight: Extents,
    /// How many claims are on their way to it.
    pub claims: usize,
}

impl Node {
    /// Whether nothing of ours is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.storages.is_empty() && self.volumes.is_empty() && self.on_the_way.is_empty()
    }

    /// Its volume groups.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The volumes of ours that it holds, with their names.
    pub fn volumes(&self) -> impl Iterator<Item = (&str, &Volume)> {
        self.volumes.iter().map(|(name, volume)| (&**name, volume))
    }

    /// The volume group of a class here.
    #[must_use]
    pub fn group_of(&self, class: &str) -> Option<&Group> {
        self.groups.get(self.position_of(class)?)
    }

    /// The position of that group among the volume groups.
    #[must_use]
    pub fn position_of(&self, class: &str) -> Option<usize> {
        let figures = self.storage(class)?.figures.as_ref()?;
        self.groups.iter().position(|group| group.uuid == figures.uuid)
    }

    /// Class, node and size of its volume groups, also where volumes cannot be made now.
    pub fn sizes(&self) -> impl Iterator<Item = (&str, &str, Bytes)> {
        self.storages.values().filter_map(|storage| {
            let figures = storage.figures.as_ref()?;
            Some((&*storage.class, &*self.name, figures.extent_size.size_of(figures.size)?))
        })
    }

    /// What a class has here. [`crate::board`] has the same for every node of a class.
    #[must_use]
    pub fn standing(&self, class: &str) -> Standing {
        let Some(storage) = self.storage(class) else {
            return Standing::Absent;
        };
        if self.silent {
            return Standing::Silent;
        }
        let Some(at) = self.position_of(class).filter(|_| storage.ready) else {
            return if storage.metadata_full {
                Standing::MetadataFull
            } else {
                Standing::NotReady
            };
        };
        let group = &self.groups[at];
        Standing::Ready(Offer {
            group: at,
            extent_size: group.extent_size,
            size: group.size,
            free: group.free,
        })
    }

    /// Reckons what is left. A claim whose volume has been seen is counted as the volume, a claim without one where its
    /// class has its volume group here.
    pub(crate) fn reckon(&mut self) {
        let mut accounts: Vec<(Group, Account)> = Vec::new();
        for storage in self.storages.values() {
            let Some(figures) = &storage.figures else {
                continue;
            };
            let group = Group {
                uuid: figures.uuid.clone(),
                name: storage.group.to_string(),
                extent_size: figures.extent_size,
                size: figures.size,
                free: Extents::ZERO,
                in_flight: Extents::ZERO,
                claims: 0,
            };
            let account = Account::new(figures);
            match accounts.iter_mut().find(|(other, _)| other.uuid == figures.uuid) {
                None => accounts.push((group, account)),
                // Two classes share the group, and one status lags behind the other: the more careful one counts.
                Some(other) if account.free() < other.1.free() => *other = (group, account),
                Some(_) => {}
            }
        }
        for volume in self.volumes.values() {
            if let Some((group, account)) = accounts.iter_mut().find(|(group, _)| *group.uuid == *volume.group) {
                account.count(&volume.claim_uid, group.extent_size.holding(volume.size));
            }
        }
        for claim in self.on_the_way.values() {
            let Some(uuid) = self.counts_in(claim) else {
                continue;
            };
            if let Some((group, account)) = accounts.iter_mut().find(|(group, _)| group.uuid == uuid) {
                let extents = group.extent_size.holding(claim.size);
                account.count(&claim.claim_uid, extents);
                group.in_flight = group.in_flight.plus(extents);
                group.claims += 1;
            }
        }
        self.groups = accounts
            .into_iter()
            .map(|(group, account)| Group {
                free: account.free(),
                ..group
            })
            .collect();
    }

    /// UUID of the volume group in which a claim on its way takes space beside the volumes.
    fn counts_in(&self, claim: &OnTheWay) -> Option<&str> {
        if self.volumes.contains_key(volume_name(&claim.claim_uid).as_str()) {
            return None;
        }
        Some(self.storage(&claim.class)?.figures.as_ref()?.uuid.as_str())
    }

    /// The claims on their way to a volume group, with their keys.
    pub fn in_flight(&self, uuid: &str) -> impl Iterator<Item = (&str, &OnTheWay)> {
        self.on_the_way
            .iter()
            .filter(move |(_, claim)| self.counts_in(claim) == Some(uuid))
            .map(|(key, claim)| (&**key, claim))
    }

    fn storage(&self, class: &str) -> Option<&Storage> {
        self.storages.values().find(|storage| *storage.class == *class)
    }
}

/// Extents that are to be kept free besides what is counted, by position of the volume group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Besides(Vec<(usize, Extents)>);

impl Besides {
    /// Adds to what is to be kept free.
    pub fn add(&mut self, group: usize, extents: Extents) {
        match self.0.iter_mut().find(|(at, _)| *at == group) {
            Some((_, sum)) => *sum = sum.plus(extents),
            None => self.0.push((group, extents)),
        }
    }

    /// Whether nothing is to be kept free.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn of(&self, group: usize) -> Extents {
        self.0
            .iter()
            .find(|(at, _)| *at == group)
            .map_or(Extents::ZERO, |(_, extents)| *extents)
    }
}
