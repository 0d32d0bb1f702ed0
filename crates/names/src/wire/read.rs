use std::borrow::Cow;

use super::{CLASS_IN, Data, Field, HEADER_LEN, Malformed, Name, Record, kind};

/// Longest name in wire form, with the length bytes and the root (RFC 1035 §2.3.4).
const MAX_NAME: usize = 255;
/// Longest label; the two upper bits of its length byte mean something else (RFC 1035 §4.1.4).
const MAX_LABEL: u8 = 63;
/// Compression pointers in one name. A name has at most 127 labels, and a pointer that leads to no label of its own but to
/// another pointer only costs time.
const MAX_JUMPS: usize = 127;

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
