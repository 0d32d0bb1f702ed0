//! Peers that come to published ports.

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
use std::sync::Arc;
use std::time::Duration;

use cofferdam_gate::{DialError, Grant, Output, Published, Way};
use cofferdam_model::{
    Action, BucketConfig, BudgetConfig, CloseReason, Destination, Direction, EventBody, FlowCounters, FlowId,
    LimitKind, PolicyConfig, PortId,
};
use cofferdam_policy::Policy;
use cofferdam_policy::grammar::parse_rules;
use common::{BOTH, Family, World, at, emitted, events, names, packet};

const WEB: Published = Published { guest_port: NonZeroU16::new(80).unwrap() };
const PORT: PortId = PortId(3);

/// Everything in but what `rules` say.
fn with(rules: &str) -> PolicyConfig {
    PolicyConfig { rules: parse_rules(rules).unwrap(), default_ingress: Action::Allow, ..PolicyConfig::default() }
}

fn loopback(family: Family) -> SocketAddr {
    at(if family == Family::V4 { "127.0.0.1" } else { "::1" }.parse().unwrap(), 4000)
}

fn in_brackets(address: std::net::IpAddr) -> String {
    if address.is_ipv4() { address.to_string() } else { format!("[{address}]") }
}

fn datagram(world: &mut World, peer: SocketAddr, payload: &[u8]) -> Vec<Output> {
    world.gate.handle_peer_datagram(world.now, (PORT, WEB), (peer, None), payload, None);
    world.drain()
}

