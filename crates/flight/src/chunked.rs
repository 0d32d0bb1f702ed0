//! The chunked transfer coding (RFC 9112 §7.1), as far as where it ends.

use crate::Doubt;

/// A chunk's size line, and a trailer line: far more than anybody sends.
const MAX_LINE: usize = 4096;
/// All trailer lines together.
const MAX_TRAILERS: usize = 16 * 1024;
/// Digits of a chunk's size: what fits 60 bits.
const MAX_DIGITS: usize = 15;

/// Where in a chunked body the reader stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunked {
    /// Before a chunk's size.
    Size,
    /// In a chunk's data with the CRLF behind it.
    Data(u64),
    /// Behind the last chunk; bytes of trailers so far.
    Trailers(usize),
    Done,
}

impl Chunked {
    /// How many of `bytes` belong to the body, and the state behind them. 0: a line is not whole yet.
    pub(crate) fn advance(self, bytes: &[u8]) -> Result<(usize, Chunked), Doubt> {
        match self {
            Chunked::Size => {
                let Some(line) = line(bytes)? else { return Ok((0, self)) };
                let size = size(line)?;
                let next = if size == 0 { Chunked::Trailers(0) } else { Chunked::Data(size.saturating_add(2)) };
                Ok((line.len() + 2, next))
            }
            Chunked::Data(left) => {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                let rest = left - u64::try_from(here).unwrap_or(left);
                // Whether CRLF stands where the chunk ends: the last two of what is left.
                let ends = [(2, b'\r'), (1, b'\n')];
                for (before_end, expected) in ends {
                    let at = left.checked_sub(before_end).and_then(|at| usize::try_from(at).ok());
                    if at.and_then(|at| bytes.get(at)).is_some_and(|byte| *byte != expected) {
                        return Err(Doubt::Framing);
                    }
                }
                Ok((here, if rest == 0 { Chunked::Size } else { Chunked::Data(rest) }))
            }
            Chunked::Trailers(before) => {
                let Some(line) = line(bytes)? else { return Ok((0, self)) };
                let length = line.len() + 2;
                if line.is_empty() {
                    return Ok((length, Chunked::Done));
                }
                let so_far = before.saturating_add(length);
                if so_far > MAX_TRAILERS { Err(Doubt::TooLong) } else { Ok((length, Chunked::Trailers(so_far))) }
            }
            Chunked::Done => Ok((0, self)),
        }
    }
}

/// The first line without its CRLF. CR and LF stand together or not at all.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, Doubt> {
    let Some(at) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n' | 0)) else {
        return if bytes.len() > MAX_LINE { Err(Doubt::TooLong) } else { Ok(None) };
    };
    if at > MAX_LINE {
        return Err(Doubt::TooLong);
    }
    match bytes.get(at..) {
        Some([b'\r', b'\n', ..]) => Ok(bytes.get(..at)),
        Some([b'\r']) => Ok(None),
        _ => Err(Doubt::Framing),
    }
}

/// `chunk-size [ chunk-ext ]`.
fn size(line: &[u8]) -> Result<u64, Doubt> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, extension) = line.split_at_checked(digits).ok_or(Doubt::Framing)?;
    let extension_or_nothing = match extension {
        [] => true,
        [b';', ..] => extension.iter().all(|byte| *byte >= b' ' || *byte == b'\t'),
        _ => false,
    };
    if digits.is_empty() || digits.len() > MAX_DIGITS || !extension_or_nothing {
        return Err(Doubt::Framing);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| Doubt::Framing)?;
    u64::from_str_radix(digits, 16).map_err(|_| Doubt::Framing)
}
