//! SVCB and HTTPS records (RFC 9460): taken apart, and written again without what would hide names or lead around them.
//!
//! | Parameter | Becomes |
//! |---|---|
//! | `ech` | goes: the name on the wire would be the provider's, not the one that policies speak of |
//! | `ipv4hint`, `ipv6hint` | stay as the addresses that they are, to be judged and pinned; those of a dead family go |
//! | `mandatory` | stays; a record that declares one of those that went to be mandatory goes as a whole |
//! | all others | stay, unread |
//!
//! A record that does not follow the format is no record (RFC 9460 §2.2: clients ignore the whole set). One in alias mode
//! has no parameters: they would mean nothing (§2.4.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Families;
use crate::wire::{Malformed, Name, Reader};

/// Keys of parameters (RFC 9460 §14.3.2, RFC 9848).
mod key {
    pub(super) const MANDATORY: u16 = 0;
    pub(super) const IPV4_HINT: u16 = 4;
    pub(super) const ECH: u16 = 5;
    pub(super) const IPV6_HINT: u16 = 6;
}

/// A record that may be looked at further.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Service {
    /// The data as it may be delivered.
    pub(crate) data: Vec<u8>,
    /// Whether it differs from what came, so that a signature over it is void.
    pub(crate) has_changed: bool,
    /// The addresses that are left in it.
    pub(crate) hints: Vec<IpAddr>,
    /// The name that clients are led to; `None` for the record's own.
    pub(crate) target: Option<Name>,
}

/// Reads the data of a record. `room` is how many hints may stay; with more of them all go, so that whoever sees one sees
/// one that is pinned. `None`: the record must not be delivered.
pub(crate) fn sift(data: &[u8], families: Families, room: usize) -> Option<Service> {
    let sifted = read(data, families).ok().flatten()?;
    if sifted.hints.len() <= room {
        return Some(sifted);
    }
    read(data, Families { ipv4: false, ipv6: false }).ok().flatten()
}

fn read(data: &[u8], families: Families) -> Result<Option<Service>, Malformed> {
    let mut reader = Reader::new(data);
    let priority = reader.word()?;
    let target = reader.plain_name()?;
    let mut kept = priority.to_be_bytes().to_vec();
    kept.extend_from_slice(target.as_bytes());
    let mut hints = Vec::new();
    let mut mandatory = Vec::new();
    let mut gone = Vec::new();
    let mut last = None;
    while !reader.is_at_end() {
        let key = reader.word()?;
        let length = reader.word()?;
        let value = reader.bytes(usize::from(length))?;
        // "SvcParamKeys SHALL appear in increasing numeric order", each once (§2.2).
        if last.is_some_and(|last| last >= key) {
            return Err(Malformed);
        }
        last = Some(key);
        let stays = match key {
            key::MANDATORY => {
                mandatory = words(value)?;
                true
            }
            key::ECH => false,
            key::IPV4_HINT => {
                let addresses = chunks::<4>(value)?.map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
                hints.extend(addresses.filter(|_| families.ipv4));
                families.ipv4
            }
            key::IPV6_HINT => {
                let addresses = chunks::<16>(value)?.map(|octets| IpAddr::V6(Ipv6Addr::from(octets)));
                hints.extend(addresses.filter(|_| families.ipv6));
                families.ipv6
            }
            _ => true,
        };
        if stays && priority != 0 {
            kept.extend_from_slice(&key.to_be_bytes());
            kept.extend_from_slice(&length.to_be_bytes());
            kept.extend_from_slice(value);
        } else {
            gone.push(key);
        }
    }
    if priority == 0 {
        hints.clear();
    } else if gone.iter().any(|key| mandatory.contains(key)) {
        return Ok(None);
    }
    let has_changed = kept != data;
    Ok(Some(Service { data: kept, has_changed, hints, target: (!target.is_root()).then_some(target) }))
}

fn words(value: &[u8]) -> Result<Vec<u16>, Malformed> {
    Ok(chunks::<2>(value)?.map(u16::from_be_bytes).collect())
}

