//! Packets and decisions in, a file out, read by a reader of the test's own.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use cofferdam_model::{Protocol, Time};
use cofferdam_pcap::{Capture, Decision, MAX_FLOWS, MAX_HELD, Message, Origin, PATIENCE, Packet, Totals, Way};
use common::{File, icmp, read, tcp, udp};
use proptest::prelude::*;

const SYN: u8 = 2;
const ACK: u8 = 0x10;
const RST: u8 = 4;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The guest's end and a remote's, of both families.
fn families() -> [(SocketAddr, SocketAddr); 2] {
    [(at("10.0.0.2:40000"), at("192.0.2.1:443")), (at("[fd00::2]:40000"), at("[2001:db8::1]:443"))]
}

/// A capture, on whose clock a packet goes by when it is handed over.
struct Bench {
    capture: Capture,
    now: Duration,
    written: Vec<u8>,
}

impl Bench {
    fn new() -> Bench {
        let origin = Origin { hardware: "h", os: "o", application: "a", interface: "eth0", description: "d" };
        Bench { capture: Capture::new(&origin), now: Duration::ZERO, written: Vec::new() }
    }

    fn time(&self) -> Time {
        Time::ZERO + self.now
    }

    fn packet(&mut self, way: Way, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).unwrap();
        self.capture.handle_packet(self.time(), &Packet { time: self.now, way, bytes, length });
    }

    fn decide(
        &mut self,
        protocol: Protocol,
        (guest, remote): (SocketAddr, SocketAddr),
        query: Option<u16>,
        text: &str,
    ) {
        let decision = Decision { protocol, guest, remote, query, made: self.now, text: text.to_owned() };
        self.capture.handle_decision(self.time(), decision);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.capture.handle_timeout(self.time());
    }

    /// Comments of the packets that are out.
    fn comments(&mut self) -> Vec<String> {
        self.file().packets.into_iter().map(|packet| packet.comments.join("|")).collect()
    }

    fn file(&mut self) -> File {
        let (bytes, _) = self.capture.output();
        self.written.extend_from_slice(bytes);
        self.capture.clear_output();
        read(&self.written)
    }

    fn finish(mut self) -> File {
        self.capture.finish();
        self.capture.end(&Totals { seen: 9, missing: 3, ..Totals::default() });
        self.file()
    }
}

#[test]
fn the_first_packet_waits_for_its_decision_and_the_others_behind_it() {
    for ends in families() {
        let mut bench = Bench::new();
        bench.packet(Way::Outbound, &tcp(ends.0, ends.1, SYN));
        bench.packet(Way::Inbound, &icmp(ends.1.ip(), ends.0.ip(), 3));
        bench.pass(ms(150));
        assert_eq!(bench.comments(), [""; 0]);
        bench.decide(Protocol::Tcp, ends, None, "allowed");
        assert_eq!(bench.comments(), ["allowed", ""]);
        bench.packet(Way::Inbound, &tcp(ends.1, ends.0, SYN | ACK));
        assert_eq!(bench.comments(), ["allowed", "", ""]);
        assert_eq!(bench.capture.poll_timeout(), None);
    }
}

#[test]
fn a_decision_that_is_there_before_its_packet_stands_on_it() {
    for ends in families() {
        for (protocol, packet) in
            [(Protocol::Tcp, tcp(ends.0, ends.1, SYN)), (Protocol::Udp, udp(ends.0, ends.1, b"x"))]
        {
            let mut bench = Bench::new();
            bench.now = ms(1);
            bench.decide(protocol, ends, None, "allowed");
            // It went by before it was decided on.
            bench.now = ms(0);
            bench.packet(Way::Outbound, &packet);
            assert_eq!(bench.comments(), ["allowed"]);
        }
    }
}

#[test]
fn a_packet_waits_no_longer_than_its_patience_and_the_next_one_has_the_comment() {
    for ends in families() {
        let mut bench = Bench::new();
        bench.packet(Way::Outbound, &tcp(ends.0, ends.1, SYN));
        assert_eq!(bench.capture.poll_timeout(), Some(Time::ZERO + PATIENCE));
        bench.pass(PATIENCE);
        assert_eq!(bench.comments(), [""]);
        bench.decide(Protocol::Tcp, ends, None, "allowed");
        bench.packet(Way::Inbound, &tcp(ends.1, ends.0, SYN | ACK));
        bench.packet(Way::Outbound, &tcp(ends.0, ends.1, ACK));
        assert_eq!(bench.comments(), ["", "allowed", ""]);
    }
}

#[test]
fn a_later_decision_stands_on_the_packet_that_follows_it() {
    for ends in families() {
        let mut bench = Bench::new();
        bench.packet(Way::Outbound, &tcp(ends.0, ends.1, SYN));
        bench.decide(Protocol::Tcp, ends, None, "allowed");
        bench.now = ms(20);
        bench.decide(Protocol::Tcp, ends, None, "denied");
        // The request went by before, the answer after.
        bench.now = ms(10);
        bench.packet(Way::Outbound, &tcp(ends.0, ends.1, ACK));
        bench.now = ms(21);
        bench.packet(Way::Inbound, &tcp(ends.1, ends.0, RST));
        assert_eq!(bench.comments(), ["allowed", "", "denied"]);
    }
}

