//! What an upstream's answer may tell the guest, and what it pins (`names.md` §2 step 6, §3, §4).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::wildcard_enum_match_arm, reason = "tests")]

mod common;

use cofferdam_model::{
    Action, EventBody, Group, Layer, NetworkConfig, PolicyConfig, PolicyLayer, Protocol, ProtocolSet, Rule,
};
use cofferdam_names::{Output, Rebinding, Transport};
use common::*;

/// Asks for `example.org` and gets `records` for an answer.
fn resolve(policy: PolicyConfig, qtype: u16, records: &[Vec<u8>]) -> (World, Message) {
    let mut world = World::new(policy);
    let client = world.ask(&query_edns(0x1234, "example.org", qtype, 4096, 0));
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, 0, records));
    let reply = world.reply(client).unwrap();
    (world, reply)
}

fn open() -> PolicyConfig {
    all_but(vec![])
}

#[test]
fn id_case_and_rd_come_back_as_they_were() {
    for (rd, qtype, data) in [(0x0100, A, "93.184.216.34"), (0, AAAA, "2606:2800::1")] {
        let mut world = World::new(open());
        let mut message = query(0x1234, "wWw.eXample.oRg", qtype);
        message[2..4].copy_from_slice(&u16::to_be_bytes(rd));
        let client = world.ask(&message);
        let sent = world.last();
        world.answer(&sent, &answer_to(&sent, 0, &[address("www.example.org", 77, data)]));
        let reply = world.reply(client).unwrap();
        assert_eq!((reply.id, reply.flags), (0x1234, 0x8080 | rd));
        assert_eq!(reply.question, Some(("wWw.eXample.oRg".to_owned(), qtype)));
        assert_eq!(reply.answer[0].name, "wWw.eXample.oRg");
        assert_eq!((reply.addresses(), reply.answer[0].ttl), (vec![ip(data)], 77));
    }
}

#[test]
fn an_answer_is_pinned_before_it_is_released() {
    for text in ["93.184.216.34", "2606:2800::1"] {
        let records = [address("example.org", 30, text), address("example.org", 30, "93.184.216.35")];
        let (world, _) = resolve(open(), qtype_of(text), &records);
        let expected = |text| ("example.org".to_owned(), false, ip(text), 30);
        assert_eq!(world.pins(), [expected(text), expected("93.184.216.35")]);
        let answered = world.told.iter().position(|output| matches!(output, Output::Answer { .. })).unwrap();
        assert_eq!(answered, 2, "both pins come first: {:?}", world.told);
    }
}

#[test]
fn the_names_of_the_chain_are_pinned_as_aliases() {
    for (text, ttl) in [("93.184.216.34", 50), ("2606:2800::1", 50)] {
        // Out of order on purpose: the order of records means nothing.
        let records = [
            address("end.cdn.example", ttl, text),
            cname("Middle.example", 20, "end.CDN.example"),
            cname("example.org", 300, "middle.example"),
        ];
        let (world, reply) = resolve(open(), qtype_of(text), &records);
        assert_eq!(reply.answer.len(), 3);
        let pin = |name: &str, alias| (name.to_owned(), alias, ip(text), 20);
        let expected = [pin("example.org", false), pin("middle.example", true), pin("end.cdn.example", true)];
        assert_eq!(world.pins(), expected, "with the shortest TTL of the chain");
    }
}

#[test]
fn records_beside_the_chain_are_neither_delivered_nor_pinned() {
    for (good, evil) in [("93.184.216.34", "6.6.6.6"), ("2606:2800::1", "2606:2800::666")] {
        let records = [
            address("example.org", 60, good),
            address("bank.example", 60, evil),
            cname("other.example", 60, "example.org"),
            record("bank.example", TXT, 60, b"\x04evil"),
        ];
        let (world, reply) = resolve(open(), qtype_of(good), &records);
        assert_eq!(reply.answer.len(), 1);
        assert_eq!(reply.addresses(), [ip(good)]);
        assert_eq!(world.pins(), [("example.org".to_owned(), false, ip(good), 60)]);
    }
}

