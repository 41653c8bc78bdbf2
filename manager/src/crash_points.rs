//! Points between two side effects at which a test build can be made to die: what is left there is what a power cut, an
//! OOM kill or a bug would leave.
//!
//! They exist only with the feature `crash-points`, which no image that is shipped is built with; without it
//! [`crash_point!`] is nothing. `crash-points.txt` lists them all, for whoever wants to reach each of them.
//! One is armed by a file in the host's `/run/lvm`, and fires once.

/// Dies here, where this point is armed.
#[cfg(feature = "crash-points")]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::crash_points::reached($name)
    };
}

/// Nothing: this build cannot be made to die.
#[cfg(not(feature = "crash-points"))]
macro_rules! crash_point {
    ($name:literal) => {{}};
}

/// Ends this process as `kill -KILL` does where the point is armed: nothing is unwound, flushed or told to anybody.
#[cfg(feature = "crash-points")]
pub fn reached(name: &str) {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    // Whoever removes the file dies: one of us, once.
    if std::fs::remove_file(format!("/run/lvm/quarry-crash-{name}")).is_ok() {
        let _ = kill(Pid::this(), Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    fn manager() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    /// Read when the test runs, so that the names are not a part of the test's own program.
    fn listed() -> BTreeSet<String> {
        let text = std::fs::read_to_string(manager().join("crash-points.txt")).expect("the list");
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| line.split_whitespace().next().unwrap_or_default().to_owned())
            .collect()
    }

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }

    #[test]
    fn the_list_names_every_point_and_no_other() {
        let mut files = Vec::new();
        sources(&manager().join("src"), &mut files);
        let mut placed = BTreeSet::new();
        for file in files.iter().filter(|file| !file.ends_with("crash_points.rs")) {
            let text = std::fs::read_to_string(file).expect("a source");
            for part in text.split("crash_point!(\"").skip(1) {
                let name = part.split('"').next().unwrap_or_default().to_owned();
                assert!(placed.insert(name.clone()), "{name} stands in two places");
            }
        }
        assert!(placed.len() > 30);
        assert_eq!(placed, listed());
    }

    /// The program of the tests has all of the manager's code in it.
    #[cfg(not(feature = "crash-points"))]
    #[test]
    fn a_build_without_the_feature_has_no_point() {
        let program = std::fs::read(std::env::current_exe().expect("a program")).expect("its bytes");
        let program = String::from_utf8_lossy(&program);
        assert!(
            program.contains("quarry.dev/space-returned"),
            "the program is not looked at"
        );
        for name in listed() {
            assert!(!program.contains(&name), "{name}");
        }
    }

    #[test]
    fn no_image_that_is_shipped_has_the_feature() {
        let read = |path: &str| std::fs::read_to_string(manager().join(path)).expect("a file");
        assert!(!read("../Dockerfile").contains("features"));
        let settings = read("Cargo.toml");
        let features = settings.split("[features]").nth(1).expect("features");
        let features = features.split("\n[").next().unwrap_or_default();
        assert!(!features.contains("default"), "{features}");
    }
}
