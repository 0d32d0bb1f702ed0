//! What is signed, and with which keys: MS-SMB2 3.1.4.1 and 3.1.4.2. The primitives are RustCrypto's.

use std::sync::Arc;

use aes::Aes128;
use cmac::Cmac;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};

use crate::auth::SessionKey;
use crate::wire::bytes::patch;
use crate::wire::header::{AT_SIGNATURE, HEADER};

/// A running hash over what was said before anybody was sure of anybody, of 3.1.1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Preauth([u8; 64]);

impl Preauth {
    pub(crate) const START: Preauth = Preauth([0; 64]);

    #[must_use]
    pub(crate) fn with(self, message: &[u8]) -> Preauth {
        Preauth(Sha512::new().chain_update(self.0).chain_update(message).finalize().into())
    }
}

/// The key that a session signs with.
#[derive(Clone)]
pub(crate) struct SigningKey(Arc<Cmac<Aes128>>);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

impl SigningKey {
    /// The key of a session of 3.1.1, bound to what was said so far; without `preauth`, of 3.0.2.
    pub(crate) fn derive(key: &SessionKey, preauth: Option<&Preauth>) -> Option<SigningKey> {
        let derived = match preauth {
            Some(preauth) => kdf(key, b"SMBSigningKey\0", &preauth.0),
            None => kdf(key, b"SMB2AESCMAC\0", b"SmbSign\0"),
        }?;
        Some(SigningKey(Arc::new(Cmac::new_from_slice(&derived).ok()?)))
    }

    /// Writes the signature into a message that is complete, its flags included.
    pub(crate) fn sign(&self, message: &mut [u8]) {
        patch(message, AT_SIGNATURE, &[0; 16]);
        let signature = Cmac::clone(&self.0).chain_update(&message).finalize().into_bytes();
        patch(message, AT_SIGNATURE, &signature);
    }

    /// Whether a message has the signature that it should have.
    pub(crate) fn verify(&self, message: &[u8]) -> bool {
        let (Some((head, rest)), Some(signature)) =
            (message.split_at_checked(AT_SIGNATURE), message.get(AT_SIGNATURE..HEADER))
        else {
            return false;
        };
        let body = rest.get(16..).unwrap_or_default();
        Cmac::clone(&self.0).chain_update(head).chain_update([0; 16]).chain_update(body).verify_slice(signature).is_ok()
    }
}

/// SP 800-108 in counter mode with HMAC-SHA-256, for 128 bits: one block.
fn kdf(key: &SessionKey, label: &[u8], context: &[u8]) -> Option<[u8; 16]> {
    let block = Hmac::<Sha256>::new_from_slice(key)
        .ok()?
        .chain_update(1_u32.to_be_bytes())
        .chain_update(label)
        .chain_update([0])
        .chain_update(context)
        .chain_update(128_u32.to_be_bytes())
        .finalize()
        .into_bytes();
    block.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_bit_breaks_the_signature() {
        let key = SigningKey::derive(&[7; 16], Some(&Preauth::START)).unwrap();
        let mut message = vec![5; 200];
        key.sign(&mut message);
        assert!(key.verify(&message));
        for at in [0, 47, 48, 63, 64, 199] {
            let mut other = message.clone();
            other[at] ^= 1;
            assert!(!key.verify(&other), "{at}");
        }
        let another = SigningKey::derive(&[7; 16], Some(&Preauth::START.with(b"x"))).unwrap();
        assert!(!another.verify(&message), "bound to what was said before");
        assert!(!key.verify(&message[..50]));
    }
}
