//! UDP mappings.
//!
//! A *mapping* is what the guest sends from one address and port to one remote address and port, and the replies: mapping
//! and filtering are address- and port-dependent (RFC 4787 §4.1, §5). The first datagram asks the policy; the permit it
//! gets opens one connected host socket, which lives as long as the mapping. Datagrams may follow at once: the shell
//! gets them in order behind the order to open.
//!
//! | State   | Event                            | Next    | Effect                               |
//! |---------|----------------------------------|---------|--------------------------------------|
//! | –       | datagram, denied                 | –       | ICMP prohibited or nothing           |
//! | –       | datagram to port 53, allowed     | –       | to the resolver                      |
//! | –       | datagram, allowed                | OneWay  | open, send                           |
//! | OneWay  | datagram                         | OneWay  | send                                 |
//! | OneWay  | reply                            | BothWays| emit                                 |
//! | BothWays| datagram, reply                  | BothWays| send, emit                           |
//! | any     | error of the socket              | same    | ICMP about the guest's last datagram |
//! | any     | no socket to be had              | –       | ICMP about the guest's last datagram |
//! | OneWay  | idle for [`ONE_WAY_TIMEOUT`]     | –       | close                                |
//! | BothWays| idle for [`BOTH_WAYS_TIMEOUT`]   | –       | close                                |
//! | any     | its address is denied now        | –       | close                                |
//!
//! Limits: `max_udp_connections` mappings; at it the longest idle one makes room. Fragments were joined before.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use cofferdam_model::{CloseReason, DenyWith, DropReason, FlowCounters, FlowId, LimitKind, Protocol, Time};

use crate::api::{DnsClient, Fragmentation, Output, UdpError};
use crate::context::{About, Context, DNS_PORT, Decision, Ends};
use crate::hash::Seeded;
use crate::key::Key;
use crate::quote::Quote;
use crate::reply::MAX_SEGMENTS;
use crate::table::{Slot, Table};
use crate::wire::icmp::IcmpError;
use crate::wire::ip::IpPacket;
use crate::wire::udp::Datagram;
use crate::wire::virtio::Offload;

/// Spec `gateway.md` §3, as Linux has it (`nf_conntrack_udp_timeout` is 30 s, RFC 4787 REQ-5 asks for more).
const ONE_WAY_TIMEOUT: Duration = Duration::from_secs(60);
/// RFC 4787 REQ-5: two minutes at least.
const BOTH_WAYS_TIMEOUT: Duration = Duration::from_secs(120);

const ONE_WAY: usize = 0;
const BOTH_WAYS: usize = 1;

#[derive(Debug)]
pub(crate) struct Mappings {
    table: Table<Key, Mapping, 2>,
}

#[derive(Debug)]
struct Mapping {
    ends: Ends,
    since: Time,
    counters: FlowCounters,
    replied: bool,
    /// Of the guest's last datagram, for ICMP errors.
    quote: Quote,
}

impl Mapping {
    fn list(&self) -> usize {
        if self.replied { BOTH_WAYS } else { ONE_WAY }
    }
}

impl Mappings {
    pub(crate) fn new(hasher: Seeded) -> Mappings {
        Mappings { table: Table::new(hasher) }
    }

    /// A UDP packet of the guest: one datagram, or a batch of them.
    pub(crate) fn handle_packet(&mut self, cx: &mut Context, now: Time, offload: Offload, packet: &IpPacket<'_>) {
        let datagram = match Datagram::parse(packet, offload) {
            Ok(datagram) => datagram,
            Err(reason) => return cx.drop(now, reason),
        };
        let ends = Ends {
            guest: SocketAddr::new(packet.src, datagram.src_port),
            remote: SocketAddr::new(packet.dst, datagram.dst_port),
        };
        let segment = offload.udp_segment.map(NonZeroU16::get);
        let slot = match self.table.find(&key(ends)) {
            Some(slot) => slot,
            None => match self.admit(cx, now, ends, packet, datagram.payload, segment) {
                Some(slot) => slot,
                None => return,
            },
        };
        let Some((flow, mapping)) = self.table.get_mut(slot) else { return };
        mapping.quote = Quote::of(packet);
        mapping.counters.bytes_out = mapping.counters.bytes_out.saturating_add(length(datagram.payload));
        let list = mapping.list();
        send(cx, flow, datagram.payload, segment, packet.fragmentation);
        self.table.touch(now, slot, list);
    }

