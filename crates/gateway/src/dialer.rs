//! The dialer: who connects to sockets of the host.
//!
//! The gateway may not open an `AF_UNIX` socket at all: a filter of system calls sees no path, so that a gateway which could
//! connect one could connect every one of its user's. This process connects for it, to the few sockets that were named when the
//! sandbox was started. It has the user and the groups of whoever called, since those are who the sockets are open to; it
//! reads nothing but requests of nine bytes, and is confined to what that takes.
//!
//! | Bytes | From | What |
//! |---|---|---|
//! | 1, 8 | gateway | which socket, for which flow |
//! | 8, 4 | dialer | the flow and 0, with the connected socket; or the flow and the error |
//!
//! Numbers are in network byte order. The name of a socket is looked up for each connection, so that a server which has bound it
//! anew is found; in the directory that was there at the start, and without following a link. What is connected to is what
//! was looked at, by its descriptor.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cofferdam_gate::SocketError;
use cofferdam_model::{FlowId, SocketId};
use cofferdam_sys::confine::{self, Call, Capability, Test};
use cofferdam_sys::fdpass;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::seal::{SealError, confine, helper_calls, only};

/// One socket of the host: the directory that it is in, and its name there.
#[derive(Debug)]
pub struct SocketDoor {
    directory: OwnedFd,
    name: OsString,
}

/// Why a socket of the host cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error("there is no {path}", path = .0.display())]
    Missing(PathBuf),
    #[error("{path} is no socket", path = .0.display())]
    NotASocket(PathBuf),
    #[error("{path} is a {kind} socket, and only streams are relayed", path = path.display())]
    NotAStream { path: PathBuf, kind: &'static str },
    #[error("nobody listens on {path}: start its server first", path = .0.display())]
    NobodyListens(PathBuf),
    #[error("{path} is closed to the user who asks for it", path = .0.display())]
    Closed(PathBuf),
    #[error("{path} cannot be opened", path = path.display())]
    Open { path: PathBuf, source: io::Error },
}

/// Why there is no dialer any more.
#[derive(Debug, thiserror::Error)]
pub enum DialerError {
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("cannot serve the gateway")]
    Serve { source: io::Error },
}

impl SocketDoor {
    /// Opens the way to the socket at an absolute path without symbolic links, and looks whether it takes streams. Its server
    /// does not notice.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path) -> Result<SocketDoor, DoorError> {
        let missing = || DoorError::Missing(path.to_owned());
        let failed = |errno| match errno {
            Errno::NOENT | Errno::NOTDIR => missing(),
            Errno::ACCESS | Errno::PERM => DoorError::Closed(path.to_owned()),
            Errno::LOOP | Errno::NOTSOCK => DoorError::NotASocket(path.to_owned()),
            Errno::CONNREFUSED => DoorError::NobodyListens(path.to_owned()),
            errno => DoorError::Open { path: path.to_owned(), source: errno.into() },
        };
        let (parent, name) = path.parent().zip(path.file_name()).ok_or_else(missing)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat2(CWD, parent, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
        let directory = loop {
            match open() {
                // openat2(2): a rename or mount somewhere on the machine came in between.
                Err(Errno::AGAIN | Errno::INTR) => {}
                opened => break opened.map_err(failed)?,
            }
        };
        let door = SocketDoor { directory, name: name.to_owned() };
        // Who connects with another type than the socket's is refused for that before anything else (`unix_find_bsd`), and the
        // server hears nothing of it.
        match door.connect(SocketType::DGRAM) {
            Ok(_) => return Err(DoorError::NotAStream { path: path.to_owned(), kind: "datagram" }),
            Err(Errno::PROTOTYPE) => {}
            Err(errno) => return Err(failed(errno)),
        }
        match door.connect(SocketType::SEQPACKET) {
            Err(Errno::PROTOTYPE) => Ok(door),
            Ok(_) | Err(_) => Err(DoorError::NotAStream { path: path.to_owned(), kind: "packet" }),
        }
    }

