//! The few DER structures of SPNEGO (RFC 4178) that carry tokens of NTLM.

/// The object id of NTLM, 1.3.6.1.4.1.311.2.2.10.
const NTLM: [u8; 10] = [0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x02, 0x0a];
/// And of SPNEGO, 1.3.6.1.5.5.2.
const SPNEGO: [u8; 6] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x02];

const OBJECT_ID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;
const APPLICATION: u8 = 0x60;

/// The tag of field `number`.
const fn field(number: u8) -> u8 {
    0xa0 | number
}

/// What the server says first: NTLM and nothing else.
pub(crate) fn hint() -> Vec<u8> {
    let mechanisms = der(field(0), &der(SEQUENCE, &der(OBJECT_ID, &NTLM)));
    let init = der(field(0), &der(SEQUENCE, &mechanisms));
    der(APPLICATION, &[der(OBJECT_ID, &SPNEGO), init].concat())
}

/// The token of NTLM in a client's token, and whether it was in SPNEGO.
pub(super) fn unwrap(token: &[u8]) -> Option<(bool, &[u8])> {
    match token.first()? {
        b'N' => Some((false, token)),
        &APPLICATION => {
            let (_, body, _) = next(token)?;
            let (_, _, rest) = next(body).filter(|(tag, id, _)| *tag == OBJECT_ID && *id == SPNEGO)?;
            Some((true, octets(rest, field(0))?))
        }
        _ => Some((true, octets(token, field(1))?)),
    }
}

/// The token in field 2 of the sequence in `outer`.
fn octets(bytes: &[u8], outer: u8) -> Option<&[u8]> {
    let (_, body, _) = next(bytes).filter(|(tag, ..)| *tag == outer)?;
    let (_, mut fields, _) = next(body).filter(|(tag, ..)| *tag == SEQUENCE)?;
    while !fields.is_empty() {
        let (tag, value, rest) = next(fields)?;
        if tag == field(2) {
            return next(value).filter(|(tag, ..)| *tag == OCTETS).map(|(_, token, _)| token);
        }
        fields = rest;
    }
    None
}

pub(super) fn wrap_challenge(token: &[u8]) -> Vec<u8> {
    const ACCEPT_INCOMPLETE: u8 = 1;
    response(&[
        der(field(0), &der(ENUMERATED, &[ACCEPT_INCOMPLETE])),
        der(field(1), &der(OBJECT_ID, &NTLM)),
        der(field(2), &der(OCTETS, token)),
    ])
}

pub(super) fn accepted() -> Vec<u8> {
    const ACCEPT_COMPLETED: u8 = 0;
    response(&[der(field(0), &der(ENUMERATED, &[ACCEPT_COMPLETED]))])
}

fn response(fields: &[Vec<u8>]) -> Vec<u8> {
    der(field(1), &der(SEQUENCE, &fields.concat()))
}

fn der(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match u8::try_from(value.len()) {
        Ok(len @ 0..=0x7f) => out.push(len),
        Ok(len) => out.extend([0x81, len]),
        Err(_) => {
            out.push(0x82);
            out.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
    out
}

/// Tag, value and what follows.
fn next(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81 => rest.split_first().map(|(len, rest)| (usize::from(*len), rest))?,
        0x82 => rest.split_first_chunk().map(|(len, rest)| (usize::from(u16::from_be_bytes(*len)), rest))?,
        // No token is longer than 64 KiB.
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(len)?;
    Some((*tag, value, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_the_token_in_either_wrapping_and_bare() {
        let token = [b"NTLMSSP\0".as_slice(), &[7; 300]].concat();
        let fields = [der(field(0), &der(SEQUENCE, &der(OBJECT_ID, &NTLM))), der(field(2), &der(OCTETS, &token))];
        let init = der(field(0), &der(SEQUENCE, &fields.concat()));
        let first = der(APPLICATION, &[der(OBJECT_ID, &SPNEGO), init].concat());
        assert_eq!(unwrap(&first), Some((true, token.as_slice())));
        assert_eq!(unwrap(&wrap_challenge(&token)), Some((true, token.as_slice())));
        assert_eq!(unwrap(&token), Some((false, token.as_slice())));
        assert_eq!(unwrap(&accepted()), None, "there is none");
    }

    proptest! {
        #[test]
        fn no_token_stops_the_reader(token in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = unwrap(&token);
            let _ = unwrap(&der(APPLICATION, &[der(OBJECT_ID, &SPNEGO), token].concat()));
        }
    }
}
