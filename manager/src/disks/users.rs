//! Who uses a block device without a claim that the kernel would enforce: loop devices over it, processes that have it open
//! or mapped, and targets that hand it to other hosts.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::device_number;
use super::sysfs::{names_in, read};

/// How many processes are named at most.
const PROCESSES: usize = 5;
/// Mode bits of a file's type, and those of a block device (inode(7)).
const TYPE: u16 = 0o170_000;
const BLOCK_DEVICE: u16 = 0o060_000;

/// Everybody who uses a device, for people. In `proc`, process 1 is the host's.
pub(crate) fn find(proc: &Path, sys: &Path, number: (u32, u32)) -> Vec<String> {
    let mut found = loops(proc, sys, number, |_| false);
    found.extend(targets(sys, number));
    let opened = processes(proc, number);
    found.extend(opened.into_iter().map(|process| format!("open by {process}")));
    found
}

/// Loop devices over it, or whose backing file is `named`. The backing file of one that kubelet made is a path of the host.
pub(crate) fn loops(proc: &Path, sys: &Path, number: (u32, u32), named: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    let names = names_in(&sys.join("block"));
    for name in names.into_iter().filter(|name| name.starts_with("loop")) {
        let Some(file) = read(&sys.join("block").join(&name), "loop/backing_file") else {
            continue;
        };
        let on_host = || host_path(proc, &file).is_some_and(|path| is_device(&path, number));
        if named(&file) || is_device(Path::new(&file), number) || on_host() {
            found.push(format!("loop device /dev/{name} over {file}"));
        }
    }
    found
}

/// A path of the host, as it is seen from here.
fn host_path(proc: &Path, path: &str) -> Option<PathBuf> {
    Some(proc.join("1/root").join(path.strip_prefix('/')?))
}

/// Namespaces of NVMe targets, which open a device without a claim (kernel documentation, nvmet configfs).
fn targets(sys: &Path, number: (u32, u32)) -> Vec<String> {
    let subsystems = sys.join("kernel/config/nvmet/subsystems");
    let mut found = Vec::new();
    for subsystem in names_in(&subsystems) {
        let namespaces = subsystems.join(&subsystem).join("namespaces");
        for namespace in names_in(&namespaces) {
            let directory = namespaces.join(namespace);
            let device = read(&directory, "device_path").filter(|path| is_device(Path::new(path), number));
            if device.is_some() && read(&directory, "enable").as_deref() == Some("1") {
                found.push(format!("a namespace of the NVMe target {subsystem}"));
            }
        }
    }
    found
}

/// Processes that have it open or mapped, whatever they call it; this one and the programs that it runs are not meant.
pub(crate) fn processes(proc: &Path, number: (u32, u32)) -> Vec<String> {
    let this = std::process::id().to_string();
    let is_ours = |directory: &Path| parent(directory).as_ref() == Some(&this);
    let mut found = Vec::new();
    let names = names_in(proc);
    for process in names
        .into_iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && *name != this)
    {
        let directory = proc.join(&process);
        if is_ours(&directory) {
            continue;
        }
        let files = directory.join("fd");
        let opens = names_in(&files)
            .into_iter()
            .any(|file| is_open(&files.join(file), number));
        if opens || is_mapped(&directory, number) {
            let name = read(&directory, "comm").unwrap_or_default();
            found.push(format!("process {process} ({name})"));
        }
        if found.len() == PROCESSES {
            break;
        }
    }
    found
}

/// The process that started one, by proc(5)'s `stat`: the second word after the name, which can have blanks and brackets in it.
fn parent(process: &Path) -> Option<String> {
    let stat = read(process, "stat")?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1).map(str::to_owned)
}

