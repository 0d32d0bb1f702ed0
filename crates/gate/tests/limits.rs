//! Rates and budgets as a guest meets them.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::net::SocketAddr;

use cofferdam_gate::{Accepted, Grant, Limits, Output, Way};
use cofferdam_model::{
    BucketConfig, BudgetConfig, CloseReason, Destination, Direction, EventBody, FlowId, LimitKind, LimitsConfig,
};
use common::{BOTH, Family, World, at, events, ms, names, packet};

fn bucket(size: u64, millis: u64) -> Option<BucketConfig> {
    Some(BucketConfig { size, refill_time: ms(millis), one_time_burst: 0 })
}

fn limited(change: impl FnOnce(&mut LimitsConfig)) -> World {
    World::with(common::public_only(), |config| change(&mut config.limits))
}

fn budget(bytes: u64, direction: Direction, destinations: Vec<Destination>) -> BudgetConfig {
    BudgetConfig { bytes, direction, destinations }
}

fn guest(family: Family) -> SocketAddr {
    at(family.guest(), 4000)
}

fn remote(family: Family) -> SocketAddr {
    at(family.public(), 9999)
}

fn datagram(family: Family, length: usize) -> Vec<u8> {
    packet::udp(guest(family), remote(family), &vec![7; length])
}

fn times(outputs: &[Output], name: &str) -> usize {
    names(outputs).iter().filter(|other| **other == name).count()
}

/// What the shell does at the end of a turn.
fn told(world: &mut World) -> (Vec<(LimitKind, u64, u64)>, Vec<Output>) {
    world.gate.handle_limited(world.now);
    let outputs = world.drain();
    let limit = |event: &EventBody| match event {
        EventBody::LimitReached { limit, bound, count } => Some((*limit, *bound, *count)),
        _ => None,
    };
    (events(&outputs).into_iter().filter_map(limit).collect(), outputs)
}

/// An accepted connection.
fn connect(world: &mut World, family: Family, port: u16) -> FlowId {
    let (from, to) = (at(family.guest(), port), at(family.public(), 80));
    let outputs = world.send(&packet::syn(from, to));
    let dialed = outputs.iter().find_map(|output| match output {
        Output::Dial { flow, .. } => Some(*flow),
        _ => None,
    });
    let flow = dialed.unwrap_or_else(|| panic!("no dial: {outputs:?}"));
    world.dialed(flow, Ok(()));
    assert_eq!(world.gate.handle_accepted(world.now, from, to), Some(Accepted::Relay(flow)));
    world.drain();
    flow
}

#[test]
fn datagrams_over_the_bytes_are_dropped_and_counted() {
    for family in BOTH {
        let mut world = limited(|limits| limits.rates.egress.bandwidth = bucket(1000, 1000));
        let sent: usize = (0..10).map(|_| times(&world.send(&datagram(family, 400)), "send udp")).sum();
        assert_eq!(sent, 3, "the third goes into debt");
        assert_eq!(told(&mut world).0, [(LimitKind::EgressBandwidth, 1000, 7)]);
        world.pass(ms(200));
        assert_eq!(times(&world.send(&datagram(family, 400)), "send udp"), 0, "the debt is paid off");
        world.pass(ms(1));
        assert_eq!(times(&world.send(&datagram(family, 400)), "send udp"), 1);
    }
}

#[test]
fn a_datagram_larger_than_the_bucket_passes() {
    for family in BOTH {
        let mut world = limited(|limits| limits.rates.egress.bandwidth = bucket(100, 1000));
        assert_eq!(times(&world.send(&datagram(family, 1000)), "send udp"), 1);
        world.pass(ms(9000));
        assert_eq!(times(&world.send(&datagram(family, 1)), "send udp"), 0);
    }
}

#[test]
fn operations_bound_datagrams_of_a_batch_and_answers() {
    for family in BOTH {
        let mut world = limited(|limits| {
            limits.rates.egress.ops = bucket(3, 1000);
            limits.rates.ingress.ops = bucket(2, 1000);
        });
        let (offload, batch) = packet::udp_batch(guest(family), remote(family), &[7; 50], 10);
        let outputs = world.send_with(offload, &batch);
        let (flow, sent) = outputs
            .iter()
            .find_map(|output| match output {
                Output::SendUdp { flow, payload, .. } => Some((*flow, payload.len())),
                _ => None,
            })
            .unwrap();
        assert_eq!(sent, 30);
        let answers = |world: &mut World| {
            world.gate.handle_udp_reply(world.now, flow, b"x", None);
            times(&world.drain(), "emit")
        };
        assert_eq!([(); 4].map(|()| answers(&mut world)), [1, 1, 0, 0]);
        assert_eq!(told(&mut world).0, [(LimitKind::EgressOps, 3, 2), (LimitKind::IngressOps, 2, 2)]);
    }
}

