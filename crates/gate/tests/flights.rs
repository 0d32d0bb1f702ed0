//! Flows that are opened on the strength of a name, and what they show.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use cofferdam_flight::{Doubt, Protocol as Seen, Shown};
use cofferdam_gate::{Accepted, FlightAnswer, Output};
use cofferdam_model::{
    CloseReason, DomainName, EventBody, FirstFlight, FlightProtocol, FlowCounters, FlowId, PolicyConfig,
};
use cofferdam_policy::grammar::parse_rules;
use common::{BOTH, Family, World, at, emitted, events, ms, names, packet};

const WHOLE: &[u8] = include_bytes!("quic/whole.bin");
const FIRST: &[u8] = include_bytes!("quic/first.bin");
const SECOND: &[u8] = include_bytes!("quic/second.bin");
const ACKNOWLEDGEMENT: &[u8] = include_bytes!("quic/acknowledgement.bin");
const ANOTHER: &[u8] = include_bytes!("quic/another.bin");

fn world(rules: &str) -> World {
    World::with(PolicyConfig { rules: parse_rules(rules).unwrap(), ..PolicyConfig::default() }, |_| {})
}

fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

fn pin(world: &mut World, family: Family, text: &str) {
    world.gate.handle_pin(world.now, &name(text), false, family.public(), Duration::ZERO).unwrap();
}

fn guest(family: Family) -> SocketAddr {
    at(family.guest(), 4000)
}

fn web(family: Family) -> SocketAddr {
    at(family.public(), 443)
}

#[track_caller]
fn accept(world: &mut World, family: Family) -> Accepted {
    let outputs = world.send(&packet::syn(guest(family), web(family)));
    let [Output::Dial { flow, .. }] = outputs[..] else { panic!("{outputs:?}") };
    world.dialed(flow, Ok(()));
    world.gate.handle_accepted(world.now, guest(family), web(family)).unwrap()
}

#[track_caller]
fn watched(world: &mut World, family: Family) -> FlowId {
    let Accepted::Check(flow) = accept(world, family) else { panic!("not to be checked") };
    world.drain();
    flow
}

fn tls(text: &str) -> Shown {
    Shown::Tls { server_name: Some(name(text)), ech: false }
}

#[test]
fn a_connection_that_a_name_allows_has_to_show_it() {
    for family in BOTH {
        let mut world = world("allow@a.example,allow@*.b.example");
        pin(&mut world, family, "a.example");
        let flow = watched(&mut world, family);
        assert_eq!(world.gate.handle_flight(world.now, flow, &tls("a.example")), FlightAnswer::Pass);
        assert!(world.drain().is_empty());
        let shows = [
            (tls("x.b.example"), Some("x.b.example"), FlightProtocol::Tls, None),
            (Shown::Tls { server_name: None, ech: false }, None, FlightProtocol::Tls, None),
            (
                Shown::Http { names: vec![name("a.example"), name("evil.example")] },
                Some("evil.example"),
                FlightProtocol::Http,
                None,
            ),
            (
                Shown::Unreadable { protocol: Seen::Http, doubt: Doubt::Host },
                None,
                FlightProtocol::Http,
                Some(Doubt::Host),
            ),
            (Shown::Other, None, FlightProtocol::Other, None),
            (Shown::Unfinished, None, FlightProtocol::Unfinished, None),
        ];
        for (shown, domain, protocol, doubt) in shows {
            let FlightAnswer::Deny(denial) = world.gate.handle_flight(world.now, flow, &shown) else {
                panic!("{shown:?}")
            };
            assert_eq!(denial.domain, domain.map(name));
            assert_eq!(denial.rule, "default egress deny");
            let outputs = world.drain();
            let [EventBody::FlowDenied { decision, names, shown: Some(told), remote, .. }] = events(&outputs)[..]
            else {
                panic!("{outputs:?}")
            };
            assert_eq!(*decision, denial.decision.unwrap().to_string());
            assert_eq!((&names[..], *remote), (&["a.example".to_owned()][..], web(family)));
            let names = shown.names().iter().map(DomainName::to_string).collect();
            assert_eq!(*told, FirstFlight { protocol, names, doubt: doubt.map(|doubt| doubt.to_string()) });
        }
    }
}

