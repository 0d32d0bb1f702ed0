//! From what a recording showed to the smallest readable policy under which the same happens again.
//!
//! Every flow becomes an allow rule for its name, or for its address where no name leads there, with its port and protocol.
//! Three or more names of one registrable domain that were used with the same port become one rule for the longest suffix
//! that they share, at or below that domain and never above it. Names that may lead to addresses which are not public, and
//! those of known resolvers, are named one by one: a suffix would open more than was seen. The default is deny.
//!
//! Rules that say `allow-private` or `opaque` come first: the first rule for a name decides whether it may be looked up and what a
//! flow to it has to show, so a plain one before them would take their effect away.
//!
//! The policy is tried on what was recorded before anybody gets it; a flow that would not pass is told ([`Missed`]).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use cofferdam_model::{
    Action, Classifier, Destination, Direction, DomainName, Event, Group, NetworkConfig, PolicyConfig, PortRange,
    Protocol, ProtocolSet, Rule, RuleText,
};
use cofferdam_policy::grammar::{format_rule, parse_rules};
use cofferdam_policy::{Facts, Flight, NameVerdict, PinnedName, Policy, ShownName, Verdict, file};
use ipnet::IpNet;

use crate::observe::{Learn, Learner, Place, Sample, Seen, Service, Shown, Target, Went};
use crate::replay::HostNetworks;

/// Names of one registrable domain from which on a suffix stands for them.
const SIBLINGS: usize = 3;

/// What a recording says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// Allow rules, and default egress deny. Beside a base: what it does not allow yet.
    pub rules: Vec<Rule>,
    /// For each rule.
    pub because: Vec<Because>,
    pub remarks: Vec<Remark>,
    /// Flows that were let pass and would not be.
    pub missed: Vec<Missed>,
    /// Flows that were opened.
    pub flows: u64,
}

/// Why a rule is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Because {
    pub flows: u64,
    /// The names that a suffix stands for.
    pub names: Vec<DomainName>,
    /// No name led to the address.
    pub nameless: bool,
}

/// Something of the recording that the policy does not show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remark {
    /// Names that were looked up and not gone to.
    LookedUp { names: Vec<DomainName> },
    /// Tried, and denied in the run.
    Denied { target: String, group: Group, count: u64 },
    /// Its answers were held back, because they lead inside.
    Withheld { name: DomainName, group: Group, count: u64 },
    /// Let pass, and not come about: nothing is allowed for it.
    Failed { target: String, count: u64 },
    /// Missing from the recording.
    Lost { events: u64 },
    /// More than is looked at.
    Beyond { count: u64 },
}

/// A flow that would not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    pub target: String,
    /// What denies it.
    pub rule: RuleText,
    pub count: u64,
}

/// What the events of one run say.
pub fn learn(events: impl Iterator<Item = Event>, options: Learn) -> Learned {
    let mut learner = Learner::new(options);
    for event in events {
        learner.record(&event);
    }
    learner.learn()
}

impl Learned {
    /// The network under which the run passes: these rules and nothing else, or those of `base` and then these.
    #[must_use]
    pub fn network(&self, base: Option<&NetworkConfig>) -> NetworkConfig {
        let mut network = base.cloned().unwrap_or_else(|| NetworkConfig {
            policy: PolicyConfig { default_egress: Action::Deny, ..PolicyConfig::default() },
            ..file::default_network()
        });
        network.policy.rules.extend(self.rules.iter().cloned());
        network
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remark::LookedUp { names } => {
                let (few, more) = few(names);
                write!(f, "looked up and not gone to, so not allowed: {few}{more}")
            }
            Remark::Denied { target, group, count } => {
                write!(f, "denied in this run and not learned: {target} ×{count} (group {})", group.word())?;
                wants(f, *group)
            }
            Remark::Withheld { name, group, count } => {
                write!(f, "not resolved in this run, since it leads to group {}: {name} ×{count}", group.word())?;
                wants(f, *group)
            }
            Remark::Failed { target, count } => {
                write!(f, "let pass and not reached, so not allowed: {target} ×{count}")
            }
            Remark::Lost { events } => {
                write!(f, "{events} events of the run were lost: the policy may lack what they would have shown")
            }
            Remark::Beyond { count } => {
                write!(f, "{count} more flows and look-ups than are looked at: the policy lacks what they showed")
            }
        }
    }
}

