//! What a claim is to be filled with, and who does that.
//!
//! A data source of another API group is another controller's: it makes the volume's content by a claim of its own,
//! named `prime-<UID>`, and binds that claim's volume to this one (kubernetes-csi/lib-volume-populator; KubeVirt's importer
//! does the same). A provisioner must leave such a claim alone: it would hand out an empty volume in its place.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;

/// Before the UID of a claim: the name of the claim that a populator makes for it.
const PRIME: &str = "prime-";
/// The API group of snapshots.
const SNAPSHOTS: &str = "snapshot.storage.k8s.io";
/// The API group of Quarry.
const QUARRY: &str = "quarry.dev";

/// What a claim is to be filled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataSource {
    /// Nothing.
    Empty,
    /// A claim or a snapshot: only the provisioner of the volume could copy it.
    Ours {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// What another controller serves.
    Elsewhere {
        /// Its API group.
        group: String,
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
}

/// What a claim is to be filled with.
#[must_use]
pub fn data_source(claim: &PersistentVolumeClaim) -> DataSource {
    let Some(spec) = &claim.spec else {
        return DataSource::Empty;
    };
    let by_ref = spec.data_source_ref.as_ref();
    let by_ref = by_ref.map(|source| (&source.api_group, &source.kind, &source.name));
    let by_name = spec.data_source.as_ref();
    let by_name = by_name.map(|source| (&source.api_group, &source.kind, &source.name));
    let Some((group, kind, name)) = by_ref.or(by_name) else {
        return DataSource::Empty;
    };
    let (kind, name) = (kind.clone(), name.clone());
    match group.as_deref().unwrap_or_default() {
        "" | SNAPSHOTS | QUARRY => DataSource::Ours { kind, name },
        group => DataSource::Elsewhere {
            group: group.to_owned(),
            kind,
            name,
        },
    }
}

/// Whether another controller fills a claim, and binds a volume to it.
#[must_use]
pub fn is_filled_elsewhere(claim: &PersistentVolumeClaim) -> bool {
    matches!(data_source(claim), DataSource::Elsewhere { .. })
}

/// UID of the claim for which a populator made the claim of this name, if it is named so.
#[must_use]
pub fn claim_uid_of_prime(name: &str) -> Option<&str> {
    name.strip_prefix(PRIME).filter(|uid| !uid.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn with(field: &str, source: Value) -> DataSource {
        let claim = json!({"metadata": {"name": "c"}, "spec": {field: source}});
        data_source(&serde_json::from_value(claim).expect("a claim"))
    }

    #[test]
    fn what_only_the_provisioner_could_copy_is_ours_and_everything_else_is_not() {
        let ours = |source: Value| ["dataSource", "dataSourceRef"].map(|field| with(field, source.clone()));
        for source in [
            json!({"kind": "PersistentVolumeClaim", "name": "a"}),
            json!({"apiGroup": "", "kind": "PersistentVolumeClaim", "name": "a"}),
            json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "a"}),
        ] {
            assert!(
                ours(source)
                    .iter()
                    .all(|source| matches!(source, DataSource::Ours { .. }))
            );
        }
        let import = json!({"apiGroup": "cdi.kubevirt.io", "kind": "VolumeImportSource", "name": "a"});
        let expected = DataSource::Elsewhere {
            group: "cdi.kubevirt.io".into(),
            kind: "VolumeImportSource".into(),
            name: "a".into(),
        };
        assert_eq!(with("dataSourceRef", import), expected);
        assert_eq!(with("accessModes", json!([])), DataSource::Empty);
    }

    #[test]
    fn the_claim_of_a_populator_is_known_by_its_name() {
        assert_eq!(claim_uid_of_prime("prime-u-1"), Some("u-1"));
        assert_eq!(claim_uid_of_prime("prime-"), None);
        assert_eq!(claim_uid_of_prime("data"), None);
    }
}
