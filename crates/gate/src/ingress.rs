//! Ways in: connections and datagrams of peers that come to a published port.
//!
//! A peer's TCP connection has been accepted on the host before the gate hears of it. The gate asks the policy, and has the
//! shell connect to the guest from an address that stands for the peer; then relay and table carry it like any other.
//!
//! | State   | Event                       | Next    | Effect                                        |
//! |---------|-----------------------------|---------|-----------------------------------------------|
//! | –       | connection, denied          | –       | the shell resets it                           |
//! | –       | connection, over the rate   | –       | the shell resets it                           |
//! | –       | connection, allowed         | Dialing | dial the guest                                |
//! | Dialing | dialed                      | Live    | the shell relays                              |
//! | Dialing | dial failed                 | –       | the shell resets it                           |
//! | Dialing | [`DIAL_TIMEOUT`]            | –       | abandon the dial, the shell resets it         |
//! | Live    | closed                      | –       |                                               |
//! | any     | its peer is denied now      | –, Live | as for a connection of the guest              |
//!
//! A peer's datagram opens a *mapping*: it goes to the guest from an address that stands for the peer, and what the guest sends
//! to that address from the service's port goes back to the peer, out of the published socket. The policy was asked about the
//! peer and is not asked about answers. A mapping is idle when its peer has sent nothing for [`IDLE_TIMEOUT`], whatever the guest
//! sends: a single datagram under a forged address must not open a way there for as long as the guest likes.
//!
//! **Who stands for the peer.** The peer itself where the guest can answer to it. The gateway's own address stands for peers of
//! the host's loopback, which a service inside might trust, for those of the other family, and for those whose address
//! would be taken for something else on the guest's link, or has been sent to by the guest from the service's own port. Several
//! such peers are told apart by their ports.
//!
//! **Rates and budgets.** A connection is an operation into the sandbox. Datagrams count the way they go, bytes of connections
//! do in the shell. Of the budgets those of the whole run count; destinations are where a guest's own flows lead.
//!
//! Limits: `max_inbound_connections` in all, `max_udp_connections` mappings; at the first a connection is reset, at the second
//! the longest idle mapping makes room.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cofferdam_model::{CloseReason, FlowCounters, FlowId, LimitKind, PortId, Protocol, Time};
use cofferdam_policy::Policy;

use crate::api::{DialError, Output, Published};
use crate::context::{About, Context, DNS_PORT, Decision, Ends, moved};
use crate::hash::Seeded;
use crate::key::Key;
use crate::limits::{BudgetSet, Way};
use crate::progress::{Mark, Moved};
use crate::reply::MAX_SEGMENTS;
use crate::table::{Slot, Table};
use crate::udp::{Mappings, pieces, within};
use crate::wire::ip::IpPacket;
use crate::wire::udp::Datagram;
use crate::wire::virtio::Offload;

/// How long a guest may take to accept: its kernel sits a veth away, so that a SYN goes unanswered only while its backlog is
/// full. After three repetitions (1, 2 and 4 s, RFC 6298 §2).
const DIAL_TIMEOUT: Duration = Duration::from_secs(8);
/// Spec `gateway.md` §4.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Ports of the gateway that stand for peers: the dynamic ones (RFC 6335 §6).
const STAND_INS: std::ops::RangeInclusive<u16> = 49_152..=65_535;
/// Ports that are tried for one peer: with the default bound of mappings, one of them is free. Beyond that a datagram is lost now and
/// then, and its repetition goes on where this one ended.
const TRIES: usize = 1_024;

const DIALING: usize = 0;
const LIVE: usize = 1;

#[derive(Debug)]
pub(crate) struct Peers {
    connections: Table<u64, Connection, 2>,
    mappings: Table<Key, Mapping, 1>,
    /// Mappings by published port and peer.
    by_peer: HashMap<Key, FlowId, Seeded>,
    next_stand_in: u16,
}

#[derive(Debug)]
struct Connection {
    ends: Ends,
    state: State,
}

#[derive(Debug)]
enum State {
    Dialing(About),
    Live { since: Time },
}

#[derive(Debug)]
struct Mapping {
    port: PortId,
    /// The guest and who stands for the peer.
    ends: Ends,
    peer: SocketAddr,
    /// The address of the host that it has sent to.
    local: Option<IpAddr>,
    since: Time,
    counters: FlowCounters,
    mark: Mark,
    budgets: BudgetSet,
}

