//! What an upstream's answer may say to the guest.
//!
//! An answer counts only for the question that was asked, and in its answer section only along the chain: the qname, the
//! name that its CNAME leads to, and so on. Records beside the chain are somebody's claim about names that nobody asked
//! for; they are neither delivered nor pinned. Addresses count only at the end of the chain (a name with a CNAME has no
//! other data, RFC 1034 §3.6.2).

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use cofferdam_model::{Direction, DomainName, Group, Protocol};
use cofferdam_policy::{Facts, Policy, Reason};

use crate::config::{Families, Rebinding};
use crate::reply::{ExtendedError, Head, Rcode};
use crate::svcb;
use crate::wire::{CLASS_IN, Data, Malformed, Name, Reader, Record, flags, kind};

/// The most names in one chain. Resolvers give up on longer ones as well (unbound: 11, BIND: 16 restarts).
const MAX_CHAIN: usize = 16;
/// The most addresses of one answer that are delivered and pinned; what is beyond is left out of both, so that every
/// address that the guest sees is pinned. A quarter of what one name may have pinned.
const MAX_ADDRESSES: usize = 256;
/// How long an answer without data is remembered at most: the upper end of what RFC 2308 §5 calls sensible.
const MAX_NEGATIVE_LIFE: Duration = Duration::from_secs(3 * 60 * 60);
/// How long an answer with data is remembered at most. Names move; a day of staleness is what people put up with.
const MAX_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// The most extended errors that are passed on.
const MAX_ERRORS: usize = 4;
/// The most text that is passed on with one.
const MAX_ERROR_TEXT: usize = 255;

/// What was asked of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Question {
    /// Wire form in lower case.
    pub(crate) name: Vec<u8>,
    pub(crate) qtype: u16,
}

/// What arrived on the socket of a query.
#[derive(Debug)]
pub(crate) enum Arrival<'a> {
    /// Not an answer to this query: another id or question. Perhaps a forgery.
    Foreign,
    /// The answer did not fit; ask again over TCP.
    Truncated,
    /// An answer to this query that cannot be understood.
    Broken,
    Answer(Answer<'a>),
}

/// An upstream's answer, as it was understood.
#[derive(Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) head: Head,
    pub(crate) answer: Vec<Record<'a>>,
    pub(crate) authority: Vec<Record<'a>>,
    pub(crate) additional: Vec<Record<'a>>,
    pub(crate) errors: Vec<ExtendedError>,
}

/// Reads what an upstream sent in answer to the query with `id` and `question`.
pub(crate) fn read<'a>(message: &'a [u8], id: u16, question: &Question) -> Arrival<'a> {
    let mut reader = Reader::new(message);
    let Ok((flags, counts)) = read_header(&mut reader, id, question) else { return Arrival::Foreign };
    if flags & flags::TRUNCATED != 0 {
        return Arrival::Truncated;
    }
    match read_records(reader, flags, counts) {
        Ok(answer) => Arrival::Answer(answer),
        Err(Malformed) => Arrival::Broken,
    }
}

/// Reads an answer once more that [`read`] has understood before.
pub(crate) fn read_again<'a>(message: &'a [u8], question: &Question) -> Option<Answer<'a>> {
    let id = Reader::new(message).word().ok()?;
    match read(message, id, question) {
        Arrival::Answer(answer) => Some(answer),
        Arrival::Foreign | Arrival::Truncated | Arrival::Broken => None,
    }
}

/// Header and question, when they answer what was asked.
fn read_header(reader: &mut Reader<'_>, id: u16, question: &Question) -> Result<(u16, [u16; 3]), Malformed> {
    let answered_id = reader.word()?;
    let flags = reader.word()?;
    let questions = reader.word()?;
    let counts = [reader.word()?, reader.word()?, reader.word()?];
    if answered_id != id || flags & flags::RESPONSE == 0 || flags & flags::OPCODE != 0 {
        return Err(Malformed);
    }
    // Servers that could not or would not read the query send its header back alone.
    let [answers, authorities, _] = counts;
    if questions == 0 && flags & flags::RCODE != 0 && answers == 0 && authorities == 0 {
        return Ok((flags, counts));
    }
    let name = reader.plain_name()?;
    let same = name.as_bytes().eq_ignore_ascii_case(&question.name)
        && reader.word()? == question.qtype
        && reader.word()? == CLASS_IN;
    if questions == 1 && same { Ok((flags, counts)) } else { Err(Malformed) }
}

