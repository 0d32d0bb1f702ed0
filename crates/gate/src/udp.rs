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
//! A mapping whose verdict is pending begins in Held: its datagrams wait, and no socket is opened, until what they show has
//! passed. From there on every datagram is looked at, since a client may begin another QUIC connection from the same port.
//!
//! | State   | Event                            | Next    | Effect                               |
//! |---------|----------------------------------|---------|--------------------------------------|
//! | –       | datagram, pending                | Held    | look at it                           |
//! | Held    | datagram that shows nothing yet  | Held    | keep it                              |
//! | Held    | datagram, what it shows passes   | OneWay  | open, send all                       |
//! | Held    | what it shows is denied, too many, [`FLIGHT_TIMEOUT`] | – | ICMP prohibited or nothing |
//! | any     | what a datagram shows is denied  | –       | close, ICMP prohibited or nothing    |
//! | OneWay, BothWays | datagram that begins another hello | Held | keep it                              |
//!
//! Limits: `max_udp_connections` mappings; at it the longest idle one makes room. Fragments were joined before.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::time::Duration;

use cofferdam_flight::{Datagram as Seen, Doubt, LIMIT, QuicReader, Shown};
use cofferdam_model::{CloseReason, DenyWith, DomainName, DropReason, FlowCounters, FlowId, LimitKind, Protocol, Time};

use cofferdam_policy::{Pending, Permit, Policy};

use crate::api::{DnsClient, FlightAnswer, Fragmentation, Output, UdpError};
use crate::context::{About, Context, DNS_PORT, Decision, Ends, Standing};
use crate::flight::Watch;
use crate::hash::Seeded;
use crate::key::Key;
use crate::limits::{BudgetSet, Way};
use crate::progress::{Mark, Moved};
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

/// How long a first flight may take to be whole (spec `names.md` §5).
const FLIGHT_TIMEOUT: Duration = Duration::from_secs(5);
/// Datagrams that are held: a ClientHello takes one or two, and some are sent again.
const MAX_HELD: usize = 16;

const ONE_WAY: usize = 0;
const BOTH_WAYS: usize = 1;
const HELD: usize = 2;

#[derive(Debug)]
pub(crate) struct Mappings {
    table: Table<Key, Mapping, 3>,
}

#[derive(Debug)]
struct Mapping {
    ends: Ends,
    since: Time,
    /// The name that it was admitted by.
    name: Option<DomainName>,
    counters: FlowCounters,
    mark: Mark,
    replied: bool,
    /// Of the guest's last datagram, for ICMP errors.
    quote: Quote,
    check: Option<Box<Check>>,
    budgets: BudgetSet,
}

/// What a mapping needs whose datagrams are looked at.
#[derive(Debug)]
struct Check {
    watch: Watch,
    reader: QuicReader,
    /// A protocol without names has passed.
    other: bool,
    /// What could not be read has passed, and nothing is looked at any more.
    free: bool,
    held: Vec<(Vec<u8>, Fragmentation)>,
    /// There while no socket is open.
    unopened: Option<(Permit, About)>,
}

/// What becomes of a packet of datagrams that were looked at.
enum Looked {
    Send,
    Hold,
    Deny,
}

impl Mapping {
    fn list(&self) -> usize {
        match (self.is_open() && !self.holds(), self.replied) {
            (false, _) => HELD,
            (true, false) => ONE_WAY,
            (true, true) => BOTH_WAYS,
        }
    }

    /// Whether datagrams wait for what is still to be shown.
    fn holds(&self) -> bool {
        self.check.as_ref().is_some_and(|check| !check.held.is_empty())
    }

    fn is_open(&self) -> bool {
        self.check.as_ref().is_none_or(|check| check.unopened.is_none())
    }
}

impl Check {
    fn new(flow: FlowId, port: u16, permit: Permit, about: About, pending: Box<Pending>) -> Check {
        let reader = QuicReader::new(port);
        Check {
            watch: Watch::new(flow, pending),
            reader,
            other: false,
            free: false,
            held: Vec::new(),
            unopened: Some((permit, about)),
        }
    }

