//! Datagrams on sockets that are not connected: who sent them, and to which of the machine's addresses (`IP_PKTINFO`; ip(7),
//! ipv6(7)), many with one system call (recvmmsg(2)), with UDP segmentation offload in both directions (udp(7)).

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use crate::transparent::set_option;

/// Datagrams taken by one call of [`Inbox::recv`], as for connected sockets.
pub const BATCH: usize = crate::socket::BATCH;

/// The largest UDP payload, or batch of segments, that the kernel hands over at once.
const MAX_DATAGRAM: usize = 65_535;

/// Control space of one message, in words: the segment size (24 bytes) and the address (40 bytes at most).
const CONTROL: usize = 8;

/// Words of a socket address: that of IPv6 has 28 bytes.
const NAME: usize = 4;

/// Length of a control message's header: `cmsg_len`, `cmsg_level`, `cmsg_type`.
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
            header.msg_hdr.msg_controllen = mem::size_of_val(control);
            header.msg_hdr.msg_flags = 0;
        }
        // SAFETY: `headers` holds BATCH entries, each pointing at one name, one iovec and one control buffer that live in `self`,
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

    /// The datagrams of the last [`recv`](Inbox::recv).
    pub fn iter(&self) -> impl Iterator<Item = Datagram<'_>> {
        let headers = self.headers.iter().take(self.len).zip(&self.names);
        let buffers = self.data.chunks_exact(MAX_DATAGRAM).zip(&self.control);
        headers.zip(buffers).filter_map(|((header, name), (data, control))| {
            let len = usize::try_from(header.msg_len).unwrap_or(0).min(data.len());
            let payload = data.get(..len).unwrap_or_default();
            let from = decode_name(name)?;
            let (segment, to) = decode_control(control, header.msg_hdr.msg_controllen);
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

/// Sends one datagram to `to`, or with `segment` a row of datagrams of that size (the last may be shorter); `from`: as that address
/// of the machine.
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
    let (mut name, name_len) = encode_name(to);
    let mut slice = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut control = Vec::new();
    if let Some(size) = segment {
        push_control(&mut control, libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }
    match from {
        // in_pktinfo: interface, address to send from, and one that is not used here.
        Some(IpAddr::V4(from)) => {
            push_control(
                &mut control,
                libc::SOL_IP,
                libc::IP_PKTINFO,
                &[&[0; 4][..], &from.octets(), &[0; 4]].concat(),
            );
        }
        // in6_pktinfo: address, interface.
        Some(IpAddr::V6(from)) => {
            push_control(&mut control, libc::SOL_IPV6, libc::IPV6_PKTINFO, &[&from.octets()[..], &[0; 4]].concat());
        }
        None => {}
    }
    // SAFETY: msghdr holds pointers and integers only; all zeroes is valid.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = name_len;
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    if !control.is_empty() {
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control.len() * mem::size_of::<u64>();
    }
    // SAFETY: `header` points at `name`, `slice` and `control`, all alive for the call with their true lengths; the kernel only
    // reads them and the payload.
    let rc = unsafe {
        libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Adds one control message, padded to whole words.
fn push_control(control: &mut Vec<u64>, level: libc::c_int, kind: libc::c_int, data: &[u8]) {
    control.push(u64::try_from(HEADER + data.len()).unwrap_or(0));
    let [a, b, c, d] = level.to_ne_bytes();
    let [e, f, g, h] = kind.to_ne_bytes();
    control.push(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
    for piece in data.chunks(8) {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(piece) {
            *to = *from;
        }
        control.push(u64::from_ne_bytes(word));
    }
}

/// The segment size and the destination among the control messages.
fn decode_control(control: &[u64; CONTROL], len: usize) -> (Option<u16>, Option<IpAddr>) {
    let bytes: Vec<u8> = control.iter().flat_map(|word| word.to_ne_bytes()).take(len).collect();
    let mut rest = bytes.as_slice();
    let (mut segment, mut to) = (None, None);
    while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, l4, l5, l6, l7, v0, v1, v2, v3, t0, t1, t2, t3] = *header;
        let size = usize::try_from(u64::from_ne_bytes([l0, l1, l2, l3, l4, l5, l6, l7])).unwrap_or(0);
        let Some(data) = rest.get(HEADER..size) else { break };
        match (i32::from_ne_bytes([v0, v1, v2, v3]), i32::from_ne_bytes([t0, t1, t2, t3])) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let size = data.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes));
                segment = size.and_then(|size| u16::try_from(size).ok());
            }
            // in_pktinfo: interface, the machine's address, the header's destination.
            (libc::SOL_IP, libc::IP_PKTINFO) => {
                to = data
                    .get(4..8)
                    .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
                    .map(|v4| Ipv4Addr::from(v4).into());
            }
            (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                to = data.first_chunk::<16>().map(|v6| Ipv6Addr::from(*v6).into());
            }
            _ => {}
        }
        rest = rest.get(size.next_multiple_of(8)..).unwrap_or_default();
    }
    (segment, to)
}

/// A `sockaddr_in` or `sockaddr_in6`: family, port, then address; for IPv6 the flow label before and the scope behind it.
fn decode_name(name: &[u64; NAME]) -> Option<SocketAddr> {
    let mut bytes = [0; NAME * 8];
    for (to, from) in bytes.iter_mut().zip(name.iter().flat_map(|word| word.to_ne_bytes())) {
        *to = from;
    }
    let [f0, f1, p0, p1, rest @ ..] = bytes;
    let port = u16::from_be_bytes([p0, p1]);
    match i32::from(u16::from_ne_bytes([f0, f1])) {
        libc::AF_INET => rest.first_chunk::<4>().map(|v4| SocketAddr::from((*v4, port))),
        libc::AF_INET6 => {
            let address = <[u8; 16]>::try_from(rest.get(4..20)?).ok()?;
            let scope = <[u8; 4]>::try_from(rest.get(20..24)?).ok().map(u32::from_ne_bytes)?;
            Some(SocketAddrV6::new(address.into(), port, 0, scope).into())
        }
        _ => None,
    }
}

fn encode_name(address: SocketAddr) -> ([u64; NAME], libc::socklen_t) {
    let (bytes, len) = match address {
        SocketAddr::V4(v4) => {
            let family = u16::try_from(libc::AF_INET).unwrap_or(0).to_ne_bytes();
            ([&family[..], &v4.port().to_be_bytes(), &v4.ip().octets(), &[0; 8]].concat(), 16)
        }
        SocketAddr::V6(v6) => {
            let family = u16::try_from(libc::AF_INET6).unwrap_or(0).to_ne_bytes();
            let port = v6.port().to_be_bytes();
            ([&family[..], &port, &[0; 4], &v6.ip().octets(), &v6.scope_id().to_ne_bytes()].concat(), 28)
        }
    };
    let mut words = [0; NAME];
    for (word, piece) in words.iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        for (to, from) in whole.iter_mut().zip(piece) {
            *to = *from;
        }
        *word = u64::from_ne_bytes(whole);
    }
    (words, len)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

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
