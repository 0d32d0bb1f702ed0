//! TCP flows whose guest is listened to before anything of it goes on.
//!
//! # Theory of operation
//!
//! A flow that the gate wants checked begins here and not in the relay. What the remote says goes to the guest at once. What
//! the guest says is held until [`GuestStream`] has found in it what it shows and the gate has let that pass. Then:
//!
//! | Shown, and let pass | The flow |
//! |---|---|
//! | TLS, another protocol | is given to the relay, with nothing left over here |
//! | a request | stays here, since the next request is to be looked at as well; bodies pass as they are counted |
//!
//! A denial ends the flow: the remote's side is reset, and the guest gets a last word ([`crate::farewell`]) or a reset. Closing a
//! socket on which something unread lies sends RST, which makes the client lose what it has not read yet. So after a last
//! word the guest's socket is only shut for writing, and what still comes is thrown away until the client has closed.
//!
//! Limits: [`LIMIT`] bytes held, [`BUFFER`] on their way each way; while bytes wait for a destination no more are read.
//! [`PATIENCE`] from the first byte of what is not whole until it is; [`MAX_PARTING`] sockets whose last word was said, for
//! [`PATIENCE`] and [`MAX_UNHEARD`] bytes at most. [`TURN`] bytes before others have their turn.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::time::Duration;

use cofferdam_flight::{Doubt, GuestStream, LIMIT, Look, Protocol, Shown};
use cofferdam_gate::{FlightAnswer, FlightDenial, Mark, Moved, Movers, Way};
use cofferdam_model::{CloseReason, FlowCounters, FlowId, Time};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};

use crate::farewell;
use crate::hash::FlowHash;
use crate::pace::{Leave, Pace};
use crate::poller::{Poller, Ready, Token, Watch};
use crate::relay::{Ended, Side};

/// How long a first flight may take (spec `names.md` §5), and a client to hear the last word.
const PATIENCE: Duration = Duration::from_secs(5);
/// Read at once.
const BUFFER: usize = 16 * 1024;
/// Bytes that all flows together may have here, held or waiting for a socket that takes nothing: those of a guest that
/// begins thousands of handshakes and ends none. The flow that reaches it is refused.
pub(crate) const MAX_KEPT: usize = 32 * 1024 * 1024;
/// How a server's answer begins that has taken an Upgrade (RFC 9110 §15.2.2).
const SWITCHING: &[u8] = b"HTTP/1.1 101";
/// Bytes of one flow and direction before others have their turn.
const TURN: usize = 16 * BUFFER;
/// Sockets whose last word was said; beyond, the oldest is reset.
const MAX_PARTING: usize = 64;
/// What a client may go on sending after the last word: the rest of a request.
const MAX_UNHEARD: usize = 1024 * 1024;

/// The checked flows.
pub(crate) struct Checks {
    flows: HashMap<FlowId, Checked, FlowHash>,
    parting: HashMap<FlowId, Parting, FlowHash>,
    /// By when a flow has to have shown something, or to have gone.
    deadlines: BTreeSet<(Time, FlowId)>,
    /// Flows that used up their turn.
    hungry: Vec<FlowId>,
    movers: Movers,
    buffer: Vec<u8>,
    /// Bytes that the flows have here.
    kept: usize,
    /// How many they may have.
    max_kept: usize,
    /// Flows that were refused for that and not told of yet.
    refused: u64,
}

/// Who decides about what a flow shows: the gate.
pub(crate) type Ask<'a> = &'a mut dyn FnMut(FlowId, &Shown) -> FlightAnswer;

/// What became of a flow.
pub(crate) enum Outcome {
    Waiting,
    Ended(Ended),
    /// It needs no more looking at.
    Free(FlowId, HandOver),
}

/// Two sockets, both in the poller in both directions, and nothing left to send on either.
pub(crate) struct HandOver {
    pub(crate) guest: OwnedFd,
    pub(crate) remote: OwnedFd,
    pub(crate) counters: FlowCounters,
    /// What of it was told.
    pub(crate) mark: Mark,
    /// The end of what each says was read, and not passed on.
    pub(crate) guest_ended: bool,
    pub(crate) remote_ended: bool,
}

struct Checked {
    guest: End,
    remote: End,
    stream: GuestStream,
    /// From the guest, and not let go on yet.
    held: Vec<u8>,
    /// Everything may go on.
    free: bool,
    /// The start of what the remote has said since it was asked for another protocol.
    answer: Option<Vec<u8>>,
    due: Option<Time>,
    /// Something of the guest went on since the flow was last pumped: what is held is not what was held then.
    progress: bool,
    /// Requests and hellos that passed.
    asked: u32,
    /// Bytes of this flow that were counted as kept.
    kept: usize,
    counters: FlowCounters,
    mark: Mark,
}

/// One socket of a flow, and what is to be sent on it.
struct End {
    socket: OwnedFd,
    readable: bool,
    ended: bool,
    shut: bool,
    queue: Vec<u8>,
}

/// A guest's socket on which the last word was said.
struct Parting {
    socket: OwnedFd,
    queue: Vec<u8>,
    unheard: usize,
    due: Time,
}

/// Why a flow is over.
enum Over {
    Reset(Side),
    Denied(Shown, FlightDenial),
    Free,
    /// A budget of the flow is used up.
    Spent,
}

