use std::fmt::Write;

use cofferdam_model::{Action, Destination, Direction, Group, PortRange, Protocol, ProtocolSet, Rule};
use ipnet::IpNet;

use crate::grammar::{ALLOW_PRIVATE, DNS_PORT, OPAQUE, name};
use crate::rule_problem;

/// A rule in the grammar, normalised: the shortest spelling of its parts, ports sorted and united.
pub(super) fn rule(rule: &Rule) -> String {
    let mut rule = rule.clone();
    rule_problem::normalise(&mut rule);
    let mut text = action(rule.action).to_owned();
    match rule.direction {
        Direction::Egress => {}
        Direction::Ingress => text.push_str(":ingress"),
        Direction::Any => text.push_str(":any"),
    }
    text.push('@');
    if is_dns(&rule) {
        text.push_str("dns");
        return text;
    }
    text.push_str(&destination(&rule.destination));
    if !rule.protocols.is_any() || !rule.ports.is_empty() {
        text.push(':');
        text.push_str(&protocols(rule.protocols));
    }
    if !rule.ports.is_empty() {
        text.push(':');
        text.push_str(&ports(&rule.ports));
    }
    if rule.opaque {
        text.push_str(OPAQUE);
    }
    if rule.allow_private {
        text.push_str(ALLOW_PRIVATE);
    }
    text
}

pub(super) fn action(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    }
}

fn is_dns(rule: &Rule) -> bool {
    rule.destination == Destination::Group(Group::Host)
        && rule.direction == Direction::Egress
        && rule.protocols == ProtocolSet::default().with(Protocol::Tcp).with(Protocol::Udp)
        && rule.ports == [DNS_PORT]
}

/// A destination as a target of the grammar.
pub(super) fn destination(destination: &Destination) -> String {
    match destination {
        Destination::Any => "any".to_owned(),
        Destination::Group(group) => group.word().to_owned(),
        Destination::Cidr(net) => network(*net),
        Destination::Domain(name) if name.as_str().contains('.') => name.to_string(),
        Destination::Domain(name) => format!("domain={name}"),
        Destination::Suffix { name, apex } => {
            let forced = name::is_public_suffix(name);
            match (forced, apex) {
                (false, true) => format!("*.{name}"),
                (false, false) => format!(".{name}"),
                (true, true) => format!("suffix!={name}"),
                (true, false) => format!("suffix!=.{name}"),
            }
        }
    }
}

fn network(net: IpNet) -> String {
    let single = net.prefix_len() == net.max_prefix_len();
    match (net, single) {
        (IpNet::V4(net), true) => net.addr().to_string(),
        (IpNet::V4(net), false) => net.trunc().to_string(),
        (IpNet::V6(net), true) => format!("[{}]", net.addr()),
        (IpNet::V6(net), false) => format!("[{}]", net.trunc()),
    }
}

fn protocols(set: ProtocolSet) -> String {
    let icmp = set.iter().filter(|protocol| matches!(protocol, Protocol::IcmpV4 | Protocol::IcmpV6)).count();
    let mut words: Vec<&str> = Vec::new();
    for protocol in set.iter() {
        words.push(match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::IcmpV4 | Protocol::IcmpV6 if icmp == 2 => "icmp",
            Protocol::IcmpV4 => "icmpv4",
            Protocol::IcmpV6 => "icmpv6",
        });
    }
    words.dedup();
    if words.is_empty() { "any".to_owned() } else { words.join("+") }
}

fn ports(ranges: &[PortRange]) -> String {
    let mut text = String::new();
    for range in ranges {
        if !text.is_empty() {
            text.push('+');
        }
        // Writing to a string cannot fail.
        let _ = if range.start == range.end {
            write!(text, "{}", range.start)
        } else {
            write!(text, "{}-{}", range.start, range.end)
        };
    }
    text
}
