//! The LVM of this host, through the `lvm` binary.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::command::{CommandError, CommandStat, Exit, Limits, NotInstalled, Observer, Program};
use super::nodes::Nodes;
use super::operations::{Backend, Engine, Mutation};
use super::{CreateVolume, LogicalVolume, ReportError, State, VolumeRef, links, report, seen, stacked};

/// Where it is, LVM of the host forgets what it remembers of physical volumes.
const NEW_HINTS: &str = "/run/lvm/newhints";

/// The LVM of this host.
pub type HostLvm = Engine<Host>;

/// How LVM is run. `LVM_SYSTEM_DIR`, which names the directory of `lvm.conf`, is the environment's business.
#[derive(Clone, Default)]
pub struct HostOptions {
    /// The `lvm` program; where none is named, it is looked for.
    pub program: Option<std::path::PathBuf>,
    /// How long a command may take.
    pub limits: Limits,
    /// Told of every command.
    pub observer: Option<Observer>,
    /// The only devices that LVM opens at first, see [`super::Lvm::allow_devices`]; `None` for all that `lvm.conf` lets it open.
    pub devices: Option<Vec<String>>,
    /// Who makes the nodes and links of volumes; where that is not said, `lvm.conf` says it.
    pub nodes: Option<Arc<Nodes>>,
    /// Only metadata: no device of a volume appears, and nothing is wiped. For tests on a kernel without device-mapper;
    /// volumes made so must never be handed out.
    pub metadata_only: bool,
}

/// Builds the command lines.
pub struct Host {
    lvm: Program,
    /// The same for commands that may wait for udev.
    changing: Program,
    observer: Option<Observer>,
    devices: RwLock<Option<Vec<String>>>,
    nodes: Option<Arc<Nodes>>,
    metadata_only: bool,
}

impl HostLvm {
    /// Finds the `lvm` binary.
    ///
    /// # Errors
    /// It is not installed.
    pub fn new(options: HostOptions) -> Result<Self, NotInstalled> {
        let HostOptions {
            program,
            limits,
            observer,
            devices,
            nodes,
            metadata_only,
        } = options;
        let lvm = match program {
            Some(path) => Program::at(path),
            None => Program::find("lvm")?,
        };
        let lvm = lvm.with_limits(limits).with_observer(observer.clone());
        let mut changing = lvm.clone();
        if let Some(nodes) = nodes.clone() {
            changing = changing.with_hopeless(Arc::new(move || {
                let nodes = nodes.clone();
                async move { nodes.waits_in_vain().await }.boxed()
            }));
        }
        Ok(Self::over(Host {
            lvm,
            changing,
            observer,
            devices: RwLock::new(devices),
            nodes,
            metadata_only,
        }))
    }
}

/// A command line in the making: `lvm <sub-command> <options>`.
struct Line {
    label: &'static str,
    arguments: Vec<String>,
}

impl Line {
    fn new(label: &'static str, arguments: &[&str]) -> Self {
        let arguments = std::iter::once(label)
            .chain(arguments.iter().copied())
            .map(str::to_owned)
            .collect();
        Self { label, arguments }
    }

