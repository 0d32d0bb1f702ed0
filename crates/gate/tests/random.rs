//! Whatever a guest sends: no panic, nothing for forged sources, nothing out of proportion.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::num::NonZeroU16;

use cofferdam_gate::{Offload, Output, PartialChecksum};
use cofferdam_model::{Action, DropReason, PolicyConfig};
use common::observer::Observer;
use common::packet;
use common::{BOTH, Family, World, at, names};
use proptest::prelude::*;

fn allow_all() -> PolicyConfig {
    PolicyConfig { default_egress: Action::Allow, ..PolicyConfig::default() }
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn offload() -> impl Strategy<Value = Offload> {
    let offset = || prop_oneof![Just(0u16), Just(20), Just(40), Just(6), Just(16), any::<u16>()];
    let partial = (offset(), offset()).prop_map(|(start, offset)| PartialChecksum { start, offset });
    let segment = prop_oneof![Just(None), any::<u16>().prop_map(NonZeroU16::new), Just(NonZeroU16::new(1))];
    (prop::option::of(partial), segment).prop_map(|(needs_csum, udp_segment)| Offload { needs_csum, udp_segment })
}

/// A good packet of any kind that is carried, to any kind of destination.
fn good_packet() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop::collection::vec(any::<u8>(), 0..200);
    (family(), 0..5u8, 0..5u8, 1..4u16, prop_oneof![Just(53u16), 1..100u16], payload).prop_map(
        |(family, kind, to, from_port, port, payload)| {
            let to = match to {
                0 => family.gateway(),
                1 => family.private(),
                2 => family.loopback(),
                n => family.nth_public(u16::from(n)),
            };
            let (guest, remote) = (at(family.guest(), from_port), at(to, port));
            match kind {
                0 => packet::syn(guest, remote),
                1 => packet::tcp(guest, remote, packet::SYN, 5, &[2, 4, 5, 0xb4], &payload),
                2 => packet::udp(guest, remote, &payload),
                3 => packet::ping(guest.ip(), remote.ip(), port, from_port, &payload),
                _ => packet::ip(guest.ip(), remote.ip(), port as u8, &payload),
            }
        },
    )
}

/// A good packet with a few bytes changed and perhaps cut short, its IPv4 header sum made good again or not.
fn mutated_packet() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (good_packet(), changes, prop::option::of(any::<prop::sample::Index>()), any::<bool>()).prop_map(
        |(mut packet, changes, cut, fix)| {
            for (at, value) in changes {
                let at = at.index(packet.len());
                packet[at] = value;
            }
            if let Some(cut) = cut {
                packet.truncate(cut.index(packet.len()));
            }
            if fix && packet.len() >= 20 {
                packet::fix_header_sum(&mut packet);
            }
            packet
        },
    )
}

/// A few packets of the guest, each cut into pieces and then perhaps with some of them exchanged, doubled or lost.
fn trains() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let train =
        (good_packet(), 0..3u32, 1..6usize).prop_map(|(whole, ident, size)| packet::pieces(&whole, ident, 8 * size));
    let disorder = prop::collection::vec((0..4u8, any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..3);
    (prop::collection::vec(train, 1..6), disorder).prop_map(|(trains, disorder)| {
        let mut pieces = trains.concat();
        // A packet that carries nothing is cut into no pieces.
        if pieces.is_empty() {
            return pieces;
        }
        for (what, one, other) in disorder {
            let (one, other) = (one.index(pieces.len()), other.index(pieces.len()));
            match what {
                0 => pieces.swap(one, other),
                1 => pieces.insert(one, pieces[other].clone()),
                2 => pieces[one] = pieces[other].clone(),
                _ => drop(pieces.splice(one..=one, [pieces[one].clone(), pieces[other].clone()])),
            }
        }
        pieces
    })
}

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => prop::collection::vec(any::<u8>(), 0..120),
        3 => good_packet(),
        5 => mutated_packet(),
    ]
}

fn is_guest(packet: &[u8]) -> bool {
    let source = match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(12..16).map(|octets| <[u8; 4]>::try_from(octets).unwrap().into()),
        Some(6) => packet.get(8..24).map(|octets| <[u8; 16]>::try_from(octets).unwrap().into()),
        _ => None,
    };
    BOTH.iter().any(|family| source == Some(family.guest()))
}

fn is_piece(packet: &[u8]) -> bool {
    match packet.first().map_or(0, |first| first >> 4) {
        _ if packet.len() < 20 => false,
        4 => u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0,
        _ => packet[6] == 44,
    }
}

