use std::net::IpAddr;

use ipnet::IpNet;

use super::socket::{DUMP, Family, NetlinkError, REQUEST, Socket};
use super::wire::{self, Message};

// linux/rtnetlink.h and if_addr.h.
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTN_UNICAST: u8 = 1;
const RT_TABLE_LOCAL: u32 = 255;
/// `RTM_F_CLONED`: a cached copy of another route.
const RTM_F_CLONED: u32 = 0x200;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Length of `struct ifaddrmsg`.
const ADDRESS_BODY: usize = 8;
/// Length of `struct rtmsg`.
const ROUTE_BODY: usize = 12;

/// The shortest prefixes of device routes that are taken for a link. A route that covers more (`0.0.0.0/1 dev wg0`) is a
/// default route in pieces, as VPN clients make them: nobody has that many neighbours.
const SHORTEST_ON_LINK: (u8, u8) = (8, 16);

/// What the network of a namespace looks like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSnapshot {
    /// Every address on an interface, without 127.0.0.0/8 and ::1.
    pub addresses: Vec<IpAddr>,
    /// Every prefix whose addresses are reached without a gateway, without 127.0.0.0/8 and ::1.
    pub on_link: Vec<IpNet>,
    /// Whether an IPv4 default route exists, in any table.
    pub default_v4: bool,
    /// Whether an IPv6 default route exists, in any table.
    pub default_v6: bool,
}

/// Reads addresses and routes of the calling thread's network namespace. Needs no privilege. Lists are sorted, without
/// doubles.
///
/// # Errors
/// [`NetlinkError`] when the kernel does not tell.
pub fn host_snapshot() -> Result<HostSnapshot, NetlinkError> {
    let mut socket = Socket::open(Family::Route)?;
    let request = |kind, body| Message { kind, flags: REQUEST | DUMP, payload: vec![0; body] };
    let addresses = socket.dump("addresses", &request(RTM_GETADDR, ADDRESS_BODY), |kind, payload| {
        (kind == RTM_NEWADDR).then(|| Address::parse(payload)).flatten()
    })?;
    let routes = socket.dump("routes", &request(RTM_GETROUTE, ROUTE_BODY), |kind, payload| {
        (kind == RTM_NEWROUTE).then(|| Route::parse(payload)).flatten()
    })?;
    Ok(summarize(&addresses, &routes))
}

fn summarize(addresses: &[Address], routes: &[Route]) -> HostSnapshot {
    let mut snapshot = HostSnapshot::default();
    for address in addresses.iter().filter(|a| !a.local.is_loopback()) {
        snapshot.addresses.push(address.local);
        snapshot.on_link.push(address.link);
    }
    for route in routes {
        match (route.destination, route.reach) {
            (IpNet::V4(net), _) if net.prefix_len() == 0 => snapshot.default_v4 = true,
            (IpNet::V6(net), _) if net.prefix_len() == 0 => snapshot.default_v6 = true,
            (net, Reach::Direct) if is_link(&net) => snapshot.on_link.push(net),
            (_, Reach::Direct | Reach::Gateway) => {}
        }
    }
    snapshot.addresses.sort_unstable();
    snapshot.addresses.dedup();
    snapshot.on_link.sort_unstable();
    snapshot.on_link.dedup();
    snapshot
}

fn is_link(net: &IpNet) -> bool {
    let shortest = match net {
        IpNet::V4(_) => SHORTEST_ON_LINK.0,
        IpNet::V6(_) => SHORTEST_ON_LINK.1,
    };
    net.prefix_len() >= shortest && !net.addr().is_loopback() && !net.addr().is_multicast()
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Address {
    local: IpAddr,
    /// The prefix it is in, or the one address at the other end of a point-to-point link.
    link: IpNet,
}

impl Address {
    /// `struct ifaddrmsg` (family, prefix length, flags, scope, index) and attributes.
    fn parse(payload: &[u8]) -> Option<Address> {
        let (family, prefix) = (*payload.first()?, *payload.get(1)?);
        let mut local = None;
        let mut peer = None;
        for (kind, value) in wire::attributes(payload.get(ADDRESS_BODY..)?) {
            match kind {
                IFA_LOCAL => local = address(family, value),
                IFA_ADDRESS => peer = address(family, value),
                _ => {}
            }
        }
        // IPv6 has `IFA_LOCAL` on point-to-point links only; elsewhere the two are the same.
        let peer = peer.or(local)?;
        Some(Address { local: local.unwrap_or(peer), link: IpNet::new(peer, prefix).ok()?.trunc() })
    }
}

/// How the addresses of a route are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Direct,
    Gateway,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    destination: IpNet,
    reach: Reach,
}

