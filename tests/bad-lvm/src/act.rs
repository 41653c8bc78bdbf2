//! The deeds.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::{Deed, next};

/// Where LVM is.
const PLACES: [&str; 4] = ["/sbin/lvm", "/usr/sbin/lvm", "/bin/lvm", "/usr/bin/lvm"];

/// Does what the rules beside this program say.
///
/// # Errors
/// The rules are not there or not understood, or there is no LVM.
pub fn run() -> Result<ExitCode> {
    let program = std::env::current_exe()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Started by ourselves, to do the work later.
    if let Some((first, rest)) = arguments.split_first()
        && let Some(real) = first.strip_prefix("--later=")
    {
        std::thread::sleep(Duration::from_secs(2));
        let _ = Command::new(real).args(rest).output();
        std::thread::sleep(Duration::from_secs(18));
        return Ok(ExitCode::SUCCESS);
    }
    let command = arguments.first().map_or("", String::as_str);
    let (deed, real) = next(&program, command)?;
    let real = match real {
        Some(real) => real,
        None => PLACES
            .map(PathBuf::from)
            .into_iter()
            .find(|path| path.exists())
            .context("there is no lvm")?,
    };
    act(deed, &program, &real, &arguments)
}

fn act(deed: Deed, program: &Path, real: &Path, arguments: &[String]) -> Result<ExitCode> {
    let work = || Command::new(real).args(arguments).output();
    match deed {
        Deed::Right => return Err(Command::new(real).args(arguments).exec().into()),
        Deed::Hang => hang(),
        Deed::HangStubborn => hang_stubborn()?,
        Deed::HangAfter => {
            work()?;
            hang_stubborn()?;
        }
        Deed::Kill => kill(Pid::this(), Signal::SIGKILL)?,
        Deed::KillAfter => {
            work()?;
            kill(Pid::this(), Signal::SIGKILL)?;
        }
        Deed::Fail => return failed(),
        Deed::FailAfter => {
            work()?;
            return failed();
        }
        Deed::Nothing => {}
        Deed::Warn => {
            let output = work()?;
            let line = b"  WARNING: \xff\xfe is not what it was, and this line is long enough to fill a pipe soon.\n";
            for _ in 0..12_000 {
                std::io::stderr().write_all(line)?;
            }
            return pass_on(&output, &output.stdout);
        }
        Deed::Noise => {
            let output = work()?;
            let noisy = [b"  WARNING: locking is off.\n".as_slice(), &output.stdout].concat();
            return pass_on(&output, &noisy);
        }
        Deed::Garbage => return pass_on(&work()?, b"  PV /dev/sda not found.\n{\"report\": [{]"),
        Deed::NotUtf8 => return pass_on(&work()?, b"{\"report\": [{\"vg\": [{\"vg_name\": \"\xff\xfe\"}]}]}"),
        Deed::Cut => {
            let output = work()?;
            return pass_on(&output, &output.stdout[..output.stdout.len() / 2]);
        }
        Deed::Empty => return pass_on(&work()?, b"{\"report\": []}\n"),
        Deed::Huge => {
            let output = work()?;
            let blanks = vec![b' '; 1 << 20];
            for _ in 0..20 {
                std::io::stdout().write_all(&blanks)?;
            }
            return pass_on(&output, b"{}");
        }
        Deed::Endless => {
            let blanks = vec![b' '; 1 << 16];
            while std::io::stdout().write_all(&blanks).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Deed::Background => {
            let later = format!("--later={}", real.display());
            Command::new(program).arg(later).args(arguments).spawn()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn hang() {
    std::thread::sleep(Duration::from_secs(3600));
}

fn hang_stubborn() -> Result<()> {
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTERM);
    blocked.thread_block()?;
    hang();
    Ok(())
}

fn failed() -> Result<ExitCode> {
    std::io::stderr().write_all(b"  Failed on purpose: \xff.\n")?;
    Ok(ExitCode::from(5))
}

/// Ends as the real one did, with this on standard output.
fn pass_on(output: &Output, stdout: &[u8]) -> Result<ExitCode> {
    std::io::stdout().write_all(stdout)?;
    std::io::stderr().write_all(&output.stderr)?;
    let code = output.status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
