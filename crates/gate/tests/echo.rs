//! Echo, in the order of the table in `echo.rs`.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::net::IpAddr;
use std::time::Duration;

use cofferdam_gate::{EchoError, Output};
use cofferdam_model::{CloseReason, DenyWith, DropReason, EventBody, FlowCounters, FlowId, LimitKind, Protocol};
use common::packet::{self, Seen, reassemble};
use common::{BOTH, Family, World, actions, emitted, events, ms, names};

#[track_caller]
fn open(world: &mut World, guest: IpAddr, remote: IpAddr, ident: u16) -> FlowId {
    let outputs = world.send(&packet::ping(guest, remote, ident, 1, b"ping"));
    match actions(&outputs)[..] {
        [.., Output::OpenEcho { flow, .. }, Output::SendEcho { .. }] => *flow,
        ref other => panic!("not opened: {other:?}"),
    }
}

fn protocol(family: Family) -> Protocol {
    if family == Family::V4 { Protocol::IcmpV4 } else { Protocol::IcmpV6 }
}

/// The echo reply in `seen`: identifier, sequence, payload.
fn read_reply(seen: &Seen) -> (u16, u16, &[u8]) {
    let kind = if seen.src.is_ipv4() { 0 } else { 129 };
    assert_eq!((seen.protocol, seen.body[0], seen.body[1]), (packet::icmp_protocol(seen.src), kind, 0));
    let field = |at| u16::from_be_bytes([seen.body[at], seen.body[at + 1]]);
    (field(4), field(6), &seen.body[8..])
}

#[test]
fn the_gateway_answers_whatever_the_policy() {
    for family in BOTH {
        let mut world = World::with(Default::default(), |config| config.deny_with = DenyWith::Drop);
        for (sequence, length) in [(0, 0), (1, 56), (65_535, 1400)] {
            let payload = vec![0x5a; length];
            let outputs = world.send(&packet::ping(family.guest(), family.gateway(), 77, sequence, &payload));
            assert_eq!(names(&outputs), ["emit"]);
            let seen = &emitted(&outputs)[0];
            assert_eq!((seen.src, seen.dst), (family.gateway(), family.guest()));
            assert_eq!(read_reply(seen), (77, sequence, &payload[..]));
        }
        let outputs = world.send(&packet::ping(family.guest(), family.gateway(), 77, 3, &[0x5a; 5000]));
        let whole = reassemble(&emitted(&outputs));
        assert_eq!(read_reply(&whole), (77, 3, &[0x5a; 5000][..]));
    }
}

#[test]
fn a_denied_ping_is_prohibited() {
    for family in BOTH {
        let ping = packet::ping(family.guest(), family.private(), 1, 1, b"ping");
        let outputs = World::new().send(&ping);
        assert_eq!(names(&outputs), ["denied", "emit"]);
        let seen = &emitted(&outputs)[0];
        let expected = if family == Family::V4 { (3, 13, &ping[..]) } else { (1, 1, &ping[..]) };
        assert_eq!((seen.icmp_error(), seen.src), (expected, family.gateway()));
        let [EventBody::FlowDenied { protocol: denied, guest, remote, .. }] = events(&outputs)[..] else { panic!() };
        assert_eq!((*denied, guest.port(), remote.port()), (protocol(family), 0, 0));
        let silent = |config: &mut cofferdam_gate::GateConfig| config.deny_with = DenyWith::Drop;
        assert_eq!(names(&World::with(common::public_only(), silent).send(&ping)), ["denied"]);
    }
}

