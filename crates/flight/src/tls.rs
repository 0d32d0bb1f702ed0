//! TLS records and the ClientHello (RFC 8446 §4.1.2, §5.1; RFC 6066 §3).

use cofferdam_model::DomainName;

use crate::reader::Reader;
use crate::{Doubt, LIMIT, Protocol, Shown};

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// `change_cipher_spec` to `heartbeat`: every content type there is (RFC 8446 §B.1, RFC 6520).
pub(crate) const CONTENT_TYPES: std::ops::RangeInclusive<u8> = 20..=24;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER: usize = 5;
/// Bytes in a plain record (RFC 8446 §5.1).
const MAX_FRAGMENT: usize = 1 << 14;
/// No record that is encrypted is shorter: it has a tag of this length or more.
const MIN_ENCRYPTED: usize = 16;
/// A ClientHello without extensions and with one cipher suite.
const MIN_HELLO: usize = 2 + 32 + 1 + 2 + 2 + 1 + 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_EARLY_DATA: u16 = 42;
const HOST_NAME: u8 = 0;
/// `encrypted_client_hello` (RFC 9849 §5); its first byte tells outer from inner.
const EXTENSION_ECH: u16 = 0xfe0d;
const ECH_OUTER: u8 = 0;

/// What a ClientHello says about its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) server_name: Option<DomainName>,
    pub(crate) ech: bool,
    /// It announces data that comes before the server has said anything.
    pub(crate) early: bool,
}

/// What a client's bytes show, how many of them that took, and what has to be read behind them.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) shown: Shown,
    pub(crate) length: usize,
    pub(crate) behind: Option<Behind>,
}

/// What stands behind a ClientHello: a server that wants other keys asks for a second one (`HelloRetryRequest`, RFC 8446
/// §4.1.4), and goes by what that shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Behind {
    /// Of a record whose start was passed on.
    pub(crate) left: usize,
    /// Early data may come before a second hello, and the server throws it away then.
    pub(crate) early: bool,
    /// From here on a record of handshake messages may be encrypted.
    pub(crate) changed: bool,
}

/// What the next record behind a ClientHello is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    More,
    /// It may pass; what is behind it may not yet.
    Pass(Behind),
    /// A second hello.
    Hello,
    /// There will be no second hello.
    Free,
    Broken,
}

impl Behind {
    pub(crate) fn next(self, bytes: &[u8]) -> Next {
        let [content, rest @ ..] = bytes else { return Next::More };
        let passes = match *content {
            CHANGE_CIPHER_SPEC | ALERT => true,
            APPLICATION_DATA if self.early => true,
            APPLICATION_DATA => return Next::Free,
            HANDSHAKE => false,
            _ => return Next::Broken,
        };
        let [_, _, high, low, fragment @ ..] = rest else { return Next::More };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if passes {
            let changed = self.changed || *content == CHANGE_CIPHER_SPEC;
            return Next::Pass(Behind { left: RECORD_HEADER + length, changed, ..self });
        }
        match fragment {
            _ if length == 0 => Next::Broken,
            [] => Next::More,
            [CLIENT_HELLO, ..] if !self.changed || length < MIN_ENCRYPTED => Next::Hello,
            // After a change of keys only what is a hello by its length too.
            [CLIENT_HELLO, a, b, c, ..] => {
                let hello = usize::try_from(u32::from_be_bytes([0, *a, *b, *c])).unwrap_or(usize::MAX);
                let plausible = (MIN_HELLO..=LIMIT).contains(&hello) && hello + 4 >= length;
                if plausible { Next::Hello } else { Next::Free }
            }
            [CLIENT_HELLO, ..] => Next::More,
            [_, ..] => Next::Free,
        }
    }
}

/// The ClientHello at the start of a connection's bytes. `None`: there is more of it to come.
pub(crate) fn look(bytes: &[u8]) -> Option<Looked> {
    let doubt = |doubt| {
        let shown = Shown::Unreadable { protocol: Protocol::Tls, doubt };
        Some(Looked { shown, length: bytes.len(), behind: None })
    };
    if is_sslv2_hello(bytes) {
        // It has no extensions, so no name, and TLS 1.3 does not begin so: there is no second one.
        let shown = Shown::Tls { server_name: None, ech: false };
        return Some(Looked { shown, length: bytes.len(), behind: None });
    }
    match join_records(bytes) {
        Ok(Some((message, length))) => match client_hello(&message) {
            Ok(Some((Hello { server_name, ech, early }, _))) => {
                let behind = Some(Behind { left: 0, early, changed: false });
                Some(Looked { shown: Shown::Tls { server_name, ech }, length, behind })
            }
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

/// The first handshake message without the record headers, and the length of its records, which end with it: a second
/// message in the last one would go on unread. `None` before it is whole.
fn join_records(mut bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Doubt> {
    let (mut message, mut records) = (Vec::new(), 0);
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
        records += RECORD_HEADER + length;
        match needed(&message)? {
            Some(needed) if message.len() > needed => return Err(Doubt::Malformed),
            Some(needed) if message.len() == needed && fragment.len() < length => return Err(Doubt::Malformed),
            Some(needed) if message.len() == needed => return Ok(Some((message, records))),
            Some(_) | None => {}
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
    let mut hello = Hello { server_name: None, ech: false, early: false };
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
            EXTENSION_EARLY_DATA => hello.early = true,
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

impl<'a> Reader<'a> {
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
