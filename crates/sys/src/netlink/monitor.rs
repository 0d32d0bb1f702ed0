use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use super::NetlinkError;

// linux/rtnetlink.h: the groups of addresses and of routes, as bits.
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV4_ROUTE: u32 = 0x40;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;
const RTMGRP_IPV6_ROUTE: u32 = 0x400;

/// Messages taken off the socket at once.
const TURN: usize = 256;

/// Hears when addresses or routes of a network namespace change: the one it was opened in. Needs no privilege.
///
/// It says that something has changed and not what: [`host_snapshot`](super::host_snapshot) tells what there is. So a
/// message that the kernel could not deliver is as good as one that it did.
#[derive(Debug)]
pub struct Monitor {
    socket: OwnedFd,
}

impl Monitor {
    /// Hears of every change from here on.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Monitor, NetlinkError> {
        let open = || -> io::Result<OwnedFd> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
            let groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE;
            rustix::net::bind(&socket, &SocketAddrNetlink::new(0, groups))?;
            Ok(socket)
        };
        Ok(Monitor { socket: open().map_err(|source| NetlinkError::Open { source })? })
    }

    /// Whether something has changed since this was asked last. Never waits.
    ///
    /// # Errors
    /// [`NetlinkError::Receive`]; what changes from here on may go unheard.
    pub fn has_changed(&self) -> Result<bool, NetlinkError> {
        // Nothing of a message is looked at, so the rest of it may be cut off.
        let mut buffer = [0; 16];
        let mut changed = false;
        for _ in 0..TURN {
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                // ENOBUFS: there was no room for a message, netlink(7).
                Ok(_) | Err(Errno::NOBUFS) => changed = true,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(NetlinkError::Receive { source: errno.into() }),
            }
        }
        Ok(changed)
    }
}

impl AsFd for Monitor {
    /// Readable when something has changed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
