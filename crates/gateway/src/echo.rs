//! The host's side of ICMP echo: unprivileged ICMP sockets (icmp(7), `net.ipv4.ping_group_range`).
//!
//! The kernel fills in the identifier of such a socket and delivers only the replies to it, so no raw socket is needed
//! and no other ICMP message of the host is ever seen.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use cofferdam_gate::{EchoError, Gate};
use cofferdam_model::{FlowId, Time};
use cofferdam_policy::Permit;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

use crate::errno::echo_error;
use crate::hash::FlowHash;
use crate::poller::{Poller, Token, Watch};
use crate::udp::errno_of;

/// Type, code, checksum, identifier, sequence number (RFC 792, RFC 4443).
const HEADER: usize = 8;

/// Replies taken from one socket per turn.
const TURNS: usize = 16;

pub(crate) struct Echo {
    sockets: HashMap<FlowId, (OwnedFd, bool), FlowHash>,
    buffer: Vec<u8>,
}

impl Echo {
    pub(crate) fn new() -> Echo {
        Echo { sockets: HashMap::default(), buffer: vec![0; 65_535] }
    }

    /// Opens the socket of an exchange. The permit is used up.
    pub(crate) fn open(
        &mut self,
        poller: &Poller,
        flow: FlowId,
        remote: IpAddr,
        _permit: Permit,
    ) -> Result<(), EchoError> {
        let socket = connected(poller, flow, remote)?;
        self.sockets.insert(flow, (socket, remote.is_ipv6()));
        Ok(())
    }

    pub(crate) fn close(&mut self, flow: FlowId) {
        self.sockets.remove(&flow);
    }

    /// Sends one request.
    pub(crate) fn send(&mut self, gate: &mut Gate, now: Time, flow: FlowId, sequence: u16, payload: &[u8]) {
        let Some((socket, ipv6)) = self.sockets.get(&flow) else { return };
        let kind = if *ipv6 { 128 } else { 8 };
        let [high, low] = sequence.to_be_bytes();
        let mut message = Vec::with_capacity(HEADER + payload.len());
        // Checksum and identifier are the kernel's to fill in.
        message.extend_from_slice(&[kind, 0, 0, 0, 0, 0, high, low]);
        message.extend_from_slice(payload);
        if let Err(errno) = rustix::net::send(socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            && let Some(error) = echo_error(errno, false)
        {
            gate.handle_echo_error(now, flow, error);
        }
    }

    /// A socket has replies or an error. `false` when the flow is unknown.
    pub(crate) fn handle_ready(&mut self, gate: &mut Gate, now: Time, flow: FlowId) {
        let Some((socket, ipv6)) = self.sockets.get(&flow) else { return };
        let reply = if *ipv6 { 129 } else { 0 };
        for _ in 0..TURNS {
            match rustix::net::recv(socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => {
                    let message = self.buffer.get(..len).unwrap_or_default();
                    if let Some(([kind, _, _, _, _, _, high, low], payload)) = message.split_first_chunk::<HEADER>()
                        && *kind == reply
                    {
                        gate.handle_echo_reply(now, flow, u16::from_be_bytes([*high, *low]), payload);
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(errno) => {
                    if let Some(error) = echo_error(errno, false) {
                        gate.handle_echo_error(now, flow, error);
                    }
                    return;
                }
            }
        }
    }
}

fn connected(poller: &Poller, flow: FlowId, remote: IpAddr) -> Result<OwnedFd, EchoError> {
    let (family, protocol) = match remote {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let refused = |errno| echo_error(errno, true).unwrap_or(EchoError::Resources);
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(protocol)).map_err(refused)?;
    let failed = |errno| echo_error(errno, false).unwrap_or(EchoError::Resources);
    rustix::net::connect(&socket, &SocketAddr::new(remote, 0)).map_err(failed)?;
    poller.add(&socket, Token::Echo(flow), Watch::Read).map_err(|error| failed(errno_of(error)))?;
    Ok(socket)
}
