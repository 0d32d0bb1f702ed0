use std::collections::{BTreeMap, BTreeSet};

use cofferdam_model::{Action, PortRange, Protocol, Rule};

use crate::table::Rank;

/// The protocol and port of a flow, as far as rules look at them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Service {
    pub(crate) protocol: Protocol,
    /// `None` for ICMP, which carries no port: rules with ports do not match it.
    pub(crate) port: Option<u16>,
}

/// Services between which no rule of a set makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServiceClass {
    protocol: Protocol,
    /// How many borders lie at or below the port; `None` without a port.
    span: Option<usize>,
}

impl ServiceClass {
    /// The class of a service by two sets of rules, from its classes by each. Both spans only grow with the port, so two ports
    /// have the same sum exactly when they have the same spans.
    pub(crate) fn and(self, other: ServiceClass) -> ServiceClass {
        let span = self.span.zip(other.span).map(|(one, other)| one + other);
        ServiceClass { protocol: self.protocol, span }
    }
}

/// The ports at which some range of a set of rules begins, or has ended; sorted.
#[derive(Debug, Default)]
pub(crate) struct Borders {
    tcp: Box<[u16]>,
    udp: Box<[u16]>,
}

impl Borders {
    pub(crate) fn new<'a>(rules: impl Iterator<Item = &'a Rule> + Clone) -> Borders {
        let of = |protocol| {
            let ranges = rules.clone().filter(|rule| rule.protocols.matches(protocol)).flat_map(|rule| &rule.ports);
            let borders = ranges.flat_map(|range| [Some(range.start), range.end.checked_add(1)]).flatten();
            borders.collect::<BTreeSet<u16>>().into_iter().collect()
        };
        Borders { tcp: of(Protocol::Tcp), udp: of(Protocol::Udp) }
    }

    pub(crate) fn class(&self, service: Service) -> ServiceClass {
        let borders = match service.protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
            Protocol::IcmpV4 | Protocol::IcmpV6 => return ServiceClass { protocol: service.protocol, span: None },
        };
        let span = service.port.map(|port| borders.partition_point(|border| *border <= port));
        ServiceClass { protocol: service.protocol, span }
    }
}

/// The rules for one destination: for every protocol and port, the first that allows and the first that denies.
#[derive(Debug, Default)]
pub(crate) struct Table {
    allow: Ports,
    deny: Ports,
    /// Of those that allow, the ones with `allow_private`; most tables have none.
    inside: Option<Box<Ports>>,
}

/// The lowest ranks in a table for one service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ranks {
    pub(crate) allow: Rank,
    pub(crate) deny: Rank,
    /// The first that allows and lets its name lead to addresses that are not public.
    pub(crate) inside: Rank,
}

impl Ranks {
    pub(crate) const NONE: Ranks = Ranks { allow: Rank::NONE, deny: Rank::NONE, inside: Rank::NONE };

    pub(crate) fn min(self, other: Ranks) -> Ranks {
        let inside = self.inside.min(other.inside);
        Ranks { allow: self.allow.min(other.allow), deny: self.deny.min(other.deny), inside }
    }

    pub(crate) fn first(self) -> Rank {
        self.allow.min(self.deny)
    }
}

impl Table {
    /// The table of rules that share a destination.
    pub(crate) fn new(rules: &[(Rank, &Rule)]) -> Table {
        let of = |action| rules.iter().filter(move |(_, rule)| rule.action == action).copied();
        let inside = || of(Action::Allow).filter(|(_, rule)| rule.allow_private);
        let inside = inside().next().is_some().then(|| Box::new(Ports::new(inside())));
        Table { allow: Ports::new(of(Action::Allow)), deny: Ports::new(of(Action::Deny)), inside }
    }

    pub(crate) fn lookup(&self, service: Service) -> Ranks {
        let inside = self.inside.as_ref().map_or(Rank::NONE, |inside| inside.lookup(service));
        Ranks { allow: self.allow.lookup(service), deny: self.deny.lookup(service), inside }
    }
}

