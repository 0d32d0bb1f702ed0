//! What rustix does not offer on sockets: options (`UDP_GRO`, udp(7); path MTU discovery, ip(7)) and the error queue
//! (`IP_RECVERR`; ip(7)), and who is at the other end (unix(7)).

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::process::Pid;

use crate::transparent::set_option;

/// Size of an `int` option value.
const INT: libc::socklen_t = 4;

/// Lets the kernel hand over rows of equal segments at once (`UDP_GRO`).
///
/// # Errors
/// Those of setsockopt(2).
pub fn enable_udp_gro(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Asks for ICMP errors on the socket's error queue, to be taken with [`take_queued_error`].
///
/// # Errors
/// Those of setsockopt(2).
pub fn enable_error_queue(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    let (level, name) = if ipv6 { (libc::SOL_IPV6, libc::IPV6_RECVERR) } else { (libc::SOL_IP, libc::IP_RECVERR) };
    set_option(socket, level, name, 1)
}

/// Has a TCP socket count as writable only when everything that was written to it has been sent (`TCP_NOTSENT_LOWAT`,
/// Documentation/networking/ip-sysctl.rst).
///
/// # Errors
/// Those of setsockopt(2).
pub fn be_writable_when_sent(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_TCP, libc::TCP_NOTSENT_LOWAT, 1)
}

/// Has a TCP socket count as readable only when as many bytes are there (`SO_RCVLOWAT`, socket(7)), or its end, an error, urgent data or
/// no room for more. A read takes what is there all the same. The kernel takes half of the most that a receive buffer may be for more
/// than that, and sees to it that the buffer holds as much.
///
/// # Errors
/// Those of setsockopt(2).
pub fn be_readable_at(socket: impl AsFd, bytes: i32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bytes)
}

/// Has whoever sends descriptors (`SCM_RIGHTS`) to this Unix socket, or to one that it accepts, get `EPERM`.
///
/// # Errors
/// Those of setsockopt(2): `ENOPROTOOPT` before Linux 6.16.
pub fn refuse_descriptors(socket: impl AsFd) -> io::Result<()> {
    // asm-generic/socket.h.
    const SO_PASSRIGHTS: libc::c_int = 83;
    set_option(socket, libc::SOL_SOCKET, SO_PASSRIGHTS, 0)
}

/// One entry of a socket's error queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuedError {
    /// An errno value.
    pub errno: i32,
    /// The next hop's MTU in bytes when `errno` is `EMSGSIZE`, otherwise without meaning.
    pub info: u32,
    /// It came up in a call of this machine, which said so itself (`SO_EE_ORIGIN_LOCAL`), and not in an ICMP message.
    pub is_local: bool,
}

/// Takes one entry off the socket's error queue, if there is one.
#[must_use]
pub fn take_queued_error(socket: impl AsFd) -> Option<QueuedError> {
    let mut data = [0u8; 256];
    let mut control = [0u64; 32];
    let mut slice = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: msghdr holds pointers and integers only; all zeroes is valid.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = mem::size_of_val(&control) as _; // Another type with musl than with glibc.
    // SAFETY: `header` points at `slice` and `control`, both alive for the call, with their true lengths.
    let rc =
        unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if rc < 0 || header.msg_controllen < 24 {
        return None;
    }
    // cmsghdr: length, level and type; then sock_extended_err: u32 errno, u8 origin, type, code, pad, u32 info, u32 data.
    let [_, _, errno_and_origin, info_and_data, ..] = control;
    let [e0, e1, e2, e3, origin, ..] = errno_and_origin.to_ne_bytes();
    let [i0, i1, i2, i3, ..] = info_and_data.to_ne_bytes();
    Some(QueuedError {
        errno: i32::from_ne_bytes([e0, e1, e2, e3]),
        info: u32::from_ne_bytes([i0, i1, i2, i3]),
        is_local: origin == libc::SO_EE_ORIGIN_LOCAL,
    })
}

/// What a socket does with packets that are too big for the path as far as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooBig {
    /// They are cut up; in IPv4 without the DF bit (`IP_PMTUDISC_DONT`).
    Cut,
    /// Sending them is `EMSGSIZE`; in IPv4 every packet has the DF bit (`IP_PMTUDISC_DO`).
    Refuse,
}

