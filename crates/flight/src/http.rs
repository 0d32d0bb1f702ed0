//! The head of an HTTP/1 request (RFC 9112): the names it shows, how its body is framed, and what comes after.
//!
//! Whoever reads the request behind us must come to the same end of it, so everything that readers are known to
//! disagree on is a [`Doubt`]: bare CR or LF, folded lines, spaces around names, several lengths, unknown codings.

use cofferdam_model::DomainName;

use crate::classify::is_token;
use crate::tls::parse_name;
use crate::{Doubt, LIMIT};

/// More than any client sends in 16 KiB of head.
const MAX_HEADERS: usize = 128;

/// A request's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes of the head, blank lines before it included.
    pub(crate) length: usize,
    pub(crate) names: Vec<DomainName>,
    pub(crate) body: Body,
    pub(crate) after: After,
}

/// How long a request's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    Length(u64),
    Chunked,
}

/// What follows a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    Request,
    /// A tunnel, if the server agrees.
    Connect,
    /// Another protocol, if the server agrees.
    Upgrade,
}

/// The head at the start of `bytes`. `None`: there is more of it to come.
pub(crate) fn head(bytes: &[u8]) -> Result<Option<Head>, Doubt> {
    let blank = blank_lines(bytes);
    let text = bytes.get(blank..).unwrap_or_default();
    match text {
        // Half a blank line.
        [] | [b'\r'] => return Ok(None),
        [first, ..] if !is_token(*first) => return Err(Doubt::Malformed),
        [_, ..] => {}
    }
    let Some(length) = head_length(text)? else { return Ok(None) };
    let text = text.get(..length).unwrap_or_default();
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(text) {
        Ok(httparse::Status::Complete(parsed)) if parsed == length => {}
        Err(httparse::Error::Version) => return Err(Doubt::Version),
        Err(httparse::Error::TooManyHeaders) => return Err(Doubt::TooLong),
        Ok(_) | Err(_) => return Err(Doubt::Malformed),
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Doubt::Malformed);
    };
    let fields = Fields::read(request.headers)?;
    let connect = method == "CONNECT";
    let body = body(minor, &fields)?;
    // It has no content (RFC 9110 §9.3.6): what would be the body to one reader is the tunnel to another.
    if connect && body != Body::Length(0) {
        return Err(Doubt::Framing);
    }
    Ok(Some(Head {
        length: blank + length,
        names: names(target, connect, minor, &fields)?,
        body,
        after: match (connect, fields.upgrade) {
            (true, _) => After::Connect,
            (false, true) => After::Upgrade,
            (false, false) => After::Request,
        },
    }))
}

/// The length of blank lines in front, which servers pass over (RFC 9112 §2.2).
pub(crate) fn blank_lines(bytes: &[u8]) -> usize {
    let (lines, _) = bytes.as_chunks::<2>();
    lines.iter().take_while(|line| *line == b"\r\n").count() * 2
}

/// The length of a head up to its empty line. Lines end in CRLF and nothing else.
fn head_length(text: &[u8]) -> Result<Option<usize>, Doubt> {
    let mut previous = 0;
    let mut line = 0;
    for (at, byte) in text.iter().take(LIMIT).enumerate() {
        match (previous, *byte) {
            (_, 0) => return Err(Doubt::Malformed),
            (b'\r', b'\n') if at == line + 1 => return Ok(Some(at + 1)),
            // Said at once: in HTTP/0.9 nothing would follow, and in HTTP/2 no head.
            (b'\r', b'\n') if line == 0 && !is_http1(text.get(..at - 1).unwrap_or_default()) => {
                return Err(Doubt::Version);
            }
            (b'\r', b'\n') => line = at + 1,
            (b'\r', _) | (_, b'\n') => return Err(Doubt::Malformed),
            (_, _) => {}
        }
        previous = *byte;
    }
    if text.len() >= LIMIT { Err(Doubt::TooLong) } else { Ok(None) }
}

fn is_http1(line: &[u8]) -> bool {
    line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")
}

/// The fields that matter here.
#[derive(Debug, Default)]
struct Fields<'a> {
    hosts: Vec<&'a [u8]>,
    lengths: Vec<&'a [u8]>,
    codings: Vec<&'a [u8]>,
    upgrade: bool,
}

