use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::socket::{CREATE, EXCLUSIVE, REPLACE, REQUEST};
use super::wire::{Attributes, Message};
use crate::transparent::IpVersion;

// Message types and attributes of linux/rtnetlink.h, if_link.h, if_addr.h, neighbour.h, fib_rules.h and veth.h.
const RTM_NEWLINK: u16 = 16;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
/// Linux 6.3 and later; older kernels ignore it, as they do every attribute that they do not know.
const IFLA_GSO_IPV4_MAX_SIZE: u16 = 63;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// `IN6_ADDR_GEN_MODE_NONE`.
const ADDR_GEN_MODE_NONE: u8 = 1;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// `IFA_F_NODAD`: usable at once, without asking the link for a duplicate.
const IFA_F_NODAD: u8 = 0x02;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_HOST: u8 = 254;
/// `RTPROT_STATIC`: made by an administrator.
const RTPROT_STATIC: u8 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
/// `FR_ACT_TO_TBL`.
const TO_TABLE: u8 = 1;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// `NUD_PERMANENT`: neither expires nor is changed by what the link says.
const NUD_PERMANENT: u16 = 0x80;
const IFF_UP: u32 = 1;

/// The table that holds what was configured (`RT_TABLE_MAIN`).
const MAIN_TABLE: u8 = 254;

/// One change of the network. `Display` says it in words that follow "cannot".
///
/// Links are named by their interface index, which the maker chooses: so a whole plan can be written down before the
/// first link exists.
#[derive(Debug, Clone)]
pub enum Request<'a> {
    /// Makes a pair of virtual Ethernet links, down: one here, its peer in another network namespace. `gso_ipv4`: the most
    /// bytes of TCP over IPv4 that the kernel hands from one end to the other in one piece (`gso_ipv4_max_size`).
    AddVeth { name: &'a str, index: u32, mac: [u8; 6], mtu: u32, gso_ipv4: u32, peer: VethPeer<'a> },
    /// Gives a link its hardware address.
    SetMac { index: u32, mac: [u8; 6] },
    /// Gives a link its MTU.
    SetMtu { index: u32, mtu: u32 },
    /// Keeps the kernel from giving the link an IPv6 link-local address when it comes up, and so from looking for
    /// duplicates and routers there.
    NoLinkLocal { index: u32 },
    /// Switches a link on.
    SetUp { index: u32 },
    /// Gives a link an address, usable at once.
    AddAddress { index: u32, address: IpAddr, prefix: u8 },
    /// Adds a default route.
    AddDefaultRoute { version: IpVersion, table: u8, kind: RouteKind },
    /// Has packets to one address leave by a link, to a gateway there unless the address is on the link itself, and be as large
    /// as `mtu`, whatever the link's own MTU is: up to 65,520 bytes, beyond which the kernel takes that (`RTAX_MTU`). A route of
    /// before to the same address makes way.
    SetHostRoute { address: IpAddr, index: u32, gateway: Option<IpAddr>, mtu: u32 },
    /// Packets with firewall mark `mark` use table `table`; with `None` all packets do.
    AddRule { version: IpVersion, priority: u32, mark: Option<u32>, table: u8 },
    /// Removes the rule for all packets that has this priority and table.
    RemoveRule { version: IpVersion, priority: u32, table: u8 },
    /// Binds an address on a link to a hardware address for good.
    AddNeighbour { index: u32, address: IpAddr, mac: [u8; 6] },
}

/// The other end of a veth pair.
#[derive(Debug, Clone)]
pub struct VethPeer<'a> {
    pub name: &'a str,
    pub mac: [u8; 6],
    /// The network namespace it is made in.
    pub netns: BorrowedFd<'a>,
}

/// Where a default route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// To a gateway, on the link that leads to it.
    Via { gateway: IpAddr },
    /// Out of a link, without a gateway.
    Device { index: u32 },
    /// Out of a link, without a gateway. Whoever connects from there is told that its segments may have `segment` bytes, whatever
    /// the link's MTU is (`RTAX_ADVMSS`). What is sent there keeps to the link's.
    Offering { index: u32, segment: u32 },
    /// To this machine itself: every address is taken for one of ours. The link has no meaning, but must be up.
    Local { index: u32 },
}

