//! What a run does, as it goes on: the fold behind every live view.
//!
//! [`Live`] reads the event stream, in order, and keeps what a view shows at any moment: flows that are open with what they have
//! moved and how fast, those that were closed a moment ago, what was denied (as the [`Summary`] has it), who talks to whom, and
//! two minutes of history. It knows no clock: rates are asked for at a time of the stream, see [`Live::now`].
//!
//! | Event | Does |
//! |---|---|
//! | `flow.opened`, `socket.opened` | a flow is open |
//! | `flow.progress` | adds what flows have moved since, which is their rate |
//! | `flow.shown` | names of an open flow |
//! | `flow.closed`, `socket.closed` | adds the rest; the flow is one of those that were closed |
//! | `flow.failed`, `socket.failed` | the same, of one that carried nothing or was never open |
//! | `flow.denied`, a look-up that was denied | a denial, to the summary and to who talks to whom |
//!
//! Limits: [`MAX_OPEN`] open flows, the oldest of which make room; [`MAX_CLOSED`] closed ones, likewise; [`MAX_TALKS`] pairs of a
//! program and a destination, beyond which all is counted as one; [`HISTORY`] seconds; [`MAX_NAMES`] names of a flow. The totals
//! are exact whatever finds no room.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use cofferdam_model::{
    Action, CloseReason, Direction, Event, EventBody, FlowCounters, FlowId, Group, Process, Protocol, RuleText,
};

use crate::summary::{Advice, DeniedTarget, Summary, Totals};

/// More than a gateway has open at once.
pub const MAX_OPEN: usize = 65_536;
/// Closed flows that are remembered: what somebody who looks up has missed, and some screens of it.
pub const MAX_CLOSED: usize = 1024;
/// Pairs of a program and a destination: a drawing of more is no drawing.
pub const MAX_TALKS: usize = 4096;
/// Names of one flow.
pub const MAX_NAMES: usize = 8;
/// Seconds of history.
pub const HISTORY: usize = 120;

const SECOND: u64 = 1_000_000_000;
/// Over how long a rate is taken. What flows have moved is told once a second: less would show the gaps between two of these.
const WINDOW: u64 = 3 * SECOND;
/// Changes that lie in a window, one a second, and one more that is on its way out.
const MAX_MOVES: usize = 4;

/// What a run does; see the [module](self).
#[derive(Debug, Default)]
pub struct Live {
    summary: Summary,
    now: u64,
    time: String,
    revision: u64,
    open: BTreeMap<FlowId, Flow>,
    /// Youngest first.
    closed: VecDeque<Flow>,
    /// Open flows that found no room, as far as they can be counted.
    unlisted: u64,
    talks: BTreeMap<Talker, Talk>,
    talks_beyond: Talk,
    history: VecDeque<Second>,
    moved: Moved,
    events: u64,
    stopped: Option<Stopped>,
}

/// A number of bytes in each direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moved {
    /// From the guest.
    pub out: u64,
    /// To the guest.
    pub into: u64,
}

impl Moved {
    fn add(&mut self, other: Moved) {
        self.out = self.out.saturating_add(other.out);
        self.into = self.into.saturating_add(other.into);
    }

    fn since(self, earlier: Moved) -> Moved {
        Moved { out: self.out.saturating_sub(earlier.out), into: self.into.saturating_sub(earlier.into) }
    }

    fn is_nothing(self) -> bool {
        self == Moved::default()
    }
}

impl From<&FlowCounters> for Moved {
    fn from(counters: &FlowCounters) -> Moved {
        Moved { out: counters.bytes_out, into: counters.bytes_in }
    }
}

/// One flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    pub id: FlowId,
    pub destination: Destination,
    /// Names that led to its address, or that it has shown.
    pub names: Vec<String>,
    pub rule: RuleText,
    pub process: Option<Process>,
    /// When it was opened, in the time of the stream and by the clock on the wall.
    pub opened: u64,
    pub opened_at: String,
    /// What it has carried so far.
    pub moved: Moved,
    pub end: Option<End>,
    /// Grows with every change of any flow: what has a greater one than somebody has seen is news.
    pub revision: u64,
    talker: Talker,
    /// What it moved of late, and when that was told.
    moves: VecDeque<(u64, Moved)>,
}

/// Where a flow goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    Remote {
        direction: Direction,
        protocol: Protocol,
        guest: SocketAddr,
        remote: SocketAddr,
        group: Group,
    },
    /// A socket of the host, by its path there.
    Socket(String),
}

