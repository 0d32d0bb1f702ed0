//! What a policy says to what was recorded under another one.
//!
//! Names count as they did: those that a look-up of the recording led to the address of a flow, or, where the recording has
//! no such look-up, those that the flow's own event has. What a flow would have to show is only known where it was denied for
//! that; of others it is taken that they show the name that lets them pass.
//!
//! Limits: [`Trial::MAX_CHANGES`] different answers are kept apart; what comes beyond is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use cofferdam_model::{
    Action, Classifier, Direction, DomainName, Event, EventBody, FirstFlight, FlightProtocol, Group, HostNetwork,
    Protocol, RuleText,
};
use cofferdam_policy::{Facts, Flight, FlightVerdict, PinnedName, Policy, ShownName, Verdict};
use ipnet::IpNet;

use crate::learn::query;
use crate::observe::{MAX_NAMES, MAX_PER_ADDRESS, MAX_PINS, YOUNGEST};

/// Something that a program of the recording asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    LookUp {
        name: String,
    },
    Flow {
        direction: Direction,
        protocol: Protocol,
        /// The name that led to the peer, where one did.
        host: Host,
        /// `None` for ICMP.
        port: Option<u16>,
    },
}

/// The other end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    Name(String),
    Address(IpAddr),
}

/// What was said then, and what this policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    pub asked: Asked,
    pub was: Action,
    pub is: Action,
    /// What the flow shows has to bear it out.
    pub waits: bool,
    /// What decides.
    pub rule: RuleText,
    /// How many alike the event stands for.
    pub count: u64,
}

/// Puts one recording to a policy, event after event.
#[derive(Debug)]
pub struct Replay<'a> {
    policy: &'a Policy,
    pins: BTreeMap<IpAddr, Vec<DomainName>>,
    pinned: usize,
}

