//! A guest's message and an upstream's answer to it, both made of the input; then the same message again, for what is
//! remembered.
//!
//! The first byte chooses: bit 0 TCP, bit 1 whether the query is wrapped in a good header, bit 2 whether the answer repeats
//! id and question of what was asked, bit 3 another resolver than ours. The second is the length of the query's part.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use cofferdam_model::{Action, Classifier, Group, HostNetwork, PolicyConfig, Time};
use cofferdam_names::{ClientId, Ends, Families, Output, Rebinding, Resolver, ResolverConfig, Transport};
use cofferdam_policy::Policy;
use libfuzzer_sys::fuzz_target;

struct Fixture {
    config: ResolverConfig,
    policy: Arc<Policy>,
    classifier: Classifier,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let gateway = vec![IpAddr::from([172, 16, 7, 1])];
    let classifier =
        Classifier::new(HostNetwork { addresses: gateway.clone(), on_link: Vec::new(), nat64: Vec::new() });
    let policy = PolicyConfig { default_egress: Action::Allow, ..PolicyConfig::default() };
    let config = ResolverConfig {
        upstreams: vec![SocketAddr::from(([9, 9, 9, 9], 53)).into(), SocketAddr::from(([9, 9, 9, 10], 53)).into()],
        gateway,
        families: Families { ipv4: true, ipv6: true },
        query_timeout: Duration::from_secs(5),
        rebinding: Rebinding::guarded_by(&policy, classifier.clone()),
        witness: Duration::ZERO,
        seed: [3; 32],
    };
    Fixture { config, policy: Arc::new(Policy::compile(&policy, classifier.clone())), classifier }
});

fuzz_target!(|data: &[u8]| {
    let [choice, split, rest @ ..] = data else { return };
    let (query, answer) = rest.split_at(rest.len().min(usize::from(*split)));
    let transport = if choice & 1 == 0 { Transport::Udp } else { Transport::Tcp };
    let server = if choice & 8 == 0 { [172, 16, 7, 1] } else { [8, 8, 8, 8] };
    let message = match choice & 2 {
        0 => query.to_vec(),
        _ => [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], query].concat(),
    };
    let fixture = &*FIXTURE;
    let mut resolver = Resolver::new(fixture.config.clone(), Arc::clone(&fixture.policy));
    let mut now = Time::from_nanos(1);
    let mut answered = 0;
    resolver.handle_query(now, ClientId(1), transport, ends(SocketAddr::from((server, 53))), &message);
    // Every attempt gets the same answer; there are at most two rounds and two transports for two resolvers.
    for _ in 0..32 {
        let mut sent = Vec::new();
        while let Some(output) = resolver.poll_output() {
            match output {
                Output::Query { upstream, message, .. } => sent.push((upstream, message)),
                Output::Pin { address, .. } => {
                    assert_eq!(fixture.classifier.classify(address), Group::Public);
                    assert_eq!(server, [172, 16, 7, 1], "pinned what a resolver of the guest's choice said");
                }
                Output::Answer { message: reply, .. } => {
                    answered += 1;
                    assert!(reply.len() >= 12 && reply.len() <= 65_535);
                    assert_eq!(reply[..2], message[..2]);
                }
                Output::Ask { .. } | Output::Abandon { .. } | Output::Ignore { .. } | Output::Event(_) | Output::Answered { .. } => {}
            }
        }
        for (upstream, asked) in sent {
            let reply = match choice & 4 {
                0 => answer.to_vec(),
                _ => answer_to(&asked, answer),
            };
            resolver.handle_answer(now, upstream, &reply);
        }
        match resolver.poll_timeout() {
            Some(due) => now = due,
            None => break,
        }
        resolver.handle_timeout(now);
    }
    while let Some(output) = resolver.poll_output() {
        answered += usize::from(matches!(output, Output::Answer { .. }));
    }
    assert!(answered <= 1);
    assert_eq!(resolver.poll_timeout(), None, "still waiting");
    ask_again(fixture, &mut resolver, now, transport, SocketAddr::from((server, 53)), &message);
});

/// Once more, a while later: what is remembered is as good as what is new, and gives no more away.
fn ask_again(
    fixture: &Fixture,
    resolver: &mut Resolver,
    now: Time,
    transport: Transport,
    server: SocketAddr,
    message: &[u8],
) {
    let mut answered = 0;
    resolver.handle_query(now + Duration::from_secs(3), ClientId(2), transport, ends(server), message);
    while let Some(output) = resolver.poll_output() {
        match output {
            Output::Pin { address, .. } => {
                assert_eq!(answered, 0, "answered before it was pinned");
                assert_eq!(fixture.classifier.classify(address), Group::Public);
                assert_eq!(server.ip(), IpAddr::from([172, 16, 7, 1]));
            }
            Output::Answer { message: reply, .. } => {
                answered += 1;
                assert_eq!(reply[..2], message[..2]);
            }
            Output::Query { .. }
            | Output::Ask { .. }
            | Output::Abandon { .. }
            | Output::Ignore { .. }
            | Output::Event(_)
            | Output::Answered { .. } => {}
        }
    }
    assert!(answered <= 1);
}

/// `tail` (flags, three counts, records) behind the id and the question that were asked.
fn answer_to(asked: &[u8], tail: &[u8]) -> Vec<u8> {
    // What we send ends with an OPT record of eleven bytes.
    let (question, _) = asked[12..].split_at(asked.len() - 12 - 11);
    let (head, records) = tail.split_at(tail.len().min(8));
    let mut answer = asked[..2].to_vec();
    let mut header = [0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    if let [flags, rcode, a, b, c, ..] = head {
        header = [0x80 | (flags & 0x07), *rcode, 0, 1, 0, *a, 0, *b, 0, *c];
    }
    answer.extend_from_slice(&header);
    answer.extend_from_slice(question);
    answer.extend_from_slice(records);
    answer
}

fn ends(server: SocketAddr) -> Ends {
    Ends { guest: SocketAddr::from(([172, 16, 7, 2], 40_000)), server }
}
