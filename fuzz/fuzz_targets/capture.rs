//! Frames that a guest may send and messages about decisions, in any order: what comes out is read by the tests' own reader, and
//! every frame is in it once.
//!
//! The input is a row of steps: a byte that says what it is, a length, and as many bytes. Frames are taken as they are, or put
//! behind the head of an IP packet of the right lengths first, so that the fuzzer gets to ports and ids.

#![no_main]

#[path = "../../crates/pcap/tests/common/mod.rs"]
mod common;

use std::net::SocketAddr;
use std::time::Duration;

use cofferdam_model::Time;
use cofferdam_pcap::{Capture, Message, Origin, Packet, Totals, Way};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let origin = Origin { hardware: "h", os: "o", application: "a", interface: "eth0", description: "d" };
    let mut capture = Capture::new(&origin);
    let (mut frames, mut written, mut now) = (Vec::new(), Vec::new(), Time::ZERO);
    let ends: [[SocketAddr; 2]; 2] =
        [["10.0.0.2:1", "192.0.2.1:443"], ["[fd00::2]:1", "[2001:db8::1]:443"]].map(|pair| pair.map(|end| end.parse().unwrap()));
    let mut rest = input;
    while let [step, length, tail @ ..] = rest {
        let (bytes, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        rest = tail;
        let way = if step & 0x80 == 0 { Way::Outbound } else { Way::Inbound };
        let [guest, remote] = ends[usize::from(step >> 6 & 1)];
        match step & 7 {
            0 => now = now + Duration::from_millis((*length).into()),
            1 => {
                if let Some(Message::Decision(decision)) = Message::parse(bytes) {
                    assert_eq!(Message::parse(&Message::Decision(decision.clone()).emit()), Some(Message::Decision(decision.clone())));
                    capture.handle_decision(now, decision);
                }
            }
            kind => {
                let protocol = [6, 17, 1, 58, 44][usize::from(kind) % 5];
                let frame = if kind == 2 { bytes.to_vec() } else { common::frame(protocol, guest, remote, bytes) };
                let time = Duration::from_nanos(now.as_nanos());
                let length = u32::try_from(frame.len()).unwrap();
                capture.handle_packet(now, &Packet { time, way, bytes: &frame, length });
                frames.push(frame);
            }
        }
        capture.handle_timeout(now);
        assert!(capture.poll_timeout().is_none_or(|until| until > now));
        written.extend_from_slice(capture.output().0);
        capture.clear_output();
    }
    capture.finish();
    capture.end(&Totals::default());
    written.extend_from_slice(capture.output().0);
    let read: Vec<_> = common::read(&written).packets.into_iter().map(|packet| packet.bytes).collect();
    assert!(read == frames);
});
