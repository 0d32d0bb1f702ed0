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
//!
//! Its pid 1 passes on what it says and hears. From the supervisor's point of view it is a program: signals come as signals, its
//! standard streams are the caller's or a terminal's, and its exit status is the run's.

use std::ffi::OsString;
use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use cofferdam_sys::confine::Capability;

use crate::DiskFull;
use crate::wire::{self, Fault, Message, Received};

/// What runs in the place of a program, confined as one.
pub trait Monitor: Debug {
    /// Runs to the end of the program in the virtual machine, and returns its exit status. It is the only thread of a process
    /// whose descriptors are the standard streams and those in `post`.
    fn run(&self, post: Post) -> u8;

    /// Serves the guest's files to whoever connects to `listener`, in a process of its own beside the monitor's, and for as long as
    /// the sandbox is there. It has no capability, no standard streams and no other descriptor; what more it gives up before it
    /// accepts the first connection is its own to do, and then `post` is to be dropped, which is the monitor's as well.
    /// Only the monitor of a machine that has such files is asked.
    fn serve_files(&self, _listener: OwnedFd, _post: Post) -> u8 {
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

    /// Readable when [`Post::next_caller`] has something to say.
    #[must_use]
    pub fn callers(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }

    /// A socket of somebody who wants something done in the guest, once [`Post::callers`] is readable.
    ///
    /// # Errors
    /// When pid 1 is gone.
    pub fn next_caller(&self) -> io::Result<Option<OwnedFd>> {
        match wire::receive_ready(&self.init)? {
            Received::Message(Message::Caller, mut fds) => Ok(fds.pop()),
            Received::Message(..) => Ok(None),
            Received::Closed | Received::Orphaned | Received::Late => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// Says that the program runs.
    pub fn started(&self) {
        self.say(&Message::Started);
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
