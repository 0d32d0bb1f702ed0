//! What rustix does not offer on sockets: batches of datagrams (`recvmmsg`), UDP segmentation offload in both
//! directions (`UDP_SEGMENT`, `UDP_GRO`; udp(7)), and the error queue (`IP_RECVERR`; ip(7)).

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

/// Datagrams taken by one call of [`RecvBatch::recv`]. A 64-byte flood on the loopback device fills it; more gains nothing
/// measurable.
pub const BATCH: usize = 32;

/// Size of an `int` option value.
const INT: libc::socklen_t = 4;

/// The largest UDP payload, or batch of segments, that the kernel hands over at once.
const MAX_DATAGRAM: usize = 65_535;

/// Control space of one message: one `cmsghdr` with an `int`, aligned.
const CONTROL: usize = 32;

/// Buffers for receiving many datagrams with one system call.
///
/// Memory is reserved for [`BATCH`] datagrams of the largest size, but only touched as far as they arrive.
#[allow(missing_debug_implementations, reason = "buffers only; nothing in it helps a reader")]
pub struct RecvBatch {
    data: Vec<u8>,
    control: Vec<[u64; CONTROL / 8]>,
    headers: Vec<libc::mmsghdr>,
    slices: Vec<libc::iovec>,
    len: usize,
}

impl RecvBatch {
    /// Empty buffers.
    #[must_use]
    pub fn new() -> RecvBatch {
        // SAFETY: iovec is a pair of a pointer and a length; all zeroes is a valid (null) value.
        let slice: libc::iovec = unsafe { mem::zeroed() };
        // SAFETY: mmsghdr holds pointers and integers only; all zeroes is valid.
        let header: libc::mmsghdr = unsafe { mem::zeroed() };
        RecvBatch {
            data: vec![0; BATCH * MAX_DATAGRAM],
            control: vec![[0; CONTROL / 8]; BATCH],
            headers: vec![header; BATCH],
            slices: vec![slice; BATCH],
            len: 0,
        }
    }

    /// Takes what is there, at most [`BATCH`] datagrams, without waiting. Returns how many.
    ///
    /// # Errors
    /// Those of recvmmsg(2): `WouldBlock` when nothing is there, the socket's pending error otherwise.
    pub fn recv(&mut self, socket: impl AsFd) -> io::Result<usize> {
        self.len = 0;
        let buffers = self.data.chunks_exact_mut(MAX_DATAGRAM).zip(self.control.iter_mut());
        for ((header, slice), (data, control)) in self.headers.iter_mut().zip(self.slices.iter_mut()).zip(buffers) {
            *slice = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
            header.msg_len = 0;
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL;
            header.msg_hdr.msg_flags = 0;
        }
        // SAFETY: `headers` holds BATCH entries, each pointing at one iovec and one control buffer that live in `self`,
        // whose lengths are those set above; nothing else refers to them during the call. No timeout is passed.
        let n = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                libc::c_uint::try_from(BATCH).unwrap_or(1),
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        self.len = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        Ok(self.len)
    }

    /// The datagrams of the last [`recv`](RecvBatch::recv): payload, and the segment size when the payload is a row of
    /// segments that the kernel has put together.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<u16>)> {
        let headers = self.headers.iter().take(self.len);
        headers.zip(self.data.chunks_exact(MAX_DATAGRAM)).zip(&self.control).map(|((header, data), control)| {
            let len = usize::try_from(header.msg_len).unwrap_or(0).min(data.len());
            let payload = data.get(..len).unwrap_or_default();
            let segment = gro_size(control, header.msg_hdr.msg_controllen);
            (payload, segment.filter(|s| usize::from(*s) < len))
        })
    }
}

impl Default for RecvBatch {
    fn default() -> RecvBatch {
        RecvBatch::new()
    }
}

/// Reads the segment size out of a control buffer whose only possible message is `UDP_GRO`:
/// `cmsg_len` (8 bytes), `cmsg_level` and `cmsg_type` (4 each), then an `int`.
fn gro_size(control: &[u64; CONTROL / 8], len: usize) -> Option<u16> {
    if len < 20 {
        return None;
    }
    let [_, kind, value, _] = control;
    let kind = kind.to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = kind;
    let level = i32::from_ne_bytes([a, b, c, d]);
    let ty = i32::from_ne_bytes([e, f, g, h]);
    let [v0, v1, v2, v3, ..] = value.to_ne_bytes();
    let size = i32::from_ne_bytes([v0, v1, v2, v3]);
    (level == libc::SOL_UDP && ty == libc::UDP_GRO).then(|| u16::try_from(size).ok()).flatten()
}

