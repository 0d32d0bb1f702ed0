//! What holds for every policy.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test stops where it fails")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use cofferdam_model::{
    Action, Classifier, Destination, Direction, DomainName, Group, HostNetwork, PolicyConfig, PortRange, Protocol,
    ProtocolSet, Rule, Time,
};
use cofferdam_policy::grammar::{format_rule, parse_rules};
use cofferdam_policy::{BuiltIn, Facts, Flight, PinnedName, Pins, Policy, RuleRef, ShownName, Verdict};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

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
        let mut pins = Pins::new();
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
        let names: Vec<ShownName<'_>> = shown.names().iter().map(|name| {
            let pinned = facts.names.iter().any(|pin| !pin.alias && pin.name == *name);
            ShownName { name, pinned }
        }).collect();
        let flight = match shown {
            Shown::Names(_) => Flight::Names(&names),
            Shown::Unreadable => Flight::Unreadable,
            Shown::Other => Flight::Other,
        };
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

fn pinned_name() -> impl Strategy<Value = PinnedName> {
    (name(), any::<bool>()).prop_map(|(name, alias)| PinnedName { name, alias })
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

/// What a flow shows.
#[derive(Debug, Clone)]
enum Shown {
    Names(Vec<DomainName>),
    Unreadable,
    Other,
}

impl Shown {
    fn names(&self) -> &[DomainName] {
        match self {
            Shown::Names(names) => names,
            Shown::Unreadable | Shown::Other => &[],
        }
    }
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

fn shown() -> impl Strategy<Value = Shown> {
    prop_oneof![
        4 => vec(name(), 0..3).prop_map(Shown::Names),
        1 => Just(Shown::Unreadable),
        1 => Just(Shown::Other),
    ]
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

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 16, 0, 1));

fn classifier() -> Classifier {
    Classifier::new(HostNetwork { addresses: vec![HOST], ..HostNetwork::default() })
}

#[derive(Debug, Clone)]
struct Flow {
    direction: Direction,
    protocol: Protocol,
    peer: IpAddr,
    port: u16,
    names: Vec<PinnedName>,
}

impl Flow {
    fn facts(&self) -> Facts<'_> {
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

// Addresses, ports and names are drawn from few values, so that rules and flows meet.

fn flow() -> impl Strategy<Value = Flow> {
    let direction = select(vec![Direction::Egress, Direction::Ingress]);
    (direction, protocol(), address(), port(), vec(pinned_name(), 0..4))
        .prop_map(|(direction, protocol, peer, port, names)| Flow { direction, protocol, peer, port, names })
}

fn config() -> impl Strategy<Value = PolicyConfig> {
    (action(), action(), vec(rule(), 0..12), any::<bool>()).prop_map(
        |(default_egress, default_ingress, rules, strict)| PolicyConfig {
            default_egress,
            default_ingress,
            rules,
            strict,
        },
    )
}

fn rule() -> impl Strategy<Value = Rule> {
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

fn destination() -> impl Strategy<Value = Destination> {
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

fn action() -> impl Strategy<Value = Action> {
    select(vec![Action::Allow, Action::Deny])
}

fn protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp, Protocol::IcmpV4, Protocol::IcmpV6])
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![select(vec![1, 2, 53, 80, 81, 443, 443, 853, 5353, u16::MAX - 1, u16::MAX]), 1..=u16::MAX]
}

fn name() -> impl Strategy<Value = DomainName> {
    let label = select(vec!["a", "b", "aa", "x-y", "_z"]);
    let top = select(vec!["com", "example", "github.io", "lan"]);
    (vec(label, 0..3), top).prop_map(|(labels, top)| {
        let text: String = labels.iter().map(|label| format!("{label}.")).collect();
        format!("{text}{top}").parse().unwrap()
    })
}

fn address() -> impl Strategy<Value = IpAddr> {
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