/// Whether an open file is that device. In a container it can have any name.
fn is_open(file: &Path, number: (u32, u32)) -> bool {
    // Of what is no path nothing is to be asked.
    if !fs::read_link(file).is_ok_and(|target| target.is_absolute()) {
        return false;
    }
    // What the kernel knows will do: to ask a file server that is gone would never end.
    let asked = statx(CWD, file, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
    asked.is_ok_and(|stat| stat.stx_mode & TYPE == BLOCK_DEVICE && (stat.stx_rdev_major, stat.stx_rdev_minor) == number)
}

/// Whether a process has it mapped into its memory, which it can after it has closed it: by the paths under /dev in proc(5)'s
/// `maps`.
fn is_mapped(process: &Path, number: (u32, u32)) -> bool {
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    let text = String::from_utf8_lossy(&maps);
    let mut paths = text
        .lines()
        .filter_map(|line| line.find(" /dev/").map(|at| &line[at + 1..]))
        .filter(|path| !path.starts_with("/dev/shm/") && !path.starts_with("/dev/zero"));
    paths.any(|path| is_device(Path::new(path), number))
}

/// Whether a path leads to that device.
pub(crate) fn is_device(path: &Path, number: (u32, u32)) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device() && device_number(meta.rdev()) == number)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Some block device of this machine, where tests see one.
    fn any_block_device() -> Option<(PathBuf, (u32, u32))> {
        names_in(Path::new("/dev")).into_iter().find_map(|name| {
            let path = Path::new("/dev").join(name);
            let meta = fs::metadata(&path).ok()?;
            meta.file_type()
                .is_block_device()
                .then(|| (path, device_number(meta.rdev())))
        })
    }

    #[test]
    fn a_program_that_has_a_device_open_or_mapped_is_named() {
        let Some((device, number)) = any_block_device() else {
            eprintln!("skipped: no block device");
            return;
        };
        let directory = tempfile::tempdir().expect("made");
        let (proc, sys) = (directory.path().join("proc"), directory.path().join("sys"));
        for (process, name) in [("7", "mysqld"), ("8", "qemu"), ("9", "idle")] {
            fs::create_dir_all(proc.join(process).join("fd")).expect("made");
            fs::write(proc.join(process).join("comm"), format!("{name}\n")).expect("written");
        }
        symlink(&device, proc.join("7/fd/3")).expect("linked");
        // A program that we run ourselves, such as the one that wipes.
        fs::create_dir_all(proc.join("10/fd")).expect("made");
        symlink(&device, proc.join("10/fd/3")).expect("linked");
        let stat = format!("10 (a (b) c) S {} 10 0", std::process::id());
        fs::write(proc.join("10/stat"), stat).expect("written");
        fs::write(proc.join("7/stat"), "7 (mysqld) S 1 7 0").expect("written");
        symlink("socket:[17]", proc.join("9/fd/3")).expect("linked");
        symlink("/dev/null", proc.join("9/fd/4")).expect("linked");
        let map = format!("7f00-7f01 rw-s 00000000 00:05 99    {}\n", device.display());
        fs::write(proc.join("8/maps"), map).expect("written");
        // A loop device whose backing file is the device, by a path that only the host has.
        let backing = "/var/lib/kubelet/volumeDevices/data/0c2f";
        let link = host_path(&proc, backing).expect("absolute");
        fs::create_dir_all(link.parent().expect("has one")).expect("made");
        symlink(&device, link).expect("linked");
        fs::create_dir_all(sys.join("block/loop3/loop")).expect("made");
        fs::write(sys.join("block/loop3/loop/backing_file"), format!("{backing}\n")).expect("written");
        let namespace = sys.join("kernel/config/nvmet/subsystems/disks/namespaces/1");
        fs::create_dir_all(&namespace).expect("made");
        fs::write(namespace.join("device_path"), format!("{}\n", device.display())).expect("written");
        fs::write(namespace.join("enable"), "1\n").expect("written");
        assert_eq!(
            find(&proc, &sys, number),
            [
                &format!("loop device /dev/loop3 over {backing}"),
                "a namespace of the NVMe target disks",
                "open by process 7 (mysqld)",
                "open by process 8 (qemu)",
            ]
        );
        assert_eq!(find(&proc, &sys, (9999, 1)), Vec::<String>::new());
    }
}
