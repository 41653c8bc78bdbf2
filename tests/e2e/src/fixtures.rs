//! Disks that carry something: files made with the real tools, and by hand where the tool needs its kernel module. What a
//! file is, `blkid` of this machine has the last word on.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

const MIB: u64 = 1 << 20;

/// How a file comes to be what it is.
type Make = fn(&Path) -> Result<()>;

/// Something that a disk can carry.
#[derive(Clone, Copy)]
pub struct Kind {
    /// What: one word of the serial number of the disk.
    pub what: &'static str,
    /// Size of the disk in MiB.
    size: u64,
    /// What `blkid` calls it; nothing where it sees nothing.
    blkid: Option<&'static str>,
    /// What Quarry calls it.
    pub told: &'static str,
    /// Where its signature is, in bytes.
    pub offset: u64,
    make: Make,
}

const fn kind(what: &'static str, size: u64, told: &'static str, offset: u64, make: Make) -> Kind {
    Kind {
        what,
        size,
        blkid: Some(told),
        told,
        offset,
        make,
    }
}

/// Everything that can be made without a node.
pub const KINDS: &[Kind] = &[
    kind("ext2", 64, "ext2", 1080, |file| run(file, &["mkfs.ext2", "-q", "-F"])),
    kind("ext3", 64, "ext3", 1080, |file| run(file, &["mkfs.ext3", "-q", "-F"])),
    kind("ext4", 64, "ext4", 1080, |file| run(file, &["mkfs.ext4", "-q", "-F"])),
    kind("xfs", 320, "xfs", 0, |file| run(file, &["mkfs.xfs", "-q", "-f"])),
    kind("btrfs", 128, "btrfs", 65_600, |file| {
        run(file, &["mkfs.btrfs", "-q", "-f"])
    }),
    kind("f2fs", 64, "f2fs", 1024, |file| run(file, &["mkfs.f2fs", "-q", "-f"])),
    kind("vfat", 64, "vfat", 0, |file| run(file, &["mkfs.vfat", "-F", "32"])),
    kind("exfat", 64, "exfat", 3, |file| run(file, &["mkfs.exfat"])),
    kind("ntfs", 64, "ntfs", 3, |file| {
        run(file, &["mkfs.ntfs", "-F", "-Q", "-q"])
    }),
    kind("iso9660", 64, "iso9660", 32_769, |file| {
        of_folder(file, |folder, image| {
            run_with(&["genisoimage", "-quiet", "-o", image, folder], None)
        })
    }),
    kind("squashfs", 64, "squashfs", 0, |file| {
        of_folder(file, |folder, image| {
            run_with(
                &["mksquashfs", folder, image, "-noappend", "-no-progress", "-quiet"],
                None,
            )
        })
    }),
    kind("swap", 64, "swap", 4086, |file| run(file, &["mkswap", "-q"])),
    kind("luks1", 64, "crypto_LUKS", 0, |file| luks(file, "luks1")),
    kind("luks2", 64, "crypto_LUKS", 0, |file| luks(file, "luks2")),
    kind("gpt", 64, "gpt", 512, |file| table(file, "gpt")),
    kind("mbr", 64, "dos", 510, |file| table(file, "dos")),
    Kind {
        what: "gpt-backup",
        size: 64,
        blkid: None,
        told: "gpt",
        offset: 64 * MIB - 512,
        make: gpt_backup,
    },
    // Four uberblocks make a pool for libblkid, so the first that it lists is the fourth.
    kind("zfs", 128, "zfs_member", (128 << 10) + 3 * 1024, zfs),
    kind("bcache", 64, "bcache", 4120, |file| run(file, &["make-bcache", "-B"])),
    kind("drbd", 64, "drbd", 64 * MIB - 4036, drbd),
    kind("bluestore", 64, "ceph_bluestore", 0, bluestore),
];

/// The kind of that name.
///
/// # Errors
/// There is none.
pub fn named(what: &str) -> Result<Kind> {
    let found = KINDS.iter().find(|kind| kind.what == what);
    found.copied().with_context(|| format!("no fixture {what}"))
}

impl Kind {
    /// Makes a file of this kind, in place of one that is there, and checks that it is what it is said to be.
    ///
    /// # Errors
    /// It could not be made, or is something else.
    pub fn create(&self, folder: &Path) -> Result<PathBuf> {
        self.create_as(folder, self.what)
    }

