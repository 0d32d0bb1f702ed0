//! From a raw configuration to a validated one.

use cofferdam_model::{
    Action, BudgetConfig, Destination, Direction, Group, NetworkConfig, NetworkMode, PolicyConfig, PolicyLayer,
    PortRange, Protocol, ProtocolSet, RateLimits, Rule,
};

use crate::Policy;
use crate::file::error::ConfigError;
use crate::file::raw::{
    RawBudget, RawCeiling, RawDestination, RawDestinationObject, RawDns, RawInterface, RawNetwork, RawPolicy, RawPort,
    RawProtocol, RawRateLimits, RawRule, RawRuleEntry,
};
use crate::file::{host_sockets, ports, values};
use crate::grammar;
use crate::nearest::nearest;
use crate::posture::{self, Posture};
use crate::preset::Preset;

/// What a document says, with everything that is wrong with it.
#[derive(Debug)]
pub(super) struct Resolved {
    /// Rules that go before those of the preset.
    pub(super) rules: Vec<Rule>,
    /// The preset that was named, or the defaults of a policy that was written by hand.
    pub(super) base: Option<Base>,
    pub(super) enabled: Option<bool>,
    /// Where the preset or the mode stands, for errors about it.
    pub(super) preset: String,
    /// What such an error calls it when it turns the network off.
    pub(super) off: &'static str,
}

/// What stands behind the rules.
#[derive(Debug, Clone)]
pub(super) enum Base {
    Preset(Preset, Defaults),
    /// No preset: only defaults.
    ByHand(Defaults),
}

/// Defaults that were written; what is missing is the preset's, or deny for egress and allow for ingress.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Defaults {
    pub(super) egress: Option<Action>,
    pub(super) ingress: Option<Action>,
}

impl Base {
    pub(super) fn of_mode(mode: NetworkMode) -> Base {
        match posture::preset_of(mode) {
            Some(preset) => Base::Preset(preset, Defaults::default()),
            None => Base::ByHand(Defaults::default()),
        }
    }

    pub(super) fn policy(&self) -> (bool, PolicyConfig) {
        let (enabled, mut policy, defaults) = match self {
            Base::Preset(preset, defaults) => (preset.enabled(), preset.policy(), defaults),
            Base::ByHand(defaults) => (true, PolicyConfig::default(), defaults),
        };
        policy.default_egress = defaults.egress.unwrap_or(policy.default_egress);
        policy.default_ingress = defaults.ingress.unwrap_or(policy.default_ingress);
        (enabled, policy)
    }
}

