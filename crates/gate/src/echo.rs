//! ICMP echo ("ping"), both families.
//!
//! An echo request to the gateway is answered here; it tells the guest nothing that it does not know. One to any other
//! address asks the policy and opens a *flow*: the guest's identifier and the remote, with one unprivileged ICMP socket
//! of the host (`ping_group_range`). The socket has an identifier of its own, so a reply is rebuilt with the guest's.
//!
//! | State | Event                       | Next | Effect                                                    |
//! |-------|-----------------------------|------|-----------------------------------------------------------|
//! | –     | request to the gateway      | –    | emit reply                                                |
//! | –     | request, denied             | –    | ICMP prohibited or nothing                                |
//! | –     | request, allowed            | Open | open, send                                                |
//! | Open  | request                     | Open | send                                                      |
//! | Open  | reply                       | Open | emit                                                      |
//! | Open  | error of the socket         | Open | ICMP about the guest's last request                       |
//! | Open  | no socket to be had         | –    | ICMP; where the host forbids it, once a notice naming the sysctl |
//! | Open  | idle for [`IDLE_TIMEOUT`]   | –    | close                                                     |
//! | Open  | its address is denied now   | –    | close                                                     |
//!
//! Limits: [`MAX_FLOWS`] flows, at which the longest idle one makes room, and one request per [`INTERVAL`] to other
//! addresses than the gateway's after a burst of [`BURST`]; what is faster is dropped and counted.
//!
//! Not here: every other ICMP message of the guest. It is dropped and counted, errors and redirects above all.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use cofferdam_model::{
    CloseReason, DomainName, DropReason, EventBody, FlowCounters, FlowId, LimitKind, Protocol, Time,
};
use cofferdam_policy::Policy;

use crate::api::{EchoError, Output};
use crate::context::{Context, Decision, Ends, Standing};
use crate::hash::Seeded;
use crate::key::Key;
use crate::limits::{BudgetSet, Way};
use crate::progress::{Mark, Moved};
use crate::quote::Quote;
use crate::table::{Slot, Table};
use crate::udp::refuse;
use crate::wire::icmp::{EchoRequest, IcmpError};
use crate::wire::ip::IpPacket;
use crate::wire::virtio::Offload;

/// Pings at once; a program that sweeps a network waits for few of them.
const MAX_FLOWS: usize = 256;
/// Longer than ping(8) waits for its last reply (10 s).
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// 100 requests per second: `ping -f` without replies sends as many.
const INTERVAL: Duration = Duration::from_millis(10);
/// Requests that may come at once.
const BURST: u32 = 100;

#[derive(Debug)]
pub(crate) struct Echoes {
    table: Table<Key, Echo, 1>,
    /// When the next request would be due if all were [`INTERVAL`] apart.
    due: Time,
    noticed: bool,
}

#[derive(Debug)]
struct Echo {
    guest: IpAddr,
    remote: IpAddr,
    ident: u16,
    since: Time,
    /// The name that it was admitted by.
    name: Option<DomainName>,
    counters: FlowCounters,
    mark: Mark,
    /// Of the guest's last request, for ICMP errors.
    quote: Quote,
    budgets: BudgetSet,
}

impl Echoes {
    pub(crate) fn new(hasher: Seeded) -> Echoes {
        Echoes { table: Table::new(hasher), due: Time::ZERO, noticed: false }
    }

    /// An ICMP packet of the guest, of the protocol that belongs to the packet's family.
    pub(crate) fn handle_packet(&mut self, cx: &mut Context, now: Time, offload: Offload, packet: &IpPacket<'_>) {
        let request = match EchoRequest::parse(packet, offload) {
            Ok(request) => request,
            Err(reason) => return cx.drop(now, reason),
        };
        if cx.is_gateway(packet.dst) {
            let ends = (packet.dst, packet.src);
            return cx.emit_echo_reply(now, ends, request.ident, request.sequence, request.payload);
        }
        let slot = match self.table.find(&key(packet.dst, request.ident)) {
            Some(slot) if self.within_rate(cx, now) => Some(slot),
            Some(_) => None,
            None => self.admit(cx, now, packet, request),
        };
        let Some(slot) = slot else { return };
        let Some((flow, echo)) = self.table.get_mut(slot) else { return };
        echo.quote = Quote::of(packet);
        if cx.limits.admit(now, echo.budgets, Way::Egress, 1, request.payload.len()) == 0 {
            return;
        }
        echo.counters.count_out(request.payload.len(), 1);
        cx.note(now, flow, &mut echo.mark, &echo.counters);
        cx.output(Output::SendEcho { flow, sequence: request.sequence, payload: request.payload.to_vec() });
        self.table.touch(now, slot, 0);
    }

