//! A guest that sends anything, before a shell that answers anything: the whole gate, packet by packet.
//!
//! The input is a row of steps. A step is a byte that says what happens, a byte for its argument, and for packets a
//! length and the packet. A third of the packets are repaired first (source, lengths, checksums left to be done), so
//! that the fuzzer gets past the first look and into the tables. The observer of the gate's own tests holds every
//! output to its invariants.

#![no_main]

#[path = "../../crates/gate/tests/common/mod.rs"]
mod common;

use cofferdam_flight::Shown;
use cofferdam_gate::{
    Accepted, DialError, EchoError, FlightAnswer, Offload, Output, PartialChecksum, Published, UdpError,
};
use cofferdam_model::{CloseReason, FlowCounters, FlowId, PortId};
use common::observer::Observer;
use common::packet::{self, Seen};
use common::{BOTH, Family, World};
use libfuzzer_sys::fuzz_target;

/// Few enough for every table to overflow within one input.
const MAX_CONNECTIONS: u32 = 6;
const MAX_UDP: u32 = 4;

fuzz_target!(|input: &[u8]| {
    let mut policy = if input.first().is_some_and(|byte| byte & 1 == 0) {
        common::public_only()
    } else {
        cofferdam_model::PolicyConfig { default_egress: cofferdam_model::Action::Allow, ..Default::default() }
    };
    if input.first().is_some_and(|byte| byte & 2 != 0) {
        // A name that is denied has every flow show what it is for.
        let rule = cofferdam_policy::grammar::parse_rules("deny@bad.example").unwrap();
        policy.rules.splice(..0, rule);
    }
    let mut shell = Shell {
        world: World::with(policy, |config| {
            config.limits.max_connections = MAX_CONNECTIONS;
            config.limits.max_udp_connections = MAX_UDP;
        }),
        observer: Observer::default(),
    };
    let mut rest = input.get(1..).unwrap_or_default();
    while let [step, argument, tail @ ..] = rest {
        rest = shell.step(*step, *argument, tail);
    }
    shell.finish();
});

struct Shell {
    world: World,
    observer: Observer,
}