impl Mapping {
    fn told(&self) -> Ends {
        Ends { guest: self.ends.guest, remote: self.peer }
    }
}

impl Peers {
    pub(crate) fn new(hasher: Seeded) -> Peers {
        // The guest is not to know which port comes next.
        let [first, second, ..] = hasher.hash_one(0_u64).to_le_bytes();
        Peers {
            connections: Table::new(hasher),
            mappings: Table::new(hasher),
            by_peer: HashMap::with_hasher(hasher),
            next_stand_in: u16::from_le_bytes([first, second]) | STAND_INS.start(),
        }
    }

    /// A connection of `peer` was accepted. `None`: reset it.
    pub(crate) fn handle_connection(
        &mut self,
        cx: &mut Context,
        now: Time,
        published: Published,
        peer: SocketAddr,
    ) -> Option<FlowId> {
        let peer = canonical(peer);
        let guest = guest_end(cx, published, peer);
        let ends = Ends { guest, remote: peer };
        let (permit, mut about) = match cx.decide_peer(now, Protocol::Tcp, peer.ip(), published.guest_port.get()) {
            Decision::Allow(permit, about, _) => (permit, about),
            Decision::Deny(about) => {
                cx.report_denied(now, Protocol::Tcp, ends, &about);
                return None;
            }
        };
        if cx.afford_peer(&mut about).is_none() {
            cx.report_denied(now, Protocol::Tcp, ends, &about);
            return None;
        }
        // Its handshake is over, so that nothing would come again as the SYN of a guest does.
        if !cx.limits.admit_connection(now, Way::Ingress) {
            return None;
        }
        let bound = cx.config.limits.max_inbound_connections;
        if let Err((limit, bound)) = cx.find_room(cx.connected.inbound, bound, LimitKind::InboundConnections) {
            cx.limit(now, limit, bound);
            return None;
        }
        let flow = cx.new_flow();
        // A port that the kernel need not search for, also where the gateway stands for the peer.
        let gateway = cx.gateway(guest.ip()).filter(|_| !stands_for_itself(cx, guest, peer));
        let source = SocketAddr::new(gateway.unwrap_or(peer.ip()), peer.port());
        cx.output(Output::DialGuest { flow, source, guest, permit });
        let connection = Connection { ends, state: State::Dialing(about) };
        self.connections.insert(now, DIALING, flow.0, flow, connection);
        Some(flow)
    }

    /// Connections of peers.
    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    /// The dial to the guest has ended. Whether the connection is to be relayed; the other answer is to reset it.
    pub(crate) fn handle_dialed(
        &mut self,
        cx: &mut Context,
        now: Time,
        flow: FlowId,
        result: Result<(), DialError>,
    ) -> bool {
        let Some(slot) = self.connections.find_flow(flow) else { return false };
        match result {
            Ok(()) => {
                let Some((_, connection)) = self.connections.get_mut(slot) else { return false };
                let before = std::mem::replace(&mut connection.state, State::Live { since: now });
                if let State::Dialing(about) = before {
                    cx.report_opened(flow, Protocol::Tcp, connection.ends, &about);
                    cx.limits.open(flow, cx.limits.whole_run());
                }
                self.connections.touch(now, slot, LIVE);
                true
            }
            Err(error) => {
                if error == DialError::Resources {
                    cx.out_of_descriptors(now);
                }
                let Some(removed) = self.connections.remove(slot) else { return false };
                cx.report_failed(flow, Protocol::Tcp, removed.value.ends, &error);
                false
            }
        }
    }

    /// `true` when it was one of these.
    pub(crate) fn handle_closed(
        &mut self,
        cx: &mut Context,
        now: Time,
        flow: FlowId,
        by: CloseReason,
        counters: FlowCounters,
    ) -> bool {
        let Some(removed) = self.connections.find_flow(flow).and_then(|slot| self.connections.remove(slot)) else {
            return false;
        };
        cx.limits.close(flow);
        if let State::Live { since } = removed.value.state {
            cx.report_closed(flow, by, counters, now.since(since));
        }
        true
    }

