//! IPv6 headers (RFC 8200). Of the extension headers the fragment header alone is known, and only right behind them.

use std::net::{IpAddr, Ipv6Addr};

use cofferdam_model::DropReason;

use crate::api::Fragmentation;
use crate::wire::ip::{IpPacket, Piece};

/// The fixed header.
pub(crate) const HEADER_LEN: usize = 40;
/// The fragment extension header (RFC 8200 §4.5).
pub(crate) const FRAGMENT_HEADER_LEN: usize = 8;
/// Next header value of the fragment header.
pub(crate) const NEXT_FRAGMENT: u8 = 44;
/// Hop limit of what we emit: Linux's default (`net.ipv6.conf.all.hop_limit`).
const HOP_LIMIT: u8 = 64;

/// Extension header types (IANA, IPv6 Extension Header Types) but the fragment header and ESP: behind ESP nothing can
/// be parsed, so that it counts as a protocol here.
const EXTENSIONS: [u8; 9] = [0, 43, 51, 60, 135, 139, 140, 253, 254];

/// Checks the header of a whole packet. A fragment is refused, and for no other reason than that it is one.
pub(crate) fn parse(packet: &[u8]) -> Result<IpPacket<'_>, DropReason> {
    let packet = check(packet)?;
    if packet.protocol == NEXT_FRAGMENT {
        return Err(DropReason::Fragment);
    }
    Ok(packet)
}

/// Checks the header of a fragment, and its fragment header.
pub(crate) fn parse_piece(packet: &[u8]) -> Result<Piece<'_>, DropReason> {
    let packet = check(packet)?;
    let (fragment, payload) = match packet.payload.split_first_chunk::<FRAGMENT_HEADER_LEN>() {
        Some(parts) if packet.protocol == NEXT_FRAGMENT => parts,
        Some(_) | None => return Err(DropReason::Fragment),
    };
    let [next, _, offset0, offset1, i0, i1, i2, i3] = *fragment;
    let field = u16::from_be_bytes([offset0, offset1]);
    Ok(Piece {
        src: packet.src,
        dst: packet.dst,
        protocol: next,
        ident: u32::from_be_bytes([i0, i1, i2, i3]),
        offset: usize::from(field & !7),
        more: field & 1 != 0,
        header: packet.bytes.get(..HEADER_LEN).ok_or(DropReason::Truncated)?,
        payload,
    })
}

/// Turns the header of a first fragment, with the payload of all fragments right behind it, into that of a whole
/// packet of the protocol `next`. `None`: too long for one packet.
pub(crate) fn make_whole(packet: &mut [u8], next: u8) -> Option<()> {
    let (header, payload) = packet.split_first_chunk_mut::<HEADER_LEN>()?;
    let [length0, length1] = u16::try_from(payload.len()).ok()?.to_be_bytes();
    let [_, _, _, _, len0, len1, protocol, ..] = header;
    (*len0, *len1, *protocol) = (length0, length1, next);
    Some(())
}

/// Checks everything but whether the packet is a fragment.
fn check(packet: &[u8]) -> Result<IpPacket<'_>, DropReason> {
    let (header, rest) = packet.split_first_chunk::<HEADER_LEN>().ok_or(DropReason::Truncated)?;
    let [version, _, _, _, len0, len1, next, _, addresses @ ..] = *header;
    if version >> 4 != 6 {
        return Err(DropReason::BadHeader);
    }
    let length = usize::from(u16::from_be_bytes([len0, len1]));
    let payload = rest.get(..length).ok_or(DropReason::Truncated)?;
    if EXTENSIONS.contains(&next) {
        return Err(DropReason::ExtensionHeader);
    }
    let (src, dst) = addresses.split_first_chunk::<16>().ok_or(DropReason::Truncated)?;
    let dst = dst.first_chunk::<16>().ok_or(DropReason::Truncated)?;
    Ok(IpPacket {
        src: IpAddr::V6(Ipv6Addr::from(*src)),
        dst: IpAddr::V6(Ipv6Addr::from(*dst)),
        protocol: next,
        fragmentation: Fragmentation::Forbidden,
        bytes: packet.get(..HEADER_LEN + length).ok_or(DropReason::Truncated)?,
        payload,
    })
}

