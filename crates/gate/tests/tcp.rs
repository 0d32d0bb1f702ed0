//! Connections, in the order of the table in `tcp.rs`.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use cofferdam_gate::{Accepted, DialError, Offload, Output, PartialChecksum};
use cofferdam_model::{
    CloseReason, DenyWith, Destination, Direction, DropReason, EventBody, FlowCounters, FlowId, Group, LimitKind,
    Protocol,
};
use common::packet::{self, ACK, RST, SYN, Seen};
use common::{BOTH, Family, World, actions, at, emitted, events, ms, names};

const PORT: u16 = 443;

fn guest(family: Family) -> SocketAddr {
    at(family.guest(), 4000)
}

fn web(family: Family) -> SocketAddr {
    at(family.public(), PORT)
}

/// Sends the first SYN of a connection that the policy allows.
#[track_caller]
fn dial(world: &mut World, guest: SocketAddr, remote: SocketAddr) -> FlowId {
    let outputs = world.send(&packet::syn(guest, remote));
    match &outputs[..] {
        // At the bound of pending connections another one goes first.
        [Output::Dial { flow, .. }] | [.., Output::Event(_), Output::Dial { flow, .. }] => *flow,
        other => panic!("no dial: {other:?}"),
    }
}

#[track_caller]
fn establish(world: &mut World, guest: SocketAddr, remote: SocketAddr) -> FlowId {
    let flow = dial(world, guest, remote);
    assert_eq!(names(&world.dialed(flow, Ok(()))), ["emit"]);
    assert_eq!(world.gate.handle_accepted(world.now, guest, remote), Some(Accepted::Relay(flow)));
    world.drain();
    flow
}

#[track_caller]
fn assert_reset(seen: &Seen, guest: SocketAddr, remote: SocketAddr, ack: u32) {
    assert_eq!((seen.protocol, seen.from(), seen.to()), (packet::TCP, remote, guest));
    assert_eq!(seen.body.len(), 20);
    assert_eq!(seen.body[4..8], [0; 4], "sequence number");
    assert_eq!(seen.body[8..12], ack.to_be_bytes(), "acknowledgement");
    assert_eq!((seen.body[12], seen.body[13]), (0x50, RST | ACK));
}

#[test]
fn a_denied_connection_is_reset_at_once() {
    for family in BOTH {
        let remote = at(family.private(), 80);
        let mut world = World::new();
        let syn = packet::tcp(guest(family), remote, SYN, u32::MAX, &[], b"data");
        let outputs = world.send(&syn);
        assert_eq!(names(&outputs), ["denied", "emit"]);
        assert_reset(&emitted(&outputs)[0], guest(family), remote, 4);
        assert_eq!(world.gate.poll_timeout(), None);
    }
}

#[test]
fn a_denial_that_is_told_by_itself_is_answered_when_somebody_could_look() {
    for family in BOTH {
        for (protocol, deny_with) in [("tcp", DenyWith::Reset), ("tcp", DenyWith::Icmp), ("udp", DenyWith::Icmp)] {
            let mut world = World::with(common::public_only(), |config| {
                config.witness = ms(1);
                config.deny_with = deny_with;
            });
            let packet = match protocol {
                "tcp" => packet::syn(guest(family), at(family.private(), 80)),
                _ => packet::udp(guest(family), at(family.private(), 80), b"x"),
            };
            assert_eq!(names(&world.send(&packet)), ["denied"]);
            assert_eq!(world.gate.poll_timeout(), Some(world.now + ms(1)));
            assert_eq!(names(&world.pass(ms(1))), ["emit"]);
            // A flood is told no more one by one, and is answered as fast as it comes.
            let told = (0..1000).filter(|_| names(&world.send(&packet)) == ["denied"]).count();
            assert_eq!(told, 99);
            assert_eq!(names(&world.send(&packet)), ["emit"]);
            world.gate.handle_shutdown(world.now);
            assert_eq!(names(&world.drain()).iter().filter(|name| **name == "emit").count(), 99);
        }
    }
}

