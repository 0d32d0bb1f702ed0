//! Nothing that a guest or an upstream sends stops the resolver, and what it lets through it has looked at.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::wildcard_enum_match_arm, reason = "tests")]

mod common;

use cofferdam_names::Transport;
use common::*;
use proptest::prelude::*;

/// Bytes that look like a message for long enough to get somewhere.
fn nearly_dns() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(vec![0xc0, 0x0c]),
        (0_u8..80).prop_map(|low| vec![0xc0, low]),
        Just(b"\x07example\x03org\0".to_vec()),
        Just(vec![0, 1, 0, 1]),
        Just(vec![0, 5, 0, 1, 0, 0, 0, 60, 0, 2, 0xc0, 0x0c]),
        Just(vec![0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 1]),
        Just(vec![0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 93, 184, 216, 34]),
        Just(vec![0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]),
        prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// Asks a good question and says what comes of `make`'s answer; the resolver must still work afterwards.
fn survives_answer(transport: Transport, make: impl Fn(&Sent) -> Vec<u8>) -> World {
    let mut world = World::with(all_but(vec![]), |config| config.upstreams.truncate(1));
    let client = world.ask_at(GATEWAY, transport, &query(7, "example.org", A));
    let sent = world.last();
    world.answer(&sent, &make(&sent));
    if let Some(reply) = world.reply(client) {
        assert_eq!(reply.question, Some(("example.org".to_owned(), A)));
        let pinned: Vec<_> = world.pins().into_iter().map(|(_, _, address, _)| address).collect();
        for address in reply.addresses() {
            assert!(pinned.contains(&address), "{address} was delivered and not pinned");
        }
        for address in pinned {
            assert!(!address.is_loopback() && !address.is_unspecified(), "{address} was pinned");
            assert!(address != ip("10.0.0.1"), "{address} was pinned");
        }
    }
    world.pass(ms(6000));
    assert!(world.reply(client).is_some(), "every query is answered in the end");
    assert_eq!((world.live().len(), world.resolver.poll_timeout()), (0, None));
    world
}

proptest! {
    #[test]
    fn no_query_stops_it(message in prop::collection::vec(any::<u8>(), 0..600), tcp: bool) {
        let mut world = World::new(all_but(vec![]));
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let client = world.ask_at(GATEWAY, transport, &message);
        if let Some(reply) = world.reply(client) {
            prop_assert_eq!(reply.id.to_be_bytes(), [message[0], message[1]]);
        }
        world.pass(ms(6000));
        prop_assert_eq!(world.resolver.poll_timeout(), None);
    }

    #[test]
    fn no_query_that_looks_right_stops_it(counts in prop::array::uniform4(0_u16..4), flags in 0_u16..0x0800, body in nearly_dns()) {
        let mut world = World::new(all_but(vec![]));
        let client = world.ask(&[header(7, flags, counts), body].concat());
        world.pass(ms(6000));
        prop_assert_eq!(world.reply(client).unwrap().id, 7);
    }

    #[test]
    fn no_answer_stops_it(message in prop::collection::vec(any::<u8>(), 0..600), tcp: bool) {
        survives_answer(if tcp { Transport::Tcp } else { Transport::Udp }, |_| message.clone());
    }

    #[test]
    fn no_answer_that_looks_right_stops_it(counts in prop::array::uniform3(0_u16..6), rcode in 0_u16..16, body in nearly_dns()) {
        survives_answer(Transport::Udp, |sent| {
            let mut message = sections_to(sent, 0x8180 | rcode, &[], &[], &[]);
            for (place, count) in counts.iter().enumerate() {
                message[6 + 2 * place..8 + 2 * place].copy_from_slice(&count.to_be_bytes());
            }
            [message, body.clone()].concat()
        });
    }

    #[test]
    fn no_damaged_answer_stops_it(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        survives_answer(Transport::Udp, |sent| {
            let records = [
                cname("example.org", 60, "end.example"),
                address("end.example", 60, "93.184.216.34"),
                address("end.example", 60, "93.184.216.35"),
            ];
            let mut message = answer_to(sent, 0, &records);
            // The header and the question stay: damage there makes it somebody else's message.
            for (place, value) in &flips {
                let place = 29 + place.index(message.len() - 29);
                message[place] = *value;
            }
            message
        });
    }
}

#[test]
fn the_largest_messages_are_dealt_with() {
    // As many records as fit, each with a name of 255 bytes behind a pointer: expanded they are a megabyte.
    let world = survives_answer(Transport::Tcp, |sent| {
        let long = [&["a"; 120].join("."), "example.org"].join(".");
        let mut message = answer_to(sent, 0, &[]);
        let start = u16::try_from(message.len()).unwrap();
        message.extend_from_slice(&record(&long, TXT, 1, b"\0"));
        let mut count = 1_u16;
        while message.len() + 13 <= 65_535 {
            message.extend_from_slice(&(0xc000 | start).to_be_bytes());
            message.extend_from_slice(&[0, 16, 0, 1, 0, 0, 0, 1, 0, 1, 0]);
            count += 1;
        }
        message[8..10].copy_from_slice(&count.to_be_bytes());
        message
    });
    assert!(world.told.len() >= 2);
}

#[test]
fn a_chain_of_pointers_ends() {
    let world = survives_answer(Transport::Tcp, |sent| {
        let mut message = answer_to(sent, 0, &[]);
        // An unknown type whose data is pointers, each to the one before; then a name that starts at the last.
        let data_at = message.len() + 12;
        let mut data = Vec::new();
        let mut target = 12;
        while data.len() < 16_000 {
            data.extend_from_slice(&(0xc000 | u16::try_from(target).unwrap()).to_be_bytes());
            target = data_at + data.len() - 2;
        }
        message.extend_from_slice(b"\xc0\x0c\xff\x00\0\x01\0\0\0\x01");
        message.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
        message.extend_from_slice(&data);
        let mut count = 1_u16;
        while message.len() + 16 <= 65_535 {
            message.extend_from_slice(&(0xc000 | u16::try_from(target).unwrap()).to_be_bytes());
            message.extend_from_slice(b"\0\x01\0\x01\0\0\0\x01\0\x04\x5d\xb8\xd8\x22");
            count += 1;
        }
        message[6..8].copy_from_slice(&count.to_be_bytes());
        message
    });
    assert!(world.pins().is_empty());
}
