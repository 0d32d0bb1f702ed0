//! The guest's directories, over its network: who serves them, and how the guest mounts them.
//!
//! One process beside the monitor serves them all, with the server of `cofferdam_smb`. It accepts connections on a listener of the
//! gateway's namespace that the guest alone can reach (`cofferdam_gateway`), at an address that is nobody's otherwise; no port of the
//! host leads to it. It has the directories, as descriptors that it is sent, and nothing else: a guest that took it over would have
//! what it has been shown. Those of the start and those that come later come by the same way; a share is named by its number.

use std::io;
use std::net::SocketAddrV4;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use cofferdam_backend_ns::{Post, ServerPlace, ShareChange, ShareNews};
use cofferdam_guest_protocol::{Mount, MountKind};
use cofferdam_smb::{Door, MOST_SHARES, Owner, Password, Pool, Server, ShareAccess, Shares, serve_listener};
use cofferdam_sys::process;
use rustix::process::Signal;

use crate::arguments::{Access, Share};

/// Connections at a time beside one for each mount: while a client connects anew its former connection is still there.
const MORE_CLIENTS: usize = 4;

/// What is served, and to whom.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) address: SocketAddrV4,
    pub(crate) password: Password,
    /// To whom in the guest the files of the sandbox's user belong, and his group.
    pub(crate) owner: u32,
    /// Those of the start, whose numbers are their places in this list.
    pub(crate) shares: Vec<Share>,
    /// Whether others may come.
    pub(crate) grows: bool,
}

impl Files {
    /// Serves them for as long as this process lives. Comes back only when it cannot, with the reason.
    pub(crate) fn serve(&self, place: ServerPlace, post: Post) -> u8 {
        let ServerPlace { listener, shares, root } = place;
        let (news, mut post) = (News(shares), Some(post));
        let why = match self.prepare(&news) {
            Ok((server, clients)) => {
                let pool = Pool { server, listener, clients, root };
                match serve_listener(pool, &news, || drop(post.take())) {
                    Ok(never) => match never {},
                    Err(error) => chain(&error),
                }
            }
            Err(why) => why,
        };
        if let Some(post) = post {
            post.lost(&format!("the guest's directories cannot be served: {why}"));
        }
        1
    }

    /// What is to be shown from the start.
    pub(crate) fn at_start(&self) -> Vec<(PathBuf, bool)> {
        self.shares.iter().map(|share| (share.path.clone(), share.access == Access::Read)).collect()
    }

    fn prepare(&self, news: &News) -> Result<(Server, NonZeroUsize), String> {
        // A client that is gone must not be the end of the others.
        process::ignore(Signal::PIPE).map_err(|error| format!("signals: {error}"))?;
        // Each file that is open in the guest is open here. What the system does not give, clients are told when it is used up.
        let _most = process::raise_descriptor_limit();
        let owner = Owner::new(self.owner, self.owner);
        let server = Server::new(self.password.clone(), owner)
            .map_err(|error| format!("there are no random numbers: {error}"))?;
        for _ in &self.shares {
            news.next(&server.shares).map_err(|error| format!("its directories: {error}"))?.1?;
        }
        let most = if self.grows { MOST_SHARES } else { self.shares.len() };
        let clients = most.saturating_add(MORE_CLIENTS);
        Ok((server, NonZeroUsize::new(clients).unwrap_or(NonZeroUsize::MIN)))
    }

    /// How a guest mounts the share of a number.
    pub(crate) fn mount(&self, number: u32, read_only: bool, target: &[u8]) -> Mount {
        Mount {
            kind: MountKind::Cifs,
            source: format!("//{}/{}", self.address.ip(), share_name(number)).into_bytes(),
            target: target.to_vec(),
            options: self.options().into_bytes(),
            read_only,
        }
    }

    /// Of mount.cifs(8): the extensions of POSIX, modes that can be changed, symbolic links of every kernel, a connection for each
    /// mount. What the server does not answer is waited for, since it is there as long as the guest is.
    ///
    /// With `cache=loose` pages are kept, and dropped when the file is found changed, which is looked at whenever it is opened. Kernels
    /// before 6.5 that keep none, as with `cache=strict` and a server that grants no leases, are no choice: what sendfile(2) and
    /// copy_file_range(2) read there at the end of a file has zeros up to the size that was asked for.
    fn options(&self) -> String {
        format!(
            "vers=3.1.1,ip={},port={},username=any,password={},uid={owner},gid={owner},posix,modefromsid,mfsymlinks,nosharesock,hard,cache=loose",
            self.address.ip(),
            self.address.port(),
            self.password.text(),
            owner = self.owner,
        )
    }
}

/// What a guest knows a share by. No number is given twice, so a name never comes to mean another directory.
fn share_name(number: u32) -> String {
    format!("share{number}")
}

/// What the process hears of shares that come and go.
struct News(ShareNews);

impl News {
    /// Waits for the next change and makes it: of which share, and what has come of it.
    fn next(&self, shares: &Shares) -> io::Result<(u32, Result<(), String>)> {
        loop {
            return Ok(match self.0.next()? {
                Some(ShareChange::Share { number, read_only, tree }) => {
                    let access = if read_only { ShareAccess::ReadOnly } else { ShareAccess::ReadWrite };
                    let tree =
                        tree.ok_or_else(|| "the guest has as many files open as may be; have it close some".to_owned());
                    let add =
                        |tree| shares.add_opened(&share_name(number), tree, access).map_err(|error| chain(&error));
                    (number, tree.and_then(add))
                }
                Some(ShareChange::Unshare { number }) => {
                    shares.remove(&share_name(number));
                    (number, Ok(()))
                }
                None => continue,
            });
        }
    }
}

impl Door for News {
    fn socket(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn attend(&self, shares: &Shares) -> io::Result<()> {
        let (number, result) = self.next(shares)?;
        self.0.answer(number, result);
        Ok(())
    }
}

/// An error with its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