impl Checks {
    pub(crate) fn new() -> Checks {
        Checks {
            flows: HashMap::default(),
            parting: HashMap::default(),
            deadlines: BTreeSet::new(),
            hungry: Vec::new(),
            movers: Movers::default(),
            buffer: vec![0; BUFFER],
            kept: 0,
            max_kept: MAX_KEPT,
            refused: 0,
        }
    }

    /// How many flows were refused since this was asked last, because all together have too many bytes here.
    pub(crate) fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    /// Takes over the two sockets of a flow; `remote_watched`: the remote's is in the poller already, in both directions.
    pub(crate) fn insert(
        &mut self,
        poller: &Poller,
        id: FlowId,
        guest: OwnedFd,
        remote: OwnedFd,
        remote_watched: bool,
    ) -> Result<(), OwnedFd> {
        if !remote_watched && poller.add(&remote, Token::Remote(id), Watch::BothEdges).is_err() {
            return Err(guest);
        }
        if poller.add(&guest, Token::Guest(id), Watch::BothEdges).is_err() {
            return Err(guest);
        }
        let checked = Checked {
            guest: End::new(guest),
            remote: End::new(remote),
            stream: GuestStream::new(),
            held: Vec::new(),
            free: false,
            answer: None,
            due: None,
            progress: false,
            asked: 0,
            kept: 0,
            counters: FlowCounters::default(),
            mark: Mark::default(),
        };
        self.flows.insert(id, checked);
        Ok(())
    }

    /// Whether the flow is one of these, or was and has had its last word.
    pub(crate) fn has(&self, id: FlowId) -> bool {
        !(self.flows.is_empty() && self.parting.is_empty())
            && (self.flows.contains_key(&id) || self.parting.contains_key(&id))
    }

    /// A socket became ready. `None`: it is not one of these.
    pub(crate) fn handle_ready(
        &mut self,
        ask: Ask<'_>,
        pace: &mut Pace<'_>,
        id: FlowId,
        side: Side,
        ready: Ready,
    ) -> Option<Outcome> {
        if self.flows.is_empty() && self.parting.is_empty() {
            return None;
        }
        let Some(checked) = self.flows.get_mut(&id) else { return self.part(id).then_some(Outcome::Waiting) };
        let end = match side {
            Side::Guest => &mut checked.guest,
            Side::Remote => &mut checked.remote,
        };
        end.readable |= ready.read;
        if side == Side::Guest && ready.error && !checked.remote.queue.is_empty() {
            // What it has sent waits for a remote that takes nothing: nobody would read the reset.
            return Some(self.end(pace, id, Over::Reset(Side::Guest)));
        }
        Some(self.pump(ask, pace, id))
    }

    /// Moves what can be moved.
    pub(crate) fn pump(&mut self, ask: Ask<'_>, pace: &mut Pace<'_>, id: FlowId) -> Outcome {
        let now = pace.now();
        let Some(checked) = self.flows.get_mut(&id) else { return Outcome::Waiting };
        let mut budget = [TURN; 2];
        let [up_budget, down_budget] = &mut budget;
        // What the remote said before is for the guest to have before a last word of ours.
        let down = checked.pump_down(pace, &mut self.buffer, id, down_budget);
        let up = down.and_then(|()| checked.pump_up(ask, pace, &mut self.buffer, id, up_budget));
        self.movers.note(id, &mut checked.mark, &checked.counters);
        if checked.held.is_empty() {
            checked.held = Vec::new();
        }
        let kept = checked.held.len() + checked.guest.queue.len() + checked.remote.queue.len();
        let has_grown = kept > checked.kept;
        self.kept = (self.kept + kept).saturating_sub(checked.kept);
        checked.kept = kept;
        match up {
            Ok(()) if self.kept > self.max_kept && has_grown => {
                self.refused += 1;
                let over = doubtful(ask, id, checked.stream.unfinished(&checked.held));
                self.end(pace, id, over)
            }
            Ok(()) => {
                let waits = !checked.held.is_empty() && checked.remote.queue.is_empty();
                if std::mem::take(&mut checked.progress) {
                    self.set_due(now, id, false);
                }
                self.set_due(now, id, waits);
                if budget.contains(&0) && !self.hungry.contains(&id) {
                    self.hungry.push(id);
                }
                Outcome::Waiting
            }
            Err(over) => self.end(pace, id, over),
        }
    }

