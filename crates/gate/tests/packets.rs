//! What passes the gate's first look at a packet, and what only counts.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cofferdam_gate::{Offload, PartialChecksum};
use cofferdam_model::{DropReason, PolicyConfig};
use common::packet::{self, Seen};
use common::{BOTH, Family, World, actions, at, emitted, names};

fn allow_everything() -> World {
    let policy = PolicyConfig { default_egress: cofferdam_model::Action::Allow, ..PolicyConfig::default() };
    World::with(policy, |_| {})
}

/// The packet leads to one counter and to nothing else.
#[track_caller]
fn assert_dropped(packet: &[u8], reason: DropReason, what: &str) {
    assert_dropped_with(Offload::NONE, packet, reason, what);
}

#[track_caller]
fn assert_dropped_with(offload: Offload, packet: &[u8], reason: DropReason, what: &str) {
    let outputs = allow_everything().send_with(offload, packet);
    assert_eq!(World::drops(&outputs), [reason], "{what}");
    assert_eq!(outputs.len(), 1, "{what}: {outputs:?}");
}

fn each_kind(src: IpAddr, dst: IpAddr) -> [Vec<u8>; 3] {
    [
        packet::syn(at(src, 4000), at(dst, 80)),
        packet::udp(at(src, 4000), at(dst, 80), b"x"),
        packet::ping(src, dst, 1, 1, b"x"),
    ]
}

#[test]
fn counts_forged_sources_and_answers_nothing() {
    let forged4 = ["10.9.9.9", "172.16.0.1", "172.16.0.3", "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"];
    let forged6 = ["fd42:6d73:62::1", "fd42:6d73:62::3", "fe80::1", "::1", "::", "ff02::1", "::ffff:172.16.0.2"];
    for (family, sources) in [(Family::V4, forged4), (Family::V6, forged6)] {
        for source in sources {
            for packet in each_kind(source.parse().unwrap(), family.public()) {
                assert_dropped(&packet, DropReason::ForgedSource, source);
            }
        }
    }
}

#[test]
fn counts_addresses_that_name_no_remote_whatever_the_policy() {
    let nowhere4 = ["127.0.0.1", "127.255.255.254", "0.0.0.0", "255.255.255.255", "224.0.0.251", "239.255.255.250"];
    let link4 = ["172.16.0.2", "172.16.0.0", "172.16.0.3"];
    let nowhere6 = ["::1", "::", "ff02::fb", "ff0e::1234", "::ffff:10.77.0.5", "::ffff:127.0.0.1", "fd42:6d73:62::2"];
    let v4 = nowhere4.into_iter().chain(link4).map(|dst| (Family::V4, dst));
    let v6 = nowhere6.into_iter().map(|dst| (Family::V6, dst));
    for (family, dst) in v4.chain(v6) {
        for packet in each_kind(family.guest(), dst.parse().unwrap()) {
            assert_dropped(&packet, DropReason::UnusableAddress, dst);
        }
    }
}

#[test]
fn without_ipv6_every_ipv6_packet_is_forged() {
    let mut world = World::with(common::public_only(), |config| config.v6 = None);
    for packet in each_kind(Family::V6.guest(), Family::V6.public()) {
        assert!(actions(&world.send(&packet)).is_empty());
    }
    let outputs = world.pass(common::ms(1000));
    assert_eq!(World::drops(&outputs), [DropReason::ForgedSource]);
}

#[test]
fn counts_bad_ip_headers() {
    let good4 = packet::udp(at(Family::V4.guest(), 4000), at(Family::V4.public(), 80), b"payload");
    let good6 = packet::udp(at(Family::V6.guest(), 4000), at(Family::V6.public(), 80), b"payload");
    let with = |good: &[u8], at: usize, value: u8| {
        let mut packet = good.to_vec();
        packet[at] = value;
        packet::fix_header_sum(&mut packet);
        packet
    };
    assert_dropped(&[], DropReason::Truncated, "nothing");
    for first in [0x00, 0x15, 0x35, 0x55, 0x75, 0xff] {
        assert_dropped(&with(&good4, 0, first), DropReason::BadHeader, "version");
    }
    for ihl in 0..5 {
        assert_dropped(&with(&good4, 0, 0x40 | ihl), DropReason::BadHeader, "short IHL");
    }
    assert_dropped(&with(&good4, 0, 0x46), DropReason::Options, "options");
    assert_dropped(&with(&good4, 2, 0xff), DropReason::Truncated, "total length");
    assert_dropped(&with(&good4, 6, 0x20), DropReason::Fragment, "more fragments");
    assert_dropped(&with(&good4, 7, 0x01), DropReason::Fragment, "fragment offset");
    assert_dropped(&with(&good6, 4, 0xff), DropReason::Truncated, "payload length");
    for next in [0, 43, 51, 60, 135, 139, 140] {
        assert_dropped(&with(&good6, 6, next), DropReason::ExtensionHeader, "extension header");
    }
    assert_dropped(&with(&good6, 6, 44), DropReason::Fragment, "fragment header");
    let mut bad_sum = good4.clone();
    bad_sum[10] ^= 1;
    assert_dropped(&bad_sum, DropReason::BadChecksum, "header checksum");
    for good in [&good4, &good6] {
        for length in 0..good.len() {
            let outputs = allow_everything().send(&good[..length]);
            assert_eq!(World::drops(&outputs), [DropReason::Truncated], "length {length}");
        }
    }
}

