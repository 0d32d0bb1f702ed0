//! The relay: bytes between the two sockets of a TCP flow.
//!
//! # Theory of operation
//!
//! A flow is two connected, non-blocking sockets, both in edge-triggered epoll, and two *lanes*, one per direction. A lane
//! knows whether its source may have something to read and whether its destination may take something; it is *pumped*
//! when either becomes true and stops when either becomes false.
//!
//! | Lane has | Source | Destination | Effect |
//! |---|---|---|---|
//! | bytes in a pipe | – | ready | splice pipe → destination until empty; give the pipe back |
//! | nothing | ready | ready | a small read and a send; when the read was full, splice source → pipe → destination |
//! | nothing, source at its end | – | – | `shutdown(destination, SHUT_WR)`, once |
//! | nothing | reset | – | reset the destination (RST, not FIN): what came before the reset was passed on |
//! | bytes in a pipe | the guest, reset | takes no more | reset the destination, which may not read for a long time; what waits is lost |
//! | bytes | – | in error | the lane is *cut*; the other one goes on to its end |
//!
//! A remote that resets has said things before, which its kernel took as delivered once ours had them. They are the guest's to
//! read, however late it does, and the RST follows when all of them have been sent. A guest that goes on talking in the meantime
//! is reset at once, as its own kernel would be: it may be stuck in a write and read nothing before that fails, and what its
//! kernel has it can still read.
//!
//! The ends of a connection to a socket of the host are Unix sockets. Bytes are all that is read from them, so that no
//! descriptor passes. An error on one of those says less than a reset: `ECONNRESET`, that the peer has closed with something
//! unread, and `EPIPE`, that it has stopped reading. So neither loses what was said the other way. When a lane is cut, its
//! source can write no more (`EPIPE`), as if the peer were its own; what it wrote and nobody read closes as `ECONNRESET`, as
//! long as it lies in our socket. There is no reset to send, so a flow that we end (a limit, a narrower policy, the sandbox's
//! end) is an end of the stream for a reader.
//!
//! A pipe is lent to a lane only while it holds bytes, so an idle flow owns two sockets and this struct, nothing more. When a
//! destination stops reading, one pipe's worth waits here and the source's own window closes: back-pressure is the
//! kernel's, not a buffer of ours.
//!
//! A sleeping gateway that is woken for each packet of a fast transfer spends most of its time on being woken. So once a lane has
//! moved [`STREAM`] bytes with nothing the other way, its source counts as readable only when [`COMPANY`] bytes are there, which its
//! kernel sees to (`SO_RCVLOWAT`), or when it has ended; what is less is looked for after [`COMPANY_TIME`]. A look that finds little,
//! or a byte the other way, ends that: what asks and is answered never waits for company.
//!
//! Limits: [`TURN`] bytes per lane and turn, so that one flow cannot starve the others; pipes are pooled, at most
//! [`POOL`] idle ones are kept. Without a pipe (`pipe-user-pages-soft`, descriptors) a lane falls back to read and write.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use cofferdam_gate::{Mark, Moved, Movers, Way};
use cofferdam_model::{CloseReason, FlowCounters, FlowId, Time};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use rustix::pipe::{PipeFlags, SpliceFlags};

use crate::check::HandOver;
use crate::hash::FlowHash;
use crate::pace::{Leave, Pace};
use crate::poller::{Poller, Ready, Token, Watch};

/// The first read of a lane that was idle. Small exchanges never touch a pipe; a full read switches to splice.
const SMALL: usize = 4096;

/// The size of a pipe. It counts as 64 slots of a page each against `fs.pipe-user-pages-soft`, but a slot holds whatever
/// piece of a packet the network stack has, often 32 KiB.
const PIPE: usize = 256 * 1024;

/// What one splice may move: what 64 slots hold at their fullest is rarely more. With 256 KiB a transfer over eight
/// streams ran at two thirds of the rate.
const CHUNK: usize = 1024 * 1024;

/// Bytes a lane may move before the others have their turn: half a millisecond at 20 Gbit/s.
const TURN: usize = CHUNK;

/// Idle pipes that are kept. One is enough while no destination blocks; a few save making them under back-pressure.
const POOL: usize = 8;

/// Bytes of the buffer for lanes without a pipe.
const COPY: usize = 64 * 1024;

/// Bytes one way, with none the other, after which a lane is a stream: those of 7 ms at 40 Gbit/s, so that what waits at the end of a
/// piece for [`COMPANY_TIME`], if its sender then waits for an answer, is little beside it.
const STREAM: u64 = 32 << 20;

/// Bytes of a stream that are worth a wake-up. One stream up and down ran at 0.75 and 0.66 of a plain veth's rate when woken for
/// each packet, at 0.74 and 0.58 with 128 KiB, 0.84 and 0.65 with 256 KiB, 0.87 and 0.74 with 512 KiB, and little faster with more.
const COMPANY: i32 = 512 << 10;

/// How long fewer wait.
const COMPANY_TIME: Duration = Duration::from_micros(500);

/// The relayed flows and what they share.
pub(crate) struct Relay {
    flows: HashMap<FlowId, Flow, FlowHash>,
    movers: Movers,
    tools: Tools,
    /// Flows that used up their turn.
    hungry: Vec<FlowId>,
    /// Flows with a stream whose source was found drained, and when that was; oldest first. Some have had more since.
    resting: VecDeque<(Time, FlowId)>,
}

/// A flow that has ended, for the gate's books.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(crate) flow: FlowId,
    pub(crate) by: CloseReason,
    pub(crate) counters: FlowCounters,
}

/// Which socket of a flow something is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Guest,
    Remote,
}

struct Flow {
    guest: Socket,
    remote: Socket,
    /// Guest to remote.
    up: Lane,
    /// Remote to guest.
    down: Lane,
    mark: Mark,
    first_end: Option<Side>,
    hungry: bool,
    parting: Option<Parting>,
}

/// The remote has reset; the guest is told as soon as its kernel has been sent everything before that.
#[derive(Debug, Clone, Copy)]
enum Parting {
    Asked,
    /// The poller has said so once. That may have been found out before it was asked, but the second time is not.
    Said,
}

/// One end of a flow.
struct Socket {
    fd: OwnedFd,
    /// Room to write is only watched once a send has found none: most flows never wait for it, and each socket that is
    /// watched from the start costs a wake-up for nothing.
    writes_watched: bool,
}

#[derive(Default)]
struct Lane {
    held: Held,
    source_ready: bool,
    destination_ready: bool,
    /// The source said FIN or something urgent, seen or announced by epoll: a short read does not mean that it is drained.
    source_ends: bool,
    /// The source is in error, and what still waits is not worth waiting for.
    abandoned: bool,
    /// The end of the source has been read.
    ended: bool,
    /// The end has been passed on.
    shut: bool,
    /// The destination takes no more, ever.
    cut: bool,
    /// The last reads were large: splice rather than copy.
    bulk: bool,
    /// A read from the source stops short in front of more: a Unix socket, whose messages with descriptors are read one by one
    /// (`unix_stream_read_generic`). The descriptors are closed by reading without taking them.
    pauses: bool,
    /// Bytes that splice has moved since the source was last found drained.
    spliced: usize,
    /// Bytes that the destination has taken.
    bytes: u64,
    /// How many that were when the other lane of the flow last moved any.
    answered: u64,
    /// The source is only told of in company; how many bytes there were when it was last found drained.
    stream: Option<u64>,
    /// When that was, if nothing was heard of it since.
    rests: Option<Time>,
}

