//! Disks and wiping that are pretended, and the log of everything that happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use quarry_crds::tags::VolumeTags;
use quarry_crds::volume_group::{DiskStanding, ListedDisk};
use tokio::sync::oneshot;

use super::bench::{DEVICE, DISK, SECOND_DEVICE, SECOND_DISK};
use crate::context::{Disks, Listing, Probed, Wiper};
use crate::disk_record::RecordedDisk;
use crate::lvm::{FakeLvm, LogicalVolume, State, VolumeGroup};
use crate::wipe::Control;

/// What happened, in order: requests, LVM's mutations, wipes.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<(Vec<String>, usize)>>);

impl Log {
    pub fn lock(&self) -> MutexGuard<'_, (Vec<String>, usize)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// LVM keeps a journal of its own, which is taken over whenever anything else happens.
    pub fn take_over(&self, lvm: &FakeLvm) {
        let (lines, seen) = &mut *self.lock();
        let journal = lvm.journal();
        lines.extend(
            journal
                .iter()
                .skip(*seen)
                .map(|mutation| line(&format!("{mutation:?}"))),
        );
        *seen = journal.len();
    }

    pub fn add(&self, lvm: &FakeLvm, line: String) {
        self.take_over(lvm);
        self.lock().0.push(line);
    }
}

/// Such as `CreateVolume pvc-u-1`, of the debug form of a mutation.
fn line(mutation: &str) -> String {
    let operation = mutation.split(['(', ' ']).next().unwrap_or_default();
    // The first name is that of the group.
    let name = mutation
        .split("name: \"")
        .nth(2)
        .and_then(|rest| rest.split('"').next());
    format!("{operation} {}", name.unwrap_or_default())
        .trim_end()
        .to_owned()
}

/// Says of the one disk what it was told.
#[derive(Default)]
pub struct Probe(Mutex<Said>);

/// What is said of it.
#[derive(Default)]
pub struct Said {
    /// What is wrong with it.
    pub fault: Option<String>,
    /// Whether the devices of volumes lead to a disk that was there before.
    pub stale: bool,
    /// How often it was looked at.
    pub looks: usize,
    /// The volume group that a disk carries which is not listed.
    pub elsewhere: Option<String>,
    /// Whether recorded disks carry something else now.
    pub overwritten: bool,
    /// The disks of every model.
    pub of_model: Vec<String>,
    /// What changes where somebody writes to a disk.
    pub print: String,
    /// Paths of disks by the physical volumes whose labels they have.
    pub labels: BTreeMap<String, String>,
    /// Whether nothing has its name, and whether udev is at work.
    pub nameless: bool,
    pub coming: bool,
}

impl Probe {
    pub fn lock(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disks for Probe {
    fn probe(&self, listings: Vec<Listing>, lvm: Arc<State>) -> BoxFuture<'_, Vec<Probed>> {
        self.lock().looks += 1;
        let nameless = self.lock().nameless;
        let of = |listing: Listing| {
            if nameless {
                return Probed {
                    disk: ListedDisk {
                        path: listing.path,
                        device: None,
                        standing: DiskStanding::Missing {
                            reason: "there is no such device".to_owned(),
                        },
                    },
                    serial: None,
                    model: None,
                    rotational: None,
                    size: None,
                    print: None,
                };
            }
            let device = if listing.path == SECOND_DISK {
                SECOND_DEVICE
            } else {
                DEVICE
            };
            let mut pvs = lvm.groups.iter().flat_map(|group| &group.physical_volumes);
            let member = pvs.find(|pv| pv.device.as_deref() == Some(device));
            Probed {
                disk: ListedDisk {
                    path: listing.path,
                    device: Some(device.to_owned()),
                    standing: member.map_or(DiskStanding::Blank, |pv| DiskStanding::Member {
                        physical_volume: pv.uuid.clone(),
                    }),
                },
                serial: None,
                model: None,
                rotational: None,
                size: None,
                print: Some(self.lock().print.clone()),
            }
        };
        futures::future::ready(listings.into_iter().map(of).collect()).boxed()
    }

    fn names_are_coming(&self) -> BoxFuture<'_, bool> {
        futures::future::ready(self.lock().coming).boxed()
    }

