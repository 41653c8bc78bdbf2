//! LVM in memory, for tests of everything above it: the same rules as LVM's, and failures on demand.

mod by_hand;
mod model;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use quarry_crds::Bytes;
use tokio::sync::oneshot;

use super::command::{CommandError, Exit};
use super::operations::{Backend, Engine, Mutation};
use super::{CreateVolume, LogicalVolume, ReportError, State};

/// LVM in memory.
pub type FakeLvm = Engine<Fake>;

/// How the next command fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with code 5, and has done nothing.
    Refuse,
    /// It does its work, and then fails with code 5.
    FailAfter,
    /// It does nothing, and succeeds.
    Nothing,
    /// Something else kills it, before it did anything.
    KilledBefore,
    /// Something else kills it, after it did its work.
    KilledAfter,
    /// It is killed at its deadline, before it did anything.
    DeadlineBefore,
    /// It is killed at its deadline, after it did its work.
    DeadlineAfter,
    /// It cannot be killed. Its work is done.
    NeverEnds,
    /// It never answers: the future stays pending. Its work is not done.
    Hang,
    /// The program cannot be started.
    NotStarted,
}

/// The state of the pretended host.
pub struct Fake {
    inner: Mutex<Inner>,
}

struct Inner {
    disks: BTreeMap<String, Disk>,
    state: State,
    /// Of the next mutations, in order.
    faults: VecDeque<Option<Fault>>,
    /// Reads that are to go well before the next one that does not.
    bad_reads: VecDeque<Option<String>>,
    /// The next read is as of its begin, and ends when this is sent or dropped.
    held_read: Option<oneshot::Receiver<()>>,
    journal: Vec<Mutation>,
    /// Devices that were taken away, and the physical volumes on them.
    lost: BTreeMap<String, String>,
    /// The devices that LVM may open; all where none are named.
    allowed: Option<Vec<String>>,
    /// Links to devices.
    links: BTreeMap<String, String>,
    next: u64,
}

struct Disk {
    size: Bytes,
    blank: bool,
    number: (u32, u32),
}

impl FakeLvm {
    /// A host with blank disks of these sizes in bytes.
    #[must_use]
    pub fn new(disks: &[(&str, Bytes)]) -> Self {
        let number = |index: usize| (8, u32::try_from(index * 16).unwrap_or(0));
        let disk = |(index, (path, size)): (usize, &(&str, Bytes))| {
            (
                (*path).to_owned(),
                Disk {
                    size: *size,
                    blank: true,
                    number: number(index),
                },
            )
        };
        Self::over(Fake {
            inner: Mutex::new(Inner {
                disks: disks.iter().enumerate().map(disk).collect(),
                state: State::default(),
                faults: VecDeque::new(),
                bad_reads: VecDeque::new(),
                held_read: None,
                journal: Vec::new(),
                lost: BTreeMap::new(),
                allowed: None,
                links: BTreeMap::new(),
                next: 0,
            }),
        })
    }

    /// The next mutation that has no fault yet fails in this way. Reads are not meant.
    pub fn fail_next(&self, fault: Fault) {
        self.backend().lock().faults.push_back(Some(fault));
    }

    /// After `good` further mutations, one fails in this way.
    pub fn fail_after(&self, good: usize, fault: Fault) {
        let mut inner = self.backend().lock();
        inner.faults.extend(std::iter::repeat_n(None, good));
        inner.faults.push_back(Some(fault));
    }

