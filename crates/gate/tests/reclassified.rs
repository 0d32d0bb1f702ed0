//! The machine's addresses change while flows are there.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_flight::Shown;
use cofferdam_gate::{Accepted, FlightAnswer, Output};
use cofferdam_model::{
    Classifier, CloseReason, DenyWith, Destination, EventBody, FlowCounters, FlowId, Group, HostNetwork, PolicyConfig,
};
use cofferdam_policy::grammar::parse_rules;
use common::{BOTH, Family, World, actions, at, emitted, events, flow, names, packet};

fn guest(family: Family, port: u16) -> SocketAddr {
    at(family.guest(), port)
}

/// From here on the machine has these addresses besides the gateway's, and is on these links.
fn machine_has(world: &mut World, addresses: &[IpAddr], on_link: &[IpAddr]) -> Vec<Output> {
    let own = [Family::V4.gateway(), Family::V6.gateway()];
    let addresses = own.iter().chain(addresses).copied().collect();
    let host = HostNetwork {
        addresses,
        on_link: on_link.iter().map(|address| (*address).into()).collect(),
        nat64: Vec::new(),
    };
    let policy = world.gate.policy().with_classifier(Classifier::new(host));
    world.gate.handle_reclassified(world.now, Arc::new(policy));
    world.drain()
}

fn dial(world: &mut World, guest: SocketAddr, remote: SocketAddr) -> FlowId {
    flow(&world.send(&packet::syn(guest, remote)))
}

fn establish(world: &mut World, guest: SocketAddr, remote: SocketAddr) -> FlowId {
    let flow = dial(world, guest, remote);
    world.dialed(flow, Ok(()));
    let accepted = world.gate.handle_accepted(world.now, guest, remote);
    assert!(matches!(accepted, Some(Accepted::Relay(of) | Accepted::Check(of)) if of == flow), "{accepted:?}");
    world.drain();
    flow
}

#[test]
fn an_address_that_becomes_the_machines_is_denied_from_then_on() {
    for family in BOTH {
        let mut world = World::new();
        let (ours, on_link) = (family.nth_public(1), family.nth_public(2));
        for (port, remote) in (1..).zip([ours, on_link]) {
            dial(&mut world, guest(family, port), at(remote, 443));
        }
        machine_has(&mut world, &[ours], &[on_link]);
        for (remote, expected) in [(ours, Group::Host), (on_link, Group::Private)] {
            for packet in [
                packet::syn(guest(family, 10), at(remote, 443)),
                packet::udp(guest(family, 10), at(remote, 443), b"x"),
                packet::ping(family.guest(), remote, 1, 1, b"x"),
            ] {
                let outputs = world.send(&packet);
                let [EventBody::FlowDenied { group, .. }] = events(&outputs)[..] else { panic!("{outputs:?}") };
                assert_eq!((*group, names(&outputs)), (expected, vec!["denied", "emit"]));
            }
        }
        machine_has(&mut world, &[], &[]);
        dial(&mut world, guest(family, 11), at(ours, 443));
        dial(&mut world, guest(family, 11), at(on_link, 443));
    }
}

#[test]
fn flows_that_are_denied_now_are_closed_and_reported() {
    for family in BOTH {
        let mut world = World::new();
        let ours = family.nth_public(1);
        let live = establish(&mut world, guest(family, 1), at(ours, 443));
        let injected = dial(&mut world, guest(family, 2), at(ours, 443));
        world.dialed(injected, Ok(()));
        let dialing = dial(&mut world, guest(family, 3), at(ours, 443));
        let datagrams = flow(&world.send(&packet::udp(guest(family, 4), at(ours, 443), b"x")));
        let pings = flow(&world.send(&packet::ping(family.guest(), ours, 5, 1, b"x")));
        let outputs = machine_has(&mut world, &[ours], &[]);
        assert_eq!(
            names(&outputs),
            [
                "denied",
                "abandon",
                "emit", // Dialing
                "denied",
                "abandon", // Injected
                "denied",
                "close flow", // Live
                "denied",
                "close udp",
                "closed",
                "denied",
                "close echo",
                "closed"
            ]
        );
        assert!(matches!(actions(&outputs)[..], [
            Output::AbandonDial { flow: first },
            Output::AbandonDial { flow: second },
            Output::CloseFlow { flow: third },
            Output::CloseUdp { flow: fourth },
            Output::CloseEcho { flow: fifth },
        ] if [*first, *second, *third, *fourth, *fifth] == [dialing, injected, live, datagrams, pings]));
        let reset = &emitted(&outputs)[0];
        assert_eq!((reset.from(), reset.to()), (at(ours, 443), guest(family, 3)));
        for event in events(&outputs) {
            match event {
                EventBody::FlowDenied { group, remote, .. } => assert_eq!((*group, remote.ip()), (Group::Host, ours)),
                EventBody::FlowClosed { by, .. } => assert_eq!(*by, CloseReason::Policy),
                other => panic!("{other:?}"),
            }
        }
        // What the kernel accepts although its SYN was put back too early is nobody's.
        assert_eq!(world.gate.handle_accepted(world.now, guest(family, 2), at(ours, 443)), None);
        world.drain();
        world.gate.handle_closed(world.now, live, CloseReason::Policy, FlowCounters::default());
        assert_eq!(names(&world.drain()), ["closed"]);
    }
}

