//! Which addresses a sandbox's link gets.
//!
//! A pool is cut into slots: a /30 of IPv4 (gateway .1, guest .2) and a /64 of IPv6 (gateway ::1, guest ::2). Every
//! sandbox has a gateway namespace of its own, so two sandboxes may use one slot; the caller passes a `preferred`
//! number that differs between sandboxes, which keeps their logs apart.
//!
//! A slot that overlaps a network of the host would hide that network from the guest, so it is passed over. For a pool
//! that somebody chose, overlap is an error that names both, since the choice was not meant to be cut down; the
//! built-in pool contains what container bridges use (172.17.0.0/16 and up) and is just searched on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cofferdam_gateway::{Link6, LinkAddresses};
use cofferdam_model::{InterfaceConfig, SLOT4, SLOT6};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The pool when nobody chooses one (`docs/gateway.md`).
pub const DEFAULT_IPV4_POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12);
/// The pool when nobody chooses one (`docs/gateway.md`).
pub const DEFAULT_IPV6_POOL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd42, 0x6d73, 0x62, 0, 0, 0, 0, 0), 48);

/// Why there are no addresses for a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    #[error("the {option} {pool} is smaller than one slot, a /{needed}")]
    PoolTooSmall { option: &'static str, pool: IpNet, needed: u8 },
    #[error("the {option} {pool} overlaps {used}, which this machine uses")]
    PoolOverlaps { option: &'static str, pool: IpNet, used: IpNet },
    #[error(
        "every slot of the pool {pool} overlaps a network of this machine, such as {used}; choose another with {option}"
    )]
    PoolExhausted { option: &'static str, pool: IpNet, used: IpNet },
    #[error("the guest address {address} overlaps {used}, which this machine uses")]
    AddressOverlaps { address: IpAddr, used: IpNet },
    #[error(
        "{address} cannot be a guest's address: it is the network's, the gateway's or the broadcast address of {slot}"
    )]
    AddressUnusable { address: IpAddr, slot: IpNet },
}

/// Chooses the link's addresses.
///
/// `used` are the host's addresses and on-link prefixes, `ipv6` whether the sandbox gets IPv6 at all.
///
/// # Errors
/// When a pool or an explicit address cannot be used beside what the host uses.
pub fn choose(
    interface: &InterfaceConfig,
    used: &[IpNet],
    ipv6: bool,
    preferred: u32,
) -> Result<LinkAddresses, SlotError> {
    let (gateway4, guest4) = match interface.ipv4_address {
        Some(guest) => explicit4(guest, used)?,
        None => slot4(interface.ipv4_pool, used, preferred)?,
    };
    let v6 = match (ipv6, interface.ipv6_address) {
        (false, _) => None,
        (true, Some(guest)) => Some(explicit6(guest, used)?),
        (true, None) => Some(slot6(interface.ipv6_pool, used, preferred)?),
    };
    Ok(LinkAddresses { guest4, gateway4, prefix4: SLOT4, v6 })
}

fn slot4(pool: Ipv4Net, used: &[IpNet], preferred: u32) -> Result<(Ipv4Addr, Ipv4Addr), SlotError> {
    let option = "--ipv4-pool";
    let shown = IpNet::V4(pool.trunc());
    if pool.prefix_len() > SLOT4 {
        return Err(SlotError::PoolTooSmall { option, pool: shown, needed: SLOT4 });
    }
    let conflict = used.iter().find(|net| overlaps(&shown, net));
    if let (Some(used), true) = (conflict, pool != DEFAULT_IPV4_POOL) {
        return Err(SlotError::PoolOverlaps { option, pool: shown, used: *used });
    }
    let slots = 1_u32 << (SLOT4 - pool.prefix_len());
    let first = u32::from(pool.network());
    let base = search(u128::from(slots), preferred, |slot| {
        let base = first + u32::try_from(slot).ok()? * 4;
        // 172.16.0.0/30 and its like read as typing errors in logs, but they are as good as the others.
        let net = IpNet::V4(Ipv4Net::new(Ipv4Addr::from(base), SLOT4).ok()?);
        skip_past(&net, used).map_or(Some(Found::Free(base)), |last| match last {
            IpAddr::V4(last) => Some(Found::Next(u128::from((u32::from(last).saturating_sub(first)) / 4) + 1)),
            IpAddr::V6(_) => None,
        })
    });
    match (base, conflict) {
        (Some(base), _) => Ok((Ipv4Addr::from(base + 1), Ipv4Addr::from(base + 2))),
        (None, conflict) => {
            Err(SlotError::PoolExhausted { option, pool: shown, used: conflict.copied().unwrap_or(shown) })
        }
    }
}

