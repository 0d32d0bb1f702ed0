//! Which group an address is in.
//!
//! [`Classifier::new`] lays the rows of `groups.rs`, the host's addresses and its on-link prefixes over the address space and
//! keeps the result as a *partition*: a sorted list of where a group begins. So an address is in exactly one group by
//! construction, and looking it up is one binary search.
//!
//! | Form | Embedded IPv4 | Classified by |
//! |---|---|---|
//! | `::ffff:0:0/96` | the last 32 bits | the embedded address alone: it is the same socket address |
//! | `::/96`, `64:ff9b::/96`, `2002::/16`, `2001::/32`, configured NAT64 prefixes | RFC 4291, 6052, 3056, 4380 (server and client) | outer and embedded, the stricter of both |
//!
//! Stricter means earlier in the order of [`Group`]: only when outer and embedded form are public is the address public, and
//! a form that leads to the host or to metadata is in that group whatever is around it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::groups::{LOCAL_V4, LOCAL_V6, METADATA_V4, METADATA_V6, REST_V4, REST_V6, Row4, Row6};

/// The group of an address. Every address is in exactly one, tested in this order (`docs/policy.md`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    Host,
    Metadata,
    Loopback,
    LinkLocal,
    Private,
    Multicast,
    Reserved,
    Public,
}

impl Group {
    /// Every group, in the order in which they are tested.
    pub const ALL: [Group; 8] = [
        Group::Host,
        Group::Metadata,
        Group::Loopback,
        Group::LinkLocal,
        Group::Private,
        Group::Multicast,
        Group::Reserved,
        Group::Public,
    ];

    /// The word for this group in rules.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Group::Host => "host",
            Group::Metadata => "metadata",
            Group::Loopback => "loopback",
            Group::LinkLocal => "link-local",
            Group::Private => "private",
            Group::Multicast => "multicast",
            Group::Reserved => "reserved",
            Group::Public => "public",
        }
    }

    /// The group that `word` names, in lower case: [`Group::word`] and its other spellings.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Group> {
        match word {
            "meta" => Some(Group::Metadata),
            "link_local" => Some(Group::LinkLocal),
            word => Group::ALL.into_iter().find(|group| group.word() == word),
        }
    }
}

/// What the classifier has to know about the machine it runs on, read once at start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostNetwork {
    /// The gateway's own addresses in this sandbox and every address on the host's interfaces.
    pub addresses: Vec<IpAddr>,
    /// Every prefix that is on-link on the host's interfaces.
    pub on_link: Vec<IpNet>,
    /// NAT64 prefixes (RFC 6052) besides the well-known one.
    pub nat64: Vec<ipnet::Ipv6Net>,
}

/// Puts addresses into groups. The one place where that is decided.
#[derive(Debug, Clone)]
pub struct Classifier {
    host: HostNetwork,
    v4: Vec<(Ipv4Addr, Group)>,
    v6: Vec<(Ipv6Addr, Group)>,
}

impl Default for Classifier {
    /// A classifier for a machine without a network.
    fn default() -> Classifier {
        Classifier::new(HostNetwork::default())
    }
}

impl Classifier {
    /// A classifier for the given machine.
    #[must_use]
    pub fn new(host: HostNetwork) -> Classifier {
        let v4 = partition_v4(&host);
        let v6 = partition_v6(&host);
        Classifier { host, v4, v6 }
    }

    /// The machine this classifier was made for.
    #[must_use]
    pub fn host(&self) -> &HostNetwork {
        &self.host
    }

    /// The group of `address`.
    #[must_use]
    pub fn classify(&self, address: IpAddr) -> Group {
        match address.to_canonical() {
            IpAddr::V4(v4) => self.classify_v4(v4),
            IpAddr::V6(v6) => {
                let outer = group_at(&self.v6, v6);
                self.embedded(v6).map(|v4| self.classify_v4(v4)).fold(outer, Group::min)
            }
        }
    }

