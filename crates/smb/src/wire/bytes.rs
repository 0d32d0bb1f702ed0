//! Reading and writing the fields of messages, little endian.

/// Reads fields one after the other; each answers `None` past the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// From `offset` on; empty past the end.
    pub(crate) fn at(bytes: &'a [u8], offset: usize) -> Self {
        Self { rest: bytes.get(offset..).unwrap_or_default() }
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }
}

/// The part of a message that an offset and a length in it speak of. An empty part may lie anywhere.
pub(crate) fn part(message: &[u8], offset: impl Into<u64>, len: impl Into<u64>) -> Option<&[u8]> {
    let (offset, len) = (usize::try_from(offset.into()).ok()?, usize::try_from(len.into()).ok()?);
    if len == 0 {
        return Some(&[]);
    }
    message.get(offset..offset.checked_add(len)?)
}

/// Appending fields to a message.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Overwrites what was put earlier; past the end nothing happens.
pub(crate) fn patch(message: &mut [u8], offset: usize, bytes: &[u8]) {
    if let Some(field) = message.get_mut(offset..offset.saturating_add(bytes.len())) {
        field.copy_from_slice(bytes);
    }
}

/// Zeros up to the next border of `border` bytes after `start`.
pub(crate) fn pad(message: &mut Vec<u8>, start: usize, border: usize) {
    let len = message.len().saturating_sub(start);
    message.resize(message.len() + len.next_multiple_of(border) - len, 0);
}

/// A length as its field has it. What does not fit is a bug of ours, and a length that no reader takes.
pub(crate) fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// As [`len32`], for fields of two bytes.
pub(crate) fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// Text as messages have it.
pub(crate) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// The text of UTF-16 bytes; `None` for half a unit or half a pair.
pub(crate) fn text(bytes: &[u8]) -> Option<String> {
    let (units, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return None;
    }
    char::decode_utf16(units.iter().map(|unit| u16::from_le_bytes(*unit))).collect::<Result<_, _>>().ok()
}
