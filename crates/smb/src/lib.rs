//! An SMB 3 server that shows folders of the host to a guest, on a stream of bytes.
//!
//! [`Server`] has the shares and the password, [`Connection`] handles the messages of one client, [`serve`](serve()) moves bytes between a stream and
//! a connection, in a process that [`confine`](confine()) has confined. `docs/design/0010-smb.md` has the whole of it; begin with `connection.rs` here.

mod auth;
mod confine;
mod connection;
mod crypto;
mod name;
mod pool;
mod serve;
mod share;
mod status;
pub mod wire;
mod xsym;

use std::time::{SystemTime, UNIX_EPOCH};

pub use auth::Password;
pub use confine::{ConfineError, Confined, confine};
pub use connection::{Connection, Ended, MAX_IO, MAX_MESSAGE, RETRY};
pub use pool::{Door, Pool, PoolError, serve_listener};
pub use serve::{ServeError, serve};
pub use share::{MOST_SHARES, ShareAccess, ShareError, Shares};
pub use status::Status;

use share::{Facts, FileTime};

/// What all connections of a guest have in common.
#[derive(Debug)]
pub struct Server {
    pub shares: Shares,
    password: Password,
    owner: Owner,
    guid: [u8; 16],
}

impl Server {
    /// A server without a share.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new(password: Password, owner: Owner) -> Result<Server, getrandom::Error> {
        let mut guid = [0; 16];
        getrandom::fill(&mut guid)?;
        Ok(Server { shares: Shares::default(), password, owner, guid })
    }

    fn random<const N: usize>(&self) -> Result<[u8; N], Status> {
        let mut bytes = [0; N];
        getrandom::fill(&mut bytes).map_err(|_| Status::INSUFFICIENT_RESOURCES)?;
        Ok(bytes)
    }

    fn now(&self) -> FileTime {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        FileTime::from_unix(i64::try_from(now.as_secs()).unwrap_or(0), now.subsec_nanos())
    }
}

/// Who a guest is told that files belong to: what is the user's who runs the server is this user's in the guest, and what is anybody
/// else's is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    guest: (u32, u32),
    host: (u32, u32),
}

/// The overflow ids of Linux.
const NOBODY: u32 = 65_534;

impl Owner {
    /// By the ids that they have in the guest.
    #[must_use]
    pub fn new(uid: u32, gid: u32) -> Owner {
        let host = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Owner { guest: (uid, gid), host }
    }

    fn of(self, facts: &Facts) -> (u32, u32) {
        let id = |found: u32, host: u32, guest: u32| if found == host { guest } else { NOBODY };
        (id(facts.uid, self.host.0, self.guest.0), id(facts.gid, self.host.1, self.guest.1))
    }
}