    /// The group of every address in `net`, when they all are in the same; `None` also for IPv6 networks whose addresses may
    /// carry IPv4 addresses inside.
    #[must_use]
    pub fn classify_net(&self, net: IpNet) -> Option<Group> {
        match net {
            IpNet::V4(net) => group_of_stretch(&self.v4, net.network(), net.broadcast()),
            IpNet::V6(net) => {
                let (first, last) = (net.network(), net.broadcast());
                let overlaps = |other: &Ipv6Net| other.contains(&first) || net.contains(&other.network());
                let special = EMBEDDING.iter().filter_map(|(network, length)| Ipv6Net::new(*network, *length).ok());
                if special.chain(self.host.nat64.iter().copied()).any(|other| overlaps(&other)) {
                    return (first == last).then(|| self.classify(IpAddr::V6(first)));
                }
                group_of_stretch(&self.v6, first, last)
            }
        }
    }

    /// Whether an address of group metadata is in `net`.
    #[must_use]
    pub fn holds_metadata(&self, net: IpNet) -> bool {
        let v4 = METADATA_V4.iter().map(|(address, _, _)| IpAddr::V4(*address));
        let v6 = METADATA_V6.iter().map(|(address, _, _)| IpAddr::V6(*address));
        v4.chain(v6).any(|address| net.contains(&address))
    }

    /// Addresses such that every address is like one of them: in the same group, and not beyond another of the `cuts`, which
    /// say where something else begins. What depends on the group and on networks cut out so is known for all addresses when
    /// it is known for these.
    ///
    /// Where the group depends on bits in the middle of an address (a Teredo client, a NAT64 prefix shorter than 96), a
    /// stretch has several groups and gets an address for each of them that is found among the borders of IPv4.
    #[must_use]
    pub fn representatives(&self, cuts: impl IntoIterator<Item = IpAddr>) -> Vec<IpAddr> {
        let mut v4: BTreeSet<u32> = self.v4.iter().map(|(start, _)| start.to_bits()).collect();
        let inner: Vec<u32> = v4.iter().copied().collect();
        let mut v6: BTreeSet<u128> = self.v6.iter().map(|(start, _)| start.to_bits()).collect();
        for (network, length) in EMBEDDING {
            v6.extend(embedding_borders(network.to_bits(), length, &inner));
        }
        for prefix in &self.host.nat64 {
            v6.extend(embedding_borders(prefix.network().to_bits(), prefix.prefix_len(), &inner));
        }
        for cut in cuts {
            match cut {
                IpAddr::V4(cut) => v4.insert(cut.to_bits()),
                IpAddr::V6(cut) => v6.insert(cut.to_bits()),
            };
        }
        let mut found: Vec<IpAddr> = v4.into_iter().map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))).collect();
        let mut starts = v6.into_iter().peekable();
        while let Some(first) = starts.next() {
            let last = starts.peek().map_or(u128::MAX, |next| next - 1);
            // Mapped addresses are IPv4 ones, whatever networks of IPv6 are cut out around them.
            if Ipv6Addr::from_bits(first).to_ipv4_mapped().is_some() {
                continue;
            }
            let mut groups = BTreeSet::new();
            let inside = self.buried(first, last, &inner);
            for address in std::iter::once(first).chain(inside).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))) {
                if groups.insert(self.classify(address)) {
                    found.push(address);
                }
            }
        }
        found
    }

    /// Addresses from `first` to `last` that carry each of `inner` where other bits come before it.
    fn buried(&self, first: u128, last: u128, inner: &[u32]) -> Vec<u128> {
        const TEREDO: u128 = 0x2001_0000 << 96;
        let is_teredo = first >> 96 == TEREDO >> 96;
        let nat64 = |prefix: &&Ipv6Net| prefix.prefix_len() < 96 && prefix.contains(&Ipv6Addr::from_bits(first));
        let mut found = Vec::new();
        for value in inner.iter().map(|value| u128::from(*value)) {
            if is_teredo {
                // The first server in the stretch, the one after, the last: with clients inverted, at the end.
                let servers = [first >> 64, (first >> 64) + 1, last >> 64];
                found.extend(servers.map(|server| server << 64 | (value ^ u128::from(u32::MAX))));
            }
            for prefix in self.host.nat64.iter().filter(nat64) {
                // Past the eight bits that belong to no address (RFC 6052 §2.2).
                let before = u32::from(64_u8.saturating_sub(prefix.prefix_len()));
                let low = value & ((1_u128 << (32 - before.min(32))) - 1);
                found.push(first >> 56 << 56 | low << (24 + before.min(32)));
            }
        }
        found.retain(|bits| (first..=last).contains(bits));
        found
    }

    fn classify_v4(&self, address: Ipv4Addr) -> Group {
        group_at(&self.v4, address)
    }

    /// The IPv4 addresses that `address` carries inside.
    fn embedded(&self, address: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let [s0, s1, s2, s3, s4, s5, s6, s7] = address.segments();
        let (first, second) = match (s0, s1) {
            (0x2002, _) => (Some(join(s1, s2)), None),
            // RFC 4380 §4: the server's address, and the client's with every bit inverted.
            (0x2001, 0) => (Some(join(s2, s3)), Some(join(!s6, !s7))),
            (0, 0) | (0x64, 0xff9b) if [s2, s3, s4, s5] == [0; 4] => (Some(join(s6, s7)), None),
            _ => (None, None),
        };
        let translated = self.host.nat64.iter().filter_map(move |prefix| nat64_embedded(*prefix, address));
        first.into_iter().chain(second).chain(translated)
    }
}

