use std::time::Duration;

use cofferdam_model::{
    Action, BucketConfig, BudgetConfig, DenyWith, Direction, NetworkConfig, NetworkMode, RateLimits, Rule,
};

use crate::file::error::{ConfigError, ConfigErrors};
use crate::file::resolve::{Base, Defaults, Resolved, apply, budget_target, push_budget, take};
use crate::file::{default_network, document, host_sockets, ports, values};
use crate::grammar::{self, RuleErrors};
use crate::preset::{self, Preset};

/// One flag of the command line that shapes the network. The order of the items is that of the command line.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlagItem {
    /// `--net PROFILE,…`
    Net(String),
    /// `--no-net`
    NoNet,
    /// `--network-mode`
    Mode(NetworkMode),
    /// `--net-rule RULES`
    NetRule(String),
    /// `--allow TARGET[:PORTS]`
    Allow(String),
    /// `--deny TARGET[:PORTS]`
    Deny(String),
    /// `--net-default-egress`; `--net-default` is this and the next.
    DefaultEgress(Action),
    /// `--net-default-ingress`
    DefaultIngress(Action),
    /// `--net-conf FILE`, already read: its name tells the format (`.toml`, `.json`, `.yaml`, `.yml`).
    Conf { name: String, text: String },
    /// `--deny-with`
    DenyWith(DenyWith),
    /// `--dns-nameserver`
    Nameserver(String),
    /// `--dns-query-timeout-ms`
    QueryTimeoutMs(u64),
    /// `--no-dns-rebind-protection`
    NoRebindProtection,
    /// `--net-strict[=BOOL]`
    Strict(bool),
    /// `--max-connections`
    MaxConnections(u32),
    /// `--max-udp-connections`
    MaxUdpConnections(u32),
    /// `--max-inbound-connections`
    MaxInboundConnections(u32),
    /// `-p`, `--publish [BIND:]HOST:GUEST[/tcp|/udp]`
    Publish(String),
    /// `--host-socket HOST:GUEST`
    HostSocket(String),
    /// `--net-egress-bandwidth SIZE[/DUR]` and its like.
    Rate { limit: RateFlag, size: u64, refill_time: Duration },
    /// `--net-egress-bandwidth-burst SIZE` and its like.
    RateBurst { limit: RateFlag, burst: u64 },
    /// `--net-budget SIZE[:DIRECTION][@TARGET,…]`: `targets` as they were written, `None` for the whole run.
    Budget { bytes: u64, direction: Direction, targets: Option<String> },
    /// `--mtu`
    Mtu(u32),
    /// `--ipv4-pool`
    Ipv4Pool(String),
    /// `--ipv6-pool`
    Ipv6Pool(String),
    /// `--no-ipv6`
    NoIpv6,
}

/// Which rate limit a flag is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateFlag {
    EgressBandwidth,
    EgressOps,
    IngressBandwidth,
    IngressOps,
}

impl RateFlag {
    /// The flag, without `--` and without `-burst`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RateFlag::EgressBandwidth => "net-egress-bandwidth",
            RateFlag::EgressOps => "net-egress-ops",
            RateFlag::IngressBandwidth => "net-ingress-bandwidth",
            RateFlag::IngressOps => "net-ingress-ops",
        }
    }

    fn of(self, rates: &mut RateLimits) -> &mut Option<BucketConfig> {
        match self {
            RateFlag::EgressBandwidth => &mut rates.egress.bandwidth,
            RateFlag::EgressOps => &mut rates.egress.ops,
            RateFlag::IngressBandwidth => &mut rates.ingress.bandwidth,
            RateFlag::IngressOps => &mut rates.ingress.ops,
        }
    }
}

/// What the flags about the policy add up to.
#[derive(Debug, Default)]
struct Flags {
    rules: Vec<Rule>,
    profiles: Vec<String>,
    no_net: bool,
    mode: Option<NetworkMode>,
    published: bool,
    short_allow: bool,
    defaults: Defaults,
}

