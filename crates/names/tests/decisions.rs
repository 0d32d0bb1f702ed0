//! What is answered without asking anybody, and what is asked (`names.md` §2, steps 1 to 5).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::wildcard_enum_match_arm, reason = "tests")]

mod common;

use cofferdam_model::{
    Action, Destination, EventBody, Group, Layer, PolicyLayer, PortRange, Protocol, ProtocolSet, Rule,
};
use cofferdam_names::{Families, Output, Rebinding, Transport};
use common::*;

fn open() -> World {
    World::new(all_but(vec![]))
}

fn dns_rule() -> cofferdam_model::Rule {
    let protocols = ProtocolSet::ANY.with(Protocol::Udp).with(Protocol::Tcp);
    cofferdam_model::Rule { protocols, ports: vec![PortRange { start: 53, end: 53 }], ..allow_group(Group::Host) }
}

#[test]
fn answers_nothing_that_has_no_id() {
    let mut world = open();
    for message in [&[][..], &[1]] {
        world.ask(message);
    }
    assert!(world.told.is_empty() && world.sent.is_empty());
}

#[test]
fn answers_no_responses() {
    let mut world = open();
    let mut message = query(1, "example.org", A);
    message[2] |= 0x80;
    world.ask(&message);
    world.ask(&message[..4]);
    assert!(world.told.is_empty() && world.sent.is_empty());
}

#[test]
fn answers_unreadable_messages_with_formerr() {
    let long = "a".repeat(63);
    let too_long = [long.as_str(); 4].join(".");
    let mut label_of_64 = header(9, 0x0100, [1, 0, 0, 0]);
    label_of_64.push(64);
    label_of_64.extend_from_slice(&[b'a'; 64]);
    label_of_64.extend_from_slice(&[0, 0, 1, 0, 1]);
    let messages: Vec<Vec<u8>> = vec![
        vec![0, 9],
        vec![0, 9, 1],
        header(9, 0x0100, [0, 0, 0, 0])[..11].to_vec(),
        header(9, 0x0100, [0, 0, 0, 0]),
        header(9, 0x0100, [1, 0, 0, 0]),
        [header(9, 0x0100, [2, 0, 0, 0]), question("a.example", A), question("b.example", A)].concat(),
        [header(9, 0x0100, [65535, 0, 0, 0]), question("a.example", A)].concat(),
        // A question that points: to itself, forward, and into the header.
        [header(9, 0x0100, [1, 0, 0, 0]), vec![0xc0, 12, 0, 1, 0, 1]].concat(),
        [header(9, 0x0100, [1, 0, 0, 0]), vec![0xc0, 0xff, 0, 1, 0, 1]].concat(),
        [header(9, 0x0100, [1, 0, 0, 0]), vec![0xc0, 4, 0, 1, 0, 1]].concat(),
        label_of_64,
        query(9, &too_long, A),
        [header(9, 0x0100, [1, 0, 0, 0]), vec![0x3f, b'a', b'a']].concat(),
        // Counts that lie.
        [header(9, 0x0100, [1, 1000, 0, 0]), question("a.example", A)].concat(),
        [header(9, 0x0100, [1, 0, 1, 0]), question("a.example", A)].concat(),
        [header(9, 0x0100, [1, 0, 0, 1]), question("a.example", A), vec![0, 0, 41]].concat(),
        [query(9, "a.example", A), vec![0]].concat(),
        // Two OPT records, one that does not belong to the root, one whose options overrun.
        [header(9, 0x0100, [1, 0, 0, 2]), question("a.example", A), opt(1232, 0, &[]), opt(1232, 0, &[])].concat(),
        [header(9, 0x0100, [1, 0, 0, 1]), question("a.example", A), record("x", OPT, 0, &[])].concat(),
        [header(9, 0x0100, [1, 0, 0, 1]), question("a.example", A), opt(1232, 0, &[0, 10, 0xff, 0xff])].concat(),
    ];
    for message in messages {
        let mut world = open();
        let client = world.ask(&message);
        let reply = world.reply(client).unwrap();
        assert_eq!((reply.id, reply.rcode()), (9, FORMERR), "{message:?}");
        assert!(world.sent.is_empty(), "{message:?}");
    }
}