#[test]
fn a_connection_in_the_making_ends_as_a_denied_one_does() {
    for (deny_with, expected) in [(DenyWith::Icmp, 1), (DenyWith::Drop, 0)] {
        for family in BOTH {
            let mut world = World::with(common::public_only(), |config| config.deny_with = deny_with);
            let ours = family.nth_public(1);
            dial(&mut world, guest(family, 1), at(ours, 443));
            let outputs = machine_has(&mut world, &[ours], &[]);
            assert_eq!(emitted(&outputs).len(), expected, "{outputs:?}");
            assert_eq!(actions(&outputs).len(), 1);
        }
    }
}

#[test]
fn the_others_do_not_notice() {
    for family in BOTH {
        let mut world = World::new();
        let (ours, other) = (family.nth_public(1), at(family.nth_public(2), 443));
        let live = establish(&mut world, guest(family, 1), other);
        flow(&world.send(&packet::udp(guest(family, 2), other, b"x")));
        flow(&world.send(&packet::ping(family.guest(), other.ip(), 3, 1, b"x")));
        // Queries to the gateway's resolver are decided by name.
        let resolver = at(family.gateway(), 53);
        world.send(&packet::syn(guest(family, 4), resolver));
        assert!(matches!(world.gate.handle_accepted(world.now, guest(family, 4), resolver), Some(Accepted::Dns(_))));
        assert_eq!(names(&machine_has(&mut world, &[ours], &[])), [] as [&str; 0]);
        assert_eq!(names(&machine_has(&mut world, &[], &[])), [] as [&str; 0]);
        assert_eq!(names(&world.send(&packet::udp(guest(family, 2), other, b"x"))), ["send udp"]);
        world.gate.handle_closed(world.now, live, CloseReason::Guest, FlowCounters::default());
        assert_eq!(names(&world.drain()), ["closed"]);
    }
}

#[test]
fn a_rule_for_the_machine_lets_it_go_on() {
    for family in BOTH {
        let rules =
            vec![common::allow(Destination::Group(Group::Public)), common::allow(Destination::Group(Group::Host))];
        let mut world = World::with(PolicyConfig { rules, ..PolicyConfig::default() }, |_| {});
        let ours = family.nth_public(1);
        establish(&mut world, guest(family, 1), at(ours, 443));
        assert_eq!(names(&machine_has(&mut world, &[ours], &[])), [] as [&str; 0]);
    }
}

#[test]
fn a_look_up_from_before_does_not_open_the_machine() {
    for family in BOTH {
        let name = "web.example".parse().unwrap();
        let rules = vec![common::allow(Destination::Domain("web.example".parse().unwrap()))];
        let mut world = World::with(PolicyConfig { rules, ..PolicyConfig::default() }, |_| {});
        let (ours, other) = (family.nth_public(1), family.nth_public(2));
        for address in [ours, other] {
            world.gate.handle_pin(world.now, &name, false, address, Duration::from_secs(300)).unwrap();
        }
        let live = establish(&mut world, guest(family, 1), at(ours, 443));
        establish(&mut world, guest(family, 2), at(other, 443));
        let outputs = machine_has(&mut world, &[ours], &[]);
        assert!(matches!(actions(&outputs)[..], [Output::CloseFlow { flow }] if *flow == live), "{outputs:?}");
        assert_eq!(names(&world.send(&packet::syn(guest(family, 3), at(ours, 443)))), ["denied", "emit"]);
        dial(&mut world, guest(family, 3), at(other, 443));
        // The resolver has judged it anew and says that it may be.
        world.gate.handle_pin(world.now, &name, false, ours, Duration::from_secs(300)).unwrap();
        dial(&mut world, guest(family, 4), at(ours, 443));
    }
}

