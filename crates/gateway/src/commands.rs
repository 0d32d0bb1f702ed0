//! What the supervisor has the gateway change while a sandbox runs.
//!
//! Commands come over a `SOCK_SEQPACKET` socket that was made before the gateway sealed itself. Each has a number and is
//! answered under it once it is done or refused; commands are carried out in their order, but for settings, whose policy
//! is compiled beside the loop ([`compiler`](crate::compiler)). One message, numbers in network byte order:
//!
//! | Bytes | What |
//! |---|---|
//! | 1 | `S` settings, `P` publish a port, `U` withdraw a port, `T` tell what there is to tell, `A` answer |
//! | 4 | number of the command |
//! | `S`: – | with one descriptor: a file of [`MAX_SETTINGS`] bytes at most, a network in the wire form, read from where it stands |
//! | `P`: rest | with the bound sockets: the port, as JSON |
//! | `U`: 4 | number of the port |
//! | `T`: – | answered when the events of all that happened before have been sent |
//! | `A`: 1, rest | 1: done; 0: not done, and why |
//!
//! A command that cannot be read ends the gateway: what it was to be is not known, and it may have been to close something.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cofferdam_model::{NetworkConfig, PortId, PublishedPort};
use cofferdam_sys::fdpass;
use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::net::SendFlags;

use crate::PortSocket;

/// The longest message: a port and its words, or why a command was refused.
const LONGEST: usize = 16 * 1024;

/// The longest settings: 100,000 rules of 80 characters.
pub(crate) const MAX_SETTINGS: usize = 8 << 20;

const SETTINGS: u8 = b'S';
const PUBLISH: u8 = b'P';
const WITHDRAW: u8 = b'U';
const TELL: u8 = b'T';
const ANSWER: u8 = b'A';

/// What is to change.
#[derive(Debug)]
pub(crate) enum Command {
    /// Rules, limits and the like as they are in this file, in the place of those in force.
    Settings { file: OwnedFd },
    /// A port, as JSON, and its sockets.
    Publish { port: Vec<u8>, sockets: Vec<OwnedFd> },
    /// A port that was published.
    Withdraw { port: u32 },
    /// Events that are gathered are to be sent.
    Tell,
}

/// A port as it is told to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Publication {
    pub(crate) id: PortId,
    pub(crate) port: PublishedPort,
}

/// What arrived on the gateway's end of the channel.
#[derive(Debug)]
pub(crate) enum Received {
    Command(u32, Command),
    Nothing,
    Closed,
    Unreadable,
}

/// Reads the next command.
pub(crate) fn receive(channel: &OwnedFd) -> Received {
    let mut buffer = vec![0; LONGEST];
    match fdpass::recv_fds(channel, &mut buffer) {
        Ok((0, _)) => Received::Closed,
        Ok((len, fds)) => match parse(buffer.get(..len).unwrap_or_default(), fds) {
            Some((number, command)) => Received::Command(number, command),
            None => Received::Unreadable,
        },
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Nothing,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Received::Unreadable,
        Err(_) => Received::Closed,
    }
}

fn parse(message: &[u8], mut fds: Vec<OwnedFd>) -> Option<(u32, Command)> {
    let (kind, rest) = message.split_first()?;
    let (number, rest) = rest.split_first_chunk::<4>()?;
    let number = u32::from_be_bytes(*number);
    let command = match (*kind, fds.len()) {
        (SETTINGS, 1) if rest.is_empty() => Command::Settings { file: fds.pop()? },
        (PUBLISH, 1..) => Command::Publish { port: rest.to_vec(), sockets: fds },
        (TELL, 0) if rest.is_empty() => Command::Tell,
        (WITHDRAW, 0) => Command::Withdraw { port: u32::from_be_bytes(rest.try_into().ok()?) },
        (_, _) => return None,
    };
    Some((number, command))
}

