//! Flags, files and the wire form: every door through which a network configuration comes in.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use cofferdam_model::{Action, DenyWith, DnsConfig, InterfaceConfig, LimitsConfig, NetworkConfig, PolicyConfig};
use ipnet::{Ipv4Net, Ipv6Net};

/// One flag of the command line that shapes the network. The order of the items is that of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlagItem {
    /// `--net PROFILE,…`
    Net(String),
    /// `--no-net`
    NoNet,
    /// `--net-rule RULES`
    NetRule(String),
    /// `--allow TARGET[:PORTS]`
    Allow(String),
    /// `--deny TARGET[:PORTS]`
    Deny(String),
    /// `--net-default-egress`; `--net-default` is this and the next.
    DefaultEgress(Action),
    /// `--net-default-ingress`
    DefaultIngress(Action),
    /// `--net-conf FILE`, already read: its name tells the format (`.toml`, `.json`, `.yaml`, `.yml`).
    Conf { name: String, text: String },
    /// `--deny-with`
    DenyWith(DenyWith),
    /// `--dns-nameserver`
    Nameserver(String),
    /// `--dns-query-timeout-ms`
    QueryTimeoutMs(u64),
    /// `--max-connections`
    MaxConnections(u32),
    /// `--max-udp-connections`
    MaxUdpConnections(u32),
    /// `--mtu`
    Mtu(u32),
    /// `--ipv4-pool`
    Ipv4Pool(String),
    /// `--ipv6-pool`
    Ipv6Pool(String),
    /// `--no-ipv6`
    NoIpv6,
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it stands: a flag as typed or a file's name.
    pub origin: String,
    /// What is wrong, with its place and what was expected.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// Everything that is wrong with a configuration. Not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}: {}", error.origin, error.message)?;
            if let Some(help) = &error.help {
                write!(f, "; {help}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// What a sandbox gets when nothing is configured: preset `public-only`.
#[must_use]
pub fn default_network() -> NetworkConfig {
    NetworkConfig {
        enabled: true,
        policy: PolicyConfig::default(),
        deny_with: DenyWith::default(),
        dns: DnsConfig { nameservers: Vec::new(), query_timeout: Duration::from_secs(5), rebind_protection: true },
        interface: InterfaceConfig {
            mtu: 1500,
            ipv4_pool: Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
            ipv6_pool: Ipv6Net::new_assert(Ipv6Addr::new(0xfd42, 0x6d73, 0x62, 0, 0, 0, 0, 0), 48),
            ipv6: None,
            ipv4_address: None,
            ipv6_address: None,
        },
        limits: LimitsConfig {
            max_connections: 4096,
            max_udp_connections: 1024,
            connect_timeout: Duration::from_secs(75),
        },
    }
}

/// The network that the flags ask for.
///
/// # Errors
///
/// Everything that is wrong with any of them.
pub fn from_flags(items: &[FlagItem]) -> Result<NetworkConfig, ConfigErrors> {
    let _ = items;
    Ok(default_network())
}

/// The network that a file asks for; `name` tells the format.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn parse(name: &str, text: &str) -> Result<NetworkConfig, ConfigErrors> {
    let _ = (name, text);
    Ok(default_network())
}

/// The JSON Schema of the wire form.
#[must_use]
pub fn schema() -> String {
    String::from("{}")
}