#[test]
fn a_syn_over_the_rate_is_dropped_and_goes_through_when_it_comes_again() {
    for family in BOTH {
        let mut world = limited(|limits| limits.rates.egress.ops = bucket(1, 1000));
        connect(&mut world, family, 4000);
        let syn = packet::syn(at(family.guest(), 4001), at(family.public(), 80));
        assert!(world.send(&syn).is_empty());
        assert_eq!(told(&mut world).0, [(LimitKind::EgressOps, 1, 1)]);
        world.pass(ms(1000));
        assert_eq!(names(&world.send(&syn)), ["dial"]);
        // The gateway's own resolver is no destination.
        let dns = packet::syn(at(family.guest(), 4002), at(family.gateway(), 53));
        assert_eq!(names(&world.send(&dns)), ["emit"]);
    }
}

#[test]
fn a_budget_ends_its_flows_and_admits_no_more() {
    for family in BOTH {
        let here = Destination::Cidr(family.public().into());
        let mut world = limited(|limits| limits.budgets = vec![budget(1000, Direction::Any, vec![here])]);
        let flow = connect(&mut world, family, 4000);
        let now = world.now;
        let limits = world.gate.limits();
        assert_eq!(limits.grant(now, flow, Way::Egress), Grant::Bytes(1000));
        limits.spend(now, flow, Way::Egress, 600);
        limits.spend(now, flow, Way::Ingress, 400);
        assert_eq!(limits.grant(now, flow, Way::Egress), Grant::UsedUp);
        assert!(!limits.has_news(), "what fits exactly passes");
        limits.exceed(flow, Way::Egress);
        let (limits, outputs) = told(&mut world);
        assert_eq!(limits, [(LimitKind::Budget, 1000, 1)]);
        assert_eq!(times(&outputs, "close used up"), 1);
        assert_eq!(times(&outputs, "notice"), 1);
        let denied = world.send(&datagram(family, 1));
        assert_eq!(names(&denied), ["denied", "emit"]);
        let EventBody::FlowDenied { rule, .. } = events(&denied)[0] else { panic!("{denied:?}") };
        assert!(rule.text.starts_with("budget of 1000 bytes for ") && rule.index.is_none(), "{rule:?}");
        // Another destination has nothing to do with it.
        let other = packet::udp(guest(family), at(family.nth_public(2), 9), b"x");
        assert_eq!(times(&world.send(&other), "send udp"), 1);
    }
}

#[test]
fn a_budget_of_datagrams_closes_their_mapping() {
    for family in BOTH {
        let mut world = limited(|limits| limits.budgets = vec![budget(1000, Direction::Egress, Vec::new())]);
        let sent: Vec<usize> = (0..4).map(|_| times(&world.send(&datagram(family, 400)), "send udp")).collect();
        assert_eq!(sent, [1, 1, 0, 0]);
        let (_, outputs) = told(&mut world);
        let closed =
            events(&outputs).iter().any(|event| matches!(event, EventBody::FlowClosed { by: CloseReason::Budget, .. }));
        assert!(closed, "{outputs:?}");
        // Nor does a look-up carry anything out.
        let query = packet::udp(guest(family), at(family.gateway(), 53), &[0; 30]);
        assert!(world.send(&query).is_empty());
    }
}

#[test]
fn a_replacement_keeps_debts_and_what_was_spent() {
    for family in BOTH {
        let config =
            LimitsConfig { budgets: vec![budget(1000, Direction::Any, Vec::new())], ..common::gate_config().limits };
        let mut world = limited(|limits| *limits = config.clone());
        let flow = connect(&mut world, family, 4000);
        let now = world.now;
        world.gate.limits().spend(now, flow, Way::Egress, 900);
        let mut larger = config;
        larger.budgets[0].bytes = 1500;
        larger.rates.egress.bandwidth = bucket(10_000, 1000);
        world.gate.handle_limits(now, larger);
        assert_eq!(world.gate.limits().grant(now, flow, Way::Egress), Grant::Bytes(600));
    }
}

#[test]
fn readers_and_datagrams_share_what_comes_back() {
    for family in BOTH {
        let mut world = limited(|limits| limits.rates.egress.bandwidth = bucket(10_000, 100));
        let flow = connect(&mut world, family, 4000);
        let (mut by_reader, mut by_datagrams) = (0, 0);
        for _ in 0..10_000 {
            world.pass(ms(1) / 4);
            let now = world.now;
            by_datagrams += 1000 * times(&world.send(&datagram(family, 1000)), "send udp");
            let limits: &mut Limits = world.gate.limits();
            match limits.grant(now, flow, Way::Egress) {
                Grant::Bytes(bytes) => {
                    limits.spend(now, flow, Way::Egress, bytes);
                    by_reader += usize::try_from(bytes).unwrap();
                }
                Grant::Wait => limits.wait(now, Way::Egress),
                grant => panic!("{grant:?}"),
            }
            told(&mut world);
        }
        let all = by_reader + by_datagrams;
        assert!((250_000..=262_000).contains(&all), "{all} in 2.5 s at 100,000 a second");
        assert!(by_reader > all / 4 && by_datagrams > all / 4, "{by_reader} and {by_datagrams}");
    }
}