/// Applies everything but the policy to `config`, and returns the policy's parts.
pub(super) fn apply(
    name: &str,
    raw: RawNetwork,
    config: &mut NetworkConfig,
    errors: &mut Vec<ConfigError>,
) -> Resolved {
    for field in raw.unsupported() {
        errors.push(ConfigError::new(format!("{name}: {field}"), format!("field `{field}` is not supported yet")));
    }
    if let Some(deny_with) = raw.deny_with {
        config.deny_with = deny_with;
    }
    if let Some(strict) = raw.strict {
        config.policy.strict = strict;
    }
    if let Some(bound) = raw.max_connections {
        config.limits.max_connections = bound;
    }
    if let Some(bound) = raw.max_udp_connections {
        config.limits.max_udp_connections = bound;
    }
    if let Some(bound) = raw.max_inbound_connections {
        config.limits.max_inbound_connections = bound;
    }
    ports::from_entries(name, raw.ports.unwrap_or_default(), &mut config.ports, errors);
    host_sockets::from_entries(name, raw.host_sockets.unwrap_or_default(), &mut config.host_sockets, errors);
    let origin = |field: &str| format!("{name}: {field}");
    if let Some(ms) = raw.connect_timeout_ms {
        take(errors, origin("connect_timeout_ms"), values::timeout(ms), |timeout| {
            config.limits.connect_timeout = timeout
        });
    }
    if let Some(rates) = raw.rate_limiter {
        config.limits.rates = RateLimits::default();
        apply_rates(name, rates, config, errors);
    }
    if let Some(budgets) = raw.budgets {
        config.limits.budgets.clear();
        for (at, raw) in budgets.into_iter().enumerate() {
            budget(&origin(&format!("budgets[{at}]")), raw, config, errors);
        }
    }
    apply_dns(name, raw.dns.unwrap_or_default(), config, errors);
    apply_interface(name, raw.interface.unwrap_or_default(), config, errors);

    for (at, ceiling) in raw.ceilings.unwrap_or_default().into_iter().enumerate() {
        apply_ceiling(&origin(&format!("ceilings[{at}]")), ceiling, config, errors);
    }
    if config.ceilings.len() >= Policy::MAX_LAYERS {
        let message = format!("too many policies around this one; there may be {}", Policy::MAX_LAYERS - 1);
        errors.push(ConfigError::new(origin("ceilings"), message));
    }

    let mut rules = Vec::new();
    for (at, text) in raw.deny_domains.iter().flatten().enumerate() {
        deny_name(&origin(&format!("deny_domains[{at}]")), text, DenyName::Exact, &mut rules, errors);
    }
    for (at, text) in raw.deny_domain_suffixes.iter().flatten().enumerate() {
        deny_name(&origin(&format!("deny_domain_suffixes[{at}]")), text, DenyName::Suffix, &mut rules, errors);
    }
    let beside =
        raw.preset.is_some() || raw.rules.is_some() || raw.default_egress.is_some() || raw.default_ingress.is_some();
    let posture = Posture {
        mode: raw.network_mode.unwrap_or_default(),
        allowlist: raw.network_allowlist.unwrap_or_default(),
        denylist: raw.network_denylist.unwrap_or_default(),
    };
    match raw.network_mode {
        Some(_) => {
            if beside || raw.policy.is_some() {
                let message = "`network_mode` is the whole policy in a word; `preset`, `policy`, `rules` and defaults beside it contradict";
                errors.push(ConfigError::new(origin("network_mode"), message));
            }
            return resolve_posture(&posture, rules, raw.enabled, origin, errors);
        }
        None if posture != Posture::default() => {
            let message = "`network_allowlist` and `network_denylist` go with `network_mode`, which is not there";
            let help = "write `network_mode` as `allowlist` or `open`";
            errors.push(ConfigError::new(origin("network_mode"), message).help(help.to_owned()));
        }
        None => {}
    }
    let base = match raw.policy {
        Some(policy) => {
            if beside {
                let message = "`policy` is the whole policy; `preset`, `rules` and defaults beside it contradict";
                errors.push(ConfigError::new(origin("policy"), message));
            }
            let RawPolicy { default_egress, default_ingress, rules: entries } = policy;
            read_rules(&origin("policy.rules"), entries, &mut rules, errors);
            Some(Base::ByHand(Defaults { egress: default_egress, ingress: default_ingress }))
        }
        None => {
            let defaults = Defaults { egress: raw.default_egress, ingress: raw.default_ingress };
            read_rules(&origin("rules"), raw.rules.unwrap_or_default(), &mut rules, errors);
            match raw.preset.as_deref().map(Preset::parse) {
                Some(Ok(preset)) => Some(Base::Preset(preset, defaults)),
                Some(Err(error)) => {
                    errors.push(ConfigError::new(origin("preset"), error));
                    None
                }
                None => beside.then_some(Base::ByHand(defaults)),
            }
        }
    };
    Resolved { rules, base, enabled: raw.enabled, preset: origin("preset"), off: "preset `none`" }
}

/// The policy of a mode, behind the names that are denied in any case.
fn resolve_posture(
    posture: &Posture,
    denied_names: Vec<Rule>,
    enabled: Option<bool>,
    origin: impl Fn(&str) -> String,
    errors: &mut Vec<ConfigError>,
) -> Resolved {
    let rules = [denied_names, posture.rules(&origin, errors)].concat();
    let base = Some(Base::of_mode(posture.mode));
    Resolved { rules, base, enabled, preset: origin("network_mode"), off: "mode `blocked`" }
}

fn apply_ceiling(origin: &str, raw: RawCeiling, config: &mut NetworkConfig, errors: &mut Vec<ConfigError>) {
    let RawPolicy { default_egress, default_ingress, rules: entries } = raw.policy;
    let mut rules = Vec::new();
    read_rules(&format!("{origin}.policy.rules"), entries, &mut rules, errors);
    let (_, mut policy) = Base::ByHand(Defaults { egress: default_egress, ingress: default_ingress }).policy();
    policy.rules = rules;
    policy.strict = raw.strict.unwrap_or(policy.strict);
    let (layer, deny_doh) = (raw.layer, raw.deny_doh);
    config.ceilings.push(PolicyLayer {
        layer,
        policy,
        deny_doh,
        rebind_protection: raw.rebind_protection.unwrap_or(true),
    });
}