    fn admit(&mut self, cx: &mut Context, now: Time, packet: &IpPacket<'_>, request: EchoRequest<'_>) -> Option<Slot> {
        let protocol = protocol(packet.dst);
        let ends = ends(packet.src, packet.dst);
        let (permit, mut about) = match cx.decide(now, protocol, packet.dst, None) {
            // ICMP shows nothing: no verdict about it is pending.
            Decision::Allow(permit, about, _) => (permit, about),
            Decision::Deny(about) => {
                refuse(cx, now, protocol, ends, packet, &about);
                return None;
            }
        };
        let Some(budgets) = cx.afford(packet.dst, &mut about) else {
            refuse(cx, now, protocol, ends, packet, &about);
            return None;
        };
        if !self.within_rate(cx, now) {
            return None;
        }
        if self.table.len() >= MAX_FLOWS
            && let Some((oldest, _)) = self.table.front(0)
        {
            cx.limit(now, LimitKind::Pings, u64::try_from(MAX_FLOWS).unwrap_or(u64::MAX));
            self.close(cx, now, oldest, CloseReason::Limit);
        }
        let flow = cx.new_flow();
        cx.output(Output::OpenEcho { flow, remote: packet.dst, permit });
        cx.report_opened(flow, protocol, ends, &about);
        let echo = Echo {
            guest: packet.src,
            remote: packet.dst,
            ident: request.ident,
            since: now,
            name: about.name().cloned(),
            counters: FlowCounters::of_packets(),
            mark: Mark::default(),
            quote: Quote::of(packet),
            budgets,
        };
        Some(self.table.insert(now, 0, key(packet.dst, request.ident), flow, echo))
    }

    /// The generic cell rate algorithm: a token bucket that needs one number.
    fn within_rate(&mut self, cx: &mut Context, now: Time) -> bool {
        let due = self.due.max(now);
        if due.since(now) >= INTERVAL * BURST {
            cx.limit(now, LimitKind::Pings, u64::from(BURST));
            return false;
        }
        self.due = due + INTERVAL;
        true
    }

    pub(crate) fn handle_reply(&mut self, cx: &mut Context, now: Time, flow: FlowId, sequence: u16, payload: &[u8]) {
        let Some(slot) = self.table.find_flow(flow) else { return cx.drop(now, DropReason::Unexpected) };
        let Some((_, echo)) = self.table.get_mut(slot) else { return };
        if cx.limits.admit(now, echo.budgets, Way::Ingress, 1, payload.len()) == 0 {
            return;
        }
        echo.counters.count_in(payload.len(), 1);
        cx.note(now, flow, &mut echo.mark, &echo.counters);
        cx.emit_echo_reply(now, (echo.remote, echo.guest), echo.ident, sequence, payload);
        self.table.touch(now, slot, 0);
    }

    /// The socket reported an error. Only what says that there is no socket ends the flow.
    pub(crate) fn handle_error(&mut self, cx: &mut Context, now: Time, flow: FlowId, error: EchoError) {
        if matches!(error, EchoError::NotPermitted | EchoError::Resources) {
            return self.handle_failed(cx, now, flow, error);
        }
        let Some(slot) = self.table.find_flow(flow) else { return };
        let Some((_, echo)) = self.table.get_mut(slot) else { return };
        tell(cx, now, echo, error);
    }

    /// The socket could not be opened.
    pub(crate) fn handle_failed(&mut self, cx: &mut Context, now: Time, flow: FlowId, error: EchoError) {
        let Some(removed) = self.table.find_flow(flow).and_then(|slot| self.table.remove(slot)) else { return };
        let echo = removed.value;
        cx.outputs.retain(|output| !matches!(output, Output::SendEcho { flow: other, .. } if *other == flow));
        cx.output(Output::CloseEcho { flow });
        tell(cx, now, &echo, error);
        cx.report_failed(flow, protocol(echo.remote), ends(echo.guest, echo.remote), &error);
        if error == EchoError::NotPermitted {
            self.notice(cx);
        }
    }

