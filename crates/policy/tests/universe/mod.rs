//! Rules and flows drawn from few addresses, ports and names, so that they meet.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cofferdam_model::{
    Action, Classifier, Destination, Direction, DomainName, Group, HostNetwork, PolicyConfig, PortRange, Protocol,
    ProtocolSet, Rule,
};
use cofferdam_policy::{Facts, Flight, PinnedName, ShownName};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// What a flow shows.
#[derive(Debug, Clone)]
pub(crate) enum Shown {
    Names(Vec<DomainName>),
    Unreadable,
    Other,
}

impl Shown {
    pub(crate) fn flight<'a>(&self, names: &'a [ShownName<'a>]) -> Flight<'a> {
        match self {
            Shown::Names(_) => Flight::Names(names),
            Shown::Unreadable => Flight::Unreadable,
            Shown::Other => Flight::Other,
        }
    }

    pub(crate) fn names(&self) -> &[DomainName] {
        match self {
            Shown::Names(names) => names,
            Shown::Unreadable | Shown::Other => &[],
        }
    }
}

pub(crate) const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 16, 0, 1));

pub(crate) fn classifier() -> Classifier {
    Classifier::new(HostNetwork { addresses: vec![HOST], ..HostNetwork::default() })
}

#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) direction: Direction,
    pub(crate) protocol: Protocol,
    pub(crate) peer: IpAddr,
    pub(crate) port: u16,
    pub(crate) names: Vec<PinnedName>,
}

impl Flow {
    /// What is shown, with whether it is pinned to the flow's peer.
    pub(crate) fn shows<'a>(&self, shown: &'a Shown) -> Vec<ShownName<'a>> {
        let pinned = |name: &DomainName| self.names.iter().any(|pin| !pin.alias && pin.name == *name);
        shown.names().iter().map(|name| ShownName { name, pinned: pinned(name) }).collect()
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        let has_port = matches!(self.protocol, Protocol::Tcp | Protocol::Udp);
        Facts {
            direction: self.direction,
            protocol: self.protocol,
            peer: self.peer,
            port: has_port.then_some(self.port),
            names: &self.names,
        }
    }
}

pub(crate) fn flow() -> impl Strategy<Value = Flow> {
    let direction = select(vec![Direction::Egress, Direction::Ingress]);
    (direction, protocol(), address(), port(), vec(pinned_name(), 0..4))
        .prop_map(|(direction, protocol, peer, port, names)| Flow { direction, protocol, peer, port, names })
}

pub(crate) fn config() -> impl Strategy<Value = PolicyConfig> {
    (action(), action(), vec(rule(), 0..12), any::<bool>()).prop_map(
        |(default_egress, default_ingress, rules, strict)| PolicyConfig {
            default_egress,
            default_ingress,
            rules,
            strict,
        },
    )
}

pub(crate) fn rule() -> impl Strategy<Value = Rule> {
    let direction = select(vec![Direction::Egress, Direction::Egress, Direction::Ingress, Direction::Any]);
    let protocols = vec(protocol(), 0..3).prop_map(|set| set.into_iter().fold(ProtocolSet::ANY, ProtocolSet::with));
    let ports = vec((port(), port()), 0..3).prop_map(|ranges| {
        ranges.into_iter().map(|(a, b)| PortRange { start: a.min(b), end: a.max(b) }).collect::<Vec<_>>()
    });
    (action(), direction, destination(), protocols, ports, any::<(bool, bool)>()).prop_map(
        |(action, direction, destination, protocols, ports, (opaque, allow_private))| {
            // What no door lets in: ICMP that comes in, and ICMP alone with ports.
            let icmp = |p: &Protocol| matches!(p, Protocol::IcmpV4 | Protocol::IcmpV6);
            let direction = if protocols.iter().any(|p| icmp(&p)) { Direction::Egress } else { direction };
            let only_icmp = !protocols.is_any() && protocols.iter().all(|p| icmp(&p));
            let ports = if only_icmp { Vec::new() } else { ports };
            let named = matches!(destination, Destination::Domain(_) | Destination::Suffix { .. });
            let lets_a_name_out = named && action == Action::Allow && direction == Direction::Egress;
            let (opaque, allow_private) = (opaque && lets_a_name_out, allow_private && lets_a_name_out);
            Rule { action, direction, destination, protocols, ports, opaque, allow_private }
        },
    )
}

