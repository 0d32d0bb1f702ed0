//! TLS records and the ClientHello (RFC 8446 §4.1.2, §5.1; RFC 6066 §3).

use cofferdam_model::DomainName;

use crate::{Doubt, LIMIT, Protocol, Shown};

const HANDSHAKE: u8 = 22;
/// `change_cipher_spec` to `heartbeat`: every content type there is (RFC 8446 §B.1, RFC 6520).
pub(crate) const CONTENT_TYPES: std::ops::RangeInclusive<u8> = 20..=24;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: usize = 5;
/// Bytes in a plain record (RFC 8446 §5.1).
const MAX_FRAGMENT: usize = 1 << 14;
const EXTENSION_SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// `encrypted_client_hello` (RFC 9849 §5); its first byte tells outer from inner.
const EXTENSION_ECH: u16 = 0xfe0d;
const ECH_OUTER: u8 = 0;

/// What a ClientHello says about its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) server_name: Option<DomainName>,
    pub(crate) ech: bool,
}

/// The ClientHello at the start of a connection's bytes. `None`: there is more of it to come.
pub(crate) fn look(bytes: &[u8]) -> Option<Shown> {
    let doubt = |doubt| Some(Shown::Unreadable { protocol: Protocol::Tls, doubt });
    if is_sslv2_hello(bytes) {
        // It has no extensions, so no name.
        return Some(Shown::Tls { server_name: None, ech: false });
    }
    match join_records(bytes) {
        Ok(Some(message)) => match client_hello(&message) {
            Ok(Some((hello, _))) => Some(Shown::Tls { server_name: hello.server_name, ech: hello.ech }),
            Ok(None) => None,
            Err(why) => doubt(why),
        },
        Ok(None) => None,
        Err(why) => doubt(why),
    }
}

/// A hello in the form of SSL 2.0 for a later version (RFC 5246 §E.2): a two-byte length with the top bit set, then the
/// message type and version 3.x or 2.
pub(crate) fn is_sslv2_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [length, _, CLIENT_HELLO, 3, _, ..] | [length, _, CLIENT_HELLO, 0, 2, ..] if length & 0x80 != 0)
}

/// The first handshake message as far as it has come, without the record headers. `None` before its length is known.
fn join_records(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, Doubt> {
    let mut message = Vec::new();
    while let [content, rest @ ..] = bytes {
        if *content != HANDSHAKE {
            // Servers pass over a warning before the hello, so what follows it would have to be read.
            return Err(Doubt::Malformed);
        }
        let [3, _, high, low, fragment @ ..] = rest else {
            let plausible = rest.first().is_none_or(|major| *major == 3);
            return if plausible { Ok(None) } else { Err(Doubt::Malformed) };
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 || length > MAX_FRAGMENT {
            return Err(Doubt::Malformed);
        }
        message.extend_from_slice(fragment.get(..length.min(fragment.len())).unwrap_or_default());
        let needed = needed(&message)?;
        if needed.is_some_and(|needed| message.len() >= needed) {
            return Ok(Some(message));
        }
        let Some(next) = bytes.get(RECORD_HEADER + length..) else { return Ok(None) };
        bytes = next;
    }
    Ok(None)
}

/// The length of a handshake message with its header, once that is there.
fn needed(message: &[u8]) -> Result<Option<usize>, Doubt> {
    match message {
        [kind, ..] if *kind != CLIENT_HELLO => Err(Doubt::Malformed),
        [_, a, b, c, ..] => {
            let length = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap_or(usize::MAX);
            if length.saturating_add(4) > LIMIT { Err(Doubt::TooLong) } else { Ok(Some(length + 4)) }
        }
        _ => Ok(None),
    }
}

/// The ClientHello at the start of a stream of handshake messages, and its length. `None`: there is more of it to come.
pub(crate) fn client_hello(stream: &[u8]) -> Result<Option<(Hello, usize)>, Doubt> {
    let Some(length) = needed(stream)? else { return Ok(None) };
    let Some(body) = stream.get(4..length) else { return Ok(None) };
    parse(body).map(|hello| Some((hello, length)))
}

fn parse(body: &[u8]) -> Result<Hello, Doubt> {
    let mut hello = Hello { server_name: None, ech: false };
    let mut body = Reader(body);
    body.take(2 + 32)?;
    body.vector8()?;
    body.vector16()?;
    body.vector8()?;
    if body.0.is_empty() {
        // Before TLS 1.3 a hello may end here (RFC 5246 §7.4.1.2).
        return Ok(hello);
    }
    let mut extensions = Reader(body.vector16()?);
    if !body.0.is_empty() {
        return Err(Doubt::Malformed);
    }
    let (mut names, mut eches) = (0, 0);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector16()?;
        match kind {
            EXTENSION_SERVER_NAME => {
                names += 1;
                hello.server_name = Some(server_name(data)?);
            }
            EXTENSION_ECH => {
                eches += 1;
                hello.ech = data.first() == Some(&ECH_OUTER);
            }
            _ => {}
        }
    }
    // "There MUST NOT be more than one extension of the same type" (RFC 8446 §4.2): which one counts is anybody's guess.
    if names > 1 || eches > 1 { Err(Doubt::Malformed) } else { Ok(hello) }
}

/// "The ServerNameList MUST NOT contain more than one name of the same name_type" (RFC 6066 §3), and there is one type.
fn server_name(data: &[u8]) -> Result<DomainName, Doubt> {
    let mut data = Reader(data);
    let mut list = Reader(data.vector16()?);
    let kind = list.take(1)?;
    let name = list.vector16()?;
    if kind != [HOST_NAME] || !list.0.is_empty() || !data.0.is_empty() {
        return Err(Doubt::Name);
    }
    parse_name(name)
}

/// A host name in ASCII; a name on the wire is an A-label.
pub(crate) fn parse_name(name: &[u8]) -> Result<DomainName, Doubt> {
    let text = std::str::from_utf8(name).ok().filter(|text| text.is_ascii()).ok_or(Doubt::Name)?;
    text.parse().map_err(|_| Doubt::Name)
}

/// Takes pieces off the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Doubt> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Doubt::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, Doubt> {
        match self.take(2)? {
            [high, low] => Ok(u16::from_be_bytes([*high, *low])),
            _ => Err(Doubt::Malformed),
        }
    }

    fn vector8(&mut self) -> Result<&'a [u8], Doubt> {
        let length = self.take(1)?.first().copied().unwrap_or_default();
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Result<&'a [u8], Doubt> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}
