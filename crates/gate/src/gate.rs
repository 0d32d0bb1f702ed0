use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_flight::Shown;
use cofferdam_model::{
    CloseReason, DenyWith, DomainName, DropReason, EventBody, FlowCounters, FlowId, LimitKind, LimitsConfig, PortId,
    SocketId, Time,
};
use cofferdam_policy::{PinsFull, Policy};

use crate::api::{
    Accepted, DialError, DnsClient, EchoError, FlightAnswer, Fragmentation, GateConfig, Link4, Output, Published,
    SocketError, UdpError,
};
use crate::context::{self, Connected, Context, DNS_PORT};
use crate::echo::Echoes;
use crate::fragments::Fragments;
use crate::hash::Seeded;
use crate::host_sockets::HostSockets;
use crate::ingress::Peers;
use crate::limits::{Limits, Way};
use crate::progress::Moved;
use crate::tcp::Connections;
use crate::udp::Mappings;
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{IpPacket, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Piece};
use crate::wire::virtio::{self, Offload};

/// The gate of one sandbox.
#[derive(Debug)]
pub struct Gate {
    cx: Context,
    fragments: Fragments,
    connections: Connections,
    mappings: Mappings,
    echoes: Echoes,
    peers: Peers,
    host_sockets: HostSockets,
}

impl Gate {
    /// A gate with empty tables.
    #[must_use]
    pub fn new(config: GateConfig, policy: Arc<Policy>) -> Gate {
        let (numbers, _) = config.seed.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut number = || numbers.next().unwrap_or_default();
        let hasher = Seeded::new([number(), number()]);
        let numbers = [number(), number()];
        Gate {
            cx: Context::new(config, policy, hasher, numbers),
            fragments: Fragments::default(),
            connections: Connections::new(hasher),
            mappings: Mappings::new(hasher),
            echoes: Echoes::new(hasher),
            peers: Peers::new(hasher),
            host_sockets: HostSockets::new(hasher),
        }
    }

    /// One frame as read from the TUN: the ten bytes of `virtio_net_hdr`, then the packet.
    pub fn handle_frame(&mut self, now: Time, frame: &[u8]) {
        let Some((header, packet)) = frame.split_first_chunk::<{ virtio::HEADER_LEN }>() else {
            return self.cx.drop(now, DropReason::Truncated);
        };
        match Offload::parse(header) {
            Some(offload) => self.handle_packet(now, offload, packet),
            None => self.cx.drop(now, DropReason::BadHeader),
        }
    }

    /// One packet that the guest sent.
    pub fn handle_packet(&mut self, now: Time, offload: Offload, packet: &[u8]) {
        let cx = &mut self.cx;
        let packet = match IpPacket::parse(packet) {
            Ok(packet) => packet,
            Err(DropReason::Fragment) => return self.handle_fragment(now, offload, packet),
            Err(reason) => return cx.drop(now, reason),
        };
        self.handle_whole(now, offload, &packet);
    }

    fn count_connected(&mut self) {
        let outward = self.connections.len() + self.host_sockets.len();
        self.cx.connected = Connected { outward, inbound: self.peers.len() };
    }

    fn handle_whole(&mut self, now: Time, offload: Offload, packet: &IpPacket<'_>) {
        self.count_connected();
        let cx = &mut self.cx;
        if let Err(reason) = check_addresses(&cx.config, packet.src, packet.dst) {
            return cx.drop(now, reason);
        }
        match (packet.dst, packet.protocol) {
            (_, PROTO_TCP) => self.connections.handle_segment(cx, now, offload, packet),
            (_, PROTO_UDP) if self.peers.handle_answer(cx, now, offload, packet) => {}
            (_, PROTO_UDP) => self.mappings.handle_packet(cx, now, offload, packet),
            (IpAddr::V4(_), PROTO_ICMP) | (IpAddr::V6(_), PROTO_ICMPV6) => {
                self.echoes.handle_packet(cx, now, offload, packet);
            }
            (_, _) => {
                cx.drop(now, DropReason::UnsupportedProtocol);
                cx.emit_error_from(packet.dst, packet.src, IcmpError::UnknownProtocol, packet.bytes);
            }
        }
    }

