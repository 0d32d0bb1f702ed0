//! Long headers (RFC 9000 §17.2) and the frames of an Initial (§12.4).

use crate::Doubt;
use crate::reader::Reader;

const VERSION_1: u32 = 1;
/// RFC 9369 §3.1.
const VERSION_2: u32 = 0x6b33_43cf;
/// RFC 9000 §17.2: longer ids are another version's.
const MAX_CONNECTION_ID: usize = 20;

/// A version whose Initials can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// What a long packet is; the bits differ by version (RFC 9369 §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Initial,
    ZeroRtt,
    Handshake,
    Retry,
}

/// The packet at the start of a datagram or of what is left of one.
#[derive(Debug)]
pub(super) enum Packet<'a> {
    Long(LongPacket<'a>),
    /// One with a short header, which reaches to the end, or nothing.
    Short,
}

#[derive(Debug)]
pub(super) struct LongPacket<'a> {
    pub(super) version: Version,
    pub(super) kind: Kind,
    pub(super) destination: &'a [u8],
    /// The packet up to its protected packet number.
    pub(super) header: &'a [u8],
    /// Packet number, payload and tag.
    pub(super) protected: &'a [u8],
    /// What comes behind the packet.
    pub(super) rest: &'a [u8],
}

impl<'a> Packet<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Packet<'a>, Doubt> {
        let Some(first) = bytes.first().filter(|first| **first & 0x80 != 0) else { return Ok(Packet::Short) };
        let mut rest = Reader(bytes);
        rest.take(1)?;
        let version = match rest.number(4)? {
            number if number == u64::from(VERSION_1) => Version::One,
            number if number == u64::from(VERSION_2) => Version::Two,
            _ => return Err(Doubt::Version),
        };
        let kind = match (version, (first >> 4) & 3) {
            (Version::One, 0) | (Version::Two, 1) => Kind::Initial,
            (Version::One, 1) | (Version::Two, 2) => Kind::ZeroRtt,
            (Version::One, 2) | (Version::Two, 3) => Kind::Handshake,
            (Version::One | Version::Two, _) => Kind::Retry,
        };
        let destination = rest.connection_id()?;
        rest.connection_id()?;
        if kind == Kind::Initial {
            let token = rest.varint()?;
            rest.take(usize::try_from(token).map_err(|_| Doubt::Malformed)?)?;
        }
        let (header, protected, rest) = if kind == Kind::Retry {
            (bytes, &[][..], &[][..])
        } else {
            let length = usize::try_from(rest.varint()?).map_err(|_| Doubt::Malformed)?;
            let header = bytes.get(..bytes.len() - rest.0.len()).unwrap_or_default();
            (header, rest.take(length)?, rest.0)
        };
        Ok(Packet::Long(LongPacket { version, kind, destination, header, protected, rest }))
    }
}

/// Hands every CRYPTO frame of an Initial's payload to `found`.
pub(super) fn crypto_frames(
    payload: &[u8],
    mut found: impl FnMut(u64, &[u8]) -> Result<(), Doubt>,
) -> Result<(), Doubt> {
    let mut payload = Reader(payload);
    while let [kind, rest @ ..] = payload.0 {
        payload.0 = rest;
        match kind {
            // PADDING, PING.
            0 | 1 => {}
            // ACK, with and without ECN counts.
            2 | 3 => {
                payload.varint()?;
                payload.varint()?;
                let ranges = payload.varint()?;
                payload.varint()?;
                // As many as fit: the reader ends at the end of the packet.
                for _ in 0..ranges.saturating_mul(2) {
                    payload.varint()?;
                }
                if *kind == 3 {
                    for _ in 0..3 {
                        payload.varint()?;
                    }
                }
            }
            6 => {
                let offset = payload.varint()?;
                let length = usize::try_from(payload.varint()?).map_err(|_| Doubt::Malformed)?;
                found(offset, payload.take(length)?)?;
            }
            // CONNECTION_CLOSE of the transport: code, frame type, reason.
            0x1c => {
                payload.varint()?;
                payload.varint()?;
                let length = usize::try_from(payload.varint()?).map_err(|_| Doubt::Malformed)?;
                payload.take(length)?;
            }
            // No other frame may stand in an Initial.
            _ => return Err(Doubt::Malformed),
        }
    }
    Ok(())
}

impl<'a> Reader<'a> {
    fn number(&mut self, length: usize) -> Result<u64, Doubt> {
        Ok(self.take(length)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A variable-length integer (RFC 9000 §16).
    fn varint(&mut self) -> Result<u64, Doubt> {
        let first = self.0.first().ok_or(Doubt::Malformed)?;
        let length = 1_u32 << (first >> 6);
        let number = self.number(usize::try_from(length).unwrap_or(1))?;
        Ok(number & (u64::MAX >> (64 - length * 8 + 2)))
    }

    fn connection_id(&mut self) -> Result<&'a [u8], Doubt> {
        let length = usize::try_from(self.number(1)?).unwrap_or(usize::MAX);
        if length > MAX_CONNECTION_ID { Err(Doubt::Malformed) } else { self.take(length) }
    }
}
