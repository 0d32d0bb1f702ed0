//! Names that are answered here and never asked for elsewhere (`names.md` §2 step 4).

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cofferdam_model::DomainName;

use crate::query::Query;
use crate::reply::{Head, Rcode, Reply};
use crate::wire::{Data, Field, Name, Record, kind};

/// The zone that is ours; nothing in it is ever looked up. `internal` is reserved for private use by ICANN.
const ZONE: &str = "cofferdam.internal";
/// The host machine, as seen from the sandbox, under our name and under those that programs already know.
const HOST_NAMES: [&str; 3] = ["host.cofferdam.internal", "host.docker.internal", "host.microsandbox.internal"];
/// How long answers about the gateway live, in seconds (`names.md` §2 step 4).
const TTL: u32 = 60;

/// What is known here about a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Special {
    /// The name exists and has these addresses.
    Addresses(Vec<IpAddr>),
    /// A gateway address: the reverse lookup leads to our name of the host.
    Pointer,
    /// The name exists and has nothing for anybody.
    NoData,
    NxDomain,
}

/// What we know about `domain` ourselves, if it is one of these names.
pub(crate) fn look_up(domain: &DomainName, gateway: &[IpAddr]) -> Option<Special> {
    let name = domain.as_str();
    if HOST_NAMES.contains(&name) {
        return Some(Special::Addresses(gateway.to_vec()));
    }
    if name == ZONE {
        return Some(Special::NoData);
    }
    // RFC 6761 §6.3: loopback addresses for address queries, a negative answer for the rest.
    if is_within(name, "localhost") {
        return Some(Special::Addresses(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]));
    }
    // Multicast DNS, RFC 6762 §22.1 with the link-local reverse zones; onion services, RFC 7686 §2; the canary that asks
    // whether browsers may go around the network's resolver, and the zone in which resolvers say where else they can be
    // reached (RFC 9462 §6.4): not here, where names decide what is reachable.
    const NOWHERE: [&str; 10] = [
        ZONE,
        "local",
        "254.169.in-addr.arpa",
        "8.e.f.ip6.arpa",
        "9.e.f.ip6.arpa",
        "a.e.f.ip6.arpa",
        "b.e.f.ip6.arpa",
        "onion",
        "use-application-dns.net",
        "resolver.arpa",
    ];
    if gateway.iter().any(|address| reverse_name(*address) == name) {
        return Some(Special::Pointer);
    }
    NOWHERE.iter().any(|zone| is_within(name, zone)).then_some(Special::NxDomain)
}

impl Special {
    /// The reply to `query`, and the addresses in it.
    pub(crate) fn reply<'a>(&self, query: &'a Query) -> (Reply<'a>, Vec<IpAddr>) {
        let mut delivered = Vec::new();
        let rcode = if *self == Special::NxDomain { Rcode::NxDomain } else { Rcode::NoError };
        let mut reply = Reply::new(query, Head::authoritative(rcode));
        match self {
            Special::Addresses(addresses) => {
                delivered.extend(addresses.iter().filter(|address| address_kind(address) == query.qtype));
                let records = delivered.iter().map(|address| address_record(query.name.clone(), *address));
                reply.answer = Cow::Owned(records.collect());
            }
            Special::Pointer if query.qtype == kind::PTR => {
                let data = Data::Fields(vec![Field::Name(host_name())]);
                reply.answer = Cow::Owned(vec![Record::new(query.name.clone(), kind::PTR, TTL, data)]);
            }
            Special::Pointer | Special::NoData | Special::NxDomain => {}
        }
        let reply = if reply.answer.is_empty() { reply.with_denial_soa() } else { reply };
        (reply, delivered)
    }
}

/// Our zone, which the SOA record of a denial speaks of.
pub(crate) fn zone() -> Name {
    constant(ZONE)
}

fn host_name() -> Name {
    constant(HOST_NAMES[0])
}

fn constant(text: &str) -> Name {
    text.parse().map_or_else(|_| Name::root(), |domain| Name::from_domain(&domain))
}

fn is_within(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn address_kind(address: &IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => kind::A,
        IpAddr::V6(_) => kind::AAAA,
    }
}

fn address_record(name: Name, address: IpAddr) -> Record<'static> {
    let data = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    Record::new(name, address_kind(&address), TTL, Data::Bytes(Cow::Owned(data)))
}

/// The name under which the name of `address` is looked up (RFC 1035 §3.5, RFC 3596 §2.5).
fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(address) => {
            let nibbles = address.octets().into_iter().rev().flat_map(|octet| [octet & 15, octet >> 4]);
            let mut name: String = nibbles.map(|nibble| format!("{nibble:x}.")).collect();
            name.push_str("ip6.arpa");
            name
        }
    }
}
