//! What a ClientHello shows, however it comes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

mod common;

use cofferdam_flight::{Doubt, GuestStream, LIMIT, Look, Protocol, Shown};
use common::{every_way, hello, message, name, records, run, vector16};
use proptest::prelude::*;

fn tls(name: Option<&str>, ech: bool) -> Vec<Shown> {
    vec![Shown::Tls { server_name: name.map(|name| name.parse().unwrap()), ech }]
}

fn unreadable(doubt: Doubt) -> Vec<Shown> {
    vec![Shown::Unreadable { protocol: Protocol::Tls, doubt }]
}

#[test]
fn shows_the_server_name_cut_at_every_byte_and_over_records() {
    let message = hello(&[(0xff01, vec![0]), name(b"API.Example.ORG"), (43, vec![2, 3, 4])]);
    for sizes in [&[][..], &[1], &[1, 1, 1, 1, 1], &[40, 9], &[message.len() - 1]] {
        let ran = every_way(&records(&message, sizes));
        assert_eq!(ran.shown, tls(Some("api.example.org"), false), "{sizes:?}");
        assert_eq!(ran.passed, records(&message, sizes));
    }
    // What a client sends behind its hello goes along, and nothing is read of it.
    let early = [records(&message, &[]), vec![0x14, 3, 3, 0, 1, 1], vec![23, 3, 3, 0, 30], vec![0xff; 30]].concat();
    assert_eq!(every_way(&early).shown, tls(Some("api.example.org"), false));
}

#[test]
fn nothing_goes_on_before_the_hello_is_whole() {
    let bytes = records(&hello(&[name(b"example.org")]), &[20, 20]);
    let mut stream = GuestStream::new();
    for end in 0..bytes.len() {
        assert_eq!(stream.look(&bytes[..end], false), Look::More, "{end}");
    }
    assert!(matches!(stream.look(&bytes, false), Look::Ask { length, .. } if length == bytes.len()));
    assert_eq!(stream.look(&[23, 3, 3, 0, 1, 0], false), Look::Free);
    for end in 2..bytes.len() {
        assert_eq!(run(&[&bytes[..end]], true).shown, unreadable(Doubt::Malformed), "ended at {end}");
        let shown = GuestStream::new().unfinished(&bytes[..end]);
        assert_eq!(shown, unreadable(Doubt::Malformed)[0], "{end}");
    }
}

#[test]
fn a_second_hello_is_read_like_the_first() {
    let (first, second) = (hello(&[name(b"good.example")]), records(&hello(&[name(b"evil.example")]), &[7]));
    let early = hello(&[name(b"good.example"), (42, Vec::new())]);
    let change = vec![0x14, 3, 3, 0, 1, 1];
    let data = [vec![23, 3, 3, 0, 20], vec![9; 20]].concat();
    let both = [tls(Some("good.example"), false), tls(Some("evil.example"), false)].concat();
    for bytes in [
        [records(&first, &[]), second.clone()],
        [records(&first, &[]), [change.clone(), second.clone()].concat()],
        [records(&first, &[30]), [vec![21, 3, 3, 0, 2, 1, 0], second.clone()].concat()],
        [records(&early, &[]), [data.clone(), change.clone(), data.clone(), second.clone()].concat()],
    ] {
        assert_eq!(every_way(&bytes.concat()).shown, both, "{bytes:?}");
    }
    // Other handshake messages, data, and what is encrypted after a change of keys even when it begins like a hello.
    let encrypted = [vec![22, 3, 3, 0, 40, 1, 0xff, 0xff], vec![7; 37]].concat();
    for bytes in [vec![22, 3, 3, 0, 2, 16, 0], data.clone(), [change.clone(), encrypted].concat()] {
        let bytes = [records(&first, &[]), bytes, second.clone()].concat();
        assert_eq!(every_way(&bytes).shown, tls(Some("good.example"), false), "{bytes:?}");
    }
    // A message behind the hello in its own record would be one that nobody has read.
    let two = records(&[first.clone(), hello(&[name(b"evil.example")])].concat(), &[]);
    assert_eq!(every_way(&two).shown, unreadable(Doubt::Malformed));
    let broken = [records(&first, &[]), vec![99, 3, 3, 0, 1, 0]].concat();
    assert_eq!(every_way(&broken).shown, [tls(Some("good.example"), false), unreadable(Doubt::Malformed)].concat());
}

#[test]
fn a_record_of_any_old_version_is_tls() {
    let mut bytes = records(&hello(&[name(b"evil.example")]), &[]);
    bytes[1] = 1;
    assert_eq!(every_way(&bytes).shown, unreadable(Doubt::Malformed));
    assert_eq!(every_way(&[&[21, 1, 1, 0, 2, 1, 0][..], &bytes].concat()).shown, unreadable(Doubt::Malformed));
}