/// What `learn` has to be told to let a group happen.
fn wants(f: &mut fmt::Formatter<'_>, group: Group) -> fmt::Result {
    match group {
        Group::Private | Group::Host => write!(f, "; --net {} lets it happen", group.word()),
        Group::Public | Group::Metadata | Group::Loopback | Group::LinkLocal | Group::Multicast | Group::Reserved => {
            Ok(())
        }
    }
}

/// The first few names, and how many more there are.
pub(crate) fn few(names: &[DomainName]) -> (String, String) {
    const SHOWN: usize = 5;
    let shown: Vec<&str> = names.iter().take(SHOWN).map(DomainName::as_str).collect();
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (shown.join(", "), more)
}

/// Services of one destination, with how often and why.
type Rules = BTreeMap<Wanted, (u64, BTreeSet<DomainName>)>;

/// A destination with a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Wanted {
    place: Spot,
    opaque: bool,
    inside: bool,
    service: Service,
}

/// Where a rule stands in the file: what says more than plain rules do comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Standing {
    rank: Rank,
    place: Spot,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// An address, where a rule for its names would not do.
    Insisted,
    /// `allow-private`, `opaque`.
    Special,
    Plain,
}

/// Where to: names before addresses, the host last.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Spot {
    /// The name, and for a suffix whether the name itself is meant too.
    Name(DomainName, Option<bool>),
    Address(IpAddr),
    Host,
}

pub(crate) fn generalise(seen: &Seen, base: Option<&NetworkConfig>) -> Learned {
    let classifier = classifier(seen);
    let known = base.and_then(|base| Policy::of_network(base, classifier.clone()).ok());
    let is_allowed =
        |target: &Target, went: &Went| known.as_ref().is_some_and(|policy| allows(policy, target, &went.peers));
    let mut targets = united(seen);
    let mut insisted = BTreeSet::new();
    // Those of `targets` that stand for addresses that were insisted on.
    let mut added: Vec<Target> = Vec::new();
    let mut has_given_up = false;
    loop {
        let wanted = targets.iter().filter(|(target, went)| !is_allowed(target, went));
        let (rules, because) = rules(with_suffixes(wanted), &insisted);
        let is_there = |rule: &Rule| base.is_some_and(|base| base.policy.rules.contains(rule));
        let new = rules.into_iter().zip(because).filter(|(rule, _)| !is_there(rule));
        let (rules, because) = new.unzip();
        let mut learned = Learned { rules, because, remarks: Vec::new(), missed: Vec::new(), flows: seen.opened };
        let Ok(policy) = Policy::of_network(&learned.network(base), classifier.clone()) else { return learned };
        let missed = missed(&policy, seen);
        let again: Vec<&Sample> = missed.iter().map(|(sample, _)| *sample).collect();
        let stuck: BTreeSet<IpAddr> = again.iter().map(|sample| sample.remote.ip().to_canonical()).collect();
        if !has_given_up && stuck.iter().any(|address| insisted.contains(address)) {
            // What a rule for its address does not open either, since another rule denies it, is not to open that address to others.
            insisted.retain(|address| !stuck.contains(address));
            for target in
                added.extract_if(.., |target| matches!(target.place, Place::Address(at) if stuck.contains(&at)))
            {
                targets.remove(&target);
            }
            has_given_up = true;
            continue;
        }
        if again.is_empty() || has_given_up || !insisted.is_empty() {
            learned.missed = missed.into_iter().map(|(_, missed)| missed).collect();
            learned.remarks = remarks(&policy, seen);
            return learned;
        }
        // What no rule for its name opens, such as the address of a known resolver by another name: once more, by the address.
        for sample in again {
            let address = sample.remote.ip().to_canonical();
            insisted.insert(address);
            let place = Place::Address(address);
            let target = Target { place, service: sample.service(), opaque: false, inside: false };
            let count = *seen.samples.get(sample).unwrap_or(&1);
            if let Entry::Vacant(vacant) = targets.entry(target) {
                added.push(vacant.key().clone());
                vacant.insert(Went { count, peers: BTreeSet::from([address]) });
            }
        }
    }
}

