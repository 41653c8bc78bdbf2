//! What a node's manager has to do about a claim.
//!
//! Protocol: kubernetes-sigs/sig-storage-lib-external-provisioner `controller/controller.go`, `shouldProvision`; for
//! binding mode Immediate the node-deployed variant of kubernetes-csi/external-provisioner.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;

use crate::claim::{self, ClaimRequest, VolumeMode};
use crate::data_source::{DataSource, data_source};
use crate::extents::Bytes;
use crate::storage_class::{self, ClassParameters, FsType};

/// What is to be done about a claim on this node.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing: it is another node's, another provisioner's, served, or not asked for yet.
    Nothing,
    /// It is this node's or may be, but its class is not known here (yet): ask again later.
    AwaitClass,
    /// Another controller makes its volume, and may be told so.
    Leave {
        /// Who does, and why.
        message: String,
    },
    /// Make its volume here.
    Provision(Box<Provision>),
    /// No scheduler chooses a node for it (binding mode Immediate): a node with room takes it.
    Take(Box<Provision>),
    /// It is this node's, and cannot be served anywhere: say why.
    Refuse {
        /// Reason of the event.
        reason: &'static str,
        /// What is wrong, naming field, value and remedy.
        message: String,
    },
}

/// A claim to be served.
#[derive(Debug, Clone, PartialEq)]
pub struct Provision {
    /// What it asks for.
    pub request: ClaimRequest,
    /// What its class says.
    pub parameters: ClassParameters,
}

/// The smallest volume on which kubelet's mkfs succeeds, per file system (measured with Debian 12's tools).
#[must_use]
pub const fn least_size(fs_type: FsType) -> Bytes {
    match fs_type {
        // Fits in the smallest extent.
        FsType::Ext4 => Bytes(1),
        FsType::Xfs => Bytes::mib(300),
        FsType::Btrfs => Bytes::mib(109),
    }
}

/// Checks that a volume is large enough for its file system.
///
/// # Errors
/// It is not; says how large it has to be.
pub fn large_enough(size: Bytes, mode: VolumeMode, fs_type: FsType) -> Result<(), claim::ClaimError> {
    let least = least_size(fs_type);
    if mode == VolumeMode::Filesystem && size < least {
        return Err(claim::ClaimError::TooSmallForFileSystem {
            size,
            fs_type: fs_type.as_str(),
            least,
        });
    }
    Ok(())
}

/// Checks a class.
///
/// # Errors
/// Reason and message of the event that tells the owner of the class, and of each claim of it.
pub fn check_class(class: &StorageClass) -> Result<ClassParameters, (&'static str, String)> {
    ClassParameters::of(class).map_err(|errors| {
        let class = class.metadata.name.as_deref().unwrap_or_default();
        let again = "parameters cannot be changed: delete the class and create it again";
        (
            "InvalidStorageClass",
            format!("StorageClass {class}: {errors}; {again}"),
        )
    })
}