/// Bytes that were taken from the source and not yet by the destination.
#[derive(Default)]
enum Held {
    #[default]
    Nothing,
    Pipe(Pipe, usize),
    /// What a short send left over when no pipe could be had: never more than [`COPY`] bytes.
    Bytes(Vec<u8>, usize),
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

/// Shared by all flows of the thread.
struct Tools {
    pool: Vec<Pipe>,
    buffer: Vec<u8>,
    /// Cleared for good when the kernel refuses to splice sockets.
    splice: bool,
    /// A lane in bulk was pumped.
    bulk: bool,
}

/// What a lane came to.
enum Pumped {
    Waiting,
    UsedUp,
    /// Everything the source will ever say has been passed on, but for its end.
    Ended,
    /// The source is in error, and everything before that has been passed on, or is not waited for.
    Reset,
    /// The destination takes no more.
    Cut,
    /// A budget of the flow is used up.
    Spent,
}

impl Relay {
    pub(crate) fn new() -> Relay {
        let tools = Tools { pool: Vec::new(), buffer: vec![0; COPY], splice: true, bulk: false };
        Relay {
            flows: HashMap::default(),
            movers: Movers::default(),
            tools,
            hungry: Vec::new(),
            resting: VecDeque::new(),
        }
    }

    /// Takes over the two sockets of a flow and watches them. `remote_watched`: the remote's is in the poller already,
    /// in both directions. Gives the guest's socket back when it cannot be watched.
    pub(crate) fn insert(
        &mut self,
        poller: &Poller,
        pace: &mut Pace<'_>,
        id: FlowId,
        (guest, remote): (OwnedFd, OwnedFd),
        remote_watched: bool,
    ) -> Result<Option<Ended>, OwnedFd> {
        if !remote_watched && poller.add(&remote, Token::Remote(id), Watch::ReadEdges).is_err() {
            return Err(guest);
        }
        if poller.add(&guest, Token::Guest(id), Watch::ReadEdges).is_err() {
            return Err(guest);
        }
        let mut flow = Flow {
            guest: Socket { fd: guest, writes_watched: false },
            remote: Socket { fd: remote, writes_watched: remote_watched },
            up: Lane::default(),
            down: Lane::default(),
            mark: Mark::default(),
            first_end: None,
            hungry: false,
            parting: None,
        };
        // What a watched remote sent while the guest's handshake was under way was announced to nobody who listened.
        flow.down.source_ready = remote_watched;
        flow.down.source_ends = remote_watched;
        self.flows.insert(id, flow);
        Ok(if remote_watched { self.pump(poller, pace, id) } else { None })
    }

    /// Takes over the two ends of a connection to a socket of the host. `false`: they cannot be watched, and are closed.
    pub(crate) fn insert_local(
        &mut self,
        poller: &Poller,
        pace: &mut Pace<'_>,
        id: FlowId,
        (guest, host): (OwnedFd, OwnedFd),
    ) -> bool {
        for end in [&guest, &host] {
            // Urgent data stays in its place here, too; a kernel without any (`CONFIG_AF_UNIX_OOB`) takes the option all the same.
            let _ = rustix::net::sockopt::set_socket_oobinline(end, true);
        }
        if self.insert(poller, pace, id, (guest, host), false).is_err() {
            return false;
        }
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.up.pauses = true;
            flow.down.pauses = true;
        }
        true
    }

    /// Takes over a flow that was looked at; whatever its sockets are ready for was announced before.
    pub(crate) fn adopt(
        &mut self,
        poller: &Poller,
        pace: &mut Pace<'_>,
        id: FlowId,
        handed: HandOver,
    ) -> Option<Ended> {
        let HandOver { guest, remote, counters, mark, guest_ended, remote_ended } = handed;
        let lane = |bytes, ended| Lane {
            source_ready: true,
            destination_ready: true,
            source_ends: true,
            ended,
            bytes,
            answered: bytes,
            ..Lane::default()
        };
        let flow = Flow {
            guest: Socket { fd: guest, writes_watched: true },
            remote: Socket { fd: remote, writes_watched: true },
            up: lane(counters.bytes_out, guest_ended),
            down: lane(counters.bytes_in, remote_ended),
            mark: mark.handed_over(),
            first_end: None,
            hungry: false,
            parting: None,
        };
        self.flows.insert(id, flow);
        self.pump(poller, pace, id)
    }

    /// A socket of the flow became ready.
    pub(crate) fn handle_ready(
        &mut self,
        poller: &Poller,
        pace: &mut Pace<'_>,
        id: FlowId,
        (side, ready): (Side, Ready),
    ) -> Option<Ended> {
        let flow = self.flows.get_mut(&id)?;
        if let Some(parting) = flow.parting {
            return if side == Side::Guest { self.part(poller, id, parting, ready) } else { None };
        }
        let (out, back) = match side {
            Side::Guest => (&mut flow.up, &mut flow.down),
            Side::Remote => (&mut flow.down, &mut flow.up),
        };
        out.source_ready |= ready.read;
        out.source_ends |= ready.hang_up || ready.urgent;
        // What a remote said before its reset is the guest's to read, however late it does. A Unix socket is in error when its
        // peer has closed and left something unread, which takes nothing from what it has said.
        out.abandoned |= ready.error && side == Side::Guest && !out.pauses;
        back.destination_ready |= ready.write;
        self.pump(poller, pace, id)
    }

    /// Whether a bulk transfer had its turn since this was last asked.
    pub(crate) fn take_bulk(&mut self) -> bool {
        std::mem::take(&mut self.tools.bulk)
    }

    /// Whether flows have moved something that is not told.
    pub(crate) fn has_moved(&self) -> bool {
        !self.movers.is_empty()
    }

    /// Tells what flows have moved since this was last asked.
    pub(crate) fn tell_moved(&mut self, moved: &mut Moved) {
        for id in self.movers.take(moved) {
            if let Some(flow) = self.flows.get_mut(&id) {
                let counters = flow.counters();
                moved.add(id, &mut flow.mark, counters);
            }
        }
    }

