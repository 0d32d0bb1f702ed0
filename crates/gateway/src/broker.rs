//! Sockets towards the guest: who makes them, and how the gateway gets them.
//!
//! A connection of a peer goes on to the guest from a socket that has to be born in the gateway's namespace, and that may use
//! the peer's address as its own (`IP_TRANSPARENT`). Both take a privilege there which the gateway process has not. So the
//! process that has built the namespace stays as a *broker*: it makes such sockets on request, a batch at a time, and hands
//! them over. It reads nothing but requests of two bytes, and is confined to what that takes.
//!
//! | Bytes | From | What |
//! |---|---|---|
//! | 1 | gateway | 4 or 6 |
//! | 1 | gateway | how many sockets |
//! | 1 | broker | 4 or 6, with up to [`fdpass::MAX_FDS`] sockets; without any when there are none to be had |

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cofferdam_sys::confine::{Call, Capability};
use cofferdam_sys::fdpass;
use cofferdam_sys::transparent::{IpVersion, transparent_socket};
use rustix::event::{PollFd, PollFlags};

use crate::netns::CONGESTION_CONTROL;
use crate::seal::{SealError, confine, helper_calls, only};

/// Below so many the gateway asks for more, which come while these are used up: a connection takes longer than a socket.
const LOW: usize = 16;
/// How many it asks for.
const REFILL: u8 = 32;
/// The most that the gateway has in stock, of both families: below [`LOW`], and then what it asks for.
pub(crate) const STOCK: u64 = 2 * (LOW as u64 + REFILL as u64);

/// Why there is no broker any more.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("cannot serve the gateway")]
    Serve { source: io::Error },
}

/// The broker: confines itself and serves until the gateway or the supervisor is gone. The calling process is in the
/// gateway's namespaces and privileged there, and has these two descriptors only.
///
/// # Errors
/// When it could not be confined, or its sockets broke.
pub fn serve_broker(channel: &OwnedFd, lifeline: &OwnedFd) -> Result<(), BrokerError> {
    seal()?;
    let serve = |source: io::Error| BrokerError::Serve { source };
    loop {
        let mut fds = [PollFd::new(channel, PollFlags::IN), PollFd::new(lifeline, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(serve(errno.into())),
        }
        let [asked, orphaned] = fds.map(|fd| !fd.revents().is_empty());
        if orphaned {
            return Ok(());
        }
        if !asked {
            continue;
        }
        let mut request = [0; 2];
        match rustix::io::retry_on_intr(|| rustix::io::read(channel, &mut request)) {
            Ok(2) => {}
            Ok(0) => return Ok(()),
            Ok(_) => return Err(serve(io::ErrorKind::InvalidData.into())),
            Err(errno) => return Err(serve(errno.into())),
        }
        let [family, count] = request;
        let version = version(family).ok_or_else(|| serve(io::ErrorKind::InvalidData.into()))?;
        let mut left = usize::from(count);
        while left > 0 {
            let made =
                (0..left.min(fdpass::MAX_FDS)).map_while(|_| transparent_socket(version, CONGESTION_CONTROL).ok());
            let sockets: Vec<OwnedFd> = made.collect();
            let borrowed: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
            let sent = match fdpass::send_fds(channel, &[family], &borrowed) {
                // The user has as many descriptors under way, of all processes, as one process may have (unix(7)).
                Err(error) if error.raw_os_error() == Some(libc::ETOOMANYREFS) => {
                    fdpass::send_fds(channel, &[family], &[]).map(|()| 0)
                }
                sent => sent.map(|()| sockets.len()),
            };
            match sent.map_err(serve)? {
                0 => break,
                sent => left -= sent,
            }
        }
    }
}

fn seal() -> Result<(), SealError> {
    let families = [libc::AF_INET, libc::AF_INET6].map(|family| only(libc::SYS_socket, 0, family));
    let calls = helper_calls().into_iter().chain([Call::new(libc::SYS_setsockopt)]).chain(families).collect();
    confine(&[Capability::NET_ADMIN], &[], calls)
}

fn version(family: u8) -> Option<IpVersion> {
    match family {
        4 => Some(IpVersion::V4),
        6 => Some(IpVersion::V6),
        _ => None,
    }
}

/// The gateway's stock of such sockets.
#[derive(Debug)]
pub(crate) struct Stock {
    channel: OwnedFd,
    v4: Shelf,
    v6: Shelf,
}

#[derive(Debug, Default)]
struct Shelf {
    sockets: Vec<OwnedFd>,
    /// Asked for and not there yet.
    coming: usize,
}

/// What the broker has sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Delivered {
    Sockets,
    /// Nothing yet.
    NotYet,
    /// It has none to give, or there is no descriptor left to take one.
    Nothing,
    /// The broker is gone.
    Gone,
}

impl Stock {
    /// A stock that is filled over `channel`, which does not block.
    pub(crate) fn new(channel: OwnedFd) -> Stock {
        Stock { channel, v4: Shelf::default(), v6: Shelf::default() }
    }

    /// Takes a socket, and sees to it that there are more. `None`: it has to wait for what is delivered.
    pub(crate) fn take(&mut self, ipv6: bool) -> Option<OwnedFd> {
        let (shelf, family) = if ipv6 { (&mut self.v6, 6) } else { (&mut self.v4, 4) };
        let socket = shelf.sockets.pop();
        if shelf.sockets.len() + shelf.coming < LOW {
            let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
            if rustix::net::send(&self.channel, &[family, REFILL], flags).is_ok() {
                shelf.coming += usize::from(REFILL);
            }
        }
        socket
    }

