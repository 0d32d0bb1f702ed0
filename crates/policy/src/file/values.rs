//! Values that flags and files have in common, and their bounds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use cofferdam_model::{BucketConfig, DomainName, Nameserver, NameserverHost, NameserverOver};
use ipnet::{Ipv4Net, Ipv6Net};

/// Why a value is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ValueError {
    #[error(
        "{text:?} is not a nameserver; expected `IP`, `IP:PORT`, `[IPv6]:PORT`, a name in their place, `tls://HOST` or `https://HOST/PATH`"
    )]
    Nameserver { text: String },
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
    #[error(
        "{ms} ms is out of bounds for the shortest time that a name stays bound to an address; expected {min} to {max}"
    )]
    PinFloor { ms: u64, min: u64, max: u64 },
    #[error("a rate limit with a size of 0 would let nothing pass; leave it out for no limit")]
    BucketSize,
    #[error("a refill time of {ms} ms is out of bounds; expected 1 to {max}")]
    RefillTime { ms: u128, max: u64 },
}

const DNS_PORT: u16 = 53;
/// RFC 7858 §3.1.
const DNS_OVER_TLS_PORT: u16 = 853;
const HTTPS_PORT: u16 = 443;
/// IPv6 needs 1280 (RFC 8200 §5).
const MTU_MIN: u32 = 1280;
/// What fits into a TUN packet of 65,535 bytes behind the header of an offload, rounded down to a multiple of 16.
const MTU_MAX: u32 = 65_520;
/// One day: longer is a mistake in the unit.
const TIMEOUT_MAX_MS: u64 = 86_400_000;
/// In less than a second a program may not come from an answer to its connection.
const PIN_FLOOR_MIN_MS: u64 = 1_000;
/// A sandbox has a link of two addresses (IPv4) and one subnet (IPv6) of its own.
const SLOT_V4: u8 = 30;
const SLOT_V6: u8 = 64;

/// Where a resolver is and how it is asked; `docs/names.md` has the forms.
pub(super) fn nameserver(text: &str) -> Result<Nameserver, ValueError> {
    let wrong = || ValueError::Nameserver { text: text.to_owned() };
    let (encrypted, rest) = match text.split_once("://") {
        None => (None, text),
        Some(("tls", rest)) => (Some(DNS_OVER_TLS_PORT), rest),
        Some(("https", rest)) => (Some(HTTPS_PORT), rest),
        Some(_) => return Err(wrong()),
    };
    let (rest, name) = match rest.split_once('#') {
        Some((rest, name)) if encrypted.is_some() => (rest, Some(name.parse::<DomainName>().map_err(|_| wrong())?)),
        Some(_) => return Err(wrong()),
        None => (rest, None),
    };
    let (authority, over) = match encrypted {
        None => (rest, NameserverOver::Plain),
        Some(HTTPS_PORT) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            (authority, NameserverOver::Https { name, path: https_path(path).ok_or_else(wrong)? })
        }
        Some(_) => (rest, NameserverOver::Tls { name }),
    };
    let (host, port) = host_and_port(authority).ok_or_else(wrong)?;
    let port = port.unwrap_or(encrypted.unwrap_or(DNS_PORT));
    if port == 0 {
        return Err(ValueError::NameserverPort { text: text.to_owned() });
    }
    let host = match host {
        NameserverHost::Address(address) => {
            let address = address.to_canonical();
            if address.is_unspecified() || address.is_multicast() {
                return Err(ValueError::NameserverAddress { text: text.to_owned() });
            }
            NameserverHost::Address(address)
        }
        name @ NameserverHost::Name(_) => name,
    };
    Ok(Nameserver { host, port, over })
}

/// `IP`, `IPv6` in brackets or without, or a name; all but a bare IPv6 address with a port or without.
fn host_and_port(text: &str) -> Option<(NameserverHost, Option<u16>)> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some((NameserverHost::Address(address), None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let port = if rest.is_empty() { None } else { Some(port(rest.strip_prefix(':')?)?) };
        return Some((NameserverHost::Address(address.parse::<Ipv6Addr>().ok()?.into()), port));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, text)) => (host, Some(port(text)?)),
        None => (text, None),
    };
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Some((NameserverHost::Address(address.into()), port));
    }
    let name: DomainName = host.parse().ok()?;
    // No top-level domain is a number (RFC 3696 §2): this was meant to be an address.
    let is_number = name.labels().next_back().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
    (!is_number).then_some((NameserverHost::Name(name), port))
}