#[test]
fn counts_bad_transport_headers() {
    for family in BOTH {
        let start = family.header_len();
        let (guest, remote) = (at(family.guest(), 4000), at(family.public(), 80));
        let ip = |protocol, body: &[u8]| packet::ip(guest.ip(), remote.ip(), protocol, body);
        let udp = packet::udp(guest, remote, b"payload")[start..].to_vec();
        let tcp = packet::syn(guest, remote)[start..].to_vec();
        let ping = packet::ping(guest.ip(), remote.ip(), 1, 1, b"x")[start..].to_vec();
        let icmp = packet::icmp_protocol(guest.ip());
        for (protocol, body, least) in [(6, &tcp, 20), (17, &udp, 8), (icmp, &ping, 8)] {
            for length in 0..least {
                assert_dropped(&ip(protocol, &body[..length]), DropReason::Truncated, "short header");
            }
            for at in 0..body.len() {
                let mut wrong = body.clone();
                wrong[at] ^= 0x10;
                let outputs = allow_everything().send(&ip(protocol, &wrong));
                assert!(actions(&outputs).is_empty(), "protocol {protocol}, byte {at}: {outputs:?}");
                assert!(emitted(&outputs).is_empty(), "protocol {protocol}, byte {at}");
            }
        }
        for length in 0..8u8 {
            let mut wrong = udp.clone();
            wrong[4..6].copy_from_slice(&[0, length]);
            assert_dropped(&ip(17, &wrong), DropReason::BadHeader, "UDP length");
        }
        let mut long = udp.clone();
        long[4..6].fill(0xff);
        assert_dropped(&ip(17, &long), DropReason::Truncated, "UDP length");
        for offset in 0..5u8 {
            let mut wrong = tcp.clone();
            wrong[12] = offset << 4;
            assert_dropped(&ip(6, &wrong), DropReason::BadHeader, "TCP offset");
        }
        let mut beyond = tcp.clone();
        beyond[12] = 0xf0;
        assert_dropped(&ip(6, &beyond), DropReason::Truncated, "TCP offset");
    }
}