/// A connection whose first flight is still to be looked at.
fn pending(world: &mut World, guest: SocketAddr, remote: SocketAddr) -> FlowId {
    let flow = dial(world, guest, remote);
    world.dialed(flow, Ok(()));
    assert_eq!(world.gate.handle_accepted(world.now, guest, remote), Some(Accepted::Check(flow)));
    world.drain();
    flow
}

fn with_rules(rules: &str) -> World {
    World::with(PolicyConfig { rules: parse_rules(rules).unwrap(), ..PolicyConfig::default() }, |_| {})
}

fn hello(name: &str) -> Shown {
    Shown::Tls { server_name: Some(name.parse().unwrap()), ech: false }
}

#[test]
fn a_first_flight_that_is_waited_for_is_judged_by_what_the_address_is_then() {
    for family in BOTH {
        let mut world = with_rules("deny@evil.example,allow@public");
        let (ours, other) = (family.nth_public(1), family.nth_public(2));
        let [gone, stays] =
            [(1, ours), (2, other)].map(|(port, to)| pending(&mut world, guest(family, port), at(to, 443)));
        let outputs = machine_has(&mut world, &[ours], &[]);
        assert!(matches!(actions(&outputs)[..], [Output::CloseFlow { flow }] if *flow == gone), "{outputs:?}");
        assert!(matches!(world.gate.handle_flight(world.now, stays, &hello("evil.example")), FlightAnswer::Deny(_)));
        assert_eq!(world.gate.handle_flight(world.now, stays, &hello("good.example")), FlightAnswer::Pass);
    }
}

#[test]
fn what_was_shown_before_the_address_moved_opens_nothing_there() {
    for family in BOTH {
        let mut world = with_rules("allow@web.example");
        let (ours, other) = (family.nth_public(1), family.nth_public(2));
        for address in [ours, other] {
            let name = "web.example".parse().unwrap();
            world.gate.handle_pin(world.now, &name, false, address, Duration::from_secs(300)).unwrap();
        }
        let flows = [(1, ours), (2, other), (3, ours), (4, other)]
            .map(|(port, to)| pending(&mut world, guest(family, port), at(to, 443)));
        for flow in &flows[..2] {
            assert_eq!(world.gate.handle_flight(world.now, *flow, &hello("web.example")), FlightAnswer::Pass);
        }
        let outputs = machine_has(&mut world, &[], &[ours]);
        let closed = actions(&outputs).into_iter().filter_map(|output| match output {
            Output::CloseFlow { flow } => Some(*flow),
            _ => None,
        });
        assert_eq!(closed.collect::<Vec<_>>(), [flows[0], flows[2]], "whether they have shown the name or not");
        for flow in [flows[1], flows[3]] {
            assert_eq!(world.gate.handle_flight(world.now, flow, &hello("web.example")), FlightAnswer::Pass);
        }
    }
}

#[test]
fn where_the_machine_is_allowed_nothing_has_to_be_shown_any_more() {
    for family in BOTH {
        let mut world = with_rules("allow@host,deny@evil.example,allow@public");
        let ours = family.nth_public(1);
        let flow = pending(&mut world, guest(family, 1), at(ours, 443));
        assert!(actions(&machine_has(&mut world, &[ours], &[])).is_empty());
        assert_eq!(world.gate.handle_flight(world.now, flow, &hello("evil.example")), FlightAnswer::Pass);
    }
}

#[test]
fn dns_connections_to_such_an_address_are_closed() {
    for family in BOTH {
        // Port 53 of the machine is not allowed here, as it is by default.
        let rules = vec![common::allow(Destination::Group(Group::Public))];
        let mut world = World::with(PolicyConfig { rules, ..PolicyConfig::default() }, |_| {});
        let (ours, other) = (family.nth_public(1), family.nth_public(2));
        let mut flows = Vec::new();
        for (port, remote) in [(1, ours), (2, other)] {
            world.send(&packet::syn(guest(family, port), at(remote, 53)));
            let accepted = world.gate.handle_accepted(world.now, guest(family, port), at(remote, 53));
            let Some(Accepted::Dns(flow)) = accepted else { panic!("{accepted:?}") };
            flows.push(flow);
        }
        let outputs = machine_has(&mut world, &[ours], &[]);
        assert!(matches!(actions(&outputs)[..], [Output::CloseFlow { flow }] if *flow == flows[0]), "{outputs:?}");
    }
}
