//! Policies made by code.
//!
//! ```
//! use cofferdam_model::Group;
//! use cofferdam_policy::Policy;
//!
//! let config = Policy::builder()
//!     .default_deny()
//!     .egress(|e| e.tcp().port(443).allow_domain("api.github.com"))
//!     .egress(|e| e.deny_group(Group::Private))
//!     .build()?;
//! assert_eq!(config.rules.len(), 2);
//! # Ok::<(), cofferdam_policy::builder::BuildErrors>(())
//! ```

use std::fmt;

use cofferdam_model::{Action, Destination, Direction, Group, PolicyConfig, PortRange, Protocol, ProtocolSet, Rule};

use crate::grammar::{self, RuleErrors};
use crate::{RuleProblem, preset, rule_problem};

/// What is wrong with one call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The target of a rule could not be read.
    #[error("{0}")]
    Target(RuleErrors),
    /// The parts of a rule do not go together.
    #[error("rule {position}: {problem}")]
    Rule { position: usize, problem: RuleProblem },
}

/// Everything that is wrong with a policy made by code. Not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildErrors(pub Vec<BuildError>);

impl fmt::Display for BuildErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for BuildErrors {}

/// Makes a policy, rule by rule; what is called first stands first.
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct PolicyBuilder {
    config: PolicyConfig,
    errors: Vec<BuildError>,
}

impl PolicyBuilder {
    /// Egress and ingress that no rule matches is denied.
    pub fn default_deny(self) -> PolicyBuilder {
        self.default_egress(Action::Deny).default_ingress(Action::Deny)
    }

    /// Egress and ingress that no rule matches is allowed.
    pub fn default_allow(self) -> PolicyBuilder {
        self.default_egress(Action::Allow).default_ingress(Action::Allow)
    }

    /// What happens to egress that no rule matches (deny, when this is not called).
    pub fn default_egress(mut self, action: Action) -> PolicyBuilder {
        self.config.default_egress = action;
        self
    }

    /// What happens to ingress that no rule matches (allow, when this is not called).
    pub fn default_ingress(mut self, action: Action) -> PolicyBuilder {
        self.config.default_ingress = action;
        self
    }

    /// Rules for what leaves the guest.
    pub fn egress(self, rules: impl FnOnce(RuleBuilder) -> RuleBuilder) -> PolicyBuilder {
        self.direction(Direction::Egress, rules)
    }

    /// Rules for what enters the guest.
    pub fn ingress(self, rules: impl FnOnce(RuleBuilder) -> RuleBuilder) -> PolicyBuilder {
        self.direction(Direction::Ingress, rules)
    }

    /// Rules for both.
    pub fn any_direction(self, rules: impl FnOnce(RuleBuilder) -> RuleBuilder) -> PolicyBuilder {
        self.direction(Direction::Any, rules)
    }

    /// Rules in the short grammar.
    pub fn rules(mut self, text: &str) -> PolicyBuilder {
        match grammar::parse_rules(text) {
            Ok(rules) => self.config.rules.extend(rules),
            Err(errors) => self.errors.push(BuildError::Target(errors)),
        }
        self
    }

    /// One rule as it is.
    pub fn rule(mut self, rule: Rule) -> PolicyBuilder {
        self.config.rules.push(rule);
        self
    }

    /// The policy.
    ///
    /// # Errors
    ///
    /// Everything that was wrong with any call.
    pub fn build(self) -> Result<PolicyConfig, BuildErrors> {
        let PolicyBuilder { mut config, mut errors } = self;
        for (position, rule) in config.rules.iter_mut().enumerate() {
            rule_problem::normalise(rule);
            if let Err(problem) = rule_problem::check(rule).and_then(|()| rule_problem::check_suffixes(rule)) {
                errors.push(BuildError::Rule { position, problem });
            }
        }
        if errors.is_empty() { Ok(config) } else { Err(BuildErrors(errors)) }
    }

    fn direction(mut self, direction: Direction, rules: impl FnOnce(RuleBuilder) -> RuleBuilder) -> PolicyBuilder {
        let made = rules(RuleBuilder {
            direction,
            protocols: ProtocolSet::ANY,
            ports: Vec::new(),
            opaque: false,
            allow_private: false,
            rules: Vec::new(),
            errors: Vec::new(),
        });
        self.config.rules.extend(made.rules);
        self.errors.extend(made.errors);
        self
    }
}