    /// A piece of a packet. The last one brings the whole, which is looked at as if it had come so.
    fn handle_fragment(&mut self, now: Time, offload: Offload, packet: &[u8]) {
        let cx = &mut self.cx;
        let piece = match Piece::parse(packet) {
            Ok(piece) => piece,
            Err(reason) => return cx.drop(now, reason),
        };
        // Before the piece is kept: a forged source must not even cost memory.
        if let Err(reason) = check_addresses(&cx.config, piece.src, piece.dst) {
            return cx.drop(now, reason);
        }
        let Some(whole) = self.fragments.join(cx, now, offload, &piece) else { return };
        match IpPacket::parse(&whole) {
            // It was cut up once, and may be again.
            Ok(packet) => {
                let packet = IpPacket { fragmentation: Fragmentation::Allowed, ..packet };
                self.handle_whole(now, Offload::NONE, &packet);
            }
            Err(reason) => cx.drop(now, reason),
        }
    }

    /// The dial of `flow` has ended.
    pub fn handle_dialed(&mut self, now: Time, flow: FlowId, result: Result<(), DialError>) {
        self.connections.handle_dialed(&mut self.cx, now, flow, result);
    }

    /// A connection was accepted: `guest` is its peer, `remote` the address it was made to. `None`: reset it.
    pub fn handle_accepted(&mut self, now: Time, guest: SocketAddr, remote: SocketAddr) -> Option<Accepted> {
        self.connections.handle_accepted(&mut self.cx, now, guest, remote)
    }

    /// What the guest wants to send on an accepted flow shows this: its first flight, or another request.
    ///
    /// After a denial nothing more of the guest may go on, and the flow has to be ended.
    pub fn handle_flight(&mut self, now: Time, flow: FlowId, shown: &Shown) -> FlightAnswer {
        self.connections.handle_flight(&mut self.cx, now, flow, shown)
    }

    /// An accepted TCP flow has ended, relayed or DNS.
    pub fn handle_closed(&mut self, now: Time, flow: FlowId, by: CloseReason, counters: FlowCounters) {
        if self.host_sockets.handle_closed(&mut self.cx, now, flow, by, counters) {
            return;
        }
        if !self.peers.handle_closed(&mut self.cx, now, flow, by, counters) {
            self.connections.handle_closed(&mut self.cx, now, flow, by, counters);
        }
    }

    /// A connection to a published port was accepted. The flow that it is, and what is to be done about it; `None`: reset it,
    /// so that the peer sees `ECONNRESET`.
    pub fn handle_peer(&mut self, now: Time, published: Published, peer: SocketAddr) -> Option<FlowId> {
        self.count_connected();
        self.peers.handle_connection(&mut self.cx, now, published, peer)
    }

    /// The dial to the guest has ended. `true`: relay the two; `false`: reset the peer's connection.
    pub fn handle_guest_dialed(&mut self, now: Time, flow: FlowId, result: Result<(), DialError>) -> bool {
        self.peers.handle_dialed(&mut self.cx, now, flow, result)
    }

    /// A connection of the guest to this socket of the host was accepted, from the process `who` where that is known. The flow that
    /// it is, and what is to be done about it; `None`: close it.
    pub fn handle_socket(&mut self, now: Time, socket: SocketId, who: Option<u32>) -> Option<FlowId> {
        self.count_connected();
        self.host_sockets.handle_connection(&mut self.cx, now, socket, who)
    }

    /// An attempt to connect to the host's socket has ended. `true`: relay the two; `false`: keep or close the guest's, as the
    /// next outputs say.
    pub fn handle_socket_dialed(&mut self, now: Time, flow: FlowId, result: Result<(), SocketError>) -> bool {
        self.host_sockets.handle_dialed(&mut self.cx, now, flow, result)
    }