#[test]
fn a_name_with_a_cname_has_no_address_of_its_own() {
    let records = [
        cname("example.org", 60, "end.example"),
        cname("example.org", 60, "second.example"),
        address("example.org", 60, "6.6.6.6"),
        address("second.example", 60, "6.6.6.7"),
        address("end.example", 60, "93.184.216.34"),
    ];
    let (world, reply) = resolve(open(), A, &records);
    assert_eq!(reply.addresses(), [ip("93.184.216.34")]);
    assert!(world.pins().iter().all(|(_, _, address, _)| *address == ip("93.184.216.34")));
}

#[test]
fn a_chain_without_sense_is_servfail() {
    let long: Vec<_> = (0..20).map(|n| cname(&format!("n{n}.example"), 9, &format!("n{}.example", n + 1))).collect();
    let long = [vec![cname("example.org", 9, "n0.example")], long].concat();
    let cases = [
        vec![cname("example.org", 9, "example.org")],
        vec![cname("example.org", 9, "b.example"), cname("b.example", 9, "example.org")],
        vec![cname("example.org", 9, "a b.example"), address("a b.example", 9, "93.184.216.34")],
        long,
    ];
    for records in cases {
        let (world, reply) = resolve(open(), A, &records);
        assert_eq!((reply.rcode(), reply.answer.len()), (SERVFAIL, 0));
        assert!(world.pins().is_empty());
    }
}

/// `names.md` §3 and the table of `policy.md` §1, the forms that carry an IPv4 address included.
const NOT_PUBLIC: [&str; 31] = [
    "10.77.0.5",
    "192.168.77.50",
    "172.20.0.5",
    "127.0.0.1",
    "127.9.9.9",
    "169.254.169.254",
    "169.254.1.1",
    "100.64.0.9",
    "100.100.100.200",
    "168.63.129.16",
    "0.0.0.0",
    "0.1.2.3",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "198.51.100.1",
    "172.16.7.1",
    "::1",
    "::",
    "fd12:3456:789a::5",
    "fe80::1",
    "ff02::1",
    "fd00:ec2::254",
    "::ffff:10.77.0.5",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::10.77.0.5",
    "64:ff9b::a4d:5",
    "64:ff9b::a9fe:a9fe",
    "2002:a4d:5::1",
    "2001:0:0a4d:5::1",
];

#[test]
fn an_address_that_is_not_public_blocks_the_whole_answer() {
    for text in NOT_PUBLIC {
        let public = if ip(text).is_ipv4() { "93.184.216.34" } else { "2606:2800::1" };
        let direct = vec![address("example.org", 1, text)];
        let mixed = vec![address("example.org", 1, public), address("example.org", 1, text)];
        let chained = vec![cname("example.org", 1, "inner.example"), address("inner.example", 1, text)];
        for records in [direct, mixed, chained] {
            let (world, reply) = resolve(open(), qtype_of(text), &records);
            assert_eq!((reply.rcode(), reply.answer.len()), (NXDOMAIN, 0), "{text}");
            assert!(world.pins().is_empty(), "{text}");
            let [(15, why)] = &reply.extended_errors()[..] else { panic!("{reply:?}") };
            let [EventBody::DnsQuery { verdict, decision, answers, withheld, rule, .. }] = &world.events()[..] else {
                panic!()
            };
            assert_eq!((*verdict, answers.len()), (Action::Deny, 0));
            assert_eq!(withheld.unwrap().address, ip(text));
            assert!(why.contains(decision.as_ref().unwrap()));
            assert!(rule.text.contains(&ip(text).to_string()), "{rule:?}");
        }
    }
}

#[test]
fn an_explicit_rule_lets_its_addresses_through() {
    let cases = [
        (allow_net("10.77.0.0/16"), "10.77.0.5"),
        (allow_net("10.77.0.5/32"), "10.77.0.5"),
        (allow_group(Group::Private), "10.77.0.5"),
        (allow_group(Group::Private), "fd12::5"),
        (allow_net("fd12::/16"), "fd12::5"),
        (allow_group(Group::LinkLocal), "169.254.1.1"),
        (allow_group(Group::Host), "172.16.7.1"),
    ];
    for (allow, text) in cases {
        let policy = all_but(vec![allow]);
        let (world, reply) = resolve(policy, qtype_of(text), &[address("example.org", 60, text)]);
        assert_eq!(reply.addresses(), [ip(text)], "{text}");
        assert_eq!(world.pins().len(), 1);
    }
}