    /// Whether every fault that was asked for has come.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        let inner = self.backend().lock();
        inner.faults.is_empty() && inner.bad_reads.is_empty()
    }

    /// After `good` further reads, one read gives garbage.
    pub fn garble_read_after(&self, good: usize) {
        let mut inner = self.backend().lock();
        inner.bad_reads.extend(std::iter::repeat_n(None, good));
        inner.bad_reads.push_back(Some("garbage on purpose".to_owned()));
    }

    /// The next read takes long: it shows what there is when it begins, and ends when the result is dropped.
    #[must_use]
    pub fn hold_next_read(&self) -> oneshot::Sender<()> {
        let (release, held) = oneshot::channel();
        self.backend().lock().held_read = Some(held);
        release
    }

    /// Every mutation that was run, in order, also those that failed.
    #[must_use]
    pub fn journal(&self) -> Vec<Mutation> {
        self.backend().lock().journal.clone()
    }

    /// Changes the state by hand, as an administrator or a broken disk would.
    pub fn by_hand<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.backend().lock().state)
    }

    /// Makes a link to a device, as udev does.
    pub fn link(&self, link: &str, device: &str) {
        let inner = &mut *self.backend().lock();
        inner.links.insert(link.to_owned(), device.to_owned());
    }

    /// The devices that LVM may open, as they were named; `None` where it may open all.
    #[must_use]
    pub fn allowed(&self) -> Option<Vec<String>> {
        self.backend().lock().allowed.clone()
    }

    /// Says whether a disk carries something, so that LVM would ask before it takes it.
    pub fn set_blank(&self, device: &str, blank: bool) {
        if let Some(disk) = self.backend().lock().disks.get_mut(device) {
            disk.blank = blank;
        }
    }

    /// Gives a disk another size, in bytes.
    pub fn set_size(&self, device: &str, size: Bytes) {
        if let Some(disk) = self.backend().lock().disks.get_mut(device) {
            disk.size = size;
        }
    }

    /// Takes a disk away. Volumes on it are partial.
    pub fn lose_disk(&self, device: &str) {
        let inner = &mut *self.backend().lock();
        for group in &mut inner.state.groups {
            for pv in group
                .physical_volumes
                .iter_mut()
                .filter(|pv| pv.device.as_deref() == Some(device))
            {
                (pv.device, pv.number, pv.missing, group.partial) = (None, None, true, true);
                let gone = &pv.uuid;
                for volume in &mut group.logical_volumes {
                    volume.partial |= volume.parts.iter().any(|part| part.physical_volume == *gone);
                }
                inner.lost.insert(device.to_owned(), pv.uuid.clone());
            }
        }
    }

    /// Plugs a disk that was taken away in again. Its group was changed meanwhile, so that LVM treats it as missing.
    pub fn return_disk(&self, device: &str) {
        let inner = &mut *self.backend().lock();
        let Some(uuid) = inner.lost.remove(device) else { return };
        for pv in inner
            .state
            .groups
            .iter_mut()
            .flat_map(|group| &mut group.physical_volumes)
            .filter(|pv| pv.uuid == uuid)
        {
            pv.device = Some(device.to_owned());
        }
    }

    /// Says whether somebody has a volume open.
    pub fn set_open(&self, volume_uuid: &str, open: bool) {
        let inner = &mut *self.backend().lock();
        let volumes = inner
            .state
            .groups
            .iter_mut()
            .flat_map(|group| &mut group.logical_volumes);
        for volume in volumes.filter(|volume| volume.uuid == volume_uuid) {
            volume.open = Some(open);
        }
    }
}

impl Fake {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many commands have failed.
static RUN: AtomicU64 = AtomicU64::new(1);

fn error(exit: Exit, stderr: &str) -> CommandError {
    CommandError {
        command: "lvm (fake)".to_owned(),
        exit,
        stderr: stderr.to_owned(),
        // No two commands take the same time.
        duration: Duration::from_millis(RUN.fetch_add(1, Ordering::Relaxed)),
    }
}

impl Backend for Fake {
    fn read(&self) -> BoxFuture<'_, Result<State, ReportError>> {
        let inner = &mut *self.lock();
        let result = match inner.bad_reads.pop_front().flatten() {
            Some(problem) => Err(ReportError::Output(problem)),
            None => Ok(inner.visible()),
        };
        match inner.held_read.take() {
            Some(held) => held.map(|_| result).boxed(),
            None => futures::future::ready(result).boxed(),
        }
    }

    fn execute(&self, mutation: Mutation) -> BoxFuture<'_, Result<(), CommandError>> {
        let inner = &mut *self.lock();
        inner.journal.push(mutation.clone());
        let fault = inner.faults.pop_front().flatten();
        let before = match fault {
            Some(Fault::Refuse) => Some(error(Exit::Code(5), "refused on purpose")),
            Some(Fault::DeadlineBefore) => Some(error(Exit::Deadline, "")),
            Some(Fault::NotStarted) => Some(error(
                Exit::NotStarted(std::sync::Arc::new(std::io::ErrorKind::NotFound.into())),
                "",
            )),
            Some(Fault::KilledBefore) => Some(error(Exit::Killed, "")),
            Some(Fault::Nothing) => return futures::future::ready(Ok(())).boxed(),
            Some(Fault::Hang) => return futures::future::pending().boxed(),
            _ => None,
        };
        let result = match before {
            Some(error) => Err(error),
            None => inner
                .apply(mutation)
                .map_err(|problem| error(Exit::Code(5), &problem))
                .and_then(|()| match fault {
                    Some(Fault::FailAfter) => Err(error(Exit::Code(5), "failed on purpose")),
                    Some(Fault::DeadlineAfter) => Err(error(Exit::Deadline, "")),
                    Some(Fault::KilledAfter) => Err(error(Exit::Killed, "")),
                    Some(Fault::NeverEnds) => Err(error(Exit::StillRunning, "")),
                    _ => Ok(()),
                }),
        };
        futures::future::ready(result).boxed()
    }

    fn allow(&self, devices: Vec<String>) -> bool {
        let inner = &mut *self.lock();
        let new = Some(devices);
        let changed = inner.allowed != new;
        inner.allowed = new;
        changed
    }

    fn seen(&self, request: &CreateVolume) -> BoxFuture<'_, Option<LogicalVolume>> {
        let inner = self.lock();
        // What is to be read wrongly has to be read.
        let shown = inner.bad_reads.is_empty() && request.physical_volume.is_some();
        let group = inner.state.group(&request.group.uuid).filter(|_| shown);
        let volume = group.and_then(|group| group.volume_named(&request.name)).cloned();
        futures::future::ready(volume).boxed()
    }
}

#[cfg(test)]
#[path = "fake_tests.rs"]
mod tests;
