//! Which protocol a connection speaks, by what its client says first.

use crate::tls;

/// What the bytes are, or whether that cannot be told yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    More,
    Tls,
    Http,
    Other,
}

/// `ended`: there will be no more bytes.
///
/// HTTP is told by its first line alone, and generously: servers differ in what spaces, methods and cases they take, and
/// what looks like a request to any of them has to be read as one (and may be refused for its form).
pub(crate) fn classify(bytes: &[u8], ended: bool) -> Class {
    let more = if ended { Class::Other } else { Class::More };
    match bytes {
        [] => return more,
        [content] if tls::CONTENT_TYPES.contains(content) => return more,
        // A first record's version is looked at late or never by servers: Go takes any below 16.0.
        [21 | 22, 0..=15, ..] => return Class::Tls,
        [content, 3, ..] if tls::CONTENT_TYPES.contains(content) => return Class::Tls,
        // An SSLv2 hello is told by its fifth byte; no line of HTTP begins so.
        [length, ..] if length & 0x80 != 0 => {
            return match bytes {
                _ if tls::is_sslv2_hello(bytes) => Class::Tls,
                [_] | [_, _] | [_, _, 1] | [_, _, 1, 0 | 3] => more,
                _ => Class::Other,
            };
        }
        _ => {}
    }
    let Some(start) = bytes.iter().position(|byte| !is_blank(*byte)) else { return more };
    let line = bytes.get(start..).unwrap_or_default();
    let end = line.iter().position(|byte| *byte == b'\n');
    let (line, whole) = (line.get(..end.unwrap_or(line.len())).unwrap_or_default(), end.is_some() || ended);
    // What stands behind a byte that is no text is not looked at, so that it does not matter how the bytes were cut.
    let text = line.iter().position(|byte| byte.is_ascii_control() && !is_blank(*byte));
    let (line, whole) = (line.get(..text.unwrap_or(line.len())).unwrap_or_default(), whole || text.is_some());
    if !line.first().is_some_and(|byte| is_token(*byte)) {
        return Class::Other;
    }
    if has_version(line) || (whole && is_simple_request(line)) || (text.is_some() && begins_request(line)) {
        return Class::Http;
    }
    if whole { Class::Other } else { Class::More }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c | 0x1c..=0x1f | 0x85 | 0xa0)
}

/// `tchar` of RFC 9110 §5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether ` HTTP/` and a digit stand in the line, behind something.
fn has_version(line: &[u8]) -> bool {
    line.windows(7).any(|window| match window {
        [space, version @ .., digit] => {
            is_blank(*space) && version.eq_ignore_ascii_case(b"HTTP/") && digit.is_ascii_digit()
        }
        _ => false,
    })
}

/// A method and a blank, before a byte that is no text. Methods that servers know have no digits, and the lines of git's own
/// protocol, which have a NUL in them, begin with some.
fn begins_request(line: &[u8]) -> bool {
    let method = line.iter().position(|byte| !byte.is_ascii_alphabetic() && !b"-_".contains(byte));
    method.and_then(|end| line.get(end)).is_some_and(|byte| is_blank(*byte))
}

/// HTTP/0.9: `GET` and a target.
fn is_simple_request(line: &[u8]) -> bool {
    let mut words = line.split(|byte| is_blank(*byte)).filter(|word| !word.is_empty());
    words.next().is_some_and(|method| method.eq_ignore_ascii_case(b"GET")) && words.next().is_some()
}
