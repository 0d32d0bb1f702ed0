//! UDP datagrams (RFC 768).

use cofferdam_model::DropReason;

use crate::wire::ip::{IpEnds, IpPacket, PROTO_UDP};
use crate::wire::virtio::Offload;

pub(crate) const HEADER_LEN: usize = 8;
/// Offset of the checksum in the header.
pub(crate) const CHECKSUM_FIELD: u16 = 6;

/// Datagrams in one batch: `UDP_MAX_SEGMENTS` of Linux 6.9 and later. A guest with packet sockets can declare one of
/// 65,507; each would cost a system call.
const MAX_SEGMENTS: usize = 128;

/// A checked datagram, or a batch of them when the packet says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Datagram<'a> {
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    pub(crate) fn parse(packet: &IpPacket<'a>, offload: Offload) -> Result<Datagram<'a>, DropReason> {
        let header = packet.payload.first_chunk::<HEADER_LEN>().ok_or(DropReason::Truncated)?;
        let [s0, s1, d0, d1, len0, len1, sum0, sum1] = *header;
        let length = usize::from(u16::from_be_bytes([len0, len1]));
        if length < HEADER_LEN {
            return Err(DropReason::BadHeader);
        }
        let covered = packet.payload.get(..length).ok_or(DropReason::Truncated)?;
        let payload = covered.get(HEADER_LEN..).ok_or(DropReason::Truncated)?;
        if let Some(segment) = offload.udp_segment {
            if offload.needs_csum.is_none() {
                // One sum cannot stand for many datagrams: the kernel always leaves the sums of a batch to be finished.
                return Err(DropReason::BadChecksum);
            }
            if payload.len() > MAX_SEGMENTS * usize::from(segment.get()) {
                return Err(DropReason::BadHeader);
            }
        }
        // 0 stands for no checksum, which IPv6 does not know (RFC 8200 §8.1).
        let absent = [sum0, sum1] == [0, 0] && packet.dst.is_ipv4() && offload.needs_csum.is_none();
        if !absent {
            if [sum0, sum1] == [0, 0] && offload.needs_csum.is_none() {
                return Err(DropReason::BadChecksum);
            }
            packet.check_sum(offload, covered, CHECKSUM_FIELD)?;
        }
        let (src_port, dst_port) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
        if src_port == 0 || dst_port == 0 {
            return Err(DropReason::PortZero);
        }
        Ok(Datagram { src_port, dst_port, payload })
    }
}

/// How the checksum of an emitted datagram is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sum {
    /// In full.
    Complete,
    /// The pseudo header only; whoever takes the packet off the TUN finishes it.
    Partial,
}

/// Appends header and payload. `None` when the length field cannot hold it.
pub(crate) fn emit(
    packet: &mut Vec<u8>,
    ends: IpEnds,
    src_port: u16,
    dst_port: u16,
    payload: &[u8],
    sum: Sum,
) -> Option<()> {
    let length = u16::try_from(HEADER_LEN + payload.len()).ok()?;
    let [s0, s1] = src_port.to_be_bytes();
    let [d0, d1] = dst_port.to_be_bytes();
    let [len0, len1] = length.to_be_bytes();
    let pseudo = ends.pseudo(PROTO_UDP, usize::from(length));
    let value = match sum {
        Sum::Partial => pseudo.folded(),
        // A sum of 0 is sent as all ones (RFC 768): 0 stands for none.
        Sum::Complete => match pseudo.add(&[s0, s1, d0, d1, len0, len1]).add(payload).finish() {
            0 => 0xffff,
            value => value,
        },
    };
    let [c0, c1] = value.to_be_bytes();
    packet.extend_from_slice(&[s0, s1, d0, d1, len0, len1, c0, c1]);
    packet.extend_from_slice(payload);
    Some(())
}
