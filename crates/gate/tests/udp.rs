//! UDP mappings, in the order of the table in `udp.rs`, and DNS over UDP.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use cofferdam_gate::{DnsClient, Fragmentation, Output, UdpError};
use cofferdam_model::{CloseReason, DenyWith, DropReason, EventBody, FlowCounters, FlowId, Group, LimitKind, Protocol};
use common::packet::{self, Seen, reassemble};
use common::{BOTH, Family, World, actions, at, emitted, events, ms, names};

fn guest(family: Family) -> SocketAddr {
    at(family.guest(), 4000)
}

fn remote(family: Family) -> SocketAddr {
    at(family.public(), 9999)
}

#[track_caller]
fn open(world: &mut World, guest: SocketAddr, remote: SocketAddr) -> FlowId {
    let outputs = world.send(&packet::udp(guest, remote, b"hello"));
    let open = outputs.iter().find_map(|output| match output {
        Output::OpenUdp { flow, .. } => Some(*flow),
        _ => None,
    });
    open.unwrap_or_else(|| panic!("no mapping: {outputs:?}"))
}

fn reply(world: &mut World, flow: FlowId, payload: &[u8], segment: Option<u16>) -> Vec<Output> {
    world.gate.handle_udp_reply(world.now, flow, payload, segment);
    world.drain()
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn a_denied_datagram_is_prohibited() {
    for family in BOTH {
        for payload in [&b""[..], b"x", &pattern(1400)] {
            let datagram = packet::udp(guest(family), at(family.private(), 53), payload);
            let outputs = World::new().send(&datagram);
            assert_eq!(names(&outputs), ["denied", "emit"]);
            let [error]: [Seen; 1] = emitted(&outputs).try_into().unwrap();
            let (kind, code, quote) = error.icmp_error();
            let (expected, longest) = if family == Family::V4 { ((3, 13), 576) } else { ((1, 1), 1280) };
            assert_eq!((kind, code), expected);
            assert_eq!((error.src, error.dst), (family.gateway(), family.guest()));
            assert_eq!(quote, &datagram[..quote.len()]);
            assert_eq!(error.len, longest.min(family.header_len() + 8 + datagram.len()));
        }
        let silent = |config: &mut cofferdam_gate::GateConfig| config.deny_with = DenyWith::Drop;
        let datagram = packet::udp(guest(family), at(family.private(), 80), b"x");
        assert_eq!(names(&World::with(common::public_only(), silent).send(&datagram)), ["denied"]);
    }
}

#[test]
fn the_first_datagram_opens_a_mapping_and_the_next_ones_use_it() {
    for family in BOTH {
        let mut world = World::new();
        let outputs = world.send(&packet::udp(guest(family), remote(family), b"hello"));
        let [
            Output::OpenUdp { flow, remote: to, permit },
            Output::Event(opened),
            Output::SendUdp { payload, segment: None, .. },
        ] = &outputs[..]
        else {
            panic!("{outputs:?}")
        };
        assert_eq!((*to, &payload[..]), (remote(family), &b"hello"[..]));
        assert_eq!((permit.protocol(), permit.peer(), permit.port()), (Protocol::Udp, family.public(), Some(9999)));
        assert!(matches!(opened, EventBody::FlowOpened { group: Group::Public, protocol: Protocol::Udp, .. }));
        for payload in [&b""[..], b"x", &pattern(1472), &pattern(65_000)] {
            let outputs = world.send(&packet::udp(guest(family), remote(family), payload));
            let [Output::SendUdp { flow: same, payload: sent, segment: None, .. }] = &outputs[..] else {
                panic!("{outputs:?}")
            };
            assert_eq!((same, &sent[..]), (flow, payload));
        }
    }
}

#[test]
fn what_the_guest_does_not_want_cut_is_sent_so() {
    let fragmentation = |outputs: &[Output]| match outputs.last() {
        Some(Output::SendUdp { fragmentation, .. }) => *fragmentation,
        other => panic!("{other:?}"),
    };
    for family in BOTH {
        let mut world = World::new();
        let whole = packet::udp(guest(family), remote(family), &pattern(1200));
        // IPv6 has no bit: its routers never cut.
        assert_eq!(fragmentation(&world.send(&whole)), Fragmentation::Forbidden);
        let (offload, batch) = packet::udp_batch(guest(family), remote(family), &pattern(2400), 1200);
        assert_eq!(fragmentation(&world.send_with(offload, &batch)), Fragmentation::Forbidden);
        if family == Family::V4 {
            let mut whole = whole.clone();
            whole[6] &= !0x40;
            packet::fix_header_sum(&mut whole);
            assert_eq!(fragmentation(&world.send(&whole)), Fragmentation::Allowed);
        }
        for piece in packet::pieces(&whole, 7, 600) {
            let outputs = world.send(&piece);
            assert!(outputs.is_empty() || fragmentation(&outputs) == Fragmentation::Allowed);
        }
        assert_eq!(fragmentation(&world.send(&whole)), Fragmentation::Forbidden, "each datagram is asked for itself");
    }
}

#[test]
fn another_port_or_address_is_another_mapping() {
    for family in BOTH {
        let mut world = World::new();
        let first = open(&mut world, guest(family), remote(family));
        let others = [
            (at(family.guest(), 4001), remote(family)),
            (guest(family), at(family.public(), 9998)),
            (guest(family), at(family.nth_public(2), 9999)),
        ];
        for (from, to) in others {
            let flow = open(&mut world, from, to);
            assert_ne!(flow, first);
            let [seen]: [Seen; 1] = emitted(&reply(&mut world, flow, b"re", None)).try_into().unwrap();
            assert_eq!((seen.from(), seen.to(), seen.udp_payload()), (to, from, &b"re"[..]));
        }
    }
}

#[test]
fn replies_come_from_the_remote_and_count() {
    for family in BOTH {
        let mut world = World::new();
        let flow = open(&mut world, guest(family), remote(family));
        for payload in [&b""[..], b"x", &pattern(1500 - 8 - family.header_len())] {
            let outputs = reply(&mut world, flow, payload, None);
            let [seen]: [Seen; 1] = emitted(&outputs).try_into().unwrap();
            assert_eq!((seen.from(), seen.to(), seen.udp_payload()), (remote(family), guest(family), payload));
            assert_eq!((seen.segment, seen.fragment), (None, None));
        }
        let outputs = world.pass(Duration::from_secs(120));
        let bytes_in = 1 + 1500 - 8 - family.header_len() as u64;
        let counters = FlowCounters { bytes_out: 5, bytes_in, packets_out: Some(1), packets_in: Some(3) };
        let closed = EventBody::FlowClosed { flow, by: CloseReason::Idle, counters, duration_ms: 120_000 };
        assert_eq!(events(&outputs), [&closed]);
    }
}

#[test]
fn replies_larger_than_the_mtu_are_fragmented() {
    for family in BOTH {
        for mtu in [1280, 1500, 1501, 9000] {
            let mut world = World::with(common::public_only(), |config| config.mtu = mtu);
            let flow = open(&mut world, guest(family), remote(family));
            let fits = usize::from(mtu) - 8 - family.header_len();
            let mut idents = Vec::new();
            for length in [fits + 1, 2 * fits, 8000, 30_000, 65_487, 65_507].into_iter().filter(|length| *length > fits)
            {
                let payload = pattern(length);
                let pieces = emitted(&reply(&mut world, flow, &payload, None));
                assert!(pieces.len() > 1);
                assert!(pieces.iter().all(|piece| piece.len <= usize::from(mtu)));
                let whole = reassemble(&pieces);
                assert_eq!(
                    (whole.from(), whole.to(), whole.udp_payload()),
                    (remote(family), guest(family), &payload[..])
                );
                idents.push(pieces[0].fragment.unwrap().ident);
            }
            let count = idents.len();
            idents.dedup();
            assert_eq!(idents.len(), count, "each datagram has an identification of its own");
        }
    }
}

#[test]
fn a_reply_that_no_ip_packet_can_hold_is_dropped() {
    for (family, length) in [(Family::V4, 65_508), (Family::V6, 65_528)] {
        let mut world = World::new();
        let flow = open(&mut world, guest(family), remote(family));
        let outputs = reply(&mut world, flow, &pattern(length), None);
        assert_eq!(names(&outputs), ["dropped"]);
        assert!(!emitted(&reply(&mut world, flow, &pattern(length - 1), None)).is_empty());
    }
}

#[test]
fn a_batch_of_replies_is_one_packet_for_the_kernel_to_cut() {
    for family in BOTH {
        let mut world = World::new();
        let flow = open(&mut world, guest(family), remote(family));
        let payload = pattern(1200 * 10 + 7);
        let [seen]: [Seen; 1] = emitted(&reply(&mut world, flow, &payload, Some(1200))).try_into().unwrap();
        assert_eq!((seen.segment, seen.udp_payload()), (Some(1200), &payload[..]));

        let single = emitted(&reply(&mut world, flow, &pattern(1200), Some(1200)));
        assert_eq!((single.len(), single[0].segment), (1, None), "a batch of one is no batch");

        // More datagrams, and more bytes, than one packet may carry.
        for (size, count) in [(10usize, 1000), (1400, 100)] {
            let payload = pattern(size * count);
            let seen = emitted(&reply(&mut world, flow, &payload, Some(size as u16)));
            assert!(seen.iter().all(|seen| seen.len <= 65_535 && seen.udp_payload().len() <= 64 * size));
            assert!(seen[..seen.len() - 1].iter().all(|seen| seen.udp_payload().len() % size == 0));
            let joined: Vec<u8> = seen.iter().flat_map(|seen| seen.udp_payload().to_vec()).collect();
            assert_eq!(joined, payload);
        }
    }
}

#[test]
fn a_batch_whose_datagrams_exceed_the_mtu_is_split_and_fragmented() {
    for family in BOTH {
        let mut world = World::new();
        let flow = open(&mut world, guest(family), remote(family));
        let payload = pattern(2000 * 3 + 100);
        let seen = emitted(&reply(&mut world, flow, &payload, Some(2000)));
        assert_eq!(seen.len(), 7, "three in two fragments each, and a small one");
        let mut joined = Vec::new();
        for pair in seen[..6].chunks(2) {
            joined.extend_from_slice(reassemble(pair).udp_payload());
        }
        joined.extend_from_slice(seen[6].udp_payload());
        assert_eq!(joined, payload);
    }
}

#[test]
fn a_batch_of_the_guest_is_sent_as_one() {
    for family in BOTH {
        let mut world = World::new();
        let flow = open(&mut world, guest(family), remote(family));
        let payload = pattern(1200 * 40 + 7);
        let (offload, batch) = packet::udp_batch(guest(family), remote(family), &payload, 1200);
        let outputs = world.send_with(offload, &batch);
        let [Output::SendUdp { flow: same, payload: sent, segment: Some(1200), .. }] = &outputs[..] else {
            panic!("{outputs:?}")
        };
        assert_eq!((*same, sent), (flow, &payload));

        let (offload, one) = packet::udp_batch(guest(family), remote(family), b"short", 1200);
        let outputs = world.send_with(offload, &one);
        assert!(matches!(&outputs[..], [Output::SendUdp { segment: None, .. }]), "{outputs:?}");

        // The socket takes no more than 64 at once.
        let payload = pattern(10 * 127 + 5);
        let (offload, batch) = packet::udp_batch(guest(family), remote(family), &payload, 10);
        let lengths: Vec<(usize, Option<u16>)> = world
            .send_with(offload, &batch)
            .iter()
            .map(|output| match output {
                Output::SendUdp { payload, segment, .. } => (payload.len(), *segment),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(lengths, [(640, Some(10)), (635, Some(10))]);

        let (mut offload, batch) = packet::udp_batch(guest(family), remote(family), &payload, 10);
        offload.needs_csum = None;
        assert_eq!(World::drops(&world.send_with(offload, &batch)), [DropReason::BadChecksum]);
    }
}

#[test]
fn a_batch_of_more_datagrams_than_any_kernel_makes_is_dropped() {
    for family in BOTH {
        for port in [9999, 53] {
            for (length, drops) in [(128, 0), (129, 1), (60_000, 1)] {
                let remote = at(family.public(), port);
                let (offload, batch) = packet::udp_batch(guest(family), remote, &pattern(length), 1);
                let outputs = World::new().send_with(offload, &batch);
                assert_eq!(World::drops(&outputs).len(), drops, "{length} datagrams");
                assert_eq!(actions(&outputs).is_empty(), drops == 1);
            }
        }
    }
}

#[test]
fn idle_mappings_end_after_one_minute_or_two() {
    for family in BOTH {
        let mut world = World::new();
        let silent = open(&mut world, at(family.guest(), 1), remote(family));
        let answered = open(&mut world, at(family.guest(), 2), remote(family));
        reply(&mut world, answered, b"re", None);
        assert!(world.pass(ms(59_999)).is_empty());
        let outputs = world.pass(ms(1));
        assert!(
            matches!(&outputs[..], [Output::CloseUdp { flow }, Output::Event(_)] if *flow == silent),
            "{outputs:?}"
        );
        world.pass(ms(40_000));
        world.send(&packet::udp(at(family.guest(), 2), remote(family), b"more"));
        assert!(world.pass(ms(119_999)).is_empty(), "two minutes from the last datagram either way");
        let outputs = world.pass(ms(1));
        assert!(
            matches!(&outputs[..], [Output::CloseUdp { flow }, Output::Event(_)] if *flow == answered),
            "{outputs:?}"
        );
        assert_eq!(world.gate.poll_timeout(), None);
        assert_eq!(World::drops(&reply(&mut world, answered, b"late", None)), [DropReason::Unexpected]);
        open(&mut world, at(family.guest(), 2), remote(family));
    }
}

#[test]
fn at_the_limit_the_longest_idle_mapping_makes_room() {
    for family in BOTH {
        let mut world = World::with(common::public_only(), |config| config.limits.max_udp_connections = 3);
        let flows: Vec<FlowId> = (1..=3)
            .map(|port| {
                world.pass(ms(10));
                open(&mut world, at(family.guest(), port), remote(family))
            })
            .collect();
        world.pass(ms(10));
        reply(&mut world, flows[0], b"re", None);
        world.pass(ms(10));
        let outputs = world.send(&packet::udp(at(family.guest(), 4), remote(family), b"x"));
        assert_eq!(names(&outputs), ["limit", "close udp", "closed", "open udp", "opened", "send udp"]);
        assert!(matches!(outputs[1], Output::CloseUdp { flow } if flow == flows[1]));
        let limit = EventBody::LimitReached { limit: LimitKind::UdpMappings, bound: 3, count: 1 };
        assert_eq!(events(&outputs)[0], &limit);
        for expected in [flows[2], flows[0]] {
            world.pass(ms(10));
            let port = 100 + expected.0 as u16;
            let outputs = world.send(&packet::udp(at(family.guest(), port), remote(family), b"x"));
            assert!(matches!(outputs[0], Output::CloseUdp { flow } if flow == expected), "{outputs:?}");
        }
    }
}

#[test]
fn without_a_limit_no_mapping_makes_room() {
    let mut world = World::with(common::public_only(), |config| config.limits.max_udp_connections = 0);
    for port in 1..=5000 {
        let outputs = world.send(&packet::udp(at(Family::V4.guest(), port), remote(Family::V4), b"x"));
        assert_eq!(names(&outputs), ["open udp", "opened", "send udp"]);
    }
}

#[test]
fn errors_of_the_socket_become_icmp_about_the_last_datagram() {
    for family in BOTH {
        let pick = |v4, v6| if family == Family::V4 { v4 } else { v6 };
        let (gateway, there) = (family.gateway(), family.public());
        let least: u32 = if family == Family::V4 { 68 } else { 1280 };
        let cases = [
            (UdpError::PortUnreachable, pick((3, 3), (1, 4)), there, [0; 4]),
            (UdpError::HostUnreachable, pick((3, 1), (1, 3)), gateway, [0; 4]),
            (UdpError::NetUnreachable, pick((3, 0), (1, 0)), gateway, [0; 4]),
            (UdpError::Prohibited, pick((3, 13), (1, 1)), gateway, [0; 4]),
            (UdpError::TooBig { mtu: 1400 }, pick((3, 4), (2, 0)), gateway, 1400u32.to_be_bytes()),
            (UdpError::TooBig { mtu: 1 }, pick((3, 4), (2, 0)), gateway, least.to_be_bytes()),
            (UdpError::TooBig { mtu: 0 }, pick((3, 4), (2, 0)), gateway, 1280u32.to_be_bytes()),
        ];
        for (error, code, from, rest) in cases {
            let mut world = World::new();
            let flow = open(&mut world, guest(family), remote(family));
            let last = packet::udp(guest(family), remote(family), &pattern(1000));
            world.send(&last);
            world.gate.handle_udp_error(world.now, flow, error);
            let outputs = world.drain();
            let [seen]: [Seen; 1] = emitted(&outputs).try_into().unwrap();
            let (kind, number, quote) = seen.icmp_error();
            assert_eq!(((kind, number), seen.src, seen.dst), (code, from, family.guest()), "{error}");
            assert_eq!(quote, &last[..family.header_len() + 8], "{error}");
            assert_eq!(seen.body[4..8], rest, "{error}");
            assert_eq!(names(&world.send(&last)), ["send udp"], "the mapping stays");
        }
    }
}

#[test]
fn a_mapping_whose_socket_cannot_be_opened_ends() {
    for family in BOTH {
        let pick = |v4, v6| if family == Family::V4 { v4 } else { v6 };
        let cases = [
            // Not (3, 0) and (1, 0), of which Linux tells a UDP socket nothing.
            (UdpError::NetUnreachable, Some(pick((3, 6), (1, 6)))),
            (UdpError::HostUnreachable, Some(pick((3, 1), (1, 3)))),
            (UdpError::Prohibited, Some(pick((3, 13), (1, 1)))),
            (UdpError::Resources, None),
        ];
        for (error, code) in cases {
            let mut world = World::new();
            let datagram = packet::udp(guest(family), remote(family), b"hello");
            for _ in 0..2 {
                world.gate.handle_packet(world.now, cofferdam_gate::Offload::NONE, &datagram);
                let Some(Output::OpenUdp { flow, .. }) = world.gate.poll_output() else { panic!("no mapping") };
                world.gate.handle_udp_failed(world.now, flow, error);
                let outputs = world.drain();
                let opened_failed: Vec<_> =
                    names(&outputs).into_iter().filter(|name| ["opened", "failed"].contains(name)).collect();
                assert_eq!(opened_failed, ["opened", "failed"]);
                assert!(matches!(actions(&outputs)[..], [Output::CloseUdp { .. }]), "nothing is sent: {outputs:?}");
                let told: Vec<(u8, u8)> =
                    emitted(&outputs).iter().map(|seen| (seen.icmp_error().0, seen.icmp_error().1)).collect();
                assert_eq!(told, Vec::from_iter(code), "{error}");
                let limits =
                    events(&outputs).iter().filter(|event| matches!(event, EventBody::LimitReached { .. })).count();
                assert_eq!(limits, usize::from(code.is_none()));
                world.pass(ms(1000));
            }
            assert_eq!(world.gate.poll_timeout(), None);
        }
    }
}

#[test]
fn a_mapping_that_runs_out_of_resources_ends() {
    let mut world = World::new();
    let flow = open(&mut world, guest(Family::V4), remote(Family::V4));
    world.gate.handle_udp_error(world.now, flow, UdpError::Resources);
    let outputs = world.drain();
    assert_eq!(names(&outputs), ["close udp", "limit", "failed"]);
    assert_eq!(names(&world.pass(ms(1_000))), [""; 0]);
    assert_eq!(world.gate.poll_timeout(), None);
    open(&mut world, guest(Family::V4), remote(Family::V4));
    world.gate.handle_udp_error(world.now, FlowId(99), UdpError::PortUnreachable);
    world.gate.handle_udp_failed(world.now, FlowId(99), UdpError::PortUnreachable);
    assert!(world.drain().is_empty(), "no such flow");
}

#[test]
fn the_host_alias_is_the_loopback_of_the_same_family() {
    for family in BOTH {
        let mut policy = common::public_only();
        policy.rules.push(common::allow_host_port(8080));
        let mut world = World::with(policy, |_| {});
        let outputs = world.send(&packet::udp(guest(family), at(family.gateway(), 8080), b"x"));
        let Output::OpenUdp { flow, remote, permit } = &outputs[0] else { panic!("{outputs:?}") };
        assert_eq!((*remote, permit.peer()), (at(family.loopback(), 8080), family.gateway()));
        let [seen]: [Seen; 1] = emitted(&reply(&mut world, *flow, b"re", None)).try_into().unwrap();
        assert_eq!(seen.from(), at(family.gateway(), 8080), "the guest sees who it asked");
    }
}

#[test]
fn dns_goes_to_the_resolver_and_keeps_no_mapping() {
    for family in BOTH {
        for server in [family.gateway(), family.public()] {
            let mut world = World::new();
            let query = DnsClient { guest: guest(family), server: at(server, 53) };
            for _ in 0..2 {
                let outputs = world.send(&packet::udp(guest(family), query.server, b"question"));
                let [Output::Dns { query: asked, message }] = &outputs[..] else { panic!("{outputs:?}") };
                assert_eq!((*asked, &message[..]), (query, &b"question"[..]));
            }
            assert_eq!(world.gate.poll_timeout(), None);
            for length in [10, 4000] {
                world.gate.handle_dns_answer(world.now, query, &pattern(length));
                let pieces = emitted(&world.drain());
                let seen = if pieces.len() > 1 { reassemble(&pieces) } else { pieces[0].clone() };
                assert_eq!((seen.from(), seen.to()), (query.server, query.guest));
                assert_eq!(seen.udp_payload(), pattern(length));
            }
        }
        let denied = World::new().send(&packet::udp(guest(family), at(family.private(), 53), b"question"));
        assert_eq!(names(&denied), ["denied", "emit"]);
        let mut closed = World::with(Default::default(), |_| {});
        let outputs = closed.send(&packet::udp(guest(family), at(family.gateway(), 53), b"question"));
        assert_eq!(names(&outputs), ["dns"]);
        let outputs = closed.send(&packet::udp(guest(family), at(family.public(), 53), b"question"));
        assert_eq!(names(&outputs), ["denied", "emit"]);
    }
}

#[test]
fn a_batch_of_questions_is_asked_one_by_one() {
    let mut world = World::new();
    let server = at(Family::V4.gateway(), 53);
    let (offload, batch) = packet::udp_batch(guest(Family::V4), server, b"aabbc", 2);
    let outputs = world.send_with(offload, &batch);
    let messages: Vec<&[u8]> = outputs
        .iter()
        .map(|output| match output {
            Output::Dns { message, .. } => &message[..],
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(messages, [&b"aa"[..], b"bb", b"c"]);
}

#[test]
fn a_dns_answer_goes_to_the_guest_from_port_53_or_nowhere() {
    for family in BOTH {
        let server = at(family.gateway(), 53);
        let queries = [
            DnsClient { guest: at(family.public(), 4000), server },
            DnsClient { guest: guest(family), server: at(family.gateway(), 54) },
        ];
        for query in queries {
            let mut world = World::new();
            world.gate.handle_dns_answer(world.now, query, b"answer");
            let outputs = world.drain();
            assert_eq!(names(&outputs), ["dropped"]);
        }
    }
}

#[test]
fn a_flood_of_denied_datagrams_does_not_flood_the_events() {
    let mut world = World::new();
    let denied = packet::udp(guest(Family::V4), at(Family::V4.private(), 80), b"x");
    let mut told = 0;
    let mut limits = 0;
    for _ in 0..10_000 {
        let outputs = world.send(&denied);
        assert_eq!(emitted(&outputs).len(), 1, "the guest is answered all the same");
        told += events(&outputs).iter().filter(|event| matches!(event, EventBody::FlowDenied { .. })).count();
        limits += events(&outputs).iter().filter(|event| matches!(event, EventBody::LimitReached { .. })).count();
    }
    assert_eq!((told, limits), (100, 1));
    let outputs = world.pass(ms(1000));
    let rest = EventBody::LimitReached { limit: LimitKind::Events, bound: 100, count: 9_899 };
    assert_eq!(events(&outputs), [&rest]);
    assert_eq!(names(&world.send(&denied)), ["denied", "emit"]);
}

#[test]
fn shutdown_closes_and_reports_what_is_open() {
    let mut world = World::new();
    let first = open(&mut world, guest(Family::V4), remote(Family::V4));
    let second = open(&mut world, guest(Family::V6), remote(Family::V6));
    reply(&mut world, second, b"re", None);
    world.send(&[0; 3]);
    world.send(&[0; 3]);
    world.gate.handle_shutdown(world.now);
    let outputs = world.drain();
    assert_eq!(actions(&outputs).len(), 2);
    let closed: Vec<FlowId> = events(&outputs)
        .iter()
        .filter_map(|event| match event {
            EventBody::FlowClosed { flow, by: CloseReason::Shutdown, .. } => Some(*flow),
            _ => None,
        })
        .collect();
    assert_eq!(closed, [first, second]);
    assert_eq!(World::drops(&outputs), [DropReason::BadHeader]);
    assert_eq!(names(&world.pass(ms(1_000))), [""; 0]);
    assert_eq!(world.gate.poll_timeout(), None);
}
