//! The LVM tags that make logical volumes and volume groups ours, and that carry what must survive a restart.
//!
//! A logical volume with its tags is the truth about a volume; nothing else is stored. Tags are set by the same command
//! that makes the volume, so there is no moment in which one of ours has none. A set of tags without `quarry.version`,
//! or of another version, is not ours to touch.

use thiserror::Error;

use crate::claim::VolumeMode;

/// The tag of every volume group and logical volume of this version of the tags.
pub const VERSION_TAG: &str = "quarry.version=1";
/// What the version tag starts with, whatever the version.
const VERSION_KEY: &str = "quarry.version";
/// Keys of the tags that say whose a volume group is.
const NODE_KEY: &str = "quarry.node";
const CLUSTER_KEY: &str = "quarry.cluster";
/// Longest tag that LVM accepts, in bytes.
pub const TAG_MAX: usize = 1024;

macro_rules! tag_value {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$inner])* $variant),+ }

        impl $name {
            /// As it is written in a tag.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// As it is read from a tag; `None` for an unknown text.
            #[must_use]
            pub fn from_text(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

tag_value! {
    /// How far a logical volume has come.
    VolumeState {
        /// Made, but perhaps neither wiped nor handed out yet.
        Creating = "creating",
        /// Wiped, and its PersistentVolume exists or existed.
        Ready = "ready",
        /// To be wiped and removed; its space is not free before that. Perhaps wiped in part already.
        Deleting = "deleting",
        /// Its PersistentVolume was deleted, and its data is to be kept: nobody but a person removes it.
        Retained = "retained",
    }
}

tag_value! {
    /// What becomes of the data of a volume that is deleted, before its space is free.
    #[derive(Default)]
    Wipe {
        /// Signatures of file systems and the like are erased, other blocks stay.
        #[default] Signatures = "signatures",
        /// All blocks are given back to the disk, and signatures are erased; where the disk cannot do that, zeros are
        /// written.
        Discard = "discard",
        /// All blocks are written with zeros.
        Zero = "zero",
    }
}

impl Wipe {
    /// Every value, as it is written in a class.
    pub const VALUES: &'static [&'static str] = &["signatures", "discard", "zero"];

    /// How a new volume is made free of what its extents held before, whose volumes may have been wiped in another way.
    /// A file system shows nothing that was not written through it; of a raw volume a pod can read every block, so
    /// every block is made to read as zeros.
    #[must_use]
    pub const fn of_new(self, mode: VolumeMode) -> Self {
        match (mode, self) {
            (VolumeMode::Filesystem, _) => Self::Signatures,
            (VolumeMode::Block, Self::Discard) => Self::Discard,
            (VolumeMode::Block, _) => Self::Zero,
        }
    }
}

impl VolumeMode {
    /// As it is written in a tag.
    const fn tag_text(self) -> &'static str {
        match self {
            Self::Filesystem => "filesystem",
            Self::Block => "block",
        }
    }

    /// As it is read from a tag; `None` for an unknown text.
    fn from_tag_text(text: &str) -> Option<Self> {
        [Self::Filesystem, Self::Block]
            .into_iter()
            .find(|mode| mode.tag_text() == text)
    }
}

/// The tags of a logical volume of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeTags {
    /// UID of the PersistentVolumeClaim that it was made for.
    pub claim_uid: String,
    /// Name of the StorageClass that it was made by.
    pub class: String,
    /// How far it has come.
    pub state: VolumeState,
    /// How it is wiped when it is deleted.
    pub wipe: Wipe,
    /// How a pod sees it.
    pub mode: VolumeMode,
}

impl VolumeTags {
    /// Reads the tags of a logical volume. `None` unless it is ours: exactly one version tag, of this version, and each
    /// of our other tags exactly once with a known value. Foreign tags are ignored.
    #[must_use]
    pub fn parse(tags: &[String]) -> Option<Self> {
        if !is_ours(tags) {
            return None;
        }
        let claim_uid = single(tags, "quarry.pvc-uid")?;
        let class = single(tags, "quarry.class")?;
        if claim_uid.is_empty() || class.is_empty() {
            return None;
        }
        Some(Self {
            claim_uid: claim_uid.to_owned(),
            class: class.to_owned(),
            state: VolumeState::from_text(single(tags, "quarry.state")?)?,
            wipe: Wipe::from_text(single(tags, "quarry.wipe")?)?,
            mode: VolumeMode::from_tag_text(single(tags, "quarry.mode")?)?,
        })
    }

