//! What the processes of one sandbox say to each other while it starts and runs.
//!
//! Messages travel over `SOCK_SEQPACKET` pairs, so borders are kept and the end of a process is the end of its stream.
//! The first byte names the message. Both ends are the same binary at the same version: there is nothing to negotiate.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cofferdam_sys::fdpass;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::DiskFull;

/// Room for the longest message: a fault whose step names two paths (`PATH_MAX` is 4,096).
pub(crate) const LONGEST: usize = 16 * 1024;

/// A failed step, on its way to the person who has to act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Completes "the builder could not …".
    pub(crate) step: String,
    /// What to do, or empty.
    pub(crate) remedy: String,
    pub(crate) errno: i32,
}

impl Fault {
    pub(crate) fn new(step: impl Into<String>, error: &io::Error) -> Self {
        // An error of our own making has no number: EIO says that it came from no system call.
        let (step, errno) = match error.raw_os_error() {
            Some(errno) => (step.into(), errno),
            None => (format!("{}: {error}", step.into()), libc_eio()),
        };
        Self { step, remedy: String::new(), errno }
    }

    pub(crate) fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    pub(crate) fn error(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

fn libc_eio() -> i32 {
    Errno::IO.raw_os_error()
}

/// Names the step that a result belongs to.
pub(crate) trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| Fault::new(step(), &error.into()))
    }
}

