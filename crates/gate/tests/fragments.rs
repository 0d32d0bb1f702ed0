//! Packets that come in fragments, in the order of the table in `fragments.rs`.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::net::SocketAddr;
use std::num::NonZeroU16;

use cofferdam_gate::{Offload, Output, PartialChecksum};
use cofferdam_model::{DropReason, EventBody};
use common::packet::{self, piece, pieces};
use common::{BOTH, Family, World, at, emitted, events, ms, names};

const IDENT: u32 = 0x1234_5678;
/// What an Ethernet MTU leaves for a piece, in eights.
const SIZE: usize = 1448;

fn guest(family: Family) -> SocketAddr {
    at(family.guest(), 4000)
}

fn remote(family: Family) -> SocketAddr {
    at(family.public(), 9999)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 256) as u8).collect()
}

fn datagram(family: Family, length: usize) -> Vec<u8> {
    packet::udp(guest(family), remote(family), &pattern(length))
}

/// A gate that has sent one datagram already, so that the next output is the next datagram.
fn world(family: Family) -> World {
    let mut world = World::new();
    assert_eq!(
        names(&world.send(&packet::udp(guest(family), remote(family), b"hello"))),
        ["open udp", "opened", "send udp"]
    );
    world
}

fn send_all(world: &mut World, pieces: &[Vec<u8>]) -> Vec<Output> {
    pieces.iter().flat_map(|piece| world.send(piece)).collect()
}

/// What goes out, and how many drops of fragments have been counted, those included that are told later.
fn settle(world: &mut World, mut outputs: Vec<Output>) -> (Vec<Vec<u8>>, u64) {
    outputs.extend(world.pass(ms(5_000)));
    let sent = outputs.iter().filter_map(|output| match output {
        Output::SendUdp { payload, .. } | Output::SendEcho { payload, .. } => Some(payload.clone()),
        _ => None,
    });
    let dropped = events(&outputs).into_iter().filter_map(|event| match event {
        EventBody::GatewayDropped { reason, count } => {
            assert_eq!(*reason, DropReason::Fragment);
            Some(*count)
        }
        _ => None,
    });
    (sent.collect(), dropped.sum())
}

/// The pieces lead to nothing but `drops` counted drops, and the gate is as good as before.
#[track_caller]
fn assert_dropped(family: Family, pieces: &[Vec<u8>], drops: u64, what: &str) {
    let mut world = world(family);
    let outputs = send_all(&mut world, pieces);
    assert!(names(&outputs).iter().all(|name| *name == "dropped"), "{what}: {outputs:?}");
    assert_eq!(settle(&mut world, outputs), (vec![], drops), "{what}");
    let good = packet::pieces(&datagram(family, 3000), 99, SIZE);
    let outputs = send_all(&mut world, &good);
    assert_eq!(settle(&mut world, outputs), (vec![pattern(3000)], 0), "after {what}");
}

#[test]
fn joins_a_datagram_wherever_it_was_cut() {
    for family in BOTH {
        for (length, size) in [(8000, SIZE), (8000, 8), (1, 8), (17, 16), (8000, 7992), (65_507, SIZE), (65_507, 8)] {
            let mut world = world(family);
            let pieces = pieces(&datagram(family, length), IDENT, size);
            assert!(pieces.len() > 1);
            let (last, others) = pieces.split_last().unwrap();
            assert!(send_all(&mut world, others).is_empty(), "nothing before the last piece");
            let outputs = world.send(last);
            assert_eq!(settle(&mut world, outputs), (vec![pattern(length)], 0), "{length} by {size}");
        }
    }
}

#[test]
fn the_first_datagram_of_a_flow_may_come_in_pieces() {
    for family in BOTH {
        let outputs = send_all(&mut World::new(), &pieces(&datagram(family, 8000), IDENT, SIZE));
        assert_eq!(names(&outputs), ["open udp", "opened", "send udp"]);
        let denied = packet::udp(guest(family), at(family.private(), 9999), &pattern(8000));
        let outputs = send_all(&mut World::new(), &pieces(&denied, IDENT, SIZE));
        assert_eq!(names(&outputs), ["denied", "emit"]);
        let seen = &emitted(&outputs)[0];
        let (_, _, quote) = seen.icmp_error();
        let start = family.header_len();
        assert_eq!(quote[start..], denied[start..quote.len()], "the error quotes the packet as a whole");
        assert_eq!(quote[start - 8..start], denied[start - 8..start]);
    }
}

#[test]
fn joins_echo_requests() {
    for family in BOTH {
        let whole = packet::ping(family.guest(), family.public(), 77, 5, &pattern(3000));
        let outputs = send_all(&mut World::new(), &pieces(&whole, IDENT, SIZE));
        let sent = outputs.iter().find_map(|output| match output {
            Output::SendEcho { sequence, payload, .. } => Some((*sequence, payload.clone())),
            _ => None,
        });
        assert_eq!(sent, Some((5, pattern(3000))));
        let mut world = World::new();
        let whole = packet::ping(family.guest(), family.gateway(), 77, 5, &pattern(3000));
        let outputs = send_all(&mut world, &pieces(&whole, IDENT, SIZE));
        let reply = packet::reassemble(&emitted(&outputs));
        assert_eq!(reply.body[8..], pattern(3000));
    }
}

