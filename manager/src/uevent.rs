//! Kernel events of block devices, from the kernel's own socket (netlink(7), NETLINK_KOBJECT_UEVENT).

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use tokio::sync::Notify;

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
            Ok(length) if !is_block_event(&buffer[..length]) => {}
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

/// Whether a message is of a block device: `add@/devices/…\0ACTION=add\0…SUBSYSTEM=block\0…`
/// (kernel documentation, "kobject uevent").
fn is_block_event(message: &[u8]) -> bool {
    message
        .split(|byte| *byte == 0)
        .any(|field| field == b"SUBSYSTEM=block")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_devices_only() {
        assert!(is_block_event(
            b"change@/devices/virtual/block/dm-0\0ACTION=change\0SUBSYSTEM=block\0SEQNUM=1\0"
        ));
        assert!(!is_block_event(
            b"add@/devices/virtual/net/veth0\0ACTION=add\0SUBSYSTEM=net\0SEQNUM=2\0"
        ));
        assert!(!is_block_event(b""));
    }
}
