//! The guest's directories, over its network: who serves them, and how the guest mounts them.
//!
//! One process beside the monitor serves them all, with the server of `cofferdam_smb`. It accepts connections on a listener of the
//! gateway's namespace that the guest alone can reach (`cofferdam_gateway`), at an address that is nobody's otherwise; no port of the
//! host leads to it. It has the directories, as the sandbox sees them, and nothing else: a guest that took it over would have what it
//! has been shown.

use std::net::SocketAddrV4;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;

use cofferdam_backend_ns::Post;
use cofferdam_guest_protocol::{Mount, MountKind};
use cofferdam_smb::{Owner, Password, Server, ShareAccess, serve_listener};
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
    pub(crate) shares: Vec<Share>,
}

impl Files {
    /// Serves them for as long as this process lives. Comes back only when it cannot, with the reason.
    pub(crate) fn serve(&self, listener: OwnedFd, post: Post) -> u8 {
        let mut post = Some(post);
        let why = match self.prepare() {
            Ok((server, clients)) => match serve_listener(server, listener, clients, || drop(post.take())) {
                Ok(never) => match never {},
                Err(error) => chain(&error),
            },
            Err(why) => why,
        };
        if let Some(post) = post {
            post.lost(&format!("the guest's directories cannot be served: {why}"));
        }
        1
    }

    fn prepare(&self) -> Result<(Server, NonZeroUsize), String> {
        process::rename("cofferdam-files").map_err(|error| format!("its name in lists of processes: {error}"))?;
        // A client that is gone must not be the end of the others.
        process::ignore(Signal::PIPE).map_err(|error| format!("signals: {error}"))?;
        // Each file that is open in the guest is open here. What the system does not give, clients are told when it is used up.
        let _most = process::raise_descriptor_limit();
        let owner = Owner::new(self.owner, self.owner);
        let server = Server::new(self.password.clone(), owner)
            .map_err(|error| format!("there are no random numbers: {error}"))?;
        for Share { tag, path, access } in &self.shares {
            let access = match access {
                Access::Read => ShareAccess::ReadOnly,
                Access::Write => ShareAccess::ReadWrite,
            };
            server.shares.add(tag, path, access).map_err(|error| chain(&error))?;
        }
        let clients = self.shares.len().saturating_add(MORE_CLIENTS);
        Ok((server, NonZeroUsize::new(clients).unwrap_or(NonZeroUsize::MIN)))
    }

    /// How a guest mounts one of them.
    pub(crate) fn mount(&self, share: &Share, target: &[u8]) -> Mount {
        Mount {
            kind: MountKind::Cifs,
            source: format!("//{}/{}", self.address.ip(), share.tag).into_bytes(),
            target: target.to_vec(),
            options: self.options().into_bytes(),
            read_only: share.access == Access::Read,
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