    fn end(&mut self, pace: &mut Pace<'_>, id: FlowId, over: Over) -> Outcome {
        let now = pace.now();
        self.set_due(now, id, false);
        let Some(mut checked) = self.flows.remove(&id) else { return Outcome::Waiting };
        self.kept = self.kept.saturating_sub(checked.kept);
        let counters = checked.counters;
        match over {
            Over::Reset(side) => {
                if side == Side::Remote {
                    // What it said before it was reset is still to be read. The reset is the end of it, and not a FIN.
                    checked.guest.shut = true;
                    let mut budget = TURN;
                    let _ = checked.pump_down(pace, &mut self.buffer, id, &mut budget);
                }
                reset(&checked.guest.socket);
                reset(&checked.remote.socket);
                let by = if side == Side::Guest { CloseReason::GuestReset } else { CloseReason::RemoteReset };
                Outcome::Ended(Ended { flow: id, by, counters: checked.counters })
            }
            Over::Denied(shown, denial) => {
                reset(&checked.remote.socket);
                match farewell::words(&shown, &denial) {
                    Some(words) if !checked.guest.shut => {
                        let mut queue = checked.guest.queue;
                        queue.extend(words);
                        let due = now + PATIENCE;
                        let parting = Parting { socket: checked.guest.socket, queue, unheard: 0, due };
                        self.take_leave(id, parting);
                    }
                    Some(_) | None => reset(&checked.guest.socket),
                }
                Outcome::Ended(Ended { flow: id, by: CloseReason::Policy, counters })
            }
            Over::Spent => {
                reset(&checked.guest.socket);
                reset(&checked.remote.socket);
                Outcome::Ended(Ended { flow: id, by: CloseReason::Budget, counters })
            }
            Over::Free => {
                let handed = HandOver {
                    guest: checked.guest.socket,
                    remote: checked.remote.socket,
                    counters,
                    mark: checked.mark,
                    guest_ended: checked.guest.ended,
                    remote_ended: checked.remote.ended,
                };
                Outcome::Free(id, handed)
            }
        }
    }

