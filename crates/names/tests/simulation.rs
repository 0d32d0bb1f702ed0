//! Asking resolvers in virtual time: order, racing, repetition, time-out, forgery, limits (`names.md` §2 step 6).
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::wildcard_enum_match_arm, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use cofferdam_model::{EventBody, LimitKind};
use cofferdam_names::Transport;
use common::*;

fn open() -> World {
    World::new(all_but(vec![]))
}

fn one_upstream() -> World {
    World::with(all_but(vec![]), |config| config.upstreams.truncate(1))
}

fn good(sent: &Sent) -> Vec<u8> {
    let (name, qtype) = Message::parse(&sent.message).question.unwrap();
    let text = if qtype == AAAA { "2606:2800::1" } else { "93.184.216.34" };
    answer_to(sent, 0, &[address(&name, 60, text)])
}

fn servers(world: &World) -> Vec<String> {
    world.sent.iter().map(|sent| sent.server.to_string()).collect()
}

#[test]
fn asks_the_first_resolver_alone_while_it_answers() {
    let mut world = open();
    for n in 0..50 {
        let client = world.ask(&query(1, &format!("n{n}.example"), A));
        world.pass(ms(299));
        let sent = world.last();
        world.answer(&sent, &good(&sent));
        assert_eq!(world.reply(client).unwrap().rcode(), NOERROR);
    }
    assert!(servers(&world).iter().all(|server| server == FIRST));
    assert_eq!(world.sent.len(), 50);
    assert!(world.live().is_empty());
}

#[test]
fn races_the_next_resolver_after_300_ms_of_silence() {
    for qtype in [A, AAAA] {
        let mut world = open();
        let client = world.ask(&query(1, "example.org", qtype));
        world.pass(ms(299));
        assert_eq!(world.sent.len(), 1);
        world.pass(ms(1));
        assert_eq!(servers(&world), [FIRST, SECOND]);
        assert_eq!(world.live().len(), 2, "the first may still answer");
        let second = world.last();
        world.pass(ms(30));
        world.answer(&second, &good(&second));
        assert_eq!(world.reply(client).unwrap().addresses().len(), 1);
        assert!(world.live().is_empty());
        // The loser's late answer changes nothing.
        let first = world.sent[0].clone();
        world.answer(&first, &good(&first));
        assert!(world.reply(client).is_some());
    }
}

#[test]
fn a_slow_first_resolver_can_still_win() {
    let mut world = open();
    let client = world.ask(&query(1, "example.org", A));
    world.pass(ms(450));
    let first = world.sent[0].clone();
    world.answer(&first, &good(&first));
    assert!(world.reply(client).is_some());
    assert!(world.live().is_empty());
}

#[test]
fn a_dead_resolver_costs_one_wait_and_is_remembered_for_30_s() {
    let mut world = open();
    world.ask(&query(1, "a.example", A));
    world.pass(ms(310));
    let second = world.last();
    world.answer(&second, &good(&second));
    let before = world.sent.len();
    for n in 0..10 {
        world.ask(&query(1, &format!("n{n}.example"), A));
        world.pass(ms(20));
        let sent = world.last();
        world.answer(&sent, &good(&sent));
    }
    assert!(servers(&world)[before..].iter().all(|server| server == SECOND));
    assert_eq!(world.sent.len(), before + 10);
    world.pass(ms(30_000));
    world.ask(&query(1, "later.example", A));
    assert_eq!(world.last().server.to_string(), FIRST, "it gets another chance");
}

#[test]
fn a_resolver_that_answers_others_is_not_dead() {
    let mut world = open();
    world.ask(&query(1, "slow.example", A));
    world.pass(ms(100));
    world.ask(&query(1, "quick.example", A));
    let quick = world.last();
    world.answer(&quick, &good(&quick));
    world.pass(ms(250));
    assert_eq!(world.last().server.to_string(), SECOND, "raced for the slow name");
    let raced = world.last();
    world.answer(&raced, &good(&raced));
    world.ask(&query(1, "next.example", A));
    assert_eq!(world.last().server.to_string(), FIRST);
}

#[test]
fn a_socket_error_moves_on_at_once() {
    let mut world = open();
    let client = world.ask(&query(1, "example.org", A));
    let first = world.last();
    world.fail(&first);
    assert_eq!(servers(&world), [FIRST, SECOND]);
    let second = world.last();
    world.answer(&second, &good(&second));
    assert_eq!(world.reply(client).unwrap().rcode(), NOERROR);
    world.ask(&query(1, "next.example", A));
    assert_eq!(world.last().server.to_string(), SECOND, "the one that failed comes last");
}

