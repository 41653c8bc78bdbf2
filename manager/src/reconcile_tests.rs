//! The reconcilers against a pretended API server, LVM and disks: what is asked, in which order, and what is left.

mod bench;
mod by_hand;
mod classes;
mod deletion;
mod devices;
mod disk_faults;
mod fakes;
mod groups;
mod immediate;
mod kept;
mod last_word;
mod leftovers;
mod liveness;
mod lost;
mod lost_group;
mod lost_nodes;
mod misbehaviour;
mod orphans;
mod provisioning;
mod ready_tags;
mod refusals;
mod refused;
mod snapshots;
mod start;
mod unknown;
mod wake;
