//! The rules of one layer, and what they say about a flow, a flight or a name. See `policy.rs` for what is asked in which order.

use std::net::IpAddr;
use std::sync::Arc;

use cofferdam_model::{
    Action, Destination, Direction, DomainName, Group, Layer, PolicyConfig, PolicyLayer, Protocol, Rule, RuleText,
};

use crate::encrypted_dns::KnownResolvers;
use crate::table::Rank;
use crate::table::names::{NameTree, Reach};
use crate::table::ports::{Ranks, Service, Table};
use crate::table::prefixes::Prefixes;
use crate::weigh::{Counting, Scales};
use crate::{BuiltIn, Facts, Flight, PinnedName, RuleRef, ShownName, grammar};

/// The ports of HTTP and HTTPS, on which every server tells names apart.
const WEB: [u16; 2] = [80, 443];

/// The compiled rules of one layer. A clone shares them.
#[derive(Debug, Clone)]
pub(crate) struct RuleSet {
    pub(crate) layer: Layer,
    pub(crate) rules: Arc<[Rule]>,
    default_egress: Action,
    default_ingress: Action,
    strict: bool,
    /// What `deny_doh` makes of known resolvers that speak HTTPS.
    pub(crate) doh: Action,
    pub(crate) egress: Arc<Side>,
    ingress: Arc<Side>,
    /// Under rebinding protection, the rules that let an address that is not public into an answer whatever its name.
    explicit: Option<Arc<Side>>,
}

/// A flow as every layer looks at it: what is worked out once for all of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow<'a> {
    pub(crate) facts: &'a Facts<'a>,
    /// The peer, never an IPv4-mapped address.
    pub(crate) peer: IpAddr,
    pub(crate) group: Group,
}

impl Flow<'_> {
    /// Whether such a flow shows anything that is looked at.
    pub(crate) fn shows(&self) -> bool {
        let carries = match self.facts.protocol {
            Protocol::Tcp | Protocol::Udp => true,
            Protocol::IcmpV4 | Protocol::IcmpV6 => false,
        };
        carries && self.facts.direction == Direction::Egress
    }
}

/// What one layer says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ruling<'a> {
    pub(crate) rule: RuleRef,
    pub(crate) action: Action,
    /// The name that decided.
    pub(crate) name: Option<&'a DomainName>,
}

impl Ruling<'_> {
    /// The refusal where there is nobody to ask.
    pub(crate) const NOBODY: Ruling<'static> =
        Ruling { rule: RuleRef::Default(Direction::Any), action: Action::Deny, name: None };

    pub(crate) fn to_admission(self) -> Admission {
        Admission { rule: self.rule, name: self.name.cloned() }
    }
}

/// By what one layer admitted a flow.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    pub(crate) rule: RuleRef,
    pub(crate) name: Option<DomainName>,
}

/// A flow whose flight is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admitted<'a> {
    pub(crate) peer: IpAddr,
    pub(crate) group: Group,
    pub(crate) service: Service,
    pub(crate) by: Option<&'a Admission>,
}

impl RuleSet {
    pub(crate) fn new(config: &PolicyConfig, layer: Layer) -> RuleSet {
        RuleSet {
            layer,
            rules: config.rules.as_slice().into(),
            default_egress: config.default_egress,
            default_ingress: config.default_ingress,
            strict: config.strict,
            doh: default_doh(config),
            egress: Arc::new(Side::new(&config.rules, Direction::Egress, |_| true)),
            ingress: Arc::new(Side::new(&config.rules, Direction::Ingress, |_| true)),
            explicit: None,
        }
    }

    pub(crate) fn of_layer(layer: &PolicyLayer) -> RuleSet {
        let explicit = || Arc::new(Side::new(&layer.policy.rules, Direction::Egress, counts_for_rebinding));
        let explicit = layer.rebind_protection.then(explicit);
        let rules = RuleSet { explicit, ..RuleSet::new(&layer.policy, layer.layer) };
        match layer.deny_doh {
            Some(true) => RuleSet { doh: Action::Deny, ..rules },
            Some(false) => RuleSet { doh: Action::Allow, ..rules },
            None => rules,
        }
    }

