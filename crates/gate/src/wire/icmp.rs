//! ICMP (RFC 792) and ICMPv6 (RFC 4443): echo both ways, errors towards the guest.

use std::net::IpAddr;

use cofferdam_model::DropReason;

use crate::wire::checksum::Checksum;
use crate::wire::ip::{IpEnds, IpPacket, PROTO_ICMP, PROTO_ICMPV6};
use crate::wire::virtio::Offload;

/// Type, code, checksum and four bytes that depend on the type.
pub(crate) const HEADER_LEN: usize = 8;
const CHECKSUM_FIELD: u16 = 2;

const V4_ECHO_REPLY: u8 = 0;
const V4_ECHO_REQUEST: u8 = 8;
const V6_ECHO_REQUEST: u8 = 128;
const V6_ECHO_REPLY: u8 = 129;

/// The largest error packet: RFC 1812 §4.3.2.3 for IPv4, the minimum MTU (RFC 4443 §2.4 c) for IPv6.
const V4_ERROR_LEN: usize = 576;
const V6_ERROR_LEN: usize = 1280;

/// An echo request of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EchoRequest<'a> {
    pub(crate) ident: u16,
    pub(crate) sequence: u16,
    pub(crate) payload: &'a [u8],
}

impl<'a> EchoRequest<'a> {
    /// Checks the message in `packet`, which is ICMP for IPv4 or ICMPv6 for IPv6. What is not an echo request is
    /// unsupported: errors and redirects of a guest change nothing.
    pub(crate) fn parse(packet: &IpPacket<'a>, offload: Offload) -> Result<EchoRequest<'a>, DropReason> {
        let (header, payload) = packet.payload.split_first_chunk::<HEADER_LEN>().ok_or(DropReason::Truncated)?;
        let [kind, code, _, _, i0, i1, q0, q1] = *header;
        packet.check_sum(offload, packet.payload, CHECKSUM_FIELD)?;
        let request = match packet.dst {
            IpAddr::V4(_) => V4_ECHO_REQUEST,
            IpAddr::V6(_) => V6_ECHO_REQUEST,
        };
        if kind != request || code != 0 || offload.udp_segment.is_some() {
            return Err(DropReason::UnsupportedIcmp);
        }
        Ok(EchoRequest { ident: u16::from_be_bytes([i0, i1]), sequence: u16::from_be_bytes([q0, q1]), payload })
    }
}

/// Whether a message of this type is an echo request or reply.
pub(crate) fn is_echo(kind: u8, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => matches!(kind, V4_ECHO_REQUEST | V4_ECHO_REPLY),
        IpAddr::V6(_) => matches!(kind, V6_ECHO_REQUEST | V6_ECHO_REPLY),
    }
}

/// The echo reply message, without its IP header, and its protocol number.
pub(crate) fn emit_echo_reply(ends: IpEnds, ident: u16, sequence: u16, payload: &[u8]) -> (u8, Vec<u8>) {
    let kind = match ends {
        IpEnds::V4 { .. } => V4_ECHO_REPLY,
        IpEnds::V6 { .. } => V6_ECHO_REPLY,
    };
    let [i0, i1] = ident.to_be_bytes();
    let [q0, q1] = sequence.to_be_bytes();
    emit_message(ends, kind, 0, [i0, i1, q0, q1], payload)
}

/// An ICMP error, in the words of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IcmpError {
    NetUnreachable,
    /// As [`IcmpError::NetUnreachable`], in words that a kernel passes on to UDP sockets as well: the usual ones are "only a
    /// hint" (RFC 1122 §3.2.2.1), which Linux keeps to itself unless the program asks for such.
    NoRoute,
    HostUnreachable,
    PortUnreachable,
    Prohibited,
    /// The path carries packets of at most `mtu` bytes.
    TooBig {
        mtu: u32,
    },
    /// The protocol (IPv4) or next header (IPv6) is not carried.
    UnknownProtocol,
}

impl IcmpError {
    /// Type, code and the four bytes behind the checksum (RFC 792, RFC 1191 §4, RFC 1812 §5.2.7.1, RFC 4443 §3).
    fn fields(self, ends: IpEnds) -> (u8, u8, [u8; 4]) {
        match (ends, self) {
            (IpEnds::V4 { .. }, IcmpError::NetUnreachable) => (3, 0, [0; 4]),
            // "Destination network unknown".
            (IpEnds::V4 { .. }, IcmpError::NoRoute) => (3, 6, [0; 4]),
            (IpEnds::V4 { .. }, IcmpError::HostUnreachable) => (3, 1, [0; 4]),
            (IpEnds::V4 { .. }, IcmpError::UnknownProtocol) => (3, 2, [0; 4]),
            (IpEnds::V4 { .. }, IcmpError::PortUnreachable) => (3, 3, [0; 4]),
            (IpEnds::V4 { .. }, IcmpError::TooBig { mtu }) => {
                let [high, low] = u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes();
                (3, 4, [0, 0, high, low])
            }
            (IpEnds::V4 { .. }, IcmpError::Prohibited) => (3, 13, [0; 4]),
            (IpEnds::V6 { .. }, IcmpError::NetUnreachable) => (1, 0, [0; 4]),
            // "Reject route to destination".
            (IpEnds::V6 { .. }, IcmpError::NoRoute) => (1, 6, [0; 4]),
            (IpEnds::V6 { .. }, IcmpError::Prohibited) => (1, 1, [0; 4]),
            (IpEnds::V6 { .. }, IcmpError::HostUnreachable) => (1, 3, [0; 4]),
            (IpEnds::V6 { .. }, IcmpError::PortUnreachable) => (1, 4, [0; 4]),
            (IpEnds::V6 { .. }, IcmpError::TooBig { mtu }) => (2, 0, mtu.to_be_bytes()),
            // The pointer leads to the next header field of the fixed header.
            (IpEnds::V6 { .. }, IcmpError::UnknownProtocol) => (4, 1, 6u32.to_be_bytes()),
        }
    }
}

/// The whole packet of an error about the packet whose first bytes are `quote`.
pub(crate) fn emit_error(ends: IpEnds, error: IcmpError, quote: &[u8]) -> Option<Vec<u8>> {
    let longest = match ends {
        IpEnds::V4 { .. } => V4_ERROR_LEN,
        IpEnds::V6 { .. } => V6_ERROR_LEN,
    };
    let room = longest - ends.header_len() - HEADER_LEN;
    let quote = quote.get(..quote.len().min(room))?;
    let (kind, code, rest) = error.fields(ends);
    let (protocol, message) = emit_message(ends, kind, code, rest, quote);
    let mut packet = Vec::with_capacity(ends.header_len() + message.len());
    ends.emit_header(&mut packet, protocol, message.len())?;
    packet.extend_from_slice(&message);
    Some(packet)
}

fn emit_message(ends: IpEnds, kind: u8, code: u8, rest: [u8; 4], payload: &[u8]) -> (u8, Vec<u8>) {
    let length = HEADER_LEN + payload.len();
    let (protocol, pseudo) = match ends {
        IpEnds::V4 { .. } => (PROTO_ICMP, Checksum::default()),
        IpEnds::V6 { .. } => (PROTO_ICMPV6, ends.pseudo(PROTO_ICMPV6, length)),
    };
    let [c0, c1] = pseudo.add(&[kind, code, 0, 0]).add(&rest).add(payload).finish().to_be_bytes();
    let [r0, r1, r2, r3] = rest;
    let mut message = Vec::with_capacity(length);
    message.extend_from_slice(&[kind, code, c0, c1, r0, r1, r2, r3]);
    message.extend_from_slice(payload);
    (protocol, message)
}
