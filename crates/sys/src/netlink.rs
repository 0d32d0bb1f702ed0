//! A small synchronous rtnetlink(7) client: links, addresses, routes, rules and neighbours of the calling thread's network
//! namespace, and what the host's own network looks like.
//!
//! Requests are data ([`Request`]), so that a plan made of them can be looked at and tested. [`Connection::execute`] sends a
//! whole list of them with one system call: the kernel works on them in order and has answered by the time that call
//! returns, so nothing here ever waits. Requests go on after one that failed; the first failure is the one reported.

mod monitor;
mod request;
mod snapshot;
pub(crate) mod socket;
pub(crate) mod wire;

use std::io;
use std::net::IpAddr;
use std::time::Duration;

pub use monitor::Monitor;
pub use request::{Request, RouteKind, VethPeer};
pub use snapshot::{HostSnapshot, host_snapshot};
pub use socket::NetlinkError;
use socket::{ACK, Family, REQUEST};
use wire::{Attributes, Message};

/// Some of what the kernel is asked to do it leaves to a thread of its own, which is usually done within 100 µs. This is
/// how often the outcome is looked for, and the pause between; together one second and more.
const LOOKS: usize = 10_000;
const PAUSE: Duration = Duration::from_micros(100);

// linux/rtnetlink.h, if_link.h and if.h.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_OPERSTATE: u16 = 16;
const IF_OPER_UP: u8 = 6;
/// Length of `struct ifinfomsg`.
const LINK_BODY: usize = 16;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTN_LOCAL: u8 = 2;

/// A connection to the part of the kernel that configures the network, in the network namespace it was opened in.
#[derive(Debug)]
pub struct Connection(socket::Socket);

impl Connection {
    /// Opens a connection in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::Open`].
    pub fn open() -> Result<Connection, NetlinkError> {
        Ok(Connection(socket::Socket::open(Family::Route)?))
    }

    /// Carries out `requests` in order.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] for the first request that the kernel refused. Those after it were tried as well.
    pub fn execute(&mut self, requests: &[Request<'_>]) -> Result<(), NetlinkError> {
        let messages: Vec<_> = requests.iter().map(Request::encode).collect();
        self.0.execute(&messages, |index| match requests.get(index) {
            Some(request) => request.to_string(),
            None => "finish".to_owned(),
        })
    }

    /// Waits until the link with interface index `index`, which was switched on, carries packets.
    ///
    /// Of the two ends of a veth pair, the one that was switched on first learns through a kernel thread that the other
    /// is there. Until that thread has run it drops what it is to send.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] when there is no such link, or with `TimedOut` when it is not up within a second.
    pub fn await_up(&mut self, index: u32) -> Result<(), NetlinkError> {
        let mut payload = vec![0; LINK_BODY];
        // `struct ifinfomsg`: the index is at 4.
        payload.splice(4..8, index.to_ne_bytes());
        let request = Message { kind: RTM_GETLINK, flags: REQUEST | ACK, payload };
        self.look_for(&format!("wait for link {index} to come up"), |socket| {
            let states = socket.dump("links", &request, |kind, payload| {
                let attributes = payload.get(LINK_BODY..).filter(|_| kind == RTM_NEWLINK)?;
                wire::attributes(attributes).find(|(kind, _)| *kind == IFLA_OPERSTATE)?.1.first().copied()
            })?;
            Ok(states.contains(&IF_OPER_UP))
        })
    }

    /// Waits until packets to `address`, which was added to a link, are taken for our own. For IPv6 that comes later than
    /// the address itself, even without a search for duplicates.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] with `TimedOut` when it is not so within a second.
    pub fn await_local(&mut self, address: IpAddr) -> Result<(), NetlinkError> {
        let (family, bits, bytes) = match address {
            IpAddr::V4(address) => (2, 32, address.octets().to_vec()),
            IpAddr::V6(address) => (10, 128, address.octets().to_vec()),
        };
        // `struct rtmsg`: family and destination length, the rest of no meaning in a question.
        let mut body = [0; 12];
        body[..2].copy_from_slice(&[family, bits]);
        let payload = Attributes::new().bytes(RTA_DST, &bytes).after(&body);
        let request = Message { kind: RTM_GETROUTE, flags: REQUEST | ACK, payload };
        self.look_for(&format!("wait for address {address} to be in use"), |socket| {
            let types = socket
                .dump("routes", &request, |kind, payload| payload.get(7).copied().filter(|_| kind == RTM_NEWROUTE));
            // "No route at all" is an error here, and one of the things that pass.
            Ok(types.is_ok_and(|types| types.contains(&RTN_LOCAL)))
        })
    }

    fn look_for(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut socket::Socket) -> Result<bool, NetlinkError>,
    ) -> Result<(), NetlinkError> {
        for _ in 0..LOOKS {
            if look(&mut self.0)? {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        let source = io::ErrorKind::TimedOut.into();
        Err(NetlinkError::Refused { request: what.to_owned(), reason: None, source })
    }
}
