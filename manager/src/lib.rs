//! Quarry's LVM manager: one on each node, for that node alone.
//!
//! The data flow is in the names of the files: [`node_local_storage`] (StorageClass → NodeLocalStorage) →
//! [`volume_group`] (→ disks, volume group) → [`capacity`] (→ status); [`provision`] (claim → logical volume →
//! PersistentVolume, or back to the scheduler) and [`delete`] (PersistentVolume released → space back).

pub mod args;
pub mod capacity;
pub mod context;
pub mod delete;
pub mod disks;
#[cfg(test)]
mod fake_api;
pub mod immediate;
pub mod inventory;
pub mod leftovers;
pub mod lvm;
pub mod metrics;
pub mod node_local_storage;
pub mod provision;
pub mod ready_tags;
#[cfg(test)]
mod reconcile_tests;
pub mod retry;
pub mod run;
pub mod uevent;
pub mod volume_group;
pub mod wipe;
