//! What is remembered, for whom, for how long, and that a remembered answer is checked like a new one (`names.md` §2 step 6).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::wildcard_enum_match_arm, reason = "tests")]

mod common;

use std::time::Duration;

use cofferdam_model::{Action, EventBody};
use cofferdam_names::Transport;
use common::*;

const WEB: &str = "93.184.216.34";
const WEB6: &str = "2606:2800::1";
/// Both address families, with the type that asks for each.
const FAMILIES: [(u16, &str); 2] = [(A, WEB), (AAAA, WEB6)];

fn open() -> World {
    World::new(all_but(vec![]))
}

/// Asks and has the upstream answer with `records`.
fn ask_and_answer(world: &mut World, message: &[u8], records: &[Vec<u8>]) -> Message {
    let client = world.ask(message);
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, 0, records));
    world.reply(client).unwrap()
}

/// Asks for something that is remembered, and counts on nobody being asked.
fn ask_again(world: &mut World, message: &[u8]) -> Message {
    let sent = world.sent.len();
    let client = world.ask(message);
    assert_eq!(world.sent.len(), sent, "somebody was asked");
    world.reply(client).unwrap()
}

/// Whether the question goes to an upstream.
fn is_asked_for(world: &mut World, message: &[u8]) -> bool {
    let sent = world.sent.len();
    world.ask(message);
    world.sent.len() > sent
}

fn soa(name: &str, ttl: u32, minimum: u32) -> Vec<u8> {
    let numbers = [1, 2, 3, 4, minimum].map(u32::to_be_bytes).concat();
    record(name, SOA, ttl, &[encode_name("ns"), encode_name("root"), numbers].concat())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_remembered_answer_counts_down_and_ends_with_its_ttl() {
    for (qtype, web) in FAMILIES {
        let mut world = open();
        ask_and_answer(&mut world, &query(1, "example.org", qtype), &[address("example.org", 60, web)]);
        world.pass(seconds(59));
        let reply = ask_again(&mut world, &query(2, "EXAMPLE.org", qtype));
        assert_eq!((reply.id, reply.question.unwrap().0.as_str()), (2, "EXAMPLE.org"));
        assert_eq!((reply.answer[0].ttl, reply.answer[0].kind), (1, qtype));
        world.pass(seconds(1));
        assert!(is_asked_for(&mut world, &query(3, "example.org", qtype)));
    }
}

#[test]
fn the_shortest_ttl_along_the_chain_counts() {
    let mut world = open();
    let records =
        [cname("www.example", 300, "a.example"), cname("a.example", 20, "b.example"), address("b.example", 60, WEB)];
    ask_and_answer(&mut world, &query(1, "www.example", A), &records);
    world.pass(seconds(10));
    let reply = ask_again(&mut world, &query(2, "www.example", A));
    assert_eq!(reply.answer.iter().map(|record| record.ttl).collect::<Vec<_>>(), [10, 10, 10]);
    world.pass(seconds(10));
    assert!(is_asked_for(&mut world, &query(3, "www.example", A)));
}

#[test]
fn ttl_0_and_answers_that_lie_about_others_are_not_remembered() {
    let mut world = open();
    ask_and_answer(&mut world, &query(1, "flip.example", A), &[address("flip.example", 0, WEB)]);
    assert!(is_asked_for(&mut world, &query(2, "flip.example", A)));
    let lie = [address("asked.example", 60, WEB), address("bank.example", 60, WEB)];
    ask_and_answer(&mut world, &query(3, "asked.example", A), &lie);
    assert!(is_asked_for(&mut world, &query(4, "bank.example", A)));
}

#[test]
fn nothing_is_remembered_as_long_as_its_soa_says() {
    for rcode in [NOERROR, NXDOMAIN] {
        for (ttl, minimum) in [(30, 900), (900, 30)] {
            let mut world = open();
            world.ask(&query(1, "absent.example", A));
            let sent = world.last();
            world.answer(&sent, &sections_to(&sent, 0x8180 | rcode, &[], &[soa("example", ttl, minimum)], &[]));
            world.pass(seconds(29));
            let reply = ask_again(&mut world, &query(2, "absent.example", A));
            assert_eq!((reply.rcode(), reply.authority[0].ttl), (rcode, 1));
            world.pass(seconds(1));
            assert!(is_asked_for(&mut world, &query(3, "absent.example", A)));
        }
    }
}

#[test]
fn nothing_without_a_soa_is_not_remembered_and_long_ones_have_an_end() {
    let mut world = open();
    world.ask(&query(1, "absent.example", A));
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, NXDOMAIN, &[]));
    assert!(is_asked_for(&mut world, &query(2, "absent.example", A)));
    world.ask(&query(1, "never.example", A));
    let sent = world.last();
    world.answer(&sent, &sections_to(&sent, 0x8183, &[], &[soa("example", 86_400, 86_400)], &[]));
    world.pass(seconds(3 * 3600));
    assert!(is_asked_for(&mut world, &query(2, "never.example", A)));
}