fn apply_rates(name: &str, raw: RawRateLimits, config: &mut NetworkConfig, errors: &mut Vec<ConfigError>) {
    let rates = &mut config.limits.rates;
    for (way, raw, limiter) in [("egress", raw.egress, &mut rates.egress), ("ingress", raw.ingress, &mut rates.ingress)]
    {
        let raw = raw.unwrap_or_default();
        let buckets = [("bandwidth", raw.bandwidth, &mut limiter.bandwidth), ("ops", raw.ops, &mut limiter.ops)];
        for (kind, raw, bucket) in buckets {
            let Some(raw) = raw else { continue };
            let origin = format!("{name}: rate_limiter.{way}.{kind}");
            let value = values::bucket(raw.size, u128::from(raw.refill_time_ms), raw.one_time_burst);
            take(errors, origin, value, |value| *bucket = Some(value));
        }
    }
}

fn budget(origin: &str, raw: RawBudget, config: &mut NetworkConfig, errors: &mut Vec<ConfigError>) {
    let mut destinations = Vec::new();
    for (at, raw) in raw.destinations.iter().enumerate() {
        let origin = format!("{origin}.destinations[{at}]");
        match target_text(raw) {
            Ok(text) => destinations.extend(budget_target(&origin, &text, errors)),
            Err((message, help)) => errors.push(ConfigError::new(origin, message).help(help)),
        }
    }
    let direction = raw.direction.unwrap_or(Direction::Any);
    push_budget(origin, BudgetConfig { bytes: raw.bytes, direction, destinations }, config, errors);
}

/// Adds a budget, if it is one.
pub(super) fn push_budget(
    origin: &str,
    budget: BudgetConfig,
    config: &mut NetworkConfig,
    errors: &mut Vec<ConfigError>,
) {
    let budgets = &mut config.limits.budgets;
    if budget.bytes == 0 {
        let help = "what may carry nothing is denied by a rule".to_owned();
        errors.push(ConfigError::new(origin, "a budget of 0 bytes").help(help));
    } else if budgets.len() >= values::MAX_BUDGETS {
        errors.push(ConfigError::new(origin, format!("more than {} budgets", values::MAX_BUDGETS)));
    } else {
        budgets.push(budget);
    }
}

/// The destinations that a target of the short grammar stands for.
pub(super) fn budget_target(origin: &str, text: &str, errors: &mut Vec<ConfigError>) -> Vec<Destination> {
    let rule = Rule::egress(Action::Allow, Destination::Any);
    match grammar::with_target(rule, text) {
        Ok(rules) if rules.iter().all(|rule| rule.ports.is_empty()) => {
            rules.into_iter().map(|rule| rule.destination).collect()
        }
        Ok(_) => {
            errors.push(ConfigError::new(origin, format!("{text:?} is no destination that a budget can be for")));
            Vec::new()
        }
        Err(grammar::RuleErrors(wrong)) => {
            errors.extend(wrong.into_iter().map(|error| ConfigError::rule(origin, error)));
            Vec::new()
        }
    }
}

fn apply_dns(name: &str, raw: RawDns, config: &mut NetworkConfig, errors: &mut Vec<ConfigError>) {
    if let Some(on) = raw.rebind_protection {
        config.dns.rebind_protection = on;
    }
    config.dns.deny_doh = raw.deny_doh.or(config.dns.deny_doh);
    if let Some(ms) = raw.query_timeout_ms {
        let origin = format!("{name}: dns.query_timeout_ms");
        take(errors, origin, values::timeout(ms), |timeout| config.dns.query_timeout = timeout);
    }
    if let Some(ms) = raw.pin_floor_ms {
        let origin = format!("{name}: dns.pin_floor_ms");
        take(errors, origin, values::pin_floor(ms), |floor| config.dns.pin_floor = floor);
    }
    if let Some(servers) = raw.nameservers {
        config.dns.nameservers.clear();
        for (at, text) in servers.iter().enumerate() {
            let origin = format!("{name}: dns.nameservers[{at}]");
            take(errors, origin, values::nameserver(text), |server| config.dns.nameservers.push(server));
        }
    }
}

