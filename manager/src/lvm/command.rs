//! Running the few programs of the host that Quarry uses: found once, by absolute path; an argument vector and never a
//! shell; a deadline; a limit of what it may write; the C locale; standard input empty, so that nothing can be asked and
//! answered.
//!
//! A command that was begun is run to its end or to its deadline, also where its caller goes away. At the deadline it is
//! asked to end (SIGTERM), which LVM does between two steps and not within one; then it is killed, and whatever it
//! started with it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use futures::future::BoxFuture;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tracing::{debug, warn};

/// Where programs are looked for. The environment's PATH is not asked.
const SEARCH: [&str; 4] = ["/sbin", "/usr/sbin", "/bin", "/usr/bin"];
/// How much of its standard error is taken, in bytes; more is thrown away.
const STDERR_MAX: usize = 256 << 10;
/// How much of its standard error an error message keeps, in bytes.
const STDERR_SHOWN: usize = 600;
/// How long the output of a program that ended may be held open by what it started.
const OUTPUT_ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Something that is told of every command that was run, for metrics.
pub type Observer = Arc<dyn Fn(&CommandStat) + Send + Sync>;

/// Asked of a command that takes long: whether it will not end, so that it need not be waited for until its deadline.
pub type Hopeless = Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// One run of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandStat {
    /// The program, or the sub-command of `lvm`: one of a few fixed words.
    pub command: &'static str,
    /// How long it took.
    pub duration: Duration,
    /// How it ended: `ok`, `failed`, `killed`, `deadline` or `not_started`.
    pub result: &'static str,
}

/// A program of the host, and how it is run.
#[derive(Clone)]
pub struct Program {
    path: PathBuf,
    limits: Limits,
    observer: Option<Observer>,
    hopeless: Option<Hopeless>,
}

/// How long a command may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// After that long, a warning is logged.
    pub warn_after: Duration,
    /// After that long, the program is asked to end, and the outcome of what it did is unknown.
    pub deadline: Duration,
    /// How long it may take to end when it was asked to, and again when it was killed.
    pub grace: Duration,
    /// How much of its standard output is taken, in bytes. LVM's report of 10,000 volumes has 41 MB.
    pub output: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            warn_after: Duration::from_secs(10),
            deadline: Duration::from_secs(120),
            grace: Duration::from_secs(10),
            output: 256 << 20,
        }
    }
}

/// What a program wrote.
#[derive(Debug, Clone)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, for people only.
    pub stderr: String,
    /// The exit code.
    pub code: i32,
}

/// A program is not installed.
#[derive(Debug, Error)]
#[error("the program {name:?} is in none of {}; install it in the image or on the host", SEARCH.join(", "))]
pub struct NotInstalled {
    name: String,
}

/// A command that did not end well. Its text has no time in it: conditions and events that say the same are the same, so
/// that a refusal which lasts is written once, and not at each attempt.
#[derive(Debug, Clone, Error)]
#[error("\"{command}\" {exit}{}", tail(.stderr))]
pub struct CommandError {
    /// The command, for people.
    pub command: String,
    /// How it ended.
    pub exit: Exit,
    /// What it wrote to standard error, for people.
    pub stderr: String,
    /// How long it took.
    pub duration: Duration,
}

/// How a command ended that did not end well.
#[derive(Debug, Clone, Error)]
pub enum Exit {
    /// It was not run at all.
    #[error("could not be started ({0})")]
    NotStarted(Arc<io::Error>),
    /// It ended with this code.
    #[error("failed with code {0}")]
    Code(i32),
    /// Something else killed it, or it was lost sight of.
    #[error("was killed")]
    Killed,
    /// It was killed at its deadline, and ended.
    #[error("was killed at its deadline")]
    Deadline,
    /// It was killed at its deadline, and did not end: it may still do its work.
    #[error("does not end, not even when killed")]
    StillRunning,
    /// It ended, and what it wrote is not known.
    #[error("ended, but {0}")]
    Output(&'static str),
}

/// The last part of what a program complained of, on one line.
fn tail(stderr: &str) -> String {
    let line = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ");
    if line.is_empty() {
        return String::new();
    }
    let start = (line.len().saturating_sub(STDERR_SHOWN)..line.len())
        .find(|at| line.is_char_boundary(*at))
        .unwrap_or(0);
    format!(": {}{}", if start > 0 { "…" } else { "" }, &line[start..])
}

impl Program {
    /// Finds a program.
    ///
    /// # Errors
    /// It is not installed.
    pub fn find(name: &str) -> Result<Self, NotInstalled> {
        SEARCH
            .iter()
            .map(|directory| Path::new(directory).join(name))
            .find(|path| is_executable(path))
            .map(Self::at)
            .ok_or_else(|| NotInstalled { name: name.to_owned() })
    }