/// The targets, where what one flow to a place needs goes for all: a name that leads inside does so on every port.
fn united(seen: &Seen) -> BTreeMap<Target, Went> {
    let inside: BTreeSet<&Place> =
        seen.targets.keys().filter(|target| target.inside).map(|target| &target.place).collect();
    let opaque: BTreeSet<(&Place, Service)> =
        seen.targets.keys().filter(|target| target.opaque).map(|target| (&target.place, target.service)).collect();
    let mut targets: BTreeMap<Target, Went> = BTreeMap::new();
    for (target, went) in &seen.targets {
        let target = Target {
            inside: inside.contains(&target.place),
            opaque: opaque.contains(&(&target.place, target.service)),
            ..target.clone()
        };
        targets.entry(target).or_default().and(went.clone());
    }
    targets
}

/// Puts suffixes in the place of siblings.
fn with_suffixes<'a>(targets: impl Iterator<Item = (&'a Target, &'a Went)>) -> Rules {
    let mut found = Rules::new();
    // Names that may become one: by domain, service and what else the rule says.
    let mut families: BTreeMap<(String, bool, Service), BTreeMap<DomainName, u64>> = BTreeMap::new();
    let mut put = |place: Spot, target: &Target, count: u64, names: BTreeSet<DomainName>| {
        let Target { service, opaque, inside, .. } = target.clone();
        let entry = found.entry(Wanted { place, opaque, inside, service }).or_default();
        entry.0 = entry.0.saturating_add(count);
        entry.1.extend(names);
    };
    for (target, Went { count, .. }) in targets {
        match &target.place {
            Place::Address(address) => put(Spot::Address(*address), target, *count, BTreeSet::new()),
            Place::Host => put(Spot::Host, target, *count, BTreeSet::new()),
            Place::Name(name) => match cofferdam_suffix::registrable_domain(name.as_str()) {
                Some(domain) if !target.inside => {
                    let family = families.entry((domain.to_owned(), target.opaque, target.service)).or_default();
                    *family.entry(name.clone()).or_default() += count;
                }
                Some(_) | None => put(Spot::Name(name.clone(), None), target, *count, BTreeSet::new()),
            },
        }
    }
    for ((domain, opaque, service), family) in families {
        let target = |name: &DomainName| Target { place: Place::Name(name.clone()), service, opaque, inside: false };
        let suffix = (family.len() >= SIBLINGS).then(|| common_suffix(&domain, family.keys())).flatten();
        let suffix = suffix.filter(|suffix| opens_all(suffix, family.keys()));
        match suffix {
            Some(suffix) => {
                let apex = family.contains_key(&suffix);
                let count = family.values().fold(0_u64, |sum, count| sum.saturating_add(*count));
                put(Spot::Name(suffix.clone(), Some(apex)), &target(&suffix), count, family.into_keys().collect());
            }
            None => {
                for (name, count) in family {
                    put(Spot::Name(name.clone(), None), &target(&name), count, BTreeSet::new());
                }
            }
        }
    }
    found
}

/// The longest name that all `names` are or are below; `domain` at least.
fn common_suffix<'a>(domain: &str, names: impl Iterator<Item = &'a DomainName>) -> Option<DomainName> {
    let mut common: Option<Vec<&str>> = None;
    for name in names {
        let labels = name.labels().rev();
        common = Some(match common {
            None => labels.collect(),
            Some(common) => {
                common.into_iter().zip(labels).take_while(|(one, other)| one == other).map(|(one, _)| one).collect()
            }
        });
    }
    let mut labels = common?;
    let least = domain.split('.').count();
    debug_assert!(labels.len() >= least, "names of one domain share it");
    if labels.len() < least {
        return None;
    }
    labels.reverse();
    labels.join(".").parse().ok()
}

