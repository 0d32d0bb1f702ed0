//! The Internet checksum (RFC 1071): the ones' complement of the ones' complement sum of 16-bit words.

use std::net::IpAddr;

/// A running sum, not yet folded. 64 bits hold the sum of any packet many times over.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Checksum(u64);

impl Checksum {
    /// The sum of the pseudo header of TCP, UDP and ICMPv6 (RFC 9293 §3.1, RFC 8200 §8.1).
    pub(crate) fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Checksum {
        let sum = Checksum(0).add_address(src).add_address(dst);
        Checksum(sum.0 + u64::from(protocol) + u64::try_from(length).unwrap_or(0))
    }

    /// Adds bytes; every piece but the last must have an even length.
    pub(crate) fn add(self, bytes: &[u8]) -> Checksum {
        // Words of 32 bits fold to the same sum as words of 16 and take half the additions (RFC 1071 §2).
        let mut sum = self.0;
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            sum += u64::from(u32::from_be_bytes(*word));
        }
        sum += match *rest {
            [a] => u64::from(u32::from_be_bytes([a, 0, 0, 0])),
            [a, b] => u64::from(u32::from_be_bytes([a, b, 0, 0])),
            [a, b, c] => u64::from(u32::from_be_bytes([a, b, c, 0])),
            _ => 0,
        };
        Checksum(sum)
    }

    fn add_address(self, address: IpAddr) -> Checksum {
        match address {
            IpAddr::V4(address) => self.add(&address.octets()),
            IpAddr::V6(address) => self.add(&address.octets()),
        }
    }

    /// The sum in 16 bits, not complemented: what a partial checksum carries.
    pub(crate) fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap_or(0)
    }

    /// The value for a checksum field.
    pub(crate) fn finish(self) -> u16 {
        !self.folded()
    }

    /// Whether a sum over a whole packet, its checksum field included, is right.
    pub(crate) fn is_valid(self) -> bool {
        self.folded() == 0xffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_example_of_rfc_1071() {
        assert_eq!(Checksum::default().add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).folded(), 0xddf2);
    }

    #[test]
    fn agrees_with_the_plain_definition_at_every_length() {
        let bytes: Vec<u8> = (0..67u8).map(|i| i.wrapping_mul(199)).collect();
        for len in 0..bytes.len() {
            let mut sum = 0u32;
            for pair in bytes[..len].chunks(2) {
                sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
                sum = (sum & 0xffff) + (sum >> 16);
            }
            assert_eq!(u32::from(Checksum::default().add(&bytes[..len]).folded()), sum, "length {len}");
        }
    }

    #[test]
    fn a_packet_with_its_own_checksum_is_valid_and_a_flipped_bit_is_not() {
        let mut packet = vec![0x45, 0, 0, 20, 1, 2, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let sum = Checksum::default().add(&packet).finish();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        assert!(Checksum::default().add(&packet).is_valid());
        packet[3] ^= 4;
        assert!(!Checksum::default().add(&packet).is_valid());
    }
}