    /// The program at a path. Where there is none, each run of it fails.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            limits: Limits::default(),
            observer: None,
            hopeless: None,
        }
    }

    /// The same with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same, reporting every run.
    #[must_use]
    pub fn with_observer(mut self, observer: Option<Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// The same, asking that after [`Limits::warn_after`].
    #[must_use]
    pub fn with_hopeless(mut self, hopeless: Hopeless) -> Self {
        self.hopeless = Some(hopeless);
        self
    }

    /// Runs it. `label` is what metrics call it.
    ///
    /// # Errors
    /// Anything but exit code 0.
    pub async fn run(&self, label: &'static str, arguments: Vec<String>) -> Result<Output, CommandError> {
        let begun = Instant::now();
        let output = self.run_any(label, arguments.clone()).await?;
        if output.code == 0 {
            return Ok(output);
        }
        Err(self.error(&arguments, Exit::Code(output.code), output.stderr, begun.elapsed()))
    }

    /// Runs it, and leaves the meaning of the exit code to the caller.
    ///
    /// # Errors
    /// It did not run to its end.
    pub async fn run_any(&self, label: &'static str, arguments: Vec<String>) -> Result<Output, CommandError> {
        let program = self.clone();
        let begun = Instant::now();
        let shown = arguments.clone();
        let result = tokio::spawn(async move { program.run_to_end(&arguments).await }).await;
        let duration = begun.elapsed();
        let result = result.unwrap_or_else(|_| Err((Exit::Killed, String::new())));
        let word = match &result {
            Ok(output) if output.code == 0 => "ok",
            Ok(_) => "failed",
            Err((Exit::NotStarted(_), _)) => "not_started",
            Err((Exit::Deadline | Exit::StillRunning, _)) => "deadline",
            Err((Exit::Output(_), _)) => "failed",
            Err(_) => "killed",
        };
        debug!(command = %self.shown(&shown), ?duration, result = word, "command run");
        if let Some(observer) = &self.observer {
            observer(&CommandStat {
                command: label,
                duration,
                result: word,
            });
        }
        result.map_err(|(exit, stderr)| self.error(&shown, exit, stderr, duration))
    }

    fn error(&self, arguments: &[String], exit: Exit, stderr: String, duration: Duration) -> CommandError {
        CommandError {
            command: self.shown(arguments),
            exit,
            stderr,
            duration,
        }
    }

    /// The command as people read it. It is never run from this text.
    fn shown(&self, arguments: &[String]) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        std::iter::once(name.as_ref())
            .chain(arguments.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join(" ")
    }

    async fn run_to_end(&self, arguments: &[String]) -> Result<Output, (Exit, String)> {
        // Nothing is asked for that posix_spawn(3) cannot do in a static binary, such as a working directory: this process
        // would be copied for each command, and copy each page that it writes to after that.
        let mut child = Command::new(&self.path)
            .args(arguments)
            .env("LC_ALL", "C")
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // So that what it starts can be killed with it.
            .process_group(0)
            .spawn()
            .map_err(|error| (Exit::NotStarted(error.into()), String::new()))?;
        let stdout = tokio::spawn(take(child.stdout.take(), self.limits.output));
        let stderr = tokio::spawn(take(child.stderr.take(), STDERR_MAX));
        let code = self.wait(&mut child, arguments).await;
        let read = async { (stdout.await, stderr.await) };
        let (out, err) = match timeout(OUTPUT_ENDS_WITHIN, read).await {
            Ok((Ok(out), Ok(err))) => (out, String::from_utf8_lossy(&err.bytes).into_owned()),
            _ => {
                let lost = Exit::Output("something that it started holds its output open");
                return Err((code.err().unwrap_or(lost), String::new()));
            }
        };
        match code {
            Ok(_) if out.cut => Err((Exit::Output("it wrote more than is taken"), err)),
            Ok(code) => Ok(Output {
                stdout: out.bytes,
                stderr: err,
                code,
            }),
            Err(exit) => Err((exit, err)),
        }
    }

    /// Ends once it is known that the command will not.
    async fn is_hopeless(&self) {
        match &self.hopeless {
            Some(hopeless) if hopeless().await => {}
            _ => std::future::pending().await,
        }
    }

    /// Waits for the end of a program, and makes it end at its deadline. Its exit code.
    async fn wait(&self, child: &mut Child, arguments: &[String]) -> Result<i32, Exit> {
        let early = self.limits.warn_after.min(self.limits.deadline);
        let mut ended = timeout(early, child.wait()).await;
        if ended.is_err() {
            warn!(command = %self.shown(arguments), seconds = early.as_secs(), "command is slow");
            let rest = timeout(self.limits.deadline.saturating_sub(early), child.wait());
            ended = tokio::select! {
                ended = rest => ended,
                () = self.is_hopeless() => {
                    warn!(command = %self.shown(arguments), "command waits for what will not come");
                    timeout(Duration::ZERO, child.wait()).await
                }
            };
        }
        if let Ok(status) = ended {
            return status.ok().and_then(|status| status.code()).ok_or(Exit::Killed);
        }
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            warn!(command = %self.shown(arguments), seconds = self.limits.deadline.as_secs(), %signal, "command hangs");
            // There is an id as long as its end was not seen, so that this is no other's.
            if let Some(Ok(id)) = child.id().map(i32::try_from) {
                let _ = killpg(Pid::from_raw(id), signal);
            }
            if timeout(self.limits.grace, child.wait()).await.is_ok() {
                return Err(Exit::Deadline);
            }
        }
        Err(Exit::StillRunning)
    }
}

