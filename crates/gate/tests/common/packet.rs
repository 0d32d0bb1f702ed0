//! Packets, the plain way.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use cofferdam_gate::{Offload, PartialChecksum};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// The ones' complement sum, not complemented.
pub(crate) fn sum(pieces: &[&[u8]]) -> u16 {
    let bytes = pieces.concat();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub(crate) fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    [octets(src), octets(dst), vec![0, protocol], (length as u32).to_be_bytes().to_vec()].concat()
}

pub(crate) fn ip(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = match src {
        IpAddr::V4(_) => {
            let total = (20 + payload.len()) as u16;
            let mut header = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 61, protocol, 0, 0];
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header.extend([octets(src), octets(dst)].concat());
            header
        }
        IpAddr::V6(_) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 61];
            header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
            header.extend([octets(src), octets(dst)].concat());
            header
        }
    };
    fix_header_sum(&mut packet);
    packet.extend_from_slice(payload);
    packet
}

pub(crate) fn fix_header_sum(packet: &mut [u8]) {
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let length = (usize::from(packet[0] & 15) * 4).min(packet.len());
        let value = !sum(&[&packet[..length]]);
        packet[10..12].copy_from_slice(&value.to_be_bytes());
    }
}

pub(crate) fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len();
    let mut datagram =
        [src.port().to_be_bytes(), dst.port().to_be_bytes(), (length as u16).to_be_bytes(), [0, 0]].concat();
    datagram.extend_from_slice(payload);
    let value = match !sum(&[&pseudo(src.ip(), dst.ip(), UDP, length), &datagram]) {
        0 => 0xffff,
        value => value,
    };
    datagram[6..8].copy_from_slice(&value.to_be_bytes());
    ip(src.ip(), dst.ip(), UDP, &datagram)
}

/// A batch as the guest's kernel hands it on: the sum of the pseudo header only.
pub(crate) fn udp_batch(src: SocketAddr, dst: SocketAddr, payload: &[u8], segment: u16) -> (Offload, Vec<u8>) {
    let mut packet = udp(src, dst, payload);
    let start = packet.len() - payload.len() - 8;
    let value = sum(&[&pseudo(src.ip(), dst.ip(), UDP, 8 + payload.len())]);
    packet[start + 6..start + 8].copy_from_slice(&value.to_be_bytes());
    let needs_csum = Some(PartialChecksum { start: start as u16, offset: 6 });
    (Offload { needs_csum, udp_segment: NonZeroU16::new(segment) }, packet)
}

pub(crate) fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8, seq: u32, options: &[u8], data: &[u8]) -> Vec<u8> {
    assert_eq!(options.len() % 4, 0);
    let offset = (20 + options.len()) / 4;
    let mut segment = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    segment.extend(seq.to_be_bytes());
    segment.extend([0, 0, 0, 0, (offset as u8) << 4, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    segment.extend_from_slice(options);
    segment.extend_from_slice(data);
    let value = !sum(&[&pseudo(src.ip(), dst.ip(), TCP, segment.len()), &segment]);
    segment[16..18].copy_from_slice(&value.to_be_bytes());
    ip(src.ip(), dst.ip(), TCP, &segment)
}

pub(crate) fn syn(src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    tcp(src, dst, SYN, 1000, &[2, 4, 5, 0xb4], &[])
}

pub(crate) fn icmp_protocol(address: IpAddr) -> u8 {
    if address.is_ipv4() { 1 } else { 58 }
}

pub(crate) fn icmp(src: IpAddr, dst: IpAddr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend_from_slice(rest);
    let pseudo = if src.is_ipv4() { Vec::new() } else { pseudo(src, dst, 58, message.len()) };
    let value = !sum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&value.to_be_bytes());
    ip(src, dst, icmp_protocol(src), &message)
}

pub(crate) fn ping(src: IpAddr, dst: IpAddr, ident: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let kind = if src.is_ipv4() { 8 } else { 128 };
    icmp(src, dst, kind, 0, &[&ident.to_be_bytes()[..], &sequence.to_be_bytes(), payload].concat())
}

/// One piece of `whole`, as the kernel cuts it: `length` bytes of its payload from `offset`.
pub(crate) fn piece(whole: &[u8], ident: u32, offset: usize, length: usize, more: bool) -> Vec<u8> {
    let mut packet;
    if whole[0] >> 4 == 4 {
        packet = whole[..20].to_vec();
        packet[2..4].copy_from_slice(&((20 + length) as u16).to_be_bytes());
        packet[4..6].copy_from_slice(&(ident as u16).to_be_bytes());
        // A piece that is all stays as it was.
        if offset > 0 || more {
            packet[6..8].copy_from_slice(&((offset / 8) as u16 | u16::from(more) << 13).to_be_bytes());
        }
        packet.extend_from_slice(&whole[20 + offset..20 + offset + length]);
    } else {
        packet = whole[..40].to_vec();
        packet[4..6].copy_from_slice(&((8 + length) as u16).to_be_bytes());
        packet[6] = 44;
        packet.extend([whole[6], 0]);
        packet.extend((offset as u16 | u16::from(more)).to_be_bytes());
        packet.extend(ident.to_be_bytes());
        packet.extend_from_slice(&whole[40 + offset..40 + offset + length]);
    }
    fix_header_sum(&mut packet);
    packet
}

/// All pieces of `whole`, with `size` bytes of its payload in each but the last.
pub(crate) fn pieces(whole: &[u8], ident: u32, size: usize) -> Vec<Vec<u8>> {
    let length = whole.len() - if whole[0] >> 4 == 4 { 20 } else { 40 };
    let cut = |offset: usize| piece(whole, ident, offset, size.min(length - offset), offset + size < length);
    (0..length).step_by(size).map(cut).collect()
}

/// A packet for the guest, taken apart. Reading one checks its lengths and its sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) protocol: u8,
    /// Transport header and payload.
    pub(crate) body: Vec<u8>,
    pub(crate) segment: Option<u16>,
    pub(crate) fragment: Option<Fragment>,
    pub(crate) len: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) ident: u32,
    pub(crate) offset: usize,
    pub(crate) more: bool,
}

