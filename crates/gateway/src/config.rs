//! What the gateway process is made from.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use cofferdam_model::NetworkConfig;
use cofferdam_policy::Policy;

/// The addresses of one sandbox's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkAddresses {
    pub guest4: Ipv4Addr,
    pub gateway4: Ipv4Addr,
    /// Length of the IPv4 prefix on the link, usually 30.
    pub prefix4: u8,
    /// Guest and gateway address of IPv6 and the prefix length, when IPv6 is on.
    pub v6: Option<Link6>,
}

/// The IPv6 half of [`LinkAddresses`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link6 {
    pub guest: Ipv6Addr,
    pub gateway: Ipv6Addr,
    pub prefix: u8,
}

/// Everything the gateway process is made from. Read-only after the fork.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    pub network: NetworkConfig,
    pub policy: Arc<Policy>,
    pub link: LinkAddresses,
    /// Upstream resolvers, resolved: `network.dns.nameservers` or those of the host.
    pub resolvers: Vec<SocketAddr>,
    /// Seed for ids and ports: from the system's random source, made by the supervisor.
    pub seed: [u8; 32],
}

/// The gateway's ends of its channels to the supervisor.
#[derive(Debug)]
pub struct Channels {
    /// A stream socket or pipe to which events go as JSON lines.
    pub events: OwnedFd,
    /// One byte is written when the gateway is confined and serves.
    pub ready: OwnedFd,
    /// A `SOCK_SEQPACKET` socket on which the supervisor says what network the machine has, each time that it changes; see
    /// [`machine_message`](crate::machine_message).
    pub machine: OwnedFd,
    /// End of file here means that the supervisor is gone.
    pub lifeline: OwnedFd,
}
