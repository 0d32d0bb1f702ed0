//! What the guest is told: messages with its id, its question in its case, and its RD and CD bits.

use std::borrow::Cow;

use cofferdam_model::DecisionId;

use crate::Transport;
use crate::query::Query;
use crate::wire::{Data, Field, MAX_MESSAGE, Name, Record, Writer, flags, kind};

/// The largest UDP message for a client that says nothing about it (RFC 1035 §2.3.4).
const PLAIN_SIZE: u16 = 512;
/// The largest UDP message that we send however much the client takes: the size that resolvers commonly stop at. What is
/// larger goes over TCP.
const LARGEST_SIZE: u16 = 4096;
/// The UDP size that we announce, to the guest and to upstreams: fits an IPv6 packet of the least MTU (DNS Flag Day 2020).
pub(crate) const OUR_SIZE: u16 = 1232;
/// How long a denial may be remembered (`names.md` §2 step 3): long enough to stop a busy loop, short enough that a
/// changed policy is soon seen.
const DENIAL_TTL: u32 = 5;

/// Response codes that we give ourselves; codes above 15 need an OPT record (RFC 6891 §6.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rcode {
    NoError,
    FormErr,
    ServFail,
    NxDomain,
    NotImp,
    Refused,
    BadVers,
}

impl Rcode {
    pub(crate) fn code(self) -> u16 {
        match self {
            Rcode::NoError => 0,
            Rcode::FormErr => 1,
            Rcode::ServFail => 2,
            Rcode::NxDomain => 3,
            Rcode::NotImp => 4,
            Rcode::Refused => 5,
            Rcode::BadVers => 16,
        }
    }
}

/// An extended DNS error (RFC 8914).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExtendedError {
    pub(crate) code: u16,
    pub(crate) text: Vec<u8>,
}

impl ExtendedError {
    /// 15, *Blocked*: the operator of this server does not want the name to be looked up.
    pub(crate) fn blocked(decision: DecisionId) -> ExtendedError {
        ExtendedError { code: 15, text: format!("blocked by policy, decision {decision}").into_bytes() }
    }

    /// 22, *No Reachable Authority*.
    pub(crate) fn unreachable() -> ExtendedError {
        ExtendedError { code: 22, text: b"no configured resolver answered".to_vec() }
    }

    /// 0, *Other*.
    pub(crate) fn other(text: &str) -> ExtendedError {
        ExtendedError { code: 0, text: text.as_bytes().to_vec() }
    }
}

/// The parts of a header that do not come from the query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// With the extended part.
    pub(crate) rcode: u16,
    /// Any of AA, RA and AD.
    pub(crate) flags: u16,
}

impl Head {
    /// Of an answer of our own.
    pub(crate) fn of(rcode: Rcode) -> Head {
        Head { rcode: rcode.code(), flags: flags::RECURSION_AVAILABLE }
    }

    /// Of an answer about names that are ours to decide on.
    pub(crate) fn authoritative(rcode: Rcode) -> Head {
        Head { rcode: rcode.code(), flags: flags::RECURSION_AVAILABLE | flags::AUTHORITATIVE }
    }
}

/// A reply before it is bytes.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    query: &'a Query,
    head: Head,
    pub(crate) answer: Cow<'a, [Record<'a>]>,
    pub(crate) authority: Cow<'a, [Record<'a>]>,
    pub(crate) additional: Cow<'a, [Record<'a>]>,
    pub(crate) errors: Cow<'a, [ExtendedError]>,
}

impl<'a> Reply<'a> {
    /// A reply without records.
    pub(crate) fn new(query: &'a Query, head: Head) -> Reply<'a> {
        Reply {
            query,
            head,
            answer: Cow::Borrowed(&[]),
            authority: Cow::Borrowed(&[]),
            additional: Cow::Borrowed(&[]),
            errors: Cow::Borrowed(&[]),
        }
    }

    /// The answer to a message whose question could not be read.
    pub(crate) fn bare(id: u16, query_flags: u16, rcode: Rcode) -> Vec<u8> {
        let kept = query_flags & (flags::OPCODE | flags::RECURSION_DESIRED);
        Writer::new(id, flags::RESPONSE | kept | (rcode.code() & flags::RCODE)).finish()
    }

    /// The response code, with its extended part.
    pub(crate) fn rcode(&self) -> u16 {
        self.head.rcode
    }

    pub(crate) fn with_error(mut self, error: ExtendedError) -> Reply<'a> {
        self.errors.to_mut().push(error);
        self
    }