    /// The same under another name.
    ///
    /// # Errors
    /// As above.
    pub fn create_as(&self, folder: &Path, name: &str) -> Result<PathBuf> {
        let file = blank(folder, name, self.size * MIB)?;
        (self.make)(&file).with_context(|| format!("making {}", self.what))?;
        ensure!(
            file.metadata()?.len() == self.size * MIB,
            "{} has another size now",
            self.what
        );
        let seen = seen(&file)?;
        let is_it = match self.blkid {
            // exFAT and NTFS look like a partition table too.
            Some(kind) => seen.iter().any(|seen| seen == kind),
            None => seen.is_empty(),
        };
        ensure!(is_it, "{} is {seen:?} for blkid", self.what);
        Ok(file)
    }
}

/// A blank file of a size in bytes, in place of one that is there.
///
/// # Errors
/// It could not be made.
pub fn blank(folder: &Path, name: &str, size: u64) -> Result<PathBuf> {
    let file = folder.join(format!("{name}.img"));
    // A file that a node still has open keeps its content.
    let _ = std::fs::remove_file(&file);
    File::create(&file)?.set_len(size)?;
    Ok(file)
}

/// What `blkid` says is on a file: TYPE and PTTYPE.
fn seen(file: &Path) -> Result<Vec<String>> {
    let output = Command::new("blkid").args(["-p", "-o", "export"]).arg(file).output()?;
    // 2: nothing was found.
    ensure!(output.status.success() || output.status.code() == Some(2), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    let value = |line: &str| Some(line.strip_prefix("TYPE=").or(line.strip_prefix("PTTYPE="))?.to_owned());
    Ok(text.lines().filter_map(value).collect())
}

fn run(file: &Path, argv: &[&str]) -> Result<()> {
    let file = file.to_str().context("an odd path")?;
    run_with(&[argv, &[file]].concat(), None)
}

fn run_with(argv: &[&str], stdin: Option<&[u8]>) -> Result<()> {
    let (program, arguments) = argv.split_first().context("no program")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program} cannot be run"))?;
    child
        .stdin
        .take()
        .context("no input")?
        .write_all(stdin.unwrap_or_default())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{argv:?}: {:?} {said}", output.status);
    Ok(())
}

/// A file system that is made of a folder, as large as it has to be; the disk is larger.
fn of_folder(file: &Path, make: impl Fn(&str, &str) -> Result<()>) -> Result<()> {
    let size = file.metadata()?.len();
    let folder = file.with_extension("folder");
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("file"), "kept")?;
    std::fs::remove_file(file)?;
    make(
        folder.to_str().context("an odd path")?,
        file.to_str().context("an odd path")?,
    )?;
    Ok(File::options().write(true).open(file)?.set_len(size)?)
}

fn luks(file: &Path, version: &str) -> Result<()> {
    let file = file.to_str().context("an odd path")?;
    // The weakest key there is: what is not read need not be kept secret.
    let weak = [
        "--pbkdf",
        "pbkdf2",
        "--pbkdf-force-iterations",
        "1000",
        "--key-file",
        "-",
    ];
    let argv = ["cryptsetup", "luksFormat", "--batch-mode", "--type", version];
    run_with(&[&argv[..], &weak, &[file]].concat(), Some(b"key"))
}

/// A partition table with one partition.
fn table(file: &Path, label: &str) -> Result<()> {
    let file = file.to_str().context("an odd path")?;
    let script = format!("label: {label}\nstart=2048, size=20480, type=L\n");
    run_with(
        &["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", file],
        Some(script.as_bytes()),
    )
}

/// What is left of a GPT when only the beginning of the disk was wiped.
fn gpt_backup(file: &Path) -> Result<()> {
    table(file, "gpt")?;
    Ok(File::options()
        .write(true)
        .open(file)?
        .write_all_at(&[0; 34 * 512], 0)?)
}

/// Metadata of DRBD 8 at the end of the disk ("internal").
fn drbd(file: &Path) -> Result<()> {
    let file = file.to_str().context("an odd path")?;
    run_with(
        &["drbdmeta", "--force", "0", "v08", file, "internal", "create-md"],
        Some(b"yes\n"),
    )
}

