//! TCP connections from their SYN to their end.
//!
//! The gate holds a SYN back until the policy has allowed the connection and the remote has answered. Then it puts the
//! SYN back into the TUN, the kernel completes the handshake, and the shell accepts what the gate was waiting for. From
//! there on kernel and relay carry the connection; its entry stays, to count and to end it.
//!
//! | State    | Event                          | Next     | Effect                                            |
//! |----------|--------------------------------|----------|---------------------------------------------------|
//! | –        | SYN, denied                    | –        | RST, ICMP or nothing (`deny_with`)                |
//! | –        | SYN, allowed, over the rate    | –        | nothing: it comes again                           |
//! | –        | SYN, allowed                   | Dialing  | dial                                              |
//! | –        | SYN to port 53, allowed or ours | Injected | emit SYN                                          |
//! | Dialing  | SYN again                      | Dialing  | kept in place of the first                        |
//! | Dialing  | dialed                         | Injected | emit SYN                                          |
//! | Dialing  | dial failed                    | –        | RST or ICMP unreachable, as a router would        |
//! | Dialing  | `connect_timeout`              | –        | abandon the dial, ICMP host unreachable           |
//! | Injected | SYN again                      | Injected | emit it: the kernel's SYN-ACK may be lost         |
//! | Injected | accepted                       | Live     | the shell relays or answers DNS                   |
//! | Injected | [`ACCEPT_TIMEOUT`]             | –        | abandon the dial, report it as failed             |
//! | Live     | SYN again                      | Live     | emit it: the kernel answers (RFC 9293 §3.10.7.4)  |
//! | Live     | flight, when one is pending    | Live     | let pass, or deny                                 |
//! | Live     | closed                         | –        |                                                   |
//! | Dialing  | its address is denied now      | –        | abandon the dial, RST, ICMP or nothing            |
//! | Injected | its address is denied now      | –        | abandon the dial                                  |
//! | Live     | its address is denied now      | Live     | the shell is to close it                          |
//!
//! Limits: `max_connections` in all, with those to sockets of the host; at it a new SYN gets RST. [`MAX_PENDING`] in Dialing and Injected; at it the oldest
//! Injected entry makes room (a guest that does not finish its handshakes), and while there is none a new SYN gets RST.
//! A SYN is kept without data, so an entry is bounded by the longest headers.
//!
//! Not here: segments other than SYNs, which nft sends to the kernel's TCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use cofferdam_flight::Shown;
use cofferdam_model::{CloseReason, DenyWith, DropReason, FlowCounters, FlowId, LimitKind, Protocol, Time};
use cofferdam_policy::Policy;

use crate::api::{Accepted, DialError, FlightAnswer, Output};
use crate::context::{About, Context, DNS_PORT, Decision, Ends, Standing};
use crate::flight::{self, Watch};
use crate::hash::Seeded;
use crate::key::Key;
use crate::limits::Way;
use crate::table::{Slot, Table};
use crate::wire::icmp::IcmpError;
use crate::wire::ip::{IpEnds, IpPacket};
use crate::wire::tcp::{self, Syn};
use crate::wire::virtio::Offload;

/// Connections in Dialing and Injected (spec `gateway.md` §2).
const MAX_PENDING: usize = 1_024;
/// How long a handshake may take after the remote has answered: the guest's kernel sits a veth away, and its
/// retransmitted SYN (after 1 s, RFC 6298 §2) starts the time anew.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(3);

const DIALING: usize = 0;
const INJECTED: usize = 1;
const LIVE: usize = 2;

#[derive(Debug)]
pub(crate) struct Connections {
    table: Table<Key, Connection, 3>,
}

#[derive(Debug)]
struct Connection {
    ends: Ends,
    state: State,
    serves: Serves,
    /// What the guest sends has to be looked at.
    watch: Option<Box<Watch>>,
}

#[derive(Debug)]
enum State {
    Dialing { syn: HeldSyn },
    Injected,
    Live { since: Time },
}

/// Who is at the other end of an accepted connection.
#[derive(Debug)]
enum Serves {
    Relay(About),
    Dns,
}

/// Why a connection that the remote had taken went no further.
#[derive(Debug, thiserror::Error)]
#[error("the guest did not finish the handshake")]
struct Unfinished;

/// A SYN to be put back.
#[derive(Debug)]
struct HeldSyn {
    header: Syn,
    offload: Offload,
    packet: Vec<u8>,
}

impl Connections {
    pub(crate) fn new(hasher: Seeded) -> Connections {
        Connections { table: Table::new(hasher) }
    }

