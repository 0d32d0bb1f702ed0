//! The verdict.
//!
//! Rules are tried in order, per direction, and the first that matches decides; when none does, the direction's default.
//! "First" is found without trying: the rules are laid out by destination (see `table.rs`) and the lowest rank among the
//! destinations that hold the flow's peer is the first match.
//!
//! | Destination | Matches a flow when |
//! |---|---|
//! | any | always |
//! | group | the peer is in the group |
//! | address, network | it holds the peer; an allow rule for a network passes over the host and metadata |
//! | name, allow rule | a name pinned to the peer, asked for itself (no alias), matches |
//! | name, deny rule | every such name is denied by this rule or an earlier one; or there is at most one such name and an alias matches |
//!
//! Before the rules of egress come the ways around the gateway's resolver ([`BuiltIn`]), and while `deny_doh` is on, a
//! known resolver is only open to a rule for exactly its name or address.
//!
//! The last row keeps the other names on a shared address working: with several names on one address nothing in the packet
//! tells them apart. An alias belongs to one of the names that led to it, and only with a single name it is known to which.
//!
//! What a flow shows in its first flight can still change that, and [`Policy::check`] says so with [`Verdict::Pending`]: when
//! only a name allowed it, and when a deny rule for a name that nobody asked for stands before the rule that allowed it.
//! [`Policy::check_flight`] then looks for the first match again, with what was shown in place of what was pinned:
//!
//! | Shown | Allow rules for names | Deny rules for names |
//! |---|---|---|
//! | a name, pinned to this address | match it | match it |
//! | another name | do not match | match it |
//! | no name, by a protocol that can show one | do not match | do not match |
//! | such a protocol, in doubt | do not match | the first one matches |
//! | a protocol without names, not on port 80 or 443 | as in `check` | do not match |
//! | a protocol without names on port 80 or 443 | as in `check`, if that rule is opaque | do not match |
//!
//! When the policy is not strict, allow rules match as in `check` whatever is shown.

use std::net::IpAddr;
use std::sync::Arc;

use cofferdam_model::{
    Action, Classifier, Destination, Direction, DomainName, Group, NetworkConfig, PolicyConfig, Protocol, Rule,
    RuleText,
};

use crate::builder::PolicyBuilder;
use crate::encrypted_dns::KnownResolvers;
use crate::table::Rank;
use crate::table::names::{NameTree, Reach};
use crate::table::ports::{Ranks, Service, ServiceClass, Table};
use crate::table::prefixes::Prefixes;
use crate::weigh::Scales;
use crate::{
    BuiltIn, Denial, Facts, Flight, FlightVerdict, NameVerdict, Pending, Permit, PinnedName, Reason, RuleRef,
    ShownName, Verdict, Warning, grammar, warnings,
};

/// The ports of HTTP and HTTPS, on which every server tells names apart.
const WEB: [u16; 2] = [80, 443];

/// A compiled policy.
#[derive(Debug)]
pub struct Policy {
    rules: Arc<[Rule]>,
    default_egress: Action,
    default_ingress: Action,
    classifier: Classifier,
    strict: bool,
    resolvers: KnownResolvers,
    /// What `deny_doh` makes of known resolvers that speak HTTPS.
    doh: Action,
    egress: Arc<Side>,
    ingress: Arc<Side>,
    identity: Identity,
}

/// Tells one policy from every other as long as somebody keeps it, so that what was worked out with one is not taken for the
/// answer of another.
#[derive(Debug, Clone, Default)]
pub(crate) struct Identity(Arc<()>);

