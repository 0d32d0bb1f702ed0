//! What IPv4 and IPv6 have in common once their headers were checked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cofferdam_model::DropReason;

use crate::api::Fragmentation;
use crate::wire::checksum::Checksum;
use crate::wire::virtio::Offload;
use crate::wire::{ipv4, ipv6};

/// Protocol numbers (IANA, Assigned Internet Protocol Numbers).
pub(crate) const PROTO_ICMP: u8 = 1;
pub(crate) const PROTO_TCP: u8 = 6;
pub(crate) const PROTO_UDP: u8 = 17;
pub(crate) const PROTO_ICMPV6: u8 = 58;

/// A whole IP packet: no options, no extension headers, not a fragment, lengths checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IpPacket<'a> {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// The protocol (IPv4) or next header (IPv6) field.
    pub(crate) protocol: u8,
    pub(crate) fragmentation: Fragmentation,
    /// Header and payload, without what may follow them.
    pub(crate) bytes: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> IpPacket<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<IpPacket<'a>, DropReason> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => ipv4::parse(bytes),
            Some(6) => ipv6::parse(bytes),
            Some(_) => Err(DropReason::BadHeader),
            None => Err(DropReason::Truncated),
        }
    }

    /// Checks the transport checksum over `covered`, the first bytes of the payload. `field` is where the sum stands.
    ///
    /// A sum that is declared partial cannot be checked: the sender's kernel has promised to finish it. The declaration
    /// must then be about this very field.
    pub(crate) fn check_sum(&self, offload: Offload, covered: &[u8], field: u16) -> Result<(), DropReason> {
        if let Some(partial) = offload.needs_csum {
            let here = usize::from(partial.start) == self.header_len() && partial.offset == field;
            return if here { Ok(()) } else { Err(DropReason::BadChecksum) };
        }
        let sum = match self.protocol {
            PROTO_ICMP => Checksum::default(),
            _ => Checksum::pseudo(self.src, self.dst, self.protocol, covered.len()),
        };
        if sum.add(covered).is_valid() { Ok(()) } else { Err(DropReason::BadChecksum) }
    }

    /// Length of the IP header.
    pub(crate) fn header_len(&self) -> usize {
        header_len(self.dst)
    }
}

/// A fragment: no options, no extension headers but its own, lengths checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'a> {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// Of the whole packet.
    pub(crate) protocol: u8,
    /// 16 bits of it in IPv4.
    pub(crate) ident: u32,
    /// Where the payload stands in the whole packet's, in bytes; a multiple of 8.
    pub(crate) offset: usize,
    /// Whether others follow.
    pub(crate) more: bool,
    /// The IP header, without the fragment header of IPv6.
    pub(crate) header: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> Piece<'a> {
    /// Reads a packet that [`IpPacket::parse`] refused as a fragment.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Piece<'a>, DropReason> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => ipv4::parse_piece(bytes),
            Some(6) => ipv6::parse_piece(bytes),
            Some(_) => Err(DropReason::BadHeader),
            None => Err(DropReason::Truncated),
        }
    }
}

/// Length of the headers we carry and emit for packets to `address`: neither options nor extension headers.
pub(crate) fn header_len(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => ipv4::HEADER_LEN,
        IpAddr::V6(_) => ipv6::HEADER_LEN,
    }
}

/// Source and destination of a packet, of one family.
#[derive(Debug, Clone, Copy)]
pub(crate) enum IpEnds {
    V4 { src: Ipv4Addr, dst: Ipv4Addr },
    V6 { src: Ipv6Addr, dst: Ipv6Addr },
}

impl IpEnds {
    /// `None` when the families differ.
    pub(crate) fn new(src: IpAddr, dst: IpAddr) -> Option<IpEnds> {
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => Some(IpEnds::V4 { src, dst }),
            (IpAddr::V6(src), IpAddr::V6(dst)) => Some(IpEnds::V6 { src, dst }),
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
        }
    }

    pub(crate) fn header_len(self) -> usize {
        match self {
            IpEnds::V4 { .. } => ipv4::HEADER_LEN,
            IpEnds::V6 { .. } => ipv6::HEADER_LEN,
        }
    }

    /// The sum of the pseudo header for `length` bytes of transport header and payload.
    pub(crate) fn pseudo(self, protocol: u8, length: usize) -> Checksum {
        match self {
            IpEnds::V4 { src, dst } => Checksum::pseudo(src.into(), dst.into(), protocol, length),
            IpEnds::V6 { src, dst } => Checksum::pseudo(src.into(), dst.into(), protocol, length),
        }
    }

    /// Appends the header of an unfragmented packet with `length` bytes of payload. `None`: too long for one packet.
    pub(crate) fn emit_header(self, packet: &mut Vec<u8>, protocol: u8, length: usize) -> Option<()> {
        match self {
            IpEnds::V4 { src, dst } => ipv4::emit(packet, src, dst, protocol, length, ipv4::Position::Whole),
            IpEnds::V6 { src, dst } => ipv6::emit(packet, src, dst, protocol, length),
        }
    }
}
