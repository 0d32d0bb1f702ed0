//! What a live view shows of a run.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

use std::net::SocketAddr;

use cofferdam_evidence::live::{
    Destination, Ending, HISTORY, Live, MAX_CLOSED, MAX_NAMES, MAX_OPEN, MAX_TALKS, Moved, Peer, Second, Stopped,
};
use cofferdam_evidence::summary::Advice;
use cofferdam_model::{
    Action, CloseReason, Direction, Event, EventBody, EventSource, FirstFlight, FlightProtocol, FlowCounters, FlowId,
    FlowProgress, Group, Process, Protocol, RuleText,
};
use proptest::collection::vec;
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const WEB: [&str; 2] = ["93.184.215.14:443", "[2606:2800:21f:cb07::14]:443"];

#[test]
fn a_flow_is_open_moves_and_is_closed() {
    for web in WEB {
        let mut live = Live::default();
        record(&mut live, SECOND, opened(1, web, &["a.example"], Some("curl")));
        let flow = live.open_flows().next().unwrap();
        assert_eq!((flow.id, flow.opened, flow.names.as_slice()), (FlowId(1), SECOND, &["a.example".to_owned()][..]));
        let Destination::Remote { remote, protocol, .. } = &flow.destination else { panic!("{flow:?}") };
        assert_eq!((remote.to_string().as_str(), *protocol), (web, Protocol::Tcp));
        assert_eq!(flow.process.as_ref().unwrap().comm, "curl");
        record(&mut live, 3 * SECOND, closed(1, 100, 2000));
        assert_eq!(live.open_flows().len(), 0);
        let flow = live.closed_flows().next().unwrap();
        let end = flow.end.as_ref().unwrap();
        assert_eq!((end.at, &end.how), (3 * SECOND, &Ending::Closed(CloseReason::Guest)));
        assert_eq!(flow.moved, Moved { out: 100, into: 2000 });
        assert_eq!((live.moved(), live.totals().bytes_in), (flow.moved, 2000));
        let (talker, talk) = live.talks().next().unwrap();
        assert_eq!((talker.program.as_deref(), &talker.peer), (Some("curl"), &Peer::Name("a.example".to_owned())));
        assert_eq!((talk.flows, talk.denied, talk.moved), (1, 0, flow.moved));
        let seconds: Vec<Second> = live.history().copied().collect();
        let first = Second { at: 1, opened: 1, ..Second::default() };
        assert_eq!(seconds, [first, Second { at: 3, moved: flow.moved, ..Second::default() }]);
    }
}

#[test]
fn what_changes_has_a_revision_that_nothing_had() {
    let mut live = Live::default();
    record(&mut live, 0, opened(1, WEB[0], &[], None));
    record(&mut live, 0, opened(2, WEB[1], &[], None));
    let seen = live.revision();
    assert!(live.open_flows().all(|flow| flow.revision <= seen));
    record(&mut live, 1, EventBody::FlowShown { flow: FlowId(2), shown: shown(&["b.example"]) });
    let news: Vec<FlowId> = live.open_flows().filter(|flow| flow.revision > seen).map(|flow| flow.id).collect();
    assert_eq!(news, [FlowId(2)]);
    let seen = live.revision();
    record(&mut live, 2, closed(1, 0, 0));
    assert!(live.closed_flows().next().unwrap().revision > seen);
}

#[test]
fn what_could_not_be_opened_says_why() {
    let mut live = Live::default();
    let failed = |flow| EventBody::FlowFailed {
        flow: FlowId(flow),
        protocol: Protocol::Tcp,
        guest: guest(),
        remote: WEB[0].parse().unwrap(),
        error: "connection refused".to_owned(),
        process: None,
    };
    // One that was never open is counted and not shown.
    record(&mut live, 1, failed(1));
    record(&mut live, 2, opened(2, WEB[0], &[], None));
    record(&mut live, 3, failed(2));
    let flows: Vec<_> = live.closed_flows().map(|flow| (flow.id, flow.end.clone().unwrap().how)).collect();
    assert_eq!(flows, [(FlowId(2), Ending::Failed("connection refused".to_owned()))]);
    assert_eq!((live.totals().flows_failed, live.open_flows().len()), (2, 0));
}