pub(crate) fn destination() -> impl Strategy<Value = Destination> {
    let cidr = (address(), 0..=128_u8).prop_map(|(address, length)| {
        Destination::Cidr(match address.to_canonical() {
            IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new(v4, length % 33).unwrap().trunc()),
            IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new(v6, length).unwrap().trunc()),
        })
    });
    prop_oneof![
        1 => Just(Destination::Any),
        3 => select(Group::ALL.to_vec()).prop_map(Destination::Group),
        4 => cidr,
        3 => name().prop_map(Destination::Domain),
        3 => (name(), any::<bool>()).prop_map(|(name, apex)| Destination::Suffix { name, apex }),
    ]
}

pub(crate) fn action() -> impl Strategy<Value = Action> {
    select(vec![Action::Allow, Action::Deny])
}

pub(crate) fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp, Protocol::IcmpV4, Protocol::IcmpV6])
}

pub(crate) fn port() -> impl Strategy<Value = u16> {
    prop_oneof![select(vec![1, 2, 53, 80, 81, 443, 443, 853, 5353, u16::MAX - 1, u16::MAX]), 1..=u16::MAX]
}

pub(crate) fn name() -> impl Strategy<Value = DomainName> {
    let label = select(vec!["a", "b", "aa", "x-y", "_z"]);
    let top = select(vec!["com", "example", "github.io", "lan"]);
    (vec(label, 0..3), top).prop_map(|(labels, top)| {
        let text: String = labels.iter().map(|label| format!("{label}.")).collect();
        format!("{text}{top}").parse().unwrap()
    })
}

pub(crate) fn address() -> impl Strategy<Value = IpAddr> {
    let known = [
        "172.16.0.1",
        "172.16.0.2",
        "10.0.0.1",
        "8.8.8.8",
        "8.8.8.9",
        "169.254.169.254",
        "127.0.0.1",
        "255.255.255.255",
        "0.0.0.0",
        "::ffff:8.8.8.8",
        "::",
        "::1",
        "fd00:ec2::254",
        "2606:4700::1",
        "2606:4700::2",
        "64:ff9b::a00:1",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];
    let known: Vec<IpAddr> = known.iter().map(|text| text.parse().unwrap()).collect();
    prop_oneof![
        6 => select(known),
        1 => any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        1 => any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
    ]
}

pub(crate) fn pinned_name() -> impl Strategy<Value = PinnedName> {
    (name(), any::<bool>()).prop_map(|(name, alias)| PinnedName { name, alias })
}

pub(crate) fn shown() -> impl Strategy<Value = Shown> {
    prop_oneof![
        4 => vec(name(), 0..3).prop_map(Shown::Names),
        1 => Just(Shown::Unreadable),
        1 => Just(Shown::Other),
    ]
}

/// A flow of the guest over TCP.
pub(crate) fn tcp<'a>(peer: &str, port: u16, names: &'a [PinnedName]) -> Facts<'a> {
    let peer = peer.parse().unwrap();
    Facts { direction: Direction::Egress, protocol: Protocol::Tcp, peer, port: Some(port), names }
}

/// Rules that are mostly for few names, those of a known resolver among them.
pub(crate) fn named_config() -> impl Strategy<Value = PolicyConfig> {
    let name =
        select(vec!["a.com", "b.a.com", "com", "dns.google", "google", "lan"]).prop_map(|name| name.parse().unwrap());
    let destination = prop_oneof![
        3 => name.clone().prop_map(Destination::Domain),
        3 => (name, any::<bool>()).prop_map(|(name, apex)| Destination::Suffix { name, apex }),
        1 => select(vec![Group::Public, Group::Private, Group::Host]).prop_map(Destination::Group),
        1 => Just(Destination::Any),
        1 => Just(Destination::Cidr("8.8.8.8/32".parse().unwrap())),
    ];
    let protocols = vec(protocol(), 0..2).prop_map(|set| set.into_iter().fold(ProtocolSet::ANY, ProtocolSet::with));
    let rule = (action(), destination, protocols)
        .prop_map(|(action, destination, protocols)| Rule { protocols, ..Rule::egress(action, destination) });
    (action(), action(), vec(rule, 0..8)).prop_map(|(default_egress, default_ingress, rules)| PolicyConfig {
        default_egress,
        default_ingress,
        rules,
        strict: true,
    })
}
