//! Connections of the guest to sockets of the host.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::time::Duration;

use cofferdam_gate::{Gate, GateConfig, Output, SocketError, Way};
use cofferdam_model::{
    BucketConfig, BudgetConfig, CloseReason, Direction, EventBody, FlowCounters, FlowId, HostSocket, LimitKind,
    LimitsConfig, Process, SocketId, Time,
};
use common::{BOTH, World, at, compile, events, gate_config, ms, packet, public_only};

const AGENT: SocketId = SocketId(1);

fn sockets() -> Vec<HostSocket> {
    let socket = |name: &str| HostSocket { host: format!("/host/{name}"), guest: format!("/run/{name}") };
    vec![socket("db"), socket("agent")]
}

fn limits() -> LimitsConfig {
    gate_config().limits
}

fn world(limits: LimitsConfig) -> World {
    let config = GateConfig { limits, host_sockets: sockets(), ..gate_config() };
    World { gate: Gate::new(config, compile(&public_only())), now: Time::ZERO + ms(1000) }
}

/// A connection that is on its way to the host's socket.
fn connect(world: &mut World) -> FlowId {
    let flow = world.gate.handle_socket(world.now, AGENT, Some(7)).unwrap();
    assert_eq!(dialed(&world.drain()), [flow]);
    flow
}

/// The flows that these outputs ask to connect.
fn dialed(outputs: &[Output]) -> Vec<FlowId> {
    let flow = |output: &Output| match output {
        Output::DialSocket { flow, socket: AGENT } => Some(*flow),
        _ => None,
    };
    outputs.iter().filter_map(flow).collect()
}

fn abandoned(outputs: &[Output]) -> Vec<FlowId> {
    let flow = |output: &Output| if let Output::AbandonSocket { flow } = output { Some(*flow) } else { None };
    outputs.iter().filter_map(flow).collect()
}

fn failed(outputs: &[Output]) -> Vec<String> {
    let error = |event: &EventBody| match event {
        EventBody::SocketFailed { host, guest, error, .. } => Some(format!("{host} {guest} {error}")),
        _ => None,
    };
    events(outputs).into_iter().filter_map(error).collect()
}

fn pass(world: &mut World, time: Duration) -> Vec<Output> {
    world.now = world.now + time;
    world.gate.handle_timeout(world.now);
    world.drain()
}

#[test]
fn a_connection_is_told_from_its_beginning_to_its_end() {
    let mut world = world(limits());
    let flow = connect(&mut world);
    assert!(world.gate.handle_socket_dialed(world.now, flow, Ok(())));
    let (host, guest) = ("/host/agent".to_owned(), "/run/agent".to_owned());
    assert_eq!(
        events(&world.drain()),
        [&EventBody::SocketOpened { flow, host, guest, process: Some(Process::seen_from_outside(7)) }]
    );
    world.now = world.now + ms(30);
    let counters = FlowCounters { bytes_out: 3, bytes_in: 4, ..FlowCounters::default() };
    world.gate.handle_closed(world.now, flow, CloseReason::Remote, counters);
    let closed = EventBody::SocketClosed { flow, by: CloseReason::Remote, counters, duration_ms: 30 };
    assert_eq!(events(&world.drain()), [&closed]);
    world.gate.handle_closed(world.now, flow, CloseReason::Remote, counters);
    assert!(world.drain().is_empty(), "once");
}

#[test]
fn a_socket_that_nobody_named_is_no_socket() {
    let mut world = world(limits());
    assert_eq!(world.gate.handle_socket(world.now, SocketId(2), None), None);
    assert!(world.drain().is_empty());
    assert!(!world.gate.handle_socket_dialed(world.now, FlowId(9), Ok(())));
}

#[test]
fn what_cannot_be_connected_is_closed_and_told() {
    for (error, text) in [(SocketError::Refused, "nobody listens on it"), (SocketError::Missing, "it is not there")] {
        let mut world = world(limits());
        let flow = connect(&mut world);
        assert!(!world.gate.handle_socket_dialed(world.now, flow, Err(error)));
        let outputs = world.drain();
        assert_eq!(abandoned(&outputs), [flow]);
        assert_eq!(failed(&outputs), [format!("/host/agent /run/agent {text}")]);
        assert_eq!(world.gate.poll_timeout(), None);
    }
}