#[test]
fn an_allowed_ping_opens_a_flow_and_the_next_ones_use_it() {
    for family in BOTH {
        let mut world = World::new();
        let outputs = world.send(&packet::ping(family.guest(), family.public(), 77, 1, b"one"));
        let [
            Output::OpenEcho { flow, remote, permit },
            Output::Event(_),
            Output::SendEcho { sequence: 1, payload, .. },
        ] = &outputs[..]
        else {
            panic!("{outputs:?}")
        };
        assert_eq!((*remote, &payload[..]), (family.public(), &b"one"[..]));
        assert_eq!((permit.protocol(), permit.peer(), permit.port()), (protocol(family), family.public(), None));
        let outputs = world.send(&packet::ping(family.guest(), family.public(), 77, 2, b"two"));
        assert!(matches!(&outputs[..], [Output::SendEcho { flow: same, sequence: 2, .. }] if same == flow));
        world.gate.handle_echo_reply(world.now, *flow, 2, b"two");
        let outputs = world.drain();
        let [seen]: [Seen; 1] = emitted(&outputs).try_into().unwrap();
        assert_eq!((seen.src, seen.dst), (family.public(), family.guest()));
        assert_eq!(read_reply(&seen), (77, 2, &b"two"[..]), "with the guest's own identifier");
        let other = open(&mut world, family.guest(), family.public(), 78);
        assert_ne!(other, *flow);
    }
}

#[test]
fn replies_larger_than_the_mtu_are_fragmented() {
    for family in BOTH {
        let mut world = World::new();
        let flow = open(&mut world, family.guest(), family.public(), 77);
        world.gate.handle_echo_reply(world.now, flow, 1, &[3; 4000]);
        let pieces = emitted(&world.drain());
        assert!(pieces.len() == 3 && pieces.iter().all(|piece| piece.len <= 1500));
        assert_eq!(read_reply(&reassemble(&pieces)), (77, 1, &[3; 4000][..]));
    }
}

#[test]
fn an_idle_flow_ends_after_half_a_minute() {
    for family in BOTH {
        let mut world = World::new();
        let flow = open(&mut world, family.guest(), family.public(), 77);
        world.pass(ms(20_000));
        world.gate.handle_echo_reply(world.now, flow, 1, b"re");
        world.drain();
        assert!(world.pass(ms(29_999)).is_empty());
        let outputs = world.pass(ms(1));
        let counters = FlowCounters { bytes_out: 4, bytes_in: 2, packets_out: Some(1), packets_in: Some(1) };
        let closed = EventBody::FlowClosed { flow, by: CloseReason::Idle, counters, duration_ms: 50_000 };
        assert_eq!((names(&outputs), events(&outputs)), (vec!["close echo", "closed"], vec![&closed]));
        assert_eq!(world.gate.poll_timeout(), None);
        world.gate.handle_echo_reply(world.now, flow, 1, b"late");
        assert_eq!(World::drops(&world.drain()), [DropReason::Unexpected]);
    }
}

#[test]
fn errors_of_the_socket_become_icmp_about_the_last_request() {
    for family in BOTH {
        let pick = |v4, v6| if family == Family::V4 { v4 } else { v6 };
        let cases = [
            (EchoError::HostUnreachable, pick((3, 1), (1, 3))),
            (EchoError::NetUnreachable, pick((3, 0), (1, 0))),
            (EchoError::Prohibited, pick((3, 13), (1, 1))),
        ];
        for (error, code) in cases {
            let mut world = World::new();
            let flow = open(&mut world, family.guest(), family.public(), 77);
            let last = packet::ping(family.guest(), family.public(), 77, 2, &[1; 100]);
            world.send(&last);
            world.gate.handle_echo_error(world.now, flow, error);
            let outputs = world.drain();
            assert_eq!(names(&outputs), ["emit"]);
            let seen = &emitted(&outputs)[0];
            let (kind, number, quote) = seen.icmp_error();
            assert_eq!(((kind, number), quote), (code, &last[..family.header_len() + 8]));
            assert_eq!(names(&world.send(&last)), ["send echo"], "the flow stays");
        }
    }
}