#[test]
fn rules_that_are_not_explicit_let_no_address_through() {
    let with_port =
        |rule| cofferdam_model::Rule { ports: vec![cofferdam_model::PortRange { start: 443, end: 443 }], ..rule };
    let inwards =
        cofferdam_model::Rule { direction: cofferdam_model::Direction::Ingress, ..allow_group(Group::Private) };
    let denied = Rule::egress(Action::Deny, cofferdam_model::Destination::Cidr("10.77.0.0/24".parse().unwrap()));
    let cases = [
        vec![Rule::egress(Action::Allow, cofferdam_model::Destination::Any)],
        vec![with_port(allow_net("10.77.0.0/16"))],
        vec![with_port(allow_group(Group::Private))],
        vec![inwards],
        vec![allow_name("example.org")],
        vec![denied, allow_net("10.0.0.0/8")],
    ];
    for rules in cases {
        let (_, reply) = resolve(all_but(rules.clone()), A, &[address("example.org", 60, "10.77.0.5")]);
        assert_eq!(reply.rcode(), NXDOMAIN, "{rules:?}");
    }
}

#[test]
fn the_rule_that_allows_a_name_may_let_it_lead_inside() {
    let inside = ["10.77.0.5", "100.64.0.1", "fd12::5", "169.254.1.1", "fe80::5", "::ffff:10.77.0.5", "64:ff9b::a4d:5"];
    for text in inside {
        let policy = only(vec![allow_name_inside("example.org")]);
        let records = [cname("example.org", 60, "www.inner.example"), address("www.inner.example", 60, text)];
        let (mut world, reply) = resolve(policy, qtype_of(text), &records);
        assert_eq!((reply.rcode(), reply.addresses()), (NOERROR, vec![ip(text)]), "{text}");
        assert_eq!(world.pins().len(), 2, "{text}");
        // Remembered, and judged again.
        let sent = world.sent.len();
        let client = world.ask(&query(2, "example.org", qtype_of(text)));
        assert_eq!((world.reply(client).unwrap().addresses(), world.sent.len()), (vec![ip(text)], sent), "{text}");
    }
}

#[test]
fn what_another_rule_says_lets_no_name_lead_inside() {
    let inside = || allow_name_inside("example.org");
    let cases = [
        vec![allow_name_inside("other.example")],
        // The first that matches the name is the one that allows it.
        vec![allow_name("example.org"), inside()],
        vec![allow_group(Group::Host), inside()],
    ];
    for rules in cases {
        for text in ["10.77.0.5", "fd12::5"] {
            let (world, reply) = resolve(all_but(rules.clone()), qtype_of(text), &[address("example.org", 60, text)]);
            assert_eq!((reply.rcode(), world.pins().len()), (NXDOMAIN, 0), "{text} {rules:?}");
        }
    }
}

#[test]
fn a_rule_for_pings_lets_no_name_lead_inside() {
    for (text, protocol) in [("10.77.0.5", Protocol::IcmpV4), ("fd12::5", Protocol::IcmpV6)] {
        let net = || allow_net(&format!("{text}/{}", if ip(text).is_ipv4() { 32 } else { 128 }));
        for (protocols, rcode) in
            [(ProtocolSet::ANY.with(protocol), NXDOMAIN), (ProtocolSet::ANY.with(Protocol::Udp), 0)]
        {
            let rules = vec![Rule { protocols, ..net() }];
            let (_, reply) = resolve(all_but(rules), qtype_of(text), &[address("example.org", 60, text)]);
            assert_eq!(reply.rcode(), rcode, "{text} {protocols:?}");
        }
    }
}