#[test]
fn a_denial_is_told_with_the_rule_that_would_let_it_pass() {
    for (web, rule) in WEB.iter().zip(["allow@93.184.215.14:tcp:443", "allow@[2606:2800:21f:cb07::14]:tcp:443"]) {
        let mut live = Live::new(Advice::default());
        record(&mut live, 1, denied("first", web, &[], Some("curl")));
        record(&mut live, SECOND, denied("second", web, &[], Some("curl")));
        let [row] = &live.denied()[..] else { panic!("one group") };
        assert_eq!(
            (row.count, row.decision.as_deref(), row.last_decision.as_deref()),
            (2, Some("first"), Some("second"))
        );
        assert_eq!(row.allow_rule.as_deref(), Some(rule));
        let (talker, talk) = live.talks().next().unwrap();
        assert_eq!((talker.program.as_deref(), talk.denied, talk.flows), (Some("curl"), 2, 0));
        assert_eq!(live.history().map(|second| second.denied).collect::<Vec<_>>(), [1, 1]);
    }
}

#[test]
fn what_a_name_was_denied_is_a_denial_of_that_name() {
    let mut live = Live::default();
    record(&mut live, 1, look_up("Tracker.Example.", Action::Deny, 3));
    record(&mut live, 1, look_up("other.example", Action::Allow, 3));
    record(&mut live, 1, EventBody::DnsMore { verdict: Action::Deny, count: 5 });
    let talks: Vec<_> = live.talks().map(|(talker, talk)| (talker.peer.clone(), talk.denied)).collect();
    assert_eq!(talks, [(Peer::Name("tracker.example".to_owned()), 3)]);
    assert_eq!((live.talks_beyond().denied, live.totals().dns_denied), (5, 8));
    assert_eq!(live.denied()[0].allow_rule.as_deref(), Some("allow@tracker.example"));
}

#[test]
fn sockets_of_the_host_are_flows() {
    let mut live = Live::default();
    let (host, guest) = ("/run/agent".to_owned(), "/tmp/agent".to_owned());
    record(&mut live, 1, EventBody::SocketOpened { flow: FlowId(9), host: host.clone(), guest, process: None });
    assert_eq!(live.open_flows().next().unwrap().destination, Destination::Socket(host.clone()));
    let counters = FlowCounters { bytes_out: 5, bytes_in: 6, ..FlowCounters::default() };
    let end = EventBody::SocketClosed { flow: FlowId(9), by: CloseReason::Guest, counters, duration_ms: 1 };
    record(&mut live, 2, end);
    let (talker, talk) = live.talks().next().unwrap();
    assert_eq!((&talker.peer, talk.moved), (&Peer::Socket(host), Moved { out: 5, into: 6 }));
}

#[test]
fn a_flood_of_flows_keeps_the_youngest_and_exact_totals() {
    let mut live = Live::default();
    let count = u64::try_from(MAX_OPEN).unwrap() + 500;
    for flow in 0..count {
        record(&mut live, flow, opened(flow, WEB[0], &[&format!("n{flow}.example")], None));
    }
    assert_eq!((live.open_flows().len(), live.unlisted()), (MAX_OPEN, 500));
    assert_eq!((live.talks().count(), live.talks_beyond().flows), (MAX_TALKS, count - 4096));
    for flow in 0..count {
        record(&mut live, count, closed(flow, 1, 2));
    }
    assert_eq!((live.open_flows().len(), live.unlisted(), live.closed_flows().len()), (0, 0, MAX_CLOSED));
    assert_eq!(live.moved(), Moved { out: count, into: 2 * count });
    assert_eq!(live.totals().flows_opened, count);
    assert_eq!(live.closed_flows().next().unwrap().id, FlowId(count - 1));
}

#[test]
fn history_is_of_the_last_two_minutes() {
    let mut live = Live::default();
    for second in 0..1000 {
        record(&mut live, second * SECOND, denied("x", WEB[0], &[], None));
    }
    // A little late, and far too late.
    record(&mut live, 998 * SECOND, denied("x", WEB[0], &[], None));
    record(&mut live, 5 * SECOND, denied("x", WEB[0], &[], None));
    let seconds: Vec<Second> = live.history().copied().collect();
    assert_eq!((seconds.len(), seconds[0].at, seconds[HISTORY - 1].at), (HISTORY, 880, 999));
    assert_eq!((seconds[HISTORY - 2].denied, live.totals().flows_denied), (2, 1002));
}

