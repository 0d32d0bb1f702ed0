//! A configuration as it is written, before anything in it was looked at.

use std::fmt;

use cofferdam_model::{Action, DenyWith, Direction, Layer, NetworkMode, PortProtocol};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{self, IgnoredAny, MapAccess, Visitor, value::MapAccessDeserializer};

/// A configuration file: `[network]`, or the wire form at the top.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used: which form a document has is decided before it is read")]
#[schemars(rename = "Configuration")]
pub(super) enum Document {
    File(Box<RawFile>),
    Wire(Box<RawNetwork>),
}

/// A file with the network in a table of its own.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "File")]
pub(super) struct RawFile {
    pub(super) network: RawNetwork,
}

/// The network of a sandbox.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Network")]
pub(super) struct RawNetwork {
    /// `false`: no interface at all.
    pub(super) enabled: Option<bool>,
    /// A preset or profiles separated by commas; rules go before its rules.
    pub(super) preset: Option<String>,
    /// What happens to egress that no rule matches.
    pub(super) default_egress: Option<Action>,
    /// What happens to ingress that no rule matches.
    pub(super) default_ingress: Option<Action>,
    /// Rules in order, in the short grammar or as objects.
    pub(super) rules: Option<Vec<RawRuleEntry>>,
    /// Names that are denied before any rule is tried.
    pub(super) deny_domains: Option<Vec<String>>,
    /// Suffixes that are denied before any rule is tried; with a leading dot only the names below.
    pub(super) deny_domain_suffixes: Option<Vec<String>>,
    /// The whole policy, in place of `preset`, `default_egress`, `default_ingress` and `rules`.
    pub(super) policy: Option<RawPolicy>,
    /// The policy in a word, in place of `preset`, `policy`, `rules` and defaults.
    pub(super) network_mode: Option<NetworkMode>,
    /// With mode `allowlist`: networks, addresses, names, patterns, groups and named lists that may be reached.
    pub(super) network_allowlist: Option<Vec<String>>,
    /// With modes `open` and `allowlist`: what may not be reached, tried first.
    pub(super) network_denylist: Option<Vec<String>>,
    /// Policies around this one, from the outermost: a flow needs a permit from each.
    pub(super) ceilings: Option<Vec<RawCeiling>>,
    /// What a guest is told when a flow is denied.
    pub(super) deny_with: Option<DenyWith>,
    pub(super) dns: Option<RawDns>,
    pub(super) interface: Option<RawInterface>,
    /// TCP connections at once; 0 for no bound.
    pub(super) max_connections: Option<u32>,
    /// UDP mappings at once; 0 for no bound.
    pub(super) max_udp_connections: Option<u32>,
    /// TCP connections to published ports at once; 0 for no bound.
    pub(super) max_inbound_connections: Option<u32>,
    /// Ports of the host that lead into the sandbox.
    pub(super) ports: Option<Vec<RawPublished>>,
    /// Unix sockets of the host that programs inside may connect to.
    pub(super) host_sockets: Option<Vec<RawHostSocketEntry>>,
    /// `false`: what a name allows need not show that name in its first bytes.
    pub(super) strict: Option<bool>,
    /// How long the gateway waits for a remote to accept a connection.
    pub(super) connect_timeout_ms: Option<u64>,
    /// How fast all flows together may be.
    pub(super) rate_limiter: Option<RawRateLimits>,
    /// How much flows may carry in all.
    pub(super) budgets: Option<Vec<RawBudget>>,

    #[schemars(skip)]
    pub(super) tls: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(super) secrets: Option<IgnoredAny>,
    #[schemars(skip)]
    pub(super) trust_host_cas: Option<IgnoredAny>,
}

/// Fields that a struct knows and that are not supported yet, by struct: an error does not list them as expected.
pub(super) const UNSUPPORTED: [&[&str]; 2] = [&["tls", "secrets", "trust_host_cas"], &["mac"]];

impl RawNetwork {
    /// Fields of the wire form that are known and not supported yet, with whether they are there.
    pub(super) fn unsupported(&self) -> impl Iterator<Item = &'static str> {
        let fields = [
            ("tls", self.tls.is_some()),
            ("secrets", self.secrets.is_some()),
            ("trust_host_cas", self.trust_host_cas.is_some()),
            ("interface.mac", self.interface.as_ref().is_some_and(|interface| interface.mac.is_some())),
        ];
        fields.into_iter().filter(|(_, there)| *there).map(|(name, _)| name)
    }
}

/// Rate limits by the direction of the bytes, whoever has opened the flow.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RateLimits")]
pub(super) struct RawRateLimits {
    /// Out of the sandbox.
    pub(super) egress: Option<RawRateLimiter>,
    /// Into the sandbox.
    pub(super) ingress: Option<RawRateLimiter>,
}

/// The rate limits of one direction.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "RateLimiter")]
pub(super) struct RawRateLimiter {
    /// Bytes of payload.
    pub(super) bandwidth: Option<RawBucket>,
    /// Datagrams of UDP, messages of ICMP, attempts to connect.
    pub(super) ops: Option<RawBucket>,
}

