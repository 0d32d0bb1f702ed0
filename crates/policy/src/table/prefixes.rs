use std::collections::BTreeMap;
use std::net::IpAddr;

use cofferdam_model::{Group, Rule};
use ipnet::IpNet;

use crate::table::Rank;
use crate::table::ports::{Ranks, Service, Table};

/// The rules whose destination is an address or a network, of both families.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    v4: PrefixTree,
    v6: PrefixTree,
}

/// Nested prefixes of one family, found by longest match.
///
/// Prefixes either nest or are disjoint, so the address space falls into stretches that have one longest prefix each.
/// `borders` holds where each stretch begins; from the longest prefix, `parent` leads through all others that hold the
/// address. This is a trie laid flat: the same lookup in one array, which a binary search goes through faster than pointers.
#[derive(Debug, Default)]
struct PrefixTree {
    borders: Box<[(u128, Option<u32>)]>,
    nodes: Box<[PrefixNode]>,
}

#[derive(Debug)]
struct PrefixNode {
    parent: Option<u32>,
    /// The prefix is a single address.
    single: bool,
    table: Table,
}

impl Prefixes {
    pub(crate) fn new(rules: &[(Rank, &Rule, IpNet)]) -> Prefixes {
        let mut v4: BTreeMap<PrefixKey, Vec<(Rank, &Rule)>> = BTreeMap::new();
        let mut v6: BTreeMap<PrefixKey, Vec<(Rank, &Rule)>> = BTreeMap::new();
        for (rank, rule, net) in rules {
            let family = match net {
                IpNet::V4(_) => &mut v4,
                IpNet::V6(_) => &mut v6,
            };
            family.entry(PrefixKey::of(*net)).or_default().push((*rank, *rule));
        }
        Prefixes { v4: PrefixTree::new(v4), v6: PrefixTree::new(v6) }
    }

    /// The first rules for `address`, which is not an IPv4-mapped one, of that group.
    ///
    /// An allow rule for a network does not open the host or metadata: `allow 172.16.0.0/12` means a company's network and
    /// not the gateway in it. A single address is meant as it is written.
    pub(crate) fn lookup(&self, address: IpAddr, group: Group, service: Service) -> Ranks {
        let guarded = matches!(group, Group::Host | Group::Metadata);
        match address {
            IpAddr::V4(v4) => self.v4.lookup(u128::from(v4.to_bits()), guarded, service),
            IpAddr::V6(v6) => self.v6.lookup(v6.to_bits(), guarded, service),
        }
    }

    /// The longest prefix that holds `address`.
    pub(crate) fn innermost(&self, address: IpAddr) -> Innermost {
        Innermost(match address {
            IpAddr::V4(v4) => self.v4.innermost(u128::from(v4.to_bits())),
            IpAddr::V6(v6) => self.v6.innermost(v6.to_bits()),
        })
    }
}

/// The longest prefix around an address: addresses of one family with the same one are in the same prefixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Innermost(Option<u32>);

/// First and last address and length of a prefix. Ordered so that a prefix comes right before those inside it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PrefixKey {
    first: u128,
    length: u8,
    last: u128,
    single: bool,
}

impl PrefixKey {
    fn of(net: IpNet) -> PrefixKey {
        let (first, last) = match net {
            IpNet::V4(net) => (u128::from(net.network().to_bits()), u128::from(net.broadcast().to_bits())),
            IpNet::V6(net) => (net.network().to_bits(), net.broadcast().to_bits()),
        };
        PrefixKey { first, length: net.prefix_len(), last, single: net.prefix_len() == net.max_prefix_len() }
    }
}

impl PrefixTree {
    fn new(prefixes: BTreeMap<PrefixKey, Vec<(Rank, &Rule)>>) -> PrefixTree {
        let mut nodes: Vec<PrefixNode> = Vec::with_capacity(prefixes.len());
        let mut borders: Vec<(u128, Option<u32>)> = Vec::with_capacity(2 * prefixes.len());
        // The prefixes around the place the loop has come to, outermost first, with their last addresses.
        let mut around: Vec<(u128, u32)> = Vec::new();
        for (key, rules) in prefixes {
            close(&mut around, &mut borders, Some(key.first));
            let Ok(id) = u32::try_from(nodes.len()) else { break };
            let parent = around.last().map(|(_, id)| *id);
            nodes.push(PrefixNode { parent, single: key.single, table: Table::new(&rules) });
            begin(&mut borders, key.first, Some(id));
            around.push((key.last, id));
        }
        close(&mut around, &mut borders, None);
        PrefixTree { borders: borders.into_boxed_slice(), nodes: nodes.into_boxed_slice() }
    }

    fn innermost(&self, address: u128) -> Option<u32> {
        let after = self.borders.partition_point(|(start, _)| *start <= address);
        after.checked_sub(1).and_then(|at| self.borders.get(at)).and_then(|(_, id)| *id)
    }

    fn lookup(&self, address: u128, guarded: bool, service: Service) -> Ranks {
        let mut at = self.innermost(address);
        let mut ranks = Ranks::NONE;
        while let Some(node) = at.and_then(|id| self.nodes.get(usize::try_from(id).unwrap_or(usize::MAX))) {
            let mut found = node.table.lookup(service);
            if guarded && !node.single {
                found.allow = Rank::NONE;
            }
            ranks = ranks.min(found);
            at = node.parent;
        }
        ranks
    }
}

/// Ends the stretches of all prefixes that end before `next`; of all when there is none.
fn close(around: &mut Vec<(u128, u32)>, borders: &mut Vec<(u128, Option<u32>)>, next: Option<u128>) {
    while let Some((last, _)) = around.last().copied().filter(|(last, _)| next.is_none_or(|next| *last < next)) {
        around.pop();
        // Past the last address of the family there is nothing to begin.
        if let Some(start) = last.checked_add(1) {
            begin(borders, start, around.last().map(|(_, id)| *id));
        }
    }
}

/// A stretch begins; one that began at the same address has no length and is replaced.
fn begin(borders: &mut Vec<(u128, Option<u32>)>, start: u128, id: Option<u32>) {
    match borders.last_mut() {
        Some(last) if last.0 == start => last.1 = id,
        Some(_) | None => borders.push((start, id)),
    }
}
