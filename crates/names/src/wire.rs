//! The DNS message format (RFC 1035 §4) as far as a forwarder has to understand it.
//!
//! Everything here is read from strangers: guests on one side, whoever answers for a zone on the other. Reading is
//! bounded by the message: a name has at most 255 bytes, a compression pointer must point before the place where the name
//! (or the piece that led to it) began, so that pointers cannot loop, and counts are only believed as far as records
//! follow. Nothing that was read is sent on as bytes: messages are written anew from what was understood, so that the
//! guest cannot see more in an answer than was checked.

use std::borrow::Cow;
use std::fmt;

use cofferdam_model::DomainName;

/// Bytes of a message before its question (RFC 1035 §4.1.1).
pub(crate) const HEADER_LEN: usize = 12;
/// Longest name in wire form, with the length bytes and the root (RFC 1035 §2.3.4).
const MAX_NAME: usize = 255;
/// Longest label; the two upper bits of its length byte mean something else (RFC 1035 §4.1.4).
const MAX_LABEL: u8 = 63;
/// Longest message; TCP's length prefix has two bytes.
pub(crate) const MAX_MESSAGE: usize = 65_535;
/// The highest offset that a compression pointer can hold, in 14 bits.
const MAX_POINTER: usize = 0x3fff;
/// Compression pointers in one name. A name has at most 127 labels, and a pointer that leads to no label of its own but to
/// another pointer only costs time.
const MAX_JUMPS: usize = 127;
/// How many places in a message we remember to point at. Enough for any ordinary answer; more would only make hostile
/// ones expensive.
const MAX_TARGETS: usize = 64;

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

/// A name in wire form: labels with their lengths, the root last, never compressed, at most 255 bytes. Keeps its case.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Name(Vec<u8>);

impl Name {
    /// The name with no labels.
    pub(crate) fn root() -> Name {
        Name(vec![0])
    }

