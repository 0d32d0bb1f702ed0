//! Packets for the guest that carry what a remote said: UDP datagrams and echo replies.
//!
//! A datagram that fits the guest's MTU goes out whole, its checksum left to the kernel; a batch of equal datagrams goes
//! out as one packet for the kernel to cut up (UDP GSO); what is larger than the MTU is fragmented here, since nobody
//! behind the TUN would.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use crate::api::Output;
use crate::wire::icmp::{self, IcmpError};
use crate::wire::ip::{IpEnds, PROTO_UDP};
use crate::wire::udp::{self, Sum};
use crate::wire::virtio::{Offload, PartialChecksum};
use crate::wire::{ipv4, ipv6};

/// The smallest MTU that every calculation here works with: what every IPv4 host takes (RFC 1122 §3.3.2).
const MIN_MTU: usize = 576;
/// The longest IP packet: its length field has 16 bits, and the kernel counts the IPv6 header in for segmentation.
const MAX_PACKET: usize = 65_535;
/// Datagrams in one batch: `UDP_MAX_SEGMENTS` was 64 before Linux 6.9.
pub(crate) const MAX_SEGMENTS: usize = 64;

#[derive(Debug)]
pub(crate) struct Replies {
    mtu: usize,
    next_fragment: u64,
}

impl Replies {
    /// `next_fragment` starts the identifications of fragments; random, so that they differ between sandboxes.
    pub(crate) fn new(mtu: usize, next_fragment: u64) -> Replies {
        Replies { mtu: mtu.max(MIN_MTU), next_fragment }
    }

    /// An ICMP error. `None` when the families differ.
    pub(crate) fn error(from: IpAddr, guest: IpAddr, error: IcmpError, quote: &[u8]) -> Option<Vec<u8>> {
        icmp::emit_error(IpEnds::new(from, guest)?, error, quote)
    }

    /// An echo reply; `ends` are its source and destination. `None` when it does not fit into IP.
    pub(crate) fn echo(
        &mut self,
        outputs: &mut VecDeque<Output>,
        ends: (IpAddr, IpAddr),
        ident: u16,
        sequence: u16,
        payload: &[u8],
    ) -> Option<()> {
        let ends = IpEnds::new(ends.0, ends.1)?;
        let (protocol, message) = icmp::emit_echo_reply(ends, ident, sequence, payload);
        if ends.header_len() + message.len() > self.mtu {
            return self.fragment(outputs, ends, protocol, &message);
        }
        let mut packet = Vec::with_capacity(ends.header_len() + message.len());
        ends.emit_header(&mut packet, protocol, message.len())?;
        packet.extend_from_slice(&message);
        outputs.push_back(Output::Emit { offload: Offload::NONE, packet });
        Some(())
    }

    /// One datagram, or with `segment` a batch of them. `None` when one does not fit into IP.
    pub(crate) fn udp(
        &mut self,
        outputs: &mut VecDeque<Output>,
        src: SocketAddr,
        dst: SocketAddr,
        payload: &[u8],
        segment: Option<u16>,
    ) -> Option<()> {
        let ends = IpEnds::new(src.ip(), dst.ip())?;
        let ports = (src.port(), dst.port());
        let headers = ends.header_len() + udp::HEADER_LEN;
        let segment = segment.and_then(NonZeroU16::new).filter(|size| usize::from(size.get()) < payload.len());
        let Some(segment) = segment else {
            return self.datagram(outputs, ends, ports, payload);
        };
        let size = usize::from(segment.get());
        if headers + size > self.mtu {
            return payload.chunks(size).try_for_each(|piece| self.datagram(outputs, ends, ports, piece));
        }
        let per_packet = ((MAX_PACKET - headers) / size).min(MAX_SEGMENTS);
        for batch in payload.chunks(per_packet * size) {
            let offload = if batch.len() > size {
                Offload { udp_segment: Some(segment), ..partial(ends) }
            } else {
                partial(ends)
            };
            whole(outputs, ends, ports, batch, offload)?;
        }
        Some(())
    }

    fn datagram(
        &mut self,
        outputs: &mut VecDeque<Output>,
        ends: IpEnds,
        ports: (u16, u16),
        payload: &[u8],
    ) -> Option<()> {
        if ends.header_len() + udp::HEADER_LEN + payload.len() <= self.mtu {
            return whole(outputs, ends, ports, payload, partial(ends));
        }
        let mut datagram = Vec::with_capacity(udp::HEADER_LEN + payload.len());
        udp::emit(&mut datagram, ends, ports.0, ports.1, payload, Sum::Complete)?;
        self.fragment(outputs, ends, PROTO_UDP, &datagram)
    }

    /// RFC 791 §3.2, RFC 8200 §4.5: every piece but the last is a multiple of 8 bytes long.
    fn fragment(&mut self, outputs: &mut VecDeque<Output>, ends: IpEnds, protocol: u8, payload: &[u8]) -> Option<()> {
        let extra = match ends {
            IpEnds::V4 { .. } if ends.header_len() + payload.len() > MAX_PACKET => return None,
            IpEnds::V4 { .. } => 0,
            IpEnds::V6 { .. } => ipv6::FRAGMENT_HEADER_LEN,
        };
        let size = (self.mtu - ends.header_len() - extra) & !7;
        let [_, _, _, _, i0, i1, i2, i3] = self.next_fragment.to_be_bytes();
        self.next_fragment = self.next_fragment.wrapping_add(1);
        let mut offset = 0;
        for piece in payload.chunks(size) {
            let more = offset + piece.len() < payload.len();
            let mut packet = Vec::with_capacity(ends.header_len() + extra + piece.len());
            match ends {
                IpEnds::V4 { src, dst } => {
                    let position = ipv4::Position::Fragment { ident: u16::from_be_bytes([i2, i3]), offset, more };
                    ipv4::emit(&mut packet, src, dst, protocol, piece.len(), position)?;
                }
                IpEnds::V6 { src, dst } => {
                    ipv6::emit(&mut packet, src, dst, ipv6::NEXT_FRAGMENT, extra + piece.len())?;
                    let ident = u32::from_be_bytes([i0, i1, i2, i3]);
                    ipv6::emit_fragment_header(&mut packet, protocol, ident, offset, more)?;
                }
            }
            packet.extend_from_slice(piece);
            outputs.push_back(Output::Emit { offload: Offload::NONE, packet });
            offset += piece.len();
        }
        Some(())
    }
}

fn whole(
    outputs: &mut VecDeque<Output>,
    ends: IpEnds,
    ports: (u16, u16),
    payload: &[u8],
    offload: Offload,
) -> Option<()> {
    let length = udp::HEADER_LEN + payload.len();
    let mut packet = Vec::with_capacity(ends.header_len() + length);
    ends.emit_header(&mut packet, PROTO_UDP, length)?;
    udp::emit(&mut packet, ends, ports.0, ports.1, payload, Sum::Partial)?;
    outputs.push_back(Output::Emit { offload, packet });
    Some(())
}

/// The checksum of the UDP header right behind the IP header is left to the kernel.
fn partial(ends: IpEnds) -> Offload {
    let start = match ends {
        IpEnds::V4 { .. } => 20,
        IpEnds::V6 { .. } => 40,
    };
    Offload { needs_csum: Some(PartialChecksum { start, offset: udp::CHECKSUM_FIELD }), udp_segment: None }
}