    /// Puts back what was taken and not used.
    pub(crate) fn put_back(&mut self, ipv6: bool, socket: OwnedFd) {
        let shelf = if ipv6 { &mut self.v6 } else { &mut self.v4 };
        shelf.sockets.push(socket);
    }

    /// Takes in what has been sent.
    pub(crate) fn receive(&mut self) -> Delivered {
        let (mut come, mut refused, mut lost) = (false, false, false);
        let mut family = [0; 1];
        loop {
            let received = fdpass::recv_fds(&self.channel, &mut family);
            let shelf = if family == [6] { &mut self.v6 } else { &mut self.v4 };
            match received {
                Ok((0, _)) => return Delivered::Gone,
                Ok((_, sockets)) if sockets.is_empty() => {
                    refused = true;
                    shelf.coming = 0;
                }
                Ok((_, sockets)) => {
                    come = true;
                    shelf.coming = shelf.coming.saturating_sub(sockets.len());
                    shelf.sockets.extend(sockets);
                }
                // The message has come without its sockets, for want of descriptors here.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    (refused, lost) = (true, true);
                    shelf.coming = shelf.coming.saturating_sub(fdpass::MAX_FDS);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if lost && !come {
                        // What the other family has in stock makes room for the next one to ask.
                        self.v4.sockets.clear();
                        self.v6.sockets.clear();
                    }
                    return match (come, refused) {
                        (true, _) => Delivered::Sockets,
                        (false, true) => Delivered::Nothing,
                        (false, false) => Delivered::NotYet,
                    };
                }
                Err(_) => return Delivered::Gone,
            }
        }
    }

    pub(crate) fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;
    use std::net::SocketAddr;

    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType};

    use super::*;

    #[test]
    fn a_broker_makes_sockets_and_nothing_else() {
        if !rustix::process::getuid().is_root() {
            // Only root may have a socket with a foreign source here; the tests of whole sandboxes run as both.
            return;
        }
        let run = || {
            seal().unwrap();
            let unix = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).map(drop);
            let packet = rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, None).map(drop);
            let file = rustix::fs::open("/etc/passwd", OFlags::RDONLY, Mode::empty()).map(drop);
            let made = transparent_socket(IpVersion::V4, CONGESTION_CONTROL).unwrap();
            let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let used =
                (rustix::net::bind(&made, &any), rustix::net::connect(&made, &any), rustix::net::listen(&made, 1));
            (unix, packet, file, used)
        };
        let no = Err(Errno::PERM);
        assert_eq!(std::thread::spawn(run).join().unwrap(), (no, no, no, (no, no, no)));
    }

    #[test]
    fn the_stock_is_filled_and_filled_again() {
        let (ours, theirs) = fdpass::pair().unwrap();
        rustix::io::ioctl_fionbio(&ours, true).unwrap();
        let mut stock = Stock::new(ours);
        let requests = || {
            let mut request = [0; 4];
            let next = || Some(rustix::net::recv(&theirs, &mut request, RecvFlags::DONTWAIT).ok()?.1);
            std::iter::from_fn(next).count()
        };
        assert!(stock.take(true).is_none());
        assert_eq!(requests(), 1);
        assert!(stock.take(true).is_none());
        assert_eq!(requests(), 0, "enough are on their way");
        let socket = rustix::net::socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
        fdpass::send_fds(&theirs, &[6], &[socket.as_fd(); fdpass::MAX_FDS]).unwrap();
        assert_eq!(stock.receive(), Delivered::Sockets);
        assert_eq!(stock.receive(), Delivered::NotYet);
        assert!(stock.take(true).is_some());
        assert_eq!(requests(), 0, "the rest is still on its way");
        // Refused by the system: what was asked for does not come, and is asked for again.
        fdpass::send_fds(&theirs, &[6], &[]).unwrap();
        assert_eq!(stock.receive(), Delivered::Nothing);
        assert!(stock.take(true).is_some());
        assert_eq!(requests(), 1);
        drop(theirs);
        assert_eq!(stock.receive(), Delivered::Gone);
    }

    #[test]
    fn sockets_that_find_no_descriptor_left_are_asked_for_again() {
        let (ours, theirs) = fdpass::pair().unwrap();
        rustix::io::ioctl_fionbio(&ours, true).unwrap();
        let mut stock = Stock::new(ours);
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        fdpass::send_fds(&theirs, &[4], &[socket.as_fd()]).unwrap();
        assert_eq!(stock.receive(), Delivered::Sockets);
        assert!(stock.take(true).is_none());
        // More than the receiver asks for looks to it as no descriptor left does.
        const MANY: usize = 2 * fdpass::MAX_FDS;
        let many = [socket.as_fd(); MANY];
        for _ in 0..3 {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MANY))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
            rustix::net::sendmsg(&theirs, &[io::IoSlice::new(&[6])], &mut control, SendFlags::empty()).unwrap();
        }
        assert_eq!(stock.receive(), Delivered::Nothing);
        let mut request = [0; 2];
        assert_eq!(rustix::io::read(&theirs, &mut request), Ok(2));
        assert_eq!(rustix::net::recv(&theirs, &mut request, RecvFlags::DONTWAIT).err(), Some(Errno::AGAIN));
        assert!(stock.take(true).is_none());
        assert_eq!(rustix::io::read(&theirs, &mut request), Ok(2));
        assert!(stock.take(false).is_none(), "the other family's have made room");
    }
}