impl PartialEq for Identity {
    fn eq(&self, other: &Identity) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Policy {
    /// Compiles a validated configuration. Total: there is no configuration that does not compile.
    #[must_use]
    pub fn compile(config: &PolicyConfig, classifier: Classifier) -> Policy {
        Policy {
            rules: config.rules.as_slice().into(),
            default_egress: config.default_egress,
            default_ingress: config.default_ingress,
            classifier,
            strict: config.strict,
            resolvers: KnownResolvers::new(),
            doh: default_doh(config),
            egress: Arc::new(Side::new(&config.rules, Direction::Egress)),
            ingress: Arc::new(Side::new(&config.rules, Direction::Ingress)),
            identity: Identity::default(),
        }
    }

    /// The same rules and defaults, asked about addresses as `classifier` sees them. The rules are shared, not compiled anew.
    #[must_use]
    pub fn with_classifier(&self, classifier: Classifier) -> Policy {
        Policy {
            rules: Arc::clone(&self.rules),
            default_egress: self.default_egress,
            default_ingress: self.default_ingress,
            classifier,
            strict: self.strict,
            resolvers: KnownResolvers::new(),
            doh: self.doh,
            egress: Arc::clone(&self.egress),
            ingress: Arc::clone(&self.ingress),
            identity: Identity::default(),
        }
    }

    /// Whether known resolvers that speak HTTPS are open to wider rules (`deny_doh`). Without this they are denied under an
    /// allow-list: default egress deny, and no rule that lets every name resolve.
    #[must_use]
    pub fn with_doh(self, doh: Action) -> Policy {
        Policy { doh, ..self }
    }

    /// The policy of a network: its rules, and whether known resolvers that speak HTTPS are refused.
    #[must_use]
    pub fn for_network(network: &NetworkConfig, classifier: Classifier) -> Policy {
        let policy = Policy::compile(&network.policy, classifier);
        match network.dns.deny_doh {
            Some(deny) => policy.with_doh(if deny { Action::Deny } else { Action::Allow }),
            None => policy,
        }
    }

    /// Makes a policy by code.
    pub fn builder() -> PolicyBuilder {
        PolicyBuilder::default()
    }

    /// Whether the flow may pass. Allocates nothing.
    #[must_use]
    pub fn check(&self, facts: &Facts<'_>) -> Verdict {
        let peer = facts.peer.to_canonical();
        let group = self.classifier.classify(peer);
        let service = Service { protocol: facts.protocol, port: facts.port };
        if facts.direction == Direction::Egress
            && let Some(built_in) = self.resolvers.refusal(facts)
        {
            let rule = RuleRef::BuiltIn(built_in);
            return Verdict::Deny(Denial { reason: Reason { rule, group, name: None } });
        }
        let (side, default) = match facts.direction {
            Direction::Egress => (&self.egress, self.default_egress),
            Direction::Ingress => (&self.ingress, self.default_ingress),
            // No flow goes both ways: the facts are wrong, so the answer is the closed one.
            Direction::Any => {
                debug_assert!(false, "facts of a flow without a direction");
                let rule = RuleRef::Default(Direction::Any);
                return Verdict::Deny(Denial { reason: Reason { rule, group, name: None } });
            }
        };
        let by_address = side.by_address(peer, group, service);
        let (by_name, name) = side.by_name(facts.names, service);
        let rank = by_address.min(by_name);
        let name = name.filter(|_| by_name < by_address).cloned();
        let (mut rule, mut action) = self.decide(rank, facts.direction, default);
        let is_egress = facts.direction == Direction::Egress;
        if is_egress && action == Action::Allow && self.denies_doh(rule) && self.resolvers.is_https(facts) {
            (rule, action) = (RuleRef::BuiltIn(BuiltIn::KnownResolver), Action::Deny);
        }
        let reason = Reason { rule, group, name };
        match action {
            Action::Allow => {
                let Facts { protocol, peer, port, .. } = *facts;
                let pending = self.depends_on_flight(facts, service, by_address, by_name);
                let pending = pending.then(|| Pending { protocol, peer, port, reason: reason.clone() });
                let permit = Permit { protocol, peer, port, reason };
                match pending {
                    Some(pending) => Verdict::Pending(permit, pending),
                    None => Verdict::Allow(permit),
                }
            }
            Action::Deny => Verdict::Deny(Denial { reason }),
        }
    }

    /// Whether what an allowed flow shows could change its verdict.
    fn depends_on_flight(&self, facts: &Facts<'_>, service: Service, by_address: Rank, by_name: Rank) -> bool {
        let shows = match facts.protocol {
            Protocol::Tcp | Protocol::Udp => facts.direction == Direction::Egress,
            Protocol::IcmpV4 | Protocol::IcmpV6 => false,
        };
        if !shows || self.egress.names.is_empty() {
            return false;
        }
        let named = by_name < by_address;
        let (_, without_name) = self.decide(by_address, Direction::Egress, self.default_egress);
        let denied_name = self.egress.denied_names.lookup(service).deny;
        match named && self.strict {
            true => without_name == Action::Deny || denied_name < by_address,
            false => denied_name < by_address.min(by_name),
        }
    }

    /// Whether a flow that shows this may go on. Allocates nothing.
    #[must_use]
    pub fn check_flight(&self, pending: &Pending, flight: &Flight<'_>) -> FlightVerdict {
        let peer = pending.peer.to_canonical();
        let group = self.classifier.classify(peer);
        let service = Service { protocol: pending.protocol, port: pending.port };
        let by_address = self.egress.by_address(peer, group, service);
        let verdict = |rank: Rank, name: Option<&DomainName>| {
            let (rule, action) = self.decide(rank, Direction::Egress, self.default_egress);
            let reason = Reason { rule, group, name: name.filter(|_| rank < by_address).cloned() };
            match action {
                Action::Allow => FlightVerdict::Allow(reason),
                Action::Deny => FlightVerdict::Deny(Denial { reason }),
            }
        };
        // The rule by which a name admitted the flow, where it counts whatever is shown.
        let admitted = |counts: bool| match (&pending.reason.name, pending.reason.rule) {
            (Some(name), RuleRef::Rule(position)) if counts => (Rank::at(position), Some(name)),
            (_, _) => (Rank::NONE, None),
        };
        match flight {
            Flight::Names([]) => {
                let (rank, name) = admitted(!self.strict);
                verdict(rank.min(by_address), name)
            }
            Flight::Names(names) => {
                let mut last = None;
                for ShownName { name, pinned } in *names {
                    let Ranks { allow, deny } = self.egress.names.lookup(name, service);
                    let allow = if *pinned { allow } else { Rank::NONE };
                    let shown = allow.min(deny);
                    let (lax, admitting) = admitted(!self.strict);
                    let (rank, name) = if lax < shown { (lax, admitting) } else { (shown, Some(*name)) };
                    let verdict = verdict(rank.min(by_address), name);
                    if !verdict.is_allow() {
                        return verdict;
                    }
                    last = Some(verdict);
                }
                last.unwrap_or_else(|| verdict(by_address, None))
            }
            Flight::Unreadable => {
                let (rank, name) = admitted(!self.strict);
                let denied = self.egress.denied_names.lookup(service).deny;
                verdict(rank.min(denied).min(by_address), name.filter(|_| rank < denied))
            }
            Flight::Other => {
                let opaque = match pending.reason.rule {
                    RuleRef::Rule(at) => self.rule(at).is_some_and(|rule| rule.opaque),
                    RuleRef::Default(_) | RuleRef::BuiltIn(_) => false,
                };
                let web = pending.port.is_some_and(|port| WEB.contains(&port));
                let (rank, name) = admitted(!self.strict || !web || opaque);
                verdict(rank.min(by_address), name)
            }
        }
    }

    /// Whether `name` may be asked for, by a query that came over `transport`: the protocol and port it used towards the
    /// gateway.
    ///
    /// Domain rules match the name whatever their protocols and ports; `any` and group `host` rules match the transport;
    /// networks, addresses and other groups never match a name.
    #[must_use]
    pub fn check_name(&self, name: &DomainName, transport: &Facts<'_>) -> NameVerdict {
        let service = Service { protocol: transport.protocol, port: transport.port };
        let side = &self.egress;
        let by_transport = side.any.lookup(service).min(side.group(Group::Host).lookup(service)).first();
        let by_name = side.names.first(name);
        let (mut rule, mut action) = self.decide(by_transport.min(by_name), Direction::Egress, self.default_egress);
        if action == Action::Allow && self.denies_doh(rule) && self.resolvers.has_name(name) {
            (rule, action) = (RuleRef::BuiltIn(BuiltIn::KnownResolver), Action::Deny);
        }
        let name = (by_name < by_transport).then(|| name.clone());
        let reason = Reason { rule, group: Group::Host, name };
        match action {
            Action::Allow => NameVerdict::Allow(reason),
            Action::Deny => NameVerdict::Deny(reason),
        }
    }

    /// Whether `rule`, by which a name was allowed, lets that name lead to addresses that are not public.
    #[must_use]
    pub fn allows_private(&self, rule: RuleRef) -> bool {
        match rule {
            RuleRef::Rule(at) => self.rule(at).is_some_and(|rule| rule.allow_private),
            RuleRef::Default(_) | RuleRef::BuiltIn(_) => false,
        }
    }

    /// What this policy takes addresses for.
    #[must_use]
    pub fn classifier(&self) -> &Classifier {
        &self.classifier
    }

    /// The rules in order, as they were compiled.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// A rule or default as text, for events and messages.
    #[must_use]
    pub fn rule_text(&self, rule: RuleRef) -> RuleText {
        let default = |direction: &str, action: Action| RuleText {
            index: None,
            text: format!("default {direction} {}", grammar::action_word(action)),
        };
        match rule {
            RuleRef::Rule(index) => {
                RuleText { index: Some(index), text: self.rule(index).map(grammar::format_rule).unwrap_or_default() }
            }
            RuleRef::Default(Direction::Egress) => default("egress", self.default_egress),
            RuleRef::Default(Direction::Ingress) => default("ingress", self.default_ingress),
            RuleRef::Default(Direction::Any) => default("any", Action::Deny),
            RuleRef::BuiltIn(built_in) => RuleText { index: None, text: built_in.text().to_owned() },
        }
    }

    /// Rules that have no effect or contradict.
    #[must_use]
    pub fn warnings(config: &PolicyConfig) -> Vec<Warning> {
        warnings::find(config)
    }

    /// Whether any rule names a domain.
    #[must_use]
    pub fn uses_names(&self) -> bool {
        !self.egress.names.is_empty() || !self.ingress.names.is_empty()
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The class of an egress flow: domain rules treat all flows of one class alike. `None` when no domain rule looks at them.
    pub(crate) fn class(&self, service: Service) -> Option<ServiceClass> {
        (!self.egress.names.is_empty()).then(|| self.egress.names.class(service))
    }

    /// Scales for names of the peer of an egress flow.
    pub(crate) fn scales(&self, service: Service) -> Scales<'_> {
        Scales::new(&self.egress.names, service)
    }

    /// Whether `deny_doh` overrules what `rule` allows: not a rule for exactly one name or address, which says that this
    /// is meant.
    fn denies_doh(&self, rule: RuleRef) -> bool {
        let RuleRef::Rule(position) = rule else { return self.doh == Action::Deny };
        let is_exact = self.rule(position).is_some_and(|rule| match &rule.destination {
            Destination::Domain(name) => self.resolvers.has_name(name),
            Destination::Cidr(net) => net.prefix_len() == net.max_prefix_len(),
            Destination::Any | Destination::Group(_) | Destination::Suffix { .. } => false,
        });
        self.doh == Action::Deny && !is_exact
    }

    fn decide(&self, rank: Rank, direction: Direction, default: Action) -> (RuleRef, Action) {
        let Some(position) = rank.position() else { return (RuleRef::Default(direction), default) };
        (RuleRef::Rule(position), self.rule(position).map_or(Action::Deny, |rule| rule.action))
    }

    fn rule(&self, position: u32) -> Option<&Rule> {
        usize::try_from(position).ok().and_then(|at| self.rules.get(at))
    }
}

/// `deny_doh` where nobody said: on under an allow-list, where names say what is reachable.
fn default_doh(config: &PolicyConfig) -> Action {
    const DNS_PORT: u16 = 53;
    let resolves_everything = |rule: &Rule| {
        let for_all = matches!(rule.destination, Destination::Any | Destination::Group(Group::Host));
        let leaves = matches!(rule.direction, Direction::Egress | Direction::Any);
        let carries = [Protocol::Tcp, Protocol::Udp].iter().any(|protocol| rule.protocols.matches(*protocol));
        let to_dns =
            rule.ports.is_empty() || rule.ports.iter().any(|range| (range.start..=range.end).contains(&DNS_PORT));
        rule.action == Action::Allow && for_all && leaves && carries && to_dns
    };
    let is_allow_list = config.default_egress == Action::Deny && !config.rules.iter().any(resolves_everything);
    if is_allow_list { Action::Deny } else { Action::Allow }
}

/// The rules of one direction, laid out by destination.
#[derive(Debug)]
struct Side {
    any: Table,
    /// In the order of [`Group::ALL`].
    groups: [Table; 8],
    prefixes: Prefixes,
    names: NameTree,
    /// All rules that deny a name, whichever.
    denied_names: Table,
}

impl Side {
    fn new(rules: &[Rule], direction: Direction) -> Side {
        let mut any = Vec::new();
        let mut groups = Vec::new();
        let mut prefixes = Vec::new();
        let mut names = Vec::new();
        for (position, rule) in rules.iter().enumerate() {
            if rule.direction != direction && rule.direction != Direction::Any {
                continue;
            }
            let rank = Rank::of(position);
            match &rule.destination {
                Destination::Any => any.push((rank, rule)),
                Destination::Group(group) => groups.push((rank, rule, *group)),
                Destination::Cidr(net) => prefixes.push((rank, rule, *net)),
                Destination::Domain(name) => names.push((rank, rule, name, Reach::Exact)),
                Destination::Suffix { name, apex: true } => names.push((rank, rule, name, Reach::Suffix)),
                Destination::Suffix { name, apex: false } => names.push((rank, rule, name, Reach::Below)),
            }
        }
        let of_group = |group: Group| {
            let rules: Vec<(Rank, &Rule)> =
                groups.iter().filter(|(_, _, g)| *g == group).map(|(rank, rule, _)| (*rank, *rule)).collect();
            Table::new(&rules)
        };
        Side {
            any: Table::new(&any),
            groups: Group::ALL.map(of_group),
            prefixes: Prefixes::new(&prefixes),
            denied_names: Table::new(&denied_names(&names)),
            names: NameTree::new(&names),
        }
    }