/// Where the borders of IPv4 lie in a network that carries IPv4 addresses right behind its prefix, and where it begins and
/// has ended.
fn embedding_borders(network: u128, length: u8, inner: &[u32]) -> impl Iterator<Item = u128> {
    let behind = 96_u8.saturating_sub(length);
    let borders: Vec<u128> = inner.iter().map(|value| network | u128::from(*value) << behind).collect();
    let end = 1_u128.checked_shl(128 - u32::from(length)).and_then(|size| network.checked_add(size));
    borders.into_iter().chain([network]).chain(end)
}

fn join(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}

/// The IPv4 address in `address` when it is in the NAT64 prefix (RFC 6052 §2.2). Bits 64 to 71 are skipped; a prefix of a
/// length that the RFC does not know carries its address at the end, as with 96.
fn nat64_embedded(prefix: Ipv6Net, address: Ipv6Addr) -> Option<Ipv4Addr> {
    if !prefix.contains(&address) {
        return None;
    }
    let [_, _, _, _, o4, o5, o6, o7, _, o9, o10, o11, o12, o13, o14, o15] = address.octets();
    let octets = match prefix.prefix_len() {
        32 => [o4, o5, o6, o7],
        40 => [o5, o6, o7, o9],
        48 => [o6, o7, o9, o10],
        56 => [o7, o9, o10, o11],
        64 => [o9, o10, o11, o12],
        _ => [o12, o13, o14, o15],
    };
    Some(Ipv4Addr::from(octets))
}

/// The group of the last entry at or before `address`. A partition begins at the lowest address, so there always is one.
fn group_at<A: Copy + Ord>(partition: &[(A, Group)], address: A) -> Group {
    let after = partition.partition_point(|(start, _)| *start <= address);
    after.checked_sub(1).and_then(|at| partition.get(at)).map_or(Group::Reserved, |(_, group)| *group)
}

/// The group of all addresses from `first` to `last`, when it is one.
fn group_of_stretch<A: Copy + Ord>(partition: &[(A, Group)], first: A, last: A) -> Option<Group> {
    let index = |address: A| partition.partition_point(|(start, _)| *start <= address);
    (index(first) == index(last)).then(|| group_at(partition, first))
}

/// The prefixes that [`Classifier::embedded`] looks into, and IPv4-mapped addresses.
const EMBEDDING: [(Ipv6Addr, u8); 5] = [
    (Ipv6Addr::UNSPECIFIED, 96),
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32),
];

fn partition_v4(host: &HostNetwork) -> Vec<(Ipv4Addr, Group)> {
    let own = host.addresses.iter().filter_map(|address| match address.to_canonical() {
        IpAddr::V4(v4) => Some((v4, 32, Group::Host)),
        IpAddr::V6(_) => None,
    });
    let on_link = host.on_link.iter().filter_map(|net| match net {
        IpNet::V4(net) => Some((net.network(), net.prefix_len(), Group::Private)),
        IpNet::V6(_) => None,
    });
    let tables = (METADATA_V4.iter().copied(), LOCAL_V4.iter().copied(), REST_V4.iter().copied());
    let rows: Vec<Row4> = own.chain(tables.0).chain(tables.1).chain(on_link).chain(tables.2).collect();
    let ranges = rows.into_iter().filter_map(|(network, length, group)| {
        let net = Ipv4Net::new(network, length).ok()?;
        Some((net.network(), net.broadcast(), group))
    });
    partition(&ranges.collect::<Vec<_>>(), |end| end.to_bits().checked_add(1).map(Ipv4Addr::from_bits))
}

