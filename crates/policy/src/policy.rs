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
//! Before the rules of egress come the ways around the gateway's resolver ([`BuiltIn`](crate::BuiltIn)), and while `deny_doh` is on, a
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
//!
//! Under rebinding protection, at an address that is not public and that no explicit rule lets into answers, allow rules for
//! names count only when they say `allow_private`.
//!
//! A policy has one or several *layers*: an operator's floor, the ceiling of a session, a run's own rules. Each has its own
//! order of rules, defaults, strictness and `deny_doh`, and is asked as if it were alone; a flow, a flight, a name passes only
//! when every layer says so, and the refusal is that of the outermost layer that refuses. What does not depend on rules (the
//! group of the address, the ways around the resolver) is worked out once. See `docs/design/0004-narrowing.md`.

mod rule_set;

use std::sync::Arc;

use cofferdam_model::{
    Action, Classifier, Direction, DomainName, Group, Layer, NetworkConfig, PolicyConfig, PolicyLayer, PublishedPort,
    Rule, RuleText,
};

use crate::builder::PolicyBuilder;
use crate::encrypted_dns::KnownResolvers;
use crate::facts::LayerSet;
use crate::policy::rule_set::Admitted;
use crate::table::ports::{Service, ServiceClass};
use crate::weigh::{LayerScales, Scales};
use crate::{
    Denial, Facts, Flight, FlightVerdict, NameVerdict, Pending, Permit, Reason, RuleRef, Verdict, Warning, unreachable,
    warnings,
};

pub use rule_set::counts_for_rebinding;
pub(crate) use rule_set::{Admission, Flow, RuleSet, Ruling};

/// A compiled policy.
#[derive(Debug)]
pub struct Policy {
    /// From the outermost to the innermost; never empty, at most [`Policy::MAX_LAYERS`].
    layers: Box<[RuleSet]>,
    classifier: Classifier,
    resolvers: Arc<KnownResolvers>,
    identity: Identity,
    /// Whatever a flow may show is looked at, also where it changes nothing.
    watches: bool,
}

/// A policy would have more layers than [`Policy::MAX_LAYERS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a policy has at most {max} layers, and this one would have {wanted}", max = Policy::MAX_LAYERS)]
pub struct TooManyLayers {
    pub wanted: usize,
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
    /// An operator's floor, a session's ceiling and a run's own rules. Every layer adds its own lookups to a verdict and its
    /// own admission to a pending one, so there is a bound.
    pub const MAX_LAYERS: usize = 3;

    /// Compiles a validated configuration into a policy of one layer. Total: there is no configuration that does not compile.
    #[must_use]
    pub fn compile(config: &PolicyConfig, classifier: Classifier) -> Policy {
        Policy::compile_layer(config, Layer::Run, classifier)
    }

    /// The same, for the rules of `layer`; see [`Policy::narrowed_by`].
    #[must_use]
    pub fn compile_layer(config: &PolicyConfig, layer: Layer, classifier: Classifier) -> Policy {
        Policy {
            layers: Box::new([RuleSet::new(config, layer)]),
            classifier,
            resolvers: Arc::new(KnownResolvers::new()),
            identity: Identity::default(),
            watches: false,
        }
    }

    /// The policy of a sandbox: that of every layer of its configuration.
    ///
    /// # Errors
    ///
    /// More than [`Policy::MAX_LAYERS`].
    pub fn of_network(network: &NetworkConfig, classifier: Classifier) -> Result<Policy, TooManyLayers> {
        let layers: Box<[RuleSet]> = network.layers().iter().map(RuleSet::of_layer).collect();
        Policy::of_layers(layers, classifier, Arc::new(KnownResolvers::new()))
    }

    /// A policy of one layer, as it is in a configuration.
    #[must_use]
    pub fn of_layer(layer: &PolicyLayer, classifier: Classifier) -> Policy {
        Policy {
            layers: Box::new([RuleSet::of_layer(layer)]),
            classifier,
            resolvers: Arc::new(KnownResolvers::new()),
            identity: Identity::default(),
            watches: false,
        }
    }

    /// What both this policy and `child` allow, as one policy that is asked once: the layers of this one around those of
    /// `child`. Nothing is compiled anew; addresses are what this policy's classifier takes them for.
    ///
    /// # Errors
    ///
    /// More than [`Policy::MAX_LAYERS`] together.
    pub fn narrowed_by(&self, child: &Policy) -> Result<Policy, TooManyLayers> {
        let layers: Box<[RuleSet]> = self.layers.iter().chain(&child.layers).cloned().collect();
        let narrowed = Policy::of_layers(layers, self.classifier.clone(), Arc::clone(&self.resolvers))?;
        Ok(Policy { watches: self.watches || child.watches, ..narrowed })
    }

