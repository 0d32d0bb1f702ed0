//! Why a verdict is what it is: the rules one by one.
//!
//! [`Policy::check`] finds the first match without trying rules. Here they are tried in order, as a person reads them, and of each
//! is said what kept it from deciding, until one decides. The verdict itself is `check`'s: a walk that came to another one
//! would be a fault of the walk, and `tests/explain.rs` holds the two together.

use std::fmt;

use cofferdam_model::{Action, Destination, Direction, DomainName, Group, Layer, Rule};

use crate::encrypted_dns::KnownResolvers;
use crate::policy::{Flow, RuleSet};
use crate::table::ports::Service;
use crate::weigh::Counting;
use crate::{BuiltIn, Facts, NameVerdict, PinnedName, Policy, Reason, RuleRef, Verdict};

/// A verdict, and how the rules came to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub action: Action,
    /// It may be opened, and what it shows in its first bytes has to bear that out.
    pub waits: bool,
    pub reason: Reason,
    /// Every rule that was looked at, from the outermost layer, and last what decided.
    pub steps: Vec<Step>,
}

/// What one rule or default said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub layer: Layer,
    pub rule: RuleRef,
    /// The rule in the grammar, or the default in words.
    pub text: String,
    pub outcome: StepOutcome,
    /// The name by which it matched.
    pub name: Option<DomainName>,
}

/// What became of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    Decides(Action),
    /// It lets the flow be opened, and what that shows in its first bytes decides.
    Waits,
    /// It matches no name that is known, and denies the flow if that shows one which it names.
    Watches,
    /// It matches and allows, and something that holds beside the rules overrules it.
    Overruled,
    Misses(Mismatch),
}

/// The first thing that did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mismatch {
    Direction,
    Protocol,
    Port,
    /// The address is another one.
    Address,
    Group,
    /// It allows a network, and the address is in a group that no network opens.
    Guarded,
    /// No name that is bound to the address.
    Name,
    /// No name is bound to the address.
    NeverNamed,
    /// The name stood in the answer for another one; only deny rules look at such.
    Alias,
    /// It denies one of several names of the address, and nothing in the packet tells them apart.
    OtherNames,
    /// The address is not public, and the rule does not say that its name may lead there.
    Inside,
    /// It is about addresses, and a look-up has none.
    Lookup,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mismatch::Direction => "is for the other direction",
            Mismatch::Protocol => "is for another protocol",
            Mismatch::Port => "is for another port",
            Mismatch::Address => "is for another address",
            Mismatch::Group => "is for another group",
            Mismatch::Guarded => {
                "allows a network, and no network opens this group: only its own word or the single address does"
            }
            Mismatch::Name => "is for another name",
            Mismatch::NeverNamed => "is for a name, and none is bound to this address by a look-up",
            Mismatch::Alias => "is for a name that only stood in the answer for another one",
            Mismatch::OtherNames => "is for one of several names of this address, and nothing tells them apart yet",
            Mismatch::Inside => "is for a name without `allow-private`, and the address is not public",
            Mismatch::Lookup => "is for addresses, and a look-up has none",
        })
    }
}

impl Policy {
    /// What this policy says about a flow, rule by rule; the verdict is that of [`Policy::check`]. As long as the policy is, so
    /// is the answer.
    #[must_use]
    pub fn explain(&self, facts: &Facts<'_>) -> Explanation {
        let verdict = self.check(facts);
        let flow = Flow { facts, peer: facts.peer.to_canonical(), group: self.classifier().classify(facts.peer) };
        let refusal = (facts.direction == Direction::Egress).then(|| self.resolvers().refusal(facts)).flatten();
        let steps = match (refusal, self.rule_sets().first()) {
            (Some(built_in), Some(outermost)) => vec![built_in_step(outermost, built_in)],
            (Some(_) | None, _) => self.through_layers(|rules| flow_steps(rules, &flow, self.resolvers())),
        };
        let (action, waits) = match &verdict {
            Verdict::Allow(_) => (Action::Allow, false),
            Verdict::Pending(..) => (Action::Allow, true),
            Verdict::Deny(_) => (Action::Deny, false),
        };
        Explanation { action, waits, reason: verdict.reason().clone(), steps }
    }

