//! TCP segments (RFC 9293 §3.1): SYNs are read, RSTs are written. Everything else is the kernel's.

use cofferdam_model::DropReason;

use crate::wire::ip::{IpEnds, IpPacket, PROTO_TCP};
use crate::wire::virtio::Offload;

/// A header without options.
pub(crate) const HEADER_LEN: usize = 20;
/// Offset of the checksum in the header.
pub(crate) const CHECKSUM_FIELD: u16 = 16;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A segment that opens a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Syn {
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) seq: u32,
    /// Header with options.
    pub(crate) header_len: usize,
    /// Data that came with the SYN (RFC 7413).
    pub(crate) data_len: usize,
}

impl Syn {
    /// Checks the segment in `packet`. ECN set-up flags (RFC 3168 §6.1.1) may be set. What is not a SYN is unexpected:
    /// the kernel sends it to its own TCP.
    pub(crate) fn parse(packet: &IpPacket<'_>, offload: Offload) -> Result<Syn, DropReason> {
        let header = packet.payload.first_chunk::<HEADER_LEN>().ok_or(DropReason::Truncated)?;
        let [s0, s1, d0, d1, q0, q1, q2, q3, _, _, _, _, offset, flags, ..] = *header;
        let header_len = usize::from(offset >> 4) * 4;
        if header_len < HEADER_LEN {
            return Err(DropReason::BadHeader);
        }
        let data_len = packet.payload.len().checked_sub(header_len).ok_or(DropReason::Truncated)?;
        packet.check_sum(offload, packet.payload, CHECKSUM_FIELD)?;
        let (src_port, dst_port) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
        if src_port == 0 || dst_port == 0 {
            return Err(DropReason::PortZero);
        }
        if !opens(flags) || offload.udp_segment.is_some() {
            return Err(DropReason::Unexpected);
        }
        Ok(Syn { src_port, dst_port, seq: u32::from_be_bytes([q0, q1, q2, q3]), header_len, data_len })
    }

    /// The number that acknowledges everything in the segment.
    pub(crate) fn next_seq(&self) -> u32 {
        self.seq.wrapping_add(1).wrapping_add(u32::try_from(self.data_len).unwrap_or(0))
    }
}

/// Whether a segment with these flags opens a connection.
pub(crate) fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

/// The whole packet that refuses `syn` (RFC 9293 §3.5.2, group 1). `ends` are those of the answer.
pub(crate) fn emit_reset(ends: IpEnds, syn: &Syn) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(ends.header_len() + HEADER_LEN);
    ends.emit_header(&mut packet, PROTO_TCP, HEADER_LEN)?;
    let [s0, s1] = syn.dst_port.to_be_bytes();
    let [d0, d1] = syn.src_port.to_be_bytes();
    let [a0, a1, a2, a3] = syn.next_seq().to_be_bytes();
    let mut segment = [s0, s1, d0, d1, 0, 0, 0, 0, a0, a1, a2, a3, 0x50, RST | ACK, 0, 0, 0, 0, 0, 0];
    let [c0, c1] = ends.pseudo(PROTO_TCP, HEADER_LEN).add(&segment).finish().to_be_bytes();
    segment = [s0, s1, d0, d1, 0, 0, 0, 0, a0, a1, a2, a3, 0x50, RST | ACK, 0, 0, c0, c1, 0, 0];
    packet.extend_from_slice(&segment);
    Some(packet)
}

/// The packet of `syn` for the kernel to take in, with what is left to do on it.
///
/// Data in the SYN is cut off, so that what is kept of a connection is bounded by the headers: TCP sends it again when
/// the SYN alone is acknowledged (RFC 9293 §3.8.1).
pub(crate) fn keep(packet: &IpPacket<'_>, syn: &Syn, offload: Offload) -> Option<(Vec<u8>, Offload)> {
    if syn.data_len == 0 {
        return Some((packet.bytes.to_vec(), offload));
    }
    let ends = IpEnds::new(packet.src, packet.dst)?;
    let (before, after) = packet.payload.get(..syn.header_len)?.split_at_checked(usize::from(CHECKSUM_FIELD))?;
    let (_, after) = after.split_first_chunk::<2>()?;
    let sum = ends.pseudo(PROTO_TCP, syn.header_len).add(before).add(after).finish();
    let mut kept = Vec::with_capacity(ends.header_len() + syn.header_len);
    ends.emit_header(&mut kept, PROTO_TCP, syn.header_len)?;
    kept.extend_from_slice(before);
    kept.extend_from_slice(&sum.to_be_bytes());
    kept.extend_from_slice(after);
    Some((kept, Offload::NONE))
}