    fn of_layers(
        layers: Box<[RuleSet]>,
        classifier: Classifier,
        resolvers: Arc<KnownResolvers>,
    ) -> Result<Policy, TooManyLayers> {
        if layers.len() > Policy::MAX_LAYERS {
            return Err(TooManyLayers { wanted: layers.len() });
        }
        Ok(Policy { layers, classifier, resolvers, identity: Identity::default(), watches: false })
    }

    /// The same rules and defaults, asked about addresses as `classifier` sees them. The rules are shared, not compiled anew.
    #[must_use]
    pub fn with_classifier(&self, classifier: Classifier) -> Policy {
        Policy {
            layers: self.layers.clone(),
            classifier,
            resolvers: Arc::clone(&self.resolvers),
            identity: Identity::default(),
            watches: self.watches,
        }
    }

    /// Whether known resolvers that speak HTTPS are open to wider rules (`deny_doh`) of the innermost layer. Without this they
    /// are denied under an allow-list: default egress deny, and no rule that lets every name resolve.
    #[must_use]
    pub fn with_doh(mut self, doh: Action) -> Policy {
        if let Some(innermost) = self.layers.last_mut() {
            innermost.doh = doh;
        }
        self
    }

    /// The same verdicts, and every flow that may show something is [`Verdict::Pending`] until it has: for who wants to know
    /// the names that programs go to, and not just those that rules are about.
    #[must_use]
    pub fn watching(mut self) -> Policy {
        self.watches = true;
        self
    }

    /// Whether it is one of [`Policy::watching`].
    #[must_use]
    pub fn is_watching(&self) -> bool {
        self.watches
    }

    /// Makes a policy by code.
    pub fn builder() -> PolicyBuilder {
        PolicyBuilder::default()
    }

    /// Whether the flow may pass. Allocates nothing.
    #[must_use]
    pub fn check(&self, facts: &Facts<'_>) -> Verdict {
        let Facts { protocol, peer, port, .. } = *facts;
        let flow = Flow { facts, peer: peer.to_canonical(), group: self.classifier.classify(peer) };
        let reason = |layer, ruling: &Ruling<'_>| Reason::new(layer, flow.group, ruling);
        if facts.direction == Direction::Egress
            && let Some(built_in) = self.resolvers.refusal(facts)
        {
            let refusal = Ruling { rule: RuleRef::BuiltIn(built_in), action: Action::Deny, name: None };
            return Verdict::Deny(Denial { reason: reason(0, &refusal) });
        }
        let mut rulings: [Option<Ruling<'_>>; Policy::MAX_LAYERS] = [None; Policy::MAX_LAYERS];
        let mut is_pending = false;
        for (at, (layer, slot)) in self.layers.iter().zip(&mut rulings).enumerate() {
            let (ruling, depends_on_flight) = layer.check(&flow, &self.resolvers);
            if ruling.action == Action::Deny {
                return Verdict::Deny(Denial { reason: reason(at, &ruling) });
            }
            is_pending |= depends_on_flight || self.watches && flow.shows();
            *slot = Some(ruling);
        }
        // There always is a layer; without one nothing would have allowed the flow.
        let innermost = self.layers.len().checked_sub(1);
        let Some((at, ruling)) = innermost.and_then(|at| Some((at, (*rulings.get(at)?)?))) else {
            return Verdict::Deny(Denial { reason: reason(0, &Ruling::NOBODY) });
        };
        let reason = reason(at, &ruling);
        if !is_pending {
            return Verdict::Allow(Permit { protocol, peer, port, reason });
        }
        let admissions = rulings.map(|ruling| ruling.map(|ruling| ruling.to_admission()));
        let pending = Pending { protocol, peer, port, reason: reason.clone(), admissions };
        Verdict::Pending(Permit { protocol, peer, port, reason }, pending)
    }

    /// Whether a flow that shows this may go on. Allocates nothing.
    #[must_use]
    pub fn check_flight(&self, pending: &Pending, flight: &Flight<'_>) -> FlightVerdict {
        let peer = pending.peer.to_canonical();
        let group = self.classifier.classify(peer);
        let service = Service { protocol: pending.protocol, port: pending.port };
        let mut verdict = FlightVerdict::Deny(Denial { reason: Reason::new(0, group, &Ruling::NOBODY) });
        for (at, layer) in self.layers.iter().enumerate() {
            let by = pending.admissions.get(at).and_then(Option::as_ref);
            let ruling = layer.check_flight(&Admitted { peer, group, service, by }, flight);
            let reason = Reason::new(at, group, &ruling);
            match ruling.action {
                Action::Allow => verdict = FlightVerdict::Allow(reason),
                Action::Deny => return FlightVerdict::Deny(Denial { reason }),
            }
        }
        verdict
    }

    /// Whether `name` may be asked for, by a query that came over `transport`: the protocol and port it used towards the
    /// gateway.
    ///
    /// Domain rules match the name whatever their protocols and ports; `any` and group `host` rules match the transport;
    /// networks, addresses and other groups never match a name.
    #[must_use]
    pub fn check_name(&self, name: &DomainName, transport: &Facts<'_>) -> NameVerdict {
        let service = Service { protocol: transport.protocol, port: transport.port };
        let mut verdict = NameVerdict::Deny(Reason::new(0, Group::Host, &Ruling::NOBODY));
        let mut inside = LayerSet::default();
        for (at, layer) in self.layers.iter().enumerate() {
            let ruling = layer.check_name(name, service, &self.resolvers);
            if layer.allows_private(ruling.rule) {
                inside = inside.with(at);
            }
            let reason = Reason { inside, ..Reason::new(at, Group::Host, &ruling) };
            match ruling.action {
                Action::Allow => verdict = NameVerdict::Allow(reason),
                Action::Deny => return NameVerdict::Deny(reason),
            }
        }
        verdict
    }

    /// What this policy takes addresses for.
    #[must_use]
    pub fn classifier(&self) -> &Classifier {
        &self.classifier
    }

    /// Whose layers there are, from the outermost.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = Layer> {
        self.layers.iter().map(|rules| rules.layer)
    }

