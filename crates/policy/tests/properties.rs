//! What holds for every policy.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

mod universe;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use cofferdam_model::{Action, Destination, Direction, DomainName, Group, PolicyConfig, Protocol, Rule, Time};
use cofferdam_policy::grammar::{format_rule, parse_rules};
use cofferdam_policy::{BuiltIn, Facts, PinnedName, Pins, Policy, RuleRef, Verdict};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::universe::{Flow, HOST, Shown, classifier, config, flow, name, pinned_name, rule, shown};

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_printed_rule_is_read_back_as_it_was(rule in rule()) {
        let text = format_rule(&rule);
        let read = parse_rules(&text).map_err(|errors| TestCaseError::fail(errors.to_string()))?;
        prop_assert_eq!(read.len(), 1, "{}", &text);
        prop_assert_eq!(format_rule(&read[0]), &*text);
        let ports = |rule: &Rule| {
            (1..=u16::MAX).filter(|port| rule.ports.iter().any(|range| (range.start..=range.end).contains(port))).count()
        };
        prop_assert_eq!(ports(&read[0]), ports(&rule));
        prop_assert_eq!(Rule { ports: rule.ports.clone(), ..read[0].clone() }, rule);
    }

    #[test]
    fn the_parser_survives_any_text(text in "\\PC{0,60}") {
        let _ = parse_rules(&text);
    }

    #[test]
    fn the_parser_survives_nearly_right_text(text in vec(select(PIECES.to_vec()), 0..12)) {
        if let Err(errors) = parse_rules(&text.concat()) {
            for error in &errors.0 {
                prop_assert!(error.source.get(error.span.clone()).is_some());
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn a_compiled_policy_decides_as_the_first_match_does(config in config(), flows in vec(flow(), 1..20)) {
        let policy = Policy::compile(&config, classifier());
        for flow in &flows {
            let facts = flow.facts();
            let verdict = policy.check(&facts);
            let (rule, action) = expected(&config, &facts);
            prop_assert_eq!(verdict.reason().rule, rule, "{:?}", &facts);
            prop_assert_eq!(verdict.is_allow(), action == Action::Allow);
            prop_assert_eq!(verdict.reason().group, classifier().classify(facts.peer));
        }
    }

    #[test]
    fn pins_decide_as_all_names_of_the_address_do(
        configs in [config(), config()],
        steps in vec((0..40_u64, step()), 1..120),
    ) {
        let policies = configs.each_ref().map(|config| Policy::compile(config, classifier()));
        let mut pins = Pins::new(Pins::FLOOR);
        let mut model: Vec<(PinnedName, IpAddr, Time)> = Vec::new();
        let mut now = Time::ZERO;
        for (seconds, step) in steps {
            now = now + Duration::from_secs(seconds * u64::from(step.passes_time()));
            model.retain(|(_, _, expires)| now < *expires);
            match step {
                Step::Pin { name, address, ttl } => {
                    let ttl = Duration::from_secs(ttl.into());
                    pins.insert(now, &name.name, name.alias, address, ttl).unwrap();
                    let expires = now + ttl.max(Pins::FLOOR);
                    let known = model.iter_mut().find(|(n, a, _)| *n == name && *a == address);
                    match known {
                        Some((_, _, known)) => *known = expires.max(*known),
                        None => model.push((name, address, expires)),
                    }
                }
                Step::Flow { flow, address, policy } => {
                    let at: Vec<&(PinnedName, IpAddr, Time)> = model.iter().filter(|(_, a, _)| *a == address).collect();
                    let names: Vec<PinnedName> = at.iter().map(|(name, ..)| name.clone()).collect();
                    let flow = Flow { direction: Direction::Egress, peer: address, names, ..flow };
                    let all = flow.facts();
                    let few = pins.deciding(now, &policies[policy], all.protocol, all.peer, all.port);
                    prop_assert!(few.len() <= 5 && few.iter().all(|name| flow.names.contains(name)));
                    let verdict = policies[policy].check(&Facts { names: few, ..all });
                    let (rule, action) = expected(&configs[policy], &all);
                    prop_assert_eq!(verdict.reason().rule, rule, "{:?} instead of {:?}", few, &all);
                    prop_assert_eq!(verdict.is_allow(), action == Action::Allow);
                    let mut listed: Vec<&PinnedName> = pins.names_of(now, address).collect();
                    listed.reverse();
                    prop_assert_eq!(listed, flow.names.iter().collect::<Vec<_>>());
                    for name in &flow.names {
                        let itself = flow.names.contains(&PinnedName { alias: false, ..name.clone() });
                        prop_assert_eq!(pins.is_pinned(now, &name.name, address), itself);
                    }
                }
            }
        }
    }

    #[test]
    fn a_flight_is_judged_as_the_first_match_is(config in config(), flow in flow(), shown in shown()) {
        let policy = Policy::compile(&config, classifier());
        let facts = flow.facts();
        let names = flow.shows(&shown);
        let flight = shown.flight(&names);
        let admitted = policy.check(&facts);
        let egress = facts.direction == Direction::Egress && facts.port.is_some();
        let expected = (egress && admitted.is_allow()).then(|| flight_match(&config, &facts, &admitted, &shown));
        match (&admitted, expected) {
            (Verdict::Pending(_, pending), Some((rule, action))) => {
                let verdict = policy.check_flight(pending, &flight);
                prop_assert_eq!(verdict.reason().rule, rule);
                prop_assert_eq!(verdict.is_allow(), action == Action::Allow);
            }
            // Nothing a flow can show would have changed the verdict.
            (Verdict::Allow(_), Some((_, action))) => prop_assert_eq!(action, Action::Allow),
            (Verdict::Allow(_) | Verdict::Deny(_), None) => {}
            (_, _) => prop_assert!(false, "{:?}", admitted),
        }
    }

    #[test]
    fn a_name_is_judged_as_the_first_match_does(config in config(), name in name(), flow in flow()) {
        let policy = Policy::compile(&config, classifier());
        let transport = flow.facts();
        let verdict = policy.check_name(&name, &transport);
        let matching = |rule: &Rule| rule.direction != Direction::Ingress && match &rule.destination {
            Destination::Any | Destination::Group(Group::Host) => matches_service(rule, &transport),
            Destination::Group(_) | Destination::Cidr(_) => false,
            Destination::Domain(_) | Destination::Suffix { .. } => matches_name(&rule.destination, &name),
        };
        let expected = config.rules.iter().position(matching);
        let action = expected.map_or(config.default_egress, |at| config.rules[at].action);
        let rule = expected.map_or(RuleRef::Default(Direction::Egress), |at| RuleRef::Rule(u32::try_from(at).unwrap()));
        prop_assert_eq!(verdict.reason().rule, rule);
        prop_assert_eq!(verdict.is_allow(), action == Action::Allow);
    }

    #[test]
    fn a_shadowed_rule_never_decides(config in config(), flows in vec(flow(), 1..20)) {
        use cofferdam_policy::Warning;
        let policy = Policy::compile(&config, classifier());
        for warning in Policy::warnings(&config) {
            let (Warning::Shadowed { rule, by, .. } | Warning::Contradicted { rule, by, .. }) = warning else { continue };
            prop_assert!(by < rule);
            // The warning does not know the host's addresses, and aliases are only looked at by deny rules.
            let named = matches!(config.rules[rule].destination, Destination::Domain(_) | Destination::Suffix { .. });
            for flow in flows.iter().filter(|flow| !named && flow.peer != HOST) {
                let decided = policy.check(&flow.facts()).reason().rule;
                prop_assert_ne!(decided, RuleRef::Rule(u32::try_from(rule).unwrap()), "{:?}", config);
            }
        }
    }
}

/// What happens to pins.
#[derive(Debug, Clone)]
enum Step {
    Pin { name: PinnedName, address: IpAddr, ttl: u8 },
    Flow { flow: Flow, address: IpAddr, policy: usize },
}

impl Step {
    /// Most of the time answers and flows follow each other at once.
    fn passes_time(&self) -> bool {
        matches!(self, Step::Pin { ttl, .. } if ttl % 4 == 0)
    }
}

fn step() -> impl Strategy<Value = Step> {
    let address = || select(["8.8.8.8", "2606:4700::1"].map(|text| text.parse::<IpAddr>().unwrap()).to_vec());
    prop_oneof![
        (pinned_name(), address(), any::<u8>()).prop_map(|(name, address, ttl)| Step::Pin { name, address, ttl }),
        (flow(), address(), prop_oneof![9 => Just(0_usize), 1 => Just(1)])
            .prop_map(|(flow, address, policy)| Step::Flow { flow, address, policy }),
    ]
}

/// What comes before every rule, and what a known resolver needs; written anew from `docs/policy.md`.
fn before_rules(facts: &Facts<'_>) -> Option<RuleRef> {
    let udp = facts.protocol == Protocol::Udp;
    match facts.port {
        _ if facts.direction != Direction::Egress => None,
        Some(853) => Some(RuleRef::BuiltIn(BuiltIn::EncryptedDns)),
        Some(443) if udp && facts.peer.to_canonical() == KNOWN => Some(RuleRef::BuiltIn(BuiltIn::EncryptedDns)),
        Some(137 | 5353 | 5355) if udp => Some(RuleRef::BuiltIn(BuiltIn::LocalDiscovery)),
        _ => None,
    }
}

/// The verdict: what comes before the rules, the rules, and `deny_doh`.
fn expected(config: &PolicyConfig, facts: &Facts<'_>) -> (RuleRef, Action) {
    if let Some(built_in) = before_rules(facts) {
        return (built_in, Action::Deny);
    }
    let (rule, action) = first_match(config, facts);
    let https = facts.protocol == Protocol::Tcp && facts.port == Some(443) && facts.peer.to_canonical() == KNOWN;
    let exact = matches!(rule, RuleRef::Rule(at) if match &config.rules[usize::try_from(at).unwrap()].destination {
        // None of the names here is a resolver's own.
        Destination::Domain(_) => false,
        Destination::Cidr(net) => net.prefix_len() == net.max_prefix_len(),
        Destination::Any | Destination::Group(_) | Destination::Suffix { .. } => false,
    });
    let resolver =
        Facts { direction: Direction::Egress, protocol: Protocol::Udp, peer: HOST, port: Some(53), names: &[] };
    let resolves_all = |protocol| {
        config.rules.iter().any(|rule| {
            let for_all = matches!(rule.destination, Destination::Any | Destination::Group(Group::Host));
            let leaves = rule.direction != Direction::Ingress && rule.action == Action::Allow;
            for_all && leaves && matches_service(rule, &Facts { protocol, ..resolver })
        })
    };
    let allow_list =
        config.default_egress == Action::Deny && !resolves_all(Protocol::Udp) && !resolves_all(Protocol::Tcp);
    if facts.direction == Direction::Egress && action == Action::Allow && https && !exact && allow_list {
        return (RuleRef::BuiltIn(BuiltIn::KnownResolver), Action::Deny);
    }
    (rule, action)
}

/// The rule that decides, found the slow way: every rule in order, as `docs/policy.md` words it.
fn first_match(config: &PolicyConfig, facts: &Facts<'_>) -> (RuleRef, Action) {
    let group = classifier().classify(facts.peer);
    let peer = facts.peer.to_canonical();
    let asked_for: Vec<&DomainName> = facts.names.iter().filter(|pin| !pin.alias).map(|pin| &pin.name).collect();
    for (at, rule) in config.rules.iter().enumerate() {
        if rule.direction != facts.direction && rule.direction != Direction::Any || !matches_service(rule, facts) {
            continue;
        }
        let matches = match &rule.destination {
            Destination::Any => true,
            Destination::Group(wanted) => *wanted == group,
            Destination::Cidr(net) => {
                let opens = net.prefix_len() == net.max_prefix_len()
                    || rule.action == Action::Deny
                    || !matches!(group, Group::Host | Group::Metadata);
                net.contains(&peer) && opens
            }
            named @ (Destination::Domain(_) | Destination::Suffix { .. }) if rule.action == Action::Allow => {
                asked_for.iter().any(|name| matches_name(named, name))
            }
            named @ (Destination::Domain(_) | Destination::Suffix { .. }) => {
                let so_far = config.rules[..=at].iter().filter(|rule| {
                    let side = rule.direction == facts.direction || rule.direction == Direction::Any;
                    rule.action == Action::Deny && side && matches_service(rule, facts)
                });
                let denied = |name: &DomainName| so_far.clone().any(|rule| matches_name(&rule.destination, name));
                let every = !asked_for.is_empty() && asked_for.iter().all(|name| denied(name));
                let touched = asked_for.iter().any(|name| matches_name(named, name));
                let alias = facts.names.iter().any(|pin| pin.alias && matches_name(named, &pin.name));
                every && touched || asked_for.len() <= 1 && alias
            }
        };
        if matches {
            return (RuleRef::Rule(u32::try_from(at).unwrap()), rule.action);
        }
    }
    let default = if facts.direction == Direction::Egress { config.default_egress } else { config.default_ingress };
    (RuleRef::Default(facts.direction), default)
}

/// The rule that decides about what an admitted flow shows, found the slow way.
fn flight_match(config: &PolicyConfig, facts: &Facts<'_>, admitted: &Verdict, shown: &Shown) -> (RuleRef, Action) {
    let by_name = admitted.reason().name.is_some();
    let names: Vec<Option<&DomainName>> = match shown.names() {
        [] => vec![None],
        names => names.iter().map(Some).collect(),
    };
    let mut last = None;
    for name in names {
        let decided = config.rules.iter().enumerate().position(|(at, rule)| {
            let side = matches!(rule.direction, Direction::Egress | Direction::Any);
            let named = matches!(rule.destination, Destination::Domain(_) | Destination::Suffix { .. });
            if !side || !matches_service(rule, facts) {
                return false;
            }
            if !named {
                let alone = PolicyConfig { rules: vec![rule.clone()], ..config.clone() };
                return matches!(first_match(&alone, &Facts { names: &[], ..*facts }).0, RuleRef::Rule(_));
            }
            let shows = name.is_some_and(|name| matches_name(&rule.destination, name));
            if rule.action == Action::Deny {
                return shows || matches!(shown, Shown::Unreadable);
            }
            let pinned = facts.names.iter().any(|pin| !pin.alias && Some(&pin.name) == name);
            let web = matches!(facts.port, Some(80 | 443));
            let counts = !config.strict || matches!(shown, Shown::Other) && (!web || rule.opaque);
            let admits = by_name && admitted.reason().rule == RuleRef::Rule(u32::try_from(at).unwrap());
            shows && pinned || admits && counts
        });
        let verdict = match decided {
            Some(at) => (RuleRef::Rule(u32::try_from(at).unwrap()), config.rules[at].action),
            None => (RuleRef::Default(Direction::Egress), config.default_egress),
        };
        if verdict.1 == Action::Deny {
            return verdict;
        }
        last = Some(verdict);
    }
    last.unwrap()
}

fn matches_service(rule: &Rule, facts: &Facts<'_>) -> bool {
    let port = |port: u16| rule.ports.iter().any(|range| (range.start..=range.end).contains(&port));
    rule.protocols.matches(facts.protocol) && (rule.ports.is_empty() || facts.port.is_some_and(port))
}

fn matches_name(destination: &Destination, name: &DomainName) -> bool {
    let below = |suffix: &DomainName| name.as_str().ends_with(&format!(".{suffix}"));
    match destination {
        Destination::Domain(exact) => exact == name,
        Destination::Suffix { name: suffix, apex } => below(suffix) || *apex && suffix == name,
        Destination::Any | Destination::Group(_) | Destination::Cidr(_) => false,
    }
}

/// One of the known resolvers.
const KNOWN: IpAddr = IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8));

const PIECES: [&str; 36] = [
    "allow",
    "deny",
    ":",
    "@",
    ",",
    "egress",
    "ingress",
    "any",
    "dns",
    "host",
    "public",
    "[",
    "]",
    "::1",
    "fd00::",
    "/",
    "8",
    "32",
    "10.0.0.0",
    "10.0.0.5",
    "*.",
    ".",
    "suffix=",
    "suffix!=",
    "domain=",
    "example.org",
    "com",
    "pypi",
    "tcp",
    "udp",
    "icmp",
    "+",
    "-",
    "443",
    "é",
    " ",
];