    /// The wire form of `domain`.
    pub(crate) fn from_domain(domain: &DomainName) -> Name {
        let mut bytes = Vec::with_capacity(domain.as_str().len() + 2);
        for label in domain.labels() {
            // A `DomainName` has labels of at most 63 bytes.
            bytes.push(u8::try_from(label.len()).unwrap_or(0));
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
        Name(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// Whether DNS takes both for the same name. Length bytes are below 64 and so no letters.
    pub(crate) fn same(&self, other: &Name) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }

    /// Whether this name is `ancestor` or below it.
    pub(crate) fn is_within(&self, ancestor: &Name) -> bool {
        self.suffixes().any(|suffix| suffix.eq_ignore_ascii_case(&ancestor.0))
    }

    pub(crate) fn to_lowercase(&self) -> Name {
        Name(self.0.to_ascii_lowercase())
    }

    /// The name as policies write it; `None` for the root and for names with other bytes than letters, digits, `-` and
    /// `_`, which no rule can speak of.
    pub(crate) fn to_domain(&self) -> Option<DomainName> {
        let mut text = String::with_capacity(self.0.len());
        for label in self.labels() {
            if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
                return None;
            }
            if !text.is_empty() {
                text.push('.');
            }
            text.extend(label.iter().map(|byte| char::from(*byte)));
        }
        text.parse().ok()
    }

    pub(crate) fn labels(&self) -> impl Iterator<Item = &[u8]> {
        self.suffixes().filter_map(|suffix| {
            let (length, rest) = suffix.split_first()?;
            rest.get(..usize::from(*length)).filter(|label| !label.is_empty())
        })
    }

    /// The wire forms of the name itself, its parent, and so on up to the root.
    fn suffixes(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = Some(self.0.as_slice());
        std::iter::from_fn(move || {
            let suffix = rest?;
            let length = suffix.first().copied().unwrap_or(0);
            rest = if length == 0 { None } else { suffix.get(usize::from(length) + 1..) };
            Some(suffix)
        })
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for label in self.labels() {
            write!(f, "{}.", label.escape_ascii())?;
        }
        Ok(())
    }
}

/// Reads a message from front to back.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    message: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Reader<'a> {
        Reader { message, position: 0 }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.position == self.message.len()
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let end = self.position.checked_add(length).ok_or(Malformed)?;
        let bytes = self.message.get(self.position..end).ok_or(Malformed)?;
        self.position = end;
        Ok(bytes)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        self.bytes(1)?.first().copied().ok_or(Malformed)
    }

    pub(crate) fn word(&mut self) -> Result<u16, Malformed> {
        let bytes = self.bytes(2)?.try_into().map_err(|_| Malformed)?;
        Ok(u16::from_be_bytes(bytes))
    }

    pub(crate) fn long(&mut self) -> Result<u32, Malformed> {
        let bytes = self.bytes(4)?.try_into().map_err(|_| Malformed)?;
        Ok(u32::from_be_bytes(bytes))
    }

    /// A name without compression. The name of a question is the first in its message: there is nothing to point at but
    /// the header.
    pub(crate) fn plain_name(&mut self) -> Result<Name, Malformed> {
        self.name_pieces(None)
    }

    /// A name, its pointers followed.
    pub(crate) fn name(&mut self) -> Result<Name, Malformed> {
        self.name_pieces(Some(self.position))
    }

    /// Reads labels until the root. With `Some(start)`, pointers may lead to places before `start`; every jump lowers that
    /// bound, so none leads back.
    fn name_pieces(&mut self, mut before: Option<usize>) -> Result<Name, Malformed> {
        let mut name = Vec::new();
        let mut after = None;
        let mut jumps = 0;
        loop {
            let length = self.byte()?;
            match length {
                0 => break,
                1..=MAX_LABEL => {
                    name.push(length);
                    name.extend_from_slice(self.bytes(usize::from(length))?);
                    // One byte has to be left for the root.
                    if name.len() >= MAX_NAME {
                        return Err(Malformed);
                    }
                }
                0xc0.. => {
                    let target = usize::from(length & 0x3f) << 8 | usize::from(self.byte()?);
                    let bound = before.ok_or(Malformed)?;
                    if target >= bound || target < HEADER_LEN || jumps == MAX_JUMPS {
                        return Err(Malformed);
                    }
                    jumps += 1;
                    after.get_or_insert(self.position);
                    before = Some(target);
                    self.position = target;
                }
                // 0x40 and 0x80 were extensions that nobody uses (RFC 6891 §5).
                _ => return Err(Malformed),
            }
        }
        name.push(0);
        if let Some(position) = after {
            self.position = position;
        }
        Ok(Name(name))
    }

    /// One resource record.
    pub(crate) fn record(&mut self) -> Result<Record<'a>, Malformed> {
        let name = self.name()?;
        let kind = self.word()?;
        let class = self.word()?;
        let ttl = self.long()?;
        let length = usize::from(self.word()?);
        let end = self.position.checked_add(length).ok_or(Malformed)?;
        // A careless reader could take an address out of longer data that we would not have seen as one.
        let address_length = match kind {
            kind::A => Some(4),
            kind::AAAA => Some(16),
            _ => None,
        };
        if class == CLASS_IN && address_length.is_some_and(|expected| expected != length) {
            return Err(Malformed);
        }
        let data = match layout(kind) {
            None => Data::Bytes(Cow::Borrowed(self.bytes(length)?)),
            Some(fields) => Data::Fields(self.fields(fields, end)?),
        };
        if self.position != end {
            return Err(Malformed);
        }
        Ok(Record { name, kind, class, ttl, data })
    }

    fn fields(&mut self, fields: &[Layout], end: usize) -> Result<Vec<Field<'a>>, Malformed> {
        let mut parts = Vec::with_capacity(fields.len());
        for field in fields {
            parts.push(match field {
                Layout::Fixed(length) => Field::Bytes(self.bytes(*length)?),
                Layout::Name => Field::Name(self.name()?),
                Layout::Text => {
                    let start = self.position;
                    let length = self.byte()?;
                    self.bytes(usize::from(length))?;
                    Field::Bytes(self.message.get(start..self.position).ok_or(Malformed)?)
                }
                Layout::Rest => Field::Bytes(self.bytes(end.checked_sub(self.position).ok_or(Malformed)?)?),
            });
        }
        Ok(parts)
    }
}

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

enum Layout {
    Fixed(usize),
    Name,
    /// A length byte and that many bytes.
    Text,
    Rest,
}

/// What the data of a record type looks like when there are names in it that somebody may have compressed: the types of
/// RFC 1035, and those that RFC 3597 §4 asks receivers to expand. In all newer types names are never compressed.
fn layout(kind: u16) -> Option<&'static [Layout]> {
    use Layout::{Fixed, Name, Rest, Text};
    Some(match kind {
        // NS, MD, MF, CNAME, MB, MG, MR, PTR, NSAP-PTR, DNAME
        2 | 3 | 4 | kind::CNAME | 7 | 8 | 9 | kind::PTR | 23 | kind::DNAME => &[Name],
        kind::SOA => &[Name, Name, Fixed(20)],
        // MINFO, RP
        14 | 17 => &[Name, Name],
        // MX, AFSDB, RT, KX
        15 | 18 | 21 | 36 => &[Fixed(2), Name],
        // SIG, RRSIG
        24 | kind::RRSIG => &[Fixed(18), Name, Rest],
        // PX
        26 => &[Fixed(2), Name, Name],
        // NXT, NSEC
        30 | 47 => &[Name, Rest],
        // SRV
        33 => &[Fixed(6), Name],
        // NAPTR
        35 => &[Fixed(4), Text, Text, Text, Name],
        _ => return None,
    })
}