/// How a flow ended, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub at: u64,
    pub how: Ending,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    Closed(CloseReason),
    /// It did not come about: what the system said.
    Failed(String),
}

/// Who talks to whom.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Talker {
    /// The name of the program, where it was found.
    pub program: Option<String>,
    pub peer: Peer,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// The machine that the sandbox runs on.
    Host,
    Name(String),
    Address(IpAddr),
    /// A socket of the host.
    Socket(String),
}

/// How much was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Talk {
    pub flows: u64,
    pub denied: u64,
    pub moved: Moved,
}

/// What happened in one second of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Second {
    /// Seconds since the stream began.
    pub at: u64,
    pub moved: Moved,
    pub opened: u64,
    pub denied: u64,
}

/// How the program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    pub exit_status: i32,
    pub duration_ms: u64,
}

impl Live {
    #[must_use]
    pub fn new(advice: Advice) -> Live {
        Live { summary: Summary::new(advice), ..Live::default() }
    }

    /// The next event of the stream.
    pub fn record(&mut self, event: &Event) {
        self.events = self.events.saturating_add(1);
        if event.mono_ns >= self.now {
            self.now = event.mono_ns;
            self.time.clone_from(&event.time);
        }
        self.summary.record(event);
        match &event.body {
            EventBody::FlowOpened { flow, direction, protocol, guest, remote, group, names, rule, process } => {
                let destination = Destination::Remote {
                    direction: *direction,
                    protocol: *protocol,
                    guest: *guest,
                    remote: *remote,
                    group: *group,
                };
                let opened = Opened { names, rule: rule.clone(), process: process.as_ref() };
                self.open(event, *flow, destination, opened);
            }
            EventBody::SocketOpened { flow, host, .. } => {
                let opened = Opened { names: &[], rule: RuleText::default(), process: None };
                self.open(event, *flow, Destination::Socket(host.clone()), opened);
            }
            EventBody::FlowShown { flow, shown } => self.show(*flow, &shown.names),
            EventBody::FlowProgress { flows, more: _ } => {
                flows.iter().for_each(|one| self.advance(one.flow, event.mono_ns, (&one.counters).into()));
            }
            EventBody::FlowClosed { flow, by, counters, .. } | EventBody::SocketClosed { flow, by, counters, .. } => {
                self.close(*flow, event.mono_ns, Ending::Closed(*by), Some(counters.into()));
            }
            EventBody::FlowFailed { flow, error, .. } | EventBody::SocketFailed { flow, error, .. } => {
                self.close(*flow, event.mono_ns, Ending::Failed(error.clone()), None);
            }
            EventBody::FlowDenied { remote, group, names, shown, process, .. } => {
                let shown = shown.as_ref().map(|shown| &shown.names).filter(|names| !names.is_empty());
                let peer = Peer::of(*remote, *group, shown.unwrap_or(names));
                self.deny(event.mono_ns, Talker::new(process.as_ref(), peer), 1);
            }
            EventBody::DnsQuery { name, verdict: Action::Deny, count, process, .. } => {
                let peer = Peer::Name(name.trim_end_matches('.').to_ascii_lowercase());
                self.deny(event.mono_ns, Talker::new(process.as_ref(), peer), *count);
            }
            EventBody::DnsMore { verdict: Action::Deny, count } => {
                self.talks_beyond.denied = self.talks_beyond.denied.saturating_add(*count);
                self.count(event.mono_ns, |second| second.denied = second.denied.saturating_add(*count));
            }
            EventBody::SandboxStopped { exit_status, duration_ms } => {
                self.stopped = Some(Stopped { exit_status: *exit_status, duration_ms: *duration_ms });
            }
            EventBody::SandboxStarted { .. }
            | EventBody::DnsQuery { verdict: Action::Allow, .. }
            | EventBody::DnsMore { verdict: Action::Allow, .. }
            | EventBody::PolicyChanged { .. }
            | EventBody::PortPublished { .. }
            | EventBody::PortWithdrawn { .. }
            | EventBody::LimitReached { .. }
            | EventBody::GatewayDropped { .. }
            | EventBody::GatewayNotice { .. } => {}
        }
    }

    /// The youngest time of the stream, in its monotonic nanoseconds, and on the wall as the event has it: between the two,
    /// whoever has a clock knows what time of the stream it is.
    #[must_use]
    pub fn now(&self) -> (u64, &str) {
        (self.now, &self.time)
    }

