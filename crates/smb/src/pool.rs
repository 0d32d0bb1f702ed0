//! One process for every connection of a guest: threads that wait for one, serve it to its end, and wait for the next.
//!
//! All threads are there, and confined, before the first connection is accepted; no more can be made. So many clients are served at a
//! time, and the others wait in the listener's queue. One that does not log on in time makes room for them. A panic ends one
//! connection.

use std::convert::Infallible;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;

use rustix::event::Timespec;
use rustix::net::SocketFlags;

use crate::confine::{ConfineError, confine_listener};
use crate::serve::serve_client;
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
}

/// Serves whoever connects to `listener`, so many `clients` at a time, for as long as the process lives. It has to be the only thread
/// of the process; `ready` is called once there are others, all of them are confined, and before the first connection is accepted.
///
/// # Errors
/// What could not be made or confined. The threads that there are wait then for what never comes: end the process.
pub fn serve_listener(
    server: Server,
    listener: OwnedFd,
    clients: NonZeroUsize,
    ready: impl FnOnce(),
) -> Result<Infallible, PoolError> {
    // Of those that wait in accept(2) one is woken, of those that wait in poll(2) all.
    rustix::io::ioctl_fionbio(&listener, false).map_err(|source| PoolError::Listener { source: source.into() })?;
    let (server, listener) = (Arc::new(server), Arc::new(listener));
    let all = Arc::new(Barrier::new(clients.get()));
    let (sender, confined) = mpsc::channel();
    for _ in 1..clients.get() {
        let (server, listener, all, sender) =
            (Arc::clone(&server), Arc::clone(&listener), Arc::clone(&all), sender.clone());
        let work = move || match confine_listener(&server.shares) {
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
    let own = confine_listener(&server.shares)?;
    for result in confined {
        result?;
    }
    ready();
    all.wait();
    work(&server, &listener, &own)
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

    use super::*;
    use crate::{Owner, Password};

    /// Serves at most two clients at a time, in threads of this process that stay until its end.
    fn pool() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::new(Password::new("secret").unwrap(), Owner::new(0, 0)).unwrap();
        let (sender, ready) = mpsc::channel();
        thread::spawn(move || {
            let two = NonZeroUsize::new(2).unwrap();
            let error = serve_listener(server, listener.into(), two, || sender.send(()).unwrap()).unwrap_err();
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
