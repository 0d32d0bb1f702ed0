//! Between the streams of the monitor and those of the program in the guest.
//!
//! What the guest sends is kept until it is written, and only then may it send more; so the protocol's window bounds what is
//! kept. Descriptors are somebody else's as well and stay blocking: nothing is written before there is room for it.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

/// What is written at once: a pipe that has room at all has room for this much (`PIPE_BUF`, pipe(7)).
const AT_ONCE: usize = 4096;

/// What is read at once.
pub(crate) const CHUNK: usize = 32 * 1024;

/// A stream of the guest's on its way out.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    pending: VecDeque<u8>,
    /// Nobody reads it any more: what comes is dropped.
    is_closed: bool,
}

/// What came of writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written {
    /// So many bytes are out of the way.
    Bytes(usize),
    /// The same, and it is noticed here that nobody reads them.
    Closed(usize),
}

impl Outgoing {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend(bytes);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether it can be written without a reader.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Writes some of it to `to`, which has room.
    pub(crate) fn write(&mut self, to: BorrowedFd<'_>) -> Written {
        if self.is_closed {
            return Written::Bytes(self.drop_all());
        }
        let (front, _) = self.pending.as_slices();
        let now = front.get(..front.len().min(AT_ONCE)).unwrap_or_default();
        match rustix::io::write(to, now) {
            Ok(len) => {
                self.pending.drain(..len.min(self.pending.len()));
                Written::Bytes(len)
            }
            Err(Errno::AGAIN | Errno::INTR) => Written::Bytes(0),
            Err(_) => {
                self.is_closed = true;
                Written::Closed(self.drop_all())
            }
        }
    }

    fn drop_all(&mut self) -> usize {
        let len = self.pending.len();
        self.pending.clear();
        len
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn writes_everything_in_order() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut outgoing = Outgoing::default();
        let sent: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
        outgoing.push(&sent);
        let mut received = Vec::new();
        while !outgoing.is_empty() {
            let Written::Bytes(len) = outgoing.write(writer.as_fd()) else { panic!("there is a reader") };
            let mut buffer = vec![0; len];
            rustix::io::read(&reader, &mut buffer).unwrap();
            received.extend(buffer);
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn what_nobody_reads_is_out_of_the_way_at_once() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let mut outgoing = Outgoing::default();
        outgoing.push(&[0; 5000]);
        assert_eq!(outgoing.write(writer.as_fd()), Written::Closed(5000));
        outgoing.push(b"more");
        assert_eq!(outgoing.write(writer.as_fd()), Written::Bytes(4));
        assert!(outgoing.is_empty() && outgoing.is_closed());
    }
}
