//! Whether the disks of volume groups answer: a little of each is read now and then, past every cache.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// `O_DIRECT` of x86-64 and arm64 differ.
const O_DIRECT: i32 = if cfg!(target_arch = "aarch64") {
    0o200_000
} else {
    0o40_000
};
/// What is read at a place, in bytes; every disk's sectors divide it.
const BLOCK: usize = 4096;
/// A disk that answered well is not asked again for this time.
const FRESH: Duration = Duration::from_secs(20);
/// A disk that answers later than this is at fault: kernels try again for 30 s before they give up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is known of each device by its last reading.
#[derive(Debug, Default)]
pub(crate) struct Health {
    known: Arc<Mutex<HashMap<String, Known>>>,
}

#[derive(Debug, Clone)]
enum Known {
    Good(Instant),
    Bad,
    /// A reading is under way; a second one would wait for the same disk, and a thread with it.
    Reading(Instant),
}

type Told = Arc<Mutex<HashMap<String, Known>>>;

fn lock(known: &Told) -> MutexGuard<'_, HashMap<String, Known>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Health {
    /// What is wrong with a device; nothing where it answers as it should.
    pub(crate) async fn fault(&self, device: String) -> Option<String> {
        let late = || Some(format!("a read has not ended after {} s", PATIENCE.as_secs()));
        match lock(&self.known).get(&device) {
            Some(Known::Good(at)) if at.elapsed() < FRESH => return None,
            Some(Known::Reading(since)) if since.elapsed() >= PATIENCE => return late(),
            Some(Known::Reading(_)) => return None,
            _ => {}
        }
        lock(&self.known).insert(device.clone(), Known::Reading(Instant::now()));
        let (known, name) = (Arc::clone(&self.known), device.clone());
        let (done, end) = oneshot::channel();
        // A thread of its own: where the disk never answers it never ends, and nothing waits for it.
        let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(move || {
            let fault = read(Path::new(&name)).err();
            let now = if fault.is_some() {
                Known::Bad
            } else {
                Known::Good(Instant::now())
            };
            lock(&known).insert(name, now);
            let _ = done.send(fault);
        });
        if let Err(error) = thread {
            lock(&self.known).remove(&device);
            tracing::warn!(%error, device, "a disk was not looked at");
            return None;
        }
        match tokio::time::timeout(PATIENCE, end).await {
            Ok(fault) => fault.ok().flatten(),
            Err(_) => late(),
        }
    }
}

impl Health {
    /// Whether a device does not answer at all, so that whoever opens it may wait for ever. One that answers with errors does not.
    pub(crate) async fn hangs(&self, device: String) -> bool {
        let _ = self.fault(device.clone()).await;
        matches!(lock(&self.known).get(&device), Some(Known::Reading(since)) if since.elapsed() >= PATIENCE)
    }
}

/// Reads a block at the beginning, in the middle and at the end; where and how it failed.
fn read(device: &Path) -> Result<(), String> {
    let told = |error: io::Error| error.to_string();
    let mut file = open(device).map_err(told)?;
    let size = file.seek(SeekFrom::End(0)).map_err(told)?;
    let block = BLOCK as u64;
    let last = (size / block).saturating_sub(1);
    for place in [0, last / 2, last] {
        let place = place * block;
        read_block(&file, place).map_err(|error| format!("reading at offset {place}: {error}"))?;
    }
    Ok(())
}

fn open(device: &Path) -> io::Result<File> {
    let direct = OpenOptions::new().read(true).custom_flags(O_DIRECT).open(device);
    match direct {
        // Not every file system can, on which tests put files.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => File::open(device),
        other => other,
    }
}

fn read_block(file: &File, place: u64) -> io::Result<()> {
    // Without a cache the kernel reads into memory at whole blocks only.
    let mut memory = vec![0; 2 * BLOCK];
    let from = memory.as_ptr().align_offset(BLOCK).min(BLOCK);
    file.read_exact_at(&mut memory[from..from + BLOCK], place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_that_answers_and_one_that_does_not() {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path().join("disk");
        File::create(&path).expect("made").set_len(1 << 20).expect("sized");
        let health = Health::default();
        let device = path.display().to_string();
        assert_eq!(health.fault(device.clone()).await, None);
        // What answered just now is not asked again.
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(health.fault(device.clone()).await, None);
        lock(&health.known).clear();
        let told = health.fault(device.clone()).await.expect("gone");
        assert!(told.contains("No such file"), "{told}");
        // What did not is asked again at once.
        File::create(&path).expect("made").set_len(100).expect("sized");
        let told = health.fault(device.clone()).await.expect("too short");
        assert!(told.contains("offset 0"), "{told}");
        File::create(&path).expect("made").set_len(1 << 20).expect("sized");
        assert_eq!(health.fault(device).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_does_not_end_is_a_fault_and_is_not_begun_twice() {
        let directory = tempfile::tempdir().expect("made");
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("made");
        let health = Health::default();
        let device = pipe.display().to_string();
        // Nobody opens the other end.
        let told = health.fault(device.clone()).await.expect("late");
        assert!(told.contains("has not ended"), "{told}");
        assert!(matches!(lock(&health.known).get(&device), Some(Known::Reading(_))));
        assert_eq!(
            health.fault(device).await,
            None,
            "it is not late by the clock of this machine yet"
        );
    }
}
