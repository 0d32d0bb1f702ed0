use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes_gcm::Aes128Gcm;
use aes_gcm::aead::AeadInOut;

use super::keys::Material;
use super::packet::Version;
use super::*;

const ID: [u8; 8] = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
/// The CRYPTO frame of RFC 9001 §A.2, a ClientHello for example.com.
const FRAME: &str = "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c00000413011302010000\
    c000000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d00170018001000070005\
    04616c706e000500050100000000003300260024001d00209370b2c9caa47fbabaf4559fedba753de171fa71f50f1ce15d43e994ec74d748\
    002b0003020304000d0010000e0403050306030203080408050806002d00020101001c00024001003900320408ffffffffffffffff0504\
    8000ffff07048000ffff0801100104800075300901100f088394c8f03e51570806048000ffff";

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// A client's Initial with these frames, padded to `size`, sealed with the keys of `key_id`.
fn initial(version: Version, key_id: &[u8], id: &[u8], number: u32, frames: &[u8], size: usize) -> Vec<u8> {
    let (bits, version_number) = match version {
        Version::One => (0xc3, [0, 0, 0, 1]),
        Version::Two => (0xd3, [0x6b, 0x33, 0x43, 0xcf]),
    };
    let mut header = vec![bits];
    header.extend(version_number);
    header.push(u8::try_from(id.len()).unwrap());
    header.extend(id);
    header.extend([0, 0]);
    let length = size - header.len() - 2;
    header.extend(u16::try_from(length | 0x4000).unwrap().to_be_bytes());
    header.extend(number.to_be_bytes());
    let mut payload = frames.to_vec();
    payload.resize(length - 4 - 16, 0);
    let Material { key, iv, header: header_key } = Material::of(version, key_id);
    let mut nonce = iv;
    for (byte, number) in nonce[8..].iter_mut().zip(number.to_be_bytes()) {
        *byte ^= number;
    }
    let tag = Aes128Gcm::new(&key.into())
        .encrypt_inout_detached(&nonce.into(), &header, payload.as_mut_slice().into())
        .unwrap();
    payload.extend(tag);
    let mut sample = <[u8; 16]>::try_from(&payload[..16]).unwrap().into();
    Aes128::new(&header_key.into()).encrypt_block(&mut sample);
    header[0] ^= sample[0] & 0x0f;
    let at = header.len() - 4;
    for (byte, mask) in header[at..].iter_mut().zip(&sample[1..]) {
        *byte ^= mask;
    }
    header.extend(payload);
    header
}

fn crypto(offset: u16, data: &[u8]) -> Vec<u8> {
    let mut frame = vec![6];
    frame.extend((offset | 0x4000).to_be_bytes());
    frame.extend((u16::try_from(data.len()).unwrap() | 0x4000).to_be_bytes());
    frame.extend(data);
    frame
}

fn hello() -> Vec<u8> {
    hex(FRAME)[4..].to_vec()
}

fn example() -> Datagram {
    Datagram::Ask(Shown::Quic { server_name: Some("example.com".parse().unwrap()), ech: false })
}

fn unreadable(doubt: Doubt) -> Datagram {
    Datagram::Ask(Shown::Unreadable { protocol: Protocol::Quic, doubt })
}

#[test]
fn keys_are_those_of_the_standards() {
    let one = Material::of(Version::One, &ID);
    assert_eq!(one.key[..], hex("1f369613dd76d5467730efcbe3b1a22d"));
    assert_eq!(one.iv[..], hex("fa044b2f42a3fd3b46fb255c"));
    assert_eq!(one.header[..], hex("9f50449e04a0e810283a1e9933adedd2"));
    let two = Material::of(Version::Two, &ID);
    assert_eq!(two.key[..], hex("8b1a0bc121284290a29e0971b5cd045d"));
    assert_eq!(two.iv[..], hex("91f73e2351d8fa91660e909f"));
    assert_eq!(two.header[..], hex("45b95e15235d6f45a6b19cbcb0294ba9"));
}

#[test]
fn reads_the_packet_of_the_standard() {
    let packet = initial(Version::One, &ID, &ID, 2, &hex(FRAME), 1200);
    // RFC 9001 §A.2: the start of the protected packet, and its tag.
    assert_eq!(packet[..32], hex("c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11"));
    assert_eq!(packet[1184..], hex("e221af44860018ab0856972e194cd934"));
    for port in [443, 8443] {
        assert_eq!(QuicReader::new(port).look(&packet), example());
    }
    let two = initial(Version::Two, &ID, &ID, 2, &hex(FRAME), 1200);
    assert_eq!(QuicReader::new(443).look(&two), example());
}

