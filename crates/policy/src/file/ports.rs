//! Published ports as they are written: `[BIND:]HOST:GUEST[/tcp|/udp]`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use cofferdam_model::{NetworkConfig, PortProtocol, PublishedPort};

use crate::file::error::ConfigError;
use crate::file::raw::{RawPublished, RawPublishedPort};
use crate::nearest::nearest;

/// Ports that one sandbox may publish: half of the descriptors that a process usually has (`RLIMIT_NOFILE`).
pub const MAX_PORTS: usize = 512;

/// Why a published port is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    #[error("{text:?} is not a published port; expected `[BIND:]HOST:GUEST[/tcp|/udp]`")]
    Form { text: String },
    #[error("{text:?} names one port; expected two, the host's and the sandbox's")]
    OnePort { text: String },
    #[error("{text:?} is not a port; expected a number from 0 to 65535 or a range `lo-hi`")]
    Port { text: String },
    #[error("port {port} is out of bounds; the highest is 65535")]
    TooHigh { port: u64 },
    #[error("port 0 in the sandbox is none that a program can listen on; expected 1 to 65535")]
    GuestZero,
    #[error("a range that begins with 0 names no ports")]
    RangeZero,
    #[error("the range {text:?} runs backwards")]
    Backwards { text: String },
    #[error(
        "the ranges {host:?} and {guest:?} differ in length: {host_len} of the host's for {guest_len} of the sandbox's"
    )]
    Unequal { host: String, guest: String, host_len: u32, guest_len: u32 },
    #[error("{text:?} is not an address of the host to bind to")]
    Bind { text: String },
    #[error("{text:?} is a multicast address, which takes no connections")]
    Multicast { text: String },
    #[error("{text:?} is IPv4 in the form of IPv6; write {address}")]
    Mapped { text: String, address: Ipv4Addr },
    #[error("unknown protocol {word:?}; expected tcp or udp")]
    Protocol { word: String },
}

impl PortError {
    /// What to write instead.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            PortError::OnePort { text } => {
                Some(format!("write {text}:{text}, or 0:{text} for any port of the host that is free"))
            }
            PortError::Bind { text } => match text.as_str() {
                "localhost" => Some("write 127.0.0.1 or [::1]".to_owned()),
                "*" => Some("write 0.0.0.0 for every IPv4 address, or [::] for every IPv6 address".to_owned()),
                _ if text.parse::<Ipv6Addr>().is_ok() => Some(format!("put IPv6 in brackets: [{text}]:HOST:GUEST")),
                _ => Some("write an address such as 127.0.0.1, 0.0.0.0 or [::1]; names are not looked up".to_owned()),
            },
            PortError::Protocol { word } => nearest(word, ["tcp", "udp"]).map(|word| format!("did you mean `{word}`?")),
            PortError::Form { text } if text.matches(':').count() > 2 => {
                Some("put IPv6 in brackets: [::1]:8080:80".to_owned())
            }
            PortError::Form { .. }
            | PortError::Port { .. }
            | PortError::TooHigh { .. }
            | PortError::GuestZero
            | PortError::RangeZero
            | PortError::Backwards { .. }
            | PortError::Unequal { .. }
            | PortError::Multicast { .. }
            | PortError::Mapped { .. } => None,
        }
    }
}