    /// Whether flows are waiting for another turn.
    pub(crate) fn is_hungry(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// When a stream is to be looked at that nobody speaks of.
    pub(crate) fn poll_timeout(&mut self) -> Option<Time> {
        while let Some((since, id)) = self.resting.front() {
            if self.flows.get(id).is_some_and(|flow| flow.rests(*since)) {
                return Some(*since + COMPANY_TIME);
            }
            self.resting.pop_front();
        }
        None
    }

    /// Gives every flow another turn that used up its own, and those whose streams have rested.
    pub(crate) fn feed(&mut self, poller: &Poller, pace: &mut Pace<'_>, ended: &mut Vec<Ended>) {
        for id in std::mem::take(&mut self.hungry) {
            if let Some(flow) = self.flows.get_mut(&id) {
                flow.hungry = false;
            }
            ended.extend(self.pump(poller, pace, id));
        }
        let now = pace.now();
        let is_due = |(since, _): &(Time, FlowId)| *since + COMPANY_TIME <= now;
        while let Some((since, id)) = self.resting.front().copied().filter(is_due) {
            self.resting.pop_front();
            if self.flows.get_mut(&id).is_some_and(|flow| flow.wake(since)) {
                ended.extend(self.pump(poller, pace, id));
            }
        }
    }

    /// Resets both ends of a flow.
    pub(crate) fn reset(&mut self, id: FlowId, by: CloseReason) -> Option<Ended> {
        let flow = self.flows.remove(&id)?;
        Some(self.end(id, flow, by, true))
    }

    /// Resets every flow, oldest first.
    pub(crate) fn reset_all(&mut self, by: CloseReason) -> Vec<Ended> {
        let mut flows: Vec<FlowId> = self.flows.keys().copied().collect();
        flows.sort_unstable();
        flows.into_iter().filter_map(|flow| self.reset(flow, by)).collect()
    }

    /// Moves what can be moved, in both directions. Without such a flow nothing happens.
    pub(crate) fn pump(&mut self, poller: &Poller, pace: &mut Pace<'_>, id: FlowId) -> Option<Ended> {
        let flow = self.flows.get_mut(&id).filter(|flow| flow.parting.is_none())?;
        let (up, down) = flow.pump(id, &mut self.tools, pace);
        flow.watch_writes(poller, id);
        if flow.rest(pace.now()) {
            self.resting.push_back((pace.now(), id));
        }
        let counters = flow.counters();
        self.movers.note(id, &mut flow.mark, &counters);
        self.tools.bulk |= flow.up.bulk || flow.down.bulk;
        if flow.first_end.is_none() {
            flow.first_end = match (flow.up.ended, flow.down.ended) {
                (true, _) => Some(Side::Guest),
                (false, true) => Some(Side::Remote),
                (false, false) => None,
            };
        }
        let used_up = matches!(up, Pumped::UsedUp) || matches!(down, Pumped::UsedUp);
        let by = match (up, down) {
            (Pumped::Reset, _) => Some((CloseReason::GuestReset, true)),
            (_, Pumped::Reset) => Some((CloseReason::RemoteReset, true)),
            (Pumped::Spent, _) | (_, Pumped::Spent) => Some((CloseReason::Budget, true)),
            // Closing the sockets sends what is left to send, the second FIN included.
            (Pumped::Ended, Pumped::Ended) if flow.first_end == Some(Side::Remote) => {
                Some((CloseReason::Remote, false))
            }
            (Pumped::Ended, Pumped::Ended) => Some((CloseReason::Guest, false)),
            (Pumped::Ended, Pumped::Waiting | Pumped::UsedUp) => {
                flow.up.shut_down(&flow.remote);
                None
            }
            (Pumped::Waiting | Pumped::UsedUp, Pumped::Ended) => {
                flow.down.shut_down(&flow.guest);
                None
            }
            (Pumped::Cut, Pumped::Ended) => Some((CloseReason::RemoteReset, true)),
            (Pumped::Cut | Pumped::Ended, Pumped::Cut) => Some((CloseReason::GuestReset, true)),
            (Pumped::Cut, Pumped::Waiting) if !flow.still_answers() => Some((CloseReason::RemoteReset, true)),
            // What a guest said before its reset is lost with it when it has to wait.
            (Pumped::Waiting, Pumped::Cut) if !flow.is_local() => Some((CloseReason::GuestReset, true)),
            (Pumped::Waiting | Pumped::UsedUp | Pumped::Cut, Pumped::Waiting | Pumped::UsedUp)
            | (Pumped::Waiting | Pumped::UsedUp, Pumped::Cut) => None,
        };
        if let Some((by, reset)) = by {
            if by == CloseReason::RemoteReset && flow.begin_parting(poller, id) {
                return None;
            }
            let flow = self.flows.remove(&id)?;
            return Some(self.end(id, flow, by, reset));
        }
        if used_up && !flow.hungry {
            flow.hungry = true;
            self.hungry.push(id);
        }
        None
    }

    /// The guest's socket of a flow became ready whose remote has reset.
    fn part(&mut self, poller: &Poller, id: FlowId, parting: Parting, ready: Ready) -> Option<Ended> {
        let flow = self.flows.get_mut(&id)?;
        let waits = match parting {
            _ if ready.error || !flow.only_listens() => false,
            Parting::Said if ready.room => false,
            Parting::Asked if ready.room => {
                flow.parting = Some(Parting::Said);
                poller.modify(&flow.guest.fd, Token::Guest(id), Watch::BothEdges).is_ok()
            }
            Parting::Asked | Parting::Said => true,
        };
        if waits {
            return None;
        }
        let flow = self.flows.remove(&id)?;
        Some(self.end(id, flow, CloseReason::RemoteReset, true))
    }

    fn end(&mut self, id: FlowId, mut flow: Flow, by: CloseReason, reset: bool) -> Ended {
        if reset {
            // Closing with a linger time of zero sends RST instead of FIN (socket(7)).
            for socket in [&flow.guest, &flow.remote] {
                let _ = rustix::net::sockopt::set_socket_linger(&socket.fd, Some(Duration::ZERO));
            }
        }
        flow.up.release(&mut self.tools);
        flow.down.release(&mut self.tools);
        Ended { flow: id, by, counters: flow.counters() }
    }
}

impl Flow {
    fn counters(&self) -> FlowCounters {
        FlowCounters { bytes_out: self.up.bytes, bytes_in: self.down.bytes, ..FlowCounters::default() }
    }

    /// Pumps both lanes. Once one is cut, what the other's source has said before is still to be read.
    fn pump(&mut self, id: FlowId, tools: &mut Tools, pace: &mut Pace<'_>) -> (Pumped, Pumped) {
        let before = (self.up.bytes, self.down.bytes);
        let (up_was_cut, down_was_cut) = (self.up.cut, self.down.cut);
        let mut up = self.up.pump(&self.guest, &self.remote, (id, Way::Egress), tools, pace);
        self.down.source_ready |= self.up.cut && !up_was_cut;
        let down = self.down.pump(&self.remote, &self.guest, (id, Way::Ingress), tools, pace);
        if self.down.cut && !down_was_cut {
            self.up.source_ready = true;
            up = self.up.pump(&self.guest, &self.remote, (id, Way::Egress), tools, pace);
        }
        if self.up.bytes != before.0 {
            self.down.answer(&self.remote.fd);
        }
        if self.down.bytes != before.1 {
            self.up.answer(&self.guest.fd);
        }
        (up, down)
    }

    /// Lets what has become a stream rest. Whether one does that did not before.
    fn rest(&mut self, now: Time) -> bool {
        let up = self.up.rest(&self.guest.fd, now);
        self.down.rest(&self.remote.fd, now) || up
    }

    /// Whether a stream rests since then.
    fn rests(&self, since: Time) -> bool {
        [&self.up, &self.down].into_iter().any(|lane| lane.rests == Some(since))
    }

    /// Has the streams that rest since then looked at. Whether there are any.
    fn wake(&mut self, since: Time) -> bool {
        let mut any = false;
        for lane in [&mut self.up, &mut self.down] {
            if lane.rests.take_if(|rests| *rests == since).is_some() {
                lane.source_ready = true;
                any = true;
            }
        }
        any
    }

    /// Whether this is a connection to a socket of the host.
    fn is_local(&self) -> bool {
        self.up.pauses
    }

    /// Whether a remote that takes no more still has something for the guest, and the guest waits for that.
    fn still_answers(&self) -> bool {
        self.is_local()
            || match self.down.held {
                // It waits for a limit.
                Held::Nothing => self.down.source_ready,
                Held::Pipe(..) | Held::Bytes(..) => self.only_listens(),
            }
    }

    /// Whether the guest has nothing more to say for the time being.
    fn only_listens(&self) -> bool {
        match rustix::net::recv(&self.guest.fd, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((n, _)) => n == 0,
            Err(error) => matches!(error, Errno::AGAIN | Errno::INTR),
        }
    }

    /// Puts off the reset of the guest until everything that it was sent is on its way. `false`: it is due.
    fn begin_parting(&mut self, poller: &Poller, id: FlowId) -> bool {
        let waits =
            matches!(self.down.held, Held::Nothing) && !self.down.cut && !self.is_local() && self.only_listens();
        if !waits || cofferdam_sys::socket::be_writable_when_sent(&self.guest.fd).is_err() {
            return false;
        }
        // Whatever it says from here on ends the waiting at once.
        self.up.answer(&self.guest.fd);
        self.parting = Some(Parting::Asked);
        poller.modify(&self.guest.fd, Token::Guest(id), Watch::BothEdges).is_ok()
    }

