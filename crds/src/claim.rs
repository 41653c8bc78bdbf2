//! Claims: which are ours, what they ask for, and where they stand.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use thiserror::Error;

use crate::data_source::{DataSource, data_source};
use crate::extents::Bytes;
use crate::names::{BETA_STORAGE_CLASS, BETA_STORAGE_PROVISIONER, PROVISIONER, SELECTED_NODE, STORAGE_PROVISIONER};
use crate::quantity::{self, QuantityError};

/// How a volume is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeMode {
    /// kubelet makes a file system on it and mounts it.
    Filesystem,
    /// The pod gets the device.
    Block,
}

impl VolumeMode {
    /// As Kubernetes writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Filesystem => "Filesystem",
            Self::Block => "Block",
        }
    }
}

/// What a claim asks for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimRequest {
    /// The UID of the claim: the key of everything that is made for it.
    pub uid: String,
    /// At least this many bytes.
    pub size: Bytes,
    /// File system or raw block.
    pub volume_mode: VolumeMode,
    /// ReadWriteOnce or ReadWriteOncePod.
    pub access_modes: Vec<String>,
}

/// Why a claim cannot be served; its text names the field, the value and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClaimError {
    /// The API server gave no UID: not an object read from it.
    #[error("metadata.uid is missing")]
    NoUid,
    /// No size.
    #[error("spec.resources.requests.storage is missing; ask for a size such as 10Gi")]
    NoSize,
    /// Not a size.
    #[error("spec.resources.requests.storage: {0}")]
    Size(#[from] QuantityError),
    /// Zero.
    #[error("spec.resources.requests.storage: \"{0}\" is nothing; ask for a size such as 10Gi")]
    ZeroSize(String),
    /// A volume on one node's disk cannot be shared between nodes.
    #[error(
        "spec.accessModes: {0} needs storage that several nodes can reach; a local volume is on one node: use ReadWriteOnce or ReadWriteOncePod"
    )]
    AccessMode(String),
    /// Two modes that contradict each other, or none.
    #[error("spec.accessModes: {0:?} cannot be served; use [ReadWriteOnce] or [ReadWriteOncePod]")]
    AccessModes(Vec<String>),
    /// A new volume has no labels to select by.
    #[error(
        "spec.selector: a claim for a new volume cannot select by label; remove the selector, or set volumeName to an existing volume"
    )]
    Selector,
    /// An empty volume must not stand for a copy.
    #[error(
        "spec.dataSourceRef: {kind} \"{name}\" cannot be copied into a volume of {PROVISIONER}; remove the data source to get an empty volume"
    )]
    DataSource {
        /// Kind of the source.
        kind: String,
        /// Name of the source.
        name: String,
    },
    /// Only volumes of CSI drivers can carry one, so that the claim could never bind.
    #[error(
        "spec.volumeAttributesClassName: \"{0}\" is for volumes of CSI drivers; a volume of {PROVISIONER} has no attributes \
         that could be changed: make the claim anew without it"
    )]
    AttributesClass(String),
    /// Neither Filesystem nor Block.
    #[error("spec.volumeMode: \"{0}\" is unknown; use Filesystem or Block")]
    VolumeMode(String),
    /// kubelet cannot format what is smaller than its file system.
    #[error("spec.resources.requests.storage: {size} is too small for {fs_type}; ask for at least {least}")]
    TooSmallForFileSystem {
        /// What was asked.
        size: Bytes,
        /// The file system of the class.
        fs_type: &'static str,
        /// The smallest that can be formatted.
        least: Bytes,
    },
}

/// The class of a claim: the legacy annotation takes precedence everywhere in Kubernetes.
#[must_use]
pub fn class_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(claim, BETA_STORAGE_CLASS)
        .or_else(|| claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()))
        .filter(|name| !name.is_empty())
}

/// The node that the scheduler chose for a claim.
#[must_use]
pub fn selected_node(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(claim, SELECTED_NODE).filter(|node| !node.is_empty())
}

/// Whether kube-controller-manager has asked us to provision this claim.
#[must_use]
pub fn asks_us(claim: &PersistentVolumeClaim) -> bool {
    annotation(claim, STORAGE_PROVISIONER).or_else(|| annotation(claim, BETA_STORAGE_PROVISIONER)) == Some(PROVISIONER)
}

/// Whether a claim has a volume, or names the one it wants.
#[must_use]
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim
        .spec
        .as_ref()
        .and_then(|spec| spec.volume_name.as_deref())
        .is_some_and(|name| !name.is_empty())
}

/// Whether no node is chosen for a claim yet, so that a pod with it may be waiting for room.
#[must_use]
pub fn waits_for_node(claim: &PersistentVolumeClaim) -> bool {
    !is_bound(claim) && selected_node(claim).is_none() && claim.metadata.deletion_timestamp.is_none()
}

/// The VolumeAttributesClass that a claim asks for.
#[must_use]
pub fn attributes_class(claim: &PersistentVolumeClaim) -> Option<&str> {
    let name = claim.spec.as_ref()?.volume_attributes_class_name.as_deref();
    name.filter(|name| !name.is_empty())
}

/// How a claim's volume is used.
///
/// # Errors
/// The mode is neither Filesystem nor Block.
pub fn volume_mode(claim: &PersistentVolumeClaim) -> Result<VolumeMode, ClaimError> {
    match claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref()) {
        None | Some("Filesystem") => Ok(VolumeMode::Filesystem),
        Some("Block") => Ok(VolumeMode::Block),
        Some(other) => Err(ClaimError::VolumeMode(other.to_owned())),
    }
}