#[test]
fn a_name_leads_inside_only_by_an_exception_of_every_layer() {
    let by_name = || only(vec![allow_name_inside("example.org")]);
    let by_address =
        |text: &str| all_but(vec![allow_net(&format!("{text}/{}", if ip(text).is_ipv4() { 8 } else { 32 }))]);
    let none = || all_but(Vec::new());
    for text in ["10.0.0.0", "fd12::"] {
        let cases = [
            (by_name(), by_name(), true, true),
            (by_name(), by_address(text), true, true),
            (by_address(text), by_name(), true, true),
            (by_address(text), by_address(text), true, true),
            (none(), by_name(), true, false),
            (by_name(), none(), true, false),
            (by_address(text), none(), true, false),
            // A layer that asks for no protection excepts everything, and nothing for the others.
            (none(), by_name(), false, true),
            (none(), none(), false, false),
        ];
        for (session, policy, rebind_protection, delivered) in cases {
            let ceiling = PolicyLayer { layer: Layer::Session, policy: session, deny_doh: None, rebind_protection };
            let network =
                NetworkConfig { ceilings: vec![ceiling], policy, ..cofferdam_policy::file::default_network() };
            let mut world = World::of(&network, |_| {});
            let client = world.ask(&query(1, "example.org", qtype_of(text)));
            let sent = world.last();
            world.answer(&sent, &answer_to(&sent, 0, &[address("example.org", 60, text)]));
            let rcode = if delivered { NOERROR } else { NXDOMAIN };
            assert_eq!(world.reply(client).unwrap().rcode(), rcode, "{text} {network:?}");
            assert_eq!(world.pins().len(), usize::from(delivered));
        }
    }
}

#[test]
fn no_rule_for_a_name_lets_it_lead_to_the_host_or_to_credentials() {
    let never = [
        "169.254.169.254",
        "fd00:ec2::254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "::",
        "172.16.7.1",
        "fd42:6d73:62:7::1",
    ];
    for text in never {
        let policy = only(vec![allow_name_inside("example.org")]);
        let (world, reply) = resolve(policy, qtype_of(text), &[address("example.org", 60, text)]);
        assert_eq!((reply.rcode(), world.pins().len()), (NXDOMAIN, 0), "{text}");
    }
}

#[test]
fn some_addresses_are_never_reached_by_name() {
    let cases = [
        (allow_group(Group::Metadata), "169.254.169.254"),
        (allow_net("169.254.169.254/32"), "169.254.169.254"),
        (allow_group(Group::Metadata), "fd00:ec2::254"),
        (allow_group(Group::Metadata), "::ffff:169.254.169.254"),
        (allow_group(Group::Loopback), "127.0.0.1"),
        (allow_net("::1/128"), "::1"),
        (allow_group(Group::Reserved), "0.0.0.0"),
        (allow_group(Group::Reserved), "::"),
    ];
    for (allow, text) in cases {
        let (_, reply) = resolve(all_but(vec![allow]), qtype_of(text), &[address("example.org", 60, text)]);
        assert_eq!(reply.rcode(), NXDOMAIN, "{text}");
    }
}

#[test]
fn each_answer_is_judged_for_itself() {
    let mut world = World::new(open());
    let mut outcomes = Vec::new();
    for text in ["93.184.216.34", "10.77.0.5", "93.184.216.34"] {
        let client = world.ask(&query(1, "flip.example", A));
        let sent = world.last();
        world.answer(&sent, &answer_to(&sent, 0, &[address("flip.example", 0, text)]));
        outcomes.push(world.reply(client).unwrap().rcode());
    }
    assert_eq!(outcomes, [NOERROR, NXDOMAIN, NOERROR]);
}

#[test]
fn protection_can_be_switched_off() {
    let mut world = World::with(open(), |config| config.rebinding = Rebinding::Allow);
    let client = world.ask(&query(1, "intranet.example", A));
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, 0, &[address("intranet.example", 60, "10.77.0.5")]));
    assert_eq!(world.reply(client).unwrap().addresses(), [ip("10.77.0.5")]);
    assert_eq!(world.pins().len(), 1);
}

#[test]
fn the_guests_own_resolver_is_held_to_rebinding_protection_too() {
    let mut world = World::new(open());
    let client = world.ask_at(OTHER, Transport::Udp, &query(1, "rb.example", A));
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, 0, &[address("rb.example", 60, "10.77.0.5")]));
    assert_eq!(world.reply(client).unwrap().rcode(), NXDOMAIN);
}

