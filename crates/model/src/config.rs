use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{Destination, Direction, DomainName, HostSocket, Layer, PolicyConfig, PublishedPort};

/// What a guest is told when a flow is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DenyWith {
    /// TCP gets RST, everything else ICMP administratively prohibited.
    #[default]
    Reset,
    /// Everything gets ICMP administratively prohibited.
    Icmp,
    /// Nothing is answered.
    Drop,
}

/// A network in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    /// No interface at all.
    #[default]
    Blocked,
    /// Everything but a denylist.
    Open,
    /// Nothing but DNS and an allowlist.
    Allowlist,
}

impl NetworkMode {
    /// The mode as it is written.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            NetworkMode::Blocked => "blocked",
            NetworkMode::Open => "open",
            NetworkMode::Allowlist => "allowlist",
        }
    }
}

/// A resolver as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nameserver {
    pub host: NameserverHost,
    pub port: u16,
    pub over: NameserverOver,
}

/// Where a resolver is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameserverHost {
    Address(IpAddr),
    /// Looked up when a sandbox starts, with the host's own resolver.
    Name(DomainName),
}

/// How a resolver is asked. `name` is what its certificate has to be for; without one that is the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameserverOver {
    /// UDP, and TCP where that does not do.
    Plain,
    Tls {
        name: Option<DomainName>,
    },
    Https {
        name: Option<DomainName>,
        path: String,
    },
}

impl From<SocketAddr> for Nameserver {
    fn from(address: SocketAddr) -> Nameserver {
        let host = NameserverHost::Address(address.ip());
        Nameserver { host, port: address.port(), over: NameserverOver::Plain }
    }
}

/// How names are resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// Upstream resolvers in order; empty means those of the host.
    pub nameservers: Vec<Nameserver>,
    /// Total time for one query.
    pub query_timeout: Duration,
    /// How long a name stays bound to an address at least, however short its time to live.
    pub pin_floor: Duration,
    /// Answers with addresses that are not public are not delivered.
    pub rebind_protection: bool,
    /// Whether known resolvers that speak HTTPS are refused; `None`: under an allow-list.
    pub deny_doh: Option<bool>,
}

/// Link and addresses of the guest's interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceConfig {
    pub mtu: u16,
    pub ipv4_pool: Ipv4Net,
    pub ipv6_pool: Ipv6Net,
    /// `None`: on exactly when the host has an IPv6 default route.
    pub ipv6: Option<bool>,
    /// Explicit guest addresses in place of one from the pools.
    pub ipv4_address: Option<Ipv4Addr>,
    pub ipv6_address: Option<Ipv6Addr>,
}

/// Bounds of the gateway's tables, per sandbox; 0 stands for unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitsConfig {
    /// TCP flows at once (default 4,096).
    pub max_connections: u32,
    /// UDP mappings at once (default 1,024).
    pub max_udp_connections: u32,
    /// TCP connections to published ports at once (default 1,024).
    pub max_inbound_connections: u32,
    /// How long a dial may take (default 75 s).
    pub connect_timeout: Duration,
    /// How fast all flows together may be; nothing by default.
    pub rates: RateLimits,
    /// How much flows may carry in all; none by default.
    pub budgets: Vec<BudgetConfig>,
}

/// Rate limits by the direction of the bytes, whoever has opened the flow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RateLimits {
    /// Out of the sandbox.
    pub egress: RateLimiter,
    /// Into the sandbox.
    pub ingress: RateLimiter,
}

/// The rate limits of one direction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RateLimiter {
    /// Bytes of payload.
    pub bandwidth: Option<BucketConfig>,
    /// Datagrams of UDP, messages of ICMP, and connections of TCP.
    pub ops: Option<BucketConfig>,
}

/// A token bucket: `size` tokens, which come back within `refill_time`, and `one_time_burst` more once. Neither of the first
/// two is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketConfig {
    pub size: u64,
    pub refill_time: Duration,
    pub one_time_burst: u64,
}

/// Bytes that flows may carry in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetConfig {
    pub bytes: u64,
    /// Which bytes are counted.
    pub direction: Direction,
    /// Flows to any of these; empty stands for every flow of the run.
    pub destinations: Vec<Destination>,
}

/// A policy that holds beside others, with what belongs to it elsewhere in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyLayer {
    pub layer: Layer,
    pub policy: PolicyConfig,
    /// As [`DnsConfig::deny_doh`].
    pub deny_doh: Option<bool>,
    /// As [`DnsConfig::rebind_protection`].
    pub rebind_protection: bool,
}

/// Everything a sandbox's network is made from, validated and resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// `false`: no interface at all (preset `none`).
    pub enabled: bool,
    /// Policies around `policy`, from the outermost; a flow needs a permit from each.
    pub ceilings: Vec<PolicyLayer>,
    pub policy: PolicyConfig,
    pub deny_with: DenyWith,
    pub dns: DnsConfig,
    pub interface: InterfaceConfig,
    pub limits: LimitsConfig,
    /// Ports of the host that lead into the sandbox; no two of them overlap.
    pub ports: Vec<PublishedPort>,
    /// Unix sockets of the host that programs inside may connect to; no two have the same place inside.
    pub host_sockets: Vec<HostSocket>,
}

impl NetworkConfig {
    /// Every policy that holds, from the outermost; the last one is the run's own.
    #[must_use]
    pub fn layers(&self) -> Vec<PolicyLayer> {
        let own = PolicyLayer {
            layer: Layer::Run,
            policy: self.policy.clone(),
            deny_doh: self.dns.deny_doh,
            rebind_protection: self.dns.rebind_protection,
        };
        self.ceilings.iter().cloned().chain([own]).collect()
    }
}
