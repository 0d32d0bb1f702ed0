//! Sockets of the host: the listeners inside, and the connections that wait for the host's end.
//!
//! A connection that was accepted inside waits here until the gate lets it go on and the dialer has connected. Then both ends go
//! to the relay. Whatever goes wrong before closes it: the program reads the end of the stream.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use cofferdam_gate::SocketError;
use cofferdam_model::{FlowId, SocketId};

use crate::dialer::{self, Dialed};
use crate::hash::FlowHash;
use crate::poller::{Poller, Token, Watch};

/// The process that has made this connection, as this one counts processes; `None` where that has no number for it.
pub(crate) fn who(connection: &OwnedFd) -> Option<u32> {
    let peer = cofferdam_sys::socket::peer(connection).ok()?;
    u32::try_from(peer.pid?.as_raw_pid()).ok()
}

/// Answers of the dialer that are taken in one turn.
const ANSWERS: usize = 256;

/// The sockets of the host that one sandbox may connect to.
pub(crate) struct HostSockets {
    listeners: Vec<OwnedFd>,
    /// `None`: there are none, or it has ended.
    dialer: Option<OwnedFd>,
    /// The guest's ends of those that are not connected yet.
    guests: HashMap<FlowId, OwnedFd, FlowHash>,
}

/// How a connection to the host's socket went.
pub(crate) type Ended = (FlowId, Result<OwnedFd, SocketError>);

impl HostSockets {
    /// Watches the listeners, in their order, and the channel to the dialer.
    pub(crate) fn new(
        poller: &Poller,
        listeners: Vec<OwnedFd>,
        dialer: Option<OwnedFd>,
    ) -> std::io::Result<HostSockets> {
        for (number, listener) in (0..).zip(&listeners) {
            poller.add(listener, Token::HostSocket(SocketId(number)), Watch::Read)?;
        }
        if let Some(dialer) = &dialer {
            poller.add(dialer, Token::Dialer, Watch::Read)?;
        }
        Ok(HostSockets { listeners, dialer, guests: HashMap::default() })
    }

    /// Where the guest's connections to this socket arrive.
    pub(crate) fn listener(&self, SocketId(number): SocketId) -> Option<impl AsFd + '_> {
        self.listeners.get(usize::try_from(number).ok()?)
    }

    /// Keeps the guest's end of a connection that the gate lets go on.
    pub(crate) fn hold(&mut self, flow: FlowId, guest: OwnedFd) {
        self.guests.insert(flow, guest);
    }

    /// Has the host's socket connected to.
    pub(crate) fn dial(&self, flow: FlowId, socket: SocketId) -> Result<(), SocketError> {
        dialer::ask(self.dialer.as_ref().ok_or(SocketError::Gone)?, flow, socket)
    }

    /// The guest's end of a flow, which is nobody's here any more.
    pub(crate) fn take(&mut self, flow: FlowId) -> Option<OwnedFd> {
        self.guests.remove(&flow)
    }

    /// The dialer has something to say. With the flows that have come to an end by that, whether it has ended itself.
    pub(crate) fn handle_dialer(&mut self) -> (Vec<Ended>, bool) {
        let mut ends = Vec::new();
        let Some(dialer) = &self.dialer else { return (ends, false) };
        for _ in 0..ANSWERS {
            match dialer::receive(dialer) {
                Dialed::Flow(flow, result) => ends.push((flow, result)),
                Dialed::Nothing => return (ends, false),
                Dialed::Gone => {
                    self.dialer = None;
                    let mut waiting: Vec<FlowId> = self.guests.keys().copied().collect();
                    waiting.retain(|flow| ends.iter().all(|(ended, _)| ended != flow));
                    waiting.sort_unstable();
                    ends.extend(waiting.into_iter().map(|flow| (flow, Err(SocketError::Gone))));
                    return (ends, true);
                }
            }
        }
        (ends, false)
    }
}