impl<'a> Fields<'a> {
    fn read(headers: &[httparse::Header<'a>]) -> Result<Fields<'a>, Doubt> {
        let mut fields = Fields::default();
        for header in headers {
            if header.name.is_empty() || !header.name.bytes().all(is_token) {
                return Err(Doubt::Malformed);
            }
            let value = header.value.trim_ascii();
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("host") {
                fields.hosts.push(value);
            } else if is("content-length") {
                fields.lengths.push(value);
            } else if is("transfer-encoding") {
                fields.codings.push(value);
            } else if is("upgrade") {
                fields.upgrade = true;
            }
        }
        Ok(fields)
    }
}

fn names(target: &str, connect: bool, minor: u8, fields: &Fields<'_>) -> Result<Vec<DomainName>, Doubt> {
    let host = match fields.hosts.as_slice() {
        [host] => host_name(host)?,
        // HTTP/1.0 came without it.
        [] if minor == 0 => None,
        _ => return Err(Doubt::Host),
    };
    let authority = match target.split_once("://") {
        _ if connect => Some(target),
        // `/a?b=http://c` is a path.
        Some((scheme, rest)) if !scheme.contains(['/', '?', '#']) => {
            Some(rest.split(['/', '?', '#']).next().unwrap_or_default())
        }
        Some(_) | None => None,
    };
    let in_target = match authority {
        Some(authority) => host_name(authority.as_bytes())?,
        None if target.starts_with('/') || target == "*" => None,
        // Neither origin, absolute, authority nor asterisk form (RFC 9112 §3.2).
        None => return Err(Doubt::Malformed),
    };
    // A name beside an address, or beside nothing: which of the two counts is the server's to say.
    if authority.is_some() && !fields.hosts.is_empty() && host.is_some() != in_target.is_some() {
        return Err(Doubt::Host);
    }
    let mut names: Vec<DomainName> = host.into_iter().chain(in_target).collect();
    names.dedup();
    Ok(names)
}

/// `uri-host [ ":" port ]`. `None` for an address, and for nothing, which a request without a host sends (RFC 9112 §3.2).
fn host_name(value: &[u8]) -> Result<Option<DomainName>, Doubt> {
    if value.is_empty() {
        return Ok(None);
    }
    let is_port = |port: &[u8]| port.iter().all(u8::is_ascii_digit);
    if let Some(rest) = value.strip_prefix(b"[") {
        let end = rest.iter().position(|byte| *byte == b']').ok_or(Doubt::Name)?;
        let address = rest.get(..end).and_then(|address| std::str::from_utf8(address).ok()).ok_or(Doubt::Name)?;
        let good = address.parse::<std::net::Ipv6Addr>().is_ok();
        return match rest.get(end + 1..) {
            Some([]) if good => Ok(None),
            Some([b':', port @ ..]) if good && is_port(port) => Ok(None),
            _ => Err(Doubt::Name),
        };
    }
    let colon = value.iter().position(|byte| *byte == b':');
    let (name, port) = value.split_at_checked(colon.unwrap_or(value.len())).ok_or(Doubt::Name)?;
    if !is_port(port.get(1..).unwrap_or_default()) {
        return Err(Doubt::Name);
    }
    let address = std::str::from_utf8(name).ok().and_then(|name| name.parse::<std::net::Ipv4Addr>().ok());
    if address.is_some() { Ok(None) } else { parse_name(name).map(Some) }
}

fn body(minor: u8, fields: &Fields<'_>) -> Result<Body, Doubt> {
    match (fields.lengths.as_slice(), fields.codings.as_slice()) {
        ([], []) => Ok(Body::Length(0)),
        ([length], []) => {
            let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(length).ok().filter(|_| digits);
            text.and_then(|text| text.parse().ok()).map(Body::Length).ok_or(Doubt::Framing)
        }
        ([], [coding]) if minor == 1 && coding.eq_ignore_ascii_case(b"chunked") => Ok(Body::Chunked),
        (_, _) => Err(Doubt::Framing),
    }
}