    /// The same for a look-up; the verdict is that of [`Policy::check_name`].
    #[must_use]
    pub fn explain_name(&self, name: &DomainName, transport: &Facts<'_>) -> Explanation {
        let verdict = self.check_name(name, transport);
        let service = Service { protocol: transport.protocol, port: transport.port };
        let steps = self.through_layers(|rules| name_steps(rules, name, service, self.resolvers()));
        let (action, reason) = match verdict {
            NameVerdict::Allow(reason) => (Action::Allow, reason),
            NameVerdict::Deny(reason) => (Action::Deny, reason),
        };
        Explanation { action, waits: false, reason, steps }
    }

    /// The steps of every layer until one denies.
    fn through_layers(&self, layer: impl Fn(&RuleSet) -> Vec<Step>) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for rules in self.rule_sets() {
            steps.extend(layer(rules));
            if steps.last().is_some_and(|step| step.outcome == StepOutcome::Decides(Action::Deny)) {
                break;
            }
        }
        steps
    }
}

/// The rule that a walk came to.
struct Match {
    /// `None`: no rule matches, and the default decides.
    position: Option<usize>,
    name: Option<DomainName>,
}

fn flow_steps(rules: &RuleSet, flow: &Flow<'_>, resolvers: &KnownResolvers) -> Vec<Step> {
    let facts = flow.facts;
    if facts.direction == Direction::Any {
        return vec![step(rules, RuleRef::Default(Direction::Any), StepOutcome::Decides(Action::Deny), None)];
    }
    let mut walk = Walk::new(rules, flow);
    let mut steps = Vec::new();
    let mut found = Match { position: None, name: None };
    for (position, rule) in rules.rules.iter().enumerate() {
        match walk.rule(rule) {
            Ok(name) => {
                found = Match { position: Some(position), name };
                break;
            }
            Err(mismatch) => {
                let watches = is_name(rule) && rule.action == Action::Deny && walk.fits(rule) && flow.shows();
                let outcome = if watches { StepOutcome::Watches } else { StepOutcome::Misses(mismatch) };
                steps.push((step(rules, rule_at(position), outcome, None), mismatch));
            }
        }
    }
    let rule = found.position.map_or(RuleRef::Default(facts.direction), rule_at);
    let action = rules.action(rule);
    let is_doh = facts.direction == Direction::Egress && resolvers.is_https(facts);
    let overruled = action == Action::Allow && is_doh && rules.denies_doh(rule, resolvers);
    let waits = action == Action::Allow && !overruled && walk.waits(&found);
    let mut steps: Vec<Step> = steps
        .into_iter()
        .map(|(step, mismatch)| match step.outcome {
            // Nothing that is shown changes what is denied already.
            StepOutcome::Watches if !waits => Step { outcome: StepOutcome::Misses(mismatch), ..step },
            StepOutcome::Watches
            | StepOutcome::Decides(_)
            | StepOutcome::Waits
            | StepOutcome::Overruled
            | StepOutcome::Misses(_) => step,
        })
        .collect();
    let outcome = match (overruled, waits) {
        (true, _) => StepOutcome::Overruled,
        (false, true) => StepOutcome::Waits,
        (false, false) => StepOutcome::Decides(action),
    };
    steps.push(step(rules, rule, outcome, found.name));
    steps.extend(overruled.then(|| built_in_step(rules, BuiltIn::KnownResolver)));
    steps
}