#[test]
fn takes_the_longest_name_there_is() {
    let mut world = open();
    let longest = format!("{}.{}", ["a".repeat(63).as_str(); 3].join("."), "b".repeat(61));
    assert_eq!(encode_name(&longest).len(), 255);
    world.ask(&query(9, &longest, A));
    assert_eq!(Message::parse(&world.last().message).question.unwrap().0, longest);
}

#[test]
fn answers_other_opcodes_with_notimp() {
    for opcode in 1..16_u16 {
        let mut world = open();
        let client = world.ask(&[header(9, opcode << 11, [1, 0, 0, 0]), question("a.example", A)].concat());
        let reply = world.reply(client).unwrap();
        assert_eq!((reply.rcode(), reply.flags >> 11 & 15), (NOTIMP, opcode));
        assert!(world.sent.is_empty());
    }
}

#[test]
fn refuses_queries_that_no_stub_needs() {
    for qtype in [0, OPT, 249, 250, 251, 252, 253, 254, 255] {
        let mut world = open();
        let client = world.ask(&query(9, "a.example", qtype));
        assert_eq!(world.reply(client).unwrap().rcode(), REFUSED, "type {qtype}");
        assert!(world.sent.is_empty());
    }
    for class in [0, 3, 4, 254, 255_u16] {
        let mut world = open();
        let mut message = query(9, "version.bind", TXT);
        let end = message.len();
        message[end - 2..].copy_from_slice(&class.to_be_bytes());
        let client = world.ask(&message);
        assert_eq!(world.reply(client).unwrap().rcode(), REFUSED, "class {class}");
        assert!(world.sent.is_empty());
    }
}

#[test]
fn asks_nobody_about_a_name_that_one_layer_denies() {
    let wide = only(vec![allow_name("a.example"), allow_name("b.example")]);
    let narrow = only(vec![allow_name("a.example")]);
    for (session, policy, whose) in [(&wide, &narrow, Layer::Run), (&narrow, &wide, Layer::Session)] {
        let ceiling =
            PolicyLayer { layer: Layer::Session, policy: session.clone(), deny_doh: None, rebind_protection: true };
        let network = cofferdam_model::NetworkConfig {
            ceilings: vec![ceiling],
            policy: policy.clone(),
            ..cofferdam_policy::file::default_network()
        };
        for qtype in [A, AAAA] {
            let mut world = World::of(&network, |_| {});
            world.ask(&query(1, "a.example", qtype));
            assert_eq!(world.sent.len(), 1);
            let client = world.ask(&query(2, "b.example", qtype));
            assert_eq!((world.reply(client).unwrap().rcode(), world.sent.len()), (NXDOMAIN, 1));
            let mut rules = world.told.iter().filter_map(|output| match output {
                Output::Answered { event: EventBody::DnsQuery { rule, .. }, .. } => Some(rule.layer),
                _ => None,
            });
            assert_eq!(rules.next_back(), Some(Some(whose)));
        }
    }
}

#[test]
fn refuses_names_that_no_rule_can_speak_of() {
    for odd in ["a b.example", "a\0b.example", "*.example", "ä.example"] {
        let mut world = open();
        let client = world.ask(&query(9, odd, A));
        assert_eq!(world.reply(client).unwrap().rcode(), REFUSED, "{odd:?}");
        assert!(world.sent.is_empty());
    }
    // A dot inside a label is not a border between labels.
    let mut world = open();
    let mut message = query(9, "a-b.example", A);
    message[14] = b'.';
    let client = world.ask(&message);
    assert_eq!(world.reply(client).unwrap().rcode(), REFUSED);
}

#[test]
fn answers_unknown_versions_of_edns_with_badvers() {
    let mut world = open();
    let mut message = query_edns(9, "a.example", A, 1232, 0);
    let version = message.len() - 5;
    message[version] = 1;
    let client = world.ask(&message);
    assert_eq!(world.reply(client).unwrap().rcode(), 16);
    assert!(world.sent.is_empty());
}

