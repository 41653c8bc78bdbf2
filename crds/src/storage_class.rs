//! The parameters of a StorageClass: which nodes, which disks, and how volumes on them are made.
//!
//! Parameters are immutable in Kubernetes, so a mistake in them can only be mended by a new class: everything is
//! checked, all mistakes are reported at once, and an unknown key is one of them. See `docs/storage-class.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Deserialize;
use thiserror::Error;

use crate::labels;
use crate::names::{PROVISIONER, check_device_names, check_volume_group_name};
use crate::tags::Wipe;

/// The checked parameters of a class.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassParameters {
    /// Which disks of which nodes.
    pub nodes: Vec<NodeGroup>,
    /// Name of the volume group on each of those nodes; the class's own name where none is given.
    pub volume_group: String,
    /// File system that kubelet makes on a volume of mode Filesystem.
    pub fs_type: FsType,
    /// How a volume lies on the disks.
    pub layout: Layout,
    /// Which of the nodes with room is preferred.
    pub scoring: Scoring,
    /// Whether kernel names such as `/dev/sdb`, which can belong to another disk after a reboot, are accepted.
    pub allow_unstable_names: bool,
    /// What becomes of the data of a volume that is deleted.
    pub wipe: Wipe,
    /// What becomes of the volume group once no class names it and no volume is left in it.
    pub volume_group_policy: VolumeGroupPolicy,
}

/// An entry of the parameter `nodes`: these nodes give these disks.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeGroup {
    /// Nodes by name.
    #[serde(default)]
    pub names: Vec<String>,
    /// Nodes by label.
    #[serde(default, deserialize_with = "strict_selector")]
    pub selector: Option<LabelSelector>,
    /// The disks of each of these nodes.
    pub disks: Vec<DiskSelector>,
}

/// One disk by its path, or all disks of a model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskSelector {
    /// A path under /dev.
    Path(String),
    /// The model that the disk itself reports, as in `lsblk -o MODEL`.
    Model(String),
}

impl<'de> Deserialize<'de> for DiskSelector {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct ByField {
            path: Option<String>,
            model: Option<String>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Path(String),
            Field(ByField),
        }
        let one = "a disk is a path such as \"/dev/disk/by-id/…\", or an object with one of \"path\" and \"model\"";
        match Written::deserialize(deserializer).map_err(|_| serde::de::Error::custom(one))? {
            Written::Path(path)
            | Written::Field(ByField {
                path: Some(path),
                model: None,
            }) => Ok(Self::Path(path)),
            Written::Field(ByField {
                path: None,
                model: Some(model),
            }) => Ok(Self::Model(model)),
            Written::Field(_) => Err(serde::de::Error::custom(one)),
        }
    }
}

/// A label selector whose keys are all known: a typo in one must not select every node.
fn strict_selector<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<LabelSelector>, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "camelCase")]
    struct Strict {
        #[serde(default)]
        match_labels: BTreeMap<String, String>,
        #[serde(default)]
        match_expressions: Vec<Requirement>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Requirement {
        key: String,
        operator: String,
        #[serde(default)]
        values: Vec<String>,
    }
    let strict = Strict::deserialize(deserializer)?;
    let mut expressions = Vec::new();
    for Requirement { key, operator, values } in strict.match_expressions {
        let wants_values = match operator.as_str() {
            "In" | "NotIn" => true,
            "Exists" | "DoesNotExist" => false,
            other => {
                return Err(serde::de::Error::custom(format!(
                    "operator {other:?} is unknown; use In, NotIn, Exists or DoesNotExist"
                )));
            }
        };
        if wants_values == values.is_empty() {
            return Err(serde::de::Error::custom(format!(
                "operator {operator} of key {key:?} takes {} values",
                if wants_values { "one or more" } else { "no" }
            )));
        }
        expressions.push(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement {
                key,
                operator,
                values: wants_values.then_some(values),
            },
        );
    }
    Ok(Some(LabelSelector {
        match_labels: (!strict.match_labels.is_empty()).then_some(strict.match_labels),
        match_expressions: (!expressions.is_empty()).then_some(expressions),
    }))
}