/// Sends one datagram, or with `segment` a row of datagrams of that size (the last may be shorter), on a connected socket.
///
/// # Errors
/// Those of sendmsg(2); `EINVAL` or `EMSGSIZE` when segments do not fit the path.
pub fn send_segments(socket: impl AsFd, payload: &[u8], segment: Option<u16>) -> io::Result<()> {
    let mut slice = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut control: [u64; 3];
    // SAFETY: msghdr holds pointers and integers only; all zeroes is valid.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    if let Some(size) = segment {
        // One cmsghdr: length 18 (16 of header, 2 of data), SOL_UDP, UDP_SEGMENT, a u16.
        let [a, b, c, d] = libc::SOL_UDP.to_ne_bytes();
        let [e, f, g, h] = libc::UDP_SEGMENT.to_ne_bytes();
        let [s0, s1] = size.to_ne_bytes();
        control = [18, u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([s0, s1, 0, 0, 0, 0, 0, 0])];
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = mem::size_of_val(&control);
    }
    // SAFETY: `header` points at `slice` and `control`, both alive for the call; the kernel only reads them and the payload.
    let rc = unsafe {
        libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets the kernel hand over rows of equal segments at once (`UDP_GRO`).
///
/// # Errors
/// Those of setsockopt(2).
pub fn enable_udp_gro(socket: impl AsFd) -> io::Result<()> {
    set_int(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Asks for ICMP errors on the socket's error queue, to be taken with [`take_queued_error`].
///
/// # Errors
/// Those of setsockopt(2).
pub fn enable_error_queue(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    let (level, name) = if ipv6 { (libc::SOL_IPV6, libc::IPV6_RECVERR) } else { (libc::SOL_IP, libc::IP_RECVERR) };
    set_int(socket.as_fd(), level, name, 1)
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
    header.msg_controllen = mem::size_of_val(&control);
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
    set_int(socket.as_fd(), level, name, value)
}

/// The MTU of the path of a connected socket in bytes, as far as the kernel knows it.
#[must_use]
pub fn path_mtu(socket: impl AsFd, ipv6: bool) -> Option<u32> {
    let (level, name) = if ipv6 { (libc::SOL_IPV6, libc::IPV6_MTU) } else { (libc::SOL_IP, libc::IP_MTU) };
    int(socket.as_fd(), level, name).and_then(|value| u32::try_from(value).ok())
}

fn int(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = INT;
    // SAFETY: value and length are live and of the size that is given; the kernel writes at most that.
    let rc = unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len) };
    (rc == 0).then_some(value)
}

fn set_int(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option value is a live c_int and its size is given; the kernel only reads it.
    let rc = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), INT) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn pair(address: &str) -> (UdpSocket, UdpSocket) {
        let a = UdpSocket::bind(address).unwrap();
        let b = UdpSocket::bind(address).unwrap();
        a.connect(b.local_addr().unwrap()).unwrap();
        b.connect(a.local_addr().unwrap()).unwrap();
        (a, b)
    }

    #[test]
    fn takes_many_datagrams_with_one_call() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = pair(address);
            for i in 0..5u8 {
                send_segments(&a, &[i; 10], None).unwrap();
            }
            let mut batch = RecvBatch::new();
            assert_eq!(batch.recv(&b).unwrap(), 5);
            let got: Vec<_> = batch.iter().map(|(p, s)| (p.to_vec(), s)).collect();
            assert_eq!(got, (0..5u8).map(|i| (vec![i; 10], None)).collect::<Vec<_>>());
            assert_eq!(batch.recv(&b).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn segments_a_row_of_datagrams_and_puts_it_together_again() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = pair(address);
            let (c, d) = pair(address);
            enable_udp_gro(&d).unwrap();
            let row: Vec<u8> = (0..250u8).collect();
            send_segments(&a, &row, Some(100)).unwrap();
            send_segments(&c, &row, Some(100)).unwrap();
            let mut batch = RecvBatch::new();
            assert_eq!(batch.recv(&b).unwrap(), 3);
            assert_eq!(batch.iter().map(|(p, _)| p.len()).collect::<Vec<_>>(), [100, 100, 50]);
            assert_eq!(batch.recv(&d).unwrap(), 1);
            assert_eq!(batch.iter().next().unwrap(), (&row[..], Some(100)));
        }
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
            send_segments(&a, b"x", None).unwrap();
            assert_eq!(take_queued_error(&a).map(|e| e.errno), Some(libc::ECONNREFUSED));
        }
    }
}