/// The network that the flags ask for.
///
/// Rules stand in the order of the flags, before those of a file, before those of the profile. What stands behind them:
///
/// | Flags | Then |
/// |---|---|
/// | `--net` | these profiles (also in place of a file's preset) |
/// | `--network-mode` | what the mode means (also in place of a file's preset or mode) |
/// | `--net-conf` | what the file says |
/// | `--allow` or `--net-default-egress`, without both | deny for egress; nothing else is open |
/// | otherwise | preset `public-only` |
///
/// # Errors
///
/// Everything that is wrong with any of them.
pub fn from_flags(items: &[FlagItem]) -> Result<NetworkConfig, ConfigErrors> {
    over(default_network(), items)
}

/// The network that the flags ask for in the place of `before`: the policy is what they say, whatever it was. Limits, the link,
/// and who resolves names and how long that may take stay as they were unless the flags, or the file among them, name them.
///
/// # Errors
///
/// As for [`from_flags`].
pub fn replacing(before: &NetworkConfig, items: &[FlagItem]) -> Result<NetworkConfig, ConfigErrors> {
    let mut base = default_network();
    base.dns.nameservers.clone_from(&before.dns.nameservers);
    base.dns.query_timeout = before.dns.query_timeout;
    base.dns.pin_floor = before.dns.pin_floor;
    base.interface = before.interface.clone();
    base.limits = before.limits.clone();
    if items.iter().any(|item| matches!(item, FlagItem::Budget { .. })) {
        base.limits.budgets.clear();
    }
    over(base, items)
}

/// The network that the flags ask for, where they say nothing that of `config`.
fn over(mut config: NetworkConfig, items: &[FlagItem]) -> Result<NetworkConfig, ConfigErrors> {
    let mut errors = Vec::new();
    let file = read_file(items, &mut config, &mut errors);
    let mut flags = Flags::default();
    let mut nameservers = Vec::new();
    for item in items {
        match item {
            FlagItem::Net(text) => flags.profiles.push(text.clone()),
            FlagItem::NoNet => flags.no_net = true,
            FlagItem::Mode(mode) => {
                if flags.mode.replace(*mode).is_some_and(|other| other != *mode) {
                    errors.push(ConfigError::new("--network-mode", "given twice, with different modes"));
                }
            }
            FlagItem::NetRule(text) => {
                flags.push("--net-rule", grammar::parse_rules(text), &mut errors);
            }
            FlagItem::Allow(text) => {
                flags.short_allow = true;
                flags.push_short("--allow", Action::Allow, text, &mut errors);
            }
            FlagItem::Deny(text) => flags.push_short("--deny", Action::Deny, text, &mut errors),
            FlagItem::DefaultEgress(action) => flags.defaults.egress = Some(*action),
            FlagItem::DefaultIngress(action) => flags.defaults.ingress = Some(*action),
            FlagItem::Conf { .. } => {}
            FlagItem::DenyWith(deny_with) => config.deny_with = *deny_with,
            FlagItem::Nameserver(text) => {
                take(&mut errors, "--dns-nameserver", values::nameserver(text), |server| nameservers.push(server));
            }
            FlagItem::QueryTimeoutMs(ms) => {
                let timeout = values::timeout(*ms);
                take(&mut errors, "--dns-query-timeout-ms", timeout, |timeout| config.dns.query_timeout = timeout);
            }
            FlagItem::Strict(strict) => config.policy.strict = *strict,
            FlagItem::NoRebindProtection => config.dns.rebind_protection = false,
            FlagItem::MaxConnections(bound) => config.limits.max_connections = *bound,
            FlagItem::MaxUdpConnections(bound) => config.limits.max_udp_connections = *bound,
            FlagItem::MaxInboundConnections(bound) => config.limits.max_inbound_connections = *bound,
            FlagItem::Publish(text) => {
                flags.published = true;
                ports::add("--publish", ports::parse_port(text), &mut config.ports, &mut errors);
            }
            FlagItem::HostSocket(text) => {
                let parsed = host_sockets::parse_host_socket(text);
                host_sockets::add("--host-socket", parsed, &mut config.host_sockets, &mut errors);
            }
            FlagItem::Rate { limit, size, refill_time } => {
                let bucket = values::bucket(*size, refill_time.as_millis(), 0);
                let place = limit.of(&mut config.limits.rates);
                take(&mut errors, format!("--{}", limit.name()), bucket, |bucket| *place = Some(bucket));
            }
            // Behind the limits themselves, wherever they stand.
            FlagItem::RateBurst { .. } => {}
            FlagItem::Budget { bytes, direction, targets } => {
                let origin = "--net-budget";
                let targets = targets.iter().flat_map(|targets| targets.split(',')).map(str::trim);
                let destinations = targets.flat_map(|text| budget_target(origin, text, &mut errors)).collect();
                let budget = BudgetConfig { bytes: *bytes, direction: *direction, destinations };
                push_budget(origin, budget, &mut config, &mut errors);
            }
            FlagItem::Mtu(mtu) => take(&mut errors, "--mtu", values::mtu(*mtu), |mtu| config.interface.mtu = mtu),
            FlagItem::Ipv4Pool(text) => {
                take(&mut errors, "--ipv4-pool", values::ipv4_pool(text), |pool| config.interface.ipv4_pool = pool);
            }
            FlagItem::Ipv6Pool(text) => {
                take(&mut errors, "--ipv6-pool", values::ipv6_pool(text), |pool| config.interface.ipv6_pool = pool);
            }
            FlagItem::NoIpv6 => config.interface.ipv6 = Some(false),
        }
    }
    for item in items {
        let FlagItem::RateBurst { limit, burst } = item else { continue };
        match limit.of(&mut config.limits.rates) {
            Some(bucket) => bucket.one_time_burst = *burst,
            None => {
                let message = format!("a burst on top of a limit that is not there; give `--{}` as well", limit.name());
                errors.push(ConfigError::new(format!("--{}-burst", limit.name()), message));
            }
        }
    }
    if !nameservers.is_empty() {
        config.dns.nameservers = nameservers;
    }
    finish(flags, file, &mut config, &mut errors);
    ports::check(&config, &mut errors);
    host_sockets::check(&config, &mut errors);
    if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
}