impl Route {
    /// `struct rtmsg` (family, destination and source prefix length, TOS, table, protocol, scope, type, flags) and
    /// attributes. `None` for what does not lead out of an interface.
    fn parse(payload: &[u8]) -> Option<Route> {
        let (family, prefix) = (*payload.first()?, *payload.get(1)?);
        let route_type = *payload.get(7)?;
        let flags = wire::u32_at(payload, 8)?;
        let mut table = u32::from(*payload.get(4)?);
        let mut destination = match family {
            AF_INET => IpAddr::from([0; 4]),
            AF_INET6 => IpAddr::from([0; 16]),
            _ => return None,
        };
        let mut has_link = false;
        let mut reach = Reach::Direct;
        for (kind, value) in wire::attributes(payload.get(ROUTE_BODY..)?) {
            match kind {
                RTA_DST => destination = address(family, value)?,
                RTA_TABLE => table = wire::u32_at(value, 0)?,
                RTA_OIF => has_link = true,
                RTA_GATEWAY | RTA_VIA => reach = Reach::Gateway,
                RTA_MULTIPATH => {
                    has_link = true;
                    reach = Reach::Gateway;
                }
                _ => {}
            }
        }
        let leads_out = route_type == RTN_UNICAST && has_link && table != RT_TABLE_LOCAL && flags & RTM_F_CLONED == 0;
        leads_out.then_some(Route { destination: IpNet::new(destination, prefix).ok()?.trunc(), reach })
    }
}

fn address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(IpAddr::from(*value.first_chunk::<4>()?)),
        AF_INET6 => Some(IpAddr::from(*value.first_chunk::<16>()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::Attributes;
    use super::*;

    fn route(net: &str, reach: Reach) -> Route {
        Route { destination: net.parse().unwrap(), reach }
    }

    #[test]
    fn takes_connected_prefixes_and_default_routes_apart() {
        let addresses = [
            Address { local: "127.0.0.1".parse().unwrap(), link: "127.0.0.0/8".parse().unwrap() },
            Address { local: "::1".parse().unwrap(), link: "::1/128".parse().unwrap() },
            Address { local: "192.0.2.7".parse().unwrap(), link: "192.0.2.0/24".parse().unwrap() },
        ];
        let routes = [
            route("0.0.0.0/0", Reach::Gateway),
            route("192.0.2.0/24", Reach::Direct),
            route("198.51.100.0/24", Reach::Direct),
            route("203.0.113.0/24", Reach::Gateway),
            route("128.0.0.0/1", Reach::Direct),
            route("2001:db8::/64", Reach::Direct),
            route("2000::/3", Reach::Direct),
            route("ff00::/8", Reach::Direct),
        ];
        let snapshot = summarize(&addresses, &routes);
        assert_eq!(snapshot.addresses, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        let on_link: Vec<_> = snapshot.on_link.iter().map(IpNet::to_string).collect();
        assert_eq!(on_link, ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/64"]);
        assert!(snapshot.default_v4);
        assert!(!snapshot.default_v6);
    }

    #[test]
    fn parses_routes_that_lead_out_and_no_others() {
        let body = |table: u8, route_type: u8| [AF_INET, 24, 0, 0, table, 2, 253, route_type, 0, 0, 0, 0];
        let device = Attributes::new().bytes(RTA_DST, &[192, 0, 2, 0]).u32(RTA_OIF, 2);
        let parsed = Route::parse(&device.after(&body(254, RTN_UNICAST))).unwrap();
        assert_eq!(parsed, route("192.0.2.0/24", Reach::Direct));
        let gateway = device.clone().bytes(RTA_GATEWAY, &[192, 0, 2, 1]);
        assert_eq!(Route::parse(&gateway.after(&body(254, RTN_UNICAST))).unwrap().reach, Reach::Gateway);
        assert_eq!(Route::parse(&device.after(&body(255, RTN_UNICAST))), None);
        assert_eq!(Route::parse(&device.after(&body(254, 7))), None);
        assert_eq!(Route::parse(&[]), None);
    }

    #[test]
    fn reads_the_network_of_this_machine() {
        let snapshot = host_snapshot().unwrap();
        assert!(snapshot.addresses.iter().all(|a| !a.is_loopback()));
    }
}