    /// Grows with every change of a flow; see [`Flow::revision`].
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Events so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Open flows, oldest first.
    pub fn open_flows(&self) -> impl DoubleEndedIterator<Item = &Flow> + ExactSizeIterator {
        self.open.values()
    }

    /// Open flows that found no room among these.
    #[must_use]
    pub fn unlisted(&self) -> u64 {
        self.unlisted
    }

    /// Flows that were closed of late, youngest first.
    pub fn closed_flows(&self) -> impl DoubleEndedIterator<Item = &Flow> + ExactSizeIterator {
        self.closed.iter()
    }

    /// What was denied, most frequent first, as the end of a run tells it.
    #[must_use]
    pub fn denied(&self) -> Vec<DeniedTarget> {
        self.summary.denied()
    }

    /// Everything that the end of a run tells.
    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The plain counters. Their bytes are those of closed flows; [`Live::moved`] has all.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.summary.totals()
    }

    /// What all flows have carried so far, sockets of the host included.
    #[must_use]
    pub fn moved(&self) -> Moved {
        self.moved
    }

    /// Bytes a second that the whole run moves at a time of the stream.
    #[must_use]
    pub fn rate(&self, now: u64) -> Moved {
        // Seconds are counted from their beginning: the one that goes on is not over yet.
        let this = now / SECOND;
        let recent = self.history.iter().rev().take_while(|second| second.at + WINDOW / SECOND >= this);
        let mut sum = Moved::default();
        recent.filter(|second| second.at < this).for_each(|second| sum.add(second.moved));
        per_second(sum, WINDOW)
    }

    /// Who has talked to whom, in the order of names.
    pub fn talks(&self) -> impl Iterator<Item = (&Talker, &Talk)> {
        self.talks.iter()
    }

    /// What found no room among these.
    #[must_use]
    pub fn talks_beyond(&self) -> Talk {
        self.talks_beyond
    }

    /// Seconds in which something happened, oldest first, of the last [`HISTORY`].
    pub fn history(&self) -> impl Iterator<Item = &Second> {
        self.history.iter()
    }

    /// How the program ended, if it has.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        self.stopped
    }

    fn open(&mut self, event: &Event, id: FlowId, destination: Destination, opened: Opened<'_>) {
        let Opened { names, rule, process } = opened;
        let talker = Talker::new(process, destination.peer(names));
        let talk = self.talk(talker.clone());
        talk.flows = talk.flows.saturating_add(1);
        self.count(event.mono_ns, |second| second.opened = second.opened.saturating_add(1));
        if self.open.len() >= MAX_OPEN && self.open.pop_first().is_some() {
            self.unlisted = self.unlisted.saturating_add(1);
        }
        self.revision += 1;
        let flow = Flow {
            id,
            destination,
            names: names.iter().take(MAX_NAMES).cloned().collect(),
            rule,
            process: process.cloned(),
            opened: event.mono_ns,
            opened_at: event.time.clone(),
            moved: Moved::default(),
            end: None,
            revision: self.revision,
            talker,
            moves: VecDeque::new(),
        };
        self.open.insert(id, flow);
    }

    fn show(&mut self, id: FlowId, names: &[String]) {
        let Some(flow) = self.open.get_mut(&id) else { return };
        for name in names {
            if flow.names.len() < MAX_NAMES && !flow.names.contains(name) {
                flow.names.push(name.clone());
            }
        }
        self.revision += 1;
        flow.revision = self.revision;
    }

    /// A flow has carried so much in all.
    fn advance(&mut self, id: FlowId, at: u64, carried: Moved) {
        // What one without a beginning has carried is told at its end.
        let Some(flow) = self.open.get_mut(&id) else { return };
        let more = carried.since(flow.moved);
        if more.is_nothing() {
            return;
        }
        flow.moved.add(more);
        flow.remember(at, more);
        self.revision += 1;
        flow.revision = self.revision;
        let talker = flow.talker.clone();
        self.add_moved(at, Some(talker), more);
    }

    fn close(&mut self, id: FlowId, at: u64, how: Ending, carried: Option<Moved>) {
        if let Some(carried) = carried {
            match self.open.contains_key(&id) {
                true => self.advance(id, at, carried),
                // Its beginning is not known: all that is told of it is told here.
                false => self.add_moved(at, None, carried),
            }
        }
        let Some(mut flow) = self.open.remove(&id) else {
            // One that failed may never have been open.
            self.unlisted = self.unlisted.saturating_sub(u64::from(carried.is_some()));
            return;
        };
        self.revision += 1;
        flow.revision = self.revision;
        flow.end = Some(End { at, how });
        self.closed.truncate(MAX_CLOSED - 1);
        self.closed.push_front(flow);
    }

    fn deny(&mut self, at: u64, talker: Talker, count: u64) {
        let talk = self.talk(talker);
        talk.denied = talk.denied.saturating_add(count);
        self.count(at, |second| second.denied = second.denied.saturating_add(count));
    }

    /// Adds to everything that counts bytes; `None` for those of a flow that is not known.
    fn add_moved(&mut self, at: u64, talker: Option<Talker>, more: Moved) {
        self.moved.add(more);
        self.count(at, |second| second.moved.add(more));
        let talk = match talker {
            Some(talker) => self.talk(talker),
            None => &mut self.talks_beyond,
        };
        talk.moved.add(more);
    }

    fn talk(&mut self, talker: Talker) -> &mut Talk {
        if self.talks.len() >= MAX_TALKS && !self.talks.contains_key(&talker) {
            return &mut self.talks_beyond;
        }
        self.talks.entry(talker).or_default()
    }

    /// Counts something to the second of a time. What is older than the history is left out of it.
    fn count(&mut self, at: u64, count: impl FnOnce(&mut Second)) {
        let at = at / SECOND;
        // Two sources write the stream, so times may be a little out of order.
        let place = self.history.partition_point(|second| second.at < at);
        if self.history.get(place).is_none_or(|second| second.at != at) {
            self.history.insert(place, Second { at, ..Second::default() });
        }
        if let Some(second) = self.history.get_mut(place) {
            count(second);
        }
        // Times of one history are different and lie within it, so there are as many of them at most.
        let begins = self.history.back().map_or(0, |last| (last.at + 1).saturating_sub(seconds(HISTORY)));
        while self.history.front().is_some_and(|second| second.at < begins) {
            self.history.pop_front();
        }
    }
}