fn read_records(mut reader: Reader<'_>, flags: u16, counts: [u16; 3]) -> Result<Answer<'_>, Malformed> {
    let [answers, authorities, additionals] = counts;
    let answer = read_section(&mut reader, answers)?;
    let authority = read_section(&mut reader, authorities)?;
    let mut additional = read_section(&mut reader, additionals)?;
    let mut rcode = flags & flags::RCODE;
    let mut errors = Vec::new();
    // OPT is between two neighbours: what concerns the guest is taken out of it, and the guest gets one of ours.
    if let Some(opt) = additional.iter().find(|record| record.kind == kind::OPT) {
        let [extended, ..] = opt.ttl.to_be_bytes();
        rcode |= u16::from(extended) << 4;
        errors = read_errors(opt.bytes().unwrap_or(&[]));
    }
    additional.retain(|record| record.kind != kind::OPT);
    let kept = flags::AUTHORITATIVE | flags::RECURSION_AVAILABLE | flags::AUTHENTIC_DATA;
    Ok(Answer { head: Head { rcode, flags: flags & kept }, answer, authority, additional, errors })
}

fn read_section<'a>(reader: &mut Reader<'a>, count: u16) -> Result<Vec<Record<'a>>, Malformed> {
    // Not sized by the count, which may lie.
    let mut records = Vec::new();
    for _ in 0..count {
        records.push(reader.record()?);
    }
    Ok(records)
}

/// The extended errors among the options of an OPT record, as far as they can be read.
fn read_errors(options: &[u8]) -> Vec<ExtendedError> {
    let mut reader = Reader::new(options);
    let mut errors = Vec::new();
    while errors.len() < MAX_ERRORS {
        let (Ok(code), Ok(length)) = (reader.word(), reader.word()) else { break };
        let Ok(data) = reader.bytes(usize::from(length)) else { break };
        let (15, Some((info, text))) = (code, data.split_first_chunk::<2>()) else { continue };
        let text = text.get(..MAX_ERROR_TEXT).unwrap_or(text).to_vec();
        errors.push(ExtendedError { code: u16::from_be_bytes(*info), text });
    }
    errors
}

/// Which addresses an answer may carry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guard<'a> {
    pub(crate) rebinding: &'a Rebinding,
    /// Why the name was allowed, for everybody who waits. One answer goes to them all: it leads inside only when the rules of
    /// all say so.
    pub(crate) waiters: &'a [&'a Reason],
}

/// An answer that may not be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Objection {
    /// It carries an address that the guest must not be led to.
    Rebinding { address: IpAddr, group: Group },
    /// Its CNAME chain loops, is too long, or leads through a name that no rule could speak of.
    Chain,
}

/// The names and addresses of an answer that was cleared for delivery.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Bindings {
    /// The names of the CNAME chain after the qname, and those that SVCB and HTTPS records lead to.
    pub(crate) aliases: Vec<DomainName>,
    /// The addresses at the end of the chain, hints included. A client may keep one for as long as the chain's shortest TTL.
    pub(crate) addresses: Vec<(IpAddr, Duration)>,
}

