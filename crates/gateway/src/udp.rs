//! The host's side of UDP mappings: one connected socket each.
//!
//! Datagrams are small and many, so both directions work in rows: what the guest sends to one remote in one turn goes out
//! with one `UDP_SEGMENT` send as long as the sizes are equal, and what a remote sends is handed to the gate as one row
//! of equal datagrams, which becomes one write to the TUN. The borders between datagrams stay where they were.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use cofferdam_gate::{Fragmentation, Gate, UdpError};
use cofferdam_model::{FlowId, Time};
use cofferdam_policy::Permit;
use cofferdam_sys::datagram::{self, Datagram, Inbox};
use cofferdam_sys::socket;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::errno;
use crate::hash::FlowHash;
use crate::path::Path;
use crate::poller::{Poller, Ready, Token, Watch};

/// Datagrams in one row; Linux allowed 64 until 6.9 (`UDP_MAX_SEGMENTS`).
const ROW: usize = 64;

/// Payload bytes in one row: what fits into one IPv4 packet.
const ROW_BYTES: usize = 65_507;

/// Larger datagrams than this gain nothing from rows and may not fit the path as segments.
const SEGMENT: usize = 1_472;

/// Receive calls per socket and turn.
const TURNS: usize = 4;

/// Entries taken off an error queue per turn.
const ERRORS: usize = 16;

pub(crate) struct Udp {
    sockets: HashMap<FlowId, (OwnedFd, Path), FlowHash>,
    row: Row,
    inbox: Inbox,
    joined: Vec<u8>,
    /// Cleared for good when the kernel refuses to segment.
    segmentation: bool,
}

/// What the datagrams of a row have in common: the flow, and whether they may be cut up.
type Lane = (FlowId, Fragmentation);

/// Datagrams of one lane on their way out: all of `size` bytes, the last one possibly shorter.
#[derive(Default)]
struct Row {
    lane: Option<Lane>,
    size: usize,
    count: usize,
    closed: bool,
    payload: Vec<u8>,
}

impl Udp {
    pub(crate) fn new() -> Udp {
        Udp {
            sockets: HashMap::default(),
            row: Row::default(),
            inbox: Inbox::new(),
            joined: Vec::new(),
            segmentation: true,
        }
    }

    /// Opens the socket of a mapping. The permit is used up.
    pub(crate) fn open(
        &mut self,
        poller: &Poller,
        flow: FlowId,
        remote: SocketAddr,
        _permit: Permit,
    ) -> Result<(), UdpError> {
        let socket = connected(poller, flow, remote)
            .map_err(|errno| errno::udp_error(errno, 0).unwrap_or(UdpError::Resources))?;
        self.sockets.insert(flow, (socket, Path::new(remote.is_ipv6())));
        Ok(())
    }

    pub(crate) fn close(&mut self, gate: &mut Gate, now: Time, flow: FlowId) {
        self.flush(gate, now);
        self.sockets.remove(&flow);
    }

    /// Puts a datagram, or a row of them, on its way; it may wait until [`Udp::flush`].
    pub(crate) fn send(&mut self, gate: &mut Gate, now: Time, lane: Lane, payload: &[u8], segment: Option<u16>) {
        let size = segment.map_or(payload.len(), usize::from);
        if !self.segmentation || size == 0 || size > SEGMENT {
            self.flush(gate, now);
            self.send_apart(gate, now, lane, payload, size);
            return;
        }
        for datagram in payload.chunks(size) {
            if !self.row.takes(lane, datagram.len()) {
                self.flush(gate, now);
            }
            self.row.add(lane, datagram);
        }
    }

    /// Sends the row that is waiting.
    pub(crate) fn flush(&mut self, gate: &mut Gate, now: Time) {
        let Some(lane) = self.row.lane.take() else { return };
        let row = std::mem::take(&mut self.row);
        if row.count == 1 {
            self.send_apart(gate, now, lane, &row.payload, row.size);
        } else if let (flow, fragmentation) = lane
            && let Some((socket, path)) = self.sockets.get_mut(&flow)
        {
            path.prepare(&*socket, row.size, fragmentation);
            let segment = u16::try_from(row.size).ok();
            match datagram::send(socket, &row.payload, segment).map_err(errno_of) {
                Ok(()) | Err(Errno::AGAIN) => {}
                Err(Errno::INVAL | Errno::IO | Errno::OPNOTSUPP) => {
                    self.segmentation = false;
                    self.send_apart(gate, now, lane, &row.payload, row.size);
                }
                // Too big as segments, or an earlier datagram's error: each one for itself finds out.
                Err(_) => self.send_apart(gate, now, lane, &row.payload, row.size),
            }
        }
        self.row.payload = row.payload;
        self.row.payload.clear();
    }

