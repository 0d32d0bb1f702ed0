//! Which process an event is about.
//!
//! Every line of the event stream passes [`Attribution::complete`] before anybody else gets it. Where it is about an end of the guest's,
//! the process that has the socket is looked up ([`Inspector`]) and becomes a part of the event.
//!
//! A look-up takes some 50 µs and at most a few milliseconds, in the thread that watches over the program. A guest can have
//! events made as fast as it can send; so look-ups are given a [`SHARE`] of one processor, and events that come when it is used up go without.
//! The gateway never waits for any of this.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use cofferdam_backend_ns::{Inspector, Transport};
use cofferdam_model::{Event, EventBody, Process, Protocol};

/// The part of the time that look-ups may take is one in so many.
const SHARE: u32 = 40;
/// What they may take at once after a rest: a few hundred connections of a program that has just started, or some ten look-ups
/// among thousands of descriptors.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Ends whose process was found, of which an event may come when the socket is closed: the flow is denied for what it has shown,
/// the second look-up of one name is answered.
const REMEMBERED: usize = 256;
/// How long a process counts for other look-ups from the same port. A resolver library asks for both kinds of address at once;
/// within this time the port is not another's, since the kernel draws them at random from some 28,000.
const SAME_PORT: Duration = Duration::from_millis(500);

/// Completes the events of one sandbox.
#[derive(Debug)]
pub(crate) struct Attribution {
    /// `None` where processes cannot be told: a run in the session's network hears what the keeper has found.
    inspector: Option<Inspector>,
    allowance: Allowance,
    /// The last of them at the end.
    found: VecDeque<Found>,
}

#[derive(Debug)]
struct Found {
    socket: Socket,
    process: Process,
    when: Instant,
}

/// A line of the event stream, as everybody after this gets it.
#[derive(Debug)]
pub(crate) struct Line {
    /// Without its line feed.
    pub(crate) text: Vec<u8>,
    /// `None` when it cannot be understood.
    pub(crate) event: Option<Event>,
}

impl Attribution {
    pub(crate) fn new(inspector: Option<Inspector>) -> Attribution {
        Attribution { inspector, allowance: Allowance::new(Instant::now()), found: VecDeque::new() }
    }

    /// Adds to a line what the gateway could not know.
    pub(crate) fn complete(&mut self, text: &[u8]) -> Line {
        let mut event = serde_json::from_slice::<Event>(text).ok();
        let completed = event.as_mut().and_then(|event| {
            let (wanted, process) = wanted(&mut event.body)?;
            let found = self.process_of(&wanted);
            // Who was found before stays; what is known outside alone is nobody else's to see.
            let is_inside = process.as_ref().is_none_or(|process| process.pid_outside().is_none());
            if found.is_none() && is_inside {
                return None;
            }
            *process = found;
            serde_json::to_vec(event).ok()
        });
        Line { text: completed.unwrap_or_else(|| text.to_vec()), event }
    }

    fn process_of(&mut self, wanted: &Wanted) -> Option<Process> {
        let now = Instant::now();
        if let Some(process) = self.remembered(wanted, now) {
            return Some(process);
        }
        let inspector = self.inspector.as_mut()?;
        if !self.allowance.has_some(now) {
            return None;
        }
        let before = processor_time();
        let process = match wanted {
            Wanted::Socket(Socket { transport, local, remote }, _) => inspector.find(*transport, *local, *remote),
            Wanted::Ping(peer) => inspector.find_who_pings(*peer),
            Wanted::Number(pid) => inspector.find_by_number(*pid),
        };
        self.allowance.take(processor_time().saturating_sub(before));
        let process = process?;
        if let Wanted::Socket(socket, _) = wanted {
            if self.found.len() >= REMEMBERED {
                self.found.pop_front();
            }
            self.found.push_back(Found { socket: *socket, process: process.clone(), when: now });
        }
        Some(process)
    }

    fn remembered(&self, wanted: &Wanted, now: Instant) -> Option<Process> {
        let (socket, age) = match wanted {
            Wanted::Socket(socket, Moment::LookUp) => (socket, SAME_PORT),
            Wanted::Socket(socket, Moment::Later) => (socket, Duration::MAX),
            Wanted::Socket(_, Moment::Beginning) | Wanted::Ping(_) | Wanted::Number(_) => return None,
        };
        let found = self.found.iter().rev().find(|found| found.socket == *socket)?;
        (now.saturating_duration_since(found.when) < age).then(|| found.process.clone())
    }
}

/// Whose process an event lacks.
#[derive(Debug)]
enum Wanted {
    /// Of the one that has a socket.
    Socket(Socket, Moment),
    /// Of the one that pings this address.
    Ping(IpAddr),
    /// Of one that is known by its number outside.
    Number(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    transport: Transport,
    local: SocketAddr,
    remote: SocketAddr,
}

/// Where in the life of a socket an event comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// Nothing came from this port to this remote before.
    Beginning,
    /// One of several questions from one port.
    LookUp,
    /// The flow was opened before.
    Later,
}

