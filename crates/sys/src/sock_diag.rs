//! Which socket of a network namespace has these addresses: sock_diag(7) for TCP and UDP.
//!
//! The kernel looks one socket up as it does for a packet, so that a question costs the same among a million sockets as among ten;
//! `/proc/net/tcp` would have to be read from its beginning. A question is about the network namespace that the netlink socket
//! was opened in, wherever that is held later, and needs no privilege.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::netlink::socket::REQUEST;
use crate::netlink::wire::{self, Message};

/// `SOCK_DIAG_BY_FAMILY`.
const BY_FAMILY: u16 = 20;
// linux/in.h and linux/socket.h.
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Where `idiag_inode` is in `struct inet_diag_msg`.
const INODE: usize = 68;
/// Messages that are looked at for one answer. There is one, but for what root inside has sent to this socket.
const ANSWERS: usize = 8;
/// An answer without attributes has 88 bytes, an error with the request in it 108.
const ROOM: usize = 1024;

/// A kind of socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Asks for sockets of one network namespace.
#[derive(Debug)]
pub struct SocketFinder {
    socket: OwnedFd,
    sequence: u32,
}

impl SocketFinder {
    /// A netlink socket of the calling thread's network namespace, for [`SocketFinder::new`].
    ///
    /// # Errors
    /// As socket(2).
    pub fn open() -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::SOCK_DIAG))?)
    }

    /// Asks over a socket of [`SocketFinder::open`].
    #[must_use]
    pub fn new(socket: OwnedFd) -> SocketFinder {
        SocketFinder { socket, sequence: 0 }
    }

    /// The inode of the socket that packets from `remote` to `local` go to: one that is connected, or one that listens or takes
    /// datagrams. `None` when there is none, or no process has it open. Never waits.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or cannot answer: it may have been built without sock_diag.
    pub fn find(&mut self, transport: Transport, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Vec::new();
        Message { kind: BY_FAMILY, flags: REQUEST, payload: question(transport, local, remote) }.emit(
            self.sequence,
            0,
            &mut request,
        );
        // To the kernel, whoever may have sent something here.
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::io::retry_on_intr(|| rustix::net::sendto(&self.socket, &request, SendFlags::DONTWAIT, &kernel))?;
        let mut buffer = [0; ROOM];
        for _ in 0..ANSWERS {
            let (len, _, from) = match rustix::net::recvfrom(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                // ENOBUFS: others have filled the socket, and what is in it can be read.
                Err(Errno::INTR | Errno::NOBUFS) => continue,
                other => other?,
            };
            let is_kernel =
                from.and_then(|from| SocketAddrNetlink::try_from(from).ok()).is_some_and(|from| from.pid() == 0);
            if !is_kernel {
                continue;
            }
            if let Some(answer) = answer(buffer.get(..len).unwrap_or_default(), self.sequence) {
                return answer;
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

impl AsFd for SocketFinder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `struct inet_diag_req_v2`.
fn question(transport: Transport, local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let (protocol, [src, dst]) = match transport {
        Transport::Tcp => (IPPROTO_TCP, [local, remote]),
        // "src and dst are swapped for historical reasons", net/ipv4/udp_diag.c.
        Transport::Udp => (IPPROTO_UDP, [remote, local]),
    };
    // Family, protocol, no extensions, all states.
    let mut payload = vec![family, protocol, 0, 0, 0xff, 0xff, 0xff, 0xff];
    payload.extend(src.port().to_be_bytes());
    payload.extend(dst.port().to_be_bytes());
    payload.extend(bytes(src.ip()));
    payload.extend(bytes(dst.ip()));
    // Any interface, and INET_DIAG_NOCOOKIE.
    payload.extend([0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    payload
}

fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => Ipv6Addr::octets(&address),
    }
}

/// What the kernel says to the question with this number; `None` when it says something else.
fn answer(datagram: &[u8], sequence: u32) -> Option<io::Result<Option<u32>>> {
    const ERROR: u16 = 2;
    let message = wire::messages(datagram).find(|message| message.sequence == sequence)?;
    Some(match message.kind {
        BY_FAMILY => match wire::u32_at(message.payload, INODE) {
            Some(inode) => Ok(Some(inode).filter(|inode| *inode != 0)),
            None => Err(io::ErrorKind::InvalidData.into()),
        },
        ERROR => {
            let code = wire::u32_at(message.payload, 0).unwrap_or(0).cast_signed();
            match Errno::from_raw_os_error(code.saturating_neg()) {
                Errno::NOENT => Ok(None),
                errno => Err(errno.into()),
            }
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

    fn finder() -> SocketFinder {
        SocketFinder::new(SocketFinder::open().unwrap())
    }

    fn inode(socket: impl AsFd) -> Option<u32> {
        Some(u32::try_from(rustix::fs::fstat(socket).unwrap().st_ino).unwrap())
    }

    #[test]
    fn finds_both_ends_of_a_connection_and_who_listens() {
        for loopback in LOOPBACKS {
            let mut finder = finder();
            let listener = TcpListener::bind(loopback).unwrap();
            let server = listener.local_addr().unwrap();
            let guest = TcpStream::connect(server).unwrap();
            let (accepted, client) = listener.accept().unwrap();
            let mut find = |local, remote| finder.find(Transport::Tcp, local, remote).unwrap();
            assert_eq!(find(client, server), inode(&guest));
            assert_eq!(find(server, client), inode(&accepted));
            let mut stranger = client;
            stranger.set_port(1);
            assert_eq!(find(server, stranger), inode(&listener));
            drop((guest, accepted, listener));
            assert_eq!(find(stranger, server), None);
        }
    }

    #[test]
    fn finds_who_sends_datagrams_connected_or_not() {
        for loopback in LOOPBACKS {
            let mut finder = finder();
            let one = UdpSocket::bind(loopback).unwrap();
            let other = UdpSocket::bind(loopback).unwrap();
            let (local, remote) = (one.local_addr().unwrap(), other.local_addr().unwrap());
            for _ in 0..2 {
                assert_eq!(finder.find(Transport::Udp, local, remote).unwrap(), inode(&one));
                one.connect(remote).unwrap();
            }
            drop(one);
            assert_eq!(finder.find(Transport::Udp, local, remote).unwrap(), None);
        }
    }

    #[test]
    fn what_is_no_answer_is_none() {
        assert!(answer(&[], 1).is_none());
        let mut message = Vec::new();
        Message { kind: BY_FAMILY, flags: 0, payload: vec![0; 70] }.emit(7, 0, &mut message);
        assert!(answer(&message, 8).is_none());
        assert!(answer(&message, 7).unwrap().is_err());
        for kept in 0..message.len() {
            assert!(answer(&message[..kept], 7).is_none_or(|answer| answer.is_err()));
        }
    }
}