#[test]
fn asks_nobody_about_a_name_that_is_denied() {
    for qtype in [A, AAAA, TXT, MX, NS, SRV, HTTPS, 1000] {
        for transport in [Transport::Udp, Transport::Tcp] {
            for server in [GATEWAY, GATEWAY6, OTHER] {
                let mut world = World::new(only(vec![allow_name("allowed.example")]));
                let client = world.ask_at(server, transport, &query(9, "stolen-data.evil.example", qtype));
                let reply = world.reply(client).unwrap();
                assert_eq!(reply.rcode(), NXDOMAIN);
                assert!(world.sent.is_empty() && world.pins().is_empty());
            }
        }
    }
}

#[test]
fn a_denial_can_be_cached_and_understood() {
    let mut world = World::new(only(vec![]));
    let client = world.ask(&query_edns(9, "Evil.example", A, 1232, 0));
    let reply = world.reply(client).unwrap();
    assert_eq!(reply.question, Some(("Evil.example".to_owned(), A)));
    assert_eq!(reply.flags & 0x8580, 0x8580, "an authoritative answer with RD and RA");
    let soa = &reply.authority[0];
    assert_eq!((soa.kind, soa.ttl, soa.data[soa.data.len() - 4..].to_vec()), (SOA, 5, vec![0, 0, 0, 5]));
    let [EventBody::DnsQuery { name, qtype, verdict, decision, rcode, answers, resolver, .. }] = &world.events()[..]
    else {
        panic!("{:?}", world.events())
    };
    assert_eq!((name.as_str(), *qtype, *verdict), ("evil.example", A, Action::Deny));
    assert_eq!((*rcode, answers.is_empty(), *resolver), (Some(3), true, None));
    let decision = decision.clone().unwrap();
    let [(15, text)] = &reply.extended_errors()[..] else { panic!("{:?}", reply.extended_errors()) };
    assert!(text.contains(&decision), "{text:?} names decision {decision}");
}

#[test]
fn a_denial_that_is_told_by_itself_is_answered_when_somebody_could_look() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut world = World::with(only(vec![]), |config| config.witness = ms(1));
        let client = world.ask_at(GATEWAY, transport, &query(9, "evil.example", A));
        let [EventBody::DnsQuery { guest, server, protocol, .. }] = &world.events()[..] else { panic!() };
        assert_eq!((*guest, *server), (Some(ends(GATEWAY).guest), Some(ends(GATEWAY).server)));
        assert_eq!(*protocol == Some(cofferdam_model::Protocol::Tcp), transport == Transport::Tcp);
        assert!(world.reply(client).is_none());
        assert_eq!(world.resolver.poll_timeout(), Some(world.now + ms(1)));
        world.pass(ms(1));
        assert_eq!(world.reply(client).unwrap().rcode(), NXDOMAIN);
        // A flood is told no more one by one, and is answered as fast as it comes.
        let waiting = (0..500).filter(|_| {
            let client = world.ask(&query(9, "evil.example", A));
            world.reply(client).is_none()
        });
        assert_eq!(waiting.count(), 99);
    }
}

#[test]
fn a_denial_has_no_opt_record_for_those_who_sent_none() {
    let mut world = World::new(only(vec![]));
    let client = world.ask(&query(9, "evil.example", A));
    assert!(world.reply(client).unwrap().additional.is_empty());
}

#[test]
fn decisions_have_ids_of_their_own() {
    let mut world = World::new(only(vec![]));
    for _ in 0..100 {
        world.ask(&query(9, "evil.example", A));
    }
    let mut ids: Vec<_> = world
        .events()
        .into_iter()
        .filter_map(|event| match event {
            EventBody::DnsQuery { decision, .. } => decision,
            _ => None,
        })
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 100);
}

#[test]
fn a_domain_rule_alone_lets_its_name_resolve() {
    for qtype in [A, AAAA, TXT] {
        let mut world = World::new(only(vec![allow_name("allowed.example")]));
        world.ask(&query(9, "ALLOWED.example", qtype));
        assert_eq!(world.sent.len(), 1);
        world.ask(&query(9, "sub.allowed.example", qtype));
        assert_eq!(world.sent.len(), 1, "the rule does not speak of names below");
    }
}

#[test]
fn a_public_rule_alone_lets_nothing_resolve() {
    let mut world = World::new(only(vec![allow_group(Group::Public), allow_net("0.0.0.0/0")]));
    let client = world.ask(&query(9, "example.org", A));
    assert_eq!(world.reply(client).unwrap().rcode(), NXDOMAIN);
    assert!(world.sent.is_empty());
}