#[test]
fn rates_are_what_was_moved_in_the_last_seconds() {
    for web in WEB {
        let mut live = Live::default();
        record(&mut live, 0, opened(1, web, &[], None));
        record(&mut live, 0, opened(2, web, &[], None));
        for second in 1..=10 {
            record(&mut live, second * SECOND, progress(1, 10 * second, 300 * second));
        }
        let rates = |live: &Live, now| live.open_flows().map(|flow| flow.rate(now)).collect::<Vec<_>>();
        let steady = Moved { out: 10, into: 300 };
        assert_eq!(rates(&live, 10 * SECOND), [steady, Moved::default()]);
        assert_eq!((live.rate(11 * SECOND), live.moved()), (steady, Moved { out: 100, into: 3000 }));
        // It comes to rest.
        assert_eq!(rates(&live, 12 * SECOND)[0], Moved { out: 3, into: 100 });
        assert_eq!((rates(&live, 14 * SECOND)[0], live.rate(15 * SECOND)), (Moved::default(), Moved::default()));
        // What was told before is not counted anew, also at its end.
        record(&mut live, 20 * SECOND, progress(1, 100, 3000));
        record(&mut live, 21 * SECOND, closed(1, 101, 3000));
        assert_eq!(live.moved(), Moved { out: 101, into: 3000 });
        assert_eq!(live.talks().next().unwrap().1.moved, live.moved());
    }
}

#[test]
fn a_young_flow_has_the_rate_of_its_age() {
    let mut live = Live::default();
    record(&mut live, 10 * SECOND, opened(1, WEB[0], &[], None));
    record(&mut live, 11 * SECOND, progress(1, 0, 500));
    let flow = live.open_flows().next().unwrap();
    assert_eq!(flow.rate(11 * SECOND), Moved { out: 0, into: 500 });
    assert!(flow.is_moving(12 * SECOND, 2 * SECOND) && !flow.is_moving(13 * SECOND, 2 * SECOND));
}

#[test]
fn the_end_of_the_program_is_told() {
    let mut live = Live::default();
    record(&mut live, 1, EventBody::SandboxStopped { exit_status: 3, duration_ms: 5 });
    assert_eq!(live.stopped(), Some(Stopped { exit_status: 3, duration_ms: 5 }));
}

proptest! {
    /// Whatever comes, in whatever order: nothing panics, nothing outgrows its bound, and what is counted is exact.
    #[test]
    fn any_stream_is_counted_within_bounds(events in vec((event(), any::<u64>(), 0_u8..8), 0..400)) {
        let mut live = Live::default();
        let (mut opened, mut denied, mut carried) = (0, 0, 0_u64);
        let mut at = 0_u64;
        for (body, jump, odd) in events {
            // Mostly forward, at times anywhere.
            at = if odd == 0 { jump } else { at.saturating_add(jump % (3 * SECOND)) };
            opened += u64::from(matches!(body, EventBody::FlowOpened { .. }));
            denied += u64::from(matches!(body, EventBody::FlowDenied { .. }));
            if let EventBody::FlowClosed { counters, .. } = &body {
                carried = carried.saturating_add(counters.bytes_out);
            }
            let revision = live.revision();
            record(&mut live, at, body);
            prop_assert!(live.revision() >= revision);
            prop_assert!(live.history().count() <= HISTORY);
            prop_assert!(live.closed_flows().len() <= MAX_CLOSED);
            prop_assert!(live.open_flows().all(|flow| flow.names.len() <= MAX_NAMES && flow.end.is_none()));
            prop_assert!(live.closed_flows().all(|flow| flow.end.is_some() && flow.rate(at) == Moved::default()));
            let ats: Vec<u64> = live.history().map(|second| second.at).collect();
            prop_assert!(ats.is_sorted_by(|a, b| a < b), "{:?}", ats);
            let _ = live.rate(at);
            live.open_flows().for_each(|flow| assert!(flow.rate(at).out <= flow.moved.out));
        }
        let totals = live.totals();
        prop_assert_eq!((totals.flows_opened, totals.flows_denied, totals.bytes_out), (opened, denied, carried));
        let talks = live.talks().map(|(_, talk)| *talk).chain([live.talks_beyond()]);
        let (flows, refused) = talks.fold((0, 0), |(flows, refused), talk| (flows + talk.flows, refused + talk.denied));
        prop_assert_eq!((flows, refused), (opened, denied + totals.dns_denied));
        prop_assert_eq!(live.denied().iter().filter(|row| row.port.is_some()).map(|row| row.count).sum::<u64>(), denied);
    }
}

