//! Datagrams that a guest sends on one flow: each begins with its length in two bytes; the first byte is the port.
#![no_main]

use cofferdam_flight::{Datagram, QuicReader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [port, rest @ ..] = data else { return };
    let mut reader = QuicReader::new(if port & 1 == 0 { 443 } else { 8443 });
    let mut rest = rest;
    while let [high, low, more @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (datagram, later) = more.split_at(length.min(more.len()));
        if let Datagram::Ask(shown) = reader.look(datagram) {
            assert!(shown.names().len() <= 1);
        }
        rest = later;
    }
});
