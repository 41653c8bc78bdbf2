//! Who makes the nodes and links of volumes in `/dev`: udev of the host, where it can, or else LVM itself.
//!
//! Many nodes lack a part of what LVM is used to find: minimal images have udev without LVM's rules, immutable ones without
//! device-mapper's or without the program that those call, and a node that is a container has no udev at all. LVM would wait
//! for ever there, or find no node of the volume that it has just made.

use std::fmt;

/// Who makes the nodes and links of volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceNodes {
    /// udev makes them, and LVM waits for it.
    Udev,
    /// LVM makes them itself, and waits until udev has looked at the device: udev has device-mapper's rules and not LVM's.
    LvmInStep,
    /// LVM makes them itself and waits for nobody.
    Lvm,
}

impl DeviceNodes {
    /// All, best first.
    pub const ALL: [Self; 3] = [Self::Udev, Self::LvmInStep, Self::Lvm];

    /// One word of a few fixed ones, for metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Udev => "udev",
            Self::LvmInStep => "lvm_in_step",
            Self::Lvm => "lvm",
        }
    }

    /// Whether LVM's commands wait for udev, and so hang where it does not answer any more.
    #[must_use]
    pub fn waits_for_udev(self) -> bool {
        self != Self::Lvm
    }

    /// What LVM is told by `--config`, where that differs from the settings of the image.
    #[must_use]
    pub fn config(self) -> Option<&'static str> {
        match self {
            Self::Udev => None,
            Self::LvmInStep => Some("activation { udev_rules=0 }"),
            Self::Lvm => Some("activation { udev_sync=0 udev_rules=0 }"),
        }
    }
}

/// What a test device has shown, which has a name and a UUID as LVM's own have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// udev has answered, and the link of the device was there.
    Link,
    /// udev has answered, and there was no link.
    Answer,
    /// udev has not answered in time.
    Silence,
    /// Nothing says that udev runs.
    NoUdev,
    /// The device could not be made.
    Nothing(String),
}

/// Which rules for udev are on the host, by what they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// Those of device-mapper, which name its devices (`10-dm.rules` or `55-dm.rules`).
    pub device_mapper: bool,
    /// The one that tells LVM that udev is done (`95-dm-notify.rules`).
    pub notify: bool,
    /// Those of LVM, which make the links of volumes (`11-dm-lvm.rules` or `56-lvm.rules`).
    pub lvm: bool,
}

impl Rules {
    fn all(self) -> bool {
        self.device_mapper && self.notify && self.lvm
    }

    /// Those that are not there, for people.
    fn missing(self) -> String {
        let parts = [
            (self.device_mapper, "55-dm.rules"),
            (self.notify, "95-dm-notify.rules"),
            (self.lvm, "56-lvm.rules"),
        ];
        let missing: Vec<_> = parts
            .iter()
            .filter(|(there, _)| !there)
            .map(|(_, name)| *name)
            .collect();
        if missing.is_empty() {
            "all of udev's rules for it are on the host".to_owned()
        } else {
            format!("of udev's rules {} are not on the host", missing.join(", "))
        }
    }
}

/// Who is to make nodes and links, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Who.
    pub by: DeviceNodes,
    /// Why, for people.
    pub why: String,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            DeviceNodes::Udev => "udev makes the devices of volumes",
            DeviceNodes::LvmInStep => "LVM makes the devices of volumes itself, in step with udev",
            DeviceNodes::Lvm => "LVM makes the devices of volumes itself",
        };
        write!(f, "{by}: {}", self.why)
    }
}

/// What a test device has shown decides; where none could be made, the rules do.
#[must_use]
pub fn decide(shown: &Shown, rules: Rules, udev_runs: bool) -> Decision {
    let missing = rules.missing();
    let (by, why) = match shown {
        Shown::Link => (DeviceNodes::Udev, "a test device had its link".to_owned()),
        Shown::Answer => (
            DeviceNodes::LvmInStep,
            format!("udev made no link to a test device; {missing}"),
        ),
        Shown::Silence => (
            DeviceNodes::Lvm,
            format!("udev did not say that it has seen a test device; {missing}"),
        ),
        Shown::NoUdev => (DeviceNodes::Lvm, "no udev runs on the host".to_owned()),
        Shown::Nothing(error) if udev_runs && rules.all() => (
            DeviceNodes::Udev,
            format!("{missing}, and no test device could be made: {error}"),
        ),
        Shown::Nothing(error) => {
            let runs = if udev_runs { "" } else { "no udev runs on the host; " };
            (
                DeviceNodes::Lvm,
                format!("{runs}{missing}, and no test device could be made: {error}"),
            )
        }
    };
    Decision { by, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Rules = Rules {
        device_mapper: true,
        notify: true,
        lvm: true,
    };

    #[test]
    fn what_a_test_device_shows_decides_whatever_the_rules_are_called() {
        for rules in [ALL, Rules::default()] {
            for runs in [true, false] {
                let by = |shown| decide(&shown, rules, runs).by;
                assert_eq!(by(Shown::Link), DeviceNodes::Udev);
                assert_eq!(by(Shown::Answer), DeviceNodes::LvmInStep);
                assert_eq!(by(Shown::Silence), DeviceNodes::Lvm);
                assert_eq!(by(Shown::NoUdev), DeviceNodes::Lvm);
            }
        }
    }

    #[test]
    fn without_a_test_device_udev_is_waited_for_only_where_everything_is_there() {
        let nothing = || Shown::Nothing("no dmsetup".to_owned());
        assert_eq!(decide(&nothing(), ALL, true).by, DeviceNodes::Udev);
        assert_eq!(decide(&nothing(), ALL, false).by, DeviceNodes::Lvm);
        for lacking in [
            Rules { lvm: false, ..ALL },
            Rules { notify: false, ..ALL },
            Rules {
                device_mapper: false,
                ..ALL
            },
        ] {
            let decision = decide(&nothing(), lacking, true);
            assert_eq!(decision.by, DeviceNodes::Lvm);
            assert!(decision.why.contains(".rules are not on the host"), "{}", decision.why);
        }
    }

    #[test]
    fn people_are_told_which_rules_are_missing() {
        let text = decide(&Shown::Answer, Rules { lvm: false, ..ALL }, true).to_string();
        assert!(text.contains("56-lvm.rules") && !text.contains("55-dm.rules"), "{text}");
    }

    #[test]
    fn who_does_not_wait_does_not_sync() {
        for by in DeviceNodes::ALL {
            let config = by.config().unwrap_or_default();
            assert_eq!(config.contains("udev_sync=0"), !by.waits_for_udev());
            assert_eq!(config.contains("udev_rules=0"), by != DeviceNodes::Udev);
        }
    }
}