fn slot6(pool: Ipv6Net, used: &[IpNet], preferred: u32) -> Result<Link6, SlotError> {
    let option = "--ipv6-pool";
    let shown = IpNet::V6(pool.trunc());
    if pool.prefix_len() > SLOT6 {
        return Err(SlotError::PoolTooSmall { option, pool: shown, needed: SLOT6 });
    }
    let conflict = used.iter().find(|net| overlaps(&shown, net));
    if let (Some(used), true) = (conflict, pool != DEFAULT_IPV6_POOL) {
        return Err(SlotError::PoolOverlaps { option, pool: shown, used: *used });
    }
    // The slot number is bits 64.. of the address; a pool of /0 would have 2^64 of them.
    let slots = 1_u128 << (SLOT6 - pool.prefix_len());
    let first = u128::from(pool.network());
    let base = search(slots, preferred, |slot| {
        let base = first + (slot << 64);
        let net = IpNet::V6(Ipv6Net::new(Ipv6Addr::from(base), SLOT6).ok()?);
        skip_past(&net, used).map_or(Some(Found::Free(base)), |last| match last {
            IpAddr::V6(last) => Some(Found::Next(((u128::from(last).saturating_sub(first)) >> 64) + 1)),
            IpAddr::V4(_) => None,
        })
    });
    match (base, conflict) {
        (Some(base), _) => {
            Ok(Link6 { gateway: Ipv6Addr::from(base + 1), guest: Ipv6Addr::from(base + 2), prefix: SLOT6 })
        }
        (None, conflict) => {
            Err(SlotError::PoolExhausted { option, pool: shown, used: conflict.copied().unwrap_or(shown) })
        }
    }
}

fn explicit4(guest: Ipv4Addr, used: &[IpNet]) -> Result<(Ipv4Addr, Ipv4Addr), SlotError> {
    let bits = u32::from(guest);
    let slot = IpNet::V4(Ipv4Net::new_assert(guest, SLOT4).trunc());
    let gateway = match bits & 3 {
        1 => bits + 1,
        2 => bits - 1,
        _ => return Err(SlotError::AddressUnusable { address: guest.into(), slot }),
    };
    match used.iter().find(|net| overlaps(&slot, net)) {
        Some(used) => Err(SlotError::AddressOverlaps { address: guest.into(), used: *used }),
        None => Ok((Ipv4Addr::from(gateway), guest)),
    }
}

fn explicit6(guest: Ipv6Addr, used: &[IpNet]) -> Result<Link6, SlotError> {
    let net = Ipv6Net::new_assert(guest, SLOT6).trunc();
    let gateway = Ipv6Addr::from(u128::from(net.network()) + 1);
    let slot = IpNet::V6(net);
    if guest == gateway || guest == net.network() {
        return Err(SlotError::AddressUnusable { address: guest.into(), slot });
    }
    match used.iter().find(|net| overlaps(&slot, net)) {
        Some(used) => Err(SlotError::AddressOverlaps { address: guest.into(), used: *used }),
        None => Ok(Link6 { guest, gateway, prefix: SLOT6 }),
    }
}

/// One step of [`search`].
enum Found<T> {
    Free(T),
    /// Taken; the first slot past what takes it.
    Next(u128),
}

/// Tries slots from `preferred` on, once around. Each step passes a whole network of the host, so the number of steps
/// is bounded by twice the number of those networks.
fn search<T>(slots: u128, preferred: u32, mut probe: impl FnMut(u128) -> Option<Found<T>>) -> Option<T> {
    let start = u128::from(preferred) % slots;
    let mut from = start;
    while from < slots {
        match probe(from)? {
            Found::Free(value) => return Some(value),
            Found::Next(next) => from = next.max(from + 1),
        }
    }
    from = 0;
    while from < start {
        match probe(from)? {
            Found::Free(value) => return Some(value),
            Found::Next(next) => from = next.max(from + 1),
        }
    }
    None
}

/// The last address of a network of the host that overlaps `slot`.
fn skip_past(slot: &IpNet, used: &[IpNet]) -> Option<IpAddr> {
    used.iter().find(|net| overlaps(slot, net)).map(IpNet::broadcast)
}

fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_first_addresses_of_the_preferred_slot() {
        let link = choose(&interface(), &[], true, 5).unwrap();
        assert_eq!(link.gateway4, Ipv4Addr::new(172, 16, 0, 21));
        assert_eq!(link.guest4, Ipv4Addr::new(172, 16, 0, 22));
        assert_eq!(link.prefix4, 30);
        let v6 = link.v6.unwrap();
        assert_eq!(v6.gateway, "fd42:6d73:62:5::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(v6.guest, "fd42:6d73:62:5::2".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn any_preferred_number_lands_in_the_pool() {
        for preferred in [0, 1, 65_535, 65_536, 262_143, 262_144, u32::MAX] {
            let link = choose(&interface(), &[], true, preferred).unwrap();
            assert!(DEFAULT_IPV4_POOL.contains(&link.guest4));
            assert!(DEFAULT_IPV6_POOL.contains(&link.v6.unwrap().guest));
        }
    }

    #[test]
    fn the_default_pool_goes_round_a_container_bridge() {
        let used = [net("172.17.0.1/16"), net("172.16.0.0/16")];
        let link = choose(&interface(), &used, false, 3).unwrap();
        assert_eq!(link.gateway4, Ipv4Addr::new(172, 18, 0, 1));
        // The last slots are taken too: the search goes on at the front.
        let used = [net("172.31.0.0/16")];
        let link = choose(&interface(), &used, false, 262_143).unwrap();
        assert_eq!(link.gateway4, Ipv4Addr::new(172, 16, 0, 1));
    }

    #[test]
    fn a_pool_that_somebody_chose_must_not_overlap() {
        let mut interface = interface();
        interface.ipv4_pool = "10.0.0.0/8".parse().unwrap();
        let error = choose(&interface, &[net("10.1.2.3/24")], false, 0).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("10.0.0.0/8") && text.contains("10.1.2.3/24"), "{text}");
    }

    #[test]
    fn a_host_that_uses_the_whole_default_pool_is_told_so() {
        let error = choose(&interface(), &[net("172.16.0.0/12")], false, 9).unwrap_err();
        assert!(error.to_string().contains("--ipv4-pool"), "{error}");
    }

    #[test]
    fn pools_hold_at_least_one_slot() {
        let mut small = interface();
        small.ipv4_pool = "10.9.0.0/31".parse().unwrap();
        assert!(matches!(choose(&small, &[], false, 0), Err(SlotError::PoolTooSmall { .. })));
        let mut exact = interface();
        exact.ipv4_pool = "10.9.0.4/30".parse().unwrap();
        assert_eq!(choose(&exact, &[], false, 7).unwrap().guest4, Ipv4Addr::new(10, 9, 0, 6));
        let mut wide = interface();
        wide.ipv4_pool = "0.0.0.0/0".parse().unwrap();
        wide.ipv6_pool = "::/0".parse().unwrap();
        assert!(choose(&wide, &[], true, u32::MAX).is_ok());
    }

    #[test]
    fn explicit_addresses_bring_their_gateway() {
        let mut chosen = interface();
        chosen.ipv4_address = Some(Ipv4Addr::new(10, 0, 0, 1));
        chosen.ipv6_address = Some("fd00::9".parse().unwrap());
        let link = choose(&chosen, &[], true, 0).unwrap();
        assert_eq!(link.gateway4, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(link.v6.unwrap().gateway, "fd00::1".parse::<Ipv6Addr>().unwrap());
        chosen.ipv4_address = Some(Ipv4Addr::new(10, 0, 0, 3));
        assert!(matches!(choose(&chosen, &[], false, 0), Err(SlotError::AddressUnusable { .. })));
        chosen.ipv4_address = Some(Ipv4Addr::new(10, 0, 0, 2));
        let taken = [net("10.0.0.0/24")];
        assert!(matches!(choose(&chosen, &taken, false, 0), Err(SlotError::AddressOverlaps { .. })));
    }

    fn interface() -> InterfaceConfig {
        InterfaceConfig {
            mtu: 1500,
            ipv4_pool: DEFAULT_IPV4_POOL,
            ipv6_pool: DEFAULT_IPV6_POOL,
            ipv6: None,
            ipv4_address: None,
            ipv6_address: None,
        }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }
}
