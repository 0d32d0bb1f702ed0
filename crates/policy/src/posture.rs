//! Postures: a network in a word, for people who do not want rules.
//!
//! | Mode | Means |
//! |---|---|
//! | `blocked` | preset `none`: no interface, nothing in, nothing out; the sandbox's own loopback is up |
//! | `open` | preset `allow-all`, behind what the denylist names |
//! | `allowlist` | default deny, DNS and what the allowlist names, behind what the denylist names |
//!
//! Entries of the lists are targets of the [`grammar`]: a network, an address, a name or a pattern, a group or a
//! named list. IPv6 may stand without brackets and the constants of lists without `@`, since nothing can follow them here. A posture
//! becomes ordinary rules, so that it is a wall like any other policy.

use cofferdam_model::{Action, Destination, Group, NetworkConfig, NetworkMode, PolicyConfig, Rule};
use ipnet::IpNet;

use crate::file::{ConfigError, ConfigErrors, default_network};
use crate::grammar::{self, RuleError, RuleErrors};
use crate::preset::{self, Preset};

/// A mode with its lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Posture {
    pub mode: NetworkMode,
    /// What may be reached; goes with mode `allowlist` only.
    pub allowlist: Vec<String>,
    /// What may not be reached, tried first; goes with modes `open` and `allowlist`.
    pub denylist: Vec<String>,
}

impl Posture {
    /// The network of a sandbox in this posture; all that the posture says nothing about is as in [`default_network`].
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the lists: one bad entry refuses all.
    pub fn network(&self) -> Result<NetworkConfig, ConfigErrors> {
        let mut errors = Vec::new();
        let rules = self.rules(str::to_owned, &mut errors);
        if !errors.is_empty() {
            return Err(ConfigErrors(errors));
        }
        let preset = preset_of(self.mode);
        let policy = preset.as_ref().map_or_else(PolicyConfig::default, Preset::policy);
        let enabled = preset.as_ref().is_none_or(Preset::enabled);
        Ok(NetworkConfig { enabled, policy: PolicyConfig { rules, ..policy }, ..default_network() })
    }

    /// The rules of the posture. `origin` makes a place from a field's name.
    pub(crate) fn rules(&self, origin: impl Fn(&str) -> String, errors: &mut Vec<ConfigError>) -> Vec<Rule> {
        let contradicts = |field: &str, help: &str| {
            let message = format!("mode `{}` goes without `{field}`", self.mode.word());
            ConfigError::new(origin(field), message).help(help.to_owned())
        };
        let (allow_help, deny_help) = match self.mode {
            NetworkMode::Allowlist => (None, None),
            NetworkMode::Open => (Some("everything is allowed; for the list alone write mode `allowlist`"), None),
            NetworkMode::Blocked => {
                let allow = "nothing is allowed; for the list alone write mode `allowlist`";
                (Some(allow), Some("nothing is allowed, so there is nothing to deny; leave the list out"))
            }
        };
        if let Some(help) = allow_help.filter(|_| !self.allowlist.is_empty()) {
            errors.push(contradicts("network_allowlist", help));
        }
        if let Some(help) = deny_help.filter(|_| !self.denylist.is_empty()) {
            errors.push(contradicts("network_denylist", help));
        }
        let mut list = |action, field: &str, entries: &[String]| {
            let mut rules = Vec::new();
            for (at, text) in entries.iter().enumerate() {
                match entry(action, text) {
                    Ok(parsed) => rules.extend(parsed),
                    Err(EntryError::Any) => {
                        let (effect, mode) = match action {
                            Action::Allow => ("open", NetworkMode::Open),
                            Action::Deny => ("close", NetworkMode::Blocked),
                        };
                        let message = format!("{text:?} would {effect} everything, which no list does");
                        let help = format!("that is mode `{}`", mode.word());
                        errors.push(ConfigError::new(origin(&format!("{field}[{at}]")), message).help(help));
                    }
                    Err(EntryError::Rule(RuleErrors(wrong))) => {
                        let place = origin(&format!("{field}[{at}]"));
                        errors.extend(wrong.into_iter().map(|error| ConfigError::rule(&place, error)));
                    }
                }
            }
            rules
        };
        let deny = list(Action::Deny, "network_denylist", &self.denylist);
        let allow = list(Action::Allow, "network_allowlist", &self.allowlist);
        match self.mode {
            NetworkMode::Blocked => Vec::new(),
            NetworkMode::Open => deny,
            NetworkMode::Allowlist => [deny, vec![preset::allow_dns()], keep_loopback_closed(allow)].concat(),
        }
    }
}

/// What stands behind the rules of a mode; `None`: only the defaults.
pub(crate) fn preset_of(mode: NetworkMode) -> Option<Preset> {
    match mode {
        NetworkMode::Blocked => Some(Preset::None),
        NetworkMode::Open => Some(Preset::AllowAll),
        NetworkMode::Allowlist => None,
    }
}

/// A network around loopback does not mean loopback. Host and metadata need no such rule: no rule for a network opens them.
///
/// All of these rules allow, so that their order among themselves is free.
fn keep_loopback_closed(rules: Vec<Rule>) -> Vec<Rule> {
    let (wide, mut narrow): (Vec<Rule>, Vec<Rule>) =
        rules.into_iter().partition(|rule| is_around_loopback(&rule.destination));
    if !wide.is_empty() {
        narrow.push(Rule::egress(Action::Deny, Destination::Group(Group::Loopback)));
    }
    narrow.extend(wide);
    narrow
}

fn is_around_loopback(destination: &Destination) -> bool {
    /// 127.0.0.0/8, RFC 1122 §3.2.1.3.
    const LOOPBACK_V4: u8 = 8;
    match destination {
        Destination::Cidr(IpNet::V4(net)) => {
            net.prefix_len() < LOOPBACK_V4 && net.contains(&std::net::Ipv4Addr::LOCALHOST)
        }
        // Addresses with 127.0.0.1 inside, such as 64:ff9b::7f00:1, are loopback as well, so that any network of them counts.
        Destination::Cidr(IpNet::V6(net)) => net.prefix_len() < 128,
        Destination::Any | Destination::Group(_) | Destination::Domain(_) | Destination::Suffix { .. } => false,
    }
}

enum EntryError {
    Any,
    Rule(RuleErrors),
}

/// One entry of a list.
fn entry(action: Action, text: &str) -> Result<Vec<Rule>, EntryError> {
    if matches!(text, "any" | "*") {
        return Err(EntryError::Any);
    }
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    let (before, after) = match address.parse::<std::net::Ipv6Addr>() {
        Ok(_) => ("[", "]"),
        Err(_) if preset::LISTS.iter().any(|list| list.constant == text) => ("@", ""),
        Err(_) => ("", ""),
    };
    let parsed = grammar::with_target(Rule::egress(action, Destination::Any), &format!("{before}{text}{after}"));
    parsed.map_err(|RuleErrors(wrong)| {
        EntryError::Rule(RuleErrors(wrong.into_iter().map(|error| error.within(text, before.len())).collect()))
    })
}

impl RuleError {
    /// The same error in `text`, before which `bytes` were put and behind which there may have been more.
    fn within(self, text: &str, bytes: usize) -> RuleError {
        let shift = |at: usize| at.saturating_sub(bytes).min(text.len());
        let (token, span) =
            (shift(self.token.start)..shift(self.token.end), shift(self.span.start)..shift(self.span.end));
        RuleError { source: text.into(), token, span, ..self }
    }
}