/// Which processes of a sandbox a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Program,
    /// The program's process group, as a terminal does it.
    Group,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message {
    /// Builder → supervisor: my namespaces are there, write their id maps.
    Unshared,
    /// Supervisor → builder, builder → init: your id maps are written.
    Mapped,
    /// Builder → supervisor, with the pidfd: the sandbox's init is there. With more descriptors: the namespaces of one that
    /// stays, or the pidfd of the process that made the init of a run and ends (whose `pid` is 0 then).
    Born { pid: i32 },
    /// Builder → supervisor, with TUN and listeners (without: no network): the gateway's namespace is built.
    Built,
    /// Init of a run → builder, with the descriptor: my network namespace is there.
    Netns,
    /// Builder → init: your interface is there.
    Linked,
    /// Supervisor → init, with mount trees.
    Trees,
    /// Init → supervisor, with listening sockets: where sockets of the host are to be reached. Before `Placed`.
    Sockets,
    /// Init → supervisor, with what an [`Inspector`](crate::Inspector) sees by. Before `Placed`, or never.
    Eyes,
    /// Init → supervisor: everything is in place.
    Placed,
    /// Supervisor → init: start the program, or the monitor of a virtual machine; and once more when that has said `Booted`.
    Go,
    /// Monitor → init → supervisor: the virtual machine is there, and a program can be started in it.
    Booted,
    /// Monitor → init → supervisor: there is no virtual machine, or none any more.
    Lost { why: String },
    /// Monitor → init → supervisor: while the program ran, the guest's disk was full.
    DiskFull(DiskFull),
    /// Init → supervisor, with the terminal's controlling end if there is one: the program runs.
    Started,
    /// Init → supervisor: the program could not be executed.
    NotExecuted { errno: i32 },
    /// Supervisor → init → monitor of a virtual machine that stays, with a socket: somebody wants something done in the guest.
    Caller,
    /// Supervisor → init → server of files of a virtual machine, with the tree of a directory: show it, as the share of this number.
    Share { number: u32, read_only: bool },
    /// Supervisor → init → server of files: show it no more.
    Unshare { number: u32 },
    /// Server of files → init → supervisor: that is done, or why it is not; empty when it is.
    Shared { number: u32, why: String },
    /// Supervisor → init → monitor: have the guest mount the share of this number at this path.
    Attach { number: u32, read_only: bool, target: Vec<u8> },
    /// Supervisor → init → monitor: have the guest unmount it.
    Detach { number: u32, target: Vec<u8> },
    /// Monitor → init → supervisor: as `Shared`.
    Attached { number: u32, why: String },
    /// Supervisor → init.
    Signal { number: i32, target: Target },
    /// Init → supervisor.
    Exited { status: i32 },
    /// Init → supervisor.
    Signaled { number: i32 },
    /// Anybody → supervisor.
    Failed(Fault),
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        let number = |tag: u8, number: i32| [&[tag][..], &number.to_ne_bytes()].concat();
        let about = |tag: u8, number: u32, rest: &[u8]| {
            let mut bytes = [&[tag][..], &number.to_ne_bytes(), rest].concat();
            bytes.truncate(LONGEST);
            bytes
        };
        match self {
            Self::Unshared => b"u".to_vec(),
            Self::Mapped => b"m".to_vec(),
            Self::Born { pid } => number(b'b', *pid),
            Self::Built => b"B".to_vec(),
            Self::Netns => b"N".to_vec(),
            Self::Linked => b"l".to_vec(),
            Self::Trees => b"t".to_vec(),
            Self::Sockets => b"S".to_vec(),
            Self::Eyes => b"E".to_vec(),
            Self::Placed => b"p".to_vec(),
            Self::Go => b"g".to_vec(),
            Self::Booted => b"v".to_vec(),
            Self::Lost { why } => {
                let mut bytes = [b"L", why.as_bytes()].concat();
                bytes.truncate(LONGEST);
                bytes
            }
            Self::DiskFull(DiskFull::Space { bytes }) => [&b"f"[..], &bytes.to_ne_bytes()].concat(),
            Self::DiskFull(DiskFull::Files { count }) => [&b"F"[..], &count.to_ne_bytes()].concat(),
            Self::Caller => b"c".to_vec(),
            Self::Share { number, read_only } => about(b'h', *number, &[u8::from(*read_only)]),
            Self::Unshare { number } => about(b'H', *number, b""),
            Self::Shared { number, why } => about(b'r', *number, why.as_bytes()),
            Self::Attach { number, read_only, target } => {
                about(b'a', *number, &[&[u8::from(*read_only)], target.as_slice()].concat())
            }
            Self::Detach { number, target } => about(b'A', *number, target),
            Self::Attached { number, why } => about(b'R', *number, why.as_bytes()),
            Self::Started => b"s".to_vec(),
            Self::NotExecuted { errno } => number(b'n', *errno),
            Self::Signal { number: signal, target: Target::Program } => number(b'k', *signal),
            Self::Signal { number: signal, target: Target::Group } => number(b'K', *signal),
            Self::Exited { status } => number(b'x', *status),
            Self::Signaled { number: signal } => number(b'X', *signal),
            Self::Failed(fault) => {
                let mut bytes = number(b'e', fault.errno);
                bytes.extend_from_slice(fault.step.replace('\0', "?").as_bytes());
                bytes.push(0);
                bytes.extend_from_slice(fault.remedy.as_bytes());
                bytes.truncate(LONGEST);
                bytes
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (tag, rest) = bytes.split_first()?;
        let number = || rest.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes));
        let long = || rest.first_chunk::<8>().map(|bytes| u64::from_ne_bytes(*bytes));
        let share = || rest.split_first_chunk::<4>().map(|(bytes, rest)| (u32::from_ne_bytes(*bytes), rest));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Some(match tag {
            b'u' => Self::Unshared,
            b'm' => Self::Mapped,
            b'b' => Self::Born { pid: number()? },
            b'B' => Self::Built,
            b'N' => Self::Netns,
            b'l' => Self::Linked,
            b't' => Self::Trees,
            b'S' => Self::Sockets,
            b'E' => Self::Eyes,
            b'p' => Self::Placed,
            b'g' => Self::Go,
            b'v' => Self::Booted,
            b'L' => Self::Lost { why: String::from_utf8_lossy(rest).into_owned() },
            b'f' => Self::DiskFull(DiskFull::Space { bytes: long()? }),
            b'F' => Self::DiskFull(DiskFull::Files { count: long()? }),
            b'c' => Self::Caller,
            b'h' => match share()? {
                (number, [read_only]) => Self::Share { number, read_only: *read_only != 0 },
                _ => return None,
            },
            b'H' => Self::Unshare { number: share()?.0 },
            b'r' => share().map(|(number, why)| Self::Shared { number, why: text(why) })?,
            b'a' => match share()? {
                (number, [read_only, target @ ..]) => {
                    Self::Attach { number, read_only: *read_only != 0, target: target.to_vec() }
                }
                _ => return None,
            },
            b'A' => share().map(|(number, target)| Self::Detach { number, target: target.to_vec() })?,
            b'R' => share().map(|(number, why)| Self::Attached { number, why: text(why) })?,
            b's' => Self::Started,
            b'n' => Self::NotExecuted { errno: number()? },
            b'k' => Self::Signal { number: number()?, target: Target::Program },
            b'K' => Self::Signal { number: number()?, target: Target::Group },
            b'x' => Self::Exited { status: number()? },
            b'X' => Self::Signaled { number: number()? },
            b'e' => {
                let text = String::from_utf8_lossy(rest.get(4..)?).into_owned();
                let (step, remedy) = text.split_once('\0').unwrap_or((&text, ""));
                Self::Failed(Fault { step: step.to_owned(), remedy: remedy.to_owned(), errno: number()? })
            }
            _ => return None,
        })
    }
}

/// What came out of waiting for a message.
#[derive(Debug)]
pub(crate) enum Received {
    Message(Message, Vec<OwnedFd>),
    /// The other end is gone.
    Closed,
    /// The supervisor is gone: the lifeline has no writer.
    Orphaned,
    /// The deadline has passed.
    Late,
}

pub(crate) fn send(socket: impl AsFd, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    fdpass::send_fds(socket, &message.encode(), fds)
}

/// As [`send`], where there may be no room: then nothing is sent.
pub(crate) fn send_now(socket: impl AsFd, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    fdpass::send_fds_now(socket, &message.encode(), fds)
}