#[test]
fn the_longest_datagrams_of_both_families_are_joined_and_longer_ones_dropped() {
    for (family, longest) in [(Family::V4, 65_507), (Family::V6, 65_527)] {
        let whole = datagram(family, longest);
        let mut train = pieces(&whole, IDENT, SIZE);
        let mut world = world(family);
        let outputs = send_all(&mut world, &train);
        assert_eq!(settle(&mut world, outputs).0, vec![pattern(longest)]);
        // One byte more.
        let payload = [&whole[..], &[0]].concat();
        let offset = (longest + 8) / SIZE * SIZE;
        *train.last_mut().unwrap() = piece(&payload, IDENT, offset, longest + 9 - offset, false);
        assert_dropped(family, &train, 2, "a byte too much");
        // The greatest offset there is.
        let beyond = [&whole[..], &[0; 4096]].concat();
        assert_dropped(family, &[piece(&beyond, IDENT, 65_528, 1400, false)], 1, "the ping of death");
    }
}

#[test]
fn drops_what_is_not_a_train() {
    for family in BOTH {
        let whole = datagram(family, 8000);
        let train = pieces(&whole, IDENT, SIZE);
        let other = pieces(&whole, IDENT + 1, SIZE);
        let count = train.len() as u64;
        let mut gap = train.clone();
        gap.remove(2);
        assert_dropped(family, &gap, count - 2, "a gap");
        assert_dropped(family, &train[1..], count - 1, "no first piece");
        let mut reversed = train.clone();
        reversed.reverse();
        assert_dropped(family, &reversed, count, "from the end: the first piece waits in vain");
        let twice = [&train[..2], &train[1..]].concat();
        assert_dropped(family, &twice, count, "a piece twice");
        let mut mixed = train.clone();
        mixed[3] = other[3].clone();
        assert_dropped(family, &mixed, count - 2, "another identification");
        // Rewrites the ports of a datagram that has begun.
        let overlap = [train[0].clone(), piece(&whole, IDENT, 8, SIZE, true), train[2].clone()];
        assert_dropped(family, &overlap, 3, "an overlap");
        let elsewhere = packet::udp(guest(family), at(family.nth_public(2), 9999), &pattern(8000));
        let [_, second, ..] = &pieces(&elsewhere, IDENT, SIZE)[..] else { panic!("too few pieces") };
        assert_dropped(family, &[train[0].clone(), second.clone()], 2, "another destination");
        let start = family.header_len();
        let as_echo =
            packet::ip(family.guest(), family.public(), packet::icmp_protocol(family.guest()), &whole[start..]);
        let [_, second, ..] = &pieces(&as_echo, IDENT, SIZE)[..] else { panic!("too few pieces") };
        assert_dropped(family, &[train[0].clone(), second.clone()], 2, "another protocol");
    }
}

#[test]
fn drops_pieces_of_a_shape_that_no_kernel_makes() {
    for family in BOTH {
        let whole = datagram(family, 8000);
        let train = pieces(&whole, IDENT, SIZE);
        for length in [1, 7, 9, SIZE - 1] {
            assert_dropped(family, &[piece(&whole, IDENT, 0, length, true)], 1, "no multiple of 8");
        }
        assert_dropped(family, &[piece(&whole, IDENT, 0, 0, true)], 1, "empty first");
        assert_dropped(family, &[train[0].clone(), piece(&whole, IDENT, SIZE, 0, true)], 2, "empty second");
        assert_dropped(family, &[train[0].clone(), piece(&whole, IDENT, SIZE, 0, false)], 2, "empty last");
        let mut world = world(family);
        let start = family.header_len() as u16;
        let partial = Offload { needs_csum: Some(PartialChecksum { start, offset: 6 }), udp_segment: None };
        let batch = Offload { udp_segment: NonZeroU16::new(100), ..partial };
        let mut outputs = world.send_with(partial, &train[0]);
        outputs.extend(world.send_with(batch, &train[0]));
        assert_eq!(settle(&mut world, outputs), (vec![], 2), "nothing may be left to do on a piece");
    }
}

#[test]
fn joins_neither_tcp_nor_other_protocols() {
    for family in BOTH {
        let syn = packet::tcp(guest(family), remote(family), packet::SYN, 1, &[2, 4, 5, 0xb4], &pattern(100));
        for whole in [syn, packet::ip(family.guest(), family.public(), 132, &pattern(100))] {
            let pieces = pieces(&whole, IDENT, 48);
            assert_dropped(family, &pieces, pieces.len() as u64, "not carried in pieces");
        }
        // ICMP of the other family.
        let protocol = if family == Family::V4 { 58 } else { 1 };
        let whole = packet::ip(family.guest(), family.public(), protocol, &pattern(100));
        assert_dropped(family, &pieces(&whole, IDENT, 96), 2, "the other family's ICMP");
    }
}

