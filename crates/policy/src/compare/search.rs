//! Finds the questions that one policy (`a`) answers with yes and another (`b`) with no.
//!
//! | Of a flow | Classes |
//! |---|---|
//! | address | stretches of addresses that are in the same group and in the same prefixes of both; of these, those about which the same two rules decide |
//! | service | protocols, and the stretches of ports between the borders of all rules |
//! | names | *kinds*: names for which the first allow rule, the first that leads inside and the first deny rule are the same in both |
//!
//! The sets of names that can be pinned to an address are as many as subsets of the kinds. But when a set tells `a` from `b`, a
//! small one does. Say a set is decided by the lowest of three: its first allow rule `A` (the least over its names), its
//! denial `D` (the greatest over its names of each one's first deny rule), the rule by address `R`.
//!
//! * When `a` allows by address, no name is needed; one that `b` denies is enough, and with `deny_doh` one that `b`'s rule for a
//!   name would have allowed.
//! * When `a` allows by a name `n`, two things have to hold: no name in the set is allowed earlier, and some name `h` in it is
//!   denied later than `n` is allowed (`n` itself, mostly). All others can go: `b` goes on to deny, since without them its `A` is no
//!   earlier and its `D` no later. With `deny_doh` a third one can be what `b` stumbles on.
//! * An alias is looked at only beside at most one name, and one alias is enough to be denied by.
//!
//! So what is looked at are pairs of kinds, and triples for flows to known resolvers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;

use cofferdam_model::{Destination, Direction, DomainName, Group, Protocol};
use ipnet::IpNet;

use crate::compare::{Question, TooLarge};
use crate::policy::RuleSet;
use crate::table::Rank;
use crate::table::ports::{Ranks, Service};
use crate::weigh::Counting;
use crate::{Facts, PinnedName, Policy};

/// Steps after which the comparison is given up: about a second.
const STEPS: u64 = 200_000_000;

/// What it costs to ask for a rank, in steps, each of which compares a few.
const LOOK_UP: usize = 100;

/// Ports at which the built-in refusals begin or have ended, and those where a flow's first bytes count.
const SPECIAL_PORTS: [u16; 11] = [1, 137, 138, 443, 444, 853, 854, 5353, 5354, 5355, 5356];

/// Ports that people know, for examples.
const KNOWN_PORTS: [u16; 4] = [443, 80, 53, 22];

type Visit<'a> = dyn FnMut(Question) -> ControlFlow<()> + 'a;

/// Calls `visit` with questions that `a` answers with yes and `b` with no, until it breaks: at least one for every class of
/// addresses and services in which there are any.
pub(super) fn excess(
    a: &Policy,
    b: &Policy,
    mut visit: impl FnMut(Question) -> ControlFlow<()>,
) -> Result<(), TooLarge> {
    let ([a_rules], [b_rules]) = (a.rule_sets(), b.rule_sets()) else {
        debug_assert!(false, "policies are compared layer by layer");
        return Err(TooLarge);
    };
    let mut search = Search { a: a_rules, b: b_rules, policy: a, left: STEPS, visit: &mut visit };
    match search.run() {
        Ok(()) | Err(End::Enough) => Ok(()),
        Err(End::Exhausted) => Err(TooLarge),
    }
}

/// A query for a name as it reaches the gateway.
pub(super) fn dns_query(protocol: Protocol) -> Facts<'static> {
    let peer = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    Facts { direction: Direction::Egress, protocol, peer, port: Some(53), names: &[] }
}

/// Why a search ends early.
enum End {
    Enough,
    Exhausted,
}

struct Search<'a> {
    a: &'a RuleSet,
    b: &'a RuleSet,
    /// Either, for what both share: what addresses are taken for, and known resolvers.
    policy: &'a Policy,
    left: u64,
    visit: &'a mut Visit<'a>,
}

/// Names of which no rule tells two apart.
#[derive(Debug, Clone)]
struct Kind {
    name: DomainName,
    a: Ranks,
    b: Ranks,
}

/// A class of addresses and services: which rules decide about it when no name does.
#[derive(Debug, Clone)]
struct Place {
    direction: Direction,
    service: Service,
    peer: IpAddr,
    is_doh: bool,
    a: Rank,
    b: Rank,
    /// Which rules for names count there, in each.
    counting: [Counting; 2],
}

impl Place {
    /// A kind as it counts there.
    fn counted(&self, kind: &Kind) -> Kind {
        let count = |counting, ranks: Ranks| match counting {
            Counting::All => ranks,
            Counting::Inside => Ranks { allow: ranks.inside, ..ranks },
        };
        let [a, b] = self.counting;
        Kind { name: kind.name.clone(), a: count(a, kind.a), b: count(b, kind.b) }
    }
}

