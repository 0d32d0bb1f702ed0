//! The way out for events: JSON lines to the supervisor, never waited for.

use std::os::fd::OwnedFd;

use cofferdam_model::{Event, EventBody, EventSource, LimitKind, Time};
use rustix::net::SendFlags;

use cofferdam_pcap::LookUp;

use crate::capture::Teller;
use crate::clock;

/// Lines are gathered for one turn of the loop and go out in one message, up to about this many bytes.
const GATHER: usize = 16 * 1024;

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
    /// Hears of decisions, too.
    pub(crate) capture: Teller,
}

impl EventWriter {
    pub(crate) fn new(socket: OwnedFd, capture: Teller) -> EventWriter {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        EventWriter { socket, gathered: Vec::with_capacity(GATHER), lines: 0, lost: 0, reported: 0, flags, capture }
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
        let event = Event { v: 1, time: clock::wall(), mono_ns: now.as_nanos(), source: EventSource::Gateway, body };
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

    /// Sends what was gathered, and how much was lost before it. Whether all of that is told.
    pub(crate) fn flush(&mut self, now: Time) -> bool {
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