    fn with(mut self, arguments: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    fn options(self, option: &str, values: &[String]) -> Self {
        let pairs = values.iter().flat_map(|value| [option.to_owned(), value.clone()]);
        self.with(pairs.collect::<Vec<_>>())
    }

    /// Lets the command work on the volume, and others of its group, only if they still have these UUIDs, our tag and what
    /// is asked for further: LVM itself compares, under its own lock.
    fn only(self, volume: &VolumeRef, others: &[String], further: &str) -> Self {
        let others: String = others.iter().map(|uuid| format!(" || lv_uuid={uuid}")).collect();
        let select = format!(
            "vg_uuid={} && (lv_uuid={}{others}) && lv_tags={{{}}}{further}",
            volume.group.uuid,
            volume.uuid,
            quarry_crds::tags::VERSION_TAG
        );
        self.with(["-S".to_owned(), select])
    }
}

impl Host {
    fn line(&self, mutation: Mutation) -> Line {
        match mutation {
            Mutation::CreateVolume(request) => {
                let modes: &[&str] = if self.metadata_only {
                    &["-an", "-Wn", "-Zn"]
                } else {
                    &["-ay", "-Wy", "-Zy", "-y"]
                };
                Line::new("lvcreate", modes)
                    .with(["--type", "linear", "-n"])
                    .with([request.name, "-l".to_owned(), request.extents.to_string()])
                    .options("--addtag", &request.tags)
                    .with([request.group.name])
                    .with(request.devices)
            }
            // -y answers "really remove active volume?"; a volume in use is refused all the same.
            // A volume with a part on a missing disk stays: no change of the group makes LVM forget that disk then. So does
            // one that something stands on: -y would answer for that too.
            Mutation::RemoveVolumes { volume, others } => Line::new("lvremove", &["-y"])
                .only(
                    &volume,
                    &others,
                    &format!(" && lv_health_status!=partial{}", stacked::ALONE),
                )
                .with([volume.group.name]),
            Mutation::ExtendVolume(request) => Line::new("lvextend", &["-l"])
                .with([request.extents.to_string(), request.volume.to_string()])
                .with(request.devices),
            Mutation::ChangeTags(request) => {
                let having = request.having.map(|tag| format!(" && lv_tags={{{tag}}}"));
                Line::new("lvchange", &[])
                    .options("--addtag", &request.add)
                    .options("--deltag", &request.delete)
                    .only(&request.volume, &request.others, &having.unwrap_or_default())
                    .with([request.volume.group.name])
            }
            Mutation::RenameVolume { volume, name } => {
                Line::new("lvrename", &[]).with([volume.group.name, volume.name, name])
            }
            Mutation::SetActive { volume, active } => {
                Line::new("lvchange", &[if active { "-ay" } else { "-an" }]).with([volume.to_string()])
            }
            Mutation::ActivateGroup(group) => Line::new("vgchange", &["-ay"]).with([group.name]),
            // No -y and no -f, ever: LVM asks before it overwrites anything, gets no answer, and gives up.
            Mutation::CreateGroup(request) => Line::new("vgcreate", &["--metadatasize", "16m"])
                .options("--addtag", &request.tags)
                .with([request.name])
                .with(request.devices),
            Mutation::ExtendGroup { group, devices } => Line::new("vgextend", &["--metadatasize", "16m"])
                .with([group.name])
                .with(devices),
            Mutation::TagGroup { group, tags } => {
                Line::new("vgchange", &[]).options("--addtag", &tags).with([group.name])
            }
            Mutation::RemoveGroup(group) => Line::new("vgremove", &[]).with([
                "-S".to_owned(),
                format!("vg_uuid={} && lv_count=0", group.uuid),
                group.name,
            ]),
            Mutation::RemoveLabels { devices } => Line::new("pvremove", &[]).with(devices),
            Mutation::ResizePhysicalVolume { device } => Line::new("pvresize", &[]).with([device]),
            Mutation::RestorePhysicalVolume { group, device } => {
                Line::new("vgextend", &["--restoremissing"]).with([group.name, device])
            }
        }
    }

    /// Options that every command gets.
    fn finish(&self, line: Line) -> Line {
        let (mut common, mut config) = (Vec::new(), Vec::new());
        if self.metadata_only {
            common.extend(["--driverloaded", "n"].map(str::to_owned));
            config.push("backup { backup=0 archive=0 }");
        }
        config.extend(self.nodes.as_ref().and_then(|nodes| nodes.by().config()));
        if !config.is_empty() {
            // LVM takes the option once.
            common.extend(["--config".to_owned(), config.join(" ")]);
        }
        if let Some(devices) = self.devices().as_ref() {
            common.extend(["--devices".to_owned(), devices.join(",")]);
        }
        line.with(common)
    }

    fn devices(&self) -> RwLockReadGuard<'_, Option<Vec<String>>> {
        self.devices.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether LVM may open no device at all, which cannot be said on its command line.
    fn has_no_device(&self) -> bool {
        self.devices().as_ref().is_some_and(Vec::is_empty)
    }