    /// The rules of the innermost layer in order, as they were compiled.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        self.layers.last().map_or(&[], |layer| &layer.rules)
    }

    /// The rule or default behind a verdict as text, for events and messages; with several layers also whose it is.
    #[must_use]
    pub fn rule_text(&self, reason: &Reason) -> RuleText {
        let Some(rules) = self.layers.get(usize::from(reason.layer)) else { return RuleText::default() };
        let belongs = match reason.rule {
            RuleRef::Rule(_) | RuleRef::Default(_) => true,
            RuleRef::BuiltIn(built_in) => built_in.is_configured(),
        };
        let layer = (belongs && self.layers.len() > 1).then_some(rules.layer);
        RuleText { layer, ..rules.rule_text(reason.rule) }
    }

    /// Rules that have no effect or contradict.
    #[must_use]
    pub fn warnings(config: &PolicyConfig) -> Vec<Warning> {
        warnings::find(config)
    }

    /// The published ports that no peer can reach, whatever it does: the rules for ingress let nobody in.
    #[must_use]
    pub fn unreachable_ports(network: &NetworkConfig) -> Vec<PublishedPort> {
        unreachable::find(network)
    }

    /// Whether a rule for ingress names a domain, so that the names of a peer count.
    #[must_use]
    pub fn names_peers(&self) -> bool {
        self.layers.iter().any(RuleSet::names_peers)
    }

    /// Whether any rule names a domain.
    #[must_use]
    pub fn uses_names(&self) -> bool {
        self.layers.iter().any(RuleSet::uses_names)
    }

    pub(crate) fn rule_sets(&self) -> &[RuleSet] {
        &self.layers
    }

    pub(crate) fn resolvers(&self) -> &KnownResolvers {
        &self.resolvers
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The class of an egress flow: domain rules treat all flows of one class alike. `None` when no domain rule looks at them.
    pub(crate) fn class(&self, service: Service) -> Option<ServiceClass> {
        let named = self.layers.iter().filter(|layer| !layer.egress.names.is_empty());
        named.map(|layer| layer.egress.names.class(service)).reduce(ServiceClass::and)
    }

    /// Scales for names of the peer of an egress flow.
    pub(crate) fn scales(&self, service: Service) -> LayerScales<'_> {
        LayerScales::new(self.layers.iter().map(|layer| Scales::new(&layer.egress.names, service)))
    }
}
