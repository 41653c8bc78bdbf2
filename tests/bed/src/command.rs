//! Programs of the machine, by argument vector and never through a shell.

use std::{ffi::OsStr, path::Path, process::Stdio};

use tokio::process::Command;

use crate::error::{BedError, During, Result};

/// What a program left behind.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Output {
    /// Its exit code; 128 and the signal's number when a signal ended it.
    pub status: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Output {
    /// Whether the program ended with 0.
    pub fn success(&self) -> bool {
        self.status == 0
    }
}

impl From<std::process::Output> for Output {
    fn from(output: std::process::Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status;
        Output {
            status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a program to its end and returns what it wrote; fails when it fails.
pub(crate) async fn run<S: AsRef<OsStr>>(argv: &[S]) -> Result<String> {
    run_in(Path::new("/"), &[], argv).await
}

/// The same in a folder and with additions to the environment.
pub(crate) async fn run_in<S: AsRef<OsStr>>(folder: &Path, env: &[(&str, &OsStr)], argv: &[S]) -> Result<String> {
    let output = try_run(folder, env, argv).await?;
    if output.success() {
        Ok(output.stdout)
    } else {
        Err(failed(&words(argv), &output))
    }
}

/// Runs a program to its end, whatever its exit code.
pub(crate) async fn try_run<S: AsRef<OsStr>>(folder: &Path, env: &[(&str, &OsStr)], argv: &[S]) -> Result<Output> {
    let (program, arguments) = argv.split_first().ok_or_else(|| BedError::Missing {
        what: "an empty command".to_owned(),
        remedy: "give a program and its arguments".to_owned(),
    })?;
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("LC_ALL", "C")
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .during(|| format!("cannot run `{}`", words(argv)))?;
    Ok(output.into())
}

/// The error of a program that ended badly.
pub(crate) fn failed(command: &str, output: &Output) -> BedError {
    BedError::Command {
        command: command.to_owned(),
        status: output.status.to_string(),
        stdout: output.stdout.trim_end().to_owned(),
        stderr: output.stderr.trim_end().to_owned(),
    }
}

/// An argument vector for reading.
pub(crate) fn words<S: AsRef<OsStr>>(argv: &[S]) -> String {
    argv.iter()
        .map(|word| word.as_ref().to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