#[test]
fn the_whole_is_checked_as_if_it_had_come_so() {
    for family in BOTH {
        let mut wrong = datagram(family, 8000);
        *wrong.last_mut().unwrap() ^= 1;
        let outputs = send_all(&mut world(family), &pieces(&wrong, IDENT, SIZE));
        assert_eq!((names(&outputs), World::drops(&outputs)), (vec!["dropped"], vec![DropReason::BadChecksum]));
        let (kind, code) = if family == Family::V4 { (5, 1) } else { (137, 0) };
        let redirect = packet::icmp(family.guest(), family.public(), kind, code, &pattern(100));
        let outputs = send_all(&mut world(family), &pieces(&redirect, IDENT, 96));
        assert_eq!((names(&outputs), World::drops(&outputs)), (vec!["dropped"], vec![DropReason::UnsupportedIcmp]));
        // The UDP length says less than what came, as it may.
        let mut long = datagram(family, 100);
        let start = family.header_len();
        long = packet::ip(family.guest(), family.public(), packet::UDP, &[&long[start..], &[0; 20]].concat());
        let mut world = world(family);
        let outputs = send_all(&mut world, &pieces(&long, IDENT, 96));
        assert_eq!(settle(&mut world, outputs), (vec![pattern(100)], 0));
    }
}

#[test]
fn a_new_first_piece_takes_the_place_of_the_old() {
    for family in BOTH {
        let train = pieces(&datagram(family, 8000), IDENT, SIZE);
        let mut world = world(family);
        let mut outputs = Vec::new();
        for ident in 0..3000 {
            outputs.extend(world.send(&pieces(&datagram(family, 8000), ident, SIZE)[0]));
        }
        outputs.extend(send_all(&mut world, &train));
        assert_eq!(settle(&mut world, outputs), (vec![pattern(8000)], 3000));
    }
}

#[test]
fn whole_packets_and_the_other_family_do_not_disturb() {
    let mut world = world(Family::V4);
    let trains = BOTH.map(|family| pieces(&datagram(family, 8000), IDENT, SIZE));
    let mut outputs = Vec::new();
    for (four, six) in trains[0].iter().zip(&trains[1]) {
        outputs.extend(world.send(four));
        outputs.extend(world.send(six));
        outputs.extend(world.send(&datagram(Family::V4, 10)));
    }
    let (sent, drops) = settle(&mut world, outputs);
    assert_eq!(sent.iter().filter(|payload| **payload == pattern(8000)).count(), 2);
    assert_eq!((sent.len(), drops), (2 + trains[0].len().min(trains[1].len()), 0));
}

#[test]
fn a_train_that_stands_still_ends_after_a_second() {
    for family in BOTH {
        let train = pieces(&datagram(family, 4000), IDENT, SIZE);
        let mut world = World::new();
        assert!(world.send(&train[0]).is_empty());
        assert!(world.pass(ms(999)).is_empty());
        assert!(world.send(&train[1]).is_empty());
        let outputs = world.pass(ms(1));
        assert_eq!(World::drops(&outputs), [DropReason::Fragment]);
        world.pass(ms(5_000));
        assert_eq!(world.gate.poll_timeout(), None);
        assert_eq!(World::drops(&world.send(&train[2])), [DropReason::Fragment], "the rest comes too late");
        // Late, and before the gate was told the time.
        assert!(world.send(&train[0]).is_empty());
        world.now = world.now + ms(1_000);
        world.gate.handle_packet(world.now, Offload::NONE, &train[1]);
        let outputs = world.drain();
        assert_eq!(settle(&mut world, outputs), (vec![], 2));
    }
}

#[test]
fn forged_sources_and_unusable_destinations_are_not_kept() {
    for family in BOTH {
        let forged = packet::udp(at(family.nth_public(7), 4000), remote(family), &pattern(4000));
        let nowhere = packet::udp(guest(family), at(family.loopback(), 9999), &pattern(4000));
        for (whole, reason) in [(forged, DropReason::ForgedSource), (nowhere, DropReason::UnusableAddress)] {
            let mut world = world(family);
            let train = pieces(&datagram(family, 8000), IDENT, SIZE);
            let bad = pieces(&whole, IDENT, SIZE);
            assert!(world.send(&train[0]).is_empty());
            assert_eq!(World::drops(&world.send(&bad[0])), [reason]);
            let mut outputs = send_all(&mut world, &bad[1..]);
            outputs.extend(send_all(&mut world, &train[1..]));
            assert_eq!(names(&outputs), ["send udp"], "what was under way is not disturbed either");
        }
    }
}

#[test]
fn an_ipv6_fragment_that_is_the_whole_packet_is_one() {
    let whole = datagram(Family::V6, 100);
    let mut world = world(Family::V6);
    let outputs = world.send(&piece(&whole, IDENT, 0, 108, false));
    assert_eq!(settle(&mut world, outputs), (vec![pattern(100)], 0));
    // Nothing hides behind a fragment header but what is joined.
    for next in [0, 6, 43, 44, 50, 59, 60] {
        let whole = packet::ip(Family::V6.guest(), Family::V6.public(), next, &pattern(100));
        assert_dropped(Family::V6, &[piece(&whole, IDENT, 0, 100, false)], 1, "next header");
    }
}