impl Seen {
    pub(crate) fn read(offload: Offload, packet: &[u8]) -> Seen {
        let seen = Seen::read_unsummed(offload, packet);
        if seen.fragment.is_none() {
            seen.check_sum(offload, packet.len() - seen.body.len());
        } else {
            assert_eq!(offload, Offload::NONE, "nothing may be left to do on a fragment");
        }
        seen
    }

    /// Does not look at the transport checksum.
    pub(crate) fn read_unsummed(offload: Offload, packet: &[u8]) -> Seen {
        let mut seen = match packet[0] >> 4 {
            4 => Seen::read_v4(packet),
            6 => Seen::read_v6(packet),
            version => panic!("version {version}"),
        };
        seen.segment = offload.udp_segment.map(NonZeroU16::get);
        seen
    }

    fn read_v4(packet: &[u8]) -> Seen {
        assert_eq!(packet[0], 0x45);
        assert_eq!(sum(&[&packet[..20]]), 0xffff, "IPv4 header checksum");
        assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
        let field = u16::from_be_bytes([packet[6], packet[7]]);
        let (offset, more) = (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0);
        let ident = u32::from(u16::from_be_bytes([packet[4], packet[5]]));
        let is_fragment = offset > 0 || more;
        assert_eq!(field & 0x4000 == 0, is_fragment, "don't-fragment bit");
        Seen {
            src: <[u8; 4]>::try_from(&packet[12..16]).unwrap().into(),
            dst: <[u8; 4]>::try_from(&packet[16..20]).unwrap().into(),
            protocol: packet[9],
            body: packet[20..].to_vec(),
            segment: None,
            fragment: is_fragment.then_some(Fragment { ident, offset, more }),
            len: packet.len(),
        }
    }

    fn read_v6(packet: &[u8]) -> Seen {
        assert_eq!(packet[0] >> 4, 6);
        assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40, packet.len());
        let mut seen = Seen {
            src: <[u8; 16]>::try_from(&packet[8..24]).unwrap().into(),
            dst: <[u8; 16]>::try_from(&packet[24..40]).unwrap().into(),
            protocol: packet[6],
            body: packet[40..].to_vec(),
            segment: None,
            fragment: None,
            len: packet.len(),
        };
        if seen.protocol == 44 {
            let header: Vec<u8> = seen.body.drain(..8).collect();
            let field = u16::from_be_bytes([header[2], header[3]]);
            let ident = u32::from_be_bytes(header[4..8].try_into().unwrap());
            seen.protocol = header[0];
            seen.fragment = Some(Fragment { ident, offset: usize::from(field & !7), more: field & 1 != 0 });
        }
        seen
    }

    fn check_sum(&self, offload: Offload, start: usize) {
        let pseudo = match self.protocol {
            1 => Vec::new(),
            protocol => pseudo(self.src, self.dst, protocol, self.body.len()),
        };
        match offload.needs_csum {
            None => assert_eq!(sum(&[&pseudo, &self.body]), 0xffff, "transport checksum"),
            Some(partial) => {
                assert_eq!(usize::from(partial.start), start);
                let field = usize::from(partial.offset);
                let value = u16::from_be_bytes([self.body[field], self.body[field + 1]]);
                assert_eq!(value, sum(&[&pseudo]), "sum of the pseudo header");
            }
        }
    }

    pub(crate) fn ports(&self) -> (u16, u16) {
        (u16::from_be_bytes([self.body[0], self.body[1]]), u16::from_be_bytes([self.body[2], self.body[3]]))
    }

    pub(crate) fn from(&self) -> SocketAddr {
        SocketAddr::new(self.src, self.ports().0)
    }

    pub(crate) fn to(&self) -> SocketAddr {
        SocketAddr::new(self.dst, self.ports().1)
    }

    /// What a UDP datagram carries.
    pub(crate) fn udp_payload(&self) -> &[u8] {
        assert_eq!(self.protocol, UDP);
        assert_eq!(usize::from(u16::from_be_bytes([self.body[4], self.body[5]])), self.body.len());
        &self.body[8..]
    }

    /// Type, code and quoted packet of an ICMP error.
    pub(crate) fn icmp_error(&self) -> (u8, u8, &[u8]) {
        assert_eq!(self.protocol, icmp_protocol(self.src));
        (self.body[0], self.body[1], &self.body[8..])
    }
}

/// Puts the fragments of one datagram together.
pub(crate) fn reassemble(fragments: &[Seen]) -> Seen {
    let first = &fragments[0];
    let ident = first.fragment.unwrap().ident;
    let mut body = Vec::new();
    for (index, piece) in fragments.iter().enumerate() {
        let fragment = piece.fragment.unwrap();
        assert_eq!((fragment.ident, fragment.offset), (ident, body.len()));
        assert_eq!(fragment.more, index + 1 < fragments.len());
        assert!(!fragment.more || piece.body.len() % 8 == 0);
        body.extend_from_slice(&piece.body);
    }
    let whole = Seen { body, fragment: None, ..first.clone() };
    whole.check_sum(Offload::NONE, 0);
    whole
}
