//! Quarry's API types and every decision that can be made without I/O.
//!
//! Manager and extender share this library, so that what the extender predicts is what the manager does. It holds no
//! Kubernetes client, no runtime and no file system; the data flow of `docs/architecture.md` names each file.

pub mod capacity;
pub mod claim;
pub mod conditions;
pub mod data_source;
pub mod device_nodes;
pub mod disk;
pub mod disk_faults;
pub mod eligibility;
pub mod existing;
pub mod extents;
pub mod for_owners;
pub mod labels;
pub mod liveness;
pub mod lost_group;
pub mod lost_nodes;
pub mod names;
pub mod node_local_storage;
pub mod orphans;
pub mod persistent_volume;
pub mod placement;
pub mod provisioning;
pub mod quantity;
pub mod refusals;
pub mod storage_capacity;
pub mod storage_class;
pub mod tags;
pub mod volume_group;

pub use extents::{Bytes, ExtentSize, Extents};
pub use node_local_storage::NodeLocalStorage;