/// A value that is a list of at least one thing of `N` bytes (§7.3, §8).
fn chunks<const N: usize>(value: &[u8]) -> Result<impl Iterator<Item = [u8; N]>, Malformed> {
    let (chunks, rest) = value.as_chunks::<N>();
    if chunks.is_empty() || !rest.is_empty() { Err(Malformed) } else { Ok(chunks.iter().copied()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Families = Families { ipv4: true, ipv6: true };

    fn record(priority: u16, target: &[u8], parameters: &[(u16, &[u8])]) -> Vec<u8> {
        let mut data = [&priority.to_be_bytes()[..], target].concat();
        for (key, value) in parameters {
            data.extend_from_slice(&key.to_be_bytes());
            data.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
            data.extend_from_slice(value);
        }
        data
    }

    const ALPN: (u16, &[u8]) = (1, b"\x02h2");
    const HINT4: (u16, &[u8]) = (4, &[93, 184, 216, 34]);
    const ECH: (u16, &[u8]) = (5, b"key of the provider");
    const HINT6: (u16, &[u8]) = (6, &[0x26, 6, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    #[test]
    fn ech_goes_and_the_rest_stays() {
        let service = sift(&record(1, b"\0", &[ALPN, HINT4, ECH, HINT6]), BOTH, 9).unwrap();
        assert_eq!(service.data, record(1, b"\0", &[ALPN, HINT4, HINT6]));
        assert!(service.has_changed && service.target.is_none());
        let hints: Vec<String> = service.hints.iter().map(ToString::to_string).collect();
        assert_eq!(hints, ["93.184.216.34", "2606:2800::1"]);
    }

    #[test]
    fn a_record_without_ech_stays_as_it_is() {
        let data = record(2, b"\x03cdn\0", &[ALPN, (3, &[1, 187])]);
        let service = sift(&data, BOTH, 9).unwrap();
        assert_eq!((&service.data, service.has_changed, service.hints.len()), (&data, false, 0));
        assert_eq!(format!("{:?}", service.target.unwrap()), "cdn.");
    }

    #[test]
    fn hints_of_a_dead_family_go() {
        let data = record(1, b"\0", &[HINT4, HINT6]);
        let service = sift(&data, Families { ipv4: true, ipv6: false }, 9).unwrap();
        assert_eq!(service.data, record(1, b"\0", &[HINT4]));
        let service = sift(&data, Families { ipv4: false, ipv6: true }, 9).unwrap();
        assert_eq!(service.data, record(1, b"\0", &[HINT6]));
    }

    #[test]
    fn with_too_many_hints_all_go() {
        let service = sift(&record(1, b"\0", &[ALPN, HINT4, HINT6]), BOTH, 1).unwrap();
        assert_eq!((service.data, service.hints), (record(1, b"\0", &[ALPN]), vec![]));
    }

    #[test]
    fn alias_mode_has_no_parameters() {
        let service = sift(&record(0, b"\x03cdn\0", &[HINT4, ECH]), BOTH, 9).unwrap();
        assert_eq!((service.data, service.hints), (record(0, b"\x03cdn\0", &[]), vec![]));
    }

    #[test]
    fn a_record_that_cannot_do_without_what_went_goes() {
        assert_eq!(sift(&record(1, b"\0", &[(0, &[0, 5]), ALPN, ECH]), BOTH, 9), None);
        assert!(sift(&record(1, b"\0", &[(0, &[0, 1]), ALPN, ECH]), BOTH, 9).is_some());
        let only4 = Families { ipv4: true, ipv6: false };
        assert_eq!(sift(&record(1, b"\0", &[(0, &[0, 6]), HINT6]), only4, 9), None);
    }

    #[test]
    fn records_out_of_shape_are_none() {
        let good = record(1, b"\0", &[ALPN, HINT4]);
        for length in 0..good.len() {
            let cut = sift(good.get(..length).unwrap(), BOTH, 9);
            // Cut between two parameters it is a record with fewer of them.
            assert_eq!(cut.is_some(), [3, 3 + 4 + 3].contains(&length), "{length}");
        }
        let shapes: [&[(u16, &[u8])]; 5] =
            [&[HINT4, ALPN], &[ALPN, ALPN], &[(4, &[1, 2, 3])], &[(6, &[1; 17])], &[(4, &[])]];
        for parameters in shapes {
            assert_eq!(sift(&record(1, b"\0", parameters), BOTH, 9), None, "{parameters:?}");
        }
        // A name in the data is never compressed.
        assert_eq!(sift(&record(1, b"\xc0\x0c", &[ALPN]), BOTH, 9), None);
    }
}