#[test]
fn a_denied_connection_is_answered_as_configured() {
    for family in BOTH {
        let syn = packet::syn(guest(family), at(family.private(), 80));
        let with = |deny_with| World::with(common::public_only(), |config| config.deny_with = deny_with).send(&syn);
        assert_eq!(names(&with(DenyWith::Drop)), ["denied"]);
        let outputs = with(DenyWith::Icmp);
        assert_eq!(names(&outputs), ["denied", "emit"]);
        let [error]: [Seen; 1] = emitted(&outputs).try_into().unwrap();
        let expected = if family == Family::V4 { (3, 13, &syn[..]) } else { (1, 1, &syn[..]) };
        assert_eq!(error.icmp_error(), expected);
        assert_eq!((error.src, error.dst), (family.gateway(), family.guest()));
    }
}

#[test]
fn a_denial_is_reported_with_its_rule() {
    let mut world = World::new();
    let outputs = world.send(&packet::syn(guest(Family::V4), at(Family::V4.private(), 80)));
    let [
        EventBody::FlowDenied {
            decision,
            direction,
            protocol,
            guest: from,
            remote,
            group,
            names,
            rule,
            shown: None,
            look_up_again: None,
            process: None,
        },
    ] = events(&outputs)[..]
    else {
        panic!("{outputs:?}")
    };
    assert_eq!((direction, protocol), (&Direction::Egress, &Protocol::Tcp));
    assert_eq!((*from, *remote), (guest(Family::V4), at(Family::V4.private(), 80)));
    assert_eq!((group, names.len(), rule.index), (&Group::Private, 0, None));
    assert!(!decision.is_empty());
    let again = world.send(&packet::syn(guest(Family::V4), at(Family::V4.private(), 80)));
    let [EventBody::FlowDenied { decision: second, .. }] = events(&again)[..] else { panic!("{again:?}") };
    assert_ne!(decision, second);
}

#[test]
fn an_allowed_connection_is_dialed_before_the_guest_hears_anything() {
    for family in BOTH {
        let mut world = World::new();
        let outputs = world.send(&packet::syn(guest(family), web(family)));
        let [Output::Dial { flow, remote, fallback, permit }] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!((*flow, *remote, *fallback), (FlowId(1), web(family), None));
        assert_eq!((permit.protocol(), permit.peer(), permit.port()), (Protocol::Tcp, family.public(), Some(PORT)));
    }
}

#[test]
fn the_whole_life_of_a_connection() {
    for family in BOTH {
        let mut world = World::new();
        let syn = packet::syn(guest(family), web(family));
        let flow = dial(&mut world, guest(family), web(family));
        world.pass(ms(30));
        let outputs = world.dialed(flow, Ok(()));
        let [Output::Emit { offload: Offload::NONE, packet }] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!(*packet, syn);
        assert_eq!(world.gate.handle_accepted(world.now, guest(family), web(family)), Some(Accepted::Relay(flow)));
        let outputs = world.drain();
        let [EventBody::FlowOpened { flow: opened, protocol: Protocol::Tcp, group: Group::Public, rule, .. }] =
            events(&outputs)[..]
        else {
            panic!("{outputs:?}")
        };
        assert_eq!((*opened, rule.index), (flow, Some(1)));
        world.pass(Duration::from_secs(86_400));
        let counters = FlowCounters { bytes_out: 10, bytes_in: 20, ..FlowCounters::default() };
        world.gate.handle_closed(world.now, flow, CloseReason::Remote, counters);
        let expected = EventBody::FlowClosed { flow, by: CloseReason::Remote, counters, duration_ms: 86_400_000 };
        assert_eq!(events(&world.drain()), [&expected]);
        assert_eq!(world.gate.poll_timeout(), None);
        world.gate.handle_closed(world.now, flow, CloseReason::Remote, counters);
        assert!(world.drain().is_empty(), "closed twice");
    }
}