impl Answer<'_> {
    /// For how long the answer may be remembered; zero for one that may not.
    ///
    /// With data: the shortest TTL along its chain. Without: what its SOA says (RFC 2308 §5), and no longer than the
    /// CNAMEs that led there. Without data and SOA nobody knows. An error is no answer: it should be over when it is over.
    pub(crate) fn life(&self, question: &Question) -> Duration {
        let is_kept = [Rcode::NoError, Rcode::NxDomain].iter().any(|rcode| rcode.code() == self.head.rcode);
        let Ok(chain) = Chain::follow(question, &self.answer) else { return Duration::ZERO };
        if !is_kept {
            return Duration::ZERO;
        }
        let records = self.answer.iter().filter(|record| chain.holds(record));
        let shortest = records.map(|record| seconds(record.ttl)).min().unwrap_or(Duration::MAX);
        let has_data = self.head.rcode == Rcode::NoError.code()
            && self.answer.iter().any(|record| record.kind == question.qtype && chain.ends_at(&record.name));
        if has_data {
            return shortest.min(MAX_LIFE);
        }
        let soa = self.authority.iter().find(|record| record.kind == kind::SOA && record.class == CLASS_IN);
        let negative = soa.and_then(Record::negative_ttl).map_or(Duration::ZERO, seconds);
        shortest.min(negative).min(MAX_NEGATIVE_LIFE)
    }

    /// Counts the TTLs of a remembered answer down by its `age`; none outlives what is `left` of the answer's own life.
    pub(crate) fn grow_older(&mut self, age: Duration, left: Duration) {
        let whole = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
        let age = whole(age);
        // A rest of less than a second is still a rest: TTLs are rounded up to it.
        let left = whole(left + Duration::from_nanos(999_999_999));
        for section in [&mut self.answer, &mut self.authority, &mut self.additional] {
            // Outside the answer section records may have had shorter lives than the answer.
            section.retain(|record| age == 0 || record.ttl > age);
            for record in section {
                record.ttl = record.ttl.saturating_sub(age).min(left);
            }
        }
    }

    /// Strips what does not belong to the question asked and judges the rest.
    pub(crate) fn clear(
        &mut self,
        question: &Question,
        families: Families,
        guard: Guard<'_>,
    ) -> Result<Bindings, Objection> {
        let chain = Chain::follow(question, &self.answer)?;
        let mut aliases = chain.aliases.clone();
        self.answer.retain(|record| chain.holds(record));
        // Addresses beside an error are of no use to a client, and not to be believed either.
        let is_error = self.head.rcode != Rcode::NoError.code();
        let deliverable = |record: &Record<'_>| match record.kind {
            kind::A => families.ipv4 && !is_error,
            kind::AAAA => families.ipv6 && !is_error,
            // Outside the answer section a client does not expect these; it asks for those that it wants.
            kind::SVCB | kind::HTTPS => false,
            _ => true,
        };
        let services = self.sift_services(families, is_error, &mut aliases);
        self.answer.retain(|record| is_service(record) || deliverable(record));
        let mut addresses = Vec::new();
        for record in &self.answer {
            let Some(address) = address_of(record) else { continue };
            if let Some(group) = guard.forbids(address) {
                return Err(Objection::Rebinding { address, group });
            }
            let ttl = seconds(record.ttl).min(chain.ttl);
            addresses.push((address, ttl));
        }
        for (address, ttl) in services {
            if let Some(group) = guard.forbids(address) {
                return Err(Objection::Rebinding { address, group });
            }
            addresses.push((address, ttl.min(chain.ttl)));
        }
        addresses.truncate(MAX_ADDRESSES);
        let mut seen = 0;
        self.answer.retain(|record| {
            seen += usize::from(address_of(record).is_some());
            address_of(record).is_none() || seen <= MAX_ADDRESSES
        });
        // Glue is a courtesy: what must not be delivered is left out of it without a word.
        for section in [&mut self.authority, &mut self.additional] {
            section.retain(|record| {
                let is_harmless = address_of(record).is_none_or(|address| guard.forbids(address).is_none());
                record.class == CLASS_IN && deliverable(record) && is_harmless
            });
        }
        Ok(Bindings { aliases, addresses })
    }

    /// Rewrites the SVCB and HTTPS records and gives back the addresses in them; the names they lead to become aliases.
    ///
    /// An answer carries such records or address records, never both: both stand at the end of the chain and only one is
    /// of the type that was asked for. Even so no more than [`MAX_ADDRESSES`] come from here.
    fn sift_services(
        &mut self,
        families: Families,
        is_error: bool,
        aliases: &mut Vec<DomainName>,
    ) -> Vec<(IpAddr, Duration)> {
        let mut hints: Vec<(IpAddr, Duration)> = Vec::new();
        let mut changed = [false; 2];
        self.answer.retain_mut(|record| {
            if !is_service(record) {
                return true;
            }
            let room = MAX_ADDRESSES.saturating_sub(hints.len());
            let sifted = record.bytes().filter(|_| !is_error).and_then(|data| svcb::sift(data, families, room));
            let target = sifted.as_ref().and_then(|service| service.target.as_ref());
            let alias = target.map(Name::to_domain);
            // Led to a name that no rule can speak of, as with CNAME; but here the client has other records.
            let sifted = sifted.filter(|_| alias != Some(None));
            let Some(changes) = changed.get_mut(usize::from(record.kind == kind::HTTPS)) else { return false };
            let Some(service) = sifted else {
                *changes = true;
                return false;
            };
            *changes |= service.has_changed;
            aliases.extend(alias.flatten().filter(|alias| !aliases.contains(alias)));
            hints.extend(service.hints.iter().map(|address| (*address, seconds(record.ttl))));
            record.data = Data::Bytes(Cow::Owned(service.data));
            true
        });
        for (has_changed, kind) in changed.into_iter().zip([kind::SVCB, kind::HTTPS]) {
            if has_changed {
                // The set is no longer the one that was signed.
                self.answer.retain(|record| record.covered_kind() != Some(kind));
                self.head.flags &= !flags::AUTHENTIC_DATA;
            }
        }
        hints
    }
}

/// The names that an answer leads through.
struct Chain {
    /// From the qname to the last target.
    names: Vec<Name>,
    /// `names` without the qname, in the words of policies.
    aliases: Vec<DomainName>,
    /// The shortest TTL of its CNAME records.
    ttl: Duration,
}

