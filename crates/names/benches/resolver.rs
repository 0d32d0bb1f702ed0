//! What a query costs: in and out towards an upstream, and its answer back to the guest.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::wildcard_enum_match_arm, reason = "a bench")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_model::{Action, Classifier, Destination, Direction, HostNetwork, PolicyConfig, ProtocolSet, Rule, Time};
use cofferdam_names::{ClientId, Ends, Families, Output, Rebinding, Resolver, ResolverConfig, Transport, UpstreamId};
use cofferdam_policy::Policy;
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

const GATEWAY: ([u8; 4], u16) = ([172, 16, 7, 1], 53);

fn ends() -> Ends {
    Ends { guest: ([172, 16, 7, 2], 40_000).into(), server: GATEWAY.into() }
}

fn resolver() -> Resolver {
    let gateway: IpAddr = GATEWAY.0.into();
    let classifier = Classifier::new(HostNetwork { addresses: vec![gateway], on_link: Vec::new(), nat64: Vec::new() });
    let rule = Rule {
        action: Action::Allow,
        direction: Direction::Egress,
        destination: Destination::Domain("www.example.org".parse().unwrap()),
        protocols: ProtocolSet::ANY,
        ports: Vec::new(),
        opaque: false,
        allow_private: false,
    };
    let policy = PolicyConfig { rules: vec![rule], ..PolicyConfig::default() };
    let config = ResolverConfig {
        upstreams: vec![SocketAddr::from(([9, 9, 9, 9], 53)).into()],
        gateway: vec![gateway],
        families: Families { ipv4: true, ipv6: true },
        query_timeout: Duration::from_secs(5),
        rebinding: Rebinding::guarded_by(&policy, classifier.clone()),
        witness: Duration::ZERO,
        seed: [1; 32],
    };
    Resolver::new(config, Arc::new(Policy::compile(&policy, classifier)))
}

fn query(name: &[u8]) -> Vec<u8> {
    [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], name, &[0, 1, 0, 1]].concat()
}

const ALLOWED: &[u8] = b"\x03www\x07example\x03org\0";
const DENIED: &[u8] = b"\x03www\x07example\x03com\0";

/// Hands the query in and gives back what is sent upstream.
fn ask(resolver: &mut Resolver, message: &[u8]) -> (UpstreamId, Vec<u8>) {
    resolver.handle_query(Time::ZERO, ClientId(1), Transport::Udp, ends(), message);
    match resolver.poll_output() {
        Some(Output::Query { upstream, message, .. }) => (upstream, message),
        _ => (UpstreamId(0), Vec::new()),
    }
}

fn drain(resolver: &mut Resolver) {
    while let Some(output) = resolver.poll_output() {
        black_box(output);
    }
}

#[divan::bench]
fn query_to_forward(bencher: Bencher<'_, '_>) {
    let message = query(ALLOWED);
    bencher.with_inputs(resolver).bench_refs(|resolver| {
        black_box(ask(resolver, &message));
    });
}

#[divan::bench]
fn query_to_denial(bencher: Bencher<'_, '_>) {
    let message = query(DENIED);
    let mut resolver = resolver();
    bencher.bench_local(|| {
        resolver.handle_query(Time::ZERO, ClientId(1), Transport::Udp, ends(), &message);
        drain(&mut resolver);
    });
}

/// A question whose answer is remembered, to its answer; with its pin and its event.
#[divan::bench]
fn query_to_remembered_answer(bencher: Bencher<'_, '_>) {
    let message = query(ALLOWED);
    let mut resolver = resolver();
    let (upstream, sent) = ask(&mut resolver, &message);
    let mut answer = [&sent[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0], ALLOWED, &[0, 1, 0, 1]].concat();
    answer.extend_from_slice(b"\xc0\x0c\0\x01\0\x01\0\0\x0e\x10\0\x04\x5d\xb8\xd8\x22");
    resolver.handle_answer(Time::ZERO, upstream, &answer);
    drain(&mut resolver);
    bencher.bench_local(|| {
        resolver.handle_query(Time::ZERO, ClientId(1), Transport::Udp, ends(), &message);
        drain(&mut resolver);
    });
}

/// A CNAME and as many addresses behind it.
#[divan::bench(args = [1, 8, 64])]
fn answer_to_reply(bencher: Bencher<'_, '_>, addresses: u8) {
    let message = query(ALLOWED);
    let records = |upstream: &[u8]| {
        let mut answer =
            [&upstream[..2], &[0x81, 0x80, 0, 1, 0, addresses + 1, 0, 0, 0, 0], ALLOWED, &[0, 1, 0, 1]].concat();
        answer.extend_from_slice(b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x06\x03cdn\xc0\x10");
        for last in 0..addresses {
            answer.extend_from_slice(b"\xc0\x2d\0\x01\0\x01\0\0\0\x3c\0\x04\x5d\xb8\xd8");
            answer.push(last);
        }
        answer
    };
    let asked = || {
        let mut resolver = resolver();
        let (upstream, sent) = ask(&mut resolver, &message);
        let answer = records(&sent);
        (resolver, upstream, answer)
    };
    bencher.with_inputs(asked).bench_refs(|(resolver, upstream, answer)| {
        resolver.handle_answer(Time::ZERO, *upstream, answer);
        drain(resolver);
    });
}