    /// Looks at every datagram of a packet and asks about what they show.
    fn look(&mut self, cx: &mut Context, now: Time, ends: Ends, payload: &[u8], segment: Option<u16>) -> Looked {
        let mut looked = Looked::Send;
        if self.free {
            return looked;
        }
        for piece in pieces(payload, segment, 1) {
            match self.reader.look(piece) {
                Seen::Known => {}
                Seen::More => looked = Looked::Hold,
                Seen::Ask(Shown::Other) if self.other => {}
                Seen::Ask(shown) => match self.watch.check(cx, now, Protocol::Udp, ends, &shown) {
                    FlightAnswer::Pass => {
                        self.other |= shown == Shown::Other;
                        looked = Looked::Send;
                    }
                    FlightAnswer::Deny(_) => return Looked::Deny,
                },
            }
        }
        let held: usize = self.held.iter().map(|(datagram, _)| datagram.len()).sum();
        let many = self.held.len() + pieces(payload, segment, 1).count() > MAX_HELD;
        let full = many || held + payload.len() > LIMIT;
        if matches!(looked, Looked::Hold) && full {
            let shown = Shown::Unreadable { protocol: cofferdam_flight::Protocol::Quic, doubt: Doubt::TooLong };
            return self.in_doubt(cx, now, ends, &shown);
        }
        looked
    }

    /// What is held cannot be read, or not in time. Only a policy that denies no name lets it go on.
    fn in_doubt(&mut self, cx: &mut Context, now: Time, ends: Ends, shown: &Shown) -> Looked {
        match self.watch.check(cx, now, Protocol::Udp, ends, shown) {
            FlightAnswer::Pass => {
                self.free = true;
                Looked::Send
            }
            FlightAnswer::Deny(_) => Looked::Deny,
        }
    }
}

impl Mappings {
    pub(crate) fn new(hasher: Seeded) -> Mappings {
        Mappings { table: Table::new(hasher) }
    }

    /// Whether the guest has a mapping between these ends.
    pub(crate) fn contains(&self, ends: Ends) -> bool {
        self.table.find(&key(ends)).is_some()
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
        let was_held = mapping.list() == HELD;
        let Some(payload) = within(cx, now, mapping.budgets, Way::Egress, datagram.payload, segment) else { return };
        let datagram = Datagram { payload, ..datagram };
        if let Some(check) = &mut mapping.check {
            match check.look(cx, now, ends, datagram.payload, segment) {
                Looked::Send => release(cx, flow, mapping),
                Looked::Hold => {
                    let pieces = pieces(datagram.payload, segment, 1);
                    check.held.extend(pieces.map(|piece| (piece.to_vec(), packet.fragmentation)));
                    // Its time counts from the first datagram that waits.
                    if !was_held {
                        self.table.touch(now, slot, HELD);
                    }
                    return;
                }
                Looked::Deny => return self.deny(cx, now, slot),
            }
        }
        mapping.counters.count_out(datagram.payload.len(), pieces(datagram.payload, segment, 1).count());
        cx.note(now, flow, &mut mapping.mark, &mapping.counters);
        let list = mapping.list();
        send(cx, flow, datagram.payload, segment, packet.fragmentation);
        self.table.touch(now, slot, list);
    }