fn partition_v6(host: &HostNetwork) -> Vec<(Ipv6Addr, Group)> {
    let own = host.addresses.iter().filter_map(|address| match address.to_canonical() {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => Some((v6, 128, Group::Host)),
    });
    let on_link = host.on_link.iter().filter_map(|net| match net {
        IpNet::V4(_) => None,
        IpNet::V6(net) => Some((net.network(), net.prefix_len(), Group::Private)),
    });
    let tables = (METADATA_V6.iter().copied(), LOCAL_V6.iter().copied(), REST_V6.iter().copied());
    let rows: Vec<Row6> = own.chain(tables.0).chain(tables.1).chain(on_link).chain(tables.2).collect();
    let ranges = rows.into_iter().filter_map(|(network, length, group)| {
        let net = Ipv6Net::new(network, length).ok()?;
        Some((net.network(), net.broadcast(), group))
    });
    partition(&ranges.collect::<Vec<_>>(), |end| end.to_bits().checked_add(1).map(Ipv6Addr::from_bits))
}

/// Where each group begins, when the first range that holds an address decides.
fn partition<A: Copy + Ord>(ranges: &[(A, A, Group)], successor: impl Fn(A) -> Option<A>) -> Vec<(A, Group)> {
    // Between two neighbouring borders no range begins or ends, so the group of the border is that of the whole stretch.
    let mut borders: Vec<A> = ranges.iter().map(|(start, _, _)| *start).collect();
    borders.extend(ranges.iter().filter_map(|(_, end, _)| successor(*end)));
    borders.sort_unstable();
    borders.dedup();
    let mut partition: Vec<(A, Group)> = Vec::new();
    for border in borders {
        let holder = ranges.iter().find(|(start, end, _)| *start <= border && border <= *end);
        let group = holder.map_or(Group::Reserved, |(_, _, group)| *group);
        if partition.last().is_none_or(|(_, last)| *last != group) {
            partition.push((border, group));
        }
    }
    partition
}

/// Length of an IPv4 slot, the addresses of one sandbox's link: gateway and guest are its two usable ones.
pub const SLOT4: u8 = 30;
/// Length of an IPv6 slot: the usual link prefix, so that every client is at ease with it.
pub const SLOT6: u8 = 64;

