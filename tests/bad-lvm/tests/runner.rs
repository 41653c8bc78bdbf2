//! The manager's runner of commands, and what it makes of reports, against a program that misbehaves. No LVM is needed:
//! in its place is `echo`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quarry_bad_lvm::{Deed, log_of, rules_of};
use quarry_manager::lvm::command::{CommandError, Exit, Limits, Output, Program};
use quarry_manager::lvm::{
    CreateVolume, CreateVolumeError, GroupRef, HostLvm, HostOptions, Lvm as _, RemoveVolumeError, ReportError, State,
    VolumeRef,
};

const LIMITS: Limits = Limits {
    warn_after: Duration::from_millis(200),
    deadline: Duration::from_millis(1000),
    grace: Duration::from_millis(500),
    output: 16 << 20,
};

/// A program of its own with rules of its own.
struct Bad {
    _directory: tempfile::TempDir,
    program: PathBuf,
}

impl Bad {
    fn new(rules: &str) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("made");
        let program = directory.path().join("lvm");
        // A symbolic link is resolved to the one program that all tests share, and so are its rules. A copy is busy while
        // another test forks, which has what is written open until it runs its program.
        std::fs::hard_link(env!("CARGO_BIN_EXE_bad-lvm"), &program).expect("linked");
        std::fs::write(rules_of(&program), format!("real /bin/echo\n{rules}\n")).expect("written");
        Self {
            _directory: directory,
            program,
        }
    }

    async fn run(&self, arguments: &[&str]) -> Result<Output, CommandError> {
        let arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        let program = Program::at(self.program.clone()).with_limits(LIMITS);
        program.run("lvm", arguments).await
    }

    fn lvm(&self) -> HostLvm {
        let options = HostOptions {
            program: Some(self.program.clone()),
            limits: LIMITS,
            ..HostOptions::default()
        };
        HostLvm::new(options).expect("named")
    }

    fn runs(&self) -> Vec<String> {
        let log = std::fs::read_to_string(log_of(&self.program)).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

/// Whether a process runs that program.
fn is_running(program: &Path) -> bool {
    // Of a target directory that is elsewhere, the kernel tells the true path.
    let program = program.canonicalize().expect("there");
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    processes
        .filter_map(|process| std::fs::read_link(process.path().join("exe")).ok())
        .any(|exe| exe == program)
}

#[tokio::test]
async fn what_goes_well_is_passed_on() {
    let bad = Bad::new("");
    let output = bad.run(&["vgs", "a"]).await.expect("runs");
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_str()),
        (b"vgs a\n".as_slice(), "")
    );
}

#[tokio::test]
async fn a_command_that_hangs_is_ended_at_its_deadline_and_nothing_of_it_runs_on() {
    for (deed, ended_by) in [
        ("hang", 1000..20_000),
        ("hang-stubborn", 1500..20_000),
        ("hang-after", 1500..20_000),
        ("endless", 1000..20_000),
    ] {
        let bad = Bad::new(&format!("lvcreate 0 1 {deed}"));
        let begun = Instant::now();
        let error = bad.run(&["lvcreate"]).await.expect_err(deed);
        let took = begun.elapsed().as_millis();
        assert!(matches!(error.exit, Exit::Deadline), "{deed}: {error}");
        assert!(ended_by.contains(&took), "{deed} took {took} ms");
        assert!(!is_running(&bad.program), "{deed}");
    }
}