/// Says what became of a command. A supervisor that does not read its answers does without.
pub(crate) fn answer(channel: &OwnedFd, number: u32, result: Result<(), &str>) {
    let mut message = vec![ANSWER];
    message.extend(number.to_be_bytes());
    message.push(u8::from(result.is_ok()));
    message.extend(result.err().unwrap_or_default().bytes().take(LONGEST / 2));
    let _lost = rustix::net::send(channel, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

/// The supervisor's end of the channel.
#[derive(Debug)]
pub struct Commands {
    channel: OwnedFd,
    next: u32,
}

/// The gateway's answer to the command of that number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandAnswer {
    pub number: u32,
    pub result: Result<(), String>,
}

impl Commands {
    /// Makes a channel: the supervisor's end, and the gateway's for [`Channels`](crate::Channels).
    ///
    /// # Errors
    /// Those of socketpair(2).
    pub fn pair() -> io::Result<(Commands, OwnedFd)> {
        let (ours, theirs) = fdpass::pair()?;
        for end in [&ours, &theirs] {
            rustix::io::ioctl_fionbio(end, true)?;
        }
        Ok((Commands { channel: ours, next: 0 }, theirs))
    }

    /// Has rules, what is told of a denial, limits and how names are resolved replaced by those of `network`. Returns the number
    /// of the command, as the others do. Not replaced: resolvers, and what the link is made of.
    ///
    /// # Errors
    /// When the gateway is gone or has too much to do (`WouldBlock`).
    pub fn replace(&mut self, network: &NetworkConfig) -> io::Result<u32> {
        let file = rustix::fs::memfd_create("settings", MemfdFlags::CLOEXEC)?;
        let text = cofferdam_policy::file::to_json(network);
        if text.len() > MAX_SETTINGS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a policy of more than 8 MiB"));
        }
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest)?;
            rest = rest.get(written..).unwrap_or_default();
        }
        rustix::fs::seek(&file, SeekFrom::Start(0))?;
        self.send(SETTINGS, &[], &[file.as_fd()])
    }

    /// Has a port published.
    ///
    /// # Errors
    /// As for [`Commands::replace`].
    pub fn publish(&mut self, port: &PortSocket) -> io::Result<u32> {
        let text = serde_json::to_vec(&Publication { id: port.id, port: port.port })?;
        self.send(PUBLISH, &text, &[port.socket.as_fd()])
    }

    /// Has a port withdrawn. Its connections go on.
    ///
    /// # Errors
    /// As for [`Commands::replace`].
    pub fn withdraw(&mut self, PortId(port): PortId) -> io::Result<u32> {
        self.send(WITHDRAW, &port.to_be_bytes(), &[])
    }

    /// Has the events of everything that happened before sent ahead of the answer.
    ///
    /// # Errors
    /// As for [`Commands::replace`].
    pub fn tell(&mut self) -> io::Result<u32> {
        self.send(TELL, &[], &[])
    }

    fn send(&mut self, kind: u8, rest: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<u32> {
        let number = self.next;
        let message = [&[kind][..], &number.to_be_bytes(), rest].concat();
        if message.len() > LONGEST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        fdpass::send_fds(&self.channel, &message, fds)?;
        self.next = self.next.wrapping_add(1);
        Ok(number)
    }

    /// The next answer; `None` while there is none. Wait until the channel is readable for another.
    ///
    /// # Errors
    /// `UnexpectedEof` when the gateway is gone, `InvalidData` when it says something else.
    pub fn answer(&self) -> io::Result<Option<CommandAnswer>> {
        let mut buffer = vec![0; LONGEST];
        let message = match rustix::io::retry_on_intr(|| rustix::io::read(&self.channel, &mut buffer)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => buffer.get(..len).unwrap_or_default(),
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let parts = || {
            let (number, rest) = message.strip_prefix(&[ANSWER])?.split_first_chunk::<4>()?;
            let (done, why) = rest.split_first()?;
            let why = String::from_utf8_lossy(why).into_owned();
            let result = if *done == 1 { Ok(()) } else { Err(why) };
            Some(CommandAnswer { number: u32::from_be_bytes(*number), result })
        };
        parts().map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

impl AsFd for Commands {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(message: &[u8], fds: &[BorrowedFd<'_>]) -> Received {
        let (commands, theirs) = Commands::pair().unwrap();
        fdpass::send_fds(&commands.channel, message, fds).unwrap();
        receive(&theirs)
    }

    #[test]
    fn commands_arrive_in_order_with_their_descriptors() {
        let (mut commands, theirs) = Commands::pair().unwrap();
        let socket =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
        let network = cofferdam_policy::file::default_network();
        assert_eq!(commands.replace(&network).unwrap(), 0);
        let port = cofferdam_policy::file::parse_port("[::1]:8080:80/udp").unwrap().remove(0);
        let published = PortSocket { id: PortId(9), port, socket };
        assert_eq!(commands.publish(&published).unwrap(), 1);
        assert_eq!(commands.withdraw(PortId(7)).unwrap(), 2);
        assert_eq!(commands.tell().unwrap(), 3);
        let Received::Command(0, Command::Settings { file }) = receive(&theirs) else { panic!() };
        let mut text = vec![0; 1 << 16];
        let len = rustix::io::read(&file, &mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..len]).into_owned();
        assert_eq!(cofferdam_policy::file::parse("x.json", &text).unwrap(), network);
        let Received::Command(1, Command::Publish { port: told, sockets }) = receive(&theirs) else { panic!() };
        assert_eq!(serde_json::from_slice::<Publication>(&told).unwrap(), Publication { id: PortId(9), port });
        assert_eq!(sockets.len(), 1);
        assert!(matches!(receive(&theirs), Received::Command(2, Command::Withdraw { port: 7 })));
        assert!(matches!(receive(&theirs), Received::Command(3, Command::Tell)));
        assert!(matches!(receive(&theirs), Received::Nothing));
        drop(commands);
        assert!(matches!(receive(&theirs), Received::Closed));
    }

    #[test]
    fn what_is_not_exactly_right_is_unreadable() {
        let (file, _) = rustix::pipe::pipe().unwrap();
        for (message, fds) in [
            (&b"S\0\0\0\0"[..], &[][..]),
            (b"S\0\0\0\0x", &[file.as_fd()]),
            (b"S\0\0\0\0", &[file.as_fd(), file.as_fd()]),
            (b"S\0\0\0", &[file.as_fd()]),
            (b"P\0\0\0\0{}", &[]),
            (b"U\0\0\0\0\0\0\0", &[]),
            (b"U\0\0\0\0\0\0\0\0\0", &[]),
            (b"U\0\0\0\0\0\0\0\0", &[file.as_fd()]),
            (b"T\0\0\0\0x", &[]),
            (b"T\0\0\0\0", &[file.as_fd()]),
            (b"A\0\0\0\0\x01", &[]),
            (b"x\0\0\0\0", &[]),
        ] {
            assert!(matches!(sent(message, fds), Received::Unreadable), "{message:?}");
        }
        assert!(matches!(sent(&[b'P'; LONGEST + 1], &[file.as_fd()]), Received::Unreadable));
    }

    #[test]
    fn answers_come_back_under_their_numbers() {
        let (commands, theirs) = Commands::pair().unwrap();
        assert_eq!(commands.answer().unwrap(), None);
        answer(&theirs, 7, Ok(()));
        answer(&theirs, 9, Err("because"));
        assert_eq!(commands.answer().unwrap(), Some(CommandAnswer { number: 7, result: Ok(()) }));
        assert_eq!(commands.answer().unwrap(), Some(CommandAnswer { number: 9, result: Err("because".into()) }));
        rustix::io::write(&theirs, b"S").unwrap();
        assert_eq!(commands.answer().unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(theirs);
        assert_eq!(commands.answer().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