    /// Datagrams of `peer` came to a published port; with `segment`, a batch of that size. `own`: what the guest has opened itself.
    pub(crate) fn handle_datagram(
        &mut self,
        cx: &mut Context,
        own: &Mappings,
        now: Time,
        (port, published): (PortId, Published),
        (peer, local): (SocketAddr, Option<IpAddr>),
        (payload, segment): (&[u8], Option<u16>),
    ) {
        let peer = canonical(peer);
        let known = self.by_peer.get(&peer_key(port, peer)).and_then(|flow| self.mappings.find_flow(*flow));
        let slot = match known {
            Some(slot) => slot,
            None => match self.admit(cx, own, now, port, published, peer) {
                Some(slot) => slot,
                None => return,
            },
        };
        let Some((flow, mapping)) = self.mappings.get_mut(slot) else { return };
        mapping.local = local;
        let Some(payload) = within(cx, now, mapping.budgets, Way::Ingress, payload, segment) else { return };
        mapping.counters.count_in(payload.len(), pieces(payload, segment, 1).count());
        cx.note(now, flow, &mut mapping.mark, &mapping.counters);
        cx.emit_udp(now, mapping.ends.remote, mapping.ends.guest, payload, segment);
        self.mappings.touch(now, slot, 0);
    }

    fn admit(
        &mut self,
        cx: &mut Context,
        own: &Mappings,
        now: Time,
        port: PortId,
        published: Published,
        peer: SocketAddr,
    ) -> Option<Slot> {
        let guest = guest_end(cx, published, peer);
        let told = Ends { guest, remote: peer };
        let mut about = match cx.decide_peer(now, Protocol::Udp, peer.ip(), published.guest_port.get()) {
            Decision::Allow(_, about, _) => about,
            Decision::Deny(about) => {
                cx.report_denied(now, Protocol::Udp, told, &about);
                return None;
            }
        };
        let Some(budgets) = cx.afford_peer(&mut about) else {
            cx.report_denied(now, Protocol::Udp, told, &about);
            return None;
        };
        let bound = cx.config.limits.max_udp_connections;
        if bound != 0
            && u32::try_from(self.mappings.len()).map_or(true, |len| len >= bound)
            && let Some((oldest, _)) = self.mappings.front(0)
        {
            cx.limit(now, LimitKind::InboundUdpMappings, u64::from(bound));
            self.close(cx, now, oldest, CloseReason::Limit);
        }
        let remote = self.stand_in(cx, own, now, guest, peer)?;
        let ends = Ends { guest, remote };
        let flow = cx.new_flow();
        cx.report_opened(flow, Protocol::Udp, told, &about);
        self.by_peer.insert(peer_key(port, peer), flow);
        let counters = FlowCounters::of_packets();
        let mapping = Mapping { port, ends, peer, local: None, since: now, counters, mark: Mark::default(), budgets };
        Some(self.mappings.insert(now, 0, key(ends), flow, mapping))
    }

    /// Who stands for the peer, so that the guest's answers can be told from all else it sends.
    fn stand_in(
        &mut self,
        cx: &mut Context,
        own: &Mappings,
        now: Time,
        guest: SocketAddr,
        peer: SocketAddr,
    ) -> Option<SocketAddr> {
        let Peers { mappings, next_stand_in, .. } = self;
        let is_free = |remote| {
            let ends = Ends { guest, remote };
            mappings.find(&key(ends)).is_none() && !own.contains(ends)
        };
        // The gateway answers port 53 of any address, so that nobody else can.
        if stands_for_itself(cx, guest, peer) && peer.port() != DNS_PORT && is_free(peer) {
            return Some(peer);
        }
        let gateway = cx.gateway(guest.ip())?;
        for _ in 0..TRIES {
            let remote = SocketAddr::new(gateway, *next_stand_in);
            *next_stand_in = next_stand_in.checked_add(1).unwrap_or(*STAND_INS.start());
            if is_free(remote) {
                return Some(remote);
            }
        }
        cx.limit(now, LimitKind::InboundUdpMappings, 0);
        None
    }

