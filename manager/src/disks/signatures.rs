//! What is recognised on a disk: by libblkid through `wipefs` and `blkid`, and at both ends by looking.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use quarry_crds::disk::Signature;
use serde::Deserialize;

use crate::lvm::command::Program;

/// How much of both ends of a disk is looked at, in bytes.
const ENDS: u64 = 16 * 1024;
/// Exit code of `blkid` where nothing is recognised.
const NOTHING: i32 = 2;
/// Exit code of `blkid` where several things are recognised.
const AMBIVALENT: i32 = 8;

/// The programs that recognise signatures.
#[derive(Debug)]
pub(crate) struct Signatures {
    blkid: Program,
    wipefs: Program,
}

impl Signatures {
    pub(crate) fn new(blkid: Program, wipefs: Program) -> Self {
        Self { blkid, wipefs }
    }

    /// Every signature, sorted by offset, and what could not be looked at.
    /// Size and sector are in bytes.
    pub(crate) async fn find(&self, device: &str, size: u64, sector: u32) -> (Vec<Signature>, Vec<String>) {
        let listing = self.wipefs.run("wipefs", words(&["--no-act", "--json", device]));
        let (listed, probed, ends) = tokio::join!(listing, self.probe(device), ends(device.to_owned(), size, sector));
        let (mut signatures, mut problems) = (Vec::new(), Vec::new());
        match listed
            .map_err(|error| error.to_string())
            .and_then(|output| from_wipefs(&output.stdout))
        {
            Ok(found) => signatures.extend(found),
            Err(problem) => problems.push(problem),
        }
        match probed {
            Ok(found) => add(&mut signatures, found),
            Err(Unprobed::Ambivalent(_)) if !signatures.is_empty() => {}
            Err(Unprobed::Ambivalent(problem) | Unprobed::Failed(problem)) => problems.push(problem),
        }
        match ends {
            Ok(found) => add(&mut signatures, found),
            Err(problem) => problems.push(problem),
        }
        signatures.sort_by_key(|signature| signature.offset);
        (signatures, problems)
    }

    /// Whether there is any signature: by what kubelet itself asks before it makes a file system (`blkid -p`), and by looking
    /// at both ends. What was found, and what could not be looked at; nothing of either on a clean device.
    pub(crate) async fn any(&self, device: &str, size: u64, sector: u32) -> (Vec<Signature>, Vec<String>) {
        let (probed, ends) = tokio::join!(self.probe(device), ends(device.to_owned(), size, sector));
        let (mut signatures, mut problems) = (Vec::new(), Vec::new());
        match probed {
            Ok(found) => signatures = found,
            Err(Unprobed::Ambivalent(problem) | Unprobed::Failed(problem)) => problems.push(problem),
        }
        match ends {
            Ok(found) => add(&mut signatures, found),
            Err(problem) => problems.push(problem),
        }
        (signatures, problems)
    }

    async fn probe(&self, device: &str) -> Result<Vec<Signature>, Unprobed> {
        let ran = self
            .blkid
            .run_any("blkid", words(&["-p", "-o", "export", device]))
            .await;
        let output = ran.map_err(|error| Unprobed::Failed(error.to_string()))?;
        let problem = || format!("blkid ended with code {}: {}", output.code, output.stderr.trim());
        match output.code {
            0 => Ok(from_blkid(&String::from_utf8_lossy(&output.stdout))),
            NOTHING => Ok(Vec::new()),
            AMBIVALENT => Err(Unprobed::Ambivalent(problem())),
            _ => Err(Unprobed::Failed(problem())),
        }
    }
}

