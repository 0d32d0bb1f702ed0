//! What a recording shows, put together: which name or address each flow went to.
//!
//! | Flow | Is one to |
//! |---|---|
//! | to an address of the host | the host |
//! | that showed names which were looked up and led to its address | each of these names |
//! | that showed none by a protocol that can, or its address | its address |
//! | that showed other names, or could not be read | its address, and the youngest name, which has to be looked up again |
//! | by a protocol without names | the youngest name that led to its address |
//! | that showed nothing | any name that led to its address and is among the others; else the youngest |
//!
//! Limits: [`MAX_FLOWS`] flows of which more may come, [`MAX_TARGETS`] different targets, [`MAX_NAMES`] names with
//! [`MAX_PINS`] addresses, [`MAX_PER_ADDRESS`] of them at one. What finds no room is counted and told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use cofferdam_model::{
    Action, Direction, DomainName, Event, EventBody, FirstFlight, FlightProtocol, FlowId, Group, LimitKind,
    NetworkConfig, Protocol,
};

use crate::learn::{Learned, generalise};

/// More than a gateway has open at once.
pub(crate) const MAX_FLOWS: usize = 65_536;
pub(crate) const MAX_TARGETS: usize = 65_536;
pub(crate) const MAX_NAMES: usize = 65_536;
/// Addresses of names; most have a handful.
pub(crate) const MAX_PINS: usize = 262_144;
/// Names of one address: the oldest makes room. More than a content network's address has for one program.
pub(crate) const MAX_PER_ADDRESS: usize = 4_096;
/// Names of one address that a flow which shows none may be to.
pub(crate) const YOUNGEST: usize = 64;
/// The ports on which a flow that only a name allows has to show it.
const WEB: [u16; 2] = [80, 443];

/// What is known before the first event.
#[derive(Debug, Clone, Default)]
pub struct Learn {
    /// Who resolves names for the gateway: what others answered was asked of them by the program itself, and made no pins. For
    /// look-ups that do not say who was asked. Empty: whoever answered.
    pub resolvers: Vec<SocketAddr>,
    /// What is allowed anyhow: nothing is learned of that, and what is learned is added.
    pub base: Option<NetworkConfig>,
}

/// Reads a recording, one event after the other.
#[derive(Debug, Default)]
pub struct Learner {
    options: Learn,
    pub(crate) seen: Seen,
    open: BTreeMap<FlowId, Open>,
}

/// What a recording showed.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Names that led to an address, having been asked for; the youngest last.
    pub(crate) pins: BTreeMap<IpAddr, Vec<DomainName>>,
    pinned: usize,
    /// How often each name was looked up.
    pub(crate) look_ups: BTreeMap<DomainName, u64>,
    pub(crate) targets: BTreeMap<Target, Went>,
    /// Flows that showed nothing, to be put with others at the end.
    unsure: BTreeMap<Unsure, Went>,
    /// One flow of each kind, to try a policy on.
    pub(crate) samples: BTreeMap<Sample, u64>,
    /// What was denied, by target and group.
    pub(crate) denied: BTreeMap<(String, Group), u64>,
    /// Names whose answers were held back.
    pub(crate) withheld: BTreeMap<(DomainName, Group), u64>,
    /// Flows that were let pass and did not come about.
    pub(crate) failed: BTreeMap<String, u64>,
    /// Events that are missing.
    pub(crate) lost: u64,
    /// Flows and names that found no room here.
    pub(crate) beyond: u64,
    pub(crate) opened: u64,
}

/// Somewhere that flows went.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    pub(crate) place: Place,
    pub(crate) service: Service,
    /// A protocol that shows no name, on a port where names have to be shown.
    pub(crate) opaque: bool,
    /// The name led to an address that is not public.
    pub(crate) inside: bool,
}

/// How often, and to which addresses: a few of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Went {
    pub(crate) count: u64,
    pub(crate) peers: BTreeSet<IpAddr>,
}

impl Went {
    fn once(remote: SocketAddr) -> Went {
        Went { count: 1, peers: BTreeSet::from([remote.ip().to_canonical()]) }
    }