/// Whether two addresses lie in one slot, which makes one of them the gateway of the other.
#[must_use]
pub fn share_a_slot(guest: IpAddr, other: IpAddr) -> bool {
    match (guest, other) {
        (IpAddr::V4(guest), IpAddr::V4(other)) => Ipv4Net::new_assert(guest, SLOT4).contains(&other),
        (IpAddr::V6(guest), IpAddr::V6(other)) => Ipv6Net::new_assert(guest, SLOT6).contains(&other),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edge_of_the_ipv4_table_is_exact() {
        let edges = [
            ("0.0.0.0", Group::Reserved),
            ("0.255.255.255", Group::Reserved),
            ("1.0.0.0", Group::Public),
            ("9.255.255.255", Group::Public),
            ("10.0.0.0", Group::Private),
            ("10.255.255.255", Group::Private),
            ("11.0.0.0", Group::Public),
            ("100.63.255.255", Group::Public),
            ("100.64.0.0", Group::Private),
            ("100.100.100.199", Group::Private),
            ("100.100.100.200", Group::Metadata),
            ("100.100.100.201", Group::Private),
            ("100.127.255.255", Group::Private),
            ("100.128.0.0", Group::Public),
            ("126.255.255.255", Group::Public),
            ("127.0.0.0", Group::Loopback),
            ("127.255.255.255", Group::Loopback),
            ("128.0.0.0", Group::Public),
            ("168.63.129.15", Group::Public),
            ("168.63.129.16", Group::Metadata),
            ("168.63.129.17", Group::Public),
            ("169.253.255.255", Group::Public),
            ("169.254.0.0", Group::LinkLocal),
            ("169.254.169.253", Group::LinkLocal),
            ("169.254.169.254", Group::Metadata),
            ("169.254.169.255", Group::LinkLocal),
            ("169.254.170.1", Group::LinkLocal),
            ("169.254.170.2", Group::Metadata),
            ("169.254.170.23", Group::Metadata),
            ("169.254.170.24", Group::LinkLocal),
            ("169.254.255.255", Group::LinkLocal),
            ("169.255.0.0", Group::Public),
            ("172.15.255.255", Group::Public),
            ("172.16.0.0", Group::Private),
            ("172.31.255.255", Group::Private),
            ("172.32.0.0", Group::Public),
            ("191.255.255.255", Group::Public),
            ("192.0.0.0", Group::Reserved),
            ("192.0.0.192", Group::Metadata),
            ("192.0.0.255", Group::Reserved),
            ("192.0.1.0", Group::Public),
            ("192.0.1.255", Group::Public),
            ("192.0.2.0", Group::Reserved),
            ("192.0.2.255", Group::Reserved),
            ("192.0.3.0", Group::Public),
            ("192.88.98.255", Group::Public),
            ("192.88.99.0", Group::Reserved),
            ("192.88.99.255", Group::Reserved),
            ("192.88.100.0", Group::Public),
            ("192.167.255.255", Group::Public),
            ("192.168.0.0", Group::Private),
            ("192.168.255.255", Group::Private),
            ("192.169.0.0", Group::Public),
            ("198.17.255.255", Group::Public),
            ("198.18.0.0", Group::Reserved),
            ("198.19.255.255", Group::Reserved),
            ("198.20.0.0", Group::Public),
            ("198.51.99.255", Group::Public),
            ("198.51.100.0", Group::Reserved),
            ("198.51.101.0", Group::Public),
            ("203.0.112.255", Group::Public),
            ("203.0.113.0", Group::Reserved),
            ("203.0.114.0", Group::Public),
            ("223.255.255.255", Group::Public),
            ("224.0.0.0", Group::Multicast),
            ("239.255.255.255", Group::Multicast),
            ("240.0.0.0", Group::Reserved),
            ("255.255.255.254", Group::Reserved),
            ("255.255.255.255", Group::Multicast),
        ];
        assert_groups(&Classifier::default(), &edges);
    }

    #[test]
    fn every_edge_of_the_ipv6_table_is_exact() {
        let edges = [
            ("::", Group::Reserved),
            ("::1", Group::Loopback),
            ("::2", Group::Reserved),
            ("64:ff9b:1::", Group::Reserved),
            ("100::", Group::Reserved),
            ("1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Group::Reserved),
            ("2000::", Group::Public),
            ("2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Group::Public),
            ("2001::", Group::Multicast), // Teredo with the client 255.255.255.255 inside
            ("2001:1::", Group::Reserved),
            ("2001:1::1", Group::Public),
            ("2001:1::3", Group::Public),
            ("2001:1::4", Group::Reserved),
            ("2001:2::1", Group::Reserved),
            ("2001:3::1", Group::Public),
            ("2001:4:112::1", Group::Public),
            ("2001:4:113::1", Group::Reserved),
            ("2001:10::1", Group::Reserved),
            ("2001:20::1", Group::Reserved),
            ("2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", Group::Reserved),
            ("2001:200::", Group::Public),
            ("2001:200::1", Group::Public),
            ("2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", Group::Public),
            ("2001:db8::", Group::Reserved),
            ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", Group::Reserved),
            ("2001:db9::", Group::Public),
            ("2001:4860::8888", Group::Public),
            ("2002::", Group::Reserved),
            ("2003::1", Group::Public),
            ("2620:4f:8000::1", Group::Public),
            ("3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Group::Public),
            ("3fff::", Group::Reserved),
            ("3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", Group::Reserved),
            ("3fff:1000::", Group::Public),
            ("3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Group::Public),
            ("4000::", Group::Reserved),
            ("5f00::1", Group::Reserved),
            ("fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Group::Reserved),
            ("fc00::", Group::Private),
            ("fd00:ec2::253", Group::Private),
            ("fd00:ec2::254", Group::Metadata),
            ("fd00:ec2::23", Group::Metadata),
            ("fd20:ce::254", Group::Metadata),
            ("fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Group::Private),
            ("fe00::", Group::Reserved),
            ("fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Group::Reserved),
            ("fe80::", Group::LinkLocal),
            ("febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Group::LinkLocal),
            ("fec0::", Group::Reserved),
            ("feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Group::Reserved),
            ("ff00::", Group::Multicast),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Group::Multicast),
        ];
        assert_groups(&Classifier::default(), &edges);
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let groups = [
            ("::ffff:8.8.8.8", Group::Public),
            ("::ffff:10.0.0.1", Group::Private),
            ("::ffff:169.254.169.254", Group::Metadata),
            ("::ffff:127.0.0.1", Group::Loopback),
        ];
        assert_groups(&Classifier::default(), &groups);
    }

    #[test]
    fn an_address_with_another_inside_is_public_only_when_both_are() {
        let groups = [
            ("64:ff9b::8.8.8.8", Group::Public),
            ("64:ff9b::10.0.0.1", Group::Private),
            ("64:ff9b::169.254.169.254", Group::Metadata),
            ("64:ff9b::127.0.0.1", Group::Loopback),
            ("64:ff9b::192.0.2.1", Group::Reserved),
            ("64:ff9b:0:0:0:1::1", Group::Reserved),
            ("::10.0.0.1", Group::Private),
            ("::8.8.8.8", Group::Reserved),
            ("::169.254.169.254", Group::Metadata),
            ("2002:0a00:0001::1", Group::Private),
            ("2002:a9fe:a9fe::1", Group::Metadata),
            ("2002:0808:0808::1", Group::Reserved),
            // Teredo: server 8.8.8.8; client 10.0.0.1, then 8.8.8.8.
            ("2001:0:808:808:0:0:f5ff:fffe", Group::Private),
            ("2001:0:808:808:0:0:f7f7:f7f7", Group::Reserved),
            // Teredo: server 127.0.0.1.
            ("2001:0:7f00:1:0:0:f7f7:f7f7", Group::Loopback),
        ];
        assert_groups(&Classifier::default(), &groups);
    }

    #[test]
    fn a_configured_nat64_prefix_carries_its_address_where_rfc_6052_puts_it() {
        // RFC 6052 §2.4 gives these forms of 192.0.2.33; here with 10.2.3.33 inside.
        let cases = [
            ("2a00:db8::/32", "2a00:db8:a02:321::"),
            ("2a00:db8:100::/40", "2a00:db8:10a:203:21::"),
            ("2a00:db8:122::/48", "2a00:db8:122:a02:3:2100::"),
            ("2a00:db8:122:300::/56", "2a00:db8:122:30a:2:321::"),
            ("2a00:db8:122:344::/64", "2a00:db8:122:344:a:203:2100::"),
            ("2a00:db8:122:344::/96", "2a00:db8:122:344::10.2.3.33"),
        ];
        for (prefix, address) in cases {
            let host = HostNetwork { nat64: vec![prefix.parse().unwrap()], ..HostNetwork::default() };
            assert_groups(&Classifier::new(host), &[(address, Group::Private)]);
            assert_groups(&Classifier::default(), &[(address, Group::Public)]);
        }
    }

    #[test]
    fn the_hosts_own_addresses_come_before_everything() {
        let addresses = ["192.168.7.2", "169.254.169.254", "2a00:1::2", "::ffff:10.9.9.9", "fe80::1"];
        let host = HostNetwork {
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ..HostNetwork::default()
        };
        let groups = [
            ("192.168.7.2", Group::Host),
            ("::ffff:192.168.7.2", Group::Host),
            ("64:ff9b::192.168.7.2", Group::Host),
            ("2002:c0a8:702::1", Group::Host),
            ("169.254.169.254", Group::Host),
            ("2a00:1::2", Group::Host),
            ("10.9.9.9", Group::Host),
            ("fe80::1", Group::Host),
            ("192.168.7.1", Group::Private),
            ("192.168.7.3", Group::Private),
            ("2a00:1::3", Group::Public),
        ];
        assert_groups(&Classifier::new(host), &groups);
    }

    #[test]
    fn an_on_link_prefix_is_private_but_never_hides_metadata_or_link_local() {
        let on_link = ["2a00:1:2:3::/64", "93.184.215.0/24", "169.254.0.0/16", "fe80::/64", "168.63.129.0/24"];
        let host = HostNetwork {
            on_link: on_link.iter().map(|text| text.parse().unwrap()).collect(),
            ..HostNetwork::default()
        };
        let groups = [
            ("2a00:1:2:2:ffff:ffff:ffff:ffff", Group::Public),
            ("2a00:1:2:3::", Group::Private),
            ("2a00:1:2:3:ffff:ffff:ffff:ffff", Group::Private),
            ("2a00:1:2:4::", Group::Public),
            ("93.184.214.255", Group::Public),
            ("93.184.215.0", Group::Private),
            ("93.184.215.255", Group::Private),
            ("93.184.216.0", Group::Public),
            ("169.254.1.1", Group::LinkLocal),
            ("169.254.169.254", Group::Metadata),
            ("168.63.129.16", Group::Metadata),
            ("168.63.129.15", Group::Private),
            ("fe80::5", Group::LinkLocal),
        ];
        assert_groups(&Classifier::new(host), &groups);
    }

    #[test]
    fn a_network_has_a_group_when_all_of_it_is_in_one() {
        let classifier = Classifier::default();
        let cases = [
            ("10.0.0.0/8", Some(Group::Private)),
            ("10.1.0.0/16", Some(Group::Private)),
            ("8.0.0.0/6", None),
            ("169.254.0.0/16", None),
            ("169.254.169.254/32", Some(Group::Metadata)),
            ("fc00::/7", None),
            ("fc00::/8", Some(Group::Private)),
            ("2002::/16", None),
            ("2002:a00:1::/128", Some(Group::Private)),
            ("2a00::/12", Some(Group::Public)),
            ("::/0", None),
        ];
        for (net, group) in cases {
            assert_eq!(classifier.classify_net(net.parse().unwrap()), group, "{net}");
        }
    }

    #[test]
    fn the_groups_partition_both_address_spaces() {
        let classifier = Classifier::default();
        assert_partition(&classifier.v4, Ipv4Addr::UNSPECIFIED);
        assert_partition(&classifier.v6, Ipv6Addr::UNSPECIFIED);
        // Every row's first and last address, and their neighbours, have the group that the first holding row gives.
        let rows = METADATA_V4.iter().chain(LOCAL_V4).chain(REST_V4);
        let nets: Vec<(Ipv4Net, Group)> =
            rows.map(|(a, len, group)| (Ipv4Net::new(*a, *len).unwrap(), *group)).collect();
        for (net, _) in &nets {
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            for bits in [first.wrapping_sub(1), first, last, last.wrapping_add(1)] {
                let address = Ipv4Addr::from_bits(bits);
                let expected = nets.iter().find(|(net, _)| net.contains(&address)).unwrap().1;
                assert_eq!(classifier.classify(address.into()), expected, "{address}");
            }
        }
        let rows = METADATA_V6.iter().chain(LOCAL_V6).chain(REST_V6);
        let nets: Vec<(Ipv6Net, Group)> =
            rows.map(|(a, len, group)| (Ipv6Net::new(*a, *len).unwrap(), *group)).collect();
        for (net, _) in &nets {
            assert_eq!(net.addr(), net.network(), "host bits in a row");
            let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
            for bits in [first.wrapping_sub(1), first, last, last.wrapping_add(1)] {
                let address = Ipv6Addr::from_bits(bits);
                let expected = nets.iter().find(|(net, _)| net.contains(&address)).unwrap().1;
                assert_eq!(group_at(&classifier.v6, address), expected, "{address}");
            }
        }
    }

    fn assert_partition<A: Copy + Ord + std::fmt::Debug>(partition: &[(A, Group)], lowest: A) {
        assert_eq!(partition[0].0, lowest);
        for pair in partition.windows(2) {
            assert!(pair[0].0 < pair[1].0, "{pair:?}");
            assert_ne!(pair[0].1, pair[1].1, "{pair:?}");
        }
        for group in Group::ALL.into_iter().filter(|group| *group != Group::Host) {
            assert!(partition.iter().any(|(_, g)| *g == group), "{group:?} is empty");
        }
    }

    fn assert_groups(classifier: &Classifier, groups: &[(&str, Group)]) {
        for (address, group) in groups {
            assert_eq!(classifier.classify(address.parse().unwrap()), *group, "{address}");
        }
    }
}