/// Sets what happens to packets that are too big for the path (`IP_MTU_DISCOVER`, `IPV6_MTU_DISCOVER`).
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_too_big(socket: impl AsFd, ipv6: bool, then: TooBig) -> io::Result<()> {
    let (level, name, value) = match (ipv6, then) {
        (false, TooBig::Cut) => (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (false, TooBig::Refuse) => (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        (true, TooBig::Cut) => (libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
        (true, TooBig::Refuse) => (libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
    };
    set_option(socket, level, name, value)
}

/// The MTU of the path of a connected socket in bytes, as far as the kernel knows it.
#[must_use]
pub fn path_mtu(socket: impl AsFd, ipv6: bool) -> Option<u32> {
    let (level, name) = if ipv6 { (libc::SOL_IPV6, libc::IPV6_MTU) } else { (libc::SOL_IP, libc::IP_MTU) };
    int(socket.as_fd(), level, name).and_then(|value| u32::try_from(value).ok())
}

/// Who is at the other end of a connection on this machine, or has made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// As this process counts processes; `None` where it has no number for that one, which is in another pid namespace.
    pub pid: Option<Pid>,
    pub uid: u32,
}

/// Who is, or was when it connected or listened, at the other end (`SO_PEERCRED`). rustix has a type for it that cannot hold the
/// number 0, which is what the kernel says of a process that has none here.
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = libc::socklen_t::try_from(size_of::<libc::ucred>()).map_err(io::Error::other)?;
    // SAFETY: value and length are live and of the size that is given; the kernel writes at most that, and any number is one
    // that the fields can hold.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Peer { pid: Pid::from_raw(found.pid), uid: found.uid })
}

fn int(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = INT;
    // SAFETY: value and length are live and of the size that is given; the kernel writes at most that.
    let rc = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    (rc == 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    use super::*;

    fn pair(address: &str) -> (UdpSocket, UdpSocket) {
        let a = UdpSocket::bind(address).unwrap();
        let b = UdpSocket::bind(address).unwrap();
        a.connect(b.local_addr().unwrap()).unwrap();
        b.connect(a.local_addr().unwrap()).unwrap();
        (a, b)
    }

    #[test]
    fn a_listener_that_refuses_descriptors_hands_that_down() {
        let dir = std::env::temp_dir().join(format!("cofferdam-rights-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&dir).unwrap();
        match refuse_descriptors(&listener) {
            Ok(()) => {
                let client = std::os::unix::net::UnixStream::connect(&dir).unwrap();
                let _accepted = listener.accept().unwrap();
                let sent = crate::fdpass::send_fds(&client, b"x", &[listener.as_fd()]);
                assert_eq!(sent.unwrap_err().raw_os_error(), Some(libc::EPERM));
                crate::fdpass::send_fds(&client, b"x", &[]).unwrap();
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT)),
        }
        std::fs::remove_file(&dir).unwrap();
    }

    #[test]
    fn refuses_or_cuts_what_is_too_big() {
        for (address, ipv6, name) in
            [("127.0.0.1:0", false, libc::IP_MTU_DISCOVER), ("[::1]:0", true, libc::IPV6_MTU_DISCOVER)]
        {
            let (a, _b) = pair(address);
            let level = if ipv6 { libc::SOL_IPV6 } else { libc::SOL_IP };
            for (then, value) in [(TooBig::Refuse, libc::IP_PMTUDISC_DO), (TooBig::Cut, libc::IP_PMTUDISC_DONT)] {
                set_too_big(&a, ipv6, then).unwrap();
                assert_eq!(int(a.as_fd(), level, name), Some(value));
            }
        }
    }

    #[test]
    fn tells_about_a_closed_port() {
        for (address, ipv6) in [("127.0.0.1:0", false), ("[::1]:0", true)] {
            let (a, b) = pair(address);
            enable_error_queue(&a, ipv6).unwrap();
            assert_eq!(take_queued_error(&a), None);
            drop(b);
            a.send(b"x").unwrap();
            assert_eq!(take_queued_error(&a).map(|e| e.errno), Some(libc::ECONNREFUSED));
        }
    }

    #[test]
    fn a_peer_that_has_no_number_here_has_none() {
        const INSIDE: &str = "COFFERDAM_TEST_INSIDE";
        if std::env::var_os(INSIDE).is_some() {
            let found = peer(io::stdin()).unwrap();
            assert_eq!(found.pid, None);
            return;
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let found = peer(&ours).unwrap();
        assert_eq!((found.pid, found.uid), (Some(rustix::process::getpid()), rustix::process::getuid().as_raw()));
        // This very test, in a pid namespace in which this process is not.
        let own = std::env::current_exe().unwrap();
        let mut inside = Command::new("unshare");
        inside.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"]).arg(own);
        inside.args(["--exact", "socket::tests::a_peer_that_has_no_number_here_has_none"]).env(INSIDE, "1");
        let output = inside.stdin(OwnedFd::from(theirs)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}{output:?}");
    }
}
