//! What the gateway process is made from.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
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

impl LinkAddresses {
    /// Where a guest finds the server of its files: where virtual machines have it since QEMU has had one, but for a link of which
    /// that address is a part; then at the gateway's own address.
    #[must_use]
    pub fn files(&self) -> SocketAddrV4 {
        let link = ipnet::Ipv4Net::new(self.gateway4, self.prefix4);
        let is_on_link = link.is_ok_and(|link| link.contains(&FILES_ADDRESS));
        SocketAddrV4::new(if is_on_link { self.gateway4 } else { FILES_ADDRESS }, FILES_PORT)
    }
}

/// The address of QEMU's own file server for its guests (`smb=` of `-netdev user`).
const FILES_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// SMB over TCP (MS-SMB2 2.1).
const FILES_PORT: u16 = 445;

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
    pub resolvers: Vec<DnsUpstream>,
    /// The certificates that the machine trusts, in DER; only where a resolver is asked over TLS or HTTPS.
    pub anchors: Vec<Vec<u8>>,
    /// Seed for ids and ports: from the system's random source, made by the supervisor.
    pub seed: [u8; 32],
}

/// A resolver and the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsUpstream {
    pub address: SocketAddr,
    pub way: DnsWay,
}

/// How a resolver is asked. `name` is what its certificate has to be for: a name or an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsWay {
    /// UDP, and TCP where that does not do.
    Plain,
    /// RFC 7858.
    Tls { name: String },
    /// RFC 8484, over HTTP/2.
    Https { name: String, authority: String, path: String },
}

impl From<SocketAddr> for DnsUpstream {
    fn from(address: SocketAddr) -> DnsUpstream {
        DnsUpstream { address, way: DnsWay::Plain }
    }
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
    /// Where the capture hears of decisions, if packets are captured; non-blocking.
    pub capture: Option<OwnedFd>,
    /// Where the supervisor's [`Commands`](crate::Commands) come from; without it nothing can be changed while a sandbox runs.
    pub commands: Option<OwnedFd>,
    /// End of file here means that the supervisor is gone.
    pub lifeline: OwnedFd,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_at_one_address_unless_the_link_has_it() {
        let link = |gateway: [u8; 4], prefix4| {
            let gateway4 = Ipv4Addr::from(gateway);
            LinkAddresses { guest4: Ipv4Addr::from(u32::from(gateway4) + 1), gateway4, prefix4, v6: None }
        };
        for (gateway, prefix, files) in [
            ([172, 16, 0, 1], 30, "10.0.2.100:445"),
            ([10, 0, 2, 105], 30, "10.0.2.100:445"),
            // As the guest's, as the network's, as the gateway's.
            ([10, 0, 2, 99], 29, "10.0.2.99:445"),
            ([10, 0, 2, 101], 30, "10.0.2.101:445"),
            ([10, 0, 2, 100], 30, "10.0.2.100:445"),
        ] {
            assert_eq!(link(gateway, prefix).files(), files.parse().unwrap());
        }
    }
}