impl Chain {
    fn follow(question: &Question, records: &[Record<'_>]) -> Result<Chain, Objection> {
        let mut chain = Chain { names: Vec::new(), aliases: Vec::new(), ttl: Duration::MAX };
        let Ok(qname) = Reader::new(&question.name).plain_name() else { return Err(Objection::Chain) };
        chain.names.push(qname);
        if question.qtype == kind::CNAME {
            return Ok(chain);
        }
        while let Some((target, ttl)) = chain.next(records) {
            let Some(alias) = target.to_domain() else { return Err(Objection::Chain) };
            if chain.names.len() == MAX_CHAIN || chain.names.iter().any(|name| name.same(target)) {
                return Err(Objection::Chain);
            }
            chain.names.push(target.clone());
            chain.aliases.push(alias);
            chain.ttl = chain.ttl.min(ttl);
        }
        Ok(chain)
    }

    fn next<'r>(&self, records: &'r [Record<'_>]) -> Option<(&'r Name, Duration)> {
        let last = self.names.last()?;
        let cname = records.iter().find(|record| is_cname(record) && record.name.same(last))?;
        Some((cname.target()?, seconds(cname.ttl)))
    }

    /// Whether `name` is the one that the chain ends at.
    fn ends_at(&self, name: &Name) -> bool {
        self.names.last().is_some_and(|last| last.same(name))
    }

    /// Whether a record of the answer section belongs to the chain.
    fn holds(&self, record: &Record<'_>) -> bool {
        if record.class != CLASS_IN {
            return false;
        }
        // A DNAME explains the CNAMEs made from it; validators want to see it and its signature (RFC 6672 §5.3).
        let explains = record.kind == kind::DNAME || record.covered_kind() == Some(kind::DNAME);
        if explains && self.names.iter().any(|name| name.is_within(&record.name)) {
            return true;
        }
        let Some(place) = self.names.iter().position(|name| name.same(&record.name)) else { return false };
        match self.names.get(place + 1) {
            // The end of the chain: any data that the name has.
            None => true,
            Some(next) if is_cname(record) => record.target().is_some_and(|target| target.same(next)),
            Some(_) => record.covered_kind() == Some(kind::CNAME),
        }
    }
}

fn is_service(record: &Record<'_>) -> bool {
    matches!(record.kind, kind::SVCB | kind::HTTPS)
}

fn is_cname(record: &Record<'_>) -> bool {
    record.kind == kind::CNAME && record.class == CLASS_IN
}

/// A TTL; one with the highest bit set counts as zero (RFC 2181 §8).
fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(u64::from(if ttl > i32::MAX.unsigned_abs() { 0 } else { ttl }))
}

/// The address in an address record of class IN, which [`Reader::record`] has seen to have the right length.
fn address_of(record: &Record<'_>) -> Option<IpAddr> {
    match record.kind {
        kind::A => Some(Ipv4Addr::from(<[u8; 4]>::try_from(record.bytes()?).ok()?).into()),
        kind::AAAA => Some(Ipv6Addr::from(<[u8; 16]>::try_from(record.bytes()?).ok()?).into()),
        _ => None,
    }
}

impl Guard<'_> {
    /// The group of an address that must not be delivered (`names.md` §3).
    fn forbids(self, address: IpAddr) -> Option<Group> {
        let Rebinding::Guard { layers } = self.rebinding else { return None };
        let group = layers.first()?.explicit.classifier().classify(address);
        let can_be_named = match group {
            Group::Public => return None,
            // No rule makes these reachable by name: credentials, and services that trust whoever reaches them.
            Group::Metadata | Group::Loopback => return Some(group),
            Group::Host => false,
            Group::LinkLocal | Group::Private | Group::Multicast | Group::Reserved => true,
        };
        let by_name = |place| can_be_named && self.waiters.iter().all(|reason| reason.leads_inside(place));
        let excepted = layers.iter().all(|layer| by_name(layer.place) || allows(&layer.explicit, address));
        let possible = !address.to_canonical().is_unspecified();
        (!(possible && excepted)).then_some(group)
    }
}

/// Whether a policy that has only rules without ports allows connections or datagrams to `address`: whoever may be pinged there is no
/// reason for names to lead there.
fn allows(explicit: &Policy, address: IpAddr) -> bool {
    const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
    PROTOCOLS.into_iter().any(|protocol| {
        let facts = Facts { direction: Direction::Egress, protocol, peer: address, port: None, names: &[] };
        explicit.check(&facts).is_allow()
    })
}