/// Appends a header for `length` bytes of payload. `None` when the length field cannot hold it.
pub(crate) fn emit(packet: &mut Vec<u8>, src: Ipv6Addr, dst: Ipv6Addr, next: u8, length: usize) -> Option<()> {
    let [len0, len1] = u16::try_from(length).ok()?.to_be_bytes();
    packet.extend_from_slice(&[0x60, 0, 0, 0, len0, len1, next, HOP_LIMIT]);
    packet.extend_from_slice(&src.octets());
    packet.extend_from_slice(&dst.octets());
    Some(())
}

/// Appends a fragment header; `offset` in bytes is a multiple of 8. `None` when its field cannot hold it.
pub(crate) fn emit_fragment_header(
    packet: &mut Vec<u8>,
    next: u8,
    ident: u32,
    offset: usize,
    more: bool,
) -> Option<()> {
    let [high, low] = u16::try_from(offset).ok().filter(|offset| offset % 8 == 0)?.to_be_bytes();
    packet.extend_from_slice(&[next, 0, high, low | u8::from(more)]);
    packet.extend_from_slice(&ident.to_be_bytes());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRC: Ipv6Addr = Ipv6Addr::new(0xfd42, 0, 0, 0, 0, 0, 0, 2);
    const DST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

    fn packet(next: u8, length: usize) -> Vec<u8> {
        let mut packet = Vec::new();
        emit(&mut packet, SRC, DST, next, length).unwrap();
        packet.resize(HEADER_LEN + length, 7);
        packet
    }

    #[test]
    fn reads_back_what_it_writes_and_leaves_trailing_bytes_out() {
        let mut bytes = packet(17, 9);
        bytes.extend_from_slice(&[1, 2, 3]);
        let view = parse(&bytes).unwrap();
        assert_eq!((view.src, view.dst, view.protocol), (SRC.into(), DST.into(), 17));
        assert_eq!((view.payload, view.bytes.len()), (&[7u8; 9][..], 49));
    }

    #[test]
    fn refuses_extension_headers_fragments_and_bad_lengths() {
        for next in EXTENSIONS {
            assert_eq!(parse(&packet(next, 8)).err(), Some(DropReason::ExtensionHeader), "next header {next}");
        }
        assert_eq!(parse(&packet(NEXT_FRAGMENT, 8)).err(), Some(DropReason::Fragment));
        assert_eq!(parse(&packet(17, 0)[..39]).err(), Some(DropReason::Truncated));
        assert_eq!(parse(&packet(17, 8)[..47]).err(), Some(DropReason::Truncated));
        let mut wrong = packet(17, 8);
        wrong[0] = 0x50;
        assert_eq!(parse(&wrong).err(), Some(DropReason::BadHeader));
    }

    #[test]
    fn reads_a_fragment_and_makes_it_whole() {
        let mut bytes = packet(NEXT_FRAGMENT, 16);
        bytes[40..48].copy_from_slice(&[17, 0xff, 0x05, 0xaf, 1, 2, 3, 4]);
        let piece = parse_piece(&bytes).unwrap();
        assert_eq!((piece.src, piece.dst, piece.protocol), (SRC.into(), DST.into(), 17));
        assert_eq!((piece.ident, piece.offset, piece.more), (0x0102_0304, 1448, true));
        assert_eq!((piece.header, piece.payload), (&bytes[..40], &[7u8; 8][..]));
        assert_eq!(parse_piece(&packet(NEXT_FRAGMENT, 7)).err(), Some(DropReason::Fragment), "no fragment header");
        assert_eq!(parse_piece(&packet(17, 16)).err(), Some(DropReason::Fragment), "not a fragment");
        let mut whole = [&bytes[..40], &[8; 100]].concat();
        make_whole(&mut whole, 17).unwrap();
        let view = parse(&whole).unwrap();
        assert_eq!((view.protocol, view.payload), (17, &[8u8; 100][..]));
        whole.resize(40 + 65_535, 0);
        assert!(make_whole(&mut whole, 17).is_some());
        whole.push(0);
        assert!(make_whole(&mut whole, 17).is_none());
    }

    #[test]
    fn writes_the_fragment_header_of_rfc_8200() {
        let mut out = Vec::new();
        emit_fragment_header(&mut out, 17, 0x0102_0304, 1448, true).unwrap();
        assert_eq!(out, [17, 0, 0x05, 0xa9, 1, 2, 3, 4]);
        assert!(emit_fragment_header(&mut out, 17, 0, 12, true).is_none());
        assert!(emit_fragment_header(&mut out, 17, 0, 65536, true).is_none());
    }
}