impl Request<'_> {
    pub(super) fn encode(&self) -> Message {
        match self {
            Request::AddVeth { name, index, mac, mtu, gso_ipv4, peer } => {
                let end = |name, mac: &[u8; 6]| {
                    let attributes = Attributes::new().text(IFLA_IFNAME, name).bytes(IFLA_ADDRESS, mac);
                    attributes.u32(IFLA_MTU, *mtu).u32(IFLA_GSO_IPV4_MAX_SIZE, *gso_ipv4)
                };
                add_veth(*index, end(name, mac), end(peer.name, &peer.mac), peer.netns)
            }
            Request::SetMac { index, mac } => set_link(*index, 0, &Attributes::new().bytes(IFLA_ADDRESS, mac)),
            Request::SetMtu { index, mtu } => set_link(*index, 0, &Attributes::new().u32(IFLA_MTU, *mtu)),
            Request::NoLinkLocal { index } => {
                let mode = Attributes::new().u8(IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE);
                let families = Attributes::new().nested(u16::from(family_byte(IpVersion::V6)), &mode);
                set_link(*index, 0, &Attributes::new().nested(IFLA_AF_SPEC, &families))
            }
            Request::SetUp { index } => set_link(*index, IFF_UP, &Attributes::new()),
            Request::AddAddress { index, address, prefix } => add_address(*index, *address, *prefix),
            Request::AddDefaultRoute { version, table, kind } => add_default_route(*version, *table, *kind),
            Request::SetHostRoute { address, index, gateway, mtu } => set_host_route(*address, *index, *gateway, *mtu),
            Request::AddRule { version, priority, mark, table } => {
                rule(RTM_NEWRULE, REQUEST | CREATE | EXCLUSIVE, *version, *priority, *mark, *table)
            }
            Request::RemoveRule { version, priority, table } => {
                rule(RTM_DELRULE, REQUEST, *version, *priority, None, *table)
            }
            Request::AddNeighbour { index, address, mac } => add_neighbour(*index, *address, *mac),
        }
    }
}

impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::AddVeth { name, peer, .. } => write!(f, "add the veth pair {name} and {}", peer.name),
            Request::SetMac { index, .. } => write!(f, "set the hardware address of link {index}"),
            Request::SetMtu { index, mtu } => write!(f, "set the MTU of link {index} to {mtu}"),
            Request::NoLinkLocal { index } => write!(f, "switch off link-local addresses of link {index}"),
            Request::SetUp { index } => write!(f, "bring up link {index}"),
            Request::AddAddress { index, address, prefix } => {
                write!(f, "add address {address}/{prefix} to link {index}")
            }
            Request::AddDefaultRoute { version, table, kind } => {
                write!(f, "add the {version} default route ")?;
                match kind {
                    RouteKind::Via { gateway } => write!(f, "via {gateway}")?,
                    RouteKind::Device { index } => write!(f, "to link {index}")?,
                    RouteKind::Offering { index, segment } => {
                        write!(f, "to link {index} with segments of {segment} bytes")?;
                    }
                    RouteKind::Local { .. } => write!(f, "to this machine")?,
                }
                write!(f, " in table {table}")
            }
            Request::SetHostRoute { address, index, gateway, mtu } => {
                write!(f, "set the route to {address} with an MTU of {mtu} on link {index}")?;
                gateway.map_or(Ok(()), |gateway| write!(f, " via {gateway}"))
            }
            Request::AddRule { version, priority, mark, table } => {
                write!(f, "add {version} rule {priority}")?;
                if let Some(mark) = mark {
                    write!(f, " for mark {mark}")?;
                }
                write!(f, " to table {table}")
            }
            Request::RemoveRule { version, priority, table } => {
                write!(f, "remove {version} rule {priority} to table {table}")
            }
            Request::AddNeighbour { index, address, .. } => write!(f, "add neighbour {address} on link {index}"),
        }
    }
}

fn add_veth(index: u32, here: Attributes, peer: Attributes, peer_netns: BorrowedFd<'_>) -> Message {
    let peer = peer.bytes(IFLA_NET_NS_FD, &peer_netns.as_raw_fd().to_ne_bytes());
    let data = Attributes::new().bytes(VETH_INFO_PEER, &peer.after(&link_body(0, 0)));
    let info = Attributes::new().text(IFLA_INFO_KIND, "veth").nested(IFLA_INFO_DATA, &data);
    let attributes = here.nested(IFLA_LINKINFO, &info);
    Message { kind: RTM_NEWLINK, flags: REQUEST | CREATE | EXCLUSIVE, payload: attributes.after(&link_body(index, 0)) }
}

fn set_link(index: u32, raised_flags: u32, attributes: &Attributes) -> Message {
    Message { kind: RTM_SETLINK, flags: REQUEST, payload: attributes.after(&link_body(index, raised_flags)) }
}

/// `struct ifinfomsg`: family, pad, type, index, flags, and which of the flags are meant.
fn link_body(index: u32, raised_flags: u32) -> [u8; 16] {
    let mut body = Vec::with_capacity(16);
    body.extend_from_slice(&[0; 4]);
    for word in [index, raised_flags, raised_flags] {
        body.extend_from_slice(&word.to_ne_bytes());
    }
    body.try_into().unwrap_or([0; 16])
}