    fn set_due(&mut self, now: Time, id: FlowId, waits: bool) {
        let Some(checked) = self.flows.get_mut(&id) else { return };
        match (checked.due, waits) {
            (None, true) => {
                let due = now + PATIENCE;
                checked.due = Some(due);
                self.deadlines.insert((due, id));
            }
            (Some(due), false) => {
                checked.due = None;
                self.deadlines.remove(&(due, id));
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    fn take_leave(&mut self, id: FlowId, parting: Parting) {
        if self.parting.len() >= MAX_PARTING
            && let Some(oldest) = self.parting.iter().min_by_key(|(_, parting)| parting.due).map(|(id, _)| *id)
        {
            self.gone(oldest, true);
        }
        self.deadlines.insert((parting.due, id));
        self.parting.insert(id, parting);
        self.part(id);
    }

    /// Says the last word and waits for the client to close. `false`: there is no such socket.
    fn part(&mut self, id: FlowId) -> bool {
        let Some(parting) = self.parting.get_mut(&id) else { return false };
        match parting.part(&mut self.buffer) {
            Ok(false) => {}
            Ok(true) => self.gone(id, false),
            Err(_) => self.gone(id, true),
        }
        true
    }

    fn gone(&mut self, id: FlowId, with_reset: bool) {
        if let Some(parting) = self.parting.remove(&id) {
            self.deadlines.remove(&(parting.due, id));
            if with_reset {
                reset(&parting.socket);
            }
        }
    }

    /// Whether flows have moved something that is not told.
    pub(crate) fn has_moved(&self) -> bool {
        !self.movers.is_empty()
    }

    /// Tells what flows have moved since this was last asked.
    pub(crate) fn tell_moved(&mut self, moved: &mut Moved) {
        for id in self.movers.take(moved) {
            if let Some(checked) = self.flows.get_mut(&id) {
                moved.add(id, &mut checked.mark, checked.counters);
            }
        }
    }

    /// Whether flows are waiting for another turn.
    pub(crate) fn is_hungry(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// The flows that used up their turn, to be pumped again.
    pub(crate) fn take_hungry(&mut self) -> Vec<FlowId> {
        std::mem::take(&mut self.hungry)
    }

    /// When [`Checks::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        self.deadlines.first().map(|(due, _)| *due)
    }

    /// Ends a flow whose time is up. `None`: there is no more of them.
    pub(crate) fn handle_timeout(&mut self, ask: Ask<'_>, pace: &mut Pace<'_>) -> Option<Outcome> {
        let now = pace.now();
        while let Some((due, id)) = self.deadlines.first().copied().filter(|(due, _)| *due <= now) {
            self.deadlines.remove(&(due, id));
            if let Some(checked) = self.flows.get_mut(&id) {
                checked.due = None;
                let shown = checked.stream.unfinished(&checked.held);
                return Some(match checked.in_doubt(ask, id, shown) {
                    Ok(length) => {
                        checked.let_go(length);
                        self.pump(ask, pace, id)
                    }
                    Err(over) => self.end(pace, id, over),
                });
            }
            self.gone(id, true);
        }
        None
    }

    /// Resets both ends of a flow.
    pub(crate) fn reset(&mut self, now: Time, id: FlowId, by: CloseReason) -> Option<Ended> {
        self.set_due(now, id, false);
        let checked = self.flows.remove(&id)?;
        self.kept = self.kept.saturating_sub(checked.kept);
        reset(&checked.guest.socket);
        reset(&checked.remote.socket);
        Some(Ended { flow: id, by, counters: checked.counters })
    }

    /// Resets every flow, oldest first.
    pub(crate) fn reset_all(&mut self, now: Time, by: CloseReason) -> Vec<Ended> {
        let mut flows: Vec<FlowId> = self.flows.keys().copied().collect();
        flows.sort_unstable();
        flows.into_iter().filter_map(|flow| self.reset(now, flow, by)).collect()
    }
}

/// The end of a flow that has to end, and whose bytes are in doubt or not whole: whatever the gate says.
fn doubtful(ask: Ask<'_>, id: FlowId, shown: Shown) -> Over {
    match ask(id, &shown) {
        FlightAnswer::Deny(denial) => Over::Denied(shown, denial),
        FlightAnswer::Pass => Over::Reset(Side::Guest),
    }
}

impl Checked {
    /// From the guest to the remote, as far as it is let.
    fn pump_up(
        &mut self,
        ask: Ask<'_>,
        pace: &mut Pace<'_>,
        buffer: &mut [u8],
        id: FlowId,
        budget: &mut usize,
    ) -> Result<(), Over> {
        loop {
            if !self.remote.flush().map_err(|_| Over::Reset(Side::Remote))? || *budget == 0 {
                return Ok(());
            }
            if self.free {
                // The guest's own socket may still have something to take; the relay begins with empty hands.
                return if self.guest.queue.is_empty() { Err(Over::Free) } else { Ok(()) };
            }
            let length = match self.stream.look(&self.held, self.guest.ended) {
                Look::More if self.guest.ended && self.held.is_empty() => {
                    self.free = true;
                    continue;
                }
                Look::More if self.guest.ended => self.in_doubt(ask, id, self.stream.unfinished(&self.held))?,
                Look::More => {
                    if !self.read_guest(pace, buffer, id, budget)? {
                        return Ok(());
                    }
                    continue;
                }
                Look::Ask { shown: shown @ (Shown::Unreadable { .. } | Shown::Unfinished), .. } => {
                    self.in_doubt(ask, id, shown)?
                }
                Look::Ask { shown, length } => match ask(id, &shown) {
                    FlightAnswer::Pass => {
                        self.asked = self.asked.saturating_add(1);
                        // Behind an earlier answer nothing tells the next one's head from that one's body.
                        let is_first = self.asked == 1 && self.counters.bytes_in == 0;
                        let taken = if is_first { Vec::new() } else { vec![0; SWITCHING.len()] };
                        self.answer = self.stream.is_upgrading().then_some(taken);
                        length
                    }
                    FlightAnswer::Deny(denial) => return Err(Over::Denied(shown, denial)),
                },
                Look::Pass(length) => length,
                Look::Upgraded => match self.took_upgrade() {
                    Some(true) => {
                        self.free = true;
                        self.held.len()
                    }
                    Some(false) => {
                        self.in_doubt(ask, id, Shown::Unreadable { protocol: Protocol::Http, doubt: Doubt::Malformed })?
                    }
                    None => return Ok(()),
                },
                Look::Free => {
                    self.free = true;
                    self.held.len()
                }
            };
            self.let_go(length);
        }
    }

    /// So many bytes of what is held go on.
    fn let_go(&mut self, length: usize) {
        let length = length.min(self.held.len());
        self.progress = true;
        self.remote.queue.extend(self.held.drain(..length));
        self.counters.bytes_out = self.counters.bytes_out.saturating_add(length as u64);
    }

    /// What is held cannot be read for sure, or is not whole and will not be. How much of it may go on: all, where the gate lets
    /// a flow pass whatever it shows, and then nothing more is looked at.
    fn in_doubt(&mut self, ask: Ask<'_>, id: FlowId, shown: Shown) -> Result<usize, Over> {
        match ask(id, &shown) {
            FlightAnswer::Pass => {
                self.free = true;
                Ok(self.held.len())
            }
            FlightAnswer::Deny(denial) => Err(Over::Denied(shown, denial)),
        }
    }

    /// Whether the remote has taken the Upgrade it was asked for. `None`: it has not answered.
    fn took_upgrade(&self) -> Option<bool> {
        let answer = self.answer.as_deref().unwrap_or_default();
        match answer.get(..SWITCHING.len()) {
            Some(start) => Some(start == SWITCHING),
            None if self.remote.ended => Some(false),
            None => None,
        }
    }

    /// Reads more of the guest, up to what may be held. `false`: there is nothing.
    fn read_guest(
        &mut self,
        pace: &mut Pace<'_>,
        buffer: &mut [u8],
        id: FlowId,
        budget: &mut usize,
    ) -> Result<bool, Over> {
        if !self.guest.readable {
            return Ok(false);
        }
        let Some(most) = self.guest.leave(pace, id, Way::Egress)? else { return Ok(false) };
        let room = LIMIT.saturating_sub(self.held.len()).min(buffer.len()).min(most);
        let place = buffer.get_mut(..room).unwrap_or_default();
        match rustix::net::recv(&self.guest.socket, &mut *place, RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.guest.ended = true,
            Ok((n, _)) => {
                *budget = budget.saturating_sub(n);
                pace.spend(id, Way::Egress, n);
                self.held.extend_from_slice(place.get(..n).unwrap_or_default());
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => self.guest.readable = false,
            Err(_) => return Err(Over::Reset(Side::Guest)),
        }
        Ok(self.guest.readable)
    }

    /// From the remote to the guest.
    fn pump_down(
        &mut self,
        pace: &mut Pace<'_>,
        buffer: &mut [u8],
        id: FlowId,
        budget: &mut usize,
    ) -> Result<(), Over> {
        loop {
            if !self.guest.flush().map_err(|_| Over::Reset(Side::Guest))? || *budget == 0 {
                return Ok(());
            }
            if self.remote.ended {
                self.guest.shut_down();
                return Ok(());
            }
            if !self.remote.readable {
                return Ok(());
            }
            let Some(most) = self.remote.leave(pace, id, Way::Ingress)? else { return Ok(()) };
            let place = buffer.get_mut(..most.min(BUFFER)).unwrap_or_default();
            match rustix::net::recv(&self.remote.socket, &mut *place, RecvFlags::DONTWAIT) {
                Ok((0, _)) => self.remote.ended = true,
                Ok((n, _)) => {
                    pace.spend(id, Way::Ingress, n);
                    *budget = budget.saturating_sub(n);
                    self.counters.bytes_in = self.counters.bytes_in.saturating_add(n as u64);
                    let said = buffer.get(..n).unwrap_or_default();
                    if let Some(answer) = &mut self.answer {
                        let missing = SWITCHING.len().saturating_sub(answer.len());
                        answer.extend_from_slice(said.get(..missing.min(n)).unwrap_or_default());
                    }
                    self.guest.queue.extend_from_slice(said);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.remote.readable = false,
                Err(_) => return Err(Over::Reset(Side::Remote)),
            }
        }
    }
}

impl End {
    fn new(socket: OwnedFd) -> End {
        // Whatever came before the socket was watched was announced to nobody.
        End { socket, readable: true, ended: false, shut: false, queue: Vec::new() }
    }

    /// What may be read from it now.
    fn leave(&mut self, pace: &mut Pace<'_>, id: FlowId, way: Way) -> Result<Option<usize>, Over> {
        if pace.is_unlimited() {
            return Ok(Some(usize::MAX));
        }
        match pace.leave(id, way, &self.socket) {
            Leave::Read(most) => Ok(Some(most)),
            Leave::Wait => Ok(None),
            Leave::Nothing => {
                self.readable = false;
                Ok(None)
            }
            Leave::Broken => Err(Over::Reset(match way {
                Way::Egress => Side::Guest,
                Way::Ingress => Side::Remote,
            })),
            Leave::End => Err(Over::Spent),
        }
    }

    /// Sends what is queued. `false`: the socket takes no more for the time being.
    fn flush(&mut self) -> Result<bool, Errno> {
        flush(&self.socket, &mut self.queue)
    }

    /// Passes on that the other side has ended, once.
    fn shut_down(&mut self) {
        if !self.shut {
            self.shut = true;
            let _ = rustix::net::shutdown(&self.socket, Shutdown::Write);
        }
    }
}

impl Parting {
    /// `true` when the client has closed, or has sent more than anybody has to listen to.
    fn part(&mut self, buffer: &mut [u8]) -> Result<bool, Errno> {
        if !self.queue.is_empty() {
            if !flush(&self.socket, &mut self.queue)? {
                return Ok(false);
            }
            rustix::net::shutdown(&self.socket, Shutdown::Write)?;
        }
        loop {
            match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Ok(true),
                Ok((n, _)) => {
                    self.unheard = self.unheard.saturating_add(n);
                    if self.unheard > MAX_UNHEARD {
                        return Ok(true);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Sends from the front of `queue`. `false`: the socket takes no more for the time being.
fn flush(socket: &OwnedFd, queue: &mut Vec<u8>) -> Result<bool, Errno> {
    while !queue.is_empty() {
        match rustix::net::send(socket, queue, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => drop(queue.drain(..sent.min(queue.len()))),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    if queue.capacity() > 0 {
        // Between two requests nothing of a connection's buffers is kept.
        *queue = Vec::new();
    }
    Ok(true)
}

/// Has a socket close with RST (socket(7): a linger time of zero).
fn reset(socket: &OwnedFd) {
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};

    use cofferdam_gate::Limits;
    use cofferdam_model::{DecisionId, EventBody, FlowProgress};

    use super::*;
    use crate::pace::Queues;

    const FLOW: FlowId = FlowId(1);
    const GOOD: &[u8] = b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n";
    const EVIL: &[u8] = b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n";

    /// One flow between two programs; the judge lets everything pass but evil.example and what is in doubt.
    struct World {
        checks: Checks,
        limits: Limits,
        queues: Queues,
        poller: Poller,
        now: Time,
        asked: Vec<Shown>,
        ended: Option<Ended>,
        free: Option<HandOver>,
        guest: TcpStream,
        remote: TcpStream,
        /// What is in doubt passes as well.
        lenient: bool,
    }

    fn connection() -> (TcpStream, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        far.set_nonblocking(true).unwrap();
        near.set_nonblocking(true).unwrap();
        near.set_nodelay(true).unwrap();
        (near, far.into())
    }

    fn judge(shown: &Shown, lenient: bool) -> FlightAnswer {
        let evil = shown.names().iter().any(|name| name.as_str() == "evil.example");
        let doubt = matches!(shown, Shown::Unreadable { .. } | Shown::Unfinished);
        if evil || doubt && !lenient {
            let decision = Some(DecisionId(7));
            FlightAnswer::Deny(FlightDenial {
                decision,
                domain: shown.names().first().cloned(),
                rule: "rule".into(),
                look_up_again: None,
            })
        } else {
            FlightAnswer::Pass
        }
    }

    impl World {
        fn new() -> World {
            let ((guest, inner), (remote, outer)) = (connection(), connection());
            let (mut checks, poller) = (Checks::new(), Poller::new().unwrap());
            assert!(checks.insert(&poller, FLOW, inner, outer, false).is_ok());
            let now = Time::ZERO;
            let (limits, queues) = (Limits::none(), Queues::default());
            World {
                checks,
                limits,
                queues,
                poller,
                now,
                asked: Vec::new(),
                ended: None,
                free: None,
                guest,
                remote,
                lenient: false,
            }
        }

        fn outcome(&mut self, outcome: Outcome) {
            match outcome {
                Outcome::Waiting => {}
                Outcome::Ended(ended) => self.ended = Some(ended),
                Outcome::Free(_, handed) => self.free = Some(handed),
            }
        }

        /// Runs until nothing is ready any more.
        fn settle(&mut self) {
            let mut ready = Vec::new();
            for _ in 0..100_000 {
                self.poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
                let hungry = self.checks.take_hungry();
                if ready.is_empty() && hungry.is_empty() {
                    return;
                }
                let mut outcomes = Vec::new();
                let (asked, lenient) = (&mut self.asked, self.lenient);
                let mut ask = |_: FlowId, shown: &Shown| {
                    asked.push(shown.clone());
                    judge(shown, lenient)
                };
                for (token, ready) in ready.drain(..) {
                    let side = if matches!(token, Token::Guest(_)) { Side::Guest } else { Side::Remote };
                    let mut pace = Pace::new(&mut self.limits, &mut self.queues, self.now);
                    outcomes.extend(self.checks.handle_ready(&mut ask, &mut pace, FLOW, side, ready));
                }
                for flow in hungry {
                    let mut pace = Pace::new(&mut self.limits, &mut self.queues, self.now);
                    outcomes.push(self.checks.pump(&mut ask, &mut pace, flow));
                }
                outcomes.into_iter().for_each(|outcome| self.outcome(outcome));
            }
            panic!("it does not come to rest");
        }

        fn say(&mut self, bytes: &[u8]) {
            self.guest.write_all(bytes).unwrap();
            self.settle();
        }

        fn pass(&mut self, time: Duration) {
            self.now = self.now + time;
            let (asked, lenient) = (&mut self.asked, self.lenient);
            let mut ask = |_: FlowId, shown: &Shown| {
                asked.push(shown.clone());
                judge(shown, lenient)
            };
            let mut pace = Pace::new(&mut self.limits, &mut self.queues, self.now);
            if let Some(outcome) = self.checks.handle_timeout(&mut ask, &mut pace) {
                self.outcome(outcome);
            }
            self.settle();
        }
    }

    /// What has come, and how it ended: nothing yet, FIN or RST.
    fn heard(mut stream: &TcpStream) -> (Vec<u8>, Option<Result<(), ErrorKind>>) {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return (all, Some(Ok(()))),
                Ok(n) => all.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return (all, None),
                Err(error) => return (all, Some(Err(error.kind()))),
            }
        }
    }

    #[test]
    fn a_flow_that_would_hold_too_much_together_with_others_is_refused_and_counted() {
        let mut world = World::new();
        world.checks.max_kept = 100;
        world.say(b"GET / HTTP/1.1\r\nHost: good.example\r\nX: ");
        assert!(world.ended.is_none());
        assert_eq!(world.checks.take_refused(), 0);
        world.say(&[b'x'; 100]);
        assert!(world.ended.is_some());
        assert_eq!(world.asked.len(), 1, "the gate hears of it, and the client is told");
        assert_eq!((world.checks.take_refused(), world.checks.take_refused()), (1, 0));
        assert_eq!(world.checks.kept, 0);
    }

    #[test]
    fn the_body_of_an_earlier_answer_is_not_taken_for_101() {
        let mut world = World::new();
        world.say(GOOD);
        world.remote.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n").unwrap();
        world.settle();
        world.say(b"GET / HTTP/1.1\r\nHost: good.example\r\nUpgrade: x\r\n\r\n\x81anything");
        world.settle();
        assert!(world.free.is_none() && world.ended.is_some());
    }

    #[test]
    fn a_server_that_speaks_first_is_heard_at_once_and_the_guest_when_it_has_shown_something() {
        let mut world = World::new();
        world.remote.write_all(b"220 ready\r\n").unwrap();
        world.settle();
        assert_eq!(heard(&world.guest), (b"220 ready\r\n".to_vec(), None));
        world.pass(PATIENCE * 100);
        assert!(world.asked.is_empty() && world.ended.is_none(), "a silent client is not hurried");
        world.say(b"EHLO ");
        assert_eq!(heard(&world.remote), (Vec::new(), None));
        world.say(b"x\r\nMAIL");
        assert_eq!(heard(&world.remote), (b"EHLO x\r\nMAIL".to_vec(), None));
        assert_eq!(world.asked, [Shown::Other]);
        let handed = world.free.take().unwrap();
        assert_eq!(handed.counters, FlowCounters { bytes_out: 12, bytes_in: 11, ..FlowCounters::default() });
        assert!(world.checks.flows.is_empty() && world.checks.poll_timeout().is_none());
    }

    #[test]
    fn what_a_flow_that_stays_here_has_moved_is_told_once() {
        let mut world = World::new();
        let told = |world: &mut World| {
            let mut moved = Moved::default();
            world.checks.tell_moved(&mut moved);
            moved.into_event()
        };
        world.say(GOOD);
        let counters = FlowCounters { bytes_out: GOOD.len() as u64, ..FlowCounters::default() };
        let flows = vec![FlowProgress { flow: FLOW, counters }];
        assert!(world.checks.has_moved());
        assert_eq!(told(&mut world), Some(EventBody::FlowProgress { flows, more: 0 }));
        world.settle();
        assert!(!world.checks.has_moved() && told(&mut world).is_none());
    }

    #[test]
    fn every_request_is_asked_about_and_the_denied_one_is_answered() {
        let mut world = World::new();
        world.say(GOOD);
        assert_eq!(heard(&world.remote), (GOOD.to_vec(), None));
        world.remote.write_all(b"HTTP/1.1 204 No\r\n\r\n").unwrap();
        world.say(GOOD);
        assert_eq!((world.asked.len(), heard(&world.remote).0), (2, GOOD.to_vec()));
        world.say(EVIL);
        let ended = world.ended.unwrap();
        assert_eq!((ended.by, ended.counters.bytes_out), (CloseReason::Policy, 2 * GOOD.len() as u64));
        assert_eq!(heard(&world.remote), (Vec::new(), Some(Err(ErrorKind::ConnectionReset))));
        let (said, end) = heard(&world.guest);
        let said = String::from_utf8(said).unwrap();
        assert!(
            said.starts_with("HTTP/1.1 204 No\r\n\r\nHTTP/1.1 403 ") && said.contains("\"decision\":\"7\""),
            "{said}"
        );
        assert_eq!(end, Some(Ok(())));
        // What the client still sends is not answered with RST, which could overtake the last word.
        world.say(b"the rest");
        assert_eq!(heard(&world.guest).1, Some(Ok(())));
        world.guest.shutdown(std::net::Shutdown::Both).unwrap();
        world.settle();
        assert!(world.checks.parting.is_empty() && world.checks.deadlines.is_empty());
    }

    #[test]
    fn requests_in_one_segment_are_asked_about_one_by_one() {
        let mut world = World::new();
        world.say(&[GOOD, EVIL, GOOD].concat());
        assert_eq!(world.asked.len(), 2);
        assert_eq!(world.ended.unwrap().by, CloseReason::Policy);
    }

    #[test]
    fn another_protocol_passes_when_the_server_has_taken_it() {
        let upgrade = b"GET / HTTP/1.1\r\nHost: good.example\r\nUpgrade: websocket\r\n\r\n";
        let frame = [0x81, 0x80, 1, 2, 3, 4];
        for (answer, taken) in
            [(&b"HTTP/1.1 101 Yes\r\n\r\n"[..], true), (b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 101", false)]
        {
            let mut world = World::new();
            world.say(&[&upgrade[..], &frame].concat());
            assert_eq!(heard(&world.remote), (upgrade.to_vec(), None));
            for byte in answer {
                world.remote.write_all(&[*byte]).unwrap();
                world.settle();
                if !taken && world.ended.is_some() {
                    break;
                }
            }
            assert_eq!(world.free.is_some(), taken);
            assert_eq!(world.ended.map(|ended| ended.by), (!taken).then_some(CloseReason::Policy));
            assert_eq!(heard(&world.remote).0, if taken { &frame[..] } else { b"" });
        }
        // A request after one that was not taken is a request.
        let mut world = World::new();
        world.say(&[&upgrade[..], EVIL].concat());
        assert_eq!((world.asked.len(), world.ended.unwrap().by), (2, CloseReason::Policy));
    }

    #[test]
    fn what_is_not_whole_in_time_is_denied() {
        for (bytes, answered) in [(&b"GET / HTTP/1.1\r\nHo"[..], true), (b"hel", false), (&[22, 3, 1, 0, 200, 1], true)]
        {
            let mut world = World::new();
            world.say(bytes);
            world.pass(PATIENCE - Duration::from_millis(1));
            assert!(world.ended.is_none());
            world.say(b"x");
            world.pass(Duration::from_millis(1));
            assert_eq!(world.ended.unwrap().by, CloseReason::Policy);
            assert_eq!(heard(&world.remote), (Vec::new(), Some(Err(ErrorKind::ConnectionReset))));
            let (said, end) = heard(&world.guest);
            assert_eq!((!said.is_empty(), end.is_some_and(|end| end.is_ok())), (answered, answered), "{bytes:?}");
            world.pass(PATIENCE);
            assert!(world.checks.parting.is_empty() && world.checks.deadlines.is_empty());
        }
    }

    #[test]
    fn what_is_in_doubt_goes_on_where_the_gate_lets_it() {
        let malformed = b"\x16\x03\x01\xff\xff not a hello".to_vec();
        let half = b"GET / HT".to_vec();
        for (bytes, how) in [(malformed, "at once"), (half.clone(), "in time"), (half, "at the end")] {
            let mut world = World { lenient: true, ..World::new() };
            world.say(&bytes);
            match how {
                "in time" => world.pass(PATIENCE),
                "at the end" => {
                    world.guest.shutdown(std::net::Shutdown::Write).unwrap();
                    world.settle();
                }
                _ => {}
            }
            assert!(world.free.is_some() && world.ended.is_none(), "{how}");
            assert_eq!(world.asked.len(), 1, "{how}: {:?}", world.asked);
            assert_eq!(heard(&world.remote).0, bytes, "{how}");
        }
    }

    #[test]
    fn a_client_that_goes_on_is_not_late() {
        let mut world = World::new();
        let (start, rest) = GOOD.split_at(9);
        world.say(start);
        for _ in 0..20 {
            world.pass(PATIENCE / 2);
            world.say(&[rest, start].concat());
        }
        assert!(world.ended.is_none());
        assert_eq!(world.asked.len(), 20);
    }

    #[test]
    fn too_much_without_a_name_is_denied() {
        let mut world = World::new();
        world.say(&[b"GET / HTTP/1.1\r\nX: ", &[b'x'; 2 * LIMIT][..]].concat());
        assert_eq!(world.ended.unwrap().by, CloseReason::Policy);
        assert_eq!(heard(&world.remote).0, b"");
    }

    #[test]
    fn large_bodies_pass_both_ways_with_back_pressure() {
        let mut world = World::new();
        let body = vec![7; 8 << 20];
        let head = format!("PUT / HTTP/1.1\r\nHost: good.example\r\nContent-Length: {}\r\n\r\n", body.len());
        let up = [head.as_bytes(), &body, GOOD].concat();
        let (mut sent, mut got, mut answered, mut answer) = (0, Vec::new(), 0, Vec::new());
        for round in 0.. {
            if got.len() == up.len() && answer.len() == body.len() {
                break;
            }
            sent += world.guest.write(&up[sent..]).unwrap_or(0);
            answered += world.remote.write(&body[answered..]).unwrap_or(0);
            world.settle();
            let checked = &world.checks.flows[&FLOW];
            assert!(
                checked.held.len() + checked.remote.queue.len() <= 2 * LIMIT && checked.guest.queue.len() <= BUFFER
            );
            // Nobody reads at first, and everything comes to rest.
            if round > 20 {
                got.extend(heard(&world.remote).0);
                answer.extend(heard(&world.guest).0);
            }
        }
        assert!(got == up && answer == body);
        assert_eq!(world.asked.len(), 2);
    }

    #[test]
    fn ends_pass_on_in_both_directions() {
        let mut world = World::new();
        world.remote.write_all(b"bye").unwrap();
        world.remote.shutdown(std::net::Shutdown::Write).unwrap();
        world.settle();
        assert_eq!(heard(&world.guest), (b"bye".to_vec(), Some(Ok(()))));
        world.say(GOOD);
        assert_eq!(heard(&world.remote).0, GOOD);
        world.guest.shutdown(std::net::Shutdown::Write).unwrap();
        world.settle();
        let handed = world.free.take().unwrap();
        assert!(handed.guest_ended && handed.remote_ended);
    }

    #[test]
    fn a_reset_arrives_as_a_reset() {
        for (from_remote, has_rates) in [(true, false), (false, false), (true, true), (false, true)] {
            let mut world = World::new();
            if has_rates {
                world.limits = crate::pace::tests::rates(1, Duration::from_secs(3600));
                world.remote.write_all(b"x").unwrap();
                world.say(b"G");
                assert_eq!(world.guest.read(&mut [0; 2]).unwrap(), 1);
            }
            let (from, to) = if from_remote { (&world.remote, &world.guest) } else { (&world.guest, &world.remote) };
            let to = to.try_clone().unwrap();
            sockopt::set_socket_linger(from, Some(Duration::ZERO)).unwrap();
            let replacement = connection().0;
            if from_remote {
                world.remote = replacement;
            } else {
                world.guest = replacement;
            }
            world.settle();
            assert_eq!(heard(&to).1, Some(Err(ErrorKind::ConnectionReset)));
            let by = if from_remote { CloseReason::RemoteReset } else { CloseReason::GuestReset };
            assert_eq!(world.ended.unwrap().by, by);
        }
    }

    #[test]
    fn a_reset_of_the_guest_arrives_though_the_remote_takes_nothing() {
        let mut world = World::new();
        let body = vec![7; 64 << 10];
        world.say(format!("PUT / HTTP/1.1\r\nHost: good.example\r\nContent-Length: {}\r\n\r\n", u32::MAX).as_bytes());
        while world.guest.write(&body).is_ok() {
            world.settle();
        }
        assert!(!world.checks.flows[&FLOW].remote.queue.is_empty(), "the remote is full");
        sockopt::set_socket_linger(&world.guest, Some(Duration::ZERO)).unwrap();
        world.guest = connection().0;
        world.settle();
        assert_eq!(world.ended.unwrap().by, CloseReason::GuestReset);
        assert_eq!(heard(&world.remote).1, Some(Err(ErrorKind::ConnectionReset)));
        assert!(world.checks.flows.is_empty() && world.checks.kept == 0);
    }

    #[test]
    fn last_words_are_bounded() {
        let mut checks = Checks::new();
        let mut peers = Vec::new();
        for number in 0..MAX_PARTING as u64 + 5 {
            let (near, far) = connection();
            let due = Time::ZERO + PATIENCE + Duration::from_millis(number);
            checks.take_leave(FlowId(number), Parting { socket: far, queue: b"bye".to_vec(), unheard: 0, due });
            peers.push(near);
        }
        assert_eq!((checks.parting.len(), checks.deadlines.len()), (MAX_PARTING, MAX_PARTING));
        assert!(!checks.parting.contains_key(&FlowId(4)) && checks.parting.contains_key(&FlowId(5)));
        assert_eq!(heard(&peers[5]), (b"bye".to_vec(), Some(Ok(()))));
    }
}
