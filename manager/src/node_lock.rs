//! One manager at a time on a node: a second one, of a rolling update or of another version, waits until the first has
//! ended, and does nothing before. LVM's own locks keep its metadata whole, but not two managers from wiping one volume.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

use quarry_process::Shutdown;
use thiserror::Error;
use tokio::sync::oneshot;

/// The lock could not be had.
#[derive(Debug, Error)]
#[error("the lock {path} that keeps two managers apart cannot be taken: {source}; mount the host's {folder}")]
pub struct NodeLockError {
    path: String,
    folder: String,
    source: io::Error,
}

/// Held until it is dropped, and by the kernel no longer than the process lives, however it ends.
#[derive(Debug)]
#[must_use = "it is released when it is dropped"]
pub struct NodeLock {
    _file: File,
}

/// Waits until no other manager holds the lock; `None` where the end was asked for first.
///
/// The file is on the host, in a folder that every container of a manager sees. What is in it is for people.
///
/// # Errors
/// See [`NodeLockError`].
pub async fn hold(path: &Path, holder: &str, shutdown: &Shutdown) -> Result<Option<NodeLock>, NodeLockError> {
    let error = |source| NodeLockError {
        path: path.display().to_string(),
        folder: path.parent().unwrap_or(path).display().to_string(),
        source,
    };
    let (sender, receiver) = oneshot::channel();
    let (waiting, holder) = (PathBuf::from(path), holder.to_owned());
    // A thread of its own: nothing at the end of the process waits for it.
    std::thread::spawn(move || {
        // Nobody waits any more where the end was asked for; the lock is released again then.
        let _ = sender.send(take(&waiting, &holder));
    });
    tokio::select! {
        () = shutdown.wait() => Ok(None),
        taken = receiver => match taken {
            Ok(file) => Ok(Some(NodeLock { _file: file.map_err(error)? })),
            Err(_) => Err(error(io::Error::other("the thread that waited for it ended"))),
        },
    }
}

/// Opens and locks the file; blocks while another process has it.
fn take(path: &Path, holder: &str) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)?;
    if file.try_lock().is_err() {
        let other = io::read_to_string(&file).unwrap_or_default();
        tracing::info!(
            lock = %path.display(),
            held_by = other.trim(),
            "another manager runs on this node: waiting until it has ended"
        );
        loop {
            match file.lock() {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(format!("{holder}, process {}\n", std::process::id()).as_bytes())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_second_manager_waits_until_the_first_has_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("manager");
        let shutdown = Shutdown::default();
        let first = hold(&path, "first", &shutdown).await.expect("taken").expect("no end");
        let mut second = Box::pin(hold(&path, "second", &shutdown));
        let early = tokio::time::timeout(Duration::from_millis(100), &mut second).await;
        assert!(early.is_err(), "the first still has it");
        drop(first);
        let second = second.await.expect("taken").expect("no end");
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(text.starts_with("second, process "), "{text:?}");
        drop(second);
    }

    #[tokio::test]
    async fn a_missing_folder_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("absent/manager");
        let error = hold(&path, "one", &Shutdown::default()).await.expect_err("no folder");
        assert!(error.to_string().contains("mount the host's"), "{error}");
    }
}