#[test]
fn a_host_without_ping_sockets_is_told_once() {
    for family in BOTH {
        let mut world = World::new();
        let flow = open(&mut world, family.guest(), family.public(), 77);
        world.gate.handle_echo_error(world.now, flow, EchoError::NotPermitted);
        let outputs = world.drain();
        assert_eq!(names(&outputs), ["close echo", "emit", "failed", "notice"]);
        let (kind, code, _) = emitted(&outputs)[0].icmp_error().to_owned();
        assert_eq!((kind, code), if family == Family::V4 { (3, 13) } else { (1, 1) });
        let notice = |event: &&EventBody| match event {
            EventBody::GatewayNotice { message } => message.contains("net.ipv4.ping_group_range"),
            _ => false,
        };
        assert!(events(&outputs).iter().any(notice));
        let flow = open(&mut world, family.guest(), family.public(), 77);
        world.gate.handle_echo_error(world.now, flow, EchoError::NotPermitted);
        assert_eq!(names(&world.drain()), ["close echo", "emit", "failed"]);
        assert_eq!(names(&world.pass(ms(1_000))), [""; 0]);
        assert_eq!(world.gate.poll_timeout(), None);
    }
}

#[test]
fn a_flow_whose_socket_cannot_be_opened_ends() {
    for family in BOTH {
        let mut world = World::new();
        let ping = packet::ping(family.guest(), family.public(), 77, 1, b"ping");
        for _ in 0..2 {
            world.gate.handle_packet(world.now, cofferdam_gate::Offload::NONE, &ping);
            let Some(Output::OpenEcho { flow, .. }) = world.gate.poll_output() else { panic!("no flow") };
            world.gate.handle_echo_failed(world.now, flow, EchoError::NetUnreachable);
            let outputs = world.drain();
            assert_eq!(names(&outputs), ["opened", "close echo", "emit", "failed"], "nothing is sent");
        }
        assert_eq!(names(&world.pass(ms(1_000))), [""; 0]);
        assert_eq!(world.gate.poll_timeout(), None);
    }
}

#[test]
fn a_flow_that_runs_out_of_resources_ends() {
    let mut world = World::new();
    let flow = open(&mut world, Family::V4.guest(), Family::V4.public(), 77);
    world.gate.handle_echo_error(world.now, flow, EchoError::Resources);
    assert_eq!(names(&world.drain()), ["close echo", "limit", "failed"]);
    world.gate.handle_echo_error(world.now, flow, EchoError::HostUnreachable);
    world.gate.handle_echo_failed(world.now, flow, EchoError::HostUnreachable);
    assert!(world.drain().is_empty());
}

#[test]
fn at_the_limit_the_longest_idle_flow_makes_room() {
    for family in BOTH {
        let mut world = World::new();
        let mut flows = Vec::new();
        for ident in 0..256 {
            flows.push(open(&mut world, family.guest(), family.public(), ident));
            world.pass(ms(10));
        }
        world.gate.handle_echo_reply(world.now, flows[0], 1, b"re");
        world.drain();
        let outputs = world.send(&packet::ping(family.guest(), family.public(), 999, 1, b"x"));
        assert_eq!(names(&outputs), ["limit", "close echo", "closed", "open echo", "opened", "send echo"]);
        assert!(matches!(outputs[1], Output::CloseEcho { flow } if flow == flows[1]));
        assert!(matches!(events(&outputs)[0], EventBody::LimitReached { limit: LimitKind::Pings, bound: 256, .. }));
    }
}

#[test]
fn requests_are_limited_to_a_hundred_a_second_after_a_burst() {
    for family in BOTH {
        let mut world = World::new();
        let sent = |world: &mut World, count: u16| {
            let send = |sequence| world.send(&packet::ping(family.guest(), family.public(), 77, sequence, b"x"));
            let outputs: Vec<Output> = (0..count).flat_map(send).collect();
            outputs.iter().filter(|output| matches!(output, Output::SendEcho { .. })).count()
        };
        assert_eq!(sent(&mut world, 500), 100);
        world.pass(ms(100));
        assert_eq!(sent(&mut world, 500), 10);
        world.pass(Duration::from_secs(5));
        assert_eq!(sent(&mut world, 500), 100);
        let other: Vec<Output> = (0..50)
            .flat_map(|ident| world.send(&packet::ping(family.guest(), family.public(), 1000 + ident, 1, b"")))
            .collect();
        assert!(actions(&other).is_empty(), "new flows do not get around it: {other:?}");
        let gateway = world.send(&packet::ping(family.guest(), family.gateway(), 1, 1, b""));
        assert_eq!(names(&gateway), ["emit"], "the gateway's own answers are not limited");
    }
}