    async fn report(&self) -> Result<State, ReportError> {
        if self.has_no_device() {
            return Ok(State::default());
        }
        // -a: hidden volumes also. --foreign, --shared: groups that are not for this host are seen, and left alone.
        let mut line = Line::new(
            "fullreport",
            &[
                "--reportformat",
                "json",
                "--units",
                "b",
                "--nosuffix",
                "-a",
                "--foreign",
                "--shared",
            ],
        );
        for (part, fields) in report::FIELDS {
            line = line.with(["--configreport", part, "-o", fields]);
        }
        let line = self.finish(line);
        let output = self.lvm.run_any(line.label, line.arguments.clone()).await?;
        let mut state = report::parse(&output.stdout).inspect_err(|_| {
            if let Some(observer) = &self.observer {
                observer(&CommandStat {
                    command: "parse",
                    duration: std::time::Duration::ZERO,
                    result: "failed",
                });
            }
        })?;
        if !self.metadata_only {
            state = with_links(state).await;
        }
        match output.code {
            0 => {}
            // What it lists is whole groups; what it does not list, nobody knows.
            5 => state.incomplete = Some(output.stderr.trim().to_owned()),
            code => {
                return Err(ReportError::Command(CommandError {
                    command: "lvm fullreport".to_owned(),
                    exit: Exit::Code(code),
                    stderr: output.stderr,
                    duration: std::time::Duration::ZERO,
                }));
            }
        }
        Ok(state)
    }
}

/// The state, with volumes that have lost their links as inactive.
async fn with_links(mut state: State) -> State {
    let checked = tokio::task::spawn_blocking(move || {
        links::check(&mut state, Path::new("/dev"));
        state
    });
    match checked.await {
        Ok(state) => state,
        // It is not cancelled; what panicked goes on.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

impl Backend for Host {
    fn read(&self) -> BoxFuture<'_, Result<State, ReportError>> {
        self.report().boxed()
    }

    fn execute(&self, mutation: Mutation) -> BoxFuture<'_, Result<(), CommandError>> {
        if self.metadata_only && matches!(mutation, Mutation::SetActive { .. } | Mutation::ActivateGroup(_)) {
            return futures::future::ready(Ok(())).boxed();
        }
        // What udev lost of /dev is made again along with what was inactive.
        let nodes = match &mutation {
            Mutation::ActivateGroup(group) => Some(group.name.clone()),
            Mutation::SetActive { volume, active: true } => Some(volume.group.name.clone()),
            _ => None,
        };
        let relabels = matches!(
            mutation,
            Mutation::CreateGroup(_)
                | Mutation::ExtendGroup { .. }
                | Mutation::RemoveGroup(_)
                | Mutation::RemoveLabels { .. }
        );
        async move {
            if self.has_no_device() {
                return Err(CommandError {
                    command: "lvm".to_owned(),
                    exit: Exit::NotStarted(Arc::new(std::io::Error::other("LVM may open no device"))),
                    stderr: String::new(),
                    duration: std::time::Duration::ZERO,
                });
            }
            if let Some(nodes) = &self.nodes {
                nodes.before_a_command().await;
            }
            let line = self.finish(self.line(mutation));
            let result = self.changing.run(line.label, line.arguments).await;
            if relabels && !self.metadata_only {
                // The host's LVM remembers which devices are physical volumes, and is told by this that it has to look again (lvm2,
                // lib/label/hints.c); commands that are given their devices do not tell it.
                if let Err(error) = tokio::fs::write(NEW_HINTS, b"").await {
                    tracing::debug!(%error, file = NEW_HINTS, "the LVM of the host is not told of a change");
                }
            }
            if let Some(group) = nodes {
                let nodes = self.finish(Line::new("vgmknodes", &[]).with([group]));
                self.changing.run(nodes.label, nodes.arguments).await?;
            }
            result.map(drop)
        }
        .boxed()
    }

    fn allow(&self, devices: Vec<String>) -> bool {
        let mut allowed = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        let new = Some(devices);
        let changed = *allowed != new;
        *allowed = new;
        changed
    }

    fn seen(&self, request: &CreateVolume) -> BoxFuture<'_, Option<LogicalVolume>> {
        let request = request.clone();
        let look = move || seen::volume(Path::new("/dev"), Path::new("/sys"), &request);
        let shows = !self.metadata_only;
        async move {
            if !shows {
                return None;
            }
            tokio::task::spawn_blocking(look).await.ok().flatten()
        }
        .boxed()
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
