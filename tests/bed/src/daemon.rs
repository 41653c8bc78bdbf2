//! Long-running programs of the machine that belong to a cluster: started inside its namespace, known by a file with their process id.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::{
    error::{BedError, During, Result},
    folders,
    network::Namespace,
};

/// What to start, and where.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    /// Its name among the files of the cluster's state.
    pub(crate) name: String,
    /// The program and its arguments.
    pub(crate) argv: Vec<OsString>,
    /// Additions to its environment.
    pub(crate) env: Vec<(&'static str, OsString)>,
    /// The namespace to start it in, or none for a program that enters by itself.
    pub(crate) namespace: Option<Namespace>,
    /// Files that only this program sees under `/etc`: a path below `/etc` and the content.
    pub(crate) etc: Vec<(PathBuf, String)>,
}

/// A program that was started, now or in an earlier run.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    file: PathBuf,
}

impl Running {
    /// The daemon called `name` of the cluster with this state folder.
    pub(crate) fn of(state: &Path, name: &str) -> Self {
        Running {
            file: state.join("run").join(format!("{name}.pid")),
        }
    }

    /// Its process id, if it is alive: the same process, not another that got its number.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(&self.file).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let pid: i32 = pid.parse().ok()?;
        (started_at(pid)? == started).then(|| Pid::from_raw(pid))
    }

    /// Sends a signal to the program and all that it started; nothing happens when it is not there.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        match self.pid().map(|pid| killpg(pid, signal)) {
            None | Some(Ok(()) | Err(nix::Error::ESRCH)) => Ok(()),
            Some(Err(error)) => Err(error).during(|| format!("cannot send {signal} to {}", self.file.display())),
        }
    }

    /// Ends the program at once and returns when it is gone.
    pub(crate) async fn kill(&self) -> Result<()> {
        self.end(Signal::SIGKILL, Duration::from_secs(10)).await
    }

    /// Asks the program to end; after `patience` it is killed.
    pub(crate) async fn stop(&self, patience: Duration) -> Result<()> {
        // A stopped process would not hear of it.
        self.signal(Signal::SIGCONT)?;
        if self.end(Signal::SIGTERM, patience).await.is_err() {
            self.kill().await?;
        }
        Ok(())
    }

    async fn end(&self, signal: Signal, patience: Duration) -> Result<()> {
        self.signal(signal)?;
        let begun = Instant::now();
        while self.pid().is_some() {
            if begun.elapsed() > patience {
                return Err(BedError::Timeout {
                    what: format!("the end of {}", self.file.display()),
                    waited: patience,
                    hint: "see what holds it in /proc/<pid>/wchan".to_owned(),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = std::fs::remove_file(&self.file);
        Ok(())
    }
}

/// The start time of a live process, from /proc; none for a dead one that waits to be collected.
fn started_at(pid: i32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = text.rsplit_once(") ")?.1;
    let mut fields = after_name.split(' ');
    match fields.next()? {
        // The first thread may be dead while others still hold the sockets.
        "Z" | "X" if threads(pid) <= 1 => None,
        // `state` is field 3 of proc(5), the start time field 22.
        _ => fields.nth(18).map(str::to_owned),
    }
}

fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

impl Daemon {
    /// Starts the program in a process group of its own (a Ctrl-C at the terminal is not for it), its output in a log file.
    pub(crate) fn start(&self, state: &Path) -> Result<Running> {
        let running = Running::of(state, &self.name);
        folders::make(&state.join("run"))?;
        folders::make(&state.join("log"))?;
        let spawn = || self.spawn(state);
        // A thread may change its namespaces; it hands them to what it starts and then is gone.
        let child = std::thread::scope(|scope| scope.spawn(spawn).join()).unwrap_or_else(|_| {
            Err(BedError::Missing {
                what: format!("the thread that starts {} died", self.name),
                remedy: "try again".to_owned(),
            })
        })?;
        let id = child.id().cast_signed();
        let started = started_at(id).unwrap_or_default();
        folders::write(&running.file, format!("{id} {started}\n"))?;
        let mut child = child;
        // Collect it when it ends, so that it is not taken for alive.
        std::thread::spawn(move || child.wait());
        Ok(running)
    }

    fn spawn(&self, state: &Path) -> Result<std::process::Child> {
        if let Some(namespace) = &self.namespace {
            namespace.enter()?;
        }
        if !self.etc.is_empty() {
            self.cover_etc(state)?;
        }
        let (program, arguments) = self.argv.split_first().ok_or_else(|| BedError::Missing {
            what: format!("{} has no program", self.name),
            remedy: "give one".to_owned(),
        })?;
        let log = state.join("log").join(format!("{}.log", self.name));
        let open = || {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&log)
                .during(|| format!("cannot open {}", log.display()))
        };
        Command::new(program)
            .args(arguments)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(state)
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .process_group(0)
            .spawn()
            .during(|| format!("cannot start {}", program.to_string_lossy()))
    }

    /// Lays the files over `/etc` in a mount namespace that only this program has; the machine's `/etc` stays as it is.
    fn cover_etc(&self, state: &Path) -> Result<()> {
        let scratch = state.join("etc");
        folders::make(&scratch)?;
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).during(|| "cannot make a mount namespace".to_owned())?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .during(|| "cannot make mounts private".to_owned())?;
        mount(Some("tmpfs"), &scratch, Some("tmpfs"), MsFlags::empty(), none)
            .during(|| format!("tmpfs on {}", scratch.display()))?;
        let (upper, work) = (scratch.join("upper"), scratch.join("work"));
        folders::make(&upper)?;
        folders::make(&work)?;
        for (path, content) in &self.etc {
            let path = upper.join(path.strip_prefix("/etc").unwrap_or(path));
            path.parent().map_or(Ok(()), folders::make)?;
            folders::write(&path, content)?;
        }
        let options = format!("lowerdir=/etc,upperdir={},workdir={}", upper.display(), work.display());
        mount(
            Some("overlay"),
            "/etc",
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .during(|| "cannot lay an overlay over /etc".to_owned())
    }
}
