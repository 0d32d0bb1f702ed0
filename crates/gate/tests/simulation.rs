//! A guest, a gate, a kernel and a network in one process, in virtual time, driven by a seed.
//!
//! The kernel accepts what the gate injects, unless it loses the SYN; the network answers dials and datagrams late, with
//! every kind of failure, or never. After each step the [`Observer`] holds the gate to its invariants.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test may fail by panicking"
)]

mod common;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use cofferdam_gate::{Accepted, DialError, EchoError, Output, UdpError};
use cofferdam_model::{CloseReason, EventBody, FlowCounters, FlowId};
use common::observer::Observer;
use common::packet::{self, Seen};
use common::{Family, World, at, events};

/// A small generator (SplitMix64): good enough to vary a test, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

struct Net {
    world: World,
    random: Random,
    observer: Observer,
    /// SYNs that the kernel has taken in.
    backlog: VecDeque<(SocketAddr, SocketAddr)>,
    connected: BTreeMap<(SocketAddr, SocketAddr), FlowId>,
    log: Vec<String>,
    accepted: usize,
}

const MAX_CONNECTIONS: u32 = 40;
const MAX_UDP: u32 = 20;

impl Net {
    fn seeded(seed: u64) -> Net {
        let world = World::with(common::public_only(), |config| {
            config.limits.max_connections = MAX_CONNECTIONS;
            config.limits.max_udp_connections = MAX_UDP;
            config.limits.connect_timeout = Duration::from_secs(10);
        });
        let (observer, backlog, connected) = (Observer::default(), VecDeque::new(), BTreeMap::new());
        Net { world, random: Random(seed), observer, backlog, connected, log: Vec::new(), accepted: 0 }
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0..=2 => self.guest_connects(),
            3 | 4 => self.guest_sends_udp(),
            5 => self.guest_pings(),
            6 | 7 => self.network_answers_dials(),
            8 => self.network_answers_udp(),
            9 => self.network_answers_pings(),
            10 => self.a_connection_ends(),
            _ => {
                let wait = Duration::from_millis(self.random.below(4_000));
                let outputs = self.world.pass(wait);
                self.handle(&outputs);
            }
        }
        self.kernel_accepts();
        let open = self.observer.dialing.len() + self.observer.dialed.len() + self.observer.live.len();
        assert!(open <= MAX_CONNECTIONS as usize, "{open} connections");
        assert!(self.observer.udp.len() <= MAX_UDP as usize);
    }

    fn guest_connects(&mut self) {
        let family = self.random.pick(&common::BOTH);
        let to = self.random.pick(&[family.public(), family.nth_public(2), family.private(), family.gateway()]);
        let port = self.random.pick(&[80, 443, 53]);
        let guest = at(family.guest(), 1 + self.random.below(30) as u16);
        let syn = packet::syn(guest, at(to, port));
        let outputs = self.world.send(&syn);
        self.handle(&outputs);
    }

    fn guest_sends_udp(&mut self) {
        let family = self.random.pick(&common::BOTH);
        let to = self.random.pick(&[family.public(), family.nth_public(2), family.private(), family.gateway()]);
        let port = self.random.pick(&[53, 123, 443]);
        let guest = at(family.guest(), 1 + self.random.below(30) as u16);
        let payload = vec![1; self.random.below(3000) as usize];
        let outputs = self.world.send(&packet::udp(guest, at(to, port), &payload));
        self.handle(&outputs);
    }

    fn guest_pings(&mut self) {
        let family = self.random.pick(&common::BOTH);
        let to = self.random.pick(&[family.public(), family.private(), family.gateway()]);
        let ident = self.random.below(20) as u16;
        let outputs = self.world.send(&packet::ping(family.guest(), to, ident, 1, b"ping"));
        self.handle(&outputs);
    }

    fn network_answers_dials(&mut self) {
        let flows: Vec<FlowId> = self.observer.dialing.keys().copied().collect();
        for flow in flows {
            if !self.random.chance(40) {
                continue;
            }
            let failures = [
                DialError::Refused,
                DialError::NetUnreachable,
                DialError::HostUnreachable,
                DialError::TimedOut,
                DialError::Prohibited,
                DialError::Resources,
            ];
            let result = if self.random.chance(70) { Ok(()) } else { Err(self.random.pick(&failures)) };
            self.observer.dialing.remove(&flow);
            if result.is_ok() {
                self.observer.dialed.insert(flow);
            }
            let outputs = self.world.dialed(flow, result);
            assert!(!outputs.is_empty(), "an answer to a dial leads to something");
            self.handle(&outputs);
        }
    }

    fn network_answers_udp(&mut self) {
        let flows: Vec<FlowId> = self.observer.udp.keys().copied().collect();
        for flow in flows {
            let errors = [UdpError::PortUnreachable, UdpError::TooBig { mtu: 1300 }, UdpError::Resources];
            match self.random.below(4) {
                0 => {
                    let error = self.random.pick(&errors);
                    self.world.gate.handle_udp_error(self.world.now, flow, error);
                }
                3 if self.random.chance(20) => {
                    self.world.gate.handle_udp_failed(self.world.now, flow, UdpError::NetUnreachable);
                }
                1 => {
                    let payload = vec![2; self.random.below(5000) as usize];
                    let segment = self.random.pick(&[None, Some(100), Some(1400)]);
                    self.world.gate.handle_udp_reply(self.world.now, flow, &payload, segment);
                }
                _ => {}
            }
            let outputs = self.world.drain();
            self.handle(&outputs);
        }
    }

    fn network_answers_pings(&mut self) {
        let flows: Vec<FlowId> = self.observer.echo.keys().copied().collect();
        for flow in flows {
            match self.random.below(4) {
                0 => self.world.gate.handle_echo_reply(self.world.now, flow, 1, b"ping"),
                1 => {
                    let error = self.random.pick(&[EchoError::HostUnreachable, EchoError::NotPermitted]);
                    self.world.gate.handle_echo_error(self.world.now, flow, error);
                }
                _ => {}
            }
            let outputs = self.world.drain();
            self.handle(&outputs);
        }
    }

    fn kernel_accepts(&mut self) {
        while let Some((guest, remote)) = self.backlog.pop_front() {
            if self.connected.contains_key(&(guest, remote)) || self.random.chance(20) {
                continue;
            }
            let accepted = self.world.gate.handle_accepted(self.world.now, guest, remote);
            let outputs = self.world.drain();
            let Some(Accepted::Relay(flow) | Accepted::Dns(flow)) = accepted else {
                self.handle(&outputs);
                continue;
            };
            let dialed = self.observer.dialed.remove(&flow);
            assert_eq!(dialed, matches!(accepted, Some(Accepted::Relay(_))), "a relay has both ends");
            assert_eq!(remote.port() == 53, !dialed);
            assert!(self.observer.live.insert(flow));
            self.connected.insert((guest, remote), flow);
            self.accepted += 1;
            self.handle(&outputs);
        }
    }

    fn a_connection_ends(&mut self) {
        let Some((ends, flow)) = self.connected.pop_first() else { return };
        assert!(self.observer.live.remove(&flow), "{ends:?}");
        let counters = FlowCounters { bytes_out: flow.0, bytes_in: 1, ..FlowCounters::default() };
        self.world.gate.handle_closed(self.world.now, flow, CloseReason::Guest, counters);
        let outputs = self.world.drain();
        self.handle(&outputs);
    }

    fn handle(&mut self, outputs: &[Output]) {
        self.observer.see_all(outputs);
        for output in outputs {
            self.log.push(format!("{output:?}"));
            if let Output::Emit { offload, packet } = output {
                let seen = Seen::read(*offload, packet);
                if [Family::V4, Family::V6].iter().any(|family| family.guest() == seen.src) && seen.src != seen.dst {
                    self.backlog.push_back((seen.from(), seen.to()));
                }
            }
        }
    }

    fn finish(mut self) -> (usize, Vec<String>) {
        while !self.connected.is_empty() {
            self.a_connection_ends();
        }
        let outputs = self.world.pass(Duration::from_secs(200));
        self.handle(&outputs);
        assert_eq!(self.world.gate.poll_timeout(), None, "nothing is left to wait for");
        let observer = &self.observer;
        assert!(observer.dialing.is_empty() && observer.dialed.is_empty() && observer.live.is_empty(), "{observer:?}");
        assert!(observer.udp.is_empty() && observer.echo.is_empty() && observer.reported.is_empty(), "{observer:?}");
        self.world.gate.handle_shutdown(self.world.now);
        assert!(self.world.drain().is_empty());
        (self.accepted, self.log)
    }
}

