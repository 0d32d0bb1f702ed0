//! The groups of addresses, as data.
//!
//! Source: the IANA IPv4 and IPv6 Special-Purpose Address Registries, both as last updated on 2024-10-09 (which brought
//! `3fff::/20` and `5f00::/16`), and the metadata addresses that cloud providers document. A row is reserved here when the
//! registry does not call it globally reachable; where a block has more specific rows, those stand before it. The first row
//! that holds an address decides.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::Group;
use crate::Group::{LinkLocal, Loopback, Metadata, Multicast, Private, Public, Reserved};

/// An IPv4 prefix and its group.
pub(crate) type Row4 = (Ipv4Addr, u8, Group);
/// An IPv6 prefix and its group.
pub(crate) type Row6 = (Ipv6Addr, u8, Group);

/// Group metadata, tested right after the host's own addresses.
pub(crate) const METADATA_V4: &[Row4] = &[
    (Ipv4Addr::new(169, 254, 169, 254), 32, Metadata), // AWS, Azure, Google, OpenStack and most others
    (Ipv4Addr::new(169, 254, 170, 2), 32, Metadata),   // AWS ECS task credentials
    (Ipv4Addr::new(169, 254, 170, 23), 32, Metadata),  // AWS EKS pod identity
    (Ipv4Addr::new(100, 100, 100, 200), 32, Metadata), // Alibaba
    (Ipv4Addr::new(168, 63, 129, 16), 32, Metadata),   // Azure WireServer
    (Ipv4Addr::new(192, 0, 0, 192), 32, Metadata),     // Oracle
];

/// Groups loopback and link-local: special addresses that stay special even where a prefix around them is on-link.
pub(crate) const LOCAL_V4: &[Row4] =
    &[(Ipv4Addr::new(127, 0, 0, 0), 8, Loopback), (Ipv4Addr::new(169, 254, 0, 0), 16, LinkLocal)];

/// What comes after the host's on-link prefixes. The last row holds every address.
pub(crate) const REST_V4: &[Row4] = &[
    (Ipv4Addr::new(10, 0, 0, 0), 8, Private),
    (Ipv4Addr::new(172, 16, 0, 0), 12, Private),
    (Ipv4Addr::new(192, 168, 0, 0), 16, Private),
    (Ipv4Addr::new(100, 64, 0, 0), 10, Private), // shared address space (CGNAT), RFC 6598
    (Ipv4Addr::new(224, 0, 0, 0), 4, Multicast),
    (Ipv4Addr::new(255, 255, 255, 255), 32, Multicast),
    (Ipv4Addr::new(0, 0, 0, 0), 8, Reserved),
    // 192.0.0.9 and .10 are globally reachable anycast addresses (RFC 7723, RFC 8155) that only a NAT on the path answers:
    // they are the operator's network, not the internet, so the block is not opened for them.
    (Ipv4Addr::new(192, 0, 0, 0), 24, Reserved),
    (Ipv4Addr::new(192, 0, 2, 0), 24, Reserved),
    (Ipv4Addr::new(192, 88, 99, 0), 24, Reserved), // 6to4 relay anycast, withdrawn by RFC 7526
    (Ipv4Addr::new(198, 18, 0, 0), 15, Reserved),
    (Ipv4Addr::new(198, 51, 100, 0), 24, Reserved),
    (Ipv4Addr::new(203, 0, 113, 0), 24, Reserved),
    (Ipv4Addr::new(240, 0, 0, 0), 4, Reserved),
    (Ipv4Addr::new(0, 0, 0, 0), 0, Public),
];

/// As [`METADATA_V4`].
pub(crate) const METADATA_V6: &[Row6] = &[
    (Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254), 128, Metadata), // AWS
    (Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0023), 128, Metadata), // AWS EKS pod identity
    (Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254), 128, Metadata), // Google
];

/// As [`LOCAL_V4`].
pub(crate) const LOCAL_V6: &[Row6] =
    &[(Ipv6Addr::LOCALHOST, 128, Loopback), (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, LinkLocal)];

/// As [`REST_V4`]. Outside 2000::/3 only NAT64's well-known prefix can be public, because the registry calls it globally
/// reachable and the address in it decides as well.
pub(crate) const REST_V6: &[Row6] = &[
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, Private),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, Multicast),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96, Public),
    // 2001::/23, IETF protocol assignments: not globally reachable but for these rows.
    (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 1), 128, Public), // Port Control Protocol anycast, RFC 7723
    (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 2), 128, Public), // TURN anycast, RFC 8155
    (Ipv6Addr::new(0x2001, 1, 0, 0, 0, 0, 0, 3), 128, Public), // DNS-SD service registration anycast, RFC 9665
    (Ipv6Addr::new(0x2001, 3, 0, 0, 0, 0, 0, 0), 32, Public),  // AMT, RFC 7450
    (Ipv6Addr::new(0x2001, 4, 0x0112, 0, 0, 0, 0, 0), 48, Public), // AS112-v6, RFC 7535
    // The registry calls ORCHIDv2 (2001:20::/28) and drone identifiers (2001:30::/28) reachable, but both are identifiers in
    // the form of an address, which no router carries (RFC 7343 §1, RFC 9374): they stay with the block around them, as does
    // Teredo (2001::/32, "N/A" in the registry, and given up).
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, Reserved),
    (Ipv6Addr::new(0x2001, 0x0db8, 0, 0, 0, 0, 0, 0), 32, Reserved),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, Reserved), // 6to4: "N/A" in the registry, its relays withdrawn by RFC 7526
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, Reserved),
    (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3, Public),
    // Everything else: ::/96, 64:ff9b:1::/48, 100::/64, 100:0:0:1::/64, 5f00::/16, fec0::/10 and what nobody has assigned.
    (Ipv6Addr::UNSPECIFIED, 0, Reserved),
];
