//! Values that flags and files have in common, and their bounds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ValueError {
    #[error("{text:?} is not a nameserver; expected `IP`, `IP:PORT` or `[IPv6]:PORT`")]
    Nameserver { text: String },
    #[error("nameservers over TLS or HTTPS, such as {text:?}, are not supported yet; expected `IP` or `IP:PORT`")]
    EncryptedNameserver { text: String },
    #[error("the nameserver {text:?} has port 0")]
    NameserverPort { text: String },
    #[error("the nameserver {text:?} is not an address of a machine")]
    NameserverAddress { text: String },
    #[error("an MTU of {mtu} is out of bounds; expected 1280 to 65520")]
    Mtu { mtu: u32 },
    #[error("{text:?} is not an IPv4 network; expected one like `172.16.0.0/12`")]
    Ipv4Pool { text: String },
    #[error("{text:?} is not an IPv6 network; expected one like `fd42:6d73:62::/48`")]
    Ipv6Pool { text: String },
    #[error("the network {text:?} has bits set behind its prefix; did you mean `{network}`?")]
    HostBits { text: String, network: String },
    #[error("the pool {text:?} is too small; a sandbox takes a /{needed}")]
    PoolTooSmall { text: String, needed: u8 },
    #[error("{text:?} is not an IPv4 address that a guest can have")]
    Ipv4Address { text: String },
    #[error("{text:?} is not an IPv6 address that a guest can have")]
    Ipv6Address { text: String },
    #[error("a timeout of 0 ms would fail every time; expected 1 to {max}")]
    Timeout { max: u64 },
    #[error("a timeout of {ms} ms is out of bounds; expected 1 to {max}")]
    TimeoutTooLong { ms: u64, max: u64 },
}

/// IPv6 needs 1280 (RFC 8200 §5).
const MTU_MIN: u32 = 1280;
/// What fits into a TUN packet of 65,535 bytes behind the header of an offload, rounded down to a multiple of 16.
const MTU_MAX: u32 = 65_520;
/// One day: longer is a mistake in the unit.
const TIMEOUT_MAX_MS: u64 = 86_400_000;
/// A sandbox has a link of two addresses (IPv4) and one subnet (IPv6) of its own.
const SLOT_V4: u8 = 30;
const SLOT_V6: u8 = 64;

pub(super) fn nameserver(text: &str) -> Result<SocketAddr, ValueError> {
    let owned = || text.to_owned();
    if text.starts_with("tls://") || text.starts_with("https://") {
        return Err(ValueError::EncryptedNameserver { text: owned() });
    }
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let bare = match bracketed {
        Some(v6) => v6.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse::<IpAddr>().ok(),
    };
    let server = match bare {
        Some(address) => SocketAddr::new(address, 53),
        None => text.parse::<SocketAddr>().map_err(|_| ValueError::Nameserver { text: owned() })?,
    };
    if server.port() == 0 {
        return Err(ValueError::NameserverPort { text: owned() });
    }
    let address = server.ip().to_canonical();
    if address.is_unspecified() || address.is_multicast() {
        return Err(ValueError::NameserverAddress { text: owned() });
    }
    Ok(SocketAddr::new(address, server.port()))
}

pub(super) fn mtu(mtu: u32) -> Result<u16, ValueError> {
    u16::try_from(mtu).ok().filter(|_| (MTU_MIN..=MTU_MAX).contains(&mtu)).ok_or(ValueError::Mtu { mtu })
}

pub(super) fn ipv4_pool(text: &str) -> Result<Ipv4Net, ValueError> {
    let net: Ipv4Net = text.parse().map_err(|_| ValueError::Ipv4Pool { text: text.to_owned() })?;
    if net.trunc() != net {
        return Err(ValueError::HostBits { text: text.to_owned(), network: net.trunc().to_string() });
    }
    if net.prefix_len() > SLOT_V4 {
        return Err(ValueError::PoolTooSmall { text: text.to_owned(), needed: SLOT_V4 });
    }
    Ok(net)
}

pub(super) fn ipv6_pool(text: &str) -> Result<Ipv6Net, ValueError> {
    let net: Ipv6Net = text.parse().map_err(|_| ValueError::Ipv6Pool { text: text.to_owned() })?;
    if net.trunc() != net {
        return Err(ValueError::HostBits { text: text.to_owned(), network: net.trunc().to_string() });
    }
    if net.prefix_len() > SLOT_V6 {
        return Err(ValueError::PoolTooSmall { text: text.to_owned(), needed: SLOT_V6 });
    }
    Ok(net)
}

pub(super) fn ipv4_address(text: &str) -> Result<Ipv4Addr, ValueError> {
    let usable = |v4: &Ipv4Addr| !(v4.is_unspecified() || v4.is_multicast() || v4.is_loopback() || v4.is_broadcast());
    text.parse().ok().filter(usable).ok_or_else(|| ValueError::Ipv4Address { text: text.to_owned() })
}

pub(super) fn ipv6_address(text: &str) -> Result<Ipv6Addr, ValueError> {
    let usable = |v6: &Ipv6Addr| {
        !(v6.is_unspecified() || v6.is_multicast() || v6.is_loopback() || v6.to_ipv4_mapped().is_some())
    };
    text.parse().ok().filter(usable).ok_or_else(|| ValueError::Ipv6Address { text: text.to_owned() })
}

pub(super) fn timeout(ms: u64) -> Result<Duration, ValueError> {
    match ms {
        0 => Err(ValueError::Timeout { max: TIMEOUT_MAX_MS }),
        1..=TIMEOUT_MAX_MS => Ok(Duration::from_millis(ms)),
        _ => Err(ValueError::TimeoutTooLong { ms, max: TIMEOUT_MAX_MS }),
    }
}