#[test]
fn glue_is_filtered_without_a_word() {
    let mut world = World::new(open());
    let client = world.ask(&query_edns(1, "example.org", MX, 4096, 0));
    let sent = world.last();
    let mx = record("example.org", MX, 60, &[&[0, 5][..], &encode_name("mx.example.org")].concat());
    let ns = record("example.org", NS, 60, &encode_name("ns.example.org"));
    let glue = [address("mx.example.org", 60, "93.184.216.34"), address("mx.example.org", 60, "10.77.0.5")];
    world.answer(&sent, &sections_to(&sent, 0x8180, &[mx], &[ns], &glue));
    let reply = world.reply(client).unwrap();
    assert_eq!((reply.answer.len(), reply.authority.len()), (1, 1));
    assert_eq!(reply.answer[0].data, [&[0, 5][..], &encode_name("mx.example.org")].concat());
    let glue: Vec<_> = reply.additional.iter().filter(|record| record.kind == A).map(|record| &record.data).collect();
    assert_eq!(glue, [&vec![93, 184, 216, 34]]);
    assert!(world.pins().is_empty(), "glue is no answer");
}

#[test]
fn other_record_types_pass_as_they_came() {
    for (kind, data) in [(TXT, &b"\x05hello\x05world"[..]), (257, b"\0\x05issueca.example"), (65280, b"\xc0\x0c\xff")] {
        let (_, reply) = resolve(open(), kind, &[record("example.org", kind, 9, data)]);
        assert_eq!((reply.answer[0].kind, reply.answer[0].ttl), (kind, 9));
        assert_eq!(reply.answer[0].data, data);
    }
}

#[test]
fn compressed_names_in_data_are_understood() {
    let mut world = World::new(open());
    let client = world.ask(&query(1, "example.org", MX));
    let sent = world.last();
    // MX 10 mail.<pointer to the qname>, owned by <pointer to the qname>; A for <pointer into that data>.
    let start = 12 + question("example.org", MX).len();
    let mut message = answer_to(&sent, 0, &[]);
    message[7] = 1;
    message[11] = 1;
    message.extend_from_slice(b"\xc0\x0c\0\x0f\0\x01\0\0\0\x09\0\x09\0\x0a\x04mail\xc0\x0c");
    let pointer = u16::try_from(start + 14).unwrap() | 0xc000;
    message.extend_from_slice(&pointer.to_be_bytes());
    message.extend_from_slice(b"\0\x01\0\x01\0\0\0\x09\0\x04\x5d\xb8\xd8\x22");
    world.answer(&sent, &message);
    let reply = world.reply(client).unwrap();
    assert_eq!(reply.answer[0].data, [&[0, 10][..], &encode_name("mail.example.org")].concat());
    assert_eq!(reply.additional[0].name, "mail.example.org");
    assert_eq!(reply.length, message.len(), "written as small as it came");
}

