//! The capture: who writes the packets of a sandbox's link to a file.
//!
//! A process of its own, since it reads every byte that a guest sends and can be held up by a disk: the gateway is not to wait
//! for it, and whoever takes it over has a socket to read from, a file to write to, and nothing else. What it writes is made by
//! [`cofferdam_pcap::Capture`]; here are the ring, the file and two channels.
//!
//! | Bytes | From | What |
//! |---|---|---|
//! | a [`Message`] | gateway | what was decided |
//! | 1 | capture | it is confined, and the file has begun |
//! | 33 | capture | the end: the numbers of [`CaptureEnd`] |
//!
//! | State | Event | Then |
//! |---|---|---|
//! | running | a block of frames is ours | it stays where it is for [`SETTLE`], for the gateway's word to be here first, unless half of the ring is full |
//! | running | the file takes no more | what does not fit is lost and counted; a file on disk is cut back to whole blocks |
//! | running | a pipe is full | nothing is read until it is not; the kernel drops and counts |
//! | running | the supervisor is gone, and the gateway with it, or [`LAST`] later | ending |
//! | ending | the ring is empty, or [`LAST`] is over | what waits is written, and the file ends |
//!
//! It is not killed with the supervisor as others are: it ends by itself, with a file that is whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam_model::{EventBody, FlowId};
use cofferdam_pcap::{Capture, Decision, LookUp, MAX_MESSAGE, Message, Origin, Packet, Totals, Way, pcapng};
use cofferdam_sys::confine::Call;
use cofferdam_sys::packet::{BLOCKS, RETIRE, Ring};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::clock::Clock;
use crate::seal::{SealError, confine, helper_calls};

/// How long the gateway's word may take: it comes in the turn of its loop that decides.
const SETTLE: Duration = Duration::from_millis(4);
/// How long the end may take, once everybody else has ended.
const LAST: Duration = Duration::from_millis(1500);
/// What is written at once.
const CHUNK: usize = 1 << 20;
/// Blocks that are read in one turn: the gateway, and the end, are not to wait for a link that is never quiet.
const TURN: usize = BLOCKS / 4;
/// Connections into the sandbox that are being made and whose source is remembered; `max_inbound_connections` is below it by default.
const MAX_DIALS: usize = 4096;

/// What a capture holds.
#[derive(Debug)]
pub struct CaptureFds {
    /// A socket of [`cofferdam_sys::packet::open`].
    pub packets: OwnedFd,
    pub file: File,
    /// Where the gateway's messages arrive: `SOCK_SEQPACKET`.
    pub decisions: OwnedFd,
    /// To the supervisor: `SOCK_SEQPACKET`.
    pub report: OwnedFd,
    pub lifeline: OwnedFd,
}

/// What a capture has to say at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CaptureEnd {
    /// Packets that went by.
    pub seen: u64,
    /// Those that are not in the file.
    pub missing: u64,
    /// Decisions that were not told it.
    pub lost_decisions: u64,
    /// Why the file did not take something, the first time that it did not; 0 when it always did.
    pub errno: i32,
}

/// Why there is no capture any more.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("cannot write to the file")]
    Write { source: io::Error },
    #[error("cannot read the packets")]
    Read { source: io::Error },
    #[error("cannot reach the supervisor")]
    Report { source: io::Error },
}

impl CaptureEnd {
    const LEN: usize = 33;
    const TAG: u8 = b'e';

    fn emit(self) -> Vec<u8> {
        let numbers = [self.seen, self.missing, self.lost_decisions, u64::try_from(self.errno).unwrap_or(0)];
        std::iter::once(CaptureEnd::TAG).chain(numbers.into_iter().flat_map(u64::to_be_bytes)).collect()
    }

    fn parse(message: &[u8]) -> Option<CaptureEnd> {
        let (CaptureEnd::TAG, numbers) = message.split_first().map(|(tag, rest)| (*tag, rest))? else { return None };
        let numbers: [u8; CaptureEnd::LEN - 1] = numbers.try_into().ok()?;
        let mut numbers =
            numbers.chunks_exact(8).filter_map(|number| Some(u64::from_be_bytes(number.try_into().ok()?)));
        let mut next = || numbers.next();
        let (seen, missing, lost_decisions) = (next()?, next()?, next()?);
        Some(CaptureEnd { seen, missing, lost_decisions, errno: i32::try_from(next()?).ok()? })
    }

