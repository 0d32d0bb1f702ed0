use std::hash::{Hash, Hasher};
use std::net::IpAddr;

/// What a flow is found by: the remote's address and three small numbers, packed for hashing in whole words.
///
/// The guest's address is left out: there is one per family. An IPv4 address is packed as its IPv4-mapped form, which is
/// never a remote of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    high: u64,
    low: u64,
    numbers: u64,
}

impl Key {
    pub(crate) fn new(remote: IpAddr, numbers: [u16; 3]) -> Key {
        let address = match remote {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        };
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address.to_be_bytes();
        let [x, y, z] = numbers.map(u64::from);
        Key {
            high: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            low: u64::from_be_bytes([i, j, k, l, m, n, o, p]),
            numbers: x << 32 | y << 16 | z,
        }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.high);
        state.write_u64(self.low);
        state.write_u64(self.numbers);
    }
}