#[test]
fn answers_that_cannot_be_understood_are_not_passed_on() {
    let looping = |sent: &Sent, pointer: u16| {
        let mut message = answer_to(sent, 0, &[]);
        message[7] = 1;
        message.extend_from_slice(&(0xc000 | pointer).to_be_bytes());
        message.extend_from_slice(b"\0\x01\0\x01\0\0\0\x09\0\x04\x5d\xb8\xd8\x22");
        message
    };
    let at = 12 + u16::try_from(question("example.org", A).len()).unwrap();
    type Make<'a> = Box<dyn Fn(&Sent) -> Vec<u8> + 'a>;
    let cases: Vec<Make<'_>> = vec![
        Box::new(|sent| looping(sent, at)),
        Box::new(|sent| looping(sent, at + 2)),
        Box::new(|sent| looping(sent, 0x3fff)),
        Box::new(|sent| looping(sent, 4)),
        Box::new(|sent| {
            let mut message = answer_to(sent, 0, &[address("example.org", 9, "93.184.216.34")]);
            message[7] = 200;
            message
        }),
        Box::new(|sent| answer_to(sent, 0, &[record("example.org", A, 9, &[93, 184, 216])])),
        Box::new(|sent| answer_to(sent, 0, &[record("example.org", A, 9, &[10, 77, 0, 5, 0])])),
        Box::new(|sent| answer_to(sent, 0, &[record("example.org", AAAA, 9, &[0; 15])])),
        Box::new(|sent| answer_to(sent, 0, &[record("example.org", CNAME, 9, &[3, b'a', b'b'])])),
        Box::new(|sent| answer_to(sent, 0, &[record("example.org", CNAME, 9, b"\x01a\0\0")])),
        Box::new(|sent| answer_to(sent, 0, &[record(&["a".repeat(63).as_str(); 4].join("."), A, 9, &[1, 2, 3, 4])])),
    ];
    for (number, make) in cases.iter().enumerate() {
        let mut world = World::with(open(), |config| config.upstreams.truncate(1));
        let client = world.ask(&query(1, "example.org", A));
        let sent = world.last();
        world.answer(&sent, &make(&sent));
        let reply = world.reply(client).unwrap_or_else(|| panic!("case {number} was not answered"));
        assert_eq!((reply.rcode(), reply.answer.len()), (SERVFAIL, 0), "case {number}");
        assert!(world.pins().is_empty());
    }
}

#[test]
fn rcodes_are_kept_apart() {
    for rcode in [FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED] {
        let mut world = World::new(open());
        let client = world.ask(&query(1, "example.org", A));
        let sent = world.last();
        let soa = record("org", SOA, 900, &[encode_name("ns.org"), encode_name("root.org"), vec![0; 20]].concat());
        let forged = [address("example.org", 60, "93.184.216.34")];
        world.answer(&sent, &sections_to(&sent, 0x8180 | rcode, &forged, &[soa], &[]));
        let reply = world.reply(client).unwrap();
        assert_eq!(reply.rcode(), rcode);
        assert_eq!((reply.answer.len(), reply.authority.len()), (0, 1), "no address beside an error");
        assert!(world.pins().is_empty());
        assert_eq!(world.sent.len(), 1, "any rcode is final");
    }
}

#[test]
fn a_bare_refusal_is_an_answer() {
    let mut world = World::new(open());
    let client = world.ask(&query(1, "example.org", A));
    let sent = world.last();
    let id = Message::parse(&sent.message).id;
    world.answer(&sent, &header(id, 0x8185, [0; 4]));
    assert_eq!(world.reply(client).unwrap().rcode(), REFUSED);
}

#[test]
fn an_empty_answer_stays_empty() {
    let (world, reply) = resolve(open(), A, &[]);
    assert_eq!((reply.rcode(), reply.answer.len(), world.pins().len()), (NOERROR, 0, 0));
}

#[test]
fn addresses_of_a_family_that_does_not_work_are_left_out() {
    let mut world = World::with(open(), |config| config.families.ipv6 = false);
    let client = world.ask(&query(1, "example.org", A));
    let sent = world.last();
    let records = [address("example.org", 60, "93.184.216.34"), address("example.org", 60, "2606:2800::1")];
    world.answer(&sent, &answer_to(&sent, 0, &records));
    assert_eq!(world.reply(client).unwrap().addresses(), [ip("93.184.216.34")]);
    assert_eq!(world.pins().len(), 1);
}

#[test]
fn two_hundred_addresses_are_all_pinned_and_more_are_cut_from_both() {
    for (count, kept) in [(200, 200), (1000, 256)] {
        let records: Vec<_> =
            (0..count).map(|n| address("example.org", 60, &format!("45.33.{}.{}", n / 200, n % 200 + 1))).collect();
        let mut world = World::new(open());
        let client = world.ask_at(GATEWAY, Transport::Tcp, &query(1, "example.org", A));
        let sent = world.last();
        assert_eq!(sent.transport, Transport::Tcp);
        world.answer(&sent, &answer_to(&sent, 0, &records));
        let delivered = world.reply(client).unwrap().addresses();
        let pinned: Vec<_> = world.pins().into_iter().map(|(_, _, address, _)| address).collect();
        assert_eq!((delivered.len(), delivered), (kept, pinned));
    }
}

