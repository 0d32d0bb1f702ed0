//! Numbers, texts and lists as bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A frame that is being written.
#[derive(Debug)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// A frame of this kind, whose length is filled in at its end.
    pub(crate) fn new(kind: u8) -> Writer {
        Writer(vec![0, 0, 0, 0, kind])
    }

    pub(crate) fn u8(mut self, value: u8) -> Writer {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(self, value: u16) -> Writer {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Writer {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Writer {
        self.raw(&value.to_be_bytes())
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Writer {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Bytes with their length before them.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Writer {
        self.u32(length(bytes.len())).raw(bytes)
    }

    pub(crate) fn list<T>(self, items: &[T], each: impl FnMut(Writer, &T) -> Writer) -> Writer {
        let writer = self.u32(length(items.len()));
        items.iter().fold(writer, each)
    }

    pub(crate) fn option<T>(self, item: Option<&T>, each: impl FnOnce(Writer, &T) -> Writer) -> Writer {
        match item {
            None => self.u8(0),
            Some(item) => each(self.u8(1), item),
        }
    }

    pub(crate) fn address(self, address: IpAddr) -> Writer {
        match address {
            IpAddr::V4(address) => self.u8(4).raw(&address.octets()),
            IpAddr::V6(address) => self.u8(6).raw(&address.octets()),
        }
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        let mut frame = self.0;
        let body = length(frame.len().saturating_sub(4)).to_be_bytes();
        for (to, from) in frame.iter_mut().zip(body) {
            *to = from;
        }
        frame
    }
}

/// A length as it is written. What does not fit is longer than any frame, and such a frame is never sent.
fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// What is left of a frame that is being read. Everything that is not there is `None`.
#[derive(Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// Bytes that the kernel takes as a string: without a NUL.
    pub(crate) fn string(&mut self) -> Option<Vec<u8>> {
        self.bytes().filter(|bytes| !bytes.contains(&0)).map(<[u8]>::to_vec)
    }

    pub(crate) fn text(&mut self) -> Option<String> {
        std::str::from_utf8(self.bytes()?).ok().map(str::to_owned)
    }

    /// The number of items is what somebody says; each takes at least a byte of the frame, so a false one ends with that.
    pub(crate) fn list<T>(&mut self, mut each: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.u32()?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(each(self)?);
        }
        Some(items)
    }

    pub(crate) fn option<T>(&mut self, each: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.u8()? {
            0 => Some(None),
            1 => each(self).map(Some),
            _ => None,
        }
    }

    pub(crate) fn address(&mut self) -> Option<IpAddr> {
        match self.u8()? {
            4 => self.take().map(|octets: [u8; 4]| Ipv4Addr::from(octets).into()),
            6 => self.take().map(|octets: [u8; 16]| Ipv6Addr::from(octets).into()),
            _ => None,
        }
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}
