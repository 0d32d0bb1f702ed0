//! What a look at a first flight costs: it stands between a client and its server once per connection, or request.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a bench stops where it fails")]

#[path = "../tests/common/mod.rs"]
mod common;

use cofferdam_flight::{Datagram, GuestStream, Look, QuicReader};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

/// Names, key shares and padding as a browser has them.
fn browser_hello() -> Vec<u8> {
    let extensions: Vec<(u16, Vec<u8>)> = (10..26)
        .map(|kind| (kind, vec![7; 24]))
        .chain([common::name(b"www.example.org"), (51, vec![9; 1_220])])
        .collect();
    common::records(&common::hello(&extensions), &[])
}

#[divan::bench]
fn client_hello(bencher: Bencher<'_, '_>) {
    let bytes = browser_hello();
    bencher.bench_local(|| {
        let look = GuestStream::new().look(black_box(&bytes), false);
        assert!(matches!(look, Look::Ask { .. }));
        look
    });
}

#[divan::bench]
fn client_hello_in_two_segments(bencher: Bencher<'_, '_>) {
    let bytes = browser_hello();
    bencher.bench_local(|| {
        let mut stream = GuestStream::new();
        assert_eq!(stream.look(black_box(&bytes[..1_400]), false), Look::More);
        stream.look(black_box(&bytes), false)
    });
}

#[divan::bench]
fn http_request(bencher: Bencher<'_, '_>) {
    let fields = "Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nCookie: a=b\r\n";
    let text = format!("GET /some/path?query=1 HTTP/1.1\r\nHost: www.example.org\r\n{fields}\r\n");
    bencher.bench_local(|| GuestStream::new().look(black_box(text.as_bytes()), false));
}

/// Key derivation and one AEAD over 1,200 bytes; here of a packet that does not open, which costs the same.
#[divan::bench]
fn quic_initial(bencher: Bencher<'_, '_>) {
    let mut packet = vec![0xc3, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0x9e];
    packet.resize(1_200, 5);
    bencher.bench_local(|| {
        let look = QuicReader::new(443).look(black_box(&packet));
        assert!(matches!(look, Datagram::Ask(_)));
        look
    });
}