/// The ports that one specification names.
///
/// # Errors
/// What is wrong with it.
pub fn parse_port(text: &str) -> Result<Vec<PublishedPort>, PortError> {
    let form = || PortError::Form { text: text.to_owned() };
    let (rest, protocol) = match text.split_once('/') {
        None => (text, PortProtocol::Tcp),
        Some((rest, "tcp")) => (rest, PortProtocol::Tcp),
        Some((rest, "udp")) => (rest, PortProtocol::Udp),
        Some((_, word)) => return Err(PortError::Protocol { word: word.to_owned() }),
    };
    let (host_bind, ports) = if let Some(after) = rest.strip_prefix('[') {
        let (address, ports) = after.split_once(']').ok_or_else(form)?;
        let address = address.parse::<Ipv6Addr>().map_err(|_| PortError::Bind { text: address.to_owned() })?;
        (usable(address.into())?, ports.strip_prefix(':').ok_or_else(form)?)
    } else if rest.matches(':').count() == 2 {
        let (address, ports) = rest.split_once(':').ok_or_else(form)?;
        (bind(address)?, ports)
    } else {
        (IpAddr::V4(Ipv4Addr::LOCALHOST), rest)
    };
    let Some((host, guest)) = ports.split_once(':') else {
        let is_port = !ports.is_empty() && ports.bytes().all(|byte| byte.is_ascii_digit());
        return Err(if is_port { PortError::OnePort { text: ports.to_owned() } } else { form() });
    };
    if guest.contains(':') || guest.is_empty() || host.is_empty() {
        return Err(form());
    }
    let (host_range, guest_range) = (range(host)?, range(guest)?);
    if guest_range.0 == 0 {
        return Err(PortError::GuestZero);
    }
    if host_range.0 == 0 && host_range.1 != 0 {
        return Err(PortError::RangeZero);
    }
    let [host_len, guest_len] = [host_range, guest_range].map(|(lo, hi)| u32::from(hi - lo) + 1);
    if host_len != guest_len {
        let (host, guest) = (host.to_owned(), guest.to_owned());
        return Err(PortError::Unequal { host, guest, host_len, guest_len });
    }
    let pairs = (host_range.0..=host_range.1).zip(guest_range.0..=guest_range.1);
    let port = |(host_port, guest_port)| {
        let guest_port = NonZeroU16::new(guest_port).ok_or(PortError::GuestZero)?;
        Ok(PublishedPort { host_bind, host_port, guest_port, protocol })
    };
    pairs.map(port).collect()
}

/// Adds the ports of a file.
pub(super) fn from_entries(
    name: &str,
    entries: Vec<RawPublished>,
    ports: &mut Vec<PublishedPort>,
    errors: &mut Vec<ConfigError>,
) {
    for (at, entry) in entries.into_iter().enumerate() {
        let parsed = match entry {
            RawPublished::Text(text) => parse_port(&text),
            RawPublished::Object(raw) => from_object(&raw).map(|port| vec![port]),
        };
        add(&format!("{name}: ports[{at}]"), parsed, ports, errors);
    }
}

/// Uses good ports, notes a bad one.
pub(super) fn add(
    origin: &str,
    parsed: Result<Vec<PublishedPort>, PortError>,
    ports: &mut Vec<PublishedPort>,
    errors: &mut Vec<ConfigError>,
) {
    match parsed {
        Ok(parsed) => ports.extend(parsed),
        Err(error) => errors.push(ConfigError::new(origin, &error).help(error.help())),
    }
}

/// What all ports together have to fulfil.
pub(super) fn check(config: &NetworkConfig, errors: &mut Vec<ConfigError>) {
    let ports = config.ports.as_slice();
    let (Some(first), origin) = (ports.first(), "ports") else { return };
    if !config.enabled {
        let message = format!("{first} would lead to a sandbox without a network");
        let help = "leave out `--no-net` (or `--net none`, mode `blocked`, or the file's preset `none`), or the published ports";
        return errors.push(ConfigError::new(origin, message).help(help.to_owned()));
    }
    if ports.len() > MAX_PORTS {
        let message = format!("{} ports are more than one sandbox can publish; the bound is {MAX_PORTS}", ports.len());
        return errors.push(ConfigError::new(origin, message));
    }
    for (at, port) in ports.iter().enumerate() {
        let earlier = ports.get(..at).unwrap_or_default();
        if let Some(other) = earlier.iter().find(|other| other.overlaps(port)) {
            let message = format!("{port} takes the same port of the host as {other}");
            // A range that overlaps another does so many times over.
            return errors.push(ConfigError::new(origin, message).help("leave one of them out".to_owned()));
        }
    }
}

fn from_object(raw: &RawPublishedPort) -> Result<PublishedPort, PortError> {
    let number = |port: u64| u16::try_from(port).map_err(|_| PortError::TooHigh { port });
    let host_bind = match &raw.host_bind {
        None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(text) => usable(text.parse().map_err(|_| PortError::Bind { text: text.clone() })?)?,
    };
    let guest_port = NonZeroU16::new(number(raw.guest_port)?).ok_or(PortError::GuestZero)?;
    Ok(PublishedPort { host_bind, host_port: number(raw.host_port)?, guest_port, protocol: raw.protocol })
}

fn bind(text: &str) -> Result<IpAddr, PortError> {
    let address = text.parse::<Ipv4Addr>().map_err(|_| PortError::Bind { text: text.to_owned() })?;
    usable(address.into())
}

