//! Tests of Quarry on the true cluster: real scheduler, controllers, kubelets, kernels and LVM.
//!
//! [`bed`] brings the cluster up with Quarry on it, [`test`] is what one test has (a namespace, classes, disks),
//! [`objects`] makes objects; the cases are in the files named after what they show.

pub mod backups;
pub mod bad_claims;
pub mod bad_disks;
pub mod bad_lvm;
pub mod bad_parameters;
pub mod bad_requests;
pub mod bed;
pub mod burst;
pub mod capacity;
pub mod certificates;
pub mod dead_connections;
pub mod deletion;
pub mod device_faults;
pub mod fixtures;
pub mod foreign_lvm;
pub mod groups;
pub mod halves;
pub mod immediate;
pub mod last_word;
pub mod lost_group;
pub mod lost_nodes;
pub mod lvm;
pub mod machines;
pub mod main_path;
pub mod metadata;
pub mod objects;
pub mod odd_claims;
pub mod orphans;
pub mod outages;
pub mod past_the_scheduler;
pub mod placement;
pub mod preemption;
pub mod refusals;
pub mod refused;
pub mod rights;
pub mod sectors;
pub mod silent_manager;
pub mod snapshots;
pub mod surroundings;
pub mod sweep;
pub mod test;
pub mod told;
pub mod two_at_once;
pub mod untouched;
pub mod used_disks;
pub mod why;
pub mod wipe;
pub mod without_extender;
pub mod wrong_disks;
