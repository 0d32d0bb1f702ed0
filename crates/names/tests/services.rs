//! HTTPS and SVCB answers: no `ech`, hints treated as the addresses that they are (`names.md` §2 step 5, §3, §4).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::wildcard_enum_match_arm, reason = "tests")]

mod common;

use common::*;

const RRSIG: u16 = 46;
const ALPN: (u16, &[u8]) = (1, b"\x02h2");
const ECH: (u16, &[u8]) = (5, b"key of the provider");

fn open() -> World {
    World::new(all_but(vec![]))
}

fn service(kind: u16, owner: &str, target: &str, parameters: &[(u16, &[u8])]) -> Vec<u8> {
    let mut data = [&[0, 1][..], &encode_name(target)].concat();
    for (key, value) in parameters {
        data.extend_from_slice(&key.to_be_bytes());
        data.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
        data.extend_from_slice(value);
    }
    record(owner, kind, 300, &data)
}

/// A hint with one address.
fn hint(text: &str) -> (u16, Vec<u8>) {
    match ip(text) {
        std::net::IpAddr::V4(address) => (4, address.octets().to_vec()),
        std::net::IpAddr::V6(address) => (6, address.octets().to_vec()),
    }
}

fn ask(world: &mut World, qtype: u16, records: &[Vec<u8>]) -> Message {
    let client = world.ask(&query_edns(1, "example.org", qtype, 1232, 0));
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, 0, records));
    world.reply(client).unwrap()
}

#[test]
fn ech_is_taken_out_and_the_rest_arrives() {
    for kind in [HTTPS, SVCB] {
        let mut world = open();
        let reply = ask(&mut world, kind, &[service(kind, "example.org", ".", &[ALPN, ECH])]);
        assert_eq!((reply.rcode(), reply.answer.len()), (NOERROR, 1));
        assert_eq!(reply.answer[0].data, b"\0\x01\0\0\x01\0\x03\x02h2");
    }
}

#[test]
fn hints_are_pinned_to_the_name_and_before_the_answer() {
    for text in ["93.184.216.34", "2606:2800::1"] {
        let mut world = open();
        let (key, value) = hint(text);
        let records = [
            cname("example.org", 200, "www.example.org"),
            service(HTTPS, "www.example.org", "cdn.example", &[(key, &value)]),
        ];
        let reply = ask(&mut world, HTTPS, &records);
        assert_eq!(reply.answer.len(), 2);
        let expected = [("example.org", false), ("www.example.org", true), ("cdn.example", true)];
        let expected = expected.map(|(name, alias)| (name.to_owned(), alias, ip(text), 200));
        assert_eq!(world.pins(), expected);
    }
}

#[test]
fn a_forbidden_hint_withholds_the_whole_answer() {
    for text in
        ["10.0.0.5", "169.254.169.254", "127.0.0.1", "0.0.0.0", "fd12::5", "::1", "::ffff:10.0.0.5", "64:ff9b::a00:5"]
    {
        let mut world = open();
        let (key, value) = hint(text);
        let records =
            [service(HTTPS, "example.org", ".", &[ALPN]), service(HTTPS, "example.org", ".", &[(key, &value)])];
        let reply = ask(&mut world, HTTPS, &records);
        assert_eq!((reply.rcode(), reply.answer.len(), world.pins().len()), (NXDOMAIN, 0, 0), "{text}");
        assert_eq!(reply.extended_errors()[0].0, 15);
    }
}

#[test]
fn an_explicit_rule_lets_a_hint_pass() {
    for (net, text) in [("10.0.0.0/8", "10.0.0.5"), ("fd12::/16", "fd12::5")] {
        let mut world = World::new(all_but(vec![allow_net(net)]));
        let (key, value) = hint(text);
        let reply = ask(&mut world, HTTPS, &[service(HTTPS, "example.org", ".", &[(key, &value)])]);
        assert_eq!((reply.rcode(), world.pins().len()), (NOERROR, 1));
    }
}

