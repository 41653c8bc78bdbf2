//! The management console of a User-Mode Linux kernel: plugs disks in and out while it runs.

use std::{os::unix::net::UnixDatagram, path::Path, time::Duration};

use crate::error::{During, Result};

const MAGIC: u32 = 0xcafe_babe;
const VERSION: u32 = 2;
/// The size of a request's text, as the kernel declares it.
const TEXT: usize = 512;

/// Sends one command; the inner result is the kernel's answer.
pub(crate) fn command(socket: &Path, own: &Path, text: &str) -> Result<Result<String, String>> {
    let _ = std::fs::remove_file(own);
    let answer =
        exchange(socket, own, text).during(|| format!("the kernel's console {} does not answer", socket.display()));
    let _ = std::fs::remove_file(own);
    answer
}

fn exchange(socket: &Path, own: &Path, text: &str) -> std::io::Result<Result<String, String>> {
    let console = UnixDatagram::bind(own)?;
    console.set_read_timeout(Some(Duration::from_secs(10)))?;
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let mut request: Vec<u8> = [MAGIC, VERSION, length]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    request.extend_from_slice(text.as_bytes());
    if text.len() >= TEXT {
        return Ok(Err(format!(
            "a command of {} bytes is longer than the kernel takes",
            text.len()
        )));
    }
    request.resize(3 * size_of::<u32>() + TEXT, 0);
    console.send_to(&request, socket)?;
    let (mut said, mut failed) = (String::new(), false);
    loop {
        let mut answer = [0; 4096];
        let received = console.recv(&mut answer)?;
        let word = |at: usize| {
            answer[at..at + 4]
                .try_into()
                .map(u32::from_ne_bytes)
                .unwrap_or_default()
        };
        let end = received.min(12 + usize::try_from(word(8)).unwrap_or(0));
        said.push_str(String::from_utf8_lossy(answer.get(12..end).unwrap_or_default()).trim_end_matches('\0'));
        failed |= word(0) != 0;
        if word(4) == 0 {
            return Ok(if failed { Err(said) } else { Ok(said) });
        }
    }
}