/// A token bucket.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "TokenBucket")]
pub(super) struct RawBucket {
    /// Bytes, or operations, that may pass at once, and that come back within `refill_time_ms`.
    pub(super) size: u64,
    /// In milliseconds.
    pub(super) refill_time_ms: u64,
    /// What may pass beyond that once.
    #[serde(default)]
    pub(super) one_time_burst: u64,
}

/// Bytes that flows may carry in all.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Budget")]
pub(super) struct RawBudget {
    pub(super) bytes: u64,
    /// Which bytes are counted; both ways without it.
    pub(super) direction: Option<Direction>,
    /// Flows to any of these; every flow of the run without it.
    #[serde(default)]
    pub(super) destinations: Vec<RawDestination>,
}

/// Defaults and ordered rules. A missing default is deny for egress and allow for ingress.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Policy")]
pub(super) struct RawPolicy {
    pub(super) default_egress: Option<Action>,
    pub(super) default_ingress: Option<Action>,
    #[serde(default)]
    pub(super) rules: Vec<RawRuleEntry>,
}

/// A policy that holds beside another one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Ceiling")]
pub(super) struct RawCeiling {
    /// Whose it is.
    pub(super) layer: Layer,
    pub(super) policy: RawPolicy,
    /// As beside the policy itself; absent: `true`.
    pub(super) strict: Option<bool>,
    /// As in `dns`; absent: under an allow-list.
    pub(super) deny_doh: Option<bool>,
    /// As in `dns`; absent: `true`.
    pub(super) rebind_protection: Option<bool>,
}

/// A rule as text or as an object.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "RuleEntry")]
pub(super) enum RawRuleEntry {
    /// One or more rules in the short grammar.
    Text(String),
    Object(Box<RawRule>),
}

/// A rule as an object.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Rule")]
pub(super) struct RawRule {
    pub(super) action: Action,
    pub(super) direction: Option<Direction>,
    pub(super) destination: RawDestination,
    /// `tcp`, `udp`, `icmpv4`, `icmpv6`; empty for any.
    #[serde(default)]
    pub(super) protocols: Vec<RawProtocol>,
    /// Empty for any.
    #[serde(default)]
    pub(super) ports: Vec<RawPort>,
    /// A rule that allows a name: on ports 80 and 443 protocols that show no name may pass.
    #[serde(default)]
    pub(super) opaque: bool,
    /// A rule that allows a name: it may lead to addresses that are not public, though never to the host, cloud metadata or
    /// loopback.
    #[serde(default)]
    pub(super) allow_private: bool,
}

/// A protocol's name.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "RuleProtocol")]
pub(super) enum RawProtocol {
    Tcp,
    Udp,
    IcmpV4,
    IcmpV6,
    /// Both families.
    Icmp,
}

/// A destination as a target of the short grammar or as an object with one field.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Destination")]
pub(super) enum RawDestination {
    Text(String),
    Object(RawDestinationObject),
}

/// A destination by its kind.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "DestinationObject")]
pub(super) enum RawDestinationObject {
    /// An address or a network.
    Cidr(String),
    /// Exactly this name.
    Domain(String),
    /// The name and all below it; with a leading dot only the names below.
    DomainSuffix(String),
    /// A group's word.
    Group(String),
}

/// A port, a range as an object, or ranges as text of the short grammar.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "RulePort")]
pub(super) enum RawPort {
    Number(u64),
    Text(String),
    Range(RawPortRange),
}