#[test]
fn a_hello_without_a_name_shows_none() {
    assert_eq!(every_way(&records(&hello(&[]), &[])).shown, tls(None, false));
    let short = message(&[&[3, 1][..], &[0; 32], &[0, 0, 2, 0, 10, 1, 0]].concat());
    assert_eq!(every_way(&records(&short, &[])).shown, tls(None, false));
    // In the form of SSL 2.0, for TLS 1.0 and for SSL 2.0 itself.
    for version in [[3, 1], [0, 2]] {
        let old = [&[0x80, 46, 1][..], &version, &[0, 21, 0, 0, 0, 16], &[1; 37]].concat();
        assert_eq!(run(&[&old], false).shown, tls(None, false));
    }
}

#[test]
fn an_ech_hello_shows_its_outer_name() {
    let outer = hello(&[name(b"public.example"), (0xfe0d, vec![0, 0, 1, 0, 1, 9])]);
    assert_eq!(run(&[&records(&outer, &[])], false).shown, tls(Some("public.example"), true));
    let inner = hello(&[name(b"public.example"), (0xfe0d, vec![1])]);
    assert_eq!(run(&[&records(&inner, &[])], false).shown, tls(Some("public.example"), false));
}

#[test]
fn doubt_is_said() {
    let cases: Vec<(Vec<u8>, Doubt)> = vec![
        (hello(&[name(b"a.example"), name(b"b.example")]), Doubt::Malformed),
        (hello(&[name(b"a b")]), Doubt::Name),
        (hello(&[name(b"")]), Doubt::Name),
        (hello(&[name("bücher.example".as_bytes())]), Doubt::Name),
        (hello(&[(0, Vec::new())]), Doubt::Malformed),
        (hello(&[(0, vec![0, 0])]), Doubt::Malformed),
        (hello(&[(0, vector16(&[&[1], &vector16(b"a.example")[..]].concat()))]), Doubt::Name),
        (
            hello(&[(
                0,
                vector16(
                    &[[&[0], &vector16(b"a.example")[..]].concat(), [&[0], &vector16(b"b.example")[..]].concat()]
                        .concat(),
                ),
            )]),
            Doubt::Name,
        ),
        (hello(&[(0xfe0d, vec![0]), (0xfe0d, vec![0])]), Doubt::Malformed),
        (message(&[3, 3]), Doubt::Malformed),
        ([2, 0, 0, 4, 3, 3, 0, 0].to_vec(), Doubt::Malformed),
        ([1, 0, 0x40, 0].to_vec(), Doubt::TooLong),
    ];
    for (message, doubt) in cases {
        assert_eq!(every_way(&records(&message, &[])).shown, unreadable(doubt), "{message:?}");
    }
    let good = records(&hello(&[name(b"a.example")]), &[]);
    for (bytes, doubt) in [
        // A warning before the hello, which servers pass over.
        ([&[21, 3, 1, 0, 2, 1, 0][..], &good].concat(), Doubt::Malformed),
        ([&[22, 3, 1, 0, 0][..], &good].concat(), Doubt::Malformed),
        (vec![22, 3, 1, 0x40, 1], Doubt::Malformed),
        (vec![23, 3, 3, 0, 2, 0, 0], Doubt::Malformed),
        ([&records(&hello(&[name(b"a.example")])[..20], &[])[..], &[22, 4, 1, 0, 1, 0]].concat(), Doubt::Malformed),
    ] {
        assert_eq!(every_way(&bytes).shown, unreadable(doubt), "{bytes:?}");
    }
}

#[test]
fn a_large_hello_fits_and_a_larger_one_is_refused() {
    let padding = |length| hello(&[(21, vec![0; length]), name(b"a.example")]);
    let fits = records(&padding(LIMIT - 200), &[5_000, 5_000]);
    assert!(fits.len() < LIMIT);
    assert_eq!(run(&[&fits], false).shown, tls(Some("a.example"), false));
    assert_eq!(run(&[&records(&padding(LIMIT), &[9_000])], false).shown, unreadable(Doubt::TooLong));
    // In records of one byte, the headers fill what may be held.
    let crumbs = records(&padding(4_000), &[1; 4_100]);
    assert_eq!(run(&[&crumbs[..LIMIT]], false).shown, unreadable(Doubt::TooLong));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_behind_a_record_header_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400), end in any::<bool>()) {
        let ran = run(&[&[22, 3, 1], &bytes], end);
        prop_assert!(ran.shown.len() <= 1);
    }

    #[test]
    fn a_damaged_hello_never_shows_another_name(at in 0..90_usize, byte in any::<u8>(), sizes in prop::collection::vec(1..40_usize, 0..4)) {
        let mut message = hello(&[name(b"allowed.example")]);
        let at = at % message.len();
        let name_at = message.windows(7).position(|window| window == b"allowed").unwrap();
        prop_assume!(!(name_at..name_at + 15).contains(&at));
        message[at] = byte;
        for shown in run(&[&records(&message, &sizes)], true).shown {
            for name in shown.names() {
                prop_assert_eq!(name.as_str(), "allowed.example");
            }
        }
    }
}
