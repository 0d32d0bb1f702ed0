//! A guest and its resolvers around a [`Resolver`], with time made up, and a DNS codec that shares nothing with the one
//! under test.
#![allow(dead_code, reason = "every test binary uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "test support"
)]
#![allow(unreachable_pub, reason = "shared by test binaries")]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_model::{
    Action, Classifier, Destination, DomainName, EventBody, Group, HostNetwork, NetworkConfig, PolicyConfig, Rule, Time,
};
use cofferdam_names::{
    ClientId, Ends, Families, Output, Rebinding, Resolver, ResolverConfig, Transport, Upstream, UpstreamId,
};
use cofferdam_policy::Policy;

pub const A: u16 = 1;
pub const NS: u16 = 2;
pub const CNAME: u16 = 5;
pub const SOA: u16 = 6;
pub const PTR: u16 = 12;
pub const MX: u16 = 15;
pub const TXT: u16 = 16;
pub const AAAA: u16 = 28;
pub const SRV: u16 = 33;
pub const OPT: u16 = 41;
pub const SVCB: u16 = 64;
pub const HTTPS: u16 = 65;

pub const NOERROR: u16 = 0;
pub const FORMERR: u16 = 1;
pub const SERVFAIL: u16 = 2;
pub const NXDOMAIN: u16 = 3;
pub const NOTIMP: u16 = 4;
pub const REFUSED: u16 = 5;

pub const GATEWAY: &str = "172.16.7.1:53";
pub const GATEWAY6: &str = "[fd42:6d73:62:7::1]:53";
pub const FIRST: &str = "9.9.9.9:53";
pub const SECOND: &str = "[2620:fe::9]:53";
pub const OTHER: &str = "8.8.8.8:53";