fn add_address(index: u32, address: IpAddr, prefix: u8) -> Message {
    let (bytes, version) = address_bytes(address);
    let flags = match version {
        IpVersion::V4 => 0,
        IpVersion::V6 => IFA_F_NODAD,
    };
    // `struct ifaddrmsg`: family, prefix length, flags, scope, index.
    let mut body = vec![family_byte(version), prefix, flags, RT_SCOPE_UNIVERSE];
    body.extend_from_slice(&index.to_ne_bytes());
    let attributes = Attributes::new().bytes(IFA_LOCAL, &bytes).bytes(IFA_ADDRESS, &bytes);
    Message { kind: RTM_NEWADDR, flags: REQUEST | CREATE | EXCLUSIVE, payload: attributes.after(&body) }
}

fn add_default_route(version: IpVersion, table: u8, kind: RouteKind) -> Message {
    let (scope, route_type, attributes) = match kind {
        RouteKind::Via { gateway } => {
            (RT_SCOPE_UNIVERSE, RTN_UNICAST, Attributes::new().bytes(RTA_GATEWAY, &address_bytes(gateway).0))
        }
        RouteKind::Device { index } => (RT_SCOPE_LINK, RTN_UNICAST, Attributes::new().u32(RTA_OIF, index)),
        RouteKind::Offering { index, segment } => {
            let metrics = Attributes::new().u32(RTAX_ADVMSS, segment);
            (RT_SCOPE_LINK, RTN_UNICAST, Attributes::new().u32(RTA_OIF, index).nested(RTA_METRICS, &metrics))
        }
        RouteKind::Local { index } => (RT_SCOPE_HOST, RTN_LOCAL, Attributes::new().u32(RTA_OIF, index)),
    };
    // `struct rtmsg`: family, lengths of destination and source prefix, TOS, table, protocol, scope, type, flags.
    let mut body = vec![family_byte(version), 0, 0, 0, table, RTPROT_STATIC, scope, route_type];
    body.extend_from_slice(&0u32.to_ne_bytes());
    let attributes = attributes.u32(RTA_TABLE, u32::from(table));
    Message { kind: RTM_NEWROUTE, flags: REQUEST | CREATE | EXCLUSIVE, payload: attributes.after(&body) }
}

fn set_host_route(address: IpAddr, index: u32, gateway: Option<IpAddr>, mtu: u32) -> Message {
    let (bytes, version) = address_bytes(address);
    let length: u8 = match version {
        IpVersion::V4 => 32,
        IpVersion::V6 => 128,
    };
    let metrics = Attributes::new().u32(RTAX_MTU, mtu);
    let mut attributes = Attributes::new().bytes(RTA_DST, &bytes).u32(RTA_OIF, index).nested(RTA_METRICS, &metrics);
    if let Some(gateway) = gateway {
        attributes = attributes.bytes(RTA_GATEWAY, &address_bytes(gateway).0);
    }
    let scope = if gateway.is_some() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
    // `struct rtmsg`, as for a default route.
    let mut body = vec![family_byte(version), length, 0, 0, MAIN_TABLE, RTPROT_STATIC, scope, RTN_UNICAST];
    body.extend_from_slice(&0u32.to_ne_bytes());
    Message { kind: RTM_NEWROUTE, flags: REQUEST | CREATE | REPLACE, payload: attributes.after(&body) }
}

fn rule(kind: u16, flags: u16, version: IpVersion, priority: u32, mark: Option<u32>, table: u8) -> Message {
    // `struct fib_rule_hdr`: family, lengths of destination and source prefix, TOS, table, two reserved, action, flags.
    let mut body = vec![family_byte(version), 0, 0, 0, table, 0, 0, TO_TABLE];
    body.extend_from_slice(&0u32.to_ne_bytes());
    let mut attributes = Attributes::new().u32(FRA_PRIORITY, priority).u32(FRA_TABLE, u32::from(table));
    if let Some(mark) = mark {
        attributes = attributes.u32(FRA_FWMARK, mark);
    }
    Message { kind, flags, payload: attributes.after(&body) }
}

fn add_neighbour(index: u32, address: IpAddr, mac: [u8; 6]) -> Message {
    let (bytes, version) = address_bytes(address);
    // `struct ndmsg`: family, three of padding, index, state, flags, type.
    let mut body = vec![family_byte(version), 0, 0, 0];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&NUD_PERMANENT.to_ne_bytes());
    body.extend_from_slice(&[0, 0]);
    let attributes = Attributes::new().bytes(NDA_DST, &bytes).bytes(NDA_LLADDR, &mac);
    Message { kind: RTM_NEWNEIGH, flags: REQUEST | CREATE | REPLACE, payload: attributes.after(&body) }
}

