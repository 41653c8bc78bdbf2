//! Kernel events of block devices, from the kernel's own socket (netlink(7), NETLINK_KOBJECT_UEVENT).

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use tokio::sync::Notify;

use crate::disks::sysfs;

/// Group of the kernel's own messages.
const KERNEL: u32 = 1;
/// Room for messages that arrive while we are busy, in bytes.
const BUFFER: usize = 1 << 20;

/// Tells of events of block devices; a burst of them is told once.
#[derive(Clone, Default)]
pub struct BlockEvents {
    told: Arc<Notify>,
}

impl BlockEvents {
    /// Listens, on a thread of its own. Where that is not possible no event ever comes, and a warning says so.
    #[must_use]
    pub fn listen() -> Self {
        let events = Self::default();
        let told = events.told.clone();
        let listening = connect().map_err(std::io::Error::from).and_then(|socket| {
            std::thread::Builder::new()
                .name("uevents".to_owned())
                .spawn(move || receive(&socket, &told))
        });
        if let Err(error) = listening {
            tracing::warn!(%error, "no kernel events; changes made by hand are seen at the regular check only");
        }
        events
    }

    /// Tells of an event, as the kernel's socket does.
    #[cfg(test)]
    pub(crate) fn tell(&self) {
        self.told.notify_one();
    }

    /// Waits for the next event since the last call.
    pub async fn next(&self) {
        self.told.notified().await;
    }
}

fn connect() -> Result<OwnedFd, Errno> {
    let kind = (
        AddressFamily::Netlink,
        SockType::Datagram,
        SockProtocol::NetlinkKObjectUEvent,
    );
    let socket = socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, kind.2)?;
    let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
    Ok(socket)
}

/// Receives for ever.
fn receive(socket: &OwnedFd, told: &Notify) {
    let mut buffer = [0; 8192];
    loop {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) if !matters(&buffer[..length], |number| dm_uuid(Path::new("/sys"), number)) => {}
            // Where events were lost, one may have been of a block device.
            Ok(_) | Err(Errno::ENOBUFS) => told.notify_one(),
            Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::warn!(%error, "kernel events ended");
                return;
            }
        }
    }
}

/// Whether a message is of a block device of which LVM may say something else now:
/// `add@/devices/…\0ACTION=add\0…SUBSYSTEM=block\0…` (kernel documentation, "kobject uevent").
///
/// udev has the kernel tell of a change (such messages carry `SYNTH_UUID`) whenever somebody closes a device that was open for
/// writing. Of a logical volume that tells of what is on it, as when kubelet makes a file system, and of nothing that LVM knows.
fn matters(message: &[u8], dm_uuid: impl Fn((u32, u32)) -> Option<String>) -> bool {
    let fields = || message.split(|byte| *byte == 0);
    let value = |key: &str| {
        let field = fields().find_map(|field| field.strip_prefix(key.as_bytes())?.strip_prefix(b"="))?;
        std::str::from_utf8(field).ok()
    };
    if value("SUBSYSTEM") != Some("block") {
        return false;
    }
    let number = || Some((value("MAJOR")?.parse().ok()?, value("MINOR")?.parse().ok()?));
    let is_of_a_volume = || dm_uuid(number()?).map(|uuid| uuid.starts_with("LVM-"));
    let was_closed = value("ACTION") == Some("change") && value("SYNTH_UUID").is_some();
    !(was_closed && is_of_a_volume() == Some(true))
}

/// What device-mapper calls a device; `None` where it is none of its devices.
fn dm_uuid(sys: &Path, number: (u32, u32)) -> Option<String> {
    sysfs::read(&sysfs::directory(sys, number), "dm/uuid")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSED: &[u8] =
        b"change@/devices/virtual/block/dm-0\0ACTION=change\0SUBSYSTEM=block\0MAJOR=252\0MINOR=7\0SYNTH_UUID=0\0SEQNUM=1\0";

    fn told(message: &[u8], uuid: Option<&str>) -> bool {
        matters(message, |number| {
            assert_eq!(number, (252, 7));
            uuid.map(str::to_owned)
        })
    }

    #[test]
    fn block_devices_only() {
        let message = b"change@/devices/virtual/block/dm-0\0ACTION=change\0SUBSYSTEM=block\0SEQNUM=1\0";
        assert!(told(message, None));
        assert!(!told(
            b"add@/devices/virtual/net/veth0\0ACTION=add\0SUBSYSTEM=net\0SEQNUM=2\0",
            None
        ));
        assert!(!told(b"", None));
    }

    #[test]
    fn a_volume_that_was_written_to_is_the_volume_that_it_was() {
        assert!(!told(CLOSED, Some("LVM-abc")));
        // On what else was closed there may be a volume group now.
        for uuid in [None, Some("mpath-1"), Some("CRYPT-LUKS2-1")] {
            assert!(told(CLOSED, uuid), "{uuid:?}");
        }
        // It was made, removed, or grew.
        for (from, to) in [
            ("ACTION=change", "ACTION=add"),
            ("ACTION=change", "ACTION=remove"),
            ("SYNTH_UUID=0", "DM_COOKIE=1"),
        ] {
            let message = String::from_utf8_lossy(CLOSED).replace(from, to);
            assert!(told(message.as_bytes(), Some("LVM-abc")), "{message:?}");
        }
    }
}