    fn notice(&mut self, cx: &mut Context) {
        if std::mem::replace(&mut self.noticed, true) {
            return;
        }
        let message = "ping is allowed by the policy but not by this host: the sysctl net.ipv4.ping_group_range does \
                       not include the gateway's group"
            .to_owned();
        cx.event(EventBody::GatewayNotice { message });
    }

    pub(crate) fn handle_timeout(&mut self, cx: &mut Context, now: Time) {
        while let Some((slot, touched)) = self.table.front(0)
            && touched + IDLE_TIMEOUT <= now
        {
            self.close(cx, now, slot, CloseReason::Idle);
        }
    }

    /// The policy is not the one `before`: ends what is not allowed any more of what is `concerned`, and counts it. The next
    /// request is told why.
    pub(crate) fn decide_again(
        &mut self,
        cx: &mut Context,
        now: Time,
        before: &Policy,
        concerned: &dyn Fn(IpAddr) -> bool,
    ) -> u64 {
        let mut ended = 0;
        for slot in self.table.slots(0) {
            let Some((_, echo)) = self.table.get_mut(slot) else { continue };
            let (guest, remote) = (echo.guest, echo.remote);
            let flow = (protocol(remote), ends(guest, remote));
            let standing = Standing { name: echo.name.as_ref(), watch: None };
            if concerned(remote) && !cx.still_allows(now, before, flow, standing) {
                ended += 1;
                self.close(cx, now, slot, CloseReason::Policy);
            }
        }
        ended
    }

    /// There are other budgets: finds those of the flows.
    pub(crate) fn handle_limits(&mut self, cx: &mut Context, now: Time) {
        for slot in self.table.slots(0) {
            let Some((_, echo)) = self.table.get_mut(slot) else { continue };
            echo.budgets = cx.budgets_now(now, echo.remote);
        }
    }

    /// A budget is used up: ends the flows that have it.
    pub(crate) fn handle_used_up(&mut self, cx: &mut Context, now: Time) {
        for slot in self.table.slots(0) {
            if self.table.get_mut(slot).is_some_and(|(_, echo)| cx.limits.is_used_up(echo.budgets)) {
                self.close(cx, now, slot, CloseReason::Budget);
            }
        }
    }

    /// Ends every flow.
    pub(crate) fn handle_shutdown(&mut self, cx: &mut Context, now: Time) {
        while let Some((slot, _)) = self.table.front(0) {
            self.close(cx, now, slot, CloseReason::Shutdown);
        }
    }

    /// Tells what the flow has moved, if it is one of these.
    pub(crate) fn tell_moved(&mut self, flow: FlowId, moved: &mut Moved) {
        if let Some((_, echo)) = self.table.find_flow(flow).and_then(|slot| self.table.get_mut(slot)) {
            moved.add(flow, &mut echo.mark, echo.counters);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        self.table.front(0).map(|(_, touched)| touched + IDLE_TIMEOUT)
    }

    fn close(&mut self, cx: &mut Context, now: Time, slot: Slot, by: CloseReason) {
        let Some(removed) = self.table.remove(slot) else { return };
        cx.output(Output::CloseEcho { flow: removed.flow });
        cx.report_closed(removed.flow, by, removed.value.counters, now.since(removed.value.since));
    }
}

/// Tells the guest what became of its last request.
fn tell(cx: &mut Context, now: Time, echo: &Echo, error: EchoError) {
    let icmp = match error {
        EchoError::HostUnreachable => IcmpError::HostUnreachable,
        EchoError::NetUnreachable => IcmpError::NetUnreachable,
        EchoError::Prohibited | EchoError::NotPermitted => IcmpError::Prohibited,
        // The request is lost, as requests may be.
        EchoError::Resources => return cx.out_of_descriptors(now),
    };
    cx.emit_error(echo.guest, icmp, echo.quote.bytes());
}

fn protocol(remote: IpAddr) -> Protocol {
    match remote {
        IpAddr::V4(_) => Protocol::IcmpV4,
        IpAddr::V6(_) => Protocol::IcmpV6,
    }
}

fn ends(guest: IpAddr, remote: IpAddr) -> Ends {
    Ends { guest: SocketAddr::new(guest, 0), remote: SocketAddr::new(remote, 0) }
}

fn key(remote: IpAddr, ident: u16) -> Key {
    Key::new(remote, [ident, 0, 0])
}