fn name_steps(rules: &RuleSet, name: &DomainName, service: Service, resolvers: &KnownResolvers) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut found = None;
    for (position, rule) in rules.rules.iter().enumerate() {
        let mismatch = match (&rule.direction, &rule.destination) {
            (Direction::Ingress, _) => Some(Mismatch::Direction),
            (_, Destination::Any | Destination::Group(Group::Host)) => service_mismatch(rule, service),
            (_, Destination::Group(_) | Destination::Cidr(_)) => Some(Mismatch::Lookup),
            (_, named @ (Destination::Domain(_) | Destination::Suffix { .. })) => {
                (!covers(named, name)).then_some(Mismatch::Name)
            }
        };
        match mismatch {
            Some(mismatch) => steps.push(step(rules, rule_at(position), StepOutcome::Misses(mismatch), None)),
            None => {
                found = Some((position, is_name(rule).then(|| name.clone())));
                break;
            }
        }
    }
    let (rule, by) = found.map_or((RuleRef::Default(Direction::Egress), None), |(at, by)| (rule_at(at), by));
    let action = rules.action(rule);
    let overruled = action == Action::Allow && rules.denies_doh(rule, resolvers) && resolvers.has_name(name);
    let outcome = if overruled { StepOutcome::Overruled } else { StepOutcome::Decides(action) };
    steps.push(step(rules, rule, outcome, by));
    steps.extend(overruled.then(|| built_in_step(rules, BuiltIn::KnownResolver)));
    steps
}

/// Rules tried in order on one flow.
struct Walk<'a> {
    rules: &'a RuleSet,
    flow: &'a Flow<'a>,
    service: Service,
    counting: Counting,
    /// Names that were asked for and that no rule so far denies.
    undenied: Vec<&'a PinnedName>,
    asked_for: usize,
}