/// Why `blkid` named no signature.
enum Unprobed {
    /// It recognised several.
    Ambivalent(String),
    /// It could not look.
    Failed(String),
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Adds what is of a kind that is not known yet.
fn add(known: &mut Vec<Signature>, more: Vec<Signature>) {
    for signature in more {
        let is_gpt = |kind: &str| kind == "gpt" || kind == Signature::BACKUP_GPT;
        let same = |found: &Signature| {
            found.kind == signature.kind || (signature.kind == Signature::BACKUP_GPT && is_gpt(&found.kind))
        };
        if !known.iter().any(same) {
            known.push(signature);
        }
    }
}

#[derive(Deserialize)]
struct Listed {
    signatures: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    offset: String,
    #[serde(rename = "type")]
    kind: String,
    uuid: Option<String>,
    label: Option<String>,
}

fn from_wipefs(stdout: &[u8]) -> Result<Vec<Signature>, String> {
    // Nothing at all is what some versions write where nothing is found.
    if stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let text = String::from_utf8_lossy(stdout);
    let listed: Listed = serde_json::from_str(&text).map_err(|error| format!("wipefs wrote no JSON: {error}"))?;
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let signature = |row: Row| {
        let offset = row
            .offset
            .strip_prefix("0x")
            .and_then(|digits| u64::from_str_radix(digits, 16).ok());
        Signature {
            kind: row.kind,
            offset,
            uuid: filled(row.uuid),
            label: filled(row.label),
        }
    };
    Ok(listed.signatures.into_iter().map(signature).collect())
}

/// Reads `KEY=value` lines. What describes the partition that the device is, is nothing on it.
fn from_blkid(stdout: &str) -> Vec<Signature> {
    let value = |key: &str| {
        let line = stdout
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(str::to_owned).filter(|value| !value.is_empty())
    };
    let of = |kind: Option<String>, uuid: &str, label: &str| {
        kind.map(|kind| Signature {
            kind,
            offset: None,
            uuid: value(uuid),
            label: value(label),
        })
    };
    [of(value("TYPE"), "UUID", "LABEL"), of(value("PTTYPE"), "PTUUID", "-")]
        .into_iter()
        .flatten()
        .collect()
}

/// Looks at both ends of a disk: for tables that libblkid leaves aside because their other half is gone, and to know
/// that the disk can be read.
async fn ends(device: String, size: u64, sector: u32) -> Result<Vec<Signature>, String> {
    let look = move || {
        let found = look_at_ends(Path::new(&device), size, u64::from(sector));
        found.map_err(|error| format!("reading {device}: {error}"))
    };
    tokio::task::spawn_blocking(look)
        .await
        .unwrap_or_else(|error| Err(error.to_string()))
}

fn look_at_ends(device: &Path, size: u64, sector: u64) -> io::Result<Vec<Signature>> {
    const GPT: &[u8] = b"EFI PART";
    let file = File::open(device)?;
    let length = ENDS.min(size);
    let read = |offset: u64| {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut bytes, offset).map(|()| bytes)
    };
    let (head_at, tail_at) = (0, size - length);
    let (head, tail) = (read(head_at)?, read(tail_at)?);
    let at = |bytes: &[u8], start: u64, offset: u64| {
        let Some(from) = offset.checked_sub(start).and_then(|from| usize::try_from(from).ok()) else {
            return false;
        };
        bytes.get(from..from + GPT.len()).is_some_and(|found| found == GPT)
    };
    let sectors = [sector, 512, 4096];
    let first = sectors
        .into_iter()
        .find(|sector| at(&head, head_at, *sector))
        .map(|offset| ("gpt", offset));
    let last = sectors
        .into_iter()
        .filter_map(|sector| size.checked_sub(sector))
        .find(|offset| at(&tail, tail_at, *offset))
        .map(|offset| (Signature::BACKUP_GPT, offset));
    let signature = |(kind, offset): (&str, u64)| Signature {
        kind: kind.to_owned(),
        offset: Some(offset),
        uuid: None,
        label: None,
    };
    Ok([first, last].into_iter().flatten().map(signature).collect())
}

#[cfg(test)]
mod tests {
    use quarry_crds::disk::signature_places;

    use super::*;

