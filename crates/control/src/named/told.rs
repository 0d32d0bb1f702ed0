//! What the session's gateway denies, as runs without a network of their own hear of it.
//!
//! The gateway reports to the keeper, and the keeper passes denials and limits on to every such run, over a
//! `SOCK_SEQPACKET` socket that it handed over with the rest: one event a message, as JSON. A run whose program has ended says
//! so ([`FromRun::Ended`](super::protocol::FromRun)); the keeper has the gateway tell what it has gathered, and then ends with a
//! number: how many events found no room. So what a program was denied in its last moment is told by the run that it belonged
//! to, and nobody waits for time to pass.
//!
//! Which run a packet came from is not known: they share a network. Each hears of all.
//!
//! Limits: the socket holds what the kernel lets it, and more is counted; at its end a run waits [`LAST_WORDS`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cofferdam_model::{Event, EventBody, Layer};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// How long a run waits for what its keeper has to tell. Both are woken at once; only a stopped keeper takes longer.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The longest event that is passed on.
const LONGEST: usize = 64 * 1024;

/// Events that a run reads at once: others wait too.
const TURN: usize = 256;

/// Whether runs are told of it.
pub(super) fn concerns_runs(event: &Event) -> bool {
    event.body.is_denial() || matches!(event.body, EventBody::LimitReached { .. } | EventBody::GatewayNotice { .. })
}

/// The keeper's end.
#[derive(Debug)]
pub(super) struct Teller {
    socket: OwnedFd,
    lost: u64,
}

impl Teller {
    pub(super) fn new(socket: OwnedFd) -> Teller {
        Teller { socket, lost: 0 }
    }

    /// Passes an event on. `false`: nobody listens.
    pub(super) fn tell(&mut self, line: &[u8]) -> bool {
        match self.send(line) {
            Ok(()) => true,
            Err(Errno::PIPE | Errno::CONNRESET | Errno::CONNREFUSED | Errno::NOTCONN) => false,
            // No room (`AGAIN`), too long (`MSGSIZE`), or the kernel has no memory (`NOBUFS`, `NOMEM`): the next one may pass.
            Err(_) => {
                self.lost += 1;
                true
            }
        }
    }

    /// Says that this was all.
    pub(super) fn end(self) {
        // Whoever has stopped listening does not wait either.
        let _gone = self.send(self.lost.to_string().as_bytes());
    }

    fn send(&self, message: &[u8]) -> Result<(), Errno> {
        if message.len() > LONGEST {
            return Err(Errno::MSGSIZE);
        }
        rustix::net::send(&self.socket, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map(drop)
    }
}

/// The run's end.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
}

/// What a listener has heard.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// As lines of the run's own event stream.
    Event(Vec<u8>),
    /// Nothing more will come, and so many events are missing.
    End(u64),
    Nothing,
}

impl Listener {
    pub(super) fn new(socket: OwnedFd) -> Listener {
        Listener { socket }
    }

    /// Adds the events that are there, [`TURN`] of them at most. `false`: no more will come.
    pub(super) fn take(&self, lines: &mut Vec<Vec<u8>>) -> bool {
        let mut buffer = vec![0; LONGEST];
        for _ in 0..TURN {
            match self.hear(&mut buffer) {
                Heard::Event(line) => lines.push(line),
                Heard::Nothing => return true,
                Heard::End(_) => return false,
            }
        }
        true
    }

