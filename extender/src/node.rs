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

    /// The volume group of a class here.
    #[must_use]
    pub fn group_of(&self, class: &str) -> Option<&Group> {
        let figures = self.storage(class)?.figures.as_ref()?;
        self.groups.iter().find(|group| group.uuid == figures.uuid)
    }

    /// Class, node and size of its volume groups, also where volumes cannot be made now.
    pub fn sizes(&self) -> impl Iterator<Item = (&str, &str, Bytes)> {
        self.storages.values().filter_map(|storage| {
            let figures = storage.figures.as_ref()?;
            Some((&*storage.class, &*self.name, figures.extent_size.size_of(figures.size)?))
        })
    }

    /// What a class has here, less what is taken besides: by volume group, in extents.
    #[must_use]
    pub fn standing(&self, class: &str, besides: &Besides) -> Standing {
        let Some(storage) = self.storage(class) else {
            return Standing::Absent;
        };
        let Some(group) = self.group_of(class).filter(|_| storage.ready) else {
            return Standing::NotReady;
        };
        Standing::Ready(Offer {
            volume_group: group.name.clone(),
            volume_group_uuid: group.uuid.clone(),
            extent_size: group.extent_size,
            size: group.size,
            free: group.free.minus(besides.of(&group.uuid)),
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
            if self.volumes.contains_key(volume_name(&claim.claim_uid).as_str()) {
                continue;
            }
            let Some(figures) = self.storage(&claim.class).and_then(|storage| storage.figures.as_ref()) else {
                continue;
            };
            if let Some((group, account)) = accounts.iter_mut().find(|(group, _)| group.uuid == figures.uuid) {
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

    fn storage(&self, class: &str) -> Option<&Storage> {
        self.storages.values().find(|storage| *storage.class == *class)
    }
}

/// Extents that are to be kept free besides what is counted, by UUID of the volume group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Besides(Vec<(String, Extents)>);

impl Besides {
    /// Adds to what is to be kept free.
    pub fn add(&mut self, group: &str, extents: Extents) {
        match self.0.iter_mut().find(|(uuid, _)| uuid == group) {
            Some((_, sum)) => *sum = sum.plus(extents),
            None => self.0.push((group.to_owned(), extents)),
        }
    }

    /// Whether nothing is to be kept free.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn of(&self, group: &str) -> Extents {
        self.0
            .iter()
            .find(|(uuid, _)| uuid == group)
            .map_or(Extents::ZERO, |(_, extents)| *extents)
    }
}