#[test]
fn when_all_have_failed_the_answer_is_servfail() {
    let mut world = open();
    let client = world.ask(&query_edns(1, "example.org", A, 1232, 0));
    for _ in 0..2 {
        let sent = world.last();
        world.fail(&sent);
    }
    let reply = world.reply(client).unwrap();
    assert_eq!(reply.rcode(), SERVFAIL);
    assert_eq!(reply.extended_errors()[0].0, 22);
    assert_eq!(world.resolver.poll_timeout(), None);
    let again = world.ask(&query(1, "example.org", A));
    assert_eq!(servers(&world).len(), 3, "both dead: the configured order again");
    assert_eq!(world.last().server.to_string(), FIRST);
    assert!(world.reply(again).is_none());
}

#[test]
fn without_resolvers_the_answer_is_servfail() {
    let mut world = World::with(all_but(vec![]), |config| config.upstreams.clear());
    let client = world.ask(&query(1, "example.org", A));
    assert_eq!(world.reply(client).unwrap().rcode(), SERVFAIL);
    assert_eq!(world.resolver.poll_timeout(), None);
}

#[test]
fn a_query_that_nobody_answers_ends_with_its_budget() {
    for (transport, upstreams) in [(Transport::Udp, 2), (Transport::Tcp, 2), (Transport::Udp, 1), (Transport::Tcp, 1)] {
        let mut world = World::with(all_but(vec![]), |config| config.upstreams.truncate(upstreams));
        let client = world.ask_at(GATEWAY, transport, &query(1, "silent.example", A));
        world.pass(ms(4999));
        assert!(world.reply(client).is_none());
        assert!(world.live().len() <= 4);
        world.pass(ms(1));
        assert_eq!(world.reply(client).unwrap().rcode(), SERVFAIL);
        assert!(world.live().is_empty());
        assert_eq!(world.resolver.poll_timeout(), None);
    }
}

#[test]
fn the_budget_is_configurable() {
    let mut world = World::with(all_but(vec![]), |config| config.query_timeout = ms(200));
    let client = world.ask(&query(1, "silent.example", A));
    world.pass(ms(200));
    assert_eq!(world.reply(client).unwrap().rcode(), SERVFAIL);
    assert_eq!(world.sent.len(), 1);
}

#[test]
fn a_lost_datagram_is_asked_for_again() {
    let mut world = one_upstream();
    let client = world.ask(&query(1, "example.org", A));
    world.pass(ms(4900));
    let times: Vec<u64> = world.sent.iter().map(|sent| (sent.at.as_nanos() - 1) / 1_000_000).collect();
    assert_eq!(times, [0, 1000, 3000]);
    let ids: BTreeSet<u16> = world.sent.iter().map(|sent| Message::parse(&sent.message).id).collect();
    assert_eq!(ids.len(), 3, "each with an id of its own");
    let sent = world.last();
    world.answer(&sent, &good(&sent));
    assert_eq!(world.reply(client).unwrap().rcode(), NOERROR);
}

#[test]
fn a_truncated_answer_is_asked_for_again_over_tcp() {
    let mut world = one_upstream();
    let client = world.ask(&query_edns(1, "example.org", TXT, 4096, 0));
    let udp = world.last();
    // Truncated in the middle of a record, as some servers do it.
    let mut message = sections_to(&udp, 0x8380, &[record("example.org", TXT, 1, &[9; 10])], &[], &[]);
    message.truncate(message.len() - 4);
    world.answer(&udp, &message);
    let tcp = world.last();
    assert_eq!((tcp.server, tcp.transport), (udp.server, Transport::Tcp));
    assert!(world.abandoned.contains(&udp.upstream));
    assert_ne!(Message::parse(&tcp.message).id, Message::parse(&udp.message).id);
    let records: Vec<_> =
        (0..14).map(|_| record("example.org", TXT, 1, &[&[255][..], &[b'A'; 255]].concat())).collect();
    world.answer(&tcp, &answer_to(&tcp, 0, &records));
    assert_eq!(world.reply(client).unwrap().answer.len(), 14);
    assert!(world.live().is_empty());
}

#[test]
fn a_resolver_without_tcp_gives_way_to_the_next() {
    let mut world = open();
    let client = world.ask(&query(1, "example.org", A));
    let udp = world.last();
    world.answer(&udp, &sections_to(&udp, 0x8380, &[], &[], &[]));
    let tcp = world.last();
    world.fail(&tcp);
    let second = world.last();
    assert_eq!((second.server.to_string().as_str(), second.transport), (SECOND, Transport::Udp));
    world.answer(&second, &good(&second));
    assert_eq!(world.reply(client).unwrap().rcode(), NOERROR);
}