impl<'a> Replay<'a> {
    #[must_use]
    pub fn new(policy: &'a Policy) -> Replay<'a> {
        Replay { policy, pins: BTreeMap::new(), pinned: 0 }
    }

    /// What the policy says to the flow or look-up that this event is about; `None`: it is about neither.
    pub fn event(&mut self, event: &Event) -> Option<Replayed> {
        match &event.body {
            EventBody::DnsQuery { name, verdict, answers, count, withheld, .. } => {
                let domain = name.parse::<DomainName>().ok()?;
                if *verdict == Action::Allow {
                    self.pin(&domain, answers);
                }
                // An answer that was held back depends on where the name leads.
                let said = self.policy.check_name(&domain, &query());
                let inside = withheld.filter(|_| said.is_allow());
                let (is, rule) = match inside.map(|withheld| self.leads_inside(&domain, withheld.address)) {
                    Some(false) => (Action::Deny, "rebinding protection".to_owned()),
                    Some(true) | None => {
                        let is = if said.is_allow() { Action::Allow } else { Action::Deny };
                        (is, self.policy.rule_text(said.reason()).to_string())
                    }
                };
                let rule = RuleText { index: None, text: rule, layer: None };
                let asked = Asked::LookUp { name: domain.to_string() };
                Some(Replayed { asked, was: *verdict, is, waits: false, rule, count: *count })
            }
            EventBody::FlowOpened { direction, protocol, guest, remote, names, .. } => {
                let flow =
                    Recorded { direction: *direction, protocol: *protocol, guest: *guest, remote: *remote, names };
                Some(self.flow(&flow, None, Action::Allow))
            }
            EventBody::FlowDenied { direction, protocol, guest, remote, names, shown, .. } => {
                let flow =
                    Recorded { direction: *direction, protocol: *protocol, guest: *guest, remote: *remote, names };
                Some(self.flow(&flow, shown.as_ref(), Action::Deny))
            }
            EventBody::DnsMore { .. }
            | EventBody::SandboxStarted { .. }
            | EventBody::SandboxStopped { .. }
            | EventBody::FlowShown { .. }
            | EventBody::FlowProgress { .. }
            | EventBody::FlowClosed { .. }
            | EventBody::FlowFailed { .. }
            | EventBody::PolicyChanged { .. }
            | EventBody::PortPublished { .. }
            | EventBody::PortWithdrawn { .. }
            | EventBody::SocketOpened { .. }
            | EventBody::SocketClosed { .. }
            | EventBody::SocketFailed { .. }
            | EventBody::LimitReached { .. }
            | EventBody::GatewayDropped { .. }
            | EventBody::GatewayNotice { .. } => None,
        }
    }

    /// Whether the policy lets a flow pass to a name at an address that is not public: what an answer with that address is
    /// good for. Taken over every protocol and a port that rules rarely name.
    fn leads_inside(&self, name: &DomainName, address: IpAddr) -> bool {
        let names = [PinnedName { name: name.clone(), alias: false }];
        let facts = |port| Facts {
            direction: Direction::Egress,
            protocol: Protocol::Tcp,
            peer: address,
            port: Some(port),
            names: &names,
        };
        [443, 80, 1].into_iter().any(|port| self.policy.check(&facts(port)).is_allow())
    }

    fn pin(&mut self, name: &DomainName, answers: &[IpAddr]) {
        for address in answers {
            let names = self.pins.entry(address.to_canonical()).or_default();
            if let Some(at) = names.iter().position(|known| known == name) {
                let name = names.remove(at);
                names.push(name);
            } else if names.len() >= MAX_PER_ADDRESS {
                names.remove(0);
                names.push(name.clone());
            } else if self.pinned < MAX_PINS {
                self.pinned += 1;
                names.push(name.clone());
            }
        }
    }

    fn flow(&self, flow: &Recorded<'_>, shown: Option<&FirstFlight>, was: Action) -> Replayed {
        let peer = flow.remote.ip().to_canonical();
        let ingress = flow.direction == Direction::Ingress;
        let port = match flow.protocol {
            Protocol::Tcp | Protocol::Udp if ingress => Some(flow.guest.port()),
            Protocol::Tcp | Protocol::Udp => Some(flow.remote.port()),
            Protocol::IcmpV4 | Protocol::IcmpV6 => None,
        };
        let led = match self.pins.get(&peer) {
            Some(names) => names.iter().skip(names.len().saturating_sub(YOUNGEST)).cloned().collect(),
            None => flow.names.iter().rev().filter_map(|name| name.parse().ok()).collect::<Vec<DomainName>>(),
        };
        // A name that may not be looked up leads nowhere.
        let may_ask = |name: &DomainName| ingress || self.policy.check_name(name, &query()).is_allow();
        let names: Vec<PinnedName> = led
            .iter()
            .filter(|name| may_ask(name))
            .map(|name| PinnedName { name: name.clone(), alias: false })
            .collect();
        let facts = Facts { direction: flow.direction, protocol: flow.protocol, peer, port, names: &names };
        let verdict = self.policy.check(&facts);
        let (is, waits, reason) = match &verdict {
            Verdict::Allow(permit) => (Action::Allow, false, permit.reason().clone()),
            Verdict::Deny(denial) => (Action::Deny, false, denial.reason().clone()),
            Verdict::Pending(permit, pending) => match shown {
                None => (Action::Allow, true, permit.reason().clone()),
                Some(shown) => {
                    let shown_names: Vec<DomainName> =
                        shown.names.iter().filter_map(|name| name.parse().ok()).collect();
                    let pinned = |name: &DomainName| names.iter().any(|pin| pin.name == *name);
                    let shown_names: Vec<ShownName<'_>> =
                        shown_names.iter().map(|name| ShownName { name, pinned: pinned(name) }).collect();
                    let flight = match (shown.doubt.is_some(), shown.protocol) {
                        (true, _) | (false, FlightProtocol::Unfinished) => Flight::Unreadable,
                        (false, FlightProtocol::Other) => Flight::Other,
                        (false, FlightProtocol::Tls | FlightProtocol::Http | FlightProtocol::Quic) => {
                            Flight::Names(&shown_names)
                        }
                    };
                    match self.policy.check_flight(pending, &flight) {
                        FlightVerdict::Allow(reason) => (Action::Allow, false, reason),
                        FlightVerdict::Deny(denial) => (Action::Deny, false, denial.reason().clone()),
                    }
                }
            },
        };
        let shown_name = shown.and_then(|shown| shown.names.first().cloned());
        let named = shown_name.or_else(|| reason.name.as_ref().map(ToString::to_string));
        let named = named.or_else(|| led.last().map(ToString::to_string));
        let host = named.filter(|_| !ingress).map_or(Host::Address(peer), Host::Name);
        let asked = Asked::Flow { direction: flow.direction, protocol: flow.protocol, host, port };
        Replayed { asked, was, is, waits, rule: self.policy.rule_text(&reason), count: 1 }
    }
}

/// A flow as events tell it.
struct Recorded<'a> {
    direction: Direction,
    protocol: Protocol,
    guest: SocketAddr,
    remote: SocketAddr,
    names: &'a [String],
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Asked::Flow { direction, protocol, host, port } = self else {
            return match self {
                Asked::LookUp { name } => write!(f, "look-up {name}"),
                Asked::Flow { .. } => Ok(()),
            };
        };
        let word = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::IcmpV4 | Protocol::IcmpV6 => "icmp",
        };
        match (direction, port) {
            (Direction::Ingress, Some(port)) => write!(f, "{word} from {host} to port {port}"),
            (Direction::Ingress, None) => write!(f, "{word} from {host}"),
            (Direction::Egress | Direction::Any, Some(port)) => match host {
                Host::Address(IpAddr::V6(address)) => write!(f, "{word} [{address}]:{port}"),
                Host::Address(IpAddr::V4(_)) | Host::Name(_) => write!(f, "{word} {host}:{port}"),
            },
            (Direction::Egress | Direction::Any, None) => write!(f, "{word} {host}"),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Address(address) => write!(f, "{address}"),
        }
    }
}