/// The same, and what flows show is looked at whatever the rules are about.
fn watching(rules: &str) -> World {
    let mut world = world(rules);
    let policy = world.gate.policy();
    let policy = policy.with_classifier(policy.classifier().clone()).watching();
    world.gate.handle_policy(world.now, std::sync::Arc::new(policy));
    world.drain();
    world
}

#[test]
fn a_watching_policy_tells_each_thing_that_a_connection_shows_once() {
    for family in BOTH {
        let mut world = watching("allow@public");
        let flow = watched(&mut world, family);
        let unreadable = Shown::Unreadable { protocol: Seen::Http, doubt: Doubt::Host };
        let http = |text: &str| Shown::Http { names: vec![name(text)] };
        let shown = [http("a.example"), http("a.example"), http("b.example"), unreadable, Shown::Unfinished];
        let mut told = Vec::new();
        for shown in shown {
            assert_eq!(world.gate.handle_flight(world.now, flow, &shown), FlightAnswer::Pass);
            let outputs = world.drain();
            told.extend(events(&outputs).into_iter().map(|event| match event {
                EventBody::FlowShown { flow: told, shown } if *told == flow => {
                    (shown.names.join(" "), shown.doubt.is_some())
                }
                other => panic!("{other:?}"),
            }));
        }
        let names = |names: &str, doubt| (names.to_owned(), doubt);
        assert_eq!(told, [names("a.example", false), names("b.example", false), names("", true), names("", false)]);
        // Names that are denied are denied all the same, and so is what may hide one.
        let mut world = watching("deny@evil.example,allow@public");
        let flow = watched(&mut world, family);
        for shown in [tls("evil.example"), Shown::Unfinished] {
            assert!(matches!(world.gate.handle_flight(world.now, flow, &shown), FlightAnswer::Deny(_)), "{shown:?}");
        }
        // A policy that does not watch tells nothing.
        let mut world = self::world("allow@a.example");
        pin(&mut world, family, "a.example");
        let flow = watched(&mut world, family);
        assert_eq!(world.gate.handle_flight(world.now, flow, &tls("a.example")), FlightAnswer::Pass);
        assert!(world.drain().is_empty());
    }
}

#[test]
fn a_watching_policy_holds_up_no_datagrams_that_cannot_be_read() {
    for family in BOTH {
        let mut world = watching("allow@public");
        let send = |world: &mut World, payload: &[u8]| world.send(&packet::udp(guest(family), web(family), payload));
        assert_eq!(names(&send(&mut world, WHOLE)), ["shown", "open udp", "opened", "send udp"]);
        // Half a hello waits for the other half, and then goes on as it is; so does everything behind it.
        let mut world = watching("allow@public");
        assert!(send(&mut world, SECOND).is_empty());
        assert_eq!(names(&world.pass(ms(5_000))), ["shown", "open udp", "opened", "send udp"]);
        assert_eq!(names(&send(&mut world, SECOND)), ["send udp"]);
        assert_eq!(names(&send(&mut world, &[0x40; 50])), ["send udp"]);
    }
}

/// The names that the denials among these say to look up again.
fn again(outputs: &[Output]) -> Vec<Option<String>> {
    let again = |event: &EventBody| match event {
        EventBody::FlowDenied { look_up_again, .. } => Some(look_up_again.clone()),
        _ => None,
    };
    events(outputs).into_iter().filter_map(again).collect()
}