#[test]
fn a_chain_that_leads_to_nothing_lives_as_long_as_its_shortest_part() {
    let mut world = open();
    world.ask(&query(1, "www.example", A));
    let sent = world.last();
    let chain = [cname("www.example", 10, "gone.example")];
    world.answer(&sent, &sections_to(&sent, 0x8183, &chain, &[soa("example", 900, 900)], &[]));
    world.pass(seconds(9));
    assert_eq!(ask_again(&mut world, &query(2, "www.example", A)).rcode(), NXDOMAIN);
    world.pass(seconds(1));
    assert!(is_asked_for(&mut world, &query(3, "www.example", A)));
}

#[test]
fn failures_are_not_remembered() {
    for rcode in [SERVFAIL, REFUSED, FORMERR, NOTIMP] {
        let mut world = open();
        world.ask(&query(1, "example.org", A));
        let sent = world.last();
        world.answer(&sent, &sections_to(&sent, 0x8180 | rcode, &[], &[soa("example", 900, 900)], &[]));
        assert!(is_asked_for(&mut world, &query(2, "example.org", A)), "{rcode}");
    }
}

#[test]
fn validators_and_stubs_do_not_get_each_others_answers() {
    let plain = query(1, "example.org", A);
    let mut others = [plain.clone(), plain.clone(), query_edns(1, "example.org", A, 1232, 0x8000)];
    others[0][3] |= 0x10;
    others[1][3] |= 0x20;
    for other in others {
        let mut world = open();
        ask_and_answer(&mut world, &plain, &[address("example.org", 60, WEB)]);
        ask_again(&mut world, &plain);
        assert!(is_asked_for(&mut world, &other), "{other:?}");
        let sent = world.last();
        world.answer(&sent, &answer_to(&sent, 0, &[address("example.org", 60, WEB)]));
        ask_again(&mut world, &other);
    }
}

#[test]
fn ad_is_remembered_for_those_who_ask_for_it() {
    let mut asks = query(1, "example.org", A);
    asks[3] |= 0x20;
    let mut world = open();
    world.ask(&asks);
    let sent = world.last();
    world.answer(&sent, &sections_to(&sent, 0x81a0, &[address("example.org", 60, WEB)], &[], &[]));
    assert_eq!(ask_again(&mut world, &asks).flags & 0x20, 0x20);
}

#[test]
fn transport_and_size_are_the_askers_own() {
    let text = [vec![200], vec![b'x'; 200]].concat();
    let records: Vec<_> = (0..14).map(|_| record("example.org", TXT, 60, &text)).collect();
    let mut world = open();
    let client = world.ask_at(GATEWAY, Transport::Tcp, &query(1, "example.org", TXT));
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, 0, &records));
    assert_eq!(world.reply(client).unwrap().answer.len(), 14);
    let over_udp = ask_again(&mut world, &query(2, "example.org", TXT));
    assert!(over_udp.is_truncated() && over_udp.answer.is_empty());
    let large = ask_again(&mut world, &query_edns(3, "example.org", TXT, 4096, 0));
    assert_eq!(large.answer.len(), 14);
}