/// Whether a suffix opens every one of these names: that of a known resolver has to be named itself.
fn opens_all<'a>(suffix: &DomainName, mut names: impl Iterator<Item = &'a DomainName>) -> bool {
    let rule = Rule::egress(Action::Allow, Destination::Suffix { name: suffix.clone(), apex: true });
    let config = PolicyConfig { rules: vec![rule], ..PolicyConfig::default() };
    let policy = Policy::compile(&config, Classifier::default());
    names.all(|name| policy.check_name(name, &query()).is_allow())
}

/// One rule for all protocols and ports of a destination that can stand in one.
/// Addresses that were
/// `insisted` on come first.
fn rules(wanted: Rules, insisted: &BTreeSet<IpAddr>) -> (Vec<Rule>, Vec<Because>) {
    /// Protocols with their ports, and why.
    type Services = (BTreeMap<Protocol, BTreeSet<u16>>, Because);
    let mut grouped: BTreeMap<(Spot, bool, bool), Services> = BTreeMap::new();
    let mut pings: BTreeMap<(Spot, bool), Because> = BTreeMap::new();
    for (Wanted { place, opaque, inside, service }, (count, names)) in wanted {
        let nameless = matches!(place, Spot::Address(_));
        let (protocol, port) = match service {
            Service::Tcp(port) => (Protocol::Tcp, port),
            Service::Udp(port) => (Protocol::Udp, port),
            Service::Ping => {
                pings.entry((place, inside)).or_default().add(count, names, nameless);
                continue;
            }
        };
        let (services, because) = grouped.entry((place, opaque, inside)).or_default();
        services.entry(protocol).or_default().insert(port);
        because.add(count, names, nameless);
    }
    let mut made: BTreeMap<Standing, (Rule, Because)> = BTreeMap::new();
    let mut make = |place: &Spot, opaque, allow_private, protocols, ports: &BTreeSet<u16>, because: Because| {
        let ports = ports.iter().map(|port| PortRange { start: *port, end: *port }).collect();
        let rule = Rule { protocols, ports, opaque, allow_private, ..Rule::egress(Action::Allow, destination(place)) };
        // In the form in which it is read back. A name that reads as something else there, an address, or as nothing, has no rule: a
        // program chooses the names that it asks for.
        let text = format_rule(&rule);
        let Some(read) = parse_rules(&text).ok().and_then(|rules| <[Rule; 1]>::try_from(rules).ok()) else { return };
        let [read] = read;
        if !is_same(&read, &rule) {
            return;
        }
        let rule = read;
        let is_insisted = matches!(place, Spot::Address(address) if insisted.contains(address));
        let rank = match (is_insisted, rule.opaque || rule.allow_private) {
            (true, _) => Rank::Insisted,
            (false, true) => Rank::Special,
            (false, false) => Rank::Plain,
        };
        made.insert(Standing { rank, place: place.clone(), text }, (rule, because));
    };
    for ((place, opaque, inside), (services, because)) in grouped {
        match (services.get(&Protocol::Tcp), services.get(&Protocol::Udp)) {
            (Some(tcp), Some(udp)) if tcp == udp => {
                let both = ProtocolSet::ANY.with(Protocol::Tcp).with(Protocol::Udp);
                make(&place, opaque, inside, both, tcp, because);
            }
            (_, _) => {
                for (protocol, ports) in &services {
                    make(&place, opaque, inside, ProtocolSet::ANY.with(*protocol), ports, because.clone());
                }
            }
        }
    }
    for ((place, inside), because) in pings {
        let protocols = match &place {
            Spot::Address(IpAddr::V4(_)) => ProtocolSet::ANY.with(Protocol::IcmpV4),
            Spot::Address(IpAddr::V6(_)) => ProtocolSet::ANY.with(Protocol::IcmpV6),
            // Which family a name or the host is reached by is the network's choice.
            Spot::Name(..) | Spot::Host => ProtocolSet::ANY.with(Protocol::IcmpV4).with(Protocol::IcmpV6),
        };
        make(&place, false, inside, protocols, &BTreeSet::new(), because);
    }
    made.into_values().unzip()
}