/// Makes rules of one direction. Protocols and ports hold for the rules that are added after them.
#[derive(Debug)]
#[must_use = "return it from the closure"]
pub struct RuleBuilder {
    direction: Direction,
    protocols: ProtocolSet,
    ports: Vec<PortRange>,
    opaque: bool,
    allow_private: bool,
    rules: Vec<Rule>,
    errors: Vec<BuildError>,
}

impl RuleBuilder {
    /// TCP, besides protocols that were named before.
    pub fn tcp(self) -> RuleBuilder {
        self.protocol(Protocol::Tcp)
    }

    /// UDP, besides protocols that were named before.
    pub fn udp(self) -> RuleBuilder {
        self.protocol(Protocol::Udp)
    }

    /// ICMP of both families, besides protocols that were named before.
    pub fn icmp(self) -> RuleBuilder {
        self.protocol(Protocol::IcmpV4).protocol(Protocol::IcmpV6)
    }

    /// One more protocol.
    pub fn protocol(mut self, protocol: Protocol) -> RuleBuilder {
        self.protocols = self.protocols.with(protocol);
        self
    }

    /// One more port.
    pub fn port(self, port: u16) -> RuleBuilder {
        self.port_range(port, port)
    }

    /// More ports, from `start` to `end`, both included.
    pub fn port_range(mut self, start: u16, end: u16) -> RuleBuilder {
        self.ports.push(PortRange { start, end });
        self
    }

    /// For names that are allowed after it: on ports 80 and 443 protocols that show no name may pass.
    pub fn opaque(mut self) -> RuleBuilder {
        self.opaque = true;
        self
    }

    /// For names that are allowed after it: they may lead to addresses that are not public (`allow_private` in a file).
    pub fn private_addresses(mut self) -> RuleBuilder {
        self.allow_private = true;
        self
    }

    /// A rule for a destination as it is.
    pub fn add(mut self, action: Action, destination: Destination) -> RuleBuilder {
        let rule = self.rule(action, destination);
        self.rules.push(rule);
        self
    }

    /// Allows a target of the short grammar: an address, a network, a name, a group, a list.
    pub fn allow(self, target: &str) -> RuleBuilder {
        self.target(Action::Allow, target)
    }

    /// Denies a target of the short grammar.
    pub fn deny(self, target: &str) -> RuleBuilder {
        self.target(Action::Deny, target)
    }

    /// Allows every destination.
    pub fn allow_any(self) -> RuleBuilder {
        self.add(Action::Allow, Destination::Any)
    }

    /// Denies every destination.
    pub fn deny_any(self) -> RuleBuilder {
        self.add(Action::Deny, Destination::Any)
    }

    /// Allows a group.
    pub fn allow_group(self, group: Group) -> RuleBuilder {
        self.add(Action::Allow, Destination::Group(group))
    }

    /// Denies a group.
    pub fn deny_group(self, group: Group) -> RuleBuilder {
        self.add(Action::Deny, Destination::Group(group))
    }

    /// Allows one name.
    pub fn allow_domain(self, name: &str) -> RuleBuilder {
        self.target(Action::Allow, &format!("domain={name}"))
    }

    /// Denies one name.
    pub fn deny_domain(self, name: &str) -> RuleBuilder {
        self.target(Action::Deny, &format!("domain={name}"))
    }

    /// Allows a name and all below it; with a leading dot only those below.
    pub fn allow_domain_suffix(self, name: &str) -> RuleBuilder {
        self.target(Action::Allow, &format!("suffix={name}"))
    }

    /// Denies a name and all below it; with a leading dot only those below.
    pub fn deny_domain_suffix(self, name: &str) -> RuleBuilder {
        self.target(Action::Deny, &format!("suffix={name}"))
    }