/// What is known of a flow when it is opened.
struct Opened<'a> {
    names: &'a [String],
    rule: RuleText,
    process: Option<&'a Process>,
}

impl Flow {
    /// Bytes a second at a time of the stream, over the last seconds.
    #[must_use]
    pub fn rate(&self, now: u64) -> Moved {
        if self.end.is_some() {
            return Moved::default();
        }
        let mut sum = Moved::default();
        self.moves.iter().filter(|(at, _)| at.saturating_add(WINDOW) > now).for_each(|(_, moved)| sum.add(*moved));
        // One that is younger than the window has not had more time than it is old.
        per_second(sum, now.saturating_sub(self.opened).clamp(SECOND, WINDOW))
    }

    /// Whether it has moved something within this time: its rate is not what it was when that was told.
    #[must_use]
    pub fn is_moving(&self, now: u64, within: u64) -> bool {
        self.end.is_none() && self.moves.back().is_some_and(|(at, _)| at.saturating_add(within) > now)
    }

    /// Who talks to whom in it.
    #[must_use]
    pub fn talker(&self) -> &Talker {
        &self.talker
    }

    fn remember(&mut self, at: u64, more: Moved) {
        while self.moves.front().is_some_and(|(then, _)| then.saturating_add(WINDOW) <= at) {
            self.moves.pop_front();
        }
        let is_full = self.moves.len() >= MAX_MOVES;
        match self.moves.back_mut().filter(|_| is_full) {
            Some((_, last)) => last.add(more),
            None => self.moves.push_back((at, more)),
        }
    }
}

impl Destination {
    fn peer(&self, names: &[String]) -> Peer {
        match self {
            Destination::Remote { remote, group, .. } => Peer::of(*remote, *group, names),
            Destination::Socket(path) => Peer::Socket(path.clone()),
        }
    }
}

impl Peer {
    fn of(remote: SocketAddr, group: Group, names: &[String]) -> Peer {
        match names.first() {
            _ if group == Group::Host => Peer::Host,
            Some(name) => Peer::Name(name.trim_end_matches('.').to_ascii_lowercase()),
            None => Peer::Address(remote.ip().to_canonical()),
        }
    }
}

impl Talker {
    fn new(process: Option<&Process>, peer: Peer) -> Talker {
        Talker { program: process.map(|process| process.comm.clone()), peer }
    }
}

fn per_second(sum: Moved, over: u64) -> Moved {
    let rate = |bytes: u64| {
        let rate = u128::from(bytes) * u128::from(SECOND) / u128::from(over.max(1));
        u64::try_from(rate).unwrap_or(u64::MAX)
    };
    Moved { out: rate(sum.out), into: rate(sum.into) }
}

fn seconds(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
