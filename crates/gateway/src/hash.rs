//! Hashing of numbers that we hand out ourselves.

use std::hash::{BuildHasherDefault, Hasher};

/// For maps whose keys are numbers of the gateway's own counting, which no guest can choose.
pub(crate) type FlowHash = BuildHasherDefault<CounterHasher>;

/// Fibonacci hashing: one multiplication by 2^64 divided by the golden ratio spreads consecutive numbers evenly.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct CounterHasher(u64);

impl Hasher for CounterHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}