#[test]
fn a_later_decision_finds_its_packet_behind_others_that_wait() {
    for ends in families() {
        let mut bench = Bench::new();
        bench.packet(Way::Outbound, &tcp(ends.0, ends.1, SYN));
        bench.decide(Protocol::Tcp, ends, None, "allowed");
        bench.packet(Way::Outbound, &udp(ends.0, ends.1, b"waits"));
        bench.now = ms(1);
        bench.packet(Way::Outbound, &tcp(ends.0, ends.1, ACK));
        bench.now = ms(3);
        bench.packet(Way::Inbound, &tcp(ends.1, ends.0, RST));
        bench.now = ms(2);
        bench.decide(Protocol::Tcp, ends, None, "denied");
        bench.pass(PATIENCE);
        assert_eq!(bench.comments(), ["allowed", "", "", "denied"]);
    }
}

#[test]
fn each_query_is_a_flow_of_its_own() {
    for (guest, server) in [(at("10.0.0.2:5353"), at("10.0.0.1:53")), (at("[fd00::2]:5353"), at("[fd00::1]:53"))] {
        let mut bench = Bench::new();
        bench.packet(Way::Outbound, &udp(guest, server, &[0, 1, 9]));
        bench.packet(Way::Outbound, &udp(guest, server, &[0, 2, 9]));
        bench.decide(Protocol::Udp, (guest, server), Some(2), "two");
        bench.decide(Protocol::Udp, (guest, server), Some(1), "one");
        bench.packet(Way::Inbound, &udp(server, guest, &[0, 1, 9]));
        assert_eq!(bench.comments(), ["one", "two", ""]);
        // A decision about the flow and none of its queries.
        bench.packet(Way::Outbound, &udp(guest, server, &[0, 3, 9]));
        bench.decide(Protocol::Udp, (guest, server), None, "denied");
        bench.decide(Protocol::Udp, (guest, server), None, "again");
        bench.packet(Way::Outbound, &udp(guest, server, &[0, 4, 9]));
        assert_eq!(bench.comments()[3..], ["denied", "again"]);
    }
}

#[test]
fn pings_and_connections_into_the_sandbox_have_comments_too() {
    for (guest, remote) in families() {
        let mut bench = Bench::new();
        let (protocol, request) = if guest.is_ipv4() { (Protocol::IcmpV4, 8) } else { (Protocol::IcmpV6, 128) };
        bench.packet(Way::Outbound, &icmp(guest.ip(), remote.ip(), request));
        let without_ports = (SocketAddr::new(guest.ip(), 0), SocketAddr::new(remote.ip(), 0));
        bench.decide(protocol, without_ports, None, "denied");
        bench.packet(Way::Inbound, &tcp(remote, guest, SYN));
        bench.decide(Protocol::Tcp, (guest, remote), None, "allowed");
        assert_eq!(bench.comments(), ["denied", "allowed"]);
    }
}

#[test]
fn a_decision_about_no_packet_is_forgotten_in_time() {
    for (guest, peer) in families() {
        let mut bench = Bench::new();
        bench.decide(Protocol::Tcp, (guest, peer), None, "denied");
        bench.now = ms(5001);
        bench.packet(Way::Inbound, &tcp(peer, guest, SYN));
        bench.decide(Protocol::Tcp, (guest, peer), None, "allowed");
        assert_eq!(bench.comments(), ["allowed"]);
    }
}

#[test]
fn nothing_waits_past_the_bound_of_memory() {
    for (guest, remote) in families() {
        let mut bench = Bench::new();
        bench.packet(Way::Outbound, &udp(guest, remote, b"waits"));
        let large = udp(remote, guest, &[7; 60_000]);
        let count = MAX_HELD / large.len() + 2;
        for _ in 0..count {
            bench.packet(Way::Inbound, &large);
        }
        // The one that waited is gone, and nothing keeps those behind it.
        assert_eq!(bench.comments().len(), count + 1);
        let mut bench = Bench::new();
        for port in 1..=u16::MAX {
            bench.packet(Way::Outbound, &udp(SocketAddr::new(guest.ip(), port), remote, b""));
        }
        assert_eq!(bench.comments().len(), usize::from(u16::MAX) - cofferdam_pcap::MAX_HELD_PACKETS);
    }
}

#[test]
fn the_flow_that_is_known_longest_is_forgotten() {
    let (guest, remote) = families()[0];
    let mut bench = Bench::new();
    let first = |port| SocketAddr::new(guest.ip(), port);
    let last = u16::try_from(MAX_FLOWS + 1).unwrap();
    for port in 1..=last {
        bench.decide(Protocol::Udp, (first(port), remote), None, "decided");
    }
    for port in [1, last] {
        bench.packet(Way::Outbound, &udp(first(port), remote, b""));
    }
    bench.pass(PATIENCE);
    assert_eq!(bench.comments(), ["", "decided"]);
}

