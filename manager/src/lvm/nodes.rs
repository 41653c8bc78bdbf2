//! Who makes the nodes and links of volumes on this host: found out at the start, and anew where that may have changed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quarry_crds::device_nodes::{Decision, DeviceNodes, Shown, decide};
use tokio::sync::Mutex as AsyncMutex;

use super::command::Observer;

mod host;
mod test_device;

use host::HostUdev;
use test_device::TestDevice;

/// How often it is looked whether udev of the host is another than before.
const LOOK: Duration = Duration::from_secs(15);
/// After how many such looks it is tested anew all the same where udev runs and does not do its part: it may have been busy.
const AGAIN: u32 = 40;

/// Something that is told of every decision, for metrics.
pub type Told = Arc<dyn Fn(DeviceNodes) + Send + Sync>;

/// Who makes the nodes and links of volumes on this host.
pub struct Nodes {
    proc: PathBuf,
    dev: PathBuf,
    run: PathBuf,
    observer: Option<Observer>,
    told: Told,
    known: Mutex<Known>,
    /// One test device at a time.
    testing: AsyncMutex<()>,
}

struct Known {
    decision: Decision,
    /// The host as it was when that was decided.
    udev: HostUdev,
}

impl Nodes {
    /// Finds it out. In `proc`, process 1 is the host's.
    pub async fn find(proc: &Path, observer: Option<Observer>, told: Told) -> Arc<Self> {
        let nodes = Self {
            proc: proc.to_owned(),
            dev: "/dev".into(),
            run: "/run/udev".into(),
            observer,
            told,
            known: Mutex::new(Known {
                decision: decide(&Shown::NoUdev, quarry_crds::device_nodes::Rules::default(), false),
                udev: HostUdev::default(),
            }),
            testing: AsyncMutex::default(),
        };
        let nodes = Arc::new(nodes);
        let found = nodes.test().await;
        tracing::info!("{found}");
        nodes
    }

    /// Who makes them.
    #[must_use]
    pub fn by(&self) -> DeviceNodes {
        self.known().decision.by
    }

    /// Finds it out anew where the daemon that LVM would wait for has ended: asked before each command that makes devices.
    pub(super) async fn before_a_command(&self) {
        let ended = {
            let known = self.known();
            known.decision.by.waits_for_udev() && known.udev.has_ended(&self.proc)
        };
        if ended {
            self.renew("udev has ended").await;
        }
    }

    /// Whether a command that takes long waits for an answer of udev that will not come.
    pub(super) async fn waits_in_vain(&self) -> bool {
        self.by().waits_for_udev() && !self.renew("a command of LVM takes long").await.waits_for_udev()
    }

    /// Finds it out anew whenever udev of the host has changed, for ever.
    pub async fn keep(self: Arc<Self>) {
        let mut looks = 0;
        loop {
            tokio::time::sleep(LOOK).await;
            looks += 1;
            let now = self.look().await;
            let changed = now != self.known().udev;
            let partly = now.runs() && self.by() != DeviceNodes::Udev;
            if changed || partly && looks >= AGAIN {
                looks = 0;
                let why = if changed {
                    "udev of the host has changed"
                } else {
                    "udev may have been busy"
                };
                self.renew(why).await;
            }
        }
    }

    async fn renew(&self, why: &str) -> DeviceNodes {
        let before = self.by();
        let found = self.test().await;
        if found.by == before {
            tracing::debug!(why, "{found}");
        } else {
            tracing::warn!(why, "{found}");
        }
        found.by
    }

    async fn look(&self) -> HostUdev {
        let (proc, run) = (self.proc.clone(), self.run.clone());
        let looked = tokio::task::spawn_blocking(move || HostUdev::look(&proc, &run)).await;
        looked.unwrap_or_default()
    }

    async fn test(&self) -> Decision {
        let _one = self.testing.lock().await;
        // Before the test: what changes meanwhile is seen the next time.
        let udev = self.look().await;
        let shown = match TestDevice::new(self.observer.clone()) {
            Ok(device) => device.show(&self.dev, &self.run).await,
            Err(error) => Shown::Nothing(error.to_string()),
        };
        let proc = self.proc.clone();
        let rules = tokio::task::spawn_blocking(move || host::rules(&proc)).await;
        let decision = decide(&shown, rules.unwrap_or_default(), udev.runs());
        (self.told)(decision.by);
        *self.known() = Known {
            decision: decision.clone(),
            udev,
        };
        decision
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