#[test]
fn what_does_not_fit_is_truncated_with_the_question_kept() {
    let records: Vec<_> =
        (0..14).map(|_| record("example.org", TXT, 1, &[&[255][..], &[b'A'; 255]].concat())).collect();
    let cases = [(None, true), (Some(100), true), (Some(1232), true), (Some(4096), false), (Some(65535), false)];
    for (size, truncated) in cases {
        let mut world = World::new(open());
        let message =
            size.map_or_else(|| query(1, "example.org", TXT), |size| query_edns(1, "example.org", TXT, size, 0));
        let client = world.ask(&message);
        let sent = world.last();
        world.answer(&sent, &answer_to(&sent, 0, &records));
        let reply = world.reply(client).unwrap();
        assert_eq!(reply.is_truncated(), truncated, "{size:?}");
        assert_eq!(reply.question, Some(("example.org".to_owned(), TXT)));
        assert_eq!(reply.answer.len(), if truncated { 0 } else { 14 });
        assert_eq!(reply.opt().is_some(), size.is_some());
        let limit = usize::from(size.unwrap_or(512)).clamp(512, 4096);
        assert!(reply.length <= limit);
        if truncated {
            let client = world.ask_at(GATEWAY, Transport::Tcp, &query(2, "example.org", TXT));
            assert_eq!(world.reply(client).unwrap().answer.len(), 14);
            assert_eq!(world.sent.len(), 1, "the whole answer was there already");
        }
    }
}

#[test]
fn courtesies_go_before_the_answer_does() {
    let mut world = World::new(open());
    let client = world.ask(&query(1, "example.org", A));
    let sent = world.last();
    let glue: Vec<_> = (0..30).map(|n| address(&format!("ns{n}.example.org"), 60, "93.184.216.99")).collect();
    let ns: Vec<_> =
        (0..30).map(|n| record("example.org", NS, 60, &encode_name(&format!("ns{n}.example.org")))).collect();
    world.answer(&sent, &sections_to(&sent, 0x8180, &[address("example.org", 60, "93.184.216.34")], &ns, &glue));
    let reply = world.reply(client).unwrap();
    assert!(!reply.is_truncated() && reply.length <= 512);
    assert_eq!(reply.addresses(), [ip("93.184.216.34")]);
}

#[test]
fn opt_is_ours_and_extended_errors_pass() {
    let mut world = World::new(open());
    let with = world.ask(&query_edns(1, "example.org", A, 1400, 0x8000));
    let sent = world.last();
    let cookie = [0, 10, 0, 4, 1, 2, 3, 4];
    let stale = [&[0, 15, 0, 7, 0, 3][..], b"stale"].concat();
    let opt = opt(512, 0x8000, &[&cookie[..], &stale].concat());
    let answer = sections_to(&sent, 0x81a0, &[address("example.org", 60, "93.184.216.34")], &[], &[opt]);
    world.answer(&sent, &answer);
    let reply = world.reply(with).unwrap();
    let ours = reply.opt().unwrap();
    assert_eq!((ours.class, ours.ttl), (1232, 0x8000));
    assert_eq!(reply.extended_errors(), [(3, "stale".to_owned())]);
    assert_eq!(ours.data.len(), 11, "the cookie is not the guest's");
    assert_eq!(reply.flags & 0x20, 0x20, "AD for a client that sent DO");
    // The same for a client without EDNS.
    let without = world.ask(&query(1, "example.org", A));
    let sent = world.last();
    let answer = sections_to(&sent, 0x81a0, &[address("example.org", 60, "93.184.216.34")], &[], &[]);
    world.answer(&sent, &answer);
    let reply = world.reply(without).unwrap();
    assert!(reply.additional.is_empty());
    assert_eq!(reply.flags & 0x20, 0, "no AD for a client that did not ask");
}