#[test]
fn the_dns_rule_lets_names_resolve_that_are_not_denied() {
    let mut world = World::new(only(vec![deny_name("evil.example"), dns_rule()]));
    world.ask(&query(9, "example.org", A));
    world.ask(&query(9, ".", NS));
    assert_eq!(world.sent.len(), 2);
    let client = world.ask(&query(9, "evil.example", A));
    assert_eq!(world.reply(client).unwrap().rcode(), NXDOMAIN);
    assert_eq!(world.sent.len(), 2);
}

#[test]
fn the_root_needs_the_right_to_ask_at_all() {
    let mut world = World::new(only(vec![allow_name("allowed.example")]));
    let client = world.ask(&query(9, ".", NS));
    assert_eq!(world.reply(client).unwrap().rcode(), NXDOMAIN);
    assert!(world.sent.is_empty());
}

#[test]
fn the_host_has_names_and_they_have_the_gateways_addresses() {
    for host in ["host.cofferdam.internal", "host.docker.internal", "HOST.microsandbox.internal"] {
        let mut world = open();
        let v4 = world.ask(&query(9, host, A));
        let v6 = world.ask(&query(9, host, AAAA));
        let text = world.ask(&query(9, host, TXT));
        assert_eq!(world.reply(v4).unwrap().addresses(), [ip("172.16.7.1")]);
        assert_eq!(world.reply(v4).unwrap().answer[0].ttl, 60);
        assert_eq!(world.reply(v6).unwrap().addresses(), [ip("fd42:6d73:62:7::1")]);
        let text = world.reply(text).unwrap();
        assert_eq!((text.rcode(), text.answer.len()), (NOERROR, 0));
        assert!(world.sent.is_empty() && world.pins().is_empty());
    }
}