fn usable(address: IpAddr) -> Result<IpAddr, PortError> {
    if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(PortError::Multicast { text: address.to_string() });
    }
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(address) => Err(PortError::Mapped { text: v6.to_string(), address }),
            None => Ok(address),
        },
        IpAddr::V4(_) => Ok(address),
    }
}

/// A port or a range, both ends included.
fn range(text: &str) -> Result<(u16, u16), PortError> {
    let (lo, hi) = text.split_once('-').unwrap_or((text, text));
    let (lo, hi) = (number(lo)?, number(hi)?);
    if lo > hi { Err(PortError::Backwards { text: text.to_owned() }) } else { Ok((lo, hi)) }
}

fn number(text: &str) -> Result<u16, PortError> {
    let wrong = || PortError::Port { text: text.to_owned() };
    if text.is_empty() || text.len() > 10 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let port: u64 = text.parse().map_err(|_| wrong())?;
    u16::try_from(port).map_err(|_| PortError::TooHigh { port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Vec<String> {
        parse_port(text).unwrap_or_else(|error| panic!("{text}: {error}")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ports_are_read_in_every_form() {
        for (text, expected) in [
            ("8080:80", &["127.0.0.1:8080:80/tcp"][..]),
            ("8080:80/udp", &["127.0.0.1:8080:80/udp"]),
            ("0:80", &["127.0.0.1:0:80/tcp"]),
            ("0.0.0.0:8080:80/tcp", &["0.0.0.0:8080:80/tcp"]),
            ("[::1]:8080:80", &["[::1]:8080:80/tcp"]),
            ("[::]:53:53/udp", &["[::]:53:53/udp"]),
            ("8000-8002:9000-9002", &["127.0.0.1:8000:9000/tcp", "127.0.0.1:8001:9001/tcp", "127.0.0.1:8002:9002/tcp"]),
            ("[::1]:65534-65535:1-2/udp", &["[::1]:65534:1/udp", "[::1]:65535:2/udp"]),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_published_port_is_refused_with_the_reason() {
        for (text, reason, help) in [
            ("", "is not a published port", ""),
            ("http", "is not a published port", ""),
            ("80", "names one port", "80:80, or 0:80"),
            ("8080:", "is not a published port", ""),
            (":80", "is not a published port", ""),
            ("8080:0", "port 0 in the sandbox", ""),
            ("8080:0-3", "port 0 in the sandbox", ""),
            ("0-3:80-83", "begins with 0", ""),
            ("8080:80000", "port 80000 is out of bounds", ""),
            ("70000:80", "port 70000 is out of bounds", ""),
            ("8080:http", "\"http\" is not a port", ""),
            ("8080:-80", "\"\" is not a port", ""),
            ("8080:+80", "\"+80\" is not a port", ""),
            ("8010-8000:9000-9010", "runs backwards", ""),
            ("8000-8010:9000-9011", "11 of the host's for 12 of the sandbox's", ""),
            ("8000-8001:80", "2 of the host's for 1", ""),
            ("0:80-81", "1 of the host's for 2", ""),
            ("localhost:8080:80", "\"localhost\" is not an address", "127.0.0.1 or [::1]"),
            ("*:8080:80", "\"*\" is not an address", "0.0.0.0"),
            ("1.2.3:8080:80", "\"1.2.3\" is not an address", "names are not looked up"),
            ("::1:8080:80", "is not a published port", "brackets"),
            ("[::1:8080:80", "is not a published port", ""),
            ("[::1]8080:80", "is not a published port", ""),
            ("[127.0.0.1]:8080:80", "\"127.0.0.1\" is not an address", ""),
            ("[fe80::1%eth0]:8080:80", "is not an address", ""),
            ("[::ffff:127.0.0.1]:8080:80", "write 127.0.0.1", ""),
            ("224.0.0.1:8080:80", "multicast", ""),
            ("[ff02::1]:8080:80", "multicast", ""),
            ("8080:80/sctp", "unknown protocol \"sctp\"", ""),
            ("8080:80/tpc", "unknown protocol", "`tcp`"),
            ("8080:80/", "unknown protocol \"\"", ""),
            (" 8080:80", "\" 8080\" is not a port", ""),
        ] {
            let error = parse_port(text).expect_err(text);
            assert!(error.to_string().contains(reason), "{text}: {error}");
            assert!(error.help().unwrap_or_default().contains(help), "{text}: {:?}", error.help());
        }
    }
}
