//! Between a stream and a connection: messages with four bytes of length before each (MS-SMB2 2.1, Direct TCP).

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::connection::{Connection, Ended, MAX_MESSAGE, RETRY};
use crate::{Confined, Server};

/// How long a client of a listener may take to log on. A guest that is emulated on a busy host takes a second.
const LOGON_TIME: Duration = Duration::from_secs(30);

/// Bytes that a stream has room for when it is ready to be written to. Linux calls one ready with a third of its room free.
const PIECE: usize = 1024;

/// Why a stream is served no longer, other than that it has ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot read from the client")]
    Read { source: io::Error },
    #[error("cannot write to the client")]
    Write { source: io::Error },
    #[error("a message of {length} bytes; the longest that is taken has {MAX_MESSAGE}")]
    TooLong { length: usize },
    #[error("the client has not logged on in time")]
    Late,
    #[error("the client's connection is over")]
    Ended {
        #[source]
        source: Ended,
    },
}

/// Serves one client until its stream ends. Blocks; a client that reads no answers is asked nothing more.
///
/// # Errors
/// The stream broke, or the client said what ends a connection.
pub fn serve(
    server: &Server,
    input: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
    confined: &Confined,
) -> Result<(), ServeError> {
    serve_until(server, (input, output), None, confined)
}

/// As [`serve`], to a client that has found us by itself.
pub(crate) fn serve_client(server: &Server, stream: BorrowedFd<'_>, confined: &Confined) -> Result<(), ServeError> {
    serve_until(server, (stream, stream), Some(Instant::now() + LOGON_TIME), confined)
}

/// Serves a client that logs on before the deadline.
fn serve_until(
    server: &Server,
    (input, output): (BorrowedFd<'_>, BorrowedFd<'_>),
    deadline: Option<Instant>,
    _confined: &Confined,
) -> Result<(), ServeError> {
    let mut connection = Connection::new(server);
    // Both keep the room of the longest message so far.
    let (mut message, mut out) = (Vec::new(), Vec::new());
    loop {
        out.clear();
        let deadline = deadline.filter(|_| !connection.is_logged_on());
        if !wait(input, connection.is_waiting())? {
            connection.handle_timeout(&mut out);
            send(output, &out, deadline)?;
            continue;
        }
        let mut head = [0; 4];
        if !receive(input, &mut head, deadline)? {
            return Ok(());
        }
        let length = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(ServeError::TooLong { length });
        }
        message.resize(length, 0);
        if !receive(input, &mut message, deadline)? {
            return Ok(());
        }
        let result = connection.handle_message(&message, &mut out);
        send(output, &out, deadline)?;
        result.map_err(|source| ServeError::Ended { source })?;
    }
}

/// Waits for the client; `false` when it is time to try again what waits.
fn wait(input: BorrowedFd<'_>, is_waiting: bool) -> Result<bool, ServeError> {
    if !is_waiting {
        return Ok(true);
    }
    let timeout = Timespec::try_from(RETRY).unwrap_or_default();
    match rustix::event::poll(&mut [PollFd::from_borrowed_fd(input, PollFlags::IN)], Some(&timeout)) {
        Ok(0) | Err(Errno::INTR) => Ok(false),
        Ok(_) => Ok(true),
        Err(error) => Err(ServeError::Read { source: error.into() }),
    }
}