/// Whether names in the data may be written compressed: only where every receiver expects it (RFC 3597 §4).
fn compresses(kind: u16) -> bool {
    matches!(kind, 2..=9 | 12 | 14 | 15)
}

/// Writes a message from front to back.
#[derive(Debug)]
pub(crate) struct Writer {
    out: Vec<u8>,
    /// Offsets of names in `out` that a pointer may lead to.
    targets: Vec<u16>,
}

impl Writer {
    /// Starts a message with the given header and no records.
    pub(crate) fn new(id: u16, flags: u16) -> Writer {
        let mut writer = Writer { out: Vec::with_capacity(512), targets: Vec::new() };
        writer.word(id);
        writer.word(flags);
        for _ in 0..4 {
            writer.word(0);
        }
        writer
    }

    pub(crate) fn word(&mut self, word: u16) {
        self.out.extend_from_slice(&word.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// The question, in the case given.
    pub(crate) fn question(&mut self, name: &Name, qtype: u16) {
        self.name(name);
        self.word(qtype);
        self.word(CLASS_IN);
        self.count(0, 1);
    }

    /// Records of one section (1 answer, 2 authority, 3 additional), which must be written in that order.
    pub(crate) fn section(&mut self, section: usize, records: &[Record<'_>]) {
        let mut count = 0;
        for record in records {
            // Past this the message is of no use to anybody; the caller looks at the length.
            if self.out.len() > MAX_MESSAGE {
                break;
            }
            self.record(record);
            count += 1;
        }
        self.count(section, count);
    }

    /// An OPT record (RFC 6891) as the only one of the additional section not yet counted.
    pub(crate) fn opt(&mut self, size: u16, extended_rcode: u8, flags: u16, options: &[u8], before: usize) {
        self.bytes(&[0]);
        self.word(kind::OPT);
        self.word(size);
        self.bytes(&[extended_rcode, 0]);
        self.word(flags);
        self.word(u16::try_from(options.len()).unwrap_or(0));
        self.bytes(options);
        self.count(3, before + 1);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }

    fn record(&mut self, record: &Record<'_>) {
        self.name(&record.name);
        self.word(record.kind);
        self.word(record.class);
        self.bytes(&record.ttl.to_be_bytes());
        let length_at = self.out.len();
        self.word(0);
        match &record.data {
            Data::Bytes(bytes) => self.bytes(bytes),
            Data::Fields(fields) => {
                for field in fields {
                    match field {
                        Field::Bytes(bytes) => self.bytes(bytes),
                        Field::Name(name) if compresses(record.kind) => self.name(name),
                        Field::Name(name) => self.bytes(name.as_bytes()),
                    }
                }
            }
        }
        let length = self.out.len().saturating_sub(length_at + 2);
        // Expanded names can make data longer than its length field can say; the message is then too long as well.
        self.patch(length_at, u16::try_from(length).unwrap_or(u16::MAX));
    }

    fn name(&mut self, name: &Name) {
        for suffix in name.suffixes() {
            if suffix == [0] {
                break;
            }
            if let Some(target) = self.targets.iter().find(|target| self.is_at(usize::from(**target), suffix)) {
                self.word(0xc000 | *target);
                return;
            }
            if self.targets.len() < MAX_TARGETS && self.out.len() <= MAX_POINTER {
                self.targets.extend(u16::try_from(self.out.len()));
            }
            let label = suffix.first().and_then(|length| suffix.get(..usize::from(*length) + 1)).unwrap_or(&[]);
            self.out.extend_from_slice(label);
        }
        self.bytes(&[0]);
    }

    /// Whether the name written at `position` is `suffix`.
    fn is_at(&self, mut position: usize, mut suffix: &[u8]) -> bool {
        // Each turn takes a label off the suffix or follows one of our own pointers, which lead backwards.
        loop {
            let Some(&length) = self.out.get(position) else { return false };
            if length >= 0xc0 {
                let Some(&low) = self.out.get(position + 1) else { return false };
                position = usize::from(length & 0x3f) << 8 | usize::from(low);
                continue;
            }
            let size = usize::from(length) + 1;
            let (Some(written), Some(label)) = (self.out.get(position..position + size), suffix.get(..size)) else {
                return false;
            };
            if !written.eq_ignore_ascii_case(label) {
                return false;
            }
            if length == 0 {
                return true;
            }
            position += size;
            suffix = suffix.get(size..).unwrap_or(&[]);
        }
    }

    fn count(&mut self, section: usize, count: usize) {
        // A message of at most 65,535 bytes has fewer records than that.
        self.patch(4 + 2 * section, u16::try_from(count).unwrap_or(u16::MAX));
    }

    fn patch(&mut self, position: usize, word: u16) {
        if let Some(place) = self.out.get_mut(position..position + 2) {
            place.copy_from_slice(&word.to_be_bytes());
        }
    }
}