#[test]
fn the_rule_that_allows_a_name_may_let_its_hints_lead_inside() {
    for (text, rcode, pins) in
        [("10.0.0.5", NOERROR, 1), ("fd12::5", NOERROR, 1), ("169.254.169.254", NXDOMAIN, 0), ("::1", NXDOMAIN, 0)]
    {
        let mut world = World::new(only(vec![allow_name_inside("example.org")]));
        let (key, value) = hint(text);
        let reply = ask(&mut world, HTTPS, &[service(HTTPS, "example.org", ".", &[(key, &value)])]);
        assert_eq!((reply.rcode(), world.pins().len()), (rcode, pins), "{text}");
    }
}

#[test]
fn signatures_of_changed_records_go_and_others_stay() {
    let signature = |covered: u16| {
        let fixed = [&covered.to_be_bytes()[..], &[13; 16]].concat();
        record("example.org", RRSIG, 300, &[fixed, encode_name("example.org"), vec![1; 64]].concat())
    };
    for (parameters, kept) in [(&[ALPN, ECH][..], 1), (&[ALPN][..], 2)] {
        let mut world = open();
        let client = world.ask(&query_edns(1, "example.org", HTTPS, 1232, 0x8000));
        let sent = world.last();
        let records = [service(HTTPS, "example.org", ".", parameters), signature(HTTPS)];
        world.answer(&sent, &sections_to(&sent, 0x81a0, &records, &[], &[]));
        let reply = world.reply(client).unwrap();
        assert_eq!(reply.answer.len(), kept);
        assert_eq!(reply.flags & 0x20 != 0, kept == 2, "AD speaks of what was signed");
    }
}

#[test]
fn nothing_of_a_dead_family_is_left() {
    let mut world = World::with(all_but(vec![]), |config| config.families.ipv6 = false);
    let (four, six) = (hint("93.184.216.34"), hint("2606:2800::1"));
    let reply = ask(&mut world, HTTPS, &[service(HTTPS, "example.org", ".", &[(four.0, &four.1), (six.0, &six.1)])]);
    assert_eq!(reply.answer[0].data, [&[0, 1, 0, 0, 4, 0, 4][..], &four.1].concat());
    assert_eq!(world.pins().len(), 1);
}

#[test]
fn a_record_out_of_shape_or_beside_the_point_is_left_out() {
    let mut world = open();
    let records = [
        service(HTTPS, "example.org", ".", &[ALPN]),
        service(HTTPS, "example.org", ".", &[(4, &[1, 2, 3])]),
        service(HTTPS, "other.example", ".", &[ALPN]),
    ];
    assert_eq!(ask(&mut world, HTTPS, &records).answer.len(), 1);
}

#[test]
fn services_that_nobody_asked_for_are_left_out_of_the_other_sections() {
    let mut world = open();
    let client = world.ask(&query(1, "example.org", A));
    let sent = world.last();
    let extra = [service(HTTPS, "example.org", ".", &[ALPN, ECH])];
    world.answer(&sent, &sections_to(&sent, 0x8180, &[address("example.org", 60, "93.184.216.34")], &extra, &extra));
    let reply = world.reply(client).unwrap();
    assert_eq!((reply.answer.len(), reply.authority.len(), reply.additional.len()), (1, 0, 0));
}

#[test]
fn a_flood_of_hints_is_pinned_whole_or_not_delivered() {
    let mut world = open();
    let hints: Vec<u8> = (0..200_u8).flat_map(|last| [93, 184, 216, last]).collect();
    let records: Vec<_> = (0..3).map(|_| service(HTTPS, "example.org", ".", &[ALPN, (4, &hints)])).collect();
    let client = world.ask_at(GATEWAY, cofferdam_names::Transport::Tcp, &query(1, "example.org", HTTPS));
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, 0, &records));
    let reply = world.reply(client).unwrap();
    let with_hints = reply.answer.iter().filter(|record| record.data.len() > 100).count();
    assert_eq!((reply.answer.len(), with_hints, world.pins().len()), (3, 1, 200));
}