    /// A socket that is connected to it.
    fn connect(&self, kind: SocketType) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, &self.name, flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::Socket {
            return Err(Errno::NOTSOCK);
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        let path = SocketAddrUnix::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        rustix::net::connect(&socket, &path)?;
        Ok(socket)
    }
}

impl AsFd for SocketDoor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// The dialer: confines itself and serves until the gateway or the supervisor is gone. The calling process has these
/// descriptors only.
///
/// # Errors
/// When it could not be confined, or its socket broke.
pub fn serve_dialer(channel: &OwnedFd, lifeline: &OwnedFd, doors: &[&SocketDoor]) -> Result<(), DialerError> {
    seal(doors)?;
    let serve = |source: io::Error| DialerError::Serve { source };
    loop {
        let mut fds = [PollFd::new(channel, PollFlags::IN), PollFd::new(lifeline, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(serve(errno.into())),
        }
        let [asked, orphaned] = fds.map(|fd| !fd.revents().is_empty());
        if orphaned {
            return Ok(());
        }
        if !asked {
            continue;
        }
        // One more byte than a request has, so that none is taken for one which is longer.
        let mut request = [0; REQUEST + 1];
        let len = match rustix::io::retry_on_intr(|| rustix::io::read(channel, &mut request)) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(errno) => return Err(serve(errno.into())),
        };
        let (door, flow) = request
            .get(..len)
            .and_then(|request| request.split_first())
            .and_then(|(at, flow)| Some((doors.get(usize::from(*at))?, <[u8; 8]>::try_from(flow).ok()?)))
            .ok_or_else(|| serve(io::ErrorKind::InvalidData.into()))?;
        answer(channel, flow, door.connect(SocketType::STREAM)).map_err(serve)?;
    }
}

const REQUEST: usize = 9;
const ANSWER: usize = 12;

fn answer(channel: &OwnedFd, flow: [u8; 8], connected: Result<OwnedFd, Errno>) -> io::Result<()> {
    let message = |errno: i32| [&flow[..], &errno.to_be_bytes()].concat();
    let errno = match connected {
        Ok(socket) => match fdpass::send_fds(channel, &message(0), &[socket.as_fd()]) {
            // More descriptors are on their way than this user may have there: the gateway does not keep up.
            Err(error) if error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()) => Errno::NOBUFS,
            sent => return sent,
        },
        Err(errno) => errno,
    };
    fdpass::send_fds(channel, &message(errno.raw_os_error()), &[])
}

fn seal(doors: &[&SocketDoor]) -> Result<(), SealError> {
    // Root's sockets are open to root by its id, those of others by this.
    let overrides = confine::has_capability(Capability::DAC_OVERRIDE).is_ok_and(|has| has);
    let kept: &[Capability] = if overrides { &[Capability::DAC_OVERRIDE] } else { &[] };
    let path = u32::try_from(libc::O_PATH).unwrap_or(u32::MAX);
    let own = [
        // Where a file is, and never what is in it.
        Call::new(libc::SYS_openat).when(2, Test::Bit(path)),
        Call::new(libc::SYS_fstat),
        Call::new(libc::SYS_newfstatat),
        Call::new(libc::SYS_statx),
        only(libc::SYS_socket, 0, libc::AF_UNIX),
        Call::new(libc::SYS_connect),
    ];
    let reach: Vec<_> = doors.iter().map(|door| door.as_fd()).collect();
    confine(kept, &reach, helper_calls().into_iter().chain(own).collect())
}

/// Asks the dialer to connect. `Err`: it cannot be asked, for now or any more.
pub(crate) fn ask(channel: &OwnedFd, flow: FlowId, SocketId(socket): SocketId) -> Result<(), SocketError> {
    let socket = u8::try_from(socket).map_err(|_| SocketError::Missing)?;
    let request = [&[socket][..], &flow.0.to_be_bytes()].concat();
    let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
    match rustix::net::send(channel, &request, flags) {
        Ok(_) => Ok(()),
        // It has as much to do as it can be told of: as if the server's queue was full.
        Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => Err(SocketError::Busy),
        Err(_) => Err(SocketError::Gone),
    }
}