/// The dial that a connection of `peer` leads to: the flow and from which address.
fn connect(world: &mut World, peer: SocketAddr) -> (FlowId, SocketAddr) {
    let flow = world.gate.handle_peer(world.now, WEB, peer).unwrap();
    match &world.drain()[..] {
        [Output::DialGuest { flow: dialed, source, guest, permit }] => {
            assert_eq!((*dialed, guest.port()), (flow, 80));
            assert_eq!(permit.peer(), peer.ip().to_canonical());
            (flow, *source)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_connection_is_dialed_relayed_and_counted() {
    for family in BOTH {
        let mut world = World::with(with(""), |_| {});
        let peer = at(family.public(), 4000);
        let (flow, source) = connect(&mut world, peer);
        assert_eq!(source, peer, "the guest sees the peer");
        assert!(world.gate.handle_guest_dialed(world.now, flow, Ok(())));
        let outputs = world.drain();
        let [EventBody::FlowOpened { direction, guest, remote, .. }] = events(&outputs)[..] else { panic!() };
        assert_eq!((*direction, *guest, *remote), (Direction::Ingress, at(family.guest(), 80), peer));
        world.gate.handle_closed(world.now, flow, CloseReason::Remote, FlowCounters::default());
        assert_eq!(names(&world.drain()), ["closed"]);
        world.gate.handle_closed(world.now, flow, CloseReason::Remote, FlowCounters::default());
        assert!(world.drain().is_empty());
    }
}

#[test]
fn a_guest_that_refuses_has_the_peer_reset() {
    for family in BOTH {
        let mut world = World::with(with(""), |_| {});
        let (flow, _) = connect(&mut world, at(family.public(), 4000));
        assert!(!world.gate.handle_guest_dialed(world.now, flow, Err(DialError::Refused)));
        assert_eq!(names(&world.drain()), ["failed"]);
        let (flow, _) = connect(&mut world, at(family.public(), 4000));
        let outputs = world.pass(Duration::from_secs(8));
        assert!(matches!(outputs[..], [Output::AbandonDial { flow: gone }, Output::Event(_)] if gone == flow));
        assert!(!world.gate.handle_guest_dialed(world.now, flow, Ok(())), "too late");
    }
}

#[test]
fn a_denied_peer_is_reset_and_reported() {
    for family in BOTH {
        let (denied, allowed) = (family.nth_public(1), family.nth_public(2));
        let rules = format!("deny:ingress@{}:tcp:80", in_brackets(denied));
        let mut world = World::with(with(&rules), |_| {});
        assert_eq!(world.gate.handle_peer(world.now, WEB, at(denied, 4000)), None);
        let outputs = world.drain();
        let [EventBody::FlowDenied { direction, remote, rule, .. }] = events(&outputs)[..] else { panic!() };
        assert_eq!((*direction, remote.ip()), (Direction::Ingress, denied));
        assert!(rule.text.starts_with("deny:ingress@"), "{rule:?}");
        connect(&mut world, at(allowed, 4000));
        let other = Published { guest_port: NonZeroU16::new(81).unwrap() };
        assert!(world.gate.handle_peer(world.now, other, at(denied, 4000)).is_some(), "the rule is about port 80");
        world.drain();
        assert_eq!(names(&datagram(&mut world, at(denied, 4000), b"x")), ["opened", "emit"], "and about TCP");
    }
}

#[test]
fn the_gateway_stands_for_peers_that_a_service_might_trust() {
    for family in BOTH {
        let mut world = World::with(with(""), |_| {});
        let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
        let link_local = if family == Family::V4 { "169.254.1.1" } else { "fe80::1" }.parse().unwrap();
        for peer in [loopback(family), at(family.gateway(), 9), at(family.guest(), 9), at(link_local, 9)] {
            assert_eq!(connect(&mut world, peer).1, at(family.gateway(), peer.port()), "{peer}");
            let outputs = datagram(&mut world, peer, b"x");
            let from = emitted(&outputs)[0].from();
            assert_eq!(from.ip(), family.gateway(), "{peer}");
            assert!(from.port() >= 49_152);
        }
        assert_eq!(connect(&mut world, at(other.public(), 9)).1, at(other.public(), 9));
        // As a dual-stack socket says it.
        if let std::net::IpAddr::V4(address) = family.public() {
            let mapped = at(address.to_ipv6_mapped().into(), 77);
            assert_eq!(connect(&mut world, mapped).1, at(address.into(), 77));
        }
    }
}

#[test]
fn connections_of_peers_have_a_bound_of_their_own() {
    for family in BOTH {
        let mut world = World::with(with(""), |config| config.limits.max_inbound_connections = 2);
        let (first, _) = connect(&mut world, at(family.public(), 1));
        connect(&mut world, at(family.public(), 2));
        assert_eq!(world.gate.handle_peer(world.now, WEB, at(family.public(), 3)), None);
        assert_eq!(names(&world.drain()), ["limit"]);
        world.gate.handle_guest_dialed(world.now, first, Err(DialError::Refused));
        world.drain();
        connect(&mut world, at(family.public(), 3));
    }
}

#[test]
fn connections_of_both_ways_share_the_room_there_is() {
    for family in BOTH {
        let mut world = World::with(with("allow:egress@public"), |config| config.room = 2);
        let full = |outputs: &[Output]| {
            let is_it = |event: &&EventBody| {
                matches!(event, EventBody::LimitReached { limit: LimitKind::Descriptors, bound: 2, count: 1 })
            };
            events(outputs).iter().any(is_it)
        };
        let syn = |world: &mut World, port| world.send(&packet::syn(at(family.guest(), port), at(family.public(), 80)));
        let is_dialed = |outputs: &[Output]| outputs.iter().any(|output| matches!(output, Output::Dial { .. }));
        assert!(is_dialed(&syn(&mut world, 1)));
        let (first, _) = connect(&mut world, at(family.public(), 1));
        assert_eq!(world.gate.handle_peer(world.now, WEB, at(family.public(), 2)), None);
        assert!(full(&world.drain()), "{family:?}");
        world.pass(Duration::from_secs(2));
        assert!(full(&syn(&mut world, 2)), "{family:?}");
        world.gate.handle_guest_dialed(world.now, first, Err(DialError::Refused));
        world.drain();
        assert!(is_dialed(&syn(&mut world, 3)), "there is room again");
    }
}

/// `size` in a second, and nothing before that second is over.
fn bucket(size: u64) -> Option<BucketConfig> {
    Some(BucketConfig { size, refill_time: Duration::from_secs(1), one_time_burst: 0 })
}

/// The limits that are told at the end of a turn, and all that comes out then.
fn told(world: &mut World) -> (Vec<(LimitKind, u64)>, Vec<Output>) {
    world.gate.handle_limited(world.now);
    let outputs = world.drain();
    let limits = events(&outputs).into_iter().filter_map(|event| match event {
        EventBody::LimitReached { limit, count, .. } => Some((*limit, *count)),
        _ => None,
    });
    (limits.collect(), outputs)
}

#[test]
fn connections_of_peers_over_the_rate_are_reset() {
    for family in BOTH {
        let mut world = World::with(with(""), |config| config.limits.rates.ingress.ops = bucket(1));
        connect(&mut world, at(family.public(), 1));
        assert_eq!(world.gate.handle_peer(world.now, WEB, at(family.public(), 2)), None);
        assert!(world.drain().is_empty());
        assert_eq!(told(&mut world).0, [(LimitKind::IngressOps, 1)]);
        world.pass(Duration::from_secs(1));
        connect(&mut world, at(family.public(), 2));
    }
}

#[test]
fn datagrams_of_peers_and_answers_keep_to_the_rates() {
    for family in BOTH {
        let mut world = World::with(with(""), |config| {
            config.limits.rates.ingress.bandwidth = bucket(100);
            config.limits.rates.egress.ops = bucket(2);
        });
        let peer = at(family.public(), 4000);
        assert_eq!(names(&datagram(&mut world, peer, &[7; 100])), ["opened", "emit"]);
        assert!(datagram(&mut world, peer, b"x").is_empty());
        let answer = packet::udp(at(family.guest(), 80), peer, &[7; 500]);
        let mut answers = || names(&world.send(&answer)).concat();
        assert_eq!([answers(), answers(), answers()], ["send peer", "send peer", ""]);
        assert_eq!(told(&mut world).0, [(LimitKind::EgressOps, 1), (LimitKind::IngressBandwidth, 1)]);
    }
}

#[test]
fn budgets_of_the_whole_run_count_what_peers_have_carried() {
    for family in BOTH {
        let peer = at(family.public(), 4000);
        let budget = |bytes, destinations| BudgetConfig { bytes, direction: Direction::Any, destinations };
        let mut world = World::with(with(""), |config| {
            let of_peer = Destination::Cidr(family.public().into());
            config.limits.budgets = vec![budget(1000, Vec::new()), budget(1, vec![of_peer])];
        });
        let (flow, _) = connect(&mut world, peer);
        assert!(world.gate.handle_guest_dialed(world.now, flow, Ok(())));
        world.drain();
        let now = world.now;
        assert_eq!(world.gate.limits().grant(now, flow, Way::Ingress), Grant::Bytes(1000), "no destination");
        world.gate.limits().spend(now, flow, Way::Ingress, 500);
        assert_eq!(names(&datagram(&mut world, peer, &[7; 300])), ["opened", "emit"]);
        assert!(world.send(&packet::udp(at(family.guest(), 80), peer, &[7; 300])).is_empty(), "300 of 200");
        let (limits, outputs) = told(&mut world);
        assert_eq!(limits, [(LimitKind::Budget, 1)]);
        assert!(outputs.iter().any(|output| matches!(output, Output::CloseUsedUp { flow: ended } if *ended == flow)));
        let by_budget = |event: &&EventBody| matches!(event, EventBody::FlowClosed { by: CloseReason::Budget, .. });
        assert_eq!(events(&outputs).into_iter().filter(by_budget).count(), 1, "the mapping");
        assert_eq!(world.gate.handle_peer(world.now, WEB, peer), None);
        assert_eq!(names(&world.drain()), ["denied"]);
        assert_eq!(names(&datagram(&mut world, peer, b"x")), ["denied"]);
        // More than that, live: what was spent stays.
        let mut limits = common::gate_config().limits;
        limits.budgets = vec![budget(2000, Vec::new())];
        world.gate.handle_limits(now, limits);
        assert_eq!(world.gate.limits().grant(now, flow, Way::Egress), Grant::Bytes(1200));
        assert_eq!(names(&datagram(&mut world, peer, b"x")), ["opened", "emit"]);
    }
}

#[test]
fn datagrams_go_both_ways_and_peers_are_told_apart() {
    for family in BOTH {
        let mut world = World::with(with("deny@any"), |_| {});
        let service = at(family.guest(), 80);
        let mut stand_ins = Vec::new();
        for peer in [at(family.public(), 4000), loopback(family), at(loopback(family).ip(), 4001)] {
            let outputs = datagram(&mut world, peer, b"question");
            assert_eq!(names(&outputs), ["opened", "emit"]);
            let packet = &emitted(&outputs)[0];
            assert_eq!((packet.to(), packet.udp_payload()), (service, &b"question"[..]));
            stand_ins.push((peer, packet.from()));
            assert_eq!(names(&datagram(&mut world, peer, b"again")), ["emit"], "one mapping");
        }
        // The policy denies whatever the guest sends by itself, and is not asked about answers.
        for (peer, stand_in) in &stand_ins {
            let outputs = world.send(&packet::udp(service, *stand_in, b"answer"));
            let [Output::SendPeer { port: PORT, peer: to, payload, .. }] = &outputs[..] else { panic!("{outputs:?}") };
            assert_eq!((to, &payload[..]), (peer, &b"answer"[..]));
        }
        let (_, stand_in) = stand_ins[0];
        let other_port = packet::udp(at(family.guest(), 81), stand_in, b"x");
        assert_eq!(names(&world.send(&other_port)), ["denied", "emit"], "from another port it is no answer");
        let outputs = world.pass(Duration::from_secs(60));
        assert_eq!(names(&outputs).iter().filter(|name| **name == "closed").count(), 3);
        assert_eq!(names(&world.send(&packet::udp(service, stand_in, b"late"))), ["denied", "emit"]);
    }
}

#[test]
fn what_the_guest_sends_keeps_no_way_open() {
    for family in BOTH {
        let mut world = World::with(with("deny@any"), |_| {});
        let peer = at(family.public(), 4000);
        let answer = packet::udp(at(family.guest(), 80), peer, b"answer");
        datagram(&mut world, peer, b"question");
        for _ in 0..2 {
            world.pass(Duration::from_secs(29));
            assert_eq!(names(&world.send(&answer)), ["send peer"]);
        }
        assert_eq!(names(&world.pass(Duration::from_secs(2))), ["closed"], "its peer has been silent for a minute");
        assert_eq!(names(&world.send(&answer)), ["denied", "emit"]);
        // A peer that goes on is answered for as long as it does.
        datagram(&mut world, peer, b"question");
        for _ in 0..3 {
            world.pass(Duration::from_secs(59));
            assert_eq!(names(&datagram(&mut world, peer, b"again")), ["emit"]);
        }
        assert_eq!(names(&world.send(&answer)), ["send peer"]);
    }
}

#[test]
fn whom_the_guest_has_sent_to_comes_under_another_address() {
    for family in BOTH {
        let mut world = World::with(with("allow@public,allow@host"), |_| {});
        let (service, peer) = (at(family.guest(), 80), at(family.public(), 4000));
        let own = packet::udp(service, peer, b"by itself");
        assert_eq!(names(&world.send(&own)), ["open udp", "opened", "send udp"]);
        let stand_in = emitted(&datagram(&mut world, peer, b"question"))[0].from();
        assert_eq!(stand_in.ip(), family.gateway());
        assert_eq!(names(&world.send(&own)), ["send udp"], "the guest's own mapping goes on as it was");
        let answer = packet::udp(service, stand_in, b"answer");
        assert!(matches!(&world.send(&answer)[..], [Output::SendPeer { peer: to, .. }] if *to == peer));
        // The same where the gateway stands for the host.
        let next = at(family.gateway(), stand_in.port().checked_add(1).unwrap_or(49_152));
        let own = packet::udp(service, next, b"to the host");
        assert_eq!(names(&world.send(&own)), ["open udp", "opened", "send udp"]);
        let other = emitted(&datagram(&mut world, loopback(family), b"question"))[0].from();
        assert_ne!(other, next);
        assert_eq!(names(&world.send(&own)), ["send udp"]);
    }
}

#[test]
fn more_peers_than_ports_that_are_tried_cost_nobody_a_mapping() {
    for family in BOTH {
        let mut world = World::with(with(""), |config| config.limits.max_udp_connections = 0);
        let peer = |port| at(loopback(family).ip(), port);
        let stand_in = |outputs: &[Output]| emitted(outputs).first().map(|packet| packet.from());
        let mut taken = std::collections::HashSet::new();
        for port in 1..=16_384 {
            let from = stand_in(&datagram(&mut world, peer(port), b"x")).unwrap();
            assert!(taken.insert(from), "{from} stands for two");
        }
        let outputs = datagram(&mut world, peer(16_385), b"x");
        assert_eq!(names(&outputs), ["limit"], "nobody makes room");
        assert_eq!(names(&datagram(&mut world, peer(1), b"x")), ["emit"]);
    }
}

#[test]
fn a_peer_that_comes_to_two_ports_is_two_peers() {
    for family in BOTH {
        let mut world = World::with(with(""), |_| {});
        let peer = at(family.public(), 4000);
        let first = datagram(&mut world, peer, b"x");
        world.gate.handle_peer_datagram(world.now, (PortId(4), WEB), (peer, None), b"y", None);
        let second = world.drain();
        let (first, second) = (emitted(&first)[0].from(), emitted(&second)[0].from());
        assert_eq!((first, second.ip()), (peer, family.gateway()));
        for (stand_in, expected) in [(first, PORT), (second, PortId(4))] {
            let outputs = world.send(&packet::udp(at(family.guest(), 80), stand_in, b"answer"));
            assert!(matches!(outputs[..], [Output::SendPeer { port, peer: to, .. }] if port == expected && to == peer));
        }
    }
}

#[test]
fn the_resolvers_port_stands_for_nobody() {
    for family in BOTH {
        let mut world = World::with(with(""), |_| {});
        let outputs = datagram(&mut world, at(family.public(), 53), b"x");
        assert_eq!(emitted(&outputs)[0].from().ip(), family.gateway());
    }
}

#[test]
fn the_longest_idle_peer_makes_room() {
    for family in BOTH {
        let mut world = World::with(with(""), |config| config.limits.max_udp_connections = 2);
        for port in 1..=3 {
            datagram(&mut world, at(family.public(), port), b"x");
        }
        let answer = |world: &mut World, port| {
            names(&world.send(&packet::udp(at(family.guest(), 80), at(family.public(), port), b"a")))
        };
        assert_eq!(answer(&mut world, 3), ["send peer"]);
        assert_ne!(answer(&mut world, 1), ["send peer"], "its mapping has gone");
        // What the guest opens itself does not count here.
        assert_eq!(answer(&mut world, 2), ["send peer"]);
    }
}

#[test]
fn answers_come_from_the_address_that_was_asked() {
    for family in BOTH {
        let mut world = World::with(with(""), |_| {});
        let peer = at(family.public(), 4000);
        for local in [family.nth_public(7), family.nth_public(8)] {
            world.gate.handle_peer_datagram(world.now, (PORT, WEB), (peer, Some(local)), b"x", None);
            world.drain();
            let outputs = world.send(&packet::udp(at(family.guest(), 80), peer, b"answer"));
            assert!(
                matches!(outputs[..], [Output::SendPeer { local: from, .. }] if from == Some(local)),
                "{outputs:?}"
            );
        }
    }
}

#[test]
fn a_withdrawn_port_forgets_its_peers_and_keeps_its_connections() {
    for family in BOTH {
        let mut world = World::with(with(""), |_| {});
        let (flow, _) = connect(&mut world, at(family.public(), 1));
        world.gate.handle_guest_dialed(world.now, flow, Ok(()));
        datagram(&mut world, at(family.public(), 2), b"x");
        world.drain();
        world.gate.handle_withdrawn(world.now, PORT);
        assert_eq!(names(&world.drain()), ["closed"]);
        world.gate.handle_closed(world.now, flow, CloseReason::Guest, FlowCounters::default());
        assert_eq!(names(&world.drain()), ["closed"]);
    }
}

#[test]
fn other_rules_end_what_they_deny() {
    for family in BOTH {
        let mut world = World::with(with(""), |_| {});
        let (gone, stays) = (family.nth_public(1), family.nth_public(2));
        let mut flows = Vec::new();
        for peer in [gone, stays] {
            let (flow, _) = connect(&mut world, at(peer, 1));
            world.gate.handle_guest_dialed(world.now, flow, Ok(()));
            datagram(&mut world, at(peer, 2), b"x");
            flows.push(flow);
        }
        let (dialing, _) = connect(&mut world, at(gone, 3));
        world.drain();
        let classifier = world.gate.policy().classifier().clone();
        let policy = Policy::compile(&with(&format!("deny:ingress@{}", in_brackets(gone))), classifier);
        world.gate.handle_policy(world.now, Arc::new(policy));
        let outputs = world.drain();
        assert_eq!(names(&outputs), ["denied", "abandon", "denied", "close flow", "denied", "closed", "other event"],);
        let actions = common::actions(&outputs);
        assert!(
            matches!(actions[..], [Output::AbandonDial { flow: a }, Output::CloseFlow { flow: b }] if *a == dialing && *b == flows[0])
        );
        assert_eq!(names(&datagram(&mut world, at(stays, 2), b"x")), ["emit"]);
    }
}
