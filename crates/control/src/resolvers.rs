//! The host's resolvers, as its stub resolver knows them (resolv.conf(5)).

use std::fs;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::Path;

/// The resolvers that `/etc/resolv.conf` names, in order; none when there is no such file.
///
/// A stub on the host's loopback (127.0.0.53) is as good as any: the gateway asks from the host's own network.
#[must_use]
pub(crate) fn of_host() -> Vec<SocketAddr> {
    fs::read_to_string("/etc/resolv.conf").map(|text| parse(&text, interface_index)).unwrap_or_default()
}

/// The `nameserver` lines of a resolv.conf; what cannot be understood is passed over, as the C library does.
fn parse(text: &str, index_of: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let server = words.next().and_then(|word| server(word, &index_of));
        if let Some(server) = server.filter(|server| !servers.contains(server)) {
            servers.push(server);
        }
    }
    servers
}

fn server(word: &str, index_of: &impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    const DNS: u16 = 53;
    if let Ok(address) = word.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, DNS));
    }
    // A link-local server carries its interface: fe80::1%eth0.
    let (address, zone) = word.split_once('%')?;
    let scope = zone.parse().ok().or_else(|| index_of(zone))?;
    Some(SocketAddrV6::new(address.parse().ok()?, DNS, 0, scope).into())
}

fn interface_index(name: &str) -> Option<u32> {
    // The name becomes a path: it must be one component.
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return None;
    }
    fs::read_to_string(Path::new("/sys/class/net").join(name).join("ifindex")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_resolv_conf_may_hold() {
        let text = "# comment\nsearch corp.example\nnameserver 127.0.0.53\n  nameserver\t2001:db8::1 trailing\nnameserver 127.0.0.53\n\
                    nameserver fe80::1%eth0\nnameserver fe80::2%7\nnameserver nonsense\nnameserver\noptions edns0\n; nameserver 1.1.1.1\n";
        let servers = parse(text, |name| (name == "eth0").then_some(3));
        let shown: Vec<String> = servers.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.53:53", "[2001:db8::1]:53", "[fe80::1%3]:53", "[fe80::2%7]:53"]);
    }

    #[test]
    fn an_interface_name_is_never_a_path() {
        assert_eq!(interface_index("../../etc"), None);
        assert_eq!(interface_index(""), None);
        assert_eq!(interface_index("lo"), Some(1));
    }
}