/// What the dialer has said.
#[derive(Debug)]
pub(crate) enum Dialed {
    Flow(FlowId, Result<OwnedFd, SocketError>),
    /// Nothing more for now.
    Nothing,
    /// It has ended.
    Gone,
}

/// The dialer's next answer.
pub(crate) fn receive(channel: &OwnedFd) -> Dialed {
    let mut message = [0; ANSWER];
    let (len, mut fds) = match fdpass::recv_fds(channel, &mut message) {
        Ok(received) => received,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Dialed::Nothing,
        // The socket that came along found no room among our descriptors, and the flow waits for nothing until its time is up.
        Err(error) if error.kind() == io::ErrorKind::InvalidData && message != [0; ANSWER] => (ANSWER, Vec::new()),
        Err(_) => return Dialed::Gone,
    };
    let parts = || {
        let (flow, errno) = message.get(..len)?.split_first_chunk::<8>()?;
        Some((FlowId(u64::from_be_bytes(*flow)), i32::from_be_bytes(errno.try_into().ok()?)))
    };
    match (parts(), fds.pop()) {
        (Some((flow, 0)), Some(socket)) => Dialed::Flow(flow, Ok(socket)),
        (Some((flow, 0)), None) => Dialed::Flow(flow, Err(SocketError::Resources)),
        (Some((flow, errno)), None) => Dialed::Flow(flow, Err(error(errno))),
        _ => Dialed::Gone,
    }
}