    /// Datagrams of a peer came to the published UDP port `port`, to this address of the host if it is known; with `segment`, a
    /// batch of that size.
    pub fn handle_peer_datagram(
        &mut self,
        now: Time,
        (port, published): (PortId, Published),
        (peer, local): (SocketAddr, Option<IpAddr>),
        payload: &[u8],
        segment: Option<u16>,
    ) {
        self.peers.handle_datagram(
            &mut self.cx,
            &self.mappings,
            now,
            (port, published),
            (peer, local),
            (payload, segment),
        );
    }

    /// A port is published no more. Its connections go on, its UDP peers are forgotten.
    pub fn handle_withdrawn(&mut self, now: Time, port: PortId) {
        self.peers.handle_withdrawn(&mut self.cx, now, port);
    }

    /// The flow's UDP socket received `payload`; with `segment`, a batch of datagrams of that size.
    pub fn handle_udp_reply(&mut self, now: Time, flow: FlowId, payload: &[u8], segment: Option<u16>) {
        self.mappings.handle_reply(&mut self.cx, now, flow, payload, segment);
    }

    /// The flow's UDP socket could not be opened: the mapping ends, and the next datagram tries again.
    pub fn handle_udp_failed(&mut self, now: Time, flow: FlowId, error: UdpError) {
        self.mappings.handle_failed(&mut self.cx, now, flow, error);
    }

    /// The flow's UDP socket reported an error: the guest is told, the mapping stays.
    pub fn handle_udp_error(&mut self, now: Time, flow: FlowId, error: UdpError) {
        self.mappings.handle_error(&mut self.cx, now, flow, error);
    }

    /// The flow's ICMP socket received an echo reply.
    pub fn handle_echo_reply(&mut self, now: Time, flow: FlowId, sequence: u16, payload: &[u8]) {
        self.echoes.handle_reply(&mut self.cx, now, flow, sequence, payload);
    }

    /// The flow's ICMP socket could not be opened: the flow ends, and the next request tries again.
    pub fn handle_echo_failed(&mut self, now: Time, flow: FlowId, error: EchoError) {
        self.echoes.handle_failed(&mut self.cx, now, flow, error);
    }

    /// The flow's ICMP socket reported an error: the guest is told, the flow stays.
    pub fn handle_echo_error(&mut self, now: Time, flow: FlowId, error: EchoError) {
        self.echoes.handle_error(&mut self.cx, now, flow, error);
    }

    /// The resolver's answer to a UDP query of the guest.
    pub fn handle_dns_answer(&mut self, now: Time, query: DnsClient, message: &[u8]) {
        let ours = is_guest(&self.cx.config, query.guest.ip()) && query.server.port() == DNS_PORT;
        if !ours {
            return self.cx.drop(now, DropReason::Unexpected);
        }
        // Nothing of the gateway's own is slowed down, but it counts.
        if self.cx.limits.admit_dns(Way::Ingress, message.len()) {
            self.cx.emit_udp(now, query.server, query.guest, message, None);
        }
    }

    /// The sandbox's DNS has told the guest that `name` has `address`.
    ///
    /// # Errors
    /// When the table of pins is full; the answer must not be delivered then.
    pub fn handle_pin(
        &mut self,
        now: Time,
        name: &DomainName,
        alias: bool,
        address: IpAddr,
        ttl: Duration,
    ) -> Result<(), PinsFull> {
        self.cx.pins.insert(now, name, alias, address, ttl)
    }

    /// The machine's addresses have changed: `policy` has the rules of the one in force and another classifier.
    ///
    /// Flows to addresses that are in another group from here on are decided anew, and those that are denied are closed and
    /// reported; the others do not notice. Names bound to such an address are no reason to allow it until they are asked
    /// for again, since the look-up was judged by the former group.
    pub fn handle_reclassified(&mut self, now: Time, policy: Arc<Policy>) {
        let before = self.cx.reclassify(now, policy);
        let after = Arc::clone(&self.cx.policy);
        self.decide_again(now, &before, &|address| context::moved(&before, &after, address));
    }