/// The four labels of a ZFS pool of one disk, as in "ZFS On-Disk Specification", 1.2: each has the pool's configuration as
/// an XDR list at 16 KiB and 128 uberblocks of 1 KiB at 128 KiB.
fn zfs(file: &Path) -> Result<()> {
    const LABEL: u64 = 256 << 10;
    const MAGIC: u64 = 0x00ba_b10c;
    let disk = File::options().write(true).open(file)?;
    let size = disk.metadata()?.len();
    // Encoding XDR, little-endian host; version 0, names are unique.
    let mut list = vec![1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    for (name, value) in [
        ("version", 5000),
        ("state", 0),
        ("txg", 4),
        ("pool_guid", 0x5eed),
        ("guid", 0x1eaf),
    ] {
        pair(&mut list, name, 8, &u64::to_be_bytes(value));
    }
    pair(&mut list, "name", 9, &xdr_string("tank"));
    list.extend([0; 8]);
    for label in [0, LABEL, size - 2 * LABEL, size - LABEL] {
        disk.write_all_at(&list, label + (16 << 10))?;
        for txg in 0..128_u64 {
            let block: Vec<u8> = [MAGIC, 5000, txg, 0x5eed + 0x1eaf, 1_700_000_000]
                .into_iter()
                .flat_map(u64::to_le_bytes)
                .collect();
            disk.write_all_at(&block, label + (128 << 10) + txg * 1024)?;
        }
    }
    Ok(())
}

/// A pair of an XDR list: both sizes, name, type, one element, value.
fn pair(list: &mut Vec<u8>, name: &str, kind: u32, value: &[u8]) {
    let name = xdr_string(name);
    let size = u32::try_from(16 + name.len() + value.len()).unwrap_or_default();
    for word in [size, size] {
        list.extend(word.to_be_bytes());
    }
    list.extend(name);
    for word in [kind, 1] {
        list.extend(word.to_be_bytes());
    }
    list.extend(value);
}

fn xdr_string(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap_or_default().to_be_bytes().to_vec();
    bytes.extend(text.bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The label of an OSD of Ceph, `bluestore_bdev_label_t`: a line for people, a UUID, and the encoded structure.
fn bluestore(file: &Path) -> Result<()> {
    let uuid = "0f3f7a5e-5e3c-4c8e-9a53-0b6f0c9f6b11";
    let mut label = format!("bluestore block device\n{uuid}\n").into_bytes();
    let mut body = vec![0x0f; 16];
    body.extend((64 * MIB).to_le_bytes());
    body.extend([0; 8]);
    body.extend([&4_u32.to_le_bytes()[..], b"main", &0_u32.to_le_bytes()].concat());
    // Version 2, readable by 1, and the length.
    label.extend([2, 1]);
    label.extend(u32::try_from(body.len())?.to_le_bytes());
    label.extend(body);
    label.resize(4096, 0);
    Ok(File::options().write(true).open(file)?.write_all_at(&label, 0)?)
}

/// A folder of this machine for such files.
///
/// # Errors
/// It could not be made.
pub fn folder() -> Result<PathBuf> {
    let folder = crate::bed::folder()?.join("disks");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_what_it_is_said_to_be() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("quarry-e2e-fixtures-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        for kind in KINDS {
            let program = kind.create(&folder);
            match program {
                Err(error) if error.root_cause().to_string().contains("No such file") => {
                    eprintln!("skipped: {error:#}");
                    continue;
                }
                other => other?,
            };
            let file = folder.join(format!("{}.img", kind.what));
            // Where the tool of this machine sees it, it sees it at that place.
            if kind.blkid.is_some() {
                let listed = Command::new("wipefs")
                    .args(["--no-act", "--json"])
                    .arg(&file)
                    .output()?;
                let listed = String::from_utf8(listed.stdout)?;
                let wanted = format!("{:#x}", kind.offset);
                ensure!(listed.contains(&wanted), "{}: {wanted} is not in {listed}", kind.what);
            } else {
                let mut bytes = [0; 8];
                File::open(&file)?.read_exact_at(&mut bytes, kind.offset)?;
                ensure!(&bytes == b"EFI PART", "{}: {bytes:?}", kind.what);
            }
        }
        std::fs::remove_dir_all(&folder)?;
        Ok(())
    }
}