#[test]
fn truncation_over_tcp_is_no_answer() {
    let mut world = one_upstream();
    let client = world.ask_at(GATEWAY, Transport::Tcp, &query(1, "example.org", A));
    let tcp = world.last();
    world.answer(&tcp, &sections_to(&tcp, 0x8380, &[], &[], &[]));
    assert_eq!(world.reply(client).unwrap().rcode(), SERVFAIL);
}

#[test]
fn answers_are_checked_against_the_question() {
    let mut world = one_upstream();
    let client = world.ask(&query(1, "example.org", A));
    let sent = world.last();
    let right = good(&sent);
    let mut wrong_id = right.clone();
    wrong_id[1] ^= 1;
    let mut not_a_response = right.clone();
    not_a_response[2] &= 0x7f;
    let mut other_opcode = right.clone();
    other_opcode[2] |= 0x28;
    let mut other_type = right.clone();
    other_type[12 + 13 + 1] = 28;
    let mut other_class = right.clone();
    other_class[12 + 13 + 3] = 3;
    let id = Message::parse(&sent.message).id;
    let other_name = [header(id, 0x8180, [1, 0, 0, 0]), question("example.com", A)].concat();
    let no_question = header(id, 0x8180, [0, 0, 0, 0]);
    for forged in [wrong_id, not_a_response, other_opcode, other_type, other_class, other_name, no_question] {
        world.answer(&sent, &forged);
        assert!(world.reply(client).is_none(), "{forged:?}");
        assert!(world.live().iter().any(|live| live.upstream == sent.upstream), "the query goes on");
    }
    let mut other_case = right;
    other_case[13] = b'E';
    world.answer(&sent, &other_case);
    assert_eq!(world.reply(client).unwrap().rcode(), NOERROR);
}

#[test]
fn a_forger_who_tries_ids_is_left_standing() {
    let mut world = one_upstream();
    let client = world.ask(&query(1, "example.org", A));
    let sent = world.last();
    let id = Message::parse(&sent.message).id;
    for offset in 1..=20_u16 {
        let mut forged = answer_to(&sent, 0, &[address("example.org", 60, "6.6.6.6")]);
        forged[..2].copy_from_slice(&id.wrapping_add(offset).to_be_bytes());
        world.answer(&sent, &forged);
    }
    assert!(world.abandoned.contains(&sent.upstream));
    let tcp = world.last();
    assert_eq!(tcp.transport, Transport::Tcp);
    world.answer(&tcp, &good(&tcp));
    assert_eq!(world.reply(client).unwrap().addresses(), [ip("93.184.216.34")]);
}

#[test]
fn nonsense_over_tcp_ends_that_attempt() {
    let mut world = open();
    world.ask_at(GATEWAY, Transport::Tcp, &query(1, "example.org", A));
    let sent = world.last();
    world.answer(&sent, b"SSH-2.0-OpenSSH");
    assert_eq!(servers(&world), [FIRST, SECOND]);
}

#[test]
fn ids_look_random_and_depend_on_the_seed() {
    let ids = |seed: u8| {
        let mut world = World::with(all_but(vec![]), |config| config.seed = [seed; 32]);
        for n in 0..200 {
            world.ask(&query(0x1234, &format!("n{n}.example"), A));
        }
        world.sent.iter().map(|sent| Message::parse(&sent.message).id).collect::<Vec<_>>()
    };
    let (one, same, other) = (ids(1), ids(1), ids(2));
    assert_eq!(one, same, "the same seed gives the same run");
    assert_ne!(one, other);
    let distinct: BTreeSet<_> = one.iter().collect();
    assert!(distinct.len() > 190);
    let steps: BTreeSet<_> = one.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
    assert!(steps.len() > 190, "not a counter");
}

#[test]
fn identical_questions_are_asked_once() {
    let mut world = open();
    let clients: Vec<_> = ["example.org", "EXAMPLE.org", "example.ORG"]
        .iter()
        .enumerate()
        .map(|(id, name)| world.ask(&query(u16::try_from(id).unwrap(), name, A)))
        .collect();
    let other_type = world.ask(&query(9, "example.org", AAAA));
    let with_do = world.ask(&query_edns(9, "example.org", A, 1232, 0x8000));
    assert_eq!(world.sent.len(), 3);
    let sent = world.sent[0].clone();
    world.answer(&sent, &good(&sent));
    for (id, client) in clients.iter().enumerate() {
        let reply = world.reply(*client).unwrap();
        assert_eq!((usize::from(reply.id), reply.addresses().len()), (id, 1));
    }
    assert_eq!(world.reply(clients[1]).unwrap().question.unwrap().0, "EXAMPLE.org");
    assert_eq!(world.pins().len(), 1, "one answer, one pin");
    assert!(world.reply(other_type).is_none() && world.reply(with_do).is_none());
}

