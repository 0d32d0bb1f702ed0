//! Netlink's format (netlink(7)): messages of a header, a fixed body and attributes; everything aligned to 4 bytes and in the
//! byte order of the host. Attributes are put together inside out, so that no length has to be patched afterwards.

/// Length of `struct nlmsghdr`.
const MESSAGE_HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
/// The bits of an attribute's type that are its type (`NLA_TYPE_MASK`); the others say "nested" and "network byte order".
const TYPE_MASK: u16 = 0x3fff;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// Attributes, encoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn new() -> Attributes {
        Attributes::default()
    }

    /// Adds an attribute. One longer than its length field allows gets the largest length, which the kernel refuses; ours
    /// are all short.
    pub(crate) fn bytes(mut self, kind: u16, payload: &[u8]) -> Attributes {
        debug_assert!(ATTRIBUTE_HEADER + payload.len() <= usize::from(u16::MAX));
        let len = u16::try_from(ATTRIBUTE_HEADER + payload.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        pad(&mut self.0);
        self
    }

    pub(crate) fn u8(self, kind: u16, value: u8) -> Attributes {
        self.bytes(kind, &[value])
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A number in network byte order, as all of nf_tables has it.
    pub(crate) fn u32_be(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A text with the NUL at its end that the kernel expects.
    pub(crate) fn text(self, kind: u16, value: &str) -> Attributes {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn nested(self, kind: u16, inner: &Attributes) -> Attributes {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// The encoded attributes with `prefix`, a fixed structure whose length is a multiple of 4, before them.
    pub(crate) fn after(&self, prefix: &[u8]) -> Vec<u8> {
        [prefix, &self.0].concat()
    }
}

/// A message that has not been given its sequence number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    /// The fixed structure and the attributes.
    pub(crate) payload: Vec<u8>,
}

impl Message {
    /// Appends the message to `buffer`, with `extra_flags` set besides its own.
    pub(crate) fn emit(&self, sequence: u32, extra_flags: u16, buffer: &mut Vec<u8>) {
        let len = u32::try_from(MESSAGE_HEADER + self.payload.len()).unwrap_or(u32::MAX);
        buffer.extend_from_slice(&len.to_ne_bytes());
        buffer.extend_from_slice(&self.kind.to_ne_bytes());
        buffer.extend_from_slice(&(self.flags | extra_flags).to_ne_bytes());
        buffer.extend_from_slice(&sequence.to_ne_bytes());
        // The sender's port: 0, the kernel knows it.
        buffer.extend_from_slice(&0u32.to_ne_bytes());
        buffer.extend_from_slice(&self.payload);
        pad(buffer);
    }
}

fn pad(buffer: &mut Vec<u8>) {
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

/// A received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of one datagram; ends at the first one that is cut off.
pub(crate) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(rest, 0)?).ok()?;
        let received = Received {
            kind: u16_at(rest, 4)?,
            flags: u16_at(rest, 6)?,
            sequence: u32_at(rest, 8)?,
            payload: rest.get(MESSAGE_HEADER..len)?,
        };
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    })
}

/// The attributes in `rest`, by type; ends at the first one that is cut off.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & TYPE_MASK;
        let payload = rest.get(ATTRIBUTE_HEADER..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_the_attributes_it_wrote() {
        let encoded = Attributes::new().u8(1, 7).text(2, "abc").nested(3, &Attributes::new().u32(9, 1)).after(&[]);
        assert_eq!(encoded.len(), 8 + 8 + 12);
        let read: Vec<_> = attributes(&encoded).collect();
        assert_eq!(read[0], (1, &[7u8][..]));
        assert_eq!(read[1], (2, &b"abc\0"[..]));
        assert_eq!(read[2].0, 3);
        assert_eq!(attributes(read[2].1).collect::<Vec<_>>(), [(9, &1u32.to_ne_bytes()[..])]);
    }

    #[test]
    fn reads_back_the_messages_it_wrote() {
        let mut buffer = Vec::new();
        Message { kind: 16, flags: 1, payload: vec![1, 2, 3] }.emit(5, 4, &mut buffer);
        Message { kind: 17, flags: 1, payload: vec![] }.emit(6, 0, &mut buffer);
        let read: Vec<_> = messages(&buffer).collect();
        assert_eq!(read[0], Received { kind: 16, flags: 5, sequence: 5, payload: &[1, 2, 3] });
        assert_eq!(read[1], Received { kind: 17, flags: 1, sequence: 6, payload: &[] });
        assert_eq!(read.len(), 2);
    }

    #[test]
    fn stops_at_lengths_that_lie() {
        for len in [0u32, 3, 15, 17, u32::MAX] {
            let mut buffer = vec![0; 16];
            buffer[..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(messages(&buffer).count(), 0, "message of length {len}");
        }
        for len in [0u16, 3, 5, u16::MAX] {
            let mut buffer = vec![0; 4];
            buffer[..2].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(attributes(&buffer).count(), 0, "attribute of length {len}");
        }
    }
}