/// Bytes on their way out.
fn carried(output: &Output) -> usize {
    match output {
        Output::SendUdp { payload, .. } | Output::Dns { message: payload, .. } => payload.len(),
        Output::SendEcho { payload, .. } => payload.len(),
        _ => 0,
    }
}

proptest! {
    #[test]
    fn any_row_of_packets_keeps_the_invariants(
        packets in prop::collection::vec((any_packet(), offload()), 1..60),
        replies in prop::collection::vec((any::<u64>(), 0..70_000usize, prop::option::of(any::<u16>())), 0..4),
    ) {
        let mut world = World::with(allow_all(), |config| config.limits.max_udp_connections = 5);
        let mut observer = Observer::default();
        let mut held = 0;
        for (packet, offload) in &packets {
            let outputs = world.send_with(*offload, packet);
            if !is_guest(packet) {
                prop_assert!(names(&outputs).iter().all(|name| *name == "dropped"), "{:?}", outputs);
            }
            observer.see_all(&outputs);
            prop_assert!(observer.udp.len() <= 5);
            // One packet asks for one event of each kind at most, and for what it carries at most: it, or the pieces
            // of which it is the last.
            held += packet.len();
            let sent = outputs.iter().map(carried).sum::<usize>();
            let bound = if is_piece(packet) { held } else { packet.len() };
            prop_assert!(sent <= bound);
            held -= sent;
            world.pass(common::ms(1));
        }
        for (flow, length, segment) in replies {
            let flow = cofferdam_model::FlowId(flow % 8);
            world.gate.handle_udp_reply(world.now, flow, &vec![9; length], segment);
            world.gate.handle_echo_reply(world.now, flow, 1, &vec![9; length]);
            let outputs = world.drain();
            observer.see_all(&outputs);
        }
        observer.see_all(&world.pass(std::time::Duration::from_secs(300)));
        world.gate.handle_shutdown(world.now);
        observer.see_all(&world.drain());
        prop_assert!(observer.udp.is_empty() && observer.echo.is_empty() && observer.dialing.is_empty());
        prop_assert!(observer.reported.is_empty());
        prop_assert_eq!(world.gate.poll_timeout(), None);
    }

    #[test]
    fn equal_inputs_give_equal_outputs(packets in prop::collection::vec((any_packet(), offload()), 1..40)) {
        let run = || {
            let mut world = World::with(allow_all(), |config| config.limits.max_udp_connections = 3);
            let outputs: Vec<String> = packets
                .iter()
                .flat_map(|(packet, offload)| {
                    let mut outputs = world.send_with(*offload, packet);
                    outputs.extend(world.pass(common::ms(700)));
                    outputs
                })
                .map(|output| format!("{output:?}"))
                .collect();
            outputs
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn nothing_is_done_for_a_forged_source(packet in good_packet(), source in any::<u128>(), offload in offload()) {
        let mut packet = packet;
        let octets = source.to_be_bytes();
        if packet[0] >> 4 == 4 {
            packet[12..16].copy_from_slice(&octets[..4]);
            packet::fix_header_sum(&mut packet);
        } else {
            packet[8..24].copy_from_slice(&octets);
        }
        prop_assume!(!is_guest(&packet));
        let outputs = World::with(allow_all(), |_| {}).send_with(offload, &packet);
        prop_assert_eq!(outputs.len(), 1);
        let reason = World::drops(&outputs)[0];
        // The protocol field may name an extension header, which is refused on sight.
        let expected = [DropReason::ForgedSource, DropReason::ExtensionHeader, DropReason::Fragment];
        prop_assert!(expected.contains(&reason), "{:?}", reason);
    }

    #[test]
    fn any_row_of_fragments_gives_no_more_than_it_carried(pieces in trains()) {
        let mut world = World::with(allow_all(), |_| {});
        let mut observer = Observer::default();
        let (mut received, mut sent) = (0, 0);
        for piece in &pieces {
            received += piece.len();
            let outputs = world.send(piece);
            sent += outputs.iter().map(carried).sum::<usize>();
            prop_assert!(sent <= received);
            prop_assert!(!is_piece(piece) || !names(&outputs).contains(&"dial"), "TCP is not joined");
            observer.see_all(&outputs);
        }
        observer.see_all(&world.pass(std::time::Duration::from_secs(300)));
        prop_assert!(observer.udp.is_empty() && observer.echo.is_empty() && observer.reported.is_empty());
        prop_assert_eq!(world.gate.poll_timeout(), None);
    }

    #[test]
    fn any_frame_is_survived(frame in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut world = World::new();
        world.gate.handle_frame(world.now, &frame);
        let outputs = world.drain();
        Observer::default().see_all(&outputs);
    }
}
