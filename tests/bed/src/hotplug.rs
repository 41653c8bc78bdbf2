//! Disks taken from a running node, and given back.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    command,
    disks::Disk,
    error::{BedError, Result},
    mconsole,
    node::Node,
};

/// The letters that a node has for disks beside its system disk.
const LETTERS: RangeInclusive<char> = 'b'..='p';

/// What User-Mode Linux says of a disk that somebody has open.
const OPEN: &str = "currently open";
/// Nobody who only looks at a disk has it open for so long.
const LOOKED_AT: Duration = Duration::from_secs(10);

/// A disk that a node has for a while.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The disk.
    pub disk: Disk,
    flags: &'static str,
}

impl Guest {
    fn of(disk: Disk) -> Self {
        Guest { disk, flags: "" }
    }

    /// A disk whose content is that file, with a serial number, by which it is found in `/dev/disk/by-id`.
    pub fn new(file: &Path, serial: &str) -> Self {
        Guest::of(Disk {
            id: format!("/dev/disk/by-id/bed-{serial}"),
            serial: serial.to_owned(),
            size: std::fs::metadata(file).map_or(0, |meta| meta.len()),
            file: file.to_owned(),
        })
    }

    /// It refuses to be written.
    #[must_use]
    pub fn read_only(self) -> Self {
        Guest { flags: "r", ..self }
    }

    /// It can be plugged in several times, as one of several paths to it.
    #[must_use]
    pub fn shared(self) -> Self {
        Guest { flags: "c", ..self }
    }
}

impl Node {
    /// Takes a disk away while the node runs: logical volumes on it answer with I/O errors from now on, and its device is gone, with a uevent.
    ///
    /// User-Mode Linux gives up no disk that is open. So the parts of all device-mapper devices that lie on the disk are made to fail first,
    /// as they would with a real disk that is gone. What holds the disk itself open (a file system or a program directly on it) keeps it from
    /// being taken, and is an error. For a disk that is missing from the beginning of a boot, see [`Boot::without`](crate::Boot::without).
    pub async fn take_disk(&self, id: &str) -> Result<()> {
        let disk = self.disk(id)?;
        let device = self.run_ok(["readlink", "-e", &disk.id]).await?.trim().to_owned();
        let name = device.trim_start_matches("/dev/").to_owned();
        let number = self
            .run_ok(["cat", &format!("/sys/class/block/{name}/dev")])
            .await?
            .trim()
            .to_owned();
        for (volume, table) in failing(&self.run_ok(["dmsetup", "table"]).await?, &number) {
            self.run_ok(["dmsetup", "suspend", "--noflush", "--nolockfs", &volume])
                .await?;
            let loaded = self.run_with(["dmsetup", "load", &volume], Some(table)).await?;
            // Whatever came of it, a volume must not stay suspended.
            self.run_ok(["dmsetup", "resume", &volume]).await?;
            if !loaded.success() {
                return Err(command::failed(&format!("dmsetup load {volume}"), &loaded));
            }
        }
        // udev may be looking at it.
        self.run_ok(["udevadm", "settle"]).await?;
        self.remove(&disk, &name).await?;
        self.run_ok(["udevadm", "settle"]).await.map(drop)
    }

    /// Gives a disk back that was taken; it gets the first letter that is free. As on a real machine, logical volumes that failed go on
    /// failing until someone refreshes them (`lvchange --refresh`).
    pub async fn return_disk(&self, id: &str) -> Result<()> {
        let disk = self.disk(id)?;
        self.plug_disks(&[Guest::of(disk)]).await
    }

    /// Plugs disks in for a while, beside those that the node has for good; each gets the first letter that is free.
    pub async fn plug_disks(&self, guests: &[Guest]) -> Result<()> {
        let present = self.run_ok(["ls", "/sys/class/block"]).await?;
        let mut free = LETTERS
            .map(|letter| format!("ubd{letter}"))
            .filter(|name| !present.lines().any(|line| line == name));
        for Guest { disk, flags } in guests {
            let name = free.next().ok_or_else(|| BedError::Disk {
                disk: disk.id.clone(),
                message: "the node has no letter free".to_owned(),
            })?;
            let text = format!("config {name}{flags}={},,{}", disk.file.display(), disk.serial);
            self.console_command(disk, text).await?;
        }
        self.run_ok(["udevadm", "settle"]).await.map(drop)
    }

