//! Every name that Quarry shares with Kubernetes and LVM, in one place.

use sha2::{Digest, Sha256};
use thiserror::Error;

/// The provisioner that a StorageClass of ours names; also a legal CSIDriver name (no slash, under 64 characters).
pub const PROVISIONER: &str = "lvm.quarry.dev";
/// The field manager under which the manager writes what it owns in a NodeLocalStorage.
pub const FIELD_MANAGER: &str = "quarry-manager";
/// Component that events of the manager come from.
pub const EVENT_COMPONENT: &str = "quarry-manager";

/// Written on a claim by kube-scheduler, removed by the manager that could not serve it. Value: a node's name.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Written on a claim by kube-controller-manager: "please provision". Value: a provisioner's name.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// Legacy form of [`STORAGE_PROVISIONER`], still written beside it.
pub const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// Legacy form of a claim's class; takes precedence over `spec.storageClassName`.
pub const BETA_STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// On a PersistentVolume: which provisioner made it, so that the volume controller leaves its deletion to us.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Value of [`PROVISIONED_BY`] on the volumes that we make. A CSIDriver object may have the name [`PROVISIONER`]
/// (`deploy/storage-capacity`), and Velero takes a volume whose value names a CSIDriver for one that kubelet mounts as such, in
/// `…/<volume>/mount`, where there is nothing. No CSIDriver can have a name with a slash.
pub const VOLUME_PROVISIONER: &str = "lvm.quarry.dev/local";
/// The label that a PersistentVolume's node affinity matches; its value can differ from the node's name.
pub const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";

/// Finalizer on each of our PersistentVolumes: held until its logical volume is gone.
pub const VOLUME_FINALIZER: &str = "quarry.dev/logical-volume";
/// Label on PersistentVolumes and NodeLocalStorages: the node they belong to, as [`crate::labels::value`] writes it.
pub const NODE_LABEL: &str = "quarry.dev/node";
/// Label on NodeLocalStorages: the StorageClass they come from, as [`crate::labels::value`] writes it.
pub const CLASS_LABEL: &str = "quarry.dev/storage-class";
/// Annotation on PersistentVolumes: the name of the node that holds the logical volume.
pub const NODE_ANNOTATION: &str = "quarry.dev/node";
/// Annotation on PersistentVolumes: the name of the volume group.
pub const VOLUME_GROUP_ANNOTATION: &str = "quarry.dev/volume-group";
/// Annotation on PersistentVolumes: the UUID of the volume group, under which capacity is accounted.
pub const VOLUME_GROUP_UUID_ANNOTATION: &str = "quarry.dev/volume-group-uuid";

/// Annotation on PersistentVolumes: the machine-id (machine-id(5)) of the machine that the volume was made on.
pub const MACHINE_ID_ANNOTATION: &str = "quarry.dev/machine-id";
/// Annotation that a user puts on a claim: what to do when the node of its volume is gone for good.
pub const LOST_NODE_ANNOTATION: &str = "quarry.dev/lost-node";
/// Value of [`LOST_NODE_ANNOTATION`]: the claim is deleted, so that whoever made it can make it anew elsewhere.
pub const DELETE_CLAIM: &str = "delete-claim";
/// Annotation on claims: the node that a claim waited for when that node was found to be gone. It tells people, and its
/// coming wakes kube-scheduler once more.
pub const NODE_GONE_ANNOTATION: &str = "quarry.dev/node-gone";
/// Annotation on claims: which nodes refused to make its volume for another reason than room, and how often.
pub const REFUSED_BY_ANNOTATION: &str = "quarry.dev/refused-by";
/// Annotation that an administrator puts on a NodeLocalStorage: the UUID of a volume group that will not come back.
pub const LOST_GROUP_ANNOTATION: &str = "quarry.dev/lost-volume-group";
/// Taint with which kubelet may register its node; the manager takes it off once volumes are active and published.
pub const STARTUP_TAINT: &str = "quarry.dev/agent-not-ready";

/// Longest name that we give a volume group: leaves room for `pvc-<uid>` in a device-mapper name.
pub const VOLUME_GROUP_NAME_MAX: usize = 60;

/// Whether a value of [`PROVISIONED_BY`] is ours: former versions wrote [`PROVISIONER`].
#[must_use]
pub fn is_volume_provisioner(value: &str) -> bool {
    [VOLUME_PROVISIONER, PROVISIONER].contains(&value)
}

/// Longest name of a device-mapper device, in bytes (`DM_NAME_LEN` of linux/dm-ioctl.h, less the byte that ends it).
pub const DEVICE_MAPPER_NAME_MAX: usize = 127;
/// Bytes that a volume of ours takes of such a name: `-`, and `pvc-<uid>` with each of its five hyphens doubled.
const VOLUME_IN_DEVICE_MAPPER_NAME: usize = 1 + 40 + 5;

/// The name of the logical volume, and of the PersistentVolume, of a claim.
#[must_use]
pub fn volume_name(claim_uid: &str) -> String {
    format!("pvc-{claim_uid}")
}

/// The claim UID in a name made by [`volume_name`].
#[must_use]
pub fn claim_uid_of_volume(name: &str) -> Option<&str> {
    name.strip_prefix("pvc-").filter(|uid| !uid.is_empty())
}

/// The device path of a logical volume, as it is written into a PersistentVolume.
#[must_use]
pub fn device_path(volume_group: &str, logical_volume: &str) -> String {
    format!("/dev/{volume_group}/{logical_volume}")
}