    /// Reads what a capture has said at its end; `None` when it has said nothing.
    #[must_use]
    pub fn receive(report: &OwnedFd) -> Option<CaptureEnd> {
        let mut message = [0; CaptureEnd::LEN + 1];
        let (_, len) = rustix::net::recv(report, &mut message[..], RecvFlags::DONTWAIT).ok()?;
        CaptureEnd::parse(message.get(..len)?)
    }
}

/// The capture: confines itself, says that it is ready, and writes until everybody else is gone. The calling process has these
/// descriptors only.
///
/// # Errors
/// When it could not be confined, or the file does not even take its beginning; what happens to the file later is told in the report.
pub fn serve_capture(fds: CaptureFds) -> Result<(), CaptureError> {
    let CaptureFds { packets, file, decisions, report, lifeline } = fds;
    let ring = Ring::map(packets).map_err(|source| CaptureError::Read { source })?;
    let mut sink = Sink::new(file).map_err(|source| CaptureError::Write { source })?;
    let origin = Origin {
        hardware: std::env::consts::ARCH,
        os: "Linux",
        application: concat!("cofferdam ", env!("CARGO_PKG_VERSION")),
        interface: "eth0",
        description: "the sandbox's link, seen from the sandbox",
    };
    let mut capture = Capture::new(&origin);
    seal()?;
    sink.write(&mut capture);
    if let Some(errno) = sink.error {
        return Err(CaptureError::Write { source: errno.into() });
    }
    let tell = |message: &[u8]| {
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&report, message, SendFlags::NOSIGNAL));
        sent.map_err(|errno| CaptureError::Report { source: errno.into() })
    };
    tell(&[READY])?;
    let started = wall();
    let mut writer = Writer {
        capture,
        ring,
        sink,
        decisions: Some(decisions),
        clock: Clock::start(),
        lost_decisions: 0,
        has_link: true,
        ends: None,
    };
    writer.run(&lifeline).map_err(|source| CaptureError::Read { source })?;
    let end = writer.finish(started);
    tell(&end.emit())?;
    Ok(())
}

const READY: u8 = b'r';

