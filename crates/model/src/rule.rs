use ipnet::IpNet;

use crate::{DomainName, Group};

/// What a rule does with a flow that it matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Allow,
    Deny,
}

/// Which way a flow goes: egress leaves the guest, ingress enters it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Egress,
    Ingress,
    Any,
}

/// The protocols that the gateway carries.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    IcmpV4,
    IcmpV6,
}

/// A set of protocols; the empty set stands for any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ProtocolSet(u8);

impl ProtocolSet {
    /// Any protocol.
    pub const ANY: ProtocolSet = ProtocolSet(0);

    /// This set and `protocol`.
    #[must_use]
    pub const fn with(self, protocol: Protocol) -> ProtocolSet {
        ProtocolSet(self.0 | 1 << protocol as u8)
    }

    /// Whether the set stands for any protocol.
    #[must_use]
    pub const fn is_any(self) -> bool {
        self.0 == 0
    }

    /// Whether a rule with this set matches `protocol`.
    #[must_use]
    pub const fn matches(self, protocol: Protocol) -> bool {
        self.0 == 0 || self.0 & (1 << protocol as u8) != 0
    }

    /// The protocols that were named, in order; nothing for any.
    pub fn iter(self) -> impl Iterator<Item = Protocol> {
        [Protocol::Tcp, Protocol::Udp, Protocol::IcmpV4, Protocol::IcmpV6]
            .into_iter()
            .filter(move |p| self.0 & (1 << *p as u8) != 0)
    }
}

/// Ports `start..=end`, both at least 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
pub struct PortRange {
    pub start: u16,
    pub end: u16,
}

/// What a rule says about the other end of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    Any,
    Group(Group),
    /// An address (full-length prefix) or a network.
    Cidr(IpNet),
    /// Exactly this name.
    Domain(DomainName),
    /// The name and every name below it; with `apex: false` only the names below it.
    Suffix {
        name: DomainName,
        apex: bool,
    },
}

/// One rule of a policy. First match wins, per direction.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    pub action: Action,
    pub direction: Direction,
    pub destination: Destination,
    pub protocols: ProtocolSet,
    /// Empty stands for any port, and for protocols without ports.
    pub ports: Vec<PortRange>,
    /// A rule that allows a name: on ports 80 and 443 the pin is enough for protocols that show no name.
    pub opaque: bool,
    /// A rule that allows a name: it may lead to addresses that are not public.
    pub allow_private: bool,
}

impl Rule {
    /// A rule for egress that says nothing but where to.
    #[must_use]
    pub fn egress(action: Action, destination: Destination) -> Rule {
        Rule {
            action,
            direction: Direction::Egress,
            destination,
            protocols: ProtocolSet::ANY,
            ports: Vec::new(),
            opaque: false,
            allow_private: false,
        }
    }
}

/// Whose rules a layer of a policy holds. A flow needs a permit from every layer.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// What the operator of the machine lets anybody do.
    Floor,
    /// What a session may do: the ceiling of its runs.
    Session,
    /// What a run may do by its own rules.
    Run,
}

impl Layer {
    /// The word for it in events and messages.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Layer::Floor => "floor",
            Layer::Session => "session",
            Layer::Run => "run",
        }
    }
}

/// Defaults and ordered rules: the whole of a policy, as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyConfig {
    pub default_egress: Action,
    pub default_ingress: Action,
    pub rules: Vec<Rule>,
    /// What only a name allows has to show that name.
    pub strict: bool,
}

impl Default for PolicyConfig {
    /// Nothing goes out; what is published may come in.
    fn default() -> PolicyConfig {
        PolicyConfig { default_egress: Action::Deny, default_ingress: Action::Allow, rules: Vec::new(), strict: true }
    }
}