    /// The events until the end, and how many of them are missing: at least, where the keeper did not say so in time.
    pub(super) fn rest(self) -> (Vec<Vec<u8>>, u64) {
        let mut lines = Vec::new();
        let mut buffer = vec![0; LONGEST];
        let deadline = Instant::now() + LAST_WORDS;
        loop {
            match self.hear(&mut buffer) {
                Heard::Event(line) => lines.push(line),
                Heard::End(lost) => return (lines, lost),
                Heard::Nothing => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let timeout = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
                    let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
                    let waited = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&timeout)));
                    if left.is_zero() || !waited.is_ok_and(|ready| ready > 0) {
                        // How many it would have told of is not known. None is what may not be claimed.
                        return (lines, 1);
                    }
                }
            }
        }
    }

    fn hear(&self, buffer: &mut [u8]) -> Heard {
        match rustix::io::retry_on_intr(|| rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT)) {
            // The keeper is gone, which is noticed as such.
            Ok((0, _)) => Heard::End(0),
            Ok((len, _)) => understand(buffer.get(..len).unwrap_or_default()),
            Err(Errno::AGAIN) => Heard::Nothing,
            Err(_) => Heard::End(0),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One message. A rule in it is the session's, which the gateway has no need to say: it has no other.
fn understand(message: &[u8]) -> Heard {
    if let Some(lost) = std::str::from_utf8(message).ok().and_then(|text| text.parse().ok()) {
        return Heard::End(lost);
    }
    let Ok(mut event) = serde_json::from_slice::<Event>(message) else { return Heard::Event(message.to_vec()) };
    if let EventBody::DnsQuery { rule, .. } | EventBody::FlowDenied { rule, .. } = &mut event.body {
        rule.layer.get_or_insert(Layer::Session);
    }
    Heard::Event(serde_json::to_vec(&event).unwrap_or_else(|_| message.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends() -> (Teller, Listener) {
        let (ours, theirs) = cofferdam_sys::fdpass::pair().unwrap();
        (Teller::new(ours), Listener::new(theirs))
    }

    fn notice(message: &str) -> Vec<u8> {
        let body = EventBody::GatewayNotice { message: message.to_owned() };
        let source = cofferdam_model::EventSource::Gateway;
        serde_json::to_vec(&Event { v: 1, time: "then".to_owned(), mono_ns: 7, source, body }).unwrap()
    }

    #[test]
    fn what_is_told_is_heard_in_order_to_its_end() {
        let (mut teller, listener) = ends();
        let mut lines = Vec::new();
        assert!(listener.take(&mut lines) && lines.is_empty());
        assert!(teller.tell(&notice("a")) && teller.tell(&notice("b")));
        assert!(listener.take(&mut lines));
        assert_eq!(lines, [notice("a"), notice("b")]);
        assert!(teller.tell(&notice("c")));
        teller.end();
        assert_eq!(listener.rest(), (vec![notice("c")], 0));
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let (mut teller, listener) = ends();
        let long = notice(&"x".repeat(8000));
        for _ in 0..1000 {
            assert!(teller.tell(&long));
        }
        assert!(teller.tell(&vec![b' '; LONGEST + 1]));
        let mut heard = Vec::new();
        assert!(listener.take(&mut heard) && !heard.is_empty());
        teller.end();
        let (rest, lost) = listener.rest();
        assert_eq!((heard.len() + rest.len()) as u64 + lost, 1001);
    }

    #[test]
    fn a_rule_is_the_sessions() {
        let denied = |layer: &str| {
            format!(
                r#"{{"v":1,"time":"then","mono_ns":7,"source":"gateway","type":"flow.denied","decision":"1","direction":"egress","protocol":"tcp",
                "guest":"172.16.0.2:1","remote":"8.8.8.8:443","group":"public","names":[],"rule":{{"index":null,"text":"default egress deny"{layer}}}}}"#
            )
        };
        for (layer, expected) in [("", "session"), (r#","layer":"floor""#, "floor")] {
            let (mut teller, listener) = ends();
            assert!(teller.tell(denied(layer).as_bytes()));
            let mut lines = Vec::new();
            assert!(listener.take(&mut lines));
            let line = String::from_utf8(lines.remove(0)).unwrap();
            assert!(line.contains(&format!(r#""layer":"{expected}""#)), "{line}");
        }
    }

    #[test]
    fn a_keeper_that_says_nothing_may_have_something_missing() {
        let (mut teller, listener) = ends();
        assert!(teller.tell(&notice("a")));
        assert_eq!(listener.rest(), (vec![notice("a")], 1));
    }

    #[test]
    fn what_the_kernel_does_not_take_is_counted() {
        // An error besides those that a full socket or a gone listener has: it is no socket.
        let mut teller = Teller::new(std::fs::File::open("/dev/null").unwrap().into());
        assert!(teller.tell(&notice("a")) && teller.tell(&notice("b")));
        assert_eq!(teller.lost, 2);
    }

    #[test]
    fn nobody_is_waited_for_who_is_gone() {
        let (teller, listener) = ends();
        drop(teller);
        assert!(!listener.take(&mut Vec::new()));
        assert_eq!(listener.rest(), (Vec::new(), 0));
        let (mut teller, listener) = ends();
        drop(listener);
        assert!(!teller.tell(&notice("a")));
    }
}