    pub(crate) fn and(&mut self, other: Went) {
        const PEERS: usize = 64;
        self.count = self.count.saturating_add(other.count);
        let room = PEERS.saturating_sub(self.peers.len());
        self.peers.extend(other.peers.into_iter().take(room));
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Name(DomainName),
    Address(IpAddr),
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Service {
    Tcp(u16),
    Udp(u16),
    /// By the family of the address.
    Ping,
}

/// What a policy is asked about a flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sample {
    pub(crate) protocol: Protocol,
    pub(crate) remote: SocketAddr,
    pub(crate) group: Group,
    pub(crate) shown: Option<Shown>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Shown {
    Names(Vec<DomainName>),
    Unreadable,
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Unsure {
    candidates: Vec<DomainName>,
    service: Service,
    inside: bool,
}

/// A flow of which more may come.
#[derive(Debug, Default)]
struct Open {
    about: Option<About>,
    shown: Vec<FirstFlight>,
}

#[derive(Debug)]
struct About {
    protocol: Protocol,
    remote: SocketAddr,
    group: Group,
    candidates: Vec<DomainName>,
}

impl Learner {
    #[must_use]
    pub fn new(options: Learn) -> Learner {
        Learner { options, ..Learner::default() }
    }

    /// The next event of the recording.
    pub fn record(&mut self, event: &Event) {
        match &event.body {
            EventBody::DnsQuery { name, verdict, answers, withheld, count, server, resolver, .. } => {
                let Ok(name) = name.parse::<DomainName>() else { return };
                if let Some(other) = resolver.filter(|resolver| self.is_another(*server, *resolver)) {
                    return self.seen.ask_another(name, other, *count);
                }
                if let Some(withheld) = withheld {
                    add(&mut self.seen.withheld, (name, withheld.group), *count, &mut self.seen.beyond);
                } else if *verdict == Action::Allow {
                    self.seen.pin(&name, answers);
                    let Seen { look_ups, beyond, .. } = &mut self.seen;
                    if look_ups.len() >= MAX_NAMES && !look_ups.contains_key(&name) {
                        *beyond = beyond.saturating_add(*count);
                    } else {
                        let looked = look_ups.entry(name).or_default();
                        *looked = looked.saturating_add(*count);
                    }
                }
            }
            EventBody::FlowOpened { flow, direction: Direction::Egress, protocol, remote, group, names, .. } => {
                self.seen.opened += 1;
                let candidates = self.seen.names_of(remote.ip(), names);
                let about = About { protocol: *protocol, remote: *remote, group: *group, candidates };
                self.make_room();
                self.open.entry(*flow).or_default().about = Some(about);
            }
            EventBody::FlowShown { flow, shown } => {
                self.make_room();
                self.open.entry(*flow).or_default().shown.push(shown.clone());
            }
            EventBody::FlowClosed { flow, .. } => {
                if let Some(open) = self.open.remove(flow) {
                    self.seen.close(open);
                }
            }
            EventBody::FlowFailed { flow, remote, .. } => {
                // One that was reported as opened has gone somewhere all the same.
                if let Some(open) = self.open.remove(flow).filter(|open| open.about.is_some()) {
                    return self.seen.close(open);
                }
                let target = self
                    .seen
                    .names_of(remote.ip(), &[])
                    .last()
                    .map_or_else(|| remote.to_string(), |name| format!("{name}:{}", remote.port()));
                add(&mut self.seen.failed, target, 1, &mut self.seen.beyond);
            }
            EventBody::FlowDenied { direction: Direction::Egress, remote, group, names, .. } => {
                let target = match names.first() {
                    Some(name) => format!("{name}:{}", remote.port()),
                    None => remote.to_string(),
                };
                add(&mut self.seen.denied, (target, *group), 1, &mut self.seen.beyond);
            }
            EventBody::LimitReached { limit: LimitKind::Events, count, .. } => {
                self.seen.lost = self.seen.lost.saturating_add(*count);
            }
            EventBody::DnsMore { count, .. } => self.seen.beyond = self.seen.beyond.saturating_add(*count),
            // What comes in is a matter of published ports, and nothing else says where a program went.
            EventBody::FlowOpened { .. }
            | EventBody::FlowDenied { .. }
            | EventBody::LimitReached { .. }
            | EventBody::FlowProgress { .. }
            | EventBody::SandboxStarted { .. }
            | EventBody::SandboxStopped { .. }
            | EventBody::PolicyChanged { .. }
            | EventBody::PortPublished { .. }
            | EventBody::PortWithdrawn { .. }
            | EventBody::SocketOpened { .. }
            | EventBody::SocketClosed { .. }
            | EventBody::SocketFailed { .. }
            | EventBody::GatewayDropped { .. }
            | EventBody::GatewayNotice { .. } => {}
        }
    }

    /// So many lines of the recording are missing.
    pub fn record_lost(&mut self, lines: u64) {
        self.seen.lost = self.seen.lost.saturating_add(lines);
    }

    /// The recording has ended: what it says.
    #[must_use]
    pub fn learn(mut self) -> Learned {
        for (_, open) in std::mem::take(&mut self.open) {
            self.seen.close(open);
        }
        self.seen.settle();
        generalise(&self.seen, self.options.base.as_ref())
    }

    /// Whether the program has asked `resolver` itself. The gateway asks for who asks the gateway, and passes on to a resolver what
    /// was sent to that; where the event does not say who was asked, it is somebody whom the gateway does not know.
    fn is_another(&self, server: Option<SocketAddr>, resolver: SocketAddr) -> bool {
        let ours = &self.options.resolvers;
        server.map_or(!ours.is_empty() && !ours.contains(&resolver), |server| server == resolver)
    }

    /// A flow whose end is missing makes room for those that come.
    fn make_room(&mut self) {
        if self.open.len() >= MAX_FLOWS
            && let Some((_, oldest)) = self.open.pop_first()
        {
            self.seen.close(oldest);
        }
    }
}

impl Seen {
    fn pin(&mut self, name: &DomainName, answers: &[IpAddr]) {
        for address in answers {
            let names = self.pins.entry(address.to_canonical()).or_default();
            // The youngest last.
            match names.iter().position(|known| known == name) {
                Some(at) => {
                    let name = names.remove(at);
                    names.push(name);
                }
                None if names.len() >= MAX_PER_ADDRESS => {
                    names.remove(0);
                    names.push(name.clone());
                }
                None if self.pinned < MAX_PINS => {
                    self.pinned += 1;
                    names.push(name.clone());
                }
                None => self.beyond = self.beyond.saturating_add(1),
            }
        }
    }

    /// The program has asked a resolver of its own choice: that has to be reachable, and the name to be one that may be asked for,
    /// which a rule for any port of it says.
    fn ask_another(&mut self, name: DomainName, resolver: SocketAddr, count: u64) {
        let address = Place::Address(resolver.ip().to_canonical());
        let udp = Service::Udp(resolver.port());
        for (place, service) in
            [(address.clone(), Service::Tcp(resolver.port())), (address, udp), (Place::Name(name), udp)]
        {
            let target = Target { place, service, opaque: false, inside: false };
            self.count(target, Went { count, peers: BTreeSet::new() });
        }
    }

    /// The names that led to an address, the youngest last; where no look-up is in the recording, those that the event has.
    pub(crate) fn names_of(&self, address: IpAddr, in_event: &[String]) -> Vec<DomainName> {
        match self.pins.get(&address.to_canonical()) {
            // Of thousands of names at one address the youngest are the likely ones.
            Some(names) => names.iter().skip(names.len().saturating_sub(YOUNGEST)).cloned().collect(),
            None => in_event.iter().rev().filter_map(|name| name.parse().ok()).collect(),
        }
    }

    fn close(&mut self, open: Open) {
        let Some(about) = open.about else { return };
        let About { protocol, remote, group, candidates } = about;
        let service = Service::of(protocol, remote.port());
        let inside = group != Group::Public;
        let target = |place, opaque| {
            let inside = inside && matches!(place, Place::Name(_));
            Target { place, service, opaque, inside }
        };
        if open.shown.is_empty() || group == Group::Host {
            self.sample(Sample { protocol, remote, group, shown: None });
        }
        if group == Group::Host {
            return self.count(target(Place::Host, false), Went::once(remote));
        }
        if candidates.is_empty() || protocol_is_ping(protocol) || open.shown.is_empty() {
            for flight in &open.shown {
                self.sample(Sample { protocol, remote, group, shown: Some(Shown::of(flight)) });
            }
            return match candidates.last() {
                None => self.count(target(Place::Address(remote.ip().to_canonical()), false), Went::once(remote)),
                Some(_) => {
                    let unsure = Unsure { candidates, service, inside };
                    went(&mut self.unsure, unsure, Went::once(remote), &mut self.beyond);
                }
            };
        }
        for flight in &open.shown {
            let shown = Shown::of(flight);
            self.sample(Sample { protocol, remote, group, shown: Some(shown.clone()) });
            match (&shown, candidates.last()) {
                (Shown::Names(names), _)
                    if !names.is_empty() && names.iter().all(|name| self.leads_to(name, remote)) =>
                {
                    for name in names {
                        self.count(target(Place::Name(name.clone()), false), Went::once(remote));
                    }
                }
                (Shown::Other, Some(youngest)) => {
                    let opaque = WEB.contains(&remote.port());
                    self.count(target(Place::Name(youngest.clone()), opaque), Went::once(remote));
                }
                (Shown::Names(_) | Shown::Unreadable | Shown::Other, youngest) => {
                    if let Some(youngest) = youngest.filter(|_| !shown.is_address(remote.ip())) {
                        self.count(target(Place::Name(youngest.clone()), false), Went::once(remote));
                    }
                    self.count(target(Place::Address(remote.ip().to_canonical()), false), Went::once(remote));
                }
            }
        }
    }

    /// Whether a look-up led from a name to an address.
    pub(crate) fn leads_to(&self, name: &DomainName, remote: SocketAddr) -> bool {
        self.pins.get(&remote.ip().to_canonical()).is_some_and(|names| names.contains(name))
    }

    /// Puts the flows that showed nothing with those that did.
    fn settle(&mut self) {
        let known: BTreeSet<(DomainName, Service)> = self
            .targets
            .keys()
            .filter_map(|target| match &target.place {
                Place::Name(name) => Some((name.clone(), target.service)),
                Place::Address(_) | Place::Host => None,
            })
            .collect();
        for (Unsure { candidates, service, inside }, count) in std::mem::take(&mut self.unsure) {
            let is_known = |name: &&DomainName| known.contains(&((*name).clone(), service));
            let name = candidates.iter().rev().find(is_known).or(candidates.last()).cloned();
            let Some(place) = name.map(Place::Name) else { continue };
            self.count(Target { place, service, opaque: false, inside }, count);
        }
    }

    fn count(&mut self, target: Target, more: Went) {
        went(&mut self.targets, target, more, &mut self.beyond);
    }

    fn sample(&mut self, sample: Sample) {
        let Seen { samples, beyond, .. } = self;
        add(samples, sample, 1, beyond);
    }
}

impl Service {
    fn of(protocol: Protocol, port: u16) -> Service {
        match protocol {
            Protocol::Tcp => Service::Tcp(port),
            Protocol::Udp => Service::Udp(port),
            Protocol::IcmpV4 | Protocol::IcmpV6 => Service::Ping,
        }
    }
}

impl Sample {
    pub(crate) fn service(&self) -> Service {
        Service::of(self.protocol, self.remote.port())
    }
}

impl Shown {
    /// Whether who shows this has gone to the address as such: names that are addresses are not shown over TLS.
    fn is_address(&self, address: IpAddr) -> bool {
        let text = address.to_string();
        match self {
            Shown::Names(names) => names.iter().all(|name| name.as_str() == text),
            Shown::Unreadable | Shown::Other => false,
        }
    }

    fn of(flight: &FirstFlight) -> Shown {
        if flight.doubt.is_some() {
            return Shown::Unreadable;
        }
        match flight.protocol {
            FlightProtocol::Tls | FlightProtocol::Http | FlightProtocol::Quic => {
                Shown::Names(flight.names.iter().filter_map(|name| name.parse().ok()).collect())
            }
            FlightProtocol::Other => Shown::Other,
            FlightProtocol::Unfinished => Shown::Unreadable,
        }
    }
}

fn protocol_is_ping(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Tcp | Protocol::Udp => false,
        Protocol::IcmpV4 | Protocol::IcmpV6 => true,
    }
}

/// As [`add`].
fn went<K: Ord>(table: &mut BTreeMap<K, Went>, key: K, more: Went, beyond: &mut u64) {
    if table.len() >= MAX_TARGETS && !table.contains_key(&key) {
        *beyond = beyond.saturating_add(more.count);
        return;
    }
    table.entry(key).or_default().and(more);
}

/// Counts, where there is room.
fn add<K: Ord>(table: &mut BTreeMap<K, u64>, key: K, count: u64, beyond: &mut u64) {
    if table.len() >= MAX_TARGETS && !table.contains_key(&key) {
        *beyond = beyond.saturating_add(count);
        return;
    }
    let known = table.entry(key).or_default();
    *known = known.saturating_add(count);
}