    /// Other rules are in force from here on. Every flow is decided anew: those that are denied are closed and reported, the
    /// others do not notice. `policy` has the classifier of the one in force.
    pub fn handle_policy(&mut self, now: Time, policy: Arc<Policy>) {
        let rules = u64::try_from(policy.rules().len()).unwrap_or(u64::MAX);
        let before = self.cx.replace_policy(now, policy);
        let ended = self.decide_again(now, &before, &|_| true);
        self.cx.event(EventBody::PolicyChanged { rules, ended });
    }

    /// Some TCP flow has moved something. In a second, [`Output::AskMoved`] asks which, and how much.
    pub fn handle_movement(&mut self, now: Time) {
        self.cx.progress.note(now);
    }

    /// What the TCP flows have moved.
    pub fn handle_moved(&mut self, mut moved: Moved) {
        for flow in self.cx.movers.take(&mut moved) {
            self.mappings.tell_moved(flow, &mut moved);
            self.echoes.tell_moved(flow, &mut moved);
            self.peers.tell_moved(flow, &mut moved);
        }
        if let Some(event) = moved.into_event() {
            self.cx.event(event);
        }
    }

    /// The shell refused something at a bound of its own.
    pub fn handle_limit(&mut self, now: Time, limit: LimitKind, bound: u64) {
        self.cx.limit(now, limit, bound);
    }

    /// Names that are bound to addresses from here on stay so for `floor` at least.
    pub fn handle_pin_floor(&mut self, floor: Duration) {
        self.cx.pins.set_floor(floor);
    }

    /// Denied flows are told so in this way from here on.
    pub fn handle_deny_with(&mut self, deny_with: DenyWith) {
        self.cx.config.deny_with = deny_with;
    }

    /// Decides the flows to addresses for which `concerns` says so again, and returns how many have ended by that.
    fn decide_again(&mut self, now: Time, before: &Policy, concerns: &dyn Fn(IpAddr) -> bool) -> u64 {
        let Gate { cx, connections, mappings, echoes, peers, .. } = self;
        connections.decide_again(cx, now, before, concerns)
            + mappings.decide_again(cx, now, before, concerns)
            + echoes.decide_again(cx, now, before, concerns)
            + peers.decide_again(cx, now, before, concerns)
    }

    /// The limits, for the shell to ask before it reads from the sockets of a TCP flow.
    pub fn limits(&mut self) -> &mut Limits {
        &mut self.cx.limits
    }

    /// Limits were asked for: reports those that were reached, and ends the flows whose budget is used up.
    pub fn handle_limited(&mut self, now: Time) {
        if !self.cx.limits.has_news() || !self.cx.tell_limits(now) {
            return;
        }
        for flow in self.cx.limits.flows_used_up() {
            self.cx.output(Output::CloseUsedUp { flow });
        }
        self.mappings.handle_used_up(&mut self.cx, now);
        self.echoes.handle_used_up(&mut self.cx, now);
        self.peers.handle_used_up(&mut self.cx, now);
    }

    /// Other limits take the place of those in force. Debts stay, and what budgets have spent; flows that are open stay too,
    /// whatever the bounds,
    /// and count against the new budgets by their address and the names that it has now.
    pub fn handle_limits(&mut self, now: Time, limits: LimitsConfig) {
        self.cx.limits.replace(now, &limits);
        self.cx.config.limits = limits;
        self.connections.handle_limits(&mut self.cx, now);
        self.mappings.handle_limits(&mut self.cx, now);
        self.echoes.handle_limits(&mut self.cx, now);
        self.peers.handle_limits(&mut self.cx);
        self.host_sockets.handle_limits(&mut self.cx);
    }

