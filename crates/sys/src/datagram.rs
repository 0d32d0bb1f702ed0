//! Datagrams, many with one system call (recvmmsg(2)), with UDP segmentation offload in both directions (`UDP_SEGMENT`, `UDP_GRO`;
//! udp(7)): who sent them, and to which of the machine's addresses (`IP_PKTINFO`; ip(7), ipv6(7)).
//!
//! Lengths of control data, which are small, and flags have other types with musl than with glibc; `as _` is for those.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use crate::transparent::set_option;

/// Datagrams taken by one call of [`Inbox::recv`]. A 64-byte flood on the loopback device fills it; more gains nothing
/// measurable.
pub const BATCH: usize = 32;

/// The largest UDP payload, or batch of segments, that the kernel hands over at once.
const MAX_DATAGRAM: usize = 65_535;

/// Control space of one datagram, in words: the segment size (24 bytes) and the address (40 bytes at most).
const CONTROL: usize = 8;

/// Words of a socket address: that of IPv6 has 28 bytes.
const NAME: usize = 4;

/// Bytes of a control message's header: `cmsg_len`, `cmsg_level`, `cmsg_type`.
const HEADER: usize = 16;

/// One received datagram, or a row of segments that the kernel has put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    pub from: SocketAddr,
    /// The address that it was sent to, if the socket was asked to tell.
    pub to: Option<IpAddr>,
    pub payload: &'a [u8],
    /// The size of each segment of a row; the last one may be shorter.
    pub segment: Option<u16>,
}

/// Buffers for receiving many datagrams with one system call. Memory is reserved for the largest datagrams, and only touched as
/// far as they arrive.
#[allow(missing_debug_implementations, reason = "buffers only; nothing in it helps a reader")]
pub struct Inbox {
    data: Vec<u8>,
    control: Vec<[u64; CONTROL]>,
    names: Vec<[u64; NAME]>,
    headers: Vec<libc::mmsghdr>,
    slices: Vec<libc::iovec>,
    len: usize,
}

impl Inbox {
    /// Empty buffers.
    #[must_use]
    pub fn new() -> Inbox {
        // SAFETY: iovec is a pair of a pointer and a length; all zeroes is a valid (null) value.
        let slice: libc::iovec = unsafe { mem::zeroed() };
        // SAFETY: mmsghdr holds pointers and integers only; all zeroes is valid.
        let header: libc::mmsghdr = unsafe { mem::zeroed() };
        Inbox {
            data: vec![0; BATCH * MAX_DATAGRAM],
            control: vec![[0; CONTROL]; BATCH],
            names: vec![[0; NAME]; BATCH],
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
        let buffers = self.data.chunks_exact_mut(MAX_DATAGRAM).zip(self.control.iter_mut()).zip(self.names.iter_mut());
        let headers = self.headers.iter_mut().zip(self.slices.iter_mut());
        for ((header, slice), ((data, control), name)) in headers.zip(buffers) {
            *slice = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
            header.msg_len = 0;
            header.msg_hdr.msg_name = name.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = libc::socklen_t::try_from(mem::size_of_val(name)).unwrap_or(0);
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = mem::size_of_val(control) as _;
            header.msg_hdr.msg_flags = 0;
        }
        // SAFETY: `headers` holds BATCH entries, each pointing at one name, one iovec and one control buffer that live in `self`,
        // whose lengths are those set above; nothing else refers to them during the call. No timeout is passed.
        let n = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.as_mut_ptr(),
                libc::c_uint::try_from(BATCH).unwrap_or(1),
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        self.len = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        Ok(self.len)
    }

    /// The datagrams of the last [`recv`](Inbox::recv).
    pub fn iter(&self) -> impl Iterator<Item = Datagram<'_>> {
        let headers = self.headers.iter().take(self.len).zip(&self.names);
        let buffers = self.data.chunks_exact(MAX_DATAGRAM).zip(&self.control);
        headers.zip(buffers).filter_map(|((header, name), (data, control))| {
            let len = usize::try_from(header.msg_len).unwrap_or(0).min(data.len());
            let payload = data.get(..len).unwrap_or_default();
            let from = decode_name(name)?;
            let (segment, to) = decode_control(control, header.msg_hdr.msg_controllen as _);
            Some(Datagram { from, to, payload, segment: segment.filter(|size| usize::from(*size) < len) })
        })
    }
}

impl Default for Inbox {
    fn default() -> Inbox {
        Inbox::new()
    }
}

/// Has the socket tell which address a datagram was sent to.
///
/// # Errors
/// Those of setsockopt(2).
pub fn tell_destination(socket: impl AsFd, ipv6: bool) -> io::Result<()> {
    let (level, name) = if ipv6 { (libc::SOL_IPV6, libc::IPV6_RECVPKTINFO) } else { (libc::SOL_IP, libc::IP_PKTINFO) };
    set_option(socket, level, name, 1)
}

