//! Connections of the guest to sockets of the host.
//!
//! The shell has accepted such a connection on a listener inside before the gate hears of it. Naming the socket was the permit,
//! so that no rule is asked; what is asked are the limits.
//!
//! | State   | Event                        | Next    | Effect                                     |
//! |---------|------------------------------|---------|--------------------------------------------|
//! | –       | connection, over a limit     | –       | the shell closes it                        |
//! | –       | connection                   | Dialing | the shell connects to the host's socket    |
//! | Dialing | connected                    | Live    | the shell relays                           |
//! | Dialing | the server's queue is full   | Waiting |                                            |
//! | Waiting | [`PAUSE`]                    | Dialing | the shell tries again                      |
//! | Dialing | any other error              | –       | the shell closes it                        |
//! | Dialing, Waiting | [`PATIENCE`]        | –       | the shell closes it                        |
//! | Live    | closed                       | –       |                                            |
//!
//! There is no event for room in a server's queue, so whoever waits asks again, in the order of coming and [`AGAIN`] at a time.
//!
//! Limits: these connections and those of TCP are `max_connections` together. A connection is an operation out of the sandbox,
//! its bytes count for the rates, and for the budgets of the whole run.

use std::time::Duration;

use cofferdam_model::{CloseReason, EventBody, FlowCounters, FlowId, HostSocket, LimitKind, Process, SocketId, Time};

use crate::api::{Output, SocketError};
use crate::context::Context;
use crate::hash::Seeded;
use crate::limits::Way;
use crate::table::{Slot, Table};

/// Between two attempts while the server's queue is full: a server that takes from it again is met soon, and one that does not
/// costs little.
const PAUSE: Duration = Duration::from_millis(20);
/// Attempts that come again at once, half a common queue (128, `SOMAXCONN` of old), and the time before the next of them.
const AGAIN: usize = 64;
const REST: Duration = Duration::from_millis(5);
/// How long a connection may wait to be taken. A client of the socket itself would wait for ever, but does not hold a place in a
/// table of ours meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

const DIALING: usize = 0;
const WAITING: usize = 1;
const LIVE: usize = 2;

#[derive(Debug)]
pub(crate) struct HostSockets {
    table: Table<u64, Connection, 3>,
    /// When others that wait may try again.
    rested: Time,
}

#[derive(Debug)]
struct Connection {
    socket: SocketId,
    /// When it was accepted, and later opened.
    since: Time,
    /// The number of the process that has connected, as the gateway counts.
    who: Option<u32>,
}

impl HostSockets {
    pub(crate) fn new(hasher: Seeded) -> HostSockets {
        HostSockets { table: Table::new(hasher), rested: Time::ZERO }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// A connection was accepted. `None`: close it.
    pub(crate) fn handle_connection(
        &mut self,
        cx: &mut Context,
        now: Time,
        socket: SocketId,
        who: Option<u32>,
    ) -> Option<FlowId> {
        named(cx, socket)?;
        let bound = cx.config.limits.max_connections;
        if let Err((limit, bound)) = cx.find_room(cx.connected.outward, bound, LimitKind::Connections) {
            cx.limit(now, limit, bound);
            return None;
        }
        if cx.limits.in_the_way(cx.limits.whole_run()).is_some() {
            cx.limit(now, LimitKind::Budget, 0);
            return None;
        }
        if !cx.limits.admit_connection(now, Way::Egress) {
            return None;
        }
        let flow = cx.new_flow();
        self.table.insert(now, DIALING, flow.0, flow, Connection { socket, since: now, who });
        cx.output(Output::DialSocket { flow, socket });
        Some(flow)
    }

    /// An attempt to connect to the host's socket has ended. Whether the connection is to be relayed.
    pub(crate) fn handle_dialed(
        &mut self,
        cx: &mut Context,
        now: Time,
        flow: FlowId,
        result: Result<(), SocketError>,
    ) -> bool {
        let Some(slot) = self.table.find_flow(flow) else { return false };
        let Some((_, connection)) = self.table.get_mut(slot) else { return false };
        match result {
            Ok(()) => {
                connection.since = now;
                if let Some(HostSocket { host, guest }) = named(cx, connection.socket) {
                    let process = connection.who.map(Process::seen_from_outside);
                    cx.event(EventBody::SocketOpened { flow, host, guest, process });
                }
                cx.limits.open(flow, cx.limits.whole_run());
                self.table.touch(now, slot, LIVE);
                true
            }
            Err(SocketError::Busy) => {
                self.table.touch(now, slot, WAITING);
                false
            }
            Err(error) => {
                self.fail(cx, now, slot, error);
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
        let Some(removed) = self.table.find_flow(flow).and_then(|slot| self.table.remove(slot)) else { return false };
        cx.limits.close(flow);
        let duration_ms = u64::try_from(now.since(removed.value.since).as_millis()).unwrap_or(u64::MAX);
        cx.event(EventBody::SocketClosed { flow, by, counters, duration_ms });
        true
    }

    pub(crate) fn handle_timeout(&mut self, cx: &mut Context, now: Time) {
        for left in (0..if self.rested <= now { AGAIN } else { 0 }).rev() {
            let Some((slot, _)) = self.table.front(WAITING).filter(|(_, touched)| *touched + PAUSE <= now) else {
                break;
            };
            if left == 0 {
                self.rested = now + REST;
            }
            let Some((flow, connection)) = self.table.get_mut(slot) else { break };
            let socket = connection.socket;
            if connection.since + PATIENCE <= now {
                self.fail(cx, now, slot, SocketError::Busy);
                continue;
            }
            self.table.touch(now, slot, DIALING);
            cx.output(Output::DialSocket { flow, socket });
        }
        // Nobody has said how it went, which the shell does at once: its helper is stuck, on a file system that is gone say.
        while let Some((slot, touched)) = self.table.front(DIALING)
            && touched + PATIENCE <= now
        {
            self.fail(cx, now, slot, SocketError::TimedOut);
        }
    }

    pub(crate) fn deadline(&self) -> Option<Time> {
        let waiting = self.table.front(WAITING).map(|(_, touched)| (touched + PAUSE).max(self.rested));
        let dialing = self.table.front(DIALING).map(|(_, touched)| touched + PATIENCE);
        waiting.into_iter().chain(dialing).min()
    }

    /// There are other budgets: finds those of the live connections.
    pub(crate) fn handle_limits(&mut self, cx: &mut Context) {
        let budgets = cx.limits.whole_run();
        for slot in self.table.slots(LIVE) {
            if let Some((flow, _)) = self.table.get_mut(slot) {
                cx.limits.open(flow, budgets);
            }
        }
    }

    fn fail(&mut self, cx: &mut Context, now: Time, slot: Slot, error: SocketError) {
        let Some(removed) = self.table.remove(slot) else { return };
        if error == SocketError::Resources {
            cx.out_of_descriptors(now);
        }
        cx.output(Output::AbandonSocket { flow: removed.flow });
        if let Some(HostSocket { host, guest }) = named(cx, removed.value.socket) {
            cx.event(EventBody::SocketFailed { flow: removed.flow, host, guest, error: error.to_string() });
        }
    }
}

fn named(cx: &Context, SocketId(at): SocketId) -> Option<HostSocket> {
    cx.config.host_sockets.get(usize::try_from(at).ok()?).cloned()
}