impl Search<'_> {
    fn run(&mut self) -> Result<(), End> {
        let names = self.names();
        for direction in [Direction::Egress, Direction::Ingress] {
            let peers = self.peers(direction)?;
            for service in self.services(direction) {
                self.service(direction, service, &peers, &names)?;
            }
        }
        self.look_ups(&names)
    }

    fn service(
        &mut self,
        direction: Direction,
        service: Service,
        peers: &[(IpAddr, Group)],
        names: &[DomainName],
    ) -> Result<(), End> {
        let kinds = self.kinds(direction, service, names)?;
        let mut places: BTreeMap<(Rank, Rank, bool, [Counting; 2]), Place> = BTreeMap::new();
        self.spend(LOOK_UP * peers.len())?;
        for (peer, group) in peers {
            let of_family = match service.protocol {
                Protocol::Tcp | Protocol::Udp => true,
                Protocol::IcmpV4 => peer.is_ipv4(),
                Protocol::IcmpV6 => peer.is_ipv6(),
            };
            let facts = Facts { direction, protocol: service.protocol, peer: *peer, port: service.port, names: &[] };
            let resolvers = self.policy.resolvers();
            let is_egress = direction == Direction::Egress;
            if !of_family || is_egress && resolvers.refusal(&facts).is_some() {
                continue;
            }
            let is_doh = is_egress && resolvers.is_https(&facts);
            let [a, b] = [self.a, self.b].map(|rules| rules.side(direction).by_address(*peer, *group, service));
            let counting = [self.a, self.b].map(|rules| rules.counting(*peer, *group));
            let place = Place { direction, service, peer: *peer, is_doh, a, b, counting };
            places.entry((a, b, is_doh, counting)).or_insert(place);
        }
        places.values().try_for_each(|place| self.place(place, &kinds))
    }

    /// Every set of names that tells the two apart, as far as it takes.
    fn place(&mut self, place: &Place, kinds: &[Kind]) -> Result<(), End> {
        let a_passes = |rank| self.a.passes(rank, place.direction, place.is_doh, self.policy.resolvers());
        let b_passes = |rank| self.b.passes(rank, place.direction, place.is_doh, self.policy.resolvers());
        let kinds: &[Kind] = &kinds.iter().map(|kind| place.counted(kind)).collect::<Vec<_>>();
        let mut found: Vec<(Vec<&Kind>, Option<&Kind>)> = Vec::new();
        let mut steps = kinds.len();
        let a_by_address = a_passes(place.a);
        let b_by_address = b_passes(place.b);
        if a_by_address && !b_by_address {
            found.push((Vec::new(), None));
        }
        // Ranks are of different rules but for `NONE`, which stands for the default: where both are that, it decides.
        let leaves_a = |kind: &Kind| kind.a.allow >= place.a && kind.a.deny >= place.a;
        let denied_by_b = |kind: &Kind| kind.b.deny < kind.b.allow.min(place.b);
        if a_by_address && b_by_address {
            let alias = kinds.iter().filter(|kind| kind.b.deny < place.b && kind.a.deny >= place.a);
            found.extend(alias.map(|alias| (Vec::new(), Some(alias))));
            found
                .extend(kinds.iter().filter(|kind| leaves_a(kind) && denied_by_b(kind)).map(|kind| (vec![kind], None)));
        }
        // What `b` allows by a name and then refuses as a known resolver.
        let stumbles: Vec<&Kind> =
            kinds.iter().filter(|kind| place.is_doh && kind.b.allow < place.b && !b_passes(kind.b.allow)).collect();
        if a_by_address {
            for stumble in stumbles.iter().copied().filter(|kind| kind.a.allow >= place.a) {
                steps += kinds.len();
                self.affords(steps)?;
                let in_set = |kind: &&Kind| kind.a.allow >= place.a && kind.b.allow >= stumble.b.allow;
                let helper = [stumble].into_iter().chain(kinds).filter(in_set).find(|kind| kind.a.deny >= place.a);
                found.extend(helper.map(|helper| (vec![stumble, helper], None)));
            }
        }
        // Those by which `b` may be closed as an alias.
        let aliases: Vec<&Kind> = kinds.iter().filter(|kind| kind.b.deny < place.b).collect();
        for named in kinds.iter().filter(|kind| kind.a.allow < place.a && a_passes(kind.a.allow)) {
            let first = named.a.allow;
            // Names that may be beside it, and of these one that is denied later than it is allowed: itself, if it is.
            let beside = |kind: &&Kind| kind.a.allow >= first;
            let helps = |kind: &&Kind| kind.a.allow >= first && kind.a.deny >= first;
            let is_denied = |helper: &&Kind| {
                let allow = named.b.allow.min(helper.b.allow);
                let deny = named.b.deny.max(helper.b.deny);
                !b_by_address && allow >= place.b || deny < allow.min(place.b)
            };
            // A name that `b` lets pass is let pass beside any other: its permission stays the first or another becomes that,
            // and denials only get later.
            if is_denied(&named) {
                steps += kinds.len();
                self.affords(steps)?;
                let mut helpers = [named].into_iter().chain(kinds).filter(helps);
                if let Some(helper) = helpers.find(is_denied) {
                    found.push((vec![named, helper], None));
                    continue;
                }
            }
            steps += aliases.len() + stumbles.len();
            self.affords(steps)?;
            let is_alias = |kind: &&&Kind| kind.a.deny >= first && kind.b.deny < named.b.allow.min(place.b);
            if named.a.deny >= first
                && let Some(alias) = aliases.iter().find(is_alias)
            {
                found.push((vec![named], Some(*alias)));
                continue;
            }
            for stumble in stumbles.iter().copied().filter(beside) {
                let second = stumble.b.allow;
                if named.b.allow < second {
                    continue;
                }
                steps += kinds.len();
                self.affords(steps)?;
                let mut helpers = [named].into_iter().chain(kinds).filter(helps);
                if let Some(helper) = helpers.find(|kind| kind.b.allow >= second) {
                    found.push((vec![named, stumble, helper], None));
                    break;
                }
            }
        }
        steps += LOOK_UP * found.len();
        let questions: Vec<Question> = found.into_iter().map(|(names, alias)| question(place, &names, alias)).collect();
        self.spend(steps)?;
        questions.into_iter().try_for_each(|question| self.tell(question))
    }

    /// Every name over both transports. Ports and protocols of rules for names do not count here.
    fn look_ups(&mut self, names: &[DomainName]) -> Result<(), End> {
        let resolvers = self.policy.resolvers();
        let known: Vec<DomainName> = resolvers.names().iter().filter_map(|name| name.parse().ok()).collect();
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let service = Service { protocol, port: Some(53) };
            self.spend(LOOK_UP * (names.len() + known.len()))?;
            for name in names.iter().chain(&known) {
                let [a, b] = [self.a, self.b].map(|rules| rules.check_name(name, service, resolvers).action);
                if (a, b) == (cofferdam_model::Action::Allow, cofferdam_model::Action::Deny) {
                    self.tell(Question::Name { name: name.clone(), protocol })?;
                }
            }
        }
        Ok(())
    }

    /// Addresses such that every address is like one of them.
    fn peers(&mut self, direction: Direction) -> Result<Vec<(IpAddr, Group)>, End> {
        let nets = [self.a, self.b].into_iter().flat_map(|rules| rules.rules.iter()).filter_map(|rule| {
            match &rule.destination {
                Destination::Cidr(net) => Some(*net),
                Destination::Any | Destination::Group(_) | Destination::Domain(_) | Destination::Suffix { .. } => None,
            }
        });
        let known = self.policy.resolvers().addresses().iter().map(|address| IpNet::from(*address));
        let cuts: BTreeSet<IpAddr> =
            nets.chain(known).flat_map(|net| [Some(net.network()), successor(net.broadcast())]).flatten().collect();
        let classifier = self.policy.classifier();
        let found = classifier.representatives(cuts.iter().copied());
        self.spend(LOOK_UP * found.len())?;
        let mut peers = BTreeMap::new();
        for peer in found {
            let group = classifier.classify(peer);
            let [a, b] = [self.a, self.b].map(|rules| rules.side(direction).prefixes.innermost(peer));
            let known = self.policy.resolvers().addresses().binary_search(&peer).is_ok();
            let host = self.readable(peer, group, &cuts);
            peers.entry((peer.is_ipv4(), group, a, b, known)).or_insert((host, group));
        }
        let mut peers: Vec<(IpAddr, Group)> = peers.into_values().collect();
        // Examples are taken from the front: what people know best.
        peers.sort_by_key(|(peer, group)| (peer.is_ipv6(), std::cmp::Reverse(*group)));
        Ok(peers)
    }

    /// The second address of a stretch in place of the first where that is like it: nobody has the address of a network.
    fn readable(&self, first: IpAddr, group: Group, cuts: &BTreeSet<IpAddr>) -> IpAddr {
        let is_even = match first {
            IpAddr::V4(v4) => v4.octets()[3] == 0,
            IpAddr::V6(v6) => v6.segments()[7] == 0,
        };
        let next = successor(first).filter(|next| is_even && !cuts.contains(next));
        next.filter(|next| self.policy.classifier().classify(*next) == group).unwrap_or(first)
    }

    /// Services such that every service is like one of them.
    fn services(&self, direction: Direction) -> Vec<Service> {
        let mut borders: BTreeSet<u16> = SPECIAL_PORTS.into();
        for range in [self.a, self.b].into_iter().flat_map(|rules| rules.rules.iter()).flat_map(|rule| &rule.ports) {
            borders.insert(range.start);
            borders.extend(range.end.checked_add(1));
        }
        let borders: Vec<u16> = borders.into_iter().filter(|port| *port > 0).collect();
        let ends = borders.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
        let example = |(start, end): (&u16, u16)| {
            KNOWN_PORTS.into_iter().find(|port| (*start..=end).contains(port)).unwrap_or(*start)
        };
        let ports: Vec<u16> = borders.iter().zip(ends).map(example).collect();
        let of = |protocol| ports.iter().map(move |port| Service { protocol, port: Some(*port) });
        let icmp = [Protocol::IcmpV4, Protocol::IcmpV6].map(|protocol| Service { protocol, port: None });
        // No ping comes in.
        let icmp = icmp.into_iter().filter(|_| direction == Direction::Egress);
        of(Protocol::Tcp).chain(of(Protocol::Udp)).chain(icmp).collect()
    }

    /// Names such that every name is like one of them: those of the rules, one below each, one that no rule knows.
    fn names(&self) -> Vec<DomainName> {
        let rules = [self.a, self.b].into_iter().flat_map(|rules| rules.rules.iter());
        let named: BTreeSet<&DomainName> = rules
            .filter_map(|rule| match &rule.destination {
                Destination::Domain(name) | Destination::Suffix { name, .. } => Some(name),
                Destination::Any | Destination::Group(_) | Destination::Cidr(_) => None,
            })
            .collect();
        // A label that stands in none of these names: then nothing below or beside them is meant by it.
        let labels: BTreeSet<&str> = named.iter().flat_map(|name| name.labels()).collect();
        let fresh = (0_u64..).map(|n| if n == 0 { "other".to_owned() } else { format!("o{n}") });
        let fresh = fresh.into_iter().find(|label| !labels.contains(label.as_str())).unwrap_or_default();
        // Where there is no room for the label, a shorter one may be: any single character that is not taken below.
        let short: Vec<String> = ('a'..='z').chain('0'..='9').map(String::from).collect();
        let below = |name: &&DomainName| {
            let labels = std::iter::once(&fresh).chain(&short);
            let names = labels.filter_map(|label| format!("{label}.{name}").parse::<DomainName>().ok());
            names.into_iter().find(|below| !named.contains(below))
        };
        let unknown = format!("{fresh}.{fresh}").parse().ok();
        named.iter().map(|name| (*name).clone()).chain(named.iter().filter_map(below)).chain(unknown).collect()
    }

    fn kinds(&mut self, direction: Direction, service: Service, names: &[DomainName]) -> Result<Vec<Kind>, End> {
        self.spend(LOOK_UP * names.len())?;
        let mut kinds = BTreeMap::new();
        for name in names {
            let [a, b] = [self.a, self.b].map(|rules| rules.side(direction).names.lookup(name, service));
            kinds.entry([a.allow, a.inside, a.deny, b.allow, b.inside, b.deny]).or_insert_with(|| Kind {
                name: name.clone(),
                a,
                b,
            });
        }
        Ok(kinds.into_values().collect())
    }

    fn tell(&mut self, question: Question) -> Result<(), End> {
        match (self.visit)(question) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(End::Enough),
        }
    }

    fn spend(&mut self, steps: usize) -> Result<(), End> {
        self.left = self.affords(steps)?;
        Ok(())
    }

    /// What is left after so many steps.
    fn affords(&self, steps: usize) -> Result<u64, End> {
        let steps = u64::try_from(steps).unwrap_or(u64::MAX);
        self.left.checked_sub(steps).ok_or(End::Exhausted)
    }
}

fn question(place: &Place, names: &[&Kind], alias: Option<&Kind>) -> Question {
    let mut pinned: Vec<PinnedName> = Vec::new();
    for (kind, alias) in names.iter().map(|kind| (*kind, false)).chain(alias.map(|kind| (kind, true))) {
        let name = PinnedName { name: kind.name.clone(), alias };
        if !pinned.contains(&name) {
            pinned.push(name);
        }
    }
    let Place { direction, service, peer, .. } = *place;
    Question::Flow { direction, protocol: service.protocol, peer, port: service.port, names: pinned }
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}