    /// Allows several names.
    pub fn allow_domains<'a>(self, names: impl IntoIterator<Item = &'a str>) -> RuleBuilder {
        names.into_iter().fold(self, RuleBuilder::allow_domain)
    }

    /// Denies several names.
    pub fn deny_domains<'a>(self, names: impl IntoIterator<Item = &'a str>) -> RuleBuilder {
        names.into_iter().fold(self, RuleBuilder::deny_domain)
    }

    /// Allows several suffixes.
    pub fn allow_domain_suffixes<'a>(self, names: impl IntoIterator<Item = &'a str>) -> RuleBuilder {
        names.into_iter().fold(self, RuleBuilder::allow_domain_suffix)
    }

    /// Denies several suffixes.
    pub fn deny_domain_suffixes<'a>(self, names: impl IntoIterator<Item = &'a str>) -> RuleBuilder {
        names.into_iter().fold(self, RuleBuilder::deny_domain_suffix)
    }

    /// Allows group public.
    pub fn allow_public(self) -> RuleBuilder {
        self.allow_group(Group::Public)
    }

    /// Allows group private.
    pub fn allow_private(self) -> RuleBuilder {
        self.allow_group(Group::Private)
    }

    /// Allows group loopback.
    pub fn allow_loopback(self) -> RuleBuilder {
        self.allow_group(Group::Loopback)
    }

    /// Allows group link-local.
    pub fn allow_link_local(self) -> RuleBuilder {
        self.allow_group(Group::LinkLocal)
    }

    /// Allows group multicast.
    pub fn allow_multicast(self) -> RuleBuilder {
        self.allow_group(Group::Multicast)
    }

    /// Allows group host.
    pub fn allow_host(self) -> RuleBuilder {
        self.allow_group(Group::Host)
    }

    /// Allows loopback, link-local and the host. Never metadata.
    pub fn allow_local(self) -> RuleBuilder {
        self.allow_loopback().allow_link_local().allow_host()
    }

    /// Allows group metadata.
    pub fn allow_meta(self) -> RuleBuilder {
        self.allow_group(Group::Metadata)
    }

    /// Allows the gateway's resolver, whatever protocols and ports were named before.
    pub fn allow_dns(mut self) -> RuleBuilder {
        self.rules.push(preset::allow_dns());
        self
    }

    fn rule(&self, action: Action, destination: Destination) -> Rule {
        let (direction, protocols, ports) = (self.direction, self.protocols, self.ports.clone());
        let (opaque, allow_private) = (self.opaque, self.allow_private);
        Rule { action, direction, destination, protocols, ports, opaque, allow_private }
    }

    fn target(mut self, action: Action, target: &str) -> RuleBuilder {
        // Whether the parts go together is asked once for all rules, in `build`.
        let plain = Rule::egress(action, Destination::Any);
        if target == "dns" {
            return self.dns(action);
        }
        match grammar::with_target(plain, target) {
            Ok(made) => {
                let rules = made.into_iter().map(|rule| self.rule(action, rule.destination));
                let rules: Vec<Rule> = rules.collect();
                self.rules.extend(rules);
            }
            Err(errors) => self.errors.push(BuildError::Target(errors)),
        }
        self
    }

    fn dns(mut self, action: Action) -> RuleBuilder {
        let asked = self.rule(action, Destination::Any);
        match grammar::with_target(asked, "dns") {
            Ok(rules) => self.rules.extend(rules),
            Err(errors) => self.errors.push(BuildError::Target(errors)),
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Policy;

    #[test]
    fn builds_the_rules_in_the_order_of_the_calls() {
        let config = Policy::builder()
            .default_deny()
            .egress(|e| e.tcp().port(443).allow_domain("API.github.com."))
            .egress(|e| e.deny_group(Group::Private))
            .egress(|e| e.allow_dns().allow("@metadata").allow_local())
            .ingress(|i| i.tcp().port_range(1, 1024).deny("10.0.0.0/8"))
            .build()
            .unwrap();
        let rules: Vec<String> = config.rules.iter().map(grammar::format_rule).collect();
        assert_eq!(rules[..3], ["allow@api.github.com:tcp:443", "deny@private", "allow@dns"]);
        assert_eq!(rules.last().unwrap(), "deny:ingress@10.0.0.0/8:tcp:1-1024");
        assert!(rules.contains(&"allow@link-local".to_owned()));
        assert_eq!((config.default_egress, config.default_ingress), (Action::Deny, Action::Deny));
    }

    #[test]
    fn reports_every_error_at_once() {
        let errors = Policy::builder()
            .egress(|e| e.allow_domain("a..b"))
            .egress(|e| e.allow_domain_suffix("com"))
            .ingress(|i| i.icmp().allow_any())
            .egress(|e| e.icmp().port(7).allow_any())
            .egress(|e| e.tcp().port(0).allow_any())
            .egress(|e| e.tcp().port_range(9, 8).allow_any())
            .egress(|e| e.port(80).allow("dns"))
            .build()
            .unwrap_err();
        assert_eq!(errors.0.len(), 7, "{errors}");
    }
}