#[test]
fn the_gateways_addresses_have_a_name() {
    for reverse in
        ["1.7.16.172.in-addr.arpa", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.0.0.0.2.6.0.0.3.7.d.6.2.4.d.f.ip6.arpa"]
    {
        let mut world = open();
        let client = world.ask(&query(9, reverse, PTR));
        let reply = world.reply(client).unwrap();
        assert_eq!((reply.answer[0].kind, reply.answer[0].ttl), (PTR, 60));
        assert_eq!(reply.answer[0].data, encode_name("host.cofferdam.internal"));
        assert!(world.sent.is_empty());
    }
    let mut world = open();
    world.ask(&query(9, "2.7.16.172.in-addr.arpa", PTR));
    assert_eq!(world.sent.len(), 1, "other addresses are looked up");
}

#[test]
fn localhost_is_the_guests_own_loopback() {
    for local in ["localhost", "app.localhost"] {
        let mut world = open();
        let v4 = world.ask(&query(9, local, A));
        let v6 = world.ask(&query(9, local, AAAA));
        let mail = world.ask(&query(9, local, MX));
        assert_eq!(world.reply(v4).unwrap().addresses(), [ip("127.0.0.1")]);
        assert_eq!(world.reply(v6).unwrap().addresses(), [ip("::1")]);
        assert!(world.reply(mail).unwrap().answer.is_empty());
        assert!(world.sent.is_empty() && world.pins().is_empty());
    }
}

#[test]
fn names_that_are_not_for_dns_do_not_exist() {
    for nowhere in [
        "printer.local",
        "_ssh._tcp.local",
        "local",
        "abc.onion",
        "use-application-dns.net",
        "1.1.254.169.in-addr.arpa",
        "nobody.cofferdam.internal",
    ] {
        let mut world = open();
        let client = world.ask(&query(9, nowhere, A));
        let reply = world.reply(client).unwrap();
        assert_eq!(reply.rcode(), NXDOMAIN, "{nowhere}");
        assert_eq!(reply.authority[0].kind, SOA);
        assert!(world.sent.is_empty());
    }
    let mut world = open();
    world.ask(&query(9, "notlocal", A));
    world.ask(&query(9, "notuse-application-dns.net", A));
    assert_eq!(world.sent.len(), 2, "borders between labels count");
}

#[test]
fn a_family_that_does_not_work_has_no_addresses() {
    let cases = [(A, Families { ipv4: false, ipv6: true }), (AAAA, Families { ipv4: true, ipv6: false })];
    for (qtype, families) in cases {
        let mut world = World::with(all_but(vec![]), |config| config.families = families);
        let client = world.ask(&query(9, "example.org", qtype));
        let reply = world.reply(client).unwrap();
        assert_eq!((reply.rcode(), reply.answer.len(), world.sent.len()), (NOERROR, 0, 0));
        world.ask(&query(9, "example.org", A + AAAA - qtype));
        assert_eq!(world.sent.len(), 1);
    }
}

#[test]
fn what_is_forwarded_holds_nothing_of_the_guest_but_the_question() {
    let mut world = open();
    let cookie = [&[0, 10, 0, 8][..], b"exfiltra"].concat();
    let message = [
        header(9, 0x0130, [1, 0, 0, 2]),
        question("WWW.Example.ORG", A),
        record("stolen.example", TXT, 0, b"\x04data"),
        opt(4096, 0x8000 | 0x1234, &cookie),
    ]
    .concat();
    world.ask(&message);
    let sent = Message::parse(&world.last().message);
    assert_eq!(sent.flags, 0x0130, "RD, AD and CD");
    assert_eq!(sent.question, Some(("www.example.org".to_owned(), A)));
    assert_eq!(sent.additional.len(), 1);
    let opt = sent.opt().unwrap();
    assert_eq!((opt.class, opt.ttl, opt.data.len()), (1232, 0x8000, 0), "our size, the DO bit, no options");
    assert!(sent.answer.is_empty() && sent.authority.is_empty());
}

#[test]
fn the_configured_resolvers_are_always_asked_to_recurse() {
    let mut world = open();
    let mut message = query(9, "example.org", A);
    message[2] = 0;
    world.ask(&message);
    assert_eq!(Message::parse(&world.last().message).flags, 0x0100);
    world.ask_at(OTHER, Transport::Udp, &message);
    assert_eq!(Message::parse(&world.last().message).flags, 0);
}

#[test]
fn a_query_to_another_resolver_goes_to_exactly_that_one() {
    let mut world = open();
    let client = world.ask_at(OTHER, Transport::Udp, &query(9, "example.org", A));
    let sent = world.last();
    assert_eq!(sent.server, OTHER.parse().unwrap());
    world.pass(ms(800));
    assert!(world.sent.iter().all(|sent| sent.server == OTHER.parse().unwrap()));
    world.answer(&sent, &answer_to(&sent, 0, &[address("example.org", 300, "93.184.216.34")]));
    assert_eq!(world.reply(client).unwrap().addresses(), [ip("93.184.216.34")]);
    assert!(world.pins().is_empty(), "a resolver of the guest's choice makes no pins");
    let [EventBody::DnsQuery { resolver, .. }] = &world.events()[..] else { panic!() };
    assert_eq!(*resolver, Some(OTHER.parse().unwrap()));
}

#[test]
fn a_denied_name_is_denied_at_every_resolver() {
    let mut world = World::new(all_but(vec![deny_name("evil.example")]));
    let client = world.ask_at(OTHER, Transport::Tcp, &query(9, "evil.example", A));
    assert_eq!(world.reply(client).unwrap().rcode(), NXDOMAIN);
    assert!(world.sent.is_empty());
}

#[test]
fn under_the_default_preset_other_resolvers_can_be_asked() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut world = World::new(only(vec![dns_rule(), allow_group(Group::Public)]));
        world.ask_at(OTHER, transport, &query(9, "example.org", A));
        world.ask_at(OTHER, transport, &query(9, ".", NS));
        assert_eq!(world.sent.len(), 2);
        assert!(world.sent.iter().all(|sent| sent.server == OTHER.parse().unwrap() && sent.transport == transport));
    }
}

#[test]
fn an_any_rule_matches_the_query_itself() {
    let any = cofferdam_model::Rule {
        protocols: ProtocolSet::ANY.with(Protocol::Udp),
        ..Rule::egress(Action::Allow, Destination::Any)
    };
    let mut world = World::new(only(vec![any]));
    world.ask_at(GATEWAY, Transport::Udp, &query(9, "example.org", A));
    assert_eq!(world.sent.len(), 1);
    world.ask_at(GATEWAY, Transport::Tcp, &query(9, "example.org", A));
    assert_eq!(world.sent.len(), 1, "the rule allows UDP");
}