    /// A UDP packet of the guest. `true` when it is an answer to a peer, which is dealt with then.
    pub(crate) fn handle_answer(
        &mut self,
        cx: &mut Context,
        now: Time,
        offload: Offload,
        packet: &IpPacket<'_>,
    ) -> bool {
        if self.mappings.len() == 0 {
            return false;
        }
        // What cannot be read is dropped and counted where it would have gone otherwise.
        let Ok(datagram) = Datagram::parse(packet, offload) else { return false };
        let ends = Ends {
            guest: SocketAddr::new(packet.src, datagram.src_port),
            remote: SocketAddr::new(packet.dst, datagram.dst_port),
        };
        let Some(slot) = self.mappings.find(&key(ends)) else { return false };
        let Some((flow, mapping)) = self.mappings.get_mut(slot) else { return false };
        let segment = offload.udp_segment.map(std::num::NonZeroU16::get);
        let Some(payload) = within(cx, now, mapping.budgets, Way::Egress, datagram.payload, segment) else {
            return true;
        };
        mapping.counters.count_out(payload.len(), pieces(payload, segment, 1).count());
        cx.note(now, flow, &mut mapping.mark, &mapping.counters);
        let Mapping { port, peer, local, .. } = *mapping;
        let fragmentation = packet.fragmentation;
        for piece in pieces(payload, segment, MAX_SEGMENTS) {
            let segment = segment.filter(|size| usize::from(*size) < piece.len());
            cx.output(Output::SendPeer { port, peer, local, payload: piece.to_vec(), segment, fragmentation });
        }
        true
    }

    /// The port is published no more: what it has mapped ends, its connections go on.
    pub(crate) fn handle_withdrawn(&mut self, cx: &mut Context, now: Time, port: PortId) {
        for slot in self.mappings.slots(0) {
            if self.mappings.get_mut(slot).is_some_and(|(_, mapping)| mapping.port == port) {
                self.close(cx, now, slot, CloseReason::Shutdown);
            }
        }
    }

    pub(crate) fn handle_timeout(&mut self, cx: &mut Context, now: Time) {
        while let Some((slot, since)) = self.connections.front(DIALING)
            && since + DIAL_TIMEOUT <= now
        {
            let Some(removed) = self.connections.remove(slot) else { return };
            cx.output(Output::AbandonDial { flow: removed.flow });
            cx.report_failed(removed.flow, Protocol::Tcp, removed.value.ends, &DialError::TimedOut);
        }
        while let Some((slot, touched)) = self.mappings.front(0)
            && touched + IDLE_TIMEOUT <= now
        {
            self.close(cx, now, slot, CloseReason::Idle);
        }
    }

    /// The policy is not the one `before`: ends what is not allowed any more of what is `concerned`, and counts it.
    pub(crate) fn decide_again(
        &mut self,
        cx: &mut Context,
        now: Time,
        before: &Policy,
        concerned: &dyn Fn(IpAddr) -> bool,
    ) -> u64 {
        let mut ended = 0;
        let mut is_denied = |cx: &mut Context, protocol, ends: Ends| {
            let peer = ends.remote.ip();
            if !concerned(peer) && !moved(before, &cx.policy, peer) {
                return false;
            }
            match cx.decide_peer(now, protocol, peer, ends.guest.port()) {
                Decision::Allow(..) => false,
                Decision::Deny(about) => {
                    cx.report_denied(now, protocol, ends, &about);
                    ended += 1;
                    true
                }
            }
        };
        for list in [DIALING, LIVE] {
            for slot in self.connections.slots(list) {
                let Some((flow, connection)) = self.connections.get_mut(slot) else { continue };
                let (ends, is_live) = (connection.ends, matches!(connection.state, State::Live { .. }));
                if !is_denied(cx, Protocol::Tcp, ends) {
                    continue;
                }
                // The entry of a live one goes when the shell says what it has carried.
                if is_live {
                    cx.output(Output::CloseFlow { flow });
                } else {
                    self.connections.remove(slot);
                    cx.output(Output::AbandonDial { flow });
                }
            }
        }
        for slot in self.mappings.slots(0) {
            let Some((_, mapping)) = self.mappings.get_mut(slot) else { continue };
            let told = mapping.told();
            if is_denied(cx, Protocol::Udp, told) {
                self.close(cx, now, slot, CloseReason::Policy);
            }
        }
        ended
    }