    /// Has the poller report room to write on each socket that bytes are waiting for.
    fn watch_writes(&mut self, poller: &Poller, id: FlowId) {
        let ends = [(&self.up, &mut self.remote, Token::Remote(id)), (&self.down, &mut self.guest, Token::Guest(id))];
        for (lane, socket, token) in ends {
            let waits = !matches!(lane.held, Held::Nothing);
            if waits && !socket.writes_watched {
                // Failing would leave the lane waiting for its next read; the kernel has no reason to fail here.
                socket.writes_watched = poller.modify(&socket.fd, token, Watch::BothEdges).is_ok();
            }
        }
    }
}

impl Lane {
    /// Moves bytes until one end blocks, the turn is used up or a limit is in the way.
    fn pump(
        &mut self,
        source: &Socket,
        destination: &Socket,
        (id, way): (FlowId, Way),
        tools: &mut Tools,
        pace: &mut Pace<'_>,
    ) -> Pumped {
        if self.cut {
            return Pumped::Cut;
        }
        let is_limited = !pace.is_unlimited();
        let (source, destination) = (&source.fd, &destination.fd);
        let mut budget = TURN;
        loop {
            match self.flush(destination, tools) {
                Ok(true) => {}
                Ok(false) if self.abandoned => return Pumped::Reset,
                Ok(false) => return Pumped::Waiting,
                Err(_) => return self.cut(source, tools),
            }
            if self.ended {
                return Pumped::Ended;
            }
            if !self.source_ready {
                return Pumped::Waiting;
            }
            self.rests = None;
            if budget == 0 {
                return Pumped::UsedUp;
            }
            let most = match is_limited.then(|| pace.leave(id, way, source)) {
                None => usize::MAX,
                Some(Leave::Read(most)) => most,
                Some(Leave::Wait) => return Pumped::Waiting,
                Some(Leave::Nothing) => {
                    self.source_ready = false;
                    return Pumped::Waiting;
                }
                Some(Leave::Broken) => return Pumped::Reset,
                Some(Leave::End) => return Pumped::Spent,
            };
            match self.fill(source, destination, tools, most) {
                Ok(n) => {
                    if is_limited {
                        pace.spend(id, way, n);
                    }
                    // Each of many small messages with descriptors is a read.
                    budget = budget.saturating_sub(n.max(if self.pauses { SMALL } else { 1 }));
                }
                Err((true, _)) => return Pumped::Reset,
                Err((false, _)) => return self.cut(source, tools),
            }
        }
    }

    /// Something has moved the other way.
    fn answer(&mut self, source: &OwnedFd) {
        self.answered = self.bytes;
        if self.stream.take().is_some() {
            self.rests = None;
            // Raises an edge for what is there.
            let _ = cofferdam_sys::socket::be_readable_at(source, 1);
        }
    }

    /// When the source is drained: has the rest of a stream wait for company. Whether it does, and did not before.
    fn rest(&mut self, source: &OwnedFd, now: Time) -> bool {
        if self.source_ready || self.ended || self.cut || self.pauses || !matches!(self.held, Held::Nothing) {
            return false;
        }
        match self.stream {
            None if self.bytes - self.answered < STREAM => return false,
            None if cofferdam_sys::socket::be_readable_at(source, COMPANY).is_err() => return false,
            Some(_) if self.rests.is_some() => return false,
            // A source that has little to say is heard at once.
            Some(before) if self.bytes - before < COPY as u64 => {
                self.answer(source);
                return false;
            }
            None | Some(_) => {}
        }
        self.stream = Some(self.bytes);
        self.rests = Some(now);
        true
    }

    /// Gives up: nobody takes what is held, nor what follows.
    fn cut(&mut self, source: &OwnedFd, tools: &mut Tools) -> Pumped {
        self.cut = true;
        self.release(tools);
        if self.pauses {
            // From here on whoever writes gets EPIPE. Who polls for room first sees nothing of that but room (`unix_poll`), so
            // what is there makes way; a byte stays, for that something is unread.
            let _ = rustix::net::shutdown(source, Shutdown::Read);
            let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            while let Ok((n @ 2.., _)) = rustix::net::recv(source, &mut *tools.buffer, peek) {
                let is_last = n < tools.buffer.len();
                let unread = usize::from(is_last);
                let Some(read) = tools.buffer.get_mut(..n - unread) else { break };
                if rustix::net::recv(source, read, RecvFlags::DONTWAIT).is_err() || is_last {
                    break;
                }
            }
        }
        Pumped::Cut
    }

    /// Passes the end of the source on, once.
    fn shut_down(&mut self, destination: &Socket) {
        if !self.shut {
            self.shut = true;
            // The destination may be gone already; its own lane reports that.
            let _ = rustix::net::shutdown(&destination.fd, Shutdown::Write);
        }
    }

    /// Passes on what is held. `false`: the destination takes no more for the time being.
    fn flush(&mut self, destination: &OwnedFd, tools: &mut Tools) -> io::Result<bool> {
        loop {
            let moved = match &mut self.held {
                Held::Nothing => return Ok(true),
                Held::Pipe(..) | Held::Bytes(..) if !self.destination_ready => return Ok(false),
                Held::Pipe(pipe, left) => {
                    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
                    rustix::pipe::splice(&pipe.read, None, destination, None, *left, flags)
                        .inspect(|n| *left -= (*n).min(*left))
                }
                Held::Bytes(bytes, sent) => {
                    let rest = bytes.get(*sent..).unwrap_or_default();
                    rustix::net::send(destination, rest, SendFlags::NOSIGNAL).inspect(|n| *sent += *n)
                }
            };
            match moved {
                Ok(n) => self.bytes = self.bytes.saturating_add(n as u64),
                Err(Errno::AGAIN) => self.destination_ready = false,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let empty = match &self.held {
                Held::Nothing => true,
                Held::Pipe(_, left) => *left == 0,
                Held::Bytes(bytes, sent) => *sent >= bytes.len(),
            };
            if empty {
                self.release(tools);
            }
        }
    }

    /// Takes something from the source, `most` bytes; the lane holds nothing. An error says whether it is the source's.
    fn fill(
        &mut self,
        source: &OwnedFd,
        destination: &OwnedFd,
        tools: &mut Tools,
        most: usize,
    ) -> Result<usize, (bool, Errno)> {
        if self.bulk
            && tools.splice
            && let Some(pipe) = tools.pipe()
        {
            return self.fill_pipe(source, pipe, tools, most.min(CHUNK));
        }
        let size = if self.bulk { COPY } else { SMALL }.min(most);
        let Some(buffer) = tools.buffer.get_mut(..size) else { return Ok(0) };
        let n = match rustix::net::recv(source, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((n, _)) => n,
            Err(Errno::AGAIN) => {
                // Nothing is left and no end was there: the next end has an edge of its own.
                self.source_ready = false;
                self.source_ends = false;
                return Ok(0);
            }
            Err(Errno::INTR) => return Ok(0),
            Err(error) => return Err((true, error)),
        };
        if n == 0 {
            self.ended = true;
            return Ok(0);
        }
        self.bulk = n == size;
        // A short read has drained the socket, unless the end is still to be read (epoll(7), question 9).
        self.source_ready = n == size || self.source_ends || self.pauses;
        let taken = buffer.get(..n).unwrap_or_default();
        let sent = match rustix::net::send(destination, taken, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => sent,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return Err((false, error)),
        };
        self.bytes = self.bytes.saturating_add(sent as u64);
        if sent < n {
            self.destination_ready = false;
            self.held = Held::Bytes(taken.get(sent..).unwrap_or_default().to_vec(), 0);
        }
        Ok(n)
    }

    fn fill_pipe(
        &mut self,
        source: &OwnedFd,
        pipe: Pipe,
        tools: &mut Tools,
        most: usize,
    ) -> Result<usize, (bool, Errno)> {
        match rustix::pipe::splice(source, None, &pipe.write, None, most, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
            Ok(0) => {
                // The end, or urgent data, which splice does not pass (`tcp_read_sock`): a read tells.
                self.bulk = false;
                tools.give_back(pipe);
                Ok(0)
            }
            Ok(n) => {
                self.spliced = self.spliced.saturating_add(n);
                self.held = Held::Pipe(pipe, n);
                // Unlike after a short read, more may be there: a splice also ends when the pipe's slots are used up.
                Ok(n)
            }
            Err(error) => {
                tools.give_back(pipe);
                match error {
                    // So says splice in front of urgent data as well: a read tells.
                    Errno::AGAIN if self.source_ends => {
                        self.bulk = false;
                        self.spliced = 0;
                        Ok(0)
                    }
                    Errno::AGAIN => {
                        self.source_ready = false;
                        // Little came at once: a copy is cheaper next time.
                        self.bulk = self.spliced >= SMALL;
                        self.spliced = 0;
                        Ok(0)
                    }
                    Errno::INTR => Ok(0),
                    Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS => {
                        tools.splice = false;
                        Ok(0)
                    }
                    error => Err((true, error)),
                }
            }
        }
    }

    /// Lets go of what is held, and of the pipe.
    fn release(&mut self, tools: &mut Tools) {
        if let Held::Pipe(pipe, left) = std::mem::take(&mut self.held)
            && left == 0
        {
            tools.give_back(pipe);
        }
    }
}

impl Tools {
    fn pipe(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.pool.pop() {
            return Some(pipe);
        }
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        // Past the user's soft limit a pipe keeps or gets a size of two pages, and splicing through it is slower than
        // copying; such a pipe is not worth having.
        let size = rustix::pipe::fcntl_setpipe_size(&write, PIPE).ok()?;
        (size >= PIPE).then_some(Pipe { read, write })
    }