#[test]
fn a_full_queue_is_tried_again_for_ten_seconds() {
    let mut world = world(limits());
    let flow = connect(&mut world);
    let mut attempts = 1;
    loop {
        assert!(!world.gate.handle_socket_dialed(world.now, flow, Err(SocketError::Busy)));
        assert!(world.drain().is_empty());
        assert_eq!(world.gate.poll_timeout(), Some(world.now + ms(20)));
        let outputs = pass(&mut world, ms(20));
        if abandoned(&outputs) == [flow] {
            assert!(failed(&outputs)[0].contains("its queue is full"));
            break;
        }
        assert_eq!(dialed(&outputs), [flow]);
        attempts += 1;
    }
    assert_eq!(attempts, 500);
    // And when there is room in time:
    let flow = connect(&mut world);
    world.gate.handle_socket_dialed(world.now, flow, Err(SocketError::Busy));
    assert_eq!(dialed(&pass(&mut world, ms(20))), [flow]);
    assert!(world.gate.handle_socket_dialed(world.now, flow, Ok(())));
}

#[test]
fn those_that_wait_try_again_in_turn_and_not_all_at_once() {
    let mut world = world(limits());
    let flows: Vec<FlowId> = (0..100).map(|_| connect(&mut world)).collect();
    for flow in &flows {
        world.gate.handle_socket_dialed(world.now, *flow, Err(SocketError::Busy));
    }
    assert_eq!(dialed(&pass(&mut world, ms(20))), flows[..64]);
    assert_eq!(dialed(&pass(&mut world, ms(4))), []);
    assert_eq!(dialed(&pass(&mut world, ms(1))), flows[64..]);
}

#[test]
fn an_answer_that_never_comes_is_not_waited_for() {
    let mut world = world(limits());
    let flow = connect(&mut world);
    assert_eq!(world.gate.poll_timeout(), Some(world.now + ms(10_000)));
    let outputs = pass(&mut world, ms(10_000));
    assert_eq!(abandoned(&outputs), [flow]);
    assert!(failed(&outputs)[0].contains("not reached in time"));
    assert!(!world.gate.handle_socket_dialed(world.now, flow, Ok(())), "too late");
}

#[test]
fn connections_of_both_kinds_have_one_bound() {
    for family in BOTH {
        let mut world = world(LimitsConfig { max_connections: 3, ..limits() });
        let reached = |outputs: &[Output]| {
            let is_it = |event: &&EventBody| {
                matches!(event, EventBody::LimitReached { limit: LimitKind::Connections, bound: 3, count: 1 })
            };
            events(outputs).iter().any(is_it)
        };
        let syn = |world: &mut World, port| world.send(&packet::syn(at(family.guest(), port), at(family.public(), 80)));
        assert!(syn(&mut world, 1).iter().any(|output| matches!(output, Output::Dial { .. })));
        let flow = connect(&mut world);
        connect(&mut world);
        assert_eq!(world.gate.handle_socket(world.now, AGENT, Some(7)), None);
        assert!(reached(&world.drain()));
        world.now = world.now + ms(2000);
        assert!(reached(&syn(&mut world, 2)), "{family:?}");
        world.gate.handle_socket_dialed(world.now, flow, Err(SocketError::Refused));
        world.drain();
        assert!(syn(&mut world, 3).iter().any(|output| matches!(output, Output::Dial { .. })), "there is room again");
    }
}

#[test]
fn budgets_of_the_run_and_rates_hold_here_too() {
    let budget = BudgetConfig { bytes: 10, direction: Direction::Any, destinations: Vec::new() };
    let mut world = world(LimitsConfig { budgets: vec![budget], ..limits() });
    let flow = connect(&mut world);
    world.gate.handle_socket_dialed(world.now, flow, Ok(()));
    world.drain();
    world.gate.limits().spend(world.now, flow, Way::Egress, 10);
    world.gate.limits().exceed(flow, Way::Ingress);
    world.gate.handle_limited(world.now);
    assert!(world.drain().iter().any(|output| matches!(output, Output::CloseUsedUp { flow: ended } if *ended == flow)));
    assert_eq!(world.gate.handle_socket(world.now, AGENT, Some(7)), None, "nothing is left for another");

    let mut config = limits();
    config.rates.egress.ops = Some(BucketConfig { size: 1, refill_time: Duration::from_secs(1), one_time_burst: 0 });
    let mut world = self::world(config);
    connect(&mut world);
    assert_eq!(world.gate.handle_socket(world.now, AGENT, Some(7)), None);
}
