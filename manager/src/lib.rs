//! Quarry's LVM manager: one on each node, for that node alone.
//!
//! The data flow is in the names of the files: [`node_local_storage`] (StorageClass → NodeLocalStorage) →
//! [`volume_group`] (→ disks, volume group) → [`capacity`] (→ status); [`provision`] (claim → logical volume →
//! PersistentVolume, or back to the scheduler) and [`delete`] (PersistentVolume released → space back).

#[macro_use]
mod crash_points;

pub mod args;
mod attempts;
pub mod capacity;
pub mod cluster;
pub mod context;
pub mod delete;
pub mod disk_faults;
pub mod disk_record;
pub mod disks;
pub mod immediate;
pub mod inventory;
pub mod kept;
pub mod leftovers;
pub mod liveness;
pub mod lost_group;
pub mod lvm;
pub mod lvm_devices;
pub mod lvm_refusals;
pub mod machine;
pub mod metrics;
pub mod node_local_storage;
pub mod node_lock;
pub mod orphans;
pub mod provision;
pub mod ready_tags;
#[cfg(test)]
mod reconcile_tests;
pub mod refusals;
pub mod retry;
pub mod returned;
pub mod run;
pub mod selected;
pub mod startup_taint;
pub mod storage_capacity;
pub mod surroundings;
pub mod take_down;
pub mod telling;
pub mod uevent;
pub mod volume_group;
pub mod waiting;
pub mod wake;
pub mod watches;
pub mod whereabouts;
pub mod wipe;
pub mod zeroing;

#[cfg(test)]
use quarry_fake_api as fake_api;