    /// Ends a mapping for what it showed, which was reported.
    fn deny(&mut self, cx: &mut Context, now: Time, slot: Slot) {
        let Some((_, mapping)) = self.table.get_mut(slot) else { return };
        match cx.config.deny_with {
            DenyWith::Reset | DenyWith::Icmp => {
                cx.emit_error(mapping.ends.guest.ip(), IcmpError::Prohibited, mapping.quote.bytes());
            }
            DenyWith::Drop => {}
        }
        self.close(cx, now, slot, CloseReason::Policy);
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
                if cx.limits.admit_dns(Way::Egress, message.len()) {
                    cx.output(Output::Dns { query, message: message.to_vec() });
                }
            }
        };
        // Whether a question may be asked is decided by its name, in the resolver.
        if cx.is_resolver(ends.remote) {
            ask(cx);
            return None;
        }
        let (permit, mut about, pending) =
            match cx.decide(now, Protocol::Udp, ends.remote.ip(), Some(ends.remote.port())) {
                Decision::Allow(permit, about, pending) => (permit, about, pending),
                Decision::Deny(about) => {
                    refuse(cx, now, Protocol::Udp, ends, packet, &about);
                    return None;
                }
            };
        if ends.remote.port() == DNS_PORT {
            ask(cx);
            return None;
        }
        let Some(budgets) = cx.afford(ends.remote.ip(), &mut about) else {
            refuse(cx, now, Protocol::Udp, ends, packet, &about);
            return None;
        };
        self.make_room(cx, now);
        let flow = cx.new_flow();
        let name = about.name().cloned();
        let check = match pending {
            Some(pending) => Some(Box::new(Check::new(flow, ends.remote.port(), permit, about, pending))),
            None => {
                open(cx, flow, ends, permit, &about);
                None
            }
        };
        let counters = FlowCounters::of_packets();
        let quote = Quote::of(packet);
        let mapping =
            Mapping { ends, since: now, name, counters, mark: Mark::default(), replied: false, quote, check, budgets };
        let list = mapping.list();
        Some(self.table.insert(now, list, key(ends), flow, mapping))
    }

    fn make_room(&mut self, cx: &mut Context, now: Time) {
        let bound = cx.config.limits.max_udp_connections;
        if bound == 0 || u32::try_from(self.table.len()).is_ok_and(|len| len < bound) {
            return;
        }
        let fronts = [ONE_WAY, BOTH_WAYS, HELD].into_iter().filter_map(|list| self.table.front(list));
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
        let Some(payload) = within(cx, now, mapping.budgets, Way::Ingress, payload, segment) else { return };
        mapping.replied = true;
        mapping.counters.count_in(payload.len(), pieces(payload, segment, 1).count());
        cx.note(now, flow, &mut mapping.mark, &mapping.counters);
        let list = mapping.list();
        // A reply does not give what is held more time.
        cx.emit_udp(now, mapping.ends.remote, mapping.ends.guest, payload, segment);
        if list != HELD {
            self.table.touch(now, slot, list);
        }
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
        if error == UdpError::NetUnreachable {
            // A program on the machine itself is told so when it connects: this one must not wait for an answer either.
            cx.emit_error(removed.value.ends.guest.ip(), IcmpError::NoRoute, removed.value.quote.bytes());
        } else {
            tell(cx, now, &removed.value, error);
        }
        cx.report_failed(flow, Protocol::Udp, removed.value.ends, &error);
    }

    pub(crate) fn handle_timeout(&mut self, cx: &mut Context, now: Time) {
        while let Some((slot, since)) = self.table.front(HELD)
            && since + FLIGHT_TIMEOUT <= now
        {
            if let Some((flow, mapping)) = self.table.get_mut(slot)
                && let Mapping { ends, check: Some(check), .. } = mapping
                && matches!(check.in_doubt(cx, now, *ends, &Shown::Unfinished), Looked::Send)
            {
                release(cx, flow, mapping);
                let list = mapping.list();
                self.table.touch(now, slot, list);
                continue;
            }
            self.deny(cx, now, slot);
        }
        for (list, timeout) in TIMEOUTS {
            while let Some((slot, touched)) = self.table.front(list)
                && touched + timeout <= now
            {
                self.close(cx, now, slot, CloseReason::Idle);
            }
        }
    }

    /// The policy is not the one `before`: ends what is not allowed any more of what is `concerned`, and counts it. The next
    /// datagram is told why.
    pub(crate) fn decide_again(
        &mut self,
        cx: &mut Context,
        now: Time,
        before: &Policy,
        concerned: &dyn Fn(IpAddr) -> bool,
    ) -> u64 {
        let mut ended = 0;
        for list in [ONE_WAY, BOTH_WAYS, HELD] {
            for slot in self.table.slots(list) {
                let Some((_, Mapping { ends, name, check, .. })) = self.table.get_mut(slot) else { continue };
                let watch = check.as_mut().map(|check| &mut check.watch);
                let standing = Standing { name: name.as_ref(), watch };
                if concerned(ends.remote.ip()) && !cx.still_allows(now, before, (Protocol::Udp, *ends), standing) {
                    ended += 1;
                    self.close(cx, now, slot, CloseReason::Policy);
                }
            }
        }
        ended
    }

    /// There are other budgets: finds those of the mappings.
    pub(crate) fn handle_limits(&mut self, cx: &mut Context, now: Time) {
        for list in [ONE_WAY, BOTH_WAYS, HELD] {
            for slot in self.table.slots(list) {
                let Some((_, mapping)) = self.table.get_mut(slot) else { continue };
                mapping.budgets = cx.budgets_now(now, mapping.ends.remote.ip());
            }
        }
    }

    /// A budget is used up: ends the mappings that have it.
    pub(crate) fn handle_used_up(&mut self, cx: &mut Context, now: Time) {
        for list in [ONE_WAY, BOTH_WAYS, HELD] {
            for slot in self.table.slots(list) {
                if self.table.get_mut(slot).is_some_and(|(_, mapping)| cx.limits.is_used_up(mapping.budgets)) {
                    self.close(cx, now, slot, CloseReason::Budget);
                }
            }
        }
    }

    /// Ends every mapping.
    pub(crate) fn handle_shutdown(&mut self, cx: &mut Context, now: Time) {
        for list in [ONE_WAY, BOTH_WAYS, HELD] {
            while let Some((slot, _)) = self.table.front(list) {
                self.close(cx, now, slot, CloseReason::Shutdown);
            }
        }
    }

    /// Tells what the flow has moved, if it is one of these.
    pub(crate) fn tell_moved(&mut self, flow: FlowId, moved: &mut Moved) {
        if let Some((_, mapping)) = self.table.find_flow(flow).and_then(|slot| self.table.get_mut(slot)) {
            moved.add(flow, &mut mapping.mark, mapping.counters);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        let timeouts = TIMEOUTS.into_iter().chain([(HELD, FLIGHT_TIMEOUT)]);
        timeouts.filter_map(|(list, timeout)| Some(self.table.front(list)?.1 + timeout)).min()
    }

    fn close(&mut self, cx: &mut Context, now: Time, slot: Slot, by: CloseReason) {
        let Some(removed) = self.table.remove(slot) else { return };
        if !removed.value.is_open() {
            return;
        }
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
    let told = cx.report_denied(now, protocol, ends, about);
    cx.answer_denied(now, &told, |cx| match cx.config.deny_with {
        DenyWith::Reset | DenyWith::Icmp => cx.emit_error(packet.src, IcmpError::Prohibited, packet.bytes),
        DenyWith::Drop => {}
    });
}

fn open(cx: &mut Context, flow: FlowId, ends: Ends, permit: Permit, about: &About) {
    let remote = match cx.host_alias(ends.remote.ip()) {
        Some(loopback) => SocketAddr::new(loopback, ends.remote.port()),
        None => ends.remote,
    };
    cx.output(Output::OpenUdp { flow, remote, permit });
    cx.report_opened(flow, Protocol::Udp, ends, about);
}

/// What a mapping shows has passed: opens its socket and sends what was held.
fn release(cx: &mut Context, flow: FlowId, mapping: &mut Mapping) {
    let Some(check) = &mut mapping.check else { return };
    if let Some((permit, about)) = check.unopened.take() {
        open(cx, flow, mapping.ends, permit, &about);
    }
    for (held, fragmentation) in std::mem::take(&mut check.held) {
        mapping.counters.count_out(held.len(), 1);
        send(cx, flow, &held, None, fragmentation);
    }
}

fn send(cx: &mut Context, flow: FlowId, payload: &[u8], segment: Option<u16>, fragmentation: Fragmentation) {
    for piece in pieces(payload, segment, MAX_SEGMENTS) {
        let segment = segment.filter(|size| usize::from(*size) < piece.len());
        cx.output(Output::SendUdp { flow, payload: piece.to_vec(), segment, fragmentation });
    }
}

/// A payload cut into pieces of up to `count` segments. An empty datagram is one piece.
pub(crate) fn pieces(payload: &[u8], segment: Option<u16>, count: usize) -> impl Iterator<Item = &[u8]> {
    let size = segment.map_or(payload.len(), |size| usize::from(size).saturating_mul(count)).max(1);
    let empty = payload.is_empty().then_some(payload);
    empty.into_iter().chain(payload.chunks(size))
}

/// As much of a payload as the limits let pass: whole datagrams from its front. `None`: nothing.
pub(crate) fn within<'a>(
    cx: &mut Context,
    now: Time,
    budgets: BudgetSet,
    way: Way,
    payload: &'a [u8],
    segment: Option<u16>,
) -> Option<&'a [u8]> {
    if cx.limits.is_unlimited() {
        return Some(payload);
    }
    let size = segment.map_or(payload.len(), usize::from).max(1).min(payload.len());
    let count = pieces(payload, segment, 1).count();
    match cx.limits.admit(now, budgets, way, count, size) {
        0 => None,
        admitted if admitted >= count => Some(payload),
        admitted => payload.get(..admitted.saturating_mul(size)),
    }
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

fn key(ends: Ends) -> Key {
    Key::new(ends.remote.ip(), [ends.remote.port(), ends.guest.port(), 0])
}
