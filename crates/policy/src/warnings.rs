//! Rules that do not do what their author thought.
//!
//! A rule is covered when one earlier rule matches everything it matches. Candidates are found by destination: rules for any,
//! for the same destination, for networks around it, for the group it lies in, for suffixes of its name. At most
//! [`CANDIDATES`] per destination are looked at, so that a policy of a hundred thousand rules is checked in good time; what
//! that misses is a warning, never a verdict. A rule covered only by several others together is not found.

use std::collections::BTreeMap;
use std::fmt;

use cofferdam_model::{Action, Classifier, Destination, Direction, Group, PolicyConfig, PortRange, Protocol, Rule};
use ipnet::IpNet;

use crate::grammar::format_rule;

/// Earlier rules per destination that a rule is compared with.
const CANDIDATES: usize = 64;

/// A rule that has no effect, fights with another one or opens more than it seems to. Positions count from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// `rule` can never match, since `by`, an earlier rule with the same action, covers it.
    Shadowed { rule: usize, rule_text: String, by: usize, by_text: String },
    /// `rule` can never match, since `by`, an earlier rule with the other action, covers it.
    Contradicted { rule: usize, rule_text: String, by: usize, by_text: String },
    /// `rule` allows any destination, which opens the host and cloud metadata as well.
    OpensMetadata { rule: usize, rule_text: String },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Shadowed { rule, rule_text, by, by_text } => {
                write!(f, "rule {rule} `{rule_text}` never matches: rule {by} `{by_text}` covers it")
            }
            Warning::Contradicted { rule, rule_text, by, by_text } => {
                write!(f, "rule {rule} `{rule_text}` never matches: rule {by} `{by_text}` decides the opposite first")
            }
            Warning::OpensMetadata { rule, rule_text } => {
                write!(f, "rule {rule} `{rule_text}` also opens the host and cloud metadata: ")?;
                f.write_str("put `deny@metadata` and `deny@host` before it unless that is meant")
            }
        }
    }
}

/// Every rule that an earlier one covers, and rules that open metadata in passing.
pub(crate) fn find(config: &PolicyConfig) -> Vec<Warning> {
    let classifier = Classifier::default();
    let mut seen: BTreeMap<Key, Vec<(usize, &Rule)>> = BTreeMap::new();
    let mut warnings = Vec::new();
    for (position, rule) in config.rules.iter().enumerate() {
        let candidates = wider(&rule.destination, &classifier).filter_map(|key| seen.get(&key)).flatten();
        let by = candidates.filter(|(_, earlier)| covers(earlier, rule, &classifier)).min_by_key(|(at, _)| *at);
        let text = || format_rule(rule);
        match by {
            Some((by, earlier)) if earlier.action == rule.action => {
                let by_text = format_rule(earlier);
                warnings.push(Warning::Shadowed { rule: position, rule_text: text(), by: *by, by_text });
            }
            Some((by, earlier)) => {
                let by_text = format_rule(earlier);
                warnings.push(Warning::Contradicted { rule: position, rule_text: text(), by: *by, by_text });
            }
            None if opens_metadata(rule, &seen) => {
                warnings.push(Warning::OpensMetadata { rule: position, rule_text: text() });
            }
            None => {}
        }
        let at_key = seen.entry(Key::of(&rule.destination)).or_default();
        if at_key.len() < CANDIDATES {
            at_key.push((position, rule));
        }
    }
    warnings
}

/// A destination in a form that sorts.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Any,
    Group(Group),
    Cidr(IpNet),
    Domain(String),
    Suffix(String),
    Below(String),
}

impl Key {
    fn of(destination: &Destination) -> Key {
        match destination {
            Destination::Any => Key::Any,
            Destination::Group(group) => Key::Group(*group),
            Destination::Cidr(net) => Key::Cidr(net.trunc()),
            Destination::Domain(name) => Key::Domain(name.to_string()),
            Destination::Suffix { name, apex: true } => Key::Suffix(name.to_string()),
            Destination::Suffix { name, apex: false } => Key::Below(name.to_string()),
        }
    }
}

/// The keys of all destinations that hold everything in `destination`.
fn wider<'a>(destination: &'a Destination, classifier: &Classifier) -> impl Iterator<Item = Key> + 'a {
    let mut keys = vec![Key::Any];
    match destination {
        Destination::Any => {}
        Destination::Group(group) => keys.push(Key::Group(*group)),
        Destination::Cidr(net) => {
            keys.extend(classifier.classify_net(*net).map(Key::Group));
            let mut around = Some(net.trunc());
            while let Some(net) = around {
                keys.push(Key::Cidr(net));
                around = net.supernet();
            }
        }
        Destination::Domain(name) => {
            keys.push(Key::Domain(name.to_string()));
            keys.push(Key::Suffix(name.to_string()));
            keys.extend(parents(name.as_str()));
        }
        Destination::Suffix { name, apex } => {
            keys.push(Key::Suffix(name.to_string()));
            if !apex {
                keys.push(Key::Below(name.to_string()));
            }
            keys.extend(parents(name.as_str()));
        }
    }
    keys.into_iter()
}

fn parents(name: &str) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut rest = name;
    while let Some((_, parent)) = rest.split_once('.') {
        keys.push(Key::Suffix(parent.to_owned()));
        keys.push(Key::Below(parent.to_owned()));
        rest = parent;
    }
    keys
}