/// Checks a claim against its class: everything that can be said without knowing any node.
///
/// # Errors
/// Reason and message of the event that tells the claim's owner.
pub fn check(claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<Provision, (&'static str, String)> {
    let parameters = check_class(class)?;
    let request = claim::request(claim).map_err(|error| ("InvalidClaim", error.to_string()))?;
    large_enough(request.size, request.volume_mode, parameters.fs_type)
        .map_err(|error| ("InvalidClaim", error.to_string()))?;
    Ok(Provision { request, parameters })
}

/// Decides what this node has to do about a claim.
#[must_use]
pub fn step(claim: &PersistentVolumeClaim, class: Option<&StorageClass>, node: &str) -> Step {
    if claim::is_bound(claim) || claim.metadata.deletion_timestamp.is_some() || !claim::asks_us(claim) {
        return Step::Nothing;
    }
    let selected = claim::selected_node(claim);
    if selected.is_some_and(|selected| selected != node) {
        return Step::Nothing;
    }
    let Some(class) = class else {
        return Step::AwaitClass;
    };
    // The class may have been made anew with another provisioner since the claim was annotated.
    if !storage_class::is_ours(class) {
        return Step::Nothing;
    }
    let immediate = class.volume_binding_mode.as_deref() != Some("WaitForFirstConsumer");
    if selected.is_none() && !immediate {
        return Step::Nothing;
    }
    match (check(claim, class), selected) {
        (Ok(_), _) if let DataSource::Elsewhere { group, kind, name } = data_source(claim) => Step::Leave {
            message: format!(
                "Assuming an external populator will provision the volume: spec.dataSourceRef names {kind} \"{name}\" of \
                 {group}, which is left to the controller of that kind"
            ),
        },
        (Ok(provision), Some(_)) => Step::Provision(Box::new(provision)),
        (Ok(provision), None) => Step::Take(Box::new(provision)),
        (Err((reason, message)), _) => Step::Refuse { reason, message },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::names::PROVISIONER;

    fn class(mode: &str) -> StorageClass {
        serde_json::from_value(json!({
            "metadata": {"name": "fast"}, "provisioner": PROVISIONER, "volumeBindingMode": mode,
            "parameters": {"nodes": r#"[{"names": ["w1"], "disks": ["/dev/disk/by-id/a"]}]"#, "fsType": "xfs"}
        }))
        .expect("a class")
    }

    fn claim(selected: Option<&str>, size: &str) -> PersistentVolumeClaim {
        let mut annotations = json!({"volume.kubernetes.io/storage-provisioner": PROVISIONER});
        if let Some(node) = selected {
            annotations["volume.kubernetes.io/selected-node"] = json!(node);
        }
        serde_json::from_value(json!({
            "metadata": {"name": "c", "uid": "u", "annotations": annotations},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                     "resources": {"requests": {"storage": size}}}
        }))
        .expect("a claim")
    }

    #[test]
    fn only_the_selected_node_acts() {
        let wait = class("WaitForFirstConsumer");
        assert!(matches!(
            step(&claim(Some("w1"), "1Gi"), Some(&wait), "w1"),
            Step::Provision(_)
        ));
        assert_eq!(step(&claim(Some("w2"), "1Gi"), Some(&wait), "w1"), Step::Nothing);
        assert_eq!(step(&claim(None, "1Gi"), Some(&wait), "w1"), Step::Nothing);
        assert_eq!(
            step(&claim(Some(""), "1Gi"), Some(&wait), "w1"),
            Step::Nothing,
            "empty means not selected"
        );
    }

    #[test]
    fn immediate_claims_are_taken() {
        let now = class("Immediate");
        assert!(matches!(step(&claim(None, "1Gi"), Some(&now), "w1"), Step::Take(_)));
        assert!(matches!(
            step(&claim(Some("w1"), "1Gi"), Some(&now), "w1"),
            Step::Provision(_)
        ));
        assert_eq!(step(&claim(Some("w2"), "1Gi"), Some(&now), "w1"), Step::Nothing);
    }

    #[test]
    fn nothing_is_done_about_what_is_not_ours_or_served() {
        let wait = class("WaitForFirstConsumer");
        let mut bound = claim(Some("w1"), "1Gi");
        bound.spec.as_mut().expect("a spec").volume_name = Some("v".into());
        assert_eq!(step(&bound, Some(&wait), "w1"), Step::Nothing);
        let mut unasked = claim(Some("w1"), "1Gi");
        unasked
            .metadata
            .annotations
            .as_mut()
            .expect("annotations")
            .remove(crate::names::STORAGE_PROVISIONER);
        assert_eq!(step(&unasked, Some(&wait), "w1"), Step::Nothing);
        let mut foreign = wait.clone();
        foreign.provisioner = "else".into();
        assert_eq!(step(&claim(Some("w1"), "1Gi"), Some(&foreign), "w1"), Step::Nothing);
        assert_eq!(step(&claim(Some("w1"), "1Gi"), None, "w1"), Step::AwaitClass);
        assert_eq!(
            step(&claim(None, "1Gi"), None, "w1"),
            Step::AwaitClass,
            "the class was there, or nobody would have asked us: our watch lags"
        );
    }

    #[test]
    fn what_another_controller_fills_is_left_to_it() {
        for (mode, selected) in [
            ("WaitForFirstConsumer", Some("w1")),
            ("Immediate", None),
            ("Immediate", Some("w1")),
        ] {
            let mut filled = claim(selected, "1Gi");
            let source = json!({"apiGroup": "backup.io", "kind": "Backup", "name": "monday"});
            filled.spec.as_mut().expect("a spec").data_source_ref = serde_json::from_value(source).ok();
            match step(&filled, Some(&class(mode)), "w1") {
                Step::Leave { message } => assert!(message.contains("Backup \"monday\" of backup.io"), "{message}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_served_says_why() {
        let mut bad = class("WaitForFirstConsumer");
        bad.parameters = Some([("nodes".to_owned(), "[]".to_owned())].into());
        for (claim, class, reason, part) in [
            (claim(Some("w1"), "1Gi"), &bad, "InvalidStorageClass", "names no node"),
            (
                claim(Some("w1"), "0"),
                &class("WaitForFirstConsumer"),
                "InvalidClaim",
                "\"0\" is nothing",
            ),
            (
                claim(Some("w1"), "1Mi"),
                &class("WaitForFirstConsumer"),
                "InvalidClaim",
                "at least 300Mi",
            ),
        ] {
            match step(&claim, Some(class), "w1") {
                Step::Refuse { reason: said, message } => {
                    assert_eq!(said, reason);
                    assert!(message.contains(part), "{message}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
