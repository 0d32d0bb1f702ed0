//! IPv6 headers (RFC 8200). Extension headers are not carried; the fragment header is emitted only.

use std::net::{IpAddr, Ipv6Addr};

use cofferdam_model::DropReason;

use crate::wire::ip::IpPacket;

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

/// Checks the header. The kernel reassembles before us, so that a fragment here is one that it would not.
pub(crate) fn parse(packet: &[u8]) -> Result<IpPacket<'_>, DropReason> {
    let (header, rest) = packet.split_first_chunk::<HEADER_LEN>().ok_or(DropReason::Truncated)?;
    let [version, _, _, _, len0, len1, next, _, addresses @ ..] = *header;
    if version >> 4 != 6 {
        return Err(DropReason::BadHeader);
    }
    let length = usize::from(u16::from_be_bytes([len0, len1]));
    let payload = rest.get(..length).ok_or(DropReason::Truncated)?;
    if next == NEXT_FRAGMENT {
        return Err(DropReason::Fragment);
    }
    if EXTENSIONS.contains(&next) {
        return Err(DropReason::ExtensionHeader);
    }
    let (src, dst) = addresses.split_first_chunk::<16>().ok_or(DropReason::Truncated)?;
    let dst = dst.first_chunk::<16>().ok_or(DropReason::Truncated)?;
    Ok(IpPacket {
        src: IpAddr::V6(Ipv6Addr::from(*src)),
        dst: IpAddr::V6(Ipv6Addr::from(*dst)),
        protocol: next,
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
    fn writes_the_fragment_header_of_rfc_8200() {
        let mut out = Vec::new();
        emit_fragment_header(&mut out, 17, 0x0102_0304, 1448, true).unwrap();
        assert_eq!(out, [17, 0, 0x05, 0xa9, 1, 2, 3, 4]);
        assert!(emit_fragment_header(&mut out, 17, 0, 12, true).is_none());
        assert!(emit_fragment_header(&mut out, 17, 0, 65536, true).is_none());
    }
}