    /// The first rule that matches by address.
    fn by_address(&self, peer: IpAddr, group: Group, service: Service) -> Rank {
        let any = self.any.lookup(service).min(self.group(group).lookup(service));
        any.min(self.prefixes.lookup(peer, group, service)).first()
    }

    fn group(&self, group: Group) -> &Table {
        let [host, metadata, loopback, link_local, private, multicast, reserved, public] = &self.groups;
        match group {
            Group::Host => host,
            Group::Metadata => metadata,
            Group::Loopback => loopback,
            Group::LinkLocal => link_local,
            Group::Private => private,
            Group::Multicast => multicast,
            Group::Reserved => reserved,
            Group::Public => public,
        }
    }

    fn by_name<'a>(&'a self, names: &'a [PinnedName], service: Service) -> (Rank, Option<&'a DomainName>) {
        if self.names.is_empty() {
            return (Rank::NONE, None);
        }
        let mut scales = Scales::new(&self.names, service);
        for pinned in names {
            scales.add(pinned);
        }
        scales.first()
    }
}

/// The rules among these that deny, without those that an earlier one with the same protocols and ports makes pointless:
/// of a list of a hundred thousand names one is left.
fn denied_names<'a>(rules: &[(Rank, &'a Rule, &DomainName, Reach)]) -> Vec<(Rank, &'a Rule)> {
    let mut kept: Vec<(Rank, &Rule)> = Vec::new();
    for (rank, rule, ..) in rules.iter().filter(|(_, rule, ..)| rule.action == Action::Deny) {
        // The last ones are enough to find the repetitions of a list.
        let mut recent = kept.iter().rev().take(4);
        if !recent.any(|(_, earlier)| earlier.protocols == rule.protocols && earlier.ports == rule.ports) {
            kept.push((*rank, *rule));
        }
    }
    kept
}