/// Whether two rules say the same, however they are written.
fn is_same(one: &Rule, other: &Rule) -> bool {
    let said = |rule: &Rule| (rule.action, rule.direction, rule.protocols, rule.opaque, rule.allow_private);
    said(one) == said(other) && one.destination == other.destination && one.ports == other.ports
}

impl Because {
    fn add(&mut self, count: u64, names: BTreeSet<DomainName>, nameless: bool) {
        self.flows = self.flows.saturating_add(count);
        self.nameless |= nameless;
        let all: BTreeSet<DomainName> = self.names.drain(..).chain(names).collect();
        self.names = all.into_iter().collect();
    }
}

fn destination(place: &Spot) -> Destination {
    match place {
        Spot::Name(name, None) => Destination::Domain(name.clone()),
        Spot::Name(name, Some(apex)) => Destination::Suffix { name: name.clone(), apex: *apex },
        Spot::Address(address) => Destination::Cidr(IpNet::from(*address)),
        Spot::Host => Destination::Group(Group::Host),
    }
}

/// A machine on which every address is in the group that it was in during the run.
fn classifier(seen: &Seen) -> Classifier {
    let mut networks = HostNetworks::default();
    for sample in seen.samples.keys() {
        networks.add(sample.remote.ip(), sample.group);
    }
    Classifier::new(networks.finish())
}

/// Whether a policy lets everything of a target happen as it is.
fn allows(policy: &Policy, target: &Target, peers: &BTreeSet<IpAddr>) -> bool {
    let shown = |name: &DomainName| if target.opaque { Shown::Other } else { Shown::Names(vec![name.clone()]) };
    let name = match &target.place {
        Place::Name(name) => Some(name),
        Place::Address(_) | Place::Host => None,
    };
    let names: Vec<PinnedName> = name.map(|name| PinnedName { name: name.clone(), alias: false }).into_iter().collect();
    let passes = |peer: &IpAddr| {
        if name.is_some_and(|name| !leads_to(policy, name, *peer)) {
            return false;
        }
        let (protocol, port) = match (target.service, peer) {
            (Service::Tcp(port), _) => (Protocol::Tcp, port),
            (Service::Udp(port), _) => (Protocol::Udp, port),
            (Service::Ping, IpAddr::V4(_)) => (Protocol::IcmpV4, 0),
            (Service::Ping, IpAddr::V6(_)) => (Protocol::IcmpV6, 0),
        };
        denial(policy, protocol, SocketAddr::new(*peer, port), &names, name.map(shown).as_ref()).is_none()
    };
    match name.filter(|_| peers.is_empty()) {
        // It was looked up, and nothing else.
        Some(name) => policy.check_name(name, &query()).is_allow(),
        None => !peers.is_empty() && peers.iter().all(passes),
    }
}

/// Whether a program may learn that `name` has this address.
fn leads_to(policy: &Policy, name: &DomainName, peer: IpAddr) -> bool {
    let NameVerdict::Allow(reason) = policy.check_name(name, &query()) else { return false };
    let inside = || (0..policy.layers().len()).all(|layer| reason.leads_inside(layer));
    match policy.classifier().classify(peer) {
        Group::Public | Group::Host => true,
        Group::Metadata | Group::Loopback | Group::LinkLocal | Group::Private | Group::Multicast | Group::Reserved => {
            // As rebinding protection has it: a rule for the name says so, or one for the address.
            let protocols = [Protocol::Tcp, Protocol::Udp];
            let is_open = |protocol| denial(policy, protocol, SocketAddr::new(peer, 0), &[], None).is_none();
            inside() || protocols.into_iter().any(is_open)
        }
    }
}

