//! Who is in the closed world, at which address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The site that people want to reach.
pub(crate) const EXAMPLE4: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
pub(crate) const EXAMPLE6: Ipv6Addr = Ipv6Addr::new(0x2606, 0x2800, 0x21f, 0xcb07, 0, 0, 0, 1);
/// Somebody who collects data.
const TELEMETRY4: Ipv4Addr = Ipv4Addr::new(45, 33, 32, 156);
/// A public resolver.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
/// A machine on the same LAN.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 10);
/// Where clouds hand out credentials.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Every address of the world besides its end of the link.
pub(super) const ADDRESSES4: [Ipv4Addr; 5] = [EXAMPLE4, TELEMETRY4, RESOLVER, NEIGHBOUR, METADATA];
pub(super) const ADDRESSES6: [Ipv6Addr; 1] = [EXAMPLE6];

/// A port of the machine's own loopback on which something listens.
pub(crate) const LOCAL_PORT: u16 = 9000;
/// The name of an abstract Unix socket of the machine.
pub(crate) const ABSTRACT: &str = "cofferdam-world";
/// Echo, RFC 862.
pub(crate) const ECHO_PORT: u16 = 7;

/// The names in certificates.
pub(super) const TLS_NAMES: [&str; 2] = ["example.com", "telemetry.example.net"];

/// What the world's resolver knows.
pub(super) fn addresses_of(name: &str) -> Option<Vec<IpAddr>> {
    match name {
        "example.com" => Some(vec![EXAMPLE4.into(), EXAMPLE6.into()]),
        "www.example.com" => Some(vec![EXAMPLE4.into()]),
        "ipv6.example.org" => Some(vec![EXAMPLE6.into()]),
        "telemetry.example.net" => Some(vec![TELEMETRY4.into()]),
        _ => None,
    }
}
