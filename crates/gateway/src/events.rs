//! The way out for events: JSON lines to the supervisor, never waited for.

use std::os::fd::OwnedFd;

use cofferdam_model::{Event, EventBody, EventSource, LimitKind, Time};
use rustix::net::SendFlags;

use crate::clock;

/// Lines are gathered for one turn of the loop and go out in one message, up to about this many bytes.
const GATHER: usize = 16 * 1024;

/// Writes events to a `SOCK_SEQPACKET` socket, so that a reader gets whole lines or nothing.
///
/// When the reader is slow the message is dropped and its lines are counted; the count becomes an event of its own as soon as
/// there is room again.
pub(crate) struct EventWriter {
    socket: OwnedFd,
    gathered: Vec<u8>,
    lines: u64,
    lost: u64,
    reported: u64,
}

impl EventWriter {
    pub(crate) fn new(socket: OwnedFd) -> EventWriter {
        EventWriter { socket, gathered: Vec::with_capacity(GATHER), lines: 0, lost: 0, reported: 0 }
    }

    /// Adds one event to those of this turn.
    pub(crate) fn push(&mut self, now: Time, body: EventBody) {
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

    /// Sends what was gathered.
    pub(crate) fn flush(&mut self, now: Time) {
        if self.gathered.is_empty() {
            return;
        }
        let sent = rustix::net::send(&self.socket, &self.gathered, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok();
        if !sent {
            self.lost += self.lines;
        }
        self.gathered.clear();
        self.lines = 0;
        if sent && self.lost > self.reported {
            let count = self.lost - self.reported;
            self.reported = self.lost;
            self.push(now, EventBody::LimitReached { limit: LimitKind::Events, bound: 0, count });
        }
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
        let mut writer = EventWriter::new(ours);
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
}