/// Ports from `start` to `end`, both included.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PortRange")]
pub(super) struct RawPortRange {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// A published port as text, `[BIND:]HOST:GUEST[/tcp|/udp]`, or as an object.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "PublishedEntry")]
pub(super) enum RawPublished {
    Text(String),
    Object(RawPublishedPort),
}

/// A port of the host that leads into the sandbox.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PublishedPort")]
pub(super) struct RawPublishedPort {
    /// 0 for one that the system picks.
    pub(super) host_port: u64,
    /// The port that the service in the sandbox listens on.
    pub(super) guest_port: u64,
    #[serde(default)]
    pub(super) protocol: PortProtocol,
    /// An address of the host; absent for 127.0.0.1.
    pub(super) host_bind: Option<String>,
}

/// A socket of the host as text, `HOST:GUEST`, or as an object.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "HostSocketEntry")]
pub(super) enum RawHostSocketEntry {
    Text(String),
    Object(RawHostSocket),
}

/// A Unix stream socket of the host, and where programs inside find it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "HostSocket")]
pub(super) struct RawHostSocket {
    /// An absolute path on the host.
    pub(super) host: String,
    /// An absolute path inside.
    pub(super) guest: String,
}

/// How names are resolved.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Dns")]
pub(super) struct RawDns {
    pub(super) rebind_protection: Option<bool>,
    /// `IP`, `IP:PORT`, `[IPv6]:PORT`, a name in their place, `tls://HOST` or `https://HOST/PATH`, in order; none for those of
    /// the host.
    pub(super) nameservers: Option<Vec<String>>,
    pub(super) query_timeout_ms: Option<u64>,
    /// How long a name stays bound to an address at least, however short its time to live; 1000 to 86400000.
    pub(super) pin_floor_ms: Option<u64>,
    /// Refuse well-known resolvers that speak HTTPS; absent: under an allow-list.
    pub(super) deny_doh: Option<bool>,
}

/// The guest's interface.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Interface")]
pub(super) struct RawInterface {
    pub(super) mtu: Option<u32>,
    pub(super) ipv4_pool: Option<String>,
    pub(super) ipv6_pool: Option<String>,
    /// Absent: on when the host has an IPv6 default route.
    pub(super) ipv6: Option<bool>,
    pub(super) ipv4_address: Option<String>,
    pub(super) ipv6_address: Option<String>,
    #[schemars(skip)]
    pub(super) mac: Option<IgnoredAny>,
}

// The enums below are read by hand: an untagged enum would swallow the error of the variant that was meant, and with it the
// name of the misspelt field.

impl<'de> Deserialize<'de> for RawRuleEntry {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<RawRuleEntry, D::Error> {
        struct EntryVisitor;
        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = RawRuleEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rule as text or as an object")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawRuleEntry, E> {
                Ok(RawRuleEntry::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawRuleEntry, A::Error> {
                let rule = RawRule::deserialize(MapAccessDeserializer::new(map))?;
                Ok(RawRuleEntry::Object(Box::new(rule)))
            }
        }
        deserializer.deserialize_any(EntryVisitor)
    }
}

impl<'de> Deserialize<'de> for RawPublished {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<RawPublished, D::Error> {
        struct PublishedVisitor;
        impl<'de> Visitor<'de> for PublishedVisitor {
            type Value = RawPublished;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port as text, `[BIND:]HOST:GUEST[/tcp|/udp]`, or as an object")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawPublished, E> {
                Ok(RawPublished::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawPublished, A::Error> {
                RawPublishedPort::deserialize(MapAccessDeserializer::new(map)).map(RawPublished::Object)
            }
        }
        deserializer.deserialize_any(PublishedVisitor)
    }
}

impl<'de> Deserialize<'de> for RawHostSocketEntry {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<RawHostSocketEntry, D::Error> {
        struct HostSocketVisitor;
        impl<'de> Visitor<'de> for HostSocketVisitor {
            type Value = RawHostSocketEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a host socket as text, `HOST:GUEST`, or as an object")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawHostSocketEntry, E> {
                Ok(RawHostSocketEntry::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawHostSocketEntry, A::Error> {
                RawHostSocket::deserialize(MapAccessDeserializer::new(map)).map(RawHostSocketEntry::Object)
            }
        }
        deserializer.deserialize_any(HostSocketVisitor)
    }
}

impl<'de> Deserialize<'de> for RawDestination {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<RawDestination, D::Error> {
        struct DestinationVisitor;
        impl<'de> Visitor<'de> for DestinationVisitor {
            type Value = RawDestination;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a target as text, or an object with `cidr`, `domain`, `domain_suffix` or `group`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawDestination, E> {
                Ok(RawDestination::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawDestination, A::Error> {
                const KINDS: [&str; 4] = ["cidr", "domain", "domain_suffix", "group"];
                let Some(kind) = map.next_key::<String>()? else {
                    return Err(de::Error::custom(
                        "empty destination; expected `cidr`, `domain`, `domain_suffix` or `group`",
                    ));
                };
                let object = match kind.as_str() {
                    "cidr" => RawDestinationObject::Cidr(map.next_value()?),
                    "domain" => RawDestinationObject::Domain(map.next_value()?),
                    "domain_suffix" => RawDestinationObject::DomainSuffix(map.next_value()?),
                    "group" => RawDestinationObject::Group(map.next_value()?),
                    other => return Err(de::Error::unknown_field(other, &KINDS)),
                };
                if let Some(second) = map.next_key::<String>()? {
                    let message = format!("a destination has one field; `{kind}` and `{second}` do not combine");
                    return Err(de::Error::custom(message));
                }
                Ok(RawDestination::Object(object))
            }
        }
        deserializer.deserialize_any(DestinationVisitor)
    }
}

impl<'de> Deserialize<'de> for RawPort {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<RawPort, D::Error> {
        struct PortVisitor;
        impl<'de> Visitor<'de> for PortVisitor {
            type Value = RawPort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port, a range `lo-hi` as text, or an object with `start` and `end`")
            }

            fn visit_u64<E: de::Error>(self, port: u64) -> Result<RawPort, E> {
                Ok(RawPort::Number(port))
            }

            fn visit_i64<E: de::Error>(self, port: i64) -> Result<RawPort, E> {
                u64::try_from(port)
                    .map(RawPort::Number)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(port), &self))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawPort, E> {
                Ok(RawPort::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawPort, A::Error> {
                RawPortRange::deserialize(MapAccessDeserializer::new(map)).map(RawPort::Range)
            }
        }
        deserializer.deserialize_any(PortVisitor)
    }
}