    /// A deadline has passed.
    pub fn handle_timeout(&mut self, now: Time) {
        self.cx.held.release(Some(now), &mut self.cx.outputs);
        self.fragments.handle_timeout(&mut self.cx, now);
        self.connections.handle_timeout(&mut self.cx, now);
        self.mappings.handle_timeout(&mut self.cx, now);
        self.echoes.handle_timeout(&mut self.cx, now);
        self.peers.handle_timeout(&mut self.cx, now);
        self.host_sockets.handle_timeout(&mut self.cx, now);
        if self.cx.progress.take_due(now) {
            self.cx.output(Output::AskMoved);
        }
        for event in self.cx.reports.due(now) {
            self.cx.event(event);
        }
    }

    /// The gateway ends: reports what is counted but not told yet and ends the UDP and ICMP flows that are still open.
    pub fn handle_shutdown(&mut self, now: Time) {
        self.cx.held.release(None, &mut self.cx.outputs);
        self.mappings.handle_shutdown(&mut self.cx, now);
        self.echoes.handle_shutdown(&mut self.cx, now);
        self.peers.handle_shutdown(&mut self.cx, now);
        for event in self.cx.reports.rest() {
            self.cx.event(event);
        }
    }

    /// What to do next; drain to `None` after each `handle_*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.cx.outputs.pop_front()
    }

    /// When to call [`Gate::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let deadlines = [
            self.fragments.deadline(),
            self.connections.deadline(&self.cx),
            self.mappings.deadline(),
            self.echoes.deadline(),
            self.peers.deadline(),
            self.host_sockets.deadline(),
            self.cx.reports.deadline(),
            self.cx.progress.deadline(),
            self.cx.held.deadline(),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// The policy that is in force.
    #[must_use]
    pub fn policy(&self) -> &Arc<Policy> {
        &self.cx.policy
    }
}

/// Lets a packet pass that the guest sent under its own address to one that can be a remote.
///
/// The kernel has filtered sources already, and this is the wall behind that wall. Packets for addresses that name no
/// single remote end here without an answer, whatever the policy says: nothing may reach the host's loopback or a
/// group of hosts, and nobody answers for them.
fn check_addresses(config: &GateConfig, src: IpAddr, dst: IpAddr) -> Result<(), DropReason> {
    if !is_guest(config, src) {
        return Err(DropReason::ForgedSource);
    }
    let usable = match dst {
        IpAddr::V4(dst) => {
            let nowhere = dst.is_loopback() || dst.is_unspecified() || dst.is_multicast() || dst.is_broadcast();
            !nowhere && dst != config.v4.guest && !is_broadcast_of(config.v4, dst)
        }
        IpAddr::V6(dst) => {
            let nowhere = dst.is_loopback() || dst.is_unspecified() || dst.is_multicast();
            // IPv4-mapped addresses stay within a host (RFC 4942 §2.2): on the wire they are an attack.
            !nowhere && dst.to_ipv4_mapped().is_none() && config.v6.is_none_or(|link| dst != link.guest)
        }
    };
    if usable { Ok(()) } else { Err(DropReason::UnusableAddress) }
}

fn is_guest(config: &GateConfig, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address == config.v4.guest,
        IpAddr::V6(address) => config.v6.is_some_and(|link| link.guest == address),
    }
}

/// Whether `dst` is the link's broadcast address, in today's form or with a host part of zeros (RFC 1122 §3.2.1.3).
/// Links of two addresses (RFC 3021) have none.
fn is_broadcast_of(link: Link4, dst: Ipv4Addr) -> bool {
    if link.prefix >= 31 {
        return false;
    }
    let mask = u32::MAX.checked_shl(32 - u32::from(link.prefix)).unwrap_or(0);
    let network = link.gateway.to_bits() & mask;
    dst.to_bits() == network || dst.to_bits() == network | !mask
}