/// The world's policy when the machine has `address` besides the gateway's addresses.
fn reclassified(policy: &cofferdam_model::PolicyConfig, address: &str) -> std::sync::Arc<cofferdam_policy::Policy> {
    let gateway = [GATEWAY, GATEWAY6].map(|text| text.parse::<std::net::SocketAddr>().unwrap().ip());
    let addresses = gateway.into_iter().chain([ip(address)]).collect();
    let host = cofferdam_model::HostNetwork { addresses, ..Default::default() };
    cofferdam_policy::Policy::compile(policy, cofferdam_model::Classifier::new(host)).into()
}

#[test]
fn answers_are_judged_by_the_addresses_that_the_machine_has_when_they_come() {
    for (qtype, ours) in [(A, "93.184.216.34"), (AAAA, "2606:2800:220:1::34")] {
        let policy = only(vec![dns_rule(), allow_name("example.org")]);
        let mut world = World::new(policy.clone());
        let client = world.ask(&query(9, "example.org", qtype));
        world.resolver.handle_reclassified(world.now, reclassified(&policy, ours));
        let sent = world.last();
        world.answer(&sent, &answer_to(&sent, 0, &[address("example.org", 300, ours)]));
        assert_eq!(world.reply(client).unwrap().rcode(), NXDOMAIN);
        assert!(world.pins().is_empty());
        let [EventBody::DnsQuery { withheld: Some(withheld), .. }] = &world.events()[..] else { panic!() };
        assert_eq!((withheld.address, withheld.group), (ip(ours), Group::Host));
    }
}

#[test]
fn a_chosen_resolver_that_becomes_the_machines_is_asked_no_more() {
    for other in [OTHER, "[2001:4860:4860::8888]:53"] {
        let policy = all_but(vec![]);
        let mut world = World::new(policy.clone());
        let configured = world.ask(&query(8, "example.org", A));
        let chosen = world.ask_at(other, Transport::Udp, &query(9, "example.org", A));
        let asked = world.last();
        let ours = other.parse::<std::net::SocketAddr>().unwrap().ip().to_string();
        world.resolver.handle_reclassified(world.now, reclassified(&policy, &ours));
        world.drain();
        assert_eq!(world.reply(chosen).unwrap().rcode(), SERVFAIL);
        assert_eq!(world.abandoned, [asked.upstream]);
        assert!(world.reply(configured).is_none(), "the other goes on");
        world.pass(ms(900));
        assert_eq!(world.sent.iter().filter(|sent| sent.server == asked.server).count(), 1);
    }
}

/// These rules are in force from here on.
fn replace(world: &mut World, policy: &cofferdam_model::PolicyConfig) {
    let gateway = [GATEWAY, GATEWAY6].map(|text| text.parse::<std::net::SocketAddr>().unwrap().ip());
    let host = cofferdam_model::HostNetwork { addresses: gateway.to_vec(), ..Default::default() };
    let classifier = cofferdam_model::Classifier::new(host);
    let rebinding = Rebinding::guarded_by(policy, classifier.clone());
    let policy = cofferdam_policy::Policy::compile(policy, classifier).into();
    world.resolver.handle_policy(world.now, policy, rebinding);
    world.drain();
}

#[test]
fn who_waits_is_judged_by_the_rules_that_come() {
    for qtype in [A, AAAA] {
        let mut world = World::new(only(vec![allow_name("a.example"), allow_name("b.example")]));
        let denied = world.ask(&query(1, "a.example", qtype));
        let asked = world.last();
        let stays = world.ask(&query(2, "b.example", qtype));
        let going_on = world.last();
        replace(&mut world, &only(vec![allow_name("b.example")]));
        assert_eq!(world.reply(denied).unwrap().rcode(), NXDOMAIN);
        assert_eq!(world.abandoned, [asked.upstream]);
        assert!(world.reply(stays).is_none());
        let public = if qtype == A { "93.184.216.34" } else { "2606:2800:220:1::34" };
        world.answer(&going_on, &answer_to(&going_on, 0, &[address("b.example", 300, public)]));
        assert_eq!(world.reply(stays).unwrap().rcode(), 0);
        // What is remembered is judged anew each time.
        replace(&mut world, &only(vec![]));
        let sent = world.sent.len();
        let again = world.ask(&query(3, "b.example", qtype));
        assert_eq!((world.reply(again).unwrap().rcode(), world.sent.len()), (NXDOMAIN, sent));
    }
}