#[test]
fn counts_port_zero() {
    for family in BOTH {
        for (from, to) in [(0, 80), (4000, 0), (0, 0)] {
            let (guest, remote) = (at(family.guest(), from), at(family.public(), to));
            assert_dropped(&packet::syn(guest, remote), DropReason::PortZero, "TCP");
            assert_dropped(&packet::udp(guest, remote, b"x"), DropReason::PortZero, "UDP");
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_is_for_ipv4_only() {
    for family in BOTH {
        let mut packet = packet::udp(at(family.guest(), 4000), at(family.public(), 80), b"x");
        let start = family.header_len();
        packet[start + 6..start + 8].fill(0);
        let outputs = allow_everything().send(&packet);
        match family {
            Family::V4 => assert_eq!(names(&outputs), ["open udp", "opened", "send udp"]),
            Family::V6 => assert_eq!(World::drops(&outputs), [DropReason::BadChecksum]),
        }
    }
}

#[test]
fn takes_a_partial_checksum_only_where_it_belongs() {
    for family in BOTH {
        let start = u16::try_from(family.header_len()).unwrap();
        let partial =
            |start, offset| Offload { needs_csum: Some(PartialChecksum { start, offset }), udp_segment: None };
        let mut udp = packet::udp(at(family.guest(), 4000), at(family.public(), 80), b"x");
        udp[usize::from(start) + 6] ^= 0x55;
        let mut syn = packet::syn(at(family.guest(), 4000), at(family.public(), 80));
        syn[usize::from(start) + 16] ^= 0x55;
        for (packet, field) in [(&udp, 6), (&syn, 16)] {
            assert_dropped(packet, DropReason::BadChecksum, "no offload");
            for wrong in
                [partial(0, field), partial(start, field + 2), partial(start + 2, field), partial(65535, 65535)]
            {
                assert_dropped_with(wrong, packet, DropReason::BadChecksum, "elsewhere");
            }
            assert!(!actions(&allow_everything().send_with(partial(start, field), packet)).is_empty());
        }
    }
}

#[test]
fn segments_other_than_syns_are_unexpected() {
    for family in BOTH {
        for flags in (0..=255u8).filter(|flags| flags & 0b1_0111 != packet::SYN) {
            let segment = packet::tcp(at(family.guest(), 4000), at(family.public(), 80), flags, 7, &[], &[]);
            assert_dropped(&segment, DropReason::Unexpected, "flags");
        }
    }
}

#[test]
fn other_protocols_are_unreachable_and_counted() {
    for family in BOTH {
        // Numbers that have a meaning of their own: TCP, UDP, ICMP, and the extension headers of IPv6.
        let own: &[u8] = match family {
            Family::V4 => &[1, 6, 17],
            Family::V6 => &[0, 6, 17, 43, 44, 51, 58, 60, 135, 139, 140, 253, 254],
        };
        for protocol in (0..=255u8).filter(|protocol| !own.contains(protocol)) {
            let packet = packet::ip(family.guest(), family.public(), protocol, &[1; 100]);
            let outputs = allow_everything().send(&packet);
            assert_eq!(World::drops(&outputs), [DropReason::UnsupportedProtocol], "protocol {protocol}");
            let [error]: [Seen; 1] = emitted(&outputs).try_into().unwrap();
            let (kind, code, quote) = error.icmp_error();
            match family {
                Family::V4 => assert_eq!((kind, code), (3, 2)),
                Family::V6 => assert_eq!((kind, code, &error.body[4..8]), (4, 1, &[0, 0, 0, 6][..])),
            }
            assert_eq!((error.src, error.dst, quote), (family.public(), family.guest(), &packet[..]));
            assert!(actions(&outputs).is_empty());
        }
    }
}

#[test]
fn icmp_of_the_guest_changes_nothing() {
    for family in BOTH {
        let flow = packet::udp(at(family.guest(), 4000), at(family.public(), 80), b"x");
        let mut world = World::new();
        world.send(&flow);
        let request = if family == Family::V4 { 8 } else { 128 };
        for kind in (0..=255u8).filter(|kind| *kind != request) {
            let packet = packet::icmp(family.guest(), family.public(), kind, 0, &[&[0; 4], &flow[..]].concat());
            let outputs = world.send(&packet);
            assert!(actions(&outputs).is_empty() && emitted(&outputs).is_empty(), "type {kind}");
        }
        let dropped = world.pass(common::ms(1000));
        assert_eq!(World::drops(&dropped), [DropReason::UnsupportedIcmp]);
    }
}

#[test]
fn reads_whole_frames() {
    let packet = packet::udp(at(Family::V4.guest(), 4000), at(Family::V4.public(), 80), b"x");
    let mut world = World::new();
    world.gate.handle_frame(world.now, &[&Offload::NONE.emit()[..], &packet].concat());
    assert_eq!(names(&world.drain()), ["open udp", "opened", "send udp"]);
    world.gate.handle_frame(world.now, &[0; 9]);
    assert_eq!(World::drops(&world.drain()), [DropReason::Truncated]);
    world.gate.handle_frame(world.now, &[&[0, 3, 0, 0, 1, 1, 0, 0, 0, 0], &packet[..]].concat());
    assert_eq!(World::drops(&world.drain()), [DropReason::BadHeader]);
}

#[test]
fn an_address_of_the_gateway_is_a_remote_like_any_other() {
    for family in BOTH {
        let outputs = World::new().send(&packet::syn(at(family.guest(), 4000), at(family.gateway(), 22)));
        assert_eq!(names(&outputs), ["denied", "emit"]);
    }
    let mapped = Ipv4Addr::new(172, 16, 0, 1).to_ipv6_mapped();
    assert_eq!(mapped, "::ffff:172.16.0.1".parse::<Ipv6Addr>().unwrap());
    let packet = packet::syn(at(Family::V6.guest(), 4000), at(mapped.into(), 22));
    assert_dropped(&packet, DropReason::UnusableAddress, "mapped gateway");
}