    fn give_back(&mut self, pipe: Pipe) {
        if self.pool.len() < POOL {
            self.pool.push(pipe);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    use cofferdam_gate::Limits;
    use cofferdam_model::{EventBody, FlowProgress, Time};

    use super::*;
    use crate::pace::Queues;

    const FLOW: FlowId = FlowId(1);

    /// A relay with one flow between two programs, each with its own connection.
    struct World {
        relay: Relay,
        limits: Limits,
        queues: Queues,
        now: Time,
        poller: Poller,
        ended: Vec<Ended>,
        guest: TcpStream,
        remote: TcpStream,
    }

    fn connection() -> (TcpStream, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        far.set_nonblocking(true).unwrap();
        near.set_nonblocking(true).unwrap();
        for socket in [near.as_fd(), far.as_fd()] {
            rustix::net::sockopt::set_socket_oobinline(socket, true).unwrap();
        }
        (near, far.into())
    }

    impl World {
        fn new() -> World {
            let ((guest, inner), (remote, outer)) = (connection(), connection());
            let (mut relay, poller) = (Relay::new(), Poller::new().unwrap());
            let (mut limits, mut queues) = (Limits::none(), Queues::default());
            let mut pace = Pace::new(&mut limits, &mut queues, Time::ZERO);
            assert!(relay.insert(&poller, &mut pace, FLOW, (inner, outer), false).unwrap().is_none());
            World { relay, limits, queues, now: Time::ZERO, poller, ended: Vec::new(), guest, remote }
        }

        /// With a connection to a socket of the host in place of one over TCP.
        fn local() -> World {
            let pair = || {
                let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
                near.set_nonblocking(true).unwrap();
                far.set_nonblocking(true).unwrap();
                // What is called here is the same for every stream.
                (TcpStream::from(OwnedFd::from(near)), OwnedFd::from(far))
            };
            let ((guest, inner), (remote, outer)) = (pair(), pair());
            let mut world =
                World { guest, remote, relay: Relay::new(), poller: Poller::new().unwrap(), ..World::new() };
            let mut pace = Pace::new(&mut world.limits, &mut world.queues, Time::ZERO);
            assert!(world.relay.insert_local(&world.poller, &mut pace, FLOW, (inner, outer)));
            world
        }

        /// Runs the relay until nothing is ready any more.
        fn settle(&mut self) {
            let mut ready = Vec::new();
            for _ in 0..10_000 {
                self.poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
                let is_due = self.relay.poll_timeout().is_some_and(|at| at <= self.now);
                if ready.is_empty() && !self.relay.is_hungry() && !is_due {
                    return;
                }
                for (token, ready) in ready.drain(..) {
                    let side = if matches!(token, Token::Guest(_)) { Side::Guest } else { Side::Remote };
                    let mut pace = Pace::new(&mut self.limits, &mut self.queues, self.now);
                    self.ended.extend(self.relay.handle_ready(&self.poller, &mut pace, FLOW, (side, ready)));
                }
                let mut pace = Pace::new(&mut self.limits, &mut self.queues, self.now);
                self.relay.feed(&self.poller, &mut pace, &mut self.ended);
            }
            panic!("the relay does not come to rest");
        }

        /// Writes as much as the connection takes while the relay runs.
        fn stuff(&mut self, byte: u8) -> usize {
            let (block, mut total) = ([byte; 65_536], 0);
            loop {
                match self.guest.write(&block) {
                    Ok(n) => total += n,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        let before = total;
                        self.settle();
                        match self.guest.write(&block) {
                            Ok(n) => total += n,
                            Err(_) if before == total => return total,
                            Err(_) => {}
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }

        fn read(&mut self) -> Vec<u8> {
            let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
            loop {
                self.settle();
                match self.remote.read(&mut buffer) {
                    Ok(0) => return all,
                    Ok(n) => all.extend_from_slice(&buffer[..n]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    #[test]
    fn a_lane_waits_for_its_rate_and_loses_nothing() {
        let mut world = World::new();
        let mut limits = cofferdam_policy::file::default_network().limits;
        let refill_time = Duration::from_secs(1);
        limits.rates.egress.bandwidth =
            Some(cofferdam_model::BucketConfig { size: 1_000, refill_time, one_time_burst: 0 });
        world.limits = Limits::new(&limits, Time::ZERO);
        world.guest.write_all(&[7; 5_000]).unwrap();
        world.guest.shutdown(std::net::Shutdown::Write).unwrap();
        let mut total = world.read().len();
        assert_eq!(total, 1_000, "a full bucket");
        // The other direction does not notice.
        world.remote.write_all(&[9; 3_000]).unwrap();
        world.settle();
        assert_eq!(world.guest.read(&mut [0; 4_000]).unwrap(), 3_000);
        let mut wakes = 0;
        while let Some(due) = world.queues.poll_timeout(&world.limits) {
            assert!(due > world.now, "it is woken for nothing");
            world.now = due;
            wakes += 1;
            for (flow, most) in world.queues.due(&mut world.limits, due, Way::Egress) {
                let turn = Some((flow, Way::Egress, most));
                let mut pace = Pace::new(&mut world.limits, &mut world.queues, due).serving(turn);
                world.ended.extend(world.relay.pump(&world.poller, &mut pace, flow));
            }
            total += world.read().len();
        }
        assert_eq!((total, world.now), (5_000, Time::ZERO + Duration::from_secs(4)));
        assert_eq!(wakes, 8, "half a bucket at a time");
        // The end came through, and only one way.
        assert_eq!(world.remote.read(&mut [0; 1]).unwrap(), 0);
        world.remote.write_all(b"x").unwrap();
        world.settle();
        assert_eq!(world.guest.read(&mut [0; 4]).unwrap(), 1);
    }

    impl World {
        /// With a stream that goes one way, and its source and its destination.
        fn streaming(way: Way) -> (World, TcpStream, TcpStream) {
            let mut world = World::new();
            let (mut from, mut to) = match way {
                Way::Egress => (world.guest.try_clone().unwrap(), world.remote.try_clone().unwrap()),
                Way::Ingress => (world.remote.try_clone().unwrap(), world.guest.try_clone().unwrap()),
            };
            let (mut left, mut buffer) = (STREAM, vec![7; 1 << 20]);
            while left > 0 {
                assert_eq!(world.relay.poll_timeout(), None, "{left} before it is a stream");
                // What it takes does not matter.
                let _ = from.write(&buffer);
                world.settle();
                while let Ok(n) = to.read(&mut buffer) {
                    left = left.saturating_sub(n as u64);
                    world.settle();
                }
            }
            assert_eq!(world.relay.poll_timeout(), Some(world.now + COMPANY_TIME));
            (world, from, to)
        }
    }

    #[test]
    fn what_comes_of_a_stream_waits_for_company_but_not_for_long() {
        for way in Way::ALL {
            let (mut world, mut from, mut to) = World::streaming(way);
            let mut buffer = vec![0; 2 << 20];
            from.write_all(b"tail").unwrap();
            world.settle();
            assert_eq!(to.read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
            world.now = world.relay.poll_timeout().unwrap();
            world.settle();
            assert_eq!(to.read(&mut buffer).unwrap(), 4);
            // That was little, so it is a stream no more.
            assert_eq!(world.relay.poll_timeout(), None);
            from.write_all(b"more").unwrap();
            world.settle();
            assert_eq!(to.read(&mut buffer).unwrap(), 4);
        }
    }

    #[test]
    fn a_stream_in_company_is_told_of_at_once() {
        let (mut world, mut from, mut to) = World::streaming(Way::Egress);
        let mut buffer = vec![0; 2 << 20];
        let mut sent = 0;
        while let Ok(n) = from.write(&buffer) {
            sent += n;
        }
        assert!(sent as u64 > u64::try_from(COMPANY).unwrap(), "{sent}");
        world.settle();
        while let Ok(n) = to.read(&mut buffer) {
            sent -= n;
            world.settle();
        }
        assert_eq!(sent, 0, "nothing is left");
        assert!(world.relay.poll_timeout().is_some(), "it still is one");
    }

    #[test]
    fn a_stream_that_stands_still_is_looked_at_once() {
        for limited in [false, true] {
            let (mut world, ..) = World::streaming(Way::Egress);
            if limited {
                let mut limits = cofferdam_policy::file::default_network().limits;
                let refill_time = Duration::from_secs(1);
                limits.rates.egress.bandwidth =
                    Some(cofferdam_model::BucketConfig { size: 1_000, refill_time, one_time_burst: 0 });
                world.limits = Limits::new(&limits, Time::ZERO);
            }
            world.now = world.relay.poll_timeout().unwrap();
            world.settle();
            assert_eq!(world.relay.poll_timeout(), None);
        }
    }

    #[test]
    fn whoever_is_answered_does_not_wait_for_company() {
        for way in Way::ALL {
            let (mut world, mut from, mut to) = World::streaming(way);
            let mut buffer = [0; 16];
            from.write_all(b"tail").unwrap();
            world.settle();
            to.write_all(b"go on").unwrap();
            world.settle();
            assert_eq!((to.read(&mut buffer).unwrap(), from.read(&mut buffer).unwrap()), (4, 5));
            assert_eq!(world.relay.poll_timeout(), None);
        }
    }

    #[test]
    fn the_end_of_a_stream_does_not_wait() {
        for way in Way::ALL {
            let (mut world, mut from, mut to) = World::streaming(way);
            let mut buffer = [0; 16];
            from.write_all(b"tail").unwrap();
            world.settle();
            from.shutdown(std::net::Shutdown::Write).unwrap();
            world.settle();
            assert_eq!((to.read(&mut buffer).unwrap(), to.read(&mut buffer).unwrap()), (4, 0));
            assert_eq!(world.relay.poll_timeout(), None);
        }
    }

    #[test]
    fn what_a_flow_has_moved_before_it_was_adopted_is_told_of() {
        let mut world = World::new();
        let Flow { guest, remote, .. } = world.relay.flows.remove(&FLOW).unwrap();
        let counters = FlowCounters { bytes_out: 517, bytes_in: 1, ..FlowCounters::default() };
        let (guest, remote) = (guest.fd, remote.fd);
        let handed =
            HandOver { guest, remote, counters, mark: Mark::default(), guest_ended: false, remote_ended: false };
        let mut pace = Pace::new(&mut world.limits, &mut world.queues, world.now);
        assert!(world.relay.adopt(&world.poller, &mut pace, FLOW, handed).is_none());
        let mut moved = Moved::default();
        world.relay.tell_moved(&mut moved);
        let flows = vec![FlowProgress { flow: FLOW, counters }];
        assert_eq!(moved.into_event(), Some(EventBody::FlowProgress { flows, more: 0 }));
    }

    #[test]
    fn what_a_flow_has_moved_is_told_once_and_so_far() {
        let mut world = World::new();
        let told = |world: &mut World| {
            let mut moved = Moved::default();
            world.relay.tell_moved(&mut moved);
            moved.into_event()
        };
        let so_far = |bytes_out, bytes_in| {
            let counters = FlowCounters { bytes_out, bytes_in, ..FlowCounters::default() };
            Some(EventBody::FlowProgress { flows: vec![FlowProgress { flow: FLOW, counters }], more: 0 })
        };
        assert!(!world.relay.has_moved());
        world.guest.write_all(&[7; 100_000]).unwrap();
        assert_eq!(world.read().len(), 100_000);
        assert!(world.relay.has_moved());
        assert_eq!(told(&mut world), so_far(100_000, 0));
        world.settle();
        assert!(!world.relay.has_moved() && told(&mut world).is_none());
        world.remote.write_all(b"x").unwrap();
        world.settle();
        assert_eq!(told(&mut world), so_far(100_000, 1));
        world.guest.write_all(b"x").unwrap();
        world.settle();
        world.relay.reset(FLOW, CloseReason::Shutdown).unwrap();
        assert_eq!(told(&mut world), None, "its end tells");
    }

    #[test]
    fn descriptors_do_not_pass_and_nothing_is_stuck_behind_them() {
        for way in Way::ALL {
            let mut world = World::local();
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            let (from, to) = match way {
                Way::Egress => (&mut world.guest, &world.remote),
                Way::Ingress => (&mut world.remote, &world.guest),
            };
            for _ in 0..3 {
                cofferdam_sys::fdpass::send_fds(&*from, b"with", &[writer.as_fd()]).unwrap();
                from.write_all(b"out").unwrap();
            }
            drop(writer);
            let to = to.try_clone().unwrap();
            world.settle();
            let mut bytes = [0; 64];
            let (mut len, mut passed) = (0, Vec::new());
            while let Ok((more, fds)) = cofferdam_sys::fdpass::recv_fds(&to, &mut bytes[len..]) {
                len += more;
                passed.extend(fds);
            }
            assert_eq!(&bytes[..len], b"withoutwithoutwithout");
            assert!(passed.is_empty());
            // Nobody holds the writing end any more.
            assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0));
        }
    }

    #[test]
    fn many_small_messages_with_descriptors_do_not_keep_the_turn() {
        let mut world = World::local();
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let mut sent = 0;
        while sent < 300 && cofferdam_sys::fdpass::send_fds_now(&world.guest, b"x", &[writer.as_fd()]).is_ok() {
            sent += 1;
        }
        let reads = TURN / SMALL;
        assert!(sent > reads, "{sent}");
        let mut ready = Vec::new();
        world.poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        let mut pace = Pace::new(&mut world.limits, &mut world.queues, Time::ZERO);
        for (_, ready) in ready {
            assert!(world.relay.handle_ready(&world.poller, &mut pace, FLOW, (Side::Guest, ready)).is_none());
        }
        assert!(world.relay.is_hungry());
        assert_eq!(world.remote.read(&mut [0; 1000]).unwrap(), reads);
        assert_eq!(world.read().len(), sent - reads);
    }

    #[test]
    fn urgent_data_of_a_unix_socket_stays_in_its_place() {
        let mut world = World::local();
        world.guest.write_all(b"ab").unwrap();
        rustix::net::send(&world.guest, b"!", SendFlags::OOB).unwrap();
        world.guest.write_all(b"cd").unwrap();
        assert_eq!(world.read(), b"ab!cd");
    }

    #[test]
    fn bulk_and_ends_pass_between_unix_sockets() {
        let mut world = World::local();
        let total = world.stuff(7);
        assert!(total > SMALL);
        world.guest.shutdown(std::net::Shutdown::Write).unwrap();
        let all = world.read();
        assert_eq!((all.len(), all.iter().all(|byte| *byte == 7)), (total, true));
        assert_eq!(world.remote.read(&mut [0; 1]).unwrap(), 0);
        world.remote.write_all(b"late").unwrap();
        world.settle();
        assert_eq!(world.guest.read(&mut [0; 8]).unwrap(), 4);
        world.remote.shutdown(std::net::Shutdown::Write).unwrap();
        world.settle();
        let [ended] = world.ended[..] else { panic!("{:?}", world.ended) };
        assert_eq!((ended.by, ended.counters.bytes_in), (CloseReason::Guest, 4));
        assert_eq!(ended.counters.bytes_out, total as u64);
    }

    #[test]
    fn passes_small_exchanges_without_a_pipe() {
        let mut world = World::new();
        for i in 0..100u8 {
            world.guest.write_all(&[i]).unwrap();
            assert_eq!(world.read(), [i]);
            world.remote.write_all(&[i, i]).unwrap();
            world.settle();
            let mut got = [0; 4];
            assert_eq!(world.guest.read(&mut got).unwrap(), 2);
        }
        assert!(world.relay.tools.pool.is_empty());
    }

    #[test]
    fn holds_back_a_sender_whose_remote_does_not_read() {
        let mut world = World::new();
        let sent = world.stuff(7);
        assert!(sent > CHUNK);
        let lane = &world.relay.flows[&FLOW].up;
        let held = match &lane.held {
            Held::Nothing => 0,
            Held::Pipe(_, left) => *left,
            Held::Bytes(bytes, done) => bytes.len() - done,
        };
        assert!(held <= CHUNK, "{held}");
        let got = world.read();
        assert_eq!(got.len(), sent);
        assert!(got.iter().all(|b| *b == 7));
        assert!(matches!(world.relay.flows[&FLOW].up.held, Held::Nothing));
    }

    #[test]
    fn keeps_the_other_direction_open_after_a_fin() {
        let mut world = World::new();
        world.guest.write_all(b"question").unwrap();
        world.guest.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(world.read(), b"question");
        assert_eq!(world.remote.read(&mut [0; 1]).unwrap(), 0);
        assert!(world.ended.is_empty());
        world.remote.write_all(b"answer").unwrap();
        world.settle();
        let mut got = [0; 16];
        assert_eq!(world.guest.read(&mut got).unwrap(), 6);
        world.remote.shutdown(std::net::Shutdown::Write).unwrap();
        world.settle();
        assert_eq!(world.guest.read(&mut got).unwrap(), 0);
        let ended = world.ended[0];
        assert_eq!(ended.by, CloseReason::Guest);
        assert_eq!(ended.counters, FlowCounters { bytes_out: 8, bytes_in: 6, ..FlowCounters::default() });
    }

    #[test]
    fn passes_on_data_and_fin_that_arrive_together() {
        let mut world = World::new();
        world.remote.write_all(&[9; 5000]).unwrap();
        world.remote.shutdown(std::net::Shutdown::Write).unwrap();
        world.settle();
        let mut got = vec![0; 10_000];
        assert_eq!(world.guest.read(&mut got).unwrap(), 5000);
        assert_eq!(world.guest.read(&mut got).unwrap(), 0);
    }

    #[test]
    fn an_urgent_byte_keeps_its_place() {
        let mut world = World::new();
        for round in 0..3 {
            world.guest.write_all(b"ab").unwrap();
            if round == 1 {
                assert_eq!(world.read(), b"ab");
            }
            assert_eq!(rustix::net::send(&world.guest, b"!", SendFlags::OOB).unwrap(), 1);
            world.guest.write_all(b"after").unwrap();
            assert_eq!(world.read(), if round == 1 { &b"!after"[..] } else { b"ab!after" });
        }
    }

    #[test]
    fn an_urgent_byte_in_a_bulk_transfer_stops_nothing() {
        for is_closed_at_once in [true, false] {
            let mut world = World::new();
            let mut total = world.stuff(7);
            let mut some = vec![0; 1 << 20];
            let mut got = 0;
            // The reader is slow, and makes room for it.
            while rustix::net::send(&world.guest, b"!", SendFlags::OOB).is_err() {
                got += world.remote.read(&mut some).unwrap();
                world.settle();
            }
            total += 1 + world.guest.write(&[8; 65_536]).unwrap_or(0);
            if is_closed_at_once {
                world.guest.shutdown(std::net::Shutdown::Write).unwrap();
            }
            got += world.read().len();
            assert_eq!(got, total);
            world.guest.shutdown(std::net::Shutdown::Write).unwrap();
            world.settle();
            assert_eq!(world.remote.read(&mut some).unwrap(), 0);
        }
    }

    #[test]
    fn a_reset_arrives_as_a_reset_after_what_came_before_it() {
        for (from_remote, has_rates) in [(true, false), (false, false), (true, true), (false, true)] {
            let mut world = World::new();
            if has_rates {
                // The last words are all that passes.
                world.limits = crate::pace::tests::rates(10, Duration::from_secs(3600));
            }
            let (from, to) = if from_remote { (&world.remote, &world.guest) } else { (&world.guest, &world.remote) };
            (&mut &*from).write_all(b"last words").unwrap();
            let to = to.try_clone().unwrap();
            rustix::net::sockopt::set_socket_linger(from, Some(Duration::ZERO)).unwrap();
            let replacement = connection().0;
            if from_remote {
                world.settle();
                world.remote = replacement;
            } else {
                world.settle();
                world.guest = replacement;
            }
            world.settle();
            let mut got = [0; 32];
            assert_eq!((&to).read(&mut got).unwrap(), 10);
            assert_eq!((&to).read(&mut got).unwrap_err().kind(), ErrorKind::ConnectionReset);
            let by = if from_remote { CloseReason::RemoteReset } else { CloseReason::GuestReset };
            assert_eq!(world.ended[0].by, by);
        }
    }

    #[test]
    fn a_reset_of_the_guest_arrives_though_the_remote_takes_nothing() {
        let mut world = World::new();
        world.stuff(3);
        rustix::net::sockopt::set_socket_linger(&world.guest, Some(Duration::ZERO)).unwrap();
        world.guest = connection().0;
        world.settle();
        assert_eq!(world.ended.first().map(|ended| ended.by), Some(CloseReason::GuestReset));
        let mut buffer = vec![0; 1 << 20];
        let end = loop {
            match world.remote.read(&mut buffer) {
                Ok(0) => panic!("a FIN"),
                Ok(_) => {}
                Err(error) => break error.kind(),
            }
        };
        assert_eq!(end, ErrorKind::ConnectionReset);
    }

    /// Writes all of it while the relay runs, in small pieces and without reading anything.
    fn pour(world: &mut World, side: Side, total: usize) {
        let (mut left, mut stalls) = (total, 0);
        while left > 0 {
            assert!(stalls < 10, "{left} find no room");
            let to = if side == Side::Guest { &world.guest } else { &world.remote };
            match (&mut &*to).write(&[5; 10_000][..left.min(10_000)]) {
                Ok(n) => left -= n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => stalls += 1,
                Err(error) => panic!("{error} with {left} left"),
            }
            world.settle();
        }
    }

    /// Has the remote talk until the relay holds something that the guest has no room for. All of it is with the relay.
    fn fill_up(world: &mut World) -> usize {
        let mut total = 0;
        while matches!(world.relay.flows[&FLOW].down.held, Held::Nothing) {
            pour(world, Side::Remote, 10_000);
            total += 10_000;
        }
        total
    }

    /// Reads slowly to the end: how much came, and how it ended.
    fn drain(world: &mut World, side: Side) -> (usize, Result<(), ErrorKind>) {
        let (mut total, mut buffer) = (0, [0; 10_000]);
        loop {
            let from = if side == Side::Guest { &world.guest } else { &world.remote };
            match (&mut &*from).read(&mut buffer) {
                Ok(0) => return (total, Ok(())),
                Ok(n) => total += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(world.ended.is_empty(), "the flow has ended, and {total} came without an end");
                }
                Err(error) => return (total, Err(error.kind())),
            }
            world.settle();
        }
    }

    /// Closes one side's connection.
    fn close(world: &mut World, side: Side) {
        let replacement = connection().0;
        match side {
            Side::Guest => world.guest = replacement,
            Side::Remote => world.remote = replacement,
        }
        world.settle();
    }

    #[test]
    fn an_answer_before_a_close_is_whole_though_its_reader_still_talks() {
        let mut world = World::local();
        let question = world.stuff(7) as u64;
        assert_eq!(world.remote.read(&mut [0; 10]).unwrap(), 10);
        world.settle();
        pour(&mut world, Side::Remote, 300_000);
        close(&mut world, Side::Remote);
        // It cannot talk any more, as if the server were its own, and does not wait for room to hear of it.
        let mut waits = [rustix::event::PollFd::new(&world.guest, rustix::event::PollFlags::OUT)];
        assert_eq!(rustix::event::poll(&mut waits, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1));
        assert_eq!(world.guest.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
        // What was not read of it is told.
        assert_eq!(drain(&mut world, Side::Guest), (300_000, Err(ErrorKind::ConnectionReset)));
        let [ended] = world.ended[..] else { panic!("{:?}", world.ended) };
        assert_eq!((ended.by, ended.counters.bytes_in), (CloseReason::RemoteReset, 300_000));
        assert!(ended.counters.bytes_out < question, "{ended:?} of {question}");
    }

    #[test]
    fn what_was_said_before_a_close_is_whole_though_something_was_not_heard() {
        // The second way, the relay learns of it from its writing, too.
        for keeps_sending in [false, true] {
            let mut world = World::local();
            world.remote.write_all(b"hello").unwrap();
            world.settle();
            pour(&mut world, Side::Guest, 300_000);
            close(&mut world, Side::Guest);
            if keeps_sending {
                world.remote.write_all(b"are you there?").unwrap();
                world.settle();
                assert_eq!(world.remote.write(b"?").unwrap_err().kind(), ErrorKind::BrokenPipe);
            }
            assert_eq!(drain(&mut world, Side::Remote), (300_000, Ok(())));
            let [ended] = world.ended[..] else { panic!("{:?}", world.ended) };
            assert_eq!((ended.by, ended.counters.bytes_out), (CloseReason::GuestReset, 300_000));
            assert_eq!(ended.counters.bytes_in, 5);
        }
    }

    #[test]
    fn who_stops_listening_goes_on_talking() {
        for side in [Side::Guest, Side::Remote] {
            let mut world = World::local();
            let other = if side == Side::Guest { Side::Remote } else { Side::Guest };
            let ends = |world: &World, side| {
                if side == Side::Guest { world.guest.try_clone() } else { world.remote.try_clone() }.unwrap()
            };
            let (mut deaf, mut heard) = (ends(&world, side), ends(&world, other));
            deaf.shutdown(std::net::Shutdown::Read).unwrap();
            heard.write_all(b"unheard").unwrap();
            world.settle();
            assert_eq!(heard.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
            for _ in 0..3 {
                deaf.write_all(b"still here").unwrap();
                world.settle();
                assert_eq!(heard.read(&mut [0; 32]).unwrap(), 10);
            }
            assert!(world.ended.is_empty());
            deaf.shutdown(std::net::Shutdown::Write).unwrap();
            world.settle();
            assert_eq!(heard.read(&mut [0; 32]).unwrap(), 0);
            assert_eq!(world.ended.len(), 1);
        }
    }

    #[test]
    fn a_server_that_does_not_listen_and_outlives_the_guest_is_left_when_it_speaks_and_at_the_end() {
        for says_something in [false, true] {
            for speaks in [false, true] {
                let mut world = World::local();
                world.remote.shutdown(std::net::Shutdown::Read).unwrap();
                if says_something {
                    world.guest.write_all(b"unheard").unwrap();
                    world.settle();
                }
                close(&mut world, Side::Guest);
                if speaks {
                    world.remote.write_all(b"x").unwrap();
                    world.settle();
                    assert_eq!(world.ended.len(), 1);
                } else {
                    assert_eq!(world.relay.reset_all(CloseReason::Shutdown).len(), 1);
                }
                assert_eq!(world.remote.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
            }
        }
    }

    #[test]
    fn a_turn_that_is_used_up_does_not_end_what_is_left() {
        let mut world = World::local();
        world.guest.write_all(b"never read").unwrap();
        world.settle();
        // Ready first, so that the cut and the used-up turn fall into one pump.
        world.guest.write_all(b"nor this").unwrap();
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let mut sent = 0;
        while sent < 275 && cofferdam_sys::fdpass::send_fds_now(&world.remote, b"x", &[writer.as_fd()]).is_ok() {
            sent += 1;
        }
        assert!(sent > TURN / SMALL, "{sent}");
        close(&mut world, Side::Remote);
        assert_eq!(drain(&mut world, Side::Guest).0, sent);
    }

    #[test]
    fn who_is_gone_is_not_waited_for() {
        let mut world = World::local();
        pour(&mut world, Side::Remote, 300_000);
        close(&mut world, Side::Guest);
        assert_eq!(world.ended.first().map(|ended| ended.by), Some(CloseReason::GuestReset));
        assert!(world.ended[0].counters.bytes_in < 300_000);
    }

    #[test]
    fn what_came_before_a_reset_waits_for_a_guest_that_listens() {
        for says_something in [false, true] {
            let mut world = World::new();
            let total = fill_up(&mut world);
            world.guest.write_all(b"not read").unwrap();
            world.settle();
            close(&mut world, Side::Remote);
            if says_something {
                // The relay learns of the reset by passing this on.
                world.guest.write_all(b"!").unwrap();
                world.settle();
            }
            assert!(world.ended.is_empty());
            let (came, end) = drain(&mut world, Side::Guest);
            assert_eq!((came, end), (total, Err(ErrorKind::ConnectionReset)));
            world.settle();
            assert_eq!((world.ended[0].by, world.ended[0].counters.bytes_in), (CloseReason::RemoteReset, total as u64));
        }
    }

    #[test]
    fn a_guest_that_goes_on_talking_to_a_remote_that_has_reset_is_reset() {
        let mut world = World::new();
        let total = fill_up(&mut world);
        world.guest.write_all(b"not read").unwrap();
        world.settle();
        close(&mut world, Side::Remote);
        for _ in 0..2 {
            world.guest.write_all(b"!").unwrap();
            world.settle();
        }
        assert_eq!(world.ended.first().map(|ended| ended.by), Some(CloseReason::RemoteReset));
        let (came, end) = drain(&mut world, Side::Guest);
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
        // What its own kernel has, it has.
        assert!(came > 0 && came < total, "{came}");
    }

    #[test]
    fn copies_when_the_kernel_does_not_splice() {
        let mut world = World::new();
        world.relay.tools.splice = false;
        let sent = world.stuff(3);
        assert_eq!(world.read().len(), sent);
    }

    #[test]
    fn a_reset_by_policy_ends_both_sides() {
        let mut world = World::new();
        assert_eq!(world.relay.reset(FLOW, CloseReason::Policy).unwrap().by, CloseReason::Policy);
        for socket in [&world.guest, &world.remote] {
            assert_eq!((&mut &*socket).read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        assert!(world.relay.reset(FLOW, CloseReason::Policy).is_none());
    }
}