/// The socket that an event is about, with where its process belongs.
fn wanted(body: &mut EventBody) -> Option<(Wanted, &mut Option<Process>)> {
    let (moment, protocol, local, remote, process) = match body {
        EventBody::FlowOpened { protocol, guest, remote, process, .. } => {
            (Moment::Beginning, *protocol, *guest, *remote, process)
        }
        EventBody::FlowDenied { protocol, guest, remote, shown, process, .. } => {
            let moment = if shown.is_some() { Moment::Later } else { Moment::Beginning };
            (moment, *protocol, *guest, *remote, process)
        }
        EventBody::FlowFailed { protocol, guest, remote, process, .. } => {
            // A connection that fails was never opened, a mapping may have been.
            let moment = if *protocol == Protocol::Udp { Moment::Later } else { Moment::Beginning };
            (moment, *protocol, *guest, *remote, process)
        }
        EventBody::SocketOpened { process, .. } => {
            let pid = process.as_ref().and_then(Process::pid_outside)?;
            return Some((Wanted::Number(pid), process));
        }
        EventBody::DnsQuery { protocol: Some(protocol), guest: Some(guest), server: Some(server), process, .. } => {
            (Moment::LookUp, *protocol, *guest, *server, process)
        }
        EventBody::DnsQuery { .. }
        | EventBody::DnsMore { .. }
        | EventBody::SandboxStarted { .. }
        | EventBody::SandboxStopped { .. }
        | EventBody::FlowClosed { .. }
        | EventBody::FlowShown { .. }
        | EventBody::FlowProgress { .. }
        | EventBody::PolicyChanged { .. }
        | EventBody::PortPublished { .. }
        | EventBody::PortWithdrawn { .. }
        | EventBody::SocketClosed { .. }
        | EventBody::SocketFailed { .. }
        | EventBody::LimitReached { .. }
        | EventBody::GatewayDropped { .. }
        | EventBody::GatewayNotice { .. } => return None,
    };
    let transport = match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::IcmpV4 | Protocol::IcmpV6 => return Some((Wanted::Ping(remote.ip()), process)),
    };
    Some((Wanted::Socket(Socket { transport, local, remote }, moment), process))
}

/// What this thread has had of a processor: on a busy machine a look-up takes longer, and costs no more.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Processor time that may be spent: a [`SHARE`] of what passes, and [`AT_ONCE`] at most.
#[derive(Debug)]
struct Allowance {
    left: Duration,
    /// What was spent beyond.
    debt: Duration,
    counted: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Allowance {
        Allowance { left: AT_ONCE, debt: Duration::ZERO, counted: now }
    }

    /// Whether there is anything left at `now`; the last one may spend more than that.
    fn has_some(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.counted) / SHARE;
        // Less than a nanosecond is earned with the next one.
        if !earned.is_zero() {
            self.counted = now;
        }
        let paid = earned.min(self.debt);
        self.debt -= paid;
        self.left = (self.left + (earned - paid)).min(AT_ONCE);
        self.debt.is_zero() && !self.left.is_zero()
    }

    fn take(&mut self, spent: Duration) {
        self.debt += spent.saturating_sub(self.left);
        self.left = self.left.saturating_sub(spent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cofferdam_model::EventSource;

    #[test]
    fn a_share_of_the_time_is_spent_and_no_more() {
        let mut now = Instant::now();
        let mut allowance = Allowance::new(now);
        let mut spent = Duration::ZERO;
        // Ten seconds in which something is asked every 100 µs, and each answer takes 50.
        for _ in 0..100_000 {
            if allowance.has_some(now) {
                allowance.take(Duration::from_micros(50));
                spent += Duration::from_micros(50);
            }
            now += Duration::from_micros(100);
        }
        let most = Duration::from_secs(10) / SHARE + AT_ONCE;
        assert!(spent <= most + Duration::from_micros(50) && spent > most - Duration::from_millis(5), "{spent:?}");
    }

    #[test]
    fn what_was_overspent_is_paid_back_first() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        allowance.take(AT_ONCE + Duration::from_millis(10));
        assert!(!allowance.has_some(now));
        assert!(!allowance.has_some(now + Duration::from_millis(10) * SHARE));
        assert!(allowance.has_some(now + Duration::from_millis(11) * SHARE));
        // A long rest makes it no richer than it was.
        assert!(allowance.has_some(now + Duration::from_secs(3600)));
        assert_eq!(allowance.left, AT_ONCE);
    }

    #[test]
    fn who_was_found_by_another_stays() {
        let text = r#"{"v":1,"time":"then","mono_ns":1,"source":"gateway","type":"flow.denied","decision":"7k","direction":"egress","protocol":"tcp","guest":"172.16.0.2:4000","remote":"10.0.0.5:22","group":"private","names":[],"rule":{"index":null,"text":"default egress deny"},"process":{"pid":7,"comm":"curl"}}"#;
        assert_eq!(Attribution::new(None).complete(text.as_bytes()).text, text.as_bytes());
    }

    #[test]
    fn a_number_of_outside_goes_no_further() {
        let process = Some(Process::seen_from_outside(4711));
        let body = EventBody::SocketOpened {
            flow: cofferdam_model::FlowId(1),
            host: "/h".to_owned(),
            guest: "/g".to_owned(),
            process,
        };
        let event = Event { v: 1, time: "then".to_owned(), mono_ns: 1, source: EventSource::Gateway, body };
        let line = Attribution::new(None).complete(&serde_json::to_vec(&event).unwrap());
        assert!(!String::from_utf8(line.text).unwrap().contains("4711"));
        let told = line.event.map(|event| event.body);
        assert!(matches!(told, Some(EventBody::SocketOpened { process: None, .. })), "{told:?}");
    }

    #[test]
    fn lines_that_name_no_socket_stay_as_they_are() {
        let body = EventBody::GatewayNotice { message: "\u{1b}[31m".to_owned() };
        let event = Event { v: 1, time: "then".to_owned(), mono_ns: 1, source: EventSource::Gateway, body };
        let text = serde_json::to_vec(&event).unwrap();
        let line = Attribution::new(None).complete(&text);
        assert_eq!((line.text, line.event), (text, Some(event)));
        let line = Attribution::new(None).complete(b"{}");
        assert_eq!((line.text.as_slice(), line.event), (&b"{}"[..], None));
    }
}