fn address_bytes(address: IpAddr) -> (Vec<u8>, IpVersion) {
    match address {
        IpAddr::V4(address) => (address.octets().to_vec(), IpVersion::V4),
        IpAddr::V6(address) => (address.octets().to_vec(), IpVersion::V6),
    }
}

/// `AF_INET` or `AF_INET6`, as the one byte that rtnetlink has for it.
pub(super) fn family_byte(version: IpVersion) -> u8 {
    match version {
        IpVersion::V4 => 2,
        IpVersion::V6 => 10,
    }
}

impl Request<'_> {
    /// The table for routes that [`Request::AddDefaultRoute`] shall make visible to all packets.
    pub const MAIN_TABLE: u8 = MAIN_TABLE;
    /// The table with the machine's own addresses.
    pub const LOCAL_TABLE: u8 = 255;
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::wire::{attributes, u32_at};
    use super::*;

    #[test]
    fn gives_both_ends_of_a_pair_the_same_link() {
        let netns = std::io::stdin();
        let peer = VethPeer { name: "eth0", mac: [2, 0, 0, 0, 0, 1], netns: netns.as_fd() };
        let request = Request::AddVeth { name: "sbx0", index: 7, mac: [2; 6], mtu: 1500, gso_ipv4: 262_144, peer };
        let message = request.encode();
        let find = |bytes: &[u8], kind| attributes(bytes).find(|(k, _)| *k == kind).map(|(_, v)| v.to_vec()).unwrap();
        let here = &message.payload[16..];
        let info = find(here, IFLA_LINKINFO);
        let data = find(&info, IFLA_INFO_DATA);
        let there = find(&data, VETH_INFO_PEER)[16..].to_vec();
        for end in [here, &there] {
            assert_eq!(u32_at(&find(end, IFLA_MTU), 0), Some(1500));
            assert_eq!(u32_at(&find(end, IFLA_GSO_IPV4_MAX_SIZE), 0), Some(262_144));
        }
        assert_eq!(find(&there, IFLA_IFNAME), b"eth0\0");
        assert_eq!(find(&there, IFLA_NET_NS_FD).len(), 4);
    }

    #[test]
    fn a_route_to_one_address_has_its_own_mtu_by_way_of_a_gateway_or_not() {
        let addresses: [(IpAddr, IpAddr, u8, u8); 2] = [
            ([10, 0, 2, 100].into(), [10, 0, 2, 2].into(), 2, 32),
            ("fd00::64".parse().unwrap(), "fd00::1".parse().unwrap(), 10, 128),
        ];
        for (address, gateway, family, length) in addresses {
            for gateway in [Some(gateway), None] {
                let message = Request::SetHostRoute { address, index: 7, gateway, mtu: 65_520 }.encode();
                let scope = if gateway.is_some() { RT_SCOPE_UNIVERSE } else { RT_SCOPE_LINK };
                let body = [family, length, 0, 0, MAIN_TABLE, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0];
                assert_eq!(message.payload[..12], body);
                assert_eq!((message.kind, message.flags), (RTM_NEWROUTE, REQUEST | CREATE | REPLACE));
                assert_eq!(attribute(&message, RTA_DST), Some(address_bytes(address).0));
                assert_eq!(attribute(&message, RTA_GATEWAY), gateway.map(|gateway| address_bytes(gateway).0));
                assert_eq!(attribute(&message, RTA_OIF), Some(7u32.to_ne_bytes().to_vec()));
                assert_eq!(metrics(&message), [(RTAX_MTU, 65_520)]);
            }
        }
    }

    #[test]
    fn a_default_route_offers_a_size_of_segments_when_it_is_one_of_those() {
        for version in [IpVersion::V4, IpVersion::V6] {
            let route = |kind| Request::AddDefaultRoute { version, table: 102, kind }.encode();
            let plain = route(RouteKind::Device { index: 7 });
            let offering = route(RouteKind::Offering { index: 7, segment: 65_480 });
            assert_eq!(offering.payload[..12], plain.payload[..12]);
            assert_eq!(attribute(&offering, RTA_OIF), attribute(&plain, RTA_OIF));
            assert_eq!((metrics(&plain), metrics(&offering)), (vec![], vec![(RTAX_ADVMSS, 65_480)]));
        }
    }

    /// An attribute of a route.
    fn attribute(message: &Message, kind: u16) -> Option<Vec<u8>> {
        attributes(&message.payload[12..]).find(|(k, _)| *k == kind).map(|(_, value)| value.to_vec())
    }

    fn metrics(message: &Message) -> Vec<(u16, u32)> {
        let metrics = attribute(message, RTA_METRICS).unwrap_or_default();
        attributes(&metrics).map(|(kind, value)| (kind, u32_at(value, 0).unwrap())).collect()
    }
}