fn port(text: &str) -> Option<u16> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// A path as it goes into a request; servers' documents often end theirs with a template for the other method.
fn https_path(text: &str) -> Option<String> {
    const LONGEST: usize = 255;
    let path = text.strip_suffix("{?dns}").unwrap_or(text);
    let path = if path.is_empty() { "/dns-query" } else { path };
    let is_good =
        path.len() <= LONGEST && path.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}<>\"".contains(&byte));
    is_good.then(|| path.to_owned())
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

pub(super) fn pin_floor(ms: u64) -> Result<Duration, ValueError> {
    match ms {
        PIN_FLOOR_MIN_MS..=TIMEOUT_MAX_MS => Ok(Duration::from_millis(ms)),
        _ => Err(ValueError::PinFloor { ms, min: PIN_FLOOR_MIN_MS, max: TIMEOUT_MAX_MS }),
    }
}

/// Budgets of one sandbox; the gate has a bit for each.
pub(super) const MAX_BUDGETS: usize = 64;

pub(super) fn bucket(size: u64, refill_time_ms: u128, one_time_burst: u64) -> Result<BucketConfig, ValueError> {
    let refill_time = u64::try_from(refill_time_ms).ok().filter(|ms| (1..=TIMEOUT_MAX_MS).contains(ms));
    match refill_time {
        _ if size == 0 => Err(ValueError::BucketSize),
        Some(ms) => Ok(BucketConfig { size, refill_time: Duration::from_millis(ms), one_time_burst }),
        None => Err(ValueError::RefillTime { ms: refill_time_ms, max: TIMEOUT_MAX_MS }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let Ok(Nameserver { host, port, over }) = nameserver(text) else { return "wrong".to_owned() };
        let host = match host {
            NameserverHost::Address(address) => address.to_string(),
            NameserverHost::Name(name) => name.to_string(),
        };
        let name = |name: Option<DomainName>| name.map_or("-".to_owned(), |name| name.to_string());
        match over {
            NameserverOver::Plain => format!("{host} {port}"),
            NameserverOver::Tls { name: n } => format!("tls {host} {port} {}", name(n)),
            NameserverOver::Https { name: n, path } => format!("https {host} {port} {} {path}", name(n)),
        }
    }

    #[test]
    fn nameservers_are_read_in_every_form() {
        for (text, expected) in [
            ("1.1.1.1", "1.1.1.1 53"),
            ("1.1.1.1:5353", "1.1.1.1 5353"),
            ("2606:4700::1111", "2606:4700::1111 53"),
            ("[2606:4700::1111]", "2606:4700::1111 53"),
            ("[2606:4700::1111]:5353", "2606:4700::1111 5353"),
            ("::ffff:1.1.1.1", "1.1.1.1 53"),
            ("dns.Example.org", "dns.example.org 53"),
            ("dns.example.org:54", "dns.example.org 54"),
            ("tls://1.1.1.1", "tls 1.1.1.1 853 -"),
            ("tls://[2606:4700::1111]:8853", "tls 2606:4700::1111 8853 -"),
            ("tls://2606:4700::1111", "tls 2606:4700::1111 853 -"),
            ("tls://dns.example.org", "tls dns.example.org 853 -"),
            ("tls://1.1.1.1#one.one.one.one", "tls 1.1.1.1 853 one.one.one.one"),
            ("https://dns.example.org", "https dns.example.org 443 - /dns-query"),
            ("https://dns.example.org/", "https dns.example.org 443 - /"),
            ("https://dns.example.org:8443/q?x=1", "https dns.example.org 8443 - /q?x=1"),
            ("https://dns.example.org/dns-query{?dns}", "https dns.example.org 443 - /dns-query"),
            ("https://[2606:4700::1111]/q#dns.example.org", "https 2606:4700::1111 443 dns.example.org /q"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_nameserver_is_refused() {
        for text in [
            "",
            " 1.1.1.1",
            "1.1.1",
            "1.1.1.1.1",
            "1.1.1.1:",
            "1.1.1.1:0",
            "1.1.1.1:+53",
            "1.1.1.1:65536",
            "[1.1.1.1]",
            "[::1",
            "[2606:4700::1111]53",
            "0.0.0.0",
            "::",
            "224.0.0.251",
            "ff02::fb",
            "not a name",
            "1.1.1.1#name.example",
            "tls://",
            "tls://1.1.1.1/",
            "tls://1.1.1.1#",
            "tls://1.1.1.1:0",
            "https://",
            "https:///dns-query",
            "https://dns.example.org/a b",
            "https://dns.example.org/\r\nHost:evil",
            "https://user@dns.example.org/",
            "http://dns.example.org/",
            "quic://dns.example.org",
        ] {
            assert_eq!(shown(text), "wrong", "{text}");
        }
    }
}
