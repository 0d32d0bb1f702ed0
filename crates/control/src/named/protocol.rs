//! What is said over the control socket, and to whom.
//!
//! Messages are JSON over `SOCK_SEQPACKET`, one each, and versioned: a keeper outlives the program that made it, and may meet
//! a newer one. A specification travels as a memory file beside its message, since it may be longer than a message. Whoever
//! connects has to be the same user *in the same user namespace*: on a plain user's machine a program in a sandbox has
//! the same user id as everybody here.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_gateway::{Link6, LinkAddresses};
use cofferdam_model::PublishedPort;
use cofferdam_sys::{fdpass, process};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, MemfdFlags, Mode, SealFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::spec::MountEntry;

/// The version of what follows.
const VERSION: u32 = 3;

/// The name of the socket in the folder of a sandbox, and in that of a run.
pub(crate) const CONTROL: &str = "control";

/// How many connections wait to be accepted.
const BACKLOG: i32 = 128;

/// The longest message. A list of [`MAX_RUNS`] runs fits.
const LONGEST: usize = 128 * 1024;

/// The most runs of which a keeper tells.
pub(crate) const MAX_RUNS: usize = 256;

/// The longest specification.
const LONGEST_SPEC: u64 = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<T> {
    v: u32,
    say: T,
}

/// What is asked of a keeper: the first message of a connection.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Let me run something; the connection lasts as long as the run.
    Enter,
    Inspect,
    /// End what runs, with TERM first, and the sandbox.
    Stop {
        grace_ms: u64,
    },
    /// Tell what is in force: the specification, of which a run that stays nowhere has its network alone.
    Show,
    /// Take the specification beside this for the network from here on.
    Policy,
    /// Tell which ports are published.
    Ports,
    /// Publish these as well, as they are written.
    Publish {
        ports: Vec<String>,
    },
    /// Publish these no more.
    Withdraw {
        ports: Vec<String>,
    },
    /// Say how a directory has to be taken for this to be shown it.
    Mountable {
        target: PathBuf,
    },
    /// Show the guest the directory whose tree is beside this.
    Mount {
        mount: MountEntry,
    },
    /// Show what is at this place no more.
    Unmount {
        target: PathBuf,
    },
}

/// What a keeper answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Reply {
    /// With the handles, the specification, and a socket for what the session's gateway denies ([`told`](super::told)).
    Entered(Entered),
    Inspected(Status),
    /// The specification is beside this.
    Shown,
    /// It is done, or will be when the connection closes.
    Done,
    /// All ports, or those that have changed.
    Ports {
        ports: Vec<PublishedPort>,
    },
    /// With the user namespace that the sandbox's own lies in beside this, by whose id map owners are seen or not.
    Mountable {
        is_mapped: bool,
    },
    Refused {
        why: String,
    },
    /// Not now: something else is being changed, or was since the asker looked.
    Busy,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entered {
    pub(crate) identity: Option<u32>,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) link: Option<Link>,
}

/// The state of a running sandbox.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Status {
    pub(crate) keeper: u32,
    pub(crate) init: u32,
    /// Seconds since 1970.
    pub(crate) started: u64,
    pub(crate) link: Option<Link>,
    pub(crate) runs: Vec<RunStatus>,
    /// Runs that found no room in the list.
    pub(crate) more_runs: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunStatus {
    pub(crate) supervisor: u32,
    pub(crate) command: String,
    pub(crate) is_main: bool,
}

/// What a run tells its keeper.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum FromRun {
    Started {
        command: String,
    },
    /// It holds what the session's changed policy says.
    Narrowed,
    /// Its program has ended, and it waits for the last of what the session's gateway has denied.
    Ended,
    /// It did not start; in words, and as an exit status.
    Failed {
        why: String,
        status: u8,
    },
}

/// What a keeper tells its runs.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ToRun {
    /// End, please.
    Terminate,
    /// The session's network has changed to that of the specification beside this: be within it, and say so.
    Policy,
}

