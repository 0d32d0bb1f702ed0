//! A function of ours in the place of a program, which starts a virtual machine and accompanies it.
//!
//! | State | Says | Hears | Next |
//! |---|---|---|---|
//! | booting | `Booted` | – | ready |
//! | booting, ready | `Lost` | – | ends |
//! | ready | – | `Go` | asks the guest for the program |
//! | ready | `Started`, `NotExecuted` | – | running, or ends |
//! | running | `DiskFull` | – | – |
//! | running | `Lost` | – | ends |
//! | running, of one that stays | – | `Caller` | serves them as well |
//! | running, of one that stays | `Attached` | `Attach`, `Detach` | has the guest mount what is shared with it, or unmount it |
//!
//! Its pid 1 passes on what it says and hears. From the supervisor's point of view it is a program: signals come as signals, its
//! standard streams are the caller's or a terminal's, and its exit status is the run's.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use cofferdam_sys::confine::Capability;
use cofferdam_sys::mount::EmptyRoot;

use crate::DiskFull;
use crate::wire::{self, Fault, Message, Received};

/// What runs in the place of a program, confined as one.
pub trait Monitor: Debug {
    /// Runs to the end of the program in the virtual machine, and returns its exit status. It is the only thread of a process
    /// whose descriptors are the standard streams and those in `post`.
    fn run(&self, post: Post) -> u8;

    /// The directories that a server has when it begins, as the sandbox sees them, and whether they are to be read alone. The first
    /// things that it hears are these, in this order, with the numbers from 0 on.
    fn shares(&self) -> Vec<(PathBuf, bool)> {
        Vec::new()
    }

    /// Serves the guest's files to whoever connects, in a process of its own beside the monitor's, and for as long as the sandbox is
    /// there. It has no capability, no files, no standard streams and no other descriptor; what more it gives up before it
    /// accepts the first connection is its own to do, and then `post` is to be dropped, which is the monitor's as well.
    /// Only the monitor of a machine that has such files is asked.
    fn serve_files(&self, _place: ServerPlace, _post: Post) -> u8 {
        1
    }

    /// Programs that stand beside the monitor, each with a device of the virtual machine. As long as the sandbox is there so are
    /// they: when one ends, the sandbox does.
    fn device_servers(&self) -> &[DeviceServer] {
        &[]
    }
}

/// A program that is a device of a virtual machine (`vhost-user`), and serves a directory by it.
///
/// It is confined as a program of the sandbox is, and has of its files the libraries, its own processes, and the directory. What it
/// asks to become another user for it is told that it is: what it makes belongs to the sandbox's user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceServer {
    /// As a path inside.
    pub program: PathBuf,
    /// Without its name, and without `--fd=NUMBER`, by which it is told of the socket that it is to accept one connection from.
    pub arguments: Vec<OsString>,
    /// As a path inside, where it is mounted.
    pub directory: PathBuf,
    /// What it has until it has confined itself.
    pub capabilities: Vec<Capability>,
}

/// What the server of a virtual machine's files is given.
#[derive(Debug)]
pub struct ServerPlace {
    pub listener: OwnedFd,
    pub shares: ShareNews,
    /// No path leads it to a file: what it serves comes as descriptors.
    pub root: EmptyRoot,
}

/// How a server of files hears what it is to serve.
#[derive(Debug)]
pub struct ShareNews(OwnedFd);

/// What it hears.
#[derive(Debug)]
pub enum ShareChange {
    /// Show this: the root of a mount that is attached nowhere; `None` when this process had no room for its descriptor.
    Share { number: u32, read_only: bool, tree: Option<OwnedFd> },
    /// Show it no more.
    Unshare { number: u32 },
}

impl ShareNews {
    pub(crate) fn new(socket: OwnedFd) -> ShareNews {
        ShareNews(socket)
    }

    /// Waits for the next. What is nothing of the kind is `None`.
    ///
    /// # Errors
    /// When pid 1 is gone.
    pub fn next(&self) -> io::Result<Option<ShareChange>> {
        let (message, fds) = wire::receive_what_fits(&self.0)?.ok_or(io::ErrorKind::ConnectionReset)?;
        if let Message::Share { number, read_only } = message {
            return Ok(Some(ShareChange::Share { number, read_only, tree: fds.and_then(|mut fds| fds.pop()) }));
        }
        let Message::Unshare { number } = message else { return Ok(None) };
        Ok(Some(ShareChange::Unshare { number }))
    }