    /// Sends datagrams of `size` bytes one by one.
    fn send_apart(&mut self, gate: &mut Gate, now: Time, lane: Lane, payload: &[u8], size: usize) {
        let (flow, fragmentation) = lane;
        let Some((socket, path)) = self.sockets.get_mut(&flow) else { return };
        path.prepare(&*socket, size, fragmentation);
        let mut send = |datagram: &[u8]| {
            // The first error may belong to an earlier datagram (udp(7)): it is told, and this one has its own attempt.
            let mut told = None;
            for _ in 0..2 {
                let Err(error) = datagram::send(&*socket, datagram, None) else { return };
                let Some(error) = errno::udp_error(errno_of(error), path.mtu(&*socket)) else { return };
                if told.replace(error) != Some(error) {
                    gate.handle_udp_error(now, flow, error);
                }
            }
        };
        if size == 0 {
            send(payload);
        } else {
            payload.chunks(size).for_each(send);
        }
    }

    /// A socket has datagrams or errors.
    pub(crate) fn handle_ready(&mut self, gate: &mut Gate, now: Time, flow: FlowId, ready: Ready) {
        let Some((socket, _)) = self.sockets.get(&flow) else { return };
        if ready.error {
            for _ in 0..ERRORS {
                let Some(error) = socket::take_queued_error(socket) else { break };
                // What this machine itself refused, the sender was told when it sent.
                if !error.is_local
                    && let Some(error) = errno::queued_udp_error(error)
                {
                    gate.handle_udp_error(now, flow, error);
                }
            }
            // Reading SO_ERROR clears what the queue has already told.
            let _ = rustix::net::sockopt::socket_error(socket);
        }
        for _ in 0..TURNS {
            match self.inbox.recv(socket) {
                Ok(count) => {
                    hand_over(gate, now, flow, &self.inbox, &mut self.joined);
                    if count < datagram::BATCH {
                        break;
                    }
                }
                Err(error) => {
                    if let Some(error) = errno::udp_error(errno_of(error), 0) {
                        gate.handle_udp_error(now, flow, error);
                    }
                    break;
                }
            }
        }
    }
}

impl Row {
    /// Whether a datagram may stand behind those that wait.
    fn takes(&self, lane: Lane, len: usize) -> bool {
        match self.lane {
            None => true,
            Some(own) => {
                own == lane
                    && !self.closed
                    && len <= self.size
                    && self.count < ROW
                    && self.payload.len() + len <= ROW_BYTES
            }
        }
    }

    fn add(&mut self, lane: Lane, datagram: &[u8]) {
        if self.lane.is_none() {
            self.lane = Some(lane);
            self.size = datagram.len();
        }
        self.count += 1;
        self.closed = datagram.len() < self.size;
        self.payload.extend_from_slice(datagram);
    }
}

/// Gives received datagrams to the gate, equal ones in rows.
fn hand_over(gate: &mut Gate, now: Time, flow: FlowId, inbox: &Inbox, joined: &mut Vec<u8>) {
    let (mut size, mut count) = (0, 0);
    joined.clear();
    for Datagram { payload, segment, .. } in inbox.iter() {
        let fits = count > 0
            && segment.is_none()
            && payload.len() == size
            && size > 0
            && size <= SEGMENT
            && count < ROW
            && joined.len() + size <= ROW_BYTES;
        if fits {
            joined.extend_from_slice(payload);
            count += 1;
            continue;
        }
        hand_over_row(gate, now, flow, joined, size, count);
        joined.clear();
        if segment.is_some() {
            gate.handle_udp_reply(now, flow, payload, segment);
            count = 0;
        } else {
            joined.extend_from_slice(payload);
            (size, count) = (payload.len(), 1);
        }
    }
    hand_over_row(gate, now, flow, joined, size, count);
}

fn hand_over_row(gate: &mut Gate, now: Time, flow: FlowId, joined: &[u8], size: usize, count: usize) {
    match count {
        0 => {}
        1 => gate.handle_udp_reply(now, flow, joined, None),
        _ => gate.handle_udp_reply(now, flow, joined, u16::try_from(size).ok()),
    }
}

fn connected(poller: &Poller, flow: FlowId, remote: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if remote.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    rustix::net::connect(&socket, &remote)?;
    // Both only help: without the error queue fewer errors are told, without GRO each datagram comes alone.
    let _ = socket::enable_error_queue(&socket, remote.is_ipv6());
    let _ = socket::enable_udp_gro(&socket);
    poller.add(&socket, Token::Udp(flow), Watch::Read).map_err(errno_of)?;
    Ok(socket)
}

pub(crate) fn errno_of(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