/// Fills `room`; `false` when the stream has ended before.
fn receive(input: BorrowedFd<'_>, mut room: &mut [u8], deadline: Option<Instant>) -> Result<bool, ServeError> {
    while !room.is_empty() {
        if !in_time(input, PollFlags::IN, deadline).map_err(|source| ServeError::Read { source })? {
            return Err(ServeError::Late);
        }
        match rustix::io::read(input, &mut *room) {
            Ok(0) => return Ok(false),
            Ok(read) => room = room.get_mut(read..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => ready(input, PollFlags::IN).map_err(|source| ServeError::Read { source })?,
            // The other end is gone with something that it had not read.
            Err(Errno::CONNRESET) => return Ok(false),
            Err(error) => return Err(ServeError::Read { source: error.into() }),
        }
    }
    Ok(true)
}

fn send(output: BorrowedFd<'_>, mut bytes: &[u8], deadline: Option<Instant>) -> Result<(), ServeError> {
    while !bytes.is_empty() {
        if !in_time(output, PollFlags::OUT, deadline).map_err(|source| ServeError::Write { source })? {
            return Err(ServeError::Late);
        }
        // A stream that is ready to be written to has room for that much, and does not block.
        let most = if deadline.is_some() { PIECE.min(bytes.len()) } else { bytes.len() };
        match rustix::io::write(output, bytes.get(..most).unwrap_or(bytes)) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => ready(output, PollFlags::OUT).map_err(|source| ServeError::Write { source })?,
            Err(error) => return Err(ServeError::Write { source: error.into() }),
        }
    }
    Ok(())
}

/// Waits until the stream is ready; `false` when the time was up before. Without a deadline nothing is waited for here.
fn in_time(stream: BorrowedFd<'_>, events: PollFlags, deadline: Option<Instant>) -> io::Result<bool> {
    let Some(deadline) = deadline else { return Ok(true) };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Whoever always has something to say does not stay for ever either.
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match rustix::event::poll(&mut [PollFd::from_borrowed_fd(stream, events)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits on a stream that was handed over without blocking.
fn ready(stream: BorrowedFd<'_>, events: PollFlags) -> io::Result<()> {
    match rustix::event::poll(&mut [PollFd::from_borrowed_fd(stream, events)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::{Owner, Password};

    /// Serves a client that sends these bytes and nothing more, and says what it got.
    fn served(bytes: &[u8]) -> (Result<(), ServeError>, Vec<u8>) {
        let server = Server::new(Password::new("secret").unwrap(), Owner::new(0, 0)).unwrap();
        let (mut client, stream) = UnixStream::pair().unwrap();
        client.write_all(bytes).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let result = serve(&server, stream.as_fd(), stream.as_fd(), &Confined::not_at_all());
        drop(stream);
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        (result, got)
    }

    #[test]
    fn time_is_up_for_who_always_has_something_to_say() {
        let server = Server::new(Password::new("secret").unwrap(), Owner::new(0, 0)).unwrap();
        let (mut client, stream) = UnixStream::pair().unwrap();
        client.write_all(&[0, 0, 0, 80, 0xfe, b'S']).unwrap();
        let ends = (stream.as_fd(), stream.as_fd());
        let result = serve_until(&server, ends, Some(Instant::now()), &Confined::not_at_all());
        assert!(matches!(result, Err(ServeError::Late)), "{result:?}");
        // Nor for who does not read.
        while rustix::net::send(&stream, &[0; 4096], rustix::net::SendFlags::DONTWAIT).is_ok() {}
        let result = send(stream.as_fd(), &[0; 4096], Some(Instant::now() + Duration::from_millis(20)));
        assert!(matches!(result, Err(ServeError::Late)), "{result:?}");
    }

    #[test]
    fn a_stream_may_end_anywhere() {
        for bytes in [&b""[..], &[0, 0], &[0, 0, 0, 80], &[0, 0, 0, 80, 0xfe, b'S']] {
            assert!(matches!(served(bytes), (Ok(()), got) if got.is_empty()), "{bytes:?}");
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_not_waited_for() {
        let longest = u32::try_from(MAX_MESSAGE).unwrap();
        let (result, got) = served(&(longest + 1).to_be_bytes());
        assert!(matches!(result, Err(ServeError::TooLong { length }) if length == MAX_MESSAGE + 1));
        assert!(got.is_empty());
    }

    #[test]
    fn what_is_no_request_ends_the_stream() {
        let (result, got) = served(&[0, 0, 0, 4, 1, 2, 3, 4]);
        assert!(matches!(result, Err(ServeError::Ended { source: Ended::NoRequest })), "{result:?}");
        assert!(got.is_empty());
    }
}
