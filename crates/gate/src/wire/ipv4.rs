//! IPv4 headers (RFC 791).

use std::net::{IpAddr, Ipv4Addr};

use cofferdam_model::DropReason;

use crate::api::Fragmentation;
use crate::wire::checksum::Checksum;
use crate::wire::ip::{IpPacket, Piece};

/// A header without options.
pub(crate) const HEADER_LEN: usize = 20;
/// Time to live of what we emit: Linux's default (`net.ipv4.ip_default_ttl`).
const TTL: u8 = 64;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// Checks the header of a whole packet. A fragment is refused, and for no other reason than that it is one.
pub(crate) fn parse(packet: &[u8]) -> Result<IpPacket<'_>, DropReason> {
    let (packet, fragment) = check(packet)?;
    if fragment & (MORE_FRAGMENTS | OFFSET_MASK) != 0 {
        return Err(DropReason::Fragment);
    }
    Ok(packet)
}

/// Checks the header of a fragment.
pub(crate) fn parse_piece(packet: &[u8]) -> Result<Piece<'_>, DropReason> {
    let (packet, fragment) = check(packet)?;
    let header = packet.bytes.first_chunk::<HEADER_LEN>().ok_or(DropReason::Truncated)?;
    let [_, _, _, _, id0, id1, ..] = *header;
    Ok(Piece {
        src: packet.src,
        dst: packet.dst,
        protocol: packet.protocol,
        ident: u32::from(u16::from_be_bytes([id0, id1])),
        offset: usize::from(fragment & OFFSET_MASK) * 8,
        more: fragment & MORE_FRAGMENTS != 0,
        header,
        payload: packet.payload,
    })
}