fn apply_interface(name: &str, raw: RawInterface, config: &mut NetworkConfig, errors: &mut Vec<ConfigError>) {
    let origin = |field: &str| format!("{name}: interface.{field}");
    let interface = &mut config.interface;
    if let Some(mtu) = raw.mtu {
        take(errors, origin("mtu"), values::mtu(mtu), |mtu| interface.mtu = mtu);
    }
    if let Some(text) = raw.ipv4_pool {
        take(errors, origin("ipv4_pool"), values::ipv4_pool(&text), |pool| interface.ipv4_pool = pool);
    }
    if let Some(text) = raw.ipv6_pool {
        take(errors, origin("ipv6_pool"), values::ipv6_pool(&text), |pool| interface.ipv6_pool = pool);
    }
    if let Some(text) = raw.ipv4_address {
        take(errors, origin("ipv4_address"), values::ipv4_address(&text), |v4| interface.ipv4_address = Some(v4));
    }
    if let Some(text) = raw.ipv6_address {
        take(errors, origin("ipv6_address"), values::ipv6_address(&text), |v6| interface.ipv6_address = Some(v6));
    }
    interface.ipv6 = raw.ipv6.or(interface.ipv6);
}

/// Uses a good value, notes a bad one.
pub(super) fn take<T>(
    errors: &mut Vec<ConfigError>,
    origin: impl Into<String>,
    value: Result<T, values::ValueError>,
    set: impl FnOnce(T),
) {
    match value {
        Ok(value) => set(value),
        Err(error) => errors.push(ConfigError::new(origin, error)),
    }
}

#[derive(Debug, Clone, Copy)]
enum DenyName {
    Exact,
    Suffix,
}

fn deny_name(origin: &str, text: &str, kind: DenyName, rules: &mut Vec<Rule>, errors: &mut Vec<ConfigError>) {
    let prefix = match kind {
        _ if text.starts_with('@') => "",
        DenyName::Exact if is_suffix(text) => {
            let message = format!("{text:?} is not one name; `deny_domains` holds whole names");
            let suffix = match text.rsplit_once('*') {
                Some((_, rest)) => rest.trim_start_matches('.'),
                None => text.rsplit('=').next().unwrap_or(text),
            };
            let example = if suffix.contains('.') { format!(", as {suffix:?}") } else { String::new() };
            let help = format!("a name with all below it goes into `deny_domain_suffixes`{example}");
            return errors.push(ConfigError::new(origin, message).help(help));
        }
        DenyName::Exact => "domain=",
        DenyName::Suffix if text.starts_with("*.") || text.starts_with("suffix!=") => "",
        DenyName::Suffix => "suffix=",
    };
    let rule = Rule::egress(Action::Deny, Destination::Any);
    let parsed = grammar::with_target(rule, &format!("{prefix}{text}"));
    let parsed = parsed.map_err(|grammar::RuleErrors(wrong)| {
        grammar::RuleErrors(wrong.into_iter().map(|error| error.without_prefix(prefix.len())).collect())
    });
    collect(origin, parsed, rules, errors);
}

/// Whether a text that should be a name is written as the rules write a name with all below it.
fn is_suffix(text: &str) -> bool {
    text.contains('*') || text.starts_with('.') || text.starts_with("suffix=") || text.starts_with("suffix!=")
}

fn read_rules(origin: &str, entries: Vec<RawRuleEntry>, rules: &mut Vec<Rule>, errors: &mut Vec<ConfigError>) {
    for (at, entry) in entries.into_iter().enumerate() {
        let origin = format!("{origin}[{at}]");
        match entry {
            RawRuleEntry::Text(text) if text.trim().is_empty() => {
                errors.push(ConfigError::new(
                    origin,
                    "empty rule; expected `action[:direction]@target[:protocols[:ports]]`",
                ));
            }
            RawRuleEntry::Text(text) => collect(&origin, grammar::parse_rules(&text), rules, errors),
            RawRuleEntry::Object(raw) => read_object(&origin, *raw, rules, errors),
        }
    }
}

fn collect(
    origin: &str,
    parsed: Result<Vec<Rule>, grammar::RuleErrors>,
    rules: &mut Vec<Rule>,
    errors: &mut Vec<ConfigError>,
) {
    match parsed {
        Ok(parsed) => rules.extend(parsed),
        Err(grammar::RuleErrors(wrong)) => {
            errors.extend(wrong.into_iter().map(|error| ConfigError::rule(origin, error)));
        }
    }
}