    /// The tags to set on the logical volume.
    #[must_use]
    pub fn to_vec(&self) -> Vec<String> {
        vec![
            VERSION_TAG.to_owned(),
            format!("quarry.pvc-uid={}", self.claim_uid),
            format!("quarry.class={}", self.class),
            self.state.tag(),
            format!("quarry.wipe={}", self.wipe.text()),
            format!("quarry.mode={}", self.mode.tag_text()),
        ]
    }
}

impl VolumeState {
    /// The tag of this state.
    #[must_use]
    pub fn tag(self) -> String {
        format!("quarry.state={}", self.text())
    }

    /// Why a volume in this state that has no PersistentVolume is neither wiped nor removed for its claim, and what a person can
    /// do; `None` where it was never handed out, or is being removed.
    #[must_use]
    pub fn to_be_kept(self, group: &str, volume: &str) -> Option<String> {
        matches!(self, Self::Ready | Self::Retained).then(|| {
            format!(
                "the logical volume of this claim, {group}/{volume}, was handed out before (tag {}), though the claim is not \
                 bound, as after a restore of etcd; it may hold data and is neither wiped nor removed. If the data is needed, make \
                 PersistentVolume {volume} again, from a backup of the objects; if not, remove it on the node with \"lvremove \
                 {group}/{volume}\", and the claim gets a new one",
                self.tag()
            )
        })
    }

    /// The tags to add and to delete so that a volume which is in any state comes into this one.
    #[must_use]
    pub fn change(self) -> (Vec<String>, Vec<String>) {
        let others = [Self::Creating, Self::Ready, Self::Deleting, Self::Retained]
            .into_iter()
            .filter(|other| *other != self);
        (vec![self.tag()], others.map(Self::tag).collect())
    }
}

/// Whose volume groups are: a node of a cluster. A disk can be moved to another node, or be attached to two at once; only the
/// owner acts upon what is on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// Name of the Node object.
    pub node: String,
    /// UID of the namespace kube-system, which no two clusters share.
    pub cluster: String,
}

/// What the tags of a volume group say of its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// It is this node's.
    Ours,
    /// Nothing: an earlier version made it, or a person has handed it to Quarry.
    Unclaimed,
    /// It is another node's.
    Another {
        /// The tags that say so.
        tags: Vec<String>,
    },
}

impl Owner {
    /// The tags of a volume group of this owner.
    #[must_use]
    pub fn tags(&self) -> [String; 2] {
        [
            format!("{NODE_KEY}={}", self.node),
            format!("{CLUSTER_KEY}={}", self.cluster),
        ]
    }

    /// Whose a volume group with these tags is. One that two owners claim is nobody's to act upon.
    #[must_use]
    pub fn ownership(&self, tags: &[String]) -> Ownership {
        let own = self.tags();
        let (mut ours, mut others) = (0, Vec::new());
        for tag in tags.iter().filter(|tag| [NODE_KEY, CLUSTER_KEY].contains(&key(tag))) {
            if own.contains(tag) {
                ours += 1;
            } else {
                others.push(tag.clone());
            }
        }
        match ours {
            _ if !others.is_empty() => Ownership::Another { tags: others },
            2.. => Ownership::Ours,
            _ => Ownership::Unclaimed,
        }
    }

    /// Whether Quarry on this node acts upon a volume group with these tags.
    #[must_use]
    pub fn acts_on(&self, tags: &[String]) -> bool {
        is_ours(tags) && !matches!(self.ownership(tags), Ownership::Another { .. })
    }

    /// The command by which a person hands a volume group of another owner over to this one.
    #[must_use]
    pub fn hand_over(&self, volume_group: &str, others: &[String]) -> String {
        let delete = others.iter().map(|tag| format!(" --deltag {tag}"));
        let add = self.tags().map(|tag| format!(" --addtag {tag}"));
        let changes: String = delete.chain(add).collect();
        format!("vgchange{changes} {volume_group}")
    }
}

/// The state that a volume is to be marked with while its PersistentVolume stays; `None` where it says so already, or where its
/// removal has begun, which nobody takes back. One that is to be retained says so while its object lives: when that goes, its
/// disks may be away.
#[must_use]
pub fn mark_of_kept(now: VolumeState, retain: bool) -> Option<VolumeState> {
    let to = if retain {
        VolumeState::Retained
    } else {
        VolumeState::Ready
    };
    (now != to && now != VolumeState::Deleting).then_some(to)
}