#[test]
fn questions_to_different_resolvers_are_different() {
    let mut world = open();
    let ours = world.ask(&query(1, "example.org", A));
    let theirs = world.ask_at(OTHER, Transport::Udp, &query(1, "example.org", A));
    let sent = world.last();
    world.answer(&sent, &answer_to(&sent, 0, &[address("example.org", 60, "6.6.6.6")]));
    assert!(world.reply(theirs).is_some());
    assert!(world.reply(ours).is_none() && world.pins().is_empty());
}

#[test]
fn silent_names_do_not_block_others() {
    let mut world = open();
    for n in 0..300 {
        world.ask(&query(1, &format!("s{n}.silent.example"), A));
    }
    for n in 0..20 {
        let client = world.ask(&query(1, &format!("live{n}.example"), A));
        let sent = world.last();
        assert_eq!(sent.server.to_string(), FIRST, "silent names do not make a resolver dead");
        world.answer(&sent, &good(&sent));
        assert_eq!(world.reply(client).unwrap().rcode(), NOERROR);
        world.pass(ms(100));
    }
}

#[test]
fn at_the_bound_the_oldest_query_gives_way() {
    let mut world = open();
    let clients: Vec<_> = (0..1024).map(|n| world.ask(&query(1, &format!("s{n}.example"), A))).collect();
    assert!(clients.iter().all(|client| world.reply(*client).is_none()));
    let newest = world.ask(&query(1, "newest.example", A));
    assert_eq!(world.reply(clients[0]).unwrap().rcode(), SERVFAIL);
    assert!(world.reply(clients[1]).is_none() && world.reply(newest).is_none());
    let sent = world.last();
    world.answer(&sent, &good(&sent));
    assert_eq!(world.reply(newest).unwrap().rcode(), NOERROR);
    let limits = world.events().into_iter().filter(|event| {
        matches!(event, EventBody::LimitReached { limit: LimitKind::DnsQueries, bound: 1024, count: 1 })
    });
    assert_eq!(limits.count(), 1);
}

#[test]
fn a_reached_limit_is_reported_once_a_second() {
    let mut world = World::with(all_but(vec![]), |config| config.query_timeout = ms(60_000));
    for n in 0..2024 {
        world.ask(&query(1, &format!("s{n}.example"), A));
    }
    world.pass(ms(3000));
    let counts: Vec<_> = world
        .events()
        .into_iter()
        .filter_map(|event| match event {
            EventBody::LimitReached { count, .. } => Some(count),
            _ => None,
        })
        .collect();
    assert_eq!(counts, [1, 999]);
}

#[test]
fn a_thousand_waiters_for_one_name_are_bounded_as_well() {
    let mut world = one_upstream();
    let clients: Vec<_> = (0..1030).map(|_| world.ask(&query(1, "s.example", A))).collect();
    assert_eq!(world.sent.len(), 1);
    assert!(clients[..6].iter().all(|client| world.reply(*client).unwrap().rcode() == SERVFAIL));
    assert!(clients[6..].iter().all(|client| world.reply(*client).is_none()));
    let sent = world.last();
    world.answer(&sent, &good(&sent));
    assert!(clients[6..].iter().all(|client| world.reply(*client).unwrap().rcode() == NOERROR));
}

#[test]
fn answers_to_nobody_are_ignored() {
    let mut world = open();
    let client = world.ask(&query(1, "example.org", A));
    let sent = world.last();
    world.answer(&sent, &good(&sent));
    world.answer(&sent, &good(&sent));
    world.resolver.handle_failure(world.now, sent.upstream);
    assert!(world.resolver.poll_output().is_none());
    assert!(world.reply(client).is_some());
}

fn over_sessions(count: usize) -> World {
    World::with(all_but(vec![]), |config| {
        config.upstreams.truncate(2);
        for upstream in config.upstreams.iter_mut().take(count) {
            upstream.reach = cofferdam_names::Reach::Session;
        }
    })
}

#[test]
fn a_session_is_asked_once_however_long_it_takes() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let mut world = over_sessions(2);
        let client = world.ask_at(GATEWAY, transport, &query(1, "example.org", A));
        world.pass(ms(4900));
        assert_eq!(servers(&world), [FIRST, SECOND], "raced, and never repeated");
        let first = world.sent[0].clone();
        world.answer(&first, &good(&first));
        assert_eq!(world.reply(client).unwrap().rcode(), NOERROR);
    }
}

