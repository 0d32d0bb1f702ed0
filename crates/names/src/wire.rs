//! The DNS message format (RFC 1035 §4) as far as a forwarder has to understand it.
//!
//! Everything here is read from strangers: guests on one side, whoever answers for a zone on the other. Reading is
//! bounded by the message: a name has at most 255 bytes, a compression pointer must point before the place where the name
//! (or the piece that led to it) began, so that pointers cannot loop, and counts are only believed as far as records
//! follow. Nothing that was read is sent on as bytes: messages are written anew from what was understood, so that the
//! guest cannot see more in an answer than was checked.

mod name;
mod read;
mod write;

use std::borrow::Cow;

pub(crate) use name::Name;
pub(crate) use read::Reader;
pub(crate) use write::Writer;

/// Bytes of a message before its question (RFC 1035 §4.1.1).
pub(crate) const HEADER_LEN: usize = 12;
/// Longest message; TCP's length prefix has two bytes.
pub(crate) const MAX_MESSAGE: usize = 65_535;

/// Bits of the header's second word.
pub(crate) mod flags {
    pub(crate) const RESPONSE: u16 = 0x8000;
    pub(crate) const OPCODE: u16 = 0x7800;
    pub(crate) const AUTHORITATIVE: u16 = 0x0400;
    pub(crate) const TRUNCATED: u16 = 0x0200;
    pub(crate) const RECURSION_DESIRED: u16 = 0x0100;
    pub(crate) const RECURSION_AVAILABLE: u16 = 0x0080;
    pub(crate) const AUTHENTIC_DATA: u16 = 0x0020;
    pub(crate) const CHECKING_DISABLED: u16 = 0x0010;
    pub(crate) const RCODE: u16 = 0x000f;
    /// In the lower half of the OPT record's TTL field (RFC 3225).
    pub(crate) const DNSSEC_OK: u16 = 0x8000;
}

/// Record types (IANA's registry of DNS parameters).
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const DNAME: u16 = 39;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const RRSIG: u16 = 46;
    pub(crate) const SVCB: u16 = 64;
    pub(crate) const HTTPS: u16 = 65;
}

/// The Internet class.
pub(crate) const CLASS_IN: u16 = 1;

/// The bytes are not a DNS message, or not one that we are willing to understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A resource record whose names are expanded.
#[derive(Debug, Clone)]
pub(crate) struct Record<'a> {
    pub(crate) name: Name,
    pub(crate) kind: u16,
    pub(crate) class: u16,
    pub(crate) ttl: u32,
    pub(crate) data: Data<'a>,
}

/// The data of a record.
#[derive(Debug, Clone)]
pub(crate) enum Data<'a> {
    /// No names in it that could be compressed.
    Bytes(Cow<'a, [u8]>),
    Fields(Vec<Field<'a>>),
}

#[derive(Debug, Clone)]
pub(crate) enum Field<'a> {
    Bytes(&'a [u8]),
    Name(Name),
}

impl<'a> Record<'a> {
    /// A record of ours in class IN.
    pub(crate) fn new(name: Name, kind: u16, ttl: u32, data: Data<'a>) -> Record<'a> {
        Record { name, kind, class: CLASS_IN, ttl, data }
    }

    /// Where a CNAME, DNAME, NS or PTR leads.
    pub(crate) fn target(&self) -> Option<&Name> {
        match &self.data {
            Data::Fields(fields) => match fields.as_slice() {
                [Field::Name(name)] => Some(name),
                _ => None,
            },
            Data::Bytes(_) => None,
        }
    }

    /// The data of a record that has no names in it.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match &self.data {
            Data::Bytes(bytes) => Some(bytes),
            Data::Fields(_) => None,
        }
    }

    /// For how long a SOA lets a negative answer live: the smaller of its TTL and its MINIMUM field (RFC 2308 §5).
    pub(crate) fn negative_ttl(&self) -> Option<u32> {
        match &self.data {
            Data::Fields(fields) if self.kind == kind::SOA => match fields.last() {
                Some(Field::Bytes(numbers)) => numbers.last_chunk().map(|last| u32::from_be_bytes(*last).min(self.ttl)),
                Some(Field::Name(_)) | None => None,
            },
            Data::Fields(_) | Data::Bytes(_) => None,
        }
    }

    /// The type that an RRSIG signs.
    pub(crate) fn covered_kind(&self) -> Option<u16> {
        match &self.data {
            Data::Fields(fields) if self.kind == kind::RRSIG => match fields.first() {
                Some(Field::Bytes([high, low, ..])) => Some(u16::from_be_bytes([*high, *low])),
                Some(Field::Bytes(_) | Field::Name(_)) | None => None,
            },
            Data::Fields(_) | Data::Bytes(_) => None,
        }
    }
}
