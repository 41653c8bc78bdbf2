//! Writing zeros, in pieces that can be stopped between.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use quarry_crds::disk;
use tracing::info;

use super::{Control, Eraser, Target, WipeError};
use crate::disks::{O_EXCL, device_number};

/// What is written between two looks at whether to stop, in bytes: some seconds on a slow disk.
const PIECE: u64 = 256 << 20;
/// The same where zeros are written here, and how much is written at once, in bytes.
const WRITTEN_PIECE: u64 = 64 << 20;
const BUFFER: usize = 4 << 20;
/// How much is read at once, in bytes.
const READ: usize = 128 << 10;
/// How often progress is logged.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// Writes zeros over the whole volume: by the disk itself or the kernel (BLKZEROOUT), else from here.
pub(super) async fn whole(eraser: &Eraser, target: &Target, control: &Control) -> Result<(), WipeError> {
    let (size, begun) = (target.size.0, Instant::now());
    let (mut done, mut logged, mut by_kernel) = (0, begun, true);
    while done < size {
        if control.is_cancelled() {
            return Err(WipeError::Cancelled);
        }
        // Between two pieces the device could have become another one's.
        target.resolve(&eraser.sys)?;
        let length = (size - done).min(if by_kernel { PIECE } else { WRITTEN_PIECE });
        if by_kernel {
            let words = ["-z", "-o", &done.to_string(), "-l", &length.to_string()].map(str::to_owned);
            let path = target.path.to_string_lossy().into_owned();
            let output = eraser
                .blkdiscard
                .run_any("blkdiscard", words.into_iter().chain([path]).collect())
                .await?;
            if output.code != 0 {
                info!(path = %target.path.display(), error = output.stderr.trim(), "zeros are written one by one");
                by_kernel = false;
                continue;
            }
        } else {
            write(eraser, target, vec![(done, length)]).await?;
        }
        done += length;
        control.set_done(done);
        crash_point!("wipe-after-zeros");
        if logged.elapsed() >= LOGGED_EVERY {
            logged = Instant::now();
            info!(path = %target.path.display(), done, size, "writing zeros");
        }
    }
    if by_kernel {
        // BLKZEROOUT returns when the disk has taken the zeros, which may be in its cache.
        let path = target.path.clone();
        eraser.devices.work(target, move || flush(&path)).await?;
    }
    info!(path = %target.path.display(), size, seconds = begun.elapsed().as_secs_f64(), "written with zeros");
    Ok(())
}

/// Gives every block back to the disk, by a command after which it reads as zeros; false where the disk has none.
pub(super) async fn deallocated(eraser: &Eraser, target: &Target, control: &Control) -> Result<bool, WipeError> {
    let mut done = 0;
    while done < target.size.0 {
        if control.is_cancelled() {
            return Err(WipeError::Cancelled);
        }
        target.resolve(&eraser.sys)?;
        let length = (target.size.0 - done).min(PIECE);
        let (path, offset) = (target.path.clone(), done);
        match eraser.devices.work(target, move || punch(&path, offset, length)).await {
            Ok(()) => done += length,
            Err(WipeError::Io { cause, .. }) if cause.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        control.set_done(done);
    }
    info!(path = %target.path.display(), size = target.size.0, "deallocated");
    Ok(true)
}

/// Waits until the disk has written what it has taken.
fn flush(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .custom_flags(O_EXCL)
        .open(path)?
        .sync_data()
}

/// The kernel promises zeros after this, or says EOPNOTSUPP (linux `blkdev_fallocate`).
fn punch(path: &Path, offset: u64, length: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).custom_flags(O_EXCL).open(path)?;
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let number = |bytes: u64| i64::try_from(bytes).map_err(io::Error::other);
    fallocate(&file, how, number(offset)?, number(length)?)?;
    file.sync_data()
}

