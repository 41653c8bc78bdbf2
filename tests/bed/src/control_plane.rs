//! The control plane: etcd and the Kubernetes programs that run on the machine, inside the cluster's namespace.

use std::{
    ffi::OsString,
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    daemon::{Daemon, Running},
    error::{BedError, Result},
    folders,
    kubernetes::Version,
    network::{GATEWAY, Namespace},
    pki::Pki,
};

/// A process of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// etcd.
    Etcd,
    /// kube-apiserver.
    ApiServer,
    /// kube-controller-manager.
    ControllerManager,
    /// kube-scheduler.
    Scheduler,
    /// One more kube-scheduler, for pods that ask for [`SECOND_SCHEDULER`]; it runs only where a test starts it.
    SecondScheduler,
}

/// The name by which pods ask for [`Process::SecondScheduler`].
pub const SECOND_SCHEDULER: &str = "second-scheduler";

impl Process {
    /// Those of every cluster, in the order of their start.
    pub const ALL: [Process; 4] = [
        Process::Etcd,
        Process::ApiServer,
        Process::ControllerManager,
        Process::Scheduler,
    ];

    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Process::Etcd => "etcd",
            Process::ApiServer => "kube-apiserver",
            Process::ControllerManager => "kube-controller-manager",
            Process::Scheduler | Process::SecondScheduler => "kube-scheduler",
        }
    }

    /// Its name among the files of the cluster's state.
    fn name(self) -> &'static str {
        match self {
            Process::SecondScheduler => SECOND_SCHEDULER,
            _ => self.program(),
        }
    }

    /// Where it listens once it works.
    fn address(self) -> SocketAddr {
        match self {
            Process::Etcd => (Ipv4Addr::LOCALHOST, 2379).into(),
            Process::ApiServer => (GATEWAY, 443).into(),
            Process::ControllerManager => (Ipv4Addr::LOCALHOST, 10257).into(),
            Process::Scheduler => (Ipv4Addr::LOCALHOST, 10259).into(),
            Process::SecondScheduler => (Ipv4Addr::LOCALHOST, 10261).into(),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The scheduler's configuration that Quarry ships for its users, within the repository.
const SCHEDULER_CONFIG: &str = "deploy/scheduler/kube-scheduler-config.yaml";
/// Where that file expects the scheduler's kubeconfig, as kubeadm lays it out.
const SCHEDULER_KUBECONFIG: &str = "/etc/kubernetes/scheduler.conf";

/// Files that a program alone sees under `/etc`, each with its content.
type EtcFiles = Vec<(PathBuf, String)>;

/// The control plane of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct ControlPlane {
    pub(crate) state: PathBuf,
    pub(crate) kubernetes: Version,
    pub(crate) namespace: Namespace,
    pub(crate) pki: Pki,
}

impl ControlPlane {
    pub(crate) fn running(&self, process: Process) -> Running {
        Running::of(&self.state, process.name())
    }

    /// Starts a process that does not run, and returns at once.
    pub(crate) fn start(&self, process: Process) -> Result<()> {
        if self.running(process).pid().is_some() {
            return Ok(());
        }
        let (arguments, etc) = match process {
            Process::Etcd => (self.etcd(), Vec::new()),
            Process::ApiServer => (self.api_server(), Vec::new()),
            Process::ControllerManager => (self.controller_manager(), Vec::new()),
            Process::Scheduler | Process::SecondScheduler => self.scheduler(process)?,
        };
        let program = self.kubernetes.folder()?.join(process.program());
        Daemon {
            name: process.name().to_owned(),
            argv: std::iter::once(program.into_os_string()).chain(arguments).collect(),
            env: Vec::new(),
            namespace: Some(self.namespace.clone()),
            etc,
        }
        .start(&self.state)
        .map(drop)
    }

    /// Waits until a process that was started listens.
    pub(crate) async fn listening(&self, process: Process) -> Result<()> {
        let begun = Instant::now();
        let patience = Duration::from_secs(60);
        loop {
            if self
                .namespace
                .connect(process.address(), Duration::from_millis(200))
                .is_ok()
            {
                return Ok(());
            }
            let log = self.state.join("log").join(format!("{process}.log"));
            if self.running(process).pid().is_none() {
                return Err(BedError::Missing {
                    what: format!("{process} ended by itself: {}", last_lines(&log, END_OF_LOG)),
                    remedy: format!("read {}", log.display()),
                });
            }
            if begun.elapsed() > patience {
                return Err(BedError::Timeout {
                    what: format!("{process} listening on {}", process.address()),
                    waited: patience,
                    hint: format!("read {}", log.display()),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn etcd(&self) -> Vec<OsString> {
        vec![
            flag("--data-dir=", self.state.join("etcd")),
            "--unsafe-no-fsync".into(),
            "--listen-client-urls=http://127.0.0.1:2379".into(),
            "--advertise-client-urls=http://127.0.0.1:2379".into(),
            "--listen-peer-urls=http://127.0.0.1:2380".into(),
            "--log-level=error".into(),
        ]
    }

    fn api_server(&self) -> Vec<OsString> {
        let mut flags = vec![
            "--etcd-servers=http://127.0.0.1:2379".into(),
            "--bind-address=0.0.0.0".into(),
            format!("--advertise-address={GATEWAY}").into(),
            "--secure-port=443".into(),
            flag("--tls-cert-file=", self.pki.file("api.crt")),
            flag("--tls-private-key-file=", self.pki.file("api.key")),
            flag("--client-ca-file=", self.pki.file("ca.crt")),
            flag("--token-auth-file=", self.pki.file("tokens.csv")),
            "--authorization-mode=Node,RBAC".into(),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            flag("--service-account-key-file=", self.pki.file("accounts.pub")),
            flag("--service-account-signing-key-file=", self.pki.file("accounts.key")),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--allow-privileged=true".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--kubelet-preferred-address-types=InternalIP".into(),
            "--profiling=false".into(),
        ];
        if self.audit_policy().exists() {
            flags.push(flag("--audit-policy-file=", self.audit_policy()));
            flags.push(flag("--audit-log-path=", self.audit_log()));
        }
        flags
    }

    fn controller_manager(&self) -> Vec<OsString> {
        let kubeconfig = self.pki.kubeconfig("controller-manager");
        vec![
            flag("--kubeconfig=", &kubeconfig),
            flag("--authentication-kubeconfig=", &kubeconfig),
            flag("--authorization-kubeconfig=", &kubeconfig),
            flag("--service-account-private-key-file=", self.pki.file("accounts.key")),
            flag("--root-ca-file=", self.pki.file("ca.crt")),
            "--use-service-account-credentials".into(),
            "--leader-elect=false".into(),
            "--cluster-cidr=10.244.0.0/16".into(),
            "--allocate-node-cidrs=false".into(),
            // Default 15 s: how long a volume that was missed at first waits for its binding.
            "--pvclaimbinder-sync-period=2s".into(),
        ]
    }

    /// The scheduler runs on the file that users get, unchanged: it finds its kubeconfig where that file says. The second one
    /// has another name and port beside that.
    fn scheduler(&self, process: Process) -> Result<(Vec<OsString>, EtcFiles)> {
        let kubeconfig = self.pki.kubeconfig("scheduler");
        let config = self.state.join(format!("{process}-config.yaml"));
        let mut text = self.scheduler_config()?;
        if process == Process::SecondScheduler {
            text.push_str(&format!("profiles:\n  - schedulerName: {SECOND_SCHEDULER}\n"));
        }
        folders::write(&config, text)?;
        let arguments = vec![
            flag("--config=", &config),
            flag("--authentication-kubeconfig=", &kubeconfig),
            flag("--authorization-kubeconfig=", &kubeconfig),
            format!("--secure-port={}", process.address().port()).into(),
            "--leader-elect=false".into(),
        ];
        Ok((
            arguments,
            vec![(SCHEDULER_KUBECONFIG.into(), folders::read(&kubeconfig)?)],
        ))
    }

    /// Whether the scheduler runs with another configuration than it is to have now.
    pub(crate) fn scheduler_is_outdated(&self) -> bool {
        let current = self.scheduler_config().ok();
        let runs = self.state.join(format!("{}-config.yaml", Process::Scheduler));
        current.is_some() && folders::read(&runs).ok() != current
    }

    /// That of a test; or else the file of the repository; or one that says nothing, as long as there is none.
    fn scheduler_config(&self) -> Result<String> {
        let shipped = folders::repository().join(SCHEDULER_CONFIG);
        let file = [self.own_config(), shipped].into_iter().find(|file| file.exists());
        let Some(file) = file else {
            return Ok(stock_config());
        };
        let text = folders::read(&file)?;
        if !text.contains(SCHEDULER_KUBECONFIG) {
            return Err(BedError::Missing {
                what: format!(
                    "{} does not name {SCHEDULER_KUBECONFIG} as clientConnection.kubeconfig",
                    file.display()
                ),
                remedy: "name it: that is where kubeadm puts it, and where the bed lays it".to_owned(),
            });
        }
        Ok(text)
    }

    /// While this file is there, kube-apiserver writes down what it says.
    pub(crate) fn audit_policy(&self) -> PathBuf {
        self.state.join("audit-policy.json")
    }

    /// Where it writes that.
    pub(crate) fn audit_log(&self) -> PathBuf {
        self.state.join("log/audit.log")
    }

    /// While this file is there, kube-scheduler is configured by it.
    pub(crate) fn own_config(&self) -> PathBuf {
        self.state.join("own-scheduler-config.yaml")
    }
}

/// A configuration of kube-scheduler that says nothing: it knows of no extender.
pub(crate) fn stock_config() -> String {
    format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
         clientConnection: {{kubeconfig: {SCHEDULER_KUBECONFIG}}}\n"
    )
}

fn flag(name: &str, path: impl AsRef<Path>) -> OsString {
    let mut flag = OsString::from(name);
    flag.push(path.as_ref());
    flag
}

/// How many lines of a log say why a program ended.
pub(crate) const END_OF_LOG: usize = 5;

/// The last `count` lines of a log.
pub(crate) fn last_lines(log: &Path, count: usize) -> String {
    let text = std::fs::read(log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(count).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
