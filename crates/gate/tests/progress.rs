//! What open flows have moved.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::net::SocketAddr;
use std::num::NonZeroU16;

use cofferdam_gate::{Mark, Moved, Movers, Output, Published};
use cofferdam_model::{Action, EventBody, FlowCounters, FlowId, PolicyConfig, PortId};
use common::{BOTH, Family, World, at, events, flow, ms, names, packet};

fn guest(family: Family) -> SocketAddr {
    at(family.guest(), 4000)
}

fn remote(family: Family) -> SocketAddr {
    at(family.public(), 9999)
}

/// What the shell answers when it is asked, with nothing of its own.
fn told(world: &mut World, outputs: &[Output], moved: Moved) -> Vec<(FlowId, FlowCounters)> {
    assert_eq!(names(outputs), ["ask moved"]);
    world.gate.handle_moved(moved);
    let outputs = world.drain();
    let [EventBody::FlowProgress { flows, more: 0 }] = events(&outputs)[..] else { panic!("{outputs:?}") };
    flows.iter().map(|told| (told.flow, told.counters)).collect()
}

fn packets(bytes_out: u64, bytes_in: u64, packets_out: u64, packets_in: u64) -> FlowCounters {
    FlowCounters { bytes_out, bytes_in, packets_out: Some(packets_out), packets_in: Some(packets_in) }
}

#[test]
fn a_mapping_is_told_of_while_it_moves() {
    for family in BOTH {
        let mut world = World::new();
        assert_eq!(names(&world.pass_and_ask(ms(5_000))), [""; 0], "nothing moves");
        let id = flow(&world.send(&packet::udp(guest(family), remote(family), b"hello")));
        world.pass_and_ask(ms(400));
        world.gate.handle_udp_reply(world.now, id, &[7; 100], None);
        world.drain();
        assert_eq!(names(&world.pass_and_ask(ms(599))), [""; 0], "a second after the first");
        let outputs = world.pass_and_ask(ms(1));
        assert_eq!(told(&mut world, &outputs, Moved::default()), [(id, packets(5, 100, 1, 1))]);
        assert_eq!(names(&world.pass_and_ask(ms(5_000))), [""; 0], "it rests");
        world.send(&packet::udp(guest(family), remote(family), b"again"));
        let outputs = world.pass_and_ask(ms(1_000));
        assert_eq!(told(&mut world, &outputs, Moved::default()), [(id, packets(10, 100, 2, 1))], "so far");
    }
}

#[test]
fn a_flow_that_was_closed_meanwhile_is_not() {
    for family in BOTH {
        let mut world = World::new();
        let id = flow(&world.send(&packet::udp(guest(family), remote(family), b"hello")));
        world.gate.handle_udp_failed(world.now, id, cofferdam_gate::UdpError::Resources);
        world.drain();
        assert_eq!(names(&world.pass_and_ask(ms(1_000))), ["ask moved"]);
        world.gate.handle_moved(Moved::default());
        assert_eq!(names(&world.drain()), [""; 0]);
    }
}

#[test]
fn pings_and_peers_are_told_of_as_well() {
    let inward = PolicyConfig { default_ingress: Action::Allow, ..common::public_only() };
    for family in BOTH {
        let mut world = World::with(inward.clone(), |_| {});
        let ping = flow(&world.send(&packet::ping(family.guest(), family.public(), 1, 1, b"ping")));
        world.gate.handle_echo_reply(world.now, ping, 1, b"ping");
        let peer = at(family.public(), 4000);
        let web = Published { guest_port: NonZeroU16::new(80).unwrap() };
        world.gate.handle_peer_datagram(world.now, (PortId(3), web), (peer, None), &[7; 20], None);
        let outputs = world.drain();
        let opened = |event: &&EventBody| match event {
            EventBody::FlowOpened { flow, .. } => Some(*flow),
            _ => None,
        };
        let [came_in] = events(&outputs).iter().filter_map(opened).collect::<Vec<_>>()[..] else { panic!() };
        world.send(&packet::udp(at(family.guest(), 80), peer, b"answer"));
        let outputs = world.pass_and_ask(ms(1_000));
        let expected = [(came_in, packets(6, 20, 1, 1)), (ping, packets(4, 4, 1, 1))];
        assert_eq!(told(&mut world, &outputs, Moved::default()), expected, "most first");
    }
}

#[test]
fn what_the_shell_carries_is_told_of_in_one_event_with_the_rest() {
    for family in BOTH {
        let mut world = World::new();
        // Of TCP the gate only knows that something has moved.
        world.gate.handle_movement(world.now);
        let (mut movers, mut mark) = (Movers::default(), Mark::default());
        let counters = FlowCounters { bytes_out: 3, ..FlowCounters::default() };
        movers.note(FlowId(1_000), &mut mark, &counters);
        let mapping = flow(&world.send(&packet::udp(guest(family), remote(family), b"hello")));
        let outputs = world.pass_and_ask(ms(1_000));
        let mut moved = Moved::default();
        for flow in movers.take(&mut moved) {
            moved.add(flow, &mut mark, counters);
        }
        let expected = [(mapping, packets(5, 0, 1, 0)), (FlowId(1_000), counters)];
        assert_eq!(told(&mut world, &outputs, moved), expected);
    }
}