    /// The first packet of a mapping: asks the policy and opens it. `None`: there is nothing to send.
    fn admit(
        &mut self,
        cx: &mut Context,
        now: Time,
        ends: Ends,
        packet: &IpPacket<'_>,
        payload: &[u8],
        segment: Option<u16>,
    ) -> Option<Slot> {
        let ask = |cx: &mut Context| {
            let query = DnsClient { guest: ends.guest, server: ends.remote };
            for message in pieces(payload, segment, 1) {
                cx.output(Output::Dns { query, message: message.to_vec() });
            }
        };
        // Whether a question may be asked is decided by its name, in the resolver.
        if cx.is_resolver(ends.remote) {
            ask(cx);
            return None;
        }
        let (permit, about) = match cx.decide(now, Protocol::Udp, ends.remote.ip(), Some(ends.remote.port())) {
            Decision::Allow(permit, about) => (permit, about),
            Decision::Deny(about) => {
                refuse(cx, now, Protocol::Udp, ends, packet, &about);
                return None;
            }
        };
        if ends.remote.port() == DNS_PORT {
            ask(cx);
            return None;
        }
        self.make_room(cx, now);
        let flow = cx.new_flow();
        let remote = match cx.host_alias(ends.remote.ip()) {
            Some(loopback) => SocketAddr::new(loopback, ends.remote.port()),
            None => ends.remote,
        };
        cx.output(Output::OpenUdp { flow, remote, permit });
        cx.report_opened(flow, Protocol::Udp, ends, &about);
        let counters = FlowCounters::default();
        let mapping = Mapping { ends, since: now, counters, replied: false, quote: Quote::of(packet) };
        Some(self.table.insert(now, ONE_WAY, key(ends), flow, mapping))
    }

    fn make_room(&mut self, cx: &mut Context, now: Time) {
        let bound = cx.config.limits.max_udp_connections;
        if bound == 0 || u32::try_from(self.table.len()).is_ok_and(|len| len < bound) {
            return;
        }
        let fronts = [ONE_WAY, BOTH_WAYS].into_iter().filter_map(|list| self.table.front(list));
        if let Some((slot, _)) = fronts.min_by_key(|(_, touched)| *touched) {
            cx.limit(now, LimitKind::UdpMappings, u64::from(bound));
            self.close(cx, now, slot, CloseReason::Limit);
        }
    }

    pub(crate) fn handle_reply(
        &mut self,
        cx: &mut Context,
        now: Time,
        flow: FlowId,
        payload: &[u8],
        segment: Option<u16>,
    ) {
        let Some(slot) = self.table.find_flow(flow) else { return cx.drop(now, DropReason::Unexpected) };
        let Some((_, mapping)) = self.table.get_mut(slot) else { return };
        mapping.replied = true;
        mapping.counters.bytes_in = mapping.counters.bytes_in.saturating_add(length(payload));
        cx.emit_udp(now, mapping.ends.remote, mapping.ends.guest, payload, segment);
        self.table.touch(now, slot, BOTH_WAYS);
    }

    /// The socket reported an error. Only what says that there is no socket ends the mapping: RFC 4787 REQ-12 has a
    /// mapping survive every ICMP message.
    pub(crate) fn handle_error(&mut self, cx: &mut Context, now: Time, flow: FlowId, error: UdpError) {
        if error == UdpError::Resources {
            return self.handle_failed(cx, now, flow, error);
        }
        let Some(slot) = self.table.find_flow(flow) else { return };
        let Some((_, mapping)) = self.table.get_mut(slot) else { return };
        tell(cx, now, mapping, error);
    }

    /// The socket could not be opened.
    pub(crate) fn handle_failed(&mut self, cx: &mut Context, now: Time, flow: FlowId, error: UdpError) {
        let Some(removed) = self.table.find_flow(flow).and_then(|slot| self.table.remove(slot)) else { return };
        cx.outputs.retain(|output| !matches!(output, Output::SendUdp { flow: other, .. } if *other == flow));
        cx.output(Output::CloseUdp { flow });
        tell(cx, now, &removed.value, error);
        cx.report_failed(flow, Protocol::Udp, removed.value.ends, &error);
    }

    pub(crate) fn handle_timeout(&mut self, cx: &mut Context, now: Time) {
        for (list, timeout) in TIMEOUTS {
            while let Some((slot, touched)) = self.table.front(list)
                && touched + timeout <= now
            {
                self.close(cx, now, slot, CloseReason::Idle);
            }
        }
    }