    fn of_model(&self, _: String) -> BoxFuture<'_, Vec<String>> {
        futures::future::ready(self.lock().of_model.clone()).boxed()
    }

    fn fault(&self, _: String) -> BoxFuture<'_, Option<String>> {
        futures::future::ready(self.lock().fault.clone()).boxed()
    }

    /// Every device answers and carries what it carried; of the listed disks all are there, and of those recorded the first path.
    fn for_lvm(
        &self,
        listed: Vec<String>,
        recorded: Vec<RecordedDisk>,
        _: BTreeSet<(u32, u32)>,
    ) -> BoxFuture<'_, Vec<String>> {
        let device = |path: &String| {
            if path == SECOND_DISK || path == SECOND_DEVICE {
                SECOND_DEVICE
            } else {
                DEVICE
            }
        };
        let recorded = recorded.into_iter().filter_map(|disk| disk.paths.into_iter().next());
        let mut found = BTreeMap::new();
        for path in listed.into_iter().chain(recorded) {
            found.entry(device(&path)).or_insert(path);
        }
        futures::future::ready(found.into_values().collect()).boxed()
    }

    fn overwritten(&self, recorded: Vec<RecordedDisk>) -> BoxFuture<'_, BTreeSet<String>> {
        let overwritten = self.lock().overwritten;
        let all = recorded
            .into_iter()
            .filter(|_| overwritten)
            .map(|disk| disk.physical_volume);
        futures::future::ready(all.collect()).boxed()
    }

    fn has_group(&self, name: String) -> BoxFuture<'_, bool> {
        let has = self.lock().elsewhere.as_ref() == Some(&name);
        futures::future::ready(has).boxed()
    }

    fn having_labels(&self, physical_volumes: BTreeSet<String>) -> BoxFuture<'_, BTreeMap<String, Vec<String>>> {
        let labels = &self.lock().labels;
        let found = labels.iter().filter(|(label, _)| physical_volumes.contains(*label));
        let found = found.map(|(label, path)| (label.clone(), vec![path.clone()])).collect();
        futures::future::ready(found).boxed()
    }

    fn names_of(&self, numbers: BTreeSet<(u32, u32)>) -> BoxFuture<'_, BTreeMap<(u32, u32), Vec<String>>> {
        let name = |number: (u32, u32)| vec![if number == (8, 0) { DISK } else { SECOND_DISK }.to_owned()];
        futures::future::ready(numbers.into_iter().map(|number| (number, name(number))).collect()).boxed()
    }

    fn stands_on(&self, _: (u32, u32), _: &[(u32, u32)]) -> Option<bool> {
        Some(!self.lock().stale)
    }
}

/// Wipes nothing, and says who holds a volume as it was told.
pub struct FakeWiper {
    log: Log,
    lvm: Arc<FakeLvm>,
    fail: Mutex<Option<String>>,
    held_by: Mutex<Vec<String>>,
    /// What is found on volumes.
    pub carries: Mutex<Result<Vec<String>, String>>,
    /// The next wipe ends when this is sent or dropped.
    hold: Mutex<Option<oneshot::Receiver<()>>>,
    /// What the next wipes were told of the volume: its tags.
    pub told: Mutex<Vec<VolumeTags>>,
}

impl FakeWiper {
    pub fn new(log: Log, lvm: Arc<FakeLvm>) -> Self {
        Self {
            log,
            lvm,
            fail: Mutex::default(),
            held_by: Mutex::default(),
            carries: Mutex::new(Ok(Vec::new())),
            hold: Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// The next wipe fails so.
    pub fn fail_next(&self, why: &str) {
        *self.fail.lock().expect("not poisoned") = Some(why.to_owned());
    }

    pub fn set_holders(&self, holders: &[&str]) {
        *self.held_by.lock().expect("not poisoned") = holders.iter().map(|holder| (*holder).to_owned()).collect();
    }

    /// The next wipe takes until the result is dropped.
    pub fn hold_next(&self) -> oneshot::Sender<()> {
        let (release, held) = oneshot::channel();
        *self.hold.lock().expect("not poisoned") = Some(held);
        release
    }

    fn wipe(
        &self,
        what: &str,
        volume: &LogicalVolume,
        tags: VolumeTags,
        control: Control,
    ) -> BoxFuture<'_, Result<(), String>> {
        self.log.add(&self.lvm, format!("{what} {}", volume.name));
        self.told.lock().expect("not poisoned").push(tags);
        let fail = self.fail.lock().expect("not poisoned").take();
        let result = fail.map_or(Ok(()), Err);
        match self.hold.lock().expect("not poisoned").take() {
            // As the real one, it ends where it is told to stop.
            Some(held) => async move {
                tokio::select! {
                    _ = held => result,
                    () = control.cancel.cancelled() => Err("stopped".to_owned()),
                }
            }
            .boxed(),
            None => futures::future::ready(result).boxed(),
        }
    }
}

impl Wiper for FakeWiper {
    fn wipe_new(
        &self,
        _: VolumeGroup,
        volume: LogicalVolume,
        tags: VolumeTags,
        control: Control,
    ) -> BoxFuture<'_, Result<(), String>> {
        self.wipe("wipe new", &volume, tags, control)
    }

    fn wipe_old(
        &self,
        _: VolumeGroup,
        volume: LogicalVolume,
        tags: VolumeTags,
        control: Control,
    ) -> BoxFuture<'_, Result<(), String>> {
        self.wipe("wipe old", &volume, tags, control)
    }

    fn carries(&self, _: VolumeGroup, _: LogicalVolume) -> BoxFuture<'_, Result<Vec<String>, String>> {
        futures::future::ready(self.carries.lock().expect("not poisoned").clone()).boxed()
    }

    fn holders(&self, _: VolumeGroup, _: LogicalVolume) -> BoxFuture<'_, Vec<String>> {
        futures::future::ready(self.held_by.lock().expect("not poisoned").clone()).boxed()
    }
}