#[test]
fn pins_are_made_again_with_what_is_left_of_the_ttl() {
    for (qtype, web) in FAMILIES {
        let mut world = open();
        let records = [cname("www.example", 600, "cdn.example"), address("cdn.example", 600, web)];
        ask_and_answer(&mut world, &query(1, "www.example", qtype), &records);
        world.told.clear();
        world.pass(seconds(200));
        ask_again(&mut world, &query(2, "www.example", qtype));
        let expected =
            [("www.example".to_owned(), false, ip(web), 400), ("cdn.example".to_owned(), true, ip(web), 400)];
        assert_eq!(world.pins(), expected);
        let first_answer =
            world.told.iter().position(|output| matches!(output, cofferdam_names::Output::Answer { .. }));
        assert_eq!(first_answer, Some(2), "the answer comes behind its pins");
    }
}

#[test]
fn an_answer_whose_pins_have_no_room_fails_also_from_memory() {
    let mut world = open();
    ask_and_answer(&mut world, &query(1, "example.org", A), &[address("example.org", 60, WEB)]);
    world.refuse_pins = true;
    assert_eq!(ask_again(&mut world, &query(2, "example.org", A)).rcode(), SERVFAIL);
    world.refuse_pins = false;
    assert_eq!(ask_again(&mut world, &query(3, "example.org", A)).rcode(), NOERROR);
}

#[test]
fn withheld_answers_are_withheld_from_memory_too() {
    for inside in ["10.0.0.5", "fd12::5"] {
        let mut world = open();
        let qtype = qtype_of(inside);
        let client = world.ask(&query(1, "rebind.example", qtype));
        let sent = world.last();
        world.answer(&sent, &answer_to(&sent, 0, &[address("rebind.example", 60, inside)]));
        assert_eq!(world.reply(client).unwrap().rcode(), NXDOMAIN);
        let reply = ask_again(&mut world, &query_edns(2, "rebind.example", qtype, 1232, 0));
        assert_eq!((reply.rcode(), reply.extended_errors()[0].0), (NXDOMAIN, 15));
        assert!(world.pins().is_empty());
        let EventBody::DnsQuery { verdict, withheld, .. } = world.events().pop().unwrap() else { panic!() };
        assert_eq!((verdict, withheld.unwrap().address), (Action::Deny, ip(inside)));
    }
}

#[test]
fn what_the_guests_own_resolver_said_is_neither_kept_nor_given_out() {
    let mut world = open();
    world.ask_at(OTHER, Transport::Udp, &query(1, "example.org", A));
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, 0, &[address("example.org", 60, WEB)]));
    assert!(is_asked_for(&mut world, &query(2, "example.org", A)));
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, 0, &[address("example.org", 60, WEB)]));
    let before = world.sent.len();
    world.ask_at(OTHER, Transport::Udp, &query(3, "example.org", A));
    assert_eq!((world.sent.len(), world.last().server.to_string()), (before + 1, OTHER.to_owned()));
}

#[test]
fn denied_names_never_meet_the_cache() {
    let mut world = World::new(only(vec![allow_name("allowed.example")]));
    ask_and_answer(
        &mut world,
        &query(1, "allowed.example", A),
        &[cname("allowed.example", 60, "denied.example"), address("denied.example", 60, WEB)],
    );
    assert_eq!(ask_again(&mut world, &query(2, "denied.example", A)).rcode(), NXDOMAIN);
}

#[test]
fn an_answer_from_memory_names_no_resolver() {
    let mut world = open();
    ask_and_answer(&mut world, &query(1, "example.org", A), &[address("example.org", 60, WEB)]);
    ask_again(&mut world, &query(2, "example.org", A));
    let EventBody::DnsQuery { resolver, answers, .. } = world.events().pop().unwrap() else { panic!() };
    assert_eq!((resolver, answers), (None, vec![ip(WEB)]));
}

#[test]
fn a_flood_of_names_is_bounded_and_new_ones_are_kept() {
    let mut world = open();
    for number in 0..5000 {
        let name = format!("n{number}.example");
        ask_and_answer(&mut world, &query(1, &name, A), &[address(&name, 600, WEB)]);
        world.told.clear();
    }
    ask_again(&mut world, &query(1, "n4999.example", A));
    assert!(is_asked_for(&mut world, &query(1, "n0.example", A)));
}