    /// There are other budgets: finds those of the live flows.
    pub(crate) fn handle_limits(&mut self, cx: &mut Context) {
        let budgets = cx.limits.whole_run();
        for slot in self.connections.slots(LIVE) {
            if let Some((flow, _)) = self.connections.get_mut(slot) {
                cx.limits.open(flow, budgets);
            }
        }
        for slot in self.mappings.slots(0) {
            if let Some((_, mapping)) = self.mappings.get_mut(slot) {
                mapping.budgets = budgets;
            }
        }
    }

    /// A budget is used up: ends the mappings that have it.
    pub(crate) fn handle_used_up(&mut self, cx: &mut Context, now: Time) {
        for slot in self.mappings.slots(0) {
            if self.mappings.get_mut(slot).is_some_and(|(_, mapping)| cx.limits.is_used_up(mapping.budgets)) {
                self.close(cx, now, slot, CloseReason::Budget);
            }
        }
    }

    /// Ends every mapping.
    pub(crate) fn handle_shutdown(&mut self, cx: &mut Context, now: Time) {
        while let Some((slot, _)) = self.mappings.front(0) {
            self.close(cx, now, slot, CloseReason::Shutdown);
        }
    }

    /// Tells what the flow has moved, if it is one of the mappings.
    pub(crate) fn tell_moved(&mut self, flow: FlowId, moved: &mut Moved) {
        if let Some((_, mapping)) = self.mappings.find_flow(flow).and_then(|slot| self.mappings.get_mut(slot)) {
            moved.add(flow, &mut mapping.mark, mapping.counters);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        let dialing = self.connections.front(DIALING).map(|(_, since)| since + DIAL_TIMEOUT);
        let idle = self.mappings.front(0).map(|(_, touched)| touched + IDLE_TIMEOUT);
        dialing.into_iter().chain(idle).min()
    }

    fn close(&mut self, cx: &mut Context, now: Time, slot: Slot, by: CloseReason) {
        let Some(removed) = self.mappings.remove(slot) else { return };
        let Mapping { port, peer, counters, since, .. } = removed.value;
        self.by_peer.remove(&peer_key(port, peer));
        cx.report_closed(removed.flow, by, counters, now.since(since));
    }
}

/// Where the service is. A published port of one family leads to the guest's address of that family, where it has one.
fn guest_end(cx: &Context, published: Published, peer: SocketAddr) -> SocketAddr {
    let address = match (peer.ip(), cx.config.v6) {
        (IpAddr::V6(_), Some(link)) => IpAddr::V6(link.guest),
        (IpAddr::V6(_), None) | (IpAddr::V4(_), _) => IpAddr::V4(cx.config.v4.guest),
    };
    SocketAddr::new(address, published.guest_port.get())
}

/// Whether the guest may see the peer's own address.
fn stands_for_itself(cx: &Context, guest: SocketAddr, peer: SocketAddr) -> bool {
    let usable = match (guest.ip(), peer.ip()) {
        (IpAddr::V4(_), IpAddr::V4(peer)) => {
            let link = cx.config.v4;
            let mask = u32::MAX.checked_shl(32 - u32::from(link.prefix)).unwrap_or(0);
            let on_link = (peer.to_bits() ^ link.gateway.to_bits()) & mask == 0;
            let special = peer.is_loopback() || peer.is_unspecified() || peer.is_link_local();
            !on_link && !special && !peer.is_multicast() && !peer.is_broadcast()
        }
        (IpAddr::V6(_), IpAddr::V6(peer)) => {
            let special = peer.is_loopback() || peer.is_unspecified() || peer.is_unicast_link_local();
            let on_link = cx.config.v6.is_none_or(|link| {
                // A /64, as every subnet of hosts (RFC 4291 §2.5.1).
                (peer.to_bits() ^ link.gateway.to_bits()) >> 64 == 0
            });
            !on_link && !special && !peer.is_multicast()
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    };
    usable && peer.port() != 0
}

/// A dual-stack socket names IPv4 peers by their IPv4-mapped form; scope and flow label are no part of a peer's name.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn key(ends: Ends) -> Key {
    Key::new(ends.remote.ip(), [ends.remote.port(), ends.guest.port(), 0])
}

fn peer_key(PortId(port): PortId, peer: SocketAddr) -> Key {
    let [a, b, c, d] = port.to_be_bytes();
    Key::new(peer.ip(), [peer.port(), u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])])
}
