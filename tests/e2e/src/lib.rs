//! Tests of Quarry on the true cluster: real scheduler, controllers, kubelets, kernels and LVM.
//!
//! [`bed`] brings the cluster up with Quarry on it, [`test`] is what one test has (a namespace, classes, disks),
//! [`objects`] makes objects; the cases are in the files named after what they show.

pub mod bad_claims;
pub mod bad_disks;
pub mod bad_parameters;
pub mod bad_requests;
pub mod bed;
pub mod capacity;
pub mod deletion;
pub mod groups;
pub mod lvm;
pub mod main_path;
pub mod objects;
pub mod outages;
pub mod placement;
pub mod test;
pub mod untouched;
