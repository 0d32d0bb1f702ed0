use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_model::{DomainName, EventBody, Time};
use cofferdam_policy::Policy;

use crate::ResolverConfig;

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
    /// and only that server can answer. Pass everything that arrives to [`Resolver::handle_answer`], an error of the
    /// socket (or an early end of the TCP connection) to [`Resolver::handle_failure`].
    Query { upstream: UpstreamId, server: SocketAddr, transport: Transport, message: Vec<u8> },
    /// Close the socket of this query. Comes once for each `Query`, but not after `handle_failure` for it.
    Abandon { upstream: UpstreamId },
    /// Bind `address` to `name` for `ttl`. When that is refused, call [`Resolver::handle_pin_refused`] before the next
    /// output is taken.
    Pin { name: DomainName, alias: bool, address: IpAddr, ttl: Duration },
    /// Send `message` to the guest.
    Answer { client: ClientId, message: Vec<u8> },
    /// Something to report.
    Event(EventBody),
}

/// Answers the DNS queries of one sandbox.
#[derive(Debug)]
pub struct Resolver {
    config: ResolverConfig,
    policy: Arc<Policy>,
    outputs: VecDeque<Output>,
}

impl Resolver {
    /// A resolver that has nothing under way.
    #[must_use]
    pub fn new(config: ResolverConfig, policy: Arc<Policy>) -> Resolver {
        Resolver { config, policy, outputs: VecDeque::new() }
    }

    /// The guest sent `message` to `server`. Where `server` is not the gateway, the policy has already allowed the guest
    /// to send to it.
    pub fn handle_query(
        &mut self,
        now: Time,
        client: ClientId,
        transport: Transport,
        server: SocketAddr,
        message: &[u8],
    ) {
        let _ = (now, client, transport, server, message, &self.config, &self.policy);
    }

    /// Something arrived on the socket of `upstream`.
    pub fn handle_answer(&mut self, now: Time, upstream: UpstreamId, message: &[u8]) {
        let _ = (now, upstream, message);
    }

    /// The socket of `upstream` could not be made, broke, or was closed by the other side. The caller has dropped it.
    pub fn handle_failure(&mut self, now: Time, upstream: UpstreamId) {
        let _ = (now, upstream);
    }

    /// The pin that was taken from `poll_output` last could not be made: its answer must not reach the guest.
    pub fn handle_pin_refused(&mut self) {}

    /// Time has passed; needed when [`Resolver::poll_timeout`] is reached.
    pub fn handle_timeout(&mut self, now: Time) {
        let _ = now;
    }

    /// When to call [`Resolver::handle_timeout`]; `None` while nothing is under way.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// What to do next; drain to `None` after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
}