/// What a policy makes of recordings, each question once.
#[derive(Debug, Default)]
pub struct Trial {
    answers: BTreeMap<(Change, Asked, String, bool), u64>,
    /// Questions that found no room.
    pub beyond: u64,
    pub unchanged: u64,
}

/// How an answer differs from the one that was recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Allowed then, denied by this policy.
    Denied,
    /// The other way round.
    Allowed,
}

impl Trial {
    pub const MAX_CHANGES: usize = 65_536;

    /// Counts one answer.
    pub fn add(&mut self, replayed: Replayed) {
        let Replayed { asked, was, is, waits, rule, count } = replayed;
        let change = match (was, is) {
            (Action::Allow, Action::Deny) => Change::Denied,
            (Action::Deny, Action::Allow) => Change::Allowed,
            (Action::Allow, Action::Allow) | (Action::Deny, Action::Deny) => {
                self.unchanged = self.unchanged.saturating_add(count);
                return;
            }
        };
        let key = (change, asked, rule.to_string(), waits);
        if self.answers.len() >= Trial::MAX_CHANGES && !self.answers.contains_key(&key) {
            self.beyond = self.beyond.saturating_add(count);
            return;
        }
        let known = self.answers.entry(key).or_default();
        *known = known.saturating_add(count);
    }

    /// What changes: the question, the rule behind the new answer, whether it waits for what is shown, and how often. What is
    /// denied comes first.
    pub fn changes(&self) -> impl Iterator<Item = (Change, &Asked, &str, bool, u64)> {
        self.answers.iter().map(|((change, asked, rule, waits), count)| (*change, asked, rule.as_str(), *waits, *count))
    }
}

/// The machine of a recording, as far as its events tell: so that a policy is asked about addresses as they were then.
pub fn host_network<'a>(events: impl Iterator<Item = &'a Event>) -> HostNetwork {
    let mut networks = HostNetworks::default();
    for event in events {
        networks.record(event);
    }
    networks.finish()
}

/// Addresses that were in another group than they are on a machine without a network.
#[derive(Debug, Default)]
pub struct HostNetworks {
    host: BTreeSet<IpAddr>,
    on_link: BTreeSet<IpAddr>,
    plain: Classifier,
}

impl HostNetworks {
    /// What the next event tells.
    pub fn record(&mut self, event: &Event) {
        if let EventBody::FlowOpened { remote, group, .. } | EventBody::FlowDenied { remote, group, .. } = &event.body {
            self.add(remote.ip(), *group);
        }
    }

    pub(crate) fn add(&mut self, address: IpAddr, group: Group) {
        let address = address.to_canonical();
        if self.host.len() + self.on_link.len() >= MAX_NAMES || self.plain.classify(address) == group {
            return;
        }
        match group {
            Group::Host => drop(self.host.insert(address)),
            Group::Private => drop(self.on_link.insert(address)),
            Group::Metadata
            | Group::Loopback
            | Group::LinkLocal
            | Group::Multicast
            | Group::Reserved
            | Group::Public => {}
        }
    }

    #[must_use]
    pub fn finish(self) -> HostNetwork {
        HostNetwork {
            addresses: self.host.into_iter().collect(),
            on_link: self.on_link.into_iter().map(IpNet::from).collect(),
            nat64: Vec::new(),
        }
    }
}