/// [`LinkAddresses`] as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Link {
    guest4: Ipv4Addr,
    gateway4: Ipv4Addr,
    prefix4: u8,
    v6: Option<(Ipv6Addr, Ipv6Addr, u8)>,
}

impl From<&LinkAddresses> for Link {
    fn from(link: &LinkAddresses) -> Link {
        let v6 = link.v6.as_ref().map(|v6| (v6.gateway, v6.guest, v6.prefix));
        Link { guest4: link.guest4, gateway4: link.gateway4, prefix4: link.prefix4, v6 }
    }
}

impl Link {
    pub(crate) fn addresses(&self) -> LinkAddresses {
        let v6 = self.v6.map(|(gateway, guest, prefix)| Link6 { gateway, guest, prefix });
        LinkAddresses { guest4: self.guest4, gateway4: self.gateway4, prefix4: self.prefix4, v6 }
    }

    pub(crate) fn guest(&self) -> Vec<std::net::IpAddr> {
        std::iter::once(self.guest4.into()).chain(self.v6.map(|(_, guest, _)| guest.into())).collect()
    }
}

/// Listens in a folder; what listened there before does not any more.
pub(crate) fn listen(directory: &OwnedFd) -> io::Result<OwnedFd> {
    stop_listening(directory)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(path_in(directory))?)?;
    rustix::fs::chmodat(directory, CONTROL, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Nobody is to find a socket that nobody listens on.
pub(crate) fn stop_listening(directory: &OwnedFd) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, CONTROL, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A connection to whoever listens in a folder.
pub(crate) fn connect(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path_in(directory))?)?;
    Ok(socket)
}

/// The socket by a path that fits into an address, however long the real one is.
fn path_in(directory: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}/{CONTROL}", directory.as_raw_fd()).into()
}

/// Asks something, and waits that long for the answer.
pub(crate) fn ask(
    socket: &OwnedFd,
    request: &Request,
    content: Option<&str>,
    patience: Duration,
) -> io::Result<(Reply, Vec<OwnedFd>)> {
    let file = content.map(|content| memory_file(content.as_bytes())).transpose()?;
    let fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();
    ask_with(socket, request, &fds, patience)
}

/// As [`ask`], with descriptors.
pub(crate) fn ask_with(
    socket: &OwnedFd,
    request: &Request,
    fds: &[BorrowedFd<'_>],
    patience: Duration,
) -> io::Result<(Reply, Vec<OwnedFd>)> {
    send(socket, request, fds)?;
    if !wait_for(socket, patience)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    receive::<Reply>(socket)?.ok_or_else(|| io::ErrorKind::ConnectionReset.into())
}

/// Waits until there is something to read, or the other end is gone. `false` when the time is up.
pub(crate) fn wait_for(socket: &OwnedFd, patience: Duration) -> io::Result<bool> {
    let timeout = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    let mut fds = [PollFd::new(socket, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&timeout)))? > 0)
}

/// Sends a message. One that finds no room is an error: nobody waits for a reader.
pub(crate) fn send<T: Serialize>(socket: impl AsFd, say: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let message = serde_json::to_vec(&Envelope { v: VERSION, say }).map_err(io::Error::from)?;
    if message.len() > LONGEST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    fdpass::send_fds_now(socket, &message, fds)
}

/// Receives one message; `None` at the end.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; LONGEST];
    let (len, fds) = match fdpass::recv_fds(socket, &mut buffer) {
        Ok(received) => received,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        Err(error) => return Err(error),
    };
    if len == 0 {
        return Ok(None);
    }
    let message = buffer.get(..len).unwrap_or_default();
    let version = || serde_json::from_slice::<serde_json::Value>(message).ok()?.get("v")?.as_u64();
    match serde_json::from_slice::<Envelope<T>>(message) {
        Ok(Envelope { v: VERSION, say }) => Ok(Some((say, fds))),
        Ok(_) | Err(_) if version().is_some_and(|version| version != u64::from(VERSION)) => {
            let text = "the sandbox was started by another version of this program: stop it, and start it anew";
            Err(io::Error::new(io::ErrorKind::Unsupported, text))
        }
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}

