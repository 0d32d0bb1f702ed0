//! The resolvers of a sandbox: the host's, as its stub resolver knows them (resolv.conf(5)), or those that were configured.

use std::net::{IpAddr, SocketAddr, SocketAddrV6, ToSocketAddrs as _};
use std::path::Path;
use std::{fs, io};

use cofferdam_backend_ns::ResolverFile;
use cofferdam_gateway::{DnsUpstream, DnsWay};
use cofferdam_model::{DomainName, Nameserver, NameserverHost, NameserverOver};

/// The resolvers that `/etc/resolv.conf` names, in order; none when there is no such file.
///
/// A stub on the host's loopback (127.0.0.53) is as good as any: the gateway asks from the host's own network.
#[must_use]
pub(crate) fn of_host() -> Vec<SocketAddr> {
    read(Path::new(RESOLV_CONF))
}

/// The file that says so, to be followed.
pub(crate) fn file() -> ResolverFile {
    ResolverFile { path: RESOLV_CONF.into(), read }
}

fn read(path: &Path) -> Vec<SocketAddr> {
    fs::read_to_string(path).map(|text| parse(&text, interface_index)).unwrap_or_default()
}

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Addresses that one resolver's name may stand for; more would only stretch a failure.
const MAX_ADDRESSES: usize = 4;

/// A resolver's name could not be looked up.
#[derive(Debug, thiserror::Error)]
#[error("cannot look up {name}")]
pub struct LookUpError {
    name: DomainName,
    source: io::Error,
}

/// Puts addresses in the place of names, which stay what a certificate has to be for. Asks the host's own resolver.
pub(crate) fn look_up(servers: Vec<Nameserver>) -> Result<Vec<Nameserver>, LookUpError> {
    let mut found = Vec::with_capacity(servers.len());
    for server in servers {
        let NameserverHost::Name(host) = &server.host else {
            found.push(server);
            continue;
        };
        let failed = |source| LookUpError { name: host.clone(), source };
        let addresses = (host.as_str(), server.port).to_socket_addrs().map_err(failed)?;
        let named = |name: &Option<DomainName>| name.clone().or_else(|| Some(host.clone()));
        let over = match &server.over {
            NameserverOver::Plain => NameserverOver::Plain,
            NameserverOver::Tls { name } => NameserverOver::Tls { name: named(name) },
            NameserverOver::Https { name, path } => NameserverOver::Https { name: named(name), path: path.clone() },
        };
        let at = |address: SocketAddr| Nameserver {
            host: NameserverHost::Address(address.ip()),
            port: address.port(),
            over: over.clone(),
        };
        found.extend(addresses.take(MAX_ADDRESSES).map(at));
    }
    Ok(found)
}

/// Whether a gateway that asks `before` can be told to ask `after` in their place, or why not.
pub(crate) fn check_change(before: &[Nameserver], after: &[Nameserver]) -> Result<(), String> {
    let is_plain = |server: &Nameserver| server.over == NameserverOver::Plain;
    let is_address = |server: &Nameserver| matches!(server.host, NameserverHost::Address(_));
    let can_be_told = before.iter().all(is_plain) && after.iter().all(|server| is_plain(server) && is_address(server));
    if before == after || (can_be_told && !after.is_empty()) {
        return Ok(());
    }
    let why = "while it runs it can be told of other resolvers by their addresses alone, not by name, nor over TLS or HTTPS, nor of \
               the machine's in their place: stop it, and set them then";
    Err(why.to_owned())
}

/// A configured resolver as the gateway has it; `None` for a name that has not been looked up.
pub(crate) fn to_upstream(server: &Nameserver) -> Option<DnsUpstream> {
    let NameserverHost::Address(address) = server.host else { return None };
    let named = |name: &Option<DomainName>| name.as_ref().map_or_else(|| address.to_string(), ToString::to_string);
    let way = match &server.over {
        NameserverOver::Plain => DnsWay::Plain,
        NameserverOver::Tls { name } => DnsWay::Tls { name: named(name) },
        NameserverOver::Https { name, path } => {
            let host = match (name, address) {
                (None, IpAddr::V6(address)) => format!("[{address}]"),
                (Some(_), _) | (None, IpAddr::V4(_)) => named(name),
            };
            let authority = if server.port == 443 { host } else { format!("{host}:{}", server.port) };
            DnsWay::Https { name: named(name), authority, path: path.clone() }
        }
    };
    Some(DnsUpstream { address: SocketAddr::new(address, server.port), way })
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
    fn a_name_stays_what_the_certificate_is_for() {
        let server = |host: NameserverHost, over| Nameserver { host, port: 8443, over };
        let https = |name| NameserverOver::Https { name, path: "/q".into() };
        // `localhost` is looked up without asking anybody.
        let found = look_up(vec![server(NameserverHost::Name("localhost".parse().unwrap()), https(None))]).unwrap();
        assert!(!found.is_empty());
        for upstream in found.iter().filter_map(to_upstream) {
            assert!(upstream.address.ip().is_loopback());
            let [name, authority, path] = ["localhost", "localhost:8443", "/q"].map(str::to_owned);
            assert_eq!(upstream.way, DnsWay::Https { name, authority, path });
        }
        let by_address = server(NameserverHost::Address("::1".parse().unwrap()), https(None));
        let [name, authority, path] = ["::1", "[::1]:8443", "/q"].map(str::to_owned);
        assert_eq!(to_upstream(&by_address).unwrap().way, DnsWay::Https { name, authority, path });
        let name = Some("dns.example".parse().unwrap());
        let tls = server(NameserverHost::Address("192.0.2.1".parse().unwrap()), NameserverOver::Tls { name });
        assert_eq!(to_upstream(&tls).unwrap().way, DnsWay::Tls { name: "dns.example".into() });
    }

    #[test]
    fn a_gateway_can_be_told_of_addresses() {
        let servers = |texts: &[&str]| -> Vec<Nameserver> {
            let items: Vec<_> =
                texts.iter().map(|t| cofferdam_policy::file::FlagItem::Nameserver((*t).into())).collect();
            cofferdam_policy::file::from_flags(&items).unwrap().dns.nameservers
        };
        let [host, plain, other, named, tls] =
            [&[][..], &["192.0.2.1"], &["[2001:db8::1]:54", "192.0.2.1"], &["dns.example"], &["tls://192.0.2.1"]]
                .map(servers);
        for (before, after, is_fine) in [
            (&host, &plain, true),
            (&plain, &other, true),
            (&named, &plain, true),
            (&tls, &tls, true),
            (&named, &named, true),
            (&plain, &host, false),
            (&plain, &named, false),
            (&plain, &tls, false),
            (&tls, &plain, false),
        ] {
            assert_eq!(check_change(before, after).is_ok(), is_fine, "{before:?} {after:?}");
        }
    }

    #[test]
    fn an_interface_name_is_never_a_path() {
        assert_eq!(interface_index("../../etc"), None);
        assert_eq!(interface_index(""), None);
        assert_eq!(interface_index("lo"), Some(1));
    }
}