/// Turns the header of a first fragment, with the payload of all fragments behind it, into that of a whole packet.
/// `None`: too long for one packet.
pub(crate) fn make_whole(packet: &mut [u8]) -> Option<()> {
    let [total0, total1] = u16::try_from(packet.len()).ok()?.to_be_bytes();
    let [fragment_bits, _] = (MORE_FRAGMENTS | OFFSET_MASK).to_be_bytes();
    let header = packet.first_chunk_mut::<HEADER_LEN>()?;
    let [start, tos, _, _, id0, id1, flags, _, ttl, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let flags = flags & !fragment_bits;
    for checksum in [None, Some(())] {
        let sum = checksum.map_or(0, |()| Checksum::default().add(header).finish());
        let [c0, c1] = sum.to_be_bytes();
        *header =
            [start, tos, total0, total1, id0, id1, flags, 0, ttl, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3];
    }
    Some(())
}

/// Checks everything in the header but the field of flags and fragment offset, which is returned.
fn check(packet: &[u8]) -> Result<(IpPacket<'_>, u16), DropReason> {
    let header = packet.first_chunk::<HEADER_LEN>().ok_or(DropReason::Truncated)?;
    let [version, _, len0, len1, _, _, frag0, frag1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let header_len = usize::from(version & 0x0f) * 4;
    if version >> 4 != 4 || header_len < HEADER_LEN {
        return Err(DropReason::BadHeader);
    }
    let total = usize::from(u16::from_be_bytes([len0, len1]));
    if total < header_len {
        return Err(DropReason::BadHeader);
    }
    let bytes = packet.get(..total).ok_or(DropReason::Truncated)?;
    let (whole_header, payload) = bytes.split_at_checked(header_len).ok_or(DropReason::Truncated)?;
    if !Checksum::default().add(whole_header).is_valid() {
        return Err(DropReason::BadChecksum);
    }
    if header_len > HEADER_LEN {
        return Err(DropReason::Options);
    }
    let fragment = u16::from_be_bytes([frag0, frag1]);
    let forbidden = fragment & DONT_FRAGMENT != 0;
    let packet = IpPacket {
        src: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
        dst: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
        protocol,
        fragmentation: if forbidden { Fragmentation::Forbidden } else { Fragmentation::Allowed },
        bytes,
        payload,
    };
    Ok((packet, fragment))
}

/// Where a packet stands in its datagram.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Position {
    /// All of it, not to be fragmented. Such a packet needs no identification (RFC 6864 §4.1).
    Whole,
    /// A piece of it; `offset` in bytes is a multiple of 8.
    Fragment { ident: u16, offset: usize, more: bool },
}

/// Appends a header for `length` bytes of payload. `None` when a field cannot hold its value.
pub(crate) fn emit(
    packet: &mut Vec<u8>,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    protocol: u8,
    length: usize,
    position: Position,
) -> Option<()> {
    let total = u16::try_from(HEADER_LEN + length).ok()?;
    let (ident, fragment) = match position {
        Position::Whole => (0, DONT_FRAGMENT),
        Position::Fragment { ident, offset, more } => {
            let offset = u16::try_from(offset / 8).ok().filter(|units| *units <= OFFSET_MASK)?;
            (ident, if more { MORE_FRAGMENTS | offset } else { offset })
        }
    };
    let mut header = [0u8; HEADER_LEN];
    let [t0, t1] = total.to_be_bytes();
    let [i0, i1] = ident.to_be_bytes();
    let [f0, f1] = fragment.to_be_bytes();
    let [s0, s1, s2, s3] = src.octets();
    let [d0, d1, d2, d3] = dst.octets();
    for checksum in [None, Some(())] {
        let sum = checksum.map_or(0, |()| Checksum::default().add(&header).finish());
        let [c0, c1] = sum.to_be_bytes();
        header = [0x45, 0, t0, t1, i0, i1, f0, f1, TTL, protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3];
    }
    packet.extend_from_slice(&header);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRC: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const DST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn packet(length: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        emit(&mut packet, SRC, DST, 17, length, Position::Whole).unwrap();
        packet.resize(HEADER_LEN + length, 7);
        packet
    }

    fn with(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut packet = packet(8);
        change(&mut packet);
        packet[10..12].fill(0);
        let header = (usize::from(packet[0] & 15) * 4).min(packet.len());
        let sum = Checksum::default().add(&packet[..header]).finish();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    #[test]
    fn reads_back_what_it_writes_and_leaves_trailing_bytes_out() {
        let mut bytes = packet(8);
        bytes.extend_from_slice(&[1, 2, 3]);
        let view = parse(&bytes).unwrap();
        assert_eq!((view.src, view.dst, view.protocol), (SRC.into(), DST.into(), 17));
        assert_eq!((view.payload, view.bytes.len()), (&[7u8; 8][..], 28));
    }

    #[test]
    fn refuses_bad_headers() {
        let cases: [(&str, Vec<u8>, DropReason); 11] = [
            ("short", packet(0)[..19].to_vec(), DropReason::Truncated),
            ("header length 0", with(|p| p[0] = 0x40), DropReason::BadHeader),
            ("header length 4", with(|p| p[0] = 0x44), DropReason::BadHeader),
            ("options", with(|p| p[0] = 0x46), DropReason::Options),
            ("header past the end", with(|p| p[0] = 0x4f), DropReason::BadHeader),
            ("total length 0", with(|p| p[2..4].fill(0)), DropReason::BadHeader),
            ("total length 65535", with(|p| p[2..4].fill(255)), DropReason::Truncated),
            ("first fragment", with(|p| p[6] = 0x20), DropReason::Fragment),
            ("last fragment", with(|p| p[7] = 1), DropReason::Fragment),
            ("version 5", with(|p| p[0] = 0x55), DropReason::BadHeader),
            (
                "checksum",
                {
                    let mut p = packet(8);
                    p[10] ^= 1;
                    p
                },
                DropReason::BadChecksum,
            ),
        ];
        for (name, bytes, reason) in cases {
            assert_eq!(parse(&bytes).err(), Some(reason), "{name}");
        }
    }

    #[test]
    fn reads_a_fragment_and_makes_it_whole() {
        let bytes = with(|p| p[4..8].copy_from_slice(&[0x12, 0x34, 0x60 | 0x01, 0x02]));
        let piece = parse_piece(&bytes).unwrap();
        assert_eq!((piece.src, piece.dst, piece.protocol), (SRC.into(), DST.into(), 17));
        assert_eq!((piece.ident, piece.offset, piece.more), (0x1234, 0x102 * 8, true));
        assert_eq!((piece.header, piece.payload), (&bytes[..20], &[7u8; 8][..]));
        let mut whole = [&bytes[..], &[8; 100]].concat();
        make_whole(&mut whole).unwrap();
        assert_eq!(parse(&whole).unwrap().payload, &whole[20..]);
        assert_eq!(
            (&whole[2..8], whole[8]),
            (&[0, 128, 0x12, 0x34, 0x40, 0][..], bytes[8]),
            "the rest stays as it was"
        );
        whole.resize(65_535, 0);
        assert!(make_whole(&mut whole).is_some());
        whole.push(0);
        assert!(make_whole(&mut whole).is_none());
    }

    #[test]
    fn refuses_to_write_what_does_not_fit() {
        let mut out = Vec::new();
        assert!(emit(&mut out, SRC, DST, 17, 65516, Position::Whole).is_none());
        let far = Position::Fragment { ident: 1, offset: 8 * 0x2000, more: false };
        assert!(emit(&mut out, SRC, DST, 17, 8, far).is_none());
        assert!(out.is_empty());
    }
}