/// Whether `earlier`, whose destination is known to be the wider one, matches whatever `later` matches.
fn covers(earlier: &Rule, later: &Rule, classifier: &Classifier) -> bool {
    let direction = earlier.direction == Direction::Any || earlier.direction == later.direction;
    direction
        && covers_protocols(earlier, later)
        && covers_ports(&earlier.ports, &later.ports)
        && !passes_over(earlier, later, classifier)
}

fn covers_protocols(earlier: &Rule, later: &Rule) -> bool {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::IcmpV4, Protocol::IcmpV6];
    let matched = |rule: &Rule, protocol: Protocol| {
        let has_ports = matches!(protocol, Protocol::Tcp | Protocol::Udp);
        rule.protocols.matches(protocol) && (has_ports || rule.ports.is_empty())
    };
    all.into_iter().all(|protocol| matched(earlier, protocol) || !matched(later, protocol))
}

fn covers_ports(earlier: &[PortRange], later: &[PortRange]) -> bool {
    let covered = |range: &PortRange| earlier.iter().any(|wide| wide.start <= range.start && range.end <= wide.end);
    earlier.is_empty() || (!later.is_empty() && later.iter().all(covered))
}

/// An allow rule for a network passes over metadata, so a later rule for it is not covered.
fn passes_over(earlier: &Rule, later: &Rule, classifier: &Classifier) -> bool {
    let network = |rule: &Rule| {
        let Destination::Cidr(net) = &rule.destination else { return None };
        (net.prefix_len() < net.max_prefix_len()).then_some(*net)
    };
    if earlier.action == Action::Deny || network(earlier).is_none() {
        return false;
    }
    let Destination::Cidr(net) = &later.destination else { return false };
    let passes_over_too = later.action == Action::Allow && network(later).is_some();
    !passes_over_too && classifier.holds_metadata(*net)
}

fn opens_metadata(rule: &Rule, seen: &BTreeMap<Key, Vec<(usize, &Rule)>>) -> bool {
    let opens =
        rule.action == Action::Allow && rule.destination == Destination::Any && rule.direction != Direction::Ingress;
    let denied = seen.get(&Key::Group(Group::Metadata)).into_iter().flatten().any(|(_, earlier)| {
        earlier.action == Action::Deny
            && earlier.direction != Direction::Ingress
            && covers_protocols(earlier, rule)
            && covers_ports(&earlier.ports, &rule.ports)
    });
    opens && !denied
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::parse_rules;

    #[test]
    fn a_covered_rule_names_the_one_that_covers_it() {
        let shadowed = [
            "allow@any,allow@10.0.0.0/8",
            "deny@10.0.0.0/8,deny@10.1.0.0/16:tcp:80",
            "allow@private,allow@10.0.0.5:tcp",
            "allow@*.example.org:tcp,allow@www.example.org:tcp:443",
            "deny@.example.org,deny@*.a.example.org",
            "allow@8.8.8.8:tcp:1-100,allow@8.8.8.8:tcp:53+80",
            "allow:any@8.8.8.8,allow:ingress@8.8.8.8",
            "deny@any:icmp,deny@any:icmpv4",
            "deny@any:tcp+udp:53,deny@8.8.8.8:any:53",
        ];
        for text in shadowed {
            let found = warnings(text);
            assert!(found.iter().any(|w| matches!(w, Warning::Shadowed { rule: 1, by: 0, .. })), "{text}: {found:?}");
        }
    }

    #[test]
    fn a_rule_behind_its_opposite_is_a_contradiction() {
        for text in ["deny@any,allow@10.0.0.0/8", "allow@private,deny@10.0.0.5", "deny@*.x.org,allow@a.x.org:tcp:443"] {
            let found = warnings(text);
            assert!(matches!(found[..], [Warning::Contradicted { rule: 1, by: 0, .. }]), "{text}: {found:?}");
        }
        let text = warnings("deny@metadata,allow@any,deny@10.0.0.0/8")[0].to_string();
        assert!(text.contains("rule 2 `deny@10.0.0.0/8`") && text.contains("rule 1 `allow@any`"), "{text}");
    }

    #[test]
    fn a_rule_that_can_match_is_not_warned_about() {
        let fine = [
            "allow@10.0.0.5,deny@10.0.0.0/8",
            "allow@any:tcp:443,deny@metadata",
            "allow@169.254.0.0/16,deny@169.254.169.254",
            "allow@169.254.0.0/16,allow@169.254.169.254",
            "allow:ingress@any,allow@8.8.8.8",
            "allow@example.org,allow@*.example.org",
            "allow@.example.org,allow@example.org",
            "allow@any:tcp,allow@8.8.8.8",
            "allow@8.8.8.8:tcp:80,allow@8.8.8.8:tcp:80-81",
            "deny@any:any:53,deny@8.8.8.8",
            "deny@[::/0],deny@10.0.0.1",
        ];
        for text in fine {
            let found = warnings(text);
            assert!(found.iter().all(|w| matches!(w, Warning::OpensMetadata { .. })), "{text}: {found:?}");
        }
    }

    #[test]
    fn allowing_any_says_that_it_opens_metadata() {
        assert!(matches!(warnings("allow@any")[..], [Warning::OpensMetadata { rule: 0, .. }]));
        assert!(matches!(warnings("deny@metadata:tcp,allow@any")[..], [Warning::OpensMetadata { rule: 1, .. }]));
        assert_eq!(warnings("deny@metadata,allow@any"), []);
        assert_eq!(warnings("allow:ingress@any"), []);
    }

    fn warnings(text: &str) -> Vec<Warning> {
        find(&PolicyConfig { rules: parse_rules(text).unwrap(), ..PolicyConfig::default() })
    }
}