/// A memory file that nobody changes any more.
pub(crate) fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("cofferdam", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(file);
    file.write_all(content)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

/// What is in a memory file.
pub(crate) fn read_memory_file(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(file);
    file.seek(SeekFrom::Start(0))?;
    let mut content = Vec::new();
    file.take(LONGEST_SPEC).read_to_end(&mut content)?;
    Ok(content)
}

/// Whether whoever connected may ask for anything: the same user, in the same user namespace. Its process id, if so.
pub(crate) fn trusted_peer(connection: &OwnedFd) -> Option<u32> {
    let peer = cofferdam_sys::socket::peer(connection).ok()?;
    if peer.uid != rustix::process::geteuid().as_raw() {
        return None;
    }
    let own = std::fs::read_link("/proc/self/ns/user").ok()?;
    let of = |pid: rustix::process::Pid| std::fs::read_link(format!("/proc/{}/ns/user", pid.as_raw_nonzero())).ok();
    match fdpass::peer_pidfd(connection) {
        Ok(pidfd) => {
            let pid = process::pid_of(&pidfd).ok()?;
            let is_ours = of(pid)? == own;
            // It is still there, so its number was nobody else's in between.
            (is_ours && process::pid_of(&pidfd).ok()? == pid).then(|| pid.as_raw_nonzero().get().unsigned_abs())
        }
        // A kernel before 6.5.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOPROTOOPT.raw_os_error()) => {
            let pid = peer.pid?;
            (of(pid)? == own).then(|| pid.as_raw_nonzero().get().unsigned_abs())
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (a, b) = fdpass::pair().unwrap();
        let file = memory_file(b"content").unwrap();
        send(&a, &Request::Stop { grace_ms: 5 }, &[file.as_fd()]).unwrap();
        let (request, mut fds) = receive::<Request>(&b).unwrap().unwrap();
        assert_eq!(request, Request::Stop { grace_ms: 5 });
        assert_eq!(read_memory_file(fds.pop().unwrap()).unwrap(), b"content");
        drop(a);
        assert!(receive::<Request>(&b).unwrap().is_none());
    }

    #[test]
    fn what_is_unknown_or_of_another_version_is_refused() {
        for (message, kind) in [
            (r#"{"v":9,"say":"enter"}"#, io::ErrorKind::Unsupported),
            (r#"{"v":9,"say":{"fly":1}}"#, io::ErrorKind::Unsupported),
            (r#"{"v":3,"say":"fly"}"#, io::ErrorKind::InvalidData),
            (r#"{"v":3,"say":"enter","more":1}"#, io::ErrorKind::InvalidData),
            (r#"{"v":3,"say":{"stop":{"grace_ms":1,"more":1}}}"#, io::ErrorKind::InvalidData),
            (r#"{"say":"enter"}"#, io::ErrorKind::InvalidData),
            ("\0", io::ErrorKind::InvalidData),
        ] {
            let (a, b) = fdpass::pair().unwrap();
            fdpass::send_fds(&a, message.as_bytes(), &[]).unwrap();
            assert_eq!(receive::<Request>(&b).unwrap_err().kind(), kind, "{message}");
        }
    }

    #[test]
    fn a_process_of_the_same_user_is_trusted() {
        let (a, _b) = fdpass::pair().unwrap();
        assert_eq!(trusted_peer(&a), Some(std::process::id()));
    }

    #[test]
    fn a_link_survives_the_way() {
        let v6 = Link6 { gateway: "fd00::1".parse().unwrap(), guest: "fd00::2".parse().unwrap(), prefix: 64 };
        for v6 in [None, Some(v6)] {
            let link = LinkAddresses {
                guest4: "172.16.0.2".parse().unwrap(),
                gateway4: "172.16.0.1".parse().unwrap(),
                prefix4: 30,
                v6,
            };
            let sent = serde_json::to_string(&Link::from(&link)).unwrap();
            assert_eq!(serde_json::from_str::<Link>(&sent).unwrap().addresses(), link);
        }
    }
}
