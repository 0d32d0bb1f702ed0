use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cofferdam_model::{DomainName, EventBody};

/// One query of the guest, as the caller numbers them. Never reused while its answer is outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// One query of ours, sent to one resolver over a socket of its own. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UpstreamId(pub u64);

/// How a DNS message travels. Messages here never carry TCP's length prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What the caller has to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Send `message` to `server` from a socket made for it alone and connected to it, so that the source port is random
    /// and only that server can answer. Pass everything that arrives to [`handle_answer`](crate::Resolver::handle_answer), an error of the
    /// socket (or an early end of the TCP connection) to [`handle_failure`](crate::Resolver::handle_failure).
    Query { upstream: UpstreamId, server: SocketAddr, transport: Transport, message: Vec<u8> },
    /// Close the socket of this query. Comes once for each `Query`, but not after `handle_failure` for it.
    Abandon { upstream: UpstreamId },
    /// Bind `address` to `name` for `ttl`. When that is refused, call [`handle_pin_refused`](crate::Resolver::handle_pin_refused) before the next
    /// output is taken.
    Pin { name: DomainName, alias: bool, address: IpAddr, ttl: Duration },
    /// Send `message` to the guest.
    Answer { client: ClientId, message: Vec<u8> },
    /// Something to report.
    Event(EventBody),
}