fn error(errno: i32) -> SocketError {
    match Errno::from_raw_os_error(errno) {
        Errno::AGAIN => SocketError::Busy,
        Errno::CONNREFUSED => SocketError::Refused,
        Errno::NOENT | Errno::NOTDIR => SocketError::Missing,
        Errno::NOTSOCK | Errno::LOOP => SocketError::NotASocket,
        Errno::PROTOTYPE => SocketError::NotAStream,
        Errno::ACCESS | Errno::PERM => SocketError::Prohibited,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => SocketError::Resources,
        _ => SocketError::Other(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    fn listener(path: &Path) -> UnixListener {
        UnixListener::bind(path).unwrap()
    }

    /// A directory by a path without links in it.
    fn directory() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    #[test]
    fn what_is_no_listening_stream_socket_is_refused() {
        let (_dir, path) = directory();
        let at = |name: &str| path.join(name);
        let _stream = listener(&at("stream"));
        let _datagram = UnixDatagram::bind(at("datagram")).unwrap();
        drop(listener(&at("left")));
        std::fs::write(at("file"), "").unwrap();
        symlink("stream", at("link")).unwrap();
        symlink(&path, at("directory")).unwrap();
        let packet = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        rustix::net::bind(&packet, &SocketAddrUnix::new(at("packet")).unwrap()).unwrap();
        rustix::net::listen(&packet, 1).unwrap();
        assert!(SocketDoor::open(&at("stream")).is_ok());
        for (name, reason) in [
            ("missing", "there is no"),
            ("missing/stream", "there is no"),
            ("file", "is no socket"),
            ("file/stream", "there is no"),
            ("link", "is no socket"),
            ("directory/stream", "is no socket"),
            ("datagram", "is a datagram socket"),
            ("packet", "is a packet socket"),
            ("left", "nobody listens"),
        ] {
            let error = SocketDoor::open(&at(name)).unwrap_err().to_string();
            assert!(error.contains(reason), "{name}: {error}");
        }
    }

    #[test]
    fn a_server_does_not_notice_that_it_is_looked_at() {
        let (_dir, path) = directory();
        let server = listener(&path.join("a"));
        server.set_nonblocking(true).unwrap();
        SocketDoor::open(&path.join("a")).unwrap();
        assert_eq!(server.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    /// A dialer on a thread of its own, which is confined for good.
    struct Served {
        channel: OwnedFd,
        lifeline: Option<OwnedFd>,
        thread: std::thread::JoinHandle<Result<(), DialerError>>,
    }

    fn serve(doors: Vec<SocketDoor>) -> Served {
        let (ours, theirs) = fdpass::pair().unwrap();
        let (lifeline_in, lifeline) = rustix::pipe::pipe().unwrap();
        let run = move || serve_dialer(&theirs, &lifeline_in, &doors.iter().collect::<Vec<_>>());
        Served { channel: ours, lifeline: Some(lifeline), thread: std::thread::spawn(run) }
    }

    impl Served {
        fn dial(&self, socket: u32) -> Result<OwnedFd, SocketError> {
            ask(&self.channel, FlowId(7), SocketId(socket)).unwrap();
            let Dialed::Flow(FlowId(7), result) = receive(&self.channel) else { panic!("no answer") };
            result
        }
    }

    #[test]
    fn a_server_that_restarts_is_found_again_and_a_link_in_its_place_is_not_followed() {
        let (_dir, path) = directory();
        let at = |name: &str| path.join(name);
        let _other = listener(&at("other"));
        let server = listener(&at("a"));
        let mut served = serve(vec![SocketDoor::open(&at("a")).unwrap()]);
        served.dial(0).unwrap();
        drop(server);
        assert_eq!(served.dial(0).unwrap_err(), SocketError::Refused);
        std::fs::remove_file(at("a")).unwrap();
        assert_eq!(served.dial(0).unwrap_err(), SocketError::Missing);
        symlink("other", at("a")).unwrap();
        assert_eq!(served.dial(0).unwrap_err(), SocketError::NotASocket);
        std::fs::remove_file(at("a")).unwrap();
        let _datagram = UnixDatagram::bind(at("a")).unwrap();
        assert_eq!(served.dial(0).unwrap_err(), SocketError::NotAStream);
        std::fs::remove_file(at("a")).unwrap();
        let server = listener(&at("a"));
        let dialed = served.dial(0).unwrap();
        let (accepted, _) = server.accept().unwrap();
        rustix::io::write(&accepted, b"x").unwrap();
        assert_eq!(rustix::io::read(&dialed, &mut [0; 2]).unwrap(), 1);
        drop(served.lifeline.take());
        assert!(served.thread.join().unwrap().is_ok(), "it ends with the supervisor");
    }

    #[test]
    fn a_full_queue_is_busy() {
        let (_dir, path) = directory();
        let path = path.join("a");
        let server = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&server, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&server, 0).unwrap();
        let served = serve(vec![SocketDoor::open(&path).unwrap()]);
        let _waits = served.dial(0).unwrap();
        assert_eq!(served.dial(0).unwrap_err(), SocketError::Busy);
    }

    #[test]
    fn a_request_that_is_none_ends_it() {
        for request in [&b"\0"[..], &[1; 9], &[0; 10], &[0; 8]] {
            let served = serve(Vec::new());
            rustix::io::write(&served.channel, request).unwrap();
            assert!(matches!(served.thread.join().unwrap(), Err(DialerError::Serve { .. })), "{request:?}");
        }
        let (_dir, path) = directory();
        let _server = listener(&path.join("a"));
        let served = serve(vec![SocketDoor::open(&path.join("a")).unwrap()]);
        rustix::io::write(&served.channel, &[1, 0, 0, 0, 0, 0, 0, 0, 7]).unwrap();
        assert!(
            matches!(served.thread.join().unwrap(), Err(DialerError::Serve { .. })),
            "there is one socket, number 0"
        );
    }

    #[test]
    fn a_dialer_connects_unix_sockets_and_nothing_else() {
        let (_dir, path) = directory();
        let _server = listener(&path.join("a"));
        let door = SocketDoor::open(&path.join("a")).unwrap();
        let run = move || {
            seal(&[&door]).unwrap();
            let inet = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).map(drop);
            let file = rustix::fs::open("/etc/passwd", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(drop);
            let made = rustix::fs::mkdirat(&door, "d", Mode::RWXU);
            let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
            let used =
                (rustix::net::bind(&socket, &SocketAddrUnix::new("x").unwrap()), rustix::net::listen(&socket, 1));
            (inet, file, made, used, door.connect(SocketType::STREAM).map(drop))
        };
        let no = Err(Errno::PERM);
        assert_eq!(std::thread::spawn(run).join().unwrap(), (no, no, no, (no, no), Ok(())));
    }
}