fn seal() -> Result<(), SealError> {
    let own = [
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        // How many packets there was no room for.
        libc::SYS_getsockopt,
        libc::SYS_pwrite64,
        libc::SYS_ftruncate,
        libc::SYS_clock_gettime,
    ];
    let own = own.into_iter().map(Call::new);
    confine(&[], &[], helper_calls().into_iter().chain(own).collect())
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The capture while it runs.
struct Writer {
    capture: Capture,
    ring: Ring,
    sink: Sink,
    /// `None` when the gateway has ended.
    decisions: Option<OwnedFd>,
    clock: Clock,
    lost_decisions: u64,
    /// Whether the interface is there: a socket whose interface is gone is ready for ever.
    has_link: bool,
    /// By when it ends, once the supervisor is gone.
    ends: Option<Instant>,
}

impl Writer {
    fn run(&mut self, lifeline: &OwnedFd) -> io::Result<()> {
        loop {
            self.hear();
            let settles = self.read();
            self.capture.handle_timeout(self.clock.now());
            self.sink.write(&mut self.capture);
            let is_over = self.ends.is_some_and(|ends| {
                let is_done = self.decisions.is_none() && self.ring.is_empty() && self.sink.is_free();
                is_done || ends <= Instant::now()
            });
            if is_over {
                return Ok(());
            }
            self.wait(lifeline, settles)?;
        }
    }

    /// Takes what the gateway has said.
    fn hear(&mut self) {
        let now = self.clock.now();
        let mut message = [0; MAX_MESSAGE];
        while let Some(channel) = &self.decisions {
            match rustix::net::recv(channel, &mut message[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => self.decisions = None,
                Ok((len, _)) => match message.get(..len).and_then(Message::parse) {
                    Some(Message::Decision(decision)) => self.capture.handle_decision(now, decision),
                    Some(Message::Lost(count)) => self.lost_decisions = self.lost_decisions.saturating_add(count),
                    // What the gateway says is not trusted any more than a guest.
                    None => self.lost_decisions = self.lost_decisions.saturating_add(1),
                },
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => self.decisions = None,
            }
        }
    }

    /// Takes the packets that are due. When the next ones are, if there are some already.
    fn read(&mut self) -> Option<Duration> {
        for _ in 0..TURN {
            if !self.sink.is_free() {
                return None;
            }
            let ended = self.ring.next_ended()?;
            let is_short = self.ends.is_some() || self.ring.is_ready(BLOCKS / 2);
            // A clock that was set back is no reason to wait.
            let age = wall().checked_sub(ended).unwrap_or(SETTLE);
            if let Some(left) = SETTLE.checked_sub(age).filter(|left| !left.is_zero() && !is_short) {
                return Some(left);
            }
            let now = self.clock.now();
            let block = self.ring.block()?;
            for frame in block.frames() {
                let way = match frame.way {
                    cofferdam_sys::packet::Way::In => Way::Outbound,
                    cofferdam_sys::packet::Way::Out => Way::Inbound,
                };
                let packet = Packet { time: frame.time, way, bytes: frame.bytes, length: frame.length };
                self.capture.handle_packet(now, &packet);
                if self.capture.output().0.len() >= CHUNK {
                    self.sink.write(&mut self.capture);
                }
            }
            drop(block);
            self.sink.write(&mut self.capture);
        }
        Some(Duration::ZERO)
    }

    fn wait(&mut self, lifeline: &OwnedFd, settles: Option<Duration>) -> io::Result<()> {
        let mut fds = Vec::new();
        let mut timeouts = vec![settles];
        timeouts.push(self.capture.poll_timeout().map(|at| at.since(self.clock.now())));
        // Blocks that come due by time say so by the socket, which is ready all along while one is ours, or the link is gone.
        let watches_ring = self.has_link && settles.is_none() && self.sink.is_free();
        if self.ends.is_some() || !self.has_link {
            timeouts.push(Some(RETIRE));
        }
        if self.ends.is_none() {
            fds.push((Source::Lifeline, PollFd::new(lifeline, PollFlags::IN)));
        }
        fds.extend(self.decisions.iter().map(|channel| (Source::Decisions, PollFd::new(channel, PollFlags::IN))));
        if watches_ring {
            fds.push((Source::Ring, PollFd::new(&self.ring, PollFlags::IN)));
        }
        if !self.sink.is_free() {
            fds.push((Source::File, PollFd::new(&self.sink.file, PollFlags::OUT)));
        }
        let timeout = timeouts.into_iter().flatten().min().map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(1),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        });
        let (sources, mut fds): (Vec<_>, Vec<_>) = fds.into_iter().unzip();
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        let (mut is_orphaned, mut has_link) = (false, self.has_link);
        for (source, fd) in sources.iter().zip(&fds) {
            let events = fd.revents();
            match source {
                Source::Lifeline => is_orphaned |= !events.is_empty(),
                Source::Ring => has_link &= !events.intersects(PollFlags::ERR | PollFlags::HUP),
                Source::Decisions | Source::File => {}
            }
        }
        self.has_link = has_link;
        if is_orphaned {
            self.ends = Some(Instant::now() + LAST);
        }
        Ok(())
    }

    /// Writes what waits, and the end of the file.
    fn finish(mut self, started: Duration) -> CaptureEnd {
        self.capture.finish();
        self.sink.write(&mut self.capture);
        self.sink.give_up();
        let counters = self.ring.counters().unwrap_or_default();
        let missing = counters.dropped + self.sink.lost;
        let totals =
            Totals { started, ended: wall(), seen: counters.frames, missing, dropped_by_kernel: counters.dropped };
        self.capture.end(&totals);
        self.sink.write(&mut self.capture);
        CaptureEnd {
            seen: totals.seen,
            missing: counters.dropped + self.sink.lost,
            lost_decisions: self.lost_decisions,
            errno: self.sink.error.map_or(0, Errno::raw_os_error),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Lifeline,
    Decisions,
    Ring,
    File,
}

/// The file, and what it did not take.
struct Sink {
    file: File,
    kind: Kind,
    /// Packets.
    lost: u64,
    error: Option<Errno>,
}

enum Kind {
    /// So long are the blocks that were written whole.
    Regular { len: u64 },
    /// A pipe or a device, and the rest of what it has taken a part of.
    Stream { rest: Vec<u8> },
}

impl Sink {
    fn new(file: File) -> io::Result<Sink> {
        let status = rustix::fs::fstat(&file)?;
        let kind = match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => {
                rustix::fs::ftruncate(&file, 0)?;
                Kind::Regular { len: 0 }
            }
            FileType::Fifo
            | FileType::CharacterDevice
            | FileType::Socket
            | FileType::BlockDevice
            | FileType::Directory
            | FileType::Symlink
            | FileType::Unknown => {
                rustix::fs::fcntl_setfl(&file, OFlags::NONBLOCK)?;
                Kind::Stream { rest: Vec::new() }
            }
        };
        Ok(Sink { file, kind, lost: 0, error: None })
    }

    /// Whether it takes more.
    fn is_free(&self) -> bool {
        match &self.kind {
            Kind::Regular { .. } => true,
            Kind::Stream { rest } => rest.is_empty(),
        }
    }

    /// Waits no longer for whoever reads a pipe.
    fn give_up(&mut self) {
        if !self.is_free() {
            self.lost += 1;
            self.error = self.error.or(Some(Errno::AGAIN));
        }
    }

    /// Writes what the capture has to write, or counts it as lost.
    fn write(&mut self, capture: &mut Capture) {
        let (bytes, packets) = capture.output();
        match &mut self.kind {
            Kind::Regular { len } => {
                let mut done = 0;
                while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
                    match rustix::io::pwrite(&self.file, rest, *len + u64::try_from(done).unwrap_or(0)) {
                        Ok(written) if written > 0 => done += written,
                        Err(Errno::INTR) => {}
                        failed => {
                            // Half a block would make all that follows unreadable.
                            let (whole, kept) = pcapng::whole_blocks(bytes, done);
                            done = whole;
                            let end = *len + u64::try_from(whole).unwrap_or(0);
                            let _cut_as_far_as_it_goes = rustix::fs::ftruncate(&self.file, end);
                            self.lost += packets.saturating_sub(kept);
                            self.error = self.error.or(Some(failed.err().unwrap_or(Errno::IO)));
                            break;
                        }
                    }
                }
                *len += u64::try_from(done).unwrap_or(0);
                capture.clear_output();
            }
            Kind::Stream { rest } => {
                if self.error.is_some() {
                    self.lost += packets;
                    return capture.clear_output();
                }
                rest.extend_from_slice(bytes);
                capture.clear_output();
                while !rest.is_empty() {
                    match rustix::io::write(&self.file, rest) {
                        Ok(written) => drop(rest.drain(..written.min(rest.len()))),
                        Err(Errno::INTR) => {}
                        Err(Errno::AGAIN) => return,
                        Err(errno) => {
                            // Nobody knows how much of it was read.
                            self.error = Some(errno);
                            self.lost += packets.max(1);
                            rest.clear();
                        }
                    }
                }
            }
        }
    }
}

