//! Recordings, written down as short words.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::{IpAddr, SocketAddr};

use cofferdam_model::{
    Action, CloseReason, Direction, Event, EventBody, EventSource, FirstFlight, FlightProtocol, FlowCounters, FlowId,
    Group, Protocol, RuleText, Withheld,
};

/// Events of one run, in order.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    pub(crate) events: Vec<Event>,
    flows: u64,
}

impl Recording {
    pub(crate) fn looks_up(mut self, name: &str, answers: &[&str]) -> Recording {
        let answers = answers.iter().map(|address| address.parse().unwrap()).collect();
        self.push(look_up(name, Action::Allow, answers, None));
        self
    }

    /// A look-up of which is known where it was sent, and who has answered.
    pub(crate) fn asks(mut self, asked: &str, answered: &str, name: &str, answers: &[&str]) -> Recording {
        let answers = answers.iter().map(|address| address.parse().unwrap()).collect();
        let mut body = look_up(name, Action::Allow, answers, None);
        if let EventBody::DnsQuery { protocol, server, resolver, .. } = &mut body {
            *protocol = Some(Protocol::Udp);
            *server = Some(asked.parse().unwrap());
            *resolver = Some(answered.parse().unwrap());
        }
        self.push(body);
        self
    }

    pub(crate) fn holds_back(mut self, name: &str, address: &str, group: Group) -> Recording {
        let withheld = Withheld { address: address.parse().unwrap(), group };
        self.push(look_up(name, Action::Deny, Vec::new(), Some(withheld)));
        self
    }

    /// A flow over TCP that shows these names; over TLS on port 443, over HTTP elsewhere.
    pub(crate) fn shows(self, remote: &str, names: &[&str]) -> Recording {
        let port = remote.parse::<SocketAddr>().unwrap().port();
        let protocol = if port == 443 { FlightProtocol::Tls } else { FlightProtocol::Http };
        self.flow(Protocol::Tcp, remote, Some(flight(protocol, names)))
    }

    pub(crate) fn other(self, remote: &str) -> Recording {
        self.flow(Protocol::Tcp, remote, Some(flight(FlightProtocol::Other, &[])))
    }

    pub(crate) fn silent(self, remote: &str) -> Recording {
        self.flow(Protocol::Tcp, remote, None)
    }

    pub(crate) fn flow(mut self, protocol: Protocol, remote: &str, shown: Option<FirstFlight>) -> Recording {
        let remote: SocketAddr = remote.parse().unwrap();
        self.flows += 1;
        let flow = FlowId(self.flows);
        self.push(EventBody::FlowOpened {
            flow,
            direction: Direction::Egress,
            protocol,
            guest: guest(remote.ip()),
            remote,
            group: group(remote.ip()),
            names: Vec::new(),
            rule: RuleText::default(),
            process: None,
        });
        if let Some(shown) = shown {
            self.push(EventBody::FlowShown { flow, shown });
        }
        let counters = FlowCounters::default();
        self.push(EventBody::FlowClosed { flow, by: CloseReason::Guest, counters, duration_ms: 1 });
        self
    }

    pub(crate) fn denied(mut self, remote: &str, names: &[&str], shown: Option<FirstFlight>) -> Recording {
        let remote: SocketAddr = remote.parse().unwrap();
        self.push(EventBody::FlowDenied {
            decision: "x".into(),
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            guest: guest(remote.ip()),
            remote,
            group: group(remote.ip()),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            rule: RuleText::default(),
            shown,
            look_up_again: None,
            process: None,
        });
        self
    }

    pub(crate) fn push(&mut self, body: EventBody) {
        let mono_ns = u64::try_from(self.events.len()).unwrap();
        self.events.push(Event { v: 1, time: String::new(), mono_ns, source: EventSource::Gateway, body });
    }
}

pub(crate) fn flight(protocol: FlightProtocol, names: &[&str]) -> FirstFlight {
    FirstFlight { protocol, names: names.iter().map(|name| (*name).to_owned()).collect(), doubt: None }
}

/// The gateway's addresses of every recording here.
pub(crate) const HOST: [&str; 2] = ["172.16.0.1", "fd42::1"];

fn guest(peer: IpAddr) -> SocketAddr {
    let guest = if peer.is_ipv4() { "172.16.0.2:40000" } else { "[fd42::2]:40000" };
    guest.parse().unwrap()
}

fn group(address: IpAddr) -> Group {
    match HOST.iter().any(|host| host.parse() == Ok(address)) {
        true => Group::Host,
        false => cofferdam_model::Classifier::default().classify(address),
    }
}

fn look_up(name: &str, verdict: Action, answers: Vec<IpAddr>, withheld: Option<Withheld>) -> EventBody {
    EventBody::DnsQuery {
        name: name.to_owned(),
        qtype: 1,
        protocol: None,
        guest: None,
        server: None,
        verdict,
        rule: RuleText::default(),
        decision: None,
        answers,
        withheld,
        rcode: Some(0),
        resolver: Some("93.184.215.53:53".parse().unwrap()),
        ms: 1.0,
        count: 1,
        process: None,
    }
}