#[test]
fn keeps_what_the_guests_kernel_left_to_be_done_on_the_syn() {
    for family in BOTH {
        let mut world = World::new();
        let start = u16::try_from(family.header_len()).unwrap();
        let offload = Offload { needs_csum: Some(PartialChecksum { start, offset: 16 }), udp_segment: None };
        let mut syn = packet::syn(guest(family), web(family));
        let sum = packet::sum(&[&packet::pseudo(family.guest(), family.public(), 6, 24)]);
        let field = family.header_len() + 16;
        syn[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        let outputs = world.send_with(offload, &syn);
        let [Output::Dial { flow, .. }] = &outputs[..] else { panic!("{outputs:?}") };
        let outputs = world.dialed(*flow, Ok(()));
        let [Output::Emit { offload: kept, packet }] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!((*kept, packet), (offload, &syn));
    }
}

#[test]
fn keeps_a_syn_without_its_data() {
    for family in BOTH {
        let mut world = World::new();
        let options = [2, 4, 5, 0xb4, 34, 2, 1, 1];
        let syn = packet::tcp(guest(family), web(family), SYN, 99, &options, &[0xaa; 1400]);
        let outputs = world.send(&syn);
        let [Output::Dial { flow, .. }] = &outputs[..] else { panic!("{outputs:?}") };
        let [seen]: [Seen; 1] = emitted(&world.dialed(*flow, Ok(()))).try_into().unwrap();
        let bare = packet::tcp(guest(family), web(family), SYN, 99, &options, &[]);
        assert_eq!(seen.body, bare[family.header_len()..]);
    }
}

#[test]
fn an_ecn_setup_syn_is_a_syn() {
    for family in BOTH {
        let syn = packet::tcp(guest(family), web(family), 0xc2, 1, &[], &[]);
        assert_eq!(names(&World::new().send(&syn)), ["dial"]);
    }
}

#[test]
fn a_retransmitted_syn_joins_its_connection() {
    for family in BOTH {
        let mut world = World::new();
        let first = packet::syn(guest(family), web(family));
        let second = packet::tcp(guest(family), web(family), SYN, 2000, &[2, 4, 5, 0xb4], &[]);
        let flow = dial(&mut world, guest(family), web(family));
        assert!(world.send(&first).is_empty(), "while dialing");
        assert!(world.send(&second).is_empty(), "while dialing, with another sequence number");
        let outputs = world.dialed(flow, Ok(()));
        let [Output::Emit { packet, .. }] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!(*packet, second, "the latest one counts");
        world.pass(ms(2900));
        assert_eq!(names(&world.send(&second)), ["emit"], "while injected");
        assert_eq!(names(&world.pass(ms(2900))), [""; 0], "the time to accept has started anew");
        assert!(world.gate.handle_accepted(world.now, guest(family), web(family)).is_some());
        world.drain();
        assert_eq!(names(&world.send(&second)), ["emit"], "while live");
        assert_eq!(world.gate.handle_accepted(world.now, guest(family), web(family)), None, "one accept per dial");
    }
}

#[test]
fn a_failed_dial_looks_like_what_happened() {
    for family in BOTH {
        let icmp = |v4, v6| Some(if family == Family::V4 { v4 } else { v6 });
        let cases = [
            (DialError::Refused, None),
            (DialError::NetUnreachable, icmp((3, 0), (1, 0))),
            (DialError::HostUnreachable, icmp((3, 1), (1, 3))),
            (DialError::TimedOut, icmp((3, 1), (1, 3))),
            (DialError::Prohibited, icmp((3, 13), (1, 1))),
        ];
        for (error, code) in cases {
            let mut world = World::new();
            let flow = dial(&mut world, guest(family), web(family));
            let outputs = world.dialed(flow, Err(error));
            assert_eq!(names(&outputs), ["failed", "emit"], "{error}");
            let [seen]: [Seen; 1] = emitted(&outputs).try_into().unwrap();
            match code {
                None => assert_reset(&seen, guest(family), web(family), 1001),
                Some((kind, code)) => {
                    let syn = packet::syn(guest(family), web(family));
                    assert_eq!(seen.icmp_error(), (kind, code, &syn[..]), "{error}");
                    assert_eq!((seen.src, seen.dst), (family.gateway(), family.guest()));
                }
            }
            let [EventBody::FlowFailed { flow: failed, error: text, .. }] = events(&outputs)[..] else { panic!() };
            assert_eq!((*failed, text), (flow, &error.to_string()));
            assert_eq!(world.gate.poll_timeout(), None);
            dial(&mut world, guest(family), web(family));
        }
    }
}

#[test]
fn a_dial_for_want_of_descriptors_is_reset_and_told_as_a_limit() {
    let mut world = World::new();
    let flow = dial(&mut world, guest(Family::V4), web(Family::V4));
    let outputs = world.dialed(flow, Err(DialError::Resources));
    assert_eq!(names(&outputs), ["limit", "failed", "emit"]);
    assert!(matches!(events(&outputs)[0], EventBody::LimitReached { limit: LimitKind::Descriptors, .. }));
    assert_reset(&emitted(&outputs)[0], guest(Family::V4), web(Family::V4), 1001);
}

#[test]
fn a_dial_ends_with_connect_timeout() {
    for family in BOTH {
        let mut world = World::with(common::public_only(), |config| config.limits.connect_timeout = ms(5000));
        let flow = dial(&mut world, guest(family), web(family));
        assert!(world.pass(ms(4999)).is_empty());
        let outputs = world.pass(ms(1));
        assert_eq!(names(&outputs), ["abandon", "failed", "emit"]);
        let (kind, code, _) = emitted(&outputs)[0].icmp_error().to_owned();
        assert_eq!((kind, code), if family == Family::V4 { (3, 1) } else { (1, 3) });
        assert!(world.dialed(flow, Ok(())).is_empty(), "an answer that comes too late");
    }
}

#[test]
fn a_handshake_that_the_guest_does_not_finish_is_given_up() {
    for family in BOTH {
        let mut world = World::new();
        let flow = dial(&mut world, guest(family), web(family));
        world.dialed(flow, Ok(()));
        assert!(world.pass(ms(2999)).is_empty());
        let outputs = world.pass(ms(1));
        assert_eq!(names(&outputs), ["abandon", "failed"]);
        assert_eq!(world.gate.handle_accepted(world.now, guest(family), web(family)), None);
    }
}

#[test]
fn only_what_was_waited_for_is_accepted() {
    for family in BOTH {
        let mut world = World::new();
        let flow = dial(&mut world, guest(family), web(family));
        assert_eq!(world.gate.handle_accepted(world.now, guest(family), web(family)), None, "not dialed yet");
        world.drain();
        world.dialed(flow, Ok(()));
        let other = [
            (at(family.guest(), 4001), web(family)),
            (guest(family), at(family.public(), PORT + 1)),
            (guest(family), at(family.nth_public(2), PORT)),
            (at(family.gateway(), 4000), web(family)),
        ];
        for (from, to) in other {
            assert_eq!(world.gate.handle_accepted(world.now, from, to), None, "{from} to {to}");
        }
        let outputs = world.pass(ms(1000));
        assert_eq!(World::drops(&outputs), [DropReason::Unexpected]);
        assert_eq!(world.gate.handle_accepted(world.now, guest(family), web(family)), Some(Accepted::Relay(flow)));
    }
}

#[test]
fn an_accepted_peer_may_be_written_as_an_ipv4_mapped_address() {
    let mut world = World::new();
    let flow = dial(&mut world, guest(Family::V4), web(Family::V4));
    world.dialed(flow, Ok(()));
    let mapped = |address: SocketAddr| match address {
        SocketAddr::V4(address) => at(address.ip().to_ipv6_mapped().into(), address.port()),
        SocketAddr::V6(_) => unreachable!(),
    };
    let accepted = world.gate.handle_accepted(world.now, mapped(guest(Family::V4)), mapped(web(Family::V4)));
    assert_eq!(accepted, Some(Accepted::Relay(flow)));
}

#[test]
fn dns_over_tcp_is_not_dialed() {
    for family in BOTH {
        for server in [family.gateway(), family.public()] {
            let mut world = World::new();
            let outputs = world.send(&packet::syn(guest(family), at(server, 53)));
            assert_eq!(names(&outputs), ["emit"]);
            let accepted = world.gate.handle_accepted(world.now, guest(family), at(server, 53));
            assert_eq!(accepted, Some(Accepted::Dns(FlowId(1))));
            world.gate.handle_closed(world.now, FlowId(1), CloseReason::Guest, FlowCounters::default());
            assert!(world.drain().is_empty());
            assert_eq!(world.gate.poll_timeout(), None);
        }
        let outputs = World::new().send(&packet::syn(guest(family), at(family.private(), 53)));
        assert_eq!(names(&outputs), ["denied", "emit"]);
        // Our own resolver decides by the name; anybody else's needs a rule for its address.
        let mut closed = World::with(Default::default(), |_| {});
        assert_eq!(names(&closed.send(&packet::syn(guest(family), at(family.gateway(), 53)))), ["emit"]);
        assert!(closed.gate.handle_accepted(closed.now, guest(family), at(family.gateway(), 53)).is_some());
        assert_eq!(names(&closed.send(&packet::syn(guest(family), at(family.public(), 53)))), ["denied", "emit"]);
    }
}

#[test]
fn dns_over_tcp_that_is_not_accepted_is_forgotten() {
    let mut world = World::new();
    world.send(&packet::syn(guest(Family::V4), at(Family::V4.gateway(), 53)));
    assert!(world.pass(ms(3000)).is_empty(), "there is no dial to abandon");
    assert_eq!(world.gate.poll_timeout(), None);
}

#[test]
fn the_host_alias_is_dialed_on_the_loopback_of_both_families() {
    for family in BOTH {
        let mut policy = common::public_only();
        policy.rules.push(common::allow_host_port(8080));
        let mut world = World::with(policy, |_| {});
        let outputs = world.send(&packet::syn(guest(family), at(family.gateway(), 8080)));
        let [Output::Dial { flow, remote, fallback, permit }] = &outputs[..] else { panic!("{outputs:?}") };
        assert_eq!(*remote, at(Ipv4Addr::LOCALHOST.into(), 8080));
        assert_eq!(*fallback, Some(at(Ipv6Addr::LOCALHOST.into(), 8080)));
        assert_eq!(permit.peer(), family.gateway());
        world.dialed(*flow, Ok(()));
        let accepted = world.gate.handle_accepted(world.now, guest(family), at(family.gateway(), 8080));
        assert_eq!(accepted, Some(Accepted::Relay(FlowId(1))));
        world.drain();
        assert_eq!(
            names(&world.send(&packet::syn(at(family.guest(), 5), at(family.gateway(), 8081)))),
            ["denied", "emit"]
        );
    }
}

#[test]
fn loopback_is_never_dialed_even_when_a_rule_allows_it() {
    for family in BOTH {
        let mut policy = common::public_only();
        policy.rules.insert(0, common::allow(Destination::Group(Group::Loopback)));
        policy.rules.insert(0, common::allow(Destination::Any));
        let mut world = World::with(policy, |_| {});
        let outputs = world.send(&packet::syn(guest(family), at(family.loopback(), 80)));
        assert_eq!(names(&outputs), ["dropped"]);
    }
}

#[test]
fn max_connections_counts_pending_and_live_ones() {
    for family in BOTH {
        let mut world = World::with(common::public_only(), |config| config.limits.max_connections = 3);
        let live = establish(&mut world, at(family.guest(), 1), web(family));
        let pending = dial(&mut world, at(family.guest(), 2), web(family));
        dial(&mut world, at(family.guest(), 3), web(family));
        let outputs = world.send(&packet::syn(at(family.guest(), 4), web(family)));
        assert_eq!(names(&outputs), ["limit", "emit"]);
        let expected = EventBody::LimitReached { limit: LimitKind::Connections, bound: 3, count: 1 };
        assert_eq!(events(&outputs), [&expected]);
        assert_reset(&emitted(&outputs)[0], at(family.guest(), 4), web(family), 1001);
        let outputs = world.send(&packet::syn(at(family.guest(), 5), web(family)));
        assert_eq!(names(&outputs), ["emit"], "told once a second");
        world.dialed(pending, Err(DialError::Refused));
        dial(&mut world, at(family.guest(), 6), web(family));
        world.gate.handle_closed(world.now, live, CloseReason::Guest, FlowCounters::default());
        world.drain();
        dial(&mut world, at(family.guest(), 7), web(family));
    }
}

#[test]
fn without_a_limit_on_connections_only_pending_ones_are_bounded() {
    let mut world = World::with(common::public_only(), |config| config.limits.max_connections = 0);
    for port in 1..=6000 {
        establish(&mut world, at(Family::V4.guest(), port), web(Family::V4));
    }
}

#[test]
fn pending_connections_are_bounded() {
    for family in BOTH {
        let mut world = World::new();
        let flows: Vec<FlowId> =
            (1..=1024).map(|port| dial(&mut world, at(family.guest(), port), web(family))).collect();
        let outputs = world.send(&packet::syn(at(family.guest(), 2000), web(family)));
        assert_eq!(names(&outputs), ["limit", "emit"], "all are dialing: none may go");
        let expected = EventBody::LimitReached { limit: LimitKind::PendingConnections, bound: 1024, count: 1 };
        assert_eq!(events(&outputs), [&expected]);
        world.dialed(flows[7], Ok(()));
        world.dialed(flows[3], Ok(()));
        let outputs = world.send(&packet::syn(at(family.guest(), 2000), web(family)));
        assert_eq!(names(&outputs), ["abandon", "failed", "dial"], "the oldest that waits for the guest goes");
        assert!(matches!(outputs[0], Output::AbandonDial { flow } if flow == flows[7]));
        assert!(world.gate.handle_accepted(world.now, at(family.guest(), 8), web(family)).is_none());
        assert!(world.gate.handle_accepted(world.now, at(family.guest(), 4), web(family)).is_some());
    }
}

#[test]
fn a_flood_of_unfinished_handshakes_leaves_room_for_a_finished_one() {
    let mut world = World::new();
    for round in 0..20_000u32 {
        let port = u16::try_from(round % 60_000 + 1).unwrap();
        let flow = dial(&mut world, at(Family::V4.guest(), port), web(Family::V4));
        world.dialed(flow, Ok(()));
    }
    establish(&mut world, at(Family::V4.guest(), 65_000), web(Family::V4));
    let outputs = world.pass(ms(3000));
    assert_eq!(actions(&outputs).len(), 1023);
    assert_eq!(world.gate.poll_timeout(), None);
}

#[test]
fn answers_of_the_shell_that_fit_nothing_are_ignored() {
    let mut world = World::new();
    assert!(world.dialed(FlowId(9), Ok(())).is_empty());
    assert!(world.dialed(FlowId(9), Err(DialError::Refused)).is_empty());
    let flow = establish(&mut world, guest(Family::V4), web(Family::V4));
    assert!(world.dialed(flow, Err(DialError::Refused)).is_empty(), "it is live already");
    world.gate.handle_closed(world.now, FlowId(9), CloseReason::Guest, FlowCounters::default());
    assert!(world.drain().is_empty());
}

#[test]
fn a_name_that_dns_has_told_opens_its_address() {
    for family in BOTH {
        let mut policy = common::public_only();
        policy.rules = vec![common::allow(Destination::Domain("example.org".parse().unwrap()))];
        let mut world = World::with(policy, |_| {});
        let syn = packet::syn(guest(family), web(family));
        assert_eq!(names(&world.send(&syn)), ["denied", "emit"]);
        let name = "example.org".parse().unwrap();
        world.gate.handle_pin(world.now, &name, false, family.public(), Duration::from_secs(300)).unwrap();
        let flow = dial(&mut world, guest(family), web(family));
        world.dialed(flow, Ok(()));
        world.gate.handle_accepted(world.now, guest(family), web(family)).unwrap();
        let outputs = world.drain();
        let [EventBody::FlowOpened { names, .. }] = events(&outputs)[..] else { panic!("{outputs:?}") };
        assert_eq!(names[..], ["example.org"]);
        world.pass(Duration::from_secs(301));
        let later = packet::syn(at(family.guest(), 4001), web(family));
        assert_eq!(common::names(&world.send(&later)), ["denied", "emit"], "the pin has expired");
    }
}

#[test]
fn events_name_what_was_pinned_last_and_aliases_behind() {
    for family in BOTH {
        let denied = |world: &mut World| {
            let outputs = world.send(&packet::syn(guest(family), web(family)));
            let [EventBody::FlowDenied { names, .. }] = events(&outputs)[..] else { panic!("{outputs:?}") };
            names.clone()
        };
        let mut world = World::with(cofferdam_model::PolicyConfig::default(), |_| {});
        let pin = |world: &mut World, name: &str, alias: bool| {
            let name = name.parse().unwrap();
            world.gate.handle_pin(world.now, &name, alias, family.public(), Duration::from_secs(60)).unwrap();
        };
        pin(&mut world, "first.example", false);
        pin(&mut world, "second.example", false);
        pin(&mut world, "alias.example", true);
        assert_eq!(denied(&mut world), ["second.example", "first.example", "alias.example"]);
        for number in 0..30 {
            pin(&mut world, &format!("alias{number}.example"), true);
        }
        let names = denied(&mut world);
        assert_eq!((names.len(), &names[..2]), (16, &["second.example".to_owned(), "first.example".to_owned()][..]));
    }
}