/// Makes everything zeros by which libblkid recognises anything, and tells whether it was already: it is not written then, for
/// udev looks anew at each volume that somebody has written to, which takes longer than to read it here.
pub(super) async fn signature_places(eraser: &Eraser, target: &Target) -> Result<bool, WipeError> {
    let number = target.resolve(&eraser.sys)?;
    let (path, places) = (target.path.clone(), disk::signature_places(target.size));
    let look = eraser.devices.work(target, move || {
        let file = File::open(path)?;
        if device_number(file.metadata()?.rdev()) != number {
            return Err(io::Error::other("the device has just become another one"));
        }
        let pieces = not_zeros(&file, &places);
        // What LVM has erased is on the disk after this, also where nothing is to be written here.
        file.sync_data().map(|()| pieces)
    });
    let pieces = look.await?;
    if pieces.is_empty() {
        return Ok(true);
    }
    write(eraser, target, pieces).await?;
    Ok(false)
}

/// Those pieces, at offsets and of lengths in bytes, that are not zeros, or cannot be read.
fn not_zeros(file: &File, pieces: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut buffer = vec![0; READ];
    let mut is_zeros = |offset: u64, length: u64| {
        let mut done = 0;
        while done < length {
            let now = usize::try_from(length - done).unwrap_or(READ).min(READ);
            let read = file.read_exact_at(&mut buffer[..now], offset + done);
            if read.is_err() || buffer[..now].iter().any(|byte| *byte != 0) {
                return false;
            }
            done += now as u64;
        }
        true
    };
    let mut left = pieces.to_vec();
    left.retain(|(offset, length)| !is_zeros(*offset, *length));
    left
}

/// Writes zeros at offsets and of lengths in bytes, and waits until they are on the disk.
async fn write(eraser: &Eraser, target: &Target, pieces: Vec<(u64, u64)>) -> Result<(), WipeError> {
    let path = target.path.clone();
    let write = move || {
        // Exclusive: nothing that is mounted, or part of something, is ever written here.
        let file = OpenOptions::new().write(true).custom_flags(O_EXCL).open(&path)?;
        write_zeros(&file, &pieces)
    };
    eraser.devices.work(target, write).await
}

fn write_zeros(file: &File, pieces: &[(u64, u64)]) -> io::Result<()> {
    let zeros = vec![0; BUFFER];
    for &(mut offset, mut left) in pieces {
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
            file.write_all_at(&zeros[..now], offset)?;
            let now = u64::try_from(now).unwrap_or(u64::MAX);
            (offset, left) = (offset.saturating_add(now), left.saturating_sub(now));
        }
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_zeros_is_left_out() {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path().join("volume");
        let file = File::create_new(&path).expect("made");
        file.set_len(4 << 20).expect("sized");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("opens");
        let ends = [(0, 1 << 20), (3 << 20, 1 << 20)];
        assert_eq!(not_zeros(&file, &ends), []);
        file.write_all_at(&[1], 2 << 20).expect("writes");
        assert_eq!(not_zeros(&file, &ends), []);
        for (at, left) in [
            (0, ends[0]),
            ((1 << 20) - 1, ends[0]),
            (3 << 20, ends[1]),
            ((4 << 20) - 1, ends[1]),
        ] {
            file.write_all_at(&[1], at).expect("writes");
            assert_eq!(not_zeros(&file, &ends), [left], "{at}");
            file.write_all_at(&[0], at).expect("writes");
        }
        // Beyond the end there is nothing to read.
        assert_eq!(not_zeros(&file, &[(3 << 20, 2 << 20)]), [(3 << 20, 2 << 20)]);
        assert_eq!(not_zeros(&file, &[(0, 0)]), []);
    }

    #[test]
    fn only_the_pieces_are_written() {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path().join("volume");
        let size = (9 << 20) + 512;
        std::fs::write(&path, vec![0xaa; size]).expect("written");
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        write_zeros(&file, &[(0, 5 << 20), ((9 << 20) - 512, 1024)]).expect("writes");
        let bytes = std::fs::read(&path).expect("reads");
        assert_eq!(bytes.len(), size);
        let zero = |from: usize, to: usize| bytes[from..to].iter().all(|byte| *byte == 0);
        assert!(zero(0, 5 << 20) && zero((9 << 20) - 512, size));
        assert!(bytes[5 << 20..(9 << 20) - 512].iter().all(|byte| *byte == 0xaa));
    }
}
