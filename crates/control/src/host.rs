//! What a sandbox has to know about the machine it runs on, read once at its start.

use std::io;
use std::net::{IpAddr, SocketAddr};

use cofferdam_sys::netlink;
use ipnet::IpNet;

use crate::resolvers;

/// The machine's network, as far as it decides what a sandbox may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Every address on the machine's interfaces.
    pub addresses: Vec<IpAddr>,
    /// Every prefix that is on-link on the machine's interfaces.
    pub on_link: Vec<IpNet>,
    /// Whether there is a default route for IPv6.
    pub ipv6_route: bool,
    /// The machine's resolvers in order.
    pub resolvers: Vec<SocketAddr>,
    /// The certificates that the machine trusts, in DER; only where they are needed.
    pub anchors: Vec<Vec<u8>>,
}

impl Host {
    /// Reads the machine's addresses, routes and resolvers.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn discover() -> io::Result<Host> {
        let snapshot = netlink::host_snapshot().map_err(io::Error::other)?;
        Ok(Host {
            addresses: snapshot.addresses,
            on_link: snapshot.on_link,
            ipv6_route: snapshot.default_v6,
            resolvers: resolvers::of_host(),
            anchors: Vec::new(),
        })
    }

    /// Every network that a sandbox's link must not hide.
    #[must_use]
    pub fn used_networks(&self) -> Vec<IpNet> {
        self.on_link.iter().copied().chain(self.addresses.iter().map(|address| IpNet::from(*address))).collect()
    }
}