    /// Says what has come of it.
    pub fn answer(&self, number: u32, result: Result<(), String>) {
        let message = Message::Shared { number, why: result.err().unwrap_or_default() };
        // A pid 1 that is gone takes this process with it.
        let _gone = wire::send(&self.0, &message, &[]);
    }
}

impl AsFd for ShareNews {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What a monitor of a machine that stays is asked for.
#[derive(Debug)]
pub enum Request {
    /// Serve whoever has the other end.
    Caller(OwnedFd),
    /// Have the guest mount a share.
    Attach { number: u32, read_only: bool, target: PathBuf },
    /// Have the guest unmount it.
    Detach { number: u32, target: PathBuf },
}

/// How a monitor reaches its pid 1, and what it was given.
#[derive(Debug)]
pub struct Post {
    init: OwnedFd,
    link: Option<OwnedFd>,
    devices: Vec<OwnedFd>,
}

impl Post {
    pub(crate) fn new(init: OwnedFd, link: Option<OwnedFd>, devices: Vec<OwnedFd>) -> Post {
        Post { init, link, devices }
    }

    pub(crate) fn fds(&self) -> impl Iterator<Item = &OwnedFd> {
        std::iter::once(&self.init).chain(&self.link).chain(&self.devices)
    }

    /// Connected sockets of its [`device_servers`](Monitor::device_servers), in their order. Once.
    pub fn take_devices(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.devices)
    }

    /// The guest's end of the link: the descriptor of a TAP device. In a run in a virtual machine that stays, the way to its
    /// monitor. Once, and only where there is one.
    pub fn take_link(&mut self) -> Option<OwnedFd> {
        self.link.take()
    }

    /// Says that a program can be started, and waits until it is to be. `false`: it is not to be any more.
    #[must_use]
    pub fn booted(&self) -> bool {
        if wire::send(&self.init, &Message::Booted, &[]).is_err() {
            return false;
        }
        matches!(wire::receive(self.init.as_fd(), None, None), Ok(Received::Message(Message::Go, _)))
    }

    /// Readable when [`Post::next_request`] has something to say.
    #[must_use]
    pub fn requests(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }

    /// What is wanted, once [`Post::requests`] is readable.
    ///
    /// # Errors
    /// When pid 1 is gone.
    pub fn next_request(&self) -> io::Result<Option<Request>> {
        let path = |bytes| PathBuf::from(OsString::from_vec(bytes));
        match wire::receive_ready(&self.init)? {
            Received::Message(Message::Caller, mut fds) => Ok(fds.pop().map(Request::Caller)),
            Received::Message(Message::Attach { number, read_only, target }, _) => {
                Ok(Some(Request::Attach { number, read_only, target: path(target) }))
            }
            Received::Message(Message::Detach { number, target }, _) => {
                Ok(Some(Request::Detach { number, target: path(target) }))
            }
            Received::Message(..) => Ok(None),
            Received::Closed | Received::Orphaned | Received::Late => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// Says that the program runs.
    pub fn started(&self) {
        self.say(&Message::Started);
    }

    /// Says what has come of mounting or unmounting a share in the guest.
    pub fn attached(&self, number: u32, result: Result<(), String>) {
        self.say(&Message::Attached { number, why: result.err().unwrap_or_default() });
    }

    /// Says that the program could not be executed, with the number of the error.
    pub fn not_executed(&self, errno: i32) {
        self.say(&Message::NotExecuted { errno });
    }

    /// Says that while the program ran nothing was left of what it may write over its root.
    pub fn full(&self, what: DiskFull) {
        self.say(&Message::DiskFull(what));
    }

    /// Says that there is no virtual machine, or none any more, and why: a sentence without a full stop.
    pub fn lost(&self, why: &str) {
        self.say(&Message::Lost { why: why.to_owned() });
    }

    pub(crate) fn failed(&self, fault: Fault) {
        self.say(&Message::Failed(fault));
    }

    fn say(&self, message: &Message) {
        // A pid 1 that is gone takes this process with it.
        let _gone = wire::send(&self.init, message, &[]);
    }
}
