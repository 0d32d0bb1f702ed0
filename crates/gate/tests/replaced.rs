//! The rules change while flows are there.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_flight::Shown;
use cofferdam_gate::{Accepted, FlightAnswer, Output};
use cofferdam_model::{CloseReason, DenyWith, EventBody, FlowCounters, FlowId, PolicyConfig};
use cofferdam_policy::Policy;
use cofferdam_policy::grammar::parse_rules;
use common::{BOTH, Family, World, actions, at, events, flow, names, packet};

/// Only what `rules` allow.
fn only(rules: &str) -> PolicyConfig {
    PolicyConfig { rules: parse_rules(rules).unwrap(), ..PolicyConfig::default() }
}

fn guest(family: Family, port: u16) -> SocketAddr {
    at(family.guest(), port)
}

fn replace(world: &mut World, rules: &str) -> Vec<Output> {
    let classifier = world.gate.policy().classifier().clone();
    world.gate.handle_policy(world.now, Arc::new(Policy::compile(&only(rules), classifier)));
    world.drain()
}

/// How many flows the events say have ended.
fn ended(outputs: &[Output]) -> u64 {
    let counts = events(outputs).into_iter().filter_map(|event| match event {
        EventBody::PolicyChanged { ended, .. } => Some(*ended),
        _ => None,
    });
    counts.sum()
}

fn establish(world: &mut World, guest: SocketAddr, remote: SocketAddr) -> (FlowId, Accepted) {
    let flow = flow(&world.send(&packet::syn(guest, remote)));
    world.dialed(flow, Ok(()));
    let accepted = world.gate.handle_accepted(world.now, guest, remote).unwrap();
    world.drain();
    (flow, accepted)
}

fn pin(world: &mut World, name: &str, address: std::net::IpAddr, secs: u64) {
    world.gate.handle_pin(world.now, &name.parse().unwrap(), false, address, Duration::from_secs(secs)).unwrap();
}

fn hello(name: &str) -> Shown {
    Shown::Tls { server_name: Some(name.parse().unwrap()), ech: false }
}

#[test]
fn flows_that_lose_their_permit_are_closed_and_reported_and_others_do_not_notice() {
    for family in BOTH {
        let (gone, stays) = (family.nth_public(1), family.nth_public(2));
        let mut world = World::with(only(&format!("allow@[{gone}],allow@[{stays}]").replace_v4()), |_| {});
        let (live, _) = establish(&mut world, guest(family, 1), at(gone, 443));
        let dialing = flow(&world.send(&packet::syn(guest(family, 2), at(gone, 443))));
        let datagrams = flow(&world.send(&packet::udp(guest(family, 3), at(gone, 443), b"x")));
        let pings = flow(&world.send(&packet::ping(family.guest(), gone, 4, 1, b"x")));
        let (other, _) = establish(&mut world, guest(family, 5), at(stays, 443));
        flow(&world.send(&packet::udp(guest(family, 6), at(stays, 443), b"x")));
        let outputs = replace(&mut world, &format!("allow@[{stays}]").replace_v4());
        assert!(
            matches!(actions(&outputs)[..], [
                Output::AbandonDial { flow: first },
                Output::CloseFlow { flow: second },
                Output::CloseUdp { flow: third },
                Output::CloseEcho { flow: fourth },
            ] if [*first, *second, *third, *fourth] == [dialing, live, datagrams, pings]),
            "{outputs:?}"
        );
        let denied = events(&outputs).into_iter().filter(|event| matches!(event, EventBody::FlowDenied { .. }));
        assert_eq!((denied.count(), ended(&outputs)), (4, 4));
        assert_eq!(names(&world.send(&packet::udp(guest(family, 6), at(stays, 443), b"x"))), ["send udp"]);
        assert_eq!(names(&world.send(&packet::syn(guest(family, 7), at(gone, 443)))), ["denied", "emit"]);
        world.gate.handle_closed(world.now, other, CloseReason::Guest, FlowCounters::default());
        assert_eq!(names(&world.drain()), ["closed"]);
    }
}

#[test]
fn a_flow_keeps_the_name_it_was_admitted_by() {
    for family in BOTH {
        let address = family.nth_public(1);
        let mut world = World::with(only("allow@a.example,allow@b.example"), |_| {});
        pin(&mut world, "a.example", address, 60);
        let (live, accepted) = establish(&mut world, guest(family, 1), at(address, 443));
        assert_eq!(accepted, Accepted::Check(live));
        assert_eq!(world.gate.handle_flight(world.now, live, &hello("a.example")), FlightAnswer::Pass);
        world.pass(Duration::from_secs(3600));
        world.drain();
        assert_eq!(ended(&replace(&mut world, "allow@a.example")), 0, "its pin is over, and it lives on");
        assert_eq!(ended(&replace(&mut world, "allow@suffix!=example")), 0);
        // A request for another name is judged by the rules of the day.
        assert!(matches!(world.gate.handle_flight(world.now, live, &hello("c.example")), FlightAnswer::Deny(_)));
        world.drain();
        let outputs = replace(&mut world, "allow@b.example");
        assert!(matches!(actions(&outputs)[..], [Output::CloseFlow { flow }] if *flow == live), "{outputs:?}");
    }
}