/// Receives one message that has arrived already or is waited for without a deadline.
pub(crate) fn receive_ready(socket: impl AsFd) -> io::Result<Received> {
    match receive_what_fits(socket)? {
        Some((message, fds)) => Ok(Received::Message(message, fds.ok_or(io::ErrorKind::InvalidData)?)),
        None => Ok(Received::Closed),
    }
}

/// As [`receive_ready`], by who may have no room for descriptors: `None` in their place. `None` when the other end is closed.
pub(crate) fn receive_what_fits(socket: impl AsFd) -> io::Result<Option<(Message, Option<Vec<OwnedFd>>)>> {
    let mut buffer = vec![0; LONGEST];
    let (len, fds) = match fdpass::recv(&socket, &mut buffer) {
        Ok(received) => received,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        Err(error) => return Err(error),
    };
    if len == 0 {
        return Ok(None);
    }
    let message = buffer.get(..len).and_then(Message::decode);
    Ok(Some((message.ok_or(io::ErrorKind::InvalidData)?, fds)))
}

/// Waits for one message, but not longer than the supervisor lives or the deadline lasts.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    lifeline: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> io::Result<Received> {
    loop {
        let mut fds = vec![PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        fds.extend(lifeline.map(|lifeline| PollFd::from_borrowed_fd(lifeline, PollFlags::IN)));
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        poll(&mut fds, timeout)?;
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let (message, orphaned) = (ready.next().unwrap_or(false), ready.next().unwrap_or(false));
        drop(ready);
        drop(fds);
        if message {
            return receive_ready(socket);
        }
        if orphaned {
            return Ok(Received::Orphaned);
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Ok(Received::Late);
        }
    }
}

/// poll(2) with a duration; interrupted by a signal it reports nothing.
pub(crate) fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    // A second more than asked for is no harm: every caller looks at the clock.
    let timeout = timeout.map(|timeout| Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::from(i32::MAX)).min(i64::from(i32::MAX)),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    match rustix::event::poll(fds, timeout.as_ref()) {
        Ok(_) => Ok(()),
        Err(Errno::INTR) => {
            for fd in fds {
                fd.clear_revents();
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the supervisor is still there.
pub(crate) fn is_orphaned(lifeline: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(lifeline, PollFlags::IN)];
    poll(&mut fds, Some(Duration::ZERO)).is_err() || fds.iter().any(|fd| !fd.revents().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_the_way() {
        let fault = Fault { step: "mount a new proc at /proc".to_owned(), remedy: "do this".to_owned(), errno: 1 };
        let messages = [
            Message::Unshared,
            Message::Mapped,
            Message::Born { pid: 4711 },
            Message::Built,
            Message::Netns,
            Message::Linked,
            Message::Trees,
            Message::Sockets,
            Message::Eyes,
            Message::Placed,
            Message::Go,
            Message::Booted,
            Message::Caller,
            Message::Lost { why: "QEMU has ended".to_owned() },
            Message::DiskFull(DiskFull::Space { bytes: 1 << 40 }),
            Message::DiskFull(DiskFull::Files { count: 3 }),
            Message::Share { number: 7, read_only: true },
            Message::Unshare { number: 7 },
            Message::Shared { number: 7, why: "no".to_owned() },
            Message::Attach { number: 7, read_only: false, target: b"/data".to_vec() },
            Message::Detach { number: 7, target: b"/data".to_vec() },
            Message::Attached { number: u32::MAX, why: String::new() },
            Message::Started,
            Message::NotExecuted { errno: 2 },
            Message::Signal { number: 15, target: Target::Program },
            Message::Signal { number: 2, target: Target::Group },
            Message::Exited { status: 255 },
            Message::Signaled { number: 9 },
            Message::Failed(fault),
        ];
        for message in messages {
            assert_eq!(Message::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn half_a_message_is_none() {
        assert_eq!(Message::decode(b""), None);
        assert_eq!(Message::decode(b"x\x01"), None);
        assert_eq!(Message::decode(b"?"), None);
        assert_eq!(Message::decode(b"h\x01\0\0\0"), None);
        assert_eq!(Message::decode(b"a\x01\0\0"), None);
    }

    #[test]
    fn tells_a_closed_stream_from_a_lost_supervisor_and_from_silence() {
        let (a, b) = fdpass::pair().unwrap();
        let (lifeline, writer) = rustix::pipe::pipe().unwrap();
        let now = Some(Instant::now());
        assert!(matches!(receive(a.as_fd(), Some(lifeline.as_fd()), now), Ok(Received::Late)));
        assert!(!is_orphaned(lifeline.as_fd()));
        drop(writer);
        assert!(is_orphaned(lifeline.as_fd()));
        assert!(matches!(receive(a.as_fd(), Some(lifeline.as_fd()), None), Ok(Received::Orphaned)));
        drop(b);
        assert!(matches!(receive(a.as_fd(), None, None), Ok(Received::Closed)));
    }
}
