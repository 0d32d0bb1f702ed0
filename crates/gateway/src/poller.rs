//! epoll(7) with tokens that say what became ready.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use cofferdam_model::{FlowId, PortId, SocketId};
use rustix::event::epoll::{self, EventData, EventFlags};

/// What a descriptor in the poller is for. Flow numbers are never reused, so an event for something that was closed
/// a moment ago finds nothing and is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Tun,
    Lifeline,
    /// The channel on which the supervisor speaks of the machine's network.
    Machine,
    /// The channel on which the supervisor has something changed.
    Commands,
    /// A policy is compiled.
    Compiler,
    /// The broker has sockets.
    Broker,
    /// A published port.
    Port(PortId),
    Listener(usize),
    /// The host's socket of a TCP flow, while it connects and afterwards.
    Remote(FlowId),
    /// The accepted socket of a TCP flow.
    Guest(FlowId),
    Udp(FlowId),
    Echo(FlowId),
    /// A query on its way to an upstream resolver.
    Upstream(u64),
    /// A guest's TCP connection to port 53.
    DnsClient(u64),
    /// A connection to a resolver that is asked over TLS or HTTPS.
    Session(u64),
    /// The listener inside for a socket of the host.
    HostSocket(SocketId),
    /// The dialer has connected, or not.
    Dialer,
}

/// Bits of a token that are left for the number.
const NUMBER: u64 = (1 << 56) - 1;

impl Token {
    fn encode(self) -> u64 {
        let (kind, number) = match self {
            Token::Tun => (0, 0),
            Token::Lifeline => (1, 0),
            Token::Listener(index) => (2, index as u64),
            Token::Remote(FlowId(number)) => (3, number),
            Token::Guest(FlowId(number)) => (4, number),
            Token::Udp(FlowId(number)) => (5, number),
            Token::Echo(FlowId(number)) => (6, number),
            Token::Upstream(number) => (7, number),
            Token::DnsClient(number) => (8, number),
            Token::Machine => (9, 0),
            Token::Session(number) => (10, number),
            Token::Commands => (11, 0),
            Token::Compiler => (12, 0),
            Token::Broker => (13, 0),
            Token::Port(PortId(number)) => (14, u64::from(number)),
            Token::HostSocket(SocketId(number)) => (15, u64::from(number)),
            Token::Dialer => (16, 0),
        };
        kind << 56 | (number & NUMBER)
    }

    fn decode(data: u64) -> Option<Token> {
        let number = data & NUMBER;
        Some(match data >> 56 {
            0 => Token::Tun,
            1 => Token::Lifeline,
            2 => Token::Listener(usize::try_from(number).ok()?),
            3 => Token::Remote(FlowId(number)),
            4 => Token::Guest(FlowId(number)),
            5 => Token::Udp(FlowId(number)),
            6 => Token::Echo(FlowId(number)),
            7 => Token::Upstream(number),
            8 => Token::DnsClient(number),
            9 => Token::Machine,
            10 => Token::Session(number),
            11 => Token::Commands,
            12 => Token::Compiler,
            13 => Token::Broker,
            14 => Token::Port(PortId(u32::try_from(number).ok()?)),
            15 => Token::HostSocket(SocketId(u32::try_from(number).ok()?)),
            16 => Token::Dialer,
            _ => return None,
        })
    }
}

/// What a descriptor is ready for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// There is room to write, which an end or an error alone is not.
    pub(crate) room: bool,
    /// The other end has sent FIN, or the socket is in error.
    pub(crate) hang_up: bool,
    /// An error is pending on the socket or its error queue.
    pub(crate) error: bool,
    /// There is urgent data (RFC 6093): a read stops in front of it.
    pub(crate) urgent: bool,
}

/// How a descriptor is watched.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Watch {
    /// Reported as long as there is something to read.
    Read,
    /// Reported once whenever something more can be read.
    ReadEdges,
    /// Reported once whenever something more can be read or written.
    BothEdges,
}

/// The events of one wait that are kept at once; more wait for the next turn, in the kernel's own round robin.
const EVENTS: usize = 256;

pub(crate) struct Poller {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poller {
    pub(crate) fn new() -> io::Result<Poller> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Poller { epoll, events: Vec::with_capacity(EVENTS) })
    }

    pub(crate) fn add(&self, fd: impl AsFd, token: Token, watch: Watch) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token.encode()), flags(watch))?)
    }

    pub(crate) fn modify(&self, fd: impl AsFd, token: Token, watch: Watch) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token.encode()), flags(watch))?)
    }

    /// Waits for events, at most `timeout` (for ever without one), and gives them to `handle` via the returned list.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<(Token, Ready)>) -> io::Result<()> {
        let timeout = timeout.and_then(|t| rustix::time::Timespec::try_from(t).ok());
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        ready.extend(self.events.iter().filter_map(|event| {
            let (data, flags) = (event.data, event.flags);
            let error = flags.contains(EventFlags::ERR);
            let hang_up = error || flags.intersects(EventFlags::HUP | EventFlags::RDHUP);
            let ready = Ready {
                read: hang_up || flags.contains(EventFlags::IN),
                write: hang_up || flags.contains(EventFlags::OUT),
                room: flags.contains(EventFlags::OUT),
                hang_up,
                error,
                urgent: flags.contains(EventFlags::PRI),
            };
            Some((Token::decode(data.u64())?, ready))
        }));
        Ok(())
    }
}

fn flags(watch: Watch) -> EventFlags {
    match watch {
        Watch::Read => EventFlags::IN,
        Watch::ReadEdges => EventFlags::IN | EventFlags::PRI | EventFlags::RDHUP | EventFlags::ET,
        Watch::BothEdges => EventFlags::IN | EventFlags::PRI | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for token in [
            Token::Tun,
            Token::Lifeline,
            Token::Listener(1),
            Token::Remote(FlowId(7)),
            Token::Guest(FlowId(NUMBER)),
            Token::Udp(FlowId(1)),
            Token::Echo(FlowId(2)),
            Token::Upstream(3),
            Token::DnsClient(4),
            Token::Machine,
            Token::Session(5),
            Token::Commands,
            Token::Compiler,
            Token::Broker,
            Token::Port(PortId(6)),
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
