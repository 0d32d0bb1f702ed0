//! What the guest asks (names of RFC 1035, EDNS of RFC 6891).

use cofferdam_model::DomainName;

use crate::output::{Ends, Transport};
use crate::reply::{Head, Rcode, Reply};
use crate::wire::{CLASS_IN, HEADER_LEN, Malformed, Name, Reader, flags, kind};

/// A query that we are willing to think about.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    /// How it came, for events.
    pub(crate) transport: Transport,
    pub(crate) ends: Ends,
    pub(crate) id: u16,
    /// The header's flags as they came.
    pub(crate) flags: u16,
    /// The name as it was written.
    pub(crate) name: Name,
    /// The name in the words of policies; `None` for the root, which no rule can name.
    pub(crate) domain: Option<DomainName>,
    pub(crate) qtype: u16,
    pub(crate) edns: Option<Edns>,
}

/// What a client said about itself in its OPT record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edns {
    /// The largest UDP message it takes.
    pub(crate) size: u16,
    pub(crate) dnssec_ok: bool,
    version: u8,
}

/// What to do with a message of the guest.
#[derive(Debug)]
pub(crate) enum Received {
    /// Not answered: no id to answer to, or itself a response. (Answering responses makes loops.)
    Nothing,
    /// Answered without further thought.
    Refused(Vec<u8>),
    Query(Query),
}

/// Reads a message of the guest (`names.md` §2 step 1).
pub(crate) fn receive((transport, ends): (Transport, Ends), message: &[u8]) -> Received {
    let mut reader = Reader::new(message);
    let Ok(id) = reader.word() else { return Received::Nothing };
    // A message that ends within its flags has none.
    let flags = match (message.get(2), message.get(3)) {
        (Some(high), low) => u16::from_be_bytes([*high, low.copied().unwrap_or(0)]),
        (None, _) => 0,
    };
    if flags & flags::RESPONSE != 0 {
        return Received::Nothing;
    }
    if message.len() >= HEADER_LEN && flags & flags::OPCODE != 0 {
        return Received::Refused(Reply::bare(id, flags, Rcode::NotImp));
    }
    let Ok(query) = parse((transport, ends), message, id, flags) else {
        return Received::Refused(Reply::bare(id, flags, Rcode::FormErr));
    };
    let refusal = if query.query.edns.is_some_and(|edns| edns.version != 0) {
        Some(Rcode::BadVers)
    } else if query.class != CLASS_IN || is_meta(query.query.qtype) || query.is_unspeakable() {
        Some(Rcode::Refused)
    } else {
        None
    };
    match refusal {
        // The question is repeated in class IN only; for others the bare answer has to do.
        Some(rcode) if query.class != CLASS_IN => Received::Refused(Reply::bare(id, flags, rcode)),
        Some(rcode) => Received::Refused(Reply::new(&query.query, Head::of(rcode)).emit(usize::from(u16::MAX))),
        None => Received::Query(query.query),
    }
}

/// Types that are no data but instructions: ANY, AXFR, IXFR, MAILA, MAILB, TSIG, TKEY and the rest of that range
/// (RFC 6895 §3.1), the pseudo-type OPT, and 0, which is reserved.
fn is_meta(qtype: u16) -> bool {
    matches!(qtype, 0 | kind::OPT | 128..=255)
}

struct Parsed {
    query: Query,
    class: u16,
}

impl Parsed {
    /// A name with bytes that no rule can contain cannot be decided on by name, so it is not asked for either.
    fn is_unspeakable(&self) -> bool {
        self.query.domain.is_none() && !self.query.name.is_root()
    }
}

fn parse((transport, ends): (Transport, Ends), message: &[u8], id: u16, flags: u16) -> Result<Parsed, Malformed> {
    let mut reader = Reader::new(message);
    reader.bytes(4)?;
    let questions = reader.word()?;
    let records = [reader.word()?, reader.word()?, reader.word()?];
    if questions != 1 {
        return Err(Malformed);
    }
    let name = reader.plain_name()?;
    let qtype = reader.word()?;
    let class = reader.word()?;
    let [answers, authorities, additionals] = records;
    for _ in 0..u32::from(answers) + u32::from(authorities) {
        if reader.record()?.kind == kind::OPT {
            return Err(Malformed);
        }
    }
    let mut edns = None;
    for _ in 0..additionals {
        let record = reader.record()?;
        if record.kind == kind::OPT {
            if !record.name.is_root() || edns.is_some() {
                return Err(Malformed);
            }
            check_options(record.bytes().unwrap_or(&[]))?;
            let [_, version, high, low] = record.ttl.to_be_bytes();
            let dnssec_ok = u16::from_be_bytes([high, low]) & flags::DNSSEC_OK != 0;
            edns = Some(Edns { size: record.class, dnssec_ok, version });
        }
    }
    if !reader.is_at_end() {
        return Err(Malformed);
    }
    let domain = name.to_domain();
    Ok(Parsed { query: Query { transport, ends, id, flags, name, domain, qtype, edns }, class })
}

/// The options themselves (cookies, client subnet, padding) are between the guest and its resolver, which is us, and we
/// use none. None is passed on: they would carry data past the name verdict.
fn check_options(options: &[u8]) -> Result<(), Malformed> {
    let mut reader = Reader::new(options);
    while !reader.is_at_end() {
        reader.word()?;
        let length = reader.word()?;
        reader.bytes(usize::from(length))?;
    }
    Ok(())
}