fn run(seed: u64, steps: usize) -> (usize, Vec<String>) {
    let mut net = Net::seeded(seed);
    for _ in 0..steps {
        net.step();
    }
    net.finish()
}

#[test]
fn a_long_random_life_keeps_the_invariants_and_leaves_nothing_behind() {
    let accepted: usize = (0..60).map(|seed| run(seed, 600).0).sum();
    assert!(accepted > 1_000, "only {accepted} connections were ever made");
}

#[test]
fn a_seed_tells_the_whole_story() {
    for seed in 0..5 {
        assert_eq!(run(seed, 300).1, run(seed, 300).1);
    }
}

#[test]
fn a_lossy_kernel_still_connects_by_retransmission() {
    let mut world = World::new();
    let (guest, remote) = (at(Family::V4.guest(), 4000), at(Family::V4.public(), 443));
    let syn = packet::syn(guest, remote);
    let outputs = world.send(&syn);
    let [Output::Dial { flow, .. }] = outputs[..] else { panic!("{outputs:?}") };
    world.dialed(flow, Ok(()));
    // Linux sends its SYN again after 1, 3, 7 s …; the first three SYN-ACKs are lost.
    let mut emitted = 1;
    for gap in [1_000, 2_000, 2_900] {
        let outputs = world.pass(common::ms(gap));
        assert!(events(&outputs).iter().all(|event| !matches!(event, EventBody::FlowFailed { .. })), "{outputs:?}");
        emitted += world.send(&syn).len();
    }
    assert_eq!(emitted, 4);
    assert_eq!(world.gate.handle_accepted(world.now, guest, remote), Some(Accepted::Relay(flow)));
}