    #[test]
    fn what_wipefs_lists() {
        let text = br#"{"signatures": [{"device": "loop0", "offset": "0x438", "type": "ext4", "uuid": "9-1", "label": null}]}"#;
        let ext4 = Signature {
            kind: "ext4".into(),
            offset: Some(1080),
            uuid: Some("9-1".into()),
            label: None,
        };
        assert_eq!(from_wipefs(text), Ok(vec![ext4]));
        assert_eq!(from_wipefs(b"{\n   \"signatures\": [\n\n   ]\n}\n"), Ok(vec![]));
        assert_eq!(from_wipefs(b"\n"), Ok(vec![]));
        assert!(from_wipefs(b"wipefs: error").is_err());
    }

    #[test]
    fn what_blkid_says() {
        let disk = from_blkid("DEVNAME=/dev/sdb\nUUID=9-1\nTYPE=xfs\nUSAGE=filesystem\n");
        assert_eq!(disk.len(), 1);
        assert_eq!((disk[0].kind.as_str(), disk[0].uuid.as_deref()), ("xfs", Some("9-1")));
        let table = from_blkid("PTUUID=7\nPTTYPE=gpt\n");
        assert_eq!(table[0].kind, "gpt");
        assert_eq!(
            from_blkid("PART_ENTRY_SCHEME=gpt\nPART_ENTRY_TYPE=0fc6\nPART_ENTRY_UUID=1\n"),
            vec![]
        );
    }

    /// What libblkid of this host reads of a device that is all zeros, as it says itself.
    fn read_by_libblkid(path: &Path) -> Vec<(u64, u64)> {
        let mut blkid = std::process::Command::new("blkid");
        let output = blkid.arg("-p").arg(path).env("LIBBLKID_DEBUG", "all").output();
        let output = output.expect("blkid runs");
        assert_eq!(output.status.code(), Some(NOTHING));
        let said = String::from_utf8(output.stderr).expect("text");
        let number = |line: &str, key: &str| {
            let (_, rest) = line.split_once(key)?;
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse::<u64>().ok()
        };
        let reads = said
            .lines()
            .filter(|line| line.contains("BUFFER") && line.contains("off="));
        reads
            .filter_map(|line| Some((number(line, "off=")?, number(line, "len=")?)))
            .collect()
    }

    #[test]
    fn libblkid_looks_nowhere_but_where_we_look() {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path().join("device");
        for size in [4 << 20, 8 << 20, 12 << 20, 64 << 20, (1 << 30) + (4 << 20), 5 << 40] {
            let file = File::create(&path).expect("made");
            file.set_len(size).expect("sized");
            let places = signature_places(quarry_crds::Bytes(size));
            let reads = read_by_libblkid(&path);
            assert!(reads.len() > 50, "what libblkid says is not understood: {reads:?}");
            for (offset, length) in reads {
                let inside = places
                    .iter()
                    .any(|(from, long)| *from <= offset && offset + length <= from + long);
                assert!(inside, "of {size} bytes it reads {length} at {offset}");
            }
        }
    }

    #[test]
    fn half_a_partition_table() {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path().join("disk");
        for (offset, sector, kind) in [
            (512, 512, Some("gpt")),
            (4096, 4096, Some("gpt")),
            ((1 << 20) - 512, 512, Some(Signature::BACKUP_GPT)),
            ((1 << 20) - 4096, 4096, Some(Signature::BACKUP_GPT)),
            (8000, 512, None),
        ] {
            let file = File::create(&path).expect("made");
            file.set_len(1 << 20).expect("sized");
            file.write_all_at(b"EFI PART", offset).expect("written");
            let found = look_at_ends(&path, 1 << 20, sector).expect("read");
            let found: Vec<_> = found.iter().map(|found| (found.kind.as_str(), found.offset)).collect();
            assert_eq!(
                found,
                kind.map(|kind| (kind, Some(offset))).into_iter().collect::<Vec<_>>()
            );
        }
        assert!(
            look_at_ends(&path, 2 << 20, 512).is_err(),
            "what cannot be read is an error"
        );
        assert_eq!(look_at_ends(&path, 0, 512).expect("empty"), vec![]);
    }
}