impl Shell {
    /// Does one step and returns what is left of the input.
    fn step<'a>(&mut self, step: u8, argument: u8, tail: &'a [u8]) -> &'a [u8] {
        let now = self.world.now;
        let number = u64::from(argument);
        let flow = FlowId(number % 16);
        match step % 12 {
            0..=4 => return self.packet(step, argument, tail),
            5 => {
                let errors =
                    [DialError::Refused, DialError::HostUnreachable, DialError::Prohibited, DialError::Resources];
                let result = match errors.get(usize::from(argument >> 4)) {
                    Some(error) => Err(*error),
                    None => Ok(()),
                };
                if self.observer.dialing.remove(&flow).is_some() && result.is_ok() {
                    self.observer.dialed.insert(flow);
                }
                self.world.gate.handle_dialed(now, flow, result);
            }
            6 => {
                self.observer.live.remove(&flow);
                self.observer.dialing.remove(&flow);
                self.observer.dialed.remove(&flow);
                self.world.gate.handle_closed(now, flow, CloseReason::Remote, FlowCounters::default());
            }
            7 => {
                let segment = if argument & 0x80 == 0 { None } else { Some(u16::from(argument & 0x7f)) };
                self.world.gate.handle_udp_reply(now, flow, &vec![1; usize::from(argument) * 300], segment);
            }
            8 => {
                let errors = [UdpError::PortUnreachable, UdpError::TooBig { mtu: 0 }, UdpError::Resources];
                let error = errors.get(usize::from(argument >> 5)).copied().unwrap_or(UdpError::Prohibited);
                self.world.gate.handle_udp_error(now, flow, error);
            }
            9 => self.world.gate.handle_echo_reply(now, flow, 1, &vec![1; usize::from(argument) * 300]),
            10 => {
                let errors = [EchoError::NotPermitted, EchoError::Resources, EchoError::HostUnreachable];
                let error = errors.get(usize::from(argument >> 5)).copied().unwrap_or(EchoError::Prohibited);
                self.world.gate.handle_echo_error(now, flow, error);
            }
            _ if number >= 0xe0 && number < 0xf0 => {
                // A peer comes to a published port, or is answered.
                let family = if argument & 1 == 0 { Family::V4 } else { Family::V6 };
                let loopback: std::net::IpAddr = if argument & 2 == 0 { "127.0.0.1" } else { "::1" }.parse().unwrap();
                let address = if argument & 4 == 0 { family.public() } else { loopback };
                let peer = common::at(address, 4000 + u16::from(argument & 3));
                let published = Published { guest_port: 7.try_into().unwrap() };
                if argument & 8 == 0 {
                    self.world.gate.handle_peer_datagram(now, (PortId(1), published), (peer, None), b"x", None);
                } else if let Some(flow) = self.observer.guest_dialing.pop_first() {
                    let result = if argument & 1 == 0 { Ok(()) } else { Err(DialError::Refused) };
                    if self.world.gate.handle_guest_dialed(now, flow, result) {
                        self.observer.live.insert(flow);
                    }
                } else {
                    self.world.gate.handle_peer(now, published, peer);
                }
            }
            _ if number >= 0xf0 => {
                // Other rules while flows are there.
                let rules = ["allow@any", "deny@any", "deny@bad.example,allow@public", "allow@good.example"];
                let rules = rules.get(usize::from(argument & 3)).copied().unwrap_or_default();
                let rules = cofferdam_policy::grammar::parse_rules(rules).unwrap();
                let policy = cofferdam_model::PolicyConfig { rules, ..Default::default() };
                let classifier = self.world.gate.policy().classifier().clone();
                let policy = cofferdam_policy::Policy::compile(&policy, classifier);
                self.world.gate.handle_policy(now, policy.into());
            }
            _ => {
                let outputs = self.world.pass(std::time::Duration::from_millis(number * number));
                self.handle(&outputs);
            }
        }
        let outputs = self.world.drain();
        self.handle(&outputs);
        tail
    }

    fn packet<'a>(&mut self, step: u8, argument: u8, tail: &'a [u8]) -> &'a [u8] {
        let [length, tail @ ..] = tail else { return &[] };
        let (bytes, rest) = tail.split_at_checked(usize::from(*length)).unwrap_or((tail, &[]));
        let outputs = match step % 12 {
            0 | 1 => {
                self.world.gate.handle_frame(self.world.now, bytes);
                self.world.drain()
            }
            _ => {
                let family = if argument & 1 == 0 { Family::V4 } else { Family::V6 };
                let (offload, packet) = repair(family, argument, bytes);
                self.world.send_with(offload, &packet)
            }
        };
        self.handle(&outputs);
        rest
    }

    /// Does what a shell would, and lets the kernel accept every other SYN.
    fn handle(&mut self, outputs: &[Output]) {
        self.observer.see_all(outputs);
        assert!(self.observer.dialing.len() + self.observer.dialed.len() <= MAX_CONNECTIONS as usize);
        assert!(self.observer.udp.len() <= MAX_UDP as usize);
        for output in outputs {
            let Output::Emit { offload, packet } = output else { continue };
            let seen = Seen::read_unsummed(*offload, packet);
            if BOTH.iter().any(|family| family.guest() == seen.dst) || seen.ports().0 % 2 == 0 {
                continue;
            }
            match self.world.gate.handle_accepted(self.world.now, seen.from(), seen.to()) {
                Some(Accepted::Relay(flow)) => {
                    assert!(self.observer.dialed.remove(&flow), "a relay without its far end");
                    assert!(self.observer.live.insert(flow));
                }
                Some(Accepted::Check(flow)) => {
                    assert!(self.observer.dialed.remove(&flow), "a relay without its far end");
                    let nameless = Shown::Tls { server_name: None, ech: false };
                    let shown = if flow.0 % 2 == 0 { Shown::Other } else { nameless };
                    match self.world.gate.handle_flight(self.world.now, flow, &shown) {
                        FlightAnswer::Pass => assert!(self.observer.live.insert(flow)),
                        FlightAnswer::Deny(_) => {
                            let counters = FlowCounters::default();
                            self.world.gate.handle_closed(self.world.now, flow, CloseReason::Policy, counters);
                        }
                    }
                }
                Some(Accepted::Dns(flow)) => assert!(self.observer.live.insert(flow)),
                None => {}
            }
            let outputs = self.world.drain();
            self.observer.see_all(&outputs);
        }
    }

    fn finish(mut self) {
        for flow in std::mem::take(&mut self.observer.live) {
            self.world.gate.handle_closed(self.world.now, flow, CloseReason::Shutdown, FlowCounters::default());
        }
        let outputs = self.world.drain();
        self.observer.see_all(&outputs);
        let outputs = self.world.pass(std::time::Duration::from_secs(200));
        self.observer.see_all(&outputs);
        assert_eq!(self.world.gate.poll_timeout(), None, "nothing is left to wait for");
        assert!(self.observer.udp.is_empty() && self.observer.echo.is_empty() && self.observer.reported.is_empty());
    }
}

/// A packet of the guest with a header that is right, around whatever the fuzzer made up.
fn repair(family: Family, argument: u8, bytes: &[u8]) -> (Offload, Vec<u8>) {
    let (protocol, field) = match argument >> 1 & 3 {
        0 => (packet::TCP, 16),
        1 => (packet::UDP, 6),
        2 => (packet::icmp_protocol(family.guest()), 2),
        _ => (argument, 0),
    };
    let to = match argument >> 3 & 3 {
        0 => family.gateway(),
        1 => family.private(),
        n => family.nth_public(u16::from(n)),
    };
    let mut body = bytes.to_vec();
    if protocol == packet::UDP && body.len() >= 8 {
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
        body[4..6].copy_from_slice(&length.to_be_bytes());
    }
    let start = if family == Family::V4 { 20 } else { 40 };
    let udp_segment = if argument & 0x80 == 0 { None } else { std::num::NonZeroU16::new(u16::from(argument & 0x1f)) };
    let offload = Offload { needs_csum: Some(PartialChecksum { start, offset: field }), udp_segment };
    (offload, packet::ip(family.guest(), to, protocol, &body))
}