#[test]
fn what_was_shown_is_judged_by_the_rules_that_come() {
    for family in BOTH {
        let address = family.nth_public(1);
        let mut world = World::with(only("deny@evil.example,allow@public"), |_| {});
        for name in ["good.example", "other.example"] {
            pin(&mut world, name, address, 600);
        }
        let mut flows = Vec::new();
        for (port, name) in [(2, "good.example"), (3, "other.example")] {
            let (flow, accepted) = establish(&mut world, guest(family, port), at(address, 443));
            assert_eq!(accepted, Accepted::Check(flow));
            assert_eq!(world.gate.handle_flight(world.now, flow, &hello(name)), FlightAnswer::Pass);
            flows.push(flow);
        }
        world.drain();
        let outputs = replace(&mut world, "deny@evil.example,deny@other.example,allow@public");
        let closed: Vec<FlowId> = actions(&outputs)
            .iter()
            .filter_map(|output| match output {
                Output::CloseFlow { flow } => Some(*flow),
                _ => None,
            })
            .collect();
        assert!(closed.contains(&flows[1]), "it showed the name that is denied now: {outputs:?}");
        assert!(!closed.contains(&flows[0]));
        assert_eq!(world.gate.handle_flight(world.now, flows[0], &hello("good.example")), FlightAnswer::Pass);
        assert!(matches!(
            world.gate.handle_flight(world.now, flows[0], &hello("other.example")),
            FlightAnswer::Deny(_)
        ));
    }
}

#[test]
fn the_same_rules_again_change_nothing() {
    for family in BOTH {
        let address = family.nth_public(1);
        let rules = "allow@late.example,allow@public";
        let mut world = World::with(only(rules), |_| {});
        let (flow, accepted) = establish(&mut world, guest(family, 1), at(address, 443));
        assert_eq!(accepted, Accepted::Relay(flow), "no name of this address is known: it is not read");
        pin(&mut world, "late.example", address, 600);
        assert_eq!(ended(&replace(&mut world, rules)), 0);
    }
}

#[test]
fn rules_that_need_a_name_close_what_was_never_read() {
    for family in BOTH {
        let address = family.nth_public(1);
        let mut world = World::with(only("allow@public"), |_| {});
        pin(&mut world, "a.example", address, 600);
        let (flow, accepted) = establish(&mut world, guest(family, 1), at(address, 443));
        assert_eq!(accepted, Accepted::Relay(flow));
        let outputs = replace(&mut world, "allow@a.example");
        assert!(
            matches!(actions(&outputs)[..], [Output::CloseFlow { flow: closed }] if *closed == flow),
            "{outputs:?}"
        );
    }
}

#[test]
fn a_wider_policy_looks_at_nothing_any_more_and_a_narrower_one_does_again() {
    for family in BOTH {
        let address = family.nth_public(1);
        let mut world = World::with(only("allow@a.example"), |_| {});
        pin(&mut world, "a.example", address, 600);
        let (flow, _) = establish(&mut world, guest(family, 1), at(address, 443));
        assert_eq!(ended(&replace(&mut world, "allow@public")), 0);
        assert_eq!(world.gate.handle_flight(world.now, flow, &hello("b.example")), FlightAnswer::Pass);
        let outputs = replace(&mut world, "allow@a.example");
        assert_eq!(ended(&outputs), 1, "it shows another name: {outputs:?}");
    }
}

#[test]
fn names_that_led_inside_are_asked_for_again() {
    for (family, inside) in [(Family::V4, "10.1.2.3"), (Family::V6, "fd00:9::3")] {
        let inside = inside.parse().unwrap();
        let mut world = World::with(only("allow@a.example:any:any:allow-private"), |_| {});
        pin(&mut world, "a.example", inside, 600);
        flow(&world.send(&packet::syn(guest(family, 1), at(inside, 5432))));
        replace(&mut world, "allow@a.example");
        assert_eq!(names(&world.send(&packet::syn(guest(family, 2), at(inside, 5432)))), ["denied", "emit"]);
    }
}

#[test]
fn other_bounds_and_answers_count_from_then_on() {
    for family in BOTH {
        let mut world = World::new();
        let remote = at(family.nth_public(1), 443);
        flow(&world.send(&packet::syn(guest(family, 1), remote)));
        let mut limits = cofferdam_policy::file::default_network().limits;
        limits.max_connections = 1;
        world.gate.handle_limits(world.now, limits);
        assert_eq!(names(&world.send(&packet::syn(guest(family, 2), remote))), ["limit", "emit"]);
        world.gate.handle_deny_with(DenyWith::Drop);
        let private = at(if family == Family::V4 { "10.0.0.1" } else { "fd00:9::1" }.parse().unwrap(), 1);
        assert_eq!(names(&world.send(&packet::syn(guest(family, 3), private))), ["denied"]);
    }
}

/// Addresses in the grammar: only those of IPv6 have brackets.
trait ReplaceV4 {
    fn replace_v4(&self) -> String;
}

impl ReplaceV4 for String {
    fn replace_v4(&self) -> String {
        let tokens = self
            .split(',')
            .map(|token| if token.contains(':') { token.to_owned() } else { token.replace(['[', ']'], "") });
        tokens.collect::<Vec<_>>().join(",")
    }
}