/// The name of the NodeLocalStorage of a class on a node: `<class>.<node>`, shortened with a hash beyond the 253
/// characters that Kubernetes allows.
#[must_use]
pub fn node_local_storage_name(class: &str, node: &str) -> String {
    let name = format!("{class}.{node}");
    if name.len() <= 253 {
        return name;
    }
    let digest = Sha256::digest(name.as_bytes());
    let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let head: String = name.chars().take(253 - 17).collect();
    format!("{}-{short}", head.trim_end_matches(['.', '-']))
}

/// Why a text cannot name a volume group.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VolumeGroupNameError {
    /// Nothing was given.
    #[error("is empty; give a name such as \"fast\"")]
    Empty,
    /// Longer than [`VOLUME_GROUP_NAME_MAX`].
    #[error("has {0} characters; use at most {VOLUME_GROUP_NAME_MAX}")]
    TooLong(usize),
    /// LVM accepts letters, digits and `+ _ . -` only.
    #[error("contains {0:?}; use letters, digits, and + _ . - only")]
    Character(char),
    /// LVM refuses a leading hyphen and the names `.` and `..`.
    #[error("is not allowed by LVM: it may not be \".\" or \"..\" nor start with \"-\"")]
    Reserved,
    /// A volume group's directory would collide with something under /dev.
    #[error("would collide with /dev/{0}; choose another name with the parameter volumeGroup")]
    Device(String),
}

/// Why no volume could be made in a volume group of that name, though LVM makes the group.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "takes {0} bytes of the device-mapper name of each volume, where each \"-\" counts twice; at most {most} are left beside \
     the name of the volume: use a shorter name, or one with fewer hyphens",
    most = DEVICE_MAPPER_NAME_MAX - VOLUME_IN_DEVICE_MAPPER_NAME
)]
pub struct DeviceNameTooLong(usize);

/// Names under /dev of every Linux system; a volume group of that name could not have its directory there.
const DEVICE_NAMES: &[&str] = &[
    "block",
    "bus",
    "char",
    "cpu",
    "disk",
    "dma_heap",
    "dri",
    "fd",
    "full",
    "fuse",
    "hugepages",
    "input",
    "kmsg",
    "kvm",
    "log",
    "loop-control",
    "mapper",
    "mem",
    "mqueue",
    "net",
    "null",
    "port",
    "ppp",
    "ptmx",
    "pts",
    "random",
    "rtc",
    "shm",
    "snd",
    "stderr",
    "stdin",
    "stdout",
    "tty",
    "urandom",
    "vfio",
    "watchdog",
    "zero",
];

/// Checks that a text can name a volume group (lvm(8), "Valid names").
///
/// # Errors
/// Says what is wrong with the name and what to do.
pub fn check_volume_group_name(name: &str) -> Result<(), VolumeGroupNameError> {
    if name.is_empty() {
        return Err(VolumeGroupNameError::Empty);
    }
    if let Some(bad) = name
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || "+_.-".contains(*c)))
    {
        return Err(VolumeGroupNameError::Character(bad));
    }
    if name.len() > VOLUME_GROUP_NAME_MAX {
        return Err(VolumeGroupNameError::TooLong(name.len()));
    }
    if name == "." || name == ".." || name.starts_with('-') {
        return Err(VolumeGroupNameError::Reserved);
    }
    if DEVICE_NAMES.contains(&name) {
        return Err(VolumeGroupNameError::Device(name.to_owned()));
    }
    Ok(())
}

/// Checks that device-mapper can name the volumes of claims in a volume group of that name: it knows each as
/// `<volume group>-<logical volume>`, with every hyphen in either doubled.
///
/// # Errors
/// Says how long the name is, and how long it may be.
pub fn check_device_names(volume_group: &str) -> Result<(), DeviceNameTooLong> {
    let bytes = volume_group.len() + volume_group.matches('-').count();
    if bytes + VOLUME_IN_DEVICE_MAPPER_NAME > DEVICE_MAPPER_NAME_MAX {
        return Err(DeviceNameTooLong(bytes));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As device-mapper knows a volume.
    fn device_name(group: &str, volume: &str) -> String {
        format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--"))
    }

    #[test]
    fn a_group_whose_volumes_device_mapper_cannot_name_is_refused() {
        let volume = volume_name("6f1f4d1c-8f7e-4b55-9d55-0a4a0f6c3c11");
        for hyphens in 0..=59 {
            for length in hyphens + 1..=VOLUME_GROUP_NAME_MAX {
                let group = format!("{}{}", "a".repeat(length - hyphens), "-".repeat(hyphens));
                let fits = device_name(&group, &volume).len() <= DEVICE_MAPPER_NAME_MAX;
                assert_eq!(check_device_names(&group).is_ok(), fits, "{group}");
            }
        }
    }

    #[test]
    fn names_of_volumes_carry_the_claim() {
        assert_eq!(volume_name("u-1"), "pvc-u-1");
        assert_eq!(claim_uid_of_volume("pvc-u-1"), Some("u-1"));
        assert_eq!(claim_uid_of_volume("pvc-"), None);
        assert_eq!(claim_uid_of_volume("other"), None);
    }

    #[test]
    fn long_storage_names_stay_legal_and_distinct() {
        let (a, b) = ("a".repeat(253), "b".repeat(253));
        let first = node_local_storage_name(&a, &a);
        assert!(first.len() <= 253);
        assert_ne!(first, node_local_storage_name(&a, &b));
        assert_eq!(node_local_storage_name("fast", "w1"), "fast.w1");
    }

    #[test]
    fn volume_group_names() {
        for good in ["fast", "a", "A_b+c.d-1"] {
            assert_eq!(check_volume_group_name(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", ".", "..", "a b", "a/b", "é", "shm", "mapper", &"x".repeat(61)] {
            assert!(check_volume_group_name(bad).is_err(), "{bad}");
        }
    }
}
