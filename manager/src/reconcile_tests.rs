//! The reconcilers against a pretended API server, LVM and disks: what is asked, in which order, and what is left.

mod bench;
mod deletion;
mod immediate;
mod lost;
mod provisioning;
mod unknown;