/// Whether the tags of a volume group or a logical volume say that it is ours, and of a version known here.
#[must_use]
pub fn is_ours(tags: &[String]) -> bool {
    let mut versions = tags.iter().filter(|tag| key(tag) == VERSION_KEY);
    versions.next().is_some_and(|tag| tag == VERSION_TAG) && versions.next().is_none()
}

/// The tag that says that a group or a volume is of Quarry, but of a version unknown here: left alone.
#[must_use]
pub fn unknown_version(tags: &[String]) -> Option<&str> {
    let versions = tags.iter().filter(|tag| key(tag) == VERSION_KEY);
    versions.map(String::as_str).find(|tag| *tag != VERSION_TAG)
}

fn key(tag: &str) -> &str {
    tag.split_once('=').map_or(tag, |(key, _)| key)
}

/// The value of a tag that may be there once only.
fn single<'a>(tags: &'a [String], name: &str) -> Option<&'a str> {
    let mut found = tags
        .iter()
        .filter_map(|tag| tag.split_once('='))
        .filter(|(key, _)| *key == name);
    match (found.next(), found.next()) {
        (Some((_, value)), None) => Some(value),
        _ => None,
    }
}

/// Why LVM would not accept a text as a tag.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TagError {
    /// Nothing, or a leading hyphen, which LVM takes for an option.
    #[error("tag {0:?} is empty or starts with a hyphen")]
    Start(String),
    /// Longer than [`TAG_MAX`].
    #[error("tag of {0} bytes; LVM accepts {TAG_MAX}")]
    TooLong(usize),
    /// Outside of LVM's set.
    #[error("tag {tag:?} contains {character:?}; LVM accepts letters, digits and _ + . - / = ! : & #")]
    Character {
        /// The tag.
        tag: String,
        /// The first character that LVM does not accept.
        character: char,
    },
}