/// The gateway's way to the capture, if there is one: never waited for.
#[derive(Debug, Default)]
pub(crate) struct Teller {
    channel: Option<OwnedFd>,
    lost: u64,
    /// From where connections into the sandbox come, which is not always where the peer is.
    sources: BTreeMap<FlowId, SocketAddr>,
}

impl Teller {
    pub(crate) fn new(channel: Option<OwnedFd>) -> Teller {
        Teller { channel, ..Teller::default() }
    }

    /// A connection into the sandbox is being made.
    pub(crate) fn dialing(&mut self, flow: FlowId, source: SocketAddr) {
        if self.channel.is_some() {
            if self.sources.len() >= MAX_DIALS {
                self.sources.pop_first();
            }
            self.sources.insert(flow, source);
        }
    }

    /// Something has happened, to the look-up of `client` if it is about one.
    pub(crate) fn tell(&mut self, body: &EventBody, client: Option<&LookUp>) {
        let Some(channel) = &self.channel else { return };
        let made = wall();
        let decision = match client {
            Some(client) => Decision::of_look_up(body, client, made),
            None => Decision::of_event(body, made),
        };
        let Some(mut decision) = decision else { return };
        if let EventBody::FlowOpened { flow, .. } | EventBody::FlowFailed { flow, .. } = body
            && let Some(source) = self.sources.remove(flow)
        {
            decision.remote = source;
        }
        let send = |message: &Message| {
            rustix::net::send(channel, &message.emit(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok()
        };
        if self.lost > 0 && send(&Message::Lost(self.lost)) {
            self.lost = 0;
        }
        // Behind one that is lost no other may go: the count of them comes first.
        if self.lost > 0 || !send(&Message::Decision(decision)) {
            self.lost += 1;
        }
    }

    /// The gateway ends: says what it could not say.
    pub(crate) fn finish(&self) {
        if let Some(channel) = self.channel.as_ref().filter(|_| self.lost > 0) {
            let message = Message::Lost(self.lost).emit();
            let _gone = rustix::net::send(channel, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use cofferdam_model::{DecisionId, Direction, Group, Protocol, RuleText, Time};
    use rustix::fs::Mode;
    use rustix::net::{AddressFamily, SocketType};

    use super::*;

    fn origin() -> Origin<'static> {
        Origin { hardware: "h", os: "o", application: "a", interface: "eth0", description: "d" }
    }

    fn packet(bytes: &[u8]) -> Packet<'_> {
        Packet { time: Duration::ZERO, way: Way::Outbound, bytes, length: u32::try_from(bytes.len()).unwrap() }
    }

    fn denied(number: u64) -> EventBody {
        EventBody::FlowDenied {
            decision: DecisionId(number).to_string(),
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            guest: "10.0.0.2:1".parse().unwrap(),
            remote: "192.0.2.1:2".parse().unwrap(),
            group: Group::Public,
            names: Vec::new(),
            rule: RuleText::default(),
            shown: None,
            process: None,
            look_up_again: None,
        }
    }

    #[test]
    fn a_capture_reads_and_writes_what_it_has_and_opens_nothing() {
        let (ours, theirs) = cofferdam_sys::fdpass::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        rustix::net::send(&theirs, b"x", SendFlags::empty()).unwrap();
        let run = move || {
            seal().unwrap();
            let kept = [
                rustix::net::recv(&ours, &mut [0; 1][..], RecvFlags::DONTWAIT).map(drop),
                rustix::net::send(&ours, b"x", SendFlags::NOSIGNAL).map(drop),
                rustix::io::pwrite(&file, b"xyz", 0).map(drop),
                rustix::fs::ftruncate(&file, 1),
            ];
            let sockets = [AddressFamily::UNIX, AddressFamily::INET, AddressFamily::INET6, AddressFamily::PACKET];
            let sockets = sockets.map(|family| rustix::net::socket(family, SocketType::DGRAM, None).map(drop));
            let taken = [
                rustix::fs::open("/etc/passwd", OFlags::RDONLY, Mode::empty()).map(drop),
                rustix::process::test_kill_process(rustix::process::getpid()),
                rustix::io::dup(&file).map(drop),
                rustix::fs::fchmod(&file, Mode::RWXU),
                rustix::net::connect(&ours, &std::net::SocketAddr::from(([127, 0, 0, 1], 9))),
            ];
            (kept, sockets, taken)
        };
        let (kept, sockets, taken) = std::thread::spawn(run).join().unwrap();
        assert_eq!(kept, [Ok(()); 4]);
        assert_eq!(sockets, [Err(Errno::PERM); 4]);
        assert_eq!(taken, [Err(Errno::PERM); 5]);
    }

    #[test]
    fn a_pipe_that_is_full_is_waited_for_and_gets_every_byte() {
        let (mut read, write) = std::io::pipe().unwrap();
        let mut sink = Sink::new(File::from(OwnedFd::from(write))).unwrap();
        let mut capture = Capture::new(&origin());
        let mut expected = Vec::new();
        while sink.is_free() {
            capture.handle_packet(Time::ZERO, &packet(&[7; 40_000]));
            expected.extend_from_slice(capture.output().0);
            sink.write(&mut capture);
        }
        let mut got = vec![0; expected.len()];
        let mut len = 0;
        while len < got.len() {
            len += read.read(&mut got[len..]).unwrap();
            sink.write(&mut capture);
        }
        assert!(got == expected && sink.is_free());
        assert_eq!((sink.lost, sink.error), (0, None));
    }

    #[test]
    fn what_a_device_or_a_closed_pipe_does_not_take_is_counted() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (read, write) = std::io::pipe().unwrap();
        drop(read);
        for (file, errno) in [(full, Errno::NOSPC), (File::from(OwnedFd::from(write)), Errno::PIPE)] {
            let mut sink = Sink::new(file).unwrap();
            let mut capture = Capture::new(&origin());
            for _ in 0..3 {
                capture.handle_packet(Time::ZERO, &packet(b"x"));
                sink.write(&mut capture);
            }
            assert_eq!((sink.lost, sink.error, sink.is_free()), (3, Some(errno), true));
        }
    }

    #[test]
    fn a_file_is_written_from_its_beginning() {
        let mut file = tempfile::tempfile().unwrap();
        rustix::io::write(&file, &[9; 9999]).unwrap();
        let mut sink = Sink::new(file.try_clone().unwrap()).unwrap();
        let mut capture = Capture::new(&origin());
        let mut expected = Vec::new();
        for _ in 0..3 {
            capture.handle_packet(Time::ZERO, &packet(b"x"));
            expected.extend_from_slice(capture.output().0);
            sink.write(&mut capture);
        }
        let mut got = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut got).unwrap();
        assert!(got == expected);
    }

    #[test]
    fn what_the_capture_could_not_be_told_is_counted_and_told_first() {
        let (ours, theirs) = cofferdam_sys::fdpass::pair().unwrap();
        let mut teller = Teller::new(Some(ours));
        for number in 0..10_000 {
            teller.tell(&denied(number), None);
        }
        let receive = || {
            let mut message = [0; MAX_MESSAGE];
            let (_, len) = rustix::net::recv(&theirs, &mut message[..], RecvFlags::DONTWAIT).ok()?;
            Message::parse(&message[..len])
        };
        let told = std::iter::from_fn(receive).count();
        let lost = 10_000 - u64::try_from(told).unwrap();
        assert!(lost > 0);
        teller.tell(&denied(1), None);
        assert_eq!(receive(), Some(Message::Lost(lost)));
        assert!(matches!(receive(), Some(Message::Decision(decision)) if decision.text.starts_with("denied 1 by")));
        teller.lost = 3;
        teller.finish();
        assert_eq!(receive(), Some(Message::Lost(3)));
    }

    #[test]
    fn a_connection_into_the_sandbox_is_told_with_the_source_that_it_has_there() {
        let (ours, theirs) = cofferdam_sys::fdpass::pair().unwrap();
        let mut teller = Teller::new(Some(ours));
        let source = "10.0.0.1:5000".parse().unwrap();
        teller.dialing(FlowId(5), source);
        let opened = EventBody::FlowFailed {
            flow: FlowId(5),
            protocol: Protocol::Tcp,
            guest: "10.0.0.2:80".parse().unwrap(),
            remote: "127.0.0.1:5000".parse().unwrap(),
            error: String::new(),
            process: None,
        };
        teller.tell(&opened, None);
        teller.tell(&opened, None);
        let receive = || {
            let mut message = [0; MAX_MESSAGE];
            let (_, len) = rustix::net::recv(&theirs, &mut message[..], RecvFlags::DONTWAIT).unwrap();
            Message::parse(&message[..len]).unwrap()
        };
        assert!(matches!(receive(), Message::Decision(decision) if decision.remote == source));
        assert!(matches!(receive(), Message::Decision(decision) if decision.remote != source));
    }

    #[test]
    fn the_end_is_told_in_numbers() {
        let (ours, theirs) = cofferdam_sys::fdpass::pair().unwrap();
        assert_eq!(CaptureEnd::receive(&ours), None);
        let end = CaptureEnd { seen: u64::MAX, missing: 1, lost_decisions: 2, errno: 28 };
        rustix::net::send(&theirs, &end.emit(), SendFlags::empty()).unwrap();
        assert_eq!(CaptureEnd::receive(&ours), Some(end));
        rustix::net::send(&theirs, &end.emit()[1..], SendFlags::empty()).unwrap();
        assert_eq!(CaptureEnd::receive(&ours), None);
        drop(theirs);
        assert_eq!(CaptureEnd::receive(&ours), None);
    }
}