pub fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub fn name(text: &str) -> DomainName {
    text.parse().unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn allow_name(text: &str) -> Rule {
    Rule::egress(Action::Allow, Destination::Domain(name(text)))
}

/// As [`allow_name`], and the name may lead to addresses that are not public.
pub fn allow_name_inside(text: &str) -> Rule {
    Rule { allow_private: true, ..allow_name(text) }
}

pub fn deny_name(text: &str) -> Rule {
    Rule::egress(Action::Deny, Destination::Domain(name(text)))
}

pub fn allow_group(group: Group) -> Rule {
    Rule::egress(Action::Allow, Destination::Group(group))
}

pub fn allow_net(text: &str) -> Rule {
    Rule::egress(Action::Allow, Destination::Cidr(text.parse().unwrap()))
}

pub fn only(rules: Vec<Rule>) -> PolicyConfig {
    PolicyConfig { default_ingress: Action::Deny, rules, ..PolicyConfig::default() }
}

pub fn all_but(rules: Vec<Rule>) -> PolicyConfig {
    PolicyConfig { default_egress: Action::Allow, default_ingress: Action::Deny, rules, strict: true }
}

/// A query that a resolver got and has not been told to forget.
#[derive(Debug, Clone)]
pub struct Sent {
    pub upstream: UpstreamId,
    pub server: SocketAddr,
    pub transport: Transport,
    pub message: Vec<u8>,
    pub at: Time,
}

/// Where the guest asks from.
pub const GUEST: &str = "172.16.7.2:40000";

pub fn ends(server: &str) -> Ends {
    Ends { guest: GUEST.parse().unwrap(), server: server.parse().unwrap() }
}

/// A sandbox's resolver and everything around it.
#[derive(Debug)]
pub struct World {
    pub resolver: Resolver,
    pub now: Time,
    /// Every query that was ever sent.
    pub sent: Vec<Sent>,
    pub abandoned: Vec<UpstreamId>,
    /// Outputs other than queries and their ends, in order.
    pub told: Vec<Output>,
    pub next_client: u64,
    pub refuse_pins: bool,
    /// The configured resolvers.
    pub sessions: Vec<Upstream>,
}

impl World {
    pub fn new(policy: PolicyConfig) -> World {
        World::with(policy, |_| {})
    }

    pub fn with(policy: PolicyConfig, change: impl FnOnce(&mut ResolverConfig)) -> World {
        World::of(&NetworkConfig { policy, ..cofferdam_policy::file::default_network() }, change)
    }

    /// With everything that a configuration says about names.
    pub fn of(network: &NetworkConfig, change: impl FnOnce(&mut ResolverConfig)) -> World {
        let gateway: Vec<SocketAddr> = vec![GATEWAY.parse().unwrap(), GATEWAY6.parse().unwrap()];
        let addresses: Vec<IpAddr> = gateway.iter().map(SocketAddr::ip).collect();
        let classifier =
            Classifier::new(HostNetwork { addresses: addresses.clone(), on_link: Vec::new(), nat64: Vec::new() });
        let mut config = ResolverConfig {
            upstreams: [FIRST, SECOND].map(|text| text.parse::<SocketAddr>().unwrap().into()).to_vec(),
            gateway: addresses,
            families: Families { ipv4: true, ipv6: true },
            query_timeout: ms(5000),
            rebinding: Rebinding::of_network(network, &classifier),
            witness: Duration::ZERO,
            seed: [7; 32],
        };
        change(&mut config);
        World {
            sessions: config.upstreams.clone(),
            resolver: Resolver::new(config, Arc::new(Policy::of_network(network, classifier).unwrap())),
            now: Time::from_nanos(1),
            sent: Vec::new(),
            abandoned: Vec::new(),
            told: Vec::new(),
            next_client: 0,
            refuse_pins: false,
        }
    }

    pub fn ask(&mut self, message: &[u8]) -> ClientId {
        self.ask_at(GATEWAY, Transport::Udp, message)
    }

    pub fn ask_at(&mut self, server: &str, transport: Transport, message: &[u8]) -> ClientId {
        let client = ClientId(self.next_client);
        self.next_client += 1;
        self.resolver.handle_query(self.now, client, transport, ends(server), message);
        self.drain();
        client
    }

    pub fn answer(&mut self, sent: &Sent, message: &[u8]) {
        self.resolver.handle_answer(self.now, sent.upstream, message);
        self.drain();
    }

    pub fn fail(&mut self, sent: &Sent) {
        self.resolver.handle_failure(self.now, sent.upstream);
        self.abandoned.push(sent.upstream);
        self.drain();
    }

    /// Lets time pass, with every timer served when it is due.
    pub fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        for _ in 0..100_000 {
            match self.resolver.poll_timeout().filter(|due| *due <= end) {
                Some(due) => {
                    self.now = self.now.max(due);
                    self.resolver.handle_timeout(self.now);
                    self.drain();
                }
                None => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("the resolver's timers do not come to rest");
    }

    /// The query that was sent last.
    pub fn last(&self) -> Sent {
        self.sent.last().unwrap().clone()
    }

    /// The queries that are still under way.
    pub fn live(&self) -> Vec<&Sent> {
        self.sent.iter().filter(|sent| !self.abandoned.contains(&sent.upstream)).collect()
    }

    /// What `client` was answered.
    pub fn reply(&self, client: ClientId) -> Option<Message> {
        let mut replies = self.told.iter().filter_map(|output| match output {
            Output::Answer { client: answered, message } if *answered == client => Some(message),
            _ => None,
        });
        let reply = replies.next()?;
        assert!(replies.next().is_none(), "{client:?} was answered twice");
        Some(Message::parse(reply))
    }

    pub fn raw_reply(&self, client: ClientId) -> Option<Vec<u8>> {
        self.told.iter().find_map(|output| match output {
            Output::Answer { client: answered, message } if *answered == client => Some(message.clone()),
            _ => None,
        })
    }

    pub fn pins(&self) -> Vec<(String, bool, IpAddr, u64)> {
        let pin = |output: &Output| match output {
            Output::Pin { name, alias, address, ttl } => Some((name.to_string(), *alias, *address, ttl.as_secs())),
            _ => None,
        };
        self.told.iter().filter_map(pin).collect()
    }

    pub fn events(&self) -> Vec<EventBody> {
        let event = |output: &Output| match output {
            Output::Event(event) | Output::Answered { event, .. } => Some(event.clone()),
            _ => None,
        };
        self.told.iter().filter_map(event).collect()
    }

    pub fn drain(&mut self) {
        while let Some(output) = self.resolver.poll_output() {
            match output {
                Output::Query { upstream, server, transport, message } => {
                    self.sent.push(Sent { upstream, server, transport, message, at: self.now });
                }
                Output::Ask { upstream, resolver, message } => {
                    let server = self.sessions[resolver].server;
                    let transport = Transport::Tcp;
                    self.sent.push(Sent { upstream, server, transport, message, at: self.now });
                }
                Output::Abandon { upstream } => {
                    assert!(self.sent.iter().any(|sent| sent.upstream == upstream));
                    assert!(!self.abandoned.contains(&upstream), "{upstream:?} was abandoned twice");
                    self.abandoned.push(upstream);
                }
                Output::Pin { .. } => {
                    self.told.push(output);
                    if self.refuse_pins {
                        self.resolver.handle_pin_refused();
                    }
                }
                Output::Answer { .. } | Output::Event(_) | Output::Answered { .. } => self.told.push(output),
                // Nothing is told to anybody.
                Output::Ignore { .. } => {}
            }
        }
    }
}

/// A message as somebody else's parser reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub id: u16,
    pub flags: u16,
    pub question: Option<(String, u16)>,
    pub answer: Vec<Parsed>,
    pub authority: Vec<Parsed>,
    pub additional: Vec<Parsed>,
    pub length: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    pub name: String,
    pub kind: u16,
    pub class: u16,
    pub ttl: u32,
    /// With names expanded, for the types that the tests look at.
    pub data: Vec<u8>,
}

impl Message {
    pub fn parse(bytes: &[u8]) -> Message {
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let mut at = 12;
        let mut question = None;
        for _ in 0..word(4) {
            let (name, next) = read_name(bytes, at);
            question = Some((name, word(next)));
            assert_eq!(word(next + 2), 1, "class of the question");
            at = next + 4;
        }
        let mut sections = [Vec::new(), Vec::new(), Vec::new()];
        for (section, count) in sections.iter_mut().zip([word(6), word(8), word(10)]) {
            for _ in 0..count {
                let (name, next) = read_name(bytes, at);
                let ttl = u32::from_be_bytes([bytes[next + 4], bytes[next + 5], bytes[next + 6], bytes[next + 7]]);
                let start = next + 10;
                at = start + usize::from(word(next + 8));
                let data = match word(next) {
                    NS | CNAME | PTR => encode_name(&read_name(bytes, start).0),
                    MX => [bytes[start..start + 2].to_vec(), encode_name(&read_name(bytes, start + 2).0)].concat(),
                    _ => bytes[start..at].to_vec(),
                };
                section.push(Parsed { name, kind: word(next), class: word(next + 2), ttl, data });
            }
        }
        assert_eq!(at, bytes.len(), "bytes after the last record");
        let [answer, authority, additional] = sections;
        Message { id: word(0), flags: word(2), question, answer, authority, additional, length: bytes.len() }
    }

    pub fn rcode(&self) -> u16 {
        let extended = self.opt().map_or(0, |opt| u16::from(opt.ttl.to_be_bytes()[0]) << 4);
        self.flags & 15 | extended
    }

    pub fn is_truncated(&self) -> bool {
        self.flags & 0x0200 != 0
    }

    pub fn opt(&self) -> Option<&Parsed> {
        self.additional.iter().find(|record| record.kind == OPT)
    }

    pub fn addresses(&self) -> Vec<IpAddr> {
        let address = |record: &Parsed| match record.kind {
            A => Some(IpAddr::from(<[u8; 4]>::try_from(record.data.as_slice()).unwrap())),
            AAAA => Some(IpAddr::from(<[u8; 16]>::try_from(record.data.as_slice()).unwrap())),
            _ => None,
        };
        self.answer.iter().filter_map(address).collect()
    }

    /// Code and text of the extended errors (RFC 8914).
    pub fn extended_errors(&self) -> Vec<(u16, String)> {
        let mut errors = Vec::new();
        let mut rest = self.opt().map_or(&[][..], |opt| opt.data.as_slice());
        while rest.len() >= 4 {
            let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
            let data = &rest[4..4 + length];
            if rest[..2] == [0, 15] {
                let text = String::from_utf8(data[2..].to_vec()).unwrap();
                errors.push((u16::from_be_bytes([data[0], data[1]]), text));
            }
            rest = &rest[4 + length..];
        }
        errors
    }
}

fn read_name(bytes: &[u8], mut at: usize) -> (String, usize) {
    let mut name = String::new();
    let mut end = None;
    for _ in 0..300 {
        let length = usize::from(bytes[at]);
        if length >= 0xc0 {
            end.get_or_insert(at + 2);
            at = (length & 0x3f) << 8 | usize::from(bytes[at + 1]);
        } else if length == 0 {
            return (if name.is_empty() { ".".to_owned() } else { name }, end.unwrap_or(at + 1));
        } else {
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(bytes[at + 1..=at + length].iter().map(|byte| char::from(*byte)));
            at += length + 1;
        }
    }
    panic!("a name without end")
}

pub fn encode_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

pub fn header(id: u16, flags: u16, counts: [u16; 4]) -> Vec<u8> {
    [id, flags].iter().chain(&counts).flat_map(|word| word.to_be_bytes()).collect()
}

pub fn question(name: &str, qtype: u16) -> Vec<u8> {
    [encode_name(name), qtype.to_be_bytes().to_vec(), vec![0, 1]].concat()
}

/// A stub's query without EDNS.
pub fn query(id: u16, name: &str, qtype: u16) -> Vec<u8> {
    [header(id, 0x0100, [1, 0, 0, 0]), question(name, qtype)].concat()
}

/// A stub's query with EDNS.
pub fn query_edns(id: u16, name: &str, qtype: u16, size: u16, flags: u16) -> Vec<u8> {
    let opt = opt(size, flags, &[]);
    [header(id, 0x0100, [1, 0, 0, 1]), question(name, qtype), opt].concat()
}

pub fn opt(size: u16, flags: u16, options: &[u8]) -> Vec<u8> {
    let length = u16::try_from(options.len()).unwrap();
    let mut opt = vec![0, 0, 41];
    opt.extend_from_slice(&size.to_be_bytes());
    opt.extend_from_slice(&[0, 0]);
    opt.extend_from_slice(&flags.to_be_bytes());
    opt.extend_from_slice(&length.to_be_bytes());
    opt.extend_from_slice(options);
    opt
}

pub fn record(name: &str, kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut record = encode_name(name);
    record.extend_from_slice(&kind.to_be_bytes());
    record.extend_from_slice(&[0, 1]);
    record.extend_from_slice(&ttl.to_be_bytes());
    record.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
    record.extend_from_slice(data);
    record
}

pub fn address(name: &str, ttl: u32, address: &str) -> Vec<u8> {
    match ip(address) {
        IpAddr::V4(address) => record(name, A, ttl, &address.octets()),
        IpAddr::V6(address) => record(name, AAAA, ttl, &address.octets()),
    }
}

pub fn cname(name: &str, ttl: u32, target: &str) -> Vec<u8> {
    record(name, CNAME, ttl, &encode_name(target))
}

/// The address type of an address.
pub fn qtype_of(text: &str) -> u16 {
    if ip(text).is_ipv4() { A } else { AAAA }
}

/// A resolver's answer to a query of ours, without EDNS.
pub fn answer_to(sent: &Sent, rcode: u16, answer: &[Vec<u8>]) -> Vec<u8> {
    sections_to(sent, 0x8180 | rcode, answer, &[], &[])
}

pub fn sections_to(
    sent: &Sent,
    flags: u16,
    answer: &[Vec<u8>],
    authority: &[Vec<u8>],
    additional: &[Vec<u8>],
) -> Vec<u8> {
    let asked = Message::parse(&sent.message);
    let (name, qtype) = asked.question.unwrap();
    let count = |section: &[Vec<u8>]| u16::try_from(section.len()).unwrap();
    let counts = [1, count(answer), count(authority), count(additional)];
    let records = [answer, authority, additional].concat().concat();
    [header(asked.id, flags, counts), question(&name, qtype), records].concat()
}