#[test]
fn the_end_lets_go_what_waits_and_says_what_is_missing() {
    for ends in families() {
        let mut bench = Bench::new();
        bench.packet(Way::Outbound, &tcp(ends.0, ends.1, SYN));
        let file = bench.finish();
        assert_eq!(file.packets.len(), 1);
        let number = |code| {
            let (_, value) = file.statistics.iter().find(|(other, _)| *other == code).unwrap();
            u64::from_le_bytes(value[..].try_into().unwrap())
        };
        assert_eq!([4, 5, 7, 8].map(number), [9, 3, 0, 6]);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Packet { out: bool, ends: usize, kind: u8, port: u16, id: u8 },
    Garbage(Vec<u8>),
    Decide { ends: usize, protocol: usize, port: u16, query: Option<u16> },
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let packet = (any::<bool>(), 0..2_usize, 0..4_u8, 1..4_u16, 0..3_u8);
    let decide = (0..2_usize, 0..4_usize, 1..4_u16, proptest::option::of(0..3_u16));
    prop_oneof![
        4 => packet.prop_map(|(out, ends, kind, port, id)| Step::Packet { out, ends, kind, port, id }),
        1 => proptest::collection::vec(any::<u8>(), 0..80).prop_map(Step::Garbage),
        3 => decide.prop_map(|(ends, protocol, port, query)| Step::Decide { ends, protocol, port, query }),
        2 => (0..120_u64).prop_map(Step::Pass),
    ]
}

proptest! {
    #[test]
    fn any_message_is_survived_and_what_is_read_is_written_alike(mut message in proptest::collection::vec(any::<u8>(), 0..120)) {
        // Half of them get past the first look.
        if let Some(first) = message.first_mut() && *first & 4 != 0 {
            *first &= 0x83;
            for (at, family) in [(9, 4), (16, 6)] {
                message.get_mut(at).into_iter().for_each(|byte| *byte = family);
            }
        }
        if let Some(read) = Message::parse(&message) {
            prop_assert_eq!(Message::parse(&read.emit()), Some(read));
        }
    }

    #[test]
    fn every_packet_is_in_the_file_once_as_it_was_and_in_order(steps in proptest::collection::vec(step(), 0..80)) {
        let mut bench = Bench::new();
        let (mut packets, mut decisions) = (Vec::new(), 0_u32);
        for step in steps {
            match step {
                Step::Packet { out, ends, kind, port, id } => {
                    let (guest, mut remote) = families()[ends];
                    let guest = SocketAddr::new(guest.ip(), port);
                    remote.set_port(if kind == 3 { 53 } else { 443 });
                    let (src, dst) = if out { (guest, remote) } else { (remote, guest) };
                    let bytes = match kind {
                        0 => tcp(src, dst, if id == 0 { SYN } else { ACK }),
                        1 => icmp(src.ip(), dst.ip(), if src.is_ipv4() { 8 } else { 128 }),
                        _ => udp(src, dst, &[0, id, 1]),
                    };
                    let way = if out { Way::Outbound } else { Way::Inbound };
                    bench.packet(way, &bytes);
                    packets.push((bench.now, way, bytes));
                }
                Step::Garbage(bytes) => {
                    bench.packet(Way::Outbound, &bytes);
                    packets.push((bench.now, Way::Outbound, bytes));
                }
                Step::Decide { ends, protocol, port, query } => {
                    let (guest, mut remote) = families()[ends];
                    let guest = SocketAddr::new(guest.ip(), port);
                    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::IcmpV4, Protocol::IcmpV6][protocol];
                    remote.set_port(if query.is_some() { 53 } else { 443 });
                    bench.decide(protocol, (guest, remote), query, &format!("decision {decisions}"));
                    decisions += 1;
                }
                Step::Pass(time) => bench.pass(ms(time)),
            }
            // Whatever waits has a time at which it goes.
            prop_assert!(bench.capture.poll_timeout().is_none_or(|until| until > bench.time()));
        }
        let file = bench.finish();
        prop_assert_eq!(file.packets.len(), packets.len());
        let mut comments = Vec::new();
        for (read, (time, way, bytes)) in file.packets.iter().zip(&packets) {
            prop_assert_eq!(&read.bytes, bytes);
            prop_assert_eq!(u128::from(read.nanoseconds), time.as_nanos());
            prop_assert_eq!(read.flags, match way { Way::Inbound => 1, Way::Outbound => 2 });
            comments.extend(read.comments.iter().cloned());
        }
        let all = comments.len();
        comments.sort();
        comments.dedup();
        prop_assert_eq!(comments.len(), all, "a decision stands on one packet");
    }
}
