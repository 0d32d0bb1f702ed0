//! The way out for events: JSON lines to the supervisor, never waited for.
//!
//! Each turn of the loop ends with what it has gathered being sent. Each message wakes the supervisor, which takes the time of a
//! tenth of a connection on a processor that the sandbox may need. So when connections come by the thousand, what only tells of
//! them waits for company, [`PACE`] at most; denials and whatever else somebody may be waiting for never wait, and take along what does.
//! A program that opens a few connections has them told at once, while the process that has the socket can be found.

use std::os::fd::OwnedFd;
use std::time::Duration;

use cofferdam_model::{Event, EventBody, EventSource, LimitKind, Time};
use rustix::net::SendFlags;

use cofferdam_pcap::LookUp;

use crate::capture::Teller;
use crate::clock;

/// Lines are gathered for one turn of the loop and go out in one message, up to about this many bytes.
const GATHER: usize = 16 * 1024;

/// How often messages are sent that nobody waits for, when there are many.
const PACE: Duration = Duration::from_millis(1);

/// How far ahead of that they may be: a few hundred messages at once after a rest. The supervisor finds out whose the flows are at
/// about this rate and no faster (`attribution.rs`).
const AHEAD: Duration = Duration::from_millis(256);

/// Writes events to a `SOCK_SEQPACKET` socket, so that a reader gets whole lines or nothing.
///
/// When the reader is slow the message is dropped and its lines are counted; the count becomes an event of its own as soon as
/// there is room again. At the end, when nobody waits for the gateway any more, it waits for the reader.
pub(crate) struct EventWriter {
    socket: OwnedFd,
    gathered: Vec<u8>,
    lines: u64,
    lost: u64,
    reported: u64,
    flags: SendFlags,
    /// Something was gathered that does not wait.
    hurries: bool,
    /// Up to when messages have been sent, at one every [`PACE`].
    paced: Time,
    /// From when on a message is in time.
    next: Time,
    /// The wall clock as it was at some time of the other one: a turn has one time.
    wall: (Time, String),
    /// Hears of decisions, too.
    pub(crate) capture: Teller,
}

impl EventWriter {
    pub(crate) fn new(socket: OwnedFd, capture: Teller) -> EventWriter {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        EventWriter {
            socket,
            gathered: Vec::with_capacity(GATHER),
            lines: 0,
            lost: 0,
            reported: 0,
            flags,
            hurries: false,
            paced: Time::ZERO,
            next: Time::ZERO,
            wall: (Time::ZERO, String::new()),
            capture,
        }
    }

    /// From here on the reader is waited for. It ends whoever keeps it waiting.
    pub(crate) fn be_patient(&mut self) {
        self.flags = SendFlags::NOSIGNAL;
    }

    /// Adds one event to those of this turn.
    pub(crate) fn push(&mut self, now: Time, body: EventBody) {
        self.push_about(now, body, None);
    }

    /// As [`EventWriter::push`], of an event about the look-up of `client`.
    pub(crate) fn push_about(&mut self, now: Time, body: EventBody, client: Option<&LookUp>) {
        self.capture.tell(&body, client);
        self.hurries |= !waits(&body);
        let time = self.wall(now);
        let event = Event { v: 1, time, mono_ns: now.as_nanos(), source: EventSource::Gateway, body };
        let before = self.gathered.len();
        if serde_json::to_writer(&mut self.gathered, &event).is_err() {
            self.gathered.truncate(before);
            self.lost += 1;
            return;
        }
        self.gathered.push(b'\n');
        self.lines += 1;
        if self.gathered.len() >= GATHER {
            self.flush(now);
        }
    }

    /// When what was gathered is to be sent; `None`: there is nothing.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        (!self.gathered.is_empty()).then_some(self.next)
    }

    /// Whether it is time to send what was gathered, or to say again what was lost.
    pub(crate) fn is_due(&self, now: Time) -> bool {
        self.hurries || self.lost != self.reported || self.poll_timeout().is_some_and(|at| at <= now)
    }

    /// Sends what was gathered, and how much was lost before it. Whether all of that is told.
    pub(crate) fn flush(&mut self, now: Time) -> bool {
        self.hurries = false;
        if !self.gathered.is_empty() {
            // What did not wait for its time is not made up for by what does.
            self.paced = (self.paced.max(now) + PACE).min(now + AHEAD + PACE);
            self.next = now + self.paced.since(now).saturating_sub(AHEAD);
        }
        if !self.send() {
            self.lost += self.lines;
            self.forget();
            return false;
        }
        self.forget();
        let count = self.lost - self.reported;
        if count > 0 {
            self.push(now, EventBody::LimitReached { limit: LimitKind::Events, bound: 0, count });
            if self.send() {
                self.reported = self.lost;
            }
            self.forget();
            self.hurries = false;
        }
        self.lost == self.reported
    }

    fn send(&mut self) -> bool {
        self.gathered.is_empty()
            || rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, &self.gathered, self.flags)).is_ok()
    }

    fn forget(&mut self) {
        self.gathered.clear();
        self.lines = 0;
    }

    fn wall(&mut self, now: Time) -> String {
        let (when, text) = &mut self.wall;
        if *when != now || text.is_empty() {
            (*when, *text) = (now, clock::wall());
        }
        text.clone()
    }
}