/// Sends one datagram, or with `segment` a row of datagrams of that size (the last may be shorter), on a connected socket.
///
/// # Errors
/// As [`send_to`].
pub fn send(socket: impl AsFd, payload: &[u8], segment: Option<u16>) -> io::Result<()> {
    send_message(socket, None, None, payload, segment)
}

/// As [`send`], to `to` on a socket that is not connected; `from`: as that address of the machine.
///
/// # Errors
/// Those of sendmsg(2); `EINVAL` or `EMSGSIZE` when segments do not fit the path.
pub fn send_to(
    socket: impl AsFd,
    to: SocketAddr,
    from: Option<IpAddr>,
    payload: &[u8],
    segment: Option<u16>,
) -> io::Result<()> {
    send_message(socket, Some(to), from, payload, segment)
}

fn send_message(
    socket: impl AsFd,
    to: Option<SocketAddr>,
    from: Option<IpAddr>,
    payload: &[u8],
    segment: Option<u16>,
) -> io::Result<()> {
    let mut name = to.map(encode_name);
    let mut slice = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut control = Control::new();
    if let Some(size) = segment {
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }
    match from {
        // in_pktinfo: interface, address to send from, and one that is not used here.
        Some(IpAddr::V4(from)) => {
            let [a, b, c, d] = from.octets();
            control.push(libc::SOL_IP, libc::IP_PKTINFO, &[0, 0, 0, 0, a, b, c, d, 0, 0, 0, 0]);
        }
        // in6_pktinfo: address, interface.
        Some(IpAddr::V6(from)) => {
            let mut info = [0; 20];
            for (to, octet) in info.iter_mut().zip(from.octets()) {
                *to = octet;
            }
            control.push(libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
        }
        None => {}
    }
    // SAFETY: msghdr holds pointers and integers only; all zeroes is valid.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    if let Some((name, len)) = &mut name {
        header.msg_name = name.as_mut_ptr().cast();
        header.msg_namelen = *len;
    }
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    if control.len > 0 {
        header.msg_control = control.words.as_mut_ptr().cast();
        header.msg_controllen = (control.len * mem::size_of::<u64>()) as _;
    }
    // SAFETY: `header` points at `name`, `slice` and `control`, all alive for the call with their true lengths; the kernel only
    // reads them and the payload.
    let rc = unsafe {
        libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Control messages to send.
struct Control {
    words: [u64; CONTROL],
    len: usize,
}

impl Control {
    fn new() -> Control {
        Control { words: [0; CONTROL], len: 0 }
    }

    /// Adds one message, padded to whole words.
    fn push(&mut self, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
        let [a, b, c, d] = level.to_ne_bytes();
        let [e, f, g, h] = kind.to_ne_bytes();
        let length = u64::try_from(HEADER + data.len()).unwrap_or(0);
        let header = [length, u64::from_ne_bytes([a, b, c, d, e, f, g, h])];
        let message = header.into_iter().chain(data.chunks(8).map(word));
        for (to, from) in self.words.iter_mut().skip(self.len).zip(message) {
            *to = from;
            self.len += 1;
        }
    }
}

/// The segment size and the destination among the control messages, which take `len` bytes.
fn decode_control(control: &[u64; CONTROL], len: usize) -> (Option<u16>, Option<IpAddr>) {
    let mut rest = control.get(..len.div_ceil(8)).unwrap_or(control);
    let (mut segment, mut to) = (None, None);
    while let [length, header, after @ ..] = rest {
        let data = usize::try_from(*length).unwrap_or(0).saturating_sub(HEADER).div_ceil(8);
        let Some((data, next)) = after.split_at_checked(data) else { break };
        let [v0, v1, v2, v3, t0, t1, t2, t3] = header.to_ne_bytes();
        match (i32::from_ne_bytes([v0, v1, v2, v3]), i32::from_ne_bytes([t0, t1, t2, t3]), data) {
            (libc::SOL_UDP, libc::UDP_GRO, [size]) => {
                let [a, b, c, d, ..] = size.to_ne_bytes();
                segment = u16::try_from(i32::from_ne_bytes([a, b, c, d])).ok();
            }
            // in_pktinfo: interface, the machine's address, the header's destination.
            (libc::SOL_IP, libc::IP_PKTINFO, [info, _]) => {
                let [.., a, b, c, d] = info.to_ne_bytes();
                to = Some(IpAddr::from([a, b, c, d]));
            }
            // in6_pktinfo: the machine's address, interface.
            (libc::SOL_IPV6, libc::IPV6_PKTINFO, [upper, lower, _]) => to = Some(ipv6([*upper, *lower]).into()),
            _ => {}
        }
        rest = next;
    }
    (segment, to)
}

/// A `sockaddr_in` or `sockaddr_in6`: family, port, then address; for IPv6 the flow label before and the scope behind it.
fn decode_name(name: &[u64; NAME]) -> Option<SocketAddr> {
    let [start, upper, lower, end] = *name;
    let [f0, f1, p0, p1, a, b, c, d] = start.to_ne_bytes();
    let port = u16::from_be_bytes([p0, p1]);
    match i32::from(u16::from_ne_bytes([f0, f1])) {
        libc::AF_INET => Some(SocketAddr::from(([a, b, c, d], port))),
        libc::AF_INET6 => {
            let [s0, s1, s2, s3, ..] = end.to_ne_bytes();
            Some(SocketAddrV6::new(ipv6([upper, lower]), port, 0, u32::from_ne_bytes([s0, s1, s2, s3])).into())
        }
        _ => None,
    }
}

fn encode_name(address: SocketAddr) -> ([u64; NAME], libc::socklen_t) {
    let start = |family: libc::c_int, [a, b, c, d]: [u8; 4]| {
        let [f0, f1] = u16::try_from(family).unwrap_or(0).to_ne_bytes();
        let [p0, p1] = address.port().to_be_bytes();
        u64::from_ne_bytes([f0, f1, p0, p1, a, b, c, d])
    };
    match address {
        SocketAddr::V4(v4) => ([start(libc::AF_INET, v4.ip().octets()), 0, 0, 0], 16),
        SocketAddr::V6(v6) => {
            let octets = v6.ip().octets();
            let (upper, lower) = octets.split_at(8);
            let scope = word(&v6.scope_id().to_ne_bytes());
            ([start(libc::AF_INET6, [0; 4]), word(upper), word(lower), scope], 28)
        }
    }
}

/// At most 8 bytes as they lie in memory, with zeroes behind.
fn word(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    for (to, from) in whole.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_ne_bytes(whole)
}

/// An address as it lies in memory.
fn ipv6(words: [u64; 2]) -> Ipv6Addr {
    let mut octets = [0; 16];
    for (to, from) in octets.iter_mut().zip(words.iter().flat_map(|word| word.to_ne_bytes())) {
        *to = from;
    }
    octets.into()
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
                send(&a, &[i; 10], None).unwrap();
            }
            let mut inbox = Inbox::new();
            assert_eq!(inbox.recv(&b).unwrap(), 5);
            let got: Vec<_> = inbox.iter().map(|d| (d.payload.to_vec(), d.segment)).collect();
            assert_eq!(got, (0..5u8).map(|i| (vec![i; 10], None)).collect::<Vec<_>>());
            assert_eq!(inbox.recv(&b).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn segments_a_row_of_datagrams_and_puts_it_together_again() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = pair(address);
            let (c, d) = pair(address);
            crate::socket::enable_udp_gro(&d).unwrap();
            let row: Vec<u8> = (0..250u8).collect();
            send(&a, &row, Some(100)).unwrap();
            send(&c, &row, Some(100)).unwrap();
            let mut inbox = Inbox::new();
            assert_eq!(inbox.recv(&b).unwrap(), 3);
            assert_eq!(inbox.iter().map(|d| d.payload.len()).collect::<Vec<_>>(), [100, 100, 50]);
            assert_eq!(inbox.recv(&d).unwrap(), 1);
            let whole = inbox.iter().next().unwrap();
            assert_eq!((whole.payload, whole.segment), (&row[..], Some(100)));
        }
    }

    #[test]
    fn says_who_sent_a_datagram_and_to_which_address_and_answers_from_there() {
        for (any, own, ipv6) in [("0.0.0.0:0", "127.0.0.2", false), ("[::]:0", "::1", true)] {
            let server = UdpSocket::bind(any).unwrap();
            tell_destination(&server, ipv6).unwrap();
            let to = SocketAddr::new(own.parse().unwrap(), server.local_addr().unwrap().port());
            let client = UdpSocket::bind(if ipv6 { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
            client.connect(to).unwrap();
            for i in 0..3u8 {
                client.send(&[i; 10]).unwrap();
            }
            let mut inbox = Inbox::new();
            assert_eq!(inbox.recv(&server).unwrap(), 3);
            for (i, datagram) in inbox.iter().enumerate() {
                let payload = [u8::try_from(i).unwrap(); 10];
                let from = client.local_addr().unwrap();
                assert_eq!(datagram, Datagram { from, to: Some(to.ip()), payload: &payload, segment: None });
            }
            // A connected client takes answers from nobody else.
            send_to(&server, client.local_addr().unwrap(), Some(to.ip()), b"abcabcab", Some(3)).unwrap();
            let mut buffer = [0; 16];
            let mut next = || client.recv(&mut buffer).map(|len| buffer[..len].to_vec()).unwrap();
            assert_eq!([next(), next(), next()], [b"abc".to_vec(), b"abc".to_vec(), b"ab".to_vec()]);
            assert_eq!(inbox.recv(&server).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn takes_rows_of_segments_whole() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        crate::socket::enable_udp_gro(&server).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        send_to(&client, server.local_addr().unwrap(), None, &[7; 250], Some(100)).unwrap();
        let mut inbox = Inbox::new();
        inbox.recv(&server).unwrap();
        let row = inbox.iter().next().unwrap();
        assert_eq!((row.payload.len(), row.segment, row.to), (250, Some(100), None));
    }
}