/// The network that a file asks for; `name` tells the format by its ending.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn parse(name: &str, text: &str) -> Result<NetworkConfig, ConfigErrors> {
    from_flags(&[FlagItem::Conf { name: name.to_owned(), text: text.to_owned() }])
}

/// Files come below flags, so they are applied first, wherever they stand among them.
fn read_file(items: &[FlagItem], config: &mut NetworkConfig, errors: &mut Vec<ConfigError>) -> Option<Resolved> {
    let mut files = items.iter().filter_map(|item| match item {
        FlagItem::Conf { name, text } => Some((name, text)),
        FlagItem::Net(_)
        | FlagItem::NoNet
        | FlagItem::Mode(_)
        | FlagItem::NetRule(_)
        | FlagItem::Allow(_)
        | FlagItem::Deny(_)
        | FlagItem::DefaultEgress(_)
        | FlagItem::DefaultIngress(_)
        | FlagItem::DenyWith(_)
        | FlagItem::Nameserver(_)
        | FlagItem::QueryTimeoutMs(_)
        | FlagItem::NoRebindProtection
        | FlagItem::Strict(_)
        | FlagItem::MaxConnections(_)
        | FlagItem::MaxUdpConnections(_)
        | FlagItem::MaxInboundConnections(_)
        | FlagItem::Publish(_)
        | FlagItem::HostSocket(_)
        | FlagItem::Rate { .. }
        | FlagItem::RateBurst { .. }
        | FlagItem::Budget { .. }
        | FlagItem::Mtu(_)
        | FlagItem::Ipv4Pool(_)
        | FlagItem::Ipv6Pool(_)
        | FlagItem::NoIpv6 => None,
    });
    let (name, text) = files.next()?;
    if let Some((second, _)) = files.next() {
        errors.push(ConfigError::new(
            "--net-conf",
            format!("given twice, with {name:?} and {second:?}; one file is read"),
        ));
    }
    match document::read(name, text) {
        Ok(raw) => Some(apply(name, raw, config, errors)),
        Err(error) => {
            errors.push(error);
            None
        }
    }
}

