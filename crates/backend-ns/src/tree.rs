//! Directories of the host as mounts that are attached nowhere: what a sandbox is shown, and cannot leave.
//!
//! A plain user has no privilege over the host's mounts. A child of the caller's enters the user namespace that the sandbox's own lies
//! in, which is the caller's, copies the mounts of the host there, and takes the directory from among the copies.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use cofferdam_sys::fdpass;
use cofferdam_sys::mount::{self, Attributes};
use cofferdam_sys::ns::{self, Fork, NamespaceKind, Namespaces};
use cofferdam_sys::process;

use crate::wire::{self, Fault, Message, Received, Step as _};

/// Why a directory could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} to show {path}{remedy}", path = path.display())]
pub struct TakeError {
    path: PathBuf,
    step: String,
    remedy: String,
    source: io::Error,
}

/// Takes what is at a path without symbolic links for a sandbox that is there, as it would have been shown from its start: with its
/// owners mapped, where the sandbox is root's. `owner` is the user namespace that the sandbox's own lies in. Also what a person
/// should be told. Must be called while the process has one thread, since it may fork.
///
/// # Errors
/// What the system refused.
pub fn take_tree(
    source: &Path,
    read_only: bool,
    owner: &OwnedFd,
    is_mapped: bool,
) -> Result<(OwnedFd, Option<String>), TakeError> {
    let taken = match is_mapped {
        true => take_mapped(source, read_only, owner),
        false => take_apart(source, read_only, owner).map(|tree| (tree, None)),
    };
    taken.map_err(|fault| {
        let source_error = fault.error();
        TakeError { path: source.to_owned(), step: fault.step, remedy: fault.remedy, source: source_error }
    })
}

/// Takes a tree with the privilege at hand, and shows its owners through the id map of `owner`.
pub(crate) fn take_mapped(source: &Path, read_only: bool, owner: &OwnedFd) -> Result<(OwnedFd, Option<String>), Fault> {
    let attributes = Attributes { read_only, ..Attributes::default() };
    let take = || mount::take_real_tree(source).step(|| format!("take {}", source.display()));
    let tree = take()?;
    let Err(error) = mount::restrict_and_map_tree(tree.as_fd(), attributes, owner.as_fd()) else {
        return Ok((tree, None));
    };
    let tree = take()?;
    mount::restrict_tree(tree.as_fd(), attributes).step(|| format!("restrict the mount of {}", source.display()))?;
    let notice = format!(
        "{} is shown with its owners as they are, so root's files there are a stranger's inside: its file system cannot map ids ({error})",
        source.display()
    );
    Ok((tree, Some(notice)))
}

/// The same without privilege.
fn take_apart(source: &Path, read_only: bool, owner: &OwnedFd) -> Result<OwnedFd, Fault> {
    let (own, other) = fdpass::pair().step(|| "make a socket pair".to_owned())?;
    let child = match ns::fork().step(|| "fork".to_owned())? {
        Fork::Child => process::run_and_exit(|| {
            let sent = match take_inside(source, read_only, owner) {
                Ok(tree) => wire::send(&other, &Message::Trees, &[tree.as_fd()]),
                Err(fault) => wire::send(&other, &Message::Failed(fault), &[]),
            };
            u8::from(sent.is_err())
        }),
        Fork::Parent(child) => child,
    };
    drop(other);
    let received = wire::receive(own.as_fd(), None, None).step(|| "hear from a child".to_owned());
    let _status = crate::run::wait_for(child.pidfd.as_fd());
    match received? {
        Received::Message(Message::Trees, mut fds) if fds.len() == 1 => {
            fds.pop().ok_or_else(|| Fault::new("hear from a child", &io::ErrorKind::InvalidData.into()))
        }
        Received::Message(Message::Failed(fault), _) => Err(fault),
        Received::Message(..) | Received::Closed | Received::Orphaned | Received::Late => {
            Err(Fault::new("hear from a child", &io::ErrorKind::UnexpectedEof.into()))
        }
    }
}

fn take_inside(source: &Path, read_only: bool, owner: &OwnedFd) -> Result<OwnedFd, Fault> {
    ns::enter(owner, NamespaceKind::User).step(|| "enter the sandbox's user namespace".to_owned())?;
    ns::unshare(Namespaces::MOUNT).step(|| "copy the host's mounts".to_owned())?;
    let tree = mount::take_real_tree(source).step(|| format!("take {}", source.display()))?;
    let attributes = Attributes { read_only, ..Attributes::default() };
    mount::restrict_tree(tree.as_fd(), attributes).step(|| format!("restrict the mount of {}", source.display()))?;
    Ok(tree)
}
