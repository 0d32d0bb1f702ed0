//! A small synchronous rtnetlink(7) client: links, addresses, routes, rules and neighbours of the calling thread's network
//! namespace, and what the host's own network looks like.
//!
//! Requests are data ([`Request`]), so that a plan made of them can be looked at and tested. [`Connection::execute`] sends a
//! whole list of them with one system call: the kernel works on them in order and has answered by the time that call
//! returns, so nothing here ever waits. Requests go on after one that failed; the first failure is the one reported.

mod request;
mod snapshot;
pub(crate) mod socket;
pub(crate) mod wire;

pub use request::{Request, RouteKind, VethPeer};
pub use snapshot::{HostSnapshot, host_snapshot};
pub use socket::NetlinkError;

use socket::Family;

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
}
