//! Initial keys (RFC 9001 §5.2, RFC 9369 §3.3) and opening a packet with them (RFC 9001 §5.3, §5.4).

use std::fmt;

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes_gcm::Aes128Gcm;
use aes_gcm::aead::AeadInOut;
use hkdf::Hkdf;
use sha2::Sha256;

use crate::quic::packet::{LongPacket, Version};

const SALT_1: [u8; 20] = [
    0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f,
    0x0a,
];
const SALT_2: [u8; 20] = [
    0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9, 0xbd, 0x2e,
    0xd9,
];

const TAG: usize = 16;
const SAMPLE: usize = 16;

/// The client's Initial keys of one connection.
pub(super) struct Keys {
    version: Version,
    seal: Aes128Gcm,
    iv: [u8; 12],
    header: Aes128,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("version", &self.version).finish_non_exhaustive()
    }
}

/// The bytes behind [`Keys`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Material {
    pub(super) key: [u8; 16],
    pub(super) iv: [u8; 12],
    pub(super) header: [u8; 16],
}

impl Material {
    pub(super) fn of(version: Version, destination: &[u8]) -> Material {
        let (salt, key, iv, header) = match version {
            Version::One => (&SALT_1, "quic key", "quic iv", "quic hp"),
            Version::Two => (&SALT_2, "quicv2 key", "quicv2 iv", "quicv2 hp"),
        };
        let initial = Hkdf::<Sha256>::new(Some(salt), destination);
        let secret: [u8; 32] = expand(&initial, "client in");
        let client = Hkdf::<Sha256>::from_prk(&secret).unwrap_or(initial);
        Material { key: expand(&client, key), iv: expand(&client, iv), header: expand(&client, header) }
    }
}

/// HKDF-Expand-Label (RFC 8446 §7.1) with an empty context.
fn expand<const LENGTH: usize>(secret: &Hkdf<Sha256>, label: &str) -> [u8; LENGTH] {
    const PREFIX: &[u8] = b"tls13 ";
    let byte = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    let mut out = [0; LENGTH];
    let length = [0, byte(LENGTH)];
    let label_length = [byte(PREFIX.len() + label.len())];
    let info = [&length[..], &label_length, PREFIX, label.as_bytes(), &[0]];
    // Only a length above 255 times that of a hash is refused; a key of zeros opens nothing.
    let _ = secret.expand_multi_info(&info, &mut out);
    out
}

impl Keys {
    pub(super) fn of(version: Version, destination: &[u8]) -> Keys {
        let Material { key, iv, header } = Material::of(version, destination);
        Keys { version, seal: Aes128Gcm::new(&key.into()), iv, header: Aes128::new(&header.into()) }
    }

    /// The payload of a packet. `None` when it was not sealed with these keys.
    pub(super) fn open(&self, packet: &LongPacket<'_>) -> Option<Vec<u8>> {
        if packet.version != self.version {
            return None;
        }
        let mask = self.mask(packet.protected.get(4..4 + SAMPLE)?)?;
        let mut header = packet.header.to_vec();
        let first = header.first_mut()?;
        *first ^= mask.first()? & 0x0f;
        let number_length = usize::from(*first & 3) + 1;
        let (number, sealed) = packet.protected.split_at_checked(number_length)?;
        let unmasked = number.iter().zip(mask.get(1..)?).map(|(byte, mask)| byte ^ mask);
        let mut nonce = self.iv;
        let tail = nonce.get_mut(12 - number_length..)?;
        for (byte, number) in tail.iter_mut().zip(unmasked) {
            *byte ^= number;
            header.push(number);
        }
        let (payload, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG)?)?;
        let mut payload = payload.to_vec();
        let tag = <[u8; TAG]>::try_from(tag).ok()?;
        self.seal.decrypt_inout_detached(&nonce.into(), &header, payload.as_mut_slice().into(), &tag.into()).ok()?;
        Some(payload)
    }

    fn mask(&self, sample: &[u8]) -> Option<[u8; SAMPLE]> {
        let mut block = <[u8; SAMPLE]>::try_from(sample).ok()?.into();
        self.header.encrypt_block(&mut block);
        Some(block.into())
    }
}