/// Looks until a process runs that program, or none does; at most for 20 s.
async fn until_running(program: &Path, wanted: bool) -> bool {
    for _ in 0..1000 {
        if is_running(program) == wanted {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test]
async fn a_command_is_run_to_its_end_without_its_caller() {
    let bad = Bad::new("lvcreate 0 1 hang-stubborn");
    tokio::select! {
        _ = bad.run(&["lvcreate"]) => panic!("it ended"),
        running = until_running(&bad.program, true) => assert!(running),
    }
    assert!(
        until_running(&bad.program, false).await,
        "nobody waits for it, and it is killed at its deadline all the same"
    );
}

#[tokio::test]
async fn how_it_ended_is_told() {
    for (deed, told) in [
        ("kill", "was killed"),
        ("kill-after", "was killed"),
        ("fail", "failed with code 5"),
        ("fail-after", "Failed on purpose: \u{fffd}."),
        ("huge", "it wrote more than is taken"),
        ("background", "something that it started holds its output open"),
    ] {
        let bad = Bad::new(&format!("lvcreate 0 1 {deed}"));
        let error = bad.run(&["lvcreate"]).await.expect_err(deed).to_string();
        assert!(error.contains(told), "{deed}: {error}");
    }
}

#[tokio::test]
async fn a_megabyte_of_warnings_is_no_failure() {
    let bad = Bad::new("vgs 0 1 warn");
    let output = bad.run(&["vgs"]).await.expect("runs");
    assert_eq!(output.stdout, b"vgs\n");
    let lines = output.stderr.matches('\n').count();
    assert!((3000..3500).contains(&lines), "{lines} lines of the first 256 KiB");
}

/// A report of a pretended LVM, in full.
async fn report(deed: Deed) -> (Result<State, ReportError>, Bad) {
    let bad = Bad::new(&format!("fullreport 0 1 {deed}"));
    let text = r#"{"report": [{"vg": [], "pv": [], "lv": [], "pvseg": [], "seg": []}]}"#;
    let real = bad.program.with_file_name("real");
    std::fs::write(&real, format!("#!/bin/sh\necho '{text}'\n")).expect("written");
    let mut permissions = std::fs::metadata(&real).expect("there").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    std::fs::set_permissions(&real, permissions).expect("set");
    let rules = std::fs::read_to_string(rules_of(&bad.program)).expect("read");
    std::fs::write(
        rules_of(&bad.program),
        rules.replace("/bin/echo", &real.display().to_string()),
    )
    .expect("written");
    (bad.lvm().report().await, bad)
}

/// Whatever is wrong with a report, it is never taken for a node without volumes.
#[tokio::test]
async fn a_report_is_read_in_full_or_not_at_all() {
    for deed in Deed::ALL {
        let (state, _bad) = report(*deed).await;
        match deed {
            // The last is what LVM itself writes where there is no physical volume: nothing can be told from it.
            Deed::Right | Deed::Warn | Deed::Empty => assert_eq!(state.expect("read"), State::default(), "{deed}"),
            _ => {
                let error = state.expect_err(deed.text()).to_string();
                assert!(!error.is_empty() && error.len() < 1200, "{deed}: {error}");
            }
        }
    }
}

fn group() -> GroupRef {
    GroupRef {
        name: "fast".to_owned(),
        uuid: "AAAAAA-0000-0000-0000-0000-0000-000000".to_owned(),
    }
}

/// Where nothing can be read, nothing is known; and nothing is removed.
#[tokio::test]
async fn where_no_report_comes_nothing_is_assumed_and_nothing_removed() {
    for deed in ["hang", "kill", "fail", "nothing", "garbage", "not-utf8", "huge", "cut"] {
        let bad = Bad::new(&format!("fullreport 0 9 {deed}"));
        let volume = VolumeRef {
            group: group(),
            name: "pvc-a".to_owned(),
            uuid: "BBBBBB-0000-0000-0000-0000-0000-000000".to_owned(),
        };
        let error = bad.lvm().remove_volume(volume).await.expect_err(deed);
        assert!(matches!(error, RemoveVolumeError::Unknown(_)), "{deed}: {error}");
        assert_eq!(
            bad.runs(),
            [format!("fullreport {deed}")],
            "nothing but a report was asked for"
        );
        let create = CreateVolume {
            group: group(),
            name: "pvc-a".to_owned(),
            extents: quarry_crds::Extents(1),
            tags: vec!["quarry.version=1".to_owned()],
            devices: Vec::new(),
            physical_volume: None,
        };
        let error = bad.lvm().create_volume(create).await.expect_err(deed);
        assert!(matches!(error, CreateVolumeError::Unknown(_)), "{deed}: {error}");
    }
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let options = HostOptions {
        program: Some("/nowhere/lvm".into()),
        ..HostOptions::default()
    };
    let error = HostLvm::new(options)
        .expect("named")
        .report()
        .await
        .expect_err("not there")
        .to_string();
    assert!(error.contains("could not be started"), "{error}");
}
