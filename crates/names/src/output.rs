use std::collections::VecDeque;
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

/// Both ends of a query as they stood in what the guest sent: the server is an address of the gateway, or of a resolver that the
/// guest chose itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    pub guest: SocketAddr,
    pub server: SocketAddr,
}

/// What the caller has to do, in this order.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "an event is taken at once, and the queue holds few")]
pub enum Output {
    /// Send `message` to `server` from a socket made for it alone and connected to it, so that the source port is random
    /// and only that server can answer. Pass everything that arrives to [`handle_answer`](crate::Resolver::handle_answer), an error of the
    /// socket (or an early end of the TCP connection) to [`handle_failure`](crate::Resolver::handle_failure).
    Query { upstream: UpstreamId, server: SocketAddr, transport: Transport, message: Vec<u8> },
    /// Ask the configured resolver at this place among the [`upstreams`](crate::ResolverConfig::upstreams) over its session. Pass
    /// the answer to [`handle_answer`](crate::Resolver::handle_answer), under the id of `message`, and any failure to
    /// [`handle_failure`](crate::Resolver::handle_failure).
    Ask { upstream: UpstreamId, resolver: usize, message: Vec<u8> },
    /// Close the socket of this query, or forget it where it was asked over a session. Comes once for each `Query` and `Ask`,
    /// but not after `handle_failure` for it.
    Abandon { upstream: UpstreamId },
    /// Bind `address` to `name` for `ttl`. When that is refused, call [`handle_pin_refused`](crate::Resolver::handle_pin_refused) before the next
    /// output is taken.
    Pin { name: DomainName, alias: bool, address: IpAddr, ttl: Duration },
    /// Send `message` to the guest.
    Answer { client: ClientId, message: Vec<u8> },
    /// What the guest sent was no query, and gets no answer.
    Ignore { client: ClientId },
    /// Something to report.
    Event(EventBody),
    /// The same, of a query that was answered before.
    Answered { client: ClientId, event: EventBody },
}

/// The outputs that wait to be taken, in groups: what one step made belongs together.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: VecDeque<(Group, Output)>,
    group: Group,
    /// The group of the output that was taken last.
    taken: Group,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Group(u64);

impl Outbox {
    /// What is pushed from here on has nothing to do with what was pushed before.
    pub(crate) fn begin_group(&mut self) {
        self.group.0 += 1;
    }

    pub(crate) fn push(&mut self, output: Output) {
        self.queue.push_back((self.group, output));
    }

    pub(crate) fn extend(&mut self, outputs: impl IntoIterator<Item = Output>) {
        outputs.into_iter().for_each(|output| self.push(output));
    }

    pub(crate) fn pop(&mut self) -> Option<Output> {
        let (group, output) = self.queue.pop_front()?;
        self.taken = group;
        Some(output)
    }

    /// Drops the pins that are left of the group of which an output was taken last, and changes the rest of it.
    pub(crate) fn revise_group(&mut self, mut revise: impl FnMut(&mut Output)) {
        let taken = self.taken;
        self.queue.retain(|(group, output)| *group != taken || !matches!(output, Output::Pin { .. }));
        let rest = self.queue.iter_mut().take_while(|(group, _)| *group == taken);
        rest.for_each(|(_, output)| revise(output));
    }
}
