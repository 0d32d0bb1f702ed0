//! A reader of pcapng that knows nothing of the writer, and packets to write.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "each test binary, and the fuzz target, uses its part; clippy does not know it as a test"
)]

use std::net::{IpAddr, SocketAddr};

/// A packet in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) nanoseconds: u64,
    pub(crate) flags: u32,
    pub(crate) bytes: Vec<u8>,
    pub(crate) length: u32,
    pub(crate) comments: Vec<String>,
}

/// What is in a file, and the options of its statistics.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) packets: Vec<Read>,
    pub(crate) statistics: Vec<(u16, Vec<u8>)>,
}

/// Reads a file and panics on whatever is not as draft-ietf-opsawg-pcapng has it.
pub(crate) fn read(mut rest: &[u8]) -> File {
    let mut file = File::default();
    let mut kinds = Vec::new();
    while !rest.is_empty() {
        let (kind, length) = (word(rest, 0), usize::try_from(word(rest, 4)).unwrap());
        assert!(length.is_multiple_of(4) && length >= 12 && length <= rest.len(), "length {length}");
        assert_eq!(usize::try_from(word(rest, length - 4)).unwrap(), length);
        let body = &rest[8..length - 4];
        rest = &rest[length..];
        kinds.push(kind);
        match kind {
            0x0a0d_0d0a => {
                assert_eq!(body[..8], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0]);
                options(&body[16..]);
            }
            1 => {
                assert_eq!((word(body, 0), word(body, 4)), (1, 262_144));
                assert!(options(&body[8..]).contains(&(9, vec![9])));
            }
            6 => file.packets.push(packet(body)),
            5 => file.statistics = options(&body[12..]),
            other => panic!("a block of type {other}"),
        }
    }
    assert_eq!(kinds[..2], [0x0a0d_0d0a, 1]);
    assert!(kinds[2..].iter().rev().skip(1).all(|kind| *kind == 6), "{kinds:?}");
    file
}

fn packet(body: &[u8]) -> Read {
    assert_eq!(word(body, 0), 0);
    let kept = usize::try_from(word(body, 12)).unwrap();
    let options = options(&body[20 + kept.next_multiple_of(4)..]);
    let flags = options.iter().find(|(code, _)| *code == 2).unwrap();
    let comments = options.iter().filter(|(code, _)| *code == 1);
    Read {
        nanoseconds: u64::from(word(body, 4)) << 32 | u64::from(word(body, 8)),
        flags: word(&flags.1, 0),
        bytes: body[20..20 + kept].to_vec(),
        length: word(body, 16),
        comments: comments.map(|(_, text)| String::from_utf8(text.clone()).unwrap()).collect(),
    }
}

fn options(mut rest: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut options = Vec::new();
    loop {
        let half = |at: usize| u16::from_le_bytes(rest[at..at + 2].try_into().unwrap());
        let (code, length) = (half(0), usize::from(half(2)));
        if code == 0 {
            assert_eq!((length, rest.len()), (0, 4));
            return options;
        }
        options.push((code, rest[4..4 + length].to_vec()));
        let padded = length.next_multiple_of(4);
        assert!(rest[4 + length..4 + padded].iter().all(|byte| *byte == 0));
        rest = &rest[4 + padded..];
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// A frame with an IP packet of `protocol`.
pub(crate) fn frame(protocol: u8, src: SocketAddr, dst: SocketAddr, transport: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    let length = u16::try_from(transport.len()).unwrap();
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame.extend([8, 0]);
            let mut header = vec![0x45, 0];
            header.extend((20 + length).to_be_bytes());
            header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            header.extend(src.octets());
            header.extend(dst.octets());
            let sum = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
            let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
        }
        mixed => panic!("{mixed:?}"),
    }
    frame.extend(transport);
    frame
}

/// A TCP segment without payload.
pub(crate) fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8) -> Vec<u8> {
    let mut segment = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    segment.extend([0; 8]);
    segment.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    frame(6, src, dst, &segment)
}

/// A UDP datagram.
pub(crate) fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut datagram = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    datagram.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    frame(17, src, dst, &datagram)
}

/// An ICMP or ICMPv6 message.
pub(crate) fn icmp(src: IpAddr, dst: IpAddr, kind: u8) -> Vec<u8> {
    let protocol = if src.is_ipv4() { 1 } else { 58 };
    frame(protocol, SocketAddr::new(src, 0), SocketAddr::new(dst, 0), &[kind, 0, 0, 0, 0, 1, 0, 1])
}