fn read_object(origin: &str, raw: RawRule, rules: &mut Vec<Rule>, errors: &mut Vec<ConfigError>) {
    let protocols = raw.protocols.iter().fold(ProtocolSet::ANY, |set, protocol| match protocol {
        RawProtocol::Tcp => set.with(Protocol::Tcp),
        RawProtocol::Udp => set.with(Protocol::Udp),
        RawProtocol::IcmpV4 => set.with(Protocol::IcmpV4),
        RawProtocol::IcmpV6 => set.with(Protocol::IcmpV6),
        RawProtocol::Icmp => set.with(Protocol::IcmpV4).with(Protocol::IcmpV6),
    });
    let ports = match read_ports(origin, raw.ports) {
        Ok(ports) => ports,
        Err(error) => return errors.push(error),
    };
    let direction = raw.direction.unwrap_or(Direction::Egress);
    let RawRule { action, opaque, allow_private, .. } = raw;
    let destination = Destination::Any;
    let rule = Rule { action, direction, destination, protocols, ports, opaque, allow_private };
    match target_text(&raw.destination) {
        Ok(target) => collect(&format!("{origin}.destination"), grammar::with_target(rule, &target), rules, errors),
        Err(message) => errors.push(ConfigError::new(format!("{origin}.destination"), message.0).help(message.1)),
    }
}

/// The destination in the short grammar, so that one parser judges all of them.
fn target_text(raw: &RawDestination) -> Result<String, (String, Option<String>)> {
    let object = match raw {
        RawDestination::Text(text) => return Ok(text.clone()),
        RawDestination::Object(object) => object,
    };
    match object {
        RawDestinationObject::Cidr(text) => {
            let address = text.split_once('/').map_or(text.as_str(), |(address, _)| address);
            match address.parse::<std::net::IpAddr>() {
                Ok(std::net::IpAddr::V4(_)) => Ok(text.clone()),
                Ok(std::net::IpAddr::V6(_)) => Ok(format!("[{text}]")),
                Err(_) => Err((format!("{text:?} is not an address or network"), None)),
            }
        }
        RawDestinationObject::Domain(text) => Ok(format!("domain={text}")),
        RawDestinationObject::DomainSuffix(text) => {
            let whole = text.starts_with("*.") || text.starts_with("suffix!=");
            Ok(if whole { text.clone() } else { format!("suffix={text}") })
        }
        RawDestinationObject::Group(word) => match Group::from_word(word) {
            Some(group) => Ok(group.word().to_owned()),
            None => {
                let words = Group::ALL.map(Group::word);
                let help = nearest(word, words).map(|word| format!("did you mean `{word}`?"));
                Err((format!("unknown group {word:?}; expected one of {}", words.join(", ")), help))
            }
        },
    }
}

fn read_ports(origin: &str, raw: Vec<RawPort>) -> Result<Vec<PortRange>, ConfigError> {
    let mut ports = Vec::new();
    for (at, raw) in raw.into_iter().enumerate() {
        let wrong = |message: String| ConfigError::new(format!("{origin}.ports[{at}]"), message);
        let bounds = |port: u64| {
            u16::try_from(port)
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| wrong(format!("{port} is not a port; expected a number from 1 to 65535")))
        };
        let range = match raw {
            RawPort::Number(port) => {
                let port = bounds(port)?;
                PortRange { start: port, end: port }
            }
            RawPort::Range(range) => PortRange { start: bounds(range.start)?, end: bounds(range.end)? },
            RawPort::Text(text) => {
                // Read by the parser of rules, behind a target that is always right.
                let parsed = grammar::parse_rules(&format!("allow@any:tcp:{text}"));
                match parsed.as_deref() {
                    Ok([rule]) if !rule.ports.is_empty() => ports.extend(rule.ports.iter().copied()),
                    Ok(_) | Err(_) => {
                        let expected = "expected a number from 1 to 65535 or a range `lo-hi`";
                        return Err(wrong(format!("{text:?} is not a port; {expected}")));
                    }
                }
                continue;
            }
        };
        if range.start > range.end {
            return Err(wrong(format!("the range {}-{} runs backwards", range.start, range.end)));
        }
        ports.push(range);
    }
    Ok(ports)
}
