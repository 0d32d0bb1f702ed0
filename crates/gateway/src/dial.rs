//! Dials: host sockets on their way to a remote, and connected ones that wait for the guest's handshake.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use cofferdam_gate::DialError;
use cofferdam_model::FlowId;
use cofferdam_policy::Permit;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::errno::dial_error;
use crate::hash::FlowHash;
use crate::poller::{Poller, Token, Watch};
use crate::udp::errno_of;

/// The dials of one gateway.
#[derive(Default)]
pub(crate) struct Dials {
    pending: HashMap<FlowId, Dial, FlowHash>,
}

struct Dial {
    socket: OwnedFd,
    /// Tried when the first address refuses: the host alias means 127.0.0.1, then `::1`.
    fallback: Option<SocketAddr>,
    /// In the poller, in both directions.
    watched: bool,
    connected: bool,
}

/// How far a dial has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Waiting,
    Done(Result<(), DialError>),
}

impl Dials {
    /// Starts a dial. The permit is used up.
    pub(crate) fn start(
        &mut self,
        poller: &Poller,
        flow: FlowId,
        remote: SocketAddr,
        fallback: Option<SocketAddr>,
        _permit: Permit,
    ) -> Progress {
        self.attempt(poller, flow, remote, fallback)
    }

    /// The socket of a dial has news. `None`: this flow is not (or no longer) connecting.
    pub(crate) fn handle_ready(&mut self, poller: &Poller, flow: FlowId) -> Option<Progress> {
        let dial = self.pending.get_mut(&flow).filter(|dial| !dial.connected)?;
        Some(match sockopt::socket_error(&dial.socket) {
            Ok(Ok(())) => {
                dial.connected = true;
                Progress::Done(Ok(()))
            }
            Ok(Err(errno)) | Err(errno) => {
                let fallback = dial.fallback;
                self.fail(poller, flow, errno, fallback)
            }
        })
    }

    /// Gives away the connected socket, and says whether it is in the poller.
    pub(crate) fn take(&mut self, flow: FlowId) -> Option<(OwnedFd, bool)> {
        self.pending.remove(&flow).map(|dial| (dial.socket, dial.watched))
    }

    fn attempt(&mut self, poller: &Poller, flow: FlowId, remote: SocketAddr, fallback: Option<SocketAddr>) -> Progress {
        match connect(poller, flow, remote) {
            Ok((socket, connected)) => {
                self.pending.insert(flow, Dial { socket, fallback, watched: !connected, connected });
                if connected { Progress::Done(Ok(())) } else { Progress::Waiting }
            }
            Err(errno) => self.fail(poller, flow, errno, fallback),
        }
    }

    fn fail(&mut self, poller: &Poller, flow: FlowId, errno: Errno, fallback: Option<SocketAddr>) -> Progress {
        self.pending.remove(&flow);
        match fallback {
            Some(next) if errno == Errno::CONNREFUSED => match self.attempt(poller, flow, next, None) {
                // A host without IPv6 on its loopback: what the first address said is the answer.
                Progress::Done(Err(DialError::NetUnreachable)) => Progress::Done(Err(dial_error(errno))),
                progress @ (Progress::Waiting | Progress::Done(_)) => progress,
            },
            _ => Progress::Done(Err(dial_error(errno))),
        }
    }
}

/// Opens a socket and connects it; `true` when it is connected already.
fn connect(poller: &Poller, flow: FlowId, remote: SocketAddr) -> Result<(OwnedFd, bool), Errno> {
    let family = if remote.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // None of these can fail on a fresh TCP socket. Urgent data stays in its place among the rest.
    let _ = sockopt::set_socket_oobinline(&socket, true);
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let _ = sockopt::set_socket_keepalive(&socket, true);
    let connected = match rustix::net::connect(&socket, &remote) {
        Ok(()) => true,
        // To an address on this machine the handshake is over by the time that connect returns, although it says
        // otherwise; asking again costs less than a turn of the poller.
        Err(Errno::INPROGRESS) => match rustix::net::connect(&socket, &remote) {
            Ok(()) | Err(Errno::ISCONN) => true,
            Err(Errno::ALREADY | Errno::INPROGRESS) => false,
            Err(errno) => return Err(errno),
        },
        Err(errno) => return Err(errno),
    };
    if !connected {
        poller.add(&socket, Token::Remote(flow), Watch::BothEdges).map_err(errno_of)?;
    }
    Ok((socket, connected))
}