    /// A TCP segment of the guest.
    pub(crate) fn handle_segment(&mut self, cx: &mut Context, now: Time, offload: Offload, packet: &IpPacket<'_>) {
        let syn = match Syn::parse(packet, offload) {
            Ok(syn) => syn,
            Err(reason) => return cx.drop(now, reason),
        };
        let ends = Ends {
            guest: SocketAddr::new(packet.src, syn.src_port),
            remote: SocketAddr::new(packet.dst, syn.dst_port),
        };
        match self.table.find(&key(ends)) {
            Some(slot) => self.handle_syn_again(cx, now, slot, HeldSyn::new(packet, syn, offload)),
            None => self.handle_first_syn(cx, now, ends, packet, syn, offload),
        }
    }

    fn handle_syn_again(&mut self, cx: &mut Context, now: Time, slot: Slot, again: Option<HeldSyn>) {
        let (Some(again), Some((_, connection))) = (again, self.table.get_mut(slot)) else { return };
        match &mut connection.state {
            State::Dialing { syn } => *syn = again,
            State::Injected => {
                cx.emit(again.offload, again.packet);
                self.table.touch(now, slot, INJECTED);
            }
            State::Live { .. } => cx.emit(again.offload, again.packet),
        }
    }

    fn handle_first_syn(
        &mut self,
        cx: &mut Context,
        now: Time,
        ends: Ends,
        packet: &IpPacket<'_>,
        syn: Syn,
        offload: Offload,
    ) {
        // Whether a question may be asked is decided by its name, in the resolver.
        let decided = if cx.is_resolver(ends.remote) {
            None
        } else {
            match cx.decide(now, Protocol::Tcp, ends.remote.ip(), Some(ends.remote.port())) {
                Decision::Allow(permit, mut about, pending) => match cx.afford(ends.remote.ip(), &mut about) {
                    Some(_) => Some((permit, about, pending)),
                    None => return deny(cx, now, ends, packet, &syn, &about),
                },
                Decision::Deny(about) => return deny(cx, now, ends, packet, &syn, &about),
            }
        };
        let asks = decided.is_none() || ends.remote.port() == DNS_PORT;
        if asks && cx.limits.in_the_way(cx.limits.whole_run()).is_some() {
            return emit_reset(cx, ends, &syn);
        }
        // Nothing is answered: the guest's kernel sends the SYN again, later each time.
        if !asks && !cx.limits.admit_connection(now, Way::Egress) {
            return;
        }
        if let Err((limit, bound)) = self.make_room(cx) {
            cx.limit(now, limit, bound);
            return emit_reset(cx, ends, &syn);
        }
        let Some(syn) = HeldSyn::new(packet, syn, offload) else { return };
        let flow = cx.new_flow();
        let connection = match decided.filter(|_| ends.remote.port() != DNS_PORT) {
            None => {
                cx.emit(syn.offload, syn.packet);
                Connection { ends, state: State::Injected, serves: Serves::Dns, watch: None }
            }
            Some((permit, about, pending)) => {
                let (remote, fallback) = dial_target(cx, ends.remote);
                cx.output(Output::Dial { flow, remote, fallback, permit });
                let watch = pending.map(|pending| Box::new(Watch::new(flow, pending)));
                Connection { ends, state: State::Dialing { syn }, serves: Serves::Relay(about), watch }
            }
        };
        let list = if matches!(connection.state, State::Injected) { INJECTED } else { DIALING };
        self.table.insert(now, list, key(ends), flow, connection);
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Makes sure that there is room for one more, or says which limit is in the way.
    fn make_room(&mut self, cx: &mut Context) -> Result<(), (LimitKind, u64)> {
        cx.find_room(cx.connected.outward, cx.config.limits.max_connections, LimitKind::Connections)?;
        let pending = self.table.list_len(DIALING) + self.table.list_len(INJECTED);
        if pending >= MAX_PENDING {
            let bound = u64::try_from(MAX_PENDING).unwrap_or(u64::MAX);
            let (oldest, _) = self.table.front(INJECTED).ok_or((LimitKind::PendingConnections, bound))?;
            self.abandon(cx, oldest);
        }
        Ok(())
    }

    pub(crate) fn handle_dialed(&mut self, cx: &mut Context, now: Time, flow: FlowId, result: Result<(), DialError>) {
        let Some(slot) = self.table.find_flow(flow) else { return };
        let Some((_, connection)) = self.table.get_mut(slot) else { return };
        let State::Dialing { syn } = &mut connection.state else { return };
        match result {
            Ok(()) => {
                cx.emit(syn.offload, std::mem::take(&mut syn.packet));
                connection.state = State::Injected;
                self.table.touch(now, slot, INJECTED);
            }
            Err(error) => self.fail(cx, now, slot, error),
        }
    }

    /// Ends a dial as the network would have: RFC 1122 §4.2.3.9, and what Linux makes of each ICMP code.
    fn fail(&mut self, cx: &mut Context, now: Time, slot: Slot, error: DialError) {
        let Some(removed) = self.table.remove(slot) else { return };
        let connection = removed.value;
        let State::Dialing { syn } = connection.state else { return };
        let ends = connection.ends;
        let icmp = match error {
            DialError::Refused => None,
            DialError::NetUnreachable => Some(IcmpError::NetUnreachable),
            DialError::HostUnreachable | DialError::TimedOut => Some(IcmpError::HostUnreachable),
            DialError::Prohibited => Some(IcmpError::Prohibited),
            DialError::Resources => {
                cx.out_of_descriptors(now);
                None
            }
        };
        cx.report_failed(removed.flow, Protocol::Tcp, ends, &error);
        cx.answer_failed(now, |cx| match icmp {
            Some(icmp) => cx.emit_error(ends.guest.ip(), icmp, &syn.packet),
            None => emit_reset(cx, ends, &syn.header),
        });
    }

    pub(crate) fn handle_accepted(
        &mut self,
        cx: &mut Context,
        now: Time,
        guest: SocketAddr,
        remote: SocketAddr,
    ) -> Option<Accepted> {
        let ends = Ends { guest: canonical(guest), remote: canonical(remote) };
        let found = self.table.find(&key(ends));
        let waiting = found.filter(|slot| {
            let entry = self.table.get_mut(*slot);
            entry.is_some_and(|(_, entry)| entry.ends == ends && matches!(entry.state, State::Injected))
        });
        let Some(slot) = waiting else {
            cx.drop(now, DropReason::Unexpected);
            return None;
        };
        self.table.touch(now, slot, LIVE);
        let (flow, connection) = self.table.get_mut(slot)?;
        connection.state = State::Live { since: now };
        match &connection.serves {
            Serves::Relay(about) => {
                cx.report_opened(flow, Protocol::Tcp, ends, about);
                let budgets = cx.budgets_of(ends.remote.ip(), about);
                cx.limits.open(flow, budgets);
                Some(if connection.watch.is_some() { Accepted::Check(flow) } else { Accepted::Relay(flow) })
            }
            // The resolver reports each query; the connection itself goes nowhere.
            Serves::Dns => Some(Accepted::Dns(flow)),
        }
    }

    pub(crate) fn handle_flight(&mut self, cx: &mut Context, now: Time, flow: FlowId, shown: &Shown) -> FlightAnswer {
        let found = self.table.find_flow(flow).and_then(|slot| self.table.get_mut(slot));
        match found {
            Some((_, Connection { ends, state: State::Live { .. }, watch: Some(watch), .. })) => {
                watch.check(cx, now, Protocol::Tcp, *ends, shown)
            }
            Some(_) | None => flight::unknown(),
        }
    }

    pub(crate) fn handle_closed(
        &mut self,
        cx: &mut Context,
        now: Time,
        flow: FlowId,
        by: CloseReason,
        counters: FlowCounters,
    ) {
        let Some(slot) = self.table.find_flow(flow) else { return };
        let Some(removed) = self.table.remove(slot) else { return };
        cx.limits.close(flow);
        if let (State::Live { since }, Serves::Relay(_)) = (removed.value.state, removed.value.serves) {
            cx.report_closed(flow, by, counters, now.since(since));
        }
    }

    pub(crate) fn handle_timeout(&mut self, cx: &mut Context, now: Time) {
        let connect_timeout = cx.config.limits.connect_timeout;
        while let Some((slot, since)) = self.table.front(DIALING)
            && since + connect_timeout <= now
        {
            if let Some((flow, _)) = self.table.get_mut(slot) {
                cx.output(Output::AbandonDial { flow });
            }
            self.fail(cx, now, slot, DialError::TimedOut);
        }
        while let Some((slot, since)) = self.table.front(INJECTED)
            && since + ACCEPT_TIMEOUT <= now
        {
            self.abandon(cx, slot);
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
        for list in [DIALING, INJECTED, LIVE] {
            for slot in self.table.slots(list) {
                let Some((flow, connection)) = self.table.get_mut(slot) else { continue };
                let Connection { ends, state, serves, watch } = connection;
                if !concerned(ends.remote.ip()) || cx.is_resolver(ends.remote) {
                    continue;
                }
                let name = match serves {
                    Serves::Relay(about) => about.name(),
                    Serves::Dns => None,
                };
                let standing = Standing { name, watch: watch.as_deref_mut() };
                if cx.still_allows(now, before, (Protocol::Tcp, *ends), standing) {
                    continue;
                }
                ended += 1;
                match state {
                    // Its entry goes when the shell says what it has carried.
                    State::Live { .. } => cx.output(Output::CloseFlow { flow }),
                    State::Dialing { .. } | State::Injected => self.withdraw(cx, slot),
                }
            }
        }
        ended
    }

    /// There are other budgets: finds those of the live connections.
    pub(crate) fn handle_limits(&mut self, cx: &mut Context, now: Time) {
        if !cx.limits.has_budgets() {
            return;
        }
        for slot in self.table.slots(LIVE) {
            if let Some((flow, Connection { ends, serves: Serves::Relay(_), .. })) = self.table.get_mut(slot) {
                let budgets = cx.budgets_now(now, ends.remote.ip());
                cx.limits.open(flow, budgets);
            }
        }
    }

    /// Ends a connection that is denied before it has been made.
    fn withdraw(&mut self, cx: &mut Context, slot: Slot) {
        let Some(removed) = self.table.remove(slot) else { return };
        let connection = removed.value;
        if matches!(connection.serves, Serves::Relay(_)) {
            cx.output(Output::AbandonDial { flow: removed.flow });
        }
        // The kernel answers one whose SYN was put back: nobody waits for what it accepts, so that is reset.
        let State::Dialing { syn } = connection.state else { return };
        match cx.config.deny_with {
            DenyWith::Reset => emit_reset(cx, connection.ends, &syn.header),
            DenyWith::Icmp => cx.emit_error(connection.ends.guest.ip(), IcmpError::Prohibited, &syn.packet),
            DenyWith::Drop => {}
        }
    }

    pub(crate) fn deadline(&self, cx: &Context) -> Option<Time> {
        let dialing = self.table.front(DIALING).map(|(_, since)| since + cx.config.limits.connect_timeout);
        let injected = self.table.front(INJECTED).map(|(_, since)| since + ACCEPT_TIMEOUT);
        dialing.into_iter().chain(injected).min()
    }

    /// Gives an Injected entry up: the guest has not finished its handshake.
    fn abandon(&mut self, cx: &mut Context, slot: Slot) {
        let Some(removed) = self.table.remove(slot) else { return };
        if matches!(removed.value.serves, Serves::Relay(_)) {
            cx.output(Output::AbandonDial { flow: removed.flow });
            // The remote has seen a connection, so that the record must show one.
            cx.report_failed(removed.flow, Protocol::Tcp, removed.value.ends, &Unfinished);
        }
    }
}

impl HeldSyn {
    fn new(packet: &IpPacket<'_>, header: Syn, offload: Offload) -> Option<HeldSyn> {
        let (packet, offload) = tcp::keep(packet, &header, offload)?;
        Some(HeldSyn { header, offload, packet })
    }
}

fn key(ends: Ends) -> Key {
    Key::new(ends.remote.ip(), [ends.remote.port(), ends.guest.port(), 0])
}

/// A dual-stack listener names IPv4 peers by their IPv4-mapped form.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// What the host dials: its own loopback for the host alias, IPv4 first (spec `gateway.md` §5).
fn dial_target(cx: &Context, remote: SocketAddr) -> (SocketAddr, Option<SocketAddr>) {
    if cx.host_alias(remote.ip()).is_none() {
        return (remote, None);
    }
    let loopback = |address: IpAddr| SocketAddr::new(address, remote.port());
    (loopback(Ipv4Addr::LOCALHOST.into()), Some(loopback(Ipv6Addr::LOCALHOST.into())))
}

/// Reports a denied SYN and tells the guest.
fn deny(cx: &mut Context, now: Time, ends: Ends, packet: &IpPacket<'_>, syn: &Syn, about: &About) {
    let told = cx.report_denied(now, Protocol::Tcp, ends, about);
    cx.answer_denied(now, &told, |cx| match cx.config.deny_with {
        DenyWith::Reset => emit_reset(cx, ends, syn),
        DenyWith::Icmp => cx.emit_error(packet.src, IcmpError::Prohibited, packet.bytes),
        DenyWith::Drop => {}
    });
}

fn emit_reset(cx: &mut Context, ends: Ends, syn: &Syn) {
    let reset = IpEnds::new(ends.remote.ip(), ends.guest.ip()).and_then(|ends| tcp::emit_reset(ends, syn));
    if let Some(packet) = reset {
        cx.emit(Offload::NONE, packet);
    }
}