    /// What these rules say about a flow, and whether what it shows could change that.
    pub(crate) fn check<'a>(&'a self, flow: &Flow<'a>, resolvers: &KnownResolvers) -> (Ruling<'a>, bool) {
        let Flow { facts, peer, group } = *flow;
        let service = Service { protocol: facts.protocol, port: facts.port };
        let (side, default) = match facts.direction {
            Direction::Egress => (&self.egress, self.default_egress),
            Direction::Ingress => (&self.ingress, self.default_ingress),
            // No flow goes both ways: the facts are wrong, so the answer is the closed one.
            Direction::Any => {
                debug_assert!(false, "facts of a flow without a direction");
                return (Ruling::NOBODY, false);
            }
        };
        let by_address = side.by_address(peer, group, service);
        let (by_name, name) = side.by_name(facts.names, service, || self.counting(peer, group));
        let name = name.filter(|_| by_name < by_address);
        let (rule, action) = self.decide(by_address.min(by_name), facts.direction, default);
        let is_egress = facts.direction == Direction::Egress;
        if is_egress && action == Action::Allow && self.denies_doh(rule, resolvers) && resolvers.is_https(facts) {
            return (Ruling { rule: RuleRef::BuiltIn(BuiltIn::KnownResolver), action: Action::Deny, name }, false);
        }
        let pending = action == Action::Allow && self.depends_on_flight(flow, service, by_address, by_name);
        (Ruling { rule, action, name }, pending)
    }

    /// Whether what an allowed flow shows could change its verdict.
    fn depends_on_flight(&self, flow: &Flow<'_>, service: Service, by_address: Rank, by_name: Rank) -> bool {
        if !flow.shows() || self.egress.names.is_empty() {
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

    /// What these rules say about what an admitted flow shows. A flow that they did not admit has no name to show for it.
    pub(crate) fn check_flight<'a>(&self, admitted: &Admitted<'a>, flight: &Flight<'a>) -> Ruling<'a> {
        let Admitted { peer, group, service, by } = *admitted;
        let by_address = self.egress.by_address(peer, group, service);
        let counting = self.counting(peer, group);
        let ruling = |rank: Rank, name: Option<&'a DomainName>| {
            let (rule, action) = self.decide(rank, Direction::Egress, self.default_egress);
            Ruling { rule, action, name: name.filter(|_| rank < by_address) }
        };
        // The rule by which a name admitted the flow, where it counts whatever is shown.
        let admitting = |counts: bool| match by {
            Some(Admission { rule: RuleRef::Rule(position), name: Some(name) }) if counts => {
                (Rank::at(*position), Some(name))
            }
            Some(_) | None => (Rank::NONE, None),
        };
        match flight {
            Flight::Names([]) => {
                let (rank, name) = admitting(!self.strict);
                ruling(rank.min(by_address), name)
            }
            Flight::Names(names) => {
                let mut last = None;
                for ShownName { name, pinned } in *names {
                    let Ranks { allow, deny, inside } = self.egress.names.lookup(name, service);
                    let allow = if counting == Counting::Inside { inside } else { allow };
                    let allow = if *pinned { allow } else { Rank::NONE };
                    let shown = allow.min(deny);
                    let (lax, by) = admitting(!self.strict);
                    let (rank, name) = if lax < shown { (lax, by) } else { (shown, Some(*name)) };
                    let ruling = ruling(rank.min(by_address), name);
                    if ruling.action == Action::Deny {
                        return ruling;
                    }
                    last = Some(ruling);
                }
                last.unwrap_or_else(|| ruling(by_address, None))
            }
            Flight::Unreadable => {
                let (rank, name) = admitting(!self.strict);
                let denied = self.egress.denied_names.lookup(service).deny;
                ruling(rank.min(denied).min(by_address), name.filter(|_| rank < denied))
            }
            Flight::Other => {
                let opaque = match by.map(|admission| admission.rule) {
                    Some(RuleRef::Rule(at)) => self.rule(at).is_some_and(|rule| rule.opaque),
                    Some(RuleRef::Default(_) | RuleRef::BuiltIn(_)) | None => false,
                };
                let web = service.port.is_some_and(|port| WEB.contains(&port));
                let (rank, name) = admitting(!self.strict || !web || opaque);
                ruling(rank.min(by_address), name)
            }
        }
    }

    /// What these rules say about resolving `name` for a query that came over `transport`.
    pub(crate) fn check_name<'a>(
        &self,
        name: &'a DomainName,
        transport: Service,
        resolvers: &KnownResolvers,
    ) -> Ruling<'a> {
        let side = &self.egress;
        let by_transport = side.any.lookup(transport).min(side.group(Group::Host).lookup(transport)).first();
        let by_name = side.names.first(name);
        let (mut rule, mut action) = self.decide(by_transport.min(by_name), Direction::Egress, self.default_egress);
        if action == Action::Allow && self.denies_doh(rule, resolvers) && resolvers.has_name(name) {
            (rule, action) = (RuleRef::BuiltIn(BuiltIn::KnownResolver), Action::Deny);
        }
        Ruling { rule, action, name: (by_name < by_transport).then_some(name) }
    }

    pub(crate) fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Egress | Direction::Any => &self.egress,
            Direction::Ingress => &self.ingress,
        }
    }

    /// Whether a flow passes about which `rank` decides. `is_doh`: it may carry DNS over HTTPS to a known resolver.
    pub(crate) fn passes(&self, rank: Rank, direction: Direction, is_doh: bool, resolvers: &KnownResolvers) -> bool {
        let default = if direction == Direction::Ingress { self.default_ingress } else { self.default_egress };
        let (rule, action) = self.decide(rank, direction, default);
        action == Action::Allow && !(is_doh && direction == Direction::Egress && self.denies_doh(rule, resolvers))
    }

    /// Which rules that allow a name count at `peer`. Rebinding protection lets an address that is not public into an answer for
    /// a name by an explicit rule for the address, or by a rule for the name that says so: where there is no rule of the first
    /// kind, no other rule for the name profits from one of the second.
    pub(crate) fn counting(&self, peer: IpAddr, group: Group) -> Counting {
        const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
        let Some(explicit) = &self.explicit else { return Counting::All };
        match group {
            // No rule for a name leads there, but for the gateway's own names.
            Group::Public | Group::Host | Group::Metadata | Group::Loopback => return Counting::All,
            Group::LinkLocal | Group::Private | Group::Multicast | Group::Reserved => {}
        }
        let lets_in = |protocol| {
            let rank = explicit.by_address(peer, group, Service { protocol, port: None });
            self.decide(rank, Direction::Egress, Action::Deny).1 == Action::Allow
        };
        if PROTOCOLS.into_iter().any(lets_in) { Counting::All } else { Counting::Inside }
    }

    /// Whether `rule`, by which a name was allowed, lets that name lead to addresses that are not public.
    pub(crate) fn allows_private(&self, rule: RuleRef) -> bool {
        match rule {
            RuleRef::Rule(at) => self.rule(at).is_some_and(|rule| rule.allow_private),
            RuleRef::Default(_) | RuleRef::BuiltIn(_) => false,
        }
    }

    pub(crate) fn names_peers(&self) -> bool {
        !self.ingress.names.is_empty()
    }

    pub(crate) fn uses_names(&self) -> bool {
        !self.egress.names.is_empty() || !self.ingress.names.is_empty()
    }

    /// A rule or default as text; without its layer.
    pub(crate) fn rule_text(&self, rule: RuleRef) -> RuleText {
        let text = |text: String| RuleText { index: None, text, layer: None };
        let default =
            |direction: &str, action: Action| text(format!("default {direction} {}", grammar::action_word(action)));
        match rule {
            RuleRef::Rule(index) => {
                let text = self.rule(index).map(grammar::format_rule).unwrap_or_default();
                RuleText { index: Some(index), text, layer: None }
            }
            RuleRef::Default(Direction::Egress) => default("egress", self.default_egress),
            RuleRef::Default(Direction::Ingress) => default("ingress", self.default_ingress),
            RuleRef::Default(Direction::Any) => default("any", Action::Deny),
            RuleRef::BuiltIn(built_in) => text(built_in.text().to_owned()),
        }
    }

    /// Whether `deny_doh` overrules what `rule` allows: not a rule for exactly one name or address, which says that this
    /// is meant.
    pub(crate) fn denies_doh(&self, rule: RuleRef, resolvers: &KnownResolvers) -> bool {
        let RuleRef::Rule(position) = rule else { return self.doh == Action::Deny };
        let is_exact = self.rule(position).is_some_and(|rule| match &rule.destination {
            Destination::Domain(name) => resolvers.has_name(name),
            Destination::Cidr(net) => net.prefix_len() == net.max_prefix_len(),
            Destination::Any | Destination::Group(_) | Destination::Suffix { .. } => false,
        });
        self.doh == Action::Deny && !is_exact
    }

    /// What a rule or default of these does.
    pub(crate) fn action(&self, rule: RuleRef) -> Action {
        match rule {
            RuleRef::Rule(at) => self.rule(at).map_or(Action::Deny, |rule| rule.action),
            RuleRef::Default(Direction::Egress) => self.default_egress,
            RuleRef::Default(Direction::Ingress) => self.default_ingress,
            RuleRef::Default(Direction::Any) | RuleRef::BuiltIn(_) => Action::Deny,
        }
    }

    /// Whether what only a name allows has to show that name.
    pub(crate) fn is_strict(&self) -> bool {
        self.strict
    }

    fn decide(&self, rank: Rank, direction: Direction, default: Action) -> (RuleRef, Action) {
        let Some(position) = rank.position() else { return (RuleRef::Default(direction), default) };
        (RuleRef::Rule(position), self.rule(position).map_or(Action::Deny, |rule| rule.action))
    }

    fn rule(&self, position: u32) -> Option<&Rule> {
        usize::try_from(position).ok().and_then(|at| self.rules.get(at))
    }
}