    /// Addresses have moved to other groups: ends what is not allowed any more. The next datagram is told why.
    pub(crate) fn handle_reclassified(&mut self, cx: &mut Context, now: Time, moved: &dyn Fn(IpAddr) -> bool) {
        for (list, _) in TIMEOUTS {
            for slot in self.table.slots(list) {
                let Some((_, mapping)) = self.table.get_mut(slot) else { continue };
                let ends = mapping.ends;
                if moved(ends.remote.ip()) && !cx.still_allows(now, Protocol::Udp, ends) {
                    self.close(cx, now, slot, CloseReason::Policy);
                }
            }
        }
    }

    /// Ends every mapping.
    pub(crate) fn handle_shutdown(&mut self, cx: &mut Context, now: Time) {
        for (list, _) in TIMEOUTS {
            while let Some((slot, _)) = self.table.front(list) {
                self.close(cx, now, slot, CloseReason::Shutdown);
            }
        }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        let fronts = TIMEOUTS.into_iter().filter_map(|(list, timeout)| Some(self.table.front(list)?.1 + timeout));
        fronts.min()
    }

    fn close(&mut self, cx: &mut Context, now: Time, slot: Slot, by: CloseReason) {
        let Some(removed) = self.table.remove(slot) else { return };
        cx.output(Output::CloseUdp { flow: removed.flow });
        cx.report_closed(removed.flow, by, removed.value.counters, now.since(removed.value.since));
    }
}

const TIMEOUTS: [(usize, Duration); 2] = [(ONE_WAY, ONE_WAY_TIMEOUT), (BOTH_WAYS, BOTH_WAYS_TIMEOUT)];

/// Reports a denied datagram or echo request and tells the guest.
pub(crate) fn refuse(
    cx: &mut Context,
    now: Time,
    protocol: Protocol,
    ends: Ends,
    packet: &IpPacket<'_>,
    about: &About,
) {
    cx.report_denied(now, protocol, ends, about);
    match cx.config.deny_with {
        DenyWith::Reset | DenyWith::Icmp => cx.emit_error(packet.src, IcmpError::Prohibited, packet.bytes),
        DenyWith::Drop => {}
    }
}

fn send(cx: &mut Context, flow: FlowId, payload: &[u8], segment: Option<u16>, fragmentation: Fragmentation) {
    for piece in pieces(payload, segment, MAX_SEGMENTS) {
        let segment = segment.filter(|size| usize::from(*size) < piece.len());
        cx.output(Output::SendUdp { flow, payload: piece.to_vec(), segment, fragmentation });
    }
}

/// A payload cut into pieces of up to `count` segments. An empty datagram is one piece.
fn pieces(payload: &[u8], segment: Option<u16>, count: usize) -> impl Iterator<Item = &[u8]> {
    let size = segment.map_or(payload.len(), |size| usize::from(size).saturating_mul(count)).max(1);
    let empty = payload.is_empty().then_some(payload);
    empty.into_iter().chain(payload.chunks(size))
}

/// Tells the guest what became of its last datagram.
fn tell(cx: &mut Context, now: Time, mapping: &Mapping, error: UdpError) {
    let (guest, remote) = (mapping.ends.guest.ip(), mapping.ends.remote.ip());
    let icmp = match error {
        // The remote itself says that nobody listens, a router on the way everything else.
        UdpError::PortUnreachable => {
            return cx.emit_error_from(remote, guest, IcmpError::PortUnreachable, mapping.quote.bytes());
        }
        UdpError::HostUnreachable => IcmpError::HostUnreachable,
        UdpError::NetUnreachable => IcmpError::NetUnreachable,
        UdpError::Prohibited => IcmpError::Prohibited,
        UdpError::TooBig { mtu } => IcmpError::TooBig { mtu: plausible_mtu(guest, mtu) },
        // The datagram is lost, as datagrams may be.
        UdpError::Resources => return cx.out_of_descriptors(now),
    };
    cx.emit_error(guest, icmp, mapping.quote.bytes());
}

/// The MTU for the guest to work with: an unknown one is taken for IPv6's least, which every path in practice has, and
/// none is below what the family allows (RFC 791 §3.2, RFC 8200 §5).
fn plausible_mtu(guest: IpAddr, mtu: u32) -> u32 {
    const LEAST_V4: u32 = 68;
    const LEAST_V6: u32 = 1_280;
    match guest {
        IpAddr::V4(_) if mtu == 0 => LEAST_V6,
        IpAddr::V4(_) => mtu.max(LEAST_V4),
        IpAddr::V6(_) => mtu.max(LEAST_V6),
    }
}

fn length(payload: &[u8]) -> u64 {
    u64::try_from(payload.len()).unwrap_or(u64::MAX)
}

fn key(ends: Ends) -> Key {
    Key::new(ends.remote.ip(), [ends.remote.port(), ends.guest.port(), 0])
}
