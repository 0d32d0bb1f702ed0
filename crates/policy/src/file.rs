//! Flags, files and the wire form: every door through which a network configuration comes in.
//!
//! Text becomes a raw configuration that is close to what was written (`document` and serde), and that becomes a
//! [`NetworkConfig`] in one place. Rules in whatever form go through the parser of the [grammar](crate::grammar), so the same
//! rule is right or wrong behind every door. Errors are collected: a person who mends the first one should not meet the second
//! only then.

mod document;
mod error;
mod flags;
mod host_sockets;
mod ports;
mod raw;
mod resolve;
mod values;
mod write;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use cofferdam_model::{DenyWith, DnsConfig, InterfaceConfig, LimitsConfig, Nameserver, NetworkConfig, RateLimits};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::preset::Preset;

pub use error::{ConfigError, ConfigErrors};
pub use flags::{FlagItem, RateFlag, from_flags, parse, replacing};
pub use host_sockets::{HostSocketError, MAX_HOST_SOCKETS, parse_host_socket};
pub use ports::{MAX_PORTS, PortError, parse_port};

/// What a sandbox gets when nothing is configured: preset `public-only`.
#[must_use]
pub fn default_network() -> NetworkConfig {
    NetworkConfig {
        enabled: true,
        ceilings: Vec::new(),
        policy: Preset::standard().policy(),
        deny_with: DenyWith::default(),
        dns: DnsConfig {
            nameservers: Vec::new(),
            query_timeout: Duration::from_secs(5),
            pin_floor: crate::Pins::FLOOR,
            rebind_protection: true,
            deny_doh: None,
        },
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
            max_inbound_connections: 1024,
            connect_timeout: Duration::from_secs(75),
            rates: RateLimits::default(),
            budgets: Vec::new(),
        },
        ports: Vec::new(),
        host_sockets: Vec::new(),
    }
}

/// A configuration in the wire form: one line of JSON from which [`parse`] makes the same configuration.
#[must_use]
pub fn to_json(config: &NetworkConfig) -> String {
    write::network(config).to_string()
}

/// A resolver as a file has it.
#[must_use]
pub fn format_nameserver(server: &Nameserver) -> String {
    write::nameserver(server)
}

/// The JSON Schema of a configuration file, made from the types that read it.
#[must_use]
pub fn schema() -> String {
    let schema = schemars::schema_for!(raw::Document);
    // A schema is a JSON value; printing one does not fail.
    serde_json::to_string_pretty(&schema).unwrap_or_default()
}
