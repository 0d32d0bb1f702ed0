//! What a packet costs the gate: `cargo bench -p cofferdam-gate`.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use cofferdam_gate::{Offload, Output};
use common::{Family, World, at, packet};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// A gate with `mappings` open UDP mappings.
fn world(mappings: u16) -> World {
    let mut world = World::new();
    for port in 1..=mappings {
        for family in FAMILIES {
            world.send(&packet::udp(at(family.guest(), port), at(family.public(), 9999), b"x"));
        }
    }
    world
}

/// As the kernel hands over what a program in the sandbox has sent: the checksum is left to be done.
fn offloaded(family: Family, payload: usize) -> (Offload, Vec<u8>) {
    let (mut offload, packet) =
        packet::udp_batch(at(family.guest(), 7), at(family.public(), 9999), &vec![1; payload], 1);
    offload.udp_segment = None;
    (offload, packet)
}

#[divan::bench(args = FAMILIES)]
fn udp_out_64_bytes(bencher: Bencher<'_, '_>, family: Family) {
    let mut world = world(500);
    let (offload, packet) = offloaded(family, 64);
    bencher.bench_local(|| {
        world.gate.handle_packet(world.now, offload, black_box(&packet));
        world.gate.poll_output()
    });
}

#[divan::bench(args = FAMILIES)]
fn udp_out_1400_bytes(bencher: Bencher<'_, '_>, family: Family) {
    let mut world = world(500);
    let (offload, packet) = offloaded(family, 1400);
    bencher.bench_local(|| {
        world.gate.handle_packet(world.now, offload, black_box(&packet));
        world.gate.poll_output()
    });
}

#[divan::bench(args = FAMILIES)]
fn udp_out_1400_bytes_sum_checked(bencher: Bencher<'_, '_>, family: Family) {
    let mut world = world(500);
    let packet = packet::udp(at(family.guest(), 7), at(family.public(), 9999), &[1; 1400]);
    bencher.bench_local(|| {
        world.gate.handle_packet(world.now, Offload::NONE, black_box(&packet));
        world.gate.poll_output()
    });
}

#[divan::bench(args = FAMILIES)]
fn udp_in_1400_bytes(bencher: Bencher<'_, '_>, family: Family) {
    let mut world = world(0);
    let outputs = world.send(&packet::udp(at(family.guest(), 7), at(family.public(), 9999), b"x"));
    let Some(Output::OpenUdp { flow, .. }) = outputs.first() else { return };
    bencher.bench_local(|| {
        world.gate.handle_udp_reply(world.now, *flow, black_box(&[1; 1400]), None);
        world.gate.poll_output()
    });
}

/// SYN, dial, answer, SYN back, accept, close: the gate's whole part in one connection.
#[divan::bench(args = FAMILIES)]
fn tcp_connection(bencher: Bencher<'_, '_>, family: Family) {
    let mut world = world(0);
    let (guest, remote) = (at(family.guest(), 7), at(family.public(), 443));
    let syn = packet::syn(guest, remote);
    bencher.bench_local(|| {
        world.gate.handle_packet(world.now, Offload::NONE, black_box(&syn));
        let Some(Output::Dial { flow, .. }) = world.gate.poll_output() else { panic!("not dialed") };
        world.gate.handle_dialed(world.now, flow, Ok(()));
        black_box(world.gate.poll_output());
        black_box(world.gate.handle_accepted(world.now, guest, remote));
        let (by, counters) = (cofferdam_model::CloseReason::Guest, cofferdam_model::FlowCounters::default());
        world.gate.handle_closed(world.now, flow, by, counters);
        while let Some(output) = world.gate.poll_output() {
            black_box(output);
        }
    });
}

#[divan::bench(args = FAMILIES)]
fn syn_denied(bencher: Bencher<'_, '_>, family: Family) {
    let mut world = world(0);
    let syn = packet::syn(at(family.guest(), 7), at(family.private(), 443));
    bencher.bench_local(|| {
        world.gate.handle_packet(world.now, Offload::NONE, black_box(&syn));
        while let Some(output) = world.gate.poll_output() {
            black_box(output);
        }
    });
}

#[divan::bench(args = FAMILIES)]
fn packet_with_a_forged_source(bencher: Bencher<'_, '_>, family: Family) {
    let mut world = world(0);
    let packet = packet::udp(at(family.private(), 7), at(family.public(), 9999), &[1; 1400]);
    bencher.bench_local(|| {
        world.gate.handle_packet(world.now, Offload::NONE, black_box(&packet));
        world.gate.poll_output()
    });
}

/// What the loop pays for asking when to wake up.
#[divan::bench]
fn poll_timeout() -> Option<cofferdam_model::Time> {
    thread_local! {
        static WORLD: World = world(500);
    }
    WORLD.with(|world| world.gate.poll_timeout())
}

/// 10,000 other rules, with 5,000 connections that are there: what the loop stands still for.
#[divan::bench(args = FAMILIES, sample_count = 20)]
fn policy_replaced_under_5_000_flows(bencher: Bencher<'_, '_>, family: Family) {
    let mut world = World::with(common::public_only(), |config| config.limits.max_connections = 0);
    for port in 1..=5_000 {
        let (guest, remote) = (at(family.guest(), port), at(family.public(), 443));
        let outputs = world.send(&packet::syn(guest, remote));
        let dial = outputs.iter().find_map(|output| match output {
            Output::Dial { flow, .. } => Some(*flow),
            _ => None,
        });
        world.dialed(dial.unwrap(), Ok(()));
        world.gate.handle_accepted(world.now, guest, remote).unwrap();
        world.drain();
    }
    let policy = std::sync::Arc::new(ten_thousand_rules(&world));
    bencher.bench_local(|| {
        world.gate.handle_policy(world.now, black_box(std::sync::Arc::clone(&policy)));
        while let Some(output) = world.gate.poll_output() {
            black_box(output);
        }
    });
}

/// The text of 10,000 rules to a policy, which happens beside the loop.
#[divan::bench(sample_count = 20)]
fn policy_of_10_000_rules_from_text(bencher: Bencher<'_, '_>) {
    let network = cofferdam_model::NetworkConfig { policy: rules(), ..cofferdam_policy::file::default_network() };
    let text = cofferdam_policy::file::to_json(&network);
    let classifier = World::new().gate.policy().classifier().clone();
    bencher.bench_local(|| {
        let network = cofferdam_policy::file::parse("bench.json", black_box(&text)).unwrap();
        cofferdam_policy::Policy::of_network(&network, classifier.clone()).unwrap()
    });
}

fn ten_thousand_rules(world: &World) -> cofferdam_policy::Policy {
    cofferdam_policy::Policy::compile(&rules(), world.gate.policy().classifier().clone())
}

fn rules() -> cofferdam_model::PolicyConfig {
    let mut text = String::new();
    for number in 0..5_000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        text += &format!("deny@11.{high}.{low}.0/24,allow@www.site{number}.example.org:tcp:443,");
    }
    let rules = cofferdam_policy::grammar::parse_rules(&(text + "allow@public")).unwrap();
    cofferdam_model::PolicyConfig { rules, ..Default::default() }
}