#[test]
fn joins_a_hello_over_packets_and_datagrams_in_any_order() {
    let hello = hello();
    for cut in 0..=hello.len() {
        let (one, two) = hello.split_at(cut);
        let at = u16::try_from(cut).unwrap();
        let first = initial(Version::One, &ID, &ID, 0, &crypto(0, one), 1200);
        let second = initial(Version::One, &ID, &ID, 1, &crypto(at, two), 1200);
        let mut reader = QuicReader::new(443);
        let pieces = if cut % 2 == 0 { [&first, &second] } else { [&second, &first] };
        let answers = pieces.map(|piece| reader.look(piece));
        let expected = match cut {
            0 => [Datagram::More, example()],
            _ if cut == hello.len() => [example(), Datagram::Known],
            _ => [Datagram::More, example()],
        };
        if cut % 2 == 0 || (cut != 0 && cut != hello.len()) {
            assert_eq!(answers, expected, "{cut}");
        }
        let mut both = initial(Version::One, &ID, &ID, 0, &crypto(0, one), 600);
        both.extend(initial(Version::One, &ID, &ID, 1, &crypto(at, two), 600));
        assert_eq!(QuicReader::new(443).look(&both), example(), "coalesced {cut}");
        let shuffled = [vec![0, 1], crypto(at, two), vec![0; 9], crypto(0, one)].concat();
        assert_eq!(QuicReader::new(443).look(&initial(Version::One, &ID, &ID, 0, &shuffled, 1200)), example());
    }
}

#[test]
fn follows_a_connection_and_notices_another() {
    let mut reader = QuicReader::new(443);
    assert_eq!(reader.look(&initial(Version::One, &ID, &ID, 0, &crypto(0, &hello()), 1200)), example());
    // The server has chosen an id; keys stay those of the first one. Acknowledged, with ECN counts.
    let server_id = [7; 5];
    let acks = [2, 0, 0, 0, 0, 3, 5, 1, 1, 1, 1, 1, 0, 0, 0];
    assert_eq!(reader.look(&initial(Version::One, &ID, &server_id, 1, &acks, 1200)), Datagram::Known);
    assert_eq!(reader.look(&[0x40; 60]), Datagram::Known);
    // Sent again.
    assert_eq!(reader.look(&initial(Version::One, &ID, &server_id, 2, &crypto(0, &hello()), 1200)), Datagram::Known);
    // A second hello after HelloRetryRequest is asked about, when it is whole.
    let (start, rest) = (u16::try_from(hello().len()).unwrap(), hello());
    assert_eq!(
        reader.look(&initial(Version::One, &ID, &server_id, 3, &crypto(start, &rest[..9]), 1200)),
        Datagram::More
    );
    assert_eq!(
        reader.look(&initial(Version::One, &ID, &server_id, 4, &crypto(start + 9, &rest[9..]), 1200)),
        example()
    );
    // Another connection from the same port.
    let other = [1; 8];
    assert_eq!(reader.look(&initial(Version::Two, &other, &other, 0, &crypto(0, &hello()), 1200)), example());
    // Nobody's keys.
    assert_eq!(reader.look(&initial(Version::Two, &[2; 8], &other, 0, &[0], 1200)), unreadable(Doubt::Malformed));
}

#[test]
fn what_cannot_be_read_is_said_to_be_so() {
    let look = |datagram: &[u8]| QuicReader::new(443).look(datagram);
    let good = initial(Version::One, &ID, &ID, 0, &crypto(0, &hello()), 1200);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        let answer = look(&bad);
        assert!(matches!(answer, Datagram::Ask(Shown::Unreadable { .. })), "{at} {answer:?}");
        assert!(!matches!(look(&good[..at]), Datagram::Ask(Shown::Quic { .. })), "cut at {at}");
    }
    let mut version = good.clone();
    version[4] = 9;
    assert_eq!(look(&version), unreadable(Doubt::Version));
    assert_eq!(QuicReader::new(9).look(&version), Datagram::Ask(Shown::Other));
    for frames in [vec![8], vec![0x1d], crypto(0, b"\x02\0\0\0"), [crypto(0, &hello()), crypto(3, b"x")].concat()] {
        let answer = look(&initial(Version::One, &ID, &ID, 0, &frames, 1200));
        assert_eq!(answer, unreadable(Doubt::Malformed), "{frames:?}");
    }
    assert_eq!(look(&initial(Version::One, &ID, &ID, 0, &crypto(16_383, b"ab"), 1200)), unreadable(Doubt::TooLong));
    // Two connections in one datagram.
    let mut both = initial(Version::One, &ID, &ID, 0, &crypto(0, &hello()), 600);
    both.extend(initial(Version::One, &[9; 8], &[9; 8], 0, &crypto(0, &hello()), 600));
    assert_eq!(look(&both), unreadable(Doubt::Malformed));
    assert_eq!(look(b""), Datagram::Ask(Shown::Other));
    assert_eq!(look(&[0x40; 1200]), Datagram::Ask(Shown::Other));
}

#[test]
fn a_connection_that_is_not_whole_makes_no_room_for_another() {
    let (frame, other) = (hex(FRAME), [9; 8]);
    let mut reader = QuicReader::new(443);
    assert_eq!(reader.look(&initial(Version::One, &ID, &ID, 0, &crypto(0, &frame[4..104]), 1200)), Datagram::More);
    let second = reader.look(&initial(Version::One, &other, &other, 0, &frame, 1200));
    assert!(matches!(second, Datagram::Ask(Shown::Unreadable { .. })), "{second:?}");
}

#[test]
fn crumbs_with_gaps_are_refused() {
    let crumbs: Vec<u8> = (0..100).flat_map(|at| crypto(at * 2, &[1])).collect();
    let looked = QuicReader::new(443).look(&initial(Version::One, &ID, &ID, 0, &crumbs, 1200));
    assert!(matches!(looked, Datagram::Ask(Shown::Unreadable { doubt: Doubt::TooLong, .. })), "{looked:?}");
}