    /// Adds the SOA record that makes a negative answer cacheable for a few seconds (RFC 2308 §5).
    pub(crate) fn with_denial_soa(mut self) -> Reply<'a> {
        let owner = self.query.name.clone();
        self.authority.to_mut().push(denial_soa(owner));
        self
    }

    /// The largest message that the asker takes over `transport`.
    pub(crate) fn limit(query: &Query, transport: Transport) -> usize {
        match transport {
            Transport::Tcp => MAX_MESSAGE,
            Transport::Udp => {
                let size = query.edns.map_or(PLAIN_SIZE, |edns| edns.size.clamp(PLAIN_SIZE, LARGEST_SIZE));
                usize::from(size)
            }
        }
    }

    /// The message, of at most `limit` bytes: first without the additional section, then without the authority section
    /// beside an answer, both of which a client can do without (RFC 2181 §9), at last as a truncated one.
    pub(crate) fn emit(&self, limit: usize) -> Vec<u8> {
        let none: &[Record<'_>] = &[];
        let whole = self.write(0, &self.answer, &self.authority, &self.additional);
        if whole.len() <= limit {
            return whole;
        }
        let mut shorter = Vec::new();
        if !self.additional.is_empty() {
            shorter = self.write(0, &self.answer, &self.authority, none);
        }
        let fits = |message: &Vec<u8>| !message.is_empty() && message.len() <= limit;
        if !fits(&shorter) && !self.answer.is_empty() && !self.authority.is_empty() {
            shorter = self.write(0, &self.answer, none, none);
        }
        if fits(&shorter) { shorter } else { self.write(flags::TRUNCATED, none, none, none) }
    }

    fn write(
        &self,
        extra_flags: u16,
        answer: &[Record<'_>],
        authority: &[Record<'_>],
        additional: &[Record<'_>],
    ) -> Vec<u8> {
        let kept = self.query.flags & (flags::RECURSION_DESIRED | flags::CHECKING_DISABLED);
        let [extended, low] = (self.head.rcode << 4).to_be_bytes();
        let mut rcode = u16::from(low >> 4);
        if self.query.edns.is_none() && extended != 0 {
            rcode = Rcode::ServFail.code();
        }
        let mut writer = Writer::new(self.query.id, flags::RESPONSE | kept | self.head.flags | extra_flags | rcode);
        writer.question(&self.query.name, self.query.qtype);
        writer.section(1, answer);
        writer.section(2, authority);
        writer.section(3, additional);
        if let Some(edns) = self.query.edns {
            let flags = if edns.dnssec_ok { flags::DNSSEC_OK } else { 0 };
            writer.opt(OUR_SIZE, extended, flags, &self.options(), additional.len());
        }
        writer.finish()
    }

    fn options(&self) -> Vec<u8> {
        /// Of the option that carries an extended error.
        const EXTENDED_ERROR: u16 = 15;
        let mut options = Vec::new();
        for error in self.errors.iter() {
            let Ok(length) = u16::try_from(error.text.len() + 2) else { continue };
            options.extend_from_slice(&EXTENDED_ERROR.to_be_bytes());
            options.extend_from_slice(&length.to_be_bytes());
            options.extend_from_slice(&error.code.to_be_bytes());
            options.extend_from_slice(&error.text);
        }
        options
    }
}

fn denial_soa(owner: Name) -> Record<'static> {
    // Serial, refresh, retry, expire: of no use to a stub. The last one is how long the denial lives.
    const NUMBERS: &[u8; 20] = &[0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 5, 0, 0, 0, 5, 0, 0, 0, 5];
    let zone = crate::special::zone();
    let fields = vec![Field::Name(zone.clone()), Field::Name(zone), Field::Bytes(NUMBERS)];
    Record::new(owner, kind::SOA, DENIAL_TTL, Data::Fields(fields))
}

/// Turns an answer that was made into SERVFAIL for the same query: header and question stay, everything else goes.
pub(crate) fn to_servfail(message: &[u8]) -> Vec<u8> {
    let mut reader = crate::wire::Reader::new(message);
    let parts = (|| {
        let id = reader.word()?;
        let flags = reader.word()?;
        reader.bytes(8)?;
        let name = reader.plain_name()?;
        Ok::<_, crate::wire::Malformed>((id, flags, name, reader.word()?))
    })();
    // Only our own messages get here, and they all carry their question.
    let Ok((id, message_flags, name, qtype)) = parts else { return Vec::new() };
    let kept = message_flags & (flags::RESPONSE | flags::RECURSION_DESIRED | flags::RECURSION_AVAILABLE);
    let mut writer = Writer::new(id, kept | Rcode::ServFail.code());
    writer.question(&name, qtype);
    writer.finish()
}