/// Whether rebinding protection looks at a rule: one for an address, a network or a group without ports, or one that denies
/// whatever the address. Among them the first that matches decides, and the default is deny.
#[must_use]
pub fn counts_for_rebinding(rule: &Rule) -> bool {
    let leaves = match rule.direction {
        Direction::Egress | Direction::Any => true,
        Direction::Ingress => false,
    };
    let by_address = match rule.destination {
        Destination::Group(_) | Destination::Cidr(_) => true,
        Destination::Any => rule.action == Action::Deny,
        Destination::Domain(_) | Destination::Suffix { .. } => false,
    };
    leaves && by_address && rule.ports.is_empty()
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
pub(crate) struct Side {
    any: Table,
    /// In the order of [`Group::ALL`].
    groups: [Table; 8],
    pub(crate) prefixes: Prefixes,
    pub(crate) names: NameTree,
    /// All rules that deny a name, whichever.
    denied_names: Table,
}

impl Side {
    fn new(rules: &[Rule], direction: Direction, is_wanted: impl Fn(&Rule) -> bool) -> Side {
        let mut any = Vec::new();
        let mut groups = Vec::new();
        let mut prefixes = Vec::new();
        let mut names = Vec::new();
        for (position, rule) in rules.iter().enumerate() {
            if (rule.direction != direction && rule.direction != Direction::Any) || !is_wanted(rule) {
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
    pub(crate) fn by_address(&self, peer: IpAddr, group: Group, service: Service) -> Rank {
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

    fn by_name<'a>(
        &'a self,
        names: &'a [PinnedName],
        service: Service,
        counting: impl FnOnce() -> Counting,
    ) -> (Rank, Option<&'a DomainName>) {
        if self.names.is_empty() || names.is_empty() {
            return (Rank::NONE, None);
        }
        let mut scales = Scales::new(&self.names, service);
        for pinned in names {
            scales.add(pinned);
        }
        scales.first(counting())
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