#[test]
fn a_session_that_fails_makes_way_for_the_next_resolver_and_never_for_a_plain_query_to_itself() {
    let mut world = over_sessions(1);
    let client = world.ask(&query(1, "example.org", A));
    let first = world.last();
    world.fail(&first);
    assert_eq!(servers(&world), [FIRST, SECOND]);
    let second = world.last();
    world.fail(&second);
    assert_eq!(world.reply(client).unwrap().rcode(), SERVFAIL);
    assert_eq!(world.sent.iter().filter(|sent| sent.server.to_string() == FIRST).count(), 1);
}

#[test]
fn a_truncated_or_foreign_answer_over_a_session_is_no_answer() {
    let mut world = over_sessions(2);
    let client = world.ask(&query(1, "example.org", A));
    let first = world.last();
    world.answer(&first, &sections_to(&first, 0x8380, &[], &[], &[]));
    let second = world.last();
    world.answer(&second, &[0, 0, 1]);
    assert_eq!(world.reply(client).unwrap().rcode(), SERVFAIL);
    assert_eq!(world.sent.len(), 2);
}

fn replace(world: &mut World, servers: &[&str]) {
    let upstreams = servers.iter().map(|text| text.parse::<std::net::SocketAddr>().unwrap().into()).collect();
    world.resolver.handle_upstreams(world.now, upstreams);
    world.drain();
}

#[test]
fn other_resolvers_are_asked_from_the_next_question_on_and_nothing_is_remembered() {
    for new in ["192.0.2.7:53", "[2001:db8::7]:53"] {
        let mut world = open();
        let client = world.ask(&query(1, "example.org", A));
        let sent = world.last();
        world.answer(&sent, &good(&sent));
        assert!(world.reply(client).is_some());
        replace(&mut world, &[new]);
        world.ask(&query(2, "example.org", A));
        assert_eq!(servers(&world), [FIRST, new]);
    }
}

#[test]
fn what_is_under_way_is_asked_of_the_new_resolvers_as_well() {
    for new in ["192.0.2.7:53", "[2001:db8::7]:53"] {
        for answers in [0, 1] {
            let mut world = open();
            let client = world.ask(&query(1, "example.org", A));
            replace(&mut world, &[new]);
            assert_eq!(servers(&world), [FIRST, new]);
            let sent = world.sent[answers].clone();
            world.answer(&sent, &good(&sent));
            assert_eq!(world.reply(client).unwrap().rcode(), NOERROR);
            assert!(world.live().is_empty());
            world.pass(ms(10_000));
            assert_eq!(world.sent.len(), 2, "the former second one is not asked any more");
        }
    }
}

#[test]
fn the_late_answer_of_a_former_resolver_is_for_those_who_wait_and_not_remembered() {
    for new in ["192.0.2.7:53", "[2001:db8::7]:53"] {
        for (answers, remembered) in [(0, false), (1, true)] {
            let mut world = open();
            let client = world.ask(&query(1, "example.org", A));
            replace(&mut world, &[new]);
            let [former, current] = [0, 1].map(|at| world.sent[at].clone());
            let (first, late) = if answers == 0 { (&former, &current) } else { (&current, &former) };
            world.answer(first, &good(first));
            assert_eq!(world.reply(client).unwrap().rcode(), NOERROR);
            // What comes after that is nobody's.
            world.answer(late, &good(late));
            world.ask(&query(2, "example.org", A));
            let expected = if remembered { vec![FIRST, new] } else { vec![FIRST, new, new] };
            assert_eq!(servers(&world), expected, "answer {answers}");
        }
    }
}

#[test]
fn a_resolver_of_the_guests_choice_stays_who_is_asked() {
    let mut world = open();
    world.ask_at(OTHER, Transport::Udp, &query(1, "example.org", A));
    replace(&mut world, &["192.0.2.7:53"]);
    world.pass(ms(10_000));
    assert!(servers(&world).iter().all(|server| server == OTHER));
}

#[test]
fn resolvers_that_change_all_the_time_cost_a_bounded_amount() {
    let mut world = open();
    let client = world.ask(&query(1, "example.org", A));
    for _ in 0..1000 {
        replace(&mut world, &["192.0.2.7:53", "192.0.2.8:53"]);
        assert!(world.live().len() <= 4);
    }
    assert!(world.sent.len() < 32);
    world.pass(ms(5000));
    assert_eq!(world.reply(client).unwrap().rcode(), SERVFAIL);
    replace(&mut world, &[]);
    let client = world.ask(&query(2, "example.org", A));
    assert_eq!(world.reply(client).unwrap().rcode(), SERVFAIL);
}