/// Puts the policy together.
fn finish(flags: Flags, file: Option<Resolved>, config: &mut NetworkConfig, errors: &mut Vec<ConfigError>) {
    let profile = match flags.profiles.as_slice() {
        [] => None,
        profiles => match Preset::parse(&profiles.join(",")) {
            Ok(preset) => Some(preset),
            Err(error) => return errors.push(ConfigError::new("--net", error)),
        },
    };
    if let Some((message, help)) = flags.mode.and_then(|mode| flags.contradiction(mode)) {
        return errors.push(ConfigError::new("--network-mode", message).help(help.to_owned()));
    }
    let no_net = flags.no_net || profile == Some(Preset::None) || flags.mode == Some(NetworkMode::Blocked);
    if no_net && (!flags.rules.is_empty() || profile.as_ref().is_some_and(Preset::enabled)) {
        let message = "no network at all leaves nothing for `--net` and rules to open or close";
        let origin = if flags.no_net { "--no-net" } else { "--net none" };
        return errors.push(ConfigError::new(origin, message).help("leave one of them out".to_owned()));
    }
    let (file_rules, file_base, file_enabled, preset, off) = match file {
        Some(Resolved { rules, base, enabled, preset, off }) => (rules, Some(base), enabled, preset, off),
        None => (Vec::new(), None, None, "preset".to_owned(), "preset `none`"),
    };
    let profile_given = profile.is_some() || flags.mode.is_some();
    let given = profile.map(|profile| Base::Preset(profile, Defaults::default()));
    let base = match (flags.mode.map(Base::of_mode).or(given), file_base) {
        _ if no_net => Base::Preset(Preset::None, Defaults::default()),
        (Some(given), _) => given,
        (None, Some(Some(base))) => base,
        (None, Some(None)) => Base::Preset(Preset::standard(), Defaults::default()),
        (None, None) if flags.short_allow || flags.defaults.egress.is_some() => Base::ByHand(Defaults::default()),
        (None, None) => Base::Preset(Preset::standard(), Defaults::default()),
    };
    let (enabled, mut policy) = base.policy();
    policy.default_egress = flags.defaults.egress.unwrap_or(policy.default_egress);
    policy.default_ingress = flags.defaults.ingress.unwrap_or(policy.default_ingress);
    let mut behind = std::mem::take(&mut policy.rules);
    if flags.mode == Some(NetworkMode::Allowlist) {
        behind.push(preset::allow_dns());
    }
    let no_rules = flags.rules.is_empty() && file_rules.is_empty();
    if !(enabled || no_net || no_rules) {
        let message = format!("{off} leaves nothing for rules to open or close");
        return errors
            .push(ConfigError::new(preset, message).help("leave the rules out, or name another preset".to_owned()));
    }
    policy.rules = if no_net { Vec::new() } else { [flags.rules, file_rules, behind].concat() };
    // Flags stand above the file: a profile on the command line brings the interface back.
    config.enabled = enabled && (profile_given || file_enabled != Some(false));
    policy.strict = config.policy.strict;
    config.policy = policy;
}

impl Flags {
    /// What is wrong with a mode among the other flags, and what to do.
    fn contradiction(&self, mode: NetworkMode) -> Option<(String, &'static str)> {
        let word = mode.word();
        if self.no_net || !self.profiles.is_empty() {
            let message = format!("mode `{word}` and `--net` or `--no-net` each say what stands behind the rules");
            return Some((message, "leave one of them out"));
        }
        if self.defaults.egress.is_some() || self.defaults.ingress.is_some() {
            let message = format!("mode `{word}` has defaults of its own, and `--net-default` sets others");
            return Some((message, "leave one of them out"));
        }
        if mode == NetworkMode::Blocked && (self.published || !self.rules.is_empty()) {
            let message = "mode `blocked` leaves nothing for rules and published ports to open or close".to_owned();
            return Some((message, "leave them out, or say `--network-mode allowlist`"));
        }
        None
    }

    fn push(&mut self, origin: &str, parsed: Result<Vec<Rule>, RuleErrors>, errors: &mut Vec<ConfigError>) {
        match parsed {
            Ok(rules) => self.rules.extend(rules),
            Err(RuleErrors(wrong)) => errors.extend(wrong.into_iter().map(|error| ConfigError::rule(origin, error))),
        }
    }

    fn push_short(&mut self, origin: &str, action: Action, text: &str, errors: &mut Vec<ConfigError>) {
        if text.trim().is_empty() {
            let message = "empty target; expected an address, a network, a name, a group or a list";
            return errors.push(ConfigError::new(origin, message));
        }
        self.push(origin, grammar::parse_short(action, text), errors);
    }
}