/// How many bytes a claim asks for.
///
/// # Errors
/// There is no size, it is no quantity, or it is zero.
pub fn requested_size(claim: &PersistentVolumeClaim) -> Result<Bytes, ClaimError> {
    let requests = claim
        .spec
        .as_ref()
        .and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let text = requests
        .and_then(|requests| requests.get("storage"))
        .ok_or(ClaimError::NoSize)?;
    match quantity::parse(&text.0)? {
        Bytes::ZERO => Err(ClaimError::ZeroSize(text.0.clone())),
        size => Ok(size),
    }
}

/// Checks everything that a claim asks for.
///
/// # Errors
/// The first thing that cannot be served.
pub fn request(claim: &PersistentVolumeClaim) -> Result<ClaimRequest, ClaimError> {
    let uid = claim
        .metadata
        .uid
        .clone()
        .filter(|uid| !uid.is_empty())
        .ok_or(ClaimError::NoUid)?;
    let spec = claim.spec.clone().unwrap_or_default();
    if let DataSource::Ours { kind, name } = data_source(claim) {
        return Err(ClaimError::DataSource { kind, name });
    }
    if let Some(class) = attributes_class(claim) {
        return Err(ClaimError::AttributesClass(class.to_owned()));
    }
    if spec.selector.is_some() {
        return Err(ClaimError::Selector);
    }
    let access_modes = spec.access_modes.unwrap_or_default();
    check_access_modes(&access_modes)?;
    Ok(ClaimRequest {
        uid,
        size: requested_size(claim)?,
        volume_mode: volume_mode(claim)?,
        access_modes,
    })
}

fn check_access_modes(modes: &[String]) -> Result<(), ClaimError> {
    if let Some(shared) = modes
        .iter()
        .find(|mode| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany"))
    {
        return Err(ClaimError::AccessMode(shared.clone()));
    }
    match modes {
        [one] if matches!(one.as_str(), "ReadWriteOnce" | "ReadWriteOncePod") => Ok(()),
        _ => Err(ClaimError::AccessModes(modes.to_vec())),
    }
}

fn annotation<'a>(claim: &'a PersistentVolumeClaim, key: &str) -> Option<&'a str> {
    claim.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(spec: Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "uid": "u"}, "spec": spec})).expect("a claim")
    }

    fn sized(size: &str) -> Value {
        json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}})
    }

    fn with(key: &str, value: Value) -> PersistentVolumeClaim {
        let mut spec = sized("1Gi");
        spec[key] = value;
        claim(spec)
    }

    #[test]
    fn a_plain_claim() {
        let read = request(&claim(sized("1Gi"))).expect("valid");
        assert_eq!((read.size, read.volume_mode), (Bytes::gib(1), VolumeMode::Filesystem));
        assert_eq!(
            request(&with("volumeMode", json!("Block"))).map(|r| r.volume_mode),
            Ok(VolumeMode::Block)
        );
        assert!(request(&with("accessModes", json!(["ReadWriteOncePod"]))).is_ok());
        assert!(request(&with("volumeAttributesClassName", json!(""))).is_ok(), "none");
    }

    #[test]
    fn what_cannot_be_served_names_field_value_and_remedy() {
        for (claim, parts) in [
            (claim(sized("0")), ["requests.storage", "\"0\"", "10Gi"]),
            (claim(sized("9Ei")), ["requests.storage", "9Ei", "ask for less"]),
            (claim(sized("-1Gi")), ["requests.storage", "-1Gi", "at least one byte"]),
            (
                claim(json!({"accessModes": ["ReadWriteOnce"]})),
                ["requests.storage", "missing", "10Gi"],
            ),
            (
                with("accessModes", json!(["ReadWriteMany"])),
                ["accessModes", "ReadWriteMany", "ReadWriteOnce"],
            ),
            (
                with("accessModes", json!(["ReadOnlyMany"])),
                ["accessModes", "ReadOnlyMany", "ReadWriteOnce"],
            ),
            (
                with("accessModes", json!(["ReadWriteOnce", "ReadWriteOncePod"])),
                ["accessModes", "ReadWriteOncePod", "use [ReadWriteOnce]"],
            ),
            (
                with("accessModes", json!([])),
                ["accessModes", "[]", "use [ReadWriteOnce]"],
            ),
            (
                with("selector", json!({"matchLabels": {"a": "b"}})),
                ["selector", "label", "remove"],
            ),
            (
                with(
                    "dataSourceRef",
                    json!({"kind": "VolumeSnapshot", "name": "monday", "apiGroup": "snapshot.storage.k8s.io"}),
                ),
                ["dataSourceRef", "monday", "remove"],
            ),
            (
                with("volumeAttributesClassName", json!("gold")),
                ["volumeAttributesClassName", "gold", "without it"],
            ),
            (
                with("volumeMode", json!("Tape")),
                ["volumeMode", "Tape", "Filesystem or Block"],
            ),
        ] {
            let text = request(&claim).expect_err("must be refused").to_string();
            for part in parts {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
        }
    }

    #[test]
    fn the_legacy_class_annotation_wins() {
        let mut claim = with("storageClassName", json!("new"));
        assert_eq!(class_name(&claim), Some("new"));
        claim.metadata.annotations = Some([(BETA_STORAGE_CLASS.to_owned(), "old".to_owned())].into());
        assert_eq!(class_name(&claim), Some("old"));
    }
}
