//! The `virtio_net_hdr` that stands before each packet on the TUN (VIRTIO 1.3 §5.1.6, `linux/virtio_net.h`).
//!
//! Ten bytes, in the byte order of the machine (the TUN's default, without `TUNSETVNETLE`): flags, kind of
//! segmentation, length of all headers, segment size, where the checksummed part starts, and where in it the sum goes.
//! The kernel writes the header, not the guest, but a guest that may open packet sockets chooses much of it.

use std::num::NonZeroU16;

/// Length of the header; the shell sets it with `TUNSETVNETHDRSZ`.
pub const HEADER_LEN: usize = 10;

const FLAG_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_UDP_L4: u8 = 5;
/// Length of a UDP header, which ends the headers of every packet that is to be segmented.
const UDP_HEADER_LEN: u16 = 8;

/// What is left to do on a packet by whoever takes it off the TUN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offload {
    /// The transport checksum holds the sum of the pseudo header only.
    pub needs_csum: Option<PartialChecksum>,
    /// A UDP packet whose payload is a batch of datagrams of this many bytes, the last one may be shorter.
    pub udp_segment: Option<NonZeroU16>,
}

/// Where a checksum is to be finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Offset in the packet from which to sum.
    pub start: u16,
    /// Offset from `start` at which the sum is stored.
    pub offset: u16,
}

impl Offload {
    /// Nothing is left to do.
    pub const NONE: Offload = Offload { needs_csum: None, udp_segment: None };

    /// Reads the header. `None` for a kind of segmentation that the TUN was not told to use.
    #[must_use]
    pub fn parse(header: &[u8; HEADER_LEN]) -> Option<Offload> {
        let [flags, kind, _, _, size0, size1, start0, start1, offset0, offset1] = *header;
        let needs_csum = (flags & FLAG_NEEDS_CSUM != 0).then(|| PartialChecksum {
            start: u16::from_ne_bytes([start0, start1]),
            offset: u16::from_ne_bytes([offset0, offset1]),
        });
        let udp_segment = match kind {
            GSO_NONE => None,
            GSO_UDP_L4 => Some(NonZeroU16::new(u16::from_ne_bytes([size0, size1]))?),
            _ => return None,
        };
        Some(Offload { needs_csum, udp_segment })
    }

    /// Writes the header.
    #[must_use]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let flags = if self.needs_csum.is_some() { FLAG_NEEDS_CSUM } else { 0 };
        let (start, offset) = self.needs_csum.map_or((0, 0), |sum| (sum.start, sum.offset));
        let kind = if self.udp_segment.is_some() { GSO_UDP_L4 } else { GSO_NONE };
        let size = self.udp_segment.map_or(0, NonZeroU16::get);
        // Only a packet to be segmented has to say where its headers end.
        let headers = if self.udp_segment.is_some() { start.saturating_add(UDP_HEADER_LEN) } else { 0 };
        let [headers0, headers1] = headers.to_ne_bytes();
        let [size0, size1] = size.to_ne_bytes();
        let [start0, start1] = start.to_ne_bytes();
        let [offset0, offset1] = offset.to_ne_bytes();
        [flags, kind, headers0, headers1, size0, size1, start0, start1, offset0, offset1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_writes() {
        let partial = Offload { needs_csum: Some(PartialChecksum { start: 20, offset: 16 }), udp_segment: None };
        let batch =
            Offload { needs_csum: Some(PartialChecksum { start: 40, offset: 6 }), udp_segment: NonZeroU16::new(1200) };
        for offload in [Offload::NONE, partial, batch] {
            assert_eq!(Offload::parse(&offload.emit()), Some(offload));
        }
    }

    #[test]
    fn writes_what_the_kernel_reads() {
        let batch = Offload {
            needs_csum: Some(PartialChecksum { start: 20, offset: 6 }),
            udp_segment: NonZeroU16::new(0x0102),
        };
        let mut expected = vec![1, 5];
        for field in [28u16, 0x0102, 20, 6] {
            expected.extend_from_slice(&field.to_ne_bytes());
        }
        assert_eq!(batch.emit().as_slice(), expected);
    }

    #[test]
    fn refuses_other_kinds_of_segmentation_and_an_empty_segment() {
        for kind in (1..=255).filter(|kind| *kind != GSO_UDP_L4) {
            assert_eq!(Offload::parse(&[0, kind, 0, 0, 9, 9, 0, 0, 0, 0]), None, "kind {kind}");
        }
        assert_eq!(Offload::parse(&[1, GSO_UDP_L4, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
