use std::net::IpAddr;

use cofferdam_model::{Direction, DomainName, Group, Protocol};

use crate::policy::{Admission, Ruling};
use crate::{BuiltIn, Policy};

/// A name that this sandbox's own DNS answers bound to an address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PinnedName {
    pub name: DomainName,
    /// The name stood in the CNAME chain of an answer and was not asked for itself. Only deny rules look at it.
    pub alias: bool,
}

/// What is known about a flow when its verdict is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// [`Direction::Egress`] or [`Direction::Ingress`]; a flow that claims [`Direction::Any`] is denied.
    pub direction: Direction,
    pub protocol: Protocol,
    /// Egress: the packet's destination. Ingress: the connecting peer.
    pub peer: IpAddr,
    /// The service's port (egress: destination, ingress: guest port). `None` for ICMP.
    pub port: Option<u16>,
    /// The names pinned to `peer`.
    pub names: &'a [PinnedName],
}

/// The rule behind a verdict, or the default that applied when no rule matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleRef {
    /// Position in [`PolicyConfig::rules`](cofferdam_model::PolicyConfig::rules) of its layer, counted from 0.
    Rule(u32),
    /// The default of that direction.
    Default(Direction),
    /// What holds beside the rules.
    BuiltIn(BuiltIn),
}

/// Some layers of a policy, by their places from the outermost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LayerSet(u8);

impl LayerSet {
    pub(crate) fn with(self, layer: usize) -> LayerSet {
        LayerSet(self.0 | LayerSet::bit(layer))
    }

    fn has(self, layer: usize) -> bool {
        self.0 & LayerSet::bit(layer) != 0
    }

    /// Nothing for a layer that no policy has.
    fn bit(layer: usize) -> u8 {
        u32::try_from(layer).ok().and_then(|layer| 1_u8.checked_shl(layer)).unwrap_or(0)
    }
}

/// Why a verdict is what it is: for an allowed flow or name the rule of the innermost layer, for a denied one that of the
/// outermost layer that denies. [`Policy::rule_text`] says whose it is. Cloning one allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    pub rule: RuleRef,
    /// The group of the peer's address; [`Group::Host`] for a name verdict, since the gateway answers names.
    pub group: Group,
    /// The name that decided, when a domain rule did.
    pub name: Option<DomainName>,
    /// The place of the layer among those of the policy.
    pub(crate) layer: u8,
    /// Where a name was allowed by a rule that lets it lead to addresses that are not public.
    pub(crate) inside: LayerSet,
}

impl Reason {
    pub(crate) fn new(layer: usize, group: Group, ruling: &Ruling<'_>) -> Reason {
        Reason {
            rule: ruling.rule,
            group,
            name: ruling.name.cloned(),
            layer: u8::try_from(layer).unwrap_or(u8::MAX),
            inside: LayerSet::default(),
        }
    }

    /// Whether the rule by which the layer at this place allowed a name says `allow_private`.
    #[must_use]
    pub fn leads_inside(&self, layer: usize) -> bool {
        self.inside.has(layer)
    }
}

/// Proof that the policy allows one flow. Only [`Policy::check`](crate::Policy::check) makes one and dialing consumes it, so a
/// dial that skipped the policy does not compile. Neither `Clone` nor `Default`, on purpose.
#[derive(Debug)]
pub struct Permit {
    pub(crate) protocol: Protocol,
    pub(crate) peer: IpAddr,
    pub(crate) port: Option<u16>,
    pub(crate) reason: Reason,
}

impl Permit {
    /// The protocol that was asked for.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The address that was asked for, as the caller gave it.
    #[must_use]
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// The port that was asked for.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Which rule allowed it.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        &self.reason
    }
}

/// What is left to decide about a flow that was permitted: its first flight has to be looked at, and every request after
/// it. Goes along with a [`Permit`] in [`Verdict::Pending`].
#[derive(Debug, Clone)]
pub struct Pending {
    pub(crate) protocol: Protocol,
    pub(crate) peer: IpAddr,
    pub(crate) port: Option<u16>,
    pub(crate) reason: Reason,
    /// By what each layer admitted the flow.
    pub(crate) admissions: [Option<Admission>; Policy::MAX_LAYERS],
}

impl Pending {
    /// Which rule permitted the flow so far.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        &self.reason
    }
}

/// A name that a flow shows.
#[derive(Debug, Clone, Copy)]
pub struct ShownName<'a> {
    pub name: &'a DomainName,
    /// It was asked for itself and is pinned to the flow's address, or was when this flow showed it before.
    pub pinned: bool,
}

/// What a flow shows, as far as rules look at it.
#[derive(Debug, Clone, Copy)]
pub enum Flight<'a> {
    /// A protocol that can show names: those it shows, or none.
    Names(&'a [ShownName<'a>]),
    /// Such a protocol, and what it shows is in doubt.
    Unreadable,
    /// A protocol without names on the wire.
    Other,
}

/// The policy's answer about what a flow shows.
#[derive(Debug)]
pub enum FlightVerdict {
    Allow(Reason),
    Deny(Denial),
}

impl FlightVerdict {
    /// Why, whichever way it went.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        match self {
            FlightVerdict::Allow(reason) => reason,
            FlightVerdict::Deny(denial) => denial.reason(),
        }
    }

    /// Whether the flow may go on.
    #[must_use]
    pub fn is_allow(&self) -> bool {
        matches!(self, FlightVerdict::Allow(_))
    }
}

/// The policy's refusal of one flow.
#[derive(Debug)]
pub struct Denial {
    pub(crate) reason: Reason,
}

impl Denial {
    /// Which rule denied it.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        &self.reason
    }
}

/// The policy's answer about one flow.
#[derive(Debug)]
pub enum Verdict {
    Allow(Permit),
    /// It may be opened, and nothing of the guest may go out on it before [`Policy::check_flight`](crate::Policy::check_flight)
    /// has allowed what it shows.
    Pending(Permit, Pending),
    Deny(Denial),
}

impl Verdict {
    /// Why, whichever way it went.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        match self {
            Verdict::Allow(permit) | Verdict::Pending(permit, _) => permit.reason(),
            Verdict::Deny(denial) => denial.reason(),
        }
    }

    /// Whether the flow may be opened, now or with a first flight that is yet to come.
    #[must_use]
    pub fn is_allow(&self) -> bool {
        matches!(self, Verdict::Allow(_) | Verdict::Pending(..))
    }
}

/// The policy's answer about resolving one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameVerdict {
    Allow(Reason),
    Deny(Reason),
}

impl NameVerdict {
    /// Why, whichever way it went.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        match self {
            NameVerdict::Allow(reason) | NameVerdict::Deny(reason) => reason,
        }
    }

    /// Whether the name may be asked for.
    #[must_use]
    pub fn is_allow(&self) -> bool {
        matches!(self, NameVerdict::Allow(_))
    }
}