#[test]
fn a_client_that_kept_an_address_for_too_long_is_told_to_look_the_name_up_again() {
    for family in BOTH {
        let mut world = world("allow@a.example:tcp+udp:443");
        pin(&mut world, family, "a.example");
        pin(&mut world, family, "other.example");
        world.pass(ms(59_999));
        assert_eq!(again(&world.send(&packet::syn(guest(family), at(family.public(), 80)))), [None], "it is pinned");
        world.pass(ms(1));
        let name = Some("a.example".to_owned());
        for (to, expected) in [
            (web(family), name),
            // No look-up opens these.
            (at(family.public(), 80), None),
            (at(family.private(), 443), None),
        ] {
            let expected = [expected];
            assert_eq!(again(&world.send(&packet::syn(guest(family), to))), expected, "{to}");
            let datagram = packet::udp(guest(family), to, b"question");
            assert_eq!(again(&world.send(&datagram)), expected, "{to} over UDP");
        }
        pin(&mut world, family, "a.example");
        watched(&mut world, family);
    }
}

#[test]
fn so_is_one_that_shows_the_name_at_an_address_of_another() {
    for family in BOTH {
        let mut world = world("allow@a.example,allow@b.example");
        pin(&mut world, family, "b.example");
        world.pass(ms(60_000));
        pin(&mut world, family, "a.example");
        let flow = watched(&mut world, family);
        for (shown, expected) in [("b.example", Some("b.example")), ("c.example", None)] {
            let FlightAnswer::Deny(denial) = world.gate.handle_flight(world.now, flow, &tls(shown)) else { panic!() };
            assert_eq!(denial.look_up_again, expected.map(name));
            assert_eq!(again(&world.drain()), [expected.map(str::to_owned)]);
        }
        let nameless = Shown::Tls { server_name: None, ech: false };
        let FlightAnswer::Deny(denial) = world.gate.handle_flight(world.now, flow, &nameless) else { panic!() };
        assert_eq!(denial.look_up_again, None);
    }
}

#[test]
fn the_floor_of_pins_can_be_changed_while_the_gate_runs() {
    for family in BOTH {
        let mut world = world("allow@a.example");
        world.gate.handle_pin_floor(ms(1_000));
        pin(&mut world, family, "a.example");
        world.pass(ms(1_000));
        assert_eq!(again(&world.send(&packet::syn(guest(family), web(family)))), [Some("a.example".to_owned())]);
    }
}

#[test]
fn a_connection_that_passed_lives_on_without_its_pin() {
    for family in BOTH {
        let mut world = world("allow@a.example,allow@b.example");
        pin(&mut world, family, "a.example");
        pin(&mut world, family, "b.example");
        let flow = watched(&mut world, family);
        let request = |text: &str| Shown::Http { names: vec![name(text)] };
        assert_eq!(world.gate.handle_flight(world.now, flow, &request("a.example")), FlightAnswer::Pass);
        world.pass(Duration::from_secs(3600));
        assert_eq!(world.gate.handle_flight(world.now, flow, &request("a.example")), FlightAnswer::Pass);
        assert!(matches!(world.gate.handle_flight(world.now, flow, &request("b.example")), FlightAnswer::Deny(_)));
        world.gate.handle_closed(world.now, flow, CloseReason::Policy, FlowCounters::default());
        assert!(matches!(world.gate.handle_flight(world.now, flow, &request("a.example")), FlightAnswer::Deny(_)));
        // A new connection needs a live pin.
        let outputs = world.send(&packet::syn(at(family.guest(), 4001), web(family)));
        assert!(!names(&outputs).contains(&"dial"), "{outputs:?}");
    }
}

#[test]
fn a_name_that_is_resolved_meanwhile_counts() {
    for family in BOTH {
        let mut world = world("allow@a.example,allow@b.example");
        pin(&mut world, family, "a.example");
        let flow = watched(&mut world, family);
        pin(&mut world, family, "b.example");
        assert_eq!(world.gate.handle_flight(world.now, flow, &tls("b.example")), FlightAnswer::Pass);
    }
}