impl<'a> Walk<'a> {
    fn new(rules: &'a RuleSet, flow: &'a Flow<'a>) -> Walk<'a> {
        let service = Service { protocol: flow.facts.protocol, port: flow.facts.port };
        let undenied: Vec<&PinnedName> = flow.facts.names.iter().filter(|pinned| !pinned.alias).collect();
        let asked_for = undenied.len();
        Walk { rules, flow, service, counting: rules.counting(flow.peer, flow.group), undenied, asked_for }
    }

    /// Whether the rule matches, and by which name; rules have to come in order.
    fn rule(&mut self, rule: &Rule) -> Result<Option<DomainName>, Mismatch> {
        if rule.direction != self.flow.facts.direction && rule.direction != Direction::Any {
            return Err(Mismatch::Direction);
        }
        if let Some(mismatch) = service_mismatch(rule, self.service) {
            return Err(mismatch);
        }
        match (&rule.destination, rule.action) {
            (Destination::Any | Destination::Group(_) | Destination::Cidr(_), _) => {
                self.address_mismatch(rule).map_or(Ok(None), Err)
            }
            (named, Action::Allow) => self.allows(rule, named).map(Some),
            (named, Action::Deny) => self.denies(named).map(Some),
        }
    }

    fn address_mismatch(&self, rule: &Rule) -> Option<Mismatch> {
        match &rule.destination {
            Destination::Any | Destination::Domain(_) | Destination::Suffix { .. } => None,
            Destination::Group(group) => (*group != self.flow.group).then_some(Mismatch::Group),
            Destination::Cidr(net) if !net.contains(&self.flow.peer) => Some(Mismatch::Address),
            Destination::Cidr(net) => {
                let single = net.prefix_len() == net.max_prefix_len();
                let guarded = matches!(self.flow.group, Group::Host | Group::Metadata);
                (rule.action == Action::Allow && guarded && !single).then_some(Mismatch::Guarded)
            }
        }
    }

    fn allows(&self, rule: &Rule, named: &Destination) -> Result<DomainName, Mismatch> {
        let names = self.flow.facts.names;
        let matching = |alias: bool| names.iter().rfind(|pin| pin.alias == alias && covers(named, &pin.name));
        match matching(false) {
            Some(_) if self.counting == Counting::Inside && !rule.allow_private => Err(Mismatch::Inside),
            Some(pinned) => Ok(pinned.name.clone()),
            None if names.is_empty() => Err(Mismatch::NeverNamed),
            None if matching(true).is_some() => Err(Mismatch::Alias),
            None => Err(Mismatch::Name),
        }
    }

    /// A deny rule closes an address when every name there is denied, by it and those before it.
    fn denies(&mut self, named: &Destination) -> Result<DomainName, Mismatch> {
        let names = self.flow.facts.names;
        let last = self.undenied.iter().rfind(|pin| covers(named, &pin.name)).map(|pin| pin.name.clone());
        self.undenied.retain(|pin| !covers(named, &pin.name));
        let alias = names.iter().rfind(|pin| pin.alias && covers(named, &pin.name));
        match (last, alias) {
            (Some(name), _) if self.undenied.is_empty() => Ok(name),
            // An alias belongs to one of the names that led to it, and only with a single name it is known to which.
            (_, Some(alias)) if self.asked_for <= 1 => Ok(alias.name.clone()),
            (Some(_), _) | (None, Some(_)) => Err(Mismatch::OtherNames),
            (None, None) if names.is_empty() => Err(Mismatch::NeverNamed),
            (None, None) => Err(Mismatch::Name),
        }
    }

    /// Whether the rule is about flows of this kind, wherever they go.
    fn fits(&self, rule: &Rule) -> bool {
        let side = rule.direction == self.flow.facts.direction || rule.direction == Direction::Any;
        side && service_mismatch(rule, self.service).is_none()
    }

    /// Whether what an allowed flow shows could change its verdict.
    fn waits(&self, found: &Match) -> bool {
        let first = |wanted: &dyn Fn(&Rule) -> bool| {
            self.rules.rules.iter().position(|rule| self.fits(rule) && wanted(rule)).unwrap_or(usize::MAX)
        };
        let by_address = first(&|rule| !is_name(rule) && self.address_mismatch(rule).is_none());
        let denied_name = first(&|rule| is_name(rule) && rule.action == Action::Deny);
        let decided = found.position.unwrap_or(usize::MAX);
        if !self.flow.shows() {
            return false;
        }
        if found.name.is_some() && self.rules.is_strict() {
            let without_name =
                if by_address == usize::MAX { RuleRef::Default(Direction::Egress) } else { rule_at(by_address) };
            return self.rules.action(without_name) == Action::Deny || denied_name < by_address;
        }
        denied_name < decided
    }
}

fn service_mismatch(rule: &Rule, service: Service) -> Option<Mismatch> {
    if !rule.protocols.matches(service.protocol) {
        return Some(Mismatch::Protocol);
    }
    let holds = |port: u16| rule.ports.iter().any(|range| (range.start..=range.end).contains(&port));
    (!rule.ports.is_empty() && !service.port.is_some_and(holds)).then_some(Mismatch::Port)
}

fn is_name(rule: &Rule) -> bool {
    matches!(rule.destination, Destination::Domain(_) | Destination::Suffix { .. })
}

fn covers(named: &Destination, name: &DomainName) -> bool {
    match named {
        Destination::Domain(exact) => exact == name,
        Destination::Suffix { name: suffix, apex } => {
            let front = name.as_str().strip_suffix(suffix.as_str());
            front.is_some_and(|front| if front.is_empty() { *apex } else { front.ends_with('.') })
        }
        Destination::Any | Destination::Group(_) | Destination::Cidr(_) => false,
    }
}

fn rule_at(position: usize) -> RuleRef {
    RuleRef::Rule(u32::try_from(position).unwrap_or(u32::MAX))
}

fn step(rules: &RuleSet, rule: RuleRef, outcome: StepOutcome, name: Option<DomainName>) -> Step {
    Step { layer: rules.layer, rule, text: rules.rule_text(rule).text, outcome, name }
}

fn built_in_step(rules: &RuleSet, built_in: BuiltIn) -> Step {
    step(rules, RuleRef::BuiltIn(built_in), StepOutcome::Decides(Action::Deny), None)
}