/// What denies a flow, if anything does.
pub(crate) fn denial(
    policy: &Policy,
    protocol: Protocol,
    remote: SocketAddr,
    names: &[PinnedName],
    shown: Option<&Shown>,
) -> Option<RuleText> {
    let port = match protocol {
        Protocol::Tcp | Protocol::Udp => Some(remote.port()),
        Protocol::IcmpV4 | Protocol::IcmpV6 => None,
    };
    let facts = Facts { direction: Direction::Egress, protocol, peer: remote.ip(), port, names };
    let pending = match policy.check(&facts) {
        Verdict::Deny(denial) => return Some(policy.rule_text(denial.reason())),
        Verdict::Allow(_) => return None,
        Verdict::Pending(_, pending) => pending,
    };
    let pinned = |name: &DomainName| names.iter().any(|pin| !pin.alias && pin.name == *name);
    let shown_names: Vec<ShownName<'_>> = match shown {
        Some(Shown::Names(names)) => names.iter().map(|name| ShownName { name, pinned: pinned(name) }).collect(),
        Some(Shown::Unreadable | Shown::Other) | None => Vec::new(),
    };
    let flight = match shown? {
        Shown::Names(_) => Flight::Names(&shown_names),
        Shown::Unreadable => Flight::Unreadable,
        Shown::Other => Flight::Other,
    };
    let verdict = policy.check_flight(&pending, &flight);
    (!verdict.is_allow()).then(|| policy.rule_text(verdict.reason()))
}

fn missed<'a>(policy: &Policy, seen: &'a Seen) -> Vec<(&'a Sample, Missed)> {
    let mut found = Vec::new();
    let mut led: BTreeMap<IpAddr, Vec<PinnedName>> = BTreeMap::new();
    for (sample, count) in &seen.samples {
        let Sample { protocol, remote, shown, .. } = sample;
        let pinned = |name: &DomainName| {
            leads_to(policy, name, remote.ip()).then(|| PinnedName { name: name.clone(), alias: false })
        };
        let youngest = led
            .entry(remote.ip())
            .or_insert_with(|| seen.names_of(remote.ip(), &[]).iter().filter_map(pinned).collect());
        let mut names = youngest.clone();
        if let Some(Shown::Names(shown)) = shown {
            names.extend(shown.iter().filter(|name| seen.leads_to(name, *remote)).filter_map(pinned));
        }
        if let Some(rule) = denial(policy, *protocol, *remote, &names, shown.as_ref()) {
            let target = match shown {
                Some(Shown::Names(names)) if !names.is_empty() => {
                    let names: Vec<&str> = names.iter().map(DomainName::as_str).collect();
                    format!("{} at {remote}", names.join(", "))
                }
                Some(_) | None => remote.to_string(),
            };
            found.push((sample, Missed { target, rule, count: *count }));
        }
    }
    found
}

fn remarks(policy: &Policy, seen: &Seen) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let idle = seen.look_ups.keys().filter(|name| !policy.check_name(name, &query()).is_allow());
    let names: Vec<DomainName> = idle.cloned().collect();
    if !names.is_empty() {
        remarks.push(Remark::LookedUp { names });
    }
    for ((name, group), count) in &seen.withheld {
        remarks.push(Remark::Withheld { name: name.clone(), group: *group, count: *count });
    }
    for ((target, group), count) in &seen.denied {
        remarks.push(Remark::Denied { target: target.clone(), group: *group, count: *count });
    }
    for (target, count) in &seen.failed {
        remarks.push(Remark::Failed { target: target.clone(), count: *count });
    }
    if seen.lost > 0 {
        remarks.push(Remark::Lost { events: seen.lost });
    }
    if seen.beyond > 0 {
        remarks.push(Remark::Beyond { count: seen.beyond });
    }
    remarks
}

/// A query as it comes to the gateway.
pub(crate) fn query() -> Facts<'static> {
    Facts {
        direction: Direction::Egress,
        protocol: Protocol::Udp,
        peer: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        port: Some(53),
        names: &[],
    }
}