/// For every protocol, the first rule without ports; for TCP and UDP, the first rule of every port as a list of spans.
#[derive(Debug)]
struct Ports {
    portless: [Rank; 4],
    tcp: Spans,
    udp: Spans,
}

/// Where in the port space another rule begins to be the first, sorted; a span lasts until the next one.
type Spans = Box<[(u16, Rank)]>;

impl Default for Ports {
    fn default() -> Ports {
        Ports { portless: [Rank::NONE; 4], tcp: Spans::default(), udp: Spans::default() }
    }
}

impl Ports {
    fn new<'a>(rules: impl Iterator<Item = (Rank, &'a Rule)>) -> Ports {
        let mut ports = Ports::default();
        let mut tcp = Vec::new();
        let mut udp = Vec::new();
        for (rank, rule) in rules {
            if rule.ports.is_empty() {
                let all = [Protocol::Tcp, Protocol::Udp, Protocol::IcmpV4, Protocol::IcmpV6];
                for (protocol, slot) in all.into_iter().zip(&mut ports.portless) {
                    if rule.protocols.matches(protocol) {
                        *slot = rank.min(*slot);
                    }
                }
                continue;
            }
            for (protocol, ranges) in [(Protocol::Tcp, &mut tcp), (Protocol::Udp, &mut udp)] {
                if rule.protocols.matches(protocol) {
                    ranges.extend(rule.ports.iter().map(|range| (*range, rank)));
                }
            }
        }
        ports.tcp = spans(&tcp);
        ports.udp = spans(&udp);
        ports
    }

    fn lookup(&self, service: Service) -> Rank {
        let [tcp, udp, icmp_v4, icmp_v6] = self.portless;
        let (portless, spans) = match service.protocol {
            Protocol::Tcp => (tcp, &self.tcp),
            Protocol::Udp => (udp, &self.udp),
            Protocol::IcmpV4 => return icmp_v4,
            Protocol::IcmpV6 => return icmp_v6,
        };
        let Some(port) = service.port else { return portless };
        let after = spans.partition_point(|(start, _)| *start <= port);
        let span = after.checked_sub(1).and_then(|at| spans.get(at));
        span.map_or(portless, |(_, rank)| portless.min(*rank))
    }
}

/// Sweeps over the borders of the ranges in order, with the ranks that are open at each kept sorted.
fn spans(ranges: &[(PortRange, Rank)]) -> Spans {
    match ranges {
        [] => return Spans::default(),
        // By far the most tables have one rule with one range.
        [(range, rank)] => {
            let end = range.end.checked_add(1).map(|border| (border, Rank::NONE));
            return [(range.start, *rank)].into_iter().chain(end).collect();
        }
        [_, _, ..] => {}
    }
    let mut borders: BTreeMap<u32, (Vec<Rank>, Vec<Rank>)> = BTreeMap::new();
    for (range, rank) in ranges {
        borders.entry(u32::from(range.start)).or_default().0.push(*rank);
        borders.entry(u32::from(range.end) + 1).or_default().1.push(*rank);
    }
    let mut open: BTreeMap<Rank, u32> = BTreeMap::new();
    let mut spans: Vec<(u16, Rank)> = Vec::new();
    for (border, (begin, end)) in borders {
        for rank in begin {
            *open.entry(rank).or_default() += 1;
        }
        for rank in end {
            let left = open.get_mut(&rank).map(|count| {
                *count = count.saturating_sub(1);
                *count
            });
            if left == Some(0) {
                open.remove(&rank);
            }
        }
        // The border after port 65535 begins nothing.
        let Ok(start) = u16::try_from(border) else { break };
        let first = open.first_key_value().map_or(Rank::NONE, |(rank, _)| *rank);
        if spans.last().is_none_or(|(_, last)| *last != first) {
            spans.push((start, first));
        }
    }
    spans.into_boxed_slice()
}