macro_rules! choice {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub enum $name { $($(#[$inner])* $variant),+ }

        impl $name {
            /// Every value, as it is written in a class.
            pub const VALUES: &'static [&'static str] = &[$($text),+];

            /// As it is written in a class.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Reads what is written in a class.
            #[must_use]
            pub fn from_text(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

choice! {
    /// A file system that kubelet can make on a volume.
    FsType {
        /// The default, as in Kubernetes.
        #[default] Ext4 = "ext4",
        /// XFS.
        Xfs = "xfs",
        /// Btrfs.
        Btrfs = "btrfs",
    }
}

choice! {
    /// How a volume lies on the disks of its volume group.
    Layout {
        /// On one disk where one has room, else over several.
        #[default] Linear = "linear",
    }
}

choice! {
    /// Which of the nodes with room a pod is steered to.
    Scoring {
        /// The node with the largest share of free space: claims spread over nodes.
        #[default] Spread = "spread",
        /// The node with the smallest share that still fits: large gaps stay whole.
        Binpack = "binpack",
    }
}

choice! {
    /// What becomes of a volume group that Quarry made, once no class names it and it is empty.
    VolumeGroupPolicy {
        /// It stays as it is.
        #[default] Retain = "Retain",
        /// It is taken down and its disks are blank again.
        Delete = "Delete",
    }
}

/// One mistake in a StorageClass; its text names the field, the value and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {problem}")]
pub struct ParameterError {
    /// The parameter, as a path.
    pub field: String,
    /// The value and what to do about it.
    pub problem: String,
}

/// All mistakes of one class.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ParameterErrors(pub Vec<ParameterError>);

/// Keys that mean the file system; the second is what CSI drivers call it.
const FS_TYPE_KEYS: [&str; 2] = ["fsType", "csi.storage.k8s.io/fstype"];
const KEYS: [&str; 9] = [
    "nodes",
    "volumeGroup",
    FS_TYPE_KEYS[0],
    FS_TYPE_KEYS[1],
    "layout",
    "scoring",
    "wipe",
    "allowUnstableNames",
    "volumeGroupPolicy",
];

/// Whether a class is ours.
#[must_use]
pub fn is_ours(class: &StorageClass) -> bool {
    class.provisioner == PROVISIONER
}

impl ClassParameters {
    /// Reads and checks the parameters of a class.
    ///
    /// # Errors
    /// Every mistake in them.
    pub fn of(class: &StorageClass) -> Result<Self, ParameterErrors> {
        let name = class.metadata.name.as_deref().unwrap_or_default();
        let empty = BTreeMap::new();
        let given = class.parameters.as_ref().unwrap_or(&empty);
        let mut reader = Reader {
            given,
            errors: Vec::new(),
        };
        for key in given.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            reader.error(
                key,
                format!("is not a parameter of {PROVISIONER}; known are {}", KEYS.join(", ")),
            );
        }
        let nodes = reader.nodes();
        let volume_group = given.get("volumeGroup").map_or(name, String::as_str).to_owned();
        let checked = check_volume_group_name(&volume_group).map_err(|error| error.to_string());
        let checked = checked.and_then(|()| check_device_names(&volume_group).map_err(|error| error.to_string()));
        if let Err(error) = checked {
            let origin = if given.contains_key("volumeGroup") {
                ""
            } else {
                " (the name of the class; the parameter volumeGroup gives it another)"
            };
            reader.error("volumeGroup", format!("{volume_group:?}{origin} {error}"));
        }
        let fs_type = reader.fs_type();
        let layout = reader.choice("layout", Layout::from_text, Layout::VALUES);
        let scoring = reader.choice("scoring", Scoring::from_text, Scoring::VALUES);
        let wipe = reader.choice("wipe", Wipe::from_text, Wipe::VALUES);
        let policy = reader.choice(
            "volumeGroupPolicy",
            VolumeGroupPolicy::from_text,
            VolumeGroupPolicy::VALUES,
        );
        let unstable = reader.choice(
            "allowUnstableNames",
            |text| text.parse::<bool>().ok(),
            &["true", "false"],
        );
        if !reader.errors.is_empty() {
            return Err(ParameterErrors(reader.errors));
        }
        Ok(Self {
            nodes,
            volume_group,
            fs_type,
            layout,
            scoring,
            allow_unstable_names: unstable,
            wipe,
            volume_group_policy: policy,
        })
    }

    /// The disks that a node gives to this class: in the order written, each once; `None` where the class does not name
    /// the node.
    #[must_use]
    pub fn disks_of(&self, node: &str, labels: &BTreeMap<String, String>) -> Option<Vec<&DiskSelector>> {
        let mut named = false;
        let mut seen = BTreeSet::new();
        let mut disks = Vec::new();
        for group in &self.nodes {
            let by_label = group
                .selector
                .as_ref()
                .is_some_and(|selector| labels::matches(selector, labels));
            if by_label || group.names.iter().any(|name| name == node) {
                named = true;
                disks.extend(group.disks.iter().filter(|disk| seen.insert(*disk)));
            }
        }
        named.then_some(disks)
    }
}

struct Reader<'a> {
    given: &'a BTreeMap<String, String>,
    errors: Vec<ParameterError>,
}

impl Reader<'_> {
    fn error(&mut self, field: &str, problem: String) {
        self.errors.push(ParameterError {
            field: format!("parameters.{field}"),
            problem,
        });
    }

    fn choice<T: Default>(&mut self, key: &str, read: impl Fn(&str) -> Option<T>, values: &[&str]) -> T {
        let Some(text) = self.given.get(key) else {
            return T::default();
        };
        read(text).unwrap_or_else(|| {
            self.error(key, format!("{text:?} is not supported; use {}", values.join(", ")));
            T::default()
        })
    }

    fn fs_type(&mut self) -> FsType {
        let [ours, alias] = FS_TYPE_KEYS;
        if let (Some(a), Some(b)) = (self.given.get(ours), self.given.get(alias))
            && a != b
        {
            self.error(ours, format!("{a:?} contradicts {alias} {b:?}; keep one of them"));
        }
        let key = if self.given.contains_key(ours) { ours } else { alias };
        self.choice(key, FsType::from_text, FsType::VALUES)
    }

    fn nodes(&mut self) -> Vec<NodeGroup> {
        const EXAMPLE: &str = r#"[{"names": ["worker-1"], "disks": ["/dev/disk/by-id/nvme-A"]}]"#;
        let Some(text) = self.given.get("nodes") else {
            self.error(
                "nodes",
                format!("is missing; name nodes and their disks, for example {EXAMPLE}"),
            );
            return Vec::new();
        };
        let groups: Vec<NodeGroup> = match serde_json::from_str(text) {
            Ok(groups) => groups,
            Err(error) => {
                self.error(
                    "nodes",
                    format!("is not the JSON expected ({error}); write for example {EXAMPLE}"),
                );
                return Vec::new();
            }
        };
        if groups.is_empty() {
            self.error("nodes", format!("[] names no node; write for example {EXAMPLE}"));
        }
        for (index, group) in groups.iter().enumerate() {
            self.node_group(&format!("nodes[{index}]"), group);
        }
        groups
    }

    fn node_group(&mut self, at: &str, group: &NodeGroup) {
        match (&group.selector, group.names.is_empty()) {
            (None, true) => self.error(at, "names no node; give \"names\" or \"selector\"".to_owned()),
            (Some(selector), _) if *selector == LabelSelector::default() => self.error(
                &format!("{at}.selector"),
                "{} would take the disks of every node; name a label, for example {\"matchLabels\": {\"pool\": \"nvme\"}}"
                    .to_owned(),
            ),
            _ => {}
        }
        for (index, name) in group.names.iter().enumerate() {
            if name.trim().is_empty() || name.contains(char::is_whitespace) {
                self.error(
                    &format!("{at}.names[{index}]"),
                    format!("{name:?} is no name of a node"),
                );
            }
        }
        if group.disks.is_empty() {
            self.error(
                &format!("{at}.disks"),
                "[] names no disk; give paths such as \"/dev/disk/by-id/…\"".to_owned(),
            );
        }
        let mut seen = BTreeSet::new();
        for (index, disk) in group.disks.iter().enumerate() {
            let field = format!("{at}.disks[{index}]");
            if !seen.insert(disk) {
                self.error(&field, format!("{disk} is listed twice; keep one of them"));
            }
            match disk {
                DiskSelector::Path(path) => {
                    if let Err(problem) = check_disk_path(path) {
                        self.error(&field, format!("{path:?} {problem}"));
                    }
                }
                DiskSelector::Model(model) if model.trim().is_empty() => {
                    self.error(
                        &field,
                        format!("model {model:?} is empty; see `lsblk -o NAME,MODEL` for the models"),
                    );
                }
                DiskSelector::Model(_) => {}
            }
        }
    }
}

impl fmt::Display for DiskSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.write_str(path),
            Self::Model(model) => write!(f, "model {model:?}"),
        }
    }
}

/// Checks that a text can be the path of a disk: absolute, under /dev, without detours or odd characters.
///
/// # Errors
/// What is wrong with it, and what to write.
pub fn check_disk_path(path: &str) -> Result<(), &'static str> {
    let Some(rest) = path.strip_prefix("/dev/") else {
        return Err("is not under /dev; give a device such as \"/dev/disk/by-id/…\"");
    };
    if rest.is_empty()
        || rest
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..")
    {
        return Err("is not a plain path; write it without \"//\", \".\" and \"..\"");
    }
    if path.len() > 255
        || !rest
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "/+_.:=@#%,~-\\".contains(c))
    {
        return Err("has characters that no device name has; see the names in /dev/disk/by-id");
    }
    Ok(())
}

#[cfg(test)]
#[path = "storage_class_tests.rs"]
mod tests;