/// What was read of an output.
struct Taken {
    bytes: Vec<u8>,
    /// Whether there was more.
    cut: bool,
}

/// Reads an output to its end, and keeps the first `max` bytes.
async fn take(output: Option<impl AsyncRead + Unpin>, max: usize) -> Taken {
    let mut taken = Taken {
        bytes: Vec::new(),
        cut: false,
    };
    let Some(mut output) = output else { return taken };
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        let room = max - taken.bytes.len();
        taken.cut |= read > room;
        taken.bytes.extend_from_slice(&buffer[..read.min(room)]);
    }
    taken
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("path", &self.path)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn program(name: &str) -> Program {
        Program::find(name).expect("installed")
    }

    #[test]
    fn what_is_not_installed_is_named() {
        let error = Program::find("no-such-program").expect_err("absent").to_string();
        assert!(
            error.contains("no-such-program") && error.contains("/usr/sbin"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn output_exit_code_and_observer() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let observer: Observer = Arc::new(move |stat| sink.lock().expect("not poisoned").push(*stat));
        let ls = program("ls").with_observer(Some(observer));
        let output = ls.run("ls", vec!["-d".into(), "/".into()]).await.expect("lists");
        assert_eq!(output.stdout, b"/\n");
        let error = ls.run("ls", vec!["/nowhere".into()]).await.expect_err("fails");
        let later = CommandError {
            duration: error.duration + Duration::from_secs(7),
            ..error.clone()
        };
        assert_eq!(
            error.to_string(),
            later.to_string(),
            "how long it took says nothing of why"
        );
        assert!(matches!(error.exit, Exit::Code(2)), "{error}");
        assert!(
            error.to_string().starts_with("\"ls /nowhere\" failed with code 2"),
            "{error}"
        );
        let seen: Vec<_> = seen
            .lock()
            .expect("not poisoned")
            .iter()
            .map(|stat| stat.result)
            .collect();
        assert_eq!(seen, ["ok", "failed"]);
    }

    #[tokio::test]
    async fn killed_at_the_deadline_only() {
        let limits = Limits {
            warn_after: Duration::from_millis(20),
            deadline: Duration::from_millis(120),
            ..Limits::default()
        };
        let begun = Instant::now();
        let error = program("sleep")
            .with_limits(limits)
            .run("sleep", vec!["60".into()])
            .await
            .expect_err("killed");
        assert!(matches!(error.exit, Exit::Deadline), "{error}");
        assert!((120..10_000).contains(&begun.elapsed().as_millis()));
    }

    #[tokio::test]
    async fn what_waits_in_vain_is_not_waited_for() {
        let limits = Limits {
            warn_after: Duration::from_millis(20),
            ..Limits::default()
        };
        let sleeps = |seconds: &str, hopeless: bool| {
            let program = program("sleep").with_limits(limits);
            let program = program.with_hopeless(Arc::new(move || Box::pin(std::future::ready(hopeless))));
            let seconds = seconds.to_owned();
            async move { program.run("sleep", vec![seconds]).await }
        };
        let begun = Instant::now();
        let error = sleeps("60", true).await.expect_err("killed");
        assert!(matches!(error.exit, Exit::Deadline), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10));
        sleeps("0.2", false).await.expect("it is slow, and ends");
    }

    #[test]
    fn long_complaints_are_cut_at_a_character() {
        let text = tail(&format!("{}\n  last line", "é".repeat(1000)));
        assert!(text.starts_with(": …") && text.ends_with("; last line"), "{text}");
        assert_eq!(tail(" \n"), "");
    }
}