#[test]
fn signatures_and_dnames_of_the_chain_stay() {
    let rrsig = |covered: u16| {
        let mut data = covered.to_be_bytes().to_vec();
        data.extend_from_slice(&[0; 16]);
        data.extend_from_slice(&encode_name("org"));
        data.extend_from_slice(b"signature");
        data
    };
    let records = [
        record("org", 39, 60, &encode_name("net")),
        record("org", 46, 60, &rrsig(39)),
        cname("example.org", 60, "example.net"),
        record("example.org", 46, 60, &rrsig(CNAME)),
        address("example.net", 60, "93.184.216.34"),
        record("example.net", 46, 60, &rrsig(A)),
        record("other.net", 46, 60, &rrsig(A)),
        record("com", 39, 60, &encode_name("net")),
    ];
    let (_, reply) = resolve(open(), A, &records);
    let kept: Vec<_> = reply.answer.iter().map(|record| (record.name.as_str(), record.kind)).collect();
    let chain = [("org", 39), ("org", 46), ("example.org", CNAME), ("example.org", 46), ("example.net", A)];
    assert_eq!(kept, [&chain[..], &[("example.net", 46)]].concat());
}

#[test]
fn when_pins_are_refused_the_answer_is_servfail() {
    let mut world = World::new(open());
    world.refuse_pins = true;
    let first = world.ask(&query(0x77, "Example.org", A));
    let second = world.ask(&query_edns(0x78, "example.org", A, 1232, 0));
    let other = world.ask(&query(0x79, "other.example", TXT));
    let sent = world.sent[0].clone();
    let records = [address("example.org", 60, "93.184.216.34"), address("example.org", 60, "93.184.216.35")];
    world.answer(&sent, &answer_to(&sent, 0, &records));
    for client in [first, second] {
        let reply = world.reply(client).unwrap();
        assert_eq!((reply.rcode(), reply.answer.len()), (SERVFAIL, 0));
        assert_eq!(reply.question.as_ref().unwrap().0.to_lowercase(), "example.org");
    }
    assert_eq!(world.pins().len(), 1, "the rest was not tried");
    for event in world.events() {
        let EventBody::DnsQuery { answers, rcode, .. } = event else { panic!() };
        assert_eq!((answers.len(), rcode), (0, Some(2)));
    }
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, 0, &[record("other.example", TXT, 60, b"\x01x")]));
    assert_eq!(world.reply(other).unwrap().rcode(), NOERROR);
}

#[test]
fn refused_pins_concern_their_own_answer_alone() {
    let mut world = World::new(all_but(vec![deny_name("evil.example")]));
    world.ask(&query(1, "example.org", A));
    let sent = world.last();
    // Two inputs before anything is taken: the pins of the first, and an answer of our own right behind.
    let records = [address("example.org", 60, "93.184.216.34"), address("example.org", 60, "93.184.216.35")];
    world.resolver.handle_answer(world.now, sent.upstream, &answer_to(&sent, 0, &records));
    let denied = cofferdam_names::ClientId(99);
    world.resolver.handle_query(world.now, denied, Transport::Udp, ends(GATEWAY), &query(2, "evil.example", A));
    world.refuse_pins = true;
    world.drain();
    assert_eq!(world.reply(cofferdam_names::ClientId(0)).unwrap().rcode(), SERVFAIL);
    assert_eq!(world.reply(denied).unwrap().rcode(), NXDOMAIN);
    assert_eq!(world.pins().len(), 1);
}

#[test]
fn an_answer_is_reported_with_who_gave_it() {
    let mut world = World::new(only(vec![allow_name("example.org")]));
    world.ask(&query(1, "example.org", A));
    world.pass(ms(20));
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, 0, &[address("example.org", 60, "93.184.216.34")]));
    let [EventBody::DnsQuery { name, verdict, rule, decision, answers, rcode, resolver, ms, .. }] = &world.events()[..]
    else {
        panic!("{:?}", world.events())
    };
    assert_eq!((name.as_str(), *verdict, decision.as_ref()), ("example.org", Action::Allow, None));
    assert_eq!((rule.index, answers.as_slice(), *rcode), (Some(0), &[ip("93.184.216.34")][..], Some(0)));
    assert_eq!(*resolver, Some(FIRST.parse().unwrap()));
    assert!((19.9..20.1).contains(ms), "{ms}");
}
