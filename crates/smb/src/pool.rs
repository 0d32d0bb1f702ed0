//! One process for every connection of a guest: threads that wait for one, serve it to its end, and wait for the next.
//!
//! All threads are there, and confined, before the first connection is accepted; no more can be made. So many clients are served at a
//! time, and the others wait in the listener's queue. One that does not log on in time makes room for them. A panic ends one
//! connection.
//!
//! The first thread serves nobody: it waits at the [`Door`], by which shares come and go.

use std::convert::Infallible;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use cofferdam_sys::mount::EmptyRoot;
use rustix::event::Timespec;
use rustix::net::SocketFlags;

use crate::confine::{ConfineError, confine_door, confine_listener};
use crate::serve::serve_client;
use crate::share::Shares;
use crate::{Confined, Server};

/// The stack of a thread. What a connection reads and writes is on the heap.
const STACK: usize = 512 << 10;

/// How long nothing is accepted when the system has no descriptor or memory for it.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Why a listener is not served.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("cannot set the listener up")]
    Listener { source: io::Error },
    #[error("cannot start a thread")]
    Thread { source: io::Error },
    #[error("cannot confine a thread")]
    Confine {
        #[from]
        source: ConfineError,
    },
    #[error("nobody says any more what is to be served")]
    Door { source: io::Error },
}

/// Where somebody says which shares there are.
pub trait Door {
    /// The socket that is waited at: no other is received from, or sent to.
    fn socket(&self) -> BorrowedFd<'_>;

    /// Waits for one thing to be said, and does it.
    ///
    /// # Errors
    /// When nobody is there to say anything.
    fn attend(&self, shares: &Shares) -> io::Result<()>;
}

/// What is served, and where.
#[derive(Debug)]
pub struct Pool {
    pub server: Server,
    pub listener: OwnedFd,
    /// How many at a time.
    pub clients: NonZeroUsize,
    pub root: EmptyRoot,
}

/// Serves whoever connects, for as long as the process lives. It has to be the only thread of the process; `ready` is called once
/// there are others, all of them are confined, and before the first connection is accepted.
///
/// # Errors
/// What could not be made or confined, and the end of whoever is at the door. The threads that there are wait then for what never
/// comes, or serve on: end the process.
pub fn serve_listener(pool: Pool, door: &impl Door, ready: impl FnOnce()) -> Result<Infallible, PoolError> {
    let Pool { server, listener, clients, root } = pool;
    // Of those that wait in accept(2) one is woken, of those that wait in poll(2) all.
    rustix::io::ioctl_fionbio(&listener, false).map_err(|source| PoolError::Listener { source: source.into() })?;
    let (server, listener, root) = (Arc::new(server), Arc::new(listener), Arc::new(root));
    let all = Arc::new(Barrier::new(clients.get().saturating_add(1)));
    let (sender, confined) = mpsc::channel();
    for _ in 0..clients.get() {
        let (server, listener, root) = (Arc::clone(&server), Arc::clone(&listener), Arc::clone(&root));
        let (all, sender) = (Arc::clone(&all), sender.clone());
        let work = move || match confine_listener(&root) {
            Ok(confined) => {
                // Whoever started this one and does not hear it any more has failed. Its end is heard when all have theirs.
                let _gone = sender.send(Ok(()));
                drop(sender);
                all.wait();
                work(&server, &listener, &confined)
            }
            Err(error) => drop(sender.send(Err(error))),
        };
        let thread = thread::Builder::new().stack_size(STACK).spawn(work);
        thread.map_err(|source| PoolError::Thread { source })?;
    }
    drop(sender);
    confine_door(&root, door.socket())?;
    for result in confined {
        result?;
    }
    ready();
    all.wait();
    loop {
        door.attend(&server.shares).map_err(|source| PoolError::Door { source })?;
    }
}

/// Serves one client after the other.
fn work(server: &Server, listener: &OwnedFd, confined: &Confined) -> ! {
    loop {
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(stream) => {
                let serve = || serve_client(server, stream.as_fd(), confined);
                // How a connection ends is nothing that anybody is told.
                let _ended = panic::catch_unwind(AssertUnwindSafe(serve));
            }
            Err(_) => {
                let _paused = rustix::event::poll(&mut [], Some(&PAUSE));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use cofferdam_sys::fdpass;

    use super::*;
    use crate::{Owner, Password};

    /// Somebody who never says anything, and stays.
    struct Silent(OwnedFd, #[allow(dead_code, reason = "its end would be heard")] OwnedFd);

    impl Silent {
        fn new() -> Silent {
            let (here, there) = fdpass::pair().unwrap();
            Silent(here, there)
        }
    }

    impl Door for Silent {
        fn socket(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn attend(&self, _shares: &Shares) -> io::Result<()> {
            fdpass::recv_fds(&self.0, &mut [0]).map(drop)
        }
    }

    /// Serves at most two clients at a time, in threads of this process that stay until its end.
    fn pool() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(Password::new("secret").unwrap(), Owner::new(0, 0)).unwrap();
        let (sender, ready) = mpsc::channel();
        thread::spawn(move || {
            let clients = NonZeroUsize::new(2).unwrap();
            let pool = Pool { server, listener: listener.into(), clients, root: EmptyRoot::not_at_all() };
            let error = serve_listener(pool, &Silent::new(), || sender.send(()).unwrap()).unwrap_err();
            panic!("{error}");
        });
        ready.recv().unwrap();
        address
    }

    #[test]
    fn a_client_that_ends_makes_room_for_the_next() {
        let address = pool();
        let connect = || TcpStream::connect(address).unwrap();
        let ended = |mut client: TcpStream| client.read_to_end(&mut Vec::new()).unwrap();
        let (mut first, second, mut third) = (connect(), connect(), connect());
        // Nonsense, which would end a connection that is served.
        third.write_all(&[0, 0, 0, 4, 1, 2, 3, 4]).unwrap();
        third.set_nonblocking(true).unwrap();
        assert_eq!(third.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        third.set_nonblocking(false).unwrap();
        first.write_all(&[0, 0, 0, 4, 1, 2, 3, 4]).unwrap();
        assert_eq!(ended(first), 0);
        assert_eq!(ended(third), 0);
        drop(second);
        for _ in 0..8 {
            let mut client = connect();
            client.write_all(&[0, 0, 0, 4, 1, 2, 3, 4]).unwrap();
            assert_eq!(ended(client), 0);
        }
    }
}