#[test]
fn a_denied_name_is_found_on_any_address_and_other_connections_are_not_held() {
    for family in BOTH {
        let mut world = world("deny@*.evil.example,allow@public");
        let flow = watched(&mut world, family);
        assert_eq!(world.gate.handle_flight(world.now, flow, &tls("good.example")), FlightAnswer::Pass);
        let FlightAnswer::Deny(denial) = world.gate.handle_flight(world.now, flow, &tls("x.evil.example")) else {
            panic!()
        };
        assert_eq!((denial.domain, &denial.rule[..]), (Some(name("x.evil.example")), "deny@*.evil.example"));
        let mut world = common::World::new();
        assert!(matches!(accept(&mut world, family), Accepted::Relay(_)));
    }
}

fn send(world: &mut World, family: Family, payload: &[u8]) -> Vec<Output> {
    world.send(&packet::udp(guest(family), web(family), payload))
}

fn sent(outputs: &[Output]) -> Vec<&[u8]> {
    fn payload(output: &Output) -> Option<&[u8]> {
        if let Output::SendUdp { payload, .. } = output { Some(payload) } else { None }
    }
    outputs.iter().filter_map(payload).collect()
}

#[test]
fn a_quic_connection_waits_for_its_name() {
    for family in BOTH {
        let mut world = world("allow@example.com");
        pin(&mut world, family, "example.com");
        let outputs = send(&mut world, family, WHOLE);
        assert_eq!(names(&outputs), ["open udp", "opened", "send udp"]);
        assert_eq!(names(&send(&mut world, family, ACKNOWLEDGEMENT)), ["send udp"]);
        assert_eq!(names(&send(&mut world, family, &[0x40; 50])), ["send udp"]);
        assert_eq!(names(&send(&mut world, family, ANOTHER)), ["send udp"]);

        let mut world = World::with(
            PolicyConfig { rules: parse_rules("allow@example.com").unwrap(), ..PolicyConfig::default() },
            |_| {},
        );
        pin(&mut world, family, "example.com");
        assert!(send(&mut world, family, SECOND).is_empty());
        world.pass(Duration::from_secs(4));
        let outputs = send(&mut world, family, FIRST);
        assert_eq!(sent(&outputs), [SECOND, FIRST], "in order");
        assert_eq!(names(&outputs)[..2], ["open udp", "opened"]);
        // As a batch.
        let mut batch = World::with(
            PolicyConfig { rules: parse_rules("allow@example.com").unwrap(), ..PolicyConfig::default() },
            |_| {},
        );
        pin(&mut batch, family, "example.com");
        let (offload, packet) = packet::udp_batch(guest(family), web(family), &[FIRST, SECOND].concat(), 1200);
        let outputs = batch.send_with(offload, &packet);
        assert_eq!(names(&outputs), ["open udp", "opened", "send udp"]);
    }
}

#[test]
fn another_hello_on_an_open_mapping_has_five_seconds_as_well() {
    for family in BOTH {
        let mut world = world("allow@example.com");
        pin(&mut world, family, "example.com");
        assert_eq!(names(&send(&mut world, family, ANOTHER)), ["open udp", "opened", "send udp"]);
        world.pass(Duration::from_secs(1));
        assert!(send(&mut world, family, SECOND).is_empty(), "half a hello waits");
        world.pass(ms(4_900));
        // Neither more datagrams, which wait behind it, nor replies change anything about the time.
        assert!(send(&mut world, family, &[0x40; 50]).is_empty());
        world.gate.handle_udp_reply(world.now, FlowId(1), b"hello", None);
        assert_eq!(names(&world.drain()), ["emit"]);
        let outputs = world.pass(ms(100));
        assert_eq!(names(&outputs), ["denied", "emit", "close udp", "closed"]);
        let [EventBody::FlowDenied { shown: Some(shown), .. }, ..] = events(&outputs)[..] else { panic!() };
        assert_eq!(shown.protocol, FlightProtocol::Unfinished);
    }
}