/// Checks that LVM accepts a tag (lvm(8), "Tags").
///
/// # Errors
/// What is wrong with it.
pub fn check_tag(tag: &str) -> Result<(), TagError> {
    if tag.is_empty() || tag.starts_with('-') {
        return Err(TagError::Start(tag.to_owned()));
    }
    if tag.len() > TAG_MAX {
        return Err(TagError::TooLong(tag.len()));
    }
    match tag
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || "_+.-/=!:&#".contains(*c)))
    {
        Some(character) => Err(TagError::Character {
            tag: tag.to_owned(),
            character,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> VolumeTags {
        VolumeTags {
            claim_uid: "6f1c8f1e-6bd5-4a44-a7a4-2f6a5f1f6a10".into(),
            class: "fast".into(),
            state: VolumeState::Creating,
            wipe: Wipe::Signatures,
            mode: VolumeMode::Filesystem,
        }
    }

    #[test]
    fn legal_and_read_back_in_any_order_beside_foreign_tags() {
        let mut tags = example().to_vec();
        for tag in &tags {
            assert_eq!(check_tag(tag), Ok(()));
        }
        tags.reverse();
        tags.push("backup=no".into());
        assert_eq!(VolumeTags::parse(&tags), Some(example()));
    }

    #[test]
    fn anything_missing_doubled_or_unknown_is_not_ours() {
        let tags = example().to_vec();
        for index in 0..tags.len() {
            let mut fewer = tags.clone();
            fewer.remove(index);
            assert_eq!(VolumeTags::parse(&fewer), None, "without {}", tags[index]);
            let mut doubled = tags.clone();
            doubled.push(format!("{}x", tags[index]));
            assert_eq!(VolumeTags::parse(&doubled), None, "doubled {}", tags[index]);
        }
        let later: Vec<String> = tags.iter().map(|tag| tag.replace("version=1", "version=2")).collect();
        assert_eq!(VolumeTags::parse(&later), None);
        assert!(unknown_version(&later).is_some() && !is_ours(&later));
        assert!(unknown_version(&tags).is_none() && unknown_version(&["other".into()]).is_none());
    }

    #[test]
    fn a_new_raw_volume_shows_nothing_old_whatever_its_class_says() {
        for text in Wipe::VALUES {
            let wipe = Wipe::from_text(text).expect("known");
            assert_eq!(wipe.text(), *text);
            assert_ne!(wipe.of_new(VolumeMode::Block), Wipe::Signatures, "{text}");
            assert_eq!(wipe.of_new(VolumeMode::Filesystem), Wipe::Signatures, "{text}");
        }
    }

    #[test]
    fn change_of_state_leaves_exactly_one() {
        let states = [
            VolumeState::Creating,
            VolumeState::Ready,
            VolumeState::Deleting,
            VolumeState::Retained,
        ];
        for before in states {
            for after in states {
                let mut tags = VolumeTags {
                    state: before,
                    ..example()
                }
                .to_vec();
                let (add, delete) = after.change();
                tags.retain(|tag| !delete.contains(tag));
                tags.extend(add.into_iter().filter(|tag| *tag != before.tag()));
                assert_eq!(VolumeTags::parse(&tags).map(|tags| tags.state), Some(after));
            }
        }
    }

    #[test]
    fn a_group_has_one_owner() {
        let owner = Owner {
            node: "worker-1.example".into(),
            cluster: "4f0c6dbd-6a4e-4a0e-9d0a-0f6a52c1b7aa".into(),
        };
        let own = owner.tags().to_vec();
        assert!(own.iter().all(|tag| check_tag(tag) == Ok(())));
        let with = |tags: &[&str]| -> Vec<String> {
            let more = tags.iter().map(|tag| (*tag).to_owned());
            std::iter::once(VERSION_TAG.to_owned()).chain(more).collect()
        };
        let another = |tags: &[&str]| Ownership::Another {
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        };
        let both = with(&[&own[0], &own[1]]);
        assert_eq!(owner.ownership(&both), Ownership::Ours);
        assert!(owner.acts_on(&both) && owner.acts_on(&with(&[])) && owner.acts_on(&with(&[&own[0]])));
        assert!(!owner.acts_on(&own), "without the version it is nobody's");
        for tags in [
            &["quarry.node=worker-2.example", own[1].as_str()][..],
            &[own[0].as_str(), "quarry.cluster=other"],
            &[own[0].as_str(), own[1].as_str(), "quarry.node=worker-2.example"],
            &["quarry.node"],
        ] {
            let others: Vec<&str> = tags
                .iter()
                .copied()
                .filter(|tag| !own.contains(&(*tag).to_owned()))
                .collect();
            assert_eq!(owner.ownership(&with(tags)), another(&others));
            assert!(!owner.acts_on(&with(tags)), "{tags:?}");
        }
        assert_eq!(
            owner.hand_over("fast", &["quarry.node=worker-2".to_owned()]),
            format!(
                "vgchange --deltag quarry.node=worker-2 --addtag {} --addtag {} fast",
                own[0], own[1]
            )
        );
    }

    #[test]
    fn only_what_was_never_handed_out_is_wiped_or_removed_for_a_claim() {
        assert_eq!(VolumeState::Creating.to_be_kept("g", "v"), None);
        assert_eq!(VolumeState::Deleting.to_be_kept("g", "v"), None);
        for state in [VolumeState::Ready, VolumeState::Retained] {
            let note = state.to_be_kept("g", "v").expect("kept");
            for part in [&state.tag(), "lvremove g/v", "make PersistentVolume v again"] {
                assert!(note.contains(part), "{note}");
            }
        }
    }

    #[test]
    fn what_stays_says_whether_it_is_to_be_retained() {
        use VolumeState::{Creating, Deleting, Ready, Retained};
        for (now, retain, to) in [
            (Creating, false, Some(Ready)),
            (Creating, true, Some(Retained)),
            (Ready, false, None),
            (Ready, true, Some(Retained)),
            (Retained, false, Some(Ready)),
            (Retained, true, None),
            (Deleting, false, None),
            (Deleting, true, None),
        ] {
            assert_eq!(mark_of_kept(now, retain), to, "{now:?} {retain}");
        }
    }

    #[test]
    fn tags_that_lvm_refuses() {
        for bad in ["", "-a", "a b", "a,b", "é", "@a", &"x".repeat(1025)] {
            assert!(check_tag(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parse_never_panics(tags in proptest::collection::vec("(quarry\\.(version|state|pvc-uid|class|wipe|mode)(=(1|ready|a)?)?|\\PC{0,8})", 0..9)) {
            if let Some(read) = VolumeTags::parse(&tags) {
                prop_assert_eq!(VolumeTags::parse(&read.to_vec()), Some(read));
            }
        }
    }
}