    /// Takes every disk away that does not belong to the node, by its serial number; what is made of one must be gone.
    pub async fn unplug_guests(&self) -> Result<()> {
        let files = LETTERS.map(|letter| format!("/sys/class/block/ubd{letter}/serial"));
        let argv = ["grep", "-s", "-H", ""].map(str::to_owned).into_iter().chain(files);
        let serials = self.run(argv).await?.stdout;
        let own = self.disks();
        self.run_ok(["udevadm", "settle"]).await?;
        for (file, serial) in serials.lines().filter_map(|line| line.split_once(':')) {
            if own.iter().any(|disk| disk.serial == serial) {
                continue;
            }
            let name = file.split('/').nth(4).unwrap_or_default();
            let disk = Guest::new(Path::new(""), serial).disk;
            self.remove(&disk, name).await?;
        }
        self.run_ok(["udevadm", "settle"]).await.map(drop)
    }

    /// Takes a device away. Programs that look at every disk, as LVM does, have it open for a moment.
    async fn remove(&self, disk: &Disk, name: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            match self.console_command(disk, format!("remove {name}")).await {
                Err(BedError::Disk { message, .. }) if message.contains(OPEN) && begun.elapsed() < LOOKED_AT => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                done => return done,
            }
        }
    }

    fn disk(&self, id: &str) -> Result<Disk> {
        let disks = self.disks();
        disks
            .iter()
            .find(|disk| disk.is(id))
            .cloned()
            .ok_or_else(|| BedError::Unknown {
                kind: "disk",
                name: id.to_owned(),
                known: disks.iter().map(|disk| disk.id.as_str()).collect::<Vec<_>>().join(", "),
            })
    }

    async fn console_command(&self, disk: &Disk, text: String) -> Result<()> {
        let folder = self.kernel_folder();
        let (socket, own) = (folder.join("mconsole"), folder.join("answers"));
        let (own, asked): (PathBuf, String) = (own, text.clone());
        let answer = tokio::task::spawn_blocking(move || mconsole::command(&socket, &own, &asked)).await;
        match answer {
            Ok(Ok(Ok(_))) => Ok(()),
            Ok(Ok(Err(message))) => Err(BedError::Disk {
                disk: disk.id.clone(),
                message: format!("{text}: {message}"),
            }),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(BedError::Disk {
                disk: disk.id.clone(),
                message: error.to_string(),
            }),
        }
    }
}

/// The device-mapper devices with parts on the device `number`, each with a table in which these parts fail.
fn failing(tables: &str, number: &str) -> Vec<(String, String)> {
    let mut volumes: Vec<(String, Vec<String>, bool)> = Vec::new();
    for line in tables.lines() {
        let Some((name, segment)) = line.split_once(": ") else {
            continue;
        };
        let fields: Vec<_> = segment.split_whitespace().collect();
        let [start, length, ..] = fields[..] else { continue };
        let hit = fields.contains(&number);
        let segment = if hit {
            format!("{start} {length} error")
        } else {
            segment.to_owned()
        };
        match volumes.iter_mut().find(|(known, ..)| known == name) {
            Some((_, segments, any)) => {
                segments.push(segment);
                *any |= hit;
            }
            None => volumes.push((name.to_owned(), vec![segment], hit)),
        }
    }
    volumes
        .into_iter()
        .filter(|(.., hit)| *hit)
        .map(|(name, segments, _)| (name, segments.join("\n") + "\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_parts_on_the_disk_fail() {
        let tables =
            "vg-a: 0 8192 linear 98:16 2048\nvg-a: 8192 8192 linear 98:32 2048\nvg-b: 0 8192 linear 98:32 10240\n";
        assert_eq!(
            failing(tables, "98:16"),
            [(
                "vg-a".to_owned(),
                "0 8192 error\n8192 8192 linear 98:32 2048\n".to_owned()
            )]
        );
    }

    #[test]
    fn without_volumes_nothing_fails() {
        assert!(failing("No devices found\n", "98:16").is_empty());
    }
}