#[test]
fn an_answer_is_judged_by_the_rebinding_rules_that_come() {
    for (qtype, inside) in [(A, "10.0.0.5"), (AAAA, "fd00::5")] {
        let network = cofferdam_policy::grammar::parse_rules("allow@private").unwrap().remove(0);
        let wide = only(vec![dns_rule(), allow_name("a.example"), network]);
        let mut world = World::new(wide);
        let client = world.ask(&query(1, "a.example", qtype));
        let sent = world.last();
        replace(&mut world, &only(vec![dns_rule(), allow_name("a.example")]));
        world.answer(&sent, &answer_to(&sent, 0, &[address("a.example", 300, inside)]));
        assert_eq!(world.reply(client).unwrap().rcode(), NXDOMAIN);
        assert!(world.pins().is_empty());
    }
}

#[test]
fn a_chosen_resolver_that_is_denied_is_asked_no_more() {
    for other in [OTHER, "[2001:4860:4860::8888]:53"] {
        let mut world = World::new(all_but(vec![]));
        let chosen = world.ask_at(other, Transport::Udp, &query(9, "example.org", A));
        let asked = world.last();
        replace(&mut world, &only(vec![dns_rule(), allow_name("example.org")]));
        assert_eq!(world.reply(chosen).unwrap().rcode(), SERVFAIL);
        assert_eq!(world.abandoned, [asked.upstream]);
        let mut world = World::new(all_but(vec![]));
        let chosen = world.ask_at(other, Transport::Udp, &query(9, "example.org", A));
        replace(&mut world, &all_but(vec![dns_rule()]));
        assert!(world.reply(chosen).is_none(), "still allowed");
    }
}

/// How many look-ups the events stand for, and how many events there are.
fn counted(events: &[EventBody]) -> (u64, usize) {
    let count = |event: &EventBody| match event {
        EventBody::DnsQuery { count, .. } | EventBody::DnsMore { count, .. } => *count,
        other => panic!("{other:?}"),
    };
    (events.iter().map(count).sum(), events.len())
}

#[test]
fn a_flood_of_denied_names_does_not_flood_the_events_and_is_counted_in_full() {
    let mut world = World::new(only(vec![dns_rule(), deny_name("evil.example")]));
    let mut denied = World::new(only(vec![]));
    for n in 0..3000_u16 {
        world.ask(&query(n, "localhost", AAAA));
        denied.ask(&query(n, "evil.example", A));
        denied.ask(&query(n, &format!("n{n}.example"), A));
    }
    assert_eq!(world.events().len(), 100, "nobody was asked about these");
    assert_eq!(denied.events().len(), 1000);
    for world in [&mut world, &mut denied] {
        assert!(world.sent.is_empty());
        world.pass(ms(1000));
        assert_eq!(world.resolver.poll_timeout(), None);
    }
    let (looked_up, events) = counted(&world.events());
    assert_eq!((looked_up, events), (3000, 101));
    let (looked_up, events) = counted(&denied.events());
    assert_eq!(looked_up, 6000);
    assert!(events <= 1000 + 256 + 1, "{events}");
    // Half a second's worth is not over when the gateway ends.
    for n in 0..200 {
        denied.ask(&query(n, "evil.example", A));
    }
    denied.resolver.handle_shutdown();
    denied.drain();
    assert_eq!(counted(&denied.events()).0, 6200);
}

#[test]
fn look_ups_that_cost_a_query_are_all_told() {
    let mut world = open();
    for n in 0..1200_u16 {
        let name = format!("n{n}.example");
        world.ask(&query(n, &name, A));
        let sent = world.last();
        world.answer(&sent, &answer_to(&sent, 0, &[address(&name, 300, "93.184.216.34")]));
    }
    assert_eq!(counted(&world.events()), (1200, 1200));
}
