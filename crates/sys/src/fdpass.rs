//! Handing descriptors from process to process over a Unix socket (`SCM_RIGHTS`, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The most descriptors that one message carries here; Linux allows 253 (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 16;

/// A connected pair of `SOCK_SEQPACKET` sockets: message borders kept, close-on-exec.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message with up to [`MAX_FDS`] descriptors. The data may not be empty.
///
/// # Errors
/// `InvalidInput` for empty data or too many descriptors, otherwise those of sendmsg(2).
pub fn send_fds(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send(socket, data, fds, SendFlags::NOSIGNAL)
}

/// As [`send_fds`], for a socket that may have no room: then nothing is sent.
///
/// # Errors
/// As [`send_fds`], and `WouldBlock`.
pub fn send_fds_now(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    send(socket, data, fds, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn send(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
    if data.is_empty() || fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(&socket, &[IoSlice::new(data)], &mut control, flags))?;
    Ok(())
}

/// The process that is, or was when it connected or listened, at the other end of a connected socket.
///
/// # Errors
/// Those of getsockopt(2): `ENOPROTOOPT` before Linux 6.5, `ESRCH` or `EINVAL` for a process that is gone.
pub fn peer_pidfd(socket: impl AsFd) -> io::Result<OwnedFd> {
    // SO_PEERPIDFD, asm-generic/socket.h.
    const PEER_PIDFD: libc::c_int = 77;
    let mut pidfd: libc::c_int = -1;
    let mut len = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `len` bytes to `pidfd`, both of which live through the call. The socket is
    // borrowed, so it stays open.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            PEER_PIDFD,
            (&raw mut pidfd).cast(),
            &raw mut len,
        )
    };
    if rc != 0 || pidfd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has made a new descriptor, which nobody else owns; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

/// Receives one message and the descriptors that came with it, close-on-exec. A length of 0 is the end of the stream.
///
/// # Errors
/// `InvalidData` when data or descriptors were cut off, otherwise those of recvmsg(2).
pub fn recv_fds(socket: impl AsFd, data: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let (len, fds) = recv(socket, data)?;
    Ok((len, fds.ok_or(io::ErrorKind::InvalidData)?))
}

/// As [`recv_fds`]; `None` in the place of descriptors when some were cut off, as they are where this process has no room for them.
///
/// # Errors
/// `InvalidData` when data was cut off, otherwise those of recvmsg(2).
pub fn recv(socket: impl AsFd, data: &mut [u8]) -> io::Result<(usize, Option<Vec<OwnedFd>>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut slices = [IoSliceMut::new(data)];
        match rustix::net::recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(list) = item {
            fds.extend(list);
        }
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((message.bytes, (!message.flags.contains(ReturnFlags::CTRUNC)).then_some(fds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_a_descriptor_with_its_message() {
        let (a, b) = pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send_fds(&a, b"pipe", &[writer.as_fd()]).unwrap();
        drop(writer);
        let mut buffer = [0; 16];
        let (len, fds) = recv_fds(&b, &mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"pipe");
        rustix::io::write(&fds[0], b"x").unwrap();
        assert_eq!(rustix::io::read(&reader, &mut buffer).unwrap(), 1);
    }

    #[test]
    fn says_when_the_other_end_is_gone() {
        let (a, b) = pair().unwrap();
        drop(a);
        assert_eq!(recv_fds(&b, &mut [0; 4]).unwrap().0, 0);
    }
}
