//! What a sandbox that stays is entered by.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cofferdam_sys::ns::{self, NamespaceKind};
use rustix::process::Pid;

use crate::identity::Identity;

/// How many descriptors [`Handles`] are made of.
pub const HANDLE_COUNT: usize = 5;

/// The namespaces of a sandbox that stays, and who it is on the host.
///
/// Whoever holds them and owns the outermost user namespace can run programs inside. They never reach a program.
#[derive(Debug)]
pub struct Handles {
    pub(crate) identity: Identity,
    /// The user namespace that the gateway's namespaces belong to.
    pub(crate) owner: OwnedFd,
    /// The sandbox's, below it.
    pub(crate) user: OwnedFd,
    pub(crate) pid: OwnedFd,
    pub(crate) mount: OwnedFd,
    pub(crate) net: OwnedFd,
    pub(crate) cgroup: Option<PathBuf>,
}

impl Handles {
    /// Puts together what [`Handles::fds`], [`Handles::identity`] and [`Handles::cgroup`] took apart.
    ///
    /// # Errors
    /// `InvalidInput` when there are more or fewer than [`HANDLE_COUNT`] descriptors.
    pub fn from_parts(fds: Vec<OwnedFd>, identity: Option<u32>, cgroup: Option<PathBuf>) -> io::Result<Handles> {
        let identity = match identity {
            Some(id) => Identity::Unused(id),
            None => Identity::caller(),
        };
        Handles::new(fds, identity, cgroup)
    }

    pub(crate) fn new(fds: Vec<OwnedFd>, identity: Identity, cgroup: Option<PathBuf>) -> io::Result<Handles> {
        let Ok([owner, user, pid, mount, net]) = <[OwnedFd; HANDLE_COUNT]>::try_from(fds) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Ok(Handles { identity, owner, user, pid, mount, net, cgroup })
    }

    /// The same once more.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<Handles> {
        let fds = self.fds().iter().map(BorrowedFd::try_clone_to_owned).collect::<io::Result<_>>()?;
        Handles::new(fds, self.identity, self.cgroup.clone())
    }

    /// The descriptors, to be handed to another process of the same user.
    #[must_use]
    pub fn fds(&self) -> [BorrowedFd<'_>; HANDLE_COUNT] {
        [&self.owner, &self.user, &self.pid, &self.mount, &self.net].map(AsFd::as_fd)
    }

    /// The user id that a sandbox of root has on the host; `None` for the caller's own.
    #[must_use]
    pub fn identity(&self) -> Option<u32> {
        match self.identity {
            Identity::Unused(id) => Some(id),
            Identity::Own { .. } | Identity::Root => None,
        }
    }

    /// The cgroup of the sandbox, if it has one.
    #[must_use]
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }
}

/// Whose network a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attachment {
    /// The sandbox's.
    Session,
    /// One of its own: behind a gateway of its own, or nothing but a loopback when the specification has no network.
    Own,
}

/// Opens the namespaces of a process that is in all of the sandbox's, in the order of [`Handles::fds`]. The first is the
/// caller's own.
pub(crate) fn open_doors(init: Pid) -> io::Result<Vec<OwnedFd>> {
    let mut doors = vec![ns::open(None, NamespaceKind::User)?];
    for kind in [NamespaceKind::User, NamespaceKind::Pid, NamespaceKind::Mount, NamespaceKind::Net] {
        doors.push(ns::open(Some(init), kind)?);
    }
    Ok(doors)
}
