//! What learning costs. Held: 5,000 flows in a second, from parsed events to the policy.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use cofferdam_evidence::{Learn, learn};
use cofferdam_model::{
    Action, CloseReason, Direction, Event, EventBody, EventSource, FirstFlight, FlightProtocol, FlowCounters, FlowId,
    Group, Protocol, RuleText,
};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

/// 300 names on 40 registrable domains and few addresses, as a crawler has them.
#[divan::bench(args = [5_000, 50_000])]
fn crawler(bencher: Bencher<'_, '_>, flows: u64) {
    let events: Vec<Event> = (0..flows).flat_map(flow).collect();
    bencher.bench_local(|| learn(black_box(&events).iter().cloned(), Learn::default()));
}

/// Every flow to another address that no name led to.
#[divan::bench(args = [5_000])]
fn scanner(bencher: Bencher<'_, '_>, flows: u64) {
    let address = |number: u64| Ipv4Addr::from_bits(0x5db8_0000 + u32::try_from(number).unwrap_or(0));
    let events: Vec<Event> = (0..flows).map(|number| event(opened(number, address(number).into()))).collect();
    bencher.bench_local(|| learn(black_box(&events).iter().cloned(), Learn::default()));
}

fn flow(number: u64) -> [Event; 4] {
    let name = format!("n{}.site{}.example{}.com", number % 300, number % 5, number % 40);
    let [.., last] = number.to_be_bytes();
    let remote = IpAddr::V4(Ipv4Addr::new(93, 184, 215, last % 4));
    let asked = EventBody::DnsQuery {
        name: name.clone(),
        qtype: 1,
        protocol: None,
        guest: None,
        server: None,
        verdict: Action::Allow,
        rule: RuleText::default(),
        decision: None,
        answers: vec![remote],
        withheld: None,
        rcode: Some(0),
        resolver: None,
        ms: 1.0,
        count: 1,
        process: None,
    };
    let shown = FirstFlight { protocol: FlightProtocol::Tls, names: vec![name], doubt: None };
    let flow = FlowId(number);
    let closed =
        EventBody::FlowClosed { flow, by: CloseReason::Guest, counters: FlowCounters::default(), duration_ms: 1 };
    [asked, opened(number, remote), EventBody::FlowShown { flow, shown }, closed].map(event)
}

fn opened(number: u64, remote: IpAddr) -> EventBody {
    EventBody::FlowOpened {
        flow: FlowId(number),
        direction: Direction::Egress,
        protocol: Protocol::Tcp,
        guest: SocketAddr::from(([172, 16, 0, 2], 40_000)),
        remote: SocketAddr::new(remote, 443),
        group: Group::Public,
        names: Vec::new(),
        rule: RuleText::default(),
        process: None,
    }
}

fn event(body: EventBody) -> Event {
    Event { v: 1, time: String::new(), mono_ns: 0, source: EventSource::Gateway, body }
}