#[test]
fn another_hello_that_is_whole_in_time_passes_with_what_was_held() {
    for family in BOTH {
        let mut world = world("allow@example.com");
        pin(&mut world, family, "example.com");
        send(&mut world, family, ANOTHER);
        assert!(send(&mut world, family, SECOND).is_empty());
        world.pass(Duration::from_secs(4));
        assert_eq!(sent(&send(&mut world, family, FIRST)), [SECOND, FIRST]);
        assert!(world.pass(Duration::from_secs(10)).is_empty(), "nothing waits any more");
    }
}

#[test]
fn quic_with_another_name_is_prohibited() {
    for family in BOTH {
        for (rules, payload, told) in [
            ("allow@a.example", WHOLE, vec!["example.com".to_owned()]),
            ("deny@example.com,allow@public", WHOLE, vec!["example.com".to_owned()]),
            ("allow@a.example", &[0x40; 50], vec![]),
            ("allow@a.example", &WHOLE[..1199], vec![]),
            ("deny@example.com,allow@public", &WHOLE[..1199], vec![]),
        ] {
            let mut world = world(rules);
            pin(&mut world, family, "a.example");
            let datagram = packet::udp(guest(family), web(family), payload);
            let outputs = world.send(&datagram);
            assert_eq!(names(&outputs), ["denied", "emit"], "{rules}");
            let [EventBody::FlowDenied { shown: Some(shown), .. }] = events(&outputs)[..] else { panic!() };
            assert_eq!(shown.names, told);
            let (kind, code, quote) = {
                let seen = emitted(&outputs);
                let (a, b, c) = seen[0].icmp_error();
                (a, b, c.to_vec())
            };
            assert_eq!((kind, code), if family == Family::V4 { (3, 13) } else { (1, 1) });
            assert_eq!(quote, datagram[..quote.len()]);
            assert_eq!(world.gate.poll_timeout(), None, "nothing is kept");
        }
    }
}

#[test]
fn another_quic_connection_from_the_same_port_is_looked_at() {
    for family in BOTH {
        let mut world = world("deny@example.com,allow@public");
        // A port of a protocol without names first.
        assert_eq!(names(&send(&mut world, family, &[0x40; 50])), ["open udp", "opened", "send udp"]);
        assert_eq!(names(&send(&mut world, family, &[0x40; 50])), ["send udp"]);
        assert_eq!(names(&send(&mut world, family, ANOTHER)), ["denied", "emit", "close udp", "closed"]);
        assert_eq!(names(&send(&mut world, family, ACKNOWLEDGEMENT)), ["denied", "emit"]);
    }
}

#[test]
fn what_is_held_is_bounded_in_number_and_time() {
    for family in BOTH {
        let mut world = world("allow@example.com");
        pin(&mut world, family, "example.com");
        for _ in 0..13 {
            assert!(send(&mut world, family, SECOND).is_empty());
        }
        assert_eq!(names(&send(&mut world, family, SECOND)), ["denied", "emit"]);
        assert!(send(&mut world, family, SECOND).is_empty());
        assert!(world.pass(ms(4_999)).is_empty());
        let outputs = world.pass(ms(1));
        assert_eq!(names(&outputs), ["denied", "emit"]);
        assert!(world.pass(Duration::from_secs(600)).is_empty());
        send(&mut world, family, SECOND);
        world.gate.handle_shutdown(world.now);
        assert!(world.drain().is_empty());
    }
}

#[test]
fn other_ports_of_a_name_take_other_datagrams() {
    for family in BOTH {
        let mut world = world("allow@a.example");
        pin(&mut world, family, "a.example");
        let outputs = world.send(&packet::udp(guest(family), at(family.public(), 9999), b"hello"));
        assert_eq!(names(&outputs), ["open udp", "opened", "send udp"]);
        let outputs = world.send(&packet::udp(guest(family), at(family.public(), 9999), WHOLE));
        assert_eq!(names(&outputs), ["denied", "emit", "close udp", "closed"]);
    }
}