/// Whether nobody minds hearing of it a moment later.
fn waits(body: &EventBody) -> bool {
    match body {
        EventBody::FlowOpened { .. } | EventBody::FlowClosed { .. } => true,
        EventBody::SandboxStarted { .. }
        | EventBody::SandboxStopped { .. }
        | EventBody::DnsQuery { .. }
        | EventBody::DnsMore { .. }
        | EventBody::FlowDenied { .. }
        | EventBody::FlowShown { .. }
        | EventBody::FlowProgress { .. }
        | EventBody::FlowFailed { .. }
        | EventBody::PolicyChanged { .. }
        | EventBody::PortPublished { .. }
        | EventBody::PortWithdrawn { .. }
        | EventBody::SocketOpened { .. }
        | EventBody::SocketClosed { .. }
        | EventBody::SocketFailed { .. }
        | EventBody::LimitReached { .. }
        | EventBody::GatewayDropped { .. }
        | EventBody::GatewayNotice { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(writer: &mut EventWriter, text: &str) {
        writer.push(Time::ZERO, EventBody::GatewayNotice { message: text.to_owned() });
        writer.flush(Time::ZERO);
    }

    #[test]
    fn counts_what_a_slow_reader_lost() {
        let (ours, theirs) = cofferdam_sys::fdpass::pair().unwrap();
        let mut writer = EventWriter::new(ours, Teller::default());
        let mut buffer = vec![0; 4 * GATHER];
        let text = "x".repeat(8000);
        for _ in 0..1000 {
            notice(&mut writer, &text);
        }
        let lost = writer.lost;
        assert!(lost > 0);
        let mut lines = Vec::new();
        while let Ok((n, _)) = rustix::net::recv(&theirs, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT) {
            lines.extend(buffer[..n].split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(<[u8]>::to_vec));
        }
        notice(&mut writer, "room again");
        notice(&mut writer, "and again");
        while let Ok((n, _)) = rustix::net::recv(&theirs, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT) {
            lines.extend(buffer[..n].split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(<[u8]>::to_vec));
        }
        let events: Vec<Event> = lines.iter().map(|l| serde_json::from_slice(l).unwrap()).collect();
        let told = |e: &Event| matches!(&e.body, EventBody::LimitReached { limit: LimitKind::Events, count, .. } if *count == lost);
        assert!(events.iter().any(told));
    }

    fn flow(number: u64) -> EventBody {
        EventBody::FlowClosed {
            flow: cofferdam_model::FlowId(number),
            by: cofferdam_model::CloseReason::Guest,
            counters: cofferdam_model::FlowCounters::default(),
            duration_ms: 0,
        }
    }

    /// The messages that have come: how many lines each.
    fn messages(socket: &OwnedFd) -> Vec<usize> {
        let (mut buffer, mut messages) = (vec![0; 4 * GATHER], Vec::new());
        while let Ok((n, _)) = rustix::net::recv(socket, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT) {
            messages.push(buffer[..n].iter().filter(|byte| **byte == b'\n').count());
        }
        messages
    }

    #[test]
    fn what_tells_of_flows_waits_for_company_when_there_are_many() {
        let (ours, theirs) = cofferdam_sys::fdpass::pair().unwrap();
        let mut writer = EventWriter::new(ours, Teller::default());
        let start = Time::from_nanos(1_000_000_000);
        let mut at_once = 0;
        let mut messages_so_far = 0;
        // A turn every 20 µs for a second, and in each a connection.
        for turn in 0..50_000 {
            let now = start + Duration::from_micros(20 * turn);
            writer.push(now, flow(turn));
            let is_due = writer.is_due(now);
            assert_eq!(is_due, writer.poll_timeout().unwrap() <= now);
            if is_due {
                assert!(writer.flush(now));
                messages_so_far += messages(&theirs).len();
            }
            if at_once == turn && is_due {
                at_once += 1;
            }
        }
        assert!((256..300).contains(&at_once), "{at_once}");
        assert!((1_200..1_300).contains(&messages_so_far), "{messages_so_far}");
        // The last of them are told within a moment, and after a rest they are told at once again.
        let now = start + Duration::from_micros(1_000_000);
        writer.push(now, flow(0));
        assert!(writer.poll_timeout().unwrap().since(now) <= PACE);
        writer.flush(now);
        assert_eq!(writer.poll_timeout(), None);
        let now = now + Duration::from_secs(1);
        for turn in 0..200 {
            writer.push(now, flow(turn));
            assert!(writer.is_due(now));
            writer.flush(now);
        }
    }

    #[test]
    fn a_denial_waits_for_nothing_and_takes_along_what_does() {
        let (ours, theirs) = cofferdam_sys::fdpass::pair().unwrap();
        let mut writer = EventWriter::new(ours, Teller::default());
        let now = Time::from_nanos(1_000_000_000);
        while writer.next <= now {
            writer.push(now, flow(0));
            writer.flush(now);
        }
        messages(&theirs);
        writer.push(now, flow(1));
        assert!(!writer.is_due(now));
        let shown = EventBody::LimitReached { limit: LimitKind::Connections, bound: 1, count: 1 };
        for hurried in [EventBody::DnsMore { verdict: cofferdam_model::Action::Deny, count: 1 }, shown] {
            writer.push(now, flow(2));
            assert!(!writer.is_due(now));
            writer.push(now, hurried);
            writer.push(now, flow(3));
            assert!(writer.is_due(now));
            writer.flush(now);
        }
        assert_eq!(messages(&theirs), [4, 3]);
        // And whoever wants to hear of everything does.
        writer.push(now, flow(4));
        assert!(!writer.is_due(now));
        assert!(writer.flush(now));
        assert_eq!(messages(&theirs), [1]);
    }

    #[test]
    fn however_many_did_not_wait_the_next_one_waits_no_longer() {
        let (ours, theirs) = cofferdam_sys::fdpass::pair().unwrap();
        let mut writer = EventWriter::new(ours, Teller::default());
        let now = Time::from_nanos(1_000_000_000);
        for is_read in [true, false] {
            for _ in 0..10_000 {
                writer.push(now, EventBody::DnsMore { verdict: cofferdam_model::Action::Deny, count: 1 });
                writer.flush(now);
                if is_read {
                    messages(&theirs);
                }
            }
            messages(&theirs);
            writer.flush(now);
            writer.push(now, flow(0));
            assert!(writer.poll_timeout().unwrap().since(now) <= PACE);
            writer.flush(now);
        }
    }

    #[test]
    fn says_whether_everything_is_told() {
        let (ours, theirs) = cofferdam_sys::fdpass::pair().unwrap();
        let mut writer = EventWriter::new(ours, Teller::default());
        let mut buffer = vec![0; 4 * GATHER];
        assert!(writer.flush(Time::ZERO), "there was nothing to tell");
        let told = |writer: &mut EventWriter| {
            writer.push(Time::ZERO, EventBody::GatewayNotice { message: "x".repeat(8000) });
            writer.flush(Time::ZERO)
        };
        while told(&mut writer) {}
        assert!(!writer.flush(Time::ZERO), "the count of those that were lost has found no room");
        rustix::net::recv(&theirs, &mut buffer[..], rustix::net::RecvFlags::DONTWAIT).unwrap();
        assert!(writer.flush(Time::ZERO));
    }

    #[test]
    fn loses_nothing_at_the_end() {
        let (ours, theirs) = cofferdam_sys::fdpass::pair().unwrap();
        let mut writer = EventWriter::new(ours, Teller::default());
        writer.be_patient();
        let reading = std::thread::spawn(move || {
            let (mut buffer, mut lines) = (vec![0; 4 * GATHER], 0);
            while let Ok((len, _)) = rustix::net::recv(&theirs, &mut buffer[..], rustix::net::RecvFlags::empty())
                && len > 0
            {
                lines += buffer[..len].iter().filter(|byte| **byte == b'\n').count();
            }
            lines
        });
        for _ in 0..1000 {
            notice(&mut writer, &"x".repeat(8000));
        }
        drop(writer);
        assert_eq!(reading.join().unwrap(), 1000);
    }
}