fn event() -> impl Strategy<Value = EventBody> {
    let name = prop_oneof![Just(None), "[a-c]\\.example".prop_map(Some)];
    let flow = 0_u64..12;
    let bytes = prop_oneof![0_u64..5000, Just(u64::MAX)];
    prop_oneof![
        (flow.clone(), 0_usize..2, name.clone()).prop_map(|(flow, web, name)| {
            opened(flow, WEB[web], &name.iter().map(String::as_str).collect::<Vec<_>>(), None)
        }),
        (flow.clone(), bytes.clone(), bytes.clone()).prop_map(|(flow, out, into)| closed(flow, out, into)),
        (flow.clone(), bytes.clone(), bytes).prop_map(|(flow, out, into)| progress(flow, out, into)),
        (flow, vec("[a-z]{3}", 0..12)).prop_map(|(flow, names)| EventBody::FlowShown {
            flow: FlowId(flow),
            shown: FirstFlight { protocol: FlightProtocol::Tls, names, doubt: None },
        }),
        (0_usize..2, name).prop_map(|(web, name)| {
            denied("x", WEB[web], &name.iter().map(String::as_str).collect::<Vec<_>>(), Some("sh"))
        }),
        ("[a-c]\\.example", 0_u64..4).prop_map(|(name, count)| look_up(&name, Action::Deny, count)),
    ]
}

fn record(live: &mut Live, mono_ns: u64, body: EventBody) {
    let time = "2026-11-26T11:00:00.000000Z".to_owned();
    live.record(&Event { v: 1, time, mono_ns, source: EventSource::Gateway, body });
}

fn opened(flow: u64, remote: &str, names: &[&str], program: Option<&str>) -> EventBody {
    EventBody::FlowOpened {
        flow: FlowId(flow),
        direction: Direction::Egress,
        protocol: Protocol::Tcp,
        guest: guest(),
        remote: remote.parse().unwrap(),
        group: Group::Public,
        names: owned(names),
        rule: RuleText::default(),
        process: program.map(process),
    }
}

fn closed(flow: u64, bytes_out: u64, bytes_in: u64) -> EventBody {
    let counters = FlowCounters { bytes_out, bytes_in, ..FlowCounters::default() };
    EventBody::FlowClosed { flow: FlowId(flow), by: CloseReason::Guest, counters, duration_ms: 1 }
}

fn progress(flow: u64, bytes_out: u64, bytes_in: u64) -> EventBody {
    let counters = FlowCounters { bytes_out, bytes_in, ..FlowCounters::default() };
    EventBody::FlowProgress { flows: vec![FlowProgress { flow: FlowId(flow), counters }], more: 0 }
}

fn denied(decision: &str, remote: &str, names: &[&str], program: Option<&str>) -> EventBody {
    EventBody::FlowDenied {
        decision: decision.to_owned(),
        direction: Direction::Egress,
        protocol: Protocol::Tcp,
        guest: guest(),
        remote: remote.parse().unwrap(),
        group: Group::Public,
        names: owned(names),
        rule: RuleText { index: None, text: "default egress deny".to_owned(), layer: None },
        shown: None,
        look_up_again: None,
        process: program.map(process),
    }
}

fn look_up(name: &str, verdict: Action, count: u64) -> EventBody {
    EventBody::DnsQuery {
        name: name.to_owned(),
        qtype: 1,
        protocol: None,
        guest: None,
        server: None,
        verdict,
        rule: RuleText { index: None, text: "default egress deny".to_owned(), layer: None },
        decision: None,
        answers: Vec::new(),
        withheld: None,
        rcode: None,
        resolver: None,
        ms: 0.0,
        count,
        process: None,
    }
}

fn shown(names: &[&str]) -> FirstFlight {
    FirstFlight { protocol: FlightProtocol::Tls, names: owned(names), doubt: None }
}

fn process(comm: &str) -> Process {
    Process { pid: 7, comm: comm.to_owned(), argv0: None }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn guest() -> SocketAddr {
    "172.16.0.2:40000".parse().unwrap()
}
